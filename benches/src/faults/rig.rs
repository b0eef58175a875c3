//! One schedule, run with the real programs: a probe that is fed, a network that can be made bad, a collector.

#![forbid(unsafe_code)]

use super::check::{Kill, Stored, Verdict, judge};
use super::disk::{Disk, private_mounts};
use super::feed::Feed;
use super::proxy::{Cut, Proxy};
use super::schedule::{Event, Fault, Schedule};
use crate::lab::{LISTENING, Metrics, Pki, Program, collector_arguments};
use nagare_service::run::Stop;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The site of all probes here.
const SITE: &str = "lab";
/// The probe's `--idle-timeout`.
const IDLE: Duration = Duration::from_secs(1);
/// What a flow that ended may take to be safe: the cache's tick and a Message that waits to be full are 0.4 s; the rest is for a
/// machine that has more to do.
const SAFE_AFTER: Duration = Duration::from_secs(2);
/// The feed goes on for so long at least, and after the last fault.
const RUNS_MIN: Duration = Duration::from_secs(3);
const GOES_ON: Duration = Duration::from_millis(700);
/// A program that has not ended after this never will.
const END_MAX: Duration = Duration::from_secs(90);
const TICK: Duration = Duration::from_millis(10);
/// Sizes of the small disks, MiB.
const COLLECTOR_DISK: u32 = 24;
const SPOOL_DISK: u32 = 8;

/// What all schedules share: the programs, the certificates, and what this machine permits.
pub struct Ground {
    probe: PathBuf,
    collector: PathBuf,
    pki: Pki,
    directory: PathBuf,
    /// libfaketime, if it is here.
    clock: Option<PathBuf>,
    /// Why there can be no small disks.
    no_disks: Option<String>,
}

/// How a schedule ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// It.
    pub schedule: Schedule,
    /// What is stored.
    pub verdict: Verdict,
    /// What is wrong beside that: books that do not balance, named drops, programs that do not end.
    pub complaints: Vec<String>,
    /// Where everything of a failure is kept.
    pub kept: Option<PathBuf>,
}

impl Outcome {
    /// Whether nothing was lost, doubled or wrong.
    pub fn is_good(&self) -> bool {
        self.verdict.is_good() && self.complaints.is_empty()
    }
}

impl Ground {
    /// Makes certificates below a directory, which schedules use as well.
    ///
    /// # Errors
    /// A program is not there.
    pub fn new(probe: &Path, collector: &Path, directory: &Path) -> Result<Ground, String> {
        for program in [probe, collector] {
            if !program.exists() {
                return Err(format!("{} is not there: build it, or name another", program.display()));
            }
        }
        let libraries =
            ["x86_64", "aarch64"].map(|cpu| format!("/usr/lib/{cpu}-linux-gnu/faketime/libfaketimeMT.so.1"));
        // On a thread of its own: only the thread's mounts change.
        let mounts = std::thread::spawn(private_mounts).join().unwrap_or_else(|_| Err("it panicked".into()));
        Ok(Ground {
            probe: probe.to_owned(),
            collector: collector.to_owned(),
            pki: Pki::made_by(collector, directory, SITE),
            directory: directory.to_owned(),
            clock: libraries.map(PathBuf::from).into_iter().find(|path| path.exists()),
            no_disks: mounts.err(),
        })
    }

    /// Why a fault cannot be had on this machine.
    pub fn refusal(&self, fault: Fault) -> Option<String> {
        match fault {
            Fault::FillCollector | Fault::FillSpool => self.no_disks.clone(),
            Fault::ClockProbe | Fault::ClockCollector if self.clock.is_none() => {
                Some("libfaketime is not installed (Debian's package faketime)".into())
            }
            _ => None,
        }
    }

    /// Runs a schedule, but for the faults that this machine refuses. What fails is copied to `keep`. To be called on a thread
    /// of its own: its mounts are.
    pub fn run(&self, mut schedule: Schedule, keep: &Path, stop: &Stop) -> Outcome {
        schedule.events.retain(|event| self.refusal(event.fault).is_none());
        let name = format!("seed-{}", schedule.seed);
        let directory = self.directory.join(&name);
        let result = std::fs::create_dir(&directory)
            .map_err(|error| format!("{}: {error}", directory.display()))
            .and_then(|()| Run::begin(self, &schedule, &directory))
            .and_then(|run| run.finish(stop));
        let (verdict, complaints) = result.unwrap_or_else(|error| (Verdict::default(), vec![error]));
        let mut outcome = Outcome { schedule, verdict, complaints, kept: None };
        if !outcome.is_good() {
            outcome.kept = copy(&directory, &keep.join(name));
        }
        std::fs::remove_dir_all(&directory).ok(); // A tmpfs on it goes away with the thread.
        outcome
    }
}

fn copy(from: &Path, to: &Path) -> Option<PathBuf> {
    std::fs::create_dir_all(to.parent()?).ok()?;
    std::fs::remove_dir_all(to).ok(); // Of an earlier run.
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    status.is_ok_and(|status| status.success()).then(|| to.to_owned())
}

/// One start of a program.
struct Life {
    program: Program,
    /// Where its log and its books go, without the extension.
    files: PathBuf,
}

/// A program over its lives.
enum Side {
    Up(Life),
    /// It is to end; whether it was told.
    Ending(Life, bool),
    Down,
}

impl Side {
    /// Takes the life out, whatever it does.
    fn take(&mut self) -> Option<Life> {
        match std::mem::replace(self, Side::Down) {
            Side::Up(life) | Side::Ending(life, _) => Some(life),
            Side::Down => None,
        }
    }

    fn signal(&self, name: &str) {
        if let Side::Up(life) | Side::Ending(life, _) = self {
            life.program.signal(name);
        }
    }

    /// From now on it ends.
    fn end(&mut self, told: bool) {
        *self = match std::mem::replace(self, Side::Down) {
            Side::Up(life) => Side::Ending(life, told),
            other => other,
        };
    }

    fn has_ended(&mut self) -> bool {
        match self {
            Side::Up(life) | Side::Ending(life, _) => life.program.ended().is_some(),
            Side::Down => false,
        }
    }
}

struct Run<'a> {
    ground: &'a Ground,
    schedule: &'a Schedule,
    directory: &'a Path,
    proxy: Proxy,
    feed: Feed,
    probe: Side,
    collector: Side,
    probes: usize,
    collectors: usize,
    data_disk: Option<Disk>,
    spool_disk: Option<Disk>,
    kills: Vec<Kill>,
    complaints: Vec<String>,
}

impl<'a> Run<'a> {
    fn begin(ground: &'a Ground, schedule: &'a Schedule, directory: &'a Path) -> Result<Run<'a>, String> {
        let mut run = Run {
            ground,
            schedule,
            directory,
            proxy: Proxy::start(schedule.seed).map_err(|error| format!("no proxy: {error}"))?,
            feed: Feed::start(schedule.rate),
            probe: Side::Down,
            collector: Side::Down,
            probes: 0,
            collectors: 0,
            data_disk: None,
            spool_disk: None,
            kills: Vec::new(),
            complaints: Vec::new(),
        };
        if schedule.has(Fault::FillCollector) || schedule.has(Fault::FillSpool) {
            private_mounts()?;
        }
        if schedule.has(Fault::FillCollector) {
            run.data_disk = Some(Disk::mount(&directory.join("data"), COLLECTOR_DISK)?);
        }
        if schedule.has(Fault::FillSpool) {
            run.spool_disk = Some(Disk::mount(&directory.join("spool"), SPOOL_DISK)?);
        }
        run.start_collector();
        run.start_probe();
        Ok(run)
    }

    /// Runs the schedule to its end, heals everything, ends the programs and compares.
    fn finish(mut self, stop: &Stop) -> Result<(Verdict, Vec<String>), String> {
        self.go_through(stop)?;
        if self.schedule.terminate {
            self.feed.pause();
            self.probe.end(false);
        } else {
            self.feed.end();
            self.probe.end(true);
        }
        self.until("the probe ended", |run| matches!(run.probe, Side::Down))?;
        self.collector.signal("TERM");
        self.collector.end(true);
        self.until("the collector ended", |run| matches!(run.collector, Side::Down))?;
        let stored = Stored::read(&self.ground.collector, &self.directory.join("data"))?;
        let written = self.feed.finish();
        Ok((judge(&written, &self.kills, &stored), self.complaints))
    }

    /// The time of the faults, and a little after it.
    fn go_through(&mut self, stop: &Stop) -> Result<(), String> {
        let mut coming: Vec<Event> = self.schedule.events.clone();
        let mut open: Vec<Event> = Vec::new();
        let began = Instant::now();
        let until = RUNS_MIN.max(self.schedule.healed() + GOES_ON);
        while began.elapsed() < until || !open.is_empty() {
            let now = began.elapsed();
            if stop.is_set() {
                coming.clear();
            }
            for event in coming.extract_if(.., |event| event.at <= now) {
                self.strike(&event)?;
                open.push(event);
            }
            open.retain(|event| !(event.until() <= now && self.heal(event)));
            self.tick()?;
            if now > until + END_MAX {
                let left: Vec<String> = open.iter().map(Event::to_string).collect();
                return Err(format!("not healed after {} s: {}", now.as_secs(), left.join("; ")));
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn strike(&mut self, event: &Event) -> Result<(), String> {
        let proxy = &self.proxy;
        match event.fault {
            Fault::Reset => proxy.cut(Cut::Reset),
            Fault::Finish => proxy.cut(Cut::Finish),
            Fault::HalfToCollector => proxy.cut(Cut::HalfToCollector),
            Fault::HalfToProbe => proxy.cut(Cut::HalfToProbe),
            Fault::Late => {
                proxy.change(|weather| weather.hold_late = true);
                proxy.cut(Cut::Late);
            }
            Fault::Delay => proxy.change(|weather| weather.delay = event.delay()),
            Fault::Throttle => proxy.change(|weather| weather.octets_per_second = Some(event.octets_per_second())),
            Fault::Corrupt => proxy.change(|weather| weather.corrupt_one_in = Some(event.corrupt_one_in())),
            Fault::Blackhole => proxy.change(|weather| weather.blackhole = true),
            Fault::Refuse => {
                proxy.change(|weather| weather.refuse = true);
                proxy.cut(Cut::Reset);
            }
            Fault::KillProbe => self.kill_probe(),
            Fault::RestartProbe => {
                self.feed.pause();
                self.probe.end(false);
            }
            Fault::StopProbe => self.probe.signal("STOP"),
            Fault::KillCollector => {
                self.collector.signal("KILL");
                self.bury_collector(false);
            }
            Fault::RestartCollector => {
                self.collector.signal("TERM");
                self.collector.end(true);
            }
            Fault::StopCollector => self.collector.signal("STOP"),
            Fault::FillCollector => self.data_disk.as_mut().map_or(Ok(()), Disk::fill)?,
            Fault::FillSpool => self.spool_disk.as_mut().map_or(Ok(()), Disk::fill)?,
            Fault::ClockProbe => self.set_clock("probe", event.clock_s())?,
            Fault::ClockCollector => self.set_clock("collector", event.clock_s())?,
        }
        Ok(())
    }

    /// Undoes what [`Run::strike`] did, as far as it must be undone; says whether it is.
    fn heal(&mut self, event: &Event) -> bool {
        let proxy = &self.proxy;
        match event.fault {
            Fault::Reset | Fault::Finish | Fault::HalfToCollector | Fault::HalfToProbe => {}
            Fault::Late => proxy.change(|weather| weather.hold_late = false),
            Fault::Delay => proxy.change(|weather| weather.delay = Duration::ZERO),
            Fault::Throttle => proxy.change(|weather| weather.octets_per_second = None),
            Fault::Corrupt => proxy.change(|weather| weather.corrupt_one_in = None),
            Fault::Blackhole => proxy.change(|weather| weather.blackhole = false),
            Fault::Refuse => proxy.change(|weather| weather.refuse = false),
            Fault::KillProbe | Fault::RestartProbe => match self.probe {
                Side::Up(_) => {}
                Side::Ending(..) => return false,
                Side::Down => self.start_probe(),
            },
            Fault::StopProbe => self.probe.signal("CONT"),
            Fault::KillCollector | Fault::RestartCollector => match self.collector {
                Side::Up(_) => {}
                Side::Ending(..) => return false,
                Side::Down => self.start_collector(),
            },
            Fault::StopCollector => self.collector.signal("CONT"),
            Fault::FillCollector => self.data_disk.iter_mut().for_each(Disk::free),
            Fault::FillSpool => self.spool_disk.iter_mut().for_each(Disk::free),
            Fault::ClockProbe => return self.set_clock("probe", 0).is_ok(),
            Fault::ClockCollector => return self.set_clock("collector", 0).is_ok(),
        }
        true
    }

    /// Whatever goes on beside the schedule.
    fn tick(&mut self) -> Result<(), String> {
        self.data_disk.iter_mut().chain(&mut self.spool_disk).for_each(Disk::keep_full);
        // A probe that is told to end has read what was written to it before.
        if let Side::Ending(life, told @ false) = &mut self.probe
            && self.feed.is_quiet()
            && Metrics::of_program(&life.program)
                .is_some_and(|metrics| metrics.figure("metered_packets") >= self.feed.packets())
        {
            life.program.signal("TERM");
            *told = true;
        }
        for (side, who) in [(&mut self.probe, "probe"), (&mut self.collector, "collector")] {
            if side.has_ended() && matches!(side, Side::Up(_) | Side::Ending(_, false)) {
                let log = side.take().map(|life| life.program.log()).unwrap_or_default();
                return Err(format!("the {who} ended by itself:\n{log}"));
            }
        }
        if self.probe.has_ended() {
            self.bury_probe(true);
        }
        if self.collector.has_ended() {
            self.bury_collector(true);
        }
        Ok(())
    }

    fn until(&mut self, what: &str, done: impl Fn(&Run) -> bool) -> Result<(), String> {
        let began = Instant::now();
        while !done(self) {
            self.tick()?;
            if began.elapsed() > END_MAX {
                self.probe.signal("KILL"); // So that the feed is not kept waiting.
                return Err(format!("not in {} s: {what}", END_MAX.as_secs()));
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn kill_probe(&mut self) {
        if matches!(self.probe, Side::Down) {
            return;
        }
        self.kills.push(Kill { life: self.feed.life(), at: self.feed.elapsed(), window: IDLE + SAFE_AFTER });
        self.probe.signal("KILL");
        self.bury_probe(false);
    }

    /// After its end: its log goes to a file, and books that it could complete are looked at.
    fn bury_probe(&mut self, in_peace: bool) {
        let Some(life) = self.probe.take() else { return };
        let files = bury(life);
        if in_peace {
            self.complaints.extend(audit(&files.with_extension("json"), None));
        }
    }

    fn bury_collector(&mut self, in_peace: bool) {
        let Some(life) = self.collector.take() else { return };
        let files = bury(life);
        std::fs::rename(self.directory.join("collector.json"), files.with_extension("json")).ok(); // None where it was killed early.
        if in_peace {
            // One that is ended while its disk is full cannot store what it holds; it has not acknowledged it, either.
            let excused = self.schedule.has(Fault::FillCollector).then_some("refuse.write_failed");
            self.complaints.extend(audit(&files.with_extension("json"), excused));
        }
    }

    fn start_probe(&mut self) {
        self.probes += 1;
        let files = self.directory.join(format!("probe-{}", self.probes));
        let mut command = self.command(&self.ground.probe, "probe", Fault::ClockProbe);
        command.args(["-i", "-", "--collector", &format!("tls://localhost:{}", self.proxy.port())]);
        command.args(["--reconnect", "200ms", "--drain-timeout", "80s", "--books-interval", "1s"]);
        command.args(["--idle-timeout", &format!("{}s", IDLE.as_secs()), "--flows-max", "20000", "--buffer", "16M"]);
        command.args(["--metrics", "127.0.0.1:0", "--stats-json"]).arg(files.with_extension("json"));
        command.args(["--dead-peer", "1s"]).args(self.ground.pki.probe(SITE));
        if self.schedule.spool {
            command.arg("--spool").arg(self.directory.join("spool"));
        }
        let (program, input) = Program::fed(command);
        self.feed.give(input);
        self.probe = Side::Up(Life { program, files });
    }

    fn start_collector(&mut self) {
        self.collectors += 1;
        let files = self.directory.join(format!("collector-{}", self.collectors));
        let mut command = self.command(&self.ground.collector, "collector", Fault::ClockCollector);
        command.args(collector_arguments(&self.ground.pki, self.directory, "0"));
        let program = Program::quiet(command);
        let port = program.wait_for(LISTENING);
        self.proxy.lead_to(port.trim().parse().unwrap_or(0));
        self.collector = Side::Up(Life { program, files });
    }

    /// A program, under a clock of its own where that will be set.
    fn command(&self, program: &Path, who: &str, clock: Fault) -> Command {
        let mut command = Command::new(program);
        command.stdout(Stdio::null()); // The books at the end are in the file of --stats-json, too.
        if let (Some(library), true) = (&self.ground.clock, self.schedule.has(clock)) {
            let file = self.clock_file(who);
            if !file.exists() {
                self.set_clock(who, 0).ok(); // Without the file the clock is the machine's.
            }
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", file);
            command.envs([
                ("FAKETIME_NO_CACHE", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                ("DONT_FAKE_MONOTONIC", "1"),
            ]);
        }
        command
    }

    fn clock_file(&self, who: &str) -> PathBuf {
        self.directory.join(format!("{who}.clock"))
    }

    fn set_clock(&self, who: &str, offset_s: i64) -> Result<(), String> {
        let file = self.clock_file(who);
        nagare_service::books::write_whole(&file, format!("{offset_s:+}\n").as_bytes())
            .map_err(|error| error.to_string())
    }
}

/// Waits for the end that was asked for, and writes the log.
fn bury(life: Life) -> PathBuf {
    let Life { program, files } = life;
    let (_, log) = program.wait();
    std::fs::write(files.with_extension("log"), log).ok(); // Only for whoever looks at a failure.
    files
}

/// What is wrong with the last books of a program: they do not balance, or something was dropped or refused. A connection that a
/// bad network broke in its handshake is refused by a right collector, too; `excused` is a term that has a reason.
fn audit(file: &Path, excused: Option<&str>) -> Vec<String> {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let Ok(books) = serde_json::from_str::<Value>(&text) else { return vec![format!("{name}: no books")] };
    let mut complaints = Vec::new();
    if books["balanced"] != true {
        complaints.push(format!("{name}: the books do not balance"));
    }
    for equation in books["equations"].as_array().into_iter().flatten() {
        let of = equation["name"].as_str().unwrap_or_default();
        for (term, value) in equation["terms"].as_object().into_iter().flatten() {
            let lost = term.starts_with("drop.") || term.starts_with("refuse.");
            if lost && of != "connections" && *value != 0 && Some(term.as_str()) != excused {
                complaints.push(format!("{name}: {of}: {term} {value}"));
            }
        }
    }
    complaints
}
