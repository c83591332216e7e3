//! Options that engines and their benchmarks have under another name.

/// Names elsewhere, and what stands for them here.
const NAMES: [(&[&str], &str); 14] = [
    (
        &["--model-path", "--model-id", "--hf-id"],
        "--model is a profile's name, a Hugging Face id or a path",
    ),
    (
        &["--num-gpus", "--n-gpus", "--gpu-count", "--total-gpus"],
        "--gpus is how many there are",
    ),
    (
        &["--tensor-parallel-size", "--tp-size", "-t"],
        "--tp is all GPUs of a stage: SGLang's tp-size, vLLM's tensor-parallel-size times its \
         data-parallel-size",
    ),
    (
        &[
            "--data-parallel-size",
            "--dp-size",
            "--dp",
            "--attn-dp-size",
            "--enable-dp-attention",
            "-d",
        ],
        "--attn-dp is groups of ranks inside tp that hold different requests (SGLang's DP attention, \
         vLLM's data-parallel-size), --replicas is copies of the whole engine",
    ),
    (
        &[
            "--expert-parallel-size",
            "--ep-size",
            "--enable-expert-parallel",
        ],
        "--ep is how many ranks hold different experts",
    ),
    (
        &["--pipeline-parallel-size", "--pp-size"],
        "--pp is the pipeline stages",
    ),
    (
        &["--decode-context-parallel-size", "--dcp-size"],
        "--dcp is how many ranks share the KV cache of a request",
    ),
    (
        &["--mem-fraction-static", "--gpu-memory-utilization"],
        "--memory-fraction is the engine's share of GPU memory",
    ),
    (
        &["--max-num-seqs", "--max-batch-size"],
        "--max-running-requests limits what the engine runs, --concurrency is how many clients there are",
    ),
    (
        &[
            "--chunked-prefill-size",
            "--max-num-batched-tokens",
            "--max-num-tokens",
        ],
        "--chunk-tokens is the tokens of a prefill chunk or step",
    ),
    (
        &["--max-model-len", "--max-seq-len", "--max-context-length"],
        "--context-length is the longest sequence to serve",
    ),
    (
        &["--kv-cache-dtype", "--quantization", "--dtype"],
        "--kv-dtype is the format of the KV cache, --weights that of the linear layers",
    ),
    (
        &[
            "--input-len",
            "--output-len",
            "--random-input-len",
            "--random-output-len",
            "--prompt-len",
            "--input-tokens",
            "--output-tokens",
        ],
        "--isl is the tokens of a prompt, --osl those of an answer",
    ),
    (
        &[
            "--max-concurrency",
            "--users",
            "--clients",
            "--num-users",
            "--request-rate",
            "--rate",
            "--qps",
        ],
        "--concurrency is clients that each wait for their answer; a --workload file with a `rate` has \
         requests that come by themselves",
    ),
];

/// What stands here for an option of an engine or a benchmark.
pub(super) fn named(option: &str) -> Option<&'static str> {
    let option = option.split('=').next().unwrap_or(option);
    let known = NAMES.iter().find(|(names, _)| names.contains(&option));
    known.map(|(_, here)| *here)
}

/// The options that such a hint offers, without their dashes.
pub(super) fn offered(here: &'static str) -> impl Iterator<Item = &'static str> {
    here.split([' ', ';', ',', ':'])
        .filter_map(|word| word.strip_prefix("--"))
}

#[cfg(test)]
mod tests {
    use super::{NAMES, offered};

    /// What is offered is there, and what it is offered for is not.
    #[test]
    fn every_hint_names_options_of_recommend() {
        let command = super::super::command();
        let recommend = command.find_subcommand("recommend").unwrap();
        let has = |flag: &str| {
            recommend
                .get_arguments()
                .any(|a| a.get_long() == Some(flag))
        };
        for (names, here) in NAMES {
            assert!(offered(here).count() > 0, "{here}");
            for flag in offered(here) {
                assert!(has(flag), "{flag}");
            }
            for name in names {
                assert!(!has(name.trim_start_matches('-')), "{name}");
            }
        }
    }
}
