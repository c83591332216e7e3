//! Feed-forward blocks: dense, or routed to experts.

use super::meter::Meter;
use super::pass::{ACTIVATION_BYTES, Pass};
use super::tally::Op;
use crate::cost::{ExpertExchange, ExpertMode, Gemm, Moe, Operation};
use crate::shard::{Block, Linear, MoeShard, ShardGroup};
use crate::volume::{Exchange, Rows, dispatch_element_bytes};
use parplan_profiles::Dtype;

impl Meter<'_, '_> {
    pub(super) fn block(
        &mut self,
        group: &ShardGroup,
        pass: &Pass,
        rows: &Rows,
        exchange: Exchange,
        hidden: f64,
    ) {
        let n = group.layers;
        let ffn_rows = rows.ffn(exchange);
        match &group.block {
            Block::None => return,
            Block::Dense { up, down } => {
                self.linear_of(self.fixed.quantised.by_norm, Op::DenseFfn, n, ffn_rows, up);
                self.linear_of(
                    self.fixed.quantised.by_activation,
                    Op::DenseFfn,
                    n,
                    ffn_rows,
                    down,
                );
                self.elementwise(n, ffn_rows * (up.n + down.k) * ACTIVATION_BYTES, 1.0);
            }
            Block::Moe(moe) => self.moe(n, pass, rows, exchange, moe),
        }
        self.norm(n, rows.max, hidden);
    }

    /// Router, experts with what carries rows to them, shared experts.
    fn moe(&mut self, n: f64, pass: &Pass, rows: &Rows, exchange: Exchange, moe: &MoeShard) {
        let ffn_rows = rows.ffn(exchange);
        // With an all-to-all, routing happens before tokens leave their rank.
        if moe.router.dtype == Dtype::Fp32 {
            // Rows are turned into fp32 first.
            self.elementwise(n, ffn_rows * moe.router.k * (ACTIVATION_BYTES + 4.0), 1.0);
        }
        self.linear(Op::Router, n, ffn_rows, &moe.router);
        self.choose(n, ffn_rows, moe.router.n);
        let ep = f64::from(self.fixed.ep.max(1));
        let tokens = if exchange == Exchange::AllToAll {
            pass.rows_sum
        } else {
            ffn_rows
        };
        let per_rank = tokens * f64::from(moe.dims.top_k) / ep;
        let deviations = if self.fixed.exchanges {
            self.fixed.busiest_rank
        } else {
            0.0
        };
        let experts = Moe {
            tokens,
            experts_local: moe.experts_local,
            experts_total: f64::from(moe.dims.experts),
            top_k: f64::from(moe.dims.top_k),
            hidden: moe.width,
            intermediate: moe.intermediate,
            gated: moe.dims.gated,
            weights: moe.dtype,
            gathered: exchange != Exchange::AllToAll,
            spread: self.fixed.expert_spread,
            // A rank that runs alone is any of them, not the busiest.
            imbalance: imbalance(deviations, ep, per_rank),
            deviations,
        };
        let routed = Operation::Moe(experts);
        self.add(Op::Experts, n, &routed);
        if exchange == Exchange::AllToAll && ep > 1.0 {
            self.exchange(n, pass, rows, &experts, ep);
        }
        let own = if exchange == Exchange::AllToAll {
            rows.max
        } else {
            ffn_rows
        };
        if let Some((up, down)) = &moe.latent {
            self.pair(Op::Experts, n, own, up, down);
        }
        if let Some((up, down)) = &moe.shared {
            let before = self.tally.us(Op::SharedExperts);
            self.pair(Op::SharedExperts, n, own, up, down);
            if pass.graph && own <= self.fixed.shared_beside_rows {
                let alone = self.tally.us(Op::SharedExperts) - before;
                let bytes = n * self.roofline(own, up, down);
                let beside = n * routed.us(self.fixed.costs);
                // What the two share is the memory: the bytes of one are read beside the other's
                // launches and tails, not beside its bytes.
                let hidden = (alone - bytes).clamp(0.0, beside);
                self.tally.hide(Op::SharedExperts, hidden);
            }
        }
    }

    /// Two products with an activation between them.
    fn pair(&mut self, op: Op, n: f64, rows: f64, up: &Linear, down: &Linear) {
        self.linear(op, n, rows, up);
        self.linear(op, n, rows, down);
        self.elementwise(n, rows * (up.n + down.k) * ACTIVATION_BYTES, 1.0);
    }

    /// The roofline of two products, µs.
    fn roofline(&self, rows: f64, up: &Linear, down: &Linear) -> f64 {
        [up, down]
            .iter()
            .map(|product| {
                self.fixed.costs.gemm_roofline(&Gemm {
                    m: rows,
                    n: product.n,
                    k: product.k,
                    weights: product.dtype,
                })
            })
            .sum()
    }

    /// Choosing experts from fp32 logits, where an engine's kernels are known one by one.
    fn choose(&mut self, n: f64, rows: f64, experts: f64) {
        if let Some(rule) = self.fixed.kernels {
            let bytes = rows * experts * 4.0;
            let kernels = f64::from(rule.route);
            self.add(Op::Router, n, &Operation::Elementwise { bytes, kernels });
        }
    }

    fn exchange(&mut self, n: f64, pass: &Pass, rows: &Rows, moe: &Moe, ep: f64) {
        if !self.fixed.exchanges {
            return;
        }
        let low = self.fixed.low_latency_experts && pass.prefill_tokens <= 0.0;
        let near = f64::from(self.fixed.ranks_per_domain).min(ep);
        let send = ExpertExchange {
            mode: if low {
                ExpertMode::LowLatency
            } else {
                ExpertMode::Normal
            },
            // Attention-TP ranks of one DP rank share its tokens between them.
            tokens: rows.max / f64::from(rows.attention_tp),
            top_k: moe.top_k,
            hidden: moe.hidden,
            element_bytes: dispatch_element_bytes(moe.weights),
            ranks: ep,
            ranks_per_domain: near,
            imbalance: moe.imbalance,
        };
        let back = ExpertExchange {
            element_bytes: ACTIVATION_BYTES,
            ..send
        };
        self.add(
            Op::ExpertExchange,
            n,
            &Operation::ExpertExchange { send, back },
        );
    }
}

/// By how many standard deviations the busiest of `ranks` is above their mean: the expected maximum of
/// standard normal variables, `ln R / (1.125 + 0.158 ln R)` within half a percent from 2 ranks to 64
/// (0.564, 1.029, 1.424, 1.766, 2.070 and 2.344 by their order statistics).
pub fn busiest(ranks: f64) -> f64 {
    let log = ranks.max(1.0).ln();
    log / (1.125 + 0.158 * log)
}

/// Rows of the busiest of `ranks` over the mean when `rows_per_rank` rows are dealt at random: Poisson
/// counts about their common mean, as normal variables.
fn imbalance(deviations: f64, ranks: f64, rows_per_rank: f64) -> f64 {
    if rows_per_rank <= 0.0 {
        return 1.0;
    }
    (1.0 + deviations / rows_per_rank.sqrt()).min(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranks: u32, rows_per_rank: f64) -> f64 {
        imbalance(busiest(f64::from(ranks)), f64::from(ranks), rows_per_rank)
    }

    #[test]
    fn the_busiest_rank_is_the_expected_maximum() {
        for (ranks, deviations) in [(2, 0.564), (4, 1.029), (8, 1.424), (64, 2.344)] {
            let own = of(ranks, 1e4);
            assert!(
                ((own - 1.0) * 100.0 / deviations - 1.0).abs() < 0.01,
                "{own}"
            );
        }
        // Eight choices over two ranks: 5.09 on the busier one, by the binomial law.
        let busier: f64 = of(2, 4.0) * 4.0;
        assert!((busier - 5.09).abs() < 0.1, "{busier}");
        assert_eq!(of(8, 0.01), 8.0);
        assert_eq!(of(1, 5.0), 1.0);
    }
}
