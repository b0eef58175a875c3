//! The site's own networks: they decide what is inbound, outbound and internal.

#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address prefix such as `10.0.0.0/8` or `fd00::/8`; a lone address is a prefix of its full length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether `address` lies inside. An IPv4-mapped IPv6 address counts as the IPv4 address that it carries.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                same_prefix(u32::from(network).into(), u32::from(address).into(), 32, self.prefix)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => same_prefix(network.into(), address.into(), 128, self.prefix),
            _ => false,
        }
    }
}

fn same_prefix(a: u128, b: u128, width: u32, prefix: u8) -> bool {
    let host_bits = width - u32::from(prefix).min(width);
    (a ^ b).checked_shr(host_bits).unwrap_or(0) == 0
}

/// A prefix that could not be read; says what was given and what is right.
#[derive(Debug, PartialEq, Eq)]
pub struct NetworkError(String);

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a network: write ADDRESS/PREFIX, as in 10.0.0.0/8 or fd00::/8", self.0)
    }
}

impl std::error::Error for NetworkError {}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || NetworkError(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| error())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.trim().parse().ok().filter(|prefix| *prefix <= width).ok_or_else(error)?,
            None => width,
        };
        Ok(Network { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The networks that are a site's own where nobody says otherwise: private, shared, link-local and loopback addresses
/// (RFC 1918, RFC 6598, RFC 3927, RFC 4193, RFC 4291).
pub fn default_local() -> Vec<Network> {
    let v4 = |a, b, prefix| Network { address: IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), prefix };
    let v6 = |first, prefix| Network { address: IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0)), prefix };
    vec![
        v4(10, 0, 8),
        v4(172, 16, 12),
        v4(192, 168, 16),
        v4(100, 64, 10),
        v4(169, 254, 16),
        v4(127, 0, 8),
        v6(0xfc00, 7),
        v6(0xfe80, 10),
    ]
}

/// Where an address lies, seen from the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// Outside the site's networks.
    Remote = 0,
    /// A host in the site's networks.
    Local = 1,
    /// No single host: multicast, broadcast or the unspecified address. What is sent there stays on the site.
    Group = 2,
}

impl Side {
    /// The side of `address` for a site with the networks `local`.
    pub fn of(address: IpAddr, local: &[Network]) -> Side {
        let address = address.to_canonical();
        if address.is_multicast() || address.is_unspecified() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
            Side::Group
        } else if local.iter().any(|network| network.contains(address)) {
            Side::Local
        } else {
            Side::Remote
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides() {
        let local = default_local();
        for (address, side) in [
            ("10.1.2.3", Side::Local),
            ("172.31.255.255", Side::Local),
            ("172.32.0.0", Side::Remote),
            ("100.64.0.1", Side::Local),
            ("192.0.2.1", Side::Remote),
            ("::ffff:192.168.1.1", Side::Local),
            ("fd12::1", Side::Local),
            ("fe80::1", Side::Local),
            ("2001:db8::1", Side::Remote),
            ("224.0.0.251", Side::Group),
            ("ff02::fb", Side::Group),
            ("255.255.255.255", Side::Group),
            ("0.0.0.0", Side::Group),
        ] {
            assert_eq!(Side::of(address.parse().unwrap(), &local), side, "{address}");
        }
    }

    #[test]
    fn networks_as_text() {
        for text in ["10.0.0.0/8", "fd00::/8", "0.0.0.0/0", "::/0", "192.0.2.7/32"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        assert_eq!("192.0.2.7".parse::<Network>().unwrap().to_string(), "192.0.2.7/32");
        assert!("::/0".parse::<Network>().unwrap().contains("2001:db8::1".parse().unwrap()));
        for text in ["10.0.0.0/33", "::/129", "10/8", "", "/8", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text:?}");
        }
    }
}
