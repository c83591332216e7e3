//! A model while it is read: a list of layers, each with the names of its modules, from which
//! storage formats and groups of equal layers follow.

use super::quant::Scheme;
use crate::dtype::Dtype;
use crate::model::{Attention, Ffn, LayerGroup, WeightFormats};

/// One layer as the checkpoint has it.
#[derive(Debug, Clone)]
pub(super) struct LayerDraft {
    pub attention: Option<Attention>,
    pub ffn: Option<Ffn>,
    pub modules: Modules,
}

/// Names, below the layer, of the largest module of each tensor class. A class is stored as its
/// largest module is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Modules {
    pub attention: &'static str,
    pub output: &'static str,
    pub indexer: &'static str,
    pub dense: &'static str,
    pub experts: &'static str,
    pub shared: &'static str,
}

impl Modules {
    /// The names of Llama's and most later models.
    pub(super) const LLAMA: Modules = Modules {
        attention: "self_attn.q_proj",
        output: "self_attn.o_proj",
        indexer: "self_attn.indexer.wq_b",
        dense: "mlp.down_proj",
        experts: "mlp.experts.0.down_proj",
        shared: "mlp.shared_expert.down_proj",
    };
}

/// A model before its formats are known.
#[derive(Debug)]
pub(super) struct Draft {
    pub layers: Vec<LayerDraft>,
    /// The MTP layer and the path of its modules.
    pub mtp: Option<(LayerDraft, String)>,
    pub mtp_layers: u32,
    pub hyper_connections: u32,
    /// Storage of the routed experts where the configuration says it outside of its quantization
    /// section (`expert_dtype` of DeepSeek-V4).
    pub expert_dtype: Option<Dtype>,
    /// The KV cache format that engines use for this architecture whatever the checkpoint says.
    pub kv_dtype: Option<Dtype>,
}

impl Draft {
    pub(super) fn of(layers: Vec<LayerDraft>) -> Self {
        Draft {
            layers,
            mtp: None,
            mtp_layers: 0,
            hyper_connections: 0,
            expert_dtype: None,
            kv_dtype: None,
        }
    }

    /// The layers in runs of equal shape and format, and the formats that most layers have.
    pub(super) fn formats(&self, scheme: &Scheme) -> (Vec<LayerGroup>, WeightFormats) {
        let stored: Vec<LayerFormats> = self
            .layers
            .iter()
            .enumerate()
            .map(|(i, layer)| self.layer_formats(layer, &format!("layers.{i}"), scheme))
            .collect();
        let usual = |class: fn(&LayerFormats) -> Option<Dtype>| {
            most_common(stored.iter().filter_map(class)).unwrap_or(scheme.linear())
        };
        let attention = usual(|f| f.attention);
        let weights = WeightFormats {
            attention,
            attention_output: Some(usual(|f| f.output)).filter(|output| *output != attention),
            indexer: most_common(stored.iter().filter_map(|f| f.indexer))
                .filter(|indexer| *indexer != attention),
            dense_ffn: usual(|f| f.dense),
            experts: usual(|f| f.experts),
            shared_experts: usual(|f| f.shared),
            embedding: scheme.unquantized(),
            lm_head: scheme
                .named("lm_head")
                .filter(|head| *head != scheme.unquantized()),
        };
        let mut groups: Vec<LayerGroup> = Vec::new();
        for (layer, stored) in self.layers.iter().zip(&stored) {
            let own = stored.over(&weights);
            let group = LayerGroup {
                count: 1,
                attention: layer.attention,
                ffn: layer.ffn,
                weights: Some(own).filter(|own| *own != weights),
            };
            match groups.iter_mut().find(|known| {
                known.attention == group.attention
                    && known.ffn == group.ffn
                    && known.weights == group.weights
            }) {
                Some(known) => known.count += 1,
                None => groups.push(group),
            }
        }
        (groups, weights)
    }

    /// The MTP layer with its own formats, where they are not the model's.
    pub(super) fn mtp_layer(&self, scheme: &Scheme, model: &WeightFormats) -> Option<LayerGroup> {
        let (layer, path) = self.mtp.as_ref().filter(|_| self.mtp_layers > 0)?;
        let own = self.layer_formats(layer, path, scheme).over(model);
        Some(LayerGroup {
            count: 1,
            attention: layer.attention,
            ffn: layer.ffn,
            weights: Some(own).filter(|own| own != model),
        })
    }

    fn layer_formats(&self, layer: &LayerDraft, path: &str, scheme: &Scheme) -> LayerFormats {
        let stored = |module: &str| Some(scheme.format(&format!("{path}.{module}")));
        let modules = &layer.modules;
        let mut formats = LayerFormats::default();
        if let Some(mixer) = &layer.attention {
            formats.attention = stored(modules.attention);
            formats.output = stored(modules.output);
            if has_indexer(mixer) {
                formats.indexer = stored(modules.indexer);
            }
        }
        match &layer.ffn {
            None => {}
            Some(Ffn::Dense(_)) => formats.dense = stored(modules.dense),
            Some(Ffn::Moe(dims)) => {
                // What a quantizer did to the experts by name goes before what they came with.
                let module = format!("{path}.{}", modules.experts);
                formats.experts = scheme
                    .named(&module)
                    .or(self.expert_dtype)
                    .or_else(|| Some(scheme.format(&module)));
                if dims.shared_intermediate > 0 {
                    formats.shared = stored(modules.shared);
                }
            }
        }
        formats
    }
}

fn has_indexer(mixer: &Attention) -> bool {
    match mixer {
        Attention::Mla(dims) => dims.indexer.is_some_and(|indexer| indexer.owned),
        Attention::Compressed(dims) => dims.indexer.is_some(),
        Attention::Gqa(dims) => dims.sparse.is_some(),
        _ => false,
    }
}

/// Formats of the classes that a layer has.
#[derive(Debug, Clone, Copy, Default)]
struct LayerFormats {
    attention: Option<Dtype>,
    output: Option<Dtype>,
    indexer: Option<Dtype>,
    dense: Option<Dtype>,
    experts: Option<Dtype>,
    shared: Option<Dtype>,
}

impl LayerFormats {
    /// The model's formats with this layer's own in place of those of the classes it has.
    fn over(&self, model: &WeightFormats) -> WeightFormats {
        let attention = self.attention.unwrap_or(model.attention);
        let output = self.output.unwrap_or(model.attention_output());
        // A mixer without an indexer must not show one in the format of another layer's mixer.
        let indexer = match self.attention {
            Some(attention) => self.indexer.unwrap_or(attention),
            None => model.indexer(),
        };
        WeightFormats {
            attention,
            attention_output: Some(output).filter(|output| *output != attention),
            indexer: Some(indexer).filter(|indexer| *indexer != attention),
            dense_ffn: self.dense.unwrap_or(model.dense_ffn),
            experts: self.experts.unwrap_or(model.experts),
            shared_experts: self.shared.unwrap_or(model.shared_experts),
            ..*model
        }
    }
}

/// The most frequent format; of equally frequent ones the one met first.
fn most_common(formats: impl Iterator<Item = Dtype>) -> Option<Dtype> {
    let mut counts: Vec<(Dtype, usize)> = Vec::new();
    for format in formats {
        match counts.iter_mut().find(|(known, _)| *known == format) {
            Some((_, count)) => *count += 1,
            None => counts.push((format, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max()?;
    counts
        .into_iter()
        .find(|(_, count)| *count == most)
        .map(|(format, _)| format)
}
