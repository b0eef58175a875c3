//! From the counters that probes report every few seconds to what happened in one period.
//!
//! Counters only grow while a process runs and begin at 0 when it begins anew. What was counted in a period is the last
//! value in it less the last value before it, run by run. What is in flight or in a spool is no counter but a stock: it enters
//! the period's equation on the left as it stood at the beginning and on the right as it stands at the end.
//!
//! A probe with a spool sends what waits there beside what is new, so its reports come out of order: of a run whose beginning
//! is known the highest count is the latest.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::interruption::is_interruption;
use super::model::{Kind, Process, Statistics};

/// Processes that one report follows at most: what an exporter reports must not decide over the report's memory.
pub const ACCOUNTS_MAX: usize = 4096;
/// Terms that one process may report at most.
pub const TERMS_MAX: usize = 256;

/// The row that tells when a run began.
pub const INIT_TIME: &str = "init_time_ms";
/// The stock that a probe's spool holds.
pub const SPOOLED: &str = "spooled";
/// What runs that ended left in the spool: a later run delivers it and does not count it as ended again.
pub const LEFT_IN_SPOOL: &str = "left_in_spool";

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

    fn is_outcome(self, name: &str) -> bool {
        matches!(self, Of::Process(kind) if kind.outcome() == name)
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
    /// The report that is being read is older than the last.
    outdated: bool,
    /// The last report in the period.
    last_ms: Option<i64>,
}

impl Account {
    /// Enters a row. `one_run`: the exporter tells when its runs begin, so this is one alone, and less is earlier.
    fn enter(&mut self, of: Of, entry: &BookEntry<'_>, one_run: bool, in_period: bool) {
        let before = self.run.get(entry.name).copied();
        let less = before.is_some_and(|before| entry.value < before);
        let (is_total, is_outcome) = (of.is_total(entry.name), one_run && of.is_outcome(entry.name));
        if is_total && less && !one_run {
            self.restarts += u32::from(in_period);
            self.close_run(in_period);
            self.leave_spool();
        }
        if is_total {
            self.outdated = one_run && less;
        } else if is_outcome {
            self.outdated |= less;
        }
        if one_run && if is_stock(entry.name) { self.outdated } else { less } {
            return;
        }
        // Of two reports with one total the outcome tells which is the later.
        let undecided = self.outdated || (one_run && is_total && before == Some(entry.value));
        if (is_total || is_outcome) && !undecided {
            // These head a report. What is in flight and not in the report any more is in flight no more.
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

    /// What the runs until now have in the spool waits no longer under its name.
    fn leave_spool(&mut self) {
        if let Some(left) = self.closed.remove(SPOOLED).filter(|left| *left > 0) {
            add(&mut self.closed, LEFT_IN_SPOOL.to_owned(), left);
        }
    }

    /// Adds what the same process did in a later run.
    fn append(&mut self, later: Account) {
        self.leave_spool();
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
    ["in_flight", SPOOLED, "queued"].contains(&name.split('.').next().unwrap_or(name))
}

/// Takes book entries in the order of their times and says at the end what the period's books are.
pub struct Ledger {
    from_ms: i64,
    /// By process and by the beginning of its run, 0 where it does not tell: two appliances behind one address stay apart.
    accounts: BTreeMap<(Key, u64), Account>,
    /// The run that an exporter's Observation Domain reported last.
    begun: BTreeMap<(String, u32), Begun>,
}

#[derive(Clone, Copy, Default)]
struct Begun {
    /// When the run began; 0 where that was not told.
    at: u64,
    /// When it was told.
    told_ms: i64,
    /// Another run was told of at the same time: which of them a row of that time is about, nobody knows.
    several: bool,
}

impl Ledger {
    /// A ledger for the period that begins at `from_ms`; entries from before it give the values to begin with.
    pub fn new(from_ms: i64) -> Ledger {
        Ledger { from_ms, accounts: BTreeMap::new(), begun: BTreeMap::new() }
    }

    /// Enters one row. Of rows with equal times `init_time_ms` comes first, then the totals and then the
    /// outcomes, since they tell which run and which report the others are of.
    pub fn enter(&mut self, entry: &BookEntry<'_>) {
        let Some(of) = Of::from_name(entry.process).filter(|_| !is_interruption(entry.name)) else { return };
        let source = (entry.exporter.to_owned(), entry.domain);
        if of == Of::Statistics && entry.name == INIT_TIME {
            if self.begun.len() < ACCOUNTS_MAX || self.begun.contains_key(&source) {
                let before = self.begun.get(&source).filter(|before| before.told_ms == entry.time_ms);
                let several = before.is_some_and(|before| before.several || before.at != entry.value);
                self.begun.insert(source, Begun { at: entry.value, told_ms: entry.time_ms, several });
            }
            return;
        }
        let begun = self.begun.get(&source).copied().unwrap_or_default();
        if begun.several && begun.told_ms == entry.time_ms {
            // Counters only grow: the next report tells all of this one.
            return;
        }
        let key = ((source.0, entry.domain, of, entry.id), begun.at);
        if self.accounts.len() < ACCOUNTS_MAX || self.accounts.contains_key(&key) {
            let in_period = entry.time_ms >= self.from_ms;
            self.accounts.entry(key).or_default().enter(of, entry, begun.at > 0, in_period);
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

    /// Reports of an Exporting Process: time, beginning of the run, ended, delivered, spooled, in flight.
    fn export(reports: &[[u64; 6]]) -> Process {
        let mut ledger = Ledger::new(0);
        for [time, begun, ended, delivered, spooled, in_flight] in reports.iter().copied() {
            for (process, name, value) in [
                ("statistics", INIT_TIME, begun),
                ("exporting", "ended", ended),
                ("exporting", "delivered", delivered),
                ("exporting", "gap.killed_ms", u64::MAX),
                ("exporting", "gap.stopped_ms", 60_000),
                ("exporting", SPOOLED, spooled),
                ("exporting", "in_flight", in_flight),
            ] {
                let (time_ms, domain) = (time as i64, 1);
                ledger.enter(&BookEntry { exporter: "a", domain, process, id: 1, name, time_ms, value });
            }
        }
        let (processes, _) = ledger.finish();
        processes.into_iter().next().unwrap()
    }

    #[test]
    fn an_interruption_is_no_term() {
        let process = export(&[[1, 5, 10, 9, 0, 1], [2, 5, 20, 20, 0, 0]]);
        assert_eq!((process.total, process.sum("gap."), process.balanced()), (Some(20), 0, true));
    }

    #[test]
    fn reports_out_of_the_spool_come_late() {
        let process =
            export(&[[1, 5, 10, 9, 0, 1], [2, 5, 90, 10, 60, 20], [3, 5, 30, 9, 20, 1], [4, 5, 91, 71, 20, 0]]);
        assert_eq!((process.total, process.restarts, process.term("delivered")), (Some(91), 0, 71));
        assert_eq!((process.term(SPOOLED), process.balanced()), (20, true));
        let idle = export(&[[1, 5, 10, 2, 0, 8], [2, 5, 10, 9, 1, 0], [3, 5, 10, 2, 0, 8], [4, 5, 10, 3, 7, 0]]);
        assert_eq!((idle.term("delivered"), idle.term(SPOOLED), idle.balanced()), (9, 1, true));
    }

    #[test]
    fn what_a_run_left_in_the_spool_waits_no_more() {
        let process = export(&[[1, 5, 10, 4, 6, 0], [2, 9, 30, 28, 2, 0], [3, 5, 9, 4, 5, 0], [4, 9, 40, 37, 3, 0]]);
        assert_eq!((process.total, process.restarts, process.balanced()), (Some(50), 1, true));
        assert_eq!((process.term(SPOOLED), process.term(LEFT_IN_SPOOL)), (3, 6));
    }

    #[test]
    fn runs_told_of_at_one_time_are_not_mixed_up() {
        let mut ledger = Ledger::new(0);
        let mut enter = |time_ms, process, name, value| {
            ledger.enter(&BookEntry { exporter: "a", domain: 1, process, id: 1, name, time_ms, value });
        };
        for (time_ms, begun, totals) in [(1, &[5][..], &[100][..]), (2, &[5, 9], &[3, 110]), (3, &[9], &[4])] {
            begun.iter().for_each(|begun| enter(time_ms, "statistics", INIT_TIME, *begun));
            totals.iter().for_each(|total| enter(time_ms, "exporting", "ended", *total));
            totals.iter().for_each(|total| enter(time_ms, "exporting", "delivered", *total));
        }
        let (processes, _) = ledger.finish();
        assert_eq!((processes[0].total, processes[0].balanced()), (Some(104), true));
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
