//! The few system calls that have no safe wrapper in the crates used here.

use std::io;
use std::mem::{offset_of, size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Value of an ethtool feature that is read and set by a command number (linux/ethtool.h, `struct ethtool_value`).
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Reads or sets one value of an interface by the ethtool command `command`; gives the value that the kernel left.
///
/// # Errors
/// The kernel's: `EOPNOTSUPP` or `EINVAL` where the driver does not offer it, `EPERM` without `CAP_NET_ADMIN`.
pub fn ethtool_value(interface: &str, command: u32, data: u32) -> io::Result<u32> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let mut value = EthtoolValue { command, data };
    // SAFETY: all zeroes are a value of this C structure of integers and a pointer.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and the value that it points to live to the end of the call, and for these commands the kernel
    // writes no more than a `struct ethtool_value`.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}

/// Makes an interface promiscuous for as long as the returned socket is open; the kernel puts it back when it closes, however
/// the process ends.
///
/// # Errors
/// The kernel's: `EPERM` without `CAP_NET_RAW`.
pub fn promiscuous_socket(ifindex: u32) -> io::Result<OwnedFd> {
    // Protocol 0: the socket itself receives nothing.
    let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, None)?;
    let membership = libc::packet_mreq {
        mr_ifindex: libc::c_int::try_from(ifindex).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: the pointer and the length are those of `membership`, which lives to the end of the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const membership).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(socket.into()) }
}

/// Reads a socket option into `buffer`; gives the number of bytes that the kernel filled in.
fn socket_option(socket: impl AsFd, level: i32, name: i32, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `length` bytes, which are the buffer's, and says in `length` how many it wrote.
    let outcome = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok((length as usize).min(buffer.len())) }
}

/// The native-endian `u64` at `offset` of what the kernel filled in.
fn u64_at(filled: &[u8], offset: usize, option: &str) -> io::Result<u64> {
    let bytes = filled.get(offset..offset + 8).and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        io::Error::other(format!("this kernel gives {} bytes of {option}, too few for offset {offset}", filled.len()))
    })?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Octets of a TCP connection that the peer has acknowledged (`tcpi_bytes_acked`, Linux 4.1 and newer).
///
/// # Errors
/// Where `socket` is no TCP socket, or the kernel is too old to say.
pub fn tcp_bytes_acked(socket: impl AsFd) -> io::Result<u64> {
    const BYTES_ACKED_AT: usize = 120;
    let mut info = [0; 256];
    let filled = socket_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    u64_at(&info[..filled], BYTES_ACKED_AT, "TCP_INFO")
}

/// What an AF_XDP socket lost: the receiving side of `struct xdp_statistics`, in packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpStatistics {
    /// No free frame, or a packet too long for one.
    pub rx_dropped: u64,
    /// Descriptors in the fill ring that named no frame.
    pub rx_invalid_descs: u64,
    /// The receive ring was full.
    pub rx_ring_full: u64,
    /// Times that the fill ring was found empty; of the queue, not of the socket alone.
    pub rx_fill_ring_empty: u64,
}

/// The statistics of an AF_XDP socket (Linux 5.9 and newer).
///
/// # Errors
/// Where `socket` is no AF_XDP socket, or the kernel is too old.
pub fn xdp_statistics(socket: impl AsFd) -> io::Result<XdpStatistics> {
    let mut bytes = [0; size_of::<libc::xdp_statistics>()];
    let filled = socket_option(socket, libc::SOL_XDP, libc::XDP_STATISTICS, &mut bytes)?;
    let at = |offset| u64_at(&bytes[..filled], offset, "XDP_STATISTICS");
    Ok(XdpStatistics {
        rx_dropped: at(offset_of!(libc::xdp_statistics, rx_dropped))?,
        rx_invalid_descs: at(offset_of!(libc::xdp_statistics, rx_invalid_descs))?,
        rx_ring_full: at(offset_of!(libc::xdp_statistics, rx_ring_full))?,
        rx_fill_ring_empty: at(offset_of!(libc::xdp_statistics, rx_fill_ring_empty_descs))?,
    })
}

/// Lets this process lock as much memory as it asks for, where it may: AF_XDP's frames are locked memory. A process that may
/// not keeps its limit; if that is too low, reserving the frames says so.
pub fn raise_memory_lock_limit() {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the structure lives to the end of the call, which only reads it.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn acknowledged_octets_of_a_connection_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let before = tcp_bytes_acked(&near).unwrap();
        near.write_all(&[7; 1000]).unwrap();
        far.read_exact(&mut [0; 1000]).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while tcp_bytes_acked(&near).unwrap() - before < 1000 {
            assert!(std::time::Instant::now() < deadline, "the kernel never counted the acknowledgement");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(tcp_bytes_acked(&near).unwrap() - before, 1000);
    }

    #[test]
    fn short_answers_and_other_sockets_are_refused() {
        assert!(u64_at(&[0; 120], 120, "TCP_INFO").is_err());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(tcp_bytes_acked(&udp).is_err());
        assert!(xdp_statistics(&udp).is_err());
        assert!(ethtool_value("a name that is far too long", 0, 0).is_err());
    }
}
