//! Folders that hold more than they are asked for, or that somebody else is in.

use super::*;

/// What a run's images must share with those of its tokenizer or weights is taken over, unless it is named.
#[test]
fn a_run_takes_over_what_its_images_share_with_the_tokenizers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    two_classes(folder, 20);
    on_images(folder);
    let small = fs::read_to_string(folder.join("small.toml")).unwrap();
    fs::write(folder.join("small.toml"), small.replace("image_side = 32\n", "")).unwrap();
    let other = ["data.image_side=16", "data.val_fraction=0.3", "generator.schedule=1_2_4"];
    let set: Vec<&str> = other.iter().flat_map(|key| ["--set", key]).collect();
    let tokenizer = ["tokenizer", "train", "--config", "small.toml", "--out", "tok"];
    succeeds(&[&tokenizer[..], &set].concat(), folder);
    let said = succeeds(&[&TRAIN[..], &["--out", "base"]].concat(), folder);
    says(&said, &[&format!("taken over from the tokenizer's run: {}", other.join(", "))]);
    assert!(!said.contains("trained on some of these"), "{said}");
    let config = fs::read_to_string(folder.join("base/config.toml")).unwrap();
    says(&config, &["image_side = 16", "val_fraction = 0.3", "schedule = \"1_2_4\""]);
    let from = ["train", "--config", "small.toml", "--init-from", "base", "--out", "more"];
    let said = succeeds(&from, folder);
    let taken = "taken over from the weights' run: data.image_side=16, data.val_fraction=0.3;";
    says(&said, &[taken]);
    let own = ["--set", "data.image_side=32", "--set", "generator.schedule=1_2_4_8"];
    let own = [&TRAIN[..], &own, &["--set", "data.val_fraction=0.1", "--out", "own"]].concat();
    let said = succeeds(&own, folder);
    says(&said, &["trained on images of 16 px, and here they are 32 px", "some of these"]);
    assert!(!said.contains("taken over"), "{said}");
    // Images of a side that is named have a schedule for it, and some of them are held out.
    let all = ["--set", "data.val_fraction=0", "--out", "all"];
    succeeds(&[&tokenizer[..4], &set[..2], &set[4..], &all].concat(), folder);
    let on_all = ["train", "--config", "small.toml", "--tokenizer", "all", "--out", "on-all"];
    let said = succeeds(&[&on_all[..], &["--set", "data.image_side=32"]].concat(), folder);
    says(&said, &["trained on some of these"]);
    assert!(!said.contains("taken over"), "{said}");
}

/// Where the system locks folders.
#[cfg(unix)]
#[test]
fn two_calls_do_not_sample_into_one_folder() {
    let folder = trained();
    let folder = folder.path();
    let sample = ["sample", "base", "--out", "s", "--count", "3", "--quiet"];
    assert_eq!(prints(&sample, folder).trim(), "s/grid.png");
    let held = fs::File::open(folder.join("s")).unwrap();
    held.lock().unwrap();
    let forced = [&sample[..], &["--force"]].concat();
    says(&fails(1, &forced, folder), &["s is in use: another `sar` writes images to it"]);
    drop(held);
    prints(&forced, folder);
    // A run's own folders, at any depth: what lies in a checkpoint goes with it.
    for own in ["base/samples", "base/checkpoints/step-0/mine", "base/tensorboard"] {
        let said = fails(1, &["sample", "base", "--out", own, "--count", "1"], folder);
        assert!(
            said.contains("run") && !folder.join("base/checkpoints/step-0/mine").exists(),
            "{said}"
        );
    }
    fs::write(folder.join("file"), "mine").unwrap();
    let said = fails(1, &["sample", "base", "--out", "file"], folder);
    says(&said, &["file is a file; --out names a folder"]);
}

#[test]
fn a_run_among_its_images_is_none_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_images(folder);
    two_classes(folder, 6);
    for litter in ["images/a/Thumbs.db", "images/desktop.ini"] {
        fs::write(folder.join(litter), "of the system's").unwrap();
    }
    let tokenizer = ["tokenizer", "train", "--config", "small.toml", "--out", "images/tok"];
    says(&succeeds(&tokenizer, folder), &["2 classes"]);
    let train =
        ["train", "--config", "small.toml", "--tokenizer", "images/tok", "--out", "images/a/run"];
    let said = succeeds(&train, folder);
    says(&said, &["2 classes, 10 training"]);
    // Whatever it is called.
    fs::rename(folder.join("images/tok"), folder.join("images/train")).unwrap();
    let on = ["train", "--resume", "--out", "images/a/run", "--set", "train.steps=3"];
    let said = succeeds(&on, folder);
    assert!(!said.contains("warning"), "{said}");
    // What is refused leaves a class a class.
    let refused =
        ["train", "--config", "small.toml", "--tokenizer", "images/train", "--out", "images/b"];
    says(&fails(1, &refused, folder), &["images/b is not empty"]);
    says(&prints(&["data", "check", "images"], folder), &["b                          6"]);
    // What computed is part of bit for bit.
    fs::write(folder.join("images/a/run/computed.txt"), "cuda bf16").unwrap();
    let on = ["train", "--resume", "--out", "images/a/run", "--set", "train.steps=4"];
    says(&succeeds(&on, folder), &["the run began on cuda bf16 and goes on with cpu f32"]);
}

/// Held-out images are drawn from all of a class: with one more, they are others.
#[test]
fn images_that_came_later_are_told_where_a_run_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_images(folder);
    two_classes(folder, 8);
    let said = succeeds(&["tokenizer", "train", "--config", "small.toml", "--out", "tok"], folder);
    says(
        &said,
        &[
            "note: only 2 images are held out, and `sar eval` measures on 4 at least",
            "next: sar train --data ",
            "--tokenizer tok",
        ],
    );
    let same = succeeds(&[&TRAIN[..], &["--out", "same"]].concat(), folder);
    assert!(!same.contains("the tokenizer was trained"), "{same}");
    let more = ["--set", "data.val_fraction=0.4", "--set", "eval.classifier_steps=2"];
    let said = succeeds(&[&TRAIN[..], &["--out", "base"], &more].concat(), folder);
    says(&said, &["the tokenizer was trained where there were 14 training and 2 held-out images"]);
    let eval = ["eval", "base", "--samples", "4", "--seeds", "1", "--guidance", "-0.25,0"];
    let refine = ["refine", "--init-from", "base", "--set", "train.steps=1", "--out"];
    let trained_on = "it was trained on some of these";
    assert!(!succeeds(&eval, folder).contains(trained_on));
    assert!(!succeeds(&[&refine[..], &["before"]].concat(), folder).contains(trained_on));
    // As many, but others; and where the weights only are of that run.
    let others = [&refine[..], &["others", "--set", "data.split_seed=5"]].concat();
    says(&succeeds(&others, folder), &["other images are held out now", trained_on]);
    let again = [&TRAIN[..], &["--init-from", "base", "--out", "again"]].concat();
    says(&succeeds(&again, folder), &[trained_on]);
    two_classes(folder, 9);
    says(&succeeds(&eval, folder), &["10 training and 6 held-out images of 2 classes", trained_on]);
    says(&succeeds(&[&refine[..], &["after"]].concat(), folder), &[trained_on]);
    let fewer = |count| ["eval", "base", "--samples", count, "--seeds", "1", "--guidance", "0"];
    says(&fails(1, &fewer("2"), folder), &["2 samples are too few", "--samples 4"]);
    says(&succeeds(&fewer("4"), folder), &["with 1 more that was there before"]);
    let said = succeeds(&fewer("6"), folder);
    says(
        &said,
        &["another one (2 guidance values of 4 samples by 1 seeds)", "is kept as", "eval-1.json"],
    );
    let points = |file: &str| {
        let text = fs::read(folder.join("base").join(file)).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["points"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!((points("eval.json"), points("eval-1.json")), (1, 2));
    // A pipe is written to, and not read.
    let piped = [&fewer("4")[..], &["--json", "/dev/stdout"]].concat();
    assert_eq!(prints(&piped, folder).matches("\"points\"").count(), 1);
    let said = fails(1, &["eval", "base", "--schedule", "1_2x4_4x8"], folder);
    says(&said, &["samples are 16×32 px, and the images to compare with are square"]);
}

#[test]
fn a_run_of_one_class_is_told_what_can_be_measured() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_images(folder);
    two_classes(folder, 8);
    let one = ["--set", "data.unlabelled=true", "--set", "data.val_fraction=0.4"];
    let tokenizer = ["tokenizer", "train", "--config", "small.toml", "--out", "tok"];
    let said = succeeds(&[&tokenizer[..], &one].concat(), folder);
    says(&said, &["--set data.unlabelled=true --set data.val_fraction=0.4 --tokenizer tok"]);
    succeeds(&[&TRAIN[..], &["--out", "base"], &one].concat(), folder);
    says(&fails(1, &["eval", "base"], folder), &["are of one class", "`sar report`", "`sar score"]);
}

/// What papers call rFID is of all images and of their reconstructions, cut alike.
#[test]
fn reconstructions_of_all_images_are_an_array_beside_them() {
    let folder = trained();
    let folder = folder.path();
    two_classes(folder, 8);
    let eval = ["tokenizer", "eval", "tok", "--data", "images"];
    assert!(!prints(&eval, folder).contains("16 images"));
    let arrays = ["--all", "--npz", "back.npz", "--originals", "given.npz"];
    says(&prints(&[&eval[..], &arrays].concat(), folder), &["16 images of 32 px", "back.npz"]);
    let read = ["given.npz", "back.npz"].map(|name| {
        let mut file = sar_train::data::npz::NpzReader::open(&folder.join(name)).unwrap();
        let mut images = file.images().unwrap();
        assert_eq!((images.count(), images.size()), (16, (32, 32)));
        images.next(16).unwrap()
    });
    assert!(read[0].iter().all(|&byte| byte == 0), "the images are black");
    assert_ne!(read[1], read[0]);
    // Named without --all, those that would be held out, alike.
    let part = ["--npz", "part.npz", "--originals", "held.npz"];
    prints(&[&eval[..], &part].concat(), folder);
    let mut held = sar_train::data::npz::NpzReader::open(&folder.join("held.npz")).unwrap();
    let held = held.images().unwrap().count();
    assert!(held > 0 && held < 16, "{held}");
}

#[test]
fn a_tokenizer_is_used_on_images_without_classes() {
    let folder = trained();
    let folder = folder.path();
    two_classes(folder, 3);
    let picture = |n: usize| format!("images/a/{n}.png");
    fs::write(folder.join("images/a/3.png"), "no image").unwrap();
    fs::create_dir(folder.join("one")).unwrap();
    fs::rename(folder.join("images/b"), folder.join("one/b")).unwrap();
    // Images that are named are taken, whatever their folder is called.
    fs::create_dir_all(folder.join("named/val")).unwrap();
    for n in 0..3 {
        fs::copy(folder.join(picture(n)), folder.join(format!("named/val/{n}.png"))).unwrap();
    }
    for source in ["images/a", "one", "named/val"] {
        let encode = ["tokenizer", "encode", "tok", "--data", source, "--skip-bad-images", "--out"];
        let said = succeeds(&[&encode[..], &["t.safetensors", "--force"]].concat(), folder);
        says(&said, &["3 images of"]);
        assert_eq!(said.contains("1 bad images skipped"), source == "images/a", "{said}");
        for name in ["t.npz", "-", "small.toml"] {
            says(&fails(1, &[&encode[..], &[name, "--force"]].concat(), folder), &[".safetensors"]);
        }
    }
    // A part of loose images is as good, and classes are kept where there are some.
    let split = |part: &str| fs::create_dir_all(folder.join(part)).unwrap();
    for (part, n) in [("split/train", 0), ("split/val", 1)] {
        split(part);
        fs::copy(folder.join(picture(n)), folder.join(part).join("0.png")).unwrap();
    }
    succeeds(&["tokenizer", "encode", "tok", "--data", "split", "--out", "u.safetensors"], folder);
    fs::remove_file(folder.join(picture(3))).unwrap();
    let said = prints(&["data", "check", "one"], folder);
    says(&said, &["only one class", "--set data.allow_one_class=true"]);
    says(&fails(1, &["data", "check", "images/a"], folder), &["--unlabelled"]);
    // Classes one folder further down, as archives are often unpacked.
    for class in ["outer/images/a", "outer/images/b"] {
        split(class);
        fs::copy(folder.join(picture(1)), folder.join(class).join("0.png")).unwrap();
    }
    let hint =
        ["only one class", "it holds the folders a, b", "name outer/images; if one class is meant"];
    says(&prints(&["data", "check", "outer"], folder), &hint);
    let train = ["tokenizer", "train", "--data", "outer", "--out", "t"];
    says(
        &fails(1, &train, folder),
        &["only one class", "it holds the folders a, b", "outer/images"],
    );
}

#[test]
fn packed_images_are_as_good_as_unpacked_ones() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_images(folder);
    two_classes(folder, 6);
    let packed = fs::File::create(folder.join("packed.tar")).unwrap();
    let mut packed = tar::Builder::new(packed);
    packed.append_dir_all("some/images", folder.join("images")).unwrap();
    packed.finish().unwrap();
    let said = prints(&["data", "check", "packed.tar", "--preview", "p.png"], folder);
    says(&said, &["total                     12", "0 bad files"]);
    succeeds(&["tokenizer", "train", "--config", "small.toml", "--out", "tok"], folder);
    let train = |data, out| {
        let said = succeeds(&[&TRAIN[..], &["--data", data, "--out", out]].concat(), folder);
        says(&said, &["2 classes, 10 training and 2 validation images"]);
        fs::read(folder.join(out).join("checkpoints/step-2/model.safetensors")).unwrap()
    };
    assert!(train("packed.tar", "base") == train("images", "unpacked"));
    let encode = ["tokenizer", "encode", "tok", "--data", "packed.tar", "--out", "t.safetensors"];
    says(&succeeds(&encode, folder), &["12 images of"]);
    // Its images are found again.
    succeeds(&["train", "--resume", "--out", "base", "--set", "train.steps=3"], folder);
    // A part of it is missing now: no step is made.
    let bytes = fs::read(folder.join("packed.tar")).unwrap();
    // Two blocks end an archive; the one before is the last image's.
    fs::write(folder.join("packed.tar"), &bytes[..bytes.len() - 2 * 512 - 500]).unwrap();
    let resume = ["train", "--resume", "--out", "base", "--set", "train.steps=4"];
    says(&fails(1, &resume, folder), &["packed.tar: cut off after", "copy or pack it anew"]);
}

#[test]
fn a_class_called_by_a_number_is_told_from_the_class_of_that_number() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    on_images(folder);
    two_classes(folder, 4);
    fs::rename(folder.join("images/a"), folder.join("images/1")).unwrap();
    succeeds(&["tokenizer", "train", "--config", "small.toml", "--out", "tok"], folder);
    succeeds(&[&TRAIN[..], &["--out", "base"]].concat(), folder);
    let sample =
        |classes| ["sample", "base", "--count", "1", "--force", "--out", "s", "--classes", classes];
    let said = succeeds(&sample("1"), folder);
    says(&said, &["note: 1 is the class of that name, number 0; class number 1 is b"]);
    assert!(!succeeds(&sample("b"), folder).contains("note"));
    says(&fails(1, &sample("-1"), folder), &["class -1 does not exist"]);
}
