//! The feed-forward block of a layer with what brings rows to it and results back: a sum over ranks, DP's
//! gather and combine, or an all-to-all.

use super::groups::{Over, Path};
use super::memory::Work;
use super::op::Op;
use super::place::BlockShape;
use super::run::{At, Marks, Step};
use super::weights::Layer;
use crate::{Error, Result, View};

impl At<'_> {
    /// Adds the attention output to the residual stream on the way; returns what is to be added to it
    /// next, `[rows, hidden]`.
    pub(super) fn block(
        &self,
        step: &mut Step<'_>,
        work: &mut Work,
        layer: &Layer,
        (residual, attention): (&View, &View),
        marks: &mut dyn Marks,
    ) -> Result<View> {
        let (device, spec) = (self.device, self.spec);
        let dense = matches!(layer.block, BlockShape::Dense { .. });
        let (norm, eps) = (layer.block_norm.all(), spec.norm_eps);
        let row = spec.hidden * 2;
        let own = self.rows.local * row;
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
                self.feed_forward(work, layer, (&normed, &out), self.rows.local, marks)?;
                marks.mark(Op::Combine)?;
                step.groups.sum(&out, over)?;
            }
            Path::Gather => {
                self.gathered(step, work, layer, (residual, attention), &out, marks)?;
            }
            Path::AllToAll => {
                marks.mark(Op::AttentionReduce)?;
                step.groups.sum(attention, Over::AttentionTp)?;
                marks.mark(Op::Elementwise)?;
                let normed = work.get(device, "normed rows", own)?;
                device.add_rms_norm(&normed, residual, Some(attention), &norm, eps)?;
                // Attention-TP ranks have the same rows: each sends its part of them.
                let part = self.rows.local / spec.shard_of.attn_tp() * row;
                let mine = self.place.attn_tp * part;
                self.all_to_all(
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

    /// The block on the rows of all DP ranks, gathered before it and combined after it.
    fn gathered(
        &self,
        step: &mut Step<'_>,
        work: &mut Work,
        layer: &Layer,
        (residual, attention): (&View, &View),
        out: &View,
        marks: &mut dyn Marks,
    ) -> Result<()> {
        let (device, spec, rows) = (self.device, self.spec, self.rows);
        let (norm, eps) = (layer.block_norm.all(), spec.norm_eps);
        let row = spec.hidden * 2;
        let (own, all) = (rows.local * row, rows.all * row);
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
            // The gather sums the partial outputs on its way; one of them carries the residual
            // stream. Normed where it arrives.
            marks.mark(Op::Elementwise)?;
            if self.place.attn_tp == 0 {
                device.add_bf16(attention, residual)?;
            }
            marks.mark(Op::Gather)?;
            let exchange = step.groups.exchange().ok_or_else(no_exchange)?;
            exchange.gather(device, step.shape, attention, &here)?;
            marks.mark(Op::Elementwise)?;
            let offset = step.shape.offsets[self.place.dp] * row;
            device.copy(residual, &here.sub(offset, own)?)?;
            let normed = work.get(device, "normed gathered rows", all)?;
            device.add_rms_norm(&normed, &global, None, &norm, eps)?;
            normed
        };
        self.feed_forward(work, layer, (&input, &results), rows.all, marks)?;
        marks.mark(Op::Combine)?;
        let exchange = step.groups.exchange().ok_or_else(no_exchange)?;
        exchange.combine(device, step.shape, &results_here, out)
    }
}
