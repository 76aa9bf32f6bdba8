//! Files of a run that somebody has changed, and settings that a file gives.

use super::*;

/// Replaces a part of a file.
fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "no `{from}` in {text}");
    fs::write(file, text.replace(from, to)).unwrap();
}

#[test]
fn a_run_does_not_go_on_by_an_edited_configuration_as_if_it_had_begun_so() {
    let folder = trained();
    let folder = folder.path();
    let config = folder.join("base/config.toml");
    edit(&config, "class_dropout = 0.1", "class_dropout = 0.5");
    let on = ["train", "--resume", "--out", "base"];
    let expected =
        ["base/config.toml was edited", "train.class_dropout=0.1", "it says 0.5", "--init-from"];
    says(&fails(1, &on, folder), &expected);
    let requeue = [&TRAIN[..], &["--out", "base", "--requeue"]].concat();
    says(&fails(1, &requeue, folder), &expected);
    edit(&config, "class_dropout = 0.5", "class_dropout = 0.1");
    // What may change by --set may change in the file.
    edit(&config, "steps = 2\n", "steps = 3\n");
    says(&succeeds(&on, folder), &["train.steps is 3 now and was 2"]);
    assert_eq!(steps(&folder.join("base")).last().unwrap(), "step-3");
    says(&succeeds(&on, folder), &["step 3"]);
    // Flags go before the file, which then says what they said.
    edit(&config, "steps = 3\n", "steps = 9\n");
    succeeds(&[&on[..], &["--set", "train.steps=3"]].concat(), folder);
    says(&fs::read_to_string(&config).unwrap(), &["steps = 3\n"]);
    // A run that an earlier program began is known from now on.
    fs::remove_file(folder.join("base/began.toml")).unwrap();
    succeeds(&on, folder);
    assert_eq!(fs::read(folder.join("base/began.toml")).unwrap(), fs::read(&config).unwrap());
    let tokenizer = folder.join("tok/config.toml");
    edit(&tokenizer, "ch = 8", "ch = 16");
    let on = ["tokenizer", "train", "--resume", "--out", "tok"];
    says(&fails(1, &on, folder), &["tok/config.toml was edited", "tokenizer.ch=8"]);
}

#[test]
fn a_tokenizer_that_was_replaced_is_told() {
    let folder = trained();
    let folder = folder.path();
    let other = ["tokenizer", "train", "--config", "small.toml", "--out", "other", "--seed", "9"];
    succeeds(&other, folder);
    let step = steps(&folder.join("other")).pop().unwrap();
    let kept = folder.join("base/tokenizer.safetensors");
    let own = fs::read(&kept).unwrap();
    fs::copy(folder.join(format!("other/checkpoints/{step}/model.safetensors")), &kept).unwrap();
    let sample = ["sample", "base", "--count", "1", "--out", "s"];
    says(
        &succeeds(&sample, folder),
        &["base/tokenizer.safetensors is not the tokenizer", "has been replaced since"],
    );
    let on = ["train", "--resume", "--out", "base", "--set", "train.steps=3"];
    says(&fails(1, &on, folder), &["is not the tokenizer that the run began with"]);
    // The one that it was trained with may be named, and another is told.
    let named =
        |path: &str| succeeds(&[&sample[..], &["--force", "--tokenizer", path]].concat(), folder);
    assert!(!named("tok").contains("warning"));
    says(&named("other"), &["other is not the tokenizer that the generator was trained with"]);
    fs::write(&kept, own).unwrap();
    says(&named("other"), &["trained with, which is base/tokenizer.safetensors"]);
    assert!(!succeeds(&[&sample[..], &["--force"]].concat(), folder).contains("warning"));
    assert!(!succeeds(&on, folder).contains("warning"));
}

#[test]
fn weights_that_were_not_trained_are_told_where_a_run_starts_from_them() {
    let folder = trained();
    let folder = folder.path();
    let refine = ["refine", "--init-from", "base/checkpoints/step-0", "--out", "new"];
    let said = succeeds(&[&refine[..], &["--set", "train.steps=1"]].concat(), folder);
    says(&said, &["warning: the weights are of step 0, untrained"]);
    assert!(!said.contains("were trained to a learning rate"), "{said}");
}

/// The configuration of a tokenizer's run, of a run that was refined, and of images with classes that have none.
#[test]
fn a_runs_configuration_serves_another_run() {
    let folder = trained();
    let folder = folder.path();
    on_images(folder);
    two_classes(folder, 12);
    let tokenizer = ["tokenizer", "train", "--config", "small.toml", "--out", "two"];
    succeeds(&tokenizer, folder);
    // Its generator's sizes are the data's, also where the file that it was begun with has others.
    let begun = [&tokenizer[..4], &["--out", "two", "--requeue"]].concat();
    let text = fs::read_to_string(folder.join("small.toml")).unwrap();
    fs::write(folder.join("small.toml"), text.replace("[generator]", "[generator]\nclasses = 7"))
        .unwrap();
    succeeds(&begun, folder);
    fs::write(folder.join("small.toml"), text).unwrap();
    let train = ["train", "--config", "two/config.toml", "--tokenizer", "two"];
    let more = ["--set", "train.steps=1", "--set", "train.batch=2"];
    succeeds(&[&train[..], &more, &["--out", "a"]].concat(), folder);
    // Classes without images hold out no other images than before.
    let classes = ["--tokenizer", "two", "--set", "data.num_classes=5", "--out", "b"];
    let said = succeeds(&[&TRAIN[..3], &more, &classes].concat(), folder);
    assert!(!said.contains("was trained where there were"), "{said}");

    let refine = ["refine", "--init-from", "base", "--set", "train.steps=1", "--out", "r"];
    succeeds(&[&refine[..], &["--preset", "release"]].concat(), folder);
    fs::copy(folder.join("r/config.toml"), folder.join("r.toml")).unwrap();
    edit(&folder.join("r.toml"), "preset = \"release\"", "preset = \"paper\"");
    let again = ["refine", "--init-from", "base", "--config", "r.toml"];
    let said = succeeds(&[&again[..], &["--out", "s"]].concat(), folder);
    says(&said, &["note: sar.preset of the file is paper", "sar.extent", "--set sar.preset=paper"]);
    for none in [["--preset", "paper"], ["--set", "sar.preset=paper"]] {
        let out = format!("t{}", none[0]);
        let said = succeeds(&[&again[..], &none, &["--out", &out]].concat(), folder);
        assert!(!said.contains("sar.preset of the file"), "{said}");
    }
    let switched = ["--extent", "all", "--guidance", "0", "--sigma", "1", "--out", "u"];
    let said = succeeds(&[&again[..], &switched].concat(), folder);
    assert!(!said.contains("sar.extent"), "{said}");
}

#[test]
fn a_quiet_run_keeps_its_notes() {
    let folder = trained();
    let folder = folder.path();
    let train = [&TRAIN[..], &["--set", "data.image_side=64", "--out", "new"]].concat();
    let small = "note: images of 64 px have latents of 16×16";
    let said = succeeds(&train, folder);
    says(&said, &[small, "at a learning rate of"]);
    fs::remove_dir_all(folder.join("new")).unwrap();
    let said = succeeds(&[&train[..], &["-q"]].concat(), folder);
    says(&said, &[small]);
    assert!(!said.contains("at a learning rate of"), "{said}");
}
