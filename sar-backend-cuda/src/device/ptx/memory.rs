//! Memory as threads see it, with checks for faults: whether accesses are in bounds and aligned, and whether
//! two threads may meet in an element without a barrier between them.

use super::hazards::{Access, ELEMENT, Element};
use super::operands::BASE;
use std::collections::HashMap;

/// What fresh memory holds: a NaN in every format.
pub(super) const POISON: u8 = 0xff;

/// Up to eight bytes as a number.
pub(super) fn number(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(whole)
}

/// Refuses accesses that are not aligned to their size, as a GPU does.
pub(super) fn check_alignment(at: u64, bytes: usize) -> Result<(), String> {
    match at.is_multiple_of(bytes as u64) {
        true => Ok(()),
        false => Err(format!("{at:#x} is not aligned to {bytes} bytes")),
    }
}

/// The path by which a launch reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    Plain,
    /// Constant for as long as the launch lasts.
    Constant,
}

/// Number of bytes whose elements are tracked together.
const PAGE: usize = 64;

/// The device's memory during a launch.
pub(super) struct Global {
    /// Start and length of the allocations that are held, in order of address.
    held: Vec<(u64, usize)>,
    pages: HashMap<u64, [Element; PAGE / ELEMENT]>,
}

impl Global {
    /// Memory that no thread has touched yet.
    pub fn new(held: Vec<(u64, usize)>) -> Self {
        Self { held, pages: HashMap::new() }
    }

    fn check(&self, at: u64, bytes: usize) -> Result<(), String> {
        check_alignment(at, bytes)?;
        let next = self.held.partition_point(|&(start, _)| start <= at);
        let inside = next.checked_sub(1).map(|i| self.held[i]);
        match inside {
            Some((start, len)) if at - start + bytes as u64 <= len as u64 => Ok(()),
            _ => Err(format!("{bytes} bytes at {at:#x} are not held")),
        }
    }

    /// The elements of an access, which is aligned and so lies in one page.
    fn elements(&mut self, at: u64, bytes: usize) -> &mut [Element] {
        let page = self.pages.entry(at / PAGE as u64).or_default();
        let start = at as usize % PAGE;
        &mut page[start / ELEMENT..(start + bytes).div_ceil(ELEMENT)]
    }

    /// Copies from the device.
    pub fn read(
        &mut self,
        at: u64,
        to: &mut [u8],
        path: Path,
        access: Access,
    ) -> Result<(), String> {
        self.check(at, to.len())?;
        for element in self.elements(at, to.len()) {
            match path {
                Path::Plain => element.read(access)?,
                Path::Constant => element.read_as_constant(access)?,
            }
        }
        // SAFETY: the range lies in an allocation that is held, and no slice of the host's overlaps it.
        unsafe { core::ptr::copy_nonoverlapping(at as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Copies to the device.
    pub fn write(&mut self, at: u64, from: &[u8], access: Access) -> Result<(), String> {
        self.check(at, from.len())?;
        self.elements(at, from.len()).iter_mut().try_for_each(|element| element.write(access))?;
        // SAFETY: as above; one thread executes all blocks.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), at as *mut u8, from.len()) };
        Ok(())
    }

    /// Replaces a word by what `change` makes of it; gives what it was.
    pub fn change(
        &mut self,
        at: u64,
        access: Access,
        change: impl FnOnce(u32) -> u32,
    ) -> Result<u32, String> {
        self.check(at, 4)?;
        self.elements(at, 4).iter_mut().try_for_each(|element| element.change(access))?;
        // SAFETY: as above; a word is aligned.
        unsafe {
            let before = (at as *const u32).read();
            (at as *mut u32).write(change(before));
            Ok(before)
        }
    }
}

/// A block's shared memory.
#[derive(Default)]
pub(super) struct Shared {
    bytes: Vec<u8>,
    elements: Vec<Element>,
}

impl Shared {
    /// Prepares the memory for a new block, which has written nothing in it.
    pub fn reset(&mut self, bytes: usize) {
        self.bytes.clear();
        self.bytes.resize(bytes, POISON);
        self.elements.clear();
        self.elements.resize(bytes.div_ceil(ELEMENT), Element::default());
    }

    fn place(&self, at: u64, bytes: usize) -> Result<usize, String> {
        check_alignment(at, bytes)?;
        let start =
            at.checked_sub(BASE).filter(|start| start + bytes as u64 <= self.bytes.len() as u64);
        start.map(|start| start as usize).ok_or_else(|| {
            let len = self.bytes.len();
            format!("{bytes} bytes at {at:#x} are not in the block's {len} bytes of shared memory")
        })
    }

    fn elements(&mut self, start: usize, bytes: usize) -> &mut [Element] {
        &mut self.elements[start / ELEMENT..(start + bytes).div_ceil(ELEMENT)]
    }

    /// The elements of a range, all of which the block has written.
    fn written(&mut self, at: u64, bytes: usize) -> Result<(usize, &mut [Element]), String> {
        let start = self.place(at, bytes)?;
        let elements = self.elements(start, bytes);
        match elements.iter().all(Element::is_written) {
            true => Ok((start, elements)),
            false => Err(format!("the block has not written all {bytes} bytes at {at:#x}")),
        }
    }

    pub fn read(&mut self, at: u64, to: &mut [u8], access: Access) -> Result<(), String> {
        let (start, elements) = self.written(at, to.len())?;
        elements.iter_mut().try_for_each(|element| element.read(access))?;
        to.copy_from_slice(&self.bytes[start..][..to.len()]);
        Ok(())
    }

    /// Applies `into` to every element of a range, and returns where the range starts.
    fn enter(
        &mut self,
        at: u64,
        bytes: usize,
        into: impl FnMut(&mut Element) -> Result<(), String>,
    ) -> Result<usize, String> {
        let start = self.place(at, bytes)?;
        self.elements(start, bytes).iter_mut().try_for_each(into)?;
        Ok(start)
    }

    pub fn write(&mut self, at: u64, from: &[u8], access: Access) -> Result<(), String> {
        let start = self.enter(at, from.len(), |element| element.write(access))?;
        self.bytes[start..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    /// Replaces a word by what `change` makes of it; gives what it was.
    pub fn change(
        &mut self,
        at: u64,
        access: Access,
        change: impl FnOnce(u32) -> u32,
    ) -> Result<u32, String> {
        let (start, elements) = self.written(at, 4)?;
        elements.iter_mut().try_for_each(|element| element.change(access))?;
        let word = &mut self.bytes[start..][..4];
        let before = number(word) as u32;
        word.copy_from_slice(&change(before).to_le_bytes());
        Ok(before)
    }

    /// Begins a copy of `bytes` bytes.
    pub fn announce(&mut self, at: u64, bytes: usize, access: Access) -> Result<(), String> {
        self.enter(at, bytes, |element| element.announce(access)).map(drop)
    }

    /// Ends a copy.
    pub fn arrive(&mut self, at: u64, from: &[u8], access: Access) -> Result<(), String> {
        let start = self.enter(at, from.len(), |element| element.arrive(access))?;
        self.bytes[start..][..from.len()].copy_from_slice(from);
        Ok(())
    }
}
