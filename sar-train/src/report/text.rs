//! Evaluations as plain text, for a terminal and a log.

use crate::eval::{EvalReport, EvalSettings, Floor, SweepPoint};
use crate::train::HeldOutReport;

/// Maximum line width of prose.
const WIDTH: usize = 100;

/// Formats the result of `sar eval`.
pub fn evaluation(report: &EvalReport) -> String {
    let swept = report.sweeps_filters();
    let what = if swept { "sweep" } else { "guidance sweep" };
    let mut out = table(&sweep_rows(what, &report.points));
    if swept {
        let best = report.points.iter().min_by(|a, b| a.frechet.mean.total_cmp(&b.frechet.mean));
        out.push_str(&best.map_or_else(String::new, |p| format!("lowest FD: {}\n", p.name())));
    }
    out.push_str(&floors(&report.floors));
    if let Some(held_out) = &report.held_out {
        out.push_str(&losses(held_out, &report.settings.sampler.schedule));
    }
    out.push('\n');
    out.push_str(&settings(&report.settings, swept));
    for warning in &report.warnings {
        out.push_str(&wrapped(warning, "note: "));
    }
    out
}

/// The loss on held-out images, and how often the likeliest code is the image's, at every grid.
fn losses(held_out: &HeldOutReport, schedule: &str) -> String {
    let HeldOutReport { heldout_loss, heldout_scale_loss: loss, heldout_scale_acc: right } =
        held_out;
    let name = format!("held-out loss {heldout_loss:.4}");
    let mut rows = vec![row(&name, ["loss", "accuracy"].into_iter().map(String::from))];
    for ((side, loss), right) in schedule.split('_').zip(loss).zip(right) {
        let cells = [format!("{loss:.3}"), format!("{:.1} %", 100.0 * right)];
        rows.push(row(&format!("grid {side}"), cells.into_iter()));
    }
    format!("\n{}", table(&rows))
}

fn dash() -> String {
    "-".into()
}

fn or_dash<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or_else(dash, text)
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(cells).collect()
}

fn sweep_rows(name: &str, points: &[SweepPoint]) -> Vec<Vec<String>> {
    let head = ["FD", "precision", "recall", "accuracy"];
    let mut rows = vec![row(name, head.into_iter().map(String::from))];
    for p in points {
        let cells =
            [p.frechet.text(2), p.precision.text(3), p.recall.text(3), p.class_accuracy.text(3)];
        rows.push(row(&p.name(), cells.into_iter()));
    }
    rows
}

fn floors(floors: &[Floor]) -> String {
    if floors.is_empty() {
        return String::new();
    }
    let head = ["images", "FD", "precision", "recall", "accuracy"];
    let mut rows = vec![row("floor", head.into_iter().map(String::from))];
    for f in floors {
        let cells = [
            f.count.to_string(),
            format!("{:.2}", f.frechet),
            format!("{:.3}", f.precision),
            format!("{:.3}", f.recall),
            or_dash(f.class_accuracy, |v| format!("{v:.3}")),
        ];
        rows.push(row(&f.name, cells.into_iter()));
    }
    format!("\n{}", table(&rows))
}

fn settings(s: &EvalSettings, swept: bool) -> String {
    if s.extractor.is_empty() {
        return String::new();
    }
    let filter = match swept {
        true => "top-k and top-p as above".to_owned(),
        false => format!("top-k {}, top-p {}", s.sampler.top_k, s.sampler.top_p),
    };
    let seeds: Vec<String> = s.seeds.iter().map(u64::to_string).collect();
    let seeds = match seeds.as_slice() {
        [one] => format!("sampling seed {one}"),
        several => format!("± is the spread over sampling seeds {}", several.join(", ")),
    };
    let text = format!(
        "FD: Fréchet distance in {} (its accuracy on the validation images: {:.1} %); {} images per \
         seed against {} validation images of {}; {seeds}; schedule {}, \
         {filter}, guidance ramp {}; {} nearest neighbours{}.",
        s.extractor,
        100.0 * s.extractor_accuracy,
        s.count,
        s.reference_count,
        named(&s.data),
        s.sampler.schedule,
        s.sampler.ramp,
        s.neighbours,
        s.sampler.described()
    );
    wrapped(&text, "")
}

/// Returns the description of the images, if there is one.
fn named(data: &str) -> &str {
    if data.is_empty() { "data that it does not name" } else { data }
}

/// Formats a table: columns as wide as their widest cell, the first left-aligned, the others
/// right-aligned.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| {
        rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            match i {
                0 => line.push_str(&format!("{cell:<width$}")),
                _ => line.push_str(&format!("  {cell:>width$}")),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Wraps prose to lines of at most [`WIDTH`] characters; later lines are indented by the width of
/// `lead`.
fn wrapped(text: &str, lead: &str) -> String {
    let indent = " ".repeat(lead.chars().count());
    let mut out = String::new();
    let mut line = lead.to_owned();
    let mut empty = true;
    for word in text.split(' ').filter(|w| !w.is_empty()) {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(&line);
            out.push('\n');
            line.clone_from(&indent);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    if !empty {
        out.push_str(&line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::SamplerSettings;
    use crate::metrics::Measured;

    #[test]
    fn columns_line_up_and_prose_is_broken() {
        let rows = vec![row("a", ["b".into()].into_iter()), row("long", ["±1".into()].into_iter())];
        assert_eq!(table(&rows), "a      b\nlong  ±1\n");
        let text = wrapped(&"word ".repeat(50), "- ");
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH) && text.lines().count() > 2);
        assert!(text.lines().nth(1).unwrap().starts_with("  word"));
        assert_eq!(wrapped("", "- "), "");
    }

    #[test]
    fn an_evaluation_names_its_settings() {
        let measured = |v: f64| Measured::of(vec![v, v + 1.0]).unwrap();
        let point = SweepPoint {
            guidance: 0.5,
            top_k: None,
            top_p: None,
            frechet: measured(40.0),
            precision: measured(0.0),
            recall: measured(0.0),
            class_accuracy: measured(0.0),
        };
        let floor = Floor {
            name: "all training images".into(),
            count: 9,
            frechet: 21.0,
            precision: 0.5,
            recall: 0.5,
            class_accuracy: None,
        };
        let settings = EvalSettings {
            extractor: "features of x".into(),
            sampler: SamplerSettings { ema: true, weights: "a file".into(), ..Default::default() },
            ..Default::default()
        };
        let report = EvalReport {
            settings,
            floors: vec![floor],
            points: vec![point],
            held_out: None,
            warnings: vec!["few images".into()],
        };
        let text = evaluation(&report);
        for part in ["40.50 ± 0.71", "features of x", "(EMA)", "note: few images"] {
            assert!(text.contains(part), "no '{part}' in\n{text}");
        }
        let floor = text.lines().find(|l| l.starts_with("all training")).unwrap();
        assert!(floor.ends_with(" -"), "{floor}");
    }
}
