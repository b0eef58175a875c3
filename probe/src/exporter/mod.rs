//! The exporter: one thread that takes records from the workers' rings, batches them into Messages and sends them.

pub mod identity;
pub mod lane;
pub mod outbox;
pub mod output;
pub mod process;
pub mod spool;
pub mod transport;

use crate::books::{ProbeBooks, When};
use crate::counters::{ExportCounters, Tally};
use crate::worker::RecordRing;
use identity::Identity;
use lane::Lane;
use mio::{Events, Poll, Token, Waker};
use nagare_service::run::Stop;
use nagare_service::tls::Client;
use nagare_wire::flow::FlowRecord;
use nagare_wire::ipfix::export::Sampling;
use nagare_wire::ipfix::field::FlowTemplate;
use output::{Dump, FileOutput};
use process::{ExportingProcess, Message};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long the exporter sleeps when nobody wakes it.
const TICK: Duration = Duration::from_millis(20);
/// A Message that is not full is sent, and spooled, after this.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Messages over a stream: as long as a TLS record holds, which is where encryption is fastest.
const STREAM_MESSAGE_MAX: usize = 16_000;
/// Records made into Messages in one round, so that the sockets are served in between.
const ROUND_RECORDS: usize = 8192;
/// Octets of the headers of IPv6 and UDP before a Message.
pub const UDP_OVERHEAD: usize = 48;
/// exportingProcessId of the first queue's Exporting Process; the next ones follow.
const PROCESS_ID: u32 = 1;

/// Where records go.
pub enum Output {
    /// To collectors.
    Collectors(Collectors),
    /// To an IPFIX File, in Messages of this process.
    File(FileOutput, Box<ExportingProcess>),
    /// To standard output.
    Dump(Dump),
}

/// Queues, each with its collectors.
pub struct Collectors {
    /// The queues; at least one.
    pub lanes: Vec<Lane>,
    /// Which of them a record goes to.
    pub spread: Spread,
    /// Who the probe is to them.
    pub identity: Identity,
    /// What is shown to them and trusted of them, where any is `tls://`.
    pub certificates: Option<Arc<Client>>,
}

/// Which queue a record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// To every one.
    All,
    /// To one, by the hash of its flow.
    Balance,
}

/// What the Exporting Process of an output needs.
#[derive(Clone, Debug)]
pub struct ProcessOptions {
    /// Observation Domain ID of all Messages.
    pub domain: u32,
    /// The fields of flows.
    pub template: FlowTemplate,
    /// How packets or flows are sampled, to be told with the Templates.
    pub sampling: Option<Sampling>,
}

impl ProcessOptions {
    /// A process that makes Messages of at most `message_max` octets.
    pub fn process(&self, message_max: usize) -> ExportingProcess {
        ExportingProcess::new(self.domain, message_max, self.template.clone()).with_sampling(self.sampling)
    }
}

/// The exporter thread's state.
pub struct Exporter {
    output: Output,
    rings: Vec<Arc<RecordRing>>,
    counters: Arc<ExportCounters>,
    books: Arc<ProbeBooks>,
    poll: Poll,
    waker: Arc<dyn Fn() + Send + Sync>,
    gone: Arc<AtomicBool>,
    /// The source is a file: it waits where the buffer is full, as long as the collector may come back in time.
    waits: bool,
    /// When the end began: the wish to stop, or the end of the workers.
    ending: Option<Instant>,
    /// Why the output takes nothing any more.
    broken: Option<String>,
    stop: Stop,
}

/// What [`Exporter::new`] gives beside the exporter.
pub struct Handles {
    /// Wakes the exporter.
    pub wake: Arc<dyn Fn() + Send + Sync>,
    /// Set when the exporter has ended.
    pub gone: Arc<AtomicBool>,
}

/// The means of waking an exporter that is not made yet: workers are made first.
///
/// # Errors
/// No file descriptor is left.
pub fn handles() -> io::Result<(Poll, Handles)> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), Token(0))?;
    let wake = Arc::new(move || {
        if let Err(error) = waker.wake() {
            log::debug!("the exporter was not woken: {error}"); // It looks for itself after a TICK.
        }
    });
    Ok((poll, Handles { wake, gone: Arc::new(AtomicBool::new(false)) }))
}

struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Exporter {
    /// Puts it together; `waits`: the source is a file, which waits where the buffer is full.
    pub fn new(
        output: Output,
        rings: Vec<Arc<RecordRing>>,
        books: Arc<ProbeBooks>,
        waits: bool,
        stop: Stop,
        (poll, handles): (Poll, &Handles),
    ) -> Exporter {
        Exporter {
            output,
            rings,
            counters: books.exports[0].1.clone(),
            books,
            poll,
            waker: handles.wake.clone(),
            gone: handles.gone.clone(),
            waits,
            ending: None,
            broken: None,
            stop,
        }
    }

    /// Sends until the workers have ended and everything is delivered, or cannot be. Gives what went wrong for good.
    pub fn run(mut self) -> Option<String> {
        let _gone = Gone(self.gone.clone());
        if let Output::File(file, process) = &mut self.output {
            let (_, templates) = process.begin_session(unix_s());
            write_file(file, &templates, &self.counters, &mut self.broken);
        }
        loop {
            // Asked before the rings are emptied: what comes after the answer is "no" is seen in the next round.
            let workers_ended = self.rings.iter().all(|ring| ring.finished.load(Ordering::Acquire));
            let now = Instant::now();
            if workers_ended || self.stop.is_set() {
                self.ending.get_or_insert(now);
            }
            let busy = match self.output {
                Output::Collectors(_) => self.round_of_collectors(now),
                Output::File(..) => self.round_of_file(),
                Output::Dump(_) => self.round_of_dump(),
            };
            if self.broken.is_some() {
                self.stop.set(); // Metering on would only count what nobody gets.
            }
            if workers_ended && self.is_done(now) {
                self.close(now);
                return self.broken;
            }
            // Else a worker, the socket or the time wakes us.
            if !busy {
                self.wait();
            }
        }
    }

    /// One round with all queues; says whether there is more to do at once.
    fn round_of_collectors(&mut self, now: Instant) -> bool {
        let Output::Collectors(collectors) = &mut self.output else { return false };
        let registry = self.poll.registry();
        collectors.lanes.iter_mut().for_each(|lane| lane.step(registry, &self.waker, now, &self.books));
        let mut more = false;
        for ring in &self.rings {
            for taken in 0.. {
                // A file waits for the slowest, as long as that may move; what a network brings comes in any case.
                let full = |lane: &Lane| !lane.has_room() && !lane.has_given_up(self.ending, now);
                if taken % 256 == 0 && self.waits && collectors.lanes.iter().any(full) {
                    break;
                }
                let Some(flow) = ring.queue.pop() else { break };
                collectors.push(&flow, now);
                if taken >= ROUND_RECORDS {
                    more = true;
                    break;
                }
            }
        }
        collectors.identity.alive(now, unix_ms());
        for lane in &mut collectors.lanes {
            lane.report(now, &self.books, if self.ending.is_some() { When::Draining } else { When::Running });
            lane.send(now);
            lane.account_sometimes(now);
            more |= lane.is_busy();
        }
        more
    }

    fn round_of_file(&mut self) -> bool {
        let Output::File(file, process) = &mut self.output else { return false };
        let mut more = false;
        for ring in &self.rings {
            for _ in 0..ROUND_RECORDS {
                let Some(flow) = ring.queue.pop() else { break };
                more = true;
                if let Some(message) = process.push(&flow, unix_s()) {
                    write_file(file, &message, &self.counters, &mut self.broken);
                }
            }
        }
        if let Some(message) = (!more).then(|| process.flush(unix_s())).flatten() {
            write_file(file, &message, &self.counters, &mut self.broken);
        }
        more
    }

    fn round_of_dump(&mut self) -> bool {
        let Output::Dump(dump) = &mut self.output else { return false };
        let mut more = false;
        for ring in &self.rings {
            for _ in 0..ROUND_RECORDS {
                let Some(flow) = ring.queue.pop() else { break };
                more = true;
                if self.broken.is_some() {
                    self.counters.send_failed.add(Tally::of(&flow));
                } else if let Err(error) = dump.write(&flow) {
                    self.broken = Some(error.to_string());
                }
            }
        }
        if self.broken.is_none()
            && !more
            && let Err(error) = dump.flush()
        {
            self.broken = Some(error.to_string());
        }
        self.counters.delivered.add(dump.take_written());
        self.counters.send_failed.add(dump.take_failed());
        more
    }

    /// After the workers' end: whether nothing is left to do.
    fn is_done(&mut self, now: Instant) -> bool {
        let empty = self.rings.iter().all(|ring| ring.queue.is_empty());
        let Output::Collectors(collectors) = &mut self.output else { return empty };
        let ending = self.ending;
        if !empty {
            // A file's records may wait for a queue that has given up.
            return collectors.lanes.iter().all(|lane| lane.is_stuck(ending, now));
        }
        // Every queue is asked, so that all end at the same time.
        let done = collectors.lanes.iter_mut().map(|lane| lane.drain(ending, now, &self.books));
        done.filter(|done| !done).count() == 0
    }

    fn close(&mut self, now: Instant) {
        match &mut self.output {
            Output::Collectors(collectors) => {
                for ring in &self.rings {
                    std::iter::from_fn(|| ring.queue.pop()).for_each(|flow| collectors.push(&flow, now));
                }
                collectors.lanes.iter_mut().for_each(|lane| lane.close(now));
                collectors.identity.ended(unix_ms());
            }
            Output::File(file, process) => {
                if let Some(message) = process.flush(unix_s()) {
                    write_file(file, &message, &self.counters, &mut self.broken);
                }
            }
            // With nothing left to take it writes what it holds.
            Output::Dump(_) => {
                self.round_of_dump();
            }
        }
    }

    fn wait(&mut self) {
        let mut events = Events::with_capacity(16);
        if let Err(error) = self.poll.poll(&mut events, Some(TICK))
            && error.kind() != io::ErrorKind::Interrupted
        {
            log::error!("poll: {error}");
            std::thread::sleep(TICK);
        }
    }
}

impl Collectors {
    /// Gives a record to the queues that it is for.
    fn push(&mut self, flow: &FlowRecord, now: Instant) {
        match self.spread {
            Spread::All => self.lanes.iter_mut().for_each(|lane| lane.push(flow, now)),
            Spread::Balance => {
                let hash = nagare_wire::steer::hash(&flow.key, 0);
                let queue = nagare_wire::steer::worker(hash, self.lanes.len() as u32);
                self.lanes[queue as usize].push(flow, now);
            }
        }
    }
}

/// Writes a Message to the output's file. After half a Message nothing can follow.
fn write_file(file: &mut FileOutput, message: &Message, counters: &ExportCounters, broken: &mut Option<String>) {
    counters.messages.add(1);
    counters.octets.add(message.bytes.len() as u64);
    counters.records.add(u64::from(message.records));
    let written = match broken {
        Some(_) => return counters.send_failed.add(message.flows),
        None => file.write(&message.bytes),
    };
    match written {
        Ok(()) => counters.delivered.add(message.flows),
        Err(error) => {
            counters.send_failed.add(message.flows);
            *broken = Some(error.to_string());
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    unix_time().as_millis() as u64
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Export Time: seconds since 1970, in 32 bits (RFC 7011, 3.1).
fn unix_s() -> u32 {
    unix_time().as_secs() as u32
}
