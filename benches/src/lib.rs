//! Shared set-up of the op benchmarks.
