//! Decode context parallelism and what it goes with.

use super::*;

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
