//! Every configuration of the shared data is read, and agrees with the embedded profile of the
//! same repository.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may fail loudly"
)]

use parplan_profiles::{
    Attention, Ffn, LayerGroup, Lengths, Library, Load, ModelProfile, Trace, hf,
};
use std::path::{Path, PathBuf};

/// A folder of the shared data, above or beside the checkout.
fn shared(folder: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|above| above.join("shared/data").join(folder))
        .find(|folder| folder.is_dir());
    if found.is_none() {
        println!("skipped: no shared/data/{folder} above or beside this checkout");
    }
    found
}

/// The workloads that were fitted from the shared traces say what the traces say.
#[test]
fn the_fitted_workloads_agree_with_their_traces() {
    let Some(folder) = shared("traces") else {
        return;
    };
    let library = Library::embedded();
    for (name, file) in [
        ("azure-chat", "AzureLLMInferenceTrace_conv.csv"),
        ("azure-code", "AzureLLMInferenceTrace_code.csv"),
        ("mooncake-conversation", "mooncake_conversation.jsonl"),
    ] {
        let trace = Trace::read(&folder.join(file)).expect("a trace");
        let workload = library.workload(name).expect("a workload");
        let near = |fitted: Option<f64>, measured: Option<f64>, slack: f64| {
            let (fitted, measured) = (fitted.expect("a figure"), measured.expect("a figure"));
            assert!(
                (fitted - measured).abs() <= slack,
                "{name}: {fitted} {measured}"
            );
        };
        let (input, output) = (trace.input(), trace.output());
        let mean = |lengths: &Option<Lengths>| lengths.as_ref().and_then(Lengths::mean);
        near(workload.input.mean(), mean(&input), 0.051);
        near(workload.output.mean(), mean(&output), 0.051);
        for p in [0.05, 0.5, 0.95, 1.0] {
            let at = |lengths: &Option<Lengths>| lengths.as_ref().and_then(|l| l.quantile(p));
            near(workload.input.quantile(p), at(&input), 1.0);
            near(workload.output.quantile(p), at(&output), 1.0);
        }
        if let Load::Rate { requests_per_s } = workload.load {
            near(Some(requests_per_s), trace.requests_per_s(), 0.0051);
        }
        if let Some(hit) = trace.prefix_hit() {
            near(Some(workload.prefix_hit), Some(hit), 0.0005);
        }
    }
}

/// What a group of layers is and how it is stored, without the formats of classes it has not.
fn shape(model: &ModelProfile, group: &LayerGroup) -> String {
    let formats = model.formats_of(group);
    let mut text = format!("{} x {:?}", group.count, group.attention);
    if let Some(mixer) = &group.attention {
        text += &format!(" in {} / {}", formats.attention, formats.attention_output());
        if matches!(mixer, Attention::Mla(dims) if dims.indexer.is_some_and(|i| i.owned)) {
            text += &format!(", indexer in {}", formats.indexer());
        }
    }
    match &group.ffn {
        None => {}
        Some(Ffn::Dense(dims)) => text += &format!("; {dims:?} in {}", formats.dense_ffn),
        Some(Ffn::Moe(dims)) => {
            text += &format!("; {dims:?} in {}", formats.experts);
            if dims.shared_intermediate > 0 {
                text += &format!(", shared in {}", formats.shared_experts);
            }
        }
    }
    text
}

fn shapes(model: &ModelProfile) -> Vec<String> {
    let mut shapes: Vec<String> = model
        .layers
        .iter()
        .map(|group| shape(model, group))
        .collect();
    shapes.extend(
        model
            .mtp_layer
            .iter()
            .map(|group| format!("MTP {}", shape(model, group))),
    );
    shapes.push(format!(
        "hidden {} vocab {} tied {} mtp {} streams {} kv {} embedding {} head {}",
        model.hidden_size,
        model.vocab_size,
        model.tied_embeddings,
        model.mtp_layers,
        model.hyper_connections,
        model.kv_dtype,
        model.weights.embedding,
        model.weights.lm_head(),
    ));
    shapes
}

#[test]
fn every_shared_configuration_is_read_and_agrees_with_its_profile() {
    let Some(folder) = shared("model_configs") else {
        return;
    };
    let library = Library::embedded();
    let mut wrong = String::new();
    let mut compared = 0;
    for entry in std::fs::read_dir(&folder).expect("the folder is listed") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).expect("a name");
        if name.ends_with("hf_quant_config.json") || !name.ends_with("_config.json") {
            continue;
        }
        let read = match hf::read(&path) {
            Ok(model) => model,
            Err(faults) => {
                wrong += &format!("{faults}\n");
                continue;
            }
        };
        let Ok(embedded) = library.model(&read.repository) else {
            continue;
        };
        compared += 1;
        let (ours, theirs) = (shapes(&embedded), shapes(&read));
        if ours != theirs {
            wrong += &format!("{name} against {}:\n", embedded.name);
            for (ours, theirs) in ours.iter().zip(&theirs).filter(|(a, b)| a != b) {
                wrong += &format!("  embedded {ours}\n  read     {theirs}\n");
            }
            if ours.len() != theirs.len() {
                wrong += &format!("  {} groups against {}\n", ours.len(), theirs.len());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(compared > 30, "only {compared} were compared");
}
