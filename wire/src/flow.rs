//! Flows: the key that packets share, and the record that a flow ends as.

use std::fmt::Write;
use std::net::IpAddr;

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
    /// VLAN identifier of the outermost 802.1Q tag, 0 where there is none.
    pub vlan: u16,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// The key of the initiator's packets.
    pub key: FlowKey,
    /// Time of the first packet, milliseconds since 1970 UTC.
    pub start_ms: u64,
    /// Time of the last packet, milliseconds since 1970 UTC.
    pub end_ms: u64,
    /// Packets of the initiator.
    pub forward: Counters,
    /// Packets of the responder.
    pub reverse: Counters,
    /// Type of service (traffic class) of the first packet.
    pub tos: u8,
    /// flowEndReason as received (see [`FlowEndReason`]); 0 where the exporter names none.
    pub end_reason: u8,
}

/// The columns of [`FlowRecord::write_csv`].
pub const CSV_HEADER: &str = "start_ms,end_ms,src,dst,sport,dport,proto,packets,octets,rev_packets,rev_octets,tcp_flags,\
rev_tcp_flags,vlan,tos,end_reason";

impl FlowRecord {
    /// Appends one row of [`CSV_HEADER`]'s columns and a newline.
    pub fn write_csv(&self, out: &mut String) {
        let (key, forward, reverse) = (&self.key, &self.forward, &self.reverse);
        writeln!(
            out,
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
            self.start_ms,
            self.end_ms,
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
            },
            start_ms: 4,
            end_ms: 5,
            forward: Counters { packets: 6, octets: 7, tcp_flags: 8 },
            reverse: Counters { packets: 9, octets: 10, tcp_flags: 11 },
            tos: 12,
            end_reason: 1,
        };
        let (mut csv, mut json) = (String::new(), String::new());
        record.write_csv(&mut csv);
        record.write_json(&mut json);
        assert_eq!(csv, "4,5,2001:db8::1,2001:db8::2,1,2,17,6,7,9,10,8,11,3,12,1\n");
        assert_eq!(csv.split(',').count(), CSV_HEADER.split(',').count());
        assert!(json.starts_with("{\"start_ms\":4,\"end_ms\":5,\"src\":\"2001:db8::1\","), "{json}");
    }
}
