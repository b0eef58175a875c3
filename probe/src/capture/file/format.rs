//! pcap and pcapng: what the bytes at the front of a buffer are, found in place and without I/O.
//!
//! The contents of headers and blocks are parsed by pcap-parser. Framing is done here, so that every length is checked
//! against a named bound before it is believed, a block that nobody needs is passed over whatever its size, and a block
//! whose fields contradict its length is told from one that has not been read whole.

use super::error::Fault;
use nagare_wire::packet::LinkType;
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{Block, InterfaceDescriptionBlock, PcapHeader};
use std::ops::Range;

/// Octets that one captured packet may have, at most.
pub const PACKET_MAX: usize = 256 << 10;
/// Octets that one item of a file (a packet with its header, or a block that must be read whole) may have, at most.
pub const ITEM_MAX: usize = PACKET_MAX + (64 << 10);
/// Interfaces that one section of a pcapng file may describe, at most.
const INTERFACES_MAX: usize = 65_536;
/// Times end with the year 2262, so that adding a timeout to one cannot overflow.
const TIME_MAX_NS: u64 = i64::MAX as u64;

const SECTION_HEADER: u32 = pcap_parser::SHB_MAGIC;
const INTERFACE_DESCRIPTION: u32 = pcap_parser::IDB_MAGIC;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = pcap_parser::SPB_MAGIC;
const ENHANCED_PACKET: u32 = pcap_parser::EPB_MAGIC;
const BYTE_ORDER_MAGIC: [u8; 4] = pcap_parser::BOM_MAGIC.to_le_bytes();
const BYTE_ORDER_MAGIC_SWAPPED: [u8; 4] = pcap_parser::BOM_MAGIC.to_be_bytes();

/// One packet, as it lies in the buffer.
#[derive(Debug)]
pub struct Packet {
    /// Nanoseconds since 1970; `None` where the file does not say (Simple Packet Blocks).
    pub time_ns: Option<u64>,
    /// Where its captured octets are.
    pub bytes: Range<usize>,
    /// Its octets on the wire.
    pub wire_len: u32,
    /// `None` where its interface has a link type that is not decoded.
    pub link: Option<LinkType>,
}

/// What stands at the front of a buffer.
#[derive(Debug)]
pub enum Item {
    /// A packet; the next item is `used` octets further on.
    Packet {
        /// Octets of the packet with its header.
        used: usize,
        /// The packet.
        packet: Packet,
    },
    /// Something else, of this many octets: more than the buffer holds, perhaps.
    Other(u64),
    /// Not yet known: the buffer must hold at least this many octets.
    Unread(usize),
}

/// The format of a file and what its headers have said so far.
pub enum Format {
    /// One link type, one clock.
    Pcap(Pcap),
    /// Sections of interfaces.
    PcapNg(PcapNg),
}

impl Format {
    /// Recognises a file by its first octets; `None` as long as they are too few. Nothing is consumed of pcapng, the header of pcap.
    pub fn recognise(data: &[u8]) -> Result<Option<(Format, usize)>, Fault> {
        let Some(magic) = data.first_chunk::<4>() else { return Ok(None) };
        if u32::from_le_bytes(*magic) == SECTION_HEADER {
            return Ok(Some((Format::PcapNg(PcapNg { big_endian: false, interfaces: Vec::new() }), 0)));
        }
        match pcap_parser::parse_pcap_header(data) {
            Ok((rest, header)) => Ok(Some((Format::Pcap(Pcap::new(&header)?), data.len() - rest.len()))),
            Err(error) if error.is_incomplete() => Ok(None),
            Err(_) => Err(Fault::NotACapture { magic: *magic }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Format::Pcap(_) => "pcap",
            Format::PcapNg(_) => "pcapng",
        }
    }

    /// What stands at the front of `data`.
    pub fn next(&mut self, data: &[u8]) -> Result<Item, Fault> {
        match self {
            Format::Pcap(pcap) => pcap.next(data),
            Format::PcapNg(pcapng) => pcapng.next(data),
        }
    }
}

/// The header of a pcap file.
pub struct Pcap {
    link: LinkType,
    big_endian: bool,
    /// Octets of a packet's header: 16, or 24 in Kuznetzov's format.
    header: usize,
    ns_per_fraction: u64,
}

impl Pcap {
    fn new(header: &PcapHeader) -> Result<Pcap, Fault> {
        // The upper half may tell about frame check sequences, which no IP length includes.
        let number = header.network.0 as u32 & 0xffff;
        Ok(Pcap {
            link: LinkType::from_pcap(number).ok_or(Fault::LinkType(number))?,
            big_endian: header.is_bigendian(),
            header: if header.is_modified_format() { 24 } else { 16 },
            ns_per_fraction: if header.is_nanosecond_precision() { 1 } else { 1000 },
        })
    }

    fn next(&self, data: &[u8]) -> Result<Item, Fault> {
        if data.len() < self.header {
            return Ok(Item::Unread(self.header));
        }
        let field = |at| u32_at(data, at, self.big_endian);
        let captured = field(8) as usize;
        check_captured(captured)?;
        let used = self.header + captured;
        if data.len() < used {
            return Ok(Item::Unread(used));
        }
        let time_ns = u64::from(field(0)) * 1_000_000_000 + u64::from(field(4)) * self.ns_per_fraction;
        let packet =
            Packet { time_ns: Some(time_ns), bytes: self.header..used, wire_len: field(12), link: Some(self.link) };
        Ok(Item::Packet { used, packet })
    }
}

/// The section of a pcapng file that is being read.
pub struct PcapNg {
    big_endian: bool,
    interfaces: Vec<Interface>,
}

impl PcapNg {
    fn next(&mut self, data: &[u8]) -> Result<Item, Fault> {
        let Some(start) = data.first_chunk::<12>() else { return Ok(Item::Unread(12)) };
        let section = u32_at(start, 0, false) == SECTION_HEADER;
        let big_endian = match &start[8..] {
            _ if !section => self.big_endian,
            magic if magic == BYTE_ORDER_MAGIC => false,
            magic if magic == BYTE_ORDER_MAGIC_SWAPPED => true,
            _ => return Err(Fault::Malformed("the byte-order magic of a Section Header Block is wrong".into())),
        };
        let (kind, length) = (u32_at(start, 0, big_endian), u32_at(start, 4, big_endian));
        if length < 12 || length % 4 != 0 {
            return Err(Fault::Malformed(format!("a block of type {kind:#x} says that it has {length} bytes")));
        }
        let needed = [SECTION_HEADER, INTERFACE_DESCRIPTION, OBSOLETE_PACKET, SIMPLE_PACKET, ENHANCED_PACKET];
        if !needed.contains(&kind) {
            return Ok(Item::Other(length.into()));
        }
        let used = length as usize;
        if used > ITEM_MAX {
            return Err(Fault::TooLong { what: "block", length: used, max: ITEM_MAX });
        }
        let Some(block) = data.get(..used) else { return Ok(Item::Unread(used)) };
        if u32_at(block, used - 4, big_endian) != length {
            return Err(Fault::Malformed(format!("the two lengths of a block of type {kind:#x} differ")));
        }
        self.big_endian = big_endian;
        Ok(match self.block(kind, block)? {
            Some(packet) => Item::Packet { used, packet },
            None => Item::Other(length.into()),
        })
    }

    /// Takes in a whole block; gives the packet if it is one.
    fn block(&mut self, kind: u32, block: &[u8]) -> Result<Option<Packet>, Fault> {
        let parse = if self.big_endian { pcap_parser::parse_block_be } else { pcap_parser::parse_block_le };
        // The block is whole, so that a parser that wants more has been told a wrong length within it.
        let (_, parsed) = parse(block)
            .map_err(|_| Fault::Malformed(format!("the fields of a block of type {kind:#x} do not fit into it")))?;
        match parsed {
            Block::SectionHeader(_) => self.interfaces.clear(),
            Block::InterfaceDescription(interface) if self.interfaces.len() < INTERFACES_MAX => {
                self.interfaces.push(Interface::new(&interface, self.big_endian));
            }
            Block::InterfaceDescription(_) => {
                return Err(Fault::Malformed(format!("a section describes more than {INTERFACES_MAX} interfaces")));
            }
            Block::EnhancedPacket(packet) => {
                let time = Some((packet.ts_high, packet.ts_low));
                return self.packet(packet.if_id, time, 28, packet.caplen as usize, packet.origlen).map(Some);
            }
            Block::SimplePacket(packet) => {
                // It has no captured length of its own: the snap length of interface 0 tells padding from packet.
                let snap = self.interfaces.first().map_or(usize::MAX, |interface| interface.snap_length);
                let captured = packet.packet_data().len().min(snap);
                return self.packet(0, None, 12, captured, packet.origlen).map(Some);
            }
            Block::Unknown(packet) => return self.obsolete_packet(block, packet.data.len()).map(Some),
            _ => {}
        }
        Ok(None)
    }

    /// The Packet Block that Enhanced Packet Blocks have replaced; pcap-parser does not know it.
    fn obsolete_packet(&self, block: &[u8], content: usize) -> Result<Packet, Fault> {
        let field = |at| u32_at(block, at, self.big_endian);
        if content < 20 || field(20) as usize > content - 20 {
            return Err(Fault::Malformed("the fields of a block of type 0x2 do not fit into it".into()));
        }
        let interface = if self.big_endian { field(8) >> 16 } else { field(8) & 0xffff };
        self.packet(interface, Some((field(12), field(16))), 28, field(20) as usize, field(24))
    }

    fn packet(
        &self,
        interface: u32,
        time: Option<(u32, u32)>,
        start: usize,
        captured: usize,
        wire_len: u32,
    ) -> Result<Packet, Fault> {
        check_captured(captured)?;
        let described = self.interfaces.len();
        let interface = self.interfaces.get(interface as usize).ok_or_else(|| {
            Fault::Malformed(format!("a packet is of interface {interface}, but its section describes {described}"))
        })?;
        let time_ns = time.map(|(high, low)| interface.time_ns(u64::from(high) << 32 | u64::from(low)));
        Ok(Packet { time_ns, bytes: start..start + captured, wire_len, link: interface.link })
    }
}

/// What a packet needs to know of its interface.
struct Interface {
    link: Option<LinkType>,
    /// Octets, at most, that were captured of a packet.
    snap_length: usize,
    units: Units,
    offset_ns: i128,
}

/// The unit of an interface's clock.
enum Units {
    /// This many nanoseconds each.
    Nanoseconds(u64),
    /// So many a second that a nanosecond is no multiple of one.
    PerSecond(u128),
}

impl Interface {
    fn new(block: &InterfaceDescriptionBlock, big_endian: bool) -> Interface {
        // pcap-parser reads the offset as little-endian in every section, and knows no binary resolution.
        let offset = if big_endian { block.if_tsoffset.swap_bytes() } else { block.if_tsoffset };
        let exponent = u32::from(block.if_tsresol & 0x7f);
        let base: u128 = if block.if_tsresol & 0x80 == 0 { 10 } else { 2 };
        // 64 bits of units finer than 10^-38 s are less than a nanosecond.
        let per_second = base.checked_pow(exponent).unwrap_or(u128::MAX);
        Interface {
            link: LinkType::from_pcap(block.linktype.0 as u32),
            snap_length: if block.snaplen == 0 { usize::MAX } else { block.snaplen as usize },
            units: match 1_000_000_000 % per_second {
                0 => Units::Nanoseconds((1_000_000_000 / per_second) as u64),
                _ => Units::PerSecond(per_second),
            },
            offset_ns: i128::from(offset) * 1_000_000_000,
        }
    }

    fn time_ns(&self, units: u64) -> u64 {
        let since = match self.units {
            Units::Nanoseconds(each) => units.saturating_mul(each),
            Units::PerSecond(rate) => (u128::from(units) * 1_000_000_000 / rate) as u64,
        };
        if self.offset_ns == 0 {
            return since.min(TIME_MAX_NS);
        }
        (i128::from(since) + self.offset_ns).clamp(0, i128::from(TIME_MAX_NS)) as u64
    }
}

fn check_captured(length: usize) -> Result<(), Fault> {
    if length > PACKET_MAX {
        return Err(Fault::TooLong { what: "packet", length, max: PACKET_MAX });
    }
    Ok(())
}

/// Four octets at `at`, which the caller has seen to be there.
fn u32_at(bytes: &[u8], at: usize, big_endian: bool) -> u32 {
    let octets = bytes[at..at + 4].try_into().expect("four octets");
    if big_endian { u32::from_be_bytes(octets) } else { u32::from_le_bytes(octets) }
}
