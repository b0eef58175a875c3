//! Which TLS is spoken: versions and cipher suites, safe whatever is chosen.
//!
//! All suites that can be named encrypt and authenticate by one AEAD and have forward secrecy; there is no NULL suite to be chosen
//! (RFC 7011, 11.3), and nothing below TLS 1.2 (RFC 8996).

use super::TlsError;
use rustls::crypto::{CryptoProvider, ring};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// `--tls-versions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum Versions {
    /// TLS 1.3 alone
    #[value(name = "1.3")]
    #[serde(rename = "1.3")]
    Newest,
    /// TLS 1.3, or 1.2 with a peer that knows no better
    #[default]
    #[value(name = "1.2,1.3", alias = "1.3,1.2")]
    #[serde(rename = "1.2,1.3", alias = "1.3,1.2")]
    Both,
}

static NEWEST: [&SupportedProtocolVersion; 1] = [&TLS13];
static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

impl Versions {
    fn supported(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Versions::Newest => &NEWEST,
            Versions::Both => &BOTH,
        }
    }
}

/// The versions and cipher suites of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    versions: Versions,
    suites: Vec<CipherSuite>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            versions: Versions::default(),
            suites: ring::ALL_CIPHER_SUITES.iter().map(|suite| suite.suite()).collect(),
        }
    }
}

impl Policy {
    /// The suites named in `ciphers` (every one of these versions where none is named), in our order of preference.
    ///
    /// # Errors
    /// A name is no suite's, a suite is of a version that is not spoken, or a version is left without a suite.
    pub fn new(versions: Versions, ciphers: &[String]) -> Result<Policy, TlsError> {
        for name in ciphers {
            let suite = known().find(|suite| is_named(suite, name)).ok_or_else(|| {
                TlsError(format!(
                    "--tls-ciphers {}: there is no such suite; --tls-ciphers help lists them",
                    name.escape_debug()
                ))
            })?;
            if !versions.supported().contains(&suite.version()) {
                let version = word(suite.version());
                return Err(TlsError(format!(
                    "--tls-ciphers {name} is a suite of {version}, which --tls-versions leaves out"
                )));
            }
        }
        let chosen = |suite: &SupportedCipherSuite| match ciphers.is_empty() {
            true => versions.supported().contains(&suite.version()),
            false => ciphers.iter().any(|name| is_named(suite, name)),
        };
        let suites: Vec<SupportedCipherSuite> = known().filter(chosen).collect();
        let bare = versions.supported().iter().find(|version| !suites.iter().any(|suite| suite.version() == **version));
        match bare {
            Some(version) => Err(TlsError(format!(
                "--tls-ciphers names no suite of {}: name one, or leave the version out with --tls-versions",
                word(version)
            ))),
            None => Ok(Policy { versions, suites: suites.iter().map(SupportedCipherSuite::suite).collect() }),
        }
    }

    pub(super) fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        self.versions.supported()
    }

    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        let cipher_suites = known().filter(|suite| self.suites.contains(&suite.suite())).collect();
        Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
    }
}

/// What `--tls-ciphers help` prints: a suite a line, with its version, in our order of preference.
pub fn ciphers() -> String {
    known().map(|suite| format!("{:?} ({})\n", suite.suite(), word(suite.version()))).collect()
}

fn known() -> impl Iterator<Item = SupportedCipherSuite> {
    ring::ALL_CIPHER_SUITES.iter().copied()
}

fn is_named(suite: &SupportedCipherSuite, name: &str) -> bool {
    format!("{:?}", suite.suite()).eq_ignore_ascii_case(name.trim())
}

fn word(version: &SupportedProtocolVersion) -> &'static str {
    if version.version == ProtocolVersion::TLSv1_2 { "TLS 1.2" } else { "TLS 1.3" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(versions: Versions, ciphers: &[&str]) -> Result<Policy, String> {
        let ciphers: Vec<String> = ciphers.iter().map(|name| (*name).to_owned()).collect();
        Policy::new(versions, &ciphers).map_err(|error| error.to_string())
    }

    #[test]
    fn what_can_be_chosen_is_safe() {
        assert_eq!(policy(Versions::Both, &[]), Ok(Policy::default()));
        assert!(ciphers().lines().all(|line| !line.contains("NULL") && !line.contains("CBC")), "{}", ciphers());
        let one = policy(Versions::Newest, &["tls13_aes_256_gcm_sha384"]).expect("one");
        assert_eq!(one.provider().cipher_suites.len(), 1);
        assert_eq!(policy(Versions::Newest, &[]).expect("those of 1.3").suites.len(), 3);
        for (versions, names, told) in [
            (Versions::Both, &["TLS_RSA_WITH_NULL_SHA"][..], "there is no such suite"),
            (Versions::Both, &["TLS13_AES_128_GCM_SHA256"][..], "names no suite of TLS 1.2"),
            (Versions::Newest, &["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"][..], "which --tls-versions leaves out"),
        ] {
            let refusal = policy(versions, names).expect_err(told);
            assert!(refusal.contains(told), "{refusal}");
        }
    }
}
