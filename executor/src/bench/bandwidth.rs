//! The collectives that are measured, their sizes, and their bandwidths.

use serde::{Deserialize, Serialize};

/// A collective, as nccl-tests names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Collective {
    /// All-gather.
    AllGather,
    /// All-gather of uneven parts: rank r brings about `2·(r+1)/(n+1)` of the mean.
    AllGatherV,
    /// All-reduce.
    AllReduce,
    /// Reduce-scatter.
    ReduceScatter,
    /// All-to-all.
    AllToAll,
    /// Broadcast from rank 0.
    Broadcast,
    /// Barrier; no bytes.
    Barrier,
}

impl Collective {
    /// All of them.
    pub const ALL: [Collective; 7] = [
        Collective::AllGather,
        Collective::AllGatherV,
        Collective::AllReduce,
        Collective::ReduceScatter,
        Collective::AllToAll,
        Collective::Broadcast,
        Collective::Barrier,
    ];

    /// Name in tables, JSON and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Collective::AllGather => "all_gather",
            Collective::AllGatherV => "all_gather_v",
            Collective::AllReduce => "all_reduce",
            Collective::ReduceScatter => "reduce_scatter",
            Collective::AllToAll => "all_to_all",
            Collective::Broadcast => "broadcast",
            Collective::Barrier => "barrier",
        }
    }

    /// Whether it can work inside one buffer.
    #[must_use]
    pub fn has_in_place(self) -> bool {
        !matches!(
            self,
            Collective::AllToAll | Collective::Barrier | Collective::Broadcast
        )
    }
}

/// Bus bandwidth over algorithm bandwidth for `n` ranks, as nccl-tests' PERFORMANCE.md
/// defines it; the size is that of the larger of the send and the receive buffer.
#[must_use]
pub fn bus_factor(collective: Collective, n: usize) -> f64 {
    let n = n as f64;
    match collective {
        Collective::AllReduce => 2.0 * (n - 1.0) / n,
        Collective::AllGather
        | Collective::AllGatherV
        | Collective::ReduceScatter
        | Collective::AllToAll => (n - 1.0) / n,
        Collective::Broadcast => 1.0,
        Collective::Barrier => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_those_of_nccl_tests() {
        assert_eq!(bus_factor(Collective::AllReduce, 2), 1.0);
        assert_eq!(bus_factor(Collective::AllReduce, 8), 1.75);
        assert_eq!(bus_factor(Collective::AllGather, 8), 0.875);
        assert_eq!(bus_factor(Collective::ReduceScatter, 4), 0.75);
        assert_eq!(bus_factor(Collective::AllToAll, 2), 0.5);
        assert_eq!(bus_factor(Collective::Broadcast, 8), 1.0);
    }
}
