//! What the BPF programs and this crate agree on: `bpf/nagare.h`, said in Rust.

/// Index of the counter of packets seen.
pub(crate) const COUNTER_SEEN: u32 = 0;
/// Index of the counter of packets for which no socket stood in the map, or whose ring was full.
pub(crate) const COUNTER_LOST: u32 = 1;
/// Index of the counter of packets that were shorter than a header.
pub(crate) const COUNTER_UNREADABLE: u32 = 2;
/// Index of the counter of packets given to worker 0; those of the others follow.
pub(crate) const COUNTER_STEERED: u32 = 3;
/// Workers that a host's interface can have.
pub const RINGS_MAX: u32 = 8;

/// What stands before a packet in its frame of AF_XDP (`struct nagare_metadata`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Metadata {
    /// When the program saw it, nanoseconds of the monotonic clock.
    pub time_ns: u64,
    /// Octets that the frame had on the wire.
    pub length: u32,
    /// [`Metadata::MARK`] where the program has written this; whoever reads it wipes it out.
    pub mark: u32,
}

impl Metadata {
    /// See [`Metadata::mark`].
    pub const MARK: u32 = 0x6e67_6172;
}

/// What the ring of a host's interface holds of a frame (`struct nagare_frame`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostFrame {
    /// When the program saw it, nanoseconds of the monotonic clock.
    pub time_ns: u64,
    /// Octets of the frame.
    pub length: u32,
    /// Octets of it in `octets`.
    pub captured: u16,
    /// Packets that it was or will be on the wire.
    pub packets: u16,
    /// The beginning of the frame, of which `captured` octets count.
    pub octets: [u8; 256],
}

/// `struct nagare_config`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Config {
    pub seed: u32,
    pub workers: u32,
    pub octets_max: u32,
    pub inner: u32,
    pub has_ethernet: u32,
}

/// `struct nagare_generator_config`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GeneratorConfig {
    pub interval: u64,
    pub flows: u32,
    pub ifindex: u32,
    /// Of these the first twelve.
    pub lengths: [u16; 16],
}

/// What the load generator counts.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GeneratorState {
    pub made: u64,
    pub began_ns: u64,
}

const _: () = assert!(size_of::<Metadata>() == 16 && size_of::<HostFrame>() == 272);
const _: () = assert!(size_of::<Config>() == 20 && size_of::<GeneratorConfig>() == 48);

// SAFETY: `repr(C)` with integers and no padding (asserted above): any bytes are a value.
unsafe impl aya::Pod for Config {}
// SAFETY: likewise.
unsafe impl aya::Pod for GeneratorConfig {}
// SAFETY: likewise.
unsafe impl aya::Pod for GeneratorState {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_those_of_the_header() {
        let header = include_str!("../bpf/nagare.h");
        let defined = |name: &str| {
            let line = header.lines().find(|line| line.starts_with(&format!("#define {name} ")));
            line.and_then(|line| line.split_whitespace().nth(2)?.parse::<u32>().ok())
        };
        assert_eq!(defined("NAGARE_COUNTER_SEEN"), Some(COUNTER_SEEN));
        assert_eq!(defined("NAGARE_COUNTER_LOST"), Some(COUNTER_LOST));
        assert_eq!(defined("NAGARE_COUNTER_UNREADABLE"), Some(COUNTER_UNREADABLE));
        assert_eq!(defined("NAGARE_COUNTER_STEERED"), Some(COUNTER_STEERED));
        assert_eq!(defined("NAGARE_RINGS_MAX"), Some(RINGS_MAX));
        assert!(header.contains(&format!("NAGARE_METADATA_MARK {:#x}", Metadata::MARK)));
        use nagare_wire::packet::{EXTENSION_HEADERS_MAX, GTP_EXTENSIONS_MAX, STACK_MAX, TUNNELS_MAX};
        for (name, of_the_decoder) in [
            ("NAGARE_STACK_MAX", STACK_MAX),
            ("NAGARE_EXTENSION_HEADERS_MAX", EXTENSION_HEADERS_MAX),
            ("NAGARE_TUNNELS_MAX", TUNNELS_MAX),
            ("NAGARE_GTP_EXTENSIONS_MAX", GTP_EXTENSIONS_MAX),
        ] {
            assert_eq!(defined(name), Some(of_the_decoder as u32), "{name}: both must give up at the same header");
        }
    }
}
