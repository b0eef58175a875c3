//! Charts as inline SVG. Colours and type come from the page's style sheet, so that they follow dark mode and print.

#![forbid(unsafe_code)]

use std::fmt::Write;

use jiff::Span;
use jiff::tz::TimeZone;

use super::buckets::{Chart, Direction, Samples};
use super::format::{escape, octets, rate, zoned};
use super::lang::{Texts, fill};
use super::model::{Interruption, Period};

const WIDTH: f64 = 840.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 26.0;
const PLOT_HEIGHT: f64 = 250.0;
const SMALL_HEIGHT: f64 = 64.0;
const TICKS_MAX: i64 = 9;

/// The main chart: inbound upwards, outbound downwards from one base line, on one scale.
pub fn traffic(samples: &Samples, chart: &Chart, period: Period, tz: &TimeZone, t: &Texts) -> String {
    let percentiles = [samples.percentile_95(Direction::In), samples.percentile_95(Direction::Out)];
    let peaks = [samples.peak(Direction::In), samples.peak(Direction::Out)];
    let unit = nice_step((peaks[0].1 + peaks[1].1).max(1.0) / 5.0);
    let reach = [peaks[0].1, peaks[1].1].map(|peak| (peak / unit).ceil().max(1.0) * unit);
    let scale = PLOT_HEIGHT / (reach[0] + reach[1]);
    let base = TOP + reach[0] * scale;
    let (x, height) = (TimeScale { period }, TOP + PLOT_HEIGHT + BOTTOM);

    let (peak_in, peak_out) = (rate(peaks[0].1), rate(peaks[1].1));
    let desc = fill(t.traffic_desc, &[("peak_in", &peak_in), ("peak_out", &peak_out)]);
    let mut out = open(height, t.traffic_chart, &desc);
    time_axis(&mut out, &x, tz, t, TOP, TOP + PLOT_HEIGHT);
    for line in -((reach[1] / unit).round() as i64)..=(reach[0] / unit).round() as i64 {
        value_line(&mut out, base - line as f64 * unit * scale, &round_rate(line.unsigned_abs() as f64 * unit));
    }
    let sides = [(Direction::In, "in", -scale), (Direction::Out, "out", scale)];
    for (direction, class, scale) in sides {
        let area = steps(chart, &x, base, |step| chart.rate(direction, step) * scale);
        let _ = write!(out, r#"<path class="area {class}" d="{area}Z"/>"#);
        if chart.steps() < samples.len() {
            let envelope = steps(chart, &x, base, |step| chart.peaks[direction as usize][step] * scale);
            let _ = write!(out, r#"<path class="line {class}" d="{envelope}"/>"#);
        }
    }
    let _ = write!(out, r#"<path class="base" d="M{LEFT} {base:.1}H{:.1}"/>"#, WIDTH - RIGHT);
    for (index, (_, class, scale)) in sides.into_iter().enumerate() {
        let peak_x = x.at(samples.bounds(peaks[index].0).0);
        percentile(
            &mut out,
            base + percentiles[index] * scale,
            class,
            peak_x,
            &format!("{} {}", t.percentile, rate(percentiles[index])),
            percentiles[index],
        );
    }
    for (y, arrow, name) in [(TOP + 14.0, '▲', t.direction_in), (TOP + PLOT_HEIGHT - 6.0, '▼', t.direction_out)] {
        let _ = write!(out, r#"<text class="name" x="{:.1}" y="{y:.1}">{arrow} {}</text>"#, LEFT + 6.0, escape(name));
    }
    hover(&mut out, chart, &x, tz, t);
    out.push_str("</svg>");
    out
}

/// A small chart of one direction alone, on its own scale.
pub fn small(
    chart: &Chart,
    direction: Direction,
    class: &str,
    name: &str,
    period: Period,
    tz: &TimeZone,
    t: &Texts,
) -> String {
    let peak = (0..chart.steps()).map(|step| chart.rate(direction, step)).fold(0.0, f64::max);
    let unit = nice_step(peak.max(1.0) / 2.0);
    let reach = (peak / unit).ceil().max(1.0) * unit;
    let scale = SMALL_HEIGHT / reach;
    let (base, x) = (TOP + SMALL_HEIGHT, TimeScale { period });
    let mut out = open(base + BOTTOM, name, &format!("{}: {}", t.peak, rate(peak)));
    time_axis(&mut out, &x, tz, t, TOP, base);
    for line in 0..=(reach / unit).round() as i64 {
        value_line(&mut out, base - line as f64 * unit * scale, &round_rate(line as f64 * unit));
    }
    let area = steps(chart, &x, base, |step| -chart.rate(direction, step) * scale);
    let _ = write!(
        out,
        r#"<path class="area {class}" d="{area}Z"/><path class="base" d="M{LEFT} {base:.1}H{:.1}"/>"#,
        WIDTH - RIGHT
    );
    let _ = write!(out, r#"<text class="name" x="{LEFT}" y="{:.1}">{}</text></svg>"#, TOP - 7.0, escape(name));
    out
}

/// When an exporter was heard from, as a strip: full where all steps of a cell were, light where some were. Over it, when it did
/// not meter: each with its words.
pub fn heard(heard: &[bool], label: &str, period: Period, interruptions: &[(&Interruption, String)]) -> String {
    const CELLS: usize = 96;
    let cells = heard.len().min(CELLS);
    let mut out = format!(
        r#"<svg class="strip" viewBox="0 0 {cells} 10" preserveAspectRatio="none" role="img"><title>{}</title>"#,
        escape(label)
    );
    let class = |cell: usize| {
        let steps = &heard[cell * heard.len() / cells..(cell + 1) * heard.len() / cells];
        match steps.iter().filter(|heard| **heard).count() {
            0 => "gone",
            count if count < steps.len() => "some",
            _ => "here",
        }
    };
    let classes: Vec<&str> = (0..cells).map(class).collect();
    let mut x = 0;
    for run in classes.chunk_by(|a, b| a == b) {
        // What is missing is lower too, so that grey print shows it.
        let (y, height) = if run[0] == "gone" { (7, 3) } else { (0, 10) };
        let _ = write!(out, r#"<rect class="{}" x="{x}" y="{y}" width="{}" height="{height}"/>"#, run[0], run.len());
        x += run.len();
    }
    let part = |time_ms: i64| {
        let part = time_ms.saturating_sub(period.from_ms) as f64 / period.length_ms().max(1) as f64;
        part.clamp(0.0, 1.0) * cells as f64
    };
    for (interruption, words) in interruptions {
        let (from, to) = (part(interruption.from_ms), part(interruption.to_ms));
        let class = if interruption.killed { "killed" } else { "stopped" };
        let _ = write!(
            out,
            r#"<rect class="{class}" x="{from:.2}" y="0" width="{:.2}" height="10"><title>{}</title></rect>"#,
            to - from,
            escape(words)
        );
    }
    out.push_str("</svg>");
    out
}

struct TimeScale {
    period: Period,
}

impl TimeScale {
    fn at(&self, time_ms: i64) -> f64 {
        let part = (time_ms - self.period.from_ms) as f64 / self.period.length_ms().max(1) as f64;
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }
}

fn open(height: f64, title: &str, desc: &str) -> String {
    let (title, desc) = (escape(title), escape(desc));
    format!(
        r#"<svg class="chart" viewBox="0 0 {WIDTH} {height:.0}" role="img"><title>{title}</title><desc>{desc}</desc>"#
    )
}

/// A step line over the chart's steps: each is as wide as its time. `offset` is a step's distance from the base line.
fn steps(chart: &Chart, x: &TimeScale, base: f64, offset: impl Fn(usize) -> f64) -> String {
    let mut path = format!("M{:.1} {base:.1}", x.at(chart.edges[0]));
    for step in 0..chart.steps() {
        let _ = write!(path, "V{:.1}H{:.1}", base + offset(step), x.at(chart.edges[step + 1]));
    }
    let _ = write!(path, "V{base:.1}");
    path
}

fn value_line(out: &mut String, y: f64, label: &str) {
    let _ = write!(
        out,
        r#"<path class="grid" d="M{LEFT} {y:.1}H{:.1}"/><text class="tick" text-anchor="end" x="{:.1}" y="{:.1}">{label}</text>"#,
        WIDTH - RIGHT,
        LEFT - 7.0,
        y + 3.5
    );
}

/// The dashed line of a 95th percentile, with its label at the end that is away from the peak.
fn percentile(out: &mut String, y: f64, class: &str, peak_x: f64, label: &str, value: f64) {
    if value <= 0.0 {
        return;
    }
    let (x, anchor) = if peak_x > WIDTH / 2.0 { (LEFT + 6.0, "start") } else { (WIDTH - RIGHT - 6.0, "end") };
    let label_y = if class == "in" { y - 4.0 } else { y + 12.0 };
    let _ = write!(
        out,
        r#"<path class="percentile" d="M{LEFT} {y:.1}H{:.1}"/><text class="mark" text-anchor="{anchor}" x="{x:.1}" y="{label_y:.1}">{label}</text>"#,
        WIDTH - RIGHT
    );
}

fn time_axis(out: &mut String, x: &TimeScale, tz: &TimeZone, t: &Texts, top: f64, bottom: f64) {
    for (time_ms, label) in time_ticks(x.period, tz, t) {
        let at = x.at(time_ms);
        let anchor = if at > WIDTH - 30.0 { "end" } else { "middle" };
        let _ = write!(
            out,
            r#"<path class="grid" d="M{at:.1} {top:.1}V{:.1}"/><text class="tick" text-anchor="{anchor}" x="{at:.1}" y="{:.1}">{}</text>"#,
            bottom + 4.0,
            bottom + 16.0,
            escape(&label)
        );
    }
}

const MINUTE_MS: i64 = 60_000;

/// Round times of the time zone, a handful over the period; midnight is labelled by its date.
fn time_ticks(period: Period, tz: &TimeZone, t: &Texts) -> Vec<(i64, String)> {
    let seconds = [1, 2, 5, 10, 15, 30].map(|seconds| seconds * 1000);
    let minutes = [1, 2, 5, 10, 15, 30, 60, 120, 180, 240, 360, 720].map(|minutes| minutes * MINUTE_MS);
    match seconds.into_iter().chain(minutes).find(|step| period.length_ms() / step <= TICKS_MAX) {
        Some(step) => clock_ticks(period, tz, t, step),
        None => day_ticks(period, tz, t),
    }
}

fn clock_ticks(period: Period, tz: &TimeZone, t: &Texts, step: i64) -> Vec<(i64, String)> {
    let offset = i64::from(zoned(period.from_ms, tz).offset().seconds()) * 1000;
    let first = (period.from_ms + offset).div_euclid(step) * step - offset;
    let format = if step < MINUTE_MS { "%H:%M:%S" } else { "%H:%M" };
    let times = (0..).map(|index| first + index * step).skip_while(|time| *time < period.from_ms);
    times
        .take_while(|time| *time <= period.to_ms)
        .map(|time| {
            let at = zoned(time, tz);
            let clock = at.strftime(format).to_string();
            (time, if clock == "00:00" { at.strftime(t.tick_date).to_string() } else { clock })
        })
        .collect()
}

fn day_ticks(period: Period, tz: &TimeZone, t: &Texts) -> Vec<(i64, String)> {
    let days = period.length_ms() / 86_400_000;
    let every =
        [1, 2, 7, 14, 28, 91, 182].into_iter().find(|every| days / every <= TICKS_MAX).unwrap_or(days / TICKS_MAX + 1);
    let Ok(first) = zoned(period.from_ms, tz).start_of_day() else { return Vec::new() };
    (0..)
        .map_while(|index| first.checked_add(Span::new().try_days(index * every).ok()?).ok())
        .map(|day| (day.timestamp().as_millisecond(), day.strftime(t.tick_date).to_string()))
        .skip_while(|(time, _)| *time < period.from_ms)
        .take_while(|(time, _)| *time <= period.to_ms)
        .collect()
}

/// Invisible columns that say the exact figures to a pointer that rests on them.
fn hover(out: &mut String, chart: &Chart, x: &TimeScale, tz: &TimeZone, t: &Texts) {
    let _ = write!(out, r#"<g class="hover">"#);
    for step in 0..chart.steps() {
        let (from, to) = (chart.edges[step], chart.edges[step + 1]);
        let figures = [(Direction::In, t.direction_in), (Direction::Out, t.direction_out)].map(|(direction, name)| {
            format!("{name} {} ({})", rate(chart.rate(direction, step)), octets(chart.octets[direction as usize][step]))
        });
        let _ = write!(
            out,
            r#"<rect x="{:.1}" y="{TOP}" width="{:.1}" height="{PLOT_HEIGHT}"><title>{} – {}&#10;{}&#10;{}</title></rect>"#,
            x.at(from),
            x.at(to) - x.at(from),
            t.date_time(&zoned(from, tz)),
            zoned(to, tz).strftime("%H:%M"),
            figures[0],
            figures[1]
        );
    }
    out.push_str("</g>");
}

/// A rate that is round already, without zeros behind the point.
fn round_rate(bits_per_second: f64) -> String {
    let text = rate(bits_per_second);
    match text.split_once('\u{a0}') {
        Some((number, unit)) if number.contains('.') => {
            format!("{}\u{a0}{unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// 1, 2 or 5 times a power of ten, not less than `least`.
fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= least * 0.999)
        .unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::lang::Lang;

    #[test]
    fn steps_are_round() {
        for (least, step) in [(1.0, 1.0), (1.1, 2.0), (3.0, 5.0), (7.0, 10.0), (1_234_567.0, 2_000_000.0), (0.02, 0.02)]
        {
            assert!((nice_step(least) - step).abs() < step * 1e-9, "{least}");
        }
    }

    #[test]
    fn ticks_are_few_round_and_inside() {
        let tz = TimeZone::get("Asia/Kolkata").expect("the time zone database (tzdata) is installed");
        let from_ms = 1_764_000_123_456;
        for hours in [1, 2, 24, 48, 24 * 7, 24 * 31, 24 * 365, 24 * 3650] {
            let period = Period { from_ms, to_ms: from_ms + hours * 3_600_000 };
            let ticks = time_ticks(period, &tz, Lang::En.texts());
            assert!((3..=11).contains(&ticks.len()), "{hours} h: {ticks:?}");
            assert!(ticks.iter().all(|(time, _)| (period.from_ms..=period.to_ms).contains(time)));
            assert!(ticks.iter().all(|(time, _)| zoned(*time, &tz).strftime("%S").to_string() == "00"));
        }
    }
}
