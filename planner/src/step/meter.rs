//! Adds operations to a tally, each at its price.

use super::launches;
use super::pass::{ACTIVATION_BYTES, Fixed};
use super::record::Recorded;
use super::tally::{Op, Tally};
use crate::cost::{
    Collective, Gemm, Implementation, Launch, Operation, Registration, Span, Transfer,
};
use crate::shard::Linear;
use crate::volume::{Call, Group, Kind};
use parplan_profiles::Dtype;

/// Prices operations of one pass into a tally.
pub(super) struct Meter<'a, 'b> {
    pub(super) fixed: &'a Fixed<'b>,
    pub(super) tally: &'a mut Tally,
    pub(super) launch: Launch,
}

impl Meter<'_, '_> {
    /// Adds one operation of each of `layers` layers.
    #[inline]
    pub(super) fn add(&mut self, op: Op, layers: f64, operation: &Operation) {
        let fixed = self.fixed;
        let us = operation.us(fixed.costs);
        self.tally.add(op, layers, us);
        if let Some(rule) = fixed.kernels {
            let launched = launches::of_operation(operation, &rule, fixed.costs);
            self.tally.launch(op, launched * layers);
        }
        if fixed.explain {
            self.tally
                .add_roofline(op, layers, operation.roofline_us(fixed.costs));
        }
        if let Some(record) = fixed.record {
            record.add(Recorded {
                op,
                count: layers,
                us,
                launch: self.launch,
                operation: *operation,
            });
        }
    }

    pub(super) fn linear(&mut self, op: Op, layers: f64, rows: f64, weight: &Linear) {
        if rows <= 0.0 || weight.n <= 0.0 || weight.k <= 0.0 {
            return;
        }
        let gemm = Gemm {
            m: rows,
            n: weight.n,
            k: weight.k,
            weights: weight.dtype,
        };
        self.add(op, layers, &Operation::Gemm(gemm));
    }

    /// A product whose rows the kernel before it wrote in its format, where there is one such for the
    /// whole tensor, if `written`.
    pub(super) fn linear_of(
        &mut self,
        written: bool,
        op: Op,
        layers: f64,
        rows: f64,
        weight: &Linear,
    ) {
        self.linear(op, layers, rows, weight);
        if written && weight.dtype == Dtype::Fp8 && rows > 0.0 {
            let gemm = Gemm {
                m: rows,
                n: weight.n,
                k: weight.k,
                weights: weight.dtype,
            };
            let costs = self.fixed.costs;
            let quantising = costs.gemm(&gemm) - costs.gemm_quantised(&gemm);
            self.tally.hide(op, layers * quantising);
        }
    }

    /// Adds the residual and norms: two rows read, two written, by a kernel of its own or that of the sum
    /// over ranks before it.
    pub(super) fn norm(&mut self, layers: f64, rows: f64, hidden: f64) {
        let kernels = if self.fixed.fused_norms { 0.0 } else { 1.0 };
        self.elementwise(layers, rows * hidden * ACTIVATION_BYTES * 4.0, kernels);
    }

    pub(super) fn elementwise(&mut self, layers: f64, bytes: f64, kernels: f64) {
        self.add(
            Op::Elementwise,
            layers,
            &Operation::Elementwise { bytes, kernels },
        );
    }

    pub(super) fn call(&mut self, op: Op, layers: f64, call: &Call) {
        self.call_by(false, op, layers, call);
    }

    /// A call that the engine's own kernel over peer memory makes, if `peer`.
    pub(super) fn call_by(&mut self, peer: bool, op: Op, layers: f64, call: &Call) {
        let f = self.fixed;
        if !f.exchanges {
            return;
        }
        let kind = match call.kind {
            Kind::AllReduce => Collective::AllReduce,
            Kind::AllGather => Collective::AllGather,
            Kind::ReduceScatter => Collective::ReduceScatter,
            Kind::AllToAll | Kind::ExpertDispatch | Kind::ExpertCombine => Collective::AllToAll,
        };
        let path = match call.group {
            Group::AttentionTp => f.reduce_attention_tp,
            _ => f.reduce_tp,
        };
        let custom = match self.launch {
            Launch::Graph => path.custom_graph_bytes,
            Launch::Eager => path.custom_eager_bytes,
        };
        let reduces = kind == Collective::AllReduce;
        let symmetric = if reduces {
            path.symmetric
        } else {
            f.symmetric_gathers
        };
        // Ranks of a DP group sit attention-TP apart, so fewer of them share a domain.
        let stride = if call.group == Group::AttentionDp {
            f64::from(f.attention_tp)
        } else {
            1.0
        };
        let ranks = f64::from(call.ranks);
        let near = (f64::from(f.ranks_per_domain) / stride).max(1.0);
        let transfer = Transfer {
            kind,
            bytes: call.bytes,
            span: Span {
                ranks,
                ranks_per_domain: near.min(ranks),
            },
            implementation: if peer {
                Implementation::Peer
            } else if reduces && call.bytes <= custom {
                Implementation::Custom
            } else {
                Implementation::Nccl
            },
            // Where kernels are known one by one, the host's pace is that of the whole pass.
            launch: if f.kernels.is_some() {
                Launch::Graph
            } else {
                self.launch
            },
            registration: if symmetric {
                Registration::Symmetric
            } else {
                Registration::None
            },
        };
        self.add(op, layers, &Operation::Collective(transfer));
    }
}
