//! Qwen3-Next and Qwen3.5: gated-delta linear attention with full attention in between.

use super::{dense, gqa, layer};
use crate::fault::Fault;
use crate::hf::draft::{Draft, Modules};
use crate::hf::fields::Fields;
use crate::model::{Attention, Ffn, GatedDelta, Gqa, MoeFfn};

const LINEAR: Modules = Modules {
    attention: "linear_attn.in_proj_qkv",
    output: "linear_attn.out_proj",
    ..Modules::LLAMA
};

pub(super) fn read(text: &Fields<'_>) -> Result<Draft, Fault> {
    let full = Attention::Gqa(Gqa {
        qk_norm: true,
        // Qwen3-Next has the gate without saying so.
        output_gate: text.bool_or("attn_output_gate", true)?,
        ..gqa(text)?
    });
    let linear = Attention::GatedDelta(GatedDelta {
        k_heads: text.dimension("linear_num_key_heads")?,
        v_heads: text.dimension("linear_num_value_heads")?,
        k_head_dim: text.dimension("linear_key_head_dim")?,
        v_head_dim: text.dimension("linear_value_head_dim")?,
        conv_kernel: text.dimension("linear_conv_kernel_dim")?,
    });
    let experts = match text.value("num_experts") {
        None => None,
        Some(_) => Some(moe(text)?),
    };
    let plain = text.numbers("mlp_only_layers")?.unwrap_or_default();
    let ffn = |i: u32| match experts {
        Some(experts) if !plain.contains(&i) => Ok(Ffn::Moe(experts)),
        _ => text.dimension("intermediate_size").map(dense),
    };
    let depth = text.depth("num_hidden_layers")?;
    let mut layers = Vec::with_capacity(depth);
    for (i, is_full) in full_layers(text, depth)?.into_iter().enumerate() {
        let ffn = ffn(i as u32)?;
        layers.push(if is_full {
            layer(full, ffn, Modules::LLAMA)
        } else {
            layer(linear, ffn, LINEAR)
        });
    }
    let mut draft = Draft::of(layers);
    draft.mtp_layers = match text.optional("mtp_num_hidden_layers")? {
        Some(count) => count,
        None => text.or("num_nextn_predict_layers", 0)?,
    };
    let mtp = layer(full, ffn(depth as u32)?, Modules::LLAMA);
    draft.mtp = Some((mtp, "mtp.layers.0".to_owned()));
    Ok(draft)
}

/// Which layers are full attention: `layer_types`, or every `full_attention_interval`-th.
fn full_layers(text: &Fields<'_>, depth: usize) -> Result<Vec<bool>, Fault> {
    if text.value("layer_types").is_none() {
        let interval = text.dimension("full_attention_interval")? as usize;
        return Ok((0..depth).map(|i| (i + 1) % interval == 0).collect());
    }
    let types = text.texts("layer_types")?;
    text.covers("layer_types", types.len(), depth)?;
    types
        .into_iter()
        .take(depth)
        .map(|kind| match kind {
            "full_attention" => Ok(true),
            "linear_attention" => Ok(false),
            other => Err(text.fault(
                "layer_types",
                format!("holds {other:?}; full_attention and linear_attention are planned"),
            )),
        })
        .collect()
}

fn moe(text: &Fields<'_>) -> Result<MoeFfn, Fault> {
    let shared = text.or("shared_expert_intermediate_size", 0)?;
    Ok(MoeFfn {
        experts: text.dimension("num_experts")?,
        top_k: text.dimension("num_experts_per_tok")?,
        intermediate: text.dimension("moe_intermediate_size")?,
        shared_intermediate: shared,
        gated: true,
        bias: false,
        latent: 0,
        shared_gate: shared > 0,
        router_fp32: false,
    })
}
