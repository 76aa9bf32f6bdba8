//! Work that is recorded and replayed.

use crate::fake::{Fake, scenario};
use sar_backend_cuda::{Buffer, CudaBackend, CudaError, Device, Driver};
use sar_math::backend::{
    BackendError, Buffers, ErrorKind, Linear, LinearDims, Slot, TransformerOps, Write,
};

/// Rounding of seconds that are summed in f64; a launch more or less is a million times this.
const CLOCK: f64 = 1e-9;

const LEN: usize = 300;
/// Recordings that are kept at once: `MOST` in `src/device/driver/recordings.rs`.
const KEPT: u64 = 256;

type Gpu = CudaBackend<f32, Driver>;

/// A counter on the device, and the one that is added to it.
struct Counter {
    backend: Gpu,
    one: Buffer<f32, Driver>,
    sum: Buffer<f32, Driver>,
}

impl Counter {
    fn new(fake: &Fake) -> Self {
        let backend = fake.backend::<f32>().unwrap();
        let (mut one, sum) = (backend.activation(LEN).unwrap(), backend.activation(LEN).unwrap());
        backend.upload(&[1.0; LEN], &mut one, 0).unwrap();
        Self { backend, one, sum }
    }

    /// Counts once more, through the recording of a key, and does something else at its end.
    fn count(
        &mut self,
        key: (u64, u64),
        end: impl Fn(&Gpu) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let Self { backend, one, sum } = self;
        backend.device().replay(key, &mut || {
            backend.add(one, sum, LEN)?;
            end(backend)
        })
    }

    fn read(&self) -> f32 {
        let mut host = [0.0; LEN];
        self.backend.download(&self.sum, 0, &mut host).unwrap();
        assert!(host.iter().all(|&value| value == host[0]));
        host[0]
    }
}

fn nothing(_: &Gpu) -> Result<(), CudaError> {
    Ok(())
}

scenario! {
    fn run_recorded_and_replayed_work_is_the_same(fake) on []; {
        let mut counter = Counter::new(fake);
        for times in 1..=5 {
            counter.count((1, 2), nothing).unwrap();
            assert_eq!(counter.read(), times as f32);
            assert_eq!(fake.graphs(), i32::from(times > 1));
        }
        drop(counter);
        fake.expect_clean();
    }
}

scenario! {
    fn nothing_is_recorded_where_it_is_switched_off(fake) on [("SAR_CUDA_GRAPHS", "off")]; {
        let mut counter = Counter::new(fake);
        for times in 1..=3 {
            counter.count((1, 2), nothing).unwrap();
            assert_eq!((counter.read(), fake.graphs()), (times as f32, 0));
        }
        drop(counter);
        fake.expect_clean();
    }
}

scenario! {
    fn a_failure_while_recording_leaves_the_stream_usable(fake) on []; {
        let mut counter = Counter::new(fake);
        let refuse =
            |_: &Gpu| Err(CudaError::Unsupported { op: "test", what: "refused".to_owned() });
        // Waiting is what a stream that records cannot do.
        let wait = |backend: &Gpu| backend.synchronize();
        counter.count((1, 0), nothing).unwrap();
        let error = counter.count((1, 0), refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "the work's own: {error}");
        assert_eq!(counter.read(), 1.0, "what failed to be recorded has not run");
        counter.count((2, 0), wait).unwrap();
        let error = counter.count((2, 0), wait).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().contains("recorded"), "{error}");
        assert_eq!(counter.read(), 2.0);
        for times in 3..6 {
            counter.count((1, 0), nothing).unwrap();
            assert_eq!(counter.read(), times as f32, "and may be recorded the next time");
        }
        assert_eq!(fake.graphs(), 1);
        drop(counter);
        fake.expect_clean();
    }
}

scenario! {
    fn a_panic_while_recording_leaves_the_stream_usable(fake) on []; {
        let mut counter = Counter::new(fake);
        counter.count((1, 0), nothing).unwrap();
        // Memory that the unwinding gives back.
        let buffer = std::cell::RefCell::new(Some(counter.backend.activation(10).unwrap()));
        let panicking = std::panic::AssertUnwindSafe(|| {
            counter.count((1, 0), |_| {
                let _given_back = buffer.take();
                panic!("of the test")
            })
        });
        std::panic::catch_unwind(panicking).unwrap_err();
        assert_eq!(counter.read(), 1.0);
        counter.count((1, 0), nothing).unwrap();
        assert_eq!(counter.read(), 2.0);
        drop(counter);
        fake.expect_clean();
    }
}

scenario! {
    /// A recording would allocate again whenever it is replayed, and its uploads would be those of
    /// the first time.
    fn work_that_allocates_or_uploads_is_refused(fake) on []; {
        let mut counter = Counter::new(fake);
        let allocate = |backend: &Gpu| backend.activation(10).map(drop);
        let upload = |backend: &Gpu| {
            let mut buffer = backend.activation(10)?;
            backend.upload(&[1.0; 10], &mut buffer, 0)
        };
        counter.count((1, 0), allocate).unwrap();
        counter.count((1, 0), allocate).unwrap_err();
        counter.count((2, 0), upload).unwrap();
        counter.count((2, 0), upload).unwrap_err();
        assert_eq!(counter.read(), 2.0);
        drop(counter);
        fake.expect_clean();
    }
}

scenario! {
    fn as_many_keys_as_are_kept_are_all_recorded(fake) on []; {
        let mut counter = Counter::new(fake);
        for _ in 0..3 {
            (0..KEPT).for_each(|key| counter.count((key, 7), nothing).unwrap());
        }
        assert_eq!(counter.read(), 3.0 * KEPT as f32);
        assert_eq!(fake.graphs() as u64, KEPT);
        drop(counter);
        fake.expect_clean();
    }
}

scenario! {
    fn more_keys_than_are_kept_give_the_same(fake) on []; {
        let mut counter = Counter::new(fake);
        let keys = KEPT + 44;
        for round in 1..=4 {
            (0..keys).for_each(|key| counter.count((key, 0), nothing).unwrap());
            assert_eq!(counter.read(), (round * keys) as f32);
            assert!(fake.graphs() as u64 <= KEPT);
        }
        drop(counter);
        fake.expect_clean();
    }
}

scenario! {
    fn a_recording_that_is_used_stays_however_many_others_come(fake) on []; {
        let mut counter = Counter::new(fake);
        counter.count((1, 1), nothing).unwrap();
        for other in 0..2 * KEPT {
            counter.count((1, 1), nothing).unwrap();
            assert_eq!(fake.graphs(), 1, "after {other} others");
            counter.count((other, 2), nothing).unwrap();
        }
        assert_eq!(counter.read(), (1 + 4 * KEPT) as f32);
        drop(counter);
        fake.expect_clean();
    }
}

scenario! {
    /// Each launch of the recording would use it again.
    fn memory_given_back_while_work_is_recorded_is_an_error_and_is_given_back(fake) on []; {
        let mut counter = Counter::new(fake);
        let buffer = std::cell::RefCell::new(Some(counter.backend.activation(10).unwrap()));
        counter.count((1, 0), nothing).unwrap();
        let error = counter.count((1, 0), |_| {
            drop(buffer.take());
            Ok(())
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("given back while work was recorded"), "{error}");
        assert_eq!((counter.read(), fake.graphs()), (1.0, 0));
        counter.count((1, 0), nothing).unwrap();
        assert_eq!((counter.read(), fake.graphs()), (2.0, 1));
        drop(counter);
        fake.expect_clean();
    }
}

scenario! {
    /// A recording knows the address of the scratch memory that its kernels were given.
    fn recordings_outlive_scratch_that_is_outgrown(fake) on []; {
        let backend = fake.backend::<f32>().unwrap();
        // Partial sums of the bias gradient are scratch: 4 bytes for each output and 128 rows.
        let backward = |rows: usize, outputs: usize, replayed: bool| {
            let dims = LinearDims { rows, inputs: 1, outputs };
            let (weight, bias) = (Slot { offset: 0, len: outputs }, Slot { offset: outputs, len: outputs });
            let layer = Linear { weight, bias: Some(bias) };
            let mut grads = backend.accum(2 * outputs).unwrap();
            let (x, mut dy) = (backend.activation(rows).unwrap(), backend.activation(rows * outputs).unwrap());
            backend.upload(&vec![1.0; rows * outputs], &mut dy, 0).unwrap();
            let mut step = |backend: &Gpu| {
                let mut work =
                    || backend.linear_backward_weight(dims, &dy, &x, layer, Write::Accumulate, &mut grads);
                match replayed {
                    true => backend.replay(9, &mut work).unwrap(),
                    false => work().unwrap(),
                }
                let mut sums = vec![0.0; outputs];
                backend.download_accum(&grads, outputs, &mut sums).unwrap();
                sums[0]
            };
            let first = [step(&backend), step(&backend), step(&backend)];
            (first, grads, x, dy)
        };
        let (sums, mut grads, x, dy) = backward(200, 3, true);
        assert_eq!(sums, [200.0, 400.0, 600.0]);
        // More than the scratch that a backend starts with, 1 MiB.
        backward(1, 300_000, false);
        let layer = Linear { weight: Slot { offset: 0, len: 3 }, bias: Some(Slot { offset: 3, len: 3 }) };
        let dims = LinearDims { rows: 200, inputs: 1, outputs: 3 };
        let mut work = || backend.linear_backward_weight(dims, &dy, &x, layer, Write::Accumulate, &mut grads);
        backend.replay(9, &mut work).unwrap();
        let mut sums = [0.0; 3];
        backend.download_accum(&grads, 3, &mut sums).unwrap();
        assert_eq!(sums, [800.0; 3]);
        drop((grads, x, dy, backend));
        fake.expect_clean();
    }
}

scenario! {
    /// Other threads' work is neither recorded nor lost.
    fn threads_do_not_meet_in_a_recording(fake) on []; {
        const BYTES: usize = 4 * LEN;
        let mut counter = Counter::new(fake);
        let device = counter.backend.device();
        let (from, to) = (device.allocate(BYTES).unwrap(), device.allocate(BYTES).unwrap());
        // SAFETY: all of what was just allocated.
        unsafe { device.write(&[7; BYTES], from).unwrap() };
        counter.count((1, 0), nothing).unwrap();
        // The first time the other thread begins while this one records.
        let (begin, begun) = std::sync::mpsc::channel();
        let Counter { backend, one, sum } = &mut counter;
        let device = backend.device();
        std::thread::scope(|scope| {
            let copier = scope.spawn(move || {
                begun.recv().unwrap();
                // SAFETY: two allocations of this size.
                unsafe { device.copy(from, to, BYTES) }
            });
            device.replay((1, 0), &mut || {
                begin.send(()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(100));
                backend.add(one, sum, LEN)
            }).unwrap();
            copier.join().unwrap().unwrap();
        });
        // SAFETY: as above.
        unsafe { device.zero(from, BYTES).unwrap() };
        for times in 3..6 {
            counter.count((1, 0), nothing).unwrap();
            assert_eq!(counter.read(), times as f32);
        }
        let device = counter.backend.device();
        let mut host = [0; BYTES];
        // SAFETY: as above; given back last of all.
        unsafe {
            device.read(to, &mut host).unwrap();
            device.release(from, BYTES);
            device.release(to, BYTES);
        }
        assert_eq!(host, [7; BYTES], "copied once, before its source changed");
        drop(counter);
        fake.expect_clean();
    }
}

scenario! {
    /// Every launch and product is timed; a recording is run instead, and recorded once the profile ends.
    fn a_profile_times_each_kernel(fake) on []; {
        let mut counter = Counter::new(fake);
        counter.backend.device().begin_profile().unwrap();
        for _ in 0..3 {
            counter.count((1, 0), nothing).unwrap();
        }
        let tallies = counter.backend.device().end_profile().unwrap();
        let [add] = &tallies[..] else { panic!("one kernel, found {tallies:?}") };
        assert_eq!((add.name.as_str(), add.calls), ("add", 3));
        // A millisecond a launch, says the fake.
        assert!((add.seconds - 3e-3).abs() < CLOCK, "{add:?}");
        for times in 4..=6 {
            counter.count((1, 0), nothing).unwrap();
            assert_eq!(counter.read(), times as f32);
        }
        assert!(counter.backend.device().end_profile().unwrap().is_empty());
        drop(counter);
        fake.expect_clean();
    }
}
