//! The exporter: one thread that takes records from the workers' rings, batches them into Messages and sends them.

pub mod output;
pub mod process;
pub mod transport;

use crate::books::{ProbeBooks, When};
use crate::counters::{ExportCounters, Tally};
use crate::worker::RecordRing;
use mio::{Events, Poll, Token, Waker};
use nagare_service::endpoint::Scheme;
use nagare_service::run::Stop;
use nagare_wire::flow::FlowRecord;
use nagare_wire::ipfix::export::Sampling;
use nagare_wire::ipfix::field::FlowTemplate;
use nagare_wire::ipfix::mapping::ExporterStatistics;
use output::{Dump, FileOutput};
use process::{ExportingProcess, Message};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use transport::{Change, Session};

/// How long the exporter sleeps when nobody wakes it.
const TICK: Duration = Duration::from_millis(20);
/// A Message that is not full is sent after this.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// Messages over a stream: as long as a TLS record holds, which is where encryption is fastest.
const STREAM_MESSAGE_MAX: usize = 16_000;
/// Records made into Messages in one round, so that the rings are emptied in between.
const ROUND_RECORDS: usize = 8192;
/// Octets of the headers of IPv6 and UDP before a Message.
pub const UDP_OVERHEAD: usize = 48;
/// exportingProcessId of the one Exporting Process.
const PROCESS_ID: u32 = 1;

/// Where records go.
pub enum Output {
    /// To a collector.
    Collector(Box<Session>),
    /// To an IPFIX File.
    File(FileOutput),
    /// To standard output.
    Dump(Dump),
}

/// How the exporter works.
pub struct ExporterOptions {
    /// Observation Domain ID of all Messages.
    pub domain: u32,
    /// Records that wait for the collector at most.
    pub records_max: usize,
    /// How long records may wait for the collector after the workers have ended, without any progress.
    pub drain_timeout: Duration,
    /// How often the books and the statistics are sent.
    pub books_interval: Duration,
    /// How often Templates are sent again over UDP (RFC 7011, 8.4).
    pub template_interval: Duration,
    /// The fields of flows.
    pub template: FlowTemplate,
    /// How packets or flows are sampled, to be told with the Templates.
    pub sampling: Option<Sampling>,
    /// The path MTU over UDP.
    pub mtu: usize,
    /// The source is a file: it waits where the buffer is full, as long as the collector may come back in time.
    pub waits: bool,
}

/// The exporter thread's state.
pub struct Exporter {
    options: ExporterOptions,
    output: Output,
    process: ExportingProcess,
    rings: Vec<Arc<RecordRing>>,
    queue: VecDeque<FlowRecord>,
    counters: Arc<ExportCounters>,
    books: Arc<ProbeBooks>,
    poll: Poll,
    waker: Arc<dyn Fn() + Send + Sync>,
    gone: Arc<AtomicBool>,
    started_ms: u64,
    flushed: Instant,
    booked: Instant,
    templated: Instant,
    /// When records were last delivered.
    progress: Instant,
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
    /// Reserves the buffer.
    pub fn new(
        options: ExporterOptions,
        output: Output,
        scheme: Option<Scheme>,
        rings: Vec<Arc<RecordRing>>,
        books: Arc<ProbeBooks>,
        stop: Stop,
        (poll, handles): (Poll, &Handles),
    ) -> Exporter {
        let message_max = match scheme {
            Some(Scheme::Udp) => options.mtu.saturating_sub(UDP_OVERHEAD),
            _ => STREAM_MESSAGE_MAX,
        };
        let now = Instant::now();
        Exporter {
            output,
            process: ExportingProcess::new(options.domain, message_max, options.template.clone())
                .with_sampling(options.sampling),
            rings,
            queue: VecDeque::with_capacity(options.records_max),
            counters: books.export.clone(),
            books,
            poll,
            waker: handles.wake.clone(),
            gone: handles.gone.clone(),
            started_ms: unix_time().as_millis() as u64,
            flushed: now,
            booked: now,
            templated: now,
            progress: now,
            ending: None,
            broken: None,
            stop,
            options,
        }
    }

    /// Memory of the buffer for so many records, bytes.
    pub fn memory_bytes(records_max: usize) -> usize {
        records_max * size_of::<FlowRecord>()
    }

    /// Sends until the workers have ended and everything is delivered, or cannot be. Gives what went wrong for good.
    pub fn run(mut self) -> Option<String> {
        let _gone = Gone(self.gone.clone());
        self.begin();
        let mut booked = false;
        loop {
            // Asked before the rings are emptied: what comes after the answer is "no" is seen in the next round.
            let workers_ended = self.rings.iter().all(|ring| ring.finished.load(Ordering::Acquire));
            let now = Instant::now();
            if workers_ended || self.stop.is_set() {
                self.ending.get_or_insert(now);
            }
            self.step(now);
            self.take(now);
            self.send(now);
            self.report(now);
            self.account(now);
            if self.broken.is_some() {
                self.stop.set(); // Metering on would only count what nobody gets.
            }
            if workers_ended && self.drain(&mut booked, now) {
                return self.broken;
            }
            // Records and room for them: there is work to do. Else a worker, the socket or the time wakes us.
            if self.queue.is_empty() || !self.has_room() {
                self.wait();
            }
        }
    }

    fn begin(&mut self) {
        if let Output::File(_) = self.output {
            let (_, templates) = self.process.begin_session(unix_s());
            self.transmit(templates);
        }
    }

    /// Lets the session go on, and begins its Messages anew where it did.
    fn step(&mut self, now: Instant) {
        let Output::Collector(session) = &mut self.output else { return };
        match session.step(self.poll.registry(), &self.waker, now) {
            Some(Change::Opened) => {
                self.counters.sessions.add(1);
                let (left, templates) = self.process.begin_session(unix_s());
                self.counters.unacknowledged.add(left);
                self.transmit(templates);
                self.send_books(now);
                self.templated = now;
            }
            Some(Change::Lost(flows)) => {
                self.counters.unacknowledged.add(flows);
                let begun = self.process.abandon(unix_s());
                self.counters.unacknowledged.add(begun);
                if flows.flows > 0 {
                    log::warn!("{} flow records were sent and not acknowledged", flows.flows);
                }
            }
            None => {}
        }
    }

    /// Takes records from the rings, an equal share of each.
    fn take(&mut self, now: Instant) {
        let patient = self.options.waits && !self.has_given_up(now);
        for ring in &self.rings {
            for _ in 0..ring.queue.len() {
                if self.queue.len() >= self.options.records_max {
                    if patient {
                        break;
                    }
                    let oldest = self.queue.pop_front();
                    oldest.iter().for_each(|flow| self.counters.buffer_full.add(Tally::of(flow)));
                }
                self.queue.extend(ring.queue.pop());
            }
        }
    }

    /// Whether waiting has no sense any more: no session stands, or the end has begun and nothing moves.
    fn has_given_up(&self, now: Instant) -> bool {
        let Output::Collector(session) = &self.output else { return false };
        session.away(now) > self.options.drain_timeout || self.is_stuck(now)
    }

    /// Whether the end has begun, and the collector took nothing for the drain timeout.
    fn is_stuck(&self, now: Instant) -> bool {
        if !matches!(self.output, Output::Collector(_)) {
            return false; // A file or a pipe takes its time, and says when it takes no more.
        }
        let since = self.ending.map(|ending| ending.max(self.progress));
        since.is_some_and(|since| now.saturating_duration_since(since) > self.options.drain_timeout)
    }

    /// Makes Messages of the queue for as long as the output takes them.
    fn send(&mut self, now: Instant) {
        let now_s = unix_s();
        if let Output::Dump(_) = self.output {
            return self.dump();
        }
        for _ in 0..ROUND_RECORDS {
            if !self.has_room() {
                break;
            }
            let Some(flow) = self.queue.pop_front() else { break };
            if let Some(message) = self.process.push(&flow, now_s) {
                self.transmit(message);
                self.flushed = now;
            }
        }
        if now.duration_since(self.flushed) >= FLUSH_INTERVAL {
            self.flush(now);
        }
        self.write();
    }

    fn write(&mut self) {
        if let Output::Collector(session) = &mut self.output {
            session.write();
        }
    }

    fn flush(&mut self, now: Instant) {
        self.flushed = now;
        if self.has_room()
            && let Some(message) = self.process.flush(unix_s())
        {
            self.transmit(message);
        }
    }

    fn has_room(&self) -> bool {
        match &self.output {
            Output::Collector(session) => session.has_room(),
            Output::File(_) | Output::Dump(_) => true,
        }
    }

    fn dump(&mut self) {
        let Output::Dump(dump) = &mut self.output else { return };
        for _ in 0..ROUND_RECORDS {
            let Some(flow) = self.queue.pop_front() else { break };
            if self.broken.is_some() {
                self.counters.send_failed.add(Tally::of(&flow));
            } else if let Err(error) = dump.write(&flow) {
                self.broken = Some(error.to_string());
            }
        }
        if self.broken.is_none()
            && self.queue.is_empty()
            && let Err(error) = dump.flush()
        {
            self.broken = Some(error.to_string());
        }
        self.counters.delivered.add(dump.take_written());
        self.counters.send_failed.add(dump.take_failed());
    }

    fn transmit(&mut self, message: Message) {
        let counters = &self.counters;
        counters.messages.add(1);
        counters.octets.add(message.bytes.len() as u64);
        counters.records.add(u64::from(message.records));
        match &mut self.output {
            Output::Collector(session) => session.send(message),
            // After half a Message in a file nothing can follow.
            Output::File(_) if self.broken.is_some() => counters.send_failed.add(message.flows),
            Output::File(file) => match file.write(&message.bytes) {
                Ok(()) => counters.delivered.add(message.flows),
                Err(error) => {
                    counters.send_failed.add(message.flows);
                    self.broken = Some(error.to_string());
                }
            },
            Output::Dump(_) => {}
        }
    }

    /// Sends the books, and over UDP the Templates, when it is time.
    fn report(&mut self, now: Instant) {
        let Output::Collector(session) = &self.output else { return };
        if !session.has_room() {
            return;
        }
        if now.duration_since(self.booked) >= self.options.books_interval {
            self.send_books(now);
        }
        if now.duration_since(self.templated) >= self.options.template_interval && self.is_datagram() {
            self.flush(now);
            let templates = self.process.templates(unix_s());
            self.transmit(templates);
            self.templated = now;
        }
    }

    fn is_datagram(&self) -> bool {
        matches!(&self.output, Output::Collector(session) if session.is_datagram())
    }

    fn send_books(&mut self, now: Instant) {
        self.booked = now;
        let ended = self.rings.iter().all(|ring| ring.finished.load(Ordering::Acquire));
        let when = if ended { When::Draining } else { When::Running };
        let not_sent = self.books.not_sent();
        let statistics = ExporterStatistics {
            process_id: PROCESS_ID,
            init_time_ms: self.started_ms,
            messages: self.counters.messages.get(),
            octets: self.counters.octets.get(),
            records: self.counters.records.get(),
            not_sent_flows: not_sent.flows,
            not_sent_packets: not_sent.packets,
            not_sent_octets: not_sent.octets,
        };
        for message in self.process.push_books(&self.books.terms(when), &statistics, unix_s()) {
            self.transmit(message);
        }
        self.flushed = now;
    }

    fn account(&mut self, now: Instant) {
        if let Output::Collector(session) = &mut self.output {
            let delivered = session.take_delivered();
            if delivered.flows > 0 {
                self.progress = now;
            }
            self.counters.delivered.add(delivered);
            self.counters.send_failed.add(session.take_refused());
        }
        self.counters.held.set(self.queue.len() as u64);
    }

    /// Ends step by step: the queue, the acknowledgements, the last books, the close. Says when all is done.
    fn drain(&mut self, booked: &mut bool, now: Instant) -> bool {
        if self.is_stuck(now) || self.options.waits && self.has_given_up(now) {
            self.give_up();
            return true;
        }
        if !self.queue.is_empty() || self.rings.iter().any(|ring| !ring.queue.is_empty()) {
            return false;
        }
        self.flush(now);
        self.write();
        let Output::Collector(session) = &mut self.output else { return true };
        // A collector that is away is owed nothing any more: the queue is empty, and what was lost is counted.
        if session.is_closed() || !(session.is_open() || session.is_closing()) {
            return true;
        }
        if session.is_closing() || session.has_outstanding() || self.process.is_begun() {
            return false;
        }
        if *booked {
            session.close(now);
        } else {
            *booked = true;
            self.send_books(now);
        }
        self.write();
        false
    }

    fn give_up(&mut self) {
        let mut undelivered = self.process.abandon(unix_s());
        self.rings.iter().for_each(|ring| self.queue.extend(std::iter::from_fn(|| ring.queue.pop())));
        self.queue.drain(..).for_each(|flow| undelivered += Tally::of(&flow));
        if let Output::Collector(session) = &mut self.output {
            self.counters.delivered.add(session.take_delivered());
            self.counters.unacknowledged.add(session.outstanding());
        }
        self.counters.undelivered.add(undelivered);
        self.counters.held.set(0);
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

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Export Time: seconds since 1970, in 32 bits (RFC 7011, 3.1).
fn unix_s() -> u32 {
    unix_time().as_secs() as u32
}
