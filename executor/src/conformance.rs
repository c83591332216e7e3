//! One suite that every communicator passes, at any number of ranks.
//!
//! Inputs are small integers, so every result is exactly known in every element type;
//! outputs are poisoned before each case, and every byte of them is compared.

use crate::device::POISON;
use crate::{Buffer, Communicator, DType, Device, Error, ReduceOp, Result};

/// What a backend cannot do by its nature, so that the suite does not ask for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope {
    /// Leave out `split` (a communicator without sub-groups).
    pub skip_split: bool,
}

/// Element counts that every case is run at: one, an odd one, one past a kernel's
/// vector width, and one that takes the two-phase paths.
const COUNTS: [usize; 4] = [1, 7, 129, 4099];

/// Runs all cases as one rank of the group; every rank calls this. Returns how many
/// cases were compared.
///
/// # Errors
/// [`Error::Wrong`] naming the case, the element, what was found and what is right;
/// any error of the communicator or the device.
pub fn run(device: &dyn Device, comm: &mut dyn Communicator, scope: Scope) -> Result<usize> {
    let mut cases = 0;
    for count in COUNTS {
        for dtype in DType::ALL {
            cases += gathers(device, comm, dtype, count)?;
            cases += reductions(device, comm, dtype, count)?;
        }
        cases += broadcasts(device, comm, count)?;
    }
    comm.barrier()?;
    comm.wait()?;
    if !scope.skip_split {
        cases += splits(device, comm)?;
    }
    Ok(cases + 1)
}

/// Element `i` of what rank `r` contributes: 0, 1, 2 or 3, different between ranks.
/// Sums over 16 ranks stay below 64, exact in every type.
fn value(rank: usize, i: usize) -> i64 {
    ((i * 7 + rank * 5 + i / 13) % 4) as i64
}

fn input(device: &dyn Device, dtype: DType, rank: usize, count: usize) -> Result<Buffer> {
    let buffer = device.alloc("conformance input", count * dtype.size())?;
    device.write(
        &buffer.all(),
        &dtype.encode((0..count).map(|i| value(rank, i))),
    )?;
    Ok(buffer)
}

fn poisoned(device: &dyn Device, bytes: usize) -> Result<Buffer> {
    let buffer = device.alloc("conformance output", bytes)?;
    device.fill(&buffer.all(), POISON)?;
    Ok(buffer)
}

fn expect(
    case: &str,
    comm: &mut dyn Communicator,
    device: &dyn Device,
    got: &Buffer,
    dtype: DType,
    want: impl Iterator<Item = i64>,
) -> Result<usize> {
    comm.wait()?;
    let bytes = device.read(&got.all())?;
    let want = dtype.encode(want);
    if bytes == want {
        return Ok(1);
    }
    let (got_values, want_values) = (dtype.decode(&bytes), dtype.decode(&want));
    let at = bytes
        .iter()
        .zip(&want)
        .position(|(a, b)| a != b)
        .unwrap_or(bytes.len().min(want.len()))
        / dtype.size();
    Err(Error::Wrong(format!(
        "{} {case} of {} as rank {} of {}: element {at} is {:?}, it must be {:?} ({} and {} elements)",
        comm.implementation(),
        dtype.name(),
        comm.rank(),
        comm.size(),
        got_values.get(at),
        want_values.get(at),
        got_values.len(),
        want_values.len(),
    )))
}

fn gathers(
    device: &dyn Device,
    comm: &mut dyn Communicator,
    dtype: DType,
    count: usize,
) -> Result<usize> {
    let (rank, size, e) = (comm.rank(), comm.size(), dtype.size());
    let send = input(device, dtype, rank, count)?;
    let everyone = |n: usize| (0..size).flat_map(move |r| (0..n).map(move |i| value(r, i)));

    let recv = poisoned(device, size * count * e)?;
    comm.all_gather(&send.all(), &recv.all())?;
    let mut cases = expect("all-gather", comm, device, &recv, dtype, everyone(count))?;

    let place = poisoned(device, size * count * e)?;
    let own = place.view(rank * count * e, count * e)?;
    device.copy(&own, &send.all())?;
    comm.all_gather(&own, &place.all())?;
    cases += expect(
        "in-place all-gather",
        comm,
        device,
        &place,
        dtype,
        everyone(count),
    )?;

    // Uneven lengths, and none at all from every third rank.
    let n = |r: usize| if r % 3 == 1 { 0 } else { count + r };
    let lens: Vec<usize> = (0..size).map(|r| n(r) * e).collect();
    let send_v = input(device, dtype, rank, n(rank))?;
    let recv_v = poisoned(device, lens.iter().sum())?;
    comm.all_gather_v(&send_v.all(), &recv_v.all(), &lens)?;
    let want = (0..size).flat_map(|r| (0..n(r)).map(move |i| value(r, i)));
    cases += expect("all-gather-v", comm, device, &recv_v, dtype, want)?;

    let send_a = input(device, dtype, rank, size * count)?;
    let recv_a = poisoned(device, size * count * e)?;
    comm.all_to_all(&send_a.all(), &recv_a.all())?;
    let want = (0..size).flat_map(|r| (0..count).map(move |i| value(r, rank * count + i)));
    cases += expect("all-to-all", comm, device, &recv_a, dtype, want)?;
    Ok(cases)
}

fn reductions(
    device: &dyn Device,
    comm: &mut dyn Communicator,
    dtype: DType,
    count: usize,
) -> Result<usize> {
    let (rank, size, e) = (comm.rank(), comm.size(), dtype.size());
    let mut cases = 0;
    for op in [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min] {
        let reduced = move |i: usize| {
            let all = (0..size).map(move |r| value(r, i));
            match op {
                ReduceOp::Sum => all.sum(),
                ReduceOp::Max => all.max().unwrap_or(0),
                ReduceOp::Min => all.min().unwrap_or(0),
            }
        };
        let send = input(device, dtype, rank, count)?;
        let recv = poisoned(device, count * e)?;
        comm.all_reduce(&send.all(), &recv.all(), dtype, op)?;
        cases += expect(
            "all-reduce",
            comm,
            device,
            &recv,
            dtype,
            (0..count).map(reduced),
        )?;
        comm.all_reduce(&send.all(), &send.all(), dtype, op)?;
        cases += expect(
            "in-place all-reduce",
            comm,
            device,
            &send,
            dtype,
            (0..count).map(reduced),
        )?;

        let send = input(device, dtype, rank, size * count)?;
        let recv = poisoned(device, count * e)?;
        comm.reduce_scatter(&send.all(), &recv.all(), dtype, op)?;
        let want = move |i: usize| reduced(rank * count + i);
        cases += expect(
            "reduce-scatter",
            comm,
            device,
            &recv,
            dtype,
            (0..count).map(want),
        )?;
        let own = send.view(rank * count * e, count * e)?;
        comm.reduce_scatter(&send.all(), &own, dtype, op)?;
        comm.wait()?;
        let part = device.alloc("conformance part", count * e)?;
        device.copy(&part.all(), &own)?;
        cases += expect(
            "in-place reduce-scatter",
            comm,
            device,
            &part,
            dtype,
            (0..count).map(want),
        )?;
    }
    Ok(cases)
}

fn broadcasts(device: &dyn Device, comm: &mut dyn Communicator, count: usize) -> Result<usize> {
    let mut cases = 0;
    for root in [0, comm.size() - 1] {
        let buffer = if comm.rank() == root {
            input(device, DType::F32, root, count)?
        } else {
            poisoned(device, count * DType::F32.size())?
        };
        comm.broadcast(&buffer.all(), root)?;
        cases += expect(
            "broadcast",
            comm,
            device,
            &buffer,
            DType::F32,
            (0..count).map(|i| value(root, i)),
        )?;
    }
    Ok(cases)
}

/// Interleaved groups in reverse order, one rank left out, both groups used after the
/// parent was used again.
fn splits(device: &dyn Device, comm: &mut dyn Communicator) -> Result<usize> {
    let (rank, size) = (comm.rank(), comm.size());
    let left_out = size > 2 && rank == size - 1;
    let color = (!left_out).then_some((rank % 2) as u32);
    let sub = comm.split(color, (size - rank) as u32)?;
    let send = input(device, DType::I32, rank, 3)?;
    let recv = poisoned(device, size * 12)?;
    comm.all_gather(&send.all(), &recv.all())?;
    let want = (0..size).flat_map(|r| (0..3).map(move |i| value(r, i)));
    let mut cases = expect(
        "all-gather beside a split",
        comm,
        device,
        &recv,
        DType::I32,
        want,
    )?;
    match (sub, left_out) {
        (None, true) => {}
        (Some(mut sub), false) => {
            let last = if size > 2 { size - 1 } else { size };
            let members: Vec<usize> = (0..last).filter(|r| r % 2 == rank % 2).rev().collect();
            if sub.size() != members.len() || members[sub.rank()] != rank {
                return Err(Error::Wrong(format!(
                    "split: rank {rank} became {} of {}, its group is {members:?}",
                    sub.rank(),
                    sub.size()
                )));
            }
            let recv = poisoned(device, members.len() * 12)?;
            sub.all_gather(&send.all(), &recv.all())?;
            let want = members
                .iter()
                .flat_map(|r| (0..3).map(move |i| value(*r, i)));
            cases += expect(
                "all-gather in a split",
                sub.as_mut(),
                device,
                &recv,
                DType::I32,
                want,
            )?;
        }
        (sub, _) => {
            return Err(Error::Wrong(format!(
                "split: rank {rank} gave color {color:?} and got {} group",
                if sub.is_some() { "a" } else { "no" }
            )));
        }
    }
    Ok(cases)
}
