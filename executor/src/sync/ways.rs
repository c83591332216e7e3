//! The ways in which rows reach every rank.

use serde::{Deserialize, Serialize};

use super::{ROW, WORDS, bytes, words};
use crate::comm::CpuCommunicator;
use crate::{Buffer, Communicator, DType, Device, Error, ReduceOp, Result};

/// How a sync is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// All-gather between the hosts' processes over TCP.
    HostTcp,
    /// Each rank's row in a zeroed table; sum all-reduce on the device (vllm-ascend #2582).
    DeviceAllReduce,
    /// All-gather on the device.
    DeviceAllGather,
    /// All-gather on the device over peer memory, by parplan's own kernel.
    PeerAllGather,
}

impl Way {
    /// All ways.
    pub const ALL: [Way; 4] = [
        Way::HostTcp,
        Way::DeviceAllReduce,
        Way::DeviceAllGather,
        Way::PeerAllGather,
    ];

    /// Name in tables and messages.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Way::HostTcp => "host TCP",
            Way::DeviceAllReduce => "device all-reduce",
            Way::DeviceAllGather => "device all-gather",
            Way::PeerAllGather => "peer all-gather",
        }
    }
}

/// Rows of all ranks, in rank order, over TCP.
///
/// # Errors
/// As [`Communicator::all_gather`]; [`Error::Mismatch`] for rows of another length.
pub fn over_tcp(control: &mut CpuCommunicator, row: &[i64; WORDS]) -> Result<Vec<i64>> {
    let all = control.all_gather_bytes(bytes(row))?;
    match all.iter().position(|r| r.len() != ROW) {
        None => Ok(words(&all.concat())),
        Some(rank) => Err(Error::Mismatch(format!(
            "rank {rank} sent {} bytes of metadata, {ROW} are right",
            all[rank].len()
        ))),
    }
}

/// Rows of all ranks by a sum over a table that is zero but for one's own row.
/// `table` holds `size` rows.
///
/// # Errors
/// Errors of communicator and device.
pub fn all_reduce_on_device(
    device: &dyn Device,
    comm: &mut dyn Communicator,
    table: &Buffer,
    row: &[i64; WORDS],
) -> Result<Vec<i64>> {
    let mut mine = vec![0u8; comm.size() * ROW];
    mine[comm.rank() * ROW..][..ROW].copy_from_slice(bytes(row));
    device.write(&table.all(), &mine)?;
    comm.all_reduce(&table.all(), &table.all(), DType::I64, ReduceOp::Sum)?;
    comm.wait()?;
    Ok(words(&device.read(&table.all())?))
}

/// Rows of all ranks by an in-place all-gather. `table` holds `size` rows.
///
/// # Errors
/// Errors of communicator and device.
pub fn all_gather_on_device(
    device: &dyn Device,
    comm: &mut dyn Communicator,
    table: &Buffer,
    row: &[i64; WORDS],
) -> Result<Vec<i64>> {
    let own = table.view(comm.rank() * ROW, ROW)?;
    device.write(&own, bytes(row))?;
    comm.all_gather(&own, &table.all())?;
    comm.wait()?;
    Ok(words(&device.read(&table.all())?))
}
