//! From the counters that probes report every few seconds to what happened in one period.
//!
//! Counters only grow while a process runs and begin at 0 when it begins anew. What was counted in a period is the last
//! value in it less the last value before it, run by run. What is in flight is no counter but a stock: it enters the
//! period's equation on the left as it stood at the beginning and on the right as it stands at the end.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::model::{Kind, Process, Statistics};

/// Processes that one report follows at most: what an exporter reports must not decide over the report's memory.
pub const ACCOUNTS_MAX: usize = 1024;
/// Terms that one process may report at most.
pub const TERMS_MAX: usize = 256;

const INIT_TIME: &str = "init_time_ms";

/// One row of the `books` table.
#[derive(Clone, Copy, Debug)]
pub struct BookEntry<'a> {
    /// The exporter's address.
    pub exporter: &'a str,
    /// The Observation Domain.
    pub domain: u32,
    /// `metering`, `exporting` or `statistics`.
    pub process: &'a str,
    /// meteringProcessId or exportingProcessId.
    pub id: u32,
    /// The term.
    pub name: &'a str,
    /// When it was reported.
    pub time_ms: i64,
    /// Its value since the process began.
    pub value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    Process(Kind),
    Statistics,
}

impl Of {
    fn from_name(name: &str) -> Option<Of> {
        [Of::Process(Kind::Metering), Of::Process(Kind::Exporting), Of::Statistics]
            .into_iter()
            .find(|of| of.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Of::Process(kind) => kind.name(),
            Of::Statistics => "statistics",
        }
    }

    /// The term whose change tells that the process began anew.
    fn begins_anew(self, name: &str, before: u64, now: u64) -> bool {
        match self {
            Of::Process(kind) => name == kind.total() && now < before,
            Of::Statistics => name == INIT_TIME && now != before,
        }
    }
}

type Key = (String, u32, Of, u32);

#[derive(Default)]
struct Account {
    /// Values of the run that goes on, as last reported.
    run: BTreeMap<String, u64>,
    /// Values of that run before the period.
    base: BTreeMap<String, u64>,
    /// What finished runs contributed to the period.
    closed: BTreeMap<String, u64>,
    opening: u64,
    restarts: u32,
    last_ms: Option<i64>,
}

impl Account {
    fn enter(&mut self, entry: &BookEntry<'_>, in_period: bool) {
        if !self.run.contains_key(entry.name) && self.run.len() >= TERMS_MAX {
            return;
        }
        self.run.insert(entry.name.to_owned(), entry.value);
        if in_period {
            self.last_ms = Some(entry.time_ms);
        } else {
            self.base.insert(entry.name.to_owned(), entry.value);
        }
    }

    /// Books the run that ended. One that ended before the period has nothing to do with it.
    fn close_run(&mut self, in_period: bool) {
        let run = std::mem::take(&mut self.run);
        let base = std::mem::take(&mut self.base);
        if !in_period || run.is_empty() {
            return;
        }
        for (name, value) in run {
            let before = base.get(&name).copied().unwrap_or(0);
            let stock = is_stock(&name);
            if stock {
                self.opening = self.opening.saturating_add(before);
            }
            let sum = self.closed.entry(name).or_default();
            *sum = sum.saturating_add(if stock { value } else { value.saturating_sub(before) });
        }
    }

    fn begin_anew(&mut self, in_period: bool) {
        self.restarts += u32::from(in_period && !self.run.is_empty());
        self.close_run(in_period);
    }
}

/// Whether a term says how much there is now, and not how much there was since the beginning.
fn is_stock(name: &str) -> bool {
    ["in_flight", "spooled", "queued"]
        .iter()
        .any(|stock| name.strip_prefix(stock).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Takes book entries in the order of their times and says at the end what the period's books are.
pub struct Ledger {
    from_ms: i64,
    accounts: BTreeMap<Key, Account>,
}

impl Ledger {
    /// A ledger for the period that begins at `from_ms`; entries from before it give the values to begin with.
    pub fn new(from_ms: i64) -> Ledger {
        Ledger { from_ms, accounts: BTreeMap::new() }
    }

    /// Enters one row. Of rows with equal times the total (or `init_time_ms`) must come first, since it tells of restarts.
    pub fn enter(&mut self, entry: &BookEntry<'_>) {
        let Some(of) = Of::from_name(entry.process) else { return };
        let in_period = entry.time_ms >= self.from_ms;
        let key = (entry.exporter.to_owned(), entry.domain, of, entry.id);
        if !self.accounts.contains_key(&key) && self.accounts.len() >= ACCOUNTS_MAX {
            return;
        }
        let account = self.accounts.entry(key).or_default();
        let before = account.run.get(entry.name).copied();
        if before.is_some_and(|before| of.begins_anew(entry.name, before, entry.value)) {
            account.begin_anew(in_period);
        }
        account.enter(entry, in_period);
    }

    /// The books and statistics of every process that was heard from in the period.
    pub fn finish(self) -> (Vec<Process>, Vec<Statistics>) {
        let (mut processes, mut statistics) = (Vec::new(), Vec::new());
        for ((exporter, domain, of, id), mut account) in self.accounts {
            let Some(last_ms) = account.last_ms else { continue };
            let started_ms = account.run.remove(INIT_TIME).and_then(|time| i64::try_from(time).ok());
            account.close_run(true);
            account.closed.remove(INIT_TIME);
            let Account { mut closed, opening, restarts, .. } = account;
            match of {
                Of::Process(kind) => {
                    let total = closed.remove(kind.total());
                    let terms = closed.into_iter().collect();
                    processes.push(Process { exporter, domain, kind, id, restarts, last_ms, total, opening, terms });
                }
                Of::Statistics => {
                    let counters = closed.into_iter().collect();
                    statistics.push(Statistics { exporter, domain, id, started_ms, last_ms, counters });
                }
            }
        }
        (processes, statistics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(rows: &[(i64, &str, u64)], process: &str) -> (Vec<Process>, Vec<Statistics>) {
        let mut ledger = Ledger::new(0);
        for (time_ms, name, value) in rows {
            ledger.enter(&BookEntry {
                exporter: "a",
                domain: 1,
                process,
                id: 7,
                name,
                time_ms: *time_ms,
                value: *value,
            });
        }
        ledger.finish()
    }

    #[test]
    fn counts_the_period_alone_and_adds_up_runs() {
        let rows = [
            (-20, "wire", 900),
            (-20, "metered", 900),
            (-10, "wire", 100),
            (-10, "metered", 90),
            (-10, "drop.rx_ring_full", 10),
            (10, "wire", 150),
            (10, "metered", 130),
            (10, "drop.rx_ring_full", 20),
            (20, "wire", 5),
            (20, "metered", 5),
            (20, "drop.rx_ring_full", 0),
            (30, "wire", 7),
            (30, "metered", 6),
            (30, "drop.rx_ring_full", 1),
        ];
        let (processes, _) = book(&rows, "metering");
        let process = &processes[0];
        assert_eq!((process.total, process.restarts), (Some(57), 1));
        assert_eq!((process.term("metered"), process.sum("drop.")), (46, 11));
        assert!(process.balanced());
    }

    #[test]
    fn what_is_in_flight_is_a_stock() {
        let rows = [
            (-10, "ended", 100),
            (-10, "delivered", 60),
            (-10, "in_flight", 40),
            (10, "ended", 110),
            (10, "delivered", 109),
            (10, "in_flight", 1),
        ];
        let (processes, _) = book(&rows, "exporting");
        let process = &processes[0];
        assert_eq!((process.total, process.opening, process.term("in_flight")), (Some(10), 40, 1));
        assert!(process.balanced());
    }

    #[test]
    fn what_does_not_add_up_is_not_balanced() {
        assert!(!book(&[(1, "wire", 10), (1, "metered", 9)], "metering").0[0].balanced());
        assert!(!book(&[(1, "metered", 9)], "metering").0[0].balanced());
        assert!(
            book(&[(-1, "wire", 10)], "metering").0.is_empty(),
            "a process that was silent in the period has no books"
        );
    }

    #[test]
    fn statistics_follow_the_init_time() {
        let rows = [(1, INIT_TIME, 1000), (1, "records", 50), (2, INIT_TIME, 2000), (2, "records", 70)];
        let (_, statistics) = book(&rows, "statistics");
        assert_eq!((statistics[0].started_ms, statistics[0].counter("records")), (Some(2000), 120));
    }

    #[test]
    fn memory_is_bounded() {
        let mut ledger = Ledger::new(0);
        for id in 0..2 * ACCOUNTS_MAX as u32 {
            ledger.enter(&BookEntry {
                exporter: "a",
                domain: 1,
                process: "metering",
                id,
                name: "wire",
                time_ms: 1,
                value: 1,
            });
        }
        for name in 0..2 * TERMS_MAX {
            let name = name.to_string();
            ledger.enter(&BookEntry {
                exporter: "a",
                domain: 1,
                process: "metering",
                id: 0,
                name: &name,
                time_ms: 1,
                value: 1,
            });
        }
        let (processes, _) = ledger.finish();
        assert_eq!(processes.len(), ACCOUNTS_MAX);
        assert!(processes[0].terms.len() < TERMS_MAX);
    }
}
