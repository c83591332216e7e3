//! Running the binary, for the tests of the command line.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use std::process::{Command, Output};

/// The binary with these arguments, away from the user's own profiles.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parplan"));
    command
        .args(arguments)
        .env_remove("PARPLAN_PROFILES")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .env_remove("NO_COLOR");
    command
}

/// Its output, checked for what must hold of every run: no panic, and a known exit code.
pub fn run(arguments: &[&str]) -> Output {
    checked(command(arguments), arguments)
}

/// The same for a command that was changed further.
pub fn checked(mut command: Command, arguments: &[&str]) -> Output {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    assert!(
        matches!(output.status.code(), Some(0..=2)),
        "{arguments:?}: {:?} {stderr}",
        output.status
    );
    output
}

/// What a run that must succeed prints.
#[allow(dead_code)]
pub fn text(arguments: &[&str]) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
    assert_eq!(stderr, "", "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The JSON that a run prints with `--json`.
#[allow(dead_code)]
pub fn json(arguments: &[&str]) -> Value {
    let mut arguments = arguments.to_vec();
    arguments.push("--json");
    serde_json::from_str(&text(&arguments)).unwrap()
}

/// The one line on stderr of a run that must fail with this exit code and print nothing else.
#[allow(dead_code)]
pub fn refusal(arguments: &[&str], code: i32) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{arguments:?} printed an answer");
    let line = stderr.trim_end_matches('\n');
    assert!(line.starts_with("parplan: "), "{arguments:?}: {stderr}");
    assert!(
        !line.contains('\n'),
        "{arguments:?} is not one line: {stderr}"
    );
    line.to_owned()
}
