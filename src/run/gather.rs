//! `parplan run gather`: what can be asked.

use clap::Args;
use parplan_executor::gather::Mode;
use parplan_executor::jobs::{Backend, GatherJob, GatherStep, Job, Work};
use parplan_executor::{Error, Result};

use super::arguments::{Common, Sampling};
use super::mode;
use super::values::{ranks, tokens_if_any, wide};

/// `parplan run gather`
#[derive(Debug, Args)]
pub struct Gather {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    sampling: Sampling,
    /// Attention DP ranks [default: all ranks].
    #[arg(long, value_parser = ranks)]
    attn_dp: Option<usize>,
    /// Elements of a row of hidden states (bf16), a multiple of 8.
    #[arg(long, default_value = "1024", value_parser = wide)]
    hidden: usize,
    /// Requests of each DP rank in one step, like 3,0,7,2; may be given several times.
    /// [default: balanced, uneven, one rank alone, all idle]
    #[arg(long)]
    requests: Vec<String>,
    /// Rows that need logits in each step, in the same form and number as --requests.
    #[arg(long)]
    logprob_rows: Vec<String>,
    /// Speculative steps; a request then has steps + 1 rows.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=64))]
    speculative_steps: u32,
    /// Attention outputs are partial sums over attention TP.
    #[arg(long)]
    partial: bool,
    /// The engine, with its version, whose rule picks the mode.
    #[arg(long, default_value = "sglang")]
    engine: String,
}

impl Gather {
    pub fn job(&self) -> Result<Job> {
        if !self.hidden.is_multiple_of(8) {
            return Err(Error::Unusable(format!(
                "--hidden is {}, it must be a multiple of 8",
                self.hidden
            )));
        }
        let world = self.common.nnodes * self.ranks()?;
        let attn_dp = self.attn_dp.unwrap_or(world);
        if !world.is_multiple_of(attn_dp) {
            return Err(Error::Unusable(format!(
                "--attn-dp is {attn_dp}, it must divide the {world} ranks"
            )));
        }
        let steps: Vec<Vec<usize>> = match self.requests.as_slice() {
            [] => vec![
                vec![64; attn_dp],
                (0..attn_dp).map(|r| 16 * (r % 4) + 3).collect(),
                (0..attn_dp).map(|r| if r == 0 { 64 } else { 0 }).collect(),
                vec![0; attn_dp],
            ],
            given => given
                .iter()
                .map(|s| counts("--requests", s, attn_dp))
                .collect::<Result<_>>()?,
        };
        if !self.logprob_rows.is_empty() && self.logprob_rows.len() != steps.len() {
            return Err(Error::Unusable(format!(
                "--logprob-rows is given {} times, it must be as often as --requests, {}",
                self.logprob_rows.len(),
                steps.len()
            )));
        }
        let rule = mode::Rule::of(
            &self.engine,
            self.hidden * 2,
            world / attn_dp,
            self.speculative_steps > 0,
        )?;
        let mut gather_steps = Vec::new();
        for (i, requests) in steps.into_iter().enumerate() {
            let rows: Vec<usize> = requests
                .iter()
                .map(|r| r * (self.speculative_steps as usize + 1))
                .collect();
            let logprob_rows = match self.logprob_rows.get(i) {
                Some(text) => counts("--logprob-rows", text, attn_dp)?,
                None => requests.clone(),
            };
            gather_steps.push(GatherStep {
                rule: rule.pick(&rows),
                requests,
                logprob_rows,
            });
        }
        Ok(self.common.job(Work::Gather(GatherJob {
            attn_dp,
            hidden: self.hidden,
            speculative_steps: self.speculative_steps as usize,
            partial: self.partial,
            steps: gather_steps,
            modes: vec![Mode::MaxLen, Mode::SumLen, Mode::AllGatherV],
            launches: self.sampling.launches(),
            registrations: self.sampling.registrations(),
            timer: self.sampling.timer(),
        })))
    }

    /// Ranks on each machine, which the shapes of the steps depend on.
    fn ranks(&self) -> Result<usize> {
        if let Some((_, identity)) = super::from_environment(|n| std::env::var(n).ok())?
            && !self.common.no_launcher
        {
            return Ok(identity.world);
        }
        match (self.common.ranks, self.common.backend_or_found()) {
            (Some(n), _) => Ok(n),
            (None, Backend::Cpu) => Ok(2),
            (None, Backend::Nccl | Backend::Peer) => parplan_executor::cuda::device_count(),
        }
    }
}

/// Counts of all DP ranks, like `3,0`.
///
/// # Errors
/// [`Error::Unusable`] for another number of counts than there are ranks, or one that is none.
pub fn counts(flag: &str, text: &str, ranks: usize) -> Result<Vec<usize>> {
    let wrong = || {
        Error::Unusable(format!(
            "{flag} '{text}': it must be {ranks} counts, one for each DP rank, like 3,0, each a whole \
             number up to {}",
            1 << 30
        ))
    };
    let all: Vec<usize> = text
        .split(',')
        .map(|n| tokens_if_any(n).map_err(|_| wrong()))
        .collect::<Result<_>>()?;
    if all.len() != ranks {
        Err(wrong())
    } else {
        Ok(all)
    }
}
