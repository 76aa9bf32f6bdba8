//! The models: next-scale generator, tokenizer; classifier and Inception network, which measure.

pub mod classifier;
pub mod generator;
pub mod inception;
pub mod tokenizer;
