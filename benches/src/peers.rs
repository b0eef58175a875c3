//! The probes that Nagare is measured beside: how each is started on a file or an interface, and how what it metered is counted.

use crate::lab::Lab;
use nagare_ebpf::Passing;
use nagare_wire::ipfix::mapping::{Mapped, map};
use nagare_wire::ipfix::{Transport, TransportSession};
use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Flows that every probe is given room for.
pub const FLOWS_MAX: u32 = 200_000;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// AF_XDP rings alone: frames are taken and given back.
    Rings,
    /// Nagare, by XDP.
    Nagare,
    /// Nagare, rings four times as deep.
    NagareDeep,
    /// Nagare, everything measured.
    NagareFull,
    /// Nagare, by AF_PACKET.
    NagarePacket,
    /// softflowd, by libpcap.
    Softflowd,
    /// nfpcapd of nfdump, by libpcap.
    Nfpcapd,
    /// pmacctd, by libpcap.
    Pmacctd,
    /// ipfixprobe, by its raw plugin (AF_PACKET), from a file by libpcap.
    Ipfixprobe,
}

/// A probe that is there.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Which.
    pub kind: Kind,
    program: PathBuf,
}

impl Kind {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Rings => "AF_XDP rings alone",
            Kind::Nagare => "Nagare",
            Kind::NagareDeep => "Nagare, deep rings",
            Kind::NagareFull => "Nagare, measures all",
            Kind::NagarePacket => "Nagare, AF_PACKET",
            Kind::Softflowd => "softflowd",
            Kind::Nfpcapd => "nfpcapd",
            Kind::Pmacctd => "pmacctd",
            Kind::Ipfixprobe => "ipfixprobe",
        }
    }

    /// Whether it is another's.
    pub fn is_peer(self) -> bool {
        matches!(self, Kind::Softflowd | Kind::Nfpcapd | Kind::Pmacctd | Kind::Ipfixprobe)
    }
}

impl Probe {
    /// Of these, the ones that are installed; ipfixprobe is where it is said to be.
    pub fn installed(kinds: &[Kind], ipfixprobe: Option<&Path>) -> Vec<Probe> {
        let find = |kind: Kind| {
            let program = match kind {
                Kind::Rings => std::env::current_exe().ok()?,
                Kind::Nagare | Kind::NagareDeep | Kind::NagareFull | Kind::NagarePacket => {
                    crate::lab::built("nagare-probe")
                }
                Kind::Softflowd => on_path("softflowd")?,
                Kind::Nfpcapd => on_path("nfpcapd")?,
                Kind::Pmacctd => on_path("pmacctd")?,
                Kind::Ipfixprobe => ipfixprobe?.to_path_buf(),
            };
            Some(Probe { kind, program })
        };
        kinds.iter().filter_map(|kind| find(*kind)).collect()
    }

    /// The command that meters a file to its end, and exports over UDP where it can.
    pub fn over_file(&self, file: &Path, to: u16, scratch: &Path) -> Command {
        let mut command = Command::new(&self.program);
        let (file, flows) = (file.to_str().expect("a path of text"), FLOWS_MAX.to_string());
        match self.kind {
            Kind::Softflowd => {
                command.args(["-r", file, "-n", &format!("127.0.0.1:{to}"), "-v", "10", "-m", &flows]);
            }
            Kind::Nfpcapd => {
                command.args(["-r", file, "-B", &flows, "-l"]).arg(scratch);
            }
            Kind::Ipfixprobe => {
                command.args(["-i", &format!("pcap;file={file}"), "-s", "cache;size=18"]);
                command.args(["-o", &format!("ipfix;host=127.0.0.1;port={to};udp")]);
            }
            _ => {
                command.args(["-i", file, "--collector", &format!("udp://127.0.0.1:{to}"), "--flows-max", &flows]);
            }
        }
        command
    }

    /// Starts it on the captured end of a laboratory's pair, on a core of its own.
    pub fn start<'a>(&self, lab: &'a Lab, interface: &str, scratch: &Path) -> Running<'a> {
        let by_packet_socket = self.kind.is_peer() || self.kind == Kind::NagarePacket;
        let passing = by_packet_socket.then(|| {
            lab.within(&lab.probe(), || {
                let index = nix::net::if_::if_nametoindex(interface).expect("the laboratory has this interface");
                Passing::attach(index).expect("root may attach a program")
            })
        });
        // What another run left would be counted as this one's.
        std::fs::remove_dir_all(scratch).ok();
        std::fs::create_dir_all(scratch).expect("the directory above is there");
        let sink = lab.within(&lab.probe(), Sink::new);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &lab.probe(), "taskset", "-c", "1"]).arg(&self.program);
        self.on_interface(&mut command, interface, sink.port, scratch);
        let log = File::create(scratch.join("log")).expect("the scratch directory is there");
        let out = File::create(scratch.join("out")).expect("the scratch directory is there");
        let child = command.stdin(Stdio::null()).stderr(log).stdout(out).spawn().expect("the program starts");
        std::thread::sleep(Duration::from_millis(1500));
        Running { kind: self.kind, child, sink, scratch: scratch.to_path_buf(), _passing: passing, _lab: lab }
    }

    fn on_interface(&self, command: &mut Command, interface: &str, to: u16, scratch: &Path) {
        let (flows, receiver) = (FLOWS_MAX.to_string(), format!("127.0.0.1:{to}"));
        match self.kind {
            Kind::Rings => {
                command.args(["rings", "--interface", interface]);
            }
            Kind::Softflowd => {
                command
                    .args(["-i", interface, "-d", "-n", &receiver, "-v", "10", "-m", &flows])
                    .args(own_files(scratch));
            }
            Kind::Nfpcapd => {
                command.args(["-i", interface, "-B", &flows, "-t", "3600", "-l"]).arg(scratch);
            }
            Kind::Pmacctd => {
                let file = scratch.join("pmacctd.conf");
                let text = format!(
                    "plugins: nfprobe\ndaemonize: false\npcap_interface: {interface}\nnfprobe_receiver: {receiver}\n\
                     nfprobe_version: 10\nnfprobe_maxflows: {flows}\nplugin_buffer_size: 1024000\nplugin_pipe_size: 102400000\n\
                     aggregate: src_host,dst_host,src_port,dst_port,proto,tos\n"
                );
                std::fs::write(&file, text).expect("the scratch directory is there");
                command.arg("-f").arg(file);
            }
            Kind::Ipfixprobe => {
                command.args(["-i", &format!("raw;ifc={interface};blocks=256;pkts=64"), "-s", "cache;size=18"]);
                command.args(["-o", &format!("ipfix;host=127.0.0.1;port={to};udp")]);
            }
            Kind::Nagare | Kind::NagareDeep | Kind::NagareFull | Kind::NagarePacket => {
                let books = scratch.join("books.json");
                command.args(["-i", interface, "--collector", &format!("udp://{receiver}"), "--cores", "1"]);
                command.args(["--flows-max", &flows, "--stats-json"]).arg(books);
                match self.kind {
                    Kind::NagareDeep => command.args(["--ring-frames", "16384"]),
                    Kind::NagareFull => command.args(["--template", "full"]),
                    Kind::NagarePacket => command.args(["--mode", "packet", "--ring-frames", "32768"]),
                    _ => command,
                };
            }
        }
    }
}

/// softflowd's files of a process, away from where a service would have them.
fn own_files(scratch: &Path) -> [String; 4] {
    let path = |name: &str| scratch.join(name).display().to_string();
    ["-p".into(), path("pid"), "-c".into(), path("control")]
}

fn on_path(program: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let more = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    std::env::split_paths(&paths).chain(more).map(|directory| directory.join(program)).find(|path| path.is_file())
}

/// A probe that runs on an interface.
pub struct Running<'a> {
    kind: Kind,
    child: Child,
    sink: Sink,
    scratch: PathBuf,
    _passing: Option<Passing>,
    _lab: &'a Lab,
}

/// What a probe did until it was stopped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Packets in the flows that it exported.
    pub packets: u64,
    /// Its own processor time, seconds; what the kernel does for it in interrupts is not in it.
    pub cpu_s: f64,
    /// The most memory that it had, bytes.
    pub memory: u64,
}

impl Running<'_> {
    /// Stops it, and counts.
    pub fn stop(mut self) -> Done {
        // What is in its rings is still to be metered.
        let settles = if self.kind.is_peer() { 2500 } else { 500 };
        std::thread::sleep(Duration::from_millis(settles));
        let (cpu_s, memory) = usage(self.child.id());
        let of_softflowd = if self.kind == Kind::Softflowd { softflowctl(&self.scratch) } else { None };
        let signal = if self.kind == Kind::Ipfixprobe || self.kind == Kind::Pmacctd { "-INT" } else { "-TERM" };
        let stop = |signal: &str, pid: u32| Command::new("kill").args([signal, &pid.to_string()]).status();
        stop(signal, self.child.id()).expect("kill runs");
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.child.try_wait().expect("it is our child").is_none() {
            if Instant::now() > deadline {
                self.child.kill().ok();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let exported = self.sink.stop();
        let packets = match self.kind {
            Kind::Rings => {
                std::fs::read_to_string(self.scratch.join("out")).ok().and_then(|text| text.trim().parse().ok())
            }
            Kind::Nfpcapd => nfdump(&self.scratch),
            Kind::Softflowd => of_softflowd,
            _ => Some(exported),
        };
        Done { packets: packets.unwrap_or(0), cpu_s, memory }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Processor time in seconds and the most memory in bytes of a process and the processes that it has begun.
fn usage(pid: u32) -> (f64, u64) {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let of_children = children.split_whitespace().filter_map(|child| child.parse().ok()).map(usage);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    // Clock ticks are hundredths of a second on Linux.
    let own = ((ticks(11) + ticks(12)) / 100.0, peak.unwrap_or(0) << 10);
    of_children.fold(own, |(cpu, memory), (more_cpu, more_memory)| (cpu + more_cpu, memory + more_memory))
}

/// Packets that softflowd says it has processed.
fn softflowctl(scratch: &Path) -> Option<u64> {
    let output = Command::new("softflowctl").arg("-c").arg(scratch.join("control")).arg("statistics").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("Packets processed:")?.trim().parse().ok())
}

/// Packets in the files that nfpcapd wrote.
fn nfdump(directory: &Path) -> Option<u64> {
    let mut packets = 0;
    for entry in std::fs::read_dir(directory).ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("nfcapd.") {
            let output = Command::new("nfdump").arg("-r").arg(entry.path()).arg("-I").output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let count = text.lines().find_map(|line| line.strip_prefix("Packets:")?.trim().parse::<u64>().ok());
            packets += count.unwrap_or(0);
            std::fs::remove_file(entry.path()).ok()?;
        }
    }
    Some(packets)
}

/// Receives IPFIX over UDP and adds up the packets in its flows.
pub struct Sink {
    /// Where it listens, on the loopback.
    pub port: u16,
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Default for Sink {
    fn default() -> Sink {
        Sink::new()
    }
}

impl Sink {
    /// Begins to listen in the calling thread's network namespace.
    ///
    /// # Panics
    /// If it cannot.
    pub fn new() -> Sink {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("the loopback is up");
        let reference = socket2::SockRef::from(&socket);
        // Whole caches are exported at once when a probe ends. Root may have more than the system's limit.
        reference.set_recv_buffer_size(64 << 20).ok();
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(256 << 20)).ok();
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket has a timeout");
        let port = socket.local_addr().expect("it is bound").port();
        let ended = Arc::<AtomicBool>::default();
        let until = ended.clone();
        let thread = std::thread::spawn(move || count(&socket, &until));
        Sink { port, ended, thread: Some(thread) }
    }

    /// Packets in all flows that came, once no more come.
    pub fn stop(&mut self) -> u64 {
        self.ended.store(true, Ordering::Release);
        self.thread.take().map_or(0, |thread| thread.join().unwrap_or(0))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop();
    }
}

fn count(socket: &UdpSocket, ended: &AtomicBool) -> u64 {
    let (mut session, mut buffer, mut packets) = (TransportSession::new(Transport::Datagram), vec![0; 65_536], 0);
    loop {
        // Read before: what came before it was set is read below.
        let last = ended.load(Ordering::Acquire);
        match socket.recv(&mut buffer) {
            Ok(length) => {
                // A Message that is none is of no probe that is measured here.
                let _ = session.receive(&buffer[..length], |header, record| {
                    if let Mapped::Flow(flow) = map(header, &record) {
                        packets += flow.forward.packets + flow.reverse.packets;
                    }
                });
            }
            Err(_) if last => return packets,
            Err(_) => {}
        }
    }
}
