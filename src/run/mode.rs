//! The mode that an engine's rule picks for a step: the planner's rule in the
//! executor's words.

use parplan_executor::gather::Mode;
use parplan_executor::{Error, Result};
use parplan_planner::padding::{GatherContext, GatherForm, RankTokens, padding};
use parplan_profiles::engine::rules::PaddingRule;
use parplan_profiles::engine::{embedded, select};

/// An engine version's padding rule, with what it looks at.
pub struct Rule {
    rule: PaddingRule,
    row_bytes: u64,
    attention_tp: u32,
    speculation: bool,
}

impl Rule {
    /// The rule of `engine`, like `sglang@0.5.9`.
    pub fn of(
        engine: &str,
        row_bytes: usize,
        attention_tp: usize,
        speculation: bool,
    ) -> Result<Self> {
        let unusable =
            |e: &dyn std::fmt::Display| Error::Unusable(format!("--engine {engine}: {e}"));
        let profiles = embedded().map_err(|e| unusable(&e))?;
        let rules = select(&profiles, engine, false).map_err(|e| unusable(&e))?;
        Ok(Rule {
            rule: rules.padding,
            row_bytes: row_bytes as u64,
            attention_tp: attention_tp as u32,
            speculation,
        })
    }

    /// The mode for a decode step with that many rows on each DP rank.
    pub fn pick(&self, rows: &[usize]) -> Mode {
        let rows: Vec<u32> = rows
            .iter()
            .map(|n| u32::try_from(*n).unwrap_or(u32::MAX))
            .collect();
        let context = GatherContext {
            row_bytes: self.row_bytes,
            expert_backend: "none",
            speculation: self.speculation,
            ..GatherContext::default()
        };
        match padding(
            &self.rule,
            &RankTokens::of(&rows, self.attention_tp),
            &context,
        )
        .form
        {
            GatherForm::AllGather => Mode::MaxLen,
            GatherForm::AllReduce => Mode::SumLen,
            GatherForm::Exact if self.attention_tp == 1 => Mode::AllGatherV,
            GatherForm::Exact => Mode::SumLen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_decides_the_tie() {
        let pick =
            |engine: &str, rows: &[usize]| Rule::of(engine, 2048, 1, false).unwrap().pick(rows);
        // 2 · 64 against 64 · 2: equal.
        assert_eq!(pick("sglang@0.5.9", &[64, 0]), Mode::SumLen);
        assert_eq!(pick("sglang@0.5.10", &[64, 0]), Mode::MaxLen);
        assert_eq!(pick("sglang@0.5.9", &[64, 1]), Mode::MaxLen);
        assert!(Rule::of("nosuch", 2048, 1, false).is_err());
    }
}
