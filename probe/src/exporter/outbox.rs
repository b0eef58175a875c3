//! What waits for one collector: Messages in memory, and in a spool where there is one, until they are acknowledged.
//!
//! Each Message has a number in this run's epoch. With a spool every Message is written there first, and memory holds the newest:
//! what is pushed out of it is read again from the disk when its turn comes. So a process that is killed loses nothing that
//! had become a Message. Without one, memory is all there is: when it is full the oldest goes, counted.
//!
//! Two streams go out, in order each, in turn where both have something: the live one from memory, and the backlog from the
//! spool. So a backlog of a day does not keep what is metered now from arriving.

#![forbid(unsafe_code)]

use super::process::Message;
use super::spool::{Account, Drained, Spool};
use super::transport::Id;
use crate::counters::Tally;
use nagare_wire::delivery::Ack;
use nagare_wire::ipfix::MessageHeader;
use nagare_wire::ipfix::export::MessageBuilder;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// What a Message in memory costs beside its octets.
const HELD_OCTETS: usize = size_of::<Held>();

/// A Message in memory.
struct Held {
    /// The Message; none where its memory was needed after it was sent.
    message: Option<Message>,
    flows: Tally,
    spooled: bool,
    acknowledged: bool,
}

/// What became of flows, since the outbox began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// Acknowledged.
    pub delivered: Tally,
    /// The oldest, let go because memory was full.
    pub buffer_full: Tally,
    /// Sent, let go because memory was full, and the connection broke before they were acknowledged.
    pub unacknowledged: Tally,
    /// Refused by the network (UDP).
    pub refused: Tally,
}

/// The queue to one collector.
pub struct Outbox {
    epoch: u64,
    /// The number of the next Message.
    next: u64,
    /// Numbers that follow on each other up to the last one.
    memory: VecDeque<Held>,
    octets: usize,
    octets_max: usize,
    /// Of `memory`, how many were sent in this session.
    sent: usize,
    spool: Option<Spool>,
    templates: Arc<Message>,
    /// Of this session: for each Observation Domain the Templates in force and the Data Records sent (RFC 7011, 3.1).
    domains: Vec<Domain>,
    backlog_turn: bool,
    fates: Fates,
    /// Numbers went that the collector will never see.
    has_gaps: bool,
    /// What goes before the Message that is to be sent.
    before: VecDeque<Message>,
    /// A Message whose Templates go first.
    described: Option<(Id, Message)>,
}

/// A Message to send: what it is known by, it, and the Templates that it needs.
type Numbered = (Id, Message, Arc<Message>);

struct Domain {
    id: u32,
    templates: Arc<Message>,
    sequence: u32,
}

impl Outbox {
    /// An empty queue of `octets_max` octets of memory for Messages of `epoch` that `templates` describe.
    pub fn new(epoch: u64, octets_max: usize, templates: Message, spool: Option<Spool>) -> Outbox {
        Outbox {
            epoch,
            next: 1,
            memory: VecDeque::new(),
            octets: 0,
            octets_max,
            sent: 0,
            spool,
            templates: Arc::new(templates),
            domains: Vec::new(),
            backlog_turn: false,
            fates: Fates::default(),
            has_gaps: false,
            before: VecDeque::new(),
            described: None,
        }
    }

    fn first(&self) -> u64 {
        self.next - self.memory.len() as u64
    }

    /// Takes a Message. Where memory is full the oldest one gives way.
    pub fn push(&mut self, mut message: Message) {
        // One that was not full must not hold the memory of a full one.
        message.bytes.shrink_to_fit();
        let number = self.next;
        let first = self.first();
        let spooled = self.spool.as_mut().is_some_and(|spool| {
            spool.in_memory(first);
            let pushed = spool.push(number, &message);
            if let Err(error) = &pushed
                && spool.write_errors == 1
            {
                log::error!("the spool refuses: {error}; Messages wait in memory alone");
            }
            pushed.is_ok()
        });
        self.next += 1;
        self.octets += message.bytes.len() + HELD_OCTETS;
        self.memory.push_back(Held { flows: message.flows, message: Some(message), spooled, acknowledged: false });
        self.take_back();
        self.make_room();
    }

    /// What the spool had to let go is memory's alone again.
    fn take_back(&mut self) {
        let first = self.first();
        for (from, to) in self.spool.as_mut().map(Spool::take_released).unwrap_or_default() {
            for number in from.max(first)..=to {
                let Some(held) = self.memory.get_mut((number - first) as usize) else { break };
                held.spooled = false;
                if held.message.is_none() && !held.acknowledged {
                    self.fates.buffer_full += held.flows;
                    (held.acknowledged, self.has_gaps) = (true, true);
                }
            }
        }
    }

    fn make_room(&mut self) {
        let mut at = 0;
        while self.octets > self.octets_max && at < self.memory.len() {
            let sent = at < self.sent;
            let held = &mut self.memory[at];
            // What the spool holds, or was sent, is not lost yet: what is left of it only waits to be acknowledged.
            if let Some(message) = held.message.take() {
                self.octets -= message.bytes.len();
                if !held.spooled && !held.acknowledged && !sent {
                    self.fates.buffer_full += std::mem::take(&mut held.flows);
                    (held.acknowledged, self.has_gaps) = (true, true);
                }
            }
            at += 1;
        }
        self.forget_front();
        // Of a collector that takes and takes, and acknowledges nothing.
        while self.octets > self.octets_max && self.memory.len() > 1 {
            let lost = self.pop_front();
            self.fates.unacknowledged += lost;
            self.has_gaps = true;
        }
    }

    /// Forgets what stands in front and needs nothing any more. The spool keeps its own.
    fn forget_front(&mut self) {
        while self.memory.front().is_some_and(|held| held.acknowledged || held.spooled && held.message.is_none()) {
            self.pop_front();
        }
    }

    /// Gives the flows that nobody else keeps.
    fn pop_front(&mut self) -> Tally {
        let Some(held) = self.memory.pop_front() else { return Tally::default() };
        self.octets -= HELD_OCTETS + held.message.map_or(0, |message| message.bytes.len());
        self.sent = self.sent.saturating_sub(1);
        if held.spooled || held.acknowledged { Tally::default() } else { held.flows }
    }

    /// Whether a Message of `octets` finds room without another's going.
    pub fn has_room(&self, octets: usize) -> bool {
        match &self.spool {
            Some(spool) => spool.octets() + 4 * octets as u64 <= spool.octets_max(),
            None => self.octets + octets + HELD_OCTETS <= self.octets_max,
        }
    }

    /// The next Message to send with its id, Templates before what they describe; its sequence number is this session's.
    pub fn next_message(&mut self) -> Option<(Id, Message)> {
        if self.before.is_empty() {
            if self.described.is_some() {
                return self.described.take();
            }
            let (id, mut message, templates) = self.choose()?;
            self.describe(&mut message, &templates);
            if self.before.is_empty() {
                return Some((id, message));
            }
            self.described = Some((id, message));
        }
        self.before.pop_front().map(|message| (Id { epoch: self.epoch, number: 0 }, message))
    }

    /// From the live stream and from the backlog in turn.
    fn choose(&mut self) -> Option<Numbered> {
        for backlog in [self.backlog_turn, !self.backlog_turn] {
            let next = if backlog { self.next_of_backlog() } else { self.next_live() };
            if next.is_some() {
                self.backlog_turn = !backlog;
                return next;
            }
        }
        None
    }

    fn next_live(&mut self) -> Option<Numbered> {
        while self.sent < self.memory.len() {
            let number = self.first() + self.sent as u64;
            let held = &self.memory[self.sent];
            self.sent += 1;
            let Some(message) = held.message.as_ref().filter(|_| !held.acknowledged) else { continue };
            if let Some(spool) = self.spool.as_mut().filter(|_| held.spooled) {
                spool.sent(number);
            }
            return Some((Id { epoch: self.epoch, number }, message.clone(), self.templates.clone()));
        }
        None
    }

    fn next_of_backlog(&mut self) -> Option<Numbered> {
        let before = self.first();
        let Drained { epoch, number, message, templates } = self.spool.as_mut()?.next_waiting(before)?;
        Some((Id { epoch, number }, message, templates))
    }

    /// Whether anything was not sent in this session.
    pub fn has_unsent(&self) -> bool {
        let backlog = self.spool.as_ref().is_some_and(|spool| spool.has_waiting(self.first()));
        !self.before.is_empty() || self.described.is_some() || self.sent < self.memory.len() || backlog
    }

    /// Puts the session's sequence number into a Message, and its Templates before it where others are in force: a change withdraws
    /// them first (RFC 7011, 8.1).
    fn describe(&mut self, message: &mut Message, templates: &Arc<Message>) {
        let Ok(header) = MessageHeader::read(&message.bytes) else { return };
        let found = self.domains.iter().position(|domain| domain.id == header.domain);
        let same = |old: &Arc<Message>| Arc::ptr_eq(old, templates) || old.bytes[16..] == templates.bytes[16..];
        let at = match found {
            Some(at) if same(&self.domains[at].templates) => at,
            Some(at) => {
                self.before.push_back(withdrawal(header, self.domains[at].sequence));
                self.domains[at].templates = templates.clone();
                self.announce(at, templates);
                at
            }
            None => {
                self.domains.push(Domain { id: header.domain, templates: templates.clone(), sequence: 0 });
                self.announce(self.domains.len() - 1, templates);
                self.domains.len() - 1
            }
        };
        self.domains[at].number(message);
    }

    /// Sends Templates before the next Message.
    fn announce(&mut self, at: usize, templates: &Message) {
        let mut message = templates.clone();
        self.domains[at].number(&mut message);
        self.before.push_back(message);
    }

    /// Sends the Templates again before the next Message (UDP: RFC 7011, 8.4), with the Export Time given.
    pub fn repeat_templates(&mut self, templates: &Message) {
        if !self.domains.is_empty() {
            self.announce(0, templates);
        }
    }

    /// Begins a Transport Session: everything that is not acknowledged is to be sent, the Templates first.
    pub fn begin_session(&mut self) {
        self.sent = 0;
        (self.domains, self.described) = (Vec::new(), None);
        self.before.clear();
        if let Some(spool) = &mut self.spool {
            spool.rewind();
        }
        // Templates go also where there is nothing to send yet.
        let templates = self.templates.clone();
        if let Ok(header) = MessageHeader::read(&templates.bytes) {
            self.domains.push(Domain { id: header.domain, sequence: 0, templates: templates.clone() });
            self.announce(0, &templates);
        }
    }

    /// Ends a Transport Session: what was sent and is in nobody's memory any more is lost.
    pub fn lose_session(&mut self) {
        let mut lost = Tally::default();
        for held in self.memory.iter_mut().filter(|held| held.message.is_none() && !held.spooled && !held.acknowledged)
        {
            lost += held.flows;
            held.acknowledged = true;
        }
        self.has_gaps |= lost.flows > 0;
        self.fates.unacknowledged += lost;
        self.sent = 0;
        (self.domains, self.described) = (Vec::new(), None);
        self.before.clear();
        self.forget_front();
        if let Some(spool) = &mut self.spool {
            spool.rewind();
        }
    }

    /// Notes what was acknowledged.
    pub fn acknowledge(&mut self, ack: Ack) {
        if ack.epoch == self.epoch {
            let first = self.first();
            for number in ack.first.max(first)..ack.last.saturating_add(1).min(self.next) {
                let held = &mut self.memory[(number - first) as usize];
                if !held.acknowledged && !held.spooled {
                    self.fates.delivered += held.flows;
                }
                held.acknowledged = true;
            }
            self.forget_front();
        }
        if let Some(spool) = &mut self.spool {
            spool.acknowledge(ack.epoch, ack.first, ack.last);
        }
    }

    /// Notes that the network refused a Message, which nobody will take any more (UDP).
    pub fn refuse(&mut self, id: Id) {
        let first = self.first();
        let place = id.number.checked_sub(first).map(|place| place as usize);
        let Some(held) = place.and_then(|place| self.memory.get_mut(place)).filter(|held| !held.acknowledged) else {
            return;
        };
        self.fates.refused += held.flows;
        held.acknowledged = true;
        self.forget_front();
    }

    /// What the collector need not remember any more, as SETTLED frames say it: epoch and number.
    pub fn settled(&mut self) -> Vec<(u64, u64)> {
        self.has_gaps = false;
        let mut settled: Vec<(u64, u64)> = match &self.spool {
            Some(spool) => spool.lowest().into_iter().map(|(epoch, number)| (epoch, number - 1)).collect(),
            None => Vec::new(),
        };
        let own = self.first() - 1;
        match settled.last_mut().filter(|(epoch, _)| *epoch == self.epoch) {
            Some((_, number)) => *number = own.min(*number),
            None => settled.push((self.epoch, own)),
        }
        settled
    }

    /// Epochs of earlier runs of which something waits.
    pub fn old_epochs(&self) -> BTreeSet<u64> {
        let lowest = self.spool.as_ref().map(Spool::lowest).unwrap_or_default();
        lowest.into_iter().map(|(epoch, _)| epoch).filter(|epoch| *epoch != self.epoch).collect()
    }

    /// This run's epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether numbers went that the collector waits for in vain.
    pub fn has_gaps(&self) -> bool {
        self.has_gaps
    }

    /// Whether everything was acknowledged, or is lost and counted.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.spool.as_ref().is_none_or(|spool| spool.messages() == 0)
    }

    /// Whether everything that waits is in the spool.
    pub fn is_spooled(&self) -> bool {
        self.spool.is_some() && self.memory.iter().all(|held| held.spooled || held.acknowledged)
    }

    /// Whether memory is more than half full of what is not acknowledged.
    pub fn is_filling(&self) -> bool {
        self.octets > self.octets_max / 2
    }

    /// What became of flows that are not in the spool's account.
    pub fn fates(&self) -> Fates {
        self.fates
    }

    /// Flows acknowledged, of this run and of earlier ones.
    pub fn delivered(&self) -> u64 {
        self.fates.delivered.flows + self.accounts().iter().map(|account| account.delivered.flows).sum::<u64>()
    }

    /// The spool's accounts: of this run, and of earlier ones.
    pub fn accounts(&self) -> [Account; 2] {
        self.spool.as_ref().map(Spool::accounts).unwrap_or_default()
    }

    /// The spool.
    pub fn spool(&self) -> Option<&Spool> {
        self.spool.as_ref()
    }

    /// Flows in memory that are neither acknowledged nor in the spool.
    pub fn held(&self) -> Tally {
        let held = self.memory.iter().filter(|held| !held.acknowledged && !held.spooled);
        held.fold(Tally::default(), |mut sum, held| {
            sum += held.flows;
            sum
        })
    }

    /// When the oldest Message that waits was made, seconds since 1970; of one in the spool, its segment's beginning.
    pub fn oldest_s(&self) -> Option<u32> {
        let oldest = self.memory.iter().find(|held| !held.acknowledged && !held.spooled);
        let held = oldest.and_then(|held| MessageHeader::read(&held.message.as_ref()?.bytes).ok());
        let spooled = self.spool.as_ref().and_then(Spool::oldest_s);
        held.map(|header| header.export_time).into_iter().chain(spooled).min()
    }

    /// Makes the spool safe from a power cut, now and then.
    pub fn sync(&mut self, now: Instant) {
        self.spool.iter_mut().for_each(|spool| spool.sync(now));
    }

    /// Ends: gives the flows that are lost now, those that were sent and those that were not.
    pub fn close(&mut self) -> (Tally, Tally) {
        let (mut sent, mut unsent) = (Tally::default(), Tally::default());
        for (at, held) in self.memory.iter().enumerate().filter(|(_, held)| !held.acknowledged && !held.spooled) {
            match at < self.sent {
                true => sent += held.flows,
                false => unsent += held.flows,
            }
        }
        self.memory.clear();
        self.spool.iter_mut().for_each(Spool::close);
        (sent, unsent)
    }
}

impl Domain {
    /// Gives a Message its sequence number.
    fn number(&mut self, message: &mut Message) {
        message.bytes[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        self.sequence = self.sequence.wrapping_add(message.records);
    }
}

/// A Message that withdraws all Templates of its domain (RFC 7011, 8.1).
fn withdrawal(header: MessageHeader, sequence: u32) -> Message {
    let mut builder = MessageBuilder::new(0);
    builder.push_withdrawals().expect("an empty Message has room for two withdrawals");
    let bytes = builder.finish(header.export_time, sequence, header.domain);
    Message { bytes, flows: Tally::default(), records: 0 }
}
