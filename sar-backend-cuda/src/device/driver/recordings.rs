//! Sequences of launches that are recorded as CUDA graphs and replayed in one call.

use super::{failed, locked};
use crate::error::CudaError;
use cudarc::driver::{DriverError, result, sys};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread::{self, ThreadId};

/// Most graphs kept at once: enough for the scales of several samplers.
const MOST: usize = 256;

/// Whether the user turned recordings off, with `SAR_CUDA_GRAPHS=off`.
///
/// # Errors
/// The value is neither `on` nor `off`.
pub(super) fn switched_off() -> Result<bool, CudaError> {
    match std::env::var_os("SAR_CUDA_GRAPHS") {
        Some(value) if value == "off" => Ok(true),
        Some(value) if value != "on" && !value.is_empty() => {
            let what = format!("{} is neither on nor off", value.to_string_lossy());
            Err(CudaError::Unsupported { op: "SAR_CUDA_GRAPHS", what })
        }
        _ => Ok(false),
    }
}

/// Like [`failed`], for a call that only recordings make.
fn failed_to_record(call: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| match failed(call)(error) {
        CudaError::Device { call, reason } => {
            let reason = format!("{reason}; SAR_CUDA_GRAPHS=off samples without recordings");
            CudaError::Device { call, reason }
        }
        other => other,
    }
}

/// What is known about a key.
pub(super) enum State {
    /// The work ran once, unrecorded: kernels are loaded, plans made, scratch grown.
    Warm,
    /// The graph to launch; destroyed when dropped.
    Recorded(sys::CUgraphExec),
}

/// The state of each key, and when it was last used.
#[derive(Default)]
pub(super) struct Recordings {
    by_key: HashMap<(u64, u64), (State, u64)>,
    /// Number of uses so far.
    uses: u64,
}

/// What is to be done under a key.
pub(super) enum Next {
    /// Run the work without recording it.
    Run,
    /// Record it.
    Record,
    /// Nothing: its recording was launched.
    Launched,
}

impl Recordings {
    /// Launches the recording of a key if there is one; returns what to do otherwise.
    pub(super) fn next(
        recordings: &Mutex<Self>,
        stream: sys::CUstream,
        key: (u64, u64),
    ) -> Result<Next, CudaError> {
        // Locked until the launch is made: another thread may remove the recording from the table.
        let mut table = locked(recordings);
        let Recordings { by_key, uses } = &mut *table;
        *uses += 1;
        let Some((state, used)) = by_key.get_mut(&key) else { return Ok(Next::Run) };
        *used = *uses;
        match state {
            State::Warm => Ok(Next::Record),
            State::Recorded(graph) => {
                // SAFETY: the graph is in the table, and the stream is alive.
                unsafe {
                    result::graph::launch(*graph, stream)
                        .map_err(failed_to_record("cuGraphLaunch"))?
                };
                Ok(Next::Launched)
            }
        }
    }

    /// Number of keys with a recording.
    pub(super) fn recorded(&self) -> usize {
        self.by_key.values().filter(|(state, _)| matches!(state, State::Recorded(_))).count()
    }

    /// Keeps the state of a key; if there are too many, the least recently used one is dropped.
    pub(super) fn remember(&mut self, key: (u64, u64), state: State) {
        if self.by_key.len() >= MOST && !self.by_key.contains_key(&key) {
            // Most likely it belongs to a sampler that is gone.
            let oldest = self.by_key.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.by_key.remove(&oldest);
            }
        }
        self.uses += 1;
        self.by_key.insert(key, (state, self.uses));
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Self::Recorded(graph) = self {
            // SAFETY: nobody else has it, so nobody launches it again; the driver frees it once its
            // last launch is done. A failure stems from earlier work.
            let _ = unsafe { result::graph::exec_destroy(*graph) };
        }
    }
}

/// Decides who may issue work to the stream: any thread, or only the recording one while it is recorded.
///
/// Work that another thread issued to a stream that is being recorded would be recorded too, and not run.
#[derive(Default)]
pub(super) struct Gate {
    open: RwLock<()>,
    recorder: Mutex<Option<ThreadId>>,
}

impl Gate {
    /// Whether the calling thread is recording.
    pub(super) fn is_recorder(&self) -> bool {
        *locked(&self.recorder) == Some(thread::current().id())
    }

    /// Waits while another thread records; nobody begins a recording while the returned guard is held.
    pub(super) fn pass(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let pass = || self.open.read().unwrap_or_else(PoisonError::into_inner);
        (!self.is_recorder()).then(pass)
    }

    /// Records what `work` issues to the stream. However `work` ends, so does the recording.
    pub(super) fn record(
        &self,
        stream: sys::CUstream,
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<sys::CUgraphExec, CudaError> {
        let _alone = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let recording = Recording::begin(stream, &self.recorder)?;
        work()?;
        let graph = recording.end()?;
        // SAFETY: the graph was just recorded; the executable one does not need it.
        unsafe {
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            executable.map_err(failed_to_record("cuGraphInstantiate"))
        }
    }
}

/// A recording that goes on until it is ended or dropped.
struct Recording<'a> {
    stream: sys::CUstream,
    recorder: &'a Mutex<Option<ThreadId>>,
    going_on: bool,
}

impl<'a> Recording<'a> {
    fn begin(
        stream: sys::CUstream,
        recorder: &'a Mutex<Option<ThreadId>>,
    ) -> Result<Self, CudaError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive, and any earlier recording of it has ended.
        unsafe {
            result::stream::begin_capture(stream, mode)
                .map_err(failed_to_record("cuStreamBeginCapture"))?;
        }
        *locked(recorder) = Some(thread::current().id());
        Ok(Self { stream, recorder, going_on: true })
    }

    fn end(mut self) -> Result<sys::CUgraph, CudaError> {
        self.going_on = false;
        // SAFETY: the stream is being recorded, by this thread.
        unsafe {
            result::stream::end_capture(self.stream).map_err(failed_to_record("cuStreamEndCapture"))
        }
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        *locked(self.recorder) = None;
        if self.going_on {
            // SAFETY: the stream is being recorded, by this thread. What was recorded before the work
            // failed is of no use, and the error to report is the work's.
            unsafe {
                if let Ok(graph) = result::stream::end_capture(self.stream) {
                    let _ = result::graph::destroy(graph);
                }
            }
        }
    }
}
