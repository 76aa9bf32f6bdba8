//! The page: its sections in reading order.

use super::curves::{self, Figures, gallery};
use super::evaluations::evaluations;
use super::html::{escape, list, paragraph, section, unbroken};
use super::pictures::{Picture, Shows};
use super::read::{Comparison, Material, Run};
use super::summary::Verdict;
use super::{tables, verdict};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// How the last lines of a page begin, by which one is known again.
const FOOTER: &str = "<footer><p>Written by sar";
/// Bytes at the end of a page that hold its footer.
const END: u64 = 256;

const STYLE: &str = include_str!("style.css");

/// Largest width of an enlarged small picture, in CSS pixels.
const SHOWN_WIDTH: u32 = 640;
/// Largest height of an enlarged picture, about that of a screen.
const SHOWN_HEIGHT: u32 = 800;
/// Largest width at which strips are shown side by side: that of a column.
const BESIDE_WIDTH: u32 = 400;
/// Maximum number of pictures of a kind shown per run; of more, the first and the last are shown.
const PICTURES: usize = 6;

/// Number of shown digits of a checksum, enough to distinguish files.
const HASH_SHOWN: usize = 12;

const WHAT: &str = "SAR (Self-Autoregressive Refinement, arXiv 2512.06421) refines a next-scale \
                    image generator after training: the generator sees its own predictions for one \
                    extra pass and is pulled towards what it predicted with the truth before it. \
                    This page shows what a run measured, whichever way it turned out.";

/// Introduction used instead if there are only tokenizers.
const WHAT_TOKENIZERS: &str = "A tokenizer turns an image into codes of a codebook, at grids from coarse to fine, \
                               and back. A generator predicts these codes; its pictures are at best as good as \
                               what the tokenizer gives back.";

/// Text below the table of tokenizers.
const RECONSTRUCTED: &str = "Images that were held out (training images, where none are), encoded at each grid and \
                             decoded again. PSNR and SSIM: higher is closer to the image. Perplexity: how many codes \
                             evenly used would carry as much.";

/// Renders the whole file.
pub(super) fn page(material: &Material) -> String {
    let title = title(material);
    let mut figures = Figures::default();
    let tokenizers = material.comparisons.is_empty() && material.runs.iter().all(Run::is_tokenizer);
    let what = if tokenizers { WHAT_TOKENIZERS } else { WHAT };
    let mut body = format!("<header>\n<h1>{}</h1>\n{}", escape(&title), paragraph("", what));
    for comparison in &material.comparisons {
        body.push_str(&paragraph("", &comparison.summary.description));
        body.push_str(&paragraph("", &comparison.summary.data));
    }
    body.push_str("</header>\n");
    body.push_str(&notes(material));
    for comparison in &material.comparisons {
        body.push_str(&compared(comparison, material.comparisons.len() > 1, &mut figures));
    }
    body.push_str(&evaluations(&material.runs, &mut figures));
    for (title, kind) in [
        ("Samples", Shows::Samples),
        ("Scale by scale", Shows::Scales),
        ("Reconstructions", Shows::Reconstructions),
    ] {
        body.push_str(&section(title, &pictures(&material.runs, kind)));
    }
    body.push_str(&logs(&material.runs, &mut figures));
    body.push_str(&section("Resolved configuration", &configurations(&material.runs)));
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
         style-src 'unsafe-inline'\">\n<title>{}</title>\n<link rel=\"icon\" href=\"data:,\">\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n\
         {FOOTER} {version}. Self-contained: no script, no request.</p></footer>\n\
         </body>\n</html>\n",
        escape(&title)
    )
}

/// Whether a file is a page that this program has written.
pub(super) fn is_page(file: &Path) -> bool {
    let end = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(file)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(END)))?;
        let mut end = Vec::new();
        file.take(END).read_to_end(&mut end)?;
        Ok(end)
    };
    end().is_ok_and(|end| end.windows(FOOTER.len()).any(|part| part == FOOTER.as_bytes()))
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
    format!(
        "<aside class=\"notes\">\n<h2>Missing, damaged or not shown</h2>\n{}</aside>\n",
        list("", &notes)
    )
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
    let charts = curves::sweep(arms, &styles, &summary.floors, "sampling seeds", figures);
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

fn pictures(runs: &[Run], kind: Shows) -> String {
    let mut out = String::new();
    for run in runs {
        let all: Vec<&Picture> = run.pictures.iter().filter(|p| p.shows() == kind).collect();
        let shown: Vec<&Picture> = match all.as_slice() {
            [first, .., last] if all.len() > PICTURES => vec![first, last],
            all => all.to_vec(),
        };
        for picture in &shown {
            out.push_str(&figure(&run.name, picture));
        }
        if shown.len() < all.len() {
            let left = all.len() - shown.len();
            let note =
                format!("{}: the first and the last; {left} between them left out.", run.name);
            out.push_str(&paragraph("caption wide", &note));
        }
    }
    let of_kind = runs.iter().flat_map(|run| &run.pictures).filter(|p| p.shows() == kind);
    let wide = of_kind.map(|p| shown_size(p).0).max().unwrap_or(0) > BESIDE_WIDTH;
    let class = if kind == Shows::Samples || !wide { "pictures" } else { "strips" };
    if out.is_empty() { out } else { format!("<div class=\"{class}\">\n{out}</div>\n") }
}

/// Returns width and height at which a picture is shown: small ones are enlarged by a whole factor,
/// so that their pixels stay square and sharp.
fn shown_size(picture: &Picture) -> (u32, u32) {
    let factor = SHOWN_WIDTH / picture.width.max(1);
    let factor = factor.min(SHOWN_HEIGHT / picture.height.max(1)).max(1);
    (picture.width * factor, picture.height * factor)
}

fn figure(run: &str, picture: &Picture) -> String {
    let (width, height) = shown_size(picture);
    let what = picture.shows().described();
    let (run, name) = (escape(run), escape(&picture.name));
    let caption = match picture.shows() {
        Shows::Reconstructions => format!("{name}: {what}"),
        _ => name.to_string(),
    };
    format!(
        "<figure>\n<img width=\"{width}\" height=\"{height}\" alt=\"{run}: {what} ({name})\" \
         src=\"data:image/png;base64,{}\">\n<figcaption>{run} · {caption}</figcaption>\n</figure>\n",
        picture.base64
    )
}

fn logs(runs: &[Run], figures: &mut Figures) -> String {
    let (generators, rest): (Vec<&Run>, Vec<&Run>) = runs.iter().partition(|r| r.is_generator());
    let (tokenizers, rest): (Vec<&Run>, Vec<&Run>) = rest.iter().partition(|r| r.is_tokenizer());
    let training = gallery(&curves::training(&generators, figures));
    let scales = gallery(&curves::per_scale(&generators, figures));
    let mut out = section("Training", &training);
    out.push_str(&section("Training, scale by scale", &scales));
    out.push_str(&of_tokenizers(&tokenizers, figures));
    for run in rest {
        let title = format!("Training: {}", run.name);
        out.push_str(&section(&title, &gallery(&curves::others(&[run], figures))));
    }
    let mut others = curves::others(&generators, figures);
    others.extend(curves::others(&tokenizers, figures));
    out.push_str(&section("Everything else in the logs", &folded("Show", &gallery(&others))));
    out
}

/// Shows quality and curves of tokenizers.
fn of_tokenizers(runs: &[&Run], figures: &mut Figures) -> String {
    let quality = tables::tokenizers(runs);
    let told =
        if quality.is_empty() { quality } else { quality + &paragraph("caption", RECONSTRUCTED) };
    let (fine, coarse) = curves::tokenizers(runs, figures);
    let curves = gallery(&fine) + &folded("Coarser grids", &gallery(&coarse));
    section("Tokenizers", &told) + &section("Training of tokenizers", &curves)
}

/// Returns a body that opens on demand; empty if there is none.
fn folded(title: &str, body: &str) -> String {
    match body {
        "" => String::new(),
        body => format!("<details>\n<summary>{}</summary>\n{body}</details>\n", escape(title)),
    }
}

fn configurations(runs: &[Run]) -> String {
    let mut out = String::new();
    for run in runs {
        if let Some(origin) = &run.origin {
            let (file, ema) =
                (origin.weights.display(), if origin.ema { ", averaged (EMA)" } else { "" });
            let hash: String = origin.sha256.chars().take(HASH_SHOWN).collect();
            let (name, step) = (&run.name, origin.step);
            let text = format!("{name} started from {file}, step {step}{ema} (SHA-256 {hash}…).");
            out.push_str(&paragraph("caption", &text));
        }
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
