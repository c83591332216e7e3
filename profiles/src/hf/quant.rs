//! How a checkpoint is quantised, module by module.

use super::fields::Fields;
use crate::dtype::Dtype;
use crate::fault::Fault;
use serde_json::{Map, Value};

mod formats;
mod pattern;

use formats::{compressed_format, modelopt_format};
use pattern::Pattern;

/// The storage formats of a checkpoint's modules.
#[derive(Debug)]
pub(super) struct Scheme {
    /// What is not quantised is stored in this (`torch_dtype`).
    unquantized: Dtype,
    /// What every linear module is stored in unless a rule below says otherwise.
    linear: Dtype,
    /// Modules that are left as they were.
    ignored: Vec<Pattern>,
    /// Formats of modules that are named one by one or by patterns; these go before `ignored`.
    named: Vec<(Pattern, Dtype)>,
    /// The KV cache format that the checkpoint comes with scales for.
    kv: Option<Dtype>,
}

impl Scheme {
    /// Reads the quantization section of a configuration, wherever it lies.
    pub(super) fn read(
        root: &Fields<'_>,
        text: &Fields<'_>,
        hf_quant_config: Option<&Map<String, Value>>,
    ) -> Result<Scheme, Fault> {
        let unquantized = unquantized(root, text)?;
        let mut scheme = Scheme {
            unquantized,
            linear: unquantized,
            ignored: Vec::new(),
            named: Vec::new(),
            kv: None,
        };
        let section = match root.object("quantization_config", "quantization_config")? {
            Some(section) => Some(section),
            None => text.object("quantization_config", "text_config.quantization_config")?,
        };
        let described = section.is_some();
        if let Some(section) = section {
            scheme.read_section(&section)?;
        }
        if let Some(map) = hf_quant_config {
            scheme
                .read_beside(map, described)
                .map_err(|fault| fault.in_file("hf_quant_config.json"))?;
        }
        Ok(scheme)
    }

    /// ModelOpt's own file. Where the configuration describes the weights already, only the KV
    /// cache format is left to take from it: some exports have that nowhere else.
    fn read_beside(&mut self, map: &Map<String, Value>, described: bool) -> Result<(), Fault> {
        let file = Fields::root(map);
        match file.object("quantization", "quantization")? {
            Some(section) if described => match self.kv {
                Some(_) => Ok(()),
                None => self.read_kv(&section),
            },
            Some(section) => self.read_modelopt(&section),
            None => Err(file.fault("quantization", "is missing; it says what is quantised")),
        }
    }

    /// The format of a module that the checkpoint has, by its path from `layers.` on.
    pub(super) fn format(&self, module: &str) -> Dtype {
        if let Some(format) = self.named(module) {
            return format;
        }
        if self.ignored.iter().any(|pattern| pattern.matches(module)) {
            return self.unquantized;
        }
        self.linear
    }

    /// The format that a rule gives to this very module.
    pub(super) fn named(&self, module: &str) -> Option<Dtype> {
        self.named
            .iter()
            .find(|(pattern, _)| pattern.matches(module))
            .map(|(_, format)| *format)
    }

    /// The format of linear modules that no rule is about.
    pub(super) fn linear(&self) -> Dtype {
        self.linear
    }

    /// The format of everything that is not quantised.
    pub(super) fn unquantized(&self) -> Dtype {
        self.unquantized
    }

    /// The KV cache format that the checkpoint asks for.
    pub(super) fn kv_dtype(&self) -> Option<Dtype> {
        self.kv
    }

    fn read_section(&mut self, section: &Fields<'_>) -> Result<(), Fault> {
        match section.text("quant_method")? {
            Some("fp8") => self.read_fp8(section),
            Some("mxfp4") => self.read_simple(section, Dtype::Mxfp4),
            Some("mxfp8") => self.read_simple(section, Dtype::Mxfp8),
            Some("fbgemm_fp8") => self.read_simple(section, Dtype::Fp8),
            Some("compressed-tensors") => self.read_compressed(section),
            Some("gptq" | "awq") => self.read_group_int(section),
            // ModelOpt leaves the method out of some of its exports.
            Some("modelopt" | "modelopt_fp4") | None if section.value("quant_algo").is_some() => {
                self.read_modelopt(section)
            }
            Some(other) => Err(section.fault(
                "quant_method",
                format!(
                    "is {other:?}, which is not known (known: fp8, mxfp4, mxfp8, fbgemm_fp8, \
                     compressed-tensors, gptq, awq, modelopt)"
                ),
            )),
            None => Err(section.fault("quant_method", "is missing; it names the quantizer")),
        }
    }

    /// DeepSeek's and Qwen's own fp8; ModelOpt writes its changes to some modules into it.
    fn read_fp8(&mut self, section: &Fields<'_>) -> Result<(), Fault> {
        self.linear = match section.numbers("weight_block_size")?.as_deref() {
            None => Dtype::Fp8,
            Some([128, 128]) => Dtype::Fp8Block,
            Some([1, 32]) => Dtype::Mxfp8,
            Some(other) => {
                return Err(section.fault(
                    "weight_block_size",
                    format!("is {other:?}; [128, 128] and [1, 32] are planned"),
                ));
            }
        };
        self.ignore(section, "modules_to_not_convert")?;
        self.read_quantized_layers(section)?;
        self.read_kv(section)
    }

    fn read_simple(&mut self, section: &Fields<'_>, format: Dtype) -> Result<(), Fault> {
        self.linear = format;
        self.ignore(section, "modules_to_not_convert")?;
        self.ignore(section, "ignored_layers")?;
        self.read_kv(section)
    }

    fn read_group_int(&mut self, section: &Fields<'_>) -> Result<(), Fault> {
        self.linear = match section.number("bits")? {
            4 => Dtype::Int4,
            8 => Dtype::Int8,
            bits => {
                return Err(section.fault("bits", format!("is {bits}; 4 and 8 are planned")));
            }
        };
        self.ignore(section, "modules_to_not_convert")
    }

    fn read_compressed(&mut self, section: &Fields<'_>) -> Result<(), Fault> {
        let groups = section.object("config_groups", "quantization_config.config_groups")?;
        let Some(groups) = groups else {
            return Err(section.fault("config_groups", "is missing; it says what is quantised"));
        };
        for (name, group) in groups.entries() {
            let Value::Object(map) = group else {
                return Err(groups.wrong(name, group, "an object"));
            };
            let group = Fields::nested("quantization_config.config_groups.group", map);
            let Some(format) = compressed_format(&group)? else {
                continue;
            };
            for target in group.texts("targets")? {
                match target {
                    "Linear" => self.linear = format,
                    target => self.named.push((self.pattern(&group, target)?, format)),
                }
            }
        }
        self.ignore(section, "ignore")?;
        self.read_kv(section)
    }

    fn read_modelopt(&mut self, section: &Fields<'_>) -> Result<(), Fault> {
        match section.text("quant_algo")? {
            Some("MIXED_PRECISION") => self.read_quantized_layers(section)?,
            Some(algorithm) => self.linear = modelopt_format(section, "quant_algo", algorithm)?,
            None if section.value("kv_cache_quant_algo").is_some() => {}
            None => return Err(section.fault("quant_algo", "is missing; it names the format")),
        }
        self.ignore(section, "exclude_modules")?;
        self.ignore(section, "ignore")?;
        self.read_kv(section)
    }

    /// ModelOpt's `quantized_layers`: a module, or the parent of modules, and its algorithm.
    fn read_quantized_layers(&mut self, section: &Fields<'_>) -> Result<(), Fault> {
        let layers = section.object("quantized_layers", "quantized_layers")?;
        let Some(layers) = layers else {
            return Ok(());
        };
        for (module, about) in layers.entries() {
            let Value::Object(map) = about else {
                return Err(layers.wrong(module, about, "an object with quant_algo"));
            };
            let about = Fields::nested("quantized_layers[]", map);
            let Some(algorithm) = about.text("quant_algo")? else {
                return Err(about.fault("quant_algo", format!("is missing for {module}")));
            };
            let format = modelopt_format(&about, "quant_algo", algorithm)?;
            self.named.push((self.pattern(&layers, module)?, format));
        }
        Ok(())
    }

    fn ignore(&mut self, section: &Fields<'_>, name: &str) -> Result<(), Fault> {
        for text in section.texts(name)? {
            let pattern = Pattern::parse(text).map_err(|why| section.fault(name, why))?;
            self.ignored.push(pattern);
        }
        Ok(())
    }

    fn pattern(&self, section: &Fields<'_>, text: &str) -> Result<Pattern, Fault> {
        Pattern::parse(text).map_err(|why| section.fault("targets", why))
    }

    fn read_kv(&mut self, section: &Fields<'_>) -> Result<(), Fault> {
        for name in ["kv_cache_quant_algo", "kv_cache_scheme"] {
            let Some(value) = section.value(name) else {
                continue;
            };
            let eight_bit_float = |map: &Map<String, Value>| {
                map.get("num_bits").and_then(Value::as_u64) == Some(8)
                    && map.get("type").and_then(Value::as_str) == Some("float")
            };
            self.kv = match value {
                Value::String(text) if text.eq_ignore_ascii_case("fp8") => Some(Dtype::Fp8),
                Value::String(text) if text.eq_ignore_ascii_case("nvfp4") => Some(Dtype::Nvfp4),
                Value::Object(map) if eight_bit_float(map) => Some(Dtype::Fp8),
                other => return Err(section.wrong(name, other, "FP8, NVFP4 or an 8-bit float")),
            };
        }
        Ok(())
    }
}

/// `torch_dtype`, called `dtype` by newer versions of `transformers`.
fn unquantized(root: &Fields<'_>, text: &Fields<'_>) -> Result<Dtype, Fault> {
    for (fields, name) in [
        (root, "torch_dtype"),
        (root, "dtype"),
        (text, "torch_dtype"),
        (text, "dtype"),
    ] {
        match fields.text(name)? {
            Some("bfloat16" | "float16") => return Ok(Dtype::Bf16),
            Some("float32") => return Ok(Dtype::Fp32),
            Some(other) => {
                return Err(fields.fault(
                    name,
                    format!("is {other:?}; bfloat16, float16 and float32 are planned"),
                ));
            }
            None => {}
        }
    }
    Ok(Dtype::Bf16)
}
