//! An interface that the host itself uses: tc programs copy the headers of what comes in and goes out, and everything passes.
//!
//! Each worker has one BPF ring buffer. What finds it full is not metered, and counted.

use super::guard;
use super::{
    CaptureError, CaptureOptions, Detached, Frame, InterfaceCapture, NicLosses, Share, Taken, clock, counted, link_of,
};
use crate::books::{CaptureBooks, ReadCapture};
use nagare_ebpf::{Counters, Host, HostFrame, HostRing};
use nagare_wire::packet::LinkType;
use nix::poll::{PollFd, PollFlags};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A packet that was in a program when it was detached is in its ring after this.
const SETTLE: Duration = Duration::from_millis(20);

/// An interface of the host that is being captured from. Dropping it detaches the programs.
pub struct HostCapture {
    interface: String,
    host: Arc<Mutex<Host>>,
    nic: Arc<NicLosses>,
    shares: Vec<Share>,
    detached: Detached,
    way: &'static str,
    directions: &'static str,
    workers: u32,
    memory_bytes: u64,
}

impl HostCapture {
    /// Attaches to both directions of `interface`; of the loopback, where all that goes out comes in again, to one.
    ///
    /// # Errors
    /// Without the capabilities, with more workers than there are rings, or where the kernel refuses.
    pub fn open(interface: &str, options: &CaptureOptions) -> Result<HostCapture, CaptureError> {
        let ifindex = guard::interface_index(interface)?;
        let link = link_of(interface)?;
        let ring_octets = options.ring_frames.saturating_mul(size_of::<HostFrame>() as u32).next_power_of_two();
        let ring_octets = ring_octets.max(1 << 16);
        let mut host = Host::load(options.steering(), ring_octets, link == LinkType::Ethernet)?;
        let detached = Detached::default();
        let mut shares = Vec::new();
        for worker in 0..options.workers.max(1) {
            let (ring, detached) = (host.take_ring(worker)?, detached.clone());
            shares.push(Share::Host(HostSource { ring, link, ifindex, number: options.number, detached }));
        }
        let is_loopback = guard::hardware_type(interface)? == guard::LOOPBACK;
        let way = host.attach(interface, !is_loopback)?;
        Ok(HostCapture {
            interface: interface.into(),
            host: Arc::new(Mutex::new(host)),
            nic: Arc::new(NicLosses::new(interface)),
            shares,
            detached,
            way,
            directions: if is_loopback { "what comes in" } else { "both directions" },
            workers: options.workers.max(1),
            memory_bytes: u64::from(ring_octets) * u64::from(options.workers.max(1)),
        })
    }
}

impl InterfaceCapture for HostCapture {
    fn startup_line(&self) -> String {
        let (interface, way, directions, workers) = (&self.interface, self.way, self.directions, self.workers);
        let workers = counted(workers as usize, "worker");
        format!("{interface}: mode host, {directions} by {way}, {workers}; all traffic passes")
    }

    fn take_shares(&mut self) -> Vec<Share> {
        std::mem::take(&mut self.shares)
    }

    fn books(&self) -> ReadCapture {
        let (host, interface, nic) = (self.host.clone(), self.interface.clone(), self.nic.clone());
        Box::new(move || {
            let counters = host.lock().unwrap_or_else(PoisonError::into_inner).counters().unwrap_or_else(|error| {
                log::error!("{interface}: {error}");
                Counters::default()
            });
            CaptureBooks {
                seen: counters.seen,
                unsteered: vec![
                    ("drop.host_ring_full".into(), counters.lost),
                    ("ignore.truncated".into(), counters.unreadable),
                ],
                workers: counters.steered.into_iter().map(|steered| (steered, Vec::new())).collect(),
                figures: nic.figures(),
            }
        })
    }

    fn memory(&self) -> (&'static str, u64) {
        ("BPF ring buffers", self.memory_bytes)
    }

    fn detach(&mut self) {
        self.detached.set(SETTLE, || self.host.lock().unwrap_or_else(PoisonError::into_inner).detach());
    }
}

impl Drop for HostCapture {
    fn drop(&mut self) {
        self.detach();
    }
}

/// A worker's share of an interface of the host.
pub struct HostSource {
    ring: HostRing,
    link: LinkType,
    ifindex: u32,
    number: u8,
    detached: Detached,
}

impl Taken for HostSource {
    fn take(&mut self, budget: usize, each: &mut impl FnMut(Frame<'_>)) -> io::Result<usize> {
        let (link, interface, since_1970_ns) = (self.link, self.number, clock::since_1970_ns());
        for frames in 0..budget {
            let taken = self.ring.next(|frame| {
                each(Frame {
                    link,
                    bytes: &frame.octets[..usize::from(frame.captured).min(frame.octets.len())],
                    wire_length: frame.length,
                    time_ns: frame.time_ns.wrapping_add(since_1970_ns),
                    interface,
                    packets: frame.packets.max(1),
                });
            });
            if !taken {
                return Ok(frames);
            }
        }
        Ok(budget)
    }

    fn wait_for<'a>(&'a self, descriptors: &mut Vec<PollFd<'a>>) -> bool {
        descriptors.push(PollFd::new(self.ring.as_fd(), PollFlags::POLLIN));
        true
    }

    fn check(&self) -> io::Result<()> {
        guard::check_exists(self.ifindex)
    }

    fn is_detached(&self) -> bool {
        self.detached.is_set()
    }
}
