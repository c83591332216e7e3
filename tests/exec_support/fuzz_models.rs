//! Attentions and stacks of shapes that nobody tuned for. A seed names all of them; the
//! binary compares each with its float64 reference.

use fastrand::Rng;

/// How large the runs may be.
#[derive(Clone, Copy)]
pub struct Most {
    /// Requests of an attention.
    pub requests: usize,
    /// KV tokens of a request.
    pub context: usize,
    /// Query tokens of a request.
    pub queries: usize,
    /// Requests of a stack's rank.
    pub rows: usize,
    /// What the widths of a stack's model are divided by.
    pub scale: usize,
}

fn one<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(0..of.len())]
}

/// Words after `parplan run`, for `ranks` ranks that share the KV.
pub fn attention(rng: &mut Rng, ranks: usize, most: Most) -> String {
    let shape = if rng.bool() {
        let kv_heads: usize = one(rng, &[1, 2, 3, 4, 5, 8]);
        let mut heads = kv_heads * one(rng, &[1, 2, 3, 5, 6, 7, 8, 16, 24]);
        while !heads.is_multiple_of(ranks) {
            heads += kv_heads;
        }
        let dim = one(rng, &[64, 128, 256]);
        format!("--kind gqa --heads {heads} --kv-heads {kv_heads} --head-dim {dim}")
    } else {
        let heads = ranks * rng.usize(1..=128 / ranks);
        format!("--kind mla --heads {heads}")
    };
    let queries = if rng.bool() {
        1
    } else {
        rng.usize(1..=most.queries)
    };
    format!(
        "attention --check --ragged --repeats 1 --iterations 2 --graph-launches 1 --seed {} {shape} \
         --kv-dtype {} --page {} --batch {} --query-tokens {queries} --context {} --interleave {}",
        rng.u32(..),
        one(rng, &["bf16", "fp8"]),
        one(rng, &[1, 2, 3, 7, 16, 32, 48, 64, 100]),
        rng.usize(1..=most.requests),
        queries + rng.usize(0..most.context),
        one(rng, &[1, 2, 3, 16, 64]),
    )
}

fn divisor(rng: &mut Rng, of: usize) -> usize {
    let all: Vec<usize> = (1..=of).filter(|d| of.is_multiple_of(*d)).collect();
    one(rng, &all)
}

/// Words after `parplan run`, for a stack over a power of two of ranks.
pub fn stack(rng: &mut Rng, ranks: usize, most: Most, graph: bool) -> String {
    let dp = divisor(rng, ranks);
    let dcp = divisor(rng, ranks / dp);
    let ep = divisor(rng, ranks);
    let counts: Vec<String> = (0..dp)
        .map(|_| one(rng, &[0, 1, 2, most.rows / 2, most.rows]).to_string())
        .collect();
    let mut line = format!(
        "stack --check --scale {} --layers 2 --repeats 1 --warmup 0 --seed {} --model {} --tp {ranks} \
         --attn-dp {dp} --dcp {dcp} --ep {ep} --dcp-merge {} --dcp-interleave {} --page-size {} --mode {} \
         --q-tokens {} --context {} --requests {} --requests {}",
        most.scale,
        rng.u32(..),
        one(rng, &["qwen3-235b", "deepseek-v3", "llama-3.1-70b"]),
        one(rng, &["fused", "ag-rs", "a2a"]),
        one(rng, &[1, 2, 3, 16]),
        one(rng, &[1, 3, 16, 64]),
        one(rng, &["max-len", "sum-len", "exact"]),
        rng.usize(1..4),
        rng.usize(0..=most.context),
        counts.join(","),
        vec!["1"; dp].join(","),
    );
    if ep == ranks && rng.bool() {
        line += " --all-to-all";
    }
    if rng.u8(0..3) == 0 {
        line += " --kv fp8";
    }
    if rng.u8(0..3) == 0 {
        let chunk = rng.usize(1..=most.context.max(1));
        line += &format!(
            " --prefill {chunk} --prefix {}",
            rng.usize(0..=most.context)
        );
    }
    if graph {
        line += " --graph";
    }
    line
}
