//! What an engine adds around its kernels: host time, launch gaps, and the way of a request
//! through its front end. Fitted from measured serving runs; each profile names them.

use crate::efficiency::GpuArchitecture;
use crate::engine::version::Version;
use crate::fault::Faults;
use crate::gpu::GpuProfile;
use crate::validate::Checker;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// Host and launch costs of one engine, and how far its kernels are from the fitted tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overheads {
    /// Engine that the figures describe.
    pub engine: String,
    /// GPUs that they were measured on.
    pub architecture: GpuArchitecture,
    /// Host time of a step that the GPU waits for, microseconds.
    pub step_us: f64,
    /// Host time of a step for each running request, microseconds (sampling, detokenizing, scheduling).
    pub step_request_us: f64,
    /// Gaps and small kernels of a dense decode layer replayed from a CUDA graph, microseconds; other
    /// layers by their number of kernels.
    pub graph_layer_us: f64,
    /// Launching the kernels of a dense layer one by one, microseconds; other layers by their number of
    /// kernels. Hidden where the kernels take longer.
    pub eager_layer_us: f64,
    /// Extra host time of a pass that carries prefill, microseconds.
    pub prefill_pass_us: f64,
    /// Front end of a request: HTTP, tokenizer, first scheduling, first detokenizing, microseconds.
    pub request_us: f64,
    /// Front end, for each prompt token, microseconds.
    pub prompt_token_us: f64,
    /// Measured over modelled kernel time of decode steps (1 where the tables fit).
    pub decode_scale: f64,
    /// Measured over modelled kernel time of prefill passes.
    pub prefill_scale: f64,
    /// Share of the tokens that choose experts independently and uniformly; below 1 because real
    /// routers have favourites, so that a batch reads fewer distinct experts.
    pub expert_spread: f64,
    /// Standard deviation of ln(measured / predicted) TPOT, over runs of models, GPUs and versions that
    /// were left out of the fit in turn.
    pub tpot_sigma: f64,
    /// The same of TTFT.
    pub ttft_sigma: f64,
    /// How many runs the figures rest on.
    pub runs: u32,
    /// Which runs.
    pub source: String,
    /// Exchange of batch shapes between ranks.
    #[serde(default)]
    pub sync: SyncCosts,
    /// What kernels wait for each other, of engines whose kernels are known one by one
    /// ([`crate::engine::rules::KernelRule`]).
    #[serde(default)]
    pub gaps: Gaps,
    /// Where the engine's code for an architecture of models was seen to be faster or slower than its
    /// kernels by the tables: kernels that it fuses or adds, products that it tunes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub model_code: Vec<ModelCode>,
    /// Releases whose front end was seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub front_ends: Vec<FrontEnd>,
    /// Device memory that one kernel of a captured graph keeps, bytes; none where only whole engines
    /// were looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graph_node_bytes: Option<f64>,
}

/// An engine's code for one architecture of models, beside what its other models make expected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCode {
    /// The architecture, by the name in its Hugging Face configuration.
    pub architecture: String,
    /// Kernel time of decode steps: multiplies [`Overheads::decode_scale`].
    pub decode: f64,
    /// Kernel time of prefill passes: multiplies [`Overheads::prefill_scale`].
    pub prefill: f64,
    /// The front end, which has the architecture's tokenizer and chat template: multiplies
    /// [`Overheads::request_us`].
    pub request: f64,
}

/// Nothing known: the engine's own figures.
static NO_CODE: ModelCode = ModelCode {
    architecture: String::new(),
    decode: 1.0,
    prefill: 1.0,
    request: 1.0,
};

/// The front end of one release, beside what other releases make expected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontEnd {
    /// The release. Others, older or newer, have the engine's own figure.
    pub version: Version,
    /// Multiplies [`Overheads::request_us`].
    pub request: f64,
}

/// What a kernel takes in a layer beyond its time in an experiment, which runs one operation over and
/// over: its neighbour is another kernel, whose end it waits for, whose code and caches are not its own.
/// Where an experiment has several kernels in a row, as a step has them, only the first has that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gaps {
    /// A kernel of a replayed graph, microseconds.
    pub graph_kernel_us: f64,
    /// A kernel launched by itself, where the host is ahead of the GPU, microseconds.
    pub eager_kernel_us: f64,
    /// How far ranks come apart to a collective, which begins when the last is there: one standard
    /// deviation, microseconds. The last of R comes as many of them after the mean as the largest of R
    /// normal variables is above theirs (0.56 of 2, 1.03 of 4, 1.42 of 8).
    pub collective_us: f64,
    /// Standard deviation of ln(measured / predicted) of all of them together, from machine to machine.
    pub sigma: f64,
}

/// What an exchange of batch shapes between two ranks of a node takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncCosts {
    /// On the host, microseconds.
    pub host_us: f64,
    /// On the device, with the copy back to the host, microseconds.
    pub device_us: f64,
    /// Standard deviation of ln(measured / predicted).
    pub sigma: f64,
    /// Where the figures come from.
    pub source: String,
}

impl Default for SyncCosts {
    /// What users have today on 2 H200, through PyTorch.
    fn default() -> SyncCosts {
        SyncCosts {
            host_us: 197.0,
            device_us: 62.0,
            sigma: 0.5,
            source: "measured on 2 H200 (22 int64: gloo 197 us, nccl 62 us)".to_owned(),
        }
    }
}

/// Why overheads cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverheadsError {
    /// The embedded file does not read.
    #[error("embedded overheads: {0}")]
    Fault(String),
    /// No entry for the engine.
    #[error("no overheads are known for engine '{engine}'; known: {known}")]
    Unknown {
        /// The engine asked for.
        engine: String,
        /// The engines that have some.
        known: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    overheads: Vec<Overheads>,
}

static EMBEDDED: LazyLock<Result<Vec<Overheads>, String>> = LazyLock::new(|| {
    let entries = toml::from_str::<File>(include_str!("../data/overheads.toml"))
        .map_err(|error| error.to_string())?
        .overheads;
    // GPUs that no run covers get the first entry of the engine, its spread widened by as much as
    // efficiency figures lose when they are carried over (docs/costs.md, column "cross").
    let first: Vec<Overheads> = entries
        .iter()
        .enumerate()
        .filter(|(at, entry)| {
            entries[..*at]
                .iter()
                .all(|other| other.engine != entry.engine)
        })
        .map(|(_, entry)| Overheads {
            architecture: GpuArchitecture::Generic,
            tpot_sigma: entry.tpot_sigma.hypot(CARRIED_SIGMA),
            ttft_sigma: entry.ttft_sigma.hypot(CARRIED_SIGMA),
            source: format!("carried over from other GPUs: {}", entry.source),
            ..entry.clone()
        })
        .collect();
    Ok(entries.into_iter().chain(first).collect())
});

/// Added to the spread (in quadrature) of figures that no run on the GPU's architecture supports.
const CARRIED_SIGMA: f64 = 0.25;

impl Overheads {
    /// Every figure that cannot be.
    ///
    /// # Errors
    /// All of them, each naming its field.
    pub fn validate(&self) -> Result<(), Faults> {
        let mut check = Checker::new();
        for (field, value) in [
            ("step_us", self.step_us),
            ("step_request_us", self.step_request_us),
            ("graph_layer_us", self.graph_layer_us),
            ("eager_layer_us", self.eager_layer_us),
            ("prefill_pass_us", self.prefill_pass_us),
            ("request_us", self.request_us),
            ("prompt_token_us", self.prompt_token_us),
            ("gaps.graph_kernel_us", self.gaps.graph_kernel_us),
            ("gaps.eager_kernel_us", self.gaps.eager_kernel_us),
            ("gaps.collective_us", self.gaps.collective_us),
        ] {
            check.quantity(field, value, 0.0, 1e8, "us");
        }
        check.quantity("decode_scale", self.decode_scale, 0.1, 10.0, "(a ratio)");
        check.quantity("prefill_scale", self.prefill_scale, 0.1, 10.0, "(a ratio)");
        check.quantity("expert_spread", self.expert_spread, 0.01, 1.0, "(a share)");
        for code in &self.model_code {
            for (field, value) in [
                ("model_code.decode", code.decode),
                ("model_code.prefill", code.prefill),
                ("model_code.request", code.request),
            ] {
                check.quantity(field, value, 0.1, 10.0, "(a ratio)");
            }
        }
        for release in &self.front_ends {
            check.quantity(
                "front_ends.request",
                release.request,
                0.1,
                10.0,
                "(a ratio)",
            );
        }
        if let Some(bytes) = self.graph_node_bytes {
            check.quantity("graph_node_bytes", bytes, 0.0, 1e9, "bytes");
        }
        check.quantity(
            "gaps.sigma",
            self.gaps.sigma,
            0.0,
            3.0,
            "(of the logarithm)",
        );
        check.quantity(
            "tpot_sigma",
            self.tpot_sigma,
            1e-3,
            3.0,
            "(of the logarithm)",
        );
        check.quantity(
            "ttft_sigma",
            self.ttft_sigma,
            1e-3,
            3.0,
            "(of the logarithm)",
        );
        Faults::or_ok(check.faults)
    }

    /// What is known of the engine's code for an architecture of models, by its Hugging Face name.
    pub fn model_code(&self, architecture: &str) -> &ModelCode {
        self.model_code
            .iter()
            .find(|code| code.architecture == architecture)
            .unwrap_or(&NO_CODE)
    }

    /// The front end of a request under one release, its tokens aside, microseconds.
    pub fn request_us_of(&self, version: Version, architecture: &str) -> f64 {
        let release = self.front_ends.iter().find(|r| r.version == version);
        self.request_us * release.map_or(1.0, |r| r.request) * self.model_code(architecture).request
    }

    /// The embedded overheads of an engine on a GPU.
    ///
    /// # Errors
    /// An engine with no entry, with the known ones.
    pub fn embedded(engine: &str, gpu: &GpuProfile) -> Result<&'static Overheads, OverheadsError> {
        Overheads::of(engine, GpuArchitecture::of(gpu))
    }

    /// The same on an architecture.
    pub(crate) fn of(
        engine: &str,
        wanted: GpuArchitecture,
    ) -> Result<&'static Overheads, OverheadsError> {
        let entries = EMBEDDED
            .as_ref()
            .map_err(|error| OverheadsError::Fault(error.clone()))?;
        let of_engine = || entries.iter().filter(|entry| entry.engine == engine);
        of_engine()
            .find(|entry| entry.architecture == wanted)
            .or_else(|| of_engine().find(|entry| entry.architecture == GpuArchitecture::Generic))
            .ok_or_else(|| {
                let mut known: Vec<&str> = entries.iter().map(|e| e.engine.as_str()).collect();
                known.dedup();
                OverheadsError::Unknown {
                    engine: engine.to_owned(),
                    known: known.join(", "),
                }
            })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::library::Library;

    #[test]
    fn every_engine_has_overheads_on_every_gpu_and_carried_ones_are_less_sure() {
        let library = Library::embedded();
        for gpu in library.gpus().unwrap() {
            let gpu = library.gpu(&gpu.name).unwrap();
            for engine in ["sglang", "vllm", "trtllm", "builtin"] {
                let found = Overheads::embedded(engine, &gpu).unwrap();
                assert_eq!(found.engine, engine);
                assert!(found.tpot_sigma > 0.0 && found.decode_scale > 0.5);
            }
        }
        let h200 = Overheads::embedded("vllm", &library.gpu("h200").unwrap()).unwrap();
        let mi300x = Overheads::embedded("vllm", &library.gpu("mi300x").unwrap()).unwrap();
        assert!(mi300x.tpot_sigma > h200.tpot_sigma);
        let unknown = Overheads::embedded("lmdeploy", &library.gpu("h200").unwrap());
        assert!(unknown.unwrap_err().to_string().contains("known: sglang"));
    }

    #[test]
    fn models_and_releases_that_were_measured_have_ratios_and_others_none() {
        let library = Library::embedded();
        let h200 = library.gpu("h200").unwrap();
        let vllm = Overheads::embedded("vllm", &h200).unwrap();
        let known = vllm.model_code("GptOssForCausalLM");
        assert_eq!(known.architecture, "GptOssForCausalLM");
        assert!(known.decode != 1.0);
        let unknown = vllm.model_code("NobodyForCausalLM");
        assert_eq!((unknown.decode, unknown.prefill), (1.0, 1.0));
        let seen = vllm.front_ends[0].clone();
        let of = |version| vllm.request_us_of(version, "NobodyForCausalLM");
        assert_eq!(of(seen.version), vllm.request_us * seen.request);
        assert_eq!(of(Version::release(9, 0, 0)), vllm.request_us);
        let wrong = Overheads {
            front_ends: vec![FrontEnd {
                request: -1.0,
                ..seen
            }],
            ..vllm.clone()
        };
        let faults = wrong.validate().unwrap_err().to_string();
        assert!(faults.contains("front_ends.request"), "{faults}");
    }
}
