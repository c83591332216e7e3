//! Bytes and launches that a layer sends, a rank and a collective.
//!
//! Sizes follow nccl-tests: the whole buffer that a collective works on, so that a ring moves
//! `size · (n − 1) / n` through each rank for an all-gather or a reduce-scatter and twice that for
//! an all-reduce. DP attention follows SGLang `layers/dp_attention.py` (facts A3), decode context
//! parallel vLLM `v1/attention/ops/dcp.py` and SGLang `dcp_kernels.py` (facts C4, C5).

use parplan_profiles::Dtype;
use serde::Serialize;

/// A kind of collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Sum of all ranks' buffers, on every rank.
    AllReduce,
    /// Every rank's part, on every rank.
    AllGather,
    /// Every rank's part of the sum.
    ReduceScatter,
    /// Every rank sends a different part to every other.
    AllToAll,
    /// Routed tokens to the ranks of their experts (DeepEP and its kind).
    ExpertDispatch,
    /// Routed tokens back to their own ranks, weighted and summed.
    ExpertCombine,
}

/// Which ranks take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// All ranks of a pipeline stage.
    Tp,
    /// The ranks that split the heads of one request.
    AttentionTp,
    /// The ranks that hold different requests.
    AttentionDp,
    /// The ranks that share a request's KV cache.
    Dcp,
    /// The ranks that hold different experts.
    Ep,
}

/// What a collective is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Sums of squares for a norm of queries and keys over the heads of all ranks.
    SharedNorm,
    /// Sum of the attention output's partial products.
    AttentionOutput,
    /// Gather of hidden states before the feed-forward block.
    Gather,
    /// Sum, or scatter, of the feed-forward block's partial products.
    Combine,
    /// Queries of a DCP group.
    DcpQuery,
    /// Log-sum-exp of the partial attention outputs.
    DcpLse,
    /// Merge of the partial attention outputs.
    DcpMerge,
    /// Expert all-to-all.
    Experts,
}

/// The sums over ranks of a norm of queries and keys over all heads: two fp32 values a row.
pub fn shared_norm(rows: f64, ranks: u32) -> Call {
    Call {
        purpose: Purpose::SharedNorm,
        kind: Kind::AllReduce,
        group: Group::AttentionTp,
        ranks,
        bytes: rows * 2.0 * 4.0,
    }
}

/// One collective of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Call {
    /// What it is for.
    pub purpose: Purpose,
    /// Its kind.
    pub kind: Kind,
    /// Its ranks.
    pub group: Group,
    /// How many ranks.
    pub ranks: u32,
    /// Size of the whole buffer, bytes, as nccl-tests counts it.
    pub bytes: f64,
}

impl Call {
    /// Bytes a rank receives if the collective runs as a ring (an all-reduce twice around).
    pub fn ring_bytes(&self) -> f64 {
        let n = f64::from(self.ranks.max(1));
        let once = self.bytes * (n - 1.0) / n;
        match self.kind {
            Kind::AllReduce => 2.0 * once,
            _ => once,
        }
    }
}

/// The calls of one layer; at most eight, kept on the stack.
#[derive(Debug, Clone, Copy)]
pub struct Calls {
    len: usize,
    calls: [Call; Calls::MOST],
}

impl Calls {
    /// Most collectives that one layer makes.
    pub const MOST: usize = 8;

    /// No calls.
    pub const fn new() -> Calls {
        let none = Call {
            purpose: Purpose::Combine,
            kind: Kind::AllReduce,
            group: Group::Tp,
            ranks: 1,
            bytes: 0.0,
        };
        Calls {
            len: 0,
            calls: [none; Calls::MOST],
        }
    }

    /// Adds a call; a group of one rank, or no bytes, needs none.
    pub fn push(&mut self, call: Call) {
        if call.ranks > 1 && call.bytes > 0.0 && self.len < Calls::MOST {
            self.calls[self.len] = call;
            self.len += 1;
        }
    }

    /// The calls.
    pub fn as_slice(&self) -> &[Call] {
        &self.calls[..self.len]
    }
}

impl Default for Calls {
    fn default() -> Self {
        Calls::new()
    }
}

/// How hidden states reach the feed-forward block and come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Exchange {
    /// One DP rank: all-reduce after attention and after the feed-forward block.
    AllReduce,
    /// SGLang max_len: every DP rank pads to the longest; all-gather and reduce-scatter.
    MaxLen,
    /// SGLang sum_len: zero-filled buffer of all rows; all-reduce both ways.
    SumLen,
    /// Exact rows: all-gather-v and reduce-scatter-v (vLLM `allgather_reducescatter`, TensorRT-LLM).
    Exact,
    /// Experts by all-to-all; attention and shared experts stay on their ranks.
    AllToAll,
}

/// Rows and widths that decide the volume of a layer's exchange.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rows {
    /// Rows of the fullest DP rank, aligned to attention TP.
    pub max: f64,
    /// Rows of all DP ranks.
    pub sum: f64,
    /// Attention-DP ranks.
    pub dp: u32,
    /// Attention-TP ranks.
    pub attention_tp: u32,
    /// Bytes a row: hidden size times the activation's size.
    pub row_bytes: f64,
}

impl Rows {
    fn tp(&self) -> u32 {
        self.dp * self.attention_tp
    }

    /// Rows that the feed-forward block computes.
    pub fn ffn(&self, exchange: Exchange) -> f64 {
        match exchange {
            Exchange::MaxLen => self.max * f64::from(self.dp),
            Exchange::SumLen | Exchange::Exact => self.sum,
            Exchange::AllReduce | Exchange::AllToAll => self.max,
        }
    }

    /// Rows of the gathered buffer, none where nothing is gathered.
    pub fn gathered(&self, exchange: Exchange) -> f64 {
        match exchange {
            Exchange::AllReduce | Exchange::AllToAll => 0.0,
            _ => self.ffn(exchange),
        }
    }
}

/// Collectives around one layer's token mixer and feed-forward block.
pub fn layer(rows: &Rows, exchange: Exchange, has_mixer: bool, has_ffn: bool) -> Calls {
    use Group::{AttentionDp, AttentionTp, Tp};
    use Kind::{AllGather, AllReduce, ReduceScatter};
    use Purpose::{AttentionOutput, Combine, Gather};
    let mut calls = Calls::new();
    let own = rows.max * rows.row_bytes;
    let all = rows.ffn(exchange) * rows.row_bytes;
    let (tp, attention_tp, dp) = (rows.tp(), rows.attention_tp, rows.dp);
    let mut push = |purpose, kind, group, ranks, bytes| {
        calls.push(Call {
            purpose,
            kind,
            group,
            ranks,
            bytes,
        });
    };
    match exchange {
        Exchange::AllReduce => {
            if has_mixer {
                push(AttentionOutput, AllReduce, Tp, tp, own);
            }
            if has_ffn {
                push(Combine, AllReduce, Tp, tp, own);
            }
        }
        Exchange::MaxLen if has_ffn => {
            // The reduce-scatter sums the attention output's partial products on the way.
            push(
                AttentionOutput,
                ReduceScatter,
                AttentionTp,
                attention_tp,
                own,
            );
            push(Gather, AllGather, Tp, tp, all);
            push(Combine, ReduceScatter, Tp, tp, all);
            push(Combine, AllGather, AttentionTp, attention_tp, own);
        }
        Exchange::SumLen if has_ffn => {
            push(Gather, AllReduce, Tp, tp, all);
            push(Combine, AllReduce, Tp, tp, all);
        }
        Exchange::Exact if has_ffn => {
            push(AttentionOutput, AllReduce, AttentionTp, attention_tp, own);
            push(Gather, AllGather, AttentionDp, dp, all);
            push(Combine, ReduceScatter, AttentionDp, dp, all);
            push(Combine, AllReduce, AttentionTp, attention_tp, own);
        }
        Exchange::MaxLen | Exchange::SumLen | Exchange::Exact | Exchange::AllToAll => {
            push(AttentionOutput, AllReduce, AttentionTp, attention_tp, own);
        }
    }
    calls
}

/// Bytes an element of a row takes on its way to its expert: fp8 with a scale for 128 values where
/// the experts are at most 8 bits wide, bf16 otherwise. Rows come back in bf16.
pub fn dispatch_element_bytes(experts: Dtype) -> f64 {
    if experts.bytes() <= 1.1 {
        1.0 + 4.0 / 128.0
    } else {
        Dtype::Bf16.bytes()
    }
}

/// Dispatch and combine of an expert all-to-all over `ranks` ranks: each row of a rank's `tokens`
/// goes to every one of its `top_k` experts by itself (DeepEP's low-latency kernels). Bytes are those
/// that one rank holds.
pub fn experts(tokens: f64, top_k: f64, width: f64, experts: Dtype, ranks: u32) -> Calls {
    let mut calls = Calls::new();
    let values = tokens * top_k * width;
    for (kind, element_bytes) in [
        (Kind::ExpertDispatch, dispatch_element_bytes(experts)),
        (Kind::ExpertCombine, Dtype::Bf16.bytes()),
    ] {
        calls.push(Call {
            purpose: Purpose::Experts,
            kind,
            group: Group::Ep,
            ranks,
            bytes: values * element_bytes,
        });
    }
    calls
}

/// How a DCP group merges its partial attention outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DcpMerge {
    /// All-gather of LSE, correction, reduce-scatter over heads.
    ReduceScatter,
    /// All-gather of LSE, correction, all-reduce, local slice (SGLang's Triton backend).
    AllReduce,
    /// One all-to-all of outputs with their LSE packed behind them.
    AllToAll,
    /// The same bytes by one kernel of the engine over peer memory, which merges what arrives; its
    /// queries come by another.
    Fused,
}

/// Shapes that decide the volume of DCP in one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DcpShape {
    /// Ranks of the group.
    pub ranks: u32,
    /// Query tokens.
    pub tokens: f64,
    /// Query heads of one rank.
    pub heads: f64,
    /// Width of a query that meets the cache (576 for absorbed MLA).
    pub qk_dim: f64,
    /// Width of an output (512 for absorbed MLA).
    pub v_dim: f64,
    /// How outputs are merged.
    pub merge: DcpMerge,
    /// Bytes a merged value is sent with (4 in SGLang's MLA and Triton paths, 2 in vLLM).
    pub merge_bytes: f64,
    /// Queries are computed for the whole group on every rank, so none are gathered.
    pub replicated_q: bool,
    /// An all-to-all merge sends the LSE by a collective of its own.
    pub lse_apart: bool,
}

/// Collectives that DCP adds to one layer, for `layers` of which the caller multiplies.
pub fn dcp(shape: &DcpShape) -> Calls {
    let mut calls = Calls::new();
    let n = f64::from(shape.ranks);
    let group_heads = shape.tokens * shape.heads * n;
    let call = |purpose, kind, bytes| Call {
        purpose,
        kind,
        group: Group::Dcp,
        ranks: shape.ranks,
        bytes,
    };
    if !shape.replicated_q {
        calls.push(call(
            Purpose::DcpQuery,
            Kind::AllGather,
            group_heads * shape.qk_dim * 2.0,
        ));
    }
    match shape.merge {
        DcpMerge::Fused => {
            // An fp32 LSE goes with every row.
            let bytes = group_heads * (shape.v_dim * 2.0 + 4.0);
            calls.push(call(Purpose::DcpMerge, Kind::AllToAll, bytes));
        }
        DcpMerge::AllToAll if shape.lse_apart => {
            let own = |purpose, bytes| call(purpose, Kind::AllToAll, bytes);
            calls.push(own(Purpose::DcpMerge, group_heads * shape.v_dim * 2.0));
            calls.push(own(Purpose::DcpLse, group_heads * 4.0));
        }
        DcpMerge::AllToAll => {
            // Two bf16 columns carry the fp32 LSE.
            calls.push(call(
                Purpose::DcpMerge,
                Kind::AllToAll,
                group_heads * (shape.v_dim + 2.0) * 2.0,
            ));
        }
        DcpMerge::ReduceScatter | DcpMerge::AllReduce => {
            calls.push(call(
                Purpose::DcpLse,
                Kind::AllGather,
                group_heads * n * 4.0,
            ));
            let kind = match shape.merge {
                DcpMerge::AllReduce => Kind::AllReduce,
                _ => Kind::ReduceScatter,
            };
            calls.push(call(
                Purpose::DcpMerge,
                kind,
                group_heads * shape.v_dim * shape.merge_bytes,
            ));
        }
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r1_dcp8(merge: DcpMerge) -> Calls {
        dcp(&DcpShape {
            ranks: 8,
            tokens: 64.0,
            heads: 16.0,
            qk_dim: 576.0,
            v_dim: 512.0,
            merge,
            merge_bytes: 4.0,
            replicated_q: false,
            lse_apart: false,
        })
    }

    /// DeepSeek-R1, TP8 DCP8, 64 tokens: facts C5.
    #[test]
    fn r1_dcp_volume_matches_the_published_arithmetic() {
        let ring = |calls: Calls| -> Vec<f64> {
            calls
                .as_slice()
                .iter()
                .map(|c| (c.ring_bytes() / 1e4).round() / 100.0)
                .collect()
        };
        assert_eq!(ring(r1_dcp8(DcpMerge::ReduceScatter)), [8.26, 0.23, 14.68]);
        assert_eq!(ring(r1_dcp8(DcpMerge::AllToAll)), [8.26, 7.37]);
        assert_eq!(ring(r1_dcp8(DcpMerge::AllReduce)), [8.26, 0.23, 29.36]);
    }

    #[test]
    fn max_len_moves_two_padded_gathers_and_sum_len_four_sums_around_a_ring() {
        let rows = Rows {
            max: 64.0,
            sum: 320.0,
            dp: 8,
            attention_tp: 1,
            row_bytes: 14336.0,
        };
        let moved = |exchange| -> f64 {
            layer(&rows, exchange, true, true)
                .as_slice()
                .iter()
                .map(Call::ring_bytes)
                .sum()
        };
        let ring = 7.0 / 8.0 * rows.row_bytes;
        assert!((moved(Exchange::MaxLen) - 2.0 * 512.0 * ring).abs() < 1.0);
        assert!((moved(Exchange::SumLen) - 4.0 * 320.0 * ring).abs() < 1.0);
    }

    /// DeepSeek-V3 over 8 ranks: 64 tokens, 8 experts each, 7168 wide, fp8 out and bf16 back.
    #[test]
    fn expert_rows_go_out_in_fp8_and_come_back_in_bf16() {
        let calls = experts(64.0, 8.0, 7168.0, Dtype::Fp8Block, 8);
        let bytes: Vec<f64> = calls.as_slice().iter().map(|c| c.bytes).collect();
        assert_eq!(bytes, [64.0 * 8.0 * 7392.0, 64.0 * 8.0 * 14336.0]);
        assert_eq!(
            experts(64.0, 8.0, 7168.0, Dtype::Bf16, 8).as_slice()[0].bytes,
            bytes[1]
        );
        assert!(
            experts(64.0, 8.0, 7168.0, Dtype::Bf16, 1)
                .as_slice()
                .is_empty()
        );
    }

    #[test]
    fn one_rank_sends_nothing() {
        let rows = Rows {
            max: 64.0,
            sum: 64.0,
            dp: 1,
            attention_tp: 1,
            row_bytes: 8192.0,
        };
        for exchange in [
            Exchange::AllReduce,
            Exchange::MaxLen,
            Exchange::SumLen,
            Exchange::AllToAll,
        ] {
            assert!(layer(&rows, exchange, true, true).as_slice().is_empty());
        }
    }
}
