//! Whether two algorithms give the same bits: tried, on numbers that show every difference of order.
//!
//! A layer's algorithm is chosen for the rows of a training step. Its tiles leave most of a GPU idle
//! where a sampled image has a few rows; another algorithm may be taken there if its sums are the same.
//! Nothing that cuBLASLt tells of an algorithm says so, and comparing ordinary results would not either:
//! a sum of another order differs in its last bits, which the rounding to bf16 hides. So the numbers of
//! a trial are such that every exact sum is zero: what comes out is rounding alone.

use super::descriptors::Shape;
use super::{failed, failed_unless_full};
use crate::error::CudaError;
use crate::gemm::DataType;
use cudarc::driver::result as driver;
use cudarc::driver::sys::CUstream;
use half::bf16;
use sar_math::philox::philox4x32_10;

/// Rows of noise that differ; an operand repeats them. Coprime to the sizes of tiles, so that no two rows
/// of a tile are the same.
const ROWS: usize = 61;
/// Halvings that the magnitudes of numbers go over: products of bf16 numbers, of 16 bits each, must not all
/// add up without rounding in the 24 bits of an f32 sum, however few they are.
const EXPONENTS: u32 = 16;

/// Operands of a trial on the device, freed when dropped.
pub(super) struct Noise {
    stream: CUstream,
    allocation: u64,
    /// `[m, k]` as the shape's `a`.
    pub(super) a: u64,
    /// `[n, k]` as the shape's `b`.
    pub(super) b: u64,
    /// `[n]` zeros: a bias would drown what rounding leaves.
    pub(super) bias: u64,
}

impl Noise {
    /// Operands of a product of a layer (`a` as it is stored, `b` transposed); `None` where the device has
    /// no room for them.
    ///
    /// # Errors
    /// The driver's.
    pub(super) fn new(stream: CUstream, shape: &Shape) -> Result<Option<Self>, CudaError> {
        let [a, b] =
            shape.operand_lengths().map(|len| (len * shape.data().bytes()).next_multiple_of(256));
        let bias = shape.n() * 4;
        // SAFETY: released in `drop`, on the same stream.
        let made = unsafe { driver::malloc_async(stream, a + b + bias) };
        let Some(allocation) = failed_unless_full("cuMemAllocAsync", made)? else {
            return Ok(None);
        };
        let noise = Self {
            stream,
            allocation,
            a: allocation,
            b: allocation + a as u64,
            bias: allocation + (a + b) as u64,
        };
        // SAFETY: the ranges were just allocated.
        unsafe {
            driver::memset_d8_async(allocation, 0, a + b + bias, stream)
                .map_err(failed("cuMemsetD8Async"))?;
            let [in_a, in_b] = shape.leading();
            noise.fill(noise.a, shape, (shape.m(), in_a), 1.0)?;
            noise.fill(noise.b, shape, (shape.n(), in_b), -1.0)?;
        }
        Ok(Some(noise))
    }

    /// Fills `rows` of k numbers, `leading` apart: half of them, then the same again times `sign`. A term of
    /// no partner stays zero.
    ///
    /// # Safety
    /// The rows lie in this allocation.
    unsafe fn fill(
        &self,
        at: u64,
        shape: &Shape,
        (rows, leading): (usize, usize),
        sign: f32,
    ) -> Result<(), CudaError> {
        let (data, half) = (shape.data(), shape.k() / 2);
        let distinct = rows.min(ROWS);
        let mut host = vec![0u8; distinct * leading * data.bytes()];
        for (row, line) in host.chunks_exact_mut(leading * data.bytes()).enumerate() {
            for (l, to) in line.chunks_exact_mut(data.bytes()).take(2 * half).enumerate() {
                let value = number(row, l % half, sign) * if l < half { 1.0 } else { sign };
                match data {
                    DataType::F32 => to.copy_from_slice(&value.to_le_bytes()),
                    DataType::Bf16 => to.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                }
            }
        }
        // SAFETY: the caller's; the last copy ends with the last row.
        unsafe {
            driver::memcpy_htod_async(at, &host, self.stream)
                .map_err(failed("cuMemcpyHtoDAsync"))?;
            let row = (leading * data.bytes()) as u64;
            for first in (distinct..rows).step_by(ROWS) {
                let bytes = distinct.min(rows - first) * row as usize;
                driver::memcpy_dtod_async(at + first as u64 * row, at, bytes, self.stream)
                    .map_err(failed("cuMemcpyDtoDAsync"))?;
            }
        }
        Ok(())
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; freed in the order of the stream, after the trials.
        let _ = unsafe { driver::free_async(self.allocation, self.stream) };
    }
}

/// A number of either sign between 2⁻¹⁶ and 1, of one operand or the other.
fn number(row: usize, term: usize, sign: f32) -> f32 {
    let [bits, ..] = philox4x32_10([row as u32, term as u32, u32::from(sign < 0.0), 0], [0, 0]);
    let mantissa = 1.0 + (bits >> 9) as f32 / (1 << 23) as f32;
    let magnitude = mantissa / (2u32 << (bits % EXPONENTS)) as f32;
    if bits & 0x100 == 0 { magnitude } else { -magnitude }
}

/// Rows `[m, n]` of a result, without what lies between them.
///
/// # Safety
/// The rows lie in held memory.
pub(super) unsafe fn read(stream: CUstream, at: u64, shape: &Shape) -> Result<Vec<u8>, CudaError> {
    let (row, leading, bytes) = (shape.n(), shape.out_leading(), shape.out_data().bytes());
    let mut host = vec![0u8; ((shape.m() - 1) * leading + row) * bytes];
    // SAFETY: the caller's; the host's memory outlives the wait.
    unsafe {
        driver::memcpy_dtoh_async(&mut host, at, stream).map_err(failed("cuMemcpyDtoHAsync"))?;
        driver::stream::synchronize(stream).map_err(failed("cuStreamSynchronize"))?;
    }
    if leading == row {
        return Ok(host);
    }
    Ok(host.chunks(leading * bytes).flat_map(|line| &line[..row * bytes]).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_noise_are_rounding_alone_and_show_their_order() {
        for k in [8usize, 32, 1024] {
            let half = k / 2;
            let rounded = |row, term, sign| bf16::from_f32(number(row, term, sign)).to_f32();
            let terms: Vec<f32> = (0..k)
                .map(|l| {
                    let product = rounded(3, l % half, 1.0) * rounded(5, l % half, -1.0);
                    if l < half { product } else { -product }
                })
                .collect();
            assert_eq!(terms.iter().map(|&t| f64::from(t)).sum::<f64>(), 0.0, "{k}");
            assert!(terms.iter().all(|t| t.abs() <= 1.0 && *t != 0.0), "{k}");
        }
        // Some of a tile's results differ between two orders, however few terms there are.
        let differ = |k: usize| {
            let half = k / 2;
            (0..ROWS).any(|row| {
                let term = |l: usize| {
                    let product = number(row, l % half, 1.0) * number(7, l % half, -1.0);
                    if l < half { product } else { -product }
                };
                let forward = (0..k).map(term).sum::<f32>();
                let pairs = (0..k).step_by(2).map(|l| term(l) + term(l + 1)).sum::<f32>();
                forward.to_bits() != pairs.to_bits()
            })
        };
        assert!(differ(8) && differ(64) && differ(4096));
    }
}
