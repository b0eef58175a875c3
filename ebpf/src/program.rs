//! The steering program: load, attach, register sockets, count, detach.

use crate::error::{Error, chain, errno};
use crate::layout::{COUNTER_NO_SOCKET, COUNTER_REDIRECTED, COUNTER_SEEN, Config};
use aya::maps::{MapError, PerCpuArray, XskMap};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, ProgramFd, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, TestRun, TestRunOptions};
use nagare_wire::packet::Tunnels;
use std::os::fd::BorrowedFd;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/nagare.o"));

/// How an XDP program runs on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel makes anything of the frame.
    Native,
    /// In the kernel's general receive path: slower.
    Generic {
        /// Why the driver does not run it.
        why_not_native: String,
    },
}

/// What the program did with the packets that it saw: `seen` = the sum of `redirected` + `no_socket`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that reached the program.
    pub seen: u64,
    /// Packets handed to each worker's socket. The socket may still drop them: its own statistics say so.
    pub redirected: Vec<u64>,
    /// Packets dropped as no socket was registered for their queue and worker.
    pub no_socket: u64,
}

/// The steering program, loaded into the kernel.
pub struct Program {
    ebpf: Ebpf,
    link: Option<FdLink>,
    workers: u32,
    queues: u32,
}

impl Program {
    /// Loads the program for an interface with `queues` receive queues, steering to `workers` workers by the hash of `seed`.
    /// Both are at least 1, else they are taken as 1. Packets longer than `octets_max` are cut to that.
    /// `tunnels` says which packet of a tunnelled one makes the flow.
    ///
    /// # Errors
    /// Without the capabilities for BPF, or on a kernel that refuses the program.
    pub fn load(seed: u32, workers: u32, queues: u32, octets_max: u32, tunnels: Tunnels) -> Result<Program, Error> {
        let (workers, queues) = (workers.max(1), queues.max(1));
        let config = Config { seed, workers, octets_max, inner: u32::from(tunnels == Tunnels::Inner) };
        let mut ebpf = EbpfLoader::new()
            .override_global("config", &config, true)
            .map_max_entries("sockets", workers.saturating_mul(queues))
            .map_max_entries("counters", COUNTER_REDIRECTED.saturating_add(workers))
            .load(OBJECT)
            .map_err(|error| Error::new("creating the maps of the XDP program", error))?;
        steer(&mut ebpf).load().map_err(|error| Error::new("loading the XDP program", error))?;
        Ok(Program { ebpf, link: None, workers, queues })
    }

    /// Attaches the program to the interface with index `ifindex`: natively where the driver can and `force_generic` is not
    /// set, else generically. It is detached by [`Program::detach`], on drop, and when the process dies.
    ///
    /// # Errors
    /// Where another program is attached, the interface does not exist, or the kernel refuses both modes.
    pub fn attach(&mut self, ifindex: u32, force_generic: bool) -> Result<Mode, Error> {
        let why_not_native = if force_generic {
            "generic mode was asked for".into()
        } else {
            match self.attach_as(ifindex, XdpMode::Driver) {
                Ok(()) => return Ok(Mode::Native),
                Err(error @ Error::Kernel { .. }) => error.to_string(),
                Err(error) => return Err(error),
            }
        };
        self.attach_as(ifindex, XdpMode::Skb)?;
        Ok(Mode::Generic { why_not_native })
    }

    fn attach_as(&mut self, ifindex: u32, mode: XdpMode) -> Result<(), Error> {
        let program = steer(&mut self.ebpf);
        let link = program.attach_to_if_index(ifindex, mode).map_err(|error| refusal(error, ifindex, mode))?;
        let link = program.take_link(link).map_err(|error| Error::new("taking the link of the XDP program", error))?;
        // A program that is attached without a link would outlive a killed process.
        self.link = Some(FdLink::try_from(link).map_err(|_| Error::KernelTooOld)?);
        Ok(())
    }

    /// Registers the AF_XDP socket of `worker` that is bound to receive queue `queue`; from now on it gets frames.
    ///
    /// # Errors
    /// Where queue or worker is out of range, or `socket` is no AF_XDP socket.
    pub fn register(&mut self, queue: u32, worker: u32, socket: BorrowedFd<'_>) -> Result<(), Error> {
        if queue >= self.queues || worker >= self.workers {
            let range = format!("queue {queue} of {}, worker {worker} of {}", self.queues, self.workers);
            return Err(Error::new("registering an AF_XDP socket out of range", range));
        }
        let map = self.ebpf.map_mut("sockets").expect("the embedded object has this map");
        XskMap::try_from(map)
            .and_then(|mut sockets| sockets.set(queue * self.workers + worker, socket, 0))
            .map_err(|error| Error::new("registering an AF_XDP socket", error))
    }

    /// What was counted so far, over all CPUs. Exact once the program is detached.
    ///
    /// # Errors
    /// Where the kernel refuses to read the map.
    pub fn counters(&self) -> Result<Counters, Error> {
        self.read_counters().map_err(|error| Error::new("reading the counters of the XDP program", error))
    }

    fn read_counters(&self) -> Result<Counters, MapError> {
        let map = self.ebpf.map("counters").expect("the embedded object has this map");
        let counters = PerCpuArray::<_, u64>::try_from(map)?;
        let total = |index| -> Result<u64, MapError> { Ok(counters.get(&index, 0)?.iter().sum()) };
        let redirected = (0..self.workers).map(|worker| total(COUNTER_REDIRECTED + worker));
        Ok(Counters {
            redirected: redirected.collect::<Result<_, _>>()?,
            no_socket: total(COUNTER_NO_SOCKET)?,
            seen: total(COUNTER_SEEN)?,
        })
    }

    /// Detaches the program from its interface; frames go to the host again. The counters stay readable.
    pub fn detach(&mut self) {
        // The last descriptor of a link detaches it when it closes.
        self.link = None;
    }

    /// Runs the program once on `frame` (14 octets at least) as if it had come in on queue 0, without an interface; gives the
    /// verdict (`XDP_REDIRECT` is 4, `XDP_DROP` 1). It counts as one packet.
    ///
    /// # Errors
    /// Where the kernel refuses the run.
    pub fn test_run(&self, frame: &[u8]) -> Result<u32, Error> {
        let options = TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() };
        let run = self.program().test_run(options).map_err(|error| Error::new("running the XDP program", error))?;
        Ok(run.return_value)
    }

    /// The program's descriptor, for those who want to ask the kernel more about it.
    ///
    /// # Errors
    /// None in practice: the program is loaded.
    pub fn fd(&self) -> Result<&ProgramFd, Error> {
        self.program().fd().map_err(|error| Error::new("finding the XDP program", error))
    }

    /// Instructions that the verifier went through, where the kernel tells (Linux 5.16 and newer). It gives up at a million.
    pub fn verified_instructions(&self) -> Option<u32> {
        self.program().info().ok()?.verified_instruction_count()
    }

    fn program(&self) -> &Xdp {
        let program = self.ebpf.program("nagare_steer").expect("the embedded object has this program");
        program.try_into().expect("it is an XDP program")
    }
}

fn steer(ebpf: &mut Ebpf) -> &mut Xdp {
    let program = ebpf.program_mut("nagare_steer").expect("the embedded object has this program");
    program.try_into().expect("it is an XDP program")
}

fn refusal(error: ProgramError, ifindex: u32, mode: XdpMode) -> Error {
    match errno(&error) {
        Some(libc::EBUSY | libc::EEXIST) => Error::AlreadyAttached { ifindex },
        Some(libc::EOPNOTSUPP) if mode == XdpMode::Driver => {
            Error::Kernel { action: "attaching natively", cause: "the driver does not offer it: EOPNOTSUPP".into() }
        }
        Some(libc::ERANGE | libc::EINVAL) if mode == XdpMode::Driver => Error::Kernel {
            action: "attaching natively",
            cause: format!("{} (most often the MTU is too large for it)", chain(&error)).into(),
        },
        _ if mode == XdpMode::Driver => Error::new("attaching natively", chain(&error)),
        _ => Error::new("attaching the XDP program", error),
    }
}
