//! Shared set-up of the op benchmarks: the two generators that speed is measured at, and operands.
//!
//! `cargo bench -p sar-benches` measures, `cargo bench -p sar-benches -- --test` runs everything once.
//! An id is op/shape; shapes are those of one op in a training step of [`SMALL`] or [`LARGE`].

use sar_backend_cpu::{Buffer, CpuBackend};
use sar_math::ScaleSchedule;
use sar_math::backend::{Buffers, Slot};

/// The backend that is measured.
pub type Backend = CpuBackend<f32>;

/// The size of a generator and of its batch.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Part of the benchmark's id.
    pub name: &'static str,
    /// Width C.
    pub width: usize,
    /// Heads H.
    pub heads: usize,
    /// Vocabulary V.
    pub vocab: usize,
    /// Latent channels K.
    pub channels: usize,
    /// Samples B.
    pub batch: usize,
    /// The schedule, as text.
    pub schedule: &'static str,
}

/// Setting A of `benches/README.md`.
pub const SMALL: Setting = Setting {
    name: "A",
    width: 256,
    heads: 4,
    vocab: 512,
    channels: 8,
    batch: 16,
    schedule: "1_2_3_4_6_8",
};

/// Setting B of `benches/README.md`: the published 256-pixel schedule.
pub const LARGE: Setting = Setting {
    name: "B",
    width: 512,
    heads: 8,
    vocab: 8912,
    channels: 32,
    batch: 2,
    schedule: "1_2_3_4_5_6_8_10_13_16",
};

/// Both settings, in the order they are measured.
pub const SETTINGS: [Setting; 2] = [SMALL, LARGE];

impl Setting {
    /// The schedule.
    ///
    /// # Panics
    /// Where its text is no schedule.
    pub fn schedule(&self) -> ScaleSchedule {
        self.schedule.parse().unwrap_or_else(|error| panic!("{}: {error}", self.schedule))
    }

    /// Rows of a token tensor, B·L.
    pub fn rows(&self) -> usize {
        self.batch * self.schedule().tokens()
    }
}

/// An activation of `len` numbers between −1 and 1, the same in every run.
///
/// # Panics
/// Where there is no memory for it.
pub fn noise(len: usize) -> Buffer<f32> {
    let backend = Backend::new();
    let mut buffer = backend.activation(len).unwrap_or_else(|error| panic!("{error}"));
    let mut state = 1_u32;
    for value in buffer.as_mut_slice() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
    }
    buffer
}

/// The slot of `len` elements from `offset` on.
pub fn slot(offset: usize, len: usize) -> Slot {
    Slot { offset, len }
}

/// Stops a benchmark whose op failed: its time would mean nothing.
///
/// # Panics
/// With the op's error.
pub fn run<E: core::fmt::Display>(outcome: Result<(), E>) {
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
