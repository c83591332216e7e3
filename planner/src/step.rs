//! The time of one pass: its operations, and what the engine adds around them.

pub mod block;
pub mod launches;
mod meter;
mod mixer;
pub mod pass;
pub mod priced;
pub mod record;
pub mod tally;

use crate::volume::{DcpShape, Exchange};
use parplan_profiles::{Attention, LayerGroup, ModelCode, Overheads, Speculation};
use pass::{Fixed, Pass};
use tally::{Op, Tally};

/// One deployment's steps: everything about them that does not change from step to step.
#[derive(Debug, Clone, Copy)]
pub struct Steps<'a> {
    /// Shapes, prices and groups.
    pub fixed: Fixed<'a>,
    /// What the engine adds.
    pub overheads: &'a Overheads,
    /// What is known of its code for such models.
    pub model_code: &'a ModelCode,
    /// How rows reach the feed-forward blocks in decode.
    pub decode_exchange: Exchange,
    /// The same in passes that carry prefill.
    pub prefill_exchange: Exchange,
    /// Captured graph sizes, ascending, requests a rank; empty without graphs.
    pub buckets: &'a [u32],
    /// Pipeline stages.
    pub stages: f64,
    /// Kernels of a stage that the host launches one by one where no graph replays them.
    pub launches: f64,
    /// Kernels of a stage in a decode step, one after the other.
    pub graph_kernels: f64,
    /// Prefill tokens of a pass that graphs between attention cover; 0 without prefill graphs.
    pub prefill_graph_tokens: f64,
    /// Mean over maximum of the DP ranks' batches.
    pub mean_over_max: f64,
    /// Tokens in the cache of a decoding request.
    pub context: f64,
    /// Prompt tokens that a request has to prefill.
    pub prompt: f64,
    /// Decoding goes on beside prefill on the same rank; otherwise on the other ranks only.
    pub mixed: bool,
    /// Speculation.
    pub speculation: Option<Speculation>,
    /// Batch-shape exchange between DP ranks, microseconds a step.
    pub sync_us: f64,
}

impl Steps<'_> {
    /// Query tokens of a decoding request in one step.
    fn width(&self) -> f64 {
        1.0 + self.speculation.map_or(0.0, |s| f64::from(s.steps))
    }

    /// Measured over modelled kernel time of a decode step.
    fn decode_scale(&self) -> f64 {
        self.overheads.decode_scale * self.model_code.decode
    }

    /// The same of a pass that carries prompts.
    fn prefill_scale(&self) -> f64 {
        self.overheads.prefill_scale * self.model_code.prefill
    }

    /// Rows rounded up to whole ones and to attention TP, where DP ranks gather.
    fn align(&self, rows: f64) -> f64 {
        let step = if self.fixed.dp > 1 {
            f64::from(self.fixed.attention_tp)
        } else {
            1.0
        };
        (rows / step).ceil() * step
    }

    /// The bucket that a batch of `requests` replays; none where it runs eagerly.
    pub fn bucket(&self, requests: f64) -> Option<f64> {
        let need = requests.ceil().max(1.0);
        let at = self.buckets.partition_point(|&size| f64::from(size) < need);
        self.buckets.get(at).map(|&size| f64::from(size))
    }

    /// DCP's shape in layers like `group`, for `tokens` query tokens; none where the layer caches
    /// nothing that DCP could share.
    pub fn dcp_shape(&self, group: &LayerGroup, tokens: f64) -> Option<DcpShape> {
        let ranks = f64::from(self.fixed.attention_tp);
        let (heads, qk_dim, v_dim, merge) = match group.attention.as_ref()? {
            Attention::Gqa(a) => (a.q_heads, a.head_dim, a.v_head_dim, self.fixed.dcp_gqa),
            Attention::Mla(a) => (
                a.q_heads,
                a.kv_lora_rank + a.qk_rope_head_dim,
                a.kv_lora_rank,
                self.fixed.dcp_mla,
            ),
            _ => return None,
        };
        Some(DcpShape {
            ranks: self.fixed.dcp,
            tokens,
            heads: f64::from(heads) / ranks,
            qk_dim: f64::from(qk_dim),
            v_dim: f64::from(v_dim),
            merge: merge.0,
            merge_bytes: merge.1,
            replicated_q: self.fixed.dcp_replicated_q,
            lse_apart: self.fixed.dcp_lse_apart,
        })
    }

    /// A decode step with `requests` requests a DP rank on average, operation by operation.
    pub fn decode(&self, requests: f64) -> Tally {
        // Stages work on different microbatches at the same time.
        let mean = requests / self.stages;
        let fullest = mean / self.mean_over_max;
        let bucket = self.bucket(fullest);
        let width = self.width();
        let dp = f64::from(self.fixed.dp);
        let (rows_max, rows_sum) = match bucket {
            Some(size) => (size * width, size * width * dp),
            None => (self.align(fullest * width), self.align(mean * width) * dp),
        };
        let pass = Pass {
            decode_requests: fullest,
            query_tokens: width,
            context: self.context,
            prefill_tokens: 0.0,
            prefill_prompts: 0.0,
            prefill_before: 0.0,
            rows_max: rows_max.max(1.0),
            rows_sum: rows_sum.max(1.0),
            graph: bucket.is_some(),
            exchange: self.decode_exchange,
        };
        let mut tally = self.pass(&pass, self.decode_scale());
        if let Some(s) = self.speculation {
            pass::draft(&self.fixed, &pass, f64::from(s.steps), &mut tally);
        }
        self.around(&mut tally, &pass, requests, 0.0);
        tally
    }

    /// A pass that carries `tokens` prompt tokens a rank on `ranks` ranks, `before` tokens of the
    /// same prompts already in the cache, while `decoding` requests a rank decode.
    pub fn prefill(&self, tokens: f64, before: f64, ranks: f64, decoding: f64) -> Tally {
        let width = self.width();
        let dp = f64::from(self.fixed.dp);
        // The rank with the prompt is the slowest; only where chunks ride along does it decode too.
        let (here, decoding_ranks) = if self.mixed {
            (decoding / self.mean_over_max, dp)
        } else {
            (0.0, (dp - ranks).max(0.0))
        };
        let pass = Pass {
            decode_requests: here,
            query_tokens: width,
            context: self.context,
            prefill_tokens: tokens,
            prefill_prompts: (tokens / self.prompt).max(1.0),
            prefill_before: before,
            rows_max: self.align(tokens + here * width),
            rows_sum: self.align(tokens) * ranks + self.align(decoding * width) * decoding_ranks,
            graph: false,
            exchange: self.prefill_exchange,
        };
        let mut tally = self.pass(&pass, self.prefill_scale());
        let requests = if decoding_ranks > 0.0 { decoding } else { 0.0 };
        self.around(&mut tally, &pass, requests, self.overheads.prefill_pass_us);
        tally
    }

    /// Kernels of a pass, all stages.
    fn pass(&self, pass: &Pass, scale: f64) -> Tally {
        let mut tally = Tally::new();
        pass::layers(&self.fixed, pass, &mut tally);
        // A token passes all stages, one after the other.
        tally.scale(self.stages);
        let own = pass.decode_requests * pass.query_tokens + pass.prefill_prompts.ceil();
        let rows = if self.fixed.head_on_attention_tp {
            own
        } else {
            own * f64::from(self.fixed.dp)
        };
        pass::head(&self.fixed, rows, pass.graph, &mut tally);
        tally.scale_kernels(scale);
        tally
    }

    /// What the kernels and collectives of one kind of work wait for those before them, where they are known one by one.
    fn gaps_us(&self, tally: &Tally, op: Op, graph: bool) -> f64 {
        let gaps = &self.overheads.gaps;
        let launched = tally.launched(op);
        let later = if graph {
            0.0
        } else {
            gaps.eager_kernel_us - gaps.graph_kernel_us
        };
        launched.waiting * gaps.graph_kernel_us
            + launched.late * gaps.collective_us
            + (launched.kernels + launched.collectives) * later
    }

    /// What is between the kernels of a pass: gaps, and launches that nothing covers.
    fn between(&self, tally: &mut Tally, pass: &Pass) {
        let o = self.overheads;
        let layers = self.fixed.shard.layers * self.stages;
        let prefill = pass.prefill_tokens > 0.0;
        // Decode has the same small kernels and gaps launched eagerly as in a graph. What the fit knows
        // of prefill's is in its kernel scale.
        if pass.graph || !prefill {
            let gaps = self.graph_kernels * self.stages / launches::DENSE_LAYER * o.graph_layer_us;
            tally.add(Op::LayerGaps, layers, gaps / layers.max(1.0));
        }
        // Where kernels are known one by one, so is what each of them waits for.
        let mut counted = 0.0;
        if self.fixed.kernels.is_some() {
            for op in Op::ALL {
                let launched = tally.launched(op);
                counted += launched.kernels + launched.collectives;
                let us = self.gaps_us(tally, op, pass.graph);
                tally.add(Op::LayerGaps, 1.0, us);
            }
        }
        if pass.graph {
            return;
        }
        // Eager launches run ahead of the GPU: only what kernels do not cover is waited for.
        let kernels = if self.fixed.kernels.is_some() {
            counted
        } else if prefill && pass.rows_max <= self.prefill_graph_tokens {
            launches::piecewise(self.fixed.shard) * self.stages
        } else {
            self.launches * self.stages
        };
        let launched = kernels * o.eager_layer_us / launches::DENSE_LAYER;
        let waited = (launched - tally.total_us()).max(0.0);
        tally.add(Op::EagerLaunch, layers, waited / layers.max(1.0));
    }

    /// Gaps, launches, stages and the host.
    fn around(&self, tally: &mut Tally, pass: &Pass, requests: f64, extra_us: f64) {
        let o = self.overheads;
        self.between(tally, pass);
        if self.stages > 1.0 {
            let bytes = pass.rows_max * self.fixed.shard.hidden * pass::ACTIVATION_BYTES;
            tally.add(Op::Pipeline, self.stages - 1.0, self.fixed.hand_over(bytes));
        }
        if self.fixed.dp > 1 {
            tally.add(Op::MetadataSync, 1.0, self.sync_us);
        }
        tally.add(
            Op::Host,
            1.0,
            o.step_us + o.step_request_us * requests + extra_us,
        );
    }
}

impl crate::serve::StepTimes for Steps<'_> {
    fn decode_us(&self, requests: f64) -> f64 {
        self.decode(requests).total_us()
    }

    fn prefill_us(&self, tokens: f64, prefix: f64, ranks: f64, decoding: f64) -> f64 {
        self.prefill(tokens, prefix, ranks, decoding).total_us()
    }
}
