//! Which of two measured configurations is faster: how often a prediction names the right one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::errors::Outcome;
use super::runs::Run;

/// The one choice in which two runs of a pair differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Differs {
    /// More GPUs in the same mode.
    Gpus,
    /// Experts split or not, same GPUs and attention.
    Experts,
    /// Attention DP, same GPUs and experts.
    AttentionDp,
    /// TP, TP with experts split, DP with experts split: same GPUs, attention and experts both differ.
    Mode,
    /// Number format.
    Format,
    /// Engine version.
    Version,
    /// Engine.
    Engine,
}

impl Differs {
    fn title(self) -> &'static str {
        match self {
            Differs::Gpus => "GPUs, same mode",
            Differs::Experts => "experts split or not",
            Differs::AttentionDp => "attention DP or TP",
            Differs::Mode => "both",
            Differs::Format => "number format",
            Differs::Version => "engine version",
            Differs::Engine => "engine",
        }
    }

    /// The one choice in which `a` and `b` differ at the same traffic; none where several or none do.
    fn of(a: &Run, b: &Run) -> Option<Differs> {
        let same_traffic = a.family == b.family
            && a.gpu_name == b.gpu_name
            && a.traffic.isl == b.traffic.isl
            && a.traffic.osl == b.traffic.osl
            && a.traffic.concurrency == b.traffic.concurrency;
        if !same_traffic {
            return None;
        }
        let (la, lb) = (a.choice.layout, b.choice.layout);
        let dp = la.attention_dp != lb.attention_dp;
        let ep = la.ep != lb.ep;
        // Whole (1), or over all GPUs: the same choice at another number of GPUs.
        let mode = |size: u32, gpus: u32| (size > 1, size == gpus);
        let same_mode = mode(la.ep, la.tp) == mode(lb.ep, lb.tp)
            && mode(la.attention_dp, la.tp) == mode(lb.attention_dp, lb.tp);
        let layout = match (la.tp != lb.tp, dp, ep) {
            (false, false, false) => None,
            (true, _, _) if same_mode => Some(Differs::Gpus),
            (true, _, _) => return None,
            (false, false, true) => Some(Differs::Experts),
            (false, true, false) => Some(Differs::AttentionDp),
            (false, true, true) => Some(Differs::Mode),
        };
        let others = [
            (a.model.name != b.model.name, Differs::Format),
            (
                a.engine == b.engine && a.version != b.version,
                Differs::Version,
            ),
            (a.engine != b.engine, Differs::Engine),
        ];
        let mut differing = others
            .iter()
            .filter(|(differs, _)| *differs)
            .map(|&(_, what)| what)
            .chain(layout);
        let first = differing.next()?;
        differing.next().is_none().then_some(first)
    }
}

/// What is compared: lower is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Measure {
    Tpot,
    Ttft,
    /// Time of a request times its GPUs: what output tokens a second and GPU are the inverse of.
    GpuTime,
}

impl Measure {
    /// ln of the measured figure, and of the predicted one.
    fn of(self, o: &Outcome<'_>) -> (f64, f64) {
        let m = &o.run.measured;
        match self {
            Measure::Tpot => (m.tpot_ms.ln(), m.tpot_ms.ln() + o.errors.tpot),
            Measure::Ttft => (m.ttft_ms.ln(), m.ttft_ms.ln() + o.errors.ttft),
            Measure::GpuTime => {
                let later = (o.run.traffic.osl - 1.0).max(0.0);
                let gpus = f64::from(o.run.choice.layout.tp);
                let measured = gpus * (m.ttft_ms + later * m.tpot_ms);
                let predicted = gpus
                    * (m.ttft_ms * o.errors.ttft.exp() + later * m.tpot_ms * o.errors.tpot.exp());
                (measured.ln(), predicted.ln())
            }
        }
    }
}

/// Measured margins from which on a pair is counted, as ln of the ratio.
const MARGINS: [f64; 2] = [0.03, 0.10];

/// Pairs counted, and those whose winner was predicted, for each margin.
type Tally = [(u32, u32); MARGINS.len()];

/// A Markdown table: for each choice and measure, how many pairs differ by more than each margin, and
/// in how many percent of them the faster one was predicted to be faster.
pub(super) fn table(outcomes: &[Outcome<'_>]) -> String {
    const MEASURES: [Measure; 3] = [Measure::Tpot, Measure::Ttft, Measure::GpuTime];
    let mut groups: BTreeMap<Differs, [Tally; 3]> = BTreeMap::new();
    for (at, a) in outcomes.iter().enumerate() {
        for b in &outcomes[..at] {
            let Some(differs) = Differs::of(a.run, b.run) else {
                continue;
            };
            let tallies = groups.entry(differs).or_default();
            for (tally, measure) in tallies.iter_mut().zip(MEASURES) {
                let (ma, pa) = measure.of(a);
                let (mb, pb) = measure.of(b);
                for (cell, margin) in tally.iter_mut().zip(MARGINS) {
                    if (ma - mb).abs() > f64::ln_1p(margin) {
                        cell.0 += 1;
                        cell.1 += u32::from((ma < mb) == (pa < pb) && pa != pb);
                    }
                }
            }
        }
    }
    let mut out = String::from(
        "| differs | TPOT > 3 %: pairs | right | > 10 %: pairs | right | TTFT > 3 %: pairs | right | > 10 %: pairs | right | tokens/s/GPU > 3 %: pairs | right | > 10 %: pairs | right |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (differs, tallies) in &groups {
        // Writing to a string cannot fail.
        let _ = write!(out, "| {} |", differs.title());
        for (pairs, right) in tallies.iter().flatten() {
            let share = 100.0 * f64::from(*right) / f64::from((*pairs).max(1));
            let _ = write!(out, " {pairs} | {share:.0} |");
        }
        out.push('\n');
    }
    out
}
