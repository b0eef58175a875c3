//! Scratch measurement.
use nagare_probe::cache::CacheLimits;
use nagare_probe::capture::{CaptureSource, Frame, Received};
use nagare_probe::counters::MeterCounters;
use nagare_probe::worker::*;
use nagare_wire::packet::LinkType;
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};
struct Mem {
    frames: Vec<[u8; 64]>,
    at: usize,
    left: u64,
    step_ns: u64,
    t: u64,
}
impl CaptureSource for Mem {
    fn receive(&mut self, budget: usize, _: Duration, mut each: impl FnMut(Frame<'_>)) -> io::Result<Received> {
        let n = budget.min(self.left as usize);
        for _ in 0..n {
            let bytes = &self.frames[self.at];
            self.at += 1;
            if self.at == self.frames.len() {
                self.at = 0
            }
            each(Frame { time_ns: self.t, bytes, wire_len: 64, link: LinkType::Ethernet });
            self.t += self.step_ns;
        }
        self.left -= n as u64;
        Ok(Received { frames: n, now_ns: self.t, end: self.left == 0 })
    }
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let flows: u64 = args[1].parse().unwrap();
    let measure = args.get(2).is_some_and(|a| a == "full");
    let churn = args.get(2).is_some_and(|a| a == "churn") || args.get(3).is_some_and(|a| a == "churn");
    core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
    let mut x = 88172645463325252u64;
    let mut rnd = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let count = if churn { 40_000_000 } else { 1usize << 22 };
    let frames: Vec<[u8; 64]> = (0..count as u64)
        .map(|i| {
            let flow = if churn { i * 1_000_000 / 14_880_000 + rnd() % 1_000_000 } else { rnd() % flows };
            let mut f = [0u8; 64];
            f[12] = 8;
            f[14] = 0x45;
            f[17] = 46;
            f[22] = 64;
            f[23] = 17;
            let h = (flow as u32).wrapping_mul(0x9E3779B1);
            f[26..30].copy_from_slice(&(0x0a000000u32 | (flow as u32 & 0xffffff)).to_be_bytes());
            f[30..34].copy_from_slice(&(0xc0a80000u32 | (h >> 16)).to_be_bytes());
            f[34..36].copy_from_slice(&(1024 + (flow >> 24) as u16).to_be_bytes());
            f[37] = 53;
            f[39] = 26;
            f
        })
        .collect();
    let limits = CacheLimits {
        idle_timeout_ms: if churn { 1000 } else { 15000 },
        active_timeout_ms: 60000,
        unanswered_timeout_ms: 5000,
        flows_max: if churn { 2_200_000 } else { flows as usize },
        measure,
        outer: false,
    };
    let ring = Arc::new(RecordRing::new(1 << 16));
    let counters = Arc::new(MeterCounters::default());
    let parts = WorkerParts {
        limits,
        ring: ring.clone(),
        counters: counters.clone(),
        waits: false,
        wake: Arc::new(|| ()),
        stop: None,
        exporter_gone: Arc::default(),
    };
    let total = if churn { count as u64 } else { 100_000_000 };
    let w = Worker::new(Mem { frames, at: 0, left: total, step_ns: 67, t: 1_700_000_000_000_000_000 }, parts);
    let r2 = ring.clone();
    let drain = std::thread::spawn(move || {
        core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
        let mut n = 0u64;
        loop {
            while r2.queue.pop().is_some() {
                n += 1
            }
            if r2.finished.load(std::sync::atomic::Ordering::Acquire) {
                while r2.queue.pop().is_some() {
                    n += 1
                }
                return n;
            }
            std::thread::sleep(Duration::from_millis(1))
        }
    });
    let t = Instant::now();
    w.run().unwrap();
    let s = t.elapsed().as_secs_f64();
    let n = drain.join().unwrap();
    let r: Vec<u64> = counters.reasons.iter().map(|c| c.get()).collect();
    println!(
        "{flows} flows {:?}: {:.1} Mpps (with flush) records {n} ended {} reasons {r:?} bytes/flow {:.0}",
        &args[2..],
        total as f64 / s / 1e6,
        counters.ended.get().flows,
        nagare_probe::cache::FlowCache::memory_bytes(&limits) as f64 / limits.flows_max as f64
    );
}
