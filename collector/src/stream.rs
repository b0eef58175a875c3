//! One TCP or TLS connection: handshake, bytes to Messages, acknowledgements, an orderly end.

#![forbid(unsafe_code)]

use crate::collect::Counts;
use crate::delivery::{Delivery, Received};
use crate::session::{Beginning, Session};
use crate::sites::Sites;
use crate::store::Row;
use mio::net::TcpStream;
use nagare_service::endpoint::Scheme;
use nagare_service::tls::{Server, Side, explain, explain_io, peer_name};
use nagare_wire::delivery::{ALPN, FromProbe};
use nagare_wire::ipfix::frame;
use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

/// A handshake takes a second over the worst of links; who needs longer is holding a place.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// A session without a word for this long is over. Probes report their books every few seconds.
pub const IDLE_LIMIT: Duration = Duration::from_secs(30 * 60);
/// A Message that was begun is whole after this: 64 KiB over a line of 56 kbit/s take half of it. Who needs longer holds a buffer.
pub const MESSAGE_LIMIT: Duration = Duration::from_secs(20);
/// How long a refused peer has to fetch the alert that says why.
pub const LINGER_LIMIT: Duration = Duration::from_secs(1);
/// Octets that one connection may bring before the others have their turn.
pub const TURN_OCTETS: usize = 256 * 1024;
/// What an idle connection's buffer may keep, octets.
const BUFFER_KEPT: usize = 16 * 1024;
/// Octets of acknowledgements that a probe may leave unread.
pub const UNREAD_ACKS_OCTETS: usize = 64 * 1024;
/// Octets of one read.
pub const READ_OCTETS: usize = 64 * 1024;

/// The time of a round: by the calendar, and steadily.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Milliseconds since 1970 UTC.
    pub wall_ms: u64,
    /// For deadlines.
    pub instant: Instant,
}

/// What a connection needs of its listener for one turn.
pub struct Context<'a> {
    /// The time.
    pub now: Now,
    /// Where rows go.
    pub rows: &'a mut Vec<Row>,
    /// Where everything is counted.
    pub counts: &'a mut Counts,
    /// Whose traffic it is.
    pub sites: &'a mut Sites,
    /// The numbers of the Messages that came.
    pub received: &'a mut Received,
    /// The number of the listener's batch that is to hold these rows and numbers.
    pub batch: u64,
    /// Set where a probe wants its Messages to be durable soon.
    pub hurry: &'a mut bool,
    /// Whether the store has no room: sessions are left unread.
    pub stalled: bool,
    /// How refusals are told.
    pub side: &'a Side,
    /// Who may still come, of TLS.
    pub certificates: Option<&'a Server>,
    /// Tells a refusal, unless there were too many.
    pub warn: &'a mut dyn FnMut(&str),
    /// A buffer that connections share.
    pub scratch: &'a mut Vec<u8>,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing more to read for now.
    Blocked,
    /// There may be more; others first.
    More,
    /// The connection is over.
    Gone,
}

/// Why a connection ends.
enum End {
    /// TLS refused it, told in words.
    Tls(String),
    /// The handshake took too long.
    Slow,
    /// Given up for a newer one.
    HalfOpenMax,
    /// The certificate's name names no site.
    Site(String),
    /// A session's end, for its last line.
    Session(String),
    /// The certificate was revoked; likewise.
    Revoked(String),
    /// A Message was begun and not finished.
    SlowMessage,
}

enum Phase {
    Handshake,
    Open(Box<Session>, Layer),
    /// Only there until the peer has read why.
    Lingering,
}

/// What stands between the stream and the Messages.
enum Layer {
    /// Nothing: RFC 7011.
    Plain,
    /// The delivery layer; `None` until the probe has said who it is.
    Delivery(Option<Delivery>),
}

/// A connection that was accepted.
pub struct Connection {
    socket: TcpStream,
    peer: SocketAddr,
    tls: Option<Box<ServerConnection>>,
    phase: Phase,
    buffer: Vec<u8>,
    /// When the phase is over unless something happens.
    deadline: Instant,
    /// Since when a Message is being received.
    begun: Option<Instant>,
    peer_done: bool,
    /// Octets of acknowledgements that the socket has not taken yet.
    unread_acks: usize,
}

impl Connection {
    /// Begins with a handshake (TLS), or at once with a session (TCP).
    pub fn new(
        socket: TcpStream,
        peer: SocketAddr,
        tls: Option<ServerConnection>,
        context: &mut Context<'_>,
    ) -> Connection {
        let deadline = context.now.instant + HANDSHAKE_LIMIT;
        let tls = tls.map(Box::new);
        let buffer = Vec::new();
        context.counts.accepted += 1;
        context.counts.handshaking += 1;
        let mut connection = Connection {
            socket,
            peer,
            tls,
            phase: Phase::Handshake,
            buffer,
            deadline,
            begun: None,
            peer_done: false,
            unread_acks: 0,
        };
        if connection.tls.is_none() {
            match context.sites.of_address(peer.ip()) {
                Ok(site) => connection.open(Scheme::Tcp, site, "", Layer::Plain, context),
                Err(error) => drop(connection.end(End::Site(error.to_string()), context)),
            }
        }
        connection
    }

    /// Whose it is.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The socket, to be registered.
    pub fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Whether the handshake still goes on.
    pub fn is_half_open(&self) -> bool {
        matches!(self.phase, Phase::Handshake)
    }

    fn open(
        &mut self,
        scheme: Scheme,
        site: std::sync::Arc<str>,
        detail: &str,
        layer: Layer,
        context: &mut Context<'_>,
    ) {
        let Context { now, rows, counts, .. } = context;
        counts.handshaking -= 1;
        counts.open += 1;
        let beginning = Beginning { peer: self.peer, scheme, site, detail, quiet: false };
        let session = Session::start(beginning, now.wall_ms, rows, counts);
        self.phase = Phase::Open(Box::new(session), layer);
        self.deadline = now.instant + IDLE_LIMIT;
    }

    /// Takes what the socket holds, up to [`TURN_OCTETS`]; nothing of a session while the store has no room.
    pub fn turn(&mut self, context: &mut Context<'_>) -> Turn {
        if matches!(self.phase, Phase::Lingering) {
            return self.discard();
        }
        let mut octets = 0;
        loop {
            if context.stalled && matches!(self.phase, Phase::Open(..)) {
                self.deadline = context.now.instant + IDLE_LIMIT;
                self.begun = self.begun.map(|_| context.now.instant); // It waits for us now.
                return Turn::More;
            }
            match self.step(context) {
                Ok(None) => return Turn::Blocked,
                Ok(Some(read)) => octets += read,
                Err(end) => return self.end(end, context),
            }
            if octets >= TURN_OCTETS {
                return Turn::More;
            }
        }
    }

    /// One read, and what it completes; `None` where the socket would block.
    fn step(&mut self, context: &mut Context<'_>) -> Result<Option<usize>, End> {
        let read = match self.tls {
            None => self.read_plain(context.scratch)?,
            Some(_) => self.read_tls(context)?,
        };
        if read.is_some() {
            self.messages(context)?;
        }
        Ok(read)
    }

    fn read_plain(&mut self, scratch: &mut Vec<u8>) -> Result<Option<usize>, End> {
        scratch.resize(READ_OCTETS, 0);
        match self.socket.read(scratch) {
            Ok(0) => Err(self.ended("the exporter closed the connection")),
            Ok(read) => {
                self.buffer.extend_from_slice(&scratch[..read]);
                Ok(Some(read))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Some(0)),
            Err(error) => Err(self.ended(&format!("the connection failed: {error}"))),
        }
    }

    /// What a session's last line says of an end between the peers, not by a rule of ours.
    fn ended(&self, reason: &str) -> End {
        match self.buffer.len() {
            0 => End::Session(reason.to_owned()),
            left => End::Session(format!("{reason} in the middle of a Message ({left} octets of it discarded)")),
        }
    }

    fn read_tls(&mut self, context: &mut Context<'_>) -> Result<Option<usize>, End> {
        let Some(tls) = &mut self.tls else { return Ok(None) };
        let open = matches!(self.phase, Phase::Open(..));
        let peer = self.peer.to_string();
        let failed = |error: &io::Error| match open {
            true => format!("the connection failed: {error}"),
            false => explain_io(error, context.side, &peer),
        };
        let read = match tls.read_tls(&mut self.socket) {
            Ok(0) if open => return Err(self.ended("the connection ended without TLS's close_notify")),
            Ok(0) => return Err(End::Tls(failed(&ErrorKind::UnexpectedEof.into()))),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.write_tls();
                return Ok(None);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Some(0)),
            Err(error) if open => return Err(self.ended(&failed(&error))),
            Err(error) => return Err(End::Tls(failed(&error))),
        };
        if let Err(error) = tls.process_new_packets() {
            // Its words are those of a handshake.
            return Err(match open {
                true => self.ended(&format!("the connection failed: {error}")),
                false => End::Tls(explain(&error, context.side, &peer)),
            });
        }
        self.write_tls();
        self.establish(context)?;
        self.plaintext(context.scratch)?;
        Ok(Some(read))
    }

    /// Begins the session when the handshake is done.
    fn establish(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        let Some(tls) = self.tls.as_ref().filter(|tls| !tls.is_handshaking()) else { return Ok(()) };
        if !self.is_half_open() {
            return Ok(());
        }
        let version = match tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "TLS 1.3",
        };
        let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        let chain = tls.peer_certificates();
        // The handshake may have begun before the revocation was read.
        if let Some(why) = chain.and_then(|chain| context.certificates?.revoked(chain, &self.peer.to_string())) {
            return Err(End::Tls(why));
        }
        let certificate = chain.and_then(|chain| chain.first());
        let (site, detail) = match certificate.map(peer_name) {
            None => (context.sites.of_address(self.peer.ip()), format!(", {version}, no client certificate")),
            Some(None) => return Err(End::Site("its client certificate carries neither a dNSName nor a CN".into())),
            Some(Some(name)) => {
                let detail = format!(", {version}, client certificate of {}", name.escape_debug());
                (context.sites.of_name(&name), detail)
            }
        };
        let site = site.map_err(|error| End::Site(error.to_string()))?;
        context.counts.tls_resumed += u64::from(resumed);
        let (layer, detail) = match tls.alpn_protocol() {
            Some(protocol) if protocol == ALPN => (Layer::Delivery(None), format!("{detail}, with acknowledgements")),
            _ => (Layer::Plain, detail),
        };
        if let Some(tls) = &mut self.tls {
            // Acknowledgements are whole or not there; UNREAD_ACKS_OCTETS bounds them.
            tls.set_buffer_limit(None);
        }
        self.open(Scheme::Tls, site, &detail, layer, context);
        Ok(())
    }

    /// Moves decrypted octets to the buffer.
    fn plaintext(&mut self, scratch: &mut Vec<u8>) -> Result<(), End> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        scratch.resize(READ_OCTETS, 0);
        loop {
            match tls.reader().read(scratch) {
                Ok(0) => break,
                Ok(read) => self.buffer.extend_from_slice(&scratch[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(self.ended(&format!("the connection failed: {error}"))),
            }
        }
        // The peer's close_notify. What it sent before is whole: its last Messages are decoded first.
        self.peer_done = true;
        Ok(())
    }

    /// Decodes the whole Messages of the buffer.
    fn messages(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        let Phase::Open(session, layer) = &mut self.phase else { return Ok(()) };
        let buffer = std::mem::take(&mut self.buffer);
        let mut at = 0;
        let outcome = loop {
            let next = match layer {
                Layer::Plain => plain(session, &buffer[at..], context),
                Layer::Delivery(delivery) => delivered(session, delivery, &buffer[at..], context),
            };
            match next {
                Ok(0) => break Ok(()),
                Ok(length) => {
                    at += length;
                    self.deadline = context.now.instant + IDLE_LIMIT;
                }
                Err(end) => break Err(end),
            }
        };
        self.buffer = buffer;
        outcome?;
        self.buffer.drain(..at);
        if self.buffer.is_empty() {
            self.buffer.shrink_to(BUFFER_KEPT);
            self.begun = None;
        } else if at > 0 || self.begun.is_none() {
            self.begun = Some(context.now.instant);
        }
        match self.peer_done {
            true => Err(self.ended("the exporter closed the session")),
            false => Ok(()),
        }
    }

    /// Sends the acknowledgements that are due, now that the listener's batches up to `durable` are in the store for good.
    pub fn acknowledge(&mut self, durable: u64, context: &mut Context<'_>) -> Turn {
        let (Phase::Open(_, Layer::Delivery(Some(delivery))), Some(tls)) = (&mut self.phase, &mut self.tls) else {
            return Turn::Blocked;
        };
        let mut frames = Vec::new();
        for ack in delivery.due(durable) {
            ack.write(&mut frames);
            context.counts.acks += 1;
        }
        if frames.is_empty() {
            return Turn::Blocked;
        }
        self.unread_acks += frames.len();
        // rustls takes all of it, as its buffer has no limit.
        let written = tls.writer().write_all(&frames);
        self.write_tls();
        match written {
            Ok(()) if self.unread_acks <= UNREAD_ACKS_OCTETS => Turn::Blocked,
            _ => self.end(End::Session("it does not read its acknowledgements".into()), context),
        }
    }

    /// Whether it waits for the store to make what it brought durable.
    pub fn is_waiting(&self) -> bool {
        matches!(&self.phase, Phase::Open(_, Layer::Delivery(Some(delivery))) if delivery.is_waiting())
    }

    /// A tick after certificates were read again: ends a session whose own was revoked.
    pub fn recheck(&mut self, certificates: &Server, context: &mut Context<'_>) -> Turn {
        let open = matches!(self.phase, Phase::Open(..));
        let chain = self.tls.as_ref().filter(|_| open).and_then(|tls| tls.peer_certificates());
        match chain.and_then(|chain| certificates.revoked(chain, &self.peer.to_string())) {
            Some(why) => self.end(End::Revoked(why), context),
            None => self.tick(context),
        }
    }

    /// Ends what its time has run out for; leaves a row for a session that goes on. `Gone` as after a turn.
    pub fn tick(&mut self, context: &mut Context<'_>) -> Turn {
        let late = context.now.instant >= self.deadline;
        let slow = self.begun.is_some_and(|begun| context.now.instant.duration_since(begun) >= MESSAGE_LIMIT);
        match &mut self.phase {
            Phase::Lingering if late => Turn::Gone,
            Phase::Handshake if late => self.end(End::Slow, context),
            Phase::Open(..) if late => {
                self.end(End::Session(format!("nothing was received for {} s", IDLE_LIMIT.as_secs())), context)
            }
            Phase::Open(..) if slow && !context.stalled => self.end(End::SlowMessage, context),
            Phase::Open(session, _) => {
                session.tick(context.now.wall_ms, context.rows, context.counts);
                Turn::Blocked
            }
            Phase::Handshake | Phase::Lingering => Turn::Blocked,
        }
    }

    /// Gives a half-open connection up for a newer one.
    pub fn give_up(&mut self, context: &mut Context<'_>) {
        self.end(End::HalfOpenMax, context);
    }

    /// Tells the peer that we are about to stop; it may finish its sentence.
    pub fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        self.write_tls();
        self.socket.shutdown(Shutdown::Write).ok();
    }

    /// Ends the session because the collector stops.
    pub fn stop(&mut self, context: &mut Context<'_>) {
        match self.phase {
            Phase::Open(..) => self.end(self.ended("the collector stops"), context),
            Phase::Handshake => self.end(End::Tls(format!("{}: the collector stops", self.peer)), context),
            Phase::Lingering => Turn::Gone,
        };
    }

    /// Books and tells the end. A peer that we refuse gets time to read the alert: closing at once, with its octets unread,
    /// would destroy it on the way.
    fn end(&mut self, end: End, context: &mut Context<'_>) -> Turn {
        let counts = &mut *context.counts;
        match std::mem::replace(&mut self.phase, Phase::Lingering) {
            Phase::Open(session, _) => {
                counts.open -= 1;
                let (counter, reason) = match end {
                    End::Session(reason) | End::Tls(reason) | End::Site(reason) => (&mut counts.ended, reason),
                    End::Slow | End::HalfOpenMax => (&mut counts.ended, "given up".into()),
                    End::Revoked(reason) => (&mut counts.ended_revoked, reason),
                    End::SlowMessage => {
                        let octets = self.buffer.len();
                        let reason = format!(
                            "a Message was begun and not whole after {MESSAGE_LIMIT:?} ({octets} octets of it discarded)"
                        );
                        (&mut counts.ended_message_timeout, reason)
                    }
                };
                *counter += 1;
                session.end(&reason, context.now.wall_ms, context.rows, counts);
            }
            Phase::Handshake => {
                counts.handshaking -= 1;
                let (counter, told) = match end {
                    End::Tls(told) | End::Session(told) | End::Revoked(told) => (&mut counts.refused_tls, told),
                    End::Slow | End::SlowMessage => {
                        (&mut counts.refused_slow, format!("{}: no handshake within {HANDSHAKE_LIMIT:?}", self.peer))
                    }
                    End::HalfOpenMax => {
                        (&mut counts.refused_half_open, format!("{}: too many handshakes at once", self.peer))
                    }
                    End::Site(why) => (&mut counts.refused_site, format!("{}: {why}", self.peer)),
                };
                *counter += 1;
                (context.warn)(&told);
            }
            Phase::Lingering => return Turn::Gone,
        }
        self.buffer = Vec::new();
        self.deadline = context.now.instant + LINGER_LIMIT;
        self.say_goodbye();
        self.discard()
    }

    fn write_tls(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        while tls.wants_write() {
            // What cannot be written now goes with the next turn, which begins when the socket becomes writable; what never
            // can be shows at the next read.
            if !tls.write_tls(&mut self.socket).is_ok_and(|written| written > 0) {
                return;
            }
        }
        self.unread_acks = 0;
    }

    /// Reads and forgets until the peer closes.
    fn discard(&mut self) -> Turn {
        self.write_tls();
        let mut sink = [0; 4096];
        for _ in 0..TURN_OCTETS / sink.len() {
            match self.socket.read(&mut sink) {
                Ok(0) => return Turn::Gone,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Blocked,
                Err(_) => return Turn::Gone,
            }
        }
        Turn::More
    }
}

/// Decodes the Message at the start of a plain stream. Gives its length; 0 where it is not whole yet.
fn plain(session: &mut Session, bytes: &[u8], context: &mut Context<'_>) -> Result<usize, End> {
    let malformed = |malformed| End::Session(format!("malformed Message: {malformed}"));
    match frame(bytes) {
        Ok(None) => Ok(0),
        Ok(Some(length)) => {
            let decoded = session.message(&bytes[..length], context.now.wall_ms, context.rows, context.counts);
            decoded.map(|()| length).map_err(malformed)
        }
        Err(error) => {
            context.counts.messages += 1;
            context.counts.messages_malformed += 1;
            Err(malformed(error))
        }
    }
}

/// Does what the frame at the start of a delivery stream says. Gives its length; 0 where it is not whole yet.
fn delivered(
    session: &mut Session,
    delivery: &mut Option<Delivery>,
    bytes: &[u8],
    context: &mut Context<'_>,
) -> Result<usize, End> {
    let (frame, length) = match FromProbe::read(bytes) {
        Ok(None) => return Ok(0),
        Ok(Some(read)) => read,
        Err(error) => {
            context.counts.messages += 1;
            context.counts.messages_malformed += 1;
            return Err(End::Session(error.to_string()));
        }
    };
    match (frame, delivery) {
        (FromProbe::Hello(probe), none @ None) => {
            session.expect_late();
            *none = Some(Delivery::new(session.site().clone(), probe));
        }
        (FromProbe::Hello(_), Some(_)) => return Err(End::Session("a second HELLO".into())),
        (_, None) => return Err(End::Session("it has not said HELLO".into())),
        (FromProbe::Message { number: 0, message, .. }, Some(_)) => unnumbered(session, message, context),
        (FromProbe::Message { epoch, number, message }, Some(delivery)) => {
            numbered(session, delivery, (epoch, number), message, context)?;
        }
        (FromProbe::Settled { epoch, number }, Some(delivery)) => delivery.settle(context.received, epoch, number),
        (FromProbe::Flush, Some(_)) => *context.hurry = true,
    }
    Ok(length)
}

/// A malformed Message is dropped and counted, and the session goes on: its end in the stream is known by the frame, and a probe
/// that had to send it again and again would never come to the next.
fn unnumbered(session: &mut Session, message: &[u8], context: &mut Context<'_>) {
    if let Err(malformed) = session.message(message, context.now.wall_ms, context.rows, context.counts) {
        session.line(&format!("malformed Message dropped: {malformed}"));
    }
}

fn numbered(
    session: &mut Session,
    delivery: &mut Delivery,
    (epoch, number): (u64, u64),
    message: &[u8],
    context: &mut Context<'_>,
) -> Result<(), End> {
    match delivery.is_duplicate(context.received, epoch, number) {
        true => session.duplicate(message, context.counts),
        false => unnumbered(session, message, context),
    }
    match delivery.take(context.received, epoch, number, context.batch) {
        true => Ok(()),
        false => Err(End::Session("too many of its Messages wait to be acknowledged".into())),
    }
}
