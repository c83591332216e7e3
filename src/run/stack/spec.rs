//! A model profile and a layout into what the executor runs.

use parplan_executor::stack::{
    BlockSpec, DcpMerge, ExpertPath, Format, LayerSpec, MixerSpec, StackLayout, StackSpec,
};
use parplan_executor::{Error, Result};
use parplan_kernels::layer::Grouped;
use parplan_profiles::{Attention, Dtype, Ffn, LayerGroup, ModelProfile};

/// What is decided beside the model.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    /// Ranks at hand.
    pub here: StackLayout,
    /// The layout whose shapes are run.
    pub shard_of: StackLayout,
    /// Layers; none for all of the model's.
    pub layers: Option<usize>,
    /// Format of the KV cache; none for the profile's own.
    pub kv: Option<Dtype>,
    /// Tokens of a page.
    pub page_size: usize,
    /// Consecutive tokens of one DCP rank.
    pub dcp_interleave: usize,
    /// How DCP merges.
    pub dcp_merge: DcpMerge,
    /// Experts by all-to-all.
    pub all_to_all: bool,
    /// Names weights and inputs.
    pub seed: u64,
}

/// The stack of `model` under `choices`, and what it leaves out of the model.
///
/// # Errors
/// [`Error::Unusable`] for a kind of layer or a format that the executor does not run,
/// and for a layout that does not fit.
pub fn spec_of(model: &ModelProfile, choices: &Choices) -> Result<(StackSpec, Vec<String>)> {
    let mut notes = Vec::new();
    let mut layers = Vec::new();
    for (group, count) in share(model, choices.layers)? {
        let layer = layer(model, group, &mut notes)?;
        layers.extend(std::iter::repeat_n(layer, count));
    }
    let kv = format(
        choices.kv.unwrap_or(model.kv_dtype),
        "the KV cache",
        "--kv bf16 or --kv fp8",
        &mut notes,
    )?;
    let spec = StackSpec {
        model: model.name.clone(),
        hidden: model.hidden_size as usize,
        layers,
        here: choices.here,
        shard_of: choices.shard_of,
        kv,
        page_size: choices.page_size,
        dcp_interleave: choices.dcp_interleave,
        dcp_merge: choices.dcp_merge,
        experts: if choices.all_to_all {
            ExpertPath::AllToAll
        } else {
            ExpertPath::Gathered
        },
        dense_on_attn_tp: choices.all_to_all,
        wide_tiles_from: Grouped::WIDE_FROM,
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        seed: choices.seed,
    };
    spec.check()?;
    notes.sort();
    notes.dedup();
    Ok((spec, notes))
}

/// The model with `layers` layers, of every kind in its proportion.
///
/// # Errors
/// [`Error::Unusable`] for more layers than it has, or none.
pub fn share_of(model: &ModelProfile, layers: usize) -> Result<ModelProfile> {
    let groups = share(model, Some(layers))?
        .into_iter()
        .map(|(group, count)| LayerGroup {
            count: count as u32,
            ..group.clone()
        })
        .collect();
    Ok(ModelProfile {
        layers: groups,
        ..model.clone()
    })
}

/// How many layers of each group: its share of the model's depth, but at least one as
/// long as there are layers for all.
fn share(model: &ModelProfile, layers: Option<usize>) -> Result<Vec<(&LayerGroup, usize)>> {
    let depth = model.depth() as usize;
    let wanted = layers.unwrap_or(depth);
    if wanted == 0 || wanted > depth {
        return Err(Error::Unusable(format!(
            "--layers {wanted}: {} has {depth}, 1 to {depth} can be run",
            model.name
        )));
    }
    let mut counts: Vec<usize> = model
        .layers
        .iter()
        .map(|g| (g.count as usize * wanted / depth).max(1))
        .collect();
    // The largest group takes up what rounding left over, or gives what it lent; where all
    // have one layer and that is too many, the smallest groups go.
    loop {
        let total: usize = counts.iter().sum();
        let size = |i: &usize| (counts[*i], model.layers[*i].count);
        let groups = 0..counts.len();
        let chosen = match total.cmp(&wanted) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Greater if counts.iter().all(|c| *c <= 1) => {
                groups.filter(|i| counts[*i] > 0).min_by_key(size)
            }
            _ => groups.max_by_key(size),
        };
        match chosen {
            Some(i) if total < wanted => counts[i] += 1,
            Some(i) => counts[i] -= 1,
            None => break,
        }
    }
    Ok(model
        .layers
        .iter()
        .zip(counts)
        .filter(|(_, count)| *count > 0)
        .collect())
}

fn refuse<T>(model: &ModelProfile, what: &str) -> Result<T> {
    Err(Error::Unusable(format!(
        "{}: {what}, which the executor does not run; it runs grouped-query and latent attention with dense and expert blocks",
        model.name
    )))
}

fn format(dtype: Dtype, what: &str, hint: &str, notes: &mut Vec<String>) -> Result<Format> {
    match dtype {
        Dtype::Bf16 => Ok(Format::Bf16),
        Dtype::Fp8 => Ok(Format::Fp8),
        Dtype::Fp8Block => {
            notes.push(format!(
                "{what}: fp8 with one scale a tensor instead of one a block"
            ));
            Ok(Format::Fp8)
        }
        other => Err(Error::Unusable(format!(
            "{what} in {other}: the executor has bf16 and fp8 ({hint})"
        ))),
    }
}

fn layer(model: &ModelProfile, group: &LayerGroup, notes: &mut Vec<String>) -> Result<LayerSpec> {
    let formats = model.formats_of(group);
    let hint = "--weights fp8 or --weights bf16";
    if formats.attention_output() != formats.attention {
        return refuse(model, "an output projection in a format of its own");
    }
    let mixer = match &group.attention {
        Some(Attention::Gqa(a)) => {
            let missing = [
                (a.window.is_some(), "a sliding window"),
                (a.qk_norm_all_heads, "a norm over all heads"),
                (a.output_gate, "an output gate"),
                (a.sinks, "attention sinks"),
                (a.sparse.is_some(), "block-sparse attention"),
                (
                    a.head_dim != a.v_head_dim,
                    "values of another width than keys",
                ),
            ];
            if let Some((_, what)) = missing.iter().find(|(has, _)| *has) {
                return refuse(model, what);
            }
            if a.bias {
                notes.push("biases of the projections are left out".into());
            }
            MixerSpec::Gqa {
                q_heads: a.q_heads as usize,
                kv_heads: a.kv_heads as usize,
                head_dim: a.head_dim as usize,
                qk_norm: a.qk_norm,
            }
        }
        Some(Attention::Mla(a)) => {
            let missing = [
                (a.indexer.is_some(), "a sparse indexer"),
                (a.window.is_some(), "a sliding window"),
                (a.output_gate, "an output gate"),
            ];
            if let Some((_, what)) = missing.iter().find(|(has, _)| *has) {
                return refuse(model, what);
            }
            MixerSpec::Mla {
                heads: a.q_heads as usize,
                q_lora: a.q_lora_rank as usize,
                kv_lora: a.kv_lora_rank as usize,
                nope: a.qk_nope_head_dim as usize,
                rope: a.qk_rope_head_dim as usize,
                v_dim: a.v_head_dim as usize,
            }
        }
        Some(_) => return refuse(model, "a recurrent or compressed token mixer"),
        None => return refuse(model, "a layer without a token mixer"),
    };
    let block = match &group.ffn {
        Some(Ffn::Dense(d)) if d.gated => BlockSpec::Dense {
            intermediate: d.intermediate as usize,
        },
        Some(Ffn::Moe(m)) if m.gated && m.latent == 0 => {
            if m.bias || m.shared_gate {
                notes.push("biases of experts and the shared expert's gate are left out".into());
            }
            notes.push("experts are chosen by a plain softmax over synthetic scores".into());
            BlockSpec::Moe {
                experts: m.experts as usize,
                top_k: m.top_k as usize,
                intermediate: m.intermediate as usize,
                shared_intermediate: m.shared_intermediate as usize,
            }
        }
        Some(Ffn::Moe(m)) if m.latent > 0 => {
            return refuse(model, "experts on a latent projection");
        }
        Some(_) => return refuse(model, "a feed-forward block without gates"),
        None => return refuse(model, "a layer without a feed-forward block"),
    };
    let shared = format(formats.shared_experts, "shared experts", hint, notes)?;
    let dense = format(formats.dense_ffn, "dense blocks", hint, notes)?;
    Ok(LayerSpec {
        mixer,
        block,
        attention_format: format(formats.attention, "attention projections", hint, notes)?,
        dense_format: match block {
            BlockSpec::Dense { .. } => dense,
            BlockSpec::Moe { .. } => shared,
        },
        expert_format: format(formats.experts, "routed experts", hint, notes)?,
    })
}

/// The same kind of model, smaller: widths and counts divided by `by` as far as head
/// widths, latent ranks and the layout allow. For checks, where the reference multiplies
/// whole matrices in float64.
#[must_use]
pub fn smaller(mut model: ModelProfile, by: u32) -> ModelProfile {
    if by <= 1 {
        return model;
    }
    let width = |n: u32, least: u32| ((n / by).next_multiple_of(128)).clamp(least.min(n), n);
    model.name = format!("{} at 1/{by}", model.name);
    model.hidden_size = width(model.hidden_size, 256);
    for group in &mut model.layers {
        match &mut group.attention {
            Some(Attention::Gqa(a)) => {
                // KV heads stay, with fewer query heads each.
                let each = (a.q_heads / a.kv_heads.max(1) / by).max(1);
                a.q_heads = a.kv_heads * each;
            }
            Some(Attention::Mla(a)) => {
                a.q_heads = (a.q_heads / by).next_multiple_of(16).min(a.q_heads);
                if a.q_lora_rank > 0 {
                    a.q_lora_rank = width(a.q_lora_rank, 128);
                }
            }
            _ => {}
        }
        match &mut group.ffn {
            Some(Ffn::Dense(d)) => d.intermediate = width(d.intermediate, 256),
            Some(Ffn::Moe(m)) => {
                m.experts = (m.experts / by).next_multiple_of(16).min(m.experts);
                m.intermediate = width(m.intermediate, 128);
                if m.shared_intermediate > 0 {
                    m.shared_intermediate = width(m.shared_intermediate, 128);
                }
            }
            None => {}
        }
    }
    model
}

#[cfg(test)]
mod tests {
    use super::*;
    use parplan_profiles::Library;

    fn choices() -> Choices {
        Choices {
            here: StackLayout::ONE,
            shard_of: StackLayout::ONE,
            layers: Some(4),
            kv: None,
            page_size: 16,
            dcp_interleave: 1,
            dcp_merge: DcpMerge::ReduceScatter,
            all_to_all: false,
            seed: 1,
        }
    }

    fn run(name: &str, choices: &Choices) -> Result<(StackSpec, Vec<String>)> {
        spec_of(&Library::embedded().model(name).unwrap(), choices)
    }

    #[test]
    fn every_kind_of_layer_of_a_model_is_there() {
        let (spec, notes) = run("deepseek-v3", &choices()).unwrap();
        let dense = |l: &LayerSpec| matches!(l.block, BlockSpec::Dense { .. });
        assert_eq!(
            spec.layers.iter().map(dense).collect::<Vec<_>>(),
            [true, false, false, false]
        );
        assert!(
            notes.iter().any(|n| n.contains("one scale a tensor")),
            "{notes:?}"
        );
        let one = run(
            "deepseek-v3",
            &Choices {
                layers: Some(1),
                ..choices()
            },
        )
        .unwrap()
        .0;
        assert!(!dense(&one.layers[0]), "the larger group");
        let all = run(
            "llama-3.1-8b",
            &Choices {
                layers: None,
                ..choices()
            },
        )
        .unwrap()
        .0;
        assert_eq!(all.layers.len(), 32);
    }

    #[test]
    fn what_is_not_run_is_refused_by_name() {
        for (model, what) in [
            ("gpt-oss-20b", "sliding window"),
            ("deepseek-v3.2", "sparse indexer"),
            ("nemotron-3-super", "recurrent"),
            ("deepseek-v3.1-nvfp4", "format of its own"),
            ("qwen3-32b-nvfp4", "--weights fp8"),
        ] {
            let error = run(model, &choices()).unwrap_err().to_string();
            assert!(error.contains(what), "{model}: {error}");
        }
        let error = run(
            "llama-3.1-8b",
            &Choices {
                layers: Some(33),
                ..choices()
            },
        )
        .unwrap_err();
        assert!(error.to_string().contains("1 to 32"), "{error}");
    }

    #[test]
    fn a_smaller_model_has_the_same_kinds_and_fits_eight_ranks() {
        for name in ["deepseek-v3", "qwen3-235b-a22b", "llama-3.1-70b"] {
            let model = smaller(Library::embedded().model(name).unwrap(), 16);
            let eight = StackLayout {
                tp: 4,
                attn_dp: 2,
                dcp: 1,
                ep: 4,
            };
            let choices = Choices {
                here: eight,
                shard_of: eight,
                ..choices()
            };
            let (spec, _) = spec_of(&model, &choices).unwrap();
            assert!(spec.hidden <= 512, "{}", spec.hidden);
        }
    }
}
