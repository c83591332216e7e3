//! DeepSeek-V4: compressed and windowed attention by layer.

use super::layer;
use super::moe::deepseek_experts;
use crate::dtype::Dtype;
use crate::fault::Fault;
use crate::hf::draft::{Draft, LayerDraft, Modules};
use crate::hf::fields::Fields;
use crate::model::{Attention, Compressed, Ffn, Indexer};

const MODULES: Modules = Modules {
    attention: "attn.wq_b",
    output: "attn.wo_a",
    indexer: "attn.indexer.wq_b",
    dense: "ffn.w2",
    experts: "ffn.experts.0.w2",
    shared: "ffn.shared_experts.w2",
};

/// Reads `compress_ratios`: 0 sees the window only; 4 picks compressed entries with an indexer;
/// a larger ratio reads all of them.
pub(super) fn read(text: &Fields<'_>) -> Result<Draft, Fault> {
    let depth = text.depth("num_hidden_layers")?;
    let Some(ratios) = text.numbers("compress_ratios")? else {
        return Err(text.fault(
            "compress_ratios",
            "is missing; it says how each layer compresses its cache",
        ));
    };
    text.covers("compress_ratios", ratios.len(), depth)?;
    let indexer = Indexer {
        heads: text.dimension("index_n_heads")?,
        head_dim: text.dimension("index_head_dim")?,
        top_k: text.dimension("index_topk")?,
        owned: true,
    };
    let base = Compressed {
        q_heads: text.dimension("num_attention_heads")?,
        head_dim: text.dimension("head_dim")?,
        qk_rope_head_dim: text.number("qk_rope_head_dim")?,
        q_lora_rank: text.dimension("q_lora_rank")?,
        o_groups: text.dimension("o_groups")?,
        o_lora_rank: text.dimension("o_lora_rank")?,
        window: text.dimension("sliding_window")?,
        compress_ratio: 0,
        indexer: None,
    };
    if text.dimension("num_key_value_heads")? != 1 {
        let heads = text.number("num_key_value_heads")?;
        return Err(text.fault(
            "num_key_value_heads",
            format!("is {heads}; this attention has one KV head"),
        ));
    }
    let experts = Ffn::Moe(deepseek_experts(text)?);
    let at = |ratio: u32| -> LayerDraft {
        let attention = Compressed {
            compress_ratio: ratio,
            indexer: (ratio == 4).then_some(indexer),
            ..base
        };
        layer(Attention::Compressed(attention), experts, MODULES)
    };
    let mut draft = Draft::of(ratios.iter().take(depth).map(|ratio| at(*ratio)).collect());
    draft.mtp_layers = text.or("num_nextn_predict_layers", 0)?;
    let mtp_ratio = ratios.get(depth).copied().unwrap_or(0);
    draft.mtp = Some((at(mtp_ratio), "mtp.0".to_owned()));
    draft.hyper_connections = text.or("hc_mult", 0)?;
    // vLLM asserts an fp8 cache for it (`models/deepseek_v4/attention.py`).
    draft.kv_dtype = Some(Dtype::Fp8);
    draft.expert_dtype = match text.text("expert_dtype")? {
        None => None,
        // Groups of 32 with one e8m0 scale (`scale_fmt` ue8m0).
        Some("fp4") => Some(Dtype::Mxfp4),
        Some("fp8") => Some(Dtype::Fp8Block),
        Some(other) => {
            return Err(text.fault(
                "expert_dtype",
                format!("is {other:?}; fp4 and fp8 are planned"),
            ));
        }
    };
    Ok(draft)
}
