//! A veth pair with a load that is made within the kernel: what each probe meters of it, and up to which rate nothing is lost.

use crate::lab::{Lab, TAP, WIRE, books};
use crate::peers::{Done, Kind, Probe};
use crate::traffic::smallest_frame;
use nagare_ebpf::Generator;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Flows of the load.
pub const FLOWS: u32 = 10_000;
/// Which frames the load is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// 64 octets, with the frame check sequence.
    Smallest,
    /// 64, 594 and 1518 octets, seven, four and one of twelve.
    Imix,
    /// 1518 octets.
    Longest,
}

impl Mix {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Mix::Smallest => "64-byte frames",
            Mix::Imix => "IMIX",
            Mix::Longest => "1518-byte frames",
        }
    }

    /// Octets of twelve frames, without the frame check sequence.
    fn lengths(self) -> [u16; 12] {
        const SHORT: u16 = 60;
        const MIDDLE: u16 = 590;
        const LONG: u16 = 1514;
        match self {
            Mix::Smallest => [SHORT; 12],
            Mix::Imix => [SHORT, MIDDLE, SHORT, SHORT, MIDDLE, SHORT, LONG, SHORT, MIDDLE, SHORT, SHORT, MIDDLE],
            Mix::Longest => [LONG; 12],
        }
    }

    /// Bits on the wire of a million frames a second, in Gbit/s: with preamble, gap and frame check sequence.
    pub fn gbps_of_mpps(self) -> f64 {
        self.lengths().into_iter().map(|octets| f64::from(octets + 24) * 8.0 / 12.0).sum::<f64>() / 1000.0
    }
}

/// Sends for so long, at a rate in packets a second or as fast as it goes, from a core; the packets that were made, and the seconds.
fn send(lab: &Lab, mix: Mix, rate: Option<f64>, lasting: Duration, core: usize) -> (u64, f64) {
    lab.send(|| {
        core_affinity::set_for_current(core_affinity::CoreId { id: core });
        let index = nix::net::if_::if_nametoindex(WIRE).expect("the laboratory has this interface");
        let lengths = mix.lengths();
        let mut frame = smallest_frame();
        frame.resize(usize::from(*lengths.iter().max().expect("there are twelve")), 0);
        let generator = Generator::with_lengths(&frame, lengths, FLOWS, index, rate);
        let mut generator = generator.expect("root may load the generator");
        // A run begins and ends with milliseconds of the kernel's own.
        let burst = rate.map_or(1 << 19, |rate| (rate / 4.0) as u64).max(1000);
        let (began, mut made) = (Instant::now(), 0);
        while began.elapsed() < lasting {
            made += generator.run(burst).expect("the kernel makes frames");
        }
        (made, began.elapsed().as_secs_f64())
    })
}

/// What a probe made of a load.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// Packets that were sent, and for how many seconds.
    pub made: u64,
    /// Seconds.
    pub seconds: f64,
    /// What the probe did.
    pub done: Done,
}

impl Trial {
    /// Million packets a second that were metered.
    pub fn mpps(&self) -> f64 {
        self.done.packets as f64 / self.seconds / 1e6
    }

    /// Million packets a second that were sent.
    pub fn offered(&self) -> f64 {
        self.made as f64 / self.seconds / 1e6
    }
}

impl Trial {
    /// Whether nothing was lost: of Nagare no packet, of a peer no more than one in a thousand, as some never count their last ones.
    fn is_lossless(&self, kind: Kind) -> bool {
        let lost = self.made.saturating_sub(self.done.packets);
        if kind.is_peer() { lost <= self.made / 1000 } else { lost == 0 }
    }
}

/// Sends a load to a probe that is started for it.
pub fn trial(lab: &Lab, probe: &Probe, mix: Mix, rate: Option<f64>, lasting: Duration, scratch: &Path) -> Trial {
    let running = probe.start(lab, TAP, scratch);
    let (made, seconds) = send(lab, mix, rate, lasting, 0);
    Trial { made, seconds, done: running.stop() }
}

/// What is found of a probe and a mix.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which probe.
    pub kind: Kind,
    /// Which frames.
    pub mix: Mix,
    /// As fast as frames can be made.
    pub flat_out: Trial,
    /// The highest rate at which nothing was lost (of a peer: one in a thousand at most); none where more was at every rate.
    pub lossless: Option<Trial>,
}

/// Finds the highest rate without loss by halving, beginning at what was metered flat out.
pub fn find(lab: &Lab, probe: &Probe, mix: Mix, steps: u32, lasting: Duration, scratch: &Path) -> Found {
    let flat_out = trial(lab, probe, mix, None, lasting, scratch);
    if flat_out.is_lossless(probe.kind) {
        return Found { kind: probe.kind, mix, flat_out, lossless: Some(flat_out) };
    }
    let (mut low, mut high) = (0.0, flat_out.mpps() * 1e6);
    let mut lossless: Option<Trial> = None;
    for step in 0..steps {
        let rate = if step == 0 { high * 0.9 } else { (low + high) / 2.0 };
        let tried = trial(lab, probe, mix, Some(rate), lasting, scratch);
        if tried.is_lossless(probe.kind) {
            low = rate;
            lossless = lossless.filter(|best| best.mpps() > tried.mpps()).or(Some(tried));
        } else {
            high = rate;
        }
    }
    Found { kind: probe.kind, mix, flat_out, lossless }
}

/// Loads from both cores at once: the probe has what they leave. Its books, and the packets that were made.
pub fn overload(lab: &Lab, probe: &Probe, lasting: Duration, scratch: &Path) -> (Value, u64) {
    let running = probe.start(lab, TAP, scratch);
    let made = std::thread::scope(|scope| {
        let threads = [0, 1].map(|core| scope.spawn(move || send(lab, Mix::Smallest, None, lasting, core).0));
        threads.into_iter().map(|thread| thread.join().expect("a load does not panic")).sum::<u64>()
    });
    running.stop();
    (books(&scratch.join("books.json")), made)
}

/// Of the interface's and the workers' equations the terms that are not 0.
pub fn terms(books: &Value) -> Value {
    let mut found = serde_json::Map::new();
    for equation in books["equations"].as_array().into_iter().flatten() {
        for (name, value) in equation["terms"].as_object().into_iter().flatten() {
            if matches!(equation["name"].as_str(), Some("interface" | "packets"))
                && value.as_u64() > Some(0)
                && name != "steered"
            {
                found.insert(name.clone(), value.clone());
            }
        }
    }
    json!(found)
}
