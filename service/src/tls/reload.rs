//! Certificates, CAs and revocation lists that are read again when their files change or on SIGHUP. Live sessions go on; new ones
//! begin with what was read last. A reload that fails changes nothing.

use super::kit::{ClientKit, Kit, ServerKit};
use super::{ClientTls, ServerTls, TlsError, explain};
use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, ClientConfig, Error, ServerConfig};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often files are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// From so many days before its end on, a certificate of our own is warned about, once a day.
pub const WARN_DAYS: i64 = 30;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const DAY_S: i64 = 24 * 60 * 60;

/// A probe's side: its own pair, whom it trusts.
pub type Client = Reloading<ClientKit>;
/// A collector's side: its own pair, whom it admits, the sessions that may be resumed.
pub type Server = Reloading<ServerKit>;

/// By what a change of a file is seen: device, inode, size, and when it was changed (seconds, nanoseconds). None where it is not there.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// A kit, and the state of the files that it was read from.
pub struct Reloading<K: Kit> {
    options: K::Options,
    files: Vec<PathBuf>,
    state: Mutex<State<K>>,
    reloads: AtomicU64,
    failures: AtomicU64,
    not_resumed: Arc<AtomicU64>,
}

struct State<K> {
    kit: Arc<K>,
    /// What the files were like when they were last read, well or not.
    read: Vec<Stamp>,
    /// What they were like when they were last looked at, where that is different: they may still be being written.
    changing: Option<Vec<Stamp>>,
    looked: Instant,
    warned: Instant,
}

impl<K: Kit> Reloading<K> {
    /// Reads the files, and warns of an own certificate whose end is near.
    ///
    /// # Errors
    /// A file cannot be read or holds nothing usable.
    pub fn new(options: K::Options) -> Result<Reloading<K>, TlsError> {
        let files = K::files(&options);
        let read = stamps(&files);
        let kit = Arc::new(K::load(&options)?);
        let now = Instant::now();
        let state = Mutex::new(State { kit, read, changing: None, looked: now, warned: now });
        let (reloads, failures, not_resumed) = (AtomicU64::new(0), AtomicU64::new(0), Arc::default());
        let new = Reloading { options, files, state, reloads, failures, not_resumed };
        new.warn_of_expiry(&new.state());
        Ok(new)
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        // A reload that panicked has replaced the kit or not; either is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called every second or so: reads the files again when they have changed and are at rest, or when `asked` (SIGHUP), and
    /// warns once a day of a certificate whose end is near. Whether there is something new.
    pub fn tick(&self, now: Instant, asked: bool) -> bool {
        let mut state = self.state();
        if now.saturating_duration_since(state.warned) >= DAY {
            state.warned = now;
            self.warn_of_expiry(&state);
        }
        if asked {
            return self.reload(&mut state);
        }
        if now.saturating_duration_since(state.looked) < LOOK_INTERVAL {
            return false;
        }
        state.looked = now;
        let found = stamps(&self.files);
        let at_rest = state.changing.as_ref() == Some(&found);
        match (found == state.read, at_rest) {
            (true, _) => state.changing = None,
            (false, false) => state.changing = Some(found),
            (false, true) => return self.reload(&mut state),
        }
        false
    }

    /// Reads the files again. What fails leaves everything as it was, and is told.
    fn reload(&self, state: &mut State<K>) -> bool {
        state.changing = None;
        // Before they are read: what changes while they are is a further change.
        state.read = stamps(&self.files);
        match K::load(&self.options) {
            Ok(kit) => {
                state.kit = Arc::new(kit);
                self.reloads.fetch_add(1, Ordering::Relaxed);
                let names: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
                log::info!("TLS: read again: {}; new sessions use it", names.join(", "));
                self.warn_of_expiry(state);
                true
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                log::warn!("TLS: {error}; what was read before stays in use");
                false
            }
        }
    }

    fn warn_of_expiry(&self, state: &State<K>) {
        if let Some((file, expires)) = state.kit.expires(&self.options)
            && let Some(warning) = expiry_warning(file, expires, now_s())
        {
            log::warn!("{warning}");
        }
    }

    /// For the books: days to the end of the own certificate (0 when it is expired), reloads, and reloads that failed.
    pub fn figures(&self) -> Vec<(String, u64)> {
        let days = self.state().kit.expires(&self.options).map(|(_, expires)| days_left(expires, now_s()));
        let days = days.map(|days| ("tls_certificate_days_left", u64::try_from(days).unwrap_or(0)));
        let counts = [
            ("tls_reloads", self.reloads.load(Ordering::Relaxed)),
            ("tls_reload_failures", self.failures.load(Ordering::Relaxed)),
            ("tls_resumptions_refused", self.not_resumed.load(Ordering::Relaxed)),
        ];
        days.into_iter().chain(counts).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl Reloading<ClientKit> {
    /// How refusals are to be worded.
    pub fn options(&self) -> &ClientTls {
        &self.options
    }

    /// The configuration for one connection. Files that have changed are read first: attempts are rare.
    pub fn config(&self) -> Arc<ClientConfig> {
        let mut state = self.state();
        if stamps(&self.files) != state.read {
            self.reload(&mut state);
        }
        state.kit.config()
    }
}

impl Reloading<ServerKit> {
    /// The configuration for one connection; it may resume a session.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let kit = self.state().kit.clone();
        kit.for_connection(self.not_resumed.clone())
    }

    /// Why the session of a probe with this certificate chain must end: it has been revoked since. In words.
    pub fn revoked(&self, chain: &[CertificateDer<'_>], peer: &str) -> Option<String> {
        let kit = self.state().kit.clone();
        match kit.check(chain) {
            Err(error @ Error::InvalidCertificate(CertificateError::Revoked)) => {
                Some(explain(&error, &ServerTls::side(&self.options), peer))
            }
            _ => None,
        }
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let found = std::fs::metadata(file).ok()?;
        Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    };
    files.iter().map(stamp).collect()
}

fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Whole days to the end; negative after it.
fn days_left(expires: i64, now: i64) -> i64 {
    expires.saturating_sub(now).div_euclid(DAY_S)
}

/// What is said of an own certificate, where there is something to say.
fn expiry_warning(file: &Path, expires: i64, now: i64) -> Option<String> {
    let (file, date, days) = (file.display(), crate::units::date(expires), days_left(expires, now));
    let renew = "`nagare-collector pki renew` makes a new pair, which is taken without a restart";
    match days {
        ..0 => {
            Some(format!("the certificate {file} EXPIRED at {date}: every peer that verifies it refuses it; {renew}"))
        }
        0..=WARN_DAYS => Some(format!("the certificate {file} expires in {days} days, at {date}; {renew}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_in_time() {
        let told = |days: i64| expiry_warning(Path::new("own.pem"), 1_800_000_000, 1_800_000_000 - days * DAY_S - 1);
        assert_eq!(told(WARN_DAYS + 1), None);
        assert!(told(WARN_DAYS).is_some_and(|text| text.contains("own.pem expires in 30 days, at 2027-01-15")));
        assert!(told(0).is_some_and(|text| text.contains("in 0 days")));
        assert!(told(-1).is_some_and(|text| text.contains("EXPIRED at 2027-01-15 08:00:00 UTC")));
    }
}
