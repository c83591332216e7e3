//! How much memory a stack takes, before any of it is made.

use super::matrices::LayerMatrices;
use super::place::{BlockShape, MixerShape, Place};
use super::spec::{LayerSpec, MixerSpec, StackSpec, StepSpec};

impl StackSpec {
    /// Bytes of one rank's weights: the matrices, in their formats. Norms and scales are left out.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let place = Place::new(self, 0);
        let layer = |layer: &LayerSpec| {
            let mixer = MixerShape::new(self, &place, &layer.mixer);
            let block = BlockShape::new(self, &place, &layer.block);
            LayerMatrices::new(self.hidden, &mixer, &block, layer).bytes()
        };
        self.layers.iter().map(layer).sum()
    }

    /// Bytes that one rank's cache has for a token of a request.
    #[must_use]
    pub fn cache_bytes_per_token(&self) -> usize {
        let real = self.shard_of;
        let rows: usize = self
            .layers
            .iter()
            .map(|layer| match layer.mixer {
                MixerSpec::Gqa {
                    kv_heads, head_dim, ..
                } => (kv_heads / (real.attn_tp() / real.dcp).max(1)).max(1) * head_dim * 2,
                MixerSpec::Mla { kv_lora, rope, .. } => kv_lora + rope,
            })
            .sum();
        rows * self.kv.bytes() / real.dcp
    }

    /// Bytes of one rank's cache for the largest of these steps.
    #[must_use]
    pub fn cache_bytes(&self, steps: &[StepSpec]) -> usize {
        let tokens = steps.iter().map(|step| {
            let most = step.requests.iter().copied().max().unwrap_or(0);
            let tokens = step.context.saturating_add(step.q_tokens);
            // A rank holds whole pages of its share of a request.
            let dcp = self.shard_of.dcp.max(1);
            let held = tokens
                .div_ceil(dcp)
                .checked_next_multiple_of(self.page_size.max(1))
                .unwrap_or(usize::MAX);
            most.saturating_mul(held).saturating_mul(dcp)
        });
        tokens
            .max()
            .unwrap_or(0)
            .saturating_mul(self.cache_bytes_per_token())
    }
}
