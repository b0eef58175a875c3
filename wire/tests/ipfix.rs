//! The codec against itself, against truncation and damage, and against the rules of RFC 7011 for Templates.

mod bytes;

use bytes::{message, template};
use nagare_wire::flow::{Counters, DirectionMeasured, FlowKey, FlowRecord, Measured, Origin, Tunnel, TunnelKind};
use nagare_wire::ipfix::export::MessageBuilder;
use nagare_wire::ipfix::field::FlowTemplate;
use nagare_wire::ipfix::mapping::{Book, ExporterStatistics, Mapped, Process, map};
use nagare_wire::ipfix::{Malformed, Transport, TransportSession, frame};
use proptest::prelude::*;
use std::net::IpAddr;

fn receive(session: &mut TransportSession, message: &[u8]) -> Result<(Vec<Mapped>, u64), Malformed> {
    let mut mapped = Vec::new();
    let received = session.receive(message, |header, record| mapped.push(map(header, &record)))?;
    assert_eq!(received.records, mapped.len() as u64);
    Ok((mapped, received.lost))
}

fn counters() -> impl Strategy<Value = Counters> {
    (any::<u64>(), any::<u64>(), 0u16..4096).prop_map(|(packets, octets, tcp_flags)| Counters {
        packets,
        octets,
        tcp_flags,
    })
}

fn flow() -> impl Strategy<Value = FlowRecord> {
    let v4 = (any::<[u8; 4]>(), any::<[u8; 4]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
    let v6 = (any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
    let key = (prop_oneof![v4, v6], any::<(u16, u16, u8)>(), 0u16..4096);
    let ms = 0..u64::MAX / 1000;
    let rest = (ms.clone(), ms, any::<u8>(), any::<u8>()).prop_map(|(a, b, c, d)| (a * 1000, b * 1000, c, d));
    (key, counters(), counters(), rest).prop_map(|((ends, ports, vlan), forward, reverse, rest)| FlowRecord {
        key: FlowKey {
            source: ends.0,
            destination: ends.1,
            source_port: ports.0,
            destination_port: ports.1,
            protocol: ports.2,
            vlan,
            ..FlowKey::default()
        },
        start_us: rest.0,
        end_us: rest.1,
        forward,
        reverse,
        tos: rest.2,
        end_reason: rest.3,
        ..FlowRecord::default()
    })
}

fn entry() -> impl Strategy<Value = Mapped> {
    let process = prop_oneof![Just(Process::Metering), Just(Process::Exporting)];
    let book = (process, any::<u32>(), "[a-z_.]{0,64}", any::<u64>())
        .prop_map(|(process, process_id, name, value)| Mapped::Book(Book { process, process_id, name, value }));
    let statistics = (any::<u32>(), 1u64.., any::<[u64; 6]>()).prop_map(|(process_id, init_time_ms, v)| {
        Mapped::Statistics(ExporterStatistics {
            process_id,
            init_time_ms,
            messages: v[0],
            octets: v[1],
            records: v[2],
            not_sent_flows: v[3],
            not_sent_packets: v[4],
            not_sent_octets: v[5],
        })
    });
    prop_oneof![4 => flow().prop_map(Mapped::Flow), 1 => book, 1 => statistics]
}

/// Encodes `entries` as a session would: Templates first, as many Messages as `limit` makes of them.
fn encode(entries: &[Mapped], limit: usize) -> Vec<Vec<u8>> {
    let mut builder = MessageBuilder::new(limit);
    builder.push_templates().expect("the Templates fit any limit");
    let (mut messages, mut sequence) = (Vec::new(), 0u32);
    let mut finish = |builder: &mut MessageBuilder| {
        let records = builder.records();
        messages.push(builder.finish(1_700_000_000, sequence, 9));
        sequence += records;
    };
    for entry in entries {
        let push = |builder: &mut MessageBuilder| match entry {
            Mapped::Flow(flow) => builder.push_flow(flow),
            Mapped::Book(book) => builder.push_book(book),
            Mapped::Statistics(statistics) => builder.push_statistics(statistics),
            Mapped::Other => unreachable!("never generated"),
        };
        if push(&mut builder).is_err() {
            finish(&mut builder);
            push(&mut builder).expect("an empty Message holds any record");
        }
    }
    finish(&mut builder);
    messages
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(entries in proptest::collection::vec(entry(), 0..80), limit in 400usize..70_000) {
        let mut session = TransportSession::new(Transport::Stream);
        let mut decoded = Vec::new();
        for message in encode(&entries, limit) {
            prop_assert!(message.len() <= limit.max(512));
            prop_assert_eq!(frame(&message), Ok(Some(message.len())));
            let (mapped, lost) = receive(&mut session, &message).unwrap();
            prop_assert_eq!(lost, 0);
            decoded.extend(mapped);
        }
        prop_assert_eq!(decoded, entries);
    }

    #[test]
    fn every_truncation_is_refused(entries in proptest::collection::vec(entry(), 1..6)) {
        let messages = encode(&entries, 1400);
        for length in 0..messages[0].len() {
            let cut = &messages[0][..length];
            prop_assert_eq!(frame(cut), Ok(None));
            let mut session = TransportSession::new(Transport::Datagram);
            prop_assert!(session.receive(cut, |_, _| ()).is_err());
            // The same cut with a header that admits to it: Sets or records must not add up, or hold less.
            let mut honest = cut.to_vec();
            if length >= 16 {
                honest[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                let mut records = 0;
                let _ = session.receive(&honest, |header, record| { map(header, &record); records += 1; });
                prop_assert!(records <= entries.len());
            }
        }
    }

    #[test]
    fn damage_never_panics(
        entries in proptest::collection::vec(entry(), 0..8),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut session = TransportSession::new(Transport::Datagram);
        for mut message in encode(&entries, 1400) {
            for (at, value) in &damage {
                let at = at.index(message.len());
                message[at] = *value;
            }
            let _ = session.receive(&message, |header, record| { map(header, &record); });
        }
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), set in 0u16..300) {
        let length = bytes.len() as u16;
        if bytes.len() >= 20 {
            bytes[0..2].copy_from_slice(&10u16.to_be_bytes());
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[16..18].copy_from_slice(&set.to_be_bytes());
            bytes[18..20].copy_from_slice(&(length - 16).to_be_bytes());
        }
        let _ = TransportSession::new(Transport::Stream).receive(&bytes, |header, record| { map(header, &record); });
    }
}

const ADDRESSES: [(u16, u16); 2] = [(8, 4), (12, 4)];

#[test]
fn foreign_templates_are_understood() {
    // Reduced sizes, a variable length in both forms, an unknown enterprise element, seconds, padding that is not zero.
    let fields = [(8, 4), (12, 4), (32770, 65535), (2, 3), (1, 1), (150, 4), (161, 4), (32771, 5)];
    let long = [vec![255, 1, 44], vec![7; 300]].concat();
    let record = |prefixed: &[u8]| {
        let head: &[u8] = &[10, 0, 0, 1, 10, 0, 0, 2];
        let tail: &[u8] = &[0, 1, 0, 200, 0x65, 0x53, 0xf1, 0, 0, 0, 3, 232, 1, 2, 3, 4, 5];
        [head, prefixed, tail].concat()
    };
    let data = [record(&[2, 1, 1]), record(&long), vec![9, 9, 9]].concat();
    let mut session = TransportSession::new(Transport::Stream);
    let bytes = message(1, 0, &[(2, &template(300, &fields)), (300, &data)]);
    let (mapped, _) = receive(&mut session, &bytes).unwrap();
    assert_eq!(mapped.len(), 2);
    for flow in mapped {
        let Mapped::Flow(flow) = flow else { panic!("{flow:?}") };
        assert_eq!((flow.forward.packets, flow.forward.octets), (256, 200));
        assert_eq!((flow.start_ms(), flow.end_ms()), (1_700_000_000_000, 1_700_000_001_000));
    }
}

#[test]
fn templates_live_by_the_rules_of_their_transport() {
    let v4 = template(256, &ADDRESSES);
    let longer = template(256, &[(8, 4), (12, 4), (7, 2)]);
    let options = [1, 0, 0, 2, 0, 1, 0, 8, 0, 4, 0, 12, 0, 4];
    let (withdrawal, all) = ([1, 0, 0, 0], [0, 2, 0, 0]);
    let record: &[u8] = &[10, 0, 0, 1, 10, 0, 0, 2];
    // (what, transport, Messages before as domain and Sets, records that a Data Set of 256 in domain 1 then gives)
    type Before<'a> = Vec<(u32, u16, &'a [u8])>;
    let cases: Vec<(&str, Transport, Before<'_>, usize)> = vec![
        ("unknown", Transport::Stream, vec![], 0),
        ("known", Transport::Stream, vec![(1, 2, &v4)], 1),
        ("of another domain", Transport::Stream, vec![(2, 2, &v4)], 0),
        ("withdrawn", Transport::Stream, vec![(1, 2, &v4), (1, 2, &withdrawal)], 0),
        ("all withdrawn", Transport::Stream, vec![(1, 2, &v4), (1, 2, &all)], 0),
        ("withdrawn in another domain", Transport::Stream, vec![(1, 2, &v4), (2, 2, &withdrawal)], 1),
        ("all withdrawn in another domain", Transport::Stream, vec![(1, 2, &v4), (2, 2, &all)], 1),
        ("all Options Templates withdrawn", Transport::Stream, vec![(1, 3, &options), (1, 3, &[0, 3, 0, 0])], 0),
        ("options stay", Transport::Stream, vec![(1, 3, &options), (1, 2, &all)], 1),
        ("once options, withdrawn", Transport::Stream, vec![(1, 3, &options), (1, 2, &v4), (1, 2, &withdrawal)], 0),
        ("withdrawn over UDP", Transport::Datagram, vec![(1, 2, &v4), (1, 2, &withdrawal)], 1),
        ("replaced, 8 octets are padding", Transport::Stream, vec![(1, 2, &v4), (1, 2, &longer)], 0),
    ];
    for (what, transport, before, records) in cases {
        let mut session = TransportSession::new(transport);
        for (domain, set, content) in before {
            receive(&mut session, &message(domain, 0, &[(set, content)])).unwrap();
        }
        let (mapped, _) = receive(&mut session, &message(1, 0, &[(256, record)])).unwrap();
        assert_eq!(mapped.len(), records, "{what}");
    }
}

#[test]
fn withdrawals_make_room_for_other_templates_under_the_same_numbers() {
    let mut session = TransportSession::new(Transport::Stream);
    let mut basic = MessageBuilder::new(1400);
    basic.push_templates().unwrap();
    receive(&mut session, &basic.finish(1, 0, 9)).unwrap();
    // Without a withdrawal before them other Templates are a fault that is noted.
    let mut full = MessageBuilder::with_template(0, FlowTemplate::full());
    full.push_withdrawals().unwrap();
    full.push_templates().unwrap();
    let received = session.receive(&full.finish(2, 0, 9), |_, _| ()).unwrap();
    assert!(received.notes.is_empty(), "{:?}", received.notes);
    assert_eq!(session.templates(), 7);
    // In a Set that is open for definitions nothing is withdrawn.
    full.push_templates().unwrap();
    full.push_withdrawals().unwrap();
    receive(&mut session, &full.finish(3, 0, 9)).unwrap();
    assert_eq!(session.templates(), 0);
}

#[test]
fn the_sequence_tells_losses() {
    let v4 = template(256, &ADDRESSES);
    let record: &[u8] = &[10, 0, 0, 1, 10, 0, 0, 2];
    for (transport, sequences, losses) in [
        (Transport::Stream, [0, 1, 5, 6], [0, 0, 3, 0]),
        (Transport::Stream, [4, 5, 6, 7], [4, 0, 0, 0]),
        (Transport::Datagram, [7, 8, 10, 11], [0, 0, 1, 0]),
        (Transport::Datagram, [7, 9, 8, 10], [0, 1, 0, 0]),
        (Transport::Datagram, [u32::MAX, 0, 0x8000_0000, 0x8000_0001], [0, 0, 0, 0]),
    ] {
        let mut session = TransportSession::new(transport);
        receive(&mut session, &message(1, sequences[0], &[(2, &v4)])).unwrap();
        let mut session = TransportSession::new(transport);
        for (sequence, loss) in sequences.into_iter().zip(losses) {
            let bytes = message(1, sequence, &[(2, &v4), (256, record)]);
            assert_eq!(receive(&mut session, &bytes).unwrap().1, loss, "{transport:?} {sequences:?} at {sequence}");
        }
    }
}

#[test]
fn malformed_messages_are_named() {
    let v4 = template(256, &ADDRESSES);
    let mut session = TransportSession::new(Transport::Stream);
    receive(&mut session, &message(1, 0, &[(2, &template(257, &[(8, 4), (82, 65535)]))])).unwrap();
    let mut wrong_version = message(1, 0, &[]);
    wrong_version[1] = 9;
    let mut long_set = message(1, 0, &[(2, &v4)]);
    long_set[19] = 200;
    let cases = [
        (wrong_version, Malformed::Version(9)),
        (vec![0, 10, 0, 3], Malformed::Length(3)),
        (long_set, Malformed::SetLength(16, 200)),
        (message(1, 0, &[(4, &v4)]), Malformed::SetId(16, 4)),
        (message(1, 0, &[(2, &template(255, &ADDRESSES))]), Malformed::Template(20)),
        (message(1, 0, &[(2, &v4[..10])]), Malformed::Template(20)),
        (message(1, 0, &[(3, &template(256, &ADDRESSES))]), Malformed::Template(20)),
        (message(1, 0, &[(257, &[10, 0, 0, 1, 9, 65])]), Malformed::Record(16)),
    ];
    for (bytes, expected) in cases {
        assert_eq!(receive(&mut session, &bytes).unwrap_err(), expected);
    }
}

#[test]
fn a_session_holds_a_bounded_number_of_templates() {
    let mut session = TransportSession::new(Transport::Stream);
    let mut refusals = 0;
    for id in 256..=u16::MAX {
        let bytes = message(u32::from(id % 7), 0, &[(2, &template(id, &ADDRESSES))]);
        refusals += session.receive(&bytes, |_, _| ()).unwrap().template_refusals;
    }
    assert_eq!(session.templates(), nagare_wire::ipfix::TEMPLATES_MAX);
    assert_eq!(refusals as usize, 65_536 - 256 - nagare_wire::ipfix::TEMPLATES_MAX);
}

#[test]
fn the_fields_of_a_message_are_no_more_than_its_octets() {
    // One octet a record and 16,000 fields to look at in each: the Message would take seconds.
    let many = [&[(4, 1)][..], &[(82, 0); 15_999]].concat();
    let cases = [(&[(82, 0)][..], 0), (&[(4, 1), (82, 0)], 0), (&many, 0), (&[(1, 4), (82, 0)], 250)];
    for (fields, records) in cases {
        let bytes = message(1, 0, &[(2, &template(256, fields)), (256, &[0; 1000])]);
        let received = TransportSession::new(Transport::Datagram).receive(&bytes, |_, _| ()).unwrap();
        assert_eq!((received.records, received.template_refusals), (records, u64::from(records == 0)));
    }
}

/// A record with something in every field that can be exported.
fn rich(n: u32, ends: (IpAddr, IpAddr), tunnel: Option<Tunnel>) -> FlowRecord {
    let measured = |n: u32| DirectionMeasured {
        layer2_octets: u64::from(n) << 20,
        length_min: n % 1500,
        length_max: n % 65_536,
        ttl_min: n as u8,
        ttl_max: (n >> 8) as u8,
        tcp_initial_sequence: !n,
        spi: n ^ 77,
        retransmitted: n ^ 5,
        out_of_order: n ^ 9,
        zero_window: 0, // No element for it.
    };
    FlowRecord {
        key: FlowKey {
            source: ends.0,
            destination: ends.1,
            vlan: n as u16 & 0xfff,
            customer_vlan: (n >> 4) as u16 & 0xfff,
            tunnel,
            ..FlowKey::default()
        },
        start_us: 1_700_000_000_000_000 + u64::from(n),
        end_us: 1_800_000_000_000_000 + u64::from(n) * 7,
        origin: Origin {
            interface: n as u16,
            reverse_interface: (n >> 16) as u16,
            source_mac: [2, 0, 0, 0, 0, n as u8],
            destination_mac: [n as u8; 6],
            mpls_top: n & 0xff_ffff,
            flow_label: if ends.0.is_ipv6() { n & 0xf_ffff } else { 0 },
            icmp_type_code: n as u16,
            outer: tunnel.map(|_| ([192, 0, 2, 1].into(), [192, 0, 2, 2].into())),
            tunnel_id: tunnel.map_or(0, |tunnel| tunnel.id),
        },
        measured: Measured {
            forward: measured(n),
            reverse: measured(n.rotate_left(9)),
            client_network_us: n % 1_000_000 * 2000,
            server_network_us: n % 1_000_001 * 2000,
            application_us: n % 1_000_002 * 1000,
        },
        ..FlowRecord::default()
    }
}

proptest! {
    #[test]
    fn a_full_template_keeps_everything(n in any::<u32>(), v6 in any::<[u8; 16]>(), is_v6 in any::<bool>(), kind in 0usize..9) {
        let ends: (IpAddr, IpAddr) = if is_v6 { (v6.into(), v6.into()) } else { (n.to_be_bytes().into(), [1, 2, 3, 4].into()) };
        let tunnel = TunnelKind::ALL.get(kind).map(|kind| Tunnel {
            kind: *kind,
            id: if kind.shares_identifier() { n } else { 0 },
        });
        let flow = rich(n, ends, tunnel);
        let mut builder = MessageBuilder::with_template(512, FlowTemplate::full());
        builder.push_templates().expect("the limit is raised to what the Templates need");
        let mut session = TransportSession::new(Transport::Stream);
        receive(&mut session, &builder.finish(1, 0, 9)).unwrap();
        builder.push_flow(&flow).unwrap();
        let (mapped, _) = receive(&mut session, &builder.finish(1, 0, 9)).unwrap();
        prop_assert_eq!(mapped, vec![Mapped::Flow(flow)]);
    }
}
