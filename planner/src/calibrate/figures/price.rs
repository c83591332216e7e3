//! What an experiment takes under the figures of its class.

use super::{Figures, Passes};
use crate::cost::{DecodeGqa, DecodeMla, Gemm, Launch, Moe, PrefillGqa, Single};
use parplan_profiles::GpuProfile;
use parplan_profiles::calibration::{
    DecodeGqaShape, DecodeMlaShape, Experiment, ExpertsShape, LaunchMode, PrefillGqaShape, Probe,
};

impl Passes {
    fn of(self, ranks: f64) -> f64 {
        match self {
            Passes::OneShot => ranks - 1.0,
            Passes::TwoShot => 2.0 * (ranks - 1.0) / ranks,
            Passes::Gather => (ranks - 1.0) / ranks,
        }
    }
}

fn launch(mode: LaunchMode) -> Launch {
    match mode {
        LaunchMode::Graph => Launch::Graph,
        LaunchMode::Stream => Launch::Eager,
    }
}

impl Figures {
    /// Microseconds of an experiment of the class.
    pub fn us(&self, gpu: &GpuProfile, e: &Experiment) -> f64 {
        let single = Single::on(gpu);
        match (self, e.probe) {
            (Figures::Constant { us }, _) => *us,
            (Figures::Stream { base_us, memory }, Probe::MemoryRead { bytes }) => {
                base_us + single.stream(bytes as f64, *memory)
            }
            (Figures::Stream { base_us, memory }, Probe::MemoryCopy { bytes }) => {
                base_us + single.stream(2.0 * bytes as f64, *memory)
            }
            (Figures::Ring(fit, kind), Probe::Collective { bytes, .. }) => single.ring(
                fit,
                *kind,
                bytes as f64,
                f64::from(e.ranks),
                launch(e.launch),
            ),
            (Figures::Ring(fit, kind), Probe::PeerExchange { merge, rows, dim }) => {
                // Of a merge an fp32 LSE goes with every row.
                let row = f64::from(dim) * 2.0 + if merge { 4.0 } else { 0.0 };
                let ranks = f64::from(e.ranks);
                let bytes = ranks * f64::from(rows) * row;
                single.ring(fit, *kind, bytes, ranks, launch(e.launch))
            }
            (
                Figures::Peer {
                    base_us,
                    rank_us,
                    link,
                    eager_us,
                    passes,
                },
                Probe::PeerCollective { bytes, .. },
            ) => {
                let wire = passes.of(f64::from(e.ranks)) * bytes as f64;
                let base_us = base_us + rank_us * (f64::from(e.ranks) - 2.0);
                let us = base_us + wire * 1e6 / (gpu.link.bytes_per_s * link);
                match e.launch {
                    LaunchMode::Graph => us,
                    LaunchMode::Stream => crate::cost::overlap(us, eager_us + base_us),
                }
            }
            (Figures::Gemm(fit, quantise), Probe::Gemm { m, n, k, weights }) => {
                let product = Gemm {
                    m: f64::from(m),
                    n: f64::from(n),
                    k: f64::from(k),
                    weights,
                };
                let rows = product.m * product.k * (2.0 + fit.activation_bytes);
                let before = quantise.map_or(0.0, |(us, memory)| us + single.stream(rows, memory));
                before + single.gemm(fit, &product)
            }
            (Figures::Moe(fit), Probe::Experts(shape)) => single.moe(fit, &shape.into()),
            (Figures::DecodeGqa(fit), Probe::DecodeGqa(shape)) => {
                single.decode_gqa(fit, &shape.into())
            }
            (Figures::DecodeMla(fit), Probe::DecodeMla(shape)) => {
                single.decode_mla(fit, &shape.into())
            }
            (Figures::PrefillGqa(fit), Probe::PrefillGqa(shape)) => {
                single.prefill_gqa(fit, &shape.into())
            }
            // An experiment of another class has no time here, and no fit will find one.
            _ => f64::NAN,
        }
    }
}

impl From<ExpertsShape> for Moe {
    fn from(shape: ExpertsShape) -> Moe {
        Moe {
            tokens: f64::from(shape.tokens),
            experts_local: f64::from(shape.experts),
            experts_total: f64::from(shape.experts),
            top_k: f64::from(shape.top_k),
            hidden: f64::from(shape.hidden),
            intermediate: f64::from(shape.intermediate),
            gated: true,
            weights: shape.weights,
            gathered: true,
            spread: 1.0,
            imbalance: 1.0,
            deviations: 0.0,
        }
    }
}

impl From<DecodeGqaShape> for DecodeGqa {
    fn from(shape: DecodeGqaShape) -> DecodeGqa {
        DecodeGqa {
            requests: f64::from(shape.requests),
            context: f64::from(shape.context),
            q_tokens: 1.0,
            q_heads: f64::from(shape.q_heads),
            kv_heads: f64::from(shape.kv_heads),
            head_dim: f64::from(shape.head_dim),
            v_head_dim: f64::from(shape.head_dim),
            kv: shape.kv,
            window: f64::INFINITY,
        }
    }
}

impl From<DecodeMlaShape> for DecodeMla {
    fn from(shape: DecodeMlaShape) -> DecodeMla {
        DecodeMla {
            requests: f64::from(shape.requests),
            context: f64::from(shape.context),
            q_tokens: 1.0,
            heads: f64::from(shape.heads),
            kv_lora_rank: f64::from(shape.kv_lora_rank),
            rope_dim: f64::from(shape.rope_dim),
            kv: shape.kv,
        }
    }
}

impl From<PrefillGqaShape> for PrefillGqa {
    fn from(shape: PrefillGqaShape) -> PrefillGqa {
        PrefillGqa {
            sequences: f64::from(shape.sequences),
            new_tokens: f64::from(shape.tokens),
            prefix: 0.0,
            q_heads: f64::from(shape.q_heads),
            kv_heads: f64::from(shape.kv_heads),
            head_dim: f64::from(shape.head_dim),
            v_head_dim: f64::from(shape.head_dim),
            kv: shape.kv,
            window: f64::INFINITY,
        }
    }
}
