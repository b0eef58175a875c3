//! Frames become Packets: the decoder of link layers, IPv4, IPv6 and transport headers.
//!
//! Total: every frame is either an [`Packet`] of the outermost IP packet or an [`Ignore`] with a name. A captured
//! frame may be shorter than it was on the wire; what is missing of the transport header reads as port 0, no flags.

use crate::flow::FlowKey;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Tags and labels that are looked through, at most, of each kind.
const STACK_MAX: usize = 8;
/// IPv6 extension headers that are looked through, at most; `ebpf/bpf/nagare.bpf.c` has the same bound.
pub const EXTENSION_HEADERS_MAX: usize = 8;

/// What a frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// Ethernet II or 802.3.
    Ethernet,
    /// An IPv4 or IPv6 header.
    RawIp,
    /// Linux cooked capture, version 1.
    LinuxSll,
    /// Linux cooked capture, version 2.
    LinuxSll2,
    /// BSD loopback: four octets with the address family, in the capturing host's byte order or the network's.
    Null,
    /// PPP, with or without HDLC framing.
    Ppp,
    /// Cisco's HDLC: address, control, EtherType.
    CiscoHdlc,
    /// Per-Packet Information: a header about the radio, the number of another link type, then a frame of that.
    Ppi,
}

impl LinkType {
    /// The link type of a LINKTYPE_ or DLT_ number in a capture file (<https://www.tcpdump.org/linktypes.html>).
    pub fn from_pcap(number: u32) -> Option<LinkType> {
        Some(match number {
            1 => LinkType::Ethernet,
            12 | 14 | 101 | 228 | 229 => LinkType::RawIp,
            113 => LinkType::LinuxSll,
            276 => LinkType::LinuxSll2,
            0 | 108 => LinkType::Null,
            9 | 50 | 51 => LinkType::Ppp,
            104 => LinkType::CiscoHdlc,
            192 => LinkType::Ppi,
            _ => return None,
        })
    }
}

/// Why a frame is no Observation. Each is a named term of the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ignore {
    /// The frame ends within its link-layer or IP header.
    Truncated,
    /// The IP header contradicts itself.
    Malformed,
    /// ARP or RARP.
    Arp,
    /// 802.3 frames with LLC (spanning tree and the like).
    Llc,
    /// PPP and PPPoE frames that carry no IP (LCP, authentication, discovery).
    PppControl,
    /// MPLS with a payload that is not IP.
    MplsPayload,
    /// Any other EtherType or address family.
    OtherProtocol,
}

impl Ignore {
    /// All of them, in the order of their numbers.
    pub const ALL: [Ignore; 7] = [
        Ignore::Truncated,
        Ignore::Malformed,
        Ignore::Arp,
        Ignore::Llc,
        Ignore::PppControl,
        Ignore::MplsPayload,
        Ignore::OtherProtocol,
    ];

    /// Its name in the books, as in `ignore.arp`.
    pub fn name(self) -> &'static str {
        match self {
            Ignore::Truncated => "truncated",
            Ignore::Malformed => "malformed",
            Ignore::Arp => "arp",
            Ignore::Llc => "llc",
            Ignore::PppControl => "ppp_control",
            Ignore::MplsPayload => "mpls_payload",
            Ignore::OtherProtocol => "other_protocol",
        }
    }
}

/// Which datagram a fragment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification of the datagram (16 bits in IPv4).
    pub identification: u32,
    /// The protocol that identifies it beside the addresses: IPv4's; 0 for IPv6, where the fragments of one datagram may
    /// name different headers (RFC 8200, 4.5).
    pub protocol: u8,
    /// Whether it is the one that carries the transport header.
    pub first: bool,
}

/// Which packet of a tunnelled frame makes the flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tunnels {
    /// The outermost.
    #[default]
    Outer,
    /// The innermost that can be read; the outer addresses and the tunnel's identifier are kept with it.
    Inner,
}

/// What is read of one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// The key of the packet's direction.
    pub key: FlowKey,
    /// IP octets: header and payload.
    pub octets: u32,
    /// TCP control bits (RFC 7125: the low 12 bits), 0 for other protocols.
    pub tcp_flags: u16,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Set where the packet is a fragment.
    pub fragment: Option<Fragment>,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// TCP sequence number, 0 for other protocols.
    pub tcp_sequence: u32,
    /// TCP window as it stands in the header, not scaled.
    pub tcp_window: u16,
    /// Octets after the transport header by the IP header's length: the payload of TCP and UDP; 0 for other protocols.
    pub payload: u32,
    /// ICMP or ICMPv6: the type times 256, plus the code.
    pub icmp_type_code: u16,
    /// IPv6 flow label.
    pub flow_label: u32,
    /// Source of the outermost Ethernet frame; zeros where the link layer has no such addresses.
    pub source_mac: [u8; 6],
    /// Its destination.
    pub destination_mac: [u8; 6],
    /// The top entry of the MPLS stack: label (20 bits), class, bottom bit; 0 where there is none.
    pub mpls_top: u32,
    /// Source and destination of the packet around it, where [`Tunnels::Inner`] found it in a tunnel.
    pub outer: Option<(IpAddr, IpAddr)>,
    /// VNI, TEID, GRE key, ERSPAN or L2TP session of that tunnel; 0 where it has none.
    pub tunnel_id: u32,
}

/// Decodes a frame of which `frame` was captured and that had `wire_length` octets on the wire.
pub fn decode(link: LinkType, frame: &[u8], wire_length: u32) -> Result<Packet, Ignore> {
    let (around, packet) = match link {
        LinkType::Ppi => ppi(frame)?,
        link => link_layer(link, frame)?,
    };
    // Cut frames are rare, and a length field of 0 (segmentation offload) rarer: then the wire tells the length.
    let on_wire = (wire_length as usize).max(frame.len()) - (frame.len() - packet.len());
    match packet.first().ok_or(Ignore::Truncated)? >> 4 {
        4 => ipv4(packet, on_wire, &around),
        6 => ipv6(packet, on_wire, &around),
        _ => Err(Ignore::Malformed),
    }
}

/// What stands before the IP header.
#[derive(Clone, Copy, Default)]
struct Around {
    vlan: u16,
    customer_vlan: u16,
    mpls_top: u32,
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
}

/// What stands before the IP header, and what begins with it.
fn link_layer(link: LinkType, frame: &[u8]) -> Result<(Around, &[u8]), Ignore> {
    match link {
        LinkType::Ethernet => ethernet(frame),
        LinkType::RawIp => Ok((Around::default(), frame)),
        LinkType::LinuxSll => ether_type(be16(frame, 14)?, from(frame, 16)?),
        LinkType::LinuxSll2 => ether_type(be16(frame, 0)?, from(frame, 20)?),
        LinkType::Null => Ok((Around::default(), null(frame)?)),
        LinkType::Ppp => Ok((Around::default(), ppp(frame)?)),
        LinkType::CiscoHdlc => ether_type(be16(frame, 2)?, from(frame, 4)?),
        // None within another: a frame must not decide how deep the decoder goes.
        LinkType::Ppi => Err(Ignore::OtherProtocol),
    }
}

fn ppi(frame: &[u8]) -> Result<(Around, &[u8]), Ignore> {
    let header: &[u8; 8] = frame.first_chunk().ok_or(Ignore::Truncated)?;
    let length = usize::from(u16::from_le_bytes([header[2], header[3]]));
    let number = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    let link = LinkType::from_pcap(number).ok_or(Ignore::OtherProtocol)?;
    link_layer(link, from(frame, length)?)
}

fn be16(bytes: &[u8], at: usize) -> Result<u16, Ignore> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]])).ok_or(Ignore::Truncated)
}

fn from(bytes: &[u8], at: usize) -> Result<&[u8], Ignore> {
    bytes.get(at..).ok_or(Ignore::Truncated)
}

fn ethernet(frame: &[u8]) -> Result<(Around, &[u8]), Ignore> {
    let (around, packet) = ether_type(be16(frame, 12)?, from(frame, 14)?)?;
    let mac = |at: usize| frame[at..at + 6].try_into().expect("six octets, before the EtherType");
    Ok((Around { source_mac: mac(6), destination_mac: mac(0), ..around }, packet))
}

/// Looks through VLAN tags, MPLS, PPPoE and SNAP. Of the tags the outermost two are kept.
fn ether_type(mut kind: u16, mut rest: &[u8]) -> Result<(Around, &[u8]), Ignore> {
    let mut around = Around::default();
    let mut tags = 0;
    for _ in 0..STACK_MAX {
        match kind {
            0x0800 | 0x86dd => return Ok((around, of_family(kind, rest)?)),
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => {
                let vlan = be16(rest, 0)? & 0x0fff;
                match tags {
                    0 => around.vlan = vlan,
                    1 => around.customer_vlan = vlan,
                    _ => {}
                }
                tags += 1;
                (kind, rest) = (be16(rest, 2)?, from(rest, 4)?);
            }
            0x8847 | 0x8848 => {
                let [high, middle, low] = *rest.first_chunk::<3>().ok_or(Ignore::Truncated)?;
                around.mpls_top = u32::from_be_bytes([0, high, middle, low]);
                return Ok((around, mpls(rest)?));
            }
            0x8864 => return Ok((around, ppp(from(rest, 6)?)?)),
            0x8863 => return Err(Ignore::PppControl),
            0x0806 | 0x8035 => return Err(Ignore::Arp),
            // 1536 and above are EtherTypes, below stands the length of an 802.3 frame (or, cooked, a number of Linux).
            0..=0x05ff => match rest.get(..8).ok_or(Ignore::Llc)? {
                [0xaa, 0xaa, 3, 0, 0, 0, ..] => (kind, rest) = (be16(rest, 6)?, from(rest, 8)?),
                _ => return Err(Ignore::Llc),
            },
            _ => return Err(Ignore::OtherProtocol),
        }
    }
    Err(Ignore::Malformed)
}

/// Refuses a packet whose version is not that of the EtherType before it.
fn of_family(kind: u16, packet: &[u8]) -> Result<&[u8], Ignore> {
    let version = packet.first().ok_or(Ignore::Truncated)? >> 4;
    let expected = if kind == 0x0800 { 4 } else { 6 };
    if version == expected { Ok(packet) } else { Err(Ignore::Malformed) }
}

fn mpls(mut rest: &[u8]) -> Result<&[u8], Ignore> {
    for _ in 0..STACK_MAX {
        let bottom = rest.get(2).ok_or(Ignore::Truncated)? & 1 == 1;
        rest = from(rest, 4)?;
        if bottom {
            // Nothing names what follows; IP shows its version, a pseudowire's control word begins with 0 (RFC 4928).
            return match rest.first().ok_or(Ignore::Truncated)? >> 4 {
                4 | 6 => Ok(rest),
                _ => Err(Ignore::MplsPayload),
            };
        }
    }
    Err(Ignore::MplsPayload)
}

fn ppp(frame: &[u8]) -> Result<&[u8], Ignore> {
    let frame = frame.strip_prefix(&[0xff, 0x03]).unwrap_or(frame);
    // A protocol number with an odd first octet is compressed to that octet (RFC 1661, 6.5).
    let (protocol, rest) = match frame.first().ok_or(Ignore::Truncated)? {
        first if first & 1 == 1 => (u16::from(*first), &frame[1..]),
        _ => (be16(frame, 0)?, from(frame, 2)?),
    };
    match protocol {
        0x21 => of_family(0x0800, rest),
        0x57 => of_family(0x86dd, rest),
        _ => Err(Ignore::PppControl),
    }
}

fn null(frame: &[u8]) -> Result<&[u8], Ignore> {
    let family: [u8; 4] = frame.get(..4).ok_or(Ignore::Truncated)?.try_into().expect("four octets");
    let family = u32::from_be_bytes(family).min(u32::from_le_bytes(family));
    match family {
        2 => of_family(0x0800, &frame[4..]),
        10 | 24 | 28 | 30 => of_family(0x86dd, &frame[4..]),
        _ => Err(Ignore::OtherProtocol),
    }
}

fn ipv4(packet: &[u8], on_wire: usize, around: &Around) -> Result<Packet, Ignore> {
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
    Ok(transport(ip, payload, total, around))
}

fn ipv6(packet: &[u8], on_wire: usize, around: &Around) -> Result<Packet, Ignore> {
    let header: &[u8; 40] = packet.first_chunk().ok_or(Ignore::Truncated)?;
    let payload_length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let next = header[6];
    // A length of 0 is a jumbogram (RFC 2675) or segmentation offload; only "no next header" (59) says really nothing.
    let total = if payload_length == 0 && next != 59 { on_wire } else { 40 + payload_length };
    let payload = &packet[40..total.clamp(40, packet.len())];
    let (before, captured) = (total - 40, payload.len());
    let (protocol, fragment, payload) = extension_headers(next, payload);
    let beyond = before.saturating_sub(captured - payload.len());
    let address = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().expect("sixteen octets");
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let tos = (header[0] << 4) | (header[1] >> 4);
    let flow_label = u32::from_be_bytes([0, header[1] & 0x0f, header[2], header[3]]);
    let (source, destination) = (address(8), address(24));
    let ip = Ip { source, destination, protocol, tos, ttl: header[7], flow_label, fragment, beyond };
    Ok(transport(ip, payload, total, around))
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
        flow_label: ip.flow_label,
        source_mac: around.source_mac,
        destination_mac: around.destination_mac,
        mpls_top: around.mpls_top,
        outer: None,
        tunnel_id: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragment::FragmentTable;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    const MACS: &str = "02000000000202000000 0001";
    /// 10.0.0.1:4660 -> 10.0.0.2:80, TCP SYN+ACK with CWR, total length 40, type of service 0x10.
    const TCP: &str = "4510002800010000400600000a0000010a000002 12340050 0000000100000002 5092 ffff 0000 0000";
    /// [2001:db8::1]:53 -> [2001:db8::2]:4660, UDP of 12 octets.
    const V6: &str = "6120 0000 000c HH 40 20010db8000000000000000000000001 20010db8000000000000000000000002";
    const UDP: &str = "0035 1234 000c 0000 01020304";

    fn v6(next: &str, length: &str, rest: &str) -> String {
        V6.replace("HH", next).replacen("000c", length, 1) + rest
    }

    /// What is expected of a frame: `source_port>destination_port protocol vlan octets flags tos` or the ignore's name.
    fn shown(link: LinkType, bytes: &[u8]) -> String {
        match decode(link, bytes, bytes.len() as u32) {
            Ok(o) => format!(
                "{}>{} {} {} {} {:#x} {:#x}",
                o.key.source_port, o.key.destination_port, o.key.protocol, o.key.vlan, o.octets, o.tcp_flags, o.tos
            ),
            Err(ignore) => ignore.name().to_string(),
        }
    }

    #[test]
    fn frames_decode() {
        let eth = |kind: &str, rest: &str| format!("{MACS}{kind}{rest}");
        let tcp = "4660>80 6 0 40 0x92 0x10";
        let udp6 = "53>4660 17 0 52 0x0 0x12";
        let cases: Vec<(&str, LinkType, String, &str)> = vec![
            ("ethernet", LinkType::Ethernet, eth("0800", TCP), tcp),
            ("padding", LinkType::Ethernet, eth("0800", TCP) + "000000000000", tcp),
            ("one tag", LinkType::Ethernet, eth("8100e005 0800", TCP), "4660>80 6 5 40 0x92 0x10"),
            ("two tags", LinkType::Ethernet, eth("88a80007 81000005 0800", TCP), "4660>80 6 7 40 0x92 0x10"),
            ("mpls", LinkType::Ethernet, eth("8847 00010040 00011140", TCP), tcp),
            ("pseudowire", LinkType::Ethernet, eth("8847 00011140 00000000", TCP), "mpls_payload"),
            ("pppoe", LinkType::Ethernet, eth("8864 110000010020 0021", TCP), tcp),
            ("pppoe discovery", LinkType::Ethernet, eth("8863 110000010020", ""), "ppp_control"),
            ("lcp", LinkType::Ethernet, eth("8864 110000010020 c021", "01"), "ppp_control"),
            ("snap", LinkType::Ethernet, eth("0030 aaaa03000000 0800", TCP), tcp),
            ("spanning tree", LinkType::Ethernet, eth("0026 424203000000", "0000"), "llc"),
            ("arp", LinkType::Ethernet, eth("0806", "0001"), "arp"),
            ("lldp", LinkType::Ethernet, eth("88cc", "0207"), "other_protocol"),
            ("raw", LinkType::RawIp, TCP.into(), tcp),
            ("raw v6", LinkType::RawIp, v6("11", "000c", UDP), udp6),
            ("cooked", LinkType::LinuxSll, format!("0000 0001 0006 020000000001 0000 0800 {TCP}"), tcp),
            ("cooked 2", LinkType::LinuxSll2, format!("0800 0000 00000001 0001 00 06 0200000000010000 {TCP}"), tcp),
            ("loopback", LinkType::Null, format!("02000000 {TCP}"), tcp),
            ("loopback v6", LinkType::Null, format!("0000001e {}", v6("11", "000c", UDP)), udp6),
            ("ppp", LinkType::Ppp, format!("ff03 0021 {TCP}"), tcp),
            ("cisco hdlc", LinkType::CiscoHdlc, format!("0f00 0800 {TCP}"), tcp),
            (
                "ppi",
                LinkType::Ppi,
                format!("00000c00 01000000 00000000 {}", eth("8100e005 0800", TCP)),
                "4660>80 6 5 40 0x92 0x10",
            ),
            ("ppi of radio", LinkType::Ppi, format!("00000800 69000000 {TCP}"), "other_protocol"),
            (
                "ppi in ppi",
                LinkType::Ppi,
                format!("00000800 c0000000 00000800 01000000 {}", eth("0800", TCP)),
                "other_protocol",
            ),
            (
                "hop by hop, destination",
                LinkType::RawIp,
                v6("00", "001c", &("3c00010400000000 1100010400000000".to_string() + UDP)),
                "53>4660 17 0 68 0x0 0x12",
            ),
            (
                "atomic fragment",
                LinkType::RawIp,
                v6("2c", "0014", &("1100000000000007".to_string() + UDP)),
                "53>4660 17 0 60 0x0 0x12",
            ),
            ("no next header", LinkType::RawIp, v6("3b", "0000", ""), "0>0 59 0 40 0x0 0x12"),
            ("icmp has no ports", LinkType::RawIp, TCP.replacen("4006", "4001", 1), "0>0 1 0 40 0x0 0x10"),
            ("esp", LinkType::RawIp, v6("32", "000c", UDP), "0>0 50 0 52 0x0 0x12"),
            ("offload, length 0", LinkType::RawIp, TCP.replacen("0028", "0000", 1), tcp),
            (
                "options",
                LinkType::RawIp,
                TCP.replacen(
                    "4510002800010000400600000a0000010a000002",
                    "4610002c00010000400600000a0000010a000002 01010101",
                    1,
                ),
                "4660>80 6 0 44 0x92 0x10",
            ),
            ("header length 16", LinkType::RawIp, TCP.replacen("4510", "4410", 1), "malformed"),
            ("total below header", LinkType::RawIp, TCP.replacen("0028", "0013", 1), "malformed"),
            ("wrong version", LinkType::Ethernet, eth("86dd", TCP), "malformed"),
            ("empty", LinkType::Ethernet, String::new(), "truncated"),
        ];
        for (name, link, frame, expected) in cases {
            assert_eq!(shown(link, &hex(&frame)), expected, "{name}");
        }
    }

    #[test]
    fn cut_frames_keep_the_octets_of_the_wire() {
        let frame = hex(&format!("{MACS}0800{TCP}"));
        for length in 0..frame.len() {
            match decode(LinkType::Ethernet, &frame[..length], frame.len() as u32) {
                Ok(observation) => {
                    assert!(length >= 34);
                    assert_eq!(observation.octets, 40);
                    assert_eq!(observation.key.source_port, if length >= 38 { 4660 } else { 0 }, "{length}");
                }
                Err(ignore) => assert_eq!((ignore, length < 34), (Ignore::Truncated, true)),
            }
        }
    }

    #[test]
    fn later_fragments_join_their_datagram() {
        let first = hex(&TCP.replacen("00010000", "00092000", 1));
        let later = hex(&TCP.replacen("00010000", "00090003", 1));
        let other = hex(&TCP.replacen("00010000", "000a0003", 1));
        let mut table = FragmentTable::new(64, 1);
        let mut resolved = |bytes: &[u8], now_ns: u64| {
            let mut observation = decode(LinkType::RawIp, bytes, 40).unwrap();
            table.resolve(&mut observation, now_ns);
            observation.key.source_port
        };
        assert_eq!(resolved(&later, 0), 0);
        assert_eq!(resolved(&first, 0), 4660);
        assert_eq!(resolved(&later, 1), 4660);
        assert_eq!(resolved(&other, 1), 0);
        assert_eq!(resolved(&later, 100_000_000_000), 0, "forgotten");
        // Datagrams of the same moment take free slots before they push each other out: one set holds all of these.
        let mut table = FragmentTable::new(4, 1);
        let mut resolved = |fragment: &str| {
            let mut observation = decode(LinkType::RawIp, &hex(&TCP.replacen("00010000", fragment, 1)), 40).unwrap();
            table.resolve(&mut observation, 0);
            observation.key.source_port
        };
        for identification in 1..=4 {
            assert_eq!(resolved(&format!("{identification:04x}2000")), 4660);
        }
        for identification in 1..=4 {
            assert_eq!(resolved(&format!("{identification:04x}0003")), 4660, "{identification}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), wire in any::<u32>(), link in 0u32..300) {
            for link in LinkType::from_pcap(link).into_iter().chain([LinkType::Ethernet, LinkType::RawIp]) {
                let _ = decode(link, &bytes, wire);
            }
        }

        #[test]
        fn no_damage_to_a_frame_panics(at in 0usize..66, value in any::<u8>(), cut in 0usize..66, tagged in any::<bool>()) {
            let tag = if tagged { "81000001" } else { "" };
            let mut frame = hex(&format!("{MACS}{tag}86dd{}", v6("00", "0014", &("3c00010400000000".to_string() + UDP))));
            let at = at % frame.len();
            frame[at] = value;
            let _ = decode(LinkType::Ethernet, &frame[..cut.min(frame.len())], 60);
        }
    }
}
