//! Each rule of legality refuses what it should, names the value, and offers one that passes.

#![allow(clippy::unwrap_used)]

use super::*;
use parplan_profiles::engine::{embedded, select};

fn engine(name: &str) -> EngineRules {
    select(&embedded().unwrap(), name, false).unwrap()
}

fn heads(query: u32, kv: u32, latent: bool) -> shape::Heads {
    shape::Heads { query, kv, latent }
}

fn deepseek() -> ModelShape {
    ModelShape {
        layers: 61,
        attention: vec![heads(128, 1, true)],
        experts: vec![shape::Experts {
            count: 256,
            intermediate: 2048,
            dtype: Dtype::Fp8Block,
        }],
        dense: vec![shape::Dense {
            intermediate: 18_432,
            dtype: Dtype::Fp8Block,
        }],
        ..ModelShape::default()
    }
}

fn qwen235() -> ModelShape {
    ModelShape {
        layers: 94,
        attention: vec![heads(64, 4, false)],
        experts: vec![shape::Experts {
            count: 128,
            intermediate: 1536,
            dtype: Dtype::Bf16,
        }],
        ..ModelShape::default()
    }
}

fn llama70() -> ModelShape {
    ModelShape {
        layers: 80,
        attention: vec![heads(64, 8, false)],
        dense: vec![shape::Dense {
            intermediate: 28_672,
            dtype: Dtype::Bf16,
        }],
        ..ModelShape::default()
    }
}

const NODE: Machines = Machines {
    gpus: 8,
    gpus_per_node: 8,
    link_domain: 8,
    sm: 90,
};
const TP8: Layout = Layout {
    replicas: 1,
    tp: 8,
    attention_dp: 1,
    dcp: 1,
    ep: 1,
    pp: 1,
    nodes: 1,
};

fn refused(rules: &str, model: &ModelShape, layout: Layout, options: Options<'_>) -> Vec<Refusal> {
    let rules = engine(rules);
    let machines = Machines { gpus: 64, ..NODE };
    let ground = Ground {
        rules: &rules,
        model,
        machines,
        options,
    };
    let found = check(&layout, &ground);
    assert_eq!(found.is_ok(), is_legal(&layout, &ground), "{layout:?}");
    found.err().unwrap_or_default()
}

fn only(rules: &str, model: &ModelShape, layout: Layout, options: Options<'_>) -> Refusal {
    let mut found = refused(rules, model, layout, options);
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

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
fn dcp_rules() {
    let free = Options::default();
    let dcp = |width| Layout { dcp: width, ..TP8 };
    let early = only("sglang@0.5.14", &deepseek(), dcp(8), free);
    assert_eq!(early.rule, Rule::DcpVersion);
    assert!(
        early.reason.contains("0.5.15 is the first"),
        "{}",
        early.reason
    );
    assert!(
        only("trtllm", &deepseek(), dcp(8), free)
            .reason
            .contains("use dcp 1")
    );

    let straddles = only(
        "sglang",
        &deepseek(),
        Layout {
            attention_dp: 4,
            ..dcp(4)
        },
        free,
    );
    assert_eq!(
        (straddles.rule, straddles.nearest),
        (Rule::DcpDividesAttentionTp, Some(2))
    );
    // 4 KV heads on 8 ranks are kept twice.
    let copies = only("sglang", &qwen235(), dcp(4), free);
    assert_eq!((copies.rule, copies.nearest), (Rule::DcpCopies, Some(2)));
    let none = refused("vllm", &llama70(), dcp(2), free);
    assert_eq!((none[0].rule, none[0].nearest), (Rule::DcpCopies, Some(1)));
    // 12 query heads a KV head do not split by 8.
    let group = ModelShape {
        attention: vec![heads(96, 1, false)],
        ..llama70()
    };
    let group = ModelShape {
        attention: vec![heads(group.attention[0].query / 8, 1, false)],
        ..group
    };
    let odd = refused("sglang", &group, Layout { tp: 4, ..dcp(4) }, free);
    assert!(odd.is_empty(), "{odd:?}");
    let odd = refused("sglang", &group, dcp(8), free);
    assert!(
        odd.iter()
            .any(|r| r.rule == Rule::DcpQueryGroup && r.nearest == Some(6)),
        "{odd:?}"
    );

    let window = ModelShape {
        window: true,
        sinks: true,
        ..qwen235()
    };
    let kinds: Vec<_> = refused("sglang", &window, dcp(2), free)
        .iter()
        .map(|r| r.rule)
        .collect();
    assert_eq!(kinds, vec![Rule::DcpAttention, Rule::DcpAttention]);
    assert_eq!(refused("builtin", &window, dcp(2), free), vec![]);

    let fp4 = Options {
        kv_dtype: Dtype::Nvfp4,
        ..free
    };
    assert_eq!(
        only("sglang", &deepseek(), dcp(8), fp4).rule,
        Rule::DcpKvFormat
    );
    let fp8 = Options {
        kv_dtype: Dtype::Fp8,
        ..free
    };
    assert_eq!(refused("sglang", &deepseek(), dcp(8), fp8), vec![]);
    let draft = Options {
        speculation: true,
        ..free
    };
    assert_eq!(
        only("sglang@0.5.15", &deepseek(), dcp(8), draft).rule,
        Rule::DcpSpeculation
    );
    assert_eq!(refused("sglang", &deepseek(), dcp(8), draft), vec![]);

    let a2a = Options {
        dcp_merge: Some(DcpMerge::A2a),
        ..free
    };
    let unknown = only("vllm@0.17.0", &deepseek(), dcp(8), a2a);
    assert!(
        unknown.reason.contains("it knows ag_rs"),
        "{}",
        unknown.reason
    );
    let fi = Options {
        dcp_merge: Some(DcpMerge::FiA2a),
        ..free
    };
    assert!(
        only("sglang", &deepseek(), dcp(8), fi)
            .reason
            .contains("10.x")
    );
    let copy_q = Options {
        replicate_q: true,
        dcp_merge: Some(DcpMerge::AgRs),
        ..free
    };
    assert_eq!(
        only("sglang", &deepseek(), dcp(8), copy_q).rule,
        Rule::DcpReplicatedQ
    );
    let copy_q = Options {
        replicate_q: true,
        ..free
    };
    assert_eq!(refused("sglang", &deepseek(), dcp(8), copy_q), vec![]);
}

#[test]
fn expert_rules() {
    let free = Options::default();
    let ep = |width| Layout { ep: width, ..TP8 };
    assert_eq!(only("sglang", &deepseek(), ep(3), free).nearest, Some(2));
    let all = only("vllm", &deepseek(), ep(4), free);
    assert_eq!((all.rule, all.nearest), (Rule::EpWidth, Some(1)));
    assert_eq!(only("sglang", &llama70(), ep(8), free).rule, Rule::EpModel);
    let odd = ModelShape {
        experts: vec![shape::Experts {
            count: 60,
            intermediate: 2048,
            dtype: Dtype::Bf16,
        }],
        ..deepseek()
    };
    let experts = only("sglang", &odd, ep(8), free);
    assert_eq!(
        (experts.rule, experts.nearest),
        (Rule::EpDividesExperts, Some(4))
    );

    // Qwen3-235B in fp8 blocks: 1536 / 8 = 192 is no multiple of 128; ep 2 leaves 384.
    let fp8 = ModelShape {
        experts: vec![shape::Experts {
            count: 128,
            intermediate: 1536,
            dtype: Dtype::Fp8Block,
        }],
        ..qwen235()
    };
    let shard = only("sglang", &fp8, TP8, free);
    assert_eq!((shard.rule, shard.nearest), (Rule::ExpertShard, Some(2)));
    assert!(shard.reason.contains("blocks of 128"), "{}", shard.reason);
    assert_eq!(refused("sglang", &fp8, ep(2), free), vec![]);
    assert_eq!(refused("builtin", &fp8, TP8, free), vec![]);

    let wide = Layout {
        tp: 32,
        attention_dp: 32,
        ep: 32,
        nodes: 4,
        ..TP8
    };
    let dense = only("sglang", &deepseek(), wide, free);
    assert_eq!((dense.rule, dense.nearest), (Rule::DenseShard, Some(24)));
    let unsplit = Options {
        dense_unsplit: true,
        ..free
    };
    assert_eq!(refused("sglang", &deepseek(), wide, unsplit), vec![]);
    // vLLM splits dense layers over attention TP alone.
    assert_eq!(refused("vllm", &deepseek(), wide, free), vec![]);

    let deepep = Options {
        expert_backend: Some("deepep"),
        ..free
    };
    assert_eq!(only("sglang", &deepseek(), TP8, deepep).nearest, Some(8));
    assert_eq!(refused("sglang", &deepseek(), ep(8), deepep), vec![]);
    let pplx = Options {
        expert_backend: Some("pplx"),
        ..free
    };
    let unknown = only("sglang@0.5.9", &deepseek(), ep(8), pplx);
    assert!(
        unknown.reason.contains("no expert backend 'pplx'"),
        "{}",
        unknown.reason
    );
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

/// gpt-oss has no DeepEP path in SGLang, so its experts are reached by gathering.
#[test]
fn mxfp4_experts_have_no_all_to_all_in_sglang() {
    let library = parplan_profiles::Library::embedded();
    let refusals = |name: &str| {
        let model = ModelShape::of(&library.model(name).unwrap());
        let rules = select(&embedded().unwrap(), "sglang", false).unwrap();
        let ground = Ground {
            rules: &rules,
            model: &model,
            machines: Machines {
                gpus: 8,
                gpus_per_node: 8,
                link_domain: 8,
                sm: 90,
            },
            options: Options {
                expert_backend: Some("deepep"),
                ..Options::default()
            },
        };
        let layout = Layout {
            replicas: 1,
            tp: 8,
            attention_dp: 8,
            dcp: 1,
            ep: 8,
            pp: 1,
            nodes: 1,
        };
        check(&layout, &ground).err().unwrap_or_default()
    };
    let refused = refusals("gpt-oss-120b");
    assert!(
        refused
            .iter()
            .any(|r| r.rule == Rule::ExpertBackend && r.reason.contains("mxfp4")),
        "{refused:?}"
    );
    assert!(
        refusals("deepseek-v3")
            .iter()
            .all(|r| r.rule != Rule::ExpertBackend)
    );
}
