//! The whole way on one machine, with a real vLLM server (its CPU build): plan, launch, ready, report
//! compared, bench, Ctrl-C, nothing left.
//!
//! Runs where `PARPLAN_TEST_VLLM` names a virtual environment with vLLM's CPU build (docs/launch.md
//! says how to make one) and `PARPLAN_TEST_MODEL` a folder with a small model; it is skipped, and says
//! so, elsewhere. What the commands print is kept in `PARPLAN_TEST_OUT`, where that is set.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod launch_support;

use launch_support::{Launched, free_port, signal, until};
use rustix::process::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A path in the environment, or why the test is skipped.
fn named(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(name).map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: {name} names nothing; docs/launch.md says what it should name");
    }
    path
}

/// The CPU profile with the memory of this host, as a user would copy it.
fn profile_of_this_host(folder: &Path) {
    let text = include_str!("../profiles/data/gpus/cpu-genoa-2c.toml");
    let node = std::fs::read_to_string("/sys/devices/system/node/node0/meminfo")
        .or_else(|_| std::fs::read_to_string("/proc/meminfo"))
        .unwrap();
    let line = node
        .lines()
        .find(|line| line.contains("MemTotal:"))
        .unwrap();
    let kib = line.split_whitespace().rev().nth(1).unwrap();
    let mib = kib.parse::<u64>().unwrap() / 1024;
    let own = text
        .replacen("name = \"cpu-genoa-2c\"", "name = \"this-host\"", 1)
        .replacen("aliases = [\"cpu\"]", "aliases = []", 1)
        .replacen("memory_mib = 12890", &format!("memory_mib = {mib}"), 1);
    let gpus = folder.join("profiles").join("gpus");
    std::fs::create_dir_all(&gpus).unwrap();
    std::fs::write(gpus.join("this-host.toml"), own).unwrap();
}

fn parplan(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parplan"));
    command
        .args(arguments)
        .env("PARPLAN_PROFILES", folder.join("profiles"))
        .env("HF_HUB_OFFLINE", "1")
        .env_remove("PARPLAN_ENGINE_VENV");
    command
}

/// Keeps what a command printed.
fn keep(name: &str, text: &str) {
    if let Some(folder) = std::env::var_os("PARPLAN_TEST_OUT") {
        std::fs::write(PathBuf::from(folder).join(name), text).unwrap();
    }
}

/// Processes whose command line holds `text`.
fn processes_with(text: &str) -> Vec<String> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(text) && !line.contains("launch_vllm"))
        .collect()
}

#[test]
fn a_real_vllm_server_is_planned_started_measured_and_ended() {
    let (Some(venv), Some(model)) = (named("PARPLAN_TEST_VLLM"), named("PARPLAN_TEST_MODEL"))
    else {
        return;
    };
    let (venv, model) = (venv.to_str().unwrap(), model.to_str().unwrap());
    let folder = tempfile::tempdir().unwrap();
    profile_of_this_host(folder.path());
    let plan = folder.path().join("plan.toml");
    let plan = plan.to_str().unwrap();
    let planned = parplan(
        folder.path(),
        &[
            "recommend",
            "--model",
            model,
            "--gpu",
            "this-host",
            "--gpus",
            "1",
            "--engine",
            "vllm@0.32.0",
            "--isl",
            "128",
            "--osl",
            "32",
            "--concurrency",
            "4",
            "--memory-fraction",
            "0.15",
            "--context-length",
            "2048",
            "--save",
            plan,
        ],
    )
    .output()
    .unwrap();
    assert!(planned.status.success(), "{planned:?}");

    let port = free_port().to_string();
    let log = folder.path().join("engine.log");
    let mut launched = Launched(
        parplan(
            folder.path(),
            &[
                "launch",
                plan,
                "--venv",
                venv,
                "--port",
                &port,
                "--deadline",
                "900",
                "--log",
            ],
        )
        .arg(&log)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap(),
    );
    let text = until(&mut launched, "Ready after", Duration::from_secs(900));
    keep("launch.txt", &text);
    for part in [
        "KV tokens of a rank",
        "longest sequence",
        "all but the KV cache",
    ] {
        assert!(text.contains(part), "no line of {part}: {text}");
    }
    let reported = text
        .lines()
        .find(|line| line.contains("KV tokens of a rank"))
        .unwrap();
    let tokens: Vec<f64> = reported
        .split_whitespace()
        .filter_map(|word| word.replace(',', "").parse().ok())
        .collect();
    // The host's memory may have grown since the profile; what the plan makes of it may not be wrong.
    assert!((tokens[1] / tokens[0] - 1.0).abs() < 0.3, "{reported}");

    let url = format!("http://127.0.0.1:{port}");
    let bench = parplan(folder.path(), &["bench", &url, "--plan", plan, "--json"])
        .output()
        .unwrap();
    assert!(
        bench.status.success(),
        "{}",
        String::from_utf8_lossy(&bench.stderr)
    );
    let run: Value = serde_json::from_slice(&bench.stdout).unwrap();
    assert_eq!(run["ends"]["completed"], 40);
    assert_eq!(run["ends"]["exact"], 40, "{}", run["ends"]);
    assert_eq!(run["plan"].as_array().unwrap().len(), 4);
    assert!(run["tpot_ms"]["p50"].as_f64().unwrap() > 0.5);
    let page = parplan(folder.path(), &["bench", &url, "--plan", plan])
        .output()
        .unwrap();
    keep("bench.txt", &String::from_utf8_lossy(&page.stdout));

    signal(&launched, Signal::INT);
    let end = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match launched.0.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < end, "does not end"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(status.code(), Some(130));
    let left = processes_with(&format!("--port\0{port}").replace('\0', " "));
    assert!(left.is_empty(), "{left:?}");
    let workers = processes_with("VLLM::");
    keep("left.txt", &format!("{left:?} {workers:?}\n"));
}
