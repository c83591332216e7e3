//! The matrices of one layer on one rank, before any of them is made: what [`Layer`](super::weights::Layer)
//! makes, and what a stack is measured by.

use super::place::{BlockShape, MixerShape};
use super::spec::{Format, LayerSpec};
use super::tensors::Name;

/// A run of rows of a tensor, and the columns of it that a rank holds.
pub(super) struct Part {
    pub(super) name: Name,
    /// Columns of the whole tensor.
    pub(super) full: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) first_column: usize,
    pub(super) columns: usize,
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

    /// Gates and ups of one block of `full` columns, whose rows begin at `base`: `n` from `first` on.
    fn gate_up(
        name: Name,
        hidden: usize,
        base: usize,
        full: usize,
        first: usize,
        n: usize,
    ) -> [Part; 2] {
        [
            Part::rows(name, hidden, base + first, n),
            Part::rows(name, hidden, base + full + first, n),
        ]
    }
}

/// Parts that lie one behind the other, as `batch` equal matrices.
pub(super) struct Matrix {
    /// What it is, for messages.
    pub(super) what: &'static str,
    pub(super) format: Format,
    pub(super) batch: usize,
    pub(super) parts: Vec<Part>,
}

impl Matrix {
    /// Rows of all its parts.
    pub(super) fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    /// Columns, which all parts have alike.
    pub(super) fn columns(&self) -> usize {
        self.parts.first().map_or(0, |part| part.columns)
    }

    /// Bytes of it.
    pub(super) fn bytes(&self) -> usize {
        self.rows() * self.columns() * self.format.bytes()
    }
}

/// Matrices of a mixer.
pub(super) enum MixerMatrices {
    Gqa {
        qkv: Matrix,
        /// Width of the norms of Q and K, where there are such.
        norms: Option<usize>,
    },
    Mla {
        /// Widths of the norms of the two compressions.
        norms: [usize; 2],
        down: Matrix,
        up: Matrix,
        absorb: Matrix,
        expand: Matrix,
    },
}

/// Matrices of a block.
pub(super) enum BlockMatrices {
    Dense {
        up: Matrix,
        down: Matrix,
    },
    Moe {
        router: Matrix,
        up: Matrix,
        down: Matrix,
        /// Gates and ups, and down, of the shared experts.
        shared: Option<(Matrix, Matrix)>,
    },
}

/// All matrices of a layer.
pub(super) struct LayerMatrices {
    pub(super) mixer: MixerMatrices,
    /// The output projection.
    pub(super) output: Matrix,
    pub(super) block: BlockMatrices,
}

impl LayerMatrices {
    /// Those of a rank with these shapes.
    pub(super) fn new(
        hidden: usize,
        mixer: &MixerShape,
        block: &BlockShape,
        layer: &LayerSpec,
    ) -> Self {
        let (mixer, output) = mixer_matrices(hidden, mixer, layer.attention_format);
        LayerMatrices {
            mixer,
            output,
            block: block_matrices(hidden, block, layer),
        }
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> usize {
        let mixer: Vec<&Matrix> = match &self.mixer {
            MixerMatrices::Gqa { qkv, .. } => vec![qkv],
            MixerMatrices::Mla {
                down,
                up,
                absorb,
                expand,
                ..
            } => vec![down, up, absorb, expand],
        };
        let block: Vec<&Matrix> = match &self.block {
            BlockMatrices::Dense { up, down } => vec![up, down],
            BlockMatrices::Moe {
                router,
                up,
                down,
                shared,
            } => {
                let shared = shared.iter().flat_map(|(up, down)| [up, down]);
                [router, up, down].into_iter().chain(shared).collect()
            }
        };
        let all = mixer.into_iter().chain([&self.output]).chain(block);
        all.map(Matrix::bytes).sum()
    }
}

/// Matrices of a mixer, and its output projection.
fn mixer_matrices(hidden: usize, mixer: &MixerShape, format: Format) -> (MixerMatrices, Matrix) {
    let matrix = |what, parts| Matrix {
        what,
        format,
        batch: 1,
        parts,
    };
    let (matrices, value) = match *mixer {
        MixerShape::Gqa {
            q_heads,
            first_q,
            all_q,
            kv_heads,
            first_kv,
            head_dim: dim,
            qk_norm,
        } => {
            let (kv, first_kv) = (kv_heads * dim, first_kv * dim);
            let qkv = vec![
                Part::rows(Name::Query, hidden, first_q * dim, q_heads * dim),
                Part::rows(Name::Key, hidden, first_kv, kv),
                Part::rows(Name::Value, hidden, first_kv, kv),
            ];
            let matrices = MixerMatrices::Gqa {
                qkv: matrix("QKV projection", qkv),
                norms: qk_norm.then_some(dim),
            };
            (matrices, [all_q, first_q, q_heads].map(|n| n * dim))
        }
        MixerShape::Mla {
            heads,
            first,
            all,
            q_lora,
            kv_lora,
            nope,
            rope,
            v_dim,
        } => {
            let latent = Part::rows(Name::LatentDown, hidden, 0, kv_lora + rope);
            let down = match q_lora {
                0 => vec![latent],
                _ => vec![Part::rows(Name::QueryDown, hidden, 0, q_lora), latent],
            };
            let (qk, from) = (nope + rope, if q_lora == 0 { hidden } else { q_lora });
            let up = Part::rows(Name::Query, from, first * qk, heads * qk);
            // Engines keep the absorbed products in bf16.
            let absorbed = |what, part| Matrix {
                what,
                format: Format::Bf16,
                batch: heads,
                parts: vec![part],
            };
            let absorb = Part::rows(Name::Absorb, nope, first * kv_lora, heads * kv_lora);
            let expand = Part::rows(Name::Expand, kv_lora, first * v_dim, heads * v_dim);
            let matrices = MixerMatrices::Mla {
                // Without a compression of queries there is none to norm; kernels take 8 at least.
                norms: [q_lora.max(8), kv_lora],
                down: matrix("MLA compression", down),
                up: matrix("MLA query expansion", vec![up]),
                absorb: absorbed("MLA absorption", absorb),
                expand: absorbed("MLA value expansion", expand),
            };
            (matrices, [all, first, heads].map(|n| n * v_dim))
        }
    };
    let [full, first, columns] = value;
    let output = Part::columns(Name::Output, full, 0..hidden, first, columns);
    (matrices, matrix("output projection", vec![output]))
}

/// Matrices of a feed-forward block.
fn block_matrices(hidden: usize, block: &BlockShape, layer: &LayerSpec) -> BlockMatrices {
    let dense = |what, parts| Matrix {
        what,
        format: layer.dense_format,
        batch: 1,
        parts,
    };
    match *block {
        BlockShape::Dense {
            columns,
            first,
            all,
        } => {
            let up = Part::gate_up(Name::DenseUp, hidden, 0, all, first, columns);
            let down = Part::columns(Name::DenseDown, all, 0..hidden, first, columns);
            BlockMatrices::Dense {
                up: dense("dense gate and up", up.into()),
                down: dense("dense down", vec![down]),
            }
        }
        BlockShape::Moe {
            experts,
            local,
            first_expert,
            columns,
            first_column,
            all_columns: all,
            shared,
            first_shared,
            all_shared,
            ..
        } => {
            let held = first_expert..first_expert + local;
            let expert = |what, parts| Matrix {
                what,
                format: layer.expert_format,
                batch: local,
                parts,
            };
            let up = held.clone().flat_map(|e| {
                let base = e * 2 * all;
                Part::gate_up(Name::ExpertUp, hidden, base, all, first_column, columns)
            });
            let down = held.map(|e| {
                let rows = e * hidden..(e + 1) * hidden;
                Part::columns(Name::ExpertDown, all, rows, first_column, columns)
            });
            let shared_experts = || {
                let up = Part::gate_up(Name::SharedUp, hidden, 0, all_shared, first_shared, shared);
                let down = Part::columns(
                    Name::SharedDown,
                    all_shared,
                    0..hidden,
                    first_shared,
                    shared,
                );
                (
                    dense("shared gate and up", up.into()),
                    dense("shared down", vec![down]),
                )
            };
            BlockMatrices::Moe {
                router: Matrix {
                    what: "router",
                    format: Format::Bf16,
                    batch: 1,
                    parts: vec![Part::rows(Name::Router, hidden, 0, experts)],
                },
                up: expert("expert gate and up", up.collect()),
                down: expert("expert down", down.collect()),
                shared: (shared > 0).then(shared_experts),
            }
        }
    }
}
