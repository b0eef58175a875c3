//! What tests of the probe have in common: flows that are known by a number, and numbers that come again by their seed.

#![allow(dead_code)] // Each test takes what it needs.

use nagare_wire::flow::{Counters, FlowKey, FlowRecord};

/// A generator whose runs can be had again by their seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The flow of a number.
pub fn flow(number: u32) -> FlowRecord {
    let key = FlowKey {
        source: number.to_be_bytes().into(),
        destination: [192, 0, 2, 1].into(),
        source_port: 1024,
        destination_port: 443,
        protocol: 17,
        vlan: 0,
        ..FlowKey::default()
    };
    let forward = Counters { packets: 1 + u64::from(number % 7), octets: 60 + u64::from(number % 1000), tcp_flags: 0 };
    FlowRecord { key, start_us: 1000, end_us: 2000, forward, end_reason: 1, ..FlowRecord::default() }
}

/// The number of a flow.
pub fn number_of(flow: &FlowRecord) -> u32 {
    match flow.key.source {
        std::net::IpAddr::V4(address) => address.into(),
        std::net::IpAddr::V6(_) => panic!("no test has flows of IPv6"),
    }
}
