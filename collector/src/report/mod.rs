//! The customer's report: one HTML file, and a CSV file for every table in it.
//!
//! [`gather`] asks the store, `model` is what a report holds, `html` and `csv` write it down.

#![forbid(unsafe_code)]

mod buckets;
mod chart;
mod csv;
mod format;
mod gather;
mod html;
mod interruption;
mod lang;
mod ledger;
mod model;
mod names;
mod network;
mod presence;
mod quality_html;

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;

pub use buckets::{Chart, DIRECTIONS, Direction, Samples};
pub use gather::gather;
pub use lang::Lang;
pub use model::{
    Exporter, Interruption, Kind, Period, Process, Quality, Ranked, ReportData, Session, SessionSums, Statistics,
    Totals,
};
pub use network::{Network, NetworkError, default_local};

use crate::query::{Engine, QueryError};

/// The longest period of a report: ten years. Memory for its samples is reserved at once.
pub const PERIOD_MAX_MS: i64 = 3_653 * 86_400_000;

/// The most rows that a table of the report can have.
pub const TOP_MAX: usize = 1_000;

/// What a report is about, and where it goes.
#[derive(Clone, Debug)]
pub struct ReportOptions {
    /// The site.
    pub site: String,
    /// The customer's name as the report shows it; the site's where there is none.
    pub customer: Option<String>,
    /// The first millisecond (since 1970 UTC) of the period.
    pub from_ms: i64,
    /// The millisecond after the period's last.
    pub to_ms: i64,
    /// The time zone of every time in the report, and of its calendar days.
    pub tz: TimeZone,
    /// The language.
    pub lang: Lang,
    /// The number of rows that a table has at most.
    pub top: usize,
    /// The site's own networks, [`default_local`] where the provider knows none.
    pub local: Vec<Network>,
    /// The HTML file.
    pub out: PathBuf,
    /// A directory for CSV files of every table.
    pub csv: Option<PathBuf>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportSummary {
    /// Sums over the period.
    pub totals: Totals,
    /// Whether the probe's books balance, packets and flows both; `None` where no probe reported any.
    pub balanced: Option<bool>,
    /// The HTML file.
    pub out: PathBuf,
    /// The CSV files.
    pub csv: Vec<PathBuf>,
}

/// Why there is no report.
#[derive(Debug)]
pub enum ReportError {
    /// The options make no sense; says which and what to do.
    Options(String),
    /// The store could not be asked.
    Query(QueryError),
    /// A file could not be written.
    Write(PathBuf, io::Error),
}

impl fmt::Display for ReportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReportError::Options(text) => f.write_str(text),
            ReportError::Query(error) => write!(f, "the report's figures cannot be had: {error}"),
            ReportError::Write(path, error) => write!(f, "cannot write {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for ReportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ReportError::Options(_) => None,
            ReportError::Query(error) => Some(error),
            ReportError::Write(_, error) => Some(error),
        }
    }
}

impl From<QueryError> for ReportError {
    fn from(error: QueryError) -> Self {
        ReportError::Query(error)
    }
}

/// Makes a report and writes its files, each whole or not at all.
///
/// # Errors
/// The options make no sense, the store cannot be read, or a file cannot be written.
pub fn write_report(engine: &Engine, options: &ReportOptions) -> Result<ReportSummary, ReportError> {
    check(options)?;
    let now_ms = Timestamp::now().as_millisecond();
    // What is not over yet is no part of an average.
    let to_ms = if options.from_ms < now_ms { options.to_ms.min(now_ms) } else { options.to_ms };
    let options = &ReportOptions { to_ms, ..options.clone() };
    let data = gather(engine, options, now_ms)?;
    let [octets_in, octets_out, _, transit] = data.totals.octets;
    if transit > octets_in.saturating_add(octets_out) {
        let site = &options.site;
        log::warn!(
            "site {site}: most octets are between addresses outside its local networks: name them (local = [...])"
        );
    }
    let csv = match &options.csv {
        Some(dir) => csv::write_all(dir, &data)?,
        None => Vec::new(),
    };
    write_whole(&options.out, html::page(&data, options.lang).as_bytes())?;
    let balanced = [Kind::Metering, Kind::Exporting].into_iter().filter_map(|kind| data.quality.balanced(kind));
    let balanced = balanced.reduce(|a, b| a && b);
    Ok(ReportSummary { totals: data.totals, balanced, out: options.out.clone(), csv })
}

fn check(options: &ReportOptions) -> Result<(), ReportError> {
    let refuse = |text: String| Err(ReportError::Options(text));
    let length = options.to_ms.checked_sub(options.from_ms);
    if !length.is_some_and(|length| (1..=PERIOD_MAX_MS).contains(&length)) {
        let (from, to) = (format::rfc3339(options.from_ms, &options.tz), format::rfc3339(options.to_ms, &options.tz));
        return refuse(format!(
            "the period from {from} to {to} must be longer than nothing and no longer than ten years"
        ));
    }
    if [options.from_ms, options.to_ms].into_iter().any(|time_ms| Timestamp::from_millisecond(time_ms).is_err()) {
        return refuse("the period must lie between the years -9999 and 9999".to_owned());
    }
    if !(1..=TOP_MAX).contains(&options.top) {
        return refuse(format!("--top {} must be from 1 to {TOP_MAX}", options.top));
    }
    Ok(())
}

/// Writes a file beside its place and renames it, so that nobody ever sees a part of it.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), ReportError> {
    let failed = |error| ReportError::Write(path.to_owned(), error);
    let Some(name) = path.file_name() else {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file")));
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        let text = format!("{} is not a directory: create it first", parent.display());
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, text)));
    }
    let temporary = parent.join(format!(".tmp-{}-{}", std::process::id(), name.to_string_lossy()));
    let written = fs::File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    written.map_err(|error| {
        // The error is told; a leftover that cannot be removed either is the lesser harm.
        let _ = fs::remove_file(&temporary);
        failed(error)
    })
}

#[cfg(test)]
mod tests;
