//! Numbered conversations, written to a probe's standard input as a capture that goes on with the time.

#![forbid(unsafe_code)]

use super::check::Batch;
use crate::traffic::{numbered, pcap_header, pcap_packet};
use std::io::Write;
use std::process::ChildStdin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often conversations are written.
const STEP: Duration = Duration::from_millis(20);
/// A feed that was kept from writing for longer does not make up for it.
const BEHIND_MAX: Duration = Duration::from_secs(1);

/// A thread that writes so many new conversations a second to whichever probe it was given last.
pub struct Feed {
    shared: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
    began: Instant,
}

#[derive(Default)]
struct State {
    /// A probe that is to be written to from now on.
    next: Option<ChildStdin>,
    pause: bool,
    end: bool,
    /// The thread writes nothing until it is told to.
    quiet: bool,
    /// Probes written to so far.
    lives: usize,
    /// Packets written to the last of them.
    packets: u64,
    written: Vec<Batch>,
}

impl Feed {
    /// Begins with the number 0, once there is a probe.
    pub fn start(conversations_per_second: u32) -> Feed {
        let (shared, began) = (Arc::new(Mutex::new(State { quiet: true, ..State::default() })), Instant::now());
        let writer =
            Writer { shared: shared.clone(), began, rate: conversations_per_second, pipe: None, life: 0, number: 0 };
        Feed { shared, thread: Some(std::thread::spawn(move || writer.run())), began }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }

    /// Goes on with this probe, in a capture of its own.
    pub fn give(&self, input: ChildStdin) {
        let mut state = self.state();
        (state.next, state.pause, state.quiet) = (Some(input), false, false);
        state.lives += 1;
        state.packets = 0;
    }

    /// Writes no more until the next [`Feed::give`]; what is being written is completed, see [`Feed::is_quiet`].
    pub fn pause(&self) {
        self.state().pause = true;
    }

    /// Ends for good, and with it the probe's input.
    pub fn end(&self) {
        self.state().end = true;
    }

    /// Whether nothing is written now.
    pub fn is_quiet(&self) -> bool {
        self.state().quiet
    }

    /// Packets that were written to the probe that was given last.
    pub fn packets(&self) -> u64 {
        self.state().packets
    }

    /// The number of the probe that was given last, from 0 on.
    pub fn life(&self) -> usize {
        self.state().lives.saturating_sub(1)
    }

    /// Conversations written so far.
    pub fn written(&self) -> u64 {
        self.state().written.last().map_or(0, |batch| batch.numbers.end)
    }

    /// How long it has been running: the clock of [`Batch::at`].
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Ends, and gives what was written. The probe must have ended, or read on to the end.
    pub fn finish(mut self) -> Vec<Batch> {
        self.end();
        self.thread.take().map(JoinHandle::join);
        std::mem::take(&mut self.state().written)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end(); // The thread ends with its pipe, whose reader may live longer than we wait here.
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Writer {
    shared: Arc<Mutex<State>>,
    began: Instant,
    rate: u32,
    pipe: Option<ChildStdin>,
    /// Which probe the pipe leads to.
    life: usize,
    number: u64,
}

impl Writer {
    fn run(mut self) {
        let began_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let (mut due, mut owed) = (Instant::now(), 0.0);
        while self.obey() {
            owed += f64::from(self.rate) * STEP.as_secs_f64();
            let count = owed as u64;
            owed -= count as f64;
            if self.pipe.is_some() {
                self.write(count, began_ns + self.began.elapsed().as_nanos() as u64);
            }
            due += STEP;
            match due.checked_duration_since(Instant::now()) {
                Some(early) => std::thread::sleep(early),
                None if due.elapsed() > BEHIND_MAX => due = Instant::now(),
                None => {}
            }
        }
    }

    /// Takes a new probe, or leaves the old one alone; says whether to go on.
    fn obey(&mut self) -> bool {
        loop {
            let mut state = lock(&self.shared);
            state.quiet = state.end || state.pause;
            if state.end {
                return false;
            }
            if !state.pause {
                let next = state.next.take();
                let life = state.lives.saturating_sub(1);
                drop(state);
                if let Some(mut pipe) = next {
                    (self.pipe, self.life) = (pipe.write_all(&pcap_header()).is_ok().then_some(pipe), life);
                }
                return true;
            }
            drop(state);
            // The pipe stays open: the capture has not ended.
            std::thread::sleep(STEP);
        }
    }

    /// Writes the next conversations. Those that a broken pipe kept from the probe were written, too: the judge knows of its
    /// end.
    fn write(&mut self, count: u64, time_ns: u64) {
        let numbers = self.number..self.number + count;
        let (mut bytes, mut packets) = (Vec::new(), 0);
        for frame in numbers.clone().flat_map(numbered) {
            pcap_packet(&mut bytes, time_ns, &frame);
            packets += 1;
        }
        let outcome = self.pipe.as_mut().map(|pipe| pipe.write_all(&bytes));
        if let Some(Err(_)) = outcome {
            self.pipe = None;
        }
        self.number = numbers.end;
        let mut state = lock(&self.shared);
        if self.life + 1 == state.lives {
            state.packets += packets;
        }
        state.written.push(Batch { numbers, at: self.began.elapsed(), life: self.life });
    }
}
