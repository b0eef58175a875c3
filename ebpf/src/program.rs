//! The steering program: load, attach, register sockets, count, detach.

use crate::error::{Error, chain, errno};
use crate::layout::{COUNTER_LOST, COUNTER_SEEN, COUNTER_STEERED, COUNTER_UNREADABLE, Config};
use aya::maps::{MapError, PerCpuArray, XskMap};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, ProgramFd, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, TestRun, TestRunOptions};
use nagare_wire::packet::Tunnels;
use std::os::fd::BorrowedFd;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/nagare.o"));

/// The program for packets in one buffer, and for packets in any number.
const NAME: &str = "nagare_steer";
const NAME_FRAGS: &str = "nagare_steer_all";

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

/// How packets are given to workers.
#[derive(Clone, Copy, Debug)]
pub struct Steering {
    /// Seed of the flow hash: random, so that nobody can aim all flows at one worker.
    pub seed: u32,
    /// Workers; 0 is taken as 1.
    pub workers: u32,
    /// Which packet of a tunnelled one makes the flow.
    pub tunnels: Tunnels,
}

impl Steering {
    pub(crate) fn config(&self, octets_max: u32, has_ethernet: bool) -> Config {
        Config {
            seed: self.seed,
            workers: self.workers.max(1),
            octets_max,
            inner: u32::from(self.tunnels == Tunnels::Inner),
            has_ethernet: u32::from(has_ethernet),
        }
    }
}

/// What a program did with the packets that it saw: `seen` = the sum of `steered` + `lost` + `unreadable`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that reached the program.
    pub seen: u64,
    /// Packets given to each worker. An AF_XDP socket may still drop them: its own statistics say so.
    pub steered: Vec<u64>,
    /// Packets for which no socket was registered for their queue and worker (XDP: they were dropped), or for which the ring was
    /// full (a host's interface: they passed, but are not metered).
    pub lost: u64,
    /// Packets of a host's interface that were shorter than a header.
    pub unreadable: u64,
}

impl Counters {
    pub(crate) fn read(ebpf: &Ebpf, workers: u32) -> Result<Counters, MapError> {
        let map = ebpf.map("counters").expect("the embedded object has this map");
        let counters = PerCpuArray::<_, u64>::try_from(map)?;
        let total = |index| -> Result<u64, MapError> { Ok(counters.get(&index, 0)?.iter().sum()) };
        let steered = (0..workers).map(|worker| total(COUNTER_STEERED + worker));
        Ok(Counters {
            steered: steered.collect::<Result<_, _>>()?,
            lost: total(COUNTER_LOST)?,
            unreadable: total(COUNTER_UNREADABLE)?,
            seen: total(COUNTER_SEEN)?,
        })
    }
}

/// The steering program, loaded into the kernel.
pub struct Program {
    ebpf: Ebpf,
    name: &'static str,
    link: Option<FdLink>,
    workers: u32,
    queues: u32,
}

impl Program {
    /// Loads the program for an interface with `queues` receive queues (0 is taken as 1). Packets longer than `octets_max` are
    /// cut to that.
    ///
    /// # Errors
    /// Without the capabilities for BPF, or on a kernel that refuses the program.
    pub fn load(steering: Steering, queues: u32, octets_max: u32) -> Result<Program, Error> {
        let (config, queues) = (steering.config(octets_max, true), queues.max(1));
        let mut ebpf = EbpfLoader::new()
            .override_global("config", &config, true)
            .map_max_entries("sockets", config.workers.saturating_mul(queues))
            .map_max_entries("counters", COUNTER_STEERED.saturating_add(config.workers))
            .load(OBJECT)
            .map_err(|error| Error::new("creating the maps of the XDP program", error))?;
        // A kernel that does not know of packets in several buffers gets the program that does not either.
        let name = match program(&mut ebpf, NAME_FRAGS).load() {
            Ok(()) => NAME_FRAGS,
            Err(_) => {
                program(&mut ebpf, NAME).load().map_err(|error| Error::new("loading the XDP program", error))?;
                NAME
            }
        };
        Ok(Program { ebpf, name, link: None, workers: config.workers, queues })
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
        let program = program(&mut self.ebpf, self.name);
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
        let counters = Counters::read(&self.ebpf, self.workers);
        counters.map_err(|error| Error::new("reading the counters of the XDP program", error))
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
        let program = self.ebpf.program(self.name).expect("the embedded object has this program");
        program.try_into().expect("it is an XDP program")
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut Xdp {
    let program = ebpf.program_mut(name).expect("the embedded object has this program");
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
