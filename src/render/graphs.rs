//! CUDA graphs: what is captured, what decode replays, what is wasted.

use super::{Page, Table, number};
use parplan_planner::deployment::Deployment;
use parplan_planner::graphs::{DecodeBatch, Landing, landing};
use parplan_planner::plan::GraphPlan;
use serde::Serialize;

/// Where a decode batch lands.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Landed {
    /// Requests of every attention-DP rank.
    pub requests_per_rank: u32,
    /// The graph that it replays, or why it runs eagerly.
    #[serde(flatten)]
    pub landing: Landing,
}

impl Landed {
    /// Where batches of 1, 2, 4 and so on requests a rank land, and the largest that may run, with
    /// `drafted` tokens drafted a step.
    pub fn all(deployment: &Deployment<'_>, drafted: u32) -> Vec<Landed> {
        // At most the limit, which is a `u32`.
        let most = deployment.capped_running() as u32;
        std::iter::successors(Some(1u32), |batch| batch.checked_mul(2))
            .take_while(|&batch| batch < most)
            .chain([most])
            .map(|batch| {
                let layout = deployment.choice.layout;
                let step = DecodeBatch {
                    most_requests: batch,
                    all_requests: batch.saturating_mul(layout.attention_dp),
                    query_length: drafted.saturating_add(1),
                    rank_in_prefill: false,
                };
                Landed {
                    requests_per_rank: batch,
                    landing: landing(deployment.setup.rules, &deployment.capture, &step),
                }
            })
            .collect()
    }
}

/// A row a batch: the graph that it replays and the rows that carry no token.
pub fn landings(page: &mut Page, landed: &[Landed]) {
    page.heading("Where decode batches land");
    let mut table = Table::new(&[
        ">requests a rank",
        ">replays",
        ">rows",
        ">padded rows",
        "runs eagerly",
    ]);
    for batch in landed {
        let mut row = vec![batch.requests_per_rank.to_string()];
        match batch.landing {
            Landing::Graph {
                size,
                rank_rows,
                waste_rows,
            } => row.extend([
                size.to_string(),
                rank_rows.to_string(),
                waste_rows.to_string(),
            ]),
            Landing::Eager { reason } => {
                row.extend(["-", "-", "-"].map(str::to_owned));
                row.push(reason.to_string());
            }
        }
        table.row(row);
    }
    page.table(&table);
}

/// The captured sizes and the bucket of the planned batch.
pub fn table(page: &mut Page, graphs: &GraphPlan) {
    page.heading("CUDA graphs");
    let mut table = Table::new(&["", ""]);
    table.row(["sizes count".to_owned(), graphs.unit.replace('_', " ")]);
    table.row(["to capture".to_owned(), sizes(&graphs.batch_sizes)]);
    table.row([
        "engine's own list".to_owned(),
        sizes(&graphs.engine_default),
    ]);
    table.row([
        "decode replays".to_owned(),
        match graphs.bucket {
            Some(bucket) => format!(
                "{bucket}, {} % of it padding",
                number::percent(graphs.waste)
            ),
            None => "none".to_owned(),
        },
    ]);
    if let Some(reason) = &graphs.eager_reason {
        table.row(["runs eagerly".to_owned(), reason.clone()]);
    }
    page.table(&table);
}

/// A list of sizes; the middle of a long one is counted, not printed.
fn sizes(list: &[u32]) -> String {
    const SHOWN: usize = 24;
    let words = |part: &[u32]| {
        let words: Vec<String> = part.iter().map(u32::to_string).collect();
        words.join(" ")
    };
    match list {
        [] => "none".to_owned(),
        list if list.len() <= SHOWN => words(list),
        [first @ .., last] => format!(
            "{} ... {last} ({} sizes)",
            words(&first[..SHOWN - 1]),
            list.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::sizes;

    #[test]
    fn long_lists_are_counted() {
        assert_eq!(sizes(&[]), "none");
        assert_eq!(sizes(&[1, 2, 4]), "1 2 4");
        let long: Vec<u32> = (1..=100).collect();
        assert!(sizes(&long).ends_with("... 100 (100 sizes)"));
    }
}
