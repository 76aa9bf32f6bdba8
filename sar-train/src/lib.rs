//! Train, refine, sample and measure next-scale image generators.
pub mod config;
pub mod params;
