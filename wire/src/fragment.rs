//! Later fragments carry no ports: a small bounded table finds those of their datagram's first fragment.

use crate::flow::Tunnel;
use crate::packet::{Fragment, Packet};
use std::net::IpAddr;

/// Slots that one datagram may be kept in; the oldest of them gives way.
const WAYS: usize = 4;

/// A datagram is forgotten after this (RFC 8200, 4.5 gives its reassembly 60 s; IPv4 stacks use 30 s).
const LIFETIME_NS: u64 = 60_000_000_000;

#[derive(Clone, Copy)]
struct Datagram {
    source: IpAddr,
    destination: IpAddr,
    tunnel: Option<Tunnel>,
    identification: u32,
    protocol: u8,
    ports: (u16, u16),
    upper: u8,
    seen_ns: u64,
}

/// Remembers the ports of first fragments, a fixed number of them.
pub struct FragmentTable {
    slots: Box<[Option<Datagram>]>,
    seed: u64,
}

impl FragmentTable {
    /// A table for at least `datagrams` datagrams in flight; `seed` should be random, so that nobody can aim at one slot.
    pub fn new(datagrams: usize, seed: u64) -> FragmentTable {
        FragmentTable { slots: vec![None; slots(datagrams)].into_boxed_slice(), seed }
    }

    /// Memory of a table for so many datagrams, bytes.
    pub fn memory_bytes(datagrams: usize) -> usize {
        slots(datagrams) * size_of::<Option<Datagram>>()
    }

    /// Keeps the ports of a first fragment, gives them to a later one. Without its first fragment a later one keeps port 0.
    pub fn resolve(&mut self, observation: &mut Packet, now_ns: u64) {
        let Some(fragment) = observation.fragment else { return };
        let key = &mut observation.key;
        let same = |slot: &Datagram| {
            slot.identification == fragment.identification
                && slot.protocol == fragment.protocol
                && slot.tunnel == key.tunnel
                && slot.source == key.source
                && slot.destination == key.destination
        };
        let start = self.set(key.source, key.destination, fragment);
        let ways = &mut self.slots[start..start + WAYS];
        if fragment.first {
            let way = ways.iter().position(|slot| slot.as_ref().is_some_and(same)).unwrap_or_else(|| oldest(ways));
            ways[way] = Some(Datagram {
                source: key.source,
                destination: key.destination,
                tunnel: key.tunnel,
                identification: fragment.identification,
                protocol: fragment.protocol,
                ports: (key.source_port, key.destination_port),
                upper: key.protocol,
                seen_ns: now_ns,
            });
        } else if let Some(first) = ways.iter().flatten().find(|slot| same(slot))
            && now_ns.saturating_sub(first.seen_ns) < LIFETIME_NS
        {
            (key.source_port, key.destination_port) = first.ports;
            key.protocol = first.upper;
        }
    }

    fn set(&self, source: IpAddr, destination: IpAddr, fragment: Fragment) -> usize {
        let word = |address: IpAddr| match address {
            IpAddr::V4(a) => u64::from(u32::from(a)),
            IpAddr::V6(a) => {
                let bits = u128::from(a);
                (bits >> 64) as u64 ^ (bits as u64).rotate_left(29)
            }
        };
        let mut hash = self.seed;
        let which = u64::from(fragment.identification) << 8 | u64::from(fragment.protocol);
        for word in [word(source), word(destination), which] {
            hash = (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            hash ^= hash >> 32;
        }
        (hash as usize & (self.slots.len() - 1)) & !(WAYS - 1)
    }
}

/// A whole number of sets, whose index is a mask.
fn slots(datagrams: usize) -> usize {
    datagrams.next_power_of_two().max(WAYS)
}

fn oldest(ways: &[Option<Datagram>]) -> usize {
    // A free slot is older than any.
    let seen_ns = |way: &usize| ways[*way].map(|slot| slot.seen_ns);
    (0..ways.len()).min_by_key(seen_ns).expect("a set has ways")
}
