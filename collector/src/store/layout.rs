//! Where rows lie: `DIR/TABLE/site=S/hour=YYYYMMDDHH/FIRST-LAST.parquet`, and which of these files count.
//!
//! Files of a partition are numbered; one that was merged from others covers their numbers. A reader ignores a file whose
//! numbers lie inside another's, so that the moment in which both stand shows every row once.

use super::{StoreError, Table};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files being written have this prefix; no reader looks at them.
pub(super) const TEMPORARY_PREFIX: &str = ".tmp-";

/// Times that a listing is tried again because the directory changed meanwhile.
const LISTINGS_MAX: usize = 100;

const HOUR_MS: u64 = 3_600_000;

/// An hour of UTC, counted from 1970. Hours after 9999-12-29, where calendars end, are that day's last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Hour(u32);

impl Hour {
    /// The first hour that has a name.
    pub(crate) const MIN: Hour = Hour(0);
    /// The last hour that has a name: 9999-12-29T23.
    pub(crate) const MAX: Hour = Hour(70_389_479);

    /// The hour that holds a time, milliseconds since 1970 UTC.
    pub(crate) fn of(time_ms: u64) -> Hour {
        u32::try_from(time_ms / HOUR_MS).map_or(Hour::MAX, |hour| Hour(hour).min(Hour::MAX))
    }

    /// The hour that holds a time that may lie before 1970, which no row does.
    pub(crate) fn of_time(time_ms: i64) -> Hour {
        u64::try_from(time_ms).map_or(Hour::MIN, Hour::of)
    }

    /// First millisecond of the hour, and the first one after it; `i64::MAX`, for no end, after the last hour.
    pub(crate) fn bounds_ms(self) -> (i64, i64) {
        let end = if self == Hour::MAX { i64::MAX } else { Hour(self.0 + 1).start_ms() };
        (self.start_ms(), end)
    }

    fn start_ms(self) -> i64 {
        i64::from(self.0) * HOUR_MS as i64
    }

    /// The hour whose name (`YYYYMMDDHH`) this is.
    fn parse(name: &str) -> Option<Hour> {
        if name.len() != 10 || !name.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let number = |range: std::ops::Range<usize>| name[range].parse::<i16>().ok();
        let small = |range| i8::try_from(number(range)?).ok();
        let date = DateTime::new(number(0..4)?, small(4..6)?, small(6..8)?, small(8..10)?, 0, 0, 0).ok()?;
        let start = date.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp().as_millisecond();
        u64::try_from(start).ok().map(Hour::of)
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = Timestamp::from_millisecond(self.start_ms()).expect("hours end before the calendar does");
        let date = TimeZone::UTC.to_datetime(start);
        write!(f, "{:04}{:02}{:02}{:02}", date.year(), date.month(), date.day(), date.hour())
    }
}

/// Rows of one table, site and hour.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Partition {
    pub(crate) table: Table,
    pub(crate) site: Arc<str>,
    pub(crate) hour: Hour,
}

impl Partition {
    /// Its directory in the data directory `dir`.
    pub(crate) fn path(&self, dir: &Path) -> PathBuf {
        site_path(dir, self.table, &self.site).join(format!("hour={}", self.hour))
    }
}

fn site_path(dir: &Path, table: Table, site: &str) -> PathBuf {
    dir.join(table.name()).join(format!("site={}", escaped(site)))
}

/// A site's name as part of a path: whatever is not plain is written as `%XX`, so that no name can leave the directory.
fn escaped(site: &str) -> String {
    let mut name = String::with_capacity(site.len());
    for byte in site.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => name.push(char::from(byte)),
            _ => write!(name, "%{byte:02X}").expect("writing to a String cannot fail"),
        }
    }
    name
}

fn unescaped(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let (byte, tail) = match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |digit: &u8| char::from(*digit).to_digit(16);
                (u8::try_from(digit(high)? << 4 | digit(low)?).ok()?, tail)
            }
            _ => (byte, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// The numbers that a file covers: its own, or those of the files it was merged from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileRange {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl FileRange {
    pub(super) fn file_name(&self) -> String {
        format!("{:010}-{:010}.parquet", self.first, self.last)
    }

    fn parse(file_name: &str) -> Option<FileRange> {
        let (first, last) = file_name.strip_suffix(".parquet")?.split_once('-')?;
        let range = FileRange { first: first.parse().ok()?, last: last.parse().ok()? };
        (range.first <= range.last && range.file_name() == file_name).then_some(range)
    }

    /// How many numbers it covers.
    pub(super) fn span(&self) -> u64 {
        self.last - self.first + 1
    }
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataFile {
    pub(crate) path: PathBuf,
    pub(crate) range: FileRange,
    pub(crate) octets: u64,
}

/// The partitions of a table that hold anything, of one site or all, in the order of their hours.
pub(crate) fn partitions(
    dir: &Path,
    table: Table,
    site: Option<&str>,
    hours: &RangeInclusive<Hour>,
) -> io::Result<Vec<Partition>> {
    let sites = match site {
        Some(site) => vec![Arc::from(site)],
        None => directories(&dir.join(table.name()), |name| unescaped(name.strip_prefix("site=")?).map(Arc::from))?,
    };
    let mut found = Vec::new();
    for site in sites {
        let path = site_path(dir, table, &site);
        let there = directories(&path, |name| Hour::parse(name.strip_prefix("hour=")?))?;
        let there = there.into_iter().filter(|hour| hours.contains(hour));
        found.extend(there.map(|hour| Partition { table, site: Arc::clone(&site), hour }));
    }
    found.sort_by(|a, b| (a.hour, &a.site).cmp(&(b.hour, &b.site)));
    Ok(found)
}

/// What `parse` makes of the names in a directory; nothing where the directory is missing.
fn directories<T>(path: &Path, parse: impl Fn(&str) -> Option<T>) -> io::Result<Vec<T>> {
    let mut found = Vec::new();
    for entry in entries(path)? {
        found.extend(entry?.file_name().to_str().and_then(&parse));
    }
    Ok(found)
}

fn entries(path: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(Some(entries).into_iter().flatten()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None.into_iter().flatten()),
        Err(error) => Err(at(path, error)),
    }
}

/// The error with the path that it is about.
pub(super) fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The files of a partition that hold each of its rows once, in the order of their numbers.
///
/// A listing that races with a merge can miss both a merged file and some that it replaced. Two listings in a row that
/// are equal cannot: merged files stand before the others go.
pub(crate) fn live_files(partition: &Path) -> io::Result<Vec<DataFile>> {
    Ok(split_covered(settled_listing(partition)?).0)
}

fn settled_listing(partition: &Path) -> io::Result<Vec<DataFile>> {
    let mut before = listing(partition)?;
    for _ in 0..LISTINGS_MAX {
        let now = listing(partition)?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    Err(io::Error::other(format!("{} changes faster than it can be listed", partition.display())))
}

/// All files of a partition, covered ones too: by their first number, the longer range first.
fn listing(partition: &Path) -> io::Result<Vec<DataFile>> {
    let mut files = Vec::new();
    for entry in entries(partition)? {
        let entry = entry?;
        let Some(range) = entry.file_name().to_str().and_then(FileRange::parse) else { continue };
        match entry.metadata() {
            Ok(metadata) => files.push(DataFile { path: entry.path(), range, octets: metadata.len() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    files.sort_by_key(|file| (file.range.first, u64::MAX - file.range.last));
    Ok(files)
}

/// Divides a listing into the files that count and those that another one covers.
fn split_covered(files: Vec<DataFile>) -> (Vec<DataFile>, Vec<DataFile>) {
    let mut covered_to = None;
    files.into_iter().partition(|file| {
        let counts = covered_to < Some(file.range.last);
        covered_to = covered_to.max(Some(file.range.last));
        counts
    })
}

/// The number that the next file of a partition gets. A listing that missed a merged file and those that it replaced would
/// give a number that the merged file covers, and readers would never see the new one.
pub(super) fn next_number(partition: &Path) -> io::Result<u64> {
    Ok(settled_listing(partition)?.iter().map(|file| file.range.last + 1).max().unwrap_or(1))
}

/// A partition that may need merging, and its files that others cover, still to be removed.
pub(super) struct Unmerged {
    pub(super) partition: Partition,
    pub(super) covered: Vec<PathBuf>,
}

/// Removes what a crash left half written; finds partitions of several files.
pub(super) fn recover(dir: &Path) -> io::Result<Vec<Unmerged>> {
    let mut unmerged = Vec::new();
    for table in Table::ALL {
        for partition in partitions(dir, table, None, &(Hour::MIN..=Hour::MAX))? {
            let path = partition.path(dir);
            remove_temporary(&path)?;
            let files = listing(&path)?;
            if files.len() > 1 {
                let covered = split_covered(files).1.into_iter().map(|file| file.path).collect();
                unmerged.push(Unmerged { partition, covered });
            }
        }
    }
    Ok(unmerged)
}

fn remove_temporary(path: &Path) -> io::Result<()> {
    for entry in entries(path)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY_PREFIX)) {
            fs::remove_file(entry.path()).map_err(|error| at(&entry.path(), error))?;
        }
    }
    Ok(())
}

/// Ownership of a data directory, until it is dropped or its process ends, however it ends.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(dir: &Path) -> Result<Lock, StoreError> {
        fs::create_dir_all(dir).map_err(StoreError::io(format_args!("make {}", dir.display())))?;
        let path = dir.join(".lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(StoreError::io(format_args!("open {}", path.display())))?;
        let mut process = String::new();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // Who holds it wrote its id into it; a file that cannot be read only makes the message poorer.
                let _ = (&file).take(20).read_to_string(&mut process);
                return Err(StoreError::InUse { dir: dir.to_owned(), process: process.trim().to_owned() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(StoreError::Io { what: format!("lock {}", path.display()), source });
            }
        }
        let mut write_id = || {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write_id().map_err(StoreError::io(format_args!("write {}", path.display())))?;
        Ok(Lock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hours_have_names_in_order() {
        for (time_ms, name) in [
            (0, "1970010100"),
            (1_795_519_799_999, "2026112411"),
            (1_795_519_800_000 + 1_800_000, "2026112412"),
            (253_402_300_799_999, "9999122923"),
            (u64::MAX, "9999122923"),
        ] {
            let hour = Hour::of(time_ms);
            assert_eq!(hour.to_string(), name);
            assert_eq!(Hour::parse(name), Some(hour));
        }
        for bad in ["", "2026112424", "2026022900", "20261124100", "+026112410", "１０"] {
            assert_eq!(Hour::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn covered_files_do_not_count() {
        let file = |first, last| DataFile { path: PathBuf::new(), range: FileRange { first, last }, octets: 0 };
        let listing = vec![file(1, 16), file(1, 1), file(2, 2), file(16, 16), file(17, 17), file(18, 40), file(20, 30)];
        let (live, covered) = split_covered(listing);
        let ranges = |files: &[DataFile]| files.iter().map(|f| (f.range.first, f.range.last)).collect::<Vec<_>>();
        assert_eq!(ranges(&live), [(1, 16), (17, 17), (18, 40)]);
        assert_eq!(ranges(&covered), [(1, 1), (2, 2), (16, 16), (20, 30)]);
    }

    #[test]
    fn only_own_file_names_are_understood() {
        let range = FileRange { first: 1, last: 12_345_678_901 };
        assert_eq!(FileRange::parse(&range.file_name()), Some(range));
        for bad in [".tmp-0000000001-0000000001.parquet", "1-1.parquet", "0000000002-0000000001.parquet", "x.parquet"] {
            assert_eq!(FileRange::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_site_leaves_its_directory(site in any::<String>()) {
            let name = escaped(&site);
            prop_assert_eq!(unescaped(&name), Some(site));
            let path = site_path(Path::new("data"), Table::Flows, &name);
            prop_assert_eq!(path.components().count(), 3);
        }
    }
}
