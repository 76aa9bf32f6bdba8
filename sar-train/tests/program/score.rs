//! Images measured by what papers give.

use super::*;
use sar_train::data::grid::{Images, save_each};
use sar_train::data::npz::{NpzReader, NpzWriter};
use sar_train::eval::Sight;
use sar_train::metrics::Gaussian;
use sar_train::model::inception::Inception;
use serde_json::Value;
use std::io::Write as _;

/// Of numbers that were recorded from the published network, narrowed, in f64.
const RELATIVE: f64 = 1e-4;

/// Side of the images.
const SIDE: usize = 24;

/// Images by formula, planes of values.
fn images(count: usize, seed: usize) -> Vec<f32> {
    let pixel = |i: usize| {
        let (y, x, c) = (i / (SIDE * 3) % SIDE, i / 3 % SIDE, i % 3);
        let k = i / (SIDE * SIDE * 3);
        let noise = (i * 7919 + seed * 104_729) % 37;
        (x * x * (k % 5 + 1) / 9 + (3 + seed) * y * (c + 1) + k * 50 + noise) % 256
    };
    let plane = SIDE * SIDE;
    let value = |i: usize| {
        let (image, c, at) = (i / (3 * plane), i / plane % 3, i % plane);
        pixel((image * plane + at) * 3 + c) as f32 / 127.5 - 1.0
    };
    (0..count * 3 * plane).map(value).collect()
}

/// `samples.npz` of 14 images, `reference.npz` of 12 others and the weights of a network.
fn sets(folder: &Path) {
    for (name, count, seed) in [("samples", 14, 1), ("reference", 12, 2)] {
        let path = folder.join(format!("{name}.npz"));
        let mut file = NpzWriter::create(&path, count, (SIDE, SIDE)).unwrap();
        file.write(Images::square(&images(count, seed), SIDE)).unwrap();
        file.finish().unwrap();
    }
    fs::write(folder.join("inception.pth"), include_bytes!("inception.pth")).unwrap();
}

const WEIGHTS: [&str; 2] = ["--inception", "inception.pth"];

fn scores(folder: &Path, sets: &[&str]) -> Value {
    succeeds(&[&["score"], sets, &WEIGHTS, &["--json", "scores.json", "--force"]].concat(), folder);
    serde_json::from_str(&fs::read_to_string(folder.join("scores.json")).unwrap()).unwrap()
}

fn close(found: &Value, want: f64) {
    let found = found.as_f64().unwrap();
    assert!((found - want).abs() <= RELATIVE * want, "{found}, expected {want}");
}

#[test]
fn scores_are_those_of_the_published_formulas() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sets(folder);
    let of_arrays = scores(folder, &["samples.npz", "--reference", "reference.npz"]);
    let found = &of_arrays["scores"];
    close(&found["inception_score"], 1.072108922785177);
    close(&found["fid"], 6950.542884460789);
    close(&found["sfid"], 782662.1521300888);
    close(&found["precision"], 1.0);
    close(&found["recall"], 0.3333333333333333);
    assert_eq!(of_arrays["reference"]["count"], 12);
    let warnings = of_arrays["warnings"].to_string();
    says(
        &warnings,
        &["no published numbers", "14 samples", "12 samples for 128 feature dimensions"],
    );

    // The same images as files.
    let files = folder.join("files");
    fs::create_dir(&files).unwrap();
    save_each(&files, Images::square(&images(12, 2), SIDE), 0).unwrap();
    let of_files = scores(folder, &["samples.npz", "--reference", "files"]);
    // A part of a folder's images is first what others are held out of: in another order.
    let same = |of: &Value| {
        for measure in ["fid", "sfid", "precision", "recall"] {
            close(&of["scores"][measure], found[measure].as_f64().unwrap());
        }
    };
    same(&of_files);
    // Listed, and in an archive without labels.
    let list: String = (0..12).map(|k| format!("{k:06}.png {}\n", k % 2)).collect();
    fs::write(files.join("train.txt"), list).unwrap();
    same(&scores(folder, &["samples.npz", "--reference", "files"]));
    let mut archive = tar::Builder::new(fs::File::create(folder.join("files.tar")).unwrap());
    for k in 0..12 {
        let name = format!("{k:06}.png");
        archive.append_path_with_name(files.join(&name), &name).unwrap();
    }
    archive.finish().unwrap();
    same(&scores(folder, &["samples.npz", "--reference", "files.tar"]));
    // Loose, in a folder that is called as a part of a set, and some of them in one of its own: all of them.
    fs::rename(&files, folder.join("val")).unwrap();
    fs::remove_file(folder.join("val/train.txt")).unwrap();
    fs::create_dir(folder.join("val/more")).unwrap();
    fs::rename(folder.join("val/000003.png"), folder.join("val/more/3.png")).unwrap();
    same(&scores(folder, &["samples.npz", "--reference", "val"]));
    assert_eq!(of_files["scores"]["inception_score"], found["inception_score"]);
}

/// What was seen of a reference once need not be seen again, and says of which network it is.
#[test]
fn a_reference_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sets(folder);
    let pair = ["samples.npz", "--reference", "reference.npz", "--save-reference", "kept.npz"];
    let first = scores(folder, &pair);
    fs::remove_file(folder.join("reference.npz")).unwrap();
    let kept = scores(folder, &["samples.npz", "--reference", "kept.npz"]);
    assert_eq!(kept["scores"], first["scores"]);
    assert_eq!(
        (&kept["reference"]["count"], &kept["reference"]["width"]),
        (&12.into(), &SIDE.into())
    );
    assert_eq!(kept["reference_statistics"], "kept.npz");
    assert_eq!(kept["warnings"], first["warnings"]);
    assert!(!kept["warnings"].to_string().contains("precision"), "{}", kept["warnings"]);
    // Other weights see other features.
    let mut other = NpzReader::open(&folder.join("kept.npz")).unwrap();
    let network = other.numbers("network").unwrap().1;
    assert_eq!(network.len(), 1);
    let path = folder.join("other.npz");
    let mut file = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    for name in ["mu", "sigma"] {
        let (shape, values) = other.numbers(name).unwrap();
        file.start_file(format!("{name}.npy"), options).unwrap();
        file.write_all(&numbers(&shape, &values)).unwrap();
    }
    file.start_file("network.npy", options).unwrap();
    file.write_all(&numbers(&[1], &[network[0] + 1.0])).unwrap();
    file.finish().unwrap();
    let said = fails(
        1,
        &[&["score", "samples.npz", "--reference", "other.npz"], &WEIGHTS[..]].concat(),
        folder,
    );
    says(&said, &["other.npz", "features are of other weights"]);
}

/// An array as NumPy writes it.
fn array(kind: &str, shape: &[usize], data: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let shape: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.into_bytes());
    bytes.extend(data);
    bytes
}

fn numbers(shape: &[usize], values: &[f64]) -> Vec<u8> {
    array("<f8", shape, values.iter().flat_map(|v| v.to_le_bytes()))
}

fn write(path: &Path, arrays: &[(&str, &[u8])]) {
    let mut archive = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, bytes) in arrays {
        let options = zip::write::SimpleFileOptions::default();
        archive.start_file(format!("{name}.npy"), options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
}

#[test]
fn statistics_stand_for_a_reference() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sets(folder);
    let of_images = scores(folder, &["samples.npz", "--reference", "reference.npz"]);

    let pixels = NpzReader::open(&folder.join("reference.npz")).unwrap().images().unwrap().next(99);
    let pixels = pixels.unwrap();
    let inception = Inception::load(&folder.join("inception.pth")).unwrap();
    let mut sight = Sight::new(&inception, 12);
    sight.add(&inception.see(&pixels, SIDE, SIDE).unwrap()).unwrap();
    let statistics = sight.statistics().unwrap();
    let pair = |of: &Gaussian| {
        let dims = of.mean().len();
        let mean = numbers(&[dims], of.mean().as_slice());
        (mean, numbers(&[dims, dims], of.covariance().as_slice()))
    };
    let (mu, sigma) = pair(&statistics.pooled);
    let (mu_s, sigma_s) = pair(statistics.spatial.as_ref().unwrap());
    let images = array("|u1", &[12, SIDE, SIDE, 3], pixels);
    let all: [(&str, &[u8]); 5] = [
        ("arr_0", &images),
        ("mu", &mu),
        ("sigma", &sigma),
        ("mu_s", &mu_s),
        ("sigma_s", &sigma_s),
    ];
    let path = folder.join("statistics.npz");
    let against = ["samples.npz", "--reference", "statistics.npz"];
    let same = |found: &Value, measures: &[&str]| {
        for measure in measures {
            let want = of_images["scores"][measure].as_f64().unwrap();
            close(&found["scores"][measure], want);
        }
    };

    // As the published references are: images, and statistics of them.
    write(&path, &all);
    let found = scores(folder, &against);
    same(&found, &["inception_score", "fid", "sfid", "precision", "recall"]);
    assert_eq!(
        (&found["reference_statistics"], &found["reference"]["count"]),
        (&"statistics.npz".into(), &12.into())
    );
    // What statistics lack is taken of the images; of statistics alone it is told.
    write(&path, &all[..3]);
    same(&scores(folder, &against), &["fid", "sfid", "precision"]);
    write(&path, &all[1..3]);
    let found = scores(folder, &against);
    same(&found, &["inception_score", "fid"]);
    assert!(found["scores"]["sfid"].is_null() && found["scores"]["precision"].is_null());
    assert!(found["reference"].is_null());
    let score = [&["score"], &against[..], &WEIGHTS].concat();
    let said = prints(&score, folder);
    says(&said, &["reference         statistics of the file", "has no images", "(mu_s) for sFID"]);

    let wrong = numbers(&[64], &[0.0; 64]);
    let square = numbers(&[64, 64], &[0.0; 4096]);
    write(&path, &[("mu", &wrong), ("sigma", &square)]);
    let said = fails(1, &score, folder);
    says(
        &said,
        &["statistics.npz: its statistics cannot be used", "mu is of 64 features, expected 128"],
    );
    assert!(!said.contains("seen"), "told before the work: {said}");
    write(&path, &[("mu", &wrong), ("sigma", &numbers(&[4096], &[0.0; 4096]))]);
    says(&fails(1, &score, folder), &["its statistics cannot be used", "covariance"]);
}

#[test]
fn samples_of_a_run_are_scored_where_they_lie() {
    let folder = trained();
    let folder = folder.path();
    sets(folder);
    succeeds(&["sample", "base", "--count", "5", "--out", "samples", "--npz", "same.npz"], folder);
    let of_folder = scores(folder, &["samples", "--reference", "reference.npz"]);
    let of_array = scores(folder, &["same.npz", "--reference", "reference.npz"]);
    assert_eq!(of_folder["scores"], of_array["scores"]);
    assert_eq!(of_folder["samples"]["count"], 5);
    // By which settings is in the folder, and comes with the numbers.
    let made = &of_folder["made"];
    assert_eq!((&made["settings"]["top_k"], &made["step"]), (&900.into(), &2.into()));
    assert_eq!((made.get("labels"), of_array.get("made")), (None, None));
    says(&of_folder["warnings"].to_string(), &["10 classes have 0 to 1 samples each"]);
    says(&of_folder["warnings"].to_string(), &["samples are 32×32 px, the reference 24×24 px"]);
    fs::remove_file(folder.join("samples/000003.png")).unwrap();
    let score = ["score", "samples", "--reference", "reference.npz"];
    let said = fails(1, &[&score[..], &WEIGHTS].concat(), folder);
    says(&said, &["000003.png is missing", "--resume"]);
    assert!(!said.contains("seen"), "told before the work: {said}");
}

#[test]
fn what_cannot_be_scored_is_told_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sets(folder);
    let told = |arguments: &[&str]| fails(1, &[&["score"], arguments].concat(), folder);
    let with = |sets: &[&str]| told(&[sets, &WEIGHTS].concat());
    says(&with(&["none.npz", "--reference", "reference.npz"]), &["none.npz", "no such file"]);
    says(&with(&["inception.pth", "--reference", "reference.npz"]), &["inception.pth"]);
    fs::create_dir(folder.join("empty")).unwrap();
    says(&with(&["samples.npz", "--reference", "empty"]), &["empty", "no images"]);
    says(&with(&["empty", "--reference", "empty"]), &["--image-side"]);
    says(&with(&["absent", "--reference", "empty"]), &["absent: no such file or folder"]);
    fs::write(folder.join("empty/a.png"), "no picture").unwrap();
    let said = with(&["samples.npz", "--reference", "empty"]);
    says(&said, &["a.png", "repair or remove it"]);
    assert!(!said.contains("--skip-bad-images"), "{said}");
    says(&with(&["a.npy", "--reference", "reference.npz"]), &["an .npz file"]);
    let pair = ["samples.npz", "--reference", "reference.npz"];
    let weights = |file: &str| told(&[&pair[..], &["--inception", file]].concat());
    says(&weights("reference.npz"), &["reference.npz", "not a usable PyTorch file"]);
    let published = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/pth/flexvar_bare.pth");
    says(&weights(published), &["no Inception network", "pt_inception-2015-12-05-6726825d.pth"]);
    says(&weights("none.pth"), &["none.pth"]);
    says(&with(&[&pair[..], &["--json", "scores.txt"]].concat()), &["scores.txt"]);
    says(&with(&[&pair[..], &["--image-side", "7"]].concat()), &["--image-side is for"]);
    let mut few = NpzWriter::create(&folder.join("few.npz"), 3, (SIDE, SIDE)).unwrap();
    few.write(Images::square(&images(3, 1), SIDE)).unwrap();
    few.finish().unwrap();
    says(&with(&["few.npz", "--reference", "reference.npz"]), &["3 images are too few", "4"]);
}
