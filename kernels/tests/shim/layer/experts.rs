//! Tokens on their way to experts and back.

use half::bf16;
use libloading::Symbol;
use parplan_kernels::layer::Grouped;
use parplan_kernels::reference::{route, sort_pairs, sum_experts, uniform};

use super::{near, values};
use crate::symbol;

#[test]
fn routing_agrees_where_logits_tie_and_where_they_are_no_numbers() {
    type F = unsafe extern "C" fn(*const f32, *mut i32, *mut f32, u32, u32, u32);
    let kernel: Symbol<'_, F> = symbol("shim_route");
    for (rows, experts, top_k) in [
        (5usize, 8usize, 2usize),
        (3, 128, 8),
        (6, 40, 40),
        (1, 300, 8),
    ] {
        let top_k = top_k.min(32);
        let mut logits: Vec<f32> = (0..rows * experts)
            // Few different values: ties everywhere.
            .map(|i| (uniform(7, i as u64) * 4.0).round())
            .collect();
        logits[1] = f32::NAN;
        if rows > 2 {
            logits[2 * experts..3 * experts].fill(f32::NAN);
        }
        let mut ids = vec![-9; rows * top_k];
        let mut weights = vec![f32::NAN; rows * top_k];
        // SAFETY: as above.
        unsafe {
            kernel(
                logits.as_ptr(),
                ids.as_mut_ptr(),
                weights.as_mut_ptr(),
                rows as u32,
                experts as u32,
                top_k as u32,
            )
        };
        for (r, row) in logits.chunks_exact(experts).enumerate() {
            let (want, shares) = route(row, top_k);
            assert_eq!(ids[r * top_k..][..top_k], want, "row {r} of {experts}");
            for (got, want) in weights[r * top_k..][..top_k].iter().zip(&shares) {
                assert!((got - want).abs() < 1e-5, "{got} {want}");
            }
        }
    }
}

#[test]
fn pairs_are_sorted_and_cut_into_tiles() {
    type F = unsafe extern "C" fn(
        *const i32,
        *mut i32,
        *mut i32,
        *mut [u32; 2],
        u32,
        i32,
        u32,
        u32,
        u32,
    );
    let kernel: Symbol<'_, F> = symbol("shim_sort_pairs");
    for (pairs, experts, first, all) in
        [(40usize, 5usize, 3i32, 11), (700, 40, 0, 40), (9, 4, 8, 8)]
    {
        let ids: Vec<i32> = (0..pairs as u64)
            .map(|i| (uniform(3, i) * 8000.0) as i32 % all)
            .map(i32::abs)
            .collect();
        for (wide, capability) in [(false, (8, 0)), (true, (8, 0)), (true, (9, 0))] {
            let product = Grouped::choose(false, wide, capability);
            let max = product.max_tiles(pairs, experts);
            let mut order = vec![-1; pairs];
            let mut offsets = vec![-1; experts + 1];
            let mut tiles = vec![[u32::MAX; 2]; max + 1];
            // SAFETY: as above.
            unsafe {
                kernel(
                    ids.as_ptr(),
                    order.as_mut_ptr(),
                    offsets.as_mut_ptr(),
                    tiles.as_mut_ptr(),
                    pairs as u32,
                    first,
                    experts as u32,
                    product.rows,
                    max as u32,
                )
            };
            let want = sort_pairs(&ids, first, experts);
            assert_eq!(offsets, want.offsets);
            let mut expected = Vec::new();
            for e in 0..experts {
                let own = offsets[e] as usize..offsets[e + 1] as usize;
                let mut got = order[own.clone()].to_vec();
                got.sort_unstable();
                assert_eq!(got, want.order[own.clone()], "expert {e}");
                for slot in own.step_by(product.rows as usize) {
                    expected.push([e as u32, slot as u32]);
                }
            }
            assert_eq!(tiles[max][0] as usize, expected.len());
            assert_eq!(tiles[..expected.len()], expected);
        }
    }
}

#[test]
fn outputs_of_local_experts_are_weighted_and_added() {
    type F = unsafe extern "C" fn(
        *mut bf16,
        *const bf16,
        *const i32,
        *const f32,
        *const bf16,
        u32,
        i32,
        u32,
        u64,
        u32,
    );
    let kernel: Symbol<'_, F> = symbol("shim_sum_experts");
    let (rows, top_k, hidden) = (3usize, 4usize, 40usize);
    let ids: Vec<i32> = (0..12)
        .map(|i| i * 5 % 7 - i32::from(i == 3) * 10)
        .collect();
    let weights: Vec<f32> = (0..12).map(|i| 0.1 * i as f32).collect();
    let outputs = values(1, rows * top_k * hidden);
    let base = values(2, rows * hidden);
    for base in [None, Some(base.as_slice())] {
        let mut out = vec![bf16::NAN; rows * hidden];
        // SAFETY: as above.
        unsafe {
            kernel(
                out.as_mut_ptr(),
                outputs.as_ptr(),
                ids.as_ptr(),
                weights.as_ptr(),
                base.map_or(std::ptr::null(), <[bf16]>::as_ptr),
                top_k as u32,
                2,
                3,
                (hidden / 8) as u64,
                rows as u32,
            )
        };
        let want = sum_experts(&outputs, &ids, &weights, 2..5, top_k, hidden, base);
        near(&out, &want);
    }
}

#[test]
fn packed_rows_carry_the_choices_of_their_rank_and_unpack_again() {
    type Pack = unsafe extern "C" fn(
        *mut u8,
        *const bf16,
        *const i32,
        *const f32,
        u32,
        u32,
        u32,
        u64,
        u64,
        u32,
    );
    type Unpack = unsafe extern "C" fn(*mut i32, *mut f32, *const u8, u32, u32, u64, u64);
    let pack: Symbol<'_, Pack> = symbol("shim_pack_rows");
    let unpack: Symbol<'_, Unpack> = symbol("shim_unpack_choices");
    let (rows, top_k, hidden, experts, parts) = (3usize, 3usize, 16usize, 4i32, 2usize);
    let row = (hidden * 2 + top_k * 8usize).next_multiple_of(16);
    let input = values(1, rows * hidden);
    let ids = [0, 4, 7, 3, 3, 1, -1, 6, 5];
    let weights: Vec<f32> = (0..9).map(|i| i as f32).collect();
    let mut packed = vec![0xffu8; parts * rows * row];
    let (words, packed_words) = ((hidden / 8) as u64, (row / 16) as u64);
    // SAFETY: as above.
    unsafe {
        pack(
            packed.as_mut_ptr(),
            input.as_ptr(),
            ids.as_ptr(),
            weights.as_ptr(),
            rows as u32,
            top_k as u32,
            experts as u32,
            words,
            packed_words,
            parts as u32,
        )
    };
    let (mut got, mut shares) = (vec![0; parts * 9], vec![0f32; parts * 9]);
    // SAFETY: as above.
    unsafe {
        unpack(
            got.as_mut_ptr(),
            shares.as_mut_ptr(),
            packed.as_ptr(),
            (parts * rows) as u32,
            top_k as u32,
            words,
            packed_words,
        )
    };
    for part in 0..parts {
        for i in 0..9 {
            let here = ids[i] >= 0 && ids[i] / experts == part as i32;
            assert_eq!(got[part * 9 + i], if here { ids[i] } else { -1 });
            assert_eq!(shares[part * 9 + i], weights[i]);
        }
        for r in 0..rows {
            let bytes = &packed[(part * rows + r) * row..][..hidden * 2];
            let back: Vec<bf16> = bytes
                .chunks_exact(2)
                .map(|b| bf16::from_bits(u16::from_le_bytes([b[0], b[1]])))
                .collect();
            assert_eq!(back, input[r * hidden..][..hidden]);
        }
    }
}

/// The order in which a warpgroup product takes columns of k from its two operands: thread q of four holds
/// the columns (2q, 2q + 1) and (2q + 8, 2q + 9) of 16, and of e4m3 the bytes 4q to 4q + 3.
#[test]
fn rows_come_in_the_order_of_the_bytes_that_a_thread_has() {
    type F = unsafe extern "C" fn(*mut u16, *const u16, u64, u64, u64, *const i32);
    let kernel: Symbol<'_, F> = symbol("shim_pair_order");
    for (rows, columns, pitch, limit) in [
        (3usize, 16usize, 16usize, None),
        (5, 48, 56, None),
        (7, 208, 240, Some(4)),
        (4, 32, 32, Some(0)),
        (4, 32, 32, Some(-1)),
    ] {
        let input: Vec<u16> = (0..rows * pitch).map(|i| i as u16).collect();
        let mut out = vec![u16::MAX; rows * columns];
        let limit: Option<i32> = limit;
        let end = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the buffers are as long as rows, groups and pitch say, and their words aligned.
        unsafe {
            kernel(
                out.as_mut_ptr(),
                input.as_ptr(),
                rows as u64,
                (columns / 16) as u64,
                pitch as u64,
                end,
            )
        };
        let there = limit.map_or(rows, |l| l.max(0) as usize);
        for row in 0..rows {
            for group in 0..columns / 16 {
                let got = &out[row * columns + group * 16..][..16];
                if row >= there {
                    assert!(got.iter().all(|v| *v == u16::MAX), "row {row} was written");
                    continue;
                }
                let from = &input[row * pitch + group * 16..][..16];
                for q in 0..4 {
                    let held = [got[2 * q], got[2 * q + 1], got[2 * q + 8], got[2 * q + 9]];
                    assert_eq!(held, from[4 * q..4 * q + 4], "row {row}, group {group}");
                }
            }
        }
    }
}
