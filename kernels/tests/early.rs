//! Which kernels let the next one be launched early, and which wait for the one before: the rule
//! at `let_next_come` in `cuda/parplan.cuh`, held against the code for sm_90a.

use std::collections::BTreeSet;

use parplan_kernels::attention::{ALL_GATHER_LINES, MERGE_BULK, MERGE_PACKETS};
use parplan_kernels::launch::MODULES;

/// Every kernel's name and code.
fn kernels() -> Vec<(&'static str, &'static str)> {
    MODULES
        .iter()
        .filter_map(|m| m.ptx(9, 0))
        .flat_map(|ptx| ptx.split(".visible .entry ").skip(1))
        .filter_map(|entry| entry.split_once('('))
        .collect()
}

fn with(instruction: &str) -> BTreeSet<&'static str> {
    kernels()
        .into_iter()
        .filter(|(_, code)| code.contains(instruction))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn only_attentions_let_the_next_kernel_come_early() {
    let found = with("griddepcontrol.launch_dependents");
    assert!(!found.is_empty());
    for name in found {
        assert!(
            name.starts_with("parplan_gqa_") || name.starts_with("parplan_mla_"),
            "{name} lets whatever follows it come early"
        );
    }
}

#[test]
fn every_kernel_that_is_launched_early_waits_for_the_one_before() {
    let waits = with("griddepcontrol.wait");
    let combines =
        ["d64", "d128", "d256", "d512"].map(|d| format!("parplan_attention_combine_{d}"));
    for name in [ALL_GATHER_LINES, MERGE_BULK, MERGE_PACKETS]
        .into_iter()
        .chain(combines.iter().map(String::as_str))
    {
        assert!(waits.contains(name), "{name} does not wait");
    }
}
