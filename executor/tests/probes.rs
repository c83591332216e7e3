//! Experiments of fewer ranks than a run has: the first ones run them among themselves.

#![allow(clippy::unwrap_used)] // tests, helper functions included

use std::time::Duration;

use parplan_executor::Deadline;
use parplan_executor::jobs::{Backend, Context, Limits};
use parplan_executor::probes::{Effort, ProbesJob, ProbesResult};
use parplan_executor::ranks::Identity;
use parplan_executor::rendezvous::{Rendezvous, Secret};
use parplan_profiles::calibration::{
    BufferRegistration, CollectiveKind, Experiment, LaunchMode, Probe, SyncWay,
};

const WORLD: usize = 4;

fn shared(ranks: u32, probe: Probe) -> Experiment {
    Experiment {
        ranks,
        launch: LaunchMode::Stream,
        decides: String::new(),
        probe,
    }
}

fn collective(ranks: u32, collective: CollectiveKind) -> Experiment {
    let probe = Probe::Collective {
        collective,
        bytes: 4096,
        registration: BufferRegistration::None,
        in_place: false,
    };
    shared(ranks, probe)
}

fn run(experiments: Vec<Experiment>) -> Vec<ProbesResult> {
    let secret = Secret::new("a secret of this test alone").unwrap();
    let deadline = || Deadline::after(Duration::from_secs(30));
    let server = Rendezvous::serve("127.0.0.1:0", WORLD, secret.clone(), deadline()).unwrap();
    let address = server.address().to_string();
    let job = ProbesJob {
        experiments,
        effort: Effort {
            repeats: 3,
            repeat_ms: 1.0,
            warmup_ms: 1.0,
        },
        budget_seconds: 60.0,
        journal: None,
        cublas_path: None,
    };
    let results = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..WORLD)
            .map(|rank| {
                let (job, secret, address) = (job.clone(), secret.clone(), address.clone());
                scope.spawn(move || {
                    let identity = Identity {
                        rank,
                        world: WORLD,
                        local_rank: rank,
                        local_world: WORLD,
                    };
                    let wait = Duration::from_secs(30);
                    let limits = Limits { meet: wait, wait };
                    let mut context =
                        Context::connect(identity, &address, &secret, Backend::Cpu, None, limits)
                            .unwrap();
                    job.run(&mut context).unwrap()
                })
            })
            .collect();
        ranks.into_iter().map(|r| r.join().unwrap()).collect()
    });
    server.finish().unwrap();
    results
}

#[test]
fn the_first_ranks_measure_what_needs_fewer_than_all() {
    let all = [
        collective(2, CollectiveKind::AllReduce),
        collective(4, CollectiveKind::AllReduce),
        shared(1, Probe::MemoryRead { bytes: 1 << 16 }),
        collective(2, CollectiveKind::AllGather),
        shared(
            4,
            Probe::MetadataSync {
                way: SyncWay::HostTcp,
            },
        ),
        collective(3, CollectiveKind::ReduceScatter),
        collective(8, CollectiveKind::AllReduce),
    ];
    let results = run(all.to_vec());
    for (rank, result) in results.iter().enumerate() {
        let ran: Vec<u32> = result.samples.iter().map(|s| s.experiment.ranks).collect();
        let wanted: Vec<u32> = [2, 4, 1, 2, 4, 3]
            .into_iter()
            .filter(|ranks| (rank as u32) < *ranks)
            .collect();
        assert_eq!(ran, wanted, "rank {rank}: {:?}", result.left_out);
        let (left, why) = &result.left_out[0];
        assert!(
            left.same(&all[6]) && why.contains("needs 8 ranks, this run has 4"),
            "{why}"
        );
        for sample in &result.samples {
            assert!(sample.repeats.iter().all(|us| *us > 0.0));
        }
    }
    // Ranks of a group have the same times: means over the group.
    for at in 0..2 {
        let of = |rank: usize| &results[rank].samples[at].repeats;
        assert_eq!(of(0), of(1));
    }
}
