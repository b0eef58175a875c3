//! Link layers: what stands before the IP header of a frame.

use super::{Ignore, be16, from};

/// Tags and labels that are looked through, at most, of each kind; `ebpf/bpf/nagare.h` has the same bound.
pub const STACK_MAX: usize = 8;

/// EtherTypes that are named more than once.
pub(super) mod ether {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    /// Transparent Ethernet bridging: a whole frame, in a tunnel.
    pub const ETHERNET: u16 = 0x6558;
    /// PPP.
    pub const PPP: u16 = 0x880b;
}

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

/// What stands before the IP header.
#[derive(Clone, Copy, Default)]
pub(super) struct Around {
    pub vlan: u16,
    pub customer_vlan: u16,
    pub mpls_top: u32,
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
}

/// What stands before the IP header of a frame, and what begins with it.
pub(super) fn network(link: LinkType, frame: &[u8]) -> Result<(Around, &[u8]), Ignore> {
    match link {
        LinkType::Ppi => ppi(frame),
        link => link_layer(link, frame),
    }
}

/// The same of what a tunnel carries under an EtherType: a frame, or a packet that has no link layer of its own and is seen
/// in that of `around`.
pub(super) fn carried(kind: u16, rest: &[u8], around: Around) -> Result<(Around, &[u8]), Ignore> {
    match kind {
        ether::ETHERNET => ethernet(rest),
        kind => {
            let (inner, packet) = ether_type(kind, rest)?;
            let mpls_top = if inner.mpls_top != 0 { inner.mpls_top } else { around.mpls_top };
            Ok((Around { mpls_top, ..around }, packet))
        }
    }
}

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
            ether::IPV4 | ether::IPV6 => return Ok((around, of_family(kind, rest)?)),
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
            ether::PPP => return Ok((around, ppp(rest)?)),
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
    let expected = if kind == ether::IPV4 { 4 } else { 6 };
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
        0x21 => of_family(ether::IPV4, rest),
        0x57 => of_family(ether::IPV6, rest),
        _ => Err(Ignore::PppControl),
    }
}

fn null(frame: &[u8]) -> Result<&[u8], Ignore> {
    let family: [u8; 4] = frame.get(..4).ok_or(Ignore::Truncated)?.try_into().expect("four octets");
    let family = u32::from_be_bytes(family).min(u32::from_le_bytes(family));
    match family {
        2 => of_family(ether::IPV4, &frame[4..]),
        10 | 24 | 28 | 30 => of_family(ether::IPV6, &frame[4..]),
        _ => Err(Ignore::OtherProtocol),
    }
}
