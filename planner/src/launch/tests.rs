//! Commands are what was planned: units, spellings, placement, and one argument for every value.

#![allow(clippy::unwrap_used)]

use super::*;
use parplan_profiles::engine::{embedded, select};

const TP8: Layout = Layout {
    replicas: 1,
    tp: 8,
    attention_dp: 1,
    dcp: 1,
    ep: 1,
    pp: 1,
    nodes: 1,
};

fn engine(name: &str) -> EngineRules {
    select(&embedded().unwrap(), name, false).unwrap()
}

fn spec(layout: Layout) -> LaunchSpec {
    LaunchSpec::new("deepseek-ai/DeepSeek-V3", layout, 8)
}

fn lines(name: &str, spec: &LaunchSpec) -> Vec<String> {
    let plan = launch(&engine(name), spec).unwrap();
    plan.nodes.iter().map(|node| node.argv.join(" ")).collect()
}

fn line(name: &str, spec: &LaunchSpec) -> String {
    let mut all = lines(name, spec);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn units_are_the_engines() {
    let plan = LaunchSpec {
        running_per_rank: Some(64),
        chunk_tokens: Some(8192),
        memory_fraction: Some(0.73),
        graph_sizes: Some(vec![4, 8, 64]),
        kv_dtype: Some(Dtype::Fp8),
        context_length: Some(32_768),
        long_context: true,
        ..spec(Layout {
            attention_dp: 8,
            ep: 8,
            ..TP8
        })
    };
    // 64 requests a rank are 512 of an SGLang server and 64 of each vLLM engine.
    assert_eq!(
        line("sglang", &plan),
        "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3 --tp-size 8 \
         --attn-dp-size 8 --ep-size 8 --max-running-requests 512 --chunked-prefill-size 8192 \
         --mem-fraction-static 0.73 --kv-cache-dtype fp8_e4m3 --context-length 32768 \
         --cuda-graph-bs-decode 4 8 64 --host 127.0.0.1 --port 30000"
    );
    assert_eq!(
        line("vllm", &plan),
        "vllm serve deepseek-ai/DeepSeek-V3 --tensor-parallel-size 1 --data-parallel-size 8 \
         --enable-expert-parallel --max-num-seqs 64 --max-num-batched-tokens 8192 \
         --gpu-memory-utilization 0.73 --kv-cache-dtype fp8 --max-model-len 32768 \
         --cudagraph-capture-sizes 4 8 64 --host 127.0.0.1 --port 30000"
    );
}

#[test]
fn the_kernels_of_the_experts_are_asked_for_as_the_version_has_it() {
    let plan = LaunchSpec {
        expert_kernel: Some("marlin".to_owned()),
        ..spec(TP8)
    };
    let command = |version: &str| {
        let rules = select(&embedded().unwrap(), &format!("vllm@{version}"), false).unwrap();
        launch(&rules, &plan).unwrap().nodes.remove(0)
    };
    let before = command("0.22.0");
    assert_eq!(before.env["VLLM_MXFP4_USE_MARLIN"], "1");
    assert!(!before.argv.iter().any(|word| word == "--moe-backend"));
    let after = command("0.24.0");
    assert!(after.argv.join(" ").contains("--moe-backend marlin"));
    assert!(!after.env.contains_key("VLLM_MXFP4_USE_MARLIN"));
}

#[test]
fn spellings_follow_the_version() {
    let plan = LaunchSpec {
        graph_sizes: Some(vec![8]),
        ..spec(Layout {
            attention_dp: 2,
            ..TP8
        })
    };
    let old = line("sglang@0.5.6.post2", &plan);
    assert!(old.contains("--dp-size 2 --enable-dp-attention"), "{old}");
    assert!(old.contains("--cuda-graph-bs 8"), "{old}");
    let new = line("sglang@0.5.22", &plan);
    assert!(
        new.contains("--attn-dp-size 2") && !new.contains("--enable-dp-attention"),
        "{new}"
    );
    let ep = spec(Layout { ep: 8, ..TP8 });
    assert!(line("sglang@0.4.9", &ep).contains("--enable-ep-moe"));
    assert!(line("sglang@0.5.6", &ep).contains("--ep-size 8"));

    let dcp = LaunchSpec {
        dcp_merge: Some(DcpMerge::A2a),
        ..spec(Layout { dcp: 8, ..TP8 })
    };
    assert!(line("sglang", &dcp).contains("--dcp-size 8 --dcp-comm-backend a2a"));
    assert!(line("vllm", &dcp).contains("--decode-context-parallel-size 8 --dcp-comm-backend a2a"));
    let error = launch(&engine("sglang@0.5.14"), &dcp)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("sglang 0.5.14") && error.contains("decode context"),
        "{error}"
    );
    let fp4 = LaunchSpec {
        kv_dtype: Some(Dtype::Nvfp4),
        ..spec(TP8)
    };
    let error = launch(&engine("vllm"), &fp4).unwrap_err().to_string();
    assert!(
        error.contains("a KV cache in nvfp4") && error.contains("bf16, fp8"),
        "{error}"
    );
    let loaded = |format| LaunchSpec {
        quantization: Some(format),
        ..spec(TP8)
    };
    assert!(line("vllm", &loaded(Dtype::Fp8)).contains(" --quantization fp8 "));
    for (name, format, says) in [
        (
            "vllm",
            Dtype::Nvfp4,
            "quantising weights to nvfp4; it takes fp8",
        ),
        (
            "trtllm",
            Dtype::Fp8,
            "quantising weights to fp8; leave it out",
        ),
    ] {
        let error = launch(&engine(name), &loaded(format))
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn symmetric_memory_graphs_and_speculation() {
    let plan = LaunchSpec {
        symmetric_memory: true,
        graph_sizes: Some(vec![]),
        speculation: Some(Speculation {
            method: DraftMethod::Eagle,
            draft_model: Some("a \"draft\"".to_owned()),
            steps: 3,
            top_k: 1,
            draft_tokens: 4,
        }),
        ..spec(TP8)
    };
    let sglang = launch(&engine("sglang"), &plan).unwrap();
    let text = sglang.nodes[0].argv.join(" ");
    assert!(
        text.contains("--disable-cuda-graph --enable-symm-mem"),
        "{text}"
    );
    assert!(
        text.contains("--speculative-algorithm EAGLE --speculative-num-steps 3"),
        "{text}"
    );
    assert!(
        sglang
            .notes
            .iter()
            .any(|note| note.contains("NCCL_NVLS_ENABLE"))
    );
    let vllm = &launch(&engine("vllm"), &plan).unwrap().nodes[0];
    assert_eq!(vllm.env["VLLM_USE_NCCL_SYMM_MEM"], "1");
    assert!(vllm.argv.contains(&"--enforce-eager".to_owned()));
    let json = &vllm.argv[vllm
        .argv
        .iter()
        .position(|word| word == "--speculative-config")
        .unwrap()
        + 1];
    let parsed: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(parsed["model"], "a \"draft\"");
    assert_eq!(parsed["num_speculative_tokens"], 3);
}

#[test]
fn replicas_fill_machines() {
    let plan = spec(Layout {
        replicas: 5,
        tp: 4,
        ..TP8
    });
    let nodes = launch(&engine("sglang"), &plan).unwrap().nodes;
    let seen: Vec<_> = nodes
        .iter()
        .map(|node| {
            (
                node.machine.as_str(),
                node.port,
                node.env["CUDA_VISIBLE_DEVICES"].as_str(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        vec![
            ("node0", Some(30_000), "0,1,2,3"),
            ("node0", Some(30_100), "4,5,6,7"),
            ("node1", Some(30_000), "0,1,2,3"),
            ("node1", Some(30_100), "4,5,6,7"),
            ("node2", Some(30_000), "0,1,2,3"),
        ]
    );
    let whole = launch(&engine("sglang"), &spec(TP8)).unwrap().nodes;
    assert!(!whole[0].env.contains_key("CUDA_VISIBLE_DEVICES"));
    let total: u32 = nodes.iter().map(|node| node.gpus).sum();
    assert_eq!(total, plan.layout.gpus());
}

#[test]
fn several_nodes() {
    let two = LaunchSpec {
        machines: vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()],
        ..spec(Layout {
            tp: 16,
            nodes: 2,
            ..TP8
        })
    };
    let sglang = lines("sglang", &two);
    assert!(sglang[0].contains("--nnodes 2 --node-rank 0 --dist-init-addr 10.0.0.1:29500"));
    assert!(sglang[1].contains("--nnodes 2 --node-rank 1 --dist-init-addr 10.0.0.1:29500"));
    let vllm = lines("vllm", &two);
    assert!(
        vllm[0].contains("--nnodes 2 --node-rank 0 --master-addr 10.0.0.1 --master-port 29500")
    );
    assert!(vllm[1].contains("--headless") && !vllm[0].contains("--headless"));

    let ranks = LaunchSpec {
        layout: Layout {
            attention_dp: 16,
            ep: 16,
            ..two.layout
        },
        ..two.clone()
    };
    let vllm = lines("vllm", &ranks);
    assert!(vllm[0].contains("--data-parallel-size 16"), "{}", vllm[0]);
    assert!(vllm[0].contains("--data-parallel-size-local 8 --data-parallel-address 10.0.0.1"));
    assert!(
        vllm[1].contains("--data-parallel-start-rank 8 --headless"),
        "{}",
        vllm[1]
    );
    let odd = LaunchSpec {
        layout: Layout {
            tp: 24,
            attention_dp: 2,
            nodes: 3,
            ..TP8
        },
        ..two.clone()
    };
    let error = launch(&engine("vllm"), &odd).unwrap_err().to_string();
    assert!(error.contains("multiple of 3"), "{error}");
    let tight = spec(Layout {
        tp: 16,
        nodes: 1,
        ..TP8
    });
    assert!(
        launch(&engine("sglang"), &tight)
            .unwrap_err()
            .to_string()
            .contains("needs 2")
    );
    // Two replicas of two nodes take four machines.
    let four = LaunchSpec {
        machines: vec![],
        layout: Layout {
            replicas: 2,
            ..two.layout
        },
        ..two
    };
    let plan = launch(&engine("sglang"), &four).unwrap();
    let machines: Vec<_> = plan
        .nodes
        .iter()
        .map(|node| node.machine.as_str())
        .collect();
    assert_eq!(machines, ["node0", "node1", "node2", "node3"]);
    assert!(plan.nodes[3].argv.contains(&"node2:29500".to_owned()));
    assert!(plan.notes.iter().any(|note| note.contains("replace node0")));
}

#[test]
fn trtllm_and_builtin_carry_files() {
    let plan = LaunchSpec {
        kv_dtype: Some(Dtype::Fp8),
        graph_sizes: Some(vec![1, 2]),
        running_per_rank: Some(32),
        ..spec(Layout {
            attention_dp: 8,
            ep: 8,
            ..TP8
        })
    };
    let trt = launch(&engine("trtllm"), &plan).unwrap();
    assert!(!trt.verified && trt.notes.iter().any(|note| note.contains("unverified")));
    let node = &trt.nodes[0];
    assert!(
        node.argv
            .join(" ")
            .contains("--tp_size 8 --ep_size 8 --max_batch_size 32")
    );
    let options: serde_json::Value = serde_json::from_str(&node.files[0].1).unwrap();
    assert_eq!(options["enable_attention_dp"], true);
    assert_eq!(options["attention_dp_config"]["timeout_iters"], 60);
    assert_eq!(
        options["cuda_graph_config"]["batch_sizes"],
        serde_json::json!([1, 2])
    );
    assert_eq!(options["kv_cache_config"]["dtype"], "fp8");

    let own = launch(&engine("builtin"), &plan).unwrap();
    assert_eq!(
        own.nodes[0].argv,
        ["parplan", "exec", "--plan", "parplan-exec.json"]
    );
    let back: LaunchSpec = serde_json::from_str(&own.nodes[0].files[0].1).unwrap();
    assert_eq!(back, plan);
}

#[test]
fn every_string_is_one_argument() {
    let nasty = "x; rm -rf / #$(id)`id` \"'\n --host 0.0.0.0 && \u{1f4a5}";
    let plan = LaunchSpec {
        served_name: Some(nasty.to_owned()),
        host: nasty.to_owned(),
        machines: vec!["first".to_owned()],
        extra_args: vec![nasty.to_owned(), "--enable-metrics".to_owned()],
        extra_env: BTreeMap::from([("X".to_owned(), nasty.to_owned())]),
        speculation: Some(Speculation {
            method: DraftMethod::Eagle,
            draft_model: Some(nasty.to_owned()),
            steps: 1,
            top_k: 1,
            draft_tokens: 2,
        }),
        ..LaunchSpec::new(
            nasty,
            Layout {
                tp: 16,
                nodes: 2,
                ..TP8
            },
            8,
        )
    };
    // A machine's name becomes part of an address, and is refused.
    let wrong = LaunchSpec {
        machines: vec![nasty.to_owned()],
        ..plan.clone()
    };
    assert!(launch(&engine("sglang"), &wrong).is_err());
    for (name, whole) in [("sglang", 5), ("vllm", 4)] {
        let plan = launch(&engine(name), &plan).unwrap();
        let node = &plan.nodes[0];
        let exact = node.argv.iter().filter(|word| *word == nasty).count();
        assert!(exact >= whole - 1, "{name}: {:?}", node.argv);
        // Nothing of it became an argument of its own.
        let plain = node
            .argv
            .iter()
            .filter(|word| *word == "rm" || *word == "0.0.0.0")
            .count();
        assert_eq!(plain, 0);
        assert_eq!(node.env["X"], nasty);
    }
    let refused = |change: fn(&mut LaunchSpec)| {
        let mut bad = spec(TP8);
        change(&mut bad);
        launch(&engine("sglang"), &bad).unwrap_err().to_string()
    };
    assert!(refused(|s| s.model = "--host=0.0.0.0".to_owned()).contains("begins with '-'"));
    assert!(refused(|s| s.model = String::new()).contains("empty"));
    assert!(refused(|s| s.host = "a\0b".to_owned()).contains("NUL"));
    assert!(refused(|s| s.extra_args = vec!["\0".to_owned()]).contains("NUL"));
    for why in [
        refused(|s| s.extra_args = vec!["--tp-size".to_owned(), "4".to_owned()]),
        refused(|s| s.extra_args = vec!["--tp-size=4".to_owned()]),
    ] {
        assert!(
            why.contains("--tp-size") && why.contains("plan again"),
            "{why}"
        );
    }
    assert!(refused(|s| s.memory_fraction = Some(f64::NAN)).contains("memory fraction"));
    assert!(refused(|s| s.memory_fraction = Some(1.5)).contains("at most 1"));
    assert!(refused(|s| s.graph_sizes = Some(vec![0])).contains("at least 1"));
    assert!(
        refused(|s| {
            s.extra_env.insert("A=B".to_owned(), String::new());
        })
        .contains("no '='")
    );
    assert!(
        refused(|s| {
            s.port = 65_500;
            s.layout = Layout {
                replicas: 2,
                tp: 4,
                ..TP8
            };
        })
        .contains("leaves no room")
    );
}

#[test]
fn assumed_versions_say_so() {
    let rules = select(&embedded().unwrap(), "sglang@0.9.0", true).unwrap();
    let plan = launch(&rules, &spec(TP8)).unwrap();
    assert!(plan.notes[0].contains("0.9.0") && plan.notes[0].contains("0.5.23"));
}
