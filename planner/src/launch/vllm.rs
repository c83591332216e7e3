//! `vllm serve`.

use super::words::Words;
use super::{LaunchError, LaunchSpec, NodeCommand, Place, draft_name, kv_name, load_name};
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::flags::Meaning;
use serde_json::json;

pub(super) fn command(
    rules: &EngineRules,
    spec: &LaunchSpec,
    place: &Place,
) -> Result<NodeCommand, LaunchError> {
    let layout = &spec.layout;
    let mut words = Words::new(rules, &["vllm", "serve"]);
    words.say(Meaning::Model, &spec.model)?;
    words.maybe(Meaning::ServedName, spec.served_name.as_ref())?;
    // Its TP is what one data-parallel engine spans; engines times TP are the GPUs.
    let engine_tp = layout.attention_tp().max(1);
    words.number(Meaning::Tp, engine_tp)?;
    if layout.attention_dp > 1 {
        words.number(Meaning::AttentionDp, layout.attention_dp)?;
    }
    words.switch(Meaning::EpSwitch, layout.ep > 1)?;
    if layout.pp > 1 {
        words.number(Meaning::Pp, layout.pp)?;
    }
    if layout.dcp > 1 {
        words.number(Meaning::Dcp, layout.dcp)?;
        words.maybe(Meaning::DcpMerge, spec.dcp_merge.map(|merge| merge.name()))?;
        words.switch(Meaning::DcpReplicateQ, spec.replicate_q)?;
    }
    let serves = place.node == 0;
    if layout.nodes > 1 {
        nodes(&mut words, spec, place, engine_tp)?;
    }
    // Both limits are those of one engine: one attention-DP rank.
    words.maybe(
        Meaning::RunningRequests,
        spec.running_per_rank.map(|count| count.max(1)),
    )?;
    words.maybe(Meaning::ChunkTokens, spec.chunk_tokens)?;
    words.maybe(Meaning::MemoryFraction, spec.memory_fraction)?;
    if let Some(dtype) = spec.quantization {
        words.say(Meaning::Quantization, load_name(rules, dtype)?)?;
    }
    if let Some(dtype) = spec.kv_dtype {
        words.say(Meaning::KvDtype, kv_name(rules, dtype)?)?;
    }
    words.maybe(Meaning::ContextLength, spec.context_length)?;
    words.switch(Meaning::LongContext, spec.long_context)?;
    words.maybe(Meaning::PageSize, spec.page_size)?;
    match spec.graph_sizes.as_deref() {
        None => {}
        Some([]) => words.switch(Meaning::GraphsOff, true)?,
        Some(sizes) => {
            let sizes: Vec<_> = sizes.iter().map(u32::to_string).collect();
            words.say_all(Meaning::GraphSizes, &sizes)?;
        }
    }
    words.switch(Meaning::SymmetricMemory, spec.symmetric_memory)?;
    words.switch(Meaning::CustomAllReduceOff, spec.custom_all_reduce_off)?;
    words.maybe(Meaning::ExpertBackend, spec.expert_backend.as_ref())?;
    words.maybe(Meaning::ExpertKernel, spec.expert_kernel.as_ref())?;
    if let Some(draft) = &spec.speculation {
        let method = draft_name(rules, draft.method)?;
        let mut config = json!({ "method": method, "num_speculative_tokens": draft.steps });
        if let (Some(model), Some(map)) = (&draft.draft_model, config.as_object_mut()) {
            map.insert("model".to_owned(), json!(model));
        }
        words.say(Meaning::Speculation, &config.to_string())?;
    }
    words.switch(Meaning::PrefixCacheOff, spec.prefix_cache_off)?;
    words.switch(Meaning::TrustRemoteCode, spec.trust_remote_code)?;
    if serves {
        words.say(Meaning::Host, &spec.host)?;
        words.number(Meaning::Port, place.port)?;
    }
    words.finish(place, serves, &spec.extra_args)
}

/// Engines over several machines: whole data-parallel engines on each, or one engine over all.
fn nodes(
    words: &mut Words<'_>,
    spec: &LaunchSpec,
    place: &Place,
    engine_tp: u32,
) -> Result<(), LaunchError> {
    let layout = &spec.layout;
    let engine_gpus = engine_tp.saturating_mul(layout.pp);
    if layout.attention_dp > 1 {
        if !layout.attention_dp.is_multiple_of(layout.nodes) || engine_gpus > place.gpus {
            return Err(LaunchError::Placement(format!(
                "vLLM spreads whole engines over nodes: {} engines of {engine_gpus} GPUs do not \
                 divide over {} nodes of {} GPUs; use an attention dp that is a multiple of {}",
                layout.attention_dp, layout.nodes, place.gpus, layout.nodes
            )));
        }
        let local = layout.attention_dp / layout.nodes;
        words.number(Meaning::DataParallelLocal, local)?;
        words.say(Meaning::DataParallelHost, &place.first)?;
        words.number(Meaning::DataParallelPort, place.rendezvous_port)?;
        if place.node > 0 {
            words.number(Meaning::DataParallelStart, place.node * local)?;
        }
    } else {
        words.number(Meaning::Nodes, layout.nodes)?;
        words.number(Meaning::NodeRank, place.node)?;
        words.say(Meaning::RendezvousHost, &place.first)?;
        words.number(Meaning::RendezvousPort, place.rendezvous_port)?;
    }
    words.switch(Meaning::Headless, place.node > 0)
}
