//! Where frames come from: a capture file, or interfaces, each in one of three ways.
//!
//! | way | for | how |
//! |---|---|---|
//! | [`xdp`] | a capture port (SPAN, tap) | XDP takes the frames away into AF_XDP rings |
//! | [`host`] | an interface that the host uses | tc programs copy the headers of both directions into BPF ring buffers |
//! | [`packet`] | where XDP cannot be attached | AF_PACKET, TPACKET_V3 and fanout |

pub mod clock;
pub mod file;
pub mod guard;
pub mod host;
pub mod interfaces;
pub mod packet;
pub mod xdp;

use crate::books::ReadCapture;
use nagare_ebpf::Steering;
use nagare_wire::packet::{LinkType, Tunnels};
use nix::poll::PollFd;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{io, thread};

pub use nagare_wire::observation::Captured as Frame;

/// What one call of [`CaptureSource::receive`] did.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Frames handed on.
    pub frames: usize,
    /// The source's clock, in nanoseconds since 1970.
    pub now_ns: u64,
    /// Frames up to this time are not in order: they came from several rings. All of them have been handed on; a later one may
    /// have come before others that are still to be handed on. `u64::MAX` where frames are in order.
    pub horizon_ns: u64,
    /// No frame will come any more.
    pub end: bool,
}

/// A source of frames for one worker.
pub trait CaptureSource {
    /// Hands up to `budget` frames to `each`; waits up to `wait` when there is none. The frames go back when the closure ends.
    ///
    /// # Errors
    /// The source is broken and will give no more frames.
    fn receive(&mut self, budget: usize, wait: Duration, each: impl FnMut(Frame<'_>)) -> io::Result<Received>;
}

/// How an interface is captured from. What a way has no use for it leaves aside.
#[derive(Clone, Copy, Debug)]
pub struct CaptureOptions {
    /// The Observation Point that frames are marked with, from 1.
    pub number: u8,
    /// Workers that share the interface.
    pub workers: u32,
    /// Seed of the steering hash: random, so that nobody can aim all flows at one worker.
    pub seed: u32,
    /// Which packet of a tunnelled one makes the flow, by which packets are steered.
    pub tunnels: Tunnels,
    /// Octets of a frame that are captured; the length on the wire is kept.
    pub snaplen: u32,
    /// Frames that each ring has places for: a power of two.
    pub ring_frames: u32,
    /// Octets of a frame of the UMEM: 2048 or 4096.
    pub frame_size: u32,
    /// Let a worker that waits drive the interface's queue itself, instead of an interrupt.
    pub busy_poll: bool,
    /// Do not ask the driver to run the XDP program.
    pub force_generic: bool,
    /// Do not ask the driver for zero-copy.
    pub force_copy: bool,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        CaptureOptions {
            number: 1,
            workers: 1,
            seed: 0,
            tunnels: Tunnels::Outer,
            snaplen: 256,
            ring_frames: 4096,
            frame_size: 2048,
            busy_poll: false,
            force_generic: false,
            force_copy: false,
        }
    }
}

impl CaptureOptions {
    /// What the kernel's programs need of this.
    pub fn steering(&self) -> Steering {
        Steering { seed: self.seed, workers: self.workers, tunnels: self.tunnels }
    }
}

/// An interface that is being captured from. Dropping it puts the interface back.
pub trait InterfaceCapture {
    /// What was got, and why not better: `eth1: 2 queues, 2 workers, XDP native, zero-copy`.
    fn startup_line(&self) -> String;

    /// Each worker's share, to be moved to the workers' threads. The second call gives none.
    fn take_shares(&mut self) -> Vec<Share>;

    /// Reads what came in and what was lost; outlives the capture.
    fn books(&self) -> ReadCapture;

    /// Memory that was reserved: its name, and bytes.
    fn memory(&self) -> (&'static str, u64);

    /// Lets no more frames come. What is in the rings is still handed on; then the shares end. Blocks for some milliseconds; the
    /// second call does nothing.
    fn detach(&mut self);
}

/// A worker's share of an interface.
pub enum Share {
    /// Of a capture port.
    Xdp(xdp::XdpSource),
    /// Of an interface that the host uses.
    Host(host::HostSource),
    /// Of any interface.
    Packet(packet::PacketSource),
}

/// What [`interfaces::Interfaces`] asks of a share.
trait Taken {
    /// Hands up to `budget` frames to `each`.
    fn take(&mut self, budget: usize, each: &mut impl FnMut(Frame<'_>)) -> io::Result<usize>;

    /// Adds what to wait for; false where there is no time to.
    fn wait_for<'a>(&'a self, descriptors: &mut Vec<PollFd<'a>>) -> bool;

    /// Drives the interface's queue, where that was asked for.
    fn drive(&self) {}

    /// After some time without frames: an error where the interface is gone.
    fn check(&self) -> io::Result<()>;

    /// Rings that it is read from: frames of one are in order.
    fn rings(&self) -> usize {
        1
    }

    /// Whether no frame comes after those that are in the rings now.
    fn is_detached(&self) -> bool;
}

/// Of one of the three ways, the same call.
macro_rules! each_way {
    ($self:ident, $share:ident => $call:expr) => {
        match $self {
            Share::Xdp($share) => $call,
            Share::Host($share) => $call,
            Share::Packet($share) => $call,
        }
    };
}

impl Taken for Share {
    fn take(&mut self, budget: usize, each: &mut impl FnMut(Frame<'_>)) -> io::Result<usize> {
        each_way!(self, share => share.take(budget, each))
    }

    fn wait_for<'a>(&'a self, descriptors: &mut Vec<PollFd<'a>>) -> bool {
        each_way!(self, share => share.wait_for(descriptors))
    }

    fn drive(&self) {
        each_way!(self, share => share.drive())
    }

    fn check(&self) -> io::Result<()> {
        each_way!(self, share => share.check())
    }

    fn rings(&self) -> usize {
        each_way!(self, share => share.rings())
    }

    fn is_detached(&self) -> bool {
        each_way!(self, share => share.is_detached())
    }
}

/// Why an interface cannot be captured from, in words for the person at the probe.
pub type CaptureError = Box<dyn Error + Send + Sync>;

/// What frames of an interface begin with.
///
/// # Errors
/// Where the interface is of a kind that the decoder does not know.
fn link_of(interface: &str) -> Result<LinkType, CaptureError> {
    let kind = guard::hardware_type(interface)?;
    match kind {
        // ARPHRD_ETHER; frames of the loopback look the same.
        1 | guard::LOOPBACK => Ok(LinkType::Ethernet),
        // PPP, tunnels of IP, and what has no link layer at all (tun, WireGuard).
        512 | 768 | 769 | 776 | 778 | 823 | 65_534 => Ok(LinkType::RawIp),
        _ => Err(format!("interface {interface} is of the hardware type {kind} (ARPHRD), which is not decoded").into()),
    }
}

/// Tells the shares of a capture that no frame comes any more.
#[derive(Clone, Default)]
struct Detached(Arc<AtomicBool>);

impl Detached {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Stops the frames, and says so once those that were on their way are in their rings. The second call does nothing.
    fn set(&self, settle: Duration, stop: impl FnOnce()) {
        if !self.is_set() {
            stop();
            thread::sleep(settle);
            self.0.store(true, Ordering::Release);
        }
    }
}

/// "1 worker", "2 workers".
fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Counters of the kernel for an interface, of packets that were lost before any program could see them.
const LOST_BEFORE: [&str; 3] = ["rx_missed_errors", "rx_fifo_errors", "rx_errors"];

/// What an interface has lost since the start. No counter of ours sees those packets: these are figures beside the equations.
struct NicLosses {
    interface: String,
    start: [u64; LOST_BEFORE.len()],
}

impl NicLosses {
    fn new(interface: &str) -> NicLosses {
        NicLosses { interface: interface.into(), start: NicLosses::read(interface) }
    }

    fn figures(&self) -> Vec<(String, u64)> {
        let lost =
            NicLosses::read(&self.interface).into_iter().zip(self.start).map(|(now, start)| now.saturating_sub(start));
        LOST_BEFORE.iter().zip(lost).map(|(name, lost)| (format!("interface_{name}"), lost)).collect()
    }

    fn read(interface: &str) -> [u64; LOST_BEFORE.len()] {
        LOST_BEFORE.map(|name| {
            let text = std::fs::read_to_string(format!("/sys/class/net/{interface}/statistics/{name}"));
            text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        })
    }
}
