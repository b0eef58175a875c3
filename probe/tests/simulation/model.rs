//! A flow cache as one would write it without a thought for speed, and a run of both caches over the same packets.

use nagare_probe::cache::{CacheLimits, FlowCache, LINGER_US};
use nagare_wire::flow::{Direction, FlowEndReason, FlowKey, FlowRecord};
use nagare_wire::observation::{CompactKey, KIND_PLAIN, KIND_WIDE_IPV4, KIND_WIDE_IPV6, Observation, Wide, WideKey};
use std::collections::BTreeMap;

const FIN: u16 = 0x01;
const SYN: u16 = 0x02;
const RST: u16 = 0x04;
const ACK: u16 = 0x10;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// One thing that happens to a cache.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// A packet of a flow, so many milliseconds after the one before.
    Packet {
        /// Which flow.
        flow: u16,
        /// From the key's higher end.
        reverse: bool,
        /// TCP's control bits, for the flows that are of TCP.
        flags: u16,
        /// Its length.
        octets: u16,
        /// Since the packet before.
        after_ms: u16,
    },
    /// Packets so far are observed, and flows expired that are due, so many looked at.
    Expire {
        /// How many.
        budget: u8,
    },
    /// The clock is set, forward or back.
    Clock {
        /// So many milliseconds.
        by_ms: i32,
    },
}

/// When flows end: short, so that everything happens in a short run.
pub fn limits(flows_max: usize, measure: bool) -> CacheLimits {
    CacheLimits {
        idle_timeout_ms: 1500,
        active_timeout_ms: 6000,
        unanswered_timeout_ms: 400,
        flows_max,
        measure,
        outer: false,
    }
}

fn observation(flow: u16, reverse: bool, flags: u16, octets: u16, time_us: u64) -> Observation {
    let protocol = if flow.is_multiple_of(3) { UDP } else { TCP };
    let (kind, wide) = match flow % 7 {
        0 => (KIND_WIDE_IPV6, WideKey { addresses: [[flow as u8 & 0x7f; 16], [255; 16]], ..WideKey::default() }),
        1 => {
            let mut addresses = [[0; 16]; 2];
            (addresses[0][0], addresses[1][0]) = (10, 11);
            (KIND_WIDE_IPV4, WideKey { addresses, customer_vlan: flow >> 8, ..WideKey::default() })
        }
        _ => (KIND_PLAIN, WideKey::default()),
    };
    let head = u64::from(kind) << 56 | u64::from(protocol) << 48;
    let addresses = if kind == KIND_PLAIN { [0x0a00_0001u64 << 16, 0x0a00_0002 << 16] } else { [0; 2] };
    Observation {
        key: CompactKey { words: [head | addresses[0] | u64::from(flow), addresses[1] | 443] },
        time_us,
        octets: u32::from(octets),
        packets: 1,
        tcp_flags: if protocol == TCP { flags } else { 0 },
        tos: flags as u8,
        direction: if reverse { Direction::Reverse } else { Direction::Forward },
        interface: 1,
        wide: Wide { key: wide, ..Wide::default() },
        ..Observation::default()
    }
}

/// What is compared of a record: all that a cache of counters says.
type Row = (FlowKey, [u64; 4], [u16; 2], u64, u64, u8, u8);

fn row(record: &FlowRecord) -> Row {
    let (there, back) = (&record.forward, &record.reverse);
    let counts = [there.packets, there.octets, back.packets, back.octets];
    let flags = [there.tcp_flags, back.tcp_flags];
    (record.key, counts, flags, record.start_us, record.end_us, record.tos, record.end_reason)
}

#[derive(Clone, Copy)]
struct Flow {
    first_us: u64,
    last_us: u64,
    counts: [[u64; 2]; 2],
    flags: [u16; 2],
    tos: u8,
    initiator: Direction,
    closing: bool,
    empty: bool,
    unanswered: bool,
}

/// What is due of a flow.
enum Due {
    Part,
    End(FlowEndReason),
}

#[derive(Default)]
struct Naive {
    flows: BTreeMap<FlowKey, Flow>,
    records: Vec<Row>,
}

fn only_opens(flags: u16) -> bool {
    flags & (SYN | ACK | FIN | RST) == SYN
}

impl Flow {
    fn new(packet: &Observation, is_tcp: bool) -> Flow {
        let answers = is_tcp && packet.tcp_flags & (SYN | ACK) == SYN | ACK;
        let other = if packet.direction == Direction::Forward { Direction::Reverse } else { Direction::Forward };
        Flow {
            first_us: packet.time_us,
            last_us: packet.time_us,
            counts: [[0; 2]; 2],
            flags: [0; 2],
            tos: packet.tos,
            initiator: if answers { other } else { packet.direction },
            closing: false,
            empty: true,
            unanswered: is_tcp && only_opens(packet.tcp_flags),
        }
    }

    fn due(&self, now_us: u64, limits: &CacheLimits) -> Option<Due> {
        let (timeout_us, reason) = match (self.closing, self.unanswered) {
            (true, _) => (LINGER_US, FlowEndReason::EndOfFlow),
            (false, true) => (limits.unanswered_timeout_ms * 1000, FlowEndReason::IdleTimeout),
            (false, false) => (limits.idle_timeout_ms * 1000, FlowEndReason::IdleTimeout),
        };
        let ends_us = self.last_us + timeout_us;
        let part_us = if self.empty { u64::MAX } else { self.first_us + limits.active_timeout_ms * 1000 };
        match (ends_us <= now_us, part_us) {
            (true, part_us) if part_us < ends_us => Some(Due::End(FlowEndReason::ActiveTimeout)),
            (true, _) => Some(Due::End(reason)),
            (false, part_us) => (part_us <= now_us).then_some(Due::Part),
        }
    }
}

impl Naive {
    fn emit(&mut self, key: FlowKey, flow: &Flow, reason: FlowEndReason) {
        if flow.empty {
            return;
        }
        let there = flow.initiator as usize;
        let [a, b] = [flow.counts[there], flow.counts[1 - there]];
        let key = if flow.initiator == Direction::Forward { key } else { key.reversed() };
        let flags = [flow.flags[there], flow.flags[1 - there]];
        self.records.push((key, [a[0], a[1], b[0], b[1]], flags, flow.first_us, flow.last_us, flow.tos, reason as u8));
    }

    fn observe(&mut self, packet: &Observation, limits: &CacheLimits) {
        let key = packet.key.expand(&packet.wide.key, Direction::Forward);
        let is_tcp = key.protocol == TCP;
        let mut flow = self.flows.remove(&key);
        if let Some(known) = flow {
            let begins_anew = is_tcp && packet.tcp_flags & (SYN | ACK) == SYN && known.closing;
            let end = match known.due(packet.time_us, limits) {
                Some(Due::Part) if begins_anew => Some(FlowEndReason::ActiveTimeout),
                None if begins_anew => Some(FlowEndReason::EndOfFlow),
                Some(Due::End(reason)) => Some(reason),
                Some(Due::Part) => {
                    self.emit(key, &known, FlowEndReason::ActiveTimeout);
                    flow = Some(Flow { counts: [[0; 2]; 2], flags: [0; 2], empty: true, ..known });
                    None
                }
                None => None,
            };
            if let Some(reason) = end {
                self.emit(key, &known, reason);
                flow = None;
            }
        }
        let mut flow = flow.unwrap_or_else(|| Flow::new(packet, is_tcp));
        if flow.empty {
            (flow.first_us, flow.tos, flow.empty) = (packet.time_us, packet.tos, false);
        }
        flow.last_us = packet.time_us;
        let d = packet.direction as usize;
        flow.counts[d][0] += 1;
        flow.counts[d][1] += u64::from(packet.octets);
        flow.flags[d] |= packet.tcp_flags;
        if is_tcp {
            let all = flow.flags[0] | flow.flags[1];
            let spoke = |d: usize| flow.counts[d][0] > 0;
            let finished = |d: usize| !spoke(d) || flow.flags[d] & FIN != 0;
            flow.closing |= all & RST != 0 || finished(0) && finished(1);
            flow.unanswered &= only_opens(all) && !(spoke(0) && spoke(1));
        }
        self.flows.insert(key, flow);
    }

    fn end(&mut self, now_us: u64, limits: &CacheLimits) {
        for (key, flow) in std::mem::take(&mut self.flows) {
            match flow.due(now_us, limits) {
                Some(Due::End(reason)) => self.emit(key, &flow, reason),
                Some(Due::Part) => self.emit(key, &flow, FlowEndReason::ActiveTimeout),
                None if flow.closing => self.emit(key, &flow, FlowEndReason::EndOfFlow),
                None => self.emit(key, &flow, FlowEndReason::ForcedEnd),
            }
        }
    }
}

/// Packets and octets of each direction of each flow.
type Totals = BTreeMap<FlowKey, [u64; 4]>;

fn add(totals: &mut Totals, key: FlowKey, counts: [u64; 4]) {
    let (canonical, direction) = key.canonical();
    let [a, b, c, d] = counts;
    let counts = if direction == Direction::Forward { [a, b, c, d] } else { [c, d, a, b] };
    let sum = totals.entry(canonical).or_default();
    sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
}

/// Runs the steps through the probe's cache and compares: with the naive cache record by record, where the cache holds all flows
/// and the clock is never set; always, that every packet is in exactly one record.
///
/// # Panics
/// Where they differ.
pub fn run(steps: &[Step], flows_max: usize, measure: bool) {
    let limits = limits(flows_max, measure);
    let (mut cache, mut naive) = (FlowCache::new(limits), Naive::default());
    let (mut sent, mut records, mut batch) = (Totals::new(), Vec::new(), Vec::new());
    let (mut now_us, mut clock_was_set) = (1_700_000_000_000_000u64, false);
    for step in steps {
        match *step {
            Step::Packet { flow, reverse, flags, octets, after_ms } => {
                now_us += u64::from(after_ms) * 1000;
                let packet = observation(flow, reverse, flags, octets, now_us);
                let counts = if reverse { [0, 0, 1, u64::from(octets)] } else { [1, u64::from(octets), 0, 0] };
                add(&mut sent, packet.key.expand(&packet.wide.key, Direction::Forward), counts);
                naive.observe(&packet, &limits);
                batch.push(packet);
            }
            Step::Expire { budget } => {
                cache.observe(&mut batch, &mut |record| records.push(record));
                batch.clear();
                cache.expire(now_us, usize::from(budget), &mut |record| records.push(record));
            }
            Step::Clock { by_ms } => {
                clock_was_set = true;
                cache.observe(&mut batch, &mut |record| records.push(record));
                batch.clear();
                now_us = now_us.saturating_add_signed(i64::from(by_ms) * 1000).max(1);
            }
        }
        assert!(cache.live() <= flows_max, "{} flows of {flows_max}", cache.live());
    }
    cache.observe(&mut batch, &mut |record| records.push(record));
    cache.expire_all(now_us, &mut |record| records.push(record));
    cache.flush(&mut |record| records.push(record));
    naive.end(now_us, &limits);
    assert_eq!((cache.live(), cache.packets()), (0, 0));

    let mut found = Totals::new();
    for record in &records {
        assert!(record.forward.packets + record.reverse.packets > 0, "an empty record: {record:?}");
        assert!(record.start_us <= record.end_us, "{record:?}");
        let (key, counts, ..) = row(record);
        add(&mut found, key, counts);
    }
    assert_eq!(found, sent, "a packet is in no record, or in two");
    if !clock_was_set && flows_max >= sent.len() * 4 {
        let mut rows: Vec<Row> = records.iter().map(row).collect();
        rows.sort();
        naive.records.sort();
        // The first difference says more than all records.
        let differs = rows.iter().zip(&naive.records).find(|(ours, naive)| ours != naive);
        assert!(differs.is_none(), "{differs:#?}");
        assert_eq!(rows.len(), naive.records.len());
    }
}
