//! Runs that several processes share.
#![cfg(target_os = "linux")]

use super::*;
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};

/// The same gradients in f32, added in another order; losses follow from the weights of the step before.
const REORDERED: f64 = 1e-5;

/// Four micro-batches a step, and all that depends on the place of one.
const FOUR: [&str; 14] = [
    "--config",
    "small.toml",
    "--set",
    "train.accumulate=4",
    "--set",
    "train.steps=6",
    "--set",
    "train.log_every=1",
    "--set",
    "train.random_schedules=true",
    "--set",
    "train.ema=0.9",
    "--set",
    "train.save_every=3",
];

fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--tokenizer", "tok", "--out", out], &FOUR[..], more].concat()
}

/// What the log says of every step.
fn losses(run: &Path) -> Vec<[f64; 2]> {
    let log = fs::read_to_string(run.join("log.jsonl")).unwrap();
    let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let steps = records.filter(|record| record["kind"] == "train");
    steps.map(|r| ["loss", "grad_norm"].map(|key| r[key].as_f64().unwrap())).collect()
}

/// Weights, running average and moments at the end, and the losses of all steps.
fn result(run: &Path) -> (Vec<Vec<u8>>, Vec<[f64; 2]>) {
    let last = run.join("checkpoints/step-6");
    let files = ["model.safetensors", "ema.safetensors", "optimizer.safetensors"];
    (files.map(|file| fs::read(last.join(file)).unwrap()).to_vec(), losses(run))
}

#[track_caller]
fn near(found: &[[f64; 2]], expected: &[[f64; 2]]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() <= REORDERED * expected.abs(), "{found}, {expected}");
    }
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawned(arguments: &[&str], folder: &Path) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
    command.args(arguments).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::piped());
    Running(command.spawn().unwrap())
}

fn signal(process: u32, which: &str) {
    assert!(Command::new("kill").args([which, &process.to_string()]).status().unwrap().success());
}

/// What a process says until it ends, and its exit code.
#[track_caller]
fn ended(mut child: Running) -> (Option<i32>, String) {
    let mut said = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.0.wait().unwrap().code(), said)
}

/// Rank 0 of a run that waits for ranks at a port that the system chooses, and that port; what it says is read on.
fn waiting(
    arguments: &[&str],
    folder: &Path,
) -> (Running, String, std::thread::JoinHandle<String>) {
    let mut child = spawned(arguments, folder);
    let mut said = BufReader::new(child.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("sar join HOST:") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended");
    }
    let port = line.split("HOST:").nth(1).unwrap().split('`').next().unwrap().to_owned();
    let rest = std::thread::spawn(move || {
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        rest
    });
    (child, port, rest)
}

fn code_of(mut child: Running) -> Option<i32> {
    child.0.wait().unwrap().code()
}

/// The only other process of a run that has just begun its work.
fn other_rank(of: &Running) -> u32 {
    let children = format!("/proc/{0}/task/{0}/children", of.0.id());
    let all = fs::read_to_string(children).unwrap();
    all.split_whitespace().next().unwrap().parse().unwrap()
}

fn wait_for(path: &Path) {
    let start = std::time::Instant::now();
    while !path.exists() {
        assert!(start.elapsed().as_secs() < 120, "{} did not come", path.display());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn ranks_make_the_run_of_one_process() {
    let folder = trained();
    let folder = folder.path();
    succeeds(&train("one", &[]), folder);
    succeeds(&train("two", &["--ranks", "2"]), folder);
    succeeds(&train("three", &["--ranks", "3"]), folder);
    let one = losses(&folder.join("one"));
    assert_eq!(one.len(), 6);
    near(&losses(&folder.join("two")), &one);
    near(&losses(&folder.join("three")), &one);
    assert_eq!(fs::read_to_string(folder.join("three/computed.txt")).unwrap(), "cpu f32, 3 ranks");

    // As many ranks, the same bits: from elsewhere, and after the run was taken up again.
    let two = result(&folder.join("two"));
    let listen = ["--ranks", "2", "--listen", "127.0.0.1:0"];
    let (rank_0, port, said) = waiting(&train("joined", &listen), folder);
    let joined = succeeds(&["join", &format!("localhost:{port}")], folder);
    says(&joined, &["rank 1 of 2"]);
    let said = said.join().unwrap();
    says(&said, &["is ready: 2 of 2"]);
    assert!(code_of(rank_0) == Some(0), "{said}");
    assert!(result(&folder.join("joined")) == two);

    fs::rename(folder.join("joined"), folder.join("cut")).unwrap();
    fs::remove_dir_all(folder.join("cut/checkpoints/step-6")).unwrap();
    let warned = succeeds(&["train", "--resume", "--out", "cut", "--ranks", "2"], folder);
    says(&warned, &["goes on from step 3"]);
    assert!(!warned.contains("warning"), "{warned}");
    assert!(result(&folder.join("cut")) == two);
    // Another number goes on, too, but not to the bit.
    fs::remove_dir_all(folder.join("cut/checkpoints/step-6")).unwrap();
    let warned = succeeds(&["train", "--resume", "--out", "cut", "--ranks", "3"], folder);
    says(&warned, &["cpu f32, 2 ranks and goes on with cpu f32, 3 ranks, not bit for bit"]);
    near(&losses(&folder.join("cut")), &one);
    let warned = succeeds(&["train", "--resume", "--out", "cut"], folder);
    says(&warned, &["cpu f32, 2 ranks and goes on with cpu f32", "nothing left to do"]);
}

#[test]
fn refinement_and_latents_are_shared_too() {
    let folder = trained();
    let folder = folder.path();
    let encode =
        ["tokenizer", "encode", "tok", "--latents", "--views", "2", "--out", "l.safetensors"];
    succeeds(&encode, folder);
    let refine = |out, more: &[&str]| {
        let base = ["refine", "--init-from", "base", "--preset", "release", "--out", out];
        let run =
            ["--set", "train.steps=3", "--set", "train.accumulate=2", "--latents", "l.safetensors"];
        let log = ["--set", "train.log_every=1", "--set", "sar.extent=all"];
        succeeds(&[&base[..], &run, &log, more].concat(), folder);
        losses(&folder.join(out))
    };
    let one = refine("one", &[]);
    assert_eq!(one.len(), 3);
    near(&refine("two", &["--ranks", "2"]), &one);
}

/// A tokenizer's steps are shared as a generator's are, the codes that nothing used included.
#[test]
fn a_tokenizers_steps_are_shared_too() {
    let folder = trained();
    let folder = folder.path();
    let run = |out: &'static str| {
        let split = ["--set", "tokenizer_train.batch=2", "--set", "tokenizer_train.accumulate=3"];
        let steps = ["--set", "tokenizer_train.steps=6", "--set", "train.save_every=3"];
        let log = ["--set", "train.log_every=1", "--out", out];
        [&["tokenizer", "train", "--config", "small.toml"][..], &split, &steps, &log].concat()
    };
    let result = |out: &str| {
        let last = folder.join(out).join("checkpoints/step-6");
        let files = ["model.safetensors", "optimizer.safetensors", "state.json"];
        files.map(|file| fs::read(last.join(file)).unwrap())
    };
    succeeds(&run("one"), folder);
    succeeds(&[&run("two")[..], &["--ranks", "2"]].concat(), folder);
    let one = losses(&folder.join("one"));
    assert_eq!(one.len(), 6);
    near(&losses(&folder.join("two")), &one);
    let log = fs::read_to_string(folder.join("one/log.jsonl")).unwrap();
    let first: Value =
        serde_json::from_str(log.lines().find(|l| l.contains("train")).unwrap()).unwrap();
    assert!(first["revived"].as_u64() > Some(0), "the first step places codes: {first}");

    let listen = [&run("joined")[..], &["--ranks", "2", "--listen", "127.0.0.1:0"]].concat();
    let (rank_0, port, said) = waiting(&listen, folder);
    says(&succeeds(&["join", &format!("127.0.0.1:{port}")], folder), &["rank 1 of 2"]);
    assert_eq!(code_of(rank_0), Some(0), "{}", said.join().unwrap());
    assert!(result("joined") == result("two"));
    fs::remove_dir_all(folder.join("joined/checkpoints/step-6")).unwrap();
    let again = ["tokenizer", "train", "--resume", "--out", "joined", "--ranks", "2"];
    says(&succeeds(&again, folder), &["goes on from step 3"]);
    assert!(result("joined") == result("two"));

    let said = fails(1, &[&run("x")[..], &["--ranks", "4"]].concat(), folder);
    says(&said, &["--set tokenizer_train.accumulate=4 makes steps of 8 images"]);
    assert!(!folder.join("x").exists());
}

/// One command for all ranks, as torchrun and srun start it, and once more when the run is finished.
#[test]
fn the_environment_says_which_rank_a_process_is() {
    let folder = trained();
    let folder = folder.path();
    // Below the ports that systems give away by themselves.
    let port = (20_000 + std::process::id() % 10_000).to_string();
    let run = train("all", &["--requeue", "--ranks-from-env"]);
    let start = |rank: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
        let place = [("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank)];
        let meet = [("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)];
        command.args(&run).current_dir(folder).envs(place).envs(meet);
        command.env("LOCAL_WORLD_SIZE", "2").stdout(Stdio::null()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    };
    for told in ["rank 1 of 2", "the run does not need this process"] {
        // The others may come first.
        let (rank_1, rank_0) = (start("1"), start("0"));
        let (code, said) = ended(rank_0);
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = ended(rank_1);
        assert_eq!(code, Some(0), "{said}");
        says(&said, &[told]);
    }
    succeeds(&train("two", &["--ranks", "2"]), folder);
    assert!(result(&folder.join("all")) == result(&folder.join("two")));
    // A run that cannot begin does not leave the others waiting.
    fs::remove_dir_all(folder.join("all")).unwrap();
    fs::create_dir(folder.join("all")).unwrap();
    fs::write(folder.join("all/notes.txt"), "kept").unwrap();
    let (rank_1, rank_0) = (start("1"), start("0"));
    let (code, said) = ended(rank_0);
    assert_eq!(code, Some(1), "{said}");
    let (code, said) = ended(rank_1);
    assert_eq!(code, Some(1), "{said}");
    says(&said, &["not taken in by rank 0", "its run has not begun"]);
    let alone = fails(2, &train("x", &["--ranks-from-env"]), folder);
    says(&alone, &["neither RANK", "SLURM_PROCID"]);
    let both = ["--ranks-from-env", "--ranks", "2"];
    says(&fails(2, &train("x", &both), folder), &["--ranks-from-env", "--ranks"]);
}

#[test]
fn a_run_whose_rank_is_lost_is_saved() {
    let folder = trained();
    let folder = folder.path();
    let long = ["--ranks", "2", "--set", "train.steps=100000", "--set", "train.save_every=2"];
    let rank_0 = spawned(&train("lost", &long), folder);
    wait_for(&folder.join("lost/checkpoints/step-2"));
    signal(other_rank(&rank_0), "-KILL");
    let (code, said) = ended(rank_0);
    assert_eq!(code, Some(1), "{said}");
    says(&said, &["training stopped; step", "is saved", "the connection to rank 1", "is lost"]);

    // Any rank's user may stop the run, which ends everywhere.
    let listen = [&long[..], &["--listen", "127.0.0.1:0"]].concat();
    let (rank_0, port, said) = waiting(&train("asked", &listen), folder);
    let rank_1 = spawned(&["join", &format!("127.0.0.1:{port}")], folder);
    wait_for(&folder.join("asked/checkpoints/step-2"));
    signal(rank_1.0.id(), "-INT");
    let said = said.join().unwrap();
    assert_eq!(code_of(rank_0), Some(130), "{said}");
    says(&said, &["sar train --resume --out asked --ranks 2 --listen 127.0.0.1:0"]);
    let (code, said) = ended(rank_1);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn what_ranks_cannot_share_is_told_before_a_run_begins() {
    let folder = trained();
    let folder = folder.path();
    let few = ["train", "--config", "small.toml", "--tokenizer", "tok", "--out", "x"];
    let with = |more: &[&'static str]| [&few[..], more].concat();
    let said = fails(1, &with(&["--ranks", "2"]), folder);
    says(&said, &["--set train.batch=1 --set train.accumulate=2", "the same 2 images"]);
    let said = fails(1, &with(&["--ranks", "3"]), folder);
    says(&said, &["--set train.accumulate=3 makes steps of 6 images"]);
    assert!(!folder.join("x").exists());
    // What a run began with cannot be set when it goes on.
    let said = fails(1, &["train", "--resume", "--out", "base", "--ranks", "2"], folder);
    says(&said, &["2 ranks share", "there are 1"]);
    assert!(!said.contains("--set"), "{said}");
    for ranks in ["0", "5000", "9223372036854775809"] {
        says(&fails(2, &with(&["--ranks", ranks]), folder), &["from 1 to 4096"]);
    }
    for address in ["localhost", ":29500", "localhost:0", "localhost:99999"] {
        says(&fails(2, &["join", address], folder), &["node0:29500"]);
    }
    says(&fails(2, &with(&["--listen", "127.0.0.1:0"]), folder), &["--ranks N"]);
    let nowhere = ["--ranks", "2", "--set", "train.accumulate=2", "--listen", "256.0.0.1:1"];
    says(&fails(1, &with(&nowhere), folder), &["256.0.0.1:1", "--listen"]);
    assert!(!folder.join("x").exists());
}

#[test]
fn a_rank_with_other_images_is_an_error_on_both_sides() {
    let folder = trained();
    let folder = folder.path();
    let pictures = folder.join("pictures");
    for (class, count) in [("a", 12), ("b", 12)] {
        fs::create_dir_all(pictures.join(class)).unwrap();
        for i in 0..count {
            let image = image::RgbImage::from_pixel(32, 32, image::Rgb([10 * i as u8; 3]));
            image.save(pictures.join(class).join(format!("{i}.png"))).unwrap();
        }
    }
    let more = ["--data", "pictures", "--ranks", "2", "--listen", "127.0.0.1:0"];
    let (rank_0, port, said) = waiting(&train("own", &more), folder);
    // Rank 0 has opened its images by now.
    fs::remove_file(pictures.join("a/3.png")).unwrap();
    let there = fails(1, &["join", &format!("127.0.0.1:{port}")], folder);
    says(&there, &["not those of rank 0"]);
    let said = said.join().unwrap();
    assert_eq!(code_of(rank_0), Some(1), "{said}");
    says(&said, &["127.0.0.1:", "has failed", "not those of rank 0"]);
    assert!(!folder.join("own").exists());
}

/// Ctrl-C while ranks are waited for, of which one may be about to become ready.
#[test]
fn a_run_may_be_stopped_before_its_ranks_are_there() {
    let folder = trained();
    let folder = folder.path();
    let listen = ["--ranks", "3", "--listen", "127.0.0.1:0"];
    let (rank_0, port, said) = waiting(&train("stopped", &listen), folder);
    let rank_1 = spawned(&["join", &format!("127.0.0.1:{port}")], folder);
    std::thread::sleep(std::time::Duration::from_millis(300));
    signal(rank_0.0.id(), "-INT");
    let said = said.join().unwrap();
    assert_eq!(code_of(rank_0), Some(130), "{said}");
    assert!(!folder.join("stopped").exists());
    let (code, said) = ended(rank_1);
    assert_eq!(code, Some(0), "{said}");
}
