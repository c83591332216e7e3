//! Collectives of NCCL and over peer memory, and metadata sync.

use crate::exec_support::{finished, run};
use crate::support::{on_gpus, result};

#[test]
#[ignore = "needs 2 GPUs"]
fn nccl_and_peer_memory_conform_with_every_registration_and_launch() {
    let result = result(on_gpus(
        "collectives --check --sizes 1K,48K,1M --repeats 3 --implementation backend,peer-one-shot,peer-two-shot",
    ));
    assert!(result["conformance_cases"].as_u64().unwrap() > 400);
    let samples = result["samples"].as_array().unwrap();
    assert!(samples.iter().all(|s| s["checked"] == true));
    for registration in ["none", "local", "symmetric"] {
        for launch in ["stream", "graph"] {
            let some = samples
                .iter()
                .any(|s| s["registration"] == registration && s["launch"] == launch);
            assert!(some, "{registration} {launch}");
        }
    }
    for name in ["parplan peer one-shot", "parplan peer two-shot"] {
        assert!(
            samples
                .iter()
                .any(|s| s["implementation"] == name && s["collective"] == "all_reduce"),
            "{name}: {}",
            result["notes"]
        );
    }
    // The kernels in the graph say whether symmetric memory was used: where it was asked
    // for and NCCL has it, and nowhere else.
    for s in samples.iter().filter(|s| {
        s["launch"] == "graph" && s["implementation"].as_str().unwrap().starts_with("nccl")
    }) {
        let symmetric = s["kernels"]
            .as_array()
            .unwrap()
            .iter()
            .any(|k| k.as_str().unwrap().contains("ncclSym"));
        let can = ["all_gather", "all_reduce", "reduce_scatter"]
            .contains(&s["collective"].as_str().unwrap());
        assert_eq!(symmetric, can && s["registration"] == "symmetric", "{s}");
        assert_eq!(s["silent_fallback"], false);
    }
}

/// From NCCL 2.29.2 on one registered side is enough for two collectives, and the kernels say so.
#[test]
#[ignore = "needs 2 GPUs"]
fn one_registered_side_is_enough_where_nccl_says_so() {
    for (side, collective) in [("recv", "all_gather"), ("send", "reduce_scatter")] {
        let result = result(on_gpus(&format!(
            "collectives --check --sizes 16K,1M,16M --repeats 2 --launch graph --registration symmetric \
             --collective {collective} --symmetric-sides {side}"
        )));
        // "NCCL 2.28.3"
        let library = result["library"].as_str().unwrap();
        let numbers: Vec<u32> = library[5..]
            .split('.')
            .map(|n| n.parse().unwrap())
            .collect();
        let enough = numbers >= vec![2, 29, 2];
        let samples = result["samples"].as_array().unwrap();
        for s in samples.iter().filter(|s| s["in_place"] == false) {
            assert_eq!(
                (&s["checked"], &s["silent_fallback"]),
                (&true.into(), &false.into()),
                "{s}"
            );
            let kernel = s["kernels"][0].as_str().unwrap();
            // The kernels for small messages need both sides in every version.
            let bulk = s["bytes"].as_u64().unwrap() >= 1 << 20;
            assert_eq!(kernel.contains("ncclSym"), enough && bulk, "{library}: {s}");
        }
    }
}

/// The kernels of more than two ranks, which share a GPU.
#[test]
#[ignore = "needs 1 GPU"]
fn ranks_on_one_gpu_sum_and_gather_over_peer_memory() {
    for (ranks, dtype) in [(3, "f32"), (5, "bf16"), (8, "bf16"), (8, "f32")] {
        let line = format!(
            "collectives --backend peer --ranks {ranks} --check --dtype {dtype} --sizes 192,7680,96K,3M \
             --iterations 2 --repeats 2 --graph-launches 2"
        );
        let result = result(run(&line.split_whitespace().collect::<Vec<_>>()));
        let samples = result["samples"].as_array().unwrap();
        assert!(samples.iter().all(|s| s["checked"] == true));
        for (collective, way) in [
            ("all_gather", "one-shot"),
            ("all_reduce", "one-shot"),
            ("all_reduce", "two-shot"),
        ] {
            let of_way = samples.iter().filter(|s| {
                s["collective"] == collective
                    && s["implementation"].as_str().unwrap().ends_with(way)
            });
            // Four sizes or those that fit, in place and not, from streams and graphs.
            assert!(
                of_way.count() >= 8,
                "{ranks} {dtype} {collective} {way}: {samples:?}"
            );
        }
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_disabled_window_is_noticed() {
    let mut command = on_gpus(
        "collectives --json --sizes 1K --repeats 1 --registration symmetric --collective all_gather --launch graph",
    );
    command.env("NCCL_WIN_ENABLE", "0");
    let end = finished(command);
    // Refused when it is registered, or seen in the kernels that ran; never silent.
    if end.code() == Some(0) {
        let result: serde_json::Value = serde_json::from_str(&end.stdout).unwrap();
        assert_eq!(result["samples"][0]["silent_fallback"], true, "{result}");
    } else {
        assert!(
            end.stderr
                .contains("symmetric memory is not available here"),
            "{}",
            end.stderr
        );
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn sync_gives_every_row_by_every_way() {
    let result = result(on_gpus("sync --rounds 30"));
    assert_eq!(result["samples"].as_array().unwrap().len(), 11, "{result}");
}
