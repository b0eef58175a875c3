//! One Transport Session: its decoder, its counts, its rows, its lines in the log.

#![forbid(unsafe_code)]

use crate::collect::{Counts, Origin, Records, Rows, collect};
use crate::store::{Row, SessionRow};
use nagare_service::endpoint::Scheme;
use nagare_wire::ipfix::{DataRecord, Malformed, MessageHeader, Transport, TransportSession};
use std::net::SocketAddr;
use std::sync::Arc;

/// How often a session that goes on leaves a row, so that a report sees it before its end, milliseconds.
pub const RUNNING_INTERVAL_MS: u64 = 60_000;

/// Lines that a session may write into the log between its first and its last; a hostile exporter could write millions.
const LINES_MAX: u32 = 32;

/// A Transport Session with one exporter.
pub struct Session {
    peer: SocketAddr,
    scheme: Scheme,
    origin: Origin,
    decoder: TransportSession,
    start_ms: u64,
    row_ms: u64,
    records: u64,
    messages: u64,
    octets: u64,
    gaps: u64,
    lost: u64,
    lines: u32,
    quiet: bool,
    may_be_late: bool,
}

/// How a session came to be, for its first line in the log.
pub struct Beginning<'a> {
    /// Address and port of the exporter.
    pub peer: SocketAddr,
    /// Its transport.
    pub scheme: Scheme,
    /// Its site.
    pub site: Arc<str>,
    /// The TLS version, the certificate.
    pub detail: &'a str,
    /// Keep it out of the log: too many begin at once.
    pub quiet: bool,
}

impl Session {
    /// Begins a session: a row, and a line.
    pub fn start(beginning: Beginning<'_>, now_ms: u64, rows: &mut Vec<Row>, counts: &mut Counts) -> Session {
        let Beginning { peer, scheme, site, detail, quiet } = beginning;
        let transport = if scheme == Scheme::Udp { Transport::Datagram } else { Transport::Stream };
        let exporter = peer.ip().to_canonical().to_string().into();
        let session = Session {
            peer,
            scheme,
            origin: Origin { site, exporter },
            decoder: TransportSession::new(transport),
            start_ms: now_ms,
            row_ms: now_ms,
            records: 0,
            messages: 0,
            octets: 0,
            gaps: 0,
            lost: 0,
            lines: 0,
            quiet,
            may_be_late: false,
        };
        log::log!(session.level(), "session {session}: site {}{detail}", session.origin.site);
        counts.session_row(session.row("start", now_ms, String::new()), rows);
        session
    }

    /// Decodes one Message into rows. A malformed one leaves none (RFC 7011, 9.1).
    ///
    /// # Errors
    /// The Message is malformed; what that means depends on the transport.
    pub fn message(
        &mut self,
        message: &[u8],
        now_ms: u64,
        rows: &mut Vec<Row>,
        counts: &mut Counts,
    ) -> Result<(), Malformed> {
        let octets = message.len() as u64;
        counts.messages += 1;
        counts.octets += octets;
        self.messages += 1;
        self.octets += octets;
        let (before, mut kinds) = (rows.len(), Records::default());
        let (origin, may_be_late) = (&self.origin, self.may_be_late);
        let each = |header: &MessageHeader, record: DataRecord<'_>| {
            let made_ms = if may_be_late { made_ms(header, now_ms) } else { now_ms };
            collect(origin, header, &record, (now_ms, made_ms), rows, &mut kinds);
        };
        let received = match self.decoder.receive(message, each) {
            Ok(received) => received,
            Err(malformed) => {
                rows.truncate(before);
                counts.messages_malformed += 1;
                return Err(malformed);
            }
        };
        counts.messages_decoded += 1;
        counts.records += received.records;
        counts.by_kind.add(&kinds);
        counts.made.add(Rows::of(&rows[before..]));
        counts.sets_without_template += received.sets_without_template;
        counts.template_refusals += received.template_refusals;
        self.records += received.records;
        received.notes.iter().for_each(|note| self.line(note));
        if received.lost > 0 {
            self.gap(received.header.domain, received.lost, now_ms, rows, counts);
        }
        Ok(())
    }

    /// Reads a Message that came before, for its Templates and its sequence numbers: its rows are stored already.
    pub fn duplicate(&mut self, message: &[u8], counts: &mut Counts) {
        let octets = message.len() as u64;
        counts.messages += 1;
        counts.octets += octets;
        self.messages += 1;
        self.octets += octets;
        match self.decoder.receive(message, |_, _| ()) {
            Ok(received) => {
                counts.messages_duplicate += 1;
                counts.records += received.records;
                counts.by_kind.duplicates += received.records;
            }
            Err(_) => counts.messages_malformed += 1,
        }
    }

    /// Its Messages may have waited at the probe: books in them are of when they were made.
    pub fn expect_late(&mut self) {
        self.may_be_late = true;
    }

    /// The site whose traffic it brings.
    pub fn site(&self) -> &Arc<str> {
        &self.origin.site
    }

    fn gap(&mut self, domain: u32, lost: u64, now_ms: u64, rows: &mut Vec<Row>, counts: &mut Counts) {
        self.gaps += 1;
        self.lost += lost;
        counts.gaps += 1;
        counts.lost += lost;
        let note = format!("domain {domain}: {lost} records lost");
        self.line(&note);
        counts.session_row(self.row("gap", now_ms, note), rows);
    }

    /// Leaves a row where the last is old.
    pub fn tick(&mut self, now_ms: u64, rows: &mut Vec<Row>, counts: &mut Counts) {
        if now_ms.saturating_sub(self.row_ms) >= RUNNING_INTERVAL_MS {
            self.row_ms = now_ms;
            counts.session_row(self.row("running", now_ms, String::new()), rows);
        }
    }

    /// Ends the session: a row and a line with its records, its gaps and the reason.
    pub fn end(self, reason: &str, now_ms: u64, rows: &mut Vec<Row>, counts: &mut Counts) {
        let Session { records, messages, gaps, lost, .. } = self;
        log::log!(
            self.level(),
            "session {self}: ended after {records} records in {messages} messages, {gaps} gaps ({lost} records lost): {reason}"
        );
        counts.session_row(self.row("end", now_ms, reason.to_owned()), rows);
    }

    /// Writes a line about this session into the log, up to a bound.
    pub fn line(&mut self, what: &str) {
        self.lines = self.lines.saturating_add(1);
        match self.lines.cmp(&LINES_MAX) {
            std::cmp::Ordering::Less => log::warn!("session {self}: {what}"),
            std::cmp::Ordering::Equal => log::warn!("session {self}: {what}; further lines are only counted"),
            std::cmp::Ordering::Greater => {}
        }
    }

    fn level(&self) -> log::Level {
        if self.quiet { log::Level::Debug } else { log::Level::Info }
    }

    fn row(&self, event: &'static str, time_ms: u64, note: String) -> SessionRow {
        SessionRow {
            site: self.origin.site.clone(),
            exporter: self.origin.exporter.clone(),
            transport: self.scheme.name(),
            time_ms,
            start_ms: self.start_ms,
            event,
            records: self.records,
            lost: self.lost,
            messages: self.messages,
            octets: self.octets,
            note,
        }
    }
}

/// When a Message was made: by its Export Time, which is in seconds, where it waited for longer than that; else now.
fn made_ms(header: &MessageHeader, now_ms: u64) -> u64 {
    const LATE_MS: u64 = 2_000;
    match u64::from(header.export_time) * 1000 {
        made_ms if made_ms + LATE_MS < now_ms => made_ms + now_ms % 1000,
        _ => now_ms,
    }
}

impl std::fmt::Display for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.scheme.name(), SocketAddr::new(self.peer.ip().to_canonical(), self.peer.port()))
    }
}
