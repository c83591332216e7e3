//! How much memory a stack takes, before any of it is made.

use super::spec::{BlockSpec, MixerSpec, StackSpec, StepSpec};

impl StackSpec {
    /// Bytes of one rank's weights: the matrices, in their formats. Norms and scales are left out.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let (hidden, real) = (self.hidden, self.shard_of);
        let layer = |layer: &super::spec::LayerSpec| {
            let mixer = match layer.mixer {
                MixerSpec::Gqa {
                    q_heads,
                    kv_heads,
                    head_dim,
                    ..
                } => hidden * head_dim * 2 * (q_heads + kv_heads) / real.attn_tp(),
                MixerSpec::Mla {
                    heads,
                    q_lora,
                    kv_lora,
                    nope,
                    rope,
                    v_dim,
                } => {
                    let of_head = q_lora.max(hidden / 4) * (nope + rope)
                        + kv_lora * (nope + v_dim)
                        + hidden * v_dim;
                    hidden * (q_lora + kv_lora + rope) + heads / real.attn_tp() * of_head
                }
            };
            let block = match layer.block {
                BlockSpec::Dense { intermediate } => {
                    3 * hidden * intermediate / real.tp * layer.dense_format.bytes()
                }
                BlockSpec::Moe {
                    experts,
                    intermediate,
                    shared_intermediate,
                    ..
                } => {
                    let routed = experts * intermediate * layer.expert_format.bytes();
                    let shared = shared_intermediate * layer.dense_format.bytes();
                    3 * hidden * (routed + shared) / real.tp
                }
            };
            mixer * layer.attention_format.bytes() + block
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
            // A request holds whole pages.
            let held = tokens
                .checked_next_multiple_of(self.page_size.max(1))
                .unwrap_or(usize::MAX);
            most.saturating_mul(held)
        });
        tokens
            .max()
            .unwrap_or(0)
            .saturating_mul(self.cache_bytes_per_token())
    }
}
