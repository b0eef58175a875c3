//! Certificates, their verification, and refusals in words. No other module of either program but a transport knows TLS.
//!
//! A certificate is verified as RFC 5280 and RFC 6125 say, by webpki, with one addition: a certificate that stands in the CA file
//! byte for byte is trusted as pinned, so that the pair that plain `openssl req -x509` makes (self-signed, and its own CA)
//! is a usable one. Its dates, its name and its signature over the handshake are checked all the same.

mod crl;
mod explain;
mod kit;
mod policy;
mod reload;
mod tickets;
mod verify;

pub use explain::{Side, explain, explain_io};
pub use kit::{ClientKit, ServerKit};
pub use policy::{Policy, Versions, ciphers};
pub use reload::{Client, LOOK_INTERVAL, Reloading, Server};
pub use tickets::{TICKET_LIFE, TICKETS_OCTETS_MAX};
pub use verify::{host_names, peer_name};

use crl::Crls;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use verify::Trust;

/// Why TLS cannot be set up; names the file and what to do.
#[derive(Debug)]
pub struct TlsError(String);

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

/// How a probe verifies its collector, and what it presents.
#[derive(Clone, Debug, Default)]
pub struct ClientTls {
    /// `--tls-ca`: the only roots (and pinned certificates) that are trusted; else the system's.
    pub ca: Option<PathBuf>,
    /// `--tls-cert` and `--tls-priv-key`: the certificate chain and its key, presented where the collector asks.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `--tls-insecure`: any certificate will do. The caller warns on every connect.
    pub insecure: bool,
    /// `--tls-crl`: what was revoked of the collectors' certificates.
    pub crl: Vec<PathBuf>,
    /// `--tls-versions` and `--tls-ciphers`.
    pub policy: Policy,
}

impl ClientTls {
    /// How refusals are to be worded with these options.
    pub fn side(&self) -> Side {
        Side::Client { ca: self.ca.clone(), identity: self.identity.is_some() }
    }
}

/// What a collector presents, and whom it admits.
#[derive(Clone, Debug, Default)]
pub struct ServerTls {
    /// `--tls-cert`: the certificate, then its intermediates.
    pub cert: PathBuf,
    /// `--tls-priv-key`: the certificate's key.
    pub key: PathBuf,
    /// `--tls-client-ca`: demand client certificates that one of these signed (or that stand here); else admit anyone.
    pub client_ca: Option<PathBuf>,
    /// `--tls-crl`: what was revoked of the probes' certificates.
    pub crl: Vec<PathBuf>,
    /// `--tls-versions` and `--tls-ciphers`.
    pub policy: Policy,
    /// Protocols of which one is chosen where a probe offers any (ALPN, RFC 7301).
    pub protocols: Vec<Vec<u8>>,
}

impl ServerTls {
    /// How refusals are to be worded with these options.
    pub fn side(&self) -> Side {
        Side::Server { client_ca: self.client_ca.clone() }
    }
}

/// A certificate chain and its private key, and when the certificate expires.
struct Identity {
    pair: Arc<SingleCertAndKey>,
    /// Seconds since 1970.
    expires: i64,
}

impl Identity {
    /// Reads PEM files. A key that others may read is warned of, and used.
    fn load(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<Identity, TlsError> {
        let chain = certificates(cert)?;
        let der = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsError(format!(
                "{} holds no private key in PEM form (an encrypted one must be decrypted first: openssl pkey -in {0} -out KEY.pem)",
                key.display()
            )),
            other => unreadable(key, &other),
        })?;
        warn_if_open(key);
        let expires = verify::expires(&chain[0]);
        let expires = expires.ok_or_else(|| TlsError(format!("the certificate in {} is malformed", cert.display())))?;
        let pair = CertifiedKey::from_der(chain, der, provider).map_err(|error| unusable(cert, key, &error))?;
        Ok(Identity { pair: Arc::new(SingleCertAndKey::from(pair)), expires })
    }
}

/// The client side's configuration: TLS 1.3 and 1.2, as the policy says.
///
/// # Errors
/// A file cannot be read or holds nothing usable, or the key is not the certificate's.
pub fn client_config(tls: &ClientTls) -> Result<Arc<ClientConfig>, TlsError> {
    kit::Kit::load(tls).map(|kit: ClientKit| kit.config())
}

/// The server side's configuration: TLS 1.3 and 1.2, as the policy says; client certificates are demanded where `client_ca` is
/// given. Every session begins with a full handshake; [`Server`] resumes some.
///
/// # Errors
/// A file cannot be read or holds nothing usable, or the key is not the certificate's.
pub fn server_config(tls: &ServerTls) -> Result<Arc<ServerConfig>, TlsError> {
    kit::Kit::load(tls).and_then(|kit: ServerKit| kit.without_resumption())
}

/// The name that the collector's certificate must carry: a DNS name, or an IP address.
///
/// # Errors
/// The host is neither.
pub fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    let refuse = |_| TlsError(format!("\"{}\" is neither a host name nor an IP address", host.escape_debug()));
    ServerName::try_from(host.to_owned()).map_err(refuse)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>());
    let found = read.map_err(|error| unreadable(path, &error))?;
    if found.is_empty() {
        return Err(TlsError(format!("{} holds no certificate in PEM form", path.display())));
    }
    Ok(found)
}

fn unreadable(path: &Path, error: &pem::Error) -> TlsError {
    match error {
        pem::Error::Io(error) => TlsError(format!("{} cannot be read: {error}", path.display())),
        other => TlsError(format!("{} is not a PEM file: {other}", path.display())),
    }
}

fn unusable(cert: &Path, key: &Path, error: &rustls::Error) -> TlsError {
    let (cert, key) = (cert.display(), key.display());
    match error {
        rustls::Error::InconsistentKeys(_) => TlsError(format!("{key} is not the key of the certificate in {cert}")),
        other => TlsError(format!("{cert} and {key} are no usable pair: {other}")),
    }
}

/// Everyone on the machine can pretend to be us with a key that everyone can read.
fn warn_if_open(key: &Path) {
    let Ok(metadata) = std::fs::metadata(key) else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o177 != 0 {
        let path = key.display();
        log::warn!("{path} is a private key with mode {mode:04o}: others may read it; chmod 600 {path}");
    }
}

fn trust_file(path: &Path, crl: &[PathBuf]) -> Result<Trust, TlsError> {
    let (certificates, crls) = (certificates(path)?, Crls::load(crl)?);
    crls.warn_of_strangers(&certificates, path);
    Trust::new(certificates, crls).map_err(|error| TlsError(format!("{}: {error}", path.display())))
}

fn trust_system(crl: &[PathBuf]) -> Result<Trust, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(TlsError(format!(
            "this system has no CA certificates{why}: install the package ca-certificates, or pass --tls-ca"
        )));
    }
    Ok(Trust::roots(roots, Crls::load(crl)?))
}
