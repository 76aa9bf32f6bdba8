//! The program `sar`.

use sar_train::cli::Cli;
use sar_train::commands;
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::typed();
    let ready = sar_train::run::survive_file_limits().map_err(anyhow::Error::from);
    let ready = ready.and_then(|()| set_threads(cli.global.threads));
    match ready.and_then(|()| commands::dispatch(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = write!(std::io::stderr(), "{}", commands::describe(&error));
            ExitCode::from(commands::exit_code(&error))
        }
    }
}

fn set_threads(threads: usize) -> anyhow::Result<()> {
    // 0 leaves the choice to rayon: RAYON_NUM_THREADS, or else one thread per core. This thread
    // joins the pool, because an op called from outside would put its caller to sleep and wake a
    // worker: a thousand switches per step, 2 to 4 % of its time.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    Ok(pool.use_current_thread().build_global()?)
}
