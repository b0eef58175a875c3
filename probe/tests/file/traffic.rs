//! Makes the frames that the tests read: conversations, fragments, and every layer that the decoder knows.

use crate::writer::Packet;

const START_NS: u64 = 1_700_000_000_123_456_789;

/// Wraps a packet in Ethernet, `tags` (EtherType and rest of each) before the EtherType.
pub fn ethernet(tags: &[(u16, u16)], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for (tag, vlan) in tags {
        frame.extend([tag.to_be_bytes(), vlan.to_be_bytes()].concat());
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet between 10.0.`hosts`; `fragment` is the whole field of flags and offset.
pub fn ipv4(hosts: (u16, u16), protocol: u8, identification: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let total = 20 + payload.len() as u16;
    let mut packet = vec![0x45, 0];
    for field in [total, identification, fragment] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend([64, protocol, 0, 0]);
    for host in [hosts.0, hosts.1] {
        packet.extend([[10, 0], host.to_be_bytes()].concat());
    }
    packet.extend(payload);
    packet
}

/// An IPv6 packet between 2001:db8::`hosts`.
pub fn ipv6(hosts: (u16, u16), next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    for host in [hosts.0, hosts.1] {
        packet.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend(host.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

pub fn udp(ports: (u16, u16), payload: usize) -> Vec<u8> {
    let mut datagram: Vec<u8> =
        [ports.0, ports.1, 8 + payload as u16, 0].iter().flat_map(|n| n.to_be_bytes()).collect();
    datagram.resize(8 + payload, 0xaa);
    datagram
}

pub fn tcp(ports: (u16, u16), flags: u8, payload: usize) -> Vec<u8> {
    let mut segment: Vec<u8> = [ports.0, ports.1].iter().flat_map(|n| n.to_be_bytes()).collect();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.resize(20 + payload, 0xbb);
    segment
}

/// Times them a millisecond apart.
pub fn timed(frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<Packet> {
    let packet = |(number, bytes): (usize, Vec<u8>)| Packet {
        time_ns: START_NS + number as u64 * 1_000_000,
        wire_len: bytes.len() as u32,
        bytes,
    };
    frames.into_iter().enumerate().map(packet).collect()
}

/// `count` frames of many conversations in both directions, some in fragments, some without IP.
pub fn conversations(count: usize) -> Vec<Packet> {
    let frame = |number: usize| {
        let flow = (number / 4 * 7919 % 509) as u16;
        let (hosts, ports) = ((flow, 1000 + flow % 3), (2000 + flow, 443));
        let (back, back_ports) = ((hosts.1, hosts.0), (ports.1, ports.0));
        let identification = (number / 4) as u16;
        let payload = number % 1200;
        match (flow % 5, number % 4) {
            (0, 0) => ethernet(&[], 0x0800, &ipv4(hosts, 17, identification, 0x2000, &udp(ports, 600))),
            (0, 1) => ethernet(&[], 0x0800, &ipv4(hosts, 17, identification, 76, &[0xaa; 300])),
            (1, 0 | 1) => ethernet(&[], 0x86dd, &ipv6(hosts, 6, &tcp(ports, 0x10, payload))),
            (1, _) => ethernet(&[], 0x86dd, &ipv6(back, 6, &tcp(back_ports, 0x10, payload))),
            (2, 3) => ethernet(&[], 0x0806, &[0; 46]),
            (_, 0 | 1) => ethernet(&[], 0x0800, &ipv4(hosts, 6, identification, 0, &tcp(ports, 0x18, payload))),
            _ => ethernet(&[], 0x0800, &ipv4(back, 6, identification, 0, &tcp(back_ports, 0x10, payload))),
        }
    };
    timed((0..count).map(frame))
}

/// At least one frame of each layer, protocol and oddity that the decoder has a rule for.
pub fn zoo() -> Vec<Packet> {
    let v4 = |protocol, payload: &[u8]| ipv4((1, 2), protocol, 7, 0, payload);
    let (web, reply) = (tcp((40_000, 443), 2, 0), tcp((443, 40_000), 0x12, 0));
    let sctp: Vec<u8> = [&[0x13, 0x88, 0x13, 0x89][..], &[0; 8]].concat();
    let echo = [8, 0, 0, 0, 0, 1, 0, 1];
    let hop_by_hop = |next: u8, rest: &[u8]| [&[next, 0, 1, 4, 0, 0, 0, 0][..], rest].concat();
    let fragment6 =
        |next: u8, field: u16, rest: &[u8]| [&[next, 0][..], &field.to_be_bytes(), &[0, 0, 0, 9], rest].concat();
    let whole = ethernet(&[], 0x0800, &v4(6, &web));
    let mut frames = vec![
        whole.clone(),
        ethernet(&[], 0x0800, &ipv4((2, 1), 6, 8, 0, &reply)),
        ethernet(&[(0x8100, 5)], 0x0800, &v4(17, &udp((5000, 53), 20))),
        ethernet(&[(0x88a8, 7), (0x8100, 5)], 0x86dd, &ipv6((1, 2), 17, &udp((5000, 53), 20))),
        ethernet(&[], 0x8847, &[&[0, 1, 0x01, 0x40][..], &v4(6, &web)].concat()),
        ethernet(&[], 0x8864, &[&[0x11, 0, 0, 1, 0, 42, 0, 0x21][..], &v4(6, &web)].concat()),
        ethernet(&[], 0x8863, &[0x11, 9, 0, 0, 0, 0]),
        ethernet(&[], 0x0806, &[0, 1, 8, 0, 6, 4, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]),
        ethernet(&[], 38, &[&[0x42, 0x42, 3][..], &[0; 35]].concat()),
        ethernet(&[], 0x88cc, &[2, 7, 4, 2, 0, 0, 0, 0, 1, 0, 0]),
        ethernet(&[], 0x0800, &v4(1, &echo)),
        ethernet(&[], 0x86dd, &ipv6((1, 2), 58, &[128, 0, 0, 0, 0, 1, 0, 1])),
        ethernet(&[], 0x0800, &v4(132, &sctp)),
        ethernet(&[], 0x0800, &v4(136, &udp((5000, 5001), 20))),
        ethernet(&[], 0x0800, &v4(33, &[0x13, 0x88, 0x13, 0x89, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0])),
        ethernet(&[], 0x0800, &v4(47, &[&[0, 0, 8, 0][..], &v4(6, &web)].concat())),
        ethernet(&[], 0x0800, &v4(4, &v4(6, &web))),
        ethernet(&[], 0x86dd, &ipv6((1, 2), 4, &v4(6, &web))),
        ethernet(&[], 0x0800, &v4(50, &[0; 40])),
        ethernet(&[], 0x86dd, &ipv6((3, 4), 0, &hop_by_hop(60, &hop_by_hop(17, &udp((1, 2), 9))))),
        ethernet(&[], 0x86dd, &ipv6((3, 4), 44, &fragment6(17, 1, &udp((1, 2), 16)))),
        ethernet(&[], 0x86dd, &ipv6((3, 4), 44, &fragment6(17, 24, &[0; 16]))),
        ethernet(&[], 0x86dd, &ipv6((3, 5), 44, &fragment6(17, 24, &[0; 16]))),
        ethernet(&[], 0x86dd, &ipv6((3, 4), 59, &[])),
        ethernet(&[], 0x0800, &ipv4((1, 2), 17, 99, 0x2000, &udp((7, 8), 16))),
        ethernet(&[], 0x0800, &ipv4((1, 2), 17, 99, 3, &[0; 16])),
        ethernet(&[], 0x0800, &ipv4((1, 2), 17, 100, 3, &[0; 16])),
        // Padding of a short frame belongs to no IP packet.
        [&ethernet(&[], 0x0800, &v4(17, &udp((9, 9), 0)))[..], &[0; 18]].concat(),
        // A total length of 0 is segmentation offload.
        [&ethernet(&[], 0x0800, &[0x45, 0, 0, 0])[..], &v4(6, &web)[4..]].concat(),
        Vec::new(),
    ];
    let mut wrong_version = whole.clone();
    wrong_version[14] = 0x65;
    let mut short_header = whole.clone();
    short_header[14] = 0x44;
    frames.extend([wrong_version, short_header]);
    let mut packets = timed(frames);
    // Cut by a snap length, within the IP header and after the ports.
    for kept in [30, 40] {
        let time_ns = packets[packets.len() - 1].time_ns + 1_000_000;
        packets.push(Packet { time_ns, wire_len: whole.len() as u32, bytes: whole[..kept].to_vec() });
    }
    packets
}
