//! Certificates for mutual TLS without openssl: a CA, the collector's pair, a client pair for each site.
//!
//! ```text
//! DIR/ca.pem          to every probe, as --tls-ca, and to the collector, as --tls-client-ca
//! DIR/ca-key.pem      signs; belongs on no other machine
//! DIR/collector.pem   DIR/collector-key.pem     the collector's pair
//! DIR/sites/NAME.pem  DIR/sites/NAME-key.pem    the pair of one site's probe
//! DIR/issued.txt      the serial of every certificate that a site was given: NAME SERIAL, a line each
//! DIR/crl.pem         what was taken back, to the collector, as --tls-crl
//! ```
//! What is made anew replaces the old file by a rename, and the old one stays beside it as `.old`.

#![forbid(unsafe_code)]

use crate::sites::check_site_name;
use nagare_service::tls;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

/// How long the CA is valid, days: ten years.
pub const CA_DAYS: i64 = 3653;
/// How long the collector's certificate is valid, days.
pub const SERVER_DAYS: i64 = 397;
/// How long a site's certificate is valid, days.
pub const CLIENT_DAYS: i64 = 825;
/// How long a revocation list is the newest, days; a later one is used all the same, and warned of.
pub const CRL_DAYS: i64 = 397;
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

    /// Puts a new pair in the place of an old one, which stays beside it. Whoever reads in between sees a key and a certificate that
    /// do not belong together, keeps what it has, and reads again.
    fn replace(&self, certificate: &Certificate, key: &KeyPair) -> Result<(), PkiError> {
        for path in [&self.key, &self.cert] {
            let failed = |error| PkiError(format!("{} cannot be kept as .old: {error}", path.display()));
            remove(&old(path))?;
            fs::hard_link(path, old(path)).map_err(failed)?;
        }
        replace(&self.key, &key.serialize_pem())?;
        replace(&self.cert, &certificate.pem())
    }
}

/// The CA of [`init`]: what signs.
fn issuer(dir: &Path) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let ca = Pair::of(dir, "ca");
    let hint = "make a CA first: nagare-collector pki init";
    let read = |path: &Path| {
        fs::read_to_string(path)
            .map_err(|error| PkiError(format!("{} cannot be read: {error}; {hint}", path.display())))
    };
    let (cert_pem, key_pem) = (read(&ca.cert)?, read(&ca.key)?);
    Ok(Issuer::from_ca_cert_pem(&cert_pem, KeyPair::from_pem(&key_pem)?)?)
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
    let issuer = Issuer::new(params, ca_key);
    collector.write(&leaf.signed_by(&key, &issuer)?, &key)?;
    // An empty list to begin with, so that the collector can be told of it before there is anything on it.
    write_crl(dir, &issuer, &Revocations::default())?;
    Ok((ca, collector))
}

/// Makes a client pair for the probe of `site`, signed by the CA of [`init`].
///
/// # Errors
/// The name is no site's, there is no CA, or a file is there already or cannot be written.
pub fn issue(dir: &Path, site: &str) -> Result<Pair, PkiError> {
    check_site_name(site).map_err(|error| PkiError(error.to_string()))?;
    let sites = dir.join("sites");
    let pair = Pair::of(&sites, site);
    pair.refuse_if_there()?;
    let issuer = issuer(dir)?;
    make_dir(&sites)?;
    let (certificate, key) = site_certificate(site, &issuer)?;
    note_issued(dir, site, &certificate)?;
    pair.write(&certificate, &key)?;
    Ok(pair)
}

fn site_certificate(site: &str, issuer: &Issuer<'_, KeyPair>) -> Result<(Certificate, KeyPair), PkiError> {
    let key = KeyPair::generate()?;
    let leaf = leaf(site, vec![site.to_owned()], CLIENT_DAYS, ExtendedKeyUsagePurpose::ClientAuth)?;
    Ok((leaf.signed_by(&key, issuer)?, key))
}

/// Makes a new pair in the place of the collector's, or of a site's; the new certificate carries the names of the old one.
///
/// # Errors
/// There is no old pair, no CA, or a file cannot be read or written.
pub fn renew(dir: &Path, site: Option<&str>) -> Result<Pair, PkiError> {
    let issuer = issuer(dir)?;
    if let Some(site) = site {
        check_site_name(site).map_err(|error| PkiError(error.to_string()))?;
        let pair = Pair::of(&dir.join("sites"), site);
        read_certificate(&pair.cert)?;
        let (certificate, key) = site_certificate(site, &issuer)?;
        note_issued(dir, site, &certificate)?;
        pair.replace(&certificate, &key)?;
        return Ok(pair);
    }
    let pair = Pair::of(dir, "collector");
    let names = tls::host_names(&read_certificate(&pair.cert)?);
    let first = names.first().cloned().ok_or_else(|| PkiError(format!("{} carries no name", pair.cert.display())))?;
    let key = KeyPair::generate()?;
    let leaf = leaf(&first, names, SERVER_DAYS, ExtendedKeyUsagePurpose::ServerAuth)?;
    pair.replace(&leaf.signed_by(&key, &issuer)?, &key)?;
    Ok(pair)
}

/// Takes back every certificate that a site was ever given, and returns the list's file and how many are on it now.
///
/// # Errors
/// The site was given none, there is no CA, or a file cannot be read or written.
pub fn revoke(dir: &Path, site: &str) -> Result<(PathBuf, usize), PkiError> {
    check_site_name(site).map_err(|error| PkiError(error.to_string()))?;
    let issuer = issuer(dir)?;
    let mut revocations = read_crl(dir)?;
    let serials = issued(dir, site)?;
    if serials.is_empty() {
        return Err(PkiError(format!("{} has no certificate of the site {site}", dir.display())));
    }
    let now = OffsetDateTime::now_utc();
    serials.into_iter().for_each(|serial| {
        revocations.by_serial.entry(serial).or_insert(now);
    });
    write_crl(dir, &issuer, &revocations)?;
    Ok((dir.join("crl.pem"), revocations.by_serial.len()))
}

/// What `crl.pem` says.
#[derive(Default)]
struct Revocations {
    /// The list's own number (RFC 5280, 5.2.3).
    number: u64,
    by_serial: BTreeMap<Vec<u8>, OffsetDateTime>,
}

fn read_crl(dir: &Path) -> Result<Revocations, PkiError> {
    let path = dir.join("crl.pem");
    if !path.exists() {
        return Ok(Revocations::default());
    }
    let refuse =
        |why: String| PkiError(format!("{} cannot be read: {why}; move it away to begin anew", path.display()));
    let der = CertificateRevocationListDer::from_pem_file(&path).map_err(|error| refuse(error.to_string()))?;
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(|error| refuse(error.to_string()))?;
    let number = list.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::CRLNumber(number) => u64::try_from(number).ok(),
        _ => None,
    });
    let number = number.ok_or_else(|| refuse("it has no number".into()))?;
    let entry = |revoked: &x509_parser::revocation_list::RevokedCertificate<'_>| {
        (revoked.raw_serial().to_vec(), revoked.revocation_date.to_datetime())
    };
    Ok(Revocations { number, by_serial: list.iter_revoked_certificates().map(entry).collect() })
}

fn write_crl(dir: &Path, issuer: &Issuer<'_, KeyPair>, revocations: &Revocations) -> Result<(), PkiError> {
    let now = OffsetDateTime::now_utc();
    let revoked = |(serial, time): (&Vec<u8>, &OffsetDateTime)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: *time,
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: now - BACKDATED,
        next_update: now + Duration::days(CRL_DAYS),
        crl_number: SerialNumber::from(revocations.number + 1),
        issuing_distribution_point: None,
        revoked_certs: revocations.by_serial.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    replace(&dir.join("crl.pem"), &list.signed_by(issuer)?.pem()?)
}

/// Notes a certificate before it is written: one that is noted and was not written harms nobody.
fn note_issued(dir: &Path, site: &str, certificate: &Certificate) -> Result<(), PkiError> {
    let (path, serial) = (dir.join("issued.txt"), serial_of(certificate.der())?);
    let hex: String = serial.iter().map(|octet| format!("{octet:02x}")).collect();
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    let written = opened.and_then(|mut file| writeln!(file, "{site} {hex}").and_then(|()| file.sync_all()));
    written.map_err(|error| PkiError(format!("{} cannot be written: {error}", path.display())))
}

/// The serials of all certificates of a site: those noted, and those that are there (a PKI of an older version noted none).
fn issued(dir: &Path, site: &str) -> Result<Vec<Vec<u8>>, PkiError> {
    let path = dir.join("issued.txt");
    let noted = match path.exists() {
        false => String::new(),
        true => fs::read_to_string(&path)
            .map_err(|error| PkiError(format!("{} cannot be read: {error}", path.display())))?,
    };
    let mut serials = Vec::new();
    for line in noted.lines() {
        let malformed = || PkiError(format!("{}: \"{}\" is not NAME SERIAL", path.display(), line.escape_debug()));
        let (name, hex) = line.split_once(' ').ok_or_else(malformed)?;
        if name == site {
            serials.push(from_hex(hex).ok_or_else(malformed)?);
        }
    }
    let pair = Pair::of(&dir.join("sites"), site);
    for file in [old(&pair.cert), pair.cert].iter().filter(|file| file.exists()) {
        serials.push(serial_of(&read_certificate(file)?)?);
    }
    Ok(serials)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

fn serial_of(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, PkiError> {
    let parsed = X509Certificate::from_der(certificate);
    parsed
        .map(|(_, parsed)| parsed.raw_serial().to_vec())
        .map_err(|error| PkiError(format!("a certificate is malformed: {error}")))
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_file(path).map_err(|error| PkiError(format!("{} cannot be read: {error}", path.display())))
}

fn old(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".old");
    name.into()
}

fn remove(path: &Path) -> Result<(), PkiError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(PkiError(format!("{} cannot be removed: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Puts a whole new file in the place of one that may be there.
fn replace(path: &Path, pem: &str) -> Result<(), PkiError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    remove(&beside)?;
    write_new(&beside, pem)?;
    fs::rename(&beside, path).map_err(|error| PkiError(format!("{} cannot be replaced: {error}", path.display())))
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
    fn pairs_are_renewed_and_taken_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path().join("pki");
        let (_, collector) = init(&dir, "collector.example", &["192.0.2.1".into()]).expect("made");
        let (tokyo, osaka) = (issue(&dir, "tokyo").expect("made"), issue(&dir, "osaka").expect("made"));
        let read = |path: &Path| fs::read(path).expect("read");
        for (pair, site) in [(&collector, None), (&tokyo, Some("tokyo"))] {
            let before = (read(&pair.cert), read(&pair.key));
            renew(&dir, site).expect("renewed");
            assert!(read(&pair.cert) != before.0 && read(&pair.key) != before.1);
            assert_eq!((read(&old(&pair.cert)), read(&old(&pair.key))), before);
            for key in [pair.key.clone(), old(&pair.key)] {
                assert_eq!(fs::metadata(key).expect("there").permissions().mode() & 0o777, 0o600);
            }
        }
        let names = tls::host_names(&read_certificate(&collector.cert).expect("read"));
        assert_eq!(names, ["collector.example", "192.0.2.1"], "the names stay");

        let number = |dir| read_crl(dir).expect("read").number;
        assert_eq!((number(&dir), read_crl(&dir).expect("read").by_serial.len()), (1, 0));
        renew(&dir, Some("tokyo")).expect("renewed again");
        assert_eq!(revoke(&dir, "tokyo").expect("revoked").1, 3, "all that were ever given, the forgotten one too");
        assert_eq!(revoke(&dir, "osaka").expect("revoked").1, 4, "what was taken back stays so");
        assert_eq!(revoke(&dir, "osaka").expect("revoked").1, 4);
        assert_eq!(number(&dir), 4);
        fs::remove_file(dir.join("issued.txt")).expect("removed");
        assert!(
            serial_of(&read_certificate(&osaka.cert).expect("read"))
                .is_ok_and(|serial| issued(&dir, "osaka").expect("read") == [serial])
        );
        assert!(revoke(&dir, "nagoya").expect_err("unknown").to_string().contains("no certificate of the site nagoya"));
        assert!(renew(&dir, Some("nagoya")).expect_err("unknown").to_string().contains("nagoya.pem cannot be read"));
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
