//! YAML with the place of every value, within bounds, before anything else reads it.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use std::fmt;

use crate::problem::{Place, Problem, Severity};
use crate::rule::{MAX_DEPTH, MAX_DOCUMENTS, MAX_NODES, MAX_SOURCE_BYTES};

/// A value and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub value: Yaml,
    pub place: Place,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Yaml {
    Null,
    Bool(bool),
    /// A number, as it is written by serde.
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Place, Node)>),
}

impl Node {
    /// The member of a map by its key.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.map()?.iter().find(|(name, _, _)| name == key).map(|(_, _, node)| node)
    }

    pub fn map(&self) -> Option<&[(String, Place, Self)]> {
        match &self.value {
            Yaml::Map(members) => Some(members),
            _ => None,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Yaml::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list; of anything else, itself.
    pub fn items(&self) -> &[Self] {
        match &self.value {
            Yaml::List(items) => items,
            _ => std::slice::from_ref(self),
        }
    }

    fn count(&self) -> usize {
        1 + match &self.value {
            Yaml::List(items) => items.iter().map(Self::count).sum(),
            Yaml::Map(members) => members.iter().map(|(_, _, node)| 1 + node.count()).sum(),
            _ => 0,
        }
    }

    fn depth(&self) -> usize {
        1 + match &self.value {
            Yaml::List(items) => items.iter().map(Self::depth).max().unwrap_or(0),
            Yaml::Map(members) => members.iter().map(|(_, _, node)| node.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }
}

/// The documents of a text.
///
/// # Errors
/// It is too long, not YAML, too deep, has too many nodes or documents, or uses aliases.
pub fn documents(text: &str) -> Result<Vec<Node>, Problem> {
    if text.len() > MAX_SOURCE_BYTES {
        return Err(problem(
            "too_long",
            None,
            format!("the source has {} bytes and may have {MAX_SOURCE_BYTES}", text.len()),
            "split it into several rules",
        ));
    }
    // A control character is never meant, and parsers differ in what they make of it.
    if let Some(position) = text.find(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return Err(problem(
            "control_character",
            Some(place_of(text, position)),
            "there is a control character here".into(),
            "remove it, or write it as an escape in double quotes",
        ));
    }
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: MAX_NODES * 3,
            max_documents: MAX_DOCUMENTS,
            max_anchors: 0,
            max_aliases: 0,
            max_merge_keys: 0,
            max_total_scalar_bytes: MAX_SOURCE_BYTES,
            flow_nesting_limit: MAX_DEPTH,
        },
    };
    let raws: Vec<Spanned<Raw>> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let place = error.location().and_then(|at| place(at.line(), at.column()));
        let words = error.without_snippet().to_string();
        problem(
            "not_yaml",
            place,
            format!("it is not YAML that can be used here: {}", words.lines().next().unwrap_or_default()),
            "check quotes, indentation and special characters; anchors and aliases are not taken",
        )
    })?;
    let nodes: Vec<Node> = raws.into_iter().map(node).collect();
    if let Some(deep) = nodes.iter().find(|node| node.depth() > MAX_DEPTH) {
        let what = format!("it is nested more than {MAX_DEPTH} levels deep");
        return Err(problem("too_deep", Some(deep.place), what, "flatten it"));
    }
    if nodes.iter().map(Node::count).sum::<usize>() > MAX_NODES {
        return Err(problem("too_many_nodes", None, format!("it has more than {MAX_NODES} values"), "split it"));
    }
    Ok(nodes)
}

fn problem(code: &str, place: Option<Place>, what: String, help: &str) -> Problem {
    Problem { severity: Severity::Error, code: code.into(), place, what, help: help.into() }
}

fn place(line: impl TryInto<u32>, column: impl TryInto<u32>) -> Option<Place> {
    let (line, column) = (line.try_into().ok()?, column.try_into().ok()?);
    (line > 0).then_some(Place { line, column: column.max(1) })
}

/// The place of a byte of a text.
fn place_of(text: &str, position: usize) -> Place {
    let before = &text[..position];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    place(line, column).unwrap_or(Place { line: 1, column: 1 })
}

fn node(spanned: Spanned<Raw>) -> Node {
    let at = spanned.referenced;
    let place = place(at.line(), at.column()).unwrap_or(Place { line: 1, column: 1 });
    let value = match spanned.value.0 {
        RawYaml::Scalar(value) => value,
        RawYaml::List(items) => Yaml::List(items.into_iter().map(node).collect()),
        RawYaml::Map(members) => Yaml::Map(
            members
                .into_iter()
                .map(|(key, value)| {
                    let key = node(key);
                    let name = match key.value {
                        Yaml::Text(text) => text,
                        Yaml::Number(number) => number.to_string(),
                        Yaml::Bool(value) => value.to_string(),
                        _ => String::new(),
                    };
                    (name, key.place, node(value))
                })
                .collect(),
        ),
    };
    Node { value, place }
}

/// A value as serde sees it, each child with its place.
struct Raw(RawYaml);

enum RawYaml {
    Scalar(Yaml),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
        Ok(Raw(RawYaml::Scalar(Yaml::Bool(v))))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw(RawYaml::Scalar(Yaml::Number(v as f64))))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
        Ok(Raw(RawYaml::Scalar(Yaml::Number(v as f64))))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Raw, E> {
        Ok(Raw(RawYaml::Scalar(Yaml::Number(v))))
    }
    fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
        Ok(Raw(RawYaml::Scalar(Yaml::Text(v.to_owned()))))
    }
    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<Raw, E> {
        Err(E::custom("binary values are not taken"))
    }
    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw(RawYaml::Scalar(Yaml::Null)))
    }
    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw(RawYaml::Scalar(Yaml::Null)))
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Raw, D::Error> {
        Raw::deserialize(d)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
            if list.len() > MAX_NODES {
                return Err(A::Error::custom("the list is too long"));
            }
        }
        Ok(Raw(RawYaml::List(list)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut members = Vec::new();
        while let Some(entry) = map.next_entry()? {
            members.push(entry);
        }
        Ok(Raw(RawYaml::Map(members)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_knows_its_line_and_column() {
        let docs = documents("title: a\ndetection:\n  sel:\n    Image|endswith: x\n---\ntitle: b\n").unwrap();
        assert_eq!(docs.len(), 2);
        let sel = docs[0].get("detection").unwrap().get("sel").unwrap();
        let (name, place, _) = &sel.map().unwrap()[0];
        assert_eq!((name.as_str(), place.line, place.column), ("Image|endswith", 4, 5));
        assert_eq!(docs[1].get("title").unwrap().place.line, 6);
    }

    #[test]
    fn a_bomb_of_aliases_is_refused_with_its_line() {
        let bomb = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n";
        let problem = documents(bomb).unwrap_err();
        assert_eq!(problem.code, "not_yaml");
    }

    #[test]
    fn what_is_nested_too_deeply_is_refused() {
        let indented: Vec<String> = (0..200).map(|n| format!("{}a:", " ".repeat(n))).collect();
        for text in ["[".repeat(5000), "- ".repeat(3000), indented.join("\n")] {
            assert!(documents(&text).is_err());
        }
    }

    #[test]
    fn broken_yaml_is_refused_where_it_breaks() {
        let problem = documents("title: a\nlist: [1, 2\nlevel: high\n").unwrap_err();
        assert!(problem.place.is_some_and(|place| place.line >= 2), "{problem:?}");
    }
}
