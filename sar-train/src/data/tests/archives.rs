//! Images in tar archives: as shards, and as packed class folders.

use super::*;
use proptest::prelude::*;

/// Returns a small PNG with its own shade of grey.
pub(super) fn grey(value: u8) -> Vec<u8> {
    let image = image::GrayImage::from_fn(9, 7, |x, y| Luma([value + (x + y) as u8]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Writes an archive with these files in this order.
pub(super) fn pack<B: AsRef<[u8]>>(path: &Path, files: &[(&str, B)]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.as_ref().len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes.as_ref()).unwrap();
    }
    archive.finish().unwrap();
}

/// Returns the labels, and the first value of each image, which is its grey.
fn seen(set: &Dataset) -> Vec<(u32, f32)> {
    let batch = set.batch(0, set.len()).unwrap();
    let size = batch.values_b.len() / batch.labels_b.len();
    batch.labels_b.iter().copied().zip(batch.values_b.iter().step_by(size).copied()).collect()
}

/// Returns the greys of [`grey`] as seen in the corners of an 8 px set: one pixel to the right.
pub(super) fn greys(set: &Dataset) -> Vec<(u32, u8)> {
    let back = |v: f32| ((v + 1.0) * 127.5).round() as u8;
    seen(set).into_iter().map(|(label, value)| (label, back(value))).collect()
}

#[test]
fn packed_class_folders_are_the_same_data() {
    let dir = tempfile::tempdir().unwrap();
    // Files of a folder come before its folders, whatever their names.
    let names = ["train/cat/b.png", "train/cat/a/deep.png", "train/cat/c.png", "train/dog/1.png"];
    let names = [&names[..], &["val/dog/1.png", "val/cat/é.png"]].concat();
    let images: Vec<Vec<u8>> = (0..6).map(|i| grey(i * 20)).collect();
    let folders = dir.path().join("folders");
    for (name, image) in names.iter().zip(&images) {
        let path = folders.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, image).unwrap();
    }
    let expected = open(&at(&folders)).unwrap();
    // Unchanged, in another order, below one common folder or the current one, and among files that
    // systems leave.
    for below in ["", "./", "set/of/images/"] {
        let mut files: Vec<(String, &[u8])> = Vec::new();
        for (name, image) in names.iter().zip(&images).rev() {
            let hidden = Path::new(name).with_file_name("._x.png");
            files.push((format!("{below}{}", hidden.display()), b"of another system"));
            files.push((format!("{below}{name}"), image));
        }
        let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes)).collect();
        let path = dir.path().join("packed.tar");
        pack(&path, &files);
        let found = open(&at(&path)).unwrap();
        assert_eq!((&found.classes, found.drawn), (&expected.classes, false));
        assert_eq!(found.fingerprint(), expected.fingerprint(), "{below:?}");
        for (found, expected) in
            [(&found.train, &expected.train), (&found.validation, &expected.validation)]
        {
            assert_eq!(seen(found), seen(expected), "{below:?}");
        }
        assert!(found.summary.contains("class folders in tar archives"), "{}", found.summary);
        let name = expected.train.path(0).unwrap().strip_prefix(&folders).unwrap();
        assert_eq!(
            found.train.path(0).unwrap(),
            path.join(below.trim_start_matches("./")).join(name)
        );
    }
    // In two archives in a folder, one for each part.
    let parts = dir.path().join("parts");
    for part in ["train", "val"] {
        let prefix = format!("{part}/");
        let of_part =
            names.iter().zip(&images).filter_map(|(n, i)| Some((n.strip_prefix(&prefix)?, i)));
        pack(&parts.join(format!("{part}.tar")), &of_part.collect::<Vec<_>>());
    }
    let found = open(&at(&parts)).unwrap();
    assert_eq!(seen(&found.train), seen(&expected.train));
    assert_eq!(seen(&found.validation), seen(&expected.validation));
    // The validation archive alone is data as well; there is nothing that its name distinguishes it
    // from.
    let alone = open(&DataConfig { val_fraction: 0.0, ..at(&parts.join("val.tar")) }).unwrap();
    assert_eq!((alone.train.len(), alone.validation.len()), (2, 0));
    pack(&parts.join("val.tar"), &[("emu/a.png", grey(0))]);
    let unknown = open(&at(&parts)).unwrap_err();
    assert!(matches!(unknown, DataError::UnknownClass { class, .. } if class == "emu"));
}

#[test]
fn shards_have_their_labels_beside_the_images() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/z.png", "deep/".repeat(40));
    let json = br#"{"label": 1, "width": 9}"#;
    let files: [(&str, &[u8]); 11] = [
        ("b.cls", b"2\n"),
        ("b.png", &grey(10)),
        ("b.txt", b"a caption"),
        ("a.v2.png", &grey(20)),
        ("a.v2.cls", b" 0"),
        // Parts of an example other than its image, and a note that is not a label.
        ("a.mask.png", &grey(99)),
        ("notes.json", b"[]"),
        (&long, &grey(30)),
        (&long.replace("png", "json"), json),
        // If both exist, the .cls file counts.
        ("c.json", json),
        ("c.cls", b"0"),
    ];
    let mut train = files.to_vec();
    let c = grey(40);
    train.push(("c.png", &c));
    // a.mask belongs to the example a: the first dot decides.
    train.push(("a.json", b"{}"));
    let root = dir.path().join("shards");
    pack(&root.join("set-train-0001.tar"), &train);
    pack(&root.join("set-train-0000.tar"), &[("x.png", &grey(50)[..]), ("x.cls", b"1")]);
    pack(&root.join("set-validation-00.tar"), &[("x.cls", &b"2"[..]), ("x.png", &grey(60))]);
    pack(&root.join("set-test-00.tar"), &[("x.cls", &b"2"[..]), ("x.png", &grey(61))]);
    fs::write(root.join("README.md"), "about").unwrap();
    let data = open(&at(&root)).unwrap();
    // A corner lies one pixel to the right of the picture's corner.
    assert_eq!(greys(&data.train), [(1, 51), (2, 11), (0, 21), (1, 31), (0, 41)]);
    assert_eq!(greys(&data.validation), [(2, 61)]);
    assert_eq!(data.classes, ["0", "1", "2"]);
    for part in ["tar shards", "not used: 1 (set-test-00.tar/x.png)", "as the source names it"] {
        assert!(data.summary.contains(part), "{}", data.summary);
    }
    // Folders named after parts, and all of it as one class.
    let parts = dir.path().join("parts");
    fs::create_dir_all(parts.join("train")).unwrap();
    fs::create_dir(parts.join("val")).unwrap();
    for shard in ["set-train-0000.tar", "set-train-0001.tar"] {
        fs::copy(root.join(shard), parts.join("train").join(shard)).unwrap();
    }
    fs::copy(root.join("set-validation-00.tar"), parts.join("val/0.tar")).unwrap();
    let found = open(&at(&parts)).unwrap();
    assert_eq!(seen(&found.train), seen(&data.train));
    assert_eq!(seen(&found.validation), seen(&data.validation));
    let unlabelled = open(&DataConfig { unlabelled: true, ..at(&parts) }).unwrap();
    assert_eq!((unlabelled.train.len(), unlabelled.validation.len()), (5, 1));
    // One shard whose validation is drawn, with more classes than there are images of.
    let one = DataConfig { num_classes: Some(4), ..at(&root.join("set-train-0001.tar")) };
    let one = open(&one).unwrap();
    assert_eq!((one.classes.len(), one.drawn, one.validation.len()), (4, true, 1));
}

#[test]
fn archives_that_cannot_be_read_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shard.tar");
    let said = |files: &[(&str, &[u8])]| {
        pack(&path, files);
        open(&at(&path)).unwrap_err()
    };
    let image = &grey(0)[..];
    let unlabelled = said(&[("a.png", image), ("b.png", image), ("b.cls", b"1")]).to_string();
    assert!(unlabelled.contains("shard.tar/a.png: an image without a label"), "{unlabelled}");
    let word = said(&[("a.png", image), ("a.cls", b"cat")]).to_string();
    assert!(
        word.contains("shard.tar/a.cls: expected the number of a class") && word.contains("cat")
    );
    let far = said(&[("a.png", image), ("a.cls", b"99999999")]);
    assert!(matches!(&far, DataError::LabelOutOfRange { label: 99_999_999, .. }), "{far}");
    let none = said(&[("a.png", image), ("b.png", image)]);
    assert!(matches!(&none, DataError::NoClasses { .. }), "{none}");
    assert!(none.to_string().contains(".cls"), "{none}");
    let notes = said(&[("a.txt", b"none")]);
    assert!(matches!(&notes, DataError::NoClasses { .. }), "{notes}");
    let empty = said(&[]).to_string();
    assert!(empty.contains("shard.tar: no file in this archive"), "{empty}");
    let two = said(&[("a.png", image), ("a.jpg", image), ("a.cls", b"1")]).to_string();
    assert!(two.contains("shard.tar/a.jpg: a second image of one label"), "{two}");
    let lone = said(&[("a.png", image), ("a.cls", b"1"), ("b.left.png", image), ("b.cls", b"0")]);
    assert!(lone.to_string().contains("shard.tar/b.cls: a label without an image"), "{lone}");
    let one = said(&[("cat/a.png", image), ("cat/b.png", image)]);
    assert!(matches!(one, DataError::OneClass { class, .. } if class == "cat"));

    // Every file of a class folder was meant as an image.
    let files = [("cat/a.png", image), ("dog/a.png", image), ("dog/b.png", b"none")];
    let bad = said(&files).to_string();
    assert!(bad.contains("shard.tar/dog/b.png: not a PNG"), "{bad}");
    pack(&path, &files);
    let skip = DataConfig { skip_bad_images: true, val_fraction: 0.0, ..at(&path) };
    assert_eq!(open(&skip).unwrap().train.len(), 2);

    // Truncated within the last image, in the padding of its last block, between two files, within
    // a header, and to nothing.
    pack(&path, &[files[1], files[0]]);
    let whole = fs::read(&path).unwrap();
    let last = whole.len() - 2 * 512;
    let image_ends = last - 512 + image.len() % 512;
    for (bytes, expected) in [
        (image_ends - 3, "cut off after"),
        (image_ends + 3, "cut off after"),
        (last, "cut off after"),
        (1024, "cut off after 1024 bytes"),
        (1100, "damaged"),
        (0, "cut off after 0"),
    ] {
        fs::write(&path, &whole[..bytes]).unwrap();
        let text = open(&at(&path)).unwrap_err().to_string();
        assert!(text.contains(expected), "{bytes} of {}: {text}", whole.len());
    }
    // The archive was complete when it was listed.
    fs::write(&path, &whole).unwrap();
    let Source::Files(listing) = locate(&at(&path)).unwrap() else { panic!("no files") };
    fs::write(&path, &whole[..image_ends - 3]).unwrap();
    let bad: Vec<_> = listing.train.iter().map(|(file, _)| file.decode(1 << 20)).collect();
    assert!(matches!(&bad[0], Err(BadImage::Truncated(text)) if text.contains("ends within it")));
    assert!(bad[1].is_ok());
    // A header that does not match its checksum.
    let mut other = whole.clone();
    other[0] ^= 1;
    fs::write(&path, &other).unwrap();
    assert!(open(&at(&path)).unwrap_err().to_string().contains("checksum"));

    // Compressed archives, alone and in a folder.
    for (name, magic) in [("a.tar.gz", &b"\x1f\x8b\x08\x00"[..]), ("a.zip", b"PK\x03\x04")] {
        let packed = dir.path().join("packed").join(name);
        fs::create_dir_all(packed.parent().unwrap()).unwrap();
        fs::write(&packed, magic).unwrap();
        for path in [packed.as_path(), packed.parent().unwrap()] {
            let text = open(&at(path)).unwrap_err().to_string();
            assert!(text.contains("a compressed archive"), "{text}");
        }
        // Next to other archives it was meant to be used; next to loose images it is a file that is
        // not an image.
        let beside = packed.with_file_name("b.tar");
        pack(&beside, &files[..2]);
        let text = open(&at(packed.parent().unwrap())).unwrap_err().to_string();
        assert!(text.contains("a compressed archive"), "{text}");
        fs::remove_file(beside).unwrap();
        fs::write(packed.with_file_name("c.png"), image).unwrap();
        let loose =
            DataConfig { unlabelled: true, skip_bad_images: true, ..at(packed.parent().unwrap()) };
        assert_eq!(open(&loose).unwrap().skipped.len(), 1);
        fs::remove_dir_all(packed.parent().unwrap()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever bytes an archive contains, the result is images or an error.
    #[test]
    fn damage_is_no_panic(
        changes in proptest::collection::vec((0usize..6000, any::<u8>()), 0..12),
        length in 0usize..9000, labelled: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        let image = &grey(0)[..];
        let label = if labelled { "cat/1.cls" } else { "cat/2.png" };
        let names = ["cat/1.png", label, "dog/3.png", "dog/3.cls"];
        pack(&path, &names.map(|name| (name, if name.ends_with("cls") { &b"1"[..] } else { image })));
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        changes.iter().for_each(|&(at, byte)| bytes[at % end] = byte);
        // Header checksums are corrected, so that the damaged headers are accepted.
        for at in (0..end.saturating_sub(512)).step_by(512).filter(|_| length % 2 == 0) {
            let sum: u32 = (0..512).map(|i| if (148..156).contains(&i) { 32 } else { u32::from(bytes[at + i]) }).sum();
            if bytes[at + 257..at + 262] == *b"ustar" {
                bytes[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        bytes.truncate(length.max(1));
        fs::write(&path, bytes).unwrap();
        for skip_bad_images in [false, true] {
            let _ = open(&DataConfig { skip_bad_images, max_pixels: 1 << 16, ..at(&path) });
        }
    }

    /// All contents of every archive are listed with their labels, wherever the shards were cut.
    #[test]
    fn every_example_is_found(labels in proptest::collection::vec(0u64..5, 2..40), shard in 1usize..12) {
        let dir = tempfile::tempdir().unwrap();
        let pictures: Vec<Vec<u8>> = (0..labels.len()).map(|i| grey(i as u8 * 5)).collect();
        let texts: Vec<String> = labels.iter().map(u64::to_string).collect();
        let named: Vec<(String, String)> =
            (0..labels.len()).map(|i| (format!("{i:04}.png"), format!("{i:04}.cls"))).collect();
        for (number, chunk) in (0..labels.len()).collect::<Vec<_>>().chunks(shard).enumerate() {
            let files: Vec<(&str, &[u8])> = chunk
                .iter()
                .flat_map(|&i| {
                    let (image, label) = &named[i];
                    [(image.as_str(), &pictures[i][..]), (label.as_str(), texts[i].as_bytes())]
                })
                .collect();
            pack(&dir.path().join(format!("{number:03}.tar")), &files);
        }
        let config = DataConfig { val_fraction: 0.0, allow_one_class: true, ..at(dir.path()) };
        let found = greys(&open(&config).unwrap().train);
        let expected: Vec<(u32, u8)> =
            labels.iter().enumerate().map(|(i, &l)| (l as u32, i as u8 * 5 + 1)).collect();
        prop_assert_eq!(found, expected);
    }
}
