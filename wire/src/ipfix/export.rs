//! The Templates that Nagare exports, and the builder of its Messages.
//!
//! | Template | what |
//! |---|---|
//! | 256, 257 | bidirectional flows of IPv4, of IPv6 (RFC 5103) |
//! | 258 | a term of a Metering Process's books: packets, scoped by meteringProcessId and selectorName |
//! | 259 | a term of the Exporting Process's books: flows, scoped by exportingProcessId and selectorName |
//! | 260 | the Exporting Process's statistics (RFC 7011, 4.1 and 4.3) |
//! | 261, 262 | how packets, how flows were sampled (RFC 5477, 7014), with the elements of NetFlow 9 beside |

use super::codec::{VARIABLE, put_variable};
use super::element as ie;
use super::field::{FlowTemplate, INITIATOR};
use super::mapping::{Book, ExporterStatistics, Process};
use super::message::{
    FieldSpecifier, HEADER_LENGTH, MESSAGE_MAX, MessageHeader, OPTIONS_TEMPLATE_SET, TEMPLATE_SET, TemplateRecord,
};
use crate::flow::FlowRecord;
use std::net::IpAddr;

const FLOW_IPV4: u16 = 256;
const FLOW_IPV6: u16 = 257;
const METERING_BOOK: u16 = 258;
const EXPORTING_BOOK: u16 = 259;
const STATISTICS: u16 = 260;
const PACKET_SAMPLING: u16 = 261;
const FLOW_SAMPLING: u16 = 262;

/// selectorAlgorithm: random n-out-of-N (RFC 5477, 8.2.1).
const RANDOM_N_OUT_OF_N: u16 = 3;
/// flowSelectorAlgorithm: uniform probabilistic (RFC 7014, 8.3.1).
const UNIFORM_PROBABILISTIC: u16 = 4;
/// samplingAlgorithm: random.
const RANDOM: u8 = 2;

/// Octets of a flow of IPv6; one of IPv4 has 24 less.
const FLOW_IPV6_LENGTH: usize = 8 + 8 + 32 + 4 + 1 + 1 + 4 + 1 + 1 + 2 * (8 + 8 + 2);

/// One in so many packets, or flows, was metered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// What was chosen.
    pub of: SamplingOf,
    /// One in so many of them.
    pub one_in: u32,
}

/// What a [`Sampling`] chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplingOf {
    /// Of each population of packets one, at random.
    Packets,
    /// Flows by their key's hash, with all their packets.
    Flows,
}

/// Octets of how packets or flows were sampled.
const SAMPLING_LENGTH: usize = 8 + 2 + 3 * 4 + 1;

/// The shortest limit of a Message; a [`FlowTemplate`] of many fields needs more, see [`limit_min`].
pub const LIMIT_MIN: usize = 512;

/// All Templates of a Transport Session, in the order in which they are sent.
pub fn templates(flows: &FlowTemplate) -> Vec<TemplateRecord> {
    let iana = FieldSpecifier::iana;
    let book = |id, process, value| TemplateRecord {
        id,
        scopes: 2,
        fields: vec![iana(process, 4), iana(ie::SELECTOR_NAME, VARIABLE), iana(value, 8)],
    };
    let sampling = |id, of: [(u16, u16); 3]| {
        let whole = [(ie::SELECTOR_ID, 8)].into_iter().chain(of);
        let fields = whole.chain([(ie::SAMPLING_INTERVAL, 4), (ie::SAMPLING_ALGORITHM, 1)]);
        TemplateRecord { id, scopes: 1, fields: fields.map(|(element, length)| iana(element, length)).collect() }
    };
    vec![
        TemplateRecord { id: FLOW_IPV4, scopes: 0, fields: flows.specifiers(true) },
        TemplateRecord { id: FLOW_IPV6, scopes: 0, fields: flows.specifiers(false) },
        book(METERING_BOOK, ie::METERING_PROCESS_ID, ie::PACKET_TOTAL_COUNT),
        book(EXPORTING_BOOK, ie::EXPORTING_PROCESS_ID, ie::OBSERVED_FLOW_TOTAL_COUNT),
        TemplateRecord {
            id: STATISTICS,
            scopes: 1,
            fields: vec![
                iana(ie::EXPORTING_PROCESS_ID, 4),
                iana(ie::SYSTEM_INIT_TIME_MILLISECONDS, 8),
                iana(ie::EXPORTED_MESSAGE_TOTAL_COUNT, 8),
                iana(ie::EXPORTED_OCTET_TOTAL_COUNT, 8),
                iana(ie::EXPORTED_FLOW_RECORD_TOTAL_COUNT, 8),
                iana(ie::NOT_SENT_FLOW_TOTAL_COUNT, 8),
                iana(ie::NOT_SENT_PACKET_TOTAL_COUNT, 8),
                iana(ie::NOT_SENT_OCTET_TOTAL_COUNT, 8),
            ],
        },
        sampling(PACKET_SAMPLING, [(ie::SELECTOR_ALGORITHM, 2), (ie::SAMPLING_SIZE, 4), (ie::SAMPLING_POPULATION, 4)]),
        sampling(
            FLOW_SAMPLING,
            [(ie::FLOW_SELECTOR_ALGORITHM, 2), (ie::SAMPLING_FLOW_INTERVAL, 4), (ie::SAMPLING_FLOW_SPACING, 4)],
        ),
    ]
}

/// Octets of the withdrawals of all Templates and all Options Templates: two Sets of one record without fields.
const WITHDRAWALS_LENGTH: usize = 2 * (4 + 4);

/// The shortest limit of a Message that holds the withdrawals and all Templates, or any record.
pub fn limit_min(flows: &FlowTemplate) -> usize {
    let mut all = Vec::new();
    templates(flows).iter().for_each(|template| template.write(&mut all));
    // The Templates stand in two Sets, and the rate of sampling in a third.
    (HEADER_LENGTH + WITHDRAWALS_LENGTH + 4 + 4 + all.len() + 4 + SAMPLING_LENGTH)
        .max(HEADER_LENGTH + 4 + flows.length(false))
        .max(LIMIT_MIN)
}

/// There is no room for the record: finish this Message, then push it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Builds one Message after another in one buffer.
pub struct MessageBuilder {
    buffer: Vec<u8>,
    limit: usize,
    flows: FlowTemplate,
    lengths: [usize; 2],
    open_set: Option<(u16, usize)>,
    records: u32,
}

impl MessageBuilder {
    /// A builder of Messages of at most `limit` octets, flows with the basic fields; the limit is held between [`LIMIT_MIN`]
    /// and 65,535.
    pub fn new(limit: usize) -> MessageBuilder {
        MessageBuilder::with_template(limit, FlowTemplate::basic())
    }

    /// Likewise, flows with the fields of `flows`; the limit is held between [`limit_min`] and 65,535.
    pub fn with_template(limit: usize, flows: FlowTemplate) -> MessageBuilder {
        let limit = limit.clamp(limit_min(&flows), MESSAGE_MAX);
        let mut buffer = Vec::with_capacity(limit);
        buffer.resize(HEADER_LENGTH, 0);
        let lengths = [flows.length(true), flows.length(false)];
        MessageBuilder { buffer, limit, flows, lengths, open_set: None, records: 0 }
    }

    /// Data Records in the Message so far; Template Records do not count (RFC 7011, 3.1).
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.buffer.len() == HEADER_LENGTH
    }

    /// Adds the withdrawals of all Templates and of all Options Templates (RFC 7011, 8.1), each in a Set of its own. A session
    /// that is to use other Templates under the same IDs begins them anew by this; not for UDP, where nothing is withdrawn.
    ///
    /// # Errors
    /// There is no room for both; neither was added.
    pub fn push_withdrawals(&mut self) -> Result<(), Full> {
        if self.buffer.len() + WITHDRAWALS_LENGTH > self.limit {
            return Err(Full);
        }
        for set in [TEMPLATE_SET, OPTIONS_TEMPLATE_SET] {
            // Withdrawals and definitions do not share a Set.
            self.close_set();
            let all = TemplateRecord { id: set, scopes: 0, fields: Vec::new() };
            self.push(set, 4, |out| all.write(out))?;
        }
        self.close_set();
        Ok(())
    }

    /// Adds all of [`templates`]; they go before the data that they describe (RFC 7011, 8.2).
    pub fn push_templates(&mut self) -> Result<(), Full> {
        let mut scratch = Vec::new();
        for template in templates(&self.flows) {
            let set = if template.scopes > 0 { OPTIONS_TEMPLATE_SET } else { TEMPLATE_SET };
            scratch.clear();
            template.write(&mut scratch);
            self.push(set, scratch.len(), |out| out.extend_from_slice(&scratch))?;
        }
        Ok(())
    }

    /// Adds a flow.
    pub fn push_flow(&mut self, flow: &FlowRecord) -> Result<(), Full> {
        if !self.flows.is_basic {
            return self.push_any(flow);
        }
        let key = &flow.key;
        let (template, length) = match key.source {
            IpAddr::V4(_) => (FLOW_IPV4, FLOW_IPV6_LENGTH - 24),
            IpAddr::V6(_) => (FLOW_IPV6, FLOW_IPV6_LENGTH),
        };
        self.push(template, length, |out| {
            out.extend_from_slice(&flow.start_ms().to_be_bytes());
            out.extend_from_slice(&flow.end_ms().to_be_bytes());
            for address in [key.source, key.destination] {
                match address {
                    IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
                    IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
                }
            }
            out.extend_from_slice(&key.source_port.to_be_bytes());
            out.extend_from_slice(&key.destination_port.to_be_bytes());
            out.extend_from_slice(&[key.protocol, flow.tos]);
            out.extend_from_slice(&key.vlan.to_be_bytes());
            out.extend_from_slice(&key.customer_vlan.to_be_bytes());
            out.extend_from_slice(&[flow.end_reason, INITIATOR]);
            for counters in [&flow.forward, &flow.reverse] {
                out.extend_from_slice(&counters.packets.to_be_bytes());
                out.extend_from_slice(&counters.octets.to_be_bytes());
                out.extend_from_slice(&counters.tcp_flags.to_be_bytes());
            }
        })?;
        self.records += 1;
        Ok(())
    }

    /// A flow of any Template, field by field.
    fn push_any(&mut self, flow: &FlowRecord) -> Result<(), Full> {
        let (set, length) = match flow.key.source {
            IpAddr::V4(_) => (FLOW_IPV4, self.lengths[0]),
            IpAddr::V6(_) => (FLOW_IPV6, self.lengths[1]),
        };
        self.room(set, length)?;
        self.flows.write(flow, &mut self.buffer);
        self.records += 1;
        Ok(())
    }

    /// Adds a term of the books; its name is cut to [`super::mapping::NAME_MAX`] octets.
    pub fn push_book(&mut self, book: &Book) -> Result<(), Full> {
        let set = match book.process {
            Process::Metering => METERING_BOOK,
            Process::Exporting => EXPORTING_BOOK,
        };
        let name = &book.name.as_bytes()[..book.name.floor_char_boundary(super::mapping::NAME_MAX)];
        self.push(set, 4 + 1 + name.len() + 8, |out| {
            out.extend_from_slice(&book.process_id.to_be_bytes());
            put_variable(out, name);
            out.extend_from_slice(&book.value.to_be_bytes());
        })?;
        self.records += 1;
        Ok(())
    }

    /// Adds how packets or flows were sampled, by which a collector multiplies what it counts.
    pub fn push_sampling(&mut self, sampling: &Sampling) -> Result<(), Full> {
        let one_in = sampling.one_in;
        let (set, algorithm, counts) = match sampling.of {
            SamplingOf::Packets => (PACKET_SAMPLING, RANDOM_N_OUT_OF_N, [1, one_in]),
            SamplingOf::Flows => (FLOW_SAMPLING, UNIFORM_PROBABILISTIC, [1, one_in.saturating_sub(1)]),
        };
        self.push(set, SAMPLING_LENGTH, |out| {
            out.extend_from_slice(&1u64.to_be_bytes());
            out.extend_from_slice(&algorithm.to_be_bytes());
            for count in counts.into_iter().chain([one_in]) {
                out.extend_from_slice(&count.to_be_bytes());
            }
            out.push(RANDOM);
        })?;
        self.records += 1;
        Ok(())
    }

    /// Adds the Exporting Process's statistics.
    pub fn push_statistics(&mut self, statistics: &ExporterStatistics) -> Result<(), Full> {
        let s = statistics;
        self.push(STATISTICS, 4 + 7 * 8, |out| {
            out.extend_from_slice(&s.process_id.to_be_bytes());
            let counts = [s.init_time_ms, s.messages, s.octets, s.records];
            for count in counts.into_iter().chain([s.not_sent_flows, s.not_sent_packets, s.not_sent_octets]) {
                out.extend_from_slice(&count.to_be_bytes());
            }
        })?;
        self.records += 1;
        Ok(())
    }

    /// Completes the Message and begins the next. `export_time` is in seconds since 1970 UTC, `sequence` the Data Records
    /// sent before in this session and domain.
    pub fn finish(&mut self, export_time: u32, sequence: u32, domain: u32) -> Vec<u8> {
        self.close_set();
        let length = self.buffer.len() as u16; // At most `limit`, which is at most 65,535.
        MessageHeader { length, export_time, sequence, domain }.write(&mut self.buffer);
        let mut next = Vec::with_capacity(self.limit);
        next.resize(HEADER_LENGTH, 0);
        self.records = 0;
        std::mem::replace(&mut self.buffer, next)
    }

    /// Appends `length` octets to the open Set where it has this ID, else to a new one: one kind of record a Set (3.3.1).
    fn push(&mut self, set: u16, length: usize, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), Full> {
        self.room(set, length)?;
        let before = self.buffer.len();
        write(&mut self.buffer);
        debug_assert_eq!(self.buffer.len() - before, length);
        Ok(())
    }

    /// Opens the Set for `length` octets, if there is room.
    fn room(&mut self, set: u16, length: usize) -> Result<(), Full> {
        let open = self.open_set.is_some_and(|(id, _)| id == set);
        let needed = if open { length } else { length + 4 };
        if self.buffer.len() + needed > self.limit {
            return Err(Full);
        }
        if !open {
            self.close_set();
            self.open_set = Some((set, self.buffer.len()));
            self.buffer.extend_from_slice(&set.to_be_bytes());
            self.buffer.extend_from_slice(&[0, 0]);
        }
        Ok(())
    }

    fn close_set(&mut self) {
        if let Some((_, start)) = self.open_set.take() {
            let length = (self.buffer.len() - start) as u16;
            self.buffer[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
        }
    }
}
