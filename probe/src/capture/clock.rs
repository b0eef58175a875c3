//! The system's clocks, in nanoseconds.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

/// What is to be added to a time of the kernel's monotonic clock to make it one since 1970.
pub fn since_1970_ns() -> u64 {
    now_ns().wrapping_sub(read(ClockId::CLOCK_MONOTONIC))
}

fn read(clock: ClockId) -> u64 {
    // The clocks that are read here are on every Linux.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
