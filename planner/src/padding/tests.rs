//! The padding rule of each version, held against the figures of the published sources.

#![allow(clippy::unwrap_used)]

use super::*;
use parplan_profiles::engine::{embedded, select};

fn rule(engine: &str) -> PaddingRule {
    select(&embedded().unwrap(), engine, false).unwrap().padding
}

fn pick(engine: &str, tokens: &[u32], context: GatherContext<'_>) -> PaddingMode {
    mode(&rule(engine), &RankTokens::of(tokens, 1), &context).0
}

fn decode<'a>() -> GatherContext<'a> {
    GatherContext {
        row_bytes: 14_336,
        expert_backend: "none",
        custom_all_reduce: true,
        ..GatherContext::default()
    }
}

#[test]
fn max_len_exactly_from_half_the_longest() {
    // mean/max of 0.5 is a tie: strict until 0.5.9, max_len from 0.5.10. An idle rank keeps 0.5.23
    // from its custom all-reduce exception.
    let tie = [64, 64, 0, 0];
    let above = [64, 64, 1, 0];
    let below = [64, 63, 0, 0];
    for version in ["0.4.9.post6", "0.5.1.post3", "0.5.6.post2", "0.5.9"] {
        let engine = format!("sglang@{version}");
        assert_eq!(
            pick(&engine, &tie, decode()),
            PaddingMode::SumLen,
            "{version}"
        );
        assert_eq!(
            pick(&engine, &above, decode()),
            PaddingMode::MaxLen,
            "{version}"
        );
        assert_eq!(
            pick(&engine, &below, decode()),
            PaddingMode::SumLen,
            "{version}"
        );
    }
    for version in ["0.5.10", "0.5.14", "0.5.17", "0.5.22", "0.5.23"] {
        let engine = format!("sglang@{version}");
        assert_eq!(
            pick(&engine, &tie, decode()),
            PaddingMode::MaxLen,
            "{version}"
        );
        assert_eq!(
            pick(&engine, &above, decode()),
            PaddingMode::MaxLen,
            "{version}"
        );
        assert_eq!(
            pick(&engine, &below, decode()),
            PaddingMode::SumLen,
            "{version}"
        );
    }
}

#[test]
fn the_rule_is_mean_over_max_for_any_batch() {
    let rule = rule("sglang@0.5.22");
    let mut state = 7;
    for _ in 0..2_000 {
        let ranks = 2 + (split_mix(&mut state) % 15) as usize;
        let batch: Vec<u32> = (0..ranks)
            .map(|_| (split_mix(&mut state) % 97) as u32)
            .collect();
        let rows = RankTokens::of(&batch, 1);
        let expected = if rows.balance() >= 0.5 {
            PaddingMode::MaxLen
        } else {
            PaddingMode::SumLen
        };
        assert_eq!(mode(&rule, &rows, &decode()).0, expected, "{batch:?}");
    }
}

#[test]
fn prefill_on_any_rank_is_sum_len_from_0_5_3() {
    let extend = GatherContext {
        extend: true,
        ..decode()
    };
    let even = [64, 64, 64, 64];
    assert_eq!(pick("sglang@0.5.2", &even, extend), PaddingMode::MaxLen);
    for version in ["0.5.3", "0.5.9", "0.5.10", "0.5.23"] {
        assert_eq!(
            pick(&format!("sglang@{version}"), &even, extend),
            PaddingMode::SumLen,
            "{version}"
        );
    }
    // One rank: the old clause did not look at the width.
    assert_eq!(pick("sglang@0.5.9", &[64], extend), PaddingMode::SumLen);
    assert_eq!(pick("sglang@0.5.10", &[64], extend), PaddingMode::MaxLen);
}

#[test]
fn exceptions_of_the_later_versions() {
    let extend = GatherContext {
        extend: true,
        ..decode()
    };
    let pplx = GatherContext {
        expert_backend: "pplx",
        ..extend
    };
    assert_eq!(pick("sglang@0.5.16", &[9, 1], pplx), PaddingMode::SumLen);
    assert_eq!(pick("sglang@0.5.17", &[9, 1], pplx), PaddingMode::MaxLen);
    let v2 = GatherContext {
        expert_backend: "deepep_v2",
        ..extend
    };
    let forced = GatherContext {
        max_len_requested: true,
        ..v2
    };
    assert_eq!(pick("sglang@0.5.19", &[9, 1], v2), PaddingMode::SumLen);
    assert_eq!(pick("sglang@0.5.19", &[9, 1], forced), PaddingMode::MaxLen);
    assert_eq!(pick("sglang@0.5.18", &[9, 1], forced), PaddingMode::SumLen);
    let hybrid = GatherContext {
        hybrid: true,
        ..extend
    };
    assert_eq!(pick("sglang@0.5.14", &[9, 0], hybrid), PaddingMode::MaxLen);
    assert_eq!(pick("sglang@0.5.14", &[9, 1], hybrid), PaddingMode::SumLen);
    assert_eq!(pick("sglang@0.5.13", &[9, 0], hybrid), PaddingMode::SumLen);
}

#[test]
fn a_prefill_graph_forces_max_len_from_0_5_16() {
    let graph = GatherContext {
        extend: true,
        prefill_graph_rows: Some(64),
        ..decode()
    };
    assert_eq!(pick("sglang@0.5.15", &[60, 1], graph), PaddingMode::SumLen);
    assert_eq!(pick("sglang@0.5.16", &[60, 1], graph), PaddingMode::MaxLen);
    let rows = RankTokens::of(&[60, 1], 1);
    assert_eq!(padding(&rule("sglang"), &rows, &graph).buffer_rows, 128);
}

#[test]
fn decode_that_fits_the_custom_all_reduce_is_sum_len_in_0_5_23() {
    // 16 MiB of 14,336 B rows is 1,170 rows (hidden 7168, bf16).
    let rows = |each: u32| vec![each; 8];
    let context = decode();
    assert_eq!(pick("sglang", &rows(146), context), PaddingMode::SumLen);
    assert_eq!(pick("sglang", &rows(147), context), PaddingMode::MaxLen);
    assert_eq!(
        pick("sglang@0.5.22", &rows(146), context),
        PaddingMode::MaxLen
    );
    for without in [
        GatherContext {
            speculation: true,
            ..context
        },
        GatherContext {
            custom_all_reduce: false,
            ..context
        },
        GatherContext {
            expert_backend: "deepep",
            ..context
        },
    ] {
        assert_eq!(pick("sglang", &rows(146), without), PaddingMode::MaxLen);
    }
    let mut idle = rows(100);
    idle[3] = 0;
    assert_eq!(pick("sglang", &idle, context), PaddingMode::MaxLen);
    // Under a graph the captured size decides, whatever the batch.
    let graph = |captured| GatherContext {
        graph_rows: Some(captured),
        ..context
    };
    assert_eq!(pick("sglang", &rows(3), graph(144)), PaddingMode::SumLen);
    assert_eq!(pick("sglang", &rows(3), graph(160)), PaddingMode::MaxLen);
    assert_eq!(
        pick("sglang@0.5.22", &rows(3), graph(8)),
        PaddingMode::MaxLen
    );
}

#[test]
fn rows_and_waste() {
    let context = decode();
    let rule = rule("sglang@0.5.22");
    // 5 tokens on an attention-TP group of 4 are 8 rows.
    let rows = RankTokens::of(&[5, 9], 4);
    assert_eq!((rows.max, rows.min, rows.sum, rows.tokens), (12, 8, 20, 14));
    let eager = padding(&rule, &rows, &context);
    assert_eq!(eager.mode, PaddingMode::MaxLen);
    assert_eq!((eager.buffer_rows, eager.padded_rows), (24, 10));
    assert_eq!(eager.form, GatherForm::AllGather);

    let lonely = padding(&rule, &RankTokens::of(&[100, 0, 0, 0], 1), &context);
    assert_eq!(lonely.mode, PaddingMode::SumLen);
    assert_eq!((lonely.buffer_rows, lonely.padded_rows), (100, 0));
    assert_eq!(lonely.form, GatherForm::AllReduce);

    // A graph of 16 requests a rank works on 64 rows whichever rank is empty.
    let graph = GatherContext {
        graph_rows: Some(16),
        ..context
    };
    let replay = padding(&rule, &RankTokens::of(&[13, 0, 1, 2], 1), &graph);
    assert_eq!((replay.buffer_rows, replay.padded_rows), (64, 48));
}

#[test]
fn vllm_pads_only_under_graphs_and_trtllm_never() {
    let rows = RankTokens::of(&[100, 1], 1);
    let eager = padding(&rule("vllm"), &rows, &decode());
    assert_eq!((eager.form, eager.buffer_rows), (GatherForm::Exact, 101));
    let graph = GatherContext {
        graph_rows: Some(104),
        ..decode()
    };
    let replay = padding(&rule("vllm"), &rows, &graph);
    assert_eq!(
        (replay.form, replay.buffer_rows),
        (GatherForm::AllGather, 208)
    );
    let exact = padding(&rule("trtllm"), &rows, &graph);
    assert_eq!((exact.form, exact.buffer_rows), (GatherForm::Exact, 101));
    let planned = GatherContext {
        planned: Some(PaddingMode::SumLen),
        ..decode()
    };
    assert_eq!(
        padding(&rule("builtin"), &rows, &planned).mode,
        PaddingMode::SumLen
    );
}

#[test]
fn spreads_keep_every_token() {
    let balanced = RankTokens::balanced(10, 4, 1);
    assert_eq!((balanced.max, balanced.min, balanced.sum), (3, 2, 10));
    let half = RankTokens::imbalanced(400, 4, 1, 0.5);
    assert_eq!((half.max, half.sum), (200, 400));
    assert!((half.balance() - 0.5).abs() < 1e-12);
    let all = RankTokens::imbalanced(400, 4, 1, 0.01);
    assert_eq!((all.max, all.min, all.sum), (400, 0, 400));
    assert_eq!(
        RankTokens::imbalanced(400, 4, 1, f64::NAN),
        RankTokens::balanced(400, 4, 1)
    );
    let drawn = RankTokens::drawn(1_000, 2, 8, 1, 42);
    assert_eq!(drawn, RankTokens::drawn(1_000, 2, 8, 1, 42));
    assert_eq!(drawn.tokens, 2_000);
    assert!(
        drawn.balance() > 0.7 && drawn.balance() < 1.0,
        "{}",
        drawn.balance()
    );
    assert_ne!(drawn, RankTokens::drawn(1_000, 2, 8, 1, 43));
    // Nothing overflows at the ends of the range.
    let huge = RankTokens::balanced(u64::MAX, u32::MAX, u32::MAX);
    let padded = padding(&rule("sglang"), &huge, &decode());
    assert!(padded.buffer_rows >= huge.max);
    assert_eq!(RankTokens::of(&[], 8).sum, 0);
    assert!(RankTokens::drawn(u32::MAX, u32::MAX, 3, 1, 1).tokens > 0);
}

#[test]
fn the_pure_ep_recipe_gathers_nothing() {
    let rules = select(&embedded().unwrap(), "sglang", false).unwrap();
    let layout = |attention_dp| Layout {
        replicas: 1,
        tp: 8,
        attention_dp,
        dcp: 1,
        ep: 8,
        pp: 1,
        nodes: 1,
    };
    let of = |dp, backend, unsplit| gathering(&rules.experts, &layout(dp), backend, unsplit);
    assert!(of(8, None, false).over_stage);
    assert!(of(8, None, true).over_stage);
    assert!(of(8, Some("deepep"), false).over_stage);
    assert!(!of(8, Some("deepep"), true).any());
    assert!(of(8, Some("flashinfer"), true).over_stage);
    // Attention TP ranks still split and gather their own rows.
    let mixed = of(2, Some("deepep"), true);
    assert!(!mixed.over_stage && mixed.over_attention_tp);
    assert!(!of(1, None, false).any());
    assert!(of(1, Some("deepep"), false).over_attention_tp);
}
