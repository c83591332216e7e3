//! What the planning thread computes: a question resolved, its table, one row laid open, two rows
//! held against each other. No thread and no screen in here.

use crate::args::Typed;
use crate::ask::{Ask, space};
use crate::failure::Failure;
use crate::render::graphs::Landed;
use crate::render::ranking;
use crate::stats::{Stats, Stopwatch};
use parplan_planner::compare::{self, Comparison, Metric, Side};
use parplan_planner::deployment::Deployment;
use parplan_planner::estimate;
use parplan_planner::gather::{self, GatherReport};
use parplan_planner::kv_split::{self, DcpWidth, KvInUse};
use parplan_planner::plan::{Breakdown, Choice, LayerVolume, Plan};
use parplan_planner::question::{Goal, Objective, Space};
use parplan_planner::search::{self, Effort, Pruning, Recommendation};
use parplan_planner::sweep::{self, Curve};
use std::sync::Arc;

/// Rows of the table: every layout of any question that people ask.
const MOST_ROWS: usize = 2000;

/// A question that can be answered.
#[derive(Debug)]
pub struct Resolved {
    /// As it was typed.
    pub typed: Typed,
    /// Profiles, traffic, settings.
    pub ask: Ask,
    /// The configurations to compare.
    pub space: Space,
    /// Limits and aim.
    pub goal: Goal,
}

impl Resolved {
    /// Resolves what was typed.
    ///
    /// # Errors
    /// The first thing that cannot be used.
    pub fn new(typed: &Typed) -> Result<Resolved, Failure> {
        let args = typed.read()?;
        let mut ask = Ask::resolve(&args.question)?;
        let space = space::resolve(&mut ask, &args.question)?;
        let goal = space::goal(&ask, &args.ranking);
        ask.setup()?;
        Ok(Resolved {
            typed: typed.clone(),
            ask,
            space,
            goal,
        })
    }

    /// A configuration of an earlier question under this one.
    ///
    /// # Errors
    /// Why it is none of this question, or cannot run.
    pub fn row(&self, choice: &Choice) -> Result<Plan, String> {
        let setup = self.ask.setup().map_err(|failure| failure.to_string())?;
        let traffic = &self.ask.traffic;
        let Some(choice) = self.space.nearest(choice, traffic) else {
            return Err("this layout is none of the changed question".to_owned());
        };
        match search::refusal(&setup, traffic, &self.space, choice) {
            Some(reason) => Err(reason),
            None => Ok(estimate::plan(
                &setup,
                traffic,
                &self.space.settings,
                choice,
            )),
        }
    }

    /// Every configuration, ranked; none when `keep_going` said no.
    ///
    /// # Errors
    /// A GPU profile without a figure that prices need.
    pub fn table(
        self: &Arc<Self>,
        threads: usize,
        keep_going: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Table>, Failure> {
        let watch = Stopwatch::start();
        let effort = Effort {
            top: MOST_ROWS,
            threads,
            pruning: Pruning::On,
        };
        let setup = self.ask.setup()?;
        let answer = search::recommend_while(
            &setup,
            &self.ask.traffic,
            &self.space,
            &self.goal,
            &effort,
            keep_going,
        );
        Ok(answer.map(|answer| {
            let stats = watch.stop(Some(answer.points));
            Table::new(Arc::clone(self), answer, stats)
        }))
    }

    /// Some configurations over numbers of clients.
    ///
    /// # Errors
    /// A GPU profile without a figure that prices need.
    pub fn curves(&self, choices: &[Choice], threads: usize) -> Result<Vec<Curve>, Failure> {
        let setup = self.ask.setup()?;
        let traffic = &self.ask.traffic;
        let settings = &self.space.settings;
        let curves = sweep::sweep(&setup, traffic, settings, choices, threads, &|| true);
        Ok(curves.unwrap_or_default())
    }

    /// One configuration laid open.
    ///
    /// # Errors
    /// A GPU profile without a figure that prices need.
    pub fn detail(&self, choice: Choice, rival: Option<Choice>) -> Result<Detail, Failure> {
        let setup = self.ask.setup()?;
        let traffic = &self.ask.traffic;
        let settings = &self.space.settings;
        let deployment = Deployment::new(&setup, traffic, settings, choice);
        let service = deployment.serve(traffic);
        let side = |choice| Side {
            setup: &setup,
            choice,
            settings,
        };
        let flip = rival.map(|rival| {
            compare::compare(
                &side(choice),
                &side(rival),
                traffic,
                metric(self.goal.objective),
            )
        });
        Ok(Detail {
            plan: estimate::from_parts(&deployment, traffic, &service),
            volumes: estimate::volumes(&deployment, traffic, &service),
            gather: gather::report(&deployment, traffic, &service),
            steps: estimate::breakdowns(&deployment, traffic, &service).into(),
            landings: Landed::all(&deployment, choice.speculative_steps),
            in_use: kv_split::in_use(&deployment, traffic, &service),
            widths: kv_split::by_dcp(&setup, traffic, &self.space, choice),
            flip,
        })
    }
}

/// What decides between two rows: what the table is ranked by.
fn metric(objective: Objective) -> Metric {
    match objective {
        Objective::Throughput | Objective::Pareto => Metric::Throughput,
        Objective::Latency => Metric::Tpot,
    }
}

/// The ranked answer.
#[derive(Debug)]
pub struct Table {
    /// The question that it answers.
    pub resolved: Arc<Resolved>,
    /// The answer.
    pub answer: Recommendation,
    /// Why nothing can run, where nothing can.
    pub nothing: Option<String>,
    /// What was computed, and how long it took.
    pub stats: Stats,
}

impl Table {
    /// An answer with what follows from it.
    pub fn new(resolved: Arc<Resolved>, answer: Recommendation, stats: Stats) -> Table {
        let nothing = answer
            .ranked
            .is_empty()
            .then(|| ranking::nothing_runs(&resolved.ask, &resolved.space, &answer.rejected));
        Table {
            resolved,
            answer,
            nothing,
            stats,
        }
    }

    /// The row of a choice, or else of its layout.
    pub fn position(&self, choice: &Choice) -> Option<usize> {
        let rows = &self.answer.ranked;
        rows.iter()
            .position(|plan| plan.choice == *choice)
            .or_else(|| {
                rows.iter()
                    .position(|plan| plan.choice.layout == choice.layout)
            })
    }
}

/// Every row over numbers of clients.
#[derive(Debug)]
pub struct Sweep {
    /// The curves, in the order of the rows.
    pub curves: Vec<Curve>,
    /// Points that no other beats in both throughput and speed, fastest first: curve and place.
    pub front: Vec<(usize, usize)>,
}

impl Sweep {
    /// Curves with their front.
    pub fn new(curves: Vec<Curve>) -> Sweep {
        Sweep {
            front: sweep::front(&curves),
            curves,
        }
    }

    /// Whether a row is best at some number of clients.
    pub fn leads(&self, row: usize) -> bool {
        self.front.iter().any(|(curve, _)| *curve == row)
    }
}

/// Tokens a second that one user sees, and throughput of a GPU.
pub fn place(plan: &Plan) -> (f64, f64) {
    let p = &plan.predicted;
    // A request of one output token gets it after its TTFT.
    let token_ms = p.tpot_ms.unwrap_or(p.ttft_ms).value;
    (1e3 / token_ms, p.output_tokens_per_s_per_gpu.value)
}

/// One configuration laid open.
#[derive(Debug)]
pub struct Detail {
    /// The configuration.
    pub plan: Plan,
    /// Collectives of each kind of layer.
    pub volumes: Vec<LayerVolume>,
    /// The gather of attention-DP ranks; none without them.
    pub gather: Option<GatherReport>,
    /// A decode step and a prefill pass.
    pub steps: Vec<Breakdown>,
    /// Where decode batches land among the captured graphs.
    pub landings: Vec<Landed>,
    /// How full each attention-DP rank is.
    pub in_use: Vec<KvInUse>,
    /// The same configuration at other DCP widths.
    pub widths: Vec<DcpWidth>,
    /// Against its rival: what would flip the choice.
    pub flip: Option<Comparison>,
}

/// A configuration that was put aside, with its question.
#[derive(Debug)]
pub struct Pin {
    /// The question.
    pub resolved: Arc<Resolved>,
    /// The configuration and its figures.
    pub plan: Plan,
}

/// Two pinned configurations.
#[derive(Debug)]
pub struct Diff {
    /// The first.
    pub a: Arc<Pin>,
    /// The second.
    pub b: Arc<Pin>,
    /// Options that differ: flag, first, second.
    pub options: Vec<(String, String, String)>,
    /// The verdict, or why there is none.
    pub verdict: Result<Box<Comparison>, String>,
}

impl Diff {
    /// Holds two configurations against each other.
    ///
    /// # Errors
    /// A GPU profile without a figure that prices need.
    pub fn new(a: &Arc<Pin>, b: &Arc<Pin>) -> Result<Diff, Failure> {
        let (left, right) = (&a.resolved, &b.resolved);
        let verdict = if left.ask.traffic != right.ask.traffic {
            Err("the two were pinned under different traffic: no verdict".to_owned())
        } else {
            let (setup_a, setup_b) = (left.ask.setup()?, right.ask.setup()?);
            let (first, second) = (
                Side {
                    setup: &setup_a,
                    choice: a.plan.choice,
                    settings: &left.space.settings,
                },
                Side {
                    setup: &setup_b,
                    choice: b.plan.choice,
                    settings: &right.space.settings,
                },
            );
            Ok(Box::new(compare::compare(
                &first,
                &second,
                &left.ask.traffic,
                metric(left.goal.objective),
            )))
        };
        Ok(Diff {
            options: differing(&left.typed, &right.typed),
            a: Arc::clone(a),
            b: Arc::clone(b),
            verdict,
        })
    }
}

/// Options that two questions do not share.
fn differing(a: &Typed, b: &Typed) -> Vec<(String, String, String)> {
    let text = |typed: &Typed, flag: &str| {
        typed
            .get(flag)
            .map_or_else(String::new, |value| value.to_string_lossy().into_owned())
    };
    let mut flags: Vec<&String> = a
        .options()
        .iter()
        .chain(b.options())
        .map(|(f, _)| f)
        .collect();
    flags.sort_unstable();
    flags.dedup();
    flags
        .into_iter()
        .map(|flag| (flag.clone(), text(a, flag), text(b, flag)))
        .filter(|(_, a, b)| a != b)
        .collect()
}
