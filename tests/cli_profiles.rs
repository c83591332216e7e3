//! `profiles`, `completions` and `man`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use cli_support::{checked, command, json, refusal, run, text};
use std::fs;
use std::path::Path;

const CONFIG: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/profiles/tests/fixtures/hf/Qwen--Qwen3-8B_config.json"
);

/// A run with a folder of profiles; stdout, stderr and the exit code.
fn with(folder: &Path, arguments: &[&str]) -> (String, String, i32) {
    let mut run = command(arguments);
    run.env("PARPLAN_PROFILES", folder);
    let output = checked(run, arguments);
    (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
        output.status.code().unwrap(),
    )
}

#[test]
fn every_listed_profile_can_be_shown() {
    let all = json(&["profiles", "list"]);
    for (kind, least) in [
        ("models", 20),
        ("gpus", 8),
        ("engines", 4),
        ("workloads", 3),
    ] {
        let names = all[kind].as_array().unwrap();
        assert!(names.len() >= least, "{kind}: {}", names.len());
        for entry in names {
            let name = entry["name"].as_str().unwrap();
            let page = text(&["profiles", "show", name, "--kind", kind]);
            let table: toml::Table = page.parse().unwrap();
            assert_eq!(table["name"].as_str(), Some(name));
        }
    }
    assert!(text(&["profiles", "list", "gpus"]).contains("h200"));
    assert!(!text(&["profiles", "list", "gpus"]).contains("qwen"));
}

#[test]
fn a_fetched_model_is_planned_by_its_id() {
    let cache = tempfile::tempdir().unwrap();
    let copies = cache
        .path()
        .join("models--someone--their-model/snapshots/0123abc");
    fs::create_dir_all(&copies).unwrap();
    fs::copy(CONFIG, copies.join("config.json")).unwrap();
    let arguments = [
        "recommend",
        "--model",
        "someone/their-model",
        "--gpu",
        "h200",
        "--gpus",
        "1",
    ];
    let mut found = command(&arguments);
    found.env("HF_HUB_CACHE", cache.path());
    let output = checked(found, &arguments);
    assert_eq!(output.status.code(), Some(0));
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(page.starts_with("their-model on 1 h200"), "{page}");
    assert!(page.contains("--model-path someone/their-model"), "{page}");
    assert!(page.contains("someone/their-model is as\n"), "{page}");

    let mut missing = command(&arguments);
    missing.env("HF_HUB_CACHE", cache.path().join("none"));
    let output = checked(missing, &arguments);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("`someone/their-model` is not known"),
        "{said}"
    );
    assert!(said.contains("by the path of its config.json"), "{said}");
}

#[test]
fn a_shown_model_says_how_large_it_is() {
    let page = text(&["profiles", "show", "deepseek-ai/DeepSeek-V3"]);
    assert!(page.starts_with("# 671.0"), "{page}");
    let page = text(&["profiles", "show", CONFIG]);
    assert!(
        page.starts_with("# 8.19 B") && page.contains("Qwen/Qwen3-8B"),
        "{page}"
    );
    let rules = text(&["profiles", "show", "sglang@0.5.6"]);
    assert!(rules.contains("version = \"0.5.6\""), "{rules}");
}

#[test]
fn a_config_becomes_a_profile_of_mine() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path().join("new").join("profiles");
    let (out, err, code) = with(&mine, &["profiles", "add", CONFIG, "--name", "my-8b"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("my-8b"), "{out}");
    assert!(mine.join("models").join("my-8b.toml").is_file());
    let (out, _, code) = with(&mine, &["profiles", "check"]);
    assert_eq!(code, 0);
    assert!(out.contains("1 file, no fault"), "{out}");
    let plan = [
        "estimate", "--model", "my-8b", "--gpu", "h200", "--tp", "1", "--json",
    ];
    let (mine_says, _, _) = with(&mine, &plan);
    let (named, _, _) = with(
        &mine,
        &[
            "estimate", "--model", "qwen3-8b", "--gpu", "h200", "--tp", "1", "--json",
        ],
    );
    let best = |text: &str| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        value["best"]["predicted"].clone()
    };
    assert_eq!(best(&mine_says), best(&named));

    let again = ["profiles", "add", CONFIG, "--name", "my-8b"];
    let (_, err, code) = with(&mine, &again);
    assert_eq!(code, 2);
    assert!(err.contains("--replace"), "{err}");
    let (_, _, code) = with(
        &mine,
        &["profiles", "add", CONFIG, "--name", "my-8b", "--replace"],
    );
    assert_eq!(code, 0);
    let (_, err, code) = with(&mine, &["profiles", "add", CONFIG, "--name", "../escape"]);
    assert_eq!(code, 2, "{err}");
    assert!(!folder.path().join("new").join("escape.toml").exists());
}

#[test]
fn an_overlay_is_checked_against_its_base() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path().join("mine");
    let good = folder.path().join("good.toml");
    fs::write(
        &good,
        "name = \"my-r1\"\nbase = \"deepseek-r1\"\nkv_dtype = \"fp8\"\n",
    )
    .unwrap();
    let (out, err, code) = with(&mine, &["profiles", "add", good.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("model `my-r1`"), "{out}");
    let bad = folder.path().join("bad.toml");
    fs::write(&bad, "name = \"my-x\"\nbase = \"no-such-model\"\n").unwrap();
    let (_, err, code) = with(&mine, &["profiles", "add", bad.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(
        err.contains("bad.toml:2") && err.contains("no-such-model"),
        "{err}"
    );
    assert!(!mine.join("models").join("my-x.toml").exists());
}

#[test]
fn every_fault_of_a_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    fs::create_dir(&models).unwrap();
    fs::write(models.join("cut.toml"), "name = ").unwrap();
    fs::write(models.join("empty.toml"), "").unwrap();
    let output = run(&["profiles", "check", folder.path().to_str().unwrap()]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr.contains("cut.toml:1:") && stderr.contains("empty.toml"),
        "{stderr}"
    );
    let line = refusal(&["profiles", "check", "/nonexistent/folder.toml"], 2);
    assert!(line.contains("/nonexistent/folder.toml"), "{line}");
}

#[test]
fn a_file_that_is_no_profile_is_not_added() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content, part) in [
        ("plan.toml", "name = \"x\"\nother = 1\n", "is no profile"),
        ("cut.toml", "name = \"x\"\nhidden_size = ", "cut.toml:2"),
        ("empty.toml", "", "empty"),
        ("array.json", "[]", "array"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let (_, err, code) = with(folder.path(), &["profiles", "add", path.to_str().unwrap()]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(part), "{err}");
    }
    assert!(!folder.path().join("models").exists());
}

#[test]
fn completions_know_the_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(&["completions", shell]);
        assert!(
            script.contains("attn-dp") && script.contains("recommend"),
            "{shell}"
        );
    }
}

#[test]
fn man_pages_are_written_for_every_command() {
    assert!(text(&["man"]).contains(".TH parplan 1"));
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().join("man").display().to_string();
    assert_eq!(text(&["man", "--folder", &shown]), "");
    for page in ["parplan.1", "parplan-recommend.1", "parplan-estimate.1"] {
        assert!(folder.path().join("man").join(page).is_file(), "{page}");
    }
    let page = fs::read_to_string(folder.path().join("man").join("parplan-estimate.1")).unwrap();
    assert!(page.contains("attn\\-dp"), "{page}");
}

#[test]
fn a_profile_of_this_machine_is_added_or_what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let add = ["profiles", "add", "--from-this-machine"];
    let (out, said, code) = with(folder.path(), &add);
    if code == 0 {
        assert!(out.contains("plan with --gpu this-machine"), "{out}");
        let (shown, ..) = with(folder.path(), &["profiles", "show", "this-machine"]);
        assert!(shown.contains("NVML"), "{shown}");
        let (_, said, code) = with(folder.path(), &add);
        assert!(code == 2 && said.contains("--replace"), "{said}");
    } else {
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("NVIDIA"), "{said}");
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
    }
    let both = ["profiles", "add", "x.toml", "--from-this-machine"];
    assert_eq!(with(folder.path(), &both).2, 2);
}
