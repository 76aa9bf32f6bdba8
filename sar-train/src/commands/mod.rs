//! What each command does: one file per command, with a `run` in each; those that compute are generic
//! over the backend.

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

mod advice;
pub mod bench;
pub mod check;
mod classes;
pub mod config;
pub mod convert;
pub mod data;
pub mod demo;
pub mod doctor;
pub mod edit;
pub mod eval;
mod generator_run;
mod inputs;
pub mod kernels;
mod latents;
mod launch;
mod models;
mod next;
mod output;
mod painting;
mod place;
pub mod plan;
pub mod ranks;
pub mod report;
mod resuming;
pub mod roofline;
mod room;
pub mod sample;
mod samples;
pub mod score;
mod starting;
mod table;
pub mod tokenizer;
pub mod train;

use crate::backend::with_backend;
use crate::cli::{Cli, Command, KernelsCommand};
use crate::run::Interrupted;
use crate::train::TrainError;

/// Runs the command that was typed, on the backend that was asked for.
///
/// # Errors
/// The command's; a backend that cannot be had.
pub fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    let global = &cli.global;
    match &cli.command {
        Command::Demo(args) => with_backend!(global, |b| demo::run(b, args, global)),
        Command::Tokenizer(args) => with_backend!(global, |b| tokenizer::run(b, args, global)),
        Command::Train(args) => with_backend!(global, |b| train::run(b, args, global)),
        Command::Refine(args) => with_backend!(global, |b| train::refine(b, args, global)),
        Command::Join(args) => with_backend!(global, |b| ranks::run(b, args, global)),
        Command::Sample(args) => with_backend!(global, |b| sample::run(b, args, global)),
        Command::Edit(args) => with_backend!(global, |b| edit::run(b, args, global)),
        Command::Eval(args) => with_backend!(global, |b| eval::run(b, args, global)),
        Command::Score(args) => score::run(args, global),
        Command::Bench(args) => with_backend!(global, |b| bench::run(b, args, global)),
        Command::Check(args) => check::run(args, global),
        Command::Data(args) => data::run(args, global),
        Command::Convert(args) => convert::run(args, global),
        Command::Plan(args) => plan::run(args, global),
        Command::Config(args) => config::run(args),
        Command::Doctor(args) => doctor::run(args, global),
        Command::Kernels(args) => match &args.command {
            KernelsCommand::Build(args) => kernels::run(args, global),
        },
        Command::Report(args) => report::run(args),
    }
}

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
    if is_interruption(error) { 130 } else { 1 }
}

/// Whether a command failed because the user stopped it.
fn is_interruption(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        // A transparent variant stands in the chain in place of what it holds.
        cause.is::<Interrupted>()
            || cause.is::<demo::DemoInterrupted>()
            || cause.is::<demo::MeasuringInterrupted>()
            || cause.is::<painting::SamplingInterrupted>()
            || cause.is::<eval::EvalInterrupted>()
            || cause.is::<tokenizer::EncodingInterrupted>()
            || matches!(
                cause.downcast_ref(),
                Some(TrainError::Interrupted(_) | TrainError::NotBegun)
            )
    })
}
