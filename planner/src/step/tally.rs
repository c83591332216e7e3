//! Time of a pass, added up operation by operation.

use super::launches::Launched;

/// The kinds of work in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Op {
    /// Norms, residuals, rotary embedding, KV write, activations.
    Elementwise,
    /// Query, key and value projections (MLA: compressions and expansions).
    QkvProjection,
    /// Decode attention over the cache (or a recurrent state update).
    DecodeAttention,
    /// Prefill attention.
    PrefillAttention,
    /// Attention output projection.
    OutProjection,
    /// Attention-TP sum.
    AttentionReduce,
    /// DCP's collectives.
    Dcp,
    /// Gather of hidden states before the feed-forward block.
    Gather,
    /// Router.
    Router,
    /// Routed experts.
    Experts,
    /// Shared experts.
    SharedExperts,
    /// Dense feed-forward blocks.
    DenseFfn,
    /// Sum or scatter after the feed-forward block.
    Combine,
    /// Expert all-to-all.
    ExpertExchange,
    /// Output projection and its gather.
    LmHead,
    /// Drafting by MTP layers.
    Draft,
    /// Hand-over between pipeline stages.
    Pipeline,
    /// Small kernels and gaps that no other class has.
    LayerGaps,
    /// Launch time that eager kernels do not hide.
    EagerLaunch,
    /// Batch-shape exchange between DP ranks.
    MetadataSync,
    /// Host time between steps.
    Host,
}

/// How many kinds there are.
pub const OPS: usize = Op::Host as usize + 1;

impl Op {
    /// All kinds, in order of execution.
    pub const ALL: [Op; OPS] = [
        Op::Elementwise,
        Op::QkvProjection,
        Op::DecodeAttention,
        Op::PrefillAttention,
        Op::OutProjection,
        Op::AttentionReduce,
        Op::Dcp,
        Op::Gather,
        Op::Router,
        Op::Experts,
        Op::SharedExperts,
        Op::DenseFfn,
        Op::Combine,
        Op::ExpertExchange,
        Op::LmHead,
        Op::Draft,
        Op::Pipeline,
        Op::LayerGaps,
        Op::EagerLaunch,
        Op::MetadataSync,
        Op::Host,
    ];

    /// The name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Op::Elementwise => "norms, rope, copies",
            Op::QkvProjection => "qkv projection",
            Op::DecodeAttention => "decode attention",
            Op::PrefillAttention => "prefill attention",
            Op::OutProjection => "output projection",
            Op::AttentionReduce => "attention all-reduce",
            Op::Dcp => "dcp exchange",
            Op::Gather => "dp gather",
            Op::Router => "router",
            Op::Experts => "routed experts",
            Op::SharedExperts => "shared experts",
            Op::DenseFfn => "dense ffn",
            Op::Combine => "ffn combine",
            Op::ExpertExchange => "expert all-to-all",
            Op::LmHead => "lm head",
            Op::Draft => "drafting",
            Op::Pipeline => "pipeline hand-over",
            Op::LayerGaps => "layer gaps",
            Op::EagerLaunch => "eager launches",
            Op::MetadataSync => "metadata sync",
            Op::Host => "host",
        }
    }

    /// Kernel time on the GPU, which an engine's scale applies to; the others are launch and host time.
    pub const fn is_kernel(self) -> bool {
        !matches!(
            self,
            Op::Pipeline | Op::LayerGaps | Op::EagerLaunch | Op::MetadataSync | Op::Host
        )
    }
}

/// Microseconds by kind, with the roofline beside them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tally {
    us: [f64; OPS],
    roofline_us: [f64; OPS],
    count: [f64; OPS],
    /// What was launched, where the engine's kernels are known one by one.
    launched: [Launched; OPS],
}

impl Tally {
    /// Nothing yet.
    pub const fn new() -> Tally {
        Tally {
            us: [0.0; OPS],
            roofline_us: [0.0; OPS],
            count: [0.0; OPS],
            launched: [Launched {
                kernels: 0.0,
                waiting: 0.0,
                collectives: 0.0,
                late: 0.0,
            }; OPS],
        }
    }

    /// Takes off `us` of one kind of work that run beside another. What still shows is bound by what it
    /// moves alone, so that its roofline is no longer than it.
    pub fn hide(&mut self, op: Op, us: f64) {
        let op = op as usize;
        self.us[op] -= us;
        self.roofline_us[op] = self.roofline_us[op].min(self.us[op]);
    }

    /// Counts launches.
    #[inline]
    pub fn launch(&mut self, op: Op, launched: Launched) {
        self.launched[op as usize] += launched;
    }

    /// What was launched of one kind of work.
    pub fn launched(&self, op: Op) -> Launched {
        self.launched[op as usize]
    }

    /// Adds `count` operations of `us` each.
    #[inline]
    pub fn add(&mut self, op: Op, count: f64, us: f64) {
        self.us[op as usize] += count * us;
        self.count[op as usize] += count;
    }

    /// Adds the roofline of operations that [`Tally::add`] counted.
    #[inline]
    pub fn add_roofline(&mut self, op: Op, count: f64, us: f64) {
        self.roofline_us[op as usize] += count * us;
    }

    /// Time of one kind, microseconds.
    pub fn us(&self, op: Op) -> f64 {
        self.us[op as usize]
    }

    /// Roofline of one kind, microseconds.
    pub fn roofline_us(&self, op: Op) -> f64 {
        self.roofline_us[op as usize]
    }

    /// Operations of one kind.
    pub fn count(&self, op: Op) -> f64 {
        self.count[op as usize]
    }

    /// Everything, microseconds.
    pub fn total_us(&self) -> f64 {
        self.us.iter().sum()
    }

    /// Multiplies the kernel time by `scale`.
    pub fn scale_kernels(&mut self, scale: f64) {
        for op in Op::ALL {
            if op.is_kernel() {
                self.us[op as usize] *= scale;
            }
        }
    }

    /// Multiplies everything by `factor`.
    pub fn scale(&mut self, factor: f64) {
        for op in 0..OPS {
            self.us[op] *= factor;
            self.roofline_us[op] *= factor;
            self.count[op] *= factor;
            self.launched[op] = self.launched[op] * factor;
        }
    }
}

impl Default for Tally {
    fn default() -> Self {
        Tally::new()
    }
}
