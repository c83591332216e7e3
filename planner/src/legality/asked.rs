//! Rules of what is asked beside the split: limits and loads that count its ranks.

use super::{Ground, Options, Rule, Sink, nearest_divisor};
use crate::layout::Layout;
use crate::plan::Choice;
use crate::question::{Balance, Settings, Traffic};
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::rules::RequestLimit;
use std::ops::ControlFlow;

impl<'a> Options<'a> {
    /// What a choice, its traffic and the settings that a person fixed ask of the engine.
    pub fn of(
        rules: &'a EngineRules,
        traffic: &Traffic,
        settings: &Settings,
        choice: &Choice,
    ) -> Options<'a> {
        Options {
            expert_backend: choice
                .expert_all_to_all
                .then_some(rules.experts.all_to_all())
                .flatten(),
            speculation: choice.speculative_steps > 0,
            kv_dtype: choice.kv_dtype,
            symmetric_memory: choice.symmetric_memory,
            running_requests: settings.max_running_requests,
            batches: match &traffic.balance {
                Balance::Ranks(list) => u32::try_from(list.len()).ok(),
                _ => None,
            },
            ..Options::default()
        }
    }
}

pub(super) fn asked(layout: &Layout, ground: &Ground<'_>, sink: &mut Sink<'_>) -> ControlFlow<()> {
    let (tp, dp) = (layout.tp, layout.attention_dp);
    let options = &ground.options;
    // One rank has every request, however the ranks of other layouts share them.
    if let Some(batches) = options.batches
        && dp > 1
        && batches != dp
    {
        let right = nearest_divisor(tp, batches);
        let reason = || {
            format!(
                "the imbalance lists the batches of {batches} ranks, and attention dp is {dp}; \
                 list {dp} batches{}",
                match right == batches {
                    true => format!(", or use attention dp {batches}"),
                    false => String::new(),
                }
            )
        };
        sink(
            Rule::Imbalance,
            &reason,
            (right == batches).then_some(batches),
        )?;
    }
    if let Some(limit) = options.running_requests
        && ground.rules.scheduler.requests == RequestLimit::Server
        && limit < dp
    {
        let right = (1..=limit).rev().find(|&ranks| tp.is_multiple_of(ranks));
        let reason = || {
            format!(
                "a limit of {limit} running request{} cannot be shared by attention dp {dp}: {} {} \
                 divides it among the ranks, and each runs at least 1; allow {dp} or more, or use \
                 attention dp {}",
                if limit == 1 { "" } else { "s" },
                ground.rules.name,
                ground.rules.version,
                right.unwrap_or(1)
            )
        };
        sink(Rule::RunningRequests, &reason, Some(right.unwrap_or(1)))?;
    }
    ControlFlow::Continue(())
}
