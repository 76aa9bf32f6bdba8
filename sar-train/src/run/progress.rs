//! Progress for people: a bar on a terminal, occasional lines elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Shortest time between two plain lines, so that a log file of a day stays readable.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Time between two redraws of a bar that does not move.
const TICK: Duration = Duration::from_secs(1);

/// Formats images per second, with decimals for small numbers.
pub(crate) fn rate(images_per_s: f64) -> String {
    let decimals = usize::from(images_per_s < 10.0) + usize::from(images_per_s < 1.0);
    format!("{images_per_s:.decimals$} images/s")
}

/// Formats a duration: `0.38 ms`, `1.5 s`, `3 min 20 s`, `5 h 10 min`, `2 d 4 h`.
pub(crate) fn duration(seconds: f64) -> String {
    const UNITS: [(&str, f64); 4] = [("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)];
    let digits = |value: f64| [10.0, 1.0].iter().filter(|&&least| value < least).count();
    if seconds < 0.9995 {
        let millis = seconds * 1e3;
        return format!("{millis:.*} ms", digits(millis));
    }
    if seconds < 59.5 {
        return format!("{seconds:.*} s", digits(seconds));
    }
    for pair in UNITS.windows(2) {
        let [(large, in_large), (small, in_small)] = [pair[0], pair[1]];
        let count = (seconds / in_small).round() as u64;
        let each = (in_large / in_small) as u64;
        if count >= each {
            return format!("{} {large} {} {small}", count / each, count % each);
        }
    }
    format!("{seconds:.0} s")
}

/// Shows the progress of a piece of work on standard error. Never fails, because progress is not a
/// result.
#[derive(Debug)]
pub struct Progress {
    what: String,
    total: u64,
    first: u64,
    started: Instant,
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
    Nothing,
}

impl Progress {
    /// Begins work `what` of `total` steps, of which `done` were completed before.
    pub fn new(what: &str, total: u64, done: u64, quiet: bool) -> Self {
        let shown = if quiet {
            Shown::Nothing
        } else if std::io::stderr().is_terminal() {
            Shown::Bar(bar(what, total, done))
        } else {
            Shown::Lines { last: None }
        };
        Self { what: what.to_owned(), total, first: done, started: Instant::now(), shown }
    }

    /// Reports that `done` steps are completed; `message` is shown next to the time left.
    pub fn update(&mut self, done: u64, message: &str) {
        let line = match &self.shown {
            Shown::Bar(bar) => {
                bar.set_message(message.to_owned());
                bar.set_position(done);
                return;
            }
            Shown::Nothing => return,
            Shown::Lines { last } => {
                let early = last.is_some_and(|at| at.elapsed() < BETWEEN_LINES);
                if early && done < self.total {
                    return;
                }
                self.line(done, message)
            }
        };
        self.shown = Shown::Lines { last: Some(Instant::now()) };
        say(&line);
    }

    /// Moves a bar to `done` steps and keeps its message; does nothing elsewhere.
    pub fn moved(&self, done: u64) {
        if let Shown::Bar(bar) = &self.shown {
            bar.set_position(done);
        }
    }

    /// Prints a warning, even when quiet.
    pub fn warn(&self, line: &str) {
        let line = format!("warning: {line}");
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| say(&line)),
            Shown::Lines { .. } | Shown::Nothing => say(&line),
        }
    }

    /// Ends the progress with a last line.
    pub fn finish(self, message: &str) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
        if !matches!(self.shown, Shown::Nothing) {
            say(&format!("{}: {message} in {}", self.what, clock(self.started.elapsed())));
        }
    }

    fn line(&self, done: u64, message: &str) -> String {
        let percent = 100 * done / self.total.max(1);
        let left = match self.left(done) {
            Some(left) => format!(", {} left", clock(left)),
            None => String::new(),
        };
        format!("{}: {done}/{} ({percent} %{left}) {message}", self.what, self.total)
    }

    /// Returns the time left at the average speed since the beginning.
    fn left(&self, done: u64) -> Option<Duration> {
        let made = done.checked_sub(self.first).filter(|&n| n > 0)?;
        let per_step = self.started.elapsed().as_secs_f64() / made as f64;
        Duration::try_from_secs_f64(per_step * self.total.saturating_sub(done) as f64).ok()
    }
}

fn bar(what: &str, total: u64, done: u64) -> ProgressBar {
    // At most 4 redraws per second; no colours, so NO_COLOR has nothing to turn off.
    let target = ProgressDrawTarget::stderr_with_hz(4);
    let bar = ProgressBar::with_draw_target(Some(total), target);
    let template = "{prefix} {wide_bar} {pos}/{len} {elapsed}, {left} left  {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        // The remaining time is unknown before the first step is completed.
        let left = move |state: &ProgressState, to: &mut dyn fmt::Write| {
            let _ = match state.pos() > done {
                true => to.write_str(&clock(state.eta())),
                false => to.write_str("?"),
            };
        };
        bar.set_style(style.with_key("left", left).progress_chars("=> "));
    }
    bar.set_prefix(what.to_owned());
    bar.set_position(done);
    bar.reset_eta();
    // A step may take minutes; the running clock shows that nothing hangs.
    bar.enable_steady_tick(TICK);
    bar
}

/// Writes a line; a closed standard error is no reason to stop training.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Formats a time as `1:02:03` or `2:03`.
fn clock(time: Duration) -> String {
    let (s, m, h) = (time.as_secs() % 60, time.as_secs() / 60 % 60, time.as_secs() / 3600);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_say_how_far_and_how_long() {
        let mut progress = Progress::new("train", 400, 100, false);
        progress.started = Instant::now() - Duration::from_secs(50);
        let line = progress.line(200, "loss 3.21");
        // 100 steps took 50 s, so the other 200 take 100 s.
        assert_eq!(line, "train: 200/400 (50 %, 1:40 left) loss 3.21");
        assert_eq!(progress.line(100, ""), "train: 100/400 (25 %) ");
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
    }

    #[test]
    fn durations_have_two_digits_or_units() {
        for (seconds, text) in [
            (0.000_381, "0.38 ms"),
            (0.0123, "12 ms"),
            (0.5, "500 ms"),
            (3.21, "3.2 s"),
            (59.4, "59 s"),
            (59.6, "1 min 0 s"),
            (200.0, "3 min 20 s"),
            (3599.7, "1 h 0 min"),
            (18_600.0, "5 h 10 min"),
            (187_200.0, "2 d 4 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
