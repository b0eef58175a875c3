//! The delivery layer: what a probe and a collector of Nagare say around IPFIX Messages, so that each is stored exactly once.
//!
//! Both ends agree on it by ALPN ([`ALPN`]) in the TLS handshake. A probe then sends frames, each of 20 octets, of which those of
//! type [`FromProbe::Message`] are followed by an IPFIX Message; a collector answers with acknowledgements of 28 octets. All
//! numbers are big-endian.
//!
//! ```text
//!              0        1..4   4..12          12..20          20..28
//! HELLO        1        0      probe identity (16 octets)                first, once
//! MESSAGE      2        0      epoch          number          an IPFIX Message; number 0: not to be acknowledged (Templates)
//! SETTLED      3        0      epoch          number                     numbers up to this one will not come again
//! FLUSH        4        0      0              0                          acknowledge soon: the probe ends, or its memory fills
//! ACK          5        0      epoch          first           last       these are durable in the collector's store
//! ```
//!
//! An epoch is one run of a probe, larger than those before it; numbers begin at 1 in each. A Message keeps its epoch and number
//! over reconnects and restarts, however often it is sent; the collector stores it once.

use crate::ipfix::{Malformed, frame};
use std::fmt;

/// The protocol's name in the TLS handshake (RFC 7301).
pub const ALPN: &[u8] = b"nagare/1";

/// Octets of a probe's frame, without the Message after it.
pub const FRAME_LENGTH: usize = 20;

/// Octets of an acknowledgement.
pub const ACK_LENGTH: usize = 28;

/// The number in a SETTLED frame of an epoch that is over: none of its numbers will come again.
pub const WHOLE_EPOCH: u64 = u64::MAX;

const HELLO: u8 = 1;
const MESSAGE: u8 = 2;
const SETTLED: u8 = 3;
const FLUSH: u8 = 4;
const ACK: u8 = 5;

/// A probe's identity, random, kept in its spool directory.
pub type ProbeId = [u8; 16];

/// What a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromProbe<'a> {
    /// Who it is; the first frame of a session.
    Hello(ProbeId),
    /// A Message and what it is known by.
    Message {
        /// The run of the probe that made it.
        epoch: u64,
        /// Its number in that epoch, from 1 on; 0 where no acknowledgement is asked for.
        number: u64,
        /// The IPFIX Message.
        message: &'a [u8],
    },
    /// Numbers up to this one will not come again: they were acknowledged, or dropped by the probe.
    Settled {
        /// The epoch.
        epoch: u64,
        /// The last of the numbers, or [`WHOLE_EPOCH`].
        number: u64,
    },
    /// Make what was received durable now.
    Flush,
}

/// Messages of an epoch that are durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The epoch.
    pub epoch: u64,
    /// The first number.
    pub first: u64,
    /// The last number.
    pub last: u64,
}

/// Why a frame cannot be read; the session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFrame {
    /// A type that there is not; the value.
    Type(u8),
    /// The Message after the frame is none.
    Message(Malformed),
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadFrame::Type(found) => write!(f, "a delivery frame of the unknown type {found}"),
            BadFrame::Message(malformed) => write!(f, "malformed Message: {malformed}"),
        }
    }
}

impl std::error::Error for BadFrame {}

impl FromProbe<'_> {
    /// The frame at the start of a byte stream with its length, Message included; `None` where more octets are needed.
    ///
    /// # Errors
    /// What stands there is no frame of a probe.
    pub fn read(bytes: &[u8]) -> Result<Option<(FromProbe<'_>, usize)>, BadFrame> {
        let Some((head, rest)) = bytes.split_at_checked(FRAME_LENGTH) else {
            return match bytes.first() {
                Some(kind) if !(HELLO..=FLUSH).contains(kind) => Err(BadFrame::Type(*kind)),
                _ => Ok(None),
            };
        };
        let (epoch, number) = (number_at(head, 4), number_at(head, 12));
        let read = match head[0] {
            HELLO => FromProbe::Hello(head[4..20].try_into().expect("sixteen octets")),
            MESSAGE => match frame(rest).map_err(BadFrame::Message)? {
                None => return Ok(None),
                Some(length) => {
                    let message = FromProbe::Message { epoch, number, message: &rest[..length] };
                    return Ok(Some((message, FRAME_LENGTH + length)));
                }
            },
            SETTLED => FromProbe::Settled { epoch, number },
            FLUSH => FromProbe::Flush,
            other => return Err(BadFrame::Type(other)),
        };
        Ok(Some((read, FRAME_LENGTH)))
    }

    /// Appends the frame; the Message, where there is one, after it.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut put = |kind: u8, first: [u8; 8], second: [u8; 8]| {
            out.extend_from_slice(&[kind, 0, 0, 0]);
            out.extend_from_slice(&first);
            out.extend_from_slice(&second);
        };
        match self {
            FromProbe::Hello(probe) => {
                let (first, second) = probe.split_at(8);
                put(HELLO, first.try_into().expect("eight octets"), second.try_into().expect("eight octets"));
            }
            FromProbe::Message { epoch, number, message } => {
                put(MESSAGE, epoch.to_be_bytes(), number.to_be_bytes());
                out.extend_from_slice(message);
            }
            FromProbe::Settled { epoch, number } => put(SETTLED, epoch.to_be_bytes(), number.to_be_bytes()),
            FromProbe::Flush => put(FLUSH, [0; 8], [0; 8]),
        }
    }
}

impl Ack {
    /// The acknowledgement at the start of a byte stream; `None` where more octets are needed.
    ///
    /// # Errors
    /// What stands there is no acknowledgement.
    pub fn read(bytes: &[u8]) -> Result<Option<Ack>, BadFrame> {
        match bytes.first() {
            Some(kind) if *kind != ACK => Err(BadFrame::Type(*kind)),
            _ if bytes.len() < ACK_LENGTH => Ok(None),
            _ => Ok(Some(Ack { epoch: number_at(bytes, 4), first: number_at(bytes, 12), last: number_at(bytes, 20) })),
        }
    }

    /// Appends the acknowledgement.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[ACK, 0, 0, 0]);
        for number in [self.epoch, self.first, self.last] {
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

/// Eight octets at a place that is there.
fn number_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A set of numbers, as the ranges that it consists of: in order, with gaps between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds the numbers from `first` to `last`; nothing where there are none.
    pub fn insert(&mut self, first: u64, last: u64) {
        if first > last {
            return;
        }
        // Those that touch the new one lie together; it takes their place.
        let begin = self.0.partition_point(|range| range.1.saturating_add(1) < first);
        let end = self.0.partition_point(|range| range.0 <= last.saturating_add(1));
        let merged =
            self.0[begin..end].iter().fold((first, last), |sum, range| (sum.0.min(range.0), sum.1.max(range.1)));
        self.0.splice(begin..end, [merged]);
    }

    /// Whether the number is in the set.
    pub fn contains(&self, number: u64) -> bool {
        let after = self.0.partition_point(|range| range.0 <= number);
        after.checked_sub(1).is_some_and(|index| self.0[index].1 >= number)
    }

    /// The ranges, first and last number of each, in order.
    pub fn as_slice(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Whether it holds no number.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn message() -> Vec<u8> {
        let mut message = vec![0, 10, 0, 20];
        message.resize(20, 0);
        message
    }

    #[test]
    fn frames_are_read_as_written_and_never_before_they_are_whole() {
        let message = message();
        let frames = [
            FromProbe::Hello(*b"0123456789abcdef"),
            FromProbe::Message { epoch: 1 << 60, number: 7, message: &message },
            FromProbe::Settled { epoch: 3, number: WHOLE_EPOCH },
            FromProbe::Flush,
        ];
        for frame in frames {
            let mut bytes = Vec::new();
            frame.write(&mut bytes);
            for length in 0..bytes.len() {
                assert_eq!(FromProbe::read(&bytes[..length]), Ok(None), "{frame:?} cut to {length}");
            }
            bytes.push(9);
            assert_eq!(FromProbe::read(&bytes), Ok(Some((frame, bytes.len() - 1))));
        }
        let mut bytes = Vec::new();
        let ack = Ack { epoch: 1, first: 2, last: u64::MAX };
        ack.write(&mut bytes);
        (0..ACK_LENGTH).for_each(|length| assert_eq!(Ack::read(&bytes[..length]), Ok(None)));
        assert_eq!(Ack::read(&bytes), Ok(Some(ack)));
    }

    #[test]
    fn what_is_no_frame_is_refused_at_its_first_octet() {
        assert_eq!(FromProbe::read(&[22, 3, 1]), Err(BadFrame::Type(22)));
        assert_eq!(FromProbe::read(&[ACK]), Err(BadFrame::Type(ACK)));
        assert_eq!(Ack::read(&[HELLO]), Err(BadFrame::Type(HELLO)));
        let mut bytes = Vec::new();
        FromProbe::Message { epoch: 1, number: 1, message: &[0, 9, 0, 20] }.write(&mut bytes);
        assert_eq!(FromProbe::read(&bytes), Err(BadFrame::Message(Malformed::Version(9))));
    }

    proptest! {
        #[test]
        fn octets_never_panic(bytes: Vec<u8>) {
            let _ = (FromProbe::read(&bytes), Ack::read(&bytes));
        }

        #[test]
        fn ranges_are_a_set(inserts in prop::collection::vec((0u64..40, 0u64..6), 0..30)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (first, more) in inserts {
                ranges.insert(first, first + more);
                set.extend(first..=first + more);
                for number in 0..50 {
                    prop_assert_eq!(ranges.contains(number), set.contains(&number));
                }
                prop_assert!(ranges.as_slice().windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "{:?}", ranges);
            }
        }
    }

    #[test]
    fn ranges_reach_the_last_number() {
        let mut ranges = Ranges::default();
        ranges.insert(5, 4);
        assert!(ranges.is_empty());
        ranges.insert(u64::MAX, u64::MAX);
        ranges.insert(0, 3);
        ranges.insert(4, u64::MAX - 1);
        assert_eq!(ranges.as_slice(), [(0, u64::MAX)]);
    }
}
