//! A model profile that is another one in a different precision or under another name.

use crate::dtype::Dtype;
use crate::fault::Fault;
use crate::model::{ModelProfile, Published, WeightFormats};
use serde::Deserialize;

/// A profile file with `base`: only what differs is written down.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelOverlay {
    /// The profile that this one varies.
    pub base: String,
    /// Short name of the variant.
    pub name: String,
    #[serde(default)]
    aliases: Vec<String>,
    repository: Option<String>,
    architecture: Option<String>,
    max_position: Option<u32>,
    vocab_size: Option<u32>,
    kv_dtype: Option<Dtype>,
    /// Formats of all layers.
    weights: Option<WeightFormats>,
    /// Formats of the MTP layer, which quantisers often leave alone.
    mtp_weights: Option<WeightFormats>,
    /// Formats of single layer groups of the base.
    #[serde(default)]
    group_weights: Vec<GroupWeights>,
    /// MTP layers in this checkpoint; 0 where it ships none.
    mtp_layers: Option<u32>,
    published: Option<Published>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupWeights {
    /// Index into the base's `layers`, from 0.
    group: usize,
    weights: WeightFormats,
}

impl ModelOverlay {
    /// The base with the differences applied. The base's aliases stay with the base.
    ///
    /// # Errors
    /// Differences of a layer group or an MTP layer that the base has not.
    pub(super) fn on(self, base: ModelProfile) -> Result<ModelProfile, Fault> {
        let mut model = match self.weights {
            Some(weights) => base.with_weights(weights),
            None => base,
        };
        model.name = self.name;
        model.aliases = self.aliases;
        model.repository = self.repository.unwrap_or(model.repository);
        model.architecture = self.architecture.unwrap_or(model.architecture);
        model.max_position = self.max_position.unwrap_or(model.max_position);
        model.vocab_size = self.vocab_size.unwrap_or(model.vocab_size);
        model.kv_dtype = self.kv_dtype.unwrap_or(model.kv_dtype);
        model.published = self.published.or(model.published);
        let groups = model.layers.len();
        for (i, change) in self.group_weights.into_iter().enumerate() {
            let Some(group) = model.layers.get_mut(change.group) else {
                let field = format!("group_weights[{i}].group");
                let message = format!(
                    "is {}; the base has groups 0 to {}",
                    change.group,
                    groups.saturating_sub(1)
                );
                return Err(Fault::field(field, message));
            };
            group.weights = Some(change.weights);
        }
        match model.mtp_layer.as_mut() {
            Some(layer) => layer.weights = self.mtp_weights.or(layer.weights),
            None if self.mtp_weights.is_some() => {
                return Err(Fault::field(
                    "mtp_weights",
                    "is given, but the base has no MTP layer",
                ));
            }
            None => {}
        }
        if let Some(count) = self.mtp_layers {
            model.mtp_layers = count;
            if count == 0 {
                model.mtp_layer = None;
            }
        }
        Ok(model)
    }
}
