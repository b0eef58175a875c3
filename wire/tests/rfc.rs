//! What RFC 7011 and its company demand of an Exporter (e) and a Collector (c), by number; `docs/rfc.md` is the list. Here is what
//! bytes alone can show; the running programs are in the `tests/rfc.rs` of the probe and of the collector.

mod bytes;
mod judge;

use bytes::{message, specifiers, template};
use judge::{Judge, Manner};
use nagare_wire::flow::{Counters, FlowKey, FlowRecord};
use nagare_wire::ipfix::codec::{VARIABLE, put_variable};
use nagare_wire::ipfix::export::{MessageBuilder, Sampling, SamplingOf};
use nagare_wire::ipfix::field::{CATALOGUE, FlowTemplate, TemplateError};
use nagare_wire::ipfix::mapping::{Book, ExporterStatistics, Mapped, NAME_MAX, Process, map};
use nagare_wire::ipfix::{MESSAGE_MAX, Malformed, Received, TEMPLATE_FIELDS_MAX, Transport, TransportSession};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A flow of the documentation's addresses; every octet of its record has a value of its own.
fn flow(v6: bool) -> FlowRecord {
    let address = |last: u8| -> IpAddr {
        if v6 { [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last].into() } else { [192, 0, 2, last].into() }
    };
    FlowRecord {
        key: FlowKey {
            source: address(1),
            destination: address(2),
            source_port: 0x1234,
            destination_port: 0x01bb,
            protocol: 6,
            vlan: 0x0102,
            customer_vlan: 0x0304,
            ..FlowKey::default()
        },
        start_us: 0x0001_0203_0405_0607 * 1000,
        end_us: 0x0001_0203_0405_0708 * 1000,
        forward: Counters { packets: 0x1112_1314_1516_1718, octets: 0x2122_2324_2526_2728, tcp_flags: 0x001b },
        reverse: Counters { packets: 0x3132_3334_3536_3738, octets: 0x4142_4344_4546_4748, tcp_flags: 0x0012 },
        tos: 0xb8,
        end_reason: 3,
        ..FlowRecord::default()
    }
}

fn book(name: &str, process: Process) -> Book {
    Book { process, process_id: 7, name: name.into(), value: 9 }
}

const DOMAIN: u32 = 77;

/// Everything that an Exporter of ours can say, in Messages of at most `limit` octets.
fn exported(flows: FlowTemplate, limit: usize) -> Vec<Vec<u8>> {
    let mut builder = MessageBuilder::with_template(limit, flows);
    let (mut messages, mut sequence) = (Vec::new(), 0);
    builder.push_templates().expect("an empty Message holds the Templates");
    for index in 0..40 {
        let push = |builder: &mut MessageBuilder| match index % 8 {
            0 => builder.push_book(&book("wire", Process::Metering)),
            1 => builder.push_book(&book("", Process::Exporting)),
            2 => builder.push_book(&book(&"流".repeat(50), Process::Metering)),
            3 => builder.push_statistics(&ExporterStatistics { init_time_ms: 1, ..ExporterStatistics::default() }),
            4 => builder.push_sampling(&Sampling { of: SamplingOf::Packets, one_in: 10 }),
            5 => builder.push_sampling(&Sampling { of: SamplingOf::Flows, one_in: 10 }),
            other => builder.push_flow(&flow(other == 7)),
        };
        if push(&mut builder).is_err() {
            let records = builder.records();
            messages.push(builder.finish(1_700_000_000, sequence, DOMAIN));
            sequence += records;
            push(&mut builder).expect("an empty Message holds any record");
        }
    }
    messages.push(builder.finish(1_700_000_001, sequence, DOMAIN));
    messages
}

/// The judge's findings of [`exported`], over every length of a Message that matters.
fn judged(flows: FlowTemplate) -> Judge {
    let mut last = None;
    for limit in [512, 1232, 16_000, MESSAGE_MAX] {
        let mut judge = Judge::new(Manner::Stream);
        exported(flows.clone(), limit).iter().for_each(|message| judge.message(message));
        assert_eq!(judge.records.len(), 40);
        last = Some(judge);
    }
    last.expect("there are limits")
}

/// Receives a Message that is expected to be sound; its records as they were mapped.
fn take(session: &mut TransportSession, message: &[u8]) -> (Vec<Mapped>, Received) {
    let mut mapped = Vec::new();
    let received = session.receive(message, |header, record| mapped.push(map(header, &record)));
    (mapped, received.expect("a sound Message"))
}

fn stream() -> TransportSession {
    TransportSession::new(Transport::Stream)
}

/// Source and destination, and a record of both.
const ADDRESSES: [(u16, u16); 2] = [(8, 4), (12, 4)];
const RECORD: &[u8] = &[192, 0, 2, 1, 192, 0, 2, 2];

/// The flows of a Message of a Template 256 of addresses and `more`, and one record of it.
fn one_flow(more: &[(u16, u16)], rest: &[u8]) -> FlowRecord {
    let fields = [&ADDRESSES, more].concat();
    let data = [RECORD, rest].concat();
    let (mapped, _) = take(&mut stream(), &message(1, 0, &[(2, &template(256, &fields)), (256, &data)]));
    match <[Mapped; 1]>::try_from(mapped) {
        Ok([Mapped::Flow(flow)]) => flow,
        other => panic!("one flow was sent: {other:?}"),
    }
}

#[test]
fn e01_version_and_length_of_every_message() {
    for flows in [FlowTemplate::basic(), FlowTemplate::full()] {
        for message in exported(flows, 1232) {
            assert_eq!(message[..2], [0, 10]);
            assert_eq!(usize::from(u16::from_be_bytes([message[2], message[3]])), message.len());
        }
    }
    judged(FlowTemplate::basic());
}

#[test]
fn e02_templates_are_not_counted_as_records() {
    let mut builder = MessageBuilder::new(1400);
    builder.push_templates().unwrap();
    assert_eq!(builder.records(), 0, "Template Records do not count");
    builder.push_flow(&flow(false)).unwrap();
    builder.push_book(&book("wire", Process::Metering)).unwrap();
    assert_eq!(builder.records(), 2, "Data Records of Options Templates do");
    builder.finish(0, u32::MAX, 1);
    assert_eq!(builder.records(), 0);
}

#[test]
fn e03_the_enterprise_bit_stands_where_a_pen_follows() {
    let judge = judged(FlowTemplate::full());
    let fields = &judge.template(DOMAIN, 256).expect("flows of IPv4").fields;
    let pens: BTreeSet<u32> = fields.iter().map(|field| field.1).collect();
    assert_eq!(pens, BTreeSet::from([0, 29305, 35632]), "read back by the bit alone, Template by Template");
    let catalogue =
        CATALOGUE.iter().filter(|field| !field.name.ends_with("IPv6") && !field.name.ends_with("IPv6Address"));
    let expected: Vec<judge::Field> =
        catalogue.map(|field| (field.specifier.element, field.specifier.enterprise, field.specifier.length)).collect();
    assert_eq!(fields, &expected);
}

#[test]
fn e04_one_kind_of_record_in_a_set() {
    // Alternating records: each Set must be of the one kind that its ID says, or the judge reads nonsense.
    let judge = judged(FlowTemplate::basic());
    let templates: Vec<u16> = judge.records[..8].iter().map(|record| record.template).collect();
    assert_eq!(templates, [258, 259, 258, 260, 261, 262, 256, 257]);
    assert_eq!(judge.records[6].number(7), Some(0x1234));
}

#[test]
fn e05_nothing_is_padded() {
    judged(FlowTemplate::full()); // The judge refuses padding that is not zero, or as long as a record.
    let mut builder = MessageBuilder::new(1400);
    ["abc", "abcd"].iter().for_each(|name| builder.push_book(&book(name, Process::Metering)).unwrap());
    assert_eq!(builder.finish(0, 0, 1).len(), 16 + 4 + 16 + 17, "an odd length stays one");
}

#[test]
fn c06_padding_is_accepted_whatever_it_holds() {
    for (padding, octet) in (0..8).flat_map(|length| [(length, 0), (length, 0xff)]) {
        let data = [RECORD, &vec![octet; padding]].concat();
        // Fewer than four octets after a Template; of zeroes more, as other Exporters align to eight.
        let defined = [template(256, &ADDRESSES), vec![octet; if octet == 0 { padding } else { padding % 4 }]].concat();
        let (mapped, received) = take(&mut stream(), &message(1, 0, &[(2, &defined), (256, &data), (256, RECORD)]));
        assert_eq!((mapped.len(), received.lost), (2, 0), "{padding} octets of {octet}");
    }
}

#[test]
fn c07_set_length_finds_the_next_set() {
    let sets: [(u16, &[u8]); 4] = [(2, &template(256, &ADDRESSES)), (999, &[1; 13]), (256, RECORD), (1000, &[])];
    let (mapped, received) = take(&mut stream(), &message(1, 0, &sets));
    assert_eq!((mapped.len(), received.sets_without_template), (1, 2), "a Set that cannot be read is passed over");
}

#[test]
fn e08_template_ids_are_of_one_name_space() {
    let judge = judged(FlowTemplate::full());
    let ids: Vec<u16> = judge.templates_seen.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [256, 257, 258, 259, 260, 261, 262]);
    let options: Vec<u16> = ids.into_iter().filter(|id| judge.template(DOMAIN, *id).unwrap().scopes > 0).collect();
    assert_eq!(options, [258, 259, 260, 261, 262], "no Options Template has the ID of a Template");
}

#[test]
fn c09_nothing_is_assumed_of_an_id() {
    let options = [&[0, 2, 0, 1][..], &specifiers(&[(149, 4), (41, 8)])].concat();
    for id in [256, 257, 258, 259, 260, 261, 262, 300, u16::MAX] {
        let mut session = stream();
        let (mapped, _) = take(&mut session, &message(1, 0, &[(2, &template(id, &ADDRESSES)), (id, RECORD)]));
        assert!(matches!(mapped[..], [Mapped::Flow(_)]), "{id}: our own numbers mean nothing in another's session");
        let of_options = [&id.to_be_bytes()[..], &options].concat();
        let (mapped, _) = take(&mut stream(), &message(1, 0, &[(3, &of_options), (id, &[0; 12])]));
        assert_eq!(mapped, [Mapped::Other], "{id}");
    }
}

#[test]
fn e10_scopes_are_there_and_in_order() {
    let judge = judged(FlowTemplate::basic());
    let scopes = |id| {
        let template = judge.template(DOMAIN, id).expect("an Options Template");
        template.fields[..template.scopes].iter().map(|field| field.0).collect::<Vec<_>>()
    };
    // meteringProcessId or exportingProcessId, then selectorName; exportingProcessId; selectorId.
    assert_eq!([scopes(258), scopes(259), scopes(260)], [vec![143, 335], vec![144, 335], vec![144]]);
    assert_eq!([scopes(261), scopes(262)], [vec![302], vec![302]]);
    // The Collector refuses what has none.
    let none = [&[1, 0, 0, 1, 0, 0][..], &specifiers(&[(149, 4)])].concat();
    let error = stream().receive(&message(1, 0, &[(3, &none)]), |_, _| ()).unwrap_err();
    assert_eq!(error, Malformed::Template(20));
}

#[test]
fn e11_numbers_and_addresses_are_big_endian() {
    let mut builder = MessageBuilder::new(1400);
    builder.push_flow(&flow(false)).unwrap();
    let bytes = builder.finish(0x0a0b_0c0d, 0x1a1b_1c1d, 0x2a2b_2c2d);
    #[rustfmt::skip]
    let expected = [
        // The headers of Message and Set.
        0, 10, 0, 92, 0x0a, 0x0b, 0x0c, 0x0d, 0x1a, 0x1b, 0x1c, 0x1d, 0x2a, 0x2b, 0x2c, 0x2d, 1, 0, 0, 76,
        // Milliseconds; the key, VLANs, reason, direction; the counters of both directions.
        0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 7, 8,
        192, 0, 2, 1, 192, 0, 2, 2, 0x12, 0x34, 0x01, 0xbb, 6, 0xb8, 1, 2, 3, 4, 3, 1,
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0, 0x1b,
        0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0, 0x12,
    ];
    assert_eq!(bytes, expected);
}

#[test]
fn e12_strings_are_utf8_also_where_they_are_cut() {
    let judge = judged(FlowTemplate::basic());
    let names = judge.records.iter().filter_map(|record| record.get(335));
    let longest = names.max_by_key(|name| name.len()).expect("books have names");
    assert_eq!(longest, "流".repeat(NAME_MAX / 3).as_bytes(), "cut between two characters");
}

#[test]
fn c12_bad_utf8_is_survived() {
    let options = [&[1, 0, 0, 3, 0, 2][..], &specifiers(&[(143, 4), (335, VARIABLE), (86, 8)])].concat();
    let record = [&[0, 0, 0, 1, 5, b'a', 0xff, 0xfe, 0xc3, 0], &[0, 0, 0, 0, 0, 0, 0, 5][..]].concat();
    let (mapped, _) = take(&mut stream(), &message(1, 0, &[(3, &options), (256, &record)]));
    let Mapped::Book(book) = &mapped[0] else { panic!("{mapped:?}") };
    assert_eq!((book.name.as_str(), book.value), ("a\u{fffd}\u{fffd}\u{fffd}", 5));
}

#[test]
fn e13_sizes_are_those_of_the_types() {
    // The judge knows the types, and which of them may be shorter.
    judged(FlowTemplate::basic());
    judged(FlowTemplate::full());
    judged(FlowTemplate::basic().with_tunnels());
}

#[test]
fn c13_any_reduced_size_is_read() {
    for size in 1..=8_u16 {
        let value = 0x0102_0304_0506_0708_u64 >> (8 * (8 - size));
        let octets = &value.to_be_bytes()[8 - usize::from(size)..];
        let found = one_flow(
            &[(1, size), (2, size), (6, size.min(2))],
            &[octets, octets, &[0; 2][..size.min(2).into()]].concat(),
        );
        assert_eq!((found.forward.octets, found.forward.packets), (value, value), "{size} octets");
    }
    // What is no number of ours for its length is no reason to refuse the record.
    assert_eq!(one_flow(&[(1, 9)], &[0xff; 9]).forward.octets, 0);
}

#[test]
fn e14_variable_lengths_are_written_in_the_shortest_form() {
    for (length, prefix) in [(0, &[0][..]), (254, &[254]), (255, &[255, 0, 255]), (65535, &[255, 255, 255])] {
        let mut out = Vec::new();
        put_variable(&mut out, &vec![7; length]);
        assert_eq!((&out[..prefix.len()], out.len()), (prefix, prefix.len() + length));
    }
}

#[test]
fn c14_variable_lengths_are_read_in_both_forms() {
    let longest = MESSAGE_MAX - 16 - 4 - (4 + 4 * 4) - 4 - 8 - 3 - 1;
    for (length, is_long) in
        [(0, false), (1, false), (254, false), (0, true), (254, true), (255, true), (256, true), (longest, true)]
    {
        let mut rest = if is_long { vec![255, (length >> 8) as u8, length as u8] } else { vec![length as u8] };
        rest.extend(vec![0xee; length]);
        rest.push(17); // What comes after is found.
        let found = one_flow(&[(82, VARIABLE), (4, 1)], &rest);
        assert_eq!(found.key.protocol, 17, "{length} octets, the long form: {is_long}");
    }
}

#[test]
fn e15_messages_fill_up_to_65_535_octets() {
    let mut builder = MessageBuilder::new(usize::MAX);
    let mut flows = 0;
    while builder.push_flow(&flow(false)).is_ok() {
        flows += 1;
    }
    let bytes = builder.finish(0, 0, 1);
    assert_eq!(bytes.len(), 16 + 4 + flows * 72);
    assert!(bytes.len() <= MESSAGE_MAX && bytes.len() + 72 > MESSAGE_MAX);
}

#[test]
fn c15_a_message_of_65_535_octets_is_read() {
    let records = (MESSAGE_MAX - 16 - (4 + 12) - 4) / 8;
    let padding = MESSAGE_MAX - 16 - 16 - 4 - records * 8;
    let data = [&RECORD.repeat(records)[..], &vec![0; padding]].concat();
    let bytes = message(1, 0, &[(2, &template(256, &ADDRESSES)), (256, &data)]);
    assert_eq!(bytes.len(), MESSAGE_MAX);
    let (mapped, received) = take(&mut stream(), &bytes);
    assert_eq!((mapped.len(), received.records), (records, records as u64));
    let beyond = take(&mut stream(), &message(1, records as u32, &[])).1;
    assert_eq!(beyond.lost, records as u64, "in another session nothing of it is known");
}

#[test]
fn c16_a_template_lives_until_it_is_withdrawn() {
    let mut session = stream();
    take(&mut session, &message(1, 0, &[(2, &template(256, &ADDRESSES))]));
    for sequence in 0..1000 {
        assert_eq!(take(&mut session, &message(1, sequence, &[(256, RECORD)])).0.len(), 1);
    }
    take(&mut session, &message(1, 1000, &[(2, &[1, 0, 0, 0])]));
    assert_eq!(take(&mut session, &message(1, 1000, &[(256, RECORD)])).1.sets_without_template, 1);
}

#[test]
fn c17_templates_of_one_session_are_not_used_in_another() {
    let mut first = stream();
    take(&mut first, &message(1, 0, &[(2, &template(256, &ADDRESSES))]));
    let (mapped, received) = take(&mut stream(), &message(1, 0, &[(256, RECORD)]));
    assert_eq!((mapped.len(), received.sets_without_template), (0, 1));
}

#[test]
fn c18_observation_domains_are_kept_apart() {
    let mut session = stream();
    // Under one ID, in three domains: a Template, another one, and an Options Template.
    let turned = template(256, &[(12, 4), (8, 4)]);
    let options = [&[1, 0, 0, 2, 0, 1][..], &specifiers(&[(149, 4), (42, 4)])].concat();
    take(&mut session, &message(1, 0, &[(2, &template(256, &ADDRESSES))]));
    take(&mut session, &message(2, 0, &[(2, &turned)]));
    take(&mut session, &message(3, 0, &[(3, &options)]));
    let mut source =
        |domain: u32, sequence: u32| match &take(&mut session, &message(domain, sequence, &[(256, RECORD)])) {
            (mapped, received) if received.lost == 0 => match &mapped[..] {
                [Mapped::Flow(flow)] => Some(flow.key.source),
                _ => None,
            },
            (_, received) => panic!("domain {domain}: each counts for itself: {received:?}"),
        };
    for sequence in 0..3 {
        assert_eq!(source(1, sequence), Some([192, 0, 2, 1].into()));
        assert_eq!(source(2, sequence), Some([192, 0, 2, 2].into()));
        assert_eq!(source(3, sequence), None);
    }
    // What one domain withdraws the others keep.
    take(&mut session, &message(1, 3, &[(2, &[0, 2, 0, 0]), (3, &[0, 3, 0, 0])]));
    assert_eq!(take(&mut session, &message(1, 3, &[(256, RECORD)])).1.sets_without_template, 1);
    assert_eq!(take(&mut session, &message(2, 3, &[(256, RECORD)])).0.len(), 1);
    assert_eq!(take(&mut session, &message(3, 3, &[(256, RECORD)])).0.len(), 1);
}

#[test]
fn c19_an_element_that_stands_twice_is_handled_in_order() {
    let fields = [(8, 4), (2, 1), (12, 4), (2, 2)];
    let data = [192, 0, 2, 1, 5, 192, 0, 2, 2, 1, 7];
    let mut seen = Vec::new();
    let bytes = message(1, 0, &[(2, &template(256, &fields)), (256, &data)]);
    let each = |_: &_, record: nagare_wire::ipfix::DataRecord<'_>| {
        seen.extend(record.fields().map(|(field, octets)| (field.element, octets.to_vec())));
    };
    stream().receive(&bytes, each).unwrap();
    let expected = [(8, vec![192, 0, 2, 1]), (2, vec![5]), (12, vec![192, 0, 2, 2]), (2, vec![1, 7])];
    assert_eq!(seen, expected, "both, each with its own length");
}

#[test]
fn c20_data_may_come_in_a_later_message_than_its_template() {
    let mut session = stream();
    take(&mut session, &message(1, 0, &[(2, &template(256, &ADDRESSES))]));
    take(&mut session, &message(1, 0, &[(2, &template(257, &ADDRESSES))]));
    assert_eq!(take(&mut session, &message(1, 0, &[(257, RECORD), (256, RECORD)])).0.len(), 2);
}

#[test]
fn e21_the_template_set_stands_before_its_data() {
    // Of any length of Message; the judge panics at data whose Template it has not seen.
    let judge = judged(FlowTemplate::full());
    assert_eq!(judge.messages, 1, "Templates and data share a Message where it is long enough");
}

#[test]
fn e23_withdrawals_have_no_fields_and_the_sets_own_id() {
    let mut builder = MessageBuilder::new(1400);
    builder.push_withdrawals().unwrap();
    assert_eq!(builder.records(), 0);
    let bytes = builder.finish(0, 0, DOMAIN);
    assert_eq!(bytes[16..], [0, 2, 0, 8, 0, 2, 0, 0, 0, 3, 0, 8, 0, 3, 0, 0]);
    // A session that changes its Templates: withdrawn before they are defined anew, in one Message.
    let mut judge = Judge::new(Manner::Stream);
    let mut basic = MessageBuilder::new(1400);
    basic.push_templates().unwrap();
    judge.message(&basic.finish(1, 0, DOMAIN));
    let mut full = MessageBuilder::with_template(0, FlowTemplate::full());
    full.push_withdrawals().unwrap();
    full.push_templates().unwrap();
    full.push_sampling(&Sampling { of: SamplingOf::Flows, one_in: 4 }).expect("limit_min has room for all of it");
    judge.message(&full.finish(2, 0, DOMAIN));
    full.push_flow(&flow(true)).unwrap();
    judge.message(&full.finish(3, 1, DOMAIN));
    assert_eq!((judge.records.len(), judge.templates_seen.len()), (2, 7 + 2 + 7));
}

#[test]
fn c24_a_withdrawn_template_is_not_used() {
    let options = [&[1, 1, 0, 2, 0, 1][..], &specifiers(&[(149, 4), (42, 4)])].concat();
    let define: [(u16, &[u8]); 2] = [(2, &template(256, &ADDRESSES)), (3, &options)];
    // (withdrawal as Set and content, whether Template 256 and Options Template 257 are there afterwards)
    let cases: [(u16, &[u8], [usize; 2]); 5] = [
        (2, &[1, 0, 0, 0], [0, 1]),
        (3, &[1, 1, 0, 0], [1, 0]),
        (2, &[1, 0, 0, 0, 1, 1, 0, 0], [0, 0]), // Both in one Set.
        (2, &[0, 2, 0, 0], [0, 1]),
        (3, &[0, 3, 0, 0], [1, 0]),
    ];
    for (set, withdrawal, left) in cases {
        let mut session = stream();
        take(&mut session, &message(1, 0, &define));
        let received = take(&mut session, &message(1, 0, &[(set, withdrawal)])).1;
        assert!(received.notes.is_empty(), "{:?}", received.notes);
        let found = [256, 257].map(|id| take(&mut session, &message(1, 0, &[(id, RECORD)])).0.len());
        assert_eq!(found, left, "{set} {withdrawal:?}");
        // Also within one Message, in the order in which they stand.
        let (mapped, received) = take(
            &mut stream(),
            &message(
                1,
                0,
                &[define[0], define[1], (256, RECORD), (257, RECORD), (set, withdrawal), (256, RECORD), (257, RECORD)],
            ),
        );
        assert_eq!(mapped.len(), 2 + left[0] + left[1]);
        assert_eq!(received.sets_without_template as usize, 2 - left[0] - left[1]);
    }
}

#[test]
fn c24_the_withdrawal_of_an_unknown_template_is_ignored_and_told() {
    let mut session = stream();
    take(&mut session, &message(1, 0, &[(2, &template(256, &ADDRESSES))]));
    let received = take(&mut session, &message(1, 0, &[(2, &[1, 7, 0, 0])])).1;
    assert_eq!(received.notes, ["withdrawal of the unknown Template 263 ignored"]);
    assert_eq!(take(&mut session, &message(1, 0, &[(256, RECORD)])).0.len(), 1, "the session goes on");
    assert_eq!((session.templates(), take(&mut session, &message(1, 1, &[(263, RECORD)])).0.len()), (1, 0));
}

#[test]
fn c25_a_redefinition_without_a_withdrawal_is_told() {
    let mut session = stream();
    take(&mut session, &message(1, 0, &[(2, &template(256, &ADDRESSES))]));
    let again = take(&mut session, &message(1, 0, &[(2, &template(256, &ADDRESSES))])).1;
    assert!(again.notes.is_empty(), "the same again is no redefinition");
    let other = take(&mut session, &message(1, 0, &[(2, &template(256, &[(12, 4), (8, 4)]))])).1;
    assert_eq!(other.notes, ["Template 256 defined anew without a withdrawal"]);
    let (mapped, _) = take(&mut session, &message(1, 0, &[(256, RECORD)]));
    let Mapped::Flow(flow) = &mapped[0] else { panic!("{mapped:?}") };
    assert_eq!(flow.key.source, IpAddr::from([192, 0, 2, 2]), "the new one holds");
}

#[test]
fn c26_over_udp_withdrawals_are_ignored_and_templates_replaced() {
    let mut session = TransportSession::new(Transport::Datagram);
    take(&mut session, &message(1, 0, &[(2, &template(256, &ADDRESSES))]));
    for withdrawal in [[1, 0, 0, 0], [0, 2, 0, 0]] {
        take(&mut session, &message(1, 0, &[(2, &withdrawal)]));
    }
    assert_eq!(take(&mut session, &message(1, 0, &[(256, RECORD)])).0.len(), 1);
    let other = take(&mut session, &message(1, 1, &[(2, &template(256, &[(12, 4), (8, 4)]))])).1;
    assert!(other.notes.is_empty(), "over UDP that is how Templates change: {:?}", other.notes);
    let (mapped, _) = take(&mut session, &message(1, 1, &[(256, RECORD)]));
    assert!(matches!(&mapped[0], Mapped::Flow(flow) if flow.key.source == IpAddr::from([192, 0, 2, 2])));
}

#[test]
fn c36_malformed_messages_hand_nothing_on_and_are_named() {
    let good = message(1, 0, &[(2, &template(256, &[(8, 4), (12, 4), (82, VARIABLE)]))]);
    let set = |length: u16| [&[0, 10, 0, 20], &[0; 12][..], &[1, 0], &length.to_be_bytes()].concat();
    let mut short = message(1, 0, &[]);
    short[3] = 15;
    let mut newer = good.clone();
    newer[1] = 11;
    let record = [RECORD, &[200, 1, 2, 3]].concat();
    let cases = [
        (message(1, 0, &[(256, &record)]), Malformed::Record(16)),
        (message(1, 0, &[(256, &[RECORD, &[255, 0]].concat())]), Malformed::Record(16)),
        (set(5), Malformed::SetLength(16, 5)),
        (set(3), Malformed::SetLength(16, 3)),
        (short, Malformed::Length(15)),
        (newer, Malformed::Version(11)),
        (message(1, 0, &[(2, &[1, 0, 0, 2, 0, 8, 0, 4])]), Malformed::Template(20)),
        (message(1, 0, &[(5, &[0; 4])]), Malformed::SetId(16, 5)),
    ];
    for (bytes, expected) in cases {
        let mut session = stream();
        take(&mut session, &good);
        let mut records = 0;
        assert_eq!(session.receive(&bytes, |_, _| records += 1).unwrap_err(), expected);
        assert_eq!(records, 0, "{expected}");
    }
}

#[test]
fn c37_unknown_elements_are_passed_over() {
    // An IANA element that nobody has assigned, one of an enterprise that nobody here knows, and one of variable length.
    let found = one_flow(
        &[(32_000, 3), (2, 1), (32_768 + 12, 4), (31_999, VARIABLE), (4, 1)],
        &[1, 2, 3, 7, 9, 9, 9, 9, 2, 1, 1, 17],
    );
    assert_eq!((found.forward.packets, found.key.protocol), (7, 17));
    assert_eq!(found.key.destination, IpAddr::from([192, 0, 2, 2]), "element 12 of an enterprise is no address");
}

#[test]
fn c38_losses_and_insertions_are_found_by_the_sequence() {
    let v4 = template(256, &ADDRESSES);
    let mut session = stream();
    let mut at = |sequence: u32| {
        let received = take(&mut session, &message(1, sequence, &[(2, &v4), (256, RECORD)])).1;
        (received.lost, received.notes.len())
    };
    assert_eq!([at(0), at(1)], [(0, 0), (0, 0)]);
    assert_eq!(at(5), (3, 0), "three are missing");
    assert_eq!(at(2), (0, 1), "what was inserted, or came again, is told");
    assert_eq!(at(0x7000_0000), (0, 1), "no jump counts as two thousand million lost records");
    // Modulo 2^32.
    let mut session = TransportSession::new(Transport::Datagram);
    let mut at = |sequence: u32| take(&mut session, &message(1, sequence, &[(2, &v4), (256, RECORD)])).1.lost;
    assert_eq!([at(u32::MAX - 1), at(u32::MAX), at(0), at(2)], [0, 0, 0, 1]);
}

#[test]
fn c39_the_templates_of_a_session_are_bounded() {
    let many: Vec<(u16, u16)> = vec![(4, 1); 16_370];
    let mut session = stream();
    let mut refusals = 0;
    for id in 256..266 {
        let received = take(&mut session, &message(1, 0, &[(2, &template(id, &many))])).1;
        refusals += received.template_refusals;
    }
    assert_eq!(
        (session.templates(), refusals as usize),
        (TEMPLATE_FIELDS_MAX / 16_370, 10 - TEMPLATE_FIELDS_MAX / 16_370)
    );
}

/// RFC 5471, 3.5.3: the most fields that a Template in one Message can have.
#[test]
fn c15_a_template_of_16_370_fields_is_taken() {
    let fields = [&ADDRESSES[..], &[(4, 1); 16_368]].concat();
    let define = message(1, 0, &[(2, &template(256, &fields))]);
    assert!(define.len() <= MESSAGE_MAX && define.len() + 4 * 10 > MESSAGE_MAX);
    let mut session = stream();
    assert_eq!(take(&mut session, &define).1.template_refusals, 0);
    let data = [RECORD, &[17; 16_368]].concat();
    let (mapped, _) = take(&mut session, &message(1, 0, &[(256, &data.repeat(3))]));
    assert_eq!(mapped.len(), 3);
}

#[test]
fn e45_reverse_elements_have_a_direction_and_a_reverse() {
    // The judge knows the elements that have none (RFC 5103, 6.1), and the keys that give a direction (4).
    let judge = judged(FlowTemplate::full());
    let record = judge.flows().next().expect("a flow");
    let of = |pen: u32, element: u16| record.fields.iter().find(|(field, _)| (field.0, field.1) == (element, pen));
    assert_eq!(record.get(239), Some(&[1][..]), "biflowDirection: the source is the initiator");
    assert!(of(29305, 1).is_some() && of(29305, 2).is_some() && of(29305, 239).is_none());
    let field = |name: &str| CATALOGUE.iter().find(|field| field.name == name).expect(name);
    let counters = [field("packetDeltaCount"), field("reversePacketDeltaCount")];
    assert_eq!(FlowTemplate::new(&counters).unwrap_err(), TemplateError::ReverseWithoutDirection);
    assert!(FlowTemplate::new(&[counters[0], counters[1], field("destinationTransportPort")]).is_ok());
}

#[test]
fn c45_reverse_elements_are_of_the_other_direction() {
    let mut fields = specifiers(&[(8, 4), (12, 4), (2, 1), (239, 1)]);
    for element in [1_u16, 2, 6] {
        fields.extend_from_slice(&(element | 0x8000).to_be_bytes());
        fields.extend_from_slice(&[0, 2]);
        fields.extend_from_slice(&29305_u32.to_be_bytes());
    }
    let define = [&[1, 0, 0, 7][..], &fields].concat();
    let data = [RECORD, &[3, 1], &[1, 0, 0, 9, 0, 0x12]].concat();
    let (mapped, _) = take(&mut stream(), &message(1, 0, &[(2, &define), (256, &data)]));
    let Mapped::Flow(flow) = &mapped[0] else { panic!("{mapped:?}") };
    assert_eq!((flow.forward.packets, flow.forward.octets), (3, 0));
    assert_eq!((flow.reverse.packets, flow.reverse.octets, flow.reverse.tcp_flags), (9, 256, 0x12));
}

#[test]
fn c46_a_file_may_replace_and_withdraw_templates() {
    let mut session = TransportSession::new(Transport::File);
    let turned = template(256, &[(12, 4), (8, 4)]);
    let mut sources = Vec::new();
    let contents: [&[(u16, &[u8])]; 4] = [
        &[(2, &template(256, &ADDRESSES)), (256, RECORD)],
        &[(2, &turned), (256, RECORD)],
        &[(2, &[1, 0, 0, 0]), (256, RECORD)],
        &[(2, &template(256, &ADDRESSES)), (256, RECORD)],
    ];
    for (sequence, sets) in [0, 1, 2, 2].into_iter().zip(contents) {
        let (mapped, received) = take(&mut session, &message(1, sequence, sets));
        assert!(received.lost == 0 && received.notes.is_empty(), "{:?}", received.notes);
        sources.extend(mapped.into_iter().map(|one| match one {
            Mapped::Flow(flow) => flow.key.source,
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(sources, [[192, 0, 2, 1], [192, 0, 2, 2], [192, 0, 2, 1]].map(IpAddr::from));
}

#[test]
fn c47_type_records_of_other_exporters_are_passed_over() {
    // privateEnterpriseNumber and informationElementId are the scopes; the same element told twice, in two ways, with a NUL.
    let options = [&[1, 0, 0, 4, 0, 2][..], &specifiers(&[(346, 4), (303, 2), (339, 1), (341, VARIABLE)])].concat();
    let told = |name: &[u8], kind: u8| [&[0, 0, 0x10, 0x92, 0, 7, kind, name.len() as u8], name].concat();
    let data = [told(b"fooCount", 4), told(b"foo\0Count", 5)].concat();
    let (mapped, received) = take(
        &mut stream(),
        &message(1, 0, &[(3, &options), (256, &data), (2, &template(300, &ADDRESSES)), (300, RECORD)]),
    );
    assert!(matches!(mapped[..], [Mapped::Other, Mapped::Other, Mapped::Flow(_)]), "{mapped:?}");
    assert!(received.notes.is_empty());
}

#[test]
fn the_judge_condemns_what_breaks_a_rule() {
    let v4: &[u8] = &template(256, &ADDRESSES);
    let with = |at: usize, octet: u8| {
        let mut bytes = message(1, 0, &[(2, v4), (256, RECORD)]);
        bytes[at] = octet;
        bytes
    };
    let reverse = |element: u16| [&(element | 0x8000).to_be_bytes()[..], &[0, 8, 0, 0, 0x72, 0x79]].concat();
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("the version", vec![with(1, 9)]),
        ("Length is that", vec![with(3, 40)]),
        ("the sequence", vec![message(1, 1, &[])]),
        ("of domain 2", vec![message(1, 0, &[(2, v4), (256, RECORD)]), message(2, 1, &[])]),
        ("Set Length", vec![with(19, 99)]),
        ("reserved", vec![message(1, 0, &[(4, v4)])]),
        ("Export Time", vec![message(1, 0, &[]), with(4, 0)]),
        ("Template ID 255", vec![message(1, 0, &[(2, &template(255, &ADDRESSES))])]),
        ("Scope Field Count", vec![message(1, 0, &[(3, &[1, 0, 0, 1, 0, 0, 0, 143, 0, 4])])]),
        ("in 3 octets", vec![message(1, 0, &[(2, &template(256, &[(8, 3)]))])]),
        ("in 7 octets", vec![message(1, 0, &[(2, &template(256, &[(152, 7)]))])]),
        ("in 9 octets", vec![message(1, 0, &[(2, &template(256, &[(1, 9)]))])]),
        ("padding is zero", vec![message(1, 0, &[(2, v4), (256, &[RECORD, &[1]].concat())])]),
        ("padding is zero", vec![message(1, 0, &[(2, &[v4, &[1, 0]].concat())])]),
        ("before its Template", vec![message(1, 0, &[(256, RECORD), (2, v4)])]),
        ("before its Template", vec![message(1, 0, &[(2, v4)]), message(2, 0, &[(256, RECORD)])]),
        ("before its Template", vec![message(1, 0, &[(2, v4), (2, &[1, 0, 0, 0]), (256, RECORD)])]),
        ("what is withdrawn", vec![message(1, 0, &[(2, &[1, 0, 0, 0])])]),
        ("defined anew", vec![message(1, 0, &[(2, v4)]), message(1, 0, &[(2, &template(256, &[(8, 4)]))])]),
        ("no UTF-8", vec![message(1, 0, &[(2, &template(256, &[(335, 1)])), (256, &[0xff])])]),
        ("has no reverse", vec![message(1, 0, &[(2, &[&[1, 0, 0, 1][..], &reverse(163)].concat())])]),
        ("no key that has a direction", vec![message(1, 0, &[(2, &[&[1, 0, 0, 1][..], &reverse(1)].concat())])]),
    ];
    for (told, messages) in cases {
        let judged = std::panic::catch_unwind(|| {
            let mut judge = Judge::new(Manner::Stream);
            messages.iter().for_each(|message| judge.message(message));
        });
        let panic = judged.expect_err(told);
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).expect("words");
        assert!(words.contains(told), "{told:?} in: {words}");
    }
}

/// The demands that are counted.
const DEMANDS: std::ops::RangeInclusive<usize> = 1..=50;

/// Where tests with a demand's number stand.
const TESTS: [&str; 3] = ["wire/tests/rfc.rs", "probe/tests/rfc.rs", "collector/tests/rfc.rs"];

/// A file of the repository.
fn source(path: &str) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../");
    std::fs::read_to_string(format!("{root}{path}")).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The number of a test's demand.
fn demand_of(test: &str) -> Option<usize> {
    let digits = test.strip_prefix(['e', 'c'])?.split_once('_')?.0;
    (digits.len() == 2).then(|| digits.parse().ok())?
}

/// The tests of a source that have a number.
fn numbered(source: &str) -> impl Iterator<Item = &str> {
    let tests = source.split("#[test]\n").skip(1);
    let functions = tests.filter_map(|test| test.split_once("fn ")?.1.split_once('(').map(|(name, _)| name));
    functions.filter(|name| demand_of(name).is_some())
}

#[test]
fn the_table_names_every_test_and_no_other() {
    let sources = TESTS.map(source);
    let tests: BTreeSet<&str> = sources.iter().flat_map(|source| numbered(source)).collect();
    let table = source("docs/rfc.md");
    let mut rows = vec![BTreeSet::new(); DEMANDS.end() + 1];
    let mut named = 0;
    for row in table.lines() {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [number, side, _, names, status] = cells[..] else { continue };
        let Ok(number) = number.parse::<usize>() else { continue };
        assert!(DEMANDS.contains(&number) && rows[number].is_empty(), "a row too many: {row}");
        rows[number] = names.split_whitespace().map(|name| name.trim_matches('`')).collect();
        let is_offered = !status.starts_with("not offered");
        assert_eq!(is_offered, !rows[number].is_empty(), "what is offered has a test: {row}");
        assert!(["met", "not offered", "deviation"].iter().any(|word| status.starts_with(word)), "{row}");
        assert!(matches!(side, "E" | "C" | "E C"), "{row}");
        named += 1;
    }
    assert_eq!(named, DEMANDS.count(), "a demand has no row");
    for name in rows.iter().flatten() {
        let is_there = match name.split_once("::") {
            Some((file, test)) => source(file).contains(&format!("#[test]\nfn {test}()")),
            None => tests.contains(name),
        };
        assert!(is_there, "the table names {name}, which is not there");
    }
    for test in tests {
        let number = demand_of(test).expect("numbered");
        assert!(rows.get(number).is_some_and(|row| row.contains(test)), "{test} is not in row {number} of the table");
    }
}
