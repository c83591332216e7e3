//! The CUDA sources, run under g++ with a thread for each CUDA thread, against the
//! Rust references. The peer collectives run with all ranks at once.

#![allow(clippy::unwrap_used, clippy::expect_used)] // tests, helper functions included

mod layer;
#[path = "../shim_library/mod.rs"]
mod shim_library;

use half::bf16;
use libloading::Symbol;
use parplan_kernels::peer::{PeerArgs, staging_bytes};
use parplan_kernels::reference::{place_rows, scale_bf16, take_rows};
use shim_library::symbol;

type Rows = unsafe extern "C" fn(*mut u8, *const u8, *const u64, u64, u64, u32, u32);

#[test]
fn place_rows_fills_every_row_and_leaves_no_poison() {
    let kernel: Symbol<'_, Rows> = symbol("shim_place_rows");
    for (total, offset, count, row) in [
        (5, 1, 3, 16),
        (1, 0, 1, 48),
        (7, 7, 0, 32),
        (64, 0, 64, 160),
        (33, 20, 13, 112),
    ] {
        let local: Vec<u8> = (0..count * row).map(|i| (i % 251) as u8 + 1).collect();
        let mut global = vec![0xff; total * row];
        let place = [offset as u64, count as u64];
        // SAFETY: all pointers are to live arrays of the sizes that the arguments say.
        unsafe {
            kernel(
                global.as_mut_ptr(),
                local.as_ptr(),
                place.as_ptr(),
                total as u64,
                (row / 16) as u64,
                2,
                16,
            )
        };
        assert_eq!(
            global,
            place_rows(&local, offset, count, total, row).unwrap()
        );
    }
}

#[test]
fn take_rows_takes_its_rows_and_touches_no_other() {
    let kernel: Symbol<'_, Rows> = symbol("shim_take_rows");
    for (total, offset, count, capacity, row) in [
        (5, 1, 3, 4, 16),
        (9, 8, 1, 1, 48),
        (7, 7, 0, 2, 32),
        (64, 10, 50, 50, 160),
    ] {
        let global: Vec<u8> = (0..total * row).map(|i| (i % 249) as u8).collect();
        let before = vec![0xff; capacity * row];
        let mut local = before.clone();
        let place = [offset as u64, count as u64];
        // SAFETY: as above.
        unsafe {
            kernel(
                local.as_mut_ptr(),
                global.as_ptr(),
                place.as_ptr(),
                capacity as u64,
                (row / 16) as u64,
                3,
                8,
            )
        };
        assert_eq!(
            local,
            take_rows(&before, &global, offset, count, row).unwrap()
        );
    }
}

#[test]
fn scale_rounds_as_the_reference_does() {
    type Scale = unsafe extern "C" fn(*mut bf16, *const bf16, f32, u64, u32, u32);
    let kernel: Symbol<'_, Scale> = symbol("shim_scale_bf16");
    // Every bf16 there is, NaN and infinities included.
    let input: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    for factor in [1.0, 3.0, 0.1, -2.5] {
        let mut out = vec![bf16::NAN; input.len()];
        // SAFETY: as above.
        unsafe {
            kernel(
                out.as_mut_ptr(),
                input.as_ptr(),
                factor,
                input.len() as u64,
                2,
                8,
            )
        };
        for ((got, want), from) in out.iter().zip(scale_bf16(&input, factor)).zip(&input) {
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{from} * {factor}: {got}, must be {want}"
            );
        }
    }
}

type Peer = unsafe extern "C" fn(u32, *const PeerArgs, *const u8, *mut u8, u64, u32, u32);

const MAX_BLOCKS: u32 = 3;
const SLOTS: u32 = 40;

/// Ranks with staging memory and call counters in this process.
struct Ranks {
    staging: Vec<Vec<u128>>,
    epochs: Vec<Vec<u32>>,
}

impl Ranks {
    fn new(size: usize) -> Self {
        let slots = staging_bytes(size, MAX_BLOCKS, SLOTS) / 16;
        Ranks {
            staging: vec![vec![0; slots]; size],
            epochs: vec![vec![0; MAX_BLOCKS as usize]; size],
        }
    }

    /// One collective on all ranks at once; rank 1 comes late.
    fn run(
        &mut self,
        op: u32,
        send: &[Vec<u8>],
        recv_len: usize,
        words: usize,
        blocks: u32,
    ) -> Vec<Vec<u8>> {
        let kernel: Symbol<'_, Peer> = symbol("shim_peer");
        let size = send.len();
        let mut staging = [0; 8];
        for (address, memory) in staging.iter_mut().zip(&mut self.staging) {
            *address = memory.as_mut_ptr() as u64;
        }
        let args: Vec<PeerArgs> = self
            .epochs
            .iter_mut()
            .enumerate()
            .map(|(rank, epoch)| PeerArgs {
                staging,
                epoch: epoch.as_mut_ptr() as u64,
                rank: rank as u32,
                size: size as u32,
                max_blocks: MAX_BLOCKS,
                slots_per_block: SLOTS,
            })
            .collect();
        std::thread::scope(|scope| {
            let threads: Vec<_> = args
                .iter()
                .zip(send)
                .enumerate()
                .map(|(rank, (args, send))| {
                    let kernel = &kernel;
                    scope.spawn(move || {
                        if rank == 1 {
                            std::thread::sleep(std::time::Duration::from_millis(3));
                        }
                        let mut recv = vec![0xff; recv_len];
                        // SAFETY: the buffers hold `words` words of each rank, the
                        // staging memory has slots for them, and all outlive the call.
                        unsafe {
                            kernel(
                                op,
                                args,
                                send.as_ptr(),
                                recv.as_mut_ptr(),
                                words as u64,
                                blocks,
                                4,
                            )
                        };
                        recv
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }
}

/// Element i of rank r in call c, small so that sums are exact in bf16.
fn value(rank: usize, i: usize, call: usize) -> f32 {
    ((i * 3 + rank * 5 + call * 7) % 8) as f32
}

#[test]
fn peer_collectives_are_exact_over_calls_of_changing_size() {
    for size in [1, 2, 3, 4] {
        let mut ranks = Ranks::new(size);
        // More calls than parities, sizes up and down, block counts changing between.
        for (call, (words, blocks)) in [(1, 1), (37, 2), (5, 3), (120, 3), (2, 1), (40, 1)]
            .into_iter()
            .enumerate()
        {
            let f32s = |r: usize, n: usize| (0..n).map(|i| value(r, i, call)).collect::<Vec<f32>>();
            let bytes = |v: &[f32]| v.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>();
            let halves = |v: &[f32]| {
                v.iter()
                    .flat_map(|v| bf16::from_f32(*v).to_ne_bytes())
                    .collect::<Vec<u8>>()
            };
            let sum = |n: usize| {
                (0..n)
                    .map(|i| (0..size).map(|r| value(r, i, call)).sum())
                    .collect::<Vec<f32>>()
            };

            let send: Vec<Vec<u8>> = (0..size).map(|r| bytes(&f32s(r, words * 2))).collect();
            let all = send.concat();
            assert_eq!(
                ranks.run(0, &send, all.len(), words, blocks),
                vec![all; size],
                "all-gather {size} {words}"
            );
            let want = bytes(&sum(words * 2));
            assert_eq!(
                ranks.run(1, &send, words * 8, words, blocks),
                vec![want; size],
                "one shot f32 {size} {words}"
            );
            let send: Vec<Vec<u8>> = (0..size).map(|r| halves(&f32s(r, words * 4))).collect();
            let want = halves(&sum(words * 4));
            assert_eq!(
                ranks.run(2, &send, words * 8, words, blocks),
                vec![want; size],
                "one shot bf16 {size} {words}"
            );

            let n = words * size;
            let send: Vec<Vec<u8>> = (0..size).map(|r| bytes(&f32s(r, n * 2))).collect();
            let want = bytes(&sum(n * 2));
            assert_eq!(
                ranks.run(3, &send, n * 8, words, blocks),
                vec![want; size],
                "two shots f32 {size} {words}"
            );
            let send: Vec<Vec<u8>> = (0..size).map(|r| halves(&f32s(r, n * 4))).collect();
            let want = halves(&sum(n * 4));
            assert_eq!(
                ranks.run(4, &send, n * 8, words, blocks),
                vec![want; size],
                "two shots bf16 {size} {words}"
            );
        }
    }
}
