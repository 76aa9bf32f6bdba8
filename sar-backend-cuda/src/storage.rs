//! How numbers are stored on the device.

use crate::gemm::DataType;
use half::bf16;

/// A type of elements in device memory.
pub trait Stored: Copy + Default + Send + Sync + 'static {}
impl Stored for f32 {}
impl Stored for bf16 {}
impl Stored for u32 {}

/// How activations are stored: as `f32`, or as `bf16` while weights are trained in f32.
///
/// Statistics, losses, gradients and moments are f32 either way.
pub trait Storage: Stored {
    /// Name of the variant of the kernels, and of the number type in reports.
    const NAME: &'static str;
    /// The same type, as matrix products name it.
    const DATA_TYPE: DataType;
    /// Whether matrix products read a narrow copy of the weights instead of the weights.
    const NARROW: bool;
    /// Converts from f32, rounding to nearest.
    fn store(value: f32) -> Self;
    /// Converts to f32, exactly.
    fn load(self) -> f32;
}

impl Storage for f32 {
    const NAME: &'static str = "f32";
    const DATA_TYPE: DataType = DataType::F32;
    const NARROW: bool = false;
    fn store(value: f32) -> Self {
        value
    }
    fn load(self) -> f32 {
        self
    }
}

impl Storage for bf16 {
    const NAME: &'static str = "bf16";
    const DATA_TYPE: DataType = DataType::Bf16;
    const NARROW: bool = true;
    fn store(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn load(self) -> f32 {
        self.to_f32()
    }
}
