//! `sar train` and `sar refine` in bf16 with the CUDA kernels executed on the CPU: what a GPU would learn from
//! the same seed, but for how sums are rounded (cuBLASLt's, tensor cores') and for approximate exponentials, at a
//! few images a second.
//!
//! ```sh
//! cargo run --release -p sar-train --example emulated -- train --config small.toml --tokenizer tok --out run
//! ```
//!
//! With `SAR_PTX=sm_80` (and NVRTC) the kernels are what the compiler makes of them; see CONTRIBUTING.

use anyhow::bail;
use clap::Parser as _;
use sar_backend_cuda::{CudaBackend, TestDevice, bf16};
use sar_train::cli::{Cli, Command};
use sar_train::commands::{describe, exit_code, train};
use std::process::ExitCode;

fn main() -> ExitCode {
    let flags = std::env::args().skip(1);
    let cli =
        Cli::parse_from(["sar", "--backend", "cuda"].map(String::from).into_iter().chain(flags));
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", describe(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let threads = cli.global.threads.max(1) as u32;
    let backend = CudaBackend::<bf16, _>::new(TestDevice::with_order(threads, 0)?)?;
    match &cli.command {
        Command::Train(args) => train::run(&backend, args, &cli.global),
        Command::Refine(args) => train::refine(&backend, args, &cli.global),
        _ => bail!("`train` and `refine` alone; what they leave is measured by `sar`"),
    }
}
