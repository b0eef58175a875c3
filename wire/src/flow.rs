//! Flows: the key that packets share, and the record that a flow ends as.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

/// What the packets of one direction of a flow have in common (RFC 7011, 2: Flow Key).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the source's family.
    pub destination: IpAddr,
    /// Source port of TCP, UDP, UDP-Lite, SCTP or DCCP; else 0.
    pub source_port: u16,
    /// Destination port, likewise.
    pub destination_port: u16,
    /// Protocol number (IANA), for IPv6 that of the first header that is no extension header.
    pub protocol: u8,
    /// VLAN identifier of the outermost 802.1Q or 802.1ad tag, 0 where there is none.
    pub vlan: u16,
    /// VLAN identifier of the second tag (QinQ), 0 where there is none.
    pub customer_vlan: u16,
    /// The tunnel that the packet was found in; `None` where the outermost packet makes the flow.
    pub tunnel: Option<Tunnel>,
}

impl Default for FlowKey {
    fn default() -> FlowKey {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        FlowKey {
            source: nobody,
            destination: nobody,
            source_port: 0,
            destination_port: 0,
            protocol: 0,
            vlan: 0,
            customer_vlan: 0,
            tunnel: None,
        }
    }
}

/// What a flow was carried in, as far as both of its directions share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tunnel {
    /// The encapsulation.
    pub kind: TunnelKind,
    /// VNI of VXLAN or GENEVE, GRE key, ERSPAN session: what tells tenants with equal addresses apart. 0 for the kinds whose
    /// identifier differs by direction (GTP-U, L2TP) or that have none.
    pub id: u32,
}

/// An encapsulation that the decoder looks into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum TunnelKind {
    /// IP in IP: 4in4, 6in4, 4in6, 6in6 (RFC 2003, 4213, 2473).
    IpInIp = 1,
    /// GRE (RFC 2784, 2890).
    Gre,
    /// VXLAN (RFC 7348).
    Vxlan,
    /// GENEVE (RFC 8926).
    Geneve,
    /// GTP-U (3GPP TS 29.281).
    GtpU,
    /// ERSPAN I, II or III.
    Erspan,
    /// L2TP version 2 or 3 (RFC 2661, 3931).
    L2tp,
    /// Teredo (RFC 4380).
    Teredo,
}

impl TunnelKind {
    /// All of them, in the order of their numbers, which begin with 1.
    pub const ALL: [TunnelKind; 8] = [
        TunnelKind::IpInIp,
        TunnelKind::Gre,
        TunnelKind::Vxlan,
        TunnelKind::Geneve,
        TunnelKind::GtpU,
        TunnelKind::Erspan,
        TunnelKind::L2tp,
        TunnelKind::Teredo,
    ];

    /// Whether both directions bear the same identifier, so that it belongs to the key.
    pub fn shares_identifier(self) -> bool {
        matches!(self, TunnelKind::Gre | TunnelKind::Vxlan | TunnelKind::Geneve | TunnelKind::Erspan)
    }

    /// Its name, as people write it.
    pub fn name(self) -> &'static str {
        ["ip-in-ip", "gre", "vxlan", "geneve", "gtp-u", "erspan", "l2tp", "teredo"][self as usize - 1]
    }
}

/// Which way a packet travels between the two ends of its conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the key's source.
    Forward,
    /// Towards the key's source.
    Reverse,
}

impl FlowKey {
    /// The key of the packets that go the other way.
    pub fn reversed(&self) -> FlowKey {
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..*self
        }
    }

    /// The one key that both directions share, the lower end first, and the direction that `self` has in it.
    pub fn canonical(&self) -> (FlowKey, Direction) {
        if (self.source, self.source_port) <= (self.destination, self.destination_port) {
            (*self, Direction::Forward)
        } else {
            (self.reversed(), Direction::Reverse)
        }
    }
}

/// Why a flow record was exported (flowEndReason, IANA element 136).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowEndReason {
    /// No packet for the idle timeout.
    IdleTimeout = 1,
    /// The flow goes on; it has lasted for the active timeout.
    ActiveTimeout = 2,
    /// The conversation ended: FIN in each direction that spoke, or RST.
    EndOfFlow = 3,
    /// The Metering Process stopped.
    ForcedEnd = 4,
    /// The flow cache was full.
    LackOfResources = 5,
}

/// What is counted of one direction of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// IP octets: header and payload, no link layer, no padding (octetDeltaCount).
    pub octets: u64,
    /// All TCP control bits seen, in the bits of tcpControlBits (RFC 7125).
    pub tcp_flags: u16,
}

/// A bidirectional flow (RFC 5103), as it is exported, decoded and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowRecord {
    /// The key of the initiator's packets.
    pub key: FlowKey,
    /// Time of the first packet, microseconds since 1970 UTC.
    pub start_us: u64,
    /// Time of the last packet, microseconds since 1970 UTC.
    pub end_us: u64,
    /// Packets of the initiator.
    pub forward: Counters,
    /// Packets of the responder.
    pub reverse: Counters,
    /// Type of service (traffic class) of the first packet.
    pub tos: u8,
    /// flowEndReason as received (see [`FlowEndReason`]); 0 where the exporter names none.
    pub end_reason: u8,
    /// What its first packet said.
    pub origin: Origin,
    /// What was measured beyond the counters; all 0 where the Metering Process measures no more than those.
    pub measured: Measured,
}

/// What the first packet of a flow said, beyond its key. 0 where it said nothing, or nobody asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Number of the Observation Point (interface) that the initiator's packets came in by; the first is 1.
    pub interface: u16,
    /// Likewise for the responder's: of a tap with a port for each direction, the other one.
    pub reverse_interface: u16,
    /// Source and destination of the Ethernet frame.
    pub source_mac: [u8; 6],
    /// Likewise.
    pub destination_mac: [u8; 6],
    /// The top entry of the MPLS stack: label (20 bits), class, bottom bit, as in mplsTopLabelStackSection.
    pub mpls_top: u32,
    /// IPv6 flow label.
    pub flow_label: u32,
    /// ICMP or ICMPv6: the type times 256, plus the code.
    pub icmp_type_code: u16,
    /// Addresses of the packet that carried it (source, destination), where it was found in a tunnel.
    pub outer: Option<(IpAddr, IpAddr)>,
    /// VNI, TEID, GRE key, ERSPAN or L2TP session, as the packet said it.
    pub tunnel_id: u32,
}

/// Measurements of a flow beyond its counters. Times that were not measured are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Of the initiator's packets.
    pub forward: DirectionMeasured,
    /// Of the responder's packets.
    pub reverse: DirectionMeasured,
    /// From the SYN+ACK to its acknowledgement: the network between probe and client, microseconds.
    pub client_network_us: u32,
    /// From the SYN to the SYN+ACK: the network between probe and server, microseconds.
    pub server_network_us: u32,
    /// From the first request's octets to the first octets of the answer, microseconds.
    pub application_us: u32,
}

/// Measurements of one direction of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionMeasured {
    /// Octets of the frames, link layer included, without the frame check sequence (layer2OctetDeltaCount).
    pub layer2_octets: u64,
    /// The shortest IP packet, octets.
    pub length_min: u32,
    /// The longest IP packet, octets.
    pub length_max: u32,
    /// The lowest time to live (hop limit).
    pub ttl_min: u8,
    /// The highest.
    pub ttl_max: u8,
    /// TCP sequence number of the first packet.
    pub tcp_initial_sequence: u32,
    /// Security Parameters Index of the first ESP or AH packet.
    pub spi: u32,
    /// TCP packets with octets that were seen before.
    pub retransmitted: u32,
    /// TCP packets that came after a gap that they fill, or too early.
    pub out_of_order: u32,
    /// TCP packets that closed the window.
    pub zero_window: u32,
}

/// The columns of [`FlowRecord::write_csv`].
pub const CSV_HEADER: &str = "start_ms,end_ms,src,dst,sport,dport,proto,packets,octets,rev_packets,rev_octets,tcp_flags,\
rev_tcp_flags,vlan,tos,end_reason";

impl FlowRecord {
    /// Time of the first packet, whole milliseconds since 1970 UTC.
    pub fn start_ms(&self) -> u64 {
        self.start_us / 1000
    }

    /// Time of the last packet, whole milliseconds since 1970 UTC.
    pub fn end_ms(&self) -> u64 {
        self.end_us / 1000
    }

    /// Appends one row of [`CSV_HEADER`]'s columns and a newline.
    pub fn write_csv(&self, out: &mut String) {
        let (key, forward, reverse) = (&self.key, &self.forward, &self.reverse);
        writeln!(
            out,
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
            self.start_ms(),
            self.end_ms(),
            key.source,
            key.destination,
            key.source_port,
            key.destination_port,
            key.protocol,
            forward.packets,
            forward.octets,
            reverse.packets,
            reverse.octets,
            forward.tcp_flags,
            reverse.tcp_flags,
            key.vlan,
            self.tos,
            self.end_reason
        )
        .expect("writing to a String cannot fail");
    }

    /// Appends one JSON object with the same names, and a newline.
    pub fn write_json(&self, out: &mut String) {
        let mut row = String::new();
        self.write_csv(&mut row);
        out.push('{');
        for (index, (name, value)) in CSV_HEADER.split(',').zip(row.trim_end().split(',')).enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let quote = if matches!(name, "src" | "dst") { "\"" } else { "" };
            write!(out, "{comma}\"{name}\":{quote}{value}{quote}").expect("writing to a String cannot fail");
        }
        out.push_str("}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_share_one_canonical_key() {
        let key = FlowKey {
            source: "10.0.0.9".parse().unwrap(),
            destination: "10.0.0.1".parse().unwrap(),
            source_port: 40000,
            destination_port: 443,
            protocol: 6,
            vlan: 7,
            ..FlowKey::default()
        };
        let (there, back) = (key.canonical(), key.reversed().canonical());
        assert_eq!(there.0, back.0);
        assert_eq!((there.1, back.1), (Direction::Reverse, Direction::Forward));
    }

    #[test]
    fn rows_follow_the_header() {
        let record = FlowRecord {
            key: FlowKey {
                source: "2001:db8::1".parse().unwrap(),
                destination: "2001:db8::2".parse().unwrap(),
                source_port: 1,
                destination_port: 2,
                protocol: 17,
                vlan: 3,
                ..FlowKey::default()
            },
            start_us: 4000,
            end_us: 5999,
            forward: Counters { packets: 6, octets: 7, tcp_flags: 8 },
            reverse: Counters { packets: 9, octets: 10, tcp_flags: 11 },
            tos: 12,
            end_reason: 1,
            ..FlowRecord::default()
        };
        let (mut csv, mut json) = (String::new(), String::new());
        record.write_csv(&mut csv);
        record.write_json(&mut json);
        assert_eq!(csv, "4,5,2001:db8::1,2001:db8::2,1,2,17,6,7,9,10,8,11,3,12,1\n");
        assert_eq!(csv.split(',').count(), CSV_HEADER.split(',').count());
        assert!(json.starts_with("{\"start_ms\":4,\"end_ms\":5,\"src\":\"2001:db8::1\","), "{json}");
    }
}
