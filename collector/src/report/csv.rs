//! Every table of the report as a CSV file (RFC 4180), with exact numbers and names that do not change with the language.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use super::buckets::{DIRECTIONS, Direction};
use super::format::rfc3339;
use super::model::{Ranked, ReportData};
use super::{ReportError, names, write_whole};

/// Writes all files into `dir`, which is created where it is missing. Returns their paths.
pub fn write_all(dir: &Path, data: &ReportData) -> Result<Vec<PathBuf>, ReportError> {
    fs::create_dir_all(dir).map_err(|error| ReportError::Write(dir.to_owned(), error))?;
    let tables = [
        ("totals", totals(data)),
        ("traffic", traffic(data)),
        ("local_hosts", ranked(&data.local_hosts, "host", |host| text(host))),
        ("remote_hosts", ranked(&data.remote_hosts, "host", |host| text(host))),
        ("conversations", ranked(&data.conversations, "host,peer", |(a, b)| format!("{},{}", text(a), text(b)))),
        (
            "protocols",
            ranked(&data.protocols, "protocol,name", |number| {
                format!("{number},{}", names::protocol(*number).unwrap_or(""))
            }),
        ),
        (
            "ports",
            ranked(&data.ports, "protocol,port,service", |(protocol, port)| {
                format!("{protocol},{port},{}", names::service(*protocol, *port).unwrap_or(""))
            }),
        ),
        ("vlans", ranked(&data.vlans, "vlan", u16::to_string)),
        ("end_reasons", ranked(&data.end_reasons, "end_reason", u8::to_string)),
        ("exporters", exporters(data)),
        ("interruptions", interruptions(data)),
        ("not_metered", not_metered(data)),
        ("sessions", sessions(data)),
        ("books", books(data)),
        ("statistics", statistics(data)),
    ];
    tables
        .into_iter()
        .map(|(name, content)| {
            let path = dir.join(name).with_extension("csv");
            write_whole(&path, content.as_bytes())?;
            Ok(path)
        })
        .collect()
}

/// A field of text, quoted where that is needed. What a spreadsheet would take for a formula is marked as text: names come
/// from whoever sends flows.
fn text(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

fn line(out: &mut String, fields: &[String]) {
    out.push_str(&fields.join(","));
    out.push('\n');
}

fn totals(data: &ReportData) -> String {
    let mut out = String::from("measure,value,before,unit\n");
    let (now, before) = (&data.totals, &data.before);
    for (direction, name) in DIRECTIONS.into_iter().zip(["in", "out", "internal", "transit"]) {
        let (now, before) = (now.octets[direction as usize], before.octets[direction as usize]);
        let _ = writeln!(out, "octets_{name},{now},{before},octets");
    }
    let _ = writeln!(out, "packets,{},{},packets", now.packets, before.packets);
    let _ = writeln!(out, "flows,{},{},flows", now.flows, before.flows);
    for (direction, name) in [(Direction::In, "in"), (Direction::Out, "out"), (Direction::Internal, "internal")] {
        let samples = &data.samples;
        let figures = [samples.average(direction), samples.percentile_95(direction), samples.peak(direction).1];
        for (measure, value) in ["average", "percentile_95", "peak"].into_iter().zip(figures) {
            let _ = writeln!(out, "{measure}_{name},{value:.3},,bit/s");
        }
    }
    out
}

/// The samples that the percentile is taken over, finer than the chart's steps where the period is long.
fn traffic(data: &ReportData) -> String {
    let mut out = String::from("start_ms,end_ms,start,octets_in,octets_out,octets_internal,octets_transit\n");
    for step in 0..data.samples.len() {
        let (start, end) = data.samples.bounds(step);
        let _ = write!(out, "{start},{end},{}", rfc3339(start, &data.tz));
        for direction in DIRECTIONS {
            let _ = write!(out, ",{}", data.samples.octets(direction)[step]);
        }
        out.push('\n');
    }
    out
}

fn ranked<Key>(rows: &[Ranked<Key>], columns: &str, key: impl Fn(&Key) -> String) -> String {
    let mut out = format!("{columns},octets_in,octets_out,octets,packets,flows\n");
    for row in rows {
        let Ranked { octets_in, octets_out, octets, packets, flows, .. } = row;
        let _ = writeln!(out, "{},{octets_in},{octets_out},{octets},{packets},{flows}", key(&row.key));
    }
    out
}

fn exporters(data: &ReportData) -> String {
    let mut out = String::from("exporter,first,last,flows_exported,flows_received,records_lost,interruptions\n");
    for exporter in &data.quality.exporters {
        let [first, last] = [exporter.seen.map(|seen| seen.from_ms), exporter.seen.map(|seen| seen.to_ms)]
            .map(|time| time.map_or_else(String::new, |time| rfc3339(time, &data.tz)));
        let exported = exporter.exported.map_or_else(String::new, |exported| exported.to_string());
        line(
            &mut out,
            &[
                text(&exporter.name),
                first,
                last,
                exported,
                exporter.flows.to_string(),
                exporter.lost.to_string(),
                exporter.gaps.len().to_string(),
            ],
        );
    }
    out
}

fn interruptions(data: &ReportData) -> String {
    let mut out = String::from("exporter,from,to,seconds\n");
    for exporter in &data.quality.exporters {
        for gap in &exporter.gaps {
            let [from, to] = [gap.from_ms, gap.to_ms].map(|time| rfc3339(time, &data.tz));
            line(&mut out, &[text(&exporter.name), from, to, (gap.length_ms() / 1000).to_string()]);
        }
    }
    out
}

/// When a probe metered nothing, as it tells itself; `interruptions` are when it was not heard from.
fn not_metered(data: &ReportData) -> String {
    let mut out = String::from("exporter,domain,from,to,seconds,cause\n");
    for interruption in &data.quality.interruptions {
        let [from, to] = [interruption.from_ms, interruption.to_ms].map(|time| rfc3339(time, &data.tz));
        let (domain, seconds) = (interruption.domain, interruption.period().length_ms() / 1000);
        let cause = if interruption.killed { "killed" } else { "stopped" };
        let head = [text(&interruption.exporter), domain.to_string(), from, to];
        line(&mut out, &[&head[..], &[seconds.to_string(), cause.to_owned()]].concat());
    }
    out
}

fn sessions(data: &ReportData) -> String {
    let mut out = String::from("exporter,transport,start,last,ended,messages,records,octets,gaps,lost,note\n");
    for session in &data.quality.sessions {
        let [start, last] = [session.start_ms, session.last_ms].map(|time| rfc3339(time, &data.tz));
        let counts = [session.messages, session.records, session.octets, session.gaps, session.lost]
            .map(|count| count.to_string());
        let head = [text(&session.exporter), text(&session.transport), start, last, session.ended.to_string()];
        line(&mut out, &[&head[..], &counts[..], &[text(&session.note)]].concat());
    }
    out
}

/// One term a row; `total` and `opening` are the equation's left side, `term` its right.
fn books(data: &ReportData) -> String {
    let mut out = String::from("exporter,domain,process,process_id,side,name,value,balanced\n");
    for process in &data.quality.processes {
        let total = process.total.map(|total| ("total", process.kind.total(), total));
        let terms = process.terms.iter().map(|(name, value)| ("term", name.as_str(), *value));
        for (side, name, value) in total.into_iter().chain([("opening", "carried_over", process.opening)]).chain(terms)
        {
            let balanced = process.balanced().to_string();
            let head = [
                text(&process.exporter),
                process.domain.to_string(),
                process.kind.name().to_owned(),
                process.id.to_string(),
            ];
            line(&mut out, &[&head[..], &[side.to_owned(), text(name), value.to_string(), balanced]].concat());
        }
    }
    out
}

fn statistics(data: &ReportData) -> String {
    let mut out = String::from("exporter,domain,process_id,started,last,name,value\n");
    for process in &data.quality.statistics {
        let started = process.started_ms.map_or_else(String::new, |time| rfc3339(time, &data.tz));
        for (name, value) in &process.counters {
            let head = [text(&process.exporter), process.domain.to_string(), process.id.to_string()];
            let last = rfc3339(process.last_ms, &data.tz);
            line(&mut out, &[&head[..], &[started.clone(), last, text(name), value.to_string()]].concat());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_and_no_formula() {
        for (from, to) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"x\"\n", "\"say \"\"x\"\"\n\""),
            ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
            ("-1,2", "\"'-1,2\""),
        ] {
            assert_eq!(text(from), to);
        }
    }
}
