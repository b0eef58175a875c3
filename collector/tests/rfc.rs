//! What RFC 7011 and its company demand of a Collector (c), by number, of the running program; `docs/rfc.md` is the list.
#![forbid(unsafe_code)]

#[path = "../../wire/tests/bytes/mod.rs"]
mod bytes;
mod program;

use bytes::{message, template};
use nagare_service::endpoint::Endpoint;
use nagare_wire::ipfix::MESSAGE_MAX;
use program::*;
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Source and destination, the other way round, and a record.
const ADDRESSES: [(u16, u16); 2] = [(8, 4), (12, 4)];
const TURNED: [(u16, u16); 2] = [(12, 4), (8, 4)];
const RECORD: &[u8] = &[192, 0, 2, 1, 192, 0, 2, 2];

/// Sets of a Message: ID and content.
type Sets<'a> = &'a [(u16, &'a [u8])];

/// A collector on one port for each scheme, and its directory.
fn start(schemes: &[&str]) -> (TempDir, Collector) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let collector = Collector::start(dir.path(), schemes, &[]);
    (dir, collector)
}

/// A session over TCP that sends these Messages and ends in order.
fn session(collector: &Collector, messages: &[Vec<u8>]) {
    let mut exporter = collector.tcp("tcp");
    messages.iter().for_each(|message| exporter.write_all(message).expect("sent"));
    exporter.shutdown(Shutdown::Write).expect("shut");
    assert_eq!(exporter.read(&mut [0; 1]).expect("closed in order"), 0);
}

/// Sends datagrams.
fn send(socket: &UdpSocket, messages: &[Vec<u8>]) {
    messages.iter().for_each(|message| assert_eq!(socket.send(message).expect("sent"), message.len()));
}

/// Domain, source and destination of every flow stored.
fn ends(remains: &Remains) -> Vec<String> {
    sql(&remains.dir, "SELECT domain, src, dst FROM flows ORDER BY 1, 2, 3")
}

#[test]
fn c15_messages_of_65_535_octets_are_taken() {
    let (_dir, collector) = start(&["tcp", "udp"]);
    let define = message(1, 0, &[(2, &template(256, &ADDRESSES))]);
    // Over UDP no more fits a datagram of IPv4 than 65,507 octets.
    let longest = |octets: usize| {
        let records = (octets - 16 - 4) / 8;
        let data = [&RECORD.repeat(records)[..], &vec![0; octets - 16 - 4 - records * 8]].concat();
        (message(1, 0, &[(256, &data)]), records)
    };
    let (whole, records) = longest(MESSAGE_MAX);
    assert_eq!(whole.len(), MESSAGE_MAX);
    session(&collector, &[define.clone(), whole]);
    collector.logged(&format!("ended after {records} records in 2 messages"));
    let (whole, datagram_records) = longest(65_507);
    let socket = collector.udp();
    send(&socket, &[define, whole]);
    let remains = collector.stop();
    assert_eq!(remains.book("flows", "stored"), (records + datagram_records) as u64);
    assert_eq!(remains.figure("records_lost"), 0);
}

/// RFC 5471, 3.5.3.
#[test]
fn c15_a_template_of_16_370_fields_is_taken() {
    let (_dir, collector) = start(&["tcp"]);
    let fields = [&ADDRESSES[..], &[(4, 1); 16_368]].concat();
    let data = [RECORD, &[17; 16_368]].concat();
    session(&collector, &[message(1, 0, &[(2, &template(256, &fields))]), message(1, 0, &[(256, &data)])]);
    collector.logged("ended after 1 records");
    let remains = collector.stop();
    assert_eq!(ends(&remains), ["1,192.0.2.1,192.0.2.2"]);
    assert_eq!(remains.figure("template_refusals"), 0);
}

#[test]
fn c17_templates_of_one_session_are_not_used_in_another() {
    let (_dir, collector) = start(&["tcp"]);
    let data = message(1, 0, &[(256, RECORD)]);
    session(&collector, &[message(1, 0, &[(2, &template(256, &ADDRESSES))]), data.clone()]);
    collector.logged("ended after 1 records");
    // RFC 5471, 3.6: an exporter that begins anew.
    session(&collector, std::slice::from_ref(&data));
    collector.logged("ended after 0 records");
    // Also of a session that goes on beside.
    let mut beside = collector.tcp("tcp");
    beside.write_all(&message(1, 0, &[(2, &template(256, &ADDRESSES))])).expect("sent");
    session(&collector, std::slice::from_ref(&data));
    beside.write_all(&data).expect("sent");
    drop(beside);
    let remains = collector.stop();
    assert_eq!((remains.book("flows", "stored"), remains.figure("sets_without_template")), (2, 2));
}

#[test]
fn c18_observation_domains_are_kept_apart() {
    let (_dir, collector) = start(&["tcp"]);
    let data = |domain, sequence| message(domain, sequence, &[(256, RECORD)]);
    let define = |domain, fields: &[(u16, u16)]| message(domain, 0, &[(2, &template(256, fields))]);
    let messages = [
        define(1, &ADDRESSES),
        define(2, &TURNED),
        data(1, 0),
        data(2, 0),
        message(1, 1, &[(2, &[0, 2, 0, 0])]),
        data(2, 1),
        data(1, 1),
    ];
    session(&collector, &messages);
    let remains = collector.stop();
    assert_eq!(ends(&remains), ["1,192.0.2.1,192.0.2.2", "2,192.0.2.2,192.0.2.1", "2,192.0.2.2,192.0.2.1"]);
    assert_eq!((remains.figure("sequence_gaps"), remains.figure("sets_without_template")), (0, 1));
}

#[test]
fn c24_withdrawals_are_obeyed_and_unknown_ones_told() {
    let (_dir, collector) = start(&["tcp"]);
    let define = message(1, 0, &[(2, &template(256, &ADDRESSES))]);
    let data = message(1, 0, &[(256, RECORD)]);
    session(&collector, &[define, message(1, 0, &[(2, &[1, 0, 0, 0, 1, 9, 0, 0])]), data]);
    collector.logged("withdrawal of the unknown Template 265 ignored");
    collector.logged("ended after 0 records in 3 messages");
    assert_eq!(ends(&collector.stop()), [""; 0]);
}

#[test]
fn c25_redefinitions_without_a_withdrawal_are_logged() {
    let (_dir, collector) = start(&["tcp"]);
    let define = |fields: &[(u16, u16)]| message(1, 0, &[(2, &template(256, fields))]);
    session(&collector, &[define(&ADDRESSES), define(&TURNED), message(1, 0, &[(256, RECORD)])]);
    collector.logged("Template 256 defined anew without a withdrawal");
    assert_eq!(ends(&collector.stop()), ["1,192.0.2.2,192.0.2.1"]);
}

#[test]
fn c26_over_udp_withdrawals_are_ignored_and_templates_replaced() {
    let (_dir, collector) = start(&["udp"]);
    let socket = collector.udp();
    let sets: [(u32, Sets<'_>); 5] = [
        (0, &[(2, &template(256, &ADDRESSES))]),
        (0, &[(2, &[1, 0, 0, 0])]),
        (0, &[(256, RECORD)]),
        (1, &[(2, &template(256, &TURNED))]),
        (1, &[(256, RECORD)]),
    ];
    send(&socket, &sets.map(|(sequence, sets)| message(1, sequence, sets)));
    collector.logged("Template withdrawal 256 over UDP ignored");
    assert_eq!(ends(&collector.stop()), ["1,192.0.2.1,192.0.2.2", "1,192.0.2.2,192.0.2.1"]);
}

#[test]
fn c27_the_ports_are_those_of_the_registry_unless_configured() {
    for (url, port) in [("tcp://a", 4739), ("udp://a", 4739), ("tls://a", 4740), ("tls://a:2055", 2055), ("tcp://1", 1)]
    {
        assert_eq!(url.parse::<Endpoint>().expect(url).port, port, "{url}");
    }
}

#[test]
fn c29_it_listens_on_after_connections_that_ended_badly() {
    let (_dir, collector) = start(&["tcp"]);
    let good = [message(1, 0, &[(2, &template(256, &ADDRESSES))]), message(1, 0, &[(256, RECORD)])];
    // Garbage, a reset, half a Message.
    collector.tcp("tcp").write_all(&[0xff; 64]).expect("sent");
    let reset = collector.tcp("tcp");
    SockRef::from(&reset).set_linger(Some(Duration::ZERO)).expect("set");
    drop(reset);
    collector.tcp("tcp").write_all(&good[1][..10]).expect("sent");
    session(&collector, &good);
    collector.logged("ended after 1 records in 2 messages");
    assert_eq!(collector.stop().book("connections", "ended"), 4);
}

#[test]
fn c30_it_closes_its_end_and_reads_until_the_exporter_closes() {
    let (_dir, collector) = start(&["tcp"]);
    let mut exporter = collector.tcp("tcp");
    exporter.write_all(&[0, 9, 0, 16]).expect("sent");
    assert_eq!(exporter.read(&mut [0; 1]).expect("no reset"), 0, "its end is closed");
    // A socket that was closed outright would answer these with a reset.
    for _ in 0..50 {
        exporter.write_all(&[0; 4096]).expect("it still reads");
    }
    exporter.shutdown(Shutdown::Write).expect("no reset");
    assert_eq!(exporter.read(&mut [0; 1]).expect("no reset"), 0);
    assert_eq!(collector.stop().book("messages", ""), 1, "what it reads then are no Messages");
}

#[test]
fn c34_nothing_moves_from_one_transport_to_another() {
    let (_dir, collector) = start(&["tcp", "udp"]);
    // One address and port on both.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let port = collector.udp().local_addr().expect("bound").port();
    let local = SocketAddr::from(([127, 0, 0, 1], port));
    socket.bind(&local.into()).expect("a free port");
    socket.connect(&collector.addresses["tcp"].into()).expect("connected");
    let mut stream: TcpStream = socket.into();
    let datagrams = UdpSocket::bind(local).expect("a free port");
    datagrams.connect(collector.addresses["udp"]).expect("connected");
    stream.write_all(&message(1, 0, &[(2, &template(256, &ADDRESSES)), (256, RECORD)])).expect("sent");
    stream.shutdown(Shutdown::Write).expect("shut");
    collector.logged("ended after 1 records");
    datagrams.send(&message(1, 900, &[(256, RECORD)])).expect("sent");
    collector.logged(&format!("session udp {local}"));
    let remains = collector.stop();
    assert_eq!((remains.book("flows", "stored"), remains.figure("sets_without_template")), (1, 1));
    assert_eq!(remains.figure("sequence_gaps"), 0, "neither does the sequence");
}

/// Messages that are not to be read, and how the log names them.
fn malformed() -> Vec<(Vec<u8>, &'static str)> {
    let with = |at: usize, octet: u8, sets: Sets<'_>| {
        let mut bytes = message(1, 0, sets);
        bytes[at] = octet;
        bytes
    };
    let define: &[u8] = &template(256, &[(8, 4), (12, 4), (82, 65535)]);
    let record = [RECORD, &[1, b'a']].concat();
    let too_long = [RECORD, &[9, b'a']].concat();
    vec![
        (message(1, 0, &[(2, define), (256, &record), (256, &too_long)]), "a Data Record passes the end of the Set"),
        (message(1, 0, &[(2, define), (256, &record), (2, &template(255, &ADDRESSES))]), "broken Template Record"),
        (with(19, 200, &[(2, define)]), "Set length 200 at offset 16"),
        (with(3, 15, &[]), "Message length 15 at offset 2"),
        (with(1, 11, &[(2, define)]), "version 11 at offset 0"),
    ]
}

#[test]
fn c36_malformed_messages_are_discarded_and_logged_and_end_the_session() {
    let (_dir, collector) = start(&["tcp", "udp"]);
    for (index, (bytes, told)) in malformed().into_iter().enumerate() {
        let mut exporter = collector.tcp("tcp");
        exporter.write_all(&message(2, 0, &[(2, &template(256, &ADDRESSES)), (256, RECORD)])).expect("sent");
        exporter.write_all(&bytes).expect("sent");
        assert_eq!(exporter.read(&mut [0; 1]).expect("closed in order"), 0, "{told}");
        let line = collector.logged(told);
        assert!(line.contains("malformed Message") && line.contains("ended after 1 records"), "{index}: {line}");
    }
    // A datagram session loses the one Message.
    let socket = collector.udp();
    socket.send(&message(3, 0, &[(2, &template(256, &ADDRESSES)), (256, RECORD)])).expect("sent");
    send(&socket, &malformed().into_iter().map(|(bytes, _)| bytes).collect::<Vec<_>>());
    socket.send(&message(3, 1, &[(256, RECORD)])).expect("sent");
    let remains = collector.stop();
    assert_eq!(remains.book("messages", "refuse.malformed"), 10);
    let domains = sql(&remains.dir, "SELECT domain, count(*) FROM flows GROUP BY 1 ORDER BY 1");
    assert_eq!(domains, ["2,5", "3,2"], "nothing of domain 1, which only malformed Messages carried");
}

#[test]
fn c38_losses_and_insertions_are_logged() {
    let (_dir, collector) = start(&["tcp"]);
    let data = |sequence| message(7, sequence, &[(256, RECORD)]);
    session(&collector, &[message(7, 0, &[(2, &template(256, &ADDRESSES))]), data(0), data(4), data(2)]);
    collector.logged("domain 7: 3 records lost");
    collector.logged("sequence 2 where 5 was expected");
    let remains = collector.stop();
    assert_eq!((remains.figure("sequence_gaps"), remains.figure("records_lost")), (1, 3));
    let gaps = sql(&remains.dir, "SELECT note FROM sessions WHERE event = 'gap'");
    assert_eq!(gaps, ["domain 7: 3 records lost"]);
}

#[test]
fn c39_the_templates_of_a_session_are_bounded_and_refusals_counted() {
    let (_dir, collector) = start(&["tcp", "udp"]);
    let many = vec![(4, 1); 16_000];
    let messages: Vec<Vec<u8>> = (256..264).map(|id| message(1, 0, &[(2, &template(id, &many))])).collect();
    session(&collector, &messages);
    collector.logged("refused: too many, or more fields than octets");
    // A session that costs no handshake may hold less.
    let socket = collector.udp();
    send(&socket, &messages[..3]);
    assert_eq!(collector.stop().figure("template_refusals"), 4 + 2);
}

/// A collector for TLS with a PKI of the sites tokyo and osaka; `more` are further options.
fn start_tls(more: impl FnOnce(&Path) -> Vec<String>) -> (TempDir, PathBuf, Collector) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (pki, mut options) = pki(dir.path(), &["tokyo", "osaka"]);
    options.extend(more(&pki));
    let collector = Collector::start(dir.path(), &["tls"], &texts(&options));
    (dir, pki, collector)
}

/// Sends one flow as who `identity` says; whether the collector went on until the exporter's end.
fn admitted(collector: &Collector, pki: &Path, identity: Option<(PathBuf, PathBuf)>) -> bool {
    let mut stream = secure(collector.tcp("tls"), pki, identity);
    let bytes = message(1, 0, &[(2, &template(256, &ADDRESSES)), (256, RECORD)]);
    let sent = stream.write_all(&bytes).and_then(|()| stream.flush());
    stream.conn.send_close_notify();
    sent.and_then(|()| stream.flush()).and_then(|()| stream.read(&mut [0; 1])).is_ok_and(|read| read == 0)
}

#[test]
fn c40_exporters_without_a_certificate_are_refused() {
    let (_dir, pki, collector) = start_tls(|_| Vec::new());
    assert!(!admitted(&collector, &pki, None));
    let line = collector.logged("presented no client certificate");
    assert!(line.contains("refused"), "44: failures of authentication are logged: {line}");
    assert!(admitted(&collector, &pki, pair(&pki, "tokyo")));
    let remains = collector.stop();
    assert_eq!((remains.book("connections", "refuse.tls"), remains.book("flows", "stored")), (1, 1));
}

#[test]
fn c41_nothing_is_taken_from_an_unverified_exporter() {
    let (dir, pki, collector) = start_tls(|_| Vec::new());
    let other = dir.path().join("other");
    std::fs::create_dir(&other).expect("made");
    let (other, _) = program::pki(&other, &["tokyo"]);
    // Another CA's, the collector's own (which is no client's), and one whose name can be nobody's site.
    let server = Some((pki.join("collector.pem"), pki.join("collector-key.pem")));
    let nobody = Some(common_name_pair(&pki, "nobody", "../tokyo", 1));
    for identity in [pair(&other, "tokyo"), server, nobody] {
        admitted(&collector, &pki, identity);
    }
    collector.logged("cannot name a site");
    let remains = collector.stop();
    assert_eq!((remains.book("connections", "refuse.tls"), remains.book("connections", "refuse.site")), (2, 1));
    assert_eq!((remains.book("messages", ""), remains.book("flows", "")), (0, 0));
}

#[test]
fn c42_authorised_exporters_may_be_listed_by_common_name() {
    // By the Common Name of a certificate that has no subjectAltName, one that could not name a site by itself.
    let (dir, pki, collector) = start_tls(|pki| {
        let config = pki.join("collector.toml");
        std::fs::write(&config, "[[site]]\nname = 'tokyo'\nexporters = ['Probe 7, third floor']\n").expect("written");
        vec!["--config".into(), config.to_str().expect("text").into()]
    });
    assert!(admitted(&collector, &pki, Some(common_name_pair(&pki, "listed", "Probe 7, third floor", 1))));
    admitted(&collector, &pki, Some(common_name_pair(&pki, "other", "Probe 8, third floor", 1)));
    collector.logged("\"Probe 8, third floor\" cannot name a site");
    let remains = collector.stop();
    assert_eq!(sql(&remains.dir, "SELECT site FROM flows"), ["tokyo"]);
    drop(dir);
    // Where certificates stand in place of a CA, they alone are authorised, and no others of their CA.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (pki, mut options) = program::pki(dir.path(), &["tokyo", "osaka"]);
    let (listed, _) = pair(&pki, "tokyo").expect("made");
    *options.last_mut().expect("--tls-client-ca") = listed.to_str().expect("text").into();
    let collector = Collector::start(dir.path(), &["tls"], &texts(&options));
    assert!(admitted(&collector, &pki, pair(&pki, "tokyo")));
    assert!(!admitted(&collector, &pki, pair(&pki, "osaka")));
    assert_eq!(sql(&collector.stop().dir, "SELECT site FROM flows"), ["tokyo"]);
}

#[test]
fn c43_suites_without_encryption_are_refused() {
    const HANDSHAKE: u8 = 0x16;
    const ALERT: u8 = 0x15;
    // RSA with MD5, SHA and SHA-256, ECDHE with ECDSA and RSA, and the two NULL suites of TLS 1.3 (RFC 9150).
    let null = [0x0001, 0x0002, 0x003b, 0xc006, 0xc010, 0xc0b4, 0xc0b5];
    let (_dir, _, collector) = start_tls(|_| Vec::new());
    for (suites, expected) in [(&null[..], ALERT), (&[&null[..], &[0xc02b]].concat(), HANDSHAKE)] {
        let mut stream = collector.tcp("tls");
        stream.write_all(&client_hello(3, suites)).expect("sent");
        let mut answer = [0; 1];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer[0], expected, "{suites:x?}");
    }
    collector.logged("refused");
}

#[test]
fn c44_failures_of_authentication_and_resets_are_logged() {
    let (_dir, pki, collector) = start_tls(|_| Vec::new());
    assert!(!admitted(&collector, &pki, None));
    collector.logged("refused: TLS: the probe 127.0.0.1:");
    let stream = secure(collector.tcp("tls"), &pki, pair(&pki, "osaka"));
    collector.logged("client certificate of osaka");
    SockRef::from(&stream.sock).set_linger(Some(Duration::ZERO)).expect("set");
    drop(stream);
    let line = collector.logged("ended after 0 records");
    assert!(line.contains("the connection failed") && line.to_lowercase().contains("reset"), "{line}");
}
