//! Kimi Linear and Kimi-K3: Kimi Delta Attention with latent attention in between.

use super::mla::latent;
use super::moe::shared_width;
use super::{dense_then, layer};
use crate::fault::Fault;
use crate::hf::draft::{Draft, Modules};
use crate::hf::fields::Fields;
use crate::model::{Attention, Ffn, KimiDelta, Mla, MoeFfn};

const DELTA: Modules = Modules {
    experts: "block_sparse_moe.experts.0.w2",
    shared: "block_sparse_moe.shared_experts.down_proj",
    ..Modules::LLAMA
};

/// Reads `linear_attn_config`, which counts layers from 1.
pub(super) fn read(text: &Fields<'_>) -> Result<Draft, Fault> {
    let Some(config) = text.object("linear_attn_config", "linear_attn_config")? else {
        return Err(text.fault(
            "linear_attn_config",
            "is missing; it says which layers are linear",
        ));
    };
    let linear = Attention::KimiDelta(KimiDelta {
        heads: config.dimension("num_heads")?,
        head_dim: config.dimension("head_dim")?,
        conv_kernel: config.dimension("short_conv_kernel_size")?,
        full_rank_gate: config.bool_or("use_full_rank_gate", false)?,
    });
    let Some(full_layers) = config.numbers("full_attn_layers")? else {
        return Err(config.fault("full_attn_layers", "is missing; it lists the other layers"));
    };
    let attention = Mla {
        output_gate: text.bool_or("mla_use_output_gate", false)?,
        ..latent(text)?
    };
    let full_modules = Modules {
        attention: if attention.q_lora_rank == 0 {
            "self_attn.q_proj"
        } else {
            "self_attn.q_b_proj"
        },
        ..DELTA
    };
    let experts = Ffn::Moe(experts(text)?);
    let layers = (1..)
        .zip(dense_then(text, experts)?)
        .map(|(number, ffn)| {
            if full_layers.contains(&number) {
                layer(Attention::Mla(attention), ffn, full_modules)
            } else {
                layer(linear, ffn, DELTA)
            }
        })
        .collect();
    if text.or("num_nextn_predict_layers", 0)? > 0 {
        return Err(text.fault(
            "num_nextn_predict_layers",
            "is not 0; the shape of this family's MTP layer is not known",
        ));
    }
    Ok(Draft::of(layers))
}

/// Experts; in K3 the routed ones work on a projection of the stream
/// (`routed_expert_hidden_size`), the shared ones on the stream itself.
fn experts(text: &Fields<'_>) -> Result<MoeFfn, Fault> {
    let intermediate = text.dimension("moe_intermediate_size")?;
    let shared = text.or("num_shared_experts", 0)?;
    Ok(MoeFfn {
        experts: text.dimension("num_experts")?,
        top_k: text.dimension_of(&["num_experts_per_token", "num_experts_per_tok"])?,
        intermediate,
        shared_intermediate: shared_width(text, shared, intermediate)?,
        gated: true,
        bias: false,
        latent: text.or("routed_expert_hidden_size", 0)?,
        shared_gate: false,
        router_fp32: false,
    })
}
