//! A launch: block after block, and in each block warp after warp from barrier to barrier.

use super::memory::{Global, Shared};
use super::operations::WARP;
use super::program::Program;
use super::warp::{Stop, Surroundings, Warp};

/// The order in which blocks run, and the warps of a block between two barriers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order(pub u64);

impl Order {
    /// 0 is the natural order, 1 the reverse; others are shuffled, differently for each `salt`.
    fn of(self, count: usize, salt: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        match self.0 {
            0 => {}
            1 => order.reverse(),
            seed => {
                let mut state = seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                for last in (1..count).rev() {
                    state =
                        state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    order.swap(last, (state >> 33) as usize % (last + 1));
                }
            }
        }
        order
    }
}

/// Blocks in each dimension, threads of a block, bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub grid: [u32; 3],
    pub threads: usize,
    pub shared: usize,
}

/// Bytes of shared memory that a block may have on the smallest of the GPUs that are supported (sm_80).
const MOST_SHARED: usize = 163 << 10;

/// Runs a kernel. `parameters` are laid out as the program declares them.
pub(super) fn run(
    program: &Program,
    shape: Shape,
    parameters: &[u8],
    global: &mut Global,
    order: Order,
) -> Result<(), String> {
    if shape.threads == 0 || shape.threads > program.threads {
        let (found, most) = (shape.threads, program.threads);
        return Err(format!("blocks of {found} threads, and it is compiled for {most} at most"));
    }
    let shared = program.shared.next_multiple_of(16) + shape.shared;
    if shared > MOST_SHARED {
        return Err(format!("{shared} bytes of shared memory; a block has {MOST_SHARED} at most"));
    }
    let mut around = Surroundings { program, parameters, global, shared: Shared::default() };
    let count = shape.threads.div_ceil(WARP);
    let mut warps: Vec<Warp> = (0..count).map(|index| Warp::new(index, program)).collect();
    let [width, height, depth] = shape.grid;
    for number in order.of(width as usize * height as usize * depth as usize, 0) {
        let number = number as u32;
        let block = [number % width, number / width % height, number / width / height];
        around.shared.reset(shared);
        for warp in &mut warps {
            warp.start(program, block, shape.grid, shape.threads);
        }
        run_block(&mut warps, &mut around, order)
            .map_err(|reason| format!("block {block:?}: {reason}"))?;
    }
    Ok(())
}

fn run_block(
    warps: &mut [Warp],
    around: &mut Surroundings<'_>,
    order: Order,
) -> Result<(), String> {
    for barrier in 1.. {
        let mut waiting = 0;
        for index in order.of(warps.len(), barrier) {
            if warps[index].run(around)? == Stop::Barrier {
                waiting += 1;
            }
        }
        if waiting == 0 {
            break;
        }
        if waiting < warps.len() {
            return Err(format!("{waiting} of {} warps wait at a barrier", warps.len()));
        }
        if warps.iter().any(|warp| warp.at() != warps[0].at()) {
            return Err("warps wait at different barriers".to_owned());
        }
        warps.iter_mut().for_each(Warp::pass_barrier);
    }
    Ok(())
}
