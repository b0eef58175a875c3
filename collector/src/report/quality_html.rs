//! The report's section on data quality: what was checked, in sentences; the equations; who reported and when.

#![forbid(unsafe_code)]

use std::fmt::Write;

use super::chart;
use super::format::{address, escape, octets, share, zoned};
use super::lang::{Texts, fill};
use super::ledger::{LEFT_IN_SPOOL, SPOOLED};
use super::model::{Exporter, Interruption, Kind, Period, Process, Quality, ReportData, Session};
use nagare_service::units::grouped;

/// Interruptions of metering that are told in words, and those that are drawn for each exporter. The CSV holds all.
const INTERRUPTIONS_TOLD: usize = 10;
const INTERRUPTIONS_DRAWN: usize = 100;
/// A session without an end whose last row is no older than this still runs.
const RUNNING_WITHIN_MS: i64 = 15 * 60_000;

/// The outcome of one check, never told by colour alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Good,
    Unknown,
    Look,
}

impl Mark {
    fn class(self) -> &'static str {
        match self {
            Mark::Good => "good",
            Mark::Unknown => "unknown",
            Mark::Look => "look",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Mark::Good => "✓",
            Mark::Unknown => "–",
            Mark::Look => "▲",
        }
    }
}

/// One line at the head of the report that says whether all is well.
pub fn verdict(out: &mut String, data: &ReportData, t: &Texts) {
    let worst = checks(data, t).into_iter().map(|(mark, _)| mark).max().unwrap_or(Mark::Unknown);
    let text = match worst {
        Mark::Good => t.verdict_good,
        Mark::Unknown => t.verdict_unknown,
        Mark::Look => t.verdict_look,
    };
    let _ = write!(out, r##"<a class="verdict {}" href="#quality">{} {text}</a>"##, worst.class(), worst.sign());
}

/// The whole section.
pub fn section(out: &mut String, data: &ReportData, t: &Texts) {
    let quality = &data.quality;
    let _ = write!(
        out,
        r#"<section id="quality"><h2>{}</h2><p class="note">{}</p><ul class="checks">"#,
        t.quality, t.quality_note
    );
    for (mark, text) in checks(data, t) {
        let _ = write!(out, r#"<li><span class="mark {}">{}</span>{text}</li>"#, mark.class(), mark.sign());
    }
    if let (true, Some(window)) = (quality.replayed, quality.window) {
        let text = fill(t.replayed, &[("window", &t.period(window, &data.tz))]);
        let _ = write!(out, r#"<li><span class="mark unknown">–</span>{text}</li>"#);
    }
    let waiting = quality.of(Kind::Exporting).map(|process| process.term(SPOOLED)).fold(0, u64::saturating_add);
    if waiting > 0 {
        let text = fill(t.flows_waiting, &[("waiting", &grouped(waiting))]);
        let _ = write!(out, r#"<li><span class="mark unknown">–</span>{text}</li>"#);
    }
    out.push_str("</ul>");
    equations(out, quality, t);
    out.push_str("</section>");
    books(out, quality, t);
    exporters(out, data, t);
    sessions(out, data, t);
    statistics(out, quality, t);
}

fn checks(data: &ReportData, t: &Texts) -> Vec<(Mark, String)> {
    let quality = &data.quality;
    let packets = [t.packets_good, t.packets_dropped, t.packets_unbalanced, t.packets_unknown];
    let flows = [t.flows_good, t.flows_dropped, t.flows_unbalanced, t.flows_unknown];
    let mut checks = vec![
        book_check(quality, Kind::Metering, packets),
        book_check(quality, Kind::Exporting, flows),
        sequence_check(quality, t),
        gap_check(quality, t),
    ];
    checks.extend(interruption_checks(data, t));
    checks
}

fn book_check(quality: &Quality, kind: Kind, [good, dropped_text, unbalanced, unknown]: [&str; 4]) -> (Mark, String) {
    let sum = |of: fn(&Process) -> u64| quality.of(kind).map(of).fold(0u64, u64::saturating_add);
    let total = sum(|process| process.total.unwrap_or(0));
    let dropped = sum(|process| process.sum("drop."));
    let difference =
        sum(|process| process.total.unwrap_or(0).saturating_add(process.opening).abs_diff(process.sum("")));
    let (total_text, dropped_count) = (grouped(total), grouped(dropped));
    let values = [
        ("total", total_text.as_str()),
        ("dropped", &dropped_count),
        ("share", &share(dropped, total)),
        ("difference", &grouped(difference)),
    ];
    match quality.balanced(kind) {
        None => (Mark::Unknown, unknown.to_owned()),
        Some(false) => (Mark::Look, fill(unbalanced, &values)),
        Some(true) if dropped > 0 => (Mark::Look, fill(dropped_text, &values)),
        Some(true) => (Mark::Good, fill(good, &values)),
    }
}

fn sequence_check(quality: &Quality, t: &Texts) -> (Mark, String) {
    let sums = quality.session_sums;
    let values = [("records", grouped(sums.records)), ("lost", grouped(sums.lost)), ("gaps", grouped(sums.gaps))];
    let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    match sums {
        sums if sums.sessions == 0 => (Mark::Unknown, t.sequence_unknown.to_owned()),
        sums if sums.lost > 0 => (Mark::Look, fill(t.sequence_lost, &values)),
        _ => (Mark::Good, fill(t.sequence_good, &values)),
    }
}

fn gap_check(quality: &Quality, t: &Texts) -> (Mark, String) {
    if quality.exporters.is_empty() {
        return (Mark::Unknown, t.gaps_unknown.to_owned());
    }
    let gaps = || quality.exporters.iter().flat_map(|exporter| &exporter.gaps);
    let (count, length) = (gaps().count(), gaps().map(Period::length_ms).sum());
    if count == 0 {
        return (Mark::Good, t.gaps_good.to_owned());
    }
    (Mark::Look, fill(t.gaps_some, &[("count", &count.to_string()), ("duration", &t.duration(length))]))
}

/// Each interruption of metering in a sentence. A probe without a spool tells of none, so that none is no good news.
fn interruption_checks(data: &ReportData, t: &Texts) -> Vec<(Mark, String)> {
    let all = &data.quality.interruptions;
    let sentence = |interruption: &Interruption| {
        let text = if interruption.killed { t.interrupted_killed } else { t.interrupted_stopped };
        interrupted(text, interruption, data, t)
    };
    let mut checks: Vec<_> = all.iter().take(INTERRUPTIONS_TOLD).map(|one| (Mark::Look, sentence(one))).collect();
    if all.len() > INTERRUPTIONS_TOLD {
        let count = grouped((all.len() - INTERRUPTIONS_TOLD) as u64);
        checks.push((Mark::Look, fill(t.interrupted_more, &[("count", &count)])));
    }
    checks
}

fn interrupted(text: &str, interruption: &Interruption, data: &ReportData, t: &Texts) -> String {
    let period = interruption.period();
    let [from, to] = t.ends(period, &data.tz);
    let values = [
        ("exporter", &*address(&interruption.exporter)),
        ("from", &from),
        ("to", &to),
        ("duration", &t.duration(period.length_ms())),
    ];
    fill(text, &values)
}

fn equations(out: &mut String, quality: &Quality, t: &Texts) {
    if quality.processes.is_empty() {
        return;
    }
    out.push_str(r#"<div class="equations">"#);
    let metering = [(t.metered, "metered"), (t.ignored, "ignore."), (t.dropped, "drop.")];
    equation(out, quality, Kind::Metering, t.equation_packets, t.on_wire, &metering, t);
    let exporting = [(t.delivered, "delivered"), (t.dropped, "drop.")];
    equation(out, quality, Kind::Exporting, t.equation_flows, t.ended, &exporting, t);
    out.push_str("</div>");
}

/// All processes of one kind in one line: what came in, and what became of it.
fn equation(
    out: &mut String,
    quality: &Quality,
    kind: Kind,
    what: &str,
    total_name: &str,
    terms: &[(&str, &str)],
    t: &Texts,
) {
    let Some(balanced) = quality.balanced(kind) else { return };
    let sum = |of: &dyn Fn(&Process) -> u64| quality.of(kind).map(of).fold(0u64, u64::saturating_add);
    let term =
        |value: u64, name: &str| format!(r#"<span class="term"><b>{}</b><span>{name}</span></span>"#, grouped(value));
    let sign = |sign: char| format!(r#"<span class="sign">{sign}</span>"#);
    let mut left = vec![term(sum(&|process| process.total.unwrap_or(0)), total_name)];
    let opening = sum(&|process| process.opening);
    if opening > 0 {
        left.push(term(opening, t.carried_over));
    }
    let mut right: Vec<String> =
        terms.iter().map(|(name, prefix)| term(sum(&|process| process.sum(prefix)), name)).collect();
    let [spooled, left_behind, on_the_way] =
        [SPOOLED, LEFT_IN_SPOOL, "in_flight"].map(|stock| sum(&|process| process.sum(stock)));
    let named = |process: &Process| terms.iter().map(|(_, prefix)| process.sum(prefix)).fold(0, u64::saturating_add);
    let other = sum(&|process| process.sum("").saturating_sub(named(process)));
    let other = [spooled, left_behind, on_the_way].into_iter().fold(other, u64::saturating_sub);
    let stocks = [(spooled, t.spooled), (left_behind, t.left_in_spool), (on_the_way, t.in_flight)];
    for (value, name) in stocks.into_iter().chain([(other, t.other_terms)]) {
        if value > 0 {
            right.push(term(value, name));
        }
    }
    let mark = if balanced { (Mark::Good, t.balanced) } else { (Mark::Look, t.not_balanced) };
    let _ = write!(
        out,
        r#"<p class="equation"><span class="what">{what}</span>{}{}{}<span class="mark {}">{} {}</span></p>"#,
        left.join(&sign('+')),
        sign('='),
        right.join(&sign('+')),
        mark.0.class(),
        mark.0.sign(),
        mark.1
    );
}

fn open_table(out: &mut String, heading: &str, note: &str, columns: &[(&str, &str)]) {
    let _ = write!(
        out,
        r#"<section><div class="scroll"><table><caption><h3>{heading}</h3><p class="note">{note}</p></caption><thead><tr>"#
    );
    for (column, class) in columns {
        let _ = write!(out, r#"<th scope="col" class="{class}">{column}</th>"#);
    }
    out.push_str("</tr></thead><tbody>");
}

fn books(out: &mut String, quality: &Quality, t: &Texts) {
    if quality.processes.is_empty() {
        return;
    }
    open_table(
        out,
        t.books,
        t.books_note,
        &[(t.exporter, ""), (t.process, ""), (t.total, "n"), ("", ""), (t.restarts, "n wide"), ("", "n")],
    );
    // A process that never had anything to do says nothing; the CSV holds it.
    let idle = |process: &&Process| process.total == Some(0) && process.opening == 0 && process.sum("") == 0;
    for process in quality.processes.iter().filter(|process| !idle(process)) {
        let kind = if process.kind == Kind::Metering { t.metering } else { t.exporting };
        let (mark, word) = match process.total {
            None => (Mark::Look, t.incomplete),
            Some(_) if process.balanced() => (Mark::Good, t.balanced),
            Some(_) => (Mark::Look, t.not_balanced),
        };
        let _ = write!(
            out,
            r#"<tr><td>{}</td><td class="t">{kind} {}</td><td class="n">{}<br><code>{}</code></td><td class="free">{}</td><td class="n wide">{}</td><td class="n {}">{} {word}</td></tr>"#,
            address(&process.exporter),
            process.id,
            process.total.map_or_else(|| "–".to_owned(), grouped),
            process.kind.total(),
            terms(process, t),
            process.restarts,
            mark.class(),
            mark.sign()
        );
    }
    out.push_str("</tbody></table></div></section>");
}

/// The right side of the equation. A drop or ignore that never happened is left out; the CSV holds it.
fn terms(process: &Process, t: &Texts) -> String {
    let always = |name: &str| !name.contains('.') && !["in_flight", SPOOLED].contains(&name);
    let mut shown: Vec<_> = process.terms.iter().filter(|(name, value)| *value > 0 || always(name)).collect();
    shown.sort_by_key(|(name, _)| !always(name));
    let parts = shown.iter().map(|(name, value)| format!("{}\u{a0}<code>{}</code>", grouped(*value), escape(name)));
    let parts = parts.collect::<Vec<_>>().join(" + ");
    match process.opening {
        0 => format!(r#"<p class="terms">= {parts}</p>"#),
        opening => format!(r#"<p class="terms">+ {} {} = {parts}</p>"#, grouped(opening), t.carried_over),
    }
}

fn exporters(out: &mut String, data: &ReportData, t: &Texts) {
    let quality = &data.quality;
    if quality.exporters.is_empty() {
        return;
    }
    let mut note = t.exporters_note.to_owned();
    if !quality.interruptions.is_empty() {
        let _ = write!(note, " {}", t.exporters_note_interrupted);
    }
    open_table(
        out,
        t.exporters,
        &note,
        &[
            (t.exporter, ""),
            (t.seen, ""),
            (t.coverage, ""),
            (t.exported, "n"),
            (t.received, "n"),
            (t.lost, "n"),
            (t.gap_list, ""),
        ],
    );
    for exporter in &quality.exporters {
        exporter_row(out, exporter, data, t);
    }
    omitted(out, quality.exporters_omitted, 7, t);
    out.push_str("</tbody></table></div></section>");
}

fn exporter_row(out: &mut String, exporter: &Exporter, data: &ReportData, t: &Texts) {
    const GAPS_LISTED: usize = 5;
    let seen = exporter.seen.map_or_else(|| "–".to_owned(), |seen| t.period(seen, &data.tz));
    let heard = exporter.heard.iter().filter(|heard| **heard).count() as u64;
    let label = share(heard, exporter.heard.len() as u64);
    let mut gaps: Vec<String> = exporter
        .gaps
        .iter()
        .take(GAPS_LISTED)
        .map(|gap| format!("{} ({})", t.period(*gap, &data.tz), t.duration(gap.length_ms())))
        .collect();
    if exporter.gaps.len() > GAPS_LISTED {
        gaps.push(fill(t.omitted, &[("count", &(exporter.gaps.len() - GAPS_LISTED).to_string())]));
    }
    let gaps = if gaps.is_empty() { "–".to_owned() } else { gaps.join("<br>") };
    let interruptions = data.quality.interruptions.iter().filter(|one| one.exporter == exporter.name);
    let interruptions: Vec<(&Interruption, String)> = interruptions
        .take(INTERRUPTIONS_DRAWN)
        .map(|one| (one, interrupted(t.interrupted_short, one, data, t)))
        .collect();
    let lost_class = if exporter.lost > 0 { "n look" } else { "n" };
    let _ = write!(
        out,
        r#"<tr><td>{}</td><td>{seen}</td><td>{}</td><td class="n">{}</td><td class="n">{}</td><td class="{lost_class}">{}</td><td>{gaps}</td></tr>"#,
        address(&exporter.name),
        chart::heard(&exporter.heard, &label, data.period, &interruptions),
        exporter.exported.map_or_else(|| "–".to_owned(), grouped),
        grouped(exporter.flows),
        grouped(exporter.lost)
    );
}

fn omitted(out: &mut String, count: u64, columns: usize, t: &Texts) {
    if count > 0 {
        let _ =
            write!(out, r#"<tr><td colspan="{columns}">{}</td></tr>"#, fill(t.omitted, &[("count", &grouped(count))]));
    }
}

fn sessions(out: &mut String, data: &ReportData, t: &Texts) {
    let quality = &data.quality;
    if quality.sessions.is_empty() {
        return;
    }
    let note = fill(t.sessions_note, &[("count", &grouped(quality.session_sums.sessions))]);
    open_table(
        out,
        t.sessions,
        &note,
        &[
            (t.exporter, ""),
            (t.transport, "wide"),
            (t.start, ""),
            (t.end, ""),
            (t.messages, "n wide"),
            (t.records, "n"),
            (t.gaps, "n"),
            (t.lost, "n"),
            (t.ended_note, "wide"),
        ],
    );
    for session in &quality.sessions {
        session_row(out, session, data, t);
    }
    omitted(out, quality.session_sums.sessions.saturating_sub(quality.sessions.len() as u64), 9, t);
    out.push_str("</tbody></table></div></section>");
}

fn session_row(out: &mut String, session: &Session, data: &ReportData, t: &Texts) {
    let time = |time_ms| t.date_time(&zoned(time_ms, &data.tz));
    let recent_ms = data.made_ms.min(data.quality.window.map_or(i64::MAX, |window| window.to_ms)) - RUNNING_WITHIN_MS;
    let end = match session.ended {
        true => time(session.last_ms),
        false if session.last_ms >= recent_ms => t.running.to_owned(),
        // The collector noted no end: it was stopped itself.
        false => fill(t.last_seen, &[("time", &time(session.last_ms))]),
    };
    let lost_class = if session.lost > 0 { "n look" } else { "n" };
    let _ = write!(
        out,
        r#"<tr><td>{}</td><td class="wide">{}</td><td>{}</td><td>{end}</td><td class="n wide" title="{}">{}</td><td class="n">{}</td><td class="n">{}</td><td class="{lost_class}">{}</td><td class="wide free">{}</td></tr>"#,
        address(&session.exporter),
        escape(&session.transport),
        time(session.start_ms),
        octets(session.octets),
        grouped(session.messages),
        grouped(session.records),
        grouped(session.gaps),
        grouped(session.lost),
        escape(&session.note)
    );
}

fn statistics(out: &mut String, quality: &Quality, t: &Texts) {
    if quality.statistics.is_empty() {
        return;
    }
    open_table(
        out,
        t.statistics,
        t.statistics_note,
        &[
            (t.exporter, ""),
            (t.process, "n"),
            (t.uptime, "n"),
            (t.messages, "n"),
            (t.records, "n"),
            (t.octets_sent, "n"),
            (t.not_sent_flows, "n"),
        ],
    );
    for process in &quality.statistics {
        let uptime = process.started_ms.map_or_else(|| "–".to_owned(), |started| t.duration(process.last_ms - started));
        let _ = write!(
            out,
            r#"<tr><td>{}</td><td class="n">{}</td><td class="n">{uptime}</td><td class="n">{}</td><td class="n">{}</td><td class="n">{}</td><td class="n">{}</td></tr>"#,
            address(&process.exporter),
            process.id,
            grouped(process.counter("messages")),
            grouped(process.counter("records")),
            octets(process.counter("octets")),
            grouped(process.counter("not_sent_flows"))
        );
    }
    out.push_str("</tbody></table></div></section>");
}
