//! Folders of samples: gone on with, and made in parts.

use super::*;
use std::ffi::OsString;

/// The pictures of a folder, by name.
fn pictures(folder: &Path) -> Vec<(OsString, Vec<u8>)> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let pictures = files.filter(|path| path.extension().is_some_and(|kind| kind == "png"));
    let named = pictures.map(|path| (path.file_name().unwrap().to_owned(), path));
    let mut all: Vec<_> = named.map(|(name, path)| (name, fs::read(path).unwrap())).collect();
    all.sort();
    all
}

/// Its record would make all images of the folder samples, which are no data.
#[test]
fn samples_are_not_put_beside_images_of_the_user() {
    let folder = trained();
    let folder = folder.path();
    two_classes(folder, 4);
    fs::rename(folder.join("images/a/0.png"), folder.join("images/a/mine.png")).unwrap();
    (1..4).for_each(|n| fs::remove_file(folder.join(format!("images/a/{n}.png"))).unwrap());
    let said = fails(1, &["sample", "base", "--out", "images/a", "--count", "1"], folder);
    says(&said, &["(mine.png)", "choose another --out"]);
    assert_eq!(fs::read_dir(folder.join("images/a")).unwrap().count(), 1);
    // Other files are in nobody's way.
    fs::create_dir(folder.join("s")).unwrap();
    fs::write(folder.join("s/notes.txt"), "mine").unwrap();
    succeeds(&["sample", "base", "--out", "s", "--count", "1"], folder);
}

#[test]
fn samples_go_on_after_an_interruption_as_in_one_call() {
    let folder = trained();
    let folder = folder.path();
    fn sample<'f>(flags: &[&'f str]) -> Vec<&'f str> {
        [&["sample", "base", "--classes", "3,A"][..], flags].concat()
    }
    let said = succeeds(&sample(&["--out", "one", "--count", "11", "--npz", "one.npz"]), folder);
    says(&said, &["base: weights of step 2"]);
    let untrained = ["sample", "base/checkpoints/step-0", "--out", "zero", "--count", "1", "-q"];
    says(&succeeds(&untrained, folder), &["warning: the weights are of step 0, untrained"]);
    let of = |name: &str| pictures(&folder.join(name));
    // More of them, in other batches.
    succeeds(&sample(&["--out", "s", "--count", "4", "--batch", "3"]), folder);
    let more = ["--out", "s", "--count", "11", "--resume", "--npz", "s.npz"];
    succeeds(&sample(&more), folder);
    assert!(of("s") == of("one"), "images or grid differ");
    let bytes = ["one.npz", "s.npz"].map(|name| fs::read(folder.join(name)).unwrap());
    assert!(bytes[0] == bytes[1], "the arrays differ");
    // Killed, with an image half written.
    for gone in 7..11 {
        fs::remove_file(folder.join(format!("s/{gone:06}.png"))).unwrap();
    }
    fs::write(folder.join("s/000006.png"), &of("one")[6].1[..60]).unwrap();
    says(&fails(1, &sample(&["--out", "s", "--count", "9"]), folder), &["s holds 7 images"]);
    succeeds(&sample(&["--out", "s", "--count", "11", "--resume"]), folder);
    assert!(of("s") == of("one"), "images or grid differ after a kill");
    succeeds(&sample(&["--out", "new", "--count", "11", "--resume"]), folder);
    assert!(of("new") == of("one"), "nothing was there to go on with");
    let other = ["tokenizer", "train", "--config", "small.toml", "--seed", "9", "--out", "other"];
    succeeds(&other, folder);
    // What is written as it was by default is the same.
    let same =
        ["--out", "s", "--count", "11", "--resume", "--schedule", "1_2_4_8", "--npz", "s.npz"];
    says(&succeeds(&sample(&same), folder), &["all 11 images were there"]);
    // Killed before the array was in its place.
    fs::remove_file(folder.join("s.npz")).unwrap();
    succeeds(&sample(&same), folder);
    assert!(fs::read(folder.join("s.npz")).unwrap() == bytes[1], "the array differs");
    for (flags, expected) in [
        (&["--count", "11", "--guidance", "3"][..], "settings.guidance was 1.0 and is 3.0 now"),
        (&["--count", "11", "--top-k", "3"], "settings.top_k was 900 and is 3 now"),
        (&["--count", "5"], "they go up to number 10, and --count is 5"),
        (&["--count", "11", "--tokenizer", "other"], "the tokenizer has other weights now"),
        (
            &["--count", "11", "--schedule", "1_2_4"],
            "schedule was \"1_2_4_8\" and is \"1_2_4\" now",
        ),
    ] {
        let said = fails(1, &sample(&[&["--out", "s", "--resume"], flags].concat()), folder);
        says(&said, &[expected]);
    }
    let other = ["sample", "base", "--classes", "3,B", "--out", "s", "--count", "11", "--resume"];
    says(&fails(1, &other, folder), &["image 1 is of another class"]);
    assert!(of("s") == of("one"));
    fails(2, &sample(&["--out", "s", "--resume", "--force"]), folder);
    succeeds(&[&TRAIN[..], &["--out", "again", "--seed", "5"]].concat(), folder);
    let again = ["sample", "again", "--classes", "3,A", "--out", "s", "--count", "11", "--resume"];
    says(&fails(1, &again, folder), &["the generator has other weights now"]);
    // An error behind a gap leaves what is there with its record.
    fs::remove_file(folder.join("s/000003.png")).unwrap();
    fs::remove_file(folder.join("s/000005.png")).unwrap();
    fs::create_dir(folder.join("s/000005.png")).unwrap();
    let gap = ["--out", "s", "--count", "11", "--resume", "--batch", "1"];
    says(&fails(1, &sample(&gap), folder), &["000005.png"]);
    fs::remove_dir(folder.join("s/000005.png")).unwrap();
    succeeds(&sample(&gap), folder);
    assert!(of("s") == of("one"), "images or grid differ after an error");
    // An array that the images of the folder were not written to is nobody's to replace.
    fs::write(folder.join("mine.npz"), "mine").unwrap();
    let mine = ["--out", "s", "--count", "11", "--resume", "--npz", "mine.npz"];
    says(
        &fails(1, &sample(&mine), folder),
        &["mine.npz exists; choose another name, or remove it"],
    );
    let edit =
        ["edit", "base", "--classes", "3", "--image", "one/000001.png", "--keep-scales", "1"];
    let edit = [&edit[..], &["--out", "s", "--resume"]].concat();
    says(&fails(1, &edit, folder), &["s holds other images: they are samples, no edits"]);
    for own in ["base", "base/samples"] {
        says(&fails(1, &sample(&["--out", own]), folder), &["is a run's own folder"]);
    }
}

#[test]
fn parts_of_the_samples_are_made_by_several_calls_at_once() {
    let folder = trained();
    let folder = folder.path();
    fn sample<'f>(flags: &[&'f str]) -> Vec<&'f str> {
        [&["sample", "base", "--classes", "3,A", "--count", "20"][..], flags].concat()
    }
    let of = |name: &str| pictures(&folder.join(name));
    succeeds(&sample(&["--out", "one", "--npz", "one.npz"]), folder);
    // The first calls find no folder, and one of them says what all are of.
    let part = |part| sample(&["--out", "s", "--batch", "2", "--part", part]);
    let start = |arguments: Vec<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sar"));
        command.args(arguments).current_dir(folder).spawn().unwrap()
    };
    let at_once = ["1/4", "2/4", "4/4"].map(|i| start(part(i)));
    at_once.into_iter().for_each(|mut call| assert!(call.wait().unwrap().success()));
    // The grid is of all.
    let names = |name| of(name).into_iter().map(|(name, _)| name.into_string().unwrap());
    let numbers = |name| names(name).filter_map(|name| name.strip_suffix(".png")?.parse().ok());
    assert_eq!(numbers("s").collect::<Vec<u32>>(), (0..10).chain(15..20).collect::<Vec<u32>>());
    assert!(!names("s").any(|name| name == "grid.png"), "a part has no grid");
    says(&fails(1, &sample(&["--out", "s"]), folder), &["s holds 15 images", "--resume"]);
    let other = ["--out", "s", "--part", "3/4", "--top-k", "3"];
    says(&fails(1, &sample(&other), folder), &["settings.top_k was 900 and is 3 now"]);
    let fewer = ["sample", "base", "--classes", "3,A", "--out", "s", "--part", "3/4", "--count"];
    let said = fails(1, &[&fewer[..], &["12"]].concat(), folder);
    says(&said, &["they go up to number 19, and --count is 12", "remove it"]);
    for wrong in ["0/4", "5/4", "4", "1/0", "-1/4"] {
        let wrong = format!("--part={wrong}");
        says(&fails(2, &sample(&["--out", "s", &wrong]), folder), &["1/8 to 8/8"]);
    }
    for flag in [&["--force"][..], &["--npz", "s.npz"]] {
        fails(2, &sample(&[&["--out", "s", "--part", "3/4"], flag].concat()), folder);
    }
    // A part takes up what it left.
    fs::remove_file(folder.join("s/000019.png")).unwrap();
    says(&succeeds(&part("4/4"), folder), &["sampling: 1 images drawn, 5 in all"]);
    says(&succeeds(&part("4/4"), folder), &["all 5 images were there"]);
    // A call for all of them that was stopped says how far it got.
    let record = folder.join("s/samples.json");
    let whole = fs::read_to_string(&record).unwrap();
    let mut said: serde_json::Value = serde_json::from_str(&whole).unwrap();
    said["labels"].as_array_mut().unwrap().truncate(12);
    fs::write(&record, said.to_string()).unwrap();
    fs::remove_file(folder.join("s/000019.png")).unwrap();
    for n in 15..19 {
        fs::remove_file(folder.join(format!("s/{n:06}.png"))).unwrap();
    }
    succeeds(&part("4/4"), folder);
    assert_eq!(fs::read_to_string(&record).unwrap(), whole);
    // All together; of what is there, the images of the strip alone are drawn again.
    let late = folder.join("s/000019.png");
    let made = || fs::metadata(&late).unwrap().modified().unwrap();
    let before = made();
    let said =
        succeeds(&sample(&["--out", "s", "--batch", "5", "--resume", "--npz", "s.npz"]), folder);
    says(&said, &["sampling: 15 images drawn, 20 in all"]);
    assert_eq!(made(), before);
    assert!(of("s") == of("one"), "images or grid differ");
    let bytes = ["one.npz", "s.npz"].map(|name| fs::read(folder.join(name)).unwrap());
    assert!(bytes[0] == bytes[1], "the arrays differ");
    // After a few of them, whose strip has fewer rows.
    let few = ["sample", "base", "--classes", "3,A", "--count", "3", "--out", "t"];
    succeeds(&few, folder);
    for part in ["1/2", "2/2"] {
        succeeds(&sample(&["--out", "t", "--part", part]), folder);
    }
    succeeds(&sample(&["--out", "t", "--resume"]), folder);
    assert!(of("t") == of("one"), "images, grid or strip differ");
    // A record that leads nowhere is told, and is no reason to wait for ever.
    #[cfg(unix)]
    {
        fs::create_dir(folder.join("u")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.join("u/samples.json")).unwrap();
        let said = fails(1, &sample(&["--out", "u", "--part", "1/2"]), folder);
        says(&said, &["samples.json cannot be read back"]);
    }
}
