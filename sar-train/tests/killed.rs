//! A run that is killed at any moment loses nothing that it had saved.
//!
//! The test starts itself again as a child that saves without a pause, and kills it.
#![allow(clippy::unwrap_used)]

use sar_train::checkpoint::{Checkpoints, Found, Header, Kind, Resumed, Snapshot};
use sar_train::checkpoint::{Purpose, latest_in};
use sar_train::config::Config;
use sar_train::params::Layout;
use sar_train::run::RunFolder;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const FOLDER: &str = "SAR_TEST_KILLED_FOLDER";

/// Large enough that most kills hit a save.
fn layout() -> Layout {
    let mut layout = Layout::new();
    for i in 0..20 {
        layout.push(format!("blocks.{i}.attn.proj.weight"), &[64, 64]);
    }
    layout
}

fn values(layout: &Layout, step: u64) -> Vec<f32> {
    let mut flat = vec![0.0; layout.len()];
    for i in layout.tensors().iter().flat_map(|t| t.slot.range()) {
        flat[i] = (i as f32).mul_add(0.5, step as f32);
    }
    flat
}

fn save(checkpoints: &Checkpoints, step: u64) {
    let layout = layout();
    let flat = values(&layout, step);
    let snapshot = Snapshot {
        header: &Header::new(Kind::Generator, step, &"none").unwrap(),
        layout: &layout,
        weights: &flat,
        ema: None,
        first_moment: &flat,
        second_moment: &flat,
        state: &step,
    };
    checkpoints.save(&snapshot).unwrap();
}

#[track_caller]
fn assert_whole(found: &Found) {
    let layout = layout();
    let back: Resumed<u64> = Checkpoints::load(found, Kind::Generator, &layout).unwrap();
    let expected = values(&layout, found.step);
    assert!(back.weights == expected && back.second_moment == expected, "step {}", found.step);
    assert_eq!((back.state, back.header.step), (found.step, found.step));
}

/// The child: continues the run and saves until it is killed.
#[test]
#[ignore = "started by the other test"]
fn child_that_saves() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (run, _) = RunFolder::open_for_resume(Path::new(&folder)).unwrap();
    let checkpoints = run.checkpoints(2).unwrap();
    let mut step = checkpoints.latest().unwrap().map_or(0, |found| found.step);
    let mut log = run.log(step).unwrap();
    loop {
        step += 1;
        log.record(step, "train", &serde_json::json!({ "loss": 1.0 })).unwrap();
        save(&checkpoints, step);
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // SIGKILL: the child has no chance to tidy up.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn child(folder: &Path) -> Killed {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_saves", "--ignored"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Killed(child.unwrap())
}

fn latest(run: &Path) -> u64 {
    let found = latest_in(&run.join("checkpoints"), Purpose::Resume).unwrap();
    found.map_or(0, |found| found.step)
}

#[test]
fn killed_at_any_moment_the_last_checkpoint_is_whole() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("run");
    drop(RunFolder::create(&path, &Config::default()).unwrap());
    let mut before = 0;
    for round in 0..12u64 {
        let child = child(&path);
        let started = Instant::now();
        // Each round kills at another moment after the child's first save of it.
        while latest(&path) == before {
            assert!(started.elapsed() < Duration::from_secs(60), "the child saves nothing");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_micros(1700 * round));
        if round == 0 {
            let text = RunFolder::open_for_resume(&path).unwrap_err().to_string();
            let holder = format!("in use by process {}", child.0.id());
            assert!(text.contains(&holder), "{text}");
        }
        drop(child);

        // A reader that comes before the next start finds a whole checkpoint, none of it damaged.
        let folder = path.join("checkpoints");
        let found = latest_in(&folder, Purpose::Resume).unwrap().unwrap();
        assert_eq!(found.warnings, [""; 0]);
        assert_whole(&found);
        assert!(found.step > before, "round {round}");
        before = found.step;
    }
    // The lock died with its holder, and what the kills left behind goes at the next start.
    let (run, _) = RunFolder::open_for_resume(&path).unwrap();
    let checkpoints = run.checkpoints(2).unwrap();
    assert_whole(&checkpoints.latest().unwrap().unwrap());
    let mut names = std::fs::read_dir(run.checkpoints_folder()).unwrap();
    assert!(names.all(|e| e.unwrap().file_name().to_string_lossy().starts_with("step-")));
    run.log(before).unwrap();
    let log = std::fs::read_to_string(path.join("log.jsonl")).unwrap();
    let steps =
        log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64());
    assert!(steps.eq((1..=before).map(Some)), "records are missing or double");
}
