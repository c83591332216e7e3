//! The attentions of a step: one shape and workspace for each kind of layer.

use super::batch::{Batch, Paging};
use super::compute::Compute;
use super::op::Op;
use super::place::{MixerShape, Place};
use super::spec::{Format, Phase, StackSpec};
use super::weights::Layer;
use crate::attention::{self, Capacity, Kind, KvType, LATENT, ROPE, Shape, Shard, Workspace};
use crate::{Error, Result};

/// The kind of work that attention is in a phase.
#[must_use]
pub fn attention_op(phase: Phase) -> Op {
    match phase {
        Phase::Decode => Op::DecodeAttention,
        Phase::Prefill => Op::PrefillAttention,
    }
}

/// Attention of layers of one shape.
#[derive(Debug)]
pub struct Planned {
    /// The shape, heads being those of the whole DCP group.
    pub shape: Shape,
    /// Plan and pieces.
    pub workspace: Workspace,
}

/// The attentions of a step.
#[derive(Debug)]
pub struct Attention {
    kv: KvType,
    ranks: usize,
    page: usize,
    /// Requests of the step.
    pub batch: attention::Batch,
    /// Positions of this rank.
    pub shard: Shard,
    planned: Vec<Planned>,
}

impl Attention {
    /// Memory for the layers of a stack. Not while a graph is captured.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a shape that no kernel runs; out of memory.
    pub fn new(
        device: &dyn Compute,
        spec: &StackSpec,
        place: &Place,
        layers: &[Layer],
        (batch, paging): (&Batch, &Paging),
    ) -> Result<Self> {
        let mut all = Attention {
            kv: match spec.kv {
                Format::Bf16 => KvType::Bf16,
                Format::Fp8 => KvType::Fp8,
            },
            ranks: spec.shard_of.dcp,
            page: spec.page_size,
            batch: attention::Batch {
                requests: batch.slots,
                tokens: batch.rows(),
                max_query: batch.q_tokens,
                max_pages: paging.pages,
                page_table: batch.table.all(),
                kv_lens: batch.lengths.all(),
                query_offsets: batch.offsets.all(),
            },
            shard: Shard {
                rank: place.dcp,
                size: spec.shard_of.dcp,
                interleave: spec.dcp_interleave,
            },
            planned: Vec::new(),
        };
        let capacity = Capacity {
            requests: batch.slots,
            tokens: batch.rows(),
            max_query: batch.q_tokens,
        };
        for layer in layers {
            let shape = all.shape(&layer.mixer)?;
            if all.planned.iter().all(|p| p.shape != shape) {
                let workspace = device.attention_workspace(&shape, capacity)?;
                all.planned.push(Planned { shape, workspace });
            }
        }
        Ok(all)
    }

    fn shape(&self, mixer: &MixerShape) -> Result<Shape> {
        let heads = mixer.heads() * self.ranks;
        let (kind, width) = match *mixer {
            MixerShape::Gqa {
                kv_heads, head_dim, ..
            } => (
                Kind::Gqa {
                    heads,
                    kv_heads,
                    head_dim,
                },
                head_dim,
            ),
            // Latent scores stand for those of the expanded keys.
            MixerShape::Mla {
                kv_lora: LATENT,
                rope: ROPE,
                nope,
                ..
            } => (Kind::Mla { heads }, nope + ROPE),
            MixerShape::Mla { kv_lora, rope, .. } => {
                return Err(Error::Unusable(format!(
                    "MLA with a latent row of {kv_lora} + {rope}: the kernels have {LATENT} + {ROPE}"
                )));
            }
        };
        let shape = Shape {
            scale: 1.0 / (width as f32).sqrt(),
            ..Shape::new(kind, self.kv, self.page)
        };
        shape.check().map_err(|e| Error::Unusable(e.to_string()))?;
        Ok(shape)
    }

    /// Enqueues the plans of the step.
    ///
    /// # Errors
    /// A device error.
    pub fn plan(&self, device: &dyn Compute) -> Result<()> {
        if self.batch.tokens == 0 {
            return Ok(());
        }
        self.planned.iter().try_for_each(|p| {
            device.plan_attention(&p.shape, &self.shard, &self.batch, &p.workspace)
        })
    }

    /// What was planned for a layer.
    ///
    /// # Errors
    /// [`Error::Arguments`] for a layer that was not there.
    pub fn of(&self, mixer: &MixerShape) -> Result<&Planned> {
        let shape = self.shape(mixer)?;
        let found = self.planned.iter().find(|p| p.shape == shape);
        found.ok_or_else(|| Error::Arguments {
            op: "attention",
            why: format!("nothing was planned for {shape:?}"),
        })
    }

    /// Names of the kernels.
    #[must_use]
    pub fn kernels(&self) -> Vec<&'static str> {
        self.planned.iter().map(|p| p.workspace.kernel()).collect()
    }
}
