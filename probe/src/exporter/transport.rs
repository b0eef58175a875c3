//! The way to a collector: connects, keeps a Transport Session while it lasts, tries again after it ended; carries Messages there
//! and acknowledgements back.
//!
//! A collector that speaks Nagare's delivery layer ([`nagare_wire::delivery`]) acknowledges what it has stored. For any other, what
//! its TCP has acknowledged counts as delivered, and over UDP what the kernel took.
//!
//! Nothing here blocks: each call of [`Session::step`] goes as far as the sockets allow. Only this module knows TLS.

use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Registry, Token};
use nagare_service::endpoint::{Endpoint, Scheme};
use nagare_service::tls::{self, Side, TlsError};
use nagare_wire::delivery::{ACK_LENGTH, ALPN, Ack, FromProbe, ProbeId};
use rustls::{ClientConnection, ProtocolVersion, pki_types::ServerName};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
/// A collector that speaks the delivery layer is outside RFC 7011, and tried again from this on, twice as long each time.
const RECONNECT_DELIVERY: Duration = Duration::from_secs(1);
/// By default a peer that acknowledges nothing, or takes nothing, for this long is given up; the kernel alone would wait a
/// quarter of an hour.
pub const DEAD_PEER_DEFAULT: Duration = Duration::from_secs(30);
/// Acknowledgements that are not whole yet take less than this; a collector that sends more without a whole one sends none.
const INBOX_MAX: usize = 64 * 1024;
/// Reads in one step at most: a collector that never stops talking must not keep the exporter from sending.
const READS_MAX: usize = 16;

/// How to reach a collector.
#[derive(Clone)]
pub struct SessionOptions {
    /// Where it is; has a host.
    pub endpoint: Endpoint,
    /// How it is verified; needed for `tls://`.
    pub tls: Option<Arc<tls::Client>>,
    /// The shortest time between two attempts; up to a quarter more is added at random.
    pub reconnect: Duration,
    /// A peer that acknowledges or takes nothing for this long is given up.
    pub dead_peer: Duration,
    /// The address to send from.
    pub bind: Option<IpAddr>,
    /// The socket's send buffer, octets.
    pub sndbuf: Option<usize>,
    /// Who the probe is, to collectors that speak the delivery layer; without it, that is not offered.
    pub probe: Option<ProbeId>,
}

impl SessionOptions {
    /// To a collector, with the defaults of everything else.
    pub fn to(endpoint: Endpoint, tls: Option<Arc<tls::Client>>) -> SessionOptions {
        let (reconnect, dead_peer) = (RECONNECT_DEFAULT, DEAD_PEER_DEFAULT);
        SessionOptions { endpoint, tls, reconnect, dead_peer, bind: None, sndbuf: None, probe: None }
    }
}

/// What happened to the session.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A session began: Templates go first.
    Opened,
    /// It ended: what was sent over it and not acknowledged is to be sent again.
    Lost,
}

/// What a Message is known by; number 0 is not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    /// The run of the probe that made it.
    pub epoch: u64,
    /// Its number in that run.
    pub number: u64,
}

impl Id {
    fn acknowledged(self) -> Ack {
        Ack { epoch: self.epoch, first: self.number, last: self.number }
    }
}

/// A Transport Session with one collector, or the attempts to get one.
pub struct Session {
    options: SessionOptions,
    host: String,
    /// For `tls://`: certificates, which may change between two connections, and the name to be shown.
    tls: Option<(Arc<tls::Client>, ServerName<'static>)>,
    side: Side,
    state: State,
    acknowledged: Vec<Ack>,
    refused: Vec<Id>,
    away_since: Instant,
    /// When the last attempt began.
    attempted: Instant,
    /// The collector spoke the delivery layer when it was last reached, and how many attempts have failed since.
    delivers: bool,
    failures: u32,
    /// The last session was lost, and none has been got since.
    lost: bool,
    /// It is closing now, and may be opened again.
    comes_back: bool,
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
    /// The first attempt comes with the first step.
    ///
    /// # Errors
    /// The endpoint is `tls://` and its host can be no certificate's name.
    pub fn new(options: SessionOptions, now: Instant) -> Result<Session, TlsError> {
        let host = options.endpoint.host.clone().unwrap_or_default();
        let tls = match (options.endpoint.scheme, &options.tls) {
            (Scheme::Tls, Some(client)) => Some((client.clone(), tls::server_name(&host)?)),
            _ => None,
        };
        let side =
            tls.as_ref().map_or(Side::Client { ca: None, identity: false }, |(client, _)| client.options().side());
        let state = State::Waiting { until: now };
        Ok(Session {
            options,
            host,
            tls,
            side,
            state,
            acknowledged: Vec::new(),
            refused: Vec::new(),
            away_since: now,
            attempted: now,
            delivers: false,
            failures: 0,
            lost: false,
            comes_back: false,
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

    /// Whether it goes over UDP.
    pub fn is_datagram(&self) -> bool {
        matches!(self.state, State::Datagram(_))
    }

    /// Whether our end was closed and the collector's not yet.
    pub fn is_closing(&self) -> bool {
        matches!(&self.state, State::Stream(connection) if connection.closing.is_some())
    }

    /// Whether an attempt to reach the collector is under way.
    pub fn is_trying(&self) -> bool {
        match &self.state {
            State::Resolving { .. } | State::Connecting { .. } => true,
            State::Stream(connection) => !connection.ready,
            _ => false,
        }
    }

    /// Whether the collector is away: a session was lost, or an attempt failed, since the last one was got.
    pub fn is_away(&self) -> bool {
        self.lost || self.failures > 0
    }

    /// Whether no attempt has failed since a session stood, or ever: the next one may well succeed.
    pub fn may_come(&self) -> bool {
        self.failures == 0
    }

    /// How long no session has stood.
    pub fn away(&self, now: Instant) -> Duration {
        if self.is_open() { Duration::ZERO } else { now.saturating_duration_since(self.away_since) }
    }

    /// What was acknowledged since the last call: stored by the collector, acknowledged by its TCP, or handed to UDP.
    pub fn take_acknowledged(&mut self) -> Vec<Ack> {
        std::mem::take(&mut self.acknowledged)
    }

    /// Takes a Message to send; the caller has asked [`Session::has_room`], and calls [`Session::write`] before it
    /// sleeps.
    pub fn send(&mut self, id: Id, message: &[u8]) {
        match &mut self.state {
            State::Stream(connection) => connection.send(id, message),
            State::Datagram(datagrams) => datagrams.waiting.push_back((id, message.to_vec())),
            _ => {}
        }
    }

    /// Says something beside Messages, to a collector that speaks the delivery layer.
    pub fn say(&mut self, frame: FromProbe<'_>) {
        if let State::Stream(connection) = &mut self.state
            && connection.delivers
        {
            connection.say(frame);
        }
    }

    /// Hands to the network what it takes now. What fails here is found, and explained, by the next step.
    pub fn write(&mut self) {
        match &mut self.state {
            State::Stream(connection) => connection.failed = connection.failed.take().or(connection.write().err()),
            State::Datagram(datagrams) => {
                datagrams.write(&self.options.endpoint, &mut self.acknowledged, &mut self.refused);
            }
            _ => {}
        }
    }

    /// The Messages that the network refused (UDP) since the last call.
    pub fn take_refused(&mut self) -> Vec<Id> {
        std::mem::take(&mut self.refused)
    }

    /// Says that nothing more will come.
    pub fn close(&mut self, now: Instant) {
        match &mut self.state {
            State::Stream(connection) => connection.begin_close(now),
            _ => self.state = State::Closed,
        }
    }

    /// Says likewise, but the collector may be wanted again later.
    pub fn leave(&mut self, now: Instant) {
        match &mut self.state {
            State::Stream(connection) => {
                connection.begin_close(now);
                self.comes_back = true;
            }
            _ => self.state = State::Waiting { until: now },
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
                Scheme::Udp => open_datagram(address, &self.options, registry).map(State::Datagram),
                Scheme::Tcp | Scheme::Tls => {
                    open_stream(address, &self.options, registry).map(|stream| State::Connecting {
                        stream,
                        address,
                        rest: std::mem::take(&mut rest),
                        deadline: now + CONNECT_TIMEOUT,
                    })
                }
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
        tune(&stream, self.options.dead_peer);
        let protocols = self.options.probe.iter().map(|_| ALPN.to_vec()).collect::<Vec<_>>();
        let connect = |(client, name): &(Arc<tls::Client>, ServerName<'static>)| {
            ClientConnection::new_with_alpn(client.config(), name.clone(), protocols)
        };
        let tls = self.tls.as_ref().map(connect);
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
        self.acknowledged.append(&mut connection.acknowledged);
        match progress {
            Ok(()) if !was_ready && connection.is_ready() => {
                let insecure = self.tls.as_ref().is_some_and(|(client, _)| client.options().insecure);
                let how = connection.describe(insecure);
                self.delivers = connection.delivers;
                if let Some(probe) = self.options.probe.filter(|_| connection.delivers) {
                    connection.say(FromProbe::Hello(probe));
                }
                Some(self.opened(&how))
            }
            Ok(()) => None,
            Err(end) => {
                let had_session = connection.ready;
                registry.deregister(&mut connection.stream).ok(); // It is closed next; that deregisters as well.
                let peer = self.options.endpoint.to_string();
                let why = match end {
                    _ if connection.closing.is_some() => {
                        self.state = match std::mem::take(&mut self.comes_back) {
                            true => State::Waiting { until: now },
                            false => State::Closed,
                        };
                        return had_session.then_some(Change::Lost);
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
                had_session.then_some(Change::Lost)
            }
        }
    }

    fn opened(&mut self, how: &str) -> Change {
        (self.failures, self.lost) = (0, false);
        log::info!("connected to {} ({how})", self.options.endpoint);
        if self.tls.as_ref().is_some_and(|(client, _)| client.options().insecure) {
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
        let reconnect = self.reconnect();
        match self.is_open() {
            true => self.lost = true,
            false => self.failures = self.failures.saturating_add(1),
        }
        let earliest = (self.attempted + reconnect).saturating_duration_since(now);
        let delay = earliest + reconnect / 4 * random / 1024;
        log::warn!("{}: {why}; next attempt in {:.1} s", self.options.endpoint, delay.as_secs_f32());
        self.state = State::Waiting { until: now + delay };
    }
}

const TOKEN: Token = Token(1);

impl Session {
    /// The time between two attempts, without its random part.
    fn reconnect(&self) -> Duration {
        match self.delivers {
            true => self.options.reconnect.min(RECONNECT_DELIVERY * (1 << self.failures.min(10))),
            false => self.options.reconnect,
        }
    }
}

fn open_stream(address: SocketAddr, options: &SessionOptions, registry: &Registry) -> io::Result<TcpStream> {
    let socket = open_socket(address, Type::STREAM, Protocol::TCP, options)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let mut stream = TcpStream::from_std(socket.into());
    registry.register(&mut stream, TOKEN, Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

/// A socket with its own address and buffer as the options say.
fn open_socket(address: SocketAddr, kind: Type, protocol: Protocol, options: &SessionOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if let Some(octets) = options.sndbuf {
        socket.set_send_buffer_size(octets)?;
    }
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    match options.bind {
        Some(own) if own.is_ipv4() != address.is_ipv4() => {
            let other = format!("--bind {own} is of the other family: name an address of this one, or none");
            return Err(io::Error::other(other));
        }
        Some(own) => socket.bind(&SocketAddr::from((own, 0)).into())?,
        None if kind == Type::DGRAM => socket.bind(&SocketAddr::from((any, 0)).into())?,
        None => {}
    }
    Ok(socket)
}

/// Options that a connection works without, if less well: a kernel that has them not is no reason to send nothing. A silent
/// connection is tried as well, so that a collector that vanished is missed before records are sent to it.
fn tune(stream: &TcpStream, dead_peer: Duration) {
    let socket = SockRef::from(stream);
    let interval = (dead_peer / 4).max(Duration::from_secs(1));
    let keepalive = TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(3);
    let outcomes =
        [stream.set_nodelay(true), socket.set_tcp_keepalive(&keepalive), socket.set_tcp_user_timeout(Some(dead_peer))];
    outcomes.into_iter().filter_map(Result::err).for_each(|error| log::debug!("a socket option was refused: {error}"));
}

fn open_datagram(address: SocketAddr, options: &SessionOptions, registry: &Registry) -> io::Result<Datagrams> {
    let socket = open_socket(address, Type::DGRAM, Protocol::UDP, options)?;
    let mut socket = UdpSocket::from_std(socket.into());
    socket.connect(address)?;
    registry.register(&mut socket, TOKEN, Interest::WRITABLE)?;
    Ok(Datagrams { socket, waiting: VecDeque::new() })
}

/// A UDP socket, and the Messages that the kernel has no room for yet.
struct Datagrams {
    socket: UdpSocket,
    waiting: VecDeque<(Id, Vec<u8>)>,
}

impl Datagrams {
    /// Sends as far as the kernel has room; adds the Messages sent to the acknowledged, and those that the network refused.
    fn write(&mut self, endpoint: &Endpoint, sent: &mut Vec<Ack>, refused: &mut Vec<Id>) {
        while let Some((id, message)) = self.waiting.front() {
            match self.socket.send(message) {
                Ok(_) => sent.push(id.acknowledged()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::debug!("{endpoint}: {error}");
                    refused.push(*id);
                }
            }
            self.waiting.pop_front();
        }
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
    /// Where each Message ends, in that count; not kept where the collector itself acknowledges.
    marks: VecDeque<(u64, Id)>,
    /// The collector speaks the delivery layer; what it sent and is not a whole acknowledgement yet.
    delivers: bool,
    inbox: Vec<u8>,
    frame: Vec<u8>,
    acknowledged: Vec<Ack>,
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
            delivers: false,
            inbox: Vec::new(),
            frame: Vec::new(),
            acknowledged: Vec::new(),
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
        let delivery = if self.delivers { "exactly once" } else { "at least once" };
        format!("{}, {version}, {}, {delivery}", self.address, if insecure { "not verified" } else { "verified" })
    }

    fn send(&mut self, id: Id, message: &[u8]) {
        if self.delivers {
            return self.say(FromProbe::Message { epoch: id.epoch, number: id.number, message });
        }
        self.put(message);
        // What did not become octets is never acknowledged.
        self.marks.push_back((if self.exhausted { u64::MAX } else { self.queued }, id));
    }

    /// Frames are one piece with their Message, so that they are one TLS record.
    fn say(&mut self, frame: FromProbe<'_>) {
        let mut bytes = std::mem::take(&mut self.frame);
        bytes.clear();
        frame.write(&mut bytes);
        self.put(&bytes);
        self.frame = bytes;
    }

    fn put(&mut self, bytes: &[u8]) {
        let before = self.queued;
        let written = match &mut self.tls {
            None => {
                self.out.extend_from_slice(bytes);
                self.queued += bytes.len() as u64;
                Ok(())
            }
            Some(tls) => tls.writer().write_all(bytes).and_then(|()| self.take_from_tls()),
        };
        // Under TLS 1.2 rustls drops silently what its keys may not encrypt any more: the connection has to end.
        self.exhausted |= written.is_err() || self.queued - before < bytes.len() as u64;
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
        self.delivers = self.tls.as_ref().is_some_and(|tls| tls.alpn_protocol() == Some(ALPN));
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

    /// A collector has nothing to say but TLS and acknowledgements; what it says beside is read and dropped.
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
            while let Ok(read @ 1..) = tls.reader().read(&mut scratch) {
                if self.delivers {
                    self.inbox.extend_from_slice(&scratch[..read]);
                }
            }
            let acknowledged = self.read_acks();
            match processed {
                Ok(state) if state.peer_has_closed() => return Err(End::Closed),
                Ok(_) => acknowledged?,
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

    /// Takes the whole acknowledgements of the inbox.
    fn read_acks(&mut self) -> Result<(), End> {
        let mut at = 0;
        let refuse = |why: String| End::Io(io::Error::other(format!("the collector's acknowledgements: {why}")));
        while let Some(ack) = Ack::read(&self.inbox[at..]).map_err(|error| refuse(error.to_string()))? {
            self.acknowledged.push(ack);
            at += ACK_LENGTH;
        }
        self.inbox.drain(..at);
        match self.inbox.len() {
            ..INBOX_MAX => Ok(()),
            octets => Err(refuse(format!("{octets} octets without a whole one"))),
        }
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
        while let Some((_, id)) = self.marks.pop_front_if(|(end, _)| *end <= acked) {
            self.acknowledged.push(id.acknowledged());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_only_lengthens_the_wait() {
        let now = Instant::now();
        let endpoint: Endpoint = "tcp://localhost:1".parse().unwrap();
        let reconnect = Duration::from_secs(8);
        let options = SessionOptions { reconnect, ..SessionOptions::to(endpoint, None) };
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
        // A collector of our own is asked sooner, and less and less often.
        (session.delivers, session.failures) = (true, 0);
        let mut waits = (0..6).map(|_| {
            session.attempted = now;
            let wait = session.reconnect();
            session.wait(now, "test");
            wait.as_secs()
        });
        assert!(waits.by_ref().eq([1, 2, 4, 8, 8, 8]));
    }
}
