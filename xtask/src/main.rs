//! Developer commands.

mod kernels;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Developer commands of parplan")]
enum Command {
    /// Rebuild the PTX of the CUDA kernels, or check that it is current.
    Kernels(kernels::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Kernels(arguments) => kernels::run(&arguments),
    }
}
