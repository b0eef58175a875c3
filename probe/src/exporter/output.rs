//! Where records go when no collector is named: rows on standard output, or an IPFIX File (RFC 5655).

use crate::counters::Tally;
use nagare_wire::flow::{CSV_HEADER, FlowRecord};
use std::fs::File;
use std::io::{self, Stdout, Write};
use std::path::{Path, PathBuf};

/// Form of the rows on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Comma-separated, with a header.
    Csv,
    /// One JSON object a line.
    Json,
}

/// Octets of rows that are written at once.
const ROWS: usize = 1 << 16;

/// Flow records as rows on standard output.
pub struct Dump<W = Stdout> {
    format: Format,
    out: W,
    rows: String,
    /// The flows in `rows`.
    pending: Tally,
    written: Tally,
    failed: Tally,
}

impl Dump {
    /// To standard output.
    pub fn new(format: Format) -> Dump {
        Dump::to(io::stdout(), format)
    }
}

impl<W: Write> Dump<W> {
    /// To `out`, with a header if the format has one.
    fn to(out: W, format: Format) -> Dump<W> {
        let mut rows = String::with_capacity(2 * ROWS);
        if format == Format::Csv {
            rows.extend([CSV_HEADER, "\n"]);
        }
        let none = Tally::default();
        Dump { format, out, rows, pending: none, written: none, failed: none }
    }

    /// Takes one row.
    ///
    /// # Errors
    /// Standard output's.
    pub fn write(&mut self, flow: &FlowRecord) -> io::Result<()> {
        match self.format {
            Format::Csv => flow.write_csv(&mut self.rows),
            Format::Json => flow.write_json(&mut self.rows),
        }
        self.pending += Tally::of(flow);
        if self.rows.len() < ROWS { Ok(()) } else { self.flush() }
    }

    /// Hands everything to standard output. What fails counts as failed as a whole, although some rows may be out.
    ///
    /// # Errors
    /// Standard output's.
    pub fn flush(&mut self) -> io::Result<()> {
        let outcome = self.out.write_all(self.rows.as_bytes()).and_then(|()| self.out.flush());
        self.rows.clear();
        let sum = if outcome.is_ok() { &mut self.written } else { &mut self.failed };
        *sum += std::mem::take(&mut self.pending);
        outcome.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => io::Error::new(error.kind(), "standard output: its reader wants no more"),
            kind => io::Error::new(kind, format!("standard output: {error}")),
        })
    }

    /// The flows written since the last call.
    pub fn take_written(&mut self) -> Tally {
        std::mem::take(&mut self.written)
    }

    /// The flows that could not be written since the last call.
    pub fn take_failed(&mut self) -> Tally {
        std::mem::take(&mut self.failed)
    }
}

/// An IPFIX File: Messages one after another (RFC 5655, 7).
pub struct FileOutput {
    path: PathBuf,
    file: File,
}

impl FileOutput {
    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// The file system's, naming the file.
    pub fn create(path: &Path) -> io::Result<FileOutput> {
        let file = File::create(path).map_err(|error| named(path, error))?;
        Ok(FileOutput { path: path.to_owned(), file })
    }

    /// Appends a Message; unbuffered, so that what was written is in the file.
    ///
    /// # Errors
    /// The file system's, naming the file.
    pub fn write(&mut self, message: &[u8]) -> io::Result<()> {
        self.file.write_all(message).map_err(|error| named(&self.path, error))
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} cannot be written: {error}", path.display()))
}
