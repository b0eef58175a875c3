//! The flow cache of one Metering Process: fixed capacity, one writer, no lock, no allocation after it was made.
//!
//! Records depend on a flow's own packets and the timeouts alone, not on when `expire` runs: a packet that comes after
//! its flow's timeout ends the flow first. So a file gives the same records with any number of workers.

use ahash::RandomState;
use nagare_wire::flow::{Counters, Direction, FlowEndReason, FlowKey, FlowRecord};
use nagare_wire::packet::Packet;

/// A conversation that has ended (FIN or RST) waits this long for its last acknowledgements.
const LINGER_MS: u64 = 1000;

const FIN: u16 = 0x01;
const SYN: u16 = 0x02;
const RST: u16 = 0x04;
const ACK: u16 = 0x10;
const TCP: u8 = 6;

/// When flows end, and how many there may be.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// A flow without packets for this long ends, milliseconds.
    pub idle_timeout_ms: u64,
    /// A flow that lasts longer is exported in parts of this length, milliseconds.
    pub active_timeout_ms: u64,
    /// Flows held at most; 1 at least.
    pub flows_max: usize,
}

/// Flows in a table of chains over slots that are reserved at the start.
pub struct FlowCache {
    limits: CacheLimits,
    hasher: RandomState,
    /// First slot of each chain.
    buckets: Box<[u32]>,
    slots: Box<[Slot]>,
    free: u32,
    live: usize,
    packets: u64,
    /// Flows by their last packet, the longest idle first.
    idle: List,
    /// Flows whose conversation ended, by their last packet.
    closing: List,
    /// Flows with packets by their start, the oldest first.
    active: List,
}

/// What is to be done about a flow.
#[derive(Clone, Copy)]
enum Due {
    /// It goes on; what it has so far is exported.
    Part,
    /// It ends.
    End(FlowEndReason),
}

/// The slot number that means: none.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Slot {
    key: FlowKey,
    /// The direction, seen from the canonical key, of the initiator's packets.
    initiator: Direction,
    closing: bool,
    tos: u8,
    forward: Counters,
    reverse: Counters,
    start_ms: u64,
    end_ms: u64,
    /// Next slot of the chain, or of the free list.
    next: u32,
    age: Link,
    active: Link,
}

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

const UNLINKED: Link = Link { before: NONE, after: NONE };

/// An intrusive list over slots.
#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

impl List {
    const EMPTY: List = List { first: NONE, last: NONE };

    fn push(&mut self, slots: &mut [Slot], index: u32, link: fn(&mut Slot) -> &mut Link) {
        *link(&mut slots[index as usize]) = Link { before: self.last, after: NONE };
        match self.last {
            NONE => self.first = index,
            last => link(&mut slots[last as usize]).after = index,
        }
        self.last = index;
    }

    fn remove(&mut self, slots: &mut [Slot], index: u32, link: fn(&mut Slot) -> &mut Link) {
        let Link { before, after } = std::mem::replace(link(&mut slots[index as usize]), UNLINKED);
        match before {
            NONE => self.first = after,
            before => link(&mut slots[before as usize]).after = after,
        }
        match after {
            NONE => self.last = before,
            after => link(&mut slots[after as usize]).before = before,
        }
    }
}

fn age(slot: &mut Slot) -> &mut Link {
    &mut slot.age
}

fn active(slot: &mut Slot) -> &mut Link {
    &mut slot.active
}

impl FlowCache {
    /// Reserves all of the cache's memory. The hash is keyed at random: a sender cannot aim flows at one chain.
    pub fn new(limits: CacheLimits) -> FlowCache {
        let flows_max = limits.flows_max.clamp(1, NONE as usize - 1);
        let slot = |index: usize| Slot { next: if index + 1 < flows_max { index as u32 + 1 } else { NONE }, ..VACANT };
        FlowCache {
            limits: CacheLimits { flows_max, ..limits },
            hasher: RandomState::new(),
            buckets: vec![NONE; flows_max.next_power_of_two()].into_boxed_slice(),
            slots: (0..flows_max).map(slot).collect(),
            free: 0,
            live: 0,
            packets: 0,
            idle: List::EMPTY,
            closing: List::EMPTY,
            active: List::EMPTY,
        }
    }

    /// Memory that a cache of so many flows takes, bytes.
    pub fn memory_bytes(flows_max: usize) -> usize {
        flows_max * size_of::<Slot>() + flows_max.next_power_of_two() * size_of::<u32>()
    }

    /// Flows held.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Packets counted that no record has carried away yet.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Counts packets, each with the time it was captured at, and hands over the records of flows that they end.
    pub fn observe(&mut self, batch: &[(Packet, u64)], emit: &mut impl FnMut(FlowRecord)) {
        for (observation, time_ms) in batch {
            self.observe_one(observation, *time_ms, emit);
        }
    }

    fn observe_one(&mut self, observation: &Packet, time_ms: u64, emit: &mut impl FnMut(FlowRecord)) {
        let (key, direction) = observation.key.canonical();
        let bucket = self.bucket(&key);
        let index = match self.find(bucket, &key) {
            Some(index) => match self.due_before(index, observation, time_ms) {
                Some(Due::Part) => {
                    self.end_part(index, emit);
                    index
                }
                Some(Due::End(reason)) => {
                    self.end(index, reason, emit);
                    self.begin(bucket, key, direction, observation, emit)
                }
                None => index,
            },
            None => self.begin(bucket, key, direction, observation, emit),
        };
        self.count(index, direction, observation, time_ms);
    }

    /// What is due of the flow before this packet: its timeouts, and its end where a new conversation begins.
    fn due_before(&self, index: u32, observation: &Packet, time_ms: u64) -> Option<Due> {
        let opens = observation.key.protocol == TCP && observation.tcp_flags & (SYN | ACK) == SYN;
        let begins_anew = opens && self.slots[index as usize].closing;
        match self.due(index, time_ms) {
            Some(Due::Part) if begins_anew => Some(Due::End(FlowEndReason::ActiveTimeout)),
            None if begins_anew => Some(Due::End(FlowEndReason::EndOfFlow)),
            due => due,
        }
    }

    /// What is due of a flow at a time. Where both of its timeouts have passed, the record bears the one that came first.
    fn due(&self, index: u32, now_ms: u64) -> Option<Due> {
        let slot = &self.slots[index as usize];
        let (timeout_ms, reason) = match slot.closing {
            true => (LINGER_MS, FlowEndReason::EndOfFlow),
            false => (self.limits.idle_timeout_ms, FlowEndReason::IdleTimeout),
        };
        let ends_ms = slot.end_ms.saturating_add(timeout_ms);
        let part_ms = match slot.has_packets() {
            true => slot.start_ms.saturating_add(self.limits.active_timeout_ms),
            false => u64::MAX,
        };
        if ends_ms <= now_ms {
            Some(Due::End(if part_ms < ends_ms { FlowEndReason::ActiveTimeout } else { reason }))
        } else {
            (part_ms <= now_ms).then_some(Due::Part)
        }
    }

    fn count(&mut self, index: u32, direction: Direction, observation: &Packet, time_ms: u64) {
        let slot = &mut self.slots[index as usize];
        if slot.has_packets() {
            slot.start_ms = slot.start_ms.min(time_ms);
            slot.end_ms = slot.end_ms.max(time_ms);
        } else {
            (slot.start_ms, slot.end_ms, slot.tos) = (time_ms, time_ms, observation.tos);
            self.active.push(&mut self.slots, index, active);
        }
        let slot = &mut self.slots[index as usize];
        let counters = if direction == slot.initiator { &mut slot.forward } else { &mut slot.reverse };
        counters.packets += 1;
        self.packets += 1;
        counters.octets += u64::from(observation.octets);
        counters.tcp_flags |= observation.tcp_flags;
        let list = if slot.closing { &mut self.closing } else { &mut self.idle };
        list.remove(&mut self.slots, index, age);
        let slot = &mut self.slots[index as usize];
        slot.closing |= slot.conversation_ended();
        let list = if slot.closing { &mut self.closing } else { &mut self.idle };
        list.push(&mut self.slots, index, age);
    }

    /// Hands over at most `budget` records of flows that are due at `now_ms`.
    pub fn expire(&mut self, now_ms: u64, budget: usize, emit: &mut impl FnMut(FlowRecord)) {
        for _ in 0..budget {
            let mut oldest =
                [self.closing.first, self.idle.first, self.active.first].into_iter().filter(|first| *first != NONE);
            match oldest.find_map(|index| Some((index, self.due(index, now_ms)?))) {
                Some((index, Due::Part)) => self.end_part(index, emit),
                Some((index, Due::End(reason))) => self.end(index, reason, emit),
                None => return,
            }
        }
    }

    /// Ends all flows, as when the Metering Process stops.
    pub fn flush(&mut self, emit: &mut impl FnMut(FlowRecord)) {
        while let Some(index) = [self.closing.first, self.idle.first].into_iter().find(|first| *first != NONE) {
            let closing = self.slots[index as usize].closing;
            self.end(index, if closing { FlowEndReason::EndOfFlow } else { FlowEndReason::ForcedEnd }, emit);
        }
    }

    fn bucket(&self, key: &FlowKey) -> usize {
        self.hasher.hash_one(key) as usize & (self.buckets.len() - 1)
    }

    fn find(&self, bucket: usize, key: &FlowKey) -> Option<u32> {
        let mut index = self.buckets[bucket];
        while index != NONE {
            let slot = &self.slots[index as usize];
            if slot.key == *key {
                return Some(index);
            }
            index = slot.next;
        }
        None
    }

    /// Takes a slot for a new flow; where there is none, the flow that was idle longest gives way.
    fn begin(
        &mut self,
        bucket: usize,
        key: FlowKey,
        direction: Direction,
        observation: &Packet,
        emit: &mut impl FnMut(FlowRecord),
    ) -> u32 {
        if self.free == NONE {
            let oldest = if self.idle.first != NONE { self.idle.first } else { self.closing.first };
            self.end(oldest, FlowEndReason::LackOfResources, emit);
        }
        let index = self.free;
        let slot = &mut self.slots[index as usize];
        self.free = slot.next;
        *slot = Slot { key, initiator: initiator(direction, observation), next: self.buckets[bucket], ..VACANT };
        self.buckets[bucket] = index;
        self.idle.push(&mut self.slots, index, age);
        self.live += 1;
        index
    }

    /// Exports what the flow has so far; the flow stays, so that its direction does (RFC 5103, 5.3).
    fn end_part(&mut self, index: u32, emit: &mut impl FnMut(FlowRecord)) {
        self.active.remove(&mut self.slots, index, active);
        let slot = &mut self.slots[index as usize];
        emit(slot.record(FlowEndReason::ActiveTimeout));
        self.packets -= slot.forward.packets + slot.reverse.packets;
        (slot.forward, slot.reverse) = (Counters::default(), Counters::default());
    }

    fn end(&mut self, index: u32, reason: FlowEndReason, emit: &mut impl FnMut(FlowRecord)) {
        let slot = self.slots[index as usize];
        if slot.has_packets() {
            emit(slot.record(reason));
            self.packets -= slot.forward.packets + slot.reverse.packets;
            self.active.remove(&mut self.slots, index, active);
        }
        let list = if slot.closing { &mut self.closing } else { &mut self.idle };
        list.remove(&mut self.slots, index, age);
        self.unchain(self.bucket(&slot.key), index);
        self.slots[index as usize] = Slot { next: self.free, ..VACANT };
        self.free = index;
        self.live -= 1;
    }

    fn unchain(&mut self, bucket: usize, index: u32) {
        let after = self.slots[index as usize].next;
        let mut at = self.buckets[bucket];
        if at == index {
            self.buckets[bucket] = after;
            return;
        }
        while self.slots[at as usize].next != index {
            at = self.slots[at as usize].next;
        }
        self.slots[at as usize].next = after;
    }
}

/// The initiator's direction: the first packet's, unless that is the answer to a SYN that was not seen.
fn initiator(direction: Direction, observation: &Packet) -> Direction {
    let answers = observation.key.protocol == TCP && observation.tcp_flags & (SYN | ACK) == SYN | ACK;
    match (direction, answers) {
        (direction, false) => direction,
        (Direction::Forward, true) => Direction::Reverse,
        (Direction::Reverse, true) => Direction::Forward,
    }
}

const VACANT: Slot = Slot {
    key: FlowKey {
        source: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        destination: std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        source_port: 0,
        destination_port: 0,
        protocol: 0,
        vlan: 0,
        customer_vlan: 0,
        tunnel: None,
    },
    initiator: Direction::Forward,
    closing: false,
    tos: 0,
    forward: Counters { packets: 0, octets: 0, tcp_flags: 0 },
    reverse: Counters { packets: 0, octets: 0, tcp_flags: 0 },
    start_ms: 0,
    end_ms: 0,
    next: NONE,
    age: UNLINKED,
    active: UNLINKED,
};

impl Slot {
    fn has_packets(&self) -> bool {
        self.forward.packets + self.reverse.packets > 0
    }

    /// RST, or FIN in every direction that spoke.
    fn conversation_ended(&self) -> bool {
        let both = [&self.forward, &self.reverse];
        let finished = |counters: &&Counters| counters.packets == 0 || counters.tcp_flags & FIN != 0;
        self.key.protocol == TCP && (both.iter().any(|c| c.tcp_flags & RST != 0) || both.iter().all(finished))
    }

    fn record(&self, reason: FlowEndReason) -> FlowRecord {
        FlowRecord {
            key: if self.initiator == Direction::Forward { self.key } else { self.key.reversed() },
            start_us: self.start_ms * 1000,
            end_us: self.end_ms * 1000,
            forward: self.forward,
            reverse: self.reverse,
            tos: self.tos,
            end_reason: reason as u8,
            ..FlowRecord::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn packet(hosts: (u8, u8), tcp_flags: u16) -> Packet {
        Packet {
            key: FlowKey {
                source: [10, 0, 0, hosts.0].into(),
                destination: [10, 0, 0, hosts.1].into(),
                source_port: 1000 + u16::from(hosts.0),
                destination_port: 1000 + u16::from(hosts.1),
                protocol: TCP,
                vlan: 0,
                ..FlowKey::default()
            },
            octets: 40 + u32::from(hosts.0),
            tcp_flags,
            tos: 0,
            ..Packet::default()
        }
    }

    fn cache(flows_max: usize) -> FlowCache {
        FlowCache::new(CacheLimits { idle_timeout_ms: 15_000, active_timeout_ms: 60_000, flows_max })
    }

    /// Runs packets (hosts, flags, time) through a cache; each record as `source packets/reverse start-end reason`.
    fn run(cache: &mut FlowCache, packets: &[((u8, u8), u16, u64)], end_ms: u64) -> Vec<String> {
        let mut records = Vec::new();
        let mut emit = |r: FlowRecord| {
            let host = r.key.source.to_string().split('.').next_back().unwrap().to_string();
            let (forward, reverse) = (r.forward.packets, r.reverse.packets);
            records.push(format!("{host} {forward}/{reverse} {}-{} {}", r.start_ms(), r.end_ms(), r.end_reason));
        };
        for (hosts, flags, time_ms) in packets {
            cache.observe(&[(packet(*hosts, *flags), *time_ms)], &mut emit);
            cache.expire(*time_ms, 8, &mut emit);
        }
        cache.expire(end_ms, usize::MAX, &mut emit);
        cache.flush(&mut emit);
        assert_eq!((cache.live(), cache.packets()), (0, 0));
        records
    }

    #[test]
    fn flows_end_for_their_reasons() {
        let (there, back) = ((9, 1), (1, 9));
        type Case<'a> = (&'a str, Vec<((u8, u8), u16, u64)>, Vec<&'a str>);
        let cases: Vec<Case<'_>> = vec![
            ("both directions, forced", vec![(there, 0, 0), (back, 0, 5)], vec!["9 1/1 0-5 4"]),
            ("idle, then again", vec![(there, 0, 0), (there, 0, 15_000)], vec!["9 1/0 0-0 1", "9 1/0 15000-15000 4"]),
            ("answer seen first", vec![(back, SYN | ACK, 0), (there, ACK, 1)], vec!["9 1/1 0-1 4"]),
            ("reset", vec![(there, SYN, 0), (back, RST | ACK, 1), (there, SYN, 2)], vec!["9 1/1 0-1 3", "9 1/0 2-2 4"]),
            (
                "both finish, the last acknowledgement belongs to it",
                vec![(there, FIN | ACK, 0), (back, FIN | ACK, 10), (there, ACK, 20), ((7, 8), 0, 2000)],
                vec!["9 2/1 0-20 3", "7 1/0 2000-2000 4"],
            ),
            (
                "active timeout keeps the direction",
                (0..=7).map(|n| (if n < 6 { there } else { back }, 0, n * 10_000)).collect(),
                vec!["9 6/0 0-50000 2", "9 0/2 60000-70000 4"],
            ),
            (
                "of two timeouts the first gives the reason",
                (0..=4).map(|n| (there, 0, n * 11_500)).chain([((7, 8), 0, 70_000)]).collect(),
                vec!["9 5/0 0-46000 2", "7 1/0 70000-70000 4"],
            ),
            ("time goes back", vec![(there, 0, 500), (back, 0, 400)], vec!["9 1/1 400-500 4"]),
        ];
        for (name, packets, expected) in cases {
            let end_ms = packets.last().unwrap().2;
            assert_eq!(run(&mut cache(16), &packets, end_ms), expected, "{name}");
        }
    }

    #[test]
    fn a_full_cache_lets_the_longest_idle_go() {
        let packets = [((1, 9), 0, 0), ((2, 9), 0, 1), ((1, 9), 0, 2), ((3, 9), 0, 3)];
        let records = run(&mut cache(2), &packets, 3);
        assert_eq!(records, ["2 1/0 1-1 5", "1 2/0 0-2 4", "3 1/0 3-3 4"]);
    }

    #[test]
    fn active_timeouts_fire_without_packets() {
        let mut cache = cache(4);
        let mut records = Vec::new();
        let mut time_ms = 0;
        while time_ms < 55_000 {
            cache.observe(&[(packet((1, 2), 0), time_ms)], &mut |r| records.push(r));
            time_ms += 10_000;
        }
        cache.expire(60_000, 1, &mut |r| records.push(r));
        assert_eq!(records.iter().map(|r| (r.end_reason, r.forward.packets)).collect::<Vec<_>>(), [(2, 6)]);
        cache.expire(65_000, 1, &mut |r| records.push(r));
        assert_eq!((records.len(), cache.live()), (1, 0), "an empty rest is no record");
    }

    proptest! {
        /// Whatever comes, packets and octets in equal those out, and expiring more often changes no record.
        #[test]
        fn packets_are_conserved_and_expiry_does_not_matter(
            packets in proptest::collection::vec(((0u8..6, 0u8..6), 0u16..64, 0u64..20_000), 1..300),
        ) {
            let mut time_ms = 0;
            let mut totals = (0, 0);
            let mut outcomes = [Vec::new(), Vec::new()];
            let mut caches = [cache(64), cache(64)];
            for (hosts, flags, step) in &packets {
                time_ms += step / 10;
                let seen = packet(*hosts, *flags);
                totals.0 += 1;
                totals.1 += u64::from(seen.octets);
                for (often, cache) in caches.iter_mut().enumerate() {
                    cache.observe(&[(seen, time_ms)], &mut |r| outcomes[often].push(r));
                    cache.expire(time_ms, often * 100, &mut |r| outcomes[often].push(r));
                }
            }
            for (cache, records) in caches.iter_mut().zip(&mut outcomes) {
                cache.expire(time_ms, usize::MAX, &mut |r| records.push(r));
                cache.flush(&mut |r| records.push(r));
                let sum = |value: fn(&Counters) -> u64| records.iter().map(|r| value(&r.forward) + value(&r.reverse)).sum::<u64>();
                prop_assert_eq!((sum(|c| c.packets), sum(|c| c.octets)), totals);
                prop_assert_eq!(cache.live(), 0);
            }
            let sorted = outcomes.map(|records| {
                let rows = records.iter().map(|r| { let mut row = String::new(); r.write_csv(&mut row); row });
                rows.fold(BTreeMap::new(), |mut counts: BTreeMap<String, u32>, row| { *counts.entry(row).or_default() += 1; counts })
            });
            prop_assert_eq!(&sorted[0], &sorted[1]);
        }

        /// A cache that is too small loses nothing either.
        #[test]
        fn a_full_cache_conserves_packets(hosts in proptest::collection::vec((0u8..30, 0u8..30), 1..200), flows_max in 1usize..5) {
            let mut cache = cache(flows_max);
            let mut out = 0;
            for (time_ms, hosts) in hosts.iter().enumerate() {
                cache.observe(&[(packet(*hosts, 0), time_ms as u64)], &mut |r| out += r.forward.packets + r.reverse.packets);
                prop_assert!(cache.live() <= flows_max);
            }
            prop_assert_eq!(out + cache.packets(), hosts.len() as u64);
        }
    }
}
