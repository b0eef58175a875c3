//! The collector as it is run, what it is sent, and what it left.
#![allow(dead_code)] // Not every test uses all of it.

use nagare_service::tls::{self, ClientTls};
use nagare_wire::flow::{CSV_HEADER, Counters, FlowKey, FlowRecord};
use nagare_wire::ipfix::export::MessageBuilder;
use nagare_wire::ipfix::mapping::{Book, ExporterStatistics, Process};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_nagare-collector");
/// What takes longer than this has failed; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running collector; killed when it is dropped.
pub struct Collector {
    pub child: Child,
    pub dir: PathBuf,
    pub log: Arc<Mutex<String>>,
    pub addresses: BTreeMap<String, SocketAddr>,
}

/// What a stopped one left.
pub struct Remains {
    pub dir: PathBuf,
    pub log: String,
    pub table: String,
    pub books: Value,
}

impl Collector {
    /// Starts on a free port for each scheme, with a PKI in `dir`, and waits until it listens.
    pub fn start(dir: &Path, schemes: &[&str], more: &[&str]) -> Collector {
        let mut command = Command::new(PROGRAM);
        for scheme in schemes {
            command.args(["--collector-port", &format!("{scheme}://127.0.0.1:0")]);
        }
        command.arg("--data").arg(dir.join("data")).arg("--stats-json").arg(dir.join("stats.json")).args(more);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let into = log.clone();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| *into.lock().expect("no panic") += &(line + "\n"));
        });
        let mut collector = Collector { child, dir: dir.to_owned(), log, addresses: BTreeMap::new() };
        for scheme in schemes {
            let line = collector.logged(&format!("listening {scheme} "));
            let address = line.rsplit(' ').next().and_then(|text| text.parse().ok()).expect("an address");
            collector.addresses.insert((*scheme).to_owned(), address);
        }
        collector
    }

    /// The first line of the log that holds `part`, waited for.
    pub fn logged(&self, part: &str) -> String {
        let begun = Instant::now();
        loop {
            let log = self.log.lock().expect("no panic").clone();
            if let Some(line) = log.lines().find(|line| line.contains(part)) {
                return line.to_owned();
            }
            assert!(begun.elapsed() < PATIENCE, "{part:?} in:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn tcp(&self, scheme: &str) -> TcpStream {
        let stream = TcpStream::connect(self.addresses[scheme]).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream
    }

    /// A connection from another address of this machine: what one address did is not held against the next.
    pub fn tcp_from(&self, scheme: &str, host: u8) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, host], 0)).into()).expect("bound");
        socket.connect(&self.addresses[scheme].into()).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket.into()
    }

    /// Octets of memory that the process held at most.
    pub fn memory_peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
        1024 * line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).expect("kibibytes")
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().expect("kill is there").success());
    }

    pub fn udp(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        socket.connect(self.addresses["udp"]).expect("connected");
        socket
    }

    /// Asks it to stop, and returns what it left: balanced books.
    pub fn stop(mut self) -> Remains {
        self.signal("-TERM");
        let mut table = String::new();
        self.child.stdout.take().expect("piped").read_to_string(&mut table).expect("read");
        let status = self.child.wait().expect("waited for");
        let log = self.log.lock().expect("no panic").clone();
        assert!(status.success(), "{status}:\n{log}");
        let books = std::fs::read(self.dir.join("stats.json")).expect("written at the end");
        let books: Value = serde_json::from_slice(&books).expect("JSON");
        assert_eq!(books["balanced"], Value::Bool(true), "{table}\n{log}");
        assert!(!table.contains("NOT BALANCED"), "{table}");
        Remains { dir: self.dir.clone(), log, table, books }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Remains {
    /// A total (empty `term`) or a term of an equation.
    pub fn book(&self, equation: &str, term: &str) -> u64 {
        let equations = self.books["equations"].as_array().expect("a list");
        let found = equations.iter().find(|one| one["name"] == equation).expect("the equation");
        let value = if term.is_empty() { &found["total"]["value"] } else { &found["terms"][term] };
        value.as_u64().unwrap_or_else(|| panic!("{equation} {term} in {}", self.table))
    }

    pub fn figure(&self, name: &str) -> u64 {
        self.books["figures"][name].as_u64().expect("a figure")
    }
}

/// Runs the program to its end; its standard output.
pub fn output(arguments: &[&str]) -> String {
    let output = Command::new(PROGRAM).args(arguments).output().expect("run");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

pub fn sql(dir: &Path, query: &str) -> Vec<String> {
    let data = dir.join("data");
    let text = output(&["sql", "--data", data.to_str().expect("text"), "--format", "csv", query]);
    text.lines().skip(1).map(str::to_owned).collect()
}

/// The flows of the store as the CSV contract has them, with the sites.
pub fn stored(dir: &Path) -> Vec<String> {
    let data = dir.join("data");
    let text = output(&["flows", "--data", data.to_str().expect("text"), "--format", "csv"]);
    let mut lines = text.lines();
    let head = lines.next().expect("a header");
    assert_eq!(head, format!("{CSV_HEADER},site,exporter,domain"));
    lines.map(str::to_owned).collect()
}

pub const START_MS: u64 = 1_795_000_000_000;

pub fn flow(index: u64) -> FlowRecord {
    let v6 = index.is_multiple_of(3);
    let address = |host: u64| -> IpAddr {
        let text = if v6 { format!("2001:db8::{host:x}") } else { format!("10.0.{}.{}", host / 250, host % 250) };
        text.parse().expect("an address")
    };
    FlowRecord {
        key: FlowKey {
            source: address(index % 1000 + 1),
            destination: address(index % 7 + 2000),
            source_port: (index % 60_000) as u16 + 1024,
            destination_port: 443,
            protocol: 6,
            vlan: (index % 5) as u16,
            ..FlowKey::default()
        },
        start_us: 1000 * (START_MS + index),
        end_us: 1000 * (START_MS + 2 * index),
        forward: Counters { packets: index + 1, octets: 1500 * index + 40, tcp_flags: 0x1b },
        reverse: Counters { packets: index, octets: 40 * index, tcp_flags: 0x12 },
        tos: 8,
        end_reason: (index % 5) as u8 + 1,
        ..FlowRecord::default()
    }
}

pub fn row(flow: &FlowRecord, site: &str, domain: u32) -> String {
    let mut text = String::new();
    flow.write_csv(&mut text);
    format!("{},{site},127.0.0.1,{domain}", text.trim_end())
}

/// Messages of at most 1400 octets with the flows of a range, Templates first, then a book and statistics.
pub fn messages(flows: std::ops::Range<u64>, domain: u32) -> Vec<Vec<u8>> {
    let (mut messages, mut sequence) = (Vec::new(), 0);
    let mut builder = MessageBuilder::new(1400);
    builder.push_templates().expect("room");
    let mut finish = |builder: &mut MessageBuilder| {
        let records = builder.records();
        messages.push(builder.finish((START_MS / 1000) as u32, sequence, domain));
        sequence += records;
    };
    for index in flows.clone() {
        if builder.push_flow(&flow(index)).is_err() {
            finish(&mut builder);
            builder.push_flow(&flow(index)).expect("room");
        }
    }
    finish(&mut builder);
    let book = |name: &str, value| Book { process: Process::Metering, process_id: 1, name: name.into(), value };
    builder.push_book(&book("wire", 1000)).expect("room");
    builder.push_book(&book("metered", 1000)).expect("room");
    let statistics =
        ExporterStatistics { process_id: 9, records: flows.end - flows.start, ..ExporterStatistics::default() };
    builder.push_statistics(&statistics).expect("room");
    finish(&mut builder);
    messages
}

/// A PKI made by the program itself, and the options that use it.
pub fn pki(dir: &Path, sites: &[&str]) -> (PathBuf, Vec<String>) {
    let pki = dir.join("pki");
    let path = pki.to_str().expect("text");
    let told = output(&["pki", "init", "--dir", path, "--name", "collector.example", "--san", "localhost"]);
    assert!(told.contains("--tls-client-ca") && told.contains("pki issue --dir"), "{told}");
    for site in sites {
        let told = output(&["pki", "issue", "--dir", path, "--site", site]);
        assert!(told.contains("nagare-probe -i eth0 --collector tls://collector.example:4740 --tls-ca"), "{told}");
    }
    let file = |name: &str| format!("{path}/{name}");
    let options = [
        "--tls-cert".into(),
        file("collector.pem"),
        "--tls-priv-key".into(),
        file("collector-key.pem"),
        "--tls-client-ca".into(),
        file("ca.pem"),
    ];
    (pki, options.into())
}

pub fn texts(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

/// The client side of a TLS session for a site of the PKI, handshake done as far as the client is concerned.
pub fn secure<S: Read + Write>(
    socket: S,
    pki: &Path,
    identity: Option<(PathBuf, PathBuf)>,
) -> StreamOwned<ClientConnection, S> {
    let probe = ClientTls { ca: Some(pki.join("ca.pem")), identity, ..ClientTls::default() };
    secure_with(socket, tls::client_config(&probe).expect("configured"), Vec::new())
}

/// The same with a configuration that is kept, and the protocols that the client offers.
pub fn secure_with<S: Read + Write>(
    socket: S,
    config: Arc<ClientConfig>,
    protocols: Vec<Vec<u8>>,
) -> StreamOwned<ClientConnection, S> {
    let name = tls::server_name("collector.example").expect("a name");
    let connection = ClientConnection::new_with_alpn(config, name, protocols).expect("a connection");
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).expect("a handshake");
    }
    stream
}

pub fn pair(pki: &Path, site: &str) -> Option<(PathBuf, PathBuf)> {
    let sites = pki.join("sites");
    Some((sites.join(format!("{site}.pem")), sites.join(format!("{site}-key.pem"))))
}

/// A client pair of the PKI's CA with a Common Name and no subjectAltName, valid for so many days from now.
pub fn common_name_pair(pki: &Path, file: &str, common_name: &str, days: i64) -> (PathBuf, PathBuf) {
    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair};
    let read = |name: &str| std::fs::read_to_string(pki.join(name)).expect("read");
    let ca_key = KeyPair::from_pem(&read("ca-key.pem")).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), ca_key).expect("a CA");
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now = time::OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - time::Duration::days(9), now + time::Duration::days(days));
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("signed");
    let files = (pki.join(format!("{file}.pem")), pki.join(format!("{file}-key.pem")));
    std::fs::write(&files.0, certificate.pem()).expect("written");
    std::fs::write(&files.1, key.serialize_pem()).expect("written");
    files
}

/// A ClientHello of a version before 1.3 (3 for TLS 1.2) with these cipher suites.
pub fn client_hello(minor: u8, suites: &[u16]) -> Vec<u8> {
    let suites: Vec<u8> = suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
    let groups = [0, 10, 0, 4, 0, 2, 0, 23];
    let formats = [0, 11, 0, 2, 1, 0];
    let signatures = [0, 13, 0, 6, 0, 4, 4, 3, 8, 4];
    let extensions = [&groups[..], &formats, &signatures].concat();
    let counted = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
    let body = [&[3, minor][..], &[7; 32], &[0], &counted(&suites), &[1, 0], &counted(&extensions)].concat();
    let handshake = [&[1, 0][..], &counted(&body)].concat();
    [&[0x16, 3, 1][..], &counted(&handshake)].concat()
}
