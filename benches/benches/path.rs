//! The steps of the packet path one by one: decode, hash, observe, expire, encode. `cargo bench -p nagare-benches`.
#![allow(missing_docs)] // What the macros make.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nagare_benches::memory::{Load, frames};
use nagare_probe::cache::{CacheLimits, FlowCache};
use nagare_wire::flow::FlowRecord;
use nagare_wire::fragment::FragmentTable;
use nagare_wire::ipfix::export::MessageBuilder;
use nagare_wire::ipfix::field::FlowTemplate;
use nagare_wire::observation::{Captured, Observation, Observer};
use nagare_wire::packet::{LinkType, Tunnels, decode};
use nagare_wire::steer;
use std::hint::black_box;

const BATCH: usize = 64;

fn made(flows: u64) -> Vec<[u8; 64]> {
    frames(&Load { flows, new_flows: 0, zipf: false, full: false, packets: 0 })
}

fn captured(bytes: &[u8], time_ns: u64) -> Captured<'_> {
    Captured { link: LinkType::Ethernet, bytes, wire_length: bytes.len() as u32, time_ns, interface: 1, packets: 1 }
}

fn observer(tunnels: Tunnels) -> Observer {
    Observer::new(tunnels, false, FragmentTable::new(64, 1))
}

/// A frame in VXLAN in UDP.
fn tunnelled(frame: &[u8]) -> Vec<u8> {
    let mut out = frame[..14].to_vec();
    let length = (20 + 8 + 8 + frame.len()) as u16;
    out.extend([0x45, 0]);
    out.extend(length.to_be_bytes());
    out.extend([0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0xc0, 1, 0x12, 0xb5]);
    out.extend((length - 20).to_be_bytes());
    out.extend([0, 0, 8, 0, 0, 0, 0, 0, 42, 0]);
    out.extend(frame);
    out
}

fn decoding(criterion: &mut Criterion) {
    let plain = made(1)[0];
    let within = tunnelled(&plain);
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    group.bench_function("plain, the long way", |bench| {
        bench.iter(|| decode(LinkType::Ethernet, black_box(&plain), 64, Tunnels::Outer));
    });
    group.bench_function("VXLAN, inner", |bench| {
        bench.iter(|| decode(LinkType::Ethernet, black_box(&within), 114, Tunnels::Inner));
    });
    let (mut observer, mut out) = (observer(Tunnels::Outer), Observation::default());
    group.bench_function("plain, the short way", |bench| {
        bench.iter(|| observer.observe(black_box(&captured(&plain, 1)), &mut out));
    });
    let key = decode(LinkType::Ethernet, &plain, 64, Tunnels::Outer).expect("a packet").key;
    group.bench_function("steering hash", |bench| bench.iter(|| steer::hash(black_box(&key), 7)));
    group.finish();
}

fn limits(flows_max: usize, measure: bool) -> CacheLimits {
    CacheLimits {
        idle_timeout_ms: 15_000,
        active_timeout_ms: 60_000,
        unanswered_timeout_ms: 5000,
        flows_max,
        measure,
        outer: false,
    }
}

fn observations(flows: u64) -> Vec<Observation> {
    let mut observer = observer(Tunnels::Outer);
    made(flows)
        .iter()
        .map(|bytes| {
            let mut out = Observation::default();
            observer.observe(&captured(bytes, 1_700_000_000_000_000_000), &mut out).expect("a packet");
            out
        })
        .collect()
}

fn caching(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow cache");
    for (name, measure) in [("basic", false), ("full", true)] {
        let mut packets = observations(100_000);
        let mut cache = FlowCache::new(limits(200_000, measure));
        cache.observe(&mut packets, &mut |_| ());
        let mut next = 0;
        group.throughput(Throughput::Elements(BATCH as u64));
        group.bench_function(format!("observe 64 of 100,000 flows, {name}"), |bench| {
            bench.iter(|| {
                next = if next + 2 * BATCH > packets.len() { 0 } else { next + BATCH };
                cache.observe(&mut packets[next..next + BATCH], &mut |_| ());
            });
        });
    }
    let filled = || {
        let mut cache = FlowCache::new(limits(20_000, false));
        cache.observe(&mut observations(10_000)[..50_000], &mut |_| ());
        cache
    };
    let live = filled().live() as u64;
    group.throughput(Throughput::Elements(live));
    group.bench_function("expire all of 10,000 flows", |bench| {
        bench.iter_batched(
            filled,
            |mut cache| {
                cache.expire_all(1_700_000_100_000_000, &mut |record| {
                    black_box(record);
                });
                cache
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn encoding(criterion: &mut Criterion) {
    let mut records: Vec<FlowRecord> = Vec::new();
    let mut cache = FlowCache::new(limits(2000, true));
    cache.observe(&mut observations(1000)[..20_000], &mut |_| ());
    cache.flush(&mut |record| records.push(record));
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(records.len() as u64));
    for (name, template) in [("basic", FlowTemplate::basic()), ("full", FlowTemplate::full())] {
        let mut builder = MessageBuilder::with_template(65_000, template);
        group.bench_function(format!("1000 flows, {name}"), |bench| {
            bench.iter(|| {
                for record in &records {
                    if builder.push_flow(record).is_err() {
                        black_box(builder.finish(1, 1, 1));
                        builder.push_flow(record).expect("an empty Message has room");
                    }
                }
            });
        });
    }
    group.finish();
}

criterion_group!(path, decoding, caching, encoding);
criterion_main!(path);
