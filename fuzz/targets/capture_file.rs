//! Bytes as a capture file, plain, compressed or through a pipe, by the probe's real reader and its thread.
//!
//! The first octet chooses how the file is packed, the second what the pipe is given at once and when a worker leaves. The
//! same file is read plain by one worker, and packed by two: both must find the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nagare_probe::capture::CaptureSource;
use nagare_probe::capture::file::{
    FileCapture, FileCounters, FileError, FileFigures, FileOptions, FileSource, PACKET_MAX,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// What was found in a file.
#[derive(Debug, Default, PartialEq)]
struct Found {
    figures: FileFigures,
    /// Octets of the frames, captured and on the wire.
    octets: [u64; 2],
    /// What is wrong with it, with the place; or its format.
    outcome: String,
}

fuzz_target!(|data: &[u8]| {
    let Some((&[packing, choice], bytes)) = data.split_first_chunk::<2>() else { return };
    let plain = read(&memory_file(bytes), 1, usize::MAX);
    match packing % 6 {
        0 => assert_eq!(read(&memory_file(bytes), 2, usize::MAX), plain),
        1 => assert_eq!(read(&memory_file(&gzip(bytes)), 2, usize::MAX), plain),
        2 => assert_eq!(read(&memory_file(&zstd::encode_all(bytes, 1).expect("memory")), 2, usize::MAX), plain),
        3 => assert_eq!(read(&memory_file(&bzip2(bytes)), 2, usize::MAX), plain),
        4 => assert_eq!(piped(bytes, usize::from(choice)), plain),
        _ => {
            read(&memory_file(bytes), 2, usize::from(choice));
        }
    }
});

/// Reads a file with a number of workers, each of which leaves after so many frames.
fn read(file: &File, workers: usize, leaves_after: usize) -> Found {
    read_path(&format!("/proc/self/fd/{}", file.as_raw_fd()), workers, leaves_after)
}

fn read_path(path: &str, workers: usize, leaves_after: usize) -> Found {
    let mut found = Found::default();
    let (capture, sources) = match FileCapture::open(path, workers, FileOptions { seed: 7, ..FileOptions::default() }) {
        Ok(opened) => opened,
        Err(error) => return Found { outcome: outcome(&error), ..found },
    };
    let counters = capture.counters();
    let mut handed = 0;
    // A worker that waits must not keep the reader from the others: each has its own thread, as in the probe.
    thread::scope(|scope| {
        let workers: Vec<_> = sources.into_iter().map(|source| scope.spawn(|| work(source, leaves_after))).collect();
        for worker in workers {
            let (frames, octets) = worker.join().expect("a worker that panics ends the target");
            handed += frames;
            found.octets = [found.octets[0] + octets[0], found.octets[1] + octets[1]];
        }
    });
    let outcome = capture.outcome().map_or_else(|error| outcome(&error), |summary| summary.format.to_string());
    let figures = at_the_end(counters);
    assert_eq!(figures.handed, handed);
    Found { figures, outcome, ..found }
}

fn work(mut source: FileSource, leaves_after: usize) -> (u64, [u64; 2]) {
    let (mut frames, mut octets, mut clock_ns) = (0, [0, 0], 0);
    while frames < leaves_after as u64 {
        let budget = (leaves_after - frames as usize).min(64);
        let received = source.receive(budget, Duration::from_secs(1), |frame| {
            assert!(frame.bytes.len() <= PACKET_MAX);
            octets = [octets[0] + frame.bytes.len() as u64, octets[1] + u64::from(frame.wire_len)];
        });
        let received = received.expect("a capture file's fault is in its outcome");
        assert!(received.frames <= budget && received.now_ns >= clock_ns, "time does not go back");
        clock_ns = received.now_ns;
        frames += received.frames as u64;
        if received.end {
            break;
        }
    }
    (frames, octets)
}

/// The figures once the reader's thread has ended, balanced.
fn at_the_end(counters: Arc<FileCounters>) -> FileFigures {
    while Arc::strong_count(&counters) > 1 {
        thread::yield_now();
    }
    let figures = counters.figures();
    assert_eq!(figures.packets, figures.handed + figures.ignore_link_type + figures.stopped);
    assert_eq!(figures.in_flight, 0);
    figures
}

/// What is wrong and where, without the file's name and how it is compressed.
fn outcome(error: &FileError) -> String {
    assert!(!error.to_string().is_empty());
    format!("{:?} at {} after {}", error.fault, error.offset, error.packets)
}

fn memory_file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create(c"capture", MFdFlags::empty()).expect("memory for a file"));
    file.write_all(bytes).expect("memory for a file");
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut packed).expect("memory");
    packed
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    bzip2::read::BzEncoder::new(bytes, bzip2::Compression::fast()).read_to_end(&mut packed).expect("memory");
    packed
}

/// The file comes through a pipe, so many octets at once, so that headers and packets arrive in parts.
fn piped(bytes: &[u8], at_once: usize) -> Found {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    thread::scope(|scope| {
        // The pipe has room for all, should the reader give up: scripts/fuzz keeps inputs short.
        scope.spawn(move || {
            for part in bytes.chunks(at_once.max(1) * 16) {
                writer.write_all(part).expect("a pipe that is read, or has room");
                thread::yield_now();
            }
        });
        read_path(&path, 2, usize::MAX)
    })
}
