//! A rank's weights of one layer, made where they are needed.

use super::compute::{Compute, Weight};
use super::matrices::{BlockMatrices, LayerMatrices, Matrix, MixerMatrices};
use super::place::{BlockShape, MixerShape, Place};
use super::spec::{Format, LayerSpec, StackSpec};
use super::tensors::{Name, fp8_unit, tensor};
use crate::{Buffer, Result};

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

struct Maker<'a> {
    device: &'a dyn Compute,
    spec: &'a StackSpec,
    layer: usize,
}

impl Maker<'_> {
    fn weight(&self, matrix: &Matrix) -> Result<Weight> {
        let (format, k) = (matrix.format, matrix.columns());
        let data = self.device.alloc(
            &format!("{} of layer {}", matrix.what, self.layer),
            matrix.bytes(),
        )?;
        let (mut at, mut unit) = (0, 1.0);
        // Runs of parts of one tensor are made at once: experts have thousands of them.
        for run in matrix
            .parts
            .chunk_by(|a, b| a.name == b.name && a.first_column == b.first_column)
        {
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
            batch: matrix.batch,
            n: matrix.rows() / matrix.batch.max(1),
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

    /// The norms of two widths.
    fn norms(&self, [query, key]: [usize; 2]) -> Result<[Buffer; 2]> {
        Ok([
            self.norm(Name::QueryNorm, query)?,
            self.norm(Name::KeyNorm, key)?,
        ])
    }

    fn mixer(&self, matrices: &MixerMatrices) -> Result<MixerWeights> {
        Ok(match matrices {
            MixerMatrices::Gqa { qkv, norms } => MixerWeights::Gqa {
                qkv: self.weight(qkv)?,
                norms: norms.map(|width| self.norms([width; 2])).transpose()?,
            },
            MixerMatrices::Mla {
                norms,
                down,
                up,
                absorb,
                expand,
            } => MixerWeights::Mla {
                down: self.weight(down)?,
                up: self.weight(up)?,
                norms: self.norms(*norms)?,
                absorb: self.weight(absorb)?,
                expand: self.weight(expand)?,
            },
        })
    }

    fn block(&self, matrices: &BlockMatrices) -> Result<BlockWeights> {
        Ok(match matrices {
            BlockMatrices::Dense { up, down } => BlockWeights::Dense {
                up: self.weight(up)?,
                down: self.weight(down)?,
            },
            BlockMatrices::Moe {
                router,
                up,
                down,
                shared,
            } => BlockWeights::Moe {
                router: self.weight(router)?,
                up: self.weight(up)?,
                down: self.weight(down)?,
                shared: match shared {
                    Some((up, down)) => Some((self.weight(up)?, self.weight(down)?)),
                    None => None,
                },
            },
        })
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
        let matrices = LayerMatrices::new(hidden, &mixer, &block, layer);
        Ok(Layer {
            mixer_weights: maker.mixer(&matrices.mixer)?,
            output: maker.weight(&matrices.output)?,
            block_weights: maker.block(&matrices.block)?,
            attention_norm: maker.norm(Name::AttentionNorm, hidden)?,
            block_norm: maker.norm(Name::BlockNorm, hidden)?,
            mixer,
            block,
        })
    }
}
