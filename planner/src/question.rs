//! What is asked: traffic, the space of configurations, and what counts as good.

use crate::layout::Layout;
use crate::padding::split_mix;
use crate::plan::Choice;
use parplan_profiles::{Dtype, Lengths, Speculation};
use serde::{Deserialize, Serialize};

/// Traffic: a closed loop of clients, or arrivals at a rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// Mean prompt tokens.
    pub isl: f64,
    /// Mean generated tokens.
    pub osl: f64,
    /// How prompt lengths lie around their mean.
    pub prompts: Spread,
    /// How output lengths lie around their mean.
    pub outputs: Spread,
    /// Clients with one request at a time each, over the whole deployment. Not read where requests come
    /// at a rate.
    pub concurrency: f64,
    /// Mean arrivals a second over the whole deployment, where requests come whether others have ended or
    /// not (an open loop); none in a closed loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_s: Option<f64>,
    /// Share of prompt tokens found in the prefix cache, 0 to 1.
    pub prefix_hit: f64,
    /// Mean over maximum of the attention-DP ranks' batches.
    pub balance: Balance,
    /// Requests each client sends; the first ones arrive together.
    pub waves: f64,
    /// Speculative decoding.
    pub speculation: Option<Speculation>,
}

impl Traffic {
    /// Tokens of the longest request, prompt and output.
    pub fn longest(&self) -> f64 {
        self.isl * self.prompts.longest + self.osl * self.outputs.longest
    }

    /// Mean time of a whole request, in the unit of the times: the first token, and the others after it.
    pub fn request_time(&self, ttft: f64, tpot: Option<f64>) -> f64 {
        ttft + (self.osl - 1.0).max(0.0) * tpot.unwrap_or(0.0)
    }

    /// Whether requests have output tokens after the first one, between which time can pass.
    pub fn has_tpot(&self) -> bool {
        self.osl > 1.0
    }

    /// Tokens in the cache of a request that is being decoded, averaged over such requests at a
    /// moment: its prompt, and half of an output that counts by its length, since long ones run long.
    pub fn context(&self) -> f64 {
        self.isl + self.osl * self.outputs.weighted / 2.0
    }
}

/// How the lengths of requests lie around their mean. All figures are parts of that mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The longest.
    pub longest: f64,
    /// Mean of the squares, over the square of the mean: the length of the sequence that a token
    /// picked at random lies in.
    pub weighted: f64,
    /// Width of the even distribution whose 10th and 90th percentiles are as far apart.
    pub width: f64,
}

impl Spread {
    /// All lengths are equal.
    pub const NONE: Spread = Spread {
        longest: 1.0,
        weighted: 1.0,
        width: 0.0,
    };

    /// Lengths drawn evenly from `ratio` of the longest up to it; `ratio` is above 0 and at most 1.
    pub fn even(ratio: f64) -> Spread {
        let longest = 2.0 / (1.0 + ratio);
        let width = (1.0 - ratio) * longest;
        Spread {
            longest,
            weighted: 1.0 + width * width / 12.0,
            width,
        }
    }

    /// That of a distribution; none of a trace that was not read.
    pub fn of(lengths: &Lengths) -> Option<Spread> {
        let mean = lengths.mean()?.max(1e-9);
        let far = lengths.quantile(0.9)? - lengths.quantile(0.1)?;
        Some(Spread {
            longest: f64::from(lengths.max()?) / mean,
            weighted: (lengths.mean_square()? / (mean * mean)).max(1.0),
            width: far / 0.8 / mean,
        })
    }
}

/// Mean tokens that a step yields which verifies a draft, the model's own token included:
/// `1 + a + a² + … + a^steps` (Leviathan et al., arXiv 2211.17192, equation 1).
pub fn tokens_per_step(draft: &Speculation) -> f64 {
    let mut power = 1.0;
    let mut tokens = 1.0;
    for _ in 0..draft.steps {
        power *= draft.acceptance;
        tokens += power;
    }
    tokens
}

/// How evenly attention-DP ranks are loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Every rank has the same batch.
    Even,
    /// The mean batch over the largest one, above 0 and at most 1.
    MeanOverMax(f64),
    /// Relative batch of each rank, in order.
    Ranks(Vec<f64>),
    /// Requests dealt to ranks at random with this seed, each rank equally likely.
    Random(u64),
}

impl Balance {
    /// Batches of `ranks` ranks whose mean is `mean`.
    ///
    /// `MeanOverMax` loads one rank fully and the others evenly below it. An explicit list is
    /// scaled to the mean, and repeated or cut to the number of ranks.
    pub fn batches(&self, ranks: u32, mean: f64) -> Vec<f64> {
        let n = ranks.max(1) as usize;
        match self {
            Balance::Even => vec![mean; n],
            Balance::MeanOverMax(ratio) => {
                if n == 1 {
                    return vec![mean];
                }
                // One rank at the maximum leaves the others at least zero.
                let max = (mean / ratio).min(mean * n as f64);
                let rest = (mean * n as f64 - max) / (n - 1) as f64;
                let mut batches = vec![rest; n];
                batches[0] = max;
                batches
            }
            Balance::Ranks(list) if list.is_empty() => vec![mean; n],
            Balance::Ranks(list) => {
                let mut batches: Vec<f64> = (0..n).map(|i| list[i % list.len()].max(0.0)).collect();
                let sum: f64 = batches.iter().sum();
                if sum <= 0.0 {
                    return vec![mean; n];
                }
                let scale = mean * n as f64 / sum;
                for batch in &mut batches {
                    *batch *= scale;
                }
                batches
            }
            Balance::Random(seed) => {
                let total = (mean * n as f64).round().max(0.0);
                let mut counts = vec![0.0; n];
                let mut state = *seed;
                for _ in 0..(total as u64).min(1 << 16) {
                    counts[(split_mix(&mut state) % n as u64) as usize] += 1.0;
                }
                let sum: f64 = counts.iter().sum();
                if sum > 0.0 {
                    for count in &mut counts {
                        *count *= mean * n as f64 / sum;
                    }
                }
                counts
            }
        }
    }

    /// Mean over maximum for `ranks` ranks at this mean batch; 1 when even.
    pub fn mean_over_max(&self, ranks: u32, mean: f64) -> f64 {
        match self {
            Balance::Even => 1.0,
            _ if ranks <= 1 || mean <= 0.0 => 1.0,
            Balance::MeanOverMax(ratio) => ratio.max(1.0 / f64::from(ranks)),
            _ => {
                let batches = self.batches(ranks, mean);
                let max = batches.iter().copied().fold(0.0, f64::max);
                if max > 0.0 { mean / max } else { 1.0 }
            }
        }
    }
}

/// The configurations to compare; a set field fixes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Space {
    /// GPUs to use, all of them.
    pub gpus: u32,
    /// Nodes that hold them.
    pub nodes: u32,
    /// GPUs of one stage.
    pub tp: Option<u32>,
    /// Attention-DP ranks.
    pub attention_dp: Option<u32>,
    /// DCP ranks.
    pub dcp: Option<u32>,
    /// Expert-parallel ranks.
    pub ep: Option<u32>,
    /// Pipeline stages.
    pub pp: Option<u32>,
    /// Replicas.
    pub replicas: Option<u32>,
    /// KV cache formats to try.
    pub kv_dtypes: Vec<Dtype>,
    /// CUDA graphs on, off, or both.
    pub cuda_graphs: Vec<bool>,
    /// Symmetric memory off, on, or both.
    pub symmetric_memory: Vec<bool>,
    /// Expert all-to-all off, on, or both.
    pub expert_all_to_all: Vec<bool>,
    /// Engine settings that the person fixed.
    pub settings: Settings,
}

impl Space {
    /// Nodes that a replica of `tp` · `pp` GPUs spans.
    pub fn replica_nodes(&self, tp: u32, pp: u32) -> u32 {
        let per_node = self.gpus.div_ceil(self.nodes.max(1)).max(1);
        tp.saturating_mul(pp).div_ceil(per_node).max(1)
    }

    /// `choice` as this space has it: what the space no longer leaves open takes the space's value.
    /// None where the space has no such layout.
    pub fn nearest(&self, choice: &Choice, traffic: &Traffic) -> Option<Choice> {
        fn within<T: PartialEq + Copy>(value: T, all: &[T]) -> Option<T> {
            all.contains(&value)
                .then_some(value)
                .or(all.first().copied())
        }
        let layout = choice.layout;
        let fixed = [
            (self.tp, layout.tp),
            (self.attention_dp, layout.attention_dp),
            (self.dcp, layout.dcp),
            (self.ep, layout.ep),
            (self.pp, layout.pp),
            (self.replicas, layout.replicas),
        ];
        let kept = fixed
            .iter()
            .all(|(fixed, size)| fixed.is_none_or(|fixed| fixed == *size));
        let all_fixed = self.tp.is_some() && self.pp.is_some() && self.replicas.is_some();
        if !kept || (layout.gpus() != self.gpus && !all_fixed) {
            return None;
        }
        Some(Choice {
            layout: Layout {
                nodes: self.replica_nodes(layout.tp, layout.pp),
                ..layout
            },
            kv_dtype: within(choice.kv_dtype, &self.kv_dtypes)?,
            cuda_graphs: within(choice.cuda_graphs, &self.cuda_graphs)?,
            symmetric_memory: within(choice.symmetric_memory, &self.symmetric_memory)?,
            expert_all_to_all: within(choice.expert_all_to_all, &self.expert_all_to_all)?,
            speculative_steps: match traffic.speculation {
                Some(s) if choice.speculative_steps > 0 => s.steps,
                _ => 0,
            },
        })
    }
}

/// Engine settings that a person fixed; the engine's own rule decides the others.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Settings {
    /// Fraction of GPU memory for the engine (`--mem-fraction-static`, `--gpu-memory-utilization`).
    pub memory_fraction: Option<f64>,
    /// Running requests, in the engine's own unit.
    pub max_running_requests: Option<u32>,
    /// Tokens of a prefill chunk or step, in the engine's own unit.
    pub chunk_tokens: Option<u32>,
    /// Decode steps between two looks for new requests.
    pub receive_interval: Option<u32>,
    /// Decode steps that a prompt waits for others to be prefilled with it (TensorRT-LLM's
    /// `batch_wait_timeout_iters`), where it was told to.
    pub company_steps: Option<u32>,
    /// Graph sizes to capture; none for those of the planned batches.
    pub graph_sizes: Option<GraphSizes>,
    /// Longest sequence to serve, tokens.
    pub context_length: Option<u32>,
}

/// Which graphs to capture, where a person said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphSizes {
    /// These, in the engine's unit.
    Listed(Vec<u32>),
    /// Those that the engine captures when it is told none.
    Engine,
}

/// Limits and aim.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goal {
    /// Mean TTFT to stay under, ms.
    pub ttft_ms: Option<f64>,
    /// Mean TPOT to stay under, ms.
    pub tpot_ms: Option<f64>,
    /// What ranks the configurations that meet the limits.
    pub objective: Objective,
}

/// What ranks configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Output tokens a second and GPU. The same for all that keep up with an open loop.
    Throughput,
    /// Mean time of a whole request: to the first token, and then token by token.
    Latency,
    /// The front of both.
    Pareto,
}
