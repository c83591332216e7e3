//! What was not said: every default that a plan rests on, in words.

use crate::args::EngineArgs;
use crate::render::number;
use parplan_planner::plan::Plan;
use parplan_planner::question::Settings;
use parplan_profiles::efficiency::GpuArchitecture;
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::rules::WeightPart;
use parplan_profiles::{Dtype, EfficiencyProfile, GpuProfile, LinkKind, Overheads, Sourced};

/// Assumptions and warnings, in the order in which they were made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Assumptions {
    notes: Vec<String>,
    warnings: Vec<String>,
}

impl Assumptions {
    /// Everything that was assumed.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What someone should know before trusting the answer.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Those of two sides: what both share once, and the rest under the side's name.
    pub fn of_sides(a: &Assumptions, b: &Assumptions) -> Assumptions {
        let only = |name: &str, mine: &[String], other: &[String]| -> Vec<String> {
            mine.iter()
                .filter(|text| !other.contains(text))
                .map(|text| format!("{name}: {text}"))
                .collect()
        };
        let join = |a: &[String], b: &[String]| {
            let mut all: Vec<String> = a.iter().filter(|text| b.contains(text)).cloned().collect();
            all.extend(only("A", a, b));
            all.extend(only("B", b, a));
            all
        };
        Assumptions {
            notes: join(&a.notes, &b.notes),
            warnings: join(&a.warnings, &b.warnings),
        }
    }

    /// Adds an assumption.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds an assumption that may have been made already.
    pub fn note_once(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Adds what was assumed elsewhere.
    pub fn extend(&mut self, other: Assumptions) {
        self.notes.extend(other.notes);
        self.warnings.extend(other.warnings);
    }

    /// Adds a warning.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// A number as typed, or the default, which is noted.
    pub fn default_to(&mut self, typed: Option<f64>, default: f64, flag: &str, what: &str) -> f64 {
        typed.unwrap_or_else(|| {
            self.note(format!("{} {what} ({flag})", number::plain(default)));
            default
        })
    }

    /// The engine and its version, where they were not both named.
    pub(super) fn of_engine(&mut self, args: &EngineArgs, rules: &EngineRules) {
        let known = format!("{} {}", rules.name, rules.version);
        match &args.engine {
            None => self.note(format!("the engine is {known} (--engine)")),
            Some(text) if !text.contains('@') => self.note(format!(
                "the engine's version is {}, the newest known (--engine {}@VERSION)",
                rules.version, rules.name
            )),
            Some(_) => {}
        }
        if let Some(asked) = &rules.assumed_for {
            self.warn(format!(
                "{} {asked} is not known: it is planned by the rules of {}",
                rules.name, rules.version
            ));
        }
        if !rules.verified {
            self.note(format!(
                "{}'s launch flags follow its sources and were not run through its own parser",
                rules.name
            ));
        }
    }

    /// Weights that are unpacked, because the device has no unit for their format.
    pub(super) fn of_formats(&mut self, unpacked: &[(WeightPart, Dtype)], gpu: &GpuProfile) {
        for (part, format) in unpacked {
            self.note(format!(
                "{} in {format} are unpacked and multiplied in bf16 on {}: they save memory and \
                 bandwidth, and no arithmetic",
                part.name(),
                gpu.name
            ));
        }
    }

    /// Nominal links.
    pub(super) fn of_links(&mut self, gpu: &GpuProfile) {
        let kind = match gpu.link.kind {
            LinkKind::Nvlink => "NVLink",
            LinkKind::Xgmi => "xGMI",
            LinkKind::Pcie => "PCIe",
        };
        self.note(format!(
            "links of the {} profile: {kind} {} GB/s and network {} GB/s a GPU, each direction",
            gpu.name,
            number::plain(gpu.link.bytes_per_s / 1e9),
            number::plain(gpu.network_bytes_per_s / 1e9)
        ));
    }

    /// Where no measured table covers the engine on the GPU.
    pub(super) fn of_efficiency(&mut self, profile: &Sourced<EfficiencyProfile>, gpu: &GpuProfile) {
        if let Some(file) = &profile.file {
            self.note(format!(
                "kernel prices: your {}, over the built-in ones",
                file.display()
            ));
        }
        if profile.figures.architecture == GpuArchitecture::Generic {
            self.warn(format!(
                "no measured operation table covers {}: fractions of the roofline are carried \
                 over from other GPUs, and the intervals are wider",
                gpu.name
            ));
        }
    }

    /// What host time and launch gaps rest on.
    pub(super) fn of_overheads(&mut self, overheads: &Sourced<Overheads>) {
        if let Some(file) = &overheads.file {
            return self.note(format!(
                "host time and launch gaps: your {}, over the built-in ones",
                file.display()
            ));
        }
        let overheads = &overheads.figures;
        let rest = match overheads.runs {
            0 => String::new(),
            runs => format!("as fitted to {runs} runs, "),
        };
        self.note(format!(
            "host time and launch gaps: {rest}{}",
            overheads.source
        ));
    }

    /// What the engine's own rules decided in a plan.
    pub fn of_plan(&mut self, settings: &Settings, engine: &str, plan: &Plan) {
        if settings.memory_fraction.is_none() {
            self.note(format!(
                "memory fraction {:.3}, {engine}'s own rule (--memory-fraction)",
                plan.memory_fraction
            ));
        }
        if settings.chunk_tokens.is_none() {
            self.note(format!(
                "prefill in chunks of {} tokens, {engine}'s own rule (--chunk-tokens)",
                plan.chunk_tokens
            ));
        }
        if settings.receive_interval.is_none() && plan.receive_interval > 1 {
            self.note(format!(
                "{engine} looks for new requests every {} decode steps, as its public recipes for \
                 this GPU do; 1 shortens the time to first token (--receive-interval)",
                plan.receive_interval
            ));
        }
        if settings.max_running_requests.is_none() {
            self.note(format!(
                "at most {} running requests: the planned clients and what the KV cache holds \
                 (--max-running-requests)",
                plan.max_running_requests
            ));
        }
        if settings.graph_sizes.is_none() && plan.choice.cuda_graphs {
            self.note(
                "CUDA graphs are captured for the planned batches rather than the engine's own \
                 list (--graph-sizes engine)",
            );
        }
        if settings.context_length.is_none() {
            self.note(
                "sequences up to the model's own length, or to what the KV cache of a rank holds \
                 where that is less, are served (--context-length)",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_sides_share_is_said_once() {
        let mut a = Assumptions::default();
        a.note("both");
        a.note("mine");
        let mut b = Assumptions::default();
        b.note("theirs");
        b.note("both");
        let sides = Assumptions::of_sides(&a, &b);
        assert_eq!(sides.notes(), ["both", "A: mine", "B: theirs"]);
    }

    #[test]
    fn a_typed_value_is_no_assumption() {
        let mut assumptions = Assumptions::default();
        let typed = assumptions.default_to(Some(7.0), 1024.0, "--isl", "tokens");
        assert_eq!((typed, assumptions.notes().len()), (7.0, 0));
        let left_out = assumptions.default_to(None, 1024.0, "--isl", "tokens");
        assert_eq!(left_out, 1024.0);
        assert_eq!(assumptions.notes(), ["1,024 tokens (--isl)"]);
    }
}
