//! Curves from the logs, and the sweep over guidance.

use super::log::{Field, Scale};
use super::plot::{Chart, Level, Point, Series};
use super::read::Run;
use super::summary::Arm;
use crate::eval::{Floor, SweepPoint};
use crate::metrics::Measured;
use crate::train::{RISEN, Risen};
use std::collections::{BTreeMap, BTreeSet};

/// Maximum number of points drawn of a curve; more are averaged in groups of equal size.
const POINTS: usize = 200;

/// Fields of a generator's training records that have a chart of their own.
const KNOWN: [&str; 8] = [
    "loss",
    "loss_tf",
    "loss_first_pass",
    "loss_csf",
    "lr",
    "grad_norm",
    "scale_loss",
    "scale_acc",
];

/// The same for its evaluation records.
const HELD_OUT: [&str; 3] = ["heldout_loss", "heldout_scale_loss", "heldout_scale_acc"];

/// The same for a tokenizer's training records.
const TOKENIZER: [&str; 5] = ["loss", "quantization", "lr", "grad_norm", "revived"];

/// Fields of a tokenizer's evaluation records that have a chart of their own or a place in a table.
const RECONSTRUCTED: [&str; 5] =
    ["psnr", "ssim", "scale_codebook_used", "codebook_used", "perplexity"];

/// Numbers the figures of a page.
#[derive(Debug, Default)]
pub(super) struct Figures {
    count: usize,
}

impl Figures {
    /// Returns the figure of a chart, with a unique id.
    pub(super) fn show(&mut self, chart: &Chart) -> String {
        self.count += 1;
        chart.figure(&format!("chart{}", self.count))
    }
}

/// Puts as many charts side by side as fit; empty if there are none.
pub(super) fn gallery(charts: &[String]) -> String {
    let charts: String = charts.concat();
    if charts.is_empty() { charts } else { format!("<div class=\"charts\">\n{charts}</div>\n") }
}

/// Draws loss (training and held-out), its parts, rate, gradient norm and speed, all runs overlaid.
pub(super) fn training(runs: &[&Run], figures: &mut Figures) -> Vec<String> {
    let mut loss = chart(
        "Loss",
        "loss, nats per token",
        "Solid: training. Dashed: held-out images, by teacher forcing.",
    );
    for run in runs {
        loss.series.extend(series(run, "train", "loss", None));
        loss.series.extend(held_out(run, "heldout_loss", None));
    }
    let risen: Vec<String> = runs.iter().filter_map(|run| risen(run)).collect();
    if !risen.is_empty() {
        loss.caption += &format!(" Lowest held-out loss: {}.", risen.join("; "));
    }
    let mut out = vec![figures.show(&loss)];
    let parts: [(&str, &str, &str, bool); 5] = [
        ("loss_tf", "Teacher-forcing loss", "loss, nats per token", false),
        // In the training methods used for comparison, what was drawn before feeds this pass.
        ("loss_first_pass", "Loss of the first pass", "loss, nats per token", false),
        ("loss_csf", "Contrastive student-forcing loss", "loss, nats per token", false),
        ("lr", "Learning rate", "rate", false),
        ("grad_norm", "Gradient norm, before clipping", "norm", true),
    ];
    for (field, title, y, log) in parts {
        let mut chart = overlay(runs, "train", field, None, title, y);
        chart.log = log;
        out.push(figures.show(&chart));
    }
    out
}

/// Draws loss and accuracy of each scale over the steps, training and held-out. There is one chart
/// per grid, which may be a different scale in runs with other schedules.
pub(super) fn per_scale(runs: &[&Run], figures: &mut Figures) -> Vec<String> {
    let mut out = Vec::new();
    let fields = [
        ("scale_loss", "heldout_scale_loss", "loss"),
        ("scale_acc", "heldout_scale_acc", "accuracy"),
    ];
    for (field, heldout, what) in fields {
        let mut scales: BTreeMap<Scale, Chart> = BTreeMap::new();
        let mut add = |scale: Scale, found: Option<Series>| {
            if let Some(series) = found {
                let title = format!("{}, {what}", scale.title());
                let chart = scales.entry(scale).or_insert_with(|| chart(&title, what, ""));
                chart.series.push(series);
            }
        };
        for run in runs {
            for scale in run.log.scales("train", field) {
                let found = series(run, "train", field, Some(&scale));
                add(scale, found);
            }
        }
        for run in runs {
            for scale in run.log.scales("eval", heldout) {
                let found = held_out(run, heldout, Some(&scale));
                add(scale, found);
            }
        }
        out.extend(scales.values().map(|chart| figures.show(chart)));
    }
    out
}

/// Draws what tokenizers log while they train, all runs overlaid: first the errors at the finest
/// grid and the rest, then the errors at coarser grids.
pub(super) fn tokenizers(runs: &[&Run], figures: &mut Figures) -> (Vec<String>, Vec<String>) {
    let errors = [
        ("train", "loss", "reconstruction error", "mean squared error"),
        ("train", "quantization", "distance of latents to their codes", "mean squared distance"),
        ("eval", "psnr", "PSNR", "dB"),
    ];
    let (mut fine, mut coarse) = (Vec::new(), Vec::new());
    for (kind, field, title, y) in errors {
        let scales = runs.iter().flat_map(|run| run.log.scales(kind, field));
        let scales: BTreeSet<Scale> = scales.collect();
        for scale in scales.iter().rev() {
            let title = format!("{}, {title}", scale.title());
            let chart = curve(overlay(runs, kind, field, Some(scale), &title, y), kind);
            let chart = figures.show(&chart);
            let of_one = if Some(scale) == scales.last() { &mut fine } else { &mut coarse };
            of_one.push(chart);
        }
    }
    let whole = [
        ("eval", "codebook_used", "Codebook used, by all grids", "part", false),
        ("train", "revived", "Dead codes revived", "codes", false),
        ("train", "lr", "Learning rate", "rate", false),
        ("train", "grad_norm", "Gradient norm, before clipping", "norm", true),
    ];
    for (kind, field, title, y, log) in whole {
        let chart = curve(overlay(runs, kind, field, None, title, y), kind);
        fine.push(figures.show(&Chart { log, ..chart }));
    }
    (fine, coarse)
}

/// Draws a chart for each number in the logs that has no chart above.
pub(super) fn others(runs: &[&Run], figures: &mut Figures) -> Vec<String> {
    let fields: BTreeSet<&Field> = runs.iter().flat_map(|r| r.log.fields()).collect();
    let known = |kind: &str| -> &[&str] {
        match kind {
            "train" if runs.iter().any(|r| r.is_generator()) => &KNOWN,
            "eval" if runs.iter().any(|r| r.is_generator()) => &HELD_OUT,
            "train" if runs.iter().any(|r| r.is_tokenizer()) => &TOKENIZER,
            "eval" if runs.iter().any(|r| r.is_tokenizer()) => &RECONSTRUCTED,
            _ => &[],
        }
    };
    let unknown = fields.into_iter().filter(|f| !known(&f.kind).contains(&f.name.as_str()));
    unknown
        .map(|f| {
            let scale = f.scale.as_ref().map(|s| format!("{}, ", s.title())).unwrap_or_default();
            let title = format!("{scale}{} ({})", f.name.replace('_', " "), f.kind);
            figures.show(&overlay(runs, &f.kind, &f.name, f.scale.as_ref(), &title, ""))
        })
        .collect()
}

/// Draws held-out loss and accuracy of each scale at the end, for comparing arms.
pub(super) fn final_scales(arms: &[Arm], first_style: usize, figures: &mut Figures) -> Vec<String> {
    let mut out = Vec::new();
    type Pick = fn(&Arm) -> &[f64];
    let what: [(&str, Pick); 2] =
        [("loss", |a| &a.scale_loss), ("accuracy", |a| &a.scale_accuracy)];
    for (name, values) in what {
        let mut chart = Chart {
            title: format!("Held-out {name} of each scale"),
            x: "scale, coarse to fine".into(),
            y: name.into(),
            whole: true,
            ..Chart::default()
        };
        for (i, arm) in arms.iter().enumerate() {
            let points = values(arm).iter().enumerate();
            let points = points.map(|(i, y)| Point { x: i as f64 + 1.0, y: *y, spread: None });
            let points: Vec<Point> = points.collect();
            if !points.is_empty() {
                let (name, style) = (arm.name.clone(), first_style + i);
                chart.series.push(Series { name, points, style, dashed: false, markers: true });
            }
        }
        out.push(figures.show(&chart));
    }
    out
}

/// Draws Fréchet distance, precision, recall and class accuracy over guidance.
///
/// `styles` are those of the arms, `over` names what their points are means over.
pub(super) fn sweep(
    arms: &[Arm],
    styles: &[usize],
    floors: &[Floor],
    over: &str,
    figures: &mut Figures,
) -> Vec<String> {
    type Pick = fn(&SweepPoint) -> &Measured;
    let measures: [(&str, &str, Pick); 4] = [
        ("Fréchet distance over guidance", "Fréchet distance (lower is better)", |p| &p.frechet),
        ("Precision over guidance", "precision", |p| &p.precision),
        ("Recall over guidance", "recall", |p| &p.recall),
        ("Class accuracy over guidance", "class accuracy", |p| &p.class_accuracy),
    ];
    let mut out = Vec::new();
    for (i, (title, y, measure)) in measures.into_iter().enumerate() {
        let mut chart = Chart {
            title: title.into(),
            x: "guidance".into(),
            y: y.into(),
            roomy: true,
            caption: format!("Mean over {over}; bars: sample standard deviation."),
            ..Chart::default()
        };
        for (arm, style) in arms.iter().zip(styles).filter(|(a, _)| !a.sweep.is_empty()) {
            let points = arm.sweep.iter().map(|p| {
                let m = measure(p);
                Point { x: p.guidance, y: m.mean, spread: m.spread }
            });
            chart.series.push(Series {
                name: arm.name.clone(),
                points: points.collect(),
                style: *style,
                dashed: false,
                markers: true,
            });
        }
        if i == 0 && !chart.series.is_empty() {
            let level = |f: &Floor| Level { name: format!("floor: {}", f.name), y: f.frechet };
            chart.levels = floors.iter().map(level).collect();
        }
        out.push(figures.show(&chart));
    }
    out
}

fn chart(title: &str, y: &str, caption: &str) -> Chart {
    Chart {
        title: title.into(),
        x: "step".into(),
        y: y.into(),
        caption: caption.into(),
        ..Chart::default()
    }
}

fn overlay(
    runs: &[&Run],
    kind: &str,
    field: &str,
    scale: Option<&Scale>,
    title: &str,
    y: &str,
) -> Chart {
    let mut chart = chart(title, y, "");
    chart.series = runs.iter().filter_map(|run| series(run, kind, field, scale)).collect();
    chart
}

/// Removes evaluations with a single point from a chart, because a table shows them.
fn curve(mut chart: Chart, kind: &str) -> Chart {
    chart.series.retain(|series| kind != "eval" || series.points.len() > 1);
    chart
}

/// Describes where the held-out loss was lowest, if it has risen since:
/// `base 3.72 at step 80 (9.27 at the end)`.
fn risen(run: &Run) -> Option<String> {
    let values = run.log.get("eval", "heldout_loss", None);
    let curve: Vec<(u64, f64)> = values.iter().map(|&(step, loss)| (step as u64, loss)).collect();
    let Risen { step, lowest, last } = Risen::of(&curve, RISEN)?;
    Some(format!("{} {lowest:.3} at step {step} ({last:.3} at the end)", run.name))
}

/// Returns a curve of evaluation records, dashed and with markers to distinguish it from the
/// training curve.
fn held_out(run: &Run, field: &str, scale: Option<&Scale>) -> Option<Series> {
    let found = series(run, "eval", field, scale)?;
    let name = format!("{}, held-out", run.name);
    Some(Series { name, dashed: true, markers: true, ..found })
}

fn series(run: &Run, kind: &str, field: &str, scale: Option<&Scale>) -> Option<Series> {
    let values = run.log.get(kind, field, scale);
    if values.is_empty() {
        return None;
    }
    let size = values.len().div_ceil(POINTS);
    let points = values.chunks(size).map(|group| {
        let mean = |value: fn(&(f64, f64)) -> f64| {
            group.iter().map(value).sum::<f64>() / group.len() as f64
        };
        Point { x: mean(|v| v.0), y: mean(|v| v.1), spread: None }
    });
    let markers = values.len() == 1;
    let (name, style) = (run.name.clone(), run.style);
    Some(Series { name, points: points.collect(), style, dashed: false, markers })
}
