//! The same stack in float64 on one rank, whole, written for clarity: expanded keys and
//! values are never absorbed, nothing is split, gathered or paged.
//!
//! It shares the specification and the synthetic numbers with the stack and nothing else.
//! Where experts are chosen, a rounding error may tip the scales between two that score
//! alike; the reference therefore takes the stack's choices, after it has checked that
//! each of them scores within a margin of the best.

use parplan_kernels::reference::{Synthetic, e4m3_to_f64};

use super::batch::{cached_row, cos_sin, token};
use super::spec::{BlockSpec, Format, LayerSpec, MixerSpec, StackSpec, StepSpec};
use super::tensors::{Name, fp8_unit, input, tensor};
use crate::{Error, Result};

/// A token of a step: which attention-DP rank, request and new token it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Attention-DP rank.
    pub dp: usize,
    /// Request of that rank.
    pub request: usize,
    /// New token of that request.
    pub index: usize,
}

/// All tokens of a step, in order.
#[must_use]
pub fn tokens(step: &StepSpec) -> Vec<Token> {
    let mut all = Vec::new();
    for (dp, requests) in step.requests.iter().enumerate() {
        for request in 0..*requests {
            for index in 0..step.q_tokens {
                all.push(Token { dp, request, index });
            }
        }
    }
    all
}

/// Rows of float64.
#[derive(Clone, Debug)]
struct Matrix {
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn row(&self, r: usize) -> &[f64] {
        &self.values[r * self.columns..][..self.columns]
    }
}

/// The whole tensor as it is stored.
fn stored(
    spec: &StackSpec,
    layer: usize,
    name: Name,
    rows: usize,
    columns: usize,
    format: Format,
) -> Matrix {
    let what = tensor(spec.seed, layer, name, columns);
    let numbers: Vec<u64> = (0..rows as u64).collect();
    Matrix {
        columns,
        values: as_stored(&what, &numbers, format, fp8_unit(&what)),
    }
}

fn as_stored(what: &Synthetic, rows: &[u64], format: Format, unit: f32) -> Vec<f64> {
    match format {
        Format::Bf16 => what.bf16(rows).iter().map(|v| v.to_f64()).collect(),
        Format::Fp8 => what
            .e4m3(rows, unit)
            .iter()
            .map(|v| e4m3_to_f64(*v) * f64::from(unit))
            .collect(),
    }
}

/// `x · wᵀ`, rows of `x` by rows of `w`.
fn product(x: &[f64], w: &Matrix) -> Vec<f64> {
    w.values
        .chunks_exact(w.columns)
        .map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum())
        .collect()
}

fn norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let square = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let inverse = 1.0 / (square + eps).sqrt();
    x.iter().zip(weight).map(|(v, w)| v * inverse * w).collect()
}

fn rotate(x: &mut [f64], turn: &[f32]) {
    let half = x.len() / 2;
    for i in 0..half {
        let (cos, sin) = (f64::from(turn[i]), f64::from(turn[half + i]));
        let (a, b) = (x[i], x[half + i]);
        x[i] = a * cos - b * sin;
        x[half + i] = b * cos + a * sin;
    }
}

fn silu_mul(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

/// What the stack chose: of layer `l`, token `t` the experts; `None` where the layer has
/// none.
pub type Choices<'a> = &'a dyn Fn(usize, usize) -> Option<Vec<i32>>;

/// What the layers added to the input, of every token of [`tokens`].
///
/// # Errors
/// [`Error::Wrong`] for a choice of experts that is worse than the best by more than
/// `margin` (router logits have a variance of about 4).
pub fn run(
    spec: &StackSpec,
    step: &StepSpec,
    choices: Choices<'_>,
    margin: f64,
) -> Result<Vec<Vec<f64>>> {
    let tokens = tokens(step);
    let what = input(spec.seed, spec.hidden);
    let number = |t: &Token| token(t.dp, t.request, step.context + t.index);
    let first: Vec<Vec<f64>> = tokens
        .iter()
        .map(|t| as_stored(&what, &[number(t)], Format::Bf16, 1.0))
        .collect();
    let mut stream = first.clone();
    for (index, layer) in spec.layers.iter().enumerate() {
        let attended = attention(spec, step, index, layer, &tokens, &stream);
        add(&mut stream, &attended);
        let weight = stored(spec, index, Name::BlockNorm, 1, spec.hidden, Format::Bf16);
        let normed: Vec<Vec<f64>> = stream
            .iter()
            .map(|x| norm(x, weight.row(0), f64::from(spec.norm_eps)))
            .collect();
        let out = match layer.block {
            BlockSpec::Dense { intermediate } => {
                let names = (Name::DenseUp, Name::DenseDown);
                let mlp = Mlp::new(spec, index, names, intermediate, layer.dense_format);
                normed.iter().map(|x| mlp.run(x)).collect()
            }
            BlockSpec::Moe { .. } => {
                let chosen = |t: usize| choices(index, t);
                experts(spec, index, layer, &normed, &chosen, margin)?
            }
        };
        add(&mut stream, &out);
    }
    Ok(stream
        .iter()
        .zip(&first)
        .map(|(end, start)| end.iter().zip(start).map(|(a, b)| a - b).collect())
        .collect())
}

fn add(stream: &mut [Vec<f64>], delta: &[Vec<f64>]) {
    for (x, d) in stream.iter_mut().zip(delta) {
        for (a, b) in x.iter_mut().zip(d) {
            *a += b;
        }
    }
}

struct Mlp {
    up: Matrix,
    down: Matrix,
}

impl Mlp {
    fn new(
        spec: &StackSpec,
        layer: usize,
        (up, down): (Name, Name),
        width: usize,
        format: Format,
    ) -> Self {
        Mlp {
            up: stored(spec, layer, up, 2 * width, spec.hidden, format),
            down: stored(spec, layer, down, spec.hidden, width, format),
        }
    }

    fn run(&self, x: &[f64]) -> Vec<f64> {
        let wide = product(x, &self.up);
        let (gate, up) = wide.split_at(wide.len() / 2);
        let middle: Vec<f64> = gate.iter().zip(up).map(|(g, u)| silu_mul(*g, *u)).collect();
        product(&middle, &self.down)
    }
}

fn experts(
    spec: &StackSpec,
    index: usize,
    layer: &LayerSpec,
    normed: &[Vec<f64>],
    chosen: &dyn Fn(usize) -> Option<Vec<i32>>,
    margin: f64,
) -> Result<Vec<Vec<f64>>> {
    let BlockSpec::Moe {
        experts,
        top_k,
        intermediate,
        shared_intermediate,
    } = layer.block
    else {
        return Ok(Vec::new());
    };
    let hidden = spec.hidden;
    let router = stored(spec, index, Name::Router, experts, hidden, Format::Bf16);
    let format = layer.expert_format;
    let up = stored(
        spec,
        index,
        Name::ExpertUp,
        experts * 2 * intermediate,
        hidden,
        format,
    );
    let down = stored(
        spec,
        index,
        Name::ExpertDown,
        experts * hidden,
        intermediate,
        format,
    );
    let shared = (shared_intermediate > 0).then(|| {
        let names = (Name::SharedUp, Name::SharedDown);
        Mlp::new(spec, index, names, shared_intermediate, layer.dense_format)
    });
    let mut all = Vec::with_capacity(normed.len());
    for (t, x) in normed.iter().enumerate() {
        let logits = product(x, &router);
        let mut sorted = logits.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let ids = chosen(t).unwrap_or_default();
        let mut distinct: Vec<i32> = ids.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let valid =
            distinct.len() == top_k && ids.iter().all(|e| *e >= 0 && (*e as usize) < experts);
        let least = sorted[top_k - 1] - margin;
        if !valid || ids.iter().any(|e| logits[*e as usize] < least) {
            return Err(Error::Wrong(format!(
                "layer {index}, token {t}: experts {ids:?} were chosen; the best {top_k} have logits of at least {:.3}",
                sorted[top_k - 1]
            )));
        }
        let largest = sorted[0];
        let weights: Vec<f64> = ids
            .iter()
            .map(|e| (logits[*e as usize] - largest).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        let mut out = shared
            .as_ref()
            .map_or_else(|| vec![0.0; hidden], |s| s.run(x));
        for (e, weight) in ids.iter().zip(&weights) {
            let e = *e as usize;
            let wide: Vec<f64> = (0..2 * intermediate)
                .map(|r| dot(up.row(e * 2 * intermediate + r), x))
                .collect();
            let middle: Vec<f64> = (0..intermediate)
                .map(|c| silu_mul(wide[c], wide[intermediate + c]))
                .collect();
            for (c, o) in out.iter_mut().enumerate() {
                *o += weight / sum * dot(down.row(e * hidden + c), &middle);
            }
        }
        all.push(out);
    }
    Ok(all)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Keys and values of a token, all heads, and its queries.
struct Heads {
    q: Vec<Vec<f64>>,
    k: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
}

fn attention(
    spec: &StackSpec,
    step: &StepSpec,
    index: usize,
    layer: &LayerSpec,
    tokens: &[Token],
    stream: &[Vec<f64>],
) -> Vec<Vec<f64>> {
    let eps = f64::from(spec.norm_eps);
    let weight = stored(
        spec,
        index,
        Name::AttentionNorm,
        1,
        spec.hidden,
        Format::Bf16,
    );
    let model = Mixer::new(spec, index, layer);
    let new: Vec<Heads> = tokens
        .iter()
        .zip(stream)
        .map(|(t, x)| {
            let x = norm(x, weight.row(0), eps);
            model.heads(&x, step.context + t.index, spec.rope_theta, eps)
        })
        .collect();
    let group = model.q_heads / model.kv_heads;
    let mut all = Vec::with_capacity(tokens.len());
    let mut cached: Option<((usize, usize), Vec<Heads>)> = None;
    for (i, t) in tokens.iter().enumerate() {
        let key = (t.dp, t.request);
        if cached.as_ref().is_none_or(|(of, _)| *of != key) {
            let rows = (0..step.context)
                .map(|p| model.cached(spec, index, token(t.dp, t.request, p)))
                .collect();
            cached = Some((key, rows));
        }
        let before = cached.as_ref().map_or(&[][..], |(_, rows)| rows);
        let seen: Vec<&Heads> = before.iter().chain(&new[i - t.index..=i]).collect();
        let mut values = Vec::new();
        for h in 0..model.q_heads {
            let scores: Vec<f64> = seen
                .iter()
                .map(|s| dot(&new[i].q[h], &s.k[h / group]) * model.scale)
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let width = seen[0].v[h / group].len();
            let mut out = vec![0.0; width];
            for (s, w) in seen.iter().zip(&weights) {
                for (o, v) in out.iter_mut().zip(&s.v[h / group]) {
                    *o += w / sum * v;
                }
            }
            values.extend(out);
        }
        all.push(product(&values, &model.output));
    }
    all
}

/// A mixer with its whole weights.
struct Mixer {
    spec: MixerSpec,
    q_heads: usize,
    /// Heads of keys and values after expansion.
    kv_heads: usize,
    scale: f64,
    output: Matrix,
    kv: Format,
    projections: Projections,
}

enum Projections {
    Gqa {
        q: Matrix,
        k: Matrix,
        v: Matrix,
        norms: Option<[Matrix; 2]>,
    },
    Mla {
        q_down: Option<Matrix>,
        latent: Matrix,
        q: Matrix,
        norms: [Matrix; 2],
        absorb: Matrix,
        expand: Matrix,
    },
}

impl Mixer {
    fn new(spec: &StackSpec, index: usize, layer: &LayerSpec) -> Self {
        let hidden = spec.hidden;
        let format = layer.attention_format;
        let of = |name, rows, columns| stored(spec, index, name, rows, columns, format);
        let bf16 = |name, rows, columns| stored(spec, index, name, rows, columns, Format::Bf16);
        match layer.mixer {
            MixerSpec::Gqa {
                q_heads,
                kv_heads,
                head_dim: d,
                qk_norm,
            } => Mixer {
                spec: layer.mixer,
                q_heads,
                kv_heads,
                scale: 1.0 / (d as f64).sqrt(),
                output: of(Name::Output, hidden, q_heads * d),
                kv: spec.kv,
                projections: Projections::Gqa {
                    q: of(Name::Query, q_heads * d, hidden),
                    k: of(Name::Key, kv_heads * d, hidden),
                    v: of(Name::Value, kv_heads * d, hidden),
                    norms: qk_norm
                        .then(|| [bf16(Name::QueryNorm, 1, d), bf16(Name::KeyNorm, 1, d)]),
                },
            },
            MixerSpec::Mla {
                heads,
                q_lora,
                kv_lora,
                nope,
                rope,
                v_dim,
            } => Mixer {
                spec: layer.mixer,
                q_heads: heads,
                kv_heads: heads,
                scale: 1.0 / ((nope + rope) as f64).sqrt(),
                output: of(Name::Output, hidden, heads * v_dim),
                kv: spec.kv,
                projections: Projections::Mla {
                    q_down: (q_lora > 0).then(|| of(Name::QueryDown, q_lora, hidden)),
                    latent: of(Name::LatentDown, kv_lora + rope, hidden),
                    q: of(
                        Name::Query,
                        heads * (nope + rope),
                        if q_lora == 0 { hidden } else { q_lora },
                    ),
                    norms: [
                        bf16(Name::QueryNorm, 1, q_lora.max(8)),
                        bf16(Name::KeyNorm, 1, kv_lora),
                    ],
                    absorb: bf16(Name::Absorb, heads * kv_lora, nope),
                    expand: bf16(Name::Expand, heads * v_dim, kv_lora),
                },
            },
        }
    }

    /// Queries, keys and values of a new token.
    fn heads(&self, x: &[f64], position: usize, theta: f32, eps: f64) -> Heads {
        match (&self.projections, self.spec) {
            (Projections::Gqa { q, k, v, norms }, MixerSpec::Gqa { head_dim: d, .. }) => {
                let turn = cos_sin(position, d, theta);
                let split = |values: Vec<f64>, weight: Option<&Matrix>, rotated: bool| {
                    values
                        .chunks_exact(d)
                        .map(|head| {
                            let mut head = match weight {
                                Some(w) => norm(head, w.row(0), eps),
                                None => head.to_vec(),
                            };
                            if rotated {
                                rotate(&mut head, &turn);
                            }
                            head
                        })
                        .collect::<Vec<_>>()
                };
                let norms = norms.as_ref();
                Heads {
                    q: split(product(x, q), norms.map(|n| &n[0]), true),
                    k: split(product(x, k), norms.map(|n| &n[1]), true),
                    v: split(product(x, v), None, false),
                }
            }
            (
                Projections::Mla {
                    q_down,
                    latent,
                    q,
                    norms,
                    ..
                },
                MixerSpec::Mla {
                    kv_lora,
                    nope,
                    rope,
                    ..
                },
            ) => {
                let turn = cos_sin(position, rope, theta);
                let row = product(x, latent);
                let mut full = norm(&row[..kv_lora], norms[1].row(0), eps);
                let mut turned = row[kv_lora..].to_vec();
                rotate(&mut turned, &turn);
                full.extend(turned);
                let compressed = match q_down {
                    Some(down) => norm(&product(x, down), norms[0].row(0), eps),
                    None => x.to_vec(),
                };
                let queries = product(&compressed, q)
                    .chunks_exact(nope + rope)
                    .map(|head| {
                        let mut head = head.to_vec();
                        rotate(&mut head[nope..], &turn);
                        head
                    })
                    .collect();
                Heads {
                    q: queries,
                    ..self.expanded(&full)
                }
            }
            // The two are made together.
            _ => Heads {
                q: Vec::new(),
                k: Vec::new(),
                v: Vec::new(),
            },
        }
    }

    /// Keys and values of all heads from a latent row: `k = absorbᵀ · latent` beside the
    /// rotated part, `v = expand · latent`.
    fn expanded(&self, row: &[f64]) -> Heads {
        let (
            Projections::Mla { absorb, expand, .. },
            MixerSpec::Mla {
                heads,
                kv_lora,
                nope,
                v_dim,
                ..
            },
        ) = (&self.projections, self.spec)
        else {
            return Heads {
                q: Vec::new(),
                k: Vec::new(),
                v: Vec::new(),
            };
        };
        let (latent, turned) = row.split_at(kv_lora);
        let mut out = Heads {
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
        };
        for h in 0..heads {
            let mut k = vec![0.0; nope];
            for (l, value) in latent.iter().enumerate() {
                for (o, w) in k.iter_mut().zip(absorb.row(h * kv_lora + l)) {
                    *o += value * w;
                }
            }
            k.extend_from_slice(turned);
            out.k.push(k);
            out.v.push(
                (0..v_dim)
                    .map(|i| dot(expand.row(h * v_dim + i), latent))
                    .collect(),
            );
        }
        out
    }

    /// Keys and values that the cache holds of a token.
    fn cached(&self, spec: &StackSpec, index: usize, token: u64) -> Heads {
        let row = |name, columns, head| {
            let what = tensor(spec.seed, index, name, columns);
            as_stored(&what, &[cached_row(token, head)], self.kv, 1.0)
        };
        match self.spec {
            MixerSpec::Gqa {
                kv_heads, head_dim, ..
            } => {
                let split = |name| (0..kv_heads).map(|h| row(name, head_dim, h)).collect();
                Heads {
                    q: Vec::new(),
                    k: split(Name::CachedKey),
                    v: split(Name::CachedValue),
                }
            }
            MixerSpec::Mla { kv_lora, rope, .. } => {
                self.expanded(&row(Name::CachedKey, kv_lora + rope, 0))
            }
        }
    }
}
