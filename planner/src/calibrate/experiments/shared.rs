//! What ranks do together: collectives, exchanges over peer memory, rounds of batch shapes.

use super::{KIB, MIB, Machine, replay};
use parplan_profiles::calibration::{
    BufferRegistration, CollectiveKind, Experiment, LaunchMode, Probe, SyncWay,
};

pub(super) fn collectives(machine: Machine) -> Vec<Vec<Experiment>> {
    let sizes: &[u64] = if machine.gpus {
        &[
            KIB,
            16 * KIB,
            64 * KIB,
            256 * KIB,
            MIB,
            4 * MIB,
            16 * MIB,
            128 * MIB,
        ]
    } else {
        &[KIB, 32 * KIB, 256 * KIB, MIB, 4 * MIB]
    };
    let one = |collective, bytes, registration, in_place, launch| Experiment {
        ranks: machine.ranks,
        launch,
        decides: "layouts that split layers over ranks".to_owned(),
        probe: Probe::Collective {
            collective,
            bytes,
            registration,
            in_place,
        },
    };
    let mut out = Vec::new();
    for kind in CollectiveKind::ALL {
        let mut ordinary: Vec<Experiment> = sizes
            .iter()
            .map(|&bytes| {
                one(
                    kind,
                    bytes,
                    BufferRegistration::None,
                    false,
                    replay(machine),
                )
            })
            .collect();
        if machine.gpus {
            for bytes in [16 * KIB, MIB] {
                ordinary.push(one(
                    kind,
                    bytes,
                    BufferRegistration::None,
                    false,
                    LaunchMode::Stream,
                ));
            }
            if kind != CollectiveKind::AllToAll {
                ordinary.push(one(
                    kind,
                    MIB,
                    BufferRegistration::None,
                    true,
                    LaunchMode::Graph,
                ));
            }
        }
        out.push(ordinary);
        if machine.gpus && kind != CollectiveKind::AllToAll {
            // Two kernels share these sizes, and those that steps of many requests send lie about where
            // NCCL changes from one to the other.
            let mut sizes = [sizes, &[128 * KIB, 512 * KIB]].concat();
            sizes.sort_unstable();
            out.push(
                sizes
                    .into_iter()
                    .map(|bytes| {
                        one(
                            kind,
                            bytes,
                            BufferRegistration::Symmetric,
                            false,
                            LaunchMode::Graph,
                        )
                    })
                    .collect(),
            );
        }
    }
    out
}

pub(super) fn peers(machine: Machine) -> Vec<Vec<Experiment>> {
    let one = |collective, two_shot, bytes| Experiment {
        ranks: machine.ranks,
        launch: LaunchMode::Graph,
        decides: "small sums and gathers by parplan's own kernels".to_owned(),
        probe: Probe::PeerCollective {
            collective,
            two_shot,
            bytes,
            in_place: false,
        },
    };
    let exchange = |merge, rows, dim| Experiment {
        ranks: machine.ranks,
        launch: LaunchMode::Graph,
        decides: "decode context parallelism by parplan's own kernels".to_owned(),
        probe: Probe::PeerExchange { merge, rows, dim },
    };
    let mut out: Vec<Vec<Experiment>> = [
        (CollectiveKind::AllReduce, false),
        (CollectiveKind::AllReduce, true),
        (CollectiveKind::AllGather, false),
    ]
    .map(|(kind, two_shot)| {
        [KIB, 16 * KIB, 64 * KIB, 256 * KIB]
            .map(|bytes| one(kind, two_shot, bytes))
            .into()
    })
    .into();
    // Rows of grouped queries, of one token to many, and latent ones.
    for (merge, latent) in [(false, 576), (true, 512)] {
        let rows = [32, 256, 1024, 4096].map(|rows| exchange(merge, rows, 128));
        let latent = [64, 1024, 4096].map(|rows| exchange(merge, rows, latent));
        out.push(rows.into_iter().chain(latent).collect());
    }
    out
}

pub(super) fn syncs(machine: Machine) -> Vec<Experiment> {
    let mut ways = vec![SyncWay::HostTcp];
    if machine.gpus {
        ways.extend([SyncWay::DeviceAllReduce, SyncWay::DeviceAllGather]);
    }
    ways.into_iter()
        .map(|way| Experiment {
            ranks: machine.ranks,
            launch: LaunchMode::Stream,
            decides: "attention DP: its exchange of batch shapes before a step".to_owned(),
            probe: Probe::MetadataSync { way },
        })
        .collect()
}
