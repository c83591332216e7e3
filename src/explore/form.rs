//! The question as a form: one field an option of `recommend`, made from its definition.

use super::edit;
use super::field::{Field, Vocabulary, field};
use crate::args::{self, Typed};
use clap::Command;
use ratatui::crossterm::event::KeyEvent;

/// Headings in the order in which people fill a question in; any other comes after them.
const ORDER: [&str; 5] = ["Model and GPUs", "Engine", "Traffic", "Limits", "Choices"];
/// Options that are paths around the question rather than the question.
const HIDDEN: [&str; 2] = ["profiles", "help"];
/// Largest number that `+` doubles to.
const MOST: f64 = 1e9;

/// The form.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// The fields, group by group.
    pub fields: Vec<Field>,
    /// The field under the cursor.
    pub at: usize,
    /// The field under the cursor is being edited.
    pub editing: Option<Editing>,
    /// Options that have no field.
    hidden: Typed,
}

/// A field being edited.
#[derive(Debug, Clone, PartialEq)]
pub struct Editing {
    /// The text.
    pub line: edit::Line,
    /// What the field held before.
    pub before: String,
    /// Completions being walked through: the text that they complete, and the one that is shown.
    pub walk: Option<(String, usize)>,
}

impl Form {
    /// The form of a command's options, filled in with what was typed.
    pub fn new(command: &Command, vocabulary: &Vocabulary, typed: &Typed) -> Form {
        let mut fields: Vec<Field> = command
            .get_arguments()
            .filter(|a| args::of_the_question(a) && !HIDDEN.contains(&a.get_id().as_str()))
            .map(|argument| field(argument, vocabulary, typed))
            .collect();
        let place = |field: &Field| {
            let known = ORDER.iter().position(|group| *group == field.group);
            known.unwrap_or(ORDER.len())
        };
        fields.sort_by_key(place);
        let mut hidden = Typed::default();
        for (flag, value) in typed.options() {
            if !fields.iter().any(|field| field.flag == *flag) {
                hidden.set(flag, value.clone());
            }
        }
        Form {
            fields,
            at: 0,
            editing: None,
            hidden,
        }
    }

    /// The question as it stands, the text under the cursor included.
    pub fn typed(&self) -> Typed {
        let mut typed = self.hidden.clone();
        for field in &self.fields {
            typed.set(&field.flag, field.text.trim());
        }
        typed
    }

    /// The field under the cursor.
    pub fn field(&self) -> Option<&Field> {
        self.fields.get(self.at)
    }

    /// Moves the cursor by so many fields.
    pub fn step(&mut self, by: isize) {
        let last = self.fields.len().saturating_sub(1);
        self.at = self.at.saturating_add_signed(by).min(last);
    }

    /// Moves the cursor to a field.
    pub fn go(&mut self, at: usize) {
        self.at = at.min(self.fields.len().saturating_sub(1));
    }

    /// Begins to edit the field under the cursor.
    pub fn edit(&mut self) {
        if let Some(field) = self.fields.get(self.at) {
            self.editing = Some(Editing {
                line: edit::Line::new(&field.text),
                before: field.text.clone(),
                walk: None,
            });
        }
    }

    /// Takes the text over; true where that changed the question.
    pub fn take_over(&mut self) -> bool {
        let Some(editing) = &self.editing else {
            return false;
        };
        let text = editing.line.text();
        match self.fields.get_mut(self.at) {
            Some(field) if field.text != text => {
                field.text = text;
                true
            }
            _ => false,
        }
    }

    /// Ends editing; true where giving up changed the question back.
    pub fn end_edit(&mut self, keep: bool) -> bool {
        let Some(editing) = self.editing.take() else {
            return false;
        };
        match self.fields.get_mut(self.at) {
            Some(field) if !keep && field.text != editing.before => {
                field.text = editing.before;
                true
            }
            _ => false,
        }
    }

    /// Gives a key to the text being edited; false where it is nothing to it.
    pub fn key(&mut self, key: KeyEvent) -> bool {
        let Some(editing) = &mut self.editing else {
            return false;
        };
        let used = editing.line.key(key);
        if used {
            editing.walk = None;
        }
        used
    }

    /// Values that the text being edited could become.
    pub fn completions(&self) -> Vec<&str> {
        let (Some(field), Some(editing)) = (self.field(), &self.editing) else {
            return Vec::new();
        };
        let words = || field.words.iter().map(String::as_str);
        if field.closed {
            return words().collect();
        }
        let text = match &editing.walk {
            Some((stem, _)) => stem.clone(),
            None => editing.line.text(),
        };
        // A list completes its last entry.
        let last = text.rsplit(',').next().unwrap_or_default().to_lowercase();
        let mut found: Vec<&str> = words().filter(|word| word.starts_with(&last)).collect();
        found.extend(words().filter(|word| !word.starts_with(&last) && word.contains(&last)));
        if found == [last.as_str()] {
            found.clear();
        }
        found
    }

    /// Puts the next completion, or the one before, into the text; true where there is one.
    pub fn complete(&mut self, by: isize) -> bool {
        let words: Vec<String> = self.completions().into_iter().map(str::to_owned).collect();
        let Some(editing) = &mut self.editing else {
            return false;
        };
        if words.is_empty() {
            return false;
        }
        let count = words.len() as isize;
        let (stem, at) = match editing.walk.take() {
            None if by < 0 => (editing.line.text(), count - 1),
            None => (editing.line.text(), 0),
            Some((stem, at)) => (stem, (at as isize + by).rem_euclid(count)),
        };
        let kept = stem.rfind(',').map_or("", |comma| &stem[..=comma]);
        editing.line.set(&format!("{kept}{}", words[at as usize]));
        editing.walk = Some((stem, at as usize));
        true
    }

    /// Sets the field under the cursor; true where that changed it.
    pub fn set(&mut self, text: &str) -> bool {
        match self.fields.get_mut(self.at) {
            Some(field) if field.text != text => {
                field.text = text.to_owned();
                true
            }
            _ => false,
        }
    }

    /// The next value of a field that has few, or twice or half of a number; true where that changed
    /// the field.
    pub fn turn(&mut self, by: isize) -> bool {
        let Some(field) = self.field() else {
            return false;
        };
        let shown = if field.text.is_empty() {
            &field.default
        } else {
            &field.text
        };
        if !field.words.is_empty() {
            let count = field.words.len() as isize;
            let at = field.words.iter().position(|word| word == shown);
            let next = match at {
                Some(at) => (at as isize + by).rem_euclid(count),
                None if by < 0 => count - 1,
                None => 0,
            };
            let text = field.words[next as usize].clone();
            // The default is shown as such.
            let text = if text == field.default {
                String::new()
            } else {
                text
            };
            return self.set(&text);
        }
        let Ok(number) = shown.parse::<f64>() else {
            return false;
        };
        let turned = if by > 0 { number * 2.0 } else { number / 2.0 };
        let whole = number.fract() == 0.0 && number >= 1.0;
        let turned = if whole {
            turned.floor().max(1.0)
        } else {
            turned
        };
        if turned.is_finite() && turned <= MOST {
            self.set(&turned.to_string())
        } else {
            false
        }
    }

    /// Fields that a message names by their flags, or by quoting what they hold.
    pub fn named(&self, message: &str) -> Vec<usize> {
        let words: Vec<&str> = message
            .split(|c: char| !(c.is_alphanumeric() || c == '-'))
            .collect();
        (0..self.fields.len())
            .filter(|&i| {
                let field = &self.fields[i];
                let quoted =
                    !field.text.is_empty() && message.contains(&format!("`{}`", field.text));
                quoted || words.contains(&format!("--{}", field.flag).as_str())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parplan_profiles::Library;

    fn form(options: &[(&str, &str)]) -> Form {
        let mut typed = Typed::default();
        for (flag, value) in options {
            typed.set(flag, *value);
        }
        Form::new(
            &args::question(),
            &Vocabulary::of(&Library::embedded()),
            &typed,
        )
    }

    fn at(form: &mut Form, flag: &str) {
        let at = form.fields.iter().position(|f| f.flag == flag).unwrap();
        form.go(at);
    }

    /// The list of what can be asked is there, whatever else `recommend` takes.
    #[test]
    fn every_option_of_a_question_has_a_field() {
        let form = form(&[]);
        for flag in [
            "model",
            "gpu",
            "gpus",
            "engine",
            "isl",
            "osl",
            "concurrency",
            "imbalance",
            "ttft",
            "tpot",
            "symmetric-memory",
            "dcp",
            "speculative",
            "kv-dtype",
            "objective",
            "tp",
        ] {
            assert!(form.fields.iter().any(|f| f.flag == flag), "{flag}");
        }
        for flag in ["json", "stats", "save", "top", "profiles"] {
            assert!(form.fields.iter().all(|f| f.flag != flag), "{flag}");
        }
        assert_eq!(form.fields[0].flag, "model");
        let default = |flag: &str| {
            let field = form.fields.iter().find(|f| f.flag == flag).unwrap();
            field.default.clone()
        };
        assert_eq!(default("isl"), "1024");
        assert_eq!(default("range-ratio"), "0.8");
        assert_eq!(default("symmetric-memory"), "auto");
        assert_eq!(default("engine-assume"), "off");
        assert_eq!(default("model"), "?");
        assert_eq!(default("tp"), "any");
    }

    #[test]
    fn what_was_typed_comes_back_hidden_options_too() {
        let form = form(&[("model", "qwen3-8b"), ("profiles", "/some/where")]);
        let typed = form.typed();
        assert_eq!(typed.get("model").unwrap(), "qwen3-8b");
        assert_eq!(typed.get("profiles").unwrap(), "/some/where");
        assert_eq!(typed.options().len(), 2);
    }

    #[test]
    fn a_name_is_completed_from_its_beginning_first() {
        let mut form = form(&[]);
        at(&mut form, "gpu");
        form.edit();
        form.editing.as_mut().unwrap().line.insert("b2");
        assert_eq!(form.completions(), ["b200", "gb200"]);
        assert!(form.complete(1));
        assert!(form.take_over());
        assert_eq!(form.typed().get("gpu").unwrap(), "b200");
        // Giving up brings back what was there.
        assert!(form.end_edit(false));
        assert_eq!(form.typed().get("gpu"), None);
    }

    #[test]
    fn a_list_completes_its_last_entry() {
        let mut form = form(&[]);
        at(&mut form, "kv-dtype");
        form.edit();
        form.editing.as_mut().unwrap().line.insert("bf16,fp8");
        assert!(form.complete(1));
        let text = form.editing.as_ref().unwrap().line.text();
        assert!(text.starts_with("bf16,fp8"), "{text}");
    }

    #[test]
    fn switches_turn_and_numbers_double() {
        let mut form = form(&[("concurrency", "3")]);
        at(&mut form, "symmetric-memory");
        assert!(form.turn(1));
        assert_eq!(form.typed().get("symmetric-memory").unwrap(), "on");
        assert!(form.turn(-1));
        assert_eq!(form.typed().get("symmetric-memory"), None);
        at(&mut form, "concurrency");
        for (by, expected) in [(1, "6"), (-1, "3"), (-1, "1"), (1, "2")] {
            form.turn(by);
            assert_eq!(form.typed().get("concurrency").unwrap(), expected);
        }
        at(&mut form, "isl");
        assert!(form.turn(1));
        assert_eq!(form.typed().get("isl").unwrap(), "2048");
        at(&mut form, "imbalance");
        assert!(!form.turn(1));
    }

    #[test]
    fn a_message_names_its_fields() {
        let form = form(&[]);
        let named = |message: &str| -> Vec<String> {
            let fields = form.named(message);
            fields
                .iter()
                .map(|&i| form.fields[i].flag.clone())
                .collect()
        };
        assert_eq!(named("--gpus 7 is not --tp 2"), ["gpus", "tp"]);
        assert_eq!(named("invalid value for '--isl <TOKENS>'"), ["isl"]);
        assert!(named("nothing").is_empty());
        let mut form = form;
        at(&mut form, "gpu");
        form.set("b2");
        assert_eq!(form.named("GPU `b2` is not known"), [form.at]);
    }
}
