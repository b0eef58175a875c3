//! What goes wrong, and when: schedules made from a seed.

#![forbid(unsafe_code)]

use fastrand::Rng;
use std::fmt;
use std::time::Duration;

/// What can go wrong between a packet and its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // [`Fault::name`] says it.
pub enum Fault {
    Reset,
    Finish,
    HalfToCollector,
    HalfToProbe,
    Late,
    Delay,
    Throttle,
    Corrupt,
    Blackhole,
    Refuse,
    KillProbe,
    RestartProbe,
    StopProbe,
    KillCollector,
    RestartCollector,
    StopCollector,
    FillCollector,
    FillSpool,
    ClockProbe,
    ClockCollector,
}

/// The process or the part of the network that a fault befalls; two faults of one part do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Connections,
    Weather(Fault),
    Probe,
    Collector,
    Disk(Fault),
    Clock(Fault),
}

impl Fault {
    /// All of them, in the order of the table.
    pub const ALL: [Fault; 20] = [
        Fault::Reset,
        Fault::Finish,
        Fault::HalfToCollector,
        Fault::HalfToProbe,
        Fault::Late,
        Fault::Delay,
        Fault::Throttle,
        Fault::Corrupt,
        Fault::Blackhole,
        Fault::Refuse,
        Fault::KillProbe,
        Fault::RestartProbe,
        Fault::StopProbe,
        Fault::KillCollector,
        Fault::RestartCollector,
        Fault::StopCollector,
        Fault::FillCollector,
        Fault::FillSpool,
        Fault::ClockProbe,
        Fault::ClockCollector,
    ];

    /// As the table has it.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Reset => "connection reset",
            Fault::Finish => "connection closed",
            Fault::HalfToCollector => "half-closed towards the collector",
            Fault::HalfToProbe => "half-closed towards the probe",
            Fault::Late => "old connection arrives after the new",
            Fault::Delay => "delay",
            Fault::Throttle => "narrow network",
            Fault::Corrupt => "octets changed",
            Fault::Blackhole => "blackhole",
            Fault::Refuse => "connections refused",
            Fault::KillProbe => "kill -9 of the probe",
            Fault::RestartProbe => "SIGTERM and restart of the probe",
            Fault::StopProbe => "SIGSTOP of the probe",
            Fault::KillCollector => "kill -9 of the collector",
            Fault::RestartCollector => "SIGTERM and restart of the collector",
            Fault::StopCollector => "SIGSTOP of the collector",
            Fault::FillCollector => "collector's disk full",
            Fault::FillSpool => "spool's disk full",
            Fault::ClockProbe => "probe's clock set",
            Fault::ClockCollector => "collector's clock set",
        }
    }

    fn part(self) -> Part {
        match self {
            Fault::Reset | Fault::Finish | Fault::HalfToCollector | Fault::HalfToProbe | Fault::Late => {
                Part::Connections
            }
            Fault::Delay | Fault::Throttle | Fault::Corrupt | Fault::Blackhole | Fault::Refuse => Part::Weather(self),
            Fault::KillProbe | Fault::RestartProbe | Fault::StopProbe => Part::Probe,
            Fault::KillCollector | Fault::RestartCollector | Fault::StopCollector => Part::Collector,
            Fault::FillCollector | Fault::FillSpool => Part::Disk(self),
            Fault::ClockProbe | Fault::ClockCollector => Part::Clock(self),
        }
    }

    /// Whether two faults may come in one schedule. A probe that is killed keeps what is on its disk: not while the disk takes
    /// nothing. And what a stopped probe has not read yet has no time at which it must be safe.
    fn goes_with(self, other: Fault) -> bool {
        let both = [self, other];
        !(both.contains(&Fault::KillProbe) && (both.contains(&Fault::FillSpool) || both.contains(&Fault::StopProbe)))
    }
}

/// A fault with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What goes wrong.
    pub fault: Fault,
    /// When it begins.
    pub at: Duration,
    /// When it is healed, after that.
    pub lasts: Duration,
    /// How bad it is: a part of 1000.
    pub amount: u32,
}

impl Event {
    /// When it is healed.
    pub fn until(&self) -> Duration {
        self.at + self.lasts
    }

    /// What the amount means for a delay.
    pub fn delay(&self) -> Duration {
        Duration::from_millis(20 + u64::from(self.amount) / 2)
    }

    /// What it means for a narrow network, octets a second.
    pub fn octets_per_second(&self) -> u32 {
        20_000 + 200 * self.amount
    }

    /// What it means where octets are changed: one of so many.
    pub fn corrupt_one_in(&self) -> u32 {
        2000 + 100 * self.amount
    }

    /// What it means for a clock, seconds: up to half an hour forward or back.
    pub fn clock_s(&self) -> i64 {
        4 * (i64::from(self.amount) - 500)
    }

    fn overlaps(&self, other: &Event) -> bool {
        self.fault.part() == other.fault.part() && self.at <= other.until() && other.at <= self.until()
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}-{:.2} s {}", self.at.as_secs_f32(), self.until().as_secs_f32(), self.fault.name())?;
        match self.fault {
            Fault::Delay => write!(f, " {} ms", self.delay().as_millis()),
            Fault::Throttle => write!(f, " {} KB/s", self.octets_per_second() / 1000),
            Fault::Corrupt => write!(f, " 1 in {}", self.corrupt_one_in()),
            Fault::ClockProbe | Fault::ClockCollector => write!(f, " {:+} s", self.clock_s()),
            _ => Ok(()),
        }
    }
}

/// Everything that goes wrong in one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// What it was made from.
    pub seed: u64,
    /// The faults in the order of their beginning.
    pub events: Vec<Event>,
    /// Conversations a second.
    pub rate: u32,
    /// The probe has a spool.
    pub spool: bool,
    /// The probe is ended by SIGTERM, else by the end of its input.
    pub terminate: bool,
}

/// When faults begin: the first flows end after their idle timeout, and before there is nothing to lose.
const BEGIN_MS: std::ops::Range<u64> = 700..4000;
/// Faults in one schedule at most.
const EVENTS_MAX: usize = 5;

impl Schedule {
    /// The schedule of a seed. Consecutive seeds have every fault.
    pub fn of(seed: u64) -> Schedule {
        let mut rng = Rng::with_seed(seed);
        let mut events: Vec<Event> = Vec::new();
        for number in 0..rng.usize(1..=EVENTS_MAX) {
            let fault = match number {
                0 => Fault::ALL[(seed % Fault::ALL.len() as u64) as usize],
                _ => Fault::ALL[rng.usize(..Fault::ALL.len())],
            };
            let (at_ms, lasts_ms, amount) = (rng.u64(BEGIN_MS), rng.u64(100..1500), rng.u32(..1000));
            // A disk must be full for long enough that something is to be written to it.
            let factor = if matches!(fault.part(), Part::Disk(_)) { 3 } else { 1 };
            let (at, lasts) = (Duration::from_millis(at_ms), Duration::from_millis(factor * lasts_ms));
            let event = Event { fault, at, lasts, amount };
            if events.iter().all(|other| fault.goes_with(other.fault) && !event.overlaps(other)) {
                events.push(event);
            }
        }
        events.sort_by_key(|event| event.at);
        let has = |fault| events.iter().any(|event: &Event| event.fault == fault);
        // Without a spool a probe that dies takes what it holds with it.
        let spool = has(Fault::KillProbe) || has(Fault::FillSpool) || rng.u32(..4) > 0;
        Schedule { seed, rate: rng.u32(300..3000), spool, terminate: rng.bool(), events }
    }

    /// When the last fault is healed.
    pub fn healed(&self) -> Duration {
        self.events.iter().map(Event::until).max().unwrap_or_default()
    }

    /// Whether it has this fault.
    pub fn has(&self, fault: Fault) -> bool {
        self.events.iter().any(|event| event.fault == fault)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spool = if self.spool { "spool" } else { "no spool" };
        write!(f, "seed {}: {}/s, {spool}", self.seed, self.rate)?;
        self.events.iter().try_for_each(|event| write!(f, "; {event}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_schedule_and_consecutive_ones_every_fault() {
        let first = Fault::ALL.len() as u64 * 7;
        for (seed, fault) in (first..).zip(Fault::ALL) {
            assert_eq!(Schedule::of(seed), Schedule::of(seed));
            assert!(Schedule::of(seed).has(fault), "{}", Schedule::of(seed));
        }
    }

    #[test]
    fn schedules_are_possible() {
        for schedule in (0..5000).map(Schedule::of) {
            let kills = schedule.has(Fault::KillProbe);
            assert!(!(kills && (schedule.has(Fault::FillSpool) || schedule.has(Fault::StopProbe))), "{schedule}");
            assert!(!kills || schedule.spool, "{schedule}");
            for (index, event) in schedule.events.iter().enumerate() {
                assert!(!schedule.events[..index].iter().any(|other| event.overlaps(other)), "{schedule}");
            }
        }
    }
}
