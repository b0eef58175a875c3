//! The ceiling without a NIC: frames that lie in memory go through the probe's own worker (decode, hash, observe, expire,
//! records handed over), beside the memory's own limit measured in the same run.

use nagare_probe::cache::{CacheLimits, FlowCache};
use nagare_probe::capture::file::{FileCapture, FileOptions};
use nagare_probe::capture::{CaptureSource, Frame, Received};
use nagare_probe::counters::MeterCounters;
use nagare_probe::worker::{RecordRing, Worker, WorkerParts};
use nagare_wire::packet::LinkType;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Frames a second at 10 Gbit/s of 64-byte frames: the clock of the metered packets.
pub const LINE_RATE: u64 = 14_880_000;
/// Records that the ring to the consumer holds.
const RING_RECORDS: usize = 1 << 16;
/// Frames that are made of flows which stay, at least, and for each flow; they are sent over and over.
const FRAMES: (u64, u64) = (1 << 22, 3);
/// Seconds of line rate that are made where flows come and go.
const CHURN_SECONDS: u64 = 3;

/// What one row of the table meters.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Live flows.
    pub flows: u64,
    /// New flows a second, as many of which end.
    pub new_flows: u64,
    /// Some flows have most of the packets: the n-th by 1/n (Zipf's law); else all have as many.
    pub zipf: bool,
    /// Everything is measured, as with `--template full`.
    pub full: bool,
    /// Packets that are metered after the cache was filled.
    pub packets: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Metered {
    /// Million packets a second.
    pub mpps: f64,
    /// Flow records that were handed over.
    pub records: u64,
    /// Of those, the ones whose flow gave way early.
    pub evicted: u64,
    /// Memory of the cache for each flow that it may hold, bytes.
    pub bytes_per_flow: f64,
}

struct Memory<'a, F> {
    frames: &'a [F],
    next: usize,
    left: u64,
    sent: u64,
    /// So many packets fill the cache, before the clock runs.
    warm: u64,
    clock: Arc<Clock>,
}

/// When the cache was full, and when the last frame had come: what is flushed after that is no part of the load.
#[derive(Default)]
struct Clock {
    began: OnceLock<Instant>,
    ended: OnceLock<Instant>,
}

impl<F: AsRef<[u8]>> CaptureSource for Memory<'_, F> {
    fn receive(&mut self, budget: usize, _: Duration, mut each: impl FnMut(Frame<'_>)) -> io::Result<Received> {
        if self.sent >= self.warm {
            self.clock.began.get_or_init(Instant::now);
        }
        if self.left == 0 {
            self.clock.ended.get_or_init(Instant::now);
        }
        let frames = budget.min(self.left as usize);
        let time_ns = |sent: u64| 1_700_000_000_000_000_000 + sent * 1_000_000_000 / LINE_RATE;
        let now_ns = time_ns(self.sent);
        for _ in 0..frames {
            let bytes = self.frames[self.next].as_ref();
            self.next = if self.next + 1 == self.frames.len() { 0 } else { self.next + 1 };
            each(Frame {
                link: LinkType::Ethernet,
                bytes,
                wire_length: bytes.len() as u32,
                time_ns: now_ns,
                interface: 1,
                packets: 1,
            });
        }
        (self.left, self.sent) = (self.left - frames as u64, self.sent + frames as u64);
        Ok(Received { frames, now_ns, horizon_ns: u64::MAX, end: frames == 0 })
    }
}

/// A 64-byte frame of UDP that belongs to flow `flow`.
fn frame(flow: u64) -> [u8; 64] {
    let mut frame = [0u8; 64];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    (frame[12], frame[14], frame[17], frame[22], frame[23]) = (8, 0x45, 46, 64, 17);
    frame[26..30].copy_from_slice(&(0x0a00_0000 | (flow as u32 & 0x00ff_ffff)).to_be_bytes());
    frame[30..34].copy_from_slice(&(0xc0a8_0000 | (flow as u32).wrapping_mul(0x9e37_79b1) >> 16).to_be_bytes());
    frame[34..36].copy_from_slice(&(1024 + (flow >> 24) as u16).to_be_bytes());
    (frame[37], frame[39]) = (53, 26);
    frame
}

/// The frames of a load, at random over the flows that live at their moment.
pub fn frames(load: &Load) -> Vec<[u8; 64]> {
    let mut random = fastrand::Rng::with_seed(1);
    let count = match load.new_flows {
        0 => FRAMES.0.max(FRAMES.1 * load.flows),
        _ => CHURN_SECONDS * LINE_RATE,
    };
    let ranks = load.zipf.then(|| Zipf::new(load.flows));
    let choose = |random: &mut fastrand::Rng| match &ranks {
        None => random.u64(0..load.flows),
        Some(ranks) => ranks.choose(random.f64()),
    };
    (0..count).map(|n| frame(n * load.new_flows / LINE_RATE + choose(&mut random))).collect()
}

/// Chooses ranks by Zipf's law: the n-th is chosen in proportion to 1/n.
struct Zipf {
    flows: u64,
    /// Logarithm of one more than the last rank, which is the integral of the law.
    whole: f64,
}

impl Zipf {
    fn new(flows: u64) -> Zipf {
        Zipf { flows, whole: (flows as f64 + 1.0).ln() }
    }

    /// The rank, from 0, at a part of the whole.
    fn choose(&self, part: f64) -> u64 {
        (((part * self.whole).exp() - 1.0) as u64).min(self.flows - 1)
    }
}

/// The frames of a capture file, so many copies of each with other addresses: flows multiply, packets stay as they are.
///
/// # Errors
/// The file's.
pub fn replay(path: &str, copies: u32) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error>> {
    let (capture, mut sources) = FileCapture::open(path, 1, FileOptions::default())?;
    let (mut source, mut frames) = (sources.remove(0), Vec::new());
    loop {
        let received = source.receive(64, Duration::from_millis(50), |frame| {
            if frame.link == LinkType::Ethernet {
                frames.push(frame.bytes.to_vec());
            }
        })?;
        if received.end {
            break;
        }
    }
    capture.outcome()?;
    Ok((0..copies).flat_map(|copy| frames.iter().map(move |frame| shifted(frame, copy))).collect())
}

/// The frame with the low halves of its addresses exchanged for others, the same for both directions.
fn shifted(frame: &[u8], copy: u32) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let places = match frame.get(12..14) {
        Some([0x08, 0x00]) => [28, 32],
        Some([0x86, 0xdd]) => [36, 52],
        _ => return frame,
    };
    for place in places {
        for (octet, by) in frame.iter_mut().skip(place).take(2).zip((copy as u16).to_be_bytes()) {
            *octet ^= by;
        }
    }
    frame
}

/// The cache's limits for a load: where flows come and go, those that have ended wait for their timeout of a second.
fn limits(load: &Load) -> CacheLimits {
    let idle_timeout_ms = if load.new_flows == 0 { 15_000 } else { 1000 };
    CacheLimits {
        idle_timeout_ms,
        active_timeout_ms: 60_000,
        unanswered_timeout_ms: 5000,
        flows_max: (load.flows + load.new_flows * 5 / 4) as usize,
        measure: load.full,
        outer: false,
    }
}

/// Meters a load on `core`; a consumer on another core discards the records.
pub fn meter<F: AsRef<[u8]> + Sync>(load: &Load, frames: &[F], core: usize) -> Metered {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
    let (ring, counters) = (Arc::new(RecordRing::new(RING_RECORDS)), Arc::new(MeterCounters::default()));
    let limits = limits(load);
    let parts = WorkerParts {
        tunnels: nagare_wire::packet::Tunnels::Outer,
        selection: (nagare_probe::select::Selection::default(), 0),
        limits,
        ring: ring.clone(),
        counters: counters.clone(),
        waits: false,
        wake: Arc::new(|| ()),
        stop: None,
        exporter_gone: Arc::default(),
    };
    let (clock, warm) = (Arc::<Clock>::default(), warm_up(load, frames.len()));
    let total = warm + load.packets;
    let worker = Worker::new(Memory { frames, next: 0, left: total, sent: 0, warm, clock: clock.clone() }, parts);
    std::thread::scope(|scope| {
        scope.spawn(|| discard(&ring, core ^ 1));
        worker.run().expect("memory does not fail");
    });
    let moment = |of: &OnceLock<Instant>| *of.get().expect("the frames came to an end");
    let lasted = moment(&clock.ended).duration_since(moment(&clock.began));
    let ignored: u64 = counters.ignored.iter().map(|counter| counter.get()).sum();
    assert_eq!(counters.metered.get() + ignored, total, "every packet was metered, or ignored by name");
    assert_eq!(counters.ended.get().packets + ignored, total, "every packet that was metered is in a record");
    Metered {
        mpps: load.packets as f64 / lasted.as_secs_f64() / 1e6,
        records: counters.ended.get().flows,
        evicted: counters.reasons[5].get(),
        bytes_per_flow: FlowCache::memory_bytes(&limits) as f64 / limits.flows_max as f64,
    }
}

/// Packets until every flow has been seen, or until as many flows end as begin.
fn warm_up(load: &Load, frames: usize) -> u64 {
    if load.new_flows == 0 { frames as u64 } else { LINE_RATE }
}

fn discard(ring: &RecordRing, core: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
    loop {
        let finished = ring.finished.load(Ordering::Acquire);
        while ring.queue.pop().is_some() {}
        if finished {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The same packets counted in a hash table (hashbrown with ahash) that does nothing else: no timeouts, no records. The
/// baseline: million packets a second.
pub fn baseline<F: AsRef<[u8]>>(load: &Load, frames: &[F]) -> f64 {
    use nagare_wire::fragment::FragmentTable;
    use nagare_wire::observation::{Captured, Observation, Observer};
    let mut observer = Observer::new(Default::default(), false, FragmentTable::new(4, 1));
    let mut table: hashbrown::HashMap<[u64; 2], [u64; 2], ahash::RandomState> =
        hashbrown::HashMap::with_capacity_and_hasher(load.flows as usize, ahash::RandomState::new());
    let mut packet = Observation::default();
    let began = Instant::now();
    for bytes in frames.iter().cycle().take(load.packets as usize) {
        let bytes = bytes.as_ref();
        let captured = Captured {
            link: LinkType::Ethernet,
            bytes,
            wire_length: bytes.len() as u32,
            time_ns: 0,
            interface: 1,
            packets: 1,
        };
        if observer.observe(&captured, &mut packet).is_ok() {
            let counters = table.entry(packet.key.words).or_default();
            (counters[0], counters[1]) = (counters[0] + 1, counters[1] + u64::from(packet.octets));
        }
    }
    let rate = load.packets as f64 / began.elapsed().as_secs_f64() / 1e6;
    assert!(!table.is_empty());
    rate
}

/// The memory's limit: random read-modify-write of one 64-byte line, prefetched in batches of 32, over `bytes` of memory in
/// huge pages; million lines a second.
pub fn memory_limit(bytes: usize, lasting: Duration) -> f64 {
    nagare_probe::cache::memory_limit(bytes, lasting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_zipf() {
        let zipf = Zipf::new(1000);
        let mut random = fastrand::Rng::with_seed(3);
        let mut counts = [0u32; 1000];
        (0..100_000).for_each(|_| counts[zipf.choose(random.f64()) as usize] += 1);
        // The first has about a tenth of all, and twice what the second has.
        assert!((8000..12_000).contains(&counts[0]), "{}", counts[0]);
        assert!(counts[0] > counts[1] * 3 / 2 && counts[999] < counts[0] / 100);
    }

    #[test]
    fn copies_are_other_flows_of_the_same_packets() {
        let (frame, other) = (frame(7), shifted(&frame(7), 5));
        assert_eq!(shifted(&frame, 0), frame);
        let differing = frame.iter().zip(&other).filter(|(a, b)| a != b).count();
        assert_eq!((differing, shifted(&other, 5)), (2, frame.to_vec()));
    }
}
