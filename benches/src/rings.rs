//! AF_XDP alone: frames are taken from their rings and given back, and nothing is made of them. What a probe can reach at most.

use nagare_probe::capture::interfaces::Interfaces;
use nagare_probe::capture::xdp::XdpCapture;
use nagare_probe::capture::{CaptureOptions, CaptureSource, InterfaceCapture};
use nagare_service::run::stop_on_signals;
use std::error::Error;
use std::time::Duration;

/// Runs until SIGTERM or SIGINT; prints the number of frames.
///
/// # Errors
/// Whatever keeps it from capturing.
pub fn run(interface: &str) -> Result<(), Box<dyn Error>> {
    let stop = stop_on_signals()?;
    let mut capture = XdpCapture::open(interface, &CaptureOptions::default())?;
    let mut source = Interfaces::new(capture.take_shares());
    let mut frames = 0u64;
    while !stop.is_set() {
        frames += source.receive(64, Duration::from_millis(50), |_| ())?.frames as u64;
    }
    capture.detach();
    loop {
        let received = source.receive(64, Duration::ZERO, |_| ())?;
        frames += received.frames as u64;
        if received.end {
            break;
        }
    }
    println!("{frames}");
    Ok(())
}
