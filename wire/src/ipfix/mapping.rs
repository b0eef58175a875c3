//! A Data Record of any Exporter's Template becomes a [`FlowRecord`], a term of the probe's books, or its statistics.

use super::codec::unsigned;
use super::element as ie;
use super::field::{CARRIERS, FROM_1900_TO_1970_S};
use super::{DataRecord, MessageHeader};
use crate::flow::{Counters, DirectionMeasured, FlowKey, FlowRecord, Measured, Origin, Tunnel};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Octets of a counter's name that are kept.
pub const NAME_MAX: usize = 64;

/// What a Data Record says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // Nearly all are flows: a box would cost an allocation for each.
pub enum Mapped {
    /// A flow.
    Flow(FlowRecord),
    /// A term of the Exporter's books.
    Book(Book),
    /// The Exporting Process's statistics.
    Statistics(ExporterStatistics),
    /// Something else: an options record of another kind, or a record without addresses.
    Other,
}

/// Which process of the Exporter a term of its books belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Process {
    /// A Metering Process; it counts packets.
    Metering,
    /// The Exporting Process; it counts flows.
    Exporting,
}

/// One term of an Exporter's books: options records scoped by the process and by the term's name (selectorName).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Book {
    /// Whose books.
    pub process: Process,
    /// meteringProcessId or exportingProcessId.
    pub process_id: u32,
    /// Name of the term, such as `wire`, `metered`, `drop.rx_ring_full`, `ignore.arp`, `ended`, `delivered`.
    pub name: String,
    /// Its value since the process began: packets or flows.
    pub value: u64,
}

/// An Exporting Process's statistics (RFC 7011, 4.1 and 4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExporterStatistics {
    /// exportingProcessId.
    pub process_id: u32,
    /// When the process began, milliseconds since 1970 UTC.
    pub init_time_ms: u64,
    /// Messages sent.
    pub messages: u64,
    /// Octets sent.
    pub octets: u64,
    /// Data Records sent.
    pub records: u64,
    /// Flow Records that were not sent.
    pub not_sent_flows: u64,
    /// Packets of those.
    pub not_sent_packets: u64,
    /// Octets of those.
    pub not_sent_octets: u64,
}

/// What `record` says; elements that are not known are passed over.
pub fn map(header: &MessageHeader, record: &DataRecord<'_>) -> Mapped {
    if record.is_options() { options(record) } else { flow(header, record) }
}

fn options(record: &DataRecord<'_>) -> Mapped {
    let mut statistics = ExporterStatistics::default();
    let mut process = None;
    let (mut name, mut value) = (None, None);
    for (field, bytes) in record.fields().filter(|(field, _)| field.enterprise == 0) {
        let number = unsigned(bytes).unwrap_or(0);
        match field.element {
            ie::METERING_PROCESS_ID => process = Some((Process::Metering, number as u32)),
            ie::EXPORTING_PROCESS_ID => process = Some((Process::Exporting, number as u32)),
            ie::SELECTOR_NAME => name = Some(text(bytes)),
            ie::PACKET_TOTAL_COUNT | ie::OBSERVED_FLOW_TOTAL_COUNT => value = Some(number),
            ie::SYSTEM_INIT_TIME_MILLISECONDS => statistics.init_time_ms = number,
            ie::EXPORTED_MESSAGE_TOTAL_COUNT => statistics.messages = number,
            ie::EXPORTED_OCTET_TOTAL_COUNT => statistics.octets = number,
            ie::EXPORTED_FLOW_RECORD_TOTAL_COUNT => statistics.records = number,
            ie::NOT_SENT_FLOW_TOTAL_COUNT => statistics.not_sent_flows = number,
            ie::NOT_SENT_PACKET_TOTAL_COUNT => statistics.not_sent_packets = number,
            ie::NOT_SENT_OCTET_TOTAL_COUNT => statistics.not_sent_octets = number,
            _ => {}
        }
    }
    match (process, name, value) {
        (Some((process, process_id)), Some(name), Some(value)) => {
            Mapped::Book(Book { process, process_id, name, value })
        }
        (Some((Process::Exporting, process_id)), None, _) if statistics != ExporterStatistics::default() => {
            Mapped::Statistics(ExporterStatistics { process_id, ..statistics })
        }
        _ => Mapped::Other,
    }
}

/// The text of a string field: bad UTF-8 survives as replacement characters (RFC 7011, 11.7), its length is bounded.
fn text(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(NAME_MAX)];
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string()
}

#[derive(Default)]
struct Draft {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    source_port: u16,
    destination_port: u16,
    protocol: u8,
    vlan: u16,
    tos: u8,
    end_reason: u8,
    forward: Direction,
    reverse: Direction,
    times: Times,
    customer_vlan: u16,
    /// IP protocol and port that carried a tunnel.
    carrier: (u8, u16),
    outer: (Option<IpAddr>, Option<IpAddr>),
    origin: Origin,
    measured: Measured,
}

/// Counters of one direction; delta counters win over totals where a record carries both.
#[derive(Default)]
struct Direction {
    packets: Option<u64>,
    octets: Option<u64>,
    packets_total: u64,
    octets_total: u64,
    tcp_flags: u16,
    interface: u16,
    measured: DirectionMeasured,
}

#[derive(Default)]
struct Times {
    start_us: Option<u64>,
    end_us: Option<u64>,
    /// These win over coarser ones, wherever they stand in the record.
    start_ntp_us: Option<u64>,
    end_ntp_us: Option<u64>,
    start_uptime_ms: Option<u64>,
    end_uptime_ms: Option<u64>,
    duration_ms: Option<u64>,
    init_time_ms: Option<u64>,
}

fn flow(header: &MessageHeader, record: &DataRecord<'_>) -> Mapped {
    let mut draft = Draft::default();
    draft.times.init_time_ms = record.init_time_ms;
    for (field, bytes) in record.fields() {
        match field.enterprise {
            0 => draft.element(field.element, bytes, header.export_time),
            ie::NTOP_PEN => draft.ntop(field.element, bytes),
            ie::REVERSE_PEN => draft.reverse.element(field.element, unsigned(bytes).unwrap_or(0)),
            _ => {}
        }
    }
    let (Some(source), Some(destination)) = (draft.source, draft.destination) else { return Mapped::Other };
    if source.is_ipv4() != destination.is_ipv4() {
        return Mapped::Other;
    }
    let (start_us, end_us) = draft.times.resolve(header.export_time);
    Mapped::Flow(FlowRecord {
        key: FlowKey {
            source,
            destination,
            source_port: draft.source_port,
            destination_port: draft.destination_port,
            protocol: draft.protocol,
            vlan: draft.vlan,
            customer_vlan: draft.customer_vlan,
            tunnel: draft.tunnel(),
        },
        start_us,
        end_us,
        forward: draft.forward.counters(),
        reverse: draft.reverse.counters(),
        tos: draft.tos,
        end_reason: draft.end_reason,
        origin: Origin {
            interface: draft.forward.interface,
            reverse_interface: draft.reverse.interface,
            outer: draft.outer.0.zip(draft.outer.1),
            ..draft.origin
        },
        measured: Measured { forward: draft.forward.measured, reverse: draft.reverse.measured, ..draft.measured },
    })
}

impl Draft {
    fn element(&mut self, element: u16, bytes: &[u8], export_time: u32) {
        let number = unsigned(bytes).unwrap_or(0);
        match element {
            ie::SOURCE_IPV4_ADDRESS => self.source = ipv4(bytes).or(self.source),
            ie::DESTINATION_IPV4_ADDRESS => self.destination = ipv4(bytes).or(self.destination),
            // Exporters with one Template for both families leave the other family's addresses unspecified.
            ie::SOURCE_IPV6_ADDRESS => self.source = self.source.filter(is_specified).or(ipv6(bytes)),
            ie::DESTINATION_IPV6_ADDRESS => self.destination = self.destination.filter(is_specified).or(ipv6(bytes)),
            ie::SOURCE_TRANSPORT_PORT | ie::UDP_SOURCE_PORT | ie::TCP_SOURCE_PORT => self.source_port = number as u16,
            ie::DESTINATION_TRANSPORT_PORT | ie::UDP_DESTINATION_PORT | ie::TCP_DESTINATION_PORT => {
                self.destination_port = number as u16;
            }
            ie::PROTOCOL_IDENTIFIER => self.protocol = number as u8,
            ie::IP_CLASS_OF_SERVICE => self.tos = number as u8,
            ie::VLAN_ID | ie::DOT1Q_VLAN_ID => self.vlan = number as u16 & 0x0fff,
            ie::DOT1Q_CUSTOMER_VLAN_ID => self.customer_vlan = number as u16 & 0x0fff,
            ie::FLOW_END_REASON => self.end_reason = number as u8,
            ie::SOURCE_MAC_ADDRESS => self.origin.source_mac = bytes.try_into().unwrap_or_default(),
            ie::DESTINATION_MAC_ADDRESS => self.origin.destination_mac = bytes.try_into().unwrap_or_default(),
            ie::MPLS_TOP_LABEL_STACK_SECTION => self.origin.mpls_top = number as u32 & 0xff_ffff,
            ie::FLOW_LABEL_IPV6 => self.origin.flow_label = number as u32,
            ie::ICMP_TYPE_CODE_IPV4 | ie::ICMP_TYPE_CODE_IPV6 => self.origin.icmp_type_code |= number as u16,
            _ => {
                self.forward.element(element, number);
                self.times.element(element, bytes, number, export_time);
            }
        }
    }
}

impl Draft {
    /// nProbe's elements; its latencies of the network are half a round trip, in milliseconds.
    fn ntop(&mut self, element: u16, bytes: &[u8]) {
        use ie::ntop;
        let number = unsigned(bytes).unwrap_or(0);
        let count = u32::try_from(number).unwrap_or(u32::MAX);
        let address = |address: Option<IpAddr>| address.filter(is_specified);
        match element {
            ntop::UPSTREAM_TUNNEL_ID => self.origin.tunnel_id = count,
            ntop::RETRANSMITTED_IN_PKTS => self.forward.measured.retransmitted = count,
            ntop::RETRANSMITTED_OUT_PKTS => self.reverse.measured.retransmitted = count,
            ntop::OOORDER_IN_PKTS => self.forward.measured.out_of_order = count,
            ntop::OOORDER_OUT_PKTS => self.reverse.measured.out_of_order = count,
            ntop::UNTUNNELED_PROTOCOL => self.carrier.0 = number as u8,
            ntop::UNTUNNELED_L4_DST_PORT => self.carrier.1 = number as u16,
            ntop::UNTUNNELED_IPV4_SRC_ADDR => self.outer.0 = address(ipv4(bytes)).or(self.outer.0),
            ntop::UNTUNNELED_IPV4_DST_ADDR => self.outer.1 = address(ipv4(bytes)).or(self.outer.1),
            ntop::UNTUNNELED_IPV6_SRC_ADDR => self.outer.0 = address(ipv6(bytes)).or(self.outer.0),
            ntop::UNTUNNELED_IPV6_DST_ADDR => self.outer.1 = address(ipv6(bytes)).or(self.outer.1),
            ntop::CLIENT_NW_LATENCY_MS => self.measured.client_network_us = count.saturating_mul(2000),
            ntop::SERVER_NW_LATENCY_MS => self.measured.server_network_us = count.saturating_mul(2000),
            ntop::APPL_LATENCY_MS => self.measured.application_us = count.saturating_mul(1000),
            _ => {}
        }
    }

    fn tunnel(&self) -> Option<Tunnel> {
        let (kind, ..) = *CARRIERS.iter().find(|(_, protocol, port)| (*protocol, *port) == self.carrier)?;
        Some(Tunnel { kind, id: if kind.shares_identifier() { self.origin.tunnel_id } else { 0 } })
    }
}

fn is_specified(address: &IpAddr) -> bool {
    !address.is_unspecified()
}

fn ipv4(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).ok().map(|octets| Ipv4Addr::from(octets).into())
}

fn ipv6(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}

impl Direction {
    fn element(&mut self, element: u16, number: u64) {
        match element {
            ie::PACKET_DELTA_COUNT => self.packets = Some(number),
            ie::OCTET_DELTA_COUNT => self.octets = Some(number),
            ie::PACKET_TOTAL_COUNT => self.packets_total = number,
            ie::OCTET_TOTAL_COUNT => self.octets_total = number,
            ie::TCP_CONTROL_BITS => self.tcp_flags = number as u16,
            ie::INGRESS_INTERFACE => self.interface = number as u16,
            ie::LAYER2_OCTET_DELTA_COUNT => self.measured.layer2_octets = number,
            ie::MINIMUM_IP_TOTAL_LENGTH => self.measured.length_min = number as u32,
            ie::MAXIMUM_IP_TOTAL_LENGTH => self.measured.length_max = number as u32,
            ie::MINIMUM_TTL => self.measured.ttl_min = number as u8,
            ie::MAXIMUM_TTL => self.measured.ttl_max = number as u8,
            ie::IPSEC_SPI => self.measured.spi = number as u32,
            ie::TCP_SEQUENCE_NUMBER => self.measured.tcp_initial_sequence = number as u32,
            _ => {}
        }
    }

    fn counters(&self) -> Counters {
        Counters {
            packets: self.packets.unwrap_or(self.packets_total),
            octets: self.octets.unwrap_or(self.octets_total),
            tcp_flags: self.tcp_flags,
        }
    }
}

impl Times {
    fn element(&mut self, element: u16, bytes: &[u8], number: u64, export_time: u32) {
        let before_export = || (u64::from(export_time) * 1_000_000).saturating_sub(number);
        match element {
            ie::FLOW_START_MILLISECONDS => self.start_us = Some(number.saturating_mul(1000)),
            ie::FLOW_END_MILLISECONDS => self.end_us = Some(number.saturating_mul(1000)),
            ie::FLOW_START_SECONDS => self.start_us = Some(number.saturating_mul(1_000_000)),
            ie::FLOW_END_SECONDS => self.end_us = Some(number.saturating_mul(1_000_000)),
            ie::FLOW_START_MICROSECONDS | ie::FLOW_START_NANOSECONDS => self.start_ntp_us = ntp_us(bytes),
            ie::FLOW_END_MICROSECONDS | ie::FLOW_END_NANOSECONDS => self.end_ntp_us = ntp_us(bytes),
            ie::FLOW_START_DELTA_MICROSECONDS => self.start_us = Some(before_export()),
            ie::FLOW_END_DELTA_MICROSECONDS => self.end_us = Some(before_export()),
            ie::FLOW_START_SYS_UP_TIME => self.start_uptime_ms = Some(number),
            ie::FLOW_END_SYS_UP_TIME => self.end_uptime_ms = Some(number),
            ie::FLOW_DURATION_MILLISECONDS => self.duration_ms = Some(number),
            ie::SYSTEM_INIT_TIME_MILLISECONDS => self.init_time_ms = Some(number),
            _ => {}
        }
    }

    /// Start and end; where the record names neither, the Message's export time is the best that is known.
    fn resolve(&self, export_time: u32) -> (u64, u64) {
        let export_us = u64::from(export_time) * 1_000_000;
        let since_init = |uptime: Option<u64>| Some(self.init_time_ms?.saturating_add(uptime?).saturating_mul(1000));
        let start = self.start_ntp_us.or(self.start_us).or_else(|| since_init(self.start_uptime_ms));
        let end = self.end_ntp_us.or(self.end_us).or_else(|| since_init(self.end_uptime_ms));
        let duration = self.duration_ms.or_else(|| self.end_uptime_ms?.checked_sub(self.start_uptime_ms?)).unwrap_or(0);
        let duration = duration.saturating_mul(1000);
        let end = end.or_else(|| Some(start?.saturating_add(duration))).unwrap_or(export_us);
        (start.unwrap_or(end.saturating_sub(duration)), end)
    }
}

/// Microseconds since 1970 of an NTP timestamp: seconds since 1900 and a fraction of 2^32 (RFC 7011, 6.1.9 and 6.1.10).
fn ntp_us(bytes: &[u8]) -> Option<u64> {
    let value = u64::from_be_bytes(bytes.try_into().ok()?);
    let seconds = (value >> 32).checked_sub(FROM_1900_TO_1970_S)?;
    // To the nearest: an Exporter that cuts the fraction gets back the microsecond that it began with.
    Some(seconds * 1_000_000 + (((value & 0xffff_ffff) * 1_000_000 + (1 << 31)) >> 32))
}
