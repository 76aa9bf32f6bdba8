//! What the program writes to the terminal, whoever reads it.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};
use std::process::exit;

/// Writes a part of the result to standard output.
///
/// If nobody reads the result or it cannot be written, the program ends: whatever had to be saved
/// has been saved before results are printed.
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
