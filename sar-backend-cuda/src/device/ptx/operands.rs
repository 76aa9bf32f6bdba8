//! Registers, numbers, variables and addresses, as PTX writes them.

use super::program::{Register, bytes_of};
use std::collections::HashMap;

/// Shared and local memory start here, so that no variable's address is null.
pub(super) const BASE: u64 = 256;

/// A register's value and a distance from there, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub base: Register,
    pub offset: i64,
}

/// A number of the thread or of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Number {
    Thread,
    Threads,
    /// The block's index in the grid, in this dimension.
    Block(usize),
    Blocks(usize),
}

/// What a kernel's names stand for.
#[derive(Default)]
pub(super) struct Names {
    /// First register and count of a bank such as `%rd`.
    banks: HashMap<String, (Register, usize)>,
    /// Addresses of variables and offsets of parameters.
    variables: HashMap<String, u64>,
    constants: HashMap<u64, Register>,
    numbers: HashMap<Number, Register>,
    /// Total number of registers.
    pub registers: usize,
    /// Bytes of static shared memory.
    pub shared: usize,
    /// Bytes of a thread's own memory.
    pub local: usize,
    parameters: usize,
}

/// Splits the operands of an instruction at commas outside of brackets.
pub(super) fn operands(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 => {
                found.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    if !last.is_empty() {
        found.push(last);
    }
    found
}

impl Names {
    /// Declares `.param .u64 name` or `.param .align 8 .b8 name[264]`; returns its offset and size.
    pub fn declare_parameter(&mut self, line: &str) -> Result<(usize, usize), String> {
        let (name, align, bytes) = variable(line)?;
        let offset = self.parameters.next_multiple_of(align);
        self.variables.insert(name.to_owned(), offset as u64);
        self.parameters = offset + bytes;
        Ok((offset, bytes))
    }

    /// Declares registers, or a variable of the kernel.
    pub fn declare(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [".reg", _, bank] => {
                let (name, count) = match bank.trim_end_matches('>').split_once('<') {
                    Some((name, count)) => (name, count.parse().map_err(|_| "not a number")?),
                    None => (bank, 1),
                };
                self.banks.insert(name.to_owned(), (self.registers, count));
                self.registers += count;
                Ok(())
            }
            [kind @ (".shared" | ".local"), ..] => {
                let (name, align, bytes) = variable(line)?;
                let used = if kind == ".shared" { &mut self.shared } else { &mut self.local };
                let offset = used.next_multiple_of(align);
                *used = offset + bytes;
                self.variables.insert(name.to_owned(), BASE + offset as u64);
                Ok(())
            }
            _ => Err(format!("`{line}` is not known here")),
        }
    }

    /// A register by its name.
    pub fn register(&self, name: &str) -> Result<Register, String> {
        if let Some(&(first, _)) = self.banks.get(name) {
            return Ok(first);
        }
        let bank = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = name[bank.len()..].parse::<usize>().ok();
        match (self.banks.get(bank), number) {
            (Some(&(first, count)), Some(number)) if number < count => Ok(first + number),
            _ => Err(format!("{name} is no register")),
        }
    }

    /// The register of that name, or one that holds the number or the variable's address.
    pub fn value(&mut self, text: &str) -> Result<Register, String> {
        let number = match text {
            "%tid.x" => Some(Number::Thread),
            "%ntid.x" => Some(Number::Threads),
            "%ctaid.x" => Some(Number::Block(0)),
            "%ctaid.y" => Some(Number::Block(1)),
            "%ctaid.z" => Some(Number::Block(2)),
            "%nctaid.x" => Some(Number::Blocks(0)),
            "%nctaid.y" => Some(Number::Blocks(1)),
            "%nctaid.z" => Some(Number::Blocks(2)),
            _ => None,
        };
        if let Some(number) = number {
            return Ok(*self.numbers.entry(number).or_insert_with(|| next(&mut self.registers)));
        }
        if text.starts_with('%') || self.banks.contains_key(text) {
            return self.register(text);
        }
        let constant = match self.variables.get(text) {
            Some(&address) => address,
            // Declared outside of kernels: the shared memory that a launch adds to the kernel's own.
            None if text == "dynamic_shared_" => return Ok(self.dynamic_shared()),
            None => literal(text).ok_or_else(|| format!("{text} is no operand known here"))?,
        };
        Ok(*self.constants.entry(constant).or_insert_with(|| next(&mut self.registers)))
    }

    fn dynamic_shared(&mut self) -> Register {
        // All of the kernel's own variables are declared before its first instruction.
        let address = BASE + self.shared.next_multiple_of(16) as u64;
        *self.constants.entry(address).or_insert_with(|| next(&mut self.registers))
    }

    /// `{a, b}`, or a register alone.
    pub fn several(&mut self, text: &str) -> Result<Vec<Register>, String> {
        let inner = text.trim_start_matches('{').trim_end_matches('}');
        inner.split(',').map(|name| self.value(name.trim())).collect()
    }

    /// Like [`Names::several`], but an error unless there are `count` registers.
    pub fn exactly(&mut self, text: &str, count: usize) -> Result<Vec<Register>, String> {
        let found = self.several(text)?;
        match found.len() == count {
            true => Ok(found),
            false => Err(format!("{count} registers expected, {} found", found.len())),
        }
    }

    /// `[base+offset]`.
    pub fn address(&mut self, text: &str) -> Result<Address, String> {
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let inner = inner.ok_or_else(|| format!("{text} is no address"))?;
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        let offset = offset.trim().parse().map_err(|_| format!("{text} is no address"))?;
        Ok(Address { base: self.value(base.trim())?, offset })
    }

    /// Registers that always hold the same value, with that value.
    pub fn constants(&self) -> impl Iterator<Item = (Register, u64)> {
        self.constants.iter().map(|(&value, &register)| (register, value))
    }

    /// Registers that hold numbers of threads and blocks, with which number that is.
    pub fn numbers(&self) -> impl Iterator<Item = (Register, Number)> {
        self.numbers.iter().map(|(&number, &register)| (register, number))
    }

    /// Bytes of all parameters.
    pub fn parameter_bytes(&self) -> usize {
        self.parameters
    }
}

fn next(registers: &mut usize) -> Register {
    *registers += 1;
    *registers - 1
}

/// Name, alignment and bytes of `.kind .align 4 .b8 name[16]` or `.kind .u64 name`.
fn variable(line: &str) -> Result<(&str, usize, usize), String> {
    let fault = || format!("`{line}` is not known here");
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    let (align, kind, name) = match words[..] {
        [".align", align, kind, name] => (align.parse().ok(), kind, name),
        // For pointers, the declaration may also say what they point to.
        [kind, name] | [kind, ".ptr", .., name] => (None, kind, name),
        _ => return Err(fault()),
    };
    let each = bytes_of(kind.trim_start_matches('.'))?;
    let (name, count) = match name.trim_end_matches(']').split_once('[') {
        Some((name, count)) => (name, count.parse().map_err(|_| fault())?),
        None => (name, 1),
    };
    Ok((name, align.unwrap_or(each), each * count))
}

/// Reads a number; `0f` and `0d` precede the bits of a floating-point number.
fn literal(text: &str) -> Option<u64> {
    let bits = |digits| u64::from_str_radix(digits, 16).ok();
    match text.get(..2) {
        Some("0f" | "0F" | "0d" | "0D" | "0x" | "0X") => bits(&text[2..]),
        _ => text.parse::<i64>().map(|value| value as u64).or_else(|_| text.parse()).ok(),
    }
}
