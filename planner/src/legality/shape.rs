//! What legality needs of a model, taken out once.

use parplan_profiles::{Attention, Dtype, Ffn, ModelProfile};

/// The dimensions of a model that layouts must divide. Each distinct shape is listed once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelShape {
    /// Layers, MTP layers aside.
    pub layers: u32,
    /// Tokens of the vocabulary.
    pub vocabulary: u32,
    /// Attention that caches keys and values.
    pub attention: Vec<Heads>,
    /// Heads of linear-attention and state-space layers.
    pub recurrent_heads: Vec<u32>,
    /// Expert blocks.
    pub experts: Vec<Experts>,
    /// Dense blocks, shared experts not among them.
    pub dense: Vec<Dense>,
    /// Some layers see a sliding window only.
    pub window: bool,
    /// Some layers have attention sinks.
    pub sinks: bool,
    /// Some layers cache compressed entries (DeepSeek-V4).
    pub compressed: bool,
}

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: u32,
    /// KV heads; 1 for latent attention.
    pub kv: u32,
    /// Multi-head latent attention: one compressed row serves every head.
    pub latent: bool,
}

/// An expert block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Routed experts.
    pub count: u32,
    /// Width of an expert's hidden layer.
    pub intermediate: u32,
    /// Storage format.
    pub dtype: Dtype,
}

/// A dense block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dense {
    /// Width of the hidden layer.
    pub intermediate: u32,
    /// Storage format.
    pub dtype: Dtype,
}

impl ModelShape {
    /// Takes the shape out of a profile.
    pub fn of(model: &ModelProfile) -> Self {
        let mut shape = Self {
            vocabulary: model.vocab_size,
            ..Self::default()
        };
        for group in &model.layers {
            shape.layers = shape.layers.saturating_add(group.count);
            if let Some(attention) = &group.attention {
                shape.mixer(attention);
            }
            match &group.ffn {
                Some(Ffn::Dense(dense)) => add(
                    &mut shape.dense,
                    Dense {
                        intermediate: dense.intermediate,
                        dtype: model.weights.dense_ffn,
                    },
                ),
                Some(Ffn::Moe(moe)) => add(
                    &mut shape.experts,
                    Experts {
                        count: moe.experts,
                        intermediate: moe.intermediate,
                        dtype: model.weights.experts,
                    },
                ),
                None => {}
            }
        }
        shape
    }

    fn mixer(&mut self, attention: &Attention) {
        match attention {
            Attention::Gqa(gqa) => {
                self.window |= gqa.window.is_some();
                self.sinks |= gqa.sinks;
                let heads = Heads {
                    query: gqa.q_heads,
                    kv: gqa.kv_heads,
                    latent: false,
                };
                add(&mut self.attention, heads);
            }
            Attention::Mla(mla) => {
                self.window |= mla.window.is_some();
                add(&mut self.attention, latent(mla.q_heads));
            }
            Attention::Compressed(compressed) => {
                self.compressed = true;
                add(&mut self.attention, latent(compressed.q_heads));
            }
            Attention::GatedDelta(delta) => {
                add(&mut self.recurrent_heads, delta.k_heads);
                add(&mut self.recurrent_heads, delta.v_heads);
            }
            Attention::Mamba2(mamba) => add(&mut self.recurrent_heads, mamba.heads),
            Attention::KimiDelta(delta) => add(&mut self.recurrent_heads, delta.heads),
        }
    }
}

fn latent(query: u32) -> Heads {
    Heads {
        query,
        kv: 1,
        latent: true,
    }
}

fn add<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}
