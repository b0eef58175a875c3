//! The Exporting Process: flow records become Messages of one Transport Session.
//!
//! It knows neither clock nor network: time is passed in, Messages are handed out.

use crate::counters::Tally;
use nagare_wire::flow::FlowRecord;
use nagare_wire::ipfix::export::{Full, MessageBuilder, Sampling};
use nagare_wire::ipfix::field::FlowTemplate;
use nagare_wire::ipfix::mapping::{Book, ExporterStatistics};

/// A whole Message and what it carries.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The Message as it goes on the wire.
    pub bytes: Vec<u8>,
    /// The flows in it.
    pub flows: Tally,
    /// Its Data Records, options records included.
    pub records: u32,
}

/// Builds the Messages of one Observation Domain, with the sequence numbers of RFC 7011, 3.1.
pub struct ExportingProcess {
    builder: MessageBuilder,
    domain: u32,
    sequence: u32,
    flows: Tally,
    sampling: Option<Sampling>,
}

impl ExportingProcess {
    /// For Messages of at most `message_max` octets, flows with the fields of `template`.
    pub fn new(domain: u32, message_max: usize, template: FlowTemplate) -> ExportingProcess {
        let builder = MessageBuilder::with_template(message_max, template);
        ExportingProcess { builder, domain, sequence: 0, flows: Tally::default(), sampling: None }
    }

    /// Tells with the Templates how packets or flows are sampled.
    pub fn with_sampling(self, sampling: Option<Sampling>) -> ExportingProcess {
        ExportingProcess { sampling, ..self }
    }

    /// Begins a Transport Session: the sequence starts at 0, and the Templates go first (RFC 7011, 8). Gives what was in a
    /// Message begun for the session before.
    pub fn begin_session(&mut self, now_s: u32) -> (Tally, Message) {
        let left = self.abandon(now_s);
        self.sequence = 0;
        (left, self.templates(now_s))
    }

    /// Drops the Message begun; gives the flows in it.
    pub fn abandon(&mut self, now_s: u32) -> Tally {
        let left = self.flush(now_s);
        left.map_or(Tally::default(), |message| message.flows)
    }

    /// A Message with all Templates, to be repeated from time to time over UDP (RFC 7011, 8.4).
    pub fn templates(&mut self, now_s: u32) -> Message {
        let begun = self.flush(now_s);
        debug_assert!(begun.is_none(), "a Message was begun: flush it before the Templates");
        self.builder.push_templates().expect("an empty Message of LIMIT_MIN octets holds the Templates");
        if let Some(sampling) = &self.sampling {
            self.builder.push_sampling(sampling).expect("limit_min leaves room for it beside the Templates");
        }
        self.finish(now_s)
    }

    /// Adds a flow; gives the Message that it made full, which holds those before it.
    pub fn push(&mut self, flow: &FlowRecord, now_s: u32) -> Option<Message> {
        let full = self.add(now_s, |builder| builder.push_flow(flow));
        self.flows += Tally::of(flow);
        full
    }

    /// Adds the books and the statistics as options records (RFC 7011, 4).
    pub fn push_books(&mut self, books: &[Book], statistics: &ExporterStatistics, now_s: u32) -> Vec<Message> {
        let mut full: Vec<Message> = Vec::new();
        for book in books {
            full.extend(self.add(now_s, |builder| builder.push_book(book)));
        }
        full.extend(self.add(now_s, |builder| builder.push_statistics(statistics)));
        full.extend(self.flush(now_s));
        full
    }

    /// Whether a Message is begun.
    pub fn is_begun(&self) -> bool {
        !self.builder.is_empty()
    }

    /// Completes the Message begun, if one is.
    pub fn flush(&mut self, now_s: u32) -> Option<Message> {
        self.is_begun().then(|| self.finish(now_s))
    }

    fn add(&mut self, now_s: u32, push: impl Fn(&mut MessageBuilder) -> Result<(), Full>) -> Option<Message> {
        if push(&mut self.builder).is_ok() {
            return None;
        }
        let message = self.finish(now_s);
        push(&mut self.builder).expect("an empty Message of LIMIT_MIN octets holds any record");
        Some(message)
    }

    fn finish(&mut self, now_s: u32) -> Message {
        let records = self.builder.records();
        let bytes = self.builder.finish(now_s, self.sequence, self.domain);
        self.sequence = self.sequence.wrapping_add(records);
        Message { bytes, flows: std::mem::take(&mut self.flows), records }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nagare_wire::flow::{Counters, FlowKey};
    use nagare_wire::ipfix::{Transport, TransportSession};

    fn flow(n: u8) -> FlowRecord {
        let key = FlowKey {
            source: [10, 0, 0, n].into(),
            destination: [10, 0, 1, n].into(),
            source_port: 1,
            destination_port: 2,
            protocol: 17,
            vlan: 0,
            ..FlowKey::default()
        };
        let forward = Counters { packets: 2, octets: 100, tcp_flags: 0 };
        FlowRecord { key, start_us: 1000, end_us: 2000, forward, end_reason: 1, ..FlowRecord::default() }
    }

    #[test]
    fn sessions_begin_with_templates_and_lose_no_count() {
        let mut process = ExportingProcess::new(7, 512, FlowTemplate::basic());
        let mut carried = Tally::default();
        for _ in 0..2 {
            let mut session = TransportSession::new(Transport::Stream);
            let (left, templates) = process.begin_session(1);
            carried += left;
            let mut messages = vec![templates];
            messages.extend((0..20).filter_map(|n| process.push(&flow(n), 2)));
            let book = Book {
                process: nagare_wire::ipfix::mapping::Process::Metering,
                process_id: 1,
                name: "wire".into(),
                value: 3,
            };
            messages.extend(process.push_books(&[book], &ExporterStatistics::default(), 3));
            let mut records = 0;
            for message in messages {
                let received = session.receive(&message.bytes, |_, _| ()).expect("well-formed");
                assert_eq!((received.lost, received.sets_without_template, received.notes.len()), (0, 0, 0));
                assert_eq!(received.records, u64::from(message.records));
                records += received.records;
                carried += message.flows;
            }
            assert_eq!(records, 22);
            process.push(&flow(99), 4);
        }
        carried += process.abandon(5);
        assert_eq!(carried, Tally { flows: 42, packets: 84, octets: 4200 });
    }
}
