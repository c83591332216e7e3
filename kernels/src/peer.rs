//! Launch description of the peer-memory collectives: sizes, staging memory, blocks.
//! The protocol is described in `cuda/peer.cuh`.

/// Most ranks that a peer collective joins: the GPUs of one NVLink host.
pub const MAX_RANKS: usize = 8;
/// Most blocks of a launch. All must be resident at once, on every GPU from sm_80 on.
pub const MAX_BLOCKS: u32 = 32;
/// Threads of a block.
pub const THREADS: u32 = 512;
/// Bytes of one word, the granularity of messages.
pub const WORD: usize = 8;

/// Slots of one block, for one source rank, phase and parity: a message has at most
/// `MAX_BLOCKS * SLOTS_PER_BLOCK` words, 512 KiB.
pub const SLOTS_PER_BLOCK: u32 = 2048;
const SLOT_BYTES: usize = 16;

/// The collectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// One-shot all-gather of any type.
    AllGather,
    /// One-shot all-reduce (sum) of f32.
    OneShotF32,
    /// One-shot all-reduce (sum) of bf16, summed in f32.
    OneShotBf16,
    /// Two-shot all-reduce (sum) of f32.
    TwoShotF32,
    /// Two-shot all-reduce (sum) of bf16, summed in f32.
    TwoShotBf16,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 5] = [
        Operation::AllGather,
        Operation::OneShotF32,
        Operation::OneShotBf16,
        Operation::TwoShotF32,
        Operation::TwoShotBf16,
    ];

    /// Entry point for so many ranks; arguments `(PeerArgs, const u2* send, u2* recv, u64 words)`.
    /// Above two, packets of several ranks are looked for at once (`cuda/peer.cu`).
    #[must_use]
    pub fn kernel(self, ranks: usize) -> &'static str {
        let [of_two, of_many] = self.kernels();
        if ranks > 2 { of_many } else { of_two }
    }

    /// Entry points: of two ranks, and of more.
    #[must_use]
    pub fn kernels(self) -> [&'static str; 2] {
        match self {
            Operation::AllGather => ["parplan_all_gather", "parplan_all_gather_many"],
            Operation::OneShotF32 => [
                "parplan_all_reduce_one_shot_f32",
                "parplan_all_reduce_one_shot_f32_many",
            ],
            Operation::OneShotBf16 => [
                "parplan_all_reduce_one_shot_bf16",
                "parplan_all_reduce_one_shot_bf16_many",
            ],
            Operation::TwoShotF32 => [
                "parplan_all_reduce_two_shot_f32",
                "parplan_all_reduce_two_shot_f32_many",
            ],
            Operation::TwoShotBf16 => [
                "parplan_all_reduce_two_shot_bf16",
                "parplan_all_reduce_two_shot_bf16_many",
            ],
        }
    }

    /// Whether each rank reduces its part and sends it on.
    #[must_use]
    pub fn is_two_shot(self) -> bool {
        matches!(self, Operation::TwoShotF32 | Operation::TwoShotBf16)
    }

    /// The `words` argument for `bytes` sent by each rank: words of a message, or of a
    /// part for two shots. `None` when the size does not fit: not whole words (of
    /// `size` parts), or more than the staging memory holds.
    #[must_use]
    pub fn words(self, bytes: usize, size: usize) -> Option<u64> {
        let unit = if self.is_two_shot() {
            WORD * size
        } else {
            WORD
        };
        let words = bytes / unit;
        let fits = bytes.is_multiple_of(unit) && words <= (MAX_BLOCKS * SLOTS_PER_BLOCK) as usize;
        fits.then_some(words as u64)
    }
}

/// Mirror of `struct PeerArgs` in `cuda/peer.cuh`, passed by value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PeerArgs {
    /// Device address of each rank's staging memory, as this rank maps it.
    pub staging: [u64; MAX_RANKS],
    /// Device address of this rank's `u32[MAX_BLOCKS]` call counters, zero at first.
    pub epoch: u64,
    /// This rank.
    pub rank: u32,
    /// Ranks.
    pub size: u32,
    /// Blocks that the staging memory has slots for.
    pub max_blocks: u32,
    /// Slots of a block.
    pub slots_per_block: u32,
}

/// Bytes of a rank's staging memory, which must be zero before the first call.
#[must_use]
pub fn staging_bytes(size: usize, max_blocks: u32, slots_per_block: u32) -> usize {
    2 * 2 * size * max_blocks as usize * slots_per_block as usize * SLOT_BYTES
}

/// Blocks to launch for that many words: one word a thread while blocks last.
#[must_use]
pub fn blocks(words: u64) -> u32 {
    words
        .div_ceil(u64::from(THREADS))
        .clamp(1, u64::from(MAX_BLOCKS)) as u32
}
