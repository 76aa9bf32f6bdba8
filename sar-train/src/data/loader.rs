//! Training batches, decoded ahead on threads.
//!
//! The examples of a run form one endless sequence: epoch after epoch, each in an order that
//! depends only on (seed, epoch). Batch n consists of places n·b to (n+1)·b; how the image at a
//! place is cut depends only on (seed, place). So a batch is a pure function of (data, seed, n),
//! independent of the number of threads and of where the run was resumed.

use super::DataError;
use super::augment::Augment;
use super::dataset::{Batch, Dataset};
use sar_math::philox::{Purpose, Stream};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Number of batches prepared ahead, besides the one being waited for.
const AHEAD: u64 = 2;
/// Number of values a thread makes before it takes the lock: one image of 148 px, or 21 of 32 px.
const CHUNK_VALUES: usize = 1 << 16;

/// Examples that a [`Loader`] makes batches of.
pub trait Examples: Send + Sync {
    /// Number of examples of an epoch.
    fn len(&self) -> usize;
    /// Whether there are no examples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Number of values of an example.
    fn values(&self) -> usize;
    /// Returns example `index` as `epoch` sees it, and its label; randomness comes from `draws`.
    ///
    /// # Errors
    /// The example cannot be read.
    fn example(
        &self,
        index: usize,
        epoch: u64,
        draws: &mut Stream,
    ) -> Result<(Vec<f32>, u32), DataError>;
}

/// The images of a set, cut differently in every epoch: `[3, s, s]` in \[−1,1\].
pub struct Cuts {
    /// The images.
    pub images: Dataset,
    /// How they are cut; the side is that of the images returned.
    pub augment: Augment,
}

impl Examples for Cuts {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn values(&self) -> usize {
        3 * self.augment.side * self.augment.side
    }

    fn example(
        &self,
        index: usize,
        _epoch: u64,
        draws: &mut Stream,
    ) -> Result<(Vec<f32>, u32), DataError> {
        self.images.cut(index, &self.augment, draws)
    }
}

/// Which batches of the sequence a loader makes: of every `of` batches in a row those numbered `taken`. So each rank of a
/// run makes its part of every step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turns {
    /// Number of batches in a row.
    pub of: usize,
    /// Those of them that are made.
    pub taken: Range<usize>,
}

impl Turns {
    /// All batches.
    pub const ALL: Self = Self { of: 1, taken: 0..1 };

    /// Returns the number in the sequence of the batch that is made as number `made`.
    fn number(&self, made: u64) -> u64 {
        let (of, each) = (self.of as u64, self.taken.len() as u64);
        let first = (made / each).wrapping_mul(of).wrapping_add(self.taken.start as u64);
        first.wrapping_add(made % each)
    }
}

/// How a [`Loader`] makes batches.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Number of examples per batch.
    pub batch: usize,
    /// Seed of order and cuts.
    pub seed: u64,
    /// Number of threads; 0 picks up to 8, depending on the machine. Batches do not depend on it.
    pub workers: usize,
    /// Which batches are made.
    pub turns: Turns,
}

/// An endless sequence of training batches. Dropping it stops and joins its threads.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    examples: Box<dyn Examples>,
    config: LoaderConfig,
    state: Mutex<State>,
    /// Signals that a batch is complete, or that a thread died.
    ready: Condvar,
    /// Signals that there is room for another batch, or that the loader is dropped.
    room: Condvar,
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

struct State {
    /// Number of the batch being waited for: the front of `making`.
    step: u64,
    making: VecDeque<Making>,
    stop: bool,
    died: bool,
}

/// A batch being made.
struct Making {
    values_b: Vec<f32>,
    labels_b: Vec<u32>,
    /// Number of rows handed out to threads.
    taken: usize,
    /// Number of rows completed.
    done: usize,
    /// The error of the lowest row, so that it does not depend on timing.
    error: Option<(usize, DataError)>,
}

impl Loader {
    /// Starts at batch 0.
    ///
    /// # Errors
    /// As for [`Loader::start_at`].
    pub fn new(examples: impl Examples + 'static, config: LoaderConfig) -> Result<Self, DataError> {
        Self::start_at(examples, config, 0)
    }

    /// Starts at batch `step` of those that it makes, to resume a run.
    ///
    /// # Errors
    /// [`DataError::Config`] for an empty batch, turns or data set, [`DataError::Worker`] if no
    /// thread starts.
    pub fn start_at(
        examples: impl Examples + 'static,
        mut config: LoaderConfig,
        step: u64,
    ) -> Result<Self, DataError> {
        check(&examples, &config)?;
        if config.workers == 0 {
            config.workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        }
        let workers = config.workers;
        let state = State { step, making: VecDeque::new(), stop: false, died: false };
        let shared = Arc::new(Shared {
            examples: Box::new(examples),
            config,
            state: Mutex::new(state),
            ready: Condvar::new(),
            room: Condvar::new(),
            orders: Mutex::default(),
        });
        let mut loader = Self { shared, threads: Vec::with_capacity(workers) };
        for i in 0..workers {
            let shared = loader.shared.clone();
            let thread = std::thread::Builder::new().name(format!("decode-{i}"));
            let thread = thread.spawn(move || shared.work());
            // On failure the loader is dropped, which stops the threads that did start.
            loader.threads.push(thread.map_err(|e| DataError::Worker { reason: e.to_string() })?);
        }
        Ok(loader)
    }

    /// Number of the batch that [`Loader::next_batch`] returns next.
    pub fn step(&self) -> u64 {
        self.shared.lock().step
    }

    /// Returns the next batch, waiting for it if it is not ready.
    ///
    /// # Errors
    /// [`DataError::BadImage`] or [`DataError::AllBad`] for this batch; the next call continues
    /// with the next batch. [`DataError::Worker`] if a thread died, also from every later call.
    pub fn next_batch(&mut self) -> Result<Batch, DataError> {
        let shared = &self.shared;
        let rows = shared.config.batch;
        let mut state = shared.lock();
        let made = loop {
            if state.died {
                let reason = "a decoding thread died; please report this as a bug".into();
                return Err(DataError::Worker { reason });
            }
            match state.making.front() {
                Some(making) if making.done == rows => break state.making.pop_front(),
                _ => state = shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        let first_index = shared.config.turns.number(state.step).wrapping_mul(rows as u64);
        state.step = state.step.wrapping_add(1);
        drop(state);
        shared.room.notify_all();
        match made {
            Some(Making { error: Some((_, error)), .. }) => Err(error),
            Some(Making { values_b, labels_b, .. }) => {
                Ok(Batch { values_b, labels_b, first_index })
            }
            None => Err(DataError::Worker { reason: "the queue is empty".into() }),
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in a thread was already reported through `died`.
            drop(thread.join());
        }
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("examples", &self.shared.examples.len())
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

fn check(examples: &impl Examples, config: &LoaderConfig) -> Result<(), DataError> {
    let fail = |key, reason: &str| Err(DataError::Config { key, reason: reason.into() });
    if config.batch == 0 {
        return fail("batch", "expected at least 1 image, found 0");
    }
    if config.turns.taken.is_empty() || config.turns.taken.end > config.turns.of {
        return fail("batch", "expected turns of at least one batch, of those in a row");
    }
    if examples.values() == 0 {
        return fail("image_side", "expected at least 1 pixel, found 0");
    }
    if examples.is_empty() {
        return fail("path", "expected at least one training image, found none");
    }
    if u32::try_from(examples.len()).is_err() {
        return fail("path", "expected fewer than 2³² images");
    }
    Ok(())
}

/// Returns the order in which an epoch of a run sees its examples.
pub(super) fn epoch_order(seed: u64, epoch: u64, len: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    Stream::new(seed, Purpose::Shuffle, epoch).shuffle(&mut order);
    order
}

/// Returns the random numbers that decide how the image at a place of the sequence is cut.
pub(super) fn cut_draws(seed: u64, place: u64) -> Stream {
    Stream::new(seed, Purpose::Augment, place)
}

/// A few rows of one batch, for one thread.
struct Task {
    step: u64,
    rows: Range<usize>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let _report = ReportDeath(self);
        while let Some(task) = self.next_task() {
            let mut values = Vec::with_capacity(task.rows.len() * self.examples.values());
            let mut labels = Vec::with_capacity(task.rows.len());
            let mut error = None;
            for row in task.rows.clone() {
                match self.example(task.step, row) {
                    Ok((example, label)) => {
                        values.extend_from_slice(&example);
                        labels.push(label);
                    }
                    Err(e) => {
                        error = Some((row, e));
                        break;
                    }
                }
            }
            self.hand_in(&task, &values, &labels, error);
        }
    }

    /// Waits for rows to make; returns `None` once the loader is dropped.
    fn next_task(&self) -> Option<Task> {
        let batch = self.config.batch;
        let chunk = (CHUNK_VALUES / self.examples.values()).clamp(1, batch);
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            let step = state.step;
            let open = state.making.iter_mut().enumerate().find(|(_, m)| m.taken < batch);
            if let Some((ahead, making)) = open {
                let rows = making.taken..batch.min(making.taken + chunk);
                making.taken = rows.end;
                return Some(Task { step: step.wrapping_add(ahead as u64), rows });
            }
            if (state.making.len() as u64) <= AHEAD {
                state.making.push_back(Making {
                    values_b: vec![0.0; batch * self.examples.values()],
                    labels_b: vec![0; batch],
                    taken: 0,
                    done: 0,
                    error: None,
                });
            } else {
                state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn example(&self, step: u64, row: usize) -> Result<(Vec<f32>, u32), DataError> {
        let number = self.config.turns.number(step);
        let place = number.wrapping_mul(self.config.batch as u64).wrapping_add(row as u64);
        let len = self.examples.len() as u64;
        let (epoch, order) = (place / len, self.order(place / len));
        let index = order[(place % len) as usize] as usize;
        let draws = &mut cut_draws(self.config.seed, place);
        let (values, label) = self.examples.example(index, epoch, draws)?;
        let (expected, found) = (self.examples.values(), values.len());
        match found == expected {
            true => Ok((values, label)),
            false => Err(DataError::Example { index, expected, found }),
        }
    }

    /// Returns the order of an epoch; the few in use at a time are cached.
    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(e, _)| *e == epoch) {
            return order.clone();
        }
        let order = Arc::new(epoch_order(self.config.seed, epoch, self.examples.len()));
        if orders.len() >= 4 {
            orders.remove(0);
        }
        orders.push((epoch, order.clone()));
        order
    }

    fn hand_in(
        &self,
        task: &Task,
        values: &[f32],
        labels: &[u32],
        error: Option<(usize, DataError)>,
    ) {
        let mut state = self.lock();
        let ahead = task.step.wrapping_sub(state.step) as usize;
        // A batch leaves the queue only when all its rows are in, so it is still there.
        let Some(making) = state.making.get_mut(ahead) else { return };
        let start = task.rows.start;
        making.labels_b[start..start + labels.len()].copy_from_slice(labels);
        let at = start * self.examples.values();
        making.values_b[at..at + values.len()].copy_from_slice(values);
        making.done += task.rows.len();
        if let Some((row, error)) = error
            && making.error.as_ref().is_none_or(|(first, _)| row < *first)
        {
            making.error = Some((row, error));
        }
        let complete = ahead == 0 && making.done == self.config.batch;
        drop(state);
        if complete {
            self.ready.notify_all();
        }
    }
}

/// Reports to the caller if a thread panics, so that it does not wait for ever.
struct ReportDeath<'a>(&'a Shared);

impl Drop for ReportDeath<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().died = true;
            self.0.ready.notify_all();
        }
    }
}
