//! Developer commands.

mod calibrations;
mod engines;
mod kernels;
mod overheads;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Developer commands of parplan")]
enum Command {
    /// Move the samples of shipped calibrations that no plan needs into files of their own.
    Calibrations(calibrations::Arguments),
    /// Regenerate the flag tables of the engines, or check them or commands.
    Engines(engines::Arguments),
    /// Rebuild the PTX of the CUDA kernels, or check that it is current.
    Kernels(kernels::Arguments),
    /// Fit what engines add around their kernels from measured serving runs.
    Overheads(overheads::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Calibrations(arguments) => calibrations::run(&arguments),
        Command::Engines(arguments) => engines::run(&arguments),
        Command::Kernels(arguments) => kernels::run(&arguments),
        Command::Overheads(arguments) => overheads::run(&arguments),
    }
}
