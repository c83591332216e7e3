//! What an attention works on.

use parplan_kernels::attention::{Kernel, Shape, Shard};

use crate::{Buffer, Error, Result, View};

/// The largest batch that a [`Workspace`] serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Requests.
    pub requests: usize,
    /// Query tokens of all requests.
    pub tokens: usize,
    /// Query tokens of one request.
    pub max_query: usize,
}

/// The requests of a step. All views are in the device's memory, as u32.
///
/// A captured graph is made for `requests` and `tokens` of its bucket; fewer real ones
/// are padded with requests without query tokens. Query tokens of no request are not
/// computed and not written.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Requests.
    pub requests: usize,
    /// Rows of the queries and of the output.
    pub tokens: usize,
    /// Most query tokens of one request.
    pub max_query: usize,
    /// Row length of the page table.
    pub max_pages: usize,
    /// `[requests, max_pages]`: page of each `page` KV tokens on this rank.
    pub page_table: View,
    /// `[requests]`: KV tokens on all ranks together, the query tokens included.
    pub kv_lens: View,
    /// `[requests + 1]`: first query token of each request, and the end of the last.
    pub query_offsets: View,
}

/// The KV cache of one layer.
#[derive(Clone, Debug)]
pub struct Cache {
    /// `[pages, kv_heads, page, head_dim]`; with MLA `[pages, page, 576]`.
    pub k: View,
    /// As `k`; with MLA the same memory.
    pub v: View,
}

/// How heads are laid out: in one piece, or in the parts that ranks send each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Parts of the queries: `[parts, tokens, heads / parts, dim]`.
    pub q: usize,
    /// Parts of the output and of the LSE.
    pub out: usize,
}

impl Parts {
    /// `[tokens, heads, dim]` on both sides.
    pub const WHOLE: Parts = Parts { q: 1, out: 1 };
}

/// The queries of a layer and where its results go.
#[derive(Clone, Debug)]
pub struct Queries {
    /// bf16 `[tokens, heads, query dim]`.
    pub q: View,
    /// bf16 `[tokens, heads, value dim]`.
    pub out: View,
    /// f32 `[tokens, heads]`, natural logarithm.
    pub lse: Option<View>,
    /// Whether heads are cut into parts.
    pub parts: Parts,
}

/// Memory for the plan of a step and for the pieces of what is split, and the kernel
/// that was chosen for it. It serves one shape, and steps that follow each other.
#[derive(Clone, Debug)]
pub struct Workspace {
    pub(crate) shape: Shape,
    pub(crate) capacity: Capacity,
    /// `None` on the CPU.
    pub(crate) launch: Option<Launch>,
}

#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub kernel: Kernel,
    pub chunks: usize,
    pub max_tiles: usize,
    pub plan: Buffer,
    pub partial_out: Buffer,
    pub partial_lse: Buffer,
}

impl Workspace {
    /// Name of the kernel that runs; `cpu` where there is none.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.launch.as_ref().map_or("cpu", |l| l.kernel.name)
    }

    /// Bytes of it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.launch.as_ref().map_or(0, |l| {
            l.plan.len() + l.partial_out.len() + l.partial_lse.len()
        })
    }
}

fn wrong(why: String) -> Error {
    Error::Arguments {
        op: "attention",
        why,
    }
}

fn sized(what: &str, view: &View, want: usize) -> Result<()> {
    if view.len() == want {
        return Ok(());
    }
    Err(wrong(format!(
        "{what} '{}' has {} bytes, its shape needs {want}",
        view.buffer().name(),
        view.len()
    )))
}

/// The checks of a plan.
pub(crate) fn check_batch(
    shape: &Shape,
    shard: &Shard,
    batch: &Batch,
    workspace: &Workspace,
) -> Result<()> {
    shape.check().map_err(|e| wrong(e.to_string()))?;
    shard.check().map_err(|e| wrong(e.to_string()))?;
    // The scales may change from step to step; the kernel and the memory follow from the rest.
    let same = shape.kind == workspace.shape.kind
        && shape.kv == workspace.shape.kv
        && shape.page == workspace.shape.page;
    if !same {
        return Err(wrong(format!(
            "the workspace was made for {:?}, not for {shape:?}",
            workspace.shape
        )));
    }
    let room = workspace.capacity;
    for (what, has, most) in [
        ("requests", batch.requests, room.requests),
        ("query tokens", batch.tokens, room.tokens),
        (
            "query tokens of one request",
            batch.max_query,
            room.max_query,
        ),
    ] {
        if has > most {
            return Err(wrong(format!(
                "{has} {what}, the workspace was made for at most {most}"
            )));
        }
    }
    sized(
        "the page table",
        &batch.page_table,
        batch.requests * batch.max_pages * 4,
    )?;
    sized("the KV lengths", &batch.kv_lens, batch.requests * 4)?;
    sized(
        "the query offsets",
        &batch.query_offsets,
        (batch.requests + 1) * 4,
    )
}

/// The checks of an attention.
pub(crate) fn check_call(
    shape: &Shape,
    shard: &Shard,
    batch: &Batch,
    cache: &Cache,
    workspace: &Workspace,
    queries: &Queries,
) -> Result<()> {
    check_batch(shape, shard, batch, workspace)?;
    for (what, cache) in [("the key cache", &cache.k), ("the value cache", &cache.v)] {
        if !cache.len().is_multiple_of(shape.page_bytes()) {
            return Err(wrong(format!(
                "{what} '{}' has {} bytes, no multiple of the {} bytes of a page",
                cache.buffer().name(),
                cache.len(),
                shape.page_bytes()
            )));
        }
    }
    if cache.k.len() != cache.v.len() {
        return Err(wrong(format!(
            "caches of {} and {} bytes, they must be equal",
            cache.k.len(),
            cache.v.len()
        )));
    }
    // The kernels number rows of a KV head by u32, and the last number means "none".
    let rows = cache.k.len() / (shape.stored_dim() * shape.kv.size());
    if rows >= u32::MAX as usize {
        return Err(wrong(format!(
            "a cache of {rows} rows, at most {} are right",
            u32::MAX - 1
        )));
    }
    let rows = batch.tokens * shape.heads();
    for (what, parts) in [("queries", queries.parts.q), ("outputs", queries.parts.out)] {
        if parts == 0 || !shape.heads().is_multiple_of(parts) {
            return Err(wrong(format!(
                "{what} in {parts} parts of {} heads",
                shape.heads()
            )));
        }
    }
    sized("the queries", &queries.q, rows * shape.query_dim() * 2)?;
    sized("the output", &queries.out, rows * shape.value_dim() * 2)?;
    match &queries.lse {
        Some(lse) => sized("the LSE", lse, rows * 4),
        None => Ok(()),
    }
}

/// The checks of a merge over `size` ranks; `parts` and `lses` are those of all ranks.
pub(crate) fn check_merge(
    parts: &View,
    lses: &View,
    out: &View,
    lse: &View,
    dim: usize,
    size: usize,
) -> Result<()> {
    if dim == 0 || !dim.is_multiple_of(8) {
        return Err(wrong(format!(
            "{dim} dims to merge, they must be a multiple of 8"
        )));
    }
    let rows = lse.len() / 4;
    sized("the merged output", out, rows * dim * 2)?;
    sized("the LSEs", lses, size * rows * 4)?;
    sized("the partial outputs", parts, size * rows * dim * 2)
}

/// The checks of a correction: `lses` of all ranks and parts, `lse` of this rank's part.
pub(crate) fn check_correct(
    parts: &View,
    lses: &View,
    rank: usize,
    size: usize,
    dim: usize,
    lse: &View,
) -> Result<()> {
    if dim == 0 || !dim.is_multiple_of(8) || rank >= size {
        return Err(wrong(format!(
            "rank {rank} of {size} and {dim} dims to correct: dims must be a multiple of 8"
        )));
    }
    let rows = lse.len() / 4;
    sized("the LSEs", lses, size * size * rows * 4)?;
    sized("the partial outputs", parts, size * rows * dim * 2)
}
