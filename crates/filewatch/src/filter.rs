//! Which paths are kept track of, and which are told of.

use crate::settings::{FileMonitorSettings, Pattern};
use globset::{GlobSet, GlobSetBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Globs, in the two readings a glob has: of the last name, and of the whole path.
#[derive(Debug)]
struct Globs {
    names: GlobSet,
    paths: GlobSet,
}

impl Globs {
    fn new(patterns: &[Pattern]) -> Result<Self, globset::Error> {
        let build = |of_names: bool| {
            let mut set = GlobSetBuilder::new();
            for pattern in patterns.iter().filter(|pattern| pattern.is_name() == of_names) {
                set.add(pattern.glob().clone());
            }
            set.build()
        };
        Ok(Self { names: build(true)?, paths: build(false)? })
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.paths.is_empty()
    }

    fn matches(&self, path: &Path) -> bool {
        path.file_name().is_some_and(|name| self.names.is_match(name)) || self.paths.is_match(path)
    }
}

/// Decides by path alone.
#[derive(Debug)]
pub(crate) struct Filter {
    include: Globs,
    exclude: Globs,
    /// What this process writes itself: watching it would tell of our own telling, for ever.
    own: Vec<PathBuf>,
}

impl Filter {
    pub(crate) fn new(settings: &FileMonitorSettings, own: Vec<PathBuf>) -> Result<Self, globset::Error> {
        Ok(Self { include: Globs::new(&settings.include)?, exclude: Globs::new(&settings.exclude)?, own })
    }

    /// Whether the path is kept track of. Folders are, unless left out: what is asked for may lie in them.
    pub(crate) fn wants(&self, path: &[u8], is_directory: bool) -> bool {
        let path = Path::new(OsStr::from_bytes(path));
        let is_own = self.own.iter().any(|own| path.starts_with(own));
        let is_asked_for = is_directory || self.include.is_empty() || self.include.matches(path);
        is_asked_for && !is_own && !self.exclude.matches(path)
    }

    /// Whether what happens to the path is told. `wants` holds of it already.
    pub(crate) fn tells(&self, path: &[u8]) -> bool {
        self.include.is_empty() || self.include.matches(Path::new(OsStr::from_bytes(path)))
    }

    /// Whether a folder's new name can change what is wanted below it.
    pub(crate) fn depends_on_folders(&self) -> bool {
        !self.include.paths.is_empty() || !self.exclude.paths.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(include: &[&str], exclude: &[&str]) -> Filter {
        let patterns = |texts: &[&str]| texts.iter().map(|text| Pattern::new(text).unwrap()).collect();
        let settings =
            FileMonitorSettings { include: patterns(include), exclude: patterns(exclude), ..Default::default() };
        Filter::new(&settings, vec![PathBuf::from("/w/state")]).unwrap()
    }

    #[test]
    fn a_glob_without_a_slash_is_of_names_and_one_with_a_slash_of_paths() {
        let filter = filter(&[], &["*.tmp", "/w/cache/**"]);
        assert!(!filter.wants(b"/w/deep/in/a.tmp", false));
        assert!(!filter.wants(b"/w/cache/x", true));
        assert!(filter.wants(b"/w/cache", true));
        assert!(filter.wants(b"/w/other/cache/x", false));
    }

    #[test]
    fn folders_are_entered_though_only_files_are_asked_for() {
        let filter = filter(&["*.conf"], &[]);
        assert!(filter.wants(b"/w/d", true) && !filter.tells(b"/w/d"));
        assert!(filter.wants(b"/w/d/a.conf", false) && filter.tells(b"/w/d/a.conf"));
        assert!(!filter.wants(b"/w/d/a.txt", false));
    }

    #[test]
    fn our_own_folder_and_names_that_are_no_text_are_judged_too() {
        let filter = filter(&[], &["*.b\u{e4}k"]);
        assert!(!filter.wants(b"/w/state", true));
        // A watched path may lie in our own folder.
        assert!(!filter.wants(b"/w/state/queue", true) && !filter.wants(b"/w/state/queue/1", false));
        assert!(filter.wants(b"/w/state-of-the-art", true));
        assert!(filter.wants(b"/w/\xff\xfe.b\xe4k", false));
        assert!(!filter.wants("/w/x.b\u{e4}k".as_bytes(), false));
    }
}
