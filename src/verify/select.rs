//! Which stacks are run: models, layouts, batches and contexts, drawn by a seed.

use crate::args::VerifyArgs;
use crate::failure::Failure;
use crate::run::stack::{Choices, share_of, smaller, spec_of};
use parplan_executor::gather::Mode;
use parplan_executor::jobs::Backend;
use parplan_executor::stack::{DcpMerge, Phase, StackLayout, StackSpec, StepSpec};
use parplan_profiles::{Dtype, Library, ModelProfile, WeightFormats};

/// One stack and its steps.
pub struct Case {
    /// The model with the layers that are run.
    pub model: ModelProfile,
    /// What runs.
    pub spec: StackSpec,
    /// Its steps.
    pub steps: Vec<StepSpec>,
    /// What all ranks exchange lies in symmetric memory.
    pub symmetric: bool,
}

impl Case {
    /// Model and layout in words.
    pub fn name(&self) -> String {
        let whole = self.spec.shard_of == self.spec.here;
        format!(
            "{} {}{}{}",
            self.spec.model,
            self.spec.shard_of,
            if whole { "" } else { " (shard)" },
            if self.symmetric { " symmetric" } else { "" }
        )
    }
}

/// Models that stacks are drawn from: grouped-query and latent attention, dense and with experts.
const MODELS: [&str; 6] = [
    "qwen3-8b",
    "qwen3-30b-a3b",
    "llama-3.1-70b",
    "deepseek-v3",
    "qwen3-32b",
    "qwen3-235b-a22b",
];

/// Steps of one stack: ranks start anew for each stack.
const STEPS: usize = 4;

/// Cached bytes of all requests of a rank, at most: stacks share the GPU with their weights.
const MOST_CACHE: usize = 24 << 30;

/// Uniform draws (Knuth's MMIX generator).
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.below(of.len())).copied()
    }
}

/// More stacks than the steps need, in the order of the draw.
///
/// # Errors
/// No model of the list that this machine's ranks can run.
pub fn cases(
    library: &Library,
    args: &VerifyArgs,
    backend: Backend,
    ranks: u32,
) -> Result<Vec<Case>, Failure> {
    let mut draws = Draws(args.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1);
    let names: Vec<&str> = match args.models.as_slice() {
        [] => MODELS.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    let mut out: Vec<Case> = Vec::new();
    let wanted = (args.steps as usize).div_ceil(STEPS).max(names.len());
    for attempt in 0..wanted * 20 {
        if out.len() >= wanted * 2 {
            break;
        }
        let name = names[attempt % names.len()];
        let model = match library.model(name) {
            Ok(model) => model,
            Err(_) if args.models.is_empty() => continue,
            Err(error) => return Err(error.into()),
        };
        if let Some(case) = draw(&mut draws, model, backend, ranks) {
            let same = |c: &Case| c.spec == case.spec && c.steps == case.steps;
            if !out.iter().any(same) {
                out.push(case);
            }
        }
    }
    if out.is_empty() {
        return Err(Failure::failed(format!(
            "none of {} runs on {ranks} ranks of this backend",
            names.join(", ")
        )));
    }
    Ok(out)
}

fn draw(draws: &mut Draws, model: ModelProfile, backend: Backend, ranks: u32) -> Option<Case> {
    let cpu = backend == Backend::Cpu;
    // bf16 throughout: the formats that the default set measures.
    let embedding = model.weights.embedding;
    let model = model.with_weights(WeightFormats::uniform(Dtype::Bf16, embedding));
    let model = if cpu { smaller(model, 16) } else { model };
    let ranks = ranks as usize;
    // The whole layout at hand, or the shapes of one rank of a larger one.
    let sizes: &[usize] = if ranks > 1 { &[2] } else { &[1, 2, 4, 8] };
    let tp = draws.pick(sizes)?;
    let attn_dp = draws.pick(&[1, 1, tp])?;
    let attn_tp = tp / attn_dp;
    let ep = draws.pick(&[1, tp])?;
    let dcp = if attn_tp > 1 {
        draws.pick(&[1, 1, 2])?
    } else {
        1
    };
    let shard_of = StackLayout {
        tp,
        attn_dp,
        dcp,
        ep,
    };
    let here = if ranks > 1 {
        shard_of
    } else {
        StackLayout::ONE
    };
    let layers = if cpu { 1 } else { 2 }.max(model.layers.len().min(3));
    let choices = Choices {
        here,
        shard_of,
        layers: Some(layers),
        kv: Some(Dtype::Bf16),
        page_size: 64,
        dcp_interleave: 1,
        dcp_merge: DcpMerge::ReduceScatter,
        all_to_all: false,
        seed: 1,
    };
    let (spec, _) = spec_of(&model, &choices).ok()?;
    let model = share_of(&model, layers).ok()?;
    let row = spec
        .layers
        .iter()
        .map(|l| match l.mixer {
            parplan_executor::stack::MixerSpec::Gqa {
                kv_heads, head_dim, ..
            } => (kv_heads / attn_tp.min(kv_heads)).max(1) * head_dim * 4,
            parplan_executor::stack::MixerSpec::Mla { kv_lora, rope, .. } => (kv_lora + rope) * 2,
        })
        .sum::<usize>();
    let batches: &[usize] = if cpu {
        &[1, 2, 4]
    } else {
        &[1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256]
    };
    let contexts: &[usize] = if cpu {
        &[32, 64, 128]
    } else {
        &[1024, 2048, 3000, 4096, 8192, 12_000, 16_384, 32_768, 65_536]
    };
    let mut steps: Vec<StepSpec> = Vec::new();
    for _ in 0..STEPS * 8 {
        if steps.len() >= STEPS / 2 {
            break;
        }
        let (batch, context) = (draws.pick(batches)?, draws.pick(contexts)?);
        if batch * context * row / dcp > MOST_CACHE {
            continue;
        }
        let step = StepSpec {
            requests: vec![batch; here.attn_dp],
            q_tokens: 1,
            context,
            phase: Phase::Decode,
            mode: Mode::MaxLen,
        };
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    let symmetric = !cpu && ranks > 1 && draws.below(2) == 1;
    (!steps.is_empty()).then_some(Case {
        model,
        spec,
        steps,
        symmetric,
    })
}
