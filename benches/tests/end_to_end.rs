//! The whole way with the real programs: made traffic on a veth, XDP, workers, TLS, store, report; and what independent
//! programs read of the exporter. Needs root for the namespaces; says "skipped" where it cannot run.

use nagare_benches::lab::{LISTENING, Lab, Pki, Program, TAP, WIRE, books, built, collector_arguments, run, term};
use nagare_benches::sender::Sender;
use nagare_benches::traffic::{Traffic, office, pcap, untagged_office};
use nagare_wire::flow::{Counters, Direction, FlowKey};
use nagare_wire::ipfix::mapping::{Mapped, map};
use nagare_wire::ipfix::{Transport, TransportSession, frame};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

type Flows = BTreeMap<FlowKey, (Counters, Counters)>;

/// Rows of the CSV contract, added up by key.
fn flows_of(csv: &str) -> Flows {
    let mut flows = Flows::new();
    for row in csv.lines().skip(1) {
        let cells: Vec<&str> = row.split(',').collect();
        let number = |index: usize| cells[index].parse::<u64>().unwrap_or_else(|error| panic!("{row}: {error}"));
        let key = FlowKey {
            source: cells[2].parse().unwrap(),
            destination: cells[3].parse().unwrap(),
            source_port: number(4) as u16,
            destination_port: number(5) as u16,
            protocol: number(6) as u8,
            vlan: number(13) as u16,
            ..FlowKey::default()
        };
        let (forward, reverse) = flows.entry(key).or_default();
        for (counters, first, flags) in [(forward, 7, 11), (reverse, 9, 12)] {
            counters.packets += number(first);
            counters.octets += number(first + 1);
            counters.tcp_flags |= number(flags) as u16;
        }
    }
    flows
}

fn assert_same(found: &Flows, made: &Flows) {
    for (key, counters) in made {
        assert_eq!(found.get(key), Some(counters), "{key:?}");
    }
    assert_eq!(found.len(), made.len());
}

/// The same flows, whoever began them.
fn undirected(flows: &Flows) -> Flows {
    let turn = |(key, (forward, reverse)): (&FlowKey, &(Counters, Counters))| match key.canonical() {
        (canonical, Direction::Forward) => (canonical, (*forward, *reverse)),
        (canonical, Direction::Reverse) => (canonical, (*reverse, *forward)),
    };
    flows.iter().map(turn).collect()
}

fn strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// Starts a program outside of any laboratory.
fn start(program: &str, arguments: &[&str]) -> Program {
    let mut command = Command::new(built(program));
    command.args(arguments);
    Program::start(command)
}

fn stored(directory: &Path, arguments: &[&str]) -> String {
    let data = directory.join("data");
    let output = run("nagare-collector", &[arguments, &["--data", data.to_str().unwrap()]].concat()).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn packets_on_a_wire_become_the_customers_report() {
    for (queues, workers) in [(1, 1), (1, 2), (2, 2)] {
        let Some(lab) = Lab::or_skip(queues) else { return };
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::new(directory.path(), "tokyo");
        let collector = lab.start("nagare-collector", &strs(&collector_arguments(&pki, directory.path(), "0")));
        let port = collector.wait_for(LISTENING);
        let stats = directory.path().join("probe.json");
        let mut arguments = ["-i", TAP, "--collector", &format!("tls://localhost:{port}")].map(String::from).to_vec();
        arguments.extend(["--workers", &workers.to_string(), "--flows-max", "20000"].map(String::from));
        arguments.extend(["--stats-json".into(), stats.to_str().unwrap().to_string()]);
        arguments.extend(pki.probe("tokyo"));
        let probe = lab.start("nagare-probe", &strs(&arguments));
        probe.wait_for("connected to");
        assert!(lab.tap().contains("xdp"), "{}", lab.tap());

        let make = if queues == 1 { office } else { untagged_office };
        let traffic = make(u64::from(queues + workers), 600);
        let sent = lab.send(|| Sender::open(WIRE).unwrap().send_all(&traffic.frames, Duration::from_secs(2)).unwrap());
        assert_eq!((sent.frames, sent.too_long), (traffic.frames.len() as u64, 0));
        let (status, log) = probe.stop();
        assert!(status.success(), "{log}");
        assert!(!lab.tap().contains("xdp") && !lab.tap().contains("PROMISC"), "{}", lab.tap());
        let (status, log) = collector.stop();
        assert!(status.success(), "{log}");

        let received = books(&directory.path().join("collector.json"));
        assert_eq!(received["balanced"], true, "{received:#}");
        let found = flows_of(&stored(directory.path(), &["flows", "--site", "tokyo"]));
        if queues == 1 {
            assert_same(&found, &traffic.flows);
        } else {
            // A request and its answer, sent at once through two queues, may change places: who began is a guess then.
            assert_same(&undirected(&found), &undirected(&traffic.flows));
        }
        check_probe_books(&books(&stats), &traffic, workers);
        check_report(directory.path(), &traffic);
    }
}

fn check_probe_books(books: &Value, traffic: &Traffic, workers: u32) {
    assert_eq!(books["balanced"], true, "{books:#}");
    assert_eq!(term(books, "interface", "wire"), traffic.frames.len() as u64);
    assert_eq!(term(books, "packets", "metered"), traffic.packets());
    assert_eq!(term(books, "packets", "ignore.arp"), traffic.not_ip);
    assert_eq!(books["figures"]["metered_octets"], traffic.octets());
    assert_eq!(term(books, "flows", "delivered"), traffic.flows.len() as u64, "one record a conversation");
    let of_workers = books["equations"].as_array().unwrap().iter().filter(|e| e["name"] == "packets");
    let loads: Vec<u64> = of_workers.map(|e| e["total"]["value"].as_u64().unwrap()).collect();
    assert_eq!(loads.len(), workers as usize);
    let fair = traffic.frames.len() as u64 / u64::from(workers);
    assert!(loads.iter().all(|load| *load > fair / 2), "the workers share the load: {loads:?}");
}

fn check_report(directory: &Path, traffic: &Traffic) {
    let report = directory.join("tokyo.html");
    let csv = directory.join("csv");
    let arguments = ["report", "--site", "tokyo", "--last", "24h", "--out", report.to_str().unwrap()];
    stored(directory, &[&arguments[..], &["--csv", csv.to_str().unwrap()]].concat());
    let html = std::fs::read_to_string(&report).unwrap();
    assert!(html.contains("tokyo") && html.contains("<svg"), "the report names the site and draws its traffic");
    assert!(!html.contains("http://") || html.contains("xmlns"), "nothing is fetched");
    let sql = "SELECT sum(octets + rev_octets) AS octets FROM flows";
    let total = stored(directory, &["sql", "--format", "csv", sql]);
    assert_eq!(total.lines().nth(1), Some(traffic.octets().to_string().as_str()));
    assert!(std::fs::read_dir(&csv).unwrap().count() > 3, "a CSV beside every table");
}

#[test]
fn a_collector_that_died_is_found_again_and_templates_go_first() {
    let Some(lab) = Lab::or_skip(1) else { return };
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::new(directory.path(), "osaka");
    let first = lab.start("nagare-collector", &strs(&collector_arguments(&pki, directory.path(), "0")));
    let port = first.wait_for(LISTENING);
    let stats = directory.path().join("probe.json");
    let mut arguments =
        ["-i", TAP, "--collector", &format!("tls://localhost:{port}"), "--reconnect", "1s"].map(String::from).to_vec();
    arguments.extend(["--idle-timeout", "1s", "--flows-max", "20000"].map(String::from));
    arguments.extend(["--stats-json".into(), stats.to_str().unwrap().to_string()]);
    arguments.extend(pki.probe("osaka"));
    let probe = lab.start("nagare-probe", &strs(&arguments));
    probe.wait_for("connected to");
    let send = |seed| {
        let traffic = office(seed, 200);
        lab.send(|| Sender::open(WIRE).unwrap().send_all(&traffic.frames, Duration::from_secs(1)).unwrap());
        traffic
    };
    // One 5-tuple may come in two of the three: then it may end as one flow or as two.
    let mut flows: Flows = send(1).flows;
    std::thread::sleep(Duration::from_secs(3)); // Past the idle timeout: those are delivered.
    first.signal("KILL");
    first.wait();
    flows.extend(send(2).flows);
    let second = lab.start("nagare-collector", &strs(&collector_arguments(&pki, directory.path(), &port)));
    probe.wait_for_nth("connected to", 2);
    flows.extend(send(3).flows);
    let (_, log) = probe.stop();
    let (status, _) = second.stop();
    assert!(status.success());

    let sent = books(&stats);
    assert_eq!(sent["balanced"], true, "{sent:#}");
    assert_eq!(term(&sent, "flows", "in_flight"), 0);
    assert!(term(&sent, "flows", "ended") >= flows.len() as u64, "{sent:#}");
    assert_eq!(sent["figures"]["sessions"], 2, "{log}");
    let received = books(&directory.path().join("collector.json"));
    assert_eq!(received["balanced"], true, "{received:#}");
    // What ended while the collector was away waited in the buffer: the second session decodes all of it.
    let stored = flows_of(&stored(directory.path(), &["flows", "--site", "osaka"]));
    for made in [office(2, 200), office(3, 200)] {
        let missing = made.flows.keys().filter(|key| !stored.contains_key(key)).count() as u64;
        assert!(missing <= term(&sent, "flows", "drop.unacknowledged"), "{missing} flows are nowhere: {sent:#}");
    }
}

/// The collector's refusals and the probe's, each by a real handshake between the programs.
#[test]
fn tls_lets_no_one_in_who_should_stay_out() {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::new(directory.path(), "tokyo");
    let other_directory = directory.path().join("other");
    std::fs::create_dir(&other_directory).unwrap();
    let other = Pki::new(&other_directory, "tokyo");
    let collector = start("nagare-collector", &strs(&collector_arguments(&pki, directory.path(), "0")));
    let port = collector.wait_for(LISTENING);
    let capture = directory.path().join("capture.pcap");
    std::fs::write(&capture, pcap(&office(1, 20).frames, 1_700_000_000_000_000_000, 1_000_000)).unwrap();
    let certificate = |pki: &Pki| pki.probe("tokyo")[2..].to_vec();
    let ca = |pki: &Pki| pki.probe("tokyo")[..2].to_vec();
    let cases = [
        ("unknown CA", "localhost", [ca(&other), certificate(&pki)].concat(), "not signed by any CA"),
        ("an address where the name was needed", "127.0.0.1", pki.probe("tokyo"), "does not carry the IP address"),
        ("no client certificate", "localhost", ca(&pki), "--tls-cert"),
        (
            "a client certificate of another CA",
            "localhost",
            [ca(&pki), certificate(&other)].concat(),
            "refused this probe's certificate",
        ),
    ];
    for (what, host, tls, expected) in cases {
        let url = format!("tls://{host}:{port}");
        let mut arguments = vec!["-i", capture.to_str().unwrap(), "--collector", &url, "--drain-timeout", "500ms"];
        arguments.extend(strs(&tls));
        let (status, log) = start("nagare-probe", &arguments).wait();
        assert!(!status.success(), "{what}: {log}");
        assert!(log.contains(expected), "{what}: {log}");
        assert!(log.contains("flow records were not delivered"), "{what}: what is not delivered is said: {log}");
    }
    let url = format!("tls://127.0.0.1:{port}");
    let certificate = certificate(&pki);
    let insecure = ["-i", capture.to_str().unwrap(), "--collector", &url, "--tls-insecure"];
    let insecure = [&insecure[..], &strs(&certificate)];
    let (status, log) = start("nagare-probe", &insecure.concat()).wait();
    assert!(status.success() && log.contains("WARN") && log.contains("--tls-insecure"), "{log}");
    let (_, log) = collector.stop();
    assert!(log.contains("no client certificate"), "{log}");
    assert_eq!(flows_of(&stored(directory.path(), &["flows"])).len(), 20, "only the last run got in");
}

#[test]
fn the_host_is_not_cut_off_without_force() {
    let output = run("nagare-probe", &["-i", "lo", "--mode", "mirror", "--dump", "csv"]).unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("--force") && log.contains("consumed"), "{log}");
}

/// A capture file of made traffic, and the traffic.
fn capture(directory: &Path) -> (PathBuf, Traffic) {
    let traffic = office(11, 500);
    let file = directory.join("office.pcap");
    std::fs::write(&file, pcap(&traffic.frames, 1_700_000_000_000_000_000, 200_000)).unwrap();
    (file, traffic)
}

fn probe_file(file: &Path, arguments: &[&str]) -> String {
    let output = run("nagare-probe", &[&["-i", file.to_str().unwrap()], arguments].concat()).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn rows_and_ipfix_files_hold_what_was_made() {
    let directory = tempfile::tempdir().unwrap();
    let (file, traffic) = capture(directory.path());
    for workers in ["1", "3"] {
        assert_same(&flows_of(&probe_file(&file, &["--dump", "csv", "--workers", workers])), &traffic.flows);
    }
    let ipfix = directory.path().join("office.ipfix");
    probe_file(&file, &["--export-file", ipfix.to_str().unwrap()]);
    let bytes = std::fs::read(&ipfix).unwrap();
    let (mut session, mut rest, mut found) = (TransportSession::new(Transport::File), &bytes[..], Flows::new());
    while !rest.is_empty() {
        let length = frame(rest).unwrap().expect("a file holds whole Messages");
        let received = session.receive(&rest[..length], |header, record| match map(header, &record) {
            Mapped::Flow(flow) => {
                let (forward, reverse) = found.entry(flow.key).or_default();
                for (sum, counters) in [(forward, flow.forward), (reverse, flow.reverse)] {
                    sum.packets += counters.packets;
                    sum.octets += counters.octets;
                    sum.tcp_flags |= counters.tcp_flags;
                }
            }
            other => panic!("{other:?}"),
        });
        let received = received.unwrap();
        assert_eq!((received.lost, received.notes.len()), (0, 0));
        rest = &rest[length..];
    }
    assert_same(&found, &traffic.flows);
}

/// Whether a program of another project is there; where not, says so, and fails where CI=true.
fn is_there(program: &str) -> bool {
    let there = Command::new("which").arg(program).output().is_ok_and(|output| output.status.success());
    if !there {
        println!("skipped: {program} is not installed");
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "nothing may be skipped where CI=true");
    }
    there
}

/// Packets and octets of both directions, added up.
fn sums(flows: &Flows) -> [u64; 4] {
    flows.values().fold([0; 4], |[a, b, c, d], (forward, reverse)| {
        [a + forward.packets, b + forward.octets, c + reverse.packets, d + reverse.octets]
    })
}

#[test]
fn tshark_reads_the_exporter() {
    if !is_there("tshark") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (file, traffic) = capture(directory.path());
    let ipfix = directory.path().join("office.ipfix");
    for more in [&[][..], &["--template", "full"], &["--template", "full", "--tunnels", "inner"]] {
        probe_file(&file, &[&["--export-file", ipfix.to_str().unwrap()], more].concat());
        let mut command = Command::new("tshark");
        command.args(["-r", ipfix.to_str().unwrap(), "-T", "fields", "-E", "separator=;"]);
        command.args(["-e", "cflow.packets", "-e", "cflow.octets", "-e", "_ws.expert.message"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        // tshark shows both directions' counters under one name.
        let cells = |column: usize| text.lines().filter_map(move |row| row.split(';').nth(column));
        let sum =
            |column| cells(column).flat_map(|cell| cell.split(',').filter_map(|n| n.parse::<u64>().ok())).sum::<u64>();
        let [packets, octets, rev_packets, rev_octets] = sums(&traffic.flows);
        assert_eq!([sum(0), sum(1)], [packets + rev_packets, octets + rev_octets], "{more:?}: {text}");
        let complaints: Vec<_> = cells(2).filter(|cell| !cell.is_empty()).collect();
        assert!(complaints.is_empty(), "{more:?}: tshark complains: {complaints:?}");
    }
}

#[test]
fn nfcapd_reads_the_exporter() {
    if !is_there("nfcapd") || !is_there("nfdump") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (file, traffic) = capture(directory.path());
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let store = directory.path().join("nfcapd");
    std::fs::create_dir(&store).unwrap();
    let mut command = Command::new("nfcapd");
    command.args(["-b", "127.0.0.1", "-p", &port, "-w", store.to_str().unwrap(), "-B", "8000000"]);
    let mut nfcapd = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    probe_file(&file, &["--collector", &format!("udp://127.0.0.1:{port}")]);
    std::thread::sleep(Duration::from_secs(1));
    Command::new("kill").args(["-TERM", &nfcapd.id().to_string()]).status().unwrap();
    nfcapd.wait().unwrap();
    let mut command = Command::new("nfdump");
    let output =
        command.args(["-R", store.to_str().unwrap(), "-N", "-o", "fmt:%ipkt;%ibyt;%opkt;%obyt"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let rows =
        text.lines().map(|row| row.split(';').map(|cell| cell.trim().parse::<u64>()).collect::<Result<Vec<_>, _>>());
    let rows: Vec<Vec<u64>> = rows.filter_map(Result::ok).filter(|row| row.len() == 4).collect();
    let found = rows.iter().fold([0; 4], |sums: [u64; 4], row| std::array::from_fn(|at| sums[at] + row[at]));
    assert_eq!(found, sums(&traffic.flows), "{text}");
}

#[test]
fn the_collector_reads_softflowd() {
    if !is_there("softflowd") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let traffic = untagged_office(12, 300);
    let capture = directory.path().join("office.pcap");
    std::fs::write(&capture, pcap(&traffic.frames, 1_700_000_000_000_000_000, 1_000_000)).unwrap();
    let data = directory.path().join("data");
    let arguments = ["--collector-port", "udp://127.0.0.1:0", "--data", data.to_str().unwrap()];
    let collector = start("nagare-collector", &arguments);
    let port = collector.wait_for("listening udp 127.0.0.1:");
    let to = format!("127.0.0.1:{port}");
    let output =
        Command::new("softflowd").args(["-r", capture.to_str().unwrap(), "-v", "10", "-n", &to]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (status, log) = collector.stop();
    assert!(status.success(), "{log}");
    let sum = "SELECT sum(packets + rev_packets), sum(octets + rev_octets) FROM flows";
    let found = stored(directory.path(), &["sql", "--format", "csv", sum]);
    // softflowd takes an Ethernet frame's padding for octets of IP.
    let is_ip = |frame: &&Vec<u8>| frame[12..14] != [0x08, 0x06];
    let octets: usize = traffic.frames.iter().filter(is_ip).map(|frame| frame.len() - 14).sum();
    assert_eq!(found.lines().nth(1), Some(format!("{},{octets}", traffic.packets()).as_str()), "{found}");
}
