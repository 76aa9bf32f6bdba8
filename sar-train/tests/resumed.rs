//! A run that was interrupted or killed ends in the same bits as one that was not.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const STEPS: u64 = 160;

/// Small enough for a few seconds; dropout, running average, random classes, accumulation and random
/// schedules are on.
const SMALL: [&str; 22] = [
    "--set",
    "generator.depth=2",
    "--set",
    "generator.width=16",
    "--set",
    "generator.heads=2",
    "--set",
    "train.batch=2",
    "--set",
    "train.accumulate=2",
    "--set",
    "train.random_schedules=true",
    "--set",
    "train.steps=160",
    "--set",
    "train.save_every=8",
    "--set",
    "train.ema=0.99",
    "--set",
    "train.log_every=1",
    "--set",
    "train.sample_every=0",
];

fn sar(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
    command.args(arguments).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn succeeds(arguments: &[&str], folder: &Path) {
    let output = sar(arguments, folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
}

fn train(out: &str) -> Vec<&str> {
    let base = ["train", "--data", "builtin:glyphs10", "--tokenizer", "tokenizer", "--out", out];
    [&base[..], &SMALL].concat()
}

/// Starts a run and returns once it has saved a checkpoint.
fn started(out: &str, folder: &Path) -> Child {
    running(&train(out), out, folder)
}

fn running(arguments: &[&str], out: &str, folder: &Path) -> Child {
    let child = sar(arguments, folder).spawn().unwrap();
    let checkpoint = folder.join(out).join("checkpoints/step-8");
    let start = Instant::now();
    while !checkpoint.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint was saved");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

fn signal(child: &Child, which: &str) {
    let sent = Command::new("kill").args([which, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

fn interrupt(child: Child) -> Output {
    signal(&child, "-INT");
    child.wait_with_output().unwrap()
}

/// The final weights, running average and moments, and the losses of every step.
fn result(out: &str, folder: &Path) -> Vec<Vec<u8>> {
    let last = folder.join(out).join(format!("checkpoints/step-{STEPS}"));
    let files = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"];
    let mut all: Vec<Vec<u8>> = files.iter().map(|f| fs::read(last.join(f)).unwrap()).collect();
    let log = fs::read_to_string(folder.join(out).join("log.jsonl")).unwrap();
    let losses: Vec<String> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|record| record["kind"] == "train")
        .map(|record| format!("{} {} {}", record["step"], record["loss"], record["grad_norm"]))
        .collect();
    assert_eq!(losses.len() as u64, STEPS, "{out}");
    all.push(losses.join("\n").into_bytes());
    all
}

#[test]
fn interrupted_and_killed_runs_end_in_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let tokenizer = ["tokenizer", "train", "--data", "builtin:glyphs10", "--out", "tokenizer"];
    let short = ["--set", "tokenizer_train.steps=2", "--set", "tokenizer.ch=8"];
    succeeds(&[&tokenizer[..], &short].concat(), folder);
    succeeds(&train("whole"), folder);
    let whole = result("whole", folder);

    let mut child = started("killed", folder);
    child.kill().unwrap();
    child.wait().unwrap();
    let last = folder.join(format!("killed/checkpoints/step-{STEPS}"));
    assert!(!last.exists(), "it was killed too late to show anything");
    succeeds(&["train", "--resume", "--out", "killed"], folder);
    assert!(result("killed", folder) == whole, "killed and resumed, it differs");

    // One command for the first start and all that follow it. What a batch system sends twice is one wish.
    // The file's shape of a new tokenizer is not that of the one that is named.
    fs::write(folder.join("other.toml"), "[tokenizer]\nch = 32\n").unwrap();
    let requeue = [&train("requeued")[..], &["--requeue", "--config", "other.toml"]].concat();
    let child = running(&requeue, "requeued", folder);
    signal(&child, "-USR1");
    let output = interrupt(child);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("its state is saved"), "{text}");
    let other = [&requeue[..], &["--set", "train.batch=3"]].concat();
    let output = sar(&other, folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("train.batch=2, and 3 is asked for now"), "{text}");
    succeeds(&requeue, folder);
    assert!(result("requeued", folder) == whole, "queued again, it differs");

    let output = interrupt(started("interrupted", folder));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("its state is saved, continue with --resume"), "{text}");
    assert!(text.contains("go on with `sar train --resume --out interrupted`"), "{text}");
    succeeds(&["train", "--resume", "--out", "interrupted"], folder);
    assert!(result("interrupted", folder) == whole, "interrupted and resumed, it differs");

    // Sampling has no state: what is painted stays, and the rest is not.
    let sample = ["sample", "whole", "--out", "samples", "--batch", "2", "--count", "100000"];
    let child = sar(&sample, folder).spawn().unwrap();
    let start = Instant::now();
    while !folder.join("samples/000004.png").exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "nothing was painted");
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = interrupt(child);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("images are in samples"), "{text}");
    assert!(folder.join("samples/grid.png").exists());
    assert!(!folder.join("samples/099999.png").exists());
}

/// `nohup` promises that a run outlives the terminal it was started from.
#[test]
#[cfg(target_os = "linux")]
fn a_run_under_nohup_outlives_its_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let tokenizer = ["tokenizer", "train", "--data", "builtin:glyphs10", "--out", "run", "--quiet"];
    let long = ["--set", "tokenizer_train.steps=100000", "--set", "tokenizer.ch=8"];
    let often = ["--set", "train.log_every=1"];
    let mut child = Command::new("nohup")
        .arg(env!("CARGO_BIN_EXE_sar"))
        .args([&tokenizer[..], &long, &often].concat())
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let log = folder.join("run/log.jsonl");
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    let wait_for = |more: usize| {
        let start = Instant::now();
        while lines() < more {
            assert!(start.elapsed() < Duration::from_secs(120), "the run stands still");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for(1);
    let sent = Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    wait_for(lines() + 3);
    child.kill().unwrap();
    child.wait().unwrap();
}
