//! A list file of images that are not there, a tar archive, or a glyph sheet.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_train::data::{DataConfig, open};
use std::io::Write as _;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    let config = DataConfig {
        path: Some(file.path().to_owned()),
        max_pixels: 1 << 16,
        skip_bad_images: true,
        ..DataConfig::default()
    };
    let _ = open(&config);
});
