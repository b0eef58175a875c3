//! Puts the probe together: source, workers, exporter, books; runs it; takes it apart in the right order.

use crate::books::{CaptureBooks, ProbeBooks, ReadCapture, When};
use crate::capture::file::{FileCapture, FileOptions};
use crate::capture::interfaces::{self, Interfaces};
use crate::capture::{CaptureOptions, CaptureSource, InterfaceCapture, Share};
use crate::counters::MeterCounters;
use crate::exporter::output::{Dump, FileOutput};
use crate::exporter::transport::{Session, SessionOptions};
use crate::exporter::{Exporter, ExporterOptions, Output, handles};
use crate::options::{Destination, Input, Plan};
use crate::worker::{RecordRing, Worker, WorkerParts};
use nagare_service::books::{Books, Publisher};
use nagare_service::endpoint::Scheme;
use nagare_service::run::{Stop, ready, stopping, watchdog_tick};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Records that may wait between a worker and the exporter.
const RING_RECORDS: usize = 1 << 16;
/// Packets that may be on their way to a worker when the books are read: more than any ring or file chunk holds, as a reader that
/// is put aside between two counters sees those of that time as well.
const FRAMES_MAX: u64 = 1 << 22;
/// Records that a connection may have sent without an answer: more than the kernel's largest buffers hold of the smallest.
const UNACKNOWLEDGED_MAX: u64 = 1 << 20;
/// What is on its way when the workers have ended is counted after this, at most.
const SETTLE: Duration = Duration::from_secs(1);
/// How often the main thread looks after the others.
const TICK: Duration = Duration::from_millis(250);
/// The same where a file may end at any moment, and somebody waits for that.
const TICK_FILE: Duration = Duration::from_millis(5);

/// How a run ended.
pub struct Outcome {
    /// The books at the end.
    pub books: Books,
    /// What went wrong beside them: a broken capture file, records that nobody took.
    pub failures: Vec<String>,
}

/// Runs the probe until its source ends or `stop` is set.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn run(plan: &Plan, stop: &Stop) -> Result<Outcome, Box<dyn Error>> {
    match &plan.input {
        Input::File(path) => run_file(plan, &path.to_string_lossy(), stop),
        Input::Interfaces(names) => run_interfaces(plan, names, stop),
    }
}

fn run_file(plan: &Plan, path: &str, stop: &Stop) -> Result<Outcome, Box<dyn Error>> {
    let seed = ahash::RandomState::new().hash_one(path) as u32;
    let (capture, sources) =
        FileCapture::open(path, plan.workers, FileOptions { progress: true, seed, tunnels: plan.tunnels })?;
    let counters = capture.counters();
    let meters = meters(plan.workers);
    let read = meters.clone();
    let settling = counters.clone();
    let books = move || {
        let workers = read.iter().map(|meter| (meter.received.get(), Vec::new())).collect();
        let file = counters.figures();
        let unsteered =
            vec![("ignore.link_type".to_string(), file.ignore_link_type), ("drop.stopped".to_string(), file.stopped)];
        CaptureBooks { seen: file.packets, unsteered, workers, figures: Vec::new() }
    };
    let memory = vec![("capture file chunks".to_string(), FileCapture::memory_bytes() as u64)];
    let captures: Vec<(String, ReadCapture)> = vec![(path.to_string(), Box::new(books))];
    // Of a file that is left, the reader still counts what it was just handing on.
    let settled = Box::new(move || settling.figures().in_flight == 0);
    let probe = Probe { plan, meters, captures, memory, settled };
    let mut outcome = probe.run(sources, stop, true, || ())?;
    match capture.outcome() {
        Ok(summary) => log::info!("{path}: {} packets read", summary.packets),
        Err(error) => outcome.failures.push(error.to_string()),
    }
    Ok(outcome)
}

fn run_interfaces(plan: &Plan, names: &[String], stop: &Stop) -> Result<Outcome, Box<dyn Error>> {
    let seed = ahash::RandomState::new().hash_one(names) as u32;
    let mut opened: Vec<Box<dyn InterfaceCapture>> = Vec::new();
    for (number, name) in (1..).zip(names) {
        let options = CaptureOptions {
            number,
            workers: plan.workers as u32,
            seed,
            tunnels: plan.tunnels,
            snaplen: plan.snaplen,
            ring_frames: plan.ring_frames,
            busy_poll: plan.busy_poll,
            ..CaptureOptions::default()
        };
        let capture = interfaces::open(name, plan.mode, plan.force, &options).map_err(|error| error.to_string())?;
        log::info!("{}", capture.startup_line());
        opened.push(capture);
    }
    let mut shares: Vec<Vec<Share>> = (0..plan.workers).map(|_| Vec::new()).collect();
    for capture in &mut opened {
        shares.iter_mut().zip(capture.take_shares()).for_each(|(of_worker, share)| of_worker.push(share));
    }
    let captures = names.iter().cloned().zip(opened.iter().map(|capture| capture.books())).collect();
    let memory = names.iter().zip(&opened).map(|(name, capture)| {
        let (what, bytes) = capture.memory();
        (if names.len() == 1 { what.to_string() } else { format!("{what} of {name}") }, bytes)
    });
    let probe =
        Probe { plan, meters: meters(plan.workers), captures, memory: memory.collect(), settled: Box::new(|| true) };
    let sources = shares.into_iter().map(Interfaces::new).collect();
    probe.run(sources, stop, false, || opened.iter_mut().for_each(|capture| capture.detach()))
}

fn meters(workers: usize) -> Vec<Arc<MeterCounters>> {
    (0..workers).map(|_| Arc::default()).collect()
}

/// What a probe is made of, but for its sources.
struct Probe<'a> {
    plan: &'a Plan,
    meters: Vec<Arc<MeterCounters>>,
    captures: Vec<(String, ReadCapture)>,
    memory: Vec<(String, u64)>,
    /// Whether nothing is on its way any more, once the workers have ended.
    settled: Box<dyn Fn() -> bool>,
}

impl Probe<'_> {
    fn run<S: CaptureSource + Send + 'static>(
        self,
        sources: Vec<S>,
        stop: &Stop,
        is_file: bool,
        detach: impl FnOnce(),
    ) -> Result<Outcome, Box<dyn Error>> {
        let plan = self.plan;
        let (output, scheme) = open_output(plan)?;
        let (poll, handles) = handles()?;
        let rings: Vec<_> = sources.iter().map(|_| Arc::new(RecordRing::new(RING_RECORDS))).collect();
        let memory = self.memory();
        let books = Arc::new(ProbeBooks {
            captures: self.captures,
            frames_max: FRAMES_MAX,
            records_max: (rings.len() * RING_RECORDS + plan.records_max) as u64 + UNACKNOWLEDGED_MAX,
            meters: self.meters.clone(),
            export: Arc::default(),
            memory,
        });
        let publisher = publish(plan, &books, &rings, &handles.gone)?;
        let options = exporter_options(plan, is_file);
        let exporter =
            Exporter::new(options, output, scheme, rings.clone(), books.clone(), stop.clone(), (poll, &handles));
        let exporter = std::thread::Builder::new().name("exporter".into()).spawn(move || exporter.run())?;
        let selection_seed = ahash::RandomState::new().hash_one("selection");
        let mut workers = Vec::new();
        for ((index, source), (ring, counters)) in
            sources.into_iter().enumerate().zip(rings.into_iter().zip(self.meters))
        {
            let parts = WorkerParts {
                limits: plan.limits,
                tunnels: plan.tunnels,
                selection: (plan.selection.clone(), selection_seed),
                ring,
                counters,
                waits: is_file,
                wake: handles.wake.clone(),
                stop: is_file.then(|| stop.clone()),
                exporter_gone: handles.gone.clone(),
            };
            workers.push(spawn_worker(index, plan, source, parts)?);
        }
        ready(&format!("metering {}", books.label()));
        look_after(&workers, &exporter, stop, is_file);
        stopping();
        detach();
        let mut failures = Vec::new();
        for worker in workers {
            failures.extend(join_worker(worker));
        }
        let deadline = Instant::now() + SETTLE;
        while !(self.settled)() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        match exporter.join() {
            Ok(broken) => failures.extend(broken),
            Err(_) => failures.push("the exporter panicked: this is a defect of the probe".into()),
        }
        let books = publisher.finish()?;
        failures.extend(undelivered(&books));
        Ok(Outcome { books, failures })
    }

    /// All memory of the data path, by name; it is reserved before the first packet.
    fn memory(&self) -> Vec<(String, u64)> {
        let workers = self.meters.len();
        let mut memory = self.memory.clone();
        for (name, bytes) in Worker::<crate::capture::file::FileSource>::memory(&self.plan.limits) {
            memory.push((name.to_string(), (bytes * workers) as u64));
        }
        memory.push(("rings to the exporter".into(), (RecordRing::memory_bytes(RING_RECORDS) * workers) as u64));
        memory.push(("export buffer".into(), Exporter::memory_bytes(self.plan.records_max) as u64));
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
        let sum = memory.iter().map(|(_, bytes)| bytes).sum();
        let terms: Vec<_> = memory.iter().map(|(name, bytes)| format!("{name} {}", mib(*bytes))).collect();
        log::info!("memory reserved: {} = {}", terms.join(" + "), mib(sum));
        memory
    }
}

fn open_output(plan: &Plan) -> Result<(Output, Option<Scheme>), Box<dyn Error>> {
    Ok(match &plan.destination {
        Destination::Collector(endpoint) => {
            let options =
                SessionOptions { endpoint: endpoint.clone(), tls: plan.tls.clone(), reconnect: plan.reconnect };
            (Output::Collector(Box::new(Session::new(options, Instant::now())?)), Some(endpoint.scheme))
        }
        Destination::Dump(format) => (Output::Dump(Dump::new(*format)), None),
        Destination::File(path) => (Output::File(FileOutput::create(path)?), None),
    })
}

fn exporter_options(plan: &Plan, is_file: bool) -> ExporterOptions {
    ExporterOptions {
        domain: plan.domain,
        records_max: plan.records_max,
        drain_timeout: plan.drain_timeout,
        books_interval: plan.books_interval,
        template_interval: plan.template_interval,
        template: plan.template.clone(),
        sampling: plan.selection.sampling,
        mtu: plan.mtu,
        waits: is_file,
    }
}

fn publish(
    plan: &Plan,
    books: &Arc<ProbeBooks>,
    rings: &[Arc<RecordRing>],
    gone: &Arc<std::sync::atomic::AtomicBool>,
) -> io::Result<Publisher> {
    let (books, rings, gone) = (books.clone(), rings.to_vec(), gone.clone());
    let snapshot = move || {
        let ended = rings.iter().all(|ring| ring.finished.load(Ordering::Acquire));
        books.books(match (gone.load(Ordering::Acquire), ended) {
            (true, true) => When::Ended,
            (false, true) => When::Draining,
            _ => When::Running,
        })
    };
    let publisher = Publisher::start(snapshot, plan.stats_json.clone(), plan.metrics)?;
    if let Some(address) = publisher.metrics() {
        log::info!("metrics at http://{address}/metrics");
    }
    Ok(publisher)
}

fn spawn_worker<S: CaptureSource + Send + 'static>(
    index: usize,
    plan: &Plan,
    source: S,
    parts: WorkerParts,
) -> io::Result<JoinHandle<io::Result<()>>> {
    let core = core_of(index, plan);
    std::thread::Builder::new().name(format!("worker {index}")).spawn(move || {
        if let Some(core) = core
            && !core_affinity::set_for_current(core)
        {
            log::warn!("worker {index} cannot be pinned to core {}: it goes on unpinned", core.id);
        }
        // Made here, so that its memory is near its core.
        Worker::new(source, parts).run()
    })
}

/// The core of a worker: as named, else from the last one down, away from where the kernel's own work begins.
fn core_of(index: usize, plan: &Plan) -> Option<core_affinity::CoreId> {
    let cores = core_affinity::get_core_ids()?;
    match plan.cores.get(index) {
        Some(id) => cores.into_iter().find(|core| core.id == *id),
        None => cores.iter().rev().cycle().nth(index).copied(),
    }
}

/// Waits for the source's end or the wish to stop.
fn look_after(
    workers: &[JoinHandle<io::Result<()>>],
    exporter: &JoinHandle<Option<String>>,
    stop: &Stop,
    is_file: bool,
) {
    loop {
        watchdog_tick();
        let ended = workers.iter().filter(|worker| worker.is_finished()).count();
        if is_file && ended == workers.len() {
            return;
        }
        // A worker on a network never ends by itself, and nothing works without the exporter.
        if (!is_file && ended > 0) || exporter.is_finished() {
            stop.set();
        }
        if stop.wait_timeout(if is_file { TICK_FILE } else { TICK }) {
            return;
        }
    }
}

fn join_worker(worker: JoinHandle<io::Result<()>>) -> Option<String> {
    match worker.join() {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("capture: {error}")),
        Err(_) => Some("a worker panicked: this is a defect of the probe".into()),
    }
}

fn undelivered(books: &Books) -> Option<String> {
    let flows = books.equations.iter().find(|equation| equation.name == "flows")?;
    let dropped: u64 = flows.terms.iter().filter(|(name, _)| name.starts_with("drop.")).map(|(_, value)| value).sum();
    (dropped > 0)
        .then(|| format!("{dropped} of {} flow records were not delivered; the books name the reasons", flows.total.1))
}
