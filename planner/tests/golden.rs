//! Published figures, derived by the code.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Ground, layout};
use parplan_planner::estimate;
use parplan_planner::kv::{footprint, redundancy};
use parplan_planner::question::Settings;
use parplan_planner::shard::{Shard, Split};
use parplan_profiles::{Dtype, Library};

fn kv(model: &str, tp: u32, dcp: u32, dtype: Dtype) -> f64 {
    let model = Library::embedded().model(model).unwrap();
    footprint(&model, &layout(tp, 1, dcp, 1), dtype, false).bytes_per_token
}

/// By hand from the published dimensions: DeepSeek-R1 70,272 B a token in bf16, 35,136 in fp8, whatever TP is;
/// Qwen3-235B 48,128 B a rank at TP8, two copies; Llama-3.1-70B 40,960 at TP8.
#[test]
fn kv_bytes_per_token_per_rank() {
    assert_eq!(kv("deepseek-r1", 1, 1, Dtype::Bf16), 70_272.0);
    assert_eq!(kv("deepseek-r1", 8, 1, Dtype::Bf16), 70_272.0);
    assert_eq!(kv("deepseek-r1", 8, 1, Dtype::Fp8), 35_136.0);
    assert_eq!(kv("qwen3-235b-a22b", 1, 1, Dtype::Bf16), 192_512.0);
    assert_eq!(kv("qwen3-235b-a22b", 8, 1, Dtype::Bf16), 48_128.0);
    assert_eq!(kv("llama-3.1-70b", 8, 1, Dtype::Bf16), 40_960.0);
    let qwen = Library::embedded().model("qwen3-235b-a22b").unwrap();
    assert_eq!(redundancy(&qwen, &layout(8, 1, 1, 1)), 2.0);
    assert_eq!(redundancy(&qwen, &layout(8, 1, 2, 1)), 1.0);
    // vLLM's context_parallel_deployment.md: R1 at TP8 keeps 8 copies, Kimi-K2 at TP16 16.
    let r1 = Library::embedded().model("deepseek-r1").unwrap();
    assert_eq!(redundancy(&r1, &layout(8, 1, 1, 1)), 8.0);
    let kimi = Library::embedded().model("kimi-k2").unwrap();
    assert_eq!(redundancy(&kimi, &layout(16, 1, 8, 1)), 2.0);
}

/// What every embedded model keeps of a request on one rank, in bf16, every byte pinned: of each token,
/// of the last tokens in sliding windows, and whatever its length. What a profile cites as printed is what
/// comes out; where nothing is printed the profile says so.
#[test]
fn caches_are_golden_and_as_published() {
    let golden: Vec<&str> = include_str!("kv_bytes.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    let library = Library::embedded();
    let (mut lines, mut printed) = (Vec::new(), 0);
    for listed in library.models().unwrap() {
        let model = library.model(&listed.name).unwrap();
        let kept = footprint(&model, &layout(1, 1, 1, 1), Dtype::Bf16, false);
        let windows: f64 = kept
            .windows
            .iter()
            .map(|&(bytes, tokens)| bytes * f64::from(tokens))
            .fold(0.0, |sum, bytes| sum + bytes);
        lines.push(format!(
            "{} {} {windows} {}",
            listed.name, kept.bytes_per_token, kept.state_bytes
        ));
        let Some(published) = &model.published else {
            continue;
        };
        assert!(!published.cache_source.is_empty(), "{}", listed.name);
        if let Some(bytes) = published.cache_bytes_per_token {
            assert_eq!(kept.bytes_per_token, bytes as f64, "{}", listed.name);
            printed += 1;
        }
    }
    assert!(printed >= 7, "{printed}");
    assert_eq!(
        lines,
        golden,
        "not as in kv_bytes.txt:\n{}",
        lines.join("\n")
    );
}

/// V3.2 with fp8 KV: 656 B a layer, and a 132 B indexer row that every rank of a DCP group keeps.
///
/// The formula gives 788 / (656 / 2 + 132) = 1.71 at dcp 2. Published: 1.855 (sglang#31821, bf16 rows,
/// which the formula with 1,152 B rows gives as 1.81); 3.92 at dcp 4 for GLM-5.2 (vllm#46076, where an
/// indexer sits in 21 of 78 layers: with its rows replicated the formula stays below that, so vLLM must
/// split them); 3.21 at dcp 8 for GLM-5.3 (sglang#39330), for which no dimensions are at hand: an
/// indexer in every layer would give 3.68 with fp8 rows, GLM-5.2's share of indexers 5.9, so neither
/// reproduces it.
#[test]
fn what_dcp_frees_of_a_sparse_cache() {
    let gain = |model: &str, dcp: u32, dtype| kv(model, 8, 1, dtype) / kv(model, 8, dcp, dtype);
    assert_eq!(kv("deepseek-v3.2", 8, 1, Dtype::Fp8), 61.0 * 788.0);
    assert!((gain("deepseek-v3.2", 2, Dtype::Fp8) - 1.713).abs() < 0.001);
    assert!((gain("deepseek-v3.2", 2, Dtype::Bf16) - 1.813).abs() < 0.001);
    let glm = gain("glm-5.2", 4, Dtype::Bf16);
    assert!((3.3..3.92).contains(&glm), "{glm}");
    // Beyond the copies there is nothing left to free.
    assert_eq!(
        kv("qwen3-235b-a22b", 8, 2, Dtype::Bf16),
        kv("qwen3-235b-a22b", 8, 4, Dtype::Bf16)
    );
}

/// sgl-project/sglang#4417: DeepSeek-R1 at TP16 loads 40.46 GiB a rank.
#[test]
fn weights_of_a_rank() {
    let ground = Ground::new("deepseek-r1", "h100-sxm", "sglang");
    let layout = layout(16, 1, 1, 1);
    let split = Split {
        dense_ranks: 16,
        shared_ranks: 16,
        head_ranks: 16,
        expert_multiples: None,
    };
    let shard = Shard::new(&ground.model, &layout, &split);
    let gib = shard.weight_bytes / f64::from(1u32 << 30);
    assert!((gib - 40.46).abs() < 0.04 * 40.46, "{gib:.2} GiB");
}

/// vLLM 0.22 on one H200 by Marlin, whose experts are padded: "Model loading took 66.14 GiB memory", of a
/// checkpoint of 60.77 GiB (GloriaXimingLu/inferencex-profiling, nebius/results/gptoss_tp1_c64_8k1k.log).
#[test]
fn weights_of_padded_experts() {
    let gib = |engine: &str, gpu: &str| {
        let ground = Ground::new("gpt-oss-120b", gpu, engine);
        let setup = ground.setup();
        let traffic = common::traffic(1024.0, 1024.0, 64.0);
        let choice = ground.choice(layout(1, 1, 1, 1));
        let plan = estimate::plan(&setup, &traffic, &Settings::default(), choice);
        plan.memory_bytes.weights / f64::from(1u32 << 30)
    };
    let padded = gib("vllm", "h200");
    assert!((padded - 66.14).abs() < 0.01 * 66.14, "{padded:.2} GiB");
    let plain = gib("sglang", "h200");
    assert!((plain - 60.77).abs() < 0.01 * 60.77, "{plain:.2} GiB");
}

/// Over all ranks of a stage, split weights add up to the model, and replicated ones to more.
#[test]
fn ranks_together_hold_at_least_the_model() {
    let library = Library::embedded();
    for name in [
        "llama-3.1-70b",
        "qwen3-235b-a22b",
        "deepseek-v3",
        "gpt-oss-120b",
        "qwen3.5-397b-a17b",
    ] {
        let model = library.model(name).unwrap();
        let one = Split {
            dense_ranks: 1,
            shared_ranks: 1,
            head_ranks: 1,
            expert_multiples: None,
        };
        let eight = Split {
            dense_ranks: 8,
            shared_ranks: 8,
            head_ranks: 8,
            expert_multiples: None,
        };
        let whole = Shard::new(&model, &layout(1, 1, 1, 1), &one).weight_bytes;
        let rank = Shard::new(&model, &layout(8, 1, 1, 1), &eight).weight_bytes;
        assert!(8.0 * rank >= whole * 0.999, "{name}");
        assert!(
            8.0 * rank <= whole * 1.25,
            "{name}: {:.2}",
            8.0 * rank / whole
        );
    }
}

/// What is priced of MiniMax's norm over the heads of all ranks is in the volume table: two fp32 sums a row.
#[test]
fn a_norm_over_all_heads_is_in_the_volume_table() {
    use parplan_planner::deployment::Deployment;
    use parplan_planner::estimate;
    use parplan_planner::question::Settings;
    use parplan_planner::volume::{Kind, Purpose};
    let traffic = common::traffic(1024.0, 1024.0, 64.0);
    let settings = Settings::default();
    let calls = |tp: u32| {
        let ground = Ground::new("minimax-m2.5", "h200", "vllm");
        let setup = ground.setup();
        let choice = ground.choice(layout(tp, 1, 1, tp));
        let deployment = Deployment::new(&setup, &traffic, &settings, choice);
        let service = deployment.serve(&traffic);
        let volumes = estimate::volumes(&deployment, &traffic, &service);
        volumes[0].calls.clone()
    };
    let norm = calls(8)[0];
    assert_eq!(
        (norm.purpose, norm.kind, norm.ranks),
        (Purpose::SharedNorm, Kind::AllReduce, 8)
    );
    assert!((56.0..=80.0).contains(&(norm.bytes / 8.0)), "{norm:?}");
    assert!(
        calls(1)
            .iter()
            .all(|call| call.purpose != Purpose::SharedNorm)
    );
}
