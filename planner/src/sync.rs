//! What data-parallel ranks tell each other before every step.
//!
//! Ranks must agree on shapes and on whether graphs run before any collective can begin, so this
//! exchange is a fixed cost of every step, idle ranks included.

use crate::layout::Layout;
use parplan_profiles::engine::rules::SyncRule;
use serde::{Deserialize, Serialize};

/// The kind of collective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncCollective {
    /// Every rank receives a row of every other.
    AllGather,
    /// Rows go to one rank, which broadcasts them all.
    GatherBroadcast,
    /// A tensor with one column a rank is summed.
    AllReduce,
}

/// Where the exchange runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncPath {
    /// NCCL on the device, which the host then waits for.
    Device,
    /// Gloo over TCP or shared memory on the host.
    Host,
}

/// The exchange before a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MetadataSync {
    /// The collective.
    pub collective: SyncCollective,
    /// Where it runs.
    pub path: SyncPath,
    /// Ranks that take part.
    pub ranks: u32,
    /// Bytes that a rank contributes.
    pub bytes_per_rank: u64,
    /// Bytes of the whole result on every rank.
    pub bytes_total: u64,
    /// Messages that follow one another on the slowest path (a ring's steps, or a gather and the
    /// levels of a broadcast tree).
    pub serial_hops: u32,
}

/// The exchange of a layout; none where nothing is exchanged.
///
/// `device` overrides the engine's default path: an environment variable or flag of the user.
pub fn metadata_sync(
    rule: &SyncRule,
    layout: &Layout,
    device: Option<bool>,
) -> Option<MetadataSync> {
    if layout.attention_dp <= 1 {
        return None;
    }
    let path = |default| {
        if device.unwrap_or(default) {
            SyncPath::Device
        } else {
            SyncPath::Host
        }
    };
    match *rule {
        SyncRule::None => None,
        SyncRule::AllGather {
            fields,
            field_bytes,
            device,
            tree,
        } => {
            let ranks = layout.tp;
            let path = path(device);
            let row = u64::from(fields) * u64::from(field_bytes);
            let tree = tree && path == SyncPath::Host && ranks > 2;
            Some(MetadataSync {
                collective: if tree {
                    SyncCollective::GatherBroadcast
                } else {
                    SyncCollective::AllGather
                },
                path,
                ranks,
                bytes_per_rank: row,
                bytes_total: row.saturating_mul(u64::from(ranks)),
                serial_hops: if tree {
                    1 + levels(ranks)
                } else {
                    ranks.saturating_sub(1)
                },
            })
        }
        SyncRule::AllReduce {
            fields,
            extra,
            field_bytes,
            device,
        } => {
            let ranks = layout.attention_dp;
            let total = (u64::from(fields) * u64::from(ranks) + u64::from(extra))
                .saturating_mul(u64::from(field_bytes));
            Some(MetadataSync {
                collective: SyncCollective::AllReduce,
                path: path(device),
                ranks,
                bytes_per_rank: total,
                bytes_total: total,
                // Reduce-scatter and all-gather around the ring.
                serial_hops: ranks.saturating_sub(1).saturating_mul(2),
            })
        }
    }
}

/// Levels of a binary tree over `ranks`.
fn levels(ranks: u32) -> u32 {
    ranks.max(1).next_power_of_two().ilog2()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use parplan_profiles::engine::{embedded, select};

    fn sync(engine: &str, tp: u32, attention_dp: u32) -> Option<MetadataSync> {
        let rule = select(&embedded().unwrap(), engine, false).unwrap().sync;
        let layout = Layout {
            replicas: 1,
            tp,
            attention_dp,
            dcp: 1,
            ep: 1,
            pp: 1,
            nodes: 1,
        };
        metadata_sync(&rule, &layout, None)
    }

    #[test]
    fn rows_grow_with_the_version() {
        let bytes = |version: &str| {
            let found = sync(&format!("sglang@{version}"), 8, 8).unwrap();
            assert_eq!(found.path, SyncPath::Host);
            assert_eq!(found.bytes_total, found.bytes_per_rank * 8);
            found.bytes_per_rank
        };
        assert_eq!(bytes("0.5.6.post2"), 48);
        assert_eq!(bytes("0.5.13"), 56);
        assert_eq!(bytes("0.5.20"), 64);
        assert_eq!(bytes("0.5.21"), 72);
        assert_eq!(bytes("0.5.22"), 88);
        assert_eq!(bytes("0.5.23"), 88);
    }

    #[test]
    fn the_last_version_replaced_the_ring_by_a_tree() {
        let ring = sync("sglang@0.5.22", 16, 4).unwrap();
        assert_eq!(
            (ring.collective, ring.serial_hops),
            (SyncCollective::AllGather, 15)
        );
        let tree = sync("sglang@0.5.23", 16, 4).unwrap();
        assert_eq!(
            (tree.collective, tree.serial_hops),
            (SyncCollective::GatherBroadcast, 5)
        );
        let pair = sync("sglang@0.5.23", 2, 2).unwrap();
        assert_eq!(
            (pair.collective, pair.serial_hops),
            (SyncCollective::AllGather, 1)
        );
    }

    #[test]
    fn vllm_sums_a_column_a_rank() {
        let total = |version: &str| sync(&format!("vllm@{version}"), 8, 8).unwrap().bytes_total;
        assert_eq!(total("0.12.0"), 4 * 8 * 4);
        assert_eq!(total("0.16.0"), 5 * 8 * 4);
        assert_eq!(total("0.19.0"), 4 * 8 * 4);
        assert_eq!(total("0.33.0"), 7 * 8 * 4);
        assert_eq!(sync("vllm@0.12.0", 8, 8).unwrap().path, SyncPath::Device);
        assert_eq!(sync("vllm", 8, 8).unwrap().path, SyncPath::Host);
        // Attention TP ranks of one engine do not take part.
        assert_eq!(sync("vllm", 8, 2).unwrap().ranks, 2);
    }

    #[test]
    fn dp_plus_two_int32_of_vllm_ascend() {
        // PR 2582: one int32 a rank, prefill flag and micro-batch flag, on the device.
        let rule = SyncRule::AllReduce {
            fields: 1,
            extra: 2,
            field_bytes: 4,
            device: true,
        };
        let layout = Layout {
            replicas: 1,
            tp: 32,
            attention_dp: 32,
            dcp: 1,
            ep: 32,
            pp: 1,
            nodes: 2,
        };
        let found = metadata_sync(&rule, &layout, None).unwrap();
        assert_eq!((found.bytes_total, found.path), (34 * 4, SyncPath::Device));
        let host = metadata_sync(&rule, &layout, Some(false)).unwrap();
        assert_eq!(host.path, SyncPath::Host);
    }

    #[test]
    fn one_rank_and_builtin_exchange_nothing() {
        assert_eq!(sync("sglang", 8, 1), None);
        assert_eq!(sync("builtin", 8, 8), None);
    }
}
