//! Tunnels: what the payload of a packet carries, if it is a packet or a frame again.
//!
//! Each decoder is given the payload and says what stands in it, under which EtherType: [`Content`]. Whether that is IP is
//! for the link layer's decoder to find.

use super::ip;
use super::ip::Datagram;
use super::link::{self, ether};
use crate::flow::{Tunnel, TunnelKind};

/// Tunnels within one another that are looked into, at most; `ebpf/bpf/nagare.h` has the same bound.
pub const TUNNELS_MAX: usize = 4;
/// Extension headers of GTP-U that are looked through, at most; likewise.
pub const GTP_EXTENSIONS_MAX: usize = 4;

const IP_IN_IP: u8 = 4;
const UDP: u8 = 17;
const IPV6_IN_IP: u8 = 41;
const GRE: u8 = 47;
const L2TP: u8 = 115;

const PORT_L2TP: u16 = 1701;
const PORT_GTP_U: u16 = 2152;
const PORT_TEREDO: u16 = 3544;
const PORT_VXLAN: u16 = 4789;
const PORT_GENEVE: u16 = 6081;
/// VXLAN's before it had a number of its own: still the default of Linux.
const PORT_VXLAN_LINUX: u16 = 8472;

/// What stands in a tunnel.
struct Content<'a> {
    kind: TunnelKind,
    /// Of this packet.
    id: u32,
    /// The part of the key: `id`, or 0 where the directions have different ones.
    shared_id: u32,
    ether_type: u16,
    rest: &'a [u8],
}

impl<'a> Content<'a> {
    fn new(kind: TunnelKind, id: u32, ether_type: u16, rest: &'a [u8]) -> Content<'a> {
        Content { kind, id, shared_id: if kind.shares_identifier() { id } else { 0 }, ether_type, rest }
    }
}

/// Whether one of the ports is that of a tunnel over UDP.
pub(crate) fn is_carrier(source_port: u16, destination_port: u16) -> bool {
    let known =
        |port| matches!(port, PORT_L2TP | PORT_GTP_U | PORT_TEREDO | PORT_VXLAN | PORT_GENEVE | PORT_VXLAN_LINUX);
    known(source_port) || known(destination_port)
}

/// The packet in a packet; `None` where it carries none that can be read, or is a fragment.
pub(super) fn inside<'a>(outer: &Datagram<'a>) -> Option<Datagram<'a>> {
    if outer.packet.fragment.is_some() {
        return None;
    }
    let content = content(outer)?;
    let (around, packet) = link::carried(content.ether_type, content.rest, outer.around).ok()?;
    let on_wire = outer.beyond.saturating_sub(outer.payload.len() - packet.len());
    let mut inner = ip::datagram(packet, on_wire, around).ok()?;
    inner.packet.key.tunnel = Some(Tunnel { kind: content.kind, id: content.shared_id });
    inner.packet.outer = Some((outer.packet.key.source, outer.packet.key.destination));
    inner.packet.tunnel_id = content.id;
    Some(inner)
}

fn content<'a>(outer: &Datagram<'a>) -> Option<Content<'a>> {
    let (key, payload) = (&outer.packet.key, outer.payload);
    match key.protocol {
        IP_IN_IP => Some(Content::new(TunnelKind::IpInIp, 0, ether::IPV4, payload)),
        IPV6_IN_IP => Some(Content::new(TunnelKind::IpInIp, 0, ether::IPV6, payload)),
        GRE => gre(payload),
        L2TP => l2tp_3(payload),
        UDP if is_carrier(key.source_port, key.destination_port) => {
            let payload = from(payload, 8)?;
            over_udp(key.destination_port, payload).or_else(|| over_udp(key.source_port, payload))
        }
        _ => None,
    }
}

fn over_udp(port: u16, payload: &[u8]) -> Option<Content<'_>> {
    match port {
        PORT_VXLAN | PORT_VXLAN_LINUX => vxlan(payload),
        PORT_GENEVE => geneve(payload),
        PORT_GTP_U => gtp_u(payload),
        PORT_L2TP => l2tp(payload),
        PORT_TEREDO => teredo(payload),
        _ => None,
    }
}

/// IP by the version in its first octet.
fn by_version(packet: &[u8]) -> Option<u16> {
    match packet.first()? >> 4 {
        4 => Some(ether::IPV4),
        6 => Some(ether::IPV6),
        _ => None,
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    super::be16(bytes, at).ok()
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    super::be32(bytes, at).ok()
}

fn from(bytes: &[u8], at: usize) -> Option<&[u8]> {
    bytes.get(at..)
}

/// GRE (RFC 2784, 2890), and version 1, which PPTP uses (RFC 2637, 4.1).
fn gre(payload: &[u8]) -> Option<Content<'_>> {
    const CHECKSUM: u16 = 0x8000;
    const ROUTING: u16 = 0x4000;
    const KEY: u16 = 0x2000;
    const SEQUENCE: u16 = 0x1000;
    const ACKNOWLEDGEMENT: u16 = 0x0080;
    let (flags, ether_type) = (be16(payload, 0)?, be16(payload, 2)?);
    let length = |flag: u16| if flags & flag != 0 { 4 } else { 0 };
    match flags & 7 {
        0 if flags & ROUTING == 0 => {
            let at = 4 + length(CHECKSUM);
            let key = if flags & KEY != 0 { be32(payload, at)? } else { 0 };
            let rest = from(payload, at + length(KEY) + length(SEQUENCE))?;
            match ether_type {
                0x88be | 0x22eb => erspan(ether_type, flags & SEQUENCE != 0, rest),
                _ => Some(Content::new(TunnelKind::Gre, key, ether_type, rest)),
            }
        }
        1 if flags & KEY != 0 && flags & SEQUENCE != 0 && ether_type == ether::PPP => {
            let call = u32::from(be16(payload, 6)?);
            let rest = from(payload, 12 + length(ACKNOWLEDGEMENT))?;
            // Each end names the call by a number of its own.
            Some(Content { shared_id: 0, ..Content::new(TunnelKind::Gre, call, ether_type, rest) })
        }
        _ => None,
    }
}

/// ERSPAN I (no header), II and III (draft-foschiano-erspan).
fn erspan(ether_type: u16, sequenced: bool, rest: &[u8]) -> Option<Content<'_>> {
    let content = |session, rest| Some(Content::new(TunnelKind::Erspan, session, ether::ETHERNET, rest));
    if ether_type == 0x88be && !sequenced {
        return content(0, rest);
    }
    let session = u32::from(be16(rest, 2)? & 0x03ff);
    match (ether_type, rest[0] >> 4) {
        (0x88be, 1) => content(session, from(rest, 8)?),
        (0x22eb, 2) => {
            let last = be16(rest, 10)?;
            let rest = from(rest, if last & 1 == 1 { 20 } else { 12 })?;
            match last >> 10 & 0x1f {
                0 => content(session, rest),
                // The frame was a packet alone.
                2 => Some(Content::new(TunnelKind::Erspan, session, by_version(rest)?, rest)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// VXLAN (RFC 7348, 5).
fn vxlan(payload: &[u8]) -> Option<Content<'_>> {
    let (flags, vni) = (be32(payload, 0)?, be32(payload, 4)? >> 8);
    let rest = from(payload, 8)?;
    (flags >> 24 & 0x08 != 0).then_some(Content::new(TunnelKind::Vxlan, vni, ether::ETHERNET, rest))
}

/// GENEVE (RFC 8926, 3.4). Its control packets are no traffic of the tenant.
fn geneve(payload: &[u8]) -> Option<Content<'_>> {
    let (first, vni) = (be32(payload, 0)?, be32(payload, 4)? >> 8);
    let (version, options, is_control) = (first >> 30, (first >> 24 & 0x3f) as usize * 4, first & 0x0080_0000 != 0);
    if version != 0 || is_control {
        return None;
    }
    Some(Content::new(TunnelKind::Geneve, vni, first as u16, from(payload, 8 + options)?))
}

/// GTP-U version 1 (3GPP TS 29.281, 5): user packets only.
fn gtp_u(payload: &[u8]) -> Option<Content<'_>> {
    let (first, teid) = (be32(payload, 0)?, be32(payload, 4)?);
    let flags = first >> 24;
    if flags >> 4 != 3 || first >> 16 & 0xff != 255 {
        return None;
    }
    let mut at = 8;
    if flags & 7 != 0 {
        // All three optional fields are there when one is; the last octet names the first extension header.
        be32(payload, 8)?;
        at = 12;
        if flags & 4 != 0 {
            at = gtp_extensions(payload, at)?;
        }
    }
    let rest = from(payload, at)?;
    Some(Content::new(TunnelKind::GtpU, teid, by_version(rest)?, rest))
}

/// Where the user packet begins, past the extension headers: each has its length in its first octet, in words, and names what
/// follows it in its last.
fn gtp_extensions(payload: &[u8], mut at: usize) -> Option<usize> {
    for _ in 0..GTP_EXTENSIONS_MAX {
        if *payload.get(at - 1)? == 0 {
            return Some(at);
        }
        match *payload.get(at)? {
            0 => return None,
            words => at += usize::from(words) * 4,
        }
    }
    (*payload.get(at - 1)? == 0).then_some(at)
}

/// L2TP over UDP, version 2 (RFC 2661, 3.1) with PPP, or 3 (RFC 3931, 4.1.2).
fn l2tp(payload: &[u8]) -> Option<Content<'_>> {
    const CONTROL: u16 = 0x8000;
    const LENGTH: u16 = 0x4000;
    const SEQUENCE: u16 = 0x0800;
    const OFFSET: u16 = 0x0200;
    let flags = be16(payload, 0)?;
    match flags & 0x000f {
        _ if flags & CONTROL != 0 => None,
        2 => {
            let at = if flags & LENGTH != 0 { 4 } else { 2 };
            let session = be32(payload, at)?;
            let mut at = at + if flags & SEQUENCE != 0 { 8 } else { 4 };
            if flags & OFFSET != 0 {
                at += 2 + usize::from(be16(payload, at)?);
            }
            Some(Content::new(TunnelKind::L2tp, session, ether::PPP, from(payload, at)?))
        }
        3 => l2tp_3(from(payload, 4)?),
        _ => None,
    }
}

/// L2TP version 3 from its session on. The cookie's length (0, 4 or 8) and whether a sublayer's 4 octets follow are agreed upon
/// beforehand: the first place where an Ethernet frame with IP can stand is taken.
fn l2tp_3(payload: &[u8]) -> Option<Content<'_>> {
    let session = be32(payload, 0)?;
    if session == 0 {
        return None;
    }
    let mut rests = (1..=4).filter_map(|words| payload.get(words * 4..));
    let rest = rests.find(|rest| looks_like_a_frame(rest))?;
    Some(Content::new(TunnelKind::L2tp, session, ether::ETHERNET, rest))
}

fn looks_like_a_frame(rest: &[u8]) -> bool {
    match (be16(rest, 12), rest.get(14).map(|octet| octet >> 4)) {
        (Some(ether::IPV4), Some(version)) => version == 4,
        (Some(ether::IPV6), Some(version)) => version == 6,
        (Some(0x8100 | 0x88a8), Some(_)) => true,
        _ => false,
    }
}

/// Teredo (RFC 4380, 5.1.1): IPv6, perhaps after what authenticates it and after where it came from.
fn teredo(payload: &[u8]) -> Option<Content<'_>> {
    let mut rest = payload;
    if be16(rest, 0)? == 1 {
        let lengths = be16(rest, 2)?;
        rest = from(rest, 13 + usize::from(lengths >> 8) + usize::from(lengths & 0xff))?;
    }
    if be16(rest, 0)? == 0 {
        rest = from(rest, 8)?;
    }
    let is_ipv6 = by_version(rest)? == ether::IPV6;
    is_ipv6.then_some(Content::new(TunnelKind::Teredo, 0, ether::IPV6, rest))
}
