//! Latents in files.

use super::*;
use sar_math::philox::{Purpose, Stream};

const SIZES: Sizes = Sizes { views: 2, train: 3, validation: 2, latent: [2, 1, 3] };
/// Rounding error of 11-bit significands, for values below 2.
const HALF: f32 = 1.0 / 1024.0;

fn origin() -> Origin {
    let augment = Augment { side: 12, crop: Crop::Random, flip: true, shift: 1 };
    Origin {
        tokenizer: "t".into(),
        images: "i".into(),
        augment,
        seed: 4,
        computed: "cpu f32".into(),
    }
}

/// Value `i` of row `row`.
fn value(row: usize, i: usize) -> f32 {
    (row as f32 + i as f32 / 7.0) / 5.0 - 0.9
}

const REFUSE: Earlier = Earlier { go_on: false, replace: false };
const GO_ON: Earlier = Earlier { go_on: true, replace: false };
const REPLACE: Earlier = Earlier { go_on: false, replace: true };

/// Labels of three training images and two held-out ones, and of each row.
const LABELS: [u32; 5] = [5, 6, 7, 8, 9];
const ROW_LABELS: [u32; 8] = [5, 6, 7, 5, 6, 7, 8, 9];

fn writer(
    path: &Path,
    origin: &Origin,
    precision: Precision,
    earlier: Earlier,
) -> Result<Option<LatentsWriter>, DataError> {
    LatentsWriter::open(path, origin, SIZES, precision, LABELS.to_vec(), earlier)
}

fn push(writer: &mut LatentsWriter, rows: std::ops::Range<usize>) {
    let labels = &ROW_LABELS[rows.clone()];
    let values: Vec<f32> = rows.flat_map(|row| (0..6).map(move |i| value(row, i))).collect();
    writer.push(&values, labels).unwrap();
}

/// In place of whatever is there and was begun.
fn written_as(path: &Path, origin: &Origin) {
    let beside = tempfile::tempdir().unwrap();
    let file = beside.path().join("l");
    let mut writer = writer(&file, origin, Precision::F32, REFUSE).unwrap().unwrap();
    for rows in [0..3, 3..6, 6..8] {
        push(&mut writer, rows);
    }
    writer.rows.finish().unwrap();
    fs::copy(file, path).unwrap();
}

fn written(path: &Path, precision: Precision) {
    let mut writer = writer(path, &origin(), precision, REPLACE).unwrap().unwrap();
    for rows in [0..1, 1..3, 3..6, 6..8] {
        push(&mut writer, rows);
    }
    writer.rows.finish().unwrap();
}

#[test]
fn what_was_written_is_read_view_by_view() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l.safetensors");
    for (precision, tolerance) in [(Precision::F32, 0.0), (Precision::F16, HALF)] {
        written(&path, precision);
        let latents = Latents::open(&path).unwrap();
        assert_eq!((latents.sizes(), latents.origin()), (SIZES, &origin()));
        assert_eq!((Examples::len(&latents), latents.values()), (3, 6));
        let is = |found: &[f32], row: usize| {
            assert_eq!(found.len(), 6);
            let near = |(i, v): (usize, &f32)| (v - value(row, i)).abs() <= tolerance;
            assert!(found.iter().enumerate().all(near), "row {row}: {found:?}");
        };
        let mut draws = Stream::new(0, Purpose::Augment, 0);
        for (epoch, index, row) in
            [(0, 0, 0), (0, 2, 2), (1, 0, 3), (1, 2, 5), (2, 1, 1), (7, 1, 4)]
        {
            let (found, label) = latents.example(index, epoch, &mut draws).unwrap();
            assert_eq!(label, 5 + index as u32);
            is(&found, row);
        }
        assert!(matches!(latents.example(3, 0, &mut draws), Err(DataError::OutOfBounds { .. })));
        (0..2).for_each(|i| is(&latents.validation(i).unwrap(), 6 + i));
        assert_eq!(latents.validation_labels(), [8, 9]);
        assert!(matches!(latents.validation(2), Err(DataError::OutOfBounds { .. })));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn a_file_without_all_of_it_gets_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l.safetensors");
    let open = || writer(&path, &origin(), Precision::F32, REFUSE).unwrap().unwrap();
    let shape = |result| assert!(matches!(result, Err(DataError::Shape { .. })), "{result:?}");
    let mut writer = open();
    push(&mut writer, 0..3);
    push(&mut writer, 3..6);
    shape(writer.push(&[0.0; 18], &[0; 3]));
    shape(writer.push(&[0.0; 7], &[0]));
    shape(writer.push(&[0.0; 12], &[0; 3]));
    shape(writer.rows.finish());
    assert!(!path.exists());
    let labels = LatentsWriter::open(&path, &origin(), SIZES, Precision::F32, vec![0; 4], REPLACE);
    shape(labels.map(drop));
    fs::remove_file(dir.path().join("l.safetensors.partial")).unwrap();
    drop(open());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// However an interruption cuts the file: inside the header, the labels or a row, or after any row.
#[test]
fn a_file_is_gone_on_with_after_an_interruption_at_any_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (path, partial) =
        (dir.path().join("l.safetensors"), dir.path().join("l.safetensors.partial"));
    written(&path, Precision::F16);
    let whole = fs::read(&path).unwrap();
    let first_row = whole.len() - 8 * 12;
    fs::remove_file(&path).unwrap();
    for cut in 0..whole.len() {
        fs::write(&partial, &whole[..cut]).unwrap();
        let open = |earlier| writer(&path, &origin(), Precision::F16, earlier);
        let expected = cut.saturating_sub(first_row) / 12;
        if expected > 0 {
            let said = open(REFUSE).map(drop).unwrap_err().to_string();
            assert!(said.contains(".partial") && said.contains("--resume"), "{said}");
            assert_eq!(fs::read(&partial).unwrap(), whole[..cut], "it has been left alone");
        }
        let mut on = open(GO_ON).unwrap().unwrap();
        assert_eq!(on.rows.done(), expected, "cut at {cut}");
        // Rows of an unfinished piece are made again.
        let again = expected - expected.min(1);
        on.rows.cut(again).unwrap();
        (again..8).for_each(|row| push(&mut on, row..row + 1));
        on.rows.finish().unwrap();
        assert!(fs::read(&path).unwrap() == whole && !partial.exists(), "cut at {cut}");
        assert!(open(GO_ON).unwrap().is_none(), "nothing is left to do");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn only_rows_of_the_same_file_are_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (path, partial) =
        (dir.path().join("l.safetensors"), dir.path().join("l.safetensors.partial"));
    let said = |origin: &Origin, precision| {
        writer(&path, origin, precision, GO_ON).map(drop).unwrap_err().to_string()
    };
    let mut begun = writer(&path, &origin(), Precision::F32, REFUSE).unwrap().unwrap();
    push(&mut begun, 0..1);
    assert!(said(&origin(), Precision::F32).contains("another `sar` writes it"));
    drop(begun);
    let kept = fs::read(&partial).unwrap();
    let tokenizer = Origin { tokenizer: "u".into(), ..origin() };
    let seed = Origin { seed: 5, ..origin() };
    for (other, precision, expected) in [
        (&tokenizer, Precision::F32, "another tokenizer"),
        (&seed, Precision::F32, "another --seed"),
        (&origin(), Precision::F16, "--half"),
    ] {
        let said = said(other, precision);
        assert!(said.contains(expected) && said.contains("--force"), "{said}");
    }
    assert_eq!(fs::read(&partial).unwrap(), kept);
    // A complete file of something else is not gone on with either, and stays.
    fs::rename(&partial, dir.path().join("aside")).unwrap();
    for other in [&b"of a user"[..], &[0; 4000]] {
        fs::write(&path, other).unwrap();
        assert!(said(&origin(), Precision::F32).contains("choose another --out"));
        assert_eq!(fs::read(&path).unwrap(), other);
    }
    assert!(!partial.exists());
    written(&path, Precision::F32);
    assert!(said(&tokenizer, Precision::F32).contains("another tokenizer"));
    // What is begun to replace it is gone on with, if that is asked for.
    fs::write(&partial, &kept).unwrap();
    let over = Earlier { go_on: true, replace: true };
    let on = writer(&path, &origin(), Precision::F32, GO_ON).unwrap();
    assert!(on.is_none(), "the complete file is this one");
    // Such as images that have changed under their names.
    let on = writer(&path, &origin(), Precision::F32, over).unwrap().unwrap();
    assert_eq!(on.rows.done(), 1, "it was begun anew");
    drop(on);
    written_as(&path, &tokenizer);
    assert!(said(&origin(), Precision::F32).contains("--resume"));
    let mut on = writer(&path, &origin(), Precision::F32, over).unwrap().unwrap();
    assert_eq!(on.rows.done(), 1);
    for rows in [1..3, 3..6, 6..8] {
        push(&mut on, rows);
    }
    on.rows.finish().unwrap();
    assert_eq!(Latents::open(&path).unwrap().origin(), &origin());
    // An empty file is no file.
    fs::write(&path, "").unwrap();
    fs::write(&partial, &kept).unwrap();
    assert_eq!(writer(&path, &origin(), Precision::F32, GO_ON).unwrap().unwrap().rows.done(), 1);
    let there = |path: &Path| {
        writer(path, &origin(), Precision::F32, REFUSE).map(drop).unwrap_err().to_string()
    };
    assert!(there(&path).contains(".partial"));
    written_as(&path, &origin());
    assert!(there(&path).contains("it exists") && partial.exists());
    // One that was begun is replaced if asked, and so is the complete one once the other is.
    fs::write(&partial, &kept).unwrap();
    let mut anew = writer(&path, &tokenizer, Precision::F32, REPLACE).unwrap().unwrap();
    assert_eq!(anew.rows.done(), 0);
    for rows in [0..3, 3..6, 6..8] {
        push(&mut anew, rows);
    }
    anew.rows.finish().unwrap();
    assert_eq!(Latents::open(&path).unwrap().origin(), &tokenizer);
}

/// Where an image cannot be read, the next one stands in its place, with its own label.
#[test]
fn a_label_is_that_of_the_image_that_was_encoded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l.safetensors");
    let open = |earlier| writer(&path, &origin(), Precision::F32, earlier).unwrap().unwrap();
    let mut first = open(REFUSE);
    first.push(&[0.0; 12], &[5, 7]).unwrap();
    drop(first);
    let mut on = open(GO_ON);
    on.push(&[0.5; 6], &[7]).unwrap();
    push(&mut on, 3..6);
    on.push(&[0.5; 12], &[8, 8]).unwrap();
    on.rows.finish().unwrap();
    let latents = Latents::open(&path).unwrap();
    let mut draws = Stream::new(0, Purpose::Augment, 0);
    let labels = [0, 1, 2].map(|i| latents.example(i, 0, &mut draws).unwrap().1);
    assert_eq!((labels, latents.validation_labels()), ([5, 6, 7], &[8, 8][..]));
    assert_eq!(latents.training(2, 0).unwrap(), [0.5; 6]);
}

#[test]
fn each_difference_from_a_run_is_told() {
    let dir = two_classes(4);
    let data = open(&DataConfig { val_fraction: 0.25, ..at(dir.path()) }).unwrap();
    let path = dir.path().join("l.safetensors");
    let sizes = Sizes { views: 1, train: 6, validation: 2, latent: [2, 1, 3] };
    let written = |label: u32| {
        let labels = vec![0, 0, 0, 1, 1, 1, 0, label];
        let (origin, earlier) = (origin(), REPLACE);
        let writer = LatentsWriter::open(&path, &origin, sizes, Precision::F32, labels, earlier);
        let mut writer = writer.unwrap().unwrap();
        writer.push(&[0.0; 36], &[0, 0, 0, 1, 1, 1]).unwrap();
        writer.push(&[0.0; 12], &[0, label]).unwrap();
        writer.rows.finish().unwrap();
        Latents::open(&path).unwrap()
    };
    let latents = written(1);
    latents.check(&Origin { seed: 9, ..origin() }, &data, sizes.latent).unwrap();
    let refused = |latents: &Latents, run: &Origin, latent: [usize; 3], expected: &str| {
        let said = latents.check(run, &data, latent).unwrap_err().to_string();
        assert!(said.contains(expected) && said.contains("l.safetensors"), "{said}");
    };
    let tokenizer = Origin { tokenizer: "u".into(), ..origin() };
    let images = Origin { images: "j".into(), ..origin() };
    let augment = Origin { augment: Augment { shift: 0, ..origin().augment }, ..origin() };
    for (run, expected) in
        [(tokenizer, "another tokenizer"), (images, "other images"), (augment, "shift=0")]
    {
        refused(&latents, &run, sizes.latent, expected);
    }
    refused(&latents, &origin(), [2, 1, 4], "not those of the images");
    refused(&written(2), &origin(), sizes.latent, "not those of the images");
    let more = two_classes(8);
    let more = open(&DataConfig { val_fraction: 0.25, ..at(more.path()) }).unwrap();
    assert!(latents.check(&origin(), &more, sizes.latent).is_err());
}

#[test]
fn a_fingerprint_is_of_names_labels_and_what_is_held_out() {
    let (dir, twin) = (two_classes(6), two_classes(6));
    let of = |config: &DataConfig| open(config).unwrap().fingerprint();
    let own = of(&at(dir.path()));
    assert_eq!(own, of(&at(twin.path())), "wherever they lie");
    assert_ne!(own, of(&DataConfig { split_seed: 1, ..at(dir.path()) }));
    fs::rename(twin.path().join("cat/000.png"), twin.path().join("cat/x.png")).unwrap();
    assert_ne!(own, of(&at(twin.path())));
    // A list names the same files, wherever it lies,
    let lines: String = (0..12)
        .map(|i| format!("{}/{:03}.png {}\n", ["cat", "dog"][i / 6], i % 6, i / 6))
        .collect();
    let listed = [dir.path(), twin.path()].map(|folder| {
        fs::rename(folder.join("cat/x.png"), folder.join("cat/000.png")).ok();
        fs::write(folder.join("list.txt"), &lines).unwrap();
        of(&at(&folder.join("list.txt")))
    });
    assert_eq!(listed[0], listed[1]);
    // also by absolute paths.
    let whole: String =
        lines.lines().map(|line| format!("{}/{line}\n", dir.path().display())).collect();
    fs::write(dir.path().join("list.txt"), whole).unwrap();
    assert_eq!(of(&at(&dir.path().join("list.txt"))), listed[0]);
}

#[test]
fn views_are_what_the_epochs_of_a_run_see() {
    const SEED: u64 = 5;
    let dir = two_classes(4);
    let data = open(&DataConfig { val_fraction: 0.0, ..at(dir.path()) }).unwrap();
    let mut loader = data.loader(8, SEED, 0).unwrap();
    let sorted = |batch: &Batch| {
        let mut rows: Vec<Vec<u32>> = batch
            .values_b
            .chunks(3 * 64)
            .map(|r| r.iter().map(|v| v.to_bits()).collect())
            .collect();
        rows.sort();
        rows
    };
    for epoch in 0..3 {
        let view = View::new(&data, SEED, epoch);
        let batch = view.batch(0..8).unwrap();
        assert_eq!(batch.labels_b, data.train.labels());
        assert_eq!(view.batch(3..5).unwrap().values_b, batch.values_b[3 * 192..5 * 192]);
        assert_eq!(sorted(&batch), sorted(&loader.next_batch().unwrap()), "epoch {epoch}");
    }
}
