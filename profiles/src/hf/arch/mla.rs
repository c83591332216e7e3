//! DeepSeek-V2 to V3.2, Kimi-K2 and GLM-5: multi-head latent attention, with or without an indexer.

use super::moe::deepseek_experts;
use super::{dense, layer};
use crate::fault::Fault;
use crate::hf::draft::{Draft, LayerDraft, Modules};
use crate::hf::fields::Fields;
use crate::model::{Attention, Ffn, Indexer, Mla};

const MODULES: Modules = Modules {
    attention: "self_attn.q_b_proj",
    shared: "mlp.shared_experts.down_proj",
    ..Modules::LLAMA
};

/// Latent attention that reads the whole context.
pub(super) fn read(text: &Fields<'_>) -> Result<Draft, Fault> {
    assemble(text, |_| Ok(None))
}

/// Latent attention that reads what an indexer picks (DSA).
///
/// GLM-5.2 shares an index among layers: `indexer_types` says which layers have their own.
pub(super) fn read_sparse(text: &Fields<'_>) -> Result<Draft, Fault> {
    let own = Indexer {
        heads: text.dimension("index_n_heads")?,
        head_dim: text.dimension("index_head_dim")?,
        top_k: text.dimension("index_topk")?,
        owned: true,
    };
    let depth = text.depth("num_hidden_layers")?;
    let types = text.texts("indexer_types")?;
    if text.value("indexer_types").is_some() {
        text.covers("indexer_types", types.len(), depth)?;
    } else if text.or("index_topk_freq", 1)? > 1 {
        return Err(text.fault(
            "indexer_types",
            "is missing, and index_topk_freq says that layers share an index",
        ));
    }
    assemble(text, |i| match types.get(i) {
        None | Some(&"full") => Ok(Some(own)),
        Some(&"shared") => Ok(Some(Indexer {
            owned: false,
            ..own
        })),
        Some(other) => Err(text.fault(
            "indexer_types",
            format!("holds {other:?}; full and shared are planned"),
        )),
    })
}

/// The dimensions of latent attention.
pub(super) fn latent(text: &Fields<'_>) -> Result<Mla, Fault> {
    Ok(Mla {
        q_heads: text.dimension("num_attention_heads")?,
        // Null in DeepSeek-V2-Lite: the query is not compressed.
        q_lora_rank: text.or("q_lora_rank", 0)?,
        kv_lora_rank: text.dimension("kv_lora_rank")?,
        qk_nope_head_dim: text.dimension("qk_nope_head_dim")?,
        qk_rope_head_dim: text.number("qk_rope_head_dim")?,
        v_head_dim: text.dimension("v_head_dim")?,
        indexer: None,
        window: None,
        output_gate: false,
    })
}

fn assemble(
    text: &Fields<'_>,
    indexer: impl Fn(usize) -> Result<Option<Indexer>, Fault>,
) -> Result<Draft, Fault> {
    let attention = latent(text)?;
    let modules = Modules {
        attention: if attention.q_lora_rank == 0 {
            "self_attn.q_proj"
        } else {
            MODULES.attention
        },
        ..MODULES
    };
    let experts = Ffn::Moe(deepseek_experts(text)?);
    let plain = text.or("first_k_dense_replace", 0)? as usize;
    let every = match text.optional("moe_layer_freq")? {
        Some(_) => text.dimension("moe_layer_freq")? as usize,
        None => 1,
    };
    let depth = text.depth("num_hidden_layers")?;
    let at = |i: usize, ffn: Ffn| -> Result<LayerDraft, Fault> {
        let mixer = Attention::Mla(Mla {
            indexer: indexer(i)?,
            ..attention
        });
        Ok(layer(mixer, ffn, modules))
    };
    let mut layers = Vec::with_capacity(depth);
    for i in 0..depth {
        layers.push(if i < plain || i % every != 0 {
            at(i, dense(text.dimension("intermediate_size")?))?
        } else {
            at(i, experts)?
        });
    }
    let mut draft = Draft::of(layers);
    draft.mtp_layers = text.or("num_nextn_predict_layers", 0)?;
    draft.mtp = Some((at(depth, experts)?, format!("layers.{depth}")));
    Ok(draft)
}
