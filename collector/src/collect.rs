//! From a Message to rows: what the Collecting Process does with what it receives, and the books of it.

#![forbid(unsafe_code)]

use crate::store::{Batch, BookRow, FlowRow, Row, SessionRow, Store, StoreCounters, Table, Tally};
use nagare_service::books::{Books, Equation};
use nagare_wire::ipfix::mapping::{Book, ExporterStatistics, Mapped, Process, map};
use nagare_wire::ipfix::{DataRecord, MessageHeader};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where records come from: what every row of a session carries.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The site.
    pub site: Arc<str>,
    /// The exporter's address, as text.
    pub exporter: Arc<str>,
}

/// Data Records by what they say. Each has one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Flows.
    pub flows: u64,
    /// Terms of the probes' books.
    pub books: u64,
    /// Statistics of Exporting Processes; each becomes several rows of `books`.
    pub statistics: u64,
    /// Options records of other kinds; they are read and not kept.
    pub other_options: u64,
    /// Records that are no flows: without addresses. They are read and not kept.
    pub other_records: u64,
    /// Those of Messages that came again: their rows are stored already, or on their way.
    pub duplicates: u64,
}

impl Records {
    /// Adds another count to this one.
    pub fn add(&mut self, other: &Records) {
        self.flows += other.flows;
        self.books += other.books;
        self.statistics += other.statistics;
        self.other_options += other.other_options;
        self.other_records += other.other_records;
        self.duplicates += other.duplicates;
    }
}

/// Appends the rows that one Data Record makes: it was received at `now_ms`, and its Message made at `made_ms`, which is when
/// books were as it says.
pub fn collect(
    origin: &Origin,
    header: &MessageHeader,
    record: &DataRecord<'_>,
    (now_ms, made_ms): (u64, u64),
    rows: &mut Vec<Row>,
    records: &mut Records,
) {
    match map(header, record) {
        Mapped::Flow(flow) => {
            records.flows += 1;
            let Origin { site, exporter } = origin.clone();
            rows.push(Row::Flow(FlowRow { site, exporter, domain: header.domain, received_ms: now_ms, flow }));
        }
        Mapped::Book(Book { process, process_id, name, value }) => {
            records.books += 1;
            let process = match process {
                Process::Metering => "metering",
                Process::Exporting => "exporting",
            };
            rows.push(book(origin, header, made_ms, process, process_id, name, value));
        }
        Mapped::Statistics(statistics) => {
            records.statistics += 1;
            let row = |(name, value): (&str, u64)| {
                book(origin, header, made_ms, "statistics", statistics.process_id, name.to_owned(), value)
            };
            rows.extend(terms(&statistics).map(row));
        }
        Mapped::Other if record.is_options() => records.other_options += 1,
        Mapped::Other => records.other_records += 1,
    }
}

fn book(
    origin: &Origin,
    header: &MessageHeader,
    time_ms: u64,
    process: &'static str,
    process_id: u32,
    name: String,
    value: u64,
) -> Row {
    let Origin { site, exporter } = origin.clone();
    Row::Book(BookRow { site, exporter, domain: header.domain, time_ms, process, process_id, name, value })
}

fn terms(statistics: &ExporterStatistics) -> [(&'static str, u64); 7] {
    [
        ("init_time_ms", statistics.init_time_ms),
        ("messages", statistics.messages),
        ("octets", statistics.octets),
        ("records", statistics.records),
        ("not_sent_flows", statistics.not_sent_flows),
        ("not_sent_packets", statistics.not_sent_packets),
        ("not_sent_octets", statistics.not_sent_octets),
    ]
}

/// Rows by table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rows([u64; 3]);

impl Rows {
    /// Counts rows.
    pub fn of(rows: &[Row]) -> Rows {
        let mut count = Rows::default();
        rows.iter().for_each(|row| count.0[row.table() as usize] += 1);
        count
    }

    /// Adds another count to this one.
    pub fn add(&mut self, other: Rows) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }

    fn get(&self, table: Table) -> u64 {
        self.0[table as usize]
    }
}

/// Everything that the collector counts, but for the store. Only the listener's thread changes it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Messages framed, and datagrams.
    pub messages: u64,
    /// Messages decoded.
    pub messages_decoded: u64,
    /// Messages refused as malformed.
    pub messages_malformed: u64,
    /// Messages that had come before, by their numbers.
    pub messages_duplicate: u64,
    /// Acknowledgements sent.
    pub acks: u64,
    /// Octets of Messages and datagrams.
    pub octets: u64,
    /// Data Records that the decoder handed on, by its own count.
    pub records: u64,
    /// The same by what they say.
    pub by_kind: Records,
    /// Rows made of them, and of what happens to sessions.
    pub made: Rows,
    /// Rows that wait for a place in the store's queue.
    pub waiting: Rows,
    /// Rows of UDP sessions dropped because the store's queue was full: a datagram cannot be made to wait.
    pub refused: Rows,
    /// Gaps in sequence numbers.
    pub gaps: u64,
    /// Data Records lost in them.
    pub lost: u64,
    /// Data Sets passed over for want of their Template.
    pub sets_without_template: u64,
    /// Template Records refused because a session holds too many.
    pub template_refusals: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections whose handshake goes on.
    pub handshaking: u64,
    /// Stream sessions open.
    pub open: u64,
    /// Stream sessions ended, for whatever reason but these two.
    pub ended: u64,
    /// Stream sessions ended because a Message that was begun did not become whole in time.
    pub ended_message_timeout: u64,
    /// Stream sessions ended because their certificate was revoked meanwhile.
    pub ended_revoked: u64,
    /// TLS sessions that went on where an earlier one had ended, without a full handshake.
    pub tls_resumed: u64,
    /// Connections refused by TLS, or given up by the peer before it was done.
    pub refused_tls: u64,
    /// Connections that did not finish their handshake in time.
    pub refused_slow: u64,
    /// Connections given up, half-open, for newer ones.
    pub refused_half_open: u64,
    /// Connections refused because too many sessions are open.
    pub refused_sessions_max: u64,
    /// Connections refused because their address has too many open.
    pub refused_address_max: u64,
    /// Connections refused because their address makes too many.
    pub refused_rate: u64,
    /// Connections whose certificate's name cannot name a site, and those of addresses that cannot become one any more.
    pub refused_site: u64,
    /// Datagrams of addresses that cannot become a site any more.
    pub datagrams_refused_site: u64,
    /// Datagrams that the kernel dropped because the socket's buffer was full.
    pub datagrams_dropped_by_kernel: u64,
    /// UDP sessions open.
    pub udp_sessions: u64,
    /// UDP sessions put out because there were too many.
    pub udp_evicted: u64,
}

/// The counts and the store behind one lock: the listener holds it while it works, so that whoever looks sees sums that add up.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<State>>);

/// What [`Shared`] guards.
pub struct State {
    /// The listener's counts.
    pub counts: Counts,
    store: Option<Store>,
    /// What the store counted when it was taken away.
    closed: StoreCounters,
}

impl Shared {
    /// The counts of a collector that begins, with its store.
    pub fn new(store: Store) -> Shared {
        Shared(Arc::new(Mutex::new(State {
            counts: Counts::default(),
            store: Some(store),
            closed: StoreCounters::default(),
        })))
    }

    /// Locks for one round of work.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        // A round that panicked ends the listener; the books may still be read, and show what does not add up.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the store: all rows are on disk, or counted as failed, when this returns.
    ///
    /// # Errors
    /// A thread of the store had died.
    pub fn close(&self) -> Result<(), crate::store::StoreError> {
        let mut state = self.lock();
        let Some(store) = state.store.take() else { return Ok(()) };
        state.closed = store.counters();
        drop(state);
        // Without the lock: the books stay readable while the last rows are written.
        let counters = store.close()?;
        self.lock().closed = counters;
        Ok(())
    }

    /// The books at this moment.
    pub fn books(&self) -> Books {
        let state = self.lock();
        let store = state.store.as_ref().map_or(state.closed, Store::counters);
        state.counts.books(&store)
    }
}

impl State {
    /// Offers a batch to the store, which numbers it; it comes back where the store's queue is full.
    ///
    /// # Errors
    /// The batch that was not taken.
    pub fn offer(&self, batch: Batch) -> Result<u64, Batch> {
        match &self.store {
            Some(store) => store.offer(batch),
            None => Err(batch),
        }
    }

    /// The store, until it is closed.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }
}

impl Counts {
    /// Counts a session's row as made.
    pub fn session_row(&mut self, row: SessionRow, rows: &mut Vec<Row>) {
        rows.push(Row::Session(row));
        self.made.0[Table::Sessions as usize] += 1;
    }

    /// The equations: connections, Messages, Data Records by what they say, and the rows of each table down to the disk.
    pub fn books(&self, store: &StoreCounters) -> Books {
        let rows = [(Table::Flows, "flows"), (Table::Books, "book_rows"), (Table::Sessions, "session_rows")];
        let mut equations = vec![self.connections(), self.messages(), self.records()];
        equations.extend(rows.map(|(table, name)| self.rows(name, table, store.tally(table))));
        Books { program: "nagare-collector", equations, figures: self.figures(store) }
    }

    fn connections(&self) -> Equation {
        let terms = [
            ("open", self.open),
            ("handshaking", self.handshaking),
            ("ended", self.ended),
            ("end.message_timeout", self.ended_message_timeout),
            ("end.revoked", self.ended_revoked),
            ("refuse.tls", self.refused_tls),
            ("refuse.handshake_timeout", self.refused_slow),
            ("refuse.half_open_max", self.refused_half_open),
            ("refuse.sessions_max", self.refused_sessions_max),
            ("refuse.address_max", self.refused_address_max),
            ("refuse.rate", self.refused_rate),
            ("refuse.site", self.refused_site),
        ];
        equation("connections", ("accepted", self.accepted), &terms)
    }

    fn messages(&self) -> Equation {
        let terms = [
            ("decoded", self.messages_decoded),
            ("duplicate", self.messages_duplicate),
            ("refuse.malformed", self.messages_malformed),
            ("refuse.sites_max", self.datagrams_refused_site),
        ];
        equation("messages", ("received", self.messages), &terms)
    }

    fn records(&self) -> Equation {
        let kinds = &self.by_kind;
        let terms = [
            ("flows", kinds.flows),
            ("books", kinds.books),
            ("statistics", kinds.statistics),
            ("other.options", kinds.other_options),
            ("other.record", kinds.other_records),
            ("duplicate", kinds.duplicates),
        ];
        equation("records", ("received", self.records), &terms)
    }

    fn rows(&self, name: &'static str, table: Table, tally: Tally) -> Equation {
        let total = if table == Table::Flows { "received" } else { "made" };
        let terms = [
            ("stored", tally.stored),
            ("in_flight", tally.in_flight + self.waiting.get(table)),
            ("refuse.store_full", self.refused.get(table)),
            ("refuse.write_failed", tally.failed),
        ];
        equation(name, (total, self.made.get(table)), &terms)
    }

    fn figures(&self, store: &StoreCounters) -> Vec<(String, u64)> {
        let figures = [
            ("octets_received", self.octets),
            ("acknowledgements", self.acks),
            ("sequence_gaps", self.gaps),
            ("records_lost", self.lost),
            ("sets_without_template", self.sets_without_template),
            ("template_refusals", self.template_refusals),
            ("datagrams_dropped_by_kernel", self.datagrams_dropped_by_kernel),
            ("tls_resumed", self.tls_resumed),
            ("sessions_udp", self.udp_sessions),
            ("sessions_udp_evicted", self.udp_evicted),
            ("store_rows_queued", store.queued),
            ("store_files", store.files),
            ("store_write_errors", store.write_errors),
            ("store_merges", store.merges),
            ("store_merge_errors", store.merge_errors),
        ];
        figures.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

fn equation(name: &'static str, total: (&str, u64), terms: &[(&str, u64)]) -> Equation {
    let own = |&(name, value): &(&str, u64)| (name.to_owned(), value);
    Equation { name, labels: Vec::new(), total: own(&total), terms: terms.iter().map(own).collect() }
}
