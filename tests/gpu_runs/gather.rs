//! DP gather and combine: every row is compared in the binary.

use crate::support::{on_gpus, ranks, result};

/// Requests of each rank: `first`, then `others` by turns.
fn requests(ranks: usize, first: usize, others: &[usize]) -> String {
    let counts: Vec<String> = std::iter::once(first)
        .chain(others.iter().copied().cycle().take(ranks - 1))
        .map(|n| n.to_string())
        .collect();
    format!("--requests {} ", counts.join(","))
}

#[test]
#[ignore = "needs 2 GPUs"]
fn gather_is_exact_in_every_mode_eager_and_replayed() {
    let n = ranks();
    let steps = [
        requests(n, 33, &[5, 0, 7]),
        requests(n, 0, &[7, 0]),
        requests(n, 0, &[0]),
        requests(n, 2, &[9]),
    ];
    let result = result(on_gpus(&format!(
        "gather --hidden 512 --repeats 2 --speculative-steps 1 {}",
        steps.concat()
    )));
    assert_eq!(result["skipped"], 1);
    let samples = result["samples"].as_array().unwrap();
    for mode in ["max_len", "sum_len", "all_gather_v"] {
        for launch in ["stream", "graph"] {
            assert!(
                samples
                    .iter()
                    .any(|s| s["mode"] == mode && s["launch"] == launch && s["checked"] == true),
                "{mode} {launch}"
            );
        }
    }
    let kept = |what: &str| -> Vec<u64> {
        result["memory"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|m| m["what"] == what)
            .map(|m| m["kept_bytes"].as_u64().unwrap())
            .collect()
    };
    assert!(kept("eager").iter().all(|b| *b == 0));
    assert!(kept("graph").iter().all(|b| *b > 0));
    // One sum_len graph of 66 rows a rank served the three steps that have work.
    let replays = result["replays"].as_array().unwrap();
    assert_eq!(replays.len(), 3);
    assert!(
        replays
            .iter()
            .all(|r| r["launch"] == "graph" && r["bucket"] == 66 && r["checked"] == true),
        "{replays:?}"
    );
}

#[test]
#[ignore = "needs 2 GPUs"]
fn gather_is_exact_with_attention_tp() {
    let n = ranks();
    let mut dp = 1;
    while dp < n {
        let steps = [requests(dp, 33, &[0, 6]), requests(dp, 1, &[5])];
        let result = result(on_gpus(&format!(
            "gather --attn-dp {dp} --partial --hidden 512 --repeats 2 {}",
            steps.concat()
        )));
        assert!(result["samples"].as_array().unwrap().len() >= 8);
        assert_eq!(result["replays"].as_array().unwrap().len(), 2);
        dp *= 2;
    }
}
