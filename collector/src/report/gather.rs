//! From the store's tables to what a report shows. The engine does the sums; only tables of bounded length and the
//! samples over time are held here.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, UInt8Array, UInt64Array,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type, UInt64Type};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use datafusion::prelude::SessionContext;

use super::ReportOptions;
use super::buckets::{Direction, FLOW_MAX_MS, Samples, within};
use super::interruption::Interruptions;
use super::ledger::{BookEntry, Ledger};
use super::model::{Kind, Period, Quality, Ranked, ReportData, Session, SessionSums, Totals};
use super::network::{Network, Side};
use super::presence::Presences;
use crate::query::{Engine, QueryError};

/// Books are looked for this long before the period, for the values that it begins with.
const LOOK_BACK_MS: i64 = DAY_MS;
/// Books are read this much at a time, so that sorting them takes bounded memory.
const BOOKS_AT_ONCE_MS: i64 = DAY_MS;
/// Books and the ends of sessions are reported up to this long after the flows that they are about.
const AFTERMATH_MS: i64 = 5 * 60_000;
/// A probe tells of an interruption when it is there again. This long after the period that is looked for, up to now.
const LOOK_ON_MS: i64 = 7 * DAY_MS;
/// Rows that are read in that time at most.
const LOOKED_ON_MAX: usize = 100_000;
/// Flows that arrive later than this after the period's end were not metered when they say so: a capture was replayed.
const LATE_MS: i64 = 3_600_000;
const DAY_MS: i64 = 86_400_000;

/// Asks the store for everything in a report. `made_ms` is the time now.
///
/// # Errors
/// The store cannot be read.
pub fn gather(engine: &Engine, options: &ReportOptions, made_ms: i64) -> Result<ReportData, QueryError> {
    let period = Period { from_ms: options.from_ms, to_ms: options.to_ms };
    let site = Asked { engine, site: &options.site, local: &options.local };
    let vlans = site.vlans(period, options.top)?;
    let flows = site.flows_over_time(period)?;
    let quality = site.quality(period, flows.exporters, flows.received, options.top, made_ms)?;
    Ok(ReportData {
        site: options.site.clone(),
        customer: options.customer.clone(),
        period,
        tz: options.tz.clone(),
        made_ms,
        top: options.top,
        local: options.local.clone(),
        totals: site.totals(period)?,
        before: site.totals(period.before())?,
        samples: flows.samples,
        local_hosts: site.hosts(period, Side::Local, options.top)?,
        remote_hosts: site.hosts(period, Side::Remote, options.top)?,
        conversations: site.conversations(period, options.top)?,
        protocols: site.by_protocol(period, options.top)?,
        ports: site.by_port(period, options.top)?,
        vlans,
        end_reasons: site.end_reasons(period)?,
        quality,
    })
}

/// One site's part of the store.
struct Asked<'a> {
    engine: &'a Engine,
    site: &'a str,
    local: &'a [Network],
}

/// Each flow that was there in the period, with the sides of its ends, and its octets in the period as the site sees them.
/// A flow `began` in one period only.
fn flows_of(period: Period) -> String {
    let from_ms = period.from_ms;
    let none = "CAST(0 AS BIGINT UNSIGNED)";
    format!(
        "WITH parts AS (SELECT src, dst, sport, dport, proto, vlan, end_reason, rev_packets, side(src) AS source,
            side(dst) AS destination, within(octets, start_ms, end_ms) AS octets,
            within(rev_octets, start_ms, end_ms) AS rev_octets,
            within(packets + rev_packets, start_ms, end_ms) AS packets_all,
            CASE WHEN start_ms >= {from_ms} THEN 1 ELSE 0 END AS began
            FROM flows WHERE start_ms >= {from_ms} OR end_ms > {from_ms}),
        f AS (SELECT *,
            CASE WHEN source = 0 AND destination > 0 THEN octets WHEN source > 0 AND destination = 0 THEN rev_octets
                ELSE {none} END AS octets_in,
            CASE WHEN source > 0 AND destination = 0 THEN octets WHEN source = 0 AND destination > 0 THEN rev_octets
                ELSE {none} END AS octets_out,
            octets + rev_octets AS octets_all
            FROM parts)"
    )
}

/// What one pass over the period's flows gives.
struct FlowsOverTime {
    samples: Samples,
    exporters: Presences,
    /// When the first and the last of them arrived.
    received: Option<Period>,
    from_ms: i64,
}

impl FlowsOverTime {
    fn new(period: Period) -> FlowsOverTime {
        let samples = Samples::new(period.from_ms, period.to_ms);
        FlowsOverTime { samples, exporters: Presences::new(period), received: None, from_ms: period.from_ms }
    }

    fn take(&mut self, batch: &RecordBatch) -> Result<(), QueryError> {
        let columns = Columns::new(batch)?;
        let [octets, rev_octets] = [columns.numbers("octets"), columns.numbers("rev_octets")];
        let [starts, ends, received] = ["start_ms", "end_ms", "received_ms"].map(|name| columns.times(name));
        let [sources, destinations] = ["source", "destination"].map(|name| columns.truths(name));
        let exporters = columns.texts("exporter");
        for row in 0..batch.num_rows() {
            let (start_ms, end_ms) = (starts.value(row), ends.value(row));
            let (forward, reverse) = Direction::of_flow(sources.value(row), destinations.value(row));
            self.samples.add(forward, start_ms, end_ms, octets.value(row));
            self.samples.add(reverse, start_ms, end_ms, rev_octets.value(row));
            self.exporters.flow(exporters.value(row), start_ms, end_ms);
            if start_ms < self.from_ms {
                continue;
            }
            let at = received.value(row);
            let known = self.received.unwrap_or(Period { from_ms: at, to_ms: at });
            self.received = Some(Period { from_ms: known.from_ms.min(at), to_ms: known.to_ms.max(at) });
        }
        Ok(())
    }
}

impl Asked<'_> {
    /// A query over the tables of a time; `side` and `within` are functions in it.
    fn ask<T>(
        &self,
        period: Period,
        look_back_ms: i64,
        read: impl Fn(&SessionContext) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        self.engine.snapshot(Some(self.site), period.from_ms - look_back_ms, period.to_ms, |context| {
            context.register_udf(ScalarUDF::from(SideOf::new(self.local)));
            context.register_udf(ScalarUDF::from(Within::new(period)));
            read(context)
        })
    }

    fn rows<T>(
        &self,
        period: Period,
        look_back_ms: i64,
        sql: &str,
        row: impl Fn(&Columns, usize) -> T,
    ) -> Result<Vec<T>, QueryError> {
        self.ask(period, look_back_ms, |context| {
            let mut rows = Vec::new();
            self.engine.stream(context, sql, |batch| {
                let columns = Columns::new(&batch)?;
                rows.extend((0..batch.num_rows()).map(|index| row(&columns, index)));
                Ok(())
            })?;
            Ok(rows)
        })
    }

    fn totals(&self, period: Period) -> Result<Totals, QueryError> {
        let flows = flows_of(period);
        let sql = format!(
            "{flows} SELECT source > 0 AS source, destination > 0 AS destination, sum(octets) AS octets,
                sum(rev_octets) AS rev_octets, sum(packets_all) AS packets, sum(began) AS flows
            FROM f GROUP BY 1, 2"
        );
        let rows = self.rows(period, FLOW_MAX_MS, &sql, |columns, row| {
            let ends = Direction::of_flow(columns.truth("source", row), columns.truth("destination", row));
            (ends, ["octets", "rev_octets", "packets", "flows"].map(|name| columns.number(name, row)))
        })?;
        let mut totals = Totals::default();
        for ((forward, reverse), [octets, rev_octets, packets, flows]) in rows {
            for (sum, more) in [(forward, octets), (reverse, rev_octets)] {
                totals.octets[sum as usize] = totals.octets[sum as usize].saturating_add(more);
            }
            totals.packets = totals.packets.saturating_add(packets);
            totals.flows += flows;
        }
        Ok(totals)
    }

    /// The rows of a table that is ordered by octets. `select` names the key's columns and those that are summed.
    fn ranked<Key>(
        &self,
        period: Period,
        from: &str,
        keys: &str,
        top: usize,
        key: impl Fn(&Columns, usize) -> Key,
    ) -> Result<Vec<Ranked<Key>>, QueryError> {
        let flows = flows_of(period);
        let sql = format!(
            "{flows} SELECT {keys}, sum(octets_in) AS octets_in, sum(octets_out) AS octets_out, sum(octets_all) AS octets,
                sum(packets_all) AS packets, sum(began) AS flows
            FROM {from} GROUP BY {keys} ORDER BY octets DESC, {keys} LIMIT {top}"
        );
        self.rows(period, FLOW_MAX_MS, &sql, |columns, row| Ranked {
            key: key(columns, row),
            octets_in: columns.number("octets_in", row),
            octets_out: columns.number("octets_out", row),
            octets: columns.number("octets", row),
            packets: columns.number("packets", row),
            flows: columns.number("flows", row),
        })
    }

    fn hosts(&self, period: Period, side: Side, top: usize) -> Result<Vec<Ranked<String>>, QueryError> {
        // A local host's octets are told as it received and sent them, a remote host's as the site did.
        let (received, sent) =
            if side == Side::Local { ("octets_in", "octets_out") } else { ("octets_out", "octets_in") };
        let side = side as u8;
        let from = format!(
            "(SELECT src AS host, octets AS {sent}, rev_octets AS {received}, octets_all, packets_all, began
                FROM f WHERE source = {side}
            UNION ALL SELECT dst AS host, rev_octets AS {sent}, octets AS {received}, octets_all, packets_all, began
                FROM f WHERE destination = {side} AND src <> dst)"
        );
        self.ranked(period, &from, "host", top, |columns, row| columns.text("host", row))
    }

    fn conversations(&self, period: Period, top: usize) -> Result<Vec<Ranked<(String, String)>>, QueryError> {
        // A pair has one order: the local host first, else the lower text.
        let swapped = "(source <> 1 AND destination = 1) OR ((source = 1) = (destination = 1) AND dst < src)";
        let from = format!(
            "(SELECT CASE WHEN {swapped} THEN dst ELSE src END AS a, CASE WHEN {swapped} THEN src ELSE dst END AS b,
                CASE WHEN {swapped} THEN octets ELSE rev_octets END AS octets_in,
                CASE WHEN {swapped} THEN rev_octets ELSE octets END AS octets_out, octets_all, packets_all, began FROM f)"
        );
        self.ranked(period, &from, "a, b", top, |columns, row| (columns.text("a", row), columns.text("b", row)))
    }

    fn by_protocol(&self, period: Period, top: usize) -> Result<Vec<Ranked<u8>>, QueryError> {
        self.ranked(period, "f", "proto", top, |columns, row| columns.number("proto", row) as u8)
    }

    fn by_port(&self, period: Period, top: usize) -> Result<Vec<Ranked<(u8, u16)>>, QueryError> {
        // The responder's port. A record of one direction alone may be the answer, from a router that does not pair
        // them: there the port below 1024 is the responder's.
        let port =
            "CASE WHEN rev_packets = 0 AND sport < 1024 AND dport >= 1024 AND sport > 0 THEN sport ELSE dport END";
        let from = format!("(SELECT *, {port} AS port FROM f WHERE proto IN (6, 17, 33, 132, 136))");
        self.ranked(period, &from, "proto, port", top, |columns, row| {
            (columns.number("proto", row) as u8, columns.number("port", row) as u16)
        })
    }

    fn vlans(&self, period: Period, top: usize) -> Result<Vec<Ranked<u16>>, QueryError> {
        let rows = self.ranked(period, "f", "vlan", top, |columns, row| columns.number("vlan", row) as u16)?;
        Ok(if rows.iter().any(|row| row.key != 0) { rows } else { Vec::new() })
    }

    fn end_reasons(&self, period: Period) -> Result<Vec<Ranked<u8>>, QueryError> {
        // Reasons that have no name are one row: there can be no more than a byte's worth, and the report shows six.
        let from = "(SELECT octets_in, octets_out, octets_all, packets_all, began,
            CASE WHEN end_reason BETWEEN 1 AND 5 THEN end_reason ELSE 0 END AS reason FROM f)";
        let mut rows = self.ranked(period, from, "reason", 6, |columns, row| columns.number("reason", row) as u8)?;
        rows.sort_by_key(|row| std::cmp::Reverse(row.flows));
        Ok(rows)
    }

    /// One pass over the flows, batch by batch.
    fn flows_over_time(&self, period: Period) -> Result<FlowsOverTime, QueryError> {
        let sql = format!(
            "SELECT start_ms, end_ms, octets, rev_octets, side(src) > 0 AS source, side(dst) > 0 AS destination, exporter,
                received_ms FROM flows WHERE start_ms >= {from_ms} OR end_ms > {from_ms}",
            from_ms = period.from_ms
        );
        self.ask(period, FLOW_MAX_MS, |context| {
            let mut flows = FlowsOverTime::new(period);
            self.engine.stream(context, &sql, |batch| flows.take(&batch))?;
            Ok(flows)
        })
    }

    fn quality(
        &self,
        period: Period,
        mut exporters: Presences,
        received: Option<Period>,
        top: usize,
        made_ms: i64,
    ) -> Result<Quality, QueryError> {
        let elsewhere =
            |received: &Period| received.from_ms >= period.to_ms + LATE_MS || received.to_ms < period.from_ms;
        let replayed = received.filter(elsewhere);
        let window = replayed.map_or(period, |received| Period {
            from_ms: received.from_ms - AFTERMATH_MS,
            to_ms: received.to_ms + AFTERMATH_MS,
        });
        let (sessions, session_sums, lost) = self.sessions(window, top)?;
        let (mut ledger, mut interruptions) = (Ledger::new(window.from_ms), Interruptions::new(period));
        self.books(window, &mut ledger, &mut interruptions, &mut exporters)?;
        self.look_on(window, made_ms, &mut interruptions)?;
        let (processes, statistics) = ledger.finish();
        // A flow that a probe exports to several collectors is in the books of as many Exporting Processes. It counts once here:
        // each collector gets the books of its own queue alone.
        let delivered = |name: &str| {
            let exporting =
                processes.iter().filter(|process| process.kind == Kind::Exporting && process.exporter == name);
            exporting.map(|process| process.term("delivered")).reduce(u64::saturating_add)
        };
        let until_ms = if replayed.is_some() { period.from_ms } else { made_ms };
        let exporters_omitted = exporters.omitted();
        let exporters = exporters.finish(until_ms, |name| (delivered(name), lost.get(name).copied().unwrap_or(0)));
        Ok(Quality {
            window: Some(window),
            replayed: replayed.is_some(),
            exporters,
            exporters_omitted,
            sessions,
            session_sums,
            processes,
            statistics,
            interruptions: interruptions.finish(),
        })
    }

    /// The latest sessions, the sums over all, and what each exporter lost.
    #[allow(clippy::type_complexity, reason = "three answers of one question, used at one place")]
    fn sessions(
        &self,
        window: Period,
        top: usize,
    ) -> Result<(Vec<Session>, SessionSums, BTreeMap<String, u64>), QueryError> {
        // A session's figures grow from its beginning: what they were before the window is taken off.
        let from_ms = window.from_ms;
        let within = |name| {
            let before = format!("max(CASE WHEN time_ms < {from_ms} THEN {name} ELSE CAST(0 AS BIGINT UNSIGNED) END)");
            format!("max({name}) - {before} AS {name}")
        };
        let [records, lost, messages, octets] = ["records", "lost", "messages", "octets"].map(within);
        let rows = format!(
            "WITH s AS (SELECT exporter, transport, start_ms, max(time_ms) AS last_ms, {records}, {lost}, {messages}, {octets},
                sum(CASE WHEN event = 'gap' AND time_ms >= {from_ms} THEN 1 ELSE 0 END) AS gaps,
                max(CASE WHEN event = 'end' THEN 1 ELSE 0 END) AS ended,
                max(CASE WHEN event = 'end' THEN note ELSE '' END) AS note
            FROM sessions GROUP BY exporter, transport, start_ms HAVING max(time_ms) >= {from_ms})"
        );
        let latest = format!("{rows} SELECT * FROM s ORDER BY start_ms DESC, exporter LIMIT {top}");
        let sessions = self.rows(window, LOOK_BACK_MS, &latest, |columns, row| Session {
            exporter: columns.text("exporter", row),
            transport: columns.text("transport", row),
            start_ms: columns.time("start_ms", row),
            last_ms: columns.time("last_ms", row),
            ended: columns.number("ended", row) > 0,
            messages: columns.number("messages", row),
            records: columns.number("records", row),
            octets: columns.number("octets", row),
            gaps: columns.number("gaps", row),
            lost: columns.number("lost", row),
            note: columns.text("note", row),
        })?;
        let sums = format!(
            "{rows} SELECT exporter, count(*) AS sessions, sum(records) AS records, sum(gaps) AS gaps, sum(lost) AS lost
            FROM s GROUP BY exporter"
        );
        let by_exporter = self.rows(window, LOOK_BACK_MS, &sums, |columns, row| {
            let [sessions, records, gaps, lost] =
                ["sessions", "records", "gaps", "lost"].map(|name| columns.number(name, row));
            (columns.text("exporter", row), SessionSums { sessions, records, gaps, lost })
        })?;
        let all = by_exporter.iter().fold(SessionSums::default(), |all, (_, next)| SessionSums {
            sessions: all.sessions + next.sessions,
            records: all.records.saturating_add(next.records),
            gaps: all.gaps.saturating_add(next.gaps),
            lost: all.lost.saturating_add(next.lost),
        });
        Ok((sessions, all, by_exporter.into_iter().map(|(exporter, sums)| (exporter, sums.lost)).collect()))
    }

    /// Enters the books of the window and the day before it, in the order of their times, and notes when each exporter
    /// reported.
    fn books(
        &self,
        window: Period,
        ledger: &mut Ledger,
        interruptions: &mut Interruptions,
        exporters: &mut Presences,
    ) -> Result<(), QueryError> {
        let [totals, outcomes] = [Kind::total, Kind::outcome]
            .map(|name| [Kind::Metering, Kind::Exporting].map(|kind| format!("'{}'", name(kind))).join(", "));
        let sql = format!(
            "SELECT exporter, domain, process, process_id, name, time_ms, value FROM books ORDER BY time_ms,
                CASE WHEN name = 'init_time_ms' THEN 0 WHEN name IN ({totals}) THEN 1 WHEN name IN ({outcomes}) THEN 2
                    ELSE 3 END, value"
        );
        let mut from_ms = window.from_ms - LOOK_BACK_MS;
        while from_ms < window.to_ms {
            let to_ms = (from_ms + BOOKS_AT_ONCE_MS).min(window.to_ms);
            let read = |context: &SessionContext| self.engine.collect(context, &sql);
            for batch in self.engine.snapshot(Some(self.site), from_ms, to_ms, read)? {
                each_entry(&Columns::new(&batch)?, |entry| {
                    exporters.report(entry.exporter, entry.time_ms);
                    ledger.enter(entry);
                    interruptions.enter(entry);
                });
            }
            from_ms = to_ms;
        }
        Ok(())
    }

    /// Enters the interruptions that were told of after the window: those that went on beyond it.
    fn look_on(&self, window: Period, made_ms: i64, interruptions: &mut Interruptions) -> Result<(), QueryError> {
        let to_ms = made_ms.saturating_add(1).min(window.to_ms.saturating_add(LOOK_ON_MS));
        if to_ms <= window.to_ms {
            return Ok(());
        }
        // A run's beginning is told every few seconds. The first time is the one at which an interruption is told, too.
        let sql = format!(
            "SELECT exporter, domain, process, process_id, name, value, min(time_ms) AS time_ms FROM books
            WHERE name IN ('init_time_ms', 'gap.killed_ms', 'gap.stopped_ms')
            GROUP BY exporter, domain, process, process_id, name, value
            ORDER BY time_ms, CASE WHEN name = 'init_time_ms' THEN 0 ELSE 1 END, value LIMIT {LOOKED_ON_MAX}"
        );
        let read = |context: &SessionContext| self.engine.collect(context, &sql);
        for batch in self.engine.snapshot(Some(self.site), window.to_ms, to_ms, read)? {
            each_entry(&Columns::new(&batch)?, |entry| interruptions.enter(entry));
        }
        Ok(())
    }
}

fn each_entry(columns: &Columns, mut each: impl FnMut(&BookEntry<'_>)) {
    let [names, processes, from] = ["name", "process", "exporter"].map(|name| columns.texts(name));
    let [domains, ids, values] = ["domain", "process_id", "value"].map(|name| columns.numbers(name));
    let times = columns.times("time_ms");
    for row in 0..times.len() {
        each(&BookEntry {
            exporter: from.value(row),
            domain: domains.value(row) as u32,
            process: processes.value(row),
            id: ids.value(row) as u32,
            name: names.value(row),
            time_ms: times.value(row),
            value: values.value(row),
        });
    }
}

/// A batch whose columns are of four types only: text, truth, numbers (`u64`), and times, whose names end with `_ms`
/// (`i64`). What the engine's functions return differs between its releases; this does not.
struct Columns(RecordBatch);

impl Columns {
    fn new(batch: &RecordBatch) -> Result<Columns, QueryError> {
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
            let kind = match column.data_type() {
                DataType::Boolean => DataType::Boolean,
                DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => DataType::Utf8,
                _ if field.name().ends_with("_ms") => DataType::Int64,
                _ => DataType::UInt64,
            };
            Ok((field.name().as_str(), cast(column, &kind)?))
        });
        let columns = columns.collect::<Result<Vec<(&str, ArrayRef)>, QueryError>>()?;
        Ok(Columns(RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, array)| (name, array, true)),
        )?))
    }

    fn column(&self, name: &str) -> &ArrayRef {
        self.0.column_by_name(name).expect("the queries of this file name their columns")
    }

    fn texts(&self, name: &str) -> &StringArray {
        self.column(name).as_string()
    }

    fn truths(&self, name: &str) -> &BooleanArray {
        self.column(name).as_boolean()
    }

    fn numbers(&self, name: &str) -> &UInt64Array {
        self.column(name).as_primitive::<UInt64Type>()
    }

    fn times(&self, name: &str) -> &Int64Array {
        self.column(name).as_primitive::<Int64Type>()
    }

    fn text(&self, name: &str, row: usize) -> String {
        self.texts(name).value(row).to_owned()
    }

    fn truth(&self, name: &str, row: usize) -> bool {
        self.truths(name).value(row)
    }

    fn number(&self, name: &str, row: usize) -> u64 {
        self.numbers(name).value(row)
    }

    fn time(&self, name: &str, row: usize) -> i64 {
        self.times(name).value(row)
    }
}

/// The SQL function `side(address)`: 0 outside, 1 a host of the site, 2 a group; see [`Side`].
#[derive(Debug, PartialEq, Eq, Hash)]
struct SideOf {
    signature: Signature,
    local: Vec<Network>,
}

impl SideOf {
    fn new(local: &[Network]) -> SideOf {
        SideOf { signature: Signature::string(1, Volatility::Immutable), local: local.to_vec() }
    }

    fn sides(&self, addresses: &ArrayRef) -> Result<ArrayRef, DataFusionError> {
        let addresses = cast(addresses, &DataType::Utf8)?;
        let side = |address: Option<&str>| {
            // What is no address cannot be a host of the site.
            let address: Option<IpAddr> = address.and_then(|address| address.parse().ok());
            address.map_or(Side::Remote, |address| Side::of(address, &self.local)) as u8
        };
        let sides = addresses.as_string::<i32>().iter().map(side);
        Ok(Arc::new(UInt8Array::from_iter_values(sides)))
    }
}

impl ScalarUDFImpl for SideOf {
    fn name(&self) -> &str {
        "side"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType, DataFusionError> {
        Ok(DataType::UInt8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue, DataFusionError> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        Ok(ColumnarValue::Array(self.sides(&arrays[0])?))
    }
}

/// The SQL function `within(count, start_ms, end_ms)`: the part of a flow's count that falls into the period.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Within {
    signature: Signature,
    period: (i64, i64),
}

impl Within {
    fn new(period: Period) -> Within {
        let arguments = vec![DataType::UInt64, DataType::Int64, DataType::Int64];
        Within { signature: Signature::exact(arguments, Volatility::Immutable), period: (period.from_ms, period.to_ms) }
    }
}

impl ScalarUDFImpl for Within {
    fn name(&self) -> &str {
        "within"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType, DataFusionError> {
        Ok(DataType::UInt64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue, DataFusionError> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let counts = arrays[0].as_primitive::<UInt64Type>().values();
        let [starts, ends] = [&arrays[1], &arrays[2]].map(|times| times.as_primitive::<Int64Type>().values());
        let parts =
            counts.iter().zip(starts).zip(ends).map(|((count, start), end)| within(*count, *start, *end, self.period));
        Ok(ColumnarValue::Array(Arc::new(UInt64Array::from_iter_values(parts))))
    }
}
