//! A short run of what `nagare-faults` and scripts/soak do for long: every fault at least once, between real programs.

use nagare_benches::faults::{Fault, Ground, Outcome, run_all, table, told};
use nagare_benches::lab::built;
use nagare_service::run::Stop;
use std::path::Path;

/// The first seed, and how many. Consecutive ones have every fault.
const FIRST: u64 = 1000;
const SEEDS: u64 = 24;
/// Schedules mostly wait.
const AT_ONCE: usize = 6;

#[test]
fn whatever_goes_wrong_each_flow_is_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let ground = Ground::new(&built("nagare-probe"), &built("nagare-collector"), directory.path()).unwrap();
    for fault in Fault::ALL {
        let Some(why) = ground.refusal(fault) else { continue };
        println!("skipped: {}: {why}", fault.name());
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "nothing may be skipped where CI=true");
    }
    let keep = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    let tell = |outcome: &Outcome| println!("{}", told(outcome));
    let outcomes = run_all(&ground, FIRST..FIRST + SEEDS, AT_ONCE, &keep, &Stop::new(), tell);
    println!("\n{}", table(&outcomes));
    let failed: Vec<u64> = outcomes.iter().filter(|o| !o.is_good()).map(|o| o.schedule.seed).collect();
    assert!(
        failed.is_empty(),
        "the schedules of the seeds {failed:?} failed: nagare-faults --seeds N..N+1 runs one again"
    );
    assert_eq!(outcomes.len() as u64, SEEDS);
}
