//! Writes capture files, right ones and (with what is put together by hand) wrong ones.

/// A packet to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Octets on the wire.
    pub wire_len: u32,
    /// What was captured.
    pub bytes: Vec<u8>,
}

/// Numbers in a file's byte order.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The most significant octet first.
    pub big: bool,
}

impl Order {
    pub fn u16(self, value: u16) -> [u8; 2] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    pub fn u32(self, value: u32) -> [u8; 4] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn u32s(self, values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|value| self.u32(*value)).collect()
    }
}

/// A pcap file.
pub fn pcap(order: Order, nano: bool, link: u32, packets: &[Packet]) -> Vec<u8> {
    let mut file = order.u32s(&[if nano { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }]);
    file.extend([order.u16(2), order.u16(4)].concat());
    file.extend(order.u32s(&[0, 0, 65_535, link]));
    for packet in packets {
        let (seconds, rest) = (packet.time_ns / 1_000_000_000, packet.time_ns % 1_000_000_000);
        let fraction = if nano { rest } else { rest / 1000 };
        file.extend(order.u32s(&[seconds as u32, fraction as u32, packet.bytes.len() as u32, packet.wire_len]));
        file.extend(&packet.bytes);
    }
    file
}

/// One block of a pcapng file, of any type.
pub fn block(order: Order, kind: u32, content: &[u8]) -> Vec<u8> {
    let padded = content.len().next_multiple_of(4);
    let length = order.u32(padded as u32 + 12);
    let mut block = [&order.u32(kind)[..], &length, content].concat();
    block.resize(8 + padded, 0);
    block.extend(length);
    block
}

/// An option, or with code 0 the end of options.
pub fn option(order: Order, code: u16, value: &[u8]) -> Vec<u8> {
    let mut option = [&order.u16(code)[..], &order.u16(value.len() as u16), value].concat();
    option.resize(option.len().next_multiple_of(4), 0);
    option
}

/// A Section Header Block.
pub fn section(order: Order) -> Vec<u8> {
    let content = [&order.u32(0x1a2b_3c4d)[..], &order.u16(1), &order.u16(0), &[0xff; 8]].concat();
    block(order, 0x0a0d_0d0a, &content)
}

/// An Interface Description Block.
pub fn interface(order: Order, link: u16, snap_length: u32, options: &[u8]) -> Vec<u8> {
    block(order, 1, &[&order.u16(link)[..], &order.u16(0), &order.u32(snap_length), options].concat())
}

/// An Enhanced Packet Block; `units` is its time in the interface's units.
pub fn enhanced(order: Order, interface: u32, units: u64, packet: &Packet, options: &[u8]) -> Vec<u8> {
    let (high, low) = ((units >> 32) as u32, units as u32);
    let mut content = order.u32s(&[interface, high, low, packet.bytes.len() as u32, packet.wire_len]);
    content.extend(&packet.bytes);
    content.resize(content.len().next_multiple_of(4), 0);
    content.extend(options);
    block(order, 6, &content)
}

/// A Simple Packet Block.
pub fn simple(order: Order, packet: &Packet) -> Vec<u8> {
    block(order, 3, &[&order.u32(packet.wire_len)[..], &packet.bytes].concat())
}

/// The obsolete Packet Block.
pub fn obsolete(order: Order, interface: u16, units: u64, packet: &Packet) -> Vec<u8> {
    let mut content = [order.u16(interface), order.u16(7)].concat();
    content.extend(order.u32s(&[(units >> 32) as u32, units as u32, packet.bytes.len() as u32, packet.wire_len]));
    content.extend(&packet.bytes);
    block(order, 2, &content)
}

/// A pcapng file of one section and one Ethernet interface whose clock has the resolution `if_tsresol`, of which one unit
/// is `unit_ns(time)` of a time.
pub fn pcapng(order: Order, resolution: u8, units: impl Fn(u64) -> u64, packets: &[Packet]) -> Vec<u8> {
    let mut file = section(order);
    file.extend(interface(order, 1, 65_535, &[option(order, 9, &[resolution]), option(order, 0, &[])].concat()));
    for packet in packets {
        file.extend(enhanced(order, 0, units(packet.time_ns), packet, &[]));
    }
    file
}
