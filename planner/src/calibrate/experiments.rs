//! The default set: experiments that pin down the figures of every class on a machine.

mod layer;
mod shared;

use layer::{attention, experts, gemm};
use parplan_profiles::calibration::{Experiment, LaunchMode, Probe};
use shared::{collectives, peers, syncs};

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
    classes.extend(experts(machine));
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
    // On a GPU past its L2, 50 MiB on Hopper; on a CPU sizes that its L3 may hold.
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

#[cfg(test)]
mod tests {
    use super::*;
    use parplan_profiles::calibration::Class;

    /// Classes of a list, each once, in order of appearance.
    fn classes(experiments: &[Experiment]) -> Vec<Class> {
        let mut out = Vec::new();
        for class in experiments.iter().map(Class::of) {
            if !out.contains(&class) {
                out.push(class);
            }
        }
        out
    }

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
