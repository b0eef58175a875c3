//! The writer thread: collects rows by table, site and hour, and writes them when their time has come.

use super::files::{make_partition, write_whole};
use super::layout::{FileRange, Hour, Partition, next_number};
use super::table::TableRow;
use super::{BookRow, FlowRow, Row, SessionRow, SharedCounters, StoreOptions};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use datafusion::arrow::array::RecordBatch;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// When the store closes, a partition that cannot be written is tried this often before its rows are given up.
const CLOSE_ATTEMPTS: usize = 3;

/// How soon a writer that takes nothing, because the disk refuses, sees that the store closes.
const CLOSE_POLL: Duration = Duration::from_millis(100);

/// Pause between these attempts.
const CLOSE_PAUSE: Duration = Duration::from_millis(500);

/// What flushes share: where to write, whom to tell.
struct Target {
    dir: PathBuf,
    retry_limit: Duration,
    counters: SharedCounters,
    /// Partitions that got a file, for the merger.
    written: Sender<Partition>,
}

/// Collects and writes; owned by its thread.
pub(super) struct Writer {
    target: Target,
    options: StoreOptions,
    flows: Pending<FlowRow>,
    books: Pending<BookRow>,
    sessions: Pending<SessionRow>,
    /// The store closes: what is queued must come in, however full.
    closing: Arc<AtomicBool>,
    flush_at: Instant,
    /// The last flush could not write everything: wait for the next time, however full.
    failing: bool,
}

impl Writer {
    pub(super) fn new(
        dir: &Path,
        options: StoreOptions,
        counters: SharedCounters,
        closing: Arc<AtomicBool>,
        written: Sender<Partition>,
    ) -> Writer {
        Writer {
            target: Target { dir: dir.to_owned(), retry_limit: options.retry_limit, counters, written },
            closing,
            flush_at: Instant::now() + options.flush_interval,
            options,
            flows: Pending::default(),
            books: Pending::default(),
            sessions: Pending::default(),
            failing: false,
        }
    }

    /// Runs until the sending end of `batches` is gone, then writes what is left.
    pub(super) fn run(mut self, batches: &Receiver<Vec<Row>>) {
        loop {
            let wait = self.flush_at.saturating_duration_since(Instant::now());
            if self.is_full() && !self.closing.load(Ordering::Relaxed) {
                // Only a disk that refuses leads here. The queue fills, sessions stop reading: nothing is lost yet.
                std::thread::sleep(wait.min(CLOSE_POLL));
            } else {
                match batches.recv_timeout(wait) {
                    Ok(batch) => self.take(batch),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            if Instant::now() >= self.flush_at || (self.is_full() && !self.failing) {
                self.flush();
            }
        }
        self.finish();
    }

    fn is_full(&self) -> bool {
        let rows = self.flows.rows + self.books.rows + self.sessions.rows;
        let partitions = self.flows.partitions.len() + self.books.partitions.len() + self.sessions.partitions.len();
        rows >= self.options.rows_max || partitions >= self.options.partitions_max
    }

    fn take(&mut self, batch: Vec<Row>) {
        self.target.counters.lock().queued -= batch.len() as u64;
        for row in batch {
            match row {
                Row::Flow(row) => self.flows.push(row),
                Row::Book(row) => self.books.push(row),
                Row::Session(row) => self.sessions.push(row),
            }
        }
    }

    fn flush(&mut self) {
        let (flows, books, sessions) =
            (self.flows.flush(&self.target), self.books.flush(&self.target), self.sessions.flush(&self.target));
        self.failing = !(flows && books && sessions);
        self.flush_at = Instant::now() + self.options.flush_interval;
    }

    fn finish(mut self) {
        for attempt in 0..CLOSE_ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(CLOSE_PAUSE);
            }
            self.flush();
            if !self.failing {
                return;
            }
        }
        self.flows.give_up(&self.target);
        self.books.give_up(&self.target);
        self.sessions.give_up(&self.target);
    }
}

/// Rows of one partition.
struct Buffer<R> {
    rows: Vec<R>,
    /// Since when it cannot be written.
    failing_since: Option<Instant>,
}

/// Rows of one table.
struct Pending<R> {
    partitions: HashMap<(Arc<str>, Hour), Buffer<R>>,
    rows: usize,
}

impl<R> Default for Pending<R> {
    fn default() -> Self {
        Pending { partitions: HashMap::new(), rows: 0 }
    }
}

impl<R: TableRow> Pending<R> {
    fn push(&mut self, row: R) {
        let place = (Arc::clone(row.site()), Hour::of(row.time_ms()));
        let new = || Buffer { rows: Vec::new(), failing_since: None };
        self.partitions.entry(place).or_insert_with(new).rows.push(row);
        self.rows += 1;
    }

    /// Writes every partition; those that cannot be written keep their rows until the limit. True if all were written.
    fn flush(&mut self, target: &Target) -> bool {
        let mut all = true;
        self.partitions.retain(|(site, hour), buffer| {
            let partition = Partition { table: R::TABLE, site: Arc::clone(site), hour: *hour };
            let rows = buffer.rows.len() as u64;
            match write(target, &partition, &mut buffer.rows) {
                Ok(()) => {
                    target.counters.lock().stored(R::TABLE, rows);
                    // A full queue is no loss: the merger hears of the partition with its next file.
                    let _ = target.written.try_send(partition);
                    false
                }
                Err(error) => {
                    all = false;
                    target.counters.lock().write_errors += 1;
                    buffer.keep_or_give_up(target, &partition, &error)
                }
            }
        });
        self.rows = self.partitions.values().map(|buffer| buffer.rows.len()).sum();
        all
    }

    fn give_up(&mut self, target: &Target) {
        for ((site, hour), buffer) in self.partitions.drain() {
            let partition = Partition { table: R::TABLE, site, hour };
            buffer.failed(target, &partition, "the collector stops");
        }
        self.rows = 0;
    }
}

impl<R: TableRow> Buffer<R> {
    /// True if the rows are kept for another attempt.
    fn keep_or_give_up(&mut self, target: &Target, partition: &Partition, error: &io::Error) -> bool {
        let path = partition.path(&target.dir);
        let since = *self.failing_since.get_or_insert_with(|| {
            log::warn!("cannot write {} rows to {}, trying again: {error}", self.rows.len(), path.display());
            Instant::now()
        });
        let keep = since.elapsed() < target.retry_limit;
        if !keep {
            self.failed(target, partition, error);
        }
        keep
    }

    fn failed(&self, target: &Target, partition: &Partition, reason: impl std::fmt::Display) {
        let path = partition.path(&target.dir);
        log::error!("{} rows for {} are lost: {reason}", self.rows.len(), path.display());
        target.counters.lock().failed(R::TABLE, self.rows.len() as u64);
    }
}

/// Writes rows as the partition's next file.
fn write<R: TableRow>(target: &Target, partition: &Partition, rows: &mut [R]) -> io::Result<()> {
    let path = partition.path(&target.dir);
    make_partition(&target.dir, &path)?;
    let number = next_number(&path)?;
    rows.sort_by_key(R::time_ms);
    let batch: RecordBatch = R::batch(rows);
    write_whole(&path, FileRange { first: number, last: number }, R::TABLE, |file| {
        file.write(&batch).map_err(super::files::parquet_error)
    })
}
