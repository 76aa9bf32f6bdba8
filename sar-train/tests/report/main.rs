//! The report, from a synthetic run folder: what it says, what it survives, how it looks.
#![allow(clippy::unwrap_used)]

mod browser;

use sar_train::eval::{EvalSettings, Floor, SamplerSettings, SweepPoint};
use sar_train::metrics::Measured;
use sar_train::report::summary::{Arm, ArmRole, Summary, TokenizerSummary};
use sar_train::report::{self, ReportError, verdict};
use std::path::{Path, PathBuf};

/// Text that would be markup, or run, if it were not escaped.
const EVIL: &str = "<script>document.title='broken'</script>\"'&<img src=x onerror=alert(1)>";

fn point(guidance: f64, best: f64, level: f64) -> SweepPoint {
    let around = |v: f64, by: f64| Measured::of(vec![v - by, v, v + by]).unwrap();
    let away = (guidance - best).abs();
    SweepPoint {
        guidance,
        top_k: None,
        top_p: None,
        frechet: around(level + 14.0 * away, 0.8),
        precision: around(0.2 + 0.02 * guidance, 0.004),
        recall: around(0.76 - 0.03 * guidance, 0.006),
        class_accuracy: around(0.96 + 0.01 * guidance, 0.002),
    }
}

fn arm(name: &str, role: ArmRole, run: &str, best: f64, level: f64) -> Arm {
    let guidances = [-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5];
    Arm {
        name: name.into(),
        role,
        description: format!("What {name} did, in a sentence."),
        steps: 800,
        heldout_loss: Some(1.4 + level / 400.0),
        scale_loss: vec![2.31, 2.05, 1.77, 1.32],
        scale_accuracy: vec![0.31, 0.38, 0.44, 0.56],
        sweep: guidances.iter().map(|g| point(*g, best, level)).collect(),
        train_images_per_second: Some(411.3),
        sample_images_per_second: Some(923.0),
        peak_memory: Some(412 << 20),
        run: Some(run.into()),
    }
}

fn summary() -> Summary {
    let floor = |name: &str, count, frechet| Floor {
        name: name.into(),
        count,
        frechet,
        precision: 0.81,
        recall: 0.86,
        class_accuracy: Some(0.974),
    };
    let mut summary = Summary {
        title: "Ten glyph classes, 32×32".into(),
        description: "A tokenizer and a small generator, refined in two ways from one base.".into(),
        data: "3,700 training and 930 validation images of 463 open fonts.".into(),
        arms: vec![
            arm("base", ArmRole::Base, "base", 0.25, 47.0),
            arm("more teacher forcing", ArmRole::Control, "control", 0.0, 43.3),
            arm("SAR, preset release", ArmRole::Refined, "sar", 0.5, 40.1),
        ],
        floors: vec![
            floor("validation images, reconstructed by the tokenizer", 930, 6.1),
            floor("all training images", 3700, 21.0),
            floor("as many training images as validation images", 930, 36.3),
        ],
        settings: EvalSettings {
            extractor: "features of a small classifier trained on the training images".into(),
            extractor_accuracy: 0.9753,
            extractor_steps: Some(400),
            extractor_seed: Some(0),
            feature_dims: 64,
            data: "ten classes of glyphs".into(),
            data_fingerprint: String::new(),
            side: 32,
            reference_count: 930,
            count: 1440,
            seeds: vec![1, 2, 3],
            neighbours: 3,
            sampler: SamplerSettings {
                ramp: "flexvar".into(),
                top_k: 0,
                top_p: 0.95,
                schedule: "1_2_4_8".into(),
                ..SamplerSettings::default()
            },
        },
        tokenizer: Some(TokenizerSummary {
            steps: 1200,
            psnr: Some(21.4),
            codes_used: Some(233),
            vocab: Some(256),
        }),
        seconds: Some(412.0),
        peak_memory: Some(612 << 20),
        notes: vec!["A small run: differences of a few per cent are noise.".into()],
        ..Summary::default()
    };
    summary.verdict = verdict::verdict(&summary);
    summary
}

/// A picture with a pattern, `cells` glyph-sized tiles across and down.
fn picture(path: &Path, across: u32, down: u32) {
    let image = image::GrayImage::from_fn(across * 32, down * 32, |x, y| {
        let (dx, dy) = ((x % 32) as f32 - 15.5, (y % 32) as f32 - 15.5);
        let ring = dx.hypot(dy) - 6.0 - ((x / 32 + y / 32) % 5) as f32;
        image::Luma([(255.0 * (ring.abs() / 4.0).min(1.0)) as u8])
    });
    image.save(path).unwrap();
}

fn run_folder(folder: &Path, steps: u32, level: f64) {
    std::fs::create_dir_all(folder.join("samples")).unwrap();
    let config = "[generator]\ndepth = 4\nwidth = 64 # a rather long comment that is wider than a \
                  narrow page, so that the box has to scroll\n\n[data]\nsource = \"builtin:glyphs10\"\n";
    std::fs::write(folder.join("config.toml"), config).unwrap();
    let mut log = String::new();
    for step in (10..=steps).step_by(10) {
        let fall = (-f64::from(step) / 900.0).exp();
        let wobble = f64::from((step * 7919) % 101) / 1000.0;
        let loss = level + 2.0 * fall + wobble;
        let lr = 1e-3 * (1.0 - f64::from(step) / f64::from(steps + 1));
        let scales: Vec<f64> = (0..4).map(|s| loss + 0.6 - 0.3 * f64::from(s)).collect();
        let accuracies: Vec<f64> = scales.iter().map(|l| 1.0 / l).collect();
        let record = serde_json::json!({
            "step": step, "kind": "train", "loss": loss, "loss_tf": loss, "loss_csf": loss * 0.8,
            "lr": lr, "grad_norm": 0.5 + 4.0 * fall + wobble, "scale_loss": scales,
            "scale_acc": accuracies, "images_per_s": 400.0 + 100.0 * wobble,
        });
        log.push_str(&format!("{record}\n"));
        if step % 200 == 0 {
            let record =
                serde_json::json!({"step": step, "kind": "eval", "heldout_loss": loss + 0.1});
            log.push_str(&format!("{record}\n"));
        }
    }
    std::fs::write(folder.join("log.jsonl"), log).unwrap();
    picture(&folder.join("samples/step-800.png"), 10, 6);
}

/// The run of a tokenizer that trains a coarse and a fine grid in turn.
fn tokenizer_folder(folder: &Path) {
    std::fs::create_dir_all(folder.join("samples")).unwrap();
    std::fs::write(folder.join("config.toml"), "[tokenizer]\nvocab = 256\n").unwrap();
    let mut log = String::new();
    for step in (10..=600).step_by(10) {
        let record = serde_json::json!({
            "step": step, "kind": "train", "loss": 1.0 / f64::from(step), "quantization": 0.01,
            "lr": 1e-3, "grad_norm": 0.5, "revived": step % 3, "seconds": step,
            "grid": if step % 20 == 0 { "8x8" } else { "2x4" },
        });
        log.push_str(&format!("{record}\n"));
    }
    let record = serde_json::json!({
        "step": 300, "kind": "eval", "grids": ["8x8"], "psnr": [19.5], "codebook_used": 0.5,
    });
    log.push_str(&format!("{record}\n"));
    let record = serde_json::json!({
        "step": 600, "kind": "eval", "grids": ["1x1", "2x4", "8x8"], "psnr": [9.0, 13.25, 21.5],
        "ssim": [null, 0.25, 0.875], "scale_codebook_used": [0.1, 0.5, 0.75], "codebook_used": 0.875,
        "perplexity": 99.25,
    });
    log.push_str(&format!("{record}\n"));
    std::fs::write(folder.join("log.jsonl"), log).unwrap();
    picture(&folder.join("samples/reconstructions.png"), 8, 2);
}

/// A whole comparison: base, two arms, a tokenizer.
fn demo(folder: &Path) -> PathBuf {
    let demo = folder.join("demo");
    run_folder(&demo.join("base"), 4000, 1.45);
    run_folder(&demo.join("control"), 800, 1.42);
    run_folder(&demo.join("sar"), 800, 1.40);
    picture(&demo.join("sar/samples/strip-800.png"), 30, 4);
    tokenizer_folder(&demo.join("tokenizer"));
    summary().write(&demo).unwrap();
    demo
}

#[test]
fn the_page_holds_everything_and_asks_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let demo = demo(folder.path());
    // An arm named once more is not shown once more.
    let report = report::render(&[demo.clone(), demo.join("sar")]).unwrap();
    assert_eq!(report.notes, Vec::<String>::new());
    let html = &report.html;
    for part in [
        "SAR, preset release is better than more teacher forcing",
        "Held-out loss of each scale",
        "Fréchet distance over guidance",
        "floor: all training images",
        "Learning rate",
        "Scale 4, accuracy",
        "Training of tokenizers",
        "width = 64",
        "40.10\u{a0}±\u{a0}0.80",
        "97.53 %",
        "guidance ramp flexvar",
    ] {
        assert!(html.contains(part), "no '{part}'");
    }
    assert_eq!(html.matches("<img ").count(), 5);
    assert_eq!(html.matches("<svg ").count(), html.matches("</svg>").count());
    for outside in ["http://", "https://", "<script", "@import", "url("] {
        assert!(!html.contains(outside), "'{outside}' in the page");
    }
}

#[test]
fn tokenizers_have_a_table_and_curves_by_grid() {
    let folder = tempfile::tempdir().unwrap();
    let runs = ["one", "two"].map(|name| folder.path().join(name));
    runs.iter().for_each(|run| tokenizer_folder(run));
    let html = report::render(&runs).unwrap().html;
    for part in [
        "<th scope=\"row\">two</th><td>8×8</td><td>21.50</td><td>0.875</td><td>75.0\u{a0}%</td>",
        "<td>1×1</td><td>9.00</td><td>–</td>",
        "<td>all</td><td>–</td><td>–</td><td>87.5\u{a0}%</td><td>99.2</td><td>600</td>",
        "<strong>Grid 8×8, reconstruction error</strong>",
        "<strong>Grid 8×8, PSNR</strong>",
        "<strong>Codebook used, by all grids</strong>",
        "<strong>Grid 2×4, distance of latents to their codes</strong>",
        "what the tokenizer gives back below</figcaption>",
        "<strong>seconds (train)</strong>",
    ] {
        assert!(html.contains(part), "no '{part}'");
    }
    // No chart of a single point, nor a table's number once more; nothing of refinement.
    for absent in
        ["(eval)</strong>", "SAR (Self-Autoregressive", "<h2>Samples</h2>", "Grid 2×4, PSNR"]
    {
        assert!(!html.contains(absent), "'{absent}'");
    }
    let coarse = html.find("<summary>Coarser grids").unwrap();
    assert!(html.find("<strong>Grid 8×8").unwrap() < coarse);
    assert!(html.find("<strong>Grid 2×4").unwrap() > coarse);
}

#[test]
fn scales_of_runs_with_other_schedules_meet_by_their_grids() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, schedule: &str, losses: &str| {
        let run = folder.path().join(name);
        std::fs::create_dir_all(&run).unwrap();
        let config =
            format!("[generator]\nschedule = \"{schedule}\"\n[train]\nmode = \"teacher\"\n");
        std::fs::write(run.join("config.toml"), config).unwrap();
        let record = |step: u64| {
            format!("{{\"step\":{step},\"kind\":\"train\",\"loss\":1,\"scale_loss\":{losses}}}\n")
        };
        std::fs::write(run.join("log.jsonl"), record(1) + &record(2)).unwrap();
        run
    };
    let runs = [run("a", "1_2_4", "[1,2,3]"), run("b", "1_2_3_2x4_4", "[4,5,6,7,8]")];
    let html = report::render(&runs).unwrap().html;
    // Once as a title, once for those who cannot see the chart.
    let charts = |title: &str| html.matches(&format!("{title}, loss</")).count();
    let titled = charts("Grid 1×1");
    assert!(titled > 0, "no chart of the first scale");
    for grid in ["2×2", "3×3", "2×4", "4×4"] {
        assert_eq!(charts(&format!("Grid {grid}")), titled, "{grid}");
    }
    assert_eq!(charts("Scale 3"), 0);
    let at = |title: &str| html.find(&format!("Grid {title}, loss</")).unwrap();
    assert!(at("2×2") < at("2×4") && at("2×4") < at("3×3") && at("3×3") < at("4×4"));
}

#[test]
fn what_is_damaged_is_said_and_what_is_markup_is_text() {
    let folder = tempfile::tempdir().unwrap();
    let demo = demo(folder.path());
    std::fs::remove_dir_all(demo.join("base")).unwrap();
    std::fs::remove_file(demo.join("control/config.toml")).unwrap();
    let log = std::fs::read(demo.join("control/log.jsonl")).unwrap();
    std::fs::write(demo.join("control/log.jsonl"), &log[..log.len() - 40]).unwrap();
    std::fs::write(demo.join("sar/config.toml"), format!("[broken\n{EVIL}")).unwrap();
    std::fs::write(demo.join("sar/log.jsonl"), b"").unwrap();
    let whole = std::fs::read(demo.join("sar/samples/step-800.png")).unwrap();
    std::fs::write(demo.join("sar/samples/step-900.png"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(demo.join("sar/samples/empty.png"), b"").unwrap();
    std::fs::write(demo.join("sar/eval.json"), b"{").unwrap();
    let mut evil = summary();
    evil.title = EVIL.into();
    evil.arms[2].name = EVIL.into();
    evil.arms[1].sweep.clear();
    evil.arms[0].run = Some("../../etc".into());
    evil.verdict = verdict::verdict(&evil);
    evil.write(&demo).unwrap();

    let report = report::render(std::slice::from_ref(&demo)).unwrap();
    let said = report.notes.join("\n");
    for part in [
        "more teacher forcing: config.toml cannot be read",
        "log.jsonl: 1 unreadable line(s) left out, the first is line 84",
        "config.toml is damaged",
        "log.jsonl has no records yet",
        "samples/step-900.png is not shown",
        "samples/empty.png is not shown",
        "eval.json is damaged",
    ] {
        assert!(said.contains(part), "no '{part}' in\n{said}");
    }
    assert!(report.html.contains("No verdict: an arm was not measured."));
    assert!(!report.html.contains("<script") && !report.html.contains("<img src=x"));

    std::fs::write(demo.join("summary.json"), "{\"format\": 7}").unwrap();
    let newer = report::render(std::slice::from_ref(&demo)).unwrap();
    assert!(newer.notes[0].contains("summary format 7"), "{:?}", newer.notes);
    std::fs::write(demo.join("summary.json"), "{}").unwrap();
    assert!(report::render(&[demo]).unwrap().html.contains("No verdict"));
}

#[test]
fn a_path_that_is_no_run_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let render = |path: &Path| report::render(&[path.to_path_buf()]).unwrap_err();
    assert!(matches!(render(folder.path()), ReportError::Empty { .. }));
    assert!(matches!(render(&folder.path().join("absent")), ReportError::Folder { .. }));
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(render(&file), ReportError::Folder { .. }));
}

#[test]
fn single_runs_are_shown_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("run-a"), folder.path().join("run-b"));
    run_folder(&a, 400, 1.5);
    run_folder(&b, 500, 1.3);
    for step in [50, 100, 150, 200, 250, 300] {
        picture(&b.join(format!("samples/step-{step}.png")), 2, 2);
    }
    let eval = sar_train::eval::EvalReport {
        settings: summary().settings,
        floors: summary().floors,
        points: vec![point(0.0, 0.0, 40.0), point(1.0, 0.0, 40.0)],
        held_out: None,
        warnings: vec!["One sampling seed: the spread is unknown.".into()],
    };
    std::fs::write(b.join("eval.json"), serde_json::to_string(&eval).unwrap()).unwrap();
    let out = folder.path().join("both.html");
    let report = report::write(&[a, b], &out).unwrap();
    assert_eq!(std::fs::read_to_string(out).unwrap(), report.html);
    assert!(report.html.contains("Runs: run-a, run-b"));
    assert!(report.html.contains("run-b, held-out"));
    assert!(report.html.contains("One sampling seed"));
    assert!(report.html.contains("floor: all training images 21.00"));
    // Seven pictures of run-b: the first and the last, and the one of run-a.
    assert_eq!(report.html.matches("<img ").count(), 3);
    assert!(report.html.contains("5 between them left out"));
    assert!(!report.html.contains("Verdict"));
}

#[test]
fn runs_of_one_name_are_told_apart_and_unlike_measurements_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["one", "two"].map(|around| folder.path().join(around).join("base"));
    let mut settings = summary().settings;
    for run in [&a, &b] {
        run_folder(run, 100, 1.5);
        let eval = sar_train::eval::EvalReport {
            settings: settings.clone(),
            floors: Vec::new(),
            points: vec![point(0.0, 0.0, 40.0)],
            held_out: None,
            warnings: Vec::new(),
        };
        std::fs::write(run.join("eval.json"), serde_json::to_string(&eval).unwrap()).unwrap();
        std::fs::create_dir_all(run.join("checkpoints/step-9")).unwrap();
        (settings.sampler.step, settings.sampler.weights) = (7, "a file".into());
    }
    let page =
        || report::write(&[a.clone(), b.clone()], &folder.path().join("x.html")).unwrap().html;
    let html = page();
    assert!(html.contains("Runs: one/base, two/base"));
    // Other weights are what is compared; another number of images is not.
    assert!(!html.contains("not measured alike") && html.contains("step 7"));
    // Both have a later checkpoint; whose weights are not known may be that.
    assert!(html.contains("two/base was measured at step 7 and has been trained to step 9"));
    assert!(!html.contains("one/base was measured"));
    let text = std::fs::read_to_string(b.join("eval.json")).unwrap();
    std::fs::write(b.join("eval.json"), text.replace("\"count\":1440", "\"count\":99")).unwrap();
    assert!(page().contains("not measured alike") && !page().contains("Bold: lowest"));
}

#[test]
fn runs_that_differ_in_their_seed_are_taken_together_and_filters_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, seed: u64, points: Vec<SweepPoint>| {
        let run = folder.path().join(name);
        std::fs::create_dir_all(&run).unwrap();
        let mode = name.split('-').next().unwrap();
        let config = format!("[train]\nmode = \"{mode}\"\nseed = {seed}\n");
        std::fs::write(run.join("config.toml"), config).unwrap();
        std::fs::write(run.join("log.jsonl"), "{\"step\":1,\"loss_tf\":1}\n").unwrap();
        let (settings, floors) = (summary().settings, summary().floors);
        let eval = sar_train::eval::EvalReport {
            settings,
            floors,
            points,
            held_out: None,
            warnings: vec![],
        };
        std::fs::write(run.join("eval.json"), serde_json::to_string(&eval).unwrap()).unwrap();
        run
    };
    let mut runs = vec![
        run("teacher-s0", 0, vec![point(0.0, 0.0, 40.0)]),
        run("teacher-s1", 1, vec![point(0.0, 0.0, 43.0)]),
        run("ssr-s0", 0, vec![point(0.0, 0.0, 39.0)]),
    ];
    let html = report::render(&runs).unwrap().html;
    // Of 40 and 43: 41.5, and 3/√2.
    for part in ["Over training seeds", "teacher (2 training seeds)", "41.50\u{a0}±\u{a0}2.12 / "]
    {
        assert!(html.contains(part), "no '{part}'");
    }
    assert!(!html.contains("ssr (1") && !html.contains("ssr (2"));
    assert!(!html.contains("Differences from"), "of a single other run");
    let all = [&runs[..], &[run("ssr-s1", 1, vec![point(0.0, 0.0, 42.5)])]].concat();
    let html = report::render(&all).unwrap().html;
    // −1 and −0.5, whose sample deviation is 0.354: 12.706·0.354/√2.
    for part in ["Differences from teacher", "−0.75\u{a0}±\u{a0}3.18", "minus that of teacher"] {
        assert!(html.contains(part), "no '{part}'");
    }
    // Others started from other weights.
    let origin = "{\"weights\":\"w\",\"step\":7,\"ema\":false,\"sha256\":\"0123456789abcdef\"}";
    std::fs::write(runs[1].join("started.json"), origin).unwrap();
    let html = report::render(&runs).unwrap().html;
    assert!(!html.contains("Over training seeds"));
    assert!(html.contains("teacher-s1 started from w, step 7 (SHA-256 0123456789ab…)."));

    let filtered = |top_p: f64, level: f64| SweepPoint {
        top_k: Some(0),
        top_p: Some(top_p),
        ..point(0.0, 0.0, level)
    };
    runs.push(run("swept-s0", 0, vec![filtered(0.0, 50.0), filtered(0.9, 30.0)]));
    let html = report::render(&runs).unwrap().html;
    for part in
        ["swept-s0, top-k 0, top-p 0.9<", "top-k and top-p as named", "<td class=\"best\">30.00"]
    {
        assert!(html.contains(part), "no '{part}'");
    }
}
