//! What the flow cache is given of each packet: an [`Observation`], small for what is common.
//!
//! [`Observer::observe`] decodes plain packets (Ethernet, one VLAN tag at most, IPv4 without options or fragments, TCP or
//! UDP) straight from their octets; everything else goes through [`packet::decode`]. Both ways give the same: a test holds
//! them to it.

use crate::flow::{Direction, FlowKey, Tunnel, TunnelKind};
use crate::fragment::FragmentTable;
use crate::packet::{self, Ignore, LinkType, Packet, Tunnels};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A canonical flow key in 16 octets: the lower end (address, then port) first.
///
/// ```text
/// word 0: kind (8 bits) | protocol (8) | address (32) | port (16) of the lower end
/// word 1: VLAN (16)                    | address (32) | port (16) of the higher end
/// ```
///
/// It is the whole key of a plain IPv4 flow. Of any other the addresses are in [`Wide`], and their places here are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactKey {
    /// The words.
    pub words: [u64; 2],
}

/// Plain IPv4: the key is complete.
pub const KIND_PLAIN: u8 = 1;
/// IPv4 with a second VLAN or in a tunnel: the rest is in [`Wide`].
pub const KIND_WIDE_IPV4: u8 = 2;
/// IPv6: the rest is in [`Wide`].
pub const KIND_WIDE_IPV6: u8 = 3;

/// The bits of a word that hold an address.
pub const ADDRESS_BITS: u64 = 0x0000_ffff_ffff_0000;

impl CompactKey {
    /// What the key is of: [`KIND_PLAIN`], [`KIND_WIDE_IPV4`], [`KIND_WIDE_IPV6`]; 0 for none.
    pub fn kind(&self) -> u8 {
        (self.words[0] >> 56) as u8
    }

    /// Whether a part of the key is in [`Wide`].
    pub fn is_wide(&self) -> bool {
        self.kind() != KIND_PLAIN
    }

    /// Protocol number.
    pub fn protocol(&self) -> u8 {
        (self.words[0] >> 48) as u8
    }

    /// The outermost VLAN.
    pub fn vlan(&self) -> u16 {
        (self.words[1] >> 48) as u16
    }

    fn address(&self, end: usize) -> IpAddr {
        Ipv4Addr::from((self.words[end] >> 16) as u32).into()
    }

    /// The key of the packets that go in `direction`.
    pub fn expand(&self, wide: &WideKey, direction: Direction) -> FlowKey {
        let [source, destination] = match self.kind() {
            KIND_PLAIN => [self.address(0), self.address(1)],
            kind => wide.addresses.map(|address| from_sixteen(address, kind == KIND_WIDE_IPV6)),
        };
        let wide = if self.is_wide() { *wide } else { WideKey::default() };
        let key = FlowKey {
            source,
            destination,
            source_port: self.words[0] as u16,
            destination_port: self.words[1] as u16,
            protocol: self.protocol(),
            vlan: self.vlan(),
            customer_vlan: wide.customer_vlan,
            tunnel: wide.tunnel(),
        };
        if direction == Direction::Forward { key } else { key.reversed() }
    }
}

/// An address as 16 octets; those of IPv4 are the first four.
fn to_sixteen(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
    }
}

fn from_sixteen(octets: [u8; 16], is_ipv6: bool) -> IpAddr {
    match is_ipv6 {
        true => Ipv6Addr::from(octets).into(),
        false => Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into(),
    }
}

/// The part of a key that [`CompactKey`] has no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WideKey {
    /// The lower end's address, then the higher end's; IPv4 in the first four octets.
    pub addresses: [[u8; 16]; 2],
    /// [`Tunnel::id`].
    pub tunnel_id: u32,
    /// The second VLAN.
    pub customer_vlan: u16,
    /// The number of a [`TunnelKind`], 0 for none.
    pub tunnel_kind: u8,
    /// Always 0.
    pub pad: u8,
}

impl WideKey {
    /// All of it as words, for hashing.
    #[inline]
    pub fn as_words(&self) -> [u64; 5] {
        let word = |octets: &[u8]| u64::from_ne_bytes(octets.try_into().expect("eight octets"));
        let [low, high] = &self.addresses;
        let rest = u64::from(self.tunnel_id) | u64::from(self.customer_vlan) << 32 | u64::from(self.tunnel_kind) << 48;
        [word(&low[..8]), word(&low[8..]), word(&high[..8]), word(&high[8..]), rest]
    }

    fn tunnel(&self) -> Option<Tunnel> {
        let kind = *TunnelKind::ALL.get(usize::from(self.tunnel_kind).checked_sub(1)?)?;
        Some(Tunnel { kind, id: self.tunnel_id })
    }
}

/// What is read beyond the key where the whole frame was decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wide {
    /// The rest of the key.
    pub key: WideKey,
    /// VNI, TEID, GRE key or session, as this packet says it.
    pub tunnel_id: u32,
    /// IPv6 flow label.
    pub flow_label: u32,
    /// Source and destination of the packet around this one, where there is one; IPv4 in the first four octets.
    pub outer: [[u8; 16]; 2],
    /// 4, 6, or 0 where there is no packet around.
    pub outer_version: u8,
}

impl Wide {
    /// Source and destination of the packet around this one.
    pub fn outer(&self) -> Option<(IpAddr, IpAddr)> {
        let address = |octets| from_sixteen(octets, self.outer_version == 6);
        (self.outer_version != 0).then(|| (address(self.outer[0]), address(self.outer[1])))
    }
}

/// What measurements beyond the counters need of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Octets of the frame on the wire.
    pub layer2_octets: u32,
    /// TCP sequence number.
    pub tcp_sequence: u32,
    /// Octets after the transport header.
    pub payload: u32,
    /// Top entry of the MPLS stack.
    pub mpls_top: u32,
    /// TCP window.
    pub tcp_window: u16,
    /// ICMP type and code.
    pub icmp_type_code: u16,
    /// SPI of ESP or AH.
    pub spi: u32,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// Of the Ethernet frame.
    pub source_mac: [u8; 6],
    /// Of the Ethernet frame.
    pub destination_mac: [u8; 6],
}

/// One packet as the flow cache takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Observation {
    /// The flow's key.
    pub key: CompactKey,
    /// When it was captured, microseconds since 1970.
    pub time_us: u64,
    /// IP octets: header and payload.
    pub octets: u32,
    /// Packets: 1, or more where segmentation was left to the interface.
    pub packets: u32,
    /// TCP control bits (RFC 7125), 0 for other protocols.
    pub tcp_flags: u16,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Which way it goes, seen from the key.
    pub direction: Direction,
    /// The Observation Point: 1 for the first interface, at most 15.
    pub interface: u8,
    /// For measurements; stale where the [`Observer`] was not asked for them.
    pub details: Details,
    /// Stale where the key is not wide.
    pub wide: Wide,
}

impl Default for Observation {
    fn default() -> Observation {
        Observation {
            key: CompactKey::default(),
            time_us: 0,
            octets: 0,
            packets: 0,
            tcp_flags: 0,
            tos: 0,
            direction: Direction::Forward,
            interface: 0,
            details: Details::default(),
            wide: Wide::default(),
        }
    }
}

/// A frame with what its capture source says of it.
#[derive(Clone, Copy, Debug)]
pub struct Captured<'a> {
    /// What it begins with.
    pub link: LinkType,
    /// What was captured of it.
    pub bytes: &'a [u8],
    /// Its octets on the wire.
    pub wire_length: u32,
    /// When, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Its Observation Point: 1 for the first interface, at most 15.
    pub interface: u8,
    /// Packets that it is on the wire: more than one where the host left segmentation to its interface; their payloads are one
    /// after another here, and each has the headers.
    pub packets: u16,
}

/// Makes Observations of frames; remembers the first fragments of datagrams.
pub struct Observer {
    tunnels: Tunnels,
    measure: bool,
    fragments: FragmentTable,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Octets of an Ethernet header, and of that with one VLAN tag.
const ETHERNET: usize = 14;
const TAGGED: usize = 18;

impl Observer {
    /// An observer of the outermost or innermost packets; `measure` asks for [`Details`]; `fragments` resolves later fragments.
    pub fn new(tunnels: Tunnels, measure: bool, fragments: FragmentTable) -> Observer {
        Observer { tunnels, measure, fragments }
    }

    /// Writes the Observation of a frame to `out`; what `out` held before is of no account.
    ///
    /// # Errors
    /// The name of what was ignored; `out` is then without meaning.
    #[inline]
    pub fn observe(&mut self, captured: &Captured<'_>, out: &mut Observation) -> Result<(), Ignore> {
        if captured.link == LinkType::Ethernet && captured.packets <= 1 && self.plain(captured, out) {
            return Ok(());
        }
        self.decode(captured, out)
    }

    #[inline]
    fn plain(&self, captured: &Captured<'_>, out: &mut Observation) -> bool {
        let bytes = captured.bytes;
        let Some(header) = bytes.first_chunk::<TAGGED>() else { return false };
        let read = match (header[12], header[13]) {
            (0x08, 0x00) => bytes.get(ETHERNET..).is_some_and(|packet| self.plain_ipv4(packet, 0, out)),
            (0x81, 0x00) if (header[16], header[17]) == (0x08, 0x00) => {
                let vlan = u16::from_be_bytes([header[14], header[15]]) & 0x0fff;
                bytes.get(TAGGED..).is_some_and(|packet| self.plain_ipv4(packet, vlan, out))
            }
            _ => false,
        };
        if read {
            out.time_us = captured.time_ns / 1000;
            out.interface = captured.interface;
            if self.measure {
                out.details.layer2_octets = captured.wire_length;
                out.details.destination_mac.copy_from_slice(&header[..6]);
                out.details.source_mac.copy_from_slice(&header[6..12]);
            }
        }
        read
    }

    /// Reads TCP or UDP in IPv4 without options, of which all headers were captured; refuses anything else.
    #[inline]
    fn plain_ipv4(&self, packet: &[u8], vlan: u16, out: &mut Observation) -> bool {
        // 40 octets hold IPv4's header and TCP's; a UDP packet with less than 12 octets of payload has padding after it.
        let Some(h) = packet.first_chunk::<40>() else { return false };
        let total = u32::from(u16::from_be_bytes([h[2], h[3]]));
        let protocol = h[9];
        let fragment = u16::from_be_bytes([h[6], h[7]]) & 0x3fff;
        let is_tcp = protocol == TCP;
        let port = |at: usize| u16::from_be_bytes([h[at], h[at + 1]]);
        let is_plain_udp =
            protocol == UDP && (self.tunnels == Tunnels::Outer || !packet::is_carrier(port(20), port(22)));
        let least = if is_tcp { 40 } else { 28 };
        if h[0] != 0x45 || fragment != 0 || !(is_tcp || is_plain_udp) || total < least {
            return false;
        }
        let word = |at: usize| u32::from_be_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
        let ports = word(20);
        let source = u64::from(word(12)) << 16 | u64::from(ports >> 16);
        let destination = u64::from(word(16)) << 16 | u64::from(ports & 0xffff);
        let kind = u64::from(KIND_PLAIN) << 56 | u64::from(protocol) << 48;
        out.key.words = [kind | source.min(destination), u64::from(vlan) << 48 | source.max(destination)];
        out.direction = if source <= destination { Direction::Forward } else { Direction::Reverse };
        out.octets = total;
        out.packets = 1;
        out.tcp_flags = if is_tcp { u16::from_be_bytes([h[32], h[33]]) & 0x0fff } else { 0 };
        out.tos = h[1];
        if self.measure {
            let transport = if is_tcp { u32::from(h[32] >> 4) * 4 } else { 8 };
            out.details.tcp_sequence = if is_tcp { word(24) } else { 0 };
            out.details.tcp_window = if is_tcp { u16::from_be_bytes([h[34], h[35]]) } else { 0 };
            out.details.payload = total.saturating_sub(20 + transport);
            out.details.ttl = h[8];
            (out.details.icmp_type_code, out.details.mpls_top, out.details.spi) = (0, 0, 0);
        }
        true
    }

    #[inline(never)]
    fn decode(&mut self, captured: &Captured<'_>, out: &mut Observation) -> Result<(), Ignore> {
        let mut packet = packet::decode(captured.link, captured.bytes, captured.wire_length, self.tunnels)?;
        if packet.fragment.is_some() {
            self.fragments.resolve(&mut packet, captured.time_ns);
        }
        write(&packet, captured, out);
        Ok(())
    }
}

/// The Observation of a packet that was decoded in full.
fn write(packet: &Packet, captured: &Captured<'_>, out: &mut Observation) {
    let (key, direction) = packet.key.canonical();
    let tunnel = key.tunnel;
    let kind = match (key.source, key.customer_vlan, tunnel) {
        (IpAddr::V4(_), 0, None) => KIND_PLAIN,
        (IpAddr::V4(_), ..) => KIND_WIDE_IPV4,
        (IpAddr::V6(_), ..) => KIND_WIDE_IPV6,
    };
    let end = |address: IpAddr, port: u16| match address {
        IpAddr::V4(address) if kind == KIND_PLAIN => u64::from(u32::from(address)) << 16 | u64::from(port),
        _ => u64::from(port),
    };
    let head = u64::from(kind) << 56 | u64::from(key.protocol) << 48;
    let words = [
        head | end(key.source, key.source_port),
        u64::from(key.vlan) << 48 | end(key.destination, key.destination_port),
    ];
    let outer = packet.outer;
    // Where segmentation was left to the interface, each packet but the first has headers that are not here.
    let more = u32::from(captured.packets.max(1)) - 1;
    let headers = |octets: u32| octets.saturating_add(octets.saturating_sub(packet.payload).saturating_mul(more));
    *out = Observation {
        key: CompactKey { words },
        time_us: captured.time_ns / 1000,
        octets: headers(packet.octets),
        packets: more + 1,
        tcp_flags: packet.tcp_flags,
        tos: packet.tos,
        direction,
        interface: captured.interface,
        details: Details {
            layer2_octets: headers(captured.wire_length),
            tcp_sequence: packet.tcp_sequence,
            payload: packet.payload,
            mpls_top: packet.mpls_top,
            tcp_window: packet.tcp_window,
            icmp_type_code: packet.icmp_type_code,
            spi: packet.spi,
            ttl: packet.ttl,
            source_mac: packet.source_mac,
            destination_mac: packet.destination_mac,
        },
        wide: Wide {
            key: WideKey {
                addresses: [to_sixteen(key.source), to_sixteen(key.destination)],
                tunnel_id: tunnel.map_or(0, |tunnel| tunnel.id),
                customer_vlan: key.customer_vlan,
                tunnel_kind: tunnel.map_or(0, |tunnel| tunnel.kind as u8),
                pad: 0,
            },
            tunnel_id: packet.tunnel_id,
            flow_label: packet.flow_label,
            outer: outer.map_or([[0; 16]; 2], |(source, destination)| [to_sixteen(source), to_sixteen(destination)]),
            outer_version: outer.map_or(0, |(source, _)| if source.is_ipv4() { 4 } else { 6 }),
        },
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Frames that are plain, or nearly: each octet that the short way looks at takes the values that matter.
    fn nearly_plain() -> impl Strategy<Value = Vec<u8>> {
        let tags = prop_oneof![Just(0usize), Just(1), Just(2)];
        let version = prop_oneof![5 => Just(0x45u8), 1 => any::<u8>()];
        let fragment = prop_oneof![3 => Just(0x4000u16), 1 => Just(0x2000), 1 => any::<u16>()];
        let protocol = prop_oneof![Just(TCP), Just(UDP), Just(1u8), any::<u8>()];
        let total = prop_oneof![Just(40u16), Just(28), Just(46), 0u16..80];
        (tags, version, fragment, protocol, total, proptest::collection::vec(any::<u8>(), 64), 0usize..90).prop_map(
            |(tags, version, fragment, protocol, total, random, length)| {
                let mut frame = random[..12].to_vec();
                (0..tags).for_each(|tag| frame.extend([0x81, 0x00, 0x20, 7 + tag as u8]));
                frame.extend([0x08, 0x00, version, random[12]]);
                frame.extend(total.to_be_bytes());
                frame.extend([0, 1]);
                frame.extend(fragment.to_be_bytes());
                frame.extend([64, protocol, 0, 0]);
                frame.extend(&random[20..]);
                frame.truncate(length);
                frame
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// The short way says what the long way says, of every packet that it takes.
        #[test]
        fn both_ways_agree(frame in nearly_plain(), beyond in 0u32..100, inner in any::<bool>()) {
            let tunnels = if inner { Tunnels::Inner } else { Tunnels::Outer };
            let captured = Captured {
                link: LinkType::Ethernet,
                bytes: &frame,
                wire_length: frame.len() as u32 + beyond,
                time_ns: 5_000,
                interface: 3,
                packets: 1,
            };
            let observer = || Observer::new(tunnels, true, FragmentTable::new(4, 1));
            let (mut short, mut long) = (Observation::default(), Observation::default());
            if observer().plain(&captured, &mut short) {
                prop_assert_eq!(observer().decode(&captured, &mut long), Ok(()));
                // Of a plain key nobody reads the rest.
                (short.wide, long.wide) = (Wide::default(), Wide::default());
                prop_assert_eq!(short, long);
            }
        }

        /// A key comes back from its two parts, in both directions.
        #[test]
        fn keys_come_back(addresses in any::<[[u8; 16]; 2]>(), v6 in any::<bool>(), ports in any::<[u16; 2]>(),
                          protocol in any::<u8>(), vlans in any::<[u16; 2]>(), tunnel in 0usize..9, id in any::<u32>()) {
            let [source, destination] = addresses.map(|address| from_sixteen(address, v6));
            let tunnel = tunnel.checked_sub(1).map(|kind| Tunnel { kind: TunnelKind::ALL[kind], id });
            let [source_port, destination_port] = ports;
            let [vlan, customer_vlan] = vlans;
            let key = FlowKey { source, destination, source_port, destination_port, protocol, vlan, customer_vlan, tunnel };
            let captured = Captured { link: LinkType::RawIp, bytes: &[], wire_length: 0, time_ns: 0, interface: 1, packets: 1 };
            let mut out = Observation::default();
            write(&Packet { key, ..Packet::default() }, &captured, &mut out);
            prop_assert_eq!(out.key.expand(&out.wide.key, out.direction), key);
        }
    }
}
