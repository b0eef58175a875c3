//! Frames become Packets: the decoder of link layers, IPv4, IPv6, transport headers and tunnels.
//!
//! Total: every frame is either a [`Packet`], the outermost or the innermost IP packet as [`Tunnels`] says, or an
//! [`Ignore`] with a name. A captured frame may be shorter than it was on the wire; what is missing of the transport
//! header reads as port 0, no flags. `ebpf/bpf/parse.h` and `tunnel.h` follow the same steps to the key.

mod ip;
mod link;
#[cfg(test)]
mod tests;
mod tunnel;

use crate::flow::FlowKey;
use std::net::IpAddr;

pub use ip::{has_ports, is_extension_header};
pub use link::{LinkType, STACK_MAX};
pub(crate) use tunnel::is_carrier;
pub use tunnel::{GTP_EXTENSIONS_MAX, TUNNELS_MAX};

/// IPv6 extension headers that are looked through, at most; `ebpf/bpf/nagare.h` has the same bound.
pub const EXTENSION_HEADERS_MAX: usize = 8;

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
    /// The innermost that can be read; the outer addresses and the tunnel's identifier are kept with it. Fragments are not
    /// looked into: a datagram in fragments is a packet of its outer flow, whole.
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
    /// Security Parameters Index of ESP or AH; 0 for other protocols.
    pub spi: u32,
    /// IPv6 flow label.
    pub flow_label: u32,
    /// Source of the Ethernet frame that carries the packet; zeros where the link layer has no such addresses. Where a tunnel
    /// carries packets and no frames, this, the VLANs and the label are those of the frame around.
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
///
/// # Errors
/// The name of what the outermost packet is, where it is no IP packet that can be read. What a tunnel carries beyond that,
/// and is none, is payload of the packet around it.
pub fn decode(link: LinkType, frame: &[u8], wire_length: u32, tunnels: Tunnels) -> Result<Packet, Ignore> {
    let (around, rest) = link::network(link, frame)?;
    // Cut frames are rare, and a length field of 0 (segmentation offload) rarer: then the wire tells the length.
    let on_wire = (wire_length as usize).max(frame.len()) - (frame.len() - rest.len());
    let mut datagram = ip::datagram(rest, on_wire, around)?;
    if tunnels == Tunnels::Inner {
        for _ in 0..TUNNELS_MAX {
            let Some(inner) = tunnel::inside(&datagram) else { break };
            datagram = inner;
        }
    }
    Ok(datagram.packet)
}

fn be16(bytes: &[u8], at: usize) -> Result<u16, Ignore> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]])).ok_or(Ignore::Truncated)
}

fn be32(bytes: &[u8], at: usize) -> Result<u32, Ignore> {
    bytes.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]])).ok_or(Ignore::Truncated)
}

fn from(bytes: &[u8], at: usize) -> Result<&[u8], Ignore> {
    bytes.get(at..).ok_or(Ignore::Truncated)
}
