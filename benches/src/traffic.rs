//! Conversations made from a seed: frames to send, and the flows that a right meter makes of them.

#![forbid(unsafe_code)]

use fastrand::Rng;
use nagare_wire::flow::{Counters, FlowKey};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const GRE: u8 = 47;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Octets of IP that one frame carries at most: an Ethernet's MTU.
const MTU: usize = 1500;

/// Frames in the order in which they are to be sent, and what they amount to.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Whole Ethernet frames without a frame check sequence.
    pub frames: Vec<Vec<u8>>,
    /// Both directions of each conversation, by the key of its initiator's packets.
    pub flows: BTreeMap<FlowKey, (Counters, Counters)>,
    /// Frames that carry no IP.
    pub not_ip: u64,
}

impl Traffic {
    /// Packets of IP.
    pub fn packets(&self) -> u64 {
        self.flows.values().map(|(forward, reverse)| forward.packets + reverse.packets).sum()
    }

    /// Octets of IP.
    pub fn octets(&self) -> u64 {
        self.flows.values().map(|(forward, reverse)| forward.octets + reverse.octets).sum()
    }
}

/// An office's traffic: so many conversations of local hosts with servers, both IP versions, the usual protocols, VLANs,
/// fragments, extension headers, and some frames that are no IP. The same seed gives the same traffic.
pub fn office(seed: u64, conversations: usize) -> Traffic {
    interleave(seed, conversations, ends)
}

/// The same without VLAN tags. A packet socket spreads tagged frames over an interface's queues by their length, and frames
/// of different queues overtake each other, as those of one conversation never do on a wire.
pub fn untagged_office(seed: u64, conversations: usize) -> Traffic {
    interleave(seed, conversations, |number, rng| FlowKey { vlan: 0, ..ends(number, rng) })
}

fn interleave(seed: u64, conversations: usize, ends: impl Fn(usize, &mut Rng) -> FlowKey) -> Traffic {
    let mut rng = Rng::with_seed(seed);
    let mut script = |number| script(ends(number, &mut rng), &mut rng);
    let mut scripts: Vec<Vec<Step>> = (0..conversations).map(&mut script).collect();
    let mut traffic = Traffic::default();
    // Conversations overlap as on a wire, about thirty at a time; each keeps its own order.
    let mut open: Vec<std::vec::IntoIter<Step>> = Vec::new();
    scripts.reverse();
    while !scripts.is_empty() || !open.is_empty() {
        if open.len() < 30
            && let Some(script) = scripts.pop()
        {
            open.push(script.into_iter());
            continue;
        }
        let index = rng.usize(..open.len());
        match open[index].next() {
            Some(step) => traffic.add(step),
            None => drop(open.swap_remove(index)),
        }
        if rng.u32(..200) == 0 {
            traffic.frames.push(arp());
            traffic.not_ip += 1;
        }
    }
    traffic
}

/// One packet of a conversation before it is framed: the direction's key, and what follows the IP header.
struct Step {
    initiator: FlowKey,
    back: bool,
    tcp_flags: u8,
    payload: usize,
    extension: bool,
}

impl Traffic {
    fn add(&mut self, step: Step) {
        let key = if step.back { step.initiator.reversed() } else { step.initiator };
        let packets = packets(&key, &step, self.frames.len() as u16);
        let (forward, reverse) = self.flows.entry(step.initiator).or_default();
        let counters = if step.back { reverse } else { forward };
        for packet in packets {
            counters.packets += 1;
            counters.octets += packet.len() as u64;
            counters.tcp_flags |= u16::from(step.tcp_flags);
            self.frames.push(ethernet(&key, &packet));
        }
    }
}

/// The packets of one conversation.
fn script(key: FlowKey, rng: &mut Rng) -> Vec<Step> {
    let mut steps = Vec::new();
    let extension = key.source.is_ipv6() && rng.u32(..4) == 0;
    let mut step = |back: bool, tcp_flags: u8, payload: usize| {
        steps.push(Step { initiator: key, back, tcp_flags, payload, extension });
    };
    match key.protocol {
        TCP => {
            step(false, SYN, 0);
            step(true, SYN | ACK, 0);
            step(false, ACK, 0);
            for _ in 0..rng.usize(1..4) {
                step(false, PSH | ACK, rng.usize(100..700));
                for _ in 0..rng.usize(1..30) {
                    step(true, ACK, rng.usize(600..1400));
                    if rng.bool() {
                        step(false, ACK, 0);
                    }
                }
            }
            if rng.u32(..10) == 0 {
                step(false, RST | ACK, 0);
            } else {
                step(false, FIN | ACK, 0);
                step(true, FIN | ACK, 0);
                step(false, ACK, 0);
            }
        }
        UDP if rng.u32(..8) == 0 => {
            // A datagram of up to 8 KB goes in fragments.
            step(false, 0, rng.usize(30..60));
            step(true, 0, rng.usize(2000..8000));
        }
        _ => {
            for _ in 0..rng.usize(1..4) {
                step(false, 0, rng.usize(20..90));
                step(true, 0, rng.usize(20..400));
            }
        }
    }
    steps
}

/// Who talks to whom. No two numbers below 60,000 give the same ends.
fn ends(number: usize, rng: &mut Rng) -> FlowKey {
    const SERVICES: [(u8, u16); 12] = [
        (TCP, 443),
        (TCP, 443),
        (TCP, 443),
        (TCP, 80),
        (UDP, 53),
        (UDP, 443),
        (TCP, 22),
        (TCP, 993),
        (UDP, 123),
        (ICMP, 0),
        (SCTP, 2905),
        (GRE, 0),
    ];
    let (protocol, port) = SERVICES[rng.usize(..SERVICES.len())];
    // A few hosts and servers have most of the traffic, as everywhere.
    let skewed = |rng: &mut Rng, first: u8, count: f32| first + (rng.f32().powi(3) * count) as u8;
    let (host, server) = (skewed(rng, 10, 50.0), skewed(rng, 1, 40.0));
    let v6 = rng.u32(..4) == 0;
    let (source, destination): (IpAddr, IpAddr) = if v6 {
        let host = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, number as u16, u16::from(host));
        (host.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(server)).into())
    } else if port == 0 {
        // Without ports the addresses alone tell conversations apart.
        let host = Ipv4Addr::new(10, 1, (number >> 8) as u8, number as u8);
        (host.into(), Ipv4Addr::new(203, 0, 113, server).into())
    } else {
        (Ipv4Addr::new(10, 0, 0, host).into(), Ipv4Addr::new(198, 51, 100, server).into())
    };
    let protocol = if v6 && protocol == ICMP { ICMPV6 } else { protocol };
    FlowKey {
        source,
        destination,
        source_port: if port == 0 { 0 } else { 2000 + number as u16 },
        destination_port: port,
        protocol,
        vlan: if number.is_multiple_of(5) { 100 + (number % 3) as u16 } else { 0 },
        ..FlowKey::default()
    }
}

fn packets(key: &FlowKey, step: &Step, identification: u16) -> Vec<Vec<u8>> {
    let segment = transport(key, step);
    match (key.source, key.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // Offsets count in units of 8 octets.
            let room = (MTU - 20) / 8 * 8;
            let count = segment.len().div_ceil(room).max(1);
            let piece = |index: usize| &segment[index * room..segment.len().min((index + 1) * room)];
            let packet = |index: usize| {
                let more = if index + 1 < count { 0x2000 } else { 0 };
                let field = more | (index * room / 8) as u16;
                ipv4(source, destination, key.protocol, identification, field, piece(index))
            };
            (0..count).map(packet).collect()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let segment = &segment[..segment.len().min(MTU - 48)];
            vec![ipv6(source, destination, key.protocol, step.extension, segment)]
        }
        _ => unreachable!("both ends have one family"),
    }
}

fn transport(key: &FlowKey, step: &Step) -> Vec<u8> {
    let mut out = Vec::with_capacity(step.payload + 20);
    let ports = [key.source_port.to_be_bytes(), key.destination_port.to_be_bytes()].concat();
    match key.protocol {
        TCP => {
            out.extend(ports);
            out.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, step.tcp_flags, 0xff, 0xff, 0, 0, 0, 0]);
        }
        UDP => {
            out.extend(ports);
            out.extend(((step.payload + 8) as u16).to_be_bytes());
            out.extend([0, 0]);
        }
        SCTP => {
            out.extend(ports);
            out.extend([0; 8]);
        }
        ICMP => out.extend([if step.back { 0 } else { 8 }, 0, 0, 0, 0, 1, 0, 1]),
        ICMPV6 => out.extend([if step.back { 129 } else { 128 }, 0, 0, 0, 0, 1, 0, 1]),
        _ => out.extend([0, 0, 0x65, 0x58]),
    }
    out.resize(out.len() + step.payload, 0xa5);
    out
}

fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    identification: u16,
    fragment: u16,
    rest: &[u8],
) -> Vec<u8> {
    let mut out = vec![0x45, 0];
    out.extend(((rest.len() + 20) as u16).to_be_bytes());
    out.extend(identification.to_be_bytes());
    out.extend(fragment.to_be_bytes());
    out.extend([64, protocol, 0, 0]);
    out.extend(source.octets());
    out.extend(destination.octets());
    let sum: u32 = out.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    out[10..12].copy_from_slice(&checksum.to_be_bytes());
    out.extend(rest);
    out
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, extension: bool, rest: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    let options = if extension { 8 } else { 0 };
    out.extend(((rest.len() + options) as u16).to_be_bytes());
    // A destination options header that holds padding alone.
    out.extend([if extension { 60 } else { protocol }, 64]);
    out.extend(source.octets());
    out.extend(destination.octets());
    if extension {
        out.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
    }
    out.extend(rest);
    out
}

fn ethernet(key: &FlowKey, packet: &[u8]) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    if key.vlan != 0 {
        out.extend([0x81, 0x00]);
        out.extend(key.vlan.to_be_bytes());
    }
    out.extend(if key.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
    out.extend(packet);
    let shortest = out.len().max(60);
    out.resize(shortest, 0);
    out
}

fn arp() -> Vec<u8> {
    let mut out = vec![0xff; 6];
    out.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    out.resize(60, 0);
    out
}

/// A UDP packet of 64 octets with its frame check sequence, to be sent as many flows.
pub fn smallest_frame() -> Vec<u8> {
    let packet = ipv4(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 1), UDP, 0, 0, &{
        let mut udp = vec![4, 0, 1, 187, 0, 26, 0, 0];
        udp.resize(26, 0);
        udp
    });
    let mut out = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    out.extend(packet);
    out
}

/// The traffic as a pcap file with nanoseconds: frame n at `start_ns + n * gap_ns`.
pub fn pcap(frames: &[Vec<u8>], start_ns: u64, gap_ns: u64) -> Vec<u8> {
    let mut out = pcap_header();
    for (number, frame) in frames.iter().enumerate() {
        pcap_packet(&mut out, start_ns + number as u64 * gap_ns, frame);
    }
    out
}

/// The beginning of a pcap file with nanoseconds, of Ethernet.
pub fn pcap_header() -> Vec<u8> {
    [0xa1b2_3c4d_u32, 2 | 4 << 16, 0, 0, 65535, 1].into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Appends a packet of such a file.
pub fn pcap_packet(out: &mut Vec<u8>, time_ns: u64, frame: &[u8]) {
    let words =
        [(time_ns / 1_000_000_000) as u32, (time_ns % 1_000_000_000) as u32, frame.len() as u32, frame.len() as u32];
    out.extend(words.into_iter().flat_map(u32::to_le_bytes));
    out.extend(frame);
}

/// The numbered conversations repeat after so many.
pub const NUMBERS: u64 = 1 << 40;

/// The frames of a conversation whose key says its number: each eighth is a short one over TCP, the others are one datagram.
pub fn numbered(number: u64) -> Vec<Vec<u8>> {
    let initiator = numbered_key(number);
    let packet = |(back, tcp_flags, payload): (bool, u8, usize)| {
        let step = Step { initiator, back, tcp_flags, payload, extension: false };
        let key = if back { initiator.reversed() } else { initiator };
        packets(&key, &step, number as u16).into_iter().map(move |packet| ethernet(&key, &packet)).collect::<Vec<_>>()
    };
    let conversation =
        [(false, SYN, 0), (true, SYN | ACK, 0), (false, PSH | ACK, 40), (true, FIN | ACK, 200), (false, FIN | ACK, 0)];
    match initiator.protocol {
        TCP => conversation.into_iter().flat_map(packet).collect(),
        _ => packet((false, 0, 30)),
    }
}

/// Packets of the conversation of this number, both ways.
pub fn numbered_packets(number: u64) -> u64 {
    if numbered_key(number).protocol == TCP { 5 } else { 1 }
}

fn numbered_key(number: u64) -> FlowKey {
    let [.., e, d, c, b, a] = (number % NUMBERS).to_be_bytes();
    let (protocol, destination_port) = if number % 8 == 7 { (TCP, 443) } else { (UDP, 53) };
    FlowKey {
        source: Ipv4Addr::new(10, c, b, a).into(),
        destination: Ipv4Addr::new(198, 18, e, d).into(),
        source_port: 2000 + (number % 60_000) as u16,
        destination_port,
        protocol,
        ..FlowKey::default()
    }
}

/// The number of a conversation with this key; none where no numbered one has it.
pub fn number_of(key: &FlowKey) -> Option<u64> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (key.source, key.destination) else { return None };
    let ([_, c, b, a], [_, _, e, d]) = (source.octets(), destination.octets());
    let number = u64::from_be_bytes([0, 0, 0, e, d, c, b, a]);
    (numbered_key(number) == *key).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nagare_wire::fragment::FragmentTable;
    use nagare_wire::packet::{LinkType, Tunnels, decode};

    #[test]
    fn the_decoder_agrees_with_what_was_made() {
        let traffic = office(7, 400);
        let mut fragments = FragmentTable::new(1024, 3);
        let mut seen: BTreeMap<FlowKey, Counters> = BTreeMap::new();
        let mut not_ip = 0;
        for frame in &traffic.frames {
            let Ok(mut observation) = decode(LinkType::Ethernet, frame, frame.len() as u32, Tunnels::Outer) else {
                not_ip += 1;
                continue;
            };
            fragments.resolve(&mut observation, 0);
            let counters = seen.entry(observation.key).or_default();
            counters.packets += 1;
            counters.octets += u64::from(observation.octets);
            counters.tcp_flags |= observation.tcp_flags;
        }
        assert_eq!(not_ip, traffic.not_ip);
        let made: BTreeMap<FlowKey, Counters> = traffic
            .flows
            .iter()
            .flat_map(|(key, (forward, reverse))| [(*key, *forward), (key.reversed(), *reverse)])
            .collect();
        assert_eq!(seen, made);
        assert!(traffic.frames.iter().all(|frame| frame.len() <= MTU + 18));
    }

    #[test]
    fn a_number_is_in_its_key() {
        for number in [0, 7, 255, 70_000, 1 << 24, NUMBERS - 1] {
            assert_eq!(number_of(&numbered_key(number)), Some(number));
            assert_eq!(numbered(number).len() as u64, numbered_packets(number));
        }
        assert_eq!(number_of(&numbered_key(3).reversed()), None);
    }
}
