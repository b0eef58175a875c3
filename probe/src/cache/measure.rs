//! Measurements beyond the counters: one more line per flow, kept where the template asks for them.

use super::table::{Hot, Zeroed};
use super::{ACK, FIN, RST, SYN, TCP, initiator_of};
use nagare_wire::flow::{DirectionMeasured, Measured};
use nagare_wire::observation::{CompactKey, Observation};

/// A packet that brings octets from below the highest sequence number fills a gap if it comes this soon after the packet
/// before; later it is a retransmission.
const REORDERING_US: u64 = 3000;

const UDP: u8 = 17;
const ICMP: [u8; 2] = [1, 58];
const IPSEC: [u8; 2] = [50, 51];

/// Bits of [`Hot::stage`]: a gap is open, by direction.
const AHEAD: [u8; 2] = [0x01, 0x02];
/// The direction has a sequence number to go on from.
const SEQUENCED: [u8; 2] = [0x04, 0x08];
/// The SYN was seen; its time stands in `server_us`.
const SYN_SEEN: u8 = 0x10;
/// The SYN+ACK was seen after it; its time stands in `client_us`.
const ANSWERED: u8 = 0x20;
/// The first octets from the initiator were seen; their time stands in `application_us`.
const REQUESTED: u8 = 0x40;
/// The first octets of the answer were seen, or no time will be taken any more.
const RESPONDED: u8 = 0x80;

/// Measurements of a flow, indexed by direction as seen from its key.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Measure {
    /// Low parts of the octets of the frames, and the parts above 2^32.
    layer2_low: [u32; 2],
    layer2_high: [u16; 2],
    length_min: [u16; 2],
    length_max: [u16; 2],
    retransmitted: [u16; 2],
    out_of_order: [u16; 2],
    zero_window: [u16; 2],
    ttl_min: [u8; 2],
    ttl_max: [u8; 2],
    /// For TCP the first sequence number, for ESP and AH the first SPI; for ICMP of the first packet the type and code.
    initial: [u32; 2],
    next: [u32; 2],
    server_us: u32,
    client_us: u32,
    application_us: u32,
}

const _: () = assert!(size_of::<Measure>() == 64);

/// What a cache measures beside its counters: nothing, or a [`Measure`] of each flow.
pub trait More: Zeroed {
    /// Whether anything is measured.
    const MEASURES: bool;

    /// Begins a flow.
    fn begin(packet: &Observation) -> Self;
    /// Takes a packet of the flow in `hot`, before the counters have it.
    fn take(&mut self, hot: &mut Hot, packet: &Observation);
    /// What the record says: counters since the last record, times that have been taken.
    fn measured(&self, hot: &Hot) -> Measured;
    /// ICMP type and code of the first packet.
    fn icmp_type_code(&self, hot: &Hot) -> u16;
    /// After a part of the flow was exported: counters begin anew, times that were told are not told again.
    fn begin_part(&mut self, stage: u8);
}

impl More for () {
    const MEASURES: bool = false;

    fn begin(_: &Observation) {}

    #[inline(always)]
    fn take(&mut self, _: &mut Hot, _: &Observation) {}

    fn measured(&self, _: &Hot) -> Measured {
        Measured::default()
    }

    fn icmp_type_code(&self, _: &Hot) -> u16 {
        0
    }

    fn begin_part(&mut self, _: u8) {}
}

impl More for Measure {
    const MEASURES: bool = true;

    fn begin(packet: &Observation) -> Measure {
        let icmp = u32::from(packet.details.icmp_type_code);
        Measure { initial: [icmp, 0], ..Measure::NEW }
    }

    #[inline]
    fn take(&mut self, hot: &mut Hot, packet: &Observation) {
        let initiator = initiator_of(hot.state);
        let (details, d) = (&packet.details, packet.direction as usize);
        let (low, carried) = self.layer2_low[d].overflowing_add(details.layer2_octets);
        self.layer2_low[d] = low;
        self.layer2_high[d] = self.layer2_high[d].saturating_add(u16::from(carried));
        let length = packet.octets.div_ceil(packet.packets.max(1)).min(u32::from(u16::MAX)) as u16;
        self.length_min[d] = self.length_min[d].min(length);
        self.length_max[d] = self.length_max[d].max(length);
        self.ttl_min[d] = self.ttl_min[d].min(details.ttl);
        self.ttl_max[d] = self.ttl_max[d].max(details.ttl);
        let is_tcp = packet.key.protocol() == TCP;
        if details.spi != 0 && self.initial[d] == 0 {
            self.initial[d] = details.spi;
        }
        if is_tcp {
            self.take_sequence(hot, packet);
            if hot.stage & ANSWERED == 0 || hot.stage & SYN_SEEN != 0 {
                self.take_handshake(hot, packet.direction == initiator, packet);
            }
        }
        if details.payload > 0 && hot.stage & RESPONDED == 0 && (is_tcp || packet.key.protocol() == UDP) {
            self.take_request(hot, packet.direction == initiator, packet.time_us);
        }
    }

    fn measured(&self, hot: &Hot) -> Measured {
        let is_ipsec = IPSEC.contains(&(CompactKey { words: hot.words }).protocol());
        let of = |d: usize| match hot.packets[d] {
            0 => DirectionMeasured::default(),
            _ => DirectionMeasured {
                layer2_octets: u64::from(self.layer2_high[d]) << 32 | u64::from(self.layer2_low[d]),
                length_min: u32::from(self.length_min[d]),
                length_max: u32::from(self.length_max[d]),
                ttl_min: self.ttl_min[d],
                ttl_max: self.ttl_max[d],
                spi: if is_ipsec { self.initial[d] } else { 0 },
                tcp_initial_sequence: if hot.stage & SEQUENCED[d] != 0 { self.initial[d] } else { 0 },
                retransmitted: u32::from(self.retransmitted[d]),
                out_of_order: u32::from(self.out_of_order[d]),
                zero_window: u32::from(self.zero_window[d]),
            },
        };
        let forward = initiator_of(hot.state) as usize;
        let taken = |done: bool, value: u32| if done { value } else { 0 };
        Measured {
            forward: of(forward),
            reverse: of(1 - forward),
            server_network_us: taken(hot.stage & ANSWERED != 0, self.server_us),
            client_network_us: taken(hot.stage & (ANSWERED | SYN_SEEN) == ANSWERED, self.client_us),
            application_us: taken(hot.stage & RESPONDED != 0, self.application_us),
        }
    }

    fn icmp_type_code(&self, hot: &Hot) -> u16 {
        let protocol = (CompactKey { words: hot.words }).protocol();
        if ICMP.contains(&protocol) { self.initial[0] as u16 } else { 0 }
    }

    fn begin_part(&mut self, stage: u8) {
        let taken = |done: bool, value: u32| if done { 0 } else { value };
        *self = Measure {
            initial: self.initial,
            next: self.next,
            server_us: taken(stage & ANSWERED != 0, self.server_us),
            client_us: taken(stage & (ANSWERED | SYN_SEEN) == ANSWERED, self.client_us),
            application_us: taken(stage & RESPONDED != 0, self.application_us),
            ..Measure::NEW
        };
    }
}

impl Measure {
    const NEW: Measure = Measure {
        layer2_low: [0; 2],
        layer2_high: [0; 2],
        length_min: [u16::MAX; 2],
        length_max: [0; 2],
        retransmitted: [0; 2],
        out_of_order: [0; 2],
        zero_window: [0; 2],
        ttl_min: [u8::MAX; 2],
        ttl_max: [0; 2],
        initial: [0; 2],
        next: [0; 2],
        server_us: 0,
        client_us: 0,
        application_us: 0,
    };

    #[inline]
    fn take_sequence(&mut self, hot: &mut Hot, packet: &Observation) {
        let (details, d) = (&packet.details, packet.direction as usize);
        let phantom = u32::from(packet.tcp_flags & (SYN | FIN) != 0);
        let end = details.tcp_sequence.wrapping_add(details.payload).wrapping_add(phantom);
        if details.tcp_window == 0 && packet.tcp_flags & (SYN | FIN | RST) == 0 {
            self.zero_window[d] = self.zero_window[d].saturating_add(1);
        }
        if hot.stage & SEQUENCED[d] == 0 {
            hot.stage |= SEQUENCED[d];
            (self.initial[d], self.next[d]) = (details.tcp_sequence, end);
            return;
        }
        let ahead = details.tcp_sequence.wrapping_sub(self.next[d]) as i32;
        if ahead == 0 {
            self.next[d] = end;
        } else if ahead > 0 {
            hot.stage |= AHEAD[d];
            self.next[d] = end;
        } else {
            self.take_old(hot, d, packet, end, ahead);
        }
    }

    /// Octets from below the highest sequence number. A keep-alive (one octet or none, just below it) is neither.
    fn take_old(&mut self, hot: &mut Hot, d: usize, packet: &Observation, end: u32, ahead: i32) {
        let is_keep_alive = ahead == -1 && packet.details.payload <= 1;
        let occupies = end != packet.details.tcp_sequence;
        if occupies && !is_keep_alive {
            let soon = packet.time_us.saturating_sub(hot.last_us) <= REORDERING_US;
            let counter = match hot.stage & AHEAD[d] != 0 && soon {
                true => &mut self.out_of_order[d],
                false => &mut self.retransmitted[d],
            };
            *counter = counter.saturating_add(1);
            hot.stage &= !AHEAD[d];
        }
        if end.wrapping_sub(self.next[d]) as i32 > 0 {
            self.next[d] = end;
        }
    }

    /// SYN, SYN+ACK and its acknowledgement: while a time is awaited, the field holds the low bits of when the wait began.
    fn take_handshake(&mut self, hot: &mut Hot, from_initiator: bool, packet: &Observation) {
        let now = packet.time_us as u32;
        match (hot.stage & (SYN_SEEN | ANSWERED), packet.tcp_flags & (SYN | ACK), from_initiator) {
            (0 | SYN_SEEN, SYN, true) => {
                hot.stage |= SYN_SEEN;
                self.server_us = now;
            }
            (SYN_SEEN, flags, false) if flags == SYN | ACK => {
                hot.stage |= ANSWERED;
                self.server_us = now.wrapping_sub(self.server_us).max(1);
                self.client_us = now;
            }
            (both, ACK, true) if both == SYN_SEEN | ANSWERED => {
                hot.stage &= !SYN_SEEN;
                self.client_us = now.wrapping_sub(self.client_us).max(1);
            }
            _ => {}
        }
    }

    fn take_request(&mut self, hot: &mut Hot, from_initiator: bool, time_us: u64) {
        let now = time_us as u32;
        match (hot.stage & REQUESTED != 0, from_initiator) {
            (false, true) => {
                hot.stage |= REQUESTED;
                self.application_us = now;
            }
            (true, false) => {
                hot.stage = hot.stage & !REQUESTED | RESPONDED;
                self.application_us = now.wrapping_sub(self.application_us).max(1);
            }
            // The responder spoke first (as mail servers do), or the request goes on.
            (false, false) => hot.stage |= RESPONDED,
            (true, true) => {}
        }
    }
}
