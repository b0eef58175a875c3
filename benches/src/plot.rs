//! Bars as an SVG picture.

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
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"10\" y=\"26\" font-size=\"17\">{}</text>\n",
        escaped(title)
    );
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
}
