//! The commands of the README run as they are printed.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use cli_support::{checked, command, text};

/// Commands that the README shows.
const COMMANDS: usize = 8;

const README: &str = include_str!("../README.md");

/// One after the other, in a folder of their own, as in a fresh clone.
#[test]
fn every_command_of_the_readme_runs() {
    let shell: Vec<&str> = README
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .flat_map(str::lines)
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let mut run = 0;
    for line in shell {
        let Some(arguments) = line
            .strip_prefix("parplan ")
            .or_else(|| line.strip_prefix("cargo run --release -- "))
        else {
            continue;
        };
        run += 1;
        let words: Vec<&str> = arguments.split(' ').collect();
        // A full screen needs a terminal: tests/explore_tmux.rs runs it on one.
        if words[0] == "explore" {
            continue;
        }
        let mut command = command(&words);
        command.current_dir(folder.path());
        let output = checked(command, &words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}: {stderr}");
        assert!(!output.stdout.is_empty(), "{line}");
    }
    assert_eq!(run, COMMANDS, "the README's commands moved");
}

/// The pages that the README points to are there.
#[test]
fn links_lead_somewhere() {
    for part in README.split("](").skip(1) {
        let target = part.split(')').next().unwrap();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(target);
        assert!(path.is_file(), "{target}");
    }
}

/// Headings of the printed answer are those of the real one.
#[test]
fn the_printed_answer_has_the_shape_of_a_real_one() {
    let block = README
        .split("```text\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    let real = text(&[
        "recommend",
        "--model",
        "deepseek-v3",
        "--gpu",
        "h200",
        "--gpus",
        "16",
        "--isl",
        "2048",
        "--osl",
        "512",
        "--concurrency",
        "256",
        "--tpot",
        "50",
    ]);
    let heading = |line: &&str| line.starts_with(|c: char| c.is_ascii_uppercase());
    for line in block.lines().filter(heading) {
        assert!(
            real.lines().any(|other| other == line),
            "no {line:?} in {real}"
        );
    }
}

/// The help of every command, on any terminal.
#[test]
fn help_keeps_to_100_columns() {
    let commands = [
        "recommend",
        "estimate",
        "explain",
        "compare",
        "explore",
        "profiles",
        "run",
    ];
    for command in commands {
        let help = text(&[command, "--help"]);
        let wide = help.lines().find(|line| line.chars().count() > 100);
        assert_eq!(wide, None, "{command}");
    }
}
