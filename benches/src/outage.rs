//! A collector that is killed at full load and started again: what the probe keeps meanwhile, and how fast it delivers that.

#![forbid(unsafe_code)]

use crate::faults::check::{Stored, Verdict, judge};
use crate::faults::feed::Feed;
use crate::lab::{LISTENING, Metrics, Pki, Program, built, collector_arguments};
use crate::plot::{Panel, lines};
use nagare_service::units::grouped;
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// New flows a second.
pub const RATE: u32 = 100_000;
/// How long all is well before the outage, and after the recovery.
const CALM: Duration = Duration::from_secs(10);
/// A recovery that takes longer is given up.
const RECOVERY_MAX: Duration = Duration::from_secs(600);
const SAMPLE: Duration = Duration::from_secs(1);
const SITE: &str = "lab";

/// What the probe said at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Seconds since the feed began.
    at_s: f64,
    /// Octets in the spool.
    spool_octets: u64,
    /// How old the oldest Message is that is not acknowledged, milliseconds.
    lag_ms: u64,
    /// Flows that ended, and those of them that were delivered.
    ended: u64,
    delivered: u64,
}

impl Sample {
    fn waiting(&self) -> u64 {
        self.ended.saturating_sub(self.delivered)
    }
}

/// How it went.
pub struct Outage {
    rate: u32,
    samples: Vec<Sample>,
    /// When the collector was killed, when it was started again, and when the probe had caught up; seconds.
    killed_s: f64,
    back_s: f64,
    recovered_s: Option<f64>,
    /// Flows sent against flows stored.
    pub verdict: Verdict,
}

/// Kills the collector for so long. Everything is kept below `directory`.
///
/// # Errors
/// A program does not end, or its store cannot be read.
pub fn run(rate: u32, away: Duration, directory: &Path) -> Result<Outage, Box<dyn Error>> {
    let pki = Pki::new(directory, SITE);
    let collector = collector(&pki, directory, "0");
    let port = collector.wait_for(LISTENING);
    let (feed, mut samples) = (Feed::start(rate), Vec::new());
    let (mut probe, input) = Program::fed(probe_command(&pki, directory, port.trim()));
    feed.give(input);
    let watch = |samples: &mut Vec<Sample>, probe: &Program, until: &dyn Fn(&[Sample]) -> bool| {
        while !until(samples) {
            samples.extend(sample(&feed, probe));
            std::thread::sleep(SAMPLE);
        }
    };
    let lasting = |time: Duration| {
        let began = Instant::now();
        move |_: &[Sample]| began.elapsed() >= time
    };
    eprintln!("{} flows a second; the collector is killed after {} s ...", grouped(u64::from(rate)), CALM.as_secs());
    watch(&mut samples, &probe, &lasting(CALM));
    let usual = samples.iter().map(Sample::waiting).max().unwrap_or(0) + u64::from(rate);
    let killed_s = feed.elapsed().as_secs_f64();
    collector.signal("KILL");
    collector.wait();
    watch(&mut samples, &probe, &lasting(away));
    let back_s = feed.elapsed().as_secs_f64();
    let collector = self::collector(&pki, directory, port.trim());
    let (given_up, caught_up) = (lasting(RECOVERY_MAX), |samples: &[Sample]| {
        samples.last().is_some_and(|last| last.at_s > back_s && last.waiting() <= usual)
    });
    watch(&mut samples, &probe, &|samples| caught_up(samples) || given_up(samples));
    let recovered_s = caught_up(&samples).then(|| feed.elapsed().as_secs_f64());
    watch(&mut samples, &probe, &lasting(CALM));
    feed.end();
    let deadline = Instant::now() + RECOVERY_MAX;
    while probe.ended().is_none() {
        if Instant::now() > deadline {
            return Err(format!("the probe did not end:\n{}", probe.log()).into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let (_, log) = collector.stop();
    eprint!("{log}");
    let stored = Stored::read(&built("nagare-collector"), &directory.join("data"))?;
    let verdict = judge(&feed.finish(), &[], &stored);
    Ok(Outage { rate, samples, killed_s, back_s, recovered_s, verdict })
}

fn collector(pki: &Pki, directory: &Path, port: &str) -> Program {
    let mut command = Command::new(built("nagare-collector"));
    command.args(collector_arguments(pki, directory, port)).stdout(std::process::Stdio::null());
    Program::quiet(command)
}

fn probe_command(pki: &Pki, directory: &Path, port: &str) -> Command {
    let mut command = Command::new(built("nagare-probe"));
    command.args(["-i", "-", "--collector", &format!("tls://localhost:{port}"), "--reconnect", "1s"]);
    command.args(["--idle-timeout", "1s", "--drain-timeout", "10m", "--metrics", "127.0.0.1:0"]);
    command.arg("--spool").arg(directory.join("spool"));
    command.args(pki.probe(SITE)).stdout(std::process::Stdio::null());
    command
}

fn sample(feed: &Feed, probe: &Program) -> Option<Sample> {
    let metrics = Metrics::of_program(probe)?;
    Some(Sample {
        at_s: feed.elapsed().as_secs_f64(),
        spool_octets: metrics.figure("spool_octets"),
        lag_ms: metrics.figure("delivery_lag_ms"),
        ended: metrics.term("flows", "ended"),
        delivered: metrics.term("flows", "delivered"),
    })
}

impl Outage {
    /// Flows delivered a second, from one sample to the next.
    fn rates(&self) -> Vec<(f64, f64)> {
        let rate = |pair: &[Sample]| {
            let flows = pair[1].delivered.saturating_sub(pair[0].delivered) as f64;
            (pair[1].at_s, flows / (pair[1].at_s - pair[0].at_s))
        };
        self.samples.windows(2).map(rate).collect()
    }

    /// What waits for the collector, how old the oldest of it is, and what is delivered, over time.
    pub fn picture(&self) -> String {
        let panel =
            |name: &str, unit: &str, points: Vec<(f64, f64)>| Panel { name: name.into(), unit: unit.into(), points };
        let of = |value: fn(&Sample) -> f64| self.samples.iter().map(|sample| (sample.at_s, value(sample))).collect();
        let delivered = self.rates().into_iter().map(|(at_s, rate)| (at_s, rate / 1000.0)).collect();
        let panels = [
            panel("in the spool", "MiB", of(|sample| sample.spool_octets as f64 / f64::from(1 << 20))),
            panel("flows that wait for the collector", "M", of(|sample| sample.waiting() as f64 / 1e6)),
            panel("age of the oldest", "s", of(|sample| sample.lag_ms as f64 / 1000.0)),
            panel("flows delivered a second", "k/s", delivered),
        ];
        let title =
            format!("A collector killed at {} flows a second, and started again", grouped(u64::from(self.rate)));
        lines(&title, &panels, ("no collector", self.killed_s, self.back_s))
    }

    /// Names and values for people.
    pub fn table(&self) -> Vec<(&'static str, String)> {
        let most = |value: fn(&Sample) -> u64| self.samples.iter().map(value).max().unwrap_or(0);
        let fastest = self.rates().iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        let recovery = self.recovered_s.map(|at_s| format!("{:.0} s", at_s - self.back_s));
        let mebibytes = most(|sample| sample.spool_octets) as f64 / f64::from(1 << 20);
        vec![
            ("without a collector", format!("{:.0} s", self.back_s - self.killed_s)),
            ("flows that waited at most", grouped(most(Sample::waiting))),
            ("in the spool at most", format!("{mebibytes:.0} MiB")),
            ("age of the oldest at most", format!("{:.1} s", most(|sample| sample.lag_ms) as f64 / 1000.0)),
            ("caught up, after the collector came back", recovery.unwrap_or("never".into())),
            ("delivered meanwhile, at most a second", grouped(fastest as u64)),
            ("flows sent", grouped(self.verdict.written)),
            ("flows stored", grouped(self.verdict.stored)),
            ("lost", grouped(self.verdict.lost.len() as u64)),
            ("doubled", grouped(self.verdict.doubled.len() as u64)),
        ]
    }

    /// Everything for programs.
    pub fn to_json(&self) -> Value {
        let sample = |sample: &Sample| {
            json!({
                "second": sample.at_s, "spool_octets": sample.spool_octets, "lag_ms": sample.lag_ms, "ended": sample.ended,
                "delivered": sample.delivered,
            })
        };
        json!({
            "flows_per_second": self.rate, "killed_s": self.killed_s, "back_s": self.back_s, "recovered_s": self.recovered_s,
            "sent": self.verdict.written, "stored": self.verdict.stored, "lost": self.verdict.lost.len(),
            "doubled": self.verdict.doubled.len(), "samples": self.samples.iter().map(sample).collect::<Vec<_>>(),
        })
    }
}
