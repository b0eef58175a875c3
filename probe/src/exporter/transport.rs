//! The way to a collector: connects, keeps a Transport Session while it lasts, tries again after it ended.
//!
//! Nothing here blocks: each call of [`Session::step`] goes as far as the sockets allow. Only this module knows TLS.

use super::process::Message;
use crate::counters::Tally;
use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};
use nagare_service::endpoint::{Endpoint, Scheme};
use nagare_service::tls::{self, ClientTls, Side, TlsError};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, pki_types::ServerName};
use socket2::{SockRef, TcpKeepalive};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// RFC 7011, 10.4.4: by default no more than one attempt a minute.
pub const RECONNECT_DEFAULT: Duration = Duration::from_secs(60);
/// A peer that does not answer is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A collector that refuses a client certificate says so after the handshake; a session ticket says that it does not.
/// A collector that sends no tickets costs this wait.
const SETTLE: Duration = Duration::from_secs(1);
/// Octets that may wait for the socket before no more Messages are taken.
const OUT_HIGH: usize = 512 * 1024;
/// How long the collector may take to close its end after ours.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that acknowledges nothing, or takes nothing, for this long is given up; the kernel alone would wait a quarter
/// of an hour.
const PEER_TIMEOUT: Duration = Duration::from_secs(120);
/// A silent connection is tried after this, so that a collector that vanished is missed before records are sent to it.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Reads in one step at most: a collector that never stops talking must not keep the exporter from sending.
const READS_MAX: usize = 16;

/// How to reach a collector.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Where it is; has a host.
    pub endpoint: Endpoint,
    /// How it is verified; used for `tls://`.
    pub tls: ClientTls,
    /// The shortest time between two attempts; up to a quarter more is added at random.
    pub reconnect: Duration,
}

/// What happened to the session.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A session began: Templates go first.
    Opened,
    /// It ended; the flows sent over it that the peer's TCP has not acknowledged.
    Lost(Tally),
}

/// A Transport Session with one collector, or the attempts to get one.
pub struct Session {
    options: SessionOptions,
    host: String,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    side: Side,
    state: State,
    delivered: Tally,
    refused: Tally,
    away_since: Instant,
    /// When the last attempt began.
    attempted: Instant,
}

enum State {
    Waiting { until: Instant },
    Resolving { answer: mpsc::Receiver<io::Result<Vec<SocketAddr>>> },
    Connecting { stream: TcpStream, address: SocketAddr, rest: VecDeque<SocketAddr>, deadline: Instant },
    Stream(Box<Connection>),
    Datagram(Datagrams),
    Closed,
}

impl Session {
    /// Reads the certificates; the first attempt comes with the first step.
    ///
    /// # Errors
    /// The endpoint has no host, or a certificate or key cannot be used.
    pub fn new(options: SessionOptions, now: Instant) -> Result<Session, TlsError> {
        let host = options.endpoint.host.clone().unwrap_or_default();
        let tls = match options.endpoint.scheme {
            Scheme::Tls => Some((tls::client_config(&options.tls)?, tls::server_name(&host)?)),
            Scheme::Tcp | Scheme::Udp => None,
        };
        let side = options.tls.side();
        let state = State::Waiting { until: now };
        Ok(Session {
            options,
            host,
            tls,
            side,
            state,
            delivered: Tally::default(),
            refused: Tally::default(),
            away_since: now,
            attempted: now,
        })
    }

    /// Whether Messages can be sent now.
    pub fn has_room(&self) -> bool {
        match &self.state {
            State::Stream(connection) => connection.is_ready() && connection.out_waiting() < OUT_HIGH,
            State::Datagram(datagrams) => datagrams.waiting.is_empty(),
            _ => false,
        }
    }

    /// Whether a session stands.
    pub fn is_open(&self) -> bool {
        match &self.state {
            State::Stream(connection) => connection.is_ready(),
            State::Datagram(_) => true,
            _ => false,
        }
    }

    /// Whether it was closed, by us and by the collector.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether it goes over UDP.
    pub fn is_datagram(&self) -> bool {
        matches!(self.state, State::Datagram(_))
    }

    /// Whether our end was closed and the collector's not yet.
    pub fn is_closing(&self) -> bool {
        matches!(&self.state, State::Stream(connection) if connection.closing.is_some())
    }

    /// The flows that were sent and are not acknowledged, or over UDP not yet taken by the kernel.
    pub fn outstanding(&self) -> Tally {
        match &self.state {
            State::Stream(connection) => connection.unacknowledged(),
            State::Datagram(datagrams) => sum(datagrams.waiting.iter().map(|message| message.flows)),
            _ => Tally::default(),
        }
    }

    /// How long no session has stood.
    pub fn away(&self, now: Instant) -> Duration {
        if self.is_open() { Duration::ZERO } else { now.saturating_duration_since(self.away_since) }
    }

    /// Whether Messages were sent that are not acknowledged.
    pub fn has_outstanding(&self) -> bool {
        match &self.state {
            State::Stream(connection) => !connection.marks.is_empty(),
            State::Datagram(datagrams) => !datagrams.waiting.is_empty(),
            _ => false,
        }
    }

    /// The flows delivered since the last call: acknowledged by the peer's TCP, or handed to UDP.
    pub fn take_delivered(&mut self) -> Tally {
        std::mem::take(&mut self.delivered)
    }

    /// Takes a Message to send; the caller has asked [`Session::has_room`], and calls [`Session::write`] before it
    /// sleeps.
    pub fn send(&mut self, message: Message) {
        match &mut self.state {
            State::Stream(connection) => connection.send(&message),
            State::Datagram(datagrams) => datagrams.waiting.push_back(message),
            _ => self.refused += message.flows,
        }
    }

    /// Hands to the network what it takes now. What fails here is found, and explained, by the next step.
    pub fn write(&mut self) {
        match &mut self.state {
            State::Stream(connection) => connection.failed = connection.failed.take().or(connection.write().err()),
            State::Datagram(datagrams) => {
                let (sent, refused) = datagrams.write(&self.options.endpoint);
                self.delivered += sent;
                self.refused += refused;
            }
            _ => {}
        }
    }

    /// The flows that the network refused (UDP) since the last call.
    pub fn take_refused(&mut self) -> Tally {
        std::mem::take(&mut self.refused)
    }

    /// Says that nothing more will come.
    pub fn close(&mut self, now: Instant) {
        match &mut self.state {
            State::Stream(connection) => connection.begin_close(now),
            _ => self.state = State::Closed,
        }
    }

    /// Goes as far as the sockets allow. The poll behind `registry` wakes when it is worth while to step again.
    pub fn step(&mut self, registry: &Registry, wake: &Arc<dyn Fn() + Send + Sync>, now: Instant) -> Option<Change> {
        match &mut self.state {
            State::Waiting { until } if now >= *until => self.resolve(wake.clone(), now),
            State::Resolving { answer } => match answer.try_recv() {
                Ok(Ok(addresses)) if !addresses.is_empty() => return self.connect(addresses.into(), registry, now),
                Ok(Ok(_)) => self.wait(now, &format!("{} has no address", self.host)),
                Ok(Err(error)) => self.wait(now, &format!("the name {} cannot be resolved: {error}", self.host)),
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => self.wait(now, "the resolver ended without an answer"),
            },
            State::Connecting { .. } => return self.connecting(registry, now),
            State::Stream(_) => return self.stream(registry, now),
            State::Datagram(_) => self.write(),
            State::Waiting { .. } | State::Closed => {}
        }
        None
    }

    /// Names resolve anew at each attempt, beside the exporter: a slow resolver must not hold records up.
    fn resolve(&mut self, wake: Arc<dyn Fn() + Send + Sync>, now: Instant) {
        self.attempted = now;
        let endpoint = self.options.endpoint.clone();
        let (sender, answer) = mpsc::channel();
        self.state = State::Resolving { answer };
        let resolve = move || {
            // The session may have gone meanwhile: then nobody wants the answer.
            let _ = sender.send(endpoint.resolve());
            wake();
        };
        // Without a thread the sender is dropped, which reads as a resolver that did not answer.
        if let Err(error) = std::thread::Builder::new().name("resolver".into()).spawn(resolve) {
            log::warn!("no thread to resolve {}: {error}", self.host);
        }
    }

    /// Goes to the next address; after the last one waits.
    fn connect(&mut self, mut rest: VecDeque<SocketAddr>, registry: &Registry, now: Instant) -> Option<Change> {
        let mut why = String::from("no address is left");
        while let Some(address) = rest.pop_front() {
            let attempt = match self.options.endpoint.scheme {
                Scheme::Udp => open_datagram(address, registry).map(State::Datagram),
                Scheme::Tcp | Scheme::Tls => open_stream(address, registry).map(|stream| State::Connecting {
                    stream,
                    address,
                    rest: std::mem::take(&mut rest),
                    deadline: now + CONNECT_TIMEOUT,
                }),
            };
            match attempt {
                Ok(state) => {
                    self.state = state;
                    return self.is_datagram().then(|| self.opened("UDP: unencrypted, unacknowledged"));
                }
                Err(error) => why = format!("{address}: {error}"),
            }
        }
        self.wait(now, &why);
        None
    }

    fn connecting(&mut self, registry: &Registry, now: Instant) -> Option<Change> {
        let State::Connecting { stream, address, rest, deadline } = &mut self.state else { return None };
        let failed = match (stream.take_error(), stream.peer_addr()) {
            (Ok(Some(error)), _) | (Err(error), _) => Some(error.to_string()),
            (Ok(None), Ok(_)) => None,
            (Ok(None), Err(_)) if now < *deadline => return None,
            (Ok(None), Err(_)) => Some(format!("no answer in {} s", CONNECT_TIMEOUT.as_secs())),
        };
        let (address, rest) = (*address, std::mem::take(rest));
        if let Some(why) = failed {
            if rest.is_empty() {
                self.wait(now, &format!("{address}: {why}"));
                return None;
            }
            log::info!("{}: {address}: {why}; trying the next address", self.options.endpoint);
            return self.connect(rest, registry, now);
        }
        let State::Connecting { stream, .. } = std::mem::replace(&mut self.state, State::Closed) else { return None };
        tune(&stream);
        let tls = self.tls.as_ref().map(|(config, name)| ClientConnection::new(config.clone(), name.clone()));
        match tls.transpose() {
            Ok(tls) => {
                self.state = State::Stream(Box::new(Connection::new(stream, address, tls, now)));
                self.stream(registry, now)
            }
            Err(error) => {
                self.wait(now, &error.to_string());
                None
            }
        }
    }

    fn stream(&mut self, registry: &Registry, now: Instant) -> Option<Change> {
        let State::Stream(connection) = &mut self.state else { return None };
        let was_ready = connection.is_ready();
        let progress = connection.progress(now);
        self.delivered += connection.take_acknowledged();
        match progress {
            Ok(()) if !was_ready && connection.is_ready() => {
                let how = connection.describe(self.options.tls.insecure);
                Some(self.opened(&how))
            }
            Ok(()) => None,
            Err(end) => {
                let (had_session, lost) = (connection.ready, connection.unacknowledged());
                registry.deregister(&mut connection.stream).ok(); // It is closed next; that deregisters as well.
                let peer = self.options.endpoint.to_string();
                let why = match end {
                    _ if connection.closing.is_some() => {
                        self.state = State::Closed;
                        return had_session.then_some(Change::Lost(lost));
                    }
                    End::Closed if had_session || connection.tls.is_none() => {
                        String::from("the collector closed the connection")
                    }
                    End::Closed => tls::explain_io(&io::ErrorKind::UnexpectedEof.into(), &self.side, &peer),
                    End::Io(error) if !had_session && connection.tls.is_some() => {
                        tls::explain_io(&error, &self.side, &peer)
                    }
                    End::Io(error) => error.to_string(),
                    End::Tls(error) => tls::explain(&error, &self.side, &peer),
                };
                self.wait(now, &why);
                had_session.then_some(Change::Lost(lost))
            }
        }
    }

    fn opened(&mut self, how: &str) -> Change {
        log::info!("connected to {} ({how})", self.options.endpoint);
        if self.options.tls.insecure && self.tls.is_some() {
            log::warn!(
                "--tls-insecure: the certificate of {} was not verified; whoever answers there reads the flows",
                self.options.endpoint
            );
        }
        Change::Opened
    }

    /// Waits for the next attempt: where the last one is long past, only for the random part, which keeps a thousand
    /// probes from coming back in the same second.
    fn wait(&mut self, now: Instant, why: &str) {
        if self.is_open() {
            self.away_since = now;
        }
        let random = (ahash::RandomState::new().hash_one(now) % 1024) as u32;
        let earliest = (self.attempted + self.options.reconnect).saturating_duration_since(now);
        let delay = earliest + self.options.reconnect / 4 * random / 1024;
        log::warn!("{}: {why}; next attempt in {:.1} s", self.options.endpoint, delay.as_secs_f32());
        self.state = State::Waiting { until: now + delay };
    }
}

const TOKEN: Token = Token(1);

fn open_stream(address: SocketAddr, registry: &Registry) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    registry.register(&mut stream, TOKEN, Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

/// Options that a connection works without, if less well: a kernel that has them not is no reason to send nothing.
fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3);
    let outcomes = [
        stream.set_nodelay(true),
        socket.set_tcp_keepalive(&keepalive),
        socket.set_tcp_user_timeout(Some(PEER_TIMEOUT)),
    ];
    outcomes.into_iter().filter_map(Result::err).for_each(|error| log::debug!("a socket option was refused: {error}"));
}

fn open_datagram(address: SocketAddr, registry: &Registry) -> io::Result<Datagrams> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let mut socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    registry.register(&mut socket, TOKEN, Interest::WRITABLE)?;
    Ok(Datagrams { socket, waiting: VecDeque::new() })
}

/// A UDP socket, and the Messages that the kernel has no room for yet.
struct Datagrams {
    socket: UdpSocket,
    waiting: VecDeque<Message>,
}

impl Datagrams {
    /// Sends as far as the kernel has room; gives the flows sent and those that the network refused.
    fn write(&mut self, endpoint: &Endpoint) -> (Tally, Tally) {
        let (mut sent, mut refused) = (Tally::default(), Tally::default());
        while let Some(message) = self.waiting.front() {
            match self.socket.send(&message.bytes) {
                Ok(_) => sent += message.flows,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::debug!("{endpoint}: {error}");
                    refused += message.flows;
                }
            }
            self.waiting.pop_front();
        }
        (sent, refused)
    }
}

/// Why a connection ended.
enum End {
    Closed,
    Io(io::Error),
    Tls(rustls::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Io(error)
    }
}

/// A TCP connection, with TLS or without.
struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<ClientConnection>,
    /// When to go on although the peer has sent no session ticket; set once the handshake is done.
    settle: Option<Instant>,
    ready: bool,
    deadline: Instant,
    /// Set when we have closed our end.
    closing: Option<Instant>,
    /// What goes to the socket, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// Octets put into `out` since the connection began; the peer's acknowledgements count in the same way.
    queued: u64,
    /// Where each Message with flows ends, in that count.
    marks: VecDeque<(u64, Tally)>,
    acknowledged: Tally,
    /// TLS took a Message and encrypted nothing: its keys are used up.
    exhausted: bool,
    /// What the socket said when it was written to between two steps; it says it only once.
    failed: Option<io::Error>,
}

impl Connection {
    fn new(stream: TcpStream, address: SocketAddr, tls: Option<ClientConnection>, now: Instant) -> Connection {
        Connection {
            stream,
            address,
            ready: false,
            tls,
            settle: None,
            deadline: now + CONNECT_TIMEOUT,
            closing: None,
            out: Vec::new(),
            sent: 0,
            queued: 0,
            marks: VecDeque::new(),
            acknowledged: Tally::default(),
            exhausted: false,
            failed: None,
        }
    }

    fn is_ready(&self) -> bool {
        self.ready && self.closing.is_none()
    }

    fn out_waiting(&self) -> usize {
        self.out.len() - self.sent
    }

    fn describe(&self, insecure: bool) -> String {
        let version = match self.tls.as_ref().map(|tls| tls.protocol_version()) {
            Some(Some(ProtocolVersion::TLSv1_3)) => "TLS 1.3",
            Some(_) => "TLS 1.2",
            None => return format!("{}, TCP: unencrypted", self.address),
        };
        format!("{}, {version}, {}", self.address, if insecure { "not verified" } else { "verified" })
    }

    fn send(&mut self, message: &Message) {
        let before = self.queued;
        let written = match &mut self.tls {
            None => {
                self.out.extend_from_slice(&message.bytes);
                self.queued += message.bytes.len() as u64;
                Ok(())
            }
            Some(tls) => tls.writer().write_all(&message.bytes).and_then(|()| self.take_from_tls()),
        };
        // Under TLS 1.2 rustls drops silently what its keys may not encrypt any more. What did not become octets is never
        // acknowledged, and the connection has to end.
        self.exhausted |= written.is_err() || self.queued - before < message.bytes.len() as u64;
        self.marks.push_back((if self.exhausted { u64::MAX } else { self.queued }, message.flows));
    }

    /// Moves what rustls has for the peer into `out`, where its octets can be counted.
    fn take_from_tls(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            self.queued += tls.write_tls(&mut self.out)? as u64;
        }
        Ok(())
    }

    fn begin_close(&mut self, now: Instant) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        self.closing = Some(now + CLOSE_TIMEOUT);
    }

    fn progress(&mut self, now: Instant) -> Result<(), End> {
        let outcome = self.exchange();
        // Also of a connection that ended: what had arrived before is delivered.
        self.acknowledge();
        outcome?;
        self.settle(now)?;
        if self.exhausted {
            return Err(End::Io(io::Error::other("the keys of this TLS session are used up, a new one is needed")));
        }
        match self.closing {
            Some(until) if now >= until => Err(End::Closed),
            Some(_) if self.out_waiting() == 0 => {
                self.stream.shutdown(std::net::Shutdown::Write).ok(); // Said twice it is an error that means nothing.
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn exchange(&mut self) -> Result<(), End> {
        self.take_from_tls()?;
        let written = self.failed.take().map_or_else(|| self.write(), Err);
        match (self.read(), written) {
            (Ok(()), written) => written?,
            // A reset or a time-out is told to one call only; the next sees an end like any other.
            (Err(End::Closed), Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => return Err(End::Io(error)),
            // What the peer said last explains more than a broken pipe does.
            (Err(end), _) => return Err(end),
        }
        self.take_from_tls()?;
        Ok(self.write()?)
    }

    fn settle(&mut self, now: Instant) -> Result<(), End> {
        if self.ready {
            return Ok(());
        }
        self.ready = match &mut self.tls {
            None => true,
            Some(tls) if tls.is_handshaking() && now >= self.deadline => {
                return Err(End::Io(io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time")));
            }
            Some(tls) if tls.is_handshaking() => false,
            Some(tls) if tls.protocol_version() == Some(ProtocolVersion::TLSv1_3) => {
                tls.set_buffer_limit(None);
                let until = *self.settle.get_or_insert(now + SETTLE);
                tls.tls13_tickets_received() > 0 || now >= until
            }
            Some(tls) => {
                tls.set_buffer_limit(None);
                true
            }
        };
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > OUT_HIGH {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// A collector has nothing to say but TLS; what it says beside is read and dropped.
    fn read(&mut self) -> Result<(), End> {
        let mut scratch = [0u8; 4096];
        for _ in 0..READS_MAX {
            let read = match &mut self.tls {
                Some(tls) => tls.read_tls(&mut self.stream),
                None => self.stream.read(&mut scratch),
            };
            match read {
                Ok(0) => return Err(End::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(End::Io(error)),
            }
            let Some(tls) = &mut self.tls else { continue };
            let processed = tls.process_new_packets();
            while matches!(tls.reader().read(&mut scratch), Ok(read) if read > 0) {}
            match processed {
                Ok(state) if state.peer_has_closed() => return Err(End::Closed),
                Ok(_) => {}
                Err(error) => {
                    // Our alert tells the other side why; whether it arrives is not ours to know.
                    self.take_from_tls().ok();
                    self.write().ok();
                    return Err(End::Tls(error));
                }
            }
        }
        Ok(())
    }

    /// Counts the Messages that the peer's TCP has acknowledged.
    fn acknowledge(&mut self) {
        if self.marks.is_empty() {
            return;
        }
        // The kernel counts the octet of our SYN as acknowledged, too.
        let acked = crate::sys::tcp_bytes_acked(self.stream.as_fd()).map(|acked| acked.saturating_sub(1));
        // Where the kernel does not tell (before 4.1), what it has taken from us counts.
        let acked = acked.unwrap_or(self.queued - self.out_waiting() as u64);
        while let Some((end, flows)) = self.marks.front().copied()
            && end <= acked
        {
            self.acknowledged += flows;
            self.marks.pop_front();
        }
    }

    fn take_acknowledged(&mut self) -> Tally {
        std::mem::take(&mut self.acknowledged)
    }

    fn unacknowledged(&self) -> Tally {
        sum(self.marks.iter().map(|(_, flows)| *flows))
    }
}

fn sum(tallies: impl Iterator<Item = Tally>) -> Tally {
    tallies.fold(Tally::default(), |mut sum, tally| {
        sum += tally;
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_only_lengthens_the_wait() {
        let now = Instant::now();
        let endpoint: Endpoint = "tcp://localhost:1".parse().unwrap();
        let reconnect = Duration::from_secs(8);
        let options = SessionOptions { endpoint, tls: ClientTls::default(), reconnect };
        let mut session = Session::new(options, now).unwrap();
        for _ in 0..100 {
            session.wait(now, "test");
            let State::Waiting { until } = session.state else { panic!("not waiting") };
            assert!((reconnect..=reconnect * 5 / 4).contains(&(until - now)), "{:?}", until - now);
            // Long after the last attempt only the random part is left.
            let later = now + 100 * reconnect;
            session.wait(later, "test");
            let State::Waiting { until } = session.state else { panic!("not waiting") };
            assert!((Duration::ZERO..=reconnect / 4).contains(&(until - later)), "{:?}", until - later);
        }
    }
}
