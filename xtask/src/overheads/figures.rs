//! The figures of an engine: what is fitted, and what is expected of it before a run is seen.

use std::collections::BTreeMap;

use parplan_profiles::engine::version::Version;
use parplan_profiles::{FrontEnd, Gaps, GpuArchitecture, ModelCode, Overheads, SyncCosts};

use super::runs::Run;

/// Figures that all runs of an engine share.
pub(super) const COMMON: usize = 12;

/// Their names, in order.
pub(super) const STEP: usize = 0;
pub(super) const REQUEST_IN_STEP: usize = 1;
pub(super) const GRAPH_LAYER: usize = 2;
pub(super) const EAGER_LAYER: usize = 3;
pub(super) const PREFILL_PASS: usize = 4;
pub(super) const REQUEST: usize = 5;
pub(super) const PROMPT_TOKEN: usize = 6;
pub(super) const HOPPER: usize = 7;
pub(super) const BLACKWELL: usize = 9;
pub(super) const EXPERT_SPREAD: usize = 11;

/// What is expected before a run is seen, and how far from it (in ln) is surprising.
const PRIOR: [(f64, f64); COMMON] = [
    (800.0, 0.8),
    (10.0, 1.0),
    (5.0, 1.5),
    (300.0, 1.0),
    (3000.0, 1.5),
    (30000.0, 1.2),
    (3.0, 1.5),
    (1.0, 0.2),
    (1.0, 0.3),
    (1.0, 0.2),
    (1.0, 0.4),
    (0.8, 0.3),
];

/// How far (in ln) the engine's code for one architecture of models may be from its others, in decode,
/// prefill and front end, and the front end of one release from the others', before it surprises. Of 0.05
/// to 0.15, 0.05 to 0.15, 0 to 0.5 and 0.3 to 1 those with the least errors on what was left out.
const CODE: [f64; EFFECTS] = [0.08, 0.1, 0.3];
const FRONT_END: f64 = 1.0;

/// Ratios of the code for one architecture.
const EFFECTS: usize = 3;

/// Smallest and largest share of tokens that choose experts by themselves, and the least scale.
const SPREAD: (f64, f64) = (0.2, 1.0);
const LEAST_SCALE: f64 = 0.3;

/// The figures of an engine, each by its logarithm: eight that its host decides, two scales of the kernel
/// time for each GPU architecture, and what single architectures of models and single releases differ by.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figures {
    common: [f64; COMMON],
    code: BTreeMap<String, [f64; EFFECTS]>,
    front_ends: BTreeMap<Version, f64>,
}

/// Derivatives of something of one run by the common figures, in the order of their names.
pub(super) type Slopes = [f64; COMMON];

impl Figures {
    /// What is expected before one of `runs` is seen.
    pub fn expected(runs: &[&Run]) -> Figures {
        Figures {
            common: PRIOR.map(|(value, _)| value.ln()),
            code: runs
                .iter()
                .map(|run| (run.model.architecture.clone(), [0.0; EFFECTS]))
                .collect(),
            front_ends: runs
                .iter()
                .filter_map(|run| Some((run.release()?, 0.0)))
                .collect(),
        }
    }

    /// The same expectation, but for time before a first token that is launches rather than the front end.
    pub fn expected_launches(runs: &[&Run]) -> Figures {
        let mut out = Figures::expected(runs);
        for (at, factor) in [(EAGER_LAYER, 2.5f64), (REQUEST, 0.5), (PREFILL_PASS, 0.3)] {
            out.common[at] += factor.ln();
        }
        out
    }

    /// These, with what only `runs` can say of single models and releases left to be found.
    pub fn seen_by(&self, runs: &[&Run]) -> Figures {
        let mut out = Figures::expected(runs);
        out.common = self.common;
        for (name, code) in &mut out.code {
            *code = self.code.get(name).copied().unwrap_or_default();
        }
        for (version, ratio) in &mut out.front_ends {
            *ratio = self.front_ends.get(version).copied().unwrap_or_default();
        }
        out
    }

    /// Where the scales of the kernel time of an architecture stand: decode, and prefill after it.
    pub fn scales(architecture: GpuArchitecture) -> usize {
        if architecture == GpuArchitecture::Blackwell {
            BLACKWELL
        } else {
            HOPPER
        }
    }

    /// How many figures there are.
    pub fn len(&self) -> usize {
        COMMON + EFFECTS * self.code.len() + self.front_ends.len()
    }

    /// Turns the slopes of a run by the common figures into those by all figures, as (place, slope).
    pub fn spread_out(&self, run: &Run, slopes: &Slopes) -> Vec<(usize, f64)> {
        let mut out: Vec<(usize, f64)> = slopes.iter().copied().enumerate().collect();
        let scale = Figures::scales(run.architecture);
        let own = self
            .code
            .keys()
            .position(|name| *name == run.model.architecture);
        if let Some(at) = own {
            let first = COMMON + EFFECTS * at;
            for (effect, common) in [scale, scale + 1, REQUEST].into_iter().enumerate() {
                out.push((first + effect, slopes[common]));
            }
        }
        let release = run
            .release()
            .and_then(|own| self.front_ends.keys().position(|v| *v == own));
        if let Some(at) = release {
            let place = COMMON + EFFECTS * self.code.len() + at;
            out.push((place, slopes[REQUEST]));
        }
        out.retain(|(_, slope)| *slope != 0.0);
        out
    }

    /// How far each figure is from what is expected of it, and how far is surprising.
    pub fn surprises(&self) -> Vec<(f64, f64)> {
        let common = self
            .common
            .iter()
            .zip(PRIOR)
            .map(|(x, (expected, width))| (x - expected.ln(), width));
        let code = self.code.values().flat_map(|c| c.iter().copied().zip(CODE));
        let front_ends = self.front_ends.values().map(|x| (*x, FRONT_END));
        common.chain(code).chain(front_ends).collect()
    }

    /// The figures a step further, inside what can be.
    pub fn moved(&self, step: &[f64]) -> Figures {
        let mut out = self.clone();
        let all = out
            .common
            .iter_mut()
            .chain(out.code.values_mut().flatten())
            .chain(out.front_ends.values_mut());
        for (figure, by) in all.zip(step) {
            *figure += by;
        }
        for scale in &mut out.common[HOPPER..EXPERT_SPREAD] {
            *scale = scale.max(LEAST_SCALE.ln());
        }
        let spread = &mut out.common[EXPERT_SPREAD];
        *spread = spread.clamp(SPREAD.0.ln(), SPREAD.1.ln());
        out
    }

    /// These with one of the common figures multiplied by e^`by`, whatever can be.
    pub fn with(&self, at: usize, by: f64) -> Figures {
        let mut out = self.clone();
        out.common[at] += by;
        out
    }

    /// The entry of one architecture, without its spreads; not rounded, since a search must see small
    /// steps.
    pub fn exact(&self, engine: &str, architecture: GpuArchitecture) -> Overheads {
        let f = self.common.map(f64::exp);
        let scales = Figures::scales(architecture);
        Overheads {
            engine: engine.to_owned(),
            architecture,
            step_us: f[STEP],
            step_request_us: f[REQUEST_IN_STEP],
            graph_layer_us: f[GRAPH_LAYER],
            eager_layer_us: f[EAGER_LAYER],
            prefill_pass_us: f[PREFILL_PASS],
            request_us: f[REQUEST],
            prompt_token_us: f[PROMPT_TOKEN],
            decode_scale: f[scales],
            prefill_scale: f[scales + 1],
            expert_spread: f[EXPERT_SPREAD].min(1.0),
            tpot_sigma: 0.0,
            ttft_sigma: 0.0,
            runs: 0,
            source: super::write::SOURCE.to_owned(),
            sync: SyncCosts::default(),
            gaps: Gaps::default(),
            model_code: self
                .code
                .iter()
                .map(|(architecture, c)| ModelCode {
                    architecture: architecture.clone(),
                    decode: c[0].exp(),
                    prefill: c[1].exp(),
                    request: c[2].exp(),
                })
                .collect(),
            front_ends: self
                .front_ends
                .iter()
                .map(|(version, ratio)| FrontEnd {
                    version: *version,
                    request: ratio.exp(),
                })
                .collect(),
            graph_node_bytes: None,
        }
    }

    /// The same as it is written: rounded.
    pub fn overheads(&self, engine: &str, architecture: GpuArchitecture) -> Overheads {
        let mut o = self.exact(engine, architecture);
        let round = |value: &mut f64, digits: i32| {
            let unit = 10f64.powi(digits);
            *value = (*value * unit).round() / unit;
        };
        for (figure, digits) in [
            (&mut o.step_us, 0),
            (&mut o.step_request_us, 1),
            (&mut o.graph_layer_us, 1),
            (&mut o.eager_layer_us, 0),
            (&mut o.prefill_pass_us, 0),
            (&mut o.request_us, 0),
            (&mut o.prompt_token_us, 2),
            (&mut o.decode_scale, 3),
            (&mut o.prefill_scale, 3),
            (&mut o.expert_spread, 2),
        ] {
            round(figure, digits);
        }
        for code in &mut o.model_code {
            round(&mut code.decode, 3);
            round(&mut code.prefill, 3);
            round(&mut code.request, 2);
        }
        for release in &mut o.front_ends {
            round(&mut release.request, 2);
        }
        o
    }
}
