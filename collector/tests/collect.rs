//! The collector as it is run: the program, real sockets, and what it stored read back by its own queries.
#![forbid(unsafe_code)]

mod program;

use nagare_service::tls::{self, ClientTls};
use nagare_wire::flow::FlowRecord;
use nagare_wire::ipfix::export::MessageBuilder;
use program::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn every_transport_reaches_the_store() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (pki, mut options) = pki(dir.path(), &["tokyo"]);
    let config = dir.path().join("collector.toml");
    std::fs::write(&config, "[[site]]\nname = 'lab'\nexporters = ['127.0.0.0/8']\n").expect("written");
    options.extend(["--config".to_owned(), config.to_str().expect("text").to_owned()]);
    let collector = Collector::start(dir.path(), &["tls", "tcp", "udp"], &texts(&options));

    let mut probe = secure(collector.tcp("tls"), &pki, pair(&pki, "tokyo"));
    messages(0..1000, 1).iter().for_each(|message| probe.write_all(message).expect("sent"));
    probe.conn.send_close_notify();
    probe.flush().expect("sent");
    collector.logged("site tokyo, TLS 1.3, client certificate of tokyo");

    // In pieces, so that Messages straddle reads.
    let mut exporter = collector.tcp("tcp");
    let bytes: Vec<u8> = messages(1000..2000, 2).concat();
    bytes.chunks(777).for_each(|piece| exporter.write_all(piece).expect("sent"));
    drop(exporter);

    let socket = collector.udp();
    for message in messages(2000..2300, 3) {
        socket.send(&message).expect("sent");
    }
    collector.logged("tcp 127.0.0.1:");
    let closed = collector.logged("ended after 1003 records");
    assert!(closed.contains("0 gaps (0 records lost): the exporter closed the"), "{closed}");

    // A query sees flows ten seconds after they came, while the collector runs.
    let begun = Instant::now();
    while sql(dir.path(), "SELECT count(*) FROM flows") != ["2300"] {
        assert!(begun.elapsed() < Duration::from_secs(10), "flows are seen after ten seconds at most");
        std::thread::sleep(Duration::from_millis(200));
    }
    let remains = collector.stop();

    let sites = |index: u64| match index {
        0..1000 => ("tokyo", 1),
        1000..2000 => ("lab", 2),
        _ => ("lab", 3),
    };
    let expected: Vec<String> = (0..2300).map(|index| row(&flow(index), sites(index).0, sites(index).1)).collect();
    assert_eq!(stored(&remains.dir), expected);
    assert_eq!((remains.book("flows", "stored"), remains.book("flows", "")), (2300, 2300));
    assert_eq!((remains.book("records", ""), remains.book("records", "statistics")), (2309, 3));
    assert_eq!((remains.book("connections", "ended"), remains.figure("sequence_gaps")), (2, 0));
    let books = sql(
        &remains.dir,
        "SELECT process, process_id, name, value FROM books WHERE site = 'tokyo' AND value > 0 ORDER BY 1, 3",
    );
    assert_eq!(books, ["metering,1,metered,1000", "metering,1,wire,1000", "statistics,9,records,1000"]);
    let query = "SELECT transport, event, records, lost FROM sessions ORDER BY transport, event DESC";
    let sessions =
        ["tcp,start,0,0", "tcp,end,1003,0", "tls,start,0,0", "tls,end,1003,0", "udp,start,0,0", "udp,end,303,0"];
    assert_eq!(sql(&remains.dir, query), sessions);
}

/// A Message of given Sets.
fn message(sequence: u32, domain: u32, sets: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (id, content) in sets {
        body.extend_from_slice(&id.to_be_bytes());
        body.extend_from_slice(&(content.len() as u16 + 4).to_be_bytes());
        body.extend_from_slice(content);
    }
    let mut message = vec![0, 10];
    message.extend_from_slice(&(body.len() as u16 + 16).to_be_bytes());
    message.extend_from_slice(&((START_MS / 1000) as u32).to_be_bytes());
    message.extend_from_slice(&sequence.to_be_bytes());
    message.extend_from_slice(&domain.to_be_bytes());
    message.extend_from_slice(&body);
    message
}

fn template(id: u16, fields: &[(u16, u16, Option<u32>)]) -> Vec<u8> {
    let mut out = [id.to_be_bytes(), (fields.len() as u16).to_be_bytes()].concat();
    specify(&mut out, fields);
    out
}

fn specify(out: &mut Vec<u8>, fields: &[(u16, u16, Option<u32>)]) {
    for (element, length, enterprise) in fields {
        let bit = if enterprise.is_some() { 0x8000 } else { 0 };
        out.extend_from_slice(&(element | bit).to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        enterprise.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
    }
}

/// An exporter that is not ours: counters of reduced size, a variable-length field, an enterprise's element that nobody here
/// knows, an options Template of its own, and padding.
fn foreign() -> Vec<u8> {
    let fields = [
        (8, 4, None),
        (12, 4, None),
        (7, 2, None),
        (11, 2, None),
        (4, 1, None),
        (2, 4, None),
        (1, 3, None),
        (82, 65535, None),
    ];
    let fields: Vec<_> = fields.into_iter().chain([(12, 5, Some(9999)), (150, 4, None), (151, 4, None)]).collect();
    let mut options = [300_u16.to_be_bytes(), 2_u16.to_be_bytes(), 1_u16.to_be_bytes()].concat();
    specify(&mut options, &[(149, 4, None), (41, 8, None)]);
    let mut record = vec![192, 0, 2, 1, 198, 51, 100, 2];
    record.extend_from_slice(&[0x30, 0x39, 0, 53, 17, 0, 0, 0, 7, 0x01, 0x00, 0x00]);
    record.extend_from_slice(&[4, b'e', b't', b'h', b'0']);
    record.extend_from_slice(&[1, 2, 3, 4, 5]);
    let seconds = (START_MS / 1000) as u32;
    record.extend_from_slice(&seconds.to_be_bytes());
    record.extend_from_slice(&(seconds + 1).to_be_bytes());
    record.extend_from_slice(&[0, 0]);
    let option = [7_u32.to_be_bytes().to_vec(), 99_u64.to_be_bytes().to_vec()].concat();
    message(0, 77, &[(2, template(256, &fields)), (3, options), (256, record), (300, option)])
}

#[test]
fn foreign_exporters_are_understood() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let collector = Collector::start(dir.path(), &["udp", "tcp"], &[]);
    collector.udp().send(&foreign()).expect("sent");
    collector.logged("site 127.0.0.1");
    // A record without addresses, and one whose Template nobody sent.
    let mut exporter = collector.tcp("tcp");
    let counters = template(256, &[(2, 8, None)]);
    let bare = message(0, 5, &[(2, counters), (256, 3_u64.to_be_bytes().to_vec()), (999, vec![0; 8])]);
    exporter.write_all(&bare).expect("sent");
    exporter.shutdown(Shutdown::Write).expect("shut");
    collector.logged("tcp 127.0.0.1");
    collector.logged("ended after 1 records");
    let remains = collector.stop();
    let end_ms = START_MS + 1000;
    let expected =
        format!("{START_MS},{end_ms},192.0.2.1,198.51.100.2,12345,53,17,7,65536,0,0,0,0,0,0,0,127.0.0.1,127.0.0.1,77");
    assert_eq!(stored(&remains.dir), [expected]);
    assert_eq!((remains.book("records", "other.options"), remains.book("records", "other.record")), (1, 1));
    assert_eq!(remains.figure("sets_without_template"), 1);
}

#[test]
fn malformed_messages_end_a_stream_and_not_a_datagram_session() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let collector = Collector::start(dir.path(), &["tcp", "udp"], &[]);
    let mut good = messages(0..10, 1).concat();
    let whole = good.len();
    // A Set that is longer than its Message: what stands before it in the same Message is discarded, too.
    let mut broken = messages(10..20, 1).remove(0);
    let at = broken.len();
    broken.extend_from_slice(&[1, 0, 0, 99]);
    let length = broken.len() as u16;
    broken[2..4].copy_from_slice(&length.to_be_bytes());
    good.extend_from_slice(&broken);
    let mut exporter = collector.tcp("tcp");
    exporter.write_all(&good).expect("sent");
    assert_eq!(exporter.read(&mut [0; 1]).expect("closed in order"), 0, "the session is closed");
    let line = collector.logged("malformed Message");
    assert!(
        line.contains(&format!("Set length 99 at offset {at}")) && line.contains("ended after 13 records"),
        "{line}"
    );
    drop(exporter);

    // NetFlow version 9 at a TCP port, and half a Message before the end.
    for (bytes, told) in
        [(&[0, 9, 0, 1][..], "version 9 at offset 0"), (&good[..whole / 2], "in the middle of a Message")]
    {
        let mut exporter = collector.tcp("tcp");
        exporter.write_all(bytes).expect("sent");
        exporter.shutdown(Shutdown::Write).expect("shut");
        collector.logged(told);
    }
    let socket = collector.udp();
    socket.send(b"hello").expect("sent");
    collector.logged("refused: datagram from 127.0.0.1");
    let (first, rest) = (messages(20..30, 1), messages(30..40, 1));
    socket.send(&first[0]).expect("sent");
    socket.send(&broken).expect("sent");
    socket.send(&rest[0]).expect("sent");
    collector.logged("malformed Message dropped: Set length");
    let remains = collector.stop();
    let rows = stored(&remains.dir);
    let numbers: Vec<u64> = (0..10).chain(20..40).collect();
    for index in numbers {
        let expected = row(&flow(index), "127.0.0.1", 1);
        assert!(rows.contains(&expected), "{expected}");
    }
    assert!(!rows.contains(&row(&flow(10), "127.0.0.1", 1)), "nothing of the broken Message is kept");
    assert_eq!(remains.book("messages", "refuse.malformed"), 4);
}

#[test]
fn domains_and_sessions_are_kept_apart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let collector = Collector::start(dir.path(), &["tcp"], &[]);
    // Two Observation Domains in one session, each with its own sequence, interleaved; domain 2 loses its second Message.
    let (one, two) = (messages(0..60, 1), messages(60..120, 2));
    let mut exporter = collector.tcp("tcp");
    for index in 0..one.len() {
        exporter.write_all(&one[index]).expect("sent");
        if index != 1 {
            exporter.write_all(&two[index]).expect("sent");
        }
    }
    drop(exporter);
    let line = collector.logged("ended after");
    assert!(line.contains("1 gaps (") && !line.contains("(0 records lost)"), "{line}");
    // The Templates of a session end with it: the next must send its own before its data count.
    let mut again = collector.tcp("tcp");
    again.write_all(&one[1]).expect("sent");
    drop(again);
    collector.logged("ended after 0 records");
    let mut again = collector.tcp("tcp");
    again.write_all(&messages(200..210, 1).concat()).expect("sent");
    drop(again);
    collector.logged("ended after 13 records");
    let remains = collector.stop();
    assert!(remains.figure("sets_without_template") > 0);
    assert_eq!(remains.figure("sequence_gaps"), 2, "domain 2's, and the stream that did not begin at 0");
    let rows = stored(&remains.dir);
    let of = |domain: &str| rows.iter().filter(|row| row.ends_with(domain)).count() as u64;
    let lost = remains.book("records", "");
    assert_eq!((of(",1"), of(",1") + of(",2")), (70, remains.book("flows", "stored")));
    assert!(lost > 0 && of(",2") < 60 && of(",2") > 20);
    let gaps = sql(&remains.dir, "SELECT note FROM sessions WHERE event = 'gap' AND note LIKE 'domain 2:%'");
    assert_eq!(gaps, [format!("domain 2: {} records lost", 60 - of(",2"))]);
}

#[test]
fn probes_without_the_right_certificate_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (pki, options) = pki(dir.path(), &["tokyo"]);
    let other = dir.path().join("other");
    let path = other.to_str().expect("text");
    output(&["pki", "init", "--dir", path, "--name", "other.example"]);
    output(&["pki", "issue", "--dir", path, "--site", "tokyo"]);
    let wild = common_name_pair(&pki, "wild", "../../etc", 1);
    let collector = Collector::start(dir.path(), &["tls"], &texts(&options));
    let cases = [
        (None, "demands a client certificate", "presented no client certificate, and --tls-client-ca demands one"),
        (pair(&other, "tokyo"), "no CA that it trusts signed it", "is not signed by any CA in "),
        (Some((pki.join("collector.pem"), pki.join("collector-key.pem"))), "not meant for this", "lacks clientAuth"),
    ];
    let probe = ClientTls { ca: Some(pki.join("ca.pem")), ..ClientTls::default() };
    for (identity, told_here, told_there) in cases {
        let side = ClientTls { identity: identity.clone(), ..probe.clone() }.side();
        let mut stream = secure(collector.tcp("tls"), &pki, identity);
        let error = stream.read(&mut [0; 1]).expect_err("refused");
        let told = tls::explain_io(&error, &side, "collector.example");
        assert!(told.contains(told_here), "{told_here:?} in: {told}");
        collector.logged(told_there);
    }
    // The certificate is right, but its name would leave the store's directory.
    let mut stream = secure(collector.tcp("tls"), &pki, Some(wild));
    assert_eq!(stream.read(&mut [0; 1]).expect("closed in order"), 0);
    collector.logged("\"../../etc\" cannot name a site");
    // Not TLS at all.
    let mut plain = collector.tcp("tls");
    plain.write_all(&messages(0..1, 1)[0]).expect("sent");
    collector.logged("does not speak TLS");
    plain.read_to_end(&mut Vec::new()).ok();
    let remains = collector.stop();
    assert_eq!((remains.book("connections", "refuse.tls"), remains.book("connections", "refuse.site")), (4, 1));
    assert_eq!((remains.book("records", ""), remains.book("connections", "")), (0, 5));
}

/// A store that cannot write fills up, the collector stops reading, TCP holds the exporter back; nothing is lost when it can again.
#[test]
fn a_full_store_slows_streams_down_and_loses_nothing() {
    const FLOWS: u64 = 1_000_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let collector = Collector::start(dir.path(), &["tcp"], &["--drain-timeout", "30s"]);
    // A file where the directory of a table should be: every write fails.
    let blocker = dir.path().join("data/flows");
    std::fs::remove_dir_all(&blocker).ok();
    std::fs::write(&blocker, "").expect("written");
    let mut exporter = collector.tcp("tcp");
    let sent = std::thread::spawn(move || {
        let mut batch = Vec::new();
        let mut sequence = 0;
        let mut builder = MessageBuilder::new(60_000);
        builder.push_templates().expect("room");
        for index in 0..FLOWS {
            let flow = FlowRecord { start_us: 1000 * (START_MS + index % 1000), ..flow(index) };
            if builder.push_flow(&flow).is_err() {
                let records = builder.records();
                batch.push(builder.finish(0, sequence, 1));
                sequence += records;
                builder.push_flow(&flow).expect("room");
            }
        }
        batch.push(builder.finish(0, sequence, 1));
        batch.iter().for_each(|message| exporter.write_all(message).expect("sent"));
    });
    collector.logged("the store's queue is full: sessions wait");
    std::thread::sleep(Duration::from_millis(300));
    assert!(!sent.is_finished(), "the exporter is held back");
    std::fs::remove_file(&blocker).expect("removed");
    sent.join().expect("all was sent");
    collector.logged("ended after 1000000 records");
    let remains = collector.stop();
    assert_eq!((remains.book("flows", ""), remains.book("flows", "stored")), (FLOWS, FLOWS), "{}", remains.log);
    assert_eq!(
        sql(&remains.dir, "SELECT count(*), sum(packets) FROM flows"),
        [format!("{FLOWS},{}", FLOWS * (FLOWS + 1) / 2)]
    );
}

/// What was sent before the collector was asked to stop is stored, though it was never read before.
#[test]
fn what_is_under_way_at_the_end_is_taken() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let collector = Collector::start(dir.path(), &["tcp"], &[]);
    let mut exporter = collector.tcp("tcp");
    collector.logged("session tcp");
    let bytes = messages(0..20_000, 1).concat();
    exporter.write_all(&bytes).expect("sent");
    let reader = std::thread::spawn(move || exporter.read(&mut [0; 1]).expect("closed in order"));
    let remains = collector.stop();
    assert_eq!(reader.join().expect("no panic"), 0);
    assert_eq!(remains.book("flows", "stored"), 20_000);
    assert!(remains.log.contains("ended after 20003 records"), "{}", remains.log);
}

/// What strangers can make the collector hold is bounded, and what goes for it is counted.
#[test]
fn half_open_connections_and_udp_sessions_are_bounded() {
    use nagare_collector::listener::{HANDSHAKES_MAX, UDP_SESSIONS_MAX};
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (pki, mut options) = pki(dir.path(), &["tokyo"]);
    // One address may have all of them: its own share is as many.
    options.extend(["--sessions-per-address".into(), "1000".into()]);
    let collector = Collector::start(dir.path(), &["tls", "udp"], &texts(&options));
    let mut silent: Vec<TcpStream> = (0..HANDSHAKES_MAX + 3).map(|_| collector.tcp("tls")).collect();
    collector.logged("too many handshakes at once");
    silent[0].read_to_end(&mut Vec::new()).expect("closed in order");
    // A probe that means it still gets in.
    let mut probe = secure(collector.tcp("tls"), &pki, pair(&pki, "tokyo"));
    probe.write_all(&messages(0..1, 1).concat()).expect("sent");
    collector.logged("client certificate of tokyo");

    let sessions = UDP_SESSIONS_MAX + 100; // Some may get the port of an earlier one.
    for index in 0..sessions {
        collector.udp().send(&messages(0..1, 1)[0]).expect("sent");
        if index % 20 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    collector.logged("too many UDP sessions");
    collector.logged("no handshake within 10s");
    drop(silent);
    let remains = collector.stop();
    let refused = |term| remains.book("connections", term);
    assert_eq!(refused("refuse.half_open_max"), 4);
    // Those whose time had not run out yet went with their sockets.
    let slow = refused("refuse.handshake_timeout") + refused("refuse.tls");
    assert!(refused("refuse.handshake_timeout") > 0);
    assert_eq!(refused("refuse.half_open_max") + slow, HANDSHAKES_MAX as u64 + 3);
    let ended = sql(&remains.dir, "SELECT count(*) FROM sessions WHERE event = 'start' AND transport = 'udp'");
    let begun: u64 = ended[0].parse().expect("a number");
    assert_eq!(remains.figure("sessions_udp_evicted"), begun - UDP_SESSIONS_MAX as u64);
}

#[test]
fn what_cannot_be_served_is_said() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = dir.path().join("data");
    let data = data.to_str().expect("text");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let taken = format!("tcp://{}", taken.local_addr().expect("an address"));
    let cases: [(&[&str], &str); 6] = [
        (&[], "--collector-port URL is missing"),
        (&["--collector-port", "tcp://127.0.0.1:0"], "--data DIR is missing"),
        (&["--collector-port", "tls://127.0.0.1:0", "--data", data], "needs --tls-cert and --tls-priv-key"),
        (&["--collector-port", "tcp://192.0.2.1:4739", "--data", data], "tcp://4739 listens on all"),
        (&["--collector-port", &taken, "--data", data], "another program listens there"),
        (&["--collector-port", "tcp://127.0.0.1:0", "--config", "/nowhere.toml"], "/nowhere.toml: cannot be read"),
    ];
    for (arguments, told) in cases {
        let output = Command::new(PROGRAM).args(arguments).output().expect("run");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(told), "{told:?} in: {text}");
    }
}
