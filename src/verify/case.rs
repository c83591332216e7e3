//! One stack to run: a model, a layout and how its buffers lie, as plain data that can be kept.

use crate::failure::Failure;
use crate::run::stack::{Choices, share_of, smaller, spec_of};
use parplan_executor::stack::{DcpMerge, StackLayout, StackSpec};
use parplan_profiles::{Dtype, Library, ModelProfile, WeightFormats};
use serde::{Deserialize, Serialize};

/// Tokens of a page of the cache, in all stacks.
const PAGE: usize = 64;

/// What names a stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseSpec {
    /// Profile of the model.
    pub model: String,
    /// The model's widths are divided by this: 1 on GPUs.
    pub scale: u32,
    /// Layers that are run, of every kind in its proportion.
    pub layers: usize,
    /// Ranks at hand.
    pub here: StackLayout,
    /// The layout whose shapes they run.
    pub shard_of: StackLayout,
    /// What all ranks exchange lies in symmetric memory.
    pub symmetric: bool,
    /// How a DCP group merges.
    pub dcp_merge: DcpMerge,
}

/// A stack, ready to run and to be priced.
pub struct Case {
    /// What names it.
    pub named: CaseSpec,
    /// The model with the layers that are run.
    pub model: ModelProfile,
    /// What runs.
    pub spec: StackSpec,
}

impl CaseSpec {
    /// The stack.
    ///
    /// # Errors
    /// A model that no profile knows, or a layout that it does not have.
    pub fn resolve(self, library: &Library) -> Result<Case, Failure> {
        let model = library.model(&self.model)?;
        // bf16 throughout: the formats that the default set measures.
        let embedding = model.weights.embedding;
        let model = model.with_weights(WeightFormats::uniform(Dtype::Bf16, embedding));
        let model = smaller(model, self.scale);
        let choices = Choices {
            here: self.here,
            shard_of: self.shard_of,
            layers: Some(self.layers),
            kv: Some(Dtype::Bf16),
            page_size: PAGE,
            dcp_interleave: 1,
            dcp_merge: self.dcp_merge,
            all_to_all: false,
            seed: 1,
        };
        let (spec, _) = spec_of(&model, &choices)?;
        Ok(Case {
            model: share_of(&model, self.layers)?,
            spec,
            named: self,
        })
    }
}

impl CaseSpec {
    /// The ranks at hand stand for some of a larger layout's.
    pub fn is_shard(&self) -> bool {
        self.shard_of != self.here
    }

    /// Layout and buffers in few words: splits of one rank go without saying.
    pub fn layout(&self) -> String {
        let l = &self.shard_of;
        let mut out = format!("tp{}", l.tp);
        for (what, ways) in [("dp", l.attn_dp), ("dcp", l.dcp), ("ep", l.ep)] {
            if ways > 1 {
                out.push_str(&format!(" {what}{ways}"));
            }
        }
        if l.dcp > 1 {
            out.push_str(match self.dcp_merge {
                DcpMerge::ReduceScatter => " ag-rs",
                DcpMerge::AllToAll => "",
                DcpMerge::Peer => " fused",
            });
        }
        if self.is_shard() {
            out.push_str(" shard");
        }
        if self.symmetric {
            out.push_str(" sym");
        }
        out
    }

    /// Model and layout in words.
    pub fn name(&self) -> String {
        format!("{} {}", self.model, self.layout())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn sizes_of_a_rank_are_those_of_its_share() {
        let library = Library::embedded();
        let case = |tp: usize, attn_dp: usize, ep: usize| {
            let layout = StackLayout {
                tp,
                attn_dp,
                dcp: 1,
                ep,
            };
            let named = CaseSpec {
                model: "qwen3-30b-a3b".into(),
                scale: 1,
                layers: 2,
                here: layout,
                shard_of: layout,
                symmetric: false,
                dcp_merge: DcpMerge::AllToAll,
            };
            named.resolve(&library).unwrap()
        };
        let one = case(1, 1, 1);
        // 2 layers of 128 experts, 3 x 2048 x 768 each, in bf16, attention beside them, and the router,
        // which every rank has whole.
        let experts = 2 * 128 * 3 * 2048 * 768 * 2;
        let attention = 2 * 2048 * 128 * 2 * (32 + 4) * 2;
        let router = 2 * 128 * 2048 * 2;
        assert_eq!(one.spec.weight_bytes(), experts + attention + router);
        assert_eq!(one.spec.cache_bytes_per_token(), 2 * 4 * 128 * 4);
        assert_eq!(
            case(2, 1, 2).spec.weight_bytes(),
            (experts + attention) / 2 + router
        );
        assert_eq!(
            case(2, 2, 2).spec.weight_bytes(),
            experts / 2 + attention + router
        );
        assert_eq!(
            case(2, 1, 1).spec.cache_bytes_per_token(),
            one.spec.cache_bytes_per_token() / 2
        );
        assert_eq!(
            case(2, 2, 1).spec.cache_bytes_per_token(),
            one.spec.cache_bytes_per_token()
        );
    }
}
