//! Puts the probe together: source, workers, exporter, books; runs it; takes it apart in the right order.

use crate::books::{CaptureBooks, ProbeBooks, ReadCapture, When};
use crate::capture::file::{FileCapture, FileOptions};
use crate::capture::interfaces::{self, Interfaces};
use crate::capture::{CaptureOptions, CaptureSource, InterfaceCapture, Share};
use crate::counters::{ExportCounters, MeterCounters};
use crate::exporter::identity::Identity;
use crate::exporter::lane::{self, Lane, LaneOptions, Parts};
use crate::exporter::outbox::Outbox;
use crate::exporter::output::{Dump, FileOutput};
use crate::exporter::spool::{Spool, SpoolOptions};
use crate::exporter::transport::{Session, SessionOptions};
use crate::exporter::{Collectors, Exporter, Output, ProcessOptions, Spread, handles, unix_ms};
use crate::options::{Destination, ExportChoice, Input, Plan};
use crate::worker::{RecordRing, Worker, WorkerParts};
use nagare_service::books::{Books, Publisher};
use nagare_service::endpoint::{Endpoint, Scheme};
use nagare_service::run::{Stop, hangup_on_signal, ready, stopping, watchdog_tick};
use nagare_service::tls::Client;
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
/// Octets of the shortest record.
const RECORD_OCTETS_MIN: usize = 16;
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

/// Sends what waits in the spool, and meters nothing.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn replay(plan: &Plan, stop: &Stop) -> Result<Outcome, Box<dyn Error>> {
    let (collectors, exports) = open_collectors(plan)?;
    let (poll, handles) = handles()?;
    let certificates = collectors.certificates.clone();
    let books = Arc::new(ProbeBooks { certificates, ..ProbeBooks::of_exports(exports) });
    let output = Output::Collectors(collectors);
    let exporter = Exporter::new(output, Vec::new(), books.clone(), false, stop.clone(), (poll, &handles));
    let failures: Vec<String> = exporter.run().into_iter().collect();
    let books = books.books(When::Ended);
    let failures = failures.into_iter().chain(undelivered(&books)).chain(still_spooled(&books)).collect();
    Ok(Outcome { books, failures })
}

fn still_spooled(books: &Books) -> Option<String> {
    let spools = books.equations.iter().filter(|equation| equation.name == "spool");
    let left = spools.flat_map(|equation| &equation.terms).filter(|(name, _)| name == "spooled");
    let left: u64 = left.map(|(_, flows)| flows).sum();
    (left > 0).then(|| format!("{left} flow records are still in the spool: the collector did not acknowledge them"))
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
        let (output, exports) = open_output(plan)?;
        let certificates = match &output {
            Output::Collectors(collectors) => collectors.certificates.clone(),
            Output::File(..) | Output::Dump(_) => None,
        };
        let hangup = hangup_on_signal()?;
        let (poll, handles) = handles()?;
        let rings: Vec<_> = sources.iter().map(|_| Arc::new(RecordRing::new(RING_RECORDS))).collect();
        let memory = self.memory();
        let books = Arc::new(ProbeBooks {
            captures: self.captures,
            frames_max: FRAMES_MAX,
            records_max: (rings.len() * RING_RECORDS + plan.buffer_octets / RECORD_OCTETS_MIN) as u64
                + UNACKNOWLEDGED_MAX,
            meters: self.meters.clone(),
            exports,
            balanced: plan.export == ExportChoice::Balance && queues(plan).len() > 1,
            memory,
            certificates: certificates.clone(),
        });
        let publisher = publish(plan, &books, &rings, &handles.gone)?;
        let exporter = Exporter::new(output, rings.clone(), books.clone(), is_file, stop.clone(), (poll, &handles));
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
        look_after(&workers, &exporter, stop, is_file, || {
            let asked = hangup.take();
            if let Some(certificates) = &certificates {
                certificates.tick(Instant::now(), asked);
            }
        });
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
        memory.push(("export buffer".into(), (self.plan.buffer_octets * queues(self.plan).len()) as u64));
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
        let sum = memory.iter().map(|(_, bytes)| bytes).sum();
        let terms: Vec<_> = memory.iter().map(|(name, bytes)| format!("{name} {}", mib(*bytes))).collect();
        log::info!("memory reserved: {} = {}", terms.join(" + "), mib(sum));
        memory
    }
}

/// The queues of a plan, each with its name and its collectors.
fn queues(plan: &Plan) -> Vec<(String, Vec<Endpoint>)> {
    let Destination::Collectors(endpoints) = &plan.destination else { return Vec::new() };
    match plan.export {
        ExportChoice::Failover => vec![("main".into(), endpoints.clone())],
        ExportChoice::Balance | ExportChoice::Replicate => {
            endpoints.iter().map(|endpoint| (endpoint.to_string(), vec![endpoint.clone()])).collect()
        }
    }
}

/// The counters of queues, by their names.
pub type Exports = Vec<(String, Arc<ExportCounters>)>;

fn open_output(plan: &Plan) -> Result<(Output, Exports), Box<dyn Error>> {
    let alone = |output, name: &str| Ok((output, vec![(name.to_string(), Arc::default())]));
    match &plan.destination {
        Destination::Collectors(_) => {
            open_collectors(plan).map(|(output, exports)| (Output::Collectors(output), exports))
        }
        Destination::Dump(format) => alone(Output::Dump(Dump::new(*format)), "dump"),
        Destination::File(path) => {
            let process = process_options(plan).process(lane::message_max(std::iter::empty(), plan.mtu));
            alone(Output::File(FileOutput::create(path)?, Box::new(process)), "file")
        }
    }
}

fn process_options(plan: &Plan) -> ProcessOptions {
    ProcessOptions { domain: plan.domain, template: plan.template.clone(), sampling: plan.selection.sampling }
}

/// The queues of a plan, with their spools and what earlier runs left in them, and the counters of each by its name.
///
/// # Errors
/// A spool or a certificate cannot be used.
pub fn open_collectors(plan: &Plan) -> Result<(Collectors, Exports), Box<dyn Error>> {
    let now_ms = unix_ms();
    let identity = match &plan.spool {
        Some(dir) => Identity::in_spool(dir, now_ms).map_err(|error| format!("--spool: {error}"))?,
        None => Identity::new(now_ms),
    };
    if let Some(gap) = identity.gap {
        let how = if gap.killed { "was killed" } else { "was stopped" };
        log::info!("the probe {how} {:.1} s ago: nothing was metered since", gap.ms as f64 / 1000.0);
    }
    let any_tls = queues(plan).iter().flat_map(|(_, endpoints)| endpoints).any(|to| to.scheme == Scheme::Tls);
    let certificates = any_tls.then(|| Client::new(plan.tls.clone()).map(Arc::new)).transpose()?;
    let options = LaneOptions {
        books_interval: plan.books_interval,
        template_interval: plan.template_interval,
        drain_timeout: plan.drain_timeout,
        started_ms: now_ms,
    };
    let (mut lanes, mut exports) = (Vec::new(), Vec::new());
    for (index, (name, endpoints)) in queues(plan).into_iter().enumerate() {
        let counters = Arc::<ExportCounters>::default();
        lanes.push(open_lane(plan, &options, index, (&name, &endpoints), &identity, &certificates, counters.clone())?);
        exports.push((name, counters));
    }
    let spread = if plan.export == ExportChoice::Balance { Spread::Balance } else { Spread::All };
    Ok((Collectors { lanes, spread, identity, certificates }, exports))
}

fn open_lane(
    plan: &Plan,
    options: &LaneOptions,
    index: usize,
    (name, endpoints): (&str, &[Endpoint]),
    identity: &Identity,
    certificates: &Option<Arc<Client>>,
    counters: Arc<ExportCounters>,
) -> Result<Lane, Box<dyn Error>> {
    let now = Instant::now();
    let message_max = lane::message_max(endpoints.iter().map(|endpoint| endpoint.scheme), plan.mtu);
    let mut process = process_options(plan).process(message_max);
    let templates = lane::templates(&mut process);
    let spool = plan.spool.as_ref().map(|dir| {
        let options = SpoolOptions { dir: dir.join(directory(name)), octets_max: plan.spool_max };
        Spool::open(options, identity.epoch, templates.clone()).map_err(|error| format!("--spool: {error}"))
    });
    let spool = spool.transpose()?;
    if let Some(waiting) = spool.as_ref().map(|spool| spool.waiting()[1].flows).filter(|flows| *flows > 0) {
        log::info!("{waiting} flow records of earlier runs wait in the spool for {name}");
    }
    let sessions =
        endpoints.iter().map(|endpoint| Session::new(session_options(plan, endpoint, identity, certificates), now));
    let gap = identity.gap.map(|gap| (if gap.killed { "gap.killed_ms" } else { "gap.stopped_ms" }, gap.ms));
    Ok(Lane::new(
        Parts {
            index,
            options: options.clone(),
            process,
            outbox: Outbox::new(identity.epoch, plan.buffer_octets, templates, spool),
            sessions: sessions.collect::<Result<_, _>>()?,
            counters,
            message_max,
            gap,
        },
        now,
    ))
}

/// The directory of a queue within the spool.
fn directory(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' };
    name.chars().map(plain).collect()
}

fn session_options(
    plan: &Plan,
    endpoint: &Endpoint,
    identity: &Identity,
    certificates: &Option<Arc<Client>>,
) -> SessionOptions {
    SessionOptions {
        endpoint: endpoint.clone(),
        tls: certificates.clone(),
        reconnect: plan.reconnect,
        dead_peer: plan.dead_peer,
        bind: plan.bind,
        sndbuf: plan.sndbuf,
        probe: Some(identity.probe),
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
    tick: impl Fn(),
) {
    loop {
        watchdog_tick();
        tick();
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

fn undelivered(books: &Books) -> Vec<String> {
    let flows = books.equations.iter().filter(|equation| matches!(equation.name, "flows" | "balance" | "spool"));
    flows
        .filter_map(|equation| {
            let drops = equation.terms.iter().filter(|(name, _)| name.starts_with("drop."));
            let dropped: u64 = drops.map(|(_, value)| value).sum();
            let to = equation.labels.first().map(|(_, name)| format!(" to {name}")).unwrap_or_default();
            let total = equation.total.1;
            (dropped > 0).then(|| {
                format!("{dropped} of {total} flow records were not delivered{to}; the books name the reasons")
            })
        })
        .collect()
}
