//! The symmetric flow hash by which packets are steered to workers.
//!
//! `ebpf/bpf/nagare.bpf.c` computes the same hash of the same fields; a test runs both on the same packets. It is the sum
//! of a mix of each end, so that both directions of a conversation meet at one worker. The seed is random, so that a
//! sender cannot aim all flows at one worker. The VLAN is not in it: a mirror may tag the two directions differently.

use crate::flow::FlowKey;
use std::net::IpAddr;

/// The hash of a key; the same for both directions.
pub fn hash(key: &FlowKey, seed: u32) -> u32 {
    let ends = mix(key.source, key.source_port, seed).wrapping_add(mix(key.destination, key.destination_port, seed));
    let hash = (ends ^ u32::from(key.protocol)).wrapping_mul(0xC2B2_AE3D);
    hash ^ (hash >> 16)
}

/// The worker (0 to `workers` - 1) that a hash is steered to.
pub fn worker(hash: u32, workers: u32) -> u32 {
    ((u64::from(hash) * u64::from(workers)) >> 32) as u32
}

fn mix(address: IpAddr, port: u16, seed: u32) -> u32 {
    let fold = |h: u32, word: u32| {
        let h = (h ^ word).wrapping_mul(0x9E37_79B1);
        h ^ (h >> 15)
    };
    let h = match address {
        IpAddr::V4(address) => fold(seed, u32::from(address)),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            [96, 64, 32, 0].into_iter().fold(seed, |h, shift| fold(h, (bits >> shift) as u32))
        }
    };
    let h = (h ^ u32::from(port)).wrapping_mul(0x85EB_CA77);
    h ^ (h >> 13)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(host: u32, port: u16) -> FlowKey {
        FlowKey {
            source: IpAddr::from((0x0a00_0000u32 + host).to_be_bytes()),
            destination: "192.0.2.1".parse().unwrap(),
            source_port: port,
            destination_port: 443,
            protocol: 6,
            vlan: 0,
            ..FlowKey::default()
        }
    }

    #[test]
    fn directions_meet_and_flows_spread() {
        for workers in [2u32, 3, 8] {
            let mut load = vec![0u32; workers as usize];
            for host in 0..1000 {
                for port in 0..8 {
                    let key = key(host, 1024 + port);
                    assert_eq!(hash(&key, 7), hash(&key.reversed(), 7));
                    load[worker(hash(&key, 7), workers) as usize] += 1;
                }
            }
            let fair = 8000 / workers;
            assert!(load.iter().all(|n| n.abs_diff(fair) < fair / 5), "{load:?}");
        }
    }
}
