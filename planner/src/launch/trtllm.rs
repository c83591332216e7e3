//! `trtllm-serve`, printed only: nobody ran it through the engine's parser.

use super::words::Words;
use super::{
    LaunchError, LaunchSpec, NodeCommand, Place, draft_name, kv_name, load_name, no_option,
};
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::flags::Meaning;
use serde_json::{Map, Value, json};

/// Name of the file that carries what has no flag.
const OPTIONS: &str = "parplan-trtllm-options.yaml";

pub(super) fn command(
    rules: &EngineRules,
    spec: &LaunchSpec,
    place: &Place,
    notes: &mut Vec<String>,
) -> Result<NodeCommand, LaunchError> {
    let layout = &spec.layout;
    // Under several nodes every rank is an MPI process, and the wrapper makes one server of them.
    let mut words = if layout.nodes > 1 {
        let ranks = layout.tp.saturating_mul(layout.pp);
        let note = format!(
            "start each replica under srun or mpirun with {ranks} ranks, {} on every node",
            place.gpus
        );
        if !notes.contains(&note) {
            notes.push(note);
        }
        Words::new(rules, &["trtllm-llmapi-launch", "trtllm-serve"])
    } else {
        Words::new(rules, &["trtllm-serve"])
    };
    words.say(Meaning::Model, &spec.model)?;
    words.number(Meaning::Tp, layout.tp)?;
    if layout.pp > 1 {
        words.number(Meaning::Pp, layout.pp)?;
    }
    if layout.ep > 1 {
        words.number(Meaning::Ep, layout.ep)?;
    }
    if layout.dcp > 1 {
        return Err(no_option(rules, Meaning::Dcp));
    }
    words.maybe(Meaning::RunningRequests, spec.running_per_rank)?;
    words.maybe(Meaning::ChunkTokens, spec.chunk_tokens)?;
    words.maybe(Meaning::ContextLength, spec.context_length)?;
    words.switch(Meaning::LongContext, spec.long_context)?;
    words.maybe(Meaning::MemoryFraction, spec.memory_fraction)?;
    if let Some(dtype) = spec.quantization {
        words.say(Meaning::Quantization, load_name(rules, dtype)?)?;
    }
    words.switch(Meaning::TrustRemoteCode, spec.trust_remote_code)?;
    words.switch(Meaning::SymmetricMemory, spec.symmetric_memory)?;

    let mut options = Map::new();
    if layout.attention_dp > 1 {
        options.insert("enable_attention_dp".to_owned(), json!(true));
        let steps = rules.scheduler.context_balance_steps;
        if steps > 0 {
            let balance = json!({
                "enable_balance": true,
                "batching_wait_iters": 0,
                "timeout_iters": steps,
            });
            options.insert("attention_dp_config".to_owned(), balance);
        }
    }
    let mut kv = Map::new();
    if let Some(dtype) = spec.kv_dtype {
        kv.insert("dtype".to_owned(), json!(kv_name(rules, dtype)?));
    }
    if let Some(page) = spec.page_size {
        kv.insert("tokens_per_block".to_owned(), json!(page));
    }
    if spec.prefix_cache_off {
        kv.insert("enable_block_reuse".to_owned(), json!(false));
    }
    if !kv.is_empty() {
        options.insert("kv_cache_config".to_owned(), Value::Object(kv));
    }
    match spec.graph_sizes.as_deref() {
        None => {}
        Some([]) => {
            options.insert("cuda_graph_config".to_owned(), Value::Null);
        }
        Some(sizes) => {
            let graphs = json!({ "enable_padding": true, "batch_sizes": sizes });
            options.insert("cuda_graph_config".to_owned(), graphs);
        }
    }
    if let Some(draft) = &spec.speculation {
        let config = json!({
            "decoding_type": draft_name(rules, draft.method)?,
            "num_nextn_predict_layers": draft.steps,
        });
        options.insert("speculative_config".to_owned(), config);
    }
    if !options.is_empty() {
        words.say(Meaning::OptionsFile, OPTIONS)?;
        // JSON is YAML, and quotes every string.
        words.file(OPTIONS, format!("{:#}\n", Value::Object(options)));
    }
    words.say(Meaning::Host, &spec.host)?;
    words.number(Meaning::Port, place.port)?;
    words.finish(place, place.node == 0, &spec.extra_args)
}
