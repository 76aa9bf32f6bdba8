//! Train, refine, sample, edit and measure next-scale image generators.
//!
//! The program `sar` is a thin layer over this library ([`commands`]). To use it from another
//! program, these are the parts in the order in which they are needed
//! (`examples/train_and_sample.rs` shows all of it in a hundred lines):
//!
//! | | |
//! |---|---|
//! | [`config::Config`] | everything that decides what a run does, as in its `config.toml` |
//! | [`data::open`] | images: class folders, lists, archives, glyph sheets; [`data::Data::loader`] cuts batches |
//! | [`model::tokenizer::Tokenizer`], [`train::tokenizer::TokenizerTrainer`] | images to codes and back |
//! | [`model::generator::Generator`], [`train::Trainer`] | the model of codes; every way of training, step by step |
//! | [`sample::Painter`] | images, a batch at a time, the same whatever the batch |
//! | [`trained::TrainedGenerator`] | one that was trained: opened, kept, given to a painter |
//! | [`eval::prepare`] | Fréchet distance, precision, recall, class accuracy |
//! | [`checkpoint`] | weights in safetensors under the published names; `.pth` is read |
//! | [`ranks`] | one run on several processes, machines or GPUs |
//! | [`run::RunFolder`], [`report`] | run folders, logs, TensorBoard; one HTML page about them |
//!
//! All of it is generic over a backend ([`sar_math::backend::Backend`]): `sar_backend_cpu::CpuBackend`,
//! `sar_backend_cuda::CudaBackend`, or another.

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod eval;
mod files;
mod hash;
pub mod metrics;
pub mod model;
mod optimizer;
pub mod params;
pub mod ranks;
pub mod report;
pub mod run;
mod run_files;
pub mod sample;
pub mod train;
pub mod trained;
