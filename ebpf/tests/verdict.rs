//! The steering program, run by the kernel on single frames, chooses the worker that `nagare_wire::steer` names.

use nagare_ebpf::{Error, Program};
use nagare_wire::fragment::FragmentTable;
use nagare_wire::packet::{self, LinkType};
use nagare_wire::steer;
use proptest::prelude::*;
use socket2::{Domain, Socket, Type};
use std::os::fd::AsFd;

const SEED: u32 = 0x5eed_1e55;
const WORKERS: u32 = 7;
/// Room for every first fragment of a test: a table that forgot one would not agree with the kernel's, which forgets later.
const DATAGRAMS: usize = 1 << 18;
const XDP_DROP: u32 = 1;
const XDP_REDIRECT: u32 = 4;

/// The program with a socket for each worker, and the decoder's table of fragments beside it.
struct Bench {
    program: Program,
    _sockets: Vec<Socket>,
    fragments: FragmentTable,
}

impl Bench {
    /// `None` where the kernel does not permit BPF.
    fn new() -> Option<Bench> {
        let mut program = match Program::load(SEED, WORKERS, 1, 1792) {
            Ok(program) => program,
            Err(Error::NotPermitted) => {
                println!("skipped: {}", Error::NotPermitted);
                assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "nothing may be skipped where CI=true");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let sockets: Vec<Socket> = (0..WORKERS)
            .map(|worker| {
                let socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).unwrap();
                program.register(0, worker, socket.as_fd()).unwrap();
                socket
            })
            .collect();
        Some(Bench { program, _sockets: sockets, fragments: FragmentTable::new(DATAGRAMS, 1) })
    }

    /// The worker that the program hands `frame` to.
    fn steered(&self, frame: &[u8]) -> u32 {
        let before = self.program.counters().unwrap();
        assert_eq!(self.program.test_run(frame).unwrap(), XDP_REDIRECT);
        let after = self.program.counters().unwrap();
        assert_eq!(after.seen, before.seen + 1);
        assert_eq!(after.seen, after.redirected.iter().sum::<u64>() + after.no_socket);
        let chosen = (0..WORKERS as usize).find(|&w| after.redirected[w] > before.redirected[w]);
        chosen.expect("one worker's counter moved") as u32
    }

    /// The worker that the decoder's key leads to; 0 for what the program does not read.
    fn expected(&mut self, frame: &[u8]) -> u32 {
        let Ok(mut observation) = packet::decode(LinkType::Ethernet, frame, frame.len() as u32) else { return 0 };
        if !plain(frame) {
            return 0;
        }
        self.fragments.resolve(&mut observation, 0);
        steer::worker(steer::hash(&observation.key, SEED), WORKERS)
    }

    fn check(&mut self, frame: &[u8]) -> u32 {
        let steered = self.steered(frame);
        assert_eq!(steered, self.expected(frame), "{frame:02x?}");
        steered
    }
}

/// Whether IP follows the Ethernet header after four VLAN tags at most.
fn plain(frame: &[u8]) -> bool {
    let kind = |at: usize| frame.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let tags = (0..5).take_while(|tag| matches!(kind(12 + 4 * tag), 0x8100 | 0x88a8 | 0x9100 | 0x9200)).count();
    tags <= 4 && matches!(kind(12 + 4 * tags), 0x0800 | 0x86dd)
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

const MACS: &str = "020000000002 020000000001";
const ENDS_4: (&str, &str) = ("0a000001", "c0000207");
const ENDS_6: (&str, &str) = ("20010db8000000000000000000000001", "20010db800010000a1b2c3d4e5f60789");

/// An IPv4 packet: protocol, the word of fragment flags and offset, options, payload; `back` swaps the ends.
fn v4(protocol: u8, fragment: u16, options: &str, payload: &str, back: bool) -> String {
    let (source, destination) = if back { (ENDS_4.1, ENDS_4.0) } else { ENDS_4 };
    let (options_length, length) = (hex(options).len(), hex(options).len() + 20 + hex(payload).len());
    let version_length = 0x45 + options_length / 4;
    format!(
        "0800 {version_length:02x}00{length:04x} 1234{fragment:04x} 40{protocol:02x}0000 {source}{destination} {options} {payload}"
    )
}

/// An IPv6 packet: the first next header, what follows, and the ends swapped where `back`.
fn v6(next: u8, payload: &str, back: bool) -> String {
    let (source, destination) = if back { (ENDS_6.1, ENDS_6.0) } else { ENDS_6 };
    format!("86dd 60000000 {:04x} {next:02x} 40 {source}{destination} {payload}", hex(payload).len())
}

/// A transport header with these ports.
fn ports(back: bool) -> &'static str {
    if back { "01bbd431 0000000000000000" } else { "d43101bb 0000000000000000" }
}

/// Frames in both directions, by name.
fn conversations() -> Vec<(String, [Vec<u8>; 2])> {
    let mut all = Vec::new();
    let mut add = |name: &str, of: &dyn Fn(bool) -> String| {
        all.push((name.to_string(), [false, true].map(|back| hex(&format!("{MACS}{}", of(back))))));
    };
    for protocol in [1, 6, 17, 33, 47, 50, 51, 58, 132, 136] {
        add(&format!("IPv4 protocol {protocol}"), &|back| v4(protocol, 0, "", ports(back), back));
        add(&format!("IPv6 protocol {protocol}"), &|back| v6(protocol, ports(back), back));
    }
    add("IPv4 with options", &|back| v4(6, 0, "0101010101010101", ports(back), back));
    for tags in ["81000005", "88a80007 81000005", "91000001 81000002", "81000001810000028100000381000004"] {
        add(&format!("tags {tags}"), &|back| format!("{tags}{}", v4(17, 0, "", ports(back), back)));
        add(&format!("tags {tags} v6"), &|back| format!("{tags}{}", v6(17, ports(back), back)));
    }
    let five = "8100000181000002810000038100000481000005";
    add("five tags", &|back| format!("{five}{}", v4(17, 0, "", ports(back), back)));
    add("MPLS", &|back| format!("8847 00010140 {}", &v4(17, 0, "", ports(back), back)[5..]));
    add("hop by hop, routing, destination", &|back| {
        v6(0, &format!("2b00000000000000 3c01000000000000 0000000000000000 0600000000000000 {}", ports(back)), back)
    });
    for headers in [7, 8, 9] {
        let pass = "3c00000000000000".repeat(headers - 1);
        add(&format!("{headers} extension headers"), &|back| {
            v6(60, &format!("{pass}1100000000000000{}", ports(back)), back)
        });
    }
    add("atomic fragment", &|back| v6(44, &format!("1100000000000007{}", ports(back)), back));
    add("length 0", &|back| v4(6, 0, "", ports(back), back).replacen("45000020", "45000000", 1));
    add("ARP", &|_| "0806 0001080006040001".into());
    add("LLC", &|_| "0026 424203000000".into());
    all
}

#[test]
fn both_directions_go_where_the_decoder_says() {
    let Some(mut bench) = Bench::new() else { return };
    let mut workers = [0u32; WORKERS as usize];
    for (name, [there, back]) in conversations() {
        let worker = bench.check(&there);
        assert_eq!(worker, bench.check(&back), "{name}: the directions part");
        workers[worker as usize] += 1;
    }
    assert!(workers.iter().filter(|n| **n > 0).count() > 3, "everything went one way: {workers:?}");
}

#[test]
fn truncated_frames_of_every_length_agree() {
    let Some(mut bench) = Bench::new() else { return };
    for (_, [frame, _]) in conversations() {
        for length in 14..frame.len() {
            bench.check(&frame[..length]);
        }
    }
}

#[test]
fn later_fragments_follow_their_datagram() {
    let Some(mut bench) = Bench::new() else { return };
    let frame = |packet: String| hex(&format!("{MACS}{packet}"));
    let whole = bench.check(&frame(v4(17, 0, "", ports(false), false)));
    let later = frame(v4(17, 0x0003, "", "ffffffff00000000", false));
    let alone = bench.check(&later);
    assert_eq!(bench.check(&frame(v4(17, 0x2000, "", ports(false), false))), whole);
    assert_eq!(bench.check(&later), whole);
    // The case would prove nothing if ports made no difference to it.
    assert_ne!(alone, whole, "choose other ports");

    let whole = bench.check(&frame(v6(17, ports(false), false)));
    let later = frame(v6(44, "3c000051 00000009 ffffffff00000000", false));
    let alone = bench.check(&later);
    let first = format!("3c000001 00000009 1100000000000000 {}", ports(false));
    assert_eq!(bench.check(&frame(v6(44, &first, false))), whole);
    assert_eq!(bench.check(&later), whole);
    assert_ne!(alone, whole, "choose other ports");
}

#[test]
fn without_a_socket_the_drop_is_counted() {
    if Bench::new().is_none() {
        return;
    }
    let program = Program::load(SEED, WORKERS, 1, 1792).unwrap();
    for (_, [frame, _]) in conversations() {
        assert_eq!(program.test_run(&frame).unwrap(), XDP_DROP);
    }
    let counters = program.counters().unwrap();
    assert_eq!((counters.seen, counters.redirected.iter().sum::<u64>()), (counters.no_socket, 0));
}

#[test]
fn the_verifier_has_room() {
    let Some(bench) = Bench::new() else { return };
    let Some(verified) = bench.program.verified_instructions() else {
        return println!("skipped: this kernel does not tell what its verifier did");
    };
    // Verifiers differ from kernel to kernel by small factors.
    assert!(verified < 200_000, "{verified} of a million");
}

#[test]
fn out_of_range_is_refused() {
    let Some(mut bench) = Bench::new() else { return };
    let socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).unwrap();
    assert!(bench.program.register(1, 0, socket.as_fd()).is_err());
    assert!(bench.program.register(0, WORKERS, socket.as_fd()).is_err());
    let other = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    assert!(bench.program.register(0, 0, other.as_fd()).is_err());
}

/// Damaged conversations, and bytes that mean nothing.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<Vec<u8>> = conversations().into_iter().flat_map(|(_, frames)| frames).collect();
    let damaged =
        (proptest::sample::select(known), proptest::collection::vec((12usize..90, any::<u8>()), 0..4), 14usize..120)
            .prop_map(|(mut frame, damage, length)| {
                for (at, value) in damage {
                    if let Some(octet) = frame.get_mut(at) {
                        *octet = value;
                    }
                }
                frame.truncate(length);
                frame
            });
    prop_oneof![4 => damaged, 1 => proptest::collection::vec(any::<u8>(), 14..200)]
}

/// A total length of 0 leaves the length to the frame, which here ends within the options that the header names.
#[test]
fn a_header_that_passes_its_frame_is_malformed() {
    let Some(mut bench) = Bench::new() else { return };
    let whole = hex(&format!("{MACS} {}", v4(6, 0, "", ports(false), false)));
    for words in 6..=15 {
        let mut frame = whole.clone();
        frame[14] = 0x40 + words;
        frame[16..18].fill(0);
        bench.check(&frame);
    }
}

#[test]
fn damaged_and_random_frames_agree() {
    let Some(bench) = Bench::new() else { return };
    let bench = std::cell::RefCell::new(bench);
    let config = ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(frame in frames())| {
        bench.borrow_mut().check(&frame);
    });
}
