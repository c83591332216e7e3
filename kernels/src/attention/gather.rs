//! Launch description of the all-gather by lines; the mirror of `cuda/attention_gather.cu`.

/// Entry point `(PeerArgs, const u4* send, u4* recv, u64 words)`: all-gather of `words` of
/// [`LINE_WORD`] bytes from each rank. The staging memory is [`line_staging_bytes`].
pub const ALL_GATHER_LINES: &str = "parplan_all_gather_lines";

/// Bytes of a word, of which messages are whole numbers: what a thread moves at once.
pub const LINE_WORD: usize = 16;
/// Words of a line.
const WORDS: usize = 8;
/// Blocks that lines have slots for: one a multiprocessor, so that all are resident.
pub const LINE_BLOCKS: u32 = 128;
/// Most threads of a block.
pub const LINE_THREADS: u32 = 1024;
/// Fewest threads of a block: small ones start and end sooner.
const SMALL_THREADS: usize = 128;

/// Slots of [`LINE_WORD`] bytes of each of [`LINE_BLOCKS`] blocks, for messages of at most
/// `bytes`.
#[must_use]
pub fn line_slots(bytes: usize) -> u32 {
    let lines = bytes.div_ceil(LINE_WORD * WORDS);
    (lines.div_ceil(LINE_BLOCKS as usize).max(1) * WORDS) as u32
}

/// Bytes of a rank's staging memory, which must be zero before the first call: the slots,
/// and 4 bytes for every line.
#[must_use]
pub fn line_staging_bytes(size: usize, slots: u32) -> usize {
    let slots = slots as usize;
    2 * size * LINE_BLOCKS as usize * (slots * LINE_WORD + slots / WORDS * 4)
}

/// Blocks and threads for so many words of each of `size` ranks and slots of a block: eight
/// threads for every line of every peer while they last. `None` when the words do not fit.
#[must_use]
pub fn line_grid(words: usize, size: usize, slots: u32) -> Option<(u32, u32)> {
    let lines = words.div_ceil(WORDS);
    let room = slots as usize / WORDS;
    let small = SMALL_THREADS / WORDS;
    // Small blocks, more of them until there is one everywhere.
    let blocks = lines
        .div_ceil(small.min(room.max(1)))
        .clamp(1, LINE_BLOCKS as usize);
    let each = lines.div_ceil(blocks);
    let threads = (each * WORDS * size.saturating_sub(1))
        .next_multiple_of(32)
        .clamp(SMALL_THREADS, LINE_THREADS as usize);
    (each <= room).then_some((blocks as u32, threads as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_slots_for_their_lines() {
        for most in [16, 128, 4096, 100_000, 5_000_000] {
            let slots = line_slots(most);
            let fit = most / LINE_WORD;
            for words in (1..=fit).step_by(1 + fit / 1000).chain([fit]) {
                let (blocks, threads) = line_grid(words, 1 + words % 8, slots).unwrap();
                assert!((1..=LINE_BLOCKS).contains(&blocks));
                assert!(threads.is_multiple_of(32) && threads <= LINE_THREADS);
                let each = words.div_ceil(WORDS).div_ceil(blocks as usize);
                assert!(
                    each * WORDS <= slots as usize,
                    "{words} words of {most} bytes"
                );
            }
            let too_many = LINE_BLOCKS as usize * slots as usize + 1;
            assert_eq!(line_grid(too_many, 2, slots), None);
        }
    }
}
