//! Generation scale by scale with a cache of keys and values.

mod blocks;

use super::recordings::{Call, Recordings};
use crate::model::generator::{Generator, Places};
use crate::model::tokenizer::{Quantizer, QuantizerMemory};
use sar_math::backend::{Backend, Buffers, Choice, ChooseDims, LatentDims, LinearDims, ShapeError};
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
    pub latents: Option<(&'a B::Activation, LatentDims)>,
}

/// Kept codes that are looked up while others are generated.
struct Known<B: Buffers> {
    memory: QuantizerMemory<B>,
    ids: B::Ids,
}

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
    labels: B::Ids,
    cond: B::Activation,
    silu_cond: B::Activation,
    ada: B::Activation,
    pos_lc: B::Activation,
    places: Option<Places<B>>,
    inputs: B::Activation,
    cache: Vec<B::Activation>,
    x: B::Activation,
    sum: B::Activation,
    normed: B::Activation,
    branch: B::Activation,
    wide: B::Activation,
    activated: B::Activation,
    stats: B::Accum,
    /// Images of a batch.
    images: usize,
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
        let (c, tokens) = (g.width, schedule.tokens());
        let rows = if guided { 2 * batch } else { batch };
        let largest = schedule.scales().iter().map(|s| s.tokens()).max().unwrap_or(1);
        let n = rows * largest;
        let cache: Result<Vec<_>, _> =
            (0..g.depth).map(|_| backend.activation(2 * rows * tokens * c)).collect();
        Ok(Self {
            schedule: *schedule,
            room: *schedule,
            recordings: Recordings::default(),
            greedy: [false; MAX_SCALES],
            rows,
            labels: backend.ids(rows)?,
            cond: backend.activation(rows * c)?,
            silu_cond: backend.activation(rows * c)?,
            ada: backend.activation(rows * generator.ada_stride())?,
            pos_lc: backend.activation(tokens * c)?,
            places: generator.places(backend, tokens)?,
            inputs: backend.activation(batch * largest * g.channels)?,
            cache: cache?,
            x: backend.activation(n * c)?,
            sum: backend.activation(n * c)?,
            normed: backend.activation(n * c)?,
            branch: backend.activation(n * c)?,
            wide: backend.activation(n * g.widest())?,
            activated: backend.activation(n * g.mlp_ratio * c)?,
            stats: backend.accum(n * 2)?,
            images: batch,
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
    /// `observe` sees each generated scale after its codes are chosen, with its logits still in place.
    ///
    /// # Errors
    /// A shape error if there are more labels than room; a device fault.
    pub fn run(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        quantizer: &Quantizer<B>,
        labels: &[u32],
        decoding: &Decoding,
        given: Option<&Given<'_, B>>,
        observe: impl FnMut(usize, &Self) -> Result<(), B::Error>,
    ) -> Result<(), B::Error> {
        let scales = self.schedule.len();
        self.run_scales(
            backend, generator, params, quantizer, labels, decoding, given, scales, observe,
        )
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

    /// As [`Sampler::run`], for only the first `scales` scales.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub(crate) fn run_scales(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        quantizer: &Quantizer<B>,
        labels: &[u32],
        decoding: &Decoding,
        given: Option<&Given<'_, B>>,
        scales: usize,
        mut observe: impl FnMut(usize, &Self) -> Result<(), B::Error>,
    ) -> Result<(), B::Error> {
        let batch = labels.len();
        let rows = if decoding.guidance.is_some() { 2 * batch } else { batch };
        ShapeError::at_least("sample", "sampler rows", rows, self.rows)?;
        self.begin(backend, generator, params, labels, rows)?;
        self.coded.begin();
        if let Some(g) = given {
            let (schedule, taken) = (self.schedule, &g.scales[..self.schedule.len()]);
            backend.merge_ids(batch, &schedule, taken, g.ids, &mut self.ids)?;
        }
        let looks_up = self.look_at(backend, quantizer, batch, given)?;
        for scale in 0..scales.min(self.schedule.len()) {
            if scale > 0 {
                self.feed(backend, quantizer, batch, scale)?;
            }
            self.features(backend, generator, params, batch, rows, scale)?;
            if given.is_some_and(|g| g.scales[scale]) {
                if looks_up {
                    self.take_off(backend, quantizer, batch, scale)?;
                }
                continue;
            }
            self.choose(backend, generator, params, batch, scale, decoding)?;
            if let Some(given) = given {
                self.keep(backend, quantizer, batch, scale, given, looks_up)?;
            }
            observe(scale, self)?;
        }
        Ok(())
    }

    /// Computes the features of a scale. They are recorded only if the schedule is the one that
    /// memory was allocated for: the random schedules of training are too many to be worth it.
    fn features(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        batch: usize,
        rows: usize,
        scale: usize,
    ) -> Result<(), B::Error> {
        if self.schedule != self.room {
            return self.trunk(backend, generator, params, batch, rows, scale);
        }
        let (weights, call) = (backend.params_key(params), Call { scale, batch, rows });
        let key = self.recordings.key(weights, generator.shape(), call);
        backend.replay(key, &mut || self.trunk(backend, generator, params, batch, rows, scale))
    }

    /// Draws the codes of a scale from its features. This is not recorded, because the caller may
    /// set another strength of guidance in every run.
    fn choose(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        batch: usize,
        scale: usize,
        decoding: &Decoding,
    ) -> Result<(), B::Error> {
        let t = decoding.guidance.map(|ramp| ramp[scale]);
        self.head(backend, generator, params, batch, scale, t)?;
        let dims = ChooseDims {
            batch,
            first_sample: 0,
            schedule: self.schedule,
            scales: scale..scale + 1,
            vocab: generator.shape().vocab,
            // Guidance was applied to the features, before the head.
            guidance: None,
            choice: if self.greedy[scale] { Choice::Argmax } else { decoding.choice },
        };
        backend.choose_codes(&dims, &self.logits, &mut self.ids)
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
        let dims = LatentDims { batch, ..dims };
        quantizer.look_at(backend, &mut known.memory, dims, &self.schedule, latents)?;
        self.known = Some(known);
        Ok(true)
    }

    /// Replaces the generated codes of a scale by those that are kept.
    fn keep(
        &mut self,
        backend: &B,
        quantizer: &Quantizer<B>,
        batch: usize,
        scale: usize,
        given: &Given<'_, B>,
        looks_up: bool,
    ) -> Result<(), B::Error> {
        let Some(kept) = given.kept else { return Ok(()) };
        let (schedule, scales) = (&self.schedule, scale..scale + 1);
        let Some(known) = self.known.as_mut().filter(|_| looks_up) else {
            return backend.keep_codes(batch, schedule, scales, kept, given.ids, &mut self.ids);
        };
        quantizer.look_up(backend, &mut known.memory, batch, schedule, scale, &mut known.ids)?;
        backend.keep_codes(batch, schedule, scales, kept, &known.ids, &mut self.ids)?;
        self.take_off(backend, quantizer, batch, scale)
    }

    /// Subtracts the codes of a scale from the latents that kept codes are looked up for.
    fn take_off(
        &mut self,
        backend: &B,
        quantizer: &Quantizer<B>,
        batch: usize,
        scale: usize,
    ) -> Result<(), B::Error> {
        match &mut self.known {
            Some(known) => {
                let (memory, schedule) = (&mut known.memory, &self.schedule);
                quantizer.take_off(backend, memory, batch, schedule, scale, &self.ids)
            }
            None => Ok(()),
        }
    }

    /// Computes class vectors, modulation and positions, once per batch.
    fn begin(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        labels: &[u32],
        rows: usize,
    ) -> Result<(), B::Error> {
        backend.upload_ids(labels, &mut self.labels, 0)?;
        if rows > labels.len() {
            let unconditional = vec![generator.shape().classes as u32; labels.len()];
            backend.upload_ids(&unconditional, &mut self.labels, labels.len())?;
        }
        generator.condition(
            backend,
            params,
            rows,
            &self.labels,
            &mut self.cond,
            &mut self.silu_cond,
            &mut self.ada,
        )?;
        let (places, pos) = (&mut self.places, &mut self.pos_lc);
        generator.position(backend, params, &self.schedule, places, pos)
    }

    /// Computes the inputs of a scale from the codes before it.
    fn feed(
        &mut self,
        backend: &B,
        quantizer: &Quantizer<B>,
        batch: usize,
        scale: usize,
    ) -> Result<(), B::Error> {
        let (schedule, ids, inputs) = (&self.schedule, &self.ids, &mut self.inputs);
        let scales = scale..scale + 1;
        quantizer.next_inputs(backend, &mut self.coded, batch, schedule, scales, ids, inputs)
    }

    /// Computes the logits of one scale. The features are guided with strength `t`, which guides
    /// the logits too because the head is linear in them.
    fn head(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        batch: usize,
        scale: usize,
        t: Option<f64>,
    ) -> Result<(), B::Error> {
        let g = generator.shape();
        let rows = batch * self.schedule.range(scale).len();
        if let Some(t) = t {
            backend.guide(rows * g.width, t, &mut self.normed)?;
        }
        let dims = LinearDims { rows, inputs: g.width, outputs: g.vocab };
        backend.linear(dims, &self.normed, params, generator.head, &mut self.logits)
    }
}
