//! How fast one exporter thread sends flow records over the loopback to a sink that discards: over TCP, over TLS by either
//! cryptography, and as the probe does it.

#![forbid(unsafe_code)]

use crate::lab::Pki;
use clap::Parser;
use nagare_probe::books::{CaptureBooks, ProbeBooks};
use nagare_probe::counters::{MeterCounters, Tally};
use nagare_probe::exporter::process::ExportingProcess;
use nagare_probe::exporter::{Exporter, Output, handles};
use nagare_probe::options::CommandLine;
use nagare_probe::run::open_collectors;
use nagare_probe::worker::RecordRing;
use nagare_service::run::Stop;
use nagare_service::tls::{ClientTls, ServerTls, client_config, server_config, server_name};
use nagare_wire::delivery::{ALPN, Ack, FromProbe};
use nagare_wire::flow::{Counters, FlowKey, FlowRecord};
use nagare_wire::ipfix::field::FlowTemplate;
use nix::time::ClockId;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What one exporter thread is to reach with acknowledgements, million records a second.
pub const TARGET: f64 = 1.5;
/// Different records, which stay in the cache of the core that hands them on; they are sent again and again.
const FLOWS: u32 = 4096;
/// Octets of a Message, as the exporter's over a stream.
const MESSAGE_MAX: usize = 16_000;
/// Octets that are gathered before the socket is written to.
const WRITE: usize = 256 << 10;
const SITE: &str = "lab";
const RING_RECORDS: usize = 1 << 16;
const BATCH: usize = 64;

/// A way of sending, and what it reached.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub name: &'static str,
    /// Records sent.
    pub records: u64,
    /// Octets that the sink read, TLS included.
    pub octets: u64,
    /// From the first record to the last octet that the sink read, seconds.
    pub seconds: f64,
    /// Processor time of the exporter's thread, seconds.
    pub cpu_s: f64,
}

impl Row {
    /// Million records a second.
    pub fn mrps(&self) -> f64 {
        self.records as f64 / self.seconds / 1e6
    }

    /// Megabits a second on the loopback.
    pub fn mbps(&self) -> f64 {
        self.octets as f64 * 8.0 / self.seconds / 1e6
    }

    /// Seconds of processor time for a million records.
    pub fn cpu_s_per_million(&self) -> f64 {
        self.cpu_s / (self.records as f64 / 1e6)
    }
}

/// Measures all ways with so many records each. Certificates are made below `scratch` by this workspace's collector.
///
/// # Errors
/// The loopback or TLS fails.
pub fn measure(records: u64, scratch: &Path) -> Result<Vec<Row>, Box<dyn Error>> {
    let pki = Pki::new(scratch, SITE);
    let files = client_tls(&pki);
    let server = server_config(&ServerTls {
        cert: pki.file("collector.pem"),
        key: pki.file("collector-key.pem"),
        ..ServerTls::default()
    })?;
    let mut rows = vec![
        plain_loop("TCP", None, records, None)?,
        plain_loop("TLS, ring", Some(client_config(&files)?), records, Some(server.clone()))?,
    ];
    if let Some(config) = aws_lc(&pki)? {
        rows.push(plain_loop("TLS, aws-lc-rs", Some(config), records, Some(server.clone()))?);
    }
    rows.push(delivery(&pki, records, &server, None)?);
    rows.push(delivery(&pki, records, &server, Some(scratch))?);
    Ok(rows)
}

fn client_tls(pki: &Pki) -> ClientTls {
    let identity = (pki.file(&format!("sites/{SITE}.pem")), pki.file(&format!("sites/{SITE}-key.pem")));
    ClientTls { ca: Some(pki.file("ca.pem")), identity: Some(identity), ..ClientTls::default() }
}

/// A client by aws-lc-rs, where it was built in.
#[cfg(feature = "aws-lc")]
fn aws_lc(pki: &Pki) -> Result<Option<Arc<ClientConfig>>, Box<dyn Error>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.file("ca.pem"))?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Some(Arc::new(config)))
}

#[cfg(not(feature = "aws-lc"))]
fn aws_lc(_: &Pki) -> Result<Option<Arc<ClientConfig>>, Box<dyn Error>> {
    eprintln!("TLS by aws-lc-rs is not built in: cargo build --release -p nagare-benches --features aws-lc");
    Ok(None)
}

/// The steps of the exporter in a loop of its own: Messages of [`ExportingProcess`], TLS, the socket.
fn plain_loop(
    name: &'static str,
    client: Option<Arc<ClientConfig>>,
    records: u64,
    server: Option<Arc<ServerConfig>>,
) -> Result<Row, Box<dyn Error>> {
    let sink = Sink::start(server)?;
    let mut way = Way::open(sink.port, client)?;
    let flows = flows();
    let work = move || -> io::Result<(Instant, f64)> {
        let mut process = ExportingProcess::new(1, MESSAGE_MAX, FlowTemplate::basic());
        let (began, before) = (Instant::now(), thread_cpu_s()?);
        way.send(&process.begin_session(0).1.bytes)?;
        for flow in flows.iter().cycle().take(records as usize) {
            if let Some(message) = process.push(flow, 0) {
                way.send(&message.bytes)?;
            }
        }
        let last = process.flush(0);
        last.map_or(Ok(()), |message| way.send(&message.bytes))?;
        way.write()?;
        let cpu_s = thread_cpu_s()? - before;
        way.close()?;
        Ok((began, cpu_s))
    };
    let (began, cpu_s) = std::thread::spawn(work).join().map_err(|_| "the exporter panicked")??;
    let (octets, ended) = sink.finish()?;
    Ok(Row { name, records, octets, seconds: (ended - began).as_secs_f64(), cpu_s })
}

/// The probe's own exporter thread, fed over its ring by another, to a sink that acknowledges each Message.
fn delivery(pki: &Pki, records: u64, server: &ServerConfig, scratch: Option<&Path>) -> Result<Row, Box<dyn Error>> {
    let mut server = server.clone();
    server.alpn_protocols = vec![ALPN.to_vec()];
    let sink = Sink::start(Some(Arc::new(server)))?;
    let spool = scratch.map(|scratch| scratch.join("spool"));
    let files = [("--tls-ca", Some(pki.file("ca.pem"))), ("--spool", spool)];
    let files = files.into_iter().filter_map(|(option, file)| Some(format!("{option}={}", file?.display())));
    let line = ["nagare-probe", "-i=-", "--reconnect=100ms", "--buffer=256M"].map(String::from).into_iter();
    let line = line.chain([format!("--collector=tls://localhost:{}", sink.port)]).chain(files);
    let plan = CommandLine::try_parse_from(line)?.plan()?;
    let (collectors, exports) = open_collectors(&plan)?;
    let (ring, meter) = (Arc::new(RecordRing::new(RING_RECORDS)), Arc::new(MeterCounters::default()));
    let export = exports[0].1.clone();
    let books = Arc::new(ProbeBooks {
        captures: vec![("memory".into(), Box::new(CaptureBooks::default))],
        meters: vec![meter.clone()],
        ..ProbeBooks::of_exports(exports)
    });
    let (poll, handles) = handles()?;
    let output = Output::Collectors(collectors);
    let exporter = Exporter::new(output, vec![ring.clone()], books, true, Stop::new(), (poll, &handles));
    let thread = std::thread::spawn(move || -> Result<f64, String> {
        let broken = exporter.run();
        broken.map_or_else(|| thread_cpu_s().map_err(|error| error.to_string()), Err)
    });
    while export.sessions.get() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let began = Instant::now();
    for (number, flow) in flows().iter().cycle().take(records as usize).enumerate() {
        meter.ended.add(Tally::of(flow));
        // As a worker does after each batch.
        if number % BATCH == 0 && 2 * ring.queue.len() > ring.queue.capacity() {
            (handles.wake)();
        }
        let mut refused = ring.queue.push(*flow);
        while let Err(flow) = refused {
            std::thread::sleep(Duration::from_micros(100));
            refused = ring.queue.push(flow);
        }
    }
    ring.finished.store(true, Ordering::Release);
    (handles.wake)();
    let cpu_s = thread.join().map_err(|_| "the exporter panicked")??;
    let (octets, ended) = sink.finish()?;
    let delivered = export.delivered.get().flows;
    if delivered != records {
        return Err(format!("{delivered} of {records} records were delivered").into());
    }
    let name = if scratch.is_some() { "TLS, acknowledged, through a spool" } else { "TLS, acknowledged" };
    Ok(Row { name, records, octets, seconds: (ended - began).as_secs_f64(), cpu_s })
}

fn flows() -> Vec<FlowRecord> {
    let flow = |number: u32| {
        let [_, c, b, a] = number.to_be_bytes();
        let key = FlowKey {
            source: Ipv4Addr::new(10, c, b, a).into(),
            destination: Ipv4Addr::new(198, 18, b, a).into(),
            source_port: number as u16,
            destination_port: 443,
            protocol: 6,
            ..FlowKey::default()
        };
        let counters = Counters { packets: 10, octets: 5000 + u64::from(number), tcp_flags: 0x1b };
        let start_us = 1_700_000_000_000_000 + u64::from(number);
        FlowRecord {
            key,
            start_us,
            end_us: start_us + 1000,
            forward: counters,
            reverse: counters,
            end_reason: 3,
            ..FlowRecord::default()
        }
    };
    (0..FLOWS).map(flow).collect()
}

fn thread_cpu_s() -> io::Result<f64> {
    let time = ClockId::CLOCK_THREAD_CPUTIME_ID.now()?;
    Ok(Duration::from(time).as_secs_f64())
}

/// A connection to the sink, and what waits to be written to it.
struct Way {
    stream: TcpStream,
    tls: Option<ClientConnection>,
    out: Vec<u8>,
}

impl Way {
    fn open(port: u16, config: Option<Arc<ClientConfig>>) -> Result<Way, Box<dyn Error>> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        let name = server_name("localhost")?;
        let mut tls = config.map(|config| ClientConnection::new(config, name)).transpose()?;
        if let Some(tls) = &mut tls {
            while tls.is_handshaking() || tls.wants_write() {
                tls.complete_io(&mut stream)?;
            }
            tls.set_buffer_limit(None);
        }
        Ok(Way { stream, tls, out: Vec::with_capacity(2 * WRITE) })
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => self.out.extend_from_slice(message),
            Some(tls) => {
                tls.writer().write_all(message)?;
                while tls.wants_write() {
                    tls.write_tls(&mut self.out)?;
                }
            }
        }
        if self.out.len() >= WRITE { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Waits until the sink has read everything: closing with its ticket unread would reset what is on its way.
    fn close(mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        io::copy(&mut self.stream, &mut io::sink())?;
        Ok(())
    }
}

/// Takes one connection, shakes hands where there is TLS, and discards what follows: without looking at it, or, where the exporter
/// speaks the delivery layer, decrypted and acknowledged.
struct Sink {
    port: u16,
    thread: JoinHandle<io::Result<(u64, Instant)>>,
}

impl Sink {
    fn start(tls: Option<Arc<ServerConfig>>) -> io::Result<Sink> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        Ok(Sink { port, thread: std::thread::spawn(move || discard(&listener, tls)) })
    }

    /// Octets after the handshake, and when the last of them came.
    fn finish(self) -> Result<(u64, Instant), Box<dyn Error>> {
        Ok(self.thread.join().map_err(|_| "the sink panicked")??)
    }
}

fn discard(listener: &TcpListener, tls: Option<Arc<ServerConfig>>) -> io::Result<(u64, Instant)> {
    let (mut stream, _) = listener.accept()?;
    if let Some(config) = tls {
        let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
        while connection.is_handshaking() || connection.wants_write() {
            connection.complete_io(&mut stream)?;
        }
        if connection.alpn_protocol() == Some(ALPN) {
            return acknowledge(stream, connection);
        }
    }
    let (mut octets, mut last, mut buffer) = (0, Instant::now(), vec![0; 1 << 20]);
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok((octets, last)),
            read => (octets, last) = (octets + read as u64, Instant::now()),
        }
    }
}

/// Acknowledges every Message that came as soon as it is read.
fn acknowledge(mut stream: TcpStream, mut tls: ServerConnection) -> io::Result<(u64, Instant)> {
    let (mut octets, mut last, mut buffer, mut plain) = (0, Instant::now(), vec![0; 1 << 20], Vec::new());
    loop {
        let read = tls.read_tls(&mut stream)?;
        if read == 0 {
            return Ok((octets, last));
        }
        (octets, last) = (octets + read as u64, Instant::now());
        tls.process_new_packets().map_err(io::Error::other)?;
        while let Ok(read @ 1..) = tls.reader().read(&mut buffer) {
            plain.extend_from_slice(&buffer[..read]);
        }
        let (mut at, mut acks) = (0, Vec::new());
        while let Some((frame, length)) = FromProbe::read(&plain[at..]).map_err(io::Error::other)? {
            at += length;
            if let FromProbe::Message { epoch, number: number @ 1.., .. } = frame {
                Ack { epoch, first: number, last: number }.write(&mut acks);
            }
        }
        plain.drain(..at);
        tls.writer().write_all(&acks)?;
        while tls.wants_write() {
            tls.write_tls(&mut stream)?;
        }
    }
}
