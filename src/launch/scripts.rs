//! What starts a plan on machines that parplan does not run on: the engines' own commands, handed to
//! a shell, to Slurm, to Kubernetes' LeaderWorkerSet, or to Ray. Every value is quoted for whoever
//! reads the file.

use super::source::Start;
use crate::args::ScriptKind;
use crate::failure::Failure;
use crate::render::launch::{self as render, quoted};
use parplan_planner::launch::{LaunchPlan, LaunchSpec, NodeCommand, launch};
use parplan_profiles::engine::Dialect;
use std::fmt::Write as _;

/// Stands for the address of a machine until the file is run; no address looks like it.
const HOST: &str = "PARPLAN_HOST_";

/// The text of a script.
///
/// # Errors
/// A plan that the kind cannot start, with one that can.
pub fn script(start: &Start, kind: ScriptKind) -> Result<String, Failure> {
    if start.rules.dialect == Dialect::Builtin {
        return Err(Failure::unusable(
            "the builtin executor is started by `parplan launch` on its own machine",
        ));
    }
    if !start.rules.verified {
        return Err(Failure::unusable(format!(
            "commands of {} are printed only: nobody ran them through its parser",
            start.rules.name
        )));
    }
    match kind {
        ScriptKind::Sh => Ok(render::script(&start.commands)),
        ScriptKind::Slurm => Ok(slurm(start, &spelled(start, placeholders(start))?)),
        ScriptKind::Kubernetes => kubernetes(start),
        ScriptKind::Ray => ray(start),
    }
}

fn spelled(start: &Start, spec: LaunchSpec) -> Result<LaunchPlan, Failure> {
    launch(&start.rules, &spec).map_err(|error| Failure::unusable(error.to_string()))
}

/// The spec with a placeholder for each machine.
fn placeholders(start: &Start) -> LaunchSpec {
    let layout = start.spec.layout;
    let most = layout.replicas.saturating_mul(layout.nodes).min(4096);
    LaunchSpec {
        machines: (0..most).map(|index| format!("{HOST}{index}_")).collect(),
        // Other machines must reach it.
        host: beyond_loopback(&start.spec.host),
        ..start.spec.clone()
    }
}

fn beyond_loopback(host: &str) -> String {
    match host {
        "127.0.0.1" | "localhost" => "0.0.0.0".to_owned(),
        "::1" => "::".to_owned(),
        host => host.to_owned(),
    }
}

/// The commands by machine, in order.
pub fn by_machine(plan: &LaunchPlan) -> Vec<(&str, Vec<&NodeCommand>)> {
    let mut out: Vec<(&str, Vec<&NodeCommand>)> = Vec::new();
    for node in &plan.nodes {
        match out.iter_mut().find(|(machine, _)| *machine == node.machine) {
            Some((_, nodes)) => nodes.push(node),
            None => out.push((&node.machine, vec![node])),
        }
    }
    out
}

/// A command as a shell reads it, with what `word` makes of each of its words.
fn line(node: &NodeCommand, word: impl Fn(&str) -> String) -> String {
    let mut words = vec!["env".to_owned()];
    if node.env.is_empty() {
        words.clear();
    }
    // env takes everything with an equals sign before the program as a variable.
    words.extend(
        node.env
            .iter()
            .map(|(name, value)| word(&format!("{name}={value}"))),
    );
    words.extend(node.argv.iter().map(|argument| word(argument)));
    words.join(" ")
}

/// A word for a shell in which placeholders are variables.
fn with_hosts(word: &str) -> String {
    let mut out = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once(HOST) {
        let Some((index, tail)) = after.split_once('_') else {
            break;
        };
        if !before.is_empty() {
            out.push_str(&quoted(before));
        }
        let _ = write!(out, "\"${{{HOST}{index}}}\"");
        rest = tail;
    }
    if !rest.is_empty() || out.is_empty() {
        out.push_str(&quoted(rest));
    }
    out
}

fn comment(start: &Start, how: &str) -> String {
    // A name could end the comment's line.
    let name: String = start
        .plan
        .model
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    format!(
        "# {name} on {} {}, {} {}. Written by parplan {}.\n# {how}\n",
        start.spec.layout.gpus(),
        start.gpu.name,
        start.rules.name,
        start.rules.version,
        env!("CARGO_PKG_VERSION")
    )
}

/// Writes the files of commands before they run.
fn files(out: &mut String, nodes: &[&NodeCommand]) {
    for (name, content) in nodes.iter().flat_map(|node| &node.files) {
        let _ = writeln!(out, "printf %s {} > {}", quoted(content), quoted(name));
    }
}

fn slurm(start: &Start, plan: &LaunchPlan) -> String {
    let machines = by_machine(plan);
    let gpus = machines
        .iter()
        .map(|(_, nodes)| nodes.iter().map(|node| node.gpus).sum::<u32>())
        .max()
        .unwrap_or(0);
    let mut out = format!(
        "#!/bin/bash\n#SBATCH --job-name=parplan\n#SBATCH --nodes={}\n#SBATCH --ntasks-per-node=1\n\
         #SBATCH --gpus-per-node={gpus}\n#SBATCH --exclusive\n{}set -euo pipefail\n\
         mapfile -t hosts < <(scontrol show hostnames \"$SLURM_JOB_NODELIST\")\n",
        machines.len(),
        comment(
            start,
            "Submit it with sbatch; add your partition and account. It ends when one command does."
        )
    );
    for index in 0..machines.len() {
        let _ = writeln!(out, "{HOST}{index}=\"${{hosts[{index}]}}\"");
    }
    for (index, (_, nodes)) in machines.iter().enumerate() {
        files(&mut out, nodes);
        for node in nodes {
            let _ = writeln!(
                out,
                "srun --nodes=1 --ntasks=1 --overlap --gpus={gpus} \
                 --nodelist=\"${{{HOST}{index}}}\" {} &",
                line(node, with_hosts)
            );
        }
    }
    out.push_str(
        "code=0\nwait -n || code=$?\nkill $(jobs -p) 2>/dev/null || true\nwait || true\nexit $code\n",
    );
    out
}

fn kubernetes(start: &Start) -> Result<String, Failure> {
    let layout = start.spec.layout;
    // Every replica is a group of pods with GPUs of its own.
    let one = LaunchSpec {
        layout: parplan_planner::Layout {
            replicas: 1,
            ..layout
        },
        gpus_per_node: (layout.tp * layout.pp).div_ceil(layout.nodes.max(1)),
        machines: vec!["$(LWS_LEADER_ADDRESS)".to_owned()],
        host: beyond_loopback(&start.spec.host),
        ..start.spec.clone()
    };
    let plan = spelled(start, one)?;
    let Some((leader, workers)) = plan.nodes.split_first() else {
        return Err(Failure::failed("the plan has no command"));
    };
    let image = match start.rules.dialect {
        Dialect::Sglang => format!("lmsysorg/sglang:v{}", start.rules.version),
        _ => format!("vllm/vllm-openai:v{}", start.rules.version),
    };
    let mut out = comment(
        start,
        "kubectl apply -f FILE; needs LeaderWorkerSet (sigs.k8s.io/lws). Mount the model where the \
         command looks for it.",
    );
    let _ = write!(
        out,
        "apiVersion: leaderworkerset.x-k8s.io/v1\nkind: LeaderWorkerSet\nmetadata:\n  name: parplan\n\
         spec:\n  replicas: {}\n  leaderWorkerTemplate:\n    size: {}\n    restartPolicy: \
         RecreateGroupOnPodRestart\n",
        layout.replicas, layout.nodes
    );
    let port = leader.port.unwrap_or(start.spec.port);
    out.push_str("    leaderTemplate:\n");
    pod(&mut out, &image, &leader_words(leader), leader, Some(port));
    // Without a worker the set still wants a template for one.
    out.push_str("    workerTemplate:\n");
    match workers {
        [] => pod(&mut out, &image, &leader_words(leader), leader, None),
        [worker, ..] => pod(&mut out, &image, &worker_words(workers)?, worker, None),
    }
    let _ = write!(
        out,
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: parplan\nspec:\n  selector:\n    \
         leaderworkerset.sigs.k8s.io/name: parplan\n    role: leader\n  ports:\n  - port: {port}\n"
    );
    Ok(out)
}

/// A word for Kubernetes, which puts variables in place of `$(NAME)`: ours are meant, others not.
fn literal(word: &str) -> String {
    const LEADER: &str = "$(LWS_LEADER_ADDRESS)";
    word.split(LEADER)
        .map(|part| part.replace("$(", "$$("))
        .collect::<Vec<_>>()
        .join(LEADER)
}

fn leader_words(node: &NodeCommand) -> Vec<String> {
    node.argv.iter().map(|word| literal(word)).collect()
}

/// The command of every worker. Pods of one template differ by their index alone, so what differs
/// between nodes must be a multiple of it.
fn worker_words(workers: &[NodeCommand]) -> Result<Vec<String>, Failure> {
    let (Some(first), second) = (workers.first(), workers.get(1)) else {
        return Ok(Vec::new());
    };
    let mut words = Vec::new();
    let mut computed = false;
    for (at, word) in first.argv.iter().enumerate() {
        let other = second.and_then(|node| node.argv.get(at)).unwrap_or(word);
        if word == other {
            words.push(literal(word));
            continue;
        }
        let step = word.parse::<u32>().ok().filter(|step| {
            workers.iter().all(|node| {
                node.argv.get(at).map(String::as_str) == Some(&(step * node.node).to_string())
            })
        });
        match step {
            Some(1) => words.push("$(LWS_WORKER_INDEX)".to_owned()),
            Some(step) => {
                computed = true;
                words.push(format!("@{step}@"));
            }
            None => {
                return Err(Failure::failed(format!(
                    "workers differ in {word:?} and {other:?}, which no pod template can say; \
                     --write slurm=FILE can"
                )));
            }
        }
    }
    if !computed {
        return Ok(words);
    }
    // A shell multiplies; the other words go by it as they are.
    let mut script = "exec".to_owned();
    let mut arguments = Vec::new();
    for word in words {
        match word
            .strip_prefix('@')
            .and_then(|word| word.strip_suffix('@'))
        {
            Some(step) if step.parse::<u32>().is_ok() => {
                let _ = write!(script, " $((LWS_WORKER_INDEX * {step}))");
            }
            _ => {
                let _ = write!(script, " \"${{{}}}\"", arguments.len());
                arguments.push(word);
            }
        }
    }
    // `$((` is no variable of Kubernetes' once it is escaped.
    let script = script.replace("$(", "$$(");
    let mut all = vec!["sh".to_owned(), "-c".to_owned(), script];
    all.extend(arguments);
    Ok(all)
}

fn pod(out: &mut String, image: &str, words: &[String], node: &NodeCommand, port: Option<u16>) {
    if port.is_some() {
        out.push_str("      metadata:\n        labels:\n          role: leader\n");
    }
    let _ = write!(
        out,
        "      spec:\n        containers:\n        - name: engine\n          image: {}\n          \
         command:\n",
        text(image)
    );
    for word in words {
        let _ = writeln!(out, "          - {}", text(word));
    }
    if !node.env.is_empty() {
        out.push_str("          env:\n");
        for (name, value) in &node.env {
            let value = value.replace("$(", "$$(");
            let _ = writeln!(
                out,
                "          - name: {}\n            value: {}",
                text(name),
                text(&value)
            );
        }
    }
    if let Some(port) = port {
        let _ = writeln!(
            out,
            "          ports:\n          - containerPort: {port}\n          readinessProbe:\n            \
             httpGet: {{ path: /health, port: {port} }}\n            periodSeconds: 10\n            \
             failureThreshold: 180"
        );
    }
    let _ = writeln!(
        out,
        "          resources:\n            limits:\n              nvidia.com/gpu: \"{}\"\n          \
         volumeMounts:\n          - name: shm\n            mountPath: /dev/shm\n        volumes:\n        \
         - name: shm\n          emptyDir: {{ medium: Memory }}",
        node.gpus
    );
}

/// A YAML string: JSON's are.
fn text(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

fn ray(start: &Start) -> Result<String, Failure> {
    if start.rules.dialect != Dialect::Vllm {
        return Err(Failure::unusable(format!(
            "{} starts over several machines by itself, without Ray; --write sh=FILE or slurm=FILE \
             has its commands",
            start.rules.name
        )));
    }
    let layout = start.spec.layout;
    if layout.replicas > 1 {
        return Err(Failure::unusable(format!(
            "a Ray cluster holds one replica, and the plan has {}; start a cluster for each, or \
             --write kubernetes=FILE",
            layout.replicas
        )));
    }
    let gpus = layout.tp * layout.pp;
    let mut extra = vec![
        "--distributed-executor-backend".to_owned(),
        "ray".to_owned(),
    ];
    if layout.attention_dp > 1 {
        extra.extend(["--data-parallel-backend", "ray"].map(str::to_owned));
        let local = layout.attention_dp / layout.nodes.max(1);
        extra.extend([
            "--data-parallel-size-local".to_owned(),
            local.max(1).to_string(),
        ]);
    }
    extra.extend(start.spec.extra_args.iter().cloned());
    // Ray spreads the ranks; to vLLM the cluster is one machine.
    let spec = LaunchSpec {
        layout: parplan_planner::Layout { nodes: 1, ..layout },
        gpus_per_node: gpus,
        extra_args: extra,
        ..start.spec.clone()
    };
    let plan = spelled(start, spec)?;
    let Some(node) = plan.nodes.first() else {
        return Err(Failure::failed("the plan has no command"));
    };
    let each = gpus / layout.nodes.max(1);
    let port = start.spec.rendezvous_port;
    Ok(format!(
        "#!/bin/sh\n{}set -eu\ncase \"${{1:-}}\" in\nhead)\n  ray start --head --port={port} \
         --num-gpus={each}\n  trap 'ray stop' INT TERM EXIT\n  until [ \"$(ray list nodes --filter \
         state=ALIVE --format json | grep -c '\"node_id\"')\" -ge {} ]; do sleep 2; done\n  {}\n  \
         ;;\nworker)\n  exec ray start --block --address=\"${{2:?the address of the head}}:{port}\" \
         --num-gpus={each}\n  ;;\n*) echo \"$0: head, or worker ADDRESS\" >&2; exit 2 ;;\nesac\n",
        comment(
            start,
            "Run `sh FILE head` on the first machine and `sh FILE worker ADDRESS` on the others."
        ),
        layout.nodes,
        line(node, quoted)
    ))
}
