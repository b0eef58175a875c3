//! Bars, and lines over time, as SVG pictures.

use std::fmt::Write;

/// Pixels: of the picture, of the names, of a bar with the room around it, and above the first one.
const WIDTH: f64 = 760.0;
const NAMES: f64 = 300.0;
const BAR: f64 = 34.0;
const TOP: f64 = 48.0;

/// One bar: its name, its value, and the mark that it is to reach.
pub struct Bar {
    /// Left of the bar.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// Where a line is drawn across it.
    pub target: Option<f64>,
}

/// Horizontal bars under a title, all of one unit; a line across a bar is its target.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.value.max(bar.target.unwrap_or(0.0))).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - NAMES - 90.0) / most;
    let height = TOP + BAR * bars.len() as f64 + 10.0;
    let mut svg = head(title, height);
    for (index, bar) in bars.iter().enumerate() {
        let top = TOP + BAR * index as f64;
        let (length, middle) = (bar.value * scale, top + 18.0);
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{}\" width=\"{length:.1}\" height=\"22\" fill=\"#2b6cb0\"/>\
             <text x=\"{:.1}\" y=\"{middle}\">{:.1} {}</text>",
            NAMES - 8.0,
            escaped(&bar.name),
            top + 2.0,
            NAMES + length + 6.0,
            bar.value,
            escaped(unit)
        )
        .expect("writing to a String cannot fail");
        if let Some(target) = bar.target {
            let x = NAMES + target * scale;
            let (from, to) = (top - 1.0, top + 27.0);
            writeln!(svg, "<path d=\"M{x:.1} {from}V{to}\" stroke=\"#c53030\" stroke-width=\"2\"/>")
                .expect("writing to a String cannot fail");
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// The beginning of a picture: its size, its ground, its title.
fn head(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"10\" y=\"26\" font-size=\"17\">{}</text>\n",
        escaped(title)
    )
}

/// Pixels: of the room left of a panel for its scale, of a panel, and of the room between two for the names.
const SCALE: f64 = 80.0;
const PANEL: f64 = 110.0;
const BETWEEN: f64 = 40.0;

/// A quantity over time.
pub struct Panel {
    /// Above the line.
    pub name: String,
    /// Of its values.
    pub unit: String,
    /// Seconds and values, in the order of time.
    pub points: Vec<(f64, f64)>,
}

/// Lines in panels one above the other, on one axis of seconds; what happened from one second to another is shaded in all.
pub fn lines(title: &str, panels: &[Panel], (what, from, to): (&str, f64, f64)) -> String {
    let seconds = panels.iter().flat_map(|panel| &panel.points).map(|point| point.0).fold(1.0, f64::max);
    let x = |second: f64| SCALE + second / seconds * (WIDTH - SCALE - 20.0);
    let bottom = TOP + (PANEL + BETWEEN) * panels.len() as f64;
    let height = bottom + 20.0;
    let mut svg = head(title, height);
    svg += &format!(
        "<rect x=\"{:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"#fed7d7\"/>\n\
         <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#c53030\">{}</text>\n",
        x(from),
        TOP,
        x(to) - x(from),
        bottom - TOP,
        x((from + to) / 2.0),
        TOP + 15.0,
        escaped(what),
    );
    for (index, panel) in panels.iter().enumerate() {
        svg += &line(panel, TOP + BETWEEN + (PANEL + BETWEEN) * index as f64, x);
    }
    for tick in (0..=6).map(|tick| f64::from(tick) * seconds / 6.0) {
        svg +=
            &format!("<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{tick:.0} s</text>\n", x(tick), bottom + 14.0);
    }
    svg + "</svg>\n"
}

/// One panel whose uppermost pixel is `top`.
fn line(panel: &Panel, top: f64, x: impl Fn(f64) -> f64) -> String {
    let most = panel.points.iter().map(|point| point.1).fold(f64::MIN_POSITIVE, f64::max);
    let bottom = top + PANEL;
    let points: Vec<String> = panel
        .points
        .iter()
        .map(|(second, value)| format!("{:.1},{:.1}", x(*second), bottom - value / most * PANEL))
        .collect();
    format!(
        "<text x=\"{SCALE}\" y=\"{}\">{}</text>\n\
         <path d=\"M{SCALE} {top}V{bottom}H{}\" fill=\"none\" stroke=\"#718096\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{most:.1} {}</text>\
         <text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\n\
         <polyline points=\"{}\" fill=\"none\" stroke=\"#2b6cb0\" stroke-width=\"2\"/>\n",
        top - 6.0,
        escaped(&panel.name),
        WIDTH - 20.0,
        SCALE - 6.0,
        top + 10.0,
        escaped(&panel.unit),
        SCALE - 6.0,
        points.join(" ")
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_has_its_length_and_its_target() {
        let of = |name: &str, value, target| Bar { name: name.into(), value, target };
        let svg = bars("A & B", "Mpps", &[of("one", 10.0, Some(20.0)), of("two", 20.0, None)]);
        assert!(
            svg.contains("A &amp; B") && svg.contains("width=\"185.0\"") && svg.contains("width=\"370.0\""),
            "{svg}"
        );
        assert_eq!(svg.matches("<path").count(), 1);
    }

    #[test]
    fn a_line_reaches_its_highest_value_at_the_top() {
        let panel = |name: &str| Panel { name: name.into(), unit: "MiB".into(), points: vec![(0.0, 0.0), (10.0, 4.0)] };
        let svg = lines("A & B", &[panel("spool"), panel("lag")], ("away", 2.0, 5.0));
        assert_eq!(svg.matches("<polyline points=\"80.0,198.0 740.0,88.0\"").count(), 1, "{svg}");
        assert_eq!(svg.matches("4.0 MiB").count(), 2);
        assert!(svg.contains("width=\"198.0\""), "{svg}");
    }
}
