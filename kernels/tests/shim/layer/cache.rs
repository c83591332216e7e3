//! Queries and keys turned by their positions, and rows of the KV cache written.

use half::bf16;
use libloading::Symbol;
use parplan_kernels::layer::CacheArgs;
use parplan_kernels::reference::{GqaRow, f32_to_e4m3, rope_gqa, rope_head, rope_latent};

use super::{near, values};
use crate::symbol;

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
