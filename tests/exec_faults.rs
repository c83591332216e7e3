//! What happens when ranks die, stall or never come: on the CPU backend, with real
//! processes and real signals.

#![allow(clippy::unwrap_used)] // tests, helper functions included

mod exec_support;

use std::time::{Duration, Instant};

use exec_support::{Running, alive, environment, finished, free_port, run, signal};

/// A run that would go on for a minute.
const LONG: [&str; 9] = [
    "collectives",
    "--collective",
    "all_reduce",
    "--sizes",
    "256K",
    "--at-least",
    "60",
    "--repeats",
    "3",
];

fn long(more: &[&str]) -> Running {
    let arguments: Vec<&str> = LONG.iter().chain(more).copied().collect();
    Running::start(run(&arguments))
}

#[test]
fn a_killed_rank_ends_the_others_within_five_seconds_and_is_named() {
    let run = long(&["--ranks", "4"]);
    let ranks = run.ranks(4);
    signal(ranks[2], "KILL");
    let end = run.finish(Duration::from_secs(20));
    assert!(end.took < Duration::from_secs(5), "{:?}", end.took);
    assert_eq!(end.code(), Some(1), "{}", end.stderr);
    let first = format!(
        "parplan: rank 2 (process {}) was killed by signal 9 (SIGKILL)",
        ranks[2]
    );
    assert!(end.stderr.contains(&first), "{}", end.stderr);
    for rank in [0, 1, 3] {
        let line = end
            .stderr
            .lines()
            .find(|l| l.contains(&format!("rank {rank} (process")))
            .unwrap();
        assert!(
            line.contains("exited with code 1: rank 2 is gone: its process ended"),
            "{line}"
        );
    }
    assert!(ranks.iter().all(|pid| !alive(*pid)));
}

#[test]
fn a_stalled_rank_is_named_by_the_others_and_stopped() {
    let run = long(&["--ranks", "3", "--deadline", "1"]);
    let ranks = run.ranks(3);
    signal(ranks[1], "STOP");
    let end = run.finish(Duration::from_secs(20));
    assert!(end.took < Duration::from_secs(7), "{:?}", end.took);
    assert_eq!(end.code(), Some(1));
    assert!(
        end.stderr
            .contains("waiting for rank 1: no answer within 1.0 s"),
        "{}",
        end.stderr
    );
    assert!(
        end.stderr.contains(&format!(
            "rank 1 (process {}) was stopped by the supervisor",
            ranks[1]
        )),
        "{}",
        end.stderr
    );
    assert!(ranks.iter().all(|pid| !alive(*pid)));
}

#[test]
fn ctrl_c_and_sigterm_end_all_ranks_within_two_seconds() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let run = long(&["--ranks", "3"]);
        let ranks = run.ranks(3);
        // One rank that cannot be asked politely.
        signal(ranks[1], "STOP");
        signal(run.child.id() as i32, name);
        let end = run.finish(Duration::from_secs(20));
        assert!(end.took < Duration::from_secs(2), "{name}: {:?}", end.took);
        assert_eq!(end.code(), Some(code), "{}", end.stderr);
        assert!(ranks.iter().all(|pid| !alive(*pid)));
    }
}

#[test]
fn ranks_do_not_outlive_a_supervisor_that_is_killed() {
    let mut run = long(&["--ranks", "3"]);
    let ranks = run.ranks(3);
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    let start = Instant::now();
    while ranks.iter().any(|pid| alive(*pid)) {
        assert!(start.elapsed() < Duration::from_secs(2));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn ranks_inherit_the_environment_and_nothing_about_nccl_is_overridden() {
    let arguments: Vec<&str> = LONG.iter().chain(&["--ranks", "2"]).copied().collect();
    let mut command = run(&arguments);
    command
        .env("NCCL_NVLS_ENABLE", "0")
        .env("NCCL_DEBUG", "WARN")
        .env_remove("NCCL_CUMEM_ENABLE");
    let run = Running::start(command);
    for pid in run.ranks(2) {
        assert_eq!(environment(pid, "NCCL_NVLS_ENABLE").as_deref(), Some("0"));
        assert_eq!(environment(pid, "NCCL_DEBUG").as_deref(), Some("WARN"));
        assert_eq!(environment(pid, "NCCL_CUMEM_ENABLE"), None);
    }
    signal(run.child.id() as i32, "TERM");
    run.finish(Duration::from_secs(5));
}

#[test]
fn the_time_of_a_run_is_limited() {
    let end = finished(run(&[&LONG[..], &["--ranks", "2", "--limit", "1"]].concat()));
    assert_eq!(end.code(), Some(1));
    assert!(
        end.stderr.contains("the run's time is over (--limit)"),
        "{}",
        end.stderr
    );
}

#[test]
fn a_rank_that_never_comes_is_named_on_the_ranks_that_did() {
    let address = format!("127.0.0.1:{}", free_port());
    let ranks: Vec<Running> = [0, 1]
        .into_iter()
        .map(|rank| {
            let mut command = run(&[
                "collectives",
                "--sizes",
                "1K",
                "--meet",
                "1.5",
                "--rendezvous",
                &address,
            ]);
            command
                .env("PARPLAN_SECRET", "for this test")
                .env("OMPI_COMM_WORLD_RANK", rank.to_string())
                .env("OMPI_COMM_WORLD_SIZE", "3")
                .env("OMPI_COMM_WORLD_LOCAL_RANK", rank.to_string())
                .env("OMPI_COMM_WORLD_LOCAL_SIZE", "3");
            Running::start(command)
        })
        .collect();
    for rank in ranks {
        let end = rank.finish(Duration::from_secs(10));
        assert_eq!(end.code(), Some(1));
        assert!(
            end.stderr
                .contains("2 of 3 ranks came, missing: rank 2 (deadline)"),
            "{}",
            end.stderr
        );
    }
}

#[test]
fn unusable_input_starts_nothing_and_exits_with_2() {
    for (arguments, why) in [
        (
            &["--ranks", "0"][..],
            "must be a whole number from 1 to 1024",
        ),
        (
            &["--nnodes", "2", "--node-rank", "2"],
            "--node-rank is 2, with --nnodes 2 it must be below that",
        ),
        (
            &["--nnodes", "2", "--ranks", "1"],
            "2 machines need the same shared secret: set PARPLAN_SECRET on each",
        ),
        (&["--sizes", "1Q"], "'q' is no unit"),
        (
            &["--rendezvous", "256.0.0.1:1"],
            "cannot listen for ranks at 256.0.0.1:1",
        ),
    ] {
        let end = finished(run(&[&["collectives"], arguments].concat()));
        assert_eq!(end.code(), Some(2), "{arguments:?}: {}", end.stderr);
        assert!(end.stderr.contains(why), "{arguments:?}: {}", end.stderr);
    }
    let end = finished(run(&["gather", "--ranks", "2", "--requests", "1,2,3"]));
    assert_eq!(end.code(), Some(2));
    assert!(
        end.stderr
            .contains("--requests '1,2,3': it must be 2 counts, one for each DP rank, like 3,0"),
        "{}",
        end.stderr
    );
}

/// Sizes whose products pass what a word or the memory holds end before a rank is started.
#[test]
fn sizes_that_no_machine_holds_are_refused() {
    const MOST: &str = "18446744073709551615";
    for (line, why) in [
        ("gather --ranks 2 --nnodes MOST", "from 1 to 1024"),
        ("gather --hidden MOST", "from 1 to 1048576"),
        ("gather --speculative-steps MOST", "--speculative-steps"),
        ("gather --requests MOST,0", "a whole number up to"),
        (
            "gather --requests 1000000000,0",
            "are free here; give fewer",
        ),
        ("sync --rounds MOST", "from 1 to 1000000"),
        (
            "collectives --sizes 1024G",
            "are free here; give smaller --sizes",
        ),
        ("collectives --at-least nan --sizes 1K", "seconds from 0"),
        ("attention --dcp 2 --nnodes MOST", "from 1 to 1024"),
        ("attention --heads MOST --kv-heads 1", "from 1 to 1048576"),
        (
            "attention --page 1048576 --batch 1000 --context 64",
            "a smaller --page",
        ),
        (
            "attention --kind mla --head-dim 64",
            "--head-dim 64 with --kind mla",
        ),
        (
            "stack --model qwen3-8b --page-size MOST",
            "from 1 to 1048576",
        ),
        (
            "stack --model qwen3-8b --page-size 1048576",
            "GiB of KV cache a rank",
        ),
        ("stack --model qwen3-8b --tp MOST", "from 1 to 1024"),
    ] {
        let line = line.replace("MOST", MOST);
        let mut words: Vec<&str> = line.split(' ').collect();
        words.extend(["--backend", "cpu"]);
        let end = finished(run(&words));
        assert_eq!(end.code(), Some(2), "{line}: {}", end.stderr);
        assert!(end.stderr.contains(why), "{line}: {}", end.stderr);
    }
}

#[test]
fn a_rank_by_hand_is_refused() {
    let end = finished(run(&["rank"]));
    assert_eq!(end.code(), Some(2));
    assert!(
        end.stderr
            .contains("this command is started by 'parplan run', not by hand"),
        "{}",
        end.stderr
    );
}

/// Only where there is no driver: the GPU tests show the other cases.
#[test]
fn without_a_gpu_the_nccl_backend_says_what_is_missing() {
    if std::path::Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let end = finished(run(&["collectives", "--backend", "nccl"]));
    assert_eq!(end.code(), Some(2));
    assert!(
        end.stderr.contains("no GPU: libcuda.so.1 was not found"),
        "{}",
        end.stderr
    );
}

#[test]
fn readers_that_are_gone_end_nothing() {
    let mut command = run(&["sync", "--backend", "cpu", "--ranks", "2", "--rounds", "3"]);
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
