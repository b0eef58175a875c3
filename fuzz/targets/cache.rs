//! Any order of packets, timeouts, evictions and steps of the clock, through the flow cache and through a naive one beside it.
//!
//! The first octet chooses how many flows the cache holds, and whether everything is measured. Each step is of four octets: what
//! happens, two for the flow or the time, and one for the rest.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../probe/tests/simulation/model.rs"]
mod model;

use model::{Step, run};

const FLAGS: [u16; 8] = [0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0xc2, 0x01];

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else { return };
    let steps: Vec<Step> = rest.chunks_exact(4).map(|step| step_of([step[0], step[1], step[2], step[3]])).collect();
    let flows_max = if choice & 1 == 0 { 1024 } else { 1 + usize::from(choice >> 2) };
    run(&steps, flows_max, choice & 2 != 0);
});

fn step_of([what, high, low, rest]: [u8; 4]) -> Step {
    let word = u16::from_be_bytes([high, low]);
    match what {
        0..=15 => Step::Expire { budget: rest },
        // A step of some milliseconds, or of hours.
        16 => Step::Clock { by_ms: i32::from(word as i16) },
        17 => Step::Clock { by_ms: i32::from(word as i16) * 10_000 },
        _ => Step::Packet {
            flow: word & 0xff,
            reverse: rest & 1 != 0,
            flags: FLAGS[usize::from(rest >> 1 & 7)],
            octets: 40 + u16::from(what),
            after_ms: u16::from(high) * u16::from(rest >> 4) * 2,
        },
    }
}
