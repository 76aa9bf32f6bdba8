//! The comparison as text.

use crate::eval::SweepPoint;
use crate::metrics::Measured;
use crate::report::summary::{Arm, Summary};
use crate::run::memory;
use std::fmt::Write as _;

/// The table of a comparison and its verdict, for a terminal.
pub(crate) fn comparison(summary: &Summary) -> String {
    let mut text = String::new();
    let mut line = |parts: &[String]| {
        let _ = write!(text, "{:<24}", parts.first().map_or("", String::as_str));
        for part in parts.iter().skip(1) {
            let _ = write!(text, "{part:>22}");
        }
        text.push('\n');
    };
    let row = |name: &str, cell: &dyn Fn(&Arm) -> String| -> Vec<String> {
        std::iter::once(name.to_owned()).chain(summary.arms.iter().map(cell)).collect()
    };
    line(&row("", &|a| a.name.clone()));
    line(&row("steps", &|a| a.steps.to_string()));
    line(&row("held-out loss", &|a| number(a.heldout_loss, 4)));
    let scales = summary.arms.iter().map(|a| a.scale_loss.len()).max().unwrap_or(0);
    for scale in 0..scales {
        line(&row(&format!("  scale {}", scale + 1), &|a| {
            number(a.scale_loss.get(scale).copied(), 4)
        }));
    }
    line(&row("best guidance", &|a| number(a.best().map(|p| p.guidance), 2)));
    let at_best = |pick: fn(&SweepPoint) -> &Measured, digits: usize| {
        move |a: &Arm| a.best().map_or("–".to_owned(), |p| pick(p).text(digits))
    };
    line(&row("Fréchet distance", &at_best(|p| &p.frechet, 2)));
    line(&row("precision", &at_best(|p| &p.precision, 3)));
    line(&row("recall", &at_best(|p| &p.recall, 3)));
    line(&row("class accuracy", &at_best(|p| &p.class_accuracy, 3)));
    line(&row("training images/s", &|a| number(a.train_images_per_second, 0)));
    line(&row("sampling images/s", &|a| number(a.sample_images_per_second, 0)));
    line(&row("peak memory so far", &|a| a.peak_memory.map_or("–".into(), memory::text)));
    text.push_str("\nFréchet distance at each guidance\n");
    let mut guidances: Vec<f64> =
        summary.arms.iter().flat_map(|a| a.sweep.iter().map(|p| p.guidance)).collect();
    guidances.sort_by(f64::total_cmp);
    guidances.dedup();
    for guidance in guidances {
        let _ = write!(text, "{:<24}", format!("  {guidance}"));
        for arm in &summary.arms {
            let cell = arm.at(guidance).map_or("–".to_owned(), |p| p.frechet.text(2));
            let _ = write!(text, "{cell:>22}");
        }
        text.push('\n');
    }
    text.push_str("\nFloors: Fréchet distance, precision, recall\n");
    for floor in &summary.floors {
        let _ = writeln!(
            text,
            "  {:<58} {:>8.2} {:>7.3} {:>7.3}",
            floor.name, floor.frechet, floor.precision, floor.recall
        );
    }
    let _ = write!(text, "\n{}\n", summary.verdict.headline);
    for detail in &summary.verdict.details {
        let _ = writeln!(text, "  {detail}");
    }
    for note in &summary.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("–".to_owned(), |v| format!("{v:.digits$}"))
}
