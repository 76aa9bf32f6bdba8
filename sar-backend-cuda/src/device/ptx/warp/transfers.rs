//! What each thread of a warp moves between its registers and memory.

use super::{Copy, Surroundings, Threads, Warp, each};
use crate::device::ptx::hazards::Access;
use crate::device::ptx::memory::{Path, check_alignment, number};
use crate::device::ptx::operands::{Address, BASE};
use crate::device::ptx::operations::WARP;
use crate::device::ptx::program::{Atomic, Register, Space};

impl Warp {
    pub(super) fn place(&self, at: Address, lane: usize) -> u64 {
        self.registers[at.base][lane].wrapping_add_signed(at.offset)
    }

    pub(super) fn access(&self, lane: usize) -> Access {
        Access { block: self.block, thread: (self.index * WARP + lane) as u32, now: self.now }
    }

    pub(super) fn load(
        &mut self,
        (space, path, signed): (Space, Path, bool),
        at: Address,
        bytes: usize,
        to: &[Register],
        active: Threads,
        around: &mut Surroundings<'_>,
    ) -> Result<(), String> {
        let mut buffer = [0; 16];
        let buffer = buffer.get_mut(..bytes * to.len()).ok_or("more than 16 bytes")?;
        for lane in each(active) {
            let place = self.place(at, lane);
            match space {
                Space::Global => around.global.read(place, buffer, path, self.access(lane))?,
                Space::Shared => around.shared.read(place, buffer, self.access(lane))?,
                Space::Local => buffer.copy_from_slice(self.own(place, lane, buffer.len())?),
                Space::Parameter => {
                    let given = around.parameters.get(place as usize..).unwrap_or_default();
                    let given = given.get(..buffer.len()).ok_or("beyond the parameters")?;
                    buffer.copy_from_slice(given);
                }
            }
            for (&register, part) in to.iter().zip(buffer.chunks_exact(bytes)) {
                let value = number(part);
                let high = u64::BITS - 8 * bytes as u32;
                self.registers[register][lane] = match signed {
                    true => (((value << high) as i64) >> high) as u64,
                    false => value,
                };
            }
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        space: Space,
        at: Address,
        bytes: usize,
        from: &[Register],
        active: Threads,
        around: &mut Surroundings<'_>,
    ) -> Result<(), String> {
        let mut buffer = [0; 16];
        let buffer = buffer.get_mut(..bytes * from.len()).ok_or("more than 16 bytes")?;
        for lane in each(active) {
            let place = self.place(at, lane);
            for (&register, part) in from.iter().zip(buffer.chunks_exact_mut(bytes)) {
                part.copy_from_slice(&self.registers[register][lane].to_le_bytes()[..bytes]);
            }
            match space {
                Space::Global => around.global.write(place, buffer, self.access(lane))?,
                Space::Shared => around.shared.write(place, buffer, self.access(lane))?,
                Space::Local => self.own(place, lane, buffer.len())?.copy_from_slice(buffer),
                Space::Parameter => return Err("parameters are not written".to_owned()),
            }
        }
        Ok(())
    }

    /// A thread's own memory.
    fn own(&mut self, at: u64, lane: usize, bytes: usize) -> Result<&mut [u8], String> {
        check_alignment(at, bytes)?;
        let each = self.local.len() / WARP;
        let start = at.wrapping_sub(BASE);
        let own = &mut self.local[lane * each..][..each];
        let range = (start as usize).checked_add(bytes).map(|end| start as usize..end);
        range
            .and_then(|range| own.get_mut(range))
            .ok_or_else(|| format!("{at:#x} is not in the thread's {each} bytes"))
    }

    pub(super) fn atomic(
        &mut self,
        space: Space,
        at: Address,
        kind: Atomic,
        [to, value]: [Register; 2],
        active: Threads,
        around: &mut Surroundings<'_>,
    ) -> Result<(), String> {
        for lane in each(active) {
            let (place, given) = (self.place(at, lane), self.registers[value][lane] as u32);
            let change = |before: u32| match kind {
                Atomic::Add => before.wrapping_add(given),
                Atomic::Max => before.max(given),
            };
            let before = match space {
                Space::Shared => around.shared.change(place, self.access(lane), change)?,
                Space::Global => around.global.change(place, self.access(lane), change)?,
                _ => return Err("memory that only one thread has".to_owned()),
            };
            self.registers[to][lane] = before.into();
        }
        Ok(())
    }

    /// Begins a copy, which the wait for it carries out: as late as possible, so that nothing reads it too early.
    pub(super) fn copy(
        &mut self,
        to: Address,
        from: Address,
        active: Threads,
        around: &mut Surroundings<'_>,
    ) -> Result<(), String> {
        for lane in each(active) {
            let (to, from) = (self.place(to, lane), self.place(from, lane));
            around.global.read(from, &mut [0; 16], Path::Plain, self.access(lane))?;
            around.shared.announce(to, 16, self.access(lane))?;
            self.copies[lane].push(Copy { to, from, group: self.committed[lane] });
        }
        Ok(())
    }

    pub(super) fn wait(
        &mut self,
        pending: u32,
        active: Threads,
        around: &mut Surroundings<'_>,
    ) -> Result<(), String> {
        for lane in each(active) {
            let access = self.access(lane);
            let committed = self.committed[lane];
            let is_due = |copy: &Copy| copy.group + pending < committed;
            let due = self.copies[lane].iter().take_while(|copy| is_due(copy)).count();
            for copy in self.copies[lane].drain(..due) {
                let mut bytes = [0; 16];
                around.global.read(copy.from, &mut bytes, Path::Plain, access)?;
                around.shared.arrive(copy.to, &bytes, access)?;
            }
        }
        Ok(())
    }
}
