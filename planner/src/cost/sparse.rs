//! DeepSeek sparse attention: indexer logits, top-k, attention over the picked tokens.

use super::attention::{AttentionWork, DecodeMla, causal_pairs, narrow};
use super::resolve::OpCosts;
use parplan_profiles::Dtype;

/// Bytes of one cached index key of width `head_dim`: fp8 values and one fp32 scale.
fn index_key_bytes(head_dim: f64) -> f64 {
    head_dim + 4.0
}

/// Decode of a DSA layer, on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseDecode {
    /// Requests on this rank.
    pub requests: f64,
    /// Mean cached tokens a request.
    pub context: f64,
    /// Query tokens a request.
    pub q_tokens: f64,
    /// Query heads of attention on this rank.
    pub heads: f64,
    /// Rank of the shared KV compression.
    pub kv_lora_rank: f64,
    /// Width of the shared rotary part.
    pub rope_dim: f64,
    /// Index query heads (every rank runs all of them).
    pub index_heads: f64,
    /// Width of an index head.
    pub index_dim: f64,
    /// Tokens that attention reads.
    pub top_k: f64,
    /// The layer computes its own index (otherwise it reuses an earlier layer's).
    pub owns_index: bool,
    /// Format of the cache.
    pub kv: Dtype,
}

/// Prefill of a DSA layer, of `sequences` equal sequences, on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparsePrefill {
    /// Equal sequences in the batch.
    pub sequences: f64,
    /// New tokens a sequence.
    pub new_tokens: f64,
    /// Tokens already cached a sequence.
    pub prefix: f64,
    /// Query heads of attention on this rank.
    pub heads: f64,
    /// Rank of the shared KV compression.
    pub kv_lora_rank: f64,
    /// Width of the shared rotary part.
    pub rope_dim: f64,
    /// Index query heads.
    pub index_heads: f64,
    /// Width of an index head.
    pub index_dim: f64,
    /// Tokens that attention reads.
    pub top_k: f64,
    /// The layer computes its own index.
    pub owns_index: bool,
    /// Format of the cache.
    pub kv: Dtype,
}

impl SparseDecode {
    fn logits(&self) -> AttentionWork {
        let rows = self.requests * self.q_tokens;
        let pairs = rows * self.context;
        let flops = 2.0 * pairs * self.index_heads * self.index_dim;
        AttentionWork {
            bytes: self.requests * self.context * index_key_bytes(self.index_dim) + pairs * 4.0,
            flops,
            padded: flops,
            items: rows,
            depth: self.context,
            width: 1.0,
            tiled: (0.0, 0.0),
        }
    }

    fn attention(&self) -> DecodeMla {
        DecodeMla {
            requests: self.requests * self.q_tokens,
            context: self.context.min(self.top_k),
            q_tokens: 1.0,
            heads: self.heads,
            kv_lora_rank: self.kv_lora_rank,
            rope_dim: self.rope_dim,
            kv: self.kv,
        }
    }
}

impl SparsePrefill {
    fn logits(&self) -> AttentionWork {
        let pairs = self.sequences * causal_pairs(self.new_tokens, self.prefix, f64::INFINITY);
        let rows = self.sequences * self.new_tokens;
        let flops = 2.0 * pairs * self.index_heads * self.index_dim;
        AttentionWork {
            bytes: self.sequences
                * (self.prefix + self.new_tokens)
                * index_key_bytes(self.index_dim)
                + rows * self.index_heads * self.index_dim
                + pairs * 4.0,
            flops,
            padded: flops,
            items: rows / 128.0,
            depth: self.prefix + self.new_tokens,
            width: 1.0,
            tiled: (0.0, 0.0),
        }
    }

    fn attention(&self) -> AttentionWork {
        let pairs = self.sequences * causal_pairs(self.new_tokens, self.prefix, self.top_k);
        let row = self.kv_lora_rank + self.rope_dim;
        let widths = row + self.kv_lora_rank;
        let rows = self.sequences * self.new_tokens;
        let flops = 2.0 * pairs * self.heads * widths;
        AttentionWork {
            bytes: rows * self.heads * widths * 2.0
                + self.sequences
                    * (self.prefix + self.new_tokens).min(self.top_k)
                    * row
                    * self.kv.bytes(),
            flops,
            padded: flops * (self.heads.max(64.0) / self.heads.max(1.0)),
            items: rows,
            depth: (self.prefix + self.new_tokens).min(self.top_k),
            width: 1.0,
            tiled: (0.0, 0.0),
        }
    }
}

impl OpCosts<'_> {
    /// Top-k of `rows` rows that hold `logits` fp32 values in all, the longest of them `depth`, µs.
    #[inline]
    fn top_k(&self, rows: f64, logits: f64, depth: f64) -> f64 {
        let t = &self.top_k;
        t.base_us
            + rows * t.row_us_per_sm
            + depth * t.depth_us_per_key
            + logits * 4.0 * t.us_per_byte
    }

    /// Decode attention of a DSA layer, µs: indexer logits over the whole context, top-k, and
    /// absorbed attention over at most `top_k` tokens. The indexer runs only where the layer owns
    /// one and the context exceeds `top_k`; projections are [`OpCosts::gemm`]s of the caller's.
    #[inline]
    pub fn decode_attention_dsa(&self, a: &SparseDecode) -> f64 {
        if a.requests <= 0.0 {
            return 0.0;
        }
        let attention = a.attention();
        let term = &self.sparse_decode[narrow(a.kv)];
        let mut us = term.time_joined(&attention.work(term.pad_rows));
        if a.owns_index {
            let rows = a.requests * a.q_tokens;
            us += self.logits_decode.time(&a.logits());
            us += self.top_k(rows, rows * a.context, a.context);
        }
        us
    }

    /// Its roofline, µs: the sum of the parts' rooflines.
    pub fn decode_attention_dsa_roofline(&self, a: &SparseDecode) -> f64 {
        let term = &self.sparse_decode[narrow(a.kv)];
        let mut us = term.roofline(&a.attention().work(1.0));
        if a.owns_index {
            us += self.logits_decode.roofline(&a.logits());
        }
        us
    }

    /// Prefill attention of a DSA layer, µs.
    #[inline]
    pub fn prefill_attention_dsa(&self, a: &SparsePrefill) -> f64 {
        if a.sequences <= 0.0 || a.new_tokens <= 0.0 {
            return 0.0;
        }
        let mut us = self.sparse_prefill[narrow(a.kv)].time(&a.attention());
        if a.owns_index {
            let work = a.logits();
            us += self.logits_prefill.time(&work);
            let pairs = a.sequences * causal_pairs(a.new_tokens, a.prefix, f64::INFINITY);
            us += self.top_k(a.sequences * a.new_tokens, pairs, work.depth);
        }
        us
    }

    /// Its roofline, µs.
    pub fn prefill_attention_dsa_roofline(&self, a: &SparsePrefill) -> f64 {
        let mut us = self.sparse_prefill[narrow(a.kv)].roofline(&a.attention());
        if a.owns_index {
            us += self.logits_prefill.roofline(&a.logits());
        }
        us
    }
}
