//! Sets of several archives: which images they contain, of which class and in which part.

use super::archives::{grey, greys, pack};
use super::*;

#[test]
fn images_beside_archives_are_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let shard = dir.path().join("0.tar");
    pack(&shard, &[("a.png", &grey(0)[..]), ("a.cls", b"0"), ("b.png", &grey(9)), ("b.cls", b"1")]);
    fs::write(dir.path().join("loose.png"), grey(1)).unwrap();
    let data = open(&at(dir.path())).unwrap();
    assert!(data.summary.contains("not used: 1 (loose.png)"), "{}", data.summary);
    // Without labels, loose images are data, and an archive among them is reported.
    let unlabelled = DataConfig { unlabelled: true, ..at(dir.path()) };
    let text = open(&unlabelled).unwrap_err().to_string();
    assert!(text.contains("0.tar: not a PNG"), "{text}");
    // Class folders take precedence over an archive next to them.
    for class in ["cat", "dog"] {
        write(&dir.path().join(class).join("a.png"), &red(8, 8), ImageFormat::Png);
    }
    let data = open(&at(dir.path())).unwrap();
    assert_eq!(data.classes, ["cat", "dog"]);
    assert!(data.summary.contains("not used: 2 (0.tar, loose.png)"), "{}", data.summary);
}

#[test]
fn classes_are_those_of_all_archives_together() {
    let dir = tempfile::tempdir().unwrap();
    let image = &grey(0)[..];
    let classes = |name: &str, archives: &[&[&str]]| {
        let root = dir.path().join(name);
        for (number, names) in archives.iter().enumerate() {
            let files: Vec<_> = names.iter().map(|name| (*name, image)).collect();
            pack(&root.join(format!("{number}.tar")), &files);
        }
        let data = open(&DataConfig { allow_one_class: true, ..at(&root) }).unwrap();
        (data.classes.join(" "), data.train.len() + data.validation.len(), data.summary)
    };
    // One archive per class, with folders in them; and classes that are spread over two archives.
    let nested = [&["cat/siamese/1.png", "cat/tabby/1.png"][..], &["dog/poodle/1.png"]];
    assert_eq!(classes("nested", &nested).0, "cat dog");
    let over = [&["cat/1/a.png", "cat/2/b.png"][..], &["cat/3/a.png", "dog/1/b.png"]];
    assert_eq!(classes("over", &over).0, "cat dog");
    // Images next to the class folders are reported as on disk, and notes are ignored.
    let beside =
        [&["images/cat/1.png", "images/dog/1.png"][..], &["images/cover.png", "images/cat/2.png"]];
    let (found, count, summary) = classes("beside", &beside);
    assert_eq!((found.as_str(), count), ("cat dog", 3));
    assert!(summary.contains("not used: 1 (1.tar/images/cover.png)"), "{summary}");
    let notes = [&["images/README.md", "images/cat/1.png", "images/dog/1.png", "README"][..]];
    let (found, count, summary) = classes("notes", &notes);
    assert_eq!((found.as_str(), count, summary.contains("not used")), ("cat dog", 2, false));
    // Names that are not valid text are still distinguished.
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt as _;
        let path = dir.path().join("names.tar");
        let mut archive = tar::Builder::new(fs::File::create(&path).unwrap());
        for name in [&b"caf\xe9/1.png"[..], b"caf\xe8/1.png", b"dog/1.png"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(image.len() as u64);
            let name = Path::new(std::ffi::OsStr::from_bytes(name));
            archive.append_data(&mut header, name, image).unwrap();
        }
        archive.finish().unwrap();
        assert_eq!(open(&at(&path)).unwrap().train.labels(), [0, 1, 2]);
    }
    // A folder named `train` is a part only if it contains classes.
    let vehicles = [&["train/1.png", "plane/1.png"][..], &["val/1.png"]];
    assert_eq!(classes("vehicles", &vehicles).0, "plane train val");
}

#[test]
fn links_repetitions_and_holes_are_as_after_unpacking() {
    let dir = tempfile::tempdir().unwrap();
    let image = &grey(0)[..];
    let path = dir.path().join("a.tar");
    let mut archive = tar::Builder::new(fs::File::create(&path).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    add("a.png", &grey(10));
    add("a.cls", b"0");
    add("b.png", &grey(20));
    add("b.cls", b"1");
    // The later file of a name replaces the earlier one, including its label.
    add("a.png", &grey(30));
    add("a.cls", b"1");
    for (kind, name, target) in [
        (tar::EntryType::Link, "c.png", "b.png"),
        (tar::EntryType::Link, "c.cls", "a.cls"),
        (tar::EntryType::Symlink, "d.png", "/elsewhere/d.png"),
        (tar::EntryType::Link, "e.png", "nowhere.png"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        archive.append_link(&mut header, name, target).unwrap();
    }
    archive.finish().unwrap();
    let config = DataConfig { val_fraction: 0.0, allow_one_class: true, ..at(&path) };
    let data = open(&config).unwrap();
    assert_eq!(greys(&data.train), [(1, 31), (1, 21), (1, 21)]);
    assert!(data.summary.contains("not used: 2 (d.png, e.png)"), "{}", data.summary);
    // A name that leads out of the archive denotes no file in it; a label without an image is
    // reported.
    let mut archive = tar::Builder::new(fs::File::create(dir.path().join("c.tar")).unwrap());
    let stale =
        [("a.png", image), ("a.json", &br#"{"label": 1}"#[..]), ("a.json", b"{}"), ("a.cls", b"0")];
    let lone = [("b.rgb.png", image), ("b.json", br#"{"label": 1}"#), ("../a.png", image)];
    for (name, bytes) in stale.into_iter().chain(lone) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        // The builder refuses names that lead out.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, bytes).unwrap();
    }
    archive.finish().unwrap();
    let data =
        open(&DataConfig { path: Some(dir.path().join("c.tar")), ..config.clone() }).unwrap();
    assert_eq!(data.train.labels(), [0]);
    assert!(data.summary.contains("not used: 2 (a.png, b.json)"), "{}", data.summary);
    // Two concatenated archives are both read.
    let mut both = fs::read(&path).unwrap();
    let other = dir.path().join("b.tar");
    pack(&other, &[("f.png", &grey(40)[..]), ("f.cls", b"0")]);
    both.extend(fs::read(&other).unwrap());
    fs::write(&path, both).unwrap();
    assert_eq!(greys(&open(&config).unwrap().train)[3], (0, 41));
}

#[test]
fn no_part_of_the_data_takes_the_place_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let image = &grey(0)[..];
    let shard = |path: &str| {
        let files = [("a.png", image), ("a.cls", b"0"), ("b.png", image), ("b.cls", b"1")];
        pack(&dir.path().join(path), &files);
    };
    let fails = |root: &str| open(&at(&dir.path().join(root))).unwrap_err().to_string();
    // An archive that was not downloaded completely.
    for (bad, good) in [("a/train-0.tar", "a/val-0.tar"), ("b/val-0.tar", "b/train-0.tar")] {
        shard(good);
        fs::write(dir.path().join(bad), b"").unwrap();
        let root = bad.split('/').next().unwrap();
        assert!(fails(root).contains("cut off after 0 bytes"), "{root}");
    }
    // Parts of which only one is packed, and one part under two names.
    shard("c/train/0.tar");
    write(&dir.path().join("c/val/cat/1.png"), &red(8, 8), ImageFormat::Png);
    assert!(fails("c").contains("val: expected .tar archives"), "{}", fails("c"));
    shard("d/train/0.tar");
    shard("d/training/0.tar");
    assert!(matches!(open(&at(&dir.path().join("d"))), Err(DataError::SeveralParts { .. })));
    // What belongs to neither part is reported.
    for path in ["e/train/0.tar", "e/test/0.tar", "e/more.tar"] {
        shard(path);
    }
    fs::write(dir.path().join("e/train/loose.png"), image).unwrap();
    let data = open(&at(&dir.path().join("e"))).unwrap();
    assert!(
        data.summary.contains("not used: 3 (train/loose.png, test/, more.tar)"),
        "{}",
        data.summary
    );
    for path in ["f/trainval.tar", "f/test.tar"] {
        shard(path);
    }
    let data = open(&at(&dir.path().join("f"))).unwrap();
    assert_eq!(data.train.len() + data.validation.len(), 2);
    // A folder next to shards that holds no image is not a class.
    shard("g/0.tar");
    fs::create_dir(dir.path().join("g/logs")).unwrap();
    let data = open(&at(&dir.path().join("g"))).unwrap();
    assert!(data.summary.contains("not used: 1 (logs/)"), "{}", data.summary);
    // If several words name a part, the last one counts.
    for path in ["i/test-run-train-0.tar", "i/test-run-val-0.tar"] {
        shard(path);
    }
    let data = open(&at(&dir.path().join("i"))).unwrap();
    assert_eq!((data.train.len(), data.validation.len(), data.drawn), (2, 2, false));
    // A part that is packed differently, or missing.
    shard("j/train/0.tar");
    fs::create_dir(dir.path().join("j/val")).unwrap();
    assert!(fails("j").contains("val: expected .tar archives"), "{}", fails("j"));
    shard("j/val/0.tar");
    assert!(open(&at(&dir.path().join("j"))).is_ok());
    fs::write(dir.path().join("j/train/1.tar.gz"), b"").unwrap();
    assert!(fails("j").contains("1.tar.gz: a compressed archive"), "{}", fails("j"));
    for class in ["cat", "dog"] {
        write(&dir.path().join(format!("k/train/{class}/1.png")), &red(8, 8), ImageFormat::Png);
    }
    shard("k/val.tar");
    let data = open(&at(&dir.path().join("k"))).unwrap();
    assert!(data.summary.contains("not used: 1 (val.tar)"), "{}", data.summary);
    // Masks are not images, even if labels are not read.
    pack(&dir.path().join("h.tar"), &[("a.png", image), ("a.mask.png", image), ("a.cls", b"0")]);
    let config = DataConfig { unlabelled: true, ..at(&dir.path().join("h.tar")) };
    assert_eq!(open(&config).unwrap().train.len(), 1);
}
