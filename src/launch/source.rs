//! What is to be started: from a plan file, or from a question that is answered first.

use crate::args::{Asked, LaunchArgs, QuestionArgs};
use crate::ask::{self, Ask, choice, space};
use crate::failure::Failure;
use crate::saved::SavedPlan;
use parplan_planner::deployment::Deployment;
use parplan_planner::estimate;
use parplan_planner::launch::{LaunchPlan, LaunchSpec, NodeCommand, launch};
use parplan_planner::question::{Goal, Objective};
use parplan_planner::search::{Effort, Pruning, recommend};
use parplan_profiles::engine::{Dialect, EngineProfile, EngineRules};
use parplan_profiles::{GpuProfile, Library};
use std::path::Path;

/// Everything that is known before anything runs.
#[derive(Debug)]
pub struct Start {
    /// The plan.
    pub plan: SavedPlan,
    /// The device that it is for.
    pub gpu: GpuProfile,
    /// The engine, all versions.
    pub engine: EngineProfile,
    /// The engine, in the version that starts.
    pub rules: EngineRules,
    /// What is told to it.
    pub spec: LaunchSpec,
    /// The commands of every machine.
    pub commands: LaunchPlan,
    /// Profiles, for the names of devices.
    pub library: Library,
}

impl Start {
    /// Resolves what was typed.
    ///
    /// # Errors
    /// A plan or a question that cannot be used; a command that the engine's version cannot spell.
    pub fn resolve(args: &LaunchArgs) -> Result<Start, Failure> {
        let asked = &args.asked;
        let library = ask::library(asked.profiles.as_deref())?;
        let plan = match (&args.plan, &asked.question) {
            (Some(path), _) => {
                let plan = SavedPlan::read(path)?;
                let model_path = args.start.model_path.as_deref();
                plan.verify(&library, model_path)
                    .map_err(|failure| failure.about(&path.display().to_string()))?;
                plan
            }
            (None, Some(question)) => answer(question)?,
            (None, None) => {
                return Err(Failure::unusable(
                    "there is neither a plan file nor a question; give PLAN.TOML, or --model and \
                     --gpu",
                ));
            }
        };
        let gpu = library.gpu(&plan.gpu)?;
        let (engine, rules) = engine(&library, &plan, asked)?;
        let spec = spec(args, &plan);
        let mut commands =
            launch(&rules, &spec).map_err(|error| Failure::unusable(error.to_string()))?;
        // Our own executor lies in no virtual environment.
        let venv = args.start.venv.as_ref();
        if let Some(venv) = venv.filter(|_| rules.dialect != Dialect::Builtin) {
            for node in &mut commands.nodes {
                inside(node, venv)?;
            }
        }
        if rules.dialect == Dialect::Builtin {
            own_program(&mut commands)?;
        }
        keeps_nvls_off(&commands)?;
        let machines = super::scripts::by_machine(&commands).len();
        if args.start.machines.len() > machines {
            return Err(Failure::unusable(format!(
                "--machines names {}, and the plan takes {machines}; name no more than those",
                args.start.machines.len()
            )));
        }
        Ok(Start {
            plan,
            gpu,
            engine,
            rules,
            spec,
            commands,
            library,
        })
    }
}

/// The engine that starts the plan: its own, or our executor, which takes any.
fn engine(
    library: &Library,
    plan: &SavedPlan,
    asked: &Asked,
) -> Result<(EngineProfile, EngineRules), Failure> {
    let (planned, version) = split(&plan.engine);
    let own = library.engine(planned)?;
    let (name, version) = match asked.engine.as_deref().map(split) {
        Some((name, typed)) => (
            name,
            typed.or((name == planned).then_some(version).flatten()),
        ),
        None => (planned, version),
    };
    let engine = library.engine(name)?;
    if engine.name != own.name && engine.dialect != Dialect::Builtin {
        return Err(Failure::unusable(format!(
            "--engine {name}: the plan is for {}, whose limits and memory are not those of {name}; \
             plan again with --engine {name}, or start it with builtin, which takes any plan",
            plan.engine
        )));
    }
    let rules = engine
        .resolve(version, false)
        .map_err(ask::plan_again_hint)?;
    Ok((engine, rules))
}

fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    }
}

/// The plan's spec, with what was typed over it.
fn spec(args: &LaunchArgs, plan: &SavedPlan) -> LaunchSpec {
    let typed = &args.start;
    let mut spec = plan.start.clone();
    if let Some(path) = &typed.model_path {
        spec.model.clone_from(path);
    }
    if typed.served_name.is_some() {
        spec.served_name.clone_from(&typed.served_name);
    }
    spec.host.clone_from(&typed.host);
    spec.port = typed.port;
    spec.trust_remote_code |= typed.trust_remote_code;
    if !typed.machines.is_empty() {
        spec.machines.clone_from(&typed.machines);
    }
    spec.extra_args.extend(args.extra.iter().cloned());
    spec.extra_env.extend(typed.env.iter().cloned());
    spec
}

/// The best answer to a question: sizes that are open are searched.
fn answer(question: &QuestionArgs) -> Result<SavedPlan, Failure> {
    let mut ask = Ask::resolve(question)?;
    let plan = if question.model.gpus.is_some() {
        let space = space::resolve(&mut ask, question)?;
        let goal = Goal {
            ttft_ms: ask.slo.ttft_ms,
            tpot_ms: ask.slo.tpot_ms,
            objective: Objective::Throughput,
        };
        let effort = Effort {
            top: 1,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            pruning: Pruning::On,
        };
        let answer = recommend(&ask.setup()?, &ask.traffic, &space, &goal, &effort);
        let Some(best) = answer.ranked.into_iter().next() else {
            let why = crate::render::ranking::nothing_runs(&ask, &space, &answer.rejected);
            return Err(Failure::failed(why));
        };
        best
    } else {
        let choice = choice::resolve(&mut ask, question)?;
        let setup = ask.setup()?;
        let deployment = Deployment::new(&setup, &ask.traffic, &ask.settings, choice);
        let (service, _) = deployment.serve_counted(&ask.traffic);
        estimate::from_parts(&deployment, &ask.traffic, &service)
    };
    ask.assumptions
        .of_plan(&ask.settings, &ask.rules.name, &plan);
    Ok(SavedPlan::of(&ask, &plan))
}

/// Takes a command's program from a virtual environment. Its folder of programs goes before PATH when
/// the engine starts ([`path_of`]), as its activation would have it.
fn inside(node: &mut NodeCommand, venv: &Path) -> Result<(), Failure> {
    let venv = std::path::absolute(venv)
        .map_err(|error| Failure::unusable(format!("--venv {}: {error}", venv.display())))?;
    let bin = venv.join("bin");
    let Some(program) = node.argv.first_mut() else {
        return Ok(());
    };
    let path = bin.join(&*program);
    if !path.exists() {
        return Err(Failure::unusable(format!(
            "--venv {}: it has no bin/{program}; install the engine there, or name its own folder",
            venv.display()
        )));
    }
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            Failure::unusable(format!("--venv {}: its name is not UTF-8", path.display()))
        })
    };
    *program = text(&path)?;
    node.env.insert("VIRTUAL_ENV".to_owned(), text(&venv)?);
    Ok(())
}

/// PATH of a command in a virtual environment; none for one in none.
pub fn path_of(node: &NodeCommand) -> Option<String> {
    let venv = node.env.get("VIRTUAL_ENV")?;
    let old = std::env::var("PATH").unwrap_or_default();
    Some(format!("{venv}/bin:{old}"))
}

/// Our executor is this program, wherever it lies.
fn own_program(commands: &mut LaunchPlan) -> Result<(), Failure> {
    let exe = std::env::current_exe()
        .ok()
        .and_then(|path| path.to_str().map(str::to_owned))
        .ok_or_else(|| Failure::failed("finding this program"))?;
    for node in &mut commands.nodes {
        if let Some(program) = node.argv.first_mut() {
            program.clone_from(&exe);
        }
    }
    Ok(())
}

/// Refuses a command that would turn NVLS on where the environment has it off.
fn keeps_nvls_off(commands: &LaunchPlan) -> Result<(), Failure> {
    const NAME: &str = "NCCL_NVLS_ENABLE";
    if !nvls_is_off() {
        return Ok(());
    }
    let set = commands.nodes.iter().find_map(|node| node.env.get(NAME));
    match set {
        Some(value) if value != "0" => Err(Failure::unusable(format!(
            "{NAME}={value} would override the {NAME}=0 of this environment, which is passed on as \
             it is; unset it here first if that is meant"
        ))),
        _ => Ok(()),
    }
}

/// Somebody turned NVLS off for everything that runs here.
pub fn nvls_is_off() -> bool {
    std::env::var_os("NCCL_NVLS_ENABLE").is_some_and(|value| value == "0")
}
