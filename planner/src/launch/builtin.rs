//! Our own executor: the plan goes over as a file, number for number.

use super::words::Words;
use super::{LaunchError, LaunchSpec, NodeCommand, Place};
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::flags::Meaning;

/// Name of the file that carries the plan.
const PLAN: &str = "parplan-exec.json";

pub(super) fn command(
    rules: &EngineRules,
    spec: &LaunchSpec,
    place: &Place,
) -> Result<NodeCommand, LaunchError> {
    if spec.layout.nodes > 1 {
        return Err(LaunchError::Placement(
            "the builtin executor runs on one node; plan nodes 1".to_owned(),
        ));
    }
    let mut words = Words::new(rules, &["parplan", "exec"]);
    words.say(Meaning::OptionsFile, PLAN)?;
    let text = serde_json::to_string_pretty(spec)
        .map_err(|error| LaunchError::Placement(format!("the plan cannot be written: {error}")))?;
    words.file(PLAN, text + "\n");
    words.finish(place, false, &spec.extra_args)
}
