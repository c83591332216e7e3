//! A rank's weights of one layer, made where they are needed.

use super::compute::{Compute, Weight};
use super::place::{BlockShape, MixerShape, Place};
use super::spec::{Format, LayerSpec, MixerSpec, StackSpec};
use super::tensors::{Name, fp8_unit, tensor};
use crate::{Buffer, Error, Result};

/// Weights of the mixer.
#[derive(Debug)]
pub enum MixerWeights {
    /// Grouped-query attention.
    Gqa {
        /// Q, K and V, one behind the other.
        qkv: Weight,
        /// Norms of Q and K.
        norms: Option<[Buffer; 2]>,
    },
    /// Multi-head latent attention.
    Mla {
        /// Compressions of queries and KV, one behind the other.
        down: Weight,
        /// Query expansion.
        up: Weight,
        /// Norms of the two compressions.
        norms: [Buffer; 2],
        /// Queries into the latent space, a matrix a head.
        absorb: Weight,
        /// Outputs out of it, a matrix a head.
        expand: Weight,
    },
}

/// Weights of the block.
#[derive(Debug)]
pub enum BlockWeights {
    /// Dense.
    Dense {
        /// Gates and ups.
        up: Weight,
        /// Down.
        down: Weight,
    },
    /// Experts.
    Moe {
        /// Router.
        router: Weight,
        /// Gates and ups of each expert.
        up: Weight,
        /// Down of each expert.
        down: Weight,
        /// Gates and ups, and down, of the shared experts.
        shared: Option<(Weight, Weight)>,
    },
}

/// One layer on one rank.
#[derive(Debug)]
pub struct Layer {
    /// Shape of the mixer.
    pub mixer: MixerShape,
    /// Shape of the block.
    pub block: BlockShape,
    /// Norm before the mixer.
    pub attention_norm: Buffer,
    /// Norm before the block.
    pub block_norm: Buffer,
    /// Weights of the mixer.
    pub mixer_weights: MixerWeights,
    /// Output projection.
    pub output: Weight,
    /// Weights of the block.
    pub block_weights: BlockWeights,
}

/// A run of rows of a tensor, and the columns of it that a rank holds.
struct Part {
    name: Name,
    /// Columns of the whole tensor.
    full: usize,
    first_row: usize,
    rows: usize,
    first_column: usize,
    columns: usize,
}

impl Part {
    /// Whole rows.
    fn rows(name: Name, full: usize, first_row: usize, rows: usize) -> Self {
        Part {
            name,
            full,
            first_row,
            rows,
            first_column: 0,
            columns: full,
        }
    }

    /// Some columns of all rows.
    fn columns(
        name: Name,
        full: usize,
        rows: std::ops::Range<usize>,
        first_column: usize,
        columns: usize,
    ) -> Self {
        Part {
            name,
            full,
            first_row: rows.start,
            rows: rows.len(),
            first_column,
            columns,
        }
    }
}

struct Maker<'a> {
    device: &'a dyn Compute,
    spec: &'a StackSpec,
    layer: usize,
}

impl Maker<'_> {
    /// A weight of parts that lie one behind the other, `batch` equal matrices.
    fn weight(&self, what: &str, format: Format, batch: usize, parts: &[Part]) -> Result<Weight> {
        let rows: usize = parts.iter().map(|p| p.rows).sum();
        let k = parts.first().map_or(0, |p| p.columns);
        let data = self.device.alloc(
            &format!("{what} of layer {}", self.layer),
            rows * k * format.bytes(),
        )?;
        let (mut at, mut unit) = (0, 1.0);
        // Runs of parts of one tensor are made at once: experts have thousands of them.
        for run in parts.chunk_by(|a, b| a.name == b.name && a.first_column == b.first_column) {
            let mut synthetic = tensor(self.spec.seed, self.layer, run[0].name, run[0].full);
            synthetic.column = run[0].first_column as u64;
            synthetic.columns = k;
            // Parts of one weight read rows of one width, so their values have one range.
            if format == Format::Fp8 {
                unit = fp8_unit(&synthetic);
            }
            let numbers: Vec<u64> = run
                .iter()
                .flat_map(|p| p.first_row as u64..(p.first_row + p.rows) as u64)
                .collect();
            let bytes = numbers.len() * k * format.bytes();
            self.device
                .synthetic(&data.view(at, bytes)?, format, unit, &synthetic, &numbers)?;
            at += bytes;
        }
        Ok(Weight {
            data,
            format,
            unit,
            batch,
            n: rows / batch.max(1),
            k,
        })
    }

    fn norm(&self, name: Name, columns: usize) -> Result<Buffer> {
        let buffer = self.device.alloc("norm", columns * 2)?;
        let what = tensor(self.spec.seed, self.layer, name, columns);
        self.device
            .synthetic(&buffer.all(), Format::Bf16, 1.0, &what, &[0])?;
        Ok(buffer)
    }

    /// Gates and ups of one block of `full` columns.
    fn gate_up(&self, name: Name, base: usize, full: usize, first: usize, n: usize) -> [Part; 2] {
        let hidden = self.spec.hidden;
        [
            Part::rows(name, hidden, base + first, n),
            Part::rows(name, hidden, base + full + first, n),
        ]
    }
}

impl Layer {
    /// Makes layer `index` for the rank at `place`.
    ///
    /// # Errors
    /// Out of memory, or another device error.
    pub fn new(
        device: &dyn Compute,
        spec: &StackSpec,
        place: &Place,
        index: usize,
        layer: &LayerSpec,
    ) -> Result<Self> {
        let hidden = spec.hidden;
        let maker = Maker {
            device,
            spec,
            layer: index,
        };
        let mixer = MixerShape::new(spec, place, &layer.mixer);
        let block = BlockShape::new(spec, place, &layer.block);
        let (mixer_weights, output) = maker.mixer(&mixer, layer)?;
        let block_weights = maker.block(&block, layer)?;
        Ok(Layer {
            mixer,
            block,
            attention_norm: maker.norm(Name::AttentionNorm, hidden)?,
            block_norm: maker.norm(Name::BlockNorm, hidden)?,
            mixer_weights,
            output,
            block_weights,
        })
    }
}

/// Shapes are made from the specification, so this is an error of parplan's own.
fn unlike_kinds() -> Error {
    Error::Wrong("a layer's shape is of another kind than its specification".into())
}

impl Maker<'_> {
    /// Weights of the mixer, and its output projection.
    fn mixer(&self, mixer: &MixerShape, layer: &LayerSpec) -> Result<(MixerWeights, Weight)> {
        let hidden = self.spec.hidden;
        let format = layer.attention_format;
        let (weights, out) = match (*mixer, layer.mixer) {
            (
                MixerShape::Gqa {
                    q_heads,
                    first_q,
                    kv_heads,
                    first_kv,
                    head_dim: dim,
                    qk_norm,
                },
                MixerSpec::Gqa { q_heads: all, .. },
            ) => {
                let (kv, first_kv) = (kv_heads * dim, first_kv * dim);
                let parts = [
                    Part::rows(Name::Query, hidden, first_q * dim, q_heads * dim),
                    Part::rows(Name::Key, hidden, first_kv, kv),
                    Part::rows(Name::Value, hidden, first_kv, kv),
                ];
                let norms = if qk_norm {
                    Some([
                        self.norm(Name::QueryNorm, dim)?,
                        self.norm(Name::KeyNorm, dim)?,
                    ])
                } else {
                    None
                };
                let weights = MixerWeights::Gqa {
                    qkv: self.weight("QKV projection", format, 1, &parts)?,
                    norms,
                };
                let out = Part::columns(
                    Name::Output,
                    all * dim,
                    0..hidden,
                    first_q * dim,
                    q_heads * dim,
                );
                (weights, out)
            }
            (
                MixerShape::Mla {
                    heads,
                    first,
                    q_lora,
                    kv_lora,
                    nope,
                    rope,
                    v_dim,
                },
                MixerSpec::Mla { heads: all, .. },
            ) => {
                let latent = Part::rows(Name::LatentDown, hidden, 0, kv_lora + rope);
                let down = match q_lora {
                    0 => vec![latent],
                    _ => vec![Part::rows(Name::QueryDown, hidden, 0, q_lora), latent],
                };
                let (qk, from) = (nope + rope, if q_lora == 0 { hidden } else { q_lora });
                let up = Part::rows(Name::Query, from, first * qk, heads * qk);
                let absorb = Part::rows(Name::Absorb, nope, first * kv_lora, heads * kv_lora);
                let expand = Part::rows(Name::Expand, kv_lora, first * v_dim, heads * v_dim);
                let weights = MixerWeights::Mla {
                    down: self.weight("MLA compression", format, 1, &down)?,
                    up: self.weight("MLA query expansion", format, 1, &[up])?,
                    norms: [
                        self.norm(Name::QueryNorm, q_lora.max(8))?,
                        self.norm(Name::KeyNorm, kv_lora)?,
                    ],
                    // Engines keep the absorbed products in bf16.
                    absorb: self.weight("MLA absorption", Format::Bf16, heads, &[absorb])?,
                    expand: self.weight("MLA value expansion", Format::Bf16, heads, &[expand])?,
                };
                let out = Part::columns(
                    Name::Output,
                    all * v_dim,
                    0..hidden,
                    first * v_dim,
                    heads * v_dim,
                );
                (weights, out)
            }
            _ => return Err(unlike_kinds()),
        };
        let output = self.weight("output projection", format, 1, &[out])?;
        Ok((weights, output))
    }

    fn block(&self, block: &BlockShape, layer: &LayerSpec) -> Result<BlockWeights> {
        use super::spec::BlockSpec;
        let hidden = self.spec.hidden;
        match (*block, layer.block) {
            (BlockShape::Dense { columns, first }, BlockSpec::Dense { intermediate }) => {
                let up = self.gate_up(Name::DenseUp, 0, intermediate, first, columns);
                let down = Part::columns(Name::DenseDown, intermediate, 0..hidden, first, columns);
                let format = layer.dense_format;
                Ok(BlockWeights::Dense {
                    up: self.weight("dense gate and up", format, 1, &up)?,
                    down: self.weight("dense down", format, 1, &[down])?,
                })
            }
            (
                BlockShape::Moe {
                    experts,
                    local,
                    first_expert,
                    columns,
                    first_column,
                    shared,
                    first_shared,
                    ..
                },
                BlockSpec::Moe {
                    intermediate,
                    shared_intermediate,
                    ..
                },
            ) => {
                let held = first_expert..first_expert + local;
                let up: Vec<Part> = held
                    .clone()
                    .flat_map(|e| {
                        let base = e * 2 * intermediate;
                        self.gate_up(Name::ExpertUp, base, intermediate, first_column, columns)
                    })
                    .collect();
                let down: Vec<Part> = held
                    .map(|e| {
                        let rows = e * hidden..(e + 1) * hidden;
                        Part::columns(Name::ExpertDown, intermediate, rows, first_column, columns)
                    })
                    .collect();
                let format = layer.expert_format;
                let shared = if shared > 0 {
                    let full = shared_intermediate;
                    let up = self.gate_up(Name::SharedUp, 0, full, first_shared, shared);
                    let down =
                        Part::columns(Name::SharedDown, full, 0..hidden, first_shared, shared);
                    let format = layer.dense_format;
                    Some((
                        self.weight("shared gate and up", format, 1, &up)?,
                        self.weight("shared down", format, 1, &[down])?,
                    ))
                } else {
                    None
                };
                Ok(BlockWeights::Moe {
                    router: self.weight(
                        "router",
                        Format::Bf16,
                        1,
                        &[Part::rows(Name::Router, hidden, 0, experts)],
                    )?,
                    up: self.weight("expert gate and up", format, local, &up)?,
                    down: self.weight("expert down", format, local, &down)?,
                    shared,
                })
            }
            _ => Err(unlike_kinds()),
        }
    }
}
