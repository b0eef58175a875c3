//! Certificate revocation lists (RFC 5280, 5): whose certificate is no longer to be trusted, although its CA signed it.

use super::{TlsError, unreadable};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

/// The lists of `--tls-crl`. Signatures of lists are verified with those of the chains that they are about.
#[derive(Debug, Default)]
pub(super) struct Crls {
    ders: Vec<CertificateRevocationListDer<'static>>,
    lists: Vec<List>,
}

/// What one list says: the serials that one issuer takes back.
#[derive(Debug)]
struct List {
    issuer: Vec<u8>,
    serials: HashSet<Vec<u8>>,
}

impl Crls {
    /// Reads PEM files, each with one list or more. A list that is past its next update is warned of, and used: what it revokes stays
    /// revoked.
    ///
    /// # Errors
    /// A file cannot be read, or holds no list or a malformed one.
    pub(super) fn load(files: &[PathBuf]) -> Result<Crls, TlsError> {
        let mut crls = Crls::default();
        for file in files {
            let read =
                CertificateRevocationListDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let found = read.map_err(|error| unreadable(file, &error))?;
            if found.is_empty() {
                return Err(TlsError(format!("{} holds no certificate revocation list in PEM form", file.display())));
            }
            for der in found {
                crls.lists.push(parse(file, &der)?);
                crls.ders.push(der);
            }
        }
        Ok(crls)
    }

    /// The lists themselves, for webpki.
    pub(super) fn ders(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.ders.clone()
    }

    /// Whether a list of this certificate's issuer names its serial.
    pub(super) fn revokes(&self, certificate: &X509Certificate<'_>) -> bool {
        let issuer = certificate.issuer().as_raw();
        self.lists.iter().any(|list| list.issuer == issuer && list.serials.contains(certificate.raw_serial()))
    }

    /// Warns of lists that none of `cas` can have made: they revoke nothing.
    pub(super) fn warn_of_strangers(&self, cas: &[CertificateDer<'_>], ca_file: &Path) {
        let subjects: Vec<Vec<u8>> = cas
            .iter()
            .filter_map(|ca| X509Certificate::from_der(ca).ok())
            .map(|(_, ca)| ca.subject().as_raw().to_vec())
            .collect();
        let strange = self.lists.iter().filter(|list| !subjects.contains(&list.issuer)).count();
        if strange > 0 {
            log::warn!(
                "{strange} of the lists of --tls-crl are of no CA in {}: they revoke nothing here",
                ca_file.display()
            );
        }
    }
}

fn parse(file: &Path, der: &CertificateRevocationListDer<'_>) -> Result<List, TlsError> {
    let refuse =
        |why: String| TlsError(format!("{}: the certificate revocation list cannot be used: {why}", file.display()));
    webpki::BorrowedCertRevocationList::from_der(der).map_err(|error| refuse(error.to_string()))?;
    let (_, list) = CertificateRevocationList::from_der(der).map_err(|error| refuse(error.to_string()))?;
    if let Some(next) = list.next_update()
        && next.timestamp() < now_s()
    {
        log::warn!(
            "{}: the list's next update was due on {next}: it is used, and what was revoked since is missing",
            file.display()
        );
    }
    let serials = list.iter_revoked_certificates().map(|revoked| revoked.raw_serial().to_vec()).collect();
    Ok(List { issuer: list.issuer().as_raw().to_vec(), serials })
}

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
