//! Faults between a probe and its collector, and the proof that every flow is stored exactly once all the same.
//!
//! A [`Schedule`] says what goes wrong and when; it comes from a seed. [`Ground::run`] runs it with the real programs: numbered
//! conversations are fed to a probe, its TLS goes through a [`proxy`] to a collector, and at the end [`check::judge`] holds what
//! was fed against what is stored.

pub mod check;
pub mod disk;
pub mod feed;
pub mod proxy;
pub mod rig;
pub mod schedule;

pub use rig::{Ground, Outcome};
pub use schedule::{Event, Fault, Schedule};

use check::{Verdict, ranges};
use nagare_service::run::Stop;
use nagare_service::units::grouped;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Runs the schedules of these seeds, so many at once, until `stop` is set; each outcome is told as it comes.
pub fn run_all(
    ground: &Ground,
    seeds: impl Iterator<Item = u64> + Send,
    at_once: usize,
    keep: &Path,
    stop: &Stop,
    tell: impl Fn(&Outcome) + Sync,
) -> Vec<Outcome> {
    let (seeds, outcomes) = (Mutex::new(seeds), Mutex::new(Vec::new()));
    let next = || seeds.lock().unwrap_or_else(PoisonError::into_inner).next().filter(|_| !stop.is_set());
    std::thread::scope(|scope| {
        for _ in 0..at_once.max(1) {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    let outcome = run_one(ground, seed, keep, stop);
                    tell(&outcome);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// On a thread of its own: mounts are a thread's, and a panic in one schedule is a failure of that one.
fn run_one(ground: &Ground, seed: u64, keep: &Path, stop: &Stop) -> Outcome {
    let schedule = Schedule::of(seed);
    let run = || ground.run(schedule.clone(), keep, stop);
    let outcome = std::thread::scope(|scope| scope.spawn(run).join());
    outcome.unwrap_or_else(|_| {
        let complaints = vec!["the harness panicked: its words are above".to_owned()];
        Outcome { schedule, verdict: Verdict::default(), complaints, kept: None }
    })
}

/// An outcome in words: a line where it is good, what is wrong and how to see it again where it is not.
pub fn told(outcome: &Outcome) -> String {
    let (verdict, mut text) = (&outcome.verdict, outcome.schedule.to_string());
    write!(text, "\n    {} flows", grouped(verdict.written)).expect("writing to a String cannot fail");
    if verdict.excused > 0 {
        write!(text, ", {} in the cache of a killed probe", verdict.excused).expect("writing to a String cannot fail");
    }
    for (what, numbers) in [("LOST", &verdict.lost), ("DOUBLED", &verdict.doubled), ("ALTERED", &verdict.altered)] {
        if !numbers.is_empty() {
            write!(text, ", {what} {}: {}", numbers.len(), ranges(numbers)).expect("writing to a String cannot fail");
        }
    }
    if verdict.strange > 0 {
        write!(text, ", {} rows OF NOTHING THAT WAS SENT", verdict.strange).expect("writing to a String cannot fail");
    }
    outcome.complaints.iter().for_each(|complaint| text += &format!("\n    WRONG: {complaint}"));
    outcome.kept.iter().for_each(|kept| text += &format!("\n    kept: {}", kept.display()));
    if outcome.is_good() {
        text += ": each stored once";
    }
    text
}

/// What became of the schedules that had one fault.
struct Line {
    fault: Fault,
    schedules: usize,
    flows: u64,
    lost: usize,
    doubled: usize,
}

fn lines(outcomes: &[Outcome]) -> Vec<Line> {
    let line = |fault: Fault| {
        let with: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.schedule.has(fault)).collect();
        Line {
            fault,
            schedules: with.len(),
            flows: with.iter().map(|outcome| outcome.verdict.written).sum(),
            lost: with.iter().map(|outcome| outcome.verdict.lost.len()).sum(),
            doubled: with.iter().map(|outcome| outcome.verdict.doubled.len()).sum(),
        }
    };
    Fault::ALL.into_iter().map(line).collect()
}

/// The fault table: for each fault the schedules in which it ran, and what was lost and doubled in those.
pub fn table(outcomes: &[Outcome]) -> String {
    let row = |name: &str, cells: [String; 4]| {
        format!("{name:<36} {:>9} {:>12} {:>8} {:>8}\n", cells[0], cells[1], cells[2], cells[3])
    };
    let mut text = row("fault", ["schedules", "flows", "lost", "doubled"].map(String::from));
    for line in lines(outcomes) {
        let numbers = [line.schedules as u64, line.flows, line.lost as u64, line.doubled as u64];
        text += &row(line.fault.name(), numbers.map(grouped));
    }
    let all = |count: fn(&Outcome) -> u64| outcomes.iter().map(count).sum::<u64>();
    let sums = [
        outcomes.len() as u64,
        all(|outcome| outcome.verdict.written),
        all(|outcome| outcome.verdict.lost.len() as u64),
        all(|outcome| outcome.verdict.doubled.len() as u64),
    ];
    text + &row("all schedules", sums.map(grouped))
}

/// The same for programs, with the failures.
pub fn to_json(outcomes: &[Outcome]) -> Value {
    let faults = lines(outcomes).into_iter().map(|line| {
        json!({
            "fault": line.fault.name(), "schedules": line.schedules, "flows": line.flows, "lost": line.lost,
            "doubled": line.doubled,
        })
    });
    let failures = outcomes
        .iter()
        .filter(|outcome| !outcome.is_good())
        .map(|outcome| json!({ "seed": outcome.schedule.seed, "told": told(outcome) }));
    json!({
        "schedules": outcomes.len(),
        "flows": outcomes.iter().map(|outcome| outcome.verdict.written).sum::<u64>(),
        "excused": outcomes.iter().map(|outcome| outcome.verdict.excused).sum::<u64>(),
        "faults": faults.collect::<Vec<_>>(),
        "failures": failures.collect::<Vec<_>>(),
    })
}
