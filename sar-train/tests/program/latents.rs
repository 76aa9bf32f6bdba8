//! Training on latents that were encoded before.

use super::*;

/// Two classes of images that crops and mirroring change.
fn uneven_classes(folder: &Path) {
    for (class, tint) in [("a", 0), ("b", 120)] {
        fs::create_dir_all(folder.join("images").join(class)).unwrap();
        for n in 0..6 {
            let colour = |x: u32, y: u32| image::Rgb([(x * 9 + y) as u8, (y * 7) as u8, tint + n]);
            let picture = image::RgbImage::from_fn(40, 44, colour);
            picture.save(folder.join(format!("images/{class}/{n}.png"))).unwrap();
        }
    }
}

/// Ten training images, so that five steps of two are an epoch; cut, mirrored and moved.
const CUT: &str = "crop = \"random\"\nflip = true\nshift = 2\n";

fn on_uneven_images(folder: &Path) {
    uneven_classes(folder);
    let small = SMALL
        .replace("builtin = \"glyphs10\"\n", "path = \"images\"\n")
        .replace("flip = false\ncrop = \"center\"\n", CUT);
    assert!(small.contains(CUT));
    fs::write(folder.join("small.toml"), small).unwrap();
    succeeds(&["tokenizer", "train", "--config", "small.toml", "--out", "tok"], folder);
}

const ENCODE: [&str; 6] = ["tokenizer", "encode", "tok", "--latents", "--out", "l.safetensors"];

fn weights(folder: &Path, run: &str, step: u64) -> Vec<u8> {
    fs::read(folder.join(format!("{run}/checkpoints/step-{step}/model.safetensors"))).unwrap()
}

#[test]
fn a_run_on_latents_is_the_run_on_images_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_uneven_images(folder);
    says(&succeeds(&[&ENCODE[..], &["--views", "2"]].concat(), folder), &["2 views", "22 latents"]);
    let run = |out: &str, more: &[&str]| {
        let steps = ["--set", "train.save_every=5", "--out", out];
        succeeds(&[&TRAIN[..], &steps, more].concat(), folder)
    };
    run("images-run", &["--set", "train.steps=15"]);
    let said = run("latents-run", &["--latents", "l.safetensors", "--set", "train.steps=7"]);
    says(&said, &["on latents of 2 views of each image, in 32 bits"]);
    let on = ["train", "--resume", "--out", "latents-run", "--set", "train.steps=15"];
    succeeds(&on, Path::new(&folder));
    // Not yet: the rate of a run of seven steps fell sooner.
    run("whole", &["--latents", "l.safetensors", "--set", "train.steps=15"]);
    for step in [5, 10] {
        assert!(weights(folder, "images-run", step) == weights(folder, "whole", step), "{step}");
    }
    // The third epoch sees the first view again, and not a third.
    assert!(weights(folder, "images-run", 15) != weights(folder, "whole", 15));
    let held_out = |run: &str| {
        let log = fs::read_to_string(folder.join(run).join("log.jsonl")).unwrap();
        log.lines().find(|line| line.contains("heldout_loss")).map(str::to_owned)
    };
    assert!(held_out("images-run").is_some());

    // What comes after it: the latents are the run's, and other images have none.
    let refine = ["refine", "--init-from", "whole", "--set", "train.steps=1", "--out"];
    says(&succeeds(&[&refine[..], &["sar"]].concat(), folder), &["on latents of 2 views"]);
    let anew = succeeds(&[&refine[..], &["anew", "--data", "images"]].concat(), folder);
    assert!(!anew.contains("on latents"), "{anew}");
    fs::rename(folder.join("l.safetensors"), folder.join("m.safetensors")).unwrap();
    let said = fails(1, &[&refine[..], &["gone"]].concat(), folder);
    says(&said, &["trains on latents", "--latents FILE", "l.safetensors: no such file"]);
    assert!(!folder.join("gone").exists(), "a run that cannot start leaves no folder");
    let resume = |steps: &str, latents: &str| {
        let set = ["--set", steps, "--set", latents];
        succeeds(&[&["train", "--resume", "--out", "whole"][..], &set].concat(), folder)
    };
    let moved = resume("train.steps=16", "train.latents=m.safetensors");
    assert!(!moved.contains("warning"), "{moved}");
    succeeds(&[&ENCODE[..], &["--seed", "3"]].concat(), folder);
    let other = resume("train.steps=17", "train.latents=l.safetensors");
    says(
        &other,
        &["warning: the run began on latents of 2 views", "latents of 1 view of each image"],
    );
    says(&other, &["cut by seed 3, and the run's is 0"]);
    let without = resume("train.steps=18", "train.latents=");
    says(&without, &["began on latents of 2 views", "now it has the images"]);
}

#[test]
fn latents_in_sixteen_bits_take_half_the_room() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_uneven_images(folder);
    let size = |name: &str| fs::metadata(folder.join(name)).unwrap().len();
    succeeds(&ENCODE, folder);
    let whole = size("l.safetensors");
    succeeds(&[&ENCODE[..], &["--half", "--force"]].concat(), folder);
    let (half, values) = (size("l.safetensors"), (10 + 2) * 4 * 8 * 8);
    let header = 8; // padded to this, and of some digits less
    assert!((whole - half).abs_diff(2 * values) <= header, "{whole} and {half}");
    succeeds(&[&TRAIN[..], &["--latents", "l.safetensors", "--out", "run"]].concat(), folder);
}

#[test]
fn latents_of_something_else_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_uneven_images(folder);
    succeeds(&ENCODE, folder);
    says(&fails(1, &ENCODE, folder), &["l.safetensors exists", "--force"]);
    let refused = |file: &str, more: &[&str], expected: &[&str]| {
        let run = ["--latents", file, "--out", "run"];
        says(&fails(1, &[&TRAIN[..], &run, more].concat(), folder), expected);
        assert!(!folder.join("run").exists(), "a run that cannot start leaves no folder");
    };
    refused(
        "l.safetensors",
        &["--set", "data.flip=false"],
        &["flip=true", "this run says", "flip=false"],
    );
    refused("l.safetensors", &["--set", "data.split_seed=1"], &["other images, or others of them"]);
    refused("none.safetensors", &[], &["none.safetensors: no such file", "trains on latents"]);
    succeeds(&["tokenizer", "encode", "tok", "--out", "t.safetensors"], folder);
    refused("t.safetensors", &[], &["the tokens of one schedule", "--latents"]);
    let bytes = fs::read(folder.join("l.safetensors")).unwrap();
    for (broken, expected) in [
        (&bytes[..bytes.len() - 1], "bytes, expected"),
        (&bytes[..100], "no safetensors file"),
        (&b"\x89PNG"[..], "no safetensors file"),
        (&b""[..], "no safetensors file"),
    ] {
        fs::write(folder.join("b.safetensors"), broken).unwrap();
        refused("b.safetensors", &[], &["b.safetensors", expected]);
    }
    let other = ["tokenizer", "train", "--config", "small.toml", "--seed", "9", "--out", "other"];
    succeeds(&other, folder);
    let train = ["train", "--config", "small.toml", "--tokenizer", "other", "--out", "run"];
    let said = fails(1, &[&train[..], &["--latents", "l.safetensors"]].concat(), folder);
    says(&said, &["latents of another tokenizer"]);
    // Of the same names, and not the same.
    let image = |class: &str| folder.join(format!("images/{class}/0.png"));
    for class in ["a", "b"] {
        fs::copy(image(class), folder.join(class)).unwrap();
        image::RgbImage::new(40, 44).save(image(class)).unwrap();
    }
    refused("l.safetensors", &[], &["is not what the tokenizer makes of that image now"]);
    for class in ["a", "b"] {
        fs::copy(folder.join(class), image(class)).unwrap();
    }
    fs::remove_file(folder.join("images/b/5.png")).unwrap();
    refused("l.safetensors", &[], &["other images, or others of them were held out"]);

    let encode = |more: &[&str]| fails(2, &[&ENCODE[..], more].concat(), folder);
    says(&encode(&["--views", "0"]), &["--views"]);
    says(&encode(&["--schedule", "1_2"]), &["--schedule", "--latents"]);
    let set = [&ENCODE[..], &["--force", "--set", "train.steps=1"]].concat();
    says(&fails(1, &set, folder), &["train.steps=1", "only keys of [data]"]);
    let twice = ["--force", "--data", "images", "--set", "data.path=images"];
    says(&fails(1, &[&ENCODE[..], &twice].concat(), folder), &["--data names the images already"]);
}

/// A call that is stopped in the middle keeps what it has, and the same call with --resume ends in the same file as one
/// that was not stopped.
#[cfg(unix)]
#[test]
fn encoding_goes_on_after_an_interruption() {
    use std::io::Read as _;
    use std::time::{Duration, Instant};
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_uneven_images(folder);
    let long = [&ENCODE[..], &["--views", "3000"]].concat();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_sar"))
        .args(&long)
        .current_dir(folder)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let partial = folder.join("l.safetensors.partial");
    // Far more than a header and twelve labels.
    let (begun, some_rows) = (Instant::now(), 1 << 16);
    while fs::metadata(&partial).map_or(0, |found| found.len()) < some_rows {
        assert!(begun.elapsed() < Duration::from_secs(120), "nothing was written");
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    says(&said, &["latents are kept in l.safetensors.partial", "--resume", "interrupted"]);
    assert!(!folder.join("l.safetensors").exists());

    let kept = fs::read(&partial).unwrap();
    says(&fails(1, &long, folder), &["l.safetensors.partial", "--resume", "--force"]);
    let other = [&long[..], &["--resume", "--half"]].concat();
    says(&fails(1, &other, folder), &["another --seed, --views, --half", "--force"]);
    let on = [&long[..], &["--resume"]].concat();
    // Where there is no room for the rest, what there is stays as it is.
    let full = std::process::Command::new("sh")
        .args(["-c", "ulimit -f 1000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_sar")])
        .args(&on)
        .current_dir(folder)
        .output()
        .unwrap();
    assert_eq!(full.status.code(), Some(1), "{full:?}");
    says(&String::from_utf8(full.stderr).unwrap(), &["l.safetensors.partial: cannot write"]);
    assert!(fs::read(&partial).unwrap() == kept, "nothing of it is lost");
    says(&succeeds(&on, folder), &["30002 latents"]);
    let whole = fs::read(folder.join("l.safetensors")).unwrap();
    assert!(!partial.exists() && whole.starts_with(&kept[..kept.len() / 2]));
    // Again, there is nothing to do.
    assert!(!succeeds(&on, folder).contains("encoding"));
    succeeds(&[&long[..], &["--force"]].concat(), folder);
    assert!(fs::read(folder.join("l.safetensors")).unwrap() == whole, "the same bits");
}

#[test]
fn tokens_are_gone_on_with_image_by_image() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_uneven_images(folder);
    let encode = ["tokenizer", "encode", "tok", "--out", "t.safetensors"];
    succeeds(&encode, folder);
    let file = folder.join("t.safetensors");
    let whole = fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    assert_eq!((shape("ids"), shape("labels")), (vec![12, 85], vec![12]));
    let held_out = tensors.tensor("validation").unwrap().data().iter().filter(|&&b| b == 1).count();
    assert_eq!(held_out, 2);
    fs::remove_file(&file).unwrap();
    // All of the training images, and a part of the held-out ones' tokens.
    fs::write(folder.join("t.safetensors.partial"), &whole[..whole.len() - 400]).unwrap();
    let other = [&encode[..], &["--resume", "--schedule", "1_2_4"]].concat();
    says(&fails(1, &other, folder), &["t.safetensors.partial", "another --schedule"]);
    succeeds(&[&encode[..], &["--resume"]].concat(), folder);
    assert!(fs::read(&file).unwrap() == whole);
    // Latents are no tokens.
    let latents = ["tokenizer", "encode", "tok", "--latents", "--out", "t.safetensors", "--resume"];
    says(&fails(1, &latents, folder), &["no latents of this program", "--force"]);
    assert!(fs::read(&file).unwrap() == whole);
}
