//! Collectors for tests, good and bad, on loopback.

use nagare_service::tls::{ServerTls, server_config};
use nagare_wire::ipfix::mapping::{Book, ExporterStatistics, Mapped, map};
use nagare_wire::ipfix::{Transport, TransportSession, frame};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a collector does with one connection.
#[derive(Clone, Debug)]
pub enum Manner {
    /// Reads to the end.
    Reads,
    /// Reads so many octets, then resets the connection.
    ResetsAfter(usize),
    /// Reads so many octets each 10 ms.
    ReadsSlowly(usize),
    /// Closes at once.
    Closes,
    /// Reads the beginning of the handshake, then closes.
    ClosesInHandshake,
    /// Takes the handshake, if there is one, and reads nothing more.
    ReadsNothing,
    /// Says what is no TLS, and reads.
    Says(&'static str),
    /// Never stops talking, and reads.
    Floods,
    /// Stops listening for so long, then listens again.
    IsAway(Duration),
}

/// What came over one session.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The source ports and addresses of the flows, as the tests number them.
    pub flows: Vec<u32>,
    pub books: Vec<Book>,
    pub statistics: Vec<ExporterStatistics>,
    pub messages: usize,
    pub longest: usize,
    /// Messages that hold nothing but Templates.
    pub templates: usize,
}

/// A collector's TLS.
pub enum Tls {
    None,
    /// As the collector of this project does it.
    Project(Pair),
    /// The same, only with TLS 1.2.
    Old(Pair),
    /// The same, without session tickets.
    Ticketless(Pair),
    /// The same, demanding client certificates.
    Mutual(Pair),
}

/// A self-signed certificate of localhost and its key, in files.
#[derive(Clone)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Pair {
    pub fn new(directory: &std::path::Path) -> Pair {
        let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
        let pair = Pair { cert: directory.join("cert.pem"), key: directory.join("key.pem") };
        std::fs::write(&pair.cert, made.cert.pem()).expect("a file");
        std::fs::write(&pair.key, made.signing_key.serialize_pem()).expect("a file");
        pair
    }
}

impl Tls {
    fn config(&self) -> Option<Arc<ServerConfig>> {
        let (Tls::Project(pair) | Tls::Old(pair) | Tls::Ticketless(pair) | Tls::Mutual(pair)) = self else {
            return None;
        };
        let client_ca = matches!(self, Tls::Mutual(_)).then(|| pair.cert.clone());
        let tls = ServerTls { cert: pair.cert.clone(), key: pair.key.clone(), client_ca, ..ServerTls::default() };
        let config = server_config(&tls).expect("a usable pair");
        match self {
            Tls::Old(_) => Some(Arc::new(old_config(pair))),
            Tls::Ticketless(_) => {
                let mut ticketless = (*config).clone();
                ticketless.send_tls13_tickets = 0;
                Some(Arc::new(ticketless))
            }
            _ => Some(config),
        }
    }
}

fn old_config(pair: &Pair) -> ServerConfig {
    use rustls::pki_types::pem::PemObject;
    let cert = rustls::pki_types::CertificateDer::from_pem_file(&pair.cert).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&pair.key).expect("a key");
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("TLS 1.2 is built in")
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .expect("a usable pair")
}

/// A collector that handles one connection after another, each in its manner; those after the last in the last one's.
pub struct Collector {
    pub port: u16,
    pub sessions: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Octets that the kernel holds for a collector that does not read; doubled by the kernel for its own use.
const RECEIVE_BUFFER: usize = 16 << 10;

/// Octets that the receiving kernel may have acknowledged for a collector that died: its buffer, with a wide margin.
pub const UNREAD_MAX: u64 = 8 * RECEIVE_BUFFER as u64;

fn listen(port: u16) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.set_recv_buffer_size(RECEIVE_BUFFER).expect("an option");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).expect("a free port");
    socket.listen(8).expect("a listener");
    socket.set_nonblocking(true).expect("an option");
    socket.into()
}

impl Collector {
    pub fn start(tls: Tls, manners: &[Manner]) -> Collector {
        let listener = listen(0);
        let port = listener.local_addr().expect("it is bound").port();
        let (sessions, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, stopped, config, manners) = (sessions.clone(), stop.clone(), tls.config(), manners.to_vec());
        // A collector that is away at first must be so before the probe looks for it.
        let mut listener = (!matches!(manners[0], Manner::IsAway(_))).then_some(listener);
        let serve = move || {
            let last = manners.last().expect("a manner").clone();
            for manner in manners.into_iter().chain(std::iter::repeat(last)) {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                if let Manner::IsAway(time) = manner {
                    listener = None;
                    std::thread::sleep(time);
                    continue;
                }
                let Some(stream) = accept(listener.get_or_insert_with(|| listen(port)), &stopped) else { return };
                seen.lock().unwrap().push(Seen::default());
                let visit = Visit { stopped: stopped.clone(), seen: seen.clone(), config: config.clone() };
                visit.handle(stream, &manner);
            }
        };
        Collector { port, sessions, stop, thread: Some(std::thread::spawn(serve)) }
    }

    /// Waits until so many connections were made.
    pub fn wait_for_sessions(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.sessions.lock().unwrap().len() < count {
            assert!(Instant::now() < deadline, "the probe never connected {count} times");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the collector; gives what came over each connection.
    pub fn finish(mut self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Release);
        self.thread.take().expect("it runs until now").join().expect("the collector is sound");
        std::mem::take(&mut self.sessions.lock().unwrap())
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool) -> Option<TcpStream> {
    while !stop.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) => return Some(stream),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    None
}

struct Visit {
    stopped: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    config: Option<Arc<ServerConfig>>,
}

impl Visit {
    fn handle(&self, mut stream: TcpStream, manner: &Manner) {
        stream.set_nonblocking(false).expect("an option");
        stream.set_read_timeout(Some(Duration::from_millis(20))).expect("an option");
        match manner {
            Manner::Closes | Manner::IsAway(_) => return,
            Manner::ClosesInHandshake => return drop(stream.read(&mut [0; 8])),
            Manner::Says(words) => stream.write_all(words.as_bytes()).unwrap_or_default(),
            _ => {}
        }
        let socket = stream.try_clone().expect("a descriptor");
        match &self.config {
            Some(config) if !matches!(manner, Manner::Says(_)) => {
                let mut tls = ServerConnection::new(config.clone()).expect("a connection");
                while tls.is_handshaking() && !self.stopped.load(Ordering::Acquire) {
                    match tls.complete_io(&mut stream) {
                        Err(error) if !is_timeout(&error) => return,
                        _ => {}
                    }
                }
                self.talk(StreamOwned::new(tls, stream), &socket, manner);
            }
            _ => self.talk(stream, &socket, manner),
        }
    }

    fn talk(&self, mut stream: impl Read + Write, socket: &TcpStream, manner: &Manner) {
        let mut session = TransportSession::new(Transport::Stream);
        let (mut bytes, mut total) = (Vec::new(), 0);
        let mut chunk = vec![0; if let Manner::ReadsSlowly(octets) = manner { *octets } else { 8192 }];
        while !self.stopped.load(Ordering::Acquire) {
            match manner {
                Manner::ReadsNothing => {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
                Manner::ReadsSlowly(_) => std::thread::sleep(Duration::from_millis(10)),
                Manner::Floods => {
                    socket.set_write_timeout(Some(Duration::from_millis(1))).expect("an option");
                    (0..16).for_each(|_| drop(stream.write(&[7; 4096])));
                }
                Manner::ResetsAfter(octets) if total >= *octets => {
                    return SockRef::from(socket).set_linger(Some(Duration::ZERO)).expect("an option");
                }
                _ => {}
            }
            match stream.read(&mut chunk) {
                Ok(0) => return,
                Ok(_) if matches!(manner, Manner::Says(_)) => {}
                Ok(read) => {
                    total += read;
                    bytes.extend_from_slice(&chunk[..read]);
                    let mut all = self.seen.lock().unwrap();
                    let seen = all.last_mut().expect("a session was begun");
                    while let Some(length) = frame(&bytes).expect("well-formed Messages") {
                        seen.take(&mut session, &bytes[..length]);
                        bytes.drain(..length);
                    }
                }
                Err(error) if is_timeout(&error) => {}
                Err(_) => return,
            }
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

impl Seen {
    /// Takes a Message; whatever RFC 7011 asks of an Exporter is asserted here.
    fn take(&mut self, session: &mut TransportSession, message: &[u8]) {
        let received = session
            .receive(message, |header, record| match map(header, &record) {
                Mapped::Flow(flow) => self.flows.push(crate::numbered::number_of(&flow)),
                Mapped::Book(book) => self.books.push(book),
                Mapped::Statistics(statistics) => self.statistics.push(statistics),
                Mapped::Other => panic!("a record of an unknown kind"),
            })
            .expect("a well-formed Message");
        assert_eq!((received.lost, received.sets_without_template, received.template_refusals), (0, 0, 0));
        assert!(received.notes.is_empty());
        if self.messages == 0 {
            assert_eq!((received.header.sequence, received.records), (0, 0), "Templates go first, numbers begin at 0");
        }
        self.messages += 1;
        self.longest = self.longest.max(message.len());
        self.templates += usize::from(received.records == 0);
    }
}

/// Reads what comes to a UDP socket until it is told to end.
pub fn receive_datagrams(socket: &UdpSocket, stop: &AtomicBool) -> Seen {
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("an option");
    let (mut session, mut seen) = (TransportSession::new(Transport::Datagram), Seen::default());
    let mut datagram = vec![0; 65_536];
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        match socket.recv(&mut datagram) {
            Ok(length) => seen.take(&mut session, &datagram[..length]),
            Err(_) if stop.load(Ordering::Acquire) => break,
            Err(_) => {}
        }
    }
    seen
}
