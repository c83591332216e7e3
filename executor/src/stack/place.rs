//! Where a rank stands in the layout whose shapes it runs, and what it holds of a layer.

use super::spec::{BlockSpec, ExpertPath, MixerSpec, StackSpec};

/// A rank's numbers. Ranks at hand are the first ones of the layout whose shapes they
/// run: of every group the first members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Rank among those at hand.
    pub rank: usize,
    /// Attention-DP rank.
    pub dp: usize,
    /// Attention-TP rank.
    pub attn_tp: usize,
    /// Rank in the layout whose shapes are run.
    pub real: usize,
    /// Which share of a request's cache it holds, of `shard_of.dcp`.
    pub dcp: usize,
    /// Which group of query heads its DCP group has, of `attn_tp / dcp`.
    pub head_group: usize,
    /// Which experts it holds, of `shard_of.ep`.
    pub ep: usize,
    /// Which columns of an expert it holds, of `tp / ep`.
    pub moe_tp: usize,
}

impl Place {
    /// The place of `rank` among the ranks at hand.
    #[must_use]
    pub fn new(spec: &StackSpec, rank: usize) -> Self {
        let (here, real) = (&spec.here, &spec.shard_of);
        let (dp, attn_tp) = (rank / here.attn_tp(), rank % here.attn_tp());
        let real_rank = dp * real.attn_tp() + attn_tp;
        Place {
            rank,
            dp,
            attn_tp,
            real: real_rank,
            dcp: attn_tp % real.dcp,
            head_group: attn_tp / real.dcp,
            // Every all-to-all rank has experts of its own, in the order of the ranks at hand.
            ep: match spec.experts {
                ExpertPath::Gathered => real_rank / real.moe_tp(),
                ExpertPath::AllToAll => rank,
            },
            moe_tp: real_rank % real.moe_tp(),
        }
    }
}

/// A rank's part of a mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixerShape {
    /// Grouped-query attention.
    Gqa {
        /// Query heads of this rank.
        q_heads: usize,
        /// The first of them in the model.
        first_q: usize,
        /// Query heads of the model.
        all_q: usize,
        /// KV heads in this rank's cache.
        kv_heads: usize,
        /// The first of them in the model.
        first_kv: usize,
        /// Width of a head.
        head_dim: usize,
        /// Norms on Q and K.
        qk_norm: bool,
    },
    /// Multi-head latent attention.
    Mla {
        /// Query heads of this rank.
        heads: usize,
        /// The first of them in the model.
        first: usize,
        /// Query heads of the model.
        all: usize,
        /// As in the specification.
        q_lora: usize,
        /// As in the specification.
        kv_lora: usize,
        /// As in the specification.
        nope: usize,
        /// As in the specification.
        rope: usize,
        /// As in the specification.
        v_dim: usize,
    },
}

impl MixerShape {
    /// This rank's part.
    #[must_use]
    pub fn new(spec: &StackSpec, place: &Place, mixer: &MixerSpec) -> Self {
        let real = &spec.shard_of;
        match *mixer {
            MixerSpec::Gqa {
                q_heads,
                kv_heads,
                head_dim,
                qk_norm,
            } => {
                let q = q_heads / real.attn_tp();
                let groups = real.attn_tp() / real.dcp;
                // Fewer KV heads than groups: neighbours hold copies of one head.
                let kv = (kv_heads / groups).max(1);
                MixerShape::Gqa {
                    q_heads: q,
                    first_q: place.attn_tp * q,
                    all_q: q_heads,
                    kv_heads: kv,
                    first_kv: place.head_group * kv_heads / groups,
                    head_dim,
                    qk_norm,
                }
            }
            MixerSpec::Mla {
                heads,
                q_lora,
                kv_lora,
                nope,
                rope,
                v_dim,
            } => {
                let own = heads / real.attn_tp();
                MixerShape::Mla {
                    heads: own,
                    first: place.attn_tp * own,
                    all: heads,
                    q_lora,
                    kv_lora,
                    nope,
                    rope,
                    v_dim,
                }
            }
        }
    }

    /// Query heads of this rank.
    #[must_use]
    pub fn heads(&self) -> usize {
        match self {
            MixerShape::Gqa { q_heads, .. } => *q_heads,
            MixerShape::Mla { heads, .. } => *heads,
        }
    }

    /// Width of a query that meets the cache.
    #[must_use]
    pub fn qk_dim(&self) -> usize {
        match self {
            MixerShape::Gqa { head_dim, .. } => *head_dim,
            MixerShape::Mla { kv_lora, rope, .. } => kv_lora + rope,
        }
    }

    /// Width of an attention output.
    #[must_use]
    pub fn out_dim(&self) -> usize {
        match self {
            MixerShape::Gqa { head_dim, .. } => *head_dim,
            MixerShape::Mla { kv_lora, .. } => *kv_lora,
        }
    }

    /// KV heads of the cache.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        match self {
            MixerShape::Gqa { kv_heads, .. } => *kv_heads,
            MixerShape::Mla { .. } => 1,
        }
    }

    /// Columns that a token has in the first projection.
    #[must_use]
    pub fn down_columns(&self) -> usize {
        match self {
            MixerShape::Gqa {
                q_heads,
                kv_heads,
                head_dim,
                ..
            } => (q_heads + 2 * kv_heads) * head_dim,
            MixerShape::Mla {
                q_lora,
                kv_lora,
                rope,
                ..
            } => q_lora + kv_lora + rope,
        }
    }

    /// Columns that go into the output projection.
    #[must_use]
    pub fn value_columns(&self) -> usize {
        match self {
            MixerShape::Gqa {
                q_heads, head_dim, ..
            } => q_heads * head_dim,
            MixerShape::Mla { heads, v_dim, .. } => heads * v_dim,
        }
    }

    /// Width of the rotary part.
    #[must_use]
    pub fn rope_dim(&self) -> usize {
        match self {
            MixerShape::Gqa { head_dim, .. } => *head_dim,
            MixerShape::Mla { rope, .. } => *rope,
        }
    }
}

/// A rank's part of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockShape {
    /// Dense.
    Dense {
        /// Columns of the hidden layer on this rank.
        columns: usize,
        /// The first of them in the model.
        first: usize,
        /// Columns in the model.
        all: usize,
    },
    /// Experts.
    Moe {
        /// Experts in all.
        experts: usize,
        /// Experts of this rank.
        local: usize,
        /// The first of them.
        first_expert: usize,
        /// Experts a token visits.
        top_k: usize,
        /// Columns of an expert's hidden layer on this rank.
        columns: usize,
        /// The first of them.
        first_column: usize,
        /// Columns of an expert's hidden layer in the model.
        all_columns: usize,
        /// Columns of the shared experts on this rank; 0 for none.
        shared: usize,
        /// The first of them.
        first_shared: usize,
        /// Columns of the shared experts in the model.
        all_shared: usize,
    },
}

impl BlockShape {
    /// This rank's part.
    #[must_use]
    pub fn new(spec: &StackSpec, place: &Place, block: &BlockSpec) -> Self {
        let real = &spec.shard_of;
        match *block {
            BlockSpec::Dense { intermediate } => {
                let ranks = spec.dense_ranks();
                let columns = intermediate / ranks;
                BlockShape::Dense {
                    columns,
                    first: place.real % ranks * columns,
                    all: intermediate,
                }
            }
            BlockSpec::Moe {
                experts,
                top_k,
                intermediate,
                shared_intermediate,
            } => {
                let local = experts / real.ep;
                let columns = intermediate / real.moe_tp();
                let shared_ranks = spec.shared_ranks();
                let shared = shared_intermediate / shared_ranks;
                BlockShape::Moe {
                    experts,
                    local,
                    first_expert: place.ep * local,
                    top_k,
                    columns,
                    first_column: place.moe_tp * columns,
                    all_columns: intermediate,
                    shared,
                    first_shared: place.real % shared_ranks * shared,
                    all_shared: shared_intermediate,
                }
            }
        }
    }
}
