//! Names of formats in quantization sections.

use crate::dtype::Dtype;
use crate::fault::Fault;
use crate::hf::fields::Fields;

/// ModelOpt's `quant_algo` (modelopt/torch/export/quant_utils.py).
pub(super) fn modelopt_format(
    section: &Fields<'_>,
    field: &str,
    algorithm: &str,
) -> Result<Dtype, Fault> {
    match algorithm {
        "FP8" | "FP8_PER_CHANNEL_PER_TOKEN" => Ok(Dtype::Fp8),
        "FP8_PB_WO" | "FP8_PB_REAL" => Ok(Dtype::Fp8Block),
        "NVFP4" | "W4A16_NVFP4" | "NVFP4_AWQ" | "NVFP4_SVDQUANT" | "W4A8_NVFP4_FP8" => {
            Ok(Dtype::Nvfp4)
        }
        "W4A16_AWQ" | "W4A8_AWQ" | "INT4_AWQ" => Ok(Dtype::Int4),
        "INT8_SQ" | "W8A16" | "W8A8_SQ_PER_CHANNEL" => Ok(Dtype::Int8),
        "MXFP4" | "W4A8_MXFP4_FP8" => Ok(Dtype::Mxfp4),
        "MXFP8" => Ok(Dtype::Mxfp8),
        other => Err(section.fault(
            field,
            format!(
                "is {other:?}, which is not known (known: FP8, FP8_PB_WO, NVFP4, W4A16_AWQ, \
                 INT8_SQ, MXFP4, MXFP8 and their variants)"
            ),
        )),
    }
}

/// The weight format of one group of a compressed-tensors section; none when the group leaves
/// weights as they are.
pub(super) fn compressed_format(group: &Fields<'_>) -> Result<Option<Dtype>, Fault> {
    let weights = group.object("weights", "quantization_config.config_groups.group.weights")?;
    let Some(weights) = weights else {
        return Ok(None);
    };
    let bits = weights.number("num_bits")?;
    let kind = weights.text("type")?.unwrap_or("int");
    let size = weights.optional("group_size")?;
    let blocks = weights.text("strategy")? == Some("block");
    match (kind, bits, size) {
        ("float", 8, _) if blocks => Ok(Some(Dtype::Fp8Block)),
        ("float", 8, Some(32)) => Ok(Some(Dtype::Mxfp8)),
        ("float", 8, _) => Ok(Some(Dtype::Fp8)),
        ("float", 4, Some(16)) => Ok(Some(Dtype::Nvfp4)),
        ("float", 4, Some(32)) => Ok(Some(Dtype::Mxfp4)),
        ("int", 8, _) => Ok(Some(Dtype::Int8)),
        ("int", 4, _) => Ok(Some(Dtype::Int4)),
        (kind, bits, size) => Err(weights.fault(
            "num_bits",
            format!(
                "is {bits} of type {kind:?} with group_size {size:?}; planned are float 8, float 4 \
                 in groups of 16 or 32, int 8 and int 4"
            ),
        )),
    }
}
