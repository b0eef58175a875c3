//! When each exporter was heard from: by its flows, which say when they were, and by the reports on its books.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Exporter, Period};

/// Exporters that a report lists at most.
pub const EXPORTERS_MAX: usize = 64;
/// Exporters beyond those that are counted at most.
const OMITTED_MAX: usize = 10_000;
/// Steps that a period has at most; they are a minute long where it is not too long for that.
const STEPS_MAX: i64 = 50_000;
const MINUTE_MS: i64 = 60_000;
/// An exporter that was not heard from for longer than this was interrupted.
const GAP_MIN_MS: i64 = 5 * MINUTE_MS;

/// The presence of all exporters over one period.
#[derive(Clone, Debug)]
pub struct Presences {
    period: Period,
    step_ms: i64,
    exporters: BTreeMap<String, Presence>,
    omitted: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Presence {
    flows: u64,
    steps: Vec<bool>,
    seen: Option<Period>,
    /// Whether it was heard from before the period: only then can it be missing at the beginning.
    before: bool,
}

impl Presences {
    /// Nobody yet.
    pub fn new(period: Period) -> Presences {
        let minutes = period.length_ms().div_euclid(MINUTE_MS) + 1;
        let step_ms = MINUTE_MS * (minutes.div_euclid(STEPS_MAX) + 1);
        Presences { period, step_ms, exporters: BTreeMap::new(), omitted: BTreeSet::new() }
    }

    /// Notes a flow that lasted from `start_ms` to `end_ms`; it is counted where it began in the period.
    pub fn flow(&mut self, exporter: &str, start_ms: i64, end_ms: i64) {
        let last_ms = self.period.to_ms - 1;
        let began = self.period.contains(start_ms);
        let start_ms = start_ms.clamp(self.period.from_ms, last_ms);
        let (first, last) = (self.index(start_ms), self.index(end_ms.clamp(start_ms, last_ms)));
        if let Some(presence) = self.presence(exporter) {
            presence.flows += u64::from(began);
            presence.steps[first..=last].fill(true);
            presence.see(start_ms, end_ms.clamp(start_ms, last_ms));
        }
    }

    /// Notes a report on books at `time_ms`, in the period or before it.
    pub fn report(&mut self, exporter: &str, time_ms: i64) {
        let (inside, before) = (self.period.contains(time_ms), time_ms < self.period.from_ms);
        let index = self.index(time_ms);
        if let Some(presence) = self.presence(exporter) {
            presence.before |= before;
            if inside {
                presence.steps[index] = true;
                presence.see(time_ms, time_ms);
            }
        }
    }

    /// How many exporters there are beyond those that are listed.
    pub fn omitted(&self) -> u64 {
        self.omitted.len() as u64
    }

    /// The exporters by name. Times from `until_ms` on are not yet over and so no interruption. `figures` gives what an
    /// exporter delivered and lost.
    pub fn finish(self, until_ms: i64, figures: impl Fn(&str) -> (Option<u64>, u64)) -> Vec<Exporter> {
        let until_ms = until_ms.min(self.period.to_ms);
        let (period, step_ms) = (self.period, self.step_ms);
        let exporter = |(name, presence): (String, Presence)| {
            let gaps = presence.gaps(period.from_ms, step_ms, until_ms);
            let (exported, lost) = figures(&name);
            Exporter { name, seen: presence.seen, flows: presence.flows, exported, lost, heard: presence.steps, gaps }
        };
        self.exporters.into_iter().map(exporter).collect()
    }

    fn index(&self, time_ms: i64) -> usize {
        let last = (self.period.length_ms() - 1) / self.step_ms;
        (time_ms.saturating_sub(self.period.from_ms) / self.step_ms).clamp(0, last) as usize
    }

    fn presence(&mut self, exporter: &str) -> Option<&mut Presence> {
        if !self.exporters.contains_key(exporter) {
            if self.exporters.len() >= EXPORTERS_MAX {
                if self.omitted.len() < OMITTED_MAX {
                    self.omitted.insert(exporter.to_owned());
                }
                return None;
            }
            let steps = vec![false; self.index(self.period.to_ms) + 1];
            let presence = Presence { flows: 0, steps, seen: None, before: false };
            self.exporters.insert(exporter.to_owned(), presence);
        }
        self.exporters.get_mut(exporter)
    }
}

impl Presence {
    fn see(&mut self, from_ms: i64, to_ms: i64) {
        let seen = self.seen.unwrap_or(Period { from_ms, to_ms });
        self.seen = Some(Period { from_ms: seen.from_ms.min(from_ms), to_ms: seen.to_ms.max(to_ms) });
    }

    fn gaps(&self, from_ms: i64, step_ms: i64, until_ms: i64) -> Vec<Period> {
        let time = |step: usize| from_ms + step as i64 * step_ms;
        let first = if self.before { Some(0) } else { self.steps.iter().position(|heard| *heard) };
        let Some(mut silent_since) = first else { return Vec::new() };
        let mut gaps = Vec::new();
        let heard = self.steps.iter().enumerate().filter(|(_, heard)| **heard).map(|(step, _)| step);
        // The end counts as heard, so that the last silence ends too.
        for step in heard.chain([self.steps.len()]) {
            let gap = Period { from_ms: time(silent_since), to_ms: time(step).min(until_ms) };
            if step >= silent_since && gap.length_ms() > GAP_MIN_MS.max(2 * step_ms) {
                gaps.push(gap);
            }
            silent_since = step + 1;
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 60 * MINUTE_MS;

    fn gaps(before: bool, until_ms: i64, minutes: &[i64]) -> Vec<(i64, i64)> {
        let mut presences = Presences::new(Period { from_ms: 0, to_ms: HOUR_MS });
        if before {
            presences.report("a", -MINUTE_MS);
        }
        for minute in minutes {
            presences.report("a", minute * MINUTE_MS);
        }
        let exporters = presences.finish(until_ms, |_| (None, 0));
        exporters
            .iter()
            .flat_map(|exporter| &exporter.gaps)
            .map(|gap| (gap.from_ms / MINUTE_MS, gap.to_ms / MINUTE_MS))
            .collect()
    }

    #[test]
    fn silences_are_found() {
        assert_eq!(gaps(false, HOUR_MS, &[20, 24, 40, 58]), [(25, 40), (41, 58)]);
        assert_eq!(gaps(true, HOUR_MS, &[20, 25, 30, 35]), [(0, 20), (36, 60)]);
        assert_eq!(gaps(false, 38 * MINUTE_MS, &[20, 25, 30, 35]), []);
        assert_eq!(gaps(false, HOUR_MS, &[]), []);
        assert_eq!(gaps(true, HOUR_MS, &[]), [(0, 60)]);
    }

    #[test]
    fn flows_fill_their_time() {
        let mut presences = Presences::new(Period { from_ms: 0, to_ms: HOUR_MS });
        presences.flow("a", 0, 2 * HOUR_MS);
        presences.flow("a", i64::MIN, i64::MAX);
        presences.flow("a", 30 * MINUTE_MS, 0);
        let exporter = &presences.finish(HOUR_MS, |_| (Some(4), 1))[0];
        assert!(exporter.gaps.is_empty() && exporter.heard.iter().all(|heard| *heard));
        assert_eq!((exporter.flows, exporter.exported, exporter.lost), (2, Some(4), 1));
    }

    #[test]
    fn memory_is_bounded() {
        let mut presences = Presences::new(Period { from_ms: 0, to_ms: 3_653 * 24 * HOUR_MS });
        for exporter in 0..2 * EXPORTERS_MAX {
            presences.flow(&exporter.to_string(), 0, 0);
        }
        assert_eq!(presences.omitted(), EXPORTERS_MAX as u64);
        let exporters = presences.finish(0, |_| (None, 0));
        assert!(exporters.len() == EXPORTERS_MAX && exporters[0].heard.len() <= STEPS_MAX as usize);
    }
}
