//! Per-step metadata sync of DP ranks: token counts and flags, packed in one row of
//! 64-bit integers, so that all ranks take the same decisions.

mod device;
mod ways;

pub use device::PinnedSync;
pub use ways::{Way, all_gather_on_device, all_reduce_on_device, over_tcp};

use crate::{Error, Result};

/// Words of a row: SGLang 0.5.23 packs 11 int64, 88 bytes a rank.
pub const WORDS: usize = 11;
/// Bytes of a row.
pub const ROW: usize = WORDS * 8;

/// What one rank brings into a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Rows of hidden states.
    pub tokens: u32,
    /// Rows that need logits.
    pub logprob_tokens: u32,
    /// Whether this rank could replay a decode graph.
    pub decode_graph: bool,
    /// Whether its batch has prefill in it.
    pub extend: bool,
    /// Whether it could overlap two half batches.
    pub two_batch: bool,
    /// Forward mode, as a number that all ranks understand alike.
    pub forward_mode: u32,
    /// Whether it could replay a prefill graph.
    pub prefill_graph: bool,
    /// Longest cached prefix.
    pub longest_prefix: u32,
    /// Whether it could replay a draft graph.
    pub draft_graph: bool,
    /// Whether the batch is a health check only.
    pub health_check: bool,
    /// Query-key pairs, for load accounting.
    pub attention_pairs: u64,
}

impl Metadata {
    /// The row.
    #[must_use]
    pub fn pack(&self) -> [i64; WORDS] {
        [
            i64::from(self.tokens),
            i64::from(self.logprob_tokens),
            i64::from(self.decode_graph),
            i64::from(self.extend),
            i64::from(self.two_batch),
            i64::from(self.forward_mode),
            i64::from(self.prefill_graph),
            i64::from(self.longest_prefix),
            i64::from(self.draft_graph),
            i64::from(self.health_check),
            self.attention_pairs as i64,
        ]
    }

    /// The row, read back.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming the word that no rank can have sent.
    pub fn unpack(row: &[i64]) -> Result<Self> {
        let bad = |i: usize, must: &str| {
            Error::Mismatch(format!(
                "metadata word {i} is {}, it must be {must}",
                row[i]
            ))
        };
        if row.len() != WORDS {
            return Err(Error::Mismatch(format!(
                "a metadata row of {} words, {WORDS} are right",
                row.len()
            )));
        }
        let count = |i: usize| u32::try_from(row[i]).map_err(|_| bad(i, "a count below 2^32"));
        let flag = |i: usize| match row[i] {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(bad(i, "0 or 1")),
        };
        Ok(Metadata {
            tokens: count(0)?,
            logprob_tokens: count(1)?,
            decode_graph: flag(2)?,
            extend: flag(3)?,
            two_batch: flag(4)?,
            forward_mode: count(5)?,
            prefill_graph: flag(6)?,
            longest_prefix: count(7)?,
            draft_graph: flag(8)?,
            health_check: flag(9)?,
            attention_pairs: u64::try_from(row[10]).map_err(|_| bad(10, "a count"))?,
        })
    }
}

/// What all ranks know after a sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Rows of hidden states of each rank.
    pub tokens: Vec<usize>,
    /// Rows that need logits, of each rank.
    pub logprob_tokens: Vec<usize>,
    /// All ranks can replay a decode graph.
    pub decode_graph: bool,
    /// Some rank has prefill.
    pub extend: bool,
    /// All ranks can overlap two half batches.
    pub two_batch: bool,
    /// All ranks can replay a prefill graph.
    pub prefill_graph: bool,
    /// All ranks can replay a draft graph.
    pub draft_graph: bool,
}

impl Agreement {
    /// Votes need all ranks, alarms one.
    ///
    /// # Errors
    /// As [`Metadata::unpack`].
    pub fn of(words: &[i64]) -> Result<Self> {
        let rows: Vec<Metadata> = words
            .chunks(WORDS)
            .map(Metadata::unpack)
            .collect::<Result<_>>()?;
        let all = |f: fn(&Metadata) -> bool| rows.iter().all(f);
        Ok(Agreement {
            tokens: rows.iter().map(|m| m.tokens as usize).collect(),
            logprob_tokens: rows.iter().map(|m| m.logprob_tokens as usize).collect(),
            decode_graph: all(|m| m.decode_graph),
            extend: rows.iter().any(|m| m.extend),
            two_batch: all(|m| m.two_batch),
            prefill_graph: all(|m| m.prefill_graph),
            draft_graph: all(|m| m.draft_graph),
        })
    }
}

pub(crate) fn bytes(row: &[i64; WORDS]) -> &[u8] {
    bytemuck::cast_slice(row)
}

pub(crate) fn words(bytes: &[u8]) -> Vec<i64> {
    bytes
        .chunks_exact(8)
        .map(bytemuck::pod_read_unaligned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Metadata {
        Metadata {
            tokens: 7,
            logprob_tokens: 3,
            decode_graph: true,
            extend: false,
            two_batch: true,
            forward_mode: 2,
            prefill_graph: false,
            longest_prefix: 100_000,
            draft_graph: true,
            health_check: true,
            attention_pairs: 1 << 40,
        }
    }

    #[test]
    fn a_row_survives_the_way_and_a_garbled_one_is_named() {
        assert_eq!(Metadata::unpack(&full().pack()).unwrap(), full());
        let mut row = full().pack();
        row[2] = 2;
        assert_eq!(
            Metadata::unpack(&row).unwrap_err().to_string(),
            "ranks disagree: metadata word 2 is 2, it must be 0 or 1"
        );
        assert!(Metadata::unpack(&row[1..]).is_err());
    }

    #[test]
    fn one_rank_vetoes_a_graph_and_one_rank_makes_it_a_prefill_step() {
        let idle = Metadata {
            decode_graph: true,
            two_batch: true,
            draft_graph: true,
            ..Metadata::default()
        };
        let prefill = Metadata {
            tokens: 50,
            extend: true,
            ..Metadata::default()
        };
        let words: Vec<i64> = [full(), idle, prefill]
            .iter()
            .flat_map(Metadata::pack)
            .collect();
        let agreed = Agreement::of(&words).unwrap();
        assert_eq!(agreed.tokens, [7, 0, 50]);
        assert_eq!(
            (agreed.decode_graph, agreed.extend, agreed.draft_graph),
            (false, true, false)
        );
        let agreed = Agreement::of(&words[..2 * WORDS]).unwrap();
        assert_eq!(
            (agreed.decode_graph, agreed.extend, agreed.two_batch),
            (true, false, true)
        );
    }
}
