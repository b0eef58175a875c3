//! The flow cache beside one without a thought for speed, over seeded runs: any order of timeouts, evictions, and steps of the clock.

#[path = "simulation/model.rs"]
mod model;
mod numbered;

use model::{Step, run};
use numbered::Random;

/// Steps of a run: so many flows, with pauses of up to so many milliseconds, the clock set where `sets_clock`.
fn steps(random: &mut Random, count: usize, flows: u64, pause_ms: u64, sets_clock: bool) -> Vec<Step> {
    const FLAGS: [u16; 8] = [0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0xc2, 0x01];
    (0..count)
        .map(|_| match random.below(100) {
            0..=3 => Step::Expire { budget: random.next() as u8 },
            4 if sets_clock && random.below(20) == 0 => {
                let far = [1000, 100_000, 100_000_000][random.below(3) as usize];
                Step::Clock { by_ms: random.below(2 * far) as i32 - far as i32 }
            }
            _ => Step::Packet {
                flow: random.below(flows) as u16,
                reverse: random.below(2) == 0,
                flags: FLAGS[random.below(8) as usize],
                octets: 40 + random.below(1460) as u16,
                after_ms: if random.below(4) == 0 { random.below(pause_ms) as u16 } else { 0 },
            },
        })
        .collect()
}

/// Runs of one kind, each seed in a thread's panic message.
fn all(seeds: std::ops::Range<u64>, of: impl Fn(u64, &mut Random)) {
    for seed in seeds {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| of(seed, &mut Random(seed))));
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

#[test]
fn records_are_those_of_the_naive_cache() {
    all(0..1000, |seed, random| {
        let (flows, pause_ms) = (1 + random.below(40), 1 + random.below(4000));
        let steps = steps(random, 1500, flows, pause_ms, false);
        run(&steps, 200, seed % 2 == 1);
    });
}

/// More flows than a core's own cache holds: packets are observed in batches, ahead of which memory is asked for.
#[test]
fn records_of_many_flows_are_those_of_the_naive_cache() {
    all(0..4, |seed, random| {
        let steps = steps(random, 60_000, 12_000, 2, false);
        run(&steps, 50_000, seed % 2 == 1);
    });
}

#[test]
fn no_packet_is_lost_where_flows_give_way_and_the_clock_is_set() {
    all(1000..2000, |seed, random| {
        let (flows_max, pause_ms) = (1 + random.below(30) as usize, 1 + random.below(3000));
        let steps = steps(random, 1500, 60, pause_ms, true);
        run(&steps, flows_max, seed % 2 == 1);
    });
}
