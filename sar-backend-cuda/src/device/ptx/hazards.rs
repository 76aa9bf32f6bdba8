//! Checks whether two threads may meet in an element of memory, one of them writing, with no barrier between
//! them.
//!
//! The order in which threads happen to run here does not matter: on a GPU it is another one each time.

use super::operations::WARP;

/// Elements of two bytes are the smallest that kernels keep.
pub(super) const ELEMENT: usize = 2;

/// When something happened: how many barriers of the block, and then of the warp, came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moment {
    pub block: u32,
    pub warp: u32,
}

/// Who touches memory, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// Number of the block in the grid.
    pub block: u32,
    /// Number of the thread in its block.
    pub thread: u32,
    pub now: Moment,
}

impl Access {
    fn warp(&self) -> u32 {
        self.thread / WARP as u32
    }

    /// Whether this access comes before a later one, whatever the order of threads.
    fn before(&self, later: &Self) -> bool {
        self.block == later.block
            && (self.now.block < later.now.block
                || self.thread == later.thread
                || self.warp() == later.warp() && self.now.warp < later.now.warp)
    }
}

/// Which other threads made the same kind of access as the last one, with no order between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Others {
    #[default]
    None,
    OfTheWarp,
    OfTheBlock,
    OfOtherBlocks,
}

/// Accesses of a kind that need no order among themselves.
#[derive(Clone, Copy, Debug, Default)]
struct Touches {
    last: Option<Access>,
    others: Others,
}

impl Touches {
    fn enter(&mut self, access: Access) {
        self.others = match self.last {
            None => Others::None,
            Some(last) if last.block != access.block => Others::OfOtherBlocks,
            Some(_) if self.others == Others::OfOtherBlocks => Others::OfOtherBlocks,
            Some(last) if last.now.block < access.now.block => Others::None,
            Some(last) if last.warp() != access.warp() => Others::OfTheBlock,
            Some(_) if self.others == Others::OfTheBlock => Others::OfTheBlock,
            Some(last) if last.now.warp < access.now.warp => Others::None,
            Some(last) if last.thread != access.thread => Others::OfTheWarp,
            Some(_) => self.others,
        };
        self.last = Some(access);
    }

    /// Checks that all of them come before an access; `what` says what they did.
    fn check(&self, access: Access, what: &str) -> Result<(), String> {
        let Some(last) = self.last else { return Ok(()) };
        let same_block = last.block == access.block;
        let sound = match self.others {
            Others::None => last.before(&access),
            Others::OfTheWarp => {
                let same_warp = last.warp() == access.warp() && last.now.warp < access.now.warp;
                same_block && (last.now.block < access.now.block || same_warp)
            }
            Others::OfTheBlock => same_block && last.now.block < access.now.block,
            Others::OfOtherBlocks => false,
        };
        match sound {
            true => Ok(()),
            false => Err(format!(
                "no barrier between {}, which {what} it, and {}",
                named(&last),
                named(&access)
            )),
        }
    }
}

/// What has happened to an element in this launch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Element {
    written: Option<Access>,
    atomics: Touches,
    reads: Touches,
    as_constant: bool,
    /// A copy into it has begun and was not waited for.
    under_way: bool,
}

impl Element {
    /// Whether it was written at all.
    pub fn is_written(&self) -> bool {
        self.written.is_some()
    }

    /// Notes a read.
    pub fn read(&mut self, access: Access) -> Result<(), String> {
        self.check_written(access)?;
        self.atomics.check(access, "changed")?;
        self.reads.enter(access);
        Ok(())
    }

    /// Notes a read by the path that sees no store of the same launch.
    pub fn read_as_constant(&mut self, access: Access) -> Result<(), String> {
        if let Some(written) = self.written.or(self.atomics.last) {
            return Err(format!("read as constant, and {} wrote it", named(&written)));
        }
        self.as_constant = true;
        self.read(access)
    }

    /// Notes a write.
    pub fn write(&mut self, access: Access) -> Result<(), String> {
        self.atomics.check(access, "changed")?;
        self.check_change(access)?;
        self.written = Some(access);
        Ok(())
    }

    /// Notes an atomic access: a read and a write with nothing in between.
    pub fn change(&mut self, access: Access) -> Result<(), String> {
        self.check_change(access)?;
        self.atomics.enter(access);
        Ok(())
    }

    /// Notes the start of a copy, which may write at any time from now on.
    pub fn announce(&mut self, access: Access) -> Result<(), String> {
        self.write(access)?;
        self.under_way = true;
        Ok(())
    }

    /// Notes the end of a copy.
    pub fn arrive(&mut self, access: Access) -> Result<(), String> {
        self.under_way = false;
        self.write(access)
    }

    fn check_change(&self, access: Access) -> Result<(), String> {
        if self.as_constant {
            return Err("written, and read as constant before".to_owned());
        }
        self.check_written(access)?;
        self.reads.check(access, "read")
    }

    fn check_written(&self, access: Access) -> Result<(), String> {
        match self.written {
            Some(_) if self.under_way => Err("a copy to it was not waited for".to_owned()),
            Some(written) if !written.before(&access) => Err(format!(
                "no barrier between {}, which wrote it, and {}",
                named(&written),
                named(&access)
            )),
            _ => Ok(()),
        }
    }
}

fn named(access: &Access) -> String {
    format!("thread {} of block {}", access.thread, access.block)
}
