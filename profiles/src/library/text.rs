//! Reading profile texts, with positions for what is wrong in them.

use crate::fault::{Fault, Faults};
use serde::de::DeserializeOwned;
use std::fs;
use std::io::Read;
use std::path::Path;
use toml::de::{DeTable, DeValue};

/// Largest profile file that is read, bytes. The largest embedded one is under 10 KB.
pub const MAX_PROFILE_BYTES: u64 = 1 << 20;

/// Reads a text file of at most `limit` bytes.
///
/// # Errors
/// A file that is missing, not a regular file, empty, too large or not UTF-8, in one line.
pub fn read_limited(path: &Path, limit: u64) -> Result<String, Fault> {
    let name = path.display().to_string();
    let fault = |message: String| Fault::whole(name.clone(), message);
    let cannot = |error: std::io::Error| fault(format!("cannot be read: {error}"));
    // Asked before opening: opening a pipe would wait for a writer.
    let about = fs::metadata(path).map_err(cannot)?;
    if !about.is_file() {
        return Err(fault("is not a regular file".to_owned()));
    }
    let too_large = |bytes: String| {
        fault(format!(
            "is {bytes} bytes, more than the {limit} that are read of such a file"
        ))
    };
    if about.len() > limit {
        return Err(too_large(about.len().to_string()));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)
        .map_err(cannot)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(format!("over {limit}")));
    }
    if bytes.is_empty() {
        return Err(fault("is empty".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        fault(format!(
            "is not text: byte {} is not UTF-8",
            error.utf8_error().valid_up_to()
        ))
    })
}

/// A TOML text under the name of its file.
pub(crate) struct Document<'t> {
    pub(crate) file: &'t str,
    text: &'t str,
    table: toml::Spanned<DeTable<'t>>,
}

impl<'t> Document<'t> {
    pub(crate) fn parse(file: &'t str, text: &'t str) -> Result<Self, Fault> {
        let table = DeTable::parse(text).map_err(|error| placed(file, text, &error))?;
        Ok(Document { file, text, table })
    }

    /// Every line where a text is no TOML; empty where it is. Of a line only the first complaint
    /// counts, since the rest often follows from it.
    pub(crate) fn syntax_faults(file: &str, text: &str) -> Vec<Fault> {
        let (_, errors) = DeTable::parse_recoverable(text);
        let mut faults: Vec<Fault> = errors
            .iter()
            .map(|error| placed(file, text, error))
            .collect();
        faults.sort_by_key(|fault| fault.position);
        faults.dedup_by_key(|fault| fault.position.map(|(line, _)| line));
        faults
    }

    /// Takes a key of the top level out, and its text where it is one.
    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        let value = self.table.get_mut().remove(key)?;
        value.get_ref().as_str().map(str::to_owned)
    }

    /// Adds every entry of `base`, at any depth, that this text leaves out.
    pub(crate) fn complete_from(&mut self, base: &Document<'t>) {
        complete(self.table.get_mut(), base.table.get_ref());
    }

    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.table.get_ref().contains_key(key)
    }

    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        T::deserialize(toml::de::Deserializer::from(self.table.clone()))
            .map_err(|error| placed(self.file, self.text, &error))
    }

    /// Every fault that keeps the text from being read at all, and those of the values that can be
    /// told apart from them.
    ///
    /// A reader stops at its first complaint. So what is complained of is given a value of another
    /// type or, where none will do, taken out, and the text is read again, until it can be read or a
    /// complaint has no entry of its own. Values are then checked under two sets of stand-ins: a
    /// fault that both have does not come from them.
    pub(crate) fn every_fault<T>(
        &self,
        read: impl Fn(&Document<'t>) -> Result<T, Fault>,
        validate: impl Fn(&T) -> Result<(), Faults>,
    ) -> Vec<Fault> {
        let mut trials = [self.again(), self.again()];
        let mut faults = Vec::new();
        let mut removed = Vec::new();
        // Every round mends one entry; a text of more than that is no profile.
        for _ in 0..1000 {
            let Err(fault) = read(&trials[0]) else { break };
            let offset = fault
                .position
                .and_then(|position| offset_at(self.text, position));
            let about_removed = removed
                .iter()
                .any(|key| fault.message == format!("missing field `{key}`"));
            let whole = fault.field == "base";
            let position = fault.position;
            if !about_removed {
                faults.push(fault);
            }
            // Without its base an overlay is no profile at all, and says so of every field.
            let Some(offset) = offset.filter(|_| !whole) else {
                break;
            };
            let fits = stand_ins().find(|[first, second]| {
                let mut trial = trials[0].again();
                if !replace_at(trial.table.get_mut(), offset, first) {
                    return false;
                }
                if read(&trial).is_err_and(|fault| fault.position == position) {
                    return false;
                }
                trials[0] = trial;
                replace_at(trials[1].table.get_mut(), offset, second)
            });
            if fits.is_some() {
                continue;
            }
            let [first, second] = &mut trials;
            remove_at(second.table.get_mut(), offset);
            match remove_at(first.table.get_mut(), offset) {
                Some(key) => removed.push(key),
                None => break,
            }
        }
        let [first, second] = trials.map(|trial| {
            let values = read(&trial).map(|profile| validate(&profile));
            match values {
                Ok(Err(Faults(found))) => found,
                Ok(Ok(())) | Err(_) => Vec::new(),
            }
        });
        let both = first.into_iter().filter(|fault| second.contains(fault));
        faults.extend(both.map(|fault| self.place(fault)));
        faults.sort_by_key(|fault| fault.position);
        faults
    }

    fn again(&self) -> Document<'t> {
        Document {
            file: self.file,
            text: self.text,
            table: self.table.clone(),
        }
    }

    /// Ties a fault of a field to the place of that field, or of the nearest thing around it.
    pub(crate) fn place(&self, mut fault: Fault) -> Fault {
        fault.file = Some(self.file.to_owned());
        if let Some(offset) = self.offset_of(&fault.field) {
            fault.position = Some(line_and_column(self.text, offset));
        }
        fault
    }

    /// Ties every fault to its place.
    pub(crate) fn place_all(&self, faults: Faults) -> Faults {
        Faults(faults.0.into_iter().map(|f| self.place(f)).collect())
    }

    fn offset_of(&self, field: &str) -> Option<usize> {
        let mut offset = None;
        let mut here: Option<&DeValue<'_>> = None;
        for step in field.split(['.', '[', ']']).filter(|s| !s.is_empty()) {
            let next = match here {
                None => self.table.get_ref().get_key_value(step),
                Some(DeValue::Table(table)) => table.get_key_value(step),
                Some(DeValue::Array(array)) => {
                    let Some(item) = step.parse().ok().and_then(|i: usize| array.get(i)) else {
                        break;
                    };
                    offset = Some(item.span().start);
                    here = Some(item.get_ref());
                    continue;
                }
                Some(_) => break,
            };
            let Some((key, value)) = next else { break };
            // A value under a `[header]` starts at the header; a scalar at itself.
            offset = Some(key.span().start);
            here = Some(value.get_ref());
        }
        offset
    }
}

/// Adds the entries of `base` that `table` has not; entries of both are kept, tables entry by entry.
fn complete<'t>(table: &mut DeTable<'t>, base: &DeTable<'t>) {
    for (key, value) in base.iter() {
        match (table.get_mut(key.get_ref().as_ref()), value.get_ref()) {
            (None, _) => {
                table.insert(key.clone(), value.clone());
            }
            (Some(mine), DeValue::Table(inner)) => {
                if let DeValue::Table(own) = mine.get_mut() {
                    complete(own, inner);
                }
            }
            (Some(_), _) => {}
        }
    }
}

/// A fault at the place that a TOML reader complains of.
pub(super) fn placed(file: &str, text: &str, error: &toml::de::Error) -> Fault {
    Fault {
        file: Some(file.to_owned()),
        position: error.span().map(|span| line_and_column(text, span.start)),
        field: String::new(),
        message: error.message().to_owned(),
    }
}

/// Line and column of a byte offset, from 1; columns count characters.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(start..).unwrap_or("").chars().count() + 1;
    (line, column)
}

/// The byte offset of a line and column as [`line_and_column`] counts them.
fn offset_at(text: &str, (line, column): (usize, usize)) -> Option<usize> {
    let start = match line {
        1 => 0,
        _ => text.match_indices('\n').nth(line - 2)?.0 + 1,
    };
    let tail = text.get(start..)?;
    let inside = tail
        .char_indices()
        .nth(column - 1)
        .map_or(tail.len(), |(at, _)| at);
    Some(start + inside)
}

/// Values of each type to read a text on with, in pairs that differ.
fn stand_ins() -> impl Iterator<Item = [DeValue<'static>; 2]> {
    const VALUES: &str = "v = [[1, 4096], ['stand-in-a', 'stand-in-b'], [true, false], [[], []]]";
    let table = DeTable::parse(VALUES).ok().map(toml::Spanned::into_inner);
    let list = table.and_then(|mut table| table.remove("v"));
    let pairs = match list.map(toml::Spanned::into_inner) {
        Some(DeValue::Array(pairs)) => pairs.into_iter().collect(),
        _ => Vec::new(),
    };
    pairs
        .into_iter()
        .filter_map(|pair| match pair.into_inner() {
            DeValue::Array(values) => {
                let mut values = values.into_iter().map(toml::Spanned::into_inner);
                Some([values.next()?, values.next()?])
            }
            _ => None,
        })
}

/// Puts a value in the place of the one that starts at an offset and is no table; says whether there
/// was one.
fn replace_at<'t>(table: &mut DeTable<'t>, offset: usize, with: &DeValue<'t>) -> bool {
    table
        .iter_mut()
        .any(|(_, value)| replace_value(value, offset, with))
}

fn replace_value<'t>(
    value: &mut toml::Spanned<DeValue<'t>>,
    offset: usize,
    with: &DeValue<'t>,
) -> bool {
    let starts = value.span().start == offset;
    match value.get_mut() {
        DeValue::Table(inner) => replace_at(inner, offset, with),
        DeValue::Array(items) if !starts => items
            .iter_mut()
            .any(|item| replace_value(item, offset, with)),
        other if starts => {
            *other = with.clone();
            true
        }
        _ => false,
    }
}

/// Takes out the innermost entry whose key or scalar value starts at an offset, and names it.
fn remove_at(table: &mut DeTable<'_>, offset: usize) -> Option<String> {
    let found = table.iter().find_map(|(key, value)| {
        let starts = key.span().start == offset
            || (value.span().start == offset
                && !matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_)));
        starts.then(|| key.get_ref().to_string())
    });
    if let Some(key) = found {
        table.remove(key.as_str());
        return Some(key);
    }
    table
        .iter_mut()
        .find_map(|(_, value)| match value.get_mut() {
            DeValue::Table(inner) => remove_at(inner, offset),
            DeValue::Array(items) => items.iter_mut().find_map(|item| match item.get_mut() {
                DeValue::Table(inner) => remove_at(inner, offset),
                _ => None,
            }),
            _ => None,
        })
}
