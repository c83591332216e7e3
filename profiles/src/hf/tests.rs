//! Reading configurations, good and hostile.

use super::{read, read_text};
use crate::dtype::Dtype;
use crate::model::{Attention, Ffn, ModelProfile};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/hf")
        .join(name)
}

fn qwen() -> Value {
    let text = std::fs::read_to_string(fixture("Qwen--Qwen3-8B_config.json")).expect("fixture");
    serde_json::from_str(&text).expect("JSON")
}

fn from(config: &Value) -> Result<ModelProfile, String> {
    read_text(&config.to_string(), None, "m", "org/m").map_err(|faults| faults.to_string())
}

/// The one line that a changed configuration is refused with.
fn refusal(change: impl FnOnce(&mut Value)) -> String {
    let mut config = qwen();
    change(&mut config);
    let said = from(&config).expect_err("refused");
    assert!(!said.contains('\n'), "{said}");
    said
}

#[test]
fn a_dense_model_is_read() {
    let model = read(&fixture("Qwen--Qwen3-8B_config.json")).expect("a model");
    assert_eq!(model.name, "qwen3-8b");
    assert_eq!(model.repository, "Qwen/Qwen3-8B");
    assert_eq!(model.params().total(), 8_190_735_360);
    let Some(Attention::Gqa(attention)) = model.layers[0].attention else {
        panic!("no attention");
    };
    assert_eq!((attention.q_heads, attention.kv_heads), (32, 8));
    assert!(attention.qk_norm && attention.window.is_none());
}

#[test]
fn deepseek_has_dense_layers_first_and_an_mtp_layer() {
    let model = read(&fixture("deepseek-ai--DeepSeek-V3_config.json")).expect("a model");
    let counts: Vec<u32> = model.layers.iter().map(|group| group.count).collect();
    assert_eq!(counts, [3, 58]);
    assert!(matches!(model.layers[0].ffn, Some(Ffn::Dense(_))));
    assert!(matches!(model.layers[1].ffn, Some(Ffn::Moe(_))));
    assert_eq!(model.mtp_layers, 1);
    assert_eq!(model.weights.attention, Dtype::Fp8Block);
    assert_eq!(model.weights.embedding, Dtype::Bf16);
}

#[test]
fn gpt_oss_slides_in_every_other_layer_and_quantises_experts_only() {
    let model = read(&fixture("openai--gpt-oss-20b_config.json")).expect("a model");
    let windows: Vec<Option<u32>> = model
        .layers
        .iter()
        .map(|group| match group.attention {
            Some(Attention::Gqa(dims)) => dims.window,
            _ => None,
        })
        .collect();
    assert_eq!(windows, [Some(128), None]);
    assert_eq!(model.weights.attention, Dtype::Bf16);
    assert_eq!(model.weights.experts, Dtype::Mxfp4);
}

#[test]
fn an_ignore_list_of_expressions_leaves_the_experts_alone_quantised() {
    let model = read(&fixture("moonshotai--Kimi-K2.5_config.json")).expect("a model");
    assert_eq!(model.weights.experts, Dtype::Int4);
    assert_eq!(model.weights.shared_experts, Dtype::Bf16);
    assert_eq!(model.weights.dense_ffn, Dtype::Bf16);
    assert_eq!(model.weights.attention, Dtype::Bf16);
}

#[test]
fn a_folder_is_read_with_the_file_beside_it() {
    let folder = fixture("qwen3-32b-fp8-static");
    let model = read(&folder).expect("a model");
    assert_eq!(model.name, "qwen3-32b-fp8-static");
    assert_eq!(model.weights.attention, Dtype::Fp8);
    assert_eq!(model.kv_dtype, Dtype::Fp8);
    // The second file alone says the same.
    let mut config: Value = serde_json::from_str(
        &std::fs::read_to_string(folder.join("config.json")).expect("fixture"),
    )
    .expect("JSON");
    config
        .as_object_mut()
        .expect("an object")
        .remove("quantization_config");
    let beside = std::fs::read_to_string(folder.join("hf_quant_config.json")).expect("fixture");
    let alone = read_text(&config.to_string(), Some(&beside), "m", "m").expect("a model");
    assert_eq!(alone.weights, model.weights);
    assert_eq!(alone.kv_dtype, Dtype::Fp8);
}

#[test]
fn refusals_name_the_field() {
    assert!(
        refusal(|c| c["architectures"] = json!(["T5ForConditionalGeneration"])).starts_with(
            "architectures names \"T5ForConditionalGeneration\", which is not known (known: Llama"
        )
    );
    let missing = |name: &'static str| {
        refusal(move |c| {
            c.as_object_mut().expect("an object").remove(name);
        })
    };
    for name in [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    ] {
        assert_eq!(
            missing(name),
            format!("{name} is missing; the model cannot be planned without it")
        );
    }
    assert!(missing("architectures").starts_with("architectures is missing"));
    assert_eq!(
        refusal(|c| c["hidden_size"] = json!(-4096)),
        "hidden_size is -4096; it must be a whole number of 0 or more, below 2^32"
    );
    assert_eq!(
        refusal(|c| c["hidden_size"] = json!(0)),
        "hidden_size is 0; it must be at least 1"
    );
    assert!(refusal(|c| c["hidden_size"] = json!(1e300)).starts_with("hidden_size is 1e+300;"));
    assert_eq!(
        refusal(|c| c["vocab_size"] = json!(4_000_000_000u32)),
        "vocab_size is 4000000000; it must be from 1 to 16777216"
    );
    assert_eq!(
        refusal(|c| c["num_hidden_layers"] = json!(4_000_000_000u32)),
        "num_hidden_layers is 4000000000; at most 4096 layers are planned"
    );
    assert_eq!(
        refusal(|c| c["num_key_value_heads"] = json!(7)),
        "layers[0].attention.q_heads is 32, which kv_heads = 7 does not divide"
    );
    assert_eq!(
        refusal(|c| c["quantization_config"] = json!({"quant_method": "bitsandbytes"}))
            .split(',')
            .next(),
        Some("quantization_config.quant_method is \"bitsandbytes\"")
    );
    assert!(
        refusal(|c| {
            c["quantization_config"] =
                json!({"quant_method": "fp8", "weight_block_size": [64, 64]});
        })
        .starts_with("quantization_config.weight_block_size is [64, 64];")
    );
    assert!(refusal(|c| c["torch_dtype"] = json!("int3")).starts_with("torch_dtype is \"int3\";"));
    assert!(refusal(|c| *c = json!([1, 2])).starts_with("is an array, not a JSON object"));
}

#[test]
fn faults_of_the_quantization_file_name_it() {
    let config = qwen().to_string();
    let said = |beside: &str| {
        let faults = read_text(&config, Some(beside), "m", "m").expect_err("refused");
        faults.to_string()
    };
    assert_eq!(
        said("[1]"),
        "hf_quant_config.json: is an array, not a JSON object"
    );
    assert_eq!(
        said("{}"),
        "hf_quant_config.json: quantization is missing; it says what is quantised"
    );
    assert!(
        said("{\"quantization\": {\"quant_algo\": \"FP2\"}}").starts_with(
            "hf_quant_config.json: quantization.quant_algo is \"FP2\", which is not known"
        )
    );
}

#[test]
fn files_that_are_no_configuration_give_one_line() {
    let folder = std::env::temp_dir().join(format!("parplan-hf-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("config.json");
    let said = |bytes: &[u8]| {
        std::fs::write(&file, bytes).expect("written");
        let said = read(&folder).expect_err("refused").to_string();
        assert!(!said.contains('\n'), "{said}");
        assert!(said.starts_with(&file.display().to_string()), "{said}");
        said[file.display().to_string().len()..].to_owned()
    };
    assert_eq!(said(b""), ": is empty");
    assert_eq!(
        said(b"\x89PNG\xff\xfe"),
        ": is not text: byte 0 is not UTF-8"
    );
    assert!(said(b"{\"hidden_size\": 40").starts_with(": is not JSON: EOF"));
    let large = vec![b' '; (super::MAX_CONFIG_BYTES + 1) as usize];
    assert_eq!(
        said(&large),
        ": is 4194305 bytes, more than the 4194304 that are read of such a file"
    );
    std::fs::remove_file(&file).expect("removed");
    let absent = read(&folder).expect_err("refused").to_string();
    assert!(absent.contains("cannot be read: "), "{absent}");
    std::fs::remove_dir(&folder).expect("removed");
}

/// A value that might stand in a configuration, or might not.
fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u32..300).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        proptest::collection::vec(0u32..5, 0..70).prop_map(Value::from),
    ]
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = read_text(&text, Some(&text), "m", "m");
    }

    /// Fields of real configurations, a few of them replaced by anything: either a model that
    /// validates, or a refusal; the same for every architecture.
    #[test]
    fn no_field_makes_the_reader_panic(
        architecture in 0usize..super::arch::known().count(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any_value()), 0..5),
    ) {
        let architecture = super::arch::known().nth(architecture).expect("an architecture");
        let mut config = everything(architecture);
        let names: Vec<String> = config.as_object().expect("an object").keys().cloned().collect();
        for (at, value) in changes {
            config[at.get(&names).as_str()] = value;
        }
        config["architectures"] = json!([architecture]);
        match read_text(&config.to_string(), None, "m", "m") {
            Ok(model) => {
                prop_assert!(model.validate().is_ok());
                prop_assert!(model.params().total() > 0);
            }
            Err(faults) => prop_assert!(!faults.0.is_empty()),
        }
    }
}

/// The fields of all architectures in one object, of which each reads those it knows, with those
/// that two architectures use differently set for this one.
fn everything(architecture: &str) -> Value {
    let mut config: Value =
        serde_json::from_str(include_str!("tests_everything.json")).expect("JSON");
    config["architectures"] = json!([architecture]);
    match architecture {
        "MiniMaxM3ForCausalLM" => config["moe_layer_freq"] = json!([0, 1, 1, 1, 1, 1, 1, 1]),
        "KimiLinearForCausalLM" | "KimiK3ForConditionalGeneration" => {
            config["num_nextn_predict_layers"] = json!(0);
        }
        name if name.starts_with("Qwen3Next") || name.starts_with("Qwen3_5") => {
            config["layer_types"] = Value::Null;
        }
        _ => {}
    }
    config
}

/// Unchanged, `everything` must be a model for each architecture: otherwise the property above
/// would only ever exercise refusals.
#[test]
fn the_fields_of_the_property_make_models() {
    let mut refused = Vec::new();
    for name in super::arch::known() {
        if let Err(said) = from(&everything(name)) {
            refused.push(format!("{name}: {said}"));
        }
    }
    assert!(refused.is_empty(), "{refused:#?}");
}
