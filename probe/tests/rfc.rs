//! What RFC 7011 and its company demand of an Exporter (e), by number, of the running program; `docs/rfc.md` is the list.
//! Judged by the letter, and by programs of others where they are installed.

#[path = "../../wire/tests/judge/mod.rs"]
mod judge;
mod listener;
#[path = "file/traffic.rs"]
#[allow(dead_code)]
mod traffic;
#[path = "file/writer.rs"]
#[allow(dead_code)]
mod writer;

use clap::Parser;
use judge::Judge;
use listener::{Listener, Live, Manner, datagrams, datagrams_during, flows_of, run, run_well, skipped, udp, wait_for};
use nagare_probe::options::{CommandLine, Plan};
use nagare_service::tls::{ServerTls, server_config};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tempfile::TempDir;
use writer::{Order, Packet, pcap};

const ORDER: Order = Order { big: false };
/// Packets of the capture that most tests read.
const PACKETS: usize = 8000;

/// A directory with a capture of conversations of IPv4 and IPv6 in it.
struct Case {
    directory: TempDir,
    capture: String,
}

impl Case {
    fn new() -> Case {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("capture.pcap");
        std::fs::write(&file, pcap(ORDER, true, 1, &traffic::conversations(PACKETS))).expect("written");
        Case { capture: text(&file), directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Exports the capture, which must go well.
    fn export(&self, url: &str, more: &[&str]) {
        run_well(&[&["-i", &self.capture, "--collector", url], more].concat());
    }

    /// Flows of the capture, by the probe's own rows.
    fn flows(&self) -> usize {
        run_well(&["-i", &self.capture, "--dump", "csv"]).lines().count() - 1
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}

/// The one session of a listener, when it has ended; what it brought was sound.
fn only_session(listener: &Listener) -> Judge {
    let sessions = listener.sessions();
    assert_eq!(sessions.len(), 1, "one connection");
    Judge::of(judge::Manner::Stream, &sessions[0])
}

/// The capture over TCP, exported once for the tests that only look at it.
fn over_tcp() -> &'static Judge {
    static JUDGE: OnceLock<Judge> = OnceLock::new();
    JUDGE.get_or_init(|| {
        let listener = Listener::start(Manner::default());
        Case::new().export(&format!("tcp://127.0.0.1:{}", listener.port), &[]);
        only_session(&listener)
    })
}

/// A CA's certificate and key, or one that it signed, as PEM files.
struct Made {
    params: CertificateParams,
    key: KeyPair,
    cert: PathBuf,
    key_file: PathBuf,
}

/// Makes a certificate with a Common Name, and subjectAltNames where there are any; without an issuer a CA's.
fn make(directory: &Path, file: &str, common_name: &str, names: &[&str], issuer: Option<&Made>) -> Made {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("valid names");
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    let key = KeyPair::generate().expect("a key");
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, &Issuer::from_params(&issuer.params, &issuer.key)),
        None => {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.self_signed(&key)
        }
    };
    let (cert, key_file) = (directory.join(format!("{file}.pem")), directory.join(format!("{file}-key.pem")));
    std::fs::write(&cert, certificate.expect("signed").pem()).expect("written");
    std::fs::write(&key_file, key.serialize_pem()).expect("written");
    Made { params, key, cert, key_file }
}

/// A collector that knows nothing but RFC 7011, with this certificate.
fn tls_config(server: &Made, client_ca: Option<&Made>) -> Option<Arc<ServerConfig>> {
    let tls = ServerTls {
        cert: server.cert.clone(),
        key: server.key_file.clone(),
        client_ca: client_ca.map(|ca| ca.cert.clone()),
        ..ServerTls::default()
    };
    let mut config = (*server_config(&tls).expect("a usable pair")).clone();
    config.alpn_protocols.clear();
    Some(Arc::new(config))
}

fn plan(arguments: &str) -> Plan {
    let arguments = ["nagare-probe", "-i", "lo"].into_iter().chain(arguments.split_whitespace());
    CommandLine::try_parse_from(arguments).expect("a command line").plan().expect("options that agree")
}

#[test]
fn e01_what_is_exported_over_every_transport_is_sound() {
    let case = Case::new();
    let expected = case.flows();
    let (ca, file) = (make(case.directory.path(), "ca", "CA", &[], None), case.file("flows.ipfix"));
    let server = make(case.directory.path(), "server", "server", &["localhost"], Some(&ca));
    let (ca_file, file) = (text(&ca.cert), text(&file));
    for more in [&[][..], &["--template", "full"], &["--template", "full", "--tunnels", "inner", "--sampling", "1:1"]] {
        let listener = Listener::start(Manner::default());
        case.export(&format!("tcp://127.0.0.1:{}", listener.port), more);
        let tcp = only_session(&listener);
        let listener = Listener::start(Manner { tls: tls_config(&server, None), stalls: false });
        let url = format!("tls://localhost:{}", listener.port);
        case.export(&url, &[&["--tls-ca", &ca_file], more].concat());
        let tls = only_session(&listener);
        run_well(&[&["-i", &case.capture, "--export-file", &file], more].concat());
        let in_file = Judge::of(judge::Manner::File, &std::fs::read(&file).expect("written"));
        let datagrams = over_udp(&case, more);
        for (transport, judge) in [("tcp", tcp), ("tls", tls), ("file", in_file), ("udp", datagrams)] {
            assert_eq!(judge.flows().count(), expected, "{transport} {more:?}");
        }
    }
}

/// The capture over UDP.
fn over_udp(case: &Case, more: &[&str]) -> Judge {
    let (socket, port) = udp();
    let sent = datagrams_during(&socket, || case.export(&format!("udp://127.0.0.1:{port}"), more));
    let mut judge = Judge::new(judge::Manner::Datagram);
    sent.iter().for_each(|message| judge.message(message));
    judge
}

#[test]
fn e02_the_sequence_counts_over_many_messages() {
    // The judge compares each Message's number with its own count.
    let judge = over_tcp();
    assert!(judge.messages > 3 && judge.records.len() > 400, "{} Messages", judge.messages);
    let domains: BTreeSet<u32> = judge.records.iter().map(|record| record.domain).collect();
    assert_eq!(domains, BTreeSet::from([1]));
}

#[test]
fn e08_templates_have_ids_of_data_and_go_first() {
    let judge = over_tcp();
    let ids: Vec<u16> = judge.templates_seen.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [256, 257, 258, 259, 260, 261, 262], "each once in a session over a stream");
}

/// Two sessions of one probe: the first is reset in the middle.
fn reconnected() -> (Vec<Vec<u8>>, String) {
    let listener = Listener::start(Manner::default());
    let url = format!("tcp://127.0.0.1:{}", listener.port);
    let mut probe = Live::start(&["--collector", &url, "--reconnect", "100ms", "--idle-timeout", "1s"]);
    let second = |start: u64| -> Vec<Packet> {
        let mut packets = traffic::conversations(4000);
        // Flows end while the capture goes on.
        packets
            .iter_mut()
            .enumerate()
            .for_each(|(at, packet)| packet.time_ns += (start + at as u64 / 10) * 1_000_000_000);
        packets
    };
    let bare = |packets: &[Packet]| pcap(ORDER, true, 1, packets)[24..].to_vec();
    probe.feed(&pcap(ORDER, true, 1, &second(0)));
    wait_for("flows in the first session", || listener.octets().first().is_some_and(|octets| *octets > 20_000));
    listener.reset();
    probe.feed(&bare(&second(1000)));
    wait_for("flows in the second session", || listener.octets().get(1).is_some_and(|octets| *octets > 20_000));
    let log = String::from_utf8_lossy(&probe.end().stderr).into_owned();
    (listener.sessions(), log)
}

#[test]
fn e17_after_a_reconnect_all_templates_go_first_and_numbers_begin_anew() {
    let (sessions, log) = reconnected();
    assert_eq!(sessions.len(), 2);
    for session in &sessions {
        let length = usize::from(u16::from_be_bytes([session[2], session[3]]));
        let mut judge = Judge::new(judge::Manner::Stream);
        judge.message(&session[..length]);
        assert_eq!((judge.templates_seen.len(), judge.records.len()), (7, 0), "the first Message holds the Templates");
    }
    // To the judge nothing of the first session is known in the second: 34.
    let judge = Judge::of(judge::Manner::Stream, &sessions[1]);
    assert!(judge.flows().count() > 200);
    assert!(log.to_lowercase().contains("reset"), "44: {log}");
}

#[test]
fn e22_export_times_do_not_go_back_before_templates() {
    // The judge holds each Message against the one before, and data against their Template.
    let case = Case::new();
    let judge = over_udp(&case, &["--template-interval", "1ms"]);
    assert_eq!(judge.flows().count(), case.flows());
    assert!(judge.messages > 20);
}

#[test]
fn e26_over_udp_templates_come_again_and_are_never_withdrawn() {
    assert_eq!(plan("--collector udp://127.0.0.1").template_interval, Duration::from_secs(60));
    let (socket, port) = udp();
    let mut probe = Live::start(&["--collector", &format!("udp://127.0.0.1:{port}"), "--template-interval", "100ms"]);
    probe.feed(&pcap(ORDER, true, 1, &traffic::conversations(100)));
    let mut judge = Judge::new(judge::Manner::Datagram);
    let mut take = || {
        datagrams(&socket).iter().for_each(|message| judge.message(message));
        judge.templates_seen.len()
    };
    wait_for("Templates for the third time", || take() >= 3 * 7);
    assert!(probe.end().status.success());
    take();
    let flows = judge.templates_seen.iter().filter(|(id, fields)| *id == 256 && *fields > 0).count();
    assert!(flows >= 3 && judge.flows().count() > 0);
}

#[test]
fn e27_the_exporter_connects_to_the_registrys_port_unless_told() {
    for (url, port) in
        [("tcp://127.0.0.1", 4739), ("udp://127.0.0.1", 4739), ("tls://localhost", 4740), ("tls://localhost:99", 99)]
    {
        let destination = format!("{:?}", plan(&format!("--collector {url}")).destination);
        assert!(destination.contains(&format!("port: {port} ")), "{url}: {destination}");
    }
}

#[test]
fn e28_by_default_there_is_one_attempt_a_minute() {
    assert_eq!(plan("--collector tcp://127.0.0.1").reconnect, Duration::from_secs(60));
    assert_eq!(plan("--collector tcp://127.0.0.1 --reconnect 7s").reconnect, Duration::from_secs(7));
    // Configured otherwise, a collector that resets each connection sees the next.
    let listener = Listener::start(Manner::default());
    let url = format!("tcp://127.0.0.1:{}", listener.port);
    let mut probe = Live::start(&["--collector", &url, "--reconnect", "50ms"]);
    probe.feed(&pcap(ORDER, true, 1, &[]));
    for attempt in 1..=3 {
        wait_for("a connection", || listener.octets().len() >= attempt);
        listener.reset();
    }
    probe.end();
    // By default there is none within a second.
    let listener = Listener::start(Manner::default());
    let mut probe = Live::start(&["--collector", &format!("tcp://127.0.0.1:{}", listener.port)]);
    probe.feed(&pcap(ORDER, true, 1, &[]));
    wait_for("the connection", || listener.octets().len() == 1);
    listener.reset();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(listener.octets().len(), 1);
    probe.end();
}

/// Runs a program of others, bounded in time; `None`, and said, where it is not installed.
fn peer(program: &str, arguments: &[&str]) -> Option<Command> {
    let is_there = |name: &str| Command::new("which").arg(name).output().is_ok_and(|output| output.status.success());
    if !is_there(program) {
        skipped(&format!("{program} is not installed"));
        return None;
    }
    // Some of them hang at what they do not understand.
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "30", program]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

/// libfixbuf's listener, built here; `None` where libfixbuf is not installed.
fn fixbuf_listener(directory: &Path) -> Option<String> {
    let flags = peer("pkg-config", &["--cflags", "--libs", "libfixbuf"])?.output().expect("run");
    if !flags.status.success() {
        skipped("libfixbuf is not installed");
        return None;
    }
    let program = text(&directory.join("fixbuf_listener"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/fixbuf_listener.c");
    let flags = String::from_utf8(flags.stdout).expect("text");
    let built = peer("cc", &["-Wall", "-Werror", "-o", &program, source])?.args(flags.split_whitespace()).output();
    let built = built.expect("run");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(program)
}

/// The rows of `--dump csv` in the words of libfixbuf's listener: source, destination, protocol, packets of both directions.
fn rows(case: &Case) -> Vec<String> {
    let csv = run_well(&["-i", &case.capture, "--dump", "csv"]);
    let row = |row: &str| {
        let cells: Vec<&str> = row.split(',').collect();
        [2, 3, 6, 7, 9].map(|column| cells[column]).join(" ")
    };
    let mut rows: Vec<String> = csv.lines().skip(1).map(row).collect();
    rows.sort();
    rows
}

/// What libfixbuf's listener printed to its end: every flow of the capture, and every kind of options record.
fn check_fixbuf(case: &Case, lines: impl Iterator<Item = String>) {
    let (options, mut flows): (Vec<String>, Vec<String>) = lines.partition(|line| line.starts_with("options"));
    assert_eq!(flows.pop().as_deref(), Some("end"), "{:?}", flows.last());
    flows.sort();
    assert_eq!(flows, rows(case));
    let options: BTreeSet<&str> = options.iter().map(String::as_str).collect();
    assert_eq!(options, BTreeSet::from(["options 258", "options 259", "options 260"]));
}

#[test]
fn e01_libfixbuf_reads_every_record_over_tcp() {
    let case = Case::new();
    let Some(program) = fixbuf_listener(case.directory.path()) else { return };
    let (_, port) = udp(); // A port that nobody had a moment ago.
    let mut fixbuf = peer(&program, &["tcp", &port.to_string()]).expect("just built").spawn().expect("started");
    let mut lines = BufReader::new(fixbuf.stdout.take().expect("piped")).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("listening"));
    case.export(&format!("tcp://127.0.0.1:{port}"), &[]);
    check_fixbuf(&case, lines);
    assert!(fixbuf.wait().expect("waited for").success());
}

#[test]
fn e40_openssl_and_libfixbuf_read_every_record_over_tls() {
    let case = Case::new();
    let directory = case.directory.path();
    let Some(program) = fixbuf_listener(directory) else { return };
    let ca = make(directory, "ca", "CA", &[], None);
    let server = make(directory, "server", "localhost", &["localhost"], Some(&ca));
    let client = make(directory, "client", "tokyo", &["tokyo"], Some(&ca));
    let [ca, cert, key] = [&ca.cert, &server.cert, &server.key_file].map(|file| text(file));
    let (_, port) = udp(); // A port that nobody had a moment ago.
    let port = port.to_string();
    let arguments = ["s_server", "-quiet", "-naccept", "1", "-accept", &port, "-cert", &cert, "-key", &key];
    let verify = ["-CAfile", &ca, "-Verify", "1", "-verify_return_error"];
    let Some(mut openssl) = peer("openssl", &[&arguments[..], &verify].concat()) else { return };
    let mut openssl = openssl.stdin(Stdio::piped()).spawn().expect("started");
    let mut fixbuf = peer(&program, &["stdin"]).expect("just built");
    let fixbuf = fixbuf.stdin(openssl.stdout.take().expect("piped")).spawn().expect("started");
    let own = ["--tls-cert", &text(&client.cert), "--tls-priv-key", &text(&client.key_file)];
    // s_server does not say when it listens.
    case.export(&format!("tls://localhost:{port}"), &[&["--reconnect", "100ms", "--tls-ca", &ca], &own[..]].concat());
    let output = fixbuf.wait_with_output().expect("waited for");
    check_fixbuf(&case, String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned));
    assert!(openssl.wait().expect("waited for").success());
}

/// An Ethernet frame of IPv4 from one port to 4739, which is where programs look for IPFIX.
fn framed(protocol: u8, header: &[u8], content: &[u8]) -> Vec<u8> {
    traffic::ethernet(&[], 0x0800, &traffic::ipv4((1, 2), protocol, 1, 0x4000, &[header, content].concat()))
}

/// The capture of a session over TCP, in segments that do not end where Messages do.
fn tcp_capture(session: &[u8]) -> Vec<Vec<u8>> {
    let segment = |(index, content): (usize, &[u8])| {
        let mut header = traffic::tcp((40_000, 4739), 0x10, 0);
        header[4..8].copy_from_slice(&(1 + 1371 * index as u32).to_be_bytes());
        framed(6, &header, content)
    };
    session.chunks(1371).enumerate().map(segment).collect()
}

/// The capture of datagrams.
fn udp_capture(datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let frame = |content: &Vec<u8>| framed(17, &traffic::udp((40_000, 4739), content.len())[..8], content);
    datagrams.iter().map(frame).collect()
}

#[test]
fn e01_tshark_reads_tcp_and_udp_without_a_word() {
    let case = Case::new();
    let (socket, port) = udp();
    let url = format!("udp://127.0.0.1:{port}");
    let more = ["--template", "full", "--template-interval", "5ms"];
    let sent = datagrams_during(&socket, || case.export(&url, &more));
    let listener = Listener::start(Manner::default());
    case.export(&format!("tcp://127.0.0.1:{}", listener.port), &["--template", "full"]);
    for (transport, frames) in [("udp", udp_capture(&sent)), ("tcp", tcp_capture(&listener.sessions()[0]))] {
        let file = text(&case.file("ipfix.pcap"));
        std::fs::write(&file, pcap(ORDER, true, 1, &traffic::timed(frames))).expect("written");
        // Without the preference Templates of more than 60 fields are not read.
        let options = ["-r", &file, "-o", "cflow.max_template_fields:0", "-T", "fields", "-E", "separator=;"];
        let Some(mut tshark) = peer("tshark", &options) else { return };
        tshark.args(["-e", "cflow.srcport", "-e", "_ws.expert.message"]);
        let output = tshark.output().expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found = String::from_utf8(output.stdout).expect("text");
        let cells: Vec<(&str, &str)> = found.lines().filter_map(|line| line.split_once(';')).collect();
        let complaints: Vec<_> = cells.iter().filter(|(_, told)| !told.is_empty()).collect();
        assert!(complaints.is_empty(), "{transport}: {complaints:?}");
        let flows = cells.iter().flat_map(|(ports, _)| ports.split(',')).filter(|port| !port.is_empty()).count();
        assert_eq!(flows, case.flows(), "{transport}");
    }
}

#[test]
fn e46_python_ipfix_reads_the_file() {
    let case = Case::new();
    let file = text(&case.file("flows.ipfix"));
    run_well(&["-i", &case.capture, "--export-file", &file]);
    // Debian's modules are those of Debian's Python.
    let script = "import sys, ipfix.ie, ipfix.reader\n\
                  ipfix.ie.use_iana_default()\n\
                  ipfix.ie.use_5103_default()\n\
                  records = ipfix.reader.from_stream(open(sys.argv[1], 'rb')).namedict_iterator()\n\
                  for r in records:\n    \
                  if 'protocolIdentifier' in r:\n        \
                  v = '4' if 'sourceIPv4Address' in r else '6'\n        \
                  print(r[f'sourceIPv{v}Address'], r[f'destinationIPv{v}Address'], r['protocolIdentifier'], \
                  r['packetDeltaCount'], r['reversePacketDeltaCount'])\n";
    let Some(mut python) = peer("/usr/bin/python3", &["-c", script, &file]) else { return };
    let output = python.output().expect("run");
    let told = String::from_utf8_lossy(&output.stderr);
    if told.contains("No module named 'ipfix'") {
        return skipped("python3-ipfix is not installed");
    }
    assert!(output.status.success(), "{told}");
    let mut found: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    found.sort();
    assert_eq!(found, rows(&case));
}

/// A capture of so many flows, one packet each, a millisecond apart.
fn many_flows(flows: u32) -> Vec<u8> {
    let frame = |number: u32| {
        let (hosts, ports) = ((1, 2), ((number % 60_000) as u16 + 1, (number / 60_000) as u16 + 1));
        traffic::ethernet(&[], 0x0800, &traffic::ipv4(hosts, 17, 1, 0, &traffic::udp(ports, 8)))
    };
    pcap(ORDER, true, 1, &traffic::timed((0..flows).map(frame)))
}

#[test]
fn e31_a_stalled_collector_costs_records_that_are_counted() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let stats = directory.path().join("stats.json");
    let listener = Listener::start(Manner { tls: None, stalls: true });
    let (url, stats_file) = (format!("tcp://127.0.0.1:{}", listener.port), text(&stats));
    let arguments = ["--collector", &url, "--drain-timeout", "500ms", "--buffer", "1M", "--stats-json", &stats_file];
    let mut probe = Live::start(&arguments);
    // A capture waits for a collector that may go on; when the session is gone it does so no longer.
    let fed = std::thread::spawn(move || {
        probe.feed(&many_flows(200_000));
        probe.end()
    });
    wait_for("the connection", || listener.octets().len() == 1);
    std::thread::sleep(Duration::from_millis(500));
    assert!(!fed.is_finished(), "the exporter is held back");
    listener.reset();
    let output = fed.join().expect("no panic");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("not delivered"), "{log}");
    let (ended, terms) = flows_of(&stats);
    let sum: u64 = terms.iter().map(|(_, value)| value).sum();
    let delivered = terms.iter().find(|(name, _)| name == "delivered").expect("a term").1;
    assert!(ended == 200_000 && ended == sum && delivered < ended, "{ended} ended: {terms:?}");
}

#[test]
fn e32_what_was_not_sent_is_told_to_the_collector() {
    let case = Case::new();
    let mut listener = Listener::away(Manner::default());
    let (url, stats) = (format!("tcp://127.0.0.1:{}", listener.port), case.file("stats.json"));
    let stats_file = text(&stats);
    let more = ["--reconnect", "100ms", "--drain-timeout", "200ms", "--buffer", "1M", "--idle-timeout", "1s"];
    let mut probe = Live::start(&[&["--collector", &url, "--stats-json", &stats_file], &more[..]].concat());
    // The buffer is full long before the collector comes: the oldest go, counted.
    probe.feed(&many_flows(100_000));
    listener.come_back();
    wait_for("the session", || listener.octets().first().is_some_and(|octets| *octets > 1000));
    let log = String::from_utf8_lossy(&probe.end().stderr).into_owned();
    assert!(log.contains("not delivered"), "{log}");
    let judge = only_session(&listener);
    let told = judge.last_scoped_by(144, 166).expect("statistics of the Exporting Process");
    assert_eq!((told.scopes, told.number(144)), (1, Some(1)));
    let not_sent = [166, 167, 168].map(|element| told.number(element).expect("a count"));
    // One packet of 36 octets a flow.
    assert_eq!(not_sent, [not_sent[0], not_sent[0], 36 * not_sent[0]]);
    let (ended, terms) = flows_of(&stats);
    let dropped: u64 = terms.iter().filter(|(name, _)| name.starts_with("drop.")).map(|(_, value)| value).sum();
    assert!(not_sent[0] > 0 && not_sent[0] == dropped, "{not_sent:?} of {ended}: {terms:?}");
    assert_eq!(judge.flows().count() as u64 + dropped, ended);
}

#[test]
fn e33_statistics_and_ignored_packets_are_told() {
    let judge = over_tcp();
    let told = judge.last_scoped_by(144, 41).expect("statistics");
    assert_ne!(told.domain, 0, "a header without domain would ask for it as a scope");
    let [octets, messages, records] = [40, 41, 42].map(|element| told.number(element).expect("a count"));
    // The statistics count what was sent before them.
    assert_eq!(messages as usize, judge.messages - 1);
    assert!(records as usize <= judge.records.len() && records > 400 && octets > 400 * 72);
    // Ignored packets stand under their reasons, scoped by the Metering Process.
    let mut named = judge.records.iter().filter(|record| record.template == 258);
    let arp = named.rfind(|record| record.get(335) == Some(b"ignore.arp")).expect("a term");
    assert!(arp.number(86) > Some(0));
}

#[test]
fn e35_no_datagram_passes_the_path_mtu() {
    let case = Case::new();
    for mtu in [576, 1280, 1500] {
        let judge = over_udp(&case, &["--mtu", &mtu.to_string()]);
        // The headers of IPv6 and UDP, as the larger.
        assert!(judge.longest <= mtu - 48 && judge.longest > mtu - 48 - 76 - 24, "{mtu}: {}", judge.longest);
    }
}

/// Exports to a TLS collector; its session, if there was one, and the probe's log.
fn over_tls(
    case: &Case,
    server: &Made,
    client_ca: Option<&Made>,
    host: &str,
    more: &[&str],
) -> (Vec<Vec<u8>>, bool, String) {
    let listener = Listener::start(Manner { tls: tls_config(server, client_ca), stalls: false });
    let url = format!("tls://{host}:{}", listener.port);
    let output = run(&[&["-i", &case.capture, "--collector", &url, "--drain-timeout", "500ms"], more].concat());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    (listener.sessions(), output.status.success(), log)
}

#[test]
fn e40_a_collector_that_demands_a_certificate_gets_it() {
    let case = Case::new();
    let directory = case.directory.path();
    let ca = make(directory, "ca", "CA", &[], None);
    let server = make(directory, "server", "server", &["localhost"], Some(&ca));
    let client = make(directory, "client", "tokyo", &["tokyo"], Some(&ca));
    let (ca_file, cert, key) = (text(&ca.cert), text(&client.cert), text(&client.key_file));
    let own = ["--tls-ca", &ca_file, "--tls-cert", &cert, "--tls-priv-key", &key];
    let (sessions, went_well, log) = over_tls(&case, &server, Some(&ca), "localhost", &own);
    assert!(went_well, "{log}");
    assert_eq!(Judge::of(judge::Manner::Stream, &sessions[0]).flows().count(), case.flows());
    let (sessions, went_well, log) = over_tls(&case, &server, Some(&ca), "localhost", &own[..2]);
    assert!(!went_well && sessions.iter().all(Vec::is_empty), "{log}");
    assert!(log.contains("--tls-cert"), "44: {log}");
}

#[test]
fn e41_nothing_is_sent_to_an_unverified_collector() {
    let case = Case::new();
    let directory = case.directory.path();
    let (ca, other) = (make(directory, "ca", "CA", &[], None), make(directory, "other", "other CA", &[], None));
    let [named, elsewhere, foreign, shadowed] = [
        ("named", "server", "localhost", &ca),
        ("elsewhere", "server", "collector.example", &ca),
        ("foreign", "server", "localhost", &other),
        // A Common Name counts for nothing beside a subjectAltName.
        ("shadowed", "localhost", "collector.example", &ca),
    ]
    .map(|(file, common_name, name, ca)| make(directory, file, common_name, &[name], Some(ca)));
    let ca_file = text(&ca.cert);
    for (server, expected) in [(&named, true), (&elsewhere, false), (&foreign, false), (&shadowed, false)] {
        let (sessions, went_well, log) = over_tls(&case, server, None, "localhost", &["--tls-ca", &ca_file]);
        assert_eq!(went_well, expected, "{}: {log}", server.cert.display());
        assert_eq!(sessions.iter().any(|session| !session.is_empty()), expected);
        assert!(expected || log.contains("certificate"), "44: {log}");
    }
}

#[test]
fn e42_a_collector_may_be_known_by_its_common_name() {
    let case = Case::new();
    let ca = make(case.directory.path(), "ca", "CA", &[], None);
    for (common_name, expected) in [("localhost", true), ("collector.example", false)] {
        let server = make(case.directory.path(), "server", common_name, &[], Some(&ca));
        let (sessions, went_well, log) = over_tls(&case, &server, None, "localhost", &["--tls-ca", &text(&ca.cert)]);
        assert_eq!(went_well, expected, "{log}");
        assert_eq!(sessions.iter().any(|session| !session.is_empty()), expected);
    }
}

#[test]
fn e43_no_suite_without_encryption_is_offered() {
    let case = Case::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("tls://localhost:{}", listener.local_addr().expect("bound").port());
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the probe connects");
        let mut header = [0; 5];
        stream.read_exact(&mut header).expect("a record");
        let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        stream.read_exact(&mut hello).expect("a ClientHello");
        hello
    });
    run(&["-i", &case.capture, "--collector", &url, "--drain-timeout", "200ms"]);
    let hello = reader.join().expect("no panic");
    // Type and length, version, random, session ID; then the suites.
    let at = 4 + 2 + 32 + 1 + usize::from(hello[38]);
    let length = usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
    let suites: Vec<u16> =
        hello[at + 2..at + 2 + length].chunks(2).map(|suite| u16::from_be_bytes([suite[0], suite[1]])).collect();
    assert!(suites.len() >= 3 && suites.contains(&0x1301), "{suites:x?}");
    // TLS 1.3's own, and of TLS 1.2 those with forward secrecy and authenticated encryption; NULL is among neither.
    let sound = |suite: &u16| matches!(suite, 0x1301..=0x1303 | 0xc02b..=0xc030 | 0xcca8..=0xccaa | 0x00ff);
    assert!(suites.iter().all(sound), "{suites:x?}");
}

#[test]
fn e45_the_direction_stays_across_active_timeouts() {
    let case = Case::new();
    let (there, back) = (((1, 2), (40_000, 443)), ((2, 1), (443, 40_000)));
    // For five minutes a packet each second, now of the one side, now of the other; whoever comes first after a timeout.
    let packet = |second: u64| {
        let ((hosts, ports), flags) = if second.is_multiple_of(7) { (there, 0x18) } else { (back, 0x10) };
        let bytes = traffic::ethernet(&[], 0x0800, &traffic::ipv4(hosts, 6, 1, 0, &traffic::tcp(ports, flags, 10)));
        Packet { time_ns: (1_700_000_000 + second) * 1_000_000_000, wire_len: bytes.len() as u32, bytes }
    };
    let capture = text(&case.file("long.pcap"));
    std::fs::write(&capture, pcap(ORDER, true, 1, &(0..300).map(packet).collect::<Vec<_>>())).expect("written");
    let file = text(&case.file("long.ipfix"));
    run_well(&["-i", &capture, "--export-file", &file, "--active-timeout", "60s", "--idle-timeout", "15s"]);
    let judge = Judge::of(judge::Manner::File, &std::fs::read(&file).expect("written"));
    let ports: Vec<_> = judge.flows().map(|flow| (flow.number(7), flow.number(239), flow.number(136))).collect();
    assert!(ports.len() >= 5, "{ports:?}");
    assert!(ports.iter().all(|(port, direction, _)| (*port, *direction) == (Some(40_000), Some(1))), "{ports:?}");
    assert_eq!(ports[0].2, Some(2), "active timeout");
}
