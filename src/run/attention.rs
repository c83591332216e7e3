//! `parplan run attention`: what can be asked, and its table.

use crate::output::say;
use clap::{Args, ValueEnum};
use parplan_executor::attention::{Gather, Kind, KvType, LATENT, Merge, ROPE, Shape};
use parplan_executor::bench::Launch;
use parplan_executor::jobs::{
    AttentionJob, AttentionResult, AttentionWay, Backend, ExchangeSample, Job, Work,
};
use parplan_executor::symmetric::Registration;
use parplan_executor::{Error, Result};
use parplan_kernels::reference::split_mix;

use super::arguments::{Common, Sampling};
use super::tables;
use super::values::{ranks, tokens, wide};
use crate::args::named;

/// `parplan run attention`
#[derive(Debug, Args)]
pub struct Attention {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    sampling: Sampling,
    /// Grouped queries, or multi-head latent attention (absorbed: 512 + 64).
    #[arg(long, value_enum, default_value = "gqa")]
    kind: KindName,
    /// Query heads of all ranks together.
    #[arg(long, default_value = "64", value_parser = wide)]
    heads: usize,
    /// KV heads, which every rank has; not for mla [default: 8].
    #[arg(long, value_parser = wide)]
    kv_heads: Option<usize>,
    /// Elements of a head, 64, 128 or 256; not for mla [default: 128].
    #[arg(long, value_parser = wide)]
    head_dim: Option<usize>,
    /// Element type of the KV cache.
    #[arg(long, default_value = "bf16", value_parser = named([("bf16", KvType::Bf16), ("fp8", KvType::Fp8)]))]
    kv_dtype: KvType,
    /// Tokens of a page.
    #[arg(long, default_value = "16", value_parser = wide)]
    page: usize,
    /// Requests.
    #[arg(long, default_value = "16", value_parser = wide)]
    batch: usize,
    /// KV tokens of each request, its query tokens included.
    #[arg(long, default_value = "8192", value_parser = tokens)]
    context: usize,
    /// Query tokens of each request; above 1 for drafts and prefill chunks.
    #[arg(long, default_value = "1", value_parser = tokens)]
    query_tokens: usize,
    /// Draw each request's KV and query tokens between 1 and those numbers.
    #[arg(long)]
    ragged: bool,
    /// Ranks that share the KV: all of them, so this is another name for --ranks.
    #[arg(long, value_parser = ranks)]
    dcp: Option<usize>,
    /// Neighbouring KV positions that stay on one rank.
    #[arg(long, default_value = "1", value_parser = tokens)]
    interleave: usize,
    /// Ways to share the attention: ag-rs (queries and LSEs by all-gather, correction,
    /// reduce-scatter), a2a (queries by all-gather; outputs and LSEs by all-to-all, merge),
    /// replicated-q (as ag-rs, every rank computes all queries), fused (one kernel over peer memory
    /// on each side) [default: all that the backend has].
    #[arg(long, value_delimiter = ',', value_parser = named(WAYS))]
    merge: Vec<AttentionWay>,
    /// Instead of attentions, only what ranks exchange around them, by every way in turns,
    /// at each of these numbers of query tokens.
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = wide,
        conflicts_with_all = ["batch", "query_tokens", "ragged"]
    )]
    exchanges: Vec<usize>,
    /// Only from a captured graph; short for --launch graph.
    #[arg(long)]
    graph: bool,
    /// Only with symmetric windows; short for --registration symmetric.
    #[arg(long)]
    symmetric: bool,
    /// Compare with the float64 reference on the CPU: some rows where the context is long.
    #[arg(long)]
    check: bool,
    /// Names the inputs [default: another one in every run].
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindName {
    Gqa,
    Mla,
}

/// What `--merge` calls the ways to share an attention.
const WAYS: [(&str, AttentionWay); 4] = [
    ("ag-rs", way(Gather::Communicator, Merge::AgRs)),
    ("a2a", way(Gather::Communicator, Merge::AllToAll)),
    ("replicated-q", way(Gather::Replicated, Merge::AgRs)),
    ("fused", way(Gather::Peer, Merge::Peer)),
];

const fn way(gather: Gather, merge: Merge) -> AttentionWay {
    AttentionWay { gather, merge }
}

impl Attention {
    /// The job, and how its ranks are started.
    ///
    /// # Errors
    /// [`Error::Unusable`] for anything that does not fit.
    pub fn job(&self) -> Result<(Common, Job)> {
        let common = self.common_with_ranks()?;
        let dcp = common.ranks.unwrap_or(1) * common.nnodes;
        if !self.heads.is_multiple_of(dcp) {
            return Err(unusable(format!(
                "--heads {} over {dcp} ranks: the ranks must divide the query heads",
                self.heads
            )));
        }
        let shape = self.shape()?;
        self.check_sizes(dcp)?;
        let seed = self.seed.unwrap_or_else(|| {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(1, |t| t.as_nanos() as u64)
        });
        let job = common.job(Work::Attention(AttentionJob {
            shape,
            interleave: self.interleave,
            requests: self.requests(seed),
            exchanges: self.exchanges.clone(),
            ways: match self.merge.as_slice() {
                [] => WAYS.map(|(_, way)| way).to_vec(),
                some => some.to_vec(),
            },
            launches: if self.graph {
                vec![Launch::Graph]
            } else {
                self.sampling.launches()
            },
            registrations: if self.symmetric {
                vec![Registration::Symmetric]
            } else {
                self.sampling.registrations()
            },
            timer: match common.backend_or_found() {
                Backend::Cpu => self.sampling.short_timer(),
                Backend::Nccl | Backend::Peer => self.sampling.timer(),
            },
            check: self.check,
            seed,
        }));
        Ok((common, job))
    }

    /// The common options, with as many ranks as share the KV.
    fn common_with_ranks(&self) -> Result<Common> {
        let mut common = self.common.clone();
        match (self.dcp, common.ranks) {
            (Some(dcp), Some(ranks)) if dcp != ranks * common.nnodes => {
                return Err(unusable(format!(
                    "--dcp {dcp} with {} ranks: all ranks share the KV, so they must be equal; one of the two may be left out",
                    ranks * common.nnodes
                )));
            }
            (Some(dcp), None) => {
                if !dcp.is_multiple_of(common.nnodes) {
                    return Err(unusable(format!(
                        "--dcp {dcp} on {} machines: it must be a multiple of them",
                        common.nnodes
                    )));
                }
                common.ranks = Some(dcp / common.nnodes);
            }
            // One rank unless asked otherwise: sharing is the special case here.
            (None, None) => common.ranks = Some(1),
            _ => {}
        }
        Ok(common)
    }

    /// The shape of the whole attention, heads of all ranks.
    fn shape(&self) -> Result<Shape> {
        let kind = match self.kind {
            KindName::Gqa => Kind::Gqa {
                heads: self.heads,
                kv_heads: self.kv_heads.unwrap_or(8),
                head_dim: self.head_dim.unwrap_or(128),
            },
            KindName::Mla => Kind::Mla { heads: self.heads },
        };
        let of_gqa = [("--kv-heads", self.kv_heads), ("--head-dim", self.head_dim)];
        if let (KindName::Mla, Some((flag, Some(value)))) =
            (self.kind, of_gqa.iter().find(|(_, value)| value.is_some()))
        {
            return Err(unusable(format!(
                "{flag} {value} with --kind mla: latent attention has one KV head of {LATENT} + {ROPE}; \
                 leave it out"
            )));
        }
        let mut shape = Shape::new(kind, self.kv_dtype, self.page);
        if self.kv_dtype == KvType::Fp8 {
            // Not 1, so that a kernel that forgets a scale is found.
            (shape.k_scale, shape.v_scale) = (0.75, 0.75);
        }
        shape.check().map_err(|e| unusable(e.to_string()))?;
        Ok(shape)
    }

    /// Sizes that do not go together.
    fn check_sizes(&self, dcp: usize) -> Result<()> {
        if !self.exchanges.is_empty() && dcp == 1 {
            return Err(unusable(
                "--exchanges with one rank: there is nothing to exchange; --dcp 2 or more".into(),
            ));
        }
        if self.query_tokens > self.context {
            return Err(unusable(format!(
                "--query-tokens {} of --context {}: the query tokens are part of the context",
                self.query_tokens, self.context
            )));
        }
        Ok(())
    }

    /// Tokens of each request, and how many of them are queries; drawn where they are ragged.
    fn requests(&self, seed: u64) -> Vec<(usize, usize)> {
        let draw = |index: u64| (split_mix(seed, index) >> 32) as usize;
        (0..self.batch as u64)
            .map(|r| match self.ragged {
                false => (self.context, self.query_tokens),
                true => {
                    let queries = 1 + draw(2 * r) % self.query_tokens;
                    (
                        queries + draw(2 * r + 1) % (self.context - queries + 1),
                        queries,
                    )
                }
            })
            .collect()
    }
}

fn unusable(why: String) -> Error {
    Error::Unusable(why)
}

/// The table.
pub fn print(r: &AttentionResult) {
    let shape = match r.shape.kind {
        Kind::Gqa {
            heads,
            kv_heads,
            head_dim,
        } => format!("GQA {heads}/{kv_heads} heads of {head_dim}"),
        Kind::Mla { heads } => format!("MLA {heads} heads, {LATENT} + {ROPE}"),
    };
    if !r.exchanges.is_empty() {
        say!(
            "{}, {}; {shape}; {} ranks share the KV; exchanges by turns, times are medians",
            r.device,
            r.library,
            r.ranks
        );
        exchanges(&r.exchanges);
        for note in &r.notes {
            say!("note: {note}");
        }
        return;
    }
    say!(
        "{}, {}; {shape}, {} KV, pages of {}, {} requests; {}",
        r.device,
        r.library,
        r.shape.kv.name(),
        r.shape.page,
        r.requests,
        match r.ranks {
            1 => "one rank".to_owned(),
            n => format!("{n} ranks share the KV"),
        }
    );
    match r.read_ceiling_gb_s {
        Some(ceiling) => say!(
            "kernel {}; {:.1} MB of KV a rank; a plain streaming read reaches {ceiling:.0} GB/s here, the ceiling",
            r.kernel,
            r.kv_bytes as f64 / 1e6
        ),
        None => say!(
            "the reference in f64; {:.1} MB of KV a rank",
            r.kv_bytes as f64 / 1e6
        ),
    }
    say!(
        "{:>13} {:>7} {:>7} {:>9} {:>10} {:>8} {:>10} {:>8} {:>8} {:>9}  relative error",
        "merge",
        "part",
        "launch",
        "register",
        "us",
        "MAD",
        "p95",
        "GB/s",
        "ceiling",
        "TFLOP/s"
    );
    for s in &r.samples {
        let number =
            |v: Option<f64>, digits: usize| v.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        say!(
            "{:>13} {:>7} {:>7} {:>9} {:>10.2} {:>8.2} {:>10.2} {:>8} {:>8} {:>9}  {}",
            s.way.map_or("-".to_owned(), AttentionWay::name),
            s.part.name(),
            tables::launch(s.launch),
            s.registration.name(),
            s.time.median_us,
            s.time.mad_us,
            s.time.p95_us,
            number(s.read_gb_s, 1),
            s.of_ceiling
                .map_or("-".to_owned(), |c| format!("{:.1} %", 100.0 * c)),
            number(s.tflop_s, 2),
            s.relative_error
                .map_or("not compared".to_owned(), |e| format!("{e:.1e}")),
        );
    }
    for note in &r.notes {
        say!("note: {note}");
    }
}

/// What ranks exchange, and how long each way takes of the communicator's fastest.
fn exchanges(samples: &[ExchangeSample]) {
    say!(
        "{:>7} {:>7} {:>13} {:>9} {:>9} {:>7} {:>9} {:>13}  relative error",
        "tokens",
        "part",
        "way",
        "register",
        "us",
        "MAD",
        "p95",
        "of fastest"
    );
    for s in samples {
        say!(
            "{:>7} {:>7} {:>13} {:>9} {:>9.2} {:>7.2} {:>9.2} {:>13}  {}",
            s.tokens,
            s.part.name(),
            s.way.name(),
            s.registration.name(),
            s.time.median_us,
            s.time.mad_us,
            s.time.p95_us,
            s.of_communicator
                .map_or("-".to_owned(), |c| format!("{:.1} %", 100.0 * c)),
            s.relative_error
                .map_or("not compared".to_owned(), |e| format!("{e:.1e}")),
        );
    }
    say!("of fastest: over the fastest way of the communicator at those tokens");
}
