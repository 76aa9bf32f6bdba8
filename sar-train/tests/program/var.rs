//! VAR's models by the command line: the small ones of `tests/var`, which its own code made.

use super::*;
use safetensors::SafeTensors;

/// A rounding of a pixel to 8 bits may fall to either side.
const LEVELS: f64 = 1.0;

fn published(name: &str) -> String {
    format!("{}/tests/var/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A folder with VAR's tokenizer `vae.safetensors` and generator `var.safetensors`, converted.
fn converted() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let said = prints(&["convert", &published("vae.pth"), "vae.safetensors"], path);
    says(&said, &["tokenizer of 32 base channels, 2 levels, vocabulary 24, 231391 parameters"]);
    let from = published("var.pth");
    let schedule = ["--schedule", "1_2_3_4_5"];
    let said = prints(&[&["convert", &from, "var.safetensors"], &schedule[..]].concat(), path);
    says(&said, &["generator of depth 2, width 16, vocabulary 24, 3 classes, schedule 1_2_3_4_5"]);
    folder
}

const SAMPLE: [&str; 4] = ["sample", "var.safetensors", "--tokenizer", "vae.safetensors"];

#[test]
fn greedy_samples_are_the_pictures_that_vars_code_draws() {
    let folder = converted();
    let folder = folder.path();
    let bytes = std::fs::read(published("reference.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for guidance in ["0", "1.5", "3"] {
        let greedy = ["--top-k", "1", "--top-p", "0", "--classes", "2,0,1", "--count", "3"];
        let given = ["--guidance", guidance, "--out", guidance];
        succeeds(&[&SAMPLE[..], &greedy, &given].concat(), folder);
        let alone =
            [&SAMPLE[..], &greedy, &given[..2], &["--batch", "1", "--out", "alone"]].concat();
        succeeds(&alone, folder);
        for k in 0..3 {
            let of = |out: &str| std::fs::read(folder.join(format!("{out}/{k:06}.png"))).unwrap();
            assert!(of("alone") == of(guidance), "image {k} in any batch");
        }
        std::fs::remove_dir_all(folder.join("alone")).unwrap();
        let name = format!("greedy_images.{:.1}", guidance.parse::<f64>().unwrap());
        let images = tensors.tensor(&name).unwrap();
        let values: Vec<f64> =
            images.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        for (k, expected) in values.chunks(300).enumerate() {
            let found = image::open(folder.join(format!("{guidance}/{k:06}.png"))).unwrap();
            for (x, y, pixel) in found.to_rgb8().enumerate_pixels() {
                for (channel, level) in pixel.0.iter().enumerate() {
                    let value = expected[channel * 100 + (y * 10 + x) as usize];
                    let off = f64::from(*level) - (value + 1.0) * 127.5;
                    assert!(off.abs() <= LEVELS, "{guidance}, image {k}, {x}, {y}: {off}");
                }
            }
        }
    }
}

#[test]
fn schedules_are_of_the_grids_that_there_are_positions_for() {
    let folder = converted();
    let folder = folder.path();
    let some = succeeds(&[&SAMPLE[..], &["--schedule", "1_3_5", "--out", "some"]].concat(), folder);
    says(&some, &["trained on 1_2_3_4_5, not on 1_3_5"]);
    let sample = [&SAMPLE[..], &["--schedule", "1_2_4_6", "--out", "other"]].concat();
    says(&fails(1, &sample, folder), &["1_2_4_6, with a grid of 6x6", "grids of 1_2_3_4_5"]);
    assert!(!folder.join("other").exists());
    // Its mask says which grids there are; others of as many tokens and scales are not those.
    let from = published("var.pth");
    prints(&["convert", &from, "again.safetensors"], folder);
    let of = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert!(of("again.safetensors") == of("var.safetensors"));
    let convert = ["convert", &from, "other.safetensors", "--schedule"];
    let said = fails(1, &[&convert[..], &["1_2_3_4"]].concat(), folder);
    says(&said, &["1_2_3_4_5, not 1_2_3_4"]);
    assert!(!folder.join("other.safetensors").exists());
    let eval = ["tokenizer", "eval", "vae.safetensors", "--data", "builtin:glyphs10"];
    let side = ["--image-side", "10"];
    let said = fails(1, &[&eval[..], &side].concat(), folder);
    says(&said, &["add up to 5×5", "1_2_4_8", "--image-side", "ends in 5 with --schedule"]);
    let schedule = ["--schedule", "1_2_3_4_5"];
    let said = prints(&[&eval[..], &side, &schedule].concat(), folder);
    says(&said, &["512 of 930 held-out images of 10 px", "5x5", "up to each add up to"]);
}

const TRAIN: [&str; 12] = [
    "train",
    "--data",
    "builtin:glyphs10",
    "--set",
    "data.image_side=10",
    "--tokenizer",
    "vae.safetensors",
    "--set",
    "train.batch=4",
    "--set",
    "train.sample_every=0",
    "--out",
];

#[test]
fn they_are_trained_refined_and_gone_on_with_bit_for_bit() {
    let folder = converted();
    let folder = folder.path();
    let from = ["--init-from", "var.safetensors", "--new-classes"];
    let steps = |n| format!("train.steps={n}");
    let train = |out: &str, n: usize, more: &[&str]| {
        succeeds(&[&TRAIN[..], &[out, "--set", &steps(n)], more].concat(), folder)
    };
    let said = train("whole", 4, &[&from[..], &["--set", "train.save_every=2"]].concat());
    says(&said, &["all 10 begin anew"]);
    let last = folder.join("whole/checkpoints/step-4");
    let weights = || std::fs::read(last.join("model.safetensors")).unwrap();
    let at_once = weights();
    std::fs::remove_dir_all(&last).unwrap();
    succeeds(&["train", "--resume", "--out", "whole"], folder);
    assert!(weights() == at_once);
    let schedule = ["--set", "generator.schedule=1_2_5"];
    let other = [&TRAIN[..], &["other"], &from, &schedule].concat();
    says(&fails(1, &other, folder), &["generator.schedule is 1_2_5", "leave the key out"]);
    let random = ["--set", "train.random_schedules=true"];
    let other = [&TRAIN[..], &["other"], &from, &random].concat();
    says(&fails(1, &other, folder), &["random_schedules", "levels"]);
    assert!(!folder.join("other").exists());

    let refine = ["refine", "--init-from", "whole", "--set", "train.steps=2"];
    for preset in ["paper", "release"] {
        succeeds(&[&refine[..], &["--preset", preset, "--out", preset]].concat(), folder);
        let sample = ["sample", preset, "--count", "2", "--out"];
        succeeds(&[&sample[..], &[&format!("of-{preset}")]].concat(), folder);
    }
}

#[test]
fn what_is_not_read_or_trained_says_so() {
    let folder = converted();
    let folder = folder.path();
    let train = ["tokenizer", "train", "--data", "builtin:glyphs10", "--out", "tok"];
    let residual = ["--set", "tokenizer.residual=4"];
    let said = fails(1, &[&train[..], &residual].concat(), folder);
    says(&said, &["tokenizer.residual=4", "not trained here"]);
    let said = fails(1, &[&train[..], &["--init-from", "vae.safetensors"]].concat(), folder);
    says(&said, &["not trained here"]);
    assert!(!folder.join("tok").exists());
}

#[test]
fn they_edit() {
    let folder = converted();
    let folder = folder.path();
    let colour = |x: u32, y: u32| image::Rgb([(x * 25) as u8, (y * 25) as u8, 90]);
    image::RgbImage::from_fn(10, 10, colour).save(folder.join("a.png")).unwrap();
    let light = |x: u32, _| image::Luma([if x >= 6 { 255 } else { 0 }]);
    image::GrayImage::from_fn(10, 10, light).save(folder.join("hole.png")).unwrap();
    let edit = ["edit", "var.safetensors", "--tokenizer", "vae.safetensors", "--image", "a.png"];
    let classes = ["--mask", "hole.png", "--classes", "2,0", "--count", "2"];
    let run = |out: &str, more: &[&str]| {
        succeeds(&[&edit[..], &classes, &["--out", out], more].concat(), folder);
        let open = |k: u32| image::open(folder.join(format!("{out}/{k:06}.png"))).unwrap();
        [0, 1].map(|k| open(k).to_rgb8())
    };
    let drawn = run("drawn", &[]);
    assert_eq!(run("alone", &["--batch", "1"]), drawn, "in any batch");
    assert_ne!(run("kept", &["--keep-scales", "2"]), drawn);
    for picture in &drawn {
        for (x, y, pixel) in picture.enumerate_pixels().filter(|(x, _, _)| *x < 6) {
            assert_eq!(*pixel, colour(x, y), "{x}, {y}");
        }
    }
    assert_ne!(drawn[0], drawn[1]);
}
