//! Llama 4: one routed and one shared expert a token; three of four layers attend in chunks.

use super::{dense, gqa, layer};
use crate::fault::Fault;
use crate::hf::draft::{Draft, Modules};
use crate::hf::fields::Fields;
use crate::model::{Attention, Ffn, Gqa, MoeFfn};

const MODULES: Modules = Modules {
    dense: "feed_forward.down_proj",
    experts: "feed_forward.experts.down_proj",
    shared: "feed_forward.shared_expert.down_proj",
    ..Modules::LLAMA
};

/// Every fourth layer has no positions and sees the whole context
/// (`no_rope_layer_interval` of `transformers`, 4 unless listed); the others see the chunk of
/// `attention_chunk_size` tokens that they are in, planned as a window of that size. The norms on
/// Q and K have no parameters.
pub(super) fn read(text: &Fields<'_>) -> Result<Draft, Fault> {
    let full = gqa(text)?;
    let chunked = Gqa {
        window: text
            .optional("attention_chunk_size")?
            .filter(|chunk| *chunk > 0),
        ..full
    };
    let intermediate = text.dimension("intermediate_size")?;
    let experts = Ffn::Moe(MoeFfn {
        experts: text.dimension("num_local_experts")?,
        top_k: text.dimension("num_experts_per_tok")?,
        intermediate,
        shared_intermediate: intermediate,
        gated: true,
        bias: false,
        latent: 0,
        shared_gate: false,
        router_fp32: false,
    });
    let step = text.dimension("interleave_moe_layer_step")? as usize;
    let depth = text.depth("num_hidden_layers")?;
    // 1 where a layer has positions, 0 where it has none.
    let positions = text.numbers("no_rope_layers")?.unwrap_or_default();
    if !positions.is_empty() {
        text.covers("no_rope_layers", positions.len(), depth)?;
    }
    let mut layers = Vec::with_capacity(depth);
    for i in 0..depth {
        let rotary = positions.get(i).map_or((i + 1) % 4 != 0, |has| *has != 0);
        let ffn = if (i + 1) % step == 0 {
            experts
        } else {
            dense(text.dimension("intermediate_size_mlp")?)
        };
        let attention = if rotary { chunked } else { full };
        layers.push(layer(Attention::Gqa(attention), ffn, MODULES));
    }
    Ok(Draft::of(layers))
}
