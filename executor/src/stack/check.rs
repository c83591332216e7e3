//! Comparing what a stack computed with the float64 reference.

use std::time::Duration;

use super::groups::Path;
use super::place::BlockShape;
use super::reference;
use super::spec::{StackSpec, StepSpec};
use crate::comm::CpuCommunicator;
use crate::{Communicator, DType, Error, Result};

/// How far a stack is from the float64 reference.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Distance {
    /// Rows that were compared.
    pub rows: usize,
    /// Root mean square of the differences over that of the result.
    pub relative_error: f64,
    /// The same over what the layers added to the input, which is stricter.
    pub of_added: f64,
    /// The same of the row that is furthest off.
    pub worst_row: f64,
}

/// What all ranks found in a step, as bytes by rank.
pub(super) struct Found<'a> {
    /// Of this rank's layers.
    pub blocks: &'a [BlockShape],
    /// bf16 rows after the step.
    pub outputs: &'a [Vec<u8>],
    /// bf16 rows before it.
    pub inputs: &'a [Vec<u8>],
    /// i32 choices of experts, by layer and rank.
    pub choices: &'a [Vec<Vec<u8>>],
}

impl Found<'_> {
    /// How far it is from the reference.
    pub(super) fn distance(&self, spec: &StackSpec, step: &StepSpec) -> Result<Distance> {
        let (attn_tp, hidden) = (spec.here.attn_tp(), spec.hidden);
        let tokens = reference::tokens(step);
        let row = |t: &reference::Token| t.request * step.q_tokens + t.index;
        let chosen = |layer: usize, t: usize| -> Option<Vec<i32>> {
            let BlockShape::Moe { top_k, .. } = self.blocks[layer] else {
                return None;
            };
            let (rank, mut at) = (tokens[t].dp * attn_tp, row(&tokens[t]));
            let mut from = &self.choices[layer][rank];
            if Path::of(spec, false) == Path::AllToAll {
                // Each rank of the attention-TP group chose for its part of the rows.
                let part = from.len() / (top_k * 4);
                from = &self.choices[layer][rank + at / part];
                at %= part;
            }
            let bytes = &from[at * top_k * 4..][..top_k * 4];
            Some(
                bytes
                    .chunks_exact(4)
                    .map(bytemuck::pod_read_unaligned)
                    .collect(),
            )
        };
        let want = reference::run(spec, step, &chosen, margin(spec))?;
        let (mut all_error, mut all_added, mut all_square, mut worst) = (0.0, 0.0, 0.0, 0f64);
        for (t, want) in tokens.iter().zip(&want) {
            // Every rank of an attention-TP group must have the row, not only its first.
            for rank in t.dp * attn_tp..(t.dp + 1) * attn_tp {
                let at = row(t) * hidden * 2;
                let bf16 = |bytes: &[u8]| DType::Bf16.decode(&bytes[at..at + hidden * 2]);
                let (end, start) = (bf16(&self.outputs[rank]), bf16(&self.inputs[rank]));
                let (mut error, mut added) = (0.0, 0.0);
                for ((e, s), w) in end.iter().zip(&start).zip(want) {
                    error += (e - s - w).powi(2);
                    added += w.powi(2);
                    all_square += (s + w).powi(2);
                }
                if !error.is_finite() {
                    return Err(Error::Wrong(format!(
                        "rank {rank}, request {}, new token {}: the result is no number",
                        t.request, t.index
                    )));
                }
                worst = worst.max((error / added.max(f64::MIN_POSITIVE)).sqrt());
                all_error += error;
                all_added += added;
            }
        }
        Ok(Distance {
            rows: tokens.len(),
            relative_error: (all_error / all_square.max(f64::MIN_POSITIVE)).sqrt(),
            of_added: (all_error / all_added.max(f64::MIN_POSITIVE)).sqrt(),
            worst_row: worst,
        })
    }
}

/// Router logits have a standard deviation of 2; rounding moves them by less than this.
fn margin(spec: &StackSpec) -> f64 {
    if uses_fp8(spec) { 1.0 } else { 0.15 }
}

/// Whether any weight or the cache is fp8, which loosens what a check may ask for.
#[must_use]
pub fn uses_fp8(spec: &StackSpec) -> bool {
    use super::spec::Format;
    spec.kv == Format::Fp8
        || spec
            .layers
            .iter()
            .any(|l| [l.attention_format, l.dense_format, l.expert_format].contains(&Format::Fp8))
}

/// What `work` gives on rank 0, which alone does it; `None` on the others. However long it
/// takes, nobody runs into a deadline: the ranks tell each other that they are there.
pub(super) fn while_first_rank_works<T: Send>(
    control: &mut CpuCommunicator,
    work: impl FnOnce() -> T + Send,
) -> Result<Option<T>> {
    const TICK: Duration = Duration::from_millis(50);
    if control.rank() != 0 {
        while control.all_gather_bytes(&[])?[0] != [1] {}
        return Ok(None);
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(work);
        loop {
            let done = thread.is_finished();
            control.all_gather_bytes(&[u8::from(done)])?;
            if done {
                break;
            }
            std::thread::park_timeout(TICK);
        }
        match thread.join() {
            Ok(found) => Ok(Some(found)),
            // The panic goes on where it would have been without the thread.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::LocalWorld;

    #[test]
    fn long_work_of_one_rank_is_no_silence() {
        let ranks: Vec<_> = LocalWorld::connect(3)
            .unwrap()
            .into_iter()
            .map(|mut control| {
                std::thread::spawn(move || {
                    let found = while_first_rank_works(&mut control, || {
                        std::thread::sleep(Duration::from_millis(300));
                        7
                    });
                    // The control plane is in step afterwards.
                    let after = control.all_gather_bytes(&[control.rank() as u8]).unwrap();
                    (found.unwrap(), after)
                })
            })
            .collect();
        let found: Vec<_> = ranks.into_iter().map(|t| t.join().unwrap()).collect();
        let after = vec![vec![0], vec![1], vec![2]];
        assert_eq!(
            found,
            [
                (Some(7), after.clone()),
                (None, after.clone()),
                (None, after)
            ]
        );
    }
}
