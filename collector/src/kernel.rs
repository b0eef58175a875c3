//! What the kernel dropped before the collector could read it.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs;

/// Datagrams that the kernel dropped at UDP sockets with these ports, because their buffers were full: it counts them in
/// `/proc/net/udp` and `/proc/net/udp6`. 0 where it does not tell.
pub fn datagrams_dropped(ports: &HashSet<u16>) -> u64 {
    let tables = ["/proc/net/udp", "/proc/net/udp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(|line| dropped(line, ports)).sum()
}

/// The last column of a line whose local port is one of ours.
fn dropped(line: &str, ports: &HashSet<u16>) -> Option<u64> {
    let (_, port) = line.split_whitespace().nth(1)?.split_once(':')?;
    let ours = u16::from_str_radix(port, 16).is_ok_and(|port| ports.contains(&port));
    line.split_whitespace().last().filter(|_| ours)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_full_socket_shows_its_drops() {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let to = socket.local_addr().expect("an address");
        let ports = HashSet::from([to.port()]);
        assert_eq!(datagrams_dropped(&ports), 0);
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bound");
        for _ in 0..1000 {
            sender.send_to(&[0; 8000], to).expect("sent");
        }
        assert!(datagrams_dropped(&ports) > 0, "8 MB do not fit the buffer of a socket");
    }
}
