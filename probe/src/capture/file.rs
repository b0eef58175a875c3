//! The capture-file source: pcap and pcapng, plain or compressed, from a file or standard input, with the file's clock.
//!
//! One thread reads the file in chunks and finds the packets in place. After each chunk it tells every worker which of the
//! chunk's frames are the worker's, over a bounded channel: a file waits, it never drops. With several workers the frames
//! are steered by the flow hash that the XDP program uses, so that both directions of a conversation meet. A worker without
//! a frame in a chunk still learns the clock.
#![forbid(unsafe_code)]

mod error;
mod format;
mod input;

pub use error::{Fault, FileError};
pub use format::PACKET_MAX;

use super::{CaptureSource, Frame, Received};
use crate::sys::prefetch;
use format::{Format, ITEM_MAX, Item};
use input::Input;
use nagare_wire::fragment::FragmentTable;
use nagare_wire::packet::{self, LinkType, Tunnels};
use nagare_wire::steer;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

/// Bytes that are read at once; what is left of a chunk's last packet moves to the front of the next.
const CHUNK: usize = 512 << 10;
/// Chunks that may wait for a worker.
const CHUNKS_WAITING: usize = 4;
/// So many frames ahead, and so many octets of each, are asked for while one is metered.
const LOOK_AHEAD: usize = 12;
const HEADERS: usize = 64;
/// Fragmented datagrams whose ports are remembered for steering.
const DATAGRAMS: usize = 4096;

const _: () = assert!(CHUNK > ITEM_MAX, "a chunk holds the largest item whole");

/// How a capture file is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOptions {
    /// Draw a progress bar on standard error, if that is a terminal.
    pub progress: bool,
    /// Seed of the steering hash: random, or fixed to get the same steering twice.
    pub seed: u32,
    /// Which packet of a tunnelled one makes the flow, by which frames are steered.
    pub tunnels: Tunnels,
}

/// What becomes of the packets of a file: at the end `packets = handed + ignore_link_type + stopped`.
#[derive(Debug, Default)]
pub struct FileCounters {
    packets: AtomicU64,
    handed: AtomicU64,
    ignore_link_type: AtomicU64,
    stopped: AtomicU64,
}

/// [`FileCounters`] at one moment; `in_flight` is 0 at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileFigures {
    /// Packets found in the file.
    pub packets: u64,
    /// Packets handed to workers.
    pub handed: u64,
    /// Packets of interfaces whose link type is not decoded.
    pub ignore_link_type: u64,
    /// Packets that were read, but not handed on as the capture was stopped.
    pub stopped: u64,
    /// Packets that wait for a worker.
    pub in_flight: u64,
}

impl FileCounters {
    /// The figures now.
    pub fn figures(&self) -> FileFigures {
        // What has left is read before what has come in, so that nothing in flight seems less than nothing.
        let (handed, stopped) = (self.handed.load(Acquire), self.stopped.load(Acquire));
        let ignore_link_type = self.ignore_link_type.load(Acquire);
        let packets = self.packets.load(Acquire);
        let in_flight = packets.saturating_sub(handed + stopped + ignore_link_type);
        FileFigures { packets, handed, ignore_link_type, stopped, in_flight }
    }
}

/// What was read of a file.
#[derive(Clone, Copy, Debug)]
pub struct FileSummary {
    /// "pcap" or "pcapng".
    pub format: &'static str,
    /// "gzip", "zstd", "bzip2" or nothing.
    pub compression: Option<&'static str>,
    /// Packets read.
    pub packets: u64,
    /// Bytes read, after decompression.
    pub bytes: u64,
    /// The file was read to its end, not stopped before.
    pub complete: bool,
}

/// A capture file that is being read.
pub struct FileCapture {
    file: String,
    outcome: Receiver<Result<FileSummary, FileError>>,
    summary: FileSummary,
    counters: Arc<FileCounters>,
}

impl FileCapture {
    /// Opens a capture file (`-`: standard input) for a number of workers, each of which has one of the sources.
    ///
    /// # Errors
    /// The file cannot be opened, is no capture file, or is a pcap file of a link type that is not decoded.
    ///
    /// # Panics
    /// If there is no worker.
    pub fn open(path: &str, workers: usize, options: FileOptions) -> Result<(FileCapture, Vec<FileSource>), FileError> {
        assert!(workers > 0, "a capture needs a worker");
        let counters = Arc::new(FileCounters::default());
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| sync_channel(CHUNKS_WAITING)).unzip();
        let (report, outcome) = sync_channel(1);
        let reader = Reader::open(path, senders, report, options, Arc::clone(&counters))?;
        let (file, summary) = (reader.file.clone(), reader.summary(false));
        thread::Builder::new()
            .name("file reader".into())
            .spawn(move || reader.run())
            .map_err(|error| FileError::at_start(path, Fault::Open(error)))?;
        let sources = receivers.into_iter().map(|batches| FileSource::new(batches, Arc::clone(&counters))).collect();
        Ok((FileCapture { file, outcome, summary, counters }, sources))
    }

    /// Memory in bytes for the chunks that are read, waited for and metered, at most.
    pub fn memory_bytes() -> usize {
        CHUNK * (CHUNKS_WAITING + 3)
    }

    /// What becomes of the file's packets.
    pub fn counters(&self) -> Arc<FileCounters> {
        Arc::clone(&self.counters)
    }

    /// How the reading ended; to be asked when every source has reported its end or was dropped.
    ///
    /// # Errors
    /// What is wrong with the file, at which byte and after how many packets; those were handed on.
    pub fn outcome(self) -> Result<FileSummary, FileError> {
        // The reader reports before it lets the sources end. Has it not, it was stopped, and may wait for standard input.
        match self.outcome.try_recv() {
            Ok(outcome) => outcome,
            Err(TryRecvError::Empty) => {
                Ok(FileSummary { packets: self.counters.figures().packets, complete: false, ..self.summary })
            }
            Err(TryRecvError::Disconnected) => Err(FileError::at_start(&self.file, Fault::ReaderPanicked)),
        }
    }
}

impl FileError {
    fn at_start(path: &str, fault: Fault) -> FileError {
        FileError { file: display_name(path), fault, offset: 0, packets: 0, compression: None }
    }
}

fn display_name(path: &str) -> String {
    if path == "-" { "standard input" } else { path }.to_string()
}

/// Where one frame lies in its chunk.
struct Place {
    time_ns: u64,
    start: u32,
    length: u32,
    wire_len: u32,
    link: LinkType,
}

impl Place {
    fn of<'a>(&self, chunk: &'a [u8]) -> &'a [u8] {
        &chunk[self.start as usize..(self.start + self.length) as usize]
    }
}

/// One worker's frames of a chunk. However it ends, its frames are in the books.
struct Batch {
    chunk: Arc<Vec<u8>>,
    places: Vec<Place>,
    handed: usize,
    /// The file's clock after the chunk.
    clock_ns: u64,
    counters: Arc<FileCounters>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.counters.stopped.fetch_add((self.places.len() - self.handed) as u64, Release);
    }
}

/// One worker's frames of a capture file.
pub struct FileSource {
    batches: Receiver<Batch>,
    batch: Option<Batch>,
    clock_ns: u64,
    counters: Arc<FileCounters>,
}

impl FileSource {
    fn new(batches: Receiver<Batch>, counters: Arc<FileCounters>) -> FileSource {
        FileSource { batches, batch: None, clock_ns: 0, counters }
    }
}

impl CaptureSource for FileSource {
    fn receive(&mut self, budget: usize, wait: Duration, mut each: impl FnMut(Frame<'_>)) -> io::Result<Received> {
        let next = self.batch.take().map_or_else(|| self.batches.recv_timeout(wait), Ok);
        let mut batch = match next {
            Ok(batch) => batch,
            Err(error) => {
                let end = error == RecvTimeoutError::Disconnected;
                return Ok(Received { frames: 0, now_ns: self.clock_ns, horizon_ns: u64::MAX, end });
            }
        };
        let frames = budget.min(batch.places.len() - batch.handed);
        let places = &batch.places[batch.handed..batch.handed + frames];
        // Counted before they are handed on, as the closure may panic.
        batch.handed += frames;
        self.counters.handed.fetch_add(frames as u64, Release);
        for (index, place) in places.iter().enumerate() {
            self.clock_ns = self.clock_ns.max(place.time_ns);
            // The reader's core has them in its cache: they are asked for before they are needed.
            if let Some(ahead) = places.get(index + LOOK_AHEAD) {
                let bytes = ahead.of(&batch.chunk);
                let headers = &bytes[..bytes.len().min(HEADERS)];
                headers.first().into_iter().chain(headers.last()).for_each(prefetch);
            }
            let bytes = place.of(&batch.chunk);
            each(Frame {
                link: place.link,
                bytes,
                wire_length: place.wire_len,
                time_ns: place.time_ns,
                interface: 1,
                packets: 1,
            });
        }
        if batch.handed == batch.places.len() {
            self.clock_ns = self.clock_ns.max(batch.clock_ns);
        } else {
            self.batch = Some(batch);
        }
        Ok(Received { frames, now_ns: self.clock_ns, horizon_ns: u64::MAX, end: false })
    }
}

type Report = SyncSender<Result<FileSummary, FileError>>;

/// The thread that reads the file.
struct Reader {
    /// The first field, dropped first: a report, or that there is none, is known before a source ends.
    report: Report,
    file: String,
    input: Input,
    format: Format,
    chunks: Chunks,
    /// Octets to pass over before the next item.
    skip: u64,
    /// Octets of the file that have become items.
    offset: u64,
    packets: u64,
    /// Of these, those with a link type that is not decoded.
    ignored: u64,
    clock_ns: u64,
    steering: Steering,
    /// One a worker; none once the worker is gone.
    workers: Vec<Option<SyncSender<Batch>>>,
    places: Vec<Vec<Place>>,
    counters: Arc<FileCounters>,
}

impl Reader {
    /// Opens the file and reads until its format is known.
    fn open(
        path: &str,
        workers: Vec<SyncSender<Batch>>,
        report: Report,
        options: FileOptions,
        counters: Arc<FileCounters>,
    ) -> Result<Reader, FileError> {
        let mut input = Input::open(path, options.progress).map_err(|fault| FileError::at_start(path, fault))?;
        let mut chunks = Chunks::new();
        let at_start = |compression, fault| FileError { compression, ..FileError::at_start(path, fault) };
        let (format, header) = chunks.recognise(&mut input).map_err(|fault| at_start(input.compression, fault))?;
        chunks.consume(header);
        Ok(Reader {
            report,
            file: display_name(path),
            input,
            format,
            chunks,
            skip: 0,
            offset: header as u64,
            packets: 0,
            ignored: 0,
            clock_ns: 0,
            steering: Steering::new(workers.len(), options),
            places: workers.iter().map(|_| Vec::new()).collect(),
            workers: workers.into_iter().map(Some).collect(),
            counters,
        })
    }

    fn run(mut self) {
        let outcome = match self.read() {
            Ok(complete) => Ok(self.summary(complete)),
            Err(fault) => Err(FileError {
                file: self.file.clone(),
                fault,
                offset: self.offset,
                packets: self.packets,
                compression: self.input.compression,
            }),
        };
        // It lies ready before the channels to the workers close. If nobody is left to read it, nobody asked.
        let _ = self.report.send(outcome);
    }

    fn summary(&self, complete: bool) -> FileSummary {
        FileSummary {
            format: self.format.name(),
            compression: self.input.compression,
            packets: self.packets,
            bytes: self.offset,
            complete,
        }
    }

    /// Reads to the end (true), or until no worker is left (false).
    fn read(&mut self) -> Result<bool, Fault> {
        loop {
            let parsed = self.parse_chunk();
            if !self.hand_on() {
                return Ok(false);
            }
            let wanted = parsed?;
            if self.chunks.refill(&mut self.input).map_err(Fault::Read)? == 0 {
                let left = self.chunks.unparsed().len() as u64;
                return if left == 0 && self.skip == 0 {
                    Ok(true)
                } else {
                    Err(Fault::CutShort { wanted: wanted.max(self.skip), left })
                };
            }
        }
    }

    /// Turns the chunk into places, as far as it goes; the number of octets that the item after them needs.
    fn parse_chunk(&mut self) -> Result<u64, Fault> {
        loop {
            let data = self.chunks.unparsed();
            if self.skip > 0 || data.is_empty() {
                let passed = self.skip.min(data.len() as u64);
                self.skip -= passed;
                self.offset += passed;
                self.chunks.consume(passed as usize);
                if self.chunks.unparsed().is_empty() {
                    return Ok(self.skip);
                }
                continue;
            }
            match self.format.next(data)? {
                Item::Unread(wanted) => return Ok(wanted as u64),
                Item::Other(length) => self.skip = length,
                Item::Packet { used, packet } => {
                    self.packets += 1;
                    self.place(&packet);
                    self.offset += used as u64;
                    self.chunks.consume(used);
                }
            }
        }
    }

    /// Notes where a packet lies, for the worker that it is steered to.
    fn place(&mut self, packet: &format::Packet) {
        let time_ns = packet.time_ns.unwrap_or(self.clock_ns);
        self.clock_ns = self.clock_ns.max(time_ns);
        let Some(link) = packet.link else {
            self.ignored += 1;
            return;
        };
        let bytes = &self.chunks.unparsed()[packet.bytes.clone()];
        let worker = self.steering.worker(link, bytes, packet.wire_len, time_ns);
        self.places[worker].push(Place {
            time_ns,
            start: (self.chunks.parsed + packet.bytes.start) as u32,
            length: bytes.len() as u32,
            wire_len: packet.wire_len,
            link,
        });
    }

    /// Gives each worker its frames of the chunk and the clock, waiting where a worker is behind. False: no worker is left.
    fn hand_on(&mut self) -> bool {
        self.counters.packets.store(self.packets, Release);
        self.counters.ignore_link_type.store(self.ignored, Release);
        for (worker, places) in self.workers.iter_mut().zip(&mut self.places) {
            // The next chunk will hold about as many.
            let next = Vec::with_capacity(places.len());
            let batch = Batch {
                chunk: self.chunks.share(),
                places: std::mem::replace(places, next),
                handed: 0,
                clock_ns: self.clock_ns,
                counters: Arc::clone(&self.counters),
            };
            // A batch that cannot be sent counts its frames as stopped.
            if worker.as_ref().is_none_or(|worker| worker.send(batch).is_err()) {
                *worker = None;
            }
        }
        self.workers.iter().any(Option::is_some)
    }
}

/// The chunks: the one that is being parsed, and those that workers may still read, which are used again after that.
struct Chunks {
    current: Arc<Vec<u8>>,
    parsed: usize,
    filled: usize,
    used: Vec<Arc<Vec<u8>>>,
}

impl Chunks {
    fn new() -> Chunks {
        Chunks { current: Arc::new(vec![0; CHUNK]), parsed: 0, filled: 0, used: Vec::new() }
    }

    /// Reads until the format is known; gives it with the length of its header.
    fn recognise(&mut self, input: &mut Input) -> Result<(Format, usize), Fault> {
        loop {
            let read = self.refill(input).map_err(Fault::Read)?;
            if let Some(known) = Format::recognise(self.unparsed())? {
                return Ok(known);
            }
            if read == 0 {
                let left = self.filled as u64;
                return Err(if left == 0 { Fault::Empty } else { Fault::CutShort { wanted: 24, left } });
            }
        }
    }

    /// What has been read and not yet been consumed.
    fn unparsed(&self) -> &[u8] {
        &self.current[self.parsed..self.filled]
    }

    fn consume(&mut self, octets: usize) {
        self.parsed += octets;
    }

    fn share(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.current)
    }

    /// Moves on to a chunk that begins with what is unparsed, and reads into the rest of it.
    fn refill(&mut self, input: &mut Input) -> io::Result<usize> {
        let mut next = self.unused();
        let chunk = Arc::get_mut(&mut next).expect("nobody else has an unused chunk");
        let left = self.filled - self.parsed;
        chunk[..left].copy_from_slice(self.unparsed());
        let read = input.read(&mut chunk[left..])?;
        self.used.push(std::mem::replace(&mut self.current, next));
        (self.parsed, self.filled) = (0, left + read);
        Ok(read)
    }

    /// A chunk that no worker reads any more, or a new one: the channels' bounds are theirs too.
    fn unused(&mut self) -> Arc<Vec<u8>> {
        match self.used.iter_mut().position(|chunk| Arc::get_mut(chunk).is_some()) {
            Some(at) => self.used.swap_remove(at),
            None => Arc::new(vec![0; CHUNK]),
        }
    }
}

/// Which worker a frame goes to.
struct Steering {
    workers: u32,
    seed: u32,
    tunnels: Tunnels,
    fragments: FragmentTable,
}

impl Steering {
    fn new(workers: usize, options: FileOptions) -> Steering {
        let FileOptions { seed, tunnels, .. } = options;
        Steering { workers: workers as u32, seed, tunnels, fragments: FragmentTable::new(DATAGRAMS, seed.into()) }
    }

    /// As the XDP program does: by the flow, what is no flow to worker 0, which names it.
    fn worker(&mut self, link: LinkType, frame: &[u8], wire_len: u32, now_ns: u64) -> usize {
        if self.workers == 1 {
            return 0;
        }
        let Ok(mut observation) = packet::decode(link, frame, wire_len, self.tunnels) else { return 0 };
        self.fragments.resolve(&mut observation, now_ns);
        steer::worker(steer::hash(&observation.key, self.seed), self.workers) as usize
    }
}
