//! Ranks that die, stall or are interrupted.

use std::time::{Duration, Instant};

use crate::exec_support::{Running, alive, environment, signal};
use crate::support::{on_gpus, ranks, used_mib};

fn long(more: &str) -> Running {
    Running::start(on_gpus(&format!(
        "collectives --collective all_reduce --sizes 16M --at-least 60 {more}"
    )))
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_killed_rank_ends_the_others_within_five_seconds() {
    let run = long("--registration none");
    let ranks = run.ranks(ranks());
    std::thread::sleep(Duration::from_secs(5));
    signal(ranks[1], "KILL");
    let end = run.finish(Duration::from_secs(20));
    assert!(end.took < Duration::from_secs(5), "{:?}", end.took);
    assert_eq!(end.code(), Some(1));
    assert!(
        end.stderr.contains(&format!(
            "parplan: rank 1 (process {}) was killed by signal 9 (SIGKILL)",
            ranks[1]
        )),
        "{}",
        end.stderr
    );
    assert!(
        end.stderr.contains("exited with code 1: rank 1 is gone"),
        "{}",
        end.stderr
    );
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_stalled_rank_is_named() {
    let run = long("--registration none --deadline 3");
    let ranks = run.ranks(ranks());
    std::thread::sleep(Duration::from_secs(5));
    signal(ranks[1], "STOP");
    let end = run.finish(Duration::from_secs(30));
    assert_eq!(end.code(), Some(1));
    assert!(
        end.stderr.contains("no answer within 3.0 s"),
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
}

#[test]
#[ignore = "needs 2 GPUs"]
fn ctrl_c_leaves_no_process_and_no_gpu_memory() {
    let count = ranks();
    let before = used_mib();
    let run = long("");
    let ranks = run.ranks(count);
    std::thread::sleep(Duration::from_secs(5));
    for pid in &ranks {
        if let Ok(value) = std::env::var("NCCL_NVLS_ENABLE") {
            assert_eq!(environment(*pid, "NCCL_NVLS_ENABLE"), Some(value));
        }
    }
    assert!(
        used_mib()
            .iter()
            .zip(&before)
            .take(count)
            .all(|(now, before)| now > before)
    );
    signal(run.child.id() as i32, "INT");
    let end = run.finish(Duration::from_secs(20));
    assert!(end.took < Duration::from_secs(2), "{:?}", end.took);
    assert_eq!(end.code(), Some(130));
    assert!(ranks.iter().all(|pid| !alive(*pid)));
    let start = Instant::now();
    while used_mib()
        .iter()
        .zip(&before)
        .any(|(now, before)| *now > before + 8)
    {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?} after, {before:?} before",
            used_mib()
        );
    }
}
