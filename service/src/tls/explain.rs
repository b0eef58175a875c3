//! Refusals in words: which check failed, and what to do.

use crate::units::date as date_of_seconds;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};
use std::io;
use std::path::PathBuf;

/// Whose point of view a refusal is told from, and with which options.
#[derive(Clone, Debug)]
pub enum Side {
    /// A probe that connects to a collector.
    Client {
        /// The file of `--tls-ca`.
        ca: Option<PathBuf>,
        /// Whether a client certificate can be presented.
        identity: bool,
    },
    /// A collector that a probe connects to.
    Server {
        /// The file of `--tls-client-ca`.
        client_ca: Option<PathBuf>,
    },
}

impl Side {
    /// The peer, as an operator knows it.
    fn peer(&self) -> &'static str {
        match self {
            Side::Client { .. } => "collector",
            Side::Server { .. } => "probe",
        }
    }

    /// This program, likewise.
    fn own(&self) -> &'static str {
        match self {
            Side::Client { .. } => "probe",
            Side::Server { .. } => "collector",
        }
    }
}

/// One sentence: which check of `peer` (an address or an endpoint) failed, and what to do.
pub fn explain(error: &Error, side: &Side, peer: &str) -> String {
    let who = side.peer();
    match error {
        Error::InvalidCertificate(error) => {
            format!("TLS: the certificate of the {who} {peer} {}", certificate(error, side))
        }
        Error::InvalidCertRevocationList(why) => format!(
            "TLS: whether the certificate of the {who} {peer} is revoked cannot be told, as the list of its CA in --tls-crl is no good ({why:?}): get that list anew"
        ),
        Error::NoCertificatesPresented => format!(
            "TLS: the {who} {peer} presented no client certificate, and --tls-client-ca demands one: \
             give it --tls-cert and --tls-priv-key (`nagare-collector pki issue` makes such a pair)"
        ),
        Error::AlertReceived(alert) => format!("TLS: the {who} {peer} {}", received(*alert, side)),
        Error::PeerIncompatible(why) => format!("TLS: the {who} {peer} {}", incompatible(why)),
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => not_tls(side, peer),
        other => format!("TLS with the {who} {peer} failed: {other}"),
    }
}

/// The same for what a socket or a rustls stream returned while the handshake went on.
pub fn explain_io(error: &io::Error, side: &Side, peer: &str) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match (tls, error.kind()) {
        (Some(tls), _) => explain(tls, side, peer),
        (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            format!("{} (it closed the connection during the handshake)", not_tls(side, peer))
        }
        (None, _) => format!("{} {peer}: {error}", side.peer()),
    }
}

fn not_tls(side: &Side, peer: &str) -> String {
    match side {
        Side::Client { .. } => format!(
            "TLS: the collector {peer} does not speak TLS there: look for the wrong port, or for a listener that is tcp:// and not tls://"
        ),
        Side::Server { .. } => format!(
            "TLS: the peer {peer} does not speak TLS: a probe connects here with --collector tls://, not tcp://"
        ),
    }
}

/// What is wrong with the peer's certificate: the rest of a sentence that begins with whose it is.
fn certificate(error: &CertificateError, side: &Side) -> String {
    match error {
        CertificateError::UnknownIssuer => unknown_issuer(side),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("expired at {} (now {}): renew it, or set this machine's clock", date(*not_after), date(*time))
        }
        CertificateError::Expired => "is expired: renew it, or set this machine's clock".into(),
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "is not yet valid: it will be from {} on (now {}): set this machine's clock, or that of whoever made it",
            date(*not_before),
            date(*time)
        ),
        CertificateError::NotValidYet => "is not yet valid: set this machine's clock".into(),
        CertificateError::NotValidForNameContext { expected, presented } => wrong_name(expected, presented),
        CertificateError::InvalidPurposeContext { .. } | CertificateError::InvalidPurpose => {
            let purpose = if matches!(side, Side::Client { .. }) { "serverAuth" } else { "clientAuth" };
            format!(
                "is not meant for this (its extended key usage lacks {purpose}): use one made for a {}",
                side.peer()
            )
        }
        CertificateError::BadSignature => {
            "does not belong to the key that it signed with: its pair of files is mixed up".into()
        }
        CertificateError::BadEncoding => "cannot be read: it is malformed, or not of version 3; make a new one".into(),
        CertificateError::Revoked => {
            "is revoked by its CA (--tls-crl): use another (`nagare-collector pki renew` makes one)".into()
        }
        other => format!("is refused ({other}): use another"),
    }
}

fn unknown_issuer(side: &Side) -> String {
    match side {
        Side::Client { ca: Some(file), .. } => format!(
            "is not signed by any CA in {}: pass --tls-ca with the CA that signed it (with the certificate itself if it is self-signed)",
            file.display()
        ),
        Side::Client { ca: None, .. } => "is not signed by any CA that this system trusts: \
            pass --tls-ca with the CA that signed it (with the certificate itself if it is self-signed)"
            .into(),
        Side::Server { client_ca } => format!(
            "is not signed by any CA in {}: make it with that CA (`nagare-collector pki issue`), or pass --tls-client-ca with the one that signed it",
            client_ca.as_ref().map_or("--tls-client-ca".into(), |file| file.display().to_string())
        ),
    }
}

fn wrong_name(expected: &ServerName<'_>, presented: &[String]) -> String {
    let expected_text = expected.to_str();
    let carried = presented.join(", ");
    match (expected, presented.is_empty()) {
        (_, true) => format!(
            "carries no host name at all, and {expected_text} was asked for: make one with subjectAltName (`nagare-collector pki init --name HOST`)"
        ),
        (ServerName::IpAddress(_), false) => format!(
            "is for {carried}, and does not carry the IP address {expected_text}: use a name in place of the address, or a certificate that carries it"
        ),
        (_, false) => format!("is for {carried}, not for {expected_text}: connect by a name that it carries"),
    }
}

/// What an alert of the peer means: the rest of a sentence that begins with the peer.
fn received(alert: AlertDescription, side: &Side) -> String {
    let own = side.own();
    let common = match alert {
        AlertDescription::ProtocolVersion => Some(
            "has no TLS version in common with us (1.2 is the lowest; --tls-versions may leave it out): update it"
                .to_owned(),
        ),
        AlertDescription::InsufficientSecurity => Some("has no cipher suite in common with us: update it".to_owned()),
        AlertDescription::CertificateExpired => Some(format!(
            "refused this {own}'s certificate as expired or not yet valid: renew it, or set the clocks of both machines"
        )),
        AlertDescription::CertificateRevoked => {
            Some(format!("refused this {own}'s certificate as revoked: use another"))
        }
        AlertDescription::UnsupportedCertificate => {
            Some(format!("refused this {own}'s certificate as not meant for this: use one made for a {own}"))
        }
        _ => None,
    };
    common.unwrap_or_else(|| match side {
        Side::Client { identity, .. } => received_by_client(alert, *identity),
        Side::Server { .. } => received_by_server(alert),
    })
}

fn received_by_client(alert: AlertDescription, identity: bool) -> String {
    let present = "pass --tls-cert and --tls-priv-key (`nagare-collector pki issue` makes such a pair)";
    match (alert, identity) {
        (AlertDescription::CertificateRequired, _) => format!("demands a client certificate: {present}"),
        (AlertDescription::HandshakeFailure, true) => {
            "refused the handshake: it has no cipher suite in common with us, or takes no certificate like this probe's"
                .into()
        }
        (AlertDescription::HandshakeFailure, false) => format!(
            "refused the handshake: it demands a client certificate ({present}), or has no TLS version or cipher suite in common with us"
        ),
        (AlertDescription::BadCertificate | AlertDescription::CertificateUnknown, false) => {
            format!("refused the handshake, probably because it demands a client certificate: {present}")
        }
        (AlertDescription::UnknownCA, _) => {
            "refused this probe's certificate: no CA that it trusts signed it; use a pair that the CA \
            of its --tls-client-ca made"
                .into()
        }
        (AlertDescription::BadCertificate | AlertDescription::CertificateUnknown, true) => {
            "refused this probe's certificate: use a pair that the CA of its --tls-client-ca made".into()
        }
        (AlertDescription::AccessDenied, _) => {
            "knows this probe's certificate and denies it access: ask its operator".into()
        }
        (other, _) => format!("ended the handshake with the alert {other:?}"),
    }
}

fn received_by_server(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA => {
            "does not trust this collector's certificate: give it --tls-ca with the CA that signed it".into()
        }
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "refused this collector's certificate, probably because it connects by a name that the certificate does not carry".into()
        }
        AlertDescription::HandshakeFailure => "has no TLS version or cipher suite in common with us: update it".into(),
        AlertDescription::UserCanceled | AlertDescription::CloseNotify => "gave the handshake up".into(),
        other => format!("ended the handshake with the alert {other:?}"),
    }
}

fn incompatible(why: &PeerIncompatible) -> String {
    match why {
        PeerIncompatible::NoCipherSuitesInCommon
        | PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NoSignatureSchemesInCommon => {
            format!("has no cipher suite in common with us ({why:?}): update it, or use a certificate of another kind")
        }
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
            "has no TLS version in common with us (1.2 is the lowest; --tls-versions may leave it out): update it"
                .into()
        }
        other => format!("speaks a TLS that we cannot ({other:?}): update it"),
    }
}

/// A time as certificates are talked of: `2026-11-24 02:57:57 UTC`.
fn date(time: UnixTime) -> String {
    date_of_seconds(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}
