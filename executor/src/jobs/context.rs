//! A rank with its group, its memory and its GPU.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::comm::CpuCommunicator;
use crate::cuda::{Gpu, device_count};
use crate::nccl::{Library, NcclCommunicator, SHARE_GPUS, SHARED_GPUS};
use crate::ranks::{Identity, take_share};
use crate::rendezvous::{Secret, join};
use crate::{Communicator, CpuDevice, Deadline, Device, Error, Result};

/// What computes and communicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Processes on the CPU, over TCP.
    Cpu,
    /// One GPU a rank, NCCL between them. Ranks share GPUs where NCCL is told that they may
    /// ([`Library::asked_to_share_gpus`]): results are right then, times say nothing.
    Nccl,
    /// GPUs without NCCL: ranks exchange over peer memory alone, and may share a GPU. For
    /// attention that is shared by ranks, and for parplan's own collectives.
    Peer,
}

impl Backend {
    /// What runs where nobody says: GPUs where the driver finds any, or else the CPU.
    pub fn found_here() -> Backend {
        match crate::cuda::device_count() {
            Ok(gpus) if gpus > 0 => Backend::Nccl,
            _ => Backend::Cpu,
        }
    }
}

/// Times that bound every wait.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// For all ranks to meet.
    pub meet: Duration,
    /// For any one wait in the work.
    pub wait: Duration,
}

impl Backend {
    /// Whether this machine can run `local_world` ranks of this backend; asked before
    /// any rank is started.
    ///
    /// # Errors
    /// [`Error::Unusable`] for no driver, no GPU or fewer GPUs than ranks,
    /// [`Error::Library`] for NCCL.
    pub fn check_machine(self, local_world: usize, nccl_path: Option<&Path>) -> Result<()> {
        if self == Backend::Cpu {
            return match local_world {
                0..=MOST_CPU_RANKS => Ok(()),
                _ => Err(Error::Unusable(format!(
                    "{local_world} ranks on the CPU: each is a process with a connection to every other, \
                     and {MOST_CPU_RANKS} are the most that one machine runs"
                ))),
            };
        }
        let count = device_count()?;
        if self == Backend::Peer {
            return Ok(());
        }
        let few = count < local_world;
        if few && !Library::asked_to_share_gpus() {
            return Err(Error::Unusable(format!(
                "{local_world} ranks need {local_world} GPUs here, the driver shows {count}; for checks, not for times, \
                 NCCL {SHARED_GPUS} and newer let ranks share GPUs where {SHARE_GPUS}=1 is set"
            )));
        }
        let library = Library::open(nccl_path)?;
        if few && !library.can_share_gpus() {
            return Err(Error::Unusable(format!(
                "{local_world} ranks share {count} GPUs only with NCCL {SHARED_GPUS} or newer, this is {library:?}"
            )));
        }
        Ok(())
    }
}

/// Ranks on the CPU of one machine: 128 of them have some 8000 connections.
const MOST_CPU_RANKS: usize = 128;

/// A connected rank.
pub struct Context {
    /// Who it is.
    pub identity: Identity,
    /// Its GPU, with the NCCL backend.
    pub gpu: Option<Arc<Gpu>>,
    /// Its memory.
    pub device: Box<dyn Device>,
    /// All ranks over TCP: control plane.
    pub control: CpuCommunicator,
    /// All ranks over NCCL, with that backend.
    pub nccl: Option<NcclCommunicator>,
    /// Who hears of progress, where somebody does.
    pub listener: Option<Listener>,
}

/// What the ranks are doing, in words for whoever waits; see [`Context::report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doing(pub String);

/// Hears of progress, as JSON.
pub type Listener = Box<dyn FnMut(&serde_json::Value) + Send>;

impl Context {
    /// Meets the other ranks and opens what the backend needs.
    ///
    /// # Errors
    /// Errors of the rendezvous, the GPU and NCCL.
    pub fn connect(
        identity: Identity,
        rendezvous: &str,
        secret: &Secret,
        backend: Backend,
        nccl_path: Option<&Path>,
        limits: Limits,
    ) -> Result<Self> {
        let Identity {
            rank,
            world,
            local_rank,
            ..
        } = identity;
        // Before any thread is made, so that all of them stay there. CPU ranks are as many
        // as one likes and need no cores of their own.
        if backend == Backend::Nccl {
            take_share(local_rank, identity.local_world);
        }
        // The GPU first: a rank that cannot open it should not let the others wait for
        // its first collective.
        let gpu = match backend {
            Backend::Cpu => None,
            // More ranks than GPUs: they share them, as `check_machine` found allowed.
            Backend::Nccl | Backend::Peer => Some(Gpu::open(local_rank % device_count()?)?),
        };
        let library = match backend {
            Backend::Cpu | Backend::Peer => None,
            Backend::Nccl => Some(Library::open(nccl_path)?),
        };
        let mut control = join(
            rendezvous,
            rank,
            world,
            secret,
            Deadline::after(limits.meet),
        )?
        .comm;
        control.set_deadline(limits.wait);
        if let (Some(gpu), Backend::Peer) = (&gpu, backend) {
            // With NCCL its communicator sees to this.
            gpu.set_watch(control.watch());
            gpu.set_deadline(limits.wait);
        }
        let nccl = match (&gpu, &library) {
            (Some(gpu), Some(library)) => {
                let beside = control.split_cpu(Some(0), rank as u32)?.ok_or_else(|| {
                    Error::Mismatch(format!("rank {rank} got no group beside NCCL"))
                })?;
                Some(NcclCommunicator::connect(
                    library,
                    gpu,
                    beside,
                    limits.wait,
                )?)
            }
            _ => None,
        };
        let device: Box<dyn Device> = match &gpu {
            Some(gpu) => Box::new(Arc::clone(gpu)),
            None => Box::new(CpuDevice::new()),
        };
        Ok(Context {
            identity,
            gpu,
            device,
            control,
            nccl,
            listener: None,
        })
    }

    /// This rank among the first `ranks` of all, with communicators of their own; none on the others.
    /// Collective: all ranks call it.
    ///
    /// # Errors
    /// Errors of the communicators.
    pub fn first_ranks(&mut self, ranks: usize) -> Result<Option<Context>> {
        let rank = self.identity.rank;
        let inside = (rank < ranks).then_some(0);
        let control = self.control.split_cpu(inside, rank as u32)?;
        let nccl = match &mut self.nccl {
            Some(nccl) => nccl.split_nccl(inside, rank as u32)?,
            None => None,
        };
        let Some(control) = control else {
            return Ok(None);
        };
        let device: Box<dyn Device> = match &self.gpu {
            Some(gpu) => Box::new(Arc::clone(gpu)),
            None => Box::new(CpuDevice::new()),
        };
        let mut identity = self.identity;
        identity.world = ranks;
        identity.local_world = identity.local_world.min(ranks);
        Ok(Some(Context {
            identity,
            gpu: self.gpu.clone(),
            device,
            control,
            nccl,
            listener: None,
        }))
    }

    /// Tells whoever listens how far the work is. Only rank 0 is heard.
    pub fn report<T: Serialize>(&mut self, progress: &T) {
        if let (0, Some(listener)) = (self.identity.rank, &mut self.listener)
            && let Ok(value) = serde_json::to_value(progress)
        {
            listener(&value);
        }
    }

    /// The communicator of the work, the device, and the control plane, apart.
    pub fn parts(&mut self) -> (&mut dyn Communicator, &dyn Device, Option<&Arc<Gpu>>) {
        match &mut self.nccl {
            Some(nccl) => (nccl, self.device.as_ref(), self.gpu.as_ref()),
            None => (&mut self.control, self.device.as_ref(), None),
        }
    }
}
