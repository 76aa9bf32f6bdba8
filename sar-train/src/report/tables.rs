//! The tables of a comparison.

use super::html::{Cell, list, paragraph, table};
use super::read::Run;
use super::summary::{Arm, Summary, same_guidance};
use crate::eval::{EvalSettings, Floor, SweepPoint};

/// Shows the arms and their measures, each arm at its best guidance.
pub(super) fn arms(summary: &Summary) -> String {
    let head = [
        "arm",
        "steps",
        "held-out loss",
        "best guidance",
        "Fréchet distance",
        "precision",
        "recall",
        "class accuracy",
        "training images/s",
        "sampled images/s",
        "peak memory so far",
    ];
    let mut rows = Vec::new();
    let lowest = |value: fn(&Arm) -> Option<f64>| {
        summary.arms.iter().filter_map(value).fold(f64::INFINITY, f64::min)
    };
    let heldout: fn(&Arm) -> Option<f64> = |a| a.heldout_loss;
    let frechet: fn(&Arm) -> Option<f64> = |a| a.best().map(|p| p.frechet.mean);
    let (lowest_loss, lowest_frechet) = (lowest(heldout), lowest(frechet));
    let several = summary.arms.len() > 1;
    for arm in &summary.arms {
        let best = arm.best();
        rows.push(vec![
            Cell::new(&arm.name),
            Cell::new(arm.steps.to_string()),
            Cell::of(arm.heldout_loss, |v| format!("{v:.3}"))
                .best(several && heldout(arm) == Some(lowest_loss)),
            Cell::of(best, |p| p.guidance.to_string()),
            Cell::of(best, |p| p.frechet.text(2))
                .best(several && frechet(arm) == Some(lowest_frechet)),
            Cell::of(best, |p| p.precision.text(3)),
            Cell::of(best, |p| p.recall.text(3)),
            Cell::of(best, |p| p.class_accuracy.text(3)),
            Cell::of(arm.train_images_per_second, speed),
            Cell::of(arm.sample_images_per_second, speed),
            Cell::of(arm.peak_memory, memory),
        ]);
    }
    if rows.is_empty() {
        return String::new();
    }
    let note = "Each arm at its own best guidance; ± is the sample standard deviation over \
                sampling seeds. Bold: lowest held-out loss, lowest Fréchet distance.";
    table("Arms compared", &head.map(String::from), &rows) + &paragraph("caption", note)
}

/// Lists the descriptions of the arms.
pub(super) fn descriptions(arms: &[Arm]) -> String {
    let known = arms.iter().filter(|a| !a.description.is_empty());
    list("", &known.map(|a| format!("{}: {}", a.name, a.description)).collect::<Vec<_>>())
}

/// Shows the held-out loss of each scale, by arm.
pub(super) fn scales(arms: &[Arm]) -> String {
    let count = arms.iter().map(|a| a.scale_loss.len()).max().unwrap_or(0);
    if count == 0 {
        return String::new();
    }
    let mut head = vec!["arm: held-out loss (accuracy)".to_owned()];
    head.extend((1..=count).map(|i| format!("scale {i}")));
    let row = |arm: &Arm| {
        let mut row = vec![Cell::new(&arm.name)];
        row.extend((0..count).map(|i| {
            let accuracy = arm.scale_accuracy.get(i);
            let accuracy = accuracy.map(|a| format!(" ({a:.3})")).unwrap_or_default();
            Cell::of(arm.scale_loss.get(i), |l| format!("{l:.3}{accuracy}"))
        }));
        row
    };
    let rows: Vec<_> = arms.iter().map(row).collect();
    table("Held-out loss of each scale", &head, &rows)
}

/// Shows the results of each tokenizer's last evaluation, by grid and over all grids.
pub(super) fn tokenizers(runs: &[&Run]) -> String {
    let head = ["tokenizer", "grid", "PSNR, dB", "SSIM", "codebook used", "perplexity", "steps"];
    let percent = |v: (f64, f64)| format!("{:.1} %", 100.0 * v.1);
    let mut rows = Vec::new();
    for run in runs {
        let last = |name, scale| run.log.last("eval", name, scale);
        let steps = |at: Option<(f64, f64)>| Cell::of(at, |v| v.0.to_string());
        let scales = run.log.scales("eval", "psnr");
        for scale in scales.iter().rev() {
            let psnr = last("psnr", Some(scale));
            rows.push(vec![
                Cell::new(&run.name),
                Cell::new(scale.title().trim_start_matches("Grid ")),
                Cell::of(psnr, |v| format!("{:.2}", v.1)),
                Cell::of(last("ssim", Some(scale)), |v| format!("{:.3}", v.1)),
                Cell::of(last("scale_codebook_used", Some(scale)), percent),
                Cell::new(""),
                steps(psnr),
            ]);
        }
        let (used, perplexity) = (last("codebook_used", None), last("perplexity", None));
        if used.is_some() || perplexity.is_some() {
            rows.push(vec![
                Cell::new(&run.name),
                Cell::new("all"),
                Cell::new(""),
                Cell::new(""),
                Cell::of(used, percent),
                Cell::of(perplexity, |v| format!("{:.1}", v.1)),
                steps(used.or(perplexity)),
            ]);
        }
    }
    match rows.is_empty() {
        true => String::new(),
        false => table("Tokenizers", &head.map(String::from), &rows),
    }
}

/// Shows the Fréchet distance (precision, recall) at every guidance value. Unless the arms were
/// measured `alike`, none is marked as the best.
pub(super) fn sweep(arms: &[Arm], alike: bool) -> String {
    let mut guidances: Vec<f64> =
        arms.iter().flat_map(|a| a.sweep.iter().map(|p| p.guidance)).collect();
    guidances.sort_by(f64::total_cmp);
    guidances.dedup_by(|a, b| same_guidance(*a, *b));
    if guidances.is_empty() {
        return String::new();
    }
    let measured: Vec<&Arm> = arms.iter().filter(|a| !a.sweep.is_empty()).collect();
    let cell = |arm: &Arm, guidance: f64| {
        let points = || measured.iter().filter_map(|a| a.at(guidance));
        let lowest = points().map(|p| p.frechet.mean).fold(f64::INFINITY, f64::min);
        let among = alike && points().count() > 1;
        let p = arm.at(guidance);
        Cell::of(p, quality).best(among && p.is_some_and(|p| p.frechet.mean == lowest))
    };
    let names = measured.iter().map(|a| a.name.clone());
    let guided = guidances.iter().map(|g| format!("{g}").replace('-', "−"));
    let (head, rows): (Vec<String>, Vec<Vec<Cell>>) = match measured.len() > ARMS_BESIDE {
        true => {
            let head = std::iter::once("guidance".to_owned()).chain(guided).collect();
            let row = |arm: &&Arm| {
                let cells = guidances.iter().map(|g| cell(arm, *g));
                std::iter::once(Cell::new(&arm.name)).chain(cells).collect()
            };
            (head, measured.iter().map(row).collect())
        }
        false => {
            let head = std::iter::once("guidance".to_owned()).chain(names).collect();
            let row = |(name, guidance): (String, &f64)| {
                let cells = measured.iter().map(|arm| cell(arm, *guidance));
                std::iter::once(Cell::new(name)).chain(cells).collect()
            };
            (head, guided.zip(&guidances).map(row).collect())
        }
    };
    let bold = match alike && measured.len() > 1 {
        true => " Bold: lowest at this guidance, whether or not by more than the spread.",
        false => "",
    };
    let caption = format!("Fréchet distance ± spread / precision / recall / class accuracy.{bold}");
    table("Sweep over guidance", &head, &rows) + &paragraph("caption", &caption)
}

/// With more arms than this, each has a row and guidance values have columns.
const ARMS_BESIDE: usize = 4;

fn quality(p: &SweepPoint) -> String {
    let (precision, recall, accuracy) = (p.precision.mean, p.recall.mean, p.class_accuracy.mean);
    format!("{} / {precision:.3} / {recall:.3} / {accuracy:.3}", p.frechet.text(2))
}

/// Shows the measures of real and reconstructed images.
pub(super) fn floors(floors: &[Floor]) -> String {
    if floors.is_empty() {
        return String::new();
    }
    let head = ["images", "count", "Fréchet distance", "precision", "recall", "class accuracy"];
    let row = |f: &Floor| {
        vec![
            Cell::new(&f.name),
            Cell::new(f.count.to_string()),
            Cell::new(format!("{:.2}", f.frechet)),
            Cell::new(format!("{:.3}", f.precision)),
            Cell::new(format!("{:.3}", f.recall)),
            Cell::of(f.class_accuracy, |v| format!("{v:.3}")),
        ]
    };
    let rows: Vec<_> = floors.iter().map(row).collect();
    table("Floors", &head.map(String::from), &rows)
        + &paragraph(
            "caption",
            "Against the validation images. A generator that reached these would be as good as its tokenizer, or as real images, can show here.",
        )
}

/// Lists how quality was measured.
pub(super) fn settings(s: &EvalSettings) -> String {
    list("", &settings_items(s, false))
}

/// Returns the items of [`settings`]; if filters were `swept`, they are left out, because the
/// numbers name theirs.
pub(super) fn settings_items(s: &EvalSettings, swept: bool) -> Vec<String> {
    if s.extractor.is_empty() {
        return Vec::new();
    }
    let sampler = &s.sampler;
    let off = |v: String, off: bool| if off { "off".to_owned() } else { v };
    let seeds: Vec<String> = s.seeds.iter().map(u64::to_string).collect();
    let filter = match swept {
        true => "top-k and top-p as named".to_owned(),
        false => format!(
            "top-k {}, top-p {}",
            off(sampler.top_k.to_string(), sampler.top_k == 0),
            off(sampler.top_p.to_string(), sampler.top_p == 0.0)
        ),
    };
    let items = [
        format!("Features: {} ({} dimensions).", s.extractor, s.feature_dims),
        format!(
            "Accuracy of that classifier on the validation images: {:.2} %{}.",
            100.0 * s.extractor_accuracy,
            trained(s)
        ),
        format!(
            "{} generated images per seed, the same number of each class, against {} validation \
             images; sampling seeds {}.",
            s.count,
            s.reference_count,
            seeds.join(", ")
        ),
        if s.data.is_empty() { String::new() } else { format!("Images: {}.", s.data) },
        format!("Precision and recall with {} nearest neighbours.", s.neighbours),
        format!(
            "Sampling: schedule {}, {filter}, guidance ramp {}.",
            sampler.schedule, sampler.ramp
        ),
        match sampler.described().trim_start_matches("; ") {
            "" => String::new(),
            weights => format!("{}{}.", weights[..1].to_uppercase(), &weights[1..]),
        },
    ];
    items.into_iter().filter(|item| !item.is_empty()).collect()
}

/// Describes how the classifier was trained, if known.
fn trained(s: &EvalSettings) -> String {
    match (s.extractor_steps, s.extractor_seed) {
        (Some(steps), Some(seed)) => format!(" after {steps} steps, seed {seed}"),
        _ => String::new(),
    }
}

/// Lists seed, time, memory and tokenizer of the whole comparison.
pub(super) fn whole(summary: &Summary) -> String {
    let mut items = vec![format!("Training seed {}.", summary.seed)];
    if let Some(t) = &summary.tokenizer {
        let psnr = t.psnr.map(|p| format!(", PSNR {p:.1} dB on validation images"));
        let used = t.codes_used.zip(t.vocab).map(|(u, v)| format!(", {u} of {v} codes used"));
        items.push(format!(
            "Tokenizer: {} steps{}{}.",
            t.steps,
            psnr.unwrap_or_default(),
            used.unwrap_or_default()
        ));
    }
    items.extend(summary.seconds.map(|s| format!("The whole took {s:.0} s.")));
    items.extend(summary.peak_memory.map(|m| format!("Peak memory {}.", memory(m))));
    list("", &items)
}

fn speed(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

fn memory(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    match mebibytes {
        m if m >= 10_240.0 => format!("{:.1} GiB", m / 1024.0),
        m => format!("{m:.0} MiB"),
    }
}
