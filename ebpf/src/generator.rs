//! Load for tests and benches, made in the kernel: frames that an XDP program sends out of an interface.

use crate::error::Error;
use crate::layout::GeneratorConfig;
use aya::maps::{MapError, PerCpuArray};
use aya::programs::Xdp;
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
    /// Prepares to send `frame` as `flows` flows (1 at least) out of the interface with index `ifindex`. It must be an
    /// untagged IPv4 packet without options, of a protocol with ports, whose transport checksum is not looked at (UDP's 0).
    /// The peer of a veth needs native XDP, or GRO on.
    ///
    /// # Errors
    /// Without the capabilities for BPF, or on a kernel that refuses the program.
    pub fn load(frame: &[u8], flows: u32, ifindex: u32) -> Result<Generator, Error> {
        let config = GeneratorConfig { flows: flows.max(1), ifindex };
        let mut ebpf = EbpfLoader::new()
            .override_global("generator_config", &config, true)
            .load(OBJECT)
            .map_err(|error| Error::new("creating the maps of the load generator", error))?;
        let program = ebpf.program_mut("nagare_generate").expect("the embedded object has this program");
        let program: &mut Xdp = program.try_into().expect("it is an XDP program");
        program.load().map_err(|error| Error::new("loading the load generator", error))?;
        Ok(Generator { ebpf, frame: frame.to_vec() })
    }

    /// Sends `packets` frames as fast as the calling thread's CPU can; gives the number that were made. The receiving end
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
            Ok(PerCpuArray::<_, u64>::try_from(map)?.get(&0, 0)?.iter().sum())
        };
        read().map_err(|error| Error::new("reading the load generator's counter", error))
    }
}
