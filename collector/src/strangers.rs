//! What anyone who reaches the collector can make it spend, by address and by session: bounds, each with its counter.
//!
//! | bound | constant | counter |
//! |---|---|---|
//! | connections of one address | `--sessions-per-address` | `refuse.address_max` |
//! | new connections of one address (RFC 7011, 11.4) | [`CONNECTS_BURST`], then one in [`CONNECT_INTERVAL`] | `refuse.rate` |
//! | sessions, all | [`crate::listener::SESSIONS_MAX`] | `refuse.sessions_max` |
//! | handshakes under way | [`crate::listener::HANDSHAKES_MAX`] | `refuse.half_open_max` |
//! | time of a handshake | [`crate::stream::HANDSHAKE_LIMIT`] | `refuse.handshake_timeout` |
//! | time of a Message that was begun | [`crate::stream::MESSAGE_LIMIT`] | `end.message_timeout` |
//! | Templates and their fields | [`TEMPLATES_MAX`], [`TEMPLATE_FIELDS_MAX`] | `template_refusals` |
//! | memory of a session | [`SESSION_OCTETS_MAX`] | the bounds above |

#![forbid(unsafe_code)]

use crate::delivery::PENDING_MAX;
use crate::stream::{READ_OCTETS, UNREAD_ACKS_OCTETS};
use nagare_wire::delivery::Ack;
use nagare_wire::ipfix::{DOMAINS_MAX, FieldSpecifier, MESSAGE_MAX, TEMPLATE_FIELDS_MAX, TEMPLATES_MAX};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Connections of one address at once, unless `--sessions-per-address` says otherwise: many sites behind one NAT still fit.
pub const SESSIONS_PER_ADDRESS: usize = 256;
/// Connections that an address may make one right after the other: all its probes, twice.
pub const CONNECTS_BURST: u32 = 512;
/// After those, one in this time. A probe tries once a minute.
pub const CONNECT_INTERVAL: Duration = Duration::from_millis(50);
/// Addresses remembered at once; those that are forgotten cost an entry again.
pub const ADDRESSES_MAX: usize = 1 << 16;

/// What the hash map and the tree of a session take for each Template and each Observation Domain, octets; more than they do.
const ENTRY_OCTETS: usize = 160;
/// What an acknowledgement that waits takes, octets.
const ACK_OCTETS: usize = size_of::<(u64, Ack)>();
/// What a TLS connection holds: a handshake message of the longest kind, records on their way in and out.
pub const TLS_OCTETS_MAX: usize = 192 << 10;
/// The memory that one session can be made to hold, octets: a Message that is being read (a buffer grows by doubling), TLS, Templates
/// with their fields, Observation Domains, acknowledgements that wait for the store or for the probe.
pub const SESSION_OCTETS_MAX: usize = 2 * (MESSAGE_MAX + READ_OCTETS)
    + TLS_OCTETS_MAX
    + TEMPLATE_FIELDS_MAX * size_of::<FieldSpecifier>()
    + (TEMPLATES_MAX + DOMAINS_MAX) * ENTRY_OCTETS
    + 2 * PENDING_MAX * ACK_OCTETS
    + 2 * UNREAD_ACKS_OCTETS;

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// Too many connections are open.
    Open,
    /// Too many were made in too short a time.
    Rate,
}

struct Address {
    open: usize,
    /// Until when its connections are paid for, at one in [`CONNECT_INTERVAL`].
    paid: Instant,
}

/// Who is connected, by address. Of IPv6 a /64 counts as one: a host has as many addresses there as it likes.
pub struct Addresses {
    open_max: usize,
    known: HashMap<IpAddr, Address>,
}

impl Addresses {
    /// Nobody yet; `open_max` connections an address.
    pub fn new(open_max: usize) -> Addresses {
        Addresses { open_max, known: HashMap::new() }
    }

    /// Counts a connection in.
    ///
    /// # Errors
    /// There are too many already; it is not counted.
    pub fn admit(&mut self, peer: IpAddr, now: Instant) -> Result<(), Excess> {
        let peer = group(peer);
        if self.known.len() >= ADDRESSES_MAX && !self.known.contains_key(&peer) {
            self.tick(now);
            if self.known.len() >= ADDRESSES_MAX {
                return Err(Excess::Rate);
            }
        }
        let address = self.known.entry(peer).or_insert(Address { open: 0, paid: now });
        let due = address.paid.max(now);
        if due.saturating_duration_since(now) >= CONNECT_INTERVAL * CONNECTS_BURST {
            return Err(Excess::Rate);
        }
        address.paid = due + CONNECT_INTERVAL;
        if address.open >= self.open_max {
            return Err(Excess::Open);
        }
        address.open += 1;
        Ok(())
    }

    /// Counts one out.
    pub fn release(&mut self, peer: IpAddr) {
        if let Some(address) = self.known.get_mut(&group(peer)) {
            address.open = address.open.saturating_sub(1);
        }
    }

    /// Forgets who has nothing open and everything paid.
    pub fn tick(&mut self, now: Instant) {
        self.known.retain(|_, address| address.open > 0 || address.paid > now);
    }
}

fn group(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share() {
        let now = Instant::now();
        let mut addresses = Addresses::new(3);
        let (one, other) = ("192.0.2.1".parse().expect("one"), "192.0.2.2".parse().expect("another"));
        assert!((0..3).all(|_| addresses.admit(one, now).is_ok()));
        assert_eq!(addresses.admit(one, now), Err(Excess::Open));
        assert_eq!(addresses.admit("::ffff:192.0.2.1".parse().expect("the same"), now), Err(Excess::Open));
        assert!(addresses.admit(other, now).is_ok());
        addresses.release(one);
        assert!(addresses.admit(one, now).is_ok());
        let near: [IpAddr; 2] = ["2001:db8::1", "2001:db8::2:1"].map(|text| text.parse().expect("an address"));
        assert!((0..3).all(|index| addresses.admit(near[index % 2], now).is_ok()));
        assert_eq!(addresses.admit(near[0], now), Err(Excess::Open), "a /64 is one");
    }

    #[test]
    fn an_address_has_its_rate() {
        let now = Instant::now();
        let mut addresses = Addresses::new(usize::MAX);
        let peer = "192.0.2.1".parse().expect("an address");
        let admitted =
            |addresses: &mut Addresses, at| (0..10_000).filter(|_| addresses.admit(peer, at).is_ok()).count();
        assert_eq!(admitted(&mut addresses, now), CONNECTS_BURST as usize);
        assert_eq!(admitted(&mut addresses, now + Duration::from_secs(1)), 20);
        (0..CONNECTS_BURST + 20).for_each(|_| addresses.release(peer));
        addresses.tick(now + Duration::from_secs(2));
        assert_eq!(addresses.known.len(), 1, "it has not paid yet");
        addresses.tick(now + Duration::from_secs(60));
        assert!(addresses.known.is_empty());
    }
}
