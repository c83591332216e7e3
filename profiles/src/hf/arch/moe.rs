//! Mixture-of-experts models with ordinary attention.

use super::{dense, dense_then, gqa, layer, window};
use crate::fault::Fault;
use crate::hf::draft::{Draft, Modules};
use crate::hf::fields::Fields;
use crate::model::{Attention, Ffn, Gqa, MoeFfn};

/// Qwen3-MoE: every `decoder_sparse_step`-th layer routes, save those listed as plain.
pub(super) fn read_qwen3(text: &Fields<'_>) -> Result<Draft, Fault> {
    let attention = Attention::Gqa(Gqa {
        qk_norm: true,
        ..gqa(text)?
    });
    let experts = Ffn::Moe(MoeFfn {
        experts: text.dimension("num_experts")?,
        top_k: text.dimension("num_experts_per_tok")?,
        intermediate: text.dimension("moe_intermediate_size")?,
        shared_intermediate: 0,
        gated: true,
        bias: false,
        latent: 0,
        shared_gate: false,
        router_fp32: false,
    });
    let plain = text.numbers("mlp_only_layers")?.unwrap_or_default();
    let step = match text.optional("decoder_sparse_step")? {
        Some(_) => text.dimension("decoder_sparse_step")?,
        None => 1,
    };
    let depth = text.depth("num_hidden_layers")?;
    let mut layers = Vec::with_capacity(depth);
    for i in 0..depth as u32 {
        let ffn = if plain.contains(&i) || (i + 1) % step != 0 {
            dense(text.dimension("intermediate_size")?)
        } else {
            experts
        };
        layers.push(layer(attention, ffn, Modules::LLAMA));
    }
    Ok(Draft::of(layers))
}

/// Mixtral: every layer routes; experts have the model's `intermediate_size`.
pub(super) fn read_mixtral(text: &Fields<'_>) -> Result<Draft, Fault> {
    let attention = Gqa {
        window: window(text)?,
        ..gqa(text)?
    };
    let experts = MoeFfn {
        experts: text.dimension("num_local_experts")?,
        top_k: text.dimension("num_experts_per_tok")?,
        intermediate: text.dimension("intermediate_size")?,
        shared_intermediate: 0,
        gated: true,
        bias: false,
        latent: 0,
        shared_gate: false,
        router_fp32: false,
    };
    let modules = Modules {
        experts: "block_sparse_moe.experts.0.w2",
        ..Modules::LLAMA
    };
    let one = layer(Attention::Gqa(attention), Ffn::Moe(experts), modules);
    Ok(Draft::of(vec![one; text.depth("num_hidden_layers")?]))
}

/// GLM-4.5: DeepSeek's experts under grouped-query attention.
pub(super) fn read_glm4(text: &Fields<'_>) -> Result<Draft, Fault> {
    let attention = Attention::Gqa(Gqa {
        qk_norm: text.bool_or("use_qk_norm", false)?,
        ..gqa(text)?
    });
    let experts = Ffn::Moe(deepseek_experts(text)?);
    let layers: Vec<_> = dense_then(text, experts)?
        .into_iter()
        .map(|ffn| layer(attention, ffn, DEEPSEEK_MODULES))
        .collect();
    let depth = layers.len();
    let mut draft = Draft::of(layers);
    draft.mtp_layers = text.or("num_nextn_predict_layers", 0)?;
    let mtp = layer(attention, experts, DEEPSEEK_MODULES);
    draft.mtp = Some((mtp, format!("layers.{depth}")));
    Ok(draft)
}

/// Module names of DeepSeek's experts beside plain projections.
const DEEPSEEK_MODULES: Modules = Modules {
    shared: "mlp.shared_experts.down_proj",
    ..Modules::LLAMA
};

/// Experts as DeepSeek's configurations, and those that follow them, spell them.
pub(super) fn deepseek_experts(text: &Fields<'_>) -> Result<MoeFfn, Fault> {
    let intermediate = text.dimension("moe_intermediate_size")?;
    let shared = text.or("n_shared_experts", 0)?;
    Ok(MoeFfn {
        experts: text.dimension("n_routed_experts")?,
        top_k: text.dimension("num_experts_per_tok")?,
        intermediate,
        shared_intermediate: shared_width(text, shared, intermediate)?,
        gated: true,
        bias: false,
        latent: 0,
        shared_gate: false,
        router_fp32: false,
    })
}

/// The hidden width of all shared experts together.
pub(super) fn shared_width(text: &Fields<'_>, shared: u32, each: u32) -> Result<u32, Fault> {
    shared.checked_mul(each).ok_or_else(|| {
        text.fault(
            "n_shared_experts",
            format!("is {shared}; with moe_intermediate_size = {each} that is too wide to plan"),
        )
    })
}
