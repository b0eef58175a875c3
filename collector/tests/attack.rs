//! Attacks on the running collector, each beside an honest session: nothing of that is lost, memory stays bounded, and each attack
//! has its counter.
#![forbid(unsafe_code)]

#[path = "../../wire/tests/bytes/mod.rs"]
mod bytes;
mod program;

use bytes::{message, template};
use nagare_service::tls::{self, ClientTls};
use nagare_wire::delivery::{ALPN, Ack, FromProbe, ProbeId};
use program::*;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What all attacks of a test may add to the collector's memory, the store's rows and files included: it is that of two dozen
/// sessions which hold all that a session can, and attackers here have fewer at once.
const MEMORY_MAX: u64 = 64 << 20;
/// Flows of the honest session; its Messages last longer than any attack.
const FLOWS: u64 = 40_000;
const PACE: Duration = Duration::from_millis(50);

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A collector, an honest session of tokyo, and what was done to them.
struct Arena {
    dir: TempDir,
    pki: PathBuf,
    collector: Collector,
    honest: Honest,
    memory: u64,
    attacks: Vec<Attack>,
}

/// What an attack should leave: an equation and its term (or a figure), grown by this at least.
struct Attack {
    name: &'static str,
    happens: &'static str,
    counter: (&'static str, &'static str),
    least: u64,
    memory: u64,
}

struct Honest {
    sent: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Honest {
    /// Sends a Message at a time until it is told to stop, then the others at once.
    fn begin(mut stream: Tls) -> Honest {
        let (sent, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (sent.clone(), stop.clone());
        let thread = thread::spawn(move || {
            for message in messages(0..FLOWS, 1) {
                stream.write_all(&message).and_then(|()| stream.flush()).expect("the honest session goes on");
                count.fetch_add(1, Ordering::Relaxed);
                if !stopped.load(Ordering::Relaxed) {
                    thread::sleep(PACE);
                }
            }
            stream.conn.send_close_notify();
            stream.flush().expect("sent");
            assert_eq!(stream.read(&mut [0; 1]).expect("closed in order"), 0);
        });
        Honest { sent, stop, thread }
    }

    /// Waits for two more Messages.
    fn goes_on(&self) {
        let (before, begun) = (self.sent.load(Ordering::Relaxed), Instant::now());
        while self.sent.load(Ordering::Relaxed) < before + 2 {
            assert!(begun.elapsed() < PATIENCE && !self.thread.is_finished(), "the honest session goes on");
            thread::sleep(PACE);
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the honest session ended in order");
    }
}

impl Arena {
    fn new(more: impl FnOnce(&Path) -> Vec<String>) -> Arena {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (pki, mut options) = pki(dir.path(), &["tokyo", "osaka", "nagoya"]);
        options.extend(more(&pki));
        let collector = Collector::start(dir.path(), &["tls"], &texts(&options));
        let honest = Honest::begin(secure(collector.tcp("tls"), &pki, pair(&pki, "tokyo")));
        honest.goes_on();
        let memory = collector.memory_peak();
        Arena { dir, pki, collector, honest, memory, attacks: Vec::new() }
    }

    /// Attacks, and looks whether the collector is as before.
    fn attack(
        &mut self,
        (name, happens): (&'static str, &'static str),
        counter: (&'static str, &'static str),
        least: u64,
        run: impl FnOnce(&Arena),
    ) {
        run(self);
        self.honest.goes_on();
        let memory = self.collector.memory_peak().saturating_sub(self.memory);
        assert!(memory < MEMORY_MAX, "{name}: {memory} octets more");
        self.attacks.push(Attack { name, happens, counter, least, memory });
    }

    /// Stops the collector: all that is honest is stored, each attack has been counted, and the books balance.
    fn end(self) -> (TempDir, Remains) {
        self.honest.end();
        let remains = self.collector.stop();
        let told = |&(equation, term): &(&str, &str)| match equation {
            "" => remains.figure(term),
            _ => remains.book(equation, term),
        };
        println!("attack | what happens | counter | memory");
        for attack in &self.attacks {
            let Attack { name, happens, counter: (equation, term), memory, .. } = attack;
            println!("{name} | {happens} | {equation} {term} {} | +{} KiB", told(&attack.counter), memory >> 10);
            let same = self.attacks.iter().filter(|other| other.counter == attack.counter);
            let least: u64 = same.map(|other| other.least).sum();
            assert!(told(&attack.counter) >= least, "{name}: {equation} {term}, {least} at least\n{}", remains.log);
        }
        let rows: Vec<String> =
            stored(&remains.dir).into_iter().filter(|row| row.ends_with(",tokyo,127.0.0.1,1")).collect();
        assert_eq!(rows, (0..FLOWS).map(|index| row(&flow(index), "tokyo", 1)).collect::<Vec<_>>());
        (self.dir, remains)
    }

    fn config(&self, site: &str) -> Arc<ClientConfig> {
        let ca = Some(self.pki.join("ca.pem"));
        tls::client_config(&ClientTls { ca, identity: pair(&self.pki, site), ..ClientTls::default() }).expect("usable")
    }

    /// A session of osaka, from an address of its own.
    fn osaka(&self) -> Tls {
        secure(self.collector.tcp_from("tls", 2), &self.pki, pair(&self.pki, "osaka"))
    }

    /// A session with acknowledgements.
    fn delivery(&self, site: &str, host: u8) -> Tls {
        secure_with(self.collector.tcp_from("tls", host), self.config(site), vec![ALPN.to_vec()])
    }
}

/// Sends as far as the collector lets it, and waits for the end of the session.
fn ends(mut stream: impl Read + Write, bytes: &[u8]) {
    stream.write_all(bytes).and_then(|()| stream.flush()).ok();
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                let waits = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                return assert!(!waits, "the collector ended it");
            }
        }
    }
}

/// Sends, says goodbye, and waits until the collector has taken all of it.
fn taken(mut stream: Tls, bytes: &[u8]) {
    stream.write_all(bytes).expect("sent");
    stream.conn.send_close_notify();
    stream.flush().expect("sent");
    assert_eq!(stream.read(&mut [0; 1]).expect("closed in order"), 0);
}

/// Octets that are the same in every run, and look like nothing.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn frames(frames: &[FromProbe<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.write(&mut bytes));
    bytes
}

#[test]
fn who_holds_a_place_is_put_out() {
    const BOTH: u64 = 400;
    let mut arena = Arena::new(|_| Vec::new());
    // A Message and its beginning wait beside the handshakes.
    let mut half = arena.osaka();
    half.write_all(&messages(0..10, 9)[0][..100]).and_then(|()| half.flush()).expect("sent");
    let mut drop_by_drop = arena.osaka();
    let drops = thread::spawn(move || {
        let message = messages(0..10, 9).remove(0);
        let mut sent = message.iter().take_while(|octet| {
            thread::sleep(Duration::from_millis(500));
            drop_by_drop.write_all(&[**octet]).and_then(|()| drop_by_drop.flush()).is_ok()
        });
        assert!(sent.by_ref().count() < message.len(), "the collector ended it");
    });
    arena.attack(
        ("handshakes begun and not finished", "beyond 256 the oldest goes"),
        ("connections", "refuse.half_open_max"),
        BOTH - 256,
        |arena| {
            let mut open: Vec<TcpStream> =
                (0..BOTH).map(|index| arena.collector.tcp_from("tls", 3 + (index % 2) as u8)).collect();
            // Records of a ClientHello that never ends.
            for octet in [0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3, 7] {
                open.iter_mut().for_each(|socket| drop(socket.write(&[octet])));
                thread::sleep(Duration::from_secs(1));
            }
            open.into_iter().for_each(|socket| ends(socket, &[]));
        },
    );
    arena.attack(("the others of them", "ended after 10 s"), ("connections", "refuse.handshake_timeout"), 200, |_| ());
    arena.attack(
        ("connections in quick succession", "512 at once, then 20 a second"),
        ("connections", "refuse.rate"),
        1,
        |arena| (0..1000).for_each(|_| drop(arena.collector.tcp_from("tls", 5))),
    );
    arena.attack(
        ("a Message begun and not finished, or octet by octet", "the session ends after 20 s"),
        ("connections", "end.message_timeout"),
        2,
        |_| {
            ends(half, &[]);
            drops.join().expect("ended");
        },
    );
    arena.end();
}

#[test]
fn an_address_has_its_share_of_sessions() {
    let mut arena = Arena::new(|_| vec!["--sessions-per-address".into(), "8".into()]);
    arena.attack(
        ("many connections of one address", "refused beyond --sessions-per-address"),
        ("connections", "refuse.address_max"),
        12,
        |arena| {
            let mut open: Vec<_> = (0..20).map(|_| arena.collector.tcp_from("tls", 2)).collect();
            open.drain(8..).for_each(|socket| ends(socket, &[]));
        },
    );
    arena.end();
}

/// A million Templates, withdrawals of a million, and Templates that are no good.
#[test]
fn templates_cost_what_they_may_and_no_more() {
    let mut arena = Arena::new(|_| Vec::new());
    arena.attack(
        ("a million Templates", "refused beyond 4096 a session"),
        ("", "template_refusals"),
        1_000_000 - 4096,
        |arena| {
            let many = |domain| {
                let set: Vec<u8> = (256..8256).flat_map(|id| template(id, &[(4, 1)])).collect();
                message(domain, 0, &[(2, &set)])
            };
            taken(arena.osaka(), &(0..125).flat_map(many).collect::<Vec<_>>());
        },
    );
    arena.attack(("Templates with fields of no octets", "refused"), ("", "template_refusals"), 1, |arena| {
        taken(arena.osaka(), &message(2, 0, &[(2, &template(256, &[(4, 0); 16_000]))]))
    });
    arena.attack(
        ("a Template of 65,535 fields, records without end", "the session ends"),
        ("messages", "refuse.malformed"),
        2,
        |arena| {
            let endless = [&[1, 0, 255, 255][..], &[0, 4, 0, 1].repeat(16_000)].concat();
            ends(arena.osaka(), &message(3, 0, &[(2, &endless)]));
            let variable = template(256, &[(82, 65535)]);
            ends(arena.osaka(), &message(3, 0, &[(2, &variable), (256, &[255, 255, 255, 1])]));
        },
    );
    arena.attack(
        ("the longest Template, then a million withdrawals", "obeyed; the unknown are told"),
        ("connections", "ended"),
        1,
        |arena| {
            let longest = message(4, 0, &[(2, &template(256, &[(4, 1); 16_370]))]);
            let withdrawals = message(4, 0, &[(2, &[1, 0, 0, 0].repeat(16_000))]);
            taken(arena.osaka(), &[longest, withdrawals.repeat(63)].concat());
        },
    );
    arena.end();
}

const PROBE: ProbeId = [7; 16];

#[test]
fn octets_and_numbers_at_will_harm_their_own_site_alone() {
    let mut arena = Arena::new(|_| Vec::new());
    arena.attack(("noise before the handshake", "refused"), ("connections", "refuse.tls"), 1, |arena| {
        ends(arena.collector.tcp_from("tls", 2), &noise(5000));
    });
    arena.attack(("noise in a session", "the session ends"), ("messages", "refuse.malformed"), 3, |arena| {
        ends(arena.osaka(), &noise(5000));
        ends(arena.delivery("osaka", 2), &noise(5000));
        ends(arena.delivery("osaka", 2), &[&frames(&[FromProbe::Hello(PROBE)])[..], &[9; 20]].concat());
        arena.collector.logged("a delivery frame of the unknown type 9");
    });
    let data = messages(0..10, 2).remove(0);
    let numbered = |epoch, number| FromProbe::Message { epoch, number, message: &data };
    arena.attack(("frames out of turn", "the session ends"), ("connections", "ended"), 2, |arena| {
        ends(arena.delivery("osaka", 2), &frames(&[numbered(1, 1)]));
        arena.collector.logged("it has not said HELLO");
        ends(arena.delivery("osaka", 2), &frames(&[FromProbe::Hello(PROBE), FromProbe::Hello(PROBE)]));
        arena.collector.logged("a second HELLO");
    });
    let empty = message(9, 0, &[]);
    arena.attack(("every other number", "4096 wait, then the session ends"), ("connections", "ended"), 1, |arena| {
        let odd = (0..20_000).map(|index| FromProbe::Message { epoch: 1, number: 2 * index + 1, message: &empty });
        ends(
            arena.delivery("osaka", 2),
            &frames(&[FromProbe::Hello(PROBE)].into_iter().chain(odd).collect::<Vec<_>>()),
        );
        arena.collector.logged("too many of its Messages wait to be acknowledged");
    });
    arena.attack(
        ("all numbers settled, in 5000 epochs of 250 probes", "their own site's alone"),
        ("connections", "ended"),
        250,
        |arena| {
            for probe in 0..250 {
                let all = (0..5000).map(|epoch| FromProbe::Settled { epoch, number: u64::MAX - 1 });
                let id = if probe == 0 { PROBE } else { [probe; 16] };
                taken(
                    arena.delivery("osaka", 2),
                    &frames(&[FromProbe::Hello(id)].into_iter().chain(all).collect::<Vec<_>>()),
                );
            }
            // Tokyo's probe of the same identity and numbers.
            let mut stream = arena.delivery("tokyo", 1);
            stream.write_all(&frames(&[FromProbe::Hello(PROBE), numbered(4999, 1), FromProbe::Flush])).expect("sent");
            stream.flush().expect("sent");
            let mut ack = [0; 28];
            stream.read_exact(&mut ack).expect("acknowledged");
            assert_eq!(Ack::read(&ack), Ok(Some(Ack { epoch: 4999, first: 1, last: 1 })));
            taken(stream, &[]);
        },
    );
    let (_dir, remains) = arena.end();
    let sites = sql(&remains.dir, "SELECT site, count(*) FROM flows WHERE domain = 2 GROUP BY 1");
    assert_eq!(sites, ["tokyo,10"], "a site's numbers are no other's");
}

/// Notes what was sent.
struct Recorder(TcpStream, Vec<u8>);

impl Read for Recorder {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.write(bytes)?;
        self.1.extend_from_slice(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn certificates_say_who_it_is_while_they_hold() {
    let revoke =
        |pki: &Path, site: &str| output(&["pki", "revoke", "--dir", pki.to_str().expect("text"), "--site", site]);
    let mut arena = Arena::new(|pki| {
        revoke(pki, "nagoya");
        vec!["--tls-crl".into(), pki.join("crl.pem").to_str().expect("text").into()]
    });
    let config = arena.config("osaka");
    let again = |arena: &Arena| secure_with(arena.collector.tcp_from("tls", 2), config.clone(), Vec::new());
    arena.attack(("a session's octets sent again", "refused"), ("connections", "refuse.tls"), 1, |arena| {
        let socket = Recorder(arena.collector.tcp_from("tls", 2), Vec::new());
        let mut stream = secure(socket, &arena.pki, pair(&arena.pki, "osaka"));
        stream.write_all(&messages(0..10, 2).concat()).and_then(|()| stream.flush()).expect("sent");
        let bytes = stream.sock.1.clone();
        ends(arena.collector.tcp_from("tls", 2), &bytes);
    });
    arena.attack(("names that are no site's", "refused"), ("connections", "refuse.site"), 2, |arena| {
        for (file, name) in [("nul", "tokyo\0.example"), ("wild", "*.example")] {
            let identity = common_name_pair(&arena.pki, file, name, 1);
            ends(secure(arena.collector.tcp_from("tls", 2), &arena.pki, Some(identity)), &messages(0..10, 3).concat());
        }
    });
    arena.attack(
        ("another CA, a revoked certificate, an expired one", "refused"),
        ("connections", "refuse.tls"),
        3,
        |arena| {
            let other = arena.dir.path().join("other");
            std::fs::create_dir(&other).expect("made");
            let (other, _) = pki(&other, &["tokyo"]);
            let expired = common_name_pair(&arena.pki, "expired", "tokyo", -1);
            for identity in [pair(&other, "tokyo"), pair(&arena.pki, "nagoya"), Some(expired)] {
                ends(secure(arena.collector.tcp_from("tls", 2), &arena.pki, identity), &messages(0..10, 3).concat());
            }
            for told in ["is not signed by any CA in ", "is revoked by its CA", "expired at"] {
                arena.collector.logged(told);
            }
        },
    );
    arena.attack(("a broken key file and SIGHUP", "the old pair stays"), ("", "tls_reload_failures"), 1, |arena| {
        let key = arena.pki.join("collector-key.pem");
        let good = std::fs::read(&key).expect("read");
        std::fs::write(&key, "no key").expect("written");
        arena.collector.signal("-HUP");
        arena.collector.logged("collector-key.pem");
        taken(arena.osaka(), &[]);
        std::fs::write(&key, good).expect("written");
    });
    arena.attack(("a new pair and SIGHUP", "new sessions have it, live ones go on"), ("", "tls_reloads"), 1, |arena| {
        let shown = |stream: &Tls| stream.conn.peer_certificates().expect("a chain")[0].clone();
        let live = arena.osaka();
        output(&["pki", "renew", "--dir", arena.pki.to_str().expect("text")]);
        arena.collector.signal("-HUP");
        arena.collector.logged("new sessions use it");
        let new = arena.osaka();
        assert_ne!(shown(&live), shown(&new), "the new pair");
        taken(new, &[]);
        taken(live, &messages(20..30, 2).concat());
    });
    arena.attack(
        ("a session of a certificate that is revoked", "ends at once"),
        ("connections", "end.revoked"),
        1,
        |arena| {
            taken(again(arena), &messages(10..20, 2).concat());
            let live = again(arena);
            assert_eq!(live.conn.handshake_kind(), Some(rustls::HandshakeKind::Resumed), "it could be, before");
            revoke(&arena.pki, "osaka");
            arena.collector.signal("-HUP");
            ends(live, &[]);
        },
    );
    arena.attack(("a ticket of a revoked certificate", "refused"), ("connections", "refuse.tls"), 1, |arena| {
        ends(again(arena), &messages(0..10, 3).concat());
    });
    let (_dir, remains) = arena.end();
    assert!(remains.figure("tls_resumed") > 0);
    let sites = sql(&remains.dir, "SELECT domain, site, count(*) FROM flows WHERE domain > 1 GROUP BY 1, 2");
    assert_eq!(sites, ["2,osaka,30"], "each once, and under the certificate's own site");
}

/// What openssl says to the collector, with a certificate of osaka; `None` where there is no openssl.
fn openssl(arena: &Arena, options: &[&str], said: &[u8]) -> Option<String> {
    let (cert, key) = pair(&arena.pki, "osaka").expect("issued");
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &arena.collector.addresses["tls"].to_string()]).args(options);
    command.arg("-CAfile").arg(arena.pki.join("ca.pem")).arg("-cert").arg(cert).arg("-key").arg(key);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "nothing may be skipped where CI=true");
            println!("skipped: openssl: {error}");
            return None;
        }
    };
    let mut to = child.stdin.take().expect("piped");
    to.write_all(said).ok(); // Its handshake may have failed already.
    // It reads what it is told only while its input is open, and ends by itself where it is refused.
    let begun = Instant::now();
    while child.try_wait().expect("waited for").is_none() {
        assert!(begun.elapsed() < PATIENCE, "openssl is refused and ends");
        thread::sleep(Duration::from_millis(20));
    }
    drop(to);
    let output = child.wait_with_output().expect("ended");
    Some([output.stdout, output.stderr].iter().map(|bytes| String::from_utf8_lossy(bytes)).collect())
}

#[test]
fn nobody_is_talked_down() {
    let mut arena = Arena::new(|_| Vec::new());
    let missing = Cell::new(false);
    let refused = |arena: &Arena, options: &[&str], said: &[u8], told: &str| match openssl(arena, options, said) {
        Some(text) => assert!(text.contains(told), "{options:?}: {text}"),
        None => missing.set(true),
    };
    arena.attack(
        ("TLS 1.0, TLS 1.1, suites without encryption", "refused"),
        ("connections", "refuse.tls"),
        2,
        |arena| {
            for minor in [1, 2] {
                ends(arena.collector.tcp_from("tls", 2), &client_hello(minor, &[0xc02b, 0x2f]));
            }
            for options in [["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], ["-tls1_2", "-cipher", "NULL:@SECLEVEL=0"]] {
                refused(arena, &options, b"", "alert handshake failure");
            }
        },
    );
    arena.attack(("renegotiation of TLS 1.2", "refused"), ("connections", "ended"), 1, |arena| {
        refused(arena, &["-tls1_2"], b"R\n", "no renegotiation");
        if !missing.get() {
            arena
                .collector
                .logged("ended after 0 records in 0 messages, 0 gaps (0 records lost): the connection failed");
        }
    });
    let (_dir, remains) = arena.end();
    let by_openssl = if missing.get() { (0, 0) } else { (2, 1) };
    assert_eq!(remains.book("connections", "refuse.tls"), 2 + by_openssl.0);
    assert_eq!(remains.book("connections", "ended"), 1 + by_openssl.1, "the honest session, and the one that was open");
}
