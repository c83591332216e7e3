//! Recurrent mixers: Gated DeltaNet and Mamba-2.

use super::overlap;
use super::resolve::OpCosts;
use super::terms::ScanTerm;

/// A Gated DeltaNet mixer (convolution and delta rule, without projections), on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatedDeltaStep {
    /// Sequences in the batch.
    pub sequences: f64,
    /// Tokens a sequence: 1 in decode.
    pub tokens: f64,
    /// Key heads on this rank.
    pub k_heads: f64,
    /// Value heads on this rank.
    pub v_heads: f64,
    /// Width of a key head.
    pub k_head_dim: f64,
    /// Width of a value head.
    pub v_head_dim: f64,
}

/// A Mamba-2 mixer (convolution and state-space scan, without projections), on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mamba2Step {
    /// Sequences in the batch.
    pub sequences: f64,
    /// Tokens a sequence: 1 in decode.
    pub tokens: f64,
    /// Heads on this rank.
    pub heads: f64,
    /// Width of a head.
    pub head_dim: f64,
    /// State size a head.
    pub state_size: f64,
    /// Groups that share B and C, on this rank.
    pub groups: f64,
}

/// Tokens that chunked prefill kernels work on at a time.
const CHUNK: f64 = 64.0;

/// What a recurrent mixer reads, writes and multiplies.
#[derive(Debug, Clone, Copy)]
struct ScanWork {
    /// State of one sequence, elements.
    state: f64,
    /// Activations of one token, elements read and written.
    activations: f64,
    /// Products of one token in chunked form, FLOP.
    flops: f64,
}

impl GatedDeltaStep {
    fn work(&self) -> ScanWork {
        let state = self.v_heads * self.k_head_dim * self.v_head_dim;
        let mixed = 2.0 * self.k_heads * self.k_head_dim + self.v_heads * self.v_head_dim;
        ScanWork {
            state,
            activations: 3.0 * mixed + 2.0 * self.v_heads * self.v_head_dim,
            flops: 6.0 * state
                + 2.0 * CHUNK * self.v_heads * (2.0 * self.k_head_dim + self.v_head_dim),
        }
    }
}

impl Mamba2Step {
    fn work(&self) -> ScanWork {
        let state = self.heads * self.head_dim * self.state_size;
        let mixed = self.heads * self.head_dim + 2.0 * self.groups * self.state_size;
        ScanWork {
            state,
            activations: 3.0 * mixed + 2.0 * self.heads * self.head_dim,
            flops: 4.0 * state + 2.0 * CHUNK * self.heads * (self.state_size + self.head_dim),
        }
    }
}

impl ScanTerm {
    /// Decode: `base + (fp32 state read and written + activations) / bandwidth`.
    fn decode(&self, sequences: f64, work: &ScanWork) -> f64 {
        self.decode_base_us
            + sequences * (8.0 * work.state + 2.0 * work.activations) * self.us_per_byte_decode
    }

    /// Prefill: `base + activations / bandwidth + overlap(serial walk, products)`.
    fn prefill(&self, sequences: f64, tokens: f64, work: &ScanWork) -> f64 {
        let all = sequences * tokens;
        self.prefill_base_us
            + (all * 2.0 * work.activations + sequences * 8.0 * work.state)
                * self.us_per_byte_prefill
            + overlap(
                tokens * self.depth_us_per_token,
                all * work.flops * self.us_per_flop_prefill,
            )
    }

    fn time(&self, sequences: f64, tokens: f64, work: &ScanWork) -> f64 {
        if sequences <= 0.0 || tokens <= 0.0 {
            return 0.0;
        }
        if tokens <= 1.0 {
            return self.decode(sequences, work);
        }
        self.prefill(sequences, tokens, work)
            .max(self.decode(sequences, work))
    }

    fn roofline(&self, sequences: f64, tokens: f64, work: &ScanWork) -> f64 {
        sequences * (8.0 * work.state + 2.0 * tokens * work.activations) * self.us_per_byte_peak
    }
}

impl OpCosts<'_> {
    /// A Gated DeltaNet mixer, µs; decode when `tokens` is 1, else prefill.
    pub fn gated_delta(&self, step: &GatedDeltaStep) -> f64 {
        self.gated_delta
            .time(step.sequences, step.tokens, &step.work())
    }

    /// Its roofline, µs.
    pub fn gated_delta_roofline(&self, step: &GatedDeltaStep) -> f64 {
        self.gated_delta
            .roofline(step.sequences, step.tokens, &step.work())
    }

    /// A Mamba-2 mixer, µs; decode when `tokens` is 1, else prefill.
    pub fn mamba2(&self, step: &Mamba2Step) -> f64 {
        self.mamba2.time(step.sequences, step.tokens, &step.work())
    }

    /// Its roofline, µs.
    pub fn mamba2_roofline(&self, step: &Mamba2Step) -> f64 {
        self.mamba2
            .roofline(step.sequences, step.tokens, &step.work())
    }
}
