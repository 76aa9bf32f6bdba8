//! The same numbers as plain text, for a terminal and a log.

use super::summary::{Arm, Summary};
use crate::eval::{EvalReport, EvalSettings, Floor, SweepPoint};

/// Widest line that prose is broken at.
const WIDTH: usize = 100;

/// A comparison: arms at their best guidance, losses per scale, the sweep, floors and the verdict.
pub fn comparison(summary: &Summary) -> String {
    let mut out = String::new();
    let arms = &summary.arms;
    out.push_str(&table(&arm_rows(arms)));
    let scales = arms.iter().map(|a| a.scale_loss.len()).max().unwrap_or(0);
    if scales > 0 {
        let mut rows = vec![row("held-out loss", (1..=scales).map(|i| format!("scale {i}")))];
        rows.extend(arms.iter().map(|a| {
            let losses = a.scale_loss.iter().map(|l| format!("{l:.3}"));
            row(&a.name, losses.chain(std::iter::repeat(dash())).take(scales))
        }));
        out.push('\n');
        out.push_str(&table(&rows));
    }
    for arm in arms.iter().filter(|a| !a.sweep.is_empty()) {
        out.push('\n');
        out.push_str(&table(&sweep_rows(&arm.name, &arm.sweep)));
    }
    out.push_str(&floors(&summary.floors));
    out.push('\n');
    out.push_str(&settings(&summary.settings));
    out.push('\n');
    out.push_str(&wrapped(&summary.verdict.headline, ""));
    for detail in &summary.verdict.details {
        out.push_str(&wrapped(detail, "- "));
    }
    out
}

/// The result of `sar eval`.
pub fn evaluation(report: &EvalReport) -> String {
    let mut out = table(&sweep_rows("guidance sweep", &report.points));
    out.push_str(&floors(&report.floors));
    out.push('\n');
    out.push_str(&settings(&report.settings));
    for warning in &report.warnings {
        out.push_str(&wrapped(warning, "note: "));
    }
    out
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

fn arm_rows(arms: &[Arm]) -> Vec<Vec<String>> {
    let head = [
        "steps",
        "held-out",
        "best g",
        "FD",
        "precision",
        "recall",
        "accuracy",
        "train/s",
        "sample/s",
        "MiB",
    ];
    let mut rows = vec![row("at best guidance", head.into_iter().map(String::from))];
    for arm in arms {
        let best = arm.best();
        let speed = |s: f64| format!("{s:.0}");
        let cells = [
            arm.steps.to_string(),
            or_dash(arm.heldout_loss, |l| format!("{l:.3}")),
            or_dash(best, |p| p.guidance.to_string()),
            or_dash(best, |p| p.frechet.text(1)),
            or_dash(best, |p| format!("{:.3}", p.precision.mean)),
            or_dash(best, |p| format!("{:.3}", p.recall.mean)),
            or_dash(best, |p| format!("{:.3}", p.class_accuracy.mean)),
            or_dash(arm.train_images_per_second, speed),
            or_dash(arm.sample_images_per_second, speed),
            or_dash(arm.peak_memory, |m| (m >> 20).to_string()),
        ];
        rows.push(row(&arm.name, cells.into_iter()));
    }
    rows
}

fn sweep_rows(name: &str, points: &[SweepPoint]) -> Vec<Vec<String>> {
    let head = ["FD", "precision", "recall", "accuracy"];
    let mut rows = vec![row(name, head.into_iter().map(String::from))];
    for p in points {
        let cells =
            [p.frechet.text(1), p.precision.text(3), p.recall.text(3), p.class_accuracy.text(3)];
        rows.push(row(&format!("guidance {}", p.guidance), cells.into_iter()));
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
            format!("{:.1}", f.frechet),
            format!("{:.3}", f.precision),
            format!("{:.3}", f.recall),
            or_dash(f.class_accuracy, |v| format!("{v:.3}")),
        ];
        rows.push(row(&f.name, cells.into_iter()));
    }
    format!("\n{}", table(&rows))
}

fn settings(s: &EvalSettings) -> String {
    if s.extractor.is_empty() {
        return String::new();
    }
    let seeds: Vec<String> = s.seeds.iter().map(u64::to_string).collect();
    let text = format!(
        "FD: Fréchet distance in {} (its accuracy on the validation images: {:.1} %); {} images per \
         seed against {} validation images; ± is the spread over sampling seeds {}; schedule {}, \
         top-k {}, top-p {}, guidance ramp {}; {} nearest neighbours.",
        s.extractor,
        100.0 * s.extractor_accuracy,
        s.count,
        s.reference_count,
        seeds.join(", "),
        s.sampler.schedule,
        s.sampler.top_k,
        s.sampler.top_p,
        s.sampler.ramp,
        s.neighbours
    );
    wrapped(&text, "")
}

/// Columns as wide as their widest cell, the first to the left, the others to the right.
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

/// Prose in lines of at most [`WIDTH`] characters; later lines are indented as far as `lead` reaches.
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
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
    fn an_arm_without_numbers_still_has_its_row() {
        let measured = |v: f64| Measured::of(vec![v, v + 1.0]).unwrap();
        let point = SweepPoint {
            guidance: 0.5,
            frechet: measured(40.0),
            precision: measured(0.0),
            recall: measured(0.0),
            class_accuracy: measured(0.0),
        };
        let full = Arm { name: "full".into(), sweep: vec![point], ..Arm::default() };
        let bare = Arm { name: "bare".into(), scale_loss: vec![1.0, 2.0], ..Arm::default() };
        let summary = Summary { arms: vec![full, bare], ..Summary::default() };
        let text = comparison(&summary);
        assert!(text.contains("40.5 ± 0.7") && text.contains("scale 2"), "{text}");
        let line = text.lines().find(|l| l.starts_with("bare")).unwrap();
        assert!(line.matches(" -").count() >= 9, "{line}");
    }
}
