//! Gathering queries and merging partial outputs over memory that the GPUs of one host
//! map from each other. The protocols are in `kernels/cuda/peer.cuh` and
//! `kernels/cuda/attention_merge.cu`.

use std::sync::Arc;

use parplan_kernels::attention::{
    ALL_GATHER_BULK, BULK_BLOCKS, BulkArgs, EXCHANGE_THREADS, MERGE_BULK, MERGE_PACKETS, MergeArgs,
    PACKET_BLOCKS, PACKET_SLOTS, bulk_bytes, packet_blocks, packet_threads,
};
use parplan_kernels::peer::{MAX_RANKS, Operation, PeerArgs, WORD, staging_bytes};

use crate::comm::CpuCommunicator;
use crate::cuda::{Argument, Gpu, Grid};
use crate::peer::PeerMemory;
use crate::{Buffer, Communicator, Device, Error, Result, View};

/// Bytes from each rank up to which packets are used: they carry a flag with every word,
/// which saves a fence and costs half the bandwidth. Of queries, that are only stored:
pub const GATHER_PACKET_BYTES: usize = 512 * 1024;
/// And of outputs, that are merged as they come.
pub const MERGE_PACKET_BYTES: usize = 128 * 1024;

/// What ranks exchange around a shared attention, over peer memory.
pub struct PeerExchange {
    gpu: Arc<Gpu>,
    packets: PeerArgs,
    bulk: BulkArgs,
    _memory: PeerMemory,
    _epochs: Buffer,
}

impl PeerExchange {
    /// Maps memory of all ranks into each other, for messages of at most `most` bytes
    /// from each rank to each other. All ranks enter this, and all get the same kind of
    /// answer: the inner error says why some rank cannot map another's memory.
    ///
    /// # Errors
    /// Errors of the control plane, and of this rank's own memory.
    pub fn connect(
        gpu: &Arc<Gpu>,
        control: &mut CpuCommunicator,
        most: usize,
    ) -> Result<std::result::Result<Self, String>> {
        let (rank, size) = (control.rank(), control.size());
        let kernels = gpu.kernels()?;
        for name in [
            Operation::AllGather.kernel(),
            MERGE_PACKETS,
            MERGE_BULK,
            ALL_GATHER_BULK,
        ] {
            kernels.prepare(gpu, name, 0)?;
        }
        let stride = most.next_multiple_of(16);
        let packet_bytes = staging_bytes(size, PACKET_BLOCKS, PACKET_SLOTS);
        let flags_at = packet_bytes + 2 * size * stride;
        let flag_bytes = size * BULK_BLOCKS as usize * 4;
        let epochs = gpu.alloc(
            "exchange call counters",
            (PACKET_BLOCKS + BULK_BLOCKS) as usize * 4,
        )?;
        gpu.fill(&epochs.all(), 0)?;
        let memory = PeerMemory::connect(gpu, control, "exchange staging", flags_at + flag_bytes)?;
        let memory = match memory {
            Ok(memory) => memory,
            Err(why) => return Ok(Err(why)),
        };
        let behind = |offset: usize| {
            let mut addresses = [0; MAX_RANKS];
            for (a, base) in addresses.iter_mut().zip(memory.addresses).take(size) {
                *a = base + offset as u64;
            }
            addresses
        };
        let packets = PeerArgs {
            staging: memory.addresses,
            epoch: epochs.all().address()?,
            rank: rank as u32,
            size: size as u32,
            max_blocks: PACKET_BLOCKS,
            slots_per_block: PACKET_SLOTS,
        };
        let bulk = BulkArgs {
            staging: behind(packet_bytes),
            flags: behind(flags_at),
            epoch: epochs.all().address()? + u64::from(PACKET_BLOCKS) * 4,
            stride: stride as u64,
            rank: rank as u32,
            size: size as u32,
        };
        Ok(Ok(PeerExchange {
            gpu: Arc::clone(gpu),
            packets,
            bulk,
            _memory: memory,
            _epochs: epochs,
        }))
    }

    fn fits(&self, bytes: usize) -> Result<()> {
        if bytes as u64 <= self.bulk.stride {
            return Ok(());
        }
        Err(Error::Arguments {
            op: "peer exchange",
            why: format!(
                "{bytes} bytes from each rank, the memory was made for {}",
                self.bulk.stride
            ),
        })
    }

    /// Every rank's `send` in every rank's `recv`, in rank order.
    ///
    /// # Errors
    /// [`Error::Arguments`] for sizes that are no multiple of 16 or too large, [`Error::Cuda`].
    pub fn all_gather(&self, send: &View, recv: &View) -> Result<()> {
        crate::comm::check::all_gather(self.bulk.size as usize, send.len(), recv.len())?;
        self.fits(send.len())?;
        if !send.len().is_multiple_of(16) {
            return Err(Error::Arguments {
                op: "peer exchange",
                why: format!("{} bytes, they must be a multiple of 16", send.len()),
            });
        }
        let words = send.len() / WORD;
        let (name, grid, first, count) = if send.len() <= GATHER_PACKET_BYTES {
            let threads = packet_threads(words);
            let blocks = (words as u32).div_ceil(threads).clamp(1, PACKET_BLOCKS);
            let grid = Grid::linear(blocks, threads);
            let kernel = Operation::AllGather.kernel();
            (kernel, grid, Argument::Peer(self.packets), words)
        } else {
            let grid = Grid::linear(BULK_BLOCKS, EXCHANGE_THREADS);
            (ALL_GATHER_BULK, grid, Argument::Bulk(self.bulk), words / 2)
        };
        let arguments = [
            first,
            Argument::Address(send.address()?),
            Argument::Address(recv.address()?),
            Argument::U64(count as u64),
        ];
        self.gpu.bind()?;
        // SAFETY: the views hold what was checked, and the staging memory of all ranks
        // has room for it.
        unsafe {
            self.gpu
                .kernels()?
                .launch(&self.gpu, name, grid, &arguments)
        }
    }

    /// Sends part r of `parts` and `lses` to rank r and merges what all ranks sent here:
    /// `out` `[rows, dim]` in bf16 and `lse` `[rows]` in f32.
    ///
    /// # Errors
    /// [`Error::Arguments`] for views that are no such shapes or too large, [`Error::Cuda`].
    pub fn merge(
        &self,
        parts: &View,
        lses: &View,
        dim: usize,
        out: &View,
        lse: &View,
    ) -> Result<()> {
        let size = self.bulk.size as usize;
        let rows = lse.len() / 4;
        super::types::check_merge(parts, lses, out, lse, dim, size)?;
        self.fits(bulk_bytes(rows, dim))?;
        if rows == 0 {
            return Ok(());
        }
        let merge = Argument::Merge(MergeArgs {
            out: out.address()?,
            lse_out: lse.address()?,
            parts: parts.address()?,
            lses: lses.address()?,
            rows: rows as u32,
            dim: dim as u32,
            rank: self.bulk.rank,
            size: self.bulk.size,
        });
        let packets = packet_blocks(rows, dim).filter(|_| rows * dim * 2 <= MERGE_PACKET_BYTES);
        let (name, (blocks, threads), first) = match packets {
            Some(grid) => (MERGE_PACKETS, grid, Argument::Peer(self.packets)),
            None => {
                let grid = (BULK_BLOCKS, EXCHANGE_THREADS);
                (MERGE_BULK, grid, Argument::Bulk(self.bulk))
            }
        };
        let grid = Grid::linear(blocks, threads);
        self.gpu.bind()?;
        // SAFETY: as above; the views' sizes were checked against rows and dim.
        unsafe {
            self.gpu
                .kernels()?
                .launch(&self.gpu, name, grid, &[first, merge])
        }
    }
}
