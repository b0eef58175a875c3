//! Frames written by hand, cut frames, fragments, and bytes that mean nothing.

use super::*;
use crate::fragment::FragmentTable;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

const MACS: &str = "02000000000202000000 0001";
/// 10.0.0.1:4660 -> 10.0.0.2:80, TCP SYN+ACK with CWR, total length 40, type of service 0x10.
const TCP: &str = "4510002800010000400600000a0000010a000002 12340050 0000000100000002 5092 ffff 0000 0000";
/// [2001:db8::1]:53 -> [2001:db8::2]:4660, UDP of 12 octets.
const V6: &str = "6120 0000 000c HH 40 20010db8000000000000000000000001 20010db8000000000000000000000002";
const UDP: &str = "0035 1234 000c 0000 01020304";

fn v6(next: &str, length: &str, rest: &str) -> String {
    V6.replace("HH", next).replacen("000c", length, 1) + rest
}

/// What is expected of a frame: `source_port>destination_port protocol vlan octets flags tos` or the ignore's name.
fn shown(link: LinkType, bytes: &[u8]) -> String {
    match decode(link, bytes, bytes.len() as u32, Tunnels::Outer) {
        Ok(o) => format!(
            "{}>{} {} {} {} {:#x} {:#x}",
            o.key.source_port, o.key.destination_port, o.key.protocol, o.key.vlan, o.octets, o.tcp_flags, o.tos
        ),
        Err(ignore) => ignore.name().to_string(),
    }
}

#[test]
fn frames_decode() {
    let eth = |kind: &str, rest: &str| format!("{MACS}{kind}{rest}");
    let tcp = "4660>80 6 0 40 0x92 0x10";
    let udp6 = "53>4660 17 0 52 0x0 0x12";
    let cases: Vec<(&str, LinkType, String, &str)> = vec![
        ("ethernet", LinkType::Ethernet, eth("0800", TCP), tcp),
        ("padding", LinkType::Ethernet, eth("0800", TCP) + "000000000000", tcp),
        ("one tag", LinkType::Ethernet, eth("8100e005 0800", TCP), "4660>80 6 5 40 0x92 0x10"),
        ("two tags", LinkType::Ethernet, eth("88a80007 81000005 0800", TCP), "4660>80 6 7 40 0x92 0x10"),
        ("mpls", LinkType::Ethernet, eth("8847 00010040 00011140", TCP), tcp),
        ("pseudowire", LinkType::Ethernet, eth("8847 00011140 00000000", TCP), "mpls_payload"),
        ("pppoe", LinkType::Ethernet, eth("8864 110000010020 0021", TCP), tcp),
        ("pppoe discovery", LinkType::Ethernet, eth("8863 110000010020", ""), "ppp_control"),
        ("lcp", LinkType::Ethernet, eth("8864 110000010020 c021", "01"), "ppp_control"),
        ("snap", LinkType::Ethernet, eth("0030 aaaa03000000 0800", TCP), tcp),
        ("spanning tree", LinkType::Ethernet, eth("0026 424203000000", "0000"), "llc"),
        ("arp", LinkType::Ethernet, eth("0806", "0001"), "arp"),
        ("lldp", LinkType::Ethernet, eth("88cc", "0207"), "other_protocol"),
        ("raw", LinkType::RawIp, TCP.into(), tcp),
        ("raw v6", LinkType::RawIp, v6("11", "000c", UDP), udp6),
        ("cooked", LinkType::LinuxSll, format!("0000 0001 0006 020000000001 0000 0800 {TCP}"), tcp),
        ("cooked 2", LinkType::LinuxSll2, format!("0800 0000 00000001 0001 00 06 0200000000010000 {TCP}"), tcp),
        ("loopback", LinkType::Null, format!("02000000 {TCP}"), tcp),
        ("loopback v6", LinkType::Null, format!("0000001e {}", v6("11", "000c", UDP)), udp6),
        ("ppp", LinkType::Ppp, format!("ff03 0021 {TCP}"), tcp),
        ("cisco hdlc", LinkType::CiscoHdlc, format!("0f00 0800 {TCP}"), tcp),
        (
            "ppi",
            LinkType::Ppi,
            format!("00000c00 01000000 00000000 {}", eth("8100e005 0800", TCP)),
            "4660>80 6 5 40 0x92 0x10",
        ),
        ("ppi of radio", LinkType::Ppi, format!("00000800 69000000 {TCP}"), "other_protocol"),
        (
            "ppi in ppi",
            LinkType::Ppi,
            format!("00000800 c0000000 00000800 01000000 {}", eth("0800", TCP)),
            "other_protocol",
        ),
        (
            "hop by hop, destination",
            LinkType::RawIp,
            v6("00", "001c", &("3c00010400000000 1100010400000000".to_string() + UDP)),
            "53>4660 17 0 68 0x0 0x12",
        ),
        (
            "atomic fragment",
            LinkType::RawIp,
            v6("2c", "0014", &("1100000000000007".to_string() + UDP)),
            "53>4660 17 0 60 0x0 0x12",
        ),
        ("no next header", LinkType::RawIp, v6("3b", "0000", ""), "0>0 59 0 40 0x0 0x12"),
        ("icmp has no ports", LinkType::RawIp, TCP.replacen("4006", "4001", 1), "0>0 1 0 40 0x0 0x10"),
        ("esp", LinkType::RawIp, v6("32", "000c", UDP), "0>0 50 0 52 0x0 0x12"),
        ("offload, length 0", LinkType::RawIp, TCP.replacen("0028", "0000", 1), tcp),
        (
            "options",
            LinkType::RawIp,
            TCP.replacen(
                "4510002800010000400600000a0000010a000002",
                "4610002c00010000400600000a0000010a000002 01010101",
                1,
            ),
            "4660>80 6 0 44 0x92 0x10",
        ),
        ("header length 16", LinkType::RawIp, TCP.replacen("4510", "4410", 1), "malformed"),
        ("total below header", LinkType::RawIp, TCP.replacen("0028", "0013", 1), "malformed"),
        ("wrong version", LinkType::Ethernet, eth("86dd", TCP), "malformed"),
        ("empty", LinkType::Ethernet, String::new(), "truncated"),
    ];
    for (name, link, frame, expected) in cases {
        assert_eq!(shown(link, &hex(&frame)), expected, "{name}");
    }
}

/// An IPv4 packet from 192.0.2.1 to 192.0.2.2.
fn around(protocol: u8, payload: &str) -> String {
    format!("45000000 00000000 40{protocol:02x}0000 c0000201 c0000202 {payload}").replacen(
        "0000",
        &format!("{:04x}", 20 + hex(payload).len()),
        1,
    )
}

fn around_udp(port: u16, payload: &str) -> String {
    around(17, &format!("c000{port:04x}{:04x}0000 {payload}", 8 + hex(payload).len()))
}

/// What is expected of the packet within: kind, identifier in the key, identifier, then as of any frame; `-` for the packet
/// around.
#[test]
fn tunnels_are_looked_into() {
    let frame = format!("{MACS}0800{TCP}");
    let tagged = format!("{MACS}81000005 0800{TCP}");
    let udp6 = v6("11", "000c", UDP);
    let tcp = "4660>80 6 0 40 0x92 0x10";
    let cases: Vec<(&str, String, String)> = vec![
        ("4 in 4", around(4, TCP), format!("ip-in-ip 0 0 {tcp}")),
        ("6 in 4", around(41, &udp6), "ip-in-ip 0 0 53>4660 17 0 52 0x0 0x12".into()),
        ("4 in 6", v6("04", "0028", TCP), format!("ip-in-ip 0 0 {tcp}")),
        ("GRE", around(47, &format!("00000800{TCP}")), format!("gre 0 0 {tcp}")),
        ("GRE, key", around(47, &format!("b0000800 00000000 0000002a 00000001{TCP}")), format!("gre 42 42 {tcp}")),
        ("GRE, Ethernet", around(47, &format!("20006558 00000007{tagged}")), "gre 7 7 4660>80 6 5 40 0x92 0x10".into()),
        ("GRE, routing", around(47, &format!("40000800 00000000{TCP}")), "-".into()),
        ("PPTP", around(47, &format!("3001880b 002a0009 00000001 ff030021{TCP}")), format!("gre 0 9 {tcp}")),
        ("PPTP, no data", around(47, "2081880b 00000009 00000001"), "-".into()),
        ("ERSPAN I", around(47, &format!("000088be{frame}")), format!("erspan 0 0 {tcp}")),
        (
            "ERSPAN II",
            around(47, &format!("100088be 00000001 10050064 00000000{frame}")),
            format!("erspan 100 100 {tcp}"),
        ),
        (
            "ERSPAN III",
            around(47, &format!("100022eb 00000001 20050064 00000000 00000000{frame}")),
            format!("erspan 100 100 {tcp}"),
        ),
        (
            "ERSPAN III of IP, subheader",
            around(47, &format!("100022eb 00000001 20050064 00000000 00000801 0000000000000000{TCP}")),
            format!("erspan 100 100 {tcp}"),
        ),
        ("VXLAN", around_udp(4789, &format!("08000000 00002a00{frame}")), format!("vxlan 42 42 {tcp}")),
        ("VXLAN without VNI", around_udp(4789, &format!("00000000 00002a00{frame}")), "-".into()),
        ("GENEVE", around_udp(6081, &format!("01006558 00002a00 00000000{frame}")), format!("geneve 42 42 {tcp}")),
        ("GENEVE, control", around_udp(6081, &format!("00806558 00002a00{frame}")), "-".into()),
        ("GTP-U", around_udp(2152, &format!("30ff0028 00000007{TCP}")), format!("gtp-u 0 7 {tcp}")),
        (
            "GTP-U, extensions",
            around_udp(2152, &format!("34ff0034 00000007 00000085 0110 0085 0210 000000000000{TCP}")),
            format!("gtp-u 0 7 {tcp}"),
        ),
        (
            "GTP-U, extension of 0 octets",
            around_udp(2152, &format!("34ff0034 00000007 00000085 00100000{TCP}")),
            "-".into(),
        ),
        ("GTP-U, echo", around_udp(2152, "32010004 00000000 00010000"), "-".into()),
        ("L2TP", around_udp(1701, &format!("0002 0001 0002 ff03 0021{TCP}")), format!("l2tp 0 65538 {tcp}")),
        (
            "L2TP, all fields",
            around_udp(1701, &format!("4a02 0030 0001 0002 0001 0002 0003 000000 21{TCP}")),
            format!("l2tp 0 65538 {tcp}"),
        ),
        ("L2TP, control", around_udp(1701, "c802 000c 0001 0000 0000 0001"), "-".into()),
        ("L2TP 3", around(115, &format!("00000007 {frame}")), format!("l2tp 0 7 {tcp}")),
        ("L2TP 3, cookie", around(115, &format!("00000007 ffffffffffffffff {frame}")), format!("l2tp 0 7 {tcp}")),
        ("L2TP 3 over UDP", around_udp(1701, &format!("00030000 00000007 {frame}")), format!("l2tp 0 7 {tcp}")),
        ("Teredo", around_udp(3544, &udp6), "teredo 0 0 53>4660 17 0 52 0x0 0x12".into()),
        (
            "Teredo, authenticated, with origin",
            around_udp(3544, &format!("0001 0102 aabbcc 1122334455667788 00 0000 1234 0a000001{udp6}")),
            "teredo 0 0 53>4660 17 0 52 0x0 0x12".into(),
        ),
        (
            "three deep",
            around(4, &around(47, &format!("00000800{}", around_udp(4789, &format!("08000000 00002a00{frame}"))))),
            format!("vxlan 42 42 {tcp}"),
        ),
        ("ARP within", around_udp(4789, &format!("08000000 00002a00 {MACS} 0806 0001")), "-".into()),
        ("cut within", around(4, &TCP[..30]), "-".into()),
        ("a fragment", around(4, TCP).replacen("00000000", "00002000", 1), "-".into()),
        ("plain", TCP.into(), "-".into()),
    ];
    for (name, packet, expected) in cases {
        let bytes = hex(&packet);
        let inner = decode(LinkType::RawIp, &bytes, bytes.len() as u32, Tunnels::Inner).unwrap();
        let outer = decode(LinkType::RawIp, &bytes, bytes.len() as u32, Tunnels::Outer).unwrap();
        let shown = match inner.key.tunnel {
            None => {
                assert_eq!(inner, outer, "{name}");
                "-".into()
            }
            Some(tunnel) => {
                let key = &inner.key;
                let (ports, flags) = (format!("{}>{}", key.source_port, key.destination_port), inner.tcp_flags);
                let name = tunnel.kind.name();
                let (id, of_packet, octets, tos) = (tunnel.id, inner.tunnel_id, inner.octets, inner.tos);
                format!("{name} {id} {of_packet} {ports} {} {} {octets} {flags:#x} {tos:#x}", key.protocol, key.vlan)
            }
        };
        assert_eq!(shown, expected, "{name}");
        if let Some((source, _)) = inner.outer
            && name != "three deep"
        {
            assert_eq!(source, outer.key.source, "{name}");
        }
    }
}

#[test]
fn esp_and_ah_show_their_index() {
    for (packet, spi) in
        [(around(50, "0000002a 00000001"), 42), (around(51, "06040000 0000002b 00000001"), 43), (TCP.into(), 0)]
    {
        let bytes = hex(&packet);
        assert_eq!(decode(LinkType::RawIp, &bytes, bytes.len() as u32, Tunnels::Inner).unwrap().spi, spi);
    }
}

#[test]
fn cut_frames_keep_the_octets_of_the_wire() {
    let frame = hex(&format!("{MACS}0800{TCP}"));
    for length in 0..frame.len() {
        match decode(LinkType::Ethernet, &frame[..length], frame.len() as u32, Tunnels::Outer) {
            Ok(observation) => {
                assert!(length >= 34);
                assert_eq!(observation.octets, 40);
                assert_eq!(observation.key.source_port, if length >= 38 { 4660 } else { 0 }, "{length}");
            }
            Err(ignore) => assert_eq!((ignore, length < 34), (Ignore::Truncated, true)),
        }
    }
}

#[test]
fn later_fragments_join_their_datagram() {
    let first = hex(&TCP.replacen("00010000", "00092000", 1));
    let later = hex(&TCP.replacen("00010000", "00090003", 1));
    let other = hex(&TCP.replacen("00010000", "000a0003", 1));
    let mut table = FragmentTable::new(64, 1);
    let mut resolved = |bytes: &[u8], now_ns: u64| {
        let mut observation = decode(LinkType::RawIp, bytes, 40, Tunnels::Outer).unwrap();
        table.resolve(&mut observation, now_ns);
        observation.key.source_port
    };
    assert_eq!(resolved(&later, 0), 0);
    assert_eq!(resolved(&first, 0), 4660);
    assert_eq!(resolved(&later, 1), 4660);
    assert_eq!(resolved(&other, 1), 0);
    assert_eq!(resolved(&later, 100_000_000_000), 0, "forgotten");
    // Datagrams of the same moment take free slots before they push each other out: one set holds all of these.
    let mut table = FragmentTable::new(4, 1);
    let mut resolved = |fragment: &str| {
        let mut observation =
            decode(LinkType::RawIp, &hex(&TCP.replacen("00010000", fragment, 1)), 40, Tunnels::Outer).unwrap();
        table.resolve(&mut observation, 0);
        observation.key.source_port
    };
    for identification in 1..=4 {
        assert_eq!(resolved(&format!("{identification:04x}2000")), 4660);
    }
    for identification in 1..=4 {
        assert_eq!(resolved(&format!("{identification:04x}0003")), 4660, "{identification}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), wire in any::<u32>(), link in 0u32..300, inner in any::<bool>()) {
        let tunnels = if inner { Tunnels::Inner } else { Tunnels::Outer };
        for link in LinkType::from_pcap(link).into_iter().chain([LinkType::Ethernet, LinkType::RawIp]) {
            let _ = decode(link, &bytes, wire, tunnels);
        }
    }

    #[test]
    fn no_damage_to_a_frame_panics(at in 0usize..66, value in any::<u8>(), cut in 0usize..66, tagged in any::<bool>()) {
        let tag = if tagged { "81000001" } else { "" };
        let mut frame = hex(&format!("{MACS}{tag}86dd{}", v6("00", "0014", &("3c00010400000000".to_string() + UDP))));
        let at = at % frame.len();
        frame[at] = value;
        let _ = decode(LinkType::Ethernet, &frame[..cut.min(frame.len())], 60, Tunnels::Inner);
    }
}
