//! Frames of every link type through the decoder and the table of fragments.
//!
//! The input is a capture: of each frame one octet for its link type, one for what was cut off it, two for its length, and
//! its octets. All frames share one fragment table.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nagare_wire::fragment::FragmentTable;
use nagare_wire::packet::{self, LinkType, Packet, Tunnels, has_ports, is_extension_header};
use nagare_wire::steer;
use std::net::IpAddr;

const LINKS: [LinkType; 8] = [
    LinkType::Ethernet,
    LinkType::RawIp,
    LinkType::LinuxSll,
    LinkType::LinuxSll2,
    LinkType::Null,
    LinkType::Ppp,
    LinkType::CiscoHdlc,
    LinkType::Ppi,
];

fuzz_target!(|data: &[u8]| {
    let mut table = FragmentTable::new(64, 7);
    let mut now_ns = 0;
    let mut rest = data;
    while let Some((&[link, cut, high, low], after)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(after.len());
        let (frame, after) = after.split_at(length);
        now_ns += 1_000_000_000;
        check(LINKS[usize::from(link) % LINKS.len()], frame, u32::from(cut), &mut table, now_ns);
        rest = after;
    }
});

fn check(link: LinkType, frame: &[u8], cut: u32, table: &mut FragmentTable, now_ns: u64) {
    let wire_length = frame.len() as u32 + cut;
    let outer = packet::decode(link, frame, wire_length, Tunnels::Outer);
    let inner = packet::decode(link, frame, wire_length, Tunnels::Inner);
    let (Ok(observation), Ok(inner)) = (outer, inner) else { return assert_eq!(outer, inner) };
    sound(&observation);
    sound(&inner);
    assert_eq!(inner.key.tunnel.is_some(), inner.outer.is_some());
    assert!(inner.key.tunnel.is_some() || inner == observation);
    shorter_frames_agree(link, frame, wire_length, &observation);
    if link == LinkType::RawIp {
        the_way_back_has_the_reversed_key(frame, wire_length, &observation);
    }
    fragments_join(&observation, table, now_ns);
}

fn sound(observation: &Packet) {
    let key = &observation.key;
    assert_eq!(key.source.is_ipv4(), key.destination.is_ipv4());
    assert!(observation.octets >= header_length(observation));
    assert!(key.vlan < 4096 && observation.tcp_flags < 4096);
    assert!(observation.tcp_flags == 0 || key.protocol == 6);
    assert!(has_ports(key.protocol) || (key.source_port, key.destination_port) == (0, 0));
    assert_eq!(key.reversed().reversed(), *key);
    assert_eq!(key.canonical().0, key.reversed().canonical().0);
    for (seed, workers) in [(0, 1), (7, 3), (u32::MAX, 64)] {
        let hash = steer::hash(key, seed);
        assert_eq!(hash, steer::hash(&key.reversed(), seed));
        assert!(steer::worker(hash, workers) < workers);
    }
}

/// The shortest header of its family.
fn header_length(observation: &Packet) -> u32 {
    if observation.key.source.is_ipv4() { 20 } else { 40 }
}

/// Of a frame that was cut less is known, but nothing else.
fn shorter_frames_agree(link: LinkType, frame: &[u8], wire_length: u32, whole: &Packet) {
    for length in [frame.len() / 2, frame.len().saturating_sub(1)] {
        let Ok(cut) = packet::decode(link, &frame[..length], wire_length, Tunnels::Outer) else { continue };
        let known = |o: &Packet| (o.key.source, o.key.destination, o.key.vlan, o.octets, o.tos);
        assert_eq!(known(&cut), known(whole));
        assert!(cut.key.source_port == 0 || cut.key.source_port == whole.key.source_port);
        assert!(cut.tcp_flags == 0 || cut.tcp_flags == whole.tcp_flags);
    }
}

/// The same packet with its addresses, and its ports where they are easily found, exchanged.
fn the_way_back_has_the_reversed_key(packet: &[u8], wire_length: u32, there: &Packet) {
    let mut back = packet.to_vec();
    let (address, size, ports_at) = match there.key.source {
        IpAddr::V4(_) => (12, 4, Some(usize::from(packet[0] & 15) * 4)),
        IpAddr::V6(_) => (8, 16, (!is_extension_header(packet[6])).then_some(40)),
    };
    exchange(&mut back, address, size);
    let carries_ports = (there.key.source_port, there.key.destination_port) != (0, 0);
    if carries_ports && let Some(at) = ports_at {
        exchange(&mut back, at, 2);
    }
    let back = packet::decode(LinkType::RawIp, &back, wire_length, Tunnels::Outer);
    let back = back.expect("its lengths are those of the way there");
    let mut expected = Packet { key: there.key.reversed(), ..*there };
    if ports_at.is_none() {
        (expected.key.source_port, expected.key.destination_port) = (there.key.source_port, there.key.destination_port);
    }
    assert_eq!(back, expected);
}

fn exchange(bytes: &mut [u8], at: usize, size: usize) {
    let (first, second) = bytes[at..at + 2 * size].split_at_mut(size);
    first.swap_with_slice(second);
}

fn fragments_join(observation: &Packet, table: &mut FragmentTable, now_ns: u64) {
    let mut resolved = *observation;
    table.resolve(&mut resolved, now_ns);
    assert_eq!((resolved.key.source, resolved.octets), (observation.key.source, observation.octets));
    let Some(fragment) = observation.fragment else {
        return assert_eq!(resolved, *observation);
    };
    if fragment.first {
        assert_eq!(resolved, *observation);
        let mut later = *observation;
        (later.key.source_port, later.key.destination_port, later.key.protocol) = (0, 0, 44);
        later.fragment = Some(packet::Fragment { first: false, ..fragment });
        table.resolve(&mut later, now_ns);
        assert_eq!(later.key, observation.key);
    }
}
