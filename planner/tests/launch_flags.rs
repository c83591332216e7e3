//! Every command of a grid of plans uses only options and values that the version's own parser
//! takes.
//!
//! The committed tables are generated from those parsers. With `PARPLAN_COMMANDS=FILE` the commands
//! of every version at which a rule or spelling changes, or that has a table, are also written to FILE, which
//! `cargo xtask engines --commands FILE` runs through the real parsers.

#![allow(clippy::unwrap_used, clippy::panic)]

use parplan_planner::Layout;
use parplan_planner::launch::{DraftMethod, LaunchError, LaunchSpec, Speculation, launch};
use parplan_profiles::Dtype;
use parplan_profiles::engine::rules::DcpMerge;
use parplan_profiles::engine::table::tables;
use parplan_profiles::engine::version::Version;
use parplan_profiles::engine::{Dialect, EngineProfile, EngineRules, embedded};
use std::fmt::Write as _;

const TP8: Layout = Layout {
    replicas: 1,
    tp: 8,
    attention_dp: 1,
    dcp: 1,
    ep: 1,
    pp: 1,
    nodes: 1,
};

fn layouts() -> Vec<Layout> {
    vec![
        TP8,
        Layout {
            attention_dp: 8,
            ..TP8
        },
        Layout {
            attention_dp: 2,
            ep: 8,
            ..TP8
        },
        Layout { ep: 8, ..TP8 },
        Layout { dcp: 8, ..TP8 },
        Layout {
            attention_dp: 2,
            dcp: 2,
            ..TP8
        },
        Layout {
            tp: 4,
            pp: 2,
            ..TP8
        },
        Layout {
            tp: 2,
            replicas: 4,
            ..TP8
        },
        Layout {
            tp: 16,
            nodes: 2,
            ..TP8
        },
        Layout {
            tp: 16,
            attention_dp: 16,
            ep: 16,
            nodes: 2,
            ..TP8
        },
        Layout {
            tp: 8,
            pp: 2,
            nodes: 2,
            replicas: 2,
            ..TP8
        },
    ]
}

/// One spec for each thing that can be asked, and one with everything at once.
fn specs(layout: Layout, rules: &EngineRules) -> Vec<LaunchSpec> {
    let base = LaunchSpec::new("deepseek-ai/DeepSeek-V3", layout, 8);
    let draft = |method| Speculation {
        method,
        draft_model: (method != DraftMethod::Mtp && method != DraftMethod::Ngram)
            .then(|| "draft/model".to_owned()),
        steps: 3,
        top_k: 1,
        draft_tokens: 4,
    };
    let mut all = vec![
        base.clone(),
        LaunchSpec {
            served_name: Some("name".to_owned()),
            running_per_rank: Some(64),
            memory_fraction: Some(0.8),
            context_length: Some(65_536),
            long_context: true,
            chunk_tokens: Some(8192),
            page_size: Some(64),
            ..base.clone()
        },
        LaunchSpec {
            graph_sizes: Some(vec![1, 2, 4, 8, 512]),
            ..base.clone()
        },
        LaunchSpec {
            graph_sizes: Some(vec![]),
            prefill_graphs_off: true,
            ..base.clone()
        },
        LaunchSpec {
            symmetric_memory: true,
            ..base.clone()
        },
        LaunchSpec {
            custom_all_reduce_off: true,
            prefix_cache_off: true,
            trust_remote_code: true,
            ..base.clone()
        },
        LaunchSpec {
            dense_unsplit: true,
            ..base.clone()
        },
        LaunchSpec {
            replicate_q: true,
            ..base.clone()
        },
        LaunchSpec {
            expert_kernel: Some("marlin".to_owned()),
            ..base.clone()
        },
    ];
    for merge in [DcpMerge::AgRs, DcpMerge::A2a, DcpMerge::FiA2a] {
        let known = rules
            .dcp
            .as_ref()
            .is_some_and(|rule| rule.merges.contains(&merge));
        if layout.dcp > 1 && known {
            all.push(LaunchSpec {
                dcp_merge: Some(merge),
                ..base.clone()
            });
        }
    }
    for dtype in [Dtype::Bf16, Dtype::Fp8] {
        all.push(LaunchSpec {
            kv_dtype: Some(dtype),
            ..base.clone()
        });
    }
    for backend in &rules.experts.backends {
        all.push(LaunchSpec {
            expert_backend: Some(backend.clone()),
            ..base.clone()
        });
    }
    for method in [
        DraftMethod::Mtp,
        DraftMethod::Eagle,
        DraftMethod::Eagle3,
        DraftMethod::Ngram,
    ] {
        all.push(LaunchSpec {
            speculation: Some(draft(method)),
            ..base.clone()
        });
    }
    all
}

/// The arguments, program left out, of every command of the grid; and how many specs were refused
/// because the version lacks an option.
fn commands(rules: &EngineRules) -> (Vec<Vec<String>>, usize) {
    let program = match rules.dialect {
        Dialect::Sglang => 3,
        Dialect::Vllm => 2,
        Dialect::Trtllm | Dialect::Builtin => 1,
    };
    let (mut all, mut refused) = (Vec::new(), 0);
    for layout in layouts() {
        for spec in specs(layout, rules) {
            match launch(rules, &spec) {
                Ok(plan) => {
                    let gpus: u32 = plan.nodes.iter().map(|node| node.gpus).sum();
                    assert_eq!(gpus, layout.gpus(), "what is launched is what was planned");
                    all.extend(
                        plan.nodes
                            .into_iter()
                            .map(|node| node.argv[program..].to_vec()),
                    );
                }
                Err(LaunchError::NoOption { .. }) => refused += 1,
                Err(other) => panic!("{}: {other}", rules.version),
            }
        }
    }
    (all, refused)
}

fn profile(name: &str) -> EngineProfile {
    embedded()
        .unwrap()
        .into_iter()
        .find(|profile| profile.name == name)
        .unwrap()
}

#[test]
fn every_command_parses_by_the_generated_tables() {
    for table in tables().unwrap() {
        let rules = profile(&table.engine).rules(table.version).unwrap();
        let (commands, refused) = commands(&rules);
        assert!(commands.len() > 150, "{} {}", table.engine, commands.len());
        // The newest versions have everything that the grid asks for, but dense layers are
        // SGLang's alone.
        if table.engine == "sglang" && table.version == Version::release(0, 5, 23) {
            assert_eq!(refused, 0);
        }
        for argv in &commands {
            if let Err(fault) = table.check(argv) {
                panic!("{} {}: {fault}\n{argv:?}", table.engine, table.version);
            }
        }
    }
}

#[test]
fn a_command_of_another_version_is_caught() {
    // The tables must be able to fail: commands of 0.5.23 are not those of 0.5.6.
    let newest = commands(&profile("sglang").rules(Version::release(0, 5, 23)).unwrap()).0;
    let tables = tables().unwrap();
    let old = tables
        .iter()
        .find(|table| table.version.to_string() == "0.5.6.post2")
        .unwrap();
    let failing = newest
        .iter()
        .filter(|argv| old.check(argv).is_err())
        .count();
    assert!(failing > 40, "{failing}");
}

#[test]
fn commands_for_the_real_parsers() {
    let mut text = String::new();
    for name in ["sglang", "vllm"] {
        let profile = profile(name);
        let mut versions = profile.versions_of_change();
        let tables = tables().unwrap();
        versions.extend(
            tables
                .iter()
                .filter(|t| t.engine == name)
                .map(|t| t.version),
        );
        versions.sort();
        versions.dedup();
        for version in versions {
            let rules = profile.rules(version).unwrap();
            let (mut all, _) = commands(&rules);
            all.sort();
            all.dedup();
            assert!(all.len() > 50, "{name} {version}");
            for argv in all {
                let json = serde_json::to_string(&argv).unwrap();
                writeln!(text, "{name} {version} {json}").unwrap();
            }
        }
    }
    if let Some(path) = std::env::var_os("PARPLAN_COMMANDS") {
        std::fs::write(path, text).unwrap();
    }
}
