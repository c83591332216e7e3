//! MiniMax-M2 and M3.

use super::{dense, gqa, layer};
use crate::fault::Fault;
use crate::hf::draft::{Draft, Modules};
use crate::hf::fields::Fields;
use crate::model::{Attention, BlockSparse, Ffn, Gqa, MoeFfn};

const MODULES: Modules = Modules {
    indexer: "self_attn.index_q_proj",
    experts: "block_sparse_moe.experts.0.w2",
    shared: "block_sparse_moe.shared_experts.down_proj",
    ..Modules::LLAMA
};

/// M2: every layer routes. Its configuration announces MTP modules (`use_mtp`) that the
/// checkpoint does not hold.
pub(super) fn read_m2(text: &Fields<'_>) -> Result<Draft, Fault> {
    let qk_norm = text.bool_or("use_qk_norm", false)?;
    let attention = Gqa {
        qk_norm,
        // The modelling code of M2 has no other norm than that of a layer's whole width.
        qk_norm_all_heads: qk_norm,
        ..gqa(text)?
    };
    if let Some(types) = text.numbers("attn_type_list")?
        && types.iter().any(|kind| *kind != 1)
    {
        return Err(text.fault(
            "attn_type_list",
            "holds a 0 (lightning attention); 1 (full attention) is planned",
        ));
    }
    let experts = MoeFfn {
        experts: text.dimension("num_local_experts")?,
        top_k: text.dimension("num_experts_per_tok")?,
        intermediate: text.dimension("intermediate_size")?,
        shared_intermediate: text.or("shared_intermediate_size", 0)?,
        gated: true,
        bias: false,
        latent: 0,
        shared_gate: false,
        // Stored and run in fp32: vLLM's and SGLang's minimax_m2.py.
        router_fp32: true,
    };
    let one = layer(Attention::Gqa(attention), Ffn::Moe(experts), MODULES);
    Ok(Draft::of(vec![one; text.depth("num_hidden_layers")?]))
}

/// M3: dense layers first, then experts; block-sparse attention in the layers that
/// `sparse_attention_config` marks.
pub(super) fn read_m3(text: &Fields<'_>) -> Result<Draft, Fault> {
    let depth = text.depth("num_hidden_layers")?;
    let full = Gqa {
        qk_norm: text.bool_or("use_qk_norm", false)?,
        output_gate: text.bool_or("attention_output_gate", false)?,
        ..gqa(text)?
    };
    let section = text.object("sparse_attention_config", "sparse_attention_config")?;
    let (sparse, marks) = match section {
        Some(config) => (Some(block_sparse(&config)?), {
            let marks = config.numbers("sparse_attention_freq")?.unwrap_or_default();
            config.covers("sparse_attention_freq", marks.len(), depth)?;
            marks
        }),
        None => (None, Vec::new()),
    };
    let experts = Ffn::Moe(MoeFfn {
        experts: text.dimension("num_local_experts")?,
        top_k: text.dimension("num_experts_per_tok")?,
        intermediate: text.dimension_of(&["moe_intermediate_size", "intermediate_size"])?,
        shared_intermediate: text.or("shared_intermediate_size", 0)?,
        gated: true,
        bias: false,
        latent: 0,
        shared_gate: false,
        router_fp32: false,
    });
    let Some(routed) = text.numbers("moe_layer_freq")? else {
        return Err(text.fault("moe_layer_freq", "is missing; it says which layers route"));
    };
    text.covers("moe_layer_freq", routed.len(), depth)?;
    let mut layers = Vec::with_capacity(depth);
    for (i, routed) in routed.iter().take(depth).enumerate() {
        let attention = Gqa {
            sparse: sparse.filter(|_| marks.get(i).is_some_and(|mark| *mark != 0)),
            ..full
        };
        let ffn = if *routed != 0 {
            experts
        } else {
            dense(text.dimension("dense_intermediate_size")?)
        };
        layers.push(layer(Attention::Gqa(attention), ffn, MODULES));
    }
    Ok(Draft::of(layers))
}

fn block_sparse(config: &Fields<'_>) -> Result<BlockSparse, Fault> {
    Ok(BlockSparse {
        heads: config.dimension("sparse_num_index_heads")?,
        head_dim: config.dimension("sparse_index_dim")?,
        block_size: config.dimension("sparse_block_size")?,
        top_k_blocks: config.dimension("sparse_topk_blocks")?,
    })
}
