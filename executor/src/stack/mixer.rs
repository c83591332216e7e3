//! The mixer of a layer: norm, projections, attention with what ranks that share a cache exchange around
//! it, output projection.

use parplan_kernels::reference::GqaRow;

use super::attend::attention_op;
use super::batch::Cache;
use super::compute::{CacheWrite, Rows};
use super::memory::Work;
use super::op::Op;
use super::place::MixerShape;
use super::run::{At, Marks, Step};
use super::weights::{Layer, MixerWeights};
use crate::attention;
use crate::{Error, Result, View};

fn other_kind() -> Error {
    Error::Wrong("a layer's weights are of another kind than its shape".into())
}

impl At<'_> {
    /// The mixer on the residual stream, to which `delta` is added first; the result `[rows, hidden]` is
    /// a partial sum over the attention-TP group.
    pub(super) fn mixer(
        &self,
        step: &mut Step<'_>,
        work: &mut Work,
        layer: &Layer,
        cache: &Cache,
        (residual, delta): (&View, Option<&View>),
        marks: &mut dyn Marks,
    ) -> Result<View> {
        let (n, hidden) = (self.rows.local, self.spec.hidden);
        marks.mark(Op::Elementwise)?;
        let normed = work.get(self.device, "normed rows", n * hidden * 2)?;
        let (norm, eps) = (layer.attention_norm.all(), self.spec.norm_eps);
        self.device
            .add_rms_norm(&normed, residual, delta, &norm, eps)?;

        let turns = step.batch.turns(layer.mixer.rope_dim())?.all();
        let slots = step.batch.cache_slots.all();
        let (keys, values) = (cache.keys.all(), cache.values.all());
        let write = CacheWrite {
            slots: &slots,
            cos_sin: &turns,
            page_size: self.spec.page_size,
            keys: &keys,
            values: &values,
            kv: self.spec.kv,
        };
        let query = self.queries(work, layer, &normed, &write, marks)?;
        let cache = attention::Cache {
            v: if values.is_empty() {
                keys.clone()
            } else {
                values.clone()
            },
            k: keys.clone(),
        };
        let attended = self.attend(step, work, &layer.mixer, &query, cache, marks)?;
        self.project_out(work, layer, attended, marks)
    }

    /// Queries `[rows, heads, qk_dim]` of normed rows, rotated; keys and values of the rows are written
    /// to the cache on the way.
    fn queries(
        &self,
        work: &mut Work,
        layer: &Layer,
        normed: &View,
        write: &CacheWrite<'_>,
        marks: &mut dyn Marks,
    ) -> Result<View> {
        let (device, n, shape) = (self.device, self.rows.local, layer.mixer);
        let columns = shape.down_columns();
        let down = work.get(device, "qkv rows", n * columns * 2)?;
        let query = work.get(device, "queries", n * shape.heads() * shape.qk_dim() * 2)?;
        marks.mark(Op::QkvProjection)?;
        let input = Rows::dense(normed, self.spec.hidden);
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
                device.rope_gqa(row, &down, &query, norms, self.spec.norm_eps, write)?;
            }
            (MixerWeights::Mla { .. }, MixerShape::Mla { .. }) => {
                self.latent_queries(work, layer, input, (&down, &query), write, marks)?;
            }
            _ => return Err(other_kind()),
        }
        Ok(query)
    }

    /// Queries of MLA in the latent space: compressed, expanded to heads, absorbed, rotated.
    fn latent_queries(
        &self,
        work: &mut Work,
        layer: &Layer,
        input: Rows<'_>,
        (down, query): (&View, &View),
        write: &CacheWrite<'_>,
        marks: &mut dyn Marks,
    ) -> Result<()> {
        let (
            MixerWeights::Mla {
                down: w_down,
                up,
                norms,
                absorb,
                ..
            },
            MixerShape::Mla {
                heads,
                q_lora,
                kv_lora,
                nope,
                rope,
                ..
            },
        ) = (&layer.mixer_weights, layer.mixer)
        else {
            return Err(other_kind());
        };
        let (device, n) = (self.device, self.rows.local);
        let (columns, qk) = (layer.mixer.down_columns(), layer.mixer.qk_dim());
        device.linear(w_down, input, Rows::dense(down, columns), n, false)?;
        marks.mark(Op::Elementwise)?;
        let compressed = work.get(device, "query compression", n * q_lora.max(8) * 2)?;
        let norms = [norms[0].all(), norms[1].all()];
        let norms = [&norms[0], &norms[1]];
        let q = compressed.sub(0, n * q_lora * 2)?;
        device.rope_latent(down, &q, q_lora, kv_lora, norms, self.spec.norm_eps, write)?;
        marks.mark(Op::QkvProjection)?;
        let wide = nope + rope;
        let expanded = work.get(device, "expanded queries", n * heads * wide * 2)?;
        let from = if q_lora == 0 {
            input
        } else {
            Rows::dense(&q, q_lora)
        };
        device.linear(up, from, Rows::dense(&expanded, heads * wide), n, false)?;
        let per_head = |view, width: usize| Rows {
            view,
            pitch: heads * width,
            stride: width,
        };
        let from = per_head(&expanded, wide);
        device.linear(absorb, from, per_head(query, qk), n, false)?;
        marks.mark(Op::Elementwise)?;
        device.rope_queries(
            Rows::dense(&expanded, wide),
            nope,
            Rows::dense(query, qk),
            kv_lora,
            heads,
            write.cos_sin,
        )
    }

    /// Attended rows `[rows, heads, out_dim]` out of the latent space, where they are in it, and through
    /// the output projection.
    fn project_out(
        &self,
        work: &mut Work,
        layer: &Layer,
        attended: View,
        marks: &mut dyn Marks,
    ) -> Result<View> {
        let (device, n, shape) = (self.device, self.rows.local, layer.mixer);
        let (heads, out_dim) = (shape.heads(), shape.out_dim());
        let (mut value, mut columns) = (attended, heads * out_dim);
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
            (value, columns) = (wide, heads * v_dim);
        }
        marks.mark(Op::OutProjection)?;
        let hidden = self.spec.hidden;
        let out = work.get(device, "attention output", n * hidden * 2)?;
        device.linear(
            &layer.output,
            Rows::dense(&value, columns),
            Rows::dense(&out, hidden),
            n,
            false,
        )?;
        Ok(out)
    }

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
