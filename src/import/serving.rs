//! Serving benchmarks: SGLang's bench_serving, `vllm bench serve`, AIPerf.

use parplan_profiles::observed::ObservedRun;
use serde_json::Value;

/// The run of a JSON object; none where it is of no such tool.
///
/// # Errors
/// A result of a known tool that lacks a figure, or has one that cannot be.
pub(super) fn run(file: &str, value: &Value) -> Result<Option<ObservedRun>, String> {
    if value.get("time_to_first_token").is_some() {
        return aiperf(file, value).map(Some);
    }
    if value.get("mean_ttft_ms").is_some() {
        return bench_serving(file, value).map(Some);
    }
    Ok(None)
}

fn positive(value: Option<f64>, what: &str) -> Result<f64, String> {
    match value {
        Some(x) if x.is_finite() && x > 0.0 => Ok(x),
        Some(x) => Err(format!("{what} is {x}, it must be above 0")),
        None => Err(format!("has no {what}")),
    }
}

/// vLLM's benchmark grew out of the one that SGLang's grew out of: same names.
fn bench_serving(file: &str, v: &Value) -> Result<ObservedRun, String> {
    let number = |key: &str| v[key].as_f64();
    let text = |key: &str| v[key].as_str().map(str::to_owned);
    let requests = number("completed");
    let mean = |total: &str| match (number(total), requests) {
        (Some(total), Some(n)) if n > 0.0 => Some(total / n),
        _ => None,
    };
    let vllm = v.get("tokenizer_id").is_some() || v.get("endpoint_type").is_some();
    Ok(ObservedRun {
        tool: if vllm {
            "vllm bench serve"
        } else {
            "sglang bench_serving"
        }
        .to_owned(),
        file: file.to_owned(),
        model: text("model_id")
            .or_else(|| v["server_info"]["model_path"].as_str().map(str::to_owned)),
        backend: text("backend"),
        date: text("date"),
        concurrency: number("max_concurrency"),
        requests,
        isl: mean("total_input_tokens"),
        osl: mean("total_output_tokens"),
        ttft_ms: positive(number("mean_ttft_ms"), "mean_ttft_ms")?,
        tpot_ms: positive(number("mean_tpot_ms"), "mean_tpot_ms")?,
        output_tokens_per_s: positive(number("output_throughput"), "output_throughput")?,
        requests_per_s: number("request_throughput"),
    })
}

/// `profile_export_aiperf.json`: each metric an object with its unit and average.
fn aiperf(file: &str, v: &Value) -> Result<ObservedRun, String> {
    let average = |key: &str| v[key]["avg"].as_f64();
    // Times are milliseconds unless the metric says otherwise.
    let ms = |key: &str| {
        let scale = match v[key]["unit"].as_str() {
            Some("s" | "sec" | "seconds") => 1e3,
            Some("us") => 1e-3,
            Some("ns") => 1e-6,
            _ => 1.0,
        };
        average(key).map(|x| x * scale)
    };
    let version = v["aiperf_version"].as_str().unwrap_or("of unknown version");
    let config = &v["input_config"];
    let endpoint = &config["endpoint"];
    let model = endpoint["model_names"][0]
        .as_str()
        .or_else(|| endpoint["model"].as_str())
        .map(str::to_owned);
    Ok(ObservedRun {
        tool: format!("aiperf {version}"),
        file: file.to_owned(),
        model,
        backend: endpoint["type"].as_str().map(str::to_owned),
        date: v["start_time"].as_str().map(str::to_owned),
        concurrency: config["loadgen"]["concurrency"].as_f64(),
        requests: average("request_count"),
        isl: average("input_sequence_length"),
        osl: average("output_sequence_length"),
        ttft_ms: positive(ms("time_to_first_token"), "time_to_first_token")?,
        tpot_ms: positive(ms("inter_token_latency"), "inter_token_latency")?,
        output_tokens_per_s: positive(
            average("output_token_throughput"),
            "output_token_throughput",
        )?,
        requests_per_s: average("request_throughput"),
    })
}
