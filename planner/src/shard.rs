//! A model as one rank of a layout sees it: the shapes of every product, resolved once a layout.
//!
//! Shapes follow the engines' column- and row-parallel linear layers (Megatron-LM, arXiv 1909.08053):
//! QKV, gate/up and the output projection's vocabulary are split by columns, the attention output
//! and down projections by rows. MLA's compressions and the router are replicated.

mod mixer;

pub use mixer::{CompressedShard, GatedDeltaShard, GqaShard, Mamba2Shard, Mixer, MlaShard};

use crate::layout::Layout;
use parplan_profiles::{DenseFfn, Dtype, Ffn, LayerGroup, ModelProfile, MoeFfn, WeightFormats};

/// A matrix product `[m, k] × [k, n]` whose weights a rank holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    /// Columns of the weight.
    pub n: f64,
    /// Rows of the weight.
    pub k: f64,
    /// Storage format.
    pub dtype: Dtype,
}

impl Linear {
    fn new(n: f64, k: f64, dtype: Dtype) -> Self {
        Linear { n, k, dtype }
    }

    /// Bytes of the weight.
    pub fn bytes(&self) -> f64 {
        self.n * self.k * self.dtype.bytes()
    }
}

/// The feed-forward block of a layer, as a rank sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Block {
    /// No feed-forward block.
    None,
    /// Dense.
    Dense {
        /// Gate and up projection.
        up: Linear,
        /// Down projection.
        down: Linear,
    },
    /// Mixture of experts.
    Moe(MoeShard),
}

/// A mixture of experts on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeShard {
    /// Router, replicated.
    pub router: Linear,
    /// The model's dimensions.
    pub dims: MoeFfn,
    /// Routed experts that this rank holds.
    pub experts_local: f64,
    /// Hidden width of a routed expert on this rank.
    pub intermediate: f64,
    /// Width at which experts read and write (the residual stream, or a latent projection of it).
    pub width: f64,
    /// Storage format of the routed experts.
    pub dtype: Dtype,
    /// Shared expert: gate/up and down, when there is one.
    pub shared: Option<(Linear, Linear)>,
    /// Latent projections in and out (Nemotron-3), replicated.
    pub latent: Option<(Linear, Linear)>,
}

/// Equal layers of one pipeline stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShardGroup {
    /// Layers of this shape on one stage (a mean where stages cannot share evenly).
    pub layers: f64,
    /// Token mixer.
    pub mixer: Mixer,
    /// Feed-forward block.
    pub block: Block,
}

/// A model as one rank sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shard {
    /// Groups of equal layers.
    pub groups: Vec<ShardGroup>,
    /// One MTP layer, where the model has them.
    pub mtp: Option<ShardGroup>,
    /// Width of the residual stream.
    pub hidden: f64,
    /// Output projection of this rank.
    pub lm_head: Linear,
    /// Layers of one stage, in all.
    pub layers: f64,
    /// Weight bytes of this rank (the first stage's share, embeddings included).
    pub weight_bytes: f64,
    /// Weight bytes of the MTP layers, held only when speculation uses them.
    pub mtp_bytes: f64,
}

fn dense(ffn: &DenseFfn, hidden: f64, dtype: Dtype, ranks: f64) -> (Linear, Linear) {
    let width = f64::from(ffn.intermediate) / ranks;
    let columns = if ffn.gated { 2.0 * width } else { width };
    (
        Linear::new(columns, hidden, dtype),
        Linear::new(hidden, width, dtype),
    )
}

/// Width at which routed experts read and write.
fn outer(moe: &MoeFfn, hidden: f64) -> f64 {
    match moe.latent {
        0 => hidden,
        latent => f64::from(latent),
    }
}

fn block(ffn: &Ffn, hidden: f64, weights: &WeightFormats, layout: &Layout, split: &Split) -> Block {
    let shared_ranks = f64::from(split.shared_ranks);
    match ffn {
        Ffn::Dense(d) => {
            let (up, down) = dense(d, hidden, weights.dense_ffn, f64::from(split.dense_ranks));
            Block::Dense { up, down }
        }
        Ffn::Moe(m) => {
            let (width, intermediate) = split.padded(
                weights.experts,
                outer(m, hidden),
                f64::from(m.intermediate) / f64::from(layout.moe_tp().max(1)),
            );
            let shared = (m.shared_intermediate > 0).then(|| {
                let shape = DenseFfn {
                    intermediate: m.shared_intermediate,
                    gated: m.gated,
                };
                dense(&shape, hidden, weights.shared_experts, shared_ranks)
            });
            let latent = (m.latent > 0).then(|| {
                (
                    Linear::new(f64::from(m.latent), hidden, weights.dense_ffn),
                    Linear::new(hidden, f64::from(m.latent), weights.dense_ffn),
                )
            });
            Block::Moe(MoeShard {
                router: Linear::new(
                    f64::from(m.experts),
                    hidden,
                    if m.router_fp32 {
                        Dtype::Fp32
                    } else {
                        Dtype::Bf16
                    },
                ),
                dims: *m,
                experts_local: f64::from(m.experts) / f64::from(layout.ep.max(1)),
                intermediate,
                width,
                dtype: weights.experts,
                shared,
                latent,
            })
        }
    }
}

/// Weight bytes of one layer on one rank, from the profile's parameter counts.
fn layer_bytes(model: &ModelProfile, group: &LayerGroup, layout: &Layout, split: &Split) -> f64 {
    let formats = group.weights.unwrap_or(model.weights);
    let params = model.layer_params(group);
    let attention_tp = f64::from(layout.attention_tp());
    let (mixer, ffn) = (&params.attention, &params.ffn);
    let small = Dtype::Bf16.bytes();
    let kv_ranks = attention_tp.min(f64::from(mixer.kv_splits.max(1)));
    let moe_tp = f64::from(layout.moe_tp().max(1));
    let experts = f64::from(layout.ep.max(1)) * moe_tp;
    let hidden = f64::from(model.hidden_size);
    let padding = split.expert_padding(group, formats.experts, hidden, moe_tp);
    (mixer.heads as f64 / attention_tp + mixer.kv_heads as f64 / kv_ranks + mixer.replicated as f64)
        * formats.attention.bytes()
        + mixer.output as f64 / attention_tp * formats.attention_output().bytes()
        + mixer.indexer as f64 * formats.indexer().bytes()
        + ffn.dense as f64 / f64::from(split.dense_ranks) * formats.dense_ffn.bytes()
        + ffn.routed as f64 / experts * padding * formats.experts.bytes()
        + ffn.shared as f64 / f64::from(split.shared_ranks) * formats.shared_experts.bytes()
        + ffn.latent as f64 * formats.dense_ffn.bytes()
        + ffn.router as f64 * formats.embedding.bytes()
        + (params.norms + mixer.small + ffn.small) as f64 * small
}

/// Over how many ranks an engine splits what tensor parallelism can split in more than one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// Dense feed-forward blocks: the stage, or the attention-TP group.
    pub dense_ranks: u32,
    /// Shared experts: the stage, the attention-TP group, or 1 with an expert all-to-all.
    pub shared_ranks: u32,
    /// Embedding and output projection.
    pub head_ranks: u32,
    /// Widths that the kernels of routed experts are padded to; none where they take any.
    pub expert_multiples: Option<ExpertMultiples>,
}

/// Routed experts in `format` are padded to multiples of so many values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertMultiples {
    /// Storage format of the experts that this is about.
    pub format: Dtype,
    /// Width at which experts read and write.
    pub outer: u32,
    /// Hidden width of an expert on a rank.
    pub inner: u32,
}

impl Split {
    /// Outer and inner width of routed experts as they are held and multiplied on a rank.
    fn padded(&self, format: Dtype, outer: f64, inner: f64) -> (f64, f64) {
        let up = |width: f64, multiple: u32| {
            let multiple = f64::from(multiple.max(1));
            (width / multiple).ceil() * multiple
        };
        match self.expert_multiples {
            Some(to) if to.format == format => (up(outer, to.outer), up(inner, to.inner)),
            _ => (outer, inner),
        }
    }

    /// Weights of a layer's routed experts as held, over those of the checkpoint.
    fn expert_padding(&self, group: &LayerGroup, format: Dtype, hidden: f64, moe_tp: f64) -> f64 {
        let Some(Ffn::Moe(moe)) = &group.ffn else {
            return 1.0;
        };
        let (outer, inner) = (outer(moe, hidden), f64::from(moe.intermediate) / moe_tp);
        let (wide, deep) = self.padded(format, outer, inner);
        wide * deep / (outer * inner)
    }
}

impl Shard {
    /// Weight bytes that every decode step reads whatever its tokens: all but the embedding table
    /// and the routed experts.
    pub fn always_read_bytes(&self) -> f64 {
        let routed: f64 = self
            .groups
            .iter()
            .map(|group| match &group.block {
                Block::Moe(moe) => {
                    let matrices = if moe.dims.gated { 3.0 } else { 2.0 };
                    group.layers
                        * moe.experts_local
                        * matrices
                        * moe.intermediate
                        * moe.width
                        * moe.dtype.bytes()
                }
                _ => 0.0,
            })
            .sum();
        // Biases of experts and rounding of formats stay on the safe side of a lower bound.
        (0.95 * (self.weight_bytes - 2.0 * self.lm_head.bytes()) - routed).max(0.0)
    }

    /// Resolves the shapes of `model` on one rank of `layout`.
    pub fn new(model: &ModelProfile, layout: &Layout, split: &Split) -> Shard {
        let hidden = f64::from(model.hidden_size);
        let stages = f64::from(layout.pp.max(1));
        let shard = |group: &LayerGroup, layers: f64| {
            let formats = group.weights.unwrap_or(model.weights);
            ShardGroup {
                layers,
                mixer: group
                    .attention
                    .as_ref()
                    .map_or(Mixer::None, |a| Mixer::new(a, hidden, &formats, layout)),
                block: group
                    .ffn
                    .as_ref()
                    .map_or(Block::None, |f| block(f, hidden, &formats, layout, split)),
            }
        };
        let groups: Vec<ShardGroup> = model
            .layers
            .iter()
            .map(|g| shard(g, f64::from(g.count) / stages))
            .collect();
        let mtp = model.mtp_layer.as_ref().map(|g| shard(g, 1.0));
        let vocab = f64::from(model.vocab_size) / f64::from(split.head_ranks);
        let lm_head = Linear::new(vocab, hidden, model.weights.lm_head());
        let layers = groups.iter().map(|g| g.layers).sum();
        // The embedding lives on the first stage and the output projection on the last: one stage
        // holds both, and of several the fullest holds one.
        let tables = if stages > 1.0 || model.tied_embeddings {
            lm_head.bytes()
        } else {
            lm_head.bytes() + vocab * hidden * model.weights.embedding.bytes()
        };
        let weight_bytes = model
            .layers
            .iter()
            .map(|g| f64::from(g.count) / stages * layer_bytes(model, g, layout, split))
            .sum::<f64>()
            + tables;
        // An MTP layer also joins the embedding and the hidden state through one 2h × h product.
        let mtp_bytes = model.mtp_layer.as_ref().map_or(0.0, |g| {
            f64::from(model.mtp_layers)
                * (layer_bytes(model, g, layout, split)
                    + 2.0 * hidden * hidden * Dtype::Bf16.bytes())
        });
        Shard {
            groups,
            mtp,
            hidden,
            lm_head,
            layers,
            weight_bytes,
            mtp_bytes,
        }
    }
}
