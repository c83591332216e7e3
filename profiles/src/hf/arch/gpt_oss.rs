//! gpt-oss: sliding and full attention in turn, biases everywhere, learned sinks.

use super::{gqa, layer};
use crate::fault::Fault;
use crate::hf::draft::{Draft, Modules};
use crate::hf::fields::Fields;
use crate::model::{Attention, Ffn, Gqa, MoeFfn};

pub(super) fn read(text: &Fields<'_>) -> Result<Draft, Fault> {
    let full = Gqa {
        sinks: true,
        ..gqa(text)?
    };
    let experts = Ffn::Moe(MoeFfn {
        experts: text.dimension_of(&["num_local_experts", "num_experts"])?,
        top_k: text.dimension_of(&["num_experts_per_tok", "experts_per_token"])?,
        intermediate: text.dimension("intermediate_size")?,
        shared_intermediate: 0,
        gated: true,
        bias: true,
        latent: 0,
        shared_gate: false,
        router_fp32: false,
    });
    let modules = Modules {
        experts: "mlp.experts.down_proj",
        ..Modules::LLAMA
    };
    let depth = text.depth("num_hidden_layers")?;
    let types = text.texts("layer_types")?;
    text.covers("layer_types", types.len(), depth)?;
    let mut layers = Vec::with_capacity(depth);
    for kind in types.into_iter().take(depth) {
        let attention = match kind {
            "full_attention" => full,
            "sliding_attention" => Gqa {
                window: Some(text.dimension("sliding_window")?),
                ..full
            },
            other => {
                return Err(text.fault(
                    "layer_types",
                    format!("holds {other:?}; full_attention and sliding_attention are planned"),
                ));
            }
        };
        layers.push(layer(Attention::Gqa(attention), experts, modules));
    }
    Ok(Draft::of(layers))
}
