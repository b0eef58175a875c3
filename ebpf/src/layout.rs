//! What the BPF programs and this crate agree on: `bpf/nagare.h`, said in Rust.

/// Index of the counter of packets seen.
pub(crate) const COUNTER_SEEN: u32 = 0;
/// Index of the counter of packets for which no socket stood in the map.
pub(crate) const COUNTER_NO_SOCKET: u32 = 1;
/// Index of the counter of packets redirected to worker 0; those of the others follow.
pub(crate) const COUNTER_REDIRECTED: u32 = 2;

/// `struct nagare_config`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Config {
    pub seed: u32,
    pub workers: u32,
    pub octets_max: u32,
    pub inner: u32,
}

/// `struct nagare_generator_config`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GeneratorConfig {
    pub flows: u32,
    pub ifindex: u32,
}

const _: () = assert!(size_of::<Config>() == 16 && size_of::<GeneratorConfig>() == 8);

// SAFETY: `repr(C)` with integers and no padding (asserted above): any bytes are a value.
unsafe impl aya::Pod for Config {}
// SAFETY: likewise.
unsafe impl aya::Pod for GeneratorConfig {}

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
        assert_eq!(defined("NAGARE_COUNTER_NO_SOCKET"), Some(COUNTER_NO_SOCKET));
        assert_eq!(defined("NAGARE_COUNTER_REDIRECTED"), Some(COUNTER_REDIRECTED));
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
