//! `parplan run collectives --json` and `parplan run sync --json`.

use super::{Imported, effective};
use parplan_executor::bench::{Collective, Launch, Stats};
use parplan_executor::jobs::{CollectivesResult, SyncResult};
use parplan_executor::symmetric::Registration;
use parplan_executor::sync::Way;
use parplan_profiles::calibration::{
    BufferRegistration, CollectiveKind, Experiment, LaunchMode, Measured, Probe, SyncWay,
};
use serde_json::Value;

fn launch(l: Launch) -> LaunchMode {
    match l {
        Launch::Stream => LaunchMode::Stream,
        Launch::Graph => LaunchMode::Graph,
    }
}

fn measured(
    ranks: usize,
    launch: LaunchMode,
    probe: Probe,
    implementation: &str,
    time: &Stats,
) -> Measured {
    Measured {
        experiment: Experiment {
            ranks: u32::try_from(ranks).unwrap_or(u32::MAX),
            launch,
            decides: String::new(),
            probe,
        },
        implementation: implementation.to_owned(),
        repeats: vec![time.median_us],
        anchor_us: Vec::new(),
        remarks: vec![format!(
            "median of repeats from {:.2} to {:.2} us",
            time.min_us, time.max_us
        )],
    }
}

pub(super) fn json(value: &Value) -> Result<Imported, String> {
    let wrong = |e: serde_json::Error| format!("it does not read as a run of parplan: {e}");
    if value["samples"][0].get("way").is_some() {
        return sync(serde_json::from_value(value.clone()).map_err(wrong)?);
    }
    let run: CollectivesResult = serde_json::from_value(value.clone()).map_err(wrong)?;
    let mut left = 0usize;
    let mut samples = Vec::new();
    for s in &run.samples {
        let kind = match s.collective {
            Collective::AllGather => CollectiveKind::AllGather,
            Collective::AllReduce => CollectiveKind::AllReduce,
            Collective::ReduceScatter => CollectiveKind::ReduceScatter,
            Collective::AllToAll => CollectiveKind::AllToAll,
            Collective::AllGatherV | Collective::Broadcast | Collective::Barrier => {
                left += 1;
                continue;
            }
        };
        let (bytes, mode) = (s.bytes as u64, launch(s.launch));
        let probe = if s.implementation.starts_with("parplan peer") {
            Probe::PeerCollective {
                collective: kind,
                two_shot: s.implementation.ends_with("two-shot"),
                bytes,
                in_place: s.in_place,
            }
        } else {
            let registration = match s.registration {
                Registration::None => BufferRegistration::None,
                Registration::Local => BufferRegistration::Local,
                Registration::Symmetric => BufferRegistration::Symmetric,
            };
            Probe::Collective {
                collective: kind,
                bytes,
                registration: effective(registration, mode == LaunchMode::Graph, bytes),
                in_place: s.in_place,
            }
        };
        samples.push(measured(s.ranks, mode, probe, &s.implementation, &s.time));
    }
    if samples.is_empty() {
        return Err("has no collective that is priced".to_owned());
    }
    let notes = match left {
        0 => Vec::new(),
        n => vec![format!("{n} samples of collectives that are not priced")],
    };
    Ok(Imported::Samples {
        samples,
        nccl: run.library.strip_prefix("NCCL ").map(str::to_owned),
        device: Some(run.device),
        date: None,
        notes,
    })
}

fn sync(run: SyncResult) -> Result<Imported, String> {
    let samples = run
        .samples
        .iter()
        .filter(|s| s.launch == Launch::Stream && s.registration == Registration::None)
        .filter_map(|s| {
            let (way, name) = match s.way {
                Way::HostTcp => (SyncWay::HostTcp, "parplan tcp"),
                Way::DeviceAllReduce => (SyncWay::DeviceAllReduce, "nccl"),
                Way::DeviceAllGather => (SyncWay::DeviceAllGather, "nccl"),
                Way::PeerAllGather => return None,
            };
            let probe = Probe::MetadataSync { way };
            Some(measured(s.ranks, LaunchMode::Stream, probe, name, &s.time))
        })
        .collect();
    Ok(Imported::Samples {
        samples,
        device: Some(run.device),
        nccl: None,
        date: None,
        notes: Vec::new(),
    })
}
