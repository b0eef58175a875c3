//! What waits for a collector on disk: segments in IPFIX File Format (RFC 5655), so that any tool reads them.
//!
//! A segment, `EPOCH-FIRST.ipfix`, holds Messages of one epoch whose numbers follow on each other, FIRST the first. It begins with
//! the Templates. After each Message comes its trailer, a Message with one options record: scoped by exportedMessageTotalCount (41),
//! which is the number, the flows, packets and octets of the segment so far (163, 86, 85) and the Message's MD5 (262). A
//! process that is killed leaves a tail without a trailer at most: it is cut off. The last trailer tells a segment's sums, so
//! that a start needs not read them all.

#![forbid(unsafe_code)]

use super::process::Message;
use crate::counters::Tally;
use md5::{Digest, Md5};
use nagare_wire::ipfix::{FieldSpecifier, MessageHeader, TemplateRecord, element as ie, frame};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Octets at which a segment is closed and the next begun; where the whole spool may have less than eight of them, an eighth of it, as
/// the oldest goes by segments.
pub const SEGMENT_OCTETS: u64 = 8 << 20;
/// Octets of a file that can be a segment; a longer one is left alone.
const SEGMENT_OCTETS_MAX: u64 = 64 << 20;
/// What has waited for this long is made safe from a power cut; what is acknowledged before costs the disk nothing.
const SYNC_AFTER: Duration = Duration::from_secs(2);
/// Octets of a Message's header (RFC 7011, 3.1) and of a Set's.
const HEADER: usize = 16;
const SET_HEADER: usize = 4;
/// Template ID of the trailers; no Template of [`nagare_wire::ipfix::export`] has it.
const TRAILER: u16 = 400;
/// Octets of a trailer.
const TRAILER_OCTETS: usize = HEADER + SET_HEADER + 4 * 8 + 16;
const OPTIONS_TEMPLATE_SET: u16 = 3;

/// Where segments lie and how much of the disk they may take.
#[derive(Clone, Debug)]
pub struct SpoolOptions {
    /// The directory.
    pub dir: PathBuf,
    /// Octets of all segments together.
    pub octets_max: u64,
}

/// What became of flows in a spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Acknowledged.
    pub delivered: Tally,
    /// Let go, the oldest first, because the spool was full.
    pub full: Tally,
    /// Unreadable on disk.
    pub damaged: Tally,
}

/// A Message from the spool, to be sent.
#[derive(Debug)]
pub struct Drained {
    /// Its epoch.
    pub epoch: u64,
    /// Its number.
    pub number: u64,
    /// It.
    pub message: Message,
    /// The Templates that it needs.
    pub templates: Arc<Message>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    /// Sent in this session and not acknowledged.
    Sent,
    /// Acknowledged, or damaged: nothing is to be done any more.
    Settled,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: u32,
    length: u32,
    records: u32,
    flows: Tally,
    state: State,
}

#[derive(Debug)]
struct Segment {
    epoch: u64,
    first: u64,
    path: PathBuf,
    octets: u64,
    messages: u64,
    /// All flows in it, and those that are settled.
    flows: Tally,
    settled_flows: Tally,
    settled: u64,
    /// Of an earlier process.
    recovered: bool,
    /// The disk does not give it: it is left alone until the next start.
    is_unreadable: bool,
    /// When its first Message was made, or the run that it is of began; seconds since 1970.
    begun_s: u32,
    /// Loaded where something of it was or is to be sent.
    index: Option<Vec<Entry>>,
    /// No entry before this one waits.
    cursor: usize,
    templates: Option<Arc<Message>>,
}

/// The spool of one queue.
pub struct Spool {
    options: SpoolOptions,
    segments: VecDeque<Segment>,
    /// The last segment, while it is written to, with the Data Records in it.
    open: Option<(File, u32)>,
    epoch: u64,
    in_memory: u64,
    released: Vec<(u64, u64)>,
    templates: Arc<Message>,
    /// The file that was read last.
    reading: Option<(PathBuf, File)>,
    /// Of this process, and of earlier ones.
    accounts: [Account; 2],
    buffer: Vec<u8>,
    unsynced: Option<Instant>,
    /// Octets cut off as torn.
    pub torn_octets: u64,
    /// Writes that the disk refused.
    pub write_errors: u64,
}

impl Spool {
    /// Opens the directory, which is made where it is missing, and finds what earlier processes left. Segments that this process
    /// adds are of `epoch`, their Messages described by `templates`.
    ///
    /// # Errors
    /// The directory cannot be made, read or written.
    pub fn open(options: SpoolOptions, epoch: u64, templates: Message) -> io::Result<Spool> {
        fs::create_dir_all(&options.dir).map_err(|error| at(&options.dir, error))?;
        let mut spool = Spool {
            segments: VecDeque::new(),
            open: None,
            epoch,
            in_memory: 0,
            released: Vec::new(),
            templates: Arc::new(templates),
            reading: None,
            accounts: Default::default(),
            buffer: Vec::new(),
            unsynced: None,
            torn_octets: 0,
            write_errors: 0,
            options,
        };
        for (epoch, first, path) in segment_files(&spool.options.dir)? {
            spool.recover(epoch, first, path)?;
        }
        Ok(spool)
    }

    fn recover(&mut self, epoch: u64, first: u64, path: PathBuf) -> io::Result<()> {
        let octets = fs::metadata(&path).map_err(|error| at(&path, error))?.len();
        let mut segment = Segment {
            epoch,
            first,
            octets,
            messages: 0,
            flows: Tally::default(),
            settled_flows: Tally::default(),
            settled: 0,
            recovered: true,
            is_unreadable: false,
            begun_s: (epoch / 1000) as u32,
            index: None,
            cursor: 0,
            templates: None,
            path,
        };
        match last_trailer(&segment.path, octets)? {
            Some(trailer) if trailer.number >= first => {
                (segment.messages, segment.flows) = (trailer.number - first + 1, trailer.flows);
            }
            _ => {
                let scan = scan(&segment.path, first)?;
                self.torn_octets += octets - scan.octets;
                if octets > scan.octets {
                    let cut = octets - scan.octets;
                    log::warn!("{}: a torn tail of {cut} octets was cut off", segment.path.display());
                    OpenOptions::new().write(true).open(&segment.path)?.set_len(scan.octets)?;
                }
                (segment.octets, segment.messages, segment.flows) =
                    (scan.octets, scan.entries.len() as u64, scan.flows);
            }
        }
        match segment.messages {
            0 => fs::remove_file(&segment.path).map_err(|error| at(&segment.path, error)),
            _ => {
                self.segments.push_back(segment);
                Ok(())
            }
        }
    }

    /// Writes a Message, whose number follows on the last one's; where the spool is full the oldest segments go.
    ///
    /// # Errors
    /// The disk refuses. The Message is not in the spool then, and the next one begins a new segment.
    pub fn push(&mut self, number: u64, message: &Message) -> io::Result<()> {
        let needed = (message.bytes.len() + TRAILER_OCTETS) as u64;
        while self.octets() + needed > self.options.octets_max && self.drop_oldest() {}
        let written = self.write(number, message);
        self.write_errors += u64::from(written.is_err());
        written
    }

    fn write(&mut self, number: u64, message: &Message) -> io::Result<()> {
        let segment_octets = SEGMENT_OCTETS.min(self.options.octets_max / 8);
        let follows = self.segments.back().is_some_and(|last| {
            !last.recovered && last.first + last.messages == number && last.octets < segment_octets
        });
        if self.open.is_none() || !follows {
            let begun_s = MessageHeader::read(&message.bytes).map_or(0, |header| header.export_time);
            self.begin_segment(number, begun_s)?;
        }
        let (Some(segment), Some((file, sequence))) = (self.segments.back_mut(), &mut self.open) else {
            return Err(io::Error::other("no segment is open"));
        };
        let mut flows = segment.flows;
        flows += message.flows;
        self.buffer.clear();
        self.buffer.extend_from_slice(&message.bytes);
        set_sequence(&mut self.buffer, *sequence);
        let sum = Md5::digest(&self.buffer);
        put_trailer(
            &mut self.buffer,
            sequence.wrapping_add(message.records),
            &Trailer { number, flows, md5: sum.into() },
        );
        if let Err(error) = file.write_all(&self.buffer) {
            // What was written of it would be a torn tail in the middle.
            let cut = file.set_len(segment.octets);
            self.open = None;
            return cut.and(Err(at(&segment.path, error)));
        }
        let entry = Entry {
            offset: segment.octets as u32,
            length: message.bytes.len() as u32,
            records: message.records,
            flows: message.flows,
            state: State::Waiting,
        };
        *sequence = sequence.wrapping_add(message.records).wrapping_add(1);
        segment.index.get_or_insert_default().push(entry);
        segment.octets += self.buffer.len() as u64;
        segment.messages += 1;
        segment.flows = flows;
        self.unsynced.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn begin_segment(&mut self, first: u64, begun_s: u32) -> io::Result<()> {
        self.close_segment();
        let path = self.options.dir.join(file_name(self.epoch, first));
        let mut head = self.templates.bytes.clone();
        set_sequence(&mut head, 0);
        put_trailer_template(&mut head, self.templates.records);
        let open = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path);
        let mut file = open.map_err(|error| at(&path, error))?;
        if let Err(error) = file.write_all(&head) {
            let _ = fs::remove_file(&path);
            return Err(at(&path, error));
        }
        self.open = Some((file, self.templates.records));
        self.segments.push_back(Segment {
            epoch: self.epoch,
            first,
            path,
            octets: head.len() as u64,
            messages: 0,
            flows: Tally::default(),
            settled_flows: Tally::default(),
            settled: 0,
            recovered: false,
            is_unreadable: false,
            begun_s,
            index: Some(Vec::new()),
            cursor: 0,
            templates: Some(self.templates.clone()),
        });
        Ok(())
    }

    fn close_segment(&mut self) {
        self.open = None;
        self.forget_idle_indices();
        if self.segments.back().is_some_and(|last| last.settled == last.messages) {
            self.remove(self.segments.len() - 1);
        }
    }

    /// Says that the Messages of this process from that number on are in memory as well.
    pub fn in_memory(&mut self, from: u64) {
        self.in_memory = from;
    }

    /// What nobody sends from now needs no place in memory: it is read again when its turn comes.
    fn forget_idle_indices(&mut self) {
        let (epoch, from) = (self.epoch, self.in_memory);
        let idle = |segment: &&mut Segment| segment.epoch != epoch || segment.first + segment.messages <= from;
        for segment in self.segments.iter_mut().filter(idle) {
            if segment.index.as_ref().is_some_and(|index| index.iter().all(|entry| entry.state == State::Waiting)) {
                segment.index = None;
            }
        }
    }

    fn overlaps(segment: &Segment, epoch: u64, first: u64, last: u64) -> bool {
        segment.epoch == epoch && segment.first <= last && first < segment.first + segment.messages
    }

    /// Lets the oldest segment go; false where there is none. What of it is in memory as well is not lost.
    fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.segments.front() else { return false };
        let mut left = oldest.flows;
        left.subtract(oldest.settled_flows);
        if oldest.epoch == self.epoch && oldest.first + oldest.messages > self.in_memory {
            let from = oldest.first.max(self.in_memory);
            self.released.push((from, oldest.first + oldest.messages - 1));
            let entries = oldest.index.iter().flatten().skip((from - oldest.first) as usize);
            entries.filter(|entry| entry.state != State::Settled).for_each(|entry| left.subtract(entry.flows));
        }
        let account = &mut self.accounts[usize::from(oldest.recovered)];
        if left.flows > 0 && account.full.flows == 0 {
            log::warn!("the spool {} is full: the oldest records are dropped", self.options.dir.display());
        }
        account.full += left;
        if self.segments.len() == 1 {
            self.open = None;
        }
        self.remove(0);
        true
    }

    /// Numbers of Messages in memory that the spool keeps no more.
    pub fn take_released(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.released)
    }

    fn remove(&mut self, index: usize) {
        let Some(segment) = self.segments.remove(index) else { return };
        if let Err(error) = fs::remove_file(&segment.path) {
            log::warn!("{} cannot be removed: {error}", segment.path.display());
        }
    }

    /// Notes that numbers were acknowledged.
    pub fn acknowledge(&mut self, epoch: u64, first: u64, last: u64) {
        for at in 0..self.segments.len() {
            if !Spool::overlaps(&self.segments[at], epoch, first, last) {
                continue;
            }
            self.load(at);
            let segment = &mut self.segments[at];
            let Some(index) = &mut segment.index else { continue };
            let end = segment.first + index.len() as u64;
            for number in first.max(segment.first)..last.saturating_add(1).min(end) {
                let entry = &mut index[(number - segment.first) as usize];
                if entry.state != State::Settled {
                    entry.state = State::Settled;
                    segment.settled += 1;
                    segment.settled_flows += entry.flows;
                    self.accounts[usize::from(segment.recovered)].delivered += entry.flows;
                }
            }
        }
        self.remove_settled();
    }

    /// Removes the segments of which nothing is left to do, but for the one that is written to.
    fn remove_settled(&mut self) {
        let mut index = 0;
        while index < self.segments.len() {
            let segment = &self.segments[index];
            let open = self.open.is_some() && index + 1 == self.segments.len();
            match segment.settled == segment.messages && !open {
                true => self.remove(index),
                false => index += 1,
            }
        }
    }

    /// Notes that a Message of this process was sent.
    pub fn sent(&mut self, number: u64) {
        let mut own = self.segments.iter_mut().rev().take_while(|segment| segment.epoch == self.epoch);
        let Some(segment) = own.find(|segment| segment.first <= number) else { return };
        let entry = segment.index.as_mut().and_then(|index| index.get_mut((number - segment.first) as usize));
        if let Some(entry) = entry.filter(|entry| entry.state == State::Waiting) {
            entry.state = State::Sent;
        }
    }

    /// Begins anew: what was sent and not acknowledged waits again.
    pub fn rewind(&mut self) {
        self.segments.iter_mut().for_each(|segment| segment.cursor = 0);
        for entry in self.segments.iter_mut().filter_map(|segment| segment.index.as_mut()).flatten() {
            if entry.state == State::Sent {
                entry.state = State::Waiting;
            }
        }
        self.forget_idle_indices();
    }

    /// The oldest Message that waits, of this process's only those with a number below `before`; it counts as sent.
    pub fn next_waiting(&mut self, before: u64) -> Option<Drained> {
        let (at, place) = self.find_waiting(before)?;
        let segment = &mut self.segments[at];
        let entry = segment.index.as_mut().map(|index| &mut index[place])?;
        entry.state = State::Sent;
        let (entry, epoch, number) = (*entry, segment.epoch, segment.first + place as u64);
        let templates = segment.templates.clone()?;
        match self.read(at, entry) {
            Ok(bytes) => {
                let message = Message { bytes, flows: entry.flows, records: entry.records };
                Some(Drained { epoch, number, message, templates })
            }
            Err(error) => {
                // The next call goes on with the one after it.
                log::error!("a spooled Message is lost: {error}");
                self.damaged(at, place);
                None
            }
        }
    }

    /// The segment, and the place in it.
    fn find_waiting(&mut self, before: u64) -> Option<(usize, usize)> {
        for at in 0..self.segments.len() {
            if self.segments[at].epoch == self.epoch && self.segments[at].first >= before {
                return None;
            }
            self.load(at);
            let segment = &mut self.segments[at];
            let Some(index) = segment.index.as_ref() else { continue };
            let waits = |entry: &Entry| entry.state == State::Waiting;
            let place = index[segment.cursor..].iter().position(waits).map(|place| segment.cursor + place);
            segment.cursor = place.unwrap_or(index.len());
            if let Some(place) = place {
                let in_memory = segment.epoch == self.epoch && segment.first + place as u64 >= before;
                return (!in_memory).then_some((at, place));
            }
        }
        None
    }

    /// Whether [`Spool::next_waiting`] may have something.
    pub fn has_waiting(&self, before: u64) -> bool {
        self.segments.iter().any(|segment| {
            let left = segment.index.as_ref().is_none_or(|index| segment.cursor < index.len());
            left && !segment.is_unreadable
                && (segment.epoch != self.epoch || segment.first + (segment.cursor as u64) < before)
        })
    }

    fn damaged(&mut self, at: usize, place: usize) {
        let segment = &mut self.segments[at];
        let Some(entry) = segment.index.as_mut().map(|index| &mut index[place]) else { return };
        entry.state = State::Settled;
        segment.settled += 1;
        segment.settled_flows += entry.flows;
        self.accounts[usize::from(segment.recovered)].damaged += entry.flows;
    }

    fn read(&mut self, place: usize, entry: Entry) -> io::Result<Vec<u8>> {
        let path = &self.segments[place].path;
        if self.reading.as_ref().is_none_or(|(open, _)| open != path) {
            self.reading = Some((path.clone(), File::open(path).map_err(|error| at(path, error))?));
        }
        let (_, file) = self.reading.as_ref().expect("it was opened");
        let mut bytes = vec![0; entry.length as usize];
        file.read_exact_at(&mut bytes, u64::from(entry.offset)).map_err(|error| at(path, error))?;
        Ok(bytes)
    }

    /// Reads a segment's index; what is damaged of it is counted.
    fn load(&mut self, at: usize) {
        let segment = &mut self.segments[at];
        if segment.index.is_some() || segment.is_unreadable {
            return;
        }
        let scan = match scan(&segment.path, segment.first) {
            Ok(scan) => scan,
            Err(error) => {
                log::error!("{error}: what is in it waits for the next start");
                segment.is_unreadable = true;
                return;
            }
        };
        let mut lost = segment.flows;
        lost.subtract(scan.flows);
        let damaged = scan.entries.iter().filter(|entry| entry.state == State::Settled);
        let (settled, settled_flows) = damaged.fold((0, Tally::default()), |(count, mut flows), entry| {
            flows += entry.flows;
            (count + 1, flows)
        });
        if settled > 0 || scan.entries.len() as u64 != segment.messages {
            let missing = segment.messages.saturating_sub(scan.entries.len() as u64) + settled;
            log::error!("{}: {missing} of {} Messages are damaged", segment.path.display(), segment.messages);
        }
        let account = &mut self.accounts[usize::from(segment.recovered)];
        account.damaged += lost;
        account.damaged += settled_flows;
        (segment.messages, segment.flows) = (scan.entries.len() as u64, scan.flows);
        (segment.settled, segment.settled_flows) = (settled, settled_flows);
        segment.templates = scan.templates.map(Arc::new);
        segment.index = Some(scan.entries);
    }

    /// Makes what has waited for a while safe from a power cut, beside the exporter, whom a slow disk must not hold up.
    pub fn sync(&mut self, now: Instant) {
        if self.unsynced.is_none_or(|since| now.duration_since(since) < SYNC_AFTER) {
            return;
        }
        self.unsynced = None;
        let Some(file) = self.open.as_ref().and_then(|(file, _)| file.try_clone().ok()) else { return };
        let sync = move || {
            if let Err(error) = file.sync_data() {
                log::warn!("the spool cannot be made safe from a power cut: {error}");
            }
        };
        // Without a thread it is done by the kernel, later.
        let _ = std::thread::Builder::new().name("spool-sync".into()).spawn(sync);
    }

    /// Ends: what is delivered leaves nothing behind.
    pub fn close(&mut self) {
        self.close_segment();
        self.remove_settled();
    }

    /// What became of flows: of this process, and of earlier ones.
    pub fn accounts(&self) -> [Account; 2] {
        self.accounts
    }

    /// The flows that are on disk and not settled: of this process, and of earlier ones.
    pub fn waiting(&self) -> [Tally; 2] {
        let mut waiting = [Tally::default(); 2];
        for segment in &self.segments {
            let mut left = segment.flows;
            left.subtract(segment.settled_flows);
            waiting[usize::from(segment.recovered)] += left;
        }
        waiting
    }

    /// Octets of all segments.
    pub fn octets(&self) -> u64 {
        self.segments.iter().map(|segment| segment.octets).sum()
    }

    /// When the oldest Message that waits was made at the earliest, seconds since 1970.
    pub fn oldest_s(&self) -> Option<u32> {
        self.segments.iter().find(|segment| segment.settled < segment.messages).map(|segment| segment.begun_s)
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.options.dir
    }

    /// Octets that it may have.
    pub fn octets_max(&self) -> u64 {
        self.options.octets_max
    }

    /// Messages that are not settled.
    pub fn messages(&self) -> u64 {
        self.segments.iter().map(|segment| segment.messages - segment.settled).sum()
    }

    /// Of each epoch the lowest number that is not settled.
    pub fn lowest(&self) -> Vec<(u64, u64)> {
        let mut lowest: Vec<(u64, u64)> = Vec::new();
        for segment in self.segments.iter().filter(|segment| segment.settled < segment.messages) {
            if lowest.last().is_none_or(|(epoch, _)| *epoch != segment.epoch) {
                let unsettled = |index: &Vec<Entry>| index.iter().position(|entry| entry.state != State::Settled);
                let skipped = segment.index.as_ref().and_then(unsettled).unwrap_or(0);
                lowest.push((segment.epoch, segment.first + skipped as u64));
            }
        }
        lowest
    }
}

/// The segments of a directory, in order: epoch, first number, path.
///
/// # Errors
/// The directory cannot be read.
pub fn segment_files(dir: &Path) -> io::Result<Vec<(u64, u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| at(dir, error))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((epoch, first)) = name.strip_suffix(".ipfix").and_then(|name| name.split_once('-')) else { continue };
        if let (Ok(epoch), Ok(first)) = (epoch.parse(), first.parse()) {
            found.push((epoch, first, path));
        }
    }
    found.sort();
    Ok(found)
}

fn file_name(epoch: u64, first: u64) -> String {
    format!("{epoch:020}-{first:020}.ipfix")
}

/// The error with the path that it is about.
pub(super) fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn set_sequence(message: &mut [u8], sequence: u32) {
    message[8..12].copy_from_slice(&sequence.to_be_bytes());
}

/// What a trailer says.
struct Trailer {
    number: u64,
    flows: Tally,
    md5: [u8; 16],
}

/// Appends the trailer of the Message that `out` begins with.
fn put_trailer(out: &mut Vec<u8>, sequence: u32, trailer: &Trailer) {
    put_header(out, TRAILER_OCTETS, sequence);
    out.extend_from_slice(&TRAILER.to_be_bytes());
    out.extend_from_slice(&((TRAILER_OCTETS - HEADER) as u16).to_be_bytes());
    for count in [trailer.number, trailer.flows.flows, trailer.flows.packets, trailer.flows.octets] {
        out.extend_from_slice(&count.to_be_bytes());
    }
    out.extend_from_slice(&trailer.md5);
}

/// Appends a Message with the trailers' Options Template.
fn put_trailer_template(out: &mut Vec<u8>, sequence: u32) {
    let counts = [
        ie::EXPORTED_MESSAGE_TOTAL_COUNT,
        ie::OBSERVED_FLOW_TOTAL_COUNT,
        ie::PACKET_TOTAL_COUNT,
        ie::OCTET_TOTAL_COUNT,
    ];
    let fields = counts.map(|count| FieldSpecifier::iana(count, 8)).into_iter();
    let fields = fields.chain([FieldSpecifier::iana(ie::MESSAGE_MD5_CHECKSUM, 16)]).collect();
    let mut template = Vec::new();
    TemplateRecord { id: TRAILER, scopes: 1, fields }.write(&mut template);
    put_header(out, HEADER + SET_HEADER + template.len(), sequence);
    out.extend_from_slice(&OPTIONS_TEMPLATE_SET.to_be_bytes());
    out.extend_from_slice(&((SET_HEADER + template.len()) as u16).to_be_bytes());
    out.extend_from_slice(&template);
}

/// A Message's header, with the Export Time and the Observation Domain of the Message that `out` begins with.
fn put_header(out: &mut Vec<u8>, length: usize, sequence: u32) {
    let (time, domain) = (out[4..8].to_vec(), out[12..16].to_vec());
    out.extend_from_slice(&[0, 10]);
    out.extend_from_slice(&(length as u16).to_be_bytes());
    out.extend_from_slice(&time);
    out.extend_from_slice(&sequence.to_be_bytes());
    out.extend_from_slice(&domain);
}

/// The trailer that these octets are.
fn trailer(bytes: &[u8]) -> Option<Trailer> {
    let framed = bytes.len() == TRAILER_OCTETS && matches!(frame(bytes), Ok(Some(TRAILER_OCTETS)));
    if !framed || bytes[HEADER..HEADER + 2] != TRAILER.to_be_bytes() {
        return None;
    }
    let count = |index: usize| {
        let at = HEADER + SET_HEADER + index * 8;
        bytes[at..at + 8].iter().fold(0, |count, byte| count << 8 | u64::from(*byte))
    };
    let flows = Tally { flows: count(1), packets: count(2), octets: count(3) };
    Some(Trailer { number: count(0), flows, md5: bytes[TRAILER_OCTETS - 16..].try_into().ok()? })
}

/// The trailer at the end of a segment; `None` where its last octets are none.
fn last_trailer(path: &Path, octets: u64) -> io::Result<Option<Trailer>> {
    let Some(offset) = octets.checked_sub(TRAILER_OCTETS as u64) else { return Ok(None) };
    let mut bytes = [0; TRAILER_OCTETS];
    let file = File::open(path).map_err(|error| at(path, error))?;
    file.read_exact_at(&mut bytes, offset).map_err(|error| at(path, error))?;
    Ok(trailer(&bytes))
}

/// What a segment holds.
#[derive(Debug, Default)]
struct Scan {
    templates: Option<Message>,
    entries: Vec<Entry>,
    flows: Tally,
    /// Octets up to the end of the last Message with a trailer.
    octets: u64,
}

/// A segment as `spool list` and `spool verify` tell of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Messages with a trailer.
    pub messages: u64,
    /// Of those, the ones whose checksum is wrong.
    pub damaged: u64,
    /// Flows in it.
    pub flows: u64,
    /// Octets of the file.
    pub octets: u64,
    /// Octets after the last trailer.
    pub torn: u64,
}

/// Reads a whole segment and compares each Message with its checksum.
///
/// # Errors
/// The file cannot be read.
pub fn contents(path: &Path, first: u64) -> io::Result<Contents> {
    let octets = fs::metadata(path).map_err(|error| at(path, error))?.len();
    let scan = scan(path, first)?;
    let damaged = scan.entries.iter().filter(|entry| entry.state == State::Settled).count() as u64;
    let (messages, flows) = (scan.entries.len() as u64, scan.flows.flows);
    Ok(Contents { messages, damaged, flows, octets, torn: octets.saturating_sub(scan.octets) })
}

/// Reads a segment from its start; Messages whose checksum is wrong are settled, and the first octet that fits nothing is its end.
fn scan(path: &Path, first: u64) -> io::Result<Scan> {
    let file = File::open(path).map_err(|error| at(path, error))?;
    if file.metadata()?.len() > SEGMENT_OCTETS_MAX {
        let long = format!("longer than {SEGMENT_OCTETS_MAX} octets: no segment of a spool");
        return Err(at(path, io::Error::other(long)));
    }
    let mut bytes = Vec::new();
    (&file).take(SEGMENT_OCTETS_MAX).read_to_end(&mut bytes).map_err(|error| at(path, error))?;
    let mut scan = Scan::default();
    let next = |at: usize| match frame(&bytes[at..]) {
        Ok(Some(length)) => Some(&bytes[at..at + length]),
        _ => None,
    };
    let Some((templates, template)) = next(0).and_then(|templates| Some((templates, next(templates.len())?))) else {
        return Ok(scan);
    };
    let mut at = templates.len() + template.len();
    let records = MessageHeader::read(template).map_or(0, |header| header.sequence);
    scan.templates = Some(Message { bytes: templates.to_vec(), flows: Tally::default(), records });
    scan.octets = at as u64;
    while let Some(message) = next(at) {
        let end = at + message.len();
        let number = first + scan.entries.len() as u64;
        let Some(bytes) = bytes.get(end..end + TRAILER_OCTETS) else { break };
        let Some(trailer) = trailer(bytes).filter(|trailer| trailer.number == number) else { break };
        let sequence = |message: &[u8]| MessageHeader::read(message).map_or(0, |header| header.sequence);
        let mut flows = trailer.flows;
        flows.subtract(scan.flows);
        let whole = Md5::digest(message).as_slice() == trailer.md5;
        scan.entries.push(Entry {
            offset: at as u32,
            length: message.len() as u32,
            records: sequence(bytes).wrapping_sub(sequence(message)),
            flows,
            state: if whole { State::Waiting } else { State::Settled },
        });
        scan.flows = trailer.flows;
        at = end + TRAILER_OCTETS;
        scan.octets = at as u64;
    }
    Ok(scan)
}
