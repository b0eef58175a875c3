//! The bytes of a capture file: from a file or standard input, decompressed where they are compressed.

use super::error::Fault;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};

/// Compressed bytes that are read at once.
const COMPRESSED_BUFFER: usize = 128 << 10;

/// An open capture file.
pub struct Input {
    bytes: Box<dyn Read + Send>,
    /// How it is compressed.
    pub compression: Option<&'static str>,
    /// Its bytes come as they are made (standard input, a pipe): what is there is handed on rather than waiting for more.
    live: bool,
    failed: Option<io::Error>,
    bar: ProgressBar,
}

impl Input {
    /// Opens a file, `-` for standard input, and looks at its first bytes. The bar is drawn if standard error is a terminal.
    pub fn open(path: &str, progress: bool) -> Result<Input, Fault> {
        let (raw, length): (Box<dyn Read + Send>, Option<u64>) = if path == "-" {
            (Box::new(io::stdin()), None)
        } else {
            let file = File::open(path).map_err(Fault::Open)?;
            let metadata = file.metadata().map_err(Fault::Open)?;
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        };
        let bar = bar(length, progress);
        let mut raw = bar.wrap_read(raw);
        let mut magic = [0; 4];
        let known = read_full(&mut raw, &mut magic).map_err(Fault::Open)?;
        let raw = Cursor::new(magic).take(known as u64).chain(raw);
        let (compression, bytes) = decompress(magic, raw).map_err(Fault::Open)?;
        Ok(Input { bytes, compression, live: length.is_none(), failed: None, bar })
    }

    /// Fills `buffer`, or of live input takes what there is (waiting for the first byte); 0 is the end.
    ///
    /// What could be read before an error is given first, the error on the next call.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut filled = 0;
        while filled < buffer.len() && !(self.live && filled > 0) {
            match self.bytes.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if filled == 0 => return Err(error),
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        Ok(filled)
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

type Opened = (Option<&'static str>, Box<dyn Read + Send>);

fn decompress(magic: [u8; 4], raw: impl Read + Send + 'static) -> io::Result<Opened> {
    let buffered = |raw| BufReader::with_capacity(COMPRESSED_BUFFER, raw);
    Ok(match magic {
        [0x1f, 0x8b, ..] => (Some("gzip"), Box::new(flate2::bufread::MultiGzDecoder::new(buffered(raw)))),
        [0x28, 0xb5, 0x2f, 0xfd] => (Some("zstd"), Box::new(zstd::Decoder::with_buffer(buffered(raw))?)),
        [b'B', b'Z', b'h', _] => (Some("bzip2"), Box::new(bzip2::bufread::MultiBzDecoder::new(buffered(raw)))),
        _ => (None, Box::new(raw)),
    })
}

/// Reads until `buffer` is full or the input ends; the number of bytes read.
fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn bar(length: Option<u64>, progress: bool) -> ProgressBar {
    let target = if progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let template = match length {
        Some(_) => "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
        None => "{spinner} {bytes} {bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(template).expect("the template is one of two constants");
    ProgressBar::with_draw_target(length, target).with_style(style)
}
