//! Dense models of Llama's shape.

use super::{dense, gqa, layer, window};
use crate::fault::Fault;
use crate::hf::draft::{Draft, Modules};
use crate::hf::fields::Fields;
use crate::model::{Attention, Gqa};

/// Llama, Mistral and Phi-3 (whose Q, K, V and gate, up are stored as one, which changes no size);
/// the last two slide over all layers where they slide at all.
pub(super) fn read(text: &Fields<'_>) -> Result<Draft, Fault> {
    let attention = Gqa {
        window: window(text)?,
        ..gqa(text)?
    };
    uniform(text, attention)
}

/// Qwen2: biases on Q, K and V that its configuration does not mention.
pub(super) fn read_qwen2(text: &Fields<'_>) -> Result<Draft, Fault> {
    let attention = Gqa {
        bias: true,
        ..gqa(text)?
    };
    alternating(text, attention)
}

/// Qwen3: norms on Q and K.
pub(super) fn read_qwen3(text: &Fields<'_>) -> Result<Draft, Fault> {
    let attention = Gqa {
        qk_norm: true,
        ..gqa(text)?
    };
    alternating(text, attention)
}

fn uniform(text: &Fields<'_>, attention: Gqa) -> Result<Draft, Fault> {
    let ffn = dense(text.dimension("intermediate_size")?);
    let one = layer(Attention::Gqa(attention), ffn, Modules::LLAMA);
    let depth = text.depth("num_hidden_layers")?;
    Ok(Draft::of(vec![one; depth]))
}

/// Qwen's windows: only with `use_sliding_window`, and only from `max_window_layers` on.
fn alternating(text: &Fields<'_>, attention: Gqa) -> Result<Draft, Fault> {
    let mut draft = uniform(text, attention)?;
    if text.bool_or("use_sliding_window", false)? {
        let first = text.or("max_window_layers", 0)? as usize;
        let sliding = Gqa {
            window: window(text)?,
            ..attention
        };
        for one in draft.layers.iter_mut().skip(first) {
            one.attention = Some(Attention::Gqa(sliding));
        }
    }
    Ok(draft)
}
