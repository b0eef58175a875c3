//! A network between probe and collector that can be made bad: a TCP proxy.

#![forbid(unsafe_code)]

use fastrand::Rng;
use socket2::SockRef;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a connection looks at the weather.
const POLL: Duration = Duration::from_millis(5);
/// Octets that the network holds of one direction.
const HELD_MAX: usize = 4 << 20;
/// How long an end that was told that all is over may go on talking.
const LINGER: Duration = Duration::from_millis(500);

/// How the network treats all connections, those open and those to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// What is sent arrives so much later.
    pub delay: Duration,
    /// Octets a second of each direction.
    pub octets_per_second: Option<u32>,
    /// One octet of so many is changed.
    pub corrupt_one_in: Option<u32>,
    /// Nothing arrives, and nobody is told.
    pub blackhole: bool,
    /// New connections are reset.
    pub refuse: bool,
    /// What was sent over connections that were [`Cut::Late`] does not arrive yet.
    pub hold_late: bool,
}

/// How the connections of this moment end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cut {
    /// They go on.
    None,
    /// Both ends get a reset; what was on its way is gone.
    Reset,
    /// Both ends get a FIN; what was on its way is gone.
    Finish,
    /// The collector gets a FIN, and the probe may go on talking to nobody.
    HalfToCollector,
    /// The probe gets a FIN, and goes on being heard.
    HalfToProbe,
    /// The probe gets a FIN, and what it had sent arrives later: after what it sends over its next connection.
    Late,
}

impl Cut {
    const ALL: [Cut; 6] = [Cut::None, Cut::Reset, Cut::Finish, Cut::HalfToCollector, Cut::HalfToProbe, Cut::Late];
}

/// The proxy: listens on a port of its own, and leads to whichever port the collector has.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    weather: Mutex<Weather>,
    collector: AtomicU16,
    links: Mutex<Vec<Weak<Link>>>,
    stop: AtomicBool,
    seed: u64,
}

impl Shared {
    fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, Vec<Weak<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Listens on any port of the loopback.
    ///
    /// # Errors
    /// No port is left.
    pub fn start(seed: u64) -> io::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            weather: Mutex::default(),
            collector: AtomicU16::new(0),
            links: Mutex::default(),
            stop: AtomicBool::new(false),
            seed,
        });
        let serving = shared.clone();
        Ok(Proxy { port, shared, thread: Some(std::thread::spawn(move || serve(&listener, &serving))) })
    }

    /// The port that probes connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// New connections lead to this port of the loopback.
    pub fn lead_to(&self, collector: u16) {
        self.shared.collector.store(collector, Ordering::Release);
    }

    /// Changes the weather.
    pub fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.shared.weather());
    }

    /// Ends the connections that are open now.
    pub fn cut(&self, how: Cut) {
        self.shared.links().iter().filter_map(Weak::upgrade).for_each(|link| link.end(how));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.take().map(JoinHandle::join);
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut rng = Rng::with_seed(shared.seed);
    while !shared.stop.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((probe, _)) => open(probe, shared, &mut rng),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Joins a probe's connection with a new one to the collector; resets it where that cannot be.
fn open(probe: TcpStream, shared: &Arc<Shared>, rng: &mut Rng) {
    let collector = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.collector.load(Ordering::Acquire)));
    let (Ok(collector), false) = (collector, shared.weather().refuse) else {
        return reset(&probe);
    };
    for stream in [&probe, &collector] {
        let options = [
            stream.set_nonblocking(false),
            stream.set_nodelay(true),
            stream.set_read_timeout(Some(POLL)),
            stream.set_write_timeout(Some(POLL)),
        ];
        if options.iter().any(Result::is_err) {
            return reset(stream);
        }
    }
    let link = Arc::new(Link { probe, collector, cut: AtomicU8::new(0) });
    let mut links = shared.links();
    links.retain(|link| link.strong_count() > 0);
    links.push(Arc::downgrade(&link));
    for up in [true, false] {
        let pump =
            Pump { link: link.clone(), shared: shared.clone(), up, rng: rng.fork(), held: VecDeque::new(), octets: 0 };
        std::thread::spawn(move || pump.run());
    }
}

/// Closing it will be a reset.
fn reset(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).ok(); // Of a socket that is gone already there is nothing to reset.
}

/// A connection of the probe and one of the collector, joined. Both close when both directions have ended.
struct Link {
    probe: TcpStream,
    collector: TcpStream,
    cut: AtomicU8,
}

impl Link {
    fn end(&self, how: Cut) {
        // The first end is the only one.
        self.cut.compare_exchange(Cut::None as u8, how as u8, Ordering::AcqRel, Ordering::Acquire).ok();
        if how == Cut::Reset {
            reset(&self.probe);
            reset(&self.collector);
        }
    }

    fn cut(&self) -> Cut {
        Cut::ALL[usize::from(self.cut.load(Ordering::Acquire))]
    }
}

/// Octets on their way.
struct Held {
    due: Instant,
    bytes: Vec<u8>,
    sent: usize,
}

/// One direction of a link.
struct Pump {
    link: Arc<Link>,
    shared: Arc<Shared>,
    /// From the probe to the collector.
    up: bool,
    rng: Rng,
    held: VecDeque<Held>,
    octets: usize,
}

impl Pump {
    fn run(mut self) {
        let mut ended = false;
        while !self.shared.stop.load(Ordering::Acquire) {
            match (self.link.cut(), self.up) {
                (Cut::Reset, _) => return,
                (Cut::Finish, _) | (Cut::HalfToCollector, true) | (Cut::HalfToProbe, false) | (Cut::Late, false) => {
                    return self.finish();
                }
                (Cut::Late, true) => return self.arrive_late(),
                _ => {}
            }
            let weather = *self.shared.weather();
            if weather.blackhole {
                std::thread::sleep(POLL);
                continue;
            }
            let outcome = self.take(&weather, &mut ended).and_then(|()| self.give(&weather));
            match outcome {
                Ok(()) if ended && self.held.is_empty() => {
                    self.to().shutdown(Shutdown::Write).ok(); // Who is gone needs no FIN.
                    return;
                }
                Ok(()) => {}
                // As a network does: the other end learns of it by a reset.
                Err(_) => return self.link.end(Cut::Reset),
            }
        }
    }

    fn from(&self) -> &TcpStream {
        if self.up { &self.link.probe } else { &self.link.collector }
    }

    fn to(&self) -> &TcpStream {
        if self.up { &self.link.collector } else { &self.link.probe }
    }

    /// Reads what there is.
    fn take(&mut self, weather: &Weather, ended: &mut bool) -> io::Result<()> {
        if *ended || self.octets >= HELD_MAX {
            std::thread::sleep(POLL);
            return Ok(());
        }
        let mut buffer = [0; 16 << 10];
        let length = match self.from().read(&mut buffer) {
            Ok(0) => {
                *ended = true;
                return Ok(());
            }
            Ok(length) => length,
            Err(error) if is_timeout(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut bytes = buffer[..length].to_vec();
        if let Some(one_in) = weather.corrupt_one_in
            && self.rng.u32(..one_in) < length as u32
        {
            let at = self.rng.usize(..length);
            bytes[at] ^= 1 << self.rng.u32(..8);
        }
        self.octets += length;
        self.held.push_back(Held { due: Instant::now() + weather.delay, bytes, sent: 0 });
        Ok(())
    }

    /// Writes what is due.
    fn give(&mut self, weather: &Weather) -> io::Result<()> {
        while let Some(held) = self.held.front_mut()
            && held.due <= Instant::now()
        {
            let to = if self.up { &self.link.collector } else { &self.link.probe };
            let rest = &held.bytes[held.sent..];
            let most = weather.octets_per_second.map_or(rest.len(), |rate| (rate as usize / 100).clamp(1, rest.len()));
            let sent = match (&mut { to }).write(&rest[..most]) {
                Ok(sent) => sent,
                Err(error) if is_timeout(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            held.sent += sent;
            self.octets -= sent;
            if held.sent == held.bytes.len() {
                self.held.pop_front();
            }
            if let Some(rate) = weather.octets_per_second {
                std::thread::sleep(Duration::from_secs_f64(sent as f64 / f64::from(rate.max(1))));
                return Ok(()); // The weather may have changed meanwhile.
            }
        }
        Ok(())
    }

    /// Says that all is over, and listens for a while to what nobody will hear: closing at once would be a reset.
    fn finish(self) {
        self.to().shutdown(Shutdown::Write).ok();
        let until = Instant::now() + LINGER;
        let mut buffer = [0; 16 << 10];
        while Instant::now() < until && !self.shared.stop.load(Ordering::Acquire) {
            match self.from().read(&mut buffer) {
                Ok(0) => return,
                Err(error) if !is_timeout(&error) => return,
                _ => {}
            }
        }
    }

    /// Keeps what the probe had sent until late connections may arrive, then hands it on and closes.
    fn arrive_late(mut self) {
        let (calm, mut ended) = (Weather::default(), false);
        let until = Instant::now() + LINGER;
        while self.shared.weather().hold_late && !self.shared.stop.load(Ordering::Acquire) {
            if Instant::now() < until && self.take(&calm, &mut ended).is_err() {
                ended = true;
            }
            std::thread::sleep(POLL);
        }
        while !self.held.is_empty() && !self.shared.stop.load(Ordering::Acquire) {
            if self.give(&calm).is_err() {
                return;
            }
        }
        self.to().shutdown(Shutdown::Write).ok();
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy, and both ends of a connection through it.
    fn joined() -> (Proxy, TcpStream, TcpStream, TcpListener) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::start(1).unwrap();
        proxy.lead_to(listener.local_addr().unwrap().port());
        let mut probe = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        let (mut collector, _) = listener.accept().unwrap();
        for end in [&probe, &collector] {
            end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        // Only what carries octets both ways can be cut.
        probe.write_all(b"?").unwrap();
        assert_eq!(hear(&mut collector), "?");
        collector.write_all(b"!").unwrap();
        assert_eq!(hear(&mut probe), "!");
        (proxy, probe, collector, listener)
    }

    fn hear(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 64];
        let length = stream.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn what_is_said_is_heard_and_a_reset_is_one() {
        let (proxy, mut probe, mut collector, _listener) = joined();
        probe.write_all(b"flow").unwrap();
        assert_eq!(hear(&mut collector), "flow");
        collector.write_all(b"ack").unwrap();
        assert_eq!(hear(&mut probe), "ack");
        proxy.cut(Cut::Reset);
        for end in [&mut probe, &mut collector] {
            assert_eq!(end.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[test]
    fn late_octets_come_after_those_of_the_next_connection() {
        let (proxy, mut probe, mut old, listener) = joined();
        proxy.change(|weather| weather.hold_late = true);
        proxy.cut(Cut::Late);
        assert_eq!(probe.read(&mut [0; 8]).unwrap(), 0, "the probe is told that all is over");
        probe.write_all(b"first").unwrap();
        let mut second = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        second.write_all(b"second").unwrap();
        let (mut new, _) = listener.accept().unwrap();
        assert_eq!(hear(&mut new), "second");
        proxy.change(|weather| weather.hold_late = false);
        assert_eq!(hear(&mut old), "first");
        assert_eq!(old.read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn a_half_close_leaves_the_other_direction() {
        let (proxy, mut probe, mut collector, _listener) = joined();
        proxy.cut(Cut::HalfToCollector);
        assert_eq!(collector.read(&mut [0; 8]).unwrap(), 0);
        collector.write_all(b"still here").unwrap();
        assert_eq!(hear(&mut probe), "still here");
    }
}
