//! Signals, systemd and the log.

use env_logger::{Builder, Env};
use log::Level;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A wish to stop, shared by every thread of a program. Once set it stays set.
#[derive(Clone, Default)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    set: bool,
    wakers: Vec<Box<dyn FnOnce() + Send>>,
}

impl Stop {
    /// Not set yet; tied to no signal.
    pub fn new() -> Stop {
        Stop::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What the lock guards is whole after every statement, so a panic elsewhere cannot have left it half-done.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the program is to stop.
    pub fn is_set(&self) -> bool {
        self.state().set
    }

    /// Asks the program to stop; wakes every waiter.
    pub fn set(&self) {
        let mut state = self.state();
        state.set = true;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.shared.changed.notify_all();
        for wake in wakers {
            wake();
        }
    }

    /// Calls `wake` once when the wish to stop comes (at once if it came already): how a thread that sleeps in a poll learns of it.
    pub fn on_set(&self, wake: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        if !state.set {
            return state.wakers.push(Box::new(wake));
        }
        drop(state);
        wake();
    }

    /// Sleeps for `timeout` or until the wish to stop comes; whether it came.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let result = self.shared.changed.wait_timeout_while(self.state(), timeout, |state| !state.set);
        result.unwrap_or_else(PoisonError::into_inner).0.set
    }
}

/// A [`Stop`] that SIGINT and SIGTERM set. The second signal ends the program at once, with 128 and the signal as its status.
///
/// # Errors
/// The handlers cannot be put in place.
pub fn stop_on_signals() -> io::Result<Stop> {
    let stop = Stop::new();
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let seen = stop.clone();
    let watch = move || {
        for signal in signals.forever() {
            if seen.is_set() {
                log::warn!("a second signal: ending at once");
                std::process::exit(128 + signal);
            }
            seen.set();
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch)?;
    Ok(stop)
}

/// SIGHUP as a wish to read files again; without this it would end the program.
#[derive(Clone, Default)]
pub struct Hangup(Arc<AtomicBool>);

impl Hangup {
    /// Whether the signal came since the last call.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// A [`Hangup`] that SIGHUP sets.
///
/// # Errors
/// The handler cannot be put in place.
pub fn hangup_on_signal() -> io::Result<Hangup> {
    let hangup = Hangup::default();
    signal_hook::flag::register(SIGHUP, hangup.0.clone())?;
    Ok(hangup)
}

/// Tells systemd that the service is up, with a line for `systemctl status`; nothing outside systemd.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells systemd's watchdog that the service is alive; nothing outside systemd.
pub fn watchdog_tick() {
    notify(&[NotifyState::Watchdog]);
}

/// Tells systemd that the service is on its way out; nothing outside systemd.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(state: &[NotifyState<'_>]) {
    // Without NOTIFY_SOCKET this does nothing; an init system that does not listen is no reason to fail.
    if let Err(error) = sd_notify::notify(state) {
        log::debug!("systemd was not told: {error}");
    }
}

/// Starts the log on standard error: level `info`, or what `RUST_LOG` says. In the journal lines carry a priority in place of a
/// time stamp, since the journal has its own.
pub fn init_log() {
    let mut builder = Builder::from_env(Env::default().default_filter_or("info,rustls=error"));
    if is_journal() {
        builder.format(|out, record| writeln!(out, "<{}>{}", priority(record.level()), record.args()));
    } else {
        builder.format_target(false).format_timestamp_millis();
    }
    // A log that stands already (in a test) stays.
    builder.try_init().ok();
}

/// Syslog's priority, which systemd reads from the start of a line.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Whether standard error is the journal: systemd names the stream's device and inode.
fn is_journal() -> bool {
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|file| journal == format!("{}:{}", file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn stop_wakes_waiters_and_wakers() {
        let stop = Stop::new();
        assert!(!stop.wait_timeout(Duration::from_millis(1)));
        let woken = Arc::new(AtomicU32::new(0));
        let count = || {
            let woken = woken.clone();
            move || {
                woken.fetch_add(1, Ordering::SeqCst);
            }
        };
        stop.on_set(count());
        let waiter = std::thread::spawn({
            let stop = stop.clone();
            move || stop.wait_timeout(Duration::from_secs(60))
        });
        stop.set();
        stop.set();
        stop.on_set(count());
        assert!(waiter.join().expect("no panic") && stop.is_set());
        assert_eq!(woken.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn signals_set_stop() {
        let stop = stop_on_signals().expect("handlers");
        signal_hook::low_level::raise(SIGTERM).expect("raised");
        assert!(stop.wait_timeout(Duration::from_secs(10)));
        let hangup = hangup_on_signal().expect("a handler");
        assert!(!hangup.take());
        signal_hook::low_level::raise(SIGHUP).expect("raised");
        assert!(hangup.take() && !hangup.take());
    }
}
