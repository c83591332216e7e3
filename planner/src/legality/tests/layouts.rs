//! Sizes, machines, attention widths and stages, and what people run.

use super::*;

#[test]
fn what_people_run_is_legal() {
    let free = Options::default();
    for (engine, model, layout) in [
        ("sglang", deepseek(), TP8),
        (
            "sglang",
            deepseek(),
            Layout {
                attention_dp: 8,
                ..TP8
            },
        ),
        (
            "sglang",
            deepseek(),
            Layout {
                attention_dp: 2,
                ep: 8,
                ..TP8
            },
        ),
        ("sglang", deepseek(), Layout { dcp: 8, ..TP8 }),
        (
            "sglang",
            deepseek(),
            Layout {
                tp: 16,
                attention_dp: 16,
                ep: 16,
                nodes: 2,
                ..TP8
            },
        ),
        ("sglang", qwen235(), Layout { dcp: 2, ..TP8 }),
        (
            "sglang@0.5.6.post2",
            llama70(),
            Layout {
                tp: 4,
                attention_dp: 2,
                replicas: 2,
                ..TP8
            },
        ),
        (
            "vllm",
            deepseek(),
            Layout {
                attention_dp: 8,
                ep: 8,
                ..TP8
            },
        ),
        ("vllm", deepseek(), Layout { dcp: 8, ..TP8 }),
        (
            "vllm",
            llama70(),
            Layout {
                tp: 4,
                pp: 2,
                ..TP8
            },
        ),
        (
            "trtllm",
            deepseek(),
            Layout {
                attention_dp: 8,
                ep: 4,
                ..TP8
            },
        ),
        (
            "builtin",
            deepseek(),
            Layout {
                attention_dp: 2,
                dcp: 4,
                ..TP8
            },
        ),
    ] {
        assert_eq!(
            refused(engine, &model, layout, free),
            vec![],
            "{engine} {layout:?}"
        );
    }
}

#[test]
fn sizes_and_machines() {
    let zero = only(
        "sglang",
        &deepseek(),
        Layout { ep: 0, ..TP8 },
        Options::default(),
    );
    assert_eq!((zero.rule, zero.nearest), (Rule::Positive, Some(1)));
    assert!(zero.reason.contains("ep is 0"));

    let rules = engine("sglang");
    let model = deepseek();
    let seven = Ground {
        rules: &rules,
        model: &model,
        machines: Machines { gpus: 7, ..NODE },
        options: Options::default(),
    };
    let found = check(&TP8, &seven).unwrap_err();
    assert_eq!(found[0].rule, Rule::GpuCount);
    assert!(
        found[0].reason.contains("need 8 GPUs, and there are 7"),
        "{}",
        found[0].reason
    );
    assert!(found[0].reason.contains("tp 4"), "{}", found[0].reason);
    let many = Ground {
        machines: NODE,
        ..seven
    };
    let found = check(
        &Layout {
            replicas: 3,
            tp: 4,
            ..TP8
        },
        &many,
    )
    .unwrap_err();
    assert_eq!((found[0].rule, found[0].nearest), (Rule::GpuCount, Some(2)));

    let wide = only(
        "sglang",
        &deepseek(),
        Layout { tp: 16, ..TP8 },
        Options::default(),
    );
    assert_eq!((wide.rule, wide.nearest), (Rule::Nodes, Some(2)));
    let odd = only(
        "sglang",
        &deepseek(),
        Layout { nodes: 3, ..TP8 },
        Options::default(),
    );
    assert_eq!((odd.rule, odd.nearest), (Rule::Nodes, Some(1)));
    let own = only(
        "builtin",
        &deepseek(),
        Layout {
            tp: 16,
            nodes: 2,
            ..TP8
        },
        Options::default(),
    );
    assert_eq!(own.rule, Rule::SeveralNodes);
}

#[test]
fn attention_widths() {
    let free = Options::default();
    let three = only(
        "sglang",
        &deepseek(),
        Layout {
            attention_dp: 3,
            ..TP8
        },
        free,
    );
    assert_eq!(
        (three.rule, three.nearest),
        (Rule::AttentionDpDividesTp, Some(2))
    );
    assert!(three.reason.contains("attention dp 3 does not divide tp 8"));
    let half = only(
        "trtllm",
        &deepseek(),
        Layout {
            attention_dp: 4,
            ..TP8
        },
        free,
    );
    assert_eq!((half.rule, half.nearest), (Rule::AttentionDpWidth, Some(1)));
    let dense = only(
        "vllm",
        &llama70(),
        Layout {
            attention_dp: 2,
            ..TP8
        },
        free,
    );
    assert_eq!(dense.rule, Rule::AttentionDpModel);
    assert!(
        dense.reason.contains("replicas 2 with tp 4"),
        "{}",
        dense.reason
    );
    // 64 query heads do not spread over 48 ranks.
    let odd = refused(
        "sglang",
        &qwen235(),
        Layout {
            tp: 48,
            nodes: 6,
            ..TP8
        },
        free,
    );
    let odd = odd
        .iter()
        .find(|refusal| refusal.rule == Rule::Heads)
        .unwrap();
    assert!(64 % odd.nearest.unwrap() == 0 && 48 % odd.nearest.unwrap() == 0);
    let hybrid = ModelShape {
        recurrent_heads: vec![12],
        ..deepseek()
    };
    let heads = only("sglang", &hybrid, TP8, free);
    assert_eq!((heads.rule, heads.nearest), (Rule::RecurrentHeads, Some(6)));
}

#[test]
fn pipeline_rules() {
    let free = Options::default();
    let deep = ModelShape {
        layers: 4,
        ..llama70()
    };
    let stages = refused(
        "sglang",
        &deep,
        Layout {
            tp: 1,
            pp: 8,
            ..TP8
        },
        free,
    );
    assert_eq!(
        (stages[0].rule, stages[0].nearest),
        (Rule::PpLayers, Some(4))
    );
    let draft = Options {
        speculation: true,
        ..free
    };
    let pp2 = Layout {
        tp: 4,
        pp: 2,
        ..TP8
    };
    assert_eq!(
        only("sglang@0.5.19", &deepseek(), pp2, draft).rule,
        Rule::PpSpeculation
    );
    assert_eq!(refused("sglang", &deepseek(), pp2, draft), vec![]);
    let both = Layout {
        attention_dp: 4,
        ..pp2
    };
    assert_eq!(
        only("builtin", &deepseek(), both, free).rule,
        Rule::PpAttentionDp
    );
    let windows = Options {
        symmetric_memory: true,
        ..free
    };
    assert_eq!(
        only("sglang@0.4.9", &deepseek(), TP8, windows).rule,
        Rule::SymmetricMemory
    );
}

#[test]
fn the_nearest_value_passes_its_rule_and_nothing_panics() {
    let options = [1, 2, 3, 5, 8, 16, 24, u32::MAX];
    for name in ["sglang", "sglang@0.5.6.post2", "vllm", "trtllm", "builtin"] {
        let rules = engine(name);
        for model in [deepseek(), qwen235(), llama70(), ModelShape::default()] {
            let ground = Ground {
                rules: &rules,
                model: &model,
                machines: Machines { gpus: 64, ..NODE },
                options: Options::default(),
            };
            for tp in options {
                for dp in options {
                    for ep in options {
                        for dcp in [1, 2, 7] {
                            let nodes = tp.div_ceil(8).max(1);
                            let layout = Layout {
                                replicas: 1,
                                tp,
                                attention_dp: dp,
                                dcp,
                                ep,
                                pp: 1,
                                nodes,
                            };
                            let found = check(&layout, &ground);
                            assert_eq!(found.is_ok(), is_legal(&layout, &ground));
                            for refusal in found.err().unwrap_or_default() {
                                assert!(!refusal.reason.is_empty());
                                let Some(nearest) = refusal.nearest else {
                                    continue;
                                };
                                let fixed = match refusal.rule {
                                    Rule::AttentionDpDividesTp | Rule::AttentionDpWidth => Layout {
                                        attention_dp: nearest,
                                        ..layout
                                    },
                                    Rule::EpDividesTp | Rule::EpWidth | Rule::EpDividesExperts => {
                                        Layout {
                                            ep: nearest,
                                            ..layout
                                        }
                                    }
                                    Rule::DcpDividesAttentionTp => Layout {
                                        dcp: nearest,
                                        ..layout
                                    },
                                    _ => continue,
                                };
                                let again = check(&fixed, &ground).err().unwrap_or_default();
                                assert!(
                                    again.iter().all(|other| other.rule != refusal.rule),
                                    "{name} {layout:?}: {} then {again:?}",
                                    refusal.reason
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_vocabulary_divides_over_its_ranks_unless_the_engine_pads_it() {
    let model = ModelShape {
        vocabulary: 100_352,
        attention: vec![heads(40, 10, false)],
        layers: 40,
        ..ModelShape::default()
    };
    let five = Layout { tp: 5, ..TP8 };
    for engine in ["sglang@0.5.21", "vllm@0.33.0"] {
        let refusal = only(engine, &model, five, Options::default());
        assert_eq!(refusal.rule, Rule::Vocabulary, "{engine}");
        assert_eq!(refusal.nearest, Some(4), "{engine}");
        assert!(
            refusal.reason.contains("100352 tokens"),
            "{}",
            refusal.reason
        );
    }
    let padded = refused("sglang@0.5.22", &model, five, Options::default());
    assert_eq!(padded, []);
    // Attention-TP ranks of a vLLM engine split it, not those of all engines.
    let apart = Layout {
        tp: 10,
        attention_dp: 5,
        ep: 10,
        ..five
    };
    let experts = ModelShape {
        experts: deepseek().experts,
        ..model
    };
    let found = refused("vllm@0.33.0", &experts, apart, Options::default());
    assert!(
        found.iter().all(|r| r.rule != Rule::Vocabulary),
        "{found:?}"
    );
}

#[test]
fn limits_and_loads_count_the_ranks() {
    let apart = Layout {
        attention_dp: 8,
        ..TP8
    };
    let limited = |limit| Options {
        running_requests: Some(limit),
        ..Options::default()
    };
    let refusal = only("sglang", &qwen235(), apart, limited(7));
    assert_eq!(
        (refusal.rule, refusal.nearest),
        (Rule::RunningRequests, Some(4))
    );
    assert_eq!(refused("sglang", &qwen235(), apart, limited(8)), []);
    assert_eq!(
        refused("vllm", &qwen235(), Layout { ep: 8, ..apart }, limited(1)),
        []
    );
    assert_eq!(refused("sglang", &qwen235(), TP8, limited(1)), []);
    let listed = |batches| Options {
        batches: Some(batches),
        ..Options::default()
    };
    let refusal = only("sglang", &qwen235(), apart, listed(4));
    assert_eq!((refusal.rule, refusal.nearest), (Rule::Imbalance, Some(4)));
    assert_eq!(refused("sglang", &qwen235(), apart, listed(8)), []);
    assert_eq!(refused("sglang", &qwen235(), TP8, listed(8)), []);
}

#[test]
fn an_all_to_all_needs_gpus_that_it_has_kernels_for() {
    let rules = engine("sglang");
    let model = qwen235();
    let refused = |sm| {
        let ground = Ground {
            rules: &rules,
            model: &model,
            machines: Machines { sm, ..NODE },
            options: Options {
                expert_backend: Some("deepep"),
                ..Options::default()
            },
        };
        check(&Layout { ep: 8, ..TP8 }, &ground)
            .err()
            .unwrap_or_default()
    };
    assert_eq!(refused(90), []);
    for sm in [0, 80, 89] {
        let found = refused(sm);
        assert_eq!(found[0].rule, Rule::ExpertBackend);
        assert!(found[0].reason.contains("9.0"), "{}", found[0].reason);
    }
}
