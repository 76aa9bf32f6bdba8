//! Transfers from the host while the device is behind.

use crate::fake::scenario;
use sar_math::backend::Buffers;

/// More than the ring has slots.
const UPLOADS: usize = 100;
/// Bytes of a slot of the ring, in elements of four.
const SLOT: usize = (1 << 20) / 4;

fn pattern(upload: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| (upload * 1_000_003 + i) as u32).collect()
}

scenario! {
    fn small_uploads_in_flight_arrive_intact(fake) on []; {
        let backend = fake.backend::<f32>().unwrap();
        let lens: Vec<usize> = (0..UPLOADS).map(|i| 1 + i * 37 % 901).collect();
        let mut ids = backend.ids(lens.iter().sum()).unwrap();
        backend.synchronize().unwrap();
        let mut offset = 0;
        for (i, &len) in lens.iter().enumerate() {
            let mut host = pattern(i, len);
            backend.upload_ids(&host, &mut ids, offset).unwrap();
            host.fill(u32::MAX); // the caller's again
            offset += len;
        }
        assert!(fake.pending() > 1, "uploads were waited for");
        let mut found = vec![0; offset];
        backend.download_ids(&ids, 0, &mut found).unwrap();
        let expected: Vec<u32> = lens.iter().enumerate().flat_map(|(i, &n)| pattern(i, n)).collect();
        assert!(found == expected);
        drop((ids, backend));
        fake.expect_clean();
    }
}

scenario! {
    fn uploads_larger_than_a_slot_arrive_intact(fake) on []; {
        let backend = fake.backend::<f32>().unwrap();
        for (i, len) in [SLOT - 1, SLOT, SLOT + 1, 3 * SLOT + 5].into_iter().enumerate() {
            let mut ids = backend.ids(len + 2).unwrap();
            let mut host = pattern(i, len);
            backend.synchronize().unwrap();
            backend.upload_ids(&host, &mut ids, 1).unwrap();
            host.fill(u32::MAX);
            assert!(fake.pending() > 0, "{len}: the upload was waited for");
            let mut found = vec![9; len + 2];
            backend.download_ids(&ids, 0, &mut found).unwrap();
            assert!(found[1..=len] == pattern(i, len), "{len}");
            assert_eq!((found[0], found[len + 1]), (0, 0), "only what was given is written");
        }
        drop(backend);
        fake.expect_clean();
    }
}

scenario! {
    /// Buffers given back while copies into them wait, and the pinned memory with the backend.
    fn what_is_dropped_in_flight_outlives_its_work(fake) on []; {
        let backend = fake.backend::<f32>().unwrap();
        let mut ids = backend.ids(64).unwrap();
        backend.synchronize().unwrap();
        backend.upload_ids(&pattern(1, 64), &mut ids, 0).unwrap();
        assert!(fake.pending() > 0);
        drop(ids);
        // Dropped by a thread that has not used the device.
        std::thread::spawn(move || drop(backend)).join().unwrap();
        fake.expect_clean();
    }
}
