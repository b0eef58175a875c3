//! What can be wrong with a capture file, in words.

use std::fmt;
use std::io;

/// What is wrong.
#[derive(Debug)]
pub enum Fault {
    /// It cannot be opened.
    Open(io::Error),
    /// It has no bytes.
    Empty,
    /// It begins like no capture file.
    NotACapture {
        /// Its first bytes.
        magic: [u8; 4],
    },
    /// All its packets have a link type (its LINKTYPE_ number) that is not decoded.
    LinkType(u32),
    /// It ends within a header, a packet or a block.
    CutShort {
        /// Bytes that should be there.
        wanted: u64,
        /// Bytes that are.
        left: u64,
    },
    /// A length is beyond the bound.
    TooLong {
        /// What has the length.
        what: &'static str,
        /// The length in bytes.
        length: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// It contradicts itself.
    Malformed(String),
    /// It cannot be read, or not be decompressed, any further.
    Read(io::Error),
    /// The reader thread panicked.
    ReaderPanicked,
}

/// What is wrong with a capture file, and where. What stands before that place was handed on.
#[derive(Debug)]
pub struct FileError {
    /// The file's name, "standard input" for `-`.
    pub file: String,
    /// What is wrong.
    pub fault: Fault,
    /// Where, in bytes from the file's start, after decompression.
    pub offset: u64,
    /// Packets before that place.
    pub packets: u64,
    /// How the file is compressed: the offset counts decompressed bytes.
    pub compression: Option<&'static str>,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.file, self.fault)?;
        if matches!(self.fault, Fault::Open(_) | Fault::Empty | Fault::NotACapture { .. } | Fault::LinkType(_)) {
            return Ok(());
        }
        let decompressed = self.compression.map(|name| format!(" of what {name} holds")).unwrap_or_default();
        write!(f, "; at byte {}{decompressed}, after {} packets, which were handed on", self.offset, self.packets)
    }
}

impl std::error::Error for FileError {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Open(error) => write!(f, "cannot be opened: {error}"),
            Fault::Empty => write!(f, "is empty: a capture file has at least a header"),
            Fault::NotACapture { magic } => write!(
                f,
                "is neither pcap nor pcapng (nor one of them in gzip, zstd or bzip2): it begins with {magic:02x?}"
            ),
            Fault::LinkType(number) => write!(
                f,
                "has link type {number} ({}), which is not decoded; Ethernet, raw IP, Linux cooked, BSD loopback, PPP, Cisco HDLC and PPI are",
                link_name(*number)
            ),
            Fault::CutShort { wanted, left } => write!(f, "is cut short: {wanted} bytes should follow, {left} do"),
            Fault::TooLong { what, length, max } => {
                write!(f, "is broken: a {what} says that it has {length} bytes, {max} is the most that one may have")
            }
            Fault::Malformed(why) => write!(f, "is broken: {why}"),
            Fault::Read(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                write!(f, "is cut short: its compressed data has no end ({error})")
            }
            Fault::Read(error) => write!(f, "cannot be read further: {error}"),
            Fault::ReaderPanicked => write!(f, "cannot be read: its reader panicked, which is a defect of the probe"),
        }
    }
}

/// The name of a LINKTYPE_ number that is not decoded (<https://www.tcpdump.org/linktypes.html>).
pub fn link_name(number: u32) -> &'static str {
    match number {
        3 => "AX25",
        6 => "IEEE802_5",
        7 => "ARCNET_BSD",
        8 => "SLIP",
        10 => "FDDI",
        100 => "ATM_RFC1483",
        105 => "IEEE802_11",
        107 => "FRELAY",
        114 => "LTALK",
        117 => "PFLOG",
        119 => "IEEE802_11_PRISM",
        122 => "IP_OVER_FC",
        123 => "SUNATM",
        127 => "IEEE802_11_RADIOTAP",
        129 => "ARCNET_LINUX",
        138 => "APPLE_IP_OVER_IEEE1394",
        140 => "MTP2",
        141 => "MTP3",
        143 => "DOCSIS",
        144 => "LINUX_IRDA",
        147..=162 => "USER",
        163 => "IEEE802_11_AVS",
        169 => "GPRS_LLC",
        187 => "BLUETOOTH_HCI_H4",
        189 => "USB_LINUX",
        195 => "IEEE802_15_4_WITHFCS",
        201 => "BLUETOOTH_HCI_H4_WITH_PHDR",
        220 => "USB_LINUX_MMAPPED",
        224 => "FC_2",
        226 => "IPNET",
        227 => "CAN_SOCKETCAN",
        230 => "IEEE802_15_4_NOFCS",
        239 => "NFLOG",
        240 => "NETANALYZER",
        243 => "MPEG_2_TS",
        247 => "INFINIBAND",
        248 => "SCTP",
        249 => "USBPCAP",
        251 => "BLUETOOTH_LE_LL",
        252 => "WIRESHARK_UPPER_PDU",
        253 => "NETLINK",
        254 => "BLUETOOTH_LINUX_MONITOR",
        _ => "unknown",
    }
}
