//! Every refusal, by a real handshake over loopback sockets, and the words that it is told in.
#![forbid(unsafe_code)]

use nagare_service::tls::{self, ClientTls, ServerTls, Side};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{ClientConnection, ServerConnection};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;

/// Certificates and keys as PEM files in a directory of their own.
struct Files(tempfile::TempDir);

/// A CA or a leaf, with what is needed to sign others.
struct Made {
    params: CertificateParams,
    key: KeyPair,
    pair: (PathBuf, PathBuf),
}

impl Files {
    fn new() -> Files {
        Files(tempfile::tempdir().expect("a temporary directory"))
    }

    fn write(&self, name: &str, pem: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, pem).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode set");
        path
    }

    /// Signs with `issuer`, or with the new key itself.
    fn make(&self, name: &str, params: CertificateParams, issuer: Option<&Made>) -> Made {
        let key = KeyPair::generate().expect("a key");
        let certificate = match issuer {
            Some(made) => params.signed_by(&key, &Issuer::from_params(&made.params, &made.key)),
            None => params.self_signed(&key),
        };
        let cert = self.write(&format!("{name}.pem"), &certificate.expect("signed").pem());
        let pair = (cert, self.write(&format!("{name}-key.pem"), &key.serialize_pem()));
        Made { params, key, pair }
    }

    fn ca(&self, name: &str) -> Made {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        self.make(name, params, None)
    }
}

fn params(common_name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("valid names");
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// Days from now on in which a certificate is valid.
fn valid(mut params: CertificateParams, from: i64, to: i64) -> CertificateParams {
    params.not_before = OffsetDateTime::now_utc() + time::Duration::days(from);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::days(to);
    params
}

fn usage(mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    params.extended_key_usages = vec![usage];
    params
}

const PEER: &str = "192.0.2.1:2055";

fn configs(client: &ClientTls, server: &ServerTls) -> (Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>) {
    (tls::client_config(client).expect("client"), tls::server_config(server).expect("server"))
}

/// Both sides' outcome of one connection to `host`: the word that arrived at the server (and the client's name there), or the
/// refusal as each side tells it.
fn connect(client: &ClientTls, server: &ServerTls, host: &str) -> (Result<(), String>, Result<Option<String>, String>) {
    let (client_config, server_config) = configs(client, server);
    let (here, there) = (client.side(), server.side());
    run(client_config, server_config, here, there, host)
}

fn run(
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
    here: Side,
    there: Side,
    host: &str,
) -> (Result<(), String>, Result<Option<String>, String>) {
    let (near, far) = sockets();
    let serving = std::thread::spawn(move || {
        let mut connection = ServerConnection::new(server).expect("a server connection");
        serve(&mut connection, far).map_err(|error| tls::explain_io(&error, &there, PEER))
    });
    let name = tls::server_name(host).expect("a host");
    let mut connection = ClientConnection::new(client, name).expect("a client connection");
    let connected = talk(&mut connection, near).map_err(|error| tls::explain_io(&error, &here, PEER));
    (connected, serving.join().expect("no panic"))
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let near = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
    let (far, _) = listener.accept().expect("accepted");
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    }
    (near, far)
}

fn serve(connection: &mut ServerConnection, mut socket: TcpStream) -> io::Result<Option<String>> {
    let mut word = [0; 4];
    let mut stream = rustls::Stream::new(connection, &mut socket);
    let result = stream.read_exact(&mut word).and_then(|()| stream.write_all(&word)).and_then(|()| stream.flush());
    // The alert must reach the client before the socket is gone: a close with unread bytes would overtake it.
    socket.shutdown(Shutdown::Write).ok();
    while result.is_err() && socket.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
    result?;
    Ok(connection.peer_certificates().and_then(|chain| tls::peer_name(&chain[0])))
}

fn talk(connection: &mut ClientConnection, mut socket: TcpStream) -> io::Result<()> {
    let mut word = [0; 4];
    let mut stream = rustls::Stream::new(connection, &mut socket);
    stream.write_all(b"flow").and_then(|()| stream.flush()).and_then(|()| stream.read_exact(&mut word))?;
    assert_eq!(&word, b"flow");
    Ok(())
}

fn client(ca: &Path, identity: Option<&Made>) -> ClientTls {
    ClientTls { ca: Some(ca.to_owned()), identity: identity.map(|made| made.pair.clone()), ..ClientTls::default() }
}

fn server(made: &Made, client_ca: Option<&Path>) -> ServerTls {
    ServerTls {
        cert: made.pair.0.clone(),
        key: made.pair.1.clone(),
        client_ca: client_ca.map(Path::to_owned),
        ..ServerTls::default()
    }
}

/// Asserts a refusal whose telling holds every part.
fn refused<T: std::fmt::Debug>(result: &Result<T, String>, parts: &[&str]) {
    let message = result.as_ref().expect_err("to be refused");
    assert!(message.contains(PEER), "names the peer: {message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} in: {message}");
    }
}

#[test]
fn trusted_pairs() {
    let files = Files::new();
    let ca = files.ca("ca");
    let root = ca.pair.0.as_path();
    let named = files.make("named", params("other", &["collector.example", "127.0.0.1", "::1"]), Some(&ca));
    let common = files.make("common", params("collector.example", &[]), Some(&ca));
    let site =
        files.make("site", usage(params("x", &["tokyo.example"]), ExtendedKeyUsagePurpose::ClientAuth), Some(&ca));
    let old_site = files.make("old-site", params("osaka", &[]), Some(&ca));
    for (made, host) in [
        (&named, "collector.example"),
        (&named, "Collector.EXAMPLE"),
        (&named, "127.0.0.1"),
        (&named, "::1"),
        (&common, "collector.example"),
    ] {
        assert_eq!(connect(&client(root, None), &server(made, None), host), (Ok(()), Ok(None)), "{host}");
    }
    for (made, name) in [(&site, "tokyo.example"), (&old_site, "osaka")] {
        let got = connect(&client(root, Some(made)), &server(&named, Some(root)), "collector.example");
        assert_eq!(got, (Ok(()), Ok(Some(name.to_owned()))));
    }
    let insecure = ClientTls { insecure: true, ..client(root, None) };
    assert_eq!(connect(&insecure, &server(&common, None), "198.51.100.1").0, Ok(()), "--tls-insecure takes any");
}

/// An intermediate CA is sent along by the collector.
#[test]
fn chains() {
    let files = Files::new();
    let ca = files.ca("ca");
    let mut between = params("between", &[]);
    between.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let between = files.make("between", between, Some(&ca));
    let leaf = files.make("leaf", params("x", &["collector.example"]), Some(&between));
    let read = |path: &Path| std::fs::read_to_string(path).expect("read");
    let chain = files.write("chain.pem", &(read(&leaf.pair.0) + &read(&between.pair.0)));
    let sent = ServerTls { cert: chain, ..server(&leaf, None) };
    assert_eq!(connect(&client(&ca.pair.0, None), &sent, "collector.example").0, Ok(()));
    refused(
        &connect(&client(&ca.pair.0, None), &server(&leaf, None), "collector.example").0,
        &["is not signed by any CA"],
    );
}

#[test]
fn the_collectors_certificate_is_refused() {
    let files = Files::new();
    let (ca, other) = (files.ca("ca"), files.ca("other"));
    let name = "collector.example";
    let good = files.make("good", params("x", &[name, "192.0.2.7"]), Some(&ca));
    let expired = files.make("expired", valid(params("x", &[name]), -30, -1), Some(&ca));
    let early = files.make("early", valid(params("x", &[name]), 1, 30), Some(&ca));
    let nameless = files.make("nameless", params("not a host", &[]), Some(&ca));
    let only_name = files.make("only-name", params("127.0.0.1", &[name]), Some(&ca));
    let ip_as_name = files.make("ip-as-name", params("127.0.0.1", &[]), Some(&ca));
    let for_clients =
        files.make("for-clients", usage(params("x", &[name]), ExtendedKeyUsagePurpose::ClientAuth), Some(&ca));
    let trust = client(&ca.pair.0, None);
    let year = (OffsetDateTime::now_utc() - time::Duration::days(1)).year().to_string();
    type Case<'a> = (&'a str, ClientTls, &'a Made, &'a str, &'a [&'a str], &'a str);
    let cases: [Case<'_>; 9] = [
        (
            "unknown CA",
            client(&other.pair.0, None),
            &good,
            name,
            &["is not signed by any CA in ", "other.pem: pass --tls-ca"],
            "--tls-ca",
        ),
        (
            "unknown to the system",
            ClientTls::default(),
            &good,
            name,
            &["any CA that this system trusts: pass --tls-ca"],
            "--tls-ca",
        ),
        (
            "expired",
            trust.clone(),
            &expired,
            name,
            &["expired at ", &year, "UTC", "renew it"],
            "expired or not yet valid",
        ),
        ("not yet valid", trust.clone(), &early, name, &["not yet valid", "clock"], "expired or not yet valid"),
        (
            "wrong host",
            trust.clone(),
            &good,
            "wrong.example",
            &["is for collector.example, 192.0.2.7, not for wrong.example"],
            "by a name",
        ),
        ("no name", trust.clone(), &nameless, name, &["is for not a host, not for collector.example"], "by a name"),
        (
            "IP, name needed",
            trust.clone(),
            &only_name,
            "127.0.0.1",
            &["is for collector.example", "IP address 127.0.0.1: use a name"],
            "by a name",
        ),
        (
            "IP as CN",
            trust.clone(),
            &ip_as_name,
            "127.0.0.1",
            &["does not carry the IP address 127.0.0.1"],
            "by a name",
        ),
        (
            "purpose",
            trust.clone(),
            &for_clients,
            name,
            &["extended key usage lacks serverAuth"],
            "made for a collector",
        ),
    ];
    for (case, trusting, made, host, parts, told_there) in cases {
        if case == "unknown to the system" && tls::client_config(&trusting).is_err() {
            println!("skipped: {case}: this system has no CA certificates");
            continue;
        }
        println!("{case}");
        let (here, there) = connect(&trusting, &server(made, None), host);
        refused(&here, parts);
        refused(&there, &[told_there]);
    }
}

#[test]
fn the_probes_certificate_is_refused() {
    let files = Files::new();
    let (ca, other) = (files.ca("ca"), files.ca("other"));
    let collector = files.make("collector", params("x", &["collector.example"]), Some(&ca));
    let foreign = files.make("foreign", params("tokyo", &[]), Some(&other));
    let expired = files.make("expired", valid(params("tokyo", &[]), -30, -1), Some(&ca));
    let for_servers =
        files.make("for-servers", usage(params("tokyo", &[]), ExtendedKeyUsagePurpose::ServerAuth), Some(&ca));
    let self_signed = files.ca("self-signed");
    type Case<'a> = (&'a str, Option<&'a Made>, &'a [&'a str], &'a [&'a str]);
    let cases: [Case<'_>; 5] = [
        (
            "missing",
            None,
            &["demands a client certificate: pass --tls-cert"],
            &["presented no client certificate", "--tls-cert"],
        ),
        (
            "another CA",
            Some(&foreign),
            &["no CA that it trusts signed it"],
            &["is not signed by any CA in ", "ca.pem: make it with that CA"],
        ),
        ("self-signed", Some(&self_signed), &["no CA that it trusts signed it"], &["is not signed by any CA in "]),
        ("expired", Some(&expired), &["as expired or not yet valid"], &["expired at "]),
        ("purpose", Some(&for_servers), &["not meant for this"], &["extended key usage lacks clientAuth"]),
    ];
    for (case, identity, told_here, told_there) in cases {
        println!("{case}");
        let trusting = client(&ca.pair.0, identity);
        let demanding = server(&collector, Some(&ca.pair.0));
        let (here, there) = connect(&trusting, &demanding, "collector.example");
        refused(&here, told_here);
        refused(&there, told_there);
        // TLS 1.2 sends its client certificate, and its alerts, at other moments and under other names.
        let (client_config, server_config) = configs(&trusting, &demanding);
        let mut old = (*client_config).clone();
        let versions = rustls::ClientConfig::builder_with_provider(old.crypto_provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS12]);
        let builder = versions.expect("1.2 is there").dangerous().with_custom_certificate_verifier(Arc::new(Trusting));
        old = match identity {
            None => builder.with_no_client_auth(),
            Some(made) => {
                let (chain, key) = pem(&made.pair);
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        let (here, there) = run(Arc::new(old), server_config, trusting.side(), demanding.side(), "collector.example");
        refused(&there, told_there);
        refused(&here, &["certificate"]);
    }
}

fn pem(
    pair: &(PathBuf, PathBuf),
) -> (Vec<rustls::pki_types::CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>) {
    use rustls::pki_types::pem::PemObject;
    let chain = rustls::pki_types::CertificateDer::pem_file_iter(&pair.0).expect("PEM").collect::<Result<_, _>>();
    (chain.expect("certificates"), rustls::pki_types::PrivateKeyDer::from_pem_file(&pair.1).expect("a key"))
}

/// What plain `openssl req -x509 -nodes` makes: self-signed, its own CA, a CN and no subjectAltName.
fn openssl_like(files: &Files, name: &str, host: &str) -> Made {
    let mut params = params(host, &[]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    files.make(name, params, None)
}

#[test]
fn self_signed_pairs_are_pinned() {
    let files = Files::new();
    let (pair, twin) =
        (openssl_like(&files, "cert", "collector.example"), openssl_like(&files, "twin", "collector.example"));
    let name = "collector.example";
    assert_eq!(connect(&client(&pair.pair.0, None), &server(&pair, None), name).0, Ok(()));
    refused(
        &connect(&client(&twin.pair.0, None), &server(&pair, None), name).0,
        &["is not signed by any CA in ", "itself"],
    );
    refused(&connect(&client(&pair.pair.0, None), &server(&pair, None), "wrong.example").0, &["not for wrong.example"]);
    let both = client(&pair.pair.0, Some(&pair));
    assert_eq!(connect(&both, &server(&pair, Some(&pair.pair.0)), name), (Ok(()), Ok(Some(name.to_owned()))));

    let expired = files.make("expired", valid(params(name, &[]), -30, -1), None);
    refused(&connect(&client(&expired.pair.0, None), &server(&expired, None), name).0, &["expired at "]);
    let early = files.make("early", valid(params(name, &[]), 1, 30), None);
    refused(&connect(&client(&early.pair.0, None), &server(&early, None), name).0, &["not yet valid"]);

    // A pinned leaf vouches for itself alone: what it signs is not trusted.
    let leaf = files.make("leaf", params(name, &[]), None);
    let signed = files.make("signed", params("x", &[name]), Some(&leaf));
    assert_eq!(connect(&client(&leaf.pair.0, None), &server(&leaf, None), name).0, Ok(()));
    refused(&connect(&client(&leaf.pair.0, None), &server(&signed, None), name).0, &["is not signed by any CA"]);
    let admitted = server(&leaf, Some(&leaf.pair.0));
    refused(&connect(&client(&leaf.pair.0, Some(&signed)), &admitted, name).1, &["is not signed by any CA"]);
}

/// The real thing, with an RSA key of 4096 bits.
#[test]
fn openssls_own_output_is_a_usable_pair() {
    let files = Files::new();
    let (cert, key) = (files.0.path().join("cert.pem"), files.0.path().join("key.pem"));
    let mut command = std::process::Command::new("openssl");
    command.args([
        "req",
        "-x509",
        "-nodes",
        "-newkey",
        "rsa:4096",
        "-sha256",
        "-days",
        "365",
        "-subj",
        "/CN=collector.example",
    ]);
    let output = match command.arg("-keyout").arg(&key).arg("-out").arg(&cert).output() {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: openssl cannot be run: {error}");
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "openssl must be there in CI");
            return;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let collector =
        ServerTls { cert: cert.clone(), key: key.clone(), client_ca: Some(cert.clone()), ..ServerTls::default() };
    let probe = ClientTls { ca: Some(cert.clone()), identity: Some((cert, key)), ..ClientTls::default() };
    let got = connect(&probe, &collector, "collector.example");
    assert_eq!(got, (Ok(()), Ok(Some("collector.example".to_owned()))));
}

/// A certificate that is shown without its key: the handshake's signature does not fit.
#[test]
fn a_pinned_certificate_still_needs_its_key() {
    let files = Files::new();
    let (real, thief) =
        (openssl_like(&files, "real", "collector.example"), openssl_like(&files, "thief", "collector.example"));
    let mixed =
        ServerTls { cert: real.pair.0.clone(), key: thief.pair.1.clone(), client_ca: None, ..ServerTls::default() };
    let message = tls::server_config(&mixed).expect_err("mixed up").to_string();
    assert!(message.contains("thief-key.pem is not the key of the certificate in "), "{message}");

    let (chain, _) = pem(&real.pair);
    let (_, key) = pem(&thief.pair);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let stolen = rustls::sign::CertifiedKey::new(chain, provider.key_provider.load_private_key(key).expect("a key"));
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(stolen)));
    for insecure in [false, true] {
        let probe = ClientTls { insecure, ..client(&real.pair.0, None) };
        let config = tls::client_config(&probe).expect("client");
        let there = Side::Server { client_ca: None };
        let (here, _) = run(config, Arc::new(server.clone()), probe.side(), there, "collector.example");
        refused(&here, &["does not belong to the key"]);
    }
}

#[test]
fn no_common_version() {
    let files = Files::new();
    let pair = openssl_like(&files, "cert", "collector.example");
    let (probe, collector) = (client(&pair.pair.0, None), server(&pair, None));
    let (client_config, server_config) = configs(&probe, &collector);
    let provider = client_config.crypto_provider().clone();
    let (chain, key) = pem(&pair.pair);
    let old_server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("1.2 is there")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    let new_client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("1.3 is there")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_no_client_auth();
    let sides = || (probe.side(), collector.side());
    let (here, there) = sides();
    assert_eq!(
        run(client_config, Arc::new(old_server.clone()), here, there, "collector.example").0,
        Ok(()),
        "1.2 will do"
    );
    let (here, there) = sides();
    assert_eq!(
        run(Arc::new(new_client.clone()), server_config, here, there, "collector.example").0,
        Ok(()),
        "1.3 will do"
    );
    let (here, there) = sides();
    let (here, there) = run(Arc::new(new_client), Arc::new(old_server), here, there, "collector.example");
    refused(&here, &["no TLS version in common"]);
    refused(&there, &["no TLS version in common"]);
}

#[test]
fn not_tls_at_all() {
    let files = Files::new();
    let pair = openssl_like(&files, "cert", "collector.example");
    let (probe, collector) = (client(&pair.pair.0, None), server(&pair, None));
    let (client_config, server_config) = configs(&probe, &collector);

    // A plain IPFIX exporter at a TLS listener.
    let (mut near, far) = sockets();
    near.write_all(&[0, 10, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).expect("sent");
    near.shutdown(Shutdown::Write).expect("shut");
    let mut connection = ServerConnection::new(server_config).expect("a server connection");
    let error = serve(&mut connection, far).expect_err("not TLS");
    refused::<()>(
        &Err(tls::explain_io(&error, &collector.side(), PEER)),
        &["does not speak TLS", "--collector tls://"],
    );

    // A probe at a listener that answers in plain text, and at one that hangs up.
    for answer in [&b"220 mail.example ESMTP\r\n"[..], b""] {
        let (near, mut far) = sockets();
        let name = tls::server_name("collector.example").expect("a host");
        let mut connection = ClientConnection::new(client_config.clone(), name).expect("a client connection");
        let answering = std::thread::spawn(move || {
            assert!(far.read(&mut [0; 1024]).is_ok_and(|read| read > 0), "a ClientHello");
            far.write_all(answer).expect("sent");
        });
        let error = talk(&mut connection, near).expect_err("not TLS");
        answering.join().expect("no panic");
        refused::<()>(&Err(tls::explain_io(&error, &probe.side(), PEER)), &["does not speak TLS", "tcp://"]);
    }
}

#[test]
fn files_that_cannot_be_used() {
    let files = Files::new();
    let pair = openssl_like(&files, "cert", "collector.example");
    let (cert, key) = pair.pair.clone();
    let empty = files.write("empty.pem", "nothing here\n");
    let absent = files.0.path().join("absent.pem");
    let server = |cert: &Path, key: &Path, ca: Option<&Path>| ServerTls {
        cert: cert.to_owned(),
        key: key.to_owned(),
        client_ca: ca.map(Path::to_owned),
        ..ServerTls::default()
    };
    let cases = [
        (server(&absent, &key, None), "absent.pem cannot be read: No such file"),
        (server(&empty, &key, None), "empty.pem holds no certificate"),
        (server(&cert, &cert, None), "cert.pem holds no private key"),
        (server(&cert, &key, Some(&empty)), "empty.pem holds no certificate"),
        (server(&cert, &key, Some(&absent)), "absent.pem cannot be read"),
    ];
    for (tls, part) in cases {
        let message = tls::server_config(&tls).expect_err(part).to_string();
        assert!(message.contains(part), "{part:?} in: {message}");
    }
    assert!(tls::server_name("not a host").is_err());
}

/// Trusts any certificate, without a look at its signature: these tests look at the other side.
#[derive(Debug)]
struct Trusting;

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &rustls::pki_types::CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &rustls::pki_types::CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
