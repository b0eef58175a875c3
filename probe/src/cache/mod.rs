//! The flow cache of one Metering Process: fixed capacity, one writer, no lock, no allocation after it was made.
//!
//! Records depend on a flow's own packets and the timeouts alone, not on when `expire` runs: a packet that comes after
//! its flow's timeout ends the flow first. So a file gives the same records with any number of workers.
//!
//! Packets come in batches. Where the flows do not fit into the core's own cache, a batch is hashed and its groups of tags
//! prefetched, then tags are matched and the flows' lines prefetched, then the full keys are compared and the counters updated:
//! so one wait for memory is shared by the batch.
//!
//! Timeouts are a wheel without lists: each slot has an octet that says in which tick its flow is to be looked at, and a hand
//! goes over all groups once a tick, sixteen slots at a time. A packet moves nothing; a flow that is looked at too early is
//! armed again.

pub mod measure;
mod table;

use crate::sys::prefetch;
use measure::{Measure, More};
use nagare_wire::flow::{Counters, Direction, FlowEndReason, FlowRecord, Origin};
use nagare_wire::observation::{ADDRESS_BITS, CompactKey, KIND_PLAIN, KIND_WIDE_IPV6, Observation, Wide, WideKey};
use table::{ALL, Cold, Group, Hot, Outer, Pages, SLOTS, Slot};

/// A conversation that has ended (FIN or RST) waits this long for its last acknowledgements.
pub const LINGER_US: u64 = 1_000_000;
/// A tick of the wheel is 2^18 microseconds: 262 milliseconds.
const TICK_SHIFT: u32 = 18;
/// How far ahead a flow is armed at most; it is armed again when that has passed.
const HORIZON_TICKS: u64 = 100;
/// Packets of which the waits for memory overlap.
const BATCH: usize = 64;
/// Flows whose lines a core's own cache holds: up to here prefetching costs more than it brings.
const RESIDENT_FLOWS: usize = 4096;
/// Of 1000 slots, as many may hold flows: beyond, groups that are full would send flows away early.
const LOAD_PERMILLE: usize = 850;
/// The hand asks for lines so many groups before it needs them.
const LOOK_AHEAD_GROUPS: usize = 8;
/// A direction's packets are exported before their counter overflows.
const PACKETS_MAX: u32 = u32::MAX - u16::MAX as u32;

const FIN: u16 = 0x01;
const SYN: u16 = 0x02;
const RST: u16 = 0x04;
const ACK: u16 = 0x10;
const TCP: u8 = 6;

/// Bits of [`Hot::state`]: the initiator is the higher end.
const INITIATOR_HIGHER: u8 = 0x01;
/// The conversation ended and lingers.
const CLOSING: u8 = 0x02;
/// No packet came since the last part was exported.
const EMPTY: u8 = 0x04;
/// TCP of which nothing was seen but SYNs of one direction.
const UNANSWERED: u8 = 0x08;
/// The flow lives in its second group.
const AWAY: u8 = 0x10;
/// A packet of such a flow does not take the short way.
const SPECIAL: u8 = CLOSING | EMPTY | UNANSWERED;

/// When flows end, how many there may be, and what is kept of them.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// A flow without packets for this long ends, milliseconds.
    pub idle_timeout_ms: u64,
    /// A flow that lasts longer is exported in parts of this length, milliseconds.
    pub active_timeout_ms: u64,
    /// A TCP flow of which only SYNs of one side were seen ends after this, milliseconds.
    pub unanswered_timeout_ms: u64,
    /// Flows held at most; 1 at least.
    pub flows_max: usize,
    /// Keep [`FlowRecord::origin`] and [`FlowRecord::measured`].
    pub measure: bool,
    /// Keep the addresses of the packet around a tunnelled one.
    pub outer: bool,
}

/// A flow cache that measures as much as its limits ask for.
pub enum FlowCache {
    /// Counters alone: a line a flow.
    Basic(Box<Cache<()>>),
    /// Everything: two lines a flow, side by side.
    Full(Box<Cache<Measure>>),
}

/// Does the same with the cache of either kind.
macro_rules! either {
    ($of:expr, $cache:ident => $does:expr) => {
        match $of {
            FlowCache::Basic($cache) => $does,
            FlowCache::Full($cache) => $does,
        }
    };
}

impl FlowCache {
    /// Reserves all of the cache's memory. The hash is keyed at random: a sender cannot aim flows at one group.
    pub fn new(limits: CacheLimits) -> FlowCache {
        let random = ahash::RandomState::new();
        FlowCache::with_seeds(limits, [0u8, 1, 2, 3].map(|n| random.hash_one(n)))
    }

    /// A cache whose hash is known, for tests.
    fn with_seeds(limits: CacheLimits, seeds: [u64; 4]) -> FlowCache {
        match limits.measure {
            true => FlowCache::Full(Box::new(Cache::new(limits, seeds))),
            false => FlowCache::Basic(Box::new(Cache::new(limits, seeds))),
        }
    }

    /// Memory that a cache with such limits takes, bytes.
    pub fn memory_bytes(limits: &CacheLimits) -> usize {
        match limits.measure {
            true => Cache::<Measure>::memory_bytes(limits),
            false => Cache::<()>::memory_bytes(limits),
        }
    }

    /// Flows held.
    pub fn live(&self) -> usize {
        either!(self, cache => cache.live)
    }

    /// Packets counted that no record has carried away yet.
    pub fn packets(&self) -> u64 {
        either!(self, cache => cache.packets)
    }

    /// Counts packets and hands over the records of flows that they end. The keys of the batch are completed in place.
    pub fn observe(&mut self, batch: &mut [Observation], emit: &mut impl FnMut(FlowRecord)) {
        either!(self, cache => cache.observe(batch, emit))
    }

    /// Hands over records of flows that are due at `now_us`; looks at `budget` flows at most. The hand keeps pace with the time: each
    /// call passes as many groups as the time since the last one asks for. Says whether it did, or is behind and would go on.
    pub fn expire(&mut self, now_us: u64, budget: usize, emit: &mut impl FnMut(FlowRecord)) -> bool {
        either!(self, cache => cache.expire(now_us, budget, emit))
    }

    /// Hands over the records of all flows that are due at `now_us`.
    pub fn expire_all(&mut self, now_us: u64, emit: &mut impl FnMut(FlowRecord)) {
        either!(self, cache => cache.expire_all(now_us, emit))
    }

    /// Ends all flows, as when the Metering Process stops.
    pub fn flush(&mut self, emit: &mut impl FnMut(FlowRecord)) {
        either!(self, cache => cache.flush(emit))
    }
}

/// Flows in a table that is reserved at the start; `M` is what is measured beside the counters.
pub struct Cache<M: More> {
    flows_max: usize,
    keeps_outer: bool,
    timeouts: Timeouts,
    seeds: [u64; 4],
    groups: Pages<Group>,
    slots: Pages<Slot<M>>,
    cold: Pages<Cold>,
    /// Empty unless asked for.
    outers: Pages<Outer>,
    live: usize,
    packets: u64,
    wheel: Wheel,
    hashes: [u64; BATCH],
    candidates: [usize; BATCH],
}

/// The timeouts of [`CacheLimits`] in microseconds.
#[derive(Clone, Copy)]
struct Timeouts {
    idle_us: u64,
    active_us: u64,
    unanswered_us: u64,
}

impl Timeouts {
    fn of(limits: &CacheLimits) -> Timeouts {
        let us = |ms: u64| ms.saturating_mul(1000);
        Timeouts {
            idle_us: us(limits.idle_timeout_ms),
            active_us: us(limits.active_timeout_ms),
            unanswered_us: us(limits.unanswered_timeout_ms.min(limits.idle_timeout_ms)),
        }
    }
}

/// The hand that goes over the groups.
#[derive(Clone, Copy, Default)]
struct Wheel {
    /// The next group to be looked at.
    hand: usize,
    /// The time up to which the hand has kept pace.
    reached_us: u64,
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
const NONE: usize = usize::MAX;

fn tick(time_us: u64) -> u64 {
    time_us >> TICK_SHIFT
}

/// A multiplication to 128 bits, folded: each bit of the result depends on all bits of both factors.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

fn group_count(flows_max: usize) -> usize {
    (flows_max * 1000).div_ceil(SLOTS * LOAD_PERMILLE).max(1)
}

impl<M: More> Cache<M> {
    fn new(limits: CacheLimits, seeds: [u64; 4]) -> Cache<M> {
        let flows_max = limits.flows_max.clamp(1, u32::MAX as usize / 2);
        let groups = group_count(flows_max);
        let slots = groups * SLOTS;
        Cache {
            flows_max,
            keeps_outer: limits.outer,
            timeouts: Timeouts::of(&limits),
            seeds,
            groups: Pages::new(groups),
            slots: Pages::new(slots),
            cold: Pages::new(slots),
            outers: Pages::new(if limits.outer { slots } else { 0 }),
            live: 0,
            packets: 0,
            wheel: Wheel::default(),
            hashes: [0; BATCH],
            candidates: [NONE; BATCH],
        }
    }

    fn memory_bytes(limits: &CacheLimits) -> usize {
        let groups = group_count(limits.flows_max);
        let slots = groups * SLOTS;
        Pages::<Group>::bytes(groups)
            + Pages::<Slot<M>>::bytes(slots)
            + Pages::<Cold>::bytes(slots)
            + Pages::<Outer>::bytes(if limits.outer { slots } else { 0 })
    }

    fn observe(&mut self, batch: &mut [Observation], emit: &mut impl FnMut(FlowRecord)) {
        self.packets += batch.iter().map(|packet| u64::from(packet.packets)).sum::<u64>();
        if self.live <= RESIDENT_FLOWS {
            for packet in batch {
                let hash = self.complete(packet);
                let slot = self.find(packet, hash);
                self.count(packet, hash, slot, emit);
            }
            return;
        }
        for batch in batch.chunks_mut(BATCH) {
            self.fetch_groups(batch);
            self.fetch_flows(batch);
            for (index, packet) in batch.iter().enumerate() {
                let (hash, slot) = (self.hashes[index], self.candidates[index]);
                // An earlier packet of the batch may have begun the flow, or taken its place.
                let slot = if slot != NONE && self.is_of(slot, packet) { slot } else { self.find(packet, hash) };
                self.count(packet, hash, slot, emit);
            }
        }
    }

    fn fetch_groups(&mut self, batch: &mut [Observation]) {
        for (index, packet) in batch.iter_mut().enumerate() {
            let hash = self.complete(packet);
            self.hashes[index] = hash;
            prefetch(&self.groups[self.first_group(hash)]);
        }
    }

    fn fetch_flows(&mut self, batch: &[Observation]) {
        for (index, packet) in batch.iter().enumerate() {
            let hash = self.hashes[index];
            self.candidates[index] = self.candidate(hash);
            let slot = match self.candidates[index] {
                NONE => self.free_slot(self.first_group(hash)),
                slot => slot,
            };
            prefetch(&self.slots[slot].hot);
            if M::MEASURES {
                prefetch(&self.slots[slot].more);
            }
            if packet.key.is_wide() {
                prefetch(&self.cold[slot]);
            }
        }
    }

    /// The keyed hash of a packet's key; a wide key's digest takes the places of its addresses.
    #[inline(always)]
    fn complete(&self, packet: &mut Observation) -> u64 {
        if packet.key.kind() == KIND_PLAIN {
            return self.hash(packet.key.words);
        }
        let digest = self.digest(&packet.wide.key);
        let words = &mut packet.key.words;
        words[0] = words[0] & !ADDRESS_BITS | (digest << 16) & ADDRESS_BITS;
        words[1] = words[1] & !ADDRESS_BITS | (digest >> 16) & ADDRESS_BITS;
        self.hash(packet.key.words)
    }

    #[inline(always)]
    fn hash(&self, words: [u64; 2]) -> u64 {
        let mixed = fold(words[0] ^ self.seeds[0], words[1] ^ self.seeds[1]);
        fold(mixed ^ self.seeds[2], self.seeds[3] | 1)
    }

    /// 64 keyed bits of what [`CompactKey`] has no room for.
    fn digest(&self, key: &WideKey) -> u64 {
        let half = |octets: &[u8]| u64::from_le_bytes(octets.try_into().expect("eight octets"));
        let rest = u64::from(key.tunnel_id) << 32 | u64::from(key.customer_vlan) << 16 | u64::from(key.tunnel_kind);
        let mut digest = self.seeds[3];
        for address in &key.addresses {
            digest =
                fold(half(&address[..8]) ^ digest, half(&address[8..]) ^ self.seeds[1]).wrapping_add(self.seeds[2]);
        }
        fold(rest ^ digest, self.seeds[0] | 1)
    }

    #[inline(always)]
    fn first_group(&self, hash: u64) -> usize {
        ((u64::from(hash as u32) * self.groups.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn second_group(&self, hash: u64) -> usize {
        (((hash >> 32) * self.groups.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn tag(hash: u64) -> u8 {
        // The group comes from the high bits of the half; these are others.
        hash as u8 | 0x80
    }

    /// The first slot that bears the hash's tag: most often the flow's own, if it has one.
    #[inline(always)]
    fn candidate(&self, hash: u64) -> usize {
        let (first, tag) = (self.first_group(hash), Self::tag(hash));
        let matching = self.groups[first].matching(tag);
        if matching != 0 {
            return first * SLOTS + matching.trailing_zeros() as usize;
        }
        if self.groups[first].overflowed() != 0 {
            let second = self.second_group(hash);
            let matching = self.groups[second].matching(tag);
            if matching != 0 {
                return second * SLOTS + matching.trailing_zeros() as usize;
            }
        }
        NONE
    }

    /// The slot of a packet's flow.
    #[inline(always)]
    fn find(&self, packet: &Observation, hash: u64) -> usize {
        let (first, tag) = (self.first_group(hash), Self::tag(hash));
        let slot = self.find_in(first, tag, packet);
        if slot != NONE || self.groups[first].overflowed() == 0 {
            return slot;
        }
        self.find_in(self.second_group(hash), tag, packet)
    }

    #[inline(always)]
    fn find_in(&self, group: usize, tag: u8, packet: &Observation) -> usize {
        let mut matching = self.groups[group].matching(tag);
        while matching != 0 {
            let slot = group * SLOTS + matching.trailing_zeros() as usize;
            if self.is_of(slot, packet) {
                return slot;
            }
            matching &= matching - 1;
        }
        NONE
    }

    /// Whether a slot holds the packet's flow: the full key is compared.
    #[inline(always)]
    fn is_of(&self, slot: usize, packet: &Observation) -> bool {
        self.slots[slot].hot.words == packet.key.words
            && (!packet.key.is_wide() || self.cold[slot].key == packet.wide.key)
    }

    #[inline(always)]
    fn count(&mut self, packet: &Observation, hash: u64, slot: usize, emit: &mut impl FnMut(FlowRecord)) {
        if slot != NONE {
            let Slot { hot, more } = &mut self.slots[slot];
            let d = packet.direction as usize;
            // Wrapping: a packet from before the last one has a huge age, and goes the long way.
            let plain = hot.state & SPECIAL == 0
                && packet.time_us.wrapping_sub(hot.last_us) < self.timeouts.idle_us
                && packet.time_us.wrapping_sub(hot.first_us) < self.timeouts.active_us
                && packet.tcp_flags & !hot.tcp_flags[d] == 0
                && hot.packets[d] != 0
                && hot.packets[d] < PACKETS_MAX;
            if plain {
                more.take(hot, packet);
                hot.packets[d] += packet.packets;
                hot.octets[d] += u64::from(packet.octets);
                hot.last_us = packet.time_us;
                return;
            }
        }
        self.count_slowly(packet, hash, slot, emit);
    }

    /// The long way: flows that begin, end, or change what they are.
    #[inline(never)]
    fn count_slowly(&mut self, packet: &Observation, hash: u64, slot: usize, emit: &mut impl FnMut(FlowRecord)) {
        let slot = match slot {
            NONE => self.begin(packet, hash, emit),
            slot => match self.due_before(slot, packet) {
                Some(Due::Part) => {
                    self.end_part(slot, emit);
                    slot
                }
                Some(Due::End(reason)) => {
                    self.end(slot, reason, emit);
                    self.begin(packet, hash, emit)
                }
                None => slot,
            },
        };
        let Slot { hot, more } = &mut self.slots[slot];
        more.take(hot, packet);
        let (before, d) = (hot.state, packet.direction as usize);
        if hot.state & EMPTY != 0 {
            (hot.first_us, hot.last_us, hot.tos) = (packet.time_us, packet.time_us, packet.tos);
            hot.state &= !EMPTY;
        } else {
            hot.first_us = hot.first_us.min(packet.time_us);
            hot.last_us = hot.last_us.max(packet.time_us);
        }
        if hot.packets[d] == 0 && hot.interfaces >> (4 * d) & 0x0f == 0 {
            hot.interfaces |= (packet.interface & 0x0f) << (4 * d);
        }
        hot.packets[d] += packet.packets;
        hot.octets[d] += u64::from(packet.octets);
        hot.tcp_flags[d] |= packet.tcp_flags;
        self.settle(slot, before);
    }

    /// The state that follows from what was seen, `before` being the one before this packet; a flow whose timeouts have become
    /// others is armed again, a new one for the first time.
    fn settle(&mut self, slot: usize, before: u8) {
        let hot = &mut self.slots[slot].hot;
        if (CompactKey { words: hot.words }).protocol() == TCP {
            let seen = |d: usize| hot.packets[d] > 0;
            let finished = |d: usize| !seen(d) || hot.tcp_flags[d] & FIN != 0;
            let reset = (hot.tcp_flags[0] | hot.tcp_flags[1]) & RST != 0;
            if reset || finished(0) && finished(1) {
                hot.state |= CLOSING;
            }
            if hot.state & UNANSWERED != 0 && (!only_opens(hot.tcp_flags[0] | hot.tcp_flags[1]) || seen(0) && seen(1)) {
                hot.state &= !UNANSWERED;
            }
        }
        if hot.state != before || before & SPECIAL != 0 {
            self.arm(slot, self.slots[slot].hot.last_us.max(self.wheel.reached_us));
        }
    }

    /// Sets the tick in which the flow is to be looked at, which is not before `now_us`.
    fn arm(&mut self, slot: usize, now_us: u64) {
        let (ends_us, part_us, _) = self.timeouts(&self.slots[slot].hot);
        let now = tick(now_us);
        let due = (tick(ends_us.min(part_us)) + 1).clamp(now, now + HORIZON_TICKS);
        self.groups[slot / SLOTS].set_due(slot % SLOTS, due as u8);
    }

    /// When the flow ends, when its next part is due, and why it ends.
    fn timeouts(&self, hot: &Hot) -> (u64, u64, FlowEndReason) {
        let (timeout_us, reason) = match hot.state {
            state if state & CLOSING != 0 => (LINGER_US, FlowEndReason::EndOfFlow),
            state if state & UNANSWERED != 0 => (self.timeouts.unanswered_us, FlowEndReason::IdleTimeout),
            _ => (self.timeouts.idle_us, FlowEndReason::IdleTimeout),
        };
        let part_us = match hot.state & EMPTY {
            0 => hot.first_us.saturating_add(self.timeouts.active_us),
            _ => u64::MAX,
        };
        (hot.last_us.saturating_add(timeout_us), part_us, reason)
    }

    /// What is due of a flow at a time. Where both of its timeouts have passed, the record bears the one that came first.
    fn due(&self, hot: &Hot, now_us: u64) -> Option<Due> {
        let (ends_us, part_us, reason) = self.timeouts(hot);
        if ends_us <= now_us {
            Some(Due::End(if part_us < ends_us { FlowEndReason::ActiveTimeout } else { reason }))
        } else {
            (part_us <= now_us).then_some(Due::Part)
        }
    }

    /// What is due of the flow before this packet: its timeouts, its end where a new conversation begins, and a part where
    /// a counter would overflow.
    fn due_before(&self, slot: usize, packet: &Observation) -> Option<Due> {
        let hot = &self.slots[slot].hot;
        let opens = packet.key.protocol() == TCP && packet.tcp_flags & (SYN | ACK) == SYN;
        let begins_anew = opens && hot.state & CLOSING != 0;
        match self.due(hot, packet.time_us) {
            Some(Due::Part) if begins_anew => Some(Due::End(FlowEndReason::ActiveTimeout)),
            None if begins_anew => Some(Due::End(FlowEndReason::EndOfFlow)),
            None if hot.packets[packet.direction as usize] >= PACKETS_MAX => Some(Due::Part),
            due => due,
        }
    }

    fn expire(&mut self, now_us: u64, budget: usize, emit: &mut impl FnMut(FlowRecord)) -> bool {
        let count = self.groups.len() as u64;
        if tick(now_us.abs_diff(self.wheel.reached_us)) >= HORIZON_TICKS {
            self.leap(now_us);
        }
        // A clock that goes back a little is waited for.
        let passed_us = now_us.saturating_sub(self.wheel.reached_us).min(1 << TICK_SHIFT);
        let steps = (passed_us * count) >> TICK_SHIFT;
        if steps == 0 {
            return true;
        }
        let taken = self.advance(steps as usize, now_us, budget, emit) as u64;
        self.wheel.reached_us = match taken == count {
            true => now_us,
            false => self.wheel.reached_us + (taken << TICK_SHIFT) / count,
        };
        taken == steps
    }

    fn expire_all(&mut self, now_us: u64, emit: &mut impl FnMut(FlowRecord)) {
        self.leap(now_us);
        self.advance(self.groups.len(), now_us, usize::MAX, emit);
        self.wheel.reached_us = now_us;
    }

    /// The clock has leapt, and dues say nothing about it: all flows are to be looked at in the turn that begins.
    fn leap(&mut self, now_us: u64) {
        let now = tick(now_us) as u8;
        self.groups.iter_mut().for_each(|group| group.set_all_due(now));
        self.wheel.reached_us = now_us.saturating_sub(1 << TICK_SHIFT);
    }

    /// Moves the hand on by at most `steps` groups, until `budget` flows were looked at; says how many groups it was.
    fn advance(&mut self, steps: usize, now_us: u64, mut budget: usize, emit: &mut impl FnMut(FlowRecord)) -> usize {
        let now = tick(now_us) as u8;
        for step in 0..steps {
            let group = self.wheel.hand;
            self.fetch_ahead(group, now);
            let mut due = self.groups[group].due(now);
            while due != 0 {
                if budget == 0 {
                    return step;
                }
                budget -= 1;
                self.look_at(group * SLOTS + due.trailing_zeros() as usize, now_us, emit);
                due &= due - 1;
            }
            self.wheel.hand = if group + 1 == self.groups.len() { 0 } else { group + 1 };
        }
        steps
    }

    /// Asks for the lines that the hand will soon look at.
    #[inline(always)]
    fn fetch_ahead(&self, group: usize, now: u8) {
        let ahead = group + LOOK_AHEAD_GROUPS;
        if ahead < self.groups.len() {
            let due = self.groups[ahead].due(now);
            if due != 0 {
                self.fetch_due(ahead, due);
            }
        }
    }

    fn fetch_due(&self, group: usize, mut due: u32) {
        while due != 0 {
            prefetch(&self.slots[group * SLOTS + due.trailing_zeros() as usize].hot);
            due &= due - 1;
        }
    }

    /// Exports what is due of a flow, or arms it again.
    fn look_at(&mut self, slot: usize, now_us: u64, emit: &mut impl FnMut(FlowRecord)) {
        match self.due(&self.slots[slot].hot, now_us) {
            Some(Due::Part) => self.end_part(slot, emit),
            Some(Due::End(reason)) => self.end(slot, reason, emit),
            None => self.arm(slot, now_us),
        }
    }

    fn flush(&mut self, emit: &mut impl FnMut(FlowRecord)) {
        for group in 0..self.groups.len() {
            let mut occupied = self.groups[group].occupied();
            while occupied != 0 {
                let slot = group * SLOTS + occupied.trailing_zeros() as usize;
                let closing = self.slots[slot].hot.state & CLOSING != 0;
                self.end(slot, if closing { FlowEndReason::EndOfFlow } else { FlowEndReason::ForcedEnd }, emit);
                occupied &= occupied - 1;
            }
        }
    }

    /// Takes a slot for a new flow; where there is none, the flow near that was idle longest gives way.
    fn begin(&mut self, packet: &Observation, hash: u64, emit: &mut impl FnMut(FlowRecord)) -> usize {
        if self.live >= self.flows_max {
            self.evict(hash, emit);
        }
        let (first, second) = (self.first_group(hash), self.second_group(hash));
        let group = match self.choose(first, second) {
            Some(group) => group,
            None => {
                self.evict(hash, emit);
                self.choose(first, second).expect("the victim was in one of the two")
            }
        };
        let slot = self.free_slot(group);
        self.write(slot, packet);
        self.groups[group].take(slot % SLOTS, Self::tag(hash), 0);
        if group != first {
            self.groups[first].overflow(true);
            self.slots[slot].hot.state |= AWAY;
        }
        self.live += 1;
        slot
    }

    /// The group for a new flow: its first one while that has room to spare, else the emptier one.
    fn choose(&self, first: usize, second: usize) -> Option<usize> {
        let count = |group: usize| self.groups[group].occupied().count_ones() as usize;
        let in_first = count(first);
        if in_first < SLOTS - 2 {
            return Some(first);
        }
        let in_second = count(second);
        let group = if in_second < in_first { second } else { first };
        (count(group) < SLOTS).then_some(group)
    }

    /// The first free slot of a group; of a full one, its last.
    #[inline(always)]
    fn free_slot(&self, group: usize) -> usize {
        group * SLOTS + ((!self.groups[group].occupied() & ALL).trailing_zeros() as usize).min(SLOTS - 1)
    }

    fn write(&mut self, slot: usize, packet: &Observation) {
        let opens = packet.key.protocol() == TCP && only_opens(packet.tcp_flags);
        let initiator = match initiator(packet) {
            Direction::Forward => 0,
            Direction::Reverse => INITIATOR_HIGHER,
        };
        self.slots[slot].hot = Hot {
            words: packet.key.words,
            first_us: packet.time_us,
            last_us: packet.time_us,
            octets: [0; 2],
            packets: [0; 2],
            tcp_flags: [0; 2],
            tos: packet.tos,
            state: EMPTY | initiator | if opens { UNANSWERED } else { 0 },
            interfaces: 0,
            stage: 0,
        };
        self.slots[slot].more = M::begin(packet);
        if packet.key.is_wide() || M::MEASURES {
            self.write_cold(slot, packet);
        }
        if packet.key.is_wide() && self.keeps_outer {
            self.outers[slot] = Outer { addresses: packet.wide.outer };
        }
    }

    fn write_cold(&mut self, slot: usize, packet: &Observation) {
        let (details, wide) = (&packet.details, packet.key.is_wide());
        let low_24 = |value: u32| [(value >> 16) as u8, (value >> 8) as u8, value as u8];
        self.cold[slot] = Cold {
            key: if wide { packet.wide.key } else { WideKey::default() },
            tunnel_id: if wide { packet.wide.tunnel_id } else { 0 },
            flow_label: low_24(if wide { packet.wide.flow_label } else { 0 }),
            mpls_top: low_24(details.mpls_top),
            source_mac: details.source_mac,
            destination_mac: details.destination_mac,
        };
    }

    /// Ends the flow of the packet's groups that was idle longest; where both are empty, one of the next group that is not.
    fn evict(&mut self, hash: u64, emit: &mut impl FnMut(FlowRecord)) {
        let mut near = [self.first_group(hash), self.second_group(hash)];
        while near.iter().all(|group| self.groups[*group].occupied() == 0) {
            near = near.map(|group| (group + 1) % self.groups.len());
        }
        let mut oldest = (u64::MAX, NONE);
        for group in near {
            let mut occupied = self.groups[group].occupied();
            self.fetch_due(group, occupied);
            while occupied != 0 {
                let slot = group * SLOTS + occupied.trailing_zeros() as usize;
                oldest = oldest.min((self.slots[slot].hot.last_us, slot));
                occupied &= occupied - 1;
            }
        }
        self.end(oldest.1, FlowEndReason::LackOfResources, emit);
    }

    /// Exports what the flow has so far; the flow stays, so that its direction does (RFC 5103, 5.3).
    fn end_part(&mut self, slot: usize, emit: &mut impl FnMut(FlowRecord)) {
        emit(self.record(slot, FlowEndReason::ActiveTimeout));
        let Slot { hot, more } = &mut self.slots[slot];
        self.packets -= u64::from(hot.packets[0]) + u64::from(hot.packets[1]);
        (hot.packets, hot.octets, hot.tcp_flags) = ([0; 2], [0; 2], [0; 2]);
        hot.state |= EMPTY;
        more.begin_part(hot.stage);
        let now_us = hot.last_us.max(self.wheel.reached_us);
        self.arm(slot, now_us);
    }

    fn end(&mut self, slot: usize, reason: FlowEndReason, emit: &mut impl FnMut(FlowRecord)) {
        if self.slots[slot].hot.state & EMPTY == 0 {
            emit(self.record(slot, reason));
        }
        let hot = &mut self.slots[slot].hot;
        self.packets -= u64::from(hot.packets[0]) + u64::from(hot.packets[1]);
        let (words, state) = (hot.words, hot.state);
        hot.words = [0; 2];
        self.groups[slot / SLOTS].free(slot % SLOTS);
        if state & AWAY != 0 {
            let first = self.first_group(self.hash(words));
            self.groups[first].overflow(false);
        }
        self.live -= 1;
    }

    fn record(&self, slot: usize, reason: FlowEndReason) -> FlowRecord {
        let hot = &self.slots[slot].hot;
        let key = CompactKey { words: hot.words };
        let initiator = initiator_of(hot.state);
        let wide = if key.is_wide() { self.cold[slot].key } else { WideKey::default() };
        let counters = |d: usize| Counters {
            packets: u64::from(hot.packets[d]),
            octets: hot.octets[d],
            tcp_flags: hot.tcp_flags[d],
        };
        let forward = initiator as usize;
        let mut record = FlowRecord {
            key: key.expand(&wide, initiator),
            start_us: hot.first_us,
            end_us: hot.last_us,
            forward: counters(forward),
            reverse: counters(1 - forward),
            tos: hot.tos,
            end_reason: reason as u8,
            ..FlowRecord::default()
        };
        if M::MEASURES {
            record.origin = self.origin(slot, initiator);
            record.measured = self.slots[slot].more.measured(hot);
        } else if wide.tunnel_kind != 0 {
            record.origin.outer = self.outer(slot, key);
            record.origin.tunnel_id = self.cold[slot].tunnel_id;
        }
        record
    }

    fn origin(&self, slot: usize, initiator: Direction) -> Origin {
        let (hot, cold) = (&self.slots[slot].hot, &self.cold[slot]);
        let key = CompactKey { words: hot.words };
        let interface = |d: usize| u16::from(hot.interfaces >> (4 * d) & 0x0f);
        let number = |octets: [u8; 3]| u32::from_be_bytes([0, octets[0], octets[1], octets[2]]);
        Origin {
            interface: interface(initiator as usize),
            reverse_interface: interface(1 - initiator as usize),
            source_mac: cold.source_mac,
            destination_mac: cold.destination_mac,
            mpls_top: number(cold.mpls_top),
            flow_label: if key.kind() == KIND_WIDE_IPV6 { number(cold.flow_label) } else { 0 },
            icmp_type_code: self.slots[slot].more.icmp_type_code(hot),
            outer: self.outer(slot, key),
            tunnel_id: cold.tunnel_id,
        }
    }

    /// The addresses of the packet around; its version follows from which octets are used.
    fn outer(&self, slot: usize, key: CompactKey) -> Option<(std::net::IpAddr, std::net::IpAddr)> {
        if !self.keeps_outer || !key.is_wide() || self.cold[slot].key.tunnel_kind == 0 {
            return None;
        }
        let addresses = self.outers[slot].addresses;
        let is_ipv4 = addresses.iter().all(|address| address[4..] == [0; 12]);
        Wide { outer: addresses, outer_version: if is_ipv4 { 4 } else { 6 }, ..Wide::default() }.outer()
    }
}

/// The yardstick of benchmarks: million random read-modify-writes of one 64-byte line a second, in the cache's own kind of
/// memory, prefetched in batches of 32.
pub fn memory_limit(bytes: usize, lasting: std::time::Duration) -> f64 {
    let mut lines: Pages<Hot> = Pages::new(bytes / size_of::<Hot>());
    let (mut state, mut touched) = (0x9e37_79b9_7f4a_7c15u64, 0u64);
    let began = std::time::Instant::now();
    while began.elapsed() < lasting {
        for _ in 0..1000 {
            let mut chosen = [0; 32];
            for line in &mut chosen {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *line = (((state >> 32) * lines.len() as u64) >> 32) as usize;
                prefetch(&lines[*line]);
            }
            chosen.iter().for_each(|line| lines[*line].octets[0] += 64);
        }
        touched += 1000 * 32;
    }
    touched as f64 / began.elapsed().as_secs_f64() / 1e6
}

/// Whether all that was seen is a SYN: whatever other bits it bears, as those of ECN, nobody has answered or gone on.
fn only_opens(tcp_flags: u16) -> bool {
    tcp_flags & (SYN | ACK | FIN | RST) == SYN
}

fn initiator_of(state: u8) -> Direction {
    if state & INITIATOR_HIGHER == 0 { Direction::Forward } else { Direction::Reverse }
}

/// The initiator's direction: the first packet's, unless that is the answer to a SYN that was not seen.
fn initiator(packet: &Observation) -> Direction {
    let answers = packet.key.protocol() == TCP && packet.tcp_flags & (SYN | ACK) == SYN | ACK;
    match (packet.direction, answers) {
        (direction, false) => direction,
        (Direction::Forward, true) => Direction::Reverse,
        (Direction::Reverse, true) => Direction::Forward,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nagare_wire::fragment::FragmentTable;
    use nagare_wire::observation::{Captured, Observer};
    use nagare_wire::packet::{LinkType, Tunnels};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A TCP packet from one host to another, as decoded from its octets.
    fn packet(hosts: (u8, u8), tcp_flags: u16, time_ms: u64) -> Observation {
        let mut bytes = [0u8; 54];
        bytes[12..14].copy_from_slice(&[8, 0]);
        bytes[14] = 0x45;
        bytes[16..18].copy_from_slice(&(40 + u16::from(hosts.0)).to_be_bytes());
        bytes[23] = TCP;
        bytes[26..34].copy_from_slice(&[10, 0, 0, hosts.0, 10, 0, 0, hosts.1]);
        bytes[34..36].copy_from_slice(&(1000 + u16::from(hosts.0)).to_be_bytes());
        bytes[36..38].copy_from_slice(&(1000 + u16::from(hosts.1)).to_be_bytes());
        bytes[46..48].copy_from_slice(&(0x5000 | tcp_flags).to_be_bytes());
        let mut out = Observation::default();
        let captured = Captured {
            link: LinkType::Ethernet,
            bytes: &bytes,
            wire_length: 60,
            time_ns: time_ms * 1_000_000,
            interface: 1,
            packets: 1,
        };
        Observer::new(Tunnels::Outer, true, FragmentTable::new(4, 1)).observe(&captured, &mut out).unwrap();
        out
    }

    fn limits(flows_max: usize) -> CacheLimits {
        CacheLimits {
            idle_timeout_ms: 15_000,
            active_timeout_ms: 60_000,
            unanswered_timeout_ms: 15_000,
            flows_max,
            measure: false,
            outer: false,
        }
    }

    fn cache(flows_max: usize) -> FlowCache {
        FlowCache::new(limits(flows_max))
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
            cache.observe(&mut [packet(*hosts, *flags, *time_ms)], &mut emit);
            cache.expire(*time_ms * 1000, 8, &mut emit);
        }
        cache.expire_all(end_ms * 1000, &mut emit);
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
            cache.observe(&mut [packet((1, 2), 0, time_ms)], &mut |r| records.push(r));
            time_ms += 10_000;
        }
        for ms in 0..300 {
            cache.expire((60_000 + ms) * 1000, 1, &mut |r| records.push(r));
        }
        assert_eq!(records.iter().map(|r| (r.end_reason, r.forward.packets)).collect::<Vec<_>>(), [(2, 6)]);
        for ms in 0..300 {
            cache.expire((65_000 + ms) * 1000, 1, &mut |r| records.push(r));
        }
        assert_eq!((records.len(), cache.live()), (1, 0), "an empty rest is no record");
    }

    /// A sender who knows the program, but not the seed, makes as many flows as it likes and keeps those that meet in one
    /// group of a cache with a seed of its own. In a cache with another seed they do not meet.
    #[test]
    fn nobody_can_aim_flows_at_one_group() {
        let with_seed = |seed: u64| {
            let FlowCache::Basic(cache) = FlowCache::with_seeds(
                limits(100_000),
                [seed, seed + 1, seed + 2, seed + 3].map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            ) else {
                unreachable!("no measurements were asked for")
            };
            cache
        };
        let (his, ours) = (with_seed(1), with_seed(2));
        let words = |n: u64| [1 << 56 | 6 << 48 | n << 16, 0x0a00_0001 << 16 | 443];
        let target = his.first_group(his.hash(words(0)));
        let aimed: Vec<_> =
            (0..20_000_000).map(words).filter(|words| his.first_group(his.hash(*words)) == target).collect();
        assert!(aimed.len() > 1000, "{} flows meet in the attacker's cache", aimed.len());
        let mut load = vec![0; ours.groups.len()];
        aimed.iter().for_each(|words| load[ours.first_group(ours.hash(*words))] += 1);
        assert!(load.iter().all(|flows| *flows <= SLOTS), "{:?}", load.iter().max());
        // Flows that differ in one bit, or that count up, spread as chance would have it.
        let mut load = vec![0usize; ours.groups.len()];
        (0..80_000).map(words).for_each(|words| load[ours.first_group(ours.hash(words))] += 1);
        assert!(load.iter().all(|flows| *flows < 40), "{:?}", load.iter().max());
    }

    /// A cache that is nearly full keeps nearly all of its flows: groups that overflow find room in the second one.
    #[test]
    fn few_flows_give_way_before_the_cache_is_full() {
        let mut cache = cache(50_000);
        let mut evicted = 0;
        for n in 0..50_000u32 {
            let mut seen = packet((1, 2), ACK, 0);
            seen.key.words[0] += u64::from(n) << 16;
            cache.observe(&mut [seen], &mut |r| {
                evicted += u32::from(r.end_reason == FlowEndReason::LackOfResources as u8)
            });
        }
        assert!(evicted < 500, "{evicted} of 50000");
        assert_eq!(cache.live() + evicted as usize, 50_000);
    }

    #[test]
    fn a_flood_of_syns_ends_soon_and_answers_do_not() {
        let mut cache = FlowCache::new(CacheLimits { unanswered_timeout_ms: 2000, ..limits(64) });
        let mut records = Vec::new();
        const ECN: u16 = 0xc0;
        let packets =
            [((1, 9), SYN, 0), ((4, 9), SYN | ECN, 0), ((2, 9), SYN, 0), ((9, 2), SYN | ACK, 10), ((3, 9), ACK, 0)];
        for (hosts, flags, time_ms) in packets {
            cache.observe(&mut [packet(hosts, flags, time_ms)], &mut |r| records.push(r));
        }
        cache.expire_all(2_100_000, &mut |r| records.push(r));
        assert_eq!(
            records.iter().map(|r| (r.forward.packets, r.reverse.packets, r.end_reason)).collect::<Vec<_>>(),
            [(1, 0, 1), (1, 0, 1)]
        );
        assert_eq!(cache.live(), 2);
    }

    #[test]
    fn a_part_is_due_in_time_where_the_idle_timeout_is_longer() {
        let mut cache =
            FlowCache::new(CacheLimits { idle_timeout_ms: 300_000, active_timeout_ms: 10_000, ..limits(64) });
        let mut ends_ms = Vec::new();
        for ms in 0..40_000 {
            if ms == 0 || ms == 20_000 {
                cache.observe(&mut [packet((1, 2), ACK, ms)], &mut |_| panic!("the hand was there before"));
            }
            cache.expire(ms * 1000, 8, &mut |_| ends_ms.push(ms));
        }
        let late = |due: u64| due..due + 600; // Two ticks.
        assert!(
            ends_ms.len() == 2 && late(10_000).contains(&ends_ms[0]) && late(30_000).contains(&ends_ms[1]),
            "{ends_ms:?}"
        );
    }

    /// However small the budget, the hand comes round, also after the clock has leapt; and it says when it is behind.
    #[test]
    fn a_small_budget_is_enough_and_the_hand_says_that_it_is_behind() {
        let mut cache = cache(1000);
        for n in 0..200u8 {
            cache.observe(&mut [packet((n, 255), ACK, 0)], &mut |_| panic!("nothing ends"));
        }
        let (mut records, mut calls) = (0, 0);
        while !cache.expire(3_600_000_000, 3, &mut |_| records += 1) {
            calls += 1;
        }
        assert_eq!((records, cache.live()), (200, 0));
        assert!((66..=67).contains(&calls), "{calls}");
    }

    #[test]
    fn a_conversation_is_measured() {
        let mut cache = FlowCache::new(CacheLimits { measure: true, ..limits(64) });
        let mut step = |back: bool, flags: u16, sequence: u32, payload: u32, time_us: u64, window: u16| {
            let mut seen = packet(if back { (1, 9) } else { (9, 1) }, flags, 0);
            seen.time_us = time_us;
            (seen.details.tcp_sequence, seen.details.payload, seen.details.tcp_window) = (sequence, payload, window);
            cache.observe(&mut [seen], &mut |_| panic!("nothing ends"));
        };
        step(false, SYN, 1000, 0, 1_000_000, 100);
        step(true, SYN | ACK, 5000, 0, 1_030_000, 100);
        step(false, ACK, 1001, 0, 1_035_000, 100);
        step(false, ACK, 1001, 100, 1_040_000, 100); // the request
        step(true, ACK, 5001, 0, 1_050_000, 100);
        step(true, ACK, 5001, 500, 1_140_000, 100); // the answer, 100 ms after it
        step(true, ACK, 6001, 500, 1_141_000, 100); // one too early,
        step(true, ACK, 5501, 500, 1_141_500, 100); // which this one should have come before
        step(true, ACK, 5001, 500, 1_500_000, 100); // again, much later
        step(false, ACK, 1100, 0, 1_600_000, 0); // a keep-alive that closes the window
        let mut records = Vec::new();
        cache.flush(&mut |record| records.push(record));
        let measured = records[0].measured;
        assert_eq!(
            (measured.server_network_us, measured.client_network_us, measured.application_us),
            (30_000, 5_000, 100_000)
        );
        let of = |d: nagare_wire::flow::DirectionMeasured| {
            (d.tcp_initial_sequence, d.retransmitted, d.out_of_order, d.zero_window)
        };
        assert_eq!((of(measured.forward), of(measured.reverse)), ((1000, 0, 0, 1), (5000, 1, 1, 0)));
        assert_eq!(
            (measured.forward.length_min, measured.reverse.length_max, measured.forward.layer2_octets),
            (49, 41, 4 * 60)
        );
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
                let seen = packet(*hosts, *flags, time_ms);
                totals.0 += 1;
                totals.1 += u64::from(seen.octets);
                for (often, cache) in caches.iter_mut().enumerate() {
                    cache.observe(&mut [seen], &mut |r| outcomes[often].push(r));
                    cache.expire(time_ms * 1000, often * 100, &mut |r| outcomes[often].push(r));
                }
            }
            for (cache, records) in caches.iter_mut().zip(&mut outcomes) {
                cache.expire_all(time_ms * 1000, &mut |r| records.push(r));
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
                cache.observe(&mut [packet(*hosts, 0, time_ms as u64)], &mut |r| out += r.forward.packets + r.reverse.packets);
                prop_assert!(cache.live() <= flows_max);
            }
            prop_assert_eq!(out + cache.packets(), hosts.len() as u64);
        }
    }
}
