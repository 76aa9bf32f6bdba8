//! The program tells its users what went wrong: one line that names the thing, and an exit code.

use super::*;

/// Side of images of which forty are more than stay in memory, so that damage shows when they are needed.
const LARGE: u32 = 1600;

#[test]
fn an_image_that_turns_out_bad_costs_no_step() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_images(folder);
    image::GrayImage::new(LARGE, LARGE).save(folder.join("large.png")).unwrap();
    for (part, class, count) in
        [("train", "a", 20), ("train", "b", 20), ("val", "a", 1), ("val", "b", 1)]
    {
        let to = folder.join("images").join(part).join(class);
        fs::create_dir_all(&to).unwrap();
        for n in 0..count {
            fs::copy(folder.join("large.png"), to.join(format!("{n}.png"))).unwrap();
        }
    }
    succeeds(&["tokenizer", "train", "--config", "small.toml", "--out", "tok"], folder);
    let whole = fs::read(folder.join("large.png")).unwrap();
    for n in 0..8 {
        fs::write(folder.join(format!("images/train/b/{n}.png")), &whole[..whole.len() / 2])
            .unwrap();
    }
    let train = [&TRAIN[..], &["--set", "train.steps=8", "--set", "train.batch=1"]].concat();
    let said = fails(1, &[&train[..], &["--out", "base"]].concat(), folder);
    let expected = ["is saved, and --resume goes on", ".png: the image is truncated"];
    says(&said, &[&expected[..], &["--skip-bad-images"]].concat());
    let stopped: Vec<u64> =
        steps(&folder.join("base")).iter().map(|s| s[5..].parse().unwrap()).collect();
    let last = *stopped.iter().max().unwrap();
    assert!(said.contains(&format!("step {last} is saved")), "{said}");
    let said = succeeds(&["train", "--resume", "--skip-bad-images", "--out", "base"], folder);
    says(&said, &["bad images were left out while training", "images/train/b/"]);
    // As it goes without a stop.
    let said = succeeds(&[&train[..], &["--skip-bad-images", "--out", "other"]].concat(), folder);
    says(&said, &["bad images were left out"]);
    let weights =
        |run: &str| fs::read(folder.join(run).join("checkpoints/step-8/model.safetensors"));
    assert!(weights("base").unwrap() == weights("other").unwrap());
    // Without sample grids, which cost memory, there is none at the end either.
    assert_eq!(fs::read_dir(folder.join("base/samples")).unwrap().count(), 0);
    // The tokenizer's training likewise.
    let tokenizer =
        ["tokenizer", "train", "--config", "small.toml", "--set", "tokenizer_train.steps=8"];
    let tokenizer =
        [&tokenizer[..], &["--set", "tokenizer_train.batch=1", "--out", "tok2"]].concat();
    says(&fails(1, &tokenizer, folder), &["is saved, and --resume goes on", "images/train/b/"]);
    let resume = ["tokenizer", "train", "--resume", "--skip-bad-images", "--out", "tok2"];
    succeeds(&resume, folder);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    says(&fails(2, &["trian"], folder.path()), &["unrecognized subcommand", "trian"]);
    says(&fails(2, &["plan", "--dept", "3"], folder.path()), &["--dept", "--depth"]);
    for flag in ["--count", "--batch", "--top-k", "--threads", "--device", "--seed"] {
        let said = fails(2, &["sample", "x", "--out", "y", flag, "-1"], folder.path());
        says(&said, &["'-1' for", flag, "expected a whole number"]);
    }
    says(
        &fails(2, &["plan", "--schedule", "1_2_x"], folder.path()),
        &["--schedule", "entry 3 is neither a number nor HxW"],
    );
    says(
        &fails(2, &["plan", "--schedule", "1_4_2"], folder.path()),
        &["scale 3 (2) does not grow"],
    );
}

#[test]
fn configurations_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let all = prints(&["config"], folder);
    says(
        &all,
        &["[train]\n", "# Largest global gradient norm; 0 is off. Default 2.\n#clip = 2.0\n"],
    );
    // What was changed is read as it is printed.
    let changed =
        prints(&["config", "--set", "train.clip=3", "--set", "generator.depth=5"], folder);
    says(&changed, &["\nclip = 3.0\n", "\ndepth = 5\n"]);
    fs::write(folder.join("my.toml"), &changed).unwrap();
    assert_eq!(prints(&["config", "--config", "my.toml"], folder), changed);
    // What is named stays so, also where it is as it would be without.
    fs::write(folder.join("same.toml"), "[train]\nbatch = 64\n").unwrap();
    let same =
        prints(&["config", "train", "--config", "same.toml", "--set", "train.keep=3"], folder);
    says(&same, &["\nbatch = 64\n", "\nkeep = 3\n", "\n#accumulate = 1\n"]);
    let one = prints(&["config", "train.clip", "--config", "my.toml"], folder);
    assert!(one.ends_with("Default 2.\nclip = 3.0\n") && one.lines().count() == 4, "{one}");
    for (key, expected) in [
        ("lr", "`tokenizer_train.lr`, `train.lr`"),
        ("train.clipp", "`train.clipp`; did you mean `clip`"),
        ("train.LR", "`train.LR`; did you mean `lr`"),
        ("train.learning_rate", "did you mean `lr`"),
        ("train.epochs", "did you mean `steps`"),
        ("trian", "`trian`; did you mean `train`"),
        ("train.", "unknown key `train.`; known here: `mode`"),
        ("", "unknown key ``; known here: `data`"),
    ] {
        says(&fails(1, &["config", key], folder), &[expected]);
    }
    says(&fails(1, &["config", "--set", "train.clip=-1"], folder), &["train.clip is -1"]);
    for (set, expected) in [
        ("train.steps=1e3", Ok("\nsteps = 1000\n")),
        ("train.steps=2.0", Ok("\nsteps = 2\n")),
        ("train.lr=.5", Ok("\nlr = 0.5\n")),
        ("train.clip=1.", Ok("\nclip = 1.0\n")),
        ("data.flip=.5", Err("expected true or false")),
        ("train.steps=1.5", Err("expected a whole number")),
        ("train.steps=99999999999999999999", Err("too large")),
        ("train.seed=18446744073709551615", Err("too large")),
        ("train.lr=1e999", Err("too large")),
    ] {
        match expected {
            Ok(line) => says(&prints(&["config", "--set", set], folder), &[line]),
            Err(reason) => {
                says(&fails(1, &["config", "--set", set], folder), &[set, reason]);
            }
        }
    }
}

#[test]
fn configurations_name_key_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.toml");
    for (text, expected) in [
        ("[train]\nbatchsize = 3\n", &["run.toml, line 2", "`train.batchsize`", "`batch`"][..]),
        ("[train]\nsteps = 1.5\n", &["run.toml, line 2", "train.steps"]),
        ("[generator]\nschedule = \"2_4\"\n", &["line 2", "generator.schedule", "scale 1 is 2"]),
        ("[generator]\nheads = 3\n", &["generator.width is 256, expected a multiple of"]),
        ("[sar]\npreset = \"papr\"\n", &["line 2", "sar.preset", "`paper`"]),
        ("[train]\nsteps = \n", &["line 2"]),
    ] {
        fs::write(&file, text).unwrap();
        let said = fails(1, &["plan", "--config", "run.toml"], folder.path());
        says(&said, expected);
        assert!(said.starts_with("error: ") && said.lines().count() <= 3, "{said}");
    }
    let said = fails(1, &["plan", "--config", "absent.toml"], folder.path());
    says(&said, &["absent.toml", "because: No such file"]);
    let said = fails(1, &["plan", "--set", "train.btch=3"], folder.path());
    says(&said, &["--set train.btch=3", "did you mean `batch`"]);
    // Closer in letters is tokenizer_train.eval_every, which is not what was meant.
    for key in ["save_every", "log_every"] {
        let set = format!("tokenizer_train.{key}=1");
        let said = fails(1, &["plan", "--set", &set], folder.path());
        says(&said, &[&format!("did you mean `train.{key}`")]);
        fs::write(&file, format!("[tokenizer_train]\n{key} = 1\n")).unwrap();
        let said = fails(1, &["plan", "--config", "run.toml"], folder.path());
        says(&said, &["line 2", &format!("did you mean `train.{key}`")]);
    }
}

#[test]
fn plan_and_doctor_answer() {
    let folder = tempfile::tempdir().unwrap();
    let schedule = "1_2_3_4_5_6_8_10_13_16";
    let flags =
        ["plan", "--depth", "16", "--vocab", "8912", "--channels", "32", "--classes", "1000"];
    let text = prints(&[&flags[..], &["--schedule", schedule, "--json"]].concat(), folder.path());
    let plan: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(plan["parameters"], 315_561_936);
    assert_eq!(plan["tokens"], 680);
    says(
        &prints(&["plan"], folder.path()),
        &["parameters", "tokens", "FLOP", "activations", "sampling"],
    );
    assert!(plan.get("times").is_none());
    let found = prints(&["doctor"], folder.path());
    let parts = ["cores", "cuda driver", "nvrtc", "cublasLt", "nccl", "writable", "cpu: ready"];
    says(&found, &parts);
}

/// A plan with times runs a little of all that it is of.
#[test]
fn a_plan_says_how_long_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["plan", "--depth", "1", "--width", "32", "--heads", "1", "--batch", "2"];
    let one = ["--set", "sample.batch=1", "--set", "tokenizer_train.batch=1"];
    let steps = ["--set", "train.steps=3000", "--set", "train.accumulate=2", "--time"];
    // At rates by which noise would have the weights diverge.
    let rates = ["--set", "train.lr=1e6", "--set", "tokenizer_train.lr=0.9"];
    let flags = [&small[..], &one, &steps, &rates].concat();
    let text = prints(&[&flags[..], &["--json"]].concat(), folder.path());
    let plan: serde_json::Value = serde_json::from_str(&text).unwrap();
    let times = &plan["times"];
    let pace = |what: &str| times[what]["images_per_s"].as_f64().unwrap();
    assert_eq!(times["training"]["timed_images"], 4);
    let seconds = times["training_s"].as_f64().unwrap();
    assert!((seconds * pace("training") / 12_000.0 - 1.0).abs() < 1e-9, "{times}");
    let seconds = times["tokenizer_training_s"].as_f64().unwrap();
    assert!((seconds * pace("tokenizer_training") / 1500.0 - 1.0).abs() < 1e-9, "{times}");
    assert!(pace("sampling") > 0.0);
    // Other codes than the tokenizer's are trained on without it, and none of it is sampled.
    let other = ["--vocab", "64", "--set", "tokenizer.residual=0"];
    let text = prints(&[&flags[..], &other].concat(), folder.path());
    says(&text, &["time", "for 3000 steps of", "before it", "for 1500 steps", "images/s"]);
    assert!(!text.contains("  sampling"), "{text}");
    let large = ["plan", "--depth", "256", "--width", "32768", "--heads", "512", "--time"];
    let said = fails(1, &large, folder.path());
    says(&said, &["takes", "for its weights alone"]);
    // Counting takes no such memory, on either backend.
    for backend in ["cpu", "cuda"] {
        let said = prints(&[&["--backend", backend], &large[..7]].concat(), folder.path());
        says(&said, &["4 950 118 466 048", "TiB", "sampling"]);
    }
}

#[test]
fn a_backend_that_is_not_to_be_had_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let small = ["bench", "step", "--depth", "1", "--width", "16", "--heads", "1", "--vocab", "8"];
    let small = [&small[..], &["--schedule", "1_2", "--steps", "1", "--warmup", "0"]].concat();
    let line = prints(&[&small[..], &["--backend", "cpu", "--dtype", "f32"]].concat(), folder);
    says(&line, &["\"dtype\":\"f32\"", "\"device\":\"cpu\""]);
    let said = fails(1, &[&small[..], &["--dtype", "bf16"]].concat(), folder);
    says(&said, &["--dtype bf16 needs --backend cuda", "cpu backend computes in f32"]);
    says(&fails(1, &["--device", "1", "demo"], folder), &["--device 1 needs --backend cuda"]);
    says(&fails(2, &["sample", "x", "--out", "y", "--backend", "tpu"], folder), &["cpu", "cuda"]);
    // A GPU that no machine has: without a driver that is what is missing.
    for command in [&small[..], &["demo"], &["check"], &["tokenizer", "eval", "absent"]] {
        let said = fails(1, &[command, &["--backend", "cuda", "--device", "99"]].concat(), folder);
        assert!(said.contains("driver") || said.contains("number 99"), "{said}");
    }
    let said = fails(1, &[&small[..], &["--profile"]].concat(), folder);
    says(&said, &["--profile needs --backend cuda"]);
    says(&fails(1, &["kernels", "build", "--arch", "a100"], folder), &["`a100`", "sm_80"]);
    assert!(!folder.join("sar-demo").exists());
}

#[test]
fn a_want_of_memory_says_what_to_lower() {
    let folder = tempfile::tempdir().unwrap();
    // More than any address space.
    let said = fails(1, &["bench", "step", "--batch", "16000000"], folder.path());
    says(&said, &["train.batch", "train.accumulate", "because: training: out of memory", "bytes"]);
    // A tokenizer is trained before anything else, and is told before it begins.
    let large = ["--set", "tokenizer_train.batch=16000000"];
    let train = ["tokenizer", "train", "--data", "builtin:glyphs10", "--out", "tok"];
    let said = fails(1, &[&train[..], &large].concat(), folder.path());
    says(&said, &["training takes about", "TiB", "tokenizer_train.batch", "data.image_side"]);
    assert!(!folder.path().join("tok").exists());
    let planned = prints(&[&["plan"][..], &large].concat(), folder.path());
    says(&planned, &["to train the tokenizer, batch 16000000 of 32 px"]);
    prints(&[&["--backend", "cuda", "plan"][..], &large].concat(), folder.path());
    // Images that the tokenizer does not divide have a plan on either backend, and no tokenizer that is trained on them.
    for backend in ["cpu", "cuda"] {
        let odd = ["--backend", backend, "plan", "--set", "data.image_side=34"];
        assert!(!prints(&odd, folder.path()).contains("to train the tokenizer"));
    }
}

#[test]
fn data_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let check = |source: &str| fails(1, &["data", "check", source], folder.path());
    says(&check("absent"), &["absent"]);
    fs::create_dir(folder.path().join("empty")).unwrap();
    says(&check("empty"), &["empty"]);
    for (class, name, content) in [
        ("cats", "one.png", &b""[..]),
        ("cats", "two.png", b"not an image"),
        ("dogs", "three.jpg", b"\xff\xd8\xff\xe0 cut off"),
    ] {
        let class = folder.path().join("images").join(class);
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join(name), content).unwrap();
    }
    let output = sar(&["data", "check", "images"], folder.path());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    says(&text, &["one.png", "two.png", "three.jpg"]);
    says(&String::from_utf8(output.stderr).unwrap(), &["3 of 3 images cannot be used"]);
    says(&prints(&["data", "check", "builtin:glyphs10"], folder.path()), &["10"]);
    two_classes(&folder.path().join("some"), 3);
    fs::create_dir(folder.path().join("some/images/c")).unwrap();
    let some = ["data", "check", "some/images"];
    // One look lists everything: the folder without images, and files that are none.
    fs::write(folder.path().join("some/images/b/none.png"), "none").unwrap();
    let output = sar(&some, folder.path());
    let (text, said) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
    says(&text.unwrap(), &["some/images/c/ has no images", "1 bad file", "b/none.png"]);
    says(&said.unwrap(), &["1 of 7 images cannot be used, and a class folder has no images"]);
    fs::remove_file(folder.path().join("some/images/b/none.png")).unwrap();
    says(&fails(1, &some, folder.path()), &["a class folder has no images; remove them"]);
    let skipping = prints(&[&some[..], &["--skip-bad-images"]].concat(), folder.path());
    says(&skipping, &["warning: some/images/c/ has no images", "0 bad files"]);
    fs::remove_dir(folder.path().join("some/images/c")).unwrap();
    let list = folder.path().join("some/images/list.txt");
    fs::write(&list, "a/0.png 0\na/1.png 1\nb/0.png 4\n").unwrap();
    let listed = ["data", "check", "some/images/list.txt"];
    says(&prints(&listed, folder.path()), &["warning: 2 of 5 classes have no images"]);
    fs::write(&list, "images/a/0.png 0\nimages/b/1.png 1\n").unwrap();
    let said = fails(1, &listed, folder.path());
    says(&said, &["none of the 2 images is there", "relative to its folder, some/images"]);
    fs::remove_file(&list).unwrap();
    let next = "next: sar tokenizer train --data some/images --out runs/tokenizer\n";
    says(&succeeds(&some, folder.path()), &[next]);
    let quiet = succeeds(&[&some[..], &["-q"]].concat(), folder.path());
    assert!(!quiet.contains("next:"), "{quiet}");
}

#[test]
fn runs_are_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("full")).unwrap();
    fs::write(folder.join("full/notes.txt"), "mine").unwrap();
    let said = fails(1, &["train", "--resume", "--out", "full"], folder);
    says(&said, &["full is not a run folder", "--resume"]);
    let none = fails(2, &["train", "--out", "new"], folder);
    says(&none, &["--tokenizer", "`sar tokenizer train --data … --out runs/tokenizer`"]);
    let data = ["--data", "builtin:glyphs10"];
    let train = ["train", "--out", "new", "--tokenizer", "absent"];
    let said = fails(1, &[&train[..], &data].concat(), folder);
    let makes = "`sar tokenizer train --data builtin:glyphs10 --out absent`";
    says(&said, &["absent does not exist", makes]);
    let refine = ["refine", "--out", "new", "--data", "builtin:glyphs10"];
    says(&fails(1, &refine, folder), &["--init-from"]);
    says(&fails(1, &["sample", "absent", "--out", "new"], folder), &["absent does not exist"]);
    assert!(!folder.join("new").exists(), "a refused run leaves no folder");

    let tokenizer = ["tokenizer", "train", "--out", "full", "--data", "builtin:glyphs10"];
    says(
        &fails(1, &tokenizer, folder),
        &["full is not empty (notes.txt", "remove it, or choose another --out"],
    );
    assert_eq!(fs::read_to_string(folder.join("full/notes.txt")).unwrap(), "mine");
}

#[test]
fn generators_are_not_taken_for_tokenizers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/pth/flexvar_bare.pth");
    prints(&["convert", golden, "generator.safetensors"], folder);
    let train = ["train", "--out", "new", "--data", "builtin:glyphs10"];
    let with = |tokenizer| [&train[..], &["--tokenizer", tokenizer]].concat();
    let said = fails(1, &with("generator.safetensors"), folder);
    says(&said, &["generator.safetensors holds a generator, expected a tokenizer"]);
    let bytes = fs::read(folder.join("generator.safetensors")).unwrap();
    fs::write(folder.join("cut.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    says(&fails(1, &with("cut.safetensors"), folder), &["cut.safetensors is truncated"]);
    let said = fails(1, &with(golden), folder);
    says(&said, &["flexvar_bare.pth is not a safetensors file", "sar convert"]);
}
