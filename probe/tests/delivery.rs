//! Seeded simulation of a queue to a collector: outages, crashes of either side, memory and disk that are full, a power cut. No clock,
//! no network; the files are real. Every flow arrives exactly once, but for those that the accounts call lost.

mod numbered;

use nagare_probe::counters::Tally;
use nagare_probe::exporter::outbox::Outbox;
use nagare_probe::exporter::process::ExportingProcess;
use nagare_probe::exporter::spool::{Spool, SpoolOptions, contents, segment_files};
use nagare_probe::exporter::transport::Id;
use nagare_wire::delivery::{Ack, Ranges};
use nagare_wire::ipfix::field::FlowTemplate;
use nagare_wire::ipfix::mapping::{Mapped, map};
use nagare_wire::ipfix::{Transport, TransportSession};
use numbered::{Random, flow, number_of};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Seeds of a run; `NAGARE_SEED` names one alone.
const SEEDS: u64 = 400;
/// Events of a seed.
const STEPS: u32 = 120;

/// A collector that stores each Message once, as the real one does.
#[derive(Default)]
struct Collector {
    session: Option<TransportSession>,
    received: BTreeMap<u64, Ranges>,
    stored: BTreeMap<u32, u32>,
    /// Received and not durable: a crash forgets it.
    fresh: Vec<(Id, Vec<u32>)>,
    duplicates: u64,
}

impl Collector {
    fn take(&mut self, id: Id, message: &[u8]) {
        let mut numbers = Vec::new();
        let session = self.session.as_mut().expect("a session");
        let received = session.receive(message, |header, record| {
            if let Mapped::Flow(flow) = map(header, &record) {
                numbers.push(number_of(&flow));
            }
        });
        let received = received.expect("well-formed");
        assert_eq!((received.lost, received.sets_without_template), (0, 0), "{:?}", received.notes);
        assert!(received.notes.is_empty(), "{:?}", received.notes);
        if id.number == 0 {
            return assert!(numbers.is_empty(), "flows without a number");
        }
        if self.received.entry(id.epoch).or_default().contains(id.number) {
            self.duplicates += 1;
            numbers.clear();
        }
        self.received.entry(id.epoch).or_default().insert(id.number, id.number);
        self.fresh.push((id, numbers));
    }

    /// Makes what came durable, and acknowledges it.
    fn store(&mut self) -> Vec<Ack> {
        let mut acks = Vec::new();
        for (id, numbers) in self.fresh.drain(..) {
            numbers.into_iter().for_each(|number| *self.stored.entry(number).or_default() += 1);
            acks.push(Ack { epoch: id.epoch, first: id.number, last: id.number });
        }
        acks
    }

    fn crash(&mut self, durable: &BTreeMap<u64, Ranges>) {
        self.session = None;
        self.fresh.clear();
        self.received = durable.clone();
    }
}

/// The whole: a probe's queue, a collector, what may be lost.
struct World {
    random: Random,
    dir: tempfile::TempDir,
    spooled: bool,
    memory: usize,
    disk: u64,
    process: ExportingProcess,
    outbox: Outbox,
    collector: Collector,
    durable: BTreeMap<u64, Ranges>,
    epoch: u64,
    next: u32,
    /// Flows that were not a Message yet when the probe crashed, or that a power cut took.
    killed: BTreeSet<u32>,
    begun: Vec<u32>,
    /// Flows that ended in a probe that is gone, as its own accounts had them.
    dropped: u64,
}

fn start(dir: &Path, spooled: bool, memory: usize, disk: u64, epoch: u64, full: bool) -> (ExportingProcess, Outbox) {
    let template = if full { FlowTemplate::full() } else { FlowTemplate::basic() };
    let mut process = ExportingProcess::new(1, 2000, template);
    let templates = process.begin_session(epoch as u32).1;
    let options = SpoolOptions { dir: dir.to_owned(), octets_max: disk };
    let spool = spooled.then(|| Spool::open(options, epoch, templates.clone()).expect("a spool"));
    (process, Outbox::new(epoch, memory, templates, spool))
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let dir = tempfile::tempdir().expect("a directory");
        let spooled = random.below(4) > 0;
        let memory = [3_000, 20_000, 1 << 20][random.below(3) as usize];
        let disk = [40_000, 1 << 30][random.below(2) as usize];
        let (process, outbox) = start(dir.path(), spooled, memory, disk, 1, false);
        World {
            random,
            dir,
            spooled,
            memory,
            disk,
            process,
            outbox,
            collector: Collector::default(),
            durable: BTreeMap::new(),
            epoch: 1,
            next: 0,
            killed: BTreeSet::new(),
            begun: Vec::new(),
            dropped: 0,
        }
    }

    fn meter(&mut self) {
        for _ in 0..self.random.below(200) {
            let number = self.next;
            self.next += 1;
            if let Some(message) = self.process.push(&flow(number), self.epoch as u32) {
                self.outbox.push(message);
                self.begun.clear();
            }
            self.begun.push(number);
        }
    }

    fn flush(&mut self) {
        if let Some(message) = self.process.flush(self.epoch as u32) {
            self.outbox.push(message);
        }
        self.begun.clear();
    }

    fn connect(&mut self) {
        self.outbox.begin_session();
        self.collector.session = Some(TransportSession::new(Transport::Stream));
    }

    fn disconnect(&mut self) {
        self.outbox.lose_session();
        self.collector.session = None;
    }

    fn send(&mut self, most: u64) -> bool {
        if self.collector.session.is_none() {
            return false;
        }
        for _ in 0..most {
            let Some((id, message)) = self.outbox.next_message() else { return false };
            self.collector.take(id, &message.bytes);
        }
        true
    }

    fn store(&mut self, tell: bool) {
        let acks = self.collector.store();
        self.durable = self.collector.received.clone();
        if tell && self.collector.session.is_some() {
            acks.into_iter().for_each(|ack| self.outbox.acknowledge(ack));
        }
    }

    /// The flows of this process that are lost by its own account.
    fn losses(&self) -> u64 {
        let (fates, accounts) = (self.outbox.fates(), self.outbox.accounts());
        let lost = [fates.buffer_full, fates.unacknowledged, accounts[0].full, accounts[0].damaged];
        let old = [accounts[1].full, accounts[1].damaged];
        lost.into_iter().chain(old).map(|tally: Tally| tally.flows).sum()
    }

    /// kill -9: what is no Message yet is lost; what is one is in the spool.
    fn crash(&mut self) {
        if !self.spooled {
            return;
        }
        self.disconnect();
        // What a spool that is full had no room for was in memory alone.
        self.dropped += self.losses() + self.outbox.held().flows;
        self.killed.extend(self.begun.drain(..));
        self.epoch += 1;
        let full = self.random.below(2) == 0;
        (self.process, self.outbox) = start(self.dir.path(), true, self.memory, self.disk, self.epoch, full);
    }

    /// A power cut: the tail of the last segment never reached the disk. What was in it may be lost.
    fn cut_power(&mut self) {
        if !self.spooled || self.disk < 1 << 20 {
            return;
        }
        let last = segment_files(self.dir.path()).expect("readable").pop();
        let Some((_, first, path)) = last else { return };
        let before = contents(&path, first).expect("readable");
        let cut = self.random.below(before.octets.min(9_000)) + 1;
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("writable");
        file.set_len(before.octets - cut).expect("cut");
        let all: Vec<u32> = (0..self.next).filter(|number| !self.collector.stored.contains_key(number)).collect();
        let kept = contents(&path, first).expect("readable");
        // Which flows those were, only the Messages knew: the last ones that were made.
        let lost = (before.flows - kept.flows) as usize;
        let newest = all.len().saturating_sub(lost + self.begun.len() + 400);
        self.killed.extend(&all[newest..]);
        self.crash();
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=6 => self.meter(),
            7 => self.flush(),
            8 | 9 if self.collector.session.is_none() => self.connect(),
            8..=13 => {
                let most = self.random.below(30);
                self.send(most);
            }
            14 | 15 => self.store(true),
            16 => self.store(false),
            17 => self.disconnect(),
            18 if self.random.below(3) == 0 => {
                self.collector.crash(&self.durable);
                self.outbox.lose_session();
            }
            19 if self.random.below(3) == 0 => self.crash(),
            _ if self.random.below(20) == 0 => self.cut_power(),
            _ => {}
        }
    }

    /// All faults are healed: what waits arrives.
    fn heal(&mut self) {
        self.flush();
        self.disconnect();
        self.connect();
        for _ in 0..10_000 {
            self.send(50);
            self.store(true);
            if self.outbox.is_empty() {
                return;
            }
        }
        panic!("it never gets empty");
    }

    fn check(&self, seed: u64) {
        let doubled: Vec<_> = self.collector.stored.iter().filter(|(_, times)| **times > 1).collect();
        let at_least_once = !self.spooled && self.outbox.fates().unacknowledged.flows > 0;
        assert!(doubled.is_empty() || at_least_once, "seed {seed}: stored twice: {doubled:?}");
        let missing: Vec<u32> = (0..self.next)
            .filter(|number| !self.collector.stored.contains_key(number) && !self.killed.contains(number))
            .collect();
        let lost = self.dropped + self.losses();
        assert!(missing.len() as u64 <= lost, "seed {seed}: {} missing, {lost} told: {missing:?}", missing.len());
        // What is told as lost is lost, but for what had been sent when its memory was needed, or stored unacknowledged.
        if lost == 0 {
            assert!(missing.is_empty(), "seed {seed}: {missing:?}");
        }
    }
}

#[test]
fn every_flow_is_stored_once_or_told_as_lost() {
    let only = std::env::var("NAGARE_SEED").ok().and_then(|seed| seed.parse().ok());
    let (mut flows, mut duplicates, mut whole) = (0, 0, 0);
    for seed in only.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
        world.heal();
        world.check(seed);
        flows += world.next;
        duplicates += world.collector.duplicates;
        whole += u32::from(world.dropped + world.losses() == 0);
    }
    println!("{flows} flows, {duplicates} Messages came twice, in {whole} of the seeds nothing was told as lost");
    assert!(
        only.is_some() || duplicates > 100 && whole > SEEDS as u32 / 4,
        "{duplicates} {whole}: the simulation is too tame"
    );
}

#[test]
fn damage_on_disk_is_found_and_counted_and_the_rest_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let (mut process, mut outbox) = start(dir.path(), true, 1 << 20, 1 << 30, 1, false);
    for number in 0..1000 {
        process.push(&flow(number), 1).into_iter().for_each(|message| outbox.push(message));
    }
    process.flush(1).into_iter().for_each(|message| outbox.push(message));
    drop(outbox);
    let (_, first, path) = segment_files(dir.path()).unwrap().remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let found = contents(&path, first).unwrap();
    assert!(found.damaged == 1 && found.torn == 0 && found.flows == 1000, "{found:?}");

    let (_, mut outbox) = start(dir.path(), true, 1 << 20, 1 << 30, 2, false);
    let mut collector = Collector { session: Some(TransportSession::new(Transport::Stream)), ..Collector::default() };
    outbox.begin_session();
    while let Some((id, message)) = outbox.next_message() {
        collector.take(id, &message.bytes);
    }
    collector.store().into_iter().for_each(|ack| outbox.acknowledge(ack));
    let damaged = outbox.accounts()[1].damaged.flows;
    assert!(damaged > 0 && damaged < 100, "{damaged} flows in one Message");
    assert_eq!(collector.stored.len() as u64 + damaged, 1000);
    assert!(outbox.is_empty() && segment_files(dir.path()).unwrap().is_empty(), "what is settled leaves no file");
}
