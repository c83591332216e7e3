//! Shapes of the kernels of a layer: products, attention, experts.

use super::{Machine, replay};
use parplan_profiles::Dtype;
use parplan_profiles::calibration::{
    DecodeGqaShape, DecodeMlaShape, Experiment, ExpertsShape, LaunchMode, PrefillGqaShape, Probe,
};

/// Products of the shapes that decoder layers have: projections of 4096 to 8192 wide models and their
/// shards, at decode and prefill row counts.
pub(super) fn gemm(machine: Machine) -> Vec<Vec<Experiment>> {
    let shapes: &[(u32, u32, u32)] = if machine.gpus {
        &[
            (1, 4096, 4096),
            (1, 28672, 4096),
            (8, 6144, 4096),
            (16, 1280, 8192),
            (16, 4096, 14336),
            (64, 4096, 4096),
            (64, 10240, 8192),
            (64, 1024, 7168),
            (128, 28672, 4096),
            (256, 4096, 2048),
            (256, 8192, 8192),
            (512, 6144, 4096),
            (1024, 4096, 14336),
            (2048, 2048, 4096),
            (2048, 10240, 8192),
            (4096, 4096, 4096),
            (8192, 8192, 8192),
        ]
    } else {
        &[
            (1, 256, 256),
            (1, 1024, 1024),
            (4, 512, 256),
            (8, 256, 1024),
            (16, 512, 512),
            (32, 256, 256),
            (64, 512, 256),
            (64, 256, 512),
        ]
    };
    // Rows are put into fp8 by a kernel of their own, which is timed with the product.
    let narrow: &[(u32, u32, u32)] = if machine.gpus {
        &[
            (1, 4096, 4096),
            (16, 7168, 2048),
            (16, 28672, 4096),
            (64, 4096, 7168),
            (128, 10240, 8192),
            (512, 8192, 8192),
            (2048, 4096, 7168),
            (8192, 8192, 8192),
        ]
    } else {
        &[]
    };
    let all = |shapes: &[(u32, u32, u32)], weights: Dtype| -> Vec<Experiment> {
        shapes
            .iter()
            .map(|&(m, n, k)| {
                let probe = Probe::Gemm { m, n, k, weights };
                Experiment::alone(probe, replay(machine), "projections and dense blocks")
            })
            .collect()
    };
    vec![all(shapes, Dtype::Bf16), all(narrow, Dtype::Fp8)]
}

pub(super) fn attention(machine: Machine) -> Vec<Vec<Experiment>> {
    let mode = replay(machine);
    let gqa = |(requests, context, q_heads, kv_heads): (u32, u32, u32, u32)| {
        let probe = Probe::DecodeGqa(DecodeGqaShape {
            requests,
            context,
            q_heads,
            kv_heads,
            head_dim: if machine.gpus { 128 } else { 64 },
            kv: Dtype::Bf16,
        });
        Experiment::alone(probe, mode, "attention of decode steps")
    };
    let mla = |(requests, context, heads): (u32, u32, u32)| {
        let probe = Probe::DecodeMla(DecodeMlaShape {
            requests,
            context,
            heads,
            kv_lora_rank: 512,
            rope_dim: 64,
            kv: Dtype::Bf16,
        });
        Experiment::alone(probe, mode, "attention of decode steps of MLA models")
    };
    let prefill = |(sequences, tokens, q_heads, kv_heads): (u32, u32, u32, u32)| {
        let probe = Probe::PrefillGqa(PrefillGqaShape {
            sequences,
            tokens,
            q_heads,
            kv_heads,
            head_dim: if machine.gpus { 128 } else { 64 },
            kv: Dtype::Bf16,
        });
        Experiment::alone(probe, LaunchMode::Stream, "attention of prefill passes")
    };
    if !machine.gpus {
        return vec![
            [
                (1, 64, 4, 2),
                (1, 512, 4, 2),
                (4, 128, 4, 2),
                (8, 256, 4, 4),
            ]
            .map(gqa)
            .into(),
            [(1, 32, 4, 2), (1, 96, 4, 2)].map(prefill).into(),
        ];
    }
    let mut wide: Vec<Experiment> = [
        (1, 1024, 32, 8),
        (1, 16384, 64, 8),
        (1, 65536, 32, 8),
        (1, 2048, 16, 1),
        (1, 65536, 16, 2),
        (2, 32768, 16, 1),
        (4, 8192, 32, 4),
        (4, 2048, 32, 8),
        (8, 4096, 64, 8),
        (16, 1024, 16, 2),
        (16, 12000, 64, 8),
        (16, 32768, 32, 8),
        (32, 8192, 8, 1),
        (48, 3000, 32, 4),
        (64, 1024, 32, 8),
        (64, 4096, 64, 8),
        (96, 16384, 32, 4),
        (128, 1024, 32, 8),
        (128, 8192, 16, 2),
        (192, 1024, 8, 1),
        (256, 2048, 32, 4),
        (256, 4096, 64, 4),
    ]
    .map(gqa)
    .into();
    wide.extend(
        [(8, 4096, 64, 8), (64, 4096, 32, 8), (128, 1024, 64, 8)].map(|shape| {
            let mut e = gqa(shape);
            if let Probe::DecodeGqa(shape) = &mut e.probe {
                shape.kv = Dtype::Fp8;
            }
            e
        }),
    );
    vec![
        wide,
        [
            (1, 1024, 16),
            (1, 4096, 128),
            (1, 65536, 16),
            (2, 1024, 128),
            (4, 16384, 64),
            (8, 8192, 128),
            (16, 2048, 16),
            (32, 1024, 32),
            (32, 8192, 64),
            (64, 1024, 128),
            (64, 3000, 64),
            (64, 8192, 16),
            (128, 1024, 16),
            (128, 4096, 128),
            (192, 4096, 32),
            (256, 1024, 128),
            (256, 2048, 64),
        ]
        .map(mla)
        .into(),
        [
            (1, 256, 32, 8),
            (1, 512, 32, 8),
            (1, 1024, 64, 8),
            (1, 2048, 64, 8),
            (1, 8192, 32, 8),
            (4, 1024, 32, 8),
            (8, 512, 32, 4),
            (2, 4096, 16, 2),
            (1, 16384, 16, 2),
        ]
        .map(prefill)
        .into(),
    ]
}

/// Experts of the shapes of Qwen3-30B-A3B, DeepSeek-V3 shards and Mixtral; in fp8, on GPUs, of DeepSeek-V3
/// and Qwen3 shards.
pub(super) fn experts(machine: Machine) -> Vec<Vec<Experiment>> {
    let shapes: &[(u32, u32, u32, u32, u32)] = if machine.gpus {
        &[
            (1, 128, 8, 2048, 768),
            (16, 128, 8, 2048, 768),
            (128, 128, 8, 2048, 768),
            (1024, 128, 8, 2048, 768),
            (4096, 128, 8, 2048, 768),
            (4, 64, 4, 2048, 768),
            (64, 64, 4, 2048, 768),
            (8, 128, 8, 4096, 384),
            (32, 128, 8, 4096, 768),
            (192, 128, 8, 4096, 768),
            (2, 128, 8, 7168, 512),
            (48, 128, 8, 7168, 512),
            (16, 32, 8, 7168, 2048),
            (256, 32, 8, 7168, 2048),
            (4, 8, 2, 4096, 3584),
            (64, 8, 2, 4096, 3584),
            (2048, 8, 2, 4096, 3584),
        ]
    } else {
        &[
            (1, 8, 2, 128, 128),
            (8, 8, 2, 128, 128),
            (32, 8, 2, 128, 128),
            (8, 16, 4, 128, 64),
        ]
    };
    let narrow: &[(u32, u32, u32, u32, u32)] = if machine.gpus {
        &[
            (2, 128, 8, 7168, 512),
            (16, 32, 8, 7168, 2048),
            (16, 128, 8, 4096, 768),
            (48, 128, 8, 7168, 512),
            (64, 64, 4, 2048, 768),
            (256, 32, 8, 7168, 2048),
            (1024, 128, 8, 4096, 768),
            (2048, 32, 8, 7168, 2048),
        ]
    } else {
        &[]
    };
    let all = |shapes: &[(u32, u32, u32, u32, u32)], weights: Dtype| -> Vec<Experiment> {
        shapes
            .iter()
            .map(|&(tokens, experts, top_k, hidden, intermediate)| {
                let probe = Probe::Experts(ExpertsShape {
                    tokens,
                    experts,
                    top_k,
                    hidden,
                    intermediate,
                    weights,
                });
                Experiment::alone(probe, replay(machine), "routed experts")
            })
            .collect()
    };
    vec![all(shapes, Dtype::Bf16), all(narrow, Dtype::Fp8)]
}
