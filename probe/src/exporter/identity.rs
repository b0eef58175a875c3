//! Who a probe is to its collectors, and what it was when it last ran: a small file in the spool directory.

#![forbid(unsafe_code)]

use super::spool::{at, segment_files};
use nagare_service::books::write_whole;
use nagare_wire::delivery::ProbeId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the file says that the probe is alive: how exactly a gap is known after it was killed.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const FILE: &str = "state.json";

/// A probe's identity and its present epoch.
#[derive(Debug)]
pub struct Identity {
    /// Random, kept with the spool; without one, of this run only.
    pub probe: ProbeId,
    /// This run: larger than those before.
    pub epoch: u64,
    /// Since when nothing was metered before this run, where that is known.
    pub gap: Option<Gap>,
    kept: Option<Kept>,
}

/// The time between two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Its length, milliseconds.
    pub ms: u64,
    /// The run before it was killed: the flows in its cache are lost.
    pub killed: bool,
}

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    written: Instant,
    failing: bool,
    /// Held as long as this process owns the spool.
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct State {
    probe: ProbeId,
    epoch: u64,
    /// When the run was alive last, milliseconds since 1970 UTC.
    alive_ms: u64,
    /// It ended in good order.
    ended: bool,
}

impl Identity {
    /// Of a probe without a spool: it is another one after each start.
    pub fn new(now_ms: u64) -> Identity {
        Identity { probe: random(), epoch: now_ms.max(1), gap: None, kept: None }
    }

    /// Of a probe with a spool in `dir`, which is made where it is missing and then owned by this process.
    ///
    /// # Errors
    /// The directory cannot be made or written, another process owns it, or its file is not a probe's.
    pub fn in_spool(dir: &Path, now_ms: u64) -> io::Result<Identity> {
        fs::create_dir_all(dir).map_err(|error| at(dir, error))?;
        let lock = take_lock(dir)?;
        let path = dir.join(FILE);
        let before: Option<State> = match fs::read(&path) {
            Ok(text) => Some(serde_json::from_slice(&text).map_err(|error| {
                at(&path, io::Error::other(format!("{error}: it is no probe's; move it away to begin anew")))
            })?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(at(&path, error)),
        };
        let (probe, last, gap) = match before {
            None => (random(), 0, None),
            Some(State { probe, epoch, alive_ms, ended }) => {
                (probe, epoch, Some(Gap { ms: now_ms.saturating_sub(alive_ms), killed: !ended }))
            }
        };
        // A clock that was set back must not give an epoch twice, nor a disk that was too full to note the last one.
        let epoch = now_ms.max(last.max(last_epoch(dir)?) + 1);
        let known = last > 0;
        let kept = Some(Kept { path, written: Instant::now(), failing: false, _lock: lock });
        let mut identity = Identity { probe, epoch, gap, kept };
        match identity.write(now_ms, false) {
            Err(error) if known && error.kind() == io::ErrorKind::StorageFull => {
                log::warn!("the spool: {error}; a gap before the next start may be told too long");
            }
            written => written?,
        }
        Ok(identity)
    }

    /// Says that the probe is alive, now and then.
    pub fn alive(&mut self, now: Instant, now_ms: u64) {
        let Some(kept) = &mut self.kept else { return };
        if now.duration_since(kept.written) < ALIVE_INTERVAL {
            return;
        }
        kept.written = now;
        let result = self.write(now_ms, false);
        let Some(kept) = &mut self.kept else { return };
        if let Err(error) = &result
            && !kept.failing
        {
            log::warn!("the spool: {error}");
        }
        kept.failing = result.is_err();
    }

    /// Says that the probe ended in good order.
    pub fn ended(&mut self, now_ms: u64) {
        if let Err(error) = self.write(now_ms, true) {
            log::warn!("the spool: {error}; the next start will take this run for killed");
        }
    }

    fn write(&mut self, alive_ms: u64, ended: bool) -> io::Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let state = State { probe: self.probe, epoch: self.epoch, alive_ms, ended };
        write_whole(&kept.path, &serde_json::to_vec(&state).map_err(io::Error::other)?)
    }
}

/// The last epoch of which a queue has segments.
fn last_epoch(dir: &Path) -> io::Result<u64> {
    let mut last = 0;
    for queue in fs::read_dir(dir).map_err(|error| at(dir, error))?.flatten().filter(|entry| entry.path().is_dir()) {
        last = segment_files(&queue.path())?.last().map_or(last, |(epoch, ..)| last.max(*epoch));
    }
    Ok(last)
}

/// Owns a spool directory until the file is dropped.
///
/// # Errors
/// Another process owns it, or it cannot be written.
pub fn take_lock(dir: &Path) -> io::Result<File> {
    let path = dir.join(".lock");
    let file = File::create(&path).map_err(|error| at(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(error)) => Err(at(&path, error)),
        Err(TryLockError::WouldBlock) => Err(io::Error::other(format!(
            "{} is in use by another probe: stop it, or give each its own --spool",
            dir.display()
        ))),
    }
}

fn random() -> ProbeId {
    let mut id = [0; 16];
    // Keys that the operating system made at random.
    for half in id.chunks_mut(8) {
        half.copy_from_slice(&ahash::RandomState::new().hash_one("probe").to_be_bytes());
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_never_comes_twice_and_a_gap_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Identity::in_spool(dir.path(), 10_000).unwrap();
        assert_eq!((first.epoch, first.gap), (10_000, None));
        assert!(Identity::in_spool(dir.path(), 10_000).unwrap_err().to_string().contains("in use by another probe"));
        first.alive(Instant::now() + ALIVE_INTERVAL, 12_000);
        let probe = first.probe;
        drop(first);
        // Killed; and the clock was set back.
        let mut second = Identity::in_spool(dir.path(), 9_000).unwrap();
        assert_eq!((second.probe, second.epoch, second.gap), (probe, 10_001, Some(Gap { ms: 0, killed: true })));
        second.ended(9_500);
        drop(second);
        let third = Identity::in_spool(dir.path(), 20_000).unwrap();
        assert_eq!((third.epoch, third.gap), (20_000, Some(Gap { ms: 10_500, killed: false })));
        assert_ne!(Identity::new(1).probe, Identity::new(1).probe);
    }
}
