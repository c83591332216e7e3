//! Scripts for machines that parplan does not run on: read by the shells they are for, with every
//! value one word.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cli_support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const NASTY: &str = "it's $(touch injected); `id` \"x\" $(LWS_LEADER_ADDRESS2)";

/// Writes a script of a kind and gives its text.
fn written(folder: &Path, kind: &str, more: &[&str]) -> String {
    let path = folder.join(kind);
    let write = format!("{kind}={}", path.display());
    let mut all = vec!["launch", "--write", &write];
    all.extend(more);
    cli_support::text(&all);
    std::fs::read_to_string(path).unwrap()
}

const TWO_NODES: [&str; 12] = [
    "--model",
    "deepseek-v3",
    "--gpu",
    "h100",
    "--tp",
    "16",
    "--engine",
    "sglang@0.5.23",
    "--served-name",
    NASTY,
    "--isl",
    "512",
];

fn programs(folder: &Path, scripts: &[(&str, &str)]) -> String {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    for (name, text) in scripts {
        let path = bin.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())
}

#[test]
fn slurm_starts_every_node_with_its_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let text = written(folder.path(), "slurm", &TWO_NODES);
    assert!(
        text.contains("#SBATCH --nodes=2") && text.contains("--gpus-per-node=8"),
        "{text}"
    );
    let path = programs(
        folder.path(),
        &[
            ("scontrol", "echo first; echo second"),
            (
                "srun",
                "printf '%s\\0' \"$@\" > \"$OUT/$$.argv\"; sleep 0.2",
            ),
        ],
    );
    let status = Command::new("bash")
        .arg(folder.path().join("slurm"))
        .env("PATH", path)
        .env("OUT", folder.path())
        .env("SLURM_JOB_NODELIST", "first,second")
        .current_dir(folder.path())
        .status()
        .unwrap();
    assert!(status.success());
    let mut calls: Vec<Vec<String>> = std::fs::read_dir(folder.path())
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "argv"))
        .map(|entry| {
            let text = String::from_utf8(std::fs::read(entry.path()).unwrap()).unwrap();
            text.trim_end_matches('\0')
                .split('\0')
                .map(str::to_owned)
                .collect()
        })
        .collect();
    let after = |call: &[String], flag: &str| {
        call[call.iter().position(|word| word == flag).unwrap() + 1].clone()
    };
    calls.sort_by_key(|call| after(call, "--node-rank"));
    assert_eq!(calls.len(), 2);
    for (call, host) in calls.iter().zip(["first", "second"]) {
        assert!(call.contains(&format!("--nodelist={host}")), "{call:?}");
        assert_eq!(after(call, "--dist-init-addr"), "first:29500");
        assert_eq!(after(call, "--served-model-name"), NASTY);
        assert_eq!(after(call, "--nnodes"), "2");
    }
    assert!(!folder.path().join("injected").exists());
}

#[test]
fn kubernetes_gets_one_list_of_words_a_pod() {
    let folder = tempfile::tempdir().unwrap();
    let text = written(folder.path(), "kubernetes", &TWO_NODES);
    assert!(
        text.contains("kind: LeaderWorkerSet") && text.contains("size: 2"),
        "{text}"
    );
    assert_eq!(text.matches("nvidia.com/gpu: \"8\"").count(), 2, "{text}");
    assert_eq!(
        text.matches("\"$(LWS_LEADER_ADDRESS):29500\"").count(),
        2,
        "{text}"
    );
    // Variables of Kubernetes' that nobody meant are escaped.
    assert!(text.contains("$$(touch injected)") && text.contains("$$(LWS_LEADER_ADDRESS2)"));
    let words = |from: &str| -> Vec<String> {
        text.split(from)
            .nth(1)
            .unwrap()
            .lines()
            .skip_while(|line| !line.ends_with("command:"))
            .skip(1)
            .take_while(|line| line.trim_start().starts_with("- \""))
            .map(|line| serde_json::from_str(line.trim_start().trim_start_matches("- ")).unwrap())
            .collect()
    };
    let leader = words("leaderTemplate:");
    let worker = words("workerTemplate:");
    assert_eq!(leader.len(), worker.len());
    let differ: Vec<(&String, &String)> =
        leader.iter().zip(&worker).filter(|(a, b)| a != b).collect();
    assert_eq!(differ.len(), 1, "{differ:?}");
    assert_eq!((differ[0].0.as_str(), differ[0].1.as_str()), ("0", "1"));
}

#[test]
fn pods_of_many_nodes_compute_their_rank() {
    let folder = tempfile::tempdir().unwrap();
    let text = written(
        folder.path(),
        "kubernetes",
        &[
            "--model",
            "deepseek-v3",
            "--gpu",
            "h100",
            "--tp",
            "32",
            "--attn-dp",
            "32",
            "--ep",
            "32",
            "--engine",
            "vllm@0.33.0",
            "--isl",
            "512",
        ],
    );
    let line = text
        .lines()
        .find(|line| line.contains("LWS_WORKER_INDEX"))
        .unwrap();
    let script: String = serde_json::from_str(line.trim().trim_start_matches("- ")).unwrap();
    assert!(script.contains("$$((LWS_WORKER_INDEX * 8))"), "{script}");
    // As a pod would run it: Kubernetes turns `$$(` into `$(`.
    let words: Vec<String> = text
        .split("workerTemplate:")
        .nth(1)
        .unwrap()
        .lines()
        .skip_while(|line| !line.ends_with("command:"))
        .skip(1)
        .take_while(|line| line.trim_start().starts_with("- \""))
        .map(|line| serde_json::from_str(line.trim_start().trim_start_matches("- ")).unwrap())
        .collect();
    let path = programs(folder.path(), &[("vllm", "printf '%s\\n' \"$@\"")]);
    let output = Command::new("sh")
        .args(words[1..].iter().map(|word| word.replace("$$(", "$(")))
        .env("PATH", path)
        .env("LWS_WORKER_INDEX", "3")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("--data-parallel-start-rank\n24\n"), "{said}");
    assert!(said.contains("--headless"), "{said}");
}

#[test]
fn ray_is_vllms_alone() {
    let folder = tempfile::tempdir().unwrap();
    let two = [
        "--model",
        "llama-3.1-70b",
        "--gpu",
        "h100",
        "--tp",
        "8",
        "--pp",
        "2",
        "--isl",
        "512",
        "--engine",
        "vllm@0.33.0",
    ];
    let text = written(folder.path(), "ray", &two);
    assert!(
        text.contains("--distributed-executor-backend ray"),
        "{text}"
    );
    assert!(
        text.contains("--num-gpus=8") && !text.contains("--nnodes"),
        "{text}"
    );
    let checked = Command::new("sh")
        .arg("-n")
        .arg(folder.path().join("ray"))
        .status()
        .unwrap();
    assert!(checked.success());
    let mut all = vec!["launch", "--write", "ray=/tmp/never"];
    all.extend(TWO_NODES);
    let line = cli_support::refusal(&all, 2);
    assert!(line.contains("without Ray"), "{line}");
}
