//! `parplan run attention` on the CPU: checked in every way, and refused by name.

#![allow(clippy::unwrap_used)] // tests, helper functions included

mod exec_support;

use exec_support::{finished, run};
use serde_json::Value;

#[test]
fn every_way_of_sharing_is_checked_against_the_reference() {
    for kind in [
        &["--kind", "gqa", "--kv-heads", "2", "--head-dim", "64"][..],
        &["--kind", "mla", "--kv-dtype", "fp8"],
    ] {
        let common = [
            "attention",
            "--dcp",
            "2",
            "--heads",
            "4",
            "--batch",
            "3",
            "--context",
            "24",
            "--query-tokens",
            "2",
            "--interleave",
            "3",
            "--page",
            "5",
            "--ragged",
            "--check",
            "--json",
            "--iterations",
            "1",
            "--repeats",
            "1",
        ];
        let end = finished(run(&[&common[..], kind].concat()));
        assert_eq!(end.code(), Some(0), "{}", end.stderr);
        let result: Value = serde_json::from_str(&end.stdout).unwrap();
        let samples = result["samples"].as_array().unwrap();
        for (gather, merge) in [
            ("communicator", "ag-rs"),
            ("communicator", "all-to-all"),
            ("replicated", "ag-rs"),
        ] {
            let way = |s: &&Value| s["way"]["gather"] == gather && s["way"]["merge"] == merge;
            let whole = samples.iter().filter(way).find(|s| s["part"] == "whole");
            let error = whole.unwrap()["relative_error"].as_f64().unwrap();
            assert!(error > 0.0 && error < 1e-2, "{gather}, {merge}: {error}");
        }
        // Peer memory needs GPUs, which is said.
        let note = result["notes"][0].as_str().unwrap();
        assert!(note.starts_with("fused: no peer memory"), "{note}");
    }
}

#[test]
fn exchanges_are_checked_and_compared_with_the_fastest_way() {
    let arguments = [
        "attention",
        "--backend",
        "cpu",
        "--dcp",
        "4",
        "--heads",
        "8",
        "--kv-heads",
        "2",
        "--context",
        "40",
        "--exchanges",
        "1,3",
        "--check",
        "--json",
        "--iterations",
        "2",
        "--repeats",
        "2",
    ];
    let end = finished(run(&arguments));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    let result: Value = serde_json::from_str(&end.stdout).unwrap();
    assert!(result["samples"].as_array().unwrap().is_empty());
    let samples = result["exchanges"].as_array().unwrap();
    for tokens in [1, 3] {
        // One all-gather of the queries, and merges by two ways: each against the faster.
        for (part, ways) in [("gather", 1), ("merge", 2)] {
            let of = |s: &&Value| s["tokens"] == tokens && s["part"] == part;
            let some: Vec<&Value> = samples.iter().filter(of).collect();
            assert_eq!(some.len(), ways, "{part} at {tokens}");
            let ratio = |s: &&Value| s["of_communicator"].as_f64().unwrap();
            let best = some.iter().map(ratio).fold(f64::INFINITY, f64::min);
            assert_eq!(best, 1.0);
            for s in some {
                let error = s["relative_error"].as_f64().unwrap();
                assert!(error > 0.0 && error < 1e-2, "{s}");
            }
        }
    }
    assert_eq!(result["notes"].as_array().unwrap().len(), 1, "said once");
}

#[test]
fn a_cache_that_memory_does_not_hold_is_refused() {
    let end = finished(run(&[
        "attention",
        "--batch",
        "1000000",
        "--context",
        "1000000",
        "--ranks",
        "1",
    ]));
    assert_eq!(end.code(), Some(2), "{}", end.stderr);
    assert!(
        end.stderr
            .contains("are free here; give a shorter --context"),
        "{}",
        end.stderr
    );
}

#[test]
fn what_no_kernel_runs_is_refused_before_a_rank_starts() {
    for (arguments, says) in [
        (
            &["--head-dim", "96"][..],
            "head dimension 96: the kernels have 64, 128 and 256",
        ),
        (
            &["--kind", "mla", "--heads", "129"],
            "129 heads of MLA: 1 to 128 are right",
        ),
        (
            &["--heads", "64", "--dcp", "3"],
            "--heads 64 over 3 ranks: the ranks must divide the query heads",
        ),
        (&["--exchanges", "4"], "--dcp 2 or more"),
        (
            &["--exchanges", "0", "--dcp", "2"],
            "must be a whole number from 1 to",
        ),
        (&["--page", "0"], "must be a whole number from 1 to"),
        (
            &["--query-tokens", "9", "--context", "8"],
            "--query-tokens 9 of --context 8",
        ),
    ] {
        let end = finished(run(&[&["attention"][..], arguments].concat()));
        assert_eq!(end.code(), Some(2), "{arguments:?}: {}", end.stderr);
        assert!(end.stderr.contains(says), "{arguments:?}: {}", end.stderr);
    }
}
