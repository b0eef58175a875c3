//! Delivery between real programs: several collectors, the spool's life, restarts and crashes; each flow held against what is stored.

use nagare_benches::faults::check::Stored;
use nagare_benches::faults::feed::Feed;
use nagare_benches::faults::proxy::Proxy;
use nagare_benches::lab::{LISTENING, Metrics, Pki, Program, books, built, collector_arguments, run, term};
use nagare_benches::traffic::{number_of, numbered, pcap_header, pcap_packet};
use nagare_wire::ipfix::mapping::{Mapped, map};
use nagare_wire::ipfix::{Transport, TransportSession, frame};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SITE: &str = "lab";
/// Octets that the plain collector's kernel takes before it reads; Linux doubles it. A record has 60 octets at least.
const RECEIVE_BUFFER: usize = 8192;
/// Conversations of a capture file.
const FLOWS: u64 = 3000;

/// Certificates, and a place for everything.
struct Ground {
    directory: TempDir,
    pki: Pki,
}

impl Ground {
    fn new() -> Ground {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::new(directory.path(), SITE);
        Ground { directory, pki }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A capture file of [`FLOWS`] conversations.
    fn capture(&self) -> PathBuf {
        let (path, mut bytes) = (self.path("flows.pcap"), pcap_header());
        append(&mut bytes, 1_700_000_000);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A probe that exports to these ports; its spool and its last books have the names `spool` and `probe.json`.
    fn probe(&self, input: &Path, ports: &[u16], more: &[&str]) -> Command {
        let mut command = Command::new(built("nagare-probe"));
        command.arg("-i").arg(input).args(self.export(ports)).arg("--stats-json").arg(self.path("probe.json"));
        command.args(["--idle-timeout", "1s", "--metrics", "127.0.0.1:0"]).args(more).stdout(Stdio::null());
        command
    }

    fn export(&self, ports: &[u16]) -> Vec<String> {
        let mut arguments = self.pki.probe(SITE);
        arguments.extend(ports.iter().flat_map(|port| ["--collector".into(), format!("tls://localhost:{port}")]));
        arguments.extend(["--reconnect", "200ms", "--spool"].map(String::from));
        arguments.push(self.path("spool").to_string_lossy().into_owned());
        arguments
    }

    /// `nagare-probe spool …` on the spool.
    fn spool(&self, command: &str, more: &[String]) -> Output {
        let spool = self.path("spool");
        let mut arguments = vec!["spool", command];
        match more.is_empty() {
            true => arguments.extend(["--spool", spool.to_str().unwrap()]),
            false => arguments.extend(more.iter().map(String::as_str)),
        }
        run("nagare-probe", &arguments).unwrap()
    }

    /// Sends what waits to these collectors, which share it as `how` says.
    fn replay(&self, ports: &[u16], how: &str) -> Output {
        let mut arguments = self.export(ports);
        arguments.extend(["--export", how].map(String::from));
        self.spool("replay", &arguments)
    }

    fn segments(&self) -> Vec<PathBuf> {
        let queues = std::fs::read_dir(self.path("spool")).into_iter().flatten().flatten().map(|entry| entry.path());
        let files = queues.filter(|path| path.is_dir()).flat_map(|queue| std::fs::read_dir(queue).unwrap().flatten());
        files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "ipfix")).collect()
    }

    /// The probe's last books: balanced, and nothing dropped.
    fn books(&self) -> Value {
        let books = books(&self.path("probe.json"));
        assert_eq!(books["balanced"], true, "{books:#}");
        for equation in books["equations"].as_array().unwrap() {
            let dropped = |(name, value): (&String, &Value)| name.starts_with("drop.") && *value != 0;
            assert!(!equation["terms"].as_object().unwrap().iter().any(dropped), "{equation:#}");
        }
        books
    }
}

/// All conversations, from this second on.
fn append(out: &mut Vec<u8>, second: u64) {
    for (number, frame) in (0..FLOWS).flat_map(|number| numbered(number).into_iter().map(move |frame| (number, frame)))
    {
        pcap_packet(out, second * 1_000_000_000 + number * 1000, &frame);
    }
}

/// A collector at a port that stays the same when it is away.
struct Collector<'a> {
    ground: &'a Ground,
    directory: PathBuf,
    proxy: Proxy,
    program: Option<Program>,
}

impl<'a> Collector<'a> {
    /// Away at first.
    fn new(ground: &'a Ground, name: &str) -> Collector<'a> {
        let directory = ground.path(name);
        std::fs::create_dir(&directory).unwrap();
        Collector { ground, directory, proxy: Proxy::start(1).unwrap(), program: None }
    }

    fn port(&self) -> u16 {
        self.proxy.port()
    }

    fn begin(&mut self) {
        let mut command = Command::new(built("nagare-collector"));
        command.args(collector_arguments(&self.ground.pki, &self.directory, "0")).stdout(Stdio::null());
        let program = Program::start(command);
        self.proxy.lead_to(program.wait_for(LISTENING).trim().parse().unwrap());
        self.program = Some(program);
    }

    fn kill(&mut self) {
        let program = self.program.take().expect("it runs");
        program.signal("KILL");
        program.wait();
    }

    /// Ends it, looks at its books, and gives what it stored.
    fn end(&mut self) -> Stored {
        if let Some(program) = self.program.take() {
            let (status, log) = program.stop();
            assert!(status.success(), "{log}");
            let books = books(&self.directory.join("collector.json"));
            assert_eq!(books["balanced"], true, "{books:#}");
        }
        Stored::read(&built("nagare-collector"), &self.directory.join("data")).unwrap()
    }

    fn sql(&self, query: &str) -> String {
        let data = self.directory.join("data");
        let arguments = ["sql", "--data", data.to_str().unwrap(), "--format", "csv", query];
        let output = run("nagare-collector", &arguments).unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

/// Waits until the probe's metrics fit.
fn until(probe: &Program, what: &str, fits: impl Fn(&Metrics) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !Metrics::of_program(probe).is_some_and(|metrics| fits(&metrics)) {
        assert!(Instant::now() < deadline, "never: {what}\n{}", probe.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until more is delivered than now.
fn delivers(probe: &Program) {
    let delivered = |metrics: &Metrics| metrics.term("flows", "delivered");
    let before = Metrics::of_program(probe).map_or(0, |metrics| delivered(&metrics));
    until(probe, "more is delivered", |metrics| delivered(metrics) > before + 200);
}

fn assert_each_once(stored: &Stored, flows: u64) {
    (0..flows).for_each(|number| assert_eq!(stored.count(number), 1, "flow {number}"));
    assert_eq!(stored.len(), flows);
}

/// Sends a capture to a collector that is away: it waits in the spool.
fn fill_spool(ground: &Ground, collector: &Collector) {
    let (status, log) = Program::start(ground.probe(&ground.capture(), &[collector.port()], &[])).wait();
    assert!(status.success(), "{log}");
    assert_eq!(term(&ground.books(), "flows", "spooled"), FLOWS);
}

#[test]
fn a_stand_in_takes_over_and_gives_back() {
    let ground = Ground::new();
    let (mut first, mut second) = (Collector::new(&ground, "first"), Collector::new(&ground, "second"));
    second.begin();
    let feed = Feed::start(1000);
    let (probe, input) = Program::fed(ground.probe(Path::new("-"), &[first.port(), second.port()], &[]));
    feed.give(input);
    let [to_first, to_second] = [&first, &second].map(|to| format!("connected to tls://localhost:{}", to.port()));
    probe.wait_for(&to_second);
    delivers(&probe);
    first.begin();
    probe.wait_for(&to_first);
    delivers(&probe);
    first.kill();
    probe.wait_for_nth(&to_second, 2);
    delivers(&probe);
    let written = feed.finish().last().unwrap().numbers.end;
    let (status, log) = probe.wait();
    assert!(status.success(), "{log}");
    assert_eq!(term(&ground.books(), "flows", "delivered"), written);
    let (first, second) = (first.end(), second.end());
    for number in 0..written {
        let counts = (first.count(number), second.count(number));
        assert!(matches!(counts, (1, 0) | (0, 1) | (1, 1)), "flow {number}: {counts:?}");
    }
    assert!(!first.is_empty() && !second.is_empty());
}

#[test]
fn a_flow_goes_to_one_of_the_balanced_and_waits_for_it() {
    let ground = Ground::new();
    let (mut first, mut second) = (Collector::new(&ground, "first"), Collector::new(&ground, "second"));
    first.begin();
    let ports = [first.port(), second.port()];
    let (probe, mut input) = Program::fed(ground.probe(Path::new("-"), &ports, &["--export", "balance"]));
    // Each conversation twice, as two flows of one key.
    let mut bytes = pcap_header();
    append(&mut bytes, 1_700_000_000);
    append(&mut bytes, 1_700_000_100);
    input.write_all(&bytes).unwrap();
    until(&probe, "the one has flows, the other's wait", |metrics| {
        metrics.term("flows", "delivered") > 0 && metrics.term("flows", "spooled") > 0
    });
    second.begin();
    drop(input);
    // The one that returns is found by the next attempt; should the probe have ended before, its spool is sent on.
    let (status, log) = probe.wait();
    assert!(status.success(), "{log}");
    let books = ground.books();
    assert_eq!(term(&books, "flows", "delivered") + term(&books, "flows", "spooled"), 2 * FLOWS);
    let output = ground.replay(&ports, "balance");
    assert!(output.status.success(), "{}", text(&output));
    assert!(ground.segments().is_empty());
    let (first, second) = (first.end(), second.end());
    for number in 0..FLOWS {
        let counts = (first.count(number), second.count(number));
        assert!(matches!(counts, (2, 0) | (0, 2)), "flow {number}: {counts:?}");
    }
    let shares = [first.len(), second.len()];
    assert!(shares.iter().all(|share| *share > FLOWS / 2), "both have their share: {shares:?}");
}

#[test]
fn a_dead_collector_costs_the_replicated_other_nothing() {
    let ground = Ground::new();
    let (mut alive, mut dead) = (Collector::new(&ground, "alive"), Collector::new(&ground, "dead"));
    alive.begin();
    let ports = [alive.port(), dead.port()];
    let probe = ground.probe(&ground.capture(), &ports, &["--export", "replicate"]);
    let (status, log) = Program::start(probe).wait();
    assert!(status.success(), "{log}");
    let books = ground.books();
    let equations = books["equations"].as_array().unwrap().iter().filter(|equation| equation["name"] == "flows");
    let told: Vec<_> = equations.map(|e| (&e["terms"]["delivered"], &e["terms"]["spooled"])).collect();
    assert_eq!(told, [(&FLOWS.into(), &0.into()), (&0.into(), &FLOWS.into())]);
    dead.begin();
    let output = ground.replay(&ports, "replicate");
    assert!(output.status.success(), "{}", text(&output));
    assert_each_once(&alive.end(), FLOWS);
    assert_each_once(&dead.end(), FLOWS);
}

#[test]
fn a_spool_is_listed_verified_and_replayed() {
    let ground = Ground::new();
    let mut collector = Collector::new(&ground, "collector");
    fill_spool(&ground, &collector);
    let list = ground.spool("list", &[]);
    assert!(list.status.success() && text(&list).contains("3,000 flows"), "{}", text(&list));
    assert!(ground.spool("verify", &[]).status.success());
    read_by_ipfix_dump(&ground, &text(&list));
    collector.begin();
    let replay = ground.replay(&[collector.port()], "failover");
    assert!(replay.status.success(), "{}", text(&replay));
    assert!(ground.segments().is_empty());
    assert_each_once(&collector.end(), FLOWS);
}

/// libfixbuf finds the flows of a spool, a trailer for each Message, and nothing else.
fn read_by_ipfix_dump(ground: &Ground, list: &str) {
    let [segment] = &ground.segments()[..] else { panic!("one segment") };
    let output = Command::new("timeout").args(["-k", "1", "20", "ipfixDump", "--in"]).arg(segment).output().unwrap();
    if output.status.code() == Some(127) {
        println!("skipped: ipfixDump is not installed (Debian's package libfixbuf-tools)");
        return assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "nothing may be skipped where CI=true");
    }
    assert!(output.status.success(), "{}", text(&output));
    let dump = text(&output);
    let count = |what: &str| dump.lines().filter(|line| line.contains(what)).count() as u64;
    let totals = list.lines().last().unwrap().split(' ').next().unwrap();
    let messages: u64 = totals.replace(',', "").parse().unwrap();
    // The Templates, the trailers' Template, and two for each Message.
    assert!(dump.contains(&format!("File Stats: {} Messages", 2 + 2 * messages)), "{messages} Messages");
    assert_eq!(count("(41) (S)       exportedMessageTotalCount :"), messages, "a trailer each");
    assert_eq!(count("sourceIPv4Address :"), FLOWS);
}

#[test]
fn damage_in_a_spool_is_named_and_the_rest_arrives() {
    let ground = Ground::new();
    let mut collector = Collector::new(&ground, "collector");
    fill_spool(&ground, &collector);
    let segment = ground.segments().pop().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let verify = ground.spool("verify", &[]);
    assert_eq!(verify.status.code(), Some(1));
    let told = text(&verify);
    let line = told.lines().find(|line| line.contains("DAMAGED")).unwrap();
    assert!(line.contains(segment.to_str().unwrap()), "{line}");
    collector.begin();
    let replay = ground.replay(&[collector.port()], "failover");
    assert!(text(&replay).contains("damaged") && replay.status.code() == Some(1), "{}", text(&replay));
    let stored = collector.end();
    assert!(stored.len() < FLOWS && stored.len() > FLOWS / 2, "{} of {FLOWS}", stored.len());
    assert!((0..FLOWS).all(|number| stored.count(number) <= 1));
}

#[test]
fn a_spool_is_dropped_only_when_it_is_meant_and_has_one_owner() {
    let ground = Ground::new();
    let collector = Collector::new(&ground, "collector");
    fill_spool(&ground, &collector);
    let (probe, mut input) = Program::fed(ground.probe(Path::new("-"), &[collector.port()], &[]));
    input.write_all(&pcap_header()).unwrap();
    probe.wait_for("metrics at");
    let (status, log) = Program::start(ground.probe(&ground.capture(), &[collector.port()], &[])).wait();
    assert!(!status.success() && log.contains("in use by another probe"), "{log}");
    drop(input);
    assert!(probe.wait().0.success());
    let segments = ground.segments().len();
    assert!(segments > 0);
    let drop = ground.spool("drop", &[]);
    assert!(drop.status.success() && text(&drop).contains("nothing was removed"), "{}", text(&drop));
    assert_eq!(ground.segments().len(), segments);
    let spool = ground.path("spool").to_string_lossy().into_owned();
    let drop = ground.spool("drop", &["--yes".into(), "--spool".into(), spool]);
    assert!(drop.status.success(), "{}", text(&drop));
    assert!(ground.segments().is_empty());
}

/// A probe whose collector is away, and whose flows are in the spool, is ended by a signal; the next one delivers.
fn restart(signal: &str, gap: &str) {
    let ground = Ground::new();
    let mut collector = Collector::new(&ground, "collector");
    let more = ["--drain-timeout", "10m"];
    let (probe, mut input) = Program::fed(ground.probe(Path::new("-"), &[collector.port()], &more));
    let mut bytes = pcap_header();
    append(&mut bytes, 1_700_000_000);
    // Later packets end the flows before them.
    numbered(FLOWS).iter().for_each(|frame| pcap_packet(&mut bytes, 1_700_000_100_000_000_000, frame));
    input.write_all(&bytes).unwrap();
    until(&probe, "all are in the spool", |metrics| metrics.term("flows", "spooled") >= FLOWS);
    probe.signal(signal);
    let (status, log) = probe.wait();
    assert_eq!(status.success(), signal == "TERM", "{log}");
    collector.begin();
    let (probe, mut input) = Program::fed(ground.probe(Path::new("-"), &[collector.port()], &[]));
    input.write_all(&pcap_header()).unwrap();
    until(&probe, "what waited is delivered", |metrics| metrics.term("spool", "delivered") >= FLOWS);
    drop(input);
    assert!(probe.wait().0.success());
    let stored = collector.end();
    (0..FLOWS).for_each(|number| assert_eq!(stored.count(number), 1, "flow {number}"));
    let rows = collector.sql(&format!("SELECT value FROM books WHERE name = '{gap}'"));
    let told: Vec<u64> = rows.lines().skip(1).map(|row| row.parse().unwrap()).collect();
    assert!(told.len() == 1 && told[0] < 60_000, "{rows}");
}

#[test]
fn what_a_stopped_probe_had_is_delivered_by_the_next() {
    restart("TERM", "gap.stopped_ms");
}

#[test]
fn what_a_killed_probe_had_is_delivered_by_the_next() {
    restart("KILL", "gap.killed_ms");
}

#[test]
fn a_plain_collector_that_resets_gets_what_its_tcp_had_not_acknowledged() {
    let ground = Ground::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Else all of it is in the kernel, and thus acknowledged, before the reset.
    socket2::SockRef::from(&listener).set_recv_buffer_size(RECEIVE_BUFFER).unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let mut command = Command::new(built("nagare-probe"));
    command.arg("-i").arg(ground.capture()).args(["--collector", &url, "--reconnect", "100ms"]);
    command.arg("--stats-json").arg(ground.path("probe.json"));
    command.stdout(Stdio::null());
    let probe = Program::start(command);
    let mut found = BTreeSet::new();
    let (mut first, _) = listener.accept().unwrap();
    let mut bytes = vec![0; 40_000];
    first.read_exact(&mut bytes).unwrap();
    found.extend(numbers(&bytes));
    socket2::SockRef::from(&first).set_linger(Some(Duration::ZERO)).unwrap();
    drop(first);
    let (mut second, _) = listener.accept().unwrap();
    bytes.clear();
    second.read_to_end(&mut bytes).unwrap();
    drop(second);
    found.extend(numbers(&bytes));
    let (status, log) = probe.wait();
    assert!(status.success(), "{log}");
    // What a TCP acknowledged and nobody read is delivered, as far as a plain collector's probe can know: it has no other answer.
    let missing = FLOWS - found.len() as u64;
    assert!(missing < 2 * RECEIVE_BUFFER as u64 / 60, "{missing} are more than a receive buffer holds");
    assert_eq!(term(&ground.books(), "flows", "delivered"), FLOWS);
}

/// The conversations in the whole Messages of a stream.
fn numbers(mut stream: &[u8]) -> BTreeSet<u64> {
    let (mut session, mut found) = (TransportSession::new(Transport::Stream), BTreeSet::new());
    while let Some(length) = frame(stream).unwrap() {
        let received = session.receive(&stream[..length], |header, record| {
            if let Mapped::Flow(flow) = map(header, &record) {
                found.extend(number_of(&flow.key));
            }
        });
        assert_eq!(received.unwrap().sets_without_template, 0);
        stream = &stream[length..];
    }
    found
}

#[test]
fn a_silent_network_is_given_up_and_the_next_session_delivers() {
    let ground = Ground::new();
    let mut collector = Collector::new(&ground, "collector");
    collector.begin();
    let feed = Feed::start(500);
    let more = ["--dead-peer", "1s", "--sndbuf", "64K"];
    let (probe, input) = Program::fed(ground.probe(Path::new("-"), &[collector.port()], &more));
    feed.give(input);
    delivers(&probe);
    collector.proxy.change(|weather| weather.blackhole = true);
    probe.wait_for("next attempt");
    collector.proxy.change(|weather| weather.blackhole = false);
    probe.wait_for_nth("connected to", 2);
    let written = feed.finish().last().unwrap().numbers.end;
    let (status, log) = probe.wait();
    assert!(status.success(), "{log}");
    assert_eq!(term(&ground.books(), "flows", "delivered"), written);
    assert_each_once(&collector.end(), written);
}

#[test]
fn a_probe_exports_from_the_address_it_was_given() {
    let ground = Ground::new();
    let mut collector = Collector::new(&ground, "collector");
    collector.begin();
    let port = collector.program.as_ref().unwrap().wait_for(LISTENING).trim().parse().unwrap();
    let more = ["--bind", "127.0.0.2"];
    let (status, log) = Program::start(ground.probe(&ground.capture(), &[port], &more)).wait();
    assert!(status.success(), "{log}");
    assert_eq!(term(&ground.books(), "flows", "delivered"), FLOWS);
    assert_each_once(&collector.end(), FLOWS);
    let rows = collector.sql("SELECT DISTINCT exporter FROM sessions");
    assert_eq!(rows.lines().skip(1).count(), 1, "{rows}");
    assert!(rows.contains("127.0.0.2"), "{rows}");
}
