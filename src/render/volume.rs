//! The communication volume of a decode step, by kind of layer.

use super::{Page, Table, number};
use parplan_planner::plan::LayerVolume;
use parplan_planner::volume::{Group, Kind, Purpose};

/// A row a collective, under the layers that make it.
pub fn table(page: &mut Page, volumes: &[LayerVolume]) {
    page.heading("Communication of a decode step, each layer");
    if volumes.iter().all(|volume| volume.calls.is_empty()) {
        page.text("none: no group has more than one rank");
        return;
    }
    let mut table = Table::new(&[
        "layers",
        "for",
        "collective",
        "group",
        ">ranks",
        ">bytes",
        ">ring bytes",
    ]);
    for volume in volumes {
        let mut layers = format!("{} x {}", number::plain(volume.layers), volume.layer);
        if volume.calls.is_empty() {
            table.row([layers, "nothing".to_owned()]);
            continue;
        }
        for call in &volume.calls {
            table.row([
                std::mem::take(&mut layers),
                purpose(call.purpose).to_owned(),
                kind(call.kind).to_owned(),
                group(call.group).to_owned(),
                call.ranks.to_string(),
                number::bytes(call.bytes),
                number::bytes(call.ring_bytes()),
            ]);
        }
    }
    page.table(&table);
    page.aside(
        "bytes: the whole buffer, as nccl-tests counts it. ring bytes: what a rank receives if a \
         ring runs it.",
    );
}

/// In words.
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::AllReduce => "all-reduce",
        Kind::AllGather => "all-gather",
        Kind::ReduceScatter => "reduce-scatter",
        Kind::AllToAll => "all-to-all",
        Kind::ExpertDispatch => "dispatch",
        Kind::ExpertCombine => "combine",
    }
}

/// In words.
pub fn group(group: Group) -> &'static str {
    match group {
        Group::Tp => "TP",
        Group::AttentionTp => "attn TP",
        Group::AttentionDp => "attn DP",
        Group::Dcp => "DCP",
        Group::Ep => "EP",
    }
}

/// In words.
pub fn purpose(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::SharedNorm => "QK norm",
        Purpose::AttentionOutput => "attention sum",
        Purpose::Gather => "FFN gather",
        Purpose::Combine => "FFN combine",
        Purpose::DcpQuery => "DCP queries",
        Purpose::DcpLse => "DCP LSE",
        Purpose::DcpMerge => "DCP merge",
        Purpose::Experts => "experts",
    }
}
