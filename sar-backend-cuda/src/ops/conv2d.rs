//! Convolution by im2col and matrix products.
//!
//! The patches of a part of the batch are written out as columns `[inputs·k², positions]` and
//! multiplied by the weights as they are stored; a 1×1 convolution needs no columns. Columns are bounded
//! in size: a part is as many whole images as fit, or a band of rows of one image. A 3×3 layer writes and
//! reads 9 elements for each element of x in the forward, and the same for each of its two gradients.
//!
//! Where a part has several images, the weight gradient has their columns side by side, so that one
//! product sums over the batch as well.

mod gradients;

use super::maps::{THREADS, blocks, narrow, pieces, step};
use crate::KernelArg;
use crate::backend::CudaBackend;
use crate::device::{Device, Kernel};
use crate::error::CudaError;
use crate::gemm::{DataType, Gemm, Matrix, Sample};
use crate::memory::Address;
use crate::storage::Storage;
use sar_math::backend::ConvDims;

const BIAS: Kernel = Kernel { file: "conv2d", name: "conv_bias" };
const IM2COL: Kernel = Kernel { file: "conv2d", name: "im2col" };
const IM2COL_3X3: Kernel = Kernel { file: "conv2d", name: "im2col_3x3" };

/// Scratch for columns: an image of 256×256×128 in bf16 has 144 MiB of them, and with the sums of a
/// split weight gradient (below 40 MiB) the whole stays within 256 MiB.
const COLUMN_BYTES: usize = 192 << 20;
/// A convolution, and how much of it is computed at once.
#[derive(Clone, Copy)]
struct Plan {
    d: ConvDims,
    /// Rows, columns and elements of a plane of y.
    out_height: usize,
    out_width: usize,
    area: usize,
    /// Rows of the matrix of columns.
    taps: usize,
    /// Bytes of scratch for columns.
    bytes: usize,
}

/// Images and rows of outputs that are computed at once: whole images, or some rows of one.
#[derive(Clone, Copy)]
struct Part {
    image: usize,
    images: usize,
    row: usize,
    rows: usize,
}

/// Columns in scratch: where, and how far apart rows and images are.
#[derive(Clone, Copy)]
struct Columns<S> {
    at: Address<S>,
    row_stride: usize,
    image_stride: usize,
}

/// `y[b, outputs, oh, ow]`.
pub(crate) fn forward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: ConvDims,
    x: Address<S>,
    weight: Address<S>,
    bias: Address<f32>,
    y: Address<S>,
) -> Result<(), CudaError> {
    Plan::new(dims, COLUMN_BYTES).forward(gpu, x, weight, bias, y)
}

/// Gradients of [`forward`]: `dx` is overwritten if asked for, `dweight` and `dbias` are added to.
pub(crate) fn backward<S: Storage, D: Device>(
    gpu: &CudaBackend<S, D>,
    dims: ConvDims,
    dy: Address<S>,
    x: Address<S>,
    weight: Address<S>,
    dx: Option<Address<S>>,
    dweight: Address<f32>,
    dbias: Address<f32>,
) -> Result<(), CudaError> {
    Plan::new(dims, COLUMN_BYTES).backward(gpu, dy, (x, weight), dx, (dweight, dbias))
}

impl Plan {
    fn new(d: ConvDims, bytes: usize) -> Self {
        let (out_height, out_width) = d.output();
        let taps = d.inputs * d.kernel * d.kernel;
        Self { d, out_height, out_width, area: out_height * out_width, taps, bytes }
    }

    /// Whether the maps themselves are the columns.
    fn pointwise(self) -> bool {
        let ConvDims { kernel, stride, pad_before, pad_after, .. } = self.d;
        kernel == 1 && stride == 1 && pad_before == 0 && pad_after == 0
    }

    fn x_image(self) -> usize {
        self.d.inputs * self.d.height * self.d.width
    }

    fn y_image(self) -> usize {
        self.d.outputs * self.area
    }

    /// Images and rows that fit in scratch if a position takes `per_position` elements.
    fn fitting<S: Storage>(self, per_position: usize) -> (usize, usize) {
        let row = per_position * self.out_width * size_of::<S>();
        match self.bytes / (row * self.out_height).max(1) {
            0 => (1, (self.bytes / row).clamp(1, self.out_height)),
            images => (images.min(self.d.batch), self.out_height),
        }
    }

    fn parts(self, (images, rows): (usize, usize)) -> impl Iterator<Item = Part> {
        let (batch, height) = (self.d.batch, self.out_height);
        (0..batch).step_by(images).flat_map(move |image| {
            let images = images.min(batch - image);
            let part = move |row| Part { image, images, row, rows: rows.min(height - row) };
            (0..height).step_by(rows).map(part)
        })
    }

    /// Columns of a part, image after image.
    fn columns<S: Storage>(self, at: Address<S>, part: Part) -> Columns<S> {
        let positions = part.rows * self.out_width;
        Columns { at, row_stride: positions, image_stride: self.taps * positions }
    }

    /// A part of a map of the size of y, `[outputs, positions]` of each image.
    fn outputs<S: Storage>(self, y: Address<S>, part: Part) -> Matrix {
        matrix(y.at(self.first(part)), S::DATA_TYPE, self.area, self.y_image())
    }

    /// Where a part of a map of the size of y begins.
    fn first(self, part: Part) -> usize {
        part.image * self.y_image() + part.row * self.out_width
    }

    fn weights<S: Storage>(self, weight: Address<S>) -> Matrix {
        matrix(weight, S::DATA_TYPE, self.taps, 0)
    }

    fn forward<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        x: Address<S>,
        weight: Address<S>,
        bias: Address<f32>,
        y: Address<S>,
    ) -> Result<(), CudaError> {
        if self.d.batch * self.y_image() == 0 {
            return Ok(());
        }
        // Bytes per position: of columns, and of sums if y is too narrow for them.
        let rounds = size_of::<S>() < size_of::<f32>();
        let held = if self.pointwise() { 0 } else { self.taps * size_of::<S>() };
        let summed = if rounds { self.d.outputs * size_of::<f32>() } else { 0 };
        let (images, mut rows) = self.fitting::<S>((held + summed) / size_of::<S>());
        if self.pointwise() {
            rows = self.out_height;
        }
        let positions = images * rows * self.out_width;
        let [columns, sums] = pieces(gpu, [held * positions, summed * positions])?;
        let sums = sums.cast::<f32>();
        for part in self.parts((images, rows)) {
            let columns = if self.pointwise() {
                self.columns(x.at(part.image * self.x_image()), part)
            } else {
                let columns = self.columns(columns.cast(), part);
                self.im2col(gpu, part, x, columns)?;
                columns
            };
            let out = if rounds {
                let stride = part.rows * self.out_width;
                matrix(sums, DataType::F32, stride, self.d.outputs * stride)
            } else {
                self.outputs(y, part)
            };
            self.product(gpu, part, columns, weight, out)?;
            self.add_bias(gpu, part, sums, bias, y)?;
        }
        Ok(())
    }

    /// `y = sums + bias` for a part, whose sums lie one plane behind the other; in f32, y itself holds them.
    ///
    /// This is a separate pass: an epilogue adds a bias that runs along a row, but here each row has one bias.
    /// Nor can the product be added to the bias: cuBLASLt's kernels for Hopper round a product in bf16 before
    /// they add it. So the sum is taken in f32, and stored once.
    fn add_bias<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        part: Part,
        sums: Address<f32>,
        bias: Address<f32>,
        y: Address<S>,
    ) -> Result<(), CudaError> {
        let outputs = narrow("conv2d", "outputs", self.d.outputs)?;
        let area = narrow("conv2d", "elements of a plane of y", self.area)?;
        let (first, positions) = (self.first(part), part.rows * self.out_width);
        let step = [positions, self.area, first].map(step::<S>).into_iter().min().unwrap_or(1);
        let steps = part.images * self.d.outputs * positions / step;
        // SAFETY: parameters as declared; one thread per step of the part of y, and sums for all of it or none.
        unsafe {
            let args: [&dyn KernelArg; 8] = [
                &y.at(first),
                &sums,
                &bias,
                &(steps as u64),
                &outputs,
                &(positions as u32),
                &area,
                &(step as i32),
            ];
            gpu.launch(BIAS, blocks(steps), THREADS, 0, &args)
        }
    }

    /// `out = W·columns` for a part.
    fn product<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        part: Part,
        columns: Columns<S>,
        weight: Address<S>,
        out: Matrix,
    ) -> Result<(), CudaError> {
        let gemm = Gemm {
            m: self.d.outputs,
            n: part.rows * self.out_width,
            k: self.taps,
            a: self.weights(weight),
            b: columns.matrix(),
            out,
            accumulate: false,
            bias: None,
            batch: part.images,
            sample: Sample::Product,
        };
        // SAFETY: out belongs to the part, in y or in scratch; columns lie in scratch or, if 1×1, in x.
        unsafe { gpu.gemm(&gemm) }
    }

    fn im2col<S: Storage, D: Device>(
        self,
        gpu: &CudaBackend<S, D>,
        part: Part,
        x: Address<S>,
        columns: Columns<S>,
    ) -> Result<(), CudaError> {
        const OP: &str = "conv2d";
        let ConvDims { inputs, height, width, kernel, stride, pad_before, pad_after, .. } = self.d;
        narrow(OP, "elements of a plane of x", height * width)?;
        let positions = part.rows * self.out_width;
        let x = x.at(part.image * self.x_image());
        let pack = step::<S>(width);
        let vector = (kernel, stride, pad_before, pad_after) == (3, 1, 1, 1) && pack > 1;
        let threads = part.images * inputs * positions / if vector { pack } else { 1 };
        let (count, inputs) = (narrow(OP, "columns of all inputs", threads)?, inputs as u32);
        let (height, width, row) = (height as i32, width as i32, part.row as i32);
        let (positions, row_stride) = (positions as u32, columns.row_stride as u64);
        let image_stride = columns.image_stride as u64;
        let grid = blocks(threads);
        // SAFETY: parameters as declared; columns are as long as their strides say.
        unsafe {
            if vector {
                let args: [&dyn KernelArg; 10] = [
                    &columns.at,
                    &x,
                    &count,
                    &inputs,
                    &height,
                    &width,
                    &row,
                    &positions,
                    &row_stride,
                    &image_stride,
                ];
                return gpu.launch(IM2COL_3X3, grid, THREADS, 0, &args);
            }
            let args: [&dyn KernelArg; 14] = [
                &columns.at,
                &x,
                &count,
                &inputs,
                &height,
                &width,
                &(kernel as i32),
                &(stride as i32),
                &(pad_before as i32),
                &(self.out_width as u32),
                &row,
                &positions,
                &row_stride,
                &image_stride,
            ];
            gpu.launch(IM2COL, grid, THREADS, 0, &args)
        }
    }
}

impl<S: Storage> Columns<S> {
    /// `[taps, positions]` of each image.
    fn matrix(self) -> Matrix {
        matrix(self.at, S::DATA_TYPE, self.row_stride, self.image_stride)
    }
}

fn matrix<T>(address: Address<T>, data: DataType, leading: usize, stride: usize) -> Matrix {
    Matrix { address: address.raw(), data, leading, transposed: false, stride }
}

fn transposed(matrix: Matrix) -> Matrix {
    Matrix { transposed: true, ..matrix }
}

#[cfg(all(test, feature = "emulator"))]
#[allow(clippy::unwrap_used)] // clippy takes this for no test, because of the feature
mod tests {
    use super::*;
    use crate::{Emulator, bf16};
    use sar_math::backend::Buffers;

    /// Largest error of f32 sums of some hundred products of order 1, taken in another order.
    const SUM_ERROR: f32 = 2e-5;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// y, dx, dweight, dbias.
    fn run<S: Storage>(d: ConvDims, bytes: usize) -> [Vec<f32>; 4] {
        let gpu = CudaBackend::<S, Emulator>::new(Emulator::new()).unwrap();
        let plan = Plan::new(d, bytes);
        let (x_len, y_len) = (d.batch * plan.x_image(), d.batch * plan.y_image());
        let weights = d.outputs * plan.taps;
        let activation = |len, seed| {
            let mut held = gpu.activation(len).unwrap();
            gpu.upload(&numbers(len, seed), &mut held, 0).unwrap();
            held
        };
        let [x, w, dy] = [(x_len, 1), (weights, 2), (y_len, 3)].map(|(n, s)| activation(n, s));
        let [mut y, mut dx] = [y_len, x_len].map(|n| activation(n, 9));
        let mut grads = gpu.accum(weights + d.outputs).unwrap();
        let head = |buffer: &crate::Buffer<S, Emulator>| buffer.head("", "", 0).unwrap();
        let dweight = grads.head_mut("", "", 0).unwrap();
        let mut bias = gpu.accum(d.outputs).unwrap();
        gpu.upload_accum(&numbers(d.outputs, 4), &mut bias, 0).unwrap();
        let bias = bias.head("", "", 0).unwrap();
        plan.forward(&gpu, head(&x), head(&w), bias, head(&y)).unwrap();
        let given = (dweight, dweight.at(weights));
        plan.backward(&gpu, head(&dy), (head(&x), head(&w)), Some(head(&dx)), given).unwrap();
        let read = |from: &mut crate::Buffer<S, Emulator>, len| {
            let mut held = vec![0.0; len];
            gpu.download(from, 0, &mut held).unwrap();
            held
        };
        let (y, dx) = (read(&mut y, y_len), read(&mut dx, x_len));
        let mut all = vec![0.0; weights + d.outputs];
        gpu.download_accum(&grads, 0, &mut all).unwrap();
        let dbias = all.split_off(weights);
        [y, dx, all, dbias]
    }

    fn parts_change_nothing<S: Storage>(d: ConvDims) {
        let [y, dx, dweight, dbias] = run::<S>(d, COLUMN_BYTES);
        // A row of one image, some rows, an image or two.
        for bytes in [1, 6000, 20_000, 70_000] {
            let part = run::<S>(d, bytes);
            assert_eq!((&part[0], &part[1], &part[3]), (&y, &dx, &dbias), "{bytes} bytes");
            let scale = dweight.iter().fold(1.0f32, |a, v| a.max(v.abs()));
            for (a, b) in part[2].iter().zip(&dweight) {
                assert!((a - b).abs() <= SUM_ERROR * scale, "{bytes} bytes: {a} and {b}");
            }
        }
    }

    #[test]
    fn whole_images_and_bands_give_the_same() {
        let (inputs, outputs, pad_after) = (3, 5, 1);
        let d = |kernel, stride, pad_before, height, width| ConvDims {
            batch: 5,
            inputs,
            outputs,
            height,
            width,
            kernel,
            stride,
            pad_before,
            pad_after,
        };
        for d in [d(3, 1, 1, 16, 24), d(3, 2, 0, 17, 16), d(4, 3, 2, 13, 9), d(2, 3, 0, 11, 7)] {
            parts_change_nothing::<f32>(d);
            parts_change_nothing::<bf16>(d);
        }
        let point = ConvDims { pad_after: 0, ..d(1, 1, 0, 12, 9) };
        parts_change_nothing::<f32>(point);
        let long = ConvDims { inputs: 2, outputs: 3, ..d(3, 1, 1, 70, 68) };
        parts_change_nothing::<f32>(long);
    }
}
