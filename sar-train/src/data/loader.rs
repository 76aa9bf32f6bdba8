//! Training batches, decoded ahead on threads.
//!
//! The images of a run are one endless sequence: epoch after epoch, each in an order that depends on
//! (seed, epoch) alone. Batch n is its places n·b to (n+1)·b; how the image at a place is cut depends
//! on (seed, place) alone. So a batch is a pure function of (data, seed, n), whatever the number of
//! threads and wherever the run was resumed.

use super::DataError;
use super::augment::Augment;
use super::dataset::{Batch, Dataset};
use sar_math::philox::{Purpose, Stream};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Batches in the making besides the one that is awaited.
const AHEAD: u64 = 2;
/// Values a thread cuts before it takes the lock: one image of 148 px, or 21 of 32 px.
const CHUNK_VALUES: usize = 1 << 16;

/// How a [`Loader`] makes batches.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderConfig {
    /// Images per batch.
    pub batch: usize,
    /// Decides order and cuts.
    pub seed: u64,
    /// How images are cut; its side is the side of the images returned.
    pub augment: Augment,
    /// Threads; 0 picks up to 8 by the machine. The batches do not depend on it.
    pub workers: usize,
}

/// An endless sequence of training batches. Dropping it stops and joins its threads.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    dataset: Dataset,
    config: LoaderConfig,
    state: Mutex<State>,
    /// A batch is complete, or a thread died.
    ready: Condvar,
    /// There is room for another batch, or the loader is dropped.
    room: Condvar,
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

struct State {
    /// Number of the batch that is awaited: the front of `making`.
    step: u64,
    making: VecDeque<Making>,
    stop: bool,
    died: bool,
}

/// A batch in the making.
struct Making {
    images_b3hw: Vec<f32>,
    labels_b: Vec<u32>,
    /// Rows handed to threads.
    taken: usize,
    /// Rows that came back.
    done: usize,
    /// The error of the lowest row, so that it does not depend on timing.
    error: Option<(usize, DataError)>,
}

impl Loader {
    /// Starts at batch 0.
    ///
    /// # Errors
    /// As [`Loader::start_at`].
    pub fn new(dataset: &Dataset, config: LoaderConfig) -> Result<Self, DataError> {
        Self::start_at(dataset, config, 0)
    }

    /// Starts at batch `step`, to resume a run after so many steps.
    ///
    /// # Errors
    /// [`DataError::Config`] for an empty batch or data set, [`DataError::Worker`] if no thread
    /// starts.
    pub fn start_at(
        dataset: &Dataset,
        mut config: LoaderConfig,
        step: u64,
    ) -> Result<Self, DataError> {
        check(dataset, &config)?;
        if config.workers == 0 {
            config.workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        }
        let workers = config.workers;
        let state = State { step, making: VecDeque::new(), stop: false, died: false };
        let shared = Arc::new(Shared {
            dataset: dataset.clone(),
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
            // On failure the loader is dropped and stops the threads that did start.
            loader.threads.push(thread.map_err(|e| DataError::Worker { reason: e.to_string() })?);
        }
        Ok(loader)
    }

    /// Number of the batch that [`Loader::next_batch`] returns next.
    pub fn step(&self) -> u64 {
        self.shared.lock().step
    }

    /// The next batch; waits for it if it is not ready.
    ///
    /// # Errors
    /// [`DataError::BadImage`] or [`DataError::AllBad`] for this batch; the call after it goes on
    /// with the next batch. [`DataError::Worker`] if a thread died; every later call says so too.
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
        let first_index = state.step.wrapping_mul(rows as u64);
        state.step = state.step.wrapping_add(1);
        drop(state);
        shared.room.notify_all();
        match made {
            Some(Making { error: Some((_, error)), .. }) => Err(error),
            Some(Making { images_b3hw, labels_b, .. }) => {
                Ok(Batch { images_b3hw, labels_b, first_index })
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
            .field("dataset", &self.shared.dataset)
            .field("config", &self.shared.config)
            .finish_non_exhaustive()
    }
}

fn check(dataset: &Dataset, config: &LoaderConfig) -> Result<(), DataError> {
    let fail = |key, reason: &str| Err(DataError::Config { key, reason: reason.into() });
    if config.batch == 0 {
        return fail("batch", "expected at least 1 image, found 0");
    }
    if config.augment.side == 0 {
        return fail("image_side", "expected at least 1 pixel, found 0");
    }
    if dataset.is_empty() {
        return fail("path", "expected at least one training image, found none");
    }
    if u32::try_from(dataset.len()).is_err() {
        return fail("path", "expected fewer than 2³² images");
    }
    Ok(())
}

/// Some rows of one batch, for one thread.
struct Task {
    step: u64,
    rows: std::ops::Range<usize>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image_len(&self) -> usize {
        3 * self.config.augment.side * self.config.augment.side
    }

    fn work(&self) {
        let _report = ReportDeath(self);
        while let Some(task) = self.next_task() {
            let mut images = Vec::with_capacity(task.rows.len() * self.image_len());
            let mut labels = Vec::with_capacity(task.rows.len());
            let mut error = None;
            for row in task.rows.clone() {
                match self.cut(task.step, row) {
                    Ok((image, label)) => {
                        images.extend_from_slice(&image);
                        labels.push(label);
                    }
                    Err(e) => {
                        error = Some((row, e));
                        break;
                    }
                }
            }
            self.hand_in(&task, &images, &labels, error);
        }
    }

    /// Waits for rows to cut; `None` when the loader is dropped.
    fn next_task(&self) -> Option<Task> {
        let batch = self.config.batch;
        let chunk = (CHUNK_VALUES / self.image_len()).clamp(1, batch);
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
                    images_b3hw: vec![0.0; batch * self.image_len()],
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

    fn cut(&self, step: u64, row: usize) -> Result<(Vec<f32>, u32), DataError> {
        let place = step.wrapping_mul(self.config.batch as u64).wrapping_add(row as u64);
        let len = self.dataset.len() as u64;
        let order = self.order(place / len);
        let index = order[(place % len) as usize] as usize;
        let mut draws = Stream::new(self.config.seed, Purpose::Augment, place);
        self.dataset.cut(index, &self.config.augment, &mut draws)
    }

    /// The order of an epoch; the few in use at a time are kept.
    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(e, _)| *e == epoch) {
            return order.clone();
        }
        let mut draws = Stream::new(self.config.seed, Purpose::Shuffle, epoch);
        let mut order: Vec<u32> = (0..self.dataset.len() as u32).collect();
        draws.shuffle(&mut order);
        let order = Arc::new(order);
        if orders.len() >= 4 {
            orders.remove(0);
        }
        orders.push((epoch, order.clone()));
        order
    }

    fn hand_in(
        &self,
        task: &Task,
        images: &[f32],
        labels: &[u32],
        error: Option<(usize, DataError)>,
    ) {
        let mut state = self.lock();
        let ahead = task.step.wrapping_sub(state.step) as usize;
        // A batch leaves the queue only when all its rows are in, so it is still there.
        let Some(making) = state.making.get_mut(ahead) else { return };
        let start = task.rows.start;
        making.labels_b[start..start + labels.len()].copy_from_slice(labels);
        let at = start * self.image_len();
        making.images_b3hw[at..at + images.len()].copy_from_slice(images);
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

/// Tells the caller if a thread ends by a panic, so that it does not wait for ever.
struct ReportDeath<'a>(&'a Shared);

impl Drop for ReportDeath<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().died = true;
            self.0.ready.notify_all();
        }
    }
}
