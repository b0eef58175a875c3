//! A capture file in the page cache, metered by each probe in the same run.

use crate::memory::Load;
use crate::memory::frames;
use crate::peers::{Kind, Probe, Sink};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Flows in the file.
pub const FLOWS: u64 = 100_000;
/// Octets of a frame in the file: 64 on the wire, with the frame check sequence.
const FRAME: usize = 60;

/// A program that takes longer is given up.
const LONGEST: Duration = Duration::from_secs(120);

/// What a probe did with the file.
#[derive(Clone, Debug)]
pub struct Metered {
    /// Which.
    pub kind: Kind,
    /// Million packets a second, by the time that the whole program took; of three runs the median.
    pub mpps: f64,
    /// Seconds of each run.
    pub seconds: Vec<f64>,
}

/// Writes a pcap file of so many frames of [`FLOWS`] flows, five million a second by its clock.
///
/// # Errors
/// The file's.
pub fn write(path: &Path, packets: u64) -> io::Result<()> {
    let made = frames(&Load { flows: FLOWS, new_flows: 0, zipf: false, full: false, packets: 0 });
    let mut out = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1] {
        out.write_all(&word.to_le_bytes())?;
    }
    for (number, frame) in (0..packets).zip(made.iter().cycle()) {
        let us = number / 5;
        let header = [1_700_000_000 + us / 1_000_000, us % 1_000_000, FRAME as u64, FRAME as u64];
        for word in header {
            out.write_all(&(word as u32).to_le_bytes())?;
        }
        out.write_all(&frame[..FRAME])?;
    }
    out.flush()
}

/// Runs a probe over the file `runs` times.
///
/// # Errors
/// It cannot be started.
pub fn meter(probe: &Probe, file: &Path, packets: u64, runs: usize, scratch: &Path) -> io::Result<Metered> {
    let mut seconds = Vec::new();
    for _ in 0..runs {
        let sink = Sink::new();
        let mut command = probe.over_file(file, sink.port, scratch);
        let began = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if began.elapsed() > LONGEST => {
                    child.kill()?;
                    break child.wait()?;
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        seconds.push(began.elapsed().as_secs_f64());
        if !status.success() && !probe.kind.is_peer() {
            return Err(io::Error::other(format!("{} ended with {status}", probe.kind.name())));
        }
    }
    let mut sorted = seconds.clone();
    sorted.sort_by(f64::total_cmp);
    Ok(Metered { kind: probe.kind, mpps: packets as f64 / sorted[runs / 2] / 1e6, seconds })
}
