//! The layout as typed.

use super::values;
use clap::Args;

/// A layout: how one model is split. Sizes have SGLang's meaning.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Layout (`recommend` tries every size that is left open)")]
pub struct LayoutArgs {
    /// GPUs of one pipeline stage, attention DP ranks included (vLLM: tensor-parallel-size times
    /// data-parallel-size) [default: all GPUs of a stage]
    #[arg(long, value_name = "GPUS", value_parser = values::gpus)]
    pub tp: Option<u32>,
    /// Groups of ranks inside tp that hold different requests in attention; attention TP is tp
    /// divided by it (vLLM: data-parallel-size) [default: 1]
    #[arg(long, value_name = "RANKS", value_parser = values::gpus)]
    pub attn_dp: Option<u32>,
    /// Ranks that share the KV cache of a request token by token; divides attention TP
    /// [default: 1]
    #[arg(long, value_name = "RANKS", value_parser = values::gpus)]
    pub dcp: Option<u32>,
    /// Ranks that hold different experts; divides tp, and tp/ep GPUs split each expert
    /// [default: 1]
    #[arg(long, value_name = "RANKS", value_parser = values::gpus)]
    pub ep: Option<u32>,
    /// Pipeline stages [default: 1]
    #[arg(long, value_name = "STAGES", value_parser = values::gpus)]
    pub pp: Option<u32>,
    /// Independent copies of the whole engine, each with its share of the clients [default: 1]
    #[arg(long, value_name = "N", value_parser = values::gpus)]
    pub replicas: Option<u32>,
}
