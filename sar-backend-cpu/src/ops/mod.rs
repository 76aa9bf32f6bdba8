//! One file per op.
