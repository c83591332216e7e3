//! Files made from an answer: the plan, the launch script, the JSON, the plot.

use super::planning::{Sweep, Table};
use super::svg;
use crate::ask::Ask;
use crate::failure::Failure;
use crate::files::write_whole;
use crate::render::{launch, ranking};
use crate::{json, launching, saved};
use parplan_planner::plan::Plan;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a file holds, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The plan of one configuration, TOML.
    Plan,
    /// A shell script that starts one configuration.
    Script,
    /// The whole answer.
    Json,
    /// The plot of all configurations.
    Svg,
}

/// A file to write.
#[derive(Debug, Clone)]
pub struct Order {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub kind: Kind,
    /// From which answer.
    pub table: Arc<Table>,
    /// Of which row.
    pub row: usize,
    /// A file that is there may be replaced.
    pub replace: bool,
}

impl Kind {
    /// What a file of this name holds.
    ///
    /// # Errors
    /// Another extension than the four.
    pub fn of(path: &Path) -> Result<Kind, Failure> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("toml") => Ok(Kind::Plan),
            Some("sh") => Ok(Kind::Script),
            Some("json") => Ok(Kind::Json),
            Some("svg") => Ok(Kind::Svg),
            _ => Err(Failure::unusable(format!(
                "{}: the end of the name says what is written: .toml the plan, .sh the launch \
                 script, .json the answer, .svg the plot",
                path.display()
            ))),
        }
    }
}

impl Order {
    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// A row that there is not, a plan that has no launch command, a file that cannot be written.
    pub fn write(&self) -> Result<(), Failure> {
        let text = self.text()?;
        write_whole(&self.path, &text, self.replace)
    }

    fn text(&self) -> Result<String, Failure> {
        let table = &self.table;
        let ask = &table.resolved.ask;
        let Some(plan) = table.answer.ranked.get(self.row) else {
            return Err(Failure::failed(match &table.nothing {
                Some(nothing) => nothing.clone(),
                None => format!("the answer has no row {}", self.row + 1),
            }));
        };
        match self.kind {
            Kind::Plan => saved::plan_file(&with_assumptions(table, plan), plan),
            Kind::Script => launching::commands(ask, plan)
                .map(|commands| launch::script(&commands))
                .map_err(|error| Failure::failed(format!("there is no launch command: {error}"))),
            Kind::Json => {
                let best = table.answer.ranked.first().unwrap_or(plan);
                let ask = with_assumptions(table, best);
                json::print(&json::Answer::of_recommendation(
                    &ask,
                    &table.answer,
                    None,
                    &table.stats,
                ))
            }
            Kind::Svg => {
                let rows: Vec<_> = table.answer.ranked.iter().map(|p| p.choice).collect();
                let curves = table.resolved.curves(&rows, super::threads())?;
                Ok(svg::plot(table, &Sweep::new(curves), self.row))
            }
        }
    }
}

/// The question with what a configuration adds to its assumptions.
pub fn with_assumptions(table: &Table, plan: &Plan) -> Ask {
    let resolved = &table.resolved;
    let mut ask = resolved.ask.clone();
    ask.assumptions
        .of_plan(&resolved.ask.settings, &resolved.ask.rules.name, plan);
    if let Some(unused) = ranking::unused(&resolved.space, plan) {
        ask.assumptions.warn(unused);
    }
    ask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_name_says_what_is_written() {
        for (name, kind) in [
            ("plan.toml", Kind::Plan),
            ("a/b.c.sh", Kind::Script),
            ("x.json", Kind::Json),
            ("front.svg", Kind::Svg),
        ] {
            assert_eq!(Kind::of(Path::new(name)), Ok(kind));
        }
        for name in ["", "plan", "plan.TOML", ".svg", "x.png"] {
            let refused = Kind::of(Path::new(name)).unwrap_err();
            assert_eq!(refused.exit_code(), 2);
            assert!(refused.to_string().contains(".svg the plot"));
        }
    }
}
