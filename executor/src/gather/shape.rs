//! The shape of one step: how many rows each rank brings and where they go.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the rows of uneven ranks come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every rank pads to the longest; all-gather, and reduce-scatter to combine.
    MaxLen,
    /// Rows are put at their offset in a zeroed buffer; all-reduce both ways.
    SumLen,
    /// Exact rows by all-gather-v; all-reduce and slice to combine.
    AllGatherV,
}

/// Picks the mode from the padded token counts of the DP ranks. The rule itself is the
/// planner's: it is handed in.
pub type ModeRule<'a> = &'a dyn Fn(&[usize]) -> Mode;

/// Ranks of one tensor-parallel group: `tp = attn_dp · attn_tp`, attention TP fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DpLayout {
    /// Ranks in all.
    pub tp: usize,
    /// Attention DP ranks.
    pub attn_dp: usize,
}

impl DpLayout {
    /// A layout whose sizes divide.
    ///
    /// # Errors
    /// [`Error::Unusable`] naming the sizes.
    pub fn new(tp: usize, attn_dp: usize) -> Result<Self> {
        if attn_dp == 0 || !tp.is_multiple_of(attn_dp) {
            return Err(Error::Unusable(format!(
                "{tp} ranks do not divide into {attn_dp} attention DP ranks"
            )));
        }
        Ok(DpLayout { tp, attn_dp })
    }

    /// Ranks that share one DP rank's attention.
    #[must_use]
    pub fn attn_tp(&self) -> usize {
        self.tp / self.attn_dp
    }

    /// DP rank of a TP rank.
    #[must_use]
    pub fn dp_rank(&self, tp_rank: usize) -> usize {
        tp_rank / self.attn_tp()
    }

    /// Attention-TP rank of a TP rank.
    #[must_use]
    pub fn attn_tp_rank(&self, tp_rank: usize) -> usize {
        tp_rank % self.attn_tp()
    }
}

/// What every rank knows about a step after the metadata sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Ranks.
    pub layout: DpLayout,
    /// The mode picked for it.
    pub mode: Mode,
    /// Real rows of each DP rank.
    pub tokens: Vec<usize>,
    /// Rows that each DP rank brings: real ones and padding.
    pub local: Vec<usize>,
    /// First row of each DP rank in the gathered buffer.
    pub offsets: Vec<usize>,
    /// Rows of the gathered buffer.
    pub global: usize,
}

impl StepShape {
    /// The shape for `tokens[r]` rows on DP rank r. Counts are first rounded up to a
    /// multiple of attention TP, so that reduce-scatter can cut them. `bucket` is the
    /// row count that a captured graph was made for; it forces max_len.
    ///
    /// # Errors
    /// [`Error::Arguments`] when the counts are not one for each DP rank, exceed the
    /// bucket, or the rule picks all-gather-v with attention TP.
    pub fn new(
        layout: DpLayout,
        tokens: &[usize],
        bucket: Option<usize>,
        rule: ModeRule<'_>,
    ) -> Result<Self> {
        let wrong = |why: String| Error::Arguments {
            op: "DP gather",
            why,
        };
        if tokens.len() != layout.attn_dp {
            return Err(wrong(format!(
                "{} token counts for {} attention DP ranks",
                tokens.len(),
                layout.attn_dp
            )));
        }
        let attn_tp = layout.attn_tp();
        let padded: Vec<usize> = tokens.iter().map(|n| n.next_multiple_of(attn_tp)).collect();
        let longest = padded.iter().copied().max().unwrap_or(0);
        let (mode, length) = match bucket {
            Some(bucket) if bucket < longest || !bucket.is_multiple_of(attn_tp) => {
                return Err(wrong(format!(
                    "a graph of {bucket} rows cannot run {longest}: it must have at least as many, a multiple of {attn_tp}"
                )));
            }
            Some(bucket) => (Mode::MaxLen, bucket),
            None => (rule(&padded), longest),
        };
        let local = match mode {
            Mode::MaxLen => vec![length; padded.len()],
            Mode::SumLen => padded,
            Mode::AllGatherV if attn_tp == 1 => padded,
            Mode::AllGatherV => {
                return Err(wrong(format!(
                    "all-gather-v with attention TP {attn_tp}: it needs 1"
                )));
            }
        };
        let mut global = 0;
        let offsets = local
            .iter()
            .map(|rows| {
                global += rows;
                global - rows
            })
            .collect();
        Ok(StepShape {
            layout,
            mode,
            tokens: tokens.to_vec(),
            local,
            offsets,
            global,
        })
    }

    /// The shape of `tokens[r]` rows on DP rank r in a graph that was captured for
    /// sum_len: its buffers have `bucket` rows a DP rank whatever the counts, and the
    /// counts and offsets, which lie in device memory, change from replay to replay
    /// (`DpExchange::write_places`). Rows past the last are zeros of the all-reduce.
    ///
    /// # Errors
    /// [`Error::Arguments`] as [`new`](Self::new), and when a count exceeds the bucket.
    pub fn in_sum_len_graph(layout: DpLayout, tokens: &[usize], bucket: usize) -> Result<Self> {
        let mut shape = Self::new(layout, tokens, None, &|_| Mode::SumLen)?;
        let longest = shape.local.iter().copied().max().unwrap_or(0);
        if bucket < longest {
            return Err(Error::Arguments {
                op: "DP gather",
                why: format!(
                    "a sum_len graph of {bucket} rows a DP rank cannot run {longest}: it must have at least as many"
                ),
            });
        }
        shape.global = bucket * layout.attn_dp;
        Ok(shape)
    }

    /// Whether any rank has work. When none has, no rank enters the step's collectives;
    /// when one has, all do, the idle ones with padding only.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.tokens.iter().any(|n| *n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_each_mode() {
        let layout = DpLayout::new(8, 4).unwrap();
        let max = StepShape::new(layout, &[3, 0, 7, 2], None, &|_| Mode::MaxLen).unwrap();
        assert_eq!(
            (max.local, max.offsets, max.global),
            (vec![8; 4], vec![0, 8, 16, 24], 32)
        );
        let sum = StepShape::new(layout, &[3, 0, 7, 2], None, &|_| Mode::SumLen).unwrap();
        assert_eq!(
            (sum.local, sum.offsets, sum.global),
            (vec![4, 0, 8, 2], vec![0, 4, 4, 12], 14)
        );
    }

    #[test]
    fn the_rule_sees_padded_counts_and_a_bucket_overrides_it() {
        let layout = DpLayout::new(4, 2).unwrap();
        let rule = |counts: &[usize]| {
            assert_eq!(counts, [4, 6]);
            Mode::SumLen
        };
        assert_eq!(
            StepShape::new(layout, &[3, 5], None, &rule).unwrap().mode,
            Mode::SumLen
        );
        let graph = StepShape::new(layout, &[3, 5], Some(16), &rule).unwrap();
        assert_eq!((graph.mode, graph.global), (Mode::MaxLen, 32));
    }

    #[test]
    fn a_sum_len_graph_keeps_its_size_while_counts_change() {
        let layout = DpLayout::new(4, 4).unwrap();
        for (tokens, offsets) in [
            ([3, 0, 8, 2], [0, 3, 3, 11]),
            ([8, 8, 8, 8], [0, 8, 16, 24]),
        ] {
            let shape = StepShape::in_sum_len_graph(layout, &tokens, 8).unwrap();
            assert_eq!(
                (shape.mode, shape.offsets, shape.global),
                (Mode::SumLen, offsets.to_vec(), 32)
            );
        }
        assert_eq!(
            StepShape::in_sum_len_graph(layout, &[3, 0, 9, 2], 8)
                .unwrap_err()
                .to_string(),
            "DP gather: a sum_len graph of 8 rows a DP rank cannot run 9: it must have at least as many"
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        let e = DpLayout::new(8, 3).unwrap_err();
        assert_eq!(
            e.to_string(),
            "8 ranks do not divide into 3 attention DP ranks"
        );
        let layout = DpLayout::new(4, 2).unwrap();
        let e = |tokens: &[usize], bucket, mode| {
            StepShape::new(layout, tokens, bucket, &|_| mode)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            e(&[1], None, Mode::MaxLen),
            "DP gather: 1 token counts for 2 attention DP ranks"
        );
        assert_eq!(
            e(&[1, 9], Some(8), Mode::MaxLen),
            "DP gather: a graph of 8 rows cannot run 10: it must have at least as many, a multiple of 2"
        );
        assert_eq!(
            e(&[1, 2], None, Mode::AllGatherV),
            "DP gather: all-gather-v with attention TP 2: it needs 1"
        );
    }

    #[test]
    fn a_step_without_work_is_entered_by_nobody() {
        let layout = DpLayout::new(2, 2).unwrap();
        assert!(
            !StepShape::new(layout, &[0, 0], None, &|_| Mode::SumLen)
                .unwrap()
                .has_work()
        );
        assert!(
            StepShape::new(layout, &[0, 1], None, &|_| Mode::SumLen)
                .unwrap()
                .has_work()
        );
    }
}
