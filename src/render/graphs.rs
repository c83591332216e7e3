//! CUDA graphs: what is captured, what decode replays, what is wasted.

use super::{Page, Table, number};
use parplan_planner::plan::GraphPlan;

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
