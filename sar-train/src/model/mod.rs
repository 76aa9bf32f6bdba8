//! The models: next-scale generator, tokenizer, classifier.

pub mod classifier;
pub mod generator;
pub mod tokenizer;
