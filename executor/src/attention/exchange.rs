//! Gathering queries and merging partial outputs over memory that the GPUs of one host
//! map from each other. The protocols are in `kernels/cuda/peer.cuh`,
//! `kernels/cuda/attention_gather.cu` and `kernels/cuda/attention_merge.cu`.

use std::sync::Arc;

use parplan_kernels::attention::{
    ALL_GATHER_LINES, BULK_BLOCKS, BulkArgs, EXCHANGE_THREADS, LINE_BLOCKS, LINE_WORD, LineArgs,
    MERGE_BULK, MERGE_PACKETS, MergeArgs, PACKET_BLOCKS, PACKET_SLOTS, bulk_bytes, line_grid,
    line_staging_bytes, lines, packet_blocks, packet_threads,
};
use parplan_kernels::peer::{MAX_RANKS, Operation, PeerArgs, WORD, staging_bytes};

use crate::comm::CpuCommunicator;
use crate::cuda::{Argument, Gpu, Grid};
use crate::peer::PeerMemory;
use crate::{Buffer, Communicator, Device, Error, Result, View};

/// Bytes of outputs from each rank up to which they are merged from packets, which carry a
/// flag with every word: that saves a fence and costs half the bandwidth.
pub const MERGE_PACKET_BYTES: usize = 128 * 1024;

/// What ranks that share a cache exchange over memory that they map from each other. All
/// of them make the same calls in the same order.
pub trait Peers {
    /// Whether queries of so many bytes of each rank can be gathered.
    fn gathers(&self, bytes: usize) -> bool;

    /// Whether outputs of so many bytes from each rank to each other can be merged.
    fn merges(&self, bytes: usize) -> bool;

    /// Every rank's `send` in every rank's `recv`, in rank order.
    ///
    /// # Errors
    /// [`Error::Arguments`] for sizes that [`gathers`](Self::gathers) refuses, [`Error::Cuda`].
    fn all_gather(&self, send: &View, recv: &View) -> Result<()>;

    /// Sends part r of `parts` and `lses` to rank r and merges what all ranks sent here:
    /// `out` `[rows, dim]` in bf16 and `lse` `[rows]` in f32.
    ///
    /// # Errors
    /// [`Error::Arguments`] for views that are no such shapes or too large, [`Error::Cuda`].
    fn merge(&self, parts: &View, lses: &View, dim: usize, out: &View, lse: &View) -> Result<()>;
}

/// What ranks exchange around a shared attention, over peer memory.
pub struct PeerExchange {
    gpu: Arc<Gpu>,
    packets: PeerArgs,
    /// Only where a line of 128 bytes crosses the link whole.
    lines: Option<LineArgs>,
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
        let all_gather = Operation::AllGather.kernel(size);
        for name in [MERGE_PACKETS, MERGE_BULK, ALL_GATHER_LINES, all_gather] {
            kernels.prepare(gpu, name, 0)?;
        }
        let stride = most.next_multiple_of(16);
        let packet_bytes = staging_bytes(size, PACKET_BLOCKS, PACKET_SLOTS);
        let most_lines = lines(most);
        let bulk_at = (packet_bytes + line_staging_bytes(size, most_lines)).next_multiple_of(256);
        let flags_at = bulk_at + 2 * size * stride;
        let flag_bytes = size * BULK_BLOCKS as usize * 4;
        let epochs = gpu.alloc(
            "exchange call counters",
            (PACKET_BLOCKS + LINE_BLOCKS + BULK_BLOCKS) as usize * 4,
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
        let epoch = epochs.all().address()?;
        let packets = PeerArgs {
            staging: memory.addresses,
            epoch,
            rank: rank as u32,
            size: size as u32,
            max_blocks: PACKET_BLOCKS,
            slots_per_block: PACKET_SLOTS,
        };
        let lines = memory.joined.then_some(LineArgs {
            staging: behind(packet_bytes),
            epoch: epoch + u64::from(PACKET_BLOCKS) * 4,
            rank: rank as u32,
            size: size as u32,
            most: most_lines as u32,
            counters: LINE_BLOCKS,
            ..LineArgs::default()
        });
        let bulk = BulkArgs {
            staging: behind(bulk_at),
            flags: behind(flags_at),
            epoch: epoch + u64::from(PACKET_BLOCKS + LINE_BLOCKS) * 4,
            stride: stride as u64,
            rank: rank as u32,
            size: size as u32,
        };
        Ok(Ok(PeerExchange {
            gpu: Arc::clone(gpu),
            packets,
            lines,
            bulk,
            _memory: memory,
            _epochs: epochs,
        }))
    }

    fn too_much(&self, bytes: usize) -> Error {
        Error::Arguments {
            op: "peer exchange",
            why: format!(
                "{bytes} bytes from each rank, the memory was made for {}",
                self.bulk.stride
            ),
        }
    }
}

impl Peers for PeerExchange {
    fn gathers(&self, bytes: usize) -> bool {
        let packets = (PACKET_BLOCKS * PACKET_SLOTS) as usize * WORD;
        bytes as u64 <= self.bulk.stride
            && bytes.is_multiple_of(LINE_WORD)
            && (self.lines.is_some() || bytes <= packets)
    }

    fn merges(&self, bytes: usize) -> bool {
        bytes as u64 <= self.bulk.stride
    }

    fn all_gather(&self, send: &View, recv: &View) -> Result<()> {
        crate::comm::check::all_gather(self.bulk.size as usize, send.len(), recv.len())?;
        let misfit = |why: String| Error::Arguments {
            op: "peer exchange",
            why,
        };
        if !send.len().is_multiple_of(LINE_WORD) {
            return Err(misfit(format!(
                "{} bytes, they must be a multiple of {LINE_WORD}",
                send.len()
            )));
        }
        if !self.gathers(send.len()) {
            return Err(self.too_much(send.len()));
        }
        if send.is_empty() {
            return Ok(());
        }
        let (from, to) = (send.address()?, recv.address()?);
        if [from, to]
            .iter()
            .any(|a| !a.is_multiple_of(LINE_WORD as u64))
        {
            return Err(misfit(format!(
                "addresses {from:#x} and {to:#x}: both must be multiples of {LINE_WORD}"
            )));
        }
        let (name, fixed, words, grid) = match self.lines {
            Some(lines) => {
                let chosen = line_grid(send.len(), self.bulk.size as usize);
                let fixed = Argument::Lines(LineArgs {
                    roles: chosen.roles,
                    ..lines
                });
                let grid = Grid::linear(chosen.blocks, chosen.threads).early();
                (ALL_GATHER_LINES, fixed, send.len() / LINE_WORD, grid)
            }
            None => {
                let words = send.len() / WORD;
                let threads = packet_threads(words);
                let blocks = (words as u32).div_ceil(threads).clamp(1, PACKET_BLOCKS);
                let fixed = Argument::Peer(self.packets);
                let grid = Grid::linear(blocks, threads);
                (
                    Operation::AllGather.kernel(self.packets.size as usize),
                    fixed,
                    words,
                    grid,
                )
            }
        };
        let arguments = [
            fixed,
            Argument::Address(from),
            Argument::Address(to),
            Argument::U64(words as u64),
        ];
        self.gpu.bind()?;
        // SAFETY: the views hold what was checked, and the staging memory of all ranks
        // has room for it; the kernel by lines waits for the one before by itself.
        unsafe {
            self.gpu
                .kernels()?
                .launch(&self.gpu, name, grid, &arguments)
        }
    }

    fn merge(&self, parts: &View, lses: &View, dim: usize, out: &View, lse: &View) -> Result<()> {
        let size = self.bulk.size as usize;
        let rows = lse.len() / 4;
        super::types::check_merge(parts, lses, out, lse, dim, size)?;
        let bytes = bulk_bytes(rows, dim);
        if !self.merges(bytes) {
            return Err(self.too_much(bytes));
        }
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
        let grid = Grid::linear(blocks, threads).early();
        self.gpu.bind()?;
        // SAFETY: as above, for both kernels; the views' sizes were checked against rows and dim.
        unsafe {
            self.gpu
                .kernels()?
                .launch(&self.gpu, name, grid, &[first, merge])
        }
    }
}
