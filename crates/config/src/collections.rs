//! Keys that hold several values: maps by name, lists, and what may be absent.
//!
//! Entries may be groups. Their keys are documented with `<name>` or `[]` in the place of the name or position
//! (`thresholds.<name>.warning`, `channels[].type`), and are set in a file; text (the environment, the command line)
//! holds leaves only.

use crate::node::{Node, Value};
use crate::setting::{KeyDoc, Problems, Setting, join};
use serde_json::json;
use std::collections::BTreeMap;

/// Whether `T` is a group of keys and not a leaf.
fn is_group<T: Setting>() -> bool {
    T::type_name().is_empty()
}

/// What the manual calls an entry.
fn entry_type<T: Setting>() -> String {
    if is_group::<T>() { "group".to_owned() } else { T::type_name() }
}

/// Documents a key that holds several `T`, and the keys of each where they are groups.
fn entries<T: Setting, C: Setting>(
    key: &str,
    entry: &str,
    text: &str,
    default: &serde_json::Value,
    out: &mut Vec<KeyDoc>,
) {
    let doc =
        KeyDoc { key: key.to_owned(), text: text.to_owned(), type_name: C::type_name(), default: default.clone() };
    out.push(doc);
    if is_group::<T>() {
        T::document(entry, "", &T::blank(), out);
    }
}

/// Values by name, in a file a group, as text `name=value,name=value`.
impl<T: Setting> Setting for BTreeMap<String, T> {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Table(table) => Some(
                table
                    .iter()
                    .filter_map(|(name, node)| Some((name.clone(), T::read(node, &join(key, name), problems)?)))
                    .collect(),
            ),
            Value::Text(text) if text.trim().is_empty() => Some(Self::new()),
            Value::Text(text) if !is_group::<T>() => {
                let mut map = Self::new();
                for pair in text.split(',') {
                    let Some((name, value)) = pair.split_once('=') else {
                        problems.expected(node, key, "name=value pairs, separated by commas");
                        return None;
                    };
                    let leaf = Node { value: Value::Text(value.trim().to_owned()), origin: node.origin.clone() };
                    map.insert(name.trim().to_owned(), T::read(&leaf, &join(key, name.trim()), problems)?);
                }
                Some(map)
            }
            _ => {
                problems.expected(node, key, "a group of names and values");
                None
            }
        }
    }

    fn show(&self) -> serde_json::Value {
        self.iter().map(|(name, value)| (name.clone(), value.show())).collect::<serde_json::Map<_, _>>().into()
    }

    fn schema() -> serde_json::Value {
        json!({ "type": "object", "additionalProperties": T::schema() })
    }

    fn type_name() -> String {
        format!("name: {}", entry_type::<T>())
    }

    fn document(key: &str, text: &str, default: &serde_json::Value, out: &mut Vec<KeyDoc>) {
        entries::<T, Self>(key, &join(key, "<name>"), text, default, out);
    }
}

/// Values in their order; as text, leaves separated by commas.
impl<T: Setting> Setting for Vec<T> {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        let mut item = |(index, node): (usize, &Node)| T::read(node, &format!("{key}[{index}]"), problems);
        match &node.value {
            // One item that cannot be read is reported and left out; the others are read, so that all is told at once.
            Value::List(items) => Some(items.iter().enumerate().filter_map(item).collect()),
            Value::Text(text) if text.trim().is_empty() => Some(Self::new()),
            Value::Text(text) if !is_group::<T>() => {
                let leaf =
                    |part: &str| Node { value: Value::Text(part.trim().to_owned()), origin: node.origin.clone() };
                text.split(',').map(leaf).enumerate().map(|(index, leaf)| item((index, &leaf))).collect()
            }
            _ => {
                let expected =
                    if is_group::<T>() { "a list of groups" } else { "a list, or values separated by commas" };
                problems.expected(node, key, expected);
                None
            }
        }
    }

    fn show(&self) -> serde_json::Value {
        self.iter().map(Setting::show).collect::<Vec<_>>().into()
    }

    fn schema() -> serde_json::Value {
        let list = json!({ "type": "array", "items": T::schema() });
        if is_group::<T>() { list } else { json!({ "oneOf": [list, { "type": "string" }] }) }
    }

    fn type_name() -> String {
        format!("list of {}", entry_type::<T>())
    }

    fn document(key: &str, text: &str, default: &serde_json::Value, out: &mut Vec<KeyDoc>) {
        entries::<T, Self>(key, &format!("{key}[]"), text, default, out);
    }
}

/// A leaf that may be absent; written as null or not at all, it is. An empty text takes a lower layer's value back.
impl<T: Setting> Setting for Option<T> {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Null => Some(None),
            Value::Text(text) if text.trim().is_empty() => Some(None),
            _ => T::read(node, key, problems).map(Some),
        }
    }

    fn show(&self) -> serde_json::Value {
        self.as_ref().map_or(serde_json::Value::Null, Setting::show)
    }

    fn schema() -> serde_json::Value {
        json!({ "oneOf": [T::schema(), { "type": "null" }] })
    }

    fn type_name() -> String {
        T::type_name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{Layers, Resolved, documentation};
    use crate::values::Interval;

    crate::settings! {
        /// A test's keys.
        pub struct Outer {
            /// Addresses.
            pub to: Vec<String> = vec!["a".to_owned()],
            /// Channels.
            pub channels: Vec<Entry> = Vec::new(),
            /// Limits.
            pub limits: BTreeMap<String, Entry> = BTreeMap::new(),
            /// A bound.
            pub bound: Option<f64> = None,
        }
    }

    crate::settings! {
        /// One entry.
        pub struct Entry {
            /// Its kind.
            pub r#type: Kind = Kind::Log,
            /// How long.
            pub r#for: Interval = Interval::seconds(60),
        }
    }

    crate::choice! {
        /// A kind.
        pub enum Kind {
            /// One.
            Log = "log" | "logfile",
            /// Another.
            Email = "email",
        }
    }

    fn resolve(name: &str, text: &str) -> Resolved<Outer> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        picket_durable::write_atomic(&path, text.as_bytes(), 0o600).unwrap();
        Layers::new::<Outer>().file(&path).resolve()
    }

    #[test]
    fn lists_and_maps_of_groups_are_read_from_each_format() {
        let yaml = "to: [b, c]\nchannels:\n  - type: email\n  - for: 5\nlimits:\n  x:\n    type: LOGFILE\nbound: 2\n";
        let toml = "to = ['b', 'c']\nbound = 2\n[[channels]]\ntype = 'email'\n[[channels]]\nfor = 5\n[limits.x]\n";
        let json = r#"{"to":"b, c","channels":[{"type":"email"},{"for":"5s"}],"limits":{"x":{}},"bound":2.0}"#;
        for (name, text) in [("c.yaml", yaml), ("c.toml", toml), ("c.json", json)] {
            let resolved = resolve(name, text);
            assert_eq!(resolved.problems, Problems::default(), "{name}");
            let expected = Outer {
                to: vec!["b".into(), "c".into()],
                channels: vec![
                    Entry { r#type: Kind::Email, ..Entry::default() },
                    Entry { r#for: Interval::seconds(5), ..Entry::default() },
                ],
                limits: BTreeMap::from([("x".into(), Entry::default())]),
                bound: Some(2.0),
            };
            assert_eq!(resolved.settings, expected, "{name}");
        }
    }

    #[test]
    fn every_problem_in_a_list_names_its_place() {
        let resolved = resolve("c.yaml", "channels:\n  - type: pigeon\n  - fro: 5\nlimits:\n  x: 5\nto: {}\n");
        let problems: Vec<String> = resolved.problems.0.iter().map(|p| format!("{} {}", p.key, p.message)).collect();
        assert_eq!(
            problems,
            [
                "to expected a list, or values separated by commas, found a group of keys",
                "channels[0].type expected one of log, email, found \"pigeon\"",
                "channels[1].fro no such key; did you mean \"channels[1].for\"?",
                "limits.x expected a group of keys, found 5",
            ]
        );
    }

    #[test]
    fn text_gives_leaves_and_never_groups() {
        let variables = [("PICKET_TO", "x, y"), ("PICKET_CHANNELS", "email"), ("PICKET_BOUND", "1.5")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let resolved: Resolved<Outer> =
            Layers::new::<Outer>().environment(variables).flag("--set", "limits.x.type", "email").resolve();
        assert_eq!(resolved.problems.0.len(), 1);
        assert_eq!(resolved.problems.0[0].key, "channels");
        assert_eq!(resolved.settings.to, ["x", "y"]);
        assert_eq!(resolved.settings.bound, Some(1.5));
        assert_eq!(resolved.settings.limits["x"].r#type, Kind::Email);
    }

    #[test]
    fn the_manual_lists_the_keys_of_every_entry_and_the_values_in_force_only_real_keys() {
        let keys: Vec<String> = documentation::<Outer>().into_iter().map(|doc| doc.key).collect();
        let entries = ["channels[].type", "channels[].for", "limits.<name>.type", "limits.<name>.for"];
        for entry in entries {
            assert!(keys.iter().any(|key| key == entry), "{entry} is not in {keys:?}");
        }
        let shown = resolve("c.yaml", "to: []\n").effective();
        let shown: Vec<&str> = shown.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(shown, ["to", "channels", "limits", "bound"]);
    }

    #[test]
    fn the_schema_describes_entries() {
        let schema = Outer::schema();
        assert_eq!(schema["properties"]["channels"]["items"]["properties"]["type"]["enum"][2], "email");
        assert_eq!(schema["properties"]["limits"]["additionalProperties"]["properties"]["for"]["default"], "1m");
        assert_eq!(schema["properties"]["to"]["oneOf"][0]["items"]["type"], "string");
    }
}
