//! The plan file, and which part of it fits this machine.

use std::path::Path;

use parplan_executor::stack::StackLayout;
use parplan_executor::{Error, Result};
use parplan_planner::launch::LaunchSpec;
use parplan_profiles::library::{MAX_PROFILE_BYTES, read_limited};

/// Reads a plan.
///
/// # Errors
/// [`Error::Unusable`] for a file that cannot be read or is no plan.
pub fn read(path: &Path) -> Result<LaunchSpec> {
    let text = read_limited(path, MAX_PROFILE_BYTES).map_err(|e| Error::Unusable(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| {
        Error::Unusable(format!(
            "{}: is no plan of the builtin executor ({e}); `parplan launch --engine builtin` writes one",
            path.display()
        ))
    })
}

/// The layout of one replica's pipeline stage.
///
/// # Errors
/// [`Error::Unusable`] for sizes that are 0, or do not divide each other.
pub fn layout(launch: &LaunchSpec) -> Result<StackLayout> {
    let l = &launch.layout;
    let sizes = [l.tp, l.attention_dp, l.dcp, l.ep, l.pp, l.replicas];
    if sizes.contains(&0) {
        return Err(Error::Unusable(format!(
            "the plan's layout has a size of 0: {l:?}"
        )));
    }
    let layout = StackLayout {
        tp: l.tp as usize,
        attn_dp: l.attention_dp as usize,
        dcp: l.dcp as usize,
        ep: l.ep as usize,
    };
    layout.check("the plan's layout")?;
    Ok(layout)
}

/// The ranks at hand: all of a stage, or the `ranks` that were asked for.
///
/// # Errors
/// [`Error::Unusable`] where there are too few GPUs, saying how many are needed and how a
/// part of the plan can be run.
pub fn here(
    launch: &LaunchSpec,
    real: &StackLayout,
    ranks: Option<usize>,
    gpus: Option<usize>,
) -> Result<StackLayout> {
    let gpus = gpus.unwrap_or(usize::MAX);
    match ranks {
        Some(n) if n == 0 || n > real.tp => Err(Error::Unusable(format!(
            "--ranks {n}: 1 to {} ranks are a part of this plan",
            real.tp
        ))),
        Some(n) if n > gpus => Err(Error::Unusable(format!(
            "--ranks {n}: this machine has {gpus} GPUs"
        ))),
        Some(n) => part(real, n).ok_or_else(|| {
            Error::Unusable(format!(
                "--ranks {n} are no part of {real}: a number that divides attention tp {}, or a multiple of it that divides tp, is right",
                real.attn_tp()
            ))
        }),
        None if real.tp > gpus => {
            let l = &launch.layout;
            let most = (1..=gpus).rev().find(|n| part(real, *n).is_some()).unwrap_or(1);
            Err(Error::Unusable(format!(
                "the plan needs {} GPUs (tp {} · pp {} · replicas {}), one stage of it {}, this machine has {gpus}; --ranks {most} runs the shapes of {most} of its ranks (as `parplan run stack --as-shard-of {real}` does)",
                l.gpus(),
                l.tp,
                l.pp,
                l.replicas,
                real.tp
            )))
        }
        None => Ok(*real),
    }
}

/// The first `n` ranks of a layout: ranks of one attention-TP group, or whole groups.
fn part(real: &StackLayout, n: usize) -> Option<StackLayout> {
    let attn_tp = real.attn_tp();
    let (here_tp, attn_dp) = if attn_tp.is_multiple_of(n) {
        (n, 1)
    } else if n.is_multiple_of(attn_tp) && real.attn_dp.is_multiple_of(n / attn_tp) {
        (attn_tp, n / attn_tp)
    } else {
        return None;
    };
    // Of the experts' ranks those that are at hand, as far as they divide evenly.
    let ep = (1..=real.ep.min(n))
        .rev()
        .find(|e| real.ep.is_multiple_of(*e) && n.is_multiple_of(*e))?;
    Some(StackLayout {
        tp: n,
        attn_dp,
        dcp: if here_tp.is_multiple_of(real.dcp) {
            real.dcp
        } else {
            1
        },
        ep,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use parplan_planner::layout::Layout;

    fn launch(tp: u32, attention_dp: u32, dcp: u32, ep: u32) -> LaunchSpec {
        let layout = Layout {
            replicas: 1,
            tp,
            attention_dp,
            dcp,
            ep,
            pp: 1,
            nodes: 1,
        };
        LaunchSpec::new("llama-3.1-8b", layout, 8)
    }

    #[test]
    fn a_part_is_ranks_of_one_group_or_whole_groups() {
        let real = layout(&launch(8, 4, 2, 8)).unwrap();
        let of = |n| part(&real, n).map(|l| (l.tp, l.attn_dp, l.dcp, l.ep));
        assert_eq!(of(1), Some((1, 1, 1, 1)));
        assert_eq!(of(2), Some((2, 1, 2, 2)));
        assert_eq!(of(4), Some((4, 2, 2, 4)));
        assert_eq!(of(8), Some((8, 4, 2, 8)));
        assert_eq!(of(3), None);
    }

    #[test]
    fn too_few_gpus_are_refused_with_what_can_be_run() {
        let plan = launch(8, 4, 1, 8);
        let real = layout(&plan).unwrap();
        let error = here(&plan, &real, None, Some(3)).unwrap_err().to_string();
        assert!(
            error.contains("needs 8 GPUs")
                && error.contains("has 3")
                && error.contains("--ranks 2"),
            "{error}"
        );
        assert_eq!(here(&plan, &real, None, None).unwrap(), real);
        assert!(here(&plan, &real, Some(4), Some(3)).is_err());
        assert!(here(&plan, &real, Some(0), None).is_err());
        assert!(here(&plan, &real, Some(16), None).is_err());
        assert_eq!(here(&plan, &real, Some(2), Some(3)).unwrap().tp, 2);
    }

    #[test]
    fn sizes_that_do_not_divide_are_those_of_the_plan() {
        let error = layout(&launch(8, 3, 1, 1)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(
            error.to_string(),
            "the plan's layout: attn-dp 3 does not divide tp 8"
        );
    }

    #[test]
    fn what_is_no_plan_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.json");
        std::fs::write(&file, "{\"model\": 3}").unwrap();
        let error = read(&file).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("is no plan"), "{error}");
        let plan = launch(2, 1, 1, 1);
        std::fs::write(&file, serde_json::to_string(&plan).unwrap()).unwrap();
        assert_eq!(read(&file).unwrap(), plan);
        assert!(read(&folder.path().join("none.json")).is_err());
    }
}
