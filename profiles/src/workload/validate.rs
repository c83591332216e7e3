//! Checks of workloads.

use super::{Imbalance, Lengths, Load, Workload};
use crate::fault::Faults;
use crate::validate::Checker;

/// Longest request that is planned, tokens.
const MAX_TOKENS: u32 = 1 << 24;

impl Workload {
    /// Checks that the traffic can exist.
    ///
    /// # Errors
    /// Every fault, each naming its field and value.
    pub fn validate(&self) -> Result<(), Faults> {
        let mut check = Checker::new();
        check.name(&self.name);
        lengths(&mut check, "input", &self.input);
        lengths(&mut check, "output", &self.output);
        match self.load {
            Load::Concurrency { requests } => check.size("load.requests", requests, 1 << 24),
            Load::Rate { requests_per_s } => {
                check.quantity(
                    "load.requests_per_s",
                    requests_per_s,
                    1e-6,
                    1e7,
                    "per second",
                );
            }
        }
        check.quantity("prefix_hit", self.prefix_hit, 0.0, 1.0, "(a share)");
        match &self.imbalance {
            Imbalance::Balanced | Imbalance::Drawn { .. } => {}
            Imbalance::Ratio { mean_over_max } => {
                check.quantity(
                    "imbalance.mean_over_max",
                    *mean_over_max,
                    1e-3,
                    1.0,
                    "(a share)",
                );
            }
            Imbalance::Ranks { batches } => {
                let fits = !batches.is_empty() && batches.len() <= 4096;
                if !fits || batches.iter().all(|batch| *batch == 0) {
                    check.fault(
                        "imbalance.batches",
                        format!(
                            "has {} entries; 1 to 4096 are planned, not all of them 0",
                            batches.len()
                        ),
                    );
                }
                for (i, batch) in batches.iter().enumerate() {
                    check.at_most(&format!("imbalance.batches[{i}]"), *batch, 1 << 24);
                }
            }
        }
        if let Some(speculation) = &self.speculation {
            check.size("speculation.steps", speculation.steps, 64);
            let chance = speculation.acceptance;
            check.quantity("speculation.acceptance", chance, 0.0, 1.0, "(a chance)");
        }
        for (field, limit) in [
            ("slo.ttft_ms", self.slo.ttft_ms),
            ("slo.tpot_ms", self.slo.tpot_ms),
        ] {
            if let Some(limit) = limit {
                check.quantity(field, limit, 1e-3, 1e9, "ms");
            }
        }
        Faults::or_ok(check.faults)
    }
}

fn lengths(check: &mut Checker, path: &str, lengths: &Lengths) {
    let field = |name: &str| format!("{path}.{name}");
    match lengths {
        Lengths::Fixed { tokens } => check.size(&field("tokens"), *tokens, MAX_TOKENS),
        Lengths::Uniform { max, range_ratio } => {
            check.size(&field("max"), *max, MAX_TOKENS);
            check.quantity(&field("range_ratio"), *range_ratio, 0.0, 1.0, "(a share)");
        }
        Lengths::LogNormal { median, sigma, max } => {
            check.size(&field("max"), *max, MAX_TOKENS);
            check.quantity(
                &field("median"),
                *median,
                1.0,
                f64::from(MAX_TOKENS),
                "tokens",
            );
            check.quantity(&field("sigma"), *sigma, 0.0, 5.0, "(of the logarithm)");
        }
        Lengths::Quantiles { tokens, mean } => {
            if tokens.len() < 2 || tokens.len() > 10_001 {
                check.fault(
                    field("tokens"),
                    format!("has {} entries; 2 to 10001 are planned", tokens.len()),
                );
            }
            if !tokens.is_sorted() {
                check.fault(field("tokens"), "falls somewhere; quantiles rise");
            }
            let (least, most) = match (tokens.first(), tokens.last()) {
                (Some(first), Some(last)) => (f64::from(*first), f64::from(*last)),
                _ => (0.0, f64::from(MAX_TOKENS)),
            };
            check.at_most(&field("tokens"), most as u32, MAX_TOKENS);
            check.quantity(&field("mean"), *mean, least, most, "tokens");
        }
        Lengths::Trace { file } => {
            if file.trim().is_empty() {
                check.fault(field("file"), "is empty; it names a trace");
            }
        }
    }
}
