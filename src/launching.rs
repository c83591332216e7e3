//! The command that starts a plan, from the plan that was priced.

use crate::ask::Ask;
use parplan_planner::formats;
use parplan_planner::launch::{
    DraftMethod, LaunchError, LaunchPlan, LaunchSpec, Speculation, launch,
};
use parplan_planner::plan::Plan;

/// What is to be started, in parplan's own units.
pub fn spec(ask: &Ask, plan: &Plan) -> LaunchSpec {
    let choice = &plan.choice;
    let layout = choice.layout;
    let ranks = layout.attention_dp.saturating_mul(layout.replicas).max(1);
    LaunchSpec {
        running_per_rank: Some((plan.max_running_requests / ranks).max(1)),
        receive_interval: (plan.receive_interval > 1).then_some(plan.receive_interval),
        graph_sizes: Some(if choice.cuda_graphs {
            plan.graph_batch_sizes.clone()
        } else {
            Vec::new()
        }),
        memory_fraction: Some(plan.memory_fraction),
        quantization: ask.quantization,
        kv_dtype: Some(choice.kv_dtype),
        long_context: ask
            .settings
            .context_length
            .is_some_and(|length| length > ask.model.max_position),
        context_length: ask.settings.context_length.or_else(|| what_fits(ask, plan)),
        chunk_tokens: Some(plan.chunk_tokens),
        speculation: (choice.speculative_steps > 0).then(|| Speculation {
            method: DraftMethod::Mtp,
            draft_model: None,
            steps: choice.speculative_steps,
            top_k: 1,
            draft_tokens: choice.speculative_steps.saturating_add(1),
        }),
        symmetric_memory: choice.symmetric_memory,
        expert_backend: choice
            .expert_all_to_all
            .then(|| ask.rules.experts.all_to_all())
            .flatten()
            .map(str::to_owned),
        expert_kernel: formats::expert_kernel(&ask.rules, &ask.gpu, &ask.model).map(str::to_owned),
        ..LaunchSpec::new(&ask.model.repository, layout, ask.gpu.gpus_per_node)
    }
}

/// The longest sequence to ask for where the KV cache of a rank does not hold one of the model's own
/// length: vLLM refuses to start then. A tenth is left for what the prediction of memory misses.
fn what_fits(ask: &Ask, plan: &Plan) -> Option<u32> {
    let is_short = plan.max_kv_tokens < f64::from(ask.model.max_position);
    let tokens = (0.9 * plan.max_kv_tokens).max(ask.traffic.longest().ceil());
    is_short.then_some(tokens as u32)
}

/// Commands for every node of every replica.
///
/// # Errors
/// What the engine's version has no option for.
pub fn commands(ask: &Ask, plan: &Plan) -> Result<LaunchPlan, LaunchError> {
    launch(&ask.rules, &spec(ask, plan))
}
