//! Whatever an Exporter may send, through a Transport Session and the mapping of its records.
//!
//! The first octet chooses the transport, and whether the rest is a byte stream as it comes or the contents of Messages
//! whose lengths are put right (one octet: end of the Message or not, two: Set ID, one: length), which gets further in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nagare_wire::ipfix::export::MessageBuilder;
use nagare_wire::ipfix::mapping::{Mapped, NAME_MAX, map};
use nagare_wire::ipfix::{
    DataRecord, MessageHeader, TEMPLATE_FIELDS_MAX, TEMPLATES_MAX, Transport, TransportSession, frame,
};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    let transport = [Transport::Stream, Transport::Datagram, Transport::File][usize::from(choice & 0x7f) % 3];
    let stream = if choice & 0x80 == 0 { data.to_vec() } else { put_right(data) };
    let mut session = TransportSession::new(transport);
    let mut rest = &stream[..];
    while let Ok(Some(length)) = frame(rest) {
        assert!((16..=rest.len()).contains(&length));
        let (message, after) = rest.split_at(length);
        if !receive(&mut session, message) && transport == Transport::Stream {
            return;
        }
        rest = after;
    }
});

/// Decodes a Message; false where it is malformed.
fn receive(session: &mut TransportSession, message: &[u8]) -> bool {
    let mut handed = 0u64;
    let (mut octets, mut fields) = (0, 0);
    let outcome = session.receive(message, |header, record| {
        handed += 1;
        octets += check(header, &record);
        fields += record.template().fields.len();
    });
    assert!(session.templates() <= TEMPLATES_MAX);
    assert!(octets <= message.len() && fields <= message.len(), "no Message costs more than its octets");
    let Ok(received) = outcome else { return false };
    assert_eq!(received.records, handed);
    assert_eq!(usize::from(received.header.length), message.len());
    assert!(received.lost <= u64::from(u32::MAX) && received.notes.len() <= 8);
    assert!(session.receive(&message[..message.len() - 1], |_, _| ()).is_err());
    true
}

/// What holds of every record; its octets.
fn check(header: &MessageHeader, record: &DataRecord<'_>) -> usize {
    let template = record.template();
    assert!(template.fields.len() <= TEMPLATE_FIELDS_MAX && template.id >= 256);
    let fields: Vec<_> = record.fields().collect();
    assert_eq!(fields.len(), template.fields.len(), "a record that is handed on is whole");
    let octets = fields.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
    assert!(octets > 0 || template.is_variable());
    match map(header, record) {
        Mapped::Flow(flow) => {
            assert!(!record.is_options() && flow.key.vlan < 4096);
            assert_eq!(flow.key.source.is_ipv4(), flow.key.destination.is_ipv4());
            relayed(&Mapped::Flow(flow));
            flow.write_json(&mut String::new());
        }
        Mapped::Book(book) => {
            assert!(record.is_options() && book.name.len() <= 3 * NAME_MAX);
            if book.name.len() <= NAME_MAX {
                relayed(&Mapped::Book(book));
            }
        }
        Mapped::Statistics(statistics) => relayed(&Mapped::Statistics(statistics)),
        Mapped::Other => {}
    }
    octets
}

/// What was understood can be sent on, and is understood there as the same.
fn relayed(mapped: &Mapped) {
    let mut builder = MessageBuilder::new(1400);
    builder.push_templates().expect("there is room");
    match mapped {
        Mapped::Flow(flow) => builder.push_flow(flow),
        Mapped::Book(book) => builder.push_book(book),
        Mapped::Statistics(statistics) => builder.push_statistics(statistics),
        Mapped::Other => Ok(()),
    }
    .expect("there is room");
    let message = builder.finish(0, 0, 0);
    let mut there = Vec::new();
    TransportSession::new(Transport::Stream)
        .receive(&message, |header, record| there.push(map(header, &record)))
        .expect("what Nagare sends is well formed");
    assert_eq!(there, std::slice::from_ref(mapped));
}

fn put_right(mut data: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    while !data.is_empty() {
        let start = stream.len();
        let header = data.split_off(..data.len().min(3)).unwrap_or_default();
        let domain = header.first().copied().unwrap_or(0) & 3;
        stream.extend([0, 10, 0, 0, 0x65, 0, 0, 0, 0, 0, 0, header.get(1).copied().unwrap_or(0), 0, 0, 0, domain]);
        while let Some((&[end, high, low, length], after)) = data.split_first_chunk::<4>() {
            let (content, after) = after.split_at(usize::from(length).min(after.len()));
            data = after;
            stream.extend([high, low]);
            stream.extend((content.len() as u16 + 4).to_be_bytes());
            stream.extend(content);
            if end & 1 == 1 || stream.len() - start > 60_000 {
                break;
            }
        }
        if data.len() < 4 {
            data = &[];
        }
        let length = (stream.len() - start) as u16;
        stream[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
    }
    stream
}
