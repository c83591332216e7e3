//! Which all-reduce an engine launches for a message.
//!
//! Engines try their own kernels first, by message size, world size, GPU and launch mode, and fall
//! back to NCCL. The order and thresholds are data of the profile; this is the one function that
//! reads them. What the pick costs is the cost model's business.

use parplan_profiles::engine::rules::{
    AllReduceCandidate, AllReduceKind, AllReduceRule, DcpMerge, DcpRule,
};

/// An all-reduce that an engine is about to launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllReduceCall {
    /// Bytes of the tensor on each rank.
    pub bytes: u64,
    /// Ranks of the group.
    pub ranks: u32,
    /// Compute capability times ten; 0 on AMD.
    pub sm: u16,
    /// Captured in a graph.
    pub graph: bool,
    /// All ranks share a node with direct peer access between every pair.
    pub peer_access: bool,
    /// The switch can multicast to all ranks.
    pub multicast: bool,
    /// Symmetric memory was asked for, and the tensor is in a window.
    pub symmetric: bool,
    /// The engine's own kernels were switched off.
    pub custom_off: bool,
}

/// Whether a candidate runs for such a call, its size aside.
fn applies(candidate: &AllReduceCandidate, call: &AllReduceCall) -> bool {
    let own = is_own(candidate.implementation);
    candidate.worlds.contains(&call.ranks)
        && (candidate.sm.is_empty() || candidate.sm.contains(&call.sm))
        && candidate.graph.is_none_or(|graph| graph == call.graph)
        && (!candidate.multicast || call.multicast)
        && (!candidate.symmetric || call.symmetric)
        && (!own || (call.peer_access && !call.custom_off))
}

/// The engine's own kernel, which reads peer memory in 16-byte words.
fn is_own(implementation: AllReduceKind) -> bool {
    !matches!(
        implementation,
        AllReduceKind::Nccl | AllReduceKind::NcclSymmetric
    )
}

fn takes(candidate: &AllReduceCandidate, bytes: u64) -> bool {
    bytes > candidate.above
        && bytes <= candidate.up_to
        && (!is_own(candidate.implementation) || bytes.is_multiple_of(16))
}

/// The implementation that an engine picks.
pub fn all_reduce(rule: &AllReduceRule, call: &AllReduceCall) -> AllReduceKind {
    if call.ranks <= 1 {
        return AllReduceKind::Nccl;
    }
    rule.candidates
        .iter()
        .find(|candidate| takes(candidate, call.bytes) && applies(candidate, call))
        .map_or(AllReduceKind::Nccl, |candidate| candidate.implementation)
}

/// The largest message that the engine reduces with its own kernels, bytes; 0 where it never does.
pub fn largest_custom(rule: &AllReduceRule, call: &AllReduceCall) -> u64 {
    if call.ranks <= 1 {
        return 0;
    }
    let call = AllReduceCall {
        symmetric: false,
        ..*call
    };
    // Few candidates apply to a call, so those are found first: a search asks this often.
    let fits: Vec<&AllReduceCandidate> = rule
        .candidates
        .iter()
        .filter(|candidate| applies(candidate, &call))
        .collect();
    fits.iter()
        .map(|candidate| candidate.up_to)
        .filter(|&up_to| up_to < 1 << 40)
        .filter(|&up_to| {
            let bytes = up_to / 16 * 16;
            fits.iter()
                .find(|candidate| takes(candidate, bytes))
                .is_some_and(|candidate| is_own(candidate.implementation))
        })
        .max()
        .unwrap_or(0)
}

/// The merge that an engine uses for a DCP group: what was asked, or its default. FlashInfer's
/// all-to-all is preferred where it runs: one multi-node NVLink domain of compute capability 10.x.
pub fn dcp_merge(rule: &DcpRule, asked: Option<DcpMerge>, sm: u16, one_domain: bool) -> DcpMerge {
    asked.unwrap_or({
        if rule.merges.contains(&DcpMerge::FiA2a) && sm / 10 == 10 && one_domain {
            DcpMerge::FiA2a
        } else {
            rule.default_merge
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use parplan_profiles::engine::{embedded, select};

    const H200: AllReduceCall = AllReduceCall {
        bytes: 0,
        ranks: 8,
        sm: 90,
        graph: true,
        peer_access: true,
        multicast: true,
        symmetric: false,
        custom_off: false,
    };
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;

    fn pick(engine: &str, call: AllReduceCall) -> AllReduceKind {
        let rules = select(&embedded().unwrap(), engine, false).unwrap();
        all_reduce(&rules.all_reduce, &call)
    }

    fn of(bytes: u64) -> AllReduceCall {
        AllReduceCall { bytes, ..H200 }
    }

    #[test]
    fn sglang_by_size_launch_and_version() {
        use AllReduceKind::{Multicast, Nccl, NcclSymmetric, OneShot, TwoShot};
        let new = |call| pick("sglang", call);
        assert_eq!(new(of(128 * KIB)), OneShot);
        assert_eq!(new(of(128 * KIB + 16)), TwoShot);
        assert_eq!(new(of(512 * KIB)), Multicast);
        assert_eq!(new(of(16 * MIB)), Multicast);
        assert_eq!(new(of(16 * MIB + 16)), Nccl);
        let eager = |bytes| AllReduceCall {
            graph: false,
            ..of(bytes)
        };
        assert_eq!(new(eager(129 * KIB)), Multicast);
        let flat = |bytes| AllReduceCall {
            multicast: false,
            ..of(bytes)
        };
        assert_eq!(new(flat(MIB)), TwoShot);
        let four = |bytes, graph| AllReduceCall {
            ranks: 4,
            graph,
            ..of(bytes)
        };
        assert_eq!(new(four(896 * KIB, false)), OneShot);
        assert_eq!(new(four(896 * KIB, true)), TwoShot);
        let windows = AllReduceCall {
            symmetric: true,
            ..of(64 * MIB)
        };
        assert_eq!(new(windows), NcclSymmetric);
        // The older kernels stopped at 8 MiB, and were one-shot below 256 KiB.
        assert_eq!(pick("sglang@0.5.6.post2", of(255 * KIB)), OneShot);
        assert_eq!(pick("sglang@0.5.6.post2", of(256 * KIB)), TwoShot);
        assert_eq!(pick("sglang@0.5.6.post2", of(8 * MIB)), Nccl);
        assert_eq!(pick("sglang@0.5.12", of(160 * KIB)), OneShot);
        assert_eq!(pick("sglang@0.5.12", of(16 * MIB)), TwoShot);
        let b200 = AllReduceCall {
            sm: 100,
            ranks: 4,
            ..of(640 * KIB)
        };
        assert_eq!(new(b200), OneShot);
        assert_eq!(
            new(AllReduceCall {
                bytes: 8 * MIB,
                ..b200
            }),
            TwoShot
        );
    }

    #[test]
    fn own_kernels_need_peers_words_and_permission() {
        let small = of(64 * KIB);
        for call in [
            AllReduceCall {
                peer_access: false,
                ..small
            },
            AllReduceCall {
                custom_off: true,
                ..small
            },
            AllReduceCall {
                bytes: 64 * KIB + 2,
                ..small
            },
            AllReduceCall { ranks: 24, ..small },
            AllReduceCall { ranks: 1, ..small },
        ] {
            assert_eq!(pick("sglang", call), AllReduceKind::Nccl, "{call:?}");
        }
    }

    #[test]
    fn vllm_by_gpu() {
        use AllReduceKind::{Multicast, Nccl, NcclSymmetric, OneShot, TwoShot};
        let new = |call| pick("vllm", call);
        assert_eq!(new(of(128 * KIB)), OneShot);
        assert_eq!(new(of(MIB)), Multicast);
        assert_eq!(new(of(65 * MIB)), Nccl);
        let two = |bytes| AllReduceCall {
            ranks: 2,
            ..of(bytes)
        };
        assert_eq!(new(two(8 * MIB)), OneShot);
        assert_eq!(new(two(9 * MIB)), TwoShot);
        // Windows win when small or large; the engine's own kernel in the middle.
        let window = |bytes| AllReduceCall {
            symmetric: true,
            ..of(bytes)
        };
        assert_eq!(new(window(16 * KIB)), NcclSymmetric);
        assert_eq!(new(window(64 * KIB)), OneShot);
        assert_eq!(new(window(128 * KIB)), NcclSymmetric);
        assert_eq!(pick("vllm@0.16.0", window(128 * KIB)), OneShot);
        assert_eq!(pick("vllm@0.16.0", window(MIB)), NcclSymmetric);
        // A100 has neither table: the bare custom kernel.
        let a100 = AllReduceCall {
            sm: 80,
            multicast: false,
            ..of(4 * MIB)
        };
        assert_eq!(new(a100), TwoShot);
    }

    #[test]
    fn the_largest_custom_message() {
        let rules = select(&embedded().unwrap(), "sglang", false).unwrap();
        assert_eq!(largest_custom(&rules.all_reduce, &H200), 16 * MIB);
        let off = AllReduceCall {
            custom_off: true,
            ..H200
        };
        assert_eq!(largest_custom(&rules.all_reduce, &off), 0);
    }

    #[test]
    fn the_merge_of_a_dcp_group() {
        let rule = |engine: &str| {
            select(&embedded().unwrap(), engine, false)
                .unwrap()
                .dcp
                .unwrap()
        };
        let sglang = rule("sglang");
        assert_eq!(dcp_merge(&sglang, None, 90, true), DcpMerge::A2a);
        assert_eq!(dcp_merge(&sglang, None, 100, true), DcpMerge::FiA2a);
        assert_eq!(dcp_merge(&sglang, None, 100, false), DcpMerge::A2a);
        assert_eq!(
            dcp_merge(&sglang, Some(DcpMerge::AgRs), 100, true),
            DcpMerge::AgRs
        );
        assert_eq!(
            dcp_merge(&rule("sglang@0.5.15"), None, 90, true),
            DcpMerge::AgRs
        );
        assert_eq!(dcp_merge(&rule("vllm"), None, 100, true), DcpMerge::AgRs);
    }
}
