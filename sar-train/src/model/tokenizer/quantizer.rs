//! From latents to codes, and from codes to the input of the next scale and of the decoder.
//!
//! Where each scale stands for the latent itself (FlexVAR), a scale's codes are those nearest by
//! angle to the latent's area means, the next scale reads them resized bicubically, and the last
//! scale's are decoded. Where scales add up (VAR: `VectorQuantizer2`), each takes the codes nearest
//! by distance to the means of what the scales before have left of the latent, from which
//! `φ(bicubic(codes))` is then subtracted; the next scale reads the means of the sum so far, and
//! that sum is decoded.

use super::layout::{Tokenizer, normalise};
use super::phi::{Phi, fold, phi_of};
use num_traits::Zero;
use sar_math::backend::{
    Backend, Buffers, Conv, ConvDims, MapDims, RolloutDims, ShapeError, Slot, TokenSpan,
};
use sar_math::{Real, ScaleSchedule};
use std::ops::Range;

/// A codebook on a backend, and how scales use it.
pub struct Quantizer<B: Buffers> {
    pub(super) vocab: usize,
    pub(super) channels: usize,
    /// The vectors of the codes, `[v, k]`; L2-normalised where each scale stands for the latent
    /// itself.
    pub(super) codebook: B::Accum,
    pub(super) residual: Option<Residual<B>>,
}

/// What is needed in addition where scales add up.
pub(super) struct Residual<B: Buffers> {
    /// `[v, k+1]`, as [`Distance::Euclidean`] takes it.
    pub(super) lifted: B::Accum,
    /// Each φ as one convolution, followed by its negative, which subtracts.
    params: B::Params,
    phis: Vec<Phi>,
}

/// Memory of a quantizer for one schedule's grids and a maximum batch.
pub struct QuantizerMemory<B: Buffers> {
    /// Means of the latent to look up, `[b, tokens, k]`: of all scales, or of the largest one where
    /// scales add up.
    pub(super) tokens: Option<B::Activation>,
    pub(super) maps: Option<Maps<B>>,
}

/// Maps `[b, k, h, w]` of the size of the last grid.
pub(super) struct Maps<B: Buffers> {
    /// The sum of the scales before [`Maps::summed`], or, while codes are looked up, the remainder
    /// of a latent.
    pub(super) sum: B::Activation,
    /// A scale's codes at full size, and φ of them.
    grown: B::Activation,
    pub(super) step: B::Activation,
    pub(super) summed: usize,
}

impl Tokenizer {
    /// Builds the quantizer of these parameters.
    ///
    /// # Errors
    /// Out of memory; shape, if `params` belong to another model.
    pub fn quantizer<B: Buffers>(
        &self,
        backend: &B,
        params: &B::Params,
    ) -> Result<Quantizer<B>, B::Error> {
        let (vocab, channels) = (self.config().vocab, self.config().latent_channels);
        let read = |slot: Slot| {
            let mut values = vec![B::Host::zero(); slot.len];
            backend.download_params(params, slot.offset, &mut values)?;
            Ok::<_, B::Error>(values)
        };
        let mut codes = read(self.codebook())?;
        if self.phis().is_empty() {
            codes.chunks_exact_mut(channels).for_each(normalise);
            return Quantizer::direct(backend, &codes, vocab);
        }
        let mut folded = Vec::new();
        let mut phis = Vec::new();
        for phi in self.phis() {
            let (weight, bias) = (read(phi.weight)?, read(phi.bias)?);
            let [add, take] = [1.0, -1.0].map(|sign| fold(&weight, &bias, sign, &mut folded));
            phis.push(Phi { add, take });
        }
        let mut on_backend = backend.params(folded.len())?;
        backend.upload_params(&folded, &mut on_backend, 0)?;
        let lifted: Vec<B::Host> = codes.chunks_exact(channels).flat_map(lift).collect();
        let residual = Residual { lifted: upload(backend, &lifted)?, params: on_backend, phis };
        let codebook = upload(backend, &codes)?;
        Ok(Quantizer { vocab, channels, codebook, residual: Some(residual) })
    }
}

/// Returns a code e followed by `−|e|²/2`.
fn lift<T: Real>(code: &[T]) -> Vec<T> {
    let square: f64 = code.iter().map(|e| e.wide() * e.wide()).sum();
    code.iter().copied().chain([T::of(-0.5 * square)]).collect()
}

fn upload<B: Buffers>(backend: &B, values: &[B::Host]) -> Result<B::Accum, B::Error> {
    let mut buffer = backend.accum(values.len())?;
    backend.upload_accum(values, &mut buffer, 0)?;
    Ok(buffer)
}

impl<B: Buffers> Quantizer<B> {
    /// Creates a quantizer of L2-normalised codes `[v, k]`, with each scale standing for the latent
    /// itself.
    ///
    /// # Errors
    /// Out of memory; shape, if the codes are not whole rows.
    pub fn direct(backend: &B, codes: &[B::Host], vocab: usize) -> Result<Self, B::Error> {
        ShapeError::at_least("quantizer", "vocab", 1, vocab)?;
        ShapeError::equal("quantizer", "codes % vocab", 0, codes.len() % vocab)?;
        let channels = codes.len() / vocab;
        Ok(Self { vocab, channels, codebook: upload(backend, codes)?, residual: None })
    }

    /// Number of codes V.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Number of latent channels K.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Returns the vectors of the codes, `[v, k]`.
    pub fn codebook(&self) -> &B::Accum {
        &self.codebook
    }

    /// Whether scales add up, so that a scale's input depends on the codes of all before it.
    pub fn adds_up(&self) -> bool {
        self.residual.is_some()
    }

    /// Returns rows and columns of the map that is decoded after `scale`.
    pub fn grid(&self, schedule: &ScaleSchedule, scale: usize) -> (usize, usize) {
        let own = schedule.scales().get(scale).copied();
        let of = if self.adds_up() { own.map(|_| schedule.last()) } else { own };
        of.map_or((0, 0), |scale| (scale.height, scale.width))
    }

    /// Allocates memory for looking up and adding up codes of `batch` images in a schedule.
    ///
    /// # Errors
    /// Out of memory.
    pub fn memory(
        &self,
        backend: &B,
        batch: usize,
        schedule: &ScaleSchedule,
    ) -> Result<QuantizerMemory<B>, B::Error> {
        let largest = schedule.scales().iter().map(|s| s.tokens()).max().unwrap_or(1);
        let tokens = if self.adds_up() { largest } else { schedule.tokens() };
        let tokens = Some(backend.activation(batch * tokens * self.channels)?);
        Ok(QuantizerMemory { tokens, ..self.adding_memory(backend, batch, schedule)? })
    }

    /// Allocates memory for adding up codes only, as a sampler does; nothing where scales do not
    /// add up.
    ///
    /// # Errors
    /// Out of memory.
    pub fn adding_memory(
        &self,
        backend: &B,
        batch: usize,
        schedule: &ScaleSchedule,
    ) -> Result<QuantizerMemory<B>, B::Error> {
        let map = || backend.activation(batch * self.channels * schedule.last().tokens());
        let maps = match self.adds_up() {
            true => Some(Maps { sum: map()?, grown: map()?, step: map()?, summed: 0 }),
            false => None,
        };
        Ok(QuantizerMemory { tokens: None, maps })
    }

    /// Returns the dimensions of the maps in which scales add up.
    pub(super) fn sum_dims(&self, batch: usize, schedule: &ScaleSchedule) -> MapDims {
        let last = schedule.last();
        let (height, width) = (last.height, last.width);
        MapDims { batch, channels: self.channels, height, width }
    }

    pub(super) fn dims(
        &self,
        batch: usize,
        schedule: &ScaleSchedule,
        scales: Range<usize>,
    ) -> RolloutDims {
        RolloutDims {
            batch,
            schedule: *schedule,
            scales,
            channels: self.channels,
            vocab: self.vocab,
        }
    }
}

impl<B: Buffers> QuantizerMemory<B> {
    /// Makes the next sum start again at the first scale.
    pub fn begin(&mut self) {
        if let Some(maps) = &mut self.maps {
            maps.summed = 0;
        }
    }
}

impl<B: Backend> Quantizer<B> {
    /// Computes the inputs `[b, tokens of the scales, k]` of `scales`, each from the codes before
    /// it.
    ///
    /// # Errors
    /// Shape, if the memory is too small; a device fault.
    pub fn inputs(
        &self,
        backend: &B,
        memory: &mut QuantizerMemory<B>,
        batch: usize,
        schedule: &ScaleSchedule,
        scales: Range<usize>,
        ids_bt: &B::Ids,
        inputs: &mut B::Activation,
    ) -> Result<(), B::Error> {
        memory.begin();
        self.next_inputs(backend, memory, batch, schedule, scales, ids_bt, inputs)
    }

    /// Like [`Quantizer::inputs`], but continues the sum begun at [`QuantizerMemory::begin`]: the
    /// codes of the scales added so far must not have changed.
    ///
    /// # Errors
    /// As for [`Quantizer::inputs`].
    pub fn next_inputs(
        &self,
        backend: &B,
        memory: &mut QuantizerMemory<B>,
        batch: usize,
        schedule: &ScaleSchedule,
        scales: Range<usize>,
        ids_bt: &B::Ids,
        inputs: &mut B::Activation,
    ) -> Result<(), B::Error> {
        if !self.adds_up() {
            let dims = self.dims(batch, schedule, scales);
            return backend.rollout_inputs(&dims, ids_bt, &self.codebook, inputs);
        }
        ShapeError::at_least("codes", "scales.start", 1, scales.start)?;
        let sum = self.sum_dims(batch, schedule);
        for scale in scales.clone() {
            self.add_up(backend, memory, batch, schedule, scale, ids_bt)?;
            let Some(maps) = &memory.maps else { return Err(no_memory(TO_ADD_UP).into()) };
            let span =
                TokenSpan { schedule: *schedule, held: scales.clone(), scales: scale..scale + 1 };
            backend.area_tokens(sum, &span, &maps.sum, inputs)?;
        }
        Ok(())
    }

    /// Computes the map `[b, k, h, w]` of [`Quantizer::grid`] that is decoded after `scale`. Where
    /// scales add up, calls after [`QuantizerMemory::begin`] must be in ascending order of scales.
    ///
    /// # Errors
    /// As for [`Quantizer::inputs`].
    pub fn map(
        &self,
        backend: &B,
        memory: &mut QuantizerMemory<B>,
        batch: usize,
        schedule: &ScaleSchedule,
        scale: usize,
        ids_bt: &B::Ids,
        map_bkhw: &mut B::Activation,
    ) -> Result<(), B::Error> {
        if !self.adds_up() {
            let dims = self.dims(batch, schedule, scale..scale + 1);
            let grid = self.grid(schedule, scale);
            return backend.code_map(&dims, scale, grid, ids_bt, &self.codebook, map_bkhw);
        }
        self.add_up(backend, memory, batch, schedule, scale + 1, ids_bt)?;
        let Some(maps) = &memory.maps else { return Err(no_memory(TO_ADD_UP).into()) };
        let len = batch * self.channels * schedule.last().tokens();
        backend.copy(&maps.sum, 0, map_bkhw, 0, len)
    }

    /// Continues the sum up to the scales before `end`.
    fn add_up(
        &self,
        backend: &B,
        memory: &mut QuantizerMemory<B>,
        batch: usize,
        schedule: &ScaleSchedule,
        end: usize,
        ids_bt: &B::Ids,
    ) -> Result<(), B::Error> {
        let (Some(residual), Some(maps)) = (&self.residual, &mut memory.maps) else {
            return Err(no_memory(TO_ADD_UP).into());
        };
        ShapeError::at_least("codes", "scales (added up before)", maps.summed, end)?;
        let len = batch * self.channels * schedule.last().tokens();
        for scale in maps.summed..end {
            let add = residual.phi(scale, schedule.len()).add;
            let dims = self.dims(batch, schedule, scale..scale + 1);
            self.grow(backend, residual, &dims, scale, add, ids_bt, maps)?;
            match scale {
                0 => backend.copy(&maps.step, 0, &mut maps.sum, 0, len)?,
                _ => backend.add(&maps.step, &mut maps.sum, len)?,
            }
            maps.summed = scale + 1;
        }
        Ok(())
    }

    /// Computes φ of a scale's codes at the size of the last grid, into `maps.step`.
    pub(super) fn grow(
        &self,
        backend: &B,
        residual: &Residual<B>,
        dims: &RolloutDims,
        scale: usize,
        phi: Conv,
        ids_bt: &B::Ids,
        maps: &mut Maps<B>,
    ) -> Result<(), B::Error> {
        let last = dims.schedule.last();
        let size = (last.height, last.width);
        backend.code_map(dims, scale, size, ids_bt, &self.codebook, &mut maps.grown)?;
        let conv = ConvDims {
            batch: dims.batch,
            inputs: self.channels,
            outputs: self.channels,
            height: last.height,
            width: last.width,
            kernel: 3,
            stride: 1,
            pad_before: 1,
            pad_after: 1,
        };
        backend.conv2d(conv, &maps.grown, &residual.params, phi, &mut maps.step)
    }
}

/// Name of what [`Quantizer::memory`] and [`Quantizer::adding_memory`] provide where scales add up,
/// for errors.
pub(super) const TO_ADD_UP: &str = "memory to add up (of this quantizer)";

pub(super) fn no_memory(operand: &'static str) -> ShapeError {
    ShapeError { op: "codes", operand, expected: 1, found: 0 }
}

impl<B: Buffers> Residual<B> {
    /// Returns φ of scale i of n.
    pub(super) fn phi(&self, i: usize, n: usize) -> Phi {
        self.phis[phi_of(self.phis.len(), i, n)]
    }
}
