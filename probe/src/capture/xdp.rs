//! The AF_XDP source: frames of an interface, steered to workers by the XDP program.
//!
//! Each receive queue of the interface has one UMEM, and on it one socket for each worker; a worker reads its socket of every
//! queue. Frames go back through the queue's one fill ring, which has room for all of them. Nothing is lost without a name:
//! once detached and drained, for each worker `steered = received + rx_dropped + rx_ring_full`.

use super::guard::{self, GuardError, OffloadGuard, Promiscuous};
use super::{CaptureOptions, Detached, Frame, InterfaceCapture, NicLosses, Share, Taken, clock, counted, link_of};
use crate::books::{CaptureBooks, ReadCapture};
use crate::sys::{self, XdpStatistics};
use nagare_ebpf::{Counters, Metadata, Mode, Program};
use nagare_wire::packet::LinkType;
use nix::poll::{PollFd, PollFlags};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use std::{error, fmt, io, thread};
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::socket::SocketCreateError;
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::umem::{CompQueue, FillQueue};
use xsk_rs::{RxQueue, Socket, Umem};

/// Octets before each packet that the kernel keeps for itself, and that are added to them: the metadata's, so that it lies in one
/// line of memory with the packet's headers.
const KERNEL_OCTETS: u32 = 256;
const HEADROOM: u32 = size_of::<Metadata>() as u32;
/// Octets of a packet that a frame of the UMEM holds at most, where frames are not larger than by default.
pub const SNAPLEN_MAX: u32 = 2048 - KERNEL_OCTETS - HEADROOM;
/// Places of the rings for sending, which the probe never does; the kernel wants some.
const UNUSED_RING: u32 = 64;
/// Bytes of a descriptor in a receive or transmit ring, and in a fill or completion ring.
const DESCRIPTOR_BYTES: (usize, usize) = (16, 8);
/// A queue is busy for some milliseconds after its last user closed it.
const BUSY_FOR: Duration = Duration::from_secs(1);
/// A packet that was in the program when it was detached is in its ring after this.
const SETTLE: Duration = Duration::from_millis(20);

impl CaptureOptions {
    /// Frames of a queue's UMEM: all receive rings may be full and as many frames still be free.
    fn frames(&self, workers: u32) -> u32 {
        self.ring_frames.saturating_mul(workers.saturating_add(1))
    }

    /// Octets of a packet that are captured: a frame of the UMEM must hold them, behind what the kernel keeps for itself.
    fn octets_max(&self) -> u32 {
        self.snaplen.min(self.frame_size.saturating_sub(KERNEL_OCTETS + HEADROOM))
    }

    /// Memory of the UMEMs and rings for so many queues and workers, bytes.
    fn memory_bytes(&self, queues: u32, workers: u32) -> usize {
        let (descriptor, address) = DESCRIPTOR_BYTES;
        let frames = self.frames(workers) as usize;
        let sockets = workers as usize * (self.ring_frames + UNUSED_RING) as usize * descriptor;
        let queue = (frames.next_power_of_two() + UNUSED_RING as usize) * address;
        // Each worker keeps a list of frames to give back, which may come to hold all of them.
        let held = workers as usize * frames * size_of::<FrameDesc>();
        queues as usize * (frames * self.frame_size as usize + queue + sockets + held)
    }
}

/// Why an interface cannot be captured from.
#[derive(Debug)]
pub enum XdpError {
    /// The interface itself.
    Interface(GuardError),
    /// Its frames are none of Ethernet.
    NotEthernet(String),
    /// The XDP program.
    Program(nagare_ebpf::Error),
    /// Memory for the frames, or an option of the rings that the kernel refuses.
    Umem {
        /// The receive queue.
        queue: u32,
        /// Bytes of it.
        bytes: usize,
        /// What the kernel, or the library, said.
        cause: String,
    },
    /// A socket could not be bound to a queue.
    Socket {
        /// The receive queue.
        queue: u32,
        /// The worker.
        worker: u32,
        /// What the kernel said.
        cause: io::Error,
    },
}

impl fmt::Display for XdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            XdpError::Interface(error) => error.fmt(f),
            XdpError::NotEthernet(interface) => {
                write!(f, "frames of interface {interface} have no Ethernet header: capture from it with --mode packet")
            }
            XdpError::Program(error) => error.fmt(f),
            XdpError::Umem { queue, bytes, cause } => write!(
                f,
                "cannot reserve {bytes} bytes for the frames of receive queue {queue}: {cause}. It is locked memory: raise \
                 the limit (`ulimit -l`, systemd's LimitMEMLOCK=), or take smaller rings"
            ),
            XdpError::Socket { queue, worker, cause } if cause.raw_os_error() == Some(libc::EBUSY) => write!(
                f,
                "receive queue {queue} is taken by another AF_XDP socket (binding for worker {worker}: {cause}): is another \
                 probe running on the interface?"
            ),
            XdpError::Socket { queue, worker, cause } => {
                write!(f, "cannot bind an AF_XDP socket to receive queue {queue} for worker {worker}: {cause}")
            }
        }
    }
}

impl error::Error for XdpError {}

/// What a worker's sockets lost, in packets. Exact once detached and drained.
pub type Losses = XdpStatistics;

/// The counters of a capture, for whoever keeps the books; they outlive the sources.
pub struct XdpMeter {
    program: Mutex<Program>,
    /// By worker, then by queue.
    sockets: Vec<Vec<Arc<OwnedFd>>>,
    interface: String,
    nic: NicLosses,
}

impl XdpMeter {
    /// What the XDP program did: packets seen, steered to each worker, and dropped for want of a socket.
    ///
    /// # Errors
    /// Where the kernel refuses to read the counters.
    pub fn counters(&self) -> Result<Counters, nagare_ebpf::Error> {
        self.program().counters()
    }

    /// What the sockets of each worker lost.
    ///
    /// # Errors
    /// Where the kernel refuses to tell.
    pub fn losses(&self) -> io::Result<Vec<Losses>> {
        self.sockets.iter().map(|sockets| of_worker(sockets)).collect()
    }

    /// All of it as the books want it. What the kernel refuses to tell is in the log, and missing here.
    pub fn books(&self) -> CaptureBooks {
        // Losses come after the redirect, so they are read before it.
        let losses = self.losses().unwrap_or_else(|error| {
            log::error!("{}: the losses of the AF_XDP sockets cannot be read: {error}", self.interface);
            Vec::new()
        });
        let counters = self.counters().unwrap_or_else(|error| {
            log::error!("{}: {error}", self.interface);
            Counters::default()
        });
        let drops = |loss: &Losses| {
            vec![("drop.rx_dropped".to_string(), loss.rx_dropped), ("drop.rx_ring_full".to_string(), loss.rx_ring_full)]
        };
        let sum = |of: fn(&Losses) -> u64| losses.iter().map(of).sum::<u64>();
        let mut figures = vec![
            ("rx_fill_ring_empty".to_string(), sum(|loss| loss.rx_fill_ring_empty)),
            ("rx_invalid_descs".to_string(), sum(|loss| loss.rx_invalid_descs)),
        ];
        figures.extend(self.nic.figures());
        CaptureBooks {
            seen: counters.seen,
            unsteered: vec![("drop.no_socket".into(), counters.lost)],
            workers: counters.steered.into_iter().zip(losses.iter().map(drops)).collect(),
            figures,
        }
    }

    fn program(&self) -> MutexGuard<'_, Program> {
        self.program.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_worker(sockets: &[Arc<OwnedFd>]) -> io::Result<Losses> {
    let mut sum = Losses::default();
    for socket in sockets {
        let of_queue = sys::xdp_statistics(socket.as_fd())?;
        sum.rx_dropped += of_queue.rx_dropped;
        sum.rx_invalid_descs += of_queue.rx_invalid_descs;
        sum.rx_ring_full += of_queue.rx_ring_full;
        sum.rx_fill_ring_empty += of_queue.rx_fill_ring_empty;
    }
    Ok(sum)
}

/// An interface that is being captured from. Dropping it detaches the XDP program and puts the interface back.
pub struct XdpCapture {
    meter: Arc<XdpMeter>,
    shares: Vec<Share>,
    detached: Detached,
    mode: Mode,
    /// Why frames are copied; `None` with zero-copy.
    why_copied: Option<String>,
    queues: u32,
    memory_bytes: usize,
    _offloads: OffloadGuard,
    _promiscuous: Promiscuous,
}

impl XdpCapture {
    /// Attaches to `interface` and prepares a share for each worker. All memory is reserved here. The interface becomes promiscuous,
    /// its offloads are switched off. Whether the host can spare it is [`guard::refuse_unless_dedicated`]'s to say, before.
    ///
    /// # Errors
    /// Without the capabilities, where another program has the interface, or the kernel refuses rings or memory.
    pub fn open(interface: &str, options: &CaptureOptions) -> Result<XdpCapture, XdpError> {
        let workers = options.workers.max(1);
        let ifindex = guard::interface_index(interface).map_err(XdpError::Interface)?;
        let queues = guard::rx_queues(interface).map_err(XdpError::Interface)?;
        if !link_of(interface).is_ok_and(|link| link == LinkType::Ethernet) {
            return Err(XdpError::NotEthernet(interface.into()));
        }
        sys::raise_memory_lock_limit();
        let nic = NicLosses::new(interface);
        let mut program = Program::load(options.steering(), queues, options.octets_max()).map_err(XdpError::Program)?;
        let promiscuous = Promiscuous::new(interface).map_err(XdpError::Interface)?;
        // Before the program is attached: some drivers make their queues anew.
        let offloads = OffloadGuard::new(interface).map_err(XdpError::Interface)?;
        let mode = program.attach(ifindex, options.force_generic).map_err(XdpError::Program)?;
        let no_zero_copy = match &mode {
            _ if options.force_copy => Some("copy mode was asked for"),
            Mode::Generic { .. } => Some("generic mode has none"),
            Mode::Native => None,
        };
        let mut why_copied = None;
        let mut ports: Vec<Vec<Port>> = (0..workers).map(|_| Vec::new()).collect();
        for queue in 0..queues {
            let opened = open_queue(interface, queue, workers, options, no_zero_copy)?;
            why_copied = why_copied.or(opened.why_copied);
            for (worker, port) in opened.ports.into_iter().enumerate() {
                // The last step: from here frames come.
                program.register(queue, worker as u32, port.socket.as_fd()).map_err(XdpError::Program)?;
                ports[worker].push(port);
            }
        }
        let sockets = ports.iter().map(|ports| ports.iter().map(|port| port.socket.clone()).collect()).collect();
        let detached = Detached::default();
        let (number, busy_poll) = (options.number, options.busy_poll);
        let share = |ports| Share::Xdp(XdpSource { ports, first: 0, number, busy_poll, detached: detached.clone() });
        let shares = ports.into_iter().map(share).collect();
        let program = Mutex::new(program);
        let meter = Arc::new(XdpMeter { program, sockets, interface: interface.into(), nic });
        let memory_bytes = options.memory_bytes(queues, workers);
        Ok(XdpCapture {
            meter,
            shares,
            detached,
            mode,
            why_copied,
            queues,
            memory_bytes,
            _offloads: offloads,
            _promiscuous: promiscuous,
        })
    }

    /// The counters.
    pub fn meter(&self) -> Arc<XdpMeter> {
        self.meter.clone()
    }

    /// How the XDP program runs.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Receive queues of the interface.
    pub fn queues(&self) -> u32 {
        self.queues
    }
}

impl InterfaceCapture for XdpCapture {
    fn startup_line(&self) -> String {
        let mode = match &self.mode {
            Mode::Native => "XDP native".to_string(),
            Mode::Generic { why_not_native } => format!("XDP generic ({why_not_native})"),
        };
        let copy = match &self.why_copied {
            None => "zero-copy".to_string(),
            Some(why) => format!("copy mode (zero-copy: {why})"),
        };
        let (queues, workers) = (counted(self.queues as usize, "queue"), counted(self.meter.sockets.len(), "worker"));
        format!("{}: {queues}, {workers}, {mode}, {copy}", self.meter.interface)
    }

    fn take_shares(&mut self) -> Vec<Share> {
        std::mem::take(&mut self.shares)
    }

    fn books(&self) -> ReadCapture {
        let meter = self.meter();
        Box::new(move || meter.books())
    }

    fn memory(&self) -> (&'static str, u64) {
        ("AF_XDP frames and rings", self.memory_bytes as u64)
    }

    fn detach(&mut self) {
        self.detached.set(SETTLE, || self.meter.program().detach());
    }
}

impl Drop for XdpCapture {
    fn drop(&mut self) {
        self.detach();
    }
}

/// What the workers share of a receive queue.
struct Queue {
    umem: Umem,
    frames: usize,
    /// The fill ring has one producer at a time. The completion ring is unused, but lives as long.
    fill: Mutex<(FillQueue, CompQueue)>,
}

/// A queue with its sockets, one for each worker, before frames come.
struct OpenedQueue {
    ports: Vec<Port>,
    why_copied: Option<String>,
}

fn open_queue(
    interface: &str,
    queue: u32,
    workers: u32,
    options: &CaptureOptions,
    no_zero_copy: Option<&str>,
) -> Result<OpenedQueue, XdpError> {
    let (umem, descriptors) = reserve(queue, workers, options)?;
    let binding = Binding { interface, queue, umem: &umem, ring_frames: options.ring_frames };
    let (first, why_copied) = binding.open_first(no_zero_copy)?;
    let (rx, rings) = first;
    let rings =
        rings.ok_or_else(|| binding.error(0, io::Error::other("the first socket of a queue got no fill ring")))?;
    let mut receivers = vec![rx];
    for worker in 1..workers {
        receivers.push(binding.open(worker, BindFlags::empty())?.0);
    }
    let queue = Arc::new(Queue { umem: umem.clone(), frames: descriptors.len(), fill: Mutex::new(rings) });
    let mut ports = Vec::new();
    for rx in receivers {
        ports.push(Port::new(rx, &queue).map_err(|cause| binding.error(ports.len() as u32, cause))?);
    }
    if options.busy_poll
        && let Some(error) = ports.iter().find_map(|port| sys::prefer_busy_poll(&*port.socket).err())
    {
        log::warn!(
            "{interface}: queue {} is not polled busily ({error}): that takes Linux 5.11 and CAP_NET_ADMIN; it goes on by interrupt",
            binding.queue
        );
    }
    // The first worker gives all frames to the kernel.
    ports[0].held.extend_from_slice(&descriptors);
    ports[0].give_back().map_err(|cause| binding.error(0, cause))?;
    Ok(OpenedQueue { ports, why_copied })
}

fn reserve(queue: u32, workers: u32, options: &CaptureOptions) -> Result<(Umem, Vec<FrameDesc>), XdpError> {
    let frames = options.frames(workers);
    let failure = |cause: &dyn error::Error| XdpError::Umem {
        queue,
        bytes: frames as usize * options.frame_size as usize,
        cause: cause.source().map_or_else(|| cause.to_string(), |source| source.to_string()),
    };
    let ring = |size: u32| QueueSize::new(size).map_err(|error| failure(&error));
    let config = UmemConfig::builder()
        .frame_size(FrameSize::new(options.frame_size).map_err(|error| failure(&error))?)
        .frame_headroom(HEADROOM)
        .fill_queue_size(ring(frames.checked_next_power_of_two().unwrap_or(0))?)
        .comp_queue_size(ring(UNUSED_RING)?)
        .build()
        .map_err(|error| failure(&error))?;
    ring(options.ring_frames)?;
    let frames = NonZeroU32::new(frames).ok_or_else(|| failure(&io::Error::from(io::ErrorKind::InvalidInput)))?;
    Umem::new(config, frames, false).map_err(|error| failure(&error))
}

/// What all sockets of a queue are bound with.
struct Binding<'a> {
    interface: &'a str,
    queue: u32,
    umem: &'a Umem,
    ring_frames: u32,
}

/// A bound socket's receiving side, and the queue's rings with the first one.
type Bound = (RxQueue, Option<(FillQueue, CompQueue)>);

impl Binding<'_> {
    /// Binds the first socket, which decides for the others: with zero-copy where the driver has it, else with copying; then
    /// it says why.
    fn open_first(&self, no_zero_copy: Option<&str>) -> Result<(Bound, Option<String>), XdpError> {
        let why = match no_zero_copy {
            Some(why) => why.to_string(),
            None => match self.open(0, BindFlags::XDP_ZEROCOPY | BindFlags::XDP_USE_NEED_WAKEUP) {
                Ok(bound) => return Ok((bound, None)),
                Err(XdpError::Socket { cause, .. }) if cause.raw_os_error() == Some(libc::EBUSY) => {
                    return Err(self.error(0, cause));
                }
                Err(XdpError::Socket { cause, .. }) => self.no_zero_copy(&cause),
                Err(error) => return Err(error),
            },
        };
        Ok((self.open(0, BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)?, Some(why)))
    }

    fn no_zero_copy(&self, cause: &io::Error) -> String {
        let driver = std::fs::read_link(format!("/sys/class/net/{}/device/driver", self.interface)).ok();
        let driver = driver.as_ref().and_then(|path| Some(format!(" {}", path.file_name()?.to_string_lossy())));
        match cause.raw_os_error() {
            Some(libc::EOPNOTSUPP) => {
                format!("the driver{} does not offer it: EOPNOTSUPP", driver.unwrap_or_default())
            }
            _ => format!("the driver{} refused: {cause}", driver.unwrap_or_default()),
        }
    }

    /// Binds a socket, again and again for a second while the queue is busy.
    fn open(&self, worker: u32, flags: BindFlags) -> Result<Bound, XdpError> {
        let deadline = Instant::now() + BUSY_FOR;
        loop {
            match self.try_open(flags) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                outcome => return outcome.map_err(|cause| self.error(worker, cause)),
            }
        }
    }

    fn try_open(&self, flags: BindFlags) -> io::Result<Bound> {
        let invalid = |error: &dyn fmt::Display| io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
        let size = |size: u32| QueueSize::new(size).map_err(|error| invalid(&error));
        let config = SocketConfig::builder()
            .rx_queue_size(size(self.ring_frames)?)
            .tx_queue_size(size(UNUSED_RING)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(flags)
            .build();
        let interface: Interface = self.interface.parse().map_err(|error| invalid(&error))?;
        // SAFETY: loading of a program by libxdp is inhibited, which is what sharing a queue demands.
        let opened = unsafe { Socket::new(config, self.umem, &interface, self.queue) };
        let (_, rx, rings) = opened.map_err(system_error)?;
        Ok((rx, rings))
    }

    fn error(&self, worker: u32, cause: io::Error) -> XdpError {
        XdpError::Socket { queue: self.queue, worker, cause }
    }
}

fn system_error(error: SocketCreateError) -> io::Error {
    let number = error::Error::source(&error).and_then(|s| s.downcast_ref::<io::Error>()?.raw_os_error());
    number.map_or_else(|| io::Error::other(error.to_string()), io::Error::from_raw_os_error)
}

/// A worker's socket on one queue.
struct Port {
    rx: RxQueue,
    queue: Arc<Queue>,
    /// A second descriptor of the socket.
    socket: Arc<OwnedFd>,
    /// Frames that were received and are to go back to the kernel. They stay here when the closure panics, so none leaks.
    held: Vec<FrameDesc>,
}

impl Port {
    fn new(rx: RxQueue, queue: &Arc<Queue>) -> io::Result<Port> {
        // SAFETY: the descriptor is the socket's, which `rx` keeps open.
        let descriptor = unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) };
        let socket = Arc::new(descriptor.try_clone_to_owned()?);
        Ok(Port { rx, queue: queue.clone(), socket, held: Vec::with_capacity(queue.frames) })
    }

    /// Hands up to `budget` frames to `each`.
    fn take(&mut self, budget: usize, number: u8, clock: &mut Clock, each: &mut impl FnMut(Frame<'_>)) -> usize {
        let kept = self.held.len();
        let budget = budget.min(self.queue.frames - kept);
        self.held.resize(kept + budget, FrameDesc::default());
        // SAFETY: the socket and the descriptors that it fills in are of the queue's UMEM.
        let frames = unsafe { self.rx.consume(&mut self.held[kept..]) };
        self.held.truncate(kept + frames);
        for descriptor in &self.held[kept..] {
            // SAFETY: as below; nothing is read yet. Another core has just written it.
            unsafe { self.queue.umem.data(descriptor) }.contents().first().into_iter().for_each(sys::prefetch);
        }
        for descriptor in &mut self.held[kept..] {
            // SAFETY: the kernel handed this frame over, and it goes back after the loop only.
            let mut data = unsafe { self.queue.umem.data_mut(descriptor) };
            let metadata = take_metadata(data.contents_mut());
            let bytes = data.contents();
            let (time_ns, wire_length) = match metadata {
                Some(of) => (of.time_ns.wrapping_add(clock.since_1970_ns()), of.length),
                None => (clock.now_ns(), bytes.len() as u32),
            };
            each(Frame { link: LinkType::Ethernet, bytes, wire_length, time_ns, interface: number, packets: 1 });
        }
        frames
    }

    /// Gives frames back to the kernel unless another worker is just doing so: then they wait for the next time.
    fn give_back(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let mut rings = match self.queue.fill.try_lock() {
            Ok(rings) => rings,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        let fill = &mut rings.0;
        // SAFETY: the frames are of this UMEM, received or never used, and nobody looks at them any more.
        let given = unsafe { fill.produce(&self.held) };
        // The ring has room for every frame of the UMEM, so it took all; had it not, they would stay here.
        self.held.drain(..given);
        if fill.needs_wakeup() { fill.wakeup(self.rx.fd_mut(), 0) } else { Ok(()) }
    }
}

/// What the program has written before a packet; `None` where the driver left it no room.
fn take_metadata(packet: &mut [u8]) -> Option<Metadata> {
    let place = packet.as_mut_ptr().wrapping_sub(size_of::<Metadata>()).cast::<Metadata>();
    // SAFETY: before each packet there are KERNEL_OCTETS of its own frame of the UMEM, which are nobody else's now. Any octets are a
    // Metadata; that it is aligned does not matter.
    unsafe {
        let metadata = place.read_unaligned();
        // The next packet in this frame must not seem to have this one's.
        (&raw mut (*place).mark).write_unaligned(0);
        (metadata.mark == Metadata::MARK).then_some(metadata)
    }
}

/// The clocks, read when the first frame of a batch asks.
#[derive(Default)]
struct Clock {
    now_ns: Option<u64>,
    since_1970_ns: Option<u64>,
}

impl Clock {
    fn now_ns(&mut self) -> u64 {
        *self.now_ns.get_or_insert_with(clock::now_ns)
    }

    fn since_1970_ns(&mut self) -> u64 {
        *self.since_1970_ns.get_or_insert_with(clock::since_1970_ns)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Here waiting is right: other workers need the frames, and nobody comes back for them.
        let mut rings = self.queue.fill.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as in `give_back`.
        unsafe { rings.0.produce(&self.held) };
    }
}

/// The frames that are steered to one worker, from all queues.
pub struct XdpSource {
    ports: Vec<Port>,
    /// Whose turn it is to be first.
    first: usize,
    number: u8,
    busy_poll: bool,
    detached: Detached,
}

impl Taken for XdpSource {
    fn take(&mut self, budget: usize, each: &mut impl FnMut(Frame<'_>)) -> io::Result<usize> {
        let (mut frames, mut clock) = (0, Clock::default());
        self.first = (self.first + 1) % self.ports.len();
        // Each its part, so that none is read far ahead of the others.
        let part = budget.div_ceil(self.ports.len());
        let (later, sooner) = self.ports.split_at_mut(self.first);
        for port in sooner.iter_mut().chain(later) {
            // What the last round could not give back, because another worker was just doing so or the closure panicked.
            port.give_back()?;
            frames += port.take(part.min(budget - frames), self.number, &mut clock, each);
            port.give_back()?;
        }
        Ok(frames)
    }

    /// Frames that could not be given back are no reason to sleep.
    fn wait_for<'a>(&'a self, descriptors: &mut Vec<PollFd<'a>>) -> bool {
        descriptors.extend(self.ports.iter().map(|port| PollFd::new(port.socket.as_fd(), PollFlags::POLLIN)));
        self.ports.iter().all(|port| port.held.is_empty())
    }

    fn drive(&self) {
        if self.busy_poll {
            self.ports.iter().for_each(|port| sys::busy_poll(&*port.socket));
        }
    }

    /// The kernel tells by an error of the socket that the interface is gone.
    fn check(&self) -> io::Result<()> {
        for port in &self.ports {
            if let Some(error) = socket2::SockRef::from(&*port.socket).take_error()? {
                return Err(io::Error::new(error.kind(), format!("the captured interface is gone: {error}")));
            }
        }
        Ok(())
    }

    fn rings(&self) -> usize {
        self.ports.len()
    }

    fn is_detached(&self) -> bool {
        self.detached.is_set()
    }
}
