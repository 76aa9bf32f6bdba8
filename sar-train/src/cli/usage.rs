//! Messages about flags where the argument parser's own would mislead: negative numbers, and flags
//! that do not go together.

use super::{
    BackendName, Cli, Command, GlobalArgs, RanksArgs, RefineArgs, RunArgs, TokenizerCommand,
    TokenizerTrainArgs, TrainArgs,
};
use clap::builder::ValueParser;
use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, value_parser};
use std::path::Path;
use std::str::FromStr;

/// Flags of numbers that keep their own parser, which has the same type as the one that is
/// replaced.
const OWN: [&str; 2] = ["threads", "ranks"];

/// Parses a whole number of at least 0; its range is checked with the configuration.
fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number, 0 or more, that 64 bits hold".to_owned())
}

/// Makes the flags of a command accept negative numbers as values, which their own parsers then
/// refuse, so that these are not taken for unknown flags.
fn with_numbers(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let parser = arg.get_value_parser().type_id();
            let of = |known: ValueParser| parser == known.type_id();
            match () {
                () if OWN.contains(&arg.get_id().as_str()) => arg.allow_negative_numbers(true),
                () if arg.is_positional() || !arg.get_action().takes_values() => arg,
                () if of(value_parser!(usize).into()) => {
                    arg.value_parser(whole::<usize>).allow_negative_numbers(true)
                }
                () => arg.allow_negative_numbers(true),
            }
        })
        .mut_subcommands(with_numbers)
}

impl Cli {
    /// Parses the flags of this process; if they are wrong, prints what is wrong and exits with
    /// code 2.
    pub fn typed() -> Self {
        let matches = with_numbers(Self::command()).get_matches();
        let cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        let refuse = |wrong| clap::Error::raw(ErrorKind::ArgumentConflict, wrong + "\n").exit();
        cli.check().and_then(|()| cli.placed()).unwrap_or_else(refuse)
    }

    /// Checks the flags of commands that create or continue a run against each other.
    ///
    /// # Errors
    /// What is wrong, and what to type instead.
    fn check(&self) -> Result<(), String> {
        match &self.command {
            Command::Train(args) => check_train(args, &self.global),
            Command::Refine(args) => check_refine(args, &self.global),
            Command::Tokenizer(args) => match &args.command {
                TokenizerCommand::Train(args) => check_tokenizer_train(args, &self.global),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// Returns the command that continues a run: its name, its folder, and the flags for what computes
/// it.
pub(crate) fn going_on(command: &str, out: &Path, global: &GlobalArgs) -> String {
    format!("sar {command} --resume --out {}{}", in_shell(out), computing(global))
}

/// Returns the flags for what computes, if not the default, with a space before each.
pub(crate) fn computing(global: &GlobalArgs) -> String {
    let backend = match global.backend {
        BackendName::Cpu => String::new(),
        other => format!(" --backend {other}"),
    };
    let dtype = global.dtype.map_or(String::new(), |dtype| format!(" --dtype {dtype}"));
    let device = match global.device {
        0 => String::new(),
        other => format!(" --device {other}"),
    };
    backend + &dtype + &device
}

/// Returns a path as it is typed: in quotes if a shell would split or expand it.
pub(crate) fn in_shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@,%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// Checks the flags of `sar train` against each other, for callers that have not parsed them by
/// [`Cli::typed`].
pub(crate) fn check_train(args: &TrainArgs, global: &GlobalArgs) -> Result<(), String> {
    let own = [
        ("--tokenizer", args.tokenizer.is_some()),
        ("--latents", args.latents.is_some()),
        ("--mode", args.mode.is_some()),
    ];
    check_run("train", &args.run, &own, global)?;
    check_ranks(&args.ranks)?;
    match args.tokenizer.is_some() || args.run.resume || args.run.init_from.is_some() {
        true => Ok(()),
        false => {
            let source =
                args.run.data.as_deref().map_or("…".to_owned(), |s| in_shell(s.as_ref()));
            Err(format!(
                "no tokenizer given; name it with --tokenizer, or train one first: `sar tokenizer train --data \
                 {source} --out runs/tokenizer`"
            ))
        }
    }
}

/// Like [`check_train`], for `sar tokenizer train`.
pub(crate) fn check_tokenizer_train(
    args: &TokenizerTrainArgs,
    global: &GlobalArgs,
) -> Result<(), String> {
    check_run("tokenizer train", &args.run, &[], global)?;
    check_ranks(&args.ranks)
}

/// Like [`check_train`], for `sar refine`.
pub(crate) fn check_refine(args: &RefineArgs, global: &GlobalArgs) -> Result<(), String> {
    if let Some(generator) = &args.generator {
        return Err(format!(
            "`sar refine` takes the generator by a flag: `sar refine --init-from {} --out {}`",
            in_shell(generator),
            in_shell(&args.run.out)
        ));
    }
    let sar = &args.sar;
    let own = [
        ("--tokenizer", args.tokenizer.is_some()),
        ("--latents", args.latents.is_some()),
        ("--preset", sar.preset.is_some()),
        ("--extent", sar.extent.is_some()),
        ("--target", sar.target.is_some()),
        ("--decode", sar.decode.is_some()),
        ("--top-k", sar.top_k.is_some()),
        ("--top-p", sar.top_p.is_some()),
        ("--guidance", sar.guidance.is_some()),
        ("--sigma", sar.sigma.is_some()),
    ];
    check_run("refine", &args.run, &own, global)?;
    check_ranks(&args.ranks)
}

/// Checks the flags of ranks against each other.
fn check_ranks(args: &RanksArgs) -> Result<(), String> {
    match &args.listen {
        Some(address) if args.ranks < 2 => Err(format!(
            "--listen {address} waits for other ranks, and --ranks says that there are none; with --ranks N it waits \
             for N-1"
        )),
        _ => Ok(()),
    }
}

/// Refuses what cannot be combined with `--resume`, since a run continues with what it began with.
/// `own` are the flags of the command itself, and whether they were given.
fn check_run(
    command: &str,
    args: &RunArgs,
    own: &[(&str, bool)],
    global: &GlobalArgs,
) -> Result<(), String> {
    if args.unlabelled {
        return Err("--unlabelled is a flag of `sar data check`; here images without classes are asked for by --set \
                    data.unlabelled=true"
            .to_owned());
    }
    let of_every = [
        ("--config", args.config.is_some()),
        ("--data", args.data.is_some()),
        ("--seed", args.seed.is_some()),
        ("--init-from", args.init_from.is_some()),
    ];
    let given = of_every.iter().chain(own).filter(|(_, given)| *given).map(|(flag, _)| *flag);
    let given: Vec<&str> = given.collect();
    if !args.resume || given.is_empty() {
        return Ok(());
    }
    Err(format!(
        "--resume cannot be used with {}: a run goes on with what it began with. To go on: `{}`. Or give --requeue in \
         place of --resume, and the same command begins the run and goes on with it",
        given.join(", "),
        going_on(command, &args.out, global)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_printed_as_they_are_typed() {
        assert_eq!(in_shell(Path::new("runs/a-1.x")), "runs/a-1.x");
        assert_eq!(in_shell(Path::new("My pictures/it's")), "'My pictures/it'\\''s'");
        assert_eq!(in_shell(Path::new("")), "''");
    }
}
