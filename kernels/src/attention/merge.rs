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
/// Entry point `(PeerArgs, const u2* send, u2* recv, u64 words)`: all-gather by lines of
/// [`LINE_WORDS`] words and a flag. The staging memory is [`line_staging_bytes`].
pub const ALL_GATHER_LINES: &str = "parplan_all_gather_lines";

/// Entry points of the module.
pub const MERGE_KERNELS: [&str; 5] = [CORRECT, MERGE, MERGE_PACKETS, MERGE_BULK, ALL_GATHER_LINES];

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

/// Words of 8 bytes in a line of 128 bytes; the rest is its flag.
pub const LINE_WORDS: usize = 15;
/// Blocks that lines have slots for: one a multiprocessor, so that all are resident.
pub const LINE_BLOCKS: u32 = 128;
/// Most threads of a block of [`ALL_GATHER_LINES`].
pub const LINE_THREADS: u32 = 1024;
/// Staging slots of a line, 16 bytes each: one a thread.
const LINE_SLOTS: usize = 8;

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

/// Slots of each of [`LINE_BLOCKS`] blocks, for messages of at most `bytes`.
#[must_use]
pub fn line_slots(bytes: usize) -> u32 {
    let lines = bytes.div_ceil(8).div_ceil(LINE_WORDS);
    (lines.div_ceil(LINE_BLOCKS as usize).max(1) * LINE_SLOTS) as u32
}

/// Bytes of a rank's staging memory for lines, which must be zero before the first call.
#[must_use]
pub fn line_staging_bytes(size: usize, slots: u32) -> usize {
    2 * size * LINE_BLOCKS as usize * slots as usize * 16
}

/// Blocks and threads of [`ALL_GATHER_LINES`] for so many words of each of `size` ranks and
/// slots of a block: eight threads for every line of every peer while they last. `None`
/// when the words do not fit.
#[must_use]
pub fn line_grid(words: usize, size: usize, slots: u32) -> Option<(u32, u32)> {
    let lines = words.div_ceil(LINE_WORDS);
    let room = slots as usize / LINE_SLOTS;
    // Small blocks start and end sooner; more of them until there is one everywhere.
    let small = SMALL_EXCHANGE_THREADS as usize / LINE_SLOTS;
    let blocks = lines
        .div_ceil(small.min(room.max(1)))
        .clamp(1, LINE_BLOCKS as usize);
    let each = lines.div_ceil(blocks);
    let threads = (each * LINE_SLOTS * size.saturating_sub(1))
        .next_multiple_of(32)
        .clamp(SMALL_EXCHANGE_THREADS as usize, LINE_THREADS as usize);
    (each <= room).then_some((blocks as u32, threads as u32))
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
    fn blocks_have_slots_for_their_lines() {
        for most in [8, 120, 4096, 100_000, 5_000_000] {
            let slots = line_slots(most);
            for words in (1..=most / 8).step_by(1 + most / 9000).chain([most / 8]) {
                let (blocks, threads) = line_grid(words, 1 + words % 8, slots).unwrap();
                assert!((1..=LINE_BLOCKS).contains(&blocks));
                assert!(threads.is_multiple_of(32) && threads <= LINE_THREADS);
                let each = words.div_ceil(LINE_WORDS).div_ceil(blocks as usize);
                assert!(
                    each * LINE_SLOTS <= slots as usize,
                    "{words} words of {most} bytes"
                );
            }
            let too_many = LINE_WORDS * LINE_BLOCKS as usize * slots as usize / LINE_SLOTS + 1;
            assert_eq!(line_grid(too_many, 2, slots), None);
        }
    }

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
