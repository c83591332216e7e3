//! The default set: experiments that pin down the figures of every class on a machine.

use parplan_profiles::Dtype;
use parplan_profiles::calibration::{
    BufferRegistration, Class, CollectiveKind, DecodeGqaShape, DecodeMlaShape, Experiment,
    ExpertsShape, LaunchMode, PrefillGqaShape, Probe, SyncWay,
};

/// What a machine has to measure on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Ranks that can be measured together.
    pub ranks: u32,
    /// They are GPUs; otherwise processes on a CPU, with smaller shapes.
    pub gpus: bool,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The default experiments, those that decide most first: classes take turns, and within a class sizes
/// go from the ends of the range inwards, so that a set that the budget cuts still spans every class.
pub fn default_set(machine: Machine) -> Vec<Experiment> {
    let mut classes = Vec::new();
    if machine.gpus {
        // First of all, while nothing else is allocated.
        classes.push(vec![
            Experiment::alone(
                Probe::UsableMemory,
                LaunchMode::Stream,
                "how many tokens the KV cache holds",
            ),
            Experiment::alone(
                Probe::GraphMemory { nodes: 500 },
                LaunchMode::Stream,
                "memory of captured graphs",
            ),
        ]);
    }
    classes.extend([memory(machine), kernels(machine)]);
    classes.extend(gemm(machine));
    classes.extend(attention(machine));
    classes.push(experts(machine));
    for ranks in rank_counts(machine) {
        let of_count = Machine { ranks, ..machine };
        classes.extend(collectives(of_count));
        if machine.gpus {
            classes.extend(peers(of_count));
        }
    }
    if machine.ranks > 1 {
        classes.push(syncs(machine));
    }
    in_turns(classes.into_iter().map(ends_first).collect())
}

/// Rank counts that are measured together: 2, 4 and 8 as far as the ranks go, and all of them. The first
/// of 8 ranks stand for 2 and 4 of them: through a switch all pairs are alike.
fn rank_counts(machine: Machine) -> Vec<u32> {
    let mut counts: Vec<u32> = [2, 4, 8]
        .into_iter()
        .filter(|count| *count < machine.ranks && machine.gpus)
        .collect();
    if machine.ranks > 1 {
        counts.push(machine.ranks);
    }
    counts
}

/// The launch mode in which decode runs.
fn replay(machine: Machine) -> LaunchMode {
    if machine.gpus {
        LaunchMode::Graph
    } else {
        LaunchMode::Stream
    }
}

/// One of each list, then the next of each.
fn in_turns(lists: Vec<Vec<Experiment>>) -> Vec<Experiment> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest)
        .flat_map(|at| lists.iter().filter_map(move |list| list.get(at).cloned()))
        .collect()
}

/// First, last, then halfway between what is taken already.
fn ends_first(list: Vec<Experiment>) -> Vec<Experiment> {
    let n = list.len();
    let mut order: Vec<usize> = Vec::with_capacity(n);
    let mut take = |at: usize| {
        if at < n && !order.contains(&at) {
            order.push(at);
        }
    };
    take(0);
    take(n.saturating_sub(1));
    let mut step = n.next_power_of_two();
    while step > 1 {
        step /= 2;
        for at in (0..n).step_by(step) {
            take(at);
        }
    }
    order
        .into_iter()
        .filter_map(|at| list.get(at).cloned())
        .collect()
}

fn memory(machine: Machine) -> Vec<Experiment> {
    // Past every cache: 50 MiB of L2 on a Hopper GPU, some hundred MiB of L3 on a server CPU.
    let sizes: &[u64] = if machine.gpus {
        &[128 * MIB, 512 * MIB, 2048 * MIB]
    } else {
        &[4 * MIB, 16 * MIB, 64 * MIB]
    };
    let decides = "memory-bound kernels, and every engine's by the ratio to the tables' machines";
    let alone = |probe| Experiment::alone(probe, LaunchMode::Stream, decides);
    sizes
        .iter()
        .flat_map(|&bytes| {
            [
                alone(Probe::MemoryRead { bytes }),
                alone(Probe::MemoryCopy { bytes }),
            ]
        })
        .collect()
}

fn kernels(machine: Machine) -> Vec<Experiment> {
    let probe = Probe::Kernels { nodes: 200 };
    let mut out = vec![Experiment::alone(
        probe,
        LaunchMode::Stream,
        "eager steps that the host paces",
    )];
    if machine.gpus {
        out.push(Experiment::alone(
            probe,
            LaunchMode::Graph,
            "small kernels of replayed graphs",
        ));
    }
    out
}

/// Products of the shapes that decoder layers have: projections of 4096 to 8192 wide models and their
/// shards, at decode and prefill row counts.
fn gemm(machine: Machine) -> Vec<Vec<Experiment>> {
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

fn attention(machine: Machine) -> Vec<Vec<Experiment>> {
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

/// Experts of the shapes of Qwen3-30B-A3B, DeepSeek-V3 shards and Mixtral.
fn experts(machine: Machine) -> Vec<Experiment> {
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
    shapes
        .iter()
        .map(|&(tokens, experts, top_k, hidden, intermediate)| {
            let probe = Probe::Experts(ExpertsShape {
                tokens,
                experts,
                top_k,
                hidden,
                intermediate,
                weights: Dtype::Bf16,
            });
            Experiment::alone(probe, replay(machine), "routed experts")
        })
        .collect()
}

fn collectives(machine: Machine) -> Vec<Vec<Experiment>> {
    let sizes: &[u64] = if machine.gpus {
        &[
            KIB,
            16 * KIB,
            64 * KIB,
            256 * KIB,
            MIB,
            4 * MIB,
            16 * MIB,
            128 * MIB,
        ]
    } else {
        &[KIB, 32 * KIB, 256 * KIB, MIB, 4 * MIB]
    };
    let one = |collective, bytes, registration, in_place, launch| Experiment {
        ranks: machine.ranks,
        launch,
        decides: "layouts that split layers over ranks".to_owned(),
        probe: Probe::Collective {
            collective,
            bytes,
            registration,
            in_place,
        },
    };
    let mut out = Vec::new();
    for kind in CollectiveKind::ALL {
        let mut ordinary: Vec<Experiment> = sizes
            .iter()
            .map(|&bytes| {
                one(
                    kind,
                    bytes,
                    BufferRegistration::None,
                    false,
                    replay(machine),
                )
            })
            .collect();
        if machine.gpus {
            for bytes in [16 * KIB, MIB] {
                ordinary.push(one(
                    kind,
                    bytes,
                    BufferRegistration::None,
                    false,
                    LaunchMode::Stream,
                ));
            }
            if kind != CollectiveKind::AllToAll {
                ordinary.push(one(
                    kind,
                    MIB,
                    BufferRegistration::None,
                    true,
                    LaunchMode::Graph,
                ));
            }
        }
        out.push(ordinary);
        if machine.gpus && kind != CollectiveKind::AllToAll {
            out.push(
                sizes
                    .iter()
                    .map(|&bytes| {
                        one(
                            kind,
                            bytes,
                            BufferRegistration::Symmetric,
                            false,
                            LaunchMode::Graph,
                        )
                    })
                    .collect(),
            );
        }
    }
    out
}

fn peers(machine: Machine) -> Vec<Vec<Experiment>> {
    let one = |collective, two_shot, bytes| Experiment {
        ranks: machine.ranks,
        launch: LaunchMode::Graph,
        decides: "small sums and gathers by parplan's own kernels".to_owned(),
        probe: Probe::PeerCollective {
            collective,
            two_shot,
            bytes,
            in_place: false,
        },
    };
    let exchange = |merge, rows, dim| Experiment {
        ranks: machine.ranks,
        launch: LaunchMode::Graph,
        decides: "decode context parallelism by parplan's own kernels".to_owned(),
        probe: Probe::PeerExchange { merge, rows, dim },
    };
    let mut out: Vec<Vec<Experiment>> = [
        (CollectiveKind::AllReduce, false),
        (CollectiveKind::AllReduce, true),
        (CollectiveKind::AllGather, false),
    ]
    .map(|(kind, two_shot)| {
        [KIB, 16 * KIB, 64 * KIB, 256 * KIB]
            .map(|bytes| one(kind, two_shot, bytes))
            .into()
    })
    .into();
    // Rows of grouped queries, of one token to many, and latent ones.
    for (merge, latent) in [(false, 576), (true, 512)] {
        let rows = [32, 256, 1024, 4096].map(|rows| exchange(merge, rows, 128));
        let latent = [64, 1024, 4096].map(|rows| exchange(merge, rows, latent));
        out.push(rows.into_iter().chain(latent).collect());
    }
    out
}

fn syncs(machine: Machine) -> Vec<Experiment> {
    let mut ways = vec![SyncWay::HostTcp];
    if machine.gpus {
        ways.extend([SyncWay::DeviceAllReduce, SyncWay::DeviceAllGather]);
    }
    ways.into_iter()
        .map(|way| Experiment {
            ranks: machine.ranks,
            launch: LaunchMode::Stream,
            decides: "attention DP: its exchange of batch shapes before a step".to_owned(),
            probe: Probe::MetadataSync { way },
        })
        .collect()
}

/// Classes of a list, each once, in order of appearance.
pub fn classes(experiments: &[Experiment]) -> Vec<Class> {
    let mut out = Vec::new();
    for class in experiments.iter().map(Class::of) {
        if !out.contains(&class) {
            out.push(class);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_experiment_is_listed_twice_and_a_cut_set_still_spans_the_classes() {
        for machine in [
            Machine {
                ranks: 1,
                gpus: true,
            },
            Machine {
                ranks: 2,
                gpus: true,
            },
            Machine {
                ranks: 8,
                gpus: true,
            },
            Machine {
                ranks: 2,
                gpus: false,
            },
        ] {
            let set = default_set(machine);
            for (at, e) in set.iter().enumerate() {
                assert!(!set[at + 1..].iter().any(|other| other.same(e)), "{e}");
                let counts = [1, 2, 4, 8];
                assert!(counts.contains(&e.ranks) && e.ranks <= machine.ranks);
                assert!(!e.decides.is_empty());
                assert!(machine.gpus || e.launch == LaunchMode::Stream, "{e}");
            }
            let all = classes(&set).len();
            let third = classes(&set[..set.len() / 3]).len();
            assert!(third * 10 >= all * 8, "{third} of {all}");
        }
    }
}
