//! What a server says of itself while it starts, as SGLang 0.4.9 to 0.5.23 and vLLM 0.11 to 0.33 log
//! it. Lines that say nothing of the kind are passed over, whatever they hold.

use serde::Serialize;

/// GiB, which both engines print, SGLang as "GB".
const GIB: f64 = (1u64 << 30) as f64;

/// What was said. With several data-parallel ranks the smallest of each count stands, since it is the
/// one that limits.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// The engine's version.
    pub version: Option<String>,
    /// KV tokens of one data-parallel rank.
    pub kv_tokens: Option<u64>,
    /// Requests that one rank runs at once.
    pub running_per_rank: Option<u64>,
    /// Longest sequence.
    pub context_length: Option<u64>,
    /// Tokens of a prefill chunk.
    pub chunk_tokens: Option<u64>,
    /// Captured decode graphs, ascending.
    pub graph_sizes: Option<Vec<u32>>,
    /// Weights of a rank, bytes.
    pub weights_bytes: Option<f64>,
    /// KV cache of a rank, bytes.
    pub kv_bytes: Option<f64>,
    /// Captured graphs of a rank, bytes.
    pub graph_bytes: Option<f64>,
    /// Everything of a rank but its KV cache, bytes.
    pub other_bytes: Option<f64>,
    /// Memory of the device, bytes.
    pub device_bytes: Option<f64>,
}

impl Report {
    /// Takes in a line of the log; true when it said something.
    pub fn read(&mut self, line: &str) -> bool {
        let before = self.clone();
        self.vllm(line);
        self.sglang(line);
        *self != before
    }

    fn vllm(&mut self, line: &str) {
        if let Some(version) = between(line, "LLM engine (v", ")") {
            self.version = Some(version.to_owned());
        }
        if let Some(tokens) = whole_after(line, "KV cache size: ") {
            least(&mut self.kv_tokens, tokens);
        }
        if let Some(length) = whole_after(line, "Maximum concurrency for ") {
            self.context_length = Some(length);
        }
        if let Some(list) = between(line, "'cudagraph_capture_sizes': [", "]") {
            self.graph_sizes = Some(sizes(list));
        }
        if let Some(gib) = number_after(line, "Model loading took ") {
            self.weights_bytes = Some(gib * GIB);
        }
        // The last two are the CPU build's own words.
        for before in [
            "Available KV cache memory: ",
            "Auto set (",
            "Explicitly set (",
        ] {
            if let Some(rest) = after(line, before)
                && let Some(gib) = number(rest)
            {
                self.kv_bytes = Some(gib * GIB);
                if let Some(total) = between(rest, "/", ") GiB for KV cache").and_then(number) {
                    self.device_bytes = Some(total * GIB);
                }
            }
        }
        if let Some(rest) = after(line, "Graph capturing finished in ") {
            self.graph_bytes = number_after(rest, "took ").map(|gib| gib * GIB);
        }
        if line.contains("memory was consumed by non-kv usages")
            && let Some(rest) = after(line, "requested memory for the worker. ")
        {
            self.other_bytes = number(rest).map(|gib| gib * GIB);
        }
    }

    fn sglang(&mut self, line: &str) {
        if let Some(tokens) = whole_after(line, "max_total_num_tokens=")
            && line.contains("context_len=")
        {
            least(&mut self.kv_tokens, tokens);
            if let Some(running) = whole_after(line, "max_running_requests=") {
                least(&mut self.running_per_rank, running);
            }
            self.context_length = whole_after(line, "context_len=").or(self.context_length);
            self.chunk_tokens = whole_after(line, "chunked_prefill_size=").or(self.chunk_tokens);
        }
        // The draft model of speculation logs lines of the same kind.
        if line.contains("draft") {
            return;
        }
        if let Some(list) = between(line, "Capture cuda graph bs [", "]") {
            self.graph_sizes = Some(sizes(list));
        }
        if line.contains("Capture target ")
            && line.contains("graph")
            && let Some(list) = between(line, " bs=[", "]")
        {
            self.graph_sizes = Some(sizes(list));
        }
        let captured = line.contains("Capture cuda graph end")
            || (line.contains("Capture target ") && line.contains("graph end"));
        if captured && let Some(gib) = number_after(line, "mem usage=") {
            self.graph_bytes = Some(gib * GIB);
        }
        if line.contains("Load weight end")
            && let Some(gib) = number_after(line, "mem usage=")
        {
            self.weights_bytes = Some(gib * GIB);
        }
        if let Some(rest) = after(line, "KV Cache is allocated")
            && let Some(sum) = kv_gib(rest)
        {
            self.kv_bytes = Some(sum * GIB);
        }
    }
}

/// `K size: 1.5 GB, V size: 1.5 GB`, or `KV size: 3.0 GB`.
fn kv_gib(text: &str) -> Option<f64> {
    match number_after(text, "KV size: ") {
        Some(gib) => Some(gib),
        None => Some(number_after(text, "K size: ")? + number_after(text, "V size: ")?),
    }
}

fn least(slot: &mut Option<u64>, value: u64) {
    *slot = Some(slot.map_or(value, |known| known.min(value)));
}

fn after<'a>(line: &'a str, before: &str) -> Option<&'a str> {
    Some(line.split_once(before)?.1)
}

fn between<'a>(line: &'a str, before: &str, end: &str) -> Option<&'a str> {
    Some(after(line, before)?.split_once(end)?.0)
}

/// The number that a text begins with; commas between thousands are passed over.
fn number(text: &str) -> Option<f64> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ','))
        .unwrap_or(text.len());
    let digits: String = text[..end].chars().filter(|&c| c != ',').collect();
    // A full stop after a number ends its sentence.
    let value: f64 = digits.trim_end_matches('.').parse().ok()?;
    value.is_finite().then_some(value)
}

fn number_after(line: &str, before: &str) -> Option<f64> {
    number(after(line, before)?)
}

fn whole_after(line: &str, before: &str) -> Option<u64> {
    number_after(line, before).map(|value| value as u64)
}

fn sizes(list: &str) -> Vec<u32> {
    let mut sizes: Vec<u32> = list
        .split(',')
        .filter_map(|n| n.trim().parse().ok())
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.read(line);
        }
        report
    }

    /// Lines of a vLLM 0.32.0 CPU server on the build machine, 2026-11-22; the long one cut.
    #[test]
    fn the_cpu_build_of_vllm() {
        let report = read(&[
            "(EngineCore pid=10795) INFO 11-22 03:36:50 [core.py:133] Initializing a V1 LLM engine \
             (v0.32.0) with config: model='/m', compilation_config={'mode': 0, \
             'cudagraph_capture_sizes': [], 'compile_sizes': []}",
            "(Worker pid=11042) INFO 11-22 03:37:05 [cpu_worker.py:260] Auto set (0.92/12.59) GiB for \
             KV cache on node 0, with 1.89 GiB requested memory for the worker. 0.96 GiB memory was \
             consumed by non-kv usages.",
            "(EngineCore pid=10795) INFO 11-22 03:37:05 [kv_cache_utils.py:2327] CPU KV cache size: \
             242,304 tokens, Maximum concurrency for 2,048 tokens per request: 118.31x",
        ]);
        assert_eq!(report.version.as_deref(), Some("0.32.0"));
        assert_eq!(report.kv_tokens, Some(242_304));
        assert_eq!(report.context_length, Some(2048));
        assert_eq!(report.graph_sizes, Some(vec![]));
        assert_eq!(report.kv_bytes, Some(0.92 * GIB));
        assert_eq!(report.other_bytes, Some(0.96 * GIB));
        assert_eq!(report.device_bytes, Some(12.59 * GIB));
    }

    /// As `v1/core/kv_cache_utils.py`, `v1/worker/gpu_worker.py` and `gpu_model_runner.py` of
    /// vLLM 0.24.0 format them; two data-parallel engines.
    #[test]
    fn vllm_on_gpus() {
        let report = read(&[
            "INFO [core.py:1] Initializing a V1 LLM engine (v0.24.0) with config: \
             'cudagraph_capture_sizes': [8, 4, 2, 1], 'max_cudagraph_capture_size': 8",
            "INFO Model loading took 14.9 GiB memory and 12.345678 seconds",
            "INFO Available KV cache memory: 50.12 GiB",
            "(EngineCore_DP0) INFO GPU KV cache size: 410,624 tokens",
            "(EngineCore_DP1) INFO GPU KV cache size: 410,608 tokens",
            "INFO Maximum concurrency for 40,960 tokens per request: 10.02x",
            "INFO Graph capturing finished in 21 secs, took 0.61 GiB",
        ]);
        assert_eq!(report.kv_tokens, Some(410_608));
        assert_eq!(report.graph_sizes, Some(vec![1, 2, 4, 8]));
        assert_eq!(report.weights_bytes, Some(14.9 * GIB));
        assert_eq!(report.graph_bytes, Some(0.61 * GIB));
        assert_eq!(report.kv_bytes, Some(50.12 * GIB));
    }

    /// As `managers/scheduler.py`, `model_runner.py` and the graph runners of SGLang 0.5.6, 0.5.14
    /// and 0.5.23 format them.
    #[test]
    fn sglang_of_three_ages() {
        let common = "max_total_num_tokens=123456, chunked_prefill_size=8192, \
                      max_prefill_tokens=16384, max_running_requests=64, context_len=40960, \
                      available_gpu_mem=12.34 GB";
        let old = read(&[
            "[2025-12-11 10:00:00 TP0] Load weight end. type=Qwen3ForCausalLM, dtype=torch.bfloat16, \
             avail mem=62.98 GB, mem usage=15.30 GB.",
            "KV Cache is allocated. #tokens: 123456, K size: 8.48 GB, V size: 8.48 GB",
            "[TP0] Capture cuda graph bs [1, 2, 4, 8]",
            "Capture cuda graph end. Time elapsed: 3.11 s. mem usage=0.33 GB. avail mem=10.0 GB.",
            common,
        ]);
        assert_eq!(old.kv_tokens, Some(123_456));
        assert_eq!(
            (old.running_per_rank, old.chunk_tokens),
            (Some(64), Some(8192))
        );
        assert_eq!(old.graph_sizes, Some(vec![1, 2, 4, 8]));
        assert_eq!(old.weights_bytes, Some(15.30 * GIB));
        assert_eq!(old.kv_bytes, Some(2.0 * 8.48 * GIB));
        assert_eq!(old.graph_bytes, Some(0.33 * GIB));
        let middle = read(&[
            "Capture target decode CUDA graph begin. backend=full, num_tokens_per_bs=1, \
             bs=[1, 2, 4], avail mem=11.00 GB",
            "Capture target decode CUDA graph end. elapsed=2.00 s, mem usage=0.21 GB, avail mem=10 GB.",
            "Capture draft decode CUDA graph begin. backend=full, bs=[9], avail mem=11.00 GB",
        ]);
        assert_eq!(middle.graph_sizes, Some(vec![1, 2, 4]));
        assert_eq!(middle.graph_bytes, Some(0.21 * GIB));
        let new = read(&[
            "Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1, avail mem=9 GB",
            "Capture target decode CUDA graph end. bs=[1, 2, 16], elapsed=2.00 s, mem usage=0.25 GB, \
             avail mem=10 GB.",
            common,
        ]);
        assert_eq!(new.graph_sizes, Some(vec![1, 2, 16]));
        assert_eq!(new.context_length, Some(40_960));
    }

    #[test]
    fn garbage_says_nothing() {
        let mut report = Report::default();
        for line in [
            "",
            "KV cache size: tokens",
            "max_total_num_tokens=999999999999999999999999",
            "'cudagraph_capture_sizes': [",
            "Model loading took ... GiB",
            "Graph capturing finished in",
            "KV cache size: ,,,. tokens",
        ] {
            assert!(!report.read(line), "{line}: {report:?}");
        }
        assert!(report.read("'cudagraph_capture_sizes': [1, x, 99999999999, 3]"));
        assert_eq!(report.graph_sizes, Some(vec![1, 3]));
    }
}
