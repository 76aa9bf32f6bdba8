#![no_std]
#![forbid(unsafe_code)]
//! Scale schedules, rollout plans and loss mathematics of next-scale image generators.
//!
//! The layers, bottom up:
//! - [`schedule`]: which grids an image is generated in; the only place where offsets are summed.
//! - [`real`]: the host number type the rest is generic over; [`ShapeError`]: an operand of the wrong size.
//! - [`resample`]: area and bicubic taps.
//! - [`philox`], [`sampling`], [`guidance`]: counter-based random numbers, filters, guidance.
//! - [`rollout`]: which scale feeds which, in which pass, supervised by what.
//! - [`anneal`]: learning-rate and weight-decay schedules.
//! - [`backend`]: the traits that a backend implements, and their contract.
//! - [`loss`]: teacher-forcing and contrastive student-forcing losses, generic over the backend.
//! - `conformance` (feature): checks that any backend runs.
#[cfg(any(feature = "alloc", test))]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod anneal;
pub mod backend;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod guidance;
pub mod loss;
pub mod philox;
pub mod real;
pub mod resample;
pub mod rollout;
pub mod sampling;
pub mod schedule;
mod shape_error;

pub use real::Real;
pub use schedule::{MAX_SCALES, Scale, ScaleSchedule, ScheduleError, TokenPlace};
pub use shape_error::ShapeError;

/// Doc test: what the README shows compiles and holds.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
