//! Latents in files.

use super::*;
use sar_math::philox::{Purpose, Stream};

const SIZES: Sizes = Sizes { views: 2, train: 3, validation: 2, latent: [2, 1, 3] };
/// Rounding error of 11-bit significands, for values below 2.
const HALF: f32 = 1.0 / 1024.0;

fn origin() -> Origin {
    let augment = Augment { side: 12, crop: Crop::Random, flip: true, shift: 1 };
    Origin { tokenizer: "t".into(), images: "i".into(), augment, seed: 4 }
}

/// Value `i` of row `row`.
fn value(row: usize, i: usize) -> f32 {
    (row as f32 + i as f32 / 7.0) / 5.0 - 0.9
}

fn written(path: &Path, precision: Precision) {
    let mut writer = LatentsWriter::create(path, &origin(), SIZES, precision).unwrap();
    for rows in [0..1, 1..4, 4..8] {
        let values: Vec<f32> = rows.flat_map(|row| (0..6).map(move |i| value(row, i))).collect();
        writer.push(&values).unwrap();
    }
    writer.finish(&[5, 6, 7], &[8, 9]).unwrap();
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
    let create = || LatentsWriter::create(&path, &origin(), SIZES, Precision::F32).unwrap();
    let mut writer = create();
    writer.push(&[0.0; 42]).unwrap();
    assert!(matches!(writer.push(&[0.0; 7]), Err(DataError::Shape { .. })));
    assert!(matches!(writer.finish(&[0; 3], &[0; 2]), Err(DataError::Shape { .. })));
    for (train, validation) in [(2, 2), (3, 1)] {
        let mut writer = create();
        writer.push(&[0.0; 48]).unwrap();
        let finished = writer.finish(&vec![0; train], &vec![0; validation]);
        assert!(matches!(finished, Err(DataError::Shape { .. })));
    }
    drop(create());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn each_difference_from_a_run_is_told() {
    let dir = two_classes(4);
    let data = open(&DataConfig { val_fraction: 0.25, ..at(dir.path()) }).unwrap();
    let path = dir.path().join("l.safetensors");
    let sizes = Sizes { views: 1, train: 6, validation: 2, latent: [2, 1, 3] };
    let written = |label: u32| {
        let mut writer = LatentsWriter::create(&path, &origin(), sizes, Precision::F32).unwrap();
        writer.push(&[0.0; 48]).unwrap();
        writer.finish(&[0, 0, 0, 1, 1, 1], &[0, label]).unwrap();
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
