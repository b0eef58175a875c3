//! Load for tests and benches, made in the kernel: frames that an XDP program sends out of an interface.

use crate::error::Error;
use crate::layout::{GeneratorConfig, GeneratorState};
use aya::maps::{MapError, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, TestRun, TestRunAttrs, TestRunOptions};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generator.o"));

/// Frames made between two flushes. A veth's receive ring has 256 places, and is emptied on the same CPU after each flush.
const BATCH: u32 = 64;
/// Frames asked of the kernel at once, so that a signal is noticed between.
const RUN_MAX: u64 = 1 << 20;

/// A frame that is sent as many flows, several million a second on one core (Linux 5.18 or newer).
///
/// Only the source varies: addresses 10.0.0.1, 10.0.0.2, ... with ports 1024 to 17407 each. Flows take turns.
pub struct Generator {
    ebpf: Ebpf,
    frame: Vec<u8>,
}

impl Generator {
    /// Prepares to send `frame` as `flows` flows (1 at least) out of the interface with index `ifindex`, as fast as it goes. It must
    /// be an untagged IPv4 packet of UDP without options or checksum. The peer of a veth needs native XDP, or GRO on.
    ///
    /// # Errors
    /// Without the capabilities for BPF, or on a kernel that refuses the program.
    pub fn load(frame: &[u8], flows: u32, ifindex: u32) -> Result<Generator, Error> {
        Generator::with_lengths(frame, [frame.len() as u16; 12], flows, ifindex, None)
    }

    /// Likewise, at so many packets a second, and of twelve frames each cut to its length: none longer than `frame`.
    ///
    /// # Errors
    /// As of [`Generator::load`].
    pub fn with_lengths(
        frame: &[u8],
        lengths: [u16; 12],
        flows: u32,
        ifindex: u32,
        rate: Option<f64>,
    ) -> Result<Generator, Error> {
        let interval = rate.map_or(0, |rate| (1024e9 / rate.max(1.0)) as u64);
        let lengths = std::array::from_fn(|index| lengths.get(index).copied().unwrap_or(0));
        let config = GeneratorConfig { interval, flows: flows.max(1), ifindex, lengths };
        let mut ebpf = EbpfLoader::new()
            .override_global("generator_config", &config, true)
            .load(OBJECT)
            .map_err(|error| Error::new("creating the maps of the load generator", error))?;
        let program = ebpf.program_mut("nagare_generate").expect("the embedded object has this program");
        let program: &mut Xdp = program.try_into().expect("it is an XDP program");
        program.load().map_err(|error| Error::new("loading the load generator", error))?;
        Ok(Generator { ebpf, frame: frame.to_vec() })
    }

    /// Sends `packets` frames from the calling thread's CPU; gives the number that were made. The receiving end
    /// may still drop some of them.
    ///
    /// # Errors
    /// Where the kernel refuses the run, or a signal interrupts it.
    pub fn run(&mut self, packets: u64) -> Result<u64, Error> {
        let program = self.ebpf.program("nagare_generate").expect("the embedded object has this program");
        let program: &Xdp = program.try_into().expect("it is an XDP program");
        let before = self.made()?;
        let mut left = packets;
        while left > 0 {
            let repeat = left.min(RUN_MAX);
            let options = TestRunOptions {
                data_in: Some(&self.frame),
                repeat: repeat as u32,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            };
            program.test_run(options).map_err(|error| Error::new("running the load generator", error))?;
            left -= repeat;
        }
        Ok(self.made()? - before)
    }

    fn made(&self) -> Result<u64, Error> {
        let read = || -> Result<u64, MapError> {
            let map = self.ebpf.map("made").expect("the embedded object has this map");
            Ok(PerCpuArray::<_, GeneratorState>::try_from(map)?.get(&0, 0)?.iter().map(|state| state.made).sum())
        };
        read().map_err(|error| Error::new("reading the load generator's counter", error))
    }
}

/// On the interface at the other end of a veth: a program that passes everything on, without which frames that are made there are
/// taken only where GRO is on. Detached on drop, or when the process dies.
pub struct Passing {
    _ebpf: Ebpf,
    _link: FdLink,
}

impl Passing {
    /// Attaches it to the interface with index `ifindex`.
    ///
    /// # Errors
    /// Without the capabilities for BPF, or where the interface has a program or the driver runs none.
    pub fn attach(ifindex: u32) -> Result<Passing, Error> {
        let mut ebpf = EbpfLoader::new()
            .load(OBJECT)
            .map_err(|error| Error::new("creating the maps of the passing program", error))?;
        let program = ebpf.program_mut("nagare_pass").expect("the embedded object has this program");
        let program: &mut Xdp = program.try_into().expect("it is an XDP program");
        program.load().map_err(|error| Error::new("loading the passing program", error))?;
        let attach = |program: &mut Xdp| -> Result<FdLink, ProgramError> {
            let link = program.attach_to_if_index(ifindex, XdpMode::Driver)?;
            let link = program.take_link(link)?;
            FdLink::try_from(link).map_err(|error| ProgramError::IOError(std::io::Error::other(error)))
        };
        let link = attach(program).map_err(|error| Error::new("attaching the passing program", error))?;
        Ok(Passing { _ebpf: ebpf, _link: link })
    }
}
