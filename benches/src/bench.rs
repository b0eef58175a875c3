//! `nagare-bench`: measures the probe with frames in memory, from a capture file and across a veth pair, beside its peers.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand, ValueEnum};
use nagare_benches::lab::{Lab, TAP};
use nagare_benches::memory::{LINE_RATE, Load, Metered, baseline, frames, memory_limit, meter, replay};
use nagare_benches::peers::{Kind, Probe};
use nagare_benches::plot::{Bar, bars};
use nagare_benches::wire::{Found, Mix, Trial};
use nagare_benches::{export, file, outage, rings, wire};
use nagare_service::units::grouped;
use serde_json::{Value, json};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(
    name = "nagare-bench",
    version,
    about = "Measures the probe: with frames in memory (a ceiling without a NIC), from a capture file, and across a veth pair \
with a load made within the kernel; beside softflowd, nfpcapd, pmacctd and ipfixprobe where they are installed"
)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    /// Directory for bench.json and the pictures
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["memory", "file", "wire"])]
    only: Vec<Section>,
    /// Core that meters frames in memory; its neighbour takes the records
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// A capture file of your own, replayed from memory in the section memory
    #[arg(long, value_name = "FILE")]
    pcap: Option<String>,
    /// So many copies of its packets, each with other addresses
    #[arg(long, value_name = "N", default_value_t = 100)]
    copies: u32,
    /// The program of ipfixprobe, if it is to be beside
    #[arg(long, value_name = "PROGRAM")]
    ipfixprobe: Option<PathBuf>,
    /// Shorter, fewer rows, one run each: about three minutes
    #[arg(long)]
    quick: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Take frames from AF_XDP rings and give them back until SIGTERM; prints their number
    Rings {
        /// The interface
        #[arg(long)]
        interface: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Frames in memory through the probe's worker
    Memory,
    /// A capture file in the page cache
    File,
    /// A veth pair; needs root
    Wire,
    /// Flow records from one exporter thread to a sink that discards
    Export,
    /// A collector that is killed and comes back, at 100,000 new flows a second
    Outage,
}

fn main() -> ExitCode {
    let command = CommandLine::parse();
    let outcome = match &command.command {
        Some(Command::Rings { interface }) => rings::run(interface),
        None => measure(&command),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nagare-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(command: &CommandLine) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(&command.out)?;
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, name)| name);
    let mut all = json!({ "cpu": model, "cores": std::thread::available_parallelism()?.get(), "quick": command.quick });
    if command.only.contains(&Section::Memory) {
        // On a thread of its own: it is bound to a core, and what is started from here must not be.
        let measured = std::thread::scope(|scope| scope.spawn(|| in_memory(command).map_err(|e| e.to_string())).join());
        all["memory"] = measured.map_err(|_| "the measurement panicked")??;
    }
    if command.only.contains(&Section::File) {
        all["file"] = from_file(command)?;
    }
    if command.only.contains(&Section::Wire) {
        all["wire"] = across_a_veth(command)?;
    }
    if command.only.contains(&Section::Export) {
        all["export"] = to_a_sink(command)?;
    }
    if command.only.contains(&Section::Outage) {
        all["outage"] = without_a_collector(command)?;
    }
    std::fs::write(command.out.join("bench.json"), format!("{all:#}\n"))?;
    println!("\nwritten: {}", command.out.join("bench.json and pictures").display());
    Ok(())
}

/// A row of the table, with the least that it is to reach: million packets a second, and that of the memory's limit.
struct Row {
    name: &'static str,
    load: Load,
    target_mpps: f64,
    target_ratio: Option<f64>,
}

fn rows(quick: bool) -> Vec<Row> {
    let row = |name, (flows, new_flows, full), target_mpps: f64, target_ratio| {
        let packets = if new_flows > 0 { 2 * LINE_RATE } else { 60_000_000 };
        Row { name, load: Load { flows, new_flows, zipf: false, full, packets }, target_mpps, target_ratio }
    };
    let mut rows = vec![
        row("10,000 flows", (10_000, 0, false), 40.0, None),
        row("1,000,000 flows", (1_000_000, 0, false), 25.0, Some(0.33)),
        row("10,000,000 flows", (10_000_000, 0, false), 20.0, Some(0.28)),
        row("1,000,000 flows, as many new a second", (1_000_000, 1_000_000, false), 14.88, Some(0.20)),
        row("1,000,000 flows, all measured", (1_000_000, 0, true), 14.88, Some(0.20)),
    ];
    let zipf = Load { flows: 1_000_000, new_flows: 0, zipf: true, full: false, packets: 60_000_000 };
    rows.push(Row { name: "1,000,000 flows by Zipf's law", load: zipf, target_mpps: 25.0, target_ratio: None });
    if quick {
        rows.retain(|row| row.load.flows <= 1_000_000);
    }
    rows
}

fn in_memory(command: &CommandLine) -> Result<Value, Box<dyn Error>> {
    let runs = if command.quick { 1 } else { 3 };
    core_affinity::set_for_current(core_affinity::CoreId { id: command.core });
    let limits = [64usize, 256].map(|mib| memory_limit(mib << 20, Duration::from_secs(1)));
    println!("memory's limit: {:.1} million lines a second of 64 MiB, {:.1} of 256 MiB\n", limits[0], limits[1]);
    println!(
        "{:<38} {:>7} {:>7} {:>7} {:>8} {:>9} {:>11}",
        "frames in memory, one core", "Mpps", "target", "of limit", "target", "hash map", "octets/flow"
    );
    let (mut found, mut picture) = (Vec::new(), Vec::new());
    for row in rows(command.quick) {
        eprintln!("{} ...", row.name);
        let frames = frames(&row.load);
        let mut measured: Vec<Metered> = (0..runs).map(|_| meter(&row.load, &frames, command.core)).collect();
        measured.sort_by(|a, b| a.mpps.total_cmp(&b.mpps));
        let (median, plain) = (measured[runs / 2], baseline(&row.load, &frames));
        let ratio = row.target_ratio.map_or(String::from("-"), |ratio| format!("{ratio:.2}"));
        println!(
            "{:<38} {:>7.1} {:>7.2} {:>8.2} {ratio:>8} {plain:>9.1} {:>11.0}",
            row.name,
            median.mpps,
            row.target_mpps,
            median.mpps / limits[0],
            median.bytes_per_flow
        );
        found.push(json!({
            "name": row.name, "flows": row.load.flows, "new_flows_per_second": row.load.new_flows, "full": row.load.full,
            "packets": row.load.packets, "mpps": median.mpps, "mpps_runs": measured.iter().map(|run| run.mpps).collect::<Vec<_>>(),
            "of_memory_limit": median.mpps / limits[0], "target_mpps": row.target_mpps, "target_of_limit": row.target_ratio,
            "records": median.records, "evicted": median.evicted, "octets_per_flow": median.bytes_per_flow,
            "hash_map_mpps": plain,
        }));
        picture.push(Bar { name: row.name.into(), value: median.mpps, target: Some(row.target_mpps) });
    }
    if let Some(pcap) = &command.pcap {
        found.push(replayed(command, pcap)?);
    }
    let title = "64-byte frames in memory, one core (red: target)";
    std::fs::write(command.out.join("memory.svg"), bars(title, "Mpps", &picture))?;
    Ok(json!({ "memory_limit_mlines": { "64MiB": limits[0], "256MiB": limits[1] }, "rows": found }))
}

/// A capture of the user's, over and over.
fn replayed(command: &CommandLine, pcap: &str) -> Result<Value, Box<dyn Error>> {
    let frames = replay(pcap, command.copies.max(1))?;
    if frames.is_empty() {
        return Err(format!("{pcap} holds no Ethernet frames").into());
    }
    let load = Load { flows: frames.len() as u64, new_flows: 0, zipf: false, full: false, packets: 20_000_000 };
    let (metered, plain) = (meter(&load, &frames, command.core), baseline(&load, &frames));
    let name = format!("{} copies of {pcap}", command.copies.max(1));
    println!(
        "{name:<38} {:>7.1} {:>7} {:>8} {:>8} {plain:>9.1} {:>11.0}",
        metered.mpps, "-", "-", "-", metered.bytes_per_flow
    );
    Ok(
        json!({ "name": name, "frames": frames.len(), "mpps": metered.mpps, "records": metered.records, "hash_map_mpps": plain }),
    )
}

fn from_file(command: &CommandLine) -> Result<Value, Box<dyn Error>> {
    let (packets, runs) = if command.quick { (4_000_000, 1) } else { (12_000_000, 3) };
    let scratch = scratch(&command.out)?;
    let capture = scratch.join("flows.pcap");
    eprintln!("writing {packets} frames of {} flows ...", file::FLOWS);
    file::write(&capture, packets)?;
    // pmacctd does not end by itself after a file.
    let kinds = [Kind::Nagare, Kind::Softflowd, Kind::Nfpcapd, Kind::Ipfixprobe];
    println!("\n{:<38} {:>7} {:>9} {:>14}", "a pcap file in the page cache", "Mpps", "seconds", "Nagare is so");
    println!("{:<38} {:>7} {:>9} {:>14}", format!("{packets} frames, {} flows", file::FLOWS), "", "", "many times it");
    let (mut found, mut picture, mut ours) = (Vec::new(), Vec::new(), 0.0);
    for probe in Probe::installed(&kinds, command.ipfixprobe.as_deref()) {
        let metered = file::meter(&probe, &capture, packets, runs, &scratch)?;
        if probe.kind == Kind::Nagare {
            ours = metered.mpps;
        }
        let seconds = packets as f64 / metered.mpps / 1e6;
        println!("{:<38} {:>7.2} {seconds:>9.2} {:>14.1}", probe.kind.name(), metered.mpps, ours / metered.mpps);
        picture.push(Bar { name: probe.kind.name().into(), value: metered.mpps, target: None });
        found.push(json!({
            "name": probe.kind.name(), "mpps": metered.mpps, "seconds": metered.seconds, "nagare_times": ours / metered.mpps,
        }));
    }
    std::fs::remove_file(capture)?;
    std::fs::write(
        command.out.join("file.svg"),
        bars("A pcap file in the page cache, 100,000 flows", "Mpps", &picture),
    )?;
    Ok(json!({ "packets": packets, "flows": file::FLOWS, "rows": found }))
}

fn across_a_veth(command: &CommandLine) -> Result<Value, Box<dyn Error>> {
    let some = vec![Kind::Rings, Kind::Nagare, Kind::NagareDeep, Kind::NagarePacket, Kind::Softflowd, Kind::Ipfixprobe];
    let mut all_kinds = some.clone();
    all_kinds.extend([Kind::NagareFull, Kind::Nfpcapd, Kind::Pmacctd]);
    let (rows, steps, lasting) = match command.quick {
        true => (vec![(Mix::Smallest, some)], 2, Duration::from_secs(1)),
        false => (
            vec![(Mix::Smallest, all_kinds), (Mix::Imix, some.clone()), (Mix::Longest, some)],
            5,
            Duration::from_secs(2),
        ),
    };
    let scratch = scratch(&command.out)?;
    let lab = Lab::new(1)?;
    println!(
        "\n{:<20} {:<17} {:>8} {:>8} {:>7} {:>9} {:>8} {:>9} {:>7}",
        "across a veth", "", "offered", "metered", "loss", "lossless", "Gbit/s", "CPU s/M", "MiB"
    );
    let mut all: Vec<Found> = Vec::new();
    for (mix, kinds) in rows {
        for probe in Probe::installed(&kinds, command.ipfixprobe.as_deref()) {
            let found = wire::find(&lab, &probe, mix, steps, lasting, &scratch);
            show(&found);
            all.push(found);
        }
        compare(&all, mix);
    }
    let nagare = Probe::installed(&[Kind::Nagare], None).remove(0);
    let (books, made) = wire::overload(&lab, &nagare, lasting, &scratch);
    println!("\noverload, loads on both cores: {made} packets made");
    for (name, value) in wire::terms(&books).as_object().into_iter().flatten() {
        println!("    {name:<24} {value:>12}");
    }
    println!("    books balanced: {}", books["balanced"]);
    draw(command, &all)?;
    Ok(json!({
        "interface": TAP, "flows": wire::FLOWS, "seconds": lasting.as_secs(), "rows": all.iter().map(row).collect::<Vec<_>>(),
        "overload": { "made": made, "terms": wire::terms(&books), "balanced": books["balanced"] },
    }))
}

fn show(found: &Found) {
    let trial = &found.flat_out;
    let lossless = found.lossless.map_or(0.0, |trial| trial.mpps());
    println!(
        "{:<20} {:<17} {:>8.2} {:>8.2} {:>6.1}% {lossless:>9.2} {:>8.2} {:>9.2} {:>7}",
        found.kind.name(),
        found.mix.name(),
        trial.offered(),
        trial.mpps(),
        100.0 * (1.0 - trial.done.packets as f64 / trial.made as f64),
        lossless * found.mix.gbps_of_mpps(),
        trial.done.cpu_s / (trial.done.packets.max(1) as f64 / 1e6),
        trial.done.memory >> 20
    );
}

/// The two ratios that count, of one run.
fn compare(all: &[Found], mix: Mix) {
    let of = |kind: Kind| all.iter().find(|found| found.mix == mix && found.kind == kind);
    let lossless = |found: &Found| found.lossless.map_or(0.0, |trial| trial.mpps());
    let (Some(rings), Some(nagare)) = (of(Kind::Rings), of(Kind::Nagare)) else { return };
    let best = |peers: bool| {
        let those =
            all.iter().filter(|found| found.mix == mix && found.kind.is_peer() == peers && found.kind != Kind::Rings);
        those.map(lossless).fold(0.0, f64::max)
    };
    print!("    Nagare meters {:.2} of what the rings alone take", nagare.flat_out.mpps() / rings.flat_out.mpps());
    match best(true) > 0.0 {
        true => println!("; its best without loss is {:.1} times the best peer's", best(false) / best(true)),
        false => println!("; no peer was without loss at any rate tried"),
    }
}

fn row(found: &Found) -> Value {
    let of = |trial: &Trial| {
        json!({
            "made": trial.made, "metered": trial.done.packets, "seconds": trial.seconds, "offered_mpps": trial.offered(),
            "metered_mpps": trial.mpps(), "cpu_seconds": trial.done.cpu_s, "memory_octets": trial.done.memory,
        })
    };
    json!({
        "name": found.kind.name(), "frames": found.mix.name(), "flat_out": of(&found.flat_out),
        "lossless": found.lossless.as_ref().map(of),
    })
}

fn draw(command: &CommandLine, all: &[Found]) -> std::io::Result<()> {
    let bar = |found: &Found| Bar {
        name: format!("{}, {}", found.kind.name(), found.mix.name()),
        value: found.lossless.map_or(0.0, |trial| trial.mpps()),
        target: None,
    };
    let title = "Highest rate without loss across a veth";
    std::fs::write(command.out.join("wire.svg"), bars(title, "Mpps", &all.iter().map(bar).collect::<Vec<_>>()))
}

fn to_a_sink(command: &CommandLine) -> Result<Value, Box<dyn Error>> {
    let (records, runs) = if command.quick { (3_000_000, 1) } else { (15_000_000, 3) };
    println!(
        "\n{:<38} {:>12} {:>9} {:>9} {:>9}",
        "flow records to a sink, one thread", "records/s", "target", "Mbit/s", "CPU s/M"
    );
    let mut of_runs = Vec::new();
    for _ in 0..runs {
        let scratch = tempfile::tempdir()?;
        of_runs.push(export::measure(records, scratch.path())?);
    }
    let (mut found, mut picture) = (Vec::new(), Vec::new());
    for index in 0..of_runs[0].len() {
        let mut rows: Vec<&export::Row> = of_runs.iter().map(|rows| &rows[index]).collect();
        rows.sort_by(|a, b| a.mrps().total_cmp(&b.mrps()));
        let median = rows[runs / 2];
        let target = (index + 1 == of_runs[0].len()).then_some(export::TARGET);
        let shown = target.map_or(String::from("-"), |target| grouped((target * 1e6) as u64));
        let rate = grouped((median.mrps() * 1e6) as u64);
        let (mbps, cpu) = (median.mbps(), median.cpu_s_per_million());
        println!("{:<38} {rate:>12} {shown:>9} {mbps:>9.0} {cpu:>9.3}", median.name);
        picture.push(Bar { name: median.name.into(), value: median.mrps(), target });
        found.push(json!({
            "name": median.name, "records": records, "records_per_second": median.mrps() * 1e6, "mbps": mbps,
            "cpu_seconds_per_million": cpu, "target_records_per_second": target.map(|target| target * 1e6),
        }));
    }
    let title = "Flow records from one exporter thread over the loopback (red: target)";
    std::fs::write(command.out.join("export.svg"), bars(title, "M/s", &picture))?;
    Ok(json!({ "rows": found }))
}

fn without_a_collector(command: &CommandLine) -> Result<Value, Box<dyn Error>> {
    let away = Duration::from_secs(if command.quick { 10 } else { 60 });
    let scratch = tempfile::tempdir_in(scratch(&command.out)?)?;
    let outage = outage::run(outage::RATE, away, scratch.path())?;
    std::fs::write(command.out.join("outage.svg"), outage.picture())?;
    println!("\na collector killed at {} flows a second, and started again", grouped(u64::from(outage::RATE)));
    for (name, value) in outage.table() {
        println!("    {name:<44} {value:>14}");
    }
    if !outage.verdict.is_good() {
        eprintln!("nagare-bench: not every flow is stored exactly once");
    }
    Ok(outage.to_json())
}

fn scratch(out: &Path) -> std::io::Result<PathBuf> {
    let scratch = std::path::absolute(out.join("scratch"))?;
    std::fs::create_dir_all(&scratch)?;
    Ok(scratch)
}
