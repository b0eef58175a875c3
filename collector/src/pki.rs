//! Certificates for mutual TLS without openssl: a CA, the collector's pair, a client pair for each site.
//!
//! ```text
//! DIR/ca.pem          to every probe, as --tls-ca, and to the collector, as --tls-client-ca
//! DIR/ca-key.pem      signs; belongs on no other machine
//! DIR/collector.pem   DIR/collector-key.pem     the collector's pair
//! DIR/sites/NAME.pem  DIR/sites/NAME-key.pem    the pair of one site's probe
//! ```

#![forbid(unsafe_code)]

use crate::sites::check_site_name;
use nagare_service::tls;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// How long the CA is valid, days: ten years.
pub const CA_DAYS: i64 = 3653;
/// How long the collector's certificate is valid, days.
pub const SERVER_DAYS: i64 = 397;
/// How long a site's certificate is valid, days.
pub const CLIENT_DAYS: i64 = 825;
/// Certificates begin to be valid this long ago, for the appliances whose clock is behind.
const BACKDATED: Duration = Duration::days(1);

/// Why a certificate was not made.
#[derive(Debug)]
pub struct PkiError(String);

impl fmt::Display for PkiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PkiError {}

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> PkiError {
        PkiError(format!("the certificate cannot be made: {error}"))
    }
}

/// Files of a pair.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Pair {
    fn of(dir: &Path, name: &str) -> Pair {
        Pair { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}-key.pem")) }
    }

    fn refuse_if_there(&self) -> Result<(), PkiError> {
        match [&self.cert, &self.key].into_iter().find(|path| path.symlink_metadata().is_ok()) {
            Some(path) => {
                Err(PkiError(format!("{} is there already: move it away to have a new one made", path.display())))
            }
            None => Ok(()),
        }
    }

    fn write(&self, certificate: &Certificate, key: &KeyPair) -> Result<(), PkiError> {
        write_new(&self.key, &key.serialize_pem())?;
        write_new(&self.cert, &certificate.pem())
    }
}

/// Makes a CA and the collector's pair for `name` and the further names `san`, and returns both, the CA's first.
///
/// # Errors
/// A name is none, a file is there already or cannot be written.
pub fn init(dir: &Path, name: &str, san: &[String]) -> Result<(Pair, Pair), PkiError> {
    let (ca, collector) = (Pair::of(dir, "ca"), Pair::of(dir, "collector"));
    let names: Vec<String> = std::iter::once(name).chain(san.iter().map(String::as_str)).map(str::to_owned).collect();
    for name in &names {
        tls::server_name(name).map_err(|error| PkiError(error.to_string()))?;
    }
    ca.refuse_if_there()?;
    collector.refuse_if_there()?;
    make_dir(dir)?;

    let ca_key = KeyPair::generate()?;
    let mut params = params(&format!("Nagare CA of {name}"), Vec::new(), CA_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.write(&params.self_signed(&ca_key)?, &ca_key)?;

    let key = KeyPair::generate()?;
    let leaf = leaf(name, names, SERVER_DAYS, ExtendedKeyUsagePurpose::ServerAuth)?;
    collector.write(&leaf.signed_by(&key, &Issuer::from_params(&params, &ca_key))?, &key)?;
    Ok((ca, collector))
}

/// Makes a client pair for the probe of `site`, signed by the CA of [`init`].
///
/// # Errors
/// The name is no site's, there is no CA, or a file is there already or cannot be written.
pub fn issue(dir: &Path, site: &str) -> Result<Pair, PkiError> {
    check_site_name(site).map_err(|error| PkiError(error.to_string()))?;
    let (ca, sites) = (Pair::of(dir, "ca"), dir.join("sites"));
    let pair = Pair::of(&sites, site);
    pair.refuse_if_there()?;
    let hint = "make a CA first: nagare-collector pki init";
    let read = |path: &Path| {
        fs::read_to_string(path)
            .map_err(|error| PkiError(format!("{} cannot be read: {error}; {hint}", path.display())))
    };
    let (cert_pem, key_pem) = (read(&ca.cert)?, read(&ca.key)?);
    let issuer = Issuer::from_ca_cert_pem(&cert_pem, KeyPair::from_pem(&key_pem)?)?;
    make_dir(&sites)?;

    let key = KeyPair::generate()?;
    let leaf = leaf(site, vec![site.to_owned()], CLIENT_DAYS, ExtendedKeyUsagePurpose::ClientAuth)?;
    pair.write(&leaf.signed_by(&key, &issuer)?, &key)?;
    Ok(pair)
}

/// The host name that the collector's certificate in `dir` carries.
pub fn collector_name(dir: &Path) -> Option<String> {
    let certificate = CertificateDer::from_pem_file(Pair::of(dir, "collector").cert).ok()?;
    tls::peer_name(&certificate)
}

fn params(common_name: &str, names: Vec<String>, days: i64) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(days);
    Ok(params)
}

fn leaf(
    name: &str,
    names: Vec<String>,
    days: i64,
    purpose: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams, PkiError> {
    let mut params = params(name, names, days)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    Ok(params)
}

fn make_dir(dir: &Path) -> Result<(), PkiError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| PkiError(format!("{} cannot be made: {error}", dir.display())))
}

/// A key must not be readable by others for a moment, so the mode is there from the start; and nothing is overwritten.
fn write_new(path: &Path, pem: &str) -> Result<(), PkiError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = opened.and_then(|mut file| file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|error| PkiError(format!("{} cannot be written: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_and_never_overwritten() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path().join("pki");
        let (ca, collector) = init(&dir, "collector.example", &["192.0.2.1".into()]).expect("made");
        let site = issue(&dir, "tokyo").expect("made");
        for path in [&ca.cert, &ca.key, &collector.cert, &collector.key, &site.cert, &site.key] {
            let mode = fs::metadata(path).expect("there").permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
        assert_eq!(collector_name(&dir).as_deref(), Some("collector.example"));
        let before = fs::read(&site.key).expect("read");
        for again in [init(&dir, "collector.example", &[]).map(|_| ()), issue(&dir, "tokyo").map(|_| ())] {
            assert!(again.expect_err("refused").to_string().contains("is there already"));
        }
        assert_eq!(fs::read(&site.key).expect("read"), before);
    }

    #[test]
    fn what_cannot_be_made_is_refused_in_words() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path();
        let no_ca = issue(dir, "tokyo").expect_err("no CA").to_string();
        assert!(no_ca.contains("ca.pem cannot be read") && no_ca.contains("pki init"), "{no_ca}");
        assert!(issue(dir, "../tokyo").expect_err("no site").to_string().contains("cannot name a site"));
        assert!(init(dir, "not a host", &[]).is_err());
        assert_eq!(fs::read_dir(dir).expect("listed").count(), 0, "nothing was begun");
    }
}
