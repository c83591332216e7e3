//! What the host launches one by one where no CUDA graph replays a pass.
//!
//! A pass of few tokens is over sooner than its kernels can be launched, so that its time is that of
//! the launches: SGLang 0.5.9 takes 150 to 165 ms for 1,100 to 3,200 prompt tokens of Qwen3.5-397B
//! alike on B200 (what its prefill adds to the time of an output token in published runs), 85 ms for
//! 900 of DeepSeek-R1 on H200, and under 30 ms for 1,000 of the dense Qwen3-32B. Counted are kernels and
//! the library calls that launch one, as the engines' model code has them.

use super::block::busiest;
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

/// What an operation puts on the stream, where an engine's kernels are known one by one.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Launched {
    /// Kernels.
    pub kernels: f64,
    /// Of them, those that wait beyond the operation's own time: see [`Gaps::graph_kernel_us`].
    ///
    /// [`Gaps::graph_kernel_us`]: parplan_profiles::overheads::Gaps::graph_kernel_us
    pub waiting: f64,
    /// Collectives.
    pub collectives: f64,
    /// By how many standard deviations the last rank comes to them after the mean one, together.
    pub late: f64,
}

impl Launched {
    /// A single collective of so many ranks.
    fn collective(ranks: f64) -> Launched {
        Launched {
            collectives: 1.0,
            late: busiest(ranks),
            ..Launched::default()
        }
    }

    /// So many kernels, the first of which waits: the others were timed behind it.
    fn together(kernels: f64) -> Launched {
        Launched {
            kernels,
            waiting: kernels.min(1.0),
            ..Launched::default()
        }
    }

    /// So many kernels, each of which waits.
    fn apart(kernels: f64) -> Launched {
        Launched {
            kernels,
            waiting: kernels,
            ..Launched::default()
        }
    }
}

impl std::ops::AddAssign for Launched {
    fn add_assign(&mut self, other: Launched) {
        self.kernels += other.kernels;
        self.waiting += other.waiting;
        self.collectives += other.collectives;
        self.late += other.late;
    }
}

impl std::ops::Mul<f64> for Launched {
    type Output = Launched;

    fn mul(self, factor: f64) -> Launched {
        Launched {
            kernels: self.kernels * factor,
            waiting: self.waiting * factor,
            collectives: self.collectives * factor,
            late: self.late * factor,
        }
    }
}

/// What one operation launches, by an engine's own rule.
///
/// Its time is that of an experiment, which runs it over and over. A layer's experts are five kernels
/// there as in a step, and a quantised product two, so that only the first of them has another neighbour
/// than it was timed with.
pub(super) fn of_operation(
    operation: &Operation,
    rule: &KernelRule,
    costs: &OpCosts<'_>,
) -> Launched {
    match operation {
        Operation::Collective(transfer) => Launched::collective(transfer.span.ranks),
        // Packing, the rows out, unpacking; the results back and their sum.
        Operation::ExpertExchange { send, .. } => {
            let mut both = Launched::collective(send.ranks) * 2.0;
            both += Launched::apart(3.0);
            both
        }
        Operation::Gemm(product) => {
            let quantised = f64::from(u8::from(costs.quantises(product.weights)));
            Launched::together(1.0 + quantised)
        }
        Operation::MlaBmm(_) | Operation::GatedDelta(_) | Operation::Mamba2(_) => {
            Launched::apart(1.0)
        }
        Operation::DecodeGqa(_)
        | Operation::PrefillGqa(_)
        | Operation::DecodeMla(_)
        | Operation::PrefillMla(_)
        | Operation::SparseDecode(_)
        | Operation::SparsePrefill(_) => Launched::apart(f64::from(rule.attention)),
        Operation::Moe(_) => Launched::together(f64::from(rule.experts)),
        Operation::Elementwise { kernels, .. } => Launched::apart(*kernels),
    }
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
