//! Nemotron-H: each layer is one block, a Mamba-2 mixer, attention, experts or a plain block.

use super::gqa;
use crate::fault::Fault;
use crate::hf::draft::{Draft, LayerDraft, Modules};
use crate::hf::fields::Fields;
use crate::model::{Attention, DenseFfn, Ffn, Mamba2, MoeFfn};

const MAMBA: Modules = Modules {
    attention: "mixer.in_proj",
    output: "mixer.out_proj",
    indexer: "mixer",
    dense: "mixer.down_proj",
    experts: "mixer.experts.0.down_proj",
    shared: "mixer.shared_experts.down_proj",
};

const ATTENTION: Modules = Modules {
    attention: "mixer.q_proj",
    output: "mixer.o_proj",
    ..MAMBA
};

/// What a layer is.
#[derive(Clone, Copy)]
enum Block {
    Mamba,
    Attention,
    Experts,
    Plain,
}

pub(super) fn read(text: &Fields<'_>) -> Result<Draft, Fault> {
    let blocks = blocks(text, "layers_block_type", "hybrid_override_pattern")?;
    let Some(blocks) = blocks else {
        return Err(text.fault(
            "hybrid_override_pattern",
            "is missing; it says what each layer is",
        ));
    };
    if blocks.len() > 4096 {
        return Err(text.fault(
            "hybrid_override_pattern",
            format!("has {} layers; at most 4096 are planned", blocks.len()),
        ));
    }
    if let Some(depth) = text.optional("num_hidden_layers")?
        && depth as usize != blocks.len()
    {
        return Err(text.fault(
            "num_hidden_layers",
            format!("is {depth}, but the pattern has {} layers", blocks.len()),
        ));
    }
    let layers = blocks
        .iter()
        .map(|block| single(text, *block))
        .collect::<Result<Vec<LayerDraft>, Fault>>()?;
    let mut draft = Draft::of(layers);
    draft.mtp_layers = text.or("num_nextn_predict_layers", 0)?;
    if let Some(blocks) = blocks_of_mtp(text)? {
        draft.mtp = Some((joined(text, &blocks)?, "mtp.layers.0".to_owned()));
    }
    Ok(draft)
}

fn blocks_of_mtp(text: &Fields<'_>) -> Result<Option<Vec<Block>>, Fault> {
    blocks(text, "mtp_layers_block_type", "mtp_hybrid_override_pattern")
}

/// A list of block names, or a string of one character a block.
fn blocks(text: &Fields<'_>, list: &str, pattern: &str) -> Result<Option<Vec<Block>>, Fault> {
    if text.value(list).is_some() {
        let kinds = text.texts(list)?;
        return kinds
            .into_iter()
            .map(|kind| match kind {
                "mamba" => Ok(Block::Mamba),
                "attention" => Ok(Block::Attention),
                "moe" => Ok(Block::Experts),
                "mlp" => Ok(Block::Plain),
                other => Err(text.fault(
                    list,
                    format!("holds {other:?}; mamba, attention, moe and mlp are planned"),
                )),
            })
            .collect::<Result<Vec<Block>, Fault>>()
            .map(Some);
    }
    let Some(marks) = text.text(pattern)? else {
        return Ok(None);
    };
    marks
        .chars()
        .map(|mark| match mark {
            'M' => Ok(Block::Mamba),
            '*' => Ok(Block::Attention),
            'E' => Ok(Block::Experts),
            '-' => Ok(Block::Plain),
            other => Err(text.fault(
                pattern,
                format!("holds {other:?}; M, *, E and - are planned"),
            )),
        })
        .collect::<Result<Vec<Block>, Fault>>()
        .map(Some)
}

fn single(text: &Fields<'_>, block: Block) -> Result<LayerDraft, Fault> {
    let (attention, ffn, modules) = match block {
        Block::Mamba => (Some(mamba(text)?), None, MAMBA),
        Block::Attention => (Some(Attention::Gqa(gqa(text)?)), None, ATTENTION),
        Block::Experts => (None, Some(experts(text)?), MAMBA),
        Block::Plain => {
            let ffn = Ffn::Dense(DenseFfn {
                intermediate: text.dimension("intermediate_size")?,
                gated: false,
            });
            (None, Some(ffn), MAMBA)
        }
    };
    Ok(LayerDraft {
        attention,
        ffn,
        modules,
    })
}

/// The blocks of an MTP layer as one layer: at most one mixer and one feed-forward block.
fn joined(text: &Fields<'_>, blocks: &[Block]) -> Result<LayerDraft, Fault> {
    let mut whole = LayerDraft {
        attention: None,
        ffn: None,
        modules: ATTENTION,
    };
    for block in blocks {
        let part = single(text, *block)?;
        if (part.attention.is_some() && whole.attention.is_some())
            || (part.ffn.is_some() && whole.ffn.is_some())
        {
            return Err(text.fault(
                "mtp_hybrid_override_pattern",
                "has two blocks of one kind; one mixer and one feed-forward block are planned",
            ));
        }
        whole.attention = whole.attention.or(part.attention);
        whole.ffn = whole.ffn.or(part.ffn);
    }
    Ok(whole)
}

fn mamba(text: &Fields<'_>) -> Result<Attention, Fault> {
    Ok(Attention::Mamba2(Mamba2 {
        heads: text.dimension("mamba_num_heads")?,
        head_dim: text.dimension("mamba_head_dim")?,
        state_size: text.dimension("ssm_state_size")?,
        groups: text.dimension("n_groups")?,
        conv_kernel: text.dimension("conv_kernel")?,
    }))
}

/// Experts with squared ReLU, so without a gate; in Nemotron-3 Super and Ultra they work on a
/// narrower projection of the stream (`moe_latent_size`).
fn experts(text: &Fields<'_>) -> Result<Ffn, Fault> {
    let shared = match text.or("n_shared_experts", 0)? {
        0 => 0,
        _ => text.dimension("moe_shared_expert_intermediate_size")?,
    };
    Ok(Ffn::Moe(MoeFfn {
        experts: text.dimension("n_routed_experts")?,
        top_k: text.dimension("num_experts_per_tok")?,
        intermediate: text.dimension("moe_intermediate_size")?,
        shared_intermediate: shared,
        gated: false,
        bias: false,
        latent: text.or("moe_latent_size", 0)?,
        shared_gate: false,
        router_fp32: false,
    }))
}
