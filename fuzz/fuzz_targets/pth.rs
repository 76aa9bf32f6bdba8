//! A PyTorch file: a ZIP archive of pickles.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_train::checkpoint::read_pth;
use std::io::Write as _;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    let _ = read_pth(file.path());
});
