//! Attention over a KV cache that ranks share.

use serde_json::Value;

use crate::exec_support::run;
use crate::support::{on_gpus, ranks, result};

fn near_the_reference(result: &Value) {
    let samples = result["samples"].as_array().unwrap();
    assert!(!samples.is_empty());
    for sample in samples {
        assert!(
            sample["relative_error"].as_f64().unwrap() < 1e-2,
            "{sample}"
        );
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn attention_shared_by_all_gpus_is_that_of_the_reference_in_every_way() {
    let n = ranks();
    // Messages below and above what packets carry, and above what NCCL sends by its
    // low-latency protocols.
    for (kind, heads, batch) in [
        ("gqa", 64, 1),
        ("gqa", 64, 96),
        ("mla", 128, 4),
        ("mla", 128, 48),
    ] {
        let result = result(on_gpus(&format!(
            "attention --dcp {n} --check --kind {kind} --heads {heads} --batch {batch} --context 700 \
             --query-tokens 2 --ragged --interleave 4 --iterations 2 --repeats 3 --graph-launches 2"
        )));
        assert!(
            result["notes"].as_array().unwrap().is_empty(),
            "{}",
            result["notes"]
        );
        near_the_reference(&result);
        let samples = result["samples"].as_array().unwrap();
        for merge in ["ag-rs", "all-to-all", "peer"] {
            let some = samples.iter().any(|s| s["way"]["merge"] == merge);
            assert!(some, "{merge}");
        }
    }
}

/// Every rank's gather and merge, at sizes for which one needs no machine of so many GPUs.
#[test]
#[ignore = "needs 1 GPU"]
fn ranks_on_one_gpu_merge_over_peer_memory() {
    for (ranks, kind, kv, batch) in [
        (2, "gqa", "bf16", 5),
        (2, "gqa", "fp8", 70),
        (2, "mla", "fp8", 20),
        (4, "mla", "bf16", 17),
        (8, "gqa", "bf16", 33),
        (8, "mla", "bf16", 3),
    ] {
        let line = format!(
            "attention --backend peer --ranks {ranks} --dcp {ranks} --check --kind {kind} --kv-dtype {kv} --heads 32 \
             --batch {batch} --context 300 --query-tokens 3 --ragged --merge fused --iterations 2 --repeats 2 \
             --graph-launches 2"
        );
        near_the_reference(&result(run(&line.split_whitespace().collect::<Vec<_>>())));
    }
}
