//! Launch description of the merges over ranks; the mirror of `cuda/attention_merge.cu`.

use crate::peer::MAX_RANKS;

/// Entry point `(MergeArgs)`: weighs this rank's partial outputs for a sum over ranks.
pub const CORRECT: &str = "parplan_dcp_correct";
/// Entry point `(MergeArgs)`: merges what all ranks sent.
pub const MERGE: &str = "parplan_dcp_merge";
/// Entry point `(PeerArgs, MergeArgs)`: exchange by packets and merge.
pub const MERGE_PACKETS: &str = "parplan_dcp_merge_packets";
/// Entry point `(BulkArgs, MergeArgs)`: exchange by plain stores and merge.
pub const MERGE_BULK: &str = "parplan_dcp_merge_bulk";
/// Entry points of the module.
pub const MERGE_KERNELS: [&str; 4] = [CORRECT, MERGE, MERGE_PACKETS, MERGE_BULK];

/// Threads of [`CORRECT`] and [`MERGE`].
pub const MERGE_THREADS: u32 = 256;
/// Most threads of the kernels that exchange.
pub const EXCHANGE_THREADS: u32 = 512;
/// Threads where packets are few: small blocks start and end sooner.
pub const SMALL_EXCHANGE_THREADS: u32 = 128;
/// Blocks that packets have slots for. All must be resident at once: three of them fit
/// a multiprocessor.
pub const PACKET_BLOCKS: u32 = 128;
/// Packet slots of a block.
pub const PACKET_SLOTS: u32 = 1024;
/// Blocks of the kernels that exchange by plain stores: always all of them.
pub const BULK_BLOCKS: u32 = 128;

/// Mirror of `struct MergeArgs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // described once, in the source
pub struct MergeArgs {
    pub out: u64,
    pub lse_out: u64,
    pub parts: u64,
    pub lses: u64,
    pub rows: u32,
    pub dim: u32,
    pub rank: u32,
    pub size: u32,
}

/// Mirror of `struct BulkArgs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // described once, in the source
pub struct BulkArgs {
    pub staging: [u64; MAX_RANKS],
    pub flags: [u64; MAX_RANKS],
    pub epoch: u64,
    pub stride: u64,
    pub rank: u32,
    pub size: u32,
}

/// Threads of a block for that many packets from each rank to each other.
#[must_use]
pub fn packet_threads(packets: usize) -> u32 {
    if packets <= (PACKET_BLOCKS * SMALL_EXCHANGE_THREADS) as usize {
        SMALL_EXCHANGE_THREADS
    } else {
        EXCHANGE_THREADS
    }
}

/// Blocks and threads of [`MERGE_PACKETS`] for that many rows; `None` when they do not
/// fit its slots.
#[must_use]
pub fn packet_blocks(rows: usize, dim: usize) -> Option<(u32, u32)> {
    let message = dim / 4 + 1;
    let threads = packet_threads(rows * message);
    let wanted = (rows * message).div_ceil(threads as usize);
    let blocks = wanted.min(rows).clamp(1, PACKET_BLOCKS as usize);
    (rows.div_ceil(blocks) * message <= PACKET_SLOTS as usize).then_some((blocks as u32, threads))
}

/// Bytes that [`MERGE_BULK`] stages for one source: the rows, then their LSE in whole words.
#[must_use]
pub fn bulk_bytes(rows: usize, dim: usize) -> usize {
    rows * dim * 2 + rows.next_multiple_of(4) * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_slots_for_their_rows() {
        for dim in [64, 128, 512] {
            for rows in 1..5000usize {
                let message = dim / 4 + 1;
                match packet_blocks(rows, dim) {
                    Some((blocks, _)) => {
                        assert!((1..=PACKET_BLOCKS).contains(&blocks));
                        assert!(rows.div_ceil(blocks as usize) * message <= PACKET_SLOTS as usize);
                    }
                    None => assert!(
                        rows.div_ceil(PACKET_BLOCKS as usize) * message > PACKET_SLOTS as usize
                    ),
                }
            }
        }
    }
}
