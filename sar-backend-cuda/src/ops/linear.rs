//! Linear layers: matrix products through [`Gemm`], and the sum over rows that a bias gradient is.

use crate::backend::CudaBackend;
use crate::device::{Device, Kernel, KernelArg};
use crate::error::CudaError;
use crate::gemm::{DataType, Gemm, Matrix, Sample};
use crate::memory::Address;
use crate::ops::elementwise::vector;
use crate::storage::Storage;
use sar_math::backend::{LinearDims, Write};

const COLUMN_SUMS: Kernel = Kernel { file: "linear", name: "column_sums" };
const COLUMN_SUMS_ANY: Kernel = Kernel { file: "linear", name: "column_sums_any" };
const ADD_PARTIALS: Kernel = Kernel { file: "linear", name: "add_partials" };

/// Rows that a block sums: enough that partial sums are only a few percent of the traffic, and few enough
/// that 43,520 rows of 1,024 columns give ten blocks per multiprocessor.
pub(crate) const ROWS: usize = 128;
/// Lanes of a warp, which have neighbouring columns in every kernel that sums rows.
pub(crate) const LANES: usize = 32;
/// Threads of a block that sums rows.
pub(crate) const SUM_THREADS: usize = 256;
/// Threads of a block that adds partial sums: there are few blocks, and therefore many warps in each.
const ADD_THREADS: usize = 512;

/// A single row-major matrix, not one of a batch.
fn matrix<T>(address: Address<T>, data: DataType, leading: usize) -> Matrix {
    Matrix { address: address.raw(), data, leading, transposed: false, stride: 0 }
}

fn transposed(matrix: Matrix) -> Matrix {
    Matrix { transposed: true, ..matrix }
}

/// `y[rows, outputs] = x[rows, inputs]·Wᵀ + bias`.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: LinearDims,
    x: Address<S>,
    weight: Address<S>,
    bias: Option<Address<S>>,
    y: Address<S>,
) -> Result<(), CudaError> {
    let LinearDims { rows, inputs, outputs } = dims;
    let gemm = Gemm {
        m: rows,
        n: outputs,
        k: inputs,
        a: matrix(x, S::DATA_TYPE, inputs),
        b: transposed(matrix(weight, S::DATA_TYPE, inputs)),
        out: matrix(y, S::DATA_TYPE, outputs),
        accumulate: false,
        bias: bias.map(Address::raw),
        batch: 1,
        sample: Sample::Row,
    };
    // SAFETY: all four were checked on entry for these dimensions, and y is no operand.
    unsafe { gpu.gemm(&gemm) }
}

/// `dx = dy·W`.
pub(crate) fn backward_input<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: LinearDims,
    dy: Address<S>,
    weight: Address<S>,
    dx: Address<S>,
) -> Result<(), CudaError> {
    let LinearDims { rows, inputs, outputs } = dims;
    let gemm = Gemm {
        m: rows,
        n: inputs,
        k: outputs,
        a: matrix(dy, S::DATA_TYPE, outputs),
        b: matrix(weight, S::DATA_TYPE, inputs),
        out: matrix(dx, S::DATA_TYPE, inputs),
        accumulate: false,
        bias: None,
        batch: 1,
        sample: Sample::All,
    };
    // SAFETY: as in `forward`.
    unsafe { gpu.gemm(&gemm) }
}

/// `dW = dyᵀ·x`, or `+=`, in f32.
pub(crate) fn backward_weight<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: LinearDims,
    dy: Address<S>,
    x: Address<S>,
    write: Write,
    dweight: Address<f32>,
) -> Result<(), CudaError> {
    let LinearDims { rows, inputs, outputs } = dims;
    if rows == 0 && write == Write::Overwrite {
        // SAFETY: the weight was checked on entry for these dimensions.
        return unsafe { gpu.zero(dweight, outputs * inputs) };
    }
    let gemm = Gemm {
        m: outputs,
        n: inputs,
        k: rows,
        a: transposed(matrix(dy, S::DATA_TYPE, outputs)),
        b: matrix(x, S::DATA_TYPE, inputs),
        out: matrix(dweight, DataType::F32, inputs),
        accumulate: write == Write::Accumulate,
        bias: None,
        batch: 1,
        sample: Sample::All,
    };
    // SAFETY: as in `forward`.
    unsafe { gpu.gemm(&gemm) }
}

/// `dbias += Σ dy` over rows.
pub(crate) fn backward_bias<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: LinearDims,
    dy: Address<S>,
    dbias: Address<f32>,
) -> Result<(), CudaError> {
    let (rows, columns) = (dims.rows, dims.outputs);
    let chunks = rows.div_ceil(ROWS);
    let partials = gpu.scratch(chunks * columns * 4)?.cast::<f32>();
    let (kernel, step) = match vector::<S>() {
        step if columns % step == 0 => (COLUMN_SUMS, step),
        _ => (COLUMN_SUMS_ANY, 1),
    };
    // SAFETY: parameters as declared; `partials` holds a row of sums for every chunk.
    unsafe {
        let args: [&dyn KernelArg; 5] =
            [&partials, &dy, &(rows as u64), &(columns as i32), &(ROWS as i32)];
        gpu.launch(kernel, [chunks, columns.div_ceil(LANES * step), 1], SUM_THREADS, 0, &args)?;
    }
    add_partials(gpu, chunks, columns, partials, dbias)
}

/// `dbias += Σ partials[chunks, columns]` over chunks.
pub(crate) fn add_partials<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    chunks: usize,
    columns: usize,
    partials: Address<f32>,
    dbias: Address<f32>,
) -> Result<(), CudaError> {
    let args: [&dyn KernelArg; 4] = [&dbias, &partials, &(chunks as i32), &(columns as i32)];
    // SAFETY: parameters as declared; both were checked or made for these dimensions.
    unsafe { gpu.launch(ADD_PARTIALS, [columns.div_ceil(LANES), 1, 1], ADD_THREADS, 0, &args) }
}
