//! An array file: a ZIP archive of arrays that describe themselves.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_train::data::npz::NpzReader;
use sar_train::eval::Statistics;
use std::io::Write as _;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    let Ok(mut reader) = NpzReader::open(file.path()) else { return };
    let _ = Statistics::of_file(&mut reader);
    if let Ok(mut images) = reader.images() {
        let (height, width) = images.size();
        while let Ok(batch) = images.next(2) {
            assert_eq!(batch.len() % (height * width * 3), 0, "whole images");
            if batch.is_empty() {
                break;
            }
        }
    }
});
