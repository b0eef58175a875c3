//! `nagare-bench`: measures the probe's packet path with frames in memory, and prints what it found beside the memory's limit.
#![forbid(unsafe_code)]

use clap::Parser;
use nagare_benches::memory::{LINE_RATE, Load, Metered, baseline, frames, memory_limit, meter};
use nagare_benches::plot::{Bar, bars};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Parser)]
#[command(
    name = "nagare-bench",
    version,
    about = "Measures the probe's packet path: frames in memory through decode, hash, \
flow cache and expiry, records handed over. It is a ceiling without a NIC"
)]
struct CommandLine {
    /// Directory for bench.json and bench.svg
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Core that meters; its neighbour takes the records
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// One run of each row instead of the median of three
    #[arg(long)]
    quick: bool,
}

/// A row of the table, with the least that it is to reach: million packets a second, and that of the memory's limit.
struct Row {
    name: &'static str,
    load: Load,
    target_mpps: f64,
    target_ratio: Option<f64>,
}

fn rows() -> Vec<Row> {
    let row = |name, (flows, new_flows, full), target_mpps, target_ratio| {
        let packets = if new_flows > 0 { 2 * LINE_RATE } else { 60_000_000 };
        Row { name, load: Load { flows, new_flows, full, packets }, target_mpps, target_ratio }
    };
    vec![
        row("10,000 flows", (10_000, 0, false), 40.0, None),
        row("1,000,000 flows", (1_000_000, 0, false), 25.0, Some(0.33)),
        row("10,000,000 flows", (10_000_000, 0, false), 20.0, Some(0.28)),
        row("1,000,000 flows, as many new a second", (1_000_000, 1_000_000, false), 14.88, Some(0.20)),
        row("1,000,000 flows, all measured", (1_000_000, 0, true), 14.88, Some(0.20)),
    ]
}

fn main() -> std::io::Result<()> {
    let command = CommandLine::parse();
    std::fs::create_dir_all(&command.out)?;
    let runs = if command.quick { 1 } else { 3 };
    core_affinity::set_for_current(core_affinity::CoreId { id: command.core });
    let limits = [64usize, 256].map(|mib| memory_limit(mib << 20, Duration::from_secs(1)));
    println!("memory's limit: {:.1} million lines a second of 64 MiB, {:.1} of 256 MiB\n", limits[0], limits[1]);
    println!(
        "{:<38} {:>7} {:>7} {:>7} {:>8} {:>9} {:>11}",
        "64-byte frames, one core", "Mpps", "target", "of limit", "target", "hash map", "octets/flow"
    );
    let mut results = Vec::new();
    for row in rows() {
        eprintln!("{} ...", row.name);
        let frames = frames(&row.load);
        let mut measured: Vec<Metered> = (0..runs).map(|_| meter(&row.load, &frames, command.core)).collect();
        measured.sort_by(|a, b| a.mpps.total_cmp(&b.mpps));
        let median = measured[runs / 2];
        let plain = baseline(&row.load, &frames);
        print(&row, &median, limits[0], plain);
        results.push((row, measured, plain));
    }
    save(&command.out, limits, &results)
}

fn print(row: &Row, median: &Metered, limit: f64, plain: f64) {
    let target = row.target_ratio.map_or(String::from("-"), |ratio| format!("{ratio:.2}"));
    println!(
        "{:<38} {:>7.1} {:>7.2} {:>8.2} {target:>8} {plain:>9.1} {:>11.0}",
        row.name,
        median.mpps,
        row.target_mpps,
        median.mpps / limit,
        median.bytes_per_flow
    );
}

fn save(out: &Path, limits: [f64; 2], results: &[(Row, Vec<Metered>, f64)]) -> std::io::Result<()> {
    let of = |(row, runs, plain): &(Row, Vec<Metered>, f64)| {
        let median = runs[runs.len() / 2];
        json!({
            "name": row.name, "flows": row.load.flows, "new_flows_per_second": row.load.new_flows, "full": row.load.full,
            "packets": row.load.packets, "mpps": median.mpps, "mpps_runs": runs.iter().map(|run| run.mpps).collect::<Vec<_>>(),
            "of_memory_limit": median.mpps / limits[0], "target_mpps": row.target_mpps, "target_of_limit": row.target_ratio,
            "records": median.records, "evicted": median.evicted, "octets_per_flow": median.bytes_per_flow,
            "hash_map_mpps": plain,
        })
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, name)| name);
    let all = json!({
        "what": "64-byte frames in memory through the probe's worker, one core, no NIC",
        "cpu": model, "memory_limit_mlines": { "64MiB": limits[0], "256MiB": limits[1] },
        "rows": results.iter().map(of).collect::<Vec<_>>(),
    });
    std::fs::write(out.join("bench.json"), format!("{all:#}\n"))?;
    let bar = |(row, runs, _): &(Row, Vec<Metered>, f64)| Bar {
        name: row.name.into(),
        value: runs[runs.len() / 2].mpps,
        target: Some(row.target_mpps),
    };
    let title = "64-byte frames in memory, one core (red: target)";
    std::fs::write(out.join("bench.svg"), bars(title, "Mpps", &results.iter().map(bar).collect::<Vec<_>>()))?;
    println!("\nwritten: {}", out.join("bench.json and bench.svg").display());
    Ok(())
}
