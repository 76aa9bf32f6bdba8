//! Sequences of launches that are recorded as CUDA graphs and replayed in one call.

use super::{failed, locked};
use crate::error::CudaError;
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::sync::Mutex;

/// Graphs kept at once: the scales of several samplers.
const MOST: usize = 256;

enum State {
    /// Ran once, as it is: kernels are loaded, plans made, scratch grown.
    Warm,
    Recorded(sys::CUgraphExec),
}

/// What was seen under each key.
#[derive(Default)]
pub(super) struct Recordings {
    by_key: HashMap<(u64, u64), State>,
}

impl Recordings {
    /// Runs `work` the first time a key is seen, records it the second, replays it from then on.
    ///
    /// The lock is not held while `work` runs: it launches through the same device.
    pub(super) fn replay(
        recordings: &Mutex<Self>,
        stream: sys::CUstream,
        key: (u64, u64),
        work: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let seen = match locked(recordings).by_key.get(&key) {
            None => None,
            Some(State::Warm) => Some(None),
            Some(State::Recorded(graph)) => Some(Some(*graph)),
        };
        let graph = match seen {
            None => {
                work()?;
                locked(recordings).remember(key, State::Warm);
                return Ok(());
            }
            Some(None) => {
                let graph = record(stream, work)?;
                locked(recordings).remember(key, State::Recorded(graph));
                graph
            }
            Some(Some(graph)) => graph,
        };
        // SAFETY: the graph is kept in `recordings`, and the stream is alive.
        unsafe { result::graph::launch(graph, stream).map_err(failed("cuGraphLaunch")) }
    }

    fn remember(&mut self, key: (u64, u64), state: State) {
        if self.by_key.len() >= MOST {
            // Whoever replays most will record again.
            self.clear();
        }
        if let Some(State::Recorded(old)) = self.by_key.insert(key, state) {
            destroy(old);
        }
    }

    fn clear(&mut self) {
        for (_, state) in self.by_key.drain() {
            if let State::Recorded(graph) = state {
                destroy(graph);
            }
        }
    }
}

impl Drop for Recordings {
    fn drop(&mut self) {
        self.clear();
    }
}

fn destroy(graph: sys::CUgraphExec) {
    // SAFETY: taken out of the table, so nobody launches it again; the driver frees it once its last
    // launch is done. A failure is one of earlier work.
    let _ = unsafe { result::graph::exec_destroy(graph) };
}

/// Records what `work` gives to the stream. A failure ends the recording before it is returned.
fn record(
    stream: sys::CUstream,
    work: &mut dyn FnMut() -> Result<(), CudaError>,
) -> Result<sys::CUgraphExec, CudaError> {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream is alive and not being recorded; the recording is ended before anything else.
    let graph = unsafe {
        result::stream::begin_capture(stream, mode).map_err(failed("cuStreamBeginCapture"))?;
        let outcome = work();
        let graph = result::stream::end_capture(stream);
        outcome?;
        graph.map_err(failed("cuStreamEndCapture"))?
    };
    // SAFETY: the graph was just recorded; the executable one does not need it.
    unsafe {
        let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
        let _ = result::graph::destroy(graph);
        executable.map_err(failed("cuGraphInstantiate"))
    }
}
