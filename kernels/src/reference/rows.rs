//! References of the row kernels.

/// `parplan_place_rows`: `count` rows of `local` at row `offset`, zeros elsewhere.
/// Rows are `row` bytes; `total` rows in all. `None` when the rows do not fit.
#[must_use]
pub fn place_rows(
    local: &[u8],
    offset: usize,
    count: usize,
    total: usize,
    row: usize,
) -> Option<Vec<u8>> {
    let mut global = vec![0; total * row];
    let target = global.get_mut(offset * row..(offset + count) * row)?;
    target.copy_from_slice(local.get(..count * row)?);
    Some(global)
}

/// `parplan_take_rows`: `count` rows of `global` from row `offset` into the first rows
/// of `local`; the others stay. `None` when the rows do not fit.
#[must_use]
pub fn take_rows(
    local: &[u8],
    global: &[u8],
    offset: usize,
    count: usize,
    row: usize,
) -> Option<Vec<u8>> {
    let mut out = local.to_vec();
    out.get_mut(..count * row)?
        .copy_from_slice(global.get(offset * row..(offset + count) * row)?);
    Some(out)
}

/// `parplan_scale_bf16`: each element times `factor`, rounded to bf16.
#[must_use]
pub fn scale_bf16(input: &[half::bf16], factor: f32) -> Vec<half::bf16> {
    input
        .iter()
        .map(|v| half::bf16::from_f32(v.to_f32() * factor))
        .collect()
}
