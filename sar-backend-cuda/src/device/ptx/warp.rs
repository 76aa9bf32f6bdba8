//! A warp: 32 threads that carry out the same instruction as long as they stand at the same one.
//!
//! When threads have diverged, those furthest behind run first, so that threads meet again where their paths
//! do. An instruction that takes several threads at once is refused unless all threads that it names are
//! there.

mod together;
mod transfers;

use super::hazards::Moment;
use super::memory::{Global, POISON, Shared};
use super::operands::Number;
use super::operations::{Row, WARP};
use super::program::{Action, Instruction, Program, Register};

/// A set of threads of a warp, one bit per thread.
type Threads = u32;

/// The program that a warp runs, and the memory that it works in.
pub(super) struct Surroundings<'a> {
    pub program: &'a Program,
    pub parameters: &'a [u8],
    pub global: &'a mut Global,
    pub shared: Shared,
}

/// Why a warp has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Barrier,
    Exit,
}

/// A copy of sixteen bytes that is on its way into shared memory.
struct Copy {
    to: u64,
    from: u64,
    group: u32,
}

pub(super) struct Warp {
    /// The warp's number in the block; `block` is the block's number in the grid.
    index: usize,
    block: u32,
    registers: Vec<Row>,
    local: Vec<u8>,
    /// Where the running threads stand; `here` says which they are.
    at: usize,
    here: Threads,
    /// Threads that stand elsewhere, and where.
    elsewhere: Vec<(usize, Threads)>,
    alive: Threads,
    now: Moment,
    copies: [Vec<Copy>; WARP],
    committed: [u32; WARP],
}

fn each(threads: Threads) -> impl Iterator<Item = usize> {
    (0..WARP).filter(move |lane| threads >> lane & 1 == 1)
}

impl Warp {
    pub fn new(index: usize, program: &Program) -> Self {
        Self {
            index,
            block: 0,
            registers: vec![[u64::MAX; WARP]; program.names.registers],
            local: Vec::new(),
            at: 0,
            here: 0,
            elsewhere: Vec::new(),
            alive: 0,
            now: Moment::default(),
            copies: core::array::from_fn(|_| Vec::new()),
            committed: [0; WARP],
        }
    }

    /// Puts the warp at the beginning of a block.
    pub fn start(&mut self, program: &Program, block: [u32; 3], grid: [u32; 3], threads: usize) {
        let first = self.index * WARP;
        let count = (threads - first).min(WARP) as u32;
        self.alive = Threads::MAX >> (WARP as u32 - count);
        (self.at, self.here, self.now) = (0, self.alive, Moment::default());
        self.block = block[0] + grid[0] * (block[1] + grid[1] * block[2]);
        self.elsewhere.clear();
        self.local.clear();
        self.local.resize(program.local * WARP, POISON);
        self.copies.iter_mut().for_each(Vec::clear);
        self.committed = [0; WARP];
        for (register, value) in program.names.constants() {
            self.registers[register] = [value; WARP];
        }
        for (register, number) in program.names.numbers() {
            self.registers[register] = core::array::from_fn(|lane| match number {
                Number::Thread => (first + lane) as u64,
                Number::Threads => threads as u64,
                Number::Block(axis) => u64::from(block[axis]),
                Number::Blocks(axis) => u64::from(grid[axis]),
            });
        }
    }

    /// Index of the next instruction.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Moves on from a barrier of the block.
    pub fn pass_barrier(&mut self) {
        self.now = Moment { block: self.now.block + 1, warp: 0 };
    }

    /// Runs to the next barrier or the end.
    pub fn run(&mut self, around: &mut Surroundings<'_>) -> Result<Stop, String> {
        let program = around.program;
        loop {
            self.settle(program);
            if self.here == 0 {
                return Ok(Stop::Exit);
            }
            let instruction = program.code.get(self.at).ok_or("it goes on beyond its end")?;
            let active = match instruction.guard {
                None => self.here,
                Some((predicate, holds)) => {
                    let row = &self.registers[predicate];
                    let of = |lane: usize| Threads::from((row[lane] & 1 == 1) == holds) << lane;
                    self.here & each(self.here).map(of).fold(0, |all, one| all | one)
                }
            };
            self.at += 1;
            let done = match instruction.action {
                Action::Branch(target) => {
                    self.branch(active, target);
                    Ok(())
                }
                Action::Exit => {
                    self.here &= !active;
                    self.alive &= !active;
                    Ok(())
                }
                _ if active == 0 => Ok(()),
                Action::Barrier => match active == self.alive {
                    true => return Ok(Stop::Barrier),
                    false => Err("a barrier that some threads of the warp do not reach".to_owned()),
                },
                ref action => self.carry_out(action, active, around),
            };
            done.map_err(|reason| {
                format!("warp {}, `{}`: {reason}", self.index, instruction.text)
            })?;
        }
    }

    fn branch(&mut self, taken: Threads, target: usize) {
        let rest = self.here & !taken;
        if rest == 0 {
            self.at = target;
        } else if taken != 0 {
            self.elsewhere.push((target, taken));
            self.here = rest;
        }
    }

    /// Joins threads that stand at the same instruction into a group, and makes the group furthest behind run.
    ///
    /// Threads at the end exit first, so that what the others do together does not wait for them.
    fn settle(&mut self, program: &Program) {
        if self.elsewhere.is_empty() {
            return;
        }
        if self.here != 0 {
            self.elsewhere.push((self.at, self.here));
        }
        let alive = &mut self.alive;
        self.elsewhere.retain(|&(at, threads)| {
            let ends = program.code.get(at).is_some_and(Instruction::ends);
            if ends {
                *alive &= !threads;
            }
            !ends
        });
        let first = self.elsewhere.iter().map(|&(at, _)| at).min();
        self.at = first.unwrap_or(self.at);
        self.here = 0;
        let (at, here) = (self.at, &mut self.here);
        self.elsewhere.retain(|&(other, threads)| {
            if other == at {
                *here |= threads;
            }
            other != at
        });
    }

    fn set(&mut self, register: Register, value: &Row, active: Threads) {
        if active == Threads::MAX {
            self.registers[register] = *value;
        } else {
            each(active).for_each(|lane| self.registers[register][lane] = value[lane]);
        }
    }

    fn carry_out(
        &mut self,
        action: &Action,
        active: Threads,
        around: &mut Surroundings<'_>,
    ) -> Result<(), String> {
        match *action {
            Action::Compute { apply, to, from } => {
                let mut result = [0; WARP];
                apply(&mut result, from.map(|register| &self.registers[register]));
                self.set(to, &result, active);
            }
            Action::Pack { to, ref from, bits } => {
                let packed = core::array::from_fn(|lane| {
                    let parts = from.iter().rev();
                    parts.fold(0, |whole, &part| whole << bits | self.low(part, lane, bits))
                });
                self.set(to, &packed, active);
            }
            Action::Unpack { ref to, from, bits } => {
                let whole = self.registers[from];
                for (i, &register) in to.iter().enumerate() {
                    let shifted =
                        whole.map(|value| (value >> (i as u32 * bits)) & ((1 << bits) - 1));
                    self.set(register, &shifted, active);
                }
            }
            Action::Load { space, path, signed, at, bytes, ref to } => {
                self.load((space, path, signed), at, bytes, to, active, around)?;
            }
            Action::Store { space, at, bytes, ref from } => {
                self.store(space, at, bytes, from, active, around)?;
            }
            Action::Atomic { space, at, kind, to, value } => {
                self.atomic(space, at, kind, [to, value], active, around)?;
            }
            Action::CopyAsync { to, from } => self.copy(to, from, active, around)?,
            Action::CommitCopies => each(active).for_each(|lane| self.committed[lane] += 1),
            Action::WaitForCopies(pending) => self.wait(pending, active, around)?,
            _ => self.together(action, active, around)?,
        }
        Ok(())
    }

    fn low(&self, register: Register, lane: usize, bits: u32) -> u64 {
        self.registers[register][lane] & ((1 << bits) - 1)
    }
}
