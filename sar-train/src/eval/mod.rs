//! Measures a generator against validation images, with the floors beside it.

mod result;

pub use result::{EvalReport, EvalSettings, Floor, SamplerSettings, SweepPoint};
