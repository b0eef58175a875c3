//! Where frames come from: an interface by AF_XDP, or a capture file.

pub mod file;
pub mod guard;
pub mod xdp;

use nagare_wire::packet::LinkType;
use std::io;
use std::time::Duration;

/// One frame, lent for as long as the closure that it is handed to runs.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// When it was captured, in nanoseconds since 1970.
    pub time_ns: u64,
    /// What was captured of it.
    pub bytes: &'a [u8],
    /// Its octets on the wire.
    pub wire_len: u32,
    /// What it begins with.
    pub link: LinkType,
}

/// What one call of [`CaptureSource::receive`] did.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Frames handed on.
    pub frames: usize,
    /// The source's clock, in nanoseconds since 1970.
    pub now_ns: u64,
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
