//! The classes that samples are fitted in.

use super::{BufferRegistration, CollectiveKind, Experiment, LaunchMode, Probe, SyncWay};
use crate::dtype::Dtype;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A class of experiments that one set of figures describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Class {
    /// A collective on buffers of one registration; all-to-all has no symmetric kernels.
    Collective(CollectiveKind, BufferRegistration),
    /// parplan's one-shot all-reduce over peer memory.
    PeerOneShot,
    /// parplan's two-shot all-reduce over peer memory.
    PeerTwoShot,
    /// parplan's all-gather over peer memory.
    PeerAllGather,
    /// Queries of ranks that share a cache, gathered over peer memory.
    PeerGather,
    /// Their partial outputs, merged over peer memory.
    PeerMerge,
    /// Metadata sync by one way.
    Sync(SyncWay),
    /// An eager launch.
    Launch,
    /// A node of a replayed graph.
    GraphNode,
    /// Streaming reads.
    MemoryRead,
    /// Streaming copies.
    MemoryCopy,
    /// Dense products on weights of one format.
    Gemm(Dtype),
    /// Routed experts on weights of one format.
    Experts(Dtype),
    /// Decode attention, grouped queries, by cache format.
    DecodeGqa(Dtype),
    /// Decode attention, MLA.
    DecodeMla(Dtype),
    /// Prefill attention, grouped queries.
    PrefillGqa(Dtype),
    /// Memory of a captured graph.
    GraphMemory,
    /// Memory free after context and communicator.
    UsableMemory,
}

impl Class {
    /// The class that an experiment belongs to.
    pub fn of(experiment: &Experiment) -> Class {
        match experiment.probe {
            Probe::Collective {
                collective,
                registration,
                ..
            } => Class::Collective(collective, registration),
            Probe::PeerCollective {
                collective: CollectiveKind::AllGather,
                ..
            } => Class::PeerAllGather,
            Probe::PeerCollective { two_shot: true, .. } => Class::PeerTwoShot,
            Probe::PeerCollective { .. } => Class::PeerOneShot,
            Probe::PeerExchange { merge: true, .. } => Class::PeerMerge,
            Probe::PeerExchange { .. } => Class::PeerGather,
            Probe::MetadataSync { way } => Class::Sync(way),
            Probe::Kernels { .. } if experiment.launch == LaunchMode::Graph => Class::GraphNode,
            Probe::Kernels { .. } => Class::Launch,
            Probe::MemoryRead { .. } => Class::MemoryRead,
            Probe::MemoryCopy { .. } => Class::MemoryCopy,
            Probe::Gemm { weights, .. } => Class::Gemm(weights),
            Probe::Experts(shape) => Class::Experts(shape.weights),
            Probe::DecodeGqa(shape) => Class::DecodeGqa(shape.kv),
            Probe::DecodeMla(shape) => Class::DecodeMla(shape.kv),
            Probe::PrefillGqa(shape) => Class::PrefillGqa(shape.kv),
            Probe::GraphMemory { .. } => Class::GraphMemory,
            Probe::UsableMemory => Class::UsableMemory,
        }
    }

    /// Whether samples of the class say something of their machine that no term holds: its memory, its
    /// streaming rate, and products that come above the peak of the spec sheet.
    pub fn prices_by_sample(self) -> bool {
        matches!(
            self,
            Class::MemoryRead
                | Class::MemoryCopy
                | Class::UsableMemory
                | Class::GraphMemory
                | Class::Gemm(Dtype::Bf16)
        )
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Class::Collective(kind, registration) => {
                write!(f, "{}.{}", kind.name(), registration.name())
            }
            Class::PeerOneShot => f.write_str("peer_one_shot"),
            Class::PeerTwoShot => f.write_str("peer_two_shot"),
            Class::PeerAllGather => f.write_str("peer_all_gather"),
            Class::PeerGather => f.write_str("peer_gather"),
            Class::PeerMerge => f.write_str("peer_merge"),
            Class::Sync(way) => write!(f, "sync.{}", way.name()),
            Class::Launch => f.write_str("launch"),
            Class::GraphNode => f.write_str("graph_node"),
            Class::MemoryRead => f.write_str("memory_read"),
            Class::MemoryCopy => f.write_str("memory_copy"),
            Class::Gemm(dtype) => write!(f, "gemm.{dtype}"),
            Class::Experts(dtype) => write!(f, "experts.{dtype}"),
            Class::DecodeGqa(dtype) => write!(f, "decode_gqa.{dtype}"),
            Class::DecodeMla(dtype) => write!(f, "decode_mla.{dtype}"),
            Class::PrefillGqa(dtype) => write!(f, "prefill_gqa.{dtype}"),
            Class::GraphMemory => f.write_str("graph_memory"),
            Class::UsableMemory => f.write_str("usable_memory"),
        }
    }
}

/// A name that is no class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a class of experiments")]
pub struct UnknownClass(String);

impl FromStr for Class {
    type Err = UnknownClass;

    /// Reads what [`Class`] displays.
    fn from_str(text: &str) -> Result<Class, UnknownClass> {
        let unknown = || UnknownClass(text.to_owned());
        let Some((head, tail)) = text.split_once('.') else {
            return Ok(match text {
                "peer_one_shot" => Class::PeerOneShot,
                "peer_two_shot" => Class::PeerTwoShot,
                "peer_all_gather" => Class::PeerAllGather,
                "peer_gather" => Class::PeerGather,
                "peer_merge" => Class::PeerMerge,
                "launch" => Class::Launch,
                "graph_node" => Class::GraphNode,
                "memory_read" => Class::MemoryRead,
                "memory_copy" => Class::MemoryCopy,
                "graph_memory" => Class::GraphMemory,
                "usable_memory" => Class::UsableMemory,
                _ => return Err(unknown()),
            });
        };
        if let Some(kind) = CollectiveKind::ALL.into_iter().find(|k| k.name() == head) {
            let registration = [
                BufferRegistration::None,
                BufferRegistration::Local,
                BufferRegistration::Symmetric,
            ]
            .into_iter()
            .find(|r| r.name() == tail)
            .ok_or_else(unknown)?;
            return Ok(Class::Collective(kind, registration));
        }
        if head == "sync" {
            return [
                SyncWay::HostTcp,
                SyncWay::DeviceAllReduce,
                SyncWay::DeviceAllGather,
            ]
            .into_iter()
            .find(|way| way.name() == tail)
            .map(Class::Sync)
            .ok_or_else(unknown);
        }
        let dtype: Dtype = tail.parse().map_err(|_| unknown())?;
        Ok(match head {
            "gemm" => Class::Gemm(dtype),
            "experts" => Class::Experts(dtype),
            "decode_gqa" => Class::DecodeGqa(dtype),
            "decode_mla" => Class::DecodeMla(dtype),
            "prefill_gqa" => Class::PrefillGqa(dtype),
            _ => return Err(unknown()),
        })
    }
}

impl TryFrom<String> for Class {
    type Error = UnknownClass;

    fn try_from(text: String) -> Result<Class, UnknownClass> {
        text.parse()
    }
}

impl From<Class> for String {
    fn from(class: Class) -> String {
        class.to_string()
    }
}
