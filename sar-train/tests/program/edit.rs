//! `sar edit`: what is kept, what is drawn, and what cannot be edited.

use super::*;
use image::{GrayImage, Luma, Rgb, RgbImage};

const SIDE: u32 = 32;

/// The right half is drawn anew.
fn half(x: u32, _y: u32) -> bool {
    x >= SIDE / 2
}

fn write_mask(path: &Path, drawn: impl Fn(u32, u32) -> bool) {
    let light = |x, y| Luma([if drawn(x, y) { 255 } else { 0 }]);
    GrayImage::from_fn(SIDE, SIDE, light).save(path).unwrap();
}

/// A picture with `hole` as the colour of what [`half`] masks.
fn write_image(path: &Path, hole: u8) {
    let colour = |x, y| match half(x, y) {
        true => Rgb([hole, 255 - hole, hole]),
        false => Rgb([(x * 15) as u8, (y * 8) as u8, (x * y) as u8]),
    };
    RgbImage::from_fn(SIDE, SIDE, colour).save(path).unwrap();
}

fn picture(path: &Path) -> RgbImage {
    image::open(path).unwrap().to_rgb8()
}

/// [`trained`], with `a.png` and `b.png`, which differ under `half.png` alone.
fn pictures() -> tempfile::TempDir {
    let folder = trained();
    write_image(&folder.path().join("a.png"), 0);
    write_image(&folder.path().join("b.png"), 200);
    write_mask(&folder.path().join("half.png"), half);
    folder
}

const EDIT: [&str; 6] = ["edit", "base", "--mask", "half.png", "--count", "3"];

#[test]
fn what_is_masked_is_not_looked_at_and_what_is_not_stays() {
    let folder = pictures();
    let folder = folder.path();
    let edit = |image: &str, out: &str, more: &[&str]| {
        let flags = ["--classes", "A,2", "--image", image, "--out", out];
        succeeds(&[&EDIT[..], &flags, more].concat(), folder);
        (0..3).map(|k| picture(&folder.join(format!("{out}/{k:06}.png")))).collect::<Vec<_>>()
    };
    let edited = edit("a.png", "a", &[]);
    assert_eq!(edit("b.png", "b", &[]), edited, "they differ under the mask alone");
    assert_eq!(edit("a.png", "one", &["--batch", "1"]), edited, "in any batch");
    assert_ne!(edit("a.png", "once", &["--passes", "1"]), edited);
    assert_ne!(edited[0], edited[2], "two draws of a class");
    let original = picture(&folder.join("a.png"));
    for (x, y, colour) in original.enumerate_pixels().filter(|(x, y, _)| !half(*x, *y)) {
        assert!(edited.iter().all(|image| image.get_pixel(x, y) == colour), "({x}, {y})");
    }
    let given = picture(&folder.join("a/given.png"));
    assert_eq!(
        (given.get_pixel(20, 3).0, given.get_pixel(3, 3)),
        ([128; 3], original.get_pixel(3, 3))
    );
    fs::remove_file(folder.join("a/000002.png")).unwrap();
    assert_eq!(edit("a.png", "a", &["--resume"]), edited, "gone on with");
    let other = [&EDIT[..], &["--classes", "A,2", "--image", "b.png", "--out", "a", "--resume"]];
    says(
        &fails(1, &other.concat(), folder),
        &["a holds other images: the image or its mask is another now"],
    );
    let decoded = edit("a.png", "d", &["--decoded"]);
    let drawn = |image: &RgbImage| -> Vec<u8> {
        let pixels = image.enumerate_pixels().filter(|(x, y, _)| half(*x, *y));
        pixels.flat_map(|(_, _, colour)| colour.0).collect()
    };
    assert_eq!(drawn(&decoded[1]), drawn(&edited[1]));
    assert_ne!(decoded[1], edited[1], "the decoder does not give the image's own pixels");
    let record = fs::read_to_string(folder.join("a/samples.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["labels"], serde_json::json!([0, 2, 0]));
    assert_eq!((&record["edit"]["passes"], &record["edit"]["keep_scales"]), (&2.into(), &0.into()));
    assert!(record["edit"]["mask"].as_str().unwrap().ends_with("half.png"));
}

#[test]
fn coarse_scales_of_an_image_are_kept() {
    let folder = pictures();
    let folder = folder.path();
    let edit = |image: &str, scales: &str, more: &[&str]| {
        let flags = ["edit", "base", "--classes", "3", "--count", "2", "--out", "o", "--force"];
        let flags = [&flags[..], &["--image", image, "--keep-scales", scales], more].concat();
        succeeds(&flags, folder);
        picture(&folder.join("o/scales.png"))
    };
    // A row an image, a column a scale, two pixels between them.
    let column = |strip: &RgbImage, scale: u32| -> Vec<u8> {
        let pixels = strip.enumerate_pixels().filter(|(x, _, _)| x / (SIDE + 2) == scale);
        pixels.flat_map(|(_, _, colour)| colour.0).collect()
    };
    let [one, other] = [edit("a.png", "3", &[]), edit("a.png", "3", &["--seed", "8"])];
    for scale in 0..3 {
        assert_eq!(column(&one, scale), column(&other, scale), "scale {scale} is the image's");
    }
    assert_ne!(column(&one, 3), column(&other, 3), "the last is drawn");
    // Under a mask too, in the second pass as in the first.
    let masked = edit("a.png", "3", &["--mask", "half.png"]);
    for scale in 0..3 {
        assert_eq!(column(&masked, scale), column(&one, scale), "scale {scale} under a mask");
    }
}

#[test]
fn nothing_of_the_hole_is_seen_in_a_picture_that_is_scaled() {
    let folder = pictures();
    let folder = folder.path();
    let masked = |x: u32| x >= 113;
    let mask = GrayImage::from_fn(200, 220, |x, _| Luma([if masked(x) { 255 } else { 0 }]));
    mask.save(folder.join("m.png")).unwrap();
    let edited = [10, 240].map(|hole| {
        let colour = |x: u32, y: u32| match masked(x) {
            true => Rgb([hole; 3]),
            false => Rgb([x as u8, y as u8, (x + y) as u8]),
        };
        RgbImage::from_fn(200, 220, colour).save(folder.join("i.png")).unwrap();
        let flags = ["edit", "base", "--image", "i.png", "--mask", "m.png", "--classes", "B"];
        succeeds(&[&flags[..], &["--count", "1", "--out", "o", "--force"]].concat(), folder);
        (picture(&folder.join("o/000000.png")), picture(&folder.join("o/given.png")))
    });
    assert_eq!(edited[0], edited[1]);
    // Pixel 113 of 200 is in column 18 of 32; that before mixes it in.
    let grey = |x| edited[0].1.get_pixel(x, 9).0 == [128; 3];
    assert_eq!([16, 17, 18].map(grey), [false, true, true]);
}

#[test]
fn what_cannot_be_edited_is_told_and_nothing_is_written() {
    let folder = pictures();
    let folder = folder.path();
    write_mask(&folder.join("black.png"), |_, _| false);
    write_mask(&folder.join("white.png"), |_, _| true);
    GrayImage::new(20, 32).save(folder.join("small.png")).unwrap();
    fs::write(folder.join("text.png"), "no image").unwrap();
    let flags = ["edit", "base", "--classes", "A", "--out", "o", "--image"];
    let edit = |more: &[&str]| fails(1, &[&flags[..], more].concat(), folder);
    for (more, expected) in [
        (&["a.png"][..], &["nothing of the image is kept", "--mask", "--keep-scales"][..]),
        (&["a.png", "--mask", "black.png"], &["black.png", "nothing is white"]),
        (
            &["a.png", "--mask", "white.png"],
            &["white.png", "nothing of the image is kept", "every square of 4×4 px", "32×32"],
        ),
        (
            &["a.png", "--mask", "small.png"],
            &["small.png is no mask", "the image's 32×32 pixels", "found 20×32"],
        ),
        (&["a.png", "--mask", "text.png"], &["text.png", "not a PNG, JPEG or WebP"]),
        (&["gone.png", "--mask", "half.png"], &["gone.png", "cannot be read"]),
        (&["a.png", "--keep-scales", "4"], &["--keep-scales 4", "nothing to draw", "4 scales"]),
        (
            &["a.png", "--keep-scales", "1", "--schedule", "1_2_4x8"],
            &["cut to a square", "a grid of 4x8"],
        ),
        (&["a.png", "--mask", "half.png", "--guidance", "-3"], &["sample.guidance"]),
    ] {
        says(&edit(more), expected);
        assert!(!folder.join("o").exists(), "{more:?}");
    }
    for ignored in [&["--decoded"][..], &["--passes", "3"]] {
        let flags = [&flags[..], &["a.png", "--keep-scales", "1"], ignored].concat();
        says(&fails(2, &flags, folder), &["--mask"]);
    }
    let unknown = ["edit", "base", "--image", "a.png", "--mask", "half.png", "--out", "o"];
    says(&fails(1, &unknown, folder), &["by --classes", "the generator has 10", "A, B, C"]);
    let unknown = [&unknown[..], &["--classes", "Z"]].concat();
    says(&fails(1, &unknown, folder), &["class Z does not exist"]);
    let inside =
        ["edit", "base", "--classes", "A", "--image", "a.png", "--out", ".", "--keep-scales", "1"];
    says(&fails(1, &inside, folder), &["a.png lies in --out"]);
    // Images of another call stay.
    succeeds(&["sample", "base", "--count", "1", "--out", "o"], folder);
    says(&edit(&["a.png", "--mask", "half.png"]), &["o holds 1 images", "--force"]);
    succeeds(&[&flags[..], &["a.png", "--mask", "half.png", "--force"]].concat(), folder);
    succeeds(&["sample", "base", "--count", "1", "--out", "o", "--force"], folder);
    assert!(!folder.join("o/given.png").exists() && !folder.join("o/000001.png").exists());
    // A picture of the user's own is in the way of an edit alone.
    fs::copy(folder.join("a.png"), folder.join("o/given.png")).unwrap();
    succeeds(&["sample", "base", "--count", "1", "--out", "o", "--force"], folder);
    says(&edit(&["a.png", "--mask", "half.png", "--force"]), &["does not name (given.png)"]);
}
