//! Generation scale by scale with a cache of keys and values.

mod blocks;

use super::recordings::{Call, Recordings};
use crate::model::generator::{Conditioning, Generator};
use crate::model::tokenizer::{Quantizer, QuantizerMemory};
use blocks::Blocks;
use sar_math::backend::{Backend, Buffers, Choice, ChooseDims, LinearDims, MapDims, ShapeError};
use sar_math::{MAX_SCALES, ScaleSchedule};

/// Sides of the grids that the published sampler draws from a distribution; on others it is greedy.
const PUBLISHED_SIDES: [usize; 13] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 24, 32];

/// How codes are chosen while sampling.
#[derive(Clone, Copy, Debug)]
pub struct Decoding {
    /// Guidance t of each scale; `None` runs no unconditional samples at all.
    pub guidance: Option<[f64; MAX_SCALES]>,
    /// Argmax, or a draw from the filtered distribution.
    pub choice: Choice,
}

/// Kept codes where scales add up: each stands for what the scales before it leave of the known latents.
struct Known<B: Buffers> {
    /// What is left of the latents.
    memory: QuantizerMemory<B>,
    /// Codes `[b, T]`.
    ids: B::Ids,
}

/// Codes that are given instead of generated.
pub struct Given<'a, B: Buffers> {
    /// Codes `[b, T]`.
    pub ids: &'a B::Ids,
    /// Which scales to take from them whole.
    pub scales: [bool; MAX_SCALES],
    /// Which tokens of the other scales to take from them, `[b, T]`: those that are not 0 here.
    pub kept: Option<&'a B::Ids>,
    /// Latents `[b, k, h, w]` that the kept codes are of. Where scales add up, a kept code stands
    /// for what the scales before it leave of the latents, whichever codes those got: it is looked
    /// up when its scale comes, instead of being taken from `ids`.
    pub latents: Option<(&'a B::Activation, MapDims)>,
}

/// A generator with its weights, and what its codes stand for.
pub struct Model<'m, B: Backend> {
    /// The generator.
    pub generator: &'m Generator,
    /// Its weights.
    pub params: &'m B::Params,
    /// The quantizer of the tokenizer that it was trained on.
    pub quantizer: &'m Quantizer<B>,
}

impl<B: Backend> Clone for Model<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Model<'_, B> {}

/// Memory of a sampling run: cache and scratch, for one schedule and a largest batch.
///
/// The blocks of a scale are the same ops on the same buffers in every run, so they go through
/// [`Buffers::replay`]: a backend may record them once.
pub struct Sampler<B: Buffers> {
    schedule: ScaleSchedule,
    /// The schedule that memory was allocated for.
    room: ScaleSchedule,
    recordings: Recordings,
    /// Scales whose codes are the most likely ones, whatever the decoding says about the others.
    greedy: [bool; MAX_SCALES],
    /// Rows that there is room for: a batch together with its unconditional half.
    rows: usize,
    /// Images of a batch.
    images: usize,
    labels: B::Ids,
    conditioning: Conditioning<B>,
    inputs: B::Activation,
    blocks: Blocks<B>,
    known: Option<Known<B>>,
    /// What the codes of the scales so far add up to.
    pub(crate) coded: QuantizerMemory<B>,
    /// Logits of the scale generated last, guided where there is guidance, `[b, n, v]`.
    pub logits: B::Activation,
    /// Codes of all scales, `[b, T]`.
    pub ids: B::Ids,
}

impl<B: Backend> Sampler<B> {
    /// Room for `batch` images of a schedule, guided or not.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        backend: &B,
        generator: &Generator,
        quantizer: &Quantizer<B>,
        batch: usize,
        schedule: &ScaleSchedule,
        guided: bool,
    ) -> Result<Self, B::Error> {
        let g = generator.shape();
        let tokens = schedule.tokens();
        let rows = if guided { 2 * batch } else { batch };
        let largest = schedule.scales().iter().map(|s| s.tokens()).max().unwrap_or(1);
        Ok(Self {
            schedule: *schedule,
            room: *schedule,
            recordings: Recordings::default(),
            greedy: [false; MAX_SCALES],
            rows,
            images: batch,
            labels: backend.ids(rows)?,
            conditioning: Conditioning::new(backend, generator, rows, tokens)?,
            inputs: backend.activation(batch * largest * g.channels)?,
            blocks: Blocks::new(backend, generator, rows, largest, tokens)?,
            known: None,
            coded: quantizer.adding_memory(backend, batch, schedule)?,
            logits: backend.activation(batch * largest * g.vocab)?,
            ids: backend.ids(batch * tokens)?,
        })
    }

    /// Generates the codes of `labels.len()` images; they are left in `self.ids`.
    ///
    /// Image `k` of a seed is the same whatever batch it is generated in. `given` scales are not
    /// generated: they are taken as they are and feed the next scale. In the other scales, the tokens
    /// that are kept replace generated ones, and feed the next scale together with the generated rest.
    ///
    /// # Errors
    /// A shape error if there are more labels than room; a device fault.
    pub fn run(
        &mut self,
        backend: &B,
        model: Model<'_, B>,
        labels: &[u32],
        decoding: &Decoding,
        given: Option<&Given<'_, B>>,
    ) -> Result<(), B::Error> {
        self.run_observed(backend, model, labels, decoding, given, |_, _| Ok(()))
    }

    /// As [`Sampler::run`]; `observe` sees each generated scale after its codes are chosen, with its logits still in
    /// place.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn run_observed(
        &mut self,
        backend: &B,
        model: Model<'_, B>,
        labels: &[u32],
        decoding: &Decoding,
        given: Option<&Given<'_, B>>,
        observe: impl FnMut(usize, &Self) -> Result<(), B::Error>,
    ) -> Result<(), B::Error> {
        let scales = self.schedule.len();
        self.run_scales(backend, model, labels, decoding, given, scales, observe)
    }

    /// Chooses codes greedily on grids outside the published sampler's fixed list, as that sampler
    /// does, or on no grid.
    pub(crate) fn set_published_greedy(&mut self, on: bool) {
        self.greedy = [false; MAX_SCALES];
        for (greedy, scale) in self.greedy.iter_mut().zip(self.schedule.scales()) {
            let listed = scale.height == scale.width && PUBLISHED_SIDES.contains(&scale.height);
            *greedy = on && !listed;
        }
    }

    /// Switches to another schedule, with no more tokens in all, in its largest scale and in its last.
    pub(crate) fn set_schedule(&mut self, schedule: &ScaleSchedule) {
        self.schedule = *schedule;
    }

    /// As [`Sampler::run_observed`], for only the first `scales` scales.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub(crate) fn run_scales(
        &mut self,
        backend: &B,
        model: Model<'_, B>,
        labels: &[u32],
        decoding: &Decoding,
        given: Option<&Given<'_, B>>,
        scales: usize,
        mut observe: impl FnMut(usize, &Self) -> Result<(), B::Error>,
    ) -> Result<(), B::Error> {
        let batch = labels.len();
        let rows = if decoding.guidance.is_some() { 2 * batch } else { batch };
        ShapeError::at_least("sample", "sampler rows", rows, self.rows)?;
        self.begin(backend, model, labels, rows)?;
        if let Some(g) = given {
            let (schedule, taken) = (self.schedule, &g.scales[..self.schedule.len()]);
            backend.merge_ids(batch, &schedule, taken, g.ids, &mut self.ids)?;
        }
        let looks_up = self.look_at(backend, model.quantizer, batch, given)?;
        for scale in 0..scales.min(self.schedule.len()) {
            let call = Call { scale, batch, rows };
            if scale > 0 {
                self.feed(backend, model.quantizer, call)?;
            }
            self.features(backend, model, call)?;
            if given.is_some_and(|g| g.scales[scale]) {
                if let Some(known) = self.known.as_mut().filter(|_| looks_up) {
                    let (memory, schedule) = (&mut known.memory, &self.schedule);
                    model.quantizer.take_off(backend, memory, batch, schedule, scale, &self.ids)?;
                }
                continue;
            }
            self.choose(backend, model, call, decoding)?;
            if let Some(given) = given {
                self.keep(backend, model.quantizer, call, given, looks_up)?;
            }
            observe(scale, self)?;
        }
        Ok(())
    }

    /// Computes class vectors, modulation and positions, once per batch.
    fn begin(
        &mut self,
        backend: &B,
        Model { generator, params, .. }: Model<'_, B>,
        labels: &[u32],
        rows: usize,
    ) -> Result<(), B::Error> {
        self.coded.begin();
        backend.upload_ids(labels, &mut self.labels, 0)?;
        if rows > labels.len() {
            let unconditional = vec![generator.shape().classes as u32; labels.len()];
            backend.upload_ids(&unconditional, &mut self.labels, labels.len())?;
        }
        let (schedule, into) = (&self.schedule, &mut self.conditioning);
        generator.condition(backend, params, rows, &self.labels, schedule, into)
    }

    /// Computes the inputs of a scale from the codes before it.
    fn feed(
        &mut self,
        backend: &B,
        quantizer: &Quantizer<B>,
        Call { scale, batch, .. }: Call,
    ) -> Result<(), B::Error> {
        let (schedule, ids, inputs) = (&self.schedule, &self.ids, &mut self.inputs);
        let scales = scale..scale + 1;
        quantizer.next_inputs(backend, &mut self.coded, batch, schedule, scales, ids, inputs)
    }

    /// Computes the features of a scale. They are recorded only if the schedule is the one that
    /// memory was allocated for: the random schedules of training are too many to be worth it.
    fn features(&mut self, backend: &B, model: Model<'_, B>, call: Call) -> Result<(), B::Error> {
        let (conditioning, inputs, schedule) = (&self.conditioning, &self.inputs, &self.schedule);
        let blocks = &mut self.blocks;
        let mut run = || blocks.run(backend, model, conditioning, inputs, schedule, call);
        if *schedule != self.room {
            return run();
        }
        let weights = backend.params_key(model.params);
        let key = self.recordings.key(weights, model.generator.shape(), call);
        backend.replay(key, &mut run)
    }

    /// Draws the codes of a scale from its features. This is not recorded, because the caller may
    /// set another strength of guidance in every run.
    fn choose(
        &mut self,
        backend: &B,
        model: Model<'_, B>,
        call: Call,
        decoding: &Decoding,
    ) -> Result<(), B::Error> {
        let Call { scale, batch, .. } = call;
        self.head(backend, model, call, decoding.guidance.map(|ramp| ramp[scale]))?;
        let dims = ChooseDims {
            batch,
            first_sample: 0,
            schedule: self.schedule,
            scales: scale..scale + 1,
            vocab: model.generator.shape().vocab,
            // Guidance was applied to the features, before the head.
            guidance: None,
            choice: if self.greedy[scale] { Choice::Argmax } else { decoding.choice },
        };
        backend.choose_codes(&dims, &self.logits, &mut self.ids)
    }

    /// Computes the logits of one scale. The features are guided with strength `t`, which guides
    /// the logits too because the head is linear in them.
    fn head(
        &mut self,
        backend: &B,
        Model { generator, params, .. }: Model<'_, B>,
        Call { scale, batch, .. }: Call,
        t: Option<f64>,
    ) -> Result<(), B::Error> {
        let g = generator.shape();
        let rows = batch * self.schedule.range(scale).len();
        let features = &mut self.blocks.normed;
        if let Some(t) = t {
            backend.guide(rows * g.width, t, features)?;
        }
        let dims = LinearDims { rows, inputs: g.width, outputs: g.vocab };
        backend.linear(dims, features, params, generator.head, &mut self.logits)
    }

    /// Prepares to look up kept codes; returns whether they are to be looked up.
    fn look_at(
        &mut self,
        backend: &B,
        quantizer: &Quantizer<B>,
        batch: usize,
        given: Option<&Given<'_, B>>,
    ) -> Result<bool, B::Error> {
        let latents = given.filter(|g| g.kept.is_some()).and_then(|g| g.latents);
        let Some((latents, dims)) = latents.filter(|_| quantizer.adds_up()) else {
            return Ok(false);
        };
        let mut known = match self.known.take() {
            Some(known) => known,
            None => Known {
                memory: quantizer.memory(backend, self.images, &self.room)?,
                ids: backend.ids(self.images * self.room.tokens())?,
            },
        };
        let dims = MapDims { batch, ..dims };
        quantizer.look_at(backend, &mut known.memory, dims, &self.schedule, latents)?;
        self.known = Some(known);
        Ok(true)
    }

    /// Replaces the generated codes of a scale by those that are kept.
    fn keep(
        &mut self,
        backend: &B,
        quantizer: &Quantizer<B>,
        call: Call,
        given: &Given<'_, B>,
        looks_up: bool,
    ) -> Result<(), B::Error> {
        let Some(kept) = given.kept else { return Ok(()) };
        let (schedule, scales) = (&self.schedule, call.scale..call.scale + 1);
        let ids = &mut self.ids;
        let Some(known) = self.known.as_mut().filter(|_| looks_up) else {
            return backend.keep_codes(call.batch, schedule, scales, kept, given.ids, ids);
        };
        let (Known { memory, ids: own }, Call { scale, batch, .. }) = (known, call);
        quantizer.look_up(backend, memory, batch, schedule, scale, own)?;
        backend.keep_codes(batch, schedule, scales, kept, own, ids)?;
        quantizer.take_off(backend, memory, batch, schedule, scale, ids)
    }
}
