//! Expert parallelism and its backends.

use super::*;

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
