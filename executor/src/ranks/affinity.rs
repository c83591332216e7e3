//! Ranks of one machine on cores of their own.
//!
//! Ranks wake each other over TCP, and a scheduler likes to put a process beside the one
//! that woke it: on the other thread of the same core, where both launch more slowly.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Whether this process has CPUs that no other rank uses.
static OWN_CORES: AtomicBool = AtomicBool::new(false);

/// Whether [`take_share`] gave this process CPUs that no other rank of this machine uses.
#[must_use]
pub fn has_own_cores() -> bool {
    OWN_CORES.load(Ordering::Relaxed)
}

/// Keeps this process to its share of the cores that it may use. Where that is not to be
/// known or not allowed it goes on as it is: placement changes speed, not results.
pub fn take_share(local_rank: usize, local_world: usize) {
    let this = Pid::from_raw(0);
    let Ok(allowed) = sched_getaffinity(this) else {
        return;
    };
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|c| allowed.is_set(*c).unwrap_or(false))
        .collect();
    let siblings = |cpu: usize| {
        std::fs::read_to_string(format!(
            "/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        ))
        .ok()
        .and_then(|text| text.trim().split(['-', ',']).next()?.parse().ok())
        .unwrap_or(cpu)
    };
    let mut set = CpuSet::new();
    let mine = share(&cpus, siblings, local_rank, local_world);
    let apart = local_world == 1 || mine.len() < cpus.len();
    for cpu in mine {
        if set.set(cpu).is_err() {
            return;
        }
    }
    // Refused by a container's rules, perhaps; see above.
    let taken = sched_setaffinity(this, &set).is_ok();
    OWN_CORES.store(taken && apart, Ordering::Relaxed);
}

/// CPUs of one rank: whole cores, contiguous, as many for each rank. `first_of` gives the
/// first CPU of the core that a CPU is a thread of. All CPUs where ranks outnumber cores.
fn share(
    cpus: &[usize],
    first_of: impl Fn(usize) -> usize,
    rank: usize,
    ranks: usize,
) -> Vec<usize> {
    let mut cores: Vec<usize> = cpus.iter().map(|c| first_of(*c)).collect();
    cores.sort_unstable();
    cores.dedup();
    let each = cores.len() / ranks.max(1);
    if each == 0 {
        return cpus.to_vec();
    }
    let mine = &cores[rank * each..(rank + 1) * each];
    cpus.iter()
        .copied()
        .filter(|c| mine.contains(&first_of(*c)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_a_core_stay_together_and_ranks_apart() {
        let cpus: Vec<usize> = (0..8).collect();
        // Threads i and i + 4 of a core; then 2i and 2i + 1.
        assert_eq!(share(&cpus, |c| c % 4, 0, 2), [0, 1, 4, 5]);
        assert_eq!(share(&cpus, |c| c % 4, 1, 2), [2, 3, 6, 7]);
        assert_eq!(share(&cpus, |c| c / 2 * 2, 1, 2), [4, 5, 6, 7]);
        assert_eq!(share(&cpus, |c| c, 2, 3), [4, 5]);
    }

    #[test]
    fn more_ranks_than_cores_share_everything() {
        assert_eq!(share(&[0, 1], |c| c, 5, 16), [0, 1]);
    }
}
