//! The next-scale generator: layout, forward, backward.
//!
//! The graph is fixed: `2·depth + 1` modulated norms with a branch between any two of them,
//! attention after even norms and the FFN after odd ones. The last norm feeds the head, which takes
//! some samples at a time.

mod branches;
mod classes;
mod conditioning;
mod head;
mod initial;
mod layout;
mod pass;
mod positions;
mod shape;
mod trace;

pub(crate) use conditioning::Conditioning;
pub use head::Head;
pub(crate) use head::parts;
pub use layout::{Generator, parameters};
pub use pass::PassInput;
pub(crate) use positions::Places;
pub use shape::{GeneratorError, GeneratorShape, MLP_RATIO, NORM_EPS, POSITION_SIDE};
pub use trace::{Gradients, Recompute, Trace};
