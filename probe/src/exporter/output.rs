//! Where records go when no collector is named: rows on standard output, or an IPFIX File (RFC 5655).

use nagare_wire::flow::{CSV_HEADER, FlowRecord};
use std::fs::File;
use std::io::{self, BufWriter, Stdout, Write};
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

/// Flow records as rows on standard output.
pub struct Dump {
    format: Format,
    out: BufWriter<Stdout>,
    row: String,
}

impl Dump {
    /// Writes the header, if the format has one.
    ///
    /// # Errors
    /// Standard output's.
    pub fn new(format: Format) -> io::Result<Dump> {
        let mut out = BufWriter::with_capacity(1 << 16, io::stdout());
        if format == Format::Csv {
            writeln!(out, "{CSV_HEADER}")?;
        }
        Ok(Dump { format, out, row: String::new() })
    }

    /// Writes one row.
    ///
    /// # Errors
    /// Standard output's.
    pub fn write(&mut self, flow: &FlowRecord) -> io::Result<()> {
        self.row.clear();
        match self.format {
            Format::Csv => flow.write_csv(&mut self.row),
            Format::Json => flow.write_json(&mut self.row),
        }
        self.out.write_all(self.row.as_bytes())
    }

    /// Hands everything to standard output.
    ///
    /// # Errors
    /// Standard output's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// An IPFIX File: Messages one after another (RFC 5655, 7).
pub struct FileOutput {
    path: PathBuf,
    out: BufWriter<File>,
}

impl FileOutput {
    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// The file system's, naming the file.
    pub fn create(path: &Path) -> io::Result<FileOutput> {
        let file = File::create(path).map_err(|error| named(path, error))?;
        Ok(FileOutput { path: path.to_owned(), out: BufWriter::with_capacity(1 << 16, file) })
    }

    /// Appends a Message.
    ///
    /// # Errors
    /// The file system's, naming the file.
    pub fn write(&mut self, message: &[u8]) -> io::Result<()> {
        self.out.write_all(message).map_err(|error| named(&self.path, error))
    }

    /// Hands everything to the file.
    ///
    /// # Errors
    /// The file system's, naming the file.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush().map_err(|error| named(&self.path, error))
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} cannot be written: {error}", path.display()))
}
