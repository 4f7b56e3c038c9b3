//! A tree of values, each of which remembers where it was written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is the built-in default.
    Default,
    /// In a file.
    File {
        /// The file.
        path: Arc<PathBuf>,
        /// The line, from 1, where the format's parser knows it.
        line: Option<usize>,
    },
    /// By the hub.
    Hub,
    /// In the environment.
    Environment {
        /// The variable's name.
        variable: String,
    },
    /// On the command line.
    Flag {
        /// The option as typed, without its value: `--log-level`.
        option: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Hub => f.write_str("the hub"),
            Self::Environment { variable } => write!(f, "environment {variable}"),
            Self::Flag { option } => f.write_str(option),
        }
    }
}

/// A value with its origin.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it was written.
    pub origin: Origin,
}

/// The values that the three file formats have in common.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`: as if the key were absent.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// A text; also whatever comes from the environment or the command line.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Named values.
    Table(BTreeMap<String, Node>),
}

impl Value {
    /// The kind of value, as an error names it.
    pub fn kind(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
            Self::List(_) => "a list".to_owned(),
            Self::Table(_) => "a group of keys".to_owned(),
        }
    }
}

impl Node {
    /// An empty table from nowhere: what layers are merged onto.
    pub fn empty() -> Self {
        Self { value: Value::Table(BTreeMap::new()), origin: Origin::Default }
    }

    /// The tree of a JSON value, every node of it from `origin`.
    pub fn from_json(value: &serde_json::Value, origin: &Origin) -> Self {
        let value = match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => {
                number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Integer)
            }
            serde_json::Value::String(text) => Value::Text(text.clone()),
            serde_json::Value::Array(items) => {
                Value::List(items.iter().map(|item| Self::from_json(item, origin)).collect())
            }
            serde_json::Value::Object(map) => {
                Value::Table(map.iter().map(|(name, item)| (name.clone(), Self::from_json(item, origin))).collect())
            }
        };
        Self { value, origin: origin.clone() }
    }

    /// Lays `over` on top: tables key by key, anything else replaced whole.
    pub fn merge(&mut self, over: Self) {
        match (&mut self.value, over.value) {
            (Value::Table(mine), Value::Table(theirs)) => {
                for (key, node) in theirs {
                    match mine.get_mut(&key) {
                        Some(existing) => existing.merge(node),
                        None => {
                            mine.insert(key, node);
                        }
                    }
                }
                if self.origin == Origin::Default {
                    self.origin = over.origin;
                }
            }
            // A key written with nothing after it means "not set here", in YAML as in people's minds.
            (_, Value::Null) => {}
            (mine, theirs) => {
                *mine = theirs;
                self.origin = over.origin;
            }
        }
    }

    /// The node at a dotted key, if any layer wrote it.
    pub fn at(&self, key: &str) -> Option<&Self> {
        key.split('.').try_fold(self, |node, part| match &node.value {
            Value::Table(table) => table.get(part),
            _ => None,
        })
    }

    /// A tree that holds only `node` at a dotted key.
    pub(crate) fn at_key(key: &str, node: Self) -> Self {
        let origin = node.origin.clone();
        key.rsplit('.').fold(node, |node, part| Self {
            value: Value::Table(BTreeMap::from([(part.to_owned(), node)])),
            origin: origin.clone(),
        })
    }

    /// A tree that holds only `text` at a dotted key.
    pub fn single(key: &str, text: &str, origin: &Origin) -> Self {
        Self::at_key(key, Self { value: Value::Text(text.to_owned()), origin: origin.clone() })
    }
}
