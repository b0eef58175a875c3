//! The merger thread: makes few files of many, row for row.
//!
//! A file is merged with its neighbours of about the same span, so that each row is rewritten once per power of
//! [`StoreOptions::merge_files_min`] and not at every merge. When an hour has no more news, all its small files become one.

use super::files::{parquet_error, write_whole};
use super::layout::{DataFile, FileRange, Partition, Unmerged, at, live_files};
use super::{Shared, StoreOptions, Table};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use datafusion::arrow::array::{AsArray, Int64Array, RecordBatch};
use datafusion::arrow::compute::interleave_record_batch;
use datafusion::arrow::datatypes::Int64Type;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Files that one merge reads: this many readers' pages are in memory at once.
const MERGE_FILES_MAX: usize = 32;

/// Rows that are read from a file at a time.
const BATCH_ROWS: usize = 4_096;

/// Partitions remembered for settling; more wait for the next start.
const PARTITIONS_MAX: usize = 65_536;

/// A partition whose merge failed is left alone for this long.
const BACKOFF: Duration = Duration::from_secs(600);

/// Longest pause between two looks at what is due.
const TICK: Duration = Duration::from_secs(1);

/// Merges; owned by its thread.
pub(super) struct Merger {
    dir: PathBuf,
    options: StoreOptions,
    counters: Shared,
    stop: Arc<AtomicBool>,
    /// When each partition that may hold several files last had news.
    news: HashMap<Partition, Instant>,
    /// Until when a partition is left alone.
    backoff: HashMap<Partition, Instant>,
    /// Files that others cover, to be removed then.
    retired: VecDeque<(Instant, PathBuf)>,
}

impl Merger {
    pub(super) fn new(dir: &Path, options: &StoreOptions, counters: Shared, stop: Arc<AtomicBool>) -> Merger {
        Merger {
            dir: dir.to_owned(),
            options: options.clone(),
            counters,
            stop,
            news: HashMap::new(),
            backoff: HashMap::new(),
            retired: VecDeque::new(),
        }
    }

    /// Takes over what an earlier run left to do.
    pub(super) fn expect(&mut self, unmerged: Vec<Unmerged>) {
        for Unmerged { partition, covered } in unmerged {
            self.retire(covered);
            self.heard_of(partition);
        }
    }

    /// Runs until the sending end of `written` is gone.
    pub(super) fn run(mut self, written: &Receiver<Partition>) {
        loop {
            match written.recv_timeout(TICK.min(self.options.merge_grace.max(Duration::from_millis(10)))) {
                Ok(partition) => {
                    self.merge_tiers(&partition);
                    self.heard_of(partition);
                }
                Err(RecvTimeoutError::Timeout) => self.settle(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.remove_retired();
        }
    }

    fn heard_of(&mut self, partition: Partition) {
        if self.news.len() < PARTITIONS_MAX || self.news.contains_key(&partition) {
            self.news.insert(partition, Instant::now());
        }
    }

    /// Merges neighbours of the same tier until no tier holds enough of them.
    fn merge_tiers(&mut self, partition: &Partition) {
        let (enough, octets_max) = (self.options.merge_files_min.max(2), self.options.merge_octets_max);
        let tier = |file: &DataFile| (file.octets < octets_max).then(|| file.range.span().ilog(enough as u64));
        self.merge_while(partition, |files| {
            let runs = files.chunk_by(|a, b| tier(a).is_some() && tier(a) == tier(b));
            runs.filter(|run| run.len() >= enough).map(<[DataFile]>::to_vec).next()
        });
    }

    /// Merges all small neighbours in partitions that have had no news for long.
    fn settle(&mut self) {
        let (settle_after, octets_max) = (self.options.settle_after, self.options.merge_octets_max);
        let due = |since: &mut Instant| since.elapsed() >= settle_after;
        let settled: Vec<Partition> =
            self.news.extract_if(|_, since| due(since)).map(|(partition, _)| partition).collect();
        for partition in settled {
            self.merge_while(&partition, |files| {
                let runs = files.chunk_by(|a, b| a.octets < octets_max && b.octets < octets_max);
                runs.filter(|run| run.len() >= 2).map(<[DataFile]>::to_vec).next()
            });
        }
        self.backoff.retain(|_, until| *until > Instant::now());
    }

    /// Merges the files that `choose` finds, until it finds none. Each merge leaves fewer files, so this ends.
    fn merge_while(&mut self, partition: &Partition, choose: impl Fn(&[DataFile]) -> Option<Vec<DataFile>>) {
        let path = partition.path(&self.dir);
        while !self.stop.load(Ordering::Relaxed) && !self.backoff.contains_key(partition) {
            let merged = live_files(&path).and_then(|files| match choose(&files) {
                Some(mut files) => {
                    files.truncate(MERGE_FILES_MAX);
                    merge(&path, partition.table, &files, &self.stop).map(|()| files)
                }
                None => Ok(Vec::new()),
            });
            match merged {
                Ok(files) if files.is_empty() => return,
                Ok(files) => {
                    self.counters.lock().merges += 1;
                    self.retire(files.into_iter().map(|file| file.path));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
                Err(error) => {
                    log::warn!("cannot merge the files of {}, they stay as they are: {error}", path.display());
                    self.counters.lock().merge_errors += 1;
                    self.backoff.insert(partition.clone(), Instant::now() + BACKOFF);
                }
            }
        }
    }

    fn retire(&mut self, files: impl IntoIterator<Item = PathBuf>) {
        let due = Instant::now() + self.options.merge_grace;
        self.retired.extend(files.into_iter().map(|path| (due, path)));
    }

    fn remove_retired(&mut self) {
        let now = Instant::now();
        while let Some((_, path)) = self.retired.pop_front_if(|(due, _)| *due <= now) {
            if let Err(error) = fs::remove_file(&path) {
                // Readers ignore it, and the next start tries again.
                log::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

/// Writes the rows of `files`, neighbours in `partition`, as one file that covers them.
fn merge(partition: &Path, table: Table, files: &[DataFile], stop: &AtomicBool) -> io::Result<()> {
    let (Some(first), Some(last)) = (files.first(), files.last()) else { return Ok(()) };
    let range = FileRange { first: first.range.first, last: last.range.last };
    let mut inputs = Vec::with_capacity(files.len());
    let mut expected = 0;
    for file in files {
        let (rows, input) = Input::open(file, table).map_err(|error| at(&file.path, error))?;
        expected += rows;
        inputs.extend(input);
    }
    write_whole(partition, range, table, |writer| {
        let written = merge_sorted(inputs, writer, stop)?;
        if written == expected {
            return Ok(());
        }
        Err(io::Error::other(format!("{written} of {expected} rows were merged")))
    })
}

/// A file being merged, at one of its rows.
struct Input {
    reader: ParquetRecordBatchReader,
    table: Table,
    batch: RecordBatch,
    times: Int64Array,
    row: usize,
}

impl Input {
    /// The number of rows by the file's own account, and the file at its first row, if it has one.
    fn open(file: &DataFile, table: Table) -> io::Result<(i64, Option<Input>)> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(&file.path)?).map_err(parquet_error)?;
        if builder.schema().fields() != table.schema().fields() {
            return Err(io::Error::other("its columns are not those of this version"));
        }
        let rows = builder.metadata().file_metadata().num_rows();
        let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(parquet_error)?;
        let batch = RecordBatch::new_empty(table.schema());
        let times = Int64Array::from(Vec::<i64>::new());
        let mut input = Input { reader, table, batch, times, row: 0 };
        Ok((rows, input.next_batch()?.then_some(input)))
    }

    /// Goes to the first row of the next batch; false at the end.
    fn next_batch(&mut self) -> io::Result<bool> {
        for batch in self.reader.by_ref() {
            let batch = batch.map_err(io::Error::other)?;
            if batch.num_rows() > 0 {
                let times = batch.column_by_name(self.table.time_column()).expect("the schema was compared");
                self.times = times.as_primitive::<Int64Type>().clone();
                self.batch = batch;
                self.row = 0;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn time(&self) -> i64 {
        self.times.value(self.row)
    }
}

/// Merges sorted inputs into one sorted output; returns the number of rows.
fn merge_sorted(mut inputs: Vec<Input>, writer: &mut ArrowWriter<&File>, stop: &AtomicBool) -> io::Result<i64> {
    let mut next: BinaryHeap<_> =
        inputs.iter().enumerate().map(|(index, input)| Reverse((input.time(), index))).collect();
    let mut chosen: Vec<(usize, usize)> = Vec::new();
    let mut written = 0;
    while let Some(Reverse((_, index))) = next.pop() {
        let input = &mut inputs[index];
        chosen.push((index, input.row));
        input.row += 1;
        if input.row == input.times.len() {
            // What was chosen lies in the batches at hand: it must be written before one of them is replaced.
            written += write_chosen(&inputs, &mut chosen, writer)?;
            if stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if !inputs[index].next_batch()? {
                continue;
            }
        }
        next.push(Reverse((inputs[index].time(), index)));
    }
    Ok(written)
}

fn write_chosen(
    inputs: &[Input],
    chosen: &mut Vec<(usize, usize)>,
    writer: &mut ArrowWriter<&File>,
) -> io::Result<i64> {
    let batches: Vec<&RecordBatch> = inputs.iter().map(|input| &input.batch).collect();
    let batch = interleave_record_batch(&batches, chosen).map_err(io::Error::other)?;
    writer.write(&batch).map_err(parquet_error)?;
    chosen.clear();
    Ok(batch.num_rows() as i64)
}
