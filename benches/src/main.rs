//! `nagare-traffic`: sends made conversations or a capture file's frames out of an interface, or writes them to a file.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use nagare_benches::sender::Sender;
use nagare_benches::traffic::{office, pcap, smallest_frame};
use nagare_ebpf::Generator;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Parser)]
#[command(name = "nagare-traffic", version, about = "Makes traffic whose flows are known, for tests and benchmarks")]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send an office's conversations
    Send {
        /// Interface to send out of
        #[arg(short, long)]
        interface: String,
        /// Conversations
        #[arg(long, default_value_t = 2000)]
        conversations: usize,
        /// Time over which they are sent
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// The same seed gives the same traffic
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Write an office's conversations to a capture file, with times that end now
    Write {
        /// The file
        file: PathBuf,
        /// Conversations
        #[arg(long, default_value_t = 2000)]
        conversations: usize,
        /// Time over which they are spread
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// The same seed gives the same traffic
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Send 64-byte frames of many flows from within the kernel, as fast as one core can
    Load {
        /// Interface to send out of; the peer of a veth needs native XDP, or GRO on
        #[arg(short, long)]
        interface: String,
        /// Flows
        #[arg(long, default_value_t = 10_000)]
        flows: u32,
        /// For how long
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Packets a second; without it as many as can be made
        #[arg(long)]
        rate: Option<f64>,
    },
}

fn main() -> ExitCode {
    match run(CommandLine::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nagare-traffic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Send { interface, conversations, seconds, seed } => {
            let traffic = office(seed, conversations);
            let sent = Sender::open(&interface)?.send_all(&traffic.frames, Duration::from_secs(seconds))?;
            let (packets, octets, flows) = (traffic.packets(), traffic.octets(), traffic.flows.len());
            println!("sent {} frames: {packets} packets of IP, {octets} octets, {flows} conversations", sent.frames);
        }
        Command::Write { file, conversations, seconds, seed } => {
            let traffic = office(seed, conversations);
            let span_ns = seconds * 1_000_000_000;
            let now_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
            let bytes = pcap(&traffic.frames, now_ns - span_ns, span_ns / traffic.frames.len().max(1) as u64);
            std::fs::write(&file, bytes).map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
            println!("wrote {} frames of {} conversations", traffic.frames.len(), traffic.flows.len());
        }
        Command::Load { interface, flows, seconds, rate } => {
            load(&interface, flows, Duration::from_secs(seconds), rate)?;
        }
    }
    Ok(())
}

fn load(interface: &str, flows: u32, lasting: Duration, rate: Option<f64>) -> Result<(), Box<dyn Error>> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let frame = smallest_frame();
    let mut generator = Generator::with_lengths(&frame, [frame.len() as u16; 12], flows, index, rate)?;
    let burst = rate.map_or(1 << 18, |rate| (rate / 4.0) as u64).max(1000);
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < lasting {
        sent += generator.run(burst)?;
    }
    let rate = sent as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("{{\"sent\":{sent},\"seconds\":{:.3},\"mpps\":{rate:.3}}}", start.elapsed().as_secs_f64());
    Ok(())
}
