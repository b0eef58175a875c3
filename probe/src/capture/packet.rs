//! AF_PACKET with TPACKET_V3 and fanout: any interface, where XDP cannot be attached.
//!
//! Each worker has a socket with a ring of blocks that it shares with the kernel; a BPF program chooses the socket by the same
//! hash as everywhere. What finds a ring full is lost, and counted by the kernel.

use super::guard::{self, OffloadGuard, Promiscuous};
use super::{
    CaptureError, CaptureOptions, Detached, Frame, InterfaceCapture, NicLosses, Share, Taken, counted, link_of,
};
use crate::books::{CaptureBooks, ReadCapture};
use crate::sys::{self, PacketRing};
use nagare_ebpf::Fanout;
use nagare_wire::packet::LinkType;
use nix::poll::{PollFd, PollFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Octets of a block: a block goes to the worker when it is full, or after [`RETIRE_MS`].
const BLOCK: u32 = 1 << 18;
/// Milliseconds after which the worker gets a block that is not full.
const RETIRE_MS: u32 = 10;
/// What is in blocks when the sockets take no more is with the workers after this.
const SETTLE: Duration = Duration::from_millis(5 * RETIRE_MS as u64);
/// Octets of a frame's place in a ring, beside its own.
const OVERHEAD: u32 = 96;

/// A worker's socket as the books see it.
#[derive(Default)]
struct Seen {
    /// Packets, with those that were dropped.
    packets: u64,
    dropped: u64,
}

/// An interface that is being captured from by AF_PACKET. Dropping it puts the interface back.
pub struct PacketCapture {
    interface: String,
    sockets: Arc<Vec<(OwnedFd, Mutex<Seen>)>>,
    nic: Arc<NicLosses>,
    shares: Vec<Share>,
    detached: Detached,
    memory_bytes: u64,
    _fanout: Option<Fanout>,
    _offloads: OffloadGuard,
    _promiscuous: Promiscuous,
}

impl PacketCapture {
    /// Opens a socket for each worker.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`, where there is no memory for the rings, or the kernel refuses.
    pub fn open(interface: &str, options: &CaptureOptions) -> Result<PacketCapture, CaptureError> {
        let (ifindex, link) = (guard::interface_index(interface)?, link_of(interface)?);
        let workers = options.workers.max(1);
        let promiscuous = Promiscuous::new(interface)?;
        let offloads = OffloadGuard::new(interface)?;
        let fanout = match workers {
            1 => None,
            _ => Some(Fanout::load(options.steering(), link == LinkType::Ethernet)?),
        };
        let octets = u64::from(options.ring_frames) * u64::from(options.snaplen + OVERHEAD);
        let blocks = u32::try_from(octets.div_ceil(u64::from(BLOCK))).unwrap_or(u32::MAX).max(2);
        let detached = Detached::default();
        let group = std::process::id() as u16 ^ (ifindex as u16).rotate_left(8);
        let (mut sockets, mut shares) = (Vec::new(), Vec::new());
        for _ in 0..workers {
            let ring = PacketRing::open(ifindex, BLOCK, blocks, RETIRE_MS)
                .map_err(|error| format!("cannot open an AF_PACKET ring of {blocks} blocks on {interface}: {error}"))?;
            if let Some(fanout) = &fanout {
                sys::join_fanout(&ring, group, fanout.fd()?)
                    .map_err(|error| format!("cannot join the workers' sockets on {interface}: {error}"))?;
            }
            sockets.push((ring.as_fd().try_clone_to_owned()?, Mutex::default()));
            shares.push(PacketSource { ring, link, ifindex, number: options.number, detached: detached.clone() });
        }
        // Only now do packets come: each socket would have had its copy of all of them before it had joined the others.
        for (socket, _) in &sockets {
            sys::accept_packets(socket, options.snaplen)?;
        }
        Ok(PacketCapture {
            interface: interface.into(),
            sockets: Arc::new(sockets),
            nic: Arc::new(NicLosses::new(interface)),
            shares: shares.into_iter().map(Share::Packet).collect(),
            detached,
            memory_bytes: u64::from(BLOCK) * u64::from(blocks) * u64::from(workers),
            _fanout: fanout,
            _offloads: offloads,
            _promiscuous: promiscuous,
        })
    }
}

impl InterfaceCapture for PacketCapture {
    fn startup_line(&self) -> String {
        format!("{}: mode packet (AF_PACKET), {}", self.interface, counted(self.sockets.len(), "worker"))
    }

    fn take_shares(&mut self) -> Vec<Share> {
        std::mem::take(&mut self.shares)
    }

    fn books(&self) -> ReadCapture {
        let (sockets, interface, nic) = (self.sockets.clone(), self.interface.clone(), self.nic.clone());
        Box::new(move || {
            let read = |(socket, seen): &(OwnedFd, Mutex<Seen>)| {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                match sys::packet_statistics(socket) {
                    // The kernel begins anew after each reading.
                    Ok((packets, dropped)) => {
                        seen.packets += u64::from(packets);
                        seen.dropped += u64::from(dropped);
                    }
                    Err(error) => log::error!("{interface}: the losses of AF_PACKET cannot be read: {error}"),
                }
                (seen.packets, vec![("drop.rx_ring_full".to_string(), seen.dropped)])
            };
            let workers: Vec<_> = sockets.iter().map(read).collect();
            let seen = workers.iter().map(|(packets, _)| packets).sum();
            CaptureBooks { seen, unsteered: Vec::new(), workers, figures: nic.figures() }
        })
    }

    fn memory(&self) -> (&'static str, u64) {
        ("AF_PACKET rings", self.memory_bytes)
    }

    fn detach(&mut self) {
        self.detached.set(SETTLE, || {
            for (socket, _) in self.sockets.iter() {
                if let Err(error) = sys::accept_packets(socket, 0) {
                    log::error!("{}: the socket cannot be told to take no more: {error}", self.interface);
                }
            }
        });
    }
}

impl Drop for PacketCapture {
    fn drop(&mut self) {
        self.detach();
    }
}

/// A worker's share of an interface by AF_PACKET.
pub struct PacketSource {
    ring: PacketRing,
    link: LinkType,
    ifindex: u32,
    number: u8,
    detached: Detached,
}

impl Taken for PacketSource {
    fn take(&mut self, budget: usize, each: &mut impl FnMut(Frame<'_>)) -> io::Result<usize> {
        let (link, interface, tags) = (self.link, self.number, self.link == LinkType::Ethernet);
        Ok(self.ring.take(budget, tags, |packet| {
            each(Frame {
                link,
                bytes: packet.octets,
                wire_length: packet.length,
                time_ns: packet.time_ns,
                interface,
                packets: 1,
            });
        }))
    }

    fn wait_for<'a>(&'a self, descriptors: &mut Vec<PollFd<'a>>) -> bool {
        descriptors.push(PollFd::new(self.ring.as_fd(), PollFlags::POLLIN));
        !self.ring.is_ready()
    }

    fn check(&self) -> io::Result<()> {
        guard::check_exists(self.ifindex)
    }

    fn is_detached(&self) -> bool {
        self.detached.is_set()
    }
}
