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

/// Sets a socket option to a plain value.
fn set_option<T>(socket: impl AsFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `value`, which lives to the end of the call; the kernel only reads it.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets whoever waits for a socket drive the queue that it is bound to, for up to 20 microseconds at a time.
///
/// # Errors
/// On kernels before 5.11, or without `CAP_NET_ADMIN`.
pub fn prefer_busy_poll(socket: impl AsFd) -> io::Result<()> {
    let (on, microseconds, budget): (i32, i32, i32) = (1, 20, 64);
    set_option(&socket, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, &on)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &microseconds)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, &budget)
}

/// Drives the queue of a socket that prefers it.
pub fn busy_poll(socket: impl AsFd) {
    // SAFETY: no buffer is given, so nothing is written. That there is nothing to read is no error here.
    unsafe { libc::recv(socket.as_fd().as_raw_fd(), std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) };
}

/// A packet of AF_PACKET, in its ring.
pub struct RingPacket<'a> {
    /// What was captured of it.
    pub octets: &'a [u8],
    /// Octets that it has on the wire.
    pub length: u32,
    /// When, nanoseconds since 1970.
    pub time_ns: u64,
}

/// An AF_PACKET socket with a ring of blocks (TPACKET_V3; the kernel's packet_mmap.rst describes it).
pub struct PacketRing {
    socket: socket2::Socket,
    memory: *mut u8,
    block_octets: usize,
    blocks: usize,
    /// The block that is read, and how many of its packets are left, from which octet on; none where it is the kernel's.
    block: usize,
    left: u32,
    at: usize,
}

// SAFETY: it owns its memory as a Box does.
unsafe impl Send for PacketRing {}

impl PacketRing {
    /// A ring of `blocks` blocks for an interface; a block that is not full is handed over after `retire_ms` milliseconds. No packet
    /// comes before [`accept_packets`].
    ///
    /// # Errors
    /// The kernel's: `EPERM` without `CAP_NET_RAW`, `ENOMEM` for too much memory.
    pub fn open(ifindex: u32, block_octets: u32, blocks: u32, retire_ms: u32) -> io::Result<PacketRing> {
        let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, None)?;
        accept_packets(&socket, 0)?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_VERSION, &libc::tpacket_versions::TPACKET_V3)?;
        // Room for a VLAN tag that the kernel has taken off.
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_RESERVE, &(VLAN_TAG as u32))?;
        let frame_octets = 2048;
        let request = libc::tpacket_req3 {
            tp_block_size: block_octets,
            tp_block_nr: blocks,
            tp_frame_size: frame_octets,
            tp_frame_nr: block_octets / frame_octets * blocks,
            tp_retire_blk_tov: retire_ms,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let (block_octets, blocks) = (block_octets as usize, blocks as usize);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of the ring that the kernel has just made, of its size.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), block_octets * blocks, access, libc::MAP_SHARED, socket.as_raw_fd(), 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ring = PacketRing { socket, memory: memory.cast(), block_octets, blocks, block: 0, left: 0, at: 0 };
        // SAFETY: all zeroes are a value of this C structure of integers.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = libc::c_int::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the pointer and the length are those of `address`, which lives to the end of the call.
        let outcome = unsafe {
            libc::bind(
                ring.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(ring) }
    }

    fn header(&self) -> *mut libc::tpacket_hdr_v1 {
        // SAFETY: `block` is below `blocks`, so the block is within the mapping; its header follows two words.
        unsafe {
            &raw mut (*self.memory.add(self.block * self.block_octets).cast::<libc::tpacket_block_desc>()).hdr.bh1
        }
    }

    fn status(&self) -> &std::sync::atomic::AtomicU32 {
        // SAFETY: the word is aligned, within the mapping, and shared with the kernel, which changes it atomically.
        unsafe { std::sync::atomic::AtomicU32::from_ptr(&raw mut (*self.header()).block_status) }
    }

    /// Whether a packet can be taken now.
    pub fn is_ready(&self) -> bool {
        self.left > 0 || self.status().load(std::sync::atomic::Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// Hands up to `budget` packets to `each`, with the VLAN tags that the kernel has taken off where `tags`; gives their number.
    pub fn take(&mut self, budget: usize, tags: bool, mut each: impl FnMut(RingPacket<'_>)) -> usize {
        let mut taken = 0;
        while taken < budget && self.enter_block() {
            while taken < budget && self.left > 0 {
                taken += 1;
                // What is read next is known before the closure runs, which may panic.
                let packet = self.next(tags);
                each(packet);
            }
            if self.left == 0 {
                self.status().store(libc::TP_STATUS_KERNEL, std::sync::atomic::Ordering::Release);
                self.block = (self.block + 1) % self.blocks;
            }
        }
        taken
    }

    /// Whether there is a block with packets to be read.
    fn enter_block(&mut self) -> bool {
        while self.left == 0 {
            if !self.is_ready() {
                return false;
            }
            // SAFETY: the block is ours until its status says otherwise, and the kernel wrote its header before.
            let header = unsafe { &*self.header() };
            (self.left, self.at) = (header.num_pkts, header.offset_to_first_pkt as usize);
            if self.left == 0 {
                // The kernel gives back blocks that it closed without a packet.
                self.status().store(libc::TP_STATUS_KERNEL, std::sync::atomic::Ordering::Release);
                self.block = (self.block + 1) % self.blocks;
            }
        }
        true
    }

    fn next(&mut self, tags: bool) -> RingPacket<'_> {
        let block = self.block * self.block_octets;
        // SAFETY: the kernel wrote this header within the block, which is ours now.
        let (start, header) = unsafe {
            let start = self.memory.add(block + self.at);
            (start, &*start.cast::<libc::tpacket3_hdr>())
        };
        self.left -= 1;
        self.at += header.tp_next_offset as usize;
        let (mut from, mut captured, mut length) =
            (usize::from(header.tp_mac), header.tp_snaplen as usize, header.tp_len);
        if tags && header.tp_status & libc::TP_STATUS_VLAN_VALID != 0 && captured >= MACS {
            let kind = match header.hv1.tp_vlan_tpid {
                0 => 0x8100,
                kind => kind,
            };
            let tag = (u32::from(kind) << 16 | header.hv1.tp_vlan_tci & 0xffff).to_be_bytes();
            from -= VLAN_TAG;
            // SAFETY: the reserve makes room for the tag before the frame, in a block that is ours: the addresses move to the
            // front of it.
            unsafe {
                std::ptr::copy(start.add(from + VLAN_TAG), start.add(from), MACS);
                std::ptr::copy_nonoverlapping(tag.as_ptr(), start.add(from + MACS), VLAN_TAG);
            }
            (captured, length) = (captured + VLAN_TAG, length + VLAN_TAG as u32);
        }
        RingPacket {
            // SAFETY: the kernel copied so many octets there, and the block is ours until the caller has looked at them.
            octets: unsafe { std::slice::from_raw_parts(start.add(from), captured) },
            length,
            time_ns: u64::from(header.tp_sec) * 1_000_000_000 + u64::from(header.tp_nsec),
        }
    }
}

/// Octets of the two addresses of an Ethernet frame, and of a VLAN tag after them.
const MACS: usize = 12;
const VLAN_TAG: usize = 4;

impl AsFd for PacketRing {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `open`, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.memory.cast(), self.block_octets * self.blocks) };
    }
}

/// Makes an AF_PACKET socket take the first `octets` of each packet; 0: nothing at all.
///
/// # Errors
/// The kernel's.
pub fn accept_packets(socket: impl AsFd, octets: u32) -> io::Result<()> {
    // A classic BPF program of one instruction: "return so many".
    let mut code = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: octets };
    let program = libc::sock_fprog { len: 1, filter: &raw mut code };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Joins sockets to a group of which each packet goes to one, chosen by a BPF program.
///
/// # Errors
/// The kernel's.
pub fn join_fanout(socket: impl AsFd, group: u16, program: impl AsFd) -> io::Result<()> {
    let group = u32::from(group) | libc::PACKET_FANOUT_EBPF << 16;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &group)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_FANOUT_DATA, &program.as_fd().as_raw_fd())
}

/// Packets that an AF_PACKET socket with a ring has had, those that were dropped included, and the dropped; since the last call.
///
/// # Errors
/// Where `socket` has no such ring.
pub fn packet_statistics(socket: impl AsFd) -> io::Result<(u32, u32)> {
    let mut bytes = [0; size_of::<libc::tpacket_stats_v3>()];
    let filled = socket_option(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut bytes)?;
    let at = |offset: usize| u32::from_ne_bytes(bytes[offset..offset + 4].try_into().expect("four octets"));
    match filled {
        12.. => Ok((at(0), at(4))),
        _ => Err(io::Error::other(format!("this kernel gives {filled} bytes of PACKET_STATISTICS"))),
    }
}

/// Asks for the line of a value ahead of its use.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; the address is that of a live reference.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
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
