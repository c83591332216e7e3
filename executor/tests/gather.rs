//! DP gather and scatter on the CPU backend: exact results, poisoned padding, uneven
//! and idle ranks, failed steps.

#![allow(clippy::unwrap_used)] // tests, helper functions included

use parplan_executor::comm::{CpuCommunicator, LocalWorld};
use parplan_executor::gather::{Batch, DpExchange, DpLayout, Mode, StepShape};
use parplan_executor::{CpuDevice, DType, Device, Error, View};
use proptest::prelude::*;

const ROW: usize = 48;

fn world<R: Send + 'static>(
    size: usize,
    f: impl Fn(CpuCommunicator, usize) -> R + Send + Clone + 'static,
) -> Vec<R> {
    let threads: Vec<_> = LocalWorld::connect(size)
        .unwrap()
        .into_iter()
        .enumerate()
        .map(|(rank, comm)| {
            let f = f.clone();
            std::thread::spawn(move || f(comm, rank))
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

/// Rows differ from their neighbours and from the same row of the next rank.
fn value(dp: usize, row: usize, column: usize) -> i64 {
    ((dp + row + row / 3 + column) % 3) as i64
}

fn rows_of(dp: usize, n: usize, factor: i64) -> Vec<u8> {
    let columns = ROW / 2;
    DType::Bf16.encode((0..n * columns).map(|i| value(dp, i / columns, i % columns) * factor))
}

/// The shared layer: each TP rank computes a part; the parts add up to `tp + 1` times.
fn layer(rank: usize) -> impl FnOnce(&dyn Device, &View) -> parplan_executor::Result<()> {
    move |device, global| device.scale_bf16(global, global, if rank == 0 { 2.0 } else { 1.0 })
}

/// Two steps with different counts through one exchange; every rank compares its rows.
fn check(
    tp: usize,
    attn_dp: usize,
    steps: Vec<Vec<usize>>,
    mode: Mode,
    partial: bool,
    bucket: Option<usize>,
) {
    let layout = DpLayout::new(tp, attn_dp).unwrap();
    world(tp, move |comm, rank| {
        let device = CpuDevice::new();
        let mut exchange = DpExchange::new(&device, Box::new(comm), layout, ROW, partial).unwrap();
        let dp = exchange.dp_rank();
        for tokens in &steps {
            let shape = StepShape::new(layout, tokens, bucket, &|_| mode).unwrap();
            let n = tokens[dp];
            let hidden = device.alloc("hidden", n * ROW).unwrap();
            device.write(&hidden.all(), &rows_of(dp, n, 1)).unwrap();
            let mut batch = Batch { hidden, rows: n };
            let ran = exchange
                .step(&device, &shape, &mut batch, layer(rank))
                .unwrap();
            assert_eq!(ran, tokens.iter().any(|n| *n > 0));
            if !ran {
                continue;
            }
            let summed = if partial { layout.attn_tp() as i64 } else { 1 };
            assert_eq!(batch.rows, n);
            let got = device
                .read(&batch.hidden.view(0, n * ROW).unwrap())
                .unwrap();
            let want = rows_of(dp, n, summed * (tp as i64 + 1));
            assert_eq!(
                DType::Bf16.decode(&got),
                DType::Bf16.decode(&want),
                "rank {rank} of {tp}, dp {attn_dp}, {tokens:?}, {mode:?}"
            );
        }
    });
}

#[test]
fn every_mode_is_exact_on_uneven_and_idle_ranks() {
    for (tp, attn_dp) in [
        (1, 1),
        (2, 2),
        (4, 4),
        (4, 2),
        (8, 8),
        (8, 2),
        (6, 3),
        (4, 1),
    ] {
        let uneven: Vec<usize> = (0..attn_dp).map(|r| (r * 5 + 3) % 7).collect();
        let one: Vec<usize> = (0..attn_dp)
            .map(|r| usize::from(r == attn_dp - 1))
            .collect();
        let idle = vec![0; attn_dp];
        let even = vec![4; attn_dp];
        for partial in [false, true] {
            for mode in [Mode::MaxLen, Mode::SumLen, Mode::AllGatherV] {
                if mode == Mode::AllGatherV && tp != attn_dp {
                    continue;
                }
                check(
                    tp,
                    attn_dp,
                    vec![uneven.clone(), idle.clone(), one.clone(), even.clone()],
                    mode,
                    partial,
                    None,
                );
            }
            check(
                tp,
                attn_dp,
                vec![uneven.clone(), one.clone()],
                Mode::SumLen,
                partial,
                Some(16),
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_counts_in_any_mode(dp in 1usize..5, attn_tp in 1usize..3, seed in prop::collection::vec(0usize..9, 4), sum: bool, partial: bool) {
        let mode = if sum { Mode::SumLen } else { Mode::MaxLen };
        check(dp * attn_tp, dp, vec![seed[..dp].to_vec()], mode, partial, None);
    }
}

#[test]
fn a_failed_step_leaves_the_batch_as_it_was_and_the_next_one_works() {
    world(2, |comm, rank| {
        let device = CpuDevice::new();
        let layout = DpLayout::new(2, 2).unwrap();
        let mut exchange = DpExchange::new(&device, Box::new(comm), layout, ROW, false).unwrap();
        let tokens = [3, 1];
        let n = tokens[rank];
        let hidden = device.alloc("hidden", n * ROW).unwrap();
        device.write(&hidden.all(), &rows_of(rank, n, 1)).unwrap();
        let mut batch = Batch { hidden, rows: n };
        let held = device.meter().current();
        for mode in [Mode::MaxLen, Mode::SumLen] {
            let shape = StepShape::new(layout, &tokens, None, &|_| mode).unwrap();
            let fails = |_: &dyn Device, _: &View| Err(Error::Wrong("the layer failed".into()));
            let e = exchange
                .step(&device, &shape, &mut batch, fails)
                .unwrap_err();
            assert_eq!(e.to_string(), "wrong result: the layer failed");
            assert_eq!(batch.rows, n);
            assert_eq!(
                device.read(&batch.hidden.all()).unwrap(),
                rows_of(rank, n, 1)
            );
            // Nothing of the step is left allocated.
            assert_eq!(device.meter().current(), held);
            let mut again = batch.clone();
            assert!(
                exchange
                    .step(&device, &shape, &mut again, layer(rank))
                    .unwrap()
            );
            assert_eq!(
                device
                    .read(&again.hidden.view(0, n * ROW).unwrap())
                    .unwrap(),
                rows_of(rank, n, 3)
            );
        }
    });
}

#[test]
fn the_gathered_buffer_is_there_only_while_a_step_needs_it() {
    // 2 ranks, 5 and 1 rows: max_len gathers 10 rows, sum_len 6, an idle step none.
    for (mode, tokens, gathered, padded) in [
        (Mode::MaxLen, [5, 1], 10, 5),
        (Mode::SumLen, [5, 1], 6, 0),
        (Mode::MaxLen, [0, 0], 0, 0),
    ] {
        world(2, move |comm, rank| {
            let device = CpuDevice::new();
            let layout = DpLayout::new(2, 2).unwrap();
            let mut exchange =
                DpExchange::new(&device, Box::new(comm), layout, ROW, false).unwrap();
            let shape = StepShape::new(layout, &tokens, None, &|_| mode).unwrap();
            let n = tokens[rank];
            let mut batch = Batch {
                hidden: device.alloc("hidden", n * ROW).unwrap(),
                rows: n,
            };
            let before = device.meter().current();
            device.meter().reset_peak();
            exchange
                .step(&device, &shape, &mut batch, |_, _| Ok(()))
                .unwrap();
            let own = if gathered == 0 { 0 } else { padded.max(n) };
            assert_eq!(
                device.meter().peak() - before,
                ((gathered + own) * ROW) as u64,
                "{mode:?} rank {rank}"
            );
        });
    }
}

#[test]
fn a_batch_that_is_not_what_was_announced_is_refused() {
    let comm = LocalWorld::connect(1).unwrap().remove(0);
    let device = CpuDevice::new();
    let layout = DpLayout::new(1, 1).unwrap();
    let mut exchange = DpExchange::new(&device, Box::new(comm), layout, ROW, false).unwrap();
    let shape = StepShape::new(layout, &[2], None, &|_| Mode::MaxLen).unwrap();
    let mut batch = Batch {
        hidden: device.alloc("hidden", 3 * ROW).unwrap(),
        rows: 3,
    };
    let e = exchange
        .step(&device, &shape, &mut batch, |_, _| Ok(()))
        .unwrap_err();
    assert_eq!(
        e.to_string(),
        "DP gather: the batch has 3 rows, the step says 2 for DP rank 0"
    );
}
