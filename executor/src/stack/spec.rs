//! What a stack is: plain data, fully resolved by whoever asks for it.

use serde::{Deserialize, Serialize};

use crate::attention::{Gather, Merge};
use crate::gather::Mode;
use crate::{Error, Result};

/// Ranks of one stage and how they are divided; attention TP is `tp / attn_dp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackLayout {
    /// Ranks in all.
    pub tp: usize,
    /// Attention DP ranks; attention TP fastest.
    pub attn_dp: usize,
    /// Ranks that share a request's KV cache, consecutive ones of an attention-TP group.
    pub dcp: usize,
    /// Ranks that hold different experts; `tp / ep` ranks split one expert.
    pub ep: usize,
}

impl StackLayout {
    /// One rank.
    pub const ONE: StackLayout = StackLayout {
        tp: 1,
        attn_dp: 1,
        dcp: 1,
        ep: 1,
    };

    /// Ranks that split the heads of one request.
    #[must_use]
    pub fn attn_tp(&self) -> usize {
        self.tp / self.attn_dp.max(1)
    }

    /// Ranks that split one expert.
    #[must_use]
    pub fn moe_tp(&self) -> usize {
        self.tp / self.ep.max(1)
    }

    /// Whether its sizes divide each other; `what` names the layout where they do not.
    ///
    /// # Errors
    /// [`Error::Unusable`] with the sizes that do not.
    pub fn check(&self, what: &str) -> Result<()> {
        let divides = |part: usize, whole: usize| part > 0 && whole.is_multiple_of(part);
        let why = if self.tp == 0 {
            "tp is 0, it must be at least 1".to_owned()
        } else if !divides(self.attn_dp, self.tp) {
            format!("attn-dp {} does not divide tp {}", self.attn_dp, self.tp)
        } else if !divides(self.dcp, self.attn_tp()) {
            format!(
                "dcp {} does not divide attention tp {} (tp {} / attn-dp {})",
                self.dcp,
                self.attn_tp(),
                self.tp,
                self.attn_dp
            )
        } else if !divides(self.ep, self.tp) {
            format!("ep {} does not divide tp {}", self.ep, self.tp)
        } else {
            return Ok(());
        };
        Err(Error::Unusable(format!("{what}: {why}")))
    }
}

impl std::fmt::Display for StackLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "tp={},attn-dp={},dcp={},ep={}",
            self.tp, self.attn_dp, self.dcp, self.ep
        )
    }
}

/// How weights, or cached keys and values, are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// bfloat16.
    Bf16,
    /// fp8 e4m3 with one scale a tensor.
    Fp8,
}

impl Format {
    /// Bytes of a value.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Format::Bf16 => 2,
            Format::Fp8 => 1,
        }
    }
}

/// Token mixer of a layer; sizes of the whole model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MixerSpec {
    /// Grouped-query attention.
    Gqa {
        /// Query heads.
        q_heads: usize,
        /// KV heads.
        kv_heads: usize,
        /// Width of every head.
        head_dim: usize,
        /// RMS norm on each head of Q and K.
        qk_norm: bool,
    },
    /// Multi-head latent attention, absorbed in both phases.
    Mla {
        /// Query heads.
        heads: usize,
        /// Rank of the query compression; 0 when queries are projected directly.
        q_lora: usize,
        /// Rank of the KV compression.
        kv_lora: usize,
        /// Width of a head without position.
        nope: usize,
        /// Width of the rotary part.
        rope: usize,
        /// Width of a value head.
        v_dim: usize,
    },
}

/// Feed-forward block of a layer; sizes of the whole model. All are gated (SwiGLU).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BlockSpec {
    /// One block for every token.
    Dense {
        /// Width of the hidden layer.
        intermediate: usize,
    },
    /// Router and experts.
    Moe {
        /// Routed experts.
        experts: usize,
        /// Experts that a token visits.
        top_k: usize,
        /// Width of an expert's hidden layer.
        intermediate: usize,
        /// Width of the shared experts' hidden layer together; 0 for none.
        shared_intermediate: usize,
    },
}

/// One layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// Token mixer.
    pub mixer: MixerSpec,
    /// Feed-forward block.
    pub block: BlockSpec,
    /// Storage of the attention projections.
    pub attention_format: Format,
    /// Storage of dense blocks and shared experts.
    pub dense_format: Format,
    /// Storage of routed experts.
    pub expert_format: Format,
}

/// How routed experts get their tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertPath {
    /// Every rank has all rows, and the partial sums of the ranks are added.
    Gathered,
    /// Rows go to the ranks of their experts and come back, by all-to-all; needs `ep = tp`.
    AllToAll,
}

/// How a DCP group merges its partial attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DcpMerge {
    /// All-gather of the LSE, correction, reduce-scatter of the outputs.
    ReduceScatter,
    /// One all-to-all of outputs and LSE, merged where they arrive.
    AllToAll,
    /// Queries and outputs over memory that the ranks map from each other, by one kernel
    /// each. What does not fit it, and ranks without it, take [`DcpMerge::AllToAll`].
    Peer,
}

impl DcpMerge {
    /// What is run before the attention and after it.
    #[must_use]
    pub fn ways(self) -> (Gather, Merge) {
        match self {
            DcpMerge::ReduceScatter => (Gather::Communicator, Merge::AgRs),
            DcpMerge::AllToAll => (Gather::Communicator, Merge::AllToAll),
            DcpMerge::Peer => (Gather::Peer, Merge::Peer),
        }
    }
}

/// A stack of decoder layers, and the ranks that run it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StackSpec {
    /// Name of the model that the shapes come from.
    pub model: String,
    /// Width of the residual stream, a multiple of 8.
    pub hidden: usize,
    /// The layers.
    pub layers: Vec<LayerSpec>,
    /// Ranks at hand.
    pub here: StackLayout,
    /// The layout whose shapes each rank runs; equal to `here` unless the ranks at hand
    /// stand for a part of a larger one.
    pub shard_of: StackLayout,
    /// Storage of the KV cache.
    pub kv: Format,
    /// Tokens of a page.
    pub page_size: usize,
    /// Consecutive tokens that one DCP rank holds.
    pub dcp_interleave: usize,
    /// How DCP merges.
    pub dcp_merge: DcpMerge,
    /// How routed experts get their tokens.
    pub experts: ExpertPath,
    /// Dense blocks are split over the attention-TP group only, each DP rank with its own.
    pub dense_on_attn_tp: bool,
    /// Routed rows an expert on average from which on the wide tiles of the grouped
    /// product are used; the narrow ones below.
    pub wide_tiles_from: usize,
    /// Added to mean squares in norms.
    pub norm_eps: f32,
    /// Base of the rotary embedding.
    pub rope_theta: f32,
    /// Names the synthetic weights and inputs.
    pub seed: u64,
}

/// Phase of a step, as the planner counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Every request brings its newest token (and drafted ones).
    Decode,
    /// Every request brings a chunk of its prompt.
    Prefill,
}

/// One step to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepSpec {
    /// Requests of each attention-DP rank at hand.
    pub requests: Vec<usize>,
    /// New tokens of each request.
    pub q_tokens: usize,
    /// Tokens in the cache before them.
    pub context: usize,
    /// Phase.
    pub phase: Phase,
    /// How rows are gathered where the step runs eagerly; graphs always pad to the longest.
    pub mode: Mode,
}

impl StepSpec {
    /// Rows of each DP rank.
    #[must_use]
    pub fn rows(&self) -> Vec<usize> {
        self.requests.iter().map(|r| r * self.q_tokens).collect()
    }
}

/// A collective that ran over fewer ranks than in the layout whose shapes were run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Narrowed {
    /// The group: "tp", "attention tp", "attention dp", "dcp" or "ep".
    pub group: String,
    /// Its ranks in the layout whose shapes were run.
    pub real_ranks: usize,
    /// Its ranks here.
    pub ranks: usize,
}

/// `size` over `ranks`, in whole `unit`s.
fn splits(what: &str, size: usize, ranks: usize, unit: usize) -> Result<()> {
    if size > 0 && size.is_multiple_of(ranks * unit) {
        return Ok(());
    }
    let unit = if unit > 1 {
        format!(" into multiples of {unit}")
    } else {
        String::new()
    };
    Err(Error::Unusable(format!(
        "{size} {what} do not divide over {ranks} ranks{unit}"
    )))
}

impl StackSpec {
    /// Checks that the layouts fit each other and the model.
    ///
    /// # Errors
    /// [`Error::Unusable`] naming what does not fit and what would.
    pub fn check(&self) -> Result<()> {
        let (here, real) = (&self.here, &self.shard_of);
        here.check("the ranks at hand")?;
        real.check("the layout whose shapes are run")?;
        let narrower = [
            ("attention tp", here.attn_tp(), real.attn_tp()),
            ("attn-dp", here.attn_dp, real.attn_dp),
            ("ep", here.ep, real.ep),
        ];
        for (what, here, real) in narrower {
            if here > real || !real.is_multiple_of(here) {
                return Err(Error::Unusable(format!(
                    "{what} {here} at hand is no part of {what} {real}: it must divide it"
                )));
            }
        }
        if here.dcp != real.dcp && here.dcp != 1 {
            return Err(Error::Unusable(format!(
                "dcp {} at hand of dcp {}: a DCP group runs whole, or as one rank of it (dcp 1)",
                here.dcp, real.dcp
            )));
        }
        if self.experts == ExpertPath::AllToAll && (real.ep != real.tp || here.ep != here.tp) {
            return Err(Error::Unusable(format!(
                "an expert all-to-all needs ep equal to tp, it is ep {} of tp {} (at hand ep {} of tp {})",
                real.ep, real.tp, here.ep, here.tp
            )));
        }
        if self.hidden == 0 || !self.hidden.is_multiple_of(8) {
            return Err(Error::Unusable(format!(
                "hidden size {}: it must be a multiple of 8",
                self.hidden
            )));
        }
        if self.page_size == 0 || self.dcp_interleave == 0 || self.layers.is_empty() {
            return Err(Error::Unusable(format!(
                "page size {}, DCP interleave {} and {} layers: all must be at least 1",
                self.page_size,
                self.dcp_interleave,
                self.layers.len()
            )));
        }
        self.layers.iter().try_for_each(|layer| {
            self.check_mixer(&layer.mixer)?;
            self.check_block(&layer.block)
        })
    }

    fn check_mixer(&self, mixer: &MixerSpec) -> Result<()> {
        let (attn_tp, dcp) = (self.shard_of.attn_tp(), self.shard_of.dcp);
        match *mixer {
            MixerSpec::Gqa {
                q_heads,
                kv_heads,
                head_dim,
                ..
            } => {
                splits("query heads", q_heads, attn_tp, 1)?;
                if kv_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
                    return Err(Error::Unusable(format!(
                        "{q_heads} query heads do not divide over {kv_heads} KV heads"
                    )));
                }
                let groups = attn_tp / dcp;
                if !kv_heads.is_multiple_of(groups) && !groups.is_multiple_of(kv_heads) {
                    return Err(Error::Unusable(format!(
                        "{kv_heads} KV heads and {groups} groups of ranks: one must divide the other"
                    )));
                }
                splits("columns of a head", head_dim, 1, 8)?;
            }
            MixerSpec::Mla {
                heads,
                q_lora,
                kv_lora,
                nope,
                rope,
                v_dim,
            } => {
                splits("query heads", heads, attn_tp, 1)?;
                for (what, size) in [
                    ("columns of the query compression", q_lora.max(8)),
                    ("columns of the KV compression", kv_lora),
                    ("columns without position", nope),
                    ("rotary columns", rope),
                    ("columns of a value head", v_dim),
                ] {
                    splits(what, size, 1, 8)?;
                }
            }
        }
        Ok(())
    }

    fn check_block(&self, block: &BlockSpec) -> Result<()> {
        match *block {
            BlockSpec::Dense { intermediate } => {
                splits(
                    "columns of a dense block",
                    intermediate,
                    self.dense_ranks(),
                    8,
                )?;
                if self.experts == ExpertPath::AllToAll && !self.dense_on_attn_tp {
                    return Err(Error::Unusable(
                        "with an expert all-to-all, dense blocks must stay on the attention-TP group".into(),
                    ));
                }
                Ok(())
            }
            BlockSpec::Moe {
                experts,
                top_k,
                intermediate,
                shared_intermediate,
            } => {
                splits("experts", experts, self.shard_of.ep, 1)?;
                splits(
                    "columns of an expert",
                    intermediate,
                    self.shard_of.moe_tp(),
                    8,
                )?;
                if shared_intermediate > 0 {
                    let ranks = self.shared_ranks();
                    splits("columns of shared experts", shared_intermediate, ranks, 8)?;
                }
                if top_k == 0 || top_k > experts || top_k > 32 || experts > 1024 {
                    return Err(Error::Unusable(format!(
                        "{top_k} of {experts} experts: at least 1 and at most all, 32 of at most 1024"
                    )));
                }
                Ok(())
            }
        }
    }

    /// Ranks of the real layout that split a dense block.
    #[must_use]
    pub fn dense_ranks(&self) -> usize {
        if self.dense_on_attn_tp {
            self.shard_of.attn_tp()
        } else {
            self.shard_of.tp
        }
    }

    /// Ranks of the real layout that split the shared experts; whole with an all-to-all,
    /// where every rank runs them on its own rows.
    #[must_use]
    pub fn shared_ranks(&self) -> usize {
        match self.experts {
            ExpertPath::Gathered => self.shard_of.tp,
            ExpertPath::AllToAll => 1,
        }
    }

    /// Groups with fewer ranks at hand than in the layout whose shapes are run.
    #[must_use]
    pub fn narrowed(&self) -> Vec<Narrowed> {
        let (here, real) = (&self.here, &self.shard_of);
        [
            ("tp", real.tp, here.tp),
            ("attention tp", real.attn_tp(), here.attn_tp()),
            ("attention dp", real.attn_dp, here.attn_dp),
            ("dcp", real.dcp, here.dcp),
            ("ep", real.ep, here.ep),
        ]
        .into_iter()
        .filter(|(_, real, here)| real != here)
        .map(|(group, real_ranks, ranks)| Narrowed {
            group: group.to_owned(),
            real_ranks,
            ranks,
        })
        .collect()
    }

    /// Whether each rank runs a share of a larger layout.
    #[must_use]
    pub fn is_shard(&self) -> bool {
        self.here != self.shard_of
    }
}
