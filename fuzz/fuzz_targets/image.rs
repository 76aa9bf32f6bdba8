//! An image file, cut as for training: pixels of [-1, 1], whatever it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_train::data::Augment;
use sar_train::data::decode::{decode_bytes, probe_bytes};

/// More is refused before anything is allocated.
const MAX_PIXELS: u64 = 1 << 16;
const SIDE: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let probed = probe_bytes(bytes, MAX_PIXELS);
    let Ok(picture) = decode_bytes(bytes, MAX_PIXELS) else { return };
    assert!(probed.is_ok(), "what is decoded has a header");
    assert!((picture.width() * picture.height()) as u64 <= MAX_PIXELS);
    let pixels = Augment::evaluation(SIDE).evaluate(&picture);
    assert_eq!(pixels.len(), 3 * SIDE * SIDE);
    assert!(pixels.iter().all(|v| (-1.0..=1.0).contains(v)));
});
