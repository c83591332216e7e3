//! The layers of a pass, priced with how sure the price is: what `verify` and `exec` hold against a
//! measured stack.

use super::Steps;
use super::pass::{self, Pass};
use super::record::{Record, Recorded};
use super::tally::{OPS, Op, Tally};
use crate::cost::{OpClass, Operation};
use std::collections::BTreeMap;

/// Part of the variance of a class's error that belongs to the shape: what two layouts of one model do
/// not share (measured over 616 pairs of serving runs, docs/serving.md: 0.57² of the variance).
pub const OWN: f64 = 0.325;

/// Spread of an operation of which no figures are known: an assumption.
pub(crate) const UNKNOWN: f64 = 0.5;

/// 95th percentile of a normal law, in standard deviations: both ends of a 90 % interval.
const END: f64 = 1.645;

/// The time of a pass through the layers of a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Priced {
    /// By kind of work, gaps and launches among them.
    pub tally: Tally,
    /// By kind of work, what its kernels wait for those before them: the gaps of the tally.
    gaps_us: [f64; OPS],
    /// Together, microseconds.
    pub us: f64,
    /// Standard deviation of ln(measured / predicted).
    pub sigma: f64,
    /// The operations one by one.
    pub operations: Vec<Recorded>,
}

impl Priced {
    /// One kind of work with the gaps before its kernels, microseconds: what a clock around it shows.
    pub fn op_us(&self, op: Op) -> f64 {
        self.tally.us(op) + self.gaps_us[op as usize]
    }

    /// The ends of the 90 % interval, microseconds.
    pub fn interval(&self) -> (f64, f64) {
        let factor = (END * self.sigma).exp();
        (self.us / factor, self.us * factor)
    }
}

impl Steps<'_> {
    /// The layers of a stage in one pass, with the gaps and launches between their kernels. Output
    /// projection, host and other stages are not in it.
    ///
    /// Errors of classes are independent; operations of one class share theirs but for [`OWN`]. Which
    /// experts a routing touches is luck, layer by layer.
    pub fn layers(&self, pass: &Pass) -> Priced {
        let record = Record::default();
        let mut steps = *self;
        steps.stages = 1.0;
        steps.fixed.record = Some(&record);
        let mut tally = Tally::new();
        pass::layers(&steps.fixed, pass, &mut tally);
        let scale = if pass.prefill_tokens > 0.0 {
            self.prefill_scale()
        } else {
            self.decode_scale()
        };
        tally.scale_kernels(scale);
        steps.between(&mut tally, pass);
        let operations = record.take();
        let us = tally.total_us();
        Priced {
            gaps_us: Op::ALL.map(|op| steps.gaps_us(&tally, op, pass.graph)),
            us,
            sigma: self.variance(&tally, &operations, scale).sqrt() / us.max(1e-9),
            tally,
            operations,
        }
    }

    /// Variance of the sum, square microseconds.
    fn variance(&self, tally: &Tally, operations: &[Recorded], scale: f64) -> f64 {
        let mut classes: BTreeMap<(OpClass, u32), (f64, f64)> = BTreeMap::new();
        let mut routing = 0.0;
        for ran in operations {
            let key = (ran.operation.class(), ran.operation.ranks() as u32);
            let us = ran.count * ran.us * scale;
            let (sum, squares) = classes.entry(key).or_default();
            *sum += us;
            *squares += us * us;
            if let Operation::Moe(experts) = &ran.operation {
                // Every layer draws anew.
                routing += ran.count * (ran.us * scale * experts.luck()).powi(2);
            }
        }
        let gaps = tally.us(Op::LayerGaps) * self.overheads.gaps.sigma;
        classes
            .into_iter()
            .map(|((class, ranks), (sum, squares))| {
                let spread = self.fixed.costs.spread(class, f64::from(ranks));
                let sigma = spread.unwrap_or(UNKNOWN);
                sigma * sigma * ((1.0 - OWN) * sum * sum + OWN * squares)
            })
            .sum::<f64>()
            + gaps * gaps
            + routing
    }
}
