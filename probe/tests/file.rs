//! Capture files, written by the tests themselves, read by the file source.

#[path = "file/traffic.rs"]
mod traffic;
#[path = "file/writer.rs"]
mod writer;

use nagare_probe::capture::CaptureSource;
use nagare_probe::capture::file::{FileCapture, FileError, FileFigures, FileOptions, FileSource, FileSummary};
use nagare_wire::flow::FlowKey;
use nagare_wire::fragment::FragmentTable;
use nagare_wire::packet::{self, LinkType, Tunnels};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use writer::{Order, Packet};

const ORDERS: [Order; 2] = [Order { big: false }, Order { big: true }];
const LITTLE: Order = ORDERS[0];

/// What a file gave: each worker's packets, and how it ended.
#[derive(Debug)]
struct Read {
    workers: Vec<Vec<Packet>>,
    links: Vec<LinkType>,
    outcome: Result<FileSummary, FileError>,
    figures: FileFigures,
}

impl Read {
    /// The packets of the only worker.
    fn packets(&self) -> &[Packet] {
        assert_eq!(self.workers.len(), 1);
        &self.workers[0]
    }

    fn message(&self) -> String {
        self.outcome.as_ref().expect_err("the file is broken").to_string()
    }
}

/// Reads to the end, each worker in its own thread; checks the clock and the books.
fn read(path: &Path, workers: usize) -> Result<Read, FileError> {
    let options = FileOptions { seed: 7, ..FileOptions::default() };
    let (capture, sources) = FileCapture::open(path.to_str().expect("a test's path"), workers, options)?;
    let counters = capture.counters();
    let received: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = sources.into_iter().map(|source| scope.spawn(|| drain(source))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker")).collect()
    });
    let figures = counters.figures();
    assert_eq!(figures.packets, figures.handed + figures.ignore_link_type, "{figures:?}");
    assert_eq!(figures.handed, received.iter().map(|(packets, _)| packets.len() as u64).sum::<u64>());
    let outcome = capture.outcome();
    let (workers, links): (Vec<_>, Vec<_>) = received.into_iter().unzip();
    Ok(Read { workers, links: links.concat(), outcome, figures })
}

fn drain(mut source: FileSource) -> (Vec<Packet>, Vec<LinkType>) {
    let (mut packets, mut links, mut clock) = (Vec::new(), Vec::new(), 0);
    loop {
        let before = packets.len();
        let received = source
            .receive(64, Duration::from_millis(100), |frame| {
                links.push(frame.link);
                packets.push(Packet {
                    time_ns: frame.time_ns,
                    wire_len: frame.wire_length,
                    bytes: frame.bytes.to_vec(),
                });
            })
            .expect("a file source has no errors of its own");
        assert_eq!(received.frames, packets.len() - before);
        let newest = packets[before..].iter().map(|packet| packet.time_ns).max().unwrap_or(0);
        assert!(received.now_ns >= clock.max(newest), "the clock never goes back");
        clock = received.now_ns;
        if received.end {
            return (packets, links);
        }
    }
}

fn read_bytes(bytes: &[u8], workers: usize) -> Result<Read, FileError> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("a temporary file takes bytes");
    read(file.path(), workers)
}

/// The message with which a file is refused, or with which its reading ends.
fn message(bytes: &[u8]) -> String {
    match read_bytes(bytes, 1) {
        Ok(read) => read.message(),
        Err(error) => error.to_string(),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes bytes");
    encoder.finish().expect("memory takes bytes")
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).expect("memory takes bytes");
    encoder.finish().expect("memory takes bytes")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("memory takes bytes")
}

/// The packets with times that a clock of `unit_ns` can tell.
fn rounded(packets: &[Packet], unit_ns: u64) -> Vec<Packet> {
    packets.iter().map(|packet| Packet { time_ns: packet.time_ns / unit_ns * unit_ns, ..packet.clone() }).collect()
}

#[test]
fn every_format_byte_order_and_compression_gives_the_same_packets() {
    // More than two chunks, so that packets lie across their seams.
    let packets = traffic::conversations(2500);
    type Compress = fn(&[u8]) -> Vec<u8>;
    let compressions: [(Option<&str>, Compress); 4] =
        [(None, <[u8]>::to_vec), (Some("gzip"), gzip), (Some("zstd"), zstd), (Some("bzip2"), bzip2)];
    for order in ORDERS {
        let files = [
            ("pcap", 1000, writer::pcap(order, false, 1, &packets)),
            ("pcap", 1, writer::pcap(order, true, 1, &packets)),
            ("pcapng", 1000, writer::pcapng(order, 6, |ns| ns / 1000, &packets)),
            ("pcapng", 1, writer::pcapng(order, 9, |ns| ns, &packets)),
        ];
        for (format, unit_ns, file) in files {
            let expected = rounded(&packets, unit_ns);
            for (compression, compress) in compressions {
                let read = read_bytes(&compress(&file), 1).expect("a good file opens");
                assert!(read.packets() == expected, "{format} {order:?} {unit_ns} {compression:?}");
                let summary = read.outcome.expect("a good file ends well");
                assert_eq!((summary.format, summary.compression, summary.complete), (format, compression, true));
                assert_eq!((summary.packets, summary.bytes), (packets.len() as u64, file.len() as u64));
            }
        }
    }
}

#[test]
fn clocks_of_any_resolution_and_offset() {
    for order in ORDERS {
        let packet = |units| writer::enhanced(order, 0, units, &traffic::zoo()[0], &[]);
        let offset = |seconds: i64| if order.big { seconds.to_be_bytes() } else { seconds.to_le_bytes() };
        let time_of = |resolution: &[u8], seconds: Option<i64>, units| {
            let mut options = if resolution.is_empty() { Vec::new() } else { writer::option(order, 9, resolution) };
            options.extend(seconds.map_or(Vec::new(), |seconds| writer::option(order, 14, &offset(seconds))));
            let file = [writer::section(order), writer::interface(order, 1, 0, &options), packet(units)].concat();
            read_bytes(&file, 1).expect("a good file opens").packets()[0].time_ns
        };
        let cases: [(&[u8], Option<i64>, u64, u64); 9] = [
            (&[], None, 1_500_000, 1_500_000_000),
            (&[0], None, 12, 12_000_000_000),
            (&[3], Some(-2), 2_500, 500_000_000),
            (&[9], Some(1_700_000_000), 5, 1_700_000_000_000_000_005),
            (&[12], None, 1_999_000, 1_999),
            (&[0x80 | 10], None, 1536, 1_500_000_000),
            (&[0x80 | 63], None, 1 << 62, 500_000_000),
            (&[127], None, u64::MAX, 0),
            (&[0], Some(i64::MAX), u64::MAX, i64::MAX as u64),
        ];
        for (resolution, offset, units, expected) in cases {
            assert_eq!(time_of(resolution, offset, units), expected, "{order:?} {resolution:?} {offset:?} {units}");
        }
    }
}

/// Nothing was captured of packets but their headers, of which one ends where a chunk of the reader does.
#[test]
fn packets_of_no_octets_are_read_and_named() {
    let packet = |octets: usize| Packet { time_ns: 1_000_000_000, wire_len: 60, bytes: vec![0; octets] };
    let packets: Vec<Packet> = std::iter::once(packet(8)).chain((0..33_000).map(|_| packet(0))).collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("empty.pcap");
    std::fs::write(&path, writer::pcap(LITTLE, false, 1, &packets)).unwrap();
    for workers in [1, 2] {
        let read = read(&path, workers).unwrap();
        read.outcome.unwrap();
        assert_eq!(read.figures.handed, 33_001);
    }
}

#[test]
fn sections_interfaces_and_every_packet_block() {
    let packets = traffic::zoo();
    let radio = Packet { time_ns: 0, wire_len: 9, bytes: vec![8; 9] };
    let ip = Packet { time_ns: 0, wire_len: 20, bytes: packets[0].bytes[14..34].to_vec() };
    let long = Packet { wire_len: 4000, ..packets[3].clone() };
    let mut file = Vec::new();
    for order in ORDERS {
        file.extend(writer::section(order));
        file.extend(writer::interface(order, 1, 40, &[]));
        file.extend(writer::interface(order, 105, 0, &[]));
        // Blocks that are passed over: one of an unknown type, larger than all memory that is kept of a file.
        file.extend(writer::block(order, 0x0bad, &[0; 700 << 10]));
        file.extend(writer::interface(order, 101, 0, &[]));
        file.extend(writer::enhanced(order, 0, 5_000_000, &packets[0], &writer::option(order, 1, b"a comment")));
        file.extend(writer::enhanced(order, 1, 6_000_000, &radio, &[]));
        file.extend(writer::simple(order, &long));
        file.extend(writer::obsolete(order, 2, 7_000_000, &ip));
        file.extend(writer::block(order, 5, &[0; 12]));
    }
    let read = read_bytes(&file, 1).expect("a good file opens");
    // A Simple Packet has no time of its own, and no more octets than interface 0 captures.
    let section = [
        Packet { time_ns: 5_000_000_000, ..packets[0].clone() },
        Packet { time_ns: 6_000_000_000, bytes: long.bytes[..40].to_vec(), ..long.clone() },
        Packet { time_ns: 7_000_000_000, ..ip },
    ];
    let mut again = section.clone();
    again[1].time_ns = 7_000_000_000;
    assert_eq!(read.packets(), [section, again].concat());
    let links = [LinkType::Ethernet, LinkType::Ethernet, LinkType::RawIp];
    assert_eq!(read.links, [links, links].concat());
    assert_eq!((read.figures.packets, read.figures.handed, read.figures.ignore_link_type), (8, 6, 2));
    assert!(read.outcome.expect("a good file ends well").complete);
}

#[test]
fn odd_packets_survive() {
    let frame = traffic::zoo().remove(0).bytes;
    let odd = |time_ns, wire_len, bytes: &[u8]| Packet { time_ns, wire_len, bytes: bytes.to_vec() };
    let packets = [
        odd(9_000_000_000, 0, &[]),
        odd(3_000_000_000, 60, &frame),
        odd(1_000_000_000, 4_000_000_000, &frame),
        odd(0, 1, &frame),
        odd(u64::from(u32::MAX) * 1_000_000_000, 60, &[0x45; 100_000]),
        odd(1, 262_144, &vec![1; 262_144]),
    ];
    for file in [writer::pcap(LITTLE, true, 1, &packets), writer::pcapng(LITTLE, 9, |ns| ns, &packets)] {
        let read = read_bytes(&file, 1).expect("a good file opens");
        assert!(read.packets() == packets);
        assert!(read.outcome.is_ok());
    }
    // Nothing but a header is a capture of nothing.
    assert_eq!(read_bytes(&writer::pcap(LITTLE, false, 1, &[]), 3).expect("it opens").figures, FileFigures::default());
}

#[test]
fn cut_at_every_byte_the_packets_before_the_cut_are_handed_on() {
    let packets = &traffic::zoo()[..6];
    let files = [
        writer::pcap(Order { big: true }, true, 1, packets),
        writer::pcapng(Order { big: true }, 9, |ns| ns, packets),
        [writer::pcapng(LITTLE, 9, |ns| ns, packets), writer::block(LITTLE, 0x0bad, &[0; 50])].concat(),
    ];
    for file in files {
        let mut whole_packets = 0;
        for length in 0..=file.len() {
            match read_bytes(&file[..length], 1) {
                Err(error) => assert!(length < 28, "{length}: {error}"),
                Ok(read) => {
                    assert_eq!(read.packets(), &packets[..read.packets().len()]);
                    assert!((whole_packets..=whole_packets + 1).contains(&read.packets().len()), "{length}");
                    whole_packets = read.packets().len();
                    if let Err(error) = read.outcome {
                        let message = error.to_string();
                        assert!(message.contains("cut short"), "{message}");
                        assert!(message.contains(&format!("after {whole_packets} packets")), "{message}");
                        assert!(error.offset <= length as u64, "{message}");
                    }
                }
            }
        }
        assert_eq!(whole_packets, packets.len());
        assert!(read_bytes(&file, 1).expect("it opens").outcome.is_ok());
    }
}

#[test]
fn compressed_files_cut_at_every_byte() {
    let packets = traffic::zoo();
    let file = writer::pcap(LITTLE, true, 1, &packets);
    for compressed in [gzip(&file), zstd(&file), bzip2(&file)] {
        for length in 0..compressed.len() {
            let cut = &compressed[..length];
            let Ok(read) = read_bytes(cut, 1) else { continue };
            assert_eq!(read.packets(), &packets[..read.packets().len()]);
            assert!(read.message().contains("cut short"), "{}", read.message());
        }
        assert_eq!(read_bytes(&compressed, 1).expect("it opens").packets(), packets);
    }
}

#[test]
fn broken_files_say_what_is_wrong_and_where() {
    let good = writer::pcap(LITTLE, false, 1, &traffic::zoo()[..2]);
    let ng = [writer::section(LITTLE), writer::interface(LITTLE, 1, 0, &[])].concat();
    let packet = writer::enhanced(LITTLE, 0, 0, &traffic::zoo()[0], &[]);
    let with = |at: usize, value: u32| {
        let mut packet = packet.clone();
        packet[at..at + 4].copy_from_slice(&value.to_le_bytes());
        [&ng[..], &packet].concat()
    };
    let absurd = [&good[..], &[0; 8], &[0xff; 8]].concat();
    let corrupt = {
        let mut file = gzip(&writer::pcap(LITTLE, false, 1, &traffic::conversations(3000)));
        let end = file.len();
        file[end - 8..].fill(0x55); // its checksum
        file
    };
    let cases: [(&str, Vec<u8>, &[&str]); 15] = [
        ("empty", Vec::new(), &["is empty"]),
        ("text", b"../../default/pcap/zoom2.pcap".to_vec(), &["neither pcap nor pcapng", "2e, 2e"]),
        ("two bytes", vec![0xd4, 0xc3], &["cut short", "24 bytes should follow, 2 do"]),
        ("radio", writer::pcap(LITTLE, false, 105, &[]), &["link type 105 (IEEE802_11)", "Ethernet"]),
        ("absurd length", absurd, &["4294967295", "262144", "at byte 164", "after 2 packets"]),
        ("long packet", with(20, 300_000), &["0x6", "do not fit", "after 0 packets"]),
        ("long block", with(4, 400_000), &["a block says that it has 400000 bytes", "at byte 48"]),
        ("length beyond the block", with(20, 200), &["0x6", "do not fit"]),
        ("two lengths", with(packet.len() - 4, 8), &["two lengths", "0x6"]),
        ("length 3", with(4, 3), &["type 0x6 says that it has 3 bytes"]),
        ("no such interface", with(8, 1), &["interface 1", "describes 1"]),
        ("no interface", [writer::section(LITTLE), packet.clone()].concat(), &["interface 0", "describes 0"]),
        ("byte order", [&ng[..], &ng[..8], &[0; 4]].concat(), &["byte-order magic", "at byte 48"]),
        ("corrupt gzip", corrupt, &["cannot be read further", "after 3000 packets", "of what gzip holds"]),
        ("no end", [&good[..], &[1]].concat(), &["cut short", "16 bytes should follow, 1 do", "at byte 164"]),
    ];
    for (name, file, expected) in cases {
        let message = message(&file);
        assert!(expected.iter().all(|part| message.contains(part)), "{name}: {message}");
    }
    let missing = FileCapture::open("no/such/file.pcap", 1, FileOptions::default()).err().expect("it is not there");
    assert!(missing.to_string().contains("no/such/file.pcap cannot be opened"), "{missing}");
}

/// Packets and octets of each flow, as a worker sees them.
fn flows(packets: &[Packet]) -> BTreeMap<FlowKey, (u64, u64)> {
    let (mut flows, mut fragments) = (BTreeMap::new(), FragmentTable::new(4096, 1));
    for packet in packets {
        if let Ok(mut observation) = packet::decode(LinkType::Ethernet, &packet.bytes, packet.wire_len, Tunnels::Outer)
        {
            fragments.resolve(&mut observation, packet.time_ns);
            let sums: &mut (u64, u64) = flows.entry(observation.key.canonical().0).or_default();
            *sums = (sums.0 + 1, sums.1 + u64::from(observation.octets));
        }
    }
    flows
}

#[test]
fn several_workers_see_the_flows_of_one() {
    let packets = traffic::conversations(4000);
    let file = writer::pcap(LITTLE, true, 1, &packets);
    let expected = flows(&packets);
    assert!(expected.len() > 500);
    for workers in [1, 2, 3, 8] {
        let read = read_bytes(&file, workers).expect("a good file opens");
        assert!(read.outcome.expect("a good file ends well").complete);
        let each: Vec<_> = read.workers.iter().map(|packets| flows(packets)).collect();
        assert!(each.iter().all(|flows| flows.len() > 500 / workers / 2), "every worker has its share");
        assert_eq!(each.iter().map(BTreeMap::len).sum::<usize>(), expected.len(), "no flow is in two workers");
        assert_eq!(each.into_iter().flatten().collect::<BTreeMap<_, _>>(), expected);
        let in_order = |packets: &Vec<Packet>| packets.is_sorted_by_key(|packet| packet.time_ns);
        assert!(read.workers.iter().all(in_order));
    }
}

#[test]
fn a_stopped_capture_has_its_packets_in_the_books() {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&writer::pcap(LITTLE, true, 1, &traffic::conversations(20_000))).expect("it takes bytes");
    let path = file.path().to_str().expect("a test's path");
    let (capture, mut sources) = FileCapture::open(path, 2, FileOptions::default()).expect("a good file opens");
    let mut frames = 0;
    while frames < 100 {
        let received = sources[0].receive(10, Duration::from_secs(1), |_| ()).expect("no errors of its own");
        frames += received.frames as u64;
    }
    drop(sources);
    let counters = capture.counters();
    // The reader, which waits for room in a channel, notices.
    while counters.figures().in_flight > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let figures = counters.figures();
    assert_eq!((figures.handed, figures.handed + figures.stopped), (frames, figures.packets));
    assert!(figures.packets < 20_000, "the rest of the file was not read");
    assert!(!capture.outcome().expect("nothing is wrong with the file").complete);
}

#[test]
fn of_a_pipe_what_has_come_is_handed_on_at_once() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a temporary directory takes a FIFO");
    let packets = traffic::zoo();
    let file = writer::pcap(LITTLE, true, 1, &packets);
    let (go_on, gone_on) = std::sync::mpsc::channel::<()>();
    let writing = std::thread::spawn({
        let (path, file) = (path.clone(), file.clone());
        move || {
            let mut pipe = std::fs::OpenOptions::new().write(true).open(path).expect("the FIFO is there");
            // The header, the first packet, and the second's first octets.
            pipe.write_all(&file[..24 + 16 + packets_length(1) + 5]).expect("somebody reads");
            gone_on.recv().expect("the test goes on");
            pipe.write_all(&file[24 + 16 + packets_length(1) + 5..]).expect("somebody reads");
        }
    });
    let path = path.to_str().expect("a test's path");
    let (capture, mut sources) = FileCapture::open(path, 1, FileOptions::default()).expect("a good file opens");
    let (mut received, mut end) = (0, false);
    while !end {
        let got = sources[0].receive(100, Duration::from_millis(10), |_| ()).expect("no errors of its own");
        received += got.frames;
        end = got.end;
        if got.frames > 0 && received == 1 {
            go_on.send(()).expect("the writer waits");
        }
    }
    writing.join().expect("the writer");
    assert_eq!(received, packets.len());
    assert!(capture.outcome().expect("a good file ends well").complete);
}

/// Captured octets of the first packets of the zoo.
fn packets_length(count: usize) -> usize {
    traffic::zoo()[..count].iter().map(|packet| packet.bytes.len()).sum()
}

/// The comparison that can be made of any capture, made of ours: `scripts/compare`.
#[test]
fn tshark_counts_the_same() {
    let has_tshark = Command::new("tshark").arg("--version").output().is_ok_and(|output| output.status.success());
    if !has_tshark {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "tshark is missing: it is in Debian's package tshark");
        return println!("skipped: tshark is missing");
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let radio =
        [writer::interface(LITTLE, 105, 0, &[]), writer::enhanced(LITTLE, 1, 0, &traffic::zoo()[0], &[])].concat();
    let files = [
        ("zoo.pcap", writer::pcap(LITTLE, true, 1, &traffic::zoo())),
        ("zoo.pcapng.gz", gzip(&writer::pcapng(ORDERS[1], 9, |ns| ns, &traffic::zoo()))),
        ("radio.pcapng", [writer::pcapng(LITTLE, 9, |ns| ns, &traffic::zoo()), radio].concat()),
        ("conversations.pcap", writer::pcap(ORDERS[1], false, 1, &traffic::conversations(4000))),
    ];
    for workers in ["1", "3"] {
        let mut compare = Command::new("python3");
        compare.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/compare"));
        compare.args(["--workers", workers, "--probe", env!("CARGO_BIN_EXE_nagare-probe")]);
        for (name, bytes) in &files {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).expect("a temporary directory takes files");
            compare.arg(path);
        }
        let output = compare.output().expect("python3 runs");
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(shown.matches(": equal").count(), files.len(), "{shown}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is done to a file: no panic, and the books (checked by `read`) balance.
    #[test]
    fn no_damage_panics(
        ng in any::<bool>(),
        big in any::<bool>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        workers in 1usize..4,
    ) {
        let order = Order { big };
        let packets = traffic::zoo();
        let mut file =
            if ng { writer::pcapng(order, 9, |ns| ns, &packets) } else { writer::pcap(order, true, 1, &packets) };
        for (at, value) in damage {
            let at = at.index(file.len());
            file[at] = value;
        }
        let _ = read_bytes(&file, workers);
    }
}
