//! The store: what the collector decoded goes in as rows, and lies as Parquet files for whoever reads them.
//!
//! [`Store`] is the one narrow interface, so that another engine can stand behind it: batches of rows and marks are offered,
//! never waited for; a full queue hands them back, and the session that brought them stops reading. Behind it a writer thread
//! collects rows by table, site and hour, and makes them durable together with the marks, all or nothing; [`Store::durable`] says
//! up to which batch, and that is what may be acknowledged. A merger thread makes few files of many. The files are the only
//! interface to readers: a query needs no running collector.
//!
//! Memory is bounded by [`StoreOptions::rows_max`] rows being collected, [`QUEUE_ROWS_MAX`] rows queued, and one batch.
//! Every row taken is stored, in flight or failed: [`StoreCounters`].

#![forbid(unsafe_code)]

mod commit;
mod files;
mod layout;
mod marks;
mod merger;
mod table;
mod writer;

pub(crate) use layout::{DataFile, Hour, live_files, partitions};
pub use marks::{EPOCHS_MAX, GAPS_MAX, Mark, Marks, PROBES_MAX, RANGES_MAX};
pub use table::Table;

use crossbeam_channel::{Sender, TrySendError, bounded};
use layout::Lock;
use merger::Merger;
use nagare_wire::flow::FlowRecord;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use writer::{Item, Writer};

/// Rows that may wait for the writer thread; a batch that would go over it is handed back.
pub const QUEUE_ROWS_MAX: u64 = 262_144;

/// Batches that may wait for the writer thread.
pub const QUEUE_BATCHES_MAX: usize = 4_096;

/// Octets of a text that an exporter or its session gave (the name of a book, a note); the rest is cut off.
pub const TEXT_OCTETS_MAX: usize = 256;

/// Partitions whose merging waits for the merger thread; more are found again by their next file, or at the next start.
const MERGE_QUEUE_MAX: usize = 65_536;

/// A flow, as it came from an exporter.
#[derive(Clone, Debug)]
pub struct FlowRow {
    /// Site whose traffic this is: the name of the directory.
    pub site: Arc<str>,
    /// Address of the exporter, as text.
    pub exporter: Arc<str>,
    /// Observation Domain ID (RFC 7011, 3.1).
    pub domain: u32,
    /// When the collector received it, milliseconds since 1970 UTC.
    pub received_ms: u64,
    /// The flow.
    pub flow: FlowRecord,
}

/// One figure of an exporter's own books, cumulative since the exporter started.
#[derive(Clone, Debug)]
pub struct BookRow {
    /// Site of the exporter.
    pub site: Arc<str>,
    /// Address of the exporter, as text.
    pub exporter: Arc<str>,
    /// Observation Domain ID.
    pub domain: u32,
    /// When it was reported, milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// Which process keeps the book: "metering", "exporting" or "statistics".
    pub process: &'static str,
    /// Identifier of that process in its exporter.
    pub process_id: u32,
    /// Name of the figure, such as "wire" or "drop.rx_ring_full".
    pub name: String,
    /// Its value.
    pub value: u64,
}

/// Something that happened to a Transport Session.
#[derive(Clone, Debug)]
pub struct SessionRow {
    /// Site of the exporter.
    pub site: Arc<str>,
    /// Address of the exporter, as text.
    pub exporter: Arc<str>,
    /// "tls", "tcp" or "udp".
    pub transport: &'static str,
    /// When it happened, milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// When the session started, milliseconds since 1970 UTC.
    pub start_ms: u64,
    /// "start", "running", "gap" or "end".
    pub event: &'static str,
    /// Data Records received so far.
    pub records: u64,
    /// Data Records missing by the sequence numbers so far.
    pub lost: u64,
    /// Messages received so far.
    pub messages: u64,
    /// Octets received so far.
    pub octets: u64,
    /// What a person should know, such as why the session ended.
    pub note: String,
}

/// A row of one of the tables.
#[derive(Clone, Debug)]
pub enum Row {
    /// Of `flows`.
    Flow(FlowRow),
    /// Of `books`.
    Book(BookRow),
    /// Of `sessions`.
    Session(SessionRow),
}

impl Row {
    /// The table it belongs to.
    pub fn table(&self) -> Table {
        match self {
            Row::Flow(_) => Table::Flows,
            Row::Book(_) => Table::Books,
            Row::Session(_) => Table::Sessions,
        }
    }

    /// Cuts its texts, so that a number of rows is a bound on memory.
    fn bound(&mut self) {
        let text = match self {
            Row::Flow(_) => return,
            Row::Book(row) => &mut row.name,
            Row::Session(row) => &mut row.note,
        };
        if text.len() > TEXT_OCTETS_MAX {
            text.truncate(text.floor_char_boundary(TEXT_OCTETS_MAX));
            text.shrink_to_fit();
        }
    }
}

/// Rows, and the numbers of the Messages that they came in: durable together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The rows.
    pub rows: Vec<Row>,
    /// The Messages, also those that made no row.
    pub marks: Vec<Mark>,
}

impl Batch {
    /// Rows of exporters that do not number their Messages.
    pub fn of(rows: Vec<Row>) -> Batch {
        Batch { rows, marks: Vec::new() }
    }

    /// Whether there is nothing to store.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.marks.is_empty()
    }
}

/// How the store trades memory, files and time.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Rows are on disk after this, so that a query sees them and the probes are acknowledged.
    pub flush_interval: Duration,
    /// Rows collected in memory; at this many they are written before their time.
    pub rows_max: usize,
    /// Partitions collected in memory; at this many they are written before their time.
    pub partitions_max: usize,
    /// Files of about one size in a partition that are merged into one.
    pub merge_files_min: usize,
    /// A file of this many octets or more is not merged any more.
    pub merge_octets_max: u64,
    /// How long merged files stay for the readers that had listed them before.
    pub merge_grace: Duration,
    /// A partition without news for this long has all its small files merged.
    pub settle_after: Duration,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            flush_interval: Duration::from_secs(2),
            rows_max: 262_144,
            partitions_max: 1_024,
            merge_files_min: 16,
            merge_octets_max: 64 << 20,
            merge_grace: Duration::from_secs(300),
            settle_after: Duration::from_secs(900),
        }
    }
}

/// Rows of one table: `taken = stored + failed + in_flight`, always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows that [`Store::offer`] took.
    pub taken: u64,
    /// Rows that are in a file, on disk.
    pub stored: u64,
    /// Rows given up because the disk refused them until the store was closed.
    pub failed: u64,
    /// Rows in the queue or being collected.
    pub in_flight: u64,
}

/// What became of the rows, and what the store did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounters {
    /// Rows of all tables that [`Store::offer`] took.
    pub taken: u64,
    /// Rows of all tables that are in a file, on disk.
    pub stored: u64,
    /// Rows of all tables given up because the disk refused them until the store was closed.
    pub failed: u64,
    /// Rows of all tables in the queue or being collected.
    pub in_flight: u64,
    /// Rows of `flows`.
    pub flows: Tally,
    /// Rows of `books`.
    pub books: Tally,
    /// Rows of `sessions`.
    pub sessions: Tally,
    /// Rows in the queue (a part of `in_flight`).
    pub queued: u64,
    /// Files written from collected rows.
    pub files: u64,
    /// Writes that failed and were or will be tried again.
    pub write_errors: u64,
    /// Merges done.
    pub merges: u64,
    /// Merges that failed; the files stay as they were.
    pub merge_errors: u64,
}

impl StoreCounters {
    /// The rows of one table.
    pub fn tally(&self, table: Table) -> Tally {
        match table {
            Table::Flows => self.flows,
            Table::Books => self.books,
            Table::Sessions => self.sessions,
        }
    }

    fn tally_mut(&mut self, table: Table) -> &mut Tally {
        match table {
            Table::Flows => &mut self.flows,
            Table::Books => &mut self.books,
            Table::Sessions => &mut self.sessions,
        }
    }

    fn took(&mut self, table: Table, rows: u64) {
        let tally = self.tally_mut(table);
        tally.taken += rows;
        tally.in_flight += rows;
        self.taken += rows;
        self.in_flight += rows;
    }

    fn stored(&mut self, table: Table, rows: u64) {
        let tally = self.tally_mut(table);
        tally.stored += rows;
        tally.in_flight -= rows;
        self.stored += rows;
        self.in_flight -= rows;
        self.files += 1;
    }

    fn failed(&mut self, table: Table, rows: u64) {
        let tally = self.tally_mut(table);
        tally.failed += rows;
        tally.in_flight -= rows;
        self.failed += rows;
        self.in_flight -= rows;
    }
}

/// What the store's threads share with whoever offers rows.
#[derive(Clone, Default)]
struct Shared(Arc<SharedState>);

#[derive(Default)]
struct SharedState {
    /// One lock, so that a reader sees sums that add up.
    counters: Mutex<StoreCounters>,
    /// The last batch that is durable.
    durable: AtomicU64,
    on_durable: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Shared {
    /// Counting cannot leave the sums half done, so a lock that a panic poisoned is as good as any.
    fn lock(&self) -> MutexGuard<'_, StoreCounters> {
        self.0.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts files of rows as stored, and tells of it.
    fn durable(&self, ticket: u64, files: impl Iterator<Item = (Table, u64)>) {
        let mut counters = self.lock();
        files.for_each(|(table, rows)| counters.stored(table, rows));
        drop(counters);
        self.0.durable.store(ticket, Ordering::Release);
        if let Some(tell) = &*self.0.on_durable.lock().unwrap_or_else(PoisonError::into_inner) {
            tell();
        }
    }
}

/// Why the store cannot be opened or closed.
#[derive(Debug)]
pub enum StoreError {
    /// Another process writes to the directory.
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The other process, as it named itself.
        process: String,
    },
    /// The operating system refused.
    Io {
        /// What was tried, with the path.
        what: String,
        /// Its answer.
        source: io::Error,
    },
    /// A thread of the store ended by a panic; what it held is lost.
    ThreadDied {
        /// Rows that were taken and are not on disk.
        rows: u64,
    },
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::InUse { dir, process } => {
                let dir = dir.display();
                write!(f, "{dir} is in use by process {process}: stop it, or choose another data directory")
            }
            StoreError::Io { what, source } => write!(f, "cannot {what}: {source}"),
            StoreError::ThreadDied { rows } => write!(f, "the store ended early: {rows} rows are not on disk"),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl StoreError {
    fn io(what: impl fmt::Display) -> impl FnOnce(io::Error) -> StoreError {
        let what = what.to_string();
        move |source| StoreError::Io { what, source }
    }
}

/// The embedded store of one data directory. Dropping it writes what it holds, like [`Store::close`], without a word.
pub struct Store {
    shared: Shared,
    /// Where batches go, and the number of the last one.
    items: Option<Sender<Item>>,
    offered: AtomicU64,
    marks: Marks,
    writer: Option<JoinHandle<()>>,
    merger: Option<JoinHandle<()>>,
    closing: Arc<AtomicBool>,
    _lock: Lock,
}

impl Store {
    /// Opens the store in `dir`, which is made where it is missing; finishes what the last process committed, and removes what a
    /// crash left half written.
    ///
    /// # Errors
    /// Another process owns the directory, or it cannot be made, read or written.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Store, StoreError> {
        let lock = Lock::take(dir)?;
        let recovered = commit::recover(dir).and_then(|marks| Ok((marks, layout::recover(dir)?)));
        let (marks, unmerged) = recovered.map_err(StoreError::io(format_args!("read {}", dir.display())))?;
        let shared = Shared::default();
        let closing = Arc::new(AtomicBool::new(false));
        let (items, taken) = bounded(QUEUE_BATCHES_MAX);
        let (written, to_merge) = bounded(MERGE_QUEUE_MAX);
        let mut merger = Merger::new(dir, &options, shared.clone(), closing.clone());
        merger.expect(unmerged);
        let writer = Writer::new(dir, options, marks.clone(), shared.clone(), closing.clone(), written);
        let merger = spawn("store-merger", move || merger.run(&to_merge))?;
        let writer = spawn("store-writer", move || writer.run(&taken))?;
        let (items, offered) = (Some(items), AtomicU64::new(0));
        Ok(Store { shared, items, offered, marks, writer: Some(writer), merger: Some(merger), closing, _lock: lock })
    }

    /// The marks that were durable when the store was opened.
    pub fn marks(&self) -> Marks {
        self.marks.clone()
    }

    /// Takes a batch to be stored; never blocks. Texts longer than [`TEXT_OCTETS_MAX`] are cut. Gives the batch's number: when
    /// [`Store::durable`] has reached it, its rows and marks survive whatever happens.
    ///
    /// # Errors
    /// The queue is full: the batch comes back, to be offered again later.
    pub fn offer(&self, mut batch: Batch) -> Result<u64, Batch> {
        let Some(items) = &self.items else { return Err(batch) };
        batch.rows.iter_mut().for_each(Row::bound);
        let (rows, mut by_table) = (batch.rows.len() as u64, [0; Table::ALL.len()]);
        batch.rows.iter().for_each(|row| by_table[row.table() as usize] += 1);
        // The lock also keeps the numbers in the order of the queue.
        let mut counters = self.shared.lock();
        if counters.queued > 0 && counters.queued + rows > QUEUE_ROWS_MAX {
            return Err(batch);
        }
        match items.try_send(Item::Batch(batch)) {
            Ok(()) => {
                counters.queued += rows;
                Table::ALL.into_iter().zip(by_table).for_each(|(table, rows)| counters.took(table, rows));
                Ok(self.offered.fetch_add(1, Ordering::Relaxed) + 1)
            }
            Err(TrySendError::Full(Item::Batch(batch)) | TrySendError::Disconnected(Item::Batch(batch))) => Err(batch),
            Err(_) => Err(Batch::default()),
        }
    }

    /// The number of the last batch that is durable, with all before it.
    pub fn durable(&self) -> u64 {
        self.shared.0.durable.load(Ordering::Acquire)
    }

    /// Calls `tell`, from the store's thread, whenever [`Store::durable`] has grown.
    pub fn on_durable(&self, tell: impl Fn() + Send + 'static) {
        *self.shared.0.on_durable.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(tell));
    }

    /// Asks for what was offered to be made durable now, not at the next interval.
    pub fn hurry(&self) {
        // A full queue is being emptied as fast as can be.
        self.items.iter().for_each(|items| drop(items.try_send(Item::Flush)));
    }

    /// What became of the rows so far.
    pub fn counters(&self) -> StoreCounters {
        *self.shared.lock()
    }

    /// Writes every row that was taken, and ends the store's threads. Rows that could not be written are counted as
    /// `failed`, and the log says why.
    ///
    /// # Errors
    /// A thread of the store had died.
    pub fn close(mut self) -> Result<StoreCounters, StoreError> {
        let healthy = self.finish();
        let counters = self.counters();
        if healthy { Ok(counters) } else { Err(StoreError::ThreadDied { rows: counters.in_flight }) }
    }

    fn finish(&mut self) -> bool {
        self.closing.store(true, Ordering::Relaxed);
        drop(self.items.take());
        // The writer goes first: the merger ends when the writer's end of their channel is gone.
        let writer = self.writer.take().is_none_or(|thread| thread.join().is_ok());
        let merger = self.merger.take().is_none_or(|thread| thread.join().is_ok());
        writer && merger
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.finish();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(run).map_err(StoreError::io(format_args!("start the thread {name}")))
}
