//! What is made of a run's weights: samples, numbers, files for others.

use super::*;

/// `base` and `tok` of [`trained`] as files of their own, `gen.safetensors` and `tok.safetensors`.
fn files(folder: &Path) {
    for (run, to) in [("base", "gen.safetensors"), ("tok", "tok.safetensors")] {
        let step = steps(&folder.join(run)).pop().unwrap();
        let from = folder.join(run).join("checkpoints").join(step).join("model.safetensors");
        fs::copy(from, folder.join(to)).unwrap();
    }
}

const FEW: [&str; 6] = ["--samples", "10", "--guidance", "0", "--seeds", "1"];

#[test]
fn weights_of_a_file_are_measured_at_the_size_that_they_draw() {
    let folder = trained();
    let folder = folder.path();
    files(folder);
    let eval =
        ["eval", "gen.safetensors", "--tokenizer", "tok.safetensors", "--data", "builtin:glyphs10"];
    let json = prints(&[&eval[..], &FEW, &["--json", "-"]].concat(), folder);
    let numbers: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(numbers["settings"]["side"], 32);
    assert_eq!(numbers["settings"]["extractor_steps"], 500);
    assert_eq!(numbers["settings"]["extractor_seed"], 0);
    assert!(!folder.join("-").exists());
    // As training measured them, up to the order of sums.
    let log = fs::read_to_string(folder.join("base/log.jsonl")).unwrap();
    let logged = log.lines().rfind(|line| line.contains("heldout_loss")).unwrap();
    let logged: serde_json::Value = serde_json::from_str(logged).unwrap();
    let loss = |of: &serde_json::Value| of["heldout_loss"].as_f64().unwrap();
    assert!((loss(&numbers) - loss(&logged)).abs() < 1e-6, "{numbers} {logged}");
    assert_eq!(numbers["heldout_scale_acc"].as_array().unwrap().len(), 4);
    // A smaller last grid draws smaller images, and is compared with smaller ones.
    let small = ["--schedule", "1_2_4", "--top-k", "1", "--ramp", "constant", "--json", "s.json"];
    succeeds(&[&eval[..], &FEW, &small].concat(), folder);
    let numbers = fs::read_to_string(folder.join("s.json")).unwrap();
    let numbers: serde_json::Value = serde_json::from_str(&numbers).unwrap();
    let settings = &numbers["settings"];
    assert_eq!((&settings["side"], &settings["sampler"]["top_k"]), (&16.into(), &1.into()));
    assert_eq!(settings["sampler"]["schedule"], "1_2_4");
    let program = settings["sampler"]["program"].as_str().unwrap();
    assert!(program.starts_with("sar ") && program.ends_with(", cpu f32"), "{program}");
    assert!(settings["sampler"]["tokenizer"].as_str().unwrap().ends_with("tok.safetensors"));

    let quality = |side: &str| {
        let flags = ["--data", "builtin:glyphs10", "--image-side", side];
        prints(&[&["tokenizer", "eval", "tok.safetensors"][..], &flags].concat(), folder)
    };
    says(&quality("16"), &["images of 16 px", "1x1", "4x4", "codes used"]);
    assert!(!quality("16").contains("8x8") && quality("32").contains("8x8"));
}

#[test]
fn weights_are_used_without_their_moments() {
    let folder = trained();
    let folder = folder.path();
    for step in steps(&folder.join("base")) {
        let of = folder.join("base/checkpoints").join(step).join("optimizer.safetensors");
        fs::remove_file(of).unwrap();
    }
    succeeds(&["sample", "base", "--count", "1", "--out", "s"], folder);
    let newest = steps(&folder.join("base")).pop().unwrap();
    let step = format!("base/checkpoints/{newest}");
    succeeds(&["sample", &step, "--count", "1", "--out", "t"], folder);
    let said = fails(1, &["train", "--resume", "--out", "base"], folder);
    says(&said, &["all damaged; the newest: cannot read", "optimizer.safetensors"]);
    assert!(!said.contains("trying the checkpoint before it"), "{said}");
    // Of a damaged newest checkpoint no older weights take the place.
    fs::write(folder.join(&step).join("model.safetensors"), b"").unwrap();
    for command in [&["sample", "base", "--out", "u"][..], &["eval", "base"]] {
        let said = fails(1, command, folder);
        says(&said, &["is damaged", "name base/checkpoints/step-0"]);
    }
}

#[test]
fn samples_are_an_array_for_published_evaluators() {
    let folder = trained();
    let folder = folder.path();
    let sample = ["sample", "base", "--count", "11", "--out", "s", "--npz", "s.npz"];
    says(&succeeds(&sample, folder), &["11 images are not the same number of each of 10 classes"]);
    let mut archive = zip::ZipArchive::new(fs::File::open(folder.join("s.npz")).unwrap()).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut archive.by_name("arr_0.npy").unwrap(), &mut bytes).unwrap();
    let pixels = &bytes[bytes.len() - 11 * 32 * 32 * 3..];
    for (k, pixels) in pixels.chunks(32 * 32 * 3).enumerate() {
        let image = image::open(folder.join(format!("s/{k:06}.png"))).unwrap().to_rgb8();
        assert!(image.as_raw() == pixels, "image {k}");
    }
    let again = ["sample", "base", "--count", "1", "--out", "t", "--npz", "s.npz"];
    says(&fails(1, &again, folder), &["s.npz exists", "--force"]);
    let other = ["sample", "base", "--out", "t", "--npz", "small.toml", "--force"];
    says(&fails(1, &other, folder), &["small.toml: name the file .npz"]);
    assert!(!folder.join("t").exists());
}

/// By one word, what a published model's results were sampled with; flags beside it count.
#[test]
fn samples_are_drawn_as_a_published_models() {
    let folder = trained();
    let folder = folder.path();
    let settings = |flags: &[&str]| -> serde_json::Value {
        let sample = ["sample", "base", "--count", "1", "--out", "s", "--force"];
        succeeds(&[&sample[..], flags].concat(), folder);
        let record: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("s/samples.json")).unwrap()).unwrap();
        record["settings"].clone()
    };
    for (model, guidance, ramp, top_p) in [
        ("var", 1.5, "var", 0.96),
        ("flexvar", 2.5, "flexvar", 0.95),
        ("sar-d16", 2.2, "flexvar", 0.95),
        ("sar-d20", 2.6, "flexvar", 0.95),
        ("sar-d24", 3.3, "flexvar", 0.95),
    ] {
        let found = settings(&["--published", model]);
        let expected = serde_json::json!([guidance, ramp, 900, top_p]);
        let found = ["guidance", "ramp", "top_k", "top_p"].map(|key| found[key].clone());
        assert_eq!(serde_json::Value::from(found.to_vec()), expected, "{model}");
    }
    let own =
        settings(&["--published", "var", "--guidance", "2", "--top-k", "5", "--ramp", "constant"]);
    assert_eq!((&own["guidance"], &own["top_k"]), (&2.0.into(), &5.into()));
    assert_eq!((&own["ramp"], &own["top_p"]), (&"constant".into(), &0.96.into()));
    let eval =
        ["eval", "base", "--published", "sar-d16", "--samples", "10", "--seeds", "1", "--json"];
    let numbers = prints(&[&eval[..], &["-"]].concat(), folder);
    let numbers: serde_json::Value = serde_json::from_str(&numbers).unwrap();
    assert_eq!(numbers["points"].as_array().unwrap().len(), 1);
    assert_eq!(numbers["points"][0]["guidance"], 2.2);
    assert_eq!(numbers["settings"]["sampler"]["published_greedy"], true);
    // After two steps the classifier has learnt nothing.
    assert!(numbers["warnings"].to_string().contains("guessing 10.0 %"), "{}", numbers["warnings"]);
    says(&fails(2, &["sample", "base", "--out", "t", "--published", "sar"], folder), &["sar-d16"]);
}

/// Of a sweep that is measured in parts, one after the other and several at once, nothing is lost.
#[test]
fn a_sweep_may_be_measured_in_parts() {
    let folder = trained();
    let folder = folder.path();
    let measure = |guidance: &str| {
        let eval = ["eval", "base", "--samples", "10", "--seeds", "1", "--guidance", guidance];
        Command::new(env!("CARGO_BIN_EXE_sar")).args(eval).current_dir(folder).spawn().unwrap()
    };
    let guidances = || {
        let text = fs::read(folder.join("base/eval.json")).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let points = report["points"].as_array().unwrap().clone();
        points.iter().map(|p| p["guidance"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    assert!(measure("1").wait().unwrap().success());
    let several: Vec<_> = ["0", "0.5", "2"].map(measure).into();
    for mut one in several {
        assert!(one.wait().unwrap().success());
    }
    assert_eq!(guidances(), [0.0, 0.5, 1.0, 2.0]);
    assert!(!folder.join("base/eval-1.json").exists());
    // What is measured of other weights is beside the file until it is whole, and nothing of it is lost.
    let other = folder.join("base/eval-partial.json");
    let text = fs::read_to_string(folder.join("base/eval.json")).unwrap();
    fs::write(folder.join("base/eval.json"), text.replace("\"step\": 2", "\"step\": 1")).unwrap();
    fs::write(&other, text.replace("\"guidance\": 2.0", "\"guidance\": 3.0")).unwrap();
    assert!(measure("0.25").wait().unwrap().success());
    assert_eq!(guidances(), [0.0, 0.25, 0.5, 1.0, 3.0]);
    assert!(!other.exists() && folder.join("base/eval-1.json").exists());
    fs::remove_file(folder.join("base/eval-1.json")).unwrap();
    // Measured in another way they stay apart.
    let said =
        succeeds(&["eval", "base", "--samples", "20", "--seeds", "1", "--guidance", "1"], folder);
    says(&said, &["kept as", "eval-1.json"]);
    let said = succeeds(&["report", "base"], folder);
    says(&said, &["eval.json is of the last evaluation", "not shown: eval-1.json"]);
    assert_eq!(guidances(), [1.0]);
}

/// With --resume a sweep measures only what it lacks; the run is known wherever it lies.
#[cfg(unix)]
#[test]
fn a_sweep_goes_on_wherever_its_run_has_been_moved_to() {
    let folder = trained();
    let folder = folder.path();
    let eval = |run: &str, more: &[&str]| {
        let few = ["--samples", "10", "--seeds", "1", "--guidance"];
        succeeds(&[&["eval", run][..], &few, more].concat(), folder)
    };
    let points = |run: &str| {
        let text = fs::read(folder.join(run).join("eval.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["points"].clone()
    };
    eval("base", &["0,1"]);
    let first = points("base");
    fs::rename(folder.join("base"), folder.join("moved")).unwrap();
    assert!(!eval("moved", &["0.5"]).contains("kept as"));
    // A number of its own would be measured again without --resume.
    let file = folder.join("moved/eval.json");
    let text = fs::read_to_string(&file).unwrap();
    let recall = points("moved")[0]["recall"]["mean"].to_string();
    let marked = text.replacen(&format!("\"mean\": {recall}"), "\"mean\": 0.123", 1);
    assert_ne!(text, marked);
    fs::write(&file, marked).unwrap();
    eval("moved", &["0,0.5,1,1.5", "--resume"]);
    let all = points("moved");
    assert_eq!((all.as_array().unwrap().len(), &all[2]), (4, &first[1]));
    assert!(fs::read_to_string(&file).unwrap().contains("0.123"), "it was measured again");
    std::os::unix::fs::symlink("moved", folder.join("link")).unwrap();
    eval("link", &["0"]);
    assert_eq!(points("moved").as_array().unwrap().len(), 4);
    assert!(!fs::read_to_string(&file).unwrap().contains("0.123"), "it was not measured again");
    assert!(!folder.join("moved/eval-1.json").exists());
}

/// Numbers that cannot be kept are printed all the same.
#[cfg(unix)]
#[test]
fn a_sweep_that_cannot_be_kept_is_printed() {
    let folder = trained();
    let folder = folder.path();
    let command = "ulimit -f 1; exec \"$0\" \"$@\"";
    let few = ["--samples", "10", "--seeds", "1", "--guidance", "0,1", "--json", "e.json"];
    let output = Command::new("sh")
        .args(["-c", command, env!("CARGO_BIN_EXE_sar"), "eval", "base"])
        .args(few)
        .current_dir(folder)
        .output()
        .unwrap();
    let (said, printed) =
        (String::from_utf8(output.stderr).unwrap(), String::from_utf8(output.stdout).unwrap());
    assert_eq!(output.status.code(), Some(1), "{said}");
    says(&said, &["e.json cannot be written", "measuring goes on"]);
    assert_eq!(said.matches("measuring goes on").count(), 1, "told once: {said}");
    says(&printed, &["Fréchet"]);
    assert!(!folder.join("e.json").exists());
}

#[test]
fn a_picture_that_a_killed_run_had_not_painted_is_painted() {
    let folder = trained();
    let folder = folder.path();
    let train = ["--set", "train.sample_every=2", "--out", "pictures"];
    succeeds(&[&TRAIN[..], &train].concat(), folder);
    let last = folder.join("pictures/samples/step-000002.png");
    let painted = fs::read(&last).unwrap();
    // What a kill after the checkpoint leaves, at the last step and before another.
    for steps in ["train.steps=2", "train.steps=3"] {
        fs::remove_file(&last).unwrap();
        succeeds(&["train", "--resume", "--out", "pictures", "--set", steps], folder);
        assert!(fs::read(&last).unwrap() == painted, "{steps}: another picture");
        fs::remove_dir_all(folder.join("pictures/checkpoints/step-3")).ok();
    }
}

#[test]
fn a_result_does_not_replace_a_file_of_another_kind() {
    let folder = trained();
    let folder = folder.path();
    let config = "base/config.toml";
    let before = fs::read(folder.join(config)).unwrap();
    for (command, expected) in [
        (&["report", "base", "--out", config][..], "name the file .html"),
        (&["eval", "base", "--json", config], "name the file .json"),
        (&["data", "check", "builtin:glyphs10", "--preview", config], "name the file .png"),
        (&["tokenizer", "eval", "tok", "--grid", config], "name the file .png"),
    ] {
        says(&fails(1, command, folder), &[config, expected]);
    }
    assert_eq!(fs::read(folder.join(config)).unwrap(), before);
}

/// A preview on one of the images that it is of, numbers on a state that a run goes on from.
#[test]
fn a_result_does_not_replace_what_is_no_result() {
    let folder = trained();
    let folder = folder.path();
    let image = "mine.png";
    for (name, text) in [(image, "image"), ("mine.npz", "array"), ("mine.html", "page")] {
        fs::write(folder.join(name), text).unwrap();
    }
    fs::copy(folder.join("base/classes.json"), folder.join("mine.json")).unwrap();
    let preview = ["data", "check", "builtin:glyphs10", "--preview", image];
    let grid = ["tokenizer", "eval", "tok", "--grid", image];
    for (command, expected) in [
        (&preview[..], "replace it with --force"),
        (&grid, "replace it with --force"),
        (&["tokenizer", "eval", "tok", "--npz", "mine.npz"], "replace it with --force"),
        (&["eval", "base", "--json", "mine.json"], "is no evaluation of this program"),
        (&["report", "base", "--out", "mine.html"], "is no report of this program"),
    ] {
        says(&fails(1, command, folder), &["mine.", "exists", expected]);
    }
    let notes = folder.join("base/report.html");
    fs::write(&notes, "my notes").unwrap();
    says(&fails(1, &["report", "base"], folder), &["report.html exists", "--out"]);
    assert_eq!(fs::read(&notes).unwrap(), b"my notes");
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    assert_eq!(
        (&read(image)[..], &read("mine.npz")[..], &read("mine.html")[..]),
        (&b"image"[..], &b"array"[..], &b"page"[..])
    );
    assert_eq!(read("mine.json"), read("base/classes.json"));
    for command in [&preview[..], &grid] {
        prints(&[command, &["--force"]].concat(), folder);
        assert_ne!(read(image), b"image");
        fs::write(folder.join(image), "image").unwrap();
    }
    // A report takes the place of an earlier one.
    fs::remove_file(folder.join("mine.html")).unwrap();
    for _ in 0..2 {
        succeeds(&["report", "base", "--out", "mine.html"], folder);
    }
}

#[test]
fn convert_says_what_it_takes_for_granted() {
    let folder = trained();
    let folder = folder.path();
    files(folder);
    // Without this program's header, as another library would have saved them.
    let bytes = fs::read(folder.join("gen.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let bare = safetensors::serialize(tensors.tensors(), None).unwrap();
    fs::write(folder.join("bare.safetensors"), bare).unwrap();
    let said = succeeds(&["convert", "bare.safetensors", "a.safetensors"], folder);
    says(&said, &["do not say which grids", "1_2_3_4_5_6_8_10_13_16 is taken", "--schedule"]);
    let own = ["convert", "bare.safetensors", "b.safetensors", "--schedule", "1_2_4_8"];
    let output = sar(&own, folder);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    says(&String::from_utf8(output.stdout).unwrap(), &["10 classes, schedule 1_2_4_8"]);
    let sample = ["sample", "b.safetensors", "--tokenizer", "tok", "--count", "1", "--out", "s"];
    assert!(!succeeds(&sample, folder).contains("was trained on"));
    // A published file has a mask, which tells how many tokens it is for.
    let published = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/pth/flexvar_bare.pth");
    let said = succeeds(&["convert", published, "d.safetensors"], folder);
    says(&said, &["mask is of 30 tokens", "has 680", "--schedule"]);
    let own = ["convert", published, "e.safetensors", "--schedule", "1_2_3_4"];
    assert!(sar(&own, folder).stderr.is_empty());
    let tokenizer = ["convert", "tok.safetensors", "c.safetensors", "--schedule", "1_2"];
    says(&fails(1, &tokenizer, folder), &["--schedule is for a generator"]);
    // Of a tokenizer nothing tells the groups of its norms.
    let bytes = fs::read(folder.join("tok.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let bare = safetensors::serialize(tensors.tensors(), None).unwrap();
    fs::write(folder.join("bare-tok.safetensors"), bare).unwrap();
    let convert = ["convert", "bare-tok.safetensors", "f.safetensors"];
    says(&fails(1, &convert, folder), &["without --groups", "32 groups do not divide"]);
    succeeds(&[&convert[..], &["--groups", "4"]].concat(), folder);
    let samples = |tokenizer: &str, out: &str| {
        let sample = ["sample", "base", "--count", "1", "--tokenizer", tokenizer, "--out", out];
        succeeds(&sample, folder);
        fs::read(folder.join(out).join("000000.png")).unwrap()
    };
    assert_eq!(samples("f.safetensors", "by-f"), samples("tok", "by-tok"));
    let generator = ["convert", "bare.safetensors", "g.safetensors", "--groups", "4"];
    says(&fails(1, &generator, folder), &["--groups is of a tokenizer's norms"]);
}

#[test]
fn a_run_that_diverged_is_no_success() {
    let folder = trained();
    let folder = folder.path();
    let wild = ["--set", "train.lr=1e30", "--set", "train.steps=2", "--set", "train.eval_every=1"];
    let said = fails(1, &[&TRAIN[..], &["--out", "wild"], &wild].concat(), folder);
    says(&said, &["held-out images is not finite at step 1", "train.lr"]);
    assert_eq!(steps(&folder.join("wild")), ["step-0"], "the step is not saved");
}

#[test]
fn another_tokenizer_than_the_generators_is_told() {
    let folder = trained();
    let folder = folder.path();
    let other = ["tokenizer", "train", "--config", "small.toml", "--seed", "5", "--out", "other"];
    succeeds(&other, folder);
    let sample = ["sample", "base", "--count", "1", "--out", "s", "--tokenizer"];
    let said = succeeds(&[&sample[..], &["other", "--force"]].concat(), folder);
    says(&said, &["warning: other is not the tokenizer that the generator was trained with"]);
    assert!(!succeeds(&[&sample[..], &["tok", "--force"]].concat(), folder).contains("warning"));
    let greedy =
        ["refine", "--init-from", "base", "--out", "new", "--decode", "argmax", "--top-k", "5"];
    says(&fails(1, &greedy, folder), &["sar.decode is argmax, which takes none"]);
    let set = ["--set", "sar.decode=argmax", "--set", "sar.top_p=0.5"];
    let greedy = [&["refine", "--init-from", "base", "--out", "new"][..], &set].concat();
    says(&fails(1, &greedy, folder), &["sar.decode is argmax, which takes none"]);
    let rates = ["--set", "train.base_lr=1e-2", "--set", "train.lr=1e-3"];
    let both = [&TRAIN[..], &["--out", "new"], &rates].concat();
    says(&fails(1, &both, folder), &["train.base_lr would change nothing beside train.lr"]);
}

#[test]
fn numbers_of_another_sampler_are_not_the_runs() {
    let folder = trained();
    let folder = folder.path();
    succeeds(&[&["eval", "base"][..], &FEW].concat(), folder);
    let own = fs::read(folder.join("base/eval.json")).unwrap();
    let said = succeeds(&[&["eval", "base", "--top-k", "1"][..], &FEW].concat(), folder);
    says(&said, &["the numbers are printed and not kept; --json FILE does that"]);
    assert_eq!(fs::read(folder.join("base/eval.json")).unwrap(), own);
    // Several filters are swept, each at every guidance; a point is that of its filter alone.
    let points = |name: &str, flags: &[&str]| {
        let eval =
            [&["eval", "base", "--json", name][..], flags, &["--samples", "10", "--seeds", "1"]]
                .concat();
        let said = prints(&eval, folder);
        let text = fs::read(folder.join(name)).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&text).unwrap();
        // Prose is broken where a line ends.
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        (report["points"].as_array().unwrap().clone(), said)
    };
    let swept = ["--top-k", "0,1", "--top-p", "0,0.5", "--guidance", "1,0"];
    let (all, said) = points("all.json", &swept);
    assert_eq!(all.len(), 8);
    let parts =
        ["guidance 1, top-k 0, top-p 0.5", "lowest FD: guidance", "top-k and top-p as above"];
    says(&said, &parts);
    let (alone, said) = points("one.json", &["--top-k", "0", "--top-p", "0.5", "--guidance", "1"]);
    says(&said, &["top-k 0, top-p 0.5"]);
    assert_eq!(all[3]["frechet"], alone[0]["frechet"]);
    assert_eq!((&all[3]["top_p"], &alone[0]["top_p"]), (&0.5.into(), &serde_json::Value::Null));
    assert!(all[3]["frechet"] != all[1]["frechet"]);
    let wrong = ["eval", "base", "--top-p", "0.5,1.5"];
    says(&fails(1, &[&wrong[..], &FEW].concat(), folder), &["sample.top_p"]);
}

#[test]
fn a_tokenizer_of_another_size_is_told() {
    let folder = trained();
    let folder = folder.path();
    let small = ["--set", "data.image_side=16", "--set", "generator.schedule=1_2_4"];
    let said = succeeds(&[&TRAIN[..], &["--out", "half"], &small].concat(), folder);
    says(&said, &["trained on images of 32 px, and here they are 16 px"]);
}
