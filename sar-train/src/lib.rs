//! Train, refine, sample and measure next-scale image generators.
pub mod params;
