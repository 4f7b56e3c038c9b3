//! What an operator can say about files: which, how deep, how soon.

use globset::{Glob, GlobBuilder};
use picket_config::{ByteSize, Interval, Node, Problems, Setting, Value};
use std::path::{Component, Path, PathBuf};

picket_config::settings! {
    /// Which files are watched, and how.
    pub struct FileMonitorSettings {
        /// Whether files are watched at all.
        pub enabled: bool = true,
        /// The folders (or single files) to watch. One that is not there yet is taken up when it appears. A symbolic
        /// link written here is followed; links found below are not.
        pub paths: Vec<WatchPath> = Vec::new(),
        /// Which files are told of, as globs; none means all. A glob without a slash stands for a name at any depth
        /// (`*.conf`), one with a slash for the whole path (`/etc/**/*.conf`).
        pub include: Vec<Pattern> = Vec::new(),
        /// Which files and folders are left out, as globs like those of `include`. A folder that is left out is not
        /// entered.
        pub exclude: Vec<Pattern> = Vec::new(),
        /// Whether folders below the paths are watched too.
        pub recursive: bool = true,
        /// How long a file must be left alone after it was written and closed before the change is told.
        pub debounce: Interval = Interval::seconds(1),
        /// After how long the change of a file is told at the latest, though its writer keeps it open or writes on.
        pub write_pause: Interval = Interval::seconds(10),
        /// Up to which size a file's content is hashed (SHA-256); 0 hashes none.
        pub hash_max_size: ByteSize = ByteSize(1 << 20),
        /// How many inotify watches to take at most, one a folder; 0 takes what the kernel gives
        /// (`fs.inotify.max_user_watches`). Folders beyond are looked at every `rescan_interval`.
        pub max_watches: u32 = 0,
        /// How often folders that could not be watched are compared with the baseline instead.
        pub rescan_interval: Interval = Interval::seconds(300),
    }
}

/// An absolute path, without `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatchPath(PathBuf);

impl WatchPath {
    /// Takes an absolute path; `.` and doubled slashes go, `..` is refused: what it means depends on links.
    pub fn new(path: &Path) -> Option<Self> {
        let mut clean = PathBuf::new();
        for component in path.components() {
            match component {
                Component::RootDir | Component::Normal(_) => clean.push(component),
                Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return None,
            }
        }
        clean.is_absolute().then_some(Self(clean))
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl Setting for WatchPath {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        let value = match &node.value {
            Value::Text(text) if !text.contains('\0') => Self::new(Path::new(text)),
            _ => None,
        };
        if value.is_none() {
            problems.expected(node, key, "an absolute path without `..`");
        }
        value
    }

    fn show(&self) -> picket_config::private::Value {
        self.0.to_string_lossy().into_owned().into()
    }

    fn schema() -> picket_config::private::Value {
        picket_config::private::json!({ "type": "string", "examples": ["/mnt/shared", "/var/log/shared"] })
    }

    fn type_name() -> String {
        "absolute path".to_owned()
    }
}

/// A glob: `*` and `?` within a name, `**` across folders, `[a-z]`, `{a,b}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Glob);

impl Pattern {
    /// Reads a glob; `None` where it is not one.
    pub fn new(text: &str) -> Option<Self> {
        GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build().ok().map(Self)
    }

    /// The glob.
    pub(crate) fn glob(&self) -> &Glob {
        &self.0
    }

    /// Whether it stands for a name at any depth, not for a whole path.
    pub(crate) fn is_name(&self) -> bool {
        !self.0.glob().contains('/')
    }
}

impl Setting for Pattern {
    fn read(node: &Node, key: &str, problems: &mut Problems) -> Option<Self> {
        let value = match &node.value {
            Value::Text(text) => Self::new(text),
            _ => None,
        };
        if value.is_none() {
            problems.expected(node, key, "a glob such as *.conf or /etc/**/*.conf");
        }
        value
    }

    fn show(&self) -> picket_config::private::Value {
        self.0.glob().into()
    }

    fn schema() -> picket_config::private::Value {
        picket_config::private::json!({ "type": "string", "examples": ["*.conf", "/etc/**/*.conf"] })
    }

    fn type_name() -> String {
        "glob".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_config::Origin;
    use std::collections::BTreeMap;

    fn leaf(value: Value) -> Node {
        Node { value, origin: Origin::Default }
    }

    #[test]
    fn the_seed_s_configuration_works_as_it_stands() {
        let paths = ["/mnt/shared", "/var/log/shared"].map(|path| leaf(Value::Text(path.into())));
        let table = BTreeMap::from([
            ("enabled".to_owned(), leaf(Value::Bool(true))),
            ("paths".to_owned(), leaf(Value::List(paths.to_vec()))),
        ]);
        let mut problems = Problems::default();
        let settings = FileMonitorSettings::read(&leaf(Value::Table(table)), "file_monitor", &mut problems).unwrap();
        assert_eq!(problems, Problems::default());
        assert!(settings.enabled && settings.recursive);
        assert_eq!(settings.paths[1].as_path(), Path::new("/var/log/shared"));
    }

    #[test]
    fn a_path_is_absolute_and_goes_nowhere_up() {
        assert_eq!(WatchPath::new(Path::new("/a//b/./c/")).unwrap().as_path(), Path::new("/a/b/c"));
        for wrong in ["", "a", "./a", "/a/../b", ".."] {
            assert_eq!(WatchPath::new(Path::new(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn a_glob_that_is_none_is_told() {
        let mut problems = Problems::default();
        assert_eq!(Pattern::read(&leaf(Value::Text("a[".into())), "exclude[0]", &mut problems), None);
        assert!(problems.0[0].message.contains("glob"));
    }
}
