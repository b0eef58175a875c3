//! What the Exporting Process encodes is what the Collecting Process decodes, in Messages of any limit.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nagare_wire::flow::{Counters, FlowKey, FlowRecord};
use nagare_wire::ipfix::export::{Full, LIMIT_MIN, MessageBuilder};
use nagare_wire::ipfix::mapping::{Book, ExporterStatistics, Mapped, NAME_MAX, Process, map};
use nagare_wire::ipfix::{Transport, TransportSession, frame};
use std::net::{Ipv4Addr, Ipv6Addr};

/// What an Exporting Process is given.
#[derive(Debug, Arbitrary)]
struct Session {
    limit: u16,
    first_sequence: u32,
    domain: u32,
    entries: Vec<Entry>,
}

#[derive(Debug, Arbitrary)]
enum Entry {
    FlowIpv4([u32; 2], Flow),
    FlowIpv6([u128; 2], Flow),
    Book {
        metering: bool,
        process_id: u32,
        name: String,
        value: u64,
    },
    Statistics {
        process_id: u32,
        init_time_ms: u64,
        counts: [u64; 6],
    },
    /// The Exporter sends what it has.
    Flush,
}

#[derive(Debug, Arbitrary)]
struct Flow {
    ports: [u16; 2],
    octets: [u8; 3],
    vlan: u16,
    times: [u64; 2],
    counters: [(u64, u64, u16); 2],
}

fuzz_target!(|session: Session| {
    let expected: Vec<Mapped> = session.entries.iter().filter_map(mapped).collect();
    let messages = encode(&session);
    for transport in [Transport::Stream, Transport::Datagram, Transport::File] {
        assert_eq!(decode(transport, &messages), expected);
    }
});

fn encode(session: &Session) -> Vec<Vec<u8>> {
    let mut builder = MessageBuilder::new(session.limit.into());
    let mut messages = Vec::new();
    let mut sequence = session.first_sequence;
    let mut finish = |builder: &mut MessageBuilder| {
        let records = builder.records();
        messages.push(builder.finish(1_700_000_000, sequence, session.domain));
        sequence = sequence.wrapping_add(records);
    };
    builder.push_templates().expect("every limit has room for the Templates");
    for entry in &session.entries {
        match mapped(entry) {
            None => finish(&mut builder),
            Some(mapped) => {
                if push(&mut builder, &mapped) == Err(Full) {
                    finish(&mut builder);
                    push(&mut builder, &mapped).expect("every limit has room for one record");
                }
            }
        }
    }
    finish(&mut builder);
    let limit = usize::from(session.limit).max(LIMIT_MIN);
    assert!(messages.iter().all(|message| message.len() <= limit));
    messages
}

fn push(builder: &mut MessageBuilder, mapped: &Mapped) -> Result<(), Full> {
    match mapped {
        Mapped::Flow(flow) => builder.push_flow(flow),
        Mapped::Book(book) => builder.push_book(book),
        Mapped::Statistics(statistics) => builder.push_statistics(statistics),
        Mapped::Other => unreachable!("no entry is mapped to it"),
    }
}

fn decode(transport: Transport, messages: &[Vec<u8>]) -> Vec<Mapped> {
    let mut session = TransportSession::new(transport);
    let mut found = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        assert_eq!(frame(message), Ok(Some(message.len())));
        let received = session.receive(message, |header, record| found.push(map(header, &record)));
        let received = received.expect("what Nagare sends is well formed");
        assert_eq!((received.sets_without_template, received.template_refusals), (0, 0));
        // A session that is joined late says so in its first Message, and only there.
        assert!(index == 0 || (received.lost == 0 && received.notes.is_empty()), "{received:?}");
    }
    found
}

/// What an entry is read as; `None` where it is not a record.
fn mapped(entry: &Entry) -> Option<Mapped> {
    Some(match entry {
        Entry::FlowIpv4([source, destination], flow) => {
            let key = key(Ipv4Addr::from(*source).into(), Ipv4Addr::from(*destination).into(), flow);
            Mapped::Flow(record(key, flow))
        }
        Entry::FlowIpv6([source, destination], flow) => {
            let key = key(Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination).into(), flow);
            Mapped::Flow(record(key, flow))
        }
        Entry::Book { metering, process_id, name, value } => {
            let process = if *metering { Process::Metering } else { Process::Exporting };
            let kept = &name[..name.floor_char_boundary(NAME_MAX)];
            let name = kept.trim_end_matches('\0').to_string();
            Mapped::Book(Book { process, process_id: *process_id, name, value: *value })
        }
        Entry::Statistics { process_id, init_time_ms, counts } => {
            let [messages, octets, records, not_sent_flows, not_sent_packets, not_sent_octets] = *counts;
            Mapped::Statistics(ExporterStatistics {
                process_id: *process_id,
                // An Exporting Process has a beginning: statistics that say nothing at all are none.
                init_time_ms: (*init_time_ms).max(1),
                messages,
                octets,
                records,
                not_sent_flows,
                not_sent_packets,
                not_sent_octets,
            })
        }
        Entry::Flush => return None,
    })
}

fn key(source: std::net::IpAddr, destination: std::net::IpAddr, flow: &Flow) -> FlowKey {
    FlowKey {
        source,
        destination,
        source_port: flow.ports[0],
        destination_port: flow.ports[1],
        protocol: flow.octets[0],
        vlan: flow.vlan & 0x0fff,
        ..FlowKey::default()
    }
}

fn record(key: FlowKey, flow: &Flow) -> FlowRecord {
    let counters = |(packets, octets, tcp_flags)| Counters { packets, octets, tcp_flags };
    FlowRecord {
        key,
        start_us: flow.times[0] / 1000 * 1000,
        end_us: flow.times[1] / 1000 * 1000,
        forward: counters(flow.counters[0]),
        reverse: counters(flow.counters[1]),
        tos: flow.octets[1],
        end_reason: flow.octets[2],
        ..FlowRecord::default()
    }
}
