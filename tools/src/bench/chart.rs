//! Line charts as SVG, without a script.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
/// Room for labels: left, right, top, bottom.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;
/// Lines take these in turn.
const COLOURS: [&str; 6] = ["#1f6feb", "#d1495b", "#2e9e6b", "#b5651d", "#7a4fbf", "#5c6773"];

/// A named line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    /// Where it is broken, there is `None`.
    pub(super) points: Vec<Option<(f64, f64)>>,
}

/// One direction of a chart.
#[derive(Debug)]
pub(super) struct Axis {
    pub(super) label: &'static str,
    pub(super) ticks: Vec<(f64, String)>,
    least: f64,
    most: f64,
    logarithmic: bool,
}

impl Axis {
    /// From 0 to `most` in even steps.
    pub(super) fn linear(label: &'static str, most: f64) -> Self {
        let most = if most > 0.0 { most } else { 1.0 };
        let step = nice(most / 6.0);
        let ticks = (0..=12)
            .map(|number| f64::from(number) * step)
            .take_while(|at| *at <= most * 1.001)
            .map(|at| (at, short(at)))
            .collect();
        Self { label, ticks, least: 0.0, most: most * 1.02, logarithmic: false }
    }

    /// From `least` to `most` in powers of ten; `name` names them.
    pub(super) fn logarithmic(
        label: &'static str,
        least: f64,
        most: f64,
        name: impl Fn(f64) -> String,
    ) -> Self {
        let (first, last) = (least.max(1e-9).log10().floor(), most.max(1e-9).log10().ceil());
        let last = last.max(first + 1.0);
        let ticks = (0..=(last - first) as i32)
            .map(|number| 10_f64.powf(first + f64::from(number)))
            .map(|at| (at, name(at)))
            .collect();
        Self { label, ticks, least: 10_f64.powf(first), most: 10_f64.powf(last), logarithmic: true }
    }

    /// From 0 to `most`, with ticks of its own.
    pub(super) const fn with_ticks(label: &'static str, most: f64, ticks: Vec<(f64, String)>) -> Self {
        Self { label, ticks, least: 0.0, most, logarithmic: false }
    }

    /// Where a value is, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.logarithmic { value.max(self.least).log10() } else { value };
        let (least, most) = (scale(self.least), scale(self.most));
        ((scale(value) - least) / (most - least)).clamp(0.0, 1.0)
    }
}

/// The next of 1, 2, 5, 10, 20, …
fn nice(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|at| *at >= step).unwrap_or(step)
}

fn short(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        _ if value >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        _ if value >= 1e3 => format!("{}k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What is text in HTML and SVG.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The chart, as an `<svg>` element.
pub(super) fn chart(x_axis: &Axis, y_axis: &Axis, lines: &[Line]) -> String {
    let x = |value: f64| LEFT + x_axis.place(value) * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - y_axis.place(value) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n");
    // Writing to a string cannot fail.
    let mut put = |text: std::fmt::Arguments<'_>| {
        let _ = svg.write_fmt(text);
    };
    for (value, name) in &y_axis.ticks {
        let at = y(*value);
        put(format_args!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            escaped(name)
        ));
    }
    for (value, name) in &x_axis.ticks {
        let at = x(*value);
        put(format_args!(
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
             <text class=\"tick\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 16.0,
            escaped(name)
        ));
    }
    put(format_args!(
        "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text class=\"axis\" transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 8.0,
        escaped(x_axis.label),
        f64::midpoint(TOP, HEIGHT - BOTTOM),
        escaped(y_axis.label)
    ));
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        for run in line.points.split(Option::is_none).filter(|run| !run.is_empty()) {
            let points: Vec<String> =
                run.iter().flatten().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
            match points.as_slice() {
                // One point alone would not show as a line.
                [one] => {
                    let (at, value) = one.split_once(',').unwrap_or_default();
                    put(format_args!("<circle cx=\"{at}\" cy=\"{value}\" r=\"2\" fill=\"{colour}\"/>\n"));
                }
                _ => put(format_args!(
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>\n",
                    points.join(" ")
                )),
            }
        }
    }
    for (number, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let at = LEFT + 10.0 + 110.0 * number as f64;
        put(format_args!(
            "<rect x=\"{at:.1}\" y=\"2\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"11\">{}</text>\n",
            at + 14.0,
            escaped(&line.name)
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ticks_and_places_from_0_to_1() {
        let axis = Axis::linear("rate", 580_000.0);
        let names: Vec<&str> = axis.ticks.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["0", "100k", "200k", "300k", "400k", "500k"]);
        assert!(axis.place(0.0).abs() < 1e-9 && axis.place(580_000.0) < 1.0 && axis.place(580_000.0) > 0.95);
        let axis = Axis::logarithmic("latency", 120.0, 45_000.0, |at| format!("{at:.0}"));
        let names: Vec<&str> = axis.ticks.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["100", "1000", "10000", "100000"]);
        assert!((axis.place(1000.0) - 1.0 / 3.0).abs() < 1e-6, "{}", axis.place(1000.0));
        assert!(axis.place(0.0).abs() < 1e-9, "what is below the axis is on its edge");
    }

    #[test]
    fn a_chart_has_every_line_and_breaks_where_nothing_was_measured() {
        let points = vec![Some((0.0, 1.0)), Some((1.0, 2.0)), None, Some((3.0, 1.0)), Some((4.0, 4.0))];
        let lines = [
            Line { name: "a < b".to_owned(), points },
            Line { name: "c".to_owned(), points: vec![Some((1.0, 1.0))] },
        ];
        let svg = chart(&Axis::linear("x", 4.0), &Axis::linear("y", 4.0), &lines);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(svg.contains("a &lt; b") && !svg.contains("NaN"), "{svg}");
    }
}
