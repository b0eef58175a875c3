//! When probes did not meter, as they tell themselves: with the first books after a start a probe says for how long nothing was
//! metered before it. That is no term of an equation, for it counts no flows.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::{ACCOUNTS_MAX, BookEntry, INIT_TIME};
use super::model::{Interruption, Period};
use super::presence::EXPORTERS_MAX;

/// Interruptions of one exporter that a report holds at most.
pub const INTERRUPTIONS_MAX: usize = 256;

/// Names of the `books` table that begin so tell of an interruption.
const PREFIX: &str = "gap.";

/// Whether a row of the `books` table tells of an interruption, and so is no term.
pub fn is_interruption(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// What an exporter's Observation Domain told last.
#[derive(Clone, Copy, Default)]
struct Run {
    /// When it began, and when that was told.
    begun: Option<(u64, i64)>,
    /// An interruption before a run whose beginning is still to be told: its milliseconds, and whether the probe was killed.
    before: Option<(u64, bool)>,
}

/// Takes rows of the `books` table in the order of their times and keeps the interruptions that touch one period.
pub struct Interruptions {
    period: Period,
    runs: BTreeMap<(String, u32), Run>,
    /// By exporter, so that one that tells of thousands takes no room from the others.
    kept: BTreeMap<String, BTreeSet<Interruption>>,
}

impl Interruptions {
    /// None yet.
    pub fn new(period: Period) -> Interruptions {
        Interruptions { period, runs: BTreeMap::new(), kept: BTreeMap::new() }
    }

    /// Enters one row. Of rows with equal times `init_time_ms` comes first.
    pub fn enter(&mut self, entry: &BookEntry<'_>) {
        let killed = match (entry.process, entry.name) {
            ("exporting", "gap.killed_ms") => Some(true),
            ("exporting", "gap.stopped_ms") => Some(false),
            ("statistics", INIT_TIME) => None,
            _ => return,
        };
        let source = (entry.exporter.to_owned(), entry.domain);
        if self.runs.len() >= ACCOUNTS_MAX && !self.runs.contains_key(&source) {
            return;
        }
        let run = self.runs.entry(source).or_default();
        let interruption = match killed {
            None => {
                run.begun = Some((entry.value, entry.time_ms));
                run.before.take().map(|(length, killed)| (length, killed, entry.value))
            }
            Some(killed) => match run.begun {
                Some((begun, told_ms)) if told_ms == entry.time_ms => Some((entry.value, killed, begun)),
                // Books of several Messages may have several times, and the beginning is told in the last one.
                _ => {
                    run.before = Some((entry.value, killed));
                    None
                }
            },
        };
        if let Some((length, killed, begun)) = interruption {
            self.keep(entry, length, killed, begun);
        }
    }

    fn keep(&mut self, entry: &BookEntry<'_>, length: u64, killed: bool, begun: u64) {
        let Ok(to_ms) = i64::try_from(begun) else { return };
        // Where a clock was wrong or an exporter lies, nothing is earlier than 1970.
        let from_ms = i64::try_from(begun.saturating_sub(length)).unwrap_or(0);
        let exporter = entry.exporter.to_owned();
        let interruption = Interruption { from_ms, to_ms, exporter, domain: entry.domain, killed };
        let full = self.kept.len() >= EXPORTERS_MAX && !self.kept.contains_key(entry.exporter);
        if full || !interruption.touches(self.period) {
            return;
        }
        let kept = self.kept.entry(entry.exporter.to_owned()).or_default();
        if kept.len() < INTERRUPTIONS_MAX {
            // The same Message may have come twice: equal ones are one.
            kept.insert(interruption);
        }
    }

    /// The interruptions in the order of their times.
    pub fn finish(self) -> Vec<Interruption> {
        let mut all: Vec<Interruption> = self.kept.into_values().flatten().collect();
        all.sort();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Period = Period { from_ms: 1_000_000, to_ms: 2_000_000 };

    fn interruptions(rows: &[(i64, &str, u64)]) -> Vec<(i64, i64, bool)> {
        let mut interruptions = Interruptions::new(PERIOD);
        for (time_ms, name, value) in rows {
            let process = if *name == INIT_TIME { "statistics" } else { "exporting" };
            interruptions.enter(&BookEntry {
                exporter: "a",
                domain: 1,
                process,
                id: 1,
                name,
                time_ms: *time_ms,
                value: *value,
            });
        }
        interruptions.finish().into_iter().map(|one| (one.from_ms, one.to_ms, one.killed)).collect()
    }

    #[test]
    fn an_interruption_ends_where_the_run_begins() {
        let rows = [(9, INIT_TIME, 1_200_000), (9, "gap.killed_ms", 50_000), (9, "gap.killed_ms", 50_000)];
        assert_eq!(interruptions(&rows), [(1_150_000, 1_200_000, true)], "what comes twice counts once");
        let again = [&rows[..], &[(12, INIT_TIME, 1_200_000), (12, "gap.killed_ms", 50_000)]].concat();
        assert_eq!(interruptions(&again).len(), 1);
        let later = [&rows[..], &[(12, INIT_TIME, 1_300_000), (12, "gap.stopped_ms", 0)]].concat();
        assert_eq!(interruptions(&later)[1], (1_300_000, 1_300_000, false));
    }

    #[test]
    fn the_beginning_may_be_told_after_the_interruption() {
        let rows =
            [(5, INIT_TIME, 1_100_000), (9, "gap.stopped_ms", 50_000), (10, INIT_TIME, 1_200_000), (11, INIT_TIME, 7)];
        assert_eq!(interruptions(&rows), [(1_150_000, 1_200_000, false)]);
    }

    #[test]
    fn those_of_other_times_are_left_out() {
        for (begun, length, touches) in [
            (1_000_000, 500_000, false),
            (1_000_000, 0, true),
            (1_000_001, 500_000, true),
            (2_500_000, 500_001, true),
            (2_500_000, 500_000, false),
            (9_000_000, 9_000_000, true),
        ] {
            let rows = [(9, INIT_TIME, begun), (9, "gap.killed_ms", length)];
            assert_eq!(interruptions(&rows).len(), usize::from(touches), "{begun} {length}");
        }
    }

    #[test]
    fn what_a_liar_tells_is_bounded() {
        let told = |begun, length| interruptions(&[(9, INIT_TIME, begun), (9, "gap.killed_ms", length)]);
        assert_eq!(told(1_500_000, u64::MAX), [(0, 1_500_000, true)]);
        assert_eq!(told(i64::MAX as u64, u64::MAX), [(0, i64::MAX, true)]);
        assert_eq!(told(u64::MAX, u64::MAX), []);
        assert_eq!(told(u64::MAX, 0), []);
        assert_eq!(told(0, 5), []);
        assert_eq!(interruptions(&[(9, "gap.killed_ms", 5), (9, "gap.else_ms", 5), (10, "gap.", u64::MAX)]), []);
        let many: Vec<(i64, &str, u64)> = (0..5_000)
            .flat_map(|index| [(index, INIT_TIME, 1_500_000 + index as u64), (index, "gap.killed_ms", 9)])
            .collect();
        assert_eq!(interruptions(&many).len(), INTERRUPTIONS_MAX);
    }

    #[test]
    fn memory_is_bounded() {
        let mut interruptions = Interruptions::new(PERIOD);
        for domain in 0..2 * ACCOUNTS_MAX as u32 {
            for (process, name, value) in [("statistics", INIT_TIME, 1_500_000), ("exporting", "gap.killed_ms", 9)] {
                let exporter = &domain.to_string();
                interruptions.enter(&BookEntry { exporter, domain, process, id: 1, name, time_ms: 9, value });
            }
        }
        assert_eq!((interruptions.runs.len(), interruptions.finish().len()), (ACCOUNTS_MAX, EXPORTERS_MAX));
    }
}
