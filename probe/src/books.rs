//! The probe's books: equations over the counters of capture, workers and exporter.
//!
//! ```text
//! packets on the wire = metered + each named drop + each named ignore      (per worker; what was not steered apart)
//! packets metered     = in flow records + in the cache                     (per worker, at the end)
//! flows ended         = delivered + spooled + in flight + each named drop  (per queue; where flows are balanced: flows taken)
//! flows recovered     = delivered + spooled + each named drop              (per spool: what earlier runs had left)
//! ```
//!
//! Counters are read while the workers go on: what is on its way is the difference, which must lie between nothing and
//! what the rings can hold. At the end nothing may be on its way, and the difference must be nothing.

use crate::counters::{ExportCounters, MeterCounters, Tally};
use nagare_service::books::{Books, Equation};
use nagare_service::tls::Client;
use nagare_wire::ipfix::mapping::{Book, Process};
use nagare_wire::packet::Ignore;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the capture side counts before the workers.
#[derive(Clone, Debug, Default)]
pub struct CaptureBooks {
    /// Packets that came in.
    pub seen: u64,
    /// Of those, the ones given to no worker, by name.
    pub unsteered: Vec<(String, u64)>,
    /// For each worker: packets steered to it, and those of them that were lost on the way, by name.
    pub workers: Vec<(u64, Vec<(String, u64)>)>,
    /// Figures that belong to no equation.
    pub figures: Vec<(String, u64)>,
}

/// Reads the counters of a capture.
pub type ReadCapture = Box<dyn Fn() -> CaptureBooks + Send + Sync>;

/// All counters of a probe.
pub struct ProbeBooks {
    /// The capture side's counters, of each interface, or of the file, by its name.
    pub captures: Vec<(String, ReadCapture)>,
    /// Packets that may be on their way to one worker.
    pub frames_max: u64,
    /// Flow records that may be on their way.
    pub records_max: u64,
    /// Of each worker.
    pub meters: Vec<Arc<MeterCounters>>,
    /// Of the exporter: each queue with its name.
    pub exports: Vec<(String, Arc<ExportCounters>)>,
    /// Each flow goes to one of the queues, not to all.
    pub balanced: bool,
    /// Memory reserved, by name, bytes.
    pub memory: Vec<(String, u64)>,
    /// The probe's certificates, whose days are counted.
    pub certificates: Option<Arc<Client>>,
}

/// The moment at which books are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// While packets come in.
    Running,
    /// After the workers have ended, while the exporter still sends.
    Draining,
    /// After everything ended.
    Ended,
}

impl ProbeBooks {
    /// Of an exporter that nothing meters for.
    pub fn of_exports(exports: Vec<(String, Arc<ExportCounters>)>) -> ProbeBooks {
        ProbeBooks {
            captures: Vec::new(),
            frames_max: 0,
            records_max: u64::MAX,
            meters: Vec::new(),
            exports,
            balanced: false,
            memory: Vec::new(),
            certificates: None,
        }
    }

    /// The equations and figures at this moment.
    pub fn books(&self, when: When) -> Books {
        let mut equations = self.packets(when);
        if when != When::Running {
            equations.extend(self.metered());
        }
        equations.extend(self.all_flows(when));
        Books { program: "nagare-probe", equations, figures: self.figures() }
    }

    /// The books as options records carry them to a queue's collector: packets per Metering Process (worker 0 is process 1; process
    /// 0 stands for what was given to no worker), flows of the queue's Exporting Process (the first queue's is 1).
    pub fn terms(&self, queue: usize, when: When) -> Vec<Book> {
        let mut books = Vec::new();
        let mut unsteered = BTreeMap::<String, u64>::new();
        for (index, equation) in self.packets(when).into_iter().enumerate() {
            match index.checked_sub(self.captures.len()) {
                Some(worker) => push(&mut books, Process::Metering, worker as u32 + 1, equation.total, equation.terms),
                None => {
                    for (name, value) in equation.terms.into_iter().filter(|(name, _)| is_named(name)) {
                        *unsteered.entry(name).or_default() += value;
                    }
                }
            }
        }
        let sum = unsteered.values().sum();
        if sum > 0 {
            push(&mut books, Process::Metering, 0, ("wire".into(), sum), unsteered.into_iter().collect());
        }
        let flows = self.flows(queue, when);
        push(&mut books, Process::Exporting, queue as u32 + 1, ("ended".into(), flows.total.1), flows.terms);
        books
    }

    /// Flows, packets and octets that a queue did not send, for notSent*TotalCount (RFC 7011, 4.3).
    pub fn not_sent(&self, queue: usize) -> Tally {
        let rings = self.meters.iter().map(|meter| meter.ring_full.get());
        let drops = self.exports[queue].1.drops().into_iter().map(|(_, tally)| tally.get());
        rings.chain(drops).fold(Tally::default(), |mut sum, tally| {
            sum += tally;
            sum
        })
    }

    /// The names of all interfaces, as a label.
    pub fn label(&self) -> String {
        self.captures.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",")
    }

    /// One equation for each interface, then one a worker. Downstream counters are read first.
    fn packets(&self, when: When) -> Vec<Equation> {
        let terms: Vec<Vec<(String, u64)>> = self.meters.iter().map(|meter| meter_terms(meter)).collect();
        let mut workers: Vec<_> = terms.into_iter().map(|terms| (0, terms)).collect();
        let mut equations = Vec::new();
        for (name, read) in &self.captures {
            let capture = read();
            let steered = capture.workers.iter().map(|(steered, _)| steered).sum();
            let mut terms = vec![("steered".to_string(), steered)];
            terms.extend(capture.unsteered);
            let labels = vec![("interface", name.clone())];
            equations.push(Equation { name: "interface", labels, total: ("wire".into(), capture.seen), terms });
            for ((wire, terms), (steered, drops)) in workers.iter_mut().zip(capture.workers) {
                *wire += steered;
                drops.into_iter().for_each(|drop| add(terms, drop));
            }
        }
        for (index, (wire, terms)) in workers.into_iter().enumerate() {
            let labels = vec![("interface", self.label()), ("worker", index.to_string())];
            equations.push(Equation { name: "packets", labels, total: ("wire".into(), wire), terms });
        }
        equations.iter_mut().for_each(|equation| in_flight(equation, self.frames_max, when != When::Running));
        equations
    }

    fn metered(&self) -> impl Iterator<Item = Equation> + '_ {
        self.meters.iter().enumerate().map(|(index, meter)| Equation {
            name: "metering",
            labels: vec![("interface", self.label()), ("worker", index.to_string())],
            total: ("metered".into(), meter.metered.get()),
            terms: vec![
                ("in_records".into(), meter.ended.get().packets),
                ("in_cache".into(), meter.cached_packets.get()),
            ],
        })
    }

    fn all_flows(&self, when: When) -> Vec<Equation> {
        let mut equations: Vec<_> = (0..self.exports.len()).map(|queue| self.flows(queue, when)).collect();
        if self.balanced {
            let taken = equations.iter().map(|equation| equation.total.1).sum();
            let terms = vec![("taken".to_string(), taken), ("drop.ring_full".to_string(), self.ring_full())];
            let total = ("ended".to_string(), self.ended());
            let mut equation = Equation { name: "balance", labels: Vec::new(), total, terms };
            in_flight(&mut equation, self.records_max, when == When::Ended);
            equations.insert(0, equation);
        }
        equations.extend((0..self.exports.len()).filter_map(|queue| self.recovered(queue)));
        equations
    }

    fn ended(&self) -> u64 {
        self.meters.iter().map(|meter| meter.ended.get().flows).sum()
    }

    fn ring_full(&self) -> u64 {
        self.meters.iter().map(|meter| meter.ring_full.get().flows).sum()
    }

    /// The queue's name, where there are several.
    fn queue_labels(&self, queue: usize) -> Vec<(&'static str, String)> {
        match self.exports.len() {
            1 => Vec::new(),
            _ => vec![("collector", self.exports[queue].0.clone())],
        }
    }

    fn flows(&self, queue: usize, when: When) -> Equation {
        let export = &self.exports[queue].1;
        let mut terms = vec![("delivered".to_string(), export.delivered.get().flows)];
        terms.extend(export.drops().map(|(name, tally)| (name.to_string(), tally.get().flows)));
        // What was in the spool may be delivered meanwhile, so this is read after that.
        terms.insert(1, ("spooled".to_string(), export.spooled.get().flows));
        let total = match self.balanced {
            true => ("taken", export.taken.get().flows),
            false => {
                terms.push(("drop.ring_full".into(), self.ring_full()));
                ("ended", self.ended())
            }
        };
        let total = (total.0.to_string(), total.1);
        let mut equation = Equation { name: "flows", labels: self.queue_labels(queue), total, terms };
        in_flight(&mut equation, self.records_max, when == When::Ended);
        equation
    }

    /// What earlier runs had left in a queue's spool.
    fn recovered(&self, queue: usize) -> Option<Equation> {
        let recovered = &self.exports[queue].1.recovered;
        let total = recovered.found.get().flows;
        let terms = [
            ("delivered", &recovered.delivered),
            ("drop.spool_full", &recovered.full),
            ("drop.spool_damaged", &recovered.damaged),
            ("spooled", &recovered.spooled),
        ];
        let terms = terms.map(|(name, tally)| (name.to_string(), tally.get().flows)).into();
        let mut equation =
            Equation { name: "spool", labels: self.queue_labels(queue), total: ("recovered".into(), total), terms };
        // Two counters change one after the other.
        in_flight(&mut equation, total, false);
        (total > 0).then_some(equation)
    }

    fn figures(&self) -> Vec<(String, u64)> {
        let sum = |value: fn(&MeterCounters) -> u64| self.meters.iter().map(|meter| value(meter)).sum::<u64>();
        let mut figures = vec![
            ("metered_packets".to_string(), sum(|m| m.metered.get())),
            ("metered_octets".into(), sum(|m| m.octets.get())),
            ("flows_live".into(), sum(|m| m.live.get())),
        ];
        let reasons = ["unknown", "idle_timeout", "active_timeout", "end_of_flow", "forced_end", "lack_of_resources"];
        for (index, reason) in reasons.into_iter().enumerate().skip(1) {
            let count = self.meters.iter().map(|meter| meter.reasons[index].get()).sum();
            figures.push((format!("flows_ended_by_{reason}"), count));
        }
        for (name, export) in &self.exports {
            let of = |figure: &str| if self.exports.len() == 1 { figure.into() } else { format!("{figure}.{name}") };
            let (delivered, spooled) = (export.delivered.get(), export.spooled.get());
            let counters = [
                ("delivered_packets", delivered.packets),
                ("delivered_octets", delivered.octets),
                ("flows_buffered", export.held.get()),
                ("flows_spooled", spooled.flows + export.recovered.spooled.get().flows),
                ("spool_octets", export.spool_octets.get()),
                ("spool_messages", export.spool_messages.get()),
                ("spool_write_errors", export.spool_write_errors.get()),
                ("spool_torn_octets", export.spool_torn_octets.get()),
                ("delivery_lag_ms", export.lag_ms.get()),
                ("sessions", export.sessions.get()),
                ("ipfix_messages", export.messages.get()),
                ("ipfix_octets", export.octets.get()),
                ("ipfix_records", export.records.get()),
            ];
            figures.extend(counters.map(|(figure, value)| (of(figure), value)));
        }
        figures.extend(
            self.memory.iter().map(|(name, bytes)| (format!("memory_bytes.{}", name.replace(' ', "_")), *bytes)),
        );
        figures.extend(self.certificates.iter().flat_map(|certificates| certificates.figures()));
        for (name, read) in &self.captures {
            let of = |figure: String| if self.captures.len() == 1 { figure } else { format!("{figure}.{name}") };
            figures.extend(read().figures.into_iter().map(|(figure, value)| (of(figure), value)));
        }
        figures
    }
}

fn is_named(term: &str) -> bool {
    term.starts_with("drop.") || term.starts_with("ignore.")
}

fn meter_terms(meter: &MeterCounters) -> Vec<(String, u64)> {
    let mut terms = vec![("metered".to_string(), meter.metered.get())];
    let ignored =
        Ignore::ALL.iter().map(|ignore| (format!("ignore.{}", ignore.name()), meter.ignored[*ignore as usize].get()));
    terms.extend(ignored);
    terms.push(("ignore.filtered".into(), meter.filtered.get()));
    terms.push(("ignore.not_sampled".into(), meter.not_sampled.get()));
    terms
}

/// Adds to a term; a new one goes to the end.
fn add(terms: &mut Vec<(String, u64)>, (name, value): (String, u64)) {
    match terms.iter_mut().find(|(known, _)| *known == name) {
        Some((_, sum)) => *sum += value,
        None => terms.push((name, value)),
    }
}

/// Adds what is on its way: the difference while there may be one, nothing at the end.
fn in_flight(equation: &mut Equation, most: u64, ended: bool) {
    let difference = u128::from(equation.total.1).saturating_sub(equation.sum()).min(u128::from(most));
    equation.terms.push(("in_flight".into(), if ended { 0 } else { difference as u64 }));
}

/// Books as records. Drops and ignores that were never counted are left out; what is on its way is always told, as it may
/// have been more before.
fn push(books: &mut Vec<Book>, process: Process, process_id: u32, total: (String, u64), terms: Vec<(String, u64)>) {
    let told = terms.into_iter().filter(|(name, value)| *value > 0 || !is_named(name));
    books.extend(std::iter::once(total).chain(told).map(|(name, value)| Book { process, process_id, name, value }));
}
