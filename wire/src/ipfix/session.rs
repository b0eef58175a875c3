//! The Collecting Process's side of a Transport Session: its Templates, its sequence numbers, its records.

use super::Transport;
use super::codec::{Reader, unsigned};
use super::element::SYSTEM_INIT_TIME_MILLISECONDS;
use super::message::{
    FIRST_DATA_SET, FieldSpecifier, Malformed, MessageHeader, OPTIONS_TEMPLATE_SET, Set, TEMPLATE_SET, TemplateRecord,
    sets,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Templates that one session may hold, over all its Observation Domains.
pub const TEMPLATES_MAX: usize = 4096;
/// Fields that the Templates of one session may hold together: four times the largest Template of RFC 5471, 3.5.3. With 8
/// octets a field a session costs half a megabyte at most.
pub const TEMPLATE_FIELDS_MAX: usize = 1 << 16;
/// The same over UDP, where any address costs a session.
pub const TEMPLATE_FIELDS_MAX_DATAGRAM: usize = 1 << 14;
/// Observation Domains whose sequence is followed in one session; records of further ones are read all the same.
pub const DOMAINS_MAX: usize = 4096;
/// A jump of more records than this is a restart, not a loss (RFC 7011, 11.6: no jump is followed blindly).
const LOSS_MAX: u32 = 1 << 24;
/// Notes kept of one Message; a hostile one could earn thousands.
const NOTES_MAX: usize = 8;

/// One session with one Exporter. Templates of one session are never used in another (RFC 7011, 8).
pub struct TransportSession {
    transport: Transport,
    /// By Observation Domain, whether it is an Options Template, and ID: what one withdrawal of all takes lies together.
    templates: BTreeMap<(u32, bool, u16), Arc<TemplateRecord>>,
    template_fields: usize,
    domains: HashMap<u32, Domain>,
}

#[derive(Clone, Copy, Default)]
struct Domain {
    sequence: Sequence,
    init_time_ms: Option<u64>,
}

/// The sequence number that the next Message of a domain should have.
#[derive(Clone, Copy, Default)]
enum Sequence {
    /// No Message yet.
    #[default]
    Unseen,
    /// The last Message held records that could not be counted.
    Unknown,
    Next(u32),
}

/// What became of one Message.
#[derive(Clone, Debug)]
pub struct Received {
    /// Its header.
    pub header: MessageHeader,
    /// Data Records handed on, those of Options Templates included.
    pub records: u64,
    /// Data Records that the sequence says were lost before it.
    pub lost: u64,
    /// Data Sets passed over because their Template is not known; how many records they held cannot be told.
    pub sets_without_template: u64,
    /// Template Records refused because the session holds too many, or because they have more fields than octets.
    pub template_refusals: u64,
    /// What a log should say: withdrawals of unknown Templates, redefinitions, refusals, jumps.
    pub notes: Vec<String>,
}

/// A Data Record and its Template.
#[derive(Clone, Copy, Debug)]
pub struct DataRecord<'a> {
    template: &'a TemplateRecord,
    bytes: &'a [u8],
    /// systemInitTimeMilliseconds of the Observation Domain, where an options record named it.
    pub init_time_ms: Option<u64>,
}

impl<'a> DataRecord<'a> {
    /// Whether an Options Template describes it.
    pub fn is_options(&self) -> bool {
        self.template.scopes > 0
    }

    /// Its Template.
    pub fn template(&self) -> &'a TemplateRecord {
        self.template
    }

    /// Its fields in the Template's order, each with its octets.
    pub fn fields(&self) -> impl Iterator<Item = (FieldSpecifier, &'a [u8])> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        self.template.fields.iter().map_while(move |field| Some((*field, reader.field(field.length)?)))
    }
}

impl TransportSession {
    /// A session without Templates.
    pub fn new(transport: Transport) -> TransportSession {
        TransportSession { transport, templates: BTreeMap::new(), template_fields: 0, domains: HashMap::new() }
    }

    /// Templates held.
    pub fn templates(&self) -> usize {
        self.templates.len()
    }

    /// Decodes one whole Message and hands its Data Records on, in order.
    ///
    /// On an error the caller discards what this Message handed on (RFC 7011, 9.1) and, on a stream, ends the session.
    pub fn receive(
        &mut self,
        message: &[u8],
        mut each: impl FnMut(&MessageHeader, DataRecord<'_>),
    ) -> Result<Received, Malformed> {
        let header = MessageHeader::read(message)?;
        // Lengths first: nothing of a Message is believed whose Sets do not add up.
        sets(message).try_for_each(|set| set.map(drop))?;
        let mut received =
            Received { header, records: 0, lost: 0, sets_without_template: 0, template_refusals: 0, notes: Vec::new() };
        for set in sets(message) {
            let set = set?;
            match set.id {
                TEMPLATE_SET | OPTIONS_TEMPLATE_SET => self.template_set(header.domain, set, &mut received)?,
                _ => self.data_set(set, &mut received, &mut each)?,
            }
        }
        self.follow_sequence(&mut received);
        Ok(received)
    }

    fn template_set(&mut self, domain: u32, set: Set<'_>, received: &mut Received) -> Result<(), Malformed> {
        let mut reader = Reader::new(set.content);
        // Fewer than four octets are padding (RFC 7011, 3.3.1), and so is an ID of 0.
        while reader.rest().len() >= 4 && reader.rest()[..2] != [0, 0] {
            let at = set.offset + 4 + set.content.len() - reader.rest().len();
            let record = TemplateRecord::read(&mut reader, set.id == OPTIONS_TEMPLATE_SET);
            let record = record.ok_or(Malformed::Template(at))?;
            if record.fields.is_empty() {
                self.withdraw(domain, &record, set.id, received);
            } else {
                self.define(domain, record, received);
            }
        }
        Ok(())
    }

    /// RFC 7011, 8.1; over UDP withdrawals are ignored (8.4).
    fn withdraw(&mut self, domain: u32, record: &TemplateRecord, set: u16, received: &mut Received) {
        if self.transport == Transport::Datagram {
            return received.note(format!("Template withdrawal {} over UDP ignored", record.id));
        }
        if record.id < FIRST_DATA_SET {
            // Its cost is that of the definitions which it undoes, however often it is repeated.
            let options = set == OPTIONS_TEMPLATE_SET;
            let all = self.templates.range((domain, options, 0)..=(domain, options, u16::MAX));
            for key in all.map(|(key, _)| *key).collect::<Vec<_>>() {
                self.remove(key);
            }
        } else if !self.remove((domain, false, record.id)) && !self.remove((domain, true, record.id)) {
            received.note(format!("withdrawal of the unknown Template {} ignored", record.id));
        }
    }

    fn template(&self, domain: u32, id: u16) -> Option<&Arc<TemplateRecord>> {
        [false, true].iter().find_map(|options| self.templates.get(&(domain, *options, id)))
    }

    fn remove(&mut self, key: (u32, bool, u16)) -> bool {
        let removed = self.templates.remove(&key);
        self.template_fields -= removed.as_ref().map_or(0, |template| template.fields.len());
        removed.is_some()
    }

    fn template_fields_max(&self) -> usize {
        match self.transport {
            Transport::Datagram => TEMPLATE_FIELDS_MAX_DATAGRAM,
            Transport::Stream | Transport::File => TEMPLATE_FIELDS_MAX,
        }
    }

    fn define(&mut self, domain: u32, record: TemplateRecord, received: &mut Received) {
        let old = self.template(domain, record.id);
        if old.is_some_and(|old| **old == record) {
            return;
        }
        let held = self.template_fields - old.map_or(0, |old| old.fields.len());
        let one_more = usize::from(old.is_none());
        // Fields of no octets cost time in every record and Message octets in none: on the whole a field has one at least.
        if record.record_length_min() < record.fields.len()
            || self.templates.len() + one_more > TEMPLATES_MAX
            || held + record.fields.len() > self.template_fields_max()
        {
            received.template_refusals += 1;
            return received.note(format!("Template {} refused: too many, or more fields than octets", record.id));
        }
        if old.is_some() && self.transport == Transport::Stream {
            received.note(format!("Template {} defined anew without a withdrawal", record.id));
        }
        for options in [false, true] {
            self.remove((domain, options, record.id));
        }
        self.template_fields += record.fields.len();
        self.templates.insert((domain, record.scopes > 0, record.id), Arc::new(record));
    }

    fn data_set(
        &mut self,
        set: Set<'_>,
        received: &mut Received,
        each: &mut impl FnMut(&MessageHeader, DataRecord<'_>),
    ) -> Result<(), Malformed> {
        let header = received.header;
        let Some(template) = self.template(header.domain, set.id).cloned() else {
            received.sets_without_template += 1;
            return Ok(());
        };
        let shortest = template.record_length_min();
        let mut init_time_ms = self.domains.get(&header.domain).and_then(|domain| domain.init_time_ms);
        let mut reader = Reader::new(set.content);
        // What is shorter than a record is padding (RFC 7011, 3.3.1), whatever it holds (9).
        while reader.rest().len() >= shortest {
            let start = reader.rest();
            let length = record_length(&template, start).ok_or(Malformed::Record(set.offset))?;
            let bytes = reader.take(length).ok_or(Malformed::Record(set.offset))?;
            let record = DataRecord { template: &template, bytes, init_time_ms };
            if record.is_options()
                && let Some(init) = init_time(&record)
            {
                init_time_ms = Some(init);
                self.domain(header.domain, |domain| domain.init_time_ms = Some(init));
            }
            each(&header, record);
            received.records += 1;
        }
        Ok(())
    }

    fn domain(&mut self, id: u32, change: impl FnOnce(&mut Domain)) {
        if self.domains.len() < DOMAINS_MAX || self.domains.contains_key(&id) {
            change(self.domains.entry(id).or_default());
        }
    }

    /// Counts what the sequence number says was lost (RFC 7011, 3.1, 11.6).
    fn follow_sequence(&mut self, received: &mut Received) {
        let header = received.header;
        let expected = match self.domains.get(&header.domain).copied().unwrap_or_default().sequence {
            Sequence::Next(expected) => expected,
            // A stream begins at 0; a datagram may be the first that reached us of many.
            Sequence::Unseen if self.transport == Transport::Stream => 0,
            Sequence::Unseen | Sequence::Unknown => header.sequence,
        };
        let gap = header.sequence.wrapping_sub(expected);
        match gap {
            0 => {}
            1..=LOSS_MAX => received.lost = u64::from(gap),
            _ => received.note(format!("sequence {} where {expected} was expected", header.sequence)),
        }
        // Late datagrams do not turn the sequence back.
        if gap > LOSS_MAX && gap.wrapping_neg() <= LOSS_MAX && self.transport == Transport::Datagram {
            return;
        }
        // Records of an unknown Template cannot be counted: what comes next is taken as it is.
        let next = match received.sets_without_template {
            0 => Sequence::Next(header.sequence.wrapping_add(received.records as u32)),
            _ => Sequence::Unknown,
        };
        self.domain(header.domain, |domain| domain.sequence = next);
    }
}

impl Received {
    fn note(&mut self, note: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(note);
        }
    }
}

fn record_length(template: &TemplateRecord, bytes: &[u8]) -> Option<usize> {
    if !template.is_variable() {
        return Some(template.record_length_min());
    }
    let mut reader = Reader::new(bytes);
    for field in &template.fields {
        reader.field(field.length)?;
    }
    Some(bytes.len() - reader.rest().len())
}

fn init_time(record: &DataRecord<'_>) -> Option<u64> {
    let mut fields = record.fields();
    let is_init = |field: &FieldSpecifier| field.enterprise == 0 && field.element == SYSTEM_INIT_TIME_MILLISECONDS;
    fields.find(|(field, _)| is_init(field)).and_then(|(_, bytes)| unsigned(bytes))
}
