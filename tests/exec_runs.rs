//! Good runs on the CPU backend: processes, several machines, other launchers.

#![allow(clippy::unwrap_used)] // tests, helper functions included

mod exec_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use exec_support::{Running, binary, finished, free_port, run};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn processes_conform_at_every_group_size() {
    for ranks in ["1", "2", "3", "4", "8", "16"] {
        let end = finished(run(&[
            "collectives",
            "--check",
            "--json",
            "--sizes",
            "1K",
            "--repeats",
            "1",
            "--iterations",
            "2",
            "--ranks",
            ranks,
        ]));
        assert_eq!(end.code(), Some(0), "{ranks}: {}", end.stderr);
        let result = json(&end.stdout);
        assert!(result["conformance_cases"].as_u64().unwrap() > 400);
        let samples = result["samples"].as_array().unwrap();
        // Seven collectives, four of them in place too.
        assert_eq!(samples.len(), 11);
        assert!(samples.iter().all(|s| s["checked"] == true
            && s["implementation"] == "cpu-process"
            && s["time"]["median_us"].as_f64().unwrap() > 0.0));
    }
}

#[test]
fn tables_have_a_line_for_every_point() {
    let end = finished(run(&[
        "collectives",
        "--collective",
        "all_gather,barrier",
        "--sizes",
        "1K,2K",
        "--repeats",
        "1",
    ]));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    assert_eq!(
        end.stdout
            .lines()
            .filter(|l| l.contains(" all_gather "))
            .count(),
        4
    );
    assert_eq!(
        end.stdout
            .lines()
            .filter(|l| l.contains(" barrier "))
            .count(),
        1
    );
}

#[test]
fn gather_runs_uneven_idle_and_speculative_steps() {
    let end = finished(run(&[
        "gather",
        "--ranks",
        "4",
        "--attn-dp",
        "2",
        "--hidden",
        "64",
        "--repeats",
        "1",
        "--iterations",
        "2",
        "--json",
        "--partial",
        "--speculative-steps",
        "2",
        "--requests",
        "5,1",
        "--requests",
        "0,3",
        "--requests",
        "0,0",
        "--engine",
        "sglang@0.5.9",
    ]));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    let result = json(&end.stdout);
    assert_eq!(result["skipped"], 1);
    let samples = result["samples"].as_array().unwrap();
    // Requests times (steps + 1).
    assert_eq!(samples[0]["tokens"], serde_json::json!([15, 3]));
    let picked: Vec<(&Value, &Value)> = samples
        .iter()
        .filter(|s| s["picked"] == true)
        .map(|s| (&s["tokens"], &s["mode"]))
        .collect();
    // 15,3 → 16+4 rows: 2·20 > 16·2. 0,9 → 0+10: 2·10 = 10·2, a tie, which 0.5.9 gives to sum_len.
    assert_eq!(
        picked,
        [
            (&serde_json::json!([15, 3]), &Value::from("max_len")),
            (&serde_json::json!([0, 9]), &Value::from("sum_len"))
        ]
    );
    let memory = result["memory"].as_array().unwrap();
    assert!(memory.iter().all(|m| m["kept_bytes"] == 0));
    // 32 rows of 128 bytes gathered, and 16 padded ones.
    assert_eq!(
        (&memory[0]["gathered_bytes"], &memory[0]["peak_bytes"]),
        (&Value::from(4096), &Value::from(6144))
    );
    // Both steps through what was captured for the longest rank, 15 rows padded to 16.
    let replays = result["replays"].as_array().unwrap();
    assert_eq!(
        replays.iter().map(|r| &r["tokens"]).collect::<Vec<_>>(),
        [&serde_json::json!([15, 3]), &serde_json::json!([0, 9])]
    );
    assert!(
        replays
            .iter()
            .all(|r| r["bucket"] == 16 && r["checked"] == true)
    );
}

#[test]
fn sync_gives_every_row_by_every_way() {
    let end = finished(run(&["sync", "--ranks", "3", "--rounds", "20", "--json"]));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    let result = json(&end.stdout);
    let ways: Vec<&Value> = result["samples"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| &s["way"])
        .collect();
    assert_eq!(ways, ["host_tcp", "device_all_reduce", "device_all_gather"]);
}

#[test]
fn two_machines_meet_with_a_shared_secret_and_a_stranger_does_not_disturb_them() {
    let address = format!("127.0.0.1:{}", free_port());
    let node = |rank: &str| {
        let mut command = run(&[
            "collectives",
            "--nnodes",
            "2",
            "--node-rank",
            rank,
            "--ranks",
            "2",
            "--rendezvous",
            &address,
            "--sizes",
            "1K",
            "--repeats",
            "1",
            "--check",
            "--json",
        ]);
        command.env("PARPLAN_SECRET", "known to both");
        Running::start(command)
    };
    let first = node("0");
    // A stranger at the door, before the second machine comes.
    let start = Instant::now();
    let mut stranger = loop {
        match TcpStream::connect(&address) {
            Ok(stream) => break stream,
            Err(e) => assert!(start.elapsed() < Duration::from_secs(10), "{e}"),
        }
    };
    stranger.write_all(&[0x55; 64]).unwrap();
    let _ = stranger.read_to_end(&mut Vec::new());
    let second = node("1");
    let (first, second) = (
        first.finish(Duration::from_secs(60)),
        second.finish(Duration::from_secs(60)),
    );
    assert_eq!(
        (first.code(), second.code()),
        (Some(0), Some(0)),
        "{} {}",
        first.stderr,
        second.stderr
    );
    assert!(
        first
            .stderr
            .contains("warning: refused a visitor at the rendezvous, 127.0.0.1:"),
        "{}",
        first.stderr
    );
    assert!(
        first.stderr.contains("it does not know the shared secret"),
        "{}",
        first.stderr
    );
    assert_eq!(json(&first.stdout)["samples"][0]["ranks"], 4);
    assert_eq!(second.stdout, "");
}

#[test]
fn a_machine_with_another_secret_is_refused() {
    let address = format!("127.0.0.1:{}", free_port());
    let node = |rank: &str, secret: &str| {
        let mut command = run(&[
            "sync",
            "--nnodes",
            "2",
            "--node-rank",
            rank,
            "--ranks",
            "1",
            "--rendezvous",
            &address,
            "--meet",
            "2",
        ]);
        command.env("PARPLAN_SECRET", secret);
        Running::start(command)
    };
    let (first, second) = (node("0", "the right one"), node("1", "a wrong one"));
    let (first, second) = (
        first.finish(Duration::from_secs(30)),
        second.finish(Duration::from_secs(30)),
    );
    assert_eq!((first.code(), second.code()), (Some(1), Some(1)));
    assert!(
        first.stderr.contains("1 of 2 ranks came, missing: rank 1"),
        "{}",
        first.stderr
    );
    assert!(
        second
            .stderr
            .contains("is PARPLAN_SECRET the same on both sides?"),
        "{}",
        second.stderr
    );
}

fn launched(variables: impl Fn(usize) -> Vec<(&'static str, String)>) {
    let ranks: Vec<Running> = (0..3)
        .map(|rank| {
            let mut command = run(&["sync", "--rounds", "5"]);
            command
                .env("PARPLAN_SECRET", "for this test")
                .envs(variables(rank));
            Running::start(command)
        })
        .collect();
    for (rank, running) in ranks.into_iter().enumerate() {
        let end = running.finish(Duration::from_secs(60));
        assert_eq!(end.code(), Some(0), "{}", end.stderr);
        assert_eq!(end.stdout.contains("host TCP"), rank == 0);
    }
}

#[test]
fn ranks_of_torchrun_run_without_a_supervisor() {
    let port = free_port().to_string();
    launched(|rank| {
        let rank = rank.to_string();
        vec![
            ("TORCHELASTIC_RUN_ID", "none".into()),
            ("RANK", rank.clone()),
            ("LOCAL_RANK", rank),
            ("WORLD_SIZE", "3".into()),
            ("LOCAL_WORLD_SIZE", "3".into()),
            ("MASTER_ADDR", "127.0.0.1".into()),
            ("MASTER_PORT", port.clone()),
        ]
    });
}

#[test]
fn ranks_of_srun_run_without_a_supervisor() {
    let port = free_port().to_string();
    launched(|rank| {
        vec![
            ("SLURM_PROCID", rank.to_string()),
            ("SLURM_LOCALID", rank.to_string()),
            ("SLURM_STEP_NUM_TASKS", "3".into()),
            ("SLURM_STEP_TASKS_PER_NODE", "3".into()),
            ("MASTER_ADDR", "127.0.0.1".into()),
            ("MASTER_PORT", port.clone()),
        ]
    });
}

#[test]
fn ranks_of_a_launcher_without_a_secret_say_what_is_needed() {
    let mut command = run(&["sync"]);
    command.envs([
        ("MPI_LOCALRANKID", "0"),
        ("MPI_LOCALNRANKS", "1"),
        ("PMI_RANK", "0"),
        ("PMI_SIZE", "1"),
    ]);
    command.args(["--rendezvous", "127.0.0.1:0"]);
    let end = finished(command);
    assert_eq!(end.code(), Some(2));
    assert!(
        end.stderr
            .contains("ranks that mpiexec (Hydra) starts need the same shared secret"),
        "{}",
        end.stderr
    );
}

/// Two network namespaces joined by a virtual cable; removed when dropped.
struct Namespaces(Vec<String>);

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

impl Namespaces {
    fn new() -> Result<Self, String> {
        let tag = std::process::id();
        let names = vec![format!("pp-a-{tag}"), format!("pp-b-{tag}")];
        ip(&format!("netns add {}", names[0]))?;
        let this = Namespaces(names.clone());
        ip(&format!("netns add {}", names[1]))?;
        let (a, b) = (&names[0], &names[1]);
        ip(&format!(
            "-n {a} link add veth0 type veth peer name veth0 netns {b}"
        ))?;
        for (name, address) in [(a, "10.77.0.1/24"), (b, "10.77.0.2/24")] {
            ip(&format!("-n {name} addr add {address} dev veth0"))?;
            ip(&format!("-n {name} link set veth0 up"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(this)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

#[test]
fn machines_in_separate_network_namespaces_run_together() {
    let spaces = match Namespaces::new() {
        Ok(spaces) => spaces,
        // Not root, or no iproute2: there is nothing to run on.
        Err(why) => {
            eprintln!("no network namespaces here: {why}");
            return;
        }
    };
    let nodes: Vec<Running> = (0..2)
        .map(|rank| {
            let plain = run(&[
                "collectives",
                "--nnodes",
                "2",
                "--node-rank",
                &rank.to_string(),
                "--ranks",
                "2",
                "--rendezvous",
                "10.77.0.1:4711",
                "--sizes",
                "64K",
                "--repeats",
                "1",
                "--check",
                "--json",
            ]);
            let mut command = Command::new("ip");
            command
                .args(["netns", "exec", &spaces.0[rank]])
                .arg(binary())
                .args(plain.get_args());
            command
                .env("PARPLAN_SECRET", "across a cable")
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped());
            Running::start(command)
        })
        .collect();
    let ends: Vec<_> = nodes
        .into_iter()
        .map(|n| n.finish(Duration::from_secs(60)))
        .collect();
    assert!(
        ends.iter().all(|e| e.code() == Some(0)),
        "{} {}",
        ends[0].stderr,
        ends[1].stderr
    );
    let result = json(&ends[0].stdout);
    assert!(result["conformance_cases"].as_u64().unwrap() > 400);
    assert_eq!(result["samples"][0]["ranks"], 4);
}
