//! `python3 -m sglang.launch_server`.

use super::words::Words;
use super::{
    DraftMethod, LaunchError, LaunchSpec, NodeCommand, Place, draft_name, kv_name, load_name,
    no_option,
};
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::flags::Meaning;

pub(super) fn command(
    rules: &EngineRules,
    spec: &LaunchSpec,
    place: &Place,
) -> Result<NodeCommand, LaunchError> {
    let layout = &spec.layout;
    let mut words = Words::new(rules, &["python3", "-m", "sglang.launch_server"]);
    words.say(Meaning::Model, &spec.model)?;
    words.maybe(Meaning::ServedName, spec.served_name.as_ref())?;
    words.number(Meaning::Tp, layout.tp)?;
    if layout.attention_dp > 1 {
        words.number(Meaning::AttentionDp, layout.attention_dp)?;
    }
    if layout.ep > 1 {
        if words.knows(Meaning::Ep) {
            words.number(Meaning::Ep, layout.ep)?;
        } else if layout.ep == layout.tp {
            words.switch(Meaning::EpSwitch, true)?;
        } else {
            return Err(no_option(rules, Meaning::Ep));
        }
    }
    if layout.pp > 1 {
        words.number(Meaning::Pp, layout.pp)?;
    }
    if layout.dcp > 1 {
        words.number(Meaning::Dcp, layout.dcp)?;
        words.maybe(Meaning::DcpMerge, spec.dcp_merge.map(|merge| merge.name()))?;
        words.switch(Meaning::DcpReplicateQ, spec.replicate_q)?;
    }
    if layout.nodes > 1 {
        words.number(Meaning::Nodes, layout.nodes)?;
        words.number(Meaning::NodeRank, place.node)?;
        let meeting = format!("{}:{}", place.first, place.rendezvous_port);
        words.say(Meaning::Rendezvous, &meeting)?;
    }
    // The server counts requests of all attention-DP ranks, and divides.
    let running = spec
        .running_per_rank
        .map(|count| count.max(1).saturating_mul(layout.attention_dp));
    words.maybe(Meaning::RunningRequests, running)?;
    words.maybe(Meaning::ChunkTokens, spec.chunk_tokens)?;
    words.maybe(Meaning::ReceiveInterval, spec.receive_interval)?;
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
    // Versions without prefill graphs need not be told to leave them out.
    if words.knows(Meaning::PrefillGraphsOff) {
        words.switch(Meaning::PrefillGraphsOff, spec.prefill_graphs_off)?;
    }
    words.switch(Meaning::SymmetricMemory, spec.symmetric_memory)?;
    words.switch(Meaning::CustomAllReduceOff, spec.custom_all_reduce_off)?;
    words.maybe(Meaning::ExpertBackend, spec.expert_backend.as_ref())?;
    if spec.dense_unsplit {
        words.number(Meaning::DenseTp, 1)?;
        words.switch(Meaning::DpLmHead, layout.attention_dp > 1)?;
    }
    if let Some(draft) = &spec.speculation {
        words.say(
            Meaning::SpeculationAlgorithm,
            draft_name(rules, draft.method)?,
        )?;
        if draft.method != DraftMethod::Ngram {
            words.number(Meaning::SpeculationSteps, draft.steps)?;
            words.number(Meaning::SpeculationTopK, draft.top_k.max(1))?;
        }
        words.number(Meaning::SpeculationTokens, draft.draft_tokens)?;
        words.maybe(Meaning::SpeculationModel, draft.draft_model.as_ref())?;
    }
    words.switch(Meaning::PrefixCacheOff, spec.prefix_cache_off)?;
    words.switch(Meaning::TrustRemoteCode, spec.trust_remote_code)?;
    words.say(Meaning::Host, &spec.host)?;
    words.number(Meaning::Port, place.port)?;
    words.finish(place, place.node == 0, &spec.extra_args)
}
