//! Training: the step, and the loop around it.

mod memory;
mod settings;
mod step;

pub use memory::{Needs, StepMemory};
pub use settings::StepSettings;
pub use step::StepInput;
