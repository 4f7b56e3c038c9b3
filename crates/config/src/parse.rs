//! From the bytes of a file to a tree of nodes with line numbers: YAML, JSON and TOML.
//!
//! Bounds: a file has at most [`MAX_BYTES`], a tree at most [`MAX_DEPTH`] levels, and YAML's aliases are not followed
//! further than the parser's own budget allows.

use crate::node::{Node, Origin, Value};
use crate::setting::{Gravity, Problem};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest configuration file, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;
/// The deepest nesting of groups and lists.
const MAX_DEPTH: usize = 16;

/// Reads the file at `path` in the format its extension names.
pub fn file(path: &Path) -> Result<Node, Problem> {
    let origin = Origin::File { path: Arc::new(path.to_owned()), line: None };
    let problem = |message: String| Problem::new(&origin, "", Gravity::Error, message);
    let read =
        picket_durable::read_text(path, MAX_BYTES).map_err(|e| problem(format!("cannot be read: {}", e.source)))?;
    text(path, &read)
}

/// Reads `text` as if it were what the file at `path` holds.
pub fn text(path: &Path, text: &str) -> Result<Node, Problem> {
    let shared = Arc::new(path.to_owned());
    match path.extension().and_then(|e| e.to_str()) {
        Some("yaml" | "yml") => yaml(text, &shared),
        Some("json") => json(text, &shared),
        Some("toml") => toml(text, &shared),
        _ => Err(error(&shared, None, "has an unknown extension: use .yaml, .json or .toml")),
    }
}

fn at(path: &Arc<PathBuf>, line: Option<usize>) -> Origin {
    Origin::File { path: Arc::clone(path), line }
}

fn error(path: &Arc<PathBuf>, line: Option<usize>, message: impl Into<String>) -> Problem {
    Problem::new(&at(path, line), "", Gravity::Error, message.into())
}

// === YAML ===

/// A value as serde sees it, each child with its place; `serde_saphyr::Spanned` carries the lines.
struct Raw(RawYaml);

enum RawYaml {
    Scalar(Value),
    List(Vec<serde_saphyr::Spanned<Raw>>),
    Table(Vec<(String, serde_saphyr::Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RawVisitor;
        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
                Ok(Raw(RawYaml::Scalar(Value::Bool(v))))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
                Ok(Raw(RawYaml::Scalar(Value::Integer(v))))
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Raw, E> {
                let v = i64::try_from(v).map_err(|_| E::custom("the number is too large"))?;
                Ok(Raw(RawYaml::Scalar(Value::Integer(v))))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Raw, E> {
                Ok(Raw(RawYaml::Scalar(Value::Float(v))))
            }
            fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
                Ok(Raw(RawYaml::Scalar(Value::Text(v.to_owned()))))
            }
            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw(RawYaml::Scalar(Value::Null)))
            }
            fn visit_none<E: serde::de::Error>(self) -> Result<Raw, E> {
                self.visit_unit()
            }
            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Raw, D::Error> {
                Raw::deserialize(d)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = seq.next_element()? {
                    list.push(item);
                }
                Ok(Raw(RawYaml::List(list)))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut table = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    table.push(entry);
                }
                Ok(Raw(RawYaml::Table(table)))
            }
        }
        deserializer.deserialize_any(RawVisitor)
    }
}

/// Parses YAML 1.2 text.
pub fn yaml(text: &str, path: &Arc<PathBuf>) -> Result<Node, Problem> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Node { value: Value::Null, origin: at(path, None) });
    }
    let options = serde_saphyr::options! {
        with_snippet: false,
        // `no` is a word, not a boolean: YAML 1.1's surprise.
        strict_booleans: true,
    };
    let raw: serde_saphyr::Spanned<Raw> = serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        let line = e.location().and_then(|l| usize::try_from(l.line()).ok()).filter(|line| *line > 0);
        error(path, line, format!("is not valid YAML: {}", first_line(&e.without_snippet().to_string())))
    })?;
    yaml_node(raw, path, 0)
}

fn yaml_node(spanned: serde_saphyr::Spanned<Raw>, path: &Arc<PathBuf>, depth: usize) -> Result<Node, Problem> {
    let line = usize::try_from(spanned.referenced.line()).ok().filter(|line| *line > 0);
    if depth > MAX_DEPTH {
        return Err(too_deep(path, line));
    }
    let value = match spanned.value.0 {
        RawYaml::Scalar(value) => value,
        RawYaml::List(items) => {
            Value::List(items.into_iter().map(|item| yaml_node(item, path, depth + 1)).collect::<Result<_, _>>()?)
        }
        RawYaml::Table(entries) => Value::Table(
            entries
                .into_iter()
                .map(|(key, item)| Ok((key, yaml_node(item, path, depth + 1)?)))
                .collect::<Result<_, _>>()?,
        ),
    };
    Ok(Node { value, origin: at(path, line) })
}

// === JSON ===

/// The members of a JSON object in their order, values unparsed: a borrowed `RawValue` points into the text, and where
/// it points is its line.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(entry) = map.next_entry::<String, &'de RawValue>()? {
                    members.push(entry);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

/// Parses JSON text.
pub fn json(text: &str, path: &Arc<PathBuf>) -> Result<Node, Problem> {
    let raw: &RawValue =
        serde_json::from_str(text).map_err(|e| error(path, Some(e.line()), format!("is not valid JSON: {e}")))?;
    json_node(raw, text, path, 0)
}

fn json_node(raw: &RawValue, text: &str, path: &Arc<PathBuf>, depth: usize) -> Result<Node, Problem> {
    let offset = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    let line = Some(line_of(text, offset));
    if depth > MAX_DEPTH {
        return Err(too_deep(path, line));
    }
    let bad = |e: serde_json::Error| error(path, line, format!("is not valid JSON: {e}"));
    let value = match raw.get().as_bytes().first() {
        Some(b'{') => {
            let members: Members<'_> = serde_json::from_str(raw.get()).map_err(bad)?;
            let mut table = BTreeMap::new();
            for (key, item) in members.0 {
                if table.contains_key(&key) {
                    return Err(error(path, line, format!("has the key {key:?} twice in one object")));
                }
                table.insert(key, json_node(item, text, path, depth + 1)?);
            }
            Value::Table(table)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(bad)?;
            Value::List(items.into_iter().map(|item| json_node(item, text, path, depth + 1)).collect::<Result<_, _>>()?)
        }
        _ => match serde_json::from_str(raw.get()).map_err(bad)? {
            serde_json::Value::Bool(value) => Value::Bool(value),
            serde_json::Value::String(text) => Value::Text(text),
            serde_json::Value::Number(number) => {
                number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Integer)
            }
            _ => Value::Null,
        },
    };
    Ok(Node { value, origin: at(path, line) })
}

// === TOML ===

/// Parses TOML 1.0 text.
pub fn toml(text: &str, path: &Arc<PathBuf>) -> Result<Node, Problem> {
    let table = toml::de::DeTable::parse(text).map_err(|e| {
        let line = e.span().map(|span| line_of(text, span.start));
        error(path, line, format!("is not valid TOML: {}", first_line(e.message())))
    })?;
    let entries = toml_table(table.get_ref(), text, path, 0)?;
    Ok(Node { value: Value::Table(entries), origin: at(path, None) })
}

fn toml_table(
    table: &toml::de::DeTable<'_>,
    text: &str,
    path: &Arc<PathBuf>,
    depth: usize,
) -> Result<BTreeMap<String, Node>, Problem> {
    table
        .iter()
        .map(|(key, item)| Ok((key.get_ref().to_string(), toml_node(item.get_ref(), &item.span(), text, path, depth)?)))
        .collect()
}

fn toml_node(
    value: &toml::de::DeValue<'_>,
    span: &Range<usize>,
    text: &str,
    path: &Arc<PathBuf>,
    depth: usize,
) -> Result<Node, Problem> {
    use toml::de::DeValue;
    let line = Some(line_of(text, span.start));
    if depth > MAX_DEPTH {
        return Err(too_deep(path, line));
    }
    let value = match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Integer(number) => Value::Integer(
            i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| error(path, line, "has a number that is too large"))?,
        ),
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Datetime(value) => Value::Text(value.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| toml_node(item.get_ref(), &item.span(), text, path, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
        DeValue::Table(table) => Value::Table(toml_table(table, text, path, depth + 1)?),
    };
    Ok(Node { value, origin: at(path, line) })
}

// === Shared ===

fn too_deep(path: &Arc<PathBuf>, line: Option<usize>) -> Problem {
    error(path, line, format!("is nested deeper than {MAX_DEPTH} levels"))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.get(..offset).unwrap_or(text).matches('\n').count() + 1
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path() -> Arc<PathBuf> {
        Arc::new(PathBuf::from("config"))
    }

    fn line(node: &Node, key: &str) -> Option<usize> {
        match &node.at(key)?.origin {
            Origin::File { line, .. } => *line,
            _ => None,
        }
    }

    #[test]
    fn the_three_formats_give_the_same_tree_with_lines() {
        let yaml = yaml("a:\n  b: [1, x]\n  c: true\nd: 2.5\n", &path()).unwrap();
        let json = json("{\"a\": {\n \"b\": [1, \"x\"],\n\t\"c\": true},\n \"d\": 2.5}", &path()).unwrap();
        let toml = toml("d = 2.5\n[a]\nb = [1, \"x\"]\nc = true\n", &path()).unwrap();
        for node in [&yaml, &json, &toml] {
            assert_eq!(node.at("a.c").unwrap().value, Value::Bool(true));
            assert_eq!(node.at("d").unwrap().value, Value::Float(2.5));
            let Value::List(items) = &node.at("a.b").unwrap().value else { panic!("no list") };
            assert_eq!(items[1].value, Value::Text("x".into()));
        }
        assert_eq!((line(&yaml, "a.c"), line(&json, "a.c"), line(&toml, "a.c")), (Some(3), Some(3), Some(4)));
    }

    #[test]
    fn words_that_yaml_1_1_took_for_booleans_stay_words() {
        let node = yaml("country: no\n", &path()).unwrap();
        assert_eq!(node.at("country").unwrap().value, Value::Text("no".into()));
    }

    #[test]
    fn a_broken_file_names_its_line() {
        let problems = [
            yaml("a: 1\nb: [1, 2\n", &path()).unwrap_err(),
            json("{\n\"a\": 1,\n}", &path()).unwrap_err(),
            toml("a = 1\nb = \n", &path()).unwrap_err(),
            yaml("a: 1\na: 2\n", &path()).unwrap_err(),
            json("{\"a\": 1, \"a\": 2}", &path()).unwrap_err(),
        ];
        for problem in problems {
            assert!(matches!(problem.origin, Origin::File { line: Some(_), .. }), "{problem}");
        }
    }

    #[test]
    fn a_file_nested_to_exhaust_the_stack_is_refused() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(json(&deep, &path()).is_err());
        assert!(yaml(&deep, &path()).is_err());
        assert!(toml(&format!("a = {deep}"), &path()).is_err());
        let just_too_deep = format!("{}1{}", "[".repeat(MAX_DEPTH + 2), "]".repeat(MAX_DEPTH + 2));
        assert!(json(&just_too_deep, &path()).unwrap_err().to_string().contains("deeper than"));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "[\\[\\]{}:,\"'a-z0-9 .#=\n&*|>-]{0,200}") {
            let _ = yaml(&text, &path());
            let _ = json(&text, &path());
            let _ = toml(&text, &path());
        }
    }
}
