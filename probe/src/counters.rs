//! The counters of the data path. Each has one writer; whoever reads the books reads downstream counters first, so that
//! what is on its way never seems less than nothing.

use nagare_wire::flow::FlowRecord;
use nagare_wire::packet::Ignore;
use std::sync::atomic::{AtomicU64, Ordering};

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the one writer calls it.
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Release);
    }

    /// Sets a gauge; only the one writer calls it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    /// Reads it, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Flows, and the packets and IP octets in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Flow records.
    pub flows: u64,
    /// Packets of both directions.
    pub packets: u64,
    /// IP octets of both directions.
    pub octets: u64,
}

impl Tally {
    /// Of one flow.
    pub fn of(flow: &FlowRecord) -> Tally {
        Tally {
            flows: 1,
            packets: flow.forward.packets.wrapping_add(flow.reverse.packets),
            octets: flow.forward.octets.wrapping_add(flow.reverse.octets),
        }
    }
}

impl Tally {
    /// Takes another tally, which is part of this one, away.
    pub fn subtract(&mut self, other: Tally) {
        self.flows = self.flows.saturating_sub(other.flows);
        self.packets = self.packets.wrapping_sub(other.packets);
        self.octets = self.octets.wrapping_sub(other.octets);
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.flows += other.flows;
        self.packets = self.packets.wrapping_add(other.packets);
        self.octets = self.octets.wrapping_add(other.octets);
    }
}

/// A tally that others read.
#[derive(Debug, Default)]
pub struct TallyCounter {
    flows: Counter,
    packets: Counter,
    octets: Counter,
}

impl TallyCounter {
    /// Adds; only the one writer calls it.
    pub fn add(&self, tally: Tally) {
        self.octets.add(tally.octets);
        self.packets.add(tally.packets);
        self.flows.add(tally.flows);
    }

    /// Sets it; only the one writer calls it.
    pub fn set(&self, tally: Tally) {
        self.octets.set(tally.octets);
        self.packets.set(tally.packets);
        self.flows.set(tally.flows);
    }

    /// Reads it, from any thread.
    pub fn get(&self) -> Tally {
        Tally { flows: self.flows.get(), packets: self.packets.get(), octets: self.octets.get() }
    }
}

/// What one Metering Process counts.
#[derive(Debug, Default)]
pub struct MeterCounters {
    /// Frames taken from the capture source.
    pub received: Counter,
    /// Packets counted in a flow.
    pub metered: Counter,
    /// IP octets of those.
    pub octets: Counter,
    /// Frames that were no Observation, by [`Ignore`].
    pub ignored: [Counter; Ignore::ALL.len()],
    /// Packets that did not pass the filter.
    pub filtered: Counter,
    /// Packets that passed it and were not among the sampled.
    pub not_sampled: Counter,
    /// Packets of the flows in the cache.
    pub cached_packets: Counter,
    /// Flows in the cache.
    pub live: Counter,
    /// Flow records that left the cache.
    pub ended: TallyCounter,
    /// Of those, the ones that found the ring to the exporter full.
    pub ring_full: TallyCounter,
    /// Flow records by flowEndReason.
    pub reasons: [Counter; 6],
}

/// What the Exporting Process counts of one queue: that of a collector, or of several that stand in for each other.
#[derive(Debug, Default)]
pub struct ExportCounters {
    /// Flow records that the queue was given.
    pub taken: TallyCounter,
    /// Delivered: stored by the collector as it acknowledged, acknowledged by its TCP, handed to UDP, or written to the output.
    pub delivered: TallyCounter,
    /// The oldest records, let go because the buffer was full.
    pub buffer_full: TallyCounter,
    /// Sent, their memory needed by others, and the connection broke before they were acknowledged; or at the end.
    pub unacknowledged: TallyCounter,
    /// Refused by the network (UDP) or by the output's file.
    pub send_failed: TallyCounter,
    /// Left when the probe ended and the collector could not be reached.
    pub undelivered: TallyCounter,
    /// The oldest records, let go because the spool was full.
    pub spool_full: TallyCounter,
    /// Unreadable in the spool.
    pub spool_damaged: TallyCounter,
    /// In the spool and not acknowledged.
    pub spooled: TallyCounter,
    /// What earlier runs of the probe had left in the spool.
    pub recovered: Recovered,
    /// Flow records in the buffer alone.
    pub held: Counter,
    /// IPFIX Messages sent, those sent again included.
    pub messages: Counter,
    /// Octets of those.
    pub octets: Counter,
    /// Data Records in those, options records included.
    pub records: Counter,
    /// Transport Sessions opened.
    pub sessions: Counter,
    /// Octets of the spool on disk.
    pub spool_octets: Counter,
    /// Messages in the spool that are not acknowledged.
    pub spool_messages: Counter,
    /// Writes that the spool's disk refused.
    pub spool_write_errors: Counter,
    /// Octets cut off the spool as torn.
    pub spool_torn_octets: Counter,
    /// Age of the oldest Message that is not acknowledged, milliseconds; of one in the spool, that of its segment.
    pub lag_ms: Counter,
}

/// The account of what earlier runs left in the spool.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Flow records found at the start.
    pub found: TallyCounter,
    /// Of those, delivered.
    pub delivered: TallyCounter,
    /// Let go because the spool was full.
    pub full: TallyCounter,
    /// Unreadable.
    pub damaged: TallyCounter,
    /// Still in the spool.
    pub spooled: TallyCounter,
}

impl ExportCounters {
    /// The named drops.
    pub fn drops(&self) -> [(&'static str, &TallyCounter); 6] {
        [
            ("drop.buffer_full", &self.buffer_full),
            ("drop.unacknowledged", &self.unacknowledged),
            ("drop.send_failed", &self.send_failed),
            ("drop.undelivered", &self.undelivered),
            ("drop.spool_full", &self.spool_full),
            ("drop.spool_damaged", &self.spool_damaged),
        ]
    }
}
