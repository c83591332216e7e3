//! The plan of attention's splits and the merges, run under g++ against the Rust
//! references. Exchanges over peer memory run with all ranks at once.

#![allow(clippy::unwrap_used)] // tests, helper functions included

mod shim_library;

use half::bf16;
use libloading::Symbol;
use parplan_kernels::attention::{
    AttentionArgs, BulkArgs, Kernel, Kind, KvType, LineArgs, MergeArgs, Shape, Shard, bulk_bytes,
    line_staging_bytes, plan_bytes,
};
use parplan_kernels::peer::{PeerArgs, staging_bytes};
use parplan_kernels::reference::{
    LogBase, Shard as Piece, correct_rank, fill_word, merge_by_lse, merge_ranks,
};
use proptest::prelude::*;
use shim_library::symbol;

fn noise(stream: u64, index: usize) -> f32 {
    let bytes = fill_word(stream, index as u64, KvType::Bf16);
    bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

#[test]
fn values_are_those_of_the_reference() {
    type Fill = unsafe extern "C" fn(*mut u64, u64, u64, u64, u32, u32);
    let kernel: Symbol<'_, Fill> = symbol("shim_fill_values");
    for (fp8, kv) in [(0, KvType::Bf16), (1, KvType::Fp8)] {
        let mut got = vec![0u64; 1000];
        // SAFETY: the array has that many words.
        unsafe { kernel(got.as_mut_ptr(), 1000, fp8, 77, 2, 16) };
        for (i, word) in got.iter().enumerate() {
            assert_eq!(word.to_le_bytes(), fill_word(77, i as u64, kv));
        }
    }
}

#[derive(Debug, Clone)]
struct Steps {
    heads: usize,
    kv_heads: usize,
    max_query: usize,
    chunks: u32,
    shard: Shard,
    requests: Vec<(u32, u32)>,
    /// Blocks that share the items of the merge, and warps of a block.
    columns: u32,
    warps: u32,
    /// What an item costs beside its units.
    item_units: u32,
}

fn steps() -> impl Strategy<Value = Steps> {
    let shard = (1usize..4, 0usize..3, 1usize..4).prop_map(|(size, rank, interleave)| Shard {
        rank: rank % size,
        size,
        interleave,
    });
    (
        1usize..3,
        1usize..6,
        1u32..9,
        shard,
        prop::collection::vec((0u32..600, 0u32..5), 1..9),
        prop::bool::ANY,
        0u32..4,
    )
        .prop_map(
            |(kv_heads, group, chunks, shard, requests, few, item_units)| Steps {
                item_units,
                heads: kv_heads * group,
                kv_heads,
                max_query: requests.iter().map(|r| r.1).max().unwrap_or(1).max(1) as usize,
                chunks,
                shard,
                requests,
                columns: if few { 1 } else { chunks.min(3) },
                warps: if few { 2 } else { 4 },
            },
        )
}

/// Runs the plan, plays the attention kernel on it with one number for each unit, merges,
/// and compares with the numbers of all units of each row.
fn hold(s: &Steps) -> Result<(), TestCaseError> {
    const DIM: usize = 64;
    type Plan = unsafe extern "C" fn(*const AttentionArgs);
    type Combine = unsafe extern "C" fn(*const AttentionArgs, u32, u32, u32, u32);
    let kind = Kind::Gqa {
        heads: s.heads,
        kv_heads: s.kv_heads,
        head_dim: DIM,
    };
    let shape = Shape::new(kind, KvType::Bf16, 16);
    let kernel = Kernel::choose(&shape, s.max_query, (9, 0)).unwrap();
    let lens: Vec<u32> = s.requests.iter().map(|r| r.0).collect();
    let mut offsets = vec![0u32];
    for r in &s.requests {
        offsets.push(offsets.last().unwrap() + r.1);
    }
    let tokens = *offsets.last().unwrap() as usize;
    let max_tiles = kernel.max_tiles(&shape, lens.len(), tokens);
    let mut plan = vec![u32::MAX; plan_bytes(lens.len(), max_tiles, s.chunks as usize) / 4];
    let rows = kernel.rows as usize;
    let mut partial_out = vec![f32::NAN; 2 * s.chunks as usize * rows * DIM];
    let mut partial_lse = vec![f32::NAN; 2 * s.chunks as usize * rows];
    let mut out = vec![bf16::NAN; tokens * s.heads * DIM];
    let mut lse = vec![f32::NAN; tokens * s.heads];
    let args = AttentionArgs {
        out: out.as_mut_ptr() as u64,
        lse: lse.as_mut_ptr() as u64,
        kv_lens: lens.as_ptr() as u64,
        query_offsets: offsets.as_ptr() as u64,
        plan: plan.as_mut_ptr() as u64,
        partial_out: partial_out.as_mut_ptr() as u64,
        partial_lse: partial_lse.as_mut_ptr() as u64,
        requests: lens.len() as u32,
        tokens: tokens as u32,
        chunks: s.chunks,
        max_tiles: max_tiles as u32,
        item_units: s.item_units,
        ..AttentionArgs::of(&shape, &s.shard, &kernel)
    };
    let (run_plan, run_combine): (Symbol<'_, Plan>, Symbol<'_, Combine>) = (
        symbol("shim_attention_plan"),
        symbol("shim_attention_combine"),
    );
    // SAFETY: the arrays are as large as the arguments say.
    unsafe { run_plan(&raw const args) };

    // A unit of (tile, head, unit) for a row has this output and LSE.
    let value = |tile: usize, head: usize, unit: usize, row: usize, d: usize| {
        noise(5, (((tile * 8 + head) * 64 + unit) * 64 + row) * DIM + d)
    };
    let weight = |tile: usize, head: usize, unit: usize, row: usize| {
        noise(6, ((tile * 8 + head) * 64 + unit) * 64 + row)
    };
    let merged = |tile: usize, head: usize, units: std::ops::Range<usize>, row: usize| {
        let outs: Vec<Vec<f64>> = units
            .clone()
            .map(|u| {
                (0..DIM)
                    .map(|d| f64::from(value(tile, head, u, row, d)))
                    .collect()
            })
            .collect();
        let lses: Vec<[f64; 1]> = units
            .map(|u| [f64::from(weight(tile, head, u, row))])
            .collect();
        let pieces: Vec<Piece<'_, f64>> = outs
            .iter()
            .zip(&lses)
            .map(|(out, lse)| Piece { out, lse })
            .collect();
        merge_by_lse(&pieces, DIM, LogBase::Natural).unwrap()
    };
    let (tiles, used) = (plan[3] as usize, plan[2] as usize);
    prop_assert!(used <= s.chunks as usize);
    let record = |t: usize| &plan[16 + 8 * t..24 + 8 * t];
    let units_of = |t: usize| {
        (record(t)[6] as usize)
            .div_ceil(kernel.unit_tokens as usize)
            .max(1)
    };
    let group = s.heads / s.kv_heads;
    let at = |t: usize, head: usize, row: usize| {
        let in_request = record(t)[2] as usize + row;
        (record(t)[1] as usize + in_request / group) * s.heads + head * group + in_request % group
    };
    let mut seen = vec![0usize; tiles * s.kv_heads];
    for c in 0..used {
        let begin = 16 + 8 * max_tiles + 4 * c;
        let [mut tile, mut head, mut unit, mut left] =
            [0, 1, 2, 3].map(|i| plan[begin + i] as usize);
        prop_assert!(left > 0 || s.item_units > 0);
        while left > 0 {
            let units = units_of(tile);
            let count = left.min(units - unit);
            prop_assert_eq!(
                seen[tile * s.kv_heads + head],
                unit,
                "units come in order, none twice"
            );
            seen[tile * s.kv_heads + head] += count;
            for row in 0..record(tile)[3] as usize {
                let m = merged(tile, head, unit..unit + count, row);
                if count == units {
                    let to = at(tile, head, row);
                    for (o, v) in out[to * DIM..(to + 1) * DIM].iter_mut().zip(&m.out) {
                        *o = bf16::from_f64(*v);
                    }
                    lse[to] = m.lse[0] as f32;
                } else {
                    let slot = (2 * c + usize::from(unit == 0)) * rows + row;
                    for (o, v) in partial_out[slot * DIM..(slot + 1) * DIM]
                        .iter_mut()
                        .zip(&m.out)
                    {
                        *o = *v as f32;
                    }
                    partial_lse[slot] = m.lse[0] as f32;
                }
            }
            left -= count;
            unit = 0;
            head += 1;
            if head == s.kv_heads {
                head = 0;
                tile += 1;
            }
        }
    }
    let most = (group * s.max_query).min(rows) as u32;
    // SAFETY: as above.
    unsafe { run_combine(&raw const args, DIM as u32, s.columns, most, s.warps) };
    let mut rows_seen = 0;
    for tile in 0..tiles {
        for head in 0..s.kv_heads {
            let units = units_of(tile);
            prop_assert_eq!(
                seen[tile * s.kv_heads + head],
                units,
                "all units of every item"
            );
            for row in 0..record(tile)[3] as usize {
                rows_seen += 1;
                let want = merged(tile, head, 0..units, row);
                let to = at(tile, head, row);
                prop_assert!((f64::from(lse[to]) - want.lse[0]).abs() < 1e-5);
                for (got, want) in out[to * DIM..(to + 1) * DIM].iter().zip(&want.out) {
                    prop_assert!((got.to_f64() - want).abs() < 0.01, "{} {}", got, want);
                }
            }
        }
    }
    prop_assert_eq!(rows_seen, tokens * s.heads);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn every_unit_is_in_one_chunk_and_pieces_merge_to_the_whole(s in steps()) {
        hold(&s)?;
    }
}

/// Partial outputs `[ranks, rows, dim]` and LSEs of one rank; some rows are empty, and
/// their outputs NaN.
fn partial(rank: usize, ranks: usize, rows: usize, dim: usize) -> (Vec<bf16>, Vec<f32>) {
    let mut out: Vec<bf16> = (0..ranks * rows * dim)
        .map(|i| bf16::from_f32(noise(rank as u64 + 20, i)))
        .collect();
    let mut lse: Vec<f32> = (0..ranks * rows)
        .map(|i| 3.0 * noise(rank as u64 + 40, i))
        .collect();
    for row in 0..ranks * rows {
        // Every 7th row is held by nobody.
        if row % 7 == 3 || (row + rank).is_multiple_of(3) {
            lse[row] = f32::NEG_INFINITY;
            out[row * dim..(row + 1) * dim].fill(bf16::NAN);
        }
    }
    (out, lse)
}

fn near(got: &[bf16], want: &[bf16]) {
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let off = (g.to_f32() - w.to_f32()).abs();
        assert!(
            off <= 0.008 * w.to_f32().abs() + 1e-6,
            "element {i}: {g}, must be {w}"
        );
    }
}

fn near_lse(got: &[f32], want: &[f32]) {
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g == w || (g - w).abs() < 1e-5, "LSE {i}: {g}, must be {w}");
    }
}

/// What rank `rank` gets when all ranks send it their parts.
fn sent_to(rank: usize, ranks: usize, rows: usize, dim: usize) -> (Vec<bf16>, Vec<f32>) {
    let (mut parts, mut lses) = (vec![], vec![]);
    for r in 0..ranks {
        let (out, lse) = partial(r, ranks, rows, dim);
        parts.extend_from_slice(&out[rank * rows * dim..(rank + 1) * rows * dim]);
        lses.extend_from_slice(&lse[rank * rows..(rank + 1) * rows]);
    }
    (parts, lses)
}

#[test]
fn correction_and_merge_are_those_of_the_reference() {
    type Kernel = unsafe extern "C" fn(*const MergeArgs, u32, u32);
    let correct: Symbol<'_, Kernel> = symbol("shim_dcp_correct");
    let merge: Symbol<'_, Kernel> = symbol("shim_dcp_merge");
    for (ranks, rows, dim, blocks, threads) in [
        (1, 3, 64, 1, 4),
        (2, 9, 128, 3, 16),
        (4, 5, 512, 2, 32),
        (8, 14, 64, 2, 8),
    ] {
        let all: Vec<f32> = (0..ranks)
            .flat_map(|r| partial(r, ranks, rows, dim).1)
            .collect();
        for rank in 0..ranks {
            let (mut parts, _) = partial(rank, ranks, rows, dim);
            let (want, want_lse) = correct_rank(&parts, &all, rank, ranks, dim).unwrap();
            let mut lse = vec![f32::NAN; rows];
            let args = MergeArgs {
                lse_out: lse.as_mut_ptr() as u64,
                parts: parts.as_mut_ptr() as u64,
                lses: all.as_ptr() as u64,
                rows: rows as u32,
                dim: dim as u32,
                rank: rank as u32,
                size: ranks as u32,
                ..MergeArgs::default()
            };
            // SAFETY: the arrays have the sizes that the arguments say.
            unsafe { correct(&raw const args, blocks, threads) };
            near(&parts, &want);
            near_lse(&lse, &want_lse);

            let (received, lses) = sent_to(rank, ranks, rows, dim);
            let (want, want_lse) = merge_ranks(&received, &lses, ranks, dim).unwrap();
            let mut out = vec![bf16::NAN; rows * dim];
            let mut lse = vec![f32::NAN; rows];
            let args = MergeArgs {
                out: out.as_mut_ptr() as u64,
                lse_out: lse.as_mut_ptr() as u64,
                parts: received.as_ptr() as u64,
                lses: lses.as_ptr() as u64,
                ..args
            };
            // SAFETY: as above.
            unsafe { merge(&raw const args, blocks, threads) };
            near(&out, &want);
            near_lse(&lse, &want_lse);
        }
    }
}

#[test]
fn exchanges_over_peer_memory_merge_what_all_ranks_sent() {
    type Packets = unsafe extern "C" fn(*const PeerArgs, *const MergeArgs, u32, u32);
    type Bulk = unsafe extern "C" fn(*const BulkArgs, *const MergeArgs, u32, u32);
    let packets: Symbol<'_, Packets> = symbol("shim_dcp_merge_packets");
    let bulk: Symbol<'_, Bulk> = symbol("shim_dcp_merge_bulk");
    const BLOCKS: u32 = 3;
    const SLOTS: u32 = 150;
    for ranks in [1usize, 2, 3, 8] {
        let stride = bulk_bytes(9, 64).next_multiple_of(16);
        let mut staging = vec![vec![0u128; staging_bytes(ranks, BLOCKS, SLOTS) / 16]; ranks];
        let mut bulk_staging = vec![vec![u128::MAX; 2 * ranks * stride / 16]; ranks];
        let mut flags = vec![vec![0u32; ranks * BLOCKS as usize]; ranks];
        let mut epochs = vec![vec![0u32; 2 * BLOCKS as usize]; ranks];
        let addresses = |memory: &mut [Vec<u128>]| {
            let mut all = [0u64; 8];
            for (a, m) in all.iter_mut().zip(memory) {
                *a = m.as_mut_ptr() as u64;
            }
            all
        };
        let (slots, regions) = (addresses(&mut staging), addresses(&mut bulk_staging));
        let mut flag_addresses = [0u64; 8];
        for (a, f) in flag_addresses.iter_mut().zip(&mut flags) {
            *a = f.as_mut_ptr() as u64;
        }
        let epoch_addresses: Vec<u64> = epochs.iter_mut().map(|e| e.as_mut_ptr() as u64).collect();
        // Several calls after each other, of different sizes, without a barrier between.
        for rows in [9usize, 4, 9, 1, 7] {
            let dim = 64;
            let results: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..ranks)
                    .map(|rank| {
                        let (packets, bulk, epoch) = (&packets, &bulk, epoch_addresses[rank]);
                        scope.spawn(move || {
                            let (parts, lses) = partial(rank, ranks, rows, dim);
                            let mut outs = vec![];
                            for way in 0..2 {
                                let mut out = vec![bf16::NAN; rows * dim];
                                let mut lse = vec![f32::NAN; rows];
                                let merge = MergeArgs {
                                    out: out.as_mut_ptr() as u64,
                                    lse_out: lse.as_mut_ptr() as u64,
                                    parts: parts.as_ptr() as u64,
                                    lses: lses.as_ptr() as u64,
                                    rows: rows as u32,
                                    dim: dim as u32,
                                    rank: rank as u32,
                                    size: ranks as u32,
                                };
                                let peer = PeerArgs {
                                    staging: slots,
                                    epoch,
                                    rank: rank as u32,
                                    size: ranks as u32,
                                    max_blocks: BLOCKS,
                                    slots_per_block: SLOTS,
                                };
                                let plain = BulkArgs {
                                    staging: regions,
                                    flags: flag_addresses,
                                    epoch: epoch + u64::from(BLOCKS) * 4,
                                    stride: stride as u64,
                                    rank: rank as u32,
                                    size: ranks as u32,
                                };
                                // SAFETY: the memory of all ranks outlives the threads and has room.
                                unsafe {
                                    match way {
                                        0 => packets(
                                            &raw const peer,
                                            &raw const merge,
                                            BLOCKS.min(rows as u32),
                                            16,
                                        ),
                                        _ => bulk(&raw const plain, &raw const merge, BLOCKS, 16),
                                    }
                                }
                                outs.push((out, lse));
                            }
                            outs
                        })
                    })
                    .collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            for (rank, outs) in results.iter().enumerate() {
                let (received, lses) = sent_to(rank, ranks, rows, dim);
                let (want, want_lse) = merge_ranks(&received, &lses, ranks, dim).unwrap();
                for (out, lse) in outs {
                    near(out, &want);
                    near_lse(lse, &want_lse);
                }
            }
        }
    }
}

#[test]
fn lines_bring_every_word_of_every_rank() {
    type Gather = unsafe extern "C" fn(*const LineArgs, *const u128, *mut u128, u64, u32, u32);
    let gather: Symbol<'_, Gather> = symbol("shim_all_gather_lines");
    // Words, blocks, threads, roles. Whole warps, so that every thread of the group votes;
    // blocks with one line, with several rounds of lines, with a last line that is not full,
    // and without any.
    let grids = [
        (1usize, 2, 32, 1),
        (15, 2, 32, 2),
        (72, 2, 32, 1),
        (72, 2, 32, 2),
        (8, 1, 32, 1),
        (41, 3, 64, 1),
        (65, 4, 32, 2),
    ];
    const MOST: usize = 9;
    const COUNTERS: u32 = 5;
    for ranks in [1usize, 2, 3, 4, 8] {
        // Threads of all ranks run at once.
        let grids = &grids[..if ranks > 3 { 4 } else { grids.len() }];
        let mut staging = vec![vec![0u128; line_staging_bytes(ranks, MOST).div_ceil(16)]; ranks];
        let mut epochs = vec![vec![0u32; COUNTERS as usize]; ranks];
        let mut addresses = [0u64; 8];
        for (a, m) in addresses.iter_mut().zip(&mut staging) {
            *a = m.as_mut_ptr() as u64;
        }
        let counters: Vec<u64> = epochs.iter_mut().map(|e| e.as_mut_ptr() as u64).collect();
        // Some words are those whose arrival their line does not tell by itself, and some
        // are zero.
        let word = |rank: usize, call: usize, i: usize| match i % 48 {
            7 | 15 => u128::MAX - (rank + call) as u128,
            23 => 0,
            _ => {
                let half =
                    |k| fill_word((rank * 97 + call) as u64, (2 * i + k) as u64, KvType::Bf16);
                u128::from_le_bytes([half(0), half(1)].concat().try_into().unwrap())
            }
        };
        std::thread::scope(|scope| {
            for (rank, &counter) in counters.iter().enumerate() {
                let gather = &gather;
                scope.spawn(move || {
                    // The calls follow each other without a barrier between ranks.
                    for (call, &(words, blocks, threads, roles)) in grids.iter().enumerate() {
                        let args = LineArgs {
                            staging: addresses,
                            epoch: counter,
                            rank: rank as u32,
                            size: ranks as u32,
                            most: MOST as u32,
                            counters: COUNTERS,
                            roles,
                            pad: 0,
                        };
                        let send: Vec<u128> = (0..words).map(|i| word(rank, call, i)).collect();
                        let mut recv = vec![77; ranks * words + 1];
                        // SAFETY: the memory of all ranks outlives the threads and has room.
                        unsafe {
                            gather(
                                &raw const args,
                                send.as_ptr(),
                                recv.as_mut_ptr(),
                                words as u64,
                                blocks,
                                threads,
                            );
                        }
                        assert_eq!(recv.pop(), Some(77), "nothing is written behind it");
                        for (i, got) in recv.into_iter().enumerate() {
                            assert_eq!(
                                got,
                                word(i / words, call, i % words),
                                "call {call}, word {i} of {words}, {ranks} ranks"
                            );
                        }
                    }
                });
            }
        });
        let calls = vec![grids.len() as u32; COUNTERS as usize];
        assert_eq!(
            epochs,
            vec![calls; ranks],
            "every counter counts every call"
        );
        let lines = 2 * ranks * MOST * 8;
        let untold = |memory: &Vec<u128>| memory[7..lines].iter().step_by(8).all(|w| w >> 96 == 0);
        assert!(
            staging.iter().all(untold),
            "no line is left that is not taken"
        );
    }
}

#[test]
fn stamps_follow_each_other() {
    type Stamp = unsafe extern "C" fn(*mut u64);
    let stamp: Symbol<'_, Stamp> = symbol("shim_stamp");
    let mut times = [0u64; 2];
    for time in &mut times {
        // SAFETY: it writes the one word.
        unsafe { stamp(time) };
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let apart = times[1].checked_sub(times[0]).unwrap();
    assert!(apart >= 2_000_000, "{apart} ns for 2 ms and more");
}
