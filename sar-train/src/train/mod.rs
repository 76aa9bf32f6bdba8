//! Training: the step, the optimiser around it, and held-out loss.

mod batches;
mod coder;
mod cost;
mod error;
mod footprint;
mod held_out;
mod journal;
mod memory;
mod ranks;
mod rehearsal;
mod replica;
mod session;
mod settings;
mod speed;
mod step;
pub mod tokenizer;
mod trainer;

pub use batches::{CachedBatches, EncodedBatches, encode_all, held_out_of};
pub use cost::StepCost;
pub use error::TrainError;
pub use footprint::MemoryPlan;
pub use held_out::{HeldOut, HeldOutReport, held_out_loss};
pub(crate) use held_out::{RISEN, Risen};
pub use memory::{Needs, StepMemory};
pub use ranks::{GeneratorShare, OtherRanks, Share, TokenizerShare, check_ranks, share};
pub use rehearsal::{rehearse, rehearse_sampling, rehearse_tokenizer};
pub use replica::{Batches, Replica, StepLosses};
pub use session::{Outcome, PaintHook, Session};
pub use settings::StepSettings;
pub use speed::{Pace, sampling_pace, tokenizer_pace, training_pace};
pub use step::{MicroBatch, StepInput};
pub use trainer::{Export, StepReport, TrainState, Trainer};

#[cfg(test)]
mod tests;
