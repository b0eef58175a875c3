//! The probe on interfaces in every mode: one that the host uses, AF_PACKET, several at once; and which packets it selects.
//! Needs root for the namespaces; says "skipped" where it cannot run.

use nagare_benches::lab::{Lab, Program, TAP, WIRE, books, built};
use nagare_benches::sender::Sender;
use nagare_benches::traffic::{office, pcap};
use nagare_wire::packet::{LinkType, Tunnels, decode};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A row of the CSV contract.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    source: String,
    destination: String,
    ports: (u16, u16),
    protocol: u8,
    /// Packets and octets there, packets and octets back.
    counts: [u64; 4],
}

fn rows(csv: &str) -> Vec<Row> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        let number = |index: usize| cells[index].parse::<u64>().unwrap_or_else(|error| panic!("{line}: {error}"));
        Row {
            source: cells[2].into(),
            destination: cells[3].into(),
            ports: (number(4) as u16, number(5) as u16),
            protocol: number(6) as u8,
            counts: [number(7), number(8), number(9), number(10)],
        }
    };
    csv.lines().skip(1).map(row).collect()
}

fn sums(rows: &[Row]) -> (u64, u64) {
    let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum();
    (sum(|row| row.counts[0] + row.counts[2]), sum(|row| row.counts[1] + row.counts[3]))
}

/// The probe in the laboratory, its flows in a file.
struct Probe {
    program: Program,
    csv: PathBuf,
    books: PathBuf,
}

impl Probe {
    fn start(lab: &Lab, directory: &Path, arguments: &[&str]) -> Probe {
        let (csv, books) = (directory.join("flows.csv"), directory.join("books.json"));
        let mut command = lab.command("nagare-probe", &["--dump", "csv", "--stats-json", books.to_str().unwrap()]);
        command.args(arguments).stdout(File::create(&csv).unwrap());
        let program = Program::start(command);
        program.wait_for("memory reserved");
        Probe { program, csv, books }
    }

    /// Stops it; its rows, its books, which balance, and its log.
    fn stop(self) -> (Vec<Row>, Value, String) {
        let (status, log) = self.program.stop();
        assert!(status.success(), "{status}");
        let books = books(&self.books);
        assert_eq!(books["balanced"], true, "{books:#}");
        (rows(&std::fs::read_to_string(&self.csv).unwrap()), books, log)
    }
}

fn equations<'a>(books: &'a Value, name: &str) -> Vec<&'a Value> {
    books["equations"].as_array().unwrap().iter().filter(|equation| equation["name"] == name).collect()
}

const NEAR: &str = "192.0.2.1";
const FAR: &str = "192.0.2.2";
const OCTETS: usize = 64 << 20;

fn give_addresses(lab: &Lab) {
    for (namespace, interface, address) in [(lab.probe(), TAP, NEAR), (lab.traffic(), WIRE, FAR)] {
        lab.ip(&namespace, &["addr", "add", &format!("{address}/24"), "dev", interface]);
    }
}

/// tcpi_bytes_sent of Linux's TCP_INFO.
fn octets_sent(stream: &TcpStream) -> u64 {
    let mut info = [0u8; 256];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` octets to `info`.
    let outcome = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert!(outcome == 0 && length >= 208, "{length} octets of TCP_INFO");
    u64::from_ne_bytes(info[200..208].try_into().unwrap())
}

/// Sends [`OCTETS`] over TCP from the traffic's namespace to the probe's; how long that took, the client's port, and the octets that
/// its kernel sent, with those that it sent again.
fn transfer(lab: &Lab) -> (Duration, u16, u64) {
    let listener = lab.within(&lab.probe(), || TcpListener::bind((NEAR, 5001)).unwrap());
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut stream, peer) = listener.accept().unwrap();
            let (mut buffer, mut received) = (vec![0; 1 << 20], 0);
            while let read @ 1.. = stream.read(&mut buffer).unwrap() {
                received += read;
            }
            stream.write_all(b"done").unwrap();
            assert_eq!(received, OCTETS);
            peer.port()
        });
        let lasted = lab.send(|| {
            let begin = Instant::now();
            let mut stream = TcpStream::connect((NEAR, 5001)).unwrap();
            let chunk = vec![7; 1 << 20];
            for _ in 0..OCTETS / chunk.len() {
                stream.write_all(&chunk).unwrap();
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
            (begin.elapsed(), octets_sent(&stream))
        });
        (lasted.0, server.join().unwrap(), lasted.1)
    })
}

/// The host's own TCP goes on while it is metered, in both directions, octet by octet, although segmentation is offloaded.
#[test]
fn an_interface_that_the_host_uses_keeps_working() {
    let Some(lab) = Lab::or_skip(1) else { return };
    give_addresses(&lab);
    let directory = tempfile::tempdir().unwrap();
    transfer(&lab);
    let (without, ..) = transfer(&lab);
    for workers in ["1", "2"] {
        let arguments = ["-i", TAP, "--workers", workers, "--ring-frames", "16384"];
        let probe = Probe::start(&lab, directory.path(), &arguments);
        let (with, port, sent) = transfer(&lab);
        let (rows, books, log) = probe.stop();
        assert!(log.contains("mode host") && log.contains("all traffic passes"), "{log}");
        println!("{workers} workers: {:.2} of the throughput without", without.as_secs_f64() / with.as_secs_f64());
        let lost: u64 =
            equations(&books, "interface").iter().map(|e| e["terms"]["drop.host_ring_full"].as_u64().unwrap()).sum();
        assert_eq!(lost, 0);
        let row = rows.iter().find(|row| row.ports == (port, 5001)).expect("the transfer is a flow");
        assert_eq!((row.source.as_str(), row.destination.as_str(), row.protocol), (FAR, NEAR, 6));
        let [packets, octets, back, octets_back] = row.counts;
        // 32 octets of TCP header with time stamps, 40 in the SYN. What was sent again was seen once or twice.
        let payload = octets - 52 * packets - 8;
        assert!(
            (OCTETS as u64..=sent).contains(&payload),
            "{payload} octets in {packets} packets of {sent} that were sent"
        );
        // Those back may have selective acknowledgements.
        assert!((4 + 52 * back..=4 + 80 * back).contains(&octets_back), "{octets_back} octets in {back} packets back");
        assert!(packets >= OCTETS as u64 / 1460, "{packets} packets on the wire");
    }
    // Nothing is left behind.
    let probe = lab.probe();
    let show = ["netns", "exec", &probe, "tc", "filter", "show", "dev", TAP, "ingress"];
    let left = Command::new("ip").args(show).output().unwrap();
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));
}

/// AF_PACKET sees what XDP sees: VLAN tags, every flow, both directions at one worker.
#[test]
fn af_packet_meters_every_frame() {
    let Some(lab) = Lab::or_skip(1) else { return };
    let directory = tempfile::tempdir().unwrap();
    let traffic = office(5, 1500);
    for workers in ["1", "2"] {
        let arguments = ["-i", TAP, "--mode", "packet", "--workers", workers, "--ring-frames", "16384"];
        let probe = Probe::start(&lab, directory.path(), &arguments);
        let sent = lab.send(|| Sender::open(WIRE)?.send_all(&traffic.frames, Duration::from_secs(2))).unwrap();
        let (rows, books, log) = probe.stop();
        assert!(log.contains("mode packet"), "{log}");
        let wire: u64 = equations(&books, "interface").iter().map(|e| e["total"]["value"].as_u64().unwrap()).sum();
        assert_eq!(wire, sent.frames, "{books:#}");
        assert_eq!(sums(&rows), (traffic.packets(), traffic.octets()));
        let found: BTreeMap<_, _> = rows
            .iter()
            .map(|row| ((row.source.clone(), row.destination.clone(), row.ports, row.protocol), ()))
            .collect();
        assert!(found.len() <= traffic.flows.len(), "a flow came apart: {} of {}", found.len(), traffic.flows.len());
        let most = |equation: &&Value| equation["terms"]["metered"].as_u64().unwrap();
        let least = equations(&books, "packets").iter().map(most).min().unwrap();
        assert!(least > traffic.packets() / 20, "a worker had nothing to do: {least}");
    }
}

/// A tap with a port for each direction: two interfaces, one flow.
#[test]
fn both_directions_of_a_tap_meet() {
    let Some(lab) = Lab::or_skip(1) else { return };
    let (probe, traffic) = (lab.probe(), lab.traffic());
    lab.ip(&probe, &["link", "add", "tap1", "type", "veth", "peer", "name", "wire1", "netns", &traffic]);
    lab.ip(&probe, &["link", "set", "tap1", "up"]);
    lab.ip(&traffic, &["link", "set", "wire1", "up"]);
    let directory = tempfile::tempdir().unwrap();
    let office = office(6, 500);
    let is_there = |frame: &Vec<u8>| {
        let packet = decode(LinkType::Ethernet, frame, frame.len() as u32, Tunnels::Outer);
        packet.is_ok_and(|packet| office.flows.contains_key(&packet.key))
    };
    let there = office.frames.iter().filter(|frame| is_there(frame)).count() as u64;
    for workers in ["1", "2"] {
        let started = Probe::start(
            &lab,
            directory.path(),
            &["-i", TAP, "-i", "tap1", "--workers", workers, "--ring-frames", "16384"],
        );
        lab.send(|| {
            let [there, back] = [WIRE, "wire1"].map(|interface| Sender::open(interface).unwrap());
            for (number, frame) in office.frames.iter().enumerate() {
                if number % 16 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let sender = if is_there(frame) { &there } else { &back };
                sender.send_all(std::slice::from_ref(frame), Duration::ZERO).unwrap();
            }
        });
        let (rows, books, _) = started.stop();
        let seen: Vec<u64> =
            equations(&books, "interface").iter().map(|e| e["total"]["value"].as_u64().unwrap()).collect();
        assert_eq!(seen, [there, office.frames.len() as u64 - there]);
        assert_eq!(sums(&rows), (office.packets(), office.octets()));
        let answered = rows.iter().filter(|row| row.counts[0] > 0 && row.counts[2] > 0).count();
        let expected = office.flows.values().filter(|(there, back)| there.packets > 0 && back.packets > 0).count();
        assert_eq!(answered, expected, "the directions of a conversation did not meet");
    }
}

/// Runs the probe over a file; its rows and books.
fn over_file(file: &Path, directory: &Path, arguments: &[&str]) -> (Vec<Row>, Value) {
    let stats = directory.join("books.json");
    let output = Command::new(built("nagare-probe"))
        .args(["-i", file.to_str().unwrap(), "--dump", "csv", "--stats-json", stats.to_str().unwrap()])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let books = books(&stats);
    assert_eq!(books["balanced"], true, "{books:#}");
    (rows(&String::from_utf8_lossy(&output.stdout)), books)
}

/// Whether tcpdump's filters find the ports of a frame: no fragment, no extension header.
fn is_plain(frame: &[u8]) -> bool {
    match frame[12..14] {
        [0x08, 0x00] => u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff == 0,
        [0x86, 0xdd] => matches!(frame[20], 6 | 17 | 58),
        _ => false,
    }
}

/// The filter passes what tcpdump passes.
#[test]
fn the_filter_selects_what_tcpdump_selects() {
    if Command::new("tcpdump").arg("--version").output().is_err() {
        println!("skipped: tcpdump is not installed");
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "nothing may be skipped where CI=true");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("office.pcap");
    // tcpdump's own filters look at offsets without a tag.
    let mut traffic = nagare_benches::traffic::untagged_office(7, 800);
    traffic.frames.retain(|frame| is_plain(frame));
    std::fs::write(&file, pcap(&traffic.frames, 1_700_000_000_000_000_000, 100_000)).unwrap();
    let (some, _) = traffic.flows.keys().map(|key| (key.source, key.destination)).next().unwrap();
    let filters = [
        "tcp".to_string(),
        "udp port 53".into(),
        "icmp or icmp6".into(),
        "tcp and dst port 443".into(),
        "ip6 and not udp".into(),
        format!("host {some}"),
        format!("src host {some} and (tcp or udp)"),
        "net 10.0.0.0/8 and portrange 1024-40000".into(),
        "not (port 443 or port 53 or port 80)".into(),
    ];
    for filter in filters {
        let oracle = Command::new("tcpdump").args(["-n", "-r", file.to_str().unwrap(), &filter]).output().unwrap();
        assert!(oracle.status.success(), "{filter}: {}", String::from_utf8_lossy(&oracle.stderr));
        let expected =
            String::from_utf8_lossy(&oracle.stdout).lines().filter(|line| line.contains(" IP")).count() as u64;
        let (rows, books) = over_file(&file, directory.path(), &["--filter", &filter]);
        assert_eq!(sums(&rows).0, expected, "{filter}");
        let filtered = equations(&books, "packets")[0]["terms"]["ignore.filtered"].as_u64().unwrap();
        assert_eq!(filtered + expected, traffic.frames.len() as u64, "{filter}");
    }
}

/// Sampled flows are whole; of packets one in so many is metered; the books tell the rest.
#[test]
fn sampling_is_exact_in_what_it_takes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("office.pcap");
    let traffic = office(8, 3000);
    std::fs::write(&file, pcap(&traffic.frames, 1_700_000_000_000_000_000, 100_000)).unwrap();
    let (all, _) = over_file(&file, directory.path(), &[]);
    let not_sampled = |books: &Value| -> u64 {
        equations(books, "packets").iter().map(|e| e["terms"]["ignore.not_sampled"].as_u64().unwrap()).sum()
    };
    for workers in ["1", "2"] {
        let (rows, books) = over_file(&file, directory.path(), &["--sampling", "1:5", "--workers", workers]);
        assert!(rows.iter().all(|row| all.contains(row)), "a sampled flow is not as it is");
        assert!((all.len() / 8..all.len() / 3).contains(&rows.len()), "{} of {} flows", rows.len(), all.len());
        assert_eq!(sums(&rows).0 + not_sampled(&books), traffic.packets());
    }
    let (rows, books) = over_file(&file, directory.path(), &["--sampling", "1:10", "--sampling-by", "packet"]);
    let packets = sums(&rows).0;
    assert!(packets.abs_diff(traffic.packets() / 10) <= 1, "{packets} of {}", traffic.packets());
    assert_eq!(packets + not_sampled(&books), traffic.packets());
}

/// How much is sampled is told in the elements of RFC 5477, as tshark reads them.
#[test]
fn the_rate_of_sampling_is_exported() {
    let directory = tempfile::tempdir().unwrap();
    let (file, export) = (directory.path().join("office.pcap"), directory.path().join("flows.ipfix"));
    std::fs::write(&file, pcap(&office(9, 50).frames, 1_700_000_000_000_000_000, 100_000)).unwrap();
    for (by, elements) in [
        ("packet", ["Sampling Size: 1", "Sampling Population: 64"]),
        ("flow", ["Sampling Flow Interval: 1", "Sampling Flow Spacing: 63"]),
    ] {
        let status = Command::new(built("nagare-probe"))
            .args([
                "-i",
                file.to_str().unwrap(),
                "--sampling",
                "1:64",
                "--sampling-by",
                by,
                "--export-file",
                export.to_str().unwrap(),
            ])
            .status();
        assert!(status.unwrap().success());
        let Ok(oracle) = Command::new("tshark").args(["-n", "-V", "-r", export.to_str().unwrap()]).output() else {
            println!("skipped: tshark is not installed");
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "nothing may be skipped where CI=true");
            return;
        };
        let text = String::from_utf8_lossy(&oracle.stdout).to_lowercase().replace('_', " ");
        for element in elements.iter().chain(&["sampling interval: 64"]) {
            assert!(text.contains(&element.to_lowercase()), "no {element:?} in what tshark reads");
        }
        assert!(!text.contains("malformed"));
    }
}
