//! The space of configurations that `recommend` searches.

use super::Ask;
use crate::args::{KvFormat, LayoutArgs, QuestionArgs, Ranking, RankingArgs, Switch};
use crate::failure::Failure;
use parplan_planner::question::{Balance, Goal, Objective, Space};
use parplan_profiles::Dtype;

/// The space, with what was left open noted.
///
/// # Errors
/// No GPUs, or nodes that cannot hold them.
pub fn resolve(ask: &mut Ask, args: &QuestionArgs) -> Result<Space, Failure> {
    let machine = &args.model;
    let Some(gpus) = machine.gpus else {
        return Err(Failure::unusable(
            "--gpus is not given; say how many GPUs there are, such as --gpus 8",
        ));
    };
    let nodes = super::choice::whole_nodes(u64::from(gpus), machine.nodes, &ask.gpu)?;
    let layout = &args.layout;
    for (flag, size) in [
        ("--tp", layout.tp),
        ("--attn-dp", layout.attn_dp),
        ("--dcp", layout.dcp),
        ("--ep", layout.ep),
        ("--pp", layout.pp),
        ("--replicas", layout.replicas),
    ] {
        if let Some(size) = size
            && size > gpus
        {
            return Err(Failure::unusable(format!(
                "{flag} {size} is more than --gpus {gpus}; give {gpus} or less, or more GPUs"
            )));
        }
    }
    shares(gpus, layout)?;
    balanced(ask, gpus, layout)?;
    let switches = &args.switches;
    let cuda_graphs = super::choice::cuda_graphs(
        ask,
        switches,
        "decode runs from CUDA graphs wherever one is large enough (--cuda-graphs)",
    )?;
    let open: Vec<&str> = [
        ("symmetric memory", switches.symmetric_memory),
        ("expert all-to-all", switches.expert_all_to_all),
    ]
    .into_iter()
    .filter(|(_, switch)| switch.fixed().is_none())
    .map(|(name, _)| name)
    .collect();
    if !open.is_empty() {
        ask.assumptions.note(format!(
            "{} may be on or off, whichever is predicted to be better",
            open.join(" and ")
        ));
    }
    Ok(Space {
        gpus,
        nodes,
        tp: layout.tp,
        attention_dp: layout.attn_dp,
        dcp: layout.dcp,
        ep: layout.ep,
        pp: layout.pp,
        replicas: layout.replicas,
        kv_dtypes: kv_dtypes(ask, &switches.kv_dtype)?,
        cuda_graphs: vec![cuda_graphs],
        symmetric_memory: both(switches.symmetric_memory),
        expert_all_to_all: both(switches.expert_all_to_all),
        settings: ask.settings.clone(),
    })
}

/// Refuses sizes that cannot share the GPUs evenly, whatever the search does with the others.
fn shares(gpus: u32, layout: &LayoutArgs) -> Result<(), Failure> {
    let fixed = [
        ("--tp", layout.tp),
        ("--pp", layout.pp),
        ("--replicas", layout.replicas),
    ];
    let typed: Vec<(&str, u32)> = fixed
        .into_iter()
        .filter_map(|(flag, size)| Some((flag, size?)))
        .collect();
    let product: u64 = typed.iter().map(|(_, size)| u64::from(*size)).product();
    if u64::from(gpus).is_multiple_of(product) {
        return Ok(());
    }
    let words: Vec<String> = typed
        .iter()
        .map(|(flag, size)| format!("{flag} {size}"))
        .collect();
    let down = u64::from(gpus) / product * product;
    let near = if down == 0 { product } else { down };
    Err(Failure::unusable(format!(
        "{} cannot share --gpus {gpus} evenly; the nearest that they do is --gpus {near}",
        words.join(" with ")
    )))
}

/// Refuses batches that are listed for more or fewer attention-DP ranks than any layout of the space has.
fn balanced(ask: &Ask, gpus: u32, layout: &LayoutArgs) -> Result<(), Failure> {
    let Balance::Ranks(batches) = &ask.traffic.balance else {
        return Ok(());
    };
    let listed = batches.len();
    let stages = layout.pp.unwrap_or(1) * layout.replicas.unwrap_or(1);
    let most = layout.tp.unwrap_or(gpus / stages) as usize;
    let right = match layout.attn_dp {
        Some(dp) if dp as usize == listed => return Ok(()),
        Some(dp) => format!("attention dp is {dp}; list {dp} batches, or give --attn-dp {listed}"),
        None if most.is_multiple_of(listed) => return Ok(()),
        None if most == 1 => {
            "a stage of 1 GPU has none to balance; give more --gpus or --tp".to_owned()
        }
        None => {
            let near = (1..=listed).rev().find(|n| most.is_multiple_of(*n));
            format!(
                "attention dp {listed} does not divide tp {most}; list as many batches as a layout has \
                 attention-DP ranks, such as {}",
                near.unwrap_or(most)
            )
        }
    };
    Err(Failure::unusable(format!(
        "the imbalance lists the batches of {listed} ranks, and {right}, or leave --imbalance out"
    )))
}

/// What counts as good. All that keep up with an open loop get the same through, so that there the
/// sooner requests end, the better.
pub fn goal(ask: &Ask, ranking: &RankingArgs) -> Goal {
    Goal {
        ttft_ms: ask.slo.ttft_ms,
        tpot_ms: ask.slo.tpot_ms,
        objective: match ranking.objective {
            Ranking::Throughput if ask.traffic.requests_per_s.is_some() => Objective::Latency,
            Ranking::Throughput => Objective::Throughput,
            Ranking::Latency => Objective::Latency,
            Ranking::Pareto => Objective::Pareto,
        },
    }
}

/// A switch left open is tried both ways, the engine's default first.
fn both(switch: Switch) -> Vec<bool> {
    switch
        .fixed()
        .map_or_else(|| vec![true, false], |on| vec![on])
}

fn kv_dtypes(ask: &mut Ask, typed: &[KvFormat]) -> Result<Vec<Dtype>, Failure> {
    let own = ask.model.kv_dtype;
    let mut list = Vec::new();
    for format in typed {
        let dtype = match format {
            KvFormat::Auto => own,
            KvFormat::Fixed(dtype) => *dtype,
        };
        if !list.contains(&dtype) {
            list.push(dtype);
        }
    }
    if list.is_empty() {
        ask.assumptions.note(format!(
            "the KV cache is {own}, as the profile of {} says (--kv-dtype bf16,fp8 tries both)",
            ask.model.name
        ));
        list.push(own);
    }
    for dtype in &list {
        super::choice::stored_by(ask, *dtype)?;
    }
    Ok(list)
}
