//! What a run left, read back and shown.

pub mod summary;
pub mod verdict;
