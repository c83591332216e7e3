//! What ranks that are not there would have sent, where the ranks at hand stand for a part
//! of a larger layout.

use super::compute::{Compute, packed_row};
use super::place::BlockShape;
use super::run::{Stack, StepRows};
use super::spec::{ExpertPath, Format};
use super::tensors::{POSITIONS, REQUESTS, input};
use crate::Result;

impl Stack {
    /// Fills what absent ranks would have sent with synthetic rows: they stay as they are
    /// from step to step. Before the first step, and again after the buffers grew.
    ///
    /// # Errors
    /// Out of memory; a device error.
    pub fn fill_absent(&mut self, device: &dyn Compute, rows: StepRows) -> Result<()> {
        let spec = &self.spec;
        if rows.all == 0 {
            return Ok(());
        }
        let what = input(spec.seed ^ 1, spec.hidden);
        let number = |i: usize| (7 * REQUESTS * POSITIONS + i) as u64;
        let numbers: Vec<u64> = (0..rows.all).map(number).collect();
        for name in ["gathered rows", "gathered results"] {
            let view = self.work.get(device, name, rows.all * spec.hidden * 2)?;
            device.synthetic(&view, Format::Bf16, 1.0, &what, &numbers)?;
        }
        for layer in &self.layers {
            let BlockShape::Moe { experts, top_k, .. } = layer.block else {
                continue;
            };
            if spec.experts != ExpertPath::AllToAll {
                continue;
            }
            let part = rows.local / spec.shard_of.attn_tp();
            let row = packed_row(spec.hidden, top_k);
            let total = part * spec.shard_of.ep;
            let view = self.work.get(device, "rows of other ranks", total * row)?;
            let mut bytes = Vec::with_capacity(total * row);
            for (i, number) in numbers.iter().cycle().take(total).enumerate() {
                let begin = bytes.len();
                bytes.extend_from_slice(bytemuck::cast_slice(&what.bf16(&[*number])));
                // Choices that are even over the experts, as far as they are this rank's.
                let chosen = (0..top_k).map(|j| (i * top_k + j) * 7919 % experts);
                for e in chosen {
                    let local = experts / spec.shard_of.ep;
                    let id = if e / local == self.place.ep {
                        e as i32
                    } else {
                        -1
                    };
                    bytes.extend_from_slice(&id.to_le_bytes());
                }
                for _ in 0..top_k {
                    bytes.extend_from_slice(&(1.0 / top_k as f32).to_le_bytes());
                }
                bytes.resize(begin + row, 0);
            }
            device.write(&view, &bytes)?;
            return Ok(());
        }
        Ok(())
    }
}
