use super::*;
use crate::config::Config;
use std::fs;

#[test]
fn a_folder_belongs_to_one_process_at_a_time() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("run");
    let mut config = Config::default();
    config.train.steps = 77;
    let run = RunFolder::create(&path, &config).unwrap();
    for second in [
        RunFolder::create(&path, &config).unwrap_err(),
        RunFolder::open_for_resume(&path).unwrap_err(),
    ] {
        let text = second.to_string();
        let holder = format!("in use by process {}", std::process::id());
        assert!(text.contains(&holder) && text.contains("another --out"), "{text}");
    }
    drop(run);
    // The run has only begun, like one that was killed.
    drop(RunFolder::create(&path, &config).unwrap());
    fs::write(path.join("notes.txt"), "somebody's").unwrap();
    let text = RunFolder::create(&path, &config).unwrap_err().to_string();
    assert!(text.contains("is not empty") && !text.contains("--resume"), "{text}");
    fs::create_dir(path.join("checkpoints/step-0")).unwrap();
    let text = RunFolder::create(&path, &config).unwrap_err().to_string();
    assert!(text.contains("continue the run there with --resume"), "{text}");
    let (_run, stored) = RunFolder::open_for_resume(&path).unwrap();
    assert_eq!(stored, config);
}

#[test]
fn a_start_that_failed_takes_away_what_it_wrote_and_nothing_else() {
    let parent = tempfile::tempdir().unwrap();
    let config = Config::default();
    let path = parent.path().join("runs/a");
    let begun = |path: &std::path::Path| {
        let run = RunFolder::create(path, &config).unwrap();
        run.write("log.jsonl", b"{\"step\":0,\"kind\":\"eval\"}\n").unwrap();
        run
    };
    begun(&path).discard();
    assert!(!parent.path().join("runs").exists(), "folders made for it are gone");
    // A folder that existed before stays, empty.
    fs::create_dir_all(&path).unwrap();
    begun(&path).discard();
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    for kept in ["notes.txt", "checkpoints/step-0", "samples/mine.png", "tensorboard/notes"] {
        let run = begun(&path);
        fs::create_dir_all(path.join("tensorboard")).unwrap();
        fs::write(path.join(kept), "somebody's").unwrap();
        run.discard();
        assert!(path.join(kept).exists() && path.join("config.toml").exists(), "{kept}");
        fs::remove_dir_all(&path).unwrap();
    }
    // A run that has trained is more than a beginning, even if nothing was saved.
    let run = begun(&path);
    run.write("log.jsonl", b"{\"step\":1,\"kind\":\"train\"}\n").unwrap();
    run.discard();
    assert!(path.join("log.jsonl").exists());
}

#[test]
fn what_is_no_run_folder_is_said_to_be_none() {
    let parent = tempfile::tempdir().unwrap();
    let text = RunFolder::open_for_resume(parent.path()).unwrap_err().to_string();
    assert!(text.contains("no config.toml"), "{text}");
    let file = parent.path().join("file");
    fs::write(&file, "x").unwrap();
    let text = RunFolder::create(&file, &Config::default()).unwrap_err().to_string();
    assert!(text.contains("is a file"), "{text}");
    let text = RunFolder::create(parent.path(), &Config::default()).unwrap_err().to_string();
    assert!(text.contains("is not empty (file is in it)"), "{text}");
}

#[test]
fn a_resumed_log_has_no_duplicates() {
    #[derive(serde::Serialize)]
    struct Values {
        loss: f64,
        scales: [f64; 2],
    }
    let parent = tempfile::tempdir().unwrap();
    let run = RunFolder::create(&parent.path().join("run"), &Config::default()).unwrap();
    let values = |step: u64| Values { loss: 1.0 / step as f64, scales: [f64::NAN, 2.0] };
    let mut log = run.log(0).unwrap();
    for step in 1..=5 {
        log.record(step, "train", &values(step)).unwrap();
    }
    let bad = log.record(6, "train", &3).unwrap_err().to_string();
    assert!(bad.contains("3 is no object"), "{bad}");
    drop(log);
    let path = run.path().join("log.jsonl");
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"step\":6,\"lo");
    fs::write(&path, text).unwrap();

    let mut log = run.log(3).unwrap();
    log.record(4, "eval", &values(4)).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let steps: Vec<u64> = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["kind"], "eval");
    assert_eq!((last["loss"].as_f64(), &last["scales"][0]), (Some(0.25), &serde_json::Value::Null));
}

#[test]
fn events_are_what_tensorboard_reads() {
    let parent = tempfile::tempdir().unwrap();
    let mut board = TensorBoard::open(parent.path(), 40).unwrap();
    board.scalar("AR_loss/Lm", 300, 1.5).unwrap();
    board.image("samples", 300, &image::RgbImage::new(3, 2)).unwrap();
    drop(board);
    TensorBoard::open(parent.path(), 300).unwrap();
    let mut files: Vec<_> =
        fs::read_dir(parent.path()).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 2);
    let bytes = fs::read(&files[0]).unwrap();
    // Each record: length, checksum of the length, that many bytes, checksum of the bytes.
    let mut records = Vec::new();
    let mut rest = &bytes[..];
    while let Some(length) = rest.first_chunk::<8>() {
        let length = u64::from_le_bytes(*length) as usize;
        records.push(&rest[12..12 + length]);
        rest = &rest[12 + length + 4..];
    }
    assert_eq!(records.len(), 4);
    assert!(records[0].ends_with(b"brain.Event:2"));
    // Event.step 41, Event.session_log { status: START }.
    assert_eq!(records[1][9..], [0x10, 41, 0x3a, 2, 0x08, 1]);
    let value = [&[0x0a, 10][..], b"AR_loss/Lm", &[0x15], &1.5f32.to_le_bytes()].concat();
    let event = [&[0x10, 0xac, 2, 0x2a, 19, 0x0a, 17][..], &value].concat();
    assert_eq!(records[2][9..], event[..]);
    assert!(records[3].windows(4).any(|w| w == b"\x89PNG"));
}

#[test]
fn a_few_non_finite_steps_are_skipped_and_many_end_the_run() {
    let mut watch = NonFinite::new(3);
    for step in 0..20 {
        // Two bad steps, then a good one: never three in a row.
        assert_eq!(watch.note(step, step % 3 == 2), Ok(step % 3 != 2));
    }
    assert_eq!(watch.skipped, 14);
    watch.in_a_row = 0;
    assert_eq!(watch.note(20, false), Ok(true));
    assert_eq!(watch.note(21, false), Ok(true));
    let text = watch.note(22, false).unwrap_err().to_string();
    assert!(text.contains("step 22") && text.contains("3 steps in a row"), "{text}");
}

#[test]
fn a_first_signal_only_asks() {
    let interrupt = Interrupt::none();
    let other = interrupt.clone();
    assert!(!interrupt.is_asked());
    other.ask();
    assert!(interrupt.is_asked());
}
