//! From the counters that probes report every few seconds to what happened in one period.
//!
//! Counters only grow while a process runs and begin at 0 when it begins anew. What was counted in a period is the last
//! value in it less the last value before it, run by run. What is in flight is no counter but a stock: it enters the
//! period's equation on the left as it stood at the beginning and on the right as it stands at the end.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::model::{Kind, Process, Statistics};

/// Processes that one report follows at most: what an exporter reports must not decide over the report's memory.
pub const ACCOUNTS_MAX: usize = 4096;
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
        let all = [Of::Process(Kind::Metering), Of::Process(Kind::Exporting), Of::Statistics];
        all.into_iter().find(|of| of.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Of::Process(kind) => kind.name(),
            Of::Statistics => "statistics",
        }
    }

    fn is_total(self, name: &str) -> bool {
        matches!(self, Of::Process(kind) if kind.total() == name)
    }
}

/// Exporter, Observation Domain, process, its identifier.
type Key = (String, u32, Of, u32);

/// One process, in one run as far as the exporter tells when it began.
#[derive(Clone, Default)]
struct Account {
    /// Values as last reported.
    run: BTreeMap<String, u64>,
    /// Values before the period.
    base: BTreeMap<String, u64>,
    /// What runs that ended contributed to the period.
    closed: BTreeMap<String, u64>,
    opening: u64,
    restarts: u32,
    /// The last report in the period.
    last_ms: Option<i64>,
}

impl Account {
    fn enter(&mut self, of: Of, entry: &BookEntry<'_>, in_period: bool) {
        if of.is_total(entry.name) {
            if self.run.get(entry.name).is_some_and(|before| entry.value < *before) {
                self.restarts += u32::from(in_period);
                self.close_run(in_period);
            }
            // The total heads a report. What is in flight and not in the report any more is in flight no more.
            self.run.retain(|name, _| !is_stock(name));
            self.base.retain(|name, _| in_period || !is_stock(name));
        }
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

    /// Books the run. One that ended before the period has nothing to do with it.
    fn close_run(&mut self, in_period: bool) {
        let (run, base) = (std::mem::take(&mut self.run), std::mem::take(&mut self.base));
        if !in_period {
            return;
        }
        let stocks = base.iter().filter(|(name, _)| is_stock(name)).map(|(_, value)| *value);
        self.opening = stocks.fold(self.opening, u64::saturating_add);
        for (name, value) in run {
            let before = if is_stock(&name) { 0 } else { base.get(&name).copied().unwrap_or(0) };
            add(&mut self.closed, name, value.saturating_sub(before));
        }
    }

    /// Adds what the same process did in a later run.
    fn append(&mut self, later: Account) {
        later.closed.into_iter().for_each(|(name, value)| add(&mut self.closed, name, value));
        self.opening = self.opening.saturating_add(later.opening);
        self.restarts += 1 + later.restarts;
        self.last_ms = self.last_ms.max(later.last_ms);
    }
}

fn add(sums: &mut BTreeMap<String, u64>, name: String, value: u64) {
    let sum = sums.entry(name).or_default();
    *sum = sum.saturating_add(value);
}

/// Whether a term says how much there is now, and not how much there was since the beginning.
fn is_stock(name: &str) -> bool {
    ["in_flight", "spooled", "queued"].contains(&name.split('.').next().unwrap_or(name))
}

/// Takes book entries in the order of their times and says at the end what the period's books are.
pub struct Ledger {
    from_ms: i64,
    /// By process and by the beginning of its run, 0 where it does not tell: two appliances behind one address stay apart.
    accounts: BTreeMap<(Key, u64), Account>,
    /// When the run began that an exporter's Observation Domain reported last.
    begun: BTreeMap<(String, u32), u64>,
}

impl Ledger {
    /// A ledger for the period that begins at `from_ms`; entries from before it give the values to begin with.
    pub fn new(from_ms: i64) -> Ledger {
        Ledger { from_ms, accounts: BTreeMap::new(), begun: BTreeMap::new() }
    }

    /// Enters one row. Of rows with equal times `init_time_ms` comes first and then the totals, since they tell of new runs.
    pub fn enter(&mut self, entry: &BookEntry<'_>) {
        let Some(of) = Of::from_name(entry.process) else { return };
        let source = (entry.exporter.to_owned(), entry.domain);
        if of == Of::Statistics && entry.name == INIT_TIME {
            if self.begun.len() < ACCOUNTS_MAX || self.begun.contains_key(&source) {
                self.begun.insert(source, entry.value);
            }
            return;
        }
        let begun = self.begun.get(&source).copied().unwrap_or(0);
        let key = ((source.0, entry.domain, of, entry.id), begun);
        if self.accounts.len() < ACCOUNTS_MAX || self.accounts.contains_key(&key) {
            self.accounts.entry(key).or_default().enter(of, entry, entry.time_ms >= self.from_ms);
        }
    }

    /// The books and statistics of every process that was heard from in the period.
    pub fn finish(self) -> (Vec<Process>, Vec<Statistics>) {
        let mut processes: BTreeMap<Key, (Account, u64)> = BTreeMap::new();
        for ((key, begun), mut account) in self.accounts {
            if account.last_ms.is_none() {
                continue;
            }
            account.close_run(true);
            match processes.get_mut(&key) {
                Some((earlier, last_begun)) => {
                    earlier.append(account);
                    *last_begun = begun;
                }
                None => {
                    processes.insert(key, (account, begun));
                }
            }
        }
        let (mut books, mut statistics) = (Vec::new(), Vec::new());
        for ((exporter, domain, of, id), (account, begun)) in processes {
            let Account { mut closed, opening, restarts, last_ms, .. } = account;
            let last_ms = last_ms.unwrap_or(self.from_ms);
            match of {
                Of::Process(kind) => {
                    let total = closed.remove(kind.total());
                    let terms = closed.into_iter().collect();
                    books.push(Process { exporter, domain, kind, id, restarts, last_ms, total, opening, terms });
                }
                Of::Statistics => {
                    let started_ms = i64::try_from(begun).ok().filter(|begun| *begun > 0);
                    let counters = closed.into_iter().collect();
                    statistics.push(Statistics { exporter, domain, id, started_ms, last_ms, counters });
                }
            }
        }
        (books, statistics)
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
    fn what_a_report_leaves_out_is_no_longer_in_flight() {
        let rows =
            [(1, "ended", 10), (1, "delivered", 0), (1, "in_flight", 10), (2, "ended", 10), (2, "delivered", 10)];
        assert!(book(&rows, "exporting").0[0].balanced());
        let before = rows.map(|(time, name, value)| (time - 2, name, value));
        assert_eq!(book(&before, "exporting").0[0].opening, 10);
        let before = rows.map(|(time, name, value)| (time - 3, name, value));
        let (processes, _) = book(&[&before[..], &[(1, "ended", 10), (1, "delivered", 10)]].concat(), "exporting");
        assert_eq!((processes[0].opening, processes[0].balanced()), (0, true));
    }

    #[test]
    fn runs_are_told_apart_by_their_beginning() {
        // A run that counts more than the one before it; and two appliances behind one address, by turns.
        for runs in [vec![(5, 10), (6, 30)], vec![(5, 10), (6, 1), (5, 12), (6, 9), (5, 12)]] {
            let mut ledger = Ledger::new(0);
            for (time_ms, (begun, wire)) in (1..).zip(&runs) {
                for (process, name, value) in
                    [("statistics", INIT_TIME, *begun), ("metering", "wire", *wire), ("metering", "metered", *wire)]
                {
                    ledger.enter(&BookEntry { exporter: "a", domain: 1, process, id: 7, name, time_ms, value });
                }
            }
            let (processes, _) = ledger.finish();
            let last = |begun| runs.iter().rev().find(|run| run.0 == begun).map_or(0, |run| run.1);
            assert_eq!(processes[0].total, Some(last(5) + last(6)));
            assert!(processes[0].balanced() && processes[0].restarts == 1);
        }
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
