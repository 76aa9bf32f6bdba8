//! The page: sections in the order in which they are read.

use super::curves::{self, Figures, gallery};
use super::html::{escape, list, paragraph, section};
use super::pictures::Picture;
use super::read::{Comparison, Material, Run};
use super::summary::{Arm, Verdict};
use super::{tables, verdict};
use std::fmt::Write as _;

const STYLE: &str = include_str!("style.css");

/// The largest side at which a small picture is shown, in CSS pixels.
const SHOWN_WIDTH: u32 = 640;
/// Nor higher than a screen, where they are enlarged.
const SHOWN_HEIGHT: u32 = 800;
/// Pictures of a kind shown per run; of more, the first and the last.
const PICTURES: usize = 6;

const WHAT: &str = "SAR (Self-Autoregressive Refinement, arXiv 2512.06421) refines a next-scale \
                    image generator after training: the generator sees its own predictions for one \
                    extra pass and is pulled towards what it predicted with the truth before it. \
                    This page shows what a run measured, whichever way it turned out.";

/// Over evaluations that cannot be compared.
const UNLIKE: &str = "These runs were not measured alike (other images, another number of them or of seeds, \
                      or other features): their numbers do not say which is better.";

/// Renders the whole file.
pub(super) fn page(material: &Material) -> String {
    let title = title(material);
    let mut figures = Figures::default();
    let mut body = format!("<header>\n<h1>{}</h1>\n{}", escape(&title), paragraph("", WHAT));
    for comparison in &material.comparisons {
        body.push_str(&paragraph("", &comparison.summary.description));
        body.push_str(&paragraph("", &comparison.summary.data));
    }
    body.push_str("</header>\n");
    body.push_str(&notes(material));
    for comparison in &material.comparisons {
        body.push_str(&compared(comparison, material.comparisons.len() > 1, &mut figures));
    }
    body.push_str(&evaluated(&material.runs, &mut figures));
    body.push_str(&section("Samples", &pictures(&material.runs, false)));
    body.push_str(&section("Scale by scale", &pictures(&material.runs, true)));
    body.push_str(&logs(&material.runs, &mut figures));
    body.push_str(&section("Resolved configuration", &configurations(&material.runs)));
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
         style-src 'unsafe-inline'\">\n<title>{}</title>\n<link rel=\"icon\" href=\"data:,\">\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         <footer><p>Written by sar {version}. Self-contained: no script, no request.</p></footer>\n\
         </body>\n</html>\n",
        escape(&title)
    )
}

fn title(material: &Material) -> String {
    let named = material.comparisons.iter().map(|c| &c.summary.title).find(|t| !t.is_empty());
    match named {
        Some(title) => title.clone(),
        None => {
            let names: Vec<&str> = material.runs.iter().map(|r| r.name.as_str()).collect();
            format!("Runs: {}", names.join(", "))
        }
    }
}

fn notes(material: &Material) -> String {
    let notes = material.notes();
    if notes.is_empty() {
        return String::new();
    }
    format!("<aside class=\"notes\">\n<h2>Missing or damaged</h2>\n{}</aside>\n", list("", &notes))
}

fn compared(comparison: &Comparison, several: bool, figures: &mut Figures) -> String {
    let summary = &comparison.summary;
    let arms = &summary.arms;
    let mut out = String::new();
    if several {
        let _ = writeln!(out, "<h2 class=\"part\">{}</h2>", escape(&summary.title));
    }
    let told = match summary.verdict.headline.is_empty() {
        true => verdict::verdict(summary),
        false => summary.verdict.clone(),
    };
    out.push_str(&verdict_box(&told));
    let table = tables::arms(summary) + &tables::descriptions(arms);
    out.push_str(&section("The arms compared", &table));
    let styles: Vec<usize> = (0..arms.len()).map(|i| comparison.first_style + i).collect();
    let charts = curves::sweep(arms, &styles, &summary.floors, figures);
    let sweep = gallery(&charts) + &tables::sweep(arms, true);
    out.push_str(&section("Quality over guidance", &sweep));
    out.push_str(&section("Floors", &tables::floors(&summary.floors)));
    let scales = gallery(&curves::final_scales(arms, comparison.first_style, figures))
        + &tables::scales(arms);
    out.push_str(&section("Held-out loss of each scale", &scales));
    let how = tables::settings(&summary.settings) + &tables::whole(summary);
    out.push_str(&section("How it was measured", &(how + &list("", &summary.notes))));
    out
}

fn verdict_box(verdict: &Verdict) -> String {
    let details: Vec<String> = verdict.details.iter().map(|d| unbroken(d)).collect();
    format!(
        "<section class=\"verdict\">\n<h2>Verdict</h2>\n{}{}</section>\n",
        paragraph("headline", &unbroken(&verdict.headline)),
        list("", &details)
    )
}

/// Keeps a number and its spread or unit on one line.
fn unbroken(text: &str) -> String {
    text.replace(" ± ", "\u{a0}±\u{a0}").replace(" %", "\u{a0}%")
}

/// Sweeps of runs that were evaluated on their own, in one chart, where nothing compares them.
fn evaluated(runs: &[Run], figures: &mut Figures) -> String {
    let (mut arms, mut styles) = (Vec::new(), Vec::new());
    let mut out = String::new();
    let mut details = String::new();
    for run in runs {
        if let Some(eval) = &run.eval {
            let sweep = eval.points.clone();
            arms.push(Arm { name: run.name.clone(), sweep, ..Arm::default() });
            styles.push(run.style);
            let _ = writeln!(details, "<h3>{}</h3>", escape(&run.name));
            details.push_str(&tables::settings(&eval.settings));
            details.push_str(&tables::floors(&eval.floors));
            details.push_str(&list("", &eval.warnings));
        }
    }
    let settings: Vec<_> =
        runs.iter().filter_map(|r| r.eval.as_ref()).map(|e| &e.settings).collect();
    let alike = settings.iter().all(|a| settings.iter().all(|b| a.comparable(b)));
    if !alike {
        out.push_str(&paragraph("warning", UNLIKE));
    }
    for (name, measured, reached) in runs.iter().filter_map(outdated) {
        let text = format!(
            "{name} was measured at step {measured} and has been trained to step {reached} since; `sar eval` \
             measures it as it is."
        );
        out.push_str(&paragraph("warning", &text));
    }
    if !details.is_empty() {
        let charts = gallery(&curves::sweep(&arms, &styles, &[], figures));
        out = section("Evaluations", &(out + &charts + &tables::sweep(&arms, alike) + &details));
    }
    out
}

/// A run whose numbers are of fewer steps than it has now: its name, theirs and its own.
fn outdated(run: &Run) -> Option<(&str, u64, u64)> {
    let sampler = &run.eval.as_ref()?.settings.sampler;
    let reached = run.saved?;
    let known = !sampler.weights.is_empty() && sampler.step < reached;
    known.then_some((run.name.as_str(), sampler.step, reached))
}

fn pictures(runs: &[Run], strips: bool) -> String {
    let mut out = String::new();
    for run in runs {
        let all: Vec<&Picture> = run.pictures.iter().filter(|p| p.is_strip() == strips).collect();
        let shown: Vec<&Picture> = match all.as_slice() {
            [first, .., last] if all.len() > PICTURES => vec![first, last],
            all => all.to_vec(),
        };
        for picture in &shown {
            out.push_str(&figure(&run.name, picture, strips));
        }
        if shown.len() < all.len() {
            let left = all.len() - shown.len();
            let note =
                format!("{}: the first and the last; {left} between them left out.", run.name);
            out.push_str(&paragraph("caption wide", &note));
        }
    }
    let class = if strips { "strips" } else { "pictures" };
    if out.is_empty() { out } else { format!("<div class=\"{class}\">\n{out}</div>\n") }
}

fn figure(run: &str, picture: &Picture, strip: bool) -> String {
    // Small pictures grow by a whole factor, so that their pixels stay square and sharp.
    let factor = SHOWN_WIDTH / picture.width.max(1);
    let factor = factor.min(SHOWN_HEIGHT / picture.height.max(1)).max(1);
    let (width, height) = (picture.width * factor, picture.height * factor);
    let what = if strip { "every scale decoded, coarse to fine" } else { "samples" };
    let (run, name) = (escape(run), escape(&picture.name));
    format!(
        "<figure>\n<img width=\"{width}\" height=\"{height}\" alt=\"{run}: {what} ({name})\" \
         src=\"data:image/png;base64,{}\">\n<figcaption>{run} · {name}</figcaption>\n</figure>\n",
        picture.base64
    )
}

fn logs(runs: &[Run], figures: &mut Figures) -> String {
    let (generators, rest): (Vec<&Run>, Vec<&Run>) = runs.iter().partition(|r| r.is_generator());
    let training = gallery(&curves::training(&generators, figures));
    let scales = gallery(&curves::per_scale(&generators, figures));
    let mut out = section("Training", &training);
    out.push_str(&section("Training, scale by scale", &scales));
    for run in rest {
        let title = format!("Training: {}", run.name);
        out.push_str(&section(&title, &gallery(&curves::others(&[run], figures))));
    }
    let others = gallery(&curves::others(&generators, figures));
    if !others.is_empty() {
        let folded = format!("<details>\n<summary>Show</summary>\n{others}</details>\n");
        out.push_str(&section("Everything else in the logs", &folded));
    }
    out
}

fn configurations(runs: &[Run]) -> String {
    let mut out = String::new();
    for run in runs {
        if let Some(config) = &run.config {
            let _ = write!(
                out,
                "<details>\n<summary>{}: config.toml</summary>\n<pre tabindex=\"0\">{}</pre>\n\
                 </details>\n",
                escape(&run.name),
                escape(config)
            );
        }
    }
    out
}
