//! A veth pair in a network namespace, for one test at a time, and frames to send over it.
#![allow(dead_code)] // Not every test uses all of it.

use nagare_ebpf::{Program, Steering};
use nagare_probe::capture::guard::interface_index;
use nagare_wire::packet::Tunnels;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The captured end of the pair, and the sending one.
pub const TAP: &str = "tap0";
pub const SENDER: &str = "send0";
pub const SEED: u32 = 0xfeed;

/// A network namespace with a veth pair, for one test at a time; removed on drop.
pub struct Wire {
    pub namespace: String,
    _turn: File,
}

impl Wire {
    /// `None`, with the reason printed, where this machine does not permit it.
    pub fn new(queues: u32) -> Option<Wire> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let turn =
            File::create(std::env::temp_dir().join(format!("nagare-xdp-test-{}.lock", nix::unistd::getuid()))).unwrap();
        turn.lock().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("ng-a-{}-{number}", std::process::id());
        let permitted = Program::load(Steering { seed: SEED, workers: 1, tunnels: Tunnels::Outer }, 1, 64)
            .map_err(|error| error.to_string());
        if let Err(reason) = permitted.and_then(|_| ip(&["netns", "add", &namespace])) {
            println!("skipped: XDP in a network namespace: {reason}");
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "nothing may be skipped where CI=true");
            return None;
        }
        let wire = Wire { namespace, _turn: turn };
        // The kernel's own IPv6 packets would disturb the counts.
        wire.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")).ok();
        let queues = queues.to_string();
        let side = ["numrxqueues", &queues, "numtxqueues", &queues];
        wire.ip(&[&["link", "add", TAP], &side[..], &["type", "veth", "peer", "name", SENDER], &side].concat());
        wire.ip(&["link", "set", TAP, "up"]);
        wire.ip(&["link", "set", SENDER, "up"]);
        Some(wire)
    }

    pub fn ip(&self, arguments: &[&str]) -> String {
        ip(&[&["-n", &self.namespace], arguments].concat()).unwrap()
    }

    /// What `ip -d link` says of the captured end.
    pub fn tap(&self) -> String {
        self.ip(&["-d", "link", "show", "dev", TAP])
    }

    /// Runs `work` on a thread inside the namespace, with a /sys that shows it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = File::open(format!("/run/netns/{}", self.namespace)).unwrap();
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                mount("none", "/", None, libc::MS_SLAVE | libc::MS_REC);
                mount("sysfs", "/sys", Some(c"sysfs"), 0);
                work()
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.namespace]).ok();
    }
}

pub fn ip(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn mount(source: &str, target: &str, kind: Option<&std::ffi::CStr>, flags: libc::c_ulong) {
    let (source, target) = (std::ffi::CString::new(source).unwrap(), std::ffi::CString::new(target).unwrap());
    let kind = kind.map_or(std::ptr::null(), std::ffi::CStr::as_ptr);
    // SAFETY: all are strings that end in NUL, or null, and live to the end of the call.
    let outcome = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, std::ptr::null()) };
    assert_eq!(outcome, 0, "mount {target:?}: {}", std::io::Error::last_os_error());
}

/// Sends whole frames out of the sending end.
pub struct Sender(socket2::Socket);

impl Sender {
    pub fn new() -> Sender {
        let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, None).unwrap();
        let index = interface_index(SENDER).unwrap();
        // SAFETY: all zeroes are a value of this C structure of integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        // SAFETY: the pointer and length are those of a valid `sockaddr_ll`.
        let outcome = unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        };
        assert_eq!(outcome, 0);
        Sender(socket)
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(self.0.send(frame).unwrap(), frame.len());
    }
}

/// A UDP packet of one flow of many, in either direction: 64 octets with the frame check sequence.
pub fn frame(flow: u16, back: bool) -> Vec<u8> {
    let (near, far) = ([10, 0, (flow >> 8) as u8, flow as u8], [192, 0, 2, 1]);
    let (source, destination) = if back { (far, near) } else { (near, far) };
    let (sport, dport) = if back { (443u16, 1024 + flow) } else { (1024 + flow, 443u16) };
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(source.into_iter().chain(destination));
    frame.extend(sport.to_be_bytes().into_iter().chain(dport.to_be_bytes()).chain([0, 26, 0, 0]));
    frame.resize(60, 0);
    frame
}
