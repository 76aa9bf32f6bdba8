//! The models: next-scale generator and tokenizer, and the classifier and Inception network used
//! for metrics.

pub mod classifier;
pub mod generator;
pub mod inception;
pub mod tokenizer;
