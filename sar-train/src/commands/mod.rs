//! What each command does: one file per command, `run(args, global)` in each.

/// As of the standard library, for a reader that may be gone or a disk that may be full: `sar … | head`
/// ends quietly.
macro_rules! print {
    ($($part:tt)*) => { $crate::commands::output::result(format_args!($($part)*)) };
}
macro_rules! println {
    ($($part:tt)*) => { print!("{}\n", format_args!($($part)*)) };
}
/// Notes are no results: without a reader they are dropped.
macro_rules! eprintln {
    ($($part:tt)*) => { $crate::commands::output::note(format_args!($($part)*)) };
}

pub mod bench;
pub mod check;
pub mod convert;
pub mod data;
pub mod demo;
pub mod doctor;
pub mod eval;
mod models;
mod output;
pub mod plan;
pub mod report;
pub mod sample;
mod table;
pub mod tokenizer;
pub mod train;

use crate::run::Interrupted;
use crate::train::TrainError;

/// An error for the terminal: what failed, its causes, one per line.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some libraries repeat their cause in their own message.
        if !said.contains(&cause) {
            text.push_str(&format!("  because: {cause}\n"));
        }
        said = cause;
    }
    text
}

/// The exit code of a failed command: 130 after an interruption, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let interrupted = error.chain().any(|cause| {
        // A transparent variant stands in the chain in place of what it holds.
        cause.is::<Interrupted>()
            || cause.is::<demo::DemoInterrupted>()
            || matches!(cause.downcast_ref(), Some(TrainError::Interrupted(_)))
    });
    if interrupted { 130 } else { 1 }
}
