//! Feed-forward blocks: dense, or routed to experts.

use super::meter::Meter;
use super::pass::{ACTIVATION_BYTES, Pass};
use super::tally::Op;
use crate::cost::{ExpertExchange, ExpertMode, Gemm, Moe, Operation};
use crate::shard::{Block, Linear, ShardGroup};
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
                if router.dtype == Dtype::Fp32 {
                    // Rows are turned into fp32 first.
                    self.elementwise(n, ffn_rows * router.k * (ACTIVATION_BYTES + 4.0), 1.0);
                }
                self.linear(Op::Router, n, ffn_rows, router);
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
                    imbalance: imbalance(self.fixed.busiest_rank, per_rank, *experts_local),
                    deviations: self.fixed.busiest_rank,
                };
                let routed = Operation::Moe(moe);
                self.add(Op::Experts, n, &routed);
                if exchange == Exchange::AllToAll && ep > 1.0 {
                    self.exchange(n, pass, rows, &moe, ep);
                }
                let own = if exchange == Exchange::AllToAll {
                    rows.max
                } else {
                    ffn_rows
                };
                if let Some((up, down)) = latent {
                    self.pair(Op::Experts, n, own, up, down);
                }
                if let Some((up, down)) = shared {
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
        }
        self.elementwise(n, rows.max * hidden * ACTIVATION_BYTES * 4.0, 1.0);
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

    fn exchange(&mut self, n: f64, pass: &Pass, rows: &Rows, moe: &Moe, ep: f64) {
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

/// How much more often an expert is chosen than another: standard deviation over mean. Routers are
/// trained towards equal shares, but the tokens of one benchmark or tenant have favourites.
const FAVOURITES: f64 = 0.5;

/// Rows of the busiest rank over the mean, `deviations` standard deviations above it: rows are dealt at
/// random (a Poisson count), and experts have shares of their own, which a rank of many experts
/// evens out.
fn imbalance(deviations: f64, rows_per_rank: f64, experts_local: f64) -> f64 {
    if rows_per_rank <= 0.0 {
        return 1.0;
    }
    static F: std::sync::LazyLock<f64> = std::sync::LazyLock::new(|| {
        std::env::var("FAV")
            .ok()
            .and_then(|x| x.parse().ok())
            .unwrap_or(FAVOURITES)
    });
    let favourites = *F * *F / experts_local.max(1.0);
    1.0 + deviations * (1.0 / rows_per_rank + favourites).sqrt()
}
