//! The catalogue of fields that a flow can be exported with, and the Templates that are made of them.
//!
//! IANA's elements where there are any; else those that nProbe exports under its Private Enterprise Number, which existing
//! collectors understand.

use super::element::{NTOP_PEN, REVERSE_PEN};
use super::message::FieldSpecifier;
use crate::flow::{FlowRecord, TunnelKind};
use std::net::IpAddr;

/// biflowDirection: the source is the initiator, as far as the Metering Process could tell (RFC 5103, 6.3).
pub(super) const INITIATOR: u8 = 1;

/// Seconds from 1900, where NTP's time begins, to 1970.
pub(super) const FROM_1900_TO_1970_S: u64 = 2_208_988_800;

/// Of which flows a field speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Any,
    Ipv4,
    Ipv6,
}

/// A field of the catalogue.
pub struct Field {
    /// Its name in IANA's registry (RFC 5103's for the reverse direction), or nProbe's.
    pub name: &'static str,
    /// The element and its length.
    pub specifier: FieldSpecifier,
    /// What it says, in a few words.
    pub description: &'static str,
    /// Whether it needs what a Metering Process does not count unless it is asked ([`crate::flow::Origin`],
    /// [`crate::flow::Measured`]).
    pub measured: bool,
    family: Family,
    write: fn(&FlowRecord, &mut Vec<u8>),
}

macro_rules! fields {
    ($($name:literal $pen:ident $element:literal $length:literal $family:ident $measured:literal $write:expr, $description:literal;)*) => {
        /// All fields, in the order in which a full Template has them.
        pub static CATALOGUE: &[Field] = &[$(Field {
            name: $name,
            specifier: FieldSpecifier { element: $element, enterprise: $pen, length: $length },
            description: $description,
            measured: $measured,
            family: Family::$family,
            write: |flow: &FlowRecord, out: &mut Vec<u8>| {
                let value: [u8; $length] = $write(flow);
                out.extend_from_slice(&value);
            },
        }),*];
    };
}

const IANA: u32 = 0;

type F = FlowRecord;

fields! {
    "flowStartMilliseconds" IANA 152 8 Any false |f: &F| f.start_ms().to_be_bytes(), "time of the first packet";
    "flowEndMilliseconds" IANA 153 8 Any false |f: &F| f.end_ms().to_be_bytes(), "time of the last packet";
    "sourceIPv4Address" IANA 8 4 Ipv4 false |f: &F| ipv4(f.key.source), "initiator (flows of IPv4)";
    "sourceIPv6Address" IANA 27 16 Ipv6 false |f: &F| ipv6(f.key.source), "initiator (flows of IPv6)";
    "destinationIPv4Address" IANA 12 4 Ipv4 false |f: &F| ipv4(f.key.destination), "responder (flows of IPv4)";
    "destinationIPv6Address" IANA 28 16 Ipv6 false |f: &F| ipv6(f.key.destination), "responder (flows of IPv6)";
    "sourceTransportPort" IANA 7 2 Any false |f: &F| f.key.source_port.to_be_bytes(), "port of the initiator";
    "destinationTransportPort" IANA 11 2 Any false |f: &F| f.key.destination_port.to_be_bytes(), "port of the responder";
    "protocolIdentifier" IANA 4 1 Any false |f: &F| [f.key.protocol], "IP protocol";
    "ipClassOfService" IANA 5 1 Any false |f: &F| [f.tos], "type of service of the first packet";
    "vlanId" IANA 58 2 Any false |f: &F| f.key.vlan.to_be_bytes(), "outermost VLAN";
    "dot1qCustomerVlanId" IANA 245 2 Any false |f: &F| f.key.customer_vlan.to_be_bytes(), "second VLAN (QinQ)";
    "flowEndReason" IANA 136 1 Any false |f: &F| [f.end_reason], "why the record was exported";
    "biflowDirection" IANA 239 1 Any false |_: &F| [INITIATOR], "always 1: the source is the initiator";
    "packetDeltaCount" IANA 2 8 Any false |f: &F| f.forward.packets.to_be_bytes(), "packets of the initiator";
    "octetDeltaCount" IANA 1 8 Any false |f: &F| f.forward.octets.to_be_bytes(), "IP octets of the initiator";
    "tcpControlBits" IANA 6 2 Any false |f: &F| f.forward.tcp_flags.to_be_bytes(), "TCP flags of the initiator";
    "reversePacketDeltaCount" REVERSE_PEN 2 8 Any false |f: &F| f.reverse.packets.to_be_bytes(), "packets of the responder";
    "reverseOctetDeltaCount" REVERSE_PEN 1 8 Any false |f: &F| f.reverse.octets.to_be_bytes(), "IP octets of the responder";
    "reverseTcpControlBits" REVERSE_PEN 6 2 Any false |f: &F| f.reverse.tcp_flags.to_be_bytes(), "TCP flags of the responder";
    "flowStartMicroseconds" IANA 154 8 Any false |f: &F| ntp(f.start_us), "time of the first packet, exactly";
    "flowEndMicroseconds" IANA 155 8 Any false |f: &F| ntp(f.end_us), "time of the last packet, exactly";
    "UNTUNNELED_PROTOCOL" NTOP_PEN 113 1 Any false |f: &F| [carrier(f).0], "IP protocol that carried the tunnel";
    "UNTUNNELED_L4_DST_PORT" NTOP_PEN 117 2 Any false |f: &F| carrier(f).1.to_be_bytes(), "well-known port of the tunnel; of GRE its protocol type";
    "UNTUNNELED_IPV4_SRC_ADDR" NTOP_PEN 114 4 Any false |f: &F| outer(f, true).map_or([0; 4], ipv4), "source of the tunnel";
    "UNTUNNELED_IPV4_DST_ADDR" NTOP_PEN 116 4 Any false |f: &F| outer(f, false).map_or([0; 4], ipv4), "destination of the tunnel";
    "UNTUNNELED_IPV6_SRC_ADDR" NTOP_PEN 396 16 Any false |f: &F| outer(f, true).map_or([0; 16], ipv6), "source of the tunnel";
    "UNTUNNELED_IPV6_DST_ADDR" NTOP_PEN 397 16 Any false |f: &F| outer(f, false).map_or([0; 16], ipv6), "destination of the tunnel";
    "UPSTREAM_TUNNEL_ID" NTOP_PEN 106 4 Any false |f: &F| f.origin.tunnel_id.to_be_bytes(), "VNI, TEID, GRE key or session";
    "ingressInterface" IANA 10 4 Any true |f: &F| u32::from(f.origin.interface).to_be_bytes(), "where the initiator's packets came in";
    "reverseIngressInterface" REVERSE_PEN 10 4 Any true |f: &F| u32::from(f.origin.reverse_interface).to_be_bytes(), "where the responder's packets came in";
    "sourceMacAddress" IANA 56 6 Any true |f: &F| f.origin.source_mac, "source of the first frame";
    "destinationMacAddress" IANA 80 6 Any true |f: &F| f.origin.destination_mac, "destination of the first frame";
    "mplsTopLabelStackSection" IANA 70 3 Any true |f: &F| low3(f.origin.mpls_top), "top MPLS label, class and bottom bit";
    "flowLabelIPv6" IANA 31 4 Ipv6 true |f: &F| f.origin.flow_label.to_be_bytes(), "IPv6 flow label";
    "icmpTypeCodeIPv4" IANA 32 2 Ipv4 true |f: &F| f.origin.icmp_type_code.to_be_bytes(), "ICMP type * 256 + code";
    "icmpTypeCodeIPv6" IANA 139 2 Ipv6 true |f: &F| f.origin.icmp_type_code.to_be_bytes(), "ICMPv6 type * 256 + code";
    "layer2OctetDeltaCount" IANA 352 8 Any true |f: &F| f.measured.forward.layer2_octets.to_be_bytes(), "octets of the initiator's frames";
    "reverseLayer2OctetDeltaCount" REVERSE_PEN 352 8 Any true |f: &F| f.measured.reverse.layer2_octets.to_be_bytes(), "octets of the responder's frames";
    "minimumIpTotalLength" IANA 25 8 Any true |f: &F| u64::from(f.measured.forward.length_min).to_be_bytes(), "shortest IP packet of the initiator";
    "maximumIpTotalLength" IANA 26 8 Any true |f: &F| u64::from(f.measured.forward.length_max).to_be_bytes(), "longest IP packet of the initiator";
    "reverseMinimumIpTotalLength" REVERSE_PEN 25 8 Any true |f: &F| u64::from(f.measured.reverse.length_min).to_be_bytes(), "shortest IP packet of the responder";
    "reverseMaximumIpTotalLength" REVERSE_PEN 26 8 Any true |f: &F| u64::from(f.measured.reverse.length_max).to_be_bytes(), "longest IP packet of the responder";
    "minimumTTL" IANA 52 1 Any true |f: &F| [f.measured.forward.ttl_min], "lowest TTL of the initiator's packets";
    "maximumTTL" IANA 53 1 Any true |f: &F| [f.measured.forward.ttl_max], "highest TTL of the initiator's packets";
    "reverseMinimumTTL" REVERSE_PEN 52 1 Any true |f: &F| [f.measured.reverse.ttl_min], "lowest TTL of the responder's packets";
    "reverseMaximumTTL" REVERSE_PEN 53 1 Any true |f: &F| [f.measured.reverse.ttl_max], "highest TTL of the responder's packets";
    "tcpSequenceNumber" IANA 184 4 Any true |f: &F| f.measured.forward.tcp_initial_sequence.to_be_bytes(), "first TCP sequence number of the initiator";
    "reverseTcpSequenceNumber" REVERSE_PEN 184 4 Any true |f: &F| f.measured.reverse.tcp_initial_sequence.to_be_bytes(), "first TCP sequence number of the responder";
    "ipsecSPI" IANA 295 4 Any true |f: &F| f.measured.forward.spi.to_be_bytes(), "SPI of the initiator's ESP or AH";
    "reverseIpsecSPI" REVERSE_PEN 295 4 Any true |f: &F| f.measured.reverse.spi.to_be_bytes(), "SPI of the responder's ESP or AH";
    "RETRANSMITTED_IN_PKTS" NTOP_PEN 109 4 Any true |f: &F| f.measured.forward.retransmitted.to_be_bytes(), "TCP packets sent again by the initiator";
    "RETRANSMITTED_OUT_PKTS" NTOP_PEN 110 4 Any true |f: &F| f.measured.reverse.retransmitted.to_be_bytes(), "TCP packets sent again by the responder";
    "OOORDER_IN_PKTS" NTOP_PEN 111 4 Any true |f: &F| f.measured.forward.out_of_order.to_be_bytes(), "TCP packets out of order, of the initiator";
    "OOORDER_OUT_PKTS" NTOP_PEN 112 4 Any true |f: &F| f.measured.reverse.out_of_order.to_be_bytes(), "TCP packets out of order, of the responder";
    "CLIENT_NW_LATENCY_MS" NTOP_PEN 123 4 Any true |f: &F| (f.measured.client_network_us / 2000).to_be_bytes(), "half the round trip to the client, ms";
    "SERVER_NW_LATENCY_MS" NTOP_PEN 124 4 Any true |f: &F| (f.measured.server_network_us / 2000).to_be_bytes(), "half the round trip to the server, ms";
    "APPL_LATENCY_MS" NTOP_PEN 125 4 Any true |f: &F| (f.measured.application_us / 1000).to_be_bytes(), "from request to answer, ms";
}

/// How the names of the fields begin that tell of a flow's tunnel.
const TUNNEL_FIELDS: [&str; 2] = ["UNTUNNELED_", "UPSTREAM_TUNNEL_ID"];

/// Fields of the basic Template: so many of the catalogue, from the first.
const BASIC: usize = 20;

fn ipv4(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => [0; 4],
    }
}

fn ipv6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(_) => [0; 16],
    }
}

fn outer(flow: &FlowRecord, source: bool) -> Option<IpAddr> {
    flow.origin.outer.map(|(from, to)| if source { from } else { to })
}

fn low3(value: u32) -> [u8; 3] {
    let [_, a, b, c] = value.to_be_bytes();
    [a, b, c]
}

/// An NTP timestamp (RFC 7011, 6.1.9); the low 11 bits of the fraction must be zero there.
fn ntp(us: u64) -> [u8; 8] {
    let seconds = us / 1_000_000 + FROM_1900_TO_1970_S;
    let fraction = ((us % 1_000_000) << 32).div_ceil(1_000_000);
    (seconds << 32 | (fraction & !0x7ff)).to_be_bytes()
}

/// How each kind of tunnel is carried: IP protocol, and the destination port, for GRE the protocol type (0: any).
pub(super) const CARRIERS: [(TunnelKind, u8, u16); 8] = [
    (TunnelKind::IpInIp, 4, 0),
    (TunnelKind::Gre, 47, 0),
    (TunnelKind::Vxlan, 17, 4789),
    (TunnelKind::Geneve, 17, 6081),
    (TunnelKind::GtpU, 17, 2152),
    (TunnelKind::Erspan, 47, 0x88be),
    (TunnelKind::L2tp, 17, 1701),
    (TunnelKind::Teredo, 17, 3544),
];

fn carrier(flow: &FlowRecord) -> (u8, u16) {
    let found = flow.key.tunnel.and_then(|tunnel| CARRIERS.iter().find(|carrier| carrier.0 == tunnel.kind));
    found.map_or((0, 0), |(_, protocol, port)| (*protocol, *port))
}

/// The fields that flows are exported with: one Template for IPv4, one for IPv6.
#[derive(Clone)]
pub struct FlowTemplate {
    ipv4: Vec<&'static Field>,
    ipv6: Vec<&'static Field>,
    /// Whether a hand-written encoder does.
    pub(super) is_basic: bool,
}

/// Why fields make no Template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateError {
    /// Flows of IPv4, or those of IPv6, would have no field.
    Empty,
    /// Fields of the reverse direction, and no key that tells one direction from the other (RFC 5103, 4).
    ReverseWithoutDirection,
}

impl std::fmt::Display for TemplateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TemplateError::Empty => "no field for flows of IPv4, or none for those of IPv6",
            TemplateError::ReverseWithoutDirection => {
                "fields of the reverse direction, and for flows of IPv4, or for those of IPv6, no address or port by which \
                 to tell it"
            }
        })
    }
}

impl std::error::Error for TemplateError {}

fn is_reverse(field: &Field) -> bool {
    field.specifier.enterprise == REVERSE_PEN
}

/// Whether the field is a key with a direction: a source's or a destination's address or port.
fn is_directional(field: &Field) -> bool {
    let has = |end: &str, what: &str| field.name.starts_with(end) && field.name.ends_with(what);
    field.specifier.enterprise == 0
        && ["source", "destination"].iter().any(|end| has(end, "Address") || has(end, "Port"))
}

impl std::fmt::Debug for FlowTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FlowTemplate of {} fields", self.ipv4.len())
    }
}

impl FlowTemplate {
    /// Key, times and counters.
    pub fn basic() -> FlowTemplate {
        FlowTemplate { is_basic: true, ..FlowTemplate::of(CATALOGUE[..BASIC].iter()) }
    }

    /// Everything.
    pub fn full() -> FlowTemplate {
        FlowTemplate::of(CATALOGUE.iter())
    }

    /// These fields, in this order.
    ///
    /// # Errors
    /// What they lack to describe the flows of both families.
    pub fn new(fields: &[&'static Field]) -> Result<FlowTemplate, TemplateError> {
        let template = FlowTemplate::of(fields.iter().copied());
        let families = [&template.ipv4, &template.ipv6];
        if families.iter().any(|fields| fields.is_empty()) {
            return Err(TemplateError::Empty);
        }
        let has = |fields: &[&Field], is: fn(&Field) -> bool| fields.iter().any(|field| is(field));
        let lacks_direction = |fields: &&Vec<&'static Field>| has(fields, is_reverse) && !has(fields, is_directional);
        if families.iter().any(lacks_direction) {
            return Err(TemplateError::ReverseWithoutDirection);
        }
        Ok(template)
    }

    fn of(fields: impl Iterator<Item = &'static Field> + Clone) -> FlowTemplate {
        let without = |other| fields.clone().filter(|field| field.family != other).collect();
        FlowTemplate { ipv4: without(Family::Ipv6), ipv6: without(Family::Ipv4), is_basic: false }
    }

    /// With the fields that name a flow's tunnel, where it lacks them: without them tenants with equal addresses look alike.
    pub fn with_tunnels(&self) -> FlowTemplate {
        let names = |field: &Field| TUNNEL_FIELDS.iter().any(|prefix| field.name.starts_with(prefix));
        let with = |known: &[&'static Field], other| {
            let lacks =
                |field: &&Field| names(field) && field.family != other && !known.iter().any(|k| k.name == field.name);
            known.iter().copied().chain(CATALOGUE.iter().filter(lacks)).collect()
        };
        FlowTemplate { ipv4: with(&self.ipv4, Family::Ipv6), ipv6: with(&self.ipv6, Family::Ipv4), is_basic: false }
    }

    /// Whether any field needs measurements beyond the counters.
    pub fn measures(&self) -> bool {
        self.ipv4.iter().chain(&self.ipv6).any(|field| field.measured)
    }

    pub(super) fn specifiers(&self, is_ipv4: bool) -> Vec<FieldSpecifier> {
        self.fields(is_ipv4).iter().map(|field| field.specifier).collect()
    }

    pub(super) fn length(&self, is_ipv4: bool) -> usize {
        self.fields(is_ipv4).iter().map(|field| usize::from(field.specifier.length)).sum()
    }

    pub(super) fn write(&self, flow: &FlowRecord, out: &mut Vec<u8>) {
        self.fields(flow.key.source.is_ipv4()).iter().for_each(|field| (field.write)(flow, out));
    }

    fn fields(&self, is_ipv4: bool) -> &[&'static Field] {
        if is_ipv4 { &self.ipv4 } else { &self.ipv6 }
    }
}
