//! What is read from certificate files once and goes into every new connection until the files change.

use super::tickets::{Admission, Forgetful, Noting, Tickets};
use super::verify::{AnyCertificate, ClientVerifier, ServerVerifier};
use super::{ClientTls, Identity, ServerTls, TlsError, trust_file, trust_system};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::StoresServerSessions;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, Error, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

/// Sessions that a probe keeps to be resumed: those with its one collector.
const CLIENT_SESSIONS: usize = 8;

/// What [`super::Reloading`] loads anew.
pub trait Kit: Sized {
    /// Where it is loaded from.
    type Options;

    /// Reads every file.
    ///
    /// # Errors
    /// A file cannot be read or holds nothing usable.
    fn load(options: &Self::Options) -> Result<Self, TlsError>;

    /// The files whose change makes it old.
    fn files(options: &Self::Options) -> Vec<PathBuf>;

    /// The file of the program's own certificate, and when that expires (seconds since 1970).
    fn expires<'a>(&self, options: &'a Self::Options) -> Option<(&'a Path, i64)>;
}

/// A probe's certificates.
pub struct ClientKit {
    /// None where any certificate will do.
    verifier: Option<Arc<ServerVerifier>>,
    expires: Option<i64>,
    config: Mutex<Arc<ClientConfig>>,
}

impl Kit for ClientKit {
    type Options = ClientTls;

    fn load(tls: &ClientTls) -> Result<ClientKit, TlsError> {
        let provider = tls.policy.provider();
        let trust = match (tls.insecure, &tls.ca) {
            (true, _) => None,
            (false, Some(file)) => Some(trust_file(file, &tls.crl)?),
            (false, None) => Some(trust_system(&tls.crl)?),
        };
        let verifier = trust.map(|trust| ServerVerifier::new(trust, provider.clone()).map(Arc::new));
        let verifier =
            verifier.transpose().map_err(|error| TlsError(format!("the trusted CAs cannot be used: {error}")))?;
        let trusting: Arc<dyn ServerCertVerifier> = match &verifier {
            None => Arc::new(AnyCertificate(provider.signature_verification_algorithms)),
            Some(verifier) => verifier.clone(),
        };
        let pair = tls.identity.as_ref().map(|(cert, key)| Identity::load(cert, key, &provider)).transpose()?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(tls.policy.versions())
            .map_err(|error| TlsError(format!("TLS cannot be set up: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(trusting);
        let expires = pair.as_ref().map(|identity| identity.expires);
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some(identity) => builder.with_client_cert_resolver(identity.pair),
        };
        config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS);
        Ok(ClientKit { verifier, expires, config: Mutex::new(Arc::new(config)) })
    }

    fn files(tls: &ClientTls) -> Vec<PathBuf> {
        let pair = tls.identity.iter().flat_map(|(cert, key)| [cert, key]);
        pair.chain(&tls.ca).chain(&tls.crl).cloned().collect()
    }

    fn expires<'a>(&self, tls: &'a ClientTls) -> Option<(&'a Path, i64)> {
        Some((&tls.identity.as_ref()?.0, self.expires?))
    }
}

impl ClientKit {
    /// The configuration for one connection. A session is resumed only while the collector's certificate, by which it began, would
    /// be taken again.
    pub(super) fn config(&self) -> Arc<ClientConfig> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if self.verifier.as_ref().is_some_and(|verifier| !verifier.still_holds(UnixTime::now())) {
            let mut fresh = ClientConfig::clone(&config);
            fresh.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS);
            *config = Arc::new(fresh);
        }
        config.clone()
    }
}

/// A collector's certificates, and the sessions that began with them.
pub struct ServerKit {
    tls: ServerTls,
    identity: Identity,
    verifier: Option<Arc<ClientVerifier>>,
    tickets: Arc<Tickets>,
}

impl Kit for ServerKit {
    type Options = ServerTls;

    fn load(tls: &ServerTls) -> Result<ServerKit, TlsError> {
        let provider = tls.policy.provider();
        let verifier = tls.client_ca.as_ref().map(|file| {
            let refuse = |error| TlsError(format!("{}: {error}", file.display()));
            ClientVerifier::new(trust_file(file, &tls.crl)?, provider.clone()).map(Arc::new).map_err(refuse)
        });
        let (verifier, identity) = (verifier.transpose()?, Identity::load(&tls.cert, &tls.key, &provider)?);
        let kit = ServerKit { tls: tls.clone(), identity, verifier, tickets: Arc::default() };
        kit.without_resumption()?; // Whatever can fail fails here, not when a probe knocks.
        Ok(kit)
    }

    fn files(tls: &ServerTls) -> Vec<PathBuf> {
        [&tls.cert, &tls.key].into_iter().chain(&tls.client_ca).chain(&tls.crl).cloned().collect()
    }

    fn expires<'a>(&self, tls: &'a ServerTls) -> Option<(&'a Path, i64)> {
        Some((&tls.cert, self.identity.expires))
    }
}

impl ServerKit {
    /// The configuration for one connection, which may resume a session; `refused` counts those whose certificate no longer holds.
    pub(super) fn for_connection(&self, refused: Arc<AtomicU64>) -> Result<Arc<ServerConfig>, TlsError> {
        let admission = Arc::new(Admission::new(self.verifier.clone(), self.tickets.clone(), refused));
        let noting = |verifier: Arc<ClientVerifier>| {
            Arc::new(Noting(verifier, admission.clone())) as Arc<dyn ClientCertVerifier>
        };
        self.config(self.verifier.clone().map(noting), admission.clone())
    }

    pub(super) fn without_resumption(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let verifier = self.verifier.clone().map(|verifier| verifier as Arc<dyn ClientCertVerifier>);
        self.config(verifier, Arc::new(Forgetful))
    }

    fn config(
        &self,
        verifier: Option<Arc<dyn ClientCertVerifier>>,
        sessions: Arc<dyn StoresServerSessions>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let builder = ServerConfig::builder_with_provider(self.tls.policy.provider())
            .with_protocol_versions(self.tls.policy.versions())
            .map_err(|error| TlsError(format!("TLS cannot be set up: {error}")))?;
        let builder = match verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let mut config = builder.with_cert_resolver(self.identity.pair.clone());
        config.session_storage = sessions;
        config.send_tls13_tickets = 1;
        config.alpn_protocols = self.tls.protocols.clone();
        Ok(Arc::new(config))
    }

    /// Whether a chain, the probe's own certificate first, would be taken at this moment.
    ///
    /// # Errors
    /// Why not; [`super::explain`] words it.
    pub(super) fn check(&self, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        self.verifier.as_ref().map_or(Ok(()), |verifier| verifier.check(chain, UnixTime::now()))
    }
}
