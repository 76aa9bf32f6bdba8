//! Classes by their names, weights for other classes, and runs that go on under other settings.

use super::*;

/// Images of the classes `a` and `b`, a tokenizer `tok` and a generator `two` of them.
fn two_trained() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    on_images(folder.path());
    two_classes(folder.path(), 12);
    succeeds(&["tokenizer", "train", "--config", "small.toml", "--out", "tok"], folder.path());
    let more = ["--set", "data.val_fraction=0.4", "--set", "eval.classifier_steps=2"];
    succeeds(&[&TRAIN[..], &["--out", "two"], &more].concat(), folder.path());
    folder
}

#[test]
fn a_class_that_was_renamed_stops_a_run_and_is_told_elsewhere() {
    let folder = two_trained();
    let folder = folder.path();
    let names = fs::read_to_string(folder.join("two/classes.json")).unwrap();
    assert_eq!(names, r#"["a","b"]"#);
    fs::rename(folder.join("images/a"), folder.join("images/z")).unwrap();
    let on = ["train", "--resume", "--out", "two", "--set", "train.steps=3"];
    let said = fails(1, &on, folder);
    let renamed = "class 0 was `a` and is `b` now, `a` missing, `z` new";
    says(&said, &["other classes", renamed, "--new-classes"]);
    let refine = ["refine", "--init-from", "two", "--out", "refined", "--set", "train.steps=1"];
    says(&succeeds(&refine, folder), &["warning: the images have other classes", "`a` and is `b`"]);
    let eval = ["eval", "two", "--samples", "4", "--guidance", "0", "--seeds", "1"];
    says(&succeeds(&eval, folder), &["warning: the images have other classes"]);
    fs::rename(folder.join("images/z"), folder.join("images/a")).unwrap();
    let said = succeeds(&on, folder);
    says(&said, &["train.steps is 3 now and was 2"]);
    assert!(!said.contains("warning"), "{said}");
    assert_eq!(steps(&folder.join("two")).last().unwrap(), "step-3");
}

#[test]
fn a_run_goes_on_for_longer_and_refuses_what_would_make_it_another() {
    let folder = trained();
    let folder = folder.path();
    let with = |set| ["train", "--resume", "--out", "base", "--set", set];
    says(&fails(1, &with("train.lr=1"), folder), &["--set train.lr=1", "but for train.steps"]);
    // What it has already is no other.
    succeeds(&with("train.batch=2"), folder);
    says(&fails(1, &with("trian.steps=4"), folder), &["did you mean `train`"]);
    let said = fails(1, &with("train.steps=1"), folder);
    says(&said, &["train.steps is 1, but the run has reached step 2"]);
    let said = fails(1, &["refine", "--resume", "--out", "base"], folder);
    says(&said, &["base trains by teacher, and goes on with `sar train --resume`"]);
    succeeds(&with("train.steps=4"), folder);
    says(&fs::read_to_string(folder.join("base/config.toml")).unwrap(), &["\nsteps = 4\n"]);
    assert_eq!(steps(&folder.join("base")).last().unwrap(), "step-4");
    let tokenizer = ["tokenizer", "train", "--resume", "--out", "tok", "--set"];
    let said = fails(1, &[&tokenizer[..], &["tokenizer.ch=4"]].concat(), folder);
    says(&said, &["--set tokenizer.ch=4", "tokenizer_train.steps"]);
    succeeds(&[&tokenizer[..], &["tokenizer_train.steps=2"]].concat(), folder);
    assert_eq!(steps(&folder.join("tok")).last().unwrap(), "step-2");
}

#[test]
fn a_run_goes_on_without_an_image_that_went_bad() {
    let folder = two_trained();
    let folder = folder.path();
    fs::write(folder.join("images/a/0.png"), "no picture").unwrap();
    let on = ["train", "--resume", "--out", "two", "--set", "train.steps=3"];
    says(&fails(1, &on, folder), &["0.png", "--skip-bad-images"]);
    let said = succeeds(&[&on[..], &["--skip-bad-images"]].concat(), folder);
    says(&said, &["1 bad images skipped"]);
}

#[test]
fn weights_serve_other_classes_by_name() {
    let folder = two_trained();
    let folder = folder.path();
    fs::create_dir(folder.join("more")).unwrap();
    for class in ["b", "c", "d"] {
        let from = if class == "b" { "b" } else { "a" };
        fs::create_dir(folder.join("more").join(class)).unwrap();
        for n in 0..12 {
            let (from, to) = (format!("images/{from}/{n}.png"), format!("more/{class}/{n}.png"));
            fs::copy(folder.join(from), folder.join(to)).unwrap();
        }
    }
    let tune = ["train", "--init-from", "two", "--data", "more", "--out", "three"];
    let few = ["--set", "train.steps=1", "--set", "train.batch=2", "--set", "data.image_side=32"];
    let said = fails(1, &[&tune[..], &few].concat(), folder);
    says(&said, &["the data have 3 classes, the generator 2", "--new-classes"]);
    let said = succeeds(&[&tune[..], &few, &["--new-classes"]].concat(), folder);
    says(&said, &["1 of 3 classes keep what the weights know"]);
    let resolved = fs::read_to_string(folder.join("three/config.toml")).unwrap();
    says(&resolved, &["classes = 3"]);
    let sample = ["sample", "three", "--count", "2", "--out", "s", "--classes", "d,0"];
    succeeds(&sample, folder);
    let record = fs::read_to_string(folder.join("s/samples.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["classes"], serde_json::json!(["b", "c", "d"]));
    assert_eq!(record["labels"], serde_json::json!([2, 0]));
    let unknown = ["sample", "three", "--out", "t", "--classes", "e"];
    says(&fails(1, &unknown, folder), &["class e does not exist", "by name: b, c, d"]);
    let needless = ["train", "--tokenizer", "tok", "--data", "more", "--out", "x", "--new-classes"];
    says(&fails(2, &needless, folder), &["--init-from"]);
}

#[test]
fn a_folder_may_be_called_by_a_number() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_images(folder);
    two_classes(folder, 12);
    for (from, to) in [("a", "10"), ("b", "2")] {
        fs::rename(folder.join("images").join(from), folder.join("images").join(to)).unwrap();
    }
    succeeds(&["tokenizer", "train", "--config", "small.toml", "--out", "tok"], folder);
    succeeds(&[&TRAIN[..], &["--out", "two"]].concat(), folder);
    let labels = |asked: &str, out: &str| {
        succeeds(&["sample", "two", "--count", "2", "--classes", asked, "--out", out], folder);
        let record = fs::read_to_string(folder.join(out).join("samples.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&record).unwrap()["labels"].clone()
    };
    assert_eq!(labels("10, 2", "s"), serde_json::json!([0, 1]));
    assert_eq!(labels("0,1", "t"), serde_json::json!([0, 1]));
    let said = fails(1, &["sample", "two", "--classes", "3", "--out", "u"], folder);
    says(&said, &["class 3 does not exist", "by number from 0 or by name: 10, 2"]);
}

#[test]
fn a_name_with_commas_is_one_class() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_images(folder);
    two_classes(folder, 12);
    fs::rename(folder.join("images/a"), folder.join("images/tench, Tinca tinca")).unwrap();
    succeeds(&["tokenizer", "train", "--config", "small.toml", "--out", "tok"], folder);
    succeeds(&[&TRAIN[..], &["--out", "two"]].concat(), folder);
    let asked =
        ["sample", "two", "--count", "3", "--classes", "tench, Tinca tinca,b", "--out", "s"];
    succeeds(&asked, folder);
    let record = fs::read_to_string(folder.join("s/samples.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["labels"], serde_json::json!([1, 0, 1]));
}

/// Weights whose classes have no names are taken to be of the images' classes, and no name is called new.
#[test]
fn weights_without_names_are_not_said_to_be_of_other_classes() {
    let folder = two_trained();
    let folder = folder.path();
    let last = steps(&folder.join("two")).pop().unwrap();
    let there = folder.join("two/checkpoints").join(last).join("model.safetensors");
    let mut bytes = fs::read(there).unwrap();
    fs::write(folder.join("own.safetensors"), &bytes).unwrap();
    // A checkpoint on its own knows the names of its classes.
    let sample = ["sample", "own.safetensors", "--tokenizer", "tok", "--count", "1", "--out", "s"];
    succeeds(&[&sample[..], &["--classes", "b"]].concat(), folder);
    // One of published weights does not.
    let names = br#"classes\":[\"a\",\"b\"]"#;
    let at = bytes.windows(names.len()).position(|w| w == names).unwrap();
    bytes[at] = b'k';
    fs::write(folder.join("g.safetensors"), bytes).unwrap();
    let tune =
        ["train", "--init-from", "g.safetensors", "--config", "small.toml", "--out", "tuned"];
    let said = succeeds(&[&tune[..], &["--tokenizer", "tok"]].concat(), folder);
    says(&said, &["names of the generator's classes were not kept"]);
    assert!(!said.contains("other classes"), "{said}");
    let eval =
        ["eval", "two", "--samples", "5", "--guidance", "0,0", "--seeds", "1", "--json", "-"];
    let output = sar(&eval, folder);
    let notes = String::from_utf8(output.stderr).unwrap();
    says(&notes, &["6 samples are measured in place of 5, the same number of each of 2 classes"]);
    let numbers: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&numbers["settings"]["count"], numbers["points"].as_array().unwrap().len()),
        (&6.into(), 1)
    );
}

#[test]
fn own_samples_take_the_filter_of_the_rollout() {
    let folder = trained();
    let folder = folder.path();
    let student = [&TRAIN[..], &["--mode", "student", "--out", "own", "--set"]].concat();
    succeeds(&[&student[..], &["sar.top_k=3"]].concat(), folder);
    let said = fails(1, &[&student[..], &["sar.sigma=1"]].concat(), folder);
    says(&said, &["--set sar.sigma=1", "this run's mode is student", "sar.top_k and sar.top_p"]);
}

#[test]
fn weights_that_are_handed_on_keep_the_names_of_their_classes() {
    let folder = two_trained();
    let folder = folder.path();
    let last = steps(&folder.join("two")).pop().unwrap();
    let there = folder.join("two/checkpoints").join(last);
    succeeds(&["convert", "model.safetensors", "../../../given.safetensors"], &there);
    succeeds(&["convert", "given.safetensors", "again.safetensors"], folder);
    let sample =
        ["sample", "again.safetensors", "--tokenizer", "tok", "--count", "1", "--out", "s"];
    succeeds(&[&sample[..], &["--classes", "b"]].concat(), folder);
    let record = fs::read_to_string(folder.join("s/samples.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["labels"], serde_json::json!([1]));
    assert_eq!(record["classes"], serde_json::json!(["a", "b"]));
}
