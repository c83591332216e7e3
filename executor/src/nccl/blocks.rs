//! Memory from NCCL that waits for its next user.

use std::collections::HashMap;

/// Blocks of `ncclMemAlloc`, which go from user to user of the same size and are never
/// given back to NCCL.
///
/// A captured graph leaves a record in its communicator of the buffers that it uses, with
/// the addresses where the peers map them. NCCL drops the record some time after the graph
/// was destroyed, whether or not the buffer is deregistered and freed by then. New memory
/// at the address of freed memory would be found by the old record, and peers would go on
/// writing to and reading from what they had mapped: seen on 2 × H200 (NCCL 2.28.3) as
/// results that lack the peer's part, when several ways of an attention ran one after the
/// other. Where an address always means the same memory, such a record is right.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    bytes: HashMap<u64, usize>,
    waiting: HashMap<usize, Vec<u64>>,
}

impl Blocks {
    /// A block of so many bytes that nobody uses.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u64> {
        self.waiting.get_mut(&bytes)?.pop()
    }

    /// Notes a new block, which its user has.
    pub(super) fn made(&mut self, address: u64, bytes: usize) {
        self.bytes.insert(address, bytes);
    }

    /// Takes a block back from its user. Nothing for an address that is no block.
    pub(super) fn give(&mut self, address: u64) {
        if let Some(bytes) = self.bytes.get(&address) {
            self.waiting.entry(*bytes).or_default().push(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_means_the_same_memory_for_ever() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.take(4096), None);
        blocks.made(0x1000, 4096);
        blocks.made(0x9000, 8192);
        assert_eq!(blocks.take(4096), None, "its user has it");
        blocks.give(0x1000);
        blocks.give(0x9000);
        blocks.give(0x5000);
        assert_eq!(blocks.take(8192), Some(0x9000));
        assert_eq!(blocks.take(8192), None);
        assert_eq!(blocks.take(4096), Some(0x1000));
        assert_eq!(blocks.take(2048), None, "no block is cut");
        blocks.give(0x1000);
        assert_eq!(blocks.take(4096), Some(0x1000));
    }
}
