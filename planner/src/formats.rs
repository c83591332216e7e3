//! Whether an engine has kernels for a model's number formats on a GPU, and what they cost there.

use crate::shard::ExpertMultiples;
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::rules::{Devices, FormatRule, Runs, WeightPart};
use parplan_profiles::{Attention, Dtype, EfficiencyProfile, GpuProfile, ModelProfile, TensorRate};

/// The formats of a model's weights by the kernels that multiply by them, each once.
fn weights(model: &ModelProfile) -> Vec<(WeightPart, Dtype)> {
    let mut out = Vec::new();
    let mut add = |part, format| {
        if !out.contains(&(part, format)) {
            out.push((part, format));
        }
    };
    for group in &model.layers {
        let formats = model.formats_of(group);
        add(WeightPart::Linear, formats.attention);
        match &group.ffn {
            Some(parplan_profiles::Ffn::Dense(_)) => add(WeightPart::Linear, formats.dense_ffn),
            Some(parplan_profiles::Ffn::Moe(moe)) => {
                add(WeightPart::Experts, formats.experts);
                if moe.shared_intermediate > 0 {
                    add(WeightPart::Linear, formats.shared_experts);
                }
            }
            None => {}
        }
    }
    out
}

fn somewhere(devices: &[Devices]) -> String {
    let mut names: Vec<String> = Vec::new();
    for device in devices.iter().map(Devices::to_string) {
        if !names.contains(&device) {
            names.push(device);
        }
    }
    format!("on {}", names.join(", "))
}

/// Why the engine has no kernels for the weights of a model on a GPU; none where it has.
pub fn refused_weights(
    rules: &EngineRules,
    gpu: &GpuProfile,
    model: &ModelProfile,
) -> Option<String> {
    let rule = rules.formats.as_ref()?;
    let (part, format) = weights(model)
        .into_iter()
        .find(|&(part, format)| rule.weights(format, part, gpu) == Runs::Never)?;
    let devices = rule.devices_of_weights(format, part);
    if devices.is_empty() {
        return Some(format!(
            "{} {} has no kernels for {} in {format}, as {} has them, on any device",
            rules.name,
            rules.version,
            part.name(),
            model.name
        ));
    }
    Some(format!(
        "{} {} has no kernels for {} in {format} on {}, as {} has them; it runs them {}",
        rules.name,
        rules.version,
        part.name(),
        gpu.name,
        model.name,
        somewhere(&devices)
    ))
}

/// Why the engine cannot read a KV cache of this format on a GPU; none where it can.
pub fn refused_kv(
    rules: &EngineRules,
    gpu: &GpuProfile,
    model: &ModelProfile,
    format: Dtype,
) -> Option<String> {
    let rule = rules.formats.as_ref()?;
    let latent = model.layers.iter().any(|group| {
        matches!(
            group.attention,
            Some(Attention::Mla(_) | Attention::Compressed(_))
        )
    });
    if rule.reads_kv(format, latent, gpu) {
        return None;
    }
    Some(format!(
        "{} {} reads no KV cache in {format} of {} attention on {}; it does {}",
        rules.name,
        rules.version,
        if latent { "latent" } else { "this" },
        gpu.name,
        somewhere(&rule.devices_of_kv(format, latent))
    ))
}

/// Formats of a model's weights that the engine unpacks to bf16 on a GPU, by the kernels that do.
pub fn weight_only(
    rules: &EngineRules,
    gpu: &GpuProfile,
    model: &ModelProfile,
) -> Vec<(WeightPart, Dtype)> {
    let Some(rule) = &rules.formats else {
        return Vec::new();
    };
    let mut out = weights(model);
    out.retain(|&(part, format)| rule.weights(format, part, gpu) == Runs::WeightOnly);
    out
}

/// The kernel that the engine is to run a model's experts with, where it has several.
pub fn expert_kernel<'r>(
    rules: &'r EngineRules,
    gpu: &GpuProfile,
    model: &ModelProfile,
) -> Option<&'r str> {
    let rule = rules.formats.as_ref()?;
    weights(model)
        .into_iter()
        .filter(|(part, _)| *part == WeightPart::Experts)
        .find_map(|(part, format)| rule.path(format, part, gpu)?.kernel.as_deref())
}

/// What the engine's kernels round the widths of a model's experts up to, where they do.
pub fn expert_multiples(
    rules: &EngineRules,
    gpu: &GpuProfile,
    model: &ModelProfile,
) -> Option<ExpertMultiples> {
    let rule = rules.formats.as_ref()?;
    weights(model).into_iter().find_map(|(part, format)| {
        let [outer, inner] = match part {
            WeightPart::Experts => rule.path(format, part, gpu)?.multiples?,
            WeightPart::Linear => return None,
        };
        Some(ExpertMultiples {
            format,
            outer,
            inner,
        })
    })
}

/// Prices products as the engine runs them: those on weights that it unpacks at the rate of bf16, and
/// experts by the kernel that its rules name.
pub fn price_as_run(rules: &EngineRules, gpu: &GpuProfile, prices: &mut EfficiencyProfile) {
    let Some(rule) = &rules.formats else { return };
    for format in Dtype::ALL {
        let named = rule
            .path(format, WeightPart::Experts, gpu)
            .and_then(|path| prices.moe_named.get(path.kernel.as_ref()?)?.get(&format));
        if let Some(fit) = named.cloned() {
            prices.moe.insert(format, fit);
            prices.moe_alternative.remove(&format);
        }
    }
    let unpacked =
        |rule: &FormatRule, format, part| rule.weights(format, part, gpu) == Runs::WeightOnly;
    for (format, fit) in &mut prices.gemm {
        if unpacked(rule, *format, WeightPart::Linear) {
            fit.rate = TensorRate::Bf16;
        }
    }
    for fits in [&mut prices.moe, &mut prices.moe_alternative] {
        for (format, fit) in fits {
            if unpacked(rule, *format, WeightPart::Experts) {
                fit.rate = TensorRate::Bf16;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use parplan_profiles::Library;

    fn found(
        engine: &str,
        version: &str,
        gpu: &str,
        model: &str,
    ) -> (EngineRules, GpuProfile, ModelProfile) {
        let library = Library::embedded();
        let rules = library.engine(engine).unwrap();
        let rules = rules.resolve(Some(version), false).unwrap();
        (
            rules,
            library.gpu(gpu).unwrap(),
            library.model(model).unwrap(),
        )
    }

    #[test]
    fn formats_run_where_the_engine_s_version_has_kernels() {
        // Engine, version, GPU, model, and how it runs: 0 not, 1 natively, 2 unpacked.
        for (engine, version, gpu, model, how) in [
            ("trtllm", "1.2.0", "h200", "llama-3.1-70b-nvfp4", 0),
            ("trtllm", "1.2.0", "b200", "llama-3.1-70b-nvfp4", 1),
            ("trtllm", "1.2.0", "a100", "llama-3.1-70b-fp8", 0),
            ("trtllm", "1.2.0", "l40s", "llama-3.1-70b-fp8", 1),
            ("trtllm", "1.2.0", "l40s", "qwen3-8b-fp8", 0),
            ("vllm", "0.33.0", "h200", "llama-3.1-70b-nvfp4", 2),
            ("vllm", "0.11.2", "h200", "llama-3.1-70b-nvfp4", 2),
            ("vllm", "0.33.0", "b200", "llama-3.1-70b-nvfp4", 1),
            ("vllm", "0.33.0", "a100", "llama-3.1-70b-fp8", 2),
            ("vllm", "0.33.0", "a100", "deepseek-r1", 2),
            ("vllm", "0.33.0", "mi300x", "deepseek-r1", 1),
            ("vllm", "0.16.0", "mi300x", "llama-3.1-70b-nvfp4", 0),
            ("sglang", "0.5.12", "h200", "llama-3.1-70b-nvfp4", 0),
            ("sglang", "0.5.13", "h200", "llama-3.1-70b-nvfp4", 2),
            ("sglang", "0.5.23", "a100", "llama-3.1-70b-fp8", 2),
            ("sglang", "0.5.23", "a100", "deepseek-r1", 0),
            ("sglang", "0.5.23", "a100", "llama-3.1-70b", 1),
            ("sglang", "0.5.23", "h200", "deepseek-r1", 1),
        ] {
            let (rules, gpu, model) = found(engine, version, gpu, model);
            let what = format!("{engine} {version} {} {}", gpu.name, model.name);
            let refused = refused_weights(&rules, &gpu, &model);
            assert_eq!(refused.is_some(), how == 0, "{what}: {refused:?}");
            let unpacked = weight_only(&rules, &gpu, &model);
            assert!(
                how == 0 || unpacked.is_empty() == (how == 1),
                "{what}: {unpacked:?}"
            );
        }
    }

    #[test]
    fn a_refusal_says_what_has_no_kernels_and_where_there_are() {
        let (rules, gpu, model) = found("trtllm", "1.2.0", "h200", "llama-3.1-70b-nvfp4");
        assert_eq!(
            refused_weights(&rules, &gpu, &model).unwrap(),
            "trtllm 1.2.0 has no kernels for linear layers in nvfp4 on h200, as llama-3.1-70b-nvfp4 \
             has them; it runs them on NVIDIA GPUs from compute capability 10.0"
        );
    }

    #[test]
    fn latent_attention_reads_fp8_from_ada_on() {
        let refused = |gpu, model| {
            let (rules, gpu, model) = found("vllm", "0.33.0", gpu, model);
            refused_kv(&rules, &gpu, &model, Dtype::Fp8)
        };
        assert!(refused("a100", "deepseek-r1").unwrap().contains("8.9"));
        assert_eq!(refused("h200", "deepseek-r1"), None);
        assert_eq!(refused("a100", "llama-3.1-70b"), None);
        let (rules, gpu, model) = found("trtllm", "1.2.0", "h200", "llama-3.1-70b");
        assert!(refused_kv(&rules, &gpu, &model, Dtype::Nvfp4).is_some());
    }

    #[test]
    fn unpacked_weights_are_priced_in_bf16() {
        for (engine, version, gpu, format, rate) in [
            ("vllm", "0.33.0", "h200", Dtype::Mxfp8, TensorRate::Bf16),
            ("vllm", "0.33.0", "b200", Dtype::Mxfp8, TensorRate::Fp8),
            ("vllm", "0.33.0", "h200", Dtype::Nvfp4, TensorRate::Bf16),
            ("vllm", "0.33.0", "b200", Dtype::Nvfp4, TensorRate::Fp4),
            ("vllm", "0.33.0", "a100", Dtype::Fp8, TensorRate::Bf16),
            ("vllm", "0.33.0", "h200", Dtype::Fp8, TensorRate::Fp8),
        ] {
            let (rules, gpu, _) = found(engine, version, gpu, "qwen3-8b");
            let mut prices = EfficiencyProfile::embedded(engine, &gpu).unwrap().clone();
            price_as_run(&rules, &gpu, &mut prices);
            assert_eq!(prices.gemm[&format].rate, rate, "{} {format}", gpu.name);
            // On Blackwell experts in mxfp4 are measured at another rate; the others are alike.
            assert_eq!(prices.moe[&format].rate, rate, "{} {format}", gpu.name);
        }
    }

    #[test]
    fn experts_are_priced_padded_and_asked_for_by_the_kernel_that_the_rules_name() {
        for (engine, version, gpu, kernel) in [
            ("vllm", "0.11.0", "h100-sxm", Some("marlin")),
            ("vllm", "0.33.0", "h200", Some("marlin")),
            ("vllm", "0.33.0", "b200", None),
            ("sglang", "0.5.14", "h200", None),
        ] {
            let (rules, gpu, model) = found(engine, version, gpu, "gpt-oss-120b");
            let what = format!("{engine} {version} {}", gpu.name);
            assert_eq!(expert_kernel(&rules, &gpu, &model), kernel, "{what}");
            let multiples = expert_multiples(&rules, &gpu, &model).map(|to| [to.outer, to.inner]);
            assert_eq!(multiples, kernel.map(|_| [256, 128]), "{what}");
            let table = EfficiencyProfile::embedded(engine, &gpu).unwrap();
            let mut prices = table.clone();
            price_as_run(&rules, &gpu, &mut prices);
            let named = kernel.map(|name| &table.moe_named[name][&Dtype::Mxfp4]);
            let expected = named.unwrap_or(&table.moe[&Dtype::Mxfp4]);
            assert_eq!(
                prices.moe[&Dtype::Mxfp4].base_us,
                expected.base_us,
                "{what}"
            );
        }
        // A model without such experts is not told anything.
        let (rules, gpu, model) = found("vllm", "0.33.0", "h200", "qwen3-235b-a22b-fp8");
        assert_eq!(expert_kernel(&rules, &gpu, &model), None);
    }
}
