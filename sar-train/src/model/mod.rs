//! The models: next-scale generator, tokenizer, classifier.

pub mod generator;
pub mod classifier;
