//! The Collecting Process's one thread: it accepts, reads, decodes and hands rows to the store.
//!
//! mio tells of changes only (edge-triggered), so a socket that was not read empty is kept in `ready`; every socket has a bounded
//! turn, so that none can starve the others. When the store's queue is full, streams are left unread, and TCP slows their
//! exporters down; datagrams cannot be made to wait and are dropped, counted.

#![forbid(unsafe_code)]

use crate::collect::{Rows, Shared, State};
use crate::delivery::Received;
use crate::kernel::datagrams_dropped;
use crate::session::{Beginning, Session};
use crate::sites::Sites;
use crate::store::{Batch, Row, Store};
use crate::strangers::{Addresses, Excess};
use crate::stream::{Connection, Context, IDLE_LIMIT, Now, Turn};
use mio::net::{TcpListener, UdpSocket};
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use nagare_service::endpoint::{Endpoint, Scheme};
use nagare_service::run::{self, Hangup, Stop};
use nagare_service::tls::{Server, Side};
use nagare_wire::ipfix::{MESSAGE_MAX, frame};
use rustls::ServerConnection;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Stream sessions open at once.
pub const SESSIONS_MAX: usize = 4096;
/// Handshakes under way at once; the oldest goes for a newer one.
pub const HANDSHAKES_MAX: usize = 256;
/// UDP sessions (address and port of a peer) at once; the one unheard for longest goes for a new one.
pub const UDP_SESSIONS_MAX: usize = 1024;
/// Rows, or numbers of Messages, that are collected before the store is offered them.
pub const BATCH_ROWS: usize = 8192;
/// Refusals told per second; further ones are only counted.
const WARNINGS_PER_SECOND: u32 = 10;

/// UDP sessions whose beginning and end are told per second.
const UDP_SESSIONS_TOLD_PER_SECOND: u32 = 20;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long a store that is full has before it is asked again.
const RETRY: Duration = Duration::from_millis(20);
/// An exporter that has been silent for this long after our goodbye has nothing more under way.
const DRAIN_QUIET: Duration = Duration::from_millis(250);
/// Connections accepted, and datagrams taken, in one turn of a listener.
const TURN_ACCEPTS: usize = 64;
const TURN_DATAGRAMS: usize = 256;
const LISTEN_BACKLOG: i32 = 1024;
/// What is asked of the kernel for datagrams that wait, octets; it may give less.
const UDP_BUFFER_OCTETS: usize = 8 << 20;
const EVENTS_MAX: usize = 1024;
const WAKE: Token = Token(usize::MAX);

/// What a listener needs.
pub struct ListenOptions {
    /// Where to listen.
    pub endpoints: Vec<Endpoint>,
    /// For `tls://` endpoints.
    pub tls: Option<Arc<Server>>,
    /// The wish to read certificates again.
    pub hangup: Hangup,
    /// How refusals are told.
    pub side: Side,
    /// Whose traffic it is.
    pub sites: Sites,
    /// Connections of one address at once.
    pub sessions_per_address: usize,
    /// How long to go on taking what is under way at the end.
    pub drain_timeout: Duration,
}

/// Why the collector cannot listen.
#[derive(Debug)]
pub struct ListenError(String);

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ListenError {}

enum Bound {
    Stream(TcpListener, Scheme),
    Datagram(UdpSocket),
    /// A stream listener of a collector that stops.
    Closed,
}

struct UdpSession {
    session: Session,
    heard: Instant,
}

/// The listener; [`Listener::run`] is the collector's main loop.
pub struct Listener {
    poll: Poll,
    bound: Vec<Bound>,
    addresses: Vec<(Scheme, SocketAddr)>,
    tls: Option<Arc<Server>>,
    hangup: Hangup,
    side: Side,
    sites: Sites,
    strangers: Addresses,
    drain_timeout: Duration,
    shared: Shared,
    connections: HashMap<usize, Connection>,
    next_token: usize,
    half_open: VecDeque<usize>,
    udp: HashMap<(usize, SocketAddr), UdpSession>,
    ready: Ready,
    /// Rows of streams, and the numbers of their Messages; what the store did not take waits in `waiting`, and streams are
    /// left unread meanwhile.
    rows: Vec<Row>,
    received: Received,
    waiting: Batch,
    stalled: bool,
    /// The number of the batch that rows are collected for, and of those that the store has, with its numbers for them: datagrams
    /// go to the store in between.
    batch: u64,
    offered: VecDeque<(u64, u64)>,
    hurry: bool,
    ticked: Instant,
    gate: Gate,
    udp_gate: Gate,
    scratch: Vec<u8>,
}

/// Sockets that may have more to read, each once, first come first served.
#[derive(Default)]
struct Ready {
    queue: VecDeque<usize>,
    queued: HashSet<usize>,
}

impl Ready {
    fn push(&mut self, token: usize) {
        if self.queued.insert(token) {
            self.queue.push_back(token);
        }
    }

    fn pop(&mut self) -> Option<usize> {
        let token = self.queue.pop_front()?;
        self.queued.remove(&token);
        Some(token)
    }
}

/// Lets so many lines per second into the log.
struct Gate {
    per_second: u32,
    second: Instant,
    lines: u32,
}

impl Gate {
    fn new(per_second: u32) -> Gate {
        Gate { per_second, second: Instant::now(), lines: 0 }
    }

    fn open(&mut self, now: Instant) -> bool {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            let more = self.lines.saturating_sub(self.per_second);
            if more > 0 {
                log::warn!("{more} further lines like these were kept out of the log");
            }
            (self.second, self.lines) = (now, 0);
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= self.per_second
    }

    fn warn(&mut self, now: Instant, what: &str) {
        self.tell(now, format_args!("refused: {what}"));
    }

    fn tell(&mut self, now: Instant, what: fmt::Arguments<'_>) {
        if self.open(now) {
            log::warn!("{what}");
        }
    }
}

fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { wall_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX), instant: Instant::now() }
}

impl Listener {
    /// Binds every endpoint.
    ///
    /// # Errors
    /// An endpoint cannot be resolved or bound, or is `tls://` without a certificate.
    pub fn bind(options: ListenOptions, shared: Shared) -> Result<Listener, ListenError> {
        let ListenOptions { endpoints, tls, hangup, side, sites, sessions_per_address, drain_timeout } = options;
        let poll = Poll::new().map_err(|error| ListenError(format!("cannot poll: {error}")))?;
        let (mut bound, mut addresses) = (Vec::new(), Vec::new());
        for endpoint in &endpoints {
            if endpoint.scheme == Scheme::Tls && tls.is_none() {
                return Err(ListenError(format!("{endpoint} needs a certificate and its key")));
            }
            for (socket, address) in bind_all(endpoint, poll.registry(), bound.len())? {
                bound.push(socket);
                addresses.push((endpoint.scheme, address));
            }
        }
        let next_token = bound.len();
        let marks = shared.lock().store().map(Store::marks).unwrap_or_default();
        Ok(Listener {
            poll,
            bound,
            addresses,
            tls,
            hangup,
            side,
            sites,
            strangers: Addresses::new(sessions_per_address),
            drain_timeout,
            shared,
            connections: HashMap::new(),
            next_token,
            half_open: VecDeque::new(),
            udp: HashMap::new(),
            ready: Ready::default(),
            rows: Vec::new(),
            received: Received::new(marks),
            waiting: Batch::default(),
            stalled: false,
            batch: 1,
            offered: VecDeque::new(),
            hurry: false,
            ticked: Instant::now(),
            gate: Gate::new(WARNINGS_PER_SECOND),
            udp_gate: Gate::new(UDP_SESSIONS_TOLD_PER_SECOND),
            scratch: Vec::new(),
        })
    }

    /// What was bound, with the ports that were taken where 0 was asked for.
    pub fn addresses(&self) -> &[(Scheme, SocketAddr)] {
        &self.addresses
    }

    /// Serves until `stop` is set, then takes what is under way, and ends every session.
    ///
    /// # Errors
    /// The poll failed.
    pub fn run(mut self, stop: &Stop) -> io::Result<()> {
        let waker = Arc::new(Waker::new(self.poll.registry(), WAKE)?);
        let wake = move || drop(waker.wake()); // It looks for itself after a TICK.
        stop.on_set(wake.clone());
        self.shared.lock().store().iter().for_each(|store| store.on_durable(wake.clone()));
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !stop.is_set() {
            self.wait(&mut events, TICK)?;
            self.round();
            if self.ticked.elapsed() >= TICK {
                self.ticked = Instant::now();
                run::watchdog_tick();
                self.tick();
            }
        }
        self.drain(&mut events)
    }

    /// Sleeps until something happens, no longer than `longest`, and notes what is ready.
    fn wait(&mut self, events: &mut Events, longest: Duration) -> io::Result<()> {
        let timeout = match (self.stalled, self.ready.queue.is_empty()) {
            (true, _) => RETRY,
            (false, true) => longest,
            (false, false) => Duration::ZERO,
        };
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        events.iter().filter(|event| event.token() != WAKE).for_each(|event| self.ready.push(event.token().0));
        Ok(())
    }

    /// One turn for everything that is ready.
    fn round(&mut self) {
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let now = now();
        self.offer(&mut state);
        self.acknowledge(now, &mut state);
        for _ in 0..self.ready.queue.len() {
            let Some(token) = self.ready.pop() else { break };
            let turn = match self.bound.get(token) {
                Some(Bound::Stream(..)) => self.accept(token, now, &mut state),
                Some(Bound::Closed) => Turn::Gone,
                Some(Bound::Datagram(_)) => self.datagrams(token, now, &mut state),
                None => self.connection(token, now, &mut state),
            };
            if turn == Turn::More {
                self.ready.push(token);
            }
            if self.rows.len() >= BATCH_ROWS || self.received.fresh() >= BATCH_ROWS {
                self.offer(&mut state);
            }
        }
        self.offer(&mut state);
        if std::mem::take(&mut self.hurry) {
            state.store().iter().for_each(|store| store.hurry());
        }
    }

    /// Offers the streams' rows to the store; the listener is stalled while they come back.
    fn offer(&mut self, state: &mut State) {
        let was = self.stalled;
        self.stalled = loop {
            if self.waiting.is_empty() {
                self.waiting = Batch { rows: std::mem::take(&mut self.rows), marks: self.received.take_fresh() };
                if self.waiting.is_empty() {
                    break false;
                }
                self.batch += 1;
            }
            match state.offer(std::mem::take(&mut self.waiting)) {
                Ok(ticket) => self.offered.push_back((self.batch - 1, ticket)),
                Err(batch) => {
                    self.waiting = batch;
                    break true;
                }
            }
        };
        state.counts.waiting = Rows::of(&self.waiting.rows);
        state.counts.waiting.add(Rows::of(&self.rows));
        if self.stalled && !was {
            let full = format_args!("the store's queue is full: sessions wait until it has room");
            self.gate.tell(Instant::now(), full);
        }
    }

    /// Acknowledges what has become durable.
    fn acknowledge(&mut self, now: Now, state: &mut State) {
        let Some(durable) = state.store().map(Store::durable) else { return };
        let mut batch = None;
        while let Some((number, _)) = self.offered.pop_front_if(|(_, ticket)| *ticket <= durable) {
            batch = Some(number);
        }
        let Some(batch) = batch else { return };
        let waiting = self.connections.iter().filter(|(_, connection)| connection.is_waiting());
        for token in waiting.map(|(token, _)| *token).collect::<Vec<_>>() {
            let Some(mut connection) = self.connections.remove(&token) else { continue };
            let turn = self.with(now, state, |context| connection.acknowledge(batch, context));
            self.keep(token, connection, turn);
        }
    }

    fn connection(&mut self, token: usize, now: Now, state: &mut State) -> Turn {
        let Some(mut connection) = self.connections.remove(&token) else { return Turn::Gone };
        let turn = self.with(now, state, |context| connection.turn(context));
        self.keep(token, connection, turn)
    }

    /// Puts a connection back after its turn, or lets it go.
    fn keep(&mut self, token: usize, mut connection: Connection, turn: Turn) -> Turn {
        if turn == Turn::Gone {
            // The kernel forgets a closed socket by itself; what fails here changes nothing.
            self.poll.registry().deregister(connection.socket()).ok();
            self.strangers.release(connection.peer().ip());
        } else {
            self.connections.insert(token, connection);
        }
        turn
    }

    /// Lends a connection what it needs.
    fn with<T>(&mut self, now: Now, state: &mut State, work: impl FnOnce(&mut Context<'_>) -> T) -> T {
        let gate = &mut self.gate;
        let mut warn = |what: &str| gate.warn(now.instant, what);
        work(&mut Context {
            now,
            rows: &mut self.rows,
            counts: &mut state.counts,
            sites: &mut self.sites,
            received: &mut self.received,
            batch: self.batch,
            hurry: &mut self.hurry,
            stalled: self.stalled,
            side: &self.side,
            certificates: self.tls.as_deref(),
            warn: &mut warn,
            scratch: &mut self.scratch,
        })
    }

    fn accept(&mut self, listener: usize, now: Now, state: &mut State) -> Turn {
        for _ in 0..TURN_ACCEPTS {
            let Some(Bound::Stream(socket, scheme)) = self.bound.get(listener) else { return Turn::Gone };
            let scheme = *scheme;
            match socket.accept() {
                Ok((socket, peer)) => self.admit(socket, peer, scheme, now, state),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Blocked,
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    // Out of file descriptors, most likely. The connection waits in the backlog; the tick asks again.
                    self.gate.warn(now.instant, &format!("a connection cannot be accepted: {error}"));
                    return Turn::Blocked;
                }
            }
        }
        Turn::More
    }

    fn admit(
        &mut self,
        mut socket: mio::net::TcpStream,
        peer: SocketAddr,
        scheme: Scheme,
        now: Now,
        state: &mut State,
    ) {
        if self.connections.len() >= SESSIONS_MAX {
            state.counts.accepted += 1;
            state.counts.refused_sessions_max += 1;
            return self.gate.warn(now.instant, &format!("{peer}: {SESSIONS_MAX} sessions are open"));
        }
        if let Err(excess) = self.strangers.admit(peer.ip(), now.instant) {
            state.counts.accepted += 1;
            let (counter, told) = match excess {
                Excess::Open => (
                    &mut state.counts.refused_address_max,
                    "its address has too many sessions (--sessions-per-address)",
                ),
                Excess::Rate => (&mut state.counts.refused_rate, "its address makes too many connections"),
            };
            *counter += 1;
            return self.gate.warn(now.instant, &format!("{peer}: {told}"));
        }
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
        // Without keepalive a vanished peer is found by the idle limit, later.
        SockRef::from(&socket).set_tcp_keepalive(&keepalive).ok();
        let token = self.next_token;
        self.next_token += 1;
        // Edge-triggered, so that being writable at all costs one event in a connection's life.
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = self.poll.registry().register(&mut socket, Token(token), interest);
        let tls = match (scheme, &self.tls) {
            (Scheme::Tls, Some(tls)) => tls
                .config()
                .map_err(io::Error::other)
                .and_then(|config| ServerConnection::new(config).map(Some).map_err(io::Error::other)),
            _ => Ok(None),
        };
        let tls = match registered.and(tls) {
            Ok(tls) => tls,
            Err(error) => {
                state.counts.accepted += 1;
                state.counts.refused_tls += 1;
                self.strangers.release(peer.ip());
                return self.gate.warn(now.instant, &format!("{peer}: {error}"));
            }
        };
        self.make_room(now, state);
        let connection = self.with(now, state, |context| Connection::new(socket, peer, tls, context));
        if connection.is_half_open() {
            self.half_open.push_back(token);
        }
        self.connections.insert(token, connection);
        self.ready.push(token);
    }

    /// Gives the oldest half-open connection up where there are too many.
    fn make_room(&mut self, now: Now, state: &mut State) {
        if state.counts.handshaking < HANDSHAKES_MAX as u64 {
            return;
        }
        while let Some(token) = self.half_open.pop_front() {
            let Some(mut connection) = self.connections.remove(&token) else { continue };
            let half_open = connection.is_half_open();
            if half_open {
                self.with(now, state, |context| connection.give_up(context));
            }
            self.connections.insert(token, connection);
            if half_open {
                return;
            }
        }
    }

    fn datagrams(&mut self, listener: usize, now: Now, state: &mut State) -> Turn {
        let mut rows = Vec::new();
        let mut datagram = std::mem::take(&mut self.scratch);
        datagram.resize(MESSAGE_MAX + 1, 0);
        let mut turn = Turn::More;
        for _ in 0..TURN_DATAGRAMS {
            let Some(Bound::Datagram(socket)) = self.bound.get(listener) else { return Turn::Gone };
            match socket.recv_from(&mut datagram) {
                Ok((length, peer)) => self.datagram(listener, peer, &datagram[..length], now, &mut rows, state),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    turn = Turn::Blocked;
                    break;
                }
                // An ICMP error that an earlier datagram of ours earned; we send none, and it says nothing of the next.
                Err(_) => {}
            }
        }
        self.scratch = datagram;
        self.offer_datagrams(rows, state);
        turn
    }

    /// Rows of UDP sessions cannot wait: what the store does not take is dropped, counted.
    fn offer_datagrams(&mut self, rows: Vec<Row>, state: &mut State) {
        if rows.is_empty() {
            return;
        }
        if let Err(batch) = state.offer(Batch::of(rows)) {
            state.counts.refused.add(Rows::of(&batch.rows));
            let rows = batch.rows.len();
            self.gate.warn(Instant::now(), &format!("the store's queue is full: {rows} rows from UDP"));
        }
    }

    fn datagram(
        &mut self,
        listener: usize,
        peer: SocketAddr,
        datagram: &[u8],
        now: Now,
        rows: &mut Vec<Row>,
        state: &mut State,
    ) {
        let key = (listener, peer);
        let counts = &mut state.counts;
        if !self.udp.contains_key(&key) {
            // Only what looks like a Message earns a session: anyone can send a datagram, from any address.
            if !matches!(frame(datagram), Ok(Some(length)) if length == datagram.len()) {
                counts.messages += 1;
                counts.messages_malformed += 1;
                counts.octets += datagram.len() as u64;
                let told =
                    frame(datagram).err().map_or("its length is not its Message's".into(), |error| error.to_string());
                return self.gate.warn(now.instant, &format!("datagram from {peer}: {told}"));
            }
            let site = match self.sites.of_address(peer.ip()) {
                Ok(site) => site,
                Err(error) => {
                    counts.messages += 1;
                    counts.datagrams_refused_site += 1;
                    return self.gate.warn(now.instant, &error.to_string());
                }
            };
            self.evict(now, rows, state);
            let quiet = !self.udp_gate.open(now.instant);
            let beginning = Beginning { peer, scheme: Scheme::Udp, site, detail: "", quiet };
            let session = Session::start(beginning, now.wall_ms, rows, &mut state.counts);
            self.udp.insert(key, UdpSession { session, heard: now.instant });
            state.counts.udp_sessions += 1;
        }
        let Some(udp) = self.udp.get_mut(&key) else { return };
        udp.heard = now.instant;
        if let Err(malformed) = udp.session.message(datagram, now.wall_ms, rows, &mut state.counts) {
            udp.session.line(&format!("malformed Message dropped: {malformed}"));
        }
    }

    /// Puts the UDP session out that was unheard for longest, where there are too many.
    fn evict(&mut self, now: Now, rows: &mut Vec<Row>, state: &mut State) {
        if self.udp.len() < UDP_SESSIONS_MAX {
            return;
        }
        let oldest = self.udp.iter().min_by_key(|(_, udp)| udp.heard).map(|(key, _)| *key);
        if let Some(udp) = oldest.and_then(|key| self.udp.remove(&key)) {
            state.counts.udp_sessions -= 1;
            state.counts.udp_evicted += 1;
            udp.session.end("too many UDP sessions", now.wall_ms, rows, &mut state.counts);
        }
    }

    /// Looks at every deadline.
    fn tick(&mut self) {
        let now = now();
        let renewed = self.tls.clone().filter(|tls| tls.tick(now.instant, self.hangup.take()));
        self.strangers.tick(now.instant);
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let tokens: Vec<usize> = self.connections.keys().copied().collect();
        for token in tokens {
            let Some(mut connection) = self.connections.remove(&token) else { continue };
            let turn = self.with(now, &mut state, |context| match &renewed {
                Some(certificates) => connection.recheck(certificates, context),
                None => connection.tick(context),
            });
            self.keep(token, connection, turn);
        }
        let (open, connections) = (&mut self.half_open, &self.connections);
        open.retain(|token| connections.get(token).is_some_and(Connection::is_half_open));
        let mut rows = Vec::new();
        self.tick_datagrams(now, &mut rows, &mut state);
        self.offer_datagrams(rows, &mut state);
        let udp = self.addresses.iter().filter(|(scheme, _)| *scheme == Scheme::Udp);
        state.counts.datagrams_dropped_by_kernel = datagrams_dropped(&udp.map(|(_, address)| address.port()).collect());
        (0..self.bound.len()).for_each(|listener| self.ready.push(listener));
        self.offer(&mut state);
    }

    fn tick_datagrams(&mut self, now: Now, rows: &mut Vec<Row>, state: &mut State) {
        let silent = |udp: &UdpSession| now.instant.duration_since(udp.heard) >= IDLE_LIMIT;
        let over: Vec<_> = self.udp.iter().filter(|(_, udp)| silent(udp)).map(|(key, _)| *key).collect();
        for udp in over.iter().filter_map(|key| self.udp.remove(key)) {
            state.counts.udp_sessions -= 1;
            let reason = format!("nothing was received for {} s", IDLE_LIMIT.as_secs());
            udp.session.end(&reason, now.wall_ms, rows, &mut state.counts);
        }
        self.udp.values_mut().for_each(|udp| udp.session.tick(now.wall_ms, rows, &mut state.counts));
    }

    /// Says goodbye to every exporter and takes what is under way, until nothing more comes or the time is up. Then every
    /// session ends.
    fn drain(&mut self, events: &mut Events) -> io::Result<()> {
        let deadline = Instant::now() + self.drain_timeout;
        let streams = self.bound.iter_mut().filter(|bound| matches!(bound, Bound::Stream(..)));
        streams.for_each(|bound| *bound = Bound::Closed);
        for connection in self.connections.values_mut() {
            connection.say_goodbye();
        }
        let tokens: Vec<usize> = (0..self.bound.len()).chain(self.connections.keys().copied()).collect();
        tokens.into_iter().for_each(|token| self.ready.push(token));
        let mut octets = self.shared.lock().counts.octets;
        let mut heard = Instant::now();
        while Instant::now() < deadline && (self.stalled || heard.elapsed() < DRAIN_QUIET) {
            self.wait(events, DRAIN_QUIET / 5)?;
            self.round();
            let now = self.shared.lock().counts.octets;
            if now != octets || !self.ready.queue.is_empty() {
                (octets, heard) = (now, Instant::now());
            }
            if !self.stalled && self.connections.is_empty() && self.udp.is_empty() {
                break;
            }
        }
        self.tick();
        self.end_all(deadline);
        Ok(())
    }

    fn end_all(&mut self, deadline: Instant) {
        let shared = self.shared.clone();
        let now = now();
        let mut state = shared.lock();
        for (_, mut connection) in std::mem::take(&mut self.connections) {
            self.with(now, &mut state, |context| connection.stop(context));
        }
        for (_, udp) in std::mem::take(&mut self.udp) {
            state.counts.udp_sessions -= 1;
            udp.session.end("the collector stops", now.wall_ms, &mut self.rows, &mut state.counts);
        }
        self.offer(&mut state);
        drop(state);
        while self.stalled && Instant::now() < deadline {
            std::thread::sleep(RETRY);
            self.offer(&mut shared.lock());
        }
        // What the store still has no room for was not acknowledged; of plain sessions it is lost, and said to be.
        let mut state = shared.lock();
        state.counts.refused.add(Rows::of(&self.waiting.rows));
        state.counts.refused.add(Rows::of(&self.rows));
        state.counts.waiting = Rows::default();
        let left = self.waiting.rows.len() + self.rows.len();
        if left > 0 {
            log::error!("{left} rows are not stored: the store had no room for them until the end");
        }
    }
}

/// Binds every address of an endpoint; an error only where none can be bound.
fn bind_all(endpoint: &Endpoint, registry: &Registry, first: usize) -> Result<Vec<(Bound, SocketAddr)>, ListenError> {
    let addresses = endpoint.listen_addrs().map_err(|error| ListenError(format!("{endpoint}: {error}")))?;
    let (mut bound, mut refusals) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for address in addresses.into_iter().filter(|address| seen.insert(*address)) {
        match bind(endpoint.scheme, address, registry, Token(first + bound.len())) {
            Ok(pair) => bound.push(pair),
            Err(error) => refusals.push(refusal(endpoint, address, &error)),
        }
    }
    if bound.is_empty() {
        return Err(ListenError(refusals.join("; ")));
    }
    refusals.iter().for_each(|refusal| log::warn!("{refusal}"));
    Ok(bound)
}

fn refusal(endpoint: &Endpoint, address: SocketAddr, error: &io::Error) -> String {
    let (scheme, port) = (endpoint.scheme.name(), endpoint.port);
    let hint = match error.kind() {
        ErrorKind::AddrNotAvailable => {
            format!(": {} is no address of this machine; {scheme}://{port} listens on all", address.ip())
        }
        ErrorKind::AddrInUse => ": another program listens there".to_owned(),
        ErrorKind::PermissionDenied => ": ports below 1024 need the capability CAP_NET_BIND_SERVICE".to_owned(),
        _ => String::new(),
    };
    format!("cannot listen on {endpoint} ({address}): {error}{hint}")
}

fn bind(scheme: Scheme, address: SocketAddr, registry: &Registry, token: Token) -> io::Result<(Bound, SocketAddr)> {
    let (kind, protocol) = match scheme {
        Scheme::Udp => (Type::DGRAM, Protocol::UDP),
        Scheme::Tcp | Scheme::Tls => (Type::STREAM, Protocol::TCP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // The unspecified address takes IPv4 too, whatever the system's default is.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    if scheme == Scheme::Udp {
        socket.set_recv_buffer_size(UDP_BUFFER_OCTETS)?;
        socket.bind(&address.into())?;
        let mut socket = UdpSocket::from_std(socket.into());
        registry.register(&mut socket, token, Interest::READABLE)?;
        let address = socket.local_addr()?;
        return Ok((Bound::Datagram(socket), address));
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    let mut listener = TcpListener::from_std(socket.into());
    registry.register(&mut listener, token, Interest::READABLE)?;
    let address = listener.local_addr()?;
    Ok((Bound::Stream(listener, scheme), address))
}
