//! What keeps a probe from cutting its host off, and what it changes of an interface and puts back.
#![forbid(unsafe_code)]

use crate::sys;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_indextoname, if_nameindex, if_nametoindex};
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

/// Why an interface is not captured from.
#[derive(Debug)]
pub enum GuardError {
    /// There is no such interface.
    Unknown {
        /// What was asked for.
        interface: String,
        /// The interfaces that there are.
        existing: Vec<String>,
    },
    /// It is down: no frame would come.
    Down {
        /// The interface.
        interface: String,
    },
    /// The host uses it.
    InUse {
        /// The interface.
        interface: String,
        /// What the host has there, as in "it has the address 192.0.2.1".
        evidence: String,
    },
    /// It could not be made promiscuous.
    Promiscuous {
        /// The interface.
        interface: String,
        /// Why not.
        cause: io::Error,
    },
    /// The kernel did not tell.
    Io {
        /// What was read.
        what: String,
        /// Why not.
        cause: io::Error,
    },
}

impl fmt::Display for GuardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GuardError::Unknown { interface, existing } => {
                write!(f, "there is no interface {interface:?}; there are: {}", existing.join(", "))
            }
            GuardError::Down { interface } => {
                write!(f, "interface {interface} is down, no frame would come: `ip link set {interface} up`")
            }
            GuardError::InUse { interface, evidence } => write!(
                f,
                "the host uses interface {interface}: {evidence}. Captured frames are consumed and never reach the host, \
                 which would be cut off there. Capture from a port of its own (a SPAN or tap port), or add --force"
            ),
            GuardError::Promiscuous { interface, cause } => {
                write!(f, "cannot make interface {interface} promiscuous: {cause}; it needs CAP_NET_RAW, or root")
            }
            GuardError::Io { what, cause } => write!(f, "cannot read {what}: {cause}"),
        }
    }
}

impl std::error::Error for GuardError {}

/// Refuses an interface that is missing or down, and, unless `force`, one that the host uses: with an address (link-local
/// ones aside), a route, or a place in a bridge or bond.
///
/// # Errors
/// The refusal, in words for the person at the probe.
pub fn refuse_unless_dedicated(interface: &str, force: bool) -> Result<(), GuardError> {
    refuse_unless_up(interface)?;
    if force {
        return Ok(());
    }
    let evidence = match address(interface)? {
        Some(address) => Some(format!("it has the address {address}")),
        None => match master(interface) {
            Some(master) => Some(format!("it belongs to {master} (a bridge, bond or the like)")),
            None => route(interface)?.map(|route| format!("it has the route {route}")),
        },
    };
    match evidence {
        Some(evidence) => Err(GuardError::InUse { interface: interface.into(), evidence }),
        None => Ok(()),
    }
}

/// Refuses an interface that is missing or down.
///
/// # Errors
/// The refusal, in words for the person at the probe.
pub fn refuse_unless_up(interface: &str) -> Result<(), GuardError> {
    interface_index(interface)?;
    if is_up(interface)? { Ok(()) } else { Err(GuardError::Down { interface: interface.into() }) }
}

/// [`hardware_type`] of the loopback.
pub const LOOPBACK: u32 = 772;

/// The number of the interface's kind (ARPHRD_, as in linux/if_arp.h).
///
/// # Errors
/// Where /sys does not show the interface.
pub fn hardware_type(interface: &str) -> Result<u32, GuardError> {
    let path = class(interface).join("type");
    let parse = |text: String| text.trim().parse().map_err(io::Error::other);
    let number = fs::read_to_string(&path).and_then(parse);
    number.map_err(|cause| GuardError::Io { what: path.display().to_string(), cause })
}

/// Whether the interface with this index is still there, as an error if not.
///
/// # Errors
/// It is gone.
pub fn check_exists(ifindex: u32) -> io::Result<()> {
    match if_indextoname(ifindex) {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::other(format!("the captured interface is gone: {error}"))),
    }
}

/// The names of the interfaces that there are.
pub fn interfaces() -> Vec<String> {
    let names = if_nameindex().map(|all| all.iter().map(|i| i.name().to_string_lossy().into_owned()).collect());
    names.unwrap_or_default()
}

/// The index of an interface.
///
/// # Errors
/// Where there is no such interface; the error lists those that there are.
pub fn interface_index(interface: &str) -> Result<u32, GuardError> {
    // The name becomes part of paths under /sys.
    let is_name = !interface.is_empty() && !interface.contains('/') && !interface.starts_with('.');
    let index = is_name.then(|| if_nametoindex(interface).ok()).flatten();
    index.ok_or_else(|| GuardError::Unknown { interface: interface.into(), existing: interfaces() })
}

/// The number of receive queues that an interface has now.
///
/// # Errors
/// Where /sys does not show the interface.
pub fn rx_queues(interface: &str) -> Result<u32, GuardError> {
    let path = class(interface).join("queues");
    let read = || -> io::Result<u32> {
        let mut queues = 0;
        for entry in fs::read_dir(&path)? {
            queues += u32::from(entry?.file_name().to_string_lossy().starts_with("rx-"));
        }
        Ok(queues.max(1))
    };
    read().map_err(|cause| GuardError::Io { what: path.display().to_string(), cause })
}

fn class(interface: &str) -> PathBuf {
    Path::new("/sys/class/net").join(interface)
}

fn addresses() -> Result<nix::ifaddrs::InterfaceAddressIterator, GuardError> {
    getifaddrs().map_err(|cause| GuardError::Io { what: "the addresses of the interfaces".into(), cause: cause.into() })
}

fn is_up(interface: &str) -> Result<bool, GuardError> {
    Ok(addresses()?.any(|a| a.interface_name == interface && a.flags.contains(InterfaceFlags::IFF_UP)))
}

/// An address of the interface that is not link-local IPv6.
fn address(interface: &str) -> Result<Option<String>, GuardError> {
    let all = addresses()?.filter(|a| a.interface_name == interface).filter_map(|a| a.address);
    Ok(all
        .filter_map(|address| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => Some(v4.ip().to_string()),
            (_, Some(v6)) if !link_local(v6.ip()) => Some(v6.ip().to_string()),
            _ => None,
        })
        .next())
}

fn link_local(address: Ipv6Addr) -> bool {
    address.is_unicast_link_local() || address.is_multicast()
}

fn master(interface: &str) -> Option<String> {
    let target = fs::read_link(class(interface).join("master")).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// A route over the interface, link-local and multicast IPv6 aside.
fn route(interface: &str) -> Result<Option<String>, GuardError> {
    // The thread's own view: it may be in another network namespace than the process.
    let read = |name: &str| -> Result<String, GuardError> {
        let path = format!("/proc/thread-self/net/{name}");
        match fs::read_to_string(&path) {
            // A kernel without IPv6 has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            outcome => outcome.map_err(|cause| GuardError::Io { what: path, cause }),
        }
    };
    Ok(route_v4(&read("route")?, interface).or(route_v6(&read("ipv6_route")?, interface)))
}

/// Lines of `/proc/net/route`: interface, destination (hexadecimal, in the host's byte order), gateway, ..., mask in column 7.
fn route_v4(table: &str, interface: &str) -> Option<String> {
    let mut lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let columns = lines.find(|columns| columns.first() == Some(&interface))?;
    let number = |column: usize| u32::from_str_radix(columns.get(column).copied().unwrap_or("0"), 16).unwrap_or(0);
    let destination = std::net::Ipv4Addr::from(number(1).to_ne_bytes());
    Some(format!("{destination}/{}", number(7).count_ones()))
}

/// Lines of `/proc/net/ipv6_route`: destination, prefix length, ..., interface, all hexadecimal but the last.
fn route_v6(table: &str, interface: &str) -> Option<String> {
    table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let destination = Ipv6Addr::from(u128::from_str_radix(columns.first()?, 16).ok()?);
        let prefix = u8::from_str_radix(columns.get(1)?, 16).ok()?;
        let other = columns.last() == Some(&interface) && !(prefix >= 8 && link_local(destination));
        other.then(|| format!("{destination}/{prefix}"))
    })
}

/// An interface hears frames for others as long as this lives. The kernel puts it back, also when the process is killed.
#[derive(Debug)]
pub struct Promiscuous {
    _socket: OwnedFd,
}

impl Promiscuous {
    /// Makes `interface` promiscuous.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`, or where there is no such interface.
    pub fn new(interface: &str) -> Result<Promiscuous, GuardError> {
        let socket = sys::promiscuous_socket(interface_index(interface)?);
        let socket = socket.map_err(|cause| GuardError::Promiscuous { interface: interface.into(), cause })?;
        Ok(Promiscuous { _socket: socket })
    }
}

/// An offload that changes frames before they are captured: how ethtool reads and sets it (linux/ethtool.h).
struct Offload {
    name: &'static str,
    get: u32,
    set: u32,
    /// The bit of the value that is this offload.
    bit: u32,
    harm: &'static str,
}

const OFFLOADS: [Offload; 3] = [
    Offload { name: "lro", get: 0x25, set: 0x26, bit: 1 << 15, harm: "packets are merged before they are captured" },
    Offload {
        name: "gro",
        get: 0x2b,
        set: 0x2c,
        bit: 1,
        harm: "in generic mode packets are merged before they are captured",
    },
    Offload {
        name: "rxvlan",
        get: 0x25,
        set: 0x26,
        bit: 1 << 8,
        harm: "VLAN tags are taken off before packets are captured",
    },
];

/// Offloads that are switched off as long as this lives.
#[derive(Debug)]
pub struct OffloadGuard {
    interface: String,
    switched_off: Vec<usize>,
}

impl OffloadGuard {
    /// Switches off what of LRO, GRO and VLAN stripping is on. What cannot be switched off is a warning in the log.
    ///
    /// # Errors
    /// Where there is no such interface.
    pub fn new(interface: &str) -> Result<OffloadGuard, GuardError> {
        interface_index(interface)?;
        let mut guard = OffloadGuard { interface: interface.into(), switched_off: Vec::new() };
        for (index, offload) in OFFLOADS.iter().enumerate() {
            match set(interface, offload, false) {
                Ok(true) => guard.switched_off.push(index),
                Ok(false) => {}
                Err(error) => log::warn!(
                    "{interface}: {} stays on ({error}): {}; try `ethtool -K {interface} {} off`",
                    offload.name,
                    offload.harm,
                    offload.name
                ),
            }
        }
        Ok(guard)
    }

    /// The names of the offloads that were on and are off now.
    pub fn switched_off(&self) -> impl Iterator<Item = &'static str> {
        self.switched_off.iter().map(|index| OFFLOADS[*index].name)
    }
}

impl Drop for OffloadGuard {
    fn drop(&mut self) {
        for index in self.switched_off.drain(..).rev() {
            let offload = &OFFLOADS[index];
            if let Err(error) = set(&self.interface, offload, true) {
                log::warn!("{}: {} was on and could not be put back: {error}", self.interface, offload.name);
            }
        }
    }
}

/// Sets an offload; whether that changed anything. An offload that the driver cannot even read is not there.
fn set(interface: &str, offload: &Offload, on: bool) -> io::Result<bool> {
    let read = || sys::ethtool_value(interface, offload.get, 0);
    let Ok(value) = read() else { return Ok(false) };
    if (value & offload.bit != 0) == on {
        return Ok(false);
    }
    sys::ethtool_value(interface, offload.set, value ^ offload.bit)?;
    match read()? & offload.bit != 0 {
        state if state == on => Ok(true),
        _ => Err(io::Error::other("the driver ignored it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_an_interface_are_found() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n\
                  eth0\t00000000\t010010AC\t0003\t0\t0\t0\t00000000\t0\n\
                  eth1\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n";
        assert_eq!(route_v4(v4, "eth1").as_deref(), Some("10.0.2.0/24"));
        assert_eq!(route_v4(v4, "eth0").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(route_v4(v4, "eth2"), None);
        let none = "00000000000000000000000000000000 00";
        let line = |destination: &str, prefix: &str, interface: &str| {
            format!("{destination} {prefix} {none} {none} 00000100 00000001 00000000 00000001 {interface:>8}\n")
        };
        let v6 = line("fe800000000000000000000000000000", "40", "eth0")
            + &line("ff000000000000000000000000000000", "08", "eth0")
            + &line("20010db8000000000000000000000000", "20", "eth1")
            + &line("00000000000000000000000000000000", "00", "eth2");
        assert_eq!(route_v6(&v6, "eth0"), None);
        assert_eq!(route_v6(&v6, "eth1").as_deref(), Some("2001:db8::/32"));
        assert_eq!(route_v6(&v6, "eth2").as_deref(), Some("::/0"));
        assert_eq!(route_v6("damaged line", "line"), None);
    }

    #[test]
    fn the_loopback_is_refused_and_unknown_names_are_answered() {
        let refused = refuse_unless_dedicated("lo", false).unwrap_err().to_string();
        assert!(
            refused.contains("127.0.0.1") && refused.contains("consumed") && refused.contains("--force"),
            "{refused}"
        );
        refuse_unless_dedicated("lo", true).unwrap();
        for name in ["no-such-one", "", "../x", "a\0b"] {
            let unknown = refuse_unless_dedicated(name, true).unwrap_err().to_string();
            assert!(unknown.contains("lo"), "{unknown}");
        }
    }
}
