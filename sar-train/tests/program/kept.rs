//! What a run keeps, so that it can go on, begin again, and give back the best that it had.

use super::*;

#[test]
fn a_run_can_be_resumed_from_its_start() {
    let folder = trained();
    let folder = folder.path();
    let last = folder.join("base/checkpoints/step-2/model.safetensors");
    let whole = fs::read(&last).unwrap();
    assert_eq!(steps(&folder.join("base")), ["step-0", "step-2"]);
    // As if it had been killed in its first steps.
    fs::remove_dir_all(folder.join("base/checkpoints/step-2")).unwrap();
    let said = succeeds(&["train", "--resume", "--out", "base"], folder);
    says(&said, &["goes on from step 0: nothing was saved after it"]);
    assert!(fs::read(&last).unwrap() == whole, "resumed from the start, it differs");
    let said = succeeds(&["train", "--resume", "--out", "base"], folder);
    says(&said, &["goes on from step 2\n", "nothing left to do"]);
    let said = succeeds(&["train", "--resume", "--out", "base", "--quiet"], folder);
    assert!(!said.contains("goes on from"), "{said}");
    let said = succeeds(&["tokenizer", "train", "--resume", "--out", "tok"], folder);
    says(&said, &["goes on from step 1\n"]);
}

/// 24 images are soon learnt by heart: what the model was best at on others is not lost.
#[test]
fn the_checkpoint_of_the_lowest_held_out_loss_stays() {
    let folder = trained();
    let folder = folder.path();
    let few = ["data.limit=24", "data.shift=0", "train.class_dropout=0", "generator.width=64"];
    let often = ["train.save_every=10", "train.eval_every=10", "train.keep=1", "train.lr=1e-2"];
    let long = ["train.steps=90", "train.batch=8", "train.warmup=0", "train.log_every=100"];
    let set = [few, often, long].concat().into_iter().flat_map(|set| ["--set", set]);
    let set: Vec<&str> = set.collect();
    let said = succeeds(&[&TRAIN[..], &["--out", "few"], &set].concat(), folder);
    let log = fs::read_to_string(folder.join("few/log.jsonl")).unwrap();
    let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let loss = |record: &serde_json::Value| record["heldout_loss"].as_f64();
    let evaluated: Vec<_> = records.filter(|record| record["kind"] == "eval").collect();
    let lowest =
        evaluated.iter().min_by(|a, b| loss(a).unwrap().total_cmp(&loss(b).unwrap())).unwrap();
    let lowest = format!("step-{}", lowest["step"]);
    assert!(lowest != "step-0" && lowest != "step-90", "{log}");
    assert_eq!(steps(&folder.join("few")), [lowest.as_str(), "step-90"]);
    assert!(!said.contains("what the run started from"), "{said}");
    says(&said, &["was lowest at step", &format!("few/checkpoints/{lowest}")]);
    succeeds(&["report", "few"], folder);
    let page = fs::read_to_string(folder.join("few/report.html")).unwrap();
    says(&page, &["Lowest held-out loss: few "]);
    // A run that goes on keeps it, too.
    let on = ["train", "--resume", "--out", "few", "--set", "train.steps=100"];
    succeeds(&on, folder);
    assert_eq!(steps(&folder.join("few")), ["step-100", lowest.as_str()]);
}

/// A run that was stopped while it measured a step makes up for that, whether or not the step was its last.
#[test]
fn a_held_out_loss_that_was_stopped_is_measured_when_the_run_goes_on() {
    let folder = trained();
    let folder = folder.path();
    let often = ["--set", "train.eval_every=1", "--set", "train.steps=3", "--out", "often"];
    let every = ["--set", "train.save_every=1", "--set", "train.keep=9"];
    succeeds(&[&TRAIN[..], &often, &every].concat(), folder);
    let log = folder.join("often/log.jsonl");
    let losses = || {
        let text = fs::read_to_string(&log).unwrap();
        let records = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let losses = records.filter(|r| r["kind"] == "eval");
        losses.map(|r| (r["step"].as_u64(), r["heldout_loss"].as_f64())).collect::<Vec<_>>()
    };
    let (whole, last) = (losses(), folder.join("often/checkpoints/step-3"));
    assert_eq!(whole.len(), 4);
    for stopped in [2, 3] {
        let text = fs::read_to_string(&log).unwrap();
        let of = |line: &&str| {
            !(line.contains("\"eval\"") && line.contains(&format!("\"step\":{stopped},")))
        };
        let without: Vec<&str> = text.lines().filter(of).collect();
        assert_eq!(without.len() + 1, text.lines().count(), "{text}");
        fs::write(&log, without.join("\n") + "\n").unwrap();
        if stopped == 2 {
            fs::remove_dir_all(&last).unwrap();
        }
        succeeds(&["train", "--resume", "--out", "often"], folder);
        assert_eq!(losses(), whole, "stopped at step {stopped}");
    }
}

/// A start that was killed before its first checkpoint leaves nothing to go on with: the next one takes its place.
#[test]
fn what_only_began_stands_in_no_ones_way() {
    let folder = trained();
    let folder = folder.path();
    let again = [&TRAIN[..], &["--out", "killed"]].concat();
    succeeds(&again, folder);
    fs::remove_dir_all(folder.join("killed/checkpoints")).unwrap();
    fs::create_dir(folder.join("killed/checkpoints")).unwrap();
    fs::write(folder.join("killed/log.jsonl"), "").unwrap();
    let said = fails(1, &["train", "--resume", "--out", "killed"], folder);
    says(&said, &["no checkpoint yet", "--requeue"]);
    succeeds(&[&again[..], &["--requeue"]].concat(), folder);
    assert_eq!(steps(&folder.join("killed")), ["step-0", "step-2"]);
    // Killed while it wrote its first checkpoint, and while it kept its tokenizer.
    let begun = |log: &str| {
        fs::remove_dir_all(folder.join("killed/checkpoints")).unwrap();
        fs::create_dir_all(folder.join("killed/checkpoints/.step-0.tmp")).unwrap();
        fs::write(folder.join("killed/.sar-Ab12Cd.tmp"), "half").unwrap();
        fs::write(folder.join("killed/log.jsonl"), log).unwrap();
    };
    begun("{\"step\":0,\"kind\":\"eval\"}\n");
    succeeds(&[&again[..], &["--requeue"]].concat(), folder);
    // A run that has trained is no beginning, wherever its checkpoints have gone.
    begun("{\"step\":0,\"kind\":\"eval\"}\n{\"step\":1,\"kind\":\"train\"}\n");
    says(&fails(1, &again, folder), &["is not empty"]);
    assert!(folder.join("killed/log.jsonl").exists());
    // Nor is one whose checkpoints cannot be looked at.
    #[cfg(unix)]
    {
        fs::remove_dir_all(folder.join("killed/checkpoints")).unwrap();
        fs::write(folder.join("killed/log.jsonl"), "").unwrap();
        let link = folder.join("killed/checkpoints");
        std::os::unix::fs::symlink(folder.join("not-mounted"), &link).unwrap();
        let said = fails(1, &[&again[..], &["--requeue"]].concat(), folder);
        says(&said, &["cannot look for checkpoints"]);
        says(&fails(1, &again, folder), &["is not empty"]);
        assert!(folder.join("killed/config.toml").exists());
        fs::remove_file(link).unwrap();
        fs::create_dir(folder.join("killed/checkpoints")).unwrap();
    }
    // Somebody's own files are not taken for that.
    fs::remove_dir_all(folder.join("killed/checkpoints")).unwrap();
    fs::write(folder.join("killed/notes.txt"), "mine").unwrap();
    says(&fails(1, &again, folder), &["is not empty"]);
    assert!(folder.join("killed/notes.txt").exists());
}

/// A run keeps the tokenizer that it was trained with, and serves as that where one is asked for.
#[test]
fn the_run_of_a_generator_stands_for_its_tokenizer() {
    let folder = trained();
    let folder = folder.path();
    let train = ["train", "--config", "small.toml", "--tokenizer", "base", "--out", "other"];
    succeeds(&train, folder);
    let kept = |run: &str| fs::read(folder.join(run).join("tokenizer.safetensors")).unwrap();
    assert_eq!(kept("other"), kept("base"));
    succeeds(&["tokenizer", "eval", "other"], folder);
}

/// A tokenizer is measured while it trains, and one that goes on has the same curve.
#[test]
fn a_tokenizer_is_measured_while_it_trains() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("small.toml"), SMALL).unwrap();
    let train = ["tokenizer", "train", "--config", "small.toml", "--set"];
    let train = [&train[..], &["tokenizer_train.eval_every=2", "--set"]].concat();
    succeeds(&[&train[..], &["tokenizer_train.steps=5", "--out", "one"]].concat(), folder);
    succeeds(&[&train[..], &["tokenizer_train.steps=2", "--out", "two"]].concat(), folder);
    let measured = |run: &str| {
        let log = fs::read_to_string(folder.join(run).join("log.jsonl")).unwrap();
        let records = log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let kept = records.filter(|record| record["kind"] == "eval");
        kept.map(|record| (record["step"].as_u64().unwrap(), record["psnr"].clone()))
            .collect::<Vec<_>>()
    };
    let pictures = |run: &str| {
        let files = fs::read_dir(folder.join(run).join("samples")).unwrap();
        let mut names: Vec<_> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let steps = |run| measured(run).iter().map(|(step, _)| *step).collect::<Vec<_>>();
    assert_eq!((steps("one"), steps("two")), (vec![0, 2, 4, 5], vec![0, 2]));
    assert_eq!(pictures("two"), ["reconstructions-000000.png", "reconstructions.png"]);
    let on = ["tokenizer", "train", "--resume", "--out", "two", "--set", "tokenizer_train.steps=5"];
    succeeds(&on, folder);
    assert_eq!(measured("two"), measured("one"));
    let all = ["-000000", "-000002", "-000004", ""].map(|of| format!("reconstructions{of}.png"));
    assert_eq!((&pictures("one")[..], &pictures("two")[..]), (&all[..], &all[..]));
    // A picture that cannot be written costs no step.
    succeeds(&[&train[..], &["tokenizer_train.steps=1", "--out", "three"]].concat(), folder);
    fs::remove_dir_all(folder.join("three/samples")).unwrap();
    fs::write(folder.join("three/samples"), "").unwrap();
    let on = ["tokenizer", "train", "--resume", "--out", "three", "--set"];
    let on = [&on[..], &["tokenizer_train.steps=5"]].concat();
    says(&fails(1, &on, folder), &["step 2 is saved"]);
    fs::remove_file(folder.join("three/samples")).unwrap();
    succeeds(&on, folder);
    assert_eq!(
        (steps("three"), &measured("three")[2..]),
        (vec![0, 1, 2, 4, 5], &measured("one")[1..])
    );
    let psnr = |(_, psnr): &(u64, serde_json::Value)| psnr.as_array().unwrap().len();
    assert!(measured("one").iter().all(|record| psnr(record) == 4), "a grid of the schedule each");
}

/// Whatever the clock says, the weights are the same; it says alone which of them are kept.
#[test]
fn checkpoints_may_be_due_by_the_clock() {
    let folder = trained();
    let folder = folder.path();
    let every = ["--set", "train.save_every=0", "--set", "train.save_minutes=1e-9"];
    let three = ["--set", "train.steps=3", "--set", "train.keep=9", "--out", "often"];
    succeeds(&[&TRAIN[..], &every, &three].concat(), folder);
    assert_eq!(steps(&folder.join("often")), ["step-0", "step-1", "step-2", "step-3"]);
    let seldom = ["--set", "train.save_every=0", "--set", "train.save_minutes=600"];
    let three = ["--set", "train.steps=3", "--set", "train.keep=9", "--out", "seldom"];
    succeeds(&[&TRAIN[..], &seldom, &three].concat(), folder);
    assert_eq!(steps(&folder.join("seldom")), ["step-0", "step-3"]);
    let last = |run| fs::read(folder.join(run).join("checkpoints/step-3/model.safetensors"));
    assert!(last("often").unwrap() == last("seldom").unwrap());
    let tokenizer = ["tokenizer", "train", "--config", "small.toml", "--out", "t"];
    let two = ["--set", "tokenizer_train.steps=2"];
    succeeds(&[&tokenizer[..], &every, &two].concat(), folder);
    assert_eq!(steps(&folder.join("t")), ["step-0", "step-1", "step-2"]);
    let said =
        fails(1, &[&TRAIN[..], &["--out", "n", "--set", "train.save_minutes=-1"]].concat(), folder);
    says(&said, &["train.save_minutes is -1, expected a number of at least 0"]);
}

#[test]
fn skipped_steps_do_not_push_out_good_checkpoints() {
    let folder = trained();
    let folder = folder.path();
    let wild = ["--set", "train.lr=1e30", "--set", "train.clip=0", "--set", "train.lr_start=1"];
    let often = ["--set", "train.steps=20", "--set", "train.save_every=1", "--set", "train.keep=1"];
    let said = fails(1, &[&TRAIN[..], &["--out", "new"], &wild, &often].concat(), folder);
    says(&said, &["not finite 5 steps in a row", "tighten clip", "--init-from"]);
    says(&said, &["the gradient of ", " other tensors of ", "is not finite; step skipped"]);
    // The first step is finite, and throws the weights where no further one is.
    assert_eq!(steps(&folder.join("new")), ["step-1"]);
    // The log says how many they were, though none of these steps was due in it.
    let log = fs::read_to_string(folder.join("new/log.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!((&last["kind"], &last["step"]), (&"train".into(), &6.into()));
    assert_eq!((&last["skipped"], &last["grad_norm"]), (&5.into(), &serde_json::Value::Null));
}
