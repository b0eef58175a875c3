//! The exporter against collectors of every manner, over real sockets. Whatever the collector does, the books balance.

#[path = "exporter/collector.rs"]
mod collector;
mod numbered;
#[path = "exporter/rig.rs"]
mod rig;

use collector::{Collector, Manner, Pair, Seen, Tls, UNREAD_MAX, receive_datagrams};
use nagare_probe::capture::{CaptureSource, Frame, Received};
use nagare_probe::worker::{Worker, WorkerParts};
use nagare_service::run::Stop;
use rig::{Ended, Rig, Setup, capture, run_probe};
use std::collections::HashSet;
use std::io::Read;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Octets of an exported flow record of IPv4.
const RECORD: u64 = 76;
const DRAIN: Duration = Duration::from_secs(2);

/// One collector, the records that a live probe has for it, and what is to come of them.
struct Case {
    name: &'static str,
    tls: fn(Pair) -> Tls,
    manners: Vec<Manner>,
    flows: u32,
    expect: fn(&Ended, &[Seen]) -> bool,
}

fn all_arrived(ended: &Ended, sessions: &[Seen]) -> bool {
    ended.delivered == ended.ended && sessions.iter().map(|seen| seen.flows.len() as u64).sum::<u64>() == ended.ended
}

fn nothing_sent(ended: &Ended, sessions: &[Seen]) -> bool {
    ended.drop("undelivered") == ended.ended && ended.sessions == 0 && sessions.iter().all(|seen| seen.messages == 0)
}

fn cases() -> Vec<Case> {
    use Manner::*;
    let case =
        |name, tls, manners: &[Manner], flows, expect| Case { name, tls, manners: manners.to_vec(), flows, expect };
    let plain: fn(Pair) -> Tls = |_| Tls::None;
    let away = || IsAway(Duration::from_millis(300));
    vec![
        case("reads, TCP", plain, &[Reads], 50_000, all_arrived),
        case("reads, TLS 1.3", Tls::Project, &[Reads], 50_000, all_arrived),
        case("reads, TLS 1.2", Tls::Old, &[Reads], 50_000, all_arrived),
        case("no tickets", Tls::Ticketless, &[Reads], 1000, |ended, sessions| {
            all_arrived(ended, sessions) && ended.elapsed > Duration::from_millis(900)
        }),
        case("reads slowly", plain, &[ReadsSlowly(16_000)], 20_000, all_arrived),
        case("floods", plain, &[Floods], 5000, all_arrived),
        case("floods, TLS", Tls::Project, &[Floods], 5000, all_arrived),
        case("is away for ever", plain, &[IsAway(Duration::from_secs(4))], 1000, nothing_sent),
        case("is away at first", Tls::Project, &[away(), Reads], 1000, all_arrived),
        case("closes in the handshake", Tls::Project, &[ClosesInHandshake], 1000, nothing_sent),
        case("closes before the handshake", Tls::Project, &[Closes], 1000, nothing_sent),
        case("speaks no TLS", Tls::Project, &[Says("220 mail.example ESMTP ready\r\n")], 1000, nothing_sent),
        case("demands a certificate", Tls::Mutual, &[Reads], 1000, nothing_sent),
        case("closes at once", plain, &[Closes], 1000, |ended, _| ended.delivered < ended.ended),
        case("reads nothing", plain, &[ReadsNothing], 200_000, |ended, _| {
            ended.drop("buffer_full") > 0 && ended.drop("undelivered") > 0 && ended.sessions == 1
        }),
        case("reads nothing, TLS", Tls::Project, &[ReadsNothing], 200_000, |ended, _| {
            ended.drop("buffer_full") > 0 && ended.drop("undelivered") > 0 && ended.sessions == 1
        }),
        case("resets, then reads", plain, &[ResetsAfter(100_000), Reads], 50_000, came_back),
        case("resets, then reads, TLS", Tls::Project, &[ResetsAfter(100_000), Reads], 50_000, came_back),
        case("dies and comes back", Tls::Project, &[ResetsAfter(100_000), away(), Reads], 50_000, came_back),
    ]
}

/// What was sent and not acknowledged is sent again: nothing is lost but what the buffer had no room for.
fn came_back(ended: &Ended, sessions: &[Seen]) -> bool {
    let dropped = ended.drop("buffer_full") + ended.drop("unacknowledged");
    ended.sessions == 2
        && sessions.iter().all(|seen| !seen.flows.is_empty())
        && ended.delivered + dropped == ended.ended
}

/// The invariant. Every flow that ended was delivered or dropped under a name, exactly once. To a plain collector a flow goes at
/// least once: twice only where a session broke before the collector's TCP had acknowledged it. What the probe calls
/// delivered has arrived, but for what the kernel of a collector that died had acknowledged and not handed on.
fn check(case: &Case, ended: &Ended, sessions: &[Seen]) {
    let name = case.name;
    assert!(ended.balanced, "{name}: {ended:?}");
    assert_eq!(ended.ended, ended.delivered + ended.drops.values().sum::<u64>(), "{name}: {ended:?}");
    for seen in sessions {
        assert_eq!(seen.flows.len(), seen.flows.iter().collect::<HashSet<_>>().len(), "{name}: twice in a session");
    }
    let arrived: HashSet<u32> = sessions.iter().flat_map(|seen| seen.flows.iter().copied()).collect();
    let unread = match case.manners[0] {
        Manner::ResetsAfter(_) | Manner::ReadsNothing | Manner::Closes => {
            UNREAD_MAX / RECORD * u64::from(ended.sessions)
        }
        _ => 0,
    };
    assert!(arrived.len() as u64 + unread >= ended.delivered, "{name}: {} arrived, {ended:?}", arrived.len());
    // In the last session; in one that broke early they may still have been behind the flows.
    let books = sessions.iter().rfind(|seen| !seen.flows.is_empty()).is_none_or(|seen| {
        seen.books.iter().any(|book| book.name == "ended") && seen.statistics.iter().all(|s| s.init_time_ms > 0)
    });
    assert!(books, "{name}: no books came");
    assert!((case.expect)(ended, sessions), "{name}: {ended:?}");
}

#[test]
fn whatever_the_collector_does_the_books_balance() {
    let directory = tempfile::tempdir().unwrap();
    let pair = Pair::new(directory.path());
    std::thread::scope(|scope| {
        for case in cases() {
            let pair = pair.clone();
            let run = move || {
                let tls = (case.tls)(pair.clone());
                let scheme = if matches!(tls, Tls::None) { "tcp" } else { "tls" };
                let collector = Collector::start(tls, &case.manners);
                let setup = Setup { ca: Some(pair.cert), drain: DRAIN, ..Setup::to(scheme, collector.port) };
                let rig = Rig::start(setup);
                rig.feed(0..case.flows);
                if matches!(case.manners[0], Manner::ResetsAfter(_)) {
                    collector.wait_for_sessions(2);
                }
                let ended = rig.end();
                check(&case, &ended, &collector.finish());
                // Where records still moved the end may take longer.
                let stuck = ended.delivered == 0 || matches!(case.manners[0], Manner::ReadsNothing);
                assert!(!stuck || ended.elapsed < DRAIN + Duration::from_secs(1), "{}: {ended:?}", case.name);
            };
            scope.spawn(run);
        }
    });
}

#[test]
fn a_blackhole_is_given_up_and_tried_again() {
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _fills_the_backlog = std::net::TcpStream::connect(address).unwrap();
    let rig = Rig::start(Setup { drain: DRAIN, ..Setup::to("tcp", address.port()) });
    rig.feed(0..1000);
    let ended = rig.end();
    assert!(ended.balanced && ended.drop("undelivered") == 1000 && ended.sessions == 0, "{ended:?}");
    assert!(ended.elapsed < DRAIN + Duration::from_secs(1), "{ended:?}");
}

#[test]
fn datagrams_keep_to_the_mtu_and_templates_come_again() {
    for (mtu, flows) in [(576, 60), (1280, 300)] {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let stop = AtomicBool::new(false);
        let (ended, seen) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| receive_datagrams(&socket, &stop));
            let setup = Setup { mtu, template_interval: Duration::from_millis(200), ..Setup::to("udp", port) };
            let rig = Rig::start(setup);
            rig.feed(0..flows);
            std::thread::sleep(Duration::from_millis(900));
            let ended = rig.end();
            stop.store(true, Ordering::Release);
            (ended, reader.join().unwrap())
        });
        assert!(ended.balanced && ended.delivered == u64::from(flows), "{ended:?}");
        assert_eq!(seen.flows.len() as u32, flows);
        assert!((3..=6).contains(&seen.templates), "{} Messages of Templates", seen.templates);
        assert!(seen.longest <= mtu - 48, "a datagram of {} octets", seen.longest);
    }
}

/// RFC 7011, 10.4.4: all addresses of a name are one attempt, and the next comes a minute later.
#[test]
fn attempts_are_rounds() {
    let collector = Collector::start(Tls::None, &[Manner::Closes]);
    let rig =
        Rig::start(Setup { reconnect: Duration::from_secs(60), drain: DRAIN, ..Setup::to("tcp", collector.port) });
    std::thread::sleep(Duration::from_millis(1500));
    assert!(rig.end().balanced);
    assert_eq!(collector.finish().len(), 1, "connections in a second and a half");
}

/// A source that gives some packets, then panics.
struct Panics(u32);

impl CaptureSource for Panics {
    fn receive(&mut self, _: usize, _: Duration, mut each: impl FnMut(Frame<'_>)) -> std::io::Result<Received> {
        assert!(self.0 > 0, "as the test wants it");
        self.0 -= 1;
        let bytes = rig::packet(self.0);
        let time_ns = u64::from(1000 - self.0) * 1_000_000_000;
        each(Frame {
            link: nagare_wire::packet::LinkType::Ethernet,
            bytes: &bytes,
            wire_length: 64,
            time_ns,
            interface: 1,
            packets: 1,
        });
        Ok(Received { frames: 1, now_ns: time_ns, horizon_ns: u64::MAX, end: false })
    }
}

#[test]
fn a_worker_that_panics_is_missed_and_its_records_still_go_out() {
    let collector = Collector::start(Tls::None, &[Manner::Reads]);
    let rig = Rig::start(Setup::to("tcp", collector.port));
    let limits = nagare_probe::cache::CacheLimits {
        idle_timeout_ms: 1000,
        active_timeout_ms: 60_000,
        unanswered_timeout_ms: 1000,
        flows_max: 64,
        measure: false,
        outer: false,
    };
    let parts = WorkerParts {
        tunnels: nagare_wire::packet::Tunnels::Outer,
        selection: Default::default(),
        limits,
        ring: rig.ring.clone(),
        counters: rig.meter.clone(),
        waits: false,
        wake: Arc::new(|| ()),
        stop: None,
        exporter_gone: Arc::default(),
    };
    let worker = std::thread::spawn(move || Worker::new(Panics(100), parts).run());
    assert!(worker.join().is_err(), "the panic is not swallowed");
    let ended = rig.join();
    assert!(ended.ended > 50 && ended.delivered == ended.ended, "{ended:?}");
    assert_eq!(collector.finish()[0].flows.len() as u64, ended.delivered);
}

/// A capture file of so many flows, one packet each.
fn file_of(directory: &Path, flows: u32) -> String {
    let path = directory.join("capture.pcap");
    std::fs::write(&path, capture(flows)).unwrap();
    path.to_str().unwrap().to_string()
}

/// More flows than ring and buffer hold.
const MANY: u32 = 200_000;

#[test]
fn a_file_ends_although_nobody_answers() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_of(directory.path(), MANY);
    let pair = Pair::new(directory.path());
    let port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port(); // No TCP listens there.
    let arguments =
        format!("-i {file} --collector tls://localhost:{port} --tls-ca {} --drain-timeout 1s", pair.cert.display());
    let begin = Instant::now();
    let (balanced, flows, failures) = run_probe(&format!("{arguments} --buffer 1M"), &Stop::new());
    assert!(balanced && flows["delivered"] == 0 && flows["ended"] == u64::from(MANY), "{flows:?}");
    assert!(failures.iter().any(|failure| failure.contains("200000 flow records were not delivered")), "{failures:?}");
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}

#[test]
fn a_file_waits_for_a_slow_collector_and_ends_when_told_to() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_of(directory.path(), MANY);
    let collector = Collector::start(Tls::None, &[Manner::ReadsNothing]);
    let arguments = format!("-i {file} --collector tcp://127.0.0.1:{} --drain-timeout 1s --buffer 1M", collector.port);
    let stop = Stop::new();
    std::thread::scope(|scope| {
        let probe = scope.spawn(|| run_probe(&arguments, &stop));
        std::thread::sleep(Duration::from_millis(2500));
        assert!(!probe.is_finished(), "the file waits for as long as the collector is there");
        let begin = Instant::now();
        stop.set();
        let (balanced, flows, _) = probe.join().unwrap();
        assert!(balanced && flows["delivered"] < u64::from(MANY), "{flows:?}");
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    });
}

#[test]
fn a_file_is_delivered_whole() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_of(directory.path(), MANY);
    let pair = Pair::new(directory.path());
    let collector = Collector::start(Tls::Project(pair.clone()), &[Manner::Reads]);
    let port = collector.port;
    let arguments =
        format!("-i {file} --collector tls://localhost:{port} --tls-ca {} --buffer 1M", pair.cert.display());
    let (balanced, flows, failures) = run_probe(&arguments, &Stop::new());
    assert!(balanced && failures.is_empty() && flows["delivered"] == u64::from(MANY), "{flows:?} {failures:?}");
    let sessions = collector.finish();
    let arrived: HashSet<u32> = sessions[0].flows.iter().copied().collect();
    assert_eq!((arrived.len() as u32, sessions[0].flows.len() as u32), (MANY, MANY));
    let delivered = sessions[0].books.iter().rfind(|book| book.name == "delivered").map(|book| book.value);
    assert_eq!(delivered, Some(u64::from(MANY)), "the last books tell of everything");
}

fn program(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nagare-probe"));
    command.args(arguments.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_reader_that_leaves_and_a_full_disk_end_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_of(directory.path(), MANY);
    let books = directory.path().join("books.json");
    let reader_left = "standard output: its reader wants no more";
    for (arguments, message, begun) in [
        ("--dump csv", reader_left, true),
        ("--dump json", reader_left, true),
        ("--export-file /dev/stdout", "/dev/stdout cannot be written", true),
        // Not even the Templates have room: nothing is metered for it.
        ("--export-file /dev/full", "/dev/full cannot be written", false),
    ] {
        let begin = Instant::now();
        let mut program = program(&format!("-i {file} {arguments} --stats-json {}", books.display())).spawn().unwrap();
        let read = program.stdout.take().unwrap().read(&mut [0; 64]).unwrap();
        let output = program.wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && log.contains(message), "{arguments}: {:?}\n{log}", output.status);
        assert!(begin.elapsed() < Duration::from_secs(5), "{arguments}: {:?}", begin.elapsed());
        let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&books).unwrap()).unwrap();
        let equations = told["equations"].as_array().unwrap();
        let terms = &equations.iter().find(|equation| equation["name"] == "flows").unwrap()["terms"];
        assert_eq!((&told["balanced"], read > 0), (&true.into(), begun), "{arguments}: {told:#}");
        assert_eq!(terms["drop.send_failed"].as_u64() > Some(0), begun, "{arguments}: {told:#}");
        assert!(begun || terms["delivered"] == 0, "{arguments}: {told:#}");
    }
}

#[test]
fn the_first_signal_drains_and_the_second_ends() {
    let directory = tempfile::tempdir().unwrap();
    let file = file_of(directory.path(), MANY);
    let collector = Collector::start(Tls::None, &[Manner::ReadsNothing]);
    let port = collector.port;
    let arguments = format!("-i {file} --collector tcp://127.0.0.1:{port} --drain-timeout 60s --buffer 1M");
    let mut program = program(&arguments).stderr(Stdio::null()).spawn().unwrap();
    collector.wait_for_sessions(1);
    let id = program.id().to_string();
    let signal = || Command::new("kill").arg(&id).status().unwrap();
    signal();
    std::thread::sleep(Duration::from_millis(800));
    assert!(program.try_wait().unwrap().is_none(), "after the first signal it still tries");
    signal();
    assert_eq!(program.wait().unwrap().code(), Some(128 + 15));
}
