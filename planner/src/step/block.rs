//! Feed-forward blocks: dense, or routed to experts.

use super::meter::Meter;
use super::pass::{ACTIVATION_BYTES, Pass};
use super::tally::Op;
use crate::cost::{ExpertExchange, ExpertMode, Moe, Operation};
use crate::shard::{Block, ShardGroup};
use crate::volume::{Exchange, Rows, dispatch_element_bytes};

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
                self.linear(Op::DenseFfn, n, ffn_rows, up);
                self.linear(Op::DenseFfn, n, ffn_rows, down);
                self.elementwise(n, ffn_rows * (up.n + down.k) * ACTIVATION_BYTES, 1.0);
            }
            Block::Moe {
                router,
                dims,
                experts_local,
                intermediate,
                width,
                dtype,
                shared,
                latent,
            } => {
                // With an all-to-all, routing happens before tokens leave their rank.
                self.linear(Op::Router, n, ffn_rows, router);
                self.choose(n, ffn_rows, router.n);
                let ep = f64::from(self.fixed.ep.max(1));
                let tokens = if exchange == Exchange::AllToAll {
                    pass.rows_sum
                } else {
                    ffn_rows
                };
                let per_rank = tokens * f64::from(dims.top_k) / ep;
                let moe = Moe {
                    tokens,
                    experts_local: *experts_local,
                    experts_total: f64::from(dims.experts),
                    top_k: f64::from(dims.top_k),
                    hidden: *width,
                    intermediate: *intermediate,
                    gated: dims.gated,
                    weights: *dtype,
                    gathered: exchange != Exchange::AllToAll,
                    spread: self.fixed.expert_spread,
                    // A rank that runs alone is any of them, not the busiest.
                    imbalance: if self.fixed.exchanges {
                        random_imbalance(ep, per_rank)
                    } else {
                        1.0
                    },
                };
                self.add(Op::Experts, n, &Operation::Moe(moe));
                if exchange == Exchange::AllToAll && ep > 1.0 {
                    self.exchange(n, pass, rows, &moe, ep);
                }
                for (op, pair) in [(Op::SharedExperts, shared), (Op::Experts, latent)] {
                    if let Some((up, down)) = pair {
                        let own = if exchange == Exchange::AllToAll {
                            rows.max
                        } else {
                            ffn_rows
                        };
                        self.linear(op, n, own, up);
                        self.linear(op, n, own, down);
                        self.elementwise(n, own * (up.n + down.k) * ACTIVATION_BYTES, 1.0);
                    }
                }
            }
        }
        self.elementwise(n, rows.max * hidden * ACTIVATION_BYTES * 4.0, 1.0);
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

/// Rows of the busiest of `ranks` over the mean when `rows_per_rank` rows are dealt at random: the
/// expected maximum of `ranks` Poisson counts about their common mean, as normal variables. That of
/// standard normal ones is `ln R / (1.125 + 0.158 ln R)` within half a percent from 2 ranks to 64
/// (0.564, 1.029, 1.424, 1.766, 2.070 and 2.344 by their order statistics).
fn random_imbalance(ranks: f64, rows_per_rank: f64) -> f64 {
    if ranks <= 1.0 || rows_per_rank <= 0.0 {
        return 1.0;
    }
    let log = ranks.ln();
    let deviations = log / (1.125 + 0.158 * log);
    (1.0 + deviations / rows_per_rank.sqrt()).min(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_rank_is_the_expected_maximum() {
        for (ranks, deviations) in [(2.0, 0.564), (4.0, 1.029), (8.0, 1.424), (64.0, 2.344)] {
            let own = random_imbalance(ranks, 1e4);
            assert!(
                ((own - 1.0) * 100.0 / deviations - 1.0).abs() < 0.01,
                "{own}"
            );
        }
        // Eight choices over two ranks: 5.09 on the busier one, by the binomial law.
        let busier: f64 = random_imbalance(2.0, 4.0) * 4.0;
        assert!((busier - 5.09).abs() < 0.1, "{busier}");
        assert_eq!(random_imbalance(8.0, 0.01), 8.0);
        assert_eq!(random_imbalance(1.0, 5.0), 1.0);
    }
}
