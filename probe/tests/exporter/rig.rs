//! An exporter with everything around it but workers, which the test plays; and whole probes that read a file.

use crate::numbered::flow;
use clap::Parser;
use nagare_probe::books::{CaptureBooks, ProbeBooks, When};
use nagare_probe::counters::{MeterCounters, Tally};
use nagare_probe::exporter::{Exporter, Output, handles};
use nagare_probe::options::CommandLine;
use nagare_probe::run::open_collectors;
use nagare_probe::worker::RecordRing;
use nagare_service::run::Stop;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Records that the ring holds, and octets of the buffer: some 20,000 records.
const RING: usize = 4096;
const BUFFER: usize = 1_600_000;

/// How a rig is made.
pub struct Setup {
    pub url: String,
    pub ca: Option<PathBuf>,
    pub reconnect: Duration,
    pub drain: Duration,
    pub template_interval: Duration,
    pub mtu: usize,
}

impl Setup {
    pub fn to(scheme: &str, port: u16) -> Setup {
        Setup {
            url: format!("{scheme}://localhost:{port}"),
            ca: None,
            reconnect: Duration::from_millis(100),
            drain: Duration::from_secs(3),
            template_interval: Duration::from_secs(60),
            mtu: 1280,
        }
    }
}

/// An exporter in its thread, as a live probe has it.
pub struct Rig {
    pub ring: Arc<RecordRing>,
    pub meter: Arc<MeterCounters>,
    books: Arc<ProbeBooks>,
    wake: Arc<dyn Fn() + Send + Sync>,
    thread: JoinHandle<Option<String>>,
    stop: Stop,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub balanced: bool,
    pub ended: u64,
    pub delivered: u64,
    pub drops: BTreeMap<String, u64>,
    pub sessions: u32,
    /// From the wish to stop to the end.
    pub elapsed: Duration,
}

impl Ended {
    pub fn drop(&self, name: &str) -> u64 {
        self.drops[&format!("drop.{name}")]
    }
}

impl Rig {
    pub fn start(setup: Setup) -> Rig {
        let ms = |span: Duration| format!("{}ms", span.as_millis());
        let arguments = format!(
            "nagare-probe -i - --collector {} --reconnect {} --drain-timeout {} --template-interval {} --mtu {} \
            --books-interval 200ms --buffer {BUFFER}",
            setup.url,
            ms(setup.reconnect),
            ms(setup.drain),
            ms(setup.template_interval),
            setup.mtu
        );
        let ca = setup.ca.map(|ca| format!("--tls-ca={}", ca.display()));
        let line = CommandLine::try_parse_from(arguments.split_whitespace().map(str::to_string).chain(ca));
        let plan = line.expect("a command line").plan().expect("options that agree");
        let (collectors, exports) = open_collectors(&plan).expect("usable options");
        let (ring, meter) = (Arc::new(RecordRing::new(RING)), Arc::new(MeterCounters::default()));
        let received = meter.clone();
        let capture = move || {
            let received = received.received.get();
            CaptureBooks { seen: received, workers: vec![(received, Vec::new())], ..CaptureBooks::default() }
        };
        let books = Arc::new(ProbeBooks {
            captures: vec![("test".into(), Box::new(capture))],
            meters: vec![meter.clone()],
            ..ProbeBooks::of_exports(exports)
        });
        let (poll, handles) = handles().expect("descriptors");
        let (output, stop) = (Output::Collectors(collectors), Stop::new());
        let rings = vec![ring.clone()];
        let exporter = Exporter::new(output, rings, books.clone(), false, stop.clone(), (poll, &handles));
        let thread = std::thread::spawn(move || exporter.run());
        Rig { ring, meter, books, wake: handles.wake, thread, stop }
    }

    /// Ends flows as a worker on a network does, at a rate that the exporter can follow.
    pub fn feed(&self, numbers: Range<u32>) {
        for number in numbers {
            let flow = flow(number);
            let tally = Tally::of(&flow);
            self.meter.received.add(tally.packets);
            self.meter.metered.add(tally.packets);
            self.meter.ended.add(tally);
            if self.ring.queue.push(flow).is_err() {
                self.meter.ring_full.add(tally);
            }
            if number % 1024 == 1023 {
                (self.wake)();
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Says that no more flows come, and waits for the exporter's end.
    pub fn end(self) -> Ended {
        self.ring.finished.store(true, Ordering::Release);
        self.join()
    }

    /// Waits for the exporter's end.
    pub fn join(self) -> Ended {
        let begin = Instant::now();
        self.stop.set();
        let broken = self.thread.join().expect("the exporter does not panic");
        assert_eq!(broken, None);
        let books = self.books.books(When::Ended);
        assert!(books.figures.contains(&("flows_buffered".into(), 0)), "nothing is held after the end");
        let flows = books.equations.iter().find(|equation| equation.name == "flows").expect("there is one");
        let value = |name: &str| flows.terms.iter().find(|(term, _)| term == name).map_or(0, |(_, value)| *value);
        Ended {
            balanced: books.balanced(),
            ended: flows.total.1,
            delivered: value("delivered"),
            drops: flows.terms.iter().filter(|(name, _)| name.starts_with("drop.")).cloned().collect(),
            sessions: self.books.exports[0].1.sessions.get() as u32,
            elapsed: begin.elapsed(),
        }
    }
}

/// A frame of the flow of a number: UDP, 64 octets.
pub fn packet(number: u32) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    frame.extend([0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(number.to_be_bytes());
    frame.extend([192, 0, 2, 1, 4, 0, 1, 187, 0, 30, 0, 0]);
    frame.resize(64, 0);
    frame
}

/// A pcap file of so many flows, one packet each.
pub fn capture(flows: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [0xa1b2_3c4d_u32, 2 | 4 << 16, 0, 0, 65535, 1] {
        out.extend(word.to_le_bytes());
    }
    for number in 0..flows {
        out.extend([1_700_000_000, number, 64, 64].into_iter().flat_map(u32::to_le_bytes));
        out.extend(packet(number));
    }
    out
}

/// Runs a whole probe in this process; gives whether its books balanced, the terms of its flows, and its failures.
pub fn run_probe(arguments: &str, stop: &Stop) -> (bool, BTreeMap<String, u64>, Vec<String>) {
    let arguments = std::iter::once("nagare-probe").chain(arguments.split_whitespace());
    let plan = CommandLine::try_parse_from(arguments).expect("a command line").plan().expect("options that agree");
    let outcome = nagare_probe::run::run(&plan, stop).expect("it starts");
    let flows = outcome.books.equations.iter().find(|equation| equation.name == "flows").expect("there is one");
    let terms = flows.terms.iter().cloned().chain([flows.total.clone()]).collect();
    (outcome.books.balanced(), terms, outcome.failures)
}
