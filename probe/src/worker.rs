//! A Metering Process: one worker per core, from a capture source through the flow cache to the ring of the exporter.

use crate::cache::{CacheLimits, FlowCache};
use crate::capture::{CaptureSource, Received};
use crate::counters::{MeterCounters, Tally};
use crate::select::{Selection, Selector, Verdict};
use crossbeam_queue::ArrayQueue;
use nagare_service::run::Stop;
use nagare_wire::flow::FlowRecord;
use nagare_wire::fragment::FragmentTable;
use nagare_wire::observation::{Observation, Observer};
use nagare_wire::packet::{Ignore, Tunnels};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Frames taken at once.
const BATCH: usize = 64;
/// How long a worker sleeps where no frame comes: timeouts are looked at this often.
const WAIT: Duration = Duration::from_millis(50);
/// Flows that one round of expiry may look at, so that frames never wait long.
const EXPIRY_BUDGET: usize = 2 * BATCH;
/// Datagrams in fragments that a worker follows at once.
const DATAGRAMS: usize = 4096;

/// The way from a worker to the exporter: one ring, one writer, one reader.
pub struct RecordRing {
    /// Records on their way.
    pub queue: ArrayQueue<FlowRecord>,
    /// The worker has put its last record in.
    pub finished: AtomicBool,
}

impl RecordRing {
    /// A ring for `records` records.
    pub fn new(records: usize) -> RecordRing {
        RecordRing { queue: ArrayQueue::new(records.max(1)), finished: AtomicBool::new(false) }
    }

    /// Memory of a ring of so many records, bytes.
    pub fn memory_bytes(records: usize) -> usize {
        records * (size_of::<FlowRecord>() + size_of::<usize>())
    }
}

/// Sets `finished` however the worker ends, also by a panic: the exporter must not wait for ever.
struct Finish(Arc<RecordRing>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.finished.store(true, Ordering::Release);
    }
}

/// What a worker is made of, but for its source.
pub struct WorkerParts {
    /// When flows end, and how many there may be.
    pub limits: CacheLimits,
    /// Which packet of a tunnelled one makes the flow.
    pub tunnels: Tunnels,
    /// Which packets are metered; the seed is the same for all workers.
    pub selection: (Selection, u64),
    /// Where records go.
    pub ring: Arc<RecordRing>,
    /// What it counts.
    pub counters: Arc<MeterCounters>,
    /// A file waits for the exporter where the ring is full; a network does not: then the record is dropped and counted.
    pub waits: bool,
    /// Wakes the exporter.
    pub wake: Arc<dyn Fn() + Send + Sync>,
    /// Ends the worker before its source does; a network's source ends by itself once it was detached and emptied.
    pub stop: Option<Stop>,
    /// Set when the exporter is gone: nobody will empty the ring any more.
    pub exporter_gone: Arc<AtomicBool>,
}

/// One Metering Process.
pub struct Worker<S> {
    source: S,
    cache: FlowCache,
    observer: Observer,
    selector: Selector,
    batch: Box<[Observation; BATCH]>,
    /// Observations in the batch that are not metered yet.
    held: usize,
    parts: WorkerParts,
    finish: Finish,
}

impl<S: CaptureSource> Worker<S> {
    /// Reserves the worker's memory.
    pub fn new(source: S, parts: WorkerParts) -> Worker<S> {
        let seed = ahash::RandomState::new().hash_one(0u8);
        Worker {
            source,
            cache: FlowCache::new(parts.limits),
            observer: Observer::new(parts.tunnels, parts.limits.measure, FragmentTable::new(DATAGRAMS, seed)),
            selector: Selector::new(parts.selection.0.clone(), parts.selection.1),
            batch: Box::new([Observation::default(); BATCH]),
            held: 0,
            finish: Finish(parts.ring.clone()),
            parts,
        }
    }

    /// Memory of a worker with so many flows, bytes, by name.
    pub fn memory(limits: &CacheLimits) -> [(&'static str, usize); 2] {
        [("flow cache", FlowCache::memory_bytes(limits)), ("fragment table", FragmentTable::memory_bytes(DATAGRAMS))]
    }

    /// Meters until the source ends, then flushes the cache. What was metered is handed over also where the source fails.
    ///
    /// # Errors
    /// The source's.
    pub fn run(mut self) -> io::Result<()> {
        let outcome = self.meter();
        let (cache, parts) = (&mut self.cache, &self.parts);
        cache.flush(&mut |record| hand_over(parts, record));
        self.publish();
        drop(self.finish);
        (self.parts.wake)();
        outcome
    }

    fn meter(&mut self) -> io::Result<()> {
        // Where expiry is behind, or packets are held back, the worker does not wait for frames.
        let mut wait = WAIT;
        loop {
            if self.parts.stop.as_ref().is_some_and(Stop::is_set) {
                self.observe(u64::MAX);
                return Ok(());
            }
            let received = self.take_in(wait);
            let horizon_ns = received.as_ref().map_or(u64::MAX, |received| received.horizon_ns);
            self.observe(horizon_ns);
            let received = received?;
            let now_us = received.now_ns / 1000;
            let (cache, parts) = (&mut self.cache, &self.parts);
            if received.end && self.held == 0 {
                cache.expire_all(now_us, &mut |record| hand_over(parts, record));
                return Ok(()); // `run` publishes what is left.
            }
            let kept_pace = cache.expire(now_us, EXPIRY_BUDGET, &mut |record| hand_over(parts, record));
            wait = if kept_pace && self.held == 0 { WAIT } else { Duration::ZERO };
            self.publish();
        }
    }

    /// Makes Observations of frames, behind those that are held. Frames that came before the source failed count, too.
    fn take_in(&mut self, wait: Duration) -> io::Result<Received> {
        let Worker { source, observer, selector, batch, held, parts, .. } = self;
        let (mut packets, mut filtered, mut not_sampled) = (0, 0, 0);
        let mut ignored = [0u64; Ignore::ALL.len()];
        let takes_all = selector.takes_all();
        let received = source.receive(BATCH - *held, wait, |frame| {
            let count = u64::from(frame.packets);
            match observer.observe(&frame, &mut batch[*held]) {
                Ok(()) if takes_all => (*held, packets) = (*held + 1, packets + count),
                Ok(()) => match selector.verdict(&batch[*held]) {
                    Verdict::Metered => (*held, packets) = (*held + 1, packets + count),
                    Verdict::Filtered => filtered += count,
                    Verdict::NotSampled => not_sampled += count,
                },
                Err(ignore) => ignored[ignore as usize] += count,
            }
        });
        let counters = &parts.counters;
        counters.received.add(packets + filtered + not_sampled + ignored.iter().sum::<u64>());
        let named = [&counters.filtered, &counters.not_sampled].into_iter().chain(&counters.ignored);
        for (counter, count) in named.zip([filtered, not_sampled].into_iter().chain(ignored)) {
            if count > 0 {
                counter.add(count);
            }
        }
        received
    }

    /// Meters what was taken in, up to a time, in the order of time; the rest is held back.
    fn observe(&mut self, horizon_ns: u64) {
        let mut ready = self.held;
        if horizon_ns != u64::MAX {
            let taken = &mut self.batch[..self.held];
            taken.sort_by_key(|packet| packet.time_us);
            ready = taken.partition_point(|packet| packet.time_us <= horizon_ns / 1000);
        }
        let batch = &mut self.batch[..ready];
        // Upstream first: whoever reads downstream first never sees more in records than was metered.
        let counters = &self.parts.counters;
        counters.octets.add(batch.iter().map(|packet| u64::from(packet.octets)).sum());
        counters.metered.add(batch.iter().map(|packet| u64::from(packet.packets)).sum());
        let parts = &self.parts;
        self.cache.observe(batch, &mut |record| hand_over(parts, record));
        self.batch.copy_within(ready..self.held, 0);
        self.held -= ready;
    }

    fn publish(&self) {
        self.parts.counters.live.set(self.cache.live() as u64);
        self.parts.counters.cached_packets.set(self.cache.packets());
        if self.parts.ring.queue.len() * 2 > self.parts.ring.queue.capacity() {
            (self.parts.wake)();
        }
    }
}

/// Puts a record into the ring, or counts it where the ring is full.
fn hand_over(parts: &WorkerParts, mut record: FlowRecord) {
    let tally = Tally::of(&record);
    let counters = &parts.counters;
    counters.ended.add(tally);
    counters.reasons[usize::from(record.end_reason) % counters.reasons.len()].add(1);
    while let Err(refused) = parts.ring.queue.push(record) {
        if !parts.waits || parts.exporter_gone.load(Ordering::Acquire) {
            return counters.ring_full.add(tally);
        }
        record = refused;
        (parts.wake)();
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Frame;
    use nagare_wire::packet::LinkType;

    /// Hands on an IPv4 packet and a frame that is none, then fails.
    struct Failing;

    impl CaptureSource for Failing {
        fn receive(&mut self, _: usize, _: Duration, mut each: impl FnMut(Frame<'_>)) -> io::Result<Received> {
            let packet = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 89, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
            for bytes in [&packet[..], &packet[..7]] {
                each(Frame { link: LinkType::RawIp, bytes, wire_length: 20, time_ns: 1, interface: 1, packets: 1 });
            }
            Err(io::Error::other("unplugged"))
        }
    }

    #[test]
    fn what_came_before_a_source_failed_is_metered() {
        let (ring, counters) = (Arc::new(RecordRing::new(8)), Arc::new(MeterCounters::default()));
        let parts = WorkerParts {
            limits: CacheLimits {
                idle_timeout_ms: 1000,
                active_timeout_ms: 1000,
                unanswered_timeout_ms: 1000,
                flows_max: 8,
                measure: false,
                outer: false,
            },
            tunnels: Tunnels::Outer,
            selection: (Selection::default(), 0),
            ring: ring.clone(),
            counters: counters.clone(),
            waits: false,
            wake: Arc::new(|| ()),
            stop: None,
            exporter_gone: Arc::default(),
        };
        let outcome = Worker::new(Failing, parts).run();
        assert_eq!(outcome.map_err(|error| error.to_string()), Err("unplugged".into()));
        let ignored = counters.ignored[Ignore::Truncated as usize].get();
        assert_eq!((counters.received.get(), counters.metered.get(), ignored), (2, 1, 1));
        assert_eq!((counters.ended.get().packets, counters.cached_packets.get(), ring.queue.len()), (1, 0, 1));
        assert!(ring.finished.load(Ordering::Acquire));
    }
}
