//! A safetensors file: as weights, as what it says of itself, as latents.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_train::checkpoint::{Kind, load_weights, read_header, read_shapes};
use sar_train::data::{Examples, Latents};
use sar_train::model::tokenizer::{Tokenizer, TokenizerConfig};
use std::io::Write as _;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    let tokenizer = Tokenizer::new(&TokenizerConfig::default()).expect("the default tokenizer");
    let _ = read_header(file.path());
    let _ = read_shapes(file.path());
    let _ = load_weights(file.path(), Kind::Tokenizer, tokenizer.layout());
    if let Ok(latents) = Latents::open(file.path()) {
        let sizes = latents.sizes();
        if sizes.validation > 0 {
            let _ = latents.validation(sizes.validation - 1);
        }
        assert_eq!(latents.len(), sizes.train);
    }
});
