//! Images measured by what papers give.

use super::*;
use sar_train::data::grid::{Images, save_each};
use sar_train::data::npz::NpzWriter;
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
    succeeds(&[&["score"], sets, &WEIGHTS, &["--json", "scores.json"]].concat(), folder);
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
    for measure in ["fid", "sfid", "precision", "recall"] {
        close(&of_files["scores"][measure], found[measure].as_f64().unwrap());
    }
    assert_eq!(of_files["scores"]["inception_score"], found["inception_score"]);
}

#[test]
fn statistics_stand_for_a_reference() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sets(folder);
    let array = |shape: &str, values: &[f64]| {
        let text = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.into_bytes());
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        bytes
    };
    let write = |arrays: &[(&str, Vec<u8>)]| {
        let file = fs::File::create(folder.join("statistics.npz")).unwrap();
        let mut archive = zip::ZipWriter::new(file);
        for (name, bytes) in arrays {
            archive.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            archive.write_all(bytes).unwrap();
        }
        archive.finish().unwrap();
    };
    // Of features that are all 0: what is left are the samples' own moments.
    let (mu, sigma) = (array("(128,)", &[0.0; 128]), array("(128, 128)", &vec![0.0; 128 * 128]));
    write(&[("mu.npy", mu.clone()), ("sigma.npy", sigma)]);
    let found = scores(folder, &["samples.npz", "--reference", "statistics.npz"]);
    assert!(found["scores"]["fid"].as_f64().unwrap() > 1000.0);
    assert!(found["scores"]["sfid"].is_null() && found["scores"]["precision"].is_null());
    assert!(found["reference"].is_null() && found["reference_statistics"] == "statistics.npz");
    let said = prints(
        &[&["score", "samples.npz", "--reference", "statistics.npz"], &WEIGHTS[..]].concat(),
        folder,
    );
    says(&said, &["statistics of the file", "sFID              –", "has no images"]);

    write(&[("mu.npy", mu), ("sigma.npy", array("(16384,)", &vec![0.0; 16384]))]);
    let said = fails(
        1,
        &[&["score", "samples.npz", "--reference", "statistics.npz"], &WEIGHTS[..]].concat(),
        folder,
    );
    says(&said, &["statistics.npz: its statistics cannot be used", "covariance"]);
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
    says(&of_folder["warnings"].to_string(), &["samples are 32×32 px, the reference 24×24 px"]);
    fs::remove_file(folder.join("samples/000003.png")).unwrap();
    let score = ["score", "samples", "--reference", "reference.npz"];
    says(&fails(1, &[&score[..], &WEIGHTS].concat(), folder), &["000003.png is missing"]);
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
    let pair = ["samples.npz", "--reference", "reference.npz"];
    let weights = |file: &str| told(&[&pair[..], &["--inception", file]].concat());
    says(&weights("reference.npz"), &["reference.npz", "not a usable PyTorch file"]);
    let published = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/pth/flexvar_bare.pth");
    says(&weights(published), &["no Inception network", "pt_inception-2015-12-05-6726825d.pth"]);
    says(&weights("none.pth"), &["none.pth"]);
    says(&with(&[&pair[..], &["--json", "scores.txt"]].concat()), &["scores.txt"]);
}
