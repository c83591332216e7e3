//! The small operations of a decoder layer, as the CUDA sources compute them.

use half::bf16;
use libloading::Symbol;
use parplan_kernels::layer::{CacheArgs, Grouped};
use parplan_kernels::reference::{
    GqaRow, Synthetic, add_rms_norm, f32_to_e4m3, rope_gqa, rope_head, rope_latent, route,
    silu_mul, sort_pairs, sum_experts, uniform,
};

use super::symbol;

/// Values of unit variance, made as the reference makes them.
fn values(seed: u64, n: usize) -> Vec<bf16> {
    (0..n as u64)
        .map(|i| bf16::from_f32(1.7 * uniform(seed, i)))
        .collect()
}

/// Equal, or neighbours: expf and the order of sums differ in the last bit of f32, which
/// may tip a rounding to bf16.
fn near(got: &[bf16], want: &[bf16]) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let (g, w) = (g.to_f32(), w.to_f32());
        assert!(
            (g - w).abs() <= w.abs() / 128.0 + 1e-6,
            "element {i}: {g}, must be {w}"
        );
    }
}

#[test]
fn synthetic_values_have_the_bits_of_the_reference() {
    type F = unsafe extern "C" fn(u32, *mut u8, *const u64, u64, u64, u64, u64, u64, f32, f32, f32);
    let kernel: Symbol<'_, F> = symbol("shim_synthetic");
    let what = Synthetic {
        seed: 0x1234_5678_9abc_def0,
        full_columns: 1 << 33,
        column: 5,
        columns: 24,
        scale: 0.37,
        offset: 0.11,
    };
    let rows = [0, 3, 1 << 30, 17, 3];
    let call = |fp8: u32, out: *mut u8, unit: f32| {
        // SAFETY: all pointers are to live arrays of the sizes that the arguments say.
        unsafe {
            kernel(
                fp8,
                out,
                rows.as_ptr(),
                rows.len() as u64,
                what.columns as u64,
                what.full_columns,
                what.column,
                what.seed,
                what.scale,
                what.offset,
                unit,
            )
        };
    };
    let mut wide = vec![bf16::NAN; rows.len() * what.columns];
    call(0, wide.as_mut_ptr().cast(), 1.0);
    assert_eq!(wide, what.bf16(&rows));
    let mut narrow = vec![0xffu8; rows.len() * what.columns];
    call(1, narrow.as_mut_ptr(), 0.001);
    assert_eq!(narrow, what.e4m3(&rows, 0.001));
}

#[test]
fn quantising_rounds_every_bf16_as_the_reference_does() {
    type F = unsafe extern "C" fn(*mut u8, *const bf16, f32, u64);
    let kernel: Symbol<'_, F> = symbol("shim_quantise");
    let input: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    for inverse in [1.0, 16.0, 0.3] {
        let mut out = vec![0u8; input.len()];
        // SAFETY: as above.
        unsafe {
            kernel(
                out.as_mut_ptr(),
                input.as_ptr(),
                inverse,
                (input.len() / 8) as u64,
            )
        };
        for (got, from) in out.iter().zip(&input) {
            let want = f32_to_e4m3(from.to_f32() * inverse);
            // A NaN may lose its sign.
            assert!(
                *got == want || got & want & 0x7f == 0x7f,
                "{from}: {got:#x}, must be {want:#x}"
            );
        }
    }
}

#[test]
fn norms_add_first_and_round_as_the_reference_does() {
    type F = unsafe extern "C" fn(*mut bf16, *mut bf16, *const bf16, *const bf16, f32, u64, u32);
    let kernel: Symbol<'_, F> = symbol("shim_add_rms_norm");
    // More words than threads, and fewer.
    for width in [8, 136, 1024] {
        let rows = 3;
        let weight = values(2, width);
        for delta in [None, Some(values(3, rows * width))] {
            let start = values(1, rows * width);
            let (mut residual, mut want_residual) = (start.clone(), start);
            let mut out = vec![bf16::NAN; rows * width];
            // SAFETY: as above.
            unsafe {
                kernel(
                    out.as_mut_ptr(),
                    residual.as_mut_ptr(),
                    delta.as_ref().map_or(std::ptr::null(), |d| d.as_ptr()),
                    weight.as_ptr(),
                    1e-6,
                    (width / 8) as u64,
                    rows as u32,
                )
            };
            let want = add_rms_norm(&mut want_residual, delta.as_deref(), &weight, 1e-6);
            assert_eq!(residual, want_residual);
            near(&out, &want);
        }
    }
}

#[test]
fn sums_are_exact() {
    type Add = unsafe extern "C" fn(*mut bf16, *const bf16, u64);
    let add: Symbol<'_, Add> = symbol("shim_add_bf16");
    let (start, other) = (values(1, 400), values(2, 400));
    let mut to = start.clone();
    // SAFETY: as above.
    unsafe { add(to.as_mut_ptr(), other.as_ptr(), 50) };
    for ((t, a), b) in to.iter().zip(&start).zip(&other) {
        assert_eq!(*t, bf16::from_f32(a.to_f32() + b.to_f32()));
    }
    type Parts = unsafe extern "C" fn(*mut bf16, *const bf16, *const bf16, u64, u64);
    let parts: Symbol<'_, Parts> = symbol("shim_sum_parts");
    let three = values(4, 1200);
    for base in [None, Some(&start)] {
        let mut out = vec![bf16::NAN; 400];
        let pointer = base.map_or(std::ptr::null(), |b| b.as_ptr());
        // SAFETY: as above.
        unsafe { parts(out.as_mut_ptr(), three.as_ptr(), pointer, 3, 50) };
        for (i, o) in out.iter().enumerate() {
            let mut sum = base.map_or(0.0, |b| b[i].to_f32());
            for p in 0..3 {
                sum += three[p * 400 + i].to_f32();
            }
            assert_eq!(*o, bf16::from_f32(sum));
        }
    }
}

fn turns(rows: usize, dim: usize) -> Vec<f32> {
    (0..rows * dim)
        .map(|i| {
            let angle = (i / dim * 7 + i % (dim / 2)) as f32;
            if i % dim < dim / 2 {
                angle.cos()
            } else {
                angle.sin()
            }
        })
        .collect()
}

/// What a cache of bf16 or e4m3 holds, as f32 bits of the stored value.
fn cache_row(cache: &[u8], fp8: bool, row: usize, dim: usize) -> Vec<u16> {
    let width = if fp8 { 1 } else { 2 };
    let bytes = &cache[row * dim * width..][..dim * width];
    if fp8 {
        bytes.iter().map(|b| u16::from(*b)).collect()
    } else {
        bytes
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
            .collect()
    }
}

fn as_stored(values: &[bf16], fp8: bool) -> Vec<u16> {
    values
        .iter()
        .map(|v| {
            if fp8 {
                u16::from(f32_to_e4m3(v.to_f32()))
            } else {
                v.to_bits()
            }
        })
        .collect()
}

#[test]
fn grouped_queries_are_rotated_and_keys_and_values_stored_at_their_slots() {
    type F = unsafe extern "C" fn(
        *const bf16,
        *mut bf16,
        *const bf16,
        *const bf16,
        *const CacheArgs,
        u32,
        u32,
        u32,
        f32,
        u32,
    );
    let kernel: Symbol<'_, F> = symbol("shim_rope_gqa");
    let shape = GqaRow {
        q_heads: 3,
        kv_heads: 2,
        head_dim: 64,
    };
    let (rows, page, pages) = (4usize, 2usize, 3usize);
    // Slots out of order, one row without any.
    let slots = [5i32, 0, -1, 2];
    let qkv = values(1, rows * shape.columns());
    let cos_sin = turns(rows, 64);
    for (fp8, normed) in [(false, true), (false, false), (true, true)] {
        let norms = [values(8, 64), values(9, 64)];
        let size = pages * page * 2 * 64 * if fp8 { 1 } else { 2 };
        let (mut keys, mut vals) = (vec![0xeeu8; size], vec![0xeeu8; size]);
        let args = CacheArgs {
            slots: slots.as_ptr() as u64,
            cos_sin: cos_sin.as_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: vals.as_mut_ptr() as u64,
            page: page as u32,
            fp8: u32::from(fp8),
        };
        let norm = |i: usize| {
            if normed {
                norms[i].as_ptr()
            } else {
                std::ptr::null()
            }
        };
        let mut q = vec![bf16::NAN; rows * 3 * 64];
        // SAFETY: as above; the slots lie in the cache.
        unsafe {
            kernel(
                qkv.as_ptr(),
                q.as_mut_ptr(),
                norm(0),
                norm(1),
                &raw const args,
                3,
                2,
                64,
                1e-6,
                rows as u32,
            )
        };
        for (r, slot) in slots.iter().enumerate() {
            let row = &qkv[r * shape.columns()..][..shape.columns()];
            let weights = normed.then(|| [norms[0].as_slice(), norms[1].as_slice()]);
            let (want, k, v) = rope_gqa(shape, row, &cos_sin[r * 64..][..64], weights, 1e-6);
            near(&q[r * 192..][..192], &want);
            if *slot < 0 {
                continue;
            }
            for head in 0..2 {
                let slot = *slot as usize;
                let at = (slot / page * 2 + head) * page + slot % page;
                let stored = cache_row(&vals, fp8, at, 64);
                assert_eq!(stored, as_stored(&v[head * 64..][..64], fp8));
                let stored = cache_row(&keys, fp8, at, 64);
                let want = as_stored(&k[head * 64..][..64], fp8);
                for (s, w) in stored.iter().zip(&want) {
                    assert!(s.abs_diff(*w) <= 1, "{stored:?} {want:?}");
                }
            }
        }
        // Slots 1, 3 and 4 belong to nobody.
        for slot in [1usize, 3, 4] {
            let at = slot / page * 2 * page + slot % page;
            let untouched = if fp8 { 0xee } else { 0xeeee };
            assert!(
                cache_row(&keys, fp8, at, 64)
                    .iter()
                    .all(|v| *v == untouched)
            );
        }
    }
}

#[test]
fn latent_rows_are_normed_rotated_and_stored() {
    type F = unsafe extern "C" fn(
        *const bf16,
        *mut bf16,
        *const bf16,
        *const bf16,
        *const CacheArgs,
        u32,
        u32,
        u32,
        f32,
        u32,
    );
    let kernel: Symbol<'_, F> = symbol("shim_rope_latent");
    let (rows, kv_lora, rope) = (3usize, 96usize, 16usize);
    let slots = [2i32, -1, 0];
    let cos_sin = turns(rows, rope);
    for q_lora in [0usize, 72] {
        let width = q_lora + kv_lora + rope;
        let input = values(1, rows * width);
        let norms = [values(2, q_lora.max(8)), values(3, kv_lora)];
        let mut cache = vec![0u8; 3 * (kv_lora + rope) * 2];
        let args = CacheArgs {
            slots: slots.as_ptr() as u64,
            cos_sin: cos_sin.as_ptr() as u64,
            keys: cache.as_mut_ptr() as u64,
            values: 0,
            page: 1,
            fp8: 0,
        };
        let mut q = vec![bf16::NAN; rows * q_lora];
        // SAFETY: as above.
        unsafe {
            kernel(
                input.as_ptr(),
                q.as_mut_ptr(),
                norms[0].as_ptr(),
                norms[1].as_ptr(),
                &raw const args,
                q_lora as u32,
                kv_lora as u32,
                rope as u32,
                1e-6,
                rows as u32,
            )
        };
        for (r, slot) in slots.iter().enumerate() {
            let row = &input[r * width..][..width];
            let turn = &cos_sin[r * rope..][..rope];
            let both = [norms[0].as_slice(), norms[1].as_slice()];
            let (want, latent) = rope_latent(row, q_lora, kv_lora, turn, both, 1e-6);
            near(&q[r * q_lora..][..q_lora], &want);
            if *slot >= 0 {
                let bits = cache_row(&cache, false, *slot as usize, kv_lora + rope);
                let stored: Vec<bf16> = bits.into_iter().map(bf16::from_bits).collect();
                near(&stored, &latent);
            }
        }
    }
}

#[test]
fn rotary_columns_of_queries_go_behind_the_latent_ones() {
    type F = unsafe extern "C" fn(*const bf16, *mut bf16, *const f32, u32, u32, u32, u32, u32);
    let kernel: Symbol<'_, F> = symbol("shim_rope_queries");
    let (rows, heads, nope, kv_lora, rope) = (3usize, 5usize, 24usize, 40usize, 16usize);
    let from = values(1, rows * heads * (nope + rope));
    let start = values(2, rows * heads * (kv_lora + rope));
    let cos_sin = turns(rows, rope);
    let mut to = start.clone();
    // SAFETY: as above.
    unsafe {
        kernel(
            from.as_ptr(),
            to.as_mut_ptr(),
            cos_sin.as_ptr(),
            heads as u32,
            nope as u32,
            kv_lora as u32,
            rope as u32,
            rows as u32,
        )
    };
    for i in 0..rows * heads {
        let head = &from[i * (nope + rope) + nope..][..rope];
        let want = rope_head(head, &cos_sin[i / heads * rope..][..rope]);
        let got = &to[i * (kv_lora + rope)..][..kv_lora + rope];
        assert_eq!(got[..kv_lora], start[i * (kv_lora + rope)..][..kv_lora]);
        near(&got[kv_lora..], &want);
    }
}

#[test]
fn activations_stop_at_the_limit() {
    type F = unsafe extern "C" fn(*mut bf16, *const bf16, u64, u64, *const i32);
    let kernel: Symbol<'_, F> = symbol("shim_silu_mul");
    let (rows, width) = (6usize, 24usize);
    let input = values(1, rows * 2 * width);
    let want = silu_mul(&input, width);
    for limit in [None, Some(4i32), Some(0)] {
        let mut out = vec![bf16::from_f32(9.0); rows * width];
        let pointer = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: as above.
        unsafe { kernel(out.as_mut_ptr(), input.as_ptr(), rows as u64, 3, pointer) };
        let done = limit.map_or(rows, |l| l as usize) * width;
        near(&out[..done], &want[..done]);
        assert!(out[done..].iter().all(|v| v.to_f32() == 9.0));
    }
}

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
        for wide in [false, true] {
            let max = Grouped::max_tiles(wide, pairs, experts);
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
                    Grouped::tile_rows(wide),
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
                for slot in own.step_by(Grouped::tile_rows(wide) as usize) {
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
