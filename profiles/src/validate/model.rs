//! Checks of model profiles.

use super::Checker;
use crate::fault::Faults;
use crate::model::{
    Attention, BlockSparse, Compressed, Ffn, Gqa, Indexer, LayerGroup, Mla, ModelProfile, MoeFfn,
};

// Upper bounds are several times what any published model has. They keep every product of
// dimensions inside 64 bits, so that no later computation has to fear a hostile file.
const MAX_WIDTH: u32 = 1 << 18;
const MAX_INTERMEDIATE: u32 = 1 << 21;
const MAX_HEADS: u32 = 1 << 13;
const MAX_HEAD_DIM: u32 = 1 << 13;
const MAX_RANK: u32 = 1 << 16;
const MAX_EXPERTS: u32 = 1 << 16;
const MAX_VOCAB: u32 = 1 << 24;
const MAX_POSITION: u32 = 1 << 30;
const MAX_LAYERS: u32 = 1 << 12;
const MAX_PARAMETERS: u128 = 1_000_000_000_000_000;

impl ModelProfile {
    /// Checks that the dimensions can exist and fit together, and that published figures follow
    /// from them.
    ///
    /// # Errors
    /// Every fault, each naming its field and value.
    pub fn validate(&self) -> Result<(), Faults> {
        let mut check = Checker::new();
        check.name(&self.name);
        check.size("hidden_size", self.hidden_size, MAX_WIDTH);
        check.size("vocab_size", self.vocab_size, MAX_VOCAB);
        check.size("max_position", self.max_position, MAX_POSITION);
        check.at_most("hyper_connections", self.hyper_connections, 64);
        if self.layers.is_empty() {
            check.fault("layers", "is empty; a model has at least one layer");
        }
        for (i, group) in self.layers.iter().enumerate() {
            layer_group(&mut check, &format!("layers[{i}]"), group);
        }
        if self.depth() > MAX_LAYERS {
            let depth = self.depth();
            check.fault(
                "layers",
                format!("add up to {depth} layers; at most {MAX_LAYERS} are planned"),
            );
        }
        check.at_most("mtp_layers", self.mtp_layers, 64);
        if let Some(published) = &self.published
            && u128::from(published.total_counts_unplanned) > MAX_PARAMETERS
        {
            check.fault(
                "published.total_counts_unplanned",
                format!("is over {MAX_PARAMETERS} parameters"),
            );
        }
        match (&self.mtp_layer, self.mtp_layers) {
            (None, 0) => {}
            (None, n) => check.fault(
                "mtp_layers",
                format!("is {n}, but mtp_layer, the shape of one of them, is missing"),
            ),
            (Some(_), 0) => check.fault(
                "mtp_layer",
                "is given, but mtp_layers is 0; say how many there are",
            ),
            (Some(layer), _) => layer_group(&mut check, "mtp_layer", layer),
        }
        // Sums are only safe to compute once every dimension is in bounds.
        if check.faults.is_empty() {
            self.check_totals(&mut check);
        }
        Faults::or_ok(check.faults)
    }

    fn check_totals(&self, check: &mut Checker) {
        let layers: u128 = self
            .layers
            .iter()
            .map(|group| u128::from(self.layer_params(group).total()) * u128::from(group.count))
            .sum();
        let mtp = u128::from(self.mtp_layer_params()) * u128::from(self.mtp_layers);
        if layers + mtp > MAX_PARAMETERS {
            check.fault(
                "layers",
                format!(
                    "come to {} parameters; at most {MAX_PARAMETERS} are planned",
                    layers + mtp
                ),
            );
            return;
        }
        for mismatch in self.published_mismatches() {
            check.fault(
                format!("published.{}", mismatch.what),
                format!(
                    "is {:?}, but the dimensions come to {}",
                    mismatch.printed, mismatch.computed
                ),
            );
        }
    }
}

fn layer_group(check: &mut Checker, path: &str, group: &LayerGroup) {
    check.size(&format!("{path}.count"), group.count, MAX_LAYERS);
    if group.attention.is_none() && group.ffn.is_none() {
        check.fault(
            path,
            "has neither attention nor ffn; a layer has at least one",
        );
    }
    if let Some(mixer) = &group.attention {
        attention(check, &format!("{path}.attention"), mixer);
    }
    match &group.ffn {
        None => {}
        Some(Ffn::Dense(dims)) => check.size(
            &format!("{path}.ffn.intermediate"),
            dims.intermediate,
            MAX_INTERMEDIATE,
        ),
        Some(Ffn::Moe(dims)) => moe(check, &format!("{path}.ffn"), dims),
    }
}

fn attention(check: &mut Checker, path: &str, mixer: &Attention) {
    let field = |name: &str| format!("{path}.{name}");
    match mixer {
        Attention::Gqa(dims) => gqa(check, path, dims),
        Attention::Mla(dims) => mla(check, path, dims),
        Attention::Compressed(dims) => compressed(check, path, dims),
        Attention::GatedDelta(dims) => {
            check.size(&field("k_heads"), dims.k_heads, MAX_HEADS);
            check.size(&field("v_heads"), dims.v_heads, MAX_HEADS);
            check.multiple(&field("v_heads"), dims.v_heads, "k_heads", dims.k_heads);
            check.size(&field("k_head_dim"), dims.k_head_dim, MAX_HEAD_DIM);
            check.size(&field("v_head_dim"), dims.v_head_dim, MAX_HEAD_DIM);
            check.size(&field("conv_kernel"), dims.conv_kernel, 256);
        }
        Attention::Mamba2(dims) => {
            check.size(&field("heads"), dims.heads, MAX_HEADS);
            check.size(&field("head_dim"), dims.head_dim, MAX_HEAD_DIM);
            check.size(&field("state_size"), dims.state_size, MAX_HEAD_DIM);
            check.size(&field("groups"), dims.groups, MAX_HEADS);
            check.multiple(&field("heads"), dims.heads, "groups", dims.groups);
            check.size(&field("conv_kernel"), dims.conv_kernel, 256);
        }
        Attention::KimiDelta(dims) => {
            check.size(&field("heads"), dims.heads, MAX_HEADS);
            check.size(&field("head_dim"), dims.head_dim, MAX_HEAD_DIM);
            check.size(&field("conv_kernel"), dims.conv_kernel, 256);
        }
    }
}

fn gqa(check: &mut Checker, path: &str, dims: &Gqa) {
    let field = |name: &str| format!("{path}.{name}");
    check.size(&field("q_heads"), dims.q_heads, MAX_HEADS);
    check.size(&field("kv_heads"), dims.kv_heads, MAX_HEADS);
    check.multiple(&field("q_heads"), dims.q_heads, "kv_heads", dims.kv_heads);
    check.size(&field("head_dim"), dims.head_dim, MAX_HEAD_DIM);
    check.size(&field("v_head_dim"), dims.v_head_dim, MAX_HEAD_DIM);
    if let Some(window) = dims.window {
        check.size(&field("window"), window, MAX_POSITION);
    }
    if let Some(sparse) = &dims.sparse {
        block_sparse(check, &field("sparse"), sparse);
    }
}

fn block_sparse(check: &mut Checker, path: &str, dims: &BlockSparse) {
    check.size(&format!("{path}.heads"), dims.heads, MAX_HEADS);
    check.size(&format!("{path}.head_dim"), dims.head_dim, MAX_HEAD_DIM);
    check.size(&format!("{path}.block_size"), dims.block_size, MAX_RANK);
    check.size(&format!("{path}.top_k_blocks"), dims.top_k_blocks, MAX_RANK);
}

fn mla(check: &mut Checker, path: &str, dims: &Mla) {
    let field = |name: &str| format!("{path}.{name}");
    check.size(&field("q_heads"), dims.q_heads, MAX_HEADS);
    check.at_most(&field("q_lora_rank"), dims.q_lora_rank, MAX_RANK);
    check.size(&field("kv_lora_rank"), dims.kv_lora_rank, MAX_RANK);
    check.size(
        &field("qk_nope_head_dim"),
        dims.qk_nope_head_dim,
        MAX_HEAD_DIM,
    );
    check.at_most(
        &field("qk_rope_head_dim"),
        dims.qk_rope_head_dim,
        MAX_HEAD_DIM,
    );
    check.size(&field("v_head_dim"), dims.v_head_dim, MAX_HEAD_DIM);
    if let Some(window) = dims.window {
        check.size(&field("window"), window, MAX_POSITION);
    }
    if let Some(dims) = &dims.indexer {
        indexer(check, &field("indexer"), dims);
    }
}

fn indexer(check: &mut Checker, path: &str, dims: &Indexer) {
    check.size(&format!("{path}.heads"), dims.heads, MAX_HEADS);
    check.size(&format!("{path}.head_dim"), dims.head_dim, MAX_HEAD_DIM);
    check.size(&format!("{path}.top_k"), dims.top_k, MAX_POSITION);
}

fn compressed(check: &mut Checker, path: &str, dims: &Compressed) {
    let field = |name: &str| format!("{path}.{name}");
    check.size(&field("q_heads"), dims.q_heads, MAX_HEADS);
    check.size(&field("head_dim"), dims.head_dim, MAX_HEAD_DIM);
    if dims.qk_rope_head_dim > dims.head_dim {
        check.fault(
            field("qk_rope_head_dim"),
            format!(
                "is {}, wider than the head it is a part of (head_dim = {})",
                dims.qk_rope_head_dim, dims.head_dim
            ),
        );
    }
    check.size(&field("q_lora_rank"), dims.q_lora_rank, MAX_RANK);
    check.size(&field("o_groups"), dims.o_groups, MAX_HEADS);
    check.multiple(&field("q_heads"), dims.q_heads, "o_groups", dims.o_groups);
    check.size(&field("o_lora_rank"), dims.o_lora_rank, MAX_RANK);
    check.size(&field("window"), dims.window, MAX_POSITION);
    check.at_most(&field("compress_ratio"), dims.compress_ratio, 1 << 16);
    if let Some(dims) = &dims.indexer {
        indexer(check, &field("indexer"), dims);
    }
    if dims.indexer.is_some() && dims.compress_ratio == 0 {
        check.fault(
            field("indexer"),
            "is given in a layer with compress_ratio = 0, which has nothing to index",
        );
    }
}

fn moe(check: &mut Checker, path: &str, dims: &MoeFfn) {
    let field = |name: &str| format!("{path}.{name}");
    check.size(&field("experts"), dims.experts, MAX_EXPERTS);
    check.size(&field("top_k"), dims.top_k, MAX_EXPERTS);
    if dims.top_k > dims.experts {
        check.fault(
            field("top_k"),
            format!(
                "is {}, more than the experts there are ({})",
                dims.top_k, dims.experts
            ),
        );
    }
    check.size(&field("intermediate"), dims.intermediate, MAX_INTERMEDIATE);
    check.at_most(
        &field("shared_intermediate"),
        dims.shared_intermediate,
        MAX_INTERMEDIATE,
    );
    check.at_most(&field("latent"), dims.latent, MAX_WIDTH);
    if dims.shared_gate && dims.shared_intermediate == 0 {
        check.fault(
            field("shared_gate"),
            "is true, but shared_intermediate is 0: there is no shared expert to gate",
        );
    }
}
