//! Launch description of the all-gather by lines; the mirror of `cuda/attention_gather.cu`.

use crate::peer::MAX_RANKS;

/// Entry point `(LineArgs, const u4* send, u4* recv, u64 words)`: all-gather of `words` of
/// [`LINE_WORD`] bytes from each rank. The staging memory is [`line_staging_bytes`].
pub const ALL_GATHER_LINES: &str = "parplan_all_gather_lines";

/// Bytes of a word, of which messages are whole numbers: what a thread moves at once.
pub const LINE_WORD: usize = 16;
/// Words of a line.
const WORDS: usize = 8;
/// Most blocks of a launch, at most one a multiprocessor.
pub const LINE_BLOCKS: u32 = 128;
/// Most threads of a block.
const MOST_THREADS: usize = 1024;
/// Fewest threads of a block: small ones start and end sooner.
const FEWEST_THREADS: usize = 128;

/// Mirror of `struct LineArgs`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // described once, in the source
pub struct LineArgs {
    pub staging: [u64; MAX_RANKS],
    pub epoch: u64,
    pub rank: u32,
    pub size: u32,
    pub most: u32,
    pub counters: u32,
    pub roles: u32,
    pub pad: u32,
}

/// How [`ALL_GATHER_LINES`] is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineGrid {
    /// Blocks.
    pub blocks: u32,
    /// Threads of each.
    pub threads: u32,
    /// [`LineArgs::roles`].
    pub roles: u32,
}

/// Lines of a message of `bytes`.
#[must_use]
pub fn lines(bytes: usize) -> usize {
    bytes.div_ceil(LINE_WORD * WORDS)
}

/// Bytes of a rank's staging memory for messages of at most `most` lines, which must be
/// zero before the first call: the lines, and 4 bytes for each.
#[must_use]
pub fn line_staging_bytes(size: usize, most: usize) -> usize {
    2 * size * most * (LINE_WORD * WORDS + 4)
}

/// Eight threads for every line of every peer while they last. Where they do not, a thread
/// that sends its second line has the first of a peer waiting; between two ranks half of
/// the blocks then do nothing but send, and half nothing but receive. Measured on H200, 4.7 MB
/// from each of 2 ranks: 15.95 µs against 16.17. Of 4 ranks, 2.4 MB from each to each of
/// three, it took 27.8 µs, more than the 25.4 of a form whose blocks do both.
#[must_use]
pub fn line_grid(bytes: usize, size: usize) -> LineGrid {
    let lines = lines(bytes);
    let to_all = |lines: usize| lines * WORDS * size.saturating_sub(1);
    if size == 2 && to_all(lines) > LINE_BLOCKS as usize * MOST_THREADS {
        return LineGrid {
            blocks: LINE_BLOCKS,
            threads: MOST_THREADS as u32,
            roles: 2,
        };
    }
    // Small blocks, more of them until there is one everywhere.
    let blocks = lines
        .div_ceil(FEWEST_THREADS / WORDS)
        .clamp(1, LINE_BLOCKS as usize);
    let threads = to_all(lines.div_ceil(blocks))
        .next_multiple_of(32)
        .clamp(FEWEST_THREADS, MOST_THREADS);
    LineGrid {
        blocks: blocks as u32,
        threads: threads as u32,
        roles: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_threads_while_these_last() {
        for size in 1..=8 {
            for bytes in (16..6_000_000).step_by(16 * 997) {
                let grid = line_grid(bytes, size);
                assert!((1..=LINE_BLOCKS).contains(&grid.blocks));
                assert!(grid.threads.is_multiple_of(32), "whole warps vote");
                assert!(grid.threads as usize <= MOST_THREADS);
                assert!(grid.blocks.is_multiple_of(grid.roles));
                let wanted = lines(bytes) * WORDS * (size - 1);
                let threads = (grid.blocks * grid.threads) as usize;
                let most = LINE_BLOCKS as usize * MOST_THREADS;
                assert!(threads >= wanted.min(most), "{bytes} {size}");
                assert_eq!(grid.roles == 2, size == 2 && wanted > most);
            }
        }
    }
}
