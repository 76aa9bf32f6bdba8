//! The program `sar`.

use clap::Parser;
use sar_train::cli::{Cli, Command};
use sar_train::commands;
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match set_threads(cli.global.threads).and_then(|()| dispatch(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = write!(std::io::stderr(), "{}", commands::describe(&error));
            ExitCode::from(commands::exit_code(&error))
        }
    }
}

fn set_threads(threads: usize) -> anyhow::Result<()> {
    // 0 leaves the choice to rayon: RAYON_NUM_THREADS, else one per core.
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?)
}

fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    let global = &cli.global;
    match &cli.command {
        Command::Demo(args) => commands::demo::run(args, global),
        Command::Tokenizer(args) => commands::tokenizer::run(args, global),
        Command::Train(args) => commands::train::run(args, global),
        Command::Refine(args) => commands::train::refine(args, global),
        Command::Sample(args) => commands::sample::run(args, global),
        Command::Eval(args) => commands::eval::run(args, global),
        Command::Check(args) => commands::check::run(args, global),
        Command::Bench(args) => commands::bench::run(args, global),
        Command::Data(args) => commands::data::run(args, global),
        Command::Convert(args) => commands::convert::run(args, global),
        Command::Plan(args) => commands::plan::run(args, global),
        Command::Doctor(args) => commands::doctor::run(args, global),
        Command::Report(args) => commands::report::run(args, global),
    }
}
