//! Verification of the peer's certificate, for either side.

use super::crl::Crls;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What is trusted: CAs that may sign, certificates that are trusted as they are, and what was revoked of either.
#[derive(Debug)]
pub(super) struct Trust {
    roots: RootCertStore,
    pinned: Vec<CertificateDer<'static>>,
    crls: Crls,
}

impl Trust {
    /// Trusts what stands in a CA file. Only a CA may sign others: a leaf that is pinned vouches for itself alone.
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>, crls: Crls) -> Result<Trust, String> {
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            let parsed = parse(certificate).ok_or("a certificate in it is malformed")?;
            if parsed.is_ca() {
                roots.add(certificate.clone()).map_err(|error| format!("a CA in it cannot be used: {error}"))?;
            }
        }
        Ok(Trust { roots, pinned: certificates, crls })
    }

    /// Trusts CAs alone.
    pub(super) fn roots(roots: RootCertStore, crls: Crls) -> Trust {
        Trust { roots, pinned: Vec::new(), crls }
    }

    /// The roots for webpki, which wants one at least.
    fn anchors(&self) -> Option<Arc<RootCertStore>> {
        (!self.roots.is_empty()).then(|| Arc::new(self.roots.clone()))
    }

    fn is_pinned(&self, certificate: &CertificateDer<'_>) -> bool {
        self.pinned.iter().any(|pinned| pinned.as_ref() == certificate.as_ref())
    }

    /// A pinned certificate is its own proof of trust; its dates still bind, and it can be revoked.
    fn check_pinned(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        let parsed = parse(certificate).ok_or(CertificateError::BadEncoding)?;
        if self.crls.revokes(&parsed) {
            return Err(CertificateError::Revoked.into());
        }
        check_dates(&parsed, now)
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(certificate).ok().map(|(_, parsed)| parsed)
}

fn check_dates(parsed: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let at = |seconds: i64| UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    let not_before = at(parsed.validity().not_before.timestamp());
    let not_after = at(parsed.validity().not_after.timestamp());
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    Ok(())
}

/// Nobody whom we trust signed the certificate, although webpki words it otherwise: of a self-signed CA it says that it is no
/// end entity, and of a CA that bears a trusted one's name, but has another key, that the signature is bad.
fn unknown_issuer(certificate: &CertificateDer<'_>, error: Error) -> Error {
    let is_ca_complaint = |inner: &rustls::OtherError| {
        matches!(inner.0.downcast_ref::<webpki::Error>(), Some(webpki::Error::CaUsedAsEndEntity))
    };
    let is_own_issuer =
        || parse(certificate).is_some_and(|parsed| parsed.issuer().as_raw() == parsed.subject().as_raw());
    match &error {
        Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
        Error::InvalidCertificate(CertificateError::Other(inner)) if is_ca_complaint(inner) && is_own_issuer() => {
            CertificateError::UnknownIssuer.into()
        }
        _ => error,
    }
}

/// The certificate must carry the name that was asked for: in a subjectAltName, or, where it has no subjectAltName at all, a DNS
/// name as its CN. An IP address must be there as an iPAddress.
fn check_name(
    certificate: &CertificateDer<'_>,
    parsed: &ParsedCertificate<'_>,
    name: &ServerName<'_>,
) -> Result<(), Error> {
    if verify_server_name(parsed, name).is_ok() {
        return Ok(());
    }
    let carried = Names::of(certificate).ok_or(CertificateError::BadEncoding)?;
    let by_common_name = match name {
        ServerName::DnsName(dns) if !carried.has_san => {
            carried.common_name.as_ref().is_some_and(|common| common.eq_ignore_ascii_case(dns.as_ref()))
        }
        _ => false,
    };
    if by_common_name {
        return Ok(());
    }
    Err(CertificateError::NotValidForNameContext { expected: name.to_owned(), presented: carried.usable() }.into())
}

/// The names that a certificate carries.
struct Names {
    has_san: bool,
    dns: Vec<String>,
    ip: Vec<IpAddr>,
    common_name: Option<String>,
}

impl Names {
    fn of(certificate: &CertificateDer<'_>) -> Option<Names> {
        let parsed = parse(certificate)?;
        let common_name =
            parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(str::to_owned);
        let mut names = Names { has_san: false, dns: Vec::new(), ip: Vec::new(), common_name };
        let Some(san) = parsed.subject_alternative_name().ok()? else { return Some(names) };
        names.has_san = true;
        for name in &san.value.general_names {
            match name {
                GeneralName::DNSName(dns) => names.dns.push((*dns).to_owned()),
                GeneralName::IPAddress(bytes) => names.ip.extend(address(bytes)),
                _ => {}
            }
        }
        Some(names)
    }

    /// Those by which a host may be asked for.
    fn usable(self) -> Vec<String> {
        let common = self.common_name.filter(|_| !self.has_san);
        self.dns.into_iter().chain(self.ip.iter().map(IpAddr::to_string)).chain(common).collect()
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The name of a peer by its certificate: the first dNSName of its subjectAltName, else its CN. A client's is its site.
pub fn peer_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let names = Names::of(certificate)?;
    names.dns.into_iter().next().or(names.common_name).filter(|name| !name.is_empty())
}

/// The names and addresses by which a host with this certificate may be asked for; none of one that cannot be read.
pub fn host_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    Names::of(certificate).map(Names::usable).unwrap_or_default()
}

/// When a certificate expires, seconds since 1970; `None` for one that cannot be read.
pub(super) fn expires(certificate: &CertificateDer<'_>) -> Option<i64> {
    parse(certificate).map(|parsed| parsed.validity().not_after.timestamp())
}

/// A chain that was verified, and the name that it was verified for.
type Verified = (Vec<CertificateDer<'static>>, ServerName<'static>);

/// A probe's view of its collector's certificate.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    trust: Trust,
    /// Verifies by the CAs; none where the file holds no CA.
    chains: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
    /// The chain of the last full handshake: a session may be resumed for as long as it holds.
    last: Mutex<Option<Verified>>,
}

impl ServerVerifier {
    pub(super) fn new(trust: Trust, provider: Arc<CryptoProvider>) -> Result<ServerVerifier, String> {
        let algorithms = provider.signature_verification_algorithms;
        let build = |roots| {
            let builder = WebPkiServerVerifier::builder_with_provider(roots, provider);
            builder.with_crls(trust.crls.ders()).allow_unknown_revocation_status().build()
        };
        let chains = trust.anchors().map(build).transpose().map_err(|error| error.to_string())?;
        Ok(ServerVerifier { trust, chains, algorithms, last: Mutex::new(None) })
    }

    /// Whether the chain of the last full handshake would be taken again at this moment.
    pub(super) fn still_holds(&self, now: UnixTime) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().is_none_or(|(chain, name)| self.check(&chain[0], &chain[1..], name, now).is_ok())
    }

    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if self.trust.is_pinned(end_entity) {
            self.trust.check_pinned(end_entity, now)?;
        } else {
            let chains = self.chains.as_ref().ok_or(CertificateError::UnknownIssuer)?;
            match chains.verify_server_cert(end_entity, intermediates, name, &[], now) {
                // The name is looked at when the chain is good, and here it is `check_name` that judges it.
                Ok(_) | Err(Error::InvalidCertificate(CertificateError::NotValidForName)) => {}
                Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })) => {}
                Err(error) => return Err(unknown_issuer(end_entity, error)),
            }
        }
        check_name(end_entity, &parsed, name)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, server_name, now)?;
        let chain = std::iter::once(end_entity).chain(intermediates).map(|der| der.clone().into_owned());
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((chain.collect(), server_name.to_owned()));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Takes any certificate; the peer must still hold its key.
#[derive(Debug)]
pub(super) struct AnyCertificate(pub(super) WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// A collector's view of a probe's certificate.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    trust: Trust,
    /// Verifies by the CAs; none where the file holds no CA.
    chains: Option<Arc<dyn ClientCertVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientVerifier {
    pub(super) fn new(trust: Trust, provider: Arc<CryptoProvider>) -> Result<ClientVerifier, String> {
        let algorithms = provider.signature_verification_algorithms;
        let build = |roots| {
            let builder = WebPkiClientVerifier::builder_with_provider(roots, provider);
            builder.with_crls(trust.crls.ders()).allow_unknown_revocation_status().build()
        };
        let chains = trust.anchors().map(build).transpose().map_err(|error| error.to_string())?;
        Ok(ClientVerifier { trust, chains, algorithms })
    }

    /// Whether a chain, the probe's own certificate first, is to be taken at this moment.
    pub(super) fn check(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let (end_entity, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        if self.trust.is_pinned(end_entity) {
            return self.trust.check_pinned(end_entity, now);
        }
        let chains = self.chains.as_ref().ok_or(CertificateError::UnknownIssuer)?;
        let verified = chains.verify_client_cert(end_entity, intermediates, now);
        verified.map(drop).map_err(|error| unknown_issuer(end_entity, error))
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // With hints a client that holds a pinned certificate might think it holds none that fits.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        self.check(&chain, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
