//! `parplan run collectives`: what can be asked.

use clap::{Args, ValueEnum};
use parplan_executor::bench::Collective;
use parplan_executor::jobs::{Backend, CollectivesJob, Implementation, Job, Work};
use parplan_executor::symmetric::Sides;
use parplan_executor::{DType, Result};

use super::arguments::{Common, Sampling};

/// `parplan run collectives`
#[derive(Debug, Args)]
pub struct Collectives {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    sampling: Sampling,
    /// Collectives [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    collective: Vec<CollectiveName>,
    /// Sizes, as nccl-tests counts them.
    #[arg(long, value_delimiter = ',', value_parser = bytes, default_values = ["1K", "16K", "256K", "4M"])]
    sizes: Vec<usize>,
    /// Element type of reductions.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DTypeName,
    /// Whose code: the backend's, or parplan's own kernels over peer memory [default: the
    /// backend's; both of parplan's with --backend peer].
    #[arg(long, value_enum, value_delimiter = ',')]
    implementation: Vec<ImplementationName>,
    /// Buffers that the symmetric registration is for, out of place: NCCL 2.29.2 and newer gather
    /// into a registered receive buffer, and reduce-scatter from a registered send buffer, alone.
    #[arg(long, value_enum, default_value = "both")]
    symmetric_sides: SidesName,
    /// First hold the communicator to the conformance suite, and compare every timed
    /// collective with the CPU reference, byte for byte.
    #[arg(long)]
    check: bool,
    /// Unregistered buffers from the driver, as frameworks allocate, instead of from
    /// NCCL, as nccl-tests does: NCCL does not register those in a captured graph.
    #[arg(long)]
    driver_memory: bool,
    /// Repeat everything for at least that many seconds.
    #[arg(long, default_value_t = 0.0)]
    at_least: f64,
}

impl Collectives {
    pub fn job(&self) -> Result<Job> {
        let collective = |c: &CollectiveName| match c {
            CollectiveName::AllGather => Collective::AllGather,
            CollectiveName::AllGatherV => Collective::AllGatherV,
            CollectiveName::AllReduce => Collective::AllReduce,
            CollectiveName::ReduceScatter => Collective::ReduceScatter,
            CollectiveName::AllToAll => Collective::AllToAll,
            CollectiveName::Broadcast => Collective::Broadcast,
            CollectiveName::Barrier => Collective::Barrier,
        };
        let implementation = |i: &ImplementationName| match i {
            ImplementationName::Backend => Implementation::Backend,
            ImplementationName::PeerOneShot => Implementation::PeerOneShot,
            ImplementationName::PeerTwoShot => Implementation::PeerTwoShot,
        };
        let implementations = match (self.implementation.as_slice(), self.common.named_backend()) {
            ([], Some(Backend::Peer)) => {
                vec![Implementation::PeerOneShot, Implementation::PeerTwoShot]
            }
            ([], _) => vec![Implementation::Backend],
            (some, _) => some.iter().map(implementation).collect(),
        };
        let collectives = match self.collective.as_slice() {
            [] => Collective::ALL.to_vec(),
            some => some.iter().map(collective).collect(),
        };
        Ok(self.common.job(Work::Collectives(CollectivesJob {
            collectives,
            bytes: self.sizes.clone(),
            dtype: match self.dtype {
                DTypeName::U8 => DType::U8,
                DTypeName::I32 => DType::I32,
                DTypeName::I64 => DType::I64,
                DTypeName::F16 => DType::F16,
                DTypeName::Bf16 => DType::Bf16,
                DTypeName::F32 => DType::F32,
                DTypeName::F64 => DType::F64,
            },
            registrations: self.sampling.registrations(),
            sides: Sides {
                send: self.symmetric_sides != SidesName::Recv,
                recv: self.symmetric_sides != SidesName::Send,
            },
            driver_memory: self.driver_memory,
            launches: self.sampling.launches(),
            implementations,
            timer: self.sampling.timer(),
            check: self.check,
            at_least_seconds: self.at_least,
        })))
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ImplementationName {
    /// NCCL, or TCP on the CPU.
    Backend,
    PeerOneShot,
    PeerTwoShot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SidesName {
    Both,
    Send,
    Recv,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum CollectiveName {
    AllGather,
    AllGatherV,
    AllReduce,
    ReduceScatter,
    AllToAll,
    Broadcast,
    Barrier,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DTypeName {
    U8,
    I32,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

/// `1K`, `64KiB`, `4M` or plain bytes.
fn bytes(text: &str) -> std::result::Result<usize, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match lower[digits.len()..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        other => {
            return Err(format!(
                "'{other}' is no unit; K, M and G are powers of 1024"
            ));
        }
    };
    let n: usize = digits
        .parse()
        .map_err(|_| "it must be a number of bytes, like 65536 or 64K".to_owned())?;
    n.checked_mul(1 << shift)
        .filter(|n| (1..=1 << 40).contains(n))
        .ok_or_else(|| "it must be between 1 byte and 1 TiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        assert_eq!(bytes("64K"), Ok(65_536));
        assert_eq!(bytes("4MiB"), Ok(4 << 20));
        assert_eq!(bytes("77"), Ok(77));
        assert!(
            bytes("0").is_err()
                && bytes("x").is_err()
                && bytes("3q").is_err()
                && bytes("").is_err()
        );
    }
}
