//! Predicted against measured, as a table or JSON.

use crate::output::say;
use parplan_executor::bench::Launch;
use parplan_executor::jobs::{StackResult, StackStep};
use parplan_executor::stack::Op;
use parplan_executor::{Error, Result};
use parplan_planner::cost::OpCosts;
use parplan_planner::deployment::Setup;
use parplan_planner::launch::LaunchSpec;
use parplan_profiles::{Library, ModelProfile};
use serde::Serialize;

use super::ExecArgs;
use super::predict::{Predicted, predict};
use crate::ask::calibrated::builtin;

/// One operation of a step.
#[derive(Debug, Serialize)]
struct Line {
    op: Op,
    /// Nothing where the planner does not count it apart.
    predicted_us: Option<f64>,
    /// Nothing where the executor did not run it.
    measured_us: Option<f64>,
}

/// One step.
#[derive(Debug, Serialize)]
struct Compared {
    predicted_us: Option<f64>,
    /// 90 % interval of the prediction.
    interval_us: Option<(f64, f64)>,
    /// Launches that no kernel covers, in the prediction.
    launches_us: Option<f64>,
    measured_us: f64,
    operations: Vec<Line>,
}

/// What `parplan exec` found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The GPU whose prices predicted.
    predicted_for: Option<String>,
    /// Why nothing was predicted.
    note: Option<String>,
    /// In the order of the result's steps.
    compared: Vec<Compared>,
    result: StackResult,
}

impl Report {
    /// Prices what was run.
    pub fn new(
        args: &ExecArgs,
        library: &Library,
        model: &ModelProfile,
        launch: &LaunchSpec,
        result: StackResult,
    ) -> Self {
        let name = args.gpu.clone().unwrap_or_else(|| result.device.clone());
        // The CPU backend shows that the plan runs; its plain loops have no prices.
        let predicted = if args.gpu.is_none() && result.device == "cpu" {
            Err("nothing is predicted for the CPU backend; name a GPU with --gpu".into())
        } else {
            Self::price(args, library, &name, model, launch, &result)
        };
        let (predictions, note) = match predicted {
            Ok(all) => (all.into_iter().map(Some).collect(), None),
            Err(why) => (vec![None; result.steps.len()], Some(why)),
        };
        let compared = result
            .steps
            .iter()
            .zip(&predictions)
            .map(|(step, predicted)| compare(step, predicted.as_ref()))
            .collect();
        Report {
            predicted_for: note.is_none().then_some(name),
            note,
            compared,
            result,
        }
    }

    fn price(
        args: &ExecArgs,
        library: &Library,
        gpu: &str,
        model: &ModelProfile,
        launch: &LaunchSpec,
        result: &StackResult,
    ) -> std::result::Result<Vec<Predicted>, String> {
        let text = |e: &dyn std::fmt::Display| format!("nothing is predicted: {e}");
        let gpu = library
            .gpu(gpu)
            .map_err(|e| format!("{} (--gpu)", text(&e)))?;
        let prices = builtin(
            library,
            &gpu,
            args.calibration.as_deref(),
            args.profiles.as_deref(),
        )
        .map_err(|e| text(&e))?;
        let calibrated = &prices.calibrated;
        let setup = Setup {
            model,
            gpu: &calibrated.gpu,
            rules: &prices.rules,
            costs: OpCosts::new(&calibrated.efficiency, &calibrated.gpu).map_err(|e| text(&e))?,
            overheads: &calibrated.overheads,
        };
        let one = |step| predict(&setup, &result.spec, step, launch.symmetric_memory);
        Ok(result.steps.iter().map(one).collect())
    }

    /// Prints it.
    ///
    /// # Errors
    /// A report that does not serialise.
    pub fn print(&self, json: bool) -> Result<()> {
        if json {
            let text = serde_json::to_string_pretty(self)
                .map_err(|e| Error::Wrong(format!("the report does not serialise: {e}")))?;
            say!("{text}");
            return Ok(());
        }
        let r = &self.result;
        say!(
            "{}, {}: {}, {} layers, {} ranks at hand of {}",
            r.device,
            r.implementation,
            r.spec.model,
            r.spec.layers.len(),
            r.spec.here.tp,
            r.spec.shard_of
        );
        for n in &r.narrowed {
            say!(
                "  collectives over {}: {} ranks here, {} in the plan",
                n.group,
                n.ranks,
                n.real_ranks
            );
        }
        match (&self.predicted_for, &self.note) {
            (Some(gpu), _) => say!("predicted by the prices of {gpu}"),
            (None, Some(why)) => say!("{why}"),
            (None, None) => {}
        }
        for (step, compared) in r.steps.iter().zip(&self.compared) {
            table(step, compared);
        }
        Ok(())
    }
}

fn compare(step: &StackStep, predicted: Option<&Predicted>) -> Compared {
    let operations_of = predicted.map_or(&[][..], |p| &p.operations);
    let operations = Op::ALL
        .into_iter()
        .filter_map(|op| {
            let predicted_us = operations_of.iter().find(|p| p.op == op).map(|p| p.us);
            let part = step.parts.iter().find(|p| p.op == op);
            let measured_us = part.map(|p| p.time.median_us);
            (predicted_us.is_some() || measured_us.is_some()).then_some(Line {
                op,
                predicted_us,
                measured_us,
            })
        })
        .collect();
    Compared {
        predicted_us: predicted.map(|p| p.us),
        interval_us: predicted.map(|p| (p.low_us, p.high_us)),
        launches_us: predicted.map(|p| p.launches_us).filter(|us| *us > 0.0),
        measured_us: step.time.median_us,
        operations,
    }
}

fn table(step: &StackStep, compared: &Compared) {
    let launch = match step.launch {
        Launch::Graph => "from a graph",
        Launch::Stream => "eager",
    };
    say!(
        "\n{:?} {launch}: requests {:?}, {} new tokens each, context {}",
        step.step.phase,
        step.step.requests,
        step.step.q_tokens,
        step.step.context
    );
    say!(
        "  {:<22} {:>12} {:>12} {:>9}",
        "operation",
        "predicted us",
        "measured us",
        "off by"
    );
    let us = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}"));
    let off = |p: Option<f64>, m: Option<f64>| match (p, m) {
        (Some(p), Some(m)) if m > 0.0 => format!("{:+.0} %", (p / m - 1.0) * 100.0),
        _ => "-".to_owned(),
    };
    for line in &compared.operations {
        say!(
            "  {:<22} {:>12} {:>12} {:>9}",
            line.op.name(),
            us(line.predicted_us),
            us(line.measured_us),
            off(line.predicted_us, line.measured_us)
        );
    }
    if compared.launches_us.is_some() {
        say!(
            "  {:<22} {:>12} {:>12} {:>9}",
            "eager launches",
            us(compared.launches_us),
            "-",
            "-"
        );
    }
    say!(
        "  {:<22} {:>12} {:>12} {:>9}",
        "the step",
        us(compared.predicted_us),
        us(Some(compared.measured_us)),
        off(compared.predicted_us, Some(compared.measured_us))
    );
    if let Some((low, high)) = compared.interval_us {
        say!("  90 % interval of the prediction: {low:.1} to {high:.1} us");
    }
}
