//! `parplan run stack`: decoder layers of a model on this machine.

mod spec;
mod table;

use crate::output::tell;
use std::path::PathBuf;

use clap::Args;
use parplan_executor::gather::Mode;
use parplan_executor::jobs::{Job, StackJob, StackTiming, Work};
use parplan_executor::stack::{DcpMerge, Phase, StackLayout, StepSpec};
use parplan_executor::symmetric::Registration;
use parplan_executor::{Error, Result};
use parplan_profiles::Dtype;

use super::arguments::Common;
use super::values::{ranks, times, times_if_any, tokens, tokens_if_any, wide};
use crate::args::named;
use crate::args::{KvFormat, weight_format};
pub use spec::{Choices, share_of, smaller, spec_of};
pub use table::print;

/// `parplan run stack`
#[derive(Clone, Debug, Args)]
pub struct Stack {
    #[command(flatten)]
    common: Common,
    /// The model: a profile's name, a Hugging Face id, or a config.json.
    #[arg(long)]
    model: String,
    /// Store the linear layers in this format, bf16 or fp8 [default: the profile's own].
    #[arg(long, value_parser = weight_format)]
    weights: Option<Dtype>,
    /// Folder of your own profiles.
    #[arg(long, env = crate::ask::PROFILES_VARIABLE)]
    profiles: Option<PathBuf>,
    /// Layers, of every kind that the model has in its proportion.
    #[arg(long, default_value = "4", value_parser = wide)]
    layers: usize,
    /// Divide the model's widths and counts, for a check that ends soon.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    scale: u32,
    /// Ranks.
    #[arg(long, default_value = "1", value_parser = ranks)]
    tp: usize,
    /// Attention DP ranks; attention TP is tp / attn-dp.
    #[arg(long, default_value = "1", value_parser = ranks)]
    attn_dp: usize,
    /// Ranks that share a request's KV cache.
    #[arg(long, default_value = "1", value_parser = ranks)]
    dcp: usize,
    /// Ranks that hold different experts.
    #[arg(long, default_value = "1", value_parser = ranks)]
    ep: usize,
    /// Run the shapes of this larger layout on the ranks at hand, like tp=8,attn-dp=4,dcp=2,ep=8.
    #[arg(long, value_parser = shard_of)]
    as_shard_of: Option<StackLayout>,
    /// Move experts' rows by all-to-all, which needs ep = tp.
    #[arg(long)]
    all_to_all: bool,
    /// How DCP merges partial attention: ag-rs (LSEs by all-gather, correction, reduce-scatter), a2a (one
    /// all-to-all of outputs and LSEs), fused (one kernel over peer memory on each side; a2a where there
    /// is none).
    #[arg(long, default_value = "ag-rs", value_parser = named(MERGES))]
    dcp_merge: DcpMerge,
    /// Consecutive tokens of one DCP rank.
    #[arg(long, default_value = "1", value_parser = tokens)]
    dcp_interleave: usize,
    /// Requests of every attention-DP rank, a step for each number.
    #[arg(long, value_delimiter = ',', default_value = "64", value_parser = tokens)]
    batch: Vec<usize>,
    /// Requests of each attention-DP rank in one step, like 3,0; instead of --batch, may
    /// be given several times.
    #[arg(long)]
    requests: Vec<String>,
    /// Tokens in the cache of each request, a step for each number.
    #[arg(long, value_delimiter = ',', default_value = "8192", value_parser = tokens_if_any)]
    context: Vec<usize>,
    /// New tokens of a decoding request, above 1 where drafts are verified.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    q_tokens: u32,
    /// Also a prefill step: a chunk of so many tokens on every attention-DP rank, a step
    /// for each number.
    #[arg(long, value_delimiter = ',', value_parser = tokens)]
    prefill: Vec<usize>,
    /// Tokens of the same prompt that are in the cache before a prefill chunk.
    #[arg(long, default_value = "0", value_parser = tokens_if_any)]
    prefix: usize,
    /// Format of the KV cache [default: the profile's own].
    #[arg(long)]
    kv: Option<KvFormat>,
    /// Tokens of a page.
    #[arg(long, default_value = "16", value_parser = wide)]
    page_size: usize,
    /// How rows of uneven ranks are gathered in eager steps: all padded to the longest (all-gather and
    /// reduce-scatter), at their offsets (two all-reduces), or exact (all-gather-v and all-reduce).
    #[arg(
        long,
        default_value = "max-len",
        value_parser = named([
            ("max-len", Mode::MaxLen),
            ("sum-len", Mode::SumLen),
            ("exact", Mode::AllGatherV),
        ])
    )]
    mode: Mode,
    /// Replay decode steps from CUDA graphs, and time them eagerly beside that.
    #[arg(long)]
    graph: bool,
    /// Requests that graphs are captured for [default: those of --batch].
    #[arg(long, value_delimiter = ',', value_parser = tokens)]
    buckets: Vec<usize>,
    /// Register what all ranks exchange as symmetric memory.
    #[arg(long)]
    symmetric: bool,
    /// Compare every step with the float64 reference first.
    #[arg(long)]
    check: bool,
    /// Names the synthetic weights and inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Timed steps, of which the median counts.
    #[arg(long, default_value = "20", value_parser = times)]
    repeats: usize,
    /// Untimed steps first.
    #[arg(long, default_value = "5", value_parser = times_if_any)]
    warmup: usize,
    /// libcublasLt.so.13 or .12, its folder, or a Python environment that has it.
    #[arg(long)]
    cublas_path: Option<PathBuf>,
}

/// What `--dcp-merge` calls the ways to merge.
const MERGES: [(&str, DcpMerge); 3] = [
    ("ag-rs", DcpMerge::ReduceScatter),
    ("a2a", DcpMerge::AllToAll),
    ("fused", DcpMerge::Peer),
];

/// `tp=8,attn-dp=4,dcp=2,ep=8`; what is left out is 1.
fn shard_of(text: &str) -> std::result::Result<StackLayout, String> {
    let mut layout = StackLayout::ONE;
    for part in text.split(',') {
        let wrong = || format!("'{part}': sizes like tp=8,attn-dp=4,dcp=2,ep=8 are expected");
        let (name, value) = part.split_once('=').ok_or_else(wrong)?;
        let value: usize = value.trim().parse().map_err(|_| wrong())?;
        if !(1..=4096).contains(&value) {
            return Err(format!("{part}: 1 to 4096 ranks can be named"));
        }
        match name.trim() {
            "tp" => layout.tp = value,
            "attn-dp" => layout.attn_dp = value,
            "dcp" => layout.dcp = value,
            "ep" => layout.ep = value,
            _ => return Err(wrong()),
        }
    }
    Ok(layout)
}

impl Stack {
    /// The job, and how its ranks are started.
    ///
    /// # Errors
    /// [`Error::Unusable`] for anything that does not fit.
    pub fn job(&self) -> Result<(Common, Job)> {
        let unusable = |e: crate::Failure| Error::Unusable(e.to_string());
        let here = StackLayout {
            tp: self.tp,
            attn_dp: self.attn_dp,
            dcp: self.dcp,
            ep: self.ep,
        };
        if let Some(real) = &self.as_shard_of {
            real.check("--as-shard-of")?;
        }
        let library = crate::ask::library(self.profiles.as_deref()).map_err(unusable)?;
        let model =
            crate::ask::model_named(&library, &self.model, self.weights).map_err(unusable)?;
        let whole = model;
        let model = smaller(whole.clone(), self.scale);
        let choices = Choices {
            here,
            shard_of: self.as_shard_of.unwrap_or(here),
            layers: Some(self.layers),
            kv: match self.kv {
                Some(KvFormat::Fixed(dtype)) => Some(dtype),
                Some(KvFormat::Auto) | None => None,
            },
            page_size: self.page_size,
            dcp_interleave: self.dcp_interleave,
            dcp_merge: self.dcp_merge,
            all_to_all: self.all_to_all,
            seed: self.seed,
        };
        let (spec, notes) = spec_of(&model, &choices).map_err(|error| {
            match self.scale > 1 && spec_of(&whole, &choices).is_ok() {
                true => Error::Unusable(format!(
                    "--scale {}: divided by it, the model does not fit the layout ({error}); give a \
                     smaller scale",
                    self.scale
                )),
                false => error,
            }
        })?;
        for note in notes {
            tell!("note: {note}");
        }
        let mut common = self.common.clone();
        let ranks = self.tp / common.nnodes;
        match common.ranks {
            Some(given) if given * common.nnodes != self.tp => {
                return Err(Error::Unusable(format!(
                    "--ranks {given} on {} machines for --tp {}: they must be equal; --ranks may be left out",
                    common.nnodes, self.tp
                )));
            }
            _ => common.ranks = Some(ranks.max(1)),
        }
        let steps = self.steps()?;
        let job = common.job(Work::Stack(StackJob {
            spec,
            buckets: self.buckets(&steps)?,
            steps,
            eager: true,
            registration: if self.symmetric {
                Registration::Symmetric
            } else {
                Registration::None
            },
            cublas_path: self.cublas_path.clone(),
            timing: StackTiming {
                warmup: self.warmup,
                repeats: self.repeats,
            },
            check: self.check,
        }));
        Ok((common, job))
    }

    fn steps(&self) -> Result<Vec<StepSpec>> {
        let batches: Vec<Vec<usize>> = match self.requests.as_slice() {
            [] => self.batch.iter().map(|b| vec![*b; self.attn_dp]).collect(),
            given => given
                .iter()
                .map(|text| super::gather::counts("--requests", text, self.attn_dp))
                .collect::<Result<_>>()?,
        };
        let mut steps = Vec::new();
        for context in &self.context {
            for requests in &batches {
                steps.push(StepSpec {
                    requests: requests.clone(),
                    q_tokens: self.q_tokens as usize,
                    context: *context,
                    phase: Phase::Decode,
                    mode: self.mode,
                });
            }
        }
        for chunk in &self.prefill {
            steps.push(StepSpec {
                requests: vec![1; self.attn_dp],
                q_tokens: *chunk,
                context: self.prefix,
                phase: Phase::Prefill,
                mode: self.mode,
            });
        }
        Ok(steps)
    }

    fn buckets(&self, steps: &[StepSpec]) -> Result<Vec<usize>> {
        if !self.graph {
            return if self.buckets.is_empty() {
                Ok(Vec::new())
            } else {
                Err(Error::Unusable("--buckets without --graph".into()))
            };
        }
        if !self.common.on_gpus() {
            return Err(Error::Unusable(
                "--graph needs --backend nccl: only a GPU has graphs".into(),
            ));
        }
        let mut buckets = match self.buckets.as_slice() {
            [] => steps
                .iter()
                .filter(|s| s.phase == Phase::Decode)
                .filter_map(|s| s.requests.iter().copied().max())
                .collect(),
            given => given.to_vec(),
        };
        buckets.sort_unstable();
        buckets.dedup();
        Ok(buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_layout_is_read_by_name() {
        let layout = shard_of("tp=8, attn-dp=4,dcp=2").unwrap();
        assert_eq!(
            (layout.tp, layout.attn_dp, layout.dcp, layout.ep),
            (8, 4, 2, 1)
        );
        for wrong in [
            "",
            "8",
            "tp",
            "tp=x",
            "tp=0",
            "pp=2",
            "tp=8;dcp=2",
            "tp=99999",
        ] {
            assert!(shard_of(wrong).is_err(), "{wrong}");
        }
    }
}
