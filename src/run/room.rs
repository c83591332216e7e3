//! Whether a job fits the memory of this machine, before any rank is started.

use crate::render::number;
use parplan_executor::jobs::{Backend, Job, Work};
use parplan_executor::probes;
use parplan_executor::{Error, Result};

/// Refuses a job of `world` ranks, `ranks` of them here, whose buffers are larger than the memory that is
/// there. Activations, results and libraries come on top, so that what passes may still not fit.
///
/// # Errors
/// [`Error::Unusable`] with what it takes, what there is, and what would make it smaller.
pub(super) fn check(job: &Job, ranks: usize, world: usize) -> Result<()> {
    let (there, sharing, whose) = match job.backend {
        Backend::Cpu => (probes::available_memory(), ranks, "free here"),
        Backend::Nccl | Backend::Peer => {
            let total = probes::survey(true, 1).ok().map(|found| found.memory_bytes);
            // Ranks may share GPUs, for checks.
            let gpus = parplan_executor::cuda::device_count().unwrap_or(1).max(1);
            (total, ranks.div_ceil(gpus), "on each GPU")
        }
    };
    let Some(there) = there.filter(|bytes| *bytes > 0) else {
        return Ok(());
    };
    let each = job.work.least_bytes(world);
    let needed = each.saturating_mul(sharing as u64);
    if needed <= there {
        return Ok(());
    }
    if let Work::Stack(stack) = &job.work {
        let weights = stack.spec.weight_bytes();
        let cache = stack.spec.cache_bytes(&stack.steps);
        let layers = stack.spec.layers.len();
        return refuse(weights, cache, sharing, there, whose, layers);
    }
    Err(Error::Unusable(format!(
        "{} of buffers a rank{}, and {} are {whose}; {}",
        gib(each as f64),
        of_all(needed as f64, sharing),
        gib(there as f64),
        match job.work {
            Work::Collectives(_) => "give smaller --sizes",
            Work::Gather(_) => "give fewer --requests or a smaller --hidden",
            _ => "give a shorter --context, a smaller --batch or a smaller --page",
        }
    )))
}

fn gib(bytes: f64) -> String {
    format!("{:.1} GiB", bytes / (1u64 << 30) as f64)
}

/// What several ranks need together.
fn of_all(needed: f64, ranks: usize) -> String {
    match ranks {
        1 => String::new(),
        ranks => format!(", {} for {ranks} ranks", gib(needed)),
    }
}

fn refuse(
    weights: usize,
    cache: usize,
    sharing: usize,
    there: u64,
    whose: &str,
    layers: usize,
) -> Result<()> {
    let needed = weights.saturating_add(cache).saturating_mul(sharing);
    if needed as u64 <= there {
        return Ok(());
    }
    let all = of_all(needed as f64, sharing);
    let share = there as f64 / needed.max(1) as f64;
    let fit = (share * layers as f64).floor();
    let way_out = match fit >= 1.0 {
        true => format!(
            "--layers {fit:.0} would fit, and so do fewer requests, a shorter context or a larger --scale where there are those options"
        ),
        false => {
            "give fewer requests, a shorter context, or more ranks for each of them to hold less"
                .to_owned()
        }
    };
    Err(Error::Unusable(format!(
        "{}: {} of weights and {} of KV cache a rank{all}, and {} are {whose}; {way_out}",
        number::counted(layers as f64, "layer"),
        gib(weights as f64),
        gib(cache as f64),
        gib(there as f64),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = 1 << 30;

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        assert!(refuse(4 * GIB, GIB, 2, 10 << 30, "free here", 8).is_ok());
        let why = refuse(40 * GIB, GIB, 2, 12 << 30, "free here", 8);
        let why = why.unwrap_err().to_string();
        for part in [
            "8 layers: 40.0 GiB of weights and 1.0 GiB",
            "82.0 GiB for 2 ranks",
            "12.0 GiB are free here",
            "--layers 1 would fit",
        ] {
            assert!(why.contains(part), "{why}");
        }
        let why = refuse(GIB, 40 * GIB, 1, 12 << 30, "on each GPU", 8).unwrap_err();
        assert!(why.to_string().contains("--layers 2 would fit"), "{why}");
        let why = refuse(40 * GIB, GIB, 1, 12 << 30, "on each GPU", 2).unwrap_err();
        let why = why.to_string();
        assert!(
            why.contains("fewer requests") && !why.contains("--layers"),
            "{why}"
        );
    }
}
