//! Reading fields of a JSON object, each fault naming its field.

use crate::fault::Fault;
use serde_json::{Map, Value};

/// An object of the configuration and the path that leads to it.
#[derive(Clone, Copy)]
pub(super) struct Fields<'j> {
    path: &'static str,
    map: &'j Map<String, Value>,
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl<'j> Fields<'j> {
    pub(super) fn root(map: &'j Map<String, Value>) -> Self {
        Fields { path: "", map }
    }

    pub(super) fn nested(path: &'static str, map: &'j Map<String, Value>) -> Self {
        Fields { path, map }
    }

    /// The object of a field; `path` is the whole path to it.
    pub(super) fn object(
        &self,
        name: &str,
        path: &'static str,
    ) -> Result<Option<Fields<'j>>, Fault> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { path, map })),
            Some(other) => Err(self.wrong(name, other, "an object")),
        }
    }

    /// Every entry.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'j str, &'j Value)> {
        self.map.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The value of a field; null counts as absent, as in `transformers`.
    pub(super) fn value(&self, name: &str) -> Option<&'j Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn field(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    pub(super) fn fault(&self, name: &str, message: impl Into<String>) -> Fault {
        Fault::field(self.field(name), message)
    }

    pub(super) fn wrong(&self, name: &str, value: &Value, wanted: &str) -> Fault {
        let shown = match value {
            Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
            scalar => scalar.to_string().chars().take(60).collect(),
        };
        self.fault(name, format!("is {shown}; it must be {wanted}"))
    }

    fn missing(&self, name: &str) -> Fault {
        self.fault(name, "is missing; the model cannot be planned without it")
    }

    /// A whole number from 0 on, when the field is there.
    pub(super) fn optional(&self, name: &str) -> Result<Option<u32>, Fault> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        // Some exporters write whole numbers as floats.
        let whole = value.as_u64().or_else(|| {
            let float = value.as_f64()?;
            (float >= 0.0 && float <= f64::from(u32::MAX) && float.fract() == 0.0)
                .then_some(float as u64)
        });
        match whole.and_then(|whole| u32::try_from(whole).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(name, value, "a whole number of 0 or more, below 2^32")),
        }
    }

    /// A whole number from 0 on, or a default when the field is absent.
    pub(super) fn or(&self, name: &str, default: u32) -> Result<u32, Fault> {
        Ok(self.optional(name)?.unwrap_or(default))
    }

    /// A whole number from 0 on.
    pub(super) fn number(&self, name: &str) -> Result<u32, Fault> {
        self.optional(name)?.ok_or_else(|| self.missing(name))
    }

    /// A whole number from 1 on.
    pub(super) fn dimension(&self, name: &str) -> Result<u32, Fault> {
        match self.number(name)? {
            0 => Err(self.fault(name, "is 0; it must be at least 1")),
            number => Ok(number),
        }
    }

    /// The first of several spellings that is there, from 1 on. The first is the one reported.
    pub(super) fn dimension_of(&self, names: &[&str]) -> Result<u32, Fault> {
        let found = names.iter().find(|name| self.value(name).is_some());
        match found.or(names.first()) {
            Some(name) => self.dimension(name),
            None => Err(self.missing("")),
        }
    }

    pub(super) fn optional_bool(&self, name: &str) -> Result<Option<bool>, Fault> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong(name, other, "true or false")),
        }
    }

    pub(super) fn bool_or(&self, name: &str, default: bool) -> Result<bool, Fault> {
        Ok(self.optional_bool(name)?.unwrap_or(default))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'j str>, Fault> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, other, "a string")),
        }
    }

    pub(super) fn list(&self, name: &str) -> Result<Option<&'j Vec<Value>>, Fault> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(name, other, "an array")),
        }
    }

    /// A list of whole numbers.
    pub(super) fn numbers(&self, name: &str) -> Result<Option<Vec<u32>>, Fault> {
        let Some(list) = self.list(name)? else {
            return Ok(None);
        };
        list.iter()
            .map(|value| {
                value
                    .as_u64()
                    .and_then(|number| u32::try_from(number).ok())
                    .ok_or_else(|| self.wrong(name, value, "a list of whole numbers"))
            })
            .collect::<Result<Vec<u32>, Fault>>()
            .map(Some)
    }

    /// A list of strings; empty when the field is absent.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<&'j str>, Fault> {
        let list = self.list(name)?.map(Vec::as_slice).unwrap_or_default();
        list.iter()
            .map(|value| {
                value
                    .as_str()
                    .ok_or_else(|| self.wrong(name, value, "a list of strings"))
            })
            .collect()
    }

    /// Layers of the model. Bounded here, before anything is allocated for each of them.
    pub(super) fn depth(&self, name: &str) -> Result<usize, Fault> {
        let depth = self.dimension(name)?;
        if depth > 4096 {
            return Err(self.fault(name, format!("is {depth}; at most 4096 layers are planned")));
        }
        Ok(depth as usize)
    }

    /// Checks that a list has an entry for each layer.
    pub(super) fn covers(&self, name: &str, length: usize, depth: usize) -> Result<(), Fault> {
        if length < depth {
            return Err(self.fault(
                name,
                format!("has {length} entries for {depth} layers; each layer needs one"),
            ));
        }
        Ok(())
    }
}
