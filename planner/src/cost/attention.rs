//! Attention over a KV cache: grouped-query and multi-head latent, decode and prefill.

use super::resolve::OpCosts;
use super::terms::{DecodeTerm, PrefillTerm};
use super::{join, overlap};
use parplan_profiles::Dtype;

/// Decode attention of one layer with grouped queries, on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeGqa {
    /// Requests on this rank.
    pub requests: f64,
    /// Mean cached tokens a request reads on this rank (before a window cuts them).
    pub context: f64,
    /// Query tokens a request: 1, or draft tokens to verify.
    pub q_tokens: f64,
    /// Query heads on this rank.
    pub q_heads: f64,
    /// KV heads on this rank.
    pub kv_heads: f64,
    /// Width of a query and key head.
    pub head_dim: f64,
    /// Width of a value head.
    pub v_head_dim: f64,
    /// Format of the cache.
    pub kv: Dtype,
    /// Sliding window, tokens; infinite when there is none.
    pub window: f64,
}

/// Prefill attention of one sequence (or of `sequences` equal ones), on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillGqa {
    /// Equal sequences in the batch.
    pub sequences: f64,
    /// New tokens a sequence.
    pub new_tokens: f64,
    /// Tokens already cached a sequence.
    pub prefix: f64,
    /// Query heads on this rank.
    pub q_heads: f64,
    /// KV heads on this rank.
    pub kv_heads: f64,
    /// Width of a query and key head.
    pub head_dim: f64,
    /// Width of a value head.
    pub v_head_dim: f64,
    /// Format of the cache.
    pub kv: Dtype,
    /// Sliding window, tokens; infinite when there is none.
    pub window: f64,
}

/// Absorbed decode attention of an MLA layer, on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DecodeMla {
    /// Requests on this rank.
    pub requests: f64,
    /// Mean cached tokens a request reads on this rank.
    pub context: f64,
    /// Query tokens a request: 1, or draft tokens to verify.
    pub q_tokens: f64,
    /// Query heads on this rank.
    pub heads: f64,
    /// Rank of the shared KV compression.
    pub kv_lora_rank: f64,
    /// Width of the shared rotary part.
    pub rope_dim: f64,
    /// Format of the cache.
    pub kv: Dtype,
}

/// Prefill attention of an MLA layer (heads expanded), of `sequences` equal sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefillMla {
    /// Equal sequences in the batch.
    pub sequences: f64,
    /// New tokens a sequence.
    pub new_tokens: f64,
    /// Tokens already cached a sequence.
    pub prefix: f64,
    /// Query heads on this rank.
    pub heads: f64,
    /// Width of a query and key head, rotary part included.
    pub qk_head_dim: f64,
    /// Width of a value head.
    pub v_head_dim: f64,
    /// Format of the cache.
    pub kv: Dtype,
}

/// Bytes and products of an attention call, and what its fixed costs scale with.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionWork {
    /// Bytes read and written.
    pub bytes: f64,
    /// Products that the algorithm needs, FLOP.
    pub flops: f64,
    /// Products that the kernel runs, padding included, FLOP.
    pub padded: f64,
    /// Independent pieces of work.
    pub items: f64,
    /// Keys that one piece walks.
    pub depth: f64,
    /// Head width relative to 128.
    pub width: f64,
    /// Requests whose query rows one tile or several hold, and how many rows each has; only of decode.
    pub tiled: (f64, f64),
}

/// Pairs (query, key) that a causal sequence of `new` tokens after `prefix` looks at, each query
/// limited to the last `window` keys.
#[inline]
pub(super) fn causal_pairs(new: f64, prefix: f64, window: f64) -> f64 {
    let first = prefix + 1.0;
    let last = prefix + new;
    if window >= last {
        return new * (first + last) * 0.5;
    }
    if window <= first {
        return new * window;
    }
    let growing = window - first;
    growing * (first + window) * 0.5 + (new - growing) * window
}

#[inline]
fn round_up(value: f64, step: f64) -> f64 {
    (value / step).ceil() * step
}

impl DecodeGqa {
    #[inline]
    pub(super) fn work(&self, pad_rows: f64) -> AttentionWork {
        let context = self.context.min(self.window);
        let widths = self.head_dim + self.v_head_dim;
        let rows = self.q_heads * self.q_tokens;
        let group = rows / self.kv_heads.max(1.0);
        let padded_rows = self.kv_heads * round_up(group, pad_rows);
        let pairs = self.requests * context;
        AttentionWork {
            bytes: pairs * self.kv_heads * widths * self.kv.bytes()
                + self.requests * rows * widths * 2.0,
            flops: 2.0 * pairs * rows * widths,
            padded: 2.0 * pairs * padded_rows.max(rows) * widths,
            items: self.requests * self.kv_heads,
            depth: context,
            width: 1.0,
            tiled: (self.requests * self.kv_heads, 1.0),
        }
    }
}

impl DecodeMla {
    #[inline]
    pub(super) fn work(&self, pad_rows: f64) -> AttentionWork {
        let row = self.kv_lora_rank + self.rope_dim;
        let widths = row + self.kv_lora_rank;
        let rows = self.heads * self.q_tokens;
        let pairs = self.requests * self.context;
        let padded_rows = round_up(rows, 16.0).max(pad_rows);
        AttentionWork {
            bytes: pairs * row * self.kv.bytes() + self.requests * rows * widths * 2.0,
            flops: 2.0 * pairs * rows * widths,
            padded: 2.0 * pairs * padded_rows * widths,
            items: self.requests * rows,
            depth: self.context,
            width: 1.0,
            tiled: (self.requests, rows),
        }
    }
}

impl PrefillGqa {
    #[inline]
    pub(super) fn work(&self) -> AttentionWork {
        let widths = self.head_dim + self.v_head_dim;
        let pairs = causal_pairs(self.new_tokens, self.prefix, self.window);
        let tiles = (self.new_tokens / 128.0).ceil();
        let mean_keys = pairs / self.new_tokens.max(1.0);
        let heads = self.sequences * self.q_heads;
        // A tile of 128 queries runs half a tile of masked products at the diagonal, and as much
        // at the far edge of a window.
        let last = self.prefix + self.new_tokens;
        let edge = 64.0 * (1.0 + ((last - self.window) / 128.0).clamp(0.0, 1.0));
        AttentionWork {
            bytes: self.sequences
                * widths
                * (self.new_tokens * (self.q_heads + self.kv_heads) * 2.0
                    + self.prefix.min(self.window) * self.kv_heads * self.kv.bytes()),
            flops: 2.0 * heads * widths * pairs,
            padded: 2.0 * heads * widths * tiles * 128.0 * (mean_keys + edge),
            items: heads * tiles,
            depth: last.min(self.window),
            width: self.head_dim / 128.0,
            tiled: (0.0, 0.0),
        }
    }
}

impl PrefillMla {
    #[inline]
    fn work(&self) -> AttentionWork {
        let widths = self.qk_head_dim + self.v_head_dim;
        let pairs = causal_pairs(self.new_tokens, self.prefix, f64::INFINITY);
        let tiles = (self.new_tokens / 128.0).ceil();
        let mean_keys = pairs / self.new_tokens.max(1.0);
        let heads = self.sequences * self.heads;
        AttentionWork {
            bytes: heads * widths * 2.0 * (2.0 * self.new_tokens + self.prefix),
            flops: 2.0 * heads * widths * pairs,
            padded: 2.0 * heads * widths * tiles * 128.0 * (mean_keys + 64.0),
            items: heads * tiles,
            depth: self.prefix + self.new_tokens,
            width: 1.0,
            tiled: (0.0, 0.0),
        }
    }
}

impl DecodeTerm {
    /// `base + items · item / SMs + split · c / (c + c½) + overlap(bytes, padded products)`.
    #[inline]
    pub(super) fn time(&self, work: &AttentionWork) -> f64 {
        self.fixed(work)
            + overlap(
                work.bytes * self.us_per_byte,
                work.padded * self.us_per_flop,
            )
    }

    /// As [`Self::time`], with the two roofline terms joined less tightly: MLA decode is near the
    /// ridge, where loads and products do not hide each other well.
    #[inline]
    pub(super) fn time_joined(&self, work: &AttentionWork) -> f64 {
        self.fixed(work)
            + join(
                work.bytes * self.us_per_byte,
                work.padded * self.us_per_flop,
            )
    }

    /// What does not grow with keys: launch, the items' own, and the merge of what was cut. Where tiles
    /// are known, each SM begins and ends one at least, and less is cut as tiles become as many as SMs.
    #[inline]
    fn fixed(&self, work: &AttentionWork) -> f64 {
        let split = self.split_us * work.depth / (work.depth + self.split_context);
        let us = self.base_us + work.items * self.item_us_per_sm;
        if self.tile_rows <= 0.0 {
            return us + split;
        }
        let (requests, rows) = work.tiled;
        let tiles = requests * (rows / self.tile_rows).max(1.0);
        let first = self.item_us_per_sm * self.sms * rows.min(self.tile_rows);
        us + first + split / (1.0 + tiles / self.sms)
    }

    #[inline]
    pub(super) fn roofline(&self, work: &AttentionWork) -> f64 {
        (work.bytes * self.us_per_byte_peak).max(work.flops * self.us_per_flop_peak)
    }
}

impl PrefillTerm {
    /// `base + items · item / SMs + join(overlap(depth, padded products), bytes)`.
    #[inline]
    pub(super) fn time(&self, work: &AttentionWork) -> f64 {
        let gain = if self.width_half > 0.0 {
            let half = self.width_half / 128.0;
            (work.width + half) / (work.width * (1.0 + half))
        } else {
            1.0
        };
        let us_per_flop = (self.us_per_flop * gain).max(self.us_per_flop_peak);
        self.base_us
            + work.items * self.item_us_per_sm
            + join(
                overlap(
                    work.depth * self.depth_us_per_key * work.width,
                    work.padded * us_per_flop,
                ),
                work.bytes * self.us_per_byte,
            )
    }

    #[inline]
    pub(super) fn roofline(&self, work: &AttentionWork) -> f64 {
        (work.bytes * self.us_per_byte_peak).max(work.flops * self.us_per_flop_peak)
    }
}

/// Index of the figures for a cache format: bf16 or anything narrower.
#[inline]
pub(super) fn narrow(kv: Dtype) -> usize {
    usize::from(kv.bytes() < 1.5)
}

impl OpCosts<'_> {
    /// Decode attention with grouped queries, µs.
    #[inline]
    pub fn decode_attention_gqa(&self, a: &DecodeGqa) -> f64 {
        if a.requests <= 0.0 {
            return 0.0;
        }
        let term = &self.decode_gqa[narrow(a.kv)];
        term.time(&a.work(term.pad_rows))
    }

    /// Its roofline, µs.
    pub fn decode_attention_gqa_roofline(&self, a: &DecodeGqa) -> f64 {
        self.decode_gqa[narrow(a.kv)].roofline(&a.work(1.0))
    }

    /// Prefill attention with grouped queries, µs.
    #[inline]
    pub fn prefill_attention_gqa(&self, a: &PrefillGqa) -> f64 {
        if a.sequences <= 0.0 || a.new_tokens <= 0.0 {
            return 0.0;
        }
        self.prefill_gqa[narrow(a.kv)].time(&a.work())
    }

    /// Its roofline, µs.
    pub fn prefill_attention_gqa_roofline(&self, a: &PrefillGqa) -> f64 {
        self.prefill_gqa[narrow(a.kv)].roofline(&a.work())
    }

    /// Absorbed decode attention of an MLA layer, µs.
    #[inline]
    pub fn decode_attention_mla(&self, a: &DecodeMla) -> f64 {
        if a.requests <= 0.0 {
            return 0.0;
        }
        let term = &self.decode_mla[narrow(a.kv)];
        term.time_joined(&a.work(term.pad_rows))
    }

    /// Its roofline, µs.
    pub fn decode_attention_mla_roofline(&self, a: &DecodeMla) -> f64 {
        self.decode_mla[narrow(a.kv)].roofline(&a.work(1.0))
    }

    /// Prefill attention of an MLA layer, heads expanded, µs. The up-projection that expands them
    /// is a [`OpCosts::gemm`] of the caller's.
    #[inline]
    pub fn prefill_attention_mla(&self, a: &PrefillMla) -> f64 {
        if a.sequences <= 0.0 || a.new_tokens <= 0.0 {
            return 0.0;
        }
        self.prefill_mla[narrow(a.kv)].time(&a.work())
    }

    /// Its roofline, µs.
    pub fn prefill_attention_mla_roofline(&self, a: &PrefillMla) -> f64 {
        self.prefill_mla[narrow(a.kv)].roofline(&a.work())
    }
}
