//! The shape that every cost must have on every embedded profile: finite, never below the
//! roofline, and never falling when there is more to do.

use super::tests::gpu;
use super::*;
use parplan_profiles::Dtype;
use parplan_profiles::efficiency::EfficiencyProfile;
use proptest::prelude::*;

/// Every engine on every architecture, one of them on PCIe.
fn each(check: impl Fn(&OpCosts<'_>) -> Result<(), TestCaseError>) -> Result<(), TestCaseError> {
    for engine in ["sglang", "vllm", "trtllm", "builtin"] {
        for name in ["h100", "h200", "b200", "rtx-pro-6000"] {
            let gpu = gpu(name);
            let profile = EfficiencyProfile::embedded(engine, &gpu).unwrap();
            check(&OpCosts::new(profile, &gpu).unwrap())?;
        }
    }
    Ok(())
}

/// `less` and `more` are costs of the same operation, the second with more to do.
fn ordered(less: f64, more: f64, roofline: f64) -> Result<(), TestCaseError> {
    prop_assert!(less.is_finite() && more.is_finite());
    prop_assert!(
        more >= less * (1.0 - 1e-9),
        "more work is cheaper: {less} {more}"
    );
    prop_assert!(
        more >= roofline * (1.0 - 1e-9),
        "{more} µs is below the roofline of {roofline} µs"
    );
    Ok(())
}

/// Sizes from one to a million, evenly over the decades.
fn size() -> impl Strategy<Value = f64> {
    (0.0..6.0f64).prop_map(|e| 10f64.powf(e).round())
}

fn growth() -> impl Strategy<Value = f64> {
    1.0..8.0f64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn products(m in size(), n in 8u32..400, k in 2u32..300, w in 0usize..9, grow in growth(), axis in 0u8..3) {
        let a = Gemm { m, n: f64::from(n) * 64.0, k: f64::from(k) * 64.0, weights: Dtype::ALL[w] };
        let mut b = a;
        match axis {
            0 => b.m *= grow,
            1 => b.n *= grow,
            _ => b.k *= grow,
        }
        each(|c| {
            ordered(c.gemm(&a), c.gemm(&b), c.gemm_roofline(&b))?;
            ordered(c.gemm_quantised(&a), c.gemm(&a), c.gemm_roofline(&a))
        })?;
    }

    #[test]
    fn absorption(tokens in size(), heads in 1u32..129, narrow in any::<bool>(), grow in growth()) {
        let weights = if narrow { Dtype::Fp8 } else { Dtype::Bf16 };
        let a = MlaBmm { tokens, heads: f64::from(heads), head_dim: 128.0, kv_lora_rank: 512.0, weights };
        let b = MlaBmm { tokens: tokens * grow, ..a };
        each(|c| ordered(c.mla_bmm(&a), c.mla_bmm(&b), c.mla_bmm_roofline(&b)))?;
    }

    #[test]
    fn decode_attention(
        requests in 1u32..2049, context in size(), kv_heads in 1u32..17, group in 1u32..17,
        q_tokens in 1u32..9, narrow in any::<bool>(), windowed in any::<bool>(), grow in growth(), axis in 0u8..2,
    ) {
        let kv = if narrow { Dtype::Fp8 } else { Dtype::Bf16 };
        let a = DecodeGqa {
            requests: f64::from(requests), context, q_tokens: f64::from(q_tokens),
            q_heads: f64::from(kv_heads * group), kv_heads: f64::from(kv_heads), head_dim: 128.0,
            v_head_dim: 128.0, kv, window: if windowed { 128.0 } else { f64::INFINITY },
        };
        let m = DecodeMla {
            requests: a.requests, context, q_tokens: a.q_tokens, heads: a.q_heads,
            kv_lora_rank: 512.0, rope_dim: 64.0, kv,
        };
        let (mut b, mut n) = (a, m);
        if axis == 0 {
            b.requests *= grow;
            n.requests *= grow;
        } else {
            b.context *= grow;
            n.context *= grow;
        }
        each(|c| {
            ordered(c.decode_attention_gqa(&a), c.decode_attention_gqa(&b), c.decode_attention_gqa_roofline(&b))?;
            ordered(c.decode_attention_mla(&m), c.decode_attention_mla(&n), c.decode_attention_mla_roofline(&n))
        })?;
    }

    #[test]
    fn prefill_attention(
        sequences in 1u32..65, new in 1u32..40_000, prefix in 0u32..200_000, kv_heads in 1u32..9,
        group in 1u32..17, width in 0usize..3, narrow in any::<bool>(), window in 0usize..3, more in 1u32..20_000,
        axis in 0u8..2,
    ) {
        let kv = if narrow { Dtype::Fp8 } else { Dtype::Bf16 };
        let head_dim = [64.0, 128.0, 256.0][width];
        let a = PrefillGqa {
            sequences: f64::from(sequences), new_tokens: f64::from(new), prefix: f64::from(prefix),
            q_heads: f64::from(kv_heads * group), kv_heads: f64::from(kv_heads), head_dim,
            v_head_dim: head_dim, kv, window: [128.0, 8192.0, f64::INFINITY][window],
        };
        let m = PrefillMla {
            sequences: a.sequences, new_tokens: a.new_tokens, prefix: a.prefix, heads: a.q_heads,
            qk_head_dim: 192.0, v_head_dim: 128.0, kv,
        };
        let (mut b, mut n) = (a, m);
        if axis == 0 {
            b.new_tokens += f64::from(more);
            n.new_tokens += f64::from(more);
        } else {
            b.prefix += f64::from(more);
            n.prefix += f64::from(more);
        }
        each(|c| {
            ordered(c.prefill_attention_gqa(&a), c.prefill_attention_gqa(&b), c.prefill_attention_gqa_roofline(&b))?;
            ordered(c.prefill_attention_mla(&m), c.prefill_attention_mla(&n), c.prefill_attention_mla_roofline(&n))
        })?;
    }

    #[test]
    fn sparse_attention(
        requests in 1u32..513, new in 1u32..20_000, context in size(), heads in 1u32..129, owns_index in any::<bool>(),
        narrow in any::<bool>(), grow in growth(),
    ) {
        let kv = if narrow { Dtype::Fp8 } else { Dtype::Bf16 };
        let a = SparseDecode {
            requests: f64::from(requests), context, q_tokens: 1.0, heads: f64::from(heads), kv_lora_rank: 512.0,
            rope_dim: 64.0, index_heads: 64.0, index_dim: 128.0, top_k: 2048.0, owns_index, kv,
        };
        let b = SparseDecode { context: context * grow, ..a };
        let p = SparsePrefill {
            sequences: 1.0, new_tokens: f64::from(new), prefix: context, heads: a.heads, kv_lora_rank: 512.0,
            rope_dim: 64.0, index_heads: 64.0, index_dim: 128.0, top_k: 2048.0, owns_index, kv,
        };
        let q = SparsePrefill { new_tokens: (p.new_tokens * grow).ceil(), ..p };
        each(|c| {
            ordered(c.decode_attention_dsa(&a), c.decode_attention_dsa(&b), c.decode_attention_dsa_roofline(&b))?;
            ordered(c.prefill_attention_dsa(&p), c.prefill_attention_dsa(&q), c.prefill_attention_dsa_roofline(&q))
        })?;
    }

    #[test]
    fn recurrent_mixers(sequences in 1u32..1025, tokens in size(), v_heads in 1u32..65, grow in growth()) {
        let a = GatedDeltaStep {
            sequences: f64::from(sequences), tokens, k_heads: 4.0, v_heads: f64::from(v_heads),
            k_head_dim: 128.0, v_head_dim: 128.0,
        };
        let b = GatedDeltaStep { tokens: tokens * grow, ..a };
        let m = Mamba2Step {
            sequences: a.sequences, tokens, heads: a.v_heads, head_dim: 64.0, state_size: 128.0, groups: 8.0,
        };
        let n = Mamba2Step { sequences: a.sequences * grow, ..m };
        each(|c| {
            ordered(c.gated_delta(&a), c.gated_delta(&b), c.gated_delta_roofline(&b))?;
            ordered(c.mamba2(&m), c.mamba2(&n), c.mamba2_roofline(&n))
        })?;
    }

    #[test]
    fn experts(
        tokens in size(), local in 0u32..9, top_k in 1u32..17, w in 0usize..9, gated in any::<bool>(),
        gathered in any::<bool>(), imbalance in 1.0..4.0f64, deviations in 0.0..3.0f64, grow in growth(),
    ) {
        let a = Moe {
            spread: 1.0,
            tokens, experts_local: f64::from(256u32 >> local.min(8)), experts_total: 256.0,
            top_k: f64::from(top_k), hidden: 7168.0, intermediate: 2048.0, gated, weights: Dtype::ALL[w], gathered,
            imbalance, deviations,
        };
        let b = Moe { tokens: tokens * grow, ..a };
        let skewed = Moe { imbalance: imbalance * grow, ..a };
        each(|c| {
            ordered(c.moe(&a), c.moe(&b), c.moe_roofline(&b))?;
            prop_assert!(a.touched() <= a.experts_local && a.rows() <= a.tokens * a.top_k);
            if gathered {
                // Rows that move here were walked as rows of other ranks before.
                return Ok(());
            }
            ordered(c.moe(&a), c.moe(&skewed), c.moe_roofline(&skewed))
        })?;
    }

    #[test]
    fn collectives(
        kind in 0usize..4, bytes in size(), ranks in 0u32..4, nodes in 0u32..4, custom in any::<bool>(),
        eager in any::<bool>(), registered in any::<bool>(), grow in growth(),
    ) {
        use Collective::{AllGather, AllReduce, AllToAll, ReduceScatter};
        let per = f64::from(1u32 << ranks);
        let a = Transfer {
            kind: [AllGather, ReduceScatter, AllReduce, AllToAll][kind],
            bytes: bytes * 1024.0,
            span: Span { ranks: per * f64::from(1u32 << nodes), ranks_per_domain: per },
            implementation: if custom { Implementation::Custom } else { Implementation::Nccl },
            launch: if eager { Launch::Eager } else { Launch::Graph },
            registration: if registered { Registration::Symmetric } else { Registration::None },
        };
        let b = Transfer { bytes: a.bytes * grow, ..a };
        let graph = Transfer { launch: Launch::Graph, ..a };
        let wider = Transfer { span: Span { ranks: a.span.ranks * 2.0, ..a.span }, ..a };
        each(|c| {
            ordered(c.collective(&a), c.collective(&b), c.collective_roofline(&b))?;
            // Between nodes a graph has a host node, which an eager launch has no need of.
            if nodes == 0 {
                ordered(c.collective(&graph), c.collective(&a), c.collective_roofline(&a))?;
            }
            if a.span.ranks >= 2.0 * per {
                ordered(c.collective(&a), c.collective(&wider), c.collective_roofline(&wider))?;
            }
            Ok(())
        })?;
    }

    #[test]
    fn expert_exchange(
        tokens in size(), top_k in 1u32..17, nodes in 0u32..5, normal in any::<bool>(), imbalance in 1.0..3.0f64,
        grow in growth(),
    ) {
        let a = ExpertExchange {
            mode: if normal { ExpertMode::Normal } else { ExpertMode::LowLatency },
            tokens, top_k: f64::from(top_k), hidden: 7168.0, element_bytes: 2.0,
            ranks: 8.0 * f64::from(1u32 << nodes), ranks_per_domain: 8.0, imbalance,
        };
        let b = ExpertExchange { tokens: tokens * grow, ..a };
        each(|c| {
            ordered(c.expert_dispatch(&a), c.expert_dispatch(&b), c.expert_exchange_roofline(&b))?;
            ordered(c.expert_combine(&a), c.expert_combine(&b), c.expert_exchange_roofline(&b))
        })?;
    }
}

/// Nothing to do costs nothing, and a profile that lacks a format is refused by name.
#[test]
fn the_empty_and_the_missing() {
    let h200 = gpu("h200");
    let profile = EfficiencyProfile::embedded("sglang", &h200).unwrap();
    let costs = OpCosts::new(profile, &h200).unwrap();
    let none = Gemm {
        m: 0.0,
        n: 1024.0,
        k: 1024.0,
        weights: Dtype::Bf16,
    };
    assert_eq!(costs.gemm(&none), 0.0);
    let mut broken = profile.clone();
    broken.moe.remove(&Dtype::Nvfp4);
    let error = OpCosts::new(&broken, &h200).unwrap_err().to_string();
    assert!(error.contains("moe.nvfp4"), "{error}");
    let mut dead = h200.clone();
    dead.network_bytes_per_s = 0.0;
    let error = OpCosts::new(profile, &dead).unwrap_err().to_string();
    assert!(error.contains("network_bytes_per_s"), "{error}");
}

/// Figures move with the GPU: bandwidth-bound work with bandwidth, products with the tensor rate.
#[test]
fn transfer_follows_the_spec_sheet() {
    let profile = EfficiencyProfile::embedded("sglang", &gpu("h200")).unwrap();
    let on = |name: &str| OpCosts::new(profile, &gpu(name)).unwrap();
    let weights_bound = Gemm {
        m: 1.0,
        n: 65_536.0,
        k: 16_384.0,
        weights: Dtype::Bf16,
    };
    let ratio = on("h100").gemm(&weights_bound) / on("h200").gemm(&weights_bound);
    assert!((ratio - 4.8 / 3.35).abs() < 0.03, "{ratio}");
    let product_bound = Gemm {
        m: 65_536.0,
        n: 16_384.0,
        k: 16_384.0,
        weights: Dtype::Bf16,
    };
    let ratio = on("h100").gemm(&product_bound) / on("h200").gemm(&product_bound);
    assert!((ratio - 1.0).abs() < 0.02, "{ratio}");
}
