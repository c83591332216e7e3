//! A model as one rank of a layout sees it: the shapes of every product, resolved once a layout.
//!
//! Shapes follow the engines' column- and row-parallel linear layers (Megatron-LM, arXiv 1909.08053):
//! QKV, gate/up and the output projection's vocabulary are split by columns, the attention output
//! and down projections by rows. MLA's compressions and the router are replicated.

use crate::kv::kv_heads_per_rank;
use crate::layout::Layout;
use parplan_profiles::{Attention, DenseFfn, Dtype, Ffn, ModelProfile, MoeFfn};

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

/// The token mixer of a layer, as a rank sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mixer {
    /// No token mixer.
    None,
    /// Grouped-query attention.
    Gqa {
        /// Query, key, value (and gate) projection.
        qkv: Linear,
        /// Output projection.
        out: Linear,
        /// Query heads of this rank.
        q_heads: f64,
        /// KV heads that this rank stores.
        kv_heads: f64,
        /// Width of a query head.
        head_dim: f64,
        /// Width of a value head.
        v_head_dim: f64,
        /// Sliding window, tokens.
        window: Option<u32>,
    },
    /// Multi-head latent attention.
    Mla {
        /// Fused compression of queries and KV, replicated on every rank.
        down: Linear,
        /// Query expansion, by heads.
        q_up: Linear,
        /// KV expansion, by heads; used in prefill, absorbed into the query and output in decode.
        kv_up: Linear,
        /// Output projection.
        out: Linear,
        /// Query heads of this rank.
        heads: f64,
        /// The model's dimensions.
        dims: parplan_profiles::Mla,
    },
    /// Gated-delta linear attention.
    GatedDelta {
        /// Input projections.
        input: Linear,
        /// Output projection.
        out: Linear,
        /// Key heads of this rank.
        k_heads: f64,
        /// Value heads of this rank.
        v_heads: f64,
        /// The model's dimensions.
        dims: parplan_profiles::GatedDelta,
    },
    /// Mamba-2.
    Mamba2 {
        /// Input projection.
        input: Linear,
        /// Output projection.
        out: Linear,
        /// Heads of this rank.
        heads: f64,
        /// The model's dimensions.
        dims: parplan_profiles::Mamba2,
    },
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
    Moe {
        /// Router, replicated.
        router: Linear,
        /// The model's dimensions.
        dims: MoeFfn,
        /// Routed experts that this rank holds.
        experts_local: f64,
        /// Hidden width of a routed expert on this rank.
        intermediate: f64,
        /// Width at which experts read and write (the residual stream, or a latent projection of it).
        width: f64,
        /// Storage format of the routed experts.
        dtype: Dtype,
        /// Shared expert: gate/up and down, when there is one.
        shared: Option<(Linear, Linear)>,
        /// Latent projections in and out (Nemotron-3), replicated.
        latent: Option<(Linear, Linear)>,
    },
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
    /// Layers of one stage that have experts.
    pub moe_layers: f64,
    /// Weight bytes of this rank (the first stage's share, embeddings included).
    pub weight_bytes: f64,
    /// Weight bytes of the MTP layers, held only when speculation uses them.
    pub mtp_bytes: f64,
}

fn mixer(attention: &Attention, hidden: f64, dtype: Dtype, layout: &Layout) -> Mixer {
    let tp = f64::from(layout.attention_tp());
    match attention {
        Attention::Gqa(a) => {
            let q_heads = f64::from(a.q_heads) / tp;
            // Weights are split over the whole attention-TP group whatever DCP does to the cache.
            let kv_split = kv_heads_per_rank(a.kv_heads, &Layout { dcp: 1, ..*layout });
            let q = q_heads * f64::from(a.head_dim) * if a.output_gate { 2.0 } else { 1.0 };
            let kv = kv_split * f64::from(a.head_dim + a.v_head_dim);
            Mixer::Gqa {
                qkv: Linear::new(q + kv, hidden, dtype),
                out: Linear::new(hidden, q_heads * f64::from(a.v_head_dim), dtype),
                q_heads,
                kv_heads: kv_heads_per_rank(a.kv_heads, layout),
                head_dim: f64::from(a.head_dim),
                v_head_dim: f64::from(a.v_head_dim),
                window: a.window,
            }
        }
        Attention::Mla(a) => {
            let heads = f64::from(a.q_heads) / tp;
            let latent = f64::from(a.kv_lora_rank + a.qk_rope_head_dim);
            let qk = f64::from(a.qk_nope_head_dim + a.qk_rope_head_dim);
            let rank = f64::from(a.q_lora_rank);
            let (down_n, q_up_k) = if a.q_lora_rank > 0 {
                (rank + latent, rank)
            } else {
                (latent, hidden)
            };
            Mixer::Mla {
                down: Linear::new(down_n, hidden, dtype),
                q_up: Linear::new(heads * qk, q_up_k, dtype),
                kv_up: Linear::new(
                    heads * f64::from(a.qk_nope_head_dim + a.v_head_dim),
                    f64::from(a.kv_lora_rank),
                    dtype,
                ),
                out: Linear::new(hidden, heads * f64::from(a.v_head_dim), dtype),
                heads,
                dims: *a,
            }
        }
        Attention::GatedDelta(a) => {
            let k_heads = f64::from(a.k_heads) / tp;
            let v_heads = f64::from(a.v_heads) / tp;
            let keys = k_heads * f64::from(a.k_head_dim);
            let values = v_heads * f64::from(a.v_head_dim);
            Mixer::GatedDelta {
                // Q, K, V, the output gate Z, and two scalars a value head (decay and beta).
                input: Linear::new(2.0 * keys + 2.0 * values + 2.0 * v_heads, hidden, dtype),
                out: Linear::new(hidden, values, dtype),
                k_heads,
                v_heads,
                dims: *a,
            }
        }
        Attention::Mamba2(a) => {
            let heads = f64::from(a.heads) / tp;
            let inner = heads * f64::from(a.head_dim);
            let groups = (f64::from(a.groups) / tp).max(1.0);
            Mixer::Mamba2 {
                input: Linear::new(
                    2.0 * inner + 2.0 * groups * f64::from(a.state_size) + heads,
                    hidden,
                    dtype,
                ),
                out: Linear::new(hidden, inner, dtype),
                heads,
                dims: *a,
            }
        }
    }
}

fn dense(ffn: &DenseFfn, hidden: f64, dtype: Dtype, ranks: f64) -> (Linear, Linear) {
    let width = f64::from(ffn.intermediate) / ranks;
    let columns = if ffn.gated { 2.0 * width } else { width };
    (
        Linear::new(columns, hidden, dtype),
        Linear::new(hidden, width, dtype),
    )
}

fn block(ffn: &Ffn, model: &ModelProfile, layout: &Layout, shared_ranks: f64) -> Block {
    let hidden = f64::from(model.hidden_size);
    match ffn {
        Ffn::Dense(d) => {
            let (up, down) = dense(d, hidden, model.weights.dense_ffn, f64::from(layout.tp));
            Block::Dense { up, down }
        }
        Ffn::Moe(m) => {
            let width = if m.latent > 0 {
                f64::from(m.latent)
            } else {
                hidden
            };
            let shared = (m.shared_intermediate > 0).then(|| {
                let shape = DenseFfn {
                    intermediate: m.shared_intermediate,
                    gated: m.gated,
                };
                dense(&shape, hidden, model.weights.shared_experts, shared_ranks)
            });
            let latent = (m.latent > 0).then(|| {
                (
                    Linear::new(width, hidden, model.weights.dense_ffn),
                    Linear::new(hidden, width, model.weights.dense_ffn),
                )
            });
            Block::Moe {
                router: Linear::new(f64::from(m.experts), hidden, Dtype::Bf16),
                dims: *m,
                experts_local: f64::from(m.experts) / f64::from(layout.ep.max(1)),
                intermediate: f64::from(m.intermediate) / f64::from(layout.moe_tp().max(1)),
                width,
                dtype: model.weights.experts,
                shared,
                latent,
            }
        }
    }
}

fn mixer_bytes(mixer: &Mixer) -> f64 {
    match mixer {
        Mixer::None => 0.0,
        Mixer::Gqa { qkv, out, .. } => qkv.bytes() + out.bytes(),
        Mixer::Mla {
            down,
            q_up,
            kv_up,
            out,
            dims,
            ..
        } => {
            let index = dims.indexer.filter(|i| i.owned).map_or(0.0, |i| {
                // wq_b from the query rank (replicated), wk and the head weights from the stream.
                let heads = f64::from(i.heads);
                let width = f64::from(i.head_dim);
                (f64::from(dims.q_lora_rank) * heads * width + down.k * width) * down.dtype.bytes()
                    + down.k * heads * 2.0
            });
            down.bytes() + q_up.bytes() + kv_up.bytes() + out.bytes() + index
        }
        Mixer::GatedDelta { input, out, .. } | Mixer::Mamba2 { input, out, .. } => {
            input.bytes() + out.bytes()
        }
    }
}

fn block_bytes(block: &Block) -> f64 {
    match block {
        Block::None => 0.0,
        Block::Dense { up, down } => up.bytes() + down.bytes(),
        Block::Moe {
            router,
            dims,
            experts_local,
            intermediate,
            width,
            dtype,
            shared,
            latent,
        } => {
            let matrices = if dims.gated { 3.0 } else { 2.0 };
            let pair = |p: &Option<(Linear, Linear)>| p.map_or(0.0, |(a, b)| a.bytes() + b.bytes());
            router.bytes()
                + experts_local * matrices * intermediate * width * dtype.bytes()
                + pair(shared)
                + pair(latent)
        }
    }
}

impl ShardGroup {
    /// Weight bytes of one such layer on this rank.
    pub fn layer_bytes(&self) -> f64 {
        mixer_bytes(&self.mixer) + block_bytes(&self.block)
    }
}

impl Shard {
    /// Resolves the shapes of `model` on one rank of `layout`.
    ///
    /// `shared_replicated` says that the engine keeps the shared experts whole on every rank
    /// (as with an expert all-to-all) instead of splitting them over the TP group.
    pub fn new(model: &ModelProfile, layout: &Layout, shared_replicated: bool) -> Shard {
        let hidden = f64::from(model.hidden_size);
        let stages = f64::from(layout.pp.max(1));
        let shared_ranks = if shared_replicated {
            1.0
        } else {
            f64::from(layout.tp)
        };
        let shard = |group: &parplan_profiles::LayerGroup, layers: f64| ShardGroup {
            layers,
            mixer: group.attention.as_ref().map_or(Mixer::None, |a| {
                mixer(a, hidden, model.weights.attention, layout)
            }),
            block: group
                .ffn
                .as_ref()
                .map_or(Block::None, |f| block(f, model, layout, shared_ranks)),
        };
        let groups: Vec<ShardGroup> = model
            .layers
            .iter()
            .map(|g| shard(g, f64::from(g.count) / stages))
            .collect();
        let mtp = model.mtp_layer.as_ref().map(|g| shard(g, 1.0));
        let vocab = f64::from(model.vocab_size) / f64::from(layout.tp);
        let lm_head = Linear::new(vocab, hidden, model.weights.embedding);
        let layers = groups.iter().map(|g| g.layers).sum();
        let moe_layers = groups
            .iter()
            .filter(|g| matches!(g.block, Block::Moe { .. }))
            .map(|g| g.layers)
            .sum();
        // Two norm vectors a layer; the embedding lives on the first stage and the output
        // projection on the last: with one stage both are here, with more the larger share is one.
        let tables = if stages > 1.0 || model.tied_embeddings {
            1.0
        } else {
            2.0
        };
        let weight_bytes = groups
            .iter()
            .map(|g| g.layers * (g.layer_bytes() + 2.0 * hidden * 2.0))
            .sum::<f64>()
            + tables * lm_head.bytes();
        // An MTP layer also joins the embedding and the hidden state through one 2h × h product.
        let mtp_bytes = mtp.as_ref().map_or(0.0, |g| {
            f64::from(model.mtp_layers) * (g.layer_bytes() + 2.0 * hidden * hidden * 2.0)
        });
        Shard {
            groups,
            mtp,
            hidden,
            lm_head,
            layers,
            moe_layers,
            weight_bytes,
            mtp_bytes,
        }
    }
}
