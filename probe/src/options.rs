//! What the operator asked for: the command line over the TOML file, made once into what the probe uses.

use crate::cache::CacheLimits;
use crate::capture::CaptureOptions;
use crate::capture::interfaces::Mode;
use crate::capture::xdp::SNAPLEN_MAX;
use crate::exporter::output::Format;
use crate::select::{Rate, Selection};
use nagare_service::endpoint::{Endpoint, Scheme};
use nagare_service::options::{OptionsError, layered};
use nagare_service::tls::{ClientTls, Policy, Versions};
use nagare_service::units::{Size, Span};
use nagare_wire::ipfix::export::{Sampling, SamplingOf, limit_min};
use nagare_wire::ipfix::field::FlowTemplate;
use nagare_wire::packet::Tunnels;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  Meter a mirror port, export over TLS with a client certificate:
    nagare-probe -i eth1 --collector tls://collector.example:2055 --tls-ca ca.pem --tls-cert tokyo.pem --tls-priv-key tokyo-key.pem
  Meter a capture file:
    nagare-probe -i capture.pcap --collector tls://collector.example:2055
  Lose nothing while the collector is away or the probe is killed, and have a second collector:
    nagare-probe -i eth1 --collector tls://one.example --collector tls://two.example --spool /var/lib/nagare-probe/spool
  Print flows:
    nagare-probe -i capture.pcap.zst --dump csv
    tcpdump -w - -i eth1 | nagare-probe -i - --dump json

A dedicated capture port (SPAN or tap) is captured from by XDP, which takes its frames away from the host. An interface that the host
uses is metered in both directions and keeps working (--mode says which, and so does the log).
Every long option is also a key of the TOML file of --config (without its dashes); the command line wins.
RUST_LOG=debug makes the log say more.";

/// The command line of `nagare-probe`.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "nagare-probe", version, args_conflicts_with_subcommands = true, about = "Meters the traffic of an interface or a capture file and exports its flows as IPFIX over TLS", after_help = EXAMPLES)]
pub struct CommandLine {
    /// TOML file with any of these options
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub options: Options,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Option<Command>,
}

/// What `nagare-probe` does beside metering.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Look after the spool of a probe that does not run: --spool DIR, or the --config of the probe
    #[command(subcommand)]
    Spool(SpoolCommand),
}

/// `nagare-probe spool …`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum SpoolCommand {
    /// List the segments: when they were begun, Messages, flows, octets
    List(SpoolOf),
    /// Read every segment and compare its Messages with their checksums; fails where any is damaged or torn
    Verify(SpoolOf),
    /// Send what waits to its collector (--collector and --tls-… as for metering), and end when it is acknowledged
    Replay(Box<SpoolReplay>),
    /// Remove every segment: what waits in them is lost
    Drop(SpoolDrop),
}

/// Which spool.
#[derive(Debug, Clone, clap::Args)]
pub struct SpoolOf {
    /// The directory of the spool
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    pub spool: Option<PathBuf>,
    /// The probe's TOML file, which names the spool
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Which spool, and where to.
#[derive(Debug, Clone, clap::Args)]
#[allow(missing_docs)]
pub struct SpoolReplay {
    /// TOML file with any of these options
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub options: Options,
}

/// Which spool, and that it is meant.
#[derive(Debug, Clone, clap::Args)]
#[allow(missing_docs)]
pub struct SpoolDrop {
    #[command(flatten)]
    pub of: SpoolOf,
    /// Without this nothing is removed
    #[arg(long)]
    pub yes: bool,
}

impl SpoolOf {
    /// The directory.
    ///
    /// # Errors
    /// The file of `--config` cannot be used, or names no spool.
    pub fn dir(&self) -> Result<PathBuf, PlanError> {
        let own = Options { spool: self.spool.clone(), ..Options::default() };
        let none = || PlanError("--spool DIR is missing, and --config names none".into());
        layered(own, self.config.as_deref())?.spool.ok_or_else(none)
    }
}

/// The options, as typed or as they stand in the TOML file.
#[derive(Debug, Default, Clone, clap::Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs)] // The lines below are the help that users read.
pub struct Options {
    /// Interface to capture on (several: -i eth1 -i eth2), or capture file (pcap, pcapng, also .gz .zst .bz2), or - for standard input
    #[arg(short, long, value_name = "IFACE|FILE|-")]
    #[serde(deserialize_with = "one_or_more")]
    pub interface: Vec<String>,
    /// Collector to export to: tls://HOST[:PORT], tcp://… or udp://… (default ports 4740, 4739); several as --export says
    #[arg(short = 'n', long, value_name = "URL")]
    #[serde(deserialize_with = "one_or_more")]
    pub collector: Vec<Endpoint>,
    /// What several collectors are for: failover (the first that answers), balance (by flow), replicate (each gets all) [default: failover]
    #[arg(long, value_name = "HOW")]
    pub export: Option<ExportChoice>,
    /// Print flows to standard output instead
    #[arg(long, value_name = "FORMAT")]
    pub dump: Option<Format>,
    /// Write flows to an IPFIX file (RFC 5655) instead
    #[arg(long, value_name = "FILE")]
    pub export_file: Option<PathBuf>,

    /// Trust only the CAs (or the collector's own certificate) in this PEM file, not the system's
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate chain (PEM) to present to the collector
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of the client certificate
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    pub tls_priv_key: Option<PathBuf>,
    /// Refuse a collector whose certificate these revocation lists (PEM) name; may be given many times
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    pub tls_crl: Vec<PathBuf>,
    /// TLS versions to speak [default: 1.2,1.3]
    #[arg(long, value_name = "VERSIONS", help_heading = "TLS")]
    pub tls_versions: Option<Versions>,
    /// Cipher suites to offer, or help to list them [default: all that are listed]
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "TLS")]
    pub tls_ciphers: Vec<String>,
    /// Do not verify the collector's certificate (warns at every connect)
    #[arg(long, help_heading = "TLS")]
    pub tls_insecure: bool,

    /// Metering workers, one a core [default: one for each core of --cores, else 1]
    #[arg(long, value_name = "N", help_heading = "Capture")]
    pub workers: Option<usize>,
    /// Cores to pin the workers to, like 2,3 [default: the last ones]
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Capture")]
    pub cores: Vec<usize>,
    /// How interfaces are captured from [default: auto]
    #[arg(long, value_name = "MODE", help_heading = "Capture")]
    pub mode: Option<Mode>,
    /// Capture as mirror even where the host uses the interface: its frames are consumed, the host is cut off
    #[arg(long, help_heading = "Capture")]
    pub force: bool,
    /// Octets of each frame that are captured (host: 192 at most); lengths stay those on the wire [default: 256]
    #[arg(short = 's', long, value_name = "OCTETS", help_heading = "Capture")]
    pub snaplen: Option<u32>,
    /// Let a worker without frames drive the interface's queue itself (mirror): less delay and fewer interrupts, more CPU
    #[arg(long, help_heading = "Capture")]
    pub busy_poll: bool,
    /// Frames that each ring holds, a power of two [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Capture")]
    pub ring_frames: Option<u32>,

    /// Meter only packets that pass, like 'tcp port 443 and not net 10.0.0.0/8' (host, net, port, portrange, proto, vlan, src, dst, …)
    #[arg(short = 'f', long, value_name = "TERMS", help_heading = "Metering")]
    pub filter: Option<String>,
    /// Meter one in N, chosen as --sampling-by says; the rate is exported, so that collectors can multiply
    #[arg(long, value_name = "1:N", help_heading = "Metering")]
    pub sampling: Option<Rate>,
    /// What is sampled: flows (with all their packets) or packets [default: flow]
    #[arg(long, value_name = "WHAT", help_heading = "Metering")]
    pub sampling_by: Option<SamplingChoice>,
    /// What is measured and exported: basic (counters), full (everything), a FILE of field names, or help to list them [default: basic]
    #[arg(long, value_name = "basic|full|FILE", help_heading = "Metering")]
    pub template: Option<String>,
    /// Which packet of a tunnelled one makes the flow: the outermost, or the innermost, kept apart by tunnel [default: outer]
    #[arg(long, value_name = "WHICH", help_heading = "Metering")]
    pub tunnels: Option<TunnelChoice>,
    /// End a flow without packets after this long [default: 15s]
    #[arg(short = 'd', long, value_name = "TIME", help_heading = "Metering")]
    pub idle_timeout: Option<Span>,
    /// Export a flow that goes on in parts of this length [default: 60s]
    #[arg(short = 't', long, visible_alias = "lifetime-timeout", value_name = "TIME", help_heading = "Metering")]
    pub active_timeout: Option<Span>,
    /// End a TCP flow of which only SYNs of one side were seen after this long [default: 5s]
    #[arg(long, value_name = "TIME", help_heading = "Metering")]
    pub unanswered_timeout: Option<Span>,
    /// Flows that each worker holds at most; beyond, the one idle longest is exported early [default: 524288]
    #[arg(short = 'M', long, visible_alias = "max-num-flows", value_name = "N", help_heading = "Metering")]
    pub flows_max: Option<usize>,

    /// Observation Domain ID of the exported Messages [default: 1]
    #[arg(long, value_name = "N", help_heading = "Export")]
    pub observation_domain: Option<u32>,
    /// Shortest time between two attempts to reach the collector; up to a quarter more at random [default: 60s]
    #[arg(long, value_name = "TIME", help_heading = "Export")]
    pub reconnect: Option<Span>,
    /// Memory for Messages that wait for the collector; when it is full the oldest are dropped and counted, or wait in the spool [default: 64M]
    #[arg(long, value_name = "SIZE", help_heading = "Export")]
    pub buffer: Option<Size>,
    /// Keep what is not acknowledged in this directory, over outages, restarts and crashes
    #[arg(long, value_name = "DIR", help_heading = "Export")]
    pub spool: Option<PathBuf>,
    /// Disk that each collector's spool may take; when it is full the oldest is dropped and counted [default: 10G]
    #[arg(long, value_name = "SIZE", help_heading = "Export")]
    pub spool_max: Option<Size>,
    /// Give up a collector that acknowledges or takes nothing for this long, and connect anew [default: 30s]
    #[arg(long, value_name = "TIME", help_heading = "Export")]
    pub dead_peer: Option<Span>,
    /// Address of this machine to export from
    #[arg(long, value_name = "ADDR", help_heading = "Export")]
    pub bind: Option<IpAddr>,
    /// Send buffer of the socket to the collector [default: the system's]
    #[arg(long, value_name = "SIZE", help_heading = "Export")]
    pub sndbuf: Option<Size>,
    /// How long to go on without progress when ending, while records wait for the collector [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = "Export")]
    pub drain_timeout: Option<Span>,
    /// How often the books go to the collector as options records [default: 10s]
    #[arg(long, value_name = "TIME", help_heading = "Export")]
    pub books_interval: Option<Span>,
    /// How often Templates are sent again over UDP [default: 60s]
    #[arg(long, value_name = "TIME", help_heading = "Export")]
    pub template_interval: Option<Span>,
    /// Path MTU over UDP: no larger packet is sent [default: 1280]
    #[arg(long, value_name = "OCTETS", help_heading = "Export")]
    pub mtu: Option<usize>,

    /// Write the books to this JSON file every 2 seconds and at the end
    #[arg(long, value_name = "FILE", help_heading = "Books")]
    pub stats_json: Option<PathBuf>,
    /// Serve the books to Prometheus at this address, like 127.0.0.1:9101
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Books")]
    pub metrics: Option<SocketAddr>,
}

/// `--export`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportChoice {
    /// The first collector that answers; back to a better one when it answers again
    #[default]
    Failover,
    /// Each flow to one collector, by its hash
    Balance,
    /// Every flow to every collector, each with its own queue, spool and books
    Replicate,
}

/// `--tunnels`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelChoice {
    /// The outermost IP packet
    Outer,
    /// The innermost that can be read (GRE, IP in IP, VXLAN, GENEVE, GTP-U, ERSPAN, L2TP, Teredo)
    Inner,
}

impl From<TunnelChoice> for Tunnels {
    fn from(choice: TunnelChoice) -> Tunnels {
        match choice {
            TunnelChoice::Outer => Tunnels::Outer,
            TunnelChoice::Inner => Tunnels::Inner,
        }
    }
}

/// `--sampling-by`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SamplingChoice {
    /// Flows, by their hash, with all their packets: what is exported of them is exact
    Flow,
    /// Packets, one of each N at random
    Packet,
}

/// A key of the file with one value or a list of them.
fn one_or_more<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore<T> {
        One(T),
        More(Vec<T>),
    }
    Ok(match OneOrMore::deserialize(deserializer)? {
        OneOrMore::One(one) => vec![one],
        OneOrMore::More(more) => more,
    })
}

/// Where frames come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Network interfaces.
    Interfaces(Vec<String>),
    /// A capture file; `-` is standard input.
    File(PathBuf),
}

/// Where records go.
#[derive(Debug, Clone)]
pub enum Destination {
    /// Collectors, the best first.
    Collectors(Vec<Endpoint>),
    /// Standard output.
    Dump(Format),
    /// An IPFIX File.
    File(PathBuf),
}

/// What the probe uses: every option with its value, checked.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // Named as the options that they come from.
pub struct Plan {
    pub input: Input,
    pub destination: Destination,
    pub tls: ClientTls,
    pub workers: usize,
    pub cores: Vec<usize>,
    pub mode: Mode,
    pub force: bool,
    pub snaplen: u32,
    pub busy_poll: bool,
    pub ring_frames: u32,
    pub selection: Selection,
    pub limits: CacheLimits,
    pub tunnels: Tunnels,
    pub domain: u32,
    pub reconnect: Duration,
    pub export: ExportChoice,
    pub buffer_octets: usize,
    pub spool: Option<PathBuf>,
    pub spool_max: u64,
    pub dead_peer: Duration,
    pub bind: Option<IpAddr>,
    pub sndbuf: Option<usize>,
    pub drain_timeout: Duration,
    pub books_interval: Duration,
    pub template_interval: Duration,
    pub template: FlowTemplate,
    pub mtu: usize,
    pub stats_json: Option<PathBuf>,
    pub metrics: Option<SocketAddr>,
}

/// Options that contradict each other or lack something; the message says what to do.
#[derive(Debug)]
pub struct PlanError(String);

impl std::fmt::Display for PlanError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PlanError {}

impl From<OptionsError> for PlanError {
    fn from(error: OptionsError) -> PlanError {
        PlanError(error.to_string())
    }
}

/// Observation Points that a flow can tell apart.
const INTERFACES_MAX: usize = 15;

fn is_interface(name: &str) -> bool {
    name != "-" && !name.contains('/') && std::path::Path::new("/sys/class/net").join(name).exists()
}

fn file(name: &str) -> Result<Input, PlanError> {
    let path = PathBuf::from(name);
    if name != "-" && !name.contains('/') && !path.exists() {
        let interfaces = crate::capture::guard::interfaces().join(", ");
        return Err(PlanError(format!(
            "-i {name} is neither an interface of this machine ({interfaces}) nor a file in this directory"
        )));
    }
    Ok(Input::File(path))
}

/// Collectors that a probe may have.
const COLLECTORS_MAX: usize = 16;
/// The least memory for Messages, and the least disk for a spool: some of the longest Messages.
const BUFFER_MIN: usize = 256 << 10;
const SPOOL_MIN: u64 = 1 << 20;

/// Cores that a probe may name; a bound for hostile values, not for machines.
const WORKERS_MAX: usize = 64;

impl SpoolReplay {
    /// The plan of an exporter that meters nothing.
    ///
    /// # Errors
    /// The file's, or options that do not go together.
    pub fn plan(self) -> Result<Plan, PlanError> {
        let mut options = layered(self.options, self.config.as_deref())?;
        if options.spool.is_none() {
            return Err(PlanError("--spool DIR is missing: what is to be sent".into()));
        }
        options.interface = vec!["-".into()];
        options.plan()
    }
}

impl CommandLine {
    /// The plan: file under command line, defaults under both.
    ///
    /// # Errors
    /// The file's, or options that do not go together.
    pub fn plan(self) -> Result<Plan, PlanError> {
        layered(self.options, self.config.as_deref())?.plan()
    }
}

impl Options {
    fn plan(self) -> Result<Plan, PlanError> {
        let destination = self.destination()?;
        let workers = self.worker_count()?;
        let tunnels = self.tunnels.map_or(Tunnels::Outer, Tunnels::from);
        let template = crate::template::choose(self.template.as_deref().unwrap_or("basic")).map_err(PlanError)?;
        let template = if tunnels == Tunnels::Inner { template.with_tunnels() } else { template };
        let span = |span: Option<Span>, default: u64| span.map_or(Duration::from_secs(default), |span| span.0);
        let limits = CacheLimits {
            idle_timeout_ms: span(self.idle_timeout, 15).as_millis() as u64,
            active_timeout_ms: span(self.active_timeout, 60).as_millis() as u64,
            unanswered_timeout_ms: span(self.unanswered_timeout, 5).as_millis() as u64,
            flows_max: self.flows_max.unwrap_or(524_288),
            measure: template.measures(),
            outer: tunnels == Tunnels::Inner,
        };
        if limits.flows_max == 0 || limits.flows_max > u32::MAX as usize / 2 {
            return Err(PlanError(format!("--flows-max {} is not between 1 and {}", limits.flows_max, u32::MAX / 2)));
        }
        let ring_frames = self.ring_frames.unwrap_or(CaptureOptions::default().ring_frames);
        if !ring_frames.is_power_of_two() || !(64..=1 << 16).contains(&ring_frames) {
            return Err(PlanError(format!("--ring-frames {ring_frames} is not a power of two between 64 and 65536")));
        }
        let snaplen = self.snaplen.unwrap_or(CaptureOptions::default().snaplen);
        if !(64..=SNAPLEN_MAX).contains(&snaplen) {
            return Err(PlanError(format!("--snaplen {snaplen} is not between 64 and {SNAPLEN_MAX} octets")));
        }
        let selection = self.selection()?;
        let mtu = self.mtu.unwrap_or(1280);
        if !(576..=65_535).contains(&mtu) {
            return Err(PlanError(format!("--mtu {mtu} is not between 576 and 65535 octets")));
        }
        let least = limit_min(&template) + crate::exporter::UDP_OVERHEAD;
        let over_udp = |to: &Endpoint| to.scheme == Scheme::Udp;
        let any_udp = matches!(&destination, Destination::Collectors(to) if to.iter().any(over_udp));
        if any_udp && mtu < least {
            return Err(PlanError(format!(
                "--mtu {mtu} is less than the {least} octets that a packet with these Templates takes: raise it, or export fewer fields"
            )));
        }
        let dead_peer = span(self.dead_peer, crate::exporter::transport::DEAD_PEER_DEFAULT.as_secs());
        if dead_peer < Duration::from_secs(1) {
            return Err(PlanError(format!("--dead-peer {dead_peer:?} is less than a second")));
        }
        if any_udp && self.spool.is_some() {
            return Err(PlanError(
                "--spool needs collectors that acknowledge, tls:// or tcp://: over udp:// nothing is kept".into(),
            ));
        }
        let spool_max = self.spool_max()?;
        Ok(Plan {
            input: self.input()?,
            destination,
            tls: self.tls()?,
            workers,
            cores: self.cores,
            mode: self.mode.unwrap_or_default(),
            force: self.force,
            snaplen,
            busy_poll: self.busy_poll,
            ring_frames,
            selection,
            limits,
            tunnels,
            domain: self.observation_domain.unwrap_or(1),
            reconnect: span(self.reconnect, crate::exporter::transport::RECONNECT_DEFAULT.as_secs()),
            export: self.export.unwrap_or_default(),
            buffer_octets: (self.buffer.map_or(64 << 20, |size| size.0) as usize).max(BUFFER_MIN),
            spool_max,
            spool: self.spool,
            dead_peer,
            bind: self.bind,
            sndbuf: self.sndbuf.map(|size| size.0 as usize),
            drain_timeout: span(self.drain_timeout, 10),
            books_interval: span(self.books_interval, 10),
            template_interval: span(self.template_interval, 60),
            template,
            mtu,
            stats_json: self.stats_json,
            metrics: self.metrics,
        })
    }

    fn selection(&self) -> Result<Selection, PlanError> {
        let filter = self.filter.as_deref().map(str::parse).transpose();
        let filter = filter.map_err(|error: String| PlanError(format!("--filter: {error}")))?;
        let of = match (self.sampling_by, self.sampling) {
            (Some(_), None) => return Err(PlanError("--sampling-by needs --sampling 1:N".into())),
            (Some(SamplingChoice::Packet), _) => SamplingOf::Packets,
            _ => SamplingOf::Flows,
        };
        Ok(Selection { filter, sampling: self.sampling.map(|rate| Sampling { of, one_in: rate.0 }) })
    }

    /// A name of an interface is one; anything else is a file, and then the only one.
    fn input(&self) -> Result<Input, PlanError> {
        let (first, more) = self.interface.split_first().ok_or_else(|| {
            PlanError("-i is missing: name an interface, a capture file, or - for standard input".into())
        })?;
        if more.is_empty() && !is_interface(first) {
            return file(first);
        }
        for (index, name) in self.interface.iter().enumerate() {
            if !is_interface(name) {
                let existing = crate::capture::guard::interfaces().join(", ");
                return Err(PlanError(format!(
                    "-i {name} is no interface of this machine ({existing}): only interfaces are captured \
                                              from together"
                )));
            }
            if self.interface[..index].contains(name) {
                return Err(PlanError(format!("-i {name} is named twice")));
            }
        }
        if self.interface.len() > INTERFACES_MAX {
            return Err(PlanError(format!(
                "-i: {} interfaces, a probe takes {INTERFACES_MAX} at most",
                self.interface.len()
            )));
        }
        Ok(Input::Interfaces(self.interface.clone()))
    }

    fn destination(&self) -> Result<Destination, PlanError> {
        match (&self.collector[..], self.dump, &self.export_file) {
            (endpoints @ [_, ..], None, None) => {
                for (at, endpoint) in endpoints.iter().enumerate() {
                    endpoint.require_host().map_err(|error| PlanError(format!("--collector {endpoint}: {error}")))?;
                    if endpoints[..at].contains(endpoint) {
                        return Err(PlanError(format!("--collector {endpoint} is named twice")));
                    }
                }
                if endpoints.len() > COLLECTORS_MAX {
                    return Err(PlanError(format!("{} collectors, a probe takes {COLLECTORS_MAX}", endpoints.len())));
                }
                Ok(Destination::Collectors(endpoints.to_vec()))
            }
            ([], Some(format), None) => Ok(Destination::Dump(format)),
            ([], None, Some(path)) => Ok(Destination::File(path.clone())),
            ([], None, None) => Err(PlanError(
                "nowhere to send flows: give --collector URL, --dump csv|json or --export-file FILE".into(),
            )),
            _ => Err(PlanError("--collector, --dump and --export-file exclude each other: give one".into())),
        }
    }

    fn spool_max(&self) -> Result<u64, PlanError> {
        match (self.spool_max, &self.spool) {
            (Some(_), None) => Err(PlanError("--spool-max needs --spool DIR".into())),
            (Some(size), _) if size.0 < SPOOL_MIN => {
                Err(PlanError(format!("--spool-max {size} is less than {}", Size(SPOOL_MIN))))
            }
            (size, _) => Ok(size.map_or(10 << 30, |size| size.0)),
        }
    }

    fn worker_count(&self) -> Result<usize, PlanError> {
        let workers = self.workers.unwrap_or(self.cores.len().max(1));
        if !(1..=WORKERS_MAX).contains(&workers) {
            return Err(PlanError(format!("--workers {workers} is not between 1 and {WORKERS_MAX}")));
        }
        if !self.cores.is_empty() && self.cores.len() != workers {
            let cores = self.cores.len();
            return Err(PlanError(format!(
                "--workers {workers} and the {cores} cores of --cores differ: name a core a worker"
            )));
        }
        let available: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
        match self.cores.iter().find(|core| !available.contains(core)) {
            Some(core) => Err(PlanError(format!("--cores {core}: this process may use the cores {available:?}"))),
            None => Ok(workers),
        }
    }

    fn tls(&self) -> Result<ClientTls, PlanError> {
        let identity = match (&self.tls_cert, &self.tls_priv_key) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => return Err(PlanError("--tls-cert and --tls-priv-key belong together: give both".into())),
        };
        let policy = Policy::new(self.tls_versions.unwrap_or_default(), &self.tls_ciphers);
        let policy = policy.map_err(|error| PlanError(error.to_string()))?;
        let (ca, crl) = (self.tls_ca.clone(), self.tls_crl.clone());
        Ok(ClientTls { ca, identity, insecure: self.tls_insecure, crl, policy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    fn plan(arguments: &str) -> Result<Plan, String> {
        let arguments = std::iter::once("nagare-probe").chain(arguments.split_whitespace());
        CommandLine::try_parse_from(arguments).map_err(|e| e.to_string())?.plan().map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn refusals_say_what_to_do() {
        for (arguments, expected) in [
            ("-i lo", "--dump csv|json"),
            ("--dump csv", "-i is missing"),
            ("-i lo --dump csv --export-file x", "exclude each other"),
            ("-i no-such-thing --dump csv", "neither an interface of this machine (lo"),
            ("-i lo --collector tls://:1", "host"),
            ("-i lo --collector tls://a --tls-cert x", "give both"),
            ("-i lo --dump csv --workers 0", "between 1 and 64"),
            ("-i lo --dump csv --workers 1 --cores 0,1", "differ"),
            ("-i lo --dump csv --cores 9999", "--cores 9999"),
            ("-i lo --dump csv --ring-frames 100", "power of two"),
            ("-i lo --collector udp://127.0.0.1 --template full --mtu 600", "export fewer fields"),
            ("-i lo -i lo --dump csv", "named twice"),
            ("-i lo -i no-such-thing --dump csv", "no interface of this machine"),
            ("-i lo --dump csv --snaplen 20", "between 64"),
            ("-i lo --dump csv --sampling-by flow", "needs --sampling"),
            ("-i lo --dump csv --filter tpc", "begins no term"),
            ("-i lo --dump csv --sampling 3", "no rate like"),
            ("-i lo --dump csv --template no-such-file", "basic, full, help"),
            ("-i lo --collector tls://a --collector tls://a", "named twice"),
            ("-i lo --collector udp://127.0.0.1 --spool x", "collectors that acknowledge"),
            ("-i lo --collector tls://a --spool-max 1G", "needs --spool"),
            ("-i lo --collector tls://a --spool x --spool-max 1K", "less than 1M"),
            ("-i lo --collector tls://a --dead-peer 10ms", "less than a second"),
        ] {
            let refusal = plan(arguments).map(|_| ()).unwrap_err();
            assert!(refusal.contains(expected), "{arguments}: {refusal}");
        }
    }

    #[test]
    fn the_default_mtu_holds_every_field() {
        assert!(plan("-i lo --collector udp://127.0.0.1 --template full").unwrap().limits.measure);
    }

    #[test]
    fn the_file_is_under_the_command_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("probe.toml");
        std::fs::write(&file, "interface = \"lo\"\ndump = \"json\"\nidle-timeout = \"3s\"\nflows-max = 7\n").unwrap();
        let with = |more: &str| plan(&format!("--config {} {more}", file.display()));
        let planned = with("--flows-max 9").unwrap();
        assert_eq!((planned.limits.idle_timeout_ms, planned.limits.flows_max), (3000, 9));
        std::fs::write(&file, "idle-timeuot = \"3s\"\n").unwrap();
        assert!(with("").unwrap_err().contains("idle-timeuot"));
    }
}
