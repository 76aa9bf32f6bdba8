//! Which images a loader's batches contain, and in which order.

use super::*;
use crate::train::share;
use proptest::prelude::*;

#[test]
fn evaluation_batches_are_images_in_order() {
    let dir = two_classes(4);
    let data = open(&DataConfig { val_fraction: 0.0, ..at(dir.path()) }).unwrap();
    let batch = data.train.batch(6, 5).unwrap();
    assert_eq!((batch.labels_b.as_slice(), batch.first_index), (&[1, 1][..], 6));
    let (image, _) = data.train.image(7).unwrap();
    assert_eq!(batch.values_b[image.len()..], image[..]);
    assert!(data.train.batch(8, 1).is_err());
    let subset = data.train.subset(&[7, 0]).unwrap();
    assert_eq!(subset.labels(), [1, 0]);
    assert_eq!(subset.image(0).unwrap().0, image);
}

#[test]
fn an_epoch_shows_every_image_once() {
    let dir = two_classes(10);
    let mut config = DataConfig { val_fraction: 0.0, flip: false, ..at(dir.path()) };
    config.crop = Crop::Center;
    let data = open(&config).unwrap();
    let mut loader = data.loader(6, 11, 0).unwrap();
    let image = 3 * 64;
    let mut seen = Vec::new();
    while seen.len() < 40 {
        let batch = loader.next_batch().unwrap();
        assert_eq!(batch.first_index as usize, seen.len());
        seen.extend(batch.values_b.chunks(image).map(|c| c.to_vec()));
    }
    let sorted = |mut images: Vec<Vec<f32>>| {
        images.sort_by(|a, b| a[0].total_cmp(&b[0]));
        images
    };
    let (first, second) = (seen[..20].to_vec(), seen[20..40].to_vec());
    assert_ne!(first, second, "epochs differ in order");
    let all = (0..20).map(|i| data.train.image(i).unwrap().0).collect();
    let all = sorted(all);
    assert_eq!(sorted(first), all);
    assert_eq!(sorted(second), all);
}

/// User-defined examples, one of which does not have the length it claims.
struct Uneven;

impl Examples for Uneven {
    fn len(&self) -> usize {
        4
    }

    fn values(&self) -> usize {
        3
    }

    fn example(
        &self,
        index: usize,
        _epoch: u64,
        _draws: &mut sar_math::philox::Stream,
    ) -> Result<(Vec<f32>, u32), DataError> {
        Ok((vec![index as f32; if index == 2 { 5 } else { 3 }], index as u32))
    }
}

#[test]
fn an_example_of_another_length_is_an_error_and_shifts_no_other() {
    let config = LoaderConfig { batch: 1, seed: 3, workers: 2, turns: Turns::ALL };
    let mut loader = Loader::new(Uneven, config).unwrap();
    let seen: Vec<_> = (0..4).map(|_| loader.next_batch()).collect();
    assert_eq!(seen.iter().filter(|batch| batch.is_err()).count(), 1);
    for batch in seen {
        match batch {
            Ok(batch) => assert_eq!(batch.values_b, [batch.labels_b[0] as f32; 3]),
            Err(error) => {
                assert_eq!(error, DataError::Example { index: 2, expected: 3, found: 5 });
            }
        }
    }
}

#[test]
fn a_loader_can_be_dropped_at_any_time() {
    let dir = two_classes(4);
    let data = open(&at(dir.path())).unwrap();
    for taken in 0..3 {
        let (done, waiting) = std::sync::mpsc::channel();
        let data = data.clone();
        std::thread::spawn(move || {
            let mut loader = data.loader(5, 1, 0).unwrap();
            (0..taken).for_each(|_| drop(loader.next_batch().unwrap()));
            drop(loader);
            done.send(()).unwrap();
        });
        assert!(waiting.recv_timeout(Duration::from_secs(20)).is_ok(), "dropping hangs");
    }
    assert!(matches!(data.loader(0, 1, 0), Err(DataError::Config { key: "batch", .. })));
    let none = data.train.subset(&[]).unwrap();
    let config = LoaderConfig { batch: 1, seed: 0, workers: 1, turns: Turns::ALL };
    let none = Cuts { images: none, augment: data.augment.clone() };
    assert!(matches!(Loader::new(none, config), Err(DataError::Config { key: "path", .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Batch n depends only on the data, the seed and n, not on threads or on where a run was
    /// resumed; images do not even depend on the batch size.
    #[test]
    fn batches_are_a_function_of_seed_and_number(
        seed: u64, batch in 1usize..9, workers in 1usize..5, resume in 0u64..12,
        memory: bool, flip: bool, shift in 0usize..3,
    ) {
        let dir = two_classes(3);
        let augment = Augment { side: 8, crop: Crop::Random, flip, shift };
        let config = DataConfig { val_fraction: 0.0, ..at(dir.path()) };
        let set = if memory { open(&config).unwrap().train } else {
            let Source::Files(listing) = locate(&config).unwrap() else { panic!("not files") };
            let item = |(file, label)| dataset::Item { file, label, picture: None };
            Dataset::new(listing.root, listing.train.into_iter().map(item).collect(), &config)
        };
        let one = LoaderConfig { batch, seed, workers: 1, turns: Turns::ALL };
        let cuts = || Cuts { images: set.clone(), augment: augment.clone() };
        let mut alone = Loader::start_at(cuts(), one.clone(), 0).unwrap();
        let all: Vec<Batch> = (0..resume + 3).map(|_| alone.next_batch().unwrap()).collect();
        let mut resumed =
            Loader::start_at(cuts(), LoaderConfig { workers, ..one.clone() }, resume).unwrap();
        for expected in &all[resume as usize..] {
            prop_assert_eq!(&resumed.next_batch().unwrap(), expected);
        }
        prop_assert_eq!(resumed.step(), resume + 3);
        let mut single = Loader::new(cuts(), LoaderConfig { batch: 1, ..one }).unwrap();
        for image in all[0].values_b.chunks(3 * 64) {
            prop_assert_eq!(&single.next_batch().unwrap().values_b[..], image);
        }
    }

    /// Ranks that take turns make the batches of one loader, from wherever they go on.
    #[test]
    fn loaders_in_turn_make_the_batches_of_one(
        of in 1usize..6, ranks in 1usize..5, resume in 0u64..4, seed: u64,
    ) {
        prop_assume!(ranks <= of);
        let dir = two_classes(3);
        let data = open(&at(dir.path())).unwrap();
        let all = LoaderConfig { batch: 2, seed, workers: 1, turns: Turns::ALL };
        let mut one = Loader::start_at(data.cuts(), all.clone(), resume * of as u64).unwrap();
        let shares: Vec<_> = (0..ranks).map(|rank| share(of, rank, ranks)).collect();
        let mut loaders: Vec<Loader> = shares.iter().map(|taken| {
            let first = resume * taken.len() as u64;
            let turns = Turns { of, taken: taken.clone() };
            Loader::start_at(data.cuts(), LoaderConfig { turns, ..all.clone() }, first).unwrap()
        }).collect();
        for _step in 0..2 {
            for (loader, share) in loaders.iter_mut().zip(&shares) {
                for _ in share.clone() {
                    prop_assert_eq!(loader.next_batch().unwrap(), one.next_batch().unwrap());
                }
            }
        }
    }
}
