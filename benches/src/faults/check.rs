//! The judge: what was written to probes against what a collector stored.

#![forbid(unsafe_code)]

use crate::traffic::{number_of, numbered_packets};
use nagare_wire::flow::FlowKey;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Conversations that were written to a probe together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Their numbers.
    pub numbers: Range<u64>,
    /// When the probe had all of them, since the feed began.
    pub at: Duration,
    /// Which start of the probe they were written to.
    pub life: usize,
}

/// A probe that was killed, and may have lost what was still in its cache.
#[derive(Clone, Copy, Debug)]
pub struct Kill {
    /// Which start of the probe.
    pub life: usize,
    /// When, since the feed began.
    pub at: Duration,
    /// What was written so long before may have been in the cache: the idle timeout and what a Message waits to be full.
    pub window: Duration,
}

impl Kill {
    fn excuses(&self, batch: &Batch) -> bool {
        batch.life == self.life && batch.at + self.window >= self.at
    }
}

/// The rows of a store, by the number of their conversation.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// How many rows each number has.
    rows: Vec<u8>,
    /// Numbers with a row whose packets are not those that were sent.
    altered: Vec<u64>,
    /// Rows of no conversation that was sent.
    strange: u64,
}

impl Stored {
    /// Reads all flows of a collector's data directory by its own `flows` command.
    ///
    /// # Errors
    /// The command fails.
    pub fn read(collector: &Path, data: &Path) -> Result<Stored, String> {
        let mut command = Command::new(collector);
        command.args(["flows", "--format", "csv", "--data"]).arg(data).stdout(Stdio::piped());
        let refuse = |error| format!("{} flows: {error}", collector.display());
        let mut child = command.spawn().map_err(refuse)?;
        let mut stored = Stored::default();
        let rows = BufReader::with_capacity(1 << 20, child.stdout.take().expect("piped"));
        for row in rows.lines().skip(1) {
            stored.add(&row.map_err(refuse)?);
        }
        match child.wait().map_err(refuse)? {
            status if status.success() => Ok(stored),
            status => Err(format!("{} flows --data {}: {status}", collector.display(), data.display())),
        }
    }

    /// Takes a row of the CSV contract.
    fn add(&mut self, row: &str) {
        let Some((number, packets)) = numbered_row(row) else {
            self.strange += 1;
            return;
        };
        let index = number as usize;
        // A number that was never written must not decide how much memory is taken.
        if index >= self.rows.len() {
            if index > self.rows.len() + (1 << 24) {
                self.strange += 1;
                return;
            }
            self.rows.resize(index + 1, 0);
        }
        self.rows[index] = self.rows[index].saturating_add(1);
        if packets != numbered_packets(number) {
            self.altered.push(number);
        }
    }

    /// Rows of numbered conversations.
    pub fn len(&self) -> u64 {
        self.rows.iter().map(|count| u64::from(*count)).sum()
    }

    /// Whether no conversation is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many rows a conversation has.
    pub fn count(&self, number: u64) -> u8 {
        self.rows.get(number as usize).copied().unwrap_or(0)
    }
}

/// The number and the packets of a row.
fn numbered_row(row: &str) -> Option<(u64, u64)> {
    let cells: Vec<&str> = row.split(',').collect();
    let cell = |index: usize| cells.get(index)?.parse::<u64>().ok();
    let key = FlowKey {
        source: cells.get(2)?.parse().ok()?,
        destination: cells.get(3)?.parse().ok()?,
        source_port: cell(4)? as u16,
        destination_port: cell(5)? as u16,
        protocol: cell(6)? as u8,
        ..FlowKey::default()
    };
    Some((number_of(&key)?, cell(7)? + cell(9)?))
}

/// What the judge found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Conversations written.
    pub written: u64,
    /// Rows stored of them.
    pub stored: u64,
    /// Numbers that are nowhere, though no kill excuses them.
    pub lost: Vec<u64>,
    /// Numbers that are nowhere, and were in the cache of a probe that was killed.
    pub excused: u64,
    /// Numbers that are stored more than once.
    pub doubled: Vec<u64>,
    /// Numbers that are stored with other packets than were written.
    pub altered: Vec<u64>,
    /// Rows of conversations that were never written.
    pub strange: u64,
}

impl Verdict {
    /// Whether everything is stored exactly once.
    pub fn is_good(&self) -> bool {
        self.lost.is_empty() && self.doubled.is_empty() && self.altered.is_empty() && self.strange == 0
    }
}

/// Holds what was written against what is stored.
pub fn judge(written: &[Batch], kills: &[Kill], stored: &Stored) -> Verdict {
    let mut verdict = Verdict { altered: stored.altered.clone(), ..Verdict::default() };
    for batch in written {
        let excused = kills.iter().any(|kill| kill.excuses(batch));
        for number in batch.numbers.clone() {
            let rows = stored.count(number);
            verdict.written += 1;
            verdict.stored += u64::from(rows);
            match rows {
                0 if excused => verdict.excused += 1,
                0 => verdict.lost.push(number),
                1 => {}
                _ => verdict.doubled.push(number),
            }
        }
    }
    verdict.strange = stored.strange + stored.len() - verdict.stored;
    verdict
}

/// Numbers as ranges: `3-9, 12`, the first few.
pub fn ranges(numbers: &[u64]) -> String {
    const SHOWN: usize = 8;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let show = |(first, last): &(u64, u64)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    let mut text: Vec<String> = ranges.iter().take(SHOWN).map(show).collect();
    if ranges.len() > SHOWN {
        text.push(format!("… ({} ranges)", ranges.len()));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The rows of these numbers, as the collector prints them.
    fn stored(numbers: impl IntoIterator<Item = u64>) -> Stored {
        let mut stored = Stored::default();
        for number in numbers {
            let [.., c, b, a] = number.to_be_bytes();
            let (protocol, port, packets) =
                if number % 8 == 7 { (6, 443, "3,300,2,200") } else { (17, 53, "1,58,0,0") };
            let sport = 2000 + number % 60_000;
            stored.add(&format!(
                "1,2,10.{c}.{b}.{a},198.18.0.0,{sport},{port},{protocol},{packets},0,0,0,0,1,tokyo,::1,1"
            ));
        }
        stored
    }

    fn batch(numbers: Range<u64>, life: usize) -> Batch {
        Batch { at: SECOND * (numbers.start as u32 / 100), numbers, life }
    }

    #[test]
    fn all_that_is_stored_once_is_good() {
        let verdict = judge(&[batch(0..100, 0), batch(100..200, 0)], &[], &stored(0..200));
        assert!(verdict.is_good() && verdict.written == 200 && verdict.stored == 200, "{verdict:?}");
    }

    #[test]
    fn a_lost_and_a_doubled_record_are_found() {
        let rows = (0..200).filter(|number| *number != 17).chain([42]);
        let verdict = judge(&[batch(0..100, 0), batch(100..200, 0)], &[], &stored(rows));
        assert_eq!((&verdict.lost[..], &verdict.doubled[..], verdict.strange), (&[17][..], &[42][..], 0));
        assert!(!verdict.is_good());
    }

    #[test]
    fn a_row_that_was_never_written_or_has_other_packets_is_found() {
        let mut rows = stored(0..101);
        rows.add("1,2,10.0.0.1,198.18.0.0,1,53,17,1,58,0,0,0,0,0,0,1");
        rows.add("1,2,10.0.0.101,198.18.0.0,2101,53,17,2,58,0,0,0,0,0,0,1");
        let verdict = judge(&[batch(0..100, 0)], &[], &rows);
        assert_eq!((verdict.strange, &verdict.altered[..]), (3, &[101][..]));
        assert!(!verdict.is_good());
    }

    #[test]
    fn a_kill_excuses_what_was_in_the_cache_and_nothing_else() {
        let written = [batch(0..100, 0), batch(500..600, 0), batch(600..700, 1)];
        let kill = Kill { life: 0, at: 6 * SECOND, window: 2 * SECOND };
        let all_but = |gone: [u64; 3]| stored((0..100).chain(500..700).filter(move |number| !gone.contains(number)));
        let verdict = judge(&written, &[kill], &all_but([500, 501, 599]));
        assert!(verdict.is_good() && verdict.excused == 3, "{verdict:?}");
        let verdict = judge(&written, &[kill], &all_but([99, 599, 600]));
        assert_eq!((&verdict.lost[..], verdict.excused), (&[99, 600][..], 1), "before the window, and of another life");
        let doubled = stored((0..100).chain(500..700).chain([550]));
        assert_eq!(judge(&written, &[kill], &doubled).doubled, [550], "no kill excuses what is stored twice");
    }

    #[test]
    fn numbers_are_shown_as_ranges() {
        assert_eq!(ranges(&[3, 4, 5, 9, 11, 12]), "3-5, 9, 11-12");
        assert!(ranges(&(0..40).step_by(2).collect::<Vec<_>>()).ends_with("… (20 ranges)"));
    }
}
