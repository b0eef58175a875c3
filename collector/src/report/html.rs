//! The report as one HTML file: no script, nothing from the network, everything that comes from data escaped.

#![forbid(unsafe_code)]

use std::fmt::Write;

use super::buckets::Direction;
use super::chart;
use super::format::{address, change, escape, octets, rate, share, zone, zoned};
use super::lang::{Lang, Texts, fill};
use super::model::{Ranked, ReportData};
use super::names;
use super::quality_html;
use nagare_service::units::grouped;

const STYLE: &str = include_str!("style.css");

/// Writes the whole page.
pub fn page(data: &ReportData, lang: Lang) -> String {
    let t = lang.texts();
    let mut out = String::with_capacity(256 * 1024);
    let _ = write!(
        out,
        r#"<!doctype html>
<html lang="{}"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex"><meta name="generator" content="Nagare">
<title>{} – {} – {}</title>
<style>{STYLE}</style></head>
<body><main>"#,
        t.code,
        escape(t.title),
        escape(data.customer.as_deref().unwrap_or(&data.site)),
        escape(&t.period(data.period, &data.tz)),
    );
    head(&mut out, data, t);
    figures(&mut out, data, t);
    if data.totals.flows > 0 {
        traffic(&mut out, data, t);
        tables(&mut out, data, t);
    }
    quality_html::section(&mut out, data, t);
    footer(&mut out, data, t);
    out.push_str("</main></body></html>\n");
    out
}

fn head(out: &mut String, data: &ReportData, t: &Texts) {
    let title = match &data.customer {
        Some(customer) => format!("{}{}", escape(customer), t.honorific),
        None => escape(&data.site).into_owned(),
    };
    let _ = write!(out, r#"<header class="head"><p class="eyebrow">{}</p><h1>{title}</h1><dl class="facts">"#, t.title);
    for (name, value) in [
        (t.site, data.site.clone()),
        (t.period, t.period(data.period, &data.tz)),
        (t.time_zone, zone(&data.tz, data.period.from_ms)),
        (t.made, t.date_time(&zoned(data.made_ms, &data.tz))),
    ] {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value));
    }
    let _ = write!(out, "</dl></header>");
    lead(out, data, t);
    quality_html::verdict(out, data, t);
}

/// The period in two sentences.
fn lead(out: &mut String, data: &ReportData, t: &Texts) {
    let strong = |text: String| format!("<b>{text}</b>");
    let [octets_in, octets_out, ..] = data.totals.octets;
    let (peak, peak_in) = data.samples.peak(Direction::In);
    let peak_at = t.date_time(&zoned(data.samples.bounds(peak).0, &data.tz));
    let text = match octets_in.saturating_add(octets_out) {
        _ if data.totals.flows == 0 => t.no_flows,
        0 => t.lead_quiet,
        _ => t.lead,
    };
    let values = [
        ("in", strong(octets(octets_in))),
        ("out", strong(octets(octets_out))),
        ("all", strong(octets(data.totals.all()))),
        ("average_in", strong(rate(data.samples.average(Direction::In)))),
        ("peak_in", strong(rate(peak_in))),
        ("peak_at", strong(peak_at)),
    ];
    let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let _ = write!(out, r#"<p class="lead">{}</p>"#, fill(text, &values));
}

fn figures(out: &mut String, data: &ReportData, t: &Texts) {
    let [octets_in, octets_out, internal, transit] = data.totals.octets;
    let [before_in, before_out, before_internal, before_transit] = data.before.octets;
    out.push_str(r#"<dl class="figures">"#);
    figure(out, t, t.direction_in, "in", octets(octets_in), octets_in, before_in);
    figure(out, t, t.direction_out, "out", octets(octets_out), octets_out, before_out);
    figure(out, t, t.internal, "internal", octets(internal), internal, before_internal);
    if transit > 0 {
        figure(out, t, t.transit, "", octets(transit), transit, before_transit);
    }
    figure(out, t, t.packets, "", count(data.totals.packets), data.totals.packets, data.before.packets);
    figure(out, t, t.flows, "", count(data.totals.flows), data.totals.flows, data.before.flows);
    out.push_str("</dl>");
}

fn figure(out: &mut String, t: &Texts, name: &str, class: &str, value: String, now: u64, before: u64) {
    let key = if class.is_empty() { String::new() } else { format!(r#"<span class="key {class}"></span>"#) };
    let change = match change(now, before) {
        Some(change) => fill(t.change_of, &[("change", &change)]),
        None => t.change_none.to_owned(),
    };
    let (now, before) = (grouped(now), grouped(before));
    let _ = write!(
        out,
        r#"<div><dt>{key}{name}</dt><dd class="value" title="{now}">{value}</dd><dd class="change" title="{before} → {now}">{change}</dd></div>"#
    );
}

/// A count in full up to seven digits, then shortened: `12.3 M`.
fn count(value: u64) -> String {
    match value {
        0..10_000_000 => grouped(value),
        10_000_000..10_000_000_000 => format!("{:.1}\u{a0}M", value as f64 / 1e6),
        _ => format!("{:.1}\u{a0}G", value as f64 / 1e9),
    }
}

fn traffic(out: &mut String, data: &ReportData, t: &Texts) {
    let chart = data.samples.chart(&data.tz);
    let sample = sample_name(data, t);
    let step = t.duration(chart.edges[1] - chart.edges[0]);
    let note = if chart.steps() < data.samples.len() { t.traffic_note_long } else { t.traffic_note };
    let note = fill(note, &[("step", &step), ("sample", sample)]);
    let [octets_in, octets_out, internal, transit] = data.totals.octets;
    let _ = write!(out, r#"<section><h2>{}</h2><p class="note">{note}</p><div class="scroll">"#, t.traffic);
    if octets_in.saturating_add(octets_out) > 0 {
        out.push_str(&chart::traffic(&data.samples, &chart, data.period, &data.tz, t));
    }
    if internal > 0 {
        out.push_str(&chart::small(&chart, Direction::Internal, "internal", t.internal, data.period, &data.tz, t));
    }
    if transit > 0 {
        out.push_str(&chart::small(&chart, Direction::Transit, "internal", t.transit, data.period, &data.tz, t));
    }
    out.push_str("</div>");
    rates(out, data, t, sample);
    out.push_str("</section>");
}

/// The name of the samples that peak and percentile are taken over.
pub fn sample_name<'a>(data: &ReportData, t: &'a Texts) -> &'a str {
    match data.samples.step_ms() {
        ..60_000 => t.step_second,
        60_000 => t.step_1,
        _ => t.step_5,
    }
}

fn rates(out: &mut String, data: &ReportData, t: &Texts, sample: &str) {
    let _ = write!(
        out,
        r#"<div class="scroll"><table><caption><h3>{}</h3><span class="note">{sample}</span></caption><thead><tr><th scope="col"></th><th scope="col" class="n">{}</th><th scope="col" class="n">{}</th><th scope="col" class="n">{}</th><th scope="col" class="n">{}</th></tr></thead><tbody>"#,
        t.rates, t.average, t.percentile, t.peak, t.peak_at
    );
    for (direction, class, name) in [
        (Direction::In, "in", t.direction_in),
        (Direction::Out, "out", t.direction_out),
        (Direction::Internal, "internal", t.internal),
        (Direction::Transit, "internal", t.transit),
    ] {
        if direction == Direction::Transit && data.totals.octets[direction as usize] == 0 {
            continue;
        }
        let samples = &data.samples;
        let (peak, peak_rate) = samples.peak(direction);
        let at = if peak_rate > 0.0 { t.date_time(&zoned(samples.bounds(peak).0, &data.tz)) } else { "–".to_owned() };
        let cell = |value: f64| format!(r#"<td class="n" title="{value:.0} bit/s">{}</td>"#, rate(value));
        let _ = write!(
            out,
            r#"<tr><td class="t"><span class="key {class}"></span>{name}</td>{}{}{}<td class="n">{at}</td></tr>"#,
            cell(samples.average(direction)),
            cell(samples.percentile_95(direction)),
            cell(peak_rate)
        );
    }
    out.push_str("</tbody></table></div>");
}

fn tables(out: &mut String, data: &ReportData, t: &Texts) {
    let all = data.totals.all();
    let host = |host: &String| vec![address(host)];
    let table = |heading, note| Table { t, heading, note, whole: all, top: data.top };
    table(t.local_hosts, t.local_hosts_note).write(out, &[t.host], &data.local_hosts, host);
    table(t.remote_hosts, t.remote_hosts_note).write(out, &[t.host], &data.remote_hosts, host);
    let pair = |(a, b): &(String, String)| vec![address(a), address(b)];
    table(t.conversations, t.conversations_note).write(out, &[t.host, t.peer], &data.conversations, pair);
    table(t.ports, t.ports_note).write(out, &[t.port, t.service], &data.ports, |(protocol, port)| {
        let service = names::service(*protocol, *port).unwrap_or("");
        vec![
            format!("{port}\u{a0}/\u{a0}{}", protocol_name(*protocol)),
            format!(r#"<span class="service">{service}</span>"#),
        ]
    });
    table(t.protocols, "").write(out, &[t.protocol], &data.protocols, |protocol| vec![protocol_name(*protocol)]);
    if !data.vlans.is_empty() {
        let vlan = |vlan: &u16| vec![if *vlan == 0 { t.untagged.to_owned() } else { vlan.to_string() }];
        table(t.vlans, "").write(out, &[t.vlan], &data.vlans, vlan);
    }
    end_reasons(out, data, t);
}

fn protocol_name(number: u8) -> String {
    names::protocol(number).map_or_else(|| format!("IP {number}"), str::to_owned)
}

/// A table that is ordered by octets, with a bar that shows each row's in, out and other octets against the first row's.
struct Table<'a> {
    t: &'a Texts,
    heading: &'a str,
    note: &'a str,
    whole: u64,
    top: usize,
}

impl Table<'_> {
    fn write<Key>(
        &self,
        out: &mut String,
        columns: &[&str],
        rows: &[Ranked<Key>],
        cells: impl Fn(&Key) -> Vec<String>,
    ) {
        let t = self.t;
        let bound =
            if rows.len() >= self.top { fill(t.top_of, &[("top", &self.top.to_string())]) } else { String::new() };
        let note = [self.note, &bound].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        let _ = write!(out, r#"<section><div class="scroll"><table><caption><h2>{}</h2>"#, self.heading);
        if !note.is_empty() {
            let _ = write!(out, r#"<p class="note">{note}</p>"#);
        }
        let _ = write!(out, r#"</caption><thead><tr><th scope="col" class="wide"></th>"#);
        for column in columns {
            let _ = write!(out, r#"<th scope="col">{column}</th>"#);
        }
        let _ = write!(
            out,
            r#"<th scope="col"><span class="key in"></span><span class="key out"></span><span class="key internal"></span></th>"#
        );
        for (column, class) in
            [(t.direction_in, "n"), (t.direction_out, "n"), (t.total, "n"), (t.share, "n wide"), (t.flows, "n wide")]
        {
            let _ = write!(out, r#"<th scope="col" class="{class}">{column}</th>"#);
        }
        out.push_str("</tr></thead><tbody>");
        let largest = rows.first().map_or(0, |row| row.octets);
        for (rank, row) in rows.iter().enumerate() {
            self.row(out, rank + 1, row, largest, cells(&row.key));
        }
        if rows.is_empty() {
            let _ = write!(out, r#"<tr><td colspan="{}">{}</td></tr>"#, columns.len() + 7, t.none);
        }
        out.push_str("</tbody></table></div></section>");
    }

    fn row<Key>(&self, out: &mut String, rank: usize, row: &Ranked<Key>, largest: u64, cells: Vec<String>) {
        let _ = write!(out, r#"<tr><td class="rank n wide">{rank}</td>"#);
        for cell in cells {
            let _ = write!(out, "<td>{cell}</td>");
        }
        let other = row.octets.saturating_sub(row.octets_in).saturating_sub(row.octets_out);
        let width = |part: u64| part as f64 * 100.0 / largest.max(1) as f64;
        let _ = write!(out, r#"<td class="bar"><div class="bars">"#);
        for (class, part) in [("in", row.octets_in), ("out", row.octets_out), ("internal", other)] {
            if part > 0 {
                let _ = write!(out, r#"<i class="{class}" style="width:{:.2}%"></i>"#, width(part));
            }
        }
        out.push_str("</div></td>");
        for value in [row.octets_in, row.octets_out, row.octets] {
            let _ = write!(out, r#"<td class="n" title="{} B">{}</td>"#, grouped(value), octets(value));
        }
        let _ = write!(
            out,
            r#"<td class="n wide">{}</td><td class="n wide">{}</td></tr>"#,
            share(row.octets, self.whole),
            grouped(row.flows)
        );
    }
}

/// Small, and by count: an end reason says something of flow records, not of octets.
fn end_reasons(out: &mut String, data: &ReportData, t: &Texts) {
    let _ = write!(
        out,
        r#"<section><div class="scroll"><table><caption><h2>{}</h2></caption><thead><tr><th scope="col">{}</th><th scope="col" class="n">{}</th><th scope="col" class="n">{}</th></tr></thead><tbody>"#,
        t.end_reasons, t.end_reason, t.flows, t.share
    );
    for row in &data.end_reasons {
        let _ = write!(
            out,
            r#"<tr><td>{}</td><td class="n">{}</td><td class="n">{}</td></tr>"#,
            t.reason(row.key),
            grouped(row.flows),
            share(row.flows, data.totals.flows)
        );
    }
    out.push_str("</tbody></table></div></section>");
}

fn footer(out: &mut String, data: &ReportData, t: &Texts) {
    let networks = data.local.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let _ = write!(out, "<footer><h2>{}</h2><ul>", t.notes);
    for note in [
        fill(t.notes_local, &[("networks", &networks)]),
        t.notes_flows.to_owned(),
        t.notes_octets.to_owned(),
        fill(t.notes_percentile, &[("sample", sample_name(data, t))]),
    ] {
        let _ = write!(out, "<li>{note}</li>");
    }
    let _ = write!(out, "</ul><p>{}</p></footer>", t.made_by);
}
