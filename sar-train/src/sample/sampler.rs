//! Generation scale by scale with a cache of keys and values.

mod blocks;

use super::recordings::{Call, Recordings};
use crate::model::generator::Generator;
use sar_math::backend::{
    Backend, Buffers, Choice, ChooseDims, LinearDims, RolloutDims, ShapeError,
};
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
    /// Which tokens to take from them of the other scales: those that are not 0, `[b, T]`.
    pub kept: Option<&'a B::Ids>,
}

/// Memory of a sampling run: cache and scratch, for one schedule and a largest batch.
///
/// The blocks of a scale are the same ops on the same buffers in every run, so they go through
/// [`Buffers::replay`]: a backend may record them once.
pub struct Sampler<B: Buffers> {
    schedule: ScaleSchedule,
    /// The schedule that room was asked for.
    room: ScaleSchedule,
    recordings: Recordings,
    /// Scales whose codes are the most likely ones, whatever the decoding says of the others.
    greedy: [bool; MAX_SCALES],
    /// Rows of a batch with its unconditional half.
    rows: usize,
    labels: B::Ids,
    cond: B::Activation,
    silu_cond: B::Activation,
    ada: B::Activation,
    pos_lc: B::Activation,
    inputs: B::Activation,
    cache: Vec<B::Activation>,
    x: B::Activation,
    sum: B::Activation,
    normed: B::Activation,
    branch: B::Activation,
    wide: B::Activation,
    activated: B::Activation,
    stats: B::Accum,
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
            inputs: backend.activation(batch * largest * g.channels)?,
            cache: cache?,
            x: backend.activation(n * c)?,
            sum: backend.activation(n * c)?,
            normed: backend.activation(n * c)?,
            branch: backend.activation(n * c)?,
            wide: backend.activation(n * g.widest())?,
            activated: backend.activation(n * g.mlp_ratio * c)?,
            stats: backend.accum(n * 2)?,
            logits: backend.activation(batch * largest * g.vocab)?,
            ids: backend.ids(batch * tokens)?,
        })
    }

    /// Generates the codes of `labels.len()` images; they are left in `self.ids`.
    ///
    /// Image `k` of a seed is the same whatever batch it is generated in. `given` scales are taken as
    /// they are and feed the next scale; they are not generated. Of the others, the tokens that are kept
    /// stand in the place of generated ones, and feed the next scale with them. `observe` sees each
    /// generated scale after its codes are chosen, with its logits still in place.
    ///
    /// A run with the weights of an earlier one has them in the same buffer, or is preceded by
    /// [`Sampler::forget_recordings`]: so is one with another `params` that has come to lie where an
    /// earlier one lay. (`params` at another address are seen to be others.)
    ///
    /// # Errors
    /// Shape, where there are more labels than room; a device fault.
    pub fn run(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        codebook: &B::Accum,
        labels: &[u32],
        decoding: &Decoding,
        given: Option<&Given<'_, B>>,
        observe: impl FnMut(usize, &Self) -> Result<(), B::Error>,
    ) -> Result<(), B::Error> {
        let scales = self.schedule.len();
        self.run_scales(
            backend, generator, params, codebook, labels, decoding, given, scales, observe,
        )
    }

    /// Greedy on grids outside the published sampler's fixed list, as that is; or nowhere.
    pub(crate) fn set_published_greedy(&mut self, on: bool) {
        self.greedy = [false; MAX_SCALES];
        for (greedy, scale) in self.greedy.iter_mut().zip(self.schedule.scales()) {
            let listed = scale.height == scale.width && PUBLISHED_SIDES.contains(&scale.height);
            *greedy = on && !listed;
        }
    }

    /// Takes another schedule, of no more tokens in all and in its largest scale.
    pub(crate) fn set_schedule(&mut self, schedule: &ScaleSchedule) {
        self.schedule = *schedule;
    }

    /// Lets no later run replay what an earlier one recorded: for weights in another buffer. New
    /// values in the same buffer need no such call.
    pub fn forget_recordings(&mut self) {
        self.recordings = Recordings::default();
    }

    /// As [`Sampler::run`], for the first `scales` scales alone.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub(crate) fn run_scales(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        codebook: &B::Accum,
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
        if let Some(g) = given {
            let schedule = self.schedule;
            backend.merge_ids(
                batch,
                &schedule,
                &g.scales[..schedule.len()],
                g.ids,
                &mut self.ids,
            )?;
        }
        for scale in 0..scales.min(self.schedule.len()) {
            if scale > 0 {
                self.feed(backend, generator, codebook, batch, scale)?;
            }
            // Random schedules of training are too many to be worth recording.
            if self.schedule == self.room {
                let call = Call { scale, batch, rows };
                let key = self.recordings.key(params, generator, call);
                backend.replay(key, &mut || {
                    self.trunk(backend, generator, params, batch, rows, scale)
                })?;
            } else {
                self.trunk(backend, generator, params, batch, rows, scale)?;
            }
            if given.is_some_and(|g| g.scales[scale]) {
                continue;
            }
            // Not recorded: the strength of guidance is the caller's, run by run.
            let t = decoding.guidance.map(|ramp| ramp[scale]);
            self.head(backend, generator, params, batch, scale, t)?;
            let dims = ChooseDims {
                batch,
                first_sample: 0,
                schedule: self.schedule,
                scales: scale..scale + 1,
                vocab: generator.shape().vocab,
                // The features were guided, before the head.
                guidance: None,
                choice: if self.greedy[scale] { Choice::Argmax } else { decoding.choice },
            };
            backend.choose_codes(&dims, &self.logits, &mut self.ids)?;
            if let Some((ids, kept)) = given.and_then(|g| Some((g.ids, g.kept?))) {
                let scales = scale..scale + 1;
                backend.keep_codes(batch, &self.schedule, scales, kept, ids, &mut self.ids)?;
            }
            observe(scale, self)?;
        }
        Ok(())
    }

    /// Class vectors, modulation and positions: once per batch.
    fn begin(
        &mut self,
        backend: &B,
        generator: &Generator,
        params: &B::Params,
        labels: &[u32],
        rows: usize,
    ) -> Result<(), B::Error> {
        let g = generator.shape();
        backend.upload_ids(labels, &mut self.labels, 0)?;
        if rows > labels.len() {
            let unconditional = vec![g.classes as u32; labels.len()];
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
        let (schedule, table) = (self.schedule, generator.pos_table);
        backend.positions(&schedule, g.width, params, table, &mut self.pos_lc)
    }

    /// Inputs of a scale from the codes of the scale before.
    fn feed(
        &mut self,
        backend: &B,
        generator: &Generator,
        codebook: &B::Accum,
        batch: usize,
        scale: usize,
    ) -> Result<(), B::Error> {
        let g = generator.shape();
        let dims = RolloutDims {
            batch,
            schedule: self.schedule,
            scales: scale..scale + 1,
            channels: g.channels,
            vocab: g.vocab,
        };
        backend.rollout_inputs(&dims, &self.ids, codebook, &mut self.inputs)
    }

    /// Logits of one scale, guided by t: the features are, which the head is linear in.
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
