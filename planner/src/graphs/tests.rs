//! Capture lists and landings, against the lists of the published sources.

#![allow(clippy::unwrap_used)]

use super::*;
use parplan_profiles::engine::{embedded, select};

fn rules(engine: &str) -> EngineRules {
    select(&embedded().unwrap(), engine, false).unwrap()
}

fn layout(tp: u32, attention_dp: u32) -> Layout {
    Layout {
        replicas: 1,
        tp,
        attention_dp,
        dcp: 1,
        ep: 1,
        pp: 1,
        nodes: 1,
    }
}

fn on(tp: u32, attention_dp: u32, gpu_mib: u64) -> GraphContext<'static> {
    GraphContext {
        layout: layout(tp, attention_dp),
        gpu_mib: Some(gpu_mib),
        gpu: "h100",
        sm: 90,
        running_requests: None,
        pool: None,
        query_length: 1,
        speculation: false,
        gathers: attention_dp > 1,
        two_batch_overlap: false,
        largest: None,
        tokens: None,
        mla: true,
    }
}

const H100: u64 = 81_559;

#[test]
fn tp8_dp2_loses_sizes_1_and_2() {
    for version in ["0.5.6.post2", "0.5.23"] {
        let rules = rules(&format!("sglang@{version}"));
        let list = default_list(&rules, &on(8, 2, H100));
        assert_eq!(list.lost, vec![1, 2], "{version}");
        assert_eq!(list.sizes[..4], [4, 8, 12, 16]);
        assert_eq!(list.largest(), Some(512));
        let plain = default_list(&rules, &on(8, 8, H100));
        assert_eq!(plain.sizes[..3], [1, 2, 4]);
        assert!(plain.lost.is_empty());
    }
}

#[test]
fn sglang_lists_by_gpu_tp_and_speculation() {
    let rules = rules("sglang");
    let counts = |tp, mib| default_list(&rules, &on(tp, 1, mib)).largest();
    assert_eq!(counts(8, H100), Some(512));
    assert_eq!(counts(2, H100), Some(256));
    assert_eq!(counts(4, 24_564), Some(160));
    assert_eq!(counts(1, 24_564), Some(48));
    assert_eq!(counts(1, 183_359), Some(512));
    assert_eq!(counts(8, 16_384), Some(8));
    let list = default_list(&rules, &on(8, 1, H100)).sizes;
    // 1 2 4 8 12 + 31 of 8 + 15 of 16 + 512
    assert_eq!(list.len(), 5 + 31 + 15 + 1);
    assert!(list.contains(&256) && !list.contains(&264) && list.contains(&272));
    let draft = GraphContext {
        speculation: true,
        query_length: 4,
        ..on(8, 2, H100)
    };
    let spec = default_list(&rules, &draft);
    // Four tokens a request: every request count is a multiple of attention TP in tokens.
    assert!(spec.lost.is_empty());
    assert_eq!(spec.sizes[..9], [1, 2, 3, 4, 5, 6, 7, 8, 10]);
    // The 0.5.6 era counted requests.
    let old = default_list(&super::tests::rules("sglang@0.5.6.post2"), &draft);
    assert_eq!(old.sizes[..4], [4, 8, 12, 16]);
}

#[test]
fn the_pool_and_the_running_limit() {
    // 0.5.23 lowers the largest to the global limit, then the pool of a rank caps it.
    let new = rules("sglang");
    let old = rules("sglang@0.5.6.post2");
    let capped = GraphContext {
        running_requests: Some(100),
        ..on(8, 2, H100)
    };
    assert_eq!(default_largest(&new, &capped), 100);
    assert_eq!(default_largest(&old, &capped), 512);
    // 50 requests a rank: 0.5.23 rounds the pool up to 52, 0.5.6 drops 50 as no multiple of 4.
    assert_eq!(default_list(&new, &capped).largest(), Some(52));
    assert_eq!(default_list(&old, &capped).largest(), Some(48));
}

#[test]
fn vllm_lists() {
    let largest = |engine: &str, context| default_list(&rules(engine), &context).largest();
    assert_eq!(largest("vllm@0.19.0", on(8, 1, H100)), Some(512));
    let b200 = GraphContext {
        sm: 100,
        gpu: "b200",
        ..on(8, 1, 183_359)
    };
    assert_eq!(largest("vllm@0.24.0", b200), Some(512));
    assert_eq!(largest("vllm", b200), Some(1024));
    let few = GraphContext {
        running_requests: Some(20),
        ..on(8, 1, H100)
    };
    assert_eq!(largest("vllm@0.19.0", few), Some(40));
    // 0.29 adds the request limit itself.
    assert!(
        !default_list(&rules("vllm@0.28.0"), &few)
            .sizes
            .contains(&20)
    );
    assert!(default_list(&rules("vllm"), &few).sizes.contains(&20));
    let list = default_list(&rules("vllm"), &on(8, 1, H100)).sizes;
    assert_eq!(list[..5], [1, 2, 4, 8, 16]);
    assert!(list.contains(&248) && list.contains(&256) && !list.contains(&264));
    let draft = GraphContext {
        speculation: true,
        query_length: 3,
        ..few
    };
    let spec = default_list(&rules("vllm"), &draft).sizes;
    assert!(spec.iter().all(|size| size % 3 == 0), "{spec:?}");
    assert!(spec.contains(&60));
}

#[test]
fn prefill_buckets_by_version_and_layout() {
    let rules = rules("sglang");
    let context = on(8, 1, H100);
    let mla = prefill_buckets(&rules, &context, 8192);
    assert_eq!((mla.first(), mla.last()), (Some(&4), Some(&8192)));
    let dense = GraphContext {
        mla: false,
        ..context
    };
    assert_eq!(
        prefill_buckets(&rules, &dense, 16_384).last(),
        Some(&16_384)
    );
    assert_eq!(
        prefill_buckets(&rules, &context, 16_384).last(),
        Some(&8192)
    );
    let before = self::rules("sglang@0.5.22");
    assert_eq!(prefill_buckets(&before, &context, 8192).last(), Some(&2048));
    let dcp = GraphContext {
        layout: Layout {
            dcp: 8,
            ..context.layout
        },
        ..context
    };
    assert!(prefill_buckets(&rules, &dcp, 8192).is_empty());
    assert!(prefill_buckets(&self::rules("sglang@0.5.6.post2"), &context, 8192).is_empty());
}

#[test]
fn batches_land_or_fall_to_eager() {
    let rules = rules("sglang");
    let list = default_list(&rules, &on(8, 2, H100));
    let batch = DecodeBatch {
        most_requests: 17,
        all_requests: 20,
        query_length: 1,
        rank_in_prefill: false,
    };
    assert_eq!(
        landing(&rules, &list, &batch),
        Landing::Graph {
            size: 24,
            rank_rows: 24,
            waste_rows: 7
        }
    );
    let prefill = DecodeBatch {
        rank_in_prefill: true,
        ..batch
    };
    assert_eq!(
        landing(&rules, &list, &prefill),
        Landing::Eager {
            reason: EagerReason::RankInPrefill
        }
    );
    let large = DecodeBatch {
        most_requests: 513,
        ..batch
    };
    let Landing::Eager { reason } = landing(&rules, &list, &large) else {
        unreachable!("513 is above 512");
    };
    assert!(reason.to_string().contains("513") && reason.to_string().contains("512"));
    let nothing = CaptureList {
        sizes: vec![],
        ..list
    };
    assert_eq!(
        landing(&rules, &nothing, &batch),
        Landing::Eager {
            reason: EagerReason::NothingCaptured
        }
    );
}

#[test]
fn the_unit_is_the_engines() {
    // 16 ranks of 32 requests: 512 in all went eager before PR 8278 (issue 5527), 32 after.
    let batch = DecodeBatch {
        most_requests: 32,
        all_requests: 512,
        query_length: 1,
        rank_in_prefill: false,
    };
    let land = |engine: &str| {
        let rules = rules(engine);
        landing(&rules, &default_list(&rules, &on(16, 16, H100)), &batch)
    };
    assert!(matches!(land("sglang@0.4.9"), Landing::Eager { .. }));
    assert!(matches!(
        land("sglang@0.4.9.post6"),
        Landing::Graph { size: 32, .. }
    ));
    let tokens = DecodeBatch {
        query_length: 3,
        ..batch
    };
    let rules = rules("vllm@0.24.0");
    let context = GraphContext {
        query_length: 3,
        speculation: true,
        ..on(16, 16, H100)
    };
    let Landing::Graph { size, .. } = landing(&rules, &default_list(&rules, &context), &tokens)
    else {
        unreachable!("96 tokens are below 512");
    };
    assert_eq!(size, 96);
}

/// The fewest sizes that cover `batches`, found by going through them all.
fn listed(
    rules: &EngineRules,
    context: &GraphContext<'_>,
    batches: &[u32],
    waste: f64,
) -> CaptureList {
    let multiple = capture_multiple(rules, context);
    let up = |batch: u32| batch.div_ceil(multiple).saturating_mul(multiple);
    let mut left = batches.to_vec();
    let mut sizes = Vec::new();
    while let Some(largest) = left.pop() {
        let size = up(largest);
        sizes.push(size);
        left.retain(|&batch| {
            let most = (f64::from(batch) * (1.0 + waste)).floor() as u32;
            most.max(up(batch)) < size
        });
    }
    sizes.sort_unstable();
    CaptureList {
        unit: rules.graphs.unit,
        sizes,
        lost: Vec::new(),
    }
}

#[test]
fn a_covering_list_is_the_fewest_that_covers() {
    let rules = rules("sglang");
    let context = on(8, 2, H100);
    let batches: Vec<u32> = (1..=100).collect();
    for waste in [0.0, 0.1, 0.25, 1.0] {
        let list = covering_list(&rules, &context, 100, 1, waste);
        assert_eq!(list, listed(&rules, &context, &batches, waste));
        assert_eq!(list.largest(), Some(100));
        let kept = explicit_list(&rules, &context, &list.sizes);
        assert!(kept.lost.is_empty());
        for &batch in &batches {
            let size = *list.sizes.iter().find(|&&size| size >= batch).unwrap();
            let allowed = f64::from(batch) * (1.0 + waste);
            assert!(f64::from(size) <= allowed.max(f64::from(batch.next_multiple_of(4))));
        }
    }
    assert_eq!(
        covering_list(&rules, &context, 10, 1, 0.0).sizes,
        vec![4, 8, 12]
    );
    assert!(covering_list(&rules, &context, 0, 1, 0.1).sizes.is_empty());
}

#[test]
fn odd_numbers_do_not_break_anything() {
    let rules = rules("sglang");
    let context = GraphContext {
        largest: Some(u32::MAX),
        running_requests: Some(u32::MAX),
        query_length: u32::MAX,
        ..on(0, 0, 0)
    };
    assert!(default_list(&rules, &context).sizes.len() <= MOST_SIZES);
    assert!(explicit_list(&rules, &context, &[0, 0]).sizes.is_empty());
    let most = covering_list(&rules, &context, u32::MAX, u32::MAX, f64::INFINITY);
    assert_eq!(most.sizes.len(), 1);
}

#[test]
fn a_covering_list_is_that_of_its_batches_one_by_one() {
    for engine in ["sglang", "sglang@0.5.6.post2", "vllm", "trtllm", "builtin"] {
        let rules = rules(engine);
        for (tp, attention_dp, width) in [(8, 1, 1), (8, 2, 1), (8, 8, 1), (8, 2, 3), (4, 1, 2)] {
            let context = GraphContext {
                query_length: width,
                speculation: width > 1,
                ..on(tp, attention_dp, H100)
            };
            for count in [1, 2, 7, 64, 257, 1024] {
                let batches: Vec<u32> = (1..=count).map(|n| n * width).collect();
                assert_eq!(
                    covering_list(&rules, &context, count, width, 0.125),
                    listed(&rules, &context, &batches, 0.125),
                    "{engine} tp{tp} dp{attention_dp} width {width} count {count}"
                );
            }
        }
    }
}
