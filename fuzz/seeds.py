#!/usr/bin/env python3
"""Writes what the fuzz targets begin with: fuzz/seeds.py DIRECTORY makes DIRECTORY/TARGET/NAME for every target.

A handful of small, right inputs of each kind, so that libFuzzer need not guess magic numbers and lengths.
"""

import os
import struct
import sys

MACS = bytes.fromhex("020000000001020000000002")
TCP = bytes.fromhex("45100028000100004006 00000a0000010a000002 12340050 00000000 00000000 5092 0000 00000000")
UDP = bytes.fromhex("00351234000c0000 00000000")
FIRST = TCP[:6] + b"\x20\x00" + TCP[8:]
LATER = TCP[:6] + b"\x00\x03" + TCP[8:]
ETHERNET, RAW, SLL, SLL2, NULL, PPP, HDLC, PPI = range(8)


def ipv6(following, payload):
    address = bytes.fromhex("20010db8") + bytes(11)
    return struct.pack(">IHBB", 0x61200000, len(payload), following, 64) + address + b"\1" + address + b"\2" + payload


HOPS = ipv6(0, bytes.fromhex("3c000104000000001100010400000000") + UDP)
FIRST6 = ipv6(44, bytes.fromhex("1100000100000007") + UDP)
LATER6 = ipv6(44, bytes.fromhex("1100001000000007") + UDP)


def frame(link, octets, cut=0):
    return struct.pack(">BBH", link, cut, len(octets)) + octets


def ethernet(kinds, octets):
    return frame(ETHERNET, MACS + bytes.fromhex(kinds) + octets)




def ipv4(protocol, payload):
    return struct.pack(">BBHIBBH", 0x45, 0, 20 + len(payload), 0, 64, protocol, 0) + b"\xc0\0\2\1\xc0\0\2\2" + payload


def udp(port, payload):
    return ipv4(17, struct.pack(">HHHH", 49153, port, 8 + len(payload), 0) + payload)


FRAME = MACS + b"\x08\0" + TCP
TUNNELLED = [
    ipv4(4, TCP), ipv4(41, HOPS), ipv4(47, b"\0\0\x08\0" + TCP), ipv4(47, bytes.fromhex("b0006558000000000000002a00000001") + FRAME),
    ipv4(47, bytes.fromhex("3001880b002a000900000001ff030021") + TCP), ipv4(47, bytes.fromhex("000088be") + FRAME),
    ipv4(47, bytes.fromhex("100088be000000011005006400000000") + FRAME),
    ipv4(47, bytes.fromhex("100022eb00000001200500640000000000000801") + bytes(8) + TCP),
    udp(4789, bytes.fromhex("0800000000002a00") + FRAME), udp(6081, bytes.fromhex("0100655800002a0000000000") + FRAME),
    udp(2152, bytes.fromhex("34ff003400000007000000850110008502100000") + bytes(4) + TCP),
    udp(1701, bytes.fromhex("4a020030000100020001000200030000") + b"\0\x21" + TCP), udp(1701, bytes.fromhex("0003000000000007") + FRAME),
    ipv4(115, bytes.fromhex("00000007ffffffff") + FRAME), udp(3544, bytes.fromhex("00000000") + bytes(4) + HOPS),
]

PACKETS = {
    "ethernet": ethernet("0800", TCP) + ethernet("86dd", ipv6(17, UDP)),
    "tags": ethernet("81000005 0800", TCP) + ethernet("88a80007 81000005 86dd", HOPS),
    "mpls": ethernet("8847 00010040 00011140", TCP) + ethernet("8847 00011140", HOPS),
    "pppoe": ethernet("8864 110000010020 0021", TCP) + ethernet("8863 110000010020", b""),
    "llc": ethernet("0030 aaaa03000000 0800", TCP) + ethernet("0026 424203000000", b"\0\0") + ethernet("0806", b"\0\1"),
    "raw": frame(RAW, TCP) + frame(RAW, HOPS) + frame(RAW, ipv6(59, b"")) + frame(RAW, TCP[:24], 16),
    "fragments": frame(RAW, LATER) + frame(RAW, FIRST) + frame(RAW, LATER) + frame(RAW, FIRST6) + frame(RAW, LATER6),
    "cooked": frame(SLL, bytes.fromhex("00000001000602000000000100000800") + TCP)
    + frame(SLL2, bytes.fromhex("0800000000000001000100060200000000010000") + TCP),
    "small links": frame(NULL, b"\2\0\0\0" + TCP) + frame(PPP, b"\xff\3\0\x57" + HOPS) + frame(HDLC, b"\x0f\0\x08\0" + TCP),
    "tunnels": b"".join(frame(RAW, octets) for octets in TUNNELLED),
    "ppi": frame(PPI, bytes.fromhex("00000c000100000000000000") + MACS + b"\x08\0" + TCP),
}

FLOW4 = [(152, 8), (153, 8), (8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (5, 1), (58, 2), (136, 1), (2, 8), (1, 8), (6, 2)]
REVERSE = [(0x8002, 8, 29305), (0x8001, 8, 29305), (0x8006, 2, 29305)]
UPTIME = [(8, 4), (12, 4), (22, 4), (21, 4), (2, 4), (1, 4)]
FLOW6 = [(27, 16), (28, 16), (154, 8), (155, 8), (180, 2), (181, 2), (85, 8), (86, 8)]
BOOK = [(143, 4), (335, 65535), (86, 8)]
STATISTICS = [(144, 4), (160, 8), (41, 8), (40, 8), (42, 8), (166, 8), (167, 8), (168, 8)]


def template(number, fields, scopes=0):
    text = struct.pack(">HH", number, len(fields)) + (struct.pack(">H", scopes) if scopes else b"")
    return text + b"".join(struct.pack(">HHI"[: len(field) + 1], *field) for field in fields)


def length(fields):
    return sum(field[1] for field in fields)


def pieces(*sets):
    """One Message in the words of the target `ipfix`, which puts its lengths right."""
    parts = [bytes([0 if n + 1 < len(sets) else 1]) + struct.pack(">HB", kind, len(content)) + content
             for n, (kind, content) in enumerate(sets)]
    return b"\0\0\0" + b"".join(parts)


def message(*sets):
    body = b"".join(struct.pack(">HH", kind, len(content) + 4) + content for kind, content in sets)
    return struct.pack(">HHIII", 10, len(body) + 16, 1700000000, 0, 1) + body


FLOWS = [(2, template(256, FLOW4 + REVERSE)), (256, bytes(range(1, length(FLOW4 + REVERSE) + 1)))]
OTHERS = [(2, template(257, FLOW6)), (257, bytes(range(length(FLOW6))) * 2)]
BOOKS = [(3, template(258, BOOK, 2) + template(260, STATISTICS, 1)),
         (258, b"\0\0\0\1\4wire" + bytes(7) + b"\x09" + b"\0\0\0\1\xff\0\3arp" + bytes(8)), (260, b"\1" * 60)]
MESSAGES = {}
for transport in range(3):
    MESSAGES[f"flows {transport}"] = bytes([128 + transport]) + pieces(*FLOWS) + pieces(*OTHERS) + pieces(FLOWS[1])
    MESSAGES[f"books {transport}"] = bytes([128 + transport]) + pieces(*BOOKS) + pieces(*FLOWS)
    MESSAGES[f"stream {transport}"] = bytes([transport]) + message(*FLOWS) + message(*BOOKS) + message(*OTHERS)
MESSAGES["withdrawals"] = b"\x80" + pieces(*FLOWS) + pieces((2, template(256, []))) + pieces((2, template(2, [])), FLOWS[1])
MESSAGES["uptime"] = b"\x80" + pieces(BOOKS[0], BOOKS[2], (2, template(259, UPTIME)), (259, b"\1" * 48))


def pcap(order, packets, magic=0xA1B2C3D4, link=1):
    text = struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, 65535, link)
    for packet in packets:
        text += struct.pack(order + "IIII", 1700000000, 5, len(packet), len(packet)) + packet
    return text


def block(order, kind, content):
    content += bytes(-len(content) % 4)
    size = struct.pack(order + "I", len(content) + 12)
    return struct.pack(order + "I", kind) + size + content + size


def pcapng(order, packets, options=b""):
    text = block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    text += block(order, 1, struct.pack(order + "HHI", 1, 0, 65535) + options)
    text += block(order, 1, struct.pack(order + "HHI", 147, 0, 0))
    for packet in packets:
        head = struct.pack(order + "IIIII", 0, 0x60000, 5, len(packet), len(packet))
        text += block(order, 6, head + packet)
    text += block(order, 2, struct.pack(order + "HHIIII", 0, 0, 0x60000, 5, len(TCP), len(TCP)) + TCP)
    text += block(order, 3, struct.pack(order + "I", len(packets[0])) + packets[0])
    text += block(order, 6, struct.pack(order + "IIIII", 1, 0x60000, 5, 4, 4) + b"none")
    return text + block(order, 5, bytes(12))


FRAMES = [MACS + b"\x08\0" + TCP, MACS + b"\x86\xdd" + HOPS, MACS + b"\x08\0" + FIRST, MACS + b"\x08\0" + LATER]
CAPTURES = {}
for name, order in (("little", "<"), ("big", ">")):
    resolution = struct.pack(order + "HHB3xHHqHH", 9, 1, 9, 14, 8, 3600, 0, 0)
    binary = struct.pack(order + "HHB3xHH", 9, 1, 0x94, 0, 0)
    CAPTURES[f"pcap {name}"] = pcap(order, FRAMES)
    CAPTURES[f"pcap {name} nanoseconds"] = pcap(order, FRAMES, magic=0xA1B23C4D)
    CAPTURES[f"pcapng {name}"] = pcapng(order, FRAMES)
    CAPTURES[f"pcapng {name} resolution"] = pcapng(order, FRAMES, resolution)
    CAPTURES[f"pcapng {name} sections"] = pcapng(order, FRAMES[:1]) + pcapng("<", FRAMES[1:], binary)
CAPTURES["pcap raw"] = pcap("<", [TCP, HOPS], link=101)
CAPTURES["pcap cut"] = pcap("<", FRAMES)[:-7]
# Of each packing of the target `capture_file` one with every file.
CAPTURES = {f"{name} {packing}": bytes([packing, 37]) + text for name, text in CAPTURES.items() for packing in range(5)}

# Of the target `cache`: flows that come and go, with all measured or not, in a large cache or a small one.
STEPS = b"".join(bytes([20 + n % 200, n % 7, n * 5 % 256, n * 37 % 256]) for n in range(120))
STEPS += bytes([3, 0, 0, 200, 16, 4, 0, 0]) + STEPS + bytes([17, 255, 0, 0]) + STEPS
STEPS = {f"{choice}": bytes([choice]) + STEPS for choice in (0, 2, 1 | 9 << 2, 3 | 3 << 2)}

# Of the target `delivery`: a session of a probe, and acknowledgements.
MESSAGE = struct.pack(">HHIII", 10, 16, 1, 0, 1)
SESSION = b"\1\0\0\0" + bytes(range(16))
SESSION += b"".join(struct.pack(">B3xQQ", 2, 7, number) + MESSAGE for number in range(3))
SESSION += struct.pack(">B3xQQ", 3, 7, 2) + struct.pack(">B3xQQ", 4, 0, 0)
FRAMES_OF = {"session": SESSION, "acknowledgements": struct.pack(">B3xQQQ", 5, 7, 1, 2) * 3}

TARGETS = {"delivery": FRAMES_OF, "packet": PACKETS, "cache": STEPS, "ipfix": MESSAGES, "ipfix_roundtrip": {"empty": b""}, "capture_file": CAPTURES}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for target, seeds in TARGETS.items():
        directory = os.path.join(sys.argv[1], target)
        os.makedirs(directory, exist_ok=True)
        for name, octets in seeds.items():
            with open(os.path.join(directory, name.replace(" ", "-")), "wb") as file:
                file.write(octets)


if __name__ == "__main__":
    main()
