//! IPv4, IPv6 and the headers of transport protocols.

use super::link::Around;
use super::{EXTENSION_HEADERS_MAX, Fragment, Ignore, Packet, be16, be32};
use crate::flow::FlowKey;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ESP: u8 = 50;
const AH: u8 = 51;

/// A packet and what a tunnel's decoder needs of it.
pub(super) struct Datagram<'a> {
    pub packet: Packet,
    pub around: Around,
    /// What was captured from the transport header on, without padding.
    pub payload: &'a [u8],
    /// Octets from the transport header on, by the IP header's length.
    pub beyond: usize,
}

/// Reads a packet that had `on_wire` octets of its link layer's payload on the wire, padding included.
pub(super) fn datagram(packet: &[u8], on_wire: usize, around: Around) -> Result<Datagram<'_>, Ignore> {
    match packet.first().ok_or(Ignore::Truncated)? >> 4 {
        4 => ipv4(packet, on_wire, around),
        6 => ipv6(packet, on_wire, around),
        _ => Err(Ignore::Malformed),
    }
}

fn ipv4(packet: &[u8], on_wire: usize, around: Around) -> Result<Datagram<'_>, Ignore> {
    let header: &[u8; 20] = packet.first_chunk().ok_or(Ignore::Truncated)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let total = match u16::from_be_bytes([header[2], header[3]]) {
        0 => on_wire,
        total => usize::from(total),
    };
    if header_length < 20 || total < header_length {
        return Err(Ignore::Malformed);
    }
    let fragment_field = u16::from_be_bytes([header[6], header[7]]);
    let (offset, more) = (fragment_field & 0x1fff, fragment_field & 0x2000 != 0);
    let protocol = header[9];
    let payload = packet.get(header_length..total.min(packet.len())).unwrap_or(&[]);
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
    let fragment = (offset != 0 || more).then(|| Fragment {
        identification: u32::from(u16::from_be_bytes([header[4], header[5]])),
        protocol,
        first: offset == 0,
    });
    let (ttl, beyond) = (header[8], total - header_length);
    let (source, destination) = (address(12), address(16));
    let ip = Ip { source, destination, protocol, tos: header[1], ttl, flow_label: 0, fragment, beyond };
    Ok(Datagram { packet: transport(ip, payload, total, &around), around, payload, beyond })
}

fn ipv6(packet: &[u8], on_wire: usize, around: Around) -> Result<Datagram<'_>, Ignore> {
    let header: &[u8; 40] = packet.first_chunk().ok_or(Ignore::Truncated)?;
    let payload_length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let next = header[6];
    // A length of 0 is a jumbogram (RFC 2675) or segmentation offload; only "no next header" (59) says really nothing.
    let total = if payload_length == 0 && next != 59 { on_wire } else { 40 + payload_length };
    let payload = &packet[40..total.clamp(40, packet.len())];
    let (before, captured) = (total - 40, payload.len());
    let (protocol, fragment, payload) = extension_headers(next, payload);
    // What was cut off is payload too.
    let beyond = before.saturating_sub(captured - payload.len());
    let address = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().expect("sixteen octets");
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let tos = (header[0] << 4) | (header[1] >> 4);
    let flow_label = u32::from_be_bytes([0, header[1] & 0x0f, header[2], header[3]]);
    let (source, destination) = (address(8), address(24));
    let ip = Ip { source, destination, protocol, tos, ttl: header[7], flow_label, fragment, beyond };
    Ok(Datagram { packet: transport(ip, payload, total, &around), around, payload, beyond })
}

/// Whether a Next Header value names an extension header that is looked through. ESP (50) hides what follows, AH (51) is
/// metered as a protocol of its own, as in IPv4.
pub fn is_extension_header(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 60 | 135 | 139 | 140)
}

/// The upper-layer protocol, the fragment if it is one, and what follows the extension headers.
fn extension_headers(mut next: u8, mut payload: &[u8]) -> (u8, Option<Fragment>, &[u8]) {
    let mut fragment = None;
    for _ in 0..EXTENSION_HEADERS_MAX {
        if !is_extension_header(next) {
            break;
        }
        let Some(header) = payload.first_chunk::<8>() else { return (next, fragment, &[]) };
        let length = if next == 44 { 8 } else { (usize::from(header[1]) + 1) * 8 };
        if next == 44 {
            let offset = u16::from_be_bytes([header[2], header[3]]);
            let identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            // An offset of 0 without more fragments is a whole packet (RFC 6946).
            if offset & 0xfff9 != 0 {
                fragment = Some(Fragment { identification, protocol: 0, first: offset >> 3 == 0 });
            }
            if offset >> 3 != 0 {
                return (header[0], fragment, &[]);
            }
        }
        next = header[0];
        payload = payload.get(length..).unwrap_or(&[]);
    }
    (next, fragment, payload)
}

struct Ip {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    tos: u8,
    ttl: u8,
    flow_label: u32,
    fragment: Option<Fragment>,
    /// Octets from the transport header on, by the IP header's length.
    beyond: usize,
}

/// Whether the transport header of a protocol begins with two ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
pub fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
}

fn transport(ip: Ip, payload: &[u8], octets: usize, around: &Around) -> Packet {
    let readable = ip.fragment.is_none_or(|fragment| fragment.first);
    let port = |at: usize| match be16(payload, at) {
        Ok(port) if readable && payload.len() >= 4 && has_ports(ip.protocol) => port,
        _ => 0,
    };
    let tcp_flags = match be16(payload, 12) {
        Ok(bits) if readable && ip.protocol == 6 => bits & 0x0fff,
        _ => 0,
    };
    let (header, tcp_sequence, tcp_window) = match (readable, ip.protocol, payload.get(..20)) {
        (true, 6, Some(h)) => (
            usize::from(h[12] >> 4) * 4,
            u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
            u16::from_be_bytes([h[14], h[15]]),
        ),
        (true, 17, _) => (8, 0, 0),
        _ => (ip.beyond, 0, 0),
    };
    let spi = match (readable, ip.protocol) {
        (true, ESP) => be32(payload, 0).unwrap_or(0),
        (true, AH) => be32(payload, 4).unwrap_or(0),
        _ => 0,
    };
    let icmp_type_code = match be16(payload, 0) {
        Ok(number) if readable && matches!(ip.protocol, 1 | 58) => number,
        _ => 0,
    };
    Packet {
        key: FlowKey {
            source: ip.source,
            destination: ip.destination,
            source_port: port(0),
            destination_port: port(2),
            protocol: ip.protocol,
            vlan: around.vlan,
            customer_vlan: around.customer_vlan,
            tunnel: None,
        },
        octets: octets as u32,
        tcp_flags,
        tos: ip.tos,
        fragment: ip.fragment,
        ttl: ip.ttl,
        tcp_sequence,
        tcp_window,
        payload: ip.beyond.saturating_sub(header) as u32,
        icmp_type_code,
        spi,
        flow_label: ip.flow_label,
        source_mac: around.source_mac,
        destination_mac: around.destination_mac,
        mpls_top: around.mpls_top,
        outer: None,
        tunnel_id: 0,
    }
}
