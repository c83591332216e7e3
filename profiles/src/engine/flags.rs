//! How an engine spells what a plan decides.

use super::version::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a command-line option decides, whatever its spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meaning {
    /// The model: a path or a repository.
    Model,
    /// The name that clients ask for.
    ServedName,
    /// Address to listen on.
    Host,
    /// Port to listen on.
    Port,
    /// Tensor-parallel width, in the engine's own unit.
    Tp,
    /// Attention data-parallel width.
    AttentionDp,
    /// Replicas behind one server.
    Replicas,
    /// Expert-parallel width.
    Ep,
    /// Expert parallelism as a switch.
    EpSwitch,
    /// Expert tensor-parallel width.
    MoeTp,
    /// Pipeline stages.
    Pp,
    /// Decode context-parallel width.
    Dcp,
    /// How partial attention is merged.
    DcpMerge,
    /// Replicate the query projection.
    DcpReplicateQ,
    /// Nodes of one engine.
    Nodes,
    /// Index of this node.
    NodeRank,
    /// `address:port` of the first node.
    Rendezvous,
    /// Address of the first node.
    RendezvousHost,
    /// Port at the first node.
    RendezvousPort,
    /// Address where data-parallel ranks meet.
    DataParallelHost,
    /// Port where data-parallel ranks meet.
    DataParallelPort,
    /// First data-parallel rank of this node.
    DataParallelStart,
    /// Data-parallel ranks of this node.
    DataParallelLocal,
    /// This process runs engines and no API server.
    Headless,
    /// Limit of running requests.
    RunningRequests,
    /// Tokens of a prefill chunk or a step.
    ChunkTokens,
    /// Decode steps between two looks for new requests.
    ReceiveInterval,
    /// Fraction of GPU memory.
    MemoryFraction,
    /// Format that a bf16 checkpoint is quantised to while it is loaded.
    Quantization,
    /// Format of the KV cache.
    KvDtype,
    /// Longest sequence.
    ContextLength,
    /// A longest sequence beyond the one that the model was configured for.
    LongContext,
    /// Tokens of a KV page.
    PageSize,
    /// Captured graph sizes.
    GraphSizes,
    /// Largest captured graph.
    GraphLargest,
    /// No decode graphs.
    GraphsOff,
    /// No prefill graphs.
    PrefillGraphsOff,
    /// Symmetric memory.
    SymmetricMemory,
    /// No custom all-reduce.
    CustomAllReduceOff,
    /// Expert all-to-all backend.
    ExpertBackend,
    /// Kernels of the routed experts.
    ExpertKernel,
    /// DeepEP kernel choice.
    DeepepMode,
    /// Speculation, all in one value.
    Speculation,
    /// Speculation algorithm.
    SpeculationAlgorithm,
    /// Draft steps.
    SpeculationSteps,
    /// Draft branches.
    SpeculationTopK,
    /// Draft tokens verified at once.
    SpeculationTokens,
    /// Draft model.
    SpeculationModel,
    /// Ranks that split a dense feed-forward block.
    DenseTp,
    /// The output projection is split by data-parallel rank.
    DpLmHead,
    /// No radix or prefix cache.
    PrefixCacheOff,
    /// Run code that the model repository ships.
    TrustRemoteCode,
    /// Extra options as a file.
    OptionsFile,
}

/// What follows an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlagForm {
    /// One value, as its own argument.
    Value,
    /// Several values, each an argument.
    Values,
    /// Nothing.
    Switch,
    /// One JSON value.
    Json,
    /// The value alone, without an option before it.
    Positional,
    /// Nothing on the command line: environment variables say it.
    Environment,
}

/// A spelling, with its environment, and the versions that take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flag {
    /// First version that takes it.
    pub from: Version,
    /// First version that no longer does.
    #[serde(default)]
    pub until: Option<Version>,
    /// The option; empty for [`FlagForm::Positional`] and [`FlagForm::Environment`].
    pub flag: String,
    /// What follows it.
    pub form: FlagForm,
    /// Options that must stand beside it.
    #[serde(default)]
    pub with: Vec<String>,
    /// Environment variables that it needs.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

impl Flag {
    /// Whether this spelling holds for a version.
    pub fn holds(&self, version: Version) -> bool {
        self.from <= version && self.until.is_none_or(|until| version < until)
    }
}

/// How drafts are made for speculative decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DraftMethod {
    /// An EAGLE draft.
    Eagle,
    /// An EAGLE-3 draft.
    Eagle3,
    /// The checkpoint's own multi-token-prediction layers.
    Mtp,
    /// N-grams of the prompt.
    Ngram,
}

impl DraftMethod {
    /// The name in profiles and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            DraftMethod::Eagle => "eagle",
            DraftMethod::Eagle3 => "eagle3",
            DraftMethod::Mtp => "mtp",
            DraftMethod::Ngram => "ngram",
        }
    }
}
