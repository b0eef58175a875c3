//! Sessions that may be resumed, each with the certificate chain it was admitted by (RFC 8446, 4.6.1; RFC 5246, 7.3).
//!
//! A resumed session must not outlive the certificate of the first: when a probe comes back, the chain is verified again, at that
//! moment, before the session is given out. Where it no longer holds the handshake goes on as a full one, and is refused there, in
//! words. A reload of certificates begins with no sessions.

use super::verify::ClientVerifier;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::StoresServerSessions;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a session may be resumed after it began. Long enough for a line that went away, a restart of the appliance.
pub const TICKET_LIFE: Duration = Duration::from_secs(60 * 60);
/// What all sessions that may be resumed take together, octets; the oldest go.
pub const TICKETS_OCTETS_MAX: usize = 8 << 20;
/// What one of them takes beside its octets: the maps' own.
const TICKET_OVERHEAD: usize = 256;

type Chain = Arc<[CertificateDer<'static>]>;

struct Ticket {
    key: Vec<u8>,
    value: Vec<u8>,
    chain: Chain,
    born: Instant,
}

impl Ticket {
    fn octets(&self) -> usize {
        2 * self.key.len() + self.value.len() + self.chain.iter().map(|der| der.len()).sum::<usize>() + TICKET_OVERHEAD
    }
}

#[derive(Default)]
struct Held {
    by_age: BTreeMap<u64, Ticket>,
    by_key: HashMap<Vec<u8>, u64>,
    octets: usize,
    next: u64,
}

impl Held {
    fn remove(&mut self, age: u64) -> Option<Ticket> {
        let ticket = self.by_age.remove(&age)?;
        self.by_key.remove(&ticket.key);
        self.octets -= ticket.octets();
        Some(ticket)
    }

    fn insert(&mut self, ticket: Ticket) {
        if let Some(age) = self.by_key.get(&ticket.key).copied() {
            self.remove(age);
        }
        self.octets += ticket.octets();
        self.by_key.insert(ticket.key.clone(), self.next);
        self.by_age.insert(self.next, ticket);
        self.next += 1;
        while let Some((age, oldest)) = self.by_age.first_key_value()
            && (self.octets > TICKETS_OCTETS_MAX || oldest.born.elapsed() >= TICKET_LIFE)
        {
            let age = *age;
            self.remove(age);
        }
    }
}

/// All sessions that may be resumed with one set of certificates.
#[derive(Default)]
pub(super) struct Tickets(Mutex<Held>);

impl Tickets {
    fn held(&self) -> MutexGuard<'_, Held> {
        // Sums and maps change together or not at all; a panic in between loses sessions, which costs a full handshake.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's way to the tickets: it knows the chain that was verified on this connection, and keeps it with its sessions.
pub(super) struct Admission {
    verifier: Option<Arc<ClientVerifier>>,
    tickets: Arc<Tickets>,
    chain: Mutex<Chain>,
    /// Sessions not resumed because their certificate no longer held.
    refused: Arc<AtomicU64>,
}

impl Admission {
    pub(super) fn new(
        verifier: Option<Arc<ClientVerifier>>,
        tickets: Arc<Tickets>,
        refused: Arc<AtomicU64>,
    ) -> Admission {
        Admission { verifier, tickets, chain: Mutex::new(Arc::new([])), refused }
    }

    fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a session's state out if its time is not up and its chain still holds.
    fn honour(&self, value: Vec<u8>, chain: Chain, born: Instant) -> Option<Vec<u8>> {
        if born.elapsed() >= TICKET_LIFE {
            return None;
        }
        if self.verifier.as_ref().is_some_and(|verifier| verifier.check(&chain, UnixTime::now()).is_err()) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *self.chain() = chain;
        Some(value)
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admission") // Sessions are secrets.
    }
}

impl StoresServerSessions for Admission {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let ticket = Ticket { key, value, chain: self.chain().clone(), born: Instant::now() };
        self.tickets.held().insert(ticket);
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let held = self.tickets.held();
        let ticket = held.by_key.get(key).and_then(|age| held.by_age.get(age))?;
        let (value, chain, born) = (ticket.value.clone(), ticket.chain.clone(), ticket.born);
        drop(held);
        self.honour(value, chain, born)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut held = self.tickets.held();
        let age = held.by_key.get(key).copied()?;
        let Ticket { value, chain, born, .. } = held.remove(age)?;
        drop(held);
        self.honour(value, chain, born)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// The same as a verifier: it notes the chain that was found good. Only made where there is one.
#[derive(Debug)]
pub(super) struct Noting(pub(super) Arc<ClientVerifier>, pub(super) Arc<Admission>);

impl ClientCertVerifier for Noting {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        let chain = std::iter::once(end_entity).chain(intermediates).map(|der| der.clone().into_owned());
        *self.1.chain() = chain.collect();
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Tickets are sent, and never honoured. In TLS 1.3 a probe takes the handshake for done before its certificate was looked at: the
/// ticket tells it that it is in.
#[derive(Debug)]
pub(super) struct Forgetful;

impl StoresServerSessions for Forgetful {
    fn put(&self, _: Vec<u8>, _: Vec<u8>) -> bool {
        true
    }

    fn get(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn take(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded() {
        let tickets = Arc::new(Tickets::default());
        let admission = Admission::new(None, tickets.clone(), Arc::default());
        for number in 0..4000_u32 {
            assert!(admission.put(number.to_be_bytes().into(), vec![0; 8192]));
        }
        let octets = tickets.held().octets;
        assert!((TICKETS_OCTETS_MAX - 10_000..=TICKETS_OCTETS_MAX).contains(&octets), "{octets}");
        assert_eq!(admission.take(&0_u32.to_be_bytes()), None, "the oldest went");
        assert!(admission.get(&3999_u32.to_be_bytes()).is_some());
        assert!(admission.take(&3999_u32.to_be_bytes()).is_some());
        assert_eq!(admission.take(&3999_u32.to_be_bytes()), None, "a ticket is good for once");
        for age in 0..4000 {
            tickets.held().remove(age);
        }
        let held = tickets.held();
        assert_eq!((held.octets, held.by_key.len()), (0, 0));
    }
}
