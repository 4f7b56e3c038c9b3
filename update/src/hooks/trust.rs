//! Whose a hook is: decided by who could have put it where it lies.
//!
//! Whoever may write a file owns what it does, and so does whoever may rename a file in its folder, or a folder above it,
//! or one that a link on the way leads through. So the way from the root to the file is walked name by name, and on it
//! everything belongs to root or to this process' own user, and nobody else may write it. A sticky folder (`/tmp`) may be
//! passed through, because nobody renames there what is another's; it may not be a folder of hooks, because everybody
//! adds to it.

use super::HookError;
use picket_durable::Context;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Links on one way, at most; the kernel's own limit (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// Whether `path`, in the folder `dir` of hooks, is one: an executable file. Nothing above `root` is looked at.
///
/// # Errors
/// [`HookError::Untrusted`] when it is one and could be somebody else's.
pub(super) fn is_hook(root: &Path, dir: &Path, path: &Path) -> Result<bool, HookError> {
    let meta = path.metadata().doing("inspect", path)?;
    if !meta.is_file() || meta.mode() & 0o111 == 0 {
        return Ok(false);
    }
    let untrusted = |reason: String| HookError::Untrusted { path: path.to_owned(), reason };
    let own = rustix::process::geteuid().as_raw();
    let folder = dir.metadata().doing("inspect", dir)?;
    if let Some(reason) = others(&folder, own) {
        return Err(untrusted(format!("{} {reason}", dir.display())));
    }
    match walk(root, path, own) {
        Ok(None) => Ok(true),
        Ok(Some(reason)) => Err(untrusted(reason)),
        Err(error) => Err(error.into()),
    }
}

/// Walks from `root` to `path` as the kernel does; what is wrong on the way, if anything is.
fn walk(root: &Path, path: &Path, own: u32) -> picket_durable::Result<Option<String>> {
    // The operator chose the root by name: what leads to it is theirs.
    let real = root.canonicalize().doing("inspect", root)?;
    let rest = path.strip_prefix(root).unwrap_or(path);
    let mut ahead = names(rest);
    let mut at = real.clone();
    let mut links = 0;
    if let Some(reason) = wrong(&at, &inspect(&at)?, own) {
        return Ok(Some(reason));
    }
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let meta = inspect(&next)?;
        let above_root = real.starts_with(&next) && next != real;
        if !above_root && let Some(reason) = wrong(&next, &meta, own) {
            return Ok(Some(reason));
        }
        if !meta.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Ok(Some("too many links lead to it".to_owned()));
        }
        let target = next.read_link().doing("read the link", &next)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        for name in names(&target).into_iter().rev() {
            ahead.push_front(name);
        }
    }
    Ok(None)
}

fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.map(|part| part.as_os_str().to_owned()).collect()
}

fn inspect(path: &Path) -> picket_durable::Result<Metadata> {
    path.symlink_metadata().doing("inspect", path)
}

/// What is wrong with one thing on the way.
fn wrong(path: &Path, meta: &Metadata, own: u32) -> Option<String> {
    let reason = if meta.is_symlink() || (meta.is_dir() && meta.mode() & 0o1000 != 0) {
        foreign(meta, own)
    } else {
        others(meta, own)
    };
    reason.map(|reason| format!("{} {reason}", path.display()))
}

/// Whether somebody else owns it or may write it.
fn others(meta: &Metadata, own: u32) -> Option<String> {
    let writable = || format!("may be written by others (mode {:04o})", meta.mode() & 0o7777);
    foreign(meta, own).or_else(|| (meta.mode() & 0o022 != 0).then(writable))
}

/// Whether somebody else owns it.
fn foreign(meta: &Metadata, own: u32) -> Option<String> {
    (meta.uid() != 0 && meta.uid() != own).then(|| format!("belongs to user {}", meta.uid()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, create_dir, set_permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let place = Self { dir: tempfile::tempdir().unwrap() };
            place.folder("d", 0o750);
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn file(&self, name: &str, mode: u32) {
            picket_durable::write_atomic(&self.path(name), b"#!/bin/sh\n", mode).unwrap();
        }

        fn folder(&self, name: &str, mode: u32) {
            let path = self.path(name);
            if !path.exists() {
                create_dir(&path).unwrap();
            }
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }

        fn is_hook(&self, name: &str) -> Result<bool, String> {
            let found = is_hook(self.dir.path(), &self.path("d"), &self.path(name));
            found.map_err(|error| error.to_string())
        }

        fn assert_untrusted(&self, name: &str, because: &str) {
            let error = self.is_hook(name).unwrap_err();
            assert!(error.contains(because), "{error:?} instead of {because:?}");
        }
    }

    #[test]
    fn an_executable_file_is_a_hook_and_nothing_else_is() {
        let place = Place::new();
        place.file("d/10-disk", 0o700);
        place.file("d/README", 0o644);
        place.folder("d/lib", 0o755);
        assert_eq!(place.is_hook("d/10-disk"), Ok(true));
        assert_eq!((place.is_hook("d/README"), place.is_hook("d/lib")), (Ok(false), Ok(false)));
    }

    #[test]
    fn a_file_that_others_may_write_is_not_run() {
        let place = Place::new();
        for mode in [0o777, 0o775, 0o757] {
            place.file("d/10-evil", mode);
            place.assert_untrusted("d/10-evil", &format!("d/10-evil may be written by others (mode {mode:04o})"));
        }
    }

    #[test]
    fn a_file_in_a_folder_that_others_may_write_is_not_run_wherever_on_the_way_the_folder_is() {
        let place = Place::new();
        place.folder("up", 0o755);
        place.folder("up/d", 0o755);
        place.file("up/d/10-disk", 0o755);
        let check = || is_hook(place.dir.path(), &place.path("up/d"), &place.path("up/d/10-disk"));
        assert!(check().unwrap());
        for (folder, mode) in [("up/d", 0o775), ("up", 0o757), ("up/d", 0o1777)] {
            place.folder(folder, mode);
            let error = check().unwrap_err().to_string();
            assert!(error.contains(&format!("{folder} may be written by others (mode {mode:04o})")), "{error}");
            place.folder(folder, 0o755);
        }
        // Through a sticky folder, somebody else's names cannot be changed.
        place.folder("up", 0o1777);
        assert!(check().unwrap());
    }

    #[test]
    fn a_link_is_followed_only_over_ground_that_nobody_else_may_change() {
        let place = Place::new();
        place.folder("lib", 0o755);
        place.file("lib/check", 0o755);
        symlink("../lib/check", place.path("d/10-near")).unwrap();
        symlink(place.path("lib/check"), place.path("d/20-far")).unwrap();
        assert_eq!((place.is_hook("d/10-near"), place.is_hook("d/20-far")), (Ok(true), Ok(true)));

        place.folder("lib", 0o777);
        place.assert_untrusted("d/10-near", "lib may be written by others");
        place.assert_untrusted("d/20-far", "lib may be written by others");
        place.folder("lib", 0o755);
        place.file("lib/check", 0o666 | 0o111);
        place.assert_untrusted("d/10-near", "lib/check may be written by others");

        // The last file is good, and somebody may change which one it is.
        place.file("lib/check", 0o755);
        place.folder("anybody", 0o777);
        symlink(place.path("lib/check"), place.path("anybody/hop")).unwrap();
        symlink(place.path("anybody/hop"), place.path("d/30-hop")).unwrap();
        place.assert_untrusted("d/30-hop", "anybody may be written by others");

        symlink("40-loop", place.path("d/40-loop")).unwrap();
        assert!(place.is_hook("d/40-loop").is_err());
    }

    #[test]
    fn what_belongs_to_somebody_else_is_not_run() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let give = |path: PathBuf| std::os::unix::fs::lchown(path, Some(65_534), None).unwrap();
        let place = Place::new();
        place.file("d/10-disk", 0o755);
        give(place.path("d/10-disk"));
        place.assert_untrusted("d/10-disk", "d/10-disk belongs to user 65534");
        place.file("d/20-disk", 0o755);
        symlink("20-disk", place.path("d/30-link")).unwrap();
        give(place.path("d/30-link"));
        place.assert_untrusted("d/30-link", "d/30-link belongs to user 65534");
        give(place.path("d"));
        place.assert_untrusted("d/20-disk", "d belongs to user 65534");
    }
}
