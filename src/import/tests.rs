#![allow(clippy::unwrap_used)]

use super::*;
use parplan_profiles::calibration::{LaunchMode, Probe};

fn take(text: &str, hints: Hints) -> Result<Imported, Failure> {
    read(Path::new("x"), text, hints)
}

const TEXT: &str = "# nccl-tests version 2.17.6 nccl-headers=22803 nccl-library=22803
# Collective test starting: all_gather_perf
# nThread 1 nGpus 2 minBytes 1024 maxBytes 4194304 step: 4(factor) warmup iters: 5 iters: 50 agg iters: 1 validation: 1 graph: 5 unalign: 0
#
# Using devices
#  Rank  0 Group  0 Pid   6899 on       host device  0 [0000:04:00] NVIDIA H200
#  Rank  1 Group  0 Pid   6899 on       host device  1 [0000:05:00] NVIDIA H200
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)
        1024           256  bfloat16    none      -1     4.88    0.21    0.10       0     4.90    0.21    0.10       0
     4194304       1048576  bfloat16    none      -1    24.95  168.11   84.05       3    25.01  167.71   83.85       0
# Out of bounds values : 0 OK
";

#[test]
fn the_table_of_nccl_tests_becomes_samples() {
    let Imported::Samples {
        samples,
        device,
        nccl,
        notes,
        ..
    } = take(TEXT, Hints::default()).unwrap()
    else {
        panic!("samples");
    };
    assert_eq!(device.as_deref(), Some("NVIDIA H200"));
    assert_eq!(nccl.as_deref(), Some("2.28.3"));
    assert_eq!(samples.len(), 3);
    let first = &samples[0];
    assert_eq!((first.experiment.ranks, first.repeats[0]), (2, 4.88));
    assert_eq!(first.experiment.launch, LaunchMode::Graph);
    assert_eq!(first.implementation, "nccl 2.28.3");
    // A large buffer of NCCL's own memory is registered in a graph by NCCL itself.
    let Probe::Collective {
        registration,
        in_place,
        ..
    } = samples[2].experiment.probe
    else {
        panic!("a collective");
    };
    assert_eq!((registration, in_place), (BufferRegistration::Local, true));
    assert!(notes[0].contains("3 wrong values"), "{notes:?}");
}

#[test]
fn older_tables_need_to_be_told_their_collective() {
    let old = TEXT.replace("# Collective test starting: all_gather_perf\n", "");
    let e = take(&old, Hints::default()).unwrap_err().to_string();
    assert!(e.contains("--collective"), "{e}");
    let hints = Hints {
        collective: Some(CollectiveKind::AllReduce),
        registration: Some(BufferRegistration::Symmetric),
    };
    assert!(take(&old, hints).is_ok());
    let other = TEXT.replace("all_gather_perf", "sendrecv_perf");
    let e = take(&other, Hints::default()).unwrap_err().to_string();
    assert!(e.contains("sendrecv_perf") && e.contains("alltoall"), "{e}");
}

#[test]
fn the_json_of_nccl_tests_names_its_registration() {
    let text = r#"{"version":1,"start_time":"2026-11-22T01:00:00","args":["./build/reduce_scatter_perf","-R","2","-G","0"],
      "env":[],"nccl_version":22803,"config":{"nthreads":1,"ngpus":1,"graph":0,
      "devices":[{"rank":0,"device_info":"NVIDIA H200"},{"rank":1,"device_info":"NVIDIA H200"}]},
      "results":[{"size":1048576,"count":262144,"type":"bfloat16","redop":"sum","root":"-1",
        "out_of_place":{"time":17.8,"alg_bw":58.9,"bus_bw":29.4,"nwrong":0},
        "in_place":{"time":18.0,"alg_bw":58.2,"bus_bw":29.1,"nwrong":0},
        "actual_iterations":20,"experiment_name":"x"}]}"#;
    let Imported::Samples { samples, date, .. } = take(text, Hints::default()).unwrap() else {
        panic!("samples");
    };
    assert_eq!(samples.len(), 2);
    assert_eq!(date.as_deref(), Some("2026-11-22T01:00:00"));
    let Probe::Collective {
        collective,
        registration,
        ..
    } = samples[0].experiment.probe
    else {
        panic!("a collective");
    };
    assert_eq!(collective, CollectiveKind::ReduceScatter);
    assert_eq!(registration, BufferRegistration::Symmetric);
}

#[test]
fn serving_runs_of_three_tools_are_read() {
    let vllm = r#"{"date":"20261122-010203","endpoint_type":"vllm","backend":"vllm","label":null,
      "model_id":"Qwen/Qwen3-8B","tokenizer_id":"Qwen/Qwen3-8B","num_prompts":100,"request_rate":"inf",
      "burstiness":1.0,"max_concurrency":16,"duration":50.0,"completed":100,"failed":0,
      "total_input_tokens":102400,"total_output_tokens":12800,"request_throughput":2.0,
      "output_throughput":256.0,"mean_ttft_ms":80.5,"median_ttft_ms":75.0,"mean_tpot_ms":12.5}"#;
    let Imported::Runs(runs) = take(vllm, Hints::default()).unwrap() else {
        panic!("runs");
    };
    assert_eq!(runs[0].tool, "vllm bench serve");
    assert_eq!((runs[0].isl, runs[0].osl), (Some(1024.0), Some(128.0)));
    let line = r#"{"tag":null,"backend":"sglang","dataset_name":"random","max_concurrency":8,"random_input_len":512,
      "completed":40,"total_input_tokens":20480,"total_output_tokens":5120,"request_throughput":1.5,
      "output_throughput":190.0,"mean_ttft_ms":44.0,"mean_tpot_ms":9.0,"server_info":{"model_path":"m"}}"#
        .replace('\n', "");
    let Imported::Runs(runs) = take(&format!("{line}\n{line}\n"), Hints::default()).unwrap() else {
        panic!("runs");
    };
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[1].tool, "sglang bench_serving");
    assert_eq!(runs[1].model.as_deref(), Some("m"));
    let aiperf = r#"{"schema_version":"1.3","aiperf_version":"0.10.0","request_count":{"avg":10.0},
      "request_throughput":{"unit":"requests/sec","avg":0.82},
      "time_to_first_token":{"unit":"ms","avg":195.84},"inter_token_latency":{"unit":"ms","avg":35.2},
      "output_token_throughput":{"unit":"tokens/sec","avg":52.69},
      "input_sequence_length":{"avg":550.0},"output_sequence_length":{"avg":64.0},
      "input_config":{"endpoint":{"model_names":["Qwen/Qwen3-0.6B"],"type":"chat"},"loadgen":{"concurrency":2}}}"#;
    let Imported::Runs(runs) = take(aiperf, Hints::default()).unwrap() else {
        panic!("runs");
    };
    assert_eq!((runs[0].tpot_ms, runs[0].concurrency), (35.2, Some(2.0)));
    assert_eq!(runs[0].tool, "aiperf 0.10.0");
}

#[test]
fn what_is_nothing_known_or_broken_is_refused_in_words() {
    for (text, word) in [
        ("", "known kind"),
        ("hello", "known kind"),
        ("{\"a\": 1}", "known kind"),
        ("{\"mean_ttft_ms\": 3}", "mean_tpot_ms"),
        ("{\"mean_ttft_ms\": 0, \"mean_tpot_ms\": 1}", "above 0"),
        ("{\"mean_ttft_ms\": 3,\n", "line 1"),
        ("# nThread 1\n", "--collective"),
    ] {
        let e = take(text, Hints::default()).unwrap_err();
        assert_eq!(e.exit_code(), 2, "{text}");
        assert!(e.to_string().contains(word), "{text}: {e}");
    }
}
