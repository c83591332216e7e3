//! What a rank's share of a stack takes of memory.

use super::spec::{BlockSpec, MixerSpec, StackSpec};

impl StackSpec {
    /// Bytes of one rank's weights in bf16, of the real layout; a query that is not compressed (MLA) counts
    /// as one of a quarter of the hidden size.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let (real, hidden) = (self.shard_of, self.hidden);
        let values: usize = self
            .layers
            .iter()
            .map(|layer| {
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
                    BlockSpec::Dense { intermediate } => 3 * hidden * intermediate / real.tp,
                    BlockSpec::Moe {
                        experts,
                        intermediate,
                        shared_intermediate,
                        ..
                    } => 3 * hidden * (experts * intermediate + shared_intermediate) / real.tp,
                };
                mixer + block
            })
            .sum();
        values * 2
    }

    /// Bytes in bf16 that one rank's cache has for a token of a request, in the real layout.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        let real = self.shard_of;
        let rows: usize = self
            .layers
            .iter()
            .map(|layer| match layer.mixer {
                MixerSpec::Gqa {
                    kv_heads, head_dim, ..
                } => (kv_heads / (real.attn_tp() / real.dcp)).max(1) * head_dim * 4,
                MixerSpec::Mla { kv_lora, rope, .. } => (kv_lora + rope) * 2,
            })
            .sum();
        rows / real.dcp
    }
}
