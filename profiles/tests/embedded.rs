//! Every embedded profile is valid, answers to its names, and has the totals it is known to have.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail loudly"
)]

use parplan_profiles::Library;
use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn every_embedded_profile_is_valid() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    match Library::check(&data) {
        Ok(files) => assert!(files > 40, "only {files} profiles were checked"),
        Err(faults) => panic!("{faults}"),
    }
}

/// Parameters counted from the dimensions, every digit pinned: the main model with embeddings,
/// what one token uses with the output projection, and the MTP layers. That the first two round to
/// the published figures is checked by `validate`.
#[test]
fn parameter_totals_are_golden() {
    let golden: BTreeMap<&str, [u64; 3]> = include_str!("parameter_totals.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().expect("a name");
            let counts = words.map(|word| word.parse().expect("a count"));
            let counts: Vec<u64> = counts.collect();
            (name, counts.try_into().expect("three counts"))
        })
        .collect();
    let library = Library::embedded();
    let mut counted = String::new();
    for listed in library.models().expect("the models are listed") {
        let params = library.model(&listed.name).expect("a model").params();
        let counts = [params.total(), params.active(), params.mtp];
        if golden.get(listed.name.as_str()) != Some(&counts) {
            let [total, active, mtp] = counts;
            counted.push_str(&format!("{} {total} {active} {mtp}\n", listed.name));
        }
    }
    assert!(
        counted.is_empty(),
        "not as in parameter_totals.txt:\n{counted}"
    );
    assert_eq!(golden.len(), library.models().expect("listed").len());
}

#[test]
fn every_name_selects_its_own_profile() {
    let library = Library::embedded();
    for listed in library.models().expect("the models are listed") {
        for name in listed.aliases.iter().chain([&listed.name]) {
            let found = library.model(&name.to_uppercase()).expect("a model");
            assert_eq!(found.name, listed.name, "{name}");
            // What is launched is what was named.
            if name.contains('/') {
                assert_eq!(found.repository, *name);
            }
        }
        let model = library.model(&listed.name).expect("a model");
        let by_repository = library.model(&model.repository).expect("a model");
        assert_eq!(by_repository.name, model.name, "{}", model.repository);
    }
    for listed in library.workloads().expect("the workloads are listed") {
        for name in listed.aliases.iter().chain([&listed.name]) {
            let workload = library.workload(name).expect("a workload");
            assert_eq!(workload.name, listed.name, "{name}");
            assert!(!workload.source.is_empty(), "{name} names no source");
        }
    }
    for listed in library.engines().expect("the engines are listed") {
        for name in listed.aliases.iter().chain([&listed.name]) {
            let engine = library.engine(&name.to_uppercase()).expect("an engine");
            assert_eq!(engine.name, listed.name, "{name}");
        }
    }
    for listed in library.gpus().expect("the GPUs are listed") {
        for name in listed.aliases.iter().chain([&listed.name]) {
            assert_eq!(
                library.gpu(name).expect("a GPU").name,
                listed.name,
                "{name}"
            );
        }
    }
}

#[test]
fn an_id_is_what_gets_launched_with_or_without_its_organisation() {
    let library = Library::embedded();
    for (named, profile, repository) in [
        (
            "deepseek-v3-0324",
            "deepseek-v3",
            "deepseek-ai/DeepSeek-V3-0324",
        ),
        (
            "deepseek-ai/DeepSeek-V3",
            "deepseek-v3",
            "deepseek-ai/DeepSeek-V3",
        ),
        ("deepseek-v3", "deepseek-v3", "deepseek-ai/DeepSeek-V3"),
        ("dsv3", "deepseek-v3", "deepseek-ai/DeepSeek-V3"),
        ("GLM-4.7", "glm-4.6", "zai-org/GLM-4.7"),
        (
            "Llama-3.3-70B-Instruct",
            "llama-3.3-70b",
            "meta-llama/Llama-3.3-70B-Instruct",
        ),
    ] {
        let model = library.model(named).expect("a model");
        assert_eq!(
            (model.name.as_str(), model.repository.as_str()),
            (profile, repository),
            "{named}"
        );
    }
}

#[test]
fn the_file_is_named_after_the_profile() {
    for kind in ["models", "gpus", "workloads", "engines"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("data")
            .join(kind);
        for entry in std::fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("the file is read");
            let stem = path.file_stem().and_then(|s| s.to_str()).expect("a name");
            assert!(
                text.lines()
                    .any(|line| line == format!("name = \"{stem}\"")),
                "{}: lookups by name rely on the file's name",
                path.display()
            );
        }
    }
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest() {
    let library = Library::embedded();
    let said = library
        .model("deepseek-v33")
        .expect_err("unknown")
        .to_string();
    assert!(said.starts_with("model `deepseek-v33` is not known; did you mean deepseek-v3"));
    let said = library.gpu("h2000").expect_err("unknown").to_string();
    assert!(
        said.starts_with("GPU `h2000` is not known; did you mean h200"),
        "{said}"
    );
    let said = library
        .model(&"\u{1b}[31m".repeat(500))
        .expect_err("unknown")
        .to_string();
    assert!(!said.contains('\u{1b}') && said.len() < 600, "{said}");
    let said = library.gpu("zzzzzzzz").expect_err("unknown").to_string();
    assert_eq!(
        said,
        "GPU `zzzzzzzz` is not known; `parplan profiles list gpus` shows every GPU, and `parplan profiles \
         add --from-this-machine` describes the one at hand"
    );
}
