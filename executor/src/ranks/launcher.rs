//! Ranks that torchrun, srun or mpirun started: who they are is in the environment.

use super::Identity;
use crate::{Error, Result};

/// A launcher whose variables are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// PyTorch's `torchrun`.
    Torchrun,
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// Hydra (`mpiexec` of MPICH and Intel MPI).
    Hydra,
    /// Slurm's `srun`.
    Slurm,
}

struct Names {
    launcher: Launcher,
    /// Set by this launcher and by no other.
    marker: &'static str,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static str,
    local_world: &'static str,
}

/// In order of preference: `srun` may start `mpirun`, which may start `torchrun`; the
/// innermost one knows.
const LAUNCHERS: [Names; 4] = [
    Names {
        launcher: Launcher::Torchrun,
        marker: "TORCHELASTIC_RUN_ID",
        rank: "RANK",
        world: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_world: "LOCAL_WORLD_SIZE",
    },
    Names {
        launcher: Launcher::OpenMpi,
        marker: "OMPI_COMM_WORLD_RANK",
        rank: "OMPI_COMM_WORLD_RANK",
        world: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world: "OMPI_COMM_WORLD_LOCAL_SIZE",
    },
    Names {
        launcher: Launcher::Hydra,
        marker: "MPI_LOCALRANKID",
        rank: "PMI_RANK",
        world: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_world: "MPI_LOCALNRANKS",
    },
    // Last, and only inside a job step: a plain shell in an allocation has
    // SLURM_PROCID too, but no step's task count.
    Names {
        launcher: Launcher::Slurm,
        marker: "SLURM_STEP_NUM_TASKS",
        rank: "SLURM_PROCID",
        world: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
        local_world: "SLURM_STEP_TASKS_PER_NODE",
    },
];

/// Who this process is by its launcher's environment; `None` when no launcher set it.
/// Environment is looked up through `get`, so that tests need not change their own.
///
/// # Errors
/// [`Error::Unusable`] naming the variable that is missing, no number, or out of range.
pub fn from_environment(
    get: impl Fn(&str) -> Option<String>,
) -> Result<Option<(Launcher, Identity)>> {
    let Some(names) = LAUNCHERS.iter().find(|n| get(n.marker).is_some()) else {
        return Ok(None);
    };
    let number = |name: &str| -> Result<usize> {
        let text = get(name).ok_or_else(|| {
            Error::Unusable(format!(
                "{} set {} but not {name}",
                launcher_name(names.launcher),
                names.marker
            ))
        })?;
        // Slurm writes "4(x2)" where several nodes have 4 tasks, "4,2" where they differ;
        // only the first figure is needed, to check a local rank against it.
        let digits = text.split(['(', ',']).next().unwrap_or(&text);
        digits
            .parse()
            .map_err(|_| Error::Unusable(format!("{name} is '{text}', it must be a number")))
    };
    let identity = Identity {
        rank: number(names.rank)?,
        world: number(names.world)?,
        local_rank: number(names.local_rank)?,
        local_world: number(names.local_world)?,
    };
    if identity.rank >= identity.world {
        return Err(Error::Unusable(format!(
            "{} is {}, with {} = {} it must be below {}",
            names.rank, identity.rank, names.world, identity.world, identity.world
        )));
    }
    Ok(Some((names.launcher, identity)))
}

fn launcher_name(launcher: Launcher) -> &'static str {
    match launcher {
        Launcher::Torchrun => "torchrun",
        Launcher::OpenMpi => "mpirun (Open MPI)",
        Launcher::Hydra => "mpiexec (Hydra)",
        Launcher::Slurm => "srun",
    }
}

impl std::fmt::Display for Launcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(launcher_name(*self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(vars: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        }
    }

    fn is(rank: usize, world: usize, local_rank: usize, local_world: usize) -> Identity {
        Identity {
            rank,
            world,
            local_rank,
            local_world,
        }
    }

    #[test]
    fn each_launcher_is_recognised() {
        let torch = [
            ("TORCHELASTIC_RUN_ID", "x"),
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
        ];
        assert_eq!(
            from_environment(env(&torch)).unwrap(),
            Some((Launcher::Torchrun, is(5, 8, 1, 4)))
        );
        let ompi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(
            from_environment(env(&ompi)).unwrap(),
            Some((Launcher::OpenMpi, is(1, 2, 1, 2)))
        );
        let hydra = [
            ("MPI_LOCALRANKID", "0"),
            ("MPI_LOCALNRANKS", "2"),
            ("PMI_RANK", "2"),
            ("PMI_SIZE", "4"),
        ];
        assert_eq!(
            from_environment(env(&hydra)).unwrap(),
            Some((Launcher::Hydra, is(2, 4, 0, 2)))
        );
        let slurm = [
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_PROCID", "6"),
            ("SLURM_LOCALID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
        ];
        assert_eq!(
            from_environment(env(&slurm)).unwrap(),
            Some((Launcher::Slurm, is(6, 8, 2, 4)))
        );
    }

    #[test]
    fn a_shell_inside_an_allocation_is_no_rank() {
        assert_eq!(
            from_environment(env(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")])).unwrap(),
            None
        );
        assert_eq!(
            from_environment(env(&[("RANK", "3"), ("WORLD_SIZE", "4")])).unwrap(),
            None
        );
    }

    #[test]
    fn broken_environments_are_named() {
        let e = from_environment(env(&[("OMPI_COMM_WORLD_RANK", "1")])).unwrap_err();
        assert_eq!(
            e.to_string(),
            "mpirun (Open MPI) set OMPI_COMM_WORLD_RANK but not OMPI_COMM_WORLD_SIZE"
        );
        let e =
            from_environment(env(&[("TORCHELASTIC_RUN_ID", "x"), ("RANK", "one")])).unwrap_err();
        assert_eq!(e.to_string(), "RANK is 'one', it must be a number");
        let far = [
            ("TORCHELASTIC_RUN_ID", "x"),
            ("RANK", "9"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "8"),
        ];
        assert_eq!(
            from_environment(env(&far)).unwrap_err().to_string(),
            "RANK is 9, with WORLD_SIZE = 8 it must be below 8"
        );
    }
}
