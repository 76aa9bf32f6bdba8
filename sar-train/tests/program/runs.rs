//! What the program makes of its flags: what is asked for is done, or refused before anything is made.

use super::*;
use std::process::Stdio;

/// A step at a rate of 1e-9, and the rounding of weights to f32.
const A_SMALL_STEP: f32 = 1e-6;

#[test]
fn a_run_that_cannot_start_leaves_no_folder() {
    let folder = trained();
    let folder = folder.path();
    for (asked, expected) in [
        (&["--mode", "hybrid:9"][..], &["train.mode hybrid:9 on 1_2_4_8", "1 to 4"][..]),
        (&["--set", "generator.schedule=1_2_16"], &["1_2_16 ends in a grid of 16", "8×8"]),
        (&["--set", "data.image_side=30"], &["30 px", "factor of 4"]),
        (&["--set", "generator.vocab=99"], &["generator.vocab is 99, but the tokenizer has 16"]),
        (&["--set", "generator.classes=3"], &["generator.classes is 3, but the data have 10"]),
    ] {
        let said = fails(1, &[&TRAIN[..], &["--out", "new"], asked].concat(), folder);
        says(&said, expected);
        assert!(!folder.join("new").exists(), "{asked:?} left a folder");
    }
    let tokenizer = ["tokenizer", "train", "--config", "small.toml", "--out", "new"];
    let said = fails(1, &[&tokenizer[..], &["--set", "data.image_side=33"]].concat(), folder);
    says(&said, &["33 px", "factor of 4", "data.image_side"]);
    assert!(!folder.join("new").exists());
    says(&fails(1, &["tokenizer", "train", "--out", "new"], folder), &["no data given", "--data"]);
    says(&fails(1, &["bench", "step", "--steps", "0"], folder), &["--steps is 0"]);
    fs::create_dir(folder.join("sar-demo")).unwrap();
    fs::write(folder.join("sar-demo/notes.txt"), "mine").unwrap();
    let said = fails(1, &["demo"], folder);
    says(
        &said,
        &["sar-demo is not empty (notes.txt is in it); remove it, or choose another --out"],
    );
}

#[test]
fn weights_fix_the_shape_of_a_run_and_nothing_else() {
    let folder = trained();
    let folder = folder.path();
    let refine = ["refine", "--init-from", "base", "--out", "new"];
    let with = |more: &[&str]| fails(1, &[&refine[..], more].concat(), folder);
    let said = with(&["--set", "generator.depth=5"]);
    says(&said, &["generator.depth is 5, but the weights of --init-from have 1"]);
    two_classes(folder, 3);
    // Labels at the end of a table that is too small would become the unconditional class.
    says(&with(&["--data", "images"]), &["the data have 2 classes, the generator 10"]);
    assert!(!folder.join("new").exists());

    let switches = ["--preset", "paper", "--set", "sar.sigma=0.25", "--top-k", "3", "--seed", "7"];
    let schedule = ["--set", "generator.schedule=1_2_3_8", "--set", "train.steps=1"];
    succeeds(&[&refine[..], &switches, &schedule].concat(), folder);
    let written = fs::read_to_string(folder.join("new/config.toml")).unwrap();
    let expected = ["extent = \"all\"", "sigma = 0.25", "top_k = 3", "schedule = \"1_2_3_8\""];
    says(&written, &expected);
    assert_eq!(
        written.matches("seed = 7").count(),
        1,
        "the tokenizer was trained with another: {written}"
    );

    // A preset is all switches at once, also those that a file names, and says so.
    fs::write(folder.join("sar.toml"), "[sar]\nsigma = 0.7\ntop_k = 900\n[train]\nsteps = 1\n")
        .unwrap();
    let file = ["--config", "sar.toml", "--preset", "paper"];
    let preset = ["refine", "--init-from", "base", "--out", "other"];
    says(&succeeds(&[&preset[..], &file].concat(), folder), &["also sar.sigma of the file"]);
    let preset = ["refine", "--init-from", "base", "--out", "third", "--set", "sar.sigma=0.5"];
    let said = succeeds(&[&preset[..], &file].concat(), folder);
    assert!(!said.contains("of the file"), "{said}");

    let said = fails(2, &["refine", "--resume", "--out", "new", "--sigma", "2"], folder);
    says(&said, &["--resume cannot be used with --sigma", "`sar refine --resume --out new`"]);
    let all = ["--resume", "--data", "x y", "--config", "sar.toml", "--init-from", "base"];
    let said = fails(2, &[&["train", "--out", "a b"][..], &all].concat(), folder);
    says(
        &said,
        &["--config, --data, --init-from", "`sar train --resume --out 'a b'`", "--requeue"],
    );
    let said = fails(2, &["refine", "base", "--out", "new"], folder);
    says(&said, &["`sar refine --init-from base --out new`"]);
    let said = fails(2, &["train", "--data", "images", "--out", "new", "--unlabelled"], folder);
    says(&said, &["--set data.unlabelled=true"]);
}

#[test]
fn named_data_keep_the_section_that_the_file_gives() {
    let folder = trained();
    let folder = folder.path();
    let tokenizer = ["tokenizer", "train", "--config", "small.toml", "--out", "new", "-q"];
    let from = ["--data", "glyphs10", "--init-from", "tok", "--set", "data.image_side=16"];
    succeeds(&[&tokenizer[..], &from, &["--set", "tokenizer_train.lr=1e-9"]].concat(), folder);
    says(&fs::read_to_string(folder.join("new/config.toml")).unwrap(), &["crop = \"center\""]);
    // A step of next to nothing from the weights of `tok` ends next to them.
    let weights = |run: &str| {
        let file = folder.join(run).join("checkpoints/step-1/model.safetensors");
        let bytes = fs::read(file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data = tensors.tensor("encoder.conv_in.weight").unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    let (old, new) = (weights("tok"), weights("new"));
    assert!(
        old.iter().zip(&new).all(|(a, b)| (a - b).abs() < A_SMALL_STEP),
        "not from these weights"
    );
}

#[test]
fn images_without_any_held_out_are_measured_on_themselves() {
    let folder = trained();
    let none = ["--config", "small.toml", "--out", "new", "--set", "data.path=images"];
    let folder = folder.path();
    fs::write(folder.join("small.toml"), SMALL.replace("builtin = \"glyphs10\"\n", "")).unwrap();
    two_classes(folder, 1);
    let said = succeeds(&[&["tokenizer", "train"], &none[..]].concat(), folder);
    says(&said, &["warning: no image is held out (data.val_fraction)", "PSNR"]);
    says(&fails(1, &["tokenizer", "eval", "new"], folder), &["no image is held out"]);
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["plan"][..], &["doctor"], &["data", "check", "glyphs10"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
        let mut child = command
            .args(arguments)
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    }
    says(&fails(2, &["plan", "--threads", "100000"], folder.path()), &["at most 1024"]);
}

#[test]
fn published_sampling_is_greedy_off_its_list() {
    let folder = trained();
    let folder = folder.path();
    let sample = |out: &str, more: &[&str]| {
        let flags = ["sample", "base", "--out", out, "--count", "4", "-q", "--schedule"];
        succeeds(&[&flags[..], more].concat(), folder);
        fs::read(folder.join(out).join("grid.png")).unwrap()
    };
    let (greedy, draws) = ("--published-greedy", "--seed=0");
    assert!(sample("a", &["1_2_4_8", greedy]) == sample("b", &["1_2_4_8", draws]));
    assert!(sample("c", &["1_2_4_7", greedy]) != sample("d", &["1_2_4_7", draws]));
}

#[test]
fn samples_of_another_size_than_the_data_are_not_measured() {
    let folder = trained();
    let folder = folder.path();
    let run = ["--out", "new", "--set", "generator.schedule=1_2_4"];
    let said = succeeds(&[&TRAIN[..], &run].concat(), folder);
    says(&said, &["note: images of 32 px have latents of 8×8", "samples will be 16×16 px"]);
    says(&fails(1, &["eval", "new"], folder), &["samples are 16×16 px", "32×32"]);
}

#[test]
fn images_of_two_calls_are_not_mixed() {
    let folder = trained();
    let folder = folder.path();
    let sample =
        |count: &'static str| ["sample", "base", "--out", "s", "--batch", "3", "--count", count];
    succeeds(&sample("7"), folder);
    // More than any machine has is refused, and not begun until the system ends it.
    let huge = ["sample", "base", "--out", "huge", "--batch", "65536", "--count", "65536"];
    let huge = [&huge[..], &["--schedule", "1_99"]].concat();
    says(&fails(1, &huge, folder), &["drawing images takes about", "a smaller --batch"]);
    assert!(!folder.join("huge").exists());
    let first = fs::read(folder.join("s/000002.png")).unwrap();
    let said = fails(1, &sample("5"), folder);
    says(&said, &["s holds 7 images of an earlier call", "--force"]);
    let forced = |count| [&sample(count)[..], &["--force"]].concat();
    succeeds(&forced("5"), folder);
    assert!(!folder.join("s/000005.png").exists(), "what would not be replaced is removed");
    let record: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.join("s/samples.json")).unwrap()).unwrap();
    assert_eq!(record["labels"], serde_json::json!([0, 1, 2, 3, 4]));
    assert_eq!(record["settings"]["count"], 5);
    // A grid has ten rows of the classes at most, and memory for no more.
    succeeds(&forced("120"), folder);
    // Images that were not sampled here are nobody's to replace, whatever is asked for, and nothing is
    // removed before they are seen.
    fs::write(folder.join("s/000500.png"), "mine").unwrap();
    let said = fails(1, &forced("3"), folder);
    says(&said, &["s has images that its samples.json does not name (000500.png)"]);
    assert!(folder.join("s/samples.json").exists() && folder.join("s/000119.png").exists());
    fs::remove_file(folder.join("s/000500.png")).unwrap();
    fs::create_dir(folder.join("mine")).unwrap();
    fs::write(folder.join("mine/0.png"), "mine").unwrap();
    let said = fails(1, &["sample", "base", "--out", "mine", "--count", "2", "--force"], folder);
    says(&said, &["does not name (0.png)"]);
    assert!(fs::read(folder.join("s/000002.png")).unwrap() == first, "image 2 is image 2");
    assert!(folder.join("s/000119.png").exists());
    let grid = image::image_dimensions(folder.join("s/grid.png")).unwrap();
    assert_eq!(grid, (10 * 34 - 2, 10 * 34 - 2));
}

#[test]
fn settings_that_would_change_nothing_are_refused() {
    let folder = trained();
    let folder = folder.path();
    let tokenizer = ["tokenizer", "train", "--config", "small.toml", "--out", "new", "--set"];
    let said = fails(1, &[&tokenizer[..], &["train.steps=5"]].concat(), folder);
    says(&said, &["--set train.steps=5", "change nothing", "tokenizer_train"]);
    let said =
        fails(1, &[&TRAIN[..], &["--out", "new", "--set", "tokenizer.ch=9"]].concat(), folder);
    says(&said, &["--set tokenizer.ch=9", "as it was trained"]);
    let mistyped =
        |setting| fails(1, &[&TRAIN[..], &["--out", "new", "--set", setting]].concat(), folder);
    says(&mistyped("trian.batch=1"), &["did you mean `train`"]);
    says(&mistyped("steps=5"), &["expected section.key=value"]);
    let refine = ["refine", "--init-from", "base", "--out", "new", "--set", "train.mode=teacher"];
    says(&fails(1, &refine, folder), &["train.mode is teacher", "sar train --init-from"]);
    assert!(!folder.join("new").exists());
}

#[test]
fn a_model_may_have_more_classes_than_there_are_images_of() {
    let folder = trained();
    let folder = folder.path();
    two_classes(folder, 6);
    let refine = ["refine", "--init-from", "base", "--data", "images", "--out", "new"];
    let few = ["--set", "train.steps=1", "--set", "train.batch=2"];
    let said = fails(1, &[&refine[..], &few].concat(), folder);
    says(&said, &["the data have 2 classes, the generator 10", "data.num_classes=10"]);
    let all = ["--set", "data.num_classes=10"];
    let said = succeeds(&[&refine[..], &few, &all].concat(), folder);
    says(&said, &["10 classes", "8 of the classes without a training image: 2, 3, 4, 5, 6, …"]);
    // What was loaded is what is written down, and a file goes over the run's own configuration.
    let resolved = fs::read_to_string(folder.join("new/config.toml")).unwrap();
    says(&resolved, &["vocab = 16", "steps = 1"]);
    fs::write(folder.join("over.toml"), "[train]\nsteps = 2\n").unwrap();
    let over = ["refine", "--init-from", "base", "--config", "over.toml", "--out", "over"];
    succeeds(&over, folder);
    let said = fs::read_to_string(folder.join("over/config.toml")).unwrap();
    says(&said, &["builtin = \"glyphs10\"", "steps = 2"]);
    let twice = ["--data", "images", "--set", "data.path=elsewhere", "--out", "other"];
    let said = fails(1, &[&TRAIN[..], &twice].concat(), folder);
    says(&said, &["--set data.path", "--data images names the images already"]);
    let teacher = [&TRAIN[..], &["--out", "other", "--set", "sar.sigma=1"]].concat();
    says(&fails(1, &teacher, folder), &["--set sar.sigma=1", "it is for --mode ssr"]);
}

#[test]
fn what_has_a_shape_and_a_place_keeps_them() {
    let folder = trained();
    let folder = folder.path();
    let again =
        ["tokenizer", "train", "--init-from", "tok", "--data", "builtin:glyphs10", "--out", "t"];
    let said = fails(1, &[&again[..], &["--set", "tokenizer.vocab=64"]].concat(), folder);
    says(&said, &["tokenizer.vocab is 64, but the weights of --init-from have 16"]);
    let said = fails(1, &["tokenizer", "train", "--resume", "--out", "base"], folder);
    says(&said, &["base is the run of a generator", "sar train --resume"]);
    let mut steps = fs::read_dir(folder.join("base/checkpoints")).unwrap();
    let own = steps.next().unwrap().unwrap().path().join("model.safetensors");
    succeeds(&["convert", own.to_str().unwrap(), "x.safetensors"], folder);
    let header = |path: &Path| -> serde_json::Value {
        let bytes = fs::read(path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        serde_json::from_str(&metadata.metadata().as_ref().unwrap()["sar"]).unwrap()
    };
    let tensors = |path: &Path| -> Vec<u8> {
        let bytes = fs::read(path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    let copy = folder.join("x.safetensors");
    assert_eq!(header(&own)["classes"][0], "A");
    assert!(header(&copy) == header(&own) && tensors(&copy) == tensors(&own));
    succeeds(&["convert", "x.safetensors", "xx.safetensors"], folder);
    assert!(fs::read(&copy).unwrap() == fs::read(folder.join("xx.safetensors")).unwrap());
    says(&fails(1, &["convert", "base", "y.safetensors"], folder), &["base is a folder"]);
    let encode = ["tokenizer", "encode", "tok", "--out", "ids.safetensors"];
    succeeds(&encode, folder);
    says(&fails(1, &encode, folder), &["ids.safetensors exists", "--force"]);
    let long = [&encode[..], &["--force", "--schedule", "1_2_16"]].concat();
    says(&fails(1, &long, folder), &["ends in a grid of 16", "latents of 8×8"]);
    says(&fails(1, &["plan", "--dtype", "bf16"], folder), &["bf16 needs --backend cuda"]);
}

/// A run's configuration says how its tokenizer was trained, also where the run was begun without that one's file.
#[test]
fn a_run_tells_how_its_tokenizer_was_trained() {
    let folder = trained();
    let folder = folder.path();
    let section = |run: &str| -> toml::Value {
        let text = fs::read_to_string(folder.join(run).join("config.toml")).unwrap();
        text.parse::<toml::Table>().unwrap()["tokenizer_train"].clone()
    };
    let small = ["generator.depth=1", "generator.width=16", "generator.heads=1", "train.steps=1"];
    let small: Vec<&str> = small.into_iter().flat_map(|set| ["--set", set]).collect();
    let train = ["train", "--data", "builtin:glyphs10", "--tokenizer", "tok", "--seed", "3"];
    succeeds(&[&train[..], &small, &["--set", "train.batch=2", "--out", "own"]].concat(), folder);
    let trained = section("tok");
    assert_eq!(trained["steps"].as_integer(), Some(1));
    assert_eq!(section("own"), trained);
    let refine = ["refine", "--init-from", "own", "--seed", "4", "--set", "train.steps=1"];
    succeeds(&[&refine[..], &["--out", "sar"]].concat(), folder);
    assert_eq!(section("sar"), trained);
    let again = ["train", "--requeue", "--tokenizer", "tok", "--seed", "5", "--out", "own"];
    let said = fails(1, &again, folder);
    says(&said, &["train.seed=3"]);
    assert!(!said.contains("tokenizer_train"), "{said}");
}

/// What does not fit is told before it is allocated, by whatever limit.
#[cfg(target_os = "linux")]
#[test]
fn a_run_that_does_not_fit_into_its_addresses_is_refused() {
    let folder = trained();
    let folder = folder.path();
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 2000000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_sar")])
        .args(TRAIN)
        .args(["--set", "generator.width=4096", "--set", "generator.heads=64", "--out", "large"])
        .current_dir(folder)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    says(&said, &["training takes about", "GiB"]);
    assert!(!folder.join("large").exists());
}

#[test]
fn a_run_goes_on_from_any_folder_and_says_where_its_images_were() {
    let folder = trained();
    let folder = folder.path();
    two_classes(folder, 6);
    fs::write(folder.join("small.toml"), SMALL.replace("builtin = \"glyphs10\"\n", "")).unwrap();
    let run = ["--data", "images", "--out", "new", "--set", "train.steps=1"];
    succeeds(&[&TRAIN[..], &run].concat(), folder);
    let out = folder.join("new");
    let resume = ["train", "--resume", "--out", out.to_str().unwrap()];
    succeeds(&resume, Path::new("/"));
    assert!(!succeeds(&resume, Path::new("/")).contains("warning"), "the same images");
    two_classes(folder, 7);
    let said = succeeds(&resume, Path::new("/"));
    says(&said, &["warning: the run began with 10 training", "now there are 12 training"]);
    // A path over another folder's parent does not need that folder.
    fs::create_dir(folder.join("from")).unwrap();
    let over = ["train", "--config", "../small.toml", "--tokenizer", "../tok", "--out", "../over"];
    let over = [&over[..], &["--data", "../images", "--set", "train.steps=1"]].concat();
    succeeds(&over, &folder.join("from"));
    fs::remove_dir(folder.join("from")).unwrap();
    succeeds(&["train", "--resume", "--out", "over", "--set", "train.steps=2"], folder);
    fs::rename(folder.join("images"), folder.join("moved")).unwrap();
    let said = fails(1, &resume, folder);
    says(&said, &["have moved", "--set data.path=", "no such file or folder"]);
    let tokenizer = folder.join("tok");
    let other = ["train", "--resume", "--out", tokenizer.to_str().unwrap()];
    says(
        &fails(1, &other, folder),
        &["which a generator's run keeps", "sar tokenizer train --resume"],
    );
}

#[test]
fn a_result_is_written_where_it_is_asked_for_or_nothing_is_computed() {
    let folder = trained();
    let folder = folder.path();
    fs::write(folder.join("file"), "").unwrap();
    let refused = ["tokenizer", "encode", "tok", "--out", "file/tokens.safetensors"];
    let said = fails(1, &refused, folder);
    says(&said, &["file: the folder cannot be made"]);
    assert!(!said.contains("encoding"), "found out before the work: {said}");
    succeeds(&["report", "base", "--out", "new/folder/report.html"], folder);
    assert!(folder.join("new/folder/report.html").exists());
    let own = ["convert", "tok/checkpoints/step-1/model.safetensors"];
    let said = fails(1, &[&own[..], &own[1..], &["--force"]].concat(), folder);
    says(&said, &["both what is read and what is written"]);
    // Folders that were made for a file that never came are gone again.
    fails(1, &["data", "check", "absent", "--preview", "made/for/it.png"], folder);
    assert!(!folder.join("made").exists());
}

/// `ulimit -f`: what a file may grow to, in blocks of 1024 bytes (512 in some shells).
#[test]
#[cfg(unix)]
fn a_file_over_the_limit_is_an_error_and_not_the_end() {
    let folder = trained();
    let folder = folder.path();
    let command = "ulimit -f 16; exec \"$0\" \"$@\"";
    let output = std::process::Command::new("sh")
        .args(["-c", command, env!("CARGO_BIN_EXE_sar")])
        .args([&TRAIN[..], &["--out", "runs/new", "-q"]].concat())
        .current_dir(folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    says(&said, &["cannot write", "File too large"]);
    assert!(!folder.join("runs").exists(), "a start that failed leaves the place free");
    succeeds(&[&TRAIN[..], &["--out", "runs/new", "-q"]].concat(), folder);
}

#[test]
fn a_run_that_ends_while_its_rate_rises_is_told() {
    let folder = trained();
    let folder = folder.path();
    let rate = ["--set", "train.lr=1e-3", "--set", "train.warmup=4", "--out", "slow"];
    let said = succeeds(&[&TRAIN[..], &rate].concat(), folder);
    says(&said, &["train.warmup is 4 steps and the run has 2", "a smaller train.warmup"]);
    let log = fs::read_to_string(folder.join("slow/log.jsonl")).unwrap();
    let rates = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let highest = rates.filter_map(|record| record["lr"].as_f64()).fold(0.0, f64::max);
    says(&said, &[&format!("its learning rate rises to {highest:.1e} and no further")]);
    // It is not what a refinement begins at.
    let refine = ["refine", "--init-from", "slow", "--out", "r", "--set", "train.lr=1"];
    says(&succeeds(&refine, folder), &["this run rises to"]);
    let refine = ["refine", "--init-from", "slow", "--out", "q", "--set", "train.lr=1"];
    let refine = [&refine[..], &["--set", "train.warmup=0"]].concat();
    says(&succeeds(&refine, folder), &["this run begins at 1.0e0"]);
}

/// Of scales that a pass does not supervise there is no loss, and none of 0.
#[test]
fn scales_without_supervision_have_no_loss() {
    let folder = trained();
    let folder = folder.path();
    let refine = ["refine", "--init-from", "base", "--preset", "release", "--out", "r"];
    succeeds(&[&refine[..], &["--set", "train.log_every=1"]].concat(), folder);
    let log = fs::read_to_string(folder.join("r/log.jsonl")).unwrap();
    let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let student: Vec<_> =
        records.filter_map(|r| r["student_scale_loss"].as_array().cloned()).collect();
    assert!(!student.is_empty());
    for scales in student {
        let (last, others) = scales.split_last().unwrap();
        assert!(last.as_f64().unwrap() > 0.0 && others.iter().all(|loss| loss.is_null()));
    }
}

#[test]
fn seeds_are_numbers_that_a_configuration_holds() {
    let folder = trained();
    let folder = folder.path();
    let with =
        |seed: &str| fails(2, &[&TRAIN[..], &["--out", "new", "--seed", seed]].concat(), folder);
    for seed in ["9223372036854775808", "x"] {
        says(&with(seed), &["--seed", "from 0 to 9223372036854775807"]);
    }
    let most = ["--out", "new", "--seed", "9223372036854775807"];
    succeeds(&[&TRAIN[..], &most].concat(), folder);
    let on = ["train", "--resume", "--out", "new", "--set", "train.steps=3"];
    succeeds(&on, folder);
}

#[test]
fn numbers_that_no_machine_has_room_for_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let said = fails(1, &["bench", "step", "--depth", "1000000"], folder);
    says(&said, &["generator.depth is 1000000, expected 1 to 256"]);
    let large = ["bench", "step", "--depth", "256", "--width", "32768", "--heads", "512"];
    says(&fails(1, &large, folder), &["for its weights alone", "generator.width"]);
    says(&fails(1, &["plan", "--batch", "18446744073709551615"], folder), &["train.batch"]);
}

#[test]
fn a_few_images_are_learnt_by_heart() {
    let folder = trained();
    let folder = folder.path();
    // One way for each image to look, and nothing that hides anything.
    let few = ["data.limit=4", "data.shift=0", "train.class_dropout=0", "train.drop_path=0"];
    let more = ["train.steps=150", "train.batch=4", "train.lr=3e-3", "generator.width=64"];
    let sets: Vec<&str> = few.iter().chain(&more).flat_map(|set| ["--set", *set]).collect();
    let said = succeeds(&[&TRAIN[..], &["--out", "few"], &sets].concat(), folder);
    says(&said, &["4 of 3700 training", "one of 16 codes has a loss of 2.773", "6.25 %"]);
    let log = fs::read_to_string(folder.join("few/log.jsonl")).unwrap();
    let loss =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64();
    let last = log.lines().rev().find_map(loss).unwrap();
    assert!(last < 0.3, "{last}");
    let none =
        fails(1, &[&TRAIN[..], &["--out", "none", "--set", "data.limit=0"]].concat(), folder);
    says(&none, &["data.limit", "expected 1 or more, found 0"]);
}
