//! Which stacks are run: workloads drawn by a seed, each in several configurations.

use super::case::{Case, CaseSpec};
use crate::args::VerifyArgs;
use crate::failure::Failure;
use parplan_executor::gather::Mode;
use parplan_executor::jobs::Backend;
use parplan_executor::stack::{BlockSpec, DcpMerge, Phase, StackLayout, StepSpec};
use parplan_profiles::Library;

/// Stacks of one model that run the same workloads.
pub struct Group {
    /// The stacks, each with its steps: one a workload.
    pub stacks: Vec<(Case, Vec<StepSpec>)>,
}

/// Models that stacks are drawn from: grouped-query and latent attention, dense and with experts.
const MODELS: [&str; 6] = [
    "qwen3-8b",
    "qwen3-30b-a3b",
    "llama-3.1-70b",
    "deepseek-v3",
    "qwen3-32b",
    "qwen3-235b-a22b",
];

/// Workloads of a group: requests of all ranks, and their context.
const WORKLOADS: usize = 2;
/// Configurations that a group's workloads run in.
const CONFIGURATIONS: usize = 4;

/// Shares of a GPU's memory that weights, and the cache, of a stack may take.
const WEIGHTS: f64 = 0.6;
const CACHE: f64 = 0.15;

/// What stacks run on.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// GPUs, or processes on a CPU with smaller models.
    pub backend: Backend,
    /// Ranks at hand.
    pub ranks: usize,
    /// Memory of a GPU.
    pub memory: f64,
    /// How DCP merges.
    pub merge: DcpMerge,
}

/// Uniform draws (Knuth's MMIX generator).
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.below(of.len())).copied()
    }

    /// Fisher and Yates.
    fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at + 1));
        }
    }
}

/// Groups enough for the steps that are asked for, and more where stacks should not fit, in the order
/// of the draw.
///
/// # Errors
/// No model of the list that this machine's ranks can run.
pub fn groups(library: &Library, args: &VerifyArgs, room: Room) -> Result<Vec<Group>, Failure> {
    let mut draws = Draws(args.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1);
    let names: Vec<&str> = match args.models.as_slice() {
        [] => MODELS.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    for name in &names {
        library.model(name)?;
    }
    let mut out: Vec<Group> = Vec::new();
    let wanted = (args.steps as usize).div_ceil(WORKLOADS).max(names.len());
    for attempt in 0..wanted * 8 {
        if out.len() >= wanted {
            break;
        }
        let name = names[attempt % names.len()];
        out.extend(draw(&mut draws, library, name, room));
    }
    if out.is_empty() {
        return Err(Failure::failed(format!(
            "none of {} runs on {} ranks of this backend",
            names.join(", "),
            room.ranks
        )));
    }
    Ok(out)
}

/// Every layout of `tp` ranks.
fn layouts(tp: usize, experts: bool) -> Vec<StackLayout> {
    let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let mut out = Vec::new();
    for attn_dp in divisors(tp) {
        for dcp in divisors(tp / attn_dp) {
            for ep in divisors(if experts { tp } else { 1 }) {
                out.push(StackLayout {
                    tp,
                    attn_dp,
                    dcp,
                    ep,
                });
            }
        }
    }
    out
}

/// A model, two workloads, and the configurations that run them.
fn draw(draws: &mut Draws, library: &Library, name: &str, room: Room) -> Option<Group> {
    let cpu = room.backend == Backend::Cpu;
    let depth = library.model(name).ok()?.layers.len();
    let named = |shard_of: StackLayout, symmetric: bool, merge: DcpMerge| CaseSpec {
        model: name.to_owned(),
        scale: if cpu { 16 } else { 1 },
        layers: if cpu { 1 } else { 3 }.max(depth.min(3)),
        here: if room.ranks > 1 {
            shard_of
        } else {
            StackLayout::ONE
        },
        shard_of,
        symmetric,
        dcp_merge: merge,
    };
    let one = named(StackLayout::ONE, false, room.merge)
        .resolve(library)
        .ok()?;
    let experts = one
        .spec
        .layers
        .iter()
        .any(|layer| matches!(layer.block, BlockSpec::Moe { .. }));
    // Whole layouts of the ranks at hand; of a single rank the shapes of larger ones, whose DCP it
    // could not run.
    let mut all: Vec<StackLayout> = if room.ranks > 1 {
        layouts(room.ranks, experts)
    } else {
        let sizes = [1, 2, 4, 8].into_iter();
        let sizes = sizes.flat_map(|tp| layouts(tp, experts));
        sizes.filter(|layout| layout.dcp == 1).collect()
    };
    draws.shuffle(&mut all);
    let mut configurations: Vec<(StackLayout, bool)> = Vec::new();
    for (at, layout) in all.into_iter().enumerate() {
        let both = !cpu && room.ranks > 1;
        let symmetric = both && draws.below(2) == 1;
        configurations.push((layout, symmetric));
        // The first layout with and without symmetric memory.
        if at == 0 && both {
            configurations.push((layout, !symmetric));
        }
    }
    let workloads = workloads(draws, room)?;
    let mut stacks: Vec<(Case, Vec<StepSpec>)> = Vec::new();
    for (layout, symmetric) in configurations {
        if stacks.len() >= CONFIGURATIONS {
            break;
        }
        // As plans merge, or by the fused kernels.
        let merge = match draws.below(2) {
            0 if layout.dcp > 1 && !cpu => DcpMerge::Peer,
            _ => room.merge,
        };
        let Ok(case) = named(layout, symmetric, merge).resolve(library) else {
            continue;
        };
        let steps: Vec<StepSpec> = workloads
            .iter()
            .filter(|(requests, _)| requests.is_multiple_of(layout.attn_dp))
            .filter(|(requests, context)| {
                let cache = requests / layout.attn_dp * context * case.spec.cache_bytes_per_token();
                cpu || cache as f64 <= CACHE * room.memory
            })
            .map(|&(requests, context)| StepSpec {
                requests: vec![requests / layout.attn_dp; case.named.here.attn_dp],
                q_tokens: 1,
                context,
                phase: Phase::Decode,
                mode: Mode::MaxLen,
            })
            .collect();
        let fits = cpu || case.spec.weight_bytes() as f64 <= WEIGHTS * room.memory;
        if fits && !steps.is_empty() {
            stacks.push((case, steps));
        }
    }
    (!stacks.is_empty()).then_some(Group { stacks })
}

/// Requests of all ranks together, and cached tokens of each.
fn workloads(draws: &mut Draws, room: Room) -> Option<Vec<(usize, usize)>> {
    let cpu = room.backend == Backend::Cpu;
    let batches: &[usize] = if cpu {
        &[2, 4]
    } else {
        &[1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256]
    };
    let contexts: &[usize] = if cpu {
        &[32, 64, 128]
    } else {
        &[1024, 2048, 3000, 4096, 8192, 12_000, 16_384, 32_768, 65_536]
    };
    let mut out: Vec<(usize, usize)> = Vec::new();
    for _ in 0..64 {
        if out.len() >= WORKLOADS {
            break;
        }
        let workload = (draws.pick(batches)?, draws.pick(contexts)?);
        // Of the largest, no layout could hold the cache.
        let fits = workload.0 * workload.1 <= room.ranks * (1 << 21);
        if fits && !out.contains(&workload) {
            out.push(workload);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: VerifyArgs,
    }

    fn drawn(ranks: usize, seed: &str) -> Vec<Group> {
        let line = Line::parse_from(["verify", "--steps", "96", "--seed", seed]);
        let room = Room {
            backend: Backend::Nccl,
            ranks,
            memory: 141e9,
            merge: DcpMerge::AllToAll,
        };
        groups(&Library::embedded(), &line.args, room).unwrap()
    }

    #[test]
    fn every_seed_draws_workloads_in_several_configurations() {
        for seed in ["1", "7", "23"] {
            for ranks in [2, 4] {
                let groups = drawn(ranks, seed);
                let several = |g: &&Group| g.stacks.len() >= 2;
                assert!(groups.iter().take(12).filter(several).count() >= 10);
                let stacks = || groups.iter().take(12).flat_map(|g| &g.stacks);
                assert!(stacks().any(|(c, _)| c.named.symmetric));
                assert!(stacks().any(|(c, _)| !c.named.symmetric));
                assert!(stacks().any(|(c, _)| c.spec.here.attn_dp > 1));
                assert!(stacks().any(|(c, _)| c.spec.here.dcp > 1));
                assert!(stacks().any(|(c, _)| c.spec.here.ep > 1));
                for (case, steps) in stacks() {
                    assert_eq!(case.spec.here.tp, ranks);
                    assert!(case.spec.weight_bytes() as f64 <= 0.6 * 141e9);
                    assert!(
                        steps
                            .iter()
                            .all(|s| s.requests.len() == case.spec.here.attn_dp)
                    );
                }
            }
            let alone = drawn(1, seed);
            let mut shards = alone.iter().flat_map(|g| &g.stacks);
            assert!(shards.any(|(c, _)| c.spec.shard_of.tp == 8 && c.spec.here.tp == 1));
        }
    }

    #[test]
    fn a_seed_draws_the_same_again() {
        let list = |groups: Vec<Group>| -> Vec<(CaseSpec, Vec<StepSpec>)> {
            let stacks = groups.into_iter().flat_map(|g| g.stacks);
            stacks.map(|(case, steps)| (case.named, steps)).collect()
        };
        assert_eq!(list(drawn(2, "3")), list(drawn(2, "3")));
        assert_ne!(list(drawn(2, "3")), list(drawn(2, "4")));
    }
}
