//! What the program writes to the terminal, whoever reads it.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};
use std::process::exit;

/// Writes a part of the result to standard output.
///
/// A result that nobody reads, or that has no room, ends the program: what there was to save is saved
/// before it is told.
pub(crate) fn result(part: Arguments<'_>) {
    let mut out = std::io::stdout();
    match out.write_fmt(part).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::BrokenPipe => exit(0),
        Err(e) => {
            note(format_args!("error: cannot write to standard output\n  because: {e}"));
            exit(1)
        }
    }
}

/// Writes a line to standard error, if anybody reads it.
pub(crate) fn note(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
