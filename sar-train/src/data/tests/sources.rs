//! Which files of a folder or a list are data, and in which role.

use super::*;

#[test]
fn folders_that_hold_no_data_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let fail = |config: &DataConfig| open(config).unwrap_err();
    let missing = fail(&at(&dir.path().join("nowhere")));
    assert!(matches!(missing, DataError::Missing { .. }), "{missing}");
    assert!(matches!(fail(&at(dir.path())), DataError::Empty { .. }));
    write(&dir.path().join("loose.png"), &red(8, 8), ImageFormat::Png);
    assert!(matches!(fail(&at(dir.path())), DataError::NoClasses { .. }));
    let loose = DataConfig { unlabelled: true, ..at(dir.path()) };
    let data = open(&loose).unwrap();
    assert_eq!((data.classes, data.train.len()), (vec!["images".to_owned()], 1));

    write(&dir.path().join("cat/a.png"), &red(8, 8), ImageFormat::Png);
    let one = fail(&at(dir.path()));
    assert!(matches!(&one, DataError::OneClass { class, .. } if class == "cat"), "{one}");
    assert!(open(&DataConfig { allow_one_class: true, ..at(dir.path()) }).is_ok());
    for class in ["dog", "eel"] {
        fs::create_dir(dir.path().join(class)).unwrap();
    }
    let empty = fail(&at(dir.path()));
    assert!(
        matches!(&empty, DataError::EmptyClasses { count: 2, named, .. } if named == "dog, eel"),
        "{empty}"
    );
    write(&dir.path().join("elk/a.png"), &red(8, 8), ImageFormat::Png);
    let skipping = open(&DataConfig { skip_bad_images: true, ..at(dir.path()) }).unwrap();
    assert_eq!(skipping.classes, ["cat", "elk"]);
    assert_eq!(skipping.train.labels(), [0, 1]);
    assert_eq!(skipping.empty, ["dog", "eel"].map(|class| dir.path().join(class)));
    fs::remove_dir_all(dir.path().join("elk")).unwrap();
    fs::remove_dir(dir.path().join("eel")).unwrap();
    write(&dir.path().join("dog/deep/er/a.png"), &red(8, 8), ImageFormat::Png);
    let data = open(&at(dir.path())).unwrap();
    assert_eq!(data.classes, ["cat", "dog"]);
    assert!(data.summary.contains("beside them and not used: 1 (loose.png)"), "{}", data.summary);
    let narrow = DataConfig { num_classes: Some(1), ..at(dir.path()) };
    assert!(matches!(fail(&narrow), DataError::LabelOutOfRange { label: 1, classes: 1, .. }));
}

#[test]
fn samples_among_images_are_none_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let sampled = |folder: &str| {
        write(&dir.path().join(folder).join("000000.png"), &red(8, 8), ImageFormat::Png);
        fs::write(dir.path().join(folder).join("samples.json"), "{}").unwrap();
    };
    sampled("drawn");
    let none = open(&at(dir.path())).unwrap_err();
    assert!(matches!(&none, DataError::Empty { .. }) && none.to_string().contains("samples.json"));
    for image in ["cat/a.png", "cat/b.png", "dog/a.png", "dog/b.png"] {
        write(&dir.path().join(image), &red(8, 8), ImageFormat::Png);
    }
    sampled("cat/drawn");
    let data = open(&at(dir.path())).unwrap();
    assert_eq!(data.classes, ["cat", "dog"]);
    assert_eq!(data.train.len() + data.validation.len(), 4);
    // Skipped, but reported.
    assert!(data.summary.contains("not used: 2 (drawn/, cat/drawn/)"), "{}", data.summary);
    let data = open(&DataConfig { unlabelled: true, ..at(dir.path()) }).unwrap();
    assert_eq!(data.train.len() + data.validation.len(), 4);
    assert!(data.summary.contains("not used: 2 "), "{}", data.summary);
}

#[test]
fn train_and_val_folders_share_labels() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["train/cat/a.png", "train/dog/a.png", "train/dog/b.png", "val/dog/c.png"] {
        write(&dir.path().join(name), &red(8, 8), ImageFormat::Png);
    }
    let data = open(&at(dir.path())).unwrap();
    assert_eq!((data.train.labels(), data.validation.labels()), (vec![0, 1, 1], vec![1]));
    write(&dir.path().join("val/emu/c.png"), &red(8, 8), ImageFormat::Png);
    let unknown = open(&at(dir.path())).unwrap_err();
    assert!(matches!(unknown, DataError::UnknownClass { class, .. } if class == "emu"));

    // A class may be named `train`.
    let vehicles = tempfile::tempdir().unwrap();
    for name in ["train/a.png", "plane/a.png", ".hidden/a.png"] {
        write(&vehicles.path().join(name), &red(8, 8), ImageFormat::Png);
    }
    assert_eq!(open(&at(vehicles.path())).unwrap().classes, ["plane", "train"]);
}

#[test]
fn lists_name_files_with_blanks_and_wrong_lines() {
    let dir = two_classes(2);
    let list = dir.path().join("train.txt");
    fs::rename(dir.path().join("cat/000.png"), dir.path().join("cat/my cat.png")).unwrap();
    let text = "\u{feff}# two classes\n\ncat/my cat.png 0\r\n  dog/000.png\t2  \ndog/001.png 2\n";
    fs::write(&list, text).unwrap();
    let config = DataConfig { val_fraction: 0.0, ..at(&list) };
    let data = open(&config).unwrap();
    assert_eq!(data.train.labels(), [0, 2, 2]);
    assert_eq!(data.classes, ["0", "1", "2"]);
    assert_eq!(open(&DataConfig { val_fraction: 0.0, ..at(dir.path()) }).unwrap().train.len(), 3);

    let narrow = open(&DataConfig { num_classes: Some(2), ..config.clone() }).unwrap_err();
    assert!(
        matches!(narrow, DataError::LabelOutOfRange { line: 4, label: 2, classes: 2, .. }),
        "{narrow}"
    );
    for (line, word) in
        [("cat/my.png", "not a whole number"), ("cat.png", "no label"), ("a.png -1", "-1")]
    {
        let line = if line == "cat/my.png" { "cat/my cat.png" } else { line };
        fs::write(&list, format!("dog/000.png 1\n{line}\n")).unwrap();
        let message = open(&config).unwrap_err().to_string();
        assert!(message.contains(word) && message.contains("train.txt:2"), "{message}");
    }
    fs::write(&list, "a.png 99999999999\n").unwrap();
    assert!(matches!(open(&config), Err(DataError::LabelOutOfRange { label: 99999999999, .. })));
    // Not an archive, although it begins like one.
    fs::create_dir(dir.path().join("BZhang")).unwrap();
    fs::copy(dir.path().join("dog/000.png"), dir.path().join("BZhang/0.png")).unwrap();
    fs::write(&list, "BZhang/0.png 0\ndog/000.png 1\n").unwrap();
    assert_eq!(open(&config).unwrap().train.len(), 2);
    fs::write(&list, "# nothing\n").unwrap();
    assert!(matches!(open(&config), Err(DataError::Empty { .. })));
    fs::write(&list, [0xff, 0xfe, 0x00, 0x80]).unwrap();
    assert!(matches!(open(&config), Err(DataError::Io { .. })));

    fs::write(&list, "dog/000.png 0\nmissing.png 1\n").unwrap();
    let message = open(&config).unwrap_err().to_string();
    assert!(message.contains("missing.png: cannot be read"), "{message}");
    fs::write(&list, "dog/000.png 0\ncat/001.png 1\n").unwrap();
    fs::write(dir.path().join("val.txt"), "dog/001.png 1\n").unwrap();
    assert_eq!(open(&config).unwrap().validation.labels(), [1]);
}

#[test]
fn lists_may_name_classes() {
    let dir = two_classes(2);
    let (list, held_out) = (dir.path().join("train.txt"), dir.path().join("val.txt"));
    fs::write(&list, "dog/000.png dog\ncat/000.png Maine-Coon\ncat/001.png Maine-Coon\n").unwrap();
    fs::write(&held_out, "dog/001.png dog\n").unwrap();
    let data = open(&at(&list)).unwrap();
    assert_eq!(data.classes, ["Maine-Coon", "dog"]);
    assert_eq!((data.train.labels(), data.validation.labels()), (vec![1, 0, 0], vec![1]));
    // Classes of which there are no images have numbers.
    let more = open(&DataConfig { num_classes: Some(3), ..at(&list) }).unwrap();
    assert_eq!(more.classes, ["Maine-Coon", "dog", "2"]);
    assert!(open(&DataConfig { num_classes: Some(1), ..at(&list) }).is_err());
    fs::write(&held_out, "dog/001.png bird\n").unwrap();
    let message = open(&at(&list)).unwrap_err().to_string();
    assert!(message.contains("val.txt:1: label \"bird\" is no class of the list"), "{message}");
    // A tab parts names of classes that have blanks.
    fs::write(&held_out, "dog/001.png\tgolden retriever\n").unwrap();
    fs::write(&list, "dog/000.png\tgolden retriever\ncat/000.png\tcat\n").unwrap();
    assert_eq!(open(&at(&list)).unwrap().classes, ["cat", "golden retriever"]);
    // A sheet's columns, as programs write them.
    let table = dir.path().join("table.csv");
    for (text, classes) in [
        ("filename,label\r\ndog/000.png,dog,x\r\ncat/000.png,\"a, b\"\r\n", ["a, b", "dog"]),
        ("\u{feff}\"dog/000.png\";\"say \"\"d\"\"\"\n\"cat/000.png\"; cat\n", ["cat", "say \"d\""]),
        ("# of a camera\n\nfile;label\ndog/000.png;dog;0,5\ncat/000.png;cat\n", ["cat", "dog"]),
        ("dog/000.png dog\ncat/000.png cat\n", ["cat", "dog"]),
        ("dog/000.png,1\ncat/000.png,0\n", ["0", "1"]),
    ] {
        fs::write(&table, text).unwrap();
        let data = open(&DataConfig { val_fraction: 0.0, ..at(&table) }).unwrap();
        assert_eq!(
            (data.classes, data.train.labels()),
            (classes.map(String::from).to_vec(), vec![1, 0])
        );
    }
    fs::write(&table, "file,label\ndog/000.png,\n").unwrap();
    let message = open(&at(&table)).unwrap_err().to_string();
    assert!(message.contains("table.csv:2: no label"), "{message}");
    // Written on Windows.
    fs::remove_file(&held_out).unwrap();
    fs::write(&list, "dog\\000.png 0\r\ncat\\000.png 1\r\n").unwrap();
    let data = open(&DataConfig { val_fraction: 0.0, ..at(&list) }).unwrap();
    assert_eq!(data.train.batch(0, 2).unwrap().labels_b, [0, 1]);
    fs::write(&held_out, "").unwrap();
    // Numbers and names together are a mistake, and paths alone have no labels.
    for lines in [
        "dog/000.png dog\ncat/000.png 1\n",
        "a dog/my dog.png\ncat/my cat.png\n",
        "dog/000.png 0.0\ncat/000.png 10.0\n",
        "dog/000.png 0,\ncat/000.png 1,\n",
    ] {
        fs::write(&list, lines).unwrap();
        let message = open(&at(&list)).unwrap_err().to_string();
        assert!(message.contains("train.txt:1") && message.contains("whole number"), "{message}");
    }
}

#[test]
fn parts_of_the_data_are_known_by_several_names() {
    let dir = tempfile::tempdir().unwrap();
    let put = |path: &str| write(&dir.path().join(path), &red(8, 8), ImageFormat::Png);
    for class in ["cat", "dog"] {
        put(&format!("Training/{class}/a.png"));
        put(&format!("test/{class}/a.png"));
    }
    put("valid/dog/b.png");
    let data = open(&at(dir.path())).unwrap();
    assert_eq!((data.train.len(), data.validation.len()), (2, 1));
    assert_eq!(data.classes, ["cat", "dog"]);
    assert!(data.summary.contains("not used: 1 (test/)"), "{}", data.summary);
    let missing = "1 of the classes without a validation image: cat";
    assert!(data.summary.contains(missing), "{}", data.summary);
    put("validation/dog/b.png");
    let error = open(&at(dir.path())).unwrap_err();
    assert!(
        matches!(&error, DataError::SeveralParts { found, .. } if found == "valid, validation")
    );
    // Images directly in the parts have no class, and `train` is not a class.
    let flat = tempfile::tempdir().unwrap();
    for part in ["train", "val"] {
        write(&flat.path().join(part).join("a.png"), &red(8, 8), ImageFormat::Png);
    }
    assert!(matches!(open(&at(flat.path())), Err(DataError::NoClasses { .. })));
    // The same for the list of validation images.
    let listed = tempfile::tempdir().unwrap();
    for name in ["a.png", "b.png", "c.png"] {
        write(&listed.path().join(name), &red(8, 8), ImageFormat::Png);
    }
    fs::write(listed.path().join("train.txt"), "a.png 0\nb.png 1\n").unwrap();
    fs::write(listed.path().join("valid.txt"), "c.png 1\n").unwrap();
    let data = open(&at(listed.path())).unwrap();
    assert_eq!((data.train.len(), data.validation.len()), (2, 1));
}
