//! What the host launches one by one where no CUDA graph replays a pass.
//!
//! A pass of few tokens is over sooner than its kernels can be launched, so that its time is that of
//! the launches: SGLang 0.5.9 takes 150 to 165 ms for 1,100 to 3,200 prompt tokens of Qwen3.5-397B
//! alike on B200 (what its prefill adds to the time of an output token in published runs), 85 ms for
//! 900 of DeepSeek-R1 on H200, and under 30 ms for 1,000 of the dense Qwen3-32B. Counted are kernels and
//! the library calls that launch one, as the engines' model code has them.

use crate::cost::{OpCosts, Operation};
use crate::shard::{Block, Linear, Mixer, MoeShard, Shard, ShardGroup};
use parplan_profiles::Dtype;
use parplan_profiles::engine::rules::KernelRule;

/// Kernels of a dense grouped-query layer in bf16: two norms with their residuals, the projection, rotary
/// embedding, cache write, attention and its output projection, two sums over ranks, and a gated
/// feed-forward block of three. Launch costs are given for such a layer.
pub const DENSE_LAYER: f64 = 12.0;

/// The shared expert's two products and activation, its gate, and the addition.
const SHARED: f64 = 5.0;

/// What is left of a layer where its pieces between attention are graphs: the graph, the cache write,
/// and attention with its planning.
const PIECEWISE_LAYER: f64 = 4.0;

/// Kernels of a stage of `shard`, launched one by one.
pub fn of(shard: &Shard) -> f64 {
    shard
        .groups
        .iter()
        .map(|group| group.layers * of_layer(group))
        .sum()
}

/// Kernels of a stage in a captured decode step, one after the other: shared experts run beside the
/// routed ones.
pub fn in_graph(shard: &Shard, shared_beside: bool) -> f64 {
    let beside = |group: &ShardGroup| match group.block {
        Block::Moe(moe) if shared_beside => of_shared(&moe),
        _ => 0.0,
    };
    shard
        .groups
        .iter()
        .map(|group| {
            // A step of a recurrence is one kernel where a chunked scan has several, with its state
            // written in place.
            let scan = match group.mixer {
                Mixer::GatedDelta(_) => 10.0,
                Mixer::Mamba2(_) => 6.0,
                _ => 0.0,
            };
            group.layers * (of_layer(group) - beside(group) - scan)
        })
        .sum()
}

/// Kernels of a stage whose passes are graphs between attention.
pub fn piecewise(shard: &Shard) -> f64 {
    shard.layers * PIECEWISE_LAYER
}

/// Kernels and collectives that one operation launches, by an engine's own rule.
pub(super) fn of_operation(
    operation: &Operation,
    rule: &KernelRule,
    costs: &OpCosts<'_>,
) -> (f64, f64) {
    let kernels = match operation {
        Operation::Collective(_) => return (0.0, 1.0),
        // Packing, the rows out, unpacking; the results back and their sum.
        Operation::ExpertExchange { .. } => return (3.0, 2.0),
        Operation::Gemm(product) => 1.0 + f64::from(u8::from(costs.quantises(product.weights))),
        Operation::MlaBmm(_) | Operation::GatedDelta(_) | Operation::Mamba2(_) => 1.0,
        Operation::DecodeGqa(_)
        | Operation::PrefillGqa(_)
        | Operation::DecodeMla(_)
        | Operation::PrefillMla(_)
        | Operation::SparseDecode(_)
        | Operation::SparsePrefill(_) => f64::from(rule.attention),
        Operation::Moe(_) => f64::from(rule.experts),
        Operation::Elementwise { kernels, .. } => *kernels,
    };
    (kernels, 0.0)
}

/// The kernels of a layer's shared expert.
fn of_shared(moe: &MoeShard) -> f64 {
    moe.shared
        .map_or(0.0, |(up, down)| SHARED + quantise(&[up, down]))
}

fn of_layer(group: &ShardGroup) -> f64 {
    let norms = 2.0;
    let mixer = match &group.mixer {
        Mixer::None => 0.0,
        // Projection, rotary embedding, cache write, attention, output projection, sum over ranks.
        // A norm over all heads: conversion, squares, sum over ranks, its application to Q and to K.
        Mixer::Gqa(a) => 6.0 + if a.shared_norm { 5.0 } else { 0.0 } + quantise(&[a.qkv, a.out]),
        // Beside those: the second compression, two norms, two expansions, the split and joined halves of
        // queries and keys; the indexer's projections, norm, rotation, cache write, logits and top-k.
        Mixer::Mla(a) => {
            let indexer = if a.dims.indexer.is_some() { 9.0 } else { 0.0 };
            12.0 + indexer + quantise(&[a.down, a.q_up, a.kv_up, a.out])
        }
        Mixer::Compressed(a) => 24.0 + quantise(&[a.down, a.q_up, a.out.0, a.out.1]),
        // Two projections, convolution, gates, two norms, the chunked scan's six kernels, state write,
        // gated norm, copies, output projection, sum.
        Mixer::GatedDelta(a) => 20.0 + quantise(&[a.input, a.out]),
        Mixer::Mamba2(a) => 14.0 + quantise(&[a.input, a.out]),
    };
    let block = match &group.block {
        Block::None => 0.0,
        Block::Dense { up, down } => 4.0 + quantise(&[*up, *down]),
        // Router, top-k and sum over ranks. In fp4 three kernels that sort rows by expert, the
        // activations' format, two products (the activation in the first one's epilogue) and the
        // weighted sum; else five that sort and align, and the activation by itself.
        Block::Moe(moe) => {
            let conversion = f64::from(u8::from(moe.router.dtype == Dtype::Fp32));
            let experts = match moe.dtype {
                Dtype::Nvfp4 | Dtype::Mxfp4 => 7.0,
                Dtype::Bf16 => 8.0,
                _ => 10.0,
            };
            3.0 + conversion + experts + of_shared(moe)
        }
    };
    norms + mixer + block
}

/// Activations are put into the format of a quantised product by a kernel of its own.
fn quantise(products: &[Linear]) -> f64 {
    let quantised = products
        .iter()
        .filter(|product| !matches!(product.dtype, Dtype::Bf16 | Dtype::Fp32 | Dtype::Int4));
    quantised.count() as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::layout::Layout;
    use crate::shard::Split;
    use parplan_profiles::Library;

    fn a_layer(model: &str) -> f64 {
        let model = Library::embedded().model(model).unwrap();
        let layout = Layout {
            replicas: 1,
            tp: 8,
            attention_dp: 1,
            dcp: 1,
            ep: 8,
            pp: 1,
            nodes: 1,
        };
        let split = Split {
            dense_ranks: 8,
            shared_ranks: 8,
            head_ranks: 8,
            expert_multiples: None,
        };
        let shard = Shard::new(&model, &layout, &split);
        of(&shard) / shard.layers
    }

    #[test]
    fn a_layer_of_experts_and_latent_attention_has_three_times_the_kernels_of_a_dense_one() {
        assert_eq!(a_layer("qwen3-32b"), DENSE_LAYER);
        let ratio = a_layer("deepseek-r1") / DENSE_LAYER;
        assert!((2.8..3.6).contains(&ratio), "{ratio}");
        let ratio = a_layer("qwen3.5-397b-a17b-fp8") / DENSE_LAYER;
        assert!((3.0..4.0).contains(&ratio), "{ratio}");
    }
}
