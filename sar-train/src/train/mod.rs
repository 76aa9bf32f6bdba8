//! Training: the step, the optimiser around it, and held-out loss.

mod error;
mod heldout;
mod memory;
mod settings;
mod step;
pub mod tokenizer;
mod trainer;

pub use error::TrainError;
pub use heldout::{HeldOut, HeldOutReport};
pub use memory::{Needs, StepMemory};
pub use settings::StepSettings;
pub use step::StepInput;
pub use trainer::{Batches, Export, StepReport, TrainState, Trainer};
