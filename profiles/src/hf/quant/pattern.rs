//! Patterns for module names in ignore lists and target lists.

use regex_lite::Regex;

/// A pattern over module paths such as `layers.3.mlp.experts.0.down_proj`.
///
/// Paths are compared without the prefixes that vary between exporters (`model.`,
/// `language_model.`).
#[derive(Debug)]
pub(super) enum Pattern {
    /// A path, or the parent of paths.
    Path(String),
    /// A single name, met anywhere in a path.
    Component(String),
    /// A path with `*` for any run of characters.
    Glob(Vec<String>),
    /// `re:` and a regular expression, matched from the start of the path as `re.match` does.
    Regex(Regex),
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Pattern, String> {
        if let Some(expression) = text.strip_prefix("re:") {
            return Regex::new(&format!("^(?:{expression})"))
                .map(Pattern::Regex)
                .map_err(|error| format!("holds {text:?}, no regular expression: {error}"));
        }
        let text = bare(text);
        Ok(if text.contains('*') {
            Pattern::Glob(text.split('*').map(str::to_owned).collect())
        } else if text.contains('.') {
            Pattern::Path(text.to_owned())
        } else {
            Pattern::Component(text.to_owned())
        })
    }

    /// Whether the module, or a module above it, is meant.
    pub(super) fn matches(&self, module: &str) -> bool {
        let module = bare(module);
        match self {
            Pattern::Component(name) => module.split('.').any(|part| part == name),
            Pattern::Path(path) => module
                .strip_prefix(path.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.')),
            // A parent that matches takes its modules with it (`model.layers.*.self_attn`).
            Pattern::Glob(parts) => parents(module).any(|path| glob(parts, path)),
            // Exporters write expressions against the full name.
            Pattern::Regex(expression) => {
                expression.is_match(module) || expression.is_match(&format!("model.{module}"))
            }
        }
    }
}

/// A path without the prefixes that vary.
fn bare(mut path: &str) -> &str {
    while let Some(rest) = ["model.", "language_model."]
        .into_iter()
        .find_map(|prefix| path.strip_prefix(prefix))
    {
        path = rest;
    }
    path
}

/// The path and each path above it.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('.').map(|(at, _)| at);
    ends.chain([path.len()]).map(|end| &path[..end])
}

fn glob(parts: &[String], text: &str) -> bool {
    let [first, middle @ .., last] = parts else {
        return false;
    };
    let Some(mut rest) = text.strip_prefix(first.as_str()) else {
        return false;
    };
    for part in middle {
        match rest.find(part.as_str()) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last.as_str())
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    fn matches(pattern: &str, module: &str) -> bool {
        Pattern::parse(pattern).expect("a pattern").matches(module)
    }

    #[test]
    fn patterns_mean_what_exporters_mean() {
        let down = "layers.3.mlp.experts.0.down_proj";
        assert!(matches("model.layers.3.mlp", down));
        assert!(!matches("model.layers.3.mlp.exp", down));
        assert!(matches("language_model.model.layers.3.mlp*", down));
        assert!(matches("model.layers.*.mlp.experts", down));
        assert!(!matches("model.layers.*.self_attn", down));
        // A single name is a whole part: `gate` is the router, not `gate_proj`.
        assert!(matches("gate", "layers.3.mlp.gate"));
        assert!(!matches("gate", "layers.3.mlp.gate_proj"));
        assert!(matches(
            "re:.*shared_experts.*",
            "layers.1.mlp.shared_experts.up_proj"
        ));
        let dense = r"re:.*mlp\.(gate|up|gate_up|down)_proj.*";
        assert!(matches(dense, "layers.0.mlp.up_proj"));
        assert!(!matches(dense, "layers.1.mlp.experts.0.up_proj"));
        // `layers.1*` also means 10 to 19, as it does to the engines' fnmatch.
        assert!(matches("model.layers.1*", "layers.12.mlp.up_proj"));
        assert!(!matches("model.layers.1.*", "layers.12.mlp.up_proj"));
        assert!(matches("*.attn.*", "layers.4.attn.wq_b"));
        assert!(matches("mtp*", "mtp.layers.0.mlp.up_proj"));
        assert!(Pattern::parse("re:(").is_err());
    }
}
