//! Decoder stacks against the float64 reference.

use crate::support::{on_ranks, ranks, result};

fn equals_the_reference(ranks: usize, line: &str) {
    let result = result(on_ranks(
        ranks,
        &format!("stack --scale 8 --layers 2 --context 100 --repeats 2 --check {line}"),
    ));
    let steps = result["steps"].as_array().unwrap();
    assert!(!steps.is_empty(), "{line}");
    for step in steps {
        // A step above the tolerance fails the run; here that it was compared at all.
        let error = step["distance"]["relative_error"].as_f64().unwrap();
        assert!(error > 1e-4, "{line}: {error}");
    }
}

/// Every kernel of a layer, decode and prefill, from graphs and eagerly.
#[test]
#[ignore = "needs 1 GPU"]
fn stacks_on_one_gpu_equal_the_reference() {
    for line in [
        "--model llama-3.1-70b --batch 3,5 --prefill 70 --graph",
        "--model qwen3-235b --batch 80 --graph",
        "--model deepseek-v3 --kv fp8 --batch 3 --prefill 70 --graph",
    ] {
        equals_the_reference(1, line);
    }
}

/// Every way to split a layer over ranks.
#[test]
#[ignore = "needs 2 GPUs"]
fn stacks_on_all_gpus_equal_the_reference() {
    let n = ranks();
    let uneven: Vec<String> = (0..n).map(|r| [3, 1, 0, 2][r % 4].to_string()).collect();
    let uneven = uneven.join(",");
    for line in [
        format!("--model qwen3-235b --batch 3 --tp {n} --ep {n} --graph --symmetric"),
        format!("--model qwen3-235b --batch 3 --tp {n} --dcp {n} --graph"),
        format!(
            "--model deepseek-v3 --weights bf16 --batch 3 --tp {n} --dcp {n} --dcp-merge a2a --graph"
        ),
        // What fits the memory of the peers, and a chunk that goes by NCCL or over it.
        format!(
            "--model qwen3-235b --batch 3,40 --prefill 60 --tp {n} --dcp {n} --dcp-merge fused --graph"
        ),
        format!(
            "--model deepseek-v3 --weights bf16 --batch 3 --q-tokens 2 --tp {n} --dcp {n} --dcp-merge fused --dcp-interleave 3 --graph"
        ),
        format!(
            "--model deepseek-v3 --weights bf16 --requests {uneven} --tp {n} --attn-dp {n} --mode sum-len --graph --buckets 4"
        ),
        format!(
            "--model deepseek-v3 --weights bf16 --batch 3 --tp {n} --attn-dp {n} --ep {n} --all-to-all --graph"
        ),
    ] {
        equals_the_reference(n, &line);
    }
}

/// Fewer requests than DP ranks: the idle ones run the dummy batch, from a graph and
/// eagerly in every mode, and the others' rows are right.
#[test]
#[ignore = "needs 2 GPUs"]
fn idle_ranks_run_the_dummy_batch_through_the_stack() {
    let n = ranks();
    let only = |busy: usize| {
        let counts: Vec<&str> = (0..n).map(|r| if r == busy { "1" } else { "0" }).collect();
        counts.join(",")
    };
    for mode in ["max-len", "sum-len", "exact"] {
        equals_the_reference(
            n,
            &format!(
                "--model qwen3-235b --tp {n} --attn-dp {n} --ep {n} --mode {mode} --graph --buckets 2 --requests {} --requests {}",
                only(0),
                only(n - 1)
            ),
        );
    }
}
