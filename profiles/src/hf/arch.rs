//! Reading layers, one family of architectures a file.

use super::draft::{Draft, LayerDraft, Modules};
use super::fields::Fields;
use crate::fault::Fault;
use crate::model::{Attention, DenseFfn, Ffn, Gqa};

mod deci;
mod deepseek_v4;
mod dense;
mod gpt_oss;
mod kimi_linear;
mod llama4;
mod minimax;
mod mla;
mod moe;
mod nemotron_h;
mod qwen_hybrid;

/// Reads a model's layers.
type Reader = fn(&Fields<'_>) -> Result<Draft, Fault>;

/// Every architecture that is known, and its reader.
const READERS: &[(&str, Reader)] = &[
    ("LlamaForCausalLM", dense::read),
    ("MistralForCausalLM", dense::read),
    ("Mistral3ForConditionalGeneration", dense::read),
    ("Phi3ForCausalLM", dense::read),
    ("Qwen2ForCausalLM", dense::read_qwen2),
    ("Qwen3ForCausalLM", dense::read_qwen3),
    ("Qwen3VLForConditionalGeneration", dense::read_qwen3),
    ("Qwen3MoeForCausalLM", moe::read_qwen3),
    ("Qwen3VLMoeForConditionalGeneration", moe::read_qwen3),
    ("MixtralForCausalLM", moe::read_mixtral),
    ("Glm4MoeForCausalLM", moe::read_glm4),
    ("MiniMaxM2ForCausalLM", minimax::read_m2),
    ("MiniMaxM3ForCausalLM", minimax::read_m3),
    ("GptOssForCausalLM", gpt_oss::read),
    ("Llama4ForConditionalGeneration", llama4::read),
    ("DeepseekV2ForCausalLM", mla::read),
    ("DeepseekV3ForCausalLM", mla::read),
    ("DeepseekV32ForCausalLM", mla::read_sparse),
    ("GlmMoeDsaForCausalLM", mla::read_sparse),
    ("KimiK25ForConditionalGeneration", mla::read),
    ("DeepseekV4ForCausalLM", deepseek_v4::read),
    ("Qwen3NextForCausalLM", qwen_hybrid::read),
    ("Qwen3_5ForConditionalGeneration", qwen_hybrid::read),
    ("Qwen3_5MoeForConditionalGeneration", qwen_hybrid::read),
    ("NemotronHForCausalLM", nemotron_h::read),
    ("DeciLMForCausalLM", deci::read),
    ("KimiLinearForCausalLM", kimi_linear::read),
    ("KimiK3ForConditionalGeneration", kimi_linear::read),
];

/// Names of the architectures that can be read.
pub(super) fn known() -> impl Iterator<Item = &'static str> {
    READERS.iter().map(|(name, _)| *name)
}

/// Reads the layers of an architecture from the fields of its language part.
pub(super) fn draft(name: &str, root: &Fields<'_>, text: &Fields<'_>) -> Result<Draft, Fault> {
    match READERS.iter().find(|(known, _)| *known == name) {
        Some((_, read)) => read(text),
        None => {
            let known: Vec<&str> = known().collect();
            Err(root.fault(
                "architectures",
                format!(
                    "names {:?}, which is not known (known: {})",
                    name.chars().take(80).collect::<String>(),
                    known.join(", ")
                ),
            ))
        }
    }
}

/// Grouped-query attention as nearly every model spells it.
fn gqa(text: &Fields<'_>) -> Result<Gqa, Fault> {
    let q_heads = text.dimension("num_attention_heads")?;
    let head_dim = head_dim(text, q_heads)?;
    Ok(Gqa {
        q_heads,
        kv_heads: match text.optional("num_key_value_heads")? {
            Some(_) => text.dimension("num_key_value_heads")?,
            None => q_heads,
        },
        head_dim,
        v_head_dim: head_dim,
        window: None,
        qk_norm: false,
        qk_norm_all_heads: false,
        output_gate: false,
        bias: text.bool_or("attention_bias", false)?,
        sinks: false,
        sparse: None,
    })
}

/// `head_dim`, or the hidden width shared out to the heads.
fn head_dim(text: &Fields<'_>, q_heads: u32) -> Result<u32, Fault> {
    if text.value("head_dim").is_some() {
        return text.dimension("head_dim");
    }
    let hidden = text.dimension("hidden_size")?;
    if hidden % q_heads != 0 {
        return Err(text.fault(
            "head_dim",
            format!("is missing, and hidden_size = {hidden} is no multiple of num_attention_heads = {q_heads}"),
        ));
    }
    Ok(hidden / q_heads)
}

/// The window of layers that are not full attention, where the model slides at all.
fn window(text: &Fields<'_>) -> Result<Option<u32>, Fault> {
    match text.optional("sliding_window")? {
        Some(0) => Ok(None),
        window => Ok(window),
    }
}

fn dense(intermediate: u32) -> Ffn {
    Ffn::Dense(DenseFfn {
        intermediate,
        gated: true,
    })
}

/// The feed-forward block of each layer: `first_k_dense_replace` dense ones, then `experts`.
fn dense_then(text: &Fields<'_>, experts: Ffn) -> Result<Vec<Ffn>, Fault> {
    let plain = text.or("first_k_dense_replace", 0)? as usize;
    (0..text.depth("num_hidden_layers")?)
        .map(|i| {
            if i < plain {
                Ok(dense(text.dimension("intermediate_size")?))
            } else {
                Ok(experts)
            }
        })
        .collect()
}

fn layer(attention: Attention, ffn: Ffn, modules: Modules) -> LayerDraft {
    LayerDraft {
        attention: Some(attention),
        ffn: Some(ffn),
        modules,
    }
}
