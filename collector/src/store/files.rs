//! Parquet files that appear whole or not at all.

use super::commit::Staged;
use super::layout::{FileRange, TEMPORARY_PREFIX};
use super::table::Table;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::metadata::SortingColumn;
use datafusion::parquet::file::properties::WriterProperties;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Rows of a row group: what a reader skips or reads, and what a writer holds before it compresses.
const ROW_GROUP_ROWS: usize = 131_072;

/// Level 1 gives nearly the size of level 3 at half its time.
const ZSTD_LEVEL: i32 = 1;

fn properties(table: Table) -> WriterProperties {
    let level = ZstdLevel::try_new(ZSTD_LEVEL).expect("zstd has that level");
    let time = table.schema().index_of(table.time_column()).expect("every table has its time column");
    let order = SortingColumn { column_idx: time as i32, descending: false, nulls_first: false };
    WriterProperties::builder()
        .set_created_by(concat!("nagare-collector ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_sorting_columns(Some(vec![order]))
        .build()
}

/// Makes the file of `range` in `partition`: `fill` writes its rows, sorted by time. When this returns, the file is on
/// disk under its name; when it fails, there is no such file.
pub(super) fn write_whole(
    partition: &Path,
    range: FileRange,
    table: Table,
    fill: impl FnOnce(&mut ArrowWriter<&File>) -> io::Result<()>,
) -> io::Result<()> {
    let Staged { temporary, path } = write_temporary(partition, range, table, fill)?;
    fs::rename(&temporary, path)?;
    // The file stands and readers see it: to report failure now would store its rows twice.
    if let Err(error) = sync_dir(partition) {
        log::warn!("{}: its newest file may not survive a power cut: {error}", partition.display());
    }
    Ok(())
}

/// Likewise, but the file has a name that no reader looks at, and the other is left to be given.
pub(super) fn write_temporary(
    partition: &Path,
    range: FileRange,
    table: Table,
    fill: impl FnOnce(&mut ArrowWriter<&File>) -> io::Result<()>,
) -> io::Result<Staged> {
    let temporary = partition.join(format!("{TEMPORARY_PREFIX}{}", range.file_name()));
    let write = || -> io::Result<()> {
        let file = File::create(&temporary)?;
        let mut writer = ArrowWriter::try_new(&file, table.schema(), Some(properties(table))).map_err(parquet_error)?;
        fill(&mut writer)?;
        writer.close().map_err(parquet_error)?;
        file.sync_all()
    };
    write().inspect_err(|_| {
        // The failure is the news; what stays of the file is removed at the next start.
        let _ = fs::remove_file(&temporary);
    })?;
    Ok(Staged { temporary, path: partition.join(range.file_name()) })
}

/// Makes a directory below `dir` whose name survives a power cut, as well as those of its parents.
pub(super) fn make_partition(dir: &Path, partition: &Path) -> io::Result<()> {
    if partition.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(partition)?;
    let parents = partition.ancestors().skip(1).take_while(|parent| parent.starts_with(dir));
    parents.into_iter().try_for_each(sync_dir)
}

pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The operating system's own error where there is one inside.
pub(super) fn parquet_error(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(inner) => io::Error::other(inner),
        },
        error => io::Error::other(error),
    }
}
