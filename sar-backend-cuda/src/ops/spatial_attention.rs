//! One-head attention over all positions of a map: matrix products, and a softmax over rows.
//!
//! Scores stay in f32 until they are probabilities. Scratch holds them for as many samples as fit
//! in [`SCORE_BYTES`], and for one sample at least.

use super::maps::{THREADS, narrow, pieces, warp_blocks};
use crate::KernelArg;
use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::gemm::{DataType, Gemm, Matrix, Sample};
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::MapDims;

const SOFTMAX: Kernel = Kernel { file: "spatial_attention", name: "spatial_softmax" };
const SOFTMAX_BACKWARD: Kernel =
    Kernel { file: "spatial_attention", name: "spatial_softmax_backward" };

/// Scratch for scores and their gradients.
const SCORE_BYTES: usize = 256 << 20;

/// Products of every sample of a part of the batch: c×n matrices are maps, n×n matrices are attention.
#[derive(Clone, Copy)]
struct Products {
    batch: usize,
    channels: usize,
    area: usize,
}

impl Products {
    /// A map `[c, n]` of each sample.
    fn map<T: Storage>(self, address: Address<T>) -> Matrix {
        self.matrix(address.raw(), T::DATA_TYPE, self.channels)
    }

    /// `[n, n]` of each sample.
    fn square<T: Storage>(self, address: Address<T>) -> Matrix {
        self.matrix(address.raw(), T::DATA_TYPE, self.area)
    }

    fn matrix(self, address: u64, data: DataType, rows: usize) -> Matrix {
        Matrix { address, data, leading: self.area, transposed: false, stride: rows * self.area }
    }

    /// `out[m, n] = a·b` with sums of `k` terms.
    ///
    /// # Safety
    /// As `CudaBackend::gemm`.
    unsafe fn run<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        (m, k): (usize, usize),
        [a, b, out]: [Matrix; 3],
    ) -> Result<(), CudaError> {
        let (n, batch) = (self.area, self.batch);
        // SAFETY: passed on to the caller.
        unsafe {
            let sample = Sample::Product;
            gpu.gemm(&Gemm { m, n, k, a, b, out, accumulate: false, bias: None, batch, sample })
        }
    }
}

fn transposed(matrix: Matrix) -> Matrix {
    Matrix { transposed: true, ..matrix }
}

/// `c^−½`.
fn scale(dims: MapDims) -> f32 {
    (dims.channels as f64).sqrt().recip() as f32
}

/// Number of samples, of `bytes` of scratch each, that are held at once.
fn together(dims: MapDims, bytes: usize) -> usize {
    (SCORE_BYTES / bytes).clamp(1, dims.batch)
}

/// `y = v·softmax(qᵀk·c^−½)ᵀ`; `probabilities[b, hw, hw]`.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    q: Address<S>,
    k: Address<S>,
    v: Address<S>,
    probabilities: Address<S>,
    y: Address<S>,
) -> Result<(), CudaError> {
    if dims.is_empty() {
        return Ok(());
    }
    let (channels, area) = (dims.channels, dims.height * dims.width);
    let columns = narrow("spatial_attention", "positions", area)?;
    let images = together(dims, area * area * 4);
    let [scores] = pieces(gpu, [images * area * area * 4])?.map(Address::cast::<f32>);
    for first in (0..dims.batch).step_by(images) {
        let batch = images.min(dims.batch - first);
        let products = Products { batch, channels, area };
        let (of_map, rows) = (first * channels * area, batch * area);
        let (map, p) =
            (|m: Address<S>| products.map(m.at(of_map)), probabilities.at(first * area * area));
        // SAFETY: maps and squares of these samples, all distinct; scratch holds their scores.
        unsafe {
            let operands = [transposed(map(q)), map(k), products.square(scores)];
            products.run(gpu, (area, channels), operands)?;
            let args: [&dyn KernelArg; 5] = [&p, &scores, &(rows as u64), &columns, &scale(dims)];
            gpu.launch(SOFTMAX, warp_blocks(rows), THREADS, 0, &args)?;
            let operands = [map(v), transposed(products.square(p)), map(y)];
            products.run(gpu, (channels, area), operands)?;
        }
    }
    Ok(())
}

/// Backward of [`forward`].
pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: MapDims,
    dy: Address<S>,
    [q, k, v]: [Address<S>; 3],
    probabilities: Address<S>,
    [dq, dk, dv]: [Address<S>; 3],
) -> Result<(), CudaError> {
    if dims.is_empty() {
        return Ok(());
    }
    let (channels, area) = (dims.channels, dims.height * dims.width);
    let columns = narrow("spatial_attention_backward", "positions", area)?;
    let square = area * area;
    let images = together(dims, square * (4 + size_of::<S>()));
    let [dp, ds] = pieces(gpu, [images * square * 4, images * square * size_of::<S>()])?;
    let (dp, ds) = (dp.cast::<f32>(), ds.cast::<S>());
    for first in (0..dims.batch).step_by(images) {
        let batch = images.min(dims.batch - first);
        let products = Products { batch, channels, area };
        let (of_map, rows) = (first * channels * area, batch * area);
        let (map, p) =
            (|m: Address<S>| products.map(m.at(of_map)), probabilities.at(first * square));
        // SAFETY: as in `forward`.
        unsafe {
            let operands = [map(dy), products.square(p), map(dv)];
            products.run(gpu, (channels, area), operands)?;
            let operands = [transposed(map(dy)), map(v), products.square(dp)];
            products.run(gpu, (area, channels), operands)?;
            let args: [&dyn KernelArg; 6] = [&ds, &p, &dp, &(rows as u64), &columns, &scale(dims)];
            gpu.launch(SOFTMAX_BACKWARD, warp_blocks(rows), THREADS, 0, &args)?;
            let operands = [map(k), transposed(products.square(ds)), map(dq)];
            products.run(gpu, (channels, area), operands)?;
            let operands = [map(q), products.square(ds), map(dk)];
            products.run(gpu, (channels, area), operands)?;
        }
    }
    Ok(())
}
