//! What several threads of a warp carry out together.

use super::{Surroundings, Threads, Warp, each};
use crate::device::ptx::memory::number;
use crate::device::ptx::operations::{Row, WARP};
use crate::device::ptx::program::{Action, Register, Shuffle};
use crate::device::ptx::tensor_core::{Matrix, multiply, spread};

impl Warp {
    /// Carries out an instruction that takes more than one thread.
    pub(super) fn together(
        &mut self,
        action: &Action,
        active: Threads,
        around: &mut Surroundings<'_>,
    ) -> Result<(), String> {
        match *action {
            Action::WarpBarrier { members } => {
                self.check_members(members, active)?;
                if active != self.alive {
                    return Err("a barrier of a part of the warp is not known here".to_owned());
                }
                self.now.warp += 1;
            }
            Action::Shuffle { kind, to, inside, value, by, clamp, members } => {
                self.check_members(members, active)?;
                let sources = self.sources(kind, by, clamp);
                let given = self.registers[value];
                if let Some(lane) = each(active).find(|&lane| active >> sources[lane].0 & 1 == 0) {
                    return Err(format!("lane {lane} reads lane {}, not there", sources[lane].0));
                }
                self.set(to, &sources.map(|(lane, _)| given[lane]), active);
                if let Some(inside) = inside {
                    self.set(inside, &sources.map(|(_, inside)| inside.into()), active);
                }
            }
            Action::Ballot { to, value, members } => {
                self.check_members(members, active)?;
                let votes = each(active).filter(|&lane| self.registers[value][lane] & 1 == 1);
                let ballot = votes.fold(0, |all, lane| all | 1 << lane);
                self.set(to, &[ballot; WARP], active);
            }
            Action::LoadMatrices { ref to, at, transposed } => {
                check_full(active)?;
                let mut matrices = vec![Matrix::default(); to.len()];
                for (lane, elements) in matrices.iter_mut().flatten().enumerate() {
                    let (mut bytes, place) = ([0; 16], self.place(at, lane));
                    // Four lanes receive a row, whichever lane gives its address.
                    for reader in 4 * (lane % 8)..4 * (lane % 8) + 4 {
                        around.shared.read(place, &mut bytes, self.access(reader))?;
                    }
                    for (element, bytes) in elements.iter_mut().zip(bytes.chunks_exact(2)) {
                        *element = number(bytes) as u16;
                    }
                }
                for (&register, matrix) in to.iter().zip(&matrices) {
                    self.registers[register] = spread(matrix, transposed);
                }
            }
            Action::MultiplyMatrices { ref d, ref a, ref b, ref c } => {
                check_full(active)?;
                let rows = |of: &[Register], i: usize| self.registers[of[i]];
                let a: [Row; 4] = core::array::from_fn(|i| rows(a, i));
                let b: [Row; 2] = core::array::from_fn(|i| rows(b, i));
                let c: [Row; 4] = core::array::from_fn(|i| rows(c, i));
                let product = multiply(a.each_ref(), b.each_ref(), c.each_ref());
                d.iter().zip(product).for_each(|(&register, row)| self.registers[register] = row);
            }
            _ => return Err("not known here".to_owned()),
        }
        Ok(())
    }

    /// Checks that exactly the named threads are here, except for those that have ended.
    fn check_members(&self, members: Register, active: Threads) -> Result<(), String> {
        let named = |lane: usize| self.registers[members][lane] as Threads;
        match each(active).find(|&lane| named(lane) & self.alive != active) {
            None => Ok(()),
            Some(lane) => Err(format!(
                "lane {lane} names the threads {:#010x}; there are {active:#010x} of {:#010x}",
                named(lane),
                self.alive
            )),
        }
    }

    /// The lane that each lane reads, and whether the one that it asked for is in range.
    fn sources(&self, kind: Shuffle, by: Register, clamp: Register) -> [(usize, bool); WARP] {
        core::array::from_fn(|lane| {
            let by = self.registers[by][lane] as usize & 31;
            let given = self.registers[clamp][lane] as usize;
            let (clamp, segment) = (given & 31, given >> 8 & 31);
            let (first, last) = (lane & segment, lane & segment | clamp & !segment);
            let (source, inside) = match kind {
                // For this kind the limit is the first lane.
                Shuffle::Up => (lane.wrapping_sub(by), lane >= last + by),
                Shuffle::Down => (lane + by, lane + by <= last),
                Shuffle::Butterfly => (lane ^ by, lane ^ by <= last),
                Shuffle::Index => {
                    let source = first | by & !segment;
                    (source, source <= last)
                }
            };
            if inside { (source, true) } else { (lane, false) }
        })
    }
}

fn check_full(active: Threads) -> Result<(), String> {
    match active == Threads::MAX {
        true => Ok(()),
        false => Err(format!("it takes a whole warp; there are the threads {active:#010x}")),
    }
}
