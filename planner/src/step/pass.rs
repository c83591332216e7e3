//! One forward pass of one rank: which operations run, and how long they take together.
//!
//! The fullest rank decides: all ranks of a stage meet in every layer's collectives, so a pass is
//! as long as its slowest rank. Shapes are those of [`crate::shard`]; each operation is priced by
//! [`crate::cost`].

use super::tally::{Op, Tally};
use crate::cost::{
    Collective, DecodeGqa, DecodeMla, ExpertExchange, ExpertMode, GatedDeltaStep, Gemm,
    Implementation, Launch, Mamba2Step, MlaBmm, Moe, OpCosts, PrefillGqa, PrefillMla, Registration,
    Span, SparseDecode, SparsePrefill, Transfer,
};
use crate::shard::{Block, Linear, Mixer, Shard, ShardGroup};
use crate::volume::{self, Call, DcpMerge, DcpShape, Exchange, Group, Kind, Purpose, Rows};
use parplan_profiles::{Compressed, Dtype, Mla};

/// Bytes of an activation element: hidden states are bf16 in every engine modelled.
pub const ACTIVATION_BYTES: f64 = 2.0;

/// What a pass computes, on the fullest attention-DP rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pass {
    /// Requests in decode.
    pub decode_requests: f64,
    /// Query tokens of each of them (above 1 when drafts are verified).
    pub query_tokens: f64,
    /// Tokens in the cache of each of them.
    pub context: f64,
    /// New prompt tokens.
    pub prefill_tokens: f64,
    /// Prompts that those tokens belong to.
    pub prefill_prompts: f64,
    /// Tokens in the cache before them, a prompt.
    pub prefill_before: f64,
    /// Rows of the fullest rank, padded to its CUDA graph and aligned to attention TP.
    pub rows_max: f64,
    /// Rows of all ranks of the stage.
    pub rows_sum: f64,
    /// Replayed from a CUDA graph.
    pub graph: bool,
    /// How rows reach the feed-forward blocks.
    pub exchange: Exchange,
}

/// Which all-reduce runs over a group: the engine's own up to a size, NCCL above it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReducePath {
    /// Largest buffer that the engine's own kernel takes in a graph, bytes.
    pub custom_graph_bytes: f64,
    /// The same, launched eagerly.
    pub custom_eager_bytes: f64,
    /// NCCL's buffers are registered symmetric windows.
    pub symmetric: bool,
}

/// What stays the same over the passes of one configuration.
#[derive(Debug, Clone, Copy)]
pub struct Fixed<'a> {
    /// The model on one rank.
    pub shard: &'a Shard,
    /// Prices of operations.
    pub costs: &'a OpCosts<'a>,
    /// Attention-DP ranks.
    pub dp: u32,
    /// Attention-TP ranks.
    pub attention_tp: u32,
    /// Expert-parallel ranks.
    pub ep: u32,
    /// DCP ranks.
    pub dcp: u32,
    /// How DCP merges MLA layers, and with how many bytes a value.
    pub dcp_mla: (DcpMerge, f64),
    /// The same for grouped-query layers.
    pub dcp_gqa: (DcpMerge, f64),
    /// Queries are replicated over a DCP group.
    pub dcp_replicated_q: bool,
    /// Dense blocks are split over the attention-TP group only, each DP rank with its own copy.
    pub dense_on_attention_tp: bool,
    /// The output projection is split over the attention-TP group only.
    pub head_on_attention_tp: bool,
    /// Ranks of a stage that share an NVLink domain.
    pub ranks_per_domain: u32,
    /// 2 where pipeline stages share an NVLink domain, 1 where the network joins them.
    pub stage_neighbours: u32,
    /// KV cache format.
    pub kv_dtype: Dtype,
    /// All-reduce over the whole stage.
    pub reduce_tp: ReducePath,
    /// All-reduce over an attention-TP group.
    pub reduce_attention_tp: ReducePath,
    /// Gathers and scatters run on symmetric windows.
    pub symmetric_gathers: bool,
    /// Expert all-to-all uses its low-latency kernels in decode.
    pub low_latency_experts: bool,
    /// Share of the tokens that choose experts independently ([`Moe::spread`]).
    pub expert_spread: f64,
    /// Collects rooflines too.
    pub explain: bool,
}

impl Fixed<'_> {
    /// Sends `bytes` from one pipeline stage to the next, microseconds: half of a two-rank
    /// all-to-all moves them one way.
    pub fn hand_over(&self, bytes: f64) -> f64 {
        self.costs.collective(&Transfer {
            kind: Collective::AllToAll,
            bytes: 2.0 * bytes,
            span: Span {
                ranks: 2.0,
                ranks_per_domain: f64::from(self.stage_neighbours).min(2.0),
            },
            implementation: Implementation::Nccl,
            launch: Launch::Eager,
            registration: Registration::None,
        })
    }
}

struct Meter<'a, 'b> {
    fixed: &'a Fixed<'b>,
    tally: &'a mut Tally,
    launch: Launch,
}

impl Meter<'_, '_> {
    fn costs(&self) -> &OpCosts<'_> {
        self.fixed.costs
    }

    #[inline]
    fn add(&mut self, op: Op, layers: f64, us: f64, roofline: impl FnOnce(&OpCosts<'_>) -> f64) {
        self.tally.add(op, layers, us);
        if self.fixed.explain {
            self.tally
                .add_roofline(op, layers, roofline(self.fixed.costs));
        }
    }

    fn linear(&mut self, op: Op, layers: f64, rows: f64, weight: &Linear) {
        if rows <= 0.0 || weight.n <= 0.0 || weight.k <= 0.0 {
            return;
        }
        let gemm = Gemm {
            m: rows,
            n: weight.n,
            k: weight.k,
            weights: weight.dtype,
        };
        self.add(op, layers, self.costs().gemm(&gemm), |c| {
            c.gemm_roofline(&gemm)
        });
    }

    fn elementwise(&mut self, layers: f64, bytes: f64, kernels: f64) {
        let us = self.costs().elementwise(bytes, kernels);
        self.add(Op::Elementwise, layers, us, |c| {
            c.elementwise_roofline(bytes)
        });
    }

    fn call(&mut self, op: Op, layers: f64, call: &Call) {
        let f = self.fixed;
        let kind = match call.kind {
            Kind::AllReduce => Collective::AllReduce,
            Kind::AllGather => Collective::AllGather,
            Kind::ReduceScatter => Collective::ReduceScatter,
            Kind::AllToAll | Kind::ExpertDispatch | Kind::ExpertCombine => Collective::AllToAll,
        };
        let path = match call.group {
            Group::AttentionTp => f.reduce_attention_tp,
            _ => f.reduce_tp,
        };
        let custom = match self.launch {
            Launch::Graph => path.custom_graph_bytes,
            Launch::Eager => path.custom_eager_bytes,
        };
        let reduces = kind == Collective::AllReduce;
        let symmetric = if reduces {
            path.symmetric
        } else {
            f.symmetric_gathers
        };
        // Ranks of a DP group sit attention-TP apart, so fewer of them share a domain.
        let stride = if call.group == Group::AttentionDp {
            f64::from(f.attention_tp)
        } else {
            1.0
        };
        let ranks = f64::from(call.ranks);
        let near = (f64::from(f.ranks_per_domain) / stride).max(1.0);
        let transfer = Transfer {
            kind,
            bytes: call.bytes,
            span: Span {
                ranks,
                ranks_per_domain: near.min(ranks),
            },
            implementation: if reduces && call.bytes <= custom {
                Implementation::Custom
            } else {
                Implementation::Nccl
            },
            launch: self.launch,
            registration: if symmetric {
                Registration::Symmetric
            } else {
                Registration::None
            },
        };
        self.add(op, layers, self.costs().collective(&transfer), |c| {
            c.collective_roofline(&transfer)
        });
    }

    /// Projections and attention of one group of layers; `rows` are this rank's.
    fn mixer(&mut self, group: &ShardGroup, pass: &Pass, hidden: f64) {
        let n = group.layers;
        let rows = pass.rows_max;
        match &group.mixer {
            Mixer::None => {}
            Mixer::Gqa {
                qkv,
                out,
                q_heads,
                kv_heads,
                head_dim,
                v_head_dim,
                window,
            } => {
                self.linear(Op::QkvProjection, n, rows, qkv);
                self.elementwise(n, rows * qkv.n * ACTIVATION_BYTES * 2.0, 2.0);
                let window = window.map_or(f64::INFINITY, f64::from);
                let dcp = f64::from(self.fixed.dcp);
                if pass.decode_requests > 0.0 {
                    let a = DecodeGqa {
                        requests: pass.decode_requests,
                        context: pass.context / dcp,
                        q_tokens: pass.query_tokens,
                        q_heads: q_heads * dcp,
                        kv_heads: *kv_heads,
                        head_dim: *head_dim,
                        v_head_dim: *v_head_dim,
                        kv: self.fixed.kv_dtype,
                        window,
                    };
                    let us = self.costs().decode_attention_gqa(&a);
                    self.add(Op::DecodeAttention, n, us, |c| {
                        c.decode_attention_gqa_roofline(&a)
                    });
                    let merge = self.fixed.dcp_gqa;
                    self.dcp(n, pass, *q_heads, *head_dim, *v_head_dim, merge);
                }
                if pass.prefill_tokens > 0.0 {
                    let a = PrefillGqa {
                        sequences: pass.prefill_prompts,
                        new_tokens: pass.prefill_tokens / pass.prefill_prompts,
                        prefix: pass.prefill_before,
                        q_heads: *q_heads,
                        // Prefill works on whole heads, gathered from the DCP group where it has one.
                        kv_heads: (kv_heads / dcp).max(1.0),
                        head_dim: *head_dim,
                        v_head_dim: *v_head_dim,
                        kv: self.fixed.kv_dtype,
                        window,
                    };
                    let us = self.costs().prefill_attention_gqa(&a);
                    self.add(Op::PrefillAttention, n, us, |c| {
                        c.prefill_attention_gqa_roofline(&a)
                    });
                }
                self.linear(Op::OutProjection, n, rows, out);
            }
            Mixer::Mla {
                down,
                q_up,
                kv_up,
                out,
                heads,
                dims,
            } => {
                self.linear(Op::QkvProjection, n, rows, down);
                self.linear(Op::QkvProjection, n, rows, q_up);
                self.elementwise(n, rows * (down.n + q_up.n) * ACTIVATION_BYTES * 2.0, 3.0);
                match &dims.indexer {
                    Some(_) => self.sparse(n, pass, *heads, dims),
                    None => self.latent(n, pass, *heads, dims, kv_up),
                }
                self.linear(Op::OutProjection, n, rows, out);
            }
            Mixer::GatedDelta {
                input,
                out,
                k_heads,
                v_heads,
                dims,
            } => {
                self.linear(Op::QkvProjection, n, rows, input);
                let step = |sequences, tokens| GatedDeltaStep {
                    sequences,
                    tokens,
                    k_heads: *k_heads,
                    v_heads: *v_heads,
                    k_head_dim: f64::from(dims.k_head_dim),
                    v_head_dim: f64::from(dims.v_head_dim),
                };
                if pass.decode_requests > 0.0 {
                    let a = step(pass.decode_requests, pass.query_tokens);
                    self.add(Op::DecodeAttention, n, self.costs().gated_delta(&a), |c| {
                        c.gated_delta_roofline(&a)
                    });
                }
                if pass.prefill_tokens > 0.0 {
                    let a = step(
                        pass.prefill_prompts,
                        pass.prefill_tokens / pass.prefill_prompts,
                    );
                    self.add(Op::PrefillAttention, n, self.costs().gated_delta(&a), |c| {
                        c.gated_delta_roofline(&a)
                    });
                }
                self.linear(Op::OutProjection, n, rows, out);
            }
            Mixer::Compressed {
                down,
                q_up,
                out,
                heads,
                dims,
            } => {
                self.linear(Op::QkvProjection, n, rows, down);
                self.linear(Op::QkvProjection, n, rows, q_up);
                self.elementwise(n, rows * (down.n + q_up.n) * ACTIVATION_BYTES * 2.0, 3.0);
                self.compressed(n, pass, *heads, dims);
                self.linear(Op::OutProjection, n, rows, &out.0);
                self.linear(Op::OutProjection, n, rows, &out.1);
            }
            Mixer::Mamba2 {
                input,
                out,
                heads,
                dims,
            } => {
                self.linear(Op::QkvProjection, n, rows, input);
                let step = |sequences, tokens| Mamba2Step {
                    sequences,
                    tokens,
                    heads: *heads,
                    head_dim: f64::from(dims.head_dim),
                    state_size: f64::from(dims.state_size),
                    groups: (f64::from(dims.groups) / f64::from(self.fixed.attention_tp)).max(1.0),
                };
                if pass.decode_requests > 0.0 {
                    let a = step(pass.decode_requests, pass.query_tokens);
                    self.add(Op::DecodeAttention, n, self.costs().mamba2(&a), |c| {
                        c.mamba2_roofline(&a)
                    });
                }
                if pass.prefill_tokens > 0.0 {
                    let a = step(
                        pass.prefill_prompts,
                        pass.prefill_tokens / pass.prefill_prompts,
                    );
                    self.add(Op::PrefillAttention, n, self.costs().mamba2(&a), |c| {
                        c.mamba2_roofline(&a)
                    });
                }
                self.linear(Op::OutProjection, n, rows, out);
            }
        }
        if !matches!(group.mixer, Mixer::None) {
            // Residual add and norm: two rows read, two written.
            self.elementwise(n, rows * hidden * ACTIVATION_BYTES * 4.0, 1.0);
        }
    }

    /// Dense MLA: absorbed in decode, expanded to heads in prefill.
    fn latent(&mut self, n: f64, pass: &Pass, heads: f64, dims: &Mla, kv_up: &Linear) {
        let dcp = f64::from(self.fixed.dcp);
        let (lora, rope) = (
            f64::from(dims.kv_lora_rank),
            f64::from(dims.qk_rope_head_dim),
        );
        if pass.decode_requests > 0.0 {
            let tokens = pass.decode_requests * pass.query_tokens;
            self.absorb(n, tokens, heads, dims);
            let a = DecodeMla {
                requests: pass.decode_requests,
                context: pass.context / dcp,
                q_tokens: pass.query_tokens,
                heads: heads * dcp,
                kv_lora_rank: lora,
                rope_dim: rope,
                kv: self.fixed.kv_dtype,
            };
            let us = self.costs().decode_attention_mla(&a);
            self.add(Op::DecodeAttention, n, us, |c| {
                c.decode_attention_mla_roofline(&a)
            });
            self.dcp(n, pass, heads, lora + rope, lora, self.fixed.dcp_mla);
        }
        if pass.prefill_tokens > 0.0 {
            let keys = pass.prefill_tokens + pass.prefill_before * pass.prefill_prompts;
            self.linear(Op::QkvProjection, n, keys, kv_up);
            let a = PrefillMla {
                sequences: pass.prefill_prompts,
                new_tokens: pass.prefill_tokens / pass.prefill_prompts,
                prefix: pass.prefill_before,
                heads,
                qk_head_dim: f64::from(dims.qk_nope_head_dim + dims.qk_rope_head_dim),
                v_head_dim: f64::from(dims.v_head_dim),
                kv: self.fixed.kv_dtype,
            };
            let us = self.costs().prefill_attention_mla(&a);
            self.add(Op::PrefillAttention, n, us, |c| {
                c.prefill_attention_mla_roofline(&a)
            });
        }
    }

    /// Sparse MLA (DSA): absorbed in both phases, over the tokens that the indexer picks.
    fn sparse(&mut self, n: f64, pass: &Pass, heads: f64, dims: &Mla) {
        let Some(index) = dims.indexer else { return };
        let dcp = f64::from(self.fixed.dcp);
        let (lora, rope) = (
            f64::from(dims.kv_lora_rank),
            f64::from(dims.qk_rope_head_dim),
        );
        let tokens = pass.decode_requests * pass.query_tokens + pass.prefill_tokens;
        self.absorb(n, tokens, heads, dims);
        if index.owned {
            let dtype = Dtype::Fp8Block;
            let wide = f64::from(index.heads) * f64::from(index.head_dim);
            let query = Linear {
                n: wide,
                k: f64::from(dims.q_lora_rank),
                dtype,
            };
            self.linear(Op::QkvProjection, n, tokens, &query);
            let key = Linear {
                n: f64::from(index.head_dim + index.heads),
                k: self.fixed.shard.hidden,
                dtype: Dtype::Bf16,
            };
            self.linear(Op::QkvProjection, n, tokens, &key);
        }
        if pass.decode_requests > 0.0 {
            let a = SparseDecode {
                requests: pass.decode_requests,
                context: pass.context,
                q_tokens: pass.query_tokens,
                heads: heads * dcp,
                kv_lora_rank: lora,
                rope_dim: rope,
                index_heads: f64::from(index.heads),
                index_dim: f64::from(index.head_dim),
                // The picked tokens lie evenly over the ranks of a DCP group.
                top_k: f64::from(index.top_k) / dcp,
                owns_index: index.owned,
                kv: self.fixed.kv_dtype,
            };
            let us = self.costs().decode_attention_dsa(&a);
            self.add(Op::DecodeAttention, n, us, |c| {
                c.decode_attention_dsa_roofline(&a)
            });
            self.dcp(n, pass, heads, lora + rope, lora, self.fixed.dcp_mla);
        }
        if pass.prefill_tokens > 0.0 {
            let a = SparsePrefill {
                sequences: pass.prefill_prompts,
                new_tokens: pass.prefill_tokens / pass.prefill_prompts,
                prefix: pass.prefill_before,
                heads,
                kv_lora_rank: lora,
                rope_dim: rope,
                index_heads: f64::from(index.heads),
                index_dim: f64::from(index.head_dim),
                top_k: f64::from(index.top_k),
                owns_index: index.owned,
                kv: self.fixed.kv_dtype,
            };
            let us = self.costs().prefill_attention_dsa(&a);
            self.add(Op::PrefillAttention, n, us, |c| {
                c.prefill_attention_dsa_roofline(&a)
            });
        }
    }

    /// DeepSeek-V4: one shared KV head over the window's raw tokens, and over compressed entries:
    /// those that an indexer picks (CSA), or all of them (HCA).
    fn compressed(&mut self, n: f64, pass: &Pass, heads: f64, dims: &Compressed) {
        let rope = f64::from(dims.qk_rope_head_dim);
        let lora = f64::from(dims.head_dim) - rope;
        let ratio = f64::from(dims.compress_ratio);
        let entries = |context: f64| if ratio > 0.0 { context / ratio } else { 0.0 };
        let window = |context: f64| context.min(f64::from(dims.window));
        let (index_heads, index_dim, top_k) = dims.indexer.map_or((0.0, 0.0, f64::INFINITY), |i| {
            (
                f64::from(i.heads),
                f64::from(i.head_dim),
                f64::from(i.top_k),
            )
        });
        let owns_index = dims.indexer.is_some();
        if pass.decode_requests > 0.0 {
            let far = entries(pass.context);
            let a = SparseDecode {
                requests: pass.decode_requests,
                // The indexer scores compressed entries; attention reads the picked ones and the window.
                context: far + window(pass.context),
                q_tokens: pass.query_tokens,
                heads,
                kv_lora_rank: lora,
                rope_dim: rope,
                index_heads,
                index_dim,
                top_k: top_k.min(far) + window(pass.context),
                owns_index,
                kv: self.fixed.kv_dtype,
            };
            let us = self.costs().decode_attention_dsa(&a);
            self.add(Op::DecodeAttention, n, us, |c| {
                c.decode_attention_dsa_roofline(&a)
            });
        }
        if pass.prefill_tokens > 0.0 {
            let new = pass.prefill_tokens / pass.prefill_prompts;
            let seen = pass.prefill_before + new / 2.0;
            let a = SparsePrefill {
                sequences: pass.prefill_prompts,
                new_tokens: new,
                prefix: entries(pass.prefill_before),
                heads,
                kv_lora_rank: lora,
                rope_dim: rope,
                index_heads,
                index_dim,
                top_k: top_k.min(entries(seen)) + window(seen),
                owns_index,
                kv: self.fixed.kv_dtype,
            };
            let us = self.costs().prefill_attention_dsa(&a);
            self.add(Op::PrefillAttention, n, us, |c| {
                c.prefill_attention_dsa_roofline(&a)
            });
        }
    }

    /// The two products that move queries into the latent space and outputs back out of it.
    fn absorb(&mut self, n: f64, tokens: f64, heads: f64, dims: &Mla) {
        for head_dim in [dims.qk_nope_head_dim, dims.v_head_dim] {
            let bmm = MlaBmm {
                tokens,
                heads,
                head_dim: f64::from(head_dim),
                kv_lora_rank: f64::from(dims.kv_lora_rank),
                weights: Dtype::Bf16,
            };
            self.add(Op::QkvProjection, n, self.costs().mla_bmm(&bmm), |c| {
                c.mla_bmm_roofline(&bmm)
            });
        }
    }

    fn dcp(&mut self, n: f64, pass: &Pass, heads: f64, qk: f64, v: f64, merge: (DcpMerge, f64)) {
        if self.fixed.dcp <= 1 {
            return;
        }
        let shape = DcpShape {
            ranks: self.fixed.dcp,
            tokens: pass.decode_requests * pass.query_tokens,
            heads,
            qk_dim: qk,
            v_dim: v,
            merge: merge.0,
            merge_bytes: merge.1,
            replicated_q: self.fixed.dcp_replicated_q,
        };
        for call in volume::dcp(&shape).as_slice() {
            self.call(Op::Dcp, n, call);
        }
        // Correction by the global LSE, or the local combine: partial outputs read and written once.
        let bytes =
            shape.tokens * heads * f64::from(shape.ranks) * v * (merge.1 + ACTIVATION_BYTES);
        let us = self.costs().elementwise(bytes, 1.0);
        self.add(Op::Dcp, n, us, |c| c.elementwise_roofline(bytes));
    }

    fn block(
        &mut self,
        group: &ShardGroup,
        pass: &Pass,
        rows: &Rows,
        exchange: Exchange,
        hidden: f64,
    ) {
        let n = group.layers;
        let ffn_rows = rows.ffn(exchange);
        match &group.block {
            Block::None => return,
            Block::Dense { up, down } => {
                self.linear(Op::DenseFfn, n, ffn_rows, up);
                self.linear(Op::DenseFfn, n, ffn_rows, down);
                self.elementwise(n, ffn_rows * (up.n + down.k) * ACTIVATION_BYTES, 1.0);
            }
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
                // With an all-to-all, routing happens before tokens leave their rank.
                self.linear(Op::Router, n, ffn_rows, router);
                let ep = f64::from(self.fixed.ep.max(1));
                let tokens = if exchange == Exchange::AllToAll {
                    pass.rows_sum
                } else {
                    ffn_rows
                };
                let per_rank = tokens * f64::from(dims.top_k) / ep;
                let moe = Moe {
                    tokens,
                    experts_local: *experts_local,
                    experts_total: f64::from(dims.experts),
                    top_k: f64::from(dims.top_k),
                    hidden: *width,
                    intermediate: *intermediate,
                    gated: dims.gated,
                    weights: *dtype,
                    gathered: exchange != Exchange::AllToAll,
                    spread: self.fixed.expert_spread,
                    imbalance: random_imbalance(ep, per_rank),
                };
                self.add(Op::Experts, n, self.costs().moe(&moe), |c| {
                    c.moe_roofline(&moe)
                });
                if exchange == Exchange::AllToAll && ep > 1.0 {
                    self.exchange(n, pass, rows, &moe, ep);
                }
                for (op, pair) in [(Op::SharedExperts, shared), (Op::Experts, latent)] {
                    if let Some((up, down)) = pair {
                        let own = if exchange == Exchange::AllToAll {
                            rows.max
                        } else {
                            ffn_rows
                        };
                        self.linear(op, n, own, up);
                        self.linear(op, n, own, down);
                        self.elementwise(n, own * (up.n + down.k) * ACTIVATION_BYTES, 1.0);
                    }
                }
            }
        }
        self.elementwise(n, rows.max * hidden * ACTIVATION_BYTES * 4.0, 1.0);
    }

    fn exchange(&mut self, n: f64, pass: &Pass, rows: &Rows, moe: &Moe, ep: f64) {
        let low = self.fixed.low_latency_experts && pass.prefill_tokens <= 0.0;
        let near = f64::from(self.fixed.ranks_per_domain).min(ep);
        let send = ExpertExchange {
            mode: if low {
                ExpertMode::LowLatency
            } else {
                ExpertMode::Normal
            },
            // Attention-TP ranks of one DP rank share its tokens between them.
            tokens: rows.max / f64::from(rows.attention_tp),
            top_k: moe.top_k,
            hidden: moe.hidden,
            element_bytes: if moe.weights.bytes() <= 1.1 {
                1.0 + 4.0 / 128.0
            } else {
                ACTIVATION_BYTES
            },
            ranks: ep,
            ranks_per_domain: near,
            imbalance: moe.imbalance,
        };
        let back = ExpertExchange {
            element_bytes: ACTIVATION_BYTES,
            ..send
        };
        let us = self.costs().expert_dispatch(&send) + self.costs().expert_combine(&back);
        self.add(Op::ExpertExchange, n, us, |c| {
            c.expert_exchange_roofline(&send) + c.expert_exchange_roofline(&back)
        });
    }
}

/// Rows of the busiest of `ranks` over the mean when `rows_per_rank` rows are dealt at random: the
/// expected maximum of `ranks` normal variables, `√(2 ln ranks)` deviations above the mean, with the
/// deviation of a Poisson count.
fn random_imbalance(ranks: f64, rows_per_rank: f64) -> f64 {
    if ranks <= 1.0 || rows_per_rank <= 0.0 {
        return 1.0;
    }
    (1.0 + (2.0 * ranks.ln() / rows_per_rank).sqrt()).min(ranks)
}

/// Adds one pass over all layers of a stage to `tally`.
pub fn layers(fixed: &Fixed<'_>, pass: &Pass, tally: &mut Tally) {
    let launch = if pass.graph {
        Launch::Graph
    } else {
        Launch::Eager
    };
    let mut meter = Meter {
        fixed,
        tally,
        launch,
    };
    for group in &fixed.shard.groups {
        layer_group(&mut meter, group, pass);
    }
}

fn layer_group(meter: &mut Meter<'_, '_>, group: &ShardGroup, pass: &Pass) {
    let fixed = meter.fixed;
    let hidden = fixed.shard.hidden;
    let stage = Rows {
        max: pass.rows_max,
        sum: pass.rows_sum,
        dp: fixed.dp,
        attention_tp: fixed.attention_tp,
        row_bytes: hidden * ACTIVATION_BYTES,
    };
    // A dense block that every DP rank holds for itself sees only its own rows.
    let own = matches!(group.block, Block::Dense { .. }) && fixed.dense_on_attention_tp;
    let alone = own || (matches!(group.block, Block::None) && fixed.dp > 1);
    let (rows, exchange) = if alone {
        (
            Rows {
                sum: stage.max,
                dp: 1,
                ..stage
            },
            Exchange::AllReduce,
        )
    } else {
        (stage, pass.exchange)
    };
    let has_mixer = !matches!(group.mixer, Mixer::None);
    let has_block = !matches!(group.block, Block::None);
    meter.mixer(group, pass, hidden);
    meter.block(group, pass, &rows, exchange, hidden);
    for call in volume::layer(&rows, exchange, has_mixer, has_block).as_slice() {
        let op = match call.purpose {
            Purpose::AttentionOutput => Op::AttentionReduce,
            Purpose::Gather => Op::Gather,
            _ => Op::Combine,
        };
        // With one DP rank the group of a stage is an attention-TP group.
        let call = if alone {
            Call {
                group: Group::AttentionTp,
                ..*call
            }
        } else {
            *call
        };
        meter.call(op, group.layers, &call);
    }
}

/// Adds the output projection for `rows` rows (of the rank, or of all DP ranks where they share it)
/// and the gather of their logits.
pub fn head(fixed: &Fixed<'_>, rows: f64, graph: bool, tally: &mut Tally) {
    let launch = if graph { Launch::Graph } else { Launch::Eager };
    let mut meter = Meter {
        fixed,
        tally,
        launch,
    };
    let (ranks, group) = if fixed.head_on_attention_tp {
        (fixed.attention_tp, Group::AttentionTp)
    } else {
        (fixed.attention_tp * fixed.dp, Group::Tp)
    };
    let weight = &fixed.shard.lm_head;
    meter.linear(Op::LmHead, 1.0, rows, weight);
    let gather = Call {
        purpose: Purpose::Gather,
        kind: Kind::AllGather,
        group,
        ranks,
        bytes: rows * weight.n * f64::from(ranks) * ACTIVATION_BYTES,
    };
    if ranks > 1 {
        meter.call(Op::LmHead, 1.0, &gather);
    }
}

/// Adds `steps` drafted tokens by the model's MTP layer: each joins two rows of the residual
/// stream, runs one layer and the output projection.
pub fn draft(fixed: &Fixed<'_>, pass: &Pass, steps: f64, tally: &mut Tally) {
    let Some(group) = &fixed.shard.mtp else {
        return;
    };
    let mut own = Tally::new();
    let one = Pass {
        query_tokens: 1.0,
        rows_max: pass.rows_max / pass.query_tokens,
        rows_sum: pass.rows_sum / pass.query_tokens,
        ..*pass
    };
    let launch = if pass.graph {
        Launch::Graph
    } else {
        Launch::Eager
    };
    let hidden = fixed.shard.hidden;
    let mut meter = Meter {
        fixed,
        tally: &mut own,
        launch,
    };
    layer_group(&mut meter, group, &one);
    let join = Linear {
        n: hidden,
        k: 2.0 * hidden,
        dtype: Dtype::Bf16,
    };
    meter.linear(Op::QkvProjection, 1.0, one.rows_max, &join);
    let rows = if fixed.head_on_attention_tp {
        one.decode_requests
    } else {
        one.rows_sum
    };
    head(fixed, rows, pass.graph, &mut own);
    tally.add(Op::Draft, steps, own.total_us());
    if fixed.explain {
        tally.add_roofline(
            Op::Draft,
            steps,
            Op::ALL.iter().map(|&op| own.roofline_us(op)).sum(),
        );
    }
}
