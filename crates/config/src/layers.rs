//! The layers of a configuration and what comes out of them.

use crate::node::{Node, Origin};
use crate::parse;
use crate::setting::{Gravity, KeyDoc, Problem, Problems, Setting, nearest};
use std::path::{Path, PathBuf};

/// Variables that begin with `PICKET_` but are no keys: they are read before any configuration is.
const RESERVED: [&str; 11] = [
    "PICKET_HUB_CONFIG",
    "PICKET_CONFIG",
    "PICKET_PREFIX",
    "PICKET_USER",
    "PICKET_COLOR",
    "PICKET_SUPERVISED",
    "PICKET_UPDATE_IF_DUE",
    "PICKET_FAILPOINT",
    "PICKET_ENROLL_TOKEN",
    "PICKET_RELEASE_PASSPHRASE",
    "PICKET_RELEASE_PASSPHRASE_FILE",
];

/// Collects the layers of a configuration.
#[derive(Debug)]
pub struct Layers {
    tree: Node,
    problems: Problems,
    docs: Vec<KeyDoc>,
    files: Vec<PathBuf>,
}

/// A configuration that was read from its layers.
#[derive(Debug, Clone)]
pub struct Resolved<T> {
    /// The typed values.
    pub settings: T,
    /// Everything that is wrong with the layers.
    pub problems: Problems,
    /// The files that were read, in their order.
    pub files: Vec<PathBuf>,
    tree: Node,
    docs: Vec<KeyDoc>,
}

impl Layers {
    /// Starts with the defaults of `T`.
    pub fn new<T: Setting + Default>() -> Self {
        Self { tree: Node::empty(), problems: Problems::default(), docs: documentation::<T>(), files: Vec::new() }
    }

    /// Adds the one configuration file in `dir`, `config.{yaml,json,toml}`; none is fine, two are a problem.
    #[must_use]
    pub fn folder(self, dir: &Path) -> Self {
        self.folder_named(dir, "config")
    }

    /// As [`Layers::folder`], for files of another name: `<stem>.{yaml,json,toml}`.
    #[must_use]
    pub fn folder_named(mut self, dir: &Path, stem: &str) -> Self {
        let mut found: Vec<PathBuf> = Vec::new();
        for path in ["yaml", "yml", "json", "toml"].map(|extension| dir.join(stem).with_extension(extension)) {
            match std::fs::symlink_metadata(&path) {
                Ok(_) => found.push(path),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                // Not to be taken for "there is none": the defaults would be in force without a word.
                Err(e) => {
                    let origin = Origin::File { path: std::sync::Arc::new(dir.to_owned()), line: None };
                    self.problems.0.push(Problem::new(&origin, "", Gravity::Error, format!("cannot be read: {e}")));
                    return self;
                }
            }
        }
        if found.len() > 1 {
            let origin = Origin::File { path: std::sync::Arc::new(found[1].clone()), line: None };
            let message = format!("stands beside {}; keep one of them", found[0].display());
            self.problems.0.push(Problem::new(&origin, "", Gravity::Error, message));
        }
        match found.into_iter().next() {
            Some(path) => self.file(&path),
            None => self,
        }
    }

    /// Adds one file by name; that it is absent is a problem.
    #[must_use]
    pub fn file(mut self, path: &Path) -> Self {
        match parse::file(path) {
            Ok(node) => self.tree.merge(node),
            Err(problem) => self.problems.0.push(problem),
        }
        self.files.push(path.to_owned());
        self
    }

    /// Adds what a file at `path` would give if it held `text`.
    #[must_use]
    pub fn text(mut self, path: &Path, text: &str) -> Self {
        match parse::text(path, text) {
            Ok(node) => self.tree.merge(node),
            Err(problem) => self.problems.0.push(problem),
        }
        self.files.push(path.to_owned());
        self
    }

    /// Adds every variable `PICKET_<KEY>`; one that names no key is reported.
    #[must_use]
    pub fn environment(self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        // Those of another program of ours are no keys of this one's.
        self.environment_under("PICKET_", variables.into_iter().filter(|(name, _)| !name.starts_with("PICKET_HUB_")))
    }

    /// As [`Layers::environment`], for variables that begin with `prefix` in the place of `PICKET_`.
    #[must_use]
    pub fn environment_under(mut self, prefix: &str, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(prefix) else { continue };
            if RESERVED.contains(&name.as_str()) {
                continue;
            }
            let variable = format!("PICKET_{rest}");
            let origin = Origin::Environment { variable: name.clone() };
            let named = |doc: &&KeyDoc| !doc.is_entry() && doc.variable() == variable;
            if let Some(doc) = self.docs.iter().find(named) {
                self.tree.merge(Node::single(&doc.key, &value, &origin));
            } else {
                let known = self.docs.iter().filter(|doc| !doc.is_entry());
                let known: Vec<String> = known.map(KeyDoc::variable).collect();
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                let near = nearest(&variable, &known).map(|near| near.replacen("PICKET_", prefix, 1));
                let hint = near.map(|near| format!("; did you mean {near}?"));
                let message = format!("sets no key{}", hint.unwrap_or_default());
                self.problems.0.push(Problem::new(&origin, "", Gravity::Unknown, message));
            }
        }
        self
    }

    /// Adds what the hub gave: dotted keys with their values.
    #[must_use]
    pub fn hub<'a>(mut self, settings: impl IntoIterator<Item = (&'a String, &'a serde_json::Value)>) -> Self {
        for (key, value) in settings {
            self.tree.merge(Node::at_key(key, Node::from_json(value, &Origin::Hub)));
        }
        self
    }

    /// Adds one value from the command line; `option` is how the person typed it.
    #[must_use]
    pub fn flag(mut self, option: &str, key: &str, value: &str) -> Self {
        self.tree.merge(Node::single(key, value, &Origin::Flag { option: option.to_owned() }));
        self
    }

    /// Reads the typed configuration.
    pub fn resolve<T: Setting + Default>(mut self) -> Resolved<T> {
        let settings = T::read(&self.tree, "", &mut self.problems).unwrap_or_default();
        Resolved { settings, problems: self.problems, files: self.files, tree: self.tree, docs: self.docs }
    }
}

/// Every key of `T` with its text, type and default.
pub fn documentation<T: Setting + Default>() -> Vec<KeyDoc> {
    let mut docs = Vec::new();
    T::document("", "", &T::default().show(), &mut docs);
    docs
}

/// One key with the value in force and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// The dotted key.
    pub key: String,
    /// The value in force.
    pub value: serde_json::Value,
    /// Where it came from.
    pub origin: Origin,
}

impl<T: Setting> Resolved<T> {
    /// Every key with the value in force and its origin, in the manual's order.
    pub fn effective(&self) -> Vec<Effective> {
        let shown = self.settings.show();
        self.docs
            .iter()
            .filter(|doc| !doc.is_entry())
            .map(|doc| {
                let pointer = format!("/{}", doc.key.replace('.', "/"));
                let value = shown.pointer(&pointer).cloned().unwrap_or_default();
                let origin = self.tree.at(&doc.key).map_or(Origin::Default, |node| node.origin.clone());
                Effective { key: doc.key.clone(), value, origin }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::{Interval, LoopbackAddr};

    crate::settings! {
        /// A test's keys.
        pub struct Outer {
            /// How loud.
            pub level: Level = Level::Info,
            /// Where.
            pub server: Inner = Inner::default(),
        }
    }

    crate::settings! {
        /// A group in it.
        pub struct Inner {
            /// The address.
            pub listen: LoopbackAddr = LoopbackAddr::port(1),
            /// How long.
            pub wait: Interval = Interval::seconds(5),
        }
    }

    crate::choice! {
        /// Loudness.
        pub enum Level {
            /// Normal.
            Info = "info",
            /// All.
            Debug = "debug",
        }
    }

    fn write(dir: &Path, name: &str, text: &str) {
        picket_durable::write_atomic(&dir.join(name), text.as_bytes(), 0o600).unwrap();
    }

    #[test]
    fn later_layers_win_and_every_value_knows_where_it_came_from() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "config.yaml", "level: DEBUG\nserver:\n  wait: 9s\n  listen: 127.0.0.1:7\n");
        let resolved: Resolved<Outer> = Layers::new::<Outer>()
            .folder(dir.path())
            .environment([("PICKET_SERVER_WAIT".into(), "10s".into()), ("PICKET_PREFIX".into(), "/x".into())])
            .flag("--level", "level", "info")
            .resolve();
        assert_eq!(resolved.problems, Problems::default());
        assert_eq!(resolved.settings.server.wait, Interval::seconds(10));
        let origins: Vec<String> =
            resolved.effective().iter().map(|e| format!("{}={} ({})", e.key, e.value, e.origin)).collect();
        let file = dir.path().join("config.yaml");
        assert_eq!(
            origins,
            [
                "level=\"info\" (--level)".to_owned(),
                format!("server.listen=\"127.0.0.1:7\" ({}:4)", file.display()),
                "server.wait=\"10s\" (environment PICKET_SERVER_WAIT)".to_owned(),
            ]
        );
    }

    #[test]
    fn the_hub_is_over_the_file_and_under_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "config.yaml", "level: info\nserver:\n  wait: 9s\n");
        let given = [
            ("level".to_owned(), serde_json::json!("debug")),
            ("server.wait".to_owned(), serde_json::json!("7s")),
            ("server.listen".to_owned(), serde_json::json!("127.0.0.1:9")),
        ];
        let resolved: Resolved<Outer> = Layers::new::<Outer>()
            .folder(dir.path())
            .hub(given.iter().map(|(key, value)| (key, value)))
            .environment([("PICKET_SERVER_WAIT".into(), "10s".into())])
            .resolve();
        let told: Vec<String> =
            resolved.effective().iter().map(|e| format!("{}={} ({})", e.key, e.value, e.origin)).collect();
        assert_eq!(
            told,
            [
                "level=\"debug\" (the hub)",
                "server.listen=\"127.0.0.1:9\" (the hub)",
                "server.wait=\"10s\" (environment PICKET_SERVER_WAIT)",
            ]
        );
    }

    #[test]
    fn every_problem_is_reported_at_once_with_file_line_and_key() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "config.toml", "level = \"loud\"\n[server]\nwiat = \"1s\"\nlisten = \"0.0.0.0:1\"\n");
        let resolved: Resolved<Outer> =
            Layers::new::<Outer>().folder(dir.path()).environment([("PICKET_LEVL".into(), "x".into())]).resolve();
        let path = dir.path().join("config.toml").display().to_string();
        let problems: Vec<String> = resolved.problems.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                "environment PICKET_LEVL: sets no key; did you mean PICKET_LEVEL?".to_owned(),
                format!("{path}:1: level: expected one of info, debug, found \"loud\""),
                format!(
                    "{path}:4: server.listen: expected an address of this machine only (127.0.0.1:PORT or [::1]:PORT), \
                     found \"0.0.0.0:1\""
                ),
                format!("{path}:3: server.wiat: no such key; did you mean \"server.wait\"?"),
            ]
        );
        assert!(resolved.problems.has_errors());
    }

    #[test]
    fn two_files_are_a_problem_that_names_both() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "config.yaml", "level: info\n");
        write(dir.path(), "config.json", "{}");
        let resolved: Resolved<Outer> = Layers::new::<Outer>().folder(dir.path()).resolve();
        let text = resolved.problems.0[0].to_string();
        assert!(text.contains("config.json") && text.contains("config.yaml"), "{text}");
    }

    #[test]
    fn a_group_that_is_no_group_is_one_problem_and_its_defaults_stand() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "config.yaml", "server: 5\n");
        let resolved: Resolved<Outer> = Layers::new::<Outer>().folder(dir.path()).resolve();
        assert_eq!(resolved.problems.0.len(), 1);
        assert_eq!(resolved.settings, Outer::default());
    }
}
