//! One queue with all that serves it: the Exporting Process that fills it, the outbox, and the sessions that empty it.
//!
//! A lane has one collector, or several that stand in for each other in the order in which they were named: the first that
//! answers is sent to, and a better one as soon as it answers again.

#![forbid(unsafe_code)]

use super::outbox::Outbox;
use super::process::{ExportingProcess, Message};
use super::transport::{Change, Session};
use super::{FLUSH_INTERVAL, PROCESS_ID, unix_s};
use crate::books::{ProbeBooks, When};
use crate::counters::{ExportCounters, Tally};
use mio::Registry;
use nagare_service::endpoint::Scheme;
use nagare_wire::delivery::{FromProbe, WHOLE_EPOCH};
use nagare_wire::flow::FlowRecord;
use nagare_wire::ipfix::mapping::{Book, ExporterStatistics, Process};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a collector that is left for a better one has to acknowledge what it was sent.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a collector is asked to hurry.
const HURRY_INTERVAL: Duration = Duration::from_millis(200);
/// How often the counters are brought up to date.
const ACCOUNT_INTERVAL: Duration = Duration::from_millis(20);
/// How often numbers that will not come are told of.
const SETTLE_INTERVAL: Duration = Duration::from_secs(1);

/// What lanes share of the exporter's options.
#[derive(Clone, Debug)]
pub struct LaneOptions {
    /// How often the books and the statistics are sent.
    pub books_interval: Duration,
    /// How often Templates are sent again over UDP (RFC 7011, 8.4).
    pub template_interval: Duration,
    /// How long to go on at the end without any progress.
    pub drain_timeout: Duration,
    /// When the Exporting Process began, milliseconds since 1970.
    pub started_ms: u64,
}

/// A queue and its collectors.
pub struct Lane {
    index: usize,
    options: LaneOptions,
    process: ExportingProcess,
    outbox: Outbox,
    sessions: Vec<Session>,
    /// The session that is sent to, and since when it is to be left for a better one.
    active: Option<usize>,
    leaving: Option<Instant>,
    counters: Arc<ExportCounters>,
    message_max: usize,
    flushed: Instant,
    booked: Instant,
    templated: Instant,
    hurried: Instant,
    settled: Instant,
    accounted: Instant,
    /// When records were last delivered.
    progress: Instant,
    /// Told with the first books of this run.
    gap: Option<(&'static str, u64)>,
    /// Epochs of earlier runs of which something waits.
    old_epochs: BTreeSet<u64>,
    last_books_sent: bool,
    is_closed: bool,
    taken: Tally,
}

/// What a lane is made of.
pub struct Parts {
    /// Which of the exporter's lanes it is.
    pub index: usize,
    /// Shared options.
    pub options: LaneOptions,
    /// Makes its Messages.
    pub process: ExportingProcess,
    /// Holds them.
    pub outbox: Outbox,
    /// The collectors, the best first; at least one.
    pub sessions: Vec<Session>,
    /// Its counters.
    pub counters: Arc<ExportCounters>,
    /// Octets of a Message at most.
    pub message_max: usize,
    /// A gap before this run: its name in the books, and its milliseconds.
    pub gap: Option<(&'static str, u64)>,
}

impl Lane {
    /// Puts it together; the first attempt to connect comes with the first step.
    pub fn new(parts: Parts, now: Instant) -> Lane {
        let Parts { index, options, process, outbox, sessions, counters, message_max, gap } = parts;
        let old_epochs = outbox.old_epochs();
        let recovered = outbox.spool().map(|spool| spool.waiting()[1]).unwrap_or_default();
        counters.recovered.found.set(recovered);
        counters.recovered.spooled.set(recovered);
        Lane {
            index,
            options,
            process,
            outbox,
            sessions,
            active: None,
            leaving: None,
            counters,
            message_max,
            flushed: now,
            booked: now,
            templated: now,
            hurried: now,
            settled: now,
            accounted: now,
            progress: now,
            gap,
            old_epochs,
            last_books_sent: false,
            is_closed: false,
            taken: Tally::default(),
        }
    }

    fn session(&mut self) -> Option<&mut Session> {
        self.active.and_then(|active| self.sessions.get_mut(active))
    }

    fn has_session(&self) -> bool {
        self.active.is_some_and(|active| self.sessions[active].is_open())
    }

    /// Whether a flow finds room without another's going.
    pub fn has_room(&self) -> bool {
        self.outbox.has_room(2 * self.message_max)
    }

    /// Takes a flow.
    pub fn push(&mut self, flow: &FlowRecord, now: Instant) {
        self.taken += Tally::of(flow);
        if let Some(message) = self.process.push(flow, unix_s()) {
            self.outbox.push(message);
            self.flushed = now;
        }
    }

    /// Lets the sessions go on, and chooses the one to send to.
    pub fn step(&mut self, registry: &Registry, wake: &Arc<dyn Fn() + Send + Sync>, now: Instant, books: &ProbeBooks) {
        for at in 0..self.sessions.len() {
            // A stand-in is tried when all before it have failed, and left alone while one of them is there.
            let wanted = self.sessions[..at].iter().all(|better| better.is_away() && !better.is_open());
            let session = &mut self.sessions[at];
            let idle = !session.is_open() && !session.is_trying() && !session.is_closing();
            if !wanted && self.active != Some(at) && idle {
                continue;
            }
            match session.step(registry, wake, now) {
                Some(Change::Opened) => self.counters.sessions.add(1),
                Some(Change::Lost) if self.active == Some(at) => {
                    // What came before the end need not be sent again.
                    self.take_acks(now);
                    self.lose();
                }
                Some(Change::Lost) | None => {}
            }
        }
        self.take_acks(now);
        self.choose(now, books);
    }

    fn lose(&mut self) {
        (self.active, self.leaving) = (None, None);
        self.outbox.lose_session();
    }

    /// Goes to the first collector that is there. The one before has a while to acknowledge, as what it has not acknowledged
    /// will be sent to the other.
    fn choose(&mut self, now: Instant, books: &ProbeBooks) {
        let best = self.sessions.iter().position(Session::is_open);
        if best.is_none() || best == self.active {
            self.leaving = None;
            return;
        }
        if let Some(active) = self.active {
            let since = *self.leaving.get_or_insert(now);
            if !self.outbox.is_empty() && now.duration_since(since) < LEAVE_TIMEOUT {
                return self.hurry(now);
            }
            self.sessions[active].leave(now);
            self.lose();
        }
        self.active = best;
        self.begin(now, books);
    }

    fn begin(&mut self, now: Instant, books: &ProbeBooks) {
        self.outbox.begin_session();
        self.say_settled(now);
        self.templated = now;
        self.send_books(now, books, When::Running);
    }

    fn say_settled(&mut self, now: Instant) {
        self.settled = now;
        let settled = self.outbox.settled();
        let waiting = self.outbox.old_epochs();
        let over: Vec<u64> = self.old_epochs.difference(&waiting).copied().collect();
        self.old_epochs = waiting;
        let frames = settled.into_iter().chain(over.into_iter().map(|epoch| (epoch, WHOLE_EPOCH)));
        if let Some(session) = self.session() {
            frames.for_each(|(epoch, number)| session.say(FromProbe::Settled { epoch, number }));
        }
    }

    fn take_acks(&mut self, now: Instant) {
        let Some(session) = self.session() else { return };
        let (acks, refused) = (session.take_acknowledged(), session.take_refused());
        if acks.is_empty() && refused.is_empty() {
            return;
        }
        let before = self.outbox.delivered();
        acks.into_iter().for_each(|ack| self.outbox.acknowledge(ack));
        refused.into_iter().for_each(|id| self.outbox.refuse(id));
        // Templates and books alone are none: a collector that breaks each session off has them, too.
        if self.outbox.delivered() > before {
            self.progress = now;
        }
    }

    /// Sends as much as the session has room for.
    pub fn send(&mut self, now: Instant) {
        if now.duration_since(self.flushed) >= FLUSH_INTERVAL {
            self.flush(now);
        }
        if self.leaving.is_some() || !self.has_session() {
            return;
        }
        self.repeat_templates(now);
        let Some(session) = self.active.and_then(|active| self.sessions.get_mut(active)) else { return };
        while session.has_room() {
            let Some((id, message)) = self.outbox.next_message() else { break };
            session.send(id, &message.bytes);
            self.counters.messages.add(1);
            self.counters.octets.add(message.bytes.len() as u64);
            self.counters.records.add(u64::from(message.records));
        }
        session.write();
        if self.outbox.is_filling() {
            self.hurry(now);
        }
        if now.duration_since(self.settled) >= SETTLE_INTERVAL
            && (self.outbox.has_gaps() || self.old_epochs != self.outbox.old_epochs())
        {
            self.say_settled(now);
        }
        // A datagram is delivered when the kernel has it.
        self.take_acks(now);
    }

    fn repeat_templates(&mut self, now: Instant) {
        let datagram = self.session().is_some_and(|session| session.is_datagram());
        if datagram && now.duration_since(self.templated) >= self.options.template_interval {
            self.flush(now);
            let templates = self.process.templates(unix_s());
            self.outbox.repeat_templates(&templates);
            self.templated = now;
        }
    }

    fn hurry(&mut self, now: Instant) {
        if now.duration_since(self.hurried) < HURRY_INTERVAL {
            return;
        }
        self.hurried = now;
        if let Some(session) = self.session() {
            session.say(FromProbe::Flush);
            session.write();
        }
    }

    /// Makes what was pushed a Message, full or not.
    pub fn flush(&mut self, now: Instant) {
        self.flushed = now;
        if let Some(message) = self.process.flush(unix_s()) {
            self.outbox.push(message);
        }
    }

    /// Sends the books when it is time.
    pub fn report(&mut self, now: Instant, books: &ProbeBooks, when: When) {
        if self.has_session() && now.duration_since(self.booked) >= self.options.books_interval {
            self.send_books(now, books, when);
        }
    }

    fn send_books(&mut self, now: Instant, books: &ProbeBooks, when: When) {
        self.booked = now;
        self.account(now);
        let not_sent = books.not_sent(self.index);
        let process_id = PROCESS_ID + self.index as u32;
        let statistics = ExporterStatistics {
            process_id,
            init_time_ms: self.options.started_ms,
            messages: self.counters.messages.get(),
            octets: self.counters.octets.get(),
            records: self.counters.records.get(),
            not_sent_flows: not_sent.flows,
            not_sent_packets: not_sent.packets,
            not_sent_octets: not_sent.octets,
        };
        let mut terms = books.terms(self.index, when);
        terms.extend(self.gap.take().map(|(name, value)| Book {
            process: Process::Exporting,
            process_id,
            name: name.into(),
            value,
        }));
        for message in self.process.push_books(&terms, &statistics, unix_s()) {
            self.outbox.push(message);
        }
        self.flushed = now;
    }

    /// Brings the counters up to what the outbox knows, now and then: that goes through everything that waits.
    pub fn account_sometimes(&mut self, now: Instant) {
        if now.duration_since(self.accounted) >= ACCOUNT_INTERVAL {
            self.account(now);
        }
    }

    /// Brings the counters up to what the outbox knows. Stocks go before what they become.
    fn account(&mut self, now: Instant) {
        self.accounted = now;
        let (fates, [own, old]) = (self.outbox.fates(), self.outbox.accounts());
        let counters = &self.counters;
        if let Some(spool) = self.outbox.spool() {
            let [waiting, recovered] = spool.waiting();
            counters.spooled.set(waiting);
            counters.recovered.spooled.set(recovered);
            counters.spool_octets.set(spool.octets());
            counters.spool_messages.set(spool.messages());
            counters.spool_write_errors.set(spool.write_errors);
            counters.spool_torn_octets.set(spool.torn_octets);
        }
        counters.taken.set(self.taken);
        let mut delivered = fates.delivered;
        delivered += own.delivered;
        counters.delivered.set(delivered);
        counters.buffer_full.set(fates.buffer_full);
        counters.unacknowledged.set(fates.unacknowledged);
        counters.send_failed.set(fates.refused);
        counters.spool_full.set(own.full);
        counters.spool_damaged.set(own.damaged);
        counters.recovered.delivered.set(old.delivered);
        counters.recovered.full.set(old.full);
        counters.recovered.damaged.set(old.damaged);
        counters.held.set(self.outbox.held().flows);
        let now_s = unix_s();
        let lag = self.outbox.oldest_s().map_or(0, |oldest| now_s.saturating_sub(oldest));
        counters.lag_ms.set(u64::from(lag) * 1000);
        self.outbox.sync(now);
    }

    /// Whether waiting for the collector has no sense any more: it is away for long, or the end has begun and nothing moves.
    pub fn has_given_up(&self, ending: Option<Instant>, now: Instant) -> bool {
        let away = self.sessions.iter().map(|session| session.away(now)).min().unwrap_or_default();
        away > self.options.drain_timeout || self.is_stuck(ending, now)
    }

    /// Whether the end has begun, and the collector acknowledged nothing for the drain timeout.
    pub fn is_stuck(&self, ending: Option<Instant>, now: Instant) -> bool {
        let since = ending.map(|ending| ending.max(self.progress));
        since.is_some_and(|since| now.saturating_duration_since(since) > self.options.drain_timeout)
    }

    /// Whether there is something to send and room for it.
    pub fn is_busy(&self) -> bool {
        self.leaving.is_none()
            && self.active.is_some_and(|active| self.sessions[active].has_room())
            && self.outbox.has_unsent()
    }

    /// Ends step by step, when no more flows come: the Message begun, the acknowledgements, the last books, the close. Says when
    /// all is done, or nothing more can be.
    pub fn drain(&mut self, ending: Option<Instant>, now: Instant, books: &ProbeBooks) -> bool {
        self.flush(now);
        if self.is_closed || self.is_stuck(ending, now) {
            return !self.sessions.iter().any(Session::is_closing);
        }
        if !self.has_session() {
            // What is safe on disk need not wait for a collector that is away.
            let trying = self.sessions.iter().any(|session| session.is_trying() || session.may_come());
            return !trying && (self.outbox.is_empty() || self.outbox.is_spooled());
        }
        self.hurry(now);
        if !self.outbox.is_empty() {
            return false;
        }
        match self.last_books_sent {
            true => self.end_session(now),
            false => self.send_books(now, books, When::Draining),
        }
        self.last_books_sent = true;
        false
    }

    fn end_session(&mut self, now: Instant) {
        self.is_closed = true;
        self.say_settled(now);
        let epoch = self.outbox.epoch();
        if let Some(session) = self.session() {
            session.say(FromProbe::Settled { epoch, number: WHOLE_EPOCH });
            session.close(now);
            session.write();
        }
    }

    /// Gives up what is left: counted as lost, but for what the spool keeps.
    pub fn close(&mut self, now: Instant) {
        self.flush(now);
        self.take_acks(now);
        let (sent, unsent) = self.outbox.close();
        self.account(now);
        self.counters.unacknowledged.add(sent);
        self.counters.undelivered.add(unsent);
        self.counters.held.set(0);
        let spooled = self.counters.spooled.get().flows + self.counters.recovered.spooled.get().flows;
        if spooled > 0 {
            let dir = self.outbox.spool().map(|spool| spool.directory().display().to_string()).unwrap_or_default();
            log::warn!("{spooled} flow records wait in {dir}: the next start sends them");
        }
    }
}

/// Octets of a Message over these transports.
pub fn message_max(schemes: impl Iterator<Item = Scheme>, mtu: usize) -> usize {
    let over = |scheme| match scheme {
        Scheme::Udp => mtu.saturating_sub(super::UDP_OVERHEAD),
        Scheme::Tcp | Scheme::Tls => super::STREAM_MESSAGE_MAX,
    };
    schemes.map(over).min().unwrap_or(super::STREAM_MESSAGE_MAX)
}

/// The Templates of a run, with which its outbox and its spool begin.
pub fn templates(process: &mut ExportingProcess) -> Message {
    process.begin_session(unix_s()).1
}
