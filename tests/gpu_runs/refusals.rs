//! What cannot be run is named; what ranks disagree on, or cannot map, reaches no GPU.

use std::sync::Arc;
use std::time::Duration;

use parplan_executor::bench::{Collective, Launch, Timer};
use parplan_executor::comm::{CpuCommunicator, LocalWorld};
use parplan_executor::cuda::Gpu;
use parplan_executor::jobs::{CollectivesJob, Context, Implementation};
use parplan_executor::nccl::{Library, NcclCommunicator, NcclRegistrar};
use parplan_executor::ranks::Identity;
use parplan_executor::symmetric::{Registration, Sides, WindowPool};
use parplan_executor::{Communicator, DType, Result};

use crate::support::{ends, on_gpus, on_ranks};

#[test]
#[ignore = "needs 2 GPUs"]
fn out_of_memory_names_the_buffer_and_the_sizes() {
    for registration in ["none", "symmetric"] {
        let command = on_gpus(&format!(
            "collectives --collective all_gather --sizes 300G --registration {registration}"
        ));
        ends(
            command,
            1,
            &[
                "memory for buffer 'send': asked 322122547200 bytes, ",
                " bytes free of ",
            ],
        );
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn fewer_gpus_than_ranks_or_none_at_all_start_nothing() {
    let mut many = on_ranks(64, "collectives");
    many.env_remove("NCCL_MULTI_RANK_GPU_ENABLE");
    ends(many, 2, &["64 ranks need 64 GPUs here, the driver shows "]);
    let mut hidden = on_ranks(2, "collectives");
    hidden.env("CUDA_VISIBLE_DEVICES", "");
    ends(hidden, 2, &["no GPU: "]);
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_missing_nccl_is_named() {
    ends(
        on_gpus("collectives --nccl-path /nonexistent"),
        2,
        &["/nonexistent: there is no libnccl.so.2 there"],
    );
}

/// Ranks as threads of this process, each with its GPU.
fn threads<R: Send + 'static>(
    count: usize,
    work: impl Fn(usize, CpuCommunicator, Arc<Gpu>) -> R + Clone + Send + 'static,
) -> Vec<R> {
    let threads: Vec<_> = LocalWorld::connect(count)
        .unwrap()
        .into_iter()
        .enumerate()
        .map(|(rank, control)| {
            let work = work.clone();
            std::thread::spawn(move || work(rank, control, Gpu::open(rank).unwrap()))
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

#[test]
#[ignore = "needs 2 GPUs"]
fn unequal_symmetric_sizes_are_refused_by_all_ranks_and_equal_ones_work_after() {
    let wait = Duration::from_secs(30);
    let answers = threads(2, move |rank, mut control, gpu| {
        let library = Library::open(None).unwrap();
        let beside = control.split_cpu(Some(0), rank as u32).unwrap().unwrap();
        let nccl = NcclCommunicator::connect(&library, &gpu, beside, wait).unwrap();
        let mut pool = WindowPool::new(NcclRegistrar::new(&nccl).unwrap());
        let symmetric = Registration::Symmetric;
        let refused = pool
            .allocate(&mut control, "rows", 4096 << rank, symmetric)
            .unwrap_err();
        let buffer = pool
            .allocate(&mut control, "rows", 4096, symmetric)
            .unwrap();
        let registered = pool.registration(&buffer.all()).unwrap();
        // Nobody takes its communicator away while another still registers.
        control.barrier().unwrap();
        drop(pool);
        drop(nccl);
        (refused.to_string(), registered)
    });
    for (refused, registered) in answers {
        assert!(
            refused.ends_with(
                "symmetric memory must be allocated alike on every rank: \
                 rank 0 asks for 'rows' of 4096 bytes (Symmetric) as its allocation 0, \
                 rank 1 asks for 'rows' of 8192 bytes (Symmetric) as its allocation 0"
            ),
            "{refused}"
        );
        assert_eq!(registered, Registration::Symmetric);
    }
}

/// CUDA refuses to open a memory handle in the process that made it, so ranks that are
/// threads of one process cannot map each other: all are told, and NCCL is used.
#[test]
#[ignore = "needs 2 GPUs"]
fn ranks_that_cannot_map_each_other_use_nccl() {
    let results = threads(2, |rank, mut control, gpu| -> Result<_> {
        let beside = control.split_cpu(Some(0), rank as u32)?.unwrap();
        let nccl = NcclCommunicator::connect(
            &Library::open(None)?,
            &gpu,
            beside,
            Duration::from_secs(30),
        )?;
        let mut context = Context {
            identity: Identity {
                rank,
                world: 2,
                local_rank: rank,
                local_world: 2,
            },
            device: Box::new(Arc::clone(&gpu)),
            gpu: Some(gpu),
            control,
            nccl: Some(nccl),
            listener: None,
        };
        let job = CollectivesJob {
            collectives: vec![Collective::AllReduce],
            bytes: vec![4096],
            dtype: DType::Bf16,
            registrations: vec![Registration::None],
            sides: Sides::BOTH,
            driver_memory: false,
            launches: vec![Launch::Stream],
            implementations: vec![Implementation::Backend, Implementation::PeerOneShot],
            timer: Timer {
                iterations: 2,
                repeats: 1,
                warmup: 1,
                graph_launches: 1,
            },
            check: true,
            at_least_seconds: 0.0,
        };
        let result = job.run(&mut context)?;
        context.control.barrier()?;
        Ok((result.samples.len(), result.notes))
    });
    for result in results {
        let (samples, notes) = result.unwrap();
        // All-reduce of NCCL, in place and not; nothing over peer memory.
        assert_eq!(samples, 2);
        let [note] = notes.as_slice() else {
            unreachable!("{notes:?}")
        };
        assert!(
            note.starts_with("peer-memory collectives: rank 0 cannot map rank 1: ")
                && note.contains("cuIpcOpenMemHandle")
                && note.ends_with("; NCCL is used"),
            "{note}"
        );
    }
}
