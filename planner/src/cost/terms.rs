//! Resolved figures of each class, for one GPU: times a byte, a product, an item.

#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub base_us: f64,
    pub depth_us: f64,
    pub depth_tile_us: f64,
    pub inverse_memory: f64,
    pub inverse_compute: f64,
    pub us_per_byte_peak: f64,
    pub us_per_flop_peak: f64,
    pub us_per_output: f64,
    pub activation_bytes: f64,
    pub separate_quantise: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct DecodeTerm {
    pub base_us: f64,
    pub item_us_per_sm: f64,
    pub split_us: f64,
    pub split_context: f64,
    pub us_per_byte: f64,
    pub us_per_flop: f64,
    pub us_per_byte_peak: f64,
    pub us_per_flop_peak: f64,
    pub pad_rows: f64,
    pub tile_rows: f64,
    pub sms: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct PrefillTerm {
    pub base_us: f64,
    pub item_us_per_sm: f64,
    pub depth_us_per_key: f64,
    pub us_per_byte: f64,
    pub us_per_flop: f64,
    pub us_per_byte_peak: f64,
    pub us_per_flop_peak: f64,
    pub width_half: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct TopKTerm {
    pub base_us: f64,
    pub row_us_per_sm: f64,
    pub depth_us_per_key: f64,
    pub us_per_byte: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct MoeTerm {
    pub base_us: f64,
    pub us_per_byte: f64,
    pub us_per_flop: f64,
    pub us_per_flop_peak: f64,
    pub pad_rows: f64,
    pub us_per_hidden: f64,
    pub us_per_intermediate: f64,
    pub us_per_expert: f64,
    pub us_per_local_expert: f64,
    pub us_per_remote_hidden: f64,
    pub remote_us: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct ScanTerm {
    pub decode_base_us: f64,
    pub us_per_byte_decode: f64,
    pub prefill_base_us: f64,
    pub depth_us_per_token: f64,
    pub us_per_byte_prefill: f64,
    pub us_per_flop_prefill: f64,
    pub us_per_byte_peak: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct RingTerm {
    pub base_us: f64,
    pub rank_us: f64,
    pub ramp_us_per_root_byte: f64,
    pub us_per_byte: [f64; 3],
    pub eager_us: f64,
    pub low_latency: Option<LowLatencyTerm>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct LowLatencyTerm {
    pub base_us: f64,
    pub rank_us: f64,
    pub ramp_us_per_root_byte: f64,
    pub us_per_byte: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct CustomTerm {
    pub one_shot_us: f64,
    pub two_shot_us: f64,
    pub rank_us: f64,
    pub two_shot_rank_us: f64,
    pub us_per_byte_one_shot: f64,
    pub us_per_byte_two_shot: f64,
    pub max_bytes: f64,
    pub eager_us: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct NetworkTerm {
    pub hop_us: f64,
    pub us_per_byte_network: f64,
    pub us_per_byte_network_peak: f64,
    pub graph_host_us: f64,
    pub pcie_us: f64,
    pub us_per_byte_pcie: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct A2aTerm {
    pub base_us: f64,
    pub node_us: f64,
    pub us_per_row: f64,
    pub us_per_byte_link: f64,
    pub us_per_byte_network: f64,
}
