//! What a report holds, before it becomes a page or files. All sizes are IP octets, all times milliseconds since 1970 UTC.

#![forbid(unsafe_code)]

use jiff::tz::TimeZone;

use super::buckets::Samples;
use super::network::Network;

/// A stretch of time: from `from_ms` up to, not including, `to_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// The first millisecond.
    pub from_ms: i64,
    /// The millisecond after the last.
    pub to_ms: i64,
}

impl Period {
    /// The length in milliseconds.
    pub fn length_ms(&self) -> i64 {
        self.to_ms.saturating_sub(self.from_ms)
    }

    /// The period of equal length that ends where this one begins.
    pub fn before(&self) -> Period {
        Period { from_ms: self.from_ms.saturating_sub(self.length_ms()), to_ms: self.from_ms }
    }

    /// Whether a time lies inside.
    pub fn contains(&self, time_ms: i64) -> bool {
        (self.from_ms..self.to_ms).contains(&time_ms)
    }
}

/// Everything that a report shows.
#[derive(Clone, Debug)]
pub struct ReportData {
    /// The site's name.
    pub site: String,
    /// The customer's display name.
    pub customer: Option<String>,
    /// The period: a flow counts where it began, its octets where they fall.
    pub period: Period,
    /// The time zone of every time shown.
    pub tz: TimeZone,
    /// When the report was made.
    pub made_ms: i64,
    /// The number of rows that a table holds at most.
    pub top: usize,
    /// The site's own networks.
    pub local: Vec<Network>,
    /// Sums over the period.
    pub totals: Totals,
    /// Sums over the period of equal length before it.
    pub before: Totals,
    /// Octets over time.
    pub samples: Samples,
    /// Hosts of the site. In and out: what the host received and sent.
    pub local_hosts: Vec<Ranked<String>>,
    /// Hosts outside. In and out: what came from the host and what went to it.
    pub remote_hosts: Vec<Ranked<String>>,
    /// Pairs of hosts, the site's own first. In and out: what the first host received and sent.
    pub conversations: Vec<Ranked<(String, String)>>,
    /// IP protocols.
    pub protocols: Vec<Ranked<u8>>,
    /// IP protocol and the responder's port.
    pub ports: Vec<Ranked<(u8, u16)>>,
    /// VLANs; empty where no frame carried a tag. 0 is untagged.
    pub vlans: Vec<Ranked<u16>>,
    /// Why flow records were exported (RFC 5102 flowEndReason).
    pub end_reasons: Vec<Ranked<u8>>,
    /// How far the figures can be trusted.
    pub quality: Quality,
}

/// Sums over a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Flow records that began in it.
    pub flows: u64,
    /// Packets, both directions.
    pub packets: u64,
    /// Octets by [`Direction`](super::buckets::Direction): in, out, internal, transit.
    pub octets: [u64; 4],
}

impl Totals {
    /// Octets of all directions.
    pub fn all(&self) -> u64 {
        self.octets.iter().fold(0, |sum, octets| sum.saturating_add(*octets))
    }
}

/// One row of a table that is ordered by octets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranked<Key> {
    /// What the row is about.
    pub key: Key,
    /// Octets inbound.
    pub octets_in: u64,
    /// Octets outbound.
    pub octets_out: u64,
    /// All octets; more than in and out together where traffic stayed on the site or passed through.
    pub octets: u64,
    /// Packets.
    pub packets: u64,
    /// Flow records that began in the period.
    pub flows: u64,
}

/// How far the figures can be trusted.
#[derive(Clone, Debug, Default)]
pub struct Quality {
    /// The times of arrival that sessions and books are taken from: the report's period, or, where its flows came later (a
    /// capture that was replayed), the time when they came.
    pub window: Option<Period>,
    /// Whether the flows came at another time than the period's.
    pub replayed: bool,
    /// Exporters, by name.
    pub exporters: Vec<Exporter>,
    /// Exporters that are not listed, beyond the bound.
    pub exporters_omitted: u64,
    /// Transport Sessions, the latest first.
    pub sessions: Vec<Session>,
    /// Sums over all Transport Sessions, those not listed included.
    pub session_sums: SessionSums,
    /// The books of each Metering and Exporting Process.
    pub processes: Vec<Process>,
    /// What Exporting Processes say of themselves.
    pub statistics: Vec<Statistics>,
    /// When probes did not meter, in the order of time.
    pub interruptions: Vec<Interruption>,
}

impl Quality {
    /// The processes of one kind.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(move |process| process.kind == kind)
    }

    /// Whether all books of a kind balance; `None` where no probe reported any.
    pub fn balanced(&self, kind: Kind) -> Option<bool> {
        let mut processes = self.of(kind).peekable();
        processes.peek()?;
        Some(processes.all(Process::balanced))
    }
}

/// One exporter, as the collector saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exporter {
    /// Its address.
    pub name: String,
    /// The first and the last time in the period that something came from it.
    pub seen: Option<Period>,
    /// Flow records of the report that came from it.
    pub flows: u64,
    /// Flow records that its Exporting Processes delivered, by their own books: a collector that acknowledges has stored them.
    /// `None` where it reports none.
    pub exported: Option<u64>,
    /// Data Records that are missing by the Messages' sequence numbers.
    pub lost: u64,
    /// For each step of the samples, whether anything came.
    pub heard: Vec<bool>,
    /// Stretches in which nothing came, once it was known.
    pub gaps: Vec<Period>,
}

/// A time before a probe's start in which it metered nothing, as it tells itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interruption {
    /// When the run before it was last known to live; 0 where that is not told with any sense.
    pub from_ms: i64,
    /// When the probe began again.
    pub to_ms: i64,
    /// The exporter's address.
    pub exporter: String,
    /// The Observation Domain.
    pub domain: u32,
    /// The run before it was killed, and the flows in its cache were lost; otherwise it was stopped in good order.
    pub killed: bool,
}

impl Interruption {
    /// Its time.
    pub fn period(&self) -> Period {
        Period { from_ms: self.from_ms, to_ms: self.to_ms }
    }

    /// Whether any of it is in a period. One of no length is where it was.
    pub fn touches(&self, period: Period) -> bool {
        self.from_ms < period.to_ms && self.to_ms.max(self.from_ms.saturating_add(1)) > period.from_ms
    }
}

/// One Transport Session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The exporter's address.
    pub exporter: String,
    /// `tls`, `tcp` or `udp`.
    pub transport: String,
    /// When it began.
    pub start_ms: i64,
    /// The last that is known of it.
    pub last_ms: i64,
    /// Whether it ended, and why.
    pub ended: bool,
    /// Messages received.
    pub messages: u64,
    /// Data Records received.
    pub records: u64,
    /// Octets of IPFIX received.
    pub octets: u64,
    /// Gaps in the sequence numbers.
    pub gaps: u64,
    /// Data Records that the gaps stand for.
    pub lost: u64,
    /// What the collector noted at its end.
    pub note: String,
}

/// Sums over all Transport Sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionSums {
    /// Transport Sessions.
    pub sessions: u64,
    /// Data Records received.
    pub records: u64,
    /// Gaps in the sequence numbers.
    pub gaps: u64,
    /// Data Records that the gaps stand for.
    pub lost: u64,
}

/// Which process a book is of (RFC 7011 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Packets: wire = metered + each drop + each ignore.
    Metering,
    /// Flows: ended = delivered + spooled + in flight + each drop.
    Exporting,
}

impl Kind {
    /// The term that all others must sum up to.
    pub fn total(self) -> &'static str {
        match self {
            Kind::Metering => "wire",
            Kind::Exporting => "ended",
        }
    }

    /// The term that the total becomes where nothing goes wrong.
    pub fn outcome(self) -> &'static str {
        match self {
            Kind::Metering => "metered",
            Kind::Exporting => "delivered",
        }
    }

    /// The name in the `books` table.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Metering => "metering",
            Kind::Exporting => "exporting",
        }
    }
}

/// The books of one process over the report's period, all its runs together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// The exporter's address.
    pub exporter: String,
    /// The Observation Domain.
    pub domain: u32,
    /// Metering or Exporting.
    pub kind: Kind,
    /// meteringProcessId or exportingProcessId.
    pub id: u32,
    /// How often it began anew.
    pub restarts: u32,
    /// The last report.
    pub last_ms: i64,
    /// The left side of the equation; `None` where it was never reported.
    pub total: Option<u64>,
    /// What was in flight or in the spool when the period began, and so belongs on the left side too.
    pub opening: u64,
    /// The right side, by name.
    pub terms: Vec<(String, u64)>,
}

impl Process {
    /// The sum of the terms whose names begin so.
    pub fn sum(&self, prefix: &str) -> u64 {
        let terms = self.terms.iter().filter(|(name, _)| name.starts_with(prefix));
        terms.fold(0, |sum, (_, value)| sum.saturating_add(*value))
    }

    /// The value of one term.
    pub fn term(&self, name: &str) -> u64 {
        self.terms.iter().find(|(term, _)| term == name).map_or(0, |(_, value)| *value)
    }

    /// Whether both sides are equal. A total that was never reported balances nothing.
    pub fn balanced(&self) -> bool {
        self.total.is_some_and(|total| total.saturating_add(self.opening) == self.sum(""))
    }
}

/// What an Exporting Process says of itself over the report's period (RFC 7011 section 4.3, Exporting Process
/// Reliability Statistics).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// The exporter's address.
    pub exporter: String,
    /// The Observation Domain.
    pub domain: u32,
    /// exportingProcessId.
    pub id: u32,
    /// When its last run began.
    pub started_ms: Option<i64>,
    /// The last report.
    pub last_ms: i64,
    /// Its counters over the period by name: `messages`, `octets`, `records`, `not_sent_flows`, and others.
    pub counters: Vec<(String, u64)>,
}

impl Statistics {
    /// One counter; 0 where it was not reported.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.iter().find(|(counter, _)| counter == name).map_or(0, |(_, value)| *value)
    }
}
