//! Where processes go, and what cannot be passed on to them.

use super::{LaunchError, LaunchSpec, PORT_STEP};

/// Where one process of a replica runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) replica: u32,
    pub(super) node: u32,
    pub(super) machine: String,
    /// Name of the machine of the replica's first node.
    pub(super) first: String,
    pub(super) gpus: u32,
    /// First GPU of the process on its machine, when it does not use the whole machine.
    pub(super) offset: Option<u32>,
    pub(super) port: u16,
    pub(super) rendezvous_port: u16,
}

/// Values that would not reach the engine as one argument with the meaning intended.
pub(super) fn check_values(spec: &LaunchSpec) -> Result<(), LaunchError> {
    let refuse = |field, value: &str, why: &str| {
        Err(LaunchError::Value {
            field,
            value: value.chars().take(80).collect(),
            why: why.to_owned(),
        })
    };
    let mut texts = vec![("model", spec.model.as_str()), ("host", spec.host.as_str())];
    texts.extend(
        spec.served_name
            .iter()
            .map(|name| ("served name", name.as_str())),
    );
    texts.extend(
        spec.expert_backend
            .iter()
            .map(|name| ("expert backend", name.as_str())),
    );
    texts.extend(spec.machines.iter().map(|name| ("machine", name.as_str())));
    if let Some(draft) = spec
        .speculation
        .as_ref()
        .and_then(|s| s.draft_model.as_ref())
    {
        texts.push(("draft model", draft));
    }
    for (field, text) in &texts {
        if text.is_empty() {
            return refuse(field, text, "it is empty");
        }
        if text.starts_with('-') {
            return refuse(
                field,
                text,
                "it begins with '-', which the engine would read as an option; a path can begin with './'",
            );
        }
    }
    texts.extend(
        spec.extra_args
            .iter()
            .map(|text| ("extra argument", text.as_str())),
    );
    texts.extend(
        spec.extra_env
            .values()
            .map(|text| ("environment value", text.as_str())),
    );
    for (field, text) in texts {
        if text.contains('\0') {
            return refuse(
                field,
                text,
                "it holds a NUL character, which ends an argument",
            );
        }
    }
    for name in &spec.machines {
        if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return refuse(
                "machine",
                name,
                "the name or address of a machine holds no blanks and no control characters",
            );
        }
    }
    for name in spec.extra_env.keys() {
        if name.is_empty() || name.contains(['=', '\0']) {
            return refuse(
                "environment name",
                name,
                "a name is not empty and holds no '='",
            );
        }
    }
    if let Some(fraction) = spec.memory_fraction
        && !(fraction > 0.0 && fraction <= 1.0)
    {
        return refuse(
            "memory fraction",
            &fraction.to_string(),
            "it is above 0 and at most 1",
        );
    }
    if let Some(sizes) = &spec.graph_sizes
        && sizes.contains(&0)
    {
        return refuse("graph sizes", "0", "sizes are at least 1");
    }
    Ok(())
}

/// Places every process: replicas fill a machine before they take the next.
pub(super) fn places(spec: &LaunchSpec) -> Result<Vec<Place>, LaunchError> {
    let layout = &spec.layout;
    let (whole, nodes) = (spec.replica_gpus(), layout.nodes);
    let per_node = spec.gpus_per_node;
    let wrong = |text: String| Err(LaunchError::Placement(text));
    if layout.replicas == 0 || whole == 0 || nodes == 0 || layout.attention_dp == 0 {
        return wrong("every size of a layout is at least 1".to_owned());
    }
    let gpus = whole / nodes;
    if !whole.is_multiple_of(nodes) || gpus > per_node {
        return wrong(format!(
            "a replica of {whole} GPUs does not fit {nodes} nodes of {per_node} GPUs; it needs {}",
            whole.div_ceil(per_node.max(1))
        ));
    }
    if u64::from(layout.replicas) * u64::from(nodes) > 4096 {
        return wrong("more than 4096 processes; start them by other means".to_owned());
    }
    // Replicas of several nodes never share a machine.
    let slots = if nodes > 1 { 1 } else { per_node / gpus };
    let machine = |index: u32| match spec.machines.get(index as usize) {
        Some(name) => name.clone(),
        None => format!("node{index}"),
    };
    let mut out = Vec::new();
    for replica in 0..layout.replicas {
        let (home, slot) = if nodes > 1 {
            (replica * nodes, 0)
        } else {
            (replica / slots, replica % slots)
        };
        let above = |base: u16| {
            u16::try_from(slot)
                .ok()
                .and_then(|slot| slot.checked_mul(PORT_STEP))
                .and_then(|step| base.checked_add(step))
                .ok_or_else(|| {
                    LaunchError::Placement(format!(
                        "port {base} leaves no room for {} replicas {PORT_STEP} apart; use a \
                         lower one",
                        slots.min(layout.replicas)
                    ))
                })
        };
        for node in 0..nodes {
            out.push(Place {
                replica,
                node,
                machine: machine(home + node),
                first: machine(home),
                gpus,
                offset: (gpus < per_node).then_some(slot * gpus),
                port: above(spec.port)?,
                rendezvous_port: above(spec.rendezvous_port)?,
            });
        }
    }
    Ok(out)
}
