//! Sends whole frames out of an interface.

use socket2::{Domain, Socket, Type};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// A packet socket bound to an interface of the calling thread's network namespace.
pub struct Sender(Socket);

/// What became of frames that were to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames that the interface took.
    pub frames: u64,
    /// Octets of those.
    pub octets: u64,
    /// Frames longer than the interface's MTU: never sent.
    pub too_long: u64,
}

/// When, of the whole time, a part of all frames is sent: the rate goes up and down three times.
fn waves(part: f64) -> f64 {
    const TURN: f64 = 3.0 * std::f64::consts::TAU;
    part + 0.8 * (part * TURN).sin() / TURN
}

impl Sender {
    /// Opens it. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// No such interface, or no such capability.
    pub fn open(interface: &str) -> io::Result<Sender> {
        let index = nix::net::if_::if_nametoindex(interface)?;
        // Protocol 0: nothing is received here.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        // SAFETY: all zeroes are a value of this C structure of integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        // SAFETY: the pointer and the length are those of a valid `sockaddr_ll`.
        let outcome = unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Sender(socket))
    }

    /// Sends frames over `over`, in three waves; waits where the interface is busy.
    ///
    /// # Errors
    /// The interface's, but for frames that are too long: those are counted.
    pub fn send_all(&self, frames: &[Vec<u8>], over: Duration) -> io::Result<Sent> {
        let start = Instant::now();
        let mut sent = Sent::default();
        for (number, frame) in frames.iter().enumerate() {
            let due = over.mul_f64(waves(number as f64 / frames.len() as f64));
            if let Some(early) = due.checked_sub(start.elapsed())
                && early > Duration::from_millis(1)
            {
                std::thread::sleep(early);
            }
            self.send(frame, &mut sent)?;
        }
        Ok(sent)
    }

    fn send(&self, frame: &[u8], sent: &mut Sent) -> io::Result<()> {
        loop {
            match self.0.send(frame) {
                Ok(octets) => {
                    sent.frames += 1;
                    sent.octets += octets as u64;
                    return Ok(());
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EMSGSIZE) => {
                        sent.too_long += 1;
                        return Ok(());
                    }
                    Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR) => std::thread::sleep(Duration::from_micros(50)),
                    _ => return Err(error),
                },
            }
        }
    }
}
