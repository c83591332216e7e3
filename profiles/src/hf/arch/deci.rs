//! Llama-Nemotron (DeciLM): Llama layers that a search made narrower one by one.

use super::{dense, head_dim};
use crate::fault::Fault;
use crate::hf::draft::{Draft, LayerDraft, Modules};
use crate::hf::fields::Fields;
use crate::model::{Attention, Ffn, Gqa};
use serde_json::Value;

/// Reads `block_configs`: each layer's query heads a KV head, and its width as a multiple of the
/// hidden one. Layers that keep neither attention nor a feed-forward block are none.
pub(super) fn read(text: &Fields<'_>) -> Result<Draft, Fault> {
    let depth = text.depth("num_hidden_layers")?;
    let Some(blocks) = text.list("block_configs")? else {
        return Err(text.fault("block_configs", "is missing; it says what each layer is"));
    };
    text.covers("block_configs", blocks.len(), depth)?;
    let mut layers = Vec::with_capacity(depth);
    for block in blocks.iter().take(depth) {
        let Value::Object(map) = block else {
            return Err(text.wrong("block_configs", block, "a list of objects"));
        };
        let block = Fields::nested("block_configs[]", map);
        let attention = attention(text, &block)?;
        let ffn = ffn(text, &block)?;
        if attention.is_some() || ffn.is_some() {
            layers.push(LayerDraft {
                attention,
                ffn,
                modules: Modules::LLAMA,
            });
        }
    }
    Ok(Draft::of(layers))
}

fn part<'j>(
    block: &Fields<'j>,
    name: &str,
    path: &'static str,
) -> Result<Option<Fields<'j>>, Fault> {
    let Some(part) = block.object(name, path)? else {
        return Err(block.fault(name, "is missing; it says what the layer does"));
    };
    if part.bool_or("replace_with_linear", false)? {
        return Err(part.fault(
            "replace_with_linear",
            "is true; layers replaced by one matrix are not planned",
        ));
    }
    Ok(Some(part).filter(|part| !matches!(part.optional_bool("no_op"), Ok(Some(true)))))
}

fn attention(text: &Fields<'_>, block: &Fields<'_>) -> Result<Option<Attention>, Fault> {
    let Some(part) = part(block, "attention", "block_configs[].attention")? else {
        return Ok(None);
    };
    let q_heads = text.dimension("num_attention_heads")?;
    let in_group = part.dimension("n_heads_in_group")?;
    if q_heads % in_group != 0 {
        return Err(part.fault(
            "n_heads_in_group",
            format!("is {in_group}, which does not divide num_attention_heads = {q_heads}"),
        ));
    }
    let head_dim = head_dim(text, q_heads)?;
    Ok(Some(Attention::Gqa(Gqa {
        q_heads,
        kv_heads: q_heads / in_group,
        head_dim,
        v_head_dim: head_dim,
        window: part.optional("window_length")?.filter(|window| *window > 0),
        qk_norm: false,
        qk_norm_all_heads: false,
        output_gate: false,
        bias: text.bool_or("attention_bias", false)?,
        sinks: false,
        sparse: None,
    })))
}

/// `ffn_mult` is of two thirds of the hidden width, rounded up to 256
/// (vLLM `nemotron_nas.py`, `_ffn_mult_to_intermediate_size`).
fn ffn(text: &Fields<'_>, block: &Fields<'_>) -> Result<Option<Ffn>, Fault> {
    let Some(part) = part(block, "ffn", "block_configs[].ffn")? else {
        return Ok(None);
    };
    let hidden = f64::from(text.dimension("hidden_size")?);
    let multiple = part.value("ffn_mult").and_then(Value::as_f64);
    let width = multiple.map(|multiple| 2.0 * multiple * hidden / 3.0);
    match width {
        Some(width) if (1.0..1e6).contains(&width) => {
            Ok(Some(dense((width as u32).next_multiple_of(256))))
        }
        _ => Err(part.fault(
            "ffn_mult",
            "is missing or no multiple of the hidden width that can be planned",
        )),
    }
}
