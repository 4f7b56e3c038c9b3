//! The configuration as it was before a trial, kept so that the proven version can always read one.
//!
//! Nothing of ours writes to the configuration; a person might, in the minute of a trial. So it is put back only when
//! the proven version cannot use what is there now and could use what was there before.

use picket_durable::{Context, Error};
use std::fs;
use std::path::{Path, PathBuf};

/// The largest file that is kept, in bytes: the largest that is read as configuration.
const MAX_BYTES: u64 = 1 << 20;
/// How many snapshots are kept.
const KEEP: usize = 5;

/// The snapshots of one installation.
pub(crate) struct Snapshots<'a> {
    /// The folder of the configuration.
    pub(crate) config_dir: &'a Path,
    /// The updater's state folder.
    pub(crate) update_dir: &'a Path,
}

impl Snapshots<'_> {
    fn root(&self) -> PathBuf {
        self.update_dir.join("snapshots")
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.root().join(id)
    }

    /// Copies the configuration files.
    pub(crate) fn take(&self, id: &str) -> Result<(), Error> {
        let dir = self.dir(id);
        picket_durable::remove_tree(&dir)?;
        picket_durable::create_dir(&dir, 0o700)?;
        for path in config_files(self.config_dir)? {
            let bytes = picket_durable::read_bounded(&path, MAX_BYTES)?;
            picket_durable::write_atomic(&dir.join(path.file_name().unwrap_or_default()), &bytes, 0o600)?;
        }
        self.prune()
    }

    fn prune(&self) -> Result<(), Error> {
        let root = self.root();
        let mut ids: Vec<PathBuf> = fs::read_dir(&root).doing("list", &root)?.flatten().map(|e| e.path()).collect();
        ids.sort();
        for old in ids.iter().rev().skip(KEEP) {
            picket_durable::remove_tree(old)?;
        }
        Ok(())
    }

    /// Puts the configuration back if the proven version (`check`, given a folder) cannot use the present one and can
    /// use the kept one. Says whether it did.
    pub(crate) fn restore_if_needed(
        &self,
        id: &str,
        check: &dyn Fn(&Path) -> Result<(), String>,
    ) -> Result<bool, Error> {
        let dir = self.dir(id);
        if !dir.is_dir() || check(self.config_dir).is_ok() || check(&dir).is_err() {
            return Ok(false);
        }
        let kept = config_files(&dir)?;
        for path in config_files(self.config_dir)? {
            if !kept.iter().any(|k| k.file_name() == path.file_name()) {
                // Set aside, not removed: a person wrote it.
                picket_durable::rename(&path, &path.with_extension("replaced"))?;
            }
        }
        for path in kept {
            let place = self.config_dir.join(path.file_name().unwrap_or_default());
            let bytes = picket_durable::read_bounded(&path, MAX_BYTES)?;
            rewrite(&place, &bytes)?;
        }
        Ok(true)
    }
}

/// Replaces a file's content and keeps its owner and mode.
fn rewrite(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    use std::os::unix::fs::{MetadataExt, chown};
    let meta = fs::metadata(path).ok();
    let mode = meta.as_ref().map_or(0o640, |meta| meta.mode() & 0o7777);
    picket_durable::write_atomic(path, bytes, mode)?;
    if let Some(meta) = meta {
        chown(path, Some(meta.uid()), Some(meta.gid())).doing("set the owner of", path)?;
    }
    Ok(())
}

/// The configuration files of a folder: `config.*`, regular files only.
fn config_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::new("list", dir, e)),
    };
    let files = entries.flatten().map(|entry| entry.path());
    Ok(files
        .filter(|path| path.file_stem().is_some_and(|stem| stem == "config") && path.is_file())
        .filter(|path| {
            path.extension().is_some_and(|e| ["yaml", "yml", "json", "toml"].iter().any(|known| e == *known))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for the proven version: it can use a configuration unless it says `bad`.
    fn check(dir: &Path) -> Result<(), String> {
        let text = picket_durable::read_text(&dir.join("config.yaml"), MAX_BYTES).unwrap_or_default();
        if text.contains("bad") { Err("bad".into()) } else { Ok(()) }
    }

    #[test]
    fn the_configuration_is_put_back_only_when_the_proven_version_needs_it() {
        let dir = tempfile::tempdir().unwrap();
        let (config, update) = (dir.path().join("etc"), dir.path().join("update"));
        fs::create_dir(&config).unwrap();
        fs::create_dir(&update).unwrap();
        let file = config.join("config.yaml");
        let write = |text: &str| picket_durable::write_atomic(&file, text.as_bytes(), 0o640).unwrap();
        let snapshots = Snapshots { config_dir: &config, update_dir: &update };
        write("first");
        snapshots.take("1").unwrap();

        write("edited by a person, and fine");
        assert!(!snapshots.restore_if_needed("1", &check).unwrap());
        write("bad for the old version");
        assert!(snapshots.restore_if_needed("1", &check).unwrap());
        assert_eq!(picket_durable::read_bounded(&file, 100).unwrap(), b"first");

        write("bad already");
        snapshots.take("2").unwrap();
        assert!(!snapshots.restore_if_needed("2", &check).unwrap(), "a configuration that never worked was put back");
    }
}
