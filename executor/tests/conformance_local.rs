//! The in-process CPU communicator against the conformance suite, and its faults.

#![allow(clippy::unwrap_used)] // tests, helper functions included
use std::time::{Duration, Instant};

use parplan_executor::comm::{CpuCommunicator, LocalWorld};
use parplan_executor::conformance::{self, Scope};
use parplan_executor::{Communicator, CpuDevice, DType, Device, Error, ReduceOp, Result};

/// Runs `f` as every rank of a world of threads; results in rank order.
fn world<R: Send + 'static>(
    size: usize,
    f: impl Fn(CpuCommunicator) -> R + Send + Sync + Clone + 'static,
) -> Vec<R> {
    let threads: Vec<_> = LocalWorld::connect(size)
        .unwrap()
        .into_iter()
        .map(|comm| {
            let f = f.clone();
            std::thread::spawn(move || f(comm))
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

fn conforms(size: usize) {
    let cases = world(size, |mut comm| {
        conformance::run(&CpuDevice::new(), &mut comm, Scope::default()).unwrap()
    });
    assert!(cases.iter().all(|c| *c > 400), "{cases:?}");
}

macro_rules! at {
    ($($name:ident: $size:literal),*) => {$(
        #[test]
        fn $name() { conforms($size); }
    )*};
}
at!(one_rank: 1, two_ranks: 2, three_ranks: 3, four_ranks: 4, eight_ranks: 8, sixteen_ranks: 16);

/// A communicator that is wrong in one element: the suite must notice.
struct Faulty(CpuCommunicator);

impl Communicator for Faulty {
    fn rank(&self) -> usize {
        self.0.rank()
    }
    fn size(&self) -> usize {
        self.0.size()
    }
    fn implementation(&self) -> &'static str {
        "faulty"
    }
    fn set_deadline(&mut self, d: Duration) {
        self.0.set_deadline(d)
    }
    fn all_gather(&mut self, s: &parplan_executor::View, r: &parplan_executor::View) -> Result<()> {
        self.0.all_gather(s, r)
    }
    fn all_gather_v(
        &mut self,
        s: &parplan_executor::View,
        r: &parplan_executor::View,
        l: &[usize],
    ) -> Result<()> {
        self.0.all_gather_v(s, r, l)
    }
    fn reduce_scatter(
        &mut self,
        s: &parplan_executor::View,
        r: &parplan_executor::View,
        d: DType,
        o: ReduceOp,
    ) -> Result<()> {
        self.0.reduce_scatter(s, r, d, o)
    }
    fn all_reduce(
        &mut self,
        s: &parplan_executor::View,
        r: &parplan_executor::View,
        d: DType,
        o: ReduceOp,
    ) -> Result<()> {
        // The last element of a large sum is left as it was.
        if s.len() < 4099 {
            return self.0.all_reduce(s, r, d, o);
        }
        let cut = s.len() - d.size();
        self.0.all_reduce(&s.sub(0, cut)?, &r.sub(0, cut)?, d, o)
    }
    fn all_to_all(&mut self, s: &parplan_executor::View, r: &parplan_executor::View) -> Result<()> {
        self.0.all_to_all(s, r)
    }
    fn broadcast(&mut self, b: &parplan_executor::View, root: usize) -> Result<()> {
        self.0.broadcast(b, root)
    }
    fn barrier(&mut self) -> Result<()> {
        self.0.barrier()
    }
    fn split(&mut self, c: Option<u32>, k: u32) -> Result<Option<Box<dyn Communicator>>> {
        self.0.split(c, k)
    }
    fn wait(&mut self) -> Result<()> {
        self.0.wait()
    }
    fn abort(&mut self) {
        self.0.abort()
    }
}

#[test]
fn the_suite_notices_one_unwritten_element() {
    let errors = world(2, |comm| {
        conformance::run(&CpuDevice::new(), &mut Faulty(comm), Scope::default())
            .unwrap_err()
            .to_string()
    });
    for e in errors {
        assert!(
            e.contains("all-reduce of u8") && e.contains("element 4098 is Some(255.0)"),
            "{e}"
        );
    }
}

#[test]
fn a_rank_that_leaves_ends_the_others_wait() {
    let results = world(3, |mut comm| {
        if comm.rank() == 1 {
            return None;
        }
        let start = Instant::now();
        let error = comm.barrier().unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5));
        Some(error.to_string())
    });
    for rank in [0, 2] {
        assert_eq!(
            results[rank].as_deref(),
            Some("rank 1 is gone: it left the group")
        );
    }
}

#[test]
fn a_rank_that_stalls_is_named_at_the_deadline() {
    let results = world(2, |mut comm| {
        comm.set_deadline(Duration::from_millis(100));
        if comm.rank() == 1 {
            std::thread::sleep(Duration::from_millis(400));
            return String::new();
        }
        comm.barrier().unwrap_err().to_string()
    });
    assert!(
        results[0].starts_with("rank 0 waiting for rank 1: no answer within 0.1 s"),
        "{}",
        results[0]
    );
}

#[test]
fn different_collectives_are_a_mismatch_not_a_hang() {
    let errors = world(2, |mut comm| {
        let device = CpuDevice::new();
        let buffer = device.alloc("x", 8).unwrap().all();
        let result = if comm.rank() == 0 {
            comm.barrier()
        } else {
            comm.broadcast(&buffer, 1)
        };
        (comm.rank(), result.map_err(|e| e.to_string()))
    });
    let message = errors[0].1.as_ref().unwrap_err();
    assert!(
        message.contains("rank 1 is in broadcast") && message.contains("rank 0 is in barrier"),
        "{message}"
    );
}

#[test]
fn different_sizes_are_a_mismatch() {
    let errors = world(2, |mut comm| {
        let device = CpuDevice::new();
        let n = 4 + 4 * comm.rank();
        let (send, recv) = (
            device.alloc("s", n).unwrap(),
            device.alloc("r", 2 * n).unwrap(),
        );
        comm.all_gather(&send.all(), &recv.all()).unwrap_err()
    });
    assert!(
        matches!(&errors[0], Error::Mismatch(m) if m == "rank 1 of the group sent 8 bytes where 4 were expected")
    );
}

#[test]
fn misfit_arguments_are_named_before_anything_is_sent() {
    let mut comm = LocalWorld::connect(1).unwrap().remove(0);
    let device = CpuDevice::new();
    let b = device.alloc("b", 6).unwrap();
    let e = comm
        .all_reduce(&b.all(), &b.all(), DType::F32, ReduceOp::Sum)
        .unwrap_err();
    assert_eq!(
        e.to_string(),
        "all-reduce: 6 bytes are not whole elements of f32 (4 bytes)"
    );
    let e = comm.broadcast(&b.all(), 1).unwrap_err();
    assert_eq!(
        e.to_string(),
        "broadcast: root 1 is not in the group, its ranks are 0 to 0"
    );
    let e = b.view(4, 3).unwrap_err();
    assert_eq!(e.to_string(), "view: bytes 4..7 of 'b' asked for, it has 6");
}
