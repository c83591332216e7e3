//! Reference of `parplan_fill_values` (`cuda/memory.cu`), and the numbers that it and synthetic values
//! are made from.

use crate::attention::KvType;

/// Number `index` of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) from `seed`.
#[must_use]
pub fn split_mix(seed: u64, index: u64) -> u64 {
    let mut x = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// The 8 bytes at word `index`: values of either sign between 0.25 and 2.
#[must_use]
pub fn fill_word(seed: u64, index: u64, kv: KvType) -> [u8; 8] {
    let bits = split_mix(seed, index).to_le_bytes();
    match kv {
        KvType::Fp8 => bits.map(|b| b & 0x87 | (5 + (b >> 3 & 1) + (b >> 4 & 1)) << 3),
        KvType::Bf16 => {
            let mut word = [0; 8];
            for (to, from) in word.chunks_exact_mut(2).zip(bits.chunks_exact(2)) {
                let b = u16::from_le_bytes([from[0], from[1]]);
                let value = b & 0x807f | (125 + (b >> 7 & 1) + (b >> 8 & 1)) << 7;
                to.copy_from_slice(&value.to_le_bytes());
            }
            word
        }
    }
}
