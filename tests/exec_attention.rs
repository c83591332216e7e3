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
fn what_no_kernel_runs_is_refused_before_a_rank_starts() {
    for (arguments, says) in [
        (
            &["--head-dim", "96"][..],
            "head dimension 96: the kernels have 64 and 128",
        ),
        (
            &["--kind", "mla", "--heads", "129"],
            "129 heads of MLA: 1 to 128 are right",
        ),
        (
            &["--heads", "64", "--dcp", "3"],
            "--heads 64 over 3 ranks: the ranks must divide the query heads",
        ),
        (&["--page", "0"], "the page size is 0"),
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
