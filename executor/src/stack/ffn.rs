//! The feed-forward block of a layer: dense, or router and experts, on rows that the rank
//! has or that come by all-to-all.

use super::compute::{Compute, GroupedRows, Routing, Rows, packed_row, tile_bytes};
use super::memory::Work;
use super::op::Op;
use super::place::BlockShape;
use super::run::{At, Marks, Step};
use super::spec::{Format, StackSpec};
use super::weights::{BlockWeights, Layer};
use crate::{Error, Result, View};

impl At<'_> {
    /// The block itself on `n` rows; the result is a partial sum over the ranks that
    /// split it.
    pub(super) fn feed_forward(
        &self,
        work: &mut Work,
        layer: &Layer,
        (input, out): (&View, &View),
        n: usize,
        marks: &mut dyn Marks,
    ) -> Result<()> {
        match &layer.block_weights {
            BlockWeights::Dense { up, down } => {
                self.mlp(work, Op::DenseFfn, (up, down), (input, out), n, marks)
            }
            BlockWeights::Moe { .. } => self.experts(work, layer, (input, out), n, marks),
        }
    }

    fn mlp(
        &self,
        work: &mut Work,
        op: Op,
        (up, down): (&super::Weight, &super::Weight),
        (input, out): (&View, &View),
        n: usize,
        marks: &mut dyn Marks,
    ) -> Result<()> {
        let (device, hidden) = (self.device, self.spec.hidden);
        marks.mark(op)?;
        let wide = work.get(device, "gates and ups", n * up.n * 2)?;
        device.linear(
            up,
            Rows::dense(input, hidden),
            Rows::dense(&wide, up.n),
            n,
            false,
        )?;
        marks.mark(Op::Elementwise)?;
        let narrow = work.get(device, "activations", n * down.k * 2)?;
        device.silu_mul(&narrow, &wide, down.k, None)?;
        marks.mark(op)?;
        device.linear(
            down,
            Rows::dense(&narrow, down.k),
            Rows::dense(out, hidden),
            n,
            false,
        )
    }

    /// Router, shared experts, routed experts on rows that this rank has.
    fn experts(
        &self,
        work: &mut Work,
        layer: &Layer,
        (input, out): (&View, &View),
        n: usize,
        marks: &mut dyn Marks,
    ) -> Result<()> {
        let hidden = self.spec.hidden;
        let routing = self.route(work, layer, input, n, marks)?;
        let base = self.shared(work, layer, input, n, marks)?;
        marks.mark(Op::Experts)?;
        let routing = routing.view();
        self.routed(
            work,
            layer,
            Rows::dense(input, hidden),
            out,
            &routing,
            base.as_ref(),
        )
    }

    /// The choices of `n` rows.
    fn route(
        &self,
        work: &mut Work,
        layer: &Layer,
        input: &View,
        n: usize,
        marks: &mut dyn Marks,
    ) -> Result<OwnedRouting> {
        let (BlockWeights::Moe { router, .. }, BlockShape::Moe { experts, top_k, .. }) =
            (&layer.block_weights, layer.block)
        else {
            return Err(Error::Wrong("a dense layer was asked to route".into()));
        };
        let device = self.device;
        marks.mark(Op::Router)?;
        let logits = work.get(device, "router logits", n * experts * 4)?;
        let input = Rows::dense(input, self.spec.hidden);
        device.linear(router, input, Rows::dense(&logits, experts), n, true)?;
        let routing = OwnedRouting::new(
            work,
            (device, self.spec),
            layer,
            n,
            ["choices", "weights of choices"],
        )?;
        let view = routing.view();
        device.route(&logits, experts, top_k, view.ids, view.weights)?;
        if let Some(kept) = self.recorded {
            device.copy(&kept.view(0, view.ids.len())?, view.ids)?;
        }
        Ok(routing)
    }

    /// The shared experts' output, where the layer has them.
    fn shared(
        &self,
        work: &mut Work,
        layer: &Layer,
        input: &View,
        n: usize,
        marks: &mut dyn Marks,
    ) -> Result<Option<View>> {
        let BlockWeights::Moe {
            shared: Some((up, down)),
            ..
        } = &layer.block_weights
        else {
            return Ok(None);
        };
        let out = work.get(self.device, "shared output", n * self.spec.hidden * 2)?;
        let op = Op::SharedExperts;
        self.mlp(work, op, (up, down), (input, &out), n, marks)?;
        Ok(Some(out))
    }

    /// Sorting, the two grouped products, and the weighted sum.
    fn routed(
        &self,
        work: &mut Work,
        layer: &Layer,
        input: Rows<'_>,
        out: &View,
        routing: &Routing<'_>,
        base: Option<&View>,
    ) -> Result<()> {
        let BlockWeights::Moe { up, down, .. } = &layer.block_weights else {
            return Err(Error::Wrong("a dense layer has no experts".into()));
        };
        let (device, hidden) = (self.device, self.spec.hidden);
        let pairs = routing.pairs();
        device.sort_pairs(routing)?;
        let middle = work.get(device, "expert gates and ups", pairs * up.n * 2)?;
        device.grouped(up, input, &middle, routing, GroupedRows::TokensToSlots)?;
        let narrow = work.get(device, "expert activations", pairs * down.k * 2)?;
        let end = routing.offsets.sub(routing.experts * 4, 4)?;
        device.silu_mul(&narrow, &middle, down.k, Some(&end))?;
        let results = work.get(device, "expert results", pairs * hidden * 2)?;
        let narrow = Rows::dense(&narrow, down.k);
        device.grouped(down, narrow, &results, routing, GroupedRows::SlotsToPairs)?;
        device.sum_experts(out, &results, routing, hidden, base)
    }

    /// Rows to the ranks of their experts, and results back. Every part has room for all
    /// rows of a rank, so that its size does not depend on the choices and the exchange
    /// can be captured.
    pub(super) fn all_to_all(
        &self,
        step: &mut Step<'_>,
        work: &mut Work,
        layer: &Layer,
        (input, out): (&View, &View),
        marks: &mut dyn Marks,
    ) -> Result<()> {
        let (device, hidden) = (self.device, self.spec.hidden);
        let n = input.len() / (hidden * 2);
        let (here, real) = (self.spec.here.ep, self.spec.shard_of.ep);
        let own = self.route(work, layer, input, n, marks)?;
        let base = self.shared(work, layer, input, n, marks)?;
        marks.mark(Op::ExpertExchange)?;
        let row = packed_row(hidden, own.top_k);
        let received = work.get(device, "rows of other ranks", n * real * row)?;
        let packed = work.get(device, "packed rows", n * here * row)?;
        device.pack_rows(&packed, input, &own.view(), here, hidden)?;
        let no_group = || Error::Wrong("an expert all-to-all without a group".into());
        let group = step.groups.tp().ok_or_else(no_group)?;
        group.all_to_all(&packed, &received.sub(0, n * here * row)?)?;
        let names = ["choices of all ranks", "weights of all ranks"];
        let theirs = OwnedRouting::new(work, (device, self.spec), layer, n * real, names)?;
        device.unpack_choices(&theirs.view(), &received, hidden)?;
        marks.mark(Op::Experts)?;
        let results = work.get(device, "results for other ranks", n * real * hidden * 2)?;
        let rows = Rows::dense(&received, row / 2);
        self.routed(work, layer, rows, &results, &theirs.view(), None)?;
        marks.mark(Op::ExpertExchange)?;
        let back = work.get(device, "results of other ranks", n * here * hidden * 2)?;
        let group = step.groups.tp().ok_or_else(no_group)?;
        group.all_to_all(&results.sub(0, n * here * hidden * 2)?, &back)?;
        device.sum_parts(out, &back, here, base.as_ref())
    }
}

/// The memory of a [`Routing`].
struct OwnedRouting {
    ids: View,
    weights: View,
    order: View,
    offsets: View,
    tiles: View,
    ordered: Option<View>,
    wide: bool,
    format: Format,
    rows: usize,
    top_k: usize,
    first: usize,
    experts: usize,
}

impl OwnedRouting {
    fn new(
        work: &mut Work,
        (device, spec): (&dyn Compute, &StackSpec),
        layer: &Layer,
        rows: usize,
        [ids, weights]: [&'static str; 2],
    ) -> Result<Self> {
        let (
            BlockShape::Moe {
                experts,
                local,
                first_expert,
                top_k,
                ..
            },
            BlockWeights::Moe { up, down, .. },
        ) = (layer.block, &layer.block_weights)
        else {
            return Err(Error::Wrong("a dense layer has no choices".into()));
        };
        // Shares of a layout see the rows of all ranks: rows an expert are those of all.
        let wide = rows * top_k / experts.max(1) >= spec.wide_tiles_from;
        let tiles = tile_bytes(wide, rows * top_k, local);
        let ordered = device
            .ordered_bytes(up.format, wide, rows, up.k)
            .max(device.ordered_bytes(down.format, wide, rows * top_k, down.k));
        let ordered = match ordered {
            0 => None,
            bytes => Some(work.get(device, "rows in a product's order", bytes)?),
        };
        Ok(OwnedRouting {
            ids: work.get(device, ids, rows * top_k * 4)?,
            weights: work.get(device, weights, rows * top_k * 4)?,
            order: work.get(device, "sorted pairs", rows * top_k * 4)?,
            offsets: work.get(device, "expert offsets", (local + 1) * 4)?,
            tiles: work.get(device, "tiles", tiles)?,
            ordered,
            wide,
            format: up.format,
            rows,
            top_k,
            first: first_expert,
            experts: local,
        })
    }

    fn view(&self) -> Routing<'_> {
        Routing {
            ids: &self.ids,
            weights: &self.weights,
            order: &self.order,
            offsets: &self.offsets,
            tiles: &self.tiles,
            ordered: self.ordered.as_ref(),
            wide: self.wide,
            format: self.format,
            rows: self.rows,
            top_k: self.top_k,
            first: self.first,
            experts: self.experts,
        }
    }
}
