//! The programs of an interface that the host uses: load, attach, rings, counters, detach; and the fanout of AF_PACKET.

use crate::error::{Error, chain};
use crate::layout::{COUNTER_STEERED, HostFrame, RINGS_MAX};
use crate::program::{Counters, Steering};
use aya::maps::{MapData, RingBuf};
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions};
use aya::programs::{SchedClassifier, SocketFilter, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use std::os::fd::{AsFd, BorrowedFd};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/host.o"));

const DIRECTIONS: [(&str, TcAttachType); 2] =
    [("nagare_ingress", TcAttachType::Ingress), ("nagare_egress", TcAttachType::Egress)];

/// Octets of a ring that belongs to no worker: the least that the kernel takes.
const UNUSED_RING: u32 = 4096;

/// The programs on an interface that the host uses. Its traffic passes; copies of the headers go to the workers' rings.
pub struct Host {
    ebpf: Ebpf,
    attached: Vec<Attached>,
    workers: u32,
}

/// Detaches when it is dropped; the first kind also when the process dies.
enum Attached {
    Link(#[expect(dead_code, reason = "kept for its drop")] FdLink),
    Filter(#[expect(dead_code, reason = "kept for its drop")] SchedClassifierLink),
}

impl Host {
    /// Loads the programs; each worker's ring has `ring_octets` octets, a power of two and a multiple of the page size. Frames begin
    /// with an Ethernet header, or, where not `has_ethernet`, with IP.
    ///
    /// # Errors
    /// Without the capabilities for BPF, with more than [`RINGS_MAX`] workers, or on a kernel that refuses the programs.
    pub fn load(steering: Steering, ring_octets: u32, has_ethernet: bool) -> Result<Host, Error> {
        let config = steering.config(u32::MAX, has_ethernet);
        if config.workers > RINGS_MAX {
            let refusal = format!("{} workers, at most {RINGS_MAX} can share an interface of the host", config.workers);
            return Err(Error::new("making rings for the workers", refusal));
        }
        let mut loader = EbpfLoader::new();
        loader
            .override_global("config", &config, true)
            .map_max_entries("counters", COUNTER_STEERED.saturating_add(config.workers));
        let names: Vec<String> = (0..RINGS_MAX).map(|worker| format!("ring_{worker}")).collect();
        for (worker, name) in names.iter().enumerate() {
            let used = (worker as u32) < config.workers;
            loader.map_max_entries(name, if used { ring_octets } else { UNUSED_RING });
        }
        let ebpf = loader.load(OBJECT).map_err(|error| Error::new("creating the maps of the tc programs", error))?;
        Ok(Host { ebpf, attached: Vec::new(), workers: config.workers })
    }

    /// Attaches to both directions of an interface, or to what comes in alone; gives how: `tcx`, or `clsact` on kernels before 6.6.
    /// All is detached by [`Host::detach`] and on drop. With `tcx` also when the process dies; a filter that a killed process left
    /// behind is taken away here.
    ///
    /// # Errors
    /// Where the interface does not exist, or the kernel refuses.
    pub fn attach(&mut self, interface: &str, also_outgoing: bool) -> Result<&'static str, Error> {
        let mut way = "tcx";
        for (name, direction) in DIRECTIONS.into_iter().take(if also_outgoing { 2 } else { 1 }) {
            let program = self.ebpf.program_mut(name).expect("the embedded object has this program");
            let program: &mut SchedClassifier = program.try_into().expect("it is a tc program");
            program.load().map_err(|error| Error::new("loading the tc program", error))?;
            // The first of all programs sees everything.
            let tcx = TcAttachOptions::TcxOrder(LinkOrder::first());
            let link = match program.attach_with_options(interface, direction, tcx) {
                Ok(link) => link,
                Err(no_tcx) => {
                    way = "clsact";
                    // There may be one already; if there is none, attaching says so.
                    let _ = tc::qdisc_add_clsact(interface);
                    let _ = tc::qdisc_detach_program(interface, direction, name);
                    let filter = TcAttachOptions::Netlink(NlOptions::default());
                    program.attach_with_options(interface, direction, filter).map_err(|error| {
                        let refusals = format!("as tcx: {}; as a clsact filter: {}", chain(&no_tcx), chain(&error));
                        Error::new("attaching the tc program", refusals)
                    })?
                }
            };
            let link =
                program.take_link(link).map_err(|error| Error::new("taking the link of the tc program", error))?;
            self.attached.push(match way {
                "tcx" => Attached::Link(FdLink::try_from(link).map_err(|_| Error::KernelTooOld)?),
                _ => Attached::Filter(link),
            });
        }
        Ok(way)
    }

    /// The ring of a worker, which can be taken once.
    ///
    /// # Errors
    /// Where the kernel refuses to map it.
    ///
    /// # Panics
    /// If there is no such worker, or its ring was taken.
    pub fn take_ring(&mut self, worker: u32) -> Result<HostRing, Error> {
        assert!(worker < self.workers, "worker {worker} of {}", self.workers);
        let map = self.ebpf.take_map(&format!("ring_{worker}")).expect("a worker's ring is taken once");
        RingBuf::try_from(map).map(HostRing).map_err(|error| Error::new("mapping a worker's ring", error))
    }

    /// What was counted so far, over all CPUs. Exact once the programs are detached.
    ///
    /// # Errors
    /// Where the kernel refuses to read the map.
    pub fn counters(&self) -> Result<Counters, Error> {
        let counters = Counters::read(&self.ebpf, self.workers);
        counters.map_err(|error| Error::new("reading the counters of the tc programs", error))
    }

    /// Detaches the programs. The counters and rings stay readable.
    pub fn detach(&mut self) {
        self.attached.clear();
    }
}

/// Frames on their way to one worker.
pub struct HostRing(RingBuf<MapData>);

impl HostRing {
    /// Hands the next frame to `each`; false where there is none.
    pub fn next(&mut self, each: impl FnOnce(&HostFrame)) -> bool {
        let Some(item) = self.0.next() else { return false };
        assert_eq!(item.len(), size_of::<HostFrame>(), "the program writes whole frames");
        // SAFETY: the item has the size, records of a ring are aligned to 8 octets, and any octets are a HostFrame.
        each(unsafe { &*item.as_ptr().cast::<HostFrame>() });
        true
    }
}

impl AsFd for HostRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The program that chooses which socket of an AF_PACKET fanout group gets a packet.
pub struct Fanout {
    ebpf: Ebpf,
}

impl Fanout {
    /// Loads it.
    ///
    /// # Errors
    /// Without the capabilities for BPF, or on a kernel that refuses the program.
    pub fn load(steering: Steering, has_ethernet: bool) -> Result<Fanout, Error> {
        let mut ebpf = EbpfLoader::new()
            .override_global("config", &steering.config(u32::MAX, has_ethernet), true)
            .load(OBJECT)
            .map_err(|error| Error::new("creating the maps of the fanout program", error))?;
        let program = ebpf.program_mut("nagare_fanout").expect("the embedded object has this program");
        let program: &mut SocketFilter = program.try_into().expect("it is a socket filter");
        program.load().map_err(|error| Error::new("loading the fanout program", error))?;
        Ok(Fanout { ebpf })
    }

    /// The program's descriptor, as `PACKET_FANOUT_DATA` wants it.
    ///
    /// # Errors
    /// None in practice: the program is loaded.
    pub fn fd(&self) -> Result<BorrowedFd<'_>, Error> {
        let program = self.ebpf.program("nagare_fanout").expect("the embedded object has this program");
        let program: &SocketFilter = program.try_into().expect("it is a socket filter");
        Ok(program.fd().map_err(|error| Error::new("finding the fanout program", error))?.as_fd())
    }
}
