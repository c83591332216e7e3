//! Rows as they are: made, quantised, normed, added, activated.

use half::bf16;
use libloading::Symbol;
use parplan_kernels::reference::{Synthetic, add_rms_norm, f32_to_e4m3, silu_mul};

use super::{near, values};
use crate::symbol;

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
