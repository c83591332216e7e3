//! One fixed configuration: the layout as typed, checked, with its switches.

use super::Ask;
use crate::args::{KvFormat, LayoutArgs, MAX_GPUS, ModelArgs, QuestionArgs, SwitchArgs};
use crate::failure::Failure;
use parplan_planner::Layout;
use parplan_planner::deployment::sm;
use parplan_planner::formats;
use parplan_planner::legality::{self, Ground, Machines, ModelShape, Options};
use parplan_planner::plan::Choice;
use parplan_planner::question::Balance;
use parplan_profiles::{Dtype, GpuProfile};

/// The configuration that was typed.
///
/// # Errors
/// A layout that does not divide, or does not fill the GPUs, with the nearest that would.
pub fn resolve(ask: &mut Ask, args: &QuestionArgs) -> Result<Choice, Failure> {
    resolve_side(ask, args, true)
}

/// The same for one side of a comparison, unless it is `alone`: how attention-DP ranks are loaded may
/// be said for the other side.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_side(ask: &mut Ask, args: &QuestionArgs, alone: bool) -> Result<Choice, Failure> {
    let layout = layout(&args.layout, &args.model, &ask.gpu)?;
    let switches = &args.switches;
    let choice = Choice {
        layout,
        kv_dtype: kv_dtype(ask, switches)?,
        cuda_graphs: cuda_graphs(
            ask,
            switches,
            "decode runs from CUDA graphs (--cuda-graphs)",
        )?,
        symmetric_memory: symmetric_memory(ask, switches),
        speculative_steps: ask.traffic.speculation.map_or(0, |s| s.steps),
        expert_all_to_all: expert_all_to_all(ask, switches, &layout),
    };
    legal(ask, &choice)?;
    if !alone {
        return Ok(choice);
    }
    match &ask.traffic.balance {
        Balance::Ranks(list) if layout.attention_dp == 1 && list.len() > 1 => {
            Err(Failure::unusable(format!(
                "the imbalance lists the batches of {} ranks, and attention dp is 1, which has none \
                 to balance; give --attn-dp {}, or leave --imbalance out",
                list.len(),
                list.len()
            )))
        }
        _ => Ok(choice),
    }
}

/// Sizes that multiply to the GPUs that were asked for.
fn layout(typed: &LayoutArgs, machine: &ModelArgs, gpu: &GpuProfile) -> Result<Layout, Failure> {
    let pp = typed.pp.unwrap_or(1);
    let replicas = typed.replicas.unwrap_or(1);
    let copies = u64::from(pp) * u64::from(replicas);
    let tp = match (typed.tp, machine.gpus) {
        (Some(tp), _) => tp,
        (None, Some(gpus)) => whole(gpus, copies)?,
        (None, None) => {
            return Err(Failure::unusable(
                "neither --tp nor --gpus is given; say how many GPUs one stage has, such as --tp 8",
            ));
        }
    };
    let needed = u64::from(tp) * copies;
    if let Some(gpus) = machine.gpus
        && needed != u64::from(gpus)
    {
        return Err(Failure::unusable(format!(
            "--gpus {gpus} is not what the layout takes: tp {tp} x pp {pp} x replicas {replicas} \
             is {needed}; give --gpus {needed}{}",
            nearest_tp(gpus, copies)
        )));
    }
    if needed > u64::from(MAX_GPUS) {
        return Err(Failure::unusable(format!(
            "tp {tp} x pp {pp} x replicas {replicas} is {needed} GPUs; at most {MAX_GPUS} are planned"
        )));
    }
    let layout = Layout {
        replicas,
        tp,
        attention_dp: typed.attn_dp.unwrap_or(1),
        dcp: typed.dcp.unwrap_or(1),
        ep: typed.ep.unwrap_or(1),
        pp,
        nodes: 1,
    };
    Ok(Layout {
        nodes: replica_nodes(&layout, needed, machine.nodes, gpu)?,
        ..layout
    })
}

/// GPUs over `copies` stages, when that is a whole number.
fn whole(gpus: u32, copies: u64) -> Result<u32, Failure> {
    let each = u64::from(gpus) / copies;
    if each * copies == u64::from(gpus) {
        return Ok(each as u32);
    }
    let near = each.max(1) * copies;
    Err(Failure::unusable(format!(
        "--gpus {gpus} cannot be shared evenly by pp x replicas = {copies} stages; \
         give --gpus {near}"
    )))
}

fn nearest_tp(gpus: u32, copies: u64) -> String {
    match u64::from(gpus).checked_div(copies) {
        Some(tp) if tp > 0 && tp * copies == u64::from(gpus) => format!(" or --tp {tp}"),
        _ => String::new(),
    }
}

/// Nodes that hold all GPUs, in equal parts.
pub(super) fn whole_nodes(gpus: u64, typed: Option<u32>, gpu: &GpuProfile) -> Result<u32, Failure> {
    let per_node = u64::from(gpu.gpus_per_node.max(1));
    let least = gpus.div_ceil(per_node);
    let nodes = typed.map_or(least, u64::from);
    if nodes < least {
        return Err(Failure::unusable(format!(
            "--nodes {nodes} cannot hold {gpus} GPUs: a node of {} has {per_node}; \
             give --nodes {least} or more",
            gpu.name
        )));
    }
    if typed.is_some() && !gpus.is_multiple_of(nodes) {
        let right = (least..=gpus)
            .filter(|count| gpus.is_multiple_of(*count))
            .min_by_key(|count| count.abs_diff(nodes));
        return Err(Failure::unusable(format!(
            "--nodes {nodes} cannot share {gpus} GPUs evenly; give --nodes {}",
            right.unwrap_or(gpus)
        )));
    }
    Ok(u32::try_from(nodes).unwrap_or(u32::MAX))
}

/// Nodes that one replica spans.
fn replica_nodes(
    layout: &Layout,
    gpus: u64,
    typed: Option<u32>,
    gpu: &GpuProfile,
) -> Result<u32, Failure> {
    let nodes = u64::from(whole_nodes(gpus, typed, gpu)?);
    let per_node = match typed {
        Some(_) => gpus / nodes,
        None => u64::from(gpu.gpus_per_node.max(1)),
    };
    let replica = u64::from(layout.tp) * u64::from(layout.pp);
    Ok(u32::try_from(replica.div_ceil(per_node)).unwrap_or(u32::MAX))
}

/// One KV cache format.
fn kv_dtype(ask: &mut Ask, switches: &SwitchArgs) -> Result<Dtype, Failure> {
    let dtype = match switches.kv_dtype.as_slice() {
        [] | [KvFormat::Auto] => {
            let dtype = ask.model.kv_dtype;
            ask.assumptions.note(format!(
                "the KV cache is {dtype}, as the profile of {} says (--kv-dtype)",
                ask.model.name
            ));
            dtype
        }
        [KvFormat::Fixed(dtype)] => *dtype,
        several => {
            return Err(Failure::unusable(format!(
                "--kv-dtype lists {} formats; one layout has one, and `parplan recommend` \
                 compares several",
                several.len()
            )));
        }
    };
    stored_by(ask, dtype)?;
    Ok(dtype)
}

/// Refuses a KV cache format that the engine has no option for, or no kernels on the GPU.
pub(super) fn stored_by(ask: &Ask, dtype: Dtype) -> Result<(), Failure> {
    let rules = &ask.rules;
    if rules.kv_names.contains_key(&dtype) {
        return match formats::refused_kv(rules, &ask.gpu, &ask.model, dtype) {
            Some(why) => Err(Failure::unusable(format!(
                "--kv-dtype {dtype}: {why}; give bf16"
            ))),
            None => Ok(()),
        };
    }
    let known: Vec<&str> = rules.kv_names.keys().map(|known| known.name()).collect();
    Err(Failure::unusable(format!(
        "--kv-dtype {dtype}: {} {} stores a KV cache in {}",
        rules.name,
        rules.version,
        known.join(", ")
    )))
}

/// Whether decode runs from captured graphs; `note` says so where nobody asked.
pub(super) fn cuda_graphs(
    ask: &mut Ask,
    switches: &SwitchArgs,
    note: &str,
) -> Result<bool, Failure> {
    let captures = ask.gpu.vendor.captures_graphs();
    match switches.cuda_graphs.fixed() {
        Some(true) if !captures => Err(Failure::unusable(format!(
            "--cuda-graphs on: engines capture no graphs on {}; leave it at auto, or off",
            ask.gpu.name
        ))),
        Some(fixed) => Ok(fixed),
        None => {
            ask.assumptions.note(if captures {
                note.to_owned()
            } else {
                format!(
                    "decode runs without graphs: engines capture none on {}",
                    ask.gpu.name
                )
            });
            Ok(captures)
        }
    }
}

fn symmetric_memory(ask: &mut Ask, switches: &SwitchArgs) -> bool {
    switches.symmetric_memory.fixed().unwrap_or_else(|| {
        ask.assumptions
            .note("symmetric memory is off (--symmetric-memory)");
        false
    })
}

fn expert_all_to_all(ask: &mut Ask, switches: &SwitchArgs, layout: &Layout) -> bool {
    switches.expert_all_to_all.fixed().unwrap_or_else(|| {
        if layout.ep > 1 {
            ask.assumptions
                .note("expert all-to-all is off (--expert-all-to-all)");
        }
        false
    })
}

/// Refuses what the engine cannot run, with every reason.
fn legal(ask: &Ask, choice: &Choice) -> Result<(), Failure> {
    let layout = &choice.layout;
    if choice.expert_all_to_all && layout.ep == 1 {
        return Err(Failure::unusable(
            "--expert-all-to-all on needs experts on several ranks; give --ep above 1, or off",
        ));
    }
    if choice.expert_all_to_all && ask.rules.experts.all_to_all().is_none() {
        return Err(Failure::unusable(format!(
            "--expert-all-to-all on: {} {} has no all-to-all backend that is planned; give off",
            ask.rules.name, ask.rules.version
        )));
    }
    let model = ModelShape::of(&ask.model);
    let ground = Ground {
        rules: &ask.rules,
        model: &model,
        machines: Machines {
            gpus: layout.gpus(),
            gpus_per_node: ask.gpu.gpus_per_node,
            link_domain: ask.gpu.link_domain_gpus,
            sm: sm(&ask.gpu),
        },
        options: Options::of(&ask.rules, &ask.traffic, &ask.settings, choice),
    };
    legality::check(layout, &ground).map_err(|refusals| {
        let reasons: Vec<&str> = refusals.iter().map(|r| r.reason.as_str()).collect();
        Failure::unusable(format!("the layout cannot run: {}", reasons.join("; ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use parplan_profiles::Library;

    fn h200() -> GpuProfile {
        Library::embedded().gpu("h200").unwrap()
    }

    fn machine(gpus: Option<u32>, nodes: Option<u32>) -> ModelArgs {
        ModelArgs {
            model: "qwen3-8b".to_owned(),
            weights: None,
            gpu: "h200".to_owned(),
            gpus,
            nodes,
            calibration: None,
            profiles: None,
        }
    }

    fn refused(typed: &LayoutArgs, machine: &ModelArgs) -> String {
        layout(typed, machine, &h200()).unwrap_err().to_string()
    }

    #[test]
    fn seven_gpus_do_not_hold_tp_8() {
        let typed = LayoutArgs {
            tp: Some(8),
            ..LayoutArgs::default()
        };
        let message = refused(&typed, &machine(Some(7), None));
        assert!(
            message.contains("--gpus 7") && message.contains("--gpus 8"),
            "{message}"
        );
        assert!(message.contains("--tp 7"), "{message}");
    }

    #[test]
    fn sizes_default_to_the_gpus() {
        let typed = LayoutArgs {
            pp: Some(2),
            replicas: Some(2),
            ..LayoutArgs::default()
        };
        let layout = layout(&typed, &machine(Some(32), None), &h200()).unwrap();
        assert_eq!((layout.tp, layout.gpus(), layout.nodes), (8, 32, 2));
    }

    #[test]
    fn nodes_hold_what_the_gpu_profile_says() {
        let typed = LayoutArgs {
            tp: Some(32),
            ..LayoutArgs::default()
        };
        assert!(refused(&typed, &machine(None, Some(2))).contains("--nodes 4"));
        assert!(refused(&typed, &machine(None, Some(5))).contains("--nodes 4"));
        let wide = layout(&typed, &machine(None, Some(8)), &h200()).unwrap();
        assert_eq!(wide.nodes, 8);
    }

    #[test]
    fn sizes_that_overflow_are_refused_not_wrapped() {
        let typed = LayoutArgs {
            tp: Some(16_384),
            pp: Some(16_384),
            replicas: Some(16_384),
            ..LayoutArgs::default()
        };
        assert!(refused(&typed, &machine(Some(8), None)).contains("4398046511104"));
        assert!(refused(&typed, &machine(None, None)).contains("at most 16384"));
    }
}
