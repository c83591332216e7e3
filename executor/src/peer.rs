//! Collectives of small messages over memory that the GPUs of one host map from each
//! other. The protocol is in `kernels/cuda/peer.cuh`.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use parplan_kernels::peer::{
    MAX_BLOCKS, MAX_RANKS, Operation, PeerArgs, SLOTS_PER_BLOCK, THREADS, blocks, staging_bytes,
};

use crate::comm::{CpuCommunicator, check};
use crate::cuda::{Argument, Gpu, Grid, Handle, Kernels, Mapped};
use crate::{Buffer, Communicator, DType, Device, Error, Result, View};

/// Which all-reduce to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shots {
    /// Everyone sends everything to everyone: one hop.
    One,
    /// Parts are reduced by one rank each and sent on: two hops, `2/size` of the bytes.
    Two,
}

/// What a rank tells the others: its host's boot, a handle of its memory or why it has
/// none, and its GPU's PCI address.
type Hello = (Vec<u8>, std::result::Result<Vec<u8>, String>, String);

/// Memory of this rank that the GPUs of all ranks map, and theirs as this rank maps it.
pub(crate) struct PeerMemory {
    /// Device address of each rank's memory here.
    pub addresses: [u64; MAX_RANKS],
    /// Whether all pairs of ranks are joined by NVLink, or are on one GPU.
    pub joined: bool,
    _mapped: Vec<Option<Mapped>>,
    // Never freed: that is undefined while another process maps it, and nobody here knows
    // when the last one has let go.
    _own: ManuallyDrop<Buffer>,
}

impl PeerMemory {
    /// Allocates `bytes` zeroed bytes on each rank of `control` and maps them into each
    /// other. All ranks enter this with the same size, and all get the same kind of
    /// answer: the inner error says why some rank cannot map another's memory.
    ///
    /// # Errors
    /// Errors of the control plane, and of this rank's own memory.
    pub(crate) fn connect(
        gpu: &Arc<Gpu>,
        control: &mut CpuCommunicator,
        name: &str,
        bytes: usize,
    ) -> Result<std::result::Result<Self, String>> {
        let (rank, size) = (control.rank(), control.size());
        if size > MAX_RANKS {
            return Ok(Err(format!(
                "{size} ranks, at most {MAX_RANKS} share memory"
            )));
        }
        let own = gpu.alloc(name, bytes)?;
        gpu.fill(&own.all(), 0)?;
        gpu.synchronize()?;
        // From here on a peer may map it, also where another one cannot and this fails.
        let own = ManuallyDrop::new(own);

        // A host is a boot: containers of one machine share it, machines do not.
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let handle = Handle::of(gpu, &own.all());
        let hello = (
            boot,
            handle
                .as_ref()
                .map(|h| h.bytes().to_vec())
                .map_err(ToString::to_string),
            gpu.pci_address()?,
        );
        let mine = serde_json::to_vec(&hello).map_err(|e| Error::Mismatch(e.to_string()))?;
        let mut mapped = Vec::new();
        let (mut trouble, mut joined) = (String::new(), true);
        for (peer, bytes) in control.all_gather_bytes(&mine)?.iter().enumerate() {
            let (host, handle, address): Hello = serde_json::from_slice(bytes)
                .map_err(|e| Error::Mismatch(format!("rank {peer}'s handle: {e}")))?;
            joined &= gpu.is_joined(&address);
            let opened = match handle {
                _ if peer == rank => Ok(None),
                Err(why) => Err(format!("rank {peer} cannot share memory: {why}")),
                Ok(_) if host != hello.0 => {
                    Err(format!("rank {peer} is on another host than rank {rank}"))
                }
                Ok(handle) => Mapped::open(gpu, &handle)
                    .map(Some)
                    .map_err(|e| format!("rank {rank} cannot map rank {peer}: {e}")),
            };
            match opened {
                Ok(m) => mapped.push(m),
                Err(why) => {
                    trouble = why;
                    break;
                }
            }
        }
        let troubles = control.all_gather_bytes(trouble.as_bytes())?;
        if let Some(why) = troubles.iter().find(|t| !t.is_empty()) {
            return Ok(Err(String::from_utf8_lossy(why).into_owned()));
        }
        let all = control.all_gather_bytes(&[u8::from(joined)])?;
        let joined = all.iter().all(|j| *j == [1]);
        let mut addresses = [0; MAX_RANKS];
        for (slot, peer) in addresses.iter_mut().zip(&mapped) {
            *slot = match peer {
                Some(m) => m.address(),
                None => own.all().address()?,
            };
        }
        // Nobody sends before everyone has cleared its memory.
        control.barrier()?;
        Ok(Ok(PeerMemory {
            addresses,
            joined,
            _mapped: mapped,
            _own: own,
        }))
    }
}

/// The peer-memory collectives of one rank.
pub struct PeerCollectives {
    gpu: Arc<Gpu>,
    kernels: Arc<Kernels>,
    args: PeerArgs,
    _memory: PeerMemory,
    _epochs: Buffer,
}

/// Peer collectives, or the reason why this group must use NCCL.
pub enum Availability {
    /// They work between all ranks.
    Available(Box<PeerCollectives>),
    /// Some rank cannot map another's memory; the same answer on every rank.
    Fallback(String),
}

impl PeerCollectives {
    /// Maps the staging memory of all ranks of `control` into each other. All ranks
    /// enter this, and all get the same kind of answer.
    ///
    /// # Errors
    /// Errors of the control plane, and of this rank's own memory.
    pub fn connect(gpu: &Arc<Gpu>, control: &mut CpuCommunicator) -> Result<Availability> {
        let (rank, size) = (control.rank(), control.size());
        let kernels = gpu.kernels()?;
        for operation in Operation::ALL {
            kernels.prepare(gpu, operation.kernel(size), 0)?;
        }
        let epochs = gpu.alloc("peer call counters", MAX_BLOCKS as usize * 4)?;
        gpu.fill(&epochs.all(), 0)?;
        let bytes = staging_bytes(size, MAX_BLOCKS, SLOTS_PER_BLOCK);
        let memory = match PeerMemory::connect(gpu, control, "peer staging", bytes)? {
            Ok(memory) => memory,
            Err(why) => return Ok(Availability::Fallback(why)),
        };
        let args = PeerArgs {
            staging: memory.addresses,
            epoch: epochs.all().address()?,
            rank: rank as u32,
            size: size as u32,
            max_blocks: MAX_BLOCKS,
            slots_per_block: SLOTS_PER_BLOCK,
        };
        Ok(Availability::Available(Box::new(PeerCollectives {
            gpu: Arc::clone(gpu),
            kernels,
            args,
            _memory: memory,
            _epochs: epochs,
        })))
    }

    fn size(&self) -> usize {
        self.args.size as usize
    }

    /// Whether a message of `bytes` from each rank can go this way.
    #[must_use]
    pub fn fits(&self, operation: Operation, bytes: usize) -> bool {
        operation.words(bytes, self.size()).is_some()
    }

    fn launch(&self, operation: Operation, send: &View, recv: &View) -> Result<()> {
        // A call in which nobody waits for anybody must not count: two parities of staging
        // memory rest on the wait.
        if send.is_empty() {
            return Ok(());
        }
        let words = operation.words(send.len(), self.size()).ok_or_else(|| Error::Arguments {
            op: "peer collective",
            why: format!(
                "{} bytes from each rank do not fit: they must be whole 8-byte words{} and at most {} of them",
                send.len(),
                if operation.is_two_shot() { " for each rank" } else { "" },
                MAX_BLOCKS * SLOTS_PER_BLOCK
            ),
        })?;
        let arguments = [
            Argument::Peer(self.args),
            Argument::Address(send.address()?),
            Argument::Address(recv.address()?),
            Argument::U64(words),
        ];
        self.gpu.bind()?;
        // SAFETY: the views hold `words` words as checked above and by the callers; the
        // staging memory of all ranks is mapped and has slots for them.
        unsafe {
            self.kernels.launch(
                &self.gpu,
                operation.kernel(self.args.size as usize),
                Grid::linear(blocks(words), THREADS),
                &arguments,
            )
        }
    }

    /// All-gather in one shot. In place when `send` is this rank's part of `recv`.
    ///
    /// # Errors
    /// [`Error::Arguments`] for sizes that do not fit, [`Error::Cuda`].
    pub fn all_gather(&mut self, send: &View, recv: &View) -> Result<()> {
        check::all_gather(self.size(), send.len(), recv.len())?;
        self.launch(Operation::AllGather, send, recv)
    }

    /// Sum of f32 or bf16, in place or not. All ranks get the same bits.
    ///
    /// # Errors
    /// [`Error::Arguments`] for sizes or types that do not fit, [`Error::Cuda`].
    pub fn all_reduce(
        &mut self,
        send: &View,
        recv: &View,
        dtype: DType,
        shots: Shots,
    ) -> Result<()> {
        check::all_reduce(send.len(), recv.len(), dtype)?;
        let operation = match (dtype, shots) {
            (DType::F32, Shots::One) => Operation::OneShotF32,
            (DType::F32, Shots::Two) => Operation::TwoShotF32,
            (DType::Bf16, Shots::One) => Operation::OneShotBf16,
            (DType::Bf16, Shots::Two) => Operation::TwoShotBf16,
            (other, _) => {
                return Err(Error::Arguments {
                    op: "peer all-reduce",
                    why: format!(
                        "{} is not summed over peer memory, f32 and bf16 are",
                        other.name()
                    ),
                });
            }
        };
        self.launch(operation, send, recv)
    }
}
