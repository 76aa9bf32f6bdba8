//! Reads the pickles of PyTorch files without executing anything in them.
//!
//! A pickle is a program for a stack machine. This one can build plain values and tensors; every
//! other object (`argparse.Namespace`, …) becomes [`Node::Opaque`], and an unknown instruction is
//! an error. Values live in an arena and refer to each other by index, so neither cycles nor deep
//! nesting can do harm.

use std::collections::HashMap;

/// Index of a value in [`Pickle::nodes`].
pub(super) type Id = usize;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, `module name`.
    Global(String),
    /// The object that `BINPERSID` refers to: in PyTorch files, the tuple that describes a storage.
    Persistent(Id),
    /// A call of `torch._utils _rebuild_tensor_v2` with this tuple.
    Tensor(Id),
    /// An object of a class that is not needed.
    Opaque,
}

/// The values of one pickle.
#[derive(Debug, Default)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

impl Pickle {
    /// Runs the program at the start of `bytes`; also returns the number of bytes it took.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, usize), String> {
        let mut machine = Machine { bytes, ..Machine::default() };
        while machine.step()? {}
        let root = machine.pop()?;
        Ok((Self { nodes: machine.nodes, root }, machine.at))
    }

    /// Returns the value that the pickle stands for.
    pub(super) fn root(&self) -> Id {
        self.root
    }

    /// Returns all values in the order in which they were made.
    pub(super) fn all(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        self.nodes.get(id).unwrap_or(&Node::None)
    }

    /// Returns the entries of a dictionary whose keys are text.
    pub(super) fn entries(&self, id: Id) -> Option<Vec<(&str, Id)>> {
        let Node::Dict(entries) = self.node(id) else { return None };
        Some(entries.iter().filter_map(|&(k, v)| Some((self.text(k)?, v))).collect())
    }

    /// Returns the value of a key in a dictionary.
    pub(super) fn get(&self, id: Id, key: &str) -> Option<Id> {
        self.entries(id)?.into_iter().rev().find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn count(&self, id: Id) -> Option<usize> {
        match self.node(id) {
            Node::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Returns the items of a tuple or list.
    pub(super) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack at which a MARK was set.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Executes one instruction; returns false after STOP.
    fn step(&mut self) -> Result<bool, String> {
        let at = self.at;
        let code = self.take(1)?.first().copied().unwrap_or(b'.');
        match code {
            b'.' => return Ok(false),
            0x80 => _ = self.take(1)?, // PROTO
            0x95 => _ = self.take(8)?, // FRAME
            b'(' => self.marks.push(self.stack.len()),
            b'0' => _ = self.pop()?,
            b'1' => _ = self.pop_to_mark()?,
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'J' | b'K' | b'M' | 0x8a | b'G' => self.number(code)?,
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'C' | b'B' => self.text(code)?,
            b')' => self.push(Node::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items));
            }
            0x85..=0x87 => {
                let keep = self.stack.len().checked_sub(usize::from(code - 0x84));
                let items = self.stack.split_off(keep.ok_or("a tuple of too few values")?);
                self.push(Node::Tuple(items));
            }
            b']' | 0x8f => self.push(Node::List(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.insert(&items)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Node::Global(format!("{module} {name}")));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (module, name) = (self.peek(module), self.peek(name));
                self.push(match (module, name) {
                    (Node::Text(module), Node::Text(name)) => {
                        Node::Global(format!("{module} {name}"))
                    }
                    _ => return Err("a global that is not named by text".into()),
                });
            }
            b'R' | 0x81 => self.call()?,
            b'b' => _ = self.pop()?, // BUILD: attributes of an object; none is needed
            b'q' => self.store(1)?,
            b'r' => self.store(4)?,
            0x94 => {
                let (key, top) = (self.memo.len() as u32, self.top()?);
                self.memo.insert(key, top);
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            other => return Err(format!("instruction {other:#04x} at byte {at} is not supported")),
        }
        Ok(true)
    }

    fn number(&mut self, code: u8) -> Result<(), String> {
        let node = match code {
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'K' => Node::Int(i64::from(u8::from_le_bytes(self.array()?))),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            _ => {
                let length = usize::from(u8::from_le_bytes(self.array()?));
                let digits = self.take(length)?;
                let mut wide =
                    [if digits.last().is_some_and(|b| b & 0x80 != 0) { 255 } else { 0 }; 8];
                match wide.get_mut(..length) {
                    Some(low) => {
                        low.copy_from_slice(digits);
                        Node::Int(i64::from_le_bytes(wide))
                    }
                    // Only the magic number of old files is longer.
                    None => Node::Opaque,
                }
            }
        };
        self.push(node);
        Ok(())
    }

    fn text(&mut self, code: u8) -> Result<(), String> {
        let length = match code {
            0x8c | b'U' | b'C' => u64::from(u8::from_le_bytes(self.array()?)),
            0x8d => u64::from_le_bytes(self.array()?),
            _ => u64::from(u32::from_le_bytes(self.array()?)),
        };
        let length = usize::try_from(length).map_err(|_| "a text of impossible length")?;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.push(Node::Text(text));
        Ok(())
    }

    /// REDUCE and NEWOBJ: recognises the few calls that matter, without calling anything.
    fn call(&mut self) -> Result<(), String> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Node::Global(callee) = self.peek(callee) else {
            self.push(Node::Opaque);
            return Ok(());
        };
        match callee.as_str() {
            "collections OrderedDict" => self.push(Node::Dict(Vec::new())),
            "torch._utils _rebuild_tensor_v2" => self.push(Node::Tensor(arguments)),
            // A parameter is replaced by its tensor.
            "torch._utils _rebuild_parameter" => match self.peek(arguments) {
                Node::Tuple(items) if !items.is_empty() => self.stack.extend(items.first()),
                _ => return Err("a parameter without a tensor".into()),
            },
            _ => self.push(Node::Opaque),
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        let top = self.top()?;
        match self.nodes.get_mut(top) {
            Some(Node::List(list)) => list.extend(items),
            Some(Node::Opaque) => {}
            _ => return Err("an item for something that is no list".into()),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), String> {
        let top = self.top()?;
        match self.nodes.get_mut(top) {
            Some(Node::Dict(entries)) => {
                entries.extend(items.as_chunks::<2>().0.iter().map(|&[k, v]| (k, v)));
            }
            Some(Node::Opaque) => {}
            _ => return Err("an entry for something that is no dictionary".into()),
        }
        Ok(())
    }

    fn store(&mut self, width: usize) -> Result<(), String> {
        let key = self.key(width)?;
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, width: usize) -> Result<(), String> {
        let key = self.key(width)?;
        let id = *self.memo.get(&key).ok_or_else(|| format!("memo {key} was never set"))?;
        self.stack.push(id);
        Ok(())
    }

    fn key(&mut self, width: usize) -> Result<u32, String> {
        Ok(if width == 1 {
            u32::from(u8::from_le_bytes(self.array()?))
        } else {
            u32::from_le_bytes(self.array()?)
        })
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn peek(&self, id: Id) -> Node {
        self.nodes.get(id).cloned().unwrap_or(Node::None)
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".to_owned())
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().ok_or_else(|| "the stack is empty".to_owned())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().filter(|&m| m <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or("a mark is missing")?))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(length);
        let part = end.and_then(|end| self.bytes.get(self.at..end));
        let part = part.ok_or_else(|| format!("it breaks off at byte {}", self.at))?;
        self.at += length;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "unreachable: the length was asked for".to_owned())
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = self.bytes.get(self.at..).unwrap_or(&[]);
        let end = rest.iter().position(|&b| b == b'\n').ok_or("a name without an end")?;
        let line = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Ok(line)
    }
}
