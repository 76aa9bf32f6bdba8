//! Teacher-forcing and contrastive student-forcing losses, generic over the backend.
//!
//! A step's loss is `L = L_TF + σ·L_CSF` (`docs/method.md`):
//!
//! - [`TeacherForcing`]: `L_TF`, the mean over all tokens of the cross-entropy against the image's
//!   codes.
//! - [`StudentForcing`]: `σ·L_CSF`, the mean over the tokens of the supervised scales of the
//!   cross-entropy against what the teacher pass predicted, hard or soft.
//!
//! Both work in the same way: a [`Supervision`] says how much every scale counts; `forward` fills
//! per-token losses on the device; `backward` turns the logits into their gradient in place; `keep`
//! sums the losses of every scale on the device, micro-batch by micro-batch; `report` brings these
//! sums to the host and is the only call that waits. Nothing allocates after `new`.
//!
//! Logits are processed a few samples at a time, so that those of a whole batch are never needed at
//! once: `forward` and `backward` take the range of samples that the logits belong to, `report`
//! covers all samples.
//!
//! Means are over `tokens·divisor`, where the divisor is the number of samples of the whole
//! optimiser step: micro-batches add up to the gradient of the whole batch.

mod report;
mod student_forcing;
mod supervision;
mod teacher_forcing;

pub use report::ScaleReport;
pub use student_forcing::{StudentForcing, StudentTargets};
pub use supervision::{LossBatch, Supervision};
pub use teacher_forcing::TeacherForcing;
