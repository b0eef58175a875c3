//! The steering program, run by the kernel on single frames, chooses the worker that `nagare_wire::steer` names.

use nagare_ebpf::{Error, Program, Steering};
use nagare_wire::fragment::FragmentTable;
use nagare_wire::packet::{self, LinkType, Tunnels};
use nagare_wire::steer;
use proptest::prelude::*;
use socket2::{Domain, Socket, Type};
use std::os::fd::AsFd;

const SEED: u32 = 0x5eed_1e55;
const WORKERS: u32 = 7;
/// Room for every first fragment of a test: a table that forgot one would not agree with the kernel's, which forgets later.
const DATAGRAMS: usize = 1 << 18;
const MODES: [Tunnels; 2] = [Tunnels::Outer, Tunnels::Inner];
const XDP_DROP: u32 = 1;
const XDP_REDIRECT: u32 = 4;

/// The program with a socket for each worker, and the decoder's table of fragments beside it.
struct Bench {
    program: Program,
    _sockets: Vec<Socket>,
    fragments: FragmentTable,
    tunnels: Tunnels,
}

impl Bench {
    /// `None` where the kernel does not permit BPF.
    fn new(tunnels: Tunnels) -> Option<Bench> {
        let mut program = match Program::load(Steering { seed: SEED, workers: WORKERS, tunnels }, 1, 1792) {
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
        Some(Bench { program, _sockets: sockets, fragments: FragmentTable::new(DATAGRAMS, 1), tunnels })
    }

    /// The worker that the program hands `frame` to.
    fn steered(&self, frame: &[u8]) -> u32 {
        let before = self.program.counters().unwrap();
        assert_eq!(self.program.test_run(frame).unwrap(), XDP_REDIRECT);
        let after = self.program.counters().unwrap();
        assert_eq!(after.seen, before.seen + 1);
        assert_eq!(after.seen, after.steered.iter().sum::<u64>() + after.lost);
        let chosen = (0..WORKERS as usize).find(|&w| after.steered[w] > before.steered[w]);
        chosen.expect("one worker's counter moved") as u32
    }

    /// The worker that the decoder's key leads to; 0 for what is no IP packet.
    fn expected(&mut self, frame: &[u8]) -> u32 {
        let decoded = packet::decode(LinkType::Ethernet, frame, frame.len() as u32, self.tunnels);
        let Ok(mut observation) = decoded else { return 0 };
        // The program's table of fragments does not know the tunnel: two that share addresses and identification may be taken for
        // one, which moves a later fragment to another worker and no more.
        observation.key.tunnel = None;
        self.fragments.resolve(&mut observation, 0);
        steer::worker(steer::hash(&observation.key, SEED), WORKERS)
    }

    fn check(&mut self, frame: &[u8]) -> u32 {
        let steered = self.steered(frame);
        assert_eq!(steered, self.expected(frame), "{frame:02x?}");
        steered
    }
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
    for tags in [8, 9] {
        let tags = "81000001".repeat(tags);
        add(&format!("{} octets of tags", tags.len() / 2), &|back| {
            format!("{tags}{}", v4(17, 0, "", ports(back), back))
        });
    }
    add("MPLS", &|back| format!("8847 00010140 {}", &v4(17, 0, "", ports(back), back)[5..]));
    add("MPLS, two labels", &|back| format!("8847 00010040 00010140 {}", &v6(17, ports(back), back)[5..]));
    add("MPLS, nine labels", &|back| {
        format!("8847 {} 00010140 {}", "00010040".repeat(8), &v4(17, 0, "", ports(back), back)[5..])
    });
    add("PPPoE", &|back| format!("8864 110000010020 0021 {}", &v4(17, 0, "", ports(back), back)[5..]));
    add("PPPoE, compressed", &|back| format!("8864 110000010020 ff03 57 {}", &v6(17, ports(back), back)[5..]));
    add("SNAP", &|back| format!("0030 aaaa03000000 {}", v4(17, 0, "", ports(back), back)));
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

/// The same conversation in tunnels of every kind, in both directions, by name. The outer packets have ends of their own, and
/// the identifiers of the kinds that have one for each direction differ.
fn tunnelled() -> Vec<(String, [Vec<u8>; 2])> {
    let mut all = Vec::new();
    let udp = |port: u16, header: &str, inner: &str| {
        let length = 8 + hex(header).len() + hex(inner).len();
        outer(17, &format!("c001{port:04x}{length:04x}0000 {header} {inner}"))
    };
    for (family, packet) in [("", false), ("v6", true)] {
        let whole = |back| if packet { v6(17, ports(back), back) } else { v4(17, 0, "", ports(back), back) };
        // The packet alone, and the frame around it.
        let inner = |back| whole(back)[4..].to_string();
        let frame = |back| format!("{MACS}{}", whole(back));
        let kind = if packet { "86dd" } else { "0800" };
        let mut add = |name: &str, of: &dyn Fn(bool) -> String| {
            all.push((format!("{name} {family}"), [false, true].map(|back| hex(&format!("{MACS}{}", of(back))))));
        };
        add("IP in IP", &|back| outer(if packet { 41 } else { 4 }, &inner(back)));
        add("IP in IPv6", &|back| v6(if packet { 41 } else { 4 }, &inner(back), false));
        add("GRE", &|back| outer(47, &format!("0000{kind}{}", inner(back))));
        add("GRE, all fields", &|back| outer(47, &format!("b000{kind}000000000000002a00000001{}", inner(back))));
        add("GRE, Ethernet", &|back| outer(47, &format!("20006558 00000007 {}", frame(back))));
        add("GRE, MPLS", &|back| outer(47, &format!("00008847 00010140 {}", inner(back))));
        add("GRE, tagged", &|back| outer(47, &format!("00006558 {MACS} 81000005 {}", whole(back))));
        let protocol = if packet { "57" } else { "0021" };
        add("PPTP", &|back| {
            outer(47, &format!("3081880b 0000{:04x} 00000001 00000002 ff03{protocol} {}", u16::from(back), inner(back)))
        });
        add("ERSPAN I", &|back| outer(47, &format!("000088be {}", frame(back))));
        add("ERSPAN II", &|back| outer(47, &format!("100088be 00000001 10050064 00000000 {}", frame(back))));
        add("ERSPAN III", &|back| outer(47, &format!("100022eb 00000001 20050064 00000000 00000000 {}", frame(back))));
        add("ERSPAN III, subheader, IP", &|back| {
            outer(47, &format!("100022eb 00000001 20050064 00000000 00000801 0000000000000000 {}", inner(back)))
        });
        add("VXLAN", &|back| udp(4789, "08000000 00002a00", &frame(back)));
        add("VXLAN of Linux", &|back| udp(8472, "08000000 00002a00", &frame(back)));
        add("GENEVE", &|back| udp(6081, "01006558 00002a00 00000000", &frame(back)));
        add("GENEVE, IP", &|back| udp(6081, &format!("0000{kind} 00002a00"), &inner(back)));
        add("GTP-U", &|back| udp(2152, &format!("30ff0000 {:08x}", 7 + u32::from(back)), &inner(back)));
        add("GTP-U, extensions", &|back| {
            udp(2152, "34ff0000 00000007 00000085 0110 0085 0210 000000000000", &inner(back))
        });
        add("L2TP", &|back| udp(1701, "0002 0001 0002", &format!("ff03 {protocol} {}", inner(back))));
        add("L2TP, all fields", &|back| {
            udp(1701, "4a02 0030 0001 0002 0001 0002 0003 000000", &format!("{protocol} {}", inner(back)))
        });
        add("L2TP 3 over UDP", &|back| udp(1701, "00030000 00000007", &frame(back)));
        for words in 0..=3 {
            let cookie = "ffffffff".repeat(words);
            add(&format!("L2TP 3, {words} words"), &|back| outer(115, &format!("00000007 {cookie} {}", frame(back))));
        }
        if packet {
            add("Teredo", &|back| udp(3544, "", &inner(back)));
            add("Teredo, authenticated", &|back| {
                udp(3544, "0001 0102 aabbcc 1122334455667788 00 0000 1234 0a000001", &inner(back))
            });
        }
        add("VXLAN in GRE in IP", &|back| {
            let vxlan = udp(4789, "08000000 00002a00", &frame(back));
            outer(4, &outer(47, &format!("0000{vxlan}"))[4..])
        });
    }
    all
}

/// The packet around, with ends of its own.
fn outer(protocol: u8, payload: &str) -> String {
    v4(protocol, 0, "", payload, false).replacen(ENDS_4.0, "c6336401", 1)
}

#[test]
fn both_directions_go_where_the_decoder_says() {
    for tunnels in MODES {
        let Some(mut bench) = Bench::new(tunnels) else { return };
        let mut workers = [0u32; WORKERS as usize];
        for (name, [there, back]) in conversations().into_iter().chain(tunnelled()) {
            let worker = bench.check(&there);
            assert_eq!(worker, bench.check(&back), "{name}, {tunnels:?}: the directions part");
            workers[worker as usize] += 1;
        }
        assert!(workers.iter().filter(|n| **n > 0).count() > 3, "everything went one way: {workers:?}");
    }
}

/// Whatever it is carried in, the conversation is the same.
#[test]
fn inside_tunnels_the_flow_goes_where_it_goes_bare() {
    let Some(mut bench) = Bench::new(Tunnels::Inner) else { return };
    let bare = [v4(17, 0, "", ports(false), false), v6(17, ports(false), false)]
        .map(|packet| bench.check(&hex(&format!("{MACS}{packet}"))));
    for (name, [there, _]) in tunnelled() {
        let inner = bare[usize::from(name.ends_with("v6"))];
        assert_eq!(bench.check(&there), inner, "{name}");
    }
}

#[test]
fn truncated_frames_of_every_length_agree() {
    for tunnels in MODES {
        let Some(mut bench) = Bench::new(tunnels) else { return };
        for (_, [frame, _]) in conversations().into_iter().chain(tunnelled()) {
            for length in 14..frame.len() {
                bench.check(&frame[..length]);
            }
        }
    }
}

#[test]
fn later_fragments_follow_their_datagram() {
    let Some(mut bench) = Bench::new(Tunnels::Outer) else { return };
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
    if Bench::new(Tunnels::Outer).is_none() {
        return;
    }
    let program = Program::load(Steering { seed: SEED, workers: WORKERS, tunnels: Tunnels::Outer }, 1, 1792).unwrap();
    for (_, [frame, _]) in conversations() {
        assert_eq!(program.test_run(&frame).unwrap(), XDP_DROP);
    }
    let counters = program.counters().unwrap();
    assert_eq!((counters.seen, counters.steered.iter().sum::<u64>()), (counters.lost, 0));
}

#[test]
fn the_verifier_has_room() {
    let Some(bench) = Bench::new(Tunnels::Inner) else { return };
    let Some(verified) = bench.program.verified_instructions() else {
        return println!("skipped: this kernel does not tell what its verifier did");
    };
    // Verifiers differ from kernel to kernel by small factors.
    assert!(verified < 200_000, "{verified} of a million");
}

#[test]
fn out_of_range_is_refused() {
    let Some(mut bench) = Bench::new(Tunnels::Outer) else { return };
    let socket = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None).unwrap();
    assert!(bench.program.register(1, 0, socket.as_fd()).is_err());
    assert!(bench.program.register(0, WORKERS, socket.as_fd()).is_err());
    let other = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    assert!(bench.program.register(0, 0, other.as_fd()).is_err());
}

/// Any octet, and often one that means something.
fn octet() -> impl Strategy<Value = u8> {
    prop_oneof![1 => Just(0u8), 1 => Just(0x45), 1 => Just(0x60), 1 => Just(0x20), 3 => any::<u8>()]
}

/// Damaged conversations, and bytes that mean nothing.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<Vec<u8>> = conversations().into_iter().chain(tunnelled()).flat_map(|(_, frames)| frames).collect();
    let damaged =
        (proptest::sample::select(known), proptest::collection::vec((12usize..160, octet()), 0..4), 14usize..190)
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
    let Some(mut bench) = Bench::new(Tunnels::Outer) else { return };
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
    for tunnels in MODES {
        let Some(bench) = Bench::new(tunnels) else { return };
        let bench = std::cell::RefCell::new(bench);
        let config = ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(frame in frames())| {
            bench.borrow_mut().check(&frame);
        });
    }
}
