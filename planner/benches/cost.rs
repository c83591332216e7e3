//! Nanoseconds of one evaluation of each cost function. The search runs some 30 a configuration,
//! and 200,000 configurations a second, so that none may take more than about 40 ns.

use divan::{Bencher, black_box};
use parplan_planner::cost::*;
use parplan_profiles::{Dtype, EfficiencyProfile, GpuProfile, Link, LinkKind, TensorRates, Vendor};

fn main() {
    divan::main();
}

fn gpu() -> GpuProfile {
    GpuProfile {
        name: "h200".to_owned(),
        aliases: Vec::new(),
        vendor: Vendor::Nvidia,
        memory_mib: 143_771,
        context_mib: None,
        memory_bytes_per_s: 4.8e12,
        sms: 132,
        l2_bytes: 50 << 20,
        compute_capability: [9, 0],
        tensor: TensorRates {
            bf16: 989.4e12,
            fp8: Some(1978.9e12),
            int8: Some(1978.9e12),
            fp4: None,
        },
        link: Link {
            kind: LinkKind::Nvlink,
            bytes_per_s: 450e9,
            multicast: true,
        },
        gpus_per_node: 8,
        link_domain_gpus: 8,
        network_bytes_per_s: 50e9,
        sources: Default::default(),
    }
}

fn with_costs<T: Copy + Sync>(bencher: Bencher, shape: T, cost: fn(&OpCosts<'_>, &T) -> f64) {
    let gpu = gpu();
    let Ok(profile) = EfficiencyProfile::embedded("sglang", &gpu) else {
        return;
    };
    let Ok(costs) = OpCosts::new(profile, &gpu) else {
        return;
    };
    bencher.bench_local(|| cost(black_box(&costs), black_box(&shape)));
}

#[divan::bench]
fn gemm(bencher: Bencher) {
    let shape = Gemm {
        m: 64.0,
        n: 7168.0,
        k: 2048.0,
        weights: Dtype::Fp8Block,
    };
    with_costs(bencher, shape, |c, s| c.gemm(s));
}

#[divan::bench]
fn mla_bmm(bencher: Bencher) {
    let shape = MlaBmm {
        tokens: 64.0,
        heads: 16.0,
        head_dim: 128.0,
        kv_lora_rank: 512.0,
        weights: Dtype::Bf16,
    };
    with_costs(bencher, shape, |c, s| c.mla_bmm(s));
}

#[divan::bench]
fn decode_attention_gqa(bencher: Bencher) {
    let shape = DecodeGqa {
        requests: 64.0,
        context: 4096.0,
        q_tokens: 1.0,
        q_heads: 8.0,
        kv_heads: 1.0,
        head_dim: 128.0,
        v_head_dim: 128.0,
        kv: Dtype::Bf16,
        window: f64::INFINITY,
    };
    with_costs(bencher, shape, |c, s| c.decode_attention_gqa(s));
}

#[divan::bench]
fn prefill_attention_gqa(bencher: Bencher) {
    let shape = PrefillGqa {
        sequences: 1.0,
        new_tokens: 4096.0,
        prefix: 1024.0,
        q_heads: 8.0,
        kv_heads: 1.0,
        head_dim: 128.0,
        v_head_dim: 128.0,
        kv: Dtype::Bf16,
        window: f64::INFINITY,
    };
    with_costs(bencher, shape, |c, s| c.prefill_attention_gqa(s));
}

#[divan::bench]
fn decode_attention_mla(bencher: Bencher) {
    let shape = DecodeMla {
        requests: 64.0,
        context: 4096.0,
        q_tokens: 1.0,
        heads: 16.0,
        kv_lora_rank: 512.0,
        rope_dim: 64.0,
        kv: Dtype::Fp8,
    };
    with_costs(bencher, shape, |c, s| c.decode_attention_mla(s));
}

#[divan::bench]
fn decode_attention_dsa(bencher: Bencher) {
    let shape = SparseDecode {
        requests: 64.0,
        context: 32_768.0,
        q_tokens: 1.0,
        heads: 16.0,
        kv_lora_rank: 512.0,
        rope_dim: 64.0,
        index_heads: 64.0,
        index_dim: 128.0,
        top_k: 2048.0,
        owns_index: true,
        kv: Dtype::Fp8,
    };
    with_costs(bencher, shape, |c, s| c.decode_attention_dsa(s));
}

#[divan::bench]
fn moe(bencher: Bencher) {
    let shape = Moe {
        tokens: 64.0,
        experts_local: 32.0,
        experts_total: 256.0,
        top_k: 8.0,
        hidden: 7168.0,
        intermediate: 2048.0,
        gated: true,
        weights: Dtype::Fp8Block,
        gathered: true,
        spread: 1.0,
        imbalance: 1.0,
        deviations: 0.0,
    };
    with_costs(bencher, shape, |c, s| c.moe(s));
}

#[divan::bench]
fn gated_delta(bencher: Bencher) {
    let shape = GatedDeltaStep {
        sequences: 64.0,
        tokens: 1.0,
        k_heads: 2.0,
        v_heads: 8.0,
        k_head_dim: 128.0,
        v_head_dim: 128.0,
    };
    with_costs(bencher, shape, |c, s| c.gated_delta(s));
}

#[divan::bench]
fn all_reduce(bencher: Bencher) {
    let shape = Transfer {
        kind: Collective::AllReduce,
        bytes: 917_504.0,
        span: Span::local(8.0),
        implementation: Implementation::Custom,
        launch: Launch::Graph,
        registration: Registration::None,
    };
    with_costs(bencher, shape, |c, s| c.collective(s));
}

#[divan::bench]
fn all_gather_two_nodes(bencher: Bencher) {
    let shape = Transfer {
        kind: Collective::AllGather,
        bytes: 14_680_064.0,
        span: Span {
            ranks: 16.0,
            ranks_per_domain: 8.0,
        },
        implementation: Implementation::Nccl,
        launch: Launch::Graph,
        registration: Registration::None,
    };
    with_costs(bencher, shape, |c, s| c.collective(s));
}

#[divan::bench]
fn expert_dispatch(bencher: Bencher) {
    let shape = ExpertExchange {
        mode: ExpertMode::Normal,
        tokens: 1024.0,
        top_k: 8.0,
        hidden: 7168.0,
        element_bytes: 1.03125,
        ranks: 32.0,
        ranks_per_domain: 8.0,
        imbalance: 1.0,
    };
    with_costs(bencher, shape, |c, s| c.expert_dispatch(s));
}
