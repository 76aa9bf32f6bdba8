//! Data from files made by the tests: every colour mode, every kind of damage.

mod archive_sets;
mod archives;
mod batches;
mod latents;
mod sources;

use super::*;
use image::{DynamicImage, ImageFormat, Luma, LumaA, Rgb, Rgba};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// f32 rounding errors of sixteen levels.
const LEVEL: f32 = 1e-5;

/// A few f32 rounding errors of numbers of order 1.
const ROUNDING: f32 = 1e-6;

/// Tolerance for red, and half-transparent black on white, in 8 bits: exact except for one
/// rounding.
const STEP: f32 = 1.01 / 127.5;

fn red(width: u32, height: u32) -> DynamicImage {
    image::RgbImage::from_pixel(width, height, Rgb([255, 0, 0])).into()
}

fn write(path: &Path, image: &DynamicImage, format: ImageFormat) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.save_with_format(path, format).unwrap();
}

/// Two classes of `n` small images each; every image has its own grey.
fn two_classes(n: u8) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (class, base) in [("cat", 0), ("dog", 100)] {
        for i in 0..n {
            let grey = image::GrayImage::from_fn(9, 7, |x, y| Luma([base + i * 3 + (x + y) as u8]));
            write(
                &dir.path().join(class).join(format!("{i:03}.png")),
                &grey.into(),
                ImageFormat::Png,
            );
        }
    }
    dir
}

fn at(path: &Path) -> DataConfig {
    DataConfig { path: Some(path.to_path_buf()), image_side: 8, ..DataConfig::default() }
}

fn jpeg(image: &DynamicImage) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

/// Returns a PNG with one palette entry per pixel, put together by hand because the writer has no
/// palettes.
fn palette_png(width: u32, height: u32) -> Vec<u8> {
    fn chunk(out: &mut Vec<u8>, kind: &[u8; 4], body: &[u8]) {
        out.extend((body.len() as u32).to_be_bytes());
        let start = out.len();
        out.extend(kind);
        out.extend(body);
        let crc = out[start..].iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ (0xedb8_8320 * (c & 1)))
        });
        out.extend((!crc).to_be_bytes());
    }
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 3, 0, 0, 0]);
    chunk(&mut out, b"IHDR", &header);
    chunk(&mut out, b"PLTE", &[0, 0, 0, 255, 0, 0]);
    let rows = [vec![0u8], vec![1; width as usize]].concat().repeat(height as usize);
    // zlib: one stored block and the Adler checksum.
    let mut data = vec![0x78, 1, 1];
    data.extend((rows.len() as u16).to_le_bytes());
    data.extend((!(rows.len() as u16)).to_le_bytes());
    data.extend(&rows);
    let (a, b) = rows.iter().fold((1u32, 0u32), |(a, b), &v| {
        let a = (a + u32::from(v)) % 65521;
        (a, (b + a) % 65521)
    });
    data.extend(((b << 16) | a).to_be_bytes());
    chunk(&mut out, b"IDAT", &data);
    chunk(&mut out, b"IEND", &[]);
    out
}

#[test]
fn every_mode_becomes_rgb() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join("all").join(name);
    let grey = 51.0 / 127.5 - 1.0;
    let half = (255.0 - 128.0) / 127.5 - 1.0;
    let red_white = [1.0, -1.0, -1.0];
    let cases: [(&str, DynamicImage, ImageFormat, [f32; 3]); 9] = [
        ("a.png", red(20, 10), ImageFormat::Png, red_white),
        (
            "b.jpg",
            image::GrayImage::from_pixel(11, 9, Luma([51])).into(),
            ImageFormat::Jpeg,
            [grey; 3],
        ),
        ("c.webp", red(9, 30), ImageFormat::WebP, red_white),
        (
            "d.png",
            image::GrayImage::from_pixel(8, 8, Luma([51])).into(),
            ImageFormat::Png,
            [grey; 3],
        ),
        (
            "e.png",
            image::GrayAlphaImage::from_pixel(8, 8, LumaA([0, 128])).into(),
            ImageFormat::Png,
            [half; 3],
        ),
        (
            "f.png",
            image::RgbaImage::from_pixel(8, 8, Rgba([255, 0, 0, 0])).into(),
            ImageFormat::Png,
            [1.0; 3],
        ),
        (
            "g.png",
            DynamicImage::ImageLuma16(image::ImageBuffer::from_pixel(8, 8, Luma([32768]))),
            ImageFormat::Png,
            [32768.0 / 32767.5 - 1.0; 3],
        ),
        (
            "h.png",
            DynamicImage::ImageRgba16(image::ImageBuffer::from_pixel(
                8,
                8,
                Rgba([0, 65535, 0, 65535]),
            )),
            ImageFormat::Png,
            [-1.0, 1.0, -1.0],
        ),
        // The content decides, not the name.
        ("i.jpeg", red(12, 12), ImageFormat::Png, red_white),
    ];
    for (name, image, format, _) in &cases {
        write(&path(name), image, *format);
    }
    fs::write(path("j.png"), palette_png(12, 5)).unwrap();
    let config = DataConfig { allow_one_class: true, val_fraction: 0.0, ..at(dir.path()) };
    let data = open(&config).unwrap();
    assert_eq!((data.train.len(), data.validation.len()), (10, 0));
    for (i, expected) in cases.iter().map(|c| c.3).chain([red_white]).enumerate() {
        let (pixels, label) = data.train.image(i).unwrap();
        assert_eq!((pixels.len(), label), (3 * 8 * 8, 0));
        for c in 0..3 {
            let wrong =
                pixels[c * 64..(c + 1) * 64].iter().find(|v| (**v - expected[c]).abs() > STEP);
            assert_eq!(wrong, None, "image {i}, colour {c}, expected {}", expected[c]);
        }
    }
    // 16-bit precision is kept: this grey lies between two 8-bit values.
    assert!((data.train.image(6).unwrap().0[0] - cases[6].3[0]).abs() < ROUNDING);
    let report = crate::commands::data::check(&config, None, true).unwrap();
    assert_eq!(report.modes.get("PNG palette"), Some(&1), "{report}");
    assert_eq!(report.smallest, Some((12, 5)));
    assert_eq!(report.largest, Some((9, 30)));
}

/// The header of a large file is read without the rest, and still found if it lies deeper.
#[test]
fn headers_of_large_files_are_those_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let noise = |x: u32, y: u32| {
        let bits =
            (x.wrapping_mul(0x9e37_79b9) ^ y.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0xc2b2_ae35);
        Rgb([bits as u8, (bits >> 8) as u8, (bits >> 16) as u8])
    };
    let image: DynamicImage = image::RgbImage::from_fn(300, 280, noise).into();
    let written = |format| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    let (png, webp, plain) = (written(ImageFormat::Png), written(ImageFormat::WebP), jpeg(&image));
    // Three segments of the camera's own, 64 KiB each, before the frame's header.
    let segment = [&[0xff, 0xe4, 0xff, 0xff][..], &[7; 65533]].concat();
    let deep = [&plain[..2], &segment, &segment, &segment, &plain[2..]].concat();
    for (name, bytes) in [("a.png", png), ("a.webp", webp), ("a.jpg", deep)] {
        assert!(bytes.len() > 140_000, "{name}: {}", bytes.len());
        let path = dir.path().join(name);
        fs::write(&path, &bytes).unwrap();
        let header = ImageFile::from(path.clone()).probe(1 << 20).unwrap();
        assert_eq!(header, decode::probe_bytes(&bytes, 1 << 20).unwrap(), "{name}");
        assert_eq!((header.width, header.height), (300, 280));
        // The same number of bytes that are not an image.
        fs::write(&path, vec![b'x'; bytes.len()]).unwrap();
        let error = ImageFile::from(path).probe(1 << 20).unwrap_err();
        assert_eq!(error, BadImage::NotAnImage, "{name}");
    }
}

/// Returns each kind of damage: file name, contents and a word of the error message.
fn damage() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let whole = jpeg(&image::RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8, y as u8, 9])).into());
    // A comment that contains an end marker, as a thumbnail does, and no end of the image itself.
    let comment = [0xff, 0xfe, 0, 6, 1, 0xff, 0xd9, 2];
    let thumbnail = [&whole[..2], &comment, &whole[2..whole.len() - 20]].concat();
    let mut png = std::io::Cursor::new(Vec::new());
    let noise = |x: u32, y: u32| Rgb([(x * 77 + y * 31) as u8, (x * y) as u8, 5]);
    image::RgbImage::from_fn(64, 64, noise).write_to(&mut png, ImageFormat::Png).unwrap();
    let png = png.into_inner();
    let mut webp = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(64, 64, noise).write_to(&mut webp, ImageFormat::WebP).unwrap();
    let webp = webp.into_inner();
    let mut bomb = palette_png(8, 8);
    bomb[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    // The header's checksum is corrected, so that only the size is wrong.
    let crc = bomb[12..29].iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ (0xedb8_8320 * (c & 1)))
    });
    bomb[29..33].copy_from_slice(&(!crc).to_be_bytes());
    vec![
        ("zero.png", vec![], "0 bytes"),
        ("cut-in-tables.jpg", whole[..whole.len() / 2].to_vec(), "truncated"),
        ("cut-in-scan.jpg", whole[..whole.len() - 20].to_vec(), "truncated"),
        ("thumbnail.jpg", thumbnail, "truncated"),
        ("cut.png", png[..png.len() / 2].to_vec(), "truncated"),
        ("cut.webp", webp[..webp.len() / 2].to_vec(), "truncated"),
        ("dot.png", palette_png(1, 1), "1×1"),
        ("huge.png", bomb, "65535×65535"),
        ("notes.txt", b"not an image".to_vec(), "not a PNG, JPEG or WebP"),
        ("moving.gif", b"GIF89a\x08\0\x08\0".to_vec(), "but GIF; convert it"),
        ("scan.tif", b"II*\0\x08\0\0\0".to_vec(), "but TIFF; convert it"),
        ("old.bmp", [&b"BM"[..], &[0; 60]].concat(), "but BMP; convert it"),
        ("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0".to_vec(), "but HEIC; convert it"),
        ("half-header.png", png[..20].to_vec(), "truncated"),
    ]
}

#[test]
fn every_kind_of_damage_names_the_file_and_can_be_skipped() {
    for (name, bytes, word) in damage() {
        let dir = two_classes(3);
        fs::write(dir.path().join("cat").join(name), bytes).unwrap();
        let message = open(&at(dir.path())).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(word), "{name}: {message}");
        assert!(message.contains("--skip-bad-images"), "{message}");

        let config = DataConfig { skip_bad_images: true, ..at(dir.path()) };
        let data = open(&config).unwrap();
        assert_eq!(data.train.len() + data.validation.len(), 6);
        assert_eq!(data.skipped.len(), 1);
        assert!(data.summary.contains("1 bad images skipped"), "{}", data.summary);

        let report = crate::commands::data::check(&config, None, true).unwrap();
        assert_eq!((report.total, report.bad.len(), report.exit_code()), (6, 1, 1));
        assert!(report.to_string().contains(name));
    }
}

#[test]
fn a_class_is_missed_whose_images_are_all_bad() {
    let dir = two_classes(3);
    for file in fs::read_dir(dir.path().join("dog")).unwrap() {
        fs::write(file.unwrap().path(), "").unwrap();
    }
    let config = DataConfig { skip_bad_images: true, ..at(dir.path()) };
    let error = open(&config).err().unwrap();
    assert!(matches!(&error, DataError::OneClass { class, bad: 3, .. } if class == "cat"));
    assert!(error.to_string().contains("(\"cat\") without the 3 bad images"), "{error}");
    let meant = DataConfig { allow_one_class: true, ..config };
    assert_eq!(open(&meant).unwrap().skipped.len(), 3);
}

#[test]
fn only_bad_images_are_an_error_even_when_skipping() {
    let dir = tempfile::tempdir().unwrap();
    for (i, (name, bytes, _)) in damage().into_iter().enumerate() {
        let class = dir.path().join(["cat", "dog"][i % 2]);
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join(name), bytes).unwrap();
    }
    let config = DataConfig { skip_bad_images: true, ..at(dir.path()) };
    let all = damage().len();
    assert!(matches!(open(&config), Err(DataError::AllBad { count, .. }) if count == all));
}

#[test]
fn damage_that_appears_later_is_an_error_or_is_skipped_alike_for_all_threads() {
    let items = |dir: &Path| -> Vec<dataset::Item> {
        let names = ["cat/000.png", "cat/001.png", "cat/002.png", "dog/000.png"];
        let item = |n: &&str| dataset::Item { file: dir.join(n).into(), label: 0, picture: None };
        names.iter().map(item).collect()
    };
    let dir = two_classes(3);
    fs::write(dir.path().join("cat/001.png"), b"gone").unwrap();
    let load = |skip: bool, workers: usize| {
        let config = DataConfig { skip_bad_images: skip, ..at(dir.path()) };
        let set = Dataset::new(dir.path().into(), items(dir.path()), &config);
        let loader = LoaderConfig { batch: 4, seed: 3, workers, turns: Turns::ALL };
        let cuts = Cuts { images: set.clone(), augment: config.augment() };
        (Loader::new(cuts, loader).unwrap(), set)
    };
    let (mut strict, _) = load(false, 2);
    for _ in 0..3 {
        // Every batch of four holds each of the four images once.
        assert!(matches!(strict.next_batch(), Err(DataError::BadImage { .. })));
    }
    let (mut one, set) = load(true, 1);
    let (mut three, _) = load(true, 3);
    for _ in 0..3 {
        assert_eq!(one.next_batch().unwrap(), three.next_batch().unwrap());
    }
    assert_eq!(set.skipped().len(), 1);
    assert!(set.skipped()[0].0.ends_with("cat/001.png"));
    // If every image is bad, the result is an error, not an endless search.
    for i in items(dir.path()) {
        fs::write(i.file.path(), b"gone").unwrap();
    }
    let (mut none, _) = load(true, 2);
    assert!(matches!(none.next_batch(), Err(DataError::AllBad { count: 4, .. })));
}

#[test]
fn the_embedded_glyphs_are_what_the_demo_expects() {
    let config = DataConfig { num_classes: Some(10), ..DataConfig::glyphs10() };
    let data = open(&config).unwrap();
    assert_eq!((data.train.len(), data.validation.len()), (3700, 930));
    assert_eq!(data.classes.concat(), "ABCDEFGHIJ");
    let counted = |set: &Dataset, n: usize| {
        (0..10).all(|c| set.labels().iter().filter(|&&l| l == c).count() == n)
    };
    assert!(counted(&data.train, 370) && counted(&data.validation, 93));
    // 16 grey levels, exactly as stored.
    let (pixels, _) = data.validation.image(500).unwrap();
    let level = |v: f32| (v + 1.0) * 7.5;
    assert!(pixels.iter().all(|&v| (level(v) - level(v).round()).abs() < LEVEL));
    assert!(pixels.iter().any(|&v| v > 0.5) && pixels.iter().any(|&v| v < -0.5));
    let path = data.train.path(0).unwrap();
    assert_eq!(path, Path::new("glyphs10/A/0"));
    assert!(matches!(data.train.image(3700), Err(DataError::OutOfBounds { .. })));

    let sheet = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/glyphs36.png");
    let data = open(&DataConfig::from_argument(&sheet.to_string_lossy())).unwrap();
    assert_eq!((data.classes.len(), data.train.len()), (36, 36 * 370));
    assert_eq!(data.classes[35], "9");

    let dir = two_classes(1);
    let photo = open(&at(&dir.path().join("cat/000.png"))).unwrap_err();
    assert!(matches!(photo, DataError::BadSheet { .. }), "{photo}");
}

#[test]
fn held_out_images_depend_on_the_split_seed_alone() {
    let dir = two_classes(20);
    let split = |split_seed, skip_bad_images| {
        let config = DataConfig { split_seed, skip_bad_images, ..at(dir.path()) };
        let data = open(&config).unwrap();
        assert_eq!((data.train.len(), data.validation.labels()), (38, vec![0, 1]));
        assert!(data.summary.contains("5 %"), "{}", data.summary);
        data.validation.path(0).unwrap().to_path_buf()
    };
    assert_eq!(split(1, false), split(1, true));
    let several: std::collections::BTreeSet<_> = (0..8).map(|s| split(s, false)).collect();
    assert!(several.len() > 2, "{several:?}");
}

#[test]
fn configurations_are_checked_and_unknown_keys_refused() {
    let parse = toml::from_str::<DataConfig>;
    let config = parse("builtin = \"glyphs10\"\nimage_side = 32\ncrop = \"center\"").unwrap();
    assert_eq!(config.crop, Crop::Center);
    assert!(parse("imge_side = 3").unwrap_err().to_string().contains("imge_side"));
    assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    let key = |config: DataConfig| match open(&config) {
        Err(DataError::Config { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(key(DataConfig::default()), "path");
    assert_eq!(key(DataConfig { path: Some("x".into()), ..config.clone() }), "path");
    assert_eq!(key(DataConfig { builtin: Some("mnist".into()), ..config.clone() }), "builtin");
    assert_eq!(key(DataConfig { image_side: 0, ..config.clone() }), "image_side");
    assert_eq!(key(DataConfig { shift: 32, ..config.clone() }), "shift");
    assert_eq!(key(DataConfig { val_fraction: f64::NAN, ..config.clone() }), "val_fraction");
    assert_eq!(key(DataConfig { max_pixels: u64::MAX, ..config }), "max_pixels");
}

/// Renaming a file would replace the pipe, or /dev/null.
#[test]
#[cfg(unix)]
fn pipes_and_devices_are_written_to_and_not_replaced() {
    use std::os::unix::fs::FileTypeExt as _;
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    for write in [
        |path: &Path| crate::files::write_quickly(path, b"bytes").unwrap(),
        |path: &Path| crate::files::write_whole(path, b"bytes").unwrap(),
    ] {
        let reader = pipe.clone();
        let read = std::thread::spawn(move || fs::read(reader).unwrap());
        write(&pipe);
        assert_eq!(read.join().unwrap(), b"bytes");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }
}

#[test]
fn a_check_prints_a_table_and_a_preview() {
    let dir = two_classes(3);
    let preview = dir.path().join("preview.png");
    let report = crate::commands::data::check(&at(dir.path()), Some(&preview), true).unwrap();
    assert_eq!((report.total, report.exit_code()), (6, 0));
    assert_eq!(report.classes, [("cat".to_owned(), 3), ("dog".to_owned(), 3)]);
    let text = report.to_string();
    assert!(text.contains("cat                        3"), "{text}");
    assert!(text.contains("sizes from 9×7 to 9×7"), "{text}");
    assert!(report.loose.is_empty() && !text.contains("not used"), "{text}");
    assert_eq!(image::image_dimensions(&preview).unwrap(), (8 * 10 - 2, 2 * 10 - 2));
    fs::write(dir.path().join("notes.txt"), "no image").unwrap();
    let report = crate::commands::data::check(&at(dir.path()), None, true).unwrap();
    assert_eq!((report.total, report.loose.as_slice()), (6, &[preview.clone()][..]));
    assert!(report.to_string().contains("no part of the data, and not used: 1"), "{report}");
    // A hidden folder is no class; that it could have been meant as one is said where it has images.
    for (folder, file) in [(".git", "index"), (".bird", "a.png")] {
        fs::create_dir(dir.path().join(folder)).unwrap();
        fs::write(dir.path().join(folder).join(file), "anything").unwrap();
    }
    let report = crate::commands::data::check(&at(dir.path()), None, true).unwrap();
    assert_eq!(
        (report.total, report.loose.as_slice()),
        (6, &[preview.clone(), dir.path().join(".bird")][..])
    );

    let report =
        crate::commands::data::check(&DataConfig::glyphs10(), Some(&preview), true).unwrap();
    assert_eq!((report.total, report.validation, report.exit_code()), (4630, 930, 0));
    assert_eq!(image::image_dimensions(&preview).unwrap(), (8 * 34 - 2, 10 * 34 - 2));
}
