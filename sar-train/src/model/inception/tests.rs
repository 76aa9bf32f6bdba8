//! Compares the network, with channels divided by 16 and weights from a formula, with the published
//! code.
//!
//! `reference.safetensors` was recorded in f64 from pytorch-fid's network (torchvision's with its
//! patches, every convolution narrowed) after torch-fidelity's TensorFlow 1 resize.

use super::*;
use safetensors::SafeTensors;

const NARROWED: usize = 16;
/// Relative to the largest: sums of up to 252 products in f32 through 94 layers (7e-7 was
/// observed).
const ROUNDING: f64 = 1e-5;
/// Relative to the largest probability (8e-7 was observed).
const PROBABILITY: f64 = 1e-5;

/// Numbers in −1..1 by a formula that the recording script repeats in another language.
fn numbers(len: usize, seed: usize) -> impl Iterator<Item = f64> {
    (0..len).map(move |i| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.0 - 1.0)
}

/// A tensor for every name, in the order of the names.
fn tensors() -> BTreeMap<String, RawTensor> {
    let network = Network::new(NARROWED);
    let mut names: Vec<_> = network.published.tensors().iter().collect();
    names.sort_by(|a, b| a.name.cmp(&b.name));
    let of = |(index, tensor): (usize, &crate::params::Tensor)| {
        let name = tensor.name.as_str();
        let fan = tensor.slot.len / tensor.shape[0];
        let (around, by) = match () {
            () if name.ends_with("conv.weight") => (0.0, (6.0 / fan as f64).sqrt()),
            () if name == "fc.weight" => (0.0, 0.02),
            () if name.ends_with("bn.weight") => (1.0, 0.2),
            () if name.ends_with("running_var") => (1.0, 0.5),
            () => (0.0, 0.1),
        };
        let values = numbers(tensor.slot.len, index + 1).map(|v| (around + by * v) as f32);
        let raw = RawTensor { shape: tensor.shape.clone(), values: values.collect() };
        (tensor.name.clone(), raw)
    };
    names.into_iter().enumerate().map(of).collect()
}

fn images(count: usize, height: usize, width: usize) -> Vec<u8> {
    let of = |i: usize| {
        let (y, x, c) = (i / (width * 3) % height, i / 3 % width, i % 3);
        let image = i / (height * width * 3);
        (x * x / 9 + 3 * y * (c + 1) + image * 50 + (i * 7919 + 5 * 104_729) % 37) % 256
    };
    (0..count * height * width * 3).map(|i| of(i) as u8).collect()
}

fn narrowed() -> Inception {
    Inception::of(Path::new("narrowed"), Network::new(NARROWED), &tensors()).unwrap()
}

#[test]
fn features_are_those_of_the_published_code() {
    let recorded = include_bytes!("reference.safetensors");
    let recorded = SafeTensors::deserialize(recorded).unwrap();
    let recorded = |name: String| -> Vec<f64> {
        let data = recorded.tensor(&name).unwrap().data().as_chunks::<4>().0;
        data.iter().map(|v| f64::from(f32::from_le_bytes(*v))).collect()
    };
    let close = |what: &str, found: &[f64], want: &[f64], tolerance: f64| {
        assert_eq!(found.len(), want.len(), "{what}");
        let largest = want.iter().fold(0.0f64, |a, v| a.max(v.abs()));
        for (i, (found, want)) in found.iter().zip(want).enumerate() {
            let off = (found - want).abs();
            assert!(off <= tolerance * largest, "{what}[{i}]: {found}, recorded {want}");
        }
    };
    let inception = narrowed();
    let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    for (name, (count, height, width)) in [("small", (2, 40, 56)), ("large", (1, 320, 300))] {
        let seen = inception.see(&images(count, height, width), height, width).unwrap();
        let of = |what: &str| recorded(format!("{name}.{what}"));
        close("features", &wide(&seen.features), &of("features"), ROUNDING);
        close("spatial", &wide(&seen.spatial), &of("spatial"), ROUNDING);
        let probabilities = inception.probabilities(&seen.features).unwrap();
        close("probabilities", &probabilities, &of("probabilities"), PROBABILITY);
    }
}

#[test]
fn an_image_is_seen_the_same_in_any_batch_and_on_any_number_of_threads() {
    let inception = narrowed();
    let images = images(3, 33, 47);
    let on = |threads: usize, images: &[u8]| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| inception.see(images, 33, 47).unwrap())
    };
    let all = on(2, &images);
    assert_eq!(on(1, &images), all);
    let (features, spatial) = (all.features.len() / 3, all.spatial.len() / 3);
    for (i, image) in images.chunks(33 * 47 * 3).enumerate() {
        let alone = on(1, image);
        assert_eq!(alone.features, all.features[i * features..][..features]);
        assert_eq!(alone.spatial, all.spatial[i * spatial..][..spatial]);
    }
}

#[test]
fn the_published_network_has_its_size() {
    let network = Network::new(1);
    let convolutions =
        network.published.tensors().iter().filter(|t| t.name.ends_with("conv.weight"));
    assert_eq!(convolutions.count(), 94);
    assert_eq!((network.features, network.class_count), (2048, 1008));
    let parameters: usize = network
        .published
        .tensors()
        .iter()
        .filter(|t| !t.name.contains("running_"))
        .map(|t| t.slot.len)
        .sum();
    assert_eq!(parameters, 23_850_960);
}

#[test]
fn other_weights_are_told_apart() {
    let message = |change: &dyn Fn(&mut BTreeMap<String, RawTensor>)| {
        let mut tensors = tensors();
        change(&mut tensors);
        let network = Network::new(NARROWED);
        let path = Path::new("a.pth");
        let checked = check_network(path, &network, &tensors);
        let made = checked.and_then(|()| Inception::of(path, network, &tensors));
        made.map(|_| ()).unwrap_err().to_string()
    };
    let one = RawTensor { shape: vec![1], values: vec![0.0] };
    let aux = message(&|t| _ = t.insert("AuxLogits.fc.bias".into(), one.clone()));
    assert!(aux.contains("torchvision's") && aux.contains(WEIGHTS), "{aux}");
    let thousand = message(&|t| {
        let tensor = t.get_mut("fc.weight").unwrap();
        tensor.shape[0] = 62;
        tensor.values.truncate(62 * 128);
    });
    assert!(thousand.contains("62 outputs"), "{thousand}");
    let generator = message(&|t| *t = BTreeMap::from([("pos_start".to_owned(), one.clone())]));
    assert!(generator.contains("`pos_start`"), "{generator}");
    let missing = message(&|t| _ = t.remove("Mixed_7c.branch1x1.bn.bias"));
    assert!(missing.contains("lacks 1 tensors"), "{missing}");
    let broken = message(&|t| t.get_mut("fc.bias").unwrap().values[3] = f32::NAN);
    assert!(broken.contains("not finite"), "{broken}");
}

#[test]
fn what_is_no_image_is_an_error_and_what_is_no_number_is_not_hidden() {
    let inception = narrowed();
    assert!(inception.see(&[0; 7], 2, 2).is_err());
    assert!(inception.see(&[], 0, 2).is_err());
    assert!(inception.probabilities(&[0.0; 3]).is_err());
    assert!(inception.see(&[], 2, 2).unwrap().features.is_empty());

    let mut broken = narrowed();
    let at = broken.network.folded.get("Conv2d_2a_3x3.bias").unwrap().slot.offset;
    broken.params.as_mut_slice()[at] = f32::NAN;
    let seen = broken.see(&images(1, 20, 20), 20, 20).unwrap();
    assert!(seen.features.iter().all(|v| v.is_nan()));
}
