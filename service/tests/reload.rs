//! Certificates that change while programs run: reload, revocation, resumption. Real handshakes over sockets.
#![forbid(unsafe_code)]

use nagare_service::tls::{self, Client, ClientTls, Policy, Reloading, Server, ServerTls, Versions};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConnection, Stream};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use time::OffsetDateTime;

/// A CA and what it makes, in a directory.
struct Ca {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Ca {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).expect("signed").pem()).expect("written");
        Ca { dir, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes `name.pem` and `name-key.pem`, valid for so long.
    fn make(&self, name: &str, serial: u64, usage: ExtendedKeyUsagePurpose, valid: time::Duration) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![usage];
        params.not_before = OffsetDateTime::now_utc() - time::Duration::days(1);
        params.not_after = OffsetDateTime::now_utc() + valid;
        let key = KeyPair::generate().expect("a key");
        let made = params.signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(self.path(&format!("{name}-key.pem")), key.serialize_pem()).expect("written");
        std::fs::write(self.path(&format!("{name}.pem")), made.pem()).expect("written");
    }

    /// Writes `crl.pem`, which revokes these serials.
    fn revoke(&self, serials: &[u64], next_update: OffsetDateTime) {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let crl = CertificateRevocationListParams {
            this_update: now - time::Duration::days(2),
            next_update,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = crl.signed_by(&self.issuer).expect("signed").pem().expect("PEM");
        std::fs::write(self.path("crl.pem"), pem).expect("written");
    }

    fn server(&self, name: &str) -> ServerTls {
        let (cert, key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}-key.pem")));
        ServerTls { cert, key, client_ca: Some(self.path("ca.pem")), ..ServerTls::default() }
    }

    fn client(&self, name: &str) -> ClientTls {
        let identity = Some((self.path(&format!("{name}.pem")), self.path(&format!("{name}-key.pem"))));
        ClientTls { ca: Some(self.path("ca.pem")), identity, ..ClientTls::default() }
    }
}

/// And half a day, so that whole days do not depend on the second.
const YEAR: time::Duration = time::Duration::hours(365 * 24 + 12);

fn pairs(ca: &Ca) {
    ca.make("collector.example", 1, ExtendedKeyUsagePurpose::ServerAuth, YEAR);
    ca.make("tokyo", 2, ExtendedKeyUsagePurpose::ClientAuth, YEAR);
}

type Outcome = (Result<HandshakeKind, String>, Result<HandshakeKind, String>);

/// One connection, a word there and back: how each side's handshake went, or its refusal in words.
fn connect(client: &Client, server: &Server) -> Outcome {
    connect_with(client.config(), &client.options().side(), server)
}

fn connect_with(config: Arc<ClientConfig>, side: &tls::Side, server: &Server) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut near = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
    let (mut far, _) = listener.accept().expect("accepted");
    let mut there = ServerConnection::new(server.config().expect("configured")).expect("a connection");
    let name = tls::server_name("collector.example").expect("a name");
    let mut here = ClientConnection::new(config, name).expect("a connection");
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let mut word = [0; 4];
            let mut stream = Stream::new(&mut there, &mut far);
            let result =
                stream.read_exact(&mut word).and_then(|()| stream.write_all(&word)).and_then(|()| stream.flush());
            far.shutdown(Shutdown::Write).ok();
            while result.is_err() && far.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
            result.map(|()| there.handshake_kind().expect("done"))
        });
        let mut talk = || -> io::Result<HandshakeKind> {
            let mut word = [0; 4];
            let mut stream = Stream::new(&mut here, &mut near);
            stream.write_all(b"flow").and_then(|()| stream.flush()).and_then(|()| stream.read_exact(&mut word))?;
            Ok(here.handshake_kind().expect("done"))
        };
        let talked = talk().map_err(|error| tls::explain_io(&error, side, "there"));
        near.shutdown(Shutdown::Both).ok();
        let served = serving.join().expect("no panic");
        let side = tls::Side::Server { client_ca: None };
        (talked, served.map_err(|error| tls::explain_io(&error, &side, "here")))
    })
}

fn figure<K: FiguresOf>(of: &K, name: &str) -> u64 {
    of.all().into_iter().find(|(known, _)| known == name).map(|(_, value)| value).expect("a figure")
}

trait FiguresOf {
    fn all(&self) -> Vec<(String, u64)>;
}

impl FiguresOf for Client {
    fn all(&self) -> Vec<(String, u64)> {
        self.figures()
    }
}

impl FiguresOf for Server {
    fn all(&self) -> Vec<(String, u64)> {
        self.figures()
    }
}

/// Ticks on until the files were read again.
fn settle(server: &Server, clock: &mut Instant) -> bool {
    (1..4).any(|_| {
        *clock += tls::LOOK_INTERVAL;
        server.tick(*clock, false)
    })
}

#[test]
fn files_that_change_are_read_again_and_bad_ones_change_nothing() {
    let ca = Ca::new();
    pairs(&ca);
    let server = Server::new(ca.server("collector.example")).expect("usable");
    let client = Client::new(ca.client("tokyo")).expect("usable");
    let mut clock = Instant::now();
    assert!(connect(&client, &server).0.is_ok());
    assert!(!settle(&server, &mut clock), "nothing has changed");
    assert_eq!(figure(&server, "tls_certificate_days_left"), 365);

    ca.make("collector.example", 9, ExtendedKeyUsagePurpose::ServerAuth, time::Duration::hours(10 * 24 - 12));
    assert!(settle(&server, &mut clock), "a new pair is seen");
    assert_eq!(figure(&server, "tls_certificate_days_left"), 9);
    assert!(connect(&client, &server).0.is_ok());

    std::fs::write(ca.path("collector.example-key.pem"), "no key").expect("written");
    assert!(!settle(&server, &mut clock) && connect(&client, &server).0.is_ok(), "what was read before stays in use");
    assert_eq!((figure(&server, "tls_reloads"), figure(&server, "tls_reload_failures")), (1, 1));
    assert!(!settle(&server, &mut clock), "and it is not read again and again");
    assert_eq!(figure(&server, "tls_reload_failures"), 1);

    // A probe reads what changed before it connects.
    ca.make("tokyo", 8, ExtendedKeyUsagePurpose::ClientAuth, time::Duration::hours(5 * 24 - 12));
    ca.make("collector.example", 10, ExtendedKeyUsagePurpose::ServerAuth, YEAR);
    assert!(server.tick(Instant::now(), true), "SIGHUP does not wait");
    assert!(connect(&client, &server).0.is_ok());
    assert_eq!((figure(&client, "tls_certificate_days_left"), figure(&client, "tls_reloads")), (4, 1));
}

#[test]
fn a_revoked_certificate_is_refused_in_words() {
    let ca = Ca::new();
    pairs(&ca);
    let later = OffsetDateTime::now_utc() + YEAR;
    ca.revoke(&[2], later);
    let revoking = || vec![ca.path("crl.pem")];
    for versions in [Versions::Newest, Versions::Both] {
        let policy = Policy::new(versions, &[]).expect("a policy");
        let server = Server::new(ServerTls { crl: revoking(), ..ca.server("collector.example") }).expect("usable");
        let client = Client::new(ClientTls { policy, ..ca.client("tokyo") }).expect("usable");
        let (here, there) = connect(&client, &server);
        assert!(there.as_ref().is_err_and(|told| told.contains("is revoked by its CA")), "{there:?}");
        assert!(here.as_ref().is_err_and(|told| told.contains("certificate as revoked")), "{here:?}");
    }
    // The probe's side, and a list whose time is up: it is used all the same.
    ca.revoke(&[1], OffsetDateTime::now_utc() - time::Duration::days(1));
    let server = Server::new(ca.server("collector.example")).expect("usable");
    let client = Client::new(ClientTls { crl: revoking(), ..ca.client("tokyo") }).expect("usable");
    let (here, _) = connect(&client, &server);
    assert!(here.as_ref().is_err_and(|told| told.contains("collector there is revoked")), "{here:?}");
    // A pinned certificate can be revoked, too.
    let pinned = ClientTls { ca: Some(ca.path("collector.example.pem")), crl: revoking(), ..ca.client("tokyo") };
    let (here, _) = connect(&Client::new(pinned).expect("usable"), &server);
    assert!(here.as_ref().is_err_and(|told| told.contains("is revoked")), "{here:?}");
    // Others of the CA are not concerned.
    ca.revoke(&[77], later);
    let server = Server::new(ServerTls { crl: revoking(), ..ca.server("collector.example") }).expect("usable");
    let client = Client::new(ClientTls { crl: revoking(), ..ca.client("tokyo") }).expect("usable");
    assert!(connect(&client, &server).0.is_ok());
}

#[test]
fn a_list_that_cannot_be_read_stops_the_start() {
    let ca = Ca::new();
    pairs(&ca);
    std::fs::write(ca.path("empty.pem"), "nothing").expect("written");
    let torn = "-----BEGIN X509 CRL-----\nMIIBAAAA\n-----END X509 CRL-----\n";
    std::fs::write(ca.path("torn.pem"), torn).expect("written");
    for (file, told) in [
        ("absent.pem", "cannot be read"),
        ("empty.pem", "holds no certificate revocation list"),
        ("torn.pem", "cannot be used"),
    ] {
        let of_server = Server::new(ServerTls { crl: vec![ca.path(file)], ..ca.server("collector.example") });
        let of_client = Client::new(ClientTls { crl: vec![ca.path(file)], ..ca.client("tokyo") });
        for refusal in [of_server.err(), of_client.err()] {
            let refusal = refusal.expect(file).to_string();
            assert!(refusal.contains(file) && refusal.contains(told), "{refusal}");
        }
    }
}

#[test]
fn sessions_resume_while_their_certificates_hold() {
    let ca = Ca::new();
    pairs(&ca);
    let server = Server::new(ca.server("collector.example")).expect("usable");
    let client = Client::new(ca.client("tokyo")).expect("usable");
    let older = older(&ca.client("tokyo"));
    let connects: [&dyn Fn() -> Outcome; 2] =
        [&|| connect(&client, &server), &|| connect_with(older.clone(), &client.options().side(), &server)];
    for connect in connects {
        assert_eq!(connect(), (Ok(HandshakeKind::Full), Ok(HandshakeKind::Full)));
        assert_eq!(connect(), (Ok(HandshakeKind::Resumed), Ok(HandshakeKind::Resumed)));
        assert!(server.tick(Instant::now(), true), "a reload forgets all");
        assert_eq!(connect(), (Ok(HandshakeKind::Full), Ok(HandshakeKind::Full)));
    }
    assert_eq!(figure(&server, "tls_resumptions_refused"), 0);
}

/// A probe that knows TLS 1.2 alone, and resumes by session ID.
fn older(tls: &ClientTls) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let ca = tls.ca.as_ref().expect("a CA");
    roots.add(CertificateDer::from_pem_file(ca).expect("a certificate")).expect("a root");
    let (cert, key) = tls.identity.as_ref().expect("a pair");
    let chain = vec![CertificateDer::from_pem_file(cert).expect("a certificate")];
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("1.2 is there")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).expect("a key"));
    Arc::new(config.expect("a pair"))
}

/// Of either side, a certificate that ended after the first session.
#[test]
fn no_session_outlives_its_certificate() {
    let ca = Ca::new();
    pairs(&ca);
    let short = time::Duration::seconds(3);
    ca.make("brief", 3, ExtendedKeyUsagePurpose::ClientAuth, short);
    let server = Server::new(ca.server("collector.example")).expect("usable");
    let client = Client::new(ca.client("brief")).expect("usable");
    assert_eq!(connect(&client, &server).0, Ok(HandshakeKind::Full));
    assert_eq!(connect(&client, &server).0, Ok(HandshakeKind::Resumed));
    // The collector's own ends as well, in another pair of programs.
    ca.make("collector.example", 4, ExtendedKeyUsagePurpose::ServerAuth, short);
    let ending = Server::new(ca.server("collector.example")).expect("usable");
    let lasting = Client::new(ca.client("tokyo")).expect("usable");
    assert_eq!(connect(&lasting, &ending).0, Ok(HandshakeKind::Full));
    std::thread::sleep(Duration::from_secs(4));
    let (here, there) = connect(&client, &server);
    assert!(there.as_ref().is_err_and(|told| told.contains("expired at")), "{there:?}");
    assert!(here.as_ref().is_err_and(|told| told.contains("as expired")), "{here:?}");
    assert_eq!(figure(&server, "tls_resumptions_refused"), 1);
    let (here, _) = connect(&lasting, &ending);
    assert!(here.as_ref().is_err_and(|told| told.contains("expired at")), "{here:?}");
    assert_eq!(figure(&ending, "tls_certificate_days_left"), 0);
}

#[test]
fn versions_and_ciphers_bind_both_sides() {
    let ca = Ca::new();
    pairs(&ca);
    let policy = |versions, names: &[&str]| {
        Policy::new(versions, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("a policy")
    };
    let one = policy(Versions::Newest, &["TLS13_AES_256_GCM_SHA384"]);
    let other = policy(Versions::Newest, &["TLS13_CHACHA20_POLY1305_SHA256"]);
    let server = Server::new(ServerTls { policy: one.clone(), ..ca.server("collector.example") }).expect("usable");
    let client = Client::new(ClientTls { policy: one, ..ca.client("tokyo") }).expect("usable");
    assert!(connect(&client, &server).0.is_ok());
    let client = Client::new(ClientTls { policy: other, ..ca.client("tokyo") }).expect("usable");
    let (here, there) = connect(&client, &server);
    assert!(there.as_ref().is_err_and(|told| told.contains("no cipher suite in common")), "{there:?}");
    assert!(here.is_err());
}

/// What is loaded is shared by threads.
#[test]
fn handles_are_shared() {
    fn shared<T: Send + Sync>() {}
    shared::<Client>();
    shared::<Server>();
    let absent =
        Reloading::<tls::ServerKit>::new(ServerTls { cert: Path::new("/nowhere").into(), ..ServerTls::default() });
    assert!(absent.err().expect("not there").to_string().contains("/nowhere cannot be read"));
}
