//! The memory map of a rank, as a table with bars.

use super::{Page, Table, number};
use parplan_planner::plan::MemoryMap;

/// Columns of the longest bar: the whole card.
const BAR: f64 = 32.0;

/// The map, largest unit of detail first, parts of nothing left out.
pub fn map(page: &mut Page, map: &MemoryMap) {
    page.heading("Memory of a rank");
    let mut table = Table::new(&["", ">GiB", ">%", "of the card"]);
    let share = |bytes: f64| {
        if map.total > 0.0 {
            bytes / map.total
        } else {
            0.0
        }
    };
    for (name, bytes) in map.parts() {
        if bytes == 0.0 {
            continue;
        }
        table.row([
            words(name).to_owned(),
            number::gib(bytes),
            number::percent(share(bytes)),
            bar(share(bytes)),
        ]);
    }
    table.rule();
    table.row([
        "card".to_owned(),
        number::gib(map.total),
        number::percent(share(map.total)),
    ]);
    page.table(&table);
}

/// A bar of hashes; something that exists but is small shows as a dot.
fn bar(share: f64) -> String {
    let length = (share.clamp(0.0, 1.0) * BAR).round() as usize;
    match length {
        0 if share > 0.0 => ".".to_owned(),
        length => "#".repeat(length),
    }
}

/// A part of the map in words.
pub fn words(part: &str) -> &str {
    match part {
        "kv_cache" => "KV cache",
        "gathered_buffers" => "gathered buffers",
        "cuda_graphs" => "CUDA graphs",
        "symmetric_pool" => "symmetric pool",
        "nccl" => "NCCL",
        "context" => "CUDA context",
        "request_tables" => "request tables",
        "headroom" => "left free",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Style;

    #[test]
    fn bars_are_proportional_and_small_parts_stay_visible() {
        assert_eq!(bar(0.5).len(), 16);
        assert_eq!(bar(1.7).len(), 32);
        assert_eq!(bar(0.001), ".");
        assert_eq!(bar(0.0), "");
    }

    #[test]
    fn a_map_of_nothing_is_not_a_panic() {
        let mut page = Page::new(Style::PLAIN);
        map(&mut page, &MemoryMap::empty());
        assert!(page.finish().contains("card"));
    }
}
