//! How a typed value is read from a node, documented, shown and described as a JSON schema.

use crate::node::{Node, Origin, Value};
use std::collections::BTreeMap;
use std::fmt;

/// A value that configuration can hold: a leaf such as a duration, or a group declared with [`crate::settings!`].
pub trait Setting: Sized {
    /// Reads the value written at `key`. Each problem is reported; `None` means the default stands.
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self>;

    /// The value as it would be written in JSON.
    fn show(&self) -> serde_json::Value;

    /// The JSON schema of the value.
    fn schema() -> serde_json::Value;

    /// What the manual calls the type, for example `duration`; empty for a group.
    fn type_name() -> String;

    /// A group with nothing set, as [`Setting::show`] shows it; null for a leaf.
    fn blank() -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Lists the keys below `key`, itself a leaf unless overridden.
    fn document(key: &str, text: &str, default: &serde_json::Value, out: &mut Vec<KeyDoc>) {
        out.push(KeyDoc {
            key: key.to_owned(),
            text: text.to_owned(),
            type_name: Self::type_name(),
            default: default.clone(),
        });
    }
}

/// One key, as the manual lists it.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyDoc {
    /// The dotted key. Where it holds `<name>` or `[]` it stands for every entry of a map or list of groups, which only
    /// a file or (for a name) `--set` can give: see [`KeyDoc::is_entry`].
    pub key: String,
    /// Its description: the field's doc comment.
    pub text: String,
    /// Its type.
    pub type_name: String,
    /// Its default.
    pub default: serde_json::Value,
}

impl KeyDoc {
    /// Whether this describes the entries of a map or list of groups, and so has no value and no variable of its own.
    pub fn is_entry(&self) -> bool {
        self.key.contains(['<', '['])
    }

    /// The environment variable that sets this key: `update.soak` is `PICKET_UPDATE_SOAK`.
    pub fn variable(&self) -> String {
        self.variable_under("PICKET_")
    }

    /// The same for a program whose variables begin with `prefix`.
    pub fn variable_under(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.key.replace('.', "_").to_uppercase())
    }
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gravity {
    /// The value cannot be used.
    Error,
    /// Nobody declared the key. It has no effect.
    Unknown,
    /// The value can be used, and will not do what it is for.
    Warning,
}

/// Something wrong with one value.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Where it was written.
    pub origin: Origin,
    /// The dotted key; empty for a whole file.
    pub key: String,
    /// How bad it is.
    pub gravity: Gravity,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Problem {
    /// Describes one problem.
    pub fn new(origin: &Origin, key: &str, gravity: Gravity, message: String) -> Self {
        Self { origin: origin.clone(), key: key.to_owned(), gravity, message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.origin, self.message)
        } else {
            write!(f, "{}: {}: {}", self.origin, self.key, self.message)
        }
    }
}

/// All problems of one reading.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Reports a value that cannot be used: what was expected, and what was found.
    pub fn expected(&mut self, node: &Node, key: &str, expected: &str) {
        let message = format!("expected {expected}, found {}", node.value.kind());
        self.0.push(Problem::new(&node.origin, key, Gravity::Error, message));
    }

    /// Whether any problem makes the configuration unusable.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|problem| problem.gravity == Gravity::Error)
    }
}

/// The fields of a group while it is read.
pub struct Fields<'a> {
    key: &'a str,
    table: Option<&'a BTreeMap<String, Node>>,
}

impl<'a> Fields<'a> {
    /// Opens `node` as a group; anything else than a table (or nothing) is reported.
    pub fn open(node: &'a Node, key: &'a str, problems: &mut Problems) -> Self {
        let table = match &node.value {
            Value::Table(table) => Some(table),
            Value::Null => None,
            _ => {
                problems.expected(node, key, "a group of keys");
                None
            }
        };
        Self { key, table }
    }

    /// Reads the field called `name`.
    pub fn field<T: Setting>(&self, name: &str, problems: &mut Problems) -> Option<T> {
        let node = self.table?.get(name)?;
        if node.value == Value::Null { None } else { T::read(node, &join(self.key, name), problems) }
    }

    /// Reports every key that is none of `known`, with the nearest one that is.
    pub fn finish(&self, known: &[&str], problems: &mut Problems) {
        for (name, node) in self.table.into_iter().flatten() {
            if known.contains(&name.as_str()) {
                continue;
            }
            let hint = nearest(name, known).map(|near| format!("; did you mean {:?}?", join(self.key, near)));
            let message = format!("no such key{}", hint.unwrap_or_default());
            problems.0.push(Problem::new(&node.origin, &join(self.key, name), Gravity::Unknown, message));
        }
    }
}

/// The dotted key of `name` in the group `key`.
pub fn join(key: &str, name: &str) -> String {
    if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }
}

/// The name in `known` that `name` was most likely meant to be.
pub fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), *known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min()
        .map(|(_, known)| known)
}
