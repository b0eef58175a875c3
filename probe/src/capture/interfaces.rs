//! Several interfaces at once, each in its own way; and which way that is.

use super::guard::{self, GuardError};
use super::host::HostCapture;
use super::packet::PacketCapture;
use super::xdp::{XdpCapture, XdpError};
use super::{CaptureError, CaptureOptions, CaptureSource, Frame, InterfaceCapture, Received, Share, Taken, clock};
use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Duration;

/// `--mode`: how interfaces are captured from.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// host where the host uses the interface, else mirror, else packet
    #[default]
    Auto,
    /// A SPAN or tap port: XDP takes its frames away from the host
    Mirror,
    /// An interface that the host uses: headers of both directions are copied, everything passes
    Host,
    /// AF_PACKET, where XDP cannot be attached
    Packet,
}

/// Begins to capture from an interface.
///
/// # Errors
/// Where the interface is missing or down, or the kernel refuses; in [`Mode::Mirror`] also where the host uses the interface and
/// not `force`.
pub fn open(
    interface: &str,
    mode: Mode,
    force: bool,
    options: &CaptureOptions,
) -> Result<Box<dyn InterfaceCapture>, CaptureError> {
    guard::refuse_unless_up(interface)?;
    match mode {
        Mode::Mirror => {
            guard::refuse_unless_dedicated(interface, force)?;
            Ok(Box::new(XdpCapture::open(interface, options)?))
        }
        Mode::Host => Ok(Box::new(HostCapture::open(interface, options)?)),
        Mode::Packet => Ok(Box::new(PacketCapture::open(interface, options)?)),
        Mode::Auto => choose(interface, force, options),
    }
}

fn choose(interface: &str, force: bool, options: &CaptureOptions) -> Result<Box<dyn InterfaceCapture>, CaptureError> {
    match guard::refuse_unless_dedicated(interface, force) {
        Err(GuardError::InUse { evidence, .. }) => {
            log::info!("{interface}: the host uses it, {evidence}: mode host, which takes nothing away");
            return Ok(Box::new(HostCapture::open(interface, options)?));
        }
        outcome => outcome?,
    }
    let why = match XdpCapture::open(interface, options) {
        Ok(capture) => return Ok(Box::new(capture)),
        // With these AF_PACKET would see nothing, or fail likewise.
        Err(
            error @ (XdpError::Program(nagare_ebpf::Error::AlreadyAttached { .. } | nagare_ebpf::Error::NotPermitted)
            | XdpError::Umem { .. }),
        ) => return Err(error.into()),
        Err(error) => error,
    };
    log::warn!("{interface}: XDP cannot be used ({why}): mode packet, which is slower");
    Ok(Box::new(PacketCapture::open(interface, options)?))
}

/// From its stamp a frame takes so long to its ring, at most, where no CPU is put aside.
const STAMP_TO_RING_NS: u64 = 20_000;

/// A worker's shares of all interfaces.
pub struct Interfaces {
    shares: Vec<Share>,
    /// Whose turn it is to be first.
    first: usize,
}

impl Interfaces {
    /// A source over these shares.
    pub fn new(shares: Vec<Share>) -> Interfaces {
        Interfaces { shares, first: 0 }
    }

    fn take(&mut self, budget: usize, each: &mut impl FnMut(Frame<'_>)) -> io::Result<usize> {
        let mut frames = 0;
        self.first = (self.first + 1) % self.shares.len().max(1);
        // Each its part, so that none is read far ahead of the others.
        let part = budget.div_ceil(self.shares.len().max(1));
        let (later, sooner) = self.shares.split_at_mut(self.first);
        for share in sooner.iter_mut().chain(later) {
            frames += share.take(part.min(budget - frames), each)?;
        }
        Ok(frames)
    }

    /// To be asked before the rings are read: what was stamped by now is in them, give or take the time from stamp to ring. Blocks
    /// of AF_PACKET come up to ten milliseconds later: several interfaces of that mode are in order to within as much.
    fn horizon_ns(&self, detached: bool) -> u64 {
        match self.shares.iter().map(Share::rings).sum::<usize>() {
            0 | 1 => u64::MAX,
            _ if detached => u64::MAX,
            _ => clock::now_ns().saturating_sub(STAMP_TO_RING_NS),
        }
    }

    /// Sleeps until a frame comes, `wait` at the most.
    fn sleep(&self, wait: Duration) -> io::Result<()> {
        self.shares.iter().for_each(Share::drive);
        let mut descriptors = Vec::new();
        for share in &self.shares {
            if !share.wait_for(&mut descriptors) {
                return Ok(());
            }
        }
        let wait = wait.max(Duration::from_millis(1));
        match poll(&mut descriptors, PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)) {
            Ok(0) => self.shares.iter().try_for_each(Share::check),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl CaptureSource for Interfaces {
    fn receive(&mut self, budget: usize, wait: Duration, mut each: impl FnMut(Frame<'_>)) -> io::Result<Received> {
        // Read before the rings are: what was in them when it was set is found below.
        let detached = self.shares.iter().all(Share::is_detached);
        let mut horizon_ns = self.horizon_ns(detached);
        let mut frames = self.take(budget, &mut each)?;
        if frames == 0 && !detached && !wait.is_zero() {
            self.sleep(wait)?;
            horizon_ns = self.horizon_ns(false);
            frames = self.take(budget, &mut each)?;
        }
        Ok(Received { frames, now_ns: clock::now_ns(), horizon_ns, end: detached && frames == 0 })
    }
}
