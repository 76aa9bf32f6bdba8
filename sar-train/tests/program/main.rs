//! The program by its command line, on tiny data.
#![allow(clippy::unwrap_used)]

mod classes;
mod edit;
mod edited;
mod errors;
mod folders;
mod kept;
mod latents;
mod ranks;
mod results;
mod runs;
mod samples;
mod score;
mod var;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn sar(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sar")).args(arguments).current_dir(folder).output().unwrap()
}

/// Runs the program, expects this exit code, and returns what it said on standard error.
#[track_caller]
fn fails(code: i32, arguments: &[&str], folder: &Path) -> String {
    let output = sar(arguments, folder);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    text
}

/// Runs the program, which must succeed, and returns what it said on standard error.
#[track_caller]
fn succeeds(arguments: &[&str], folder: &Path) -> String {
    let output = sar(arguments, folder);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
    text
}

/// As [`succeeds`], for what it wrote to standard output.
#[track_caller]
fn prints(arguments: &[&str], folder: &Path) -> String {
    let output = sar(arguments, folder);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn says(text: &str, expected: &[&str]) {
    for part in expected {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

/// The steps of the checkpoints of a run.
fn steps(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const SMALL: &str = "[data]\nbuiltin = \"glyphs10\"\nimage_side = 32\nflip = false\n\
    crop = \"center\"\n\
    [tokenizer]\nch = 8\nch_mult = [1, 1, 2]\nz_channels = 8\nlatent_channels = 4\nvocab = 16\n\
    groups = 4\n[tokenizer_train]\nsteps = 1\nbatch = 2\neval_every = 0\n\
    [generator]\ndepth = 1\nwidth = 16\nheads = 1\n\
    [eval]\nclassifier_steps = 2\n\
    [train]\nsteps = 2\nbatch = 2\nsample_every = 0\n";

/// A folder with `small.toml`, a tokenizer `tok` and a generator `base`.
fn trained() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("small.toml"), SMALL).unwrap();
    let said =
        succeeds(&["tokenizer", "train", "--config", "small.toml", "--out", "tok"], folder.path());
    says(&said, &["10 classes, 3700 training"]);
    succeeds(&[&TRAIN[..], &["--out", "base"]].concat(), folder.path());
    folder
}

const TRAIN: [&str; 5] = ["train", "--config", "small.toml", "--tokenizer", "tok"];

/// [`SMALL`] on the folder `images`, as `small.toml`.
fn on_images(folder: &Path) {
    let config = SMALL.replace("builtin = \"glyphs10\"", "path = \"images\"");
    fs::write(folder.join("small.toml"), config).unwrap();
}

/// `images/a` and `images/b`.
fn two_classes(folder: &Path, each: usize) {
    for class in ["a", "b"] {
        fs::create_dir_all(folder.join("images").join(class)).unwrap();
        for n in 0..each {
            let picture = image::RgbImage::new(20, 20);
            picture.save(folder.join(format!("images/{class}/{n}.png"))).unwrap();
        }
    }
}
