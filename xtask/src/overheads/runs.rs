//! Measured serving runs: reading, repairing, and matching them with profiles.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use parplan_planner::Layout;
use parplan_planner::cost::OpCosts;
use parplan_planner::deployment::{Deployment, Setup};
use parplan_planner::estimate;
use parplan_planner::formats;
use parplan_planner::plan::Choice;
use parplan_planner::question::{Balance, Settings, Spread, Traffic};
use parplan_planner::serve::Service;
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::version::Version;
use parplan_profiles::{
    Dtype, EfficiencyProfile, GpuArchitecture, GpuProfile, Library, ModelProfile, Overheads,
};
use serde::{Deserialize, Deserializer};

/// Mean over nominal length, and shortest over longest, of the runs whose lengths are drawn.
const DRAWN: (f64, f64) = (0.9, 0.8);

/// Nominal lengths of the InferenceX series, which draws them.
const DRAWN_LENGTHS: [(f64, f64); 3] = [(1024.0, 1024.0), (1024.0, 8192.0), (8192.0, 1024.0)];

/// GPUs of a node, which is the largest stage that the runs can have: rows above it are parts of racks.
/// Nodes of Grace systems have 4.
fn node_gpus(system: &str) -> u32 {
    if system.starts_with("gb") { 4 } else { 8 }
}

/// Times that differ by less than this part are one measurement, rounded twice.
const SAME: f64 = 0.005;

/// A run that waits for its first token longer than this many times its whole decoding was held
/// back by a limit on running requests that the table does not have.
const MOST_WAIT: f64 = 2.0;

/// Series in which speculation was on though no column says so, as (engine, version, GPU, start of
/// the id, part of the id), each with what gives it away. The first is the MTP release of
/// InferenceX. Of the second, one configuration has two rows that differ by 1.4 to 1.9 times, and
/// the faster ones gain with longer outputs. The third is faster on 4 GPUs than on 8, gains with longer
/// outputs too, and takes longer for its first token.
const SPECULATED: [(&str, &str, &str, &str, &str); 4] = [
    ("trtllm", "1.2.0rc6.post3", "", "", ""),
    ("trtllm", "1.1.0rc2.post2", "", "2026_", ""),
    ("sglang", "0.5.9", "b200_sxm", "2026_", "_tp4_0_ep1_"),
    ("sglang", "0.5.9", "b200_sxm", "", "_tp4_ep1_"),
];

/// The series, as (engine, version, model), in which some requests of every run waited for a whole
/// generation of others: with 8 clients 9 or 10 of 80 requests, whatever the prompt and the layout, so that
/// the mean time to first token grows with the output length and falls with the clients. Their limit of
/// requests was the number of clients, one of which a padding request may have held. The runs
/// are judged, and the fit takes only their later tokens.
const WAITED: (&str, &str, &str) = ("trtllm", "1.0.0rc3", "llama-3.1-8b");

/// One row of the table.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Record {
    id: String,
    backend: String,
    backend_version: String,
    model_path: String,
    system: String,
    precision: String,
    mode: String,
    #[serde(deserialize_with = "absent_is_nan")]
    isl: f64,
    #[serde(deserialize_with = "absent_is_nan")]
    osl: f64,
    #[serde(deserialize_with = "absent_is_nan")]
    concurrency: f64,
    #[serde(deserialize_with = "absent_is_nan")]
    tp_size: f64,
    attention_dp_size: Option<f64>,
    moe_tp_size: Option<f64>,
    moe_ep_size: Option<f64>,
    #[serde(deserialize_with = "absent_is_nan")]
    silicon_ttft_ms: f64,
    #[serde(deserialize_with = "absent_is_nan")]
    silicon_tpot_ms: f64,
}

/// A number, or NaN where the field is empty: rows of other modes leave many so.
fn absent_is_nan<'de, D: Deserializer<'de>>(field: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(field)?.unwrap_or(f64::NAN))
}

/// A time of a first token and of each later one, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Times {
    /// Mean time to first token.
    pub ttft_ms: f64,
    /// Mean time of an output token after the first.
    pub tpot_ms: f64,
}

/// A run that can be predicted.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// Engine.
    pub engine: String,
    /// Version as written; may be empty.
    pub version: String,
    /// Name of the model without its number format.
    pub family: &'static str,
    /// Name of the GPU's profile.
    pub gpu_name: String,
    /// What was traffic.
    pub traffic: Traffic,
    /// What was measured.
    pub measured: Times,
    /// Whether the fit listens to its time to first token: see [`WAITED`].
    pub first_token_counts: bool,
    /// The layout.
    pub choice: Choice,
    /// The model.
    pub model: ModelProfile,
    /// GPUs of the same fit.
    pub architecture: GpuArchitecture,
    gpu: GpuProfile,
    rules: EngineRules,
    prices: Arc<EfficiencyProfile>,
    settings: Settings,
}

/// Runs, and why the others are left out.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// Runs to fit.
    pub kept: Vec<Run>,
    /// Reasons, with how many rows each.
    pub dropped: BTreeMap<String, u32>,
}

impl Run {
    /// The release that it ran; none of a nightly build, or where the row does not say.
    pub fn release(&self) -> Option<Version> {
        self.version.parse().ok()
    }

    /// Whether `other` is this run again: same set-up, and times that differ by rounding only.
    fn repeats(&self, other: &Run) -> bool {
        let near = |a: f64, b: f64| (a / b).ln().abs() < SAME;
        self.engine == other.engine
            && self.model.name == other.model.name
            && self.gpu_name == other.gpu_name
            && self.choice == other.choice
            && self.traffic == other.traffic
            && near(self.measured.ttft_ms, other.measured.ttft_ms)
            && near(self.measured.tpot_ms, other.measured.tpot_ms)
    }

    /// Serves the run's traffic under `overheads`, and hands what came of it to `look`.
    fn served<T>(
        &self,
        overheads: &Overheads,
        look: impl FnOnce(&Deployment<'_>, &Service) -> T,
    ) -> Result<T> {
        let setup = Setup {
            model: &self.model,
            gpu: &self.gpu,
            rules: &self.rules,
            costs: OpCosts::new(&self.prices, &self.gpu)?,
            overheads,
        };
        let deployment = Deployment::new(&setup, &self.traffic, &self.settings, self.choice);
        let service = deployment.serve(&self.traffic);
        Ok(look(&deployment, &service))
    }

    /// What the planner predicts under `overheads`.
    pub fn predict(&self, overheads: &Overheads) -> Result<Times> {
        self.served(overheads, |_, service| Times {
            ttft_ms: service.ttft_us / 1e3,
            // Runs that were measured have output tokens after the first.
            tpot_ms: service.tpot_us.unwrap_or(f64::NAN) / 1e3,
        })
    }

    /// What a look at errors needs, as a line of a table: see [`Run::COLUMNS`].
    pub fn line(&self, overheads: &Overheads) -> Result<String> {
        self.served(overheads, |deployment, service| {
            let layout = self.choice.layout;
            let load = deployment.load(&self.traffic);
            let steps = deployment.steps(&self.traffic, false);
            let chunk = deployment.chunk_tokens.min(load.prefill_tokens);
            format!(
                "{},{},{},{},{},{},{},{:.0},{:.0},{},{},{},{:.3},{:.3},{:.3},{:.3},{:.3},{:.3},{:.4}",
                self.model.name,
                self.gpu_name,
                self.engine,
                self.version,
                layout.tp,
                layout.attention_dp,
                layout.ep,
                self.traffic.isl,
                self.traffic.osl,
                self.traffic.concurrency,
                self.measured.ttft_ms,
                self.measured.tpot_ms,
                service.ttft_us / 1e3,
                service.tpot_us.unwrap_or(f64::NAN) / 1e3,
                service.decode_step_us / 1e3,
                steps.prefill(chunk, 0.0, 1.0, 0.0).total_us() / 1e3,
                service.queue_us / 1e3,
                service.burst_us / 1e3,
                service.prefill_load
            )
        })
    }

    /// Columns of [`Run::line`]; times in milliseconds.
    pub const COLUMNS: &str = "model,gpu,engine,version,tp,attention_dp,ep,isl,osl,concurrency,\
        ttft,tpot,ttft_predicted,tpot_predicted,decode_step,prefill_pass,queue,burst,prefill_load";

    /// A decode step and a prefill pass, term by term.
    pub fn explain(&self, overheads: &Overheads) -> Result<String> {
        self.served(overheads, |deployment, service| {
            let mut out = format!(
                "    step {:.2} ms, {:.1} decoding a rank, prefill load {:.2}, queue {:.0} ms, burst {:.0} ms\n",
                service.decode_step_us / 1e3,
                service.decoding_per_rank,
                service.prefill_load,
                service.queue_us / 1e3,
                service.burst_us / 1e3
            );
            for part in estimate::breakdowns(deployment, &self.traffic, service) {
                // Writing to a string cannot fail.
                let _ = writeln!(out, "    {}: {:.0} us", part.title, part.total_us);
                for term in part.terms {
                    let _ = writeln!(
                        out,
                        "      {:22} x{:<5.0} {:10.1} us, roofline {:10.1}",
                        term.name,
                        term.count,
                        term.us,
                        term.roofline_us.unwrap_or(0.0)
                    );
                }
            }
            out
        })
    }
}

/// Reads the table at `path`.
pub(super) fn read(path: &Path) -> Result<Runs> {
    let mut reader =
        csv::Reader::from_path(path).with_context(|| format!("reading {}", path.display()))?;
    let library = Library::embedded();
    let mut out = Runs::default();
    for record in reader.deserialize::<Record>() {
        let record = record.with_context(|| format!("reading {}", path.display()))?;
        let matched = match record.unfit() {
            Some(reason) => Err(reason),
            None => record.matched(&library),
        };
        match matched {
            Ok(run) if out.kept.iter().any(|other| other.repeats(&run)) => {
                *out.dropped
                    .entry("the same run under two names".to_owned())
                    .or_default() += 1;
            }
            Ok(run) => out.kept.push(run),
            Err(reason) => *out.dropped.entry(reason).or_default() += 1,
        }
    }
    ensure!(
        !out.kept.is_empty(),
        "{}: none of its rows is a run that can be predicted",
        path.display()
    );
    Ok(out)
}

impl Record {
    /// Why the row cannot be compared with a prediction.
    fn unfit(&self) -> Option<String> {
        let times = [self.silicon_ttft_ms, self.silicon_tpot_ms];
        let shape = [self.isl, self.osl, self.concurrency, self.tp_size];
        let reason = if self.mode != "agg" {
            "prefill and decode on different GPUs"
        } else if !times
            .iter()
            .chain(&shape)
            .all(|&x| x.is_finite() && x > 0.0)
        {
            "a time or a size is missing"
        } else if self.speculated() {
            "speculation was on"
        } else if self.silicon_ttft_ms > MOST_WAIT * self.osl * self.silicon_tpot_ms {
            "held back by a limit that is not recorded"
        } else if self.backend == "vllm"
            && self.backend_version == "0.12.0"
            && self.precision == "fp8"
        {
            "not closed loop"
        } else {
            return None;
        };
        Some(reason.to_owned())
    }

    fn speculated(&self) -> bool {
        SPECULATED
            .iter()
            .any(|(engine, version, gpu, start, part)| {
                self.backend == *engine
                    && self.backend_version == *version
                    && self.system.starts_with(gpu)
                    && self.id.starts_with(start)
                    && self.id.contains(part)
            })
    }

    /// Mean over nominal length, and shortest over longest.
    ///
    /// SGLang 0.5.6.post2 is one campaign of Llama-3.1-8B at nominal lengths. Had they been equal, its
    /// requests would start and end together, and wait 2 to 5 times longer for a first token than
    /// they did, with fewer stalls later: its outputs ended where the model ended them.
    fn lengths(&self) -> (f64, f64) {
        if DRAWN_LENGTHS.contains(&(self.isl, self.osl)) {
            DRAWN
        } else if self.backend == "sglang" && self.backend_version == "0.5.6.post2" {
            (1.0, DRAWN.1)
        } else {
            (1.0, 1.0)
        }
    }

    /// Settings of the run that its published script has and no column: tokens of a step, and steps
    /// between two looks for requests, of `benchmarks/single_node` of InferenceX at 843c625.
    fn settings(&self, family: &str) -> Settings {
        if !DRAWN_LENGTHS.contains(&(self.isl, self.osl)) {
            return Settings::default();
        }
        let blackwell = self.system.starts_with('b') || self.system.starts_with("gb");
        let b300 = self.system.starts_with("b300");
        let (chunk, receive) = match (self.backend.as_str(), family) {
            // One prompt beside all decoding requests, in units of 64 (dsr1_*_trt.sh).
            ("trtllm", "deepseek-r1") => {
                let tokens = self.concurrency + self.isl + 64.0 + 63.0;
                (Some((tokens / 64.0).floor() * 64.0), None)
            }
            ("trtllm", "gpt-oss-120b") => (Some(20_000.0), None),
            // dsr1_fp8_b300.sh, four GPUs: fewer tokens, and ten steps at every concurrency.
            ("sglang", "deepseek-r1") if b300 && self.precision == "fp8" => {
                (Some(8192.0), Some(10))
            }
            ("sglang", "deepseek-r1") if !blackwell => (Some(32_768.0), None),
            ("sglang", "qwen3.5-397b-a17b") => (Some(32_768.0), None),
            ("vllm", "minimax-m2.5") if blackwell => (Some(2.0 * self.isl), None),
            ("vllm", "minimax-m2.5") => (Some(32_768.0), None),
            ("vllm", "gpt-oss-120b") => (Some(8192.0), None),
            _ => (None, None),
        };
        // Steps of 32k tokens leave little by SGLang's own rule; its script says 0.82 (dsr1_fp8_h200.sh).
        let memory =
            (self.backend == "sglang" && family == "deepseek-r1" && !blackwell).then_some(0.82);
        // 70b_*_trt_slurm.sh at 1b563c8, for 1k of 1k below eight GPUs.
        let company = (self.backend == "trtllm"
            && family == "llama-3.1-70b"
            && self.isl == 1024.0
            && self.osl == 1024.0
            && self.tp_size < 8.0)
            .then_some(20);
        Settings {
            memory_fraction: memory,
            chunk_tokens: chunk.map(|tokens| tokens as u32),
            receive_interval: receive,
            company_steps: company,
            ..Settings::default()
        }
    }

    /// Whether the run kept its KV cache in fp8 though the checkpoint does not ask for it: by
    /// InferenceX's scripts (as [`Record::settings`]), and in NVIDIA's runs of Qwen3-32B, whose fp8
    /// checkpoint of ModelOpt asks for it (`kv_cache_quant_algo`).
    fn kv_in_fp8(&self, family: &str) -> bool {
        let blackwell = self.system.starts_with('b') || self.system.starts_with("gb");
        let quantised = self.precision != "bf16" && !self.precision.is_empty();
        let drawn = DRAWN_LENGTHS.contains(&(self.isl, self.osl));
        match (self.backend.as_str(), family) {
            ("trtllm", "qwen3-32b") => quantised,
            ("trtllm", "deepseek-r1" | "gpt-oss-120b") => drawn,
            ("sglang", _) => drawn && blackwell && quantised,
            ("vllm", "minimax-m2.5") => drawn,
            ("vllm", "gpt-oss-120b" | "kimi-k2.5") => drawn && blackwell,
            _ => false,
        }
    }

    /// Family and profile name of the model.
    fn model(&self) -> Option<(&'static str, &'static str)> {
        let precision = self.precision.as_str();
        let path = self.model_path.as_str();
        let name = path.rsplit('/').next().unwrap_or(path);
        let found = match (name, precision) {
            ("MiniMax-M2.5", "fp8") => ("minimax-m2.5", "minimax-m2.5"),
            ("MiniMax-M2.5", "fp4") => ("minimax-m2.5", "minimax-m2.5-nvfp4"),
            ("Qwen3-235B-A22B-FP8", _) => ("qwen3-235b-a22b", "qwen3-235b-a22b-fp8"),
            ("Qwen3-32B", "fp8") => ("qwen3-32b", "qwen3-32b-fp8"),
            ("Qwen3-32B", "fp4") => ("qwen3-32b", "qwen3-32b-nvfp4"),
            ("Qwen3-32B", "") => ("qwen3-32b", "qwen3-32b"),
            ("Llama-3.1-8B-Instruct", "") => ("llama-3.1-8b", "llama-3.1-8b"),
            ("Llama-3.1-8B-Instruct" | "Llama-3.1-8B-Instruct-FP8", "fp8") => {
                ("llama-3.1-8b", "llama-3.1-8b-fp8")
            }
            ("Llama-3.1-70B", "fp8") => ("llama-3.1-70b", "llama-3.1-70b-fp8"),
            ("Llama-3.1-70B", "fp4") => ("llama-3.1-70b", "llama-3.1-70b-nvfp4"),
            ("Qwen3.5-397B-A17B", "bf16") => ("qwen3.5-397b-a17b", "qwen3.5-397b-a17b"),
            ("Qwen3.5-397B-A17B", "fp8") => ("qwen3.5-397b-a17b", "qwen3.5-397b-a17b-fp8"),
            ("Qwen3.5-397B-A17B", "fp4") => ("qwen3.5-397b-a17b", "qwen3.5-397b-a17b-nvfp4"),
            ("DeepSeek-R1" | "DeepSeek-V3", "fp8") => ("deepseek-r1", "deepseek-r1"),
            (
                "DeepSeek-R1" | "DeepSeek-V3" | "DeepSeek-R1-NVFP4" | "DeepSeek-V3.1-NVFP4",
                "fp4",
            ) => ("deepseek-r1", "deepseek-r1-nvfp4"),
            ("Kimi-K2.5", "int4") => ("kimi-k2.5", "kimi-k2.5"),
            ("Kimi-K2.5", "fp4") => ("kimi-k2.5", "kimi-k2.5-nvfp4"),
            ("gpt-oss-120b", _) => ("gpt-oss-120b", "gpt-oss-120b"),
            _ => return None,
        };
        Some(found)
    }

    /// The layout, with sizes that were multiplied by the expert-parallel one divided again.
    fn layout(&self, dense: bool) -> Option<Layout> {
        let most = node_gpus(&self.system);
        let whole = |size: f64| {
            ((1.0..=4096.0).contains(&size) && size.fract() == 0.0).then_some(size as u32)
        };
        let or_one = |size: Option<f64>| whole(size.unwrap_or(1.0).max(1.0));
        let (mut tp, mut dp) = (whole(self.tp_size)?, or_one(self.attention_dp_size)?);
        let (moe_tp, mut ep) = (or_one(self.moe_tp_size)?, or_one(self.moe_ep_size)?);
        if dense {
            ep = 1;
        } else if tp > 1 && dp > 1 && ep == tp * dp {
            // vLLM's data parallelism with expert parallelism: one GPU a rank, counted twice.
            tp = 1;
            ep = dp;
        } else if moe_tp == ep && moe_tp > 1 && tp * dp == moe_tp * ep && tp * dp > most {
            if dp > 1 {
                dp /= ep;
            } else {
                tp /= ep;
            }
        }
        let gpus = tp.checked_mul(dp)?;
        (gpus <= most && gpus.is_multiple_of(ep)).then_some(Layout {
            replicas: 1,
            tp: gpus,
            attention_dp: dp,
            dcp: 1,
            ep,
            pp: 1,
            nodes: 1,
        })
    }

    fn matched(&self, library: &Library) -> Result<Run, String> {
        let (family, name) = self
            .model()
            .ok_or_else(|| format!("no profile for {} {}", self.model_path, self.precision))?;
        let model = library.model(name).map_err(|e| e.to_string())?;
        let gpu = library.gpu(&self.system).map_err(|e| e.to_string())?;
        let dense = !model.is_moe();
        let layout = self
            .layout(dense)
            .ok_or_else(|| "sizes that no layout of one node has".to_owned())?;
        let version = self.backend_version.as_str();
        let asked = (!version.is_empty()).then_some(version);
        let engine = library.engine(&self.backend).map_err(|e| e.to_string())?;
        // A version that cannot be ordered, such as a nightly of a hash, has the newest rules.
        let rules = engine
            .resolve(asked, true)
            .or_else(|_| engine.resolve(None, true))
            .map_err(|e| e.to_string())?;
        let mut prices = EfficiencyProfile::embedded(&self.backend, &gpu)
            .map_err(|e| e.to_string())?
            .clone();
        formats::price_as_run(&rules, &gpu, &mut prices);
        let (mean, ratio) = self.lengths();
        Ok(Run {
            engine: self.backend.clone(),
            version: self.backend_version.clone(),
            family,
            gpu_name: gpu.name.clone(),
            traffic: Traffic {
                isl: self.isl * mean,
                osl: self.osl * mean,
                prompts: Spread::even(ratio),
                outputs: Spread::even(ratio),
                concurrency: self.concurrency,
                prefix_hit: 0.0,
                balance: Balance::Even,
                waves: 10.0,
                requests_per_s: None,
                speculation: None,
            },
            first_token_counts: WAITED
                != (self.backend.as_str(), self.backend_version.as_str(), family),
            measured: Times {
                ttft_ms: self.silicon_ttft_ms,
                tpot_ms: self.silicon_tpot_ms,
            },
            choice: Choice {
                layout,
                kv_dtype: if self.kv_in_fp8(family) {
                    Dtype::Fp8
                } else {
                    model.kv_dtype
                },
                cuda_graphs: true,
                symmetric_memory: false,
                speculative_steps: 0,
                expert_all_to_all: false,
            },
            settings: self.settings(family),
            architecture: GpuArchitecture::of(&gpu),
            model,
            gpu,
            rules,
            prices: Arc::new(prices),
        })
    }
}
