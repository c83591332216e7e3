//! How these tests run the binary, and how many GPUs they use.

use std::process::Command;

use serde_json::Value;

use crate::exec_support::{Finished, finished, run};

/// Lines of `nvidia-smi`'s answer, one a GPU of this machine.
fn smi(field: &str) -> Vec<String> {
    let output = Command::new("nvidia-smi")
        .args([
            &format!("--query-gpu={field}"),
            "--format=csv,noheader,nounits",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|l| l.trim().to_owned()).collect()
}

/// Ranks of a run: the GPUs that the tests may use, down to a power of two.
pub fn ranks() -> usize {
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    let visible = || {
        let list = std::env::var("CUDA_VISIBLE_DEVICES").ok()?;
        Some(list.split(',').filter(|d| !d.trim().is_empty()).count())
    };
    let count = number("PARPLAN_TEST_RANKS")
        .or_else(visible)
        .unwrap_or_else(|| smi("index").len());
    assert!(count >= 2, "{count} GPUs, these tests need 2");
    1 << count.ilog2()
}

/// Memory in use on the GPUs that the tests may use, in MiB, by the driver's own tool.
pub fn used_mib() -> Vec<u64> {
    let all = smi("memory.used");
    let used = |i: usize| all[i].parse().unwrap();
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) => list
            .split(',')
            .map(|d| used(d.trim().parse().unwrap()))
            .collect(),
        Err(_) => (0..all.len()).map(used).collect(),
    }
}

/// `parplan run LINE --backend nccl --ranks RANKS`; a line is words between blanks.
pub fn on_ranks(ranks: usize, line: &str) -> Command {
    let ranks = ranks.to_string();
    let words: Vec<&str> = line
        .split_whitespace()
        .chain(["--backend", "nccl", "--ranks", &ranks])
        .collect();
    run(&words)
}

/// The same on all GPUs.
pub fn on_gpus(line: &str) -> Command {
    on_ranks(ranks(), line)
}

/// What a run that must succeed prints with `--json`.
pub fn result(mut command: Command) -> Value {
    command.arg("--json");
    let said = format!("{command:?}");
    let end = finished(command);
    assert_eq!(end.code(), Some(0), "{said}: {}", end.stderr);
    serde_json::from_str(&end.stdout).unwrap()
}

/// A run that must end with that code, and say that.
pub fn ends(command: Command, code: i32, says: &[&str]) -> Finished {
    let end = finished(command);
    assert_eq!(end.code(), Some(code), "{}", end.stderr);
    for words in says {
        assert!(
            end.stderr.contains(words),
            "no '{words}' in: {}",
            end.stderr
        );
    }
    end
}
