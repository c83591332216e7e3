//! On two or more NVIDIA GPUs: `cargo test --test gpu_runs -- --ignored --test-threads 1`,
//! or the built test program with `PARPLAN_BIN` set to the binary. Ranks are as many as
//! there are GPUs (a power of two of them), or `PARPLAN_TEST_RANKS`; more than there are
//! GPUs with NCCL 2.30 or newer and `NCCL_MULTI_RANK_GPU_ENABLE=1`.

#![allow(clippy::unwrap_used)] // tests, helper functions included

#[path = "../exec_support/mod.rs"]
mod exec_support;
#[path = "../exec_support/fuzz.rs"]
mod lines;
#[path = "../exec_support/fuzz_models.rs"]
mod models;

mod attention;
mod collectives;
mod faults;
mod fuzz;
mod gather;
mod refusals;
mod stack;
mod support;
