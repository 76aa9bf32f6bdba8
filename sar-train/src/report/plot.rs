//! A small plotter: line charts as inline SVG, with the legend as HTML so that it wraps.
//!
//! Series differ in colours, dashes and marker shapes, so that none is distinguished by colour
//! alone. The colours themselves are in `style.css`, for a light and a dark page.

use super::html::escape;
use super::ticks::Axis;
use std::fmt::Write as _;

/// Size in user units: text of 12 units is readable at 360 px and at 640 px.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 60.0;
/// Half of the last tick's label extends beyond the axis on the right.
const RIGHT: f64 = 18.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 42.0;

/// Number of colours in `style.css`; further series reuse them with other markers, which then are
/// also on their lines.
pub(super) const COLOURS: usize = 7;

/// Number of marker shapes.
const MARKERS: usize = 4;

/// A value and its spread, if known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub x: f64,
    pub y: f64,
    pub spread: Option<f64>,
}

/// One line of a chart.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    pub name: String,
    pub points: Vec<Point>,
    /// Index of colour and marker; the same in every chart of a page for the same run.
    pub style: usize,
    pub dashed: bool,
    pub markers: bool,
}

/// Number of markers on a line that needs some to distinguish it from another run's.
const SOME_MARKERS: usize = 6;

impl Series {
    /// Whether point `i` has a marker: all points do if the series has markers, and some do if its
    /// colour is used twice.
    fn is_marked(&self, i: usize) -> bool {
        let every = self.points.len().div_ceil(SOME_MARKERS);
        self.markers || self.style >= COLOURS && i % every == every / 2
    }
}

/// Number of dash patterns in the style sheet that distinguish levels.
const DASHES: usize = 3;

/// A horizontal level to compare with.
#[derive(Clone, Debug)]
pub(super) struct Level {
    pub name: String,
    pub y: f64,
}

/// A chart.
#[derive(Clone, Debug, Default)]
pub(super) struct Chart {
    pub title: String,
    pub x: String,
    pub y: String,
    /// Whether the y axis is logarithmic, if all values allow it.
    pub log: bool,
    /// Whether x counts things (scales), with a tick at each whole number.
    pub whole: bool,
    /// Whether to leave room for markers before the first and after the last x.
    pub roomy: bool,
    pub series: Vec<Series>,
    pub levels: Vec<Level>,
    /// What the chart says, as its caption and for those who cannot see it.
    pub caption: String,
}

impl Chart {
    /// Returns the figure; `id` must be unique in the page. Empty if no series has a finite point.
    pub(super) fn figure(&self, id: &str) -> String {
        let (Some(x), Some(y)) = self.axes() else { return String::new() };
        let mut out = format!(
            "<figure class=\"chart\">\n<figcaption><strong>{}</strong></figcaption>\n",
            escape(&self.title)
        );
        let described: Vec<String> = self.series.iter().map(describe).collect();
        let _ = write!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\n\
             <title id=\"{id}-t\">{}</title>\n<desc id=\"{id}-d\">{} {}</desc>\n",
            escape(&self.title),
            escape(&self.caption),
            escape(&described.join("; "))
        );
        self.grid(&x, &y, &mut out);
        for (i, level) in self.levels.iter().enumerate() {
            let at = place_y(&y, level.y);
            let end = WIDTH - RIGHT;
            let _ = writeln!(
                out,
                "<path class=\"level l{}\" d=\"M{LEFT} {at:.1}H{end}\"><title>{}</title></path>",
                i % DASHES,
                escape(&level.name)
            );
        }
        for series in &self.series {
            draw(series, &x, &y, &mut out);
        }
        out.push_str("</svg>\n");
        out.push_str(&self.legend());
        if !self.caption.is_empty() {
            let _ = writeln!(out, "<p class=\"caption\">{}</p>", escape(&self.caption));
        }
        out.push_str("</figure>\n");
        out
    }

    fn axes(&self) -> (Option<Axis>, Option<Axis>) {
        let points = || self.series.iter().flat_map(|s| &s.points).filter(|p| p.y.is_finite());
        let ys = points().flat_map(|p| {
            let spread = p.spread.unwrap_or(0.0);
            [p.y - spread, p.y + spread]
        });
        let x = Axis::over(points().map(|p| p.x), 6, false, self.whole || self.roomy);
        (x, Axis::over(ys.chain(self.levels.iter().map(|l| l.y)), 5, self.log, true))
    }

    fn grid(&self, x: &Axis, y: &Axis, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        out.push_str("<g class=\"grid\">\n");
        for (value, label) in y.ticks() {
            let at = place_y(y, value);
            let _ = writeln!(
                out,
                "<path d=\"M{LEFT} {at:.1}H{right}\"/><text x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{label}</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
        for (value, label) in x.ticks().filter(|(v, _)| !self.whole || v.fract() == 0.0) {
            let at = place_x(x, value);
            let _ = writeln!(
                out,
                "<path d=\"M{at:.1} {bottom}v4\"/><text x=\"{at:.1}\" y=\"{:.1}\" \
                 text-anchor=\"middle\">{label}</text>",
                bottom + 17.0
            );
        }
        let log = if y.is_log() { ", log" } else { "" };
        let _ = writeln!(
            out,
            "</g>\n<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\n\
             <text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text class=\"name\" transform=\"translate(13 {:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{}{log}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 6.0,
            escape(&self.x),
            (TOP + bottom) / 2.0,
            escape(&self.y)
        );
    }

    fn legend(&self) -> String {
        let mut out = String::new();
        for series in self.series.iter().filter(|s| !s.name.is_empty()) {
            let dash = if series.dashed { " dashed" } else { "" };
            let mark = match series.markers || series.style >= COLOURS {
                true => marker(series.style, 14.0, 6.0),
                false => String::new(),
            };
            let _ = writeln!(
                out,
                "<li><svg viewBox=\"0 0 28 12\" aria-hidden=\"true\"><g class=\"s{}{dash}\">\
                 <path class=\"line\" d=\"M1 6H27\"/>{mark}</g></svg>{}</li>",
                series.style % COLOURS,
                escape(&series.name)
            );
        }
        for (i, level) in self.levels.iter().enumerate() {
            let _ = writeln!(
                out,
                "<li><svg viewBox=\"0 0 28 12\" aria-hidden=\"true\">\
                 <path class=\"level l{}\" d=\"M1 6H27\"/></svg>{} {:.2}</li>",
                i % DASHES,
                escape(&level.name),
                level.y
            );
        }
        if out.is_empty() { out } else { format!("<ul class=\"legend\">\n{out}</ul>\n") }
    }
}

fn place_x(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)
}

fn place_y(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)
}

/// Describes a series for screen readers by its first and last value.
fn describe(series: &Series) -> String {
    match (series.points.first(), series.points.last()) {
        (Some(first), Some(last)) => {
            format!("{}: from {:.4} to {:.4}", series.name, first.y, last.y)
        }
        _ => format!("{}: no data", series.name),
    }
}

fn draw(series: &Series, x: &Axis, y: &Axis, out: &mut String) {
    let dash = if series.dashed { " dashed" } else { "" };
    let _ = write!(out, "<g class=\"s{}{dash}\">", series.style % COLOURS);
    let mut path = String::new();
    let mut marks = String::new();
    let mut pen_down = false;
    for (i, point) in series.points.iter().enumerate() {
        if !point.y.is_finite() {
            pen_down = false;
            continue;
        }
        let (at_x, at_y) = (place_x(x, point.x), place_y(y, point.y));
        let _ = write!(path, "{}{at_x:.1} {at_y:.1}", if pen_down { 'L' } else { 'M' });
        pen_down = true;
        if let Some(spread) = point.spread {
            let (low, high) = (place_y(y, point.y - spread), place_y(y, point.y + spread));
            let _ = write!(
                marks,
                "<path class=\"error\" d=\"M{at_x:.1} {low:.1}V{high:.1}M{:.1} {low:.1}h6M{:.1} \
                 {high:.1}h6\"/>",
                at_x - 3.0,
                at_x - 3.0
            );
        }
        if series.is_marked(i) {
            marks.push_str(&marker(series.style, at_x, at_y));
        }
    }
    let _ = writeln!(out, "<path class=\"line\" d=\"{path}\"/>{marks}</g>");
}

/// Returns a marker whose shape goes with the colour.
fn marker(style: usize, x: f64, y: f64) -> String {
    // Each time the colours repeat, another shape is used.
    let path = match (style % COLOURS + style / COLOURS) % MARKERS {
        0 => return format!("<circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"),
        1 => format!("M{:.1} {:.1}h7v7h-7z", x - 3.5, y - 3.5),
        2 => format!("M{x:.1} {:.1}l4.5 8h-9z", y - 5.0),
        _ => format!("M{x:.1} {:.1}l4.5 4.5l-4.5 4.5l-4.5-4.5z", y - 4.5),
    };
    format!("<path class=\"mark\" d=\"{path}\"/>")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(x: f64, y: f64) -> Point {
        Point { x, y, spread: Some(0.5) }
    }

    #[test]
    fn a_chart_shows_its_series_and_says_what_it_is() {
        let series = |name: &str, style| Series {
            name: name.into(),
            points: vec![point(0.0, 3.0), point(1.0, f64::NAN), point(2.0, 5.0)],
            style,
            dashed: style == 1,
            markers: true,
        };
        let chart = Chart {
            title: "Loss <of>".into(),
            series: vec![series("a&b", 0), series("c", 1)],
            levels: vec![Level { name: "floor".into(), y: 2.0 }],
            ..Chart::default()
        };
        let figure = chart.figure("c1");
        assert!(figure.contains("<title id=\"c1-t\">Loss &lt;of&gt;</title>"));
        assert!(figure.contains("a&amp;b") && figure.contains("class=\"s1 dashed\""));
        assert!(figure.contains("floor 2.00"));
        assert!(!figure.contains("NaN") && !figure.contains("inf"), "{figure}");
        // The gap at the missing value starts a new stroke.
        let line = figure.split("class=\"line\" d=\"").nth(1).and_then(|s| s.split('"').next());
        assert_eq!(line.map(|d| d.matches('M').count()), Some(2));
    }

    #[test]
    fn colours_and_markers_tell_as_many_runs_apart_as_there_are_of_both() {
        let looks = |style: usize| (style % COLOURS, marker(style, 0.0, 0.0));
        let all: std::collections::BTreeSet<_> = (0..COLOURS * MARKERS).map(looks).collect();
        assert_eq!(all.len(), COLOURS * MARKERS);
    }

    #[test]
    fn a_chart_without_values_is_nothing() {
        assert_eq!(Chart::default().figure("c"), "");
        let series = Series {
            points: vec![Point { x: 0.0, y: f64::NAN, spread: None }],
            ..Series::default()
        };
        assert_eq!(Chart { series: vec![series], ..Chart::default() }.figure("c"), "");
    }
}
