//! One step through the layers. Everything is enqueued in order and nothing waits, so
//! that the same code runs eagerly and inside a capture.

use parplan_kernels::reference::GqaRow;

use super::attend::{Attention, attention_op};
use super::batch::{Batch, Cache, Paging};
use super::compute::{CacheWrite, Compute, Rows};
use super::groups::{Groups, Over, Path};
use super::memory::Work;
use super::op::Op;
use super::place::{BlockShape, MixerShape, Place};
use super::spec::{Phase, StackSpec};
use super::weights::{Layer, MixerWeights};
use crate::attention;
use crate::gather::StepShape;
use crate::{Buffer, Error, Result, View};

/// Told which kind of work comes next.
pub trait Marks {
    /// From here on the work is `op`.
    ///
    /// # Errors
    /// A device error.
    fn mark(&mut self, op: Op) -> Result<()>;
}

/// Nobody wants to know.
impl Marks for () {
    fn mark(&mut self, _: Op) -> Result<()> {
        Ok(())
    }
}

/// A rank's stack.
pub struct Stack {
    /// What it is.
    pub spec: StackSpec,
    /// Whose share it is.
    pub place: Place,
    /// Layers, first to last.
    pub layers: Vec<Layer>,
    /// Their caches.
    pub caches: Vec<Cache>,
    /// Where tokens lie in them.
    pub paging: Paging,
    /// Working memory.
    pub work: Work,
    /// Where each layer's choices of experts are kept for a check; empty for none.
    pub recorded: Vec<Buffer>,
}

/// One step of a stack.
pub struct Step<'a> {
    /// Memory and operations.
    pub device: &'a dyn Compute,
    /// The groups.
    pub groups: &'a mut Groups,
    /// Requests.
    pub batch: &'a Batch,
    /// Rows of all DP ranks at hand.
    pub shape: &'a StepShape,
    /// Plans and memory of attention.
    pub attention: &'a Attention,
    /// Phase.
    pub phase: Phase,
}

/// Rows of a step on this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRows {
    /// This rank's, padding included.
    pub local: usize,
    /// Those of all DP ranks at hand.
    pub gathered: usize,
    /// Those of all DP ranks of the layout whose shapes are run; the ones that nobody at
    /// hand brings are synthetic.
    pub all: usize,
}

impl StepRows {
    /// Rows of the rank at `place`.
    #[must_use]
    pub fn new(spec: &StackSpec, place: &Place, shape: &StepShape) -> Self {
        StepRows {
            local: shape.local[place.dp],
            gathered: shape.global,
            all: shape.global * spec.shard_of.attn_dp / spec.here.attn_dp.max(1),
        }
    }
}

/// A read-only look at what a step of one layer uses.
pub(super) struct At<'a> {
    pub(super) device: &'a dyn Compute,
    pub(super) spec: &'a StackSpec,
    pub(super) place: &'a Place,
    pub(super) rows: StepRows,
    pub(super) recorded: Option<&'a Buffer>,
}

impl Stack {
    /// Runs one step from the batch's input rows. The result is [`Stack::output`].
    ///
    /// # Errors
    /// Errors of device and communicators.
    pub fn step(&mut self, step: &mut Step<'_>, marks: &mut dyn Marks) -> Result<()> {
        let rows = StepRows::new(&self.spec, &self.place, step.shape);
        if rows.local != step.batch.rows() {
            return Err(Error::Arguments {
                op: "stack step",
                why: format!(
                    "a batch of {} rows in a step of {}",
                    step.batch.rows(),
                    rows.local
                ),
            });
        }
        let hidden = self.spec.hidden * 2;
        marks.mark(Op::Elementwise)?;
        let residual = self
            .work
            .get(step.device, "residual", rows.local * hidden)?;
        step.device.copy(&residual, &step.batch.input.all())?;
        marks.mark(attention_op(step.phase))?;
        step.attention.plan(step.device)?;
        let mut delta = None;
        for index in 0..self.layers.len() {
            let attention = self.mixer(index, step, rows, &residual, delta.as_ref(), marks)?;
            delta = Some(self.block(index, step, rows, &residual, &attention, marks)?);
        }
        marks.mark(Op::Elementwise)?;
        match delta {
            Some(delta) => step.device.add_bf16(&residual, &delta),
            None => Ok(()),
        }
    }

    /// Bytes of the largest message that a rank sends another around attention, for steps
    /// of so many local rows, where ranks share a cache.
    #[must_use]
    pub fn dcp_message(&self, rows: usize) -> usize {
        self.layers
            .iter()
            .map(|l| {
                let rows = rows * l.mixer.heads();
                attention::message_bytes(rows, l.mixer.qk_dim(), l.mixer.out_dim())
            })
            .max()
            .unwrap_or(0)
    }

    /// The residual stream after a step of `rows` local rows.
    ///
    /// # Errors
    /// Out of memory.
    pub fn output(&mut self, device: &dyn Compute, rows: usize) -> Result<View> {
        self.work
            .get(device, "residual", rows * self.spec.hidden * 2)
    }

    /// Norm, projections, attention, output projection; the result is a partial sum over
    /// the attention-TP group.
    fn mixer(
        &mut self,
        index: usize,
        step: &mut Step<'_>,
        rows: StepRows,
        residual: &View,
        delta: Option<&View>,
        marks: &mut dyn Marks,
    ) -> Result<View> {
        let Stack {
            spec,
            place,
            layers,
            caches,
            work,
            ..
        } = self;
        let (layer, cache, device) = (&layers[index], &caches[index], step.device);
        let (n, shape) = (rows.local, layer.mixer);
        let eps = spec.norm_eps;
        marks.mark(Op::Elementwise)?;
        let normed = work.get(device, "normed rows", n * spec.hidden * 2)?;
        device.add_rms_norm(&normed, residual, delta, &layer.attention_norm.all(), eps)?;

        let (heads, qk, out_dim) = (shape.heads(), shape.qk_dim(), shape.out_dim());
        let columns = shape.down_columns();
        let down = work.get(device, "qkv rows", n * columns * 2)?;
        let query = work.get(device, "queries", n * heads * qk * 2)?;
        let turns = step.batch.turns(shape.rope_dim())?.all();
        let slots = step.batch.cache_slots.all();
        let (keys, values) = (cache.keys.all(), cache.values.all());
        let write = CacheWrite {
            slots: &slots,
            cos_sin: &turns,
            page_size: spec.page_size,
            keys: &keys,
            values: &values,
            kv: spec.kv,
        };
        marks.mark(Op::QkvProjection)?;
        let input = Rows::dense(&normed, spec.hidden);
        match (&layer.mixer_weights, shape) {
            (
                MixerWeights::Gqa { qkv, norms },
                MixerShape::Gqa {
                    q_heads,
                    kv_heads,
                    head_dim,
                    ..
                },
            ) => {
                device.linear(qkv, input, Rows::dense(&down, columns), n, false)?;
                marks.mark(Op::Elementwise)?;
                let norms = norms.as_ref().map(|[q, k]| [q.all(), k.all()]);
                let norms = norms.as_ref().map(|[q, k]| [q, k]);
                let row = GqaRow {
                    q_heads,
                    kv_heads,
                    head_dim,
                };
                device.rope_gqa(row, &down, &query, norms, eps, &write)?;
            }
            (
                MixerWeights::Mla {
                    down: w_down,
                    up,
                    norms,
                    absorb,
                    ..
                },
                MixerShape::Mla {
                    q_lora,
                    kv_lora,
                    nope,
                    rope,
                    ..
                },
            ) => {
                device.linear(w_down, input, Rows::dense(&down, columns), n, false)?;
                marks.mark(Op::Elementwise)?;
                let compressed = work.get(device, "query compression", n * q_lora.max(8) * 2)?;
                let norms = [norms[0].all(), norms[1].all()];
                let norms = [&norms[0], &norms[1]];
                let q = compressed.sub(0, n * q_lora * 2)?;
                device.rope_latent(&down, &q, q_lora, kv_lora, norms, eps, &write)?;
                marks.mark(Op::QkvProjection)?;
                let wide = nope + rope;
                let expanded = work.get(device, "expanded queries", n * heads * wide * 2)?;
                let from = if q_lora == 0 {
                    input
                } else {
                    Rows::dense(&q, q_lora)
                };
                device.linear(up, from, Rows::dense(&expanded, heads * wide), n, false)?;
                let per_head = |view, pitch: usize, stride| Rows {
                    view,
                    pitch: heads * pitch,
                    stride,
                };
                let from = per_head(&expanded, wide, wide);
                device.linear(absorb, from, per_head(&query, qk, qk), n, false)?;
                marks.mark(Op::Elementwise)?;
                device.rope_queries(
                    Rows::dense(&expanded, wide),
                    nope,
                    Rows::dense(&query, qk),
                    kv_lora,
                    heads,
                    &turns,
                )?;
            }
            _ => {
                return Err(Error::Wrong(
                    "a layer's weights are of another kind than its shape".into(),
                ));
            }
        }
        let at = At {
            device,
            spec,
            place,
            rows,
            recorded: None,
        };
        let cache = attention::Cache {
            v: if values.is_empty() {
                keys.clone()
            } else {
                values.clone()
            },
            k: keys,
        };
        let attended = at.attend(step, work, &shape, &query, cache, marks)?;

        let mut value = attended;
        let mut value_columns = heads * out_dim;
        if let (MixerWeights::Mla { expand, .. }, MixerShape::Mla { v_dim, .. }) =
            (&layer.mixer_weights, shape)
        {
            marks.mark(Op::QkvProjection)?;
            let wide = work.get(device, "values", n * heads * v_dim * 2)?;
            let from = Rows {
                view: &value,
                pitch: heads * out_dim,
                stride: out_dim,
            };
            let to = Rows {
                view: &wide,
                pitch: heads * v_dim,
                stride: v_dim,
            };
            device.linear(expand, from, to, n, false)?;
            value = wide;
            value_columns = heads * v_dim;
        }
        marks.mark(Op::OutProjection)?;
        let out = work.get(device, "attention output", n * spec.hidden * 2)?;
        device.linear(
            &layer.output,
            Rows::dense(&value, value_columns),
            Rows::dense(&out, spec.hidden),
            n,
            false,
        )?;
        Ok(out)
    }

    /// The feed-forward block with what brings rows to it and results back. Adds the
    /// attention output to the residual stream on the way; returns what is to be added
    /// to it next.
    fn block(
        &mut self,
        index: usize,
        step: &mut Step<'_>,
        rows: StepRows,
        residual: &View,
        attention: &View,
        marks: &mut dyn Marks,
    ) -> Result<View> {
        let Stack {
            spec,
            place,
            layers,
            work,
            recorded,
            ..
        } = self;
        let (layer, device) = (&layers[index], step.device);
        let dense = matches!(layer.block, BlockShape::Dense { .. });
        let at = At {
            device,
            spec,
            place,
            rows,
            recorded: recorded.get(index),
        };
        let (norm, eps) = (layer.block_norm.all(), spec.norm_eps);
        let row = spec.hidden * 2;
        let own = rows.local * row;
        let out = work.get(device, "block output", own)?;
        match Path::of(spec, dense) {
            Path::Reduce(over) => {
                marks.mark(Op::AttentionReduce)?;
                // The attention output is split over the attention-TP group in any case.
                let sum_over = match over {
                    Over::Tp if spec.shard_of.attn_dp == 1 => Over::Tp,
                    _ => Over::AttentionTp,
                };
                step.groups.sum(attention, sum_over)?;
                marks.mark(Op::Elementwise)?;
                let normed = work.get(device, "normed rows", own)?;
                device.add_rms_norm(&normed, residual, Some(attention), &norm, eps)?;
                at.feed_forward(work, layer, (&normed, &out), rows.local, marks)?;
                marks.mark(Op::Combine)?;
                step.groups.sum(&out, over)?;
            }
            Path::Gather => {
                let all = rows.all * row;
                let global = work.get(device, "gathered rows", all)?;
                let results = work.get(device, "gathered results", all)?;
                let here = global.sub(0, rows.gathered * row)?;
                let results_here = results.sub(0, rows.gathered * row)?;
                let no_exchange = || Error::Wrong("DP ranks without an exchange".into());
                let input = if spec.shard_of.attn_tp() == 1 {
                    // Normed before it is sent: every rank norms its own rows only.
                    marks.mark(Op::Elementwise)?;
                    let normed = work.get(device, "rows to gather", own)?;
                    device.add_rms_norm(&normed, residual, Some(attention), &norm, eps)?;
                    marks.mark(Op::Gather)?;
                    let exchange = step.groups.exchange().ok_or_else(no_exchange)?;
                    exchange.gather(device, step.shape, &normed, &here)?;
                    global
                } else {
                    // The gather sums the partial outputs on its way; one of them carries
                    // the residual stream. Normed where it arrives.
                    marks.mark(Op::Elementwise)?;
                    if place.attn_tp == 0 {
                        device.add_bf16(attention, residual)?;
                    }
                    marks.mark(Op::Gather)?;
                    let exchange = step.groups.exchange().ok_or_else(no_exchange)?;
                    exchange.gather(device, step.shape, attention, &here)?;
                    marks.mark(Op::Elementwise)?;
                    let offset = step.shape.offsets[place.dp] * row;
                    device.copy(residual, &here.sub(offset, own)?)?;
                    let normed = work.get(device, "normed gathered rows", all)?;
                    device.add_rms_norm(&normed, &global, None, &norm, eps)?;
                    normed
                };
                at.feed_forward(work, layer, (&input, &results), rows.all, marks)?;
                marks.mark(Op::Combine)?;
                let exchange = step.groups.exchange().ok_or_else(no_exchange)?;
                exchange.combine(device, step.shape, &results_here, &out)?;
            }
            Path::AllToAll => {
                marks.mark(Op::AttentionReduce)?;
                step.groups.sum(attention, Over::AttentionTp)?;
                marks.mark(Op::Elementwise)?;
                let normed = work.get(device, "normed rows", own)?;
                device.add_rms_norm(&normed, residual, Some(attention), &norm, eps)?;
                // Attention-TP ranks have the same rows: each sends its part of them.
                let part = rows.local / spec.shard_of.attn_tp() * row;
                let mine = place.attn_tp * part;
                at.all_to_all(
                    step,
                    work,
                    layer,
                    (&normed.sub(mine, part)?, &out.sub(mine, part)?),
                    marks,
                )?;
                marks.mark(Op::Combine)?;
                if let Some(group) = step.groups.attn_tp() {
                    let size = group.size();
                    group.all_gather(&out.sub(mine, part)?, &out.sub(0, part * size)?)?;
                }
            }
        }
        Ok(out)
    }
}

impl At<'_> {
    /// Attention with DCP's exchanges around it; `[rows, heads, out_dim]` of this rank.
    fn attend(
        &self,
        step: &mut Step<'_>,
        work: &mut Work,
        shape: &MixerShape,
        query: &View,
        cache: attention::Cache,
        marks: &mut dyn Marks,
    ) -> Result<View> {
        let (device, n, ranks) = (self.device, self.rows.local, self.spec.shard_of.dcp);
        let (heads, qk, out_dim) = (shape.heads(), shape.qk_dim(), shape.out_dim());
        let all = heads * ranks;
        if n == 0 {
            // No rank of the group has rows.
            return work.get(device, "attention rows", 0);
        }
        let mut q = query.clone();
        if ranks > 1 {
            // Queries of the whole group, rank by rank.
            marks.mark(Op::Dcp)?;
            let own = n * heads * qk * 2;
            q = work.get(device, "queries of the DCP group", own * ranks)?;
            match step.groups.dcp() {
                Some(mut group) => {
                    let way = group.gather_way(self.spec.dcp_merge.ways().0, own);
                    group.gather(way, query, &q)?;
                }
                None => {
                    for r in 0..ranks {
                        device.copy(&q.sub(r * own, own)?, query)?;
                    }
                }
            }
        }
        marks.mark(attention_op(step.phase))?;
        let out = work.get(device, "attention rows", n * all * out_dim * 2)?;
        let lse = work.get(device, "attention LSE", n * all * 4)?;
        let planned = step.attention.of(shape)?;
        device.attention(
            &planned.shape,
            &step.attention.shard,
            &step.attention.batch,
            &cache,
            &planned.workspace,
            &attention::Queries {
                q,
                out: out.clone(),
                lse: (ranks > 1).then(|| lse.clone()),
                parts: attention::Parts {
                    q: ranks,
                    out: ranks,
                },
            },
        )?;
        if ranks == 1 {
            return Ok(out);
        }
        marks.mark(Op::Dcp)?;
        self.merge(step, work, (&out, &lse), (heads, out_dim))
    }

    /// Partial outputs `[ranks, rows, heads, dim]` of a DCP group into this rank's heads
    /// of the whole.
    fn merge(
        &self,
        step: &mut Step<'_>,
        work: &mut Work,
        (out, lse): (&View, &View),
        (heads, dim): (usize, usize),
    ) -> Result<View> {
        let (device, n, ranks) = (self.device, self.rows.local, self.spec.shard_of.dcp);
        let own = n * heads * dim * 2;
        let merged = work.get(device, "merged outputs", own)?;
        let rank = self.place.dcp;
        let merged_lse = work.get(device, "merged LSE", n * heads * 4)?;
        let Some(mut group) = step.groups.dcp() else {
            // One rank of the group is at hand: the correction runs as it would, and its
            // own part stands for the sum.
            let all = work.get(device, "LSE of the DCP group", lse.len() * ranks)?;
            for r in 0..ranks {
                device.copy(&all.sub(r * lse.len(), lse.len())?, lse)?;
            }
            device.correct_rank(out, &all, rank, ranks, dim, &merged_lse)?;
            device.copy(&merged, &out.sub(rank * own, own)?)?;
            return Ok(merged);
        };
        let rows = n * heads;
        let way = group.merge_way(self.spec.dcp_merge.ways().1, rows, dim);
        let (lses, outputs) = way.scratch(rows * ranks, dim, ranks);
        let partial = attention::Partial {
            parts: out.clone(),
            lses: lse.clone(),
            scratch: (
                work.get(device, "LSE of the DCP group", lses)?,
                work.get(device, "outputs of the DCP group", outputs)?,
            ),
        };
        let shard = &step.attention.shard;
        group.merge(device, way, shard, &partial, dim, (&merged, &merged_lse))?;
        Ok(merged)
    }
}
