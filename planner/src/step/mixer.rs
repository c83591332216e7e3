//! Token mixers: projections, attention or recurrence, and what decode context parallelism adds.

use super::meter::Meter;
use super::pass::{ACTIVATION_BYTES, Pass};
use super::tally::Op;
use crate::cost::{
    DecodeGqa, DecodeMla, GatedDeltaStep, Mamba2Step, MlaBmm, Operation, PrefillGqa, PrefillMla,
    SparseDecode, SparsePrefill,
};
use crate::shard::{GatedDeltaShard, GqaShard, Linear, Mamba2Shard, Mixer, MlaShard, ShardGroup};
use crate::volume::{self, DcpMerge, DcpShape};
use parplan_profiles::{Compressed, Dtype, Indexer, Mla};

/// Bytes that an elementwise kernel moves over that many activations: read once and written once.
fn moved(activations: f64) -> f64 {
    activations * ACTIVATION_BYTES * 2.0
}

impl Meter<'_, '_> {
    /// Projections and attention of one group of layers; `rows` are this rank's.
    pub(super) fn mixer(&mut self, group: &ShardGroup, pass: &Pass, hidden: f64) {
        let n = group.layers;
        let rows = pass.rows_max;
        match &group.mixer {
            Mixer::None => return,
            Mixer::Gqa(shard) => self.gqa(n, pass, shard),
            Mixer::Mla(shard) => self.mla(n, pass, shard),
            Mixer::GatedDelta(shard) => self.gated_delta(n, pass, shard),
            Mixer::Compressed(shard) => {
                self.linear(Op::QkvProjection, n, rows, &shard.down);
                self.linear(Op::QkvProjection, n, rows, &shard.q_up);
                self.elementwise(n, moved(rows * (shard.down.n + shard.q_up.n)), 3.0);
                self.compressed(n, pass, shard.heads, &shard.dims);
                self.linear(Op::OutProjection, n, rows, &shard.out.0);
                self.linear(Op::OutProjection, n, rows, &shard.out.1);
            }
            Mixer::Mamba2(shard) => self.mamba2(n, pass, shard),
        }
        self.norm(n, rows, hidden);
    }

    fn gqa(&mut self, n: f64, pass: &Pass, shard: &GqaShard) {
        let rows = pass.rows_max;
        let by_norm = self.fixed.quantised.by_norm;
        self.linear_of(by_norm, Op::QkvProjection, n, rows, &shard.qkv);
        if shard.shared_norm && self.fixed.attention_tp > 1 {
            self.shared_norm(n, rows, shard.qkv.n);
        }
        let kernels = self.fixed.kernels.map_or(2.0, |k| f64::from(k.gqa));
        self.elementwise(n, moved(rows * shard.qkv.n), kernels);
        let window = shard.window.map_or(f64::INFINITY, f64::from);
        let dcp = f64::from(self.fixed.dcp);
        if pass.decode_requests > 0.0 {
            let a = DecodeGqa {
                requests: pass.decode_requests,
                context: pass.context / dcp,
                q_tokens: pass.query_tokens,
                q_heads: shard.q_heads * dcp,
                kv_heads: shard.kv_heads,
                head_dim: shard.head_dim,
                v_head_dim: shard.v_head_dim,
                kv: self.fixed.kv_dtype,
                window,
            };
            self.add(Op::DecodeAttention, n, &Operation::DecodeGqa(a));
            let (qk, v) = (shard.head_dim, shard.v_head_dim);
            self.dcp(n, pass, shard.q_heads, qk, v, self.fixed.dcp_gqa);
        }
        if pass.prefill_tokens > 0.0 {
            let a = PrefillGqa {
                sequences: pass.prefill_prompts,
                new_tokens: pass.prefill_tokens / pass.prefill_prompts,
                prefix: pass.prefill_before,
                q_heads: shard.q_heads,
                // Prefill works on whole heads, gathered from the DCP group where it has one.
                kv_heads: (shard.kv_heads / dcp).max(1.0),
                head_dim: shard.head_dim,
                v_head_dim: shard.v_head_dim,
                kv: self.fixed.kv_dtype,
                window,
            };
            self.add(Op::PrefillAttention, n, &Operation::PrefillGqa(a));
        }
        let by_attention = self.fixed.quantised.by_attention;
        self.linear_of(by_attention, Op::OutProjection, n, rows, &shard.out);
    }

    fn mla(&mut self, n: f64, pass: &Pass, shard: &MlaShard) {
        let rows = pass.rows_max;
        self.linear(Op::QkvProjection, n, rows, &shard.down);
        self.linear(Op::QkvProjection, n, rows, &shard.q_up);
        let kernels = self.fixed.kernels.map_or(3.0, |k| f64::from(k.mla));
        self.elementwise(n, moved(rows * (shard.down.n + shard.q_up.n)), kernels);
        match &shard.dims.indexer {
            Some(index) => self.sparse(n, pass, shard.heads, &shard.dims, index),
            None => self.latent(n, pass, shard.heads, &shard.dims, &shard.kv_up),
        }
        self.linear(Op::OutProjection, n, rows, &shard.out);
    }

    fn gated_delta(&mut self, n: f64, pass: &Pass, shard: &GatedDeltaShard) {
        let rows = pass.rows_max;
        self.linear(Op::QkvProjection, n, rows, &shard.input);
        self.linear(Op::QkvProjection, n, rows, &shard.scalars);
        // Parts of the projection put in order, and the gated norm of the result.
        self.elementwise(n, moved(rows * (shard.input.n + shard.out.k)), 2.0);
        self.recurrence(n, pass, |sequences, tokens| {
            Operation::GatedDelta(GatedDeltaStep {
                sequences,
                tokens,
                k_heads: shard.k_heads,
                v_heads: shard.v_heads,
                k_head_dim: f64::from(shard.dims.k_head_dim),
                v_head_dim: f64::from(shard.dims.v_head_dim),
            })
        });
        self.linear(Op::OutProjection, n, rows, &shard.out);
    }

    fn mamba2(&mut self, n: f64, pass: &Pass, shard: &Mamba2Shard) {
        self.linear(Op::QkvProjection, n, pass.rows_max, &shard.input);
        let groups = (f64::from(shard.dims.groups) / f64::from(self.fixed.attention_tp)).max(1.0);
        self.recurrence(n, pass, |sequences, tokens| {
            Operation::Mamba2(Mamba2Step {
                sequences,
                tokens,
                heads: shard.heads,
                head_dim: f64::from(shard.dims.head_dim),
                state_size: f64::from(shard.dims.state_size),
                groups,
            })
        });
        self.linear(Op::OutProjection, n, pass.rows_max, &shard.out);
    }

    /// A recurrence over the tokens of a pass: `step` gives it for sequences of so many tokens each.
    fn recurrence(&mut self, n: f64, pass: &Pass, step: impl Fn(f64, f64) -> Operation) {
        if pass.decode_requests > 0.0 {
            let decode = step(pass.decode_requests, pass.query_tokens);
            self.add(Op::DecodeAttention, n, &decode);
        }
        if pass.prefill_tokens > 0.0 {
            let tokens = pass.prefill_tokens / pass.prefill_prompts;
            let prefill = step(pass.prefill_prompts, tokens);
            self.add(Op::PrefillAttention, n, &prefill);
        }
    }

    /// A norm over the heads of all ranks, which no engine fuses: squares of Q and of K are added up
    /// in one kernel, summed over the ranks as two fp32 values a row, and applied in another.
    fn shared_norm(&mut self, n: f64, rows: f64, width: f64) {
        self.elementwise(n, rows * width * ACTIVATION_BYTES * 3.0, 2.0);
        let call = volume::shared_norm(rows, self.fixed.attention_tp);
        self.call(Op::AttentionReduce, n, &call);
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
            self.add(Op::DecodeAttention, n, &Operation::DecodeMla(a));
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
            self.add(Op::PrefillAttention, n, &Operation::PrefillMla(a));
        }
    }

    /// Sparse MLA (DSA): absorbed in both phases, over the tokens that the indexer picks.
    fn sparse(&mut self, n: f64, pass: &Pass, heads: f64, dims: &Mla, index: &Indexer) {
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
            self.add(Op::DecodeAttention, n, &Operation::SparseDecode(a));
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
            self.add(Op::PrefillAttention, n, &Operation::SparsePrefill(a));
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
            self.add(Op::DecodeAttention, n, &Operation::SparseDecode(a));
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
            self.add(Op::PrefillAttention, n, &Operation::SparsePrefill(a));
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
            self.add(Op::QkvProjection, n, &Operation::MlaBmm(bmm));
        }
    }

    fn dcp(&mut self, n: f64, pass: &Pass, heads: f64, qk: f64, v: f64, merge: (DcpMerge, f64)) {
        if self.fixed.dcp <= 1 {
            return;
        }
        // A replayed graph exchanges all of its rows, padding too.
        let tokens = if pass.graph {
            pass.rows_max
        } else {
            pass.decode_requests * pass.query_tokens
        };
        let shape = DcpShape {
            ranks: self.fixed.dcp,
            tokens,
            heads,
            qk_dim: qk,
            v_dim: v,
            merge: merge.0,
            merge_bytes: merge.1,
            replicated_q: self.fixed.dcp_replicated_q,
            lse_apart: self.fixed.dcp_lse_apart,
        };
        let fused = merge.0 == DcpMerge::Fused;
        for call in volume::dcp(&shape).as_slice() {
            self.call_by(fused, Op::Dcp, n, call);
        }
        if fused {
            return;
        }
        // Correction by the global LSE, or the local combine: partial outputs read and written once.
        let bytes =
            shape.tokens * heads * f64::from(shape.ranks) * v * (merge.1 + ACTIVATION_BYTES);
        let kernels = 1.0;
        self.add(Op::Dcp, n, &Operation::Elementwise { bytes, kernels });
    }
}
