//! `nagare-faults`: runs probe and collector through seeded schedules of faults, and checks that each flow is stored once.
#![forbid(unsafe_code)]

use clap::Parser;
use nagare_benches::faults::{Fault, Ground, run_all, table, to_json, told};
use nagare_benches::lab::built;
use nagare_service::run::stop_on_signals;
use std::error::Error;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Parser)]
#[command(
    name = "nagare-faults",
    version,
    about = "Runs probe and collector over a bad network, kills them, fills their disks, sets their clocks, and checks that every \
flow is stored exactly once",
    after_help = "A schedule comes from its seed: --seeds 17..18 runs the one of seed 17 again. What fails is kept with the logs, the \
books and the store of both programs."
)]
struct CommandLine {
    /// Seeds of the schedules, the last one left out
    #[arg(long, value_name = "FROM..TO", value_parser = seeds, conflicts_with_all = ["schedules", "seed", "minutes"])]
    seeds: Option<Range<u64>>,
    /// So many schedules
    #[arg(long, value_name = "N", default_value_t = 40, conflicts_with = "minutes")]
    schedules: u64,
    /// Seed of the first schedule [default: by the clock]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Schedules for so long
    #[arg(long, value_name = "M")]
    minutes: Option<u64>,
    /// Schedules that run at the same time; they mostly wait
    #[arg(long, value_name = "N", default_value_t = 6)]
    at_once: usize,
    /// The probe [default: beside this program]
    #[arg(long, value_name = "PROGRAM")]
    probe: Option<PathBuf>,
    /// The collector [default: beside this program]
    #[arg(long, value_name = "PROGRAM")]
    collector: Option<PathBuf>,
    /// Where failures are kept
    #[arg(long, value_name = "DIR", default_value = "target/faults")]
    keep: PathBuf,
    /// Write the fault table here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let number = |part: &str| part.parse::<u64>().map_err(|error| format!("{part}: {error}"));
    let (from, to) = text.split_once("..").ok_or("no range like 0..40")?;
    Ok(number(from)?..number(to)?)
}

fn main() -> ExitCode {
    match run(&CommandLine::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nagare-faults: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether all went well.
fn run(command: &CommandLine) -> Result<bool, Box<dyn Error>> {
    let stop = stop_on_signals()?;
    let scratch = tempfile::Builder::new().prefix("nagare-faults-").tempdir()?;
    let program = |named: &Option<PathBuf>, name| named.clone().unwrap_or_else(|| built(name));
    let (probe, collector) = (program(&command.probe, "nagare-probe"), program(&command.collector, "nagare-collector"));
    let ground = Ground::new(&probe, &collector, scratch.path())?;
    for fault in Fault::ALL {
        ground.refusal(fault).iter().for_each(|why| println!("skipped: {}: {why}", fault.name()));
    }
    let first = command.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let began = Instant::now();
    let lasting = command.minutes.map(|minutes| Duration::from_secs(60 * minutes));
    let seeds = match (&command.seeds, lasting) {
        (Some(seeds), _) => seeds.clone(),
        (None, Some(_)) => first..u64::MAX,
        (None, None) => first..first + command.schedules,
    };
    println!("the first seed is {}", seeds.start);
    let seeds = seeds.take_while(|_| lasting.is_none_or(|lasting| began.elapsed() < lasting));
    let outcomes =
        run_all(&ground, seeds, command.at_once, &command.keep, &stop, |outcome| println!("{}", told(outcome)));
    println!("\n{}", table(&outcomes));
    let failed = outcomes.iter().filter(|outcome| !outcome.is_good()).count();
    println!("{failed} of {} schedules failed, in {:.0} s", outcomes.len(), began.elapsed().as_secs_f32());
    if let Some(file) = &command.json {
        let text = format!("{:#}\n", to_json(&outcomes));
        std::fs::write(file, text).map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
    }
    Ok(failed == 0)
}
