//! Options that can be read but mean nothing together: one line that says why, and what would be right.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use cli_support::{checked, command, json, refusal, text};
use std::fs;

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// The refusal of a command line says each of the parts.
fn says(line: &str, parts: &[&str]) {
    let said = refusal(&words(line), 2);
    for part in parts {
        assert!(said.contains(part), "{line}: no {part:?} in {said}");
    }
}

#[test]
fn one_output_token_has_no_time_per_token() {
    let ask = "--model qwen3-8b --gpu h200 --osl 1";
    let estimate = format!("estimate {ask} --tp 1");
    let plan = json(&words(&estimate));
    let predicted = &plan["best"]["predicted"];
    assert!(predicted["tpot_ms"].is_null(), "{predicted}");
    assert!(predicted["ttft_ms"]["value"].as_f64().unwrap() > 0.0);
    let page = text(&words(&estimate));
    assert!(page.contains("so there is no TPOT"), "{page}");
    assert!(!page.contains("(TPOT)"), "{page}");
    let sides = format!("compare tp=1 tp=2 {ask}");
    let compared = text(&words(&sides));
    let row = compared.lines().find(|line| line.contains("TPOT")).unwrap();
    assert_eq!(row.split_whitespace().last(), Some("-"), "{row}");
    says(
        &format!("{estimate} --tpot 30"),
        &["30 ms", "--tpot", "--osl"],
    );
    says(&format!("{sides} --by tpot"), &["--by tpot", "--by ttft"]);
    let ranked = json(&words(&format!(
        "recommend {ask} --gpus 2 --objective latency"
    )));
    assert!(ranked["best"]["predicted"]["tpot_ms"].is_null());
    // Two tokens have one after the first.
    let two = json(&words(&estimate.replace("--osl 1", "--osl fixed:2")));
    assert!(
        two["best"]["predicted"]["tpot_ms"]["value"]
            .as_f64()
            .unwrap()
            > 0.0
    );
}

#[test]
fn batches_are_listed_for_the_ranks_that_there_are() {
    let ask = "estimate --model deepseek-v3 --gpu h200 --tp 8";
    let listed = "--imbalance 8,8,2";
    says(
        &format!("{ask} --attn-dp 4 {listed}"),
        &["3 ranks", "attention dp is 4", "list 4 batches"],
    );
    says(
        &format!("{ask} --attn-dp 4 --imbalance 8,8"),
        &["2 ranks", "list 4 batches, or use attention dp 2"],
    );
    says(
        &format!("{ask} {listed}"),
        &["3 ranks", "attention dp is 1", "--attn-dp 3"],
    );
    text(&words(&format!("{ask} --attn-dp 4 --imbalance 8,8,2,0")));
    // Beside ranks that they are listed for, a side without ranks may stand.
    let sides = "--model deepseek-v3 --gpu h200 --imbalance 8,8,2,0";
    text(&words(&format!("compare tp=8 tp=8,attn-dp=4 {sides}")));
    says(
        &format!("compare tp=8 tp=4,pp=2 {sides}"),
        &["4 ranks", "on both sides"],
    );
}

#[test]
fn a_limit_of_running_requests_is_shared_or_refused() {
    let ask = "estimate --model deepseek-v3 --gpu h200 --tp 8 --attn-dp 8 --max-running-requests";
    says(
        &format!("{ask} 1"),
        &[
            "1 running request ",
            "attention dp 8",
            "allow 8 or more",
            "attention dp 1",
        ],
    );
    let warned = |line: &str| {
        let plan = json(&words(line));
        let warnings = plan["best"]["warnings"].to_string();
        (plan["best"]["max_running_requests"].as_u64(), warnings)
    };
    let (all, warnings) = warned(&format!("{ask} 12"));
    assert_eq!(all, Some(8));
    assert!(
        warnings.contains("limit of 12") && warnings.contains("8 in all"),
        "{warnings}"
    );
    // vLLM counts those of one rank, and says what that is in all.
    let (all, warnings) = warned(&format!("{ask} 1 --engine vllm"));
    assert_eq!(all, Some(8));
    assert!(warnings.contains("one attention-DP rank") && warnings.contains("8 in all"));
    let (all, warnings) = warned(&format!("{ask} 64"));
    assert_eq!((all, warnings.as_str()), (Some(64), "[]"));
}

#[test]
fn formats_need_gpus_that_the_engine_has_kernels_for() {
    let nvfp4 = "--model llama-3.1-70b-nvfp4 --tp 4";
    says(
        &format!("estimate {nvfp4} --gpu h200 --engine trtllm"),
        &[
            "linear layers in nvfp4",
            "h200",
            "from compute capability 10.0",
        ],
    );
    says(
        "recommend --model deepseek-r1 --gpu a100 --gpus 16",
        &["experts in fp8_block", "a100-80g", "8.9"],
    );
    says(
        "estimate --model deepseek-r1 --gpu a100 --gpus 16 --engine vllm --kv-dtype fp8",
        &["--kv-dtype fp8", "latent", "a100-80g", "8.9"],
    );
    says(
        "estimate --model qwen3-30b-a3b --gpu a100 --tp 8 --ep 8 --expert-all-to-all on",
        &["'deepep'", "compute capability 9.0"],
    );
    // A search leaves it out.
    let found = json(&words(
        "recommend --model qwen3-30b-a3b --gpu mi300x --gpus 4",
    ));
    assert_eq!(found["best"]["expert_all_to_all"], false);
    let unpacked = json(&words(&format!(
        "estimate {nvfp4} --gpu h200 --engine vllm"
    )));
    let said = unpacked["assumptions"].to_string();
    assert!(
        said.contains("nvfp4 are unpacked and multiplied in bf16 on h200"),
        "{said}"
    );
}

#[test]
fn the_builtin_engine_is_started_with_the_weights_that_were_planned() {
    let ask = "--model llama-3.1-8b --gpu h200 --engine builtin --tp 1 --weights";
    let plan = json(&words(&format!("estimate {ask} fp8")));
    let file = plan["best"]["launch"]["builtin"]["nodes"][0]["files"][0][1].to_string();
    assert!(file.contains(r#"\"quantization\": \"fp8\""#), "{file}");
    says(
        &format!("estimate {ask} nvfp4"),
        &["--weights nvfp4", "builtin makes only bf16 and fp8"],
    );
    says(
        "recommend --model deepseek-r1-nvfp4 --gpu b200 --gpus 8 --engine builtin",
        &["in nvfp4", "builtin", "on any device"],
    );
}

#[test]
fn a_length_beyond_the_model_s_is_launched_with_what_lets_the_engine_take_it() {
    for (engine, name) in [
        ("sglang", "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"),
        ("vllm", "VLLM_ALLOW_LONG_MAX_MODEL_LEN"),
        ("trtllm", "TLLM_ALLOW_LONG_MAX_MODEL_LEN"),
    ] {
        let plan = |length: u32| {
            json(&words(&format!(
                "estimate --model llama-3.1-8b --gpu h200 --tp 1 --engine {engine} \
                 --context-length {length}"
            )))
        };
        let env = |plan: &serde_json::Value| {
            plan["best"]["launch"][engine]["nodes"][0]["env"][name].clone()
        };
        let long = plan(200_000);
        assert_eq!(env(&long), "1", "{engine}");
        assert!(long["warnings"].to_string().contains("200000"), "{engine}");
        assert!(env(&plan(100_000)).is_null(), "{engine}");
    }
}

#[test]
fn a_folder_of_profiles_that_is_not_there_is_told() {
    let ask = "estimate --model qwen3-8b --gpu h200 --tp 1 --profiles";
    says(
        &format!("{ask} /tmp/no-such-profiles"),
        &["--profiles /tmp/no-such-profiles", "no such folder"],
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    says(&format!("{ask} {path}"), &[&path, "is no folder"]);
    let arguments = ["profiles", "list", "gpus"];
    let mut run = cli_support::command(&arguments);
    run.env("PARPLAN_PROFILES", "/tmp/no-such-profiles");
    let output = cli_support::checked(run, &arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    // It may come to be by the first calibration.
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(
        stderr,
        "note: PARPLAN_PROFILES=/tmp/no-such-profiles: there is no such folder; the built-in profiles \
         are used\n"
    );
    says(
        "profiles list --profiles /tmp/no-such-profiles",
        &["no such folder"],
    );
    // One that a variable names need not be there.
    text(&words("profiles list gpus"));
}

#[test]
fn layouts_that_are_alike_have_no_winner() {
    let ask = "--model qwen3-8b --gpu h200";
    let same = format!("compare tp=2 tp=2 {ask}");
    let page = text(&words(&same));
    assert!(
        page.contains("neither is better: A and B are predicted to be alike"),
        "{page}"
    );
    assert!(json(&words(&same))["winner"].is_null());
    assert_eq!(
        json(&words(&format!("compare tp=1 tp=8 {ask}")))["winner"],
        "a"
    );
}

#[test]
fn traces_whose_times_go_backwards_are_refused_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("back.csv");
    fs::write(
        &path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n\
         2023-11-16 18:17:05,100,10\n2023-11-16 18:17:03,100,10\n",
    )
    .unwrap();
    let path = path.display().to_string();
    let ask = format!("estimate --model qwen3-8b --gpu h200 --tp 1 --workload {path}");
    says(&ask, &["back.csv:3:", "2 s before", "sort the trace"]);
    // Requests of one moment have no rate, and the answer says what it made of them.
    fs::write(
        folder.path().join("back.csv"),
        "TIMESTAMP,ContextTokens,GeneratedTokens\n\
         2023-11-16 18:17:05,100,10\n2023-11-16 18:17:05,100,10\n",
    )
    .unwrap();
    let assumed = json(&words(&ask))["assumptions"].to_string();
    assert!(assumed.contains("all of one moment"), "{assumed}");
}

#[test]
fn figures_are_named_and_units_written_out() {
    let ask = "estimate --model qwen3-8b --gpu h200 --tp 1";
    for (more, parts) in [
        ("--isl 4k", ["'4k'", "4000 or 4096"]),
        ("--max-running-requests 1k", ["'1k'", "1000 or 1024"]),
        (
            "--isl log-normal:900,9,4096",
            ["SIGMA must be", "from 0 to 5"],
        ),
        ("--osl log-normal:0,1,4096", ["MEDIAN must be", "from 1"]),
        ("--isl uniform:1024,2", ["RATIO must be", "from 0 to 1"]),
    ] {
        says(&format!("{ask} {more}"), &parts);
    }
    says(
        "verify --backend cpu --ranks 3",
        &["--ranks 3", "a power of two", "give 1, 2, 4 or 8"],
    );
}

#[test]
fn runs_that_cannot_fit_are_refused_before_they_start() {
    says(
        "run stack --backend cpu --model llama-3.1-405b --layers 126",
        &["126 layers: ", "of weights", "free here"],
    );
    says(
        "run sync --backend cpu --ranks 1000",
        &["1000 ranks on the CPU", "128"],
    );
}

#[test]
fn attention_on_the_cpu_says_what_it_does() {
    let arguments = words(
        "run attention --backend cpu --batch 1 --context 64 --heads 4 --kv-heads 2 --head-dim 64",
    );
    let output = checked(command(&arguments), &arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    for part in ["making 64 tokens of KV", "a first pass", "4 more are timed"] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
}
