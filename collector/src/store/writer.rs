//! The writer thread: collects rows by table, site and hour, and makes them durable with the marks that came with them.

use super::commit::{self, Staged};
use super::files::{make_partition, write_temporary};
use super::layout::{FileRange, Hour, Partition, next_number};
use super::marks::Marks;
use super::table::TableRow;
use super::{Batch, BookRow, FlowRow, Row, SessionRow, Shared, StoreOptions, Table};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use datafusion::arrow::array::RecordBatch;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// When the store closes, what cannot be written is tried this often before it is given up.
const CLOSE_ATTEMPTS: usize = 3;

/// How soon a writer that takes nothing, because the disk refuses, sees that the store closes.
const CLOSE_POLL: Duration = Duration::from_millis(100);

/// Pause between these attempts.
const CLOSE_PAUSE: Duration = Duration::from_millis(500);

/// How often a disk that goes on refusing is told of.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// What the writer is given.
pub(super) enum Item {
    /// Rows and marks.
    Batch(Batch),
    /// The wish that what was given before be durable now.
    Flush,
}

/// Collects and writes; owned by its thread.
pub(super) struct Writer {
    dir: PathBuf,
    options: StoreOptions,
    shared: Shared,
    /// Partitions that got a file, for the merger.
    written: Sender<Partition>,
    flows: Pending<FlowRow>,
    books: Pending<BookRow>,
    sessions: Pending<SessionRow>,
    /// Of everything taken, durable or not.
    marks: Marks,
    /// Batches taken, and of those the ones that are durable.
    taken: u64,
    durable: u64,
    /// Committed files that have not got their names yet.
    unnamed: Vec<Staged>,
    /// The store closes: what is queued must come in, however full.
    closing: Arc<AtomicBool>,
    flush_at: Instant,
    /// Since when the disk refuses, and when that was told: wait for the next time, however full.
    failing: Option<(Instant, Instant)>,
}

impl Writer {
    pub(super) fn new(
        dir: &Path,
        options: StoreOptions,
        marks: Marks,
        shared: Shared,
        closing: Arc<AtomicBool>,
        written: Sender<Partition>,
    ) -> Writer {
        Writer {
            dir: dir.to_owned(),
            flush_at: Instant::now() + options.flush_interval,
            options,
            shared,
            written,
            flows: Pending::default(),
            books: Pending::default(),
            sessions: Pending::default(),
            marks,
            taken: 0,
            durable: 0,
            unnamed: Vec::new(),
            closing,
            failing: None,
        }
    }

    /// Runs until the sending end of `items` is gone, then writes what is left.
    pub(super) fn run(mut self, items: &Receiver<Item>) {
        loop {
            let wait = self.flush_at.saturating_duration_since(Instant::now());
            if self.is_full() && !self.closing.load(Ordering::Relaxed) {
                // Only a disk that refuses leads here. The queue fills, sessions stop reading: nothing is lost yet.
                std::thread::sleep(wait.min(CLOSE_POLL));
            } else {
                match items.recv_timeout(wait) {
                    Ok(Item::Batch(batch)) => self.take(batch),
                    Ok(Item::Flush) => self.flush_at = Instant::now(),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            if Instant::now() >= self.flush_at || (self.is_full() && self.failing.is_none()) {
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

    fn take(&mut self, batch: Batch) {
        self.shared.lock().queued -= batch.rows.len() as u64;
        self.taken += 1;
        batch.marks.iter().for_each(|mark| self.marks.insert(mark));
        for row in batch.rows {
            match row {
                Row::Flow(row) => self.flows.push(row),
                Row::Book(row) => self.books.push(row),
                Row::Session(row) => self.sessions.push(row),
            }
        }
    }

    /// Makes everything taken durable, or nothing. True where nothing is left to do.
    fn flush(&mut self) -> bool {
        let result = self.try_flush();
        self.flush_at = Instant::now() + self.options.flush_interval;
        match (&result, self.failing) {
            (Ok(()), None) => {}
            (Ok(()), Some((since, _))) => {
                log::warn!("the store writes again, after {} s in which nothing was lost", since.elapsed().as_secs());
                self.failing = None;
            }
            (Err(error), failing) => {
                self.shared.lock().write_errors += 1;
                let now = Instant::now();
                let (since, told) = failing.unwrap_or((now, now - TOLD_AGAIN));
                let tell = told.elapsed() >= TOLD_AGAIN;
                if tell {
                    let rows = self.flows.rows + self.books.rows + self.sessions.rows;
                    log::warn!(
                        "cannot write to the store: {error}. {rows} rows wait, nothing more is acknowledged or read, and it is tried again"
                    );
                }
                self.failing = Some((since, if tell { now } else { told }));
            }
        }
        result.is_ok()
    }

    fn try_flush(&mut self) -> io::Result<()> {
        self.name_files()?;
        if self.durable == self.taken {
            return Ok(());
        }
        let mut staged = Vec::new();
        let outcome = self
            .flows
            .stage(&self.dir, &mut staged)
            .and_then(|()| self.books.stage(&self.dir, &mut staged))
            .and_then(|()| self.sessions.stage(&self.dir, &mut staged))
            .and_then(|()| commit::commit(&self.dir, &files_of(&staged), &self.marks));
        if let Err(error) = outcome {
            // What stays of these files is removed at the next start.
            staged.iter().for_each(|(_, file, _)| drop(fs::remove_file(&file.temporary)));
            return Err(error);
        }
        self.unnamed = files_of(&staged);
        let named = self.name_files();
        self.durable = self.taken;
        self.shared.durable(self.durable, staged.iter().map(|(partition, _, rows)| (partition.table, *rows)));
        // A full queue is no loss: the merger hears of the partition with its next file.
        staged.into_iter().for_each(|(partition, ..)| drop(self.written.try_send(partition)));
        self.flows.clear();
        self.books.clear();
        self.sessions.clear();
        named
    }

    /// Gives committed files their names. They are durable: this only hides them from readers while it fails.
    fn name_files(&mut self) -> io::Result<()> {
        commit::name(&self.unnamed)?;
        self.unnamed.clear();
        Ok(())
    }

    fn finish(mut self) {
        for attempt in 0..CLOSE_ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(CLOSE_PAUSE);
            }
            if self.flush() {
                return;
            }
        }
        let mut counters = self.shared.lock();
        for (table, rows) in
            [(Table::Flows, self.flows.rows), (Table::Books, self.books.rows), (Table::Sessions, self.sessions.rows)]
        {
            if rows > 0 {
                log::error!("{rows} rows of {} are lost: the disk refused them until the end", table.name());
                counters.failed(table, rows as u64);
            }
        }
    }
}

/// A file written for a partition, and how many rows it has.
type Written = (Partition, Staged, u64);

fn files_of(written: &[Written]) -> Vec<Staged> {
    written.iter().map(|(_, file, _)| file.clone()).collect()
}

/// Rows of one table, by site and hour.
struct Pending<R> {
    partitions: HashMap<(Arc<str>, Hour), Vec<R>>,
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
        self.partitions.entry(place).or_default().push(row);
        self.rows += 1;
    }

    fn clear(&mut self) {
        self.partitions.clear();
        self.rows = 0;
    }

    /// Writes every partition's rows to a temporary file.
    fn stage(&mut self, dir: &Path, staged: &mut Vec<Written>) -> io::Result<()> {
        for ((site, hour), rows) in &mut self.partitions {
            let partition = Partition { table: R::TABLE, site: Arc::clone(site), hour: *hour };
            let file = stage(dir, &partition, rows).map_err(|error| super::layout::at(&partition.path(dir), error))?;
            staged.push((partition, file, rows.len() as u64));
        }
        Ok(())
    }
}

/// Writes rows as what is to be the partition's next file.
fn stage<R: TableRow>(dir: &Path, partition: &Partition, rows: &mut [R]) -> io::Result<Staged> {
    let path = partition.path(dir);
    make_partition(dir, &path)?;
    let number = next_number(&path)?;
    rows.sort_by_key(R::time_ms);
    let batch: RecordBatch = R::batch(rows);
    write_temporary(&path, FileRange { first: number, last: number }, R::TABLE, |file| {
        file.write(&batch).map_err(super::files::parquet_error)
    })
}
