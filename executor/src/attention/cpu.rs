//! Attention on the CPU: the reference, with results rounded as the kernels store them.

use half::bf16;
use parplan_kernels::attention::{Shape, Shard};
use parplan_kernels::reference::{self, AttentionInputs};

use super::types::{check_call, check_correct, check_merge};
use super::{Batch, Cache, Capacity, Queries, Workspace};
use crate::{Device, Error, Result, View};

fn words(device: &dyn Device, view: &View) -> Result<Vec<u32>> {
    let bytes = device.read(view)?;
    Ok(bytes
        .chunks_exact(4)
        .map(bytemuck::pod_read_unaligned)
        .collect())
}

/// Row of (token, head) where `heads` are cut into `parts`.
fn part_row(tokens: usize, heads: usize, parts: usize, token: usize, head: usize) -> usize {
    let each = heads / parts;
    (head / each * tokens + token) * each + head % each
}

pub(crate) fn workspace(shape: &Shape, capacity: Capacity) -> Result<Workspace> {
    shape.check().map_err(|e| Error::Arguments {
        op: "attention",
        why: e.to_string(),
    })?;
    Ok(Workspace {
        shape: *shape,
        capacity,
        launch: None,
    })
}

pub(crate) fn attention(
    device: &dyn Device,
    shape: &Shape,
    shard: &Shard,
    batch: &Batch,
    cache: &Cache,
    workspace: &Workspace,
    queries: &Queries,
) -> Result<()> {
    check_call(shape, shard, batch, cache, workspace, queries)?;
    let (tokens, heads) = (batch.tokens, shape.heads());
    let (dim, value_dim) = (shape.query_dim(), shape.value_dim());
    let given = device.read(&queries.q)?;
    let mut q = vec![bf16::ZERO; tokens * heads * dim];
    for token in 0..tokens {
        for head in 0..heads {
            let from = part_row(tokens, heads, queries.parts.q, token, head) * dim * 2;
            let to = (token * heads + head) * dim;
            for (d, value) in q[to..to + dim].iter_mut().enumerate() {
                *value = bytemuck::pod_read_unaligned(&given[from + 2 * d..from + 2 * d + 2]);
            }
        }
    }
    let query_offsets = words(device, &batch.query_offsets)?;
    let result = reference::attention(
        shape,
        shard,
        &AttentionInputs {
            q: &q,
            k: &device.read(&cache.k)?,
            v: &device.read(&cache.v)?,
            page_table: &words(device, &batch.page_table)?,
            max_pages: batch.max_pages,
            kv_lens: &words(device, &batch.kv_lens)?,
            query_offsets: &query_offsets,
        },
    )
    .map_err(|e| Error::Arguments {
        op: "attention",
        why: e.to_string(),
    })?;

    // Tokens of no request keep what they held, as on a GPU.
    let first = query_offsets.first().map_or(0, |o| *o as usize);
    let mut out = device.read(&queries.out)?;
    let mut lse = queries.lse.as_ref().map(|v| device.read(v)).transpose()?;
    for (i, (value, row)) in result
        .lse
        .iter()
        .zip(result.out.chunks(value_dim))
        .enumerate()
    {
        let (token, head) = (first + i / heads, i % heads);
        let to = part_row(tokens, heads, queries.parts.out, token, head);
        for (d, x) in row.iter().enumerate() {
            let at = (to * value_dim + d) * 2;
            out[at..at + 2].copy_from_slice(&bf16::from_f64(*x).to_le_bytes());
        }
        if let Some(lse) = &mut lse {
            lse[to * 4..to * 4 + 4].copy_from_slice(&(*value as f32).to_le_bytes());
        }
    }
    device.write(&queries.out, &out)?;
    match (&queries.lse, lse) {
        (Some(view), Some(bytes)) => device.write(view, &bytes),
        _ => Ok(()),
    }
}

fn bf16s(bytes: &[u8]) -> Vec<bf16> {
    bytes
        .chunks_exact(2)
        .map(bytemuck::pod_read_unaligned)
        .collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(bytemuck::pod_read_unaligned)
        .collect()
}

fn misfit() -> Error {
    Error::Arguments {
        op: "attention",
        why: "partial outputs and LSEs do not fit each other".into(),
    }
}

pub(crate) fn correct_rank(
    device: &dyn Device,
    parts: &View,
    lses: &View,
    rank: usize,
    size: usize,
    dim: usize,
    lse: &View,
) -> Result<()> {
    check_correct(parts, lses, rank, size, dim, lse)?;
    let given = bf16s(&device.read(parts)?);
    let (out, own) = reference::correct_rank(&given, &f32s(&device.read(lses)?), rank, size, dim)
        .ok_or_else(misfit)?;
    device.write(parts, bytemuck::cast_slice(&out))?;
    device.write(lse, bytemuck::cast_slice(&own))
}

pub(crate) fn merge_ranks(
    device: &dyn Device,
    parts: &View,
    lses: &View,
    size: usize,
    dim: usize,
    out: &View,
    lse: &View,
) -> Result<()> {
    check_merge(parts, lses, out, lse, dim, size)?;
    let given = bf16s(&device.read(parts)?);
    let (merged, own) =
        reference::merge_ranks(&given, &f32s(&device.read(lses)?), size, dim).ok_or_else(misfit)?;
    device.write(out, bytemuck::cast_slice(&merged))?;
    device.write(lse, bytemuck::cast_slice(&own))
}
