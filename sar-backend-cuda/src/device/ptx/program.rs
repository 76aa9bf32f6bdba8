//! Reads what a kernel does from the PTX that NVRTC made of it.
//!
//! Every operand is a register: numbers, addresses of variables and thread numbers are registers that are
//! filled before a thread starts.

use super::memory::Path;
use super::operands::{Address, Names, operands};
use super::operations::{Lanes, operation};
use std::collections::HashMap;

/// Index of a register in a warp's register file.
pub(super) type Register = usize;

/// A kind of memory, with addresses of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Global,
    Shared,
    Local,
    Parameter,
}

/// What an atomic read and write of shared or global memory computes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Atomic {
    Add,
    Max,
}

/// How a shuffle names the lane that it reads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shuffle {
    Butterfly,
    Up,
    Down,
    Index,
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    Compute {
        apply: Lanes,
        to: Register,
        from: [Register; 4],
    },
    /// Puts parts of `bits` bits each into one register, the lowest part first.
    Pack {
        to: Register,
        from: Vec<Register>,
        bits: u32,
    },
    /// Splits a register into such parts.
    Unpack {
        to: Vec<Register>,
        from: Register,
        bits: u32,
    },
    Load {
        space: Space,
        path: Path,
        /// Whether the value is extended to the register as a signed number.
        signed: bool,
        at: Address,
        bytes: usize,
        to: Vec<Register>,
    },
    Store {
        space: Space,
        at: Address,
        bytes: usize,
        from: Vec<Register>,
    },
    Atomic {
        space: Space,
        at: Address,
        kind: Atomic,
        to: Register,
        value: Register,
    },
    CopyAsync {
        to: Address,
        from: Address,
    },
    CommitCopies,
    /// Waits until at most this many groups are pending.
    WaitForCopies(u32),
    Branch(usize),
    Exit,
    Barrier,
    WarpBarrier {
        members: Register,
    },
    Shuffle {
        kind: Shuffle,
        to: Register,
        /// Receives whether the lane that is read was in range.
        inside: Option<Register>,
        value: Register,
        by: Register,
        clamp: Register,
        members: Register,
    },
    Ballot {
        to: Register,
        value: Register,
        members: Register,
    },
    LoadMatrices {
        to: Vec<Register>,
        at: Address,
        transposed: bool,
    },
    /// d = ab + c: four, four, two and four registers.
    MultiplyMatrices {
        d: Vec<Register>,
        a: Vec<Register>,
        b: Vec<Register>,
        c: Vec<Register>,
    },
}

pub(super) struct Instruction {
    /// Predicate, and the value that it has in the threads that carry this out; `None` for all threads.
    pub guard: Option<(Register, bool)>,
    pub action: Action,
    /// The line of PTX, for messages.
    pub text: String,
}

impl Instruction {
    /// Whether every thread that comes here ends.
    pub fn ends(&self) -> bool {
        self.guard.is_none() && matches!(self.action, Action::Exit)
    }
}

/// A kernel.
pub(super) struct Program {
    pub code: Vec<Instruction>,
    /// Offset and size of each parameter.
    pub parameters: Vec<(usize, usize)>,
    /// Registers, and which of them are filled at the start.
    pub names: Names,
    /// Bytes of static shared memory.
    pub shared: usize,
    /// Bytes of a thread's own memory.
    pub local: usize,
    /// Threads that a block may have.
    pub threads: usize,
}

/// The kernels of a file's PTX by their names.
pub(super) fn programs(ptx: &str) -> Result<HashMap<String, Program>, String> {
    let kernels = ptx.split(".entry ").skip(1);
    kernels
        .map(|text| {
            let (name, rest) = text.split_once('(').ok_or("a kernel without parameters")?;
            let program = program(rest).map_err(|reason| format!("{name}: {reason}"))?;
            Ok((name.to_owned(), program))
        })
        .collect()
}

/// Reads a kernel from behind the opening bracket of its parameters to its closing brace.
fn program(text: &str) -> Result<Program, String> {
    let (parameters, rest) = text.split_once("\n)").ok_or("its parameters do not end")?;
    let (directives, rest) = rest.split_once("\n{").ok_or("it has no body")?;
    let (body, _) = rest.split_once("\n}").ok_or("its body does not end")?;
    let mut names = Names::default();
    let mut offsets = Vec::new();
    for line in parameters.lines().map(str::trim).filter(|line| !line.is_empty()) {
        offsets.push(names.declare_parameter(line.trim_end_matches(','))?);
    }
    let threads = threads_of(directives)?;
    let (lines, labels) = lines(body, &mut names)?;
    let code: Result<Vec<Instruction>, String> = lines
        .into_iter()
        .map(|line| {
            let read = instruction(line, &mut names, &labels);
            read.map_err(|reason| format!("`{line}`: {reason}"))
        })
        .collect();
    Ok(Program {
        code: code?,
        parameters: offsets,
        shared: names.shared,
        local: names.local,
        names,
        threads,
    })
}

/// Number of threads of a block that the directives before the body allow.
fn threads_of(directives: &str) -> Result<usize, String> {
    let mut threads = 1024;
    for line in directives.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let fault = || format!("`{line}` is not known here");
        if let Some(counts) = line.strip_prefix(".maxntid ") {
            let first = counts.split(',').next().unwrap_or_default().trim();
            threads = first.parse().map_err(|_| fault())?;
        } else if !line.starts_with(".minnctapersm ") {
            return Err(fault());
        }
    }
    Ok(threads)
}

/// The instructions of a body, and where each label points; declarations are entered into `names`.
fn lines<'t>(
    body: &'t str,
    names: &mut Names,
) -> Result<(Vec<&'t str>, HashMap<&'t str, usize>), String> {
    let (mut lines, mut labels) = (Vec::new(), HashMap::new());
    for line in body.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        // A register that only one instruction uses is declared in braces with it.
        let line = match line.strip_prefix('{').and_then(|inner| inner.trim().strip_suffix('}')) {
            Some(inner) => {
                let (declared, rest) = inner.split_once(';').ok_or("brackets around nothing")?;
                names.declare(declared.trim())?;
                rest.trim()
            }
            None => line,
        };
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label, lines.len());
        } else if line.starts_with(".pragma") {
            // Advice to the compiler that comes after.
        } else if line.starts_with('.') {
            names.declare(line.trim_end_matches(';'))?;
        } else if !line.is_empty() {
            lines.push(line.strip_suffix(';').ok_or_else(|| format!("`{line}` goes on"))?);
        }
    }
    Ok((lines, labels))
}

fn instruction(
    line: &str,
    names: &mut Names,
    labels: &HashMap<&str, usize>,
) -> Result<Instruction, String> {
    let (guard, rest) = match line.strip_prefix('@') {
        None => (None, line),
        Some(guarded) => {
            let (predicate, rest) =
                guarded.split_once(char::is_whitespace).ok_or("no operation")?;
            let negated = predicate.starts_with('!');
            (Some((names.register(predicate.trim_start_matches('!'))?, !negated)), rest)
        }
    };
    let rest = rest.trim();
    let (name, given) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let action = action(name, &operands(given), names, labels)?;
    Ok(Instruction { guard, action, text: line.to_owned() })
}

fn action(
    name: &str,
    given: &[&str],
    names: &mut Names,
    labels: &HashMap<&str, usize>,
) -> Result<Action, String> {
    if let Some(action) = flow(name, given, names, labels)? {
        return Ok(action);
    }
    if let Some(action) = memory(name, given, names)? {
        return Ok(action);
    }
    if let Some(action) = of_the_warp(name, given, names)? {
        return Ok(action);
    }
    if let (Some(bits), [to, from]) = (name.strip_prefix("mov.b"), given) {
        let bits = bits.parse::<u32>().map_err(|_| "not a size")?;
        if from.starts_with('{') {
            let from = names.several(from)?;
            return Ok(Action::Pack {
                to: names.register(to)?,
                bits: bits / from.len() as u32,
                from,
            });
        }
        if to.starts_with('{') {
            let to = names.several(to)?;
            return Ok(Action::Unpack {
                bits: bits / to.len() as u32,
                from: names.value(from)?,
                to,
            });
        }
    }
    let (apply, count) = operation(name).ok_or("an operation that is not known here")?;
    let [to, from @ ..] = given else { return Err("no operand".to_owned()) };
    if from.len() != count {
        return Err(format!("{count} operands expected, {} found", from.len()));
    }
    let mut registers = [0; 4];
    for (register, operand) in registers.iter_mut().zip(from) {
        *register = names.value(operand)?;
    }
    Ok(Action::Compute { apply, to: names.register(to)?, from: registers })
}

fn flow(
    name: &str,
    given: &[&str],
    names: &mut Names,
    labels: &HashMap<&str, usize>,
) -> Result<Option<Action>, String> {
    Ok(Some(match (name, given) {
        ("bra" | "bra.uni", [label]) => {
            Action::Branch(*labels.get(label).ok_or("a label that is nowhere")?)
        }
        ("ret" | "exit", []) => Action::Exit,
        ("bar.sync", ["0"]) => Action::Barrier,
        ("bar.warp.sync", [members]) => Action::WarpBarrier { members: names.value(members)? },
        _ => return Ok(None),
    }))
}

fn memory(name: &str, given: &[&str], names: &mut Names) -> Result<Option<Action>, String> {
    let parts: Vec<&str> = name.split('.').collect();
    Ok(Some(match (&parts[..], given) {
        (["ld", space, rest @ .., kind], [to, from]) => Action::Load {
            space: space_of(space)?,
            path: if rest.contains(&"nc") { Path::Constant } else { Path::Plain },
            signed: kind.starts_with('s'),
            at: names.address(from)?,
            bytes: bytes_of(kind)?,
            to: names.several(to)?,
        },
        (["st", space, .., kind], [to, from]) => Action::Store {
            space: space_of(space)?,
            at: names.address(to)?,
            bytes: bytes_of(kind)?,
            from: names.several(from)?,
        },
        (["atom", space, kind, "u32"], [to, at, value]) => Action::Atomic {
            space: space_of(space)?,
            at: names.address(at)?,
            kind: match *kind {
                "add" => Atomic::Add,
                "max" => Atomic::Max,
                _ => return Err("an operation that is not known here".to_owned()),
            },
            to: names.register(to)?,
            value: names.value(value)?,
        },
        (["cp", "async", "cg", "shared", "global"], [to, from, "16"]) => {
            Action::CopyAsync { to: names.address(to)?, from: names.address(from)? }
        }
        (["cp", "async", "commit_group"], []) => Action::CommitCopies,
        (["cp", "async", "wait_group"], [count]) => {
            Action::WaitForCopies(count.parse().map_err(|_| "not a number")?)
        }
        _ => return Ok(None),
    }))
}

fn of_the_warp(name: &str, given: &[&str], names: &mut Names) -> Result<Option<Action>, String> {
    let kind = match name {
        "shfl.sync.bfly.b32" => Some(Shuffle::Butterfly),
        "shfl.sync.up.b32" => Some(Shuffle::Up),
        "shfl.sync.down.b32" => Some(Shuffle::Down),
        "shfl.sync.idx.b32" => Some(Shuffle::Index),
        _ => None,
    };
    if let (Some(kind), [to, value, by, clamp, members]) = (kind, given) {
        let (to, inside) = match to.split_once('|') {
            Some((to, inside)) => (to, Some(names.register(inside.trim())?)),
            None => (*to, None),
        };
        let to = names.register(to.trim())?;
        let [value, by] = [names.value(value)?, names.value(by)?];
        let [clamp, members] = [names.value(clamp)?, names.value(members)?];
        return Ok(Some(Action::Shuffle { kind, to, inside, value, by, clamp, members }));
    }
    const MMA: &str = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
    Ok(Some(match (name, given) {
        ("vote.sync.ballot.b32", [to, value, members]) => Action::Ballot {
            to: names.register(to)?,
            value: names.value(value)?,
            members: names.value(members)?,
        },
        (MMA, [d, a, b, c]) => Action::MultiplyMatrices {
            d: names.exactly(d, 4)?,
            a: names.exactly(a, 4)?,
            b: names.exactly(b, 2)?,
            c: names.exactly(c, 4)?,
        },
        (name, [to, at]) if name.starts_with("ldmatrix.sync.aligned.m8n8.x") => {
            let (count, rest) = name["ldmatrix.sync.aligned.m8n8.x".len()..].split_at(1);
            let transposed = match rest {
                ".shared.b16" => false,
                ".trans.shared.b16" => true,
                _ => return Err("a form that is not known here".to_owned()),
            };
            let count = count.parse().map_err(|_| "not a number")?;
            Action::LoadMatrices {
                to: names.exactly(to, count)?,
                at: names.address(at)?,
                transposed,
            }
        }
        _ => return Ok(None),
    }))
}

fn space_of(name: &str) -> Result<Space, String> {
    match name {
        "global" => Ok(Space::Global),
        "shared" => Ok(Space::Shared),
        "local" => Ok(Space::Local),
        "param" => Ok(Space::Parameter),
        _ => Err(format!("memory of kind {name} is not known here")),
    }
}

/// Bytes of a type.
pub(super) fn bytes_of(kind: &str) -> Result<usize, String> {
    match kind {
        "b8" | "u8" | "s8" => Ok(1),
        "b16" | "u16" | "s16" => Ok(2),
        "b32" | "u32" | "s32" | "f32" => Ok(4),
        "b64" | "u64" | "s64" | "f64" => Ok(8),
        _ => Err(format!("type {kind} is not known here")),
    }
}
