//! Listeners that keep what comes, octet by octet, and the probe as it is run.
#![allow(dead_code)] // Not every test uses all of it.

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What takes longer than this has failed; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Octets that the kernel holds for a collector that does not read; so few that a stall is soon felt.
const RECEIVE_BUFFER: usize = 16 << 10;

/// Waits until `done`.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what}: never");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a listener does with its connections.
#[derive(Clone, Default)]
pub struct Manner {
    /// TLS, if any.
    pub tls: Option<Arc<ServerConfig>>,
    /// Takes nothing from its connections.
    pub stalls: bool,
}

/// A stream listener: what each connection brought, decrypted.
pub struct Listener {
    pub port: u16,
    sessions: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Resets the connection that is open.
    reset: Arc<AtomicBool>,
    socket: Option<Socket>,
    manner: Manner,
}

impl Listener {
    /// Listens at once.
    pub fn start(manner: Manner) -> Listener {
        let mut listener = Listener::away(manner);
        listener.come_back();
        listener
    }

    /// Has a port, and refuses connections until it is told to listen.
    pub fn away(manner: Manner) -> Listener {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(RECEIVE_BUFFER).expect("an option");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a free port");
        let port = socket.local_addr().expect("bound").as_socket().expect("of IPv4").port();
        Listener { port, sessions: Arc::default(), reset: Arc::default(), socket: Some(socket), manner }
    }

    /// Listens from now on.
    pub fn come_back(&mut self) {
        let socket = self.socket.take().expect("not listening yet");
        socket.listen(8).expect("a listener");
        let listener = TcpListener::from(socket);
        let (sessions, reset, manner) = (self.sessions.clone(), self.reset.clone(), self.manner.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                sessions.lock().unwrap().push(Vec::new());
                serve(stream, &manner, &sessions, &reset);
            }
        });
    }

    /// Octets that each connection has brought so far.
    pub fn octets(&self) -> Vec<usize> {
        self.sessions.lock().unwrap().iter().map(Vec::len).collect()
    }

    /// What each connection has brought.
    pub fn sessions(&self) -> Vec<Vec<u8>> {
        self.sessions.lock().unwrap().clone()
    }

    /// Resets the connection that is open.
    pub fn reset(&self) {
        self.reset.store(true, Ordering::Release);
        wait_for("the reset", || !self.reset.load(Ordering::Acquire));
    }
}

/// Reads a connection to its end.
fn serve(stream: TcpStream, manner: &Manner, sessions: &Mutex<Vec<Vec<u8>>>, reset: &AtomicBool) {
    stream.set_read_timeout(Some(Duration::from_millis(10))).expect("an option");
    let socket = stream.try_clone().expect("a descriptor");
    let mut from: Box<dyn Read> = match &manner.tls {
        Some(config) => {
            let connection = ServerConnection::new(config.clone()).expect("a connection");
            Box::new(StreamOwned::new(connection, stream))
        }
        None => Box::new(stream),
    };
    let mut chunk = vec![0; 64 << 10];
    loop {
        if reset.load(Ordering::Acquire) {
            SockRef::from(&socket).set_linger(Some(Duration::ZERO)).expect("an option");
            drop((from, socket));
            return reset.store(false, Ordering::Release);
        }
        if manner.stalls {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(read) => sessions.lock().unwrap().last_mut().expect("begun").extend_from_slice(&chunk[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

/// A socket for datagrams, with as much room as the system gives.
pub fn udp() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    SockRef::from(&socket).set_recv_buffer_size(8 << 20).expect("an option");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("an option");
    let port = socket.local_addr().expect("bound").port();
    (socket, port)
}

/// The datagrams that wait at a socket.
pub fn datagrams(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut datagram = vec![0; 65_536];
    std::iter::from_fn(|| socket.recv(&mut datagram).ok().map(|length| datagram[..length].to_vec())).collect()
}

/// The datagrams that come while `work` is done, and what is under way then: no socket has room for all of them.
pub fn datagrams_during(socket: &UdpSocket, work: impl FnOnce()) -> Vec<Vec<u8>> {
    let (done, begun) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut all = Vec::new();
            while begun.elapsed() < PATIENCE {
                let over = done.load(Ordering::Acquire);
                let more = datagrams(socket);
                if over && more.is_empty() {
                    break;
                }
                all.extend(more);
            }
            all
        });
        work();
        done.store(true, Ordering::Release);
        reader.join().expect("no panic")
    })
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nagare-probe"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the probe to its end.
pub fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the probe runs")
}

/// Runs the probe to its end, which must be a good one; its standard output.
pub fn run_well(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A probe that reads a capture from the test, which decides when it goes on.
pub struct Live {
    child: Child,
    input: Option<ChildStdin>,
}

impl Live {
    pub fn start(arguments: &[&str]) -> Live {
        let mut child = command(&[&["-i", "-"], arguments].concat()).stdin(Stdio::piped()).spawn().expect("started");
        let input = child.stdin.take();
        Live { child, input }
    }

    pub fn feed(&mut self, octets: &[u8]) {
        let input = self.input.as_mut().expect("not ended");
        input.write_all(octets).and_then(|()| input.flush()).expect("the probe reads");
    }

    /// Ends the capture, and waits for the probe's end.
    pub fn end(mut self) -> Output {
        self.input = None;
        self.child.wait_with_output().expect("waited for")
    }
}

/// The terms of the probe's books of flows, from `--stats-json`; the books must balance.
pub fn flows_of(stats: &Path) -> (u64, Vec<(String, u64)>) {
    let books: Value = serde_json::from_slice(&std::fs::read(stats).expect("books")).expect("JSON");
    assert_eq!(books["balanced"], true, "{books:#}");
    let equations = books["equations"].as_array().expect("a list");
    let flows = equations.iter().find(|equation| equation["name"] == "flows").expect("the equation of flows");
    let terms = flows["terms"].as_object().expect("terms").iter();
    let terms = terms.map(|(name, value)| (name.clone(), value.as_u64().expect("a number"))).collect();
    (flows["total"]["value"].as_u64().expect("a number"), terms)
}

/// Says what cannot be seen here, and fails where nothing may be skipped.
pub fn skipped(reason: &str) {
    println!("skipped: {reason}");
    assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "nothing may be skipped where CI=true");
}
