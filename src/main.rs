//! parplan: plan, check and start the parallel layout of an LLM server.

use parplan::args::{self, Command};
use parplan::commands;
use parplan::output::{self, Style};
use std::process::ExitCode;

fn main() -> ExitCode {
    let style = Style::detect();
    let command = match args::parse() {
        Ok(cli) => cli.command,
        Err(failure) => return output::finish(Err(failure)),
    };
    let answer = match command {
        // Its exit code also tells of signals, and its ranks end without returning.
        Command::Run(args) => return parplan::run::main(args),
        Command::Exec(args) => return parplan::exec::main(&args),
        Command::Launch(args) => return parplan::launch::main(&args, style),
        Command::Bench(args) => parplan::bench::run(&args, style),
        Command::Keep => return parplan::launch::keep(),
        Command::Recommend(args) => commands::recommend::run(&args, style),
        Command::Estimate(args) => commands::estimate::run(&args, style),
        Command::Explain(args) => commands::explain::run(&args, style),
        Command::Compare(args) => commands::compare::run(&args, style),
        Command::Explore(args) => parplan::explore::run(&args, style),
        Command::Calibrate(args) => commands::calibrate::run(&args, style),
        Command::Verify(args) => parplan::verify::run(&args, style),
        Command::Import(args) => commands::import::run(&args, style),
        Command::Profiles(args) => commands::profiles::run(&args, style),
        Command::Completions(args) => commands::shell::completions(args.shell),
        Command::Man(args) => commands::shell::man(args.folder.as_deref()),
    };
    output::finish(answer)
}
