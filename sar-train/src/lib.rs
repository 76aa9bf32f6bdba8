//! Train, refine, sample, edit and measure next-scale image generators.

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
pub mod params;
pub mod report;
pub mod run;
pub mod sample;
pub mod train;
