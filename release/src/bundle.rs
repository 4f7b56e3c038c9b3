//! Writing a release bundle: a tar archive of a part of a release tree. The same files always give the same bytes.

use crate::error::ReleaseError;
use picket_durable::Context;
use std::fs::File;
use std::io::{BufWriter, IntoInnerError, Write};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// A bundle that is being written; it gets its name when it is whole.
pub struct BundleWriter {
    to: PathBuf,
    temporary: PathBuf,
    tar: Option<Builder<BufWriter<File>>>,
}

impl BundleWriter {
    /// Begins the bundle that will be at `to`.
    ///
    /// # Errors
    /// When there is no writing there.
    pub fn create(to: &Path) -> Result<Self, ReleaseError> {
        let temporary = picket_durable::temporary_name(to);
        let file = picket_durable::create_new(&temporary, 0o644)?;
        Ok(Self { to: to.to_owned(), temporary, tar: Some(Builder::new(BufWriter::new(file))) })
    }

    /// Adds the file called `name` (`metadata/…`, `targets/…`).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), ReleaseError> {
        // Nothing of the machine that packs goes into the archive: no owner, no time.
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_entry_type(EntryType::Regular);
        if let Some(tar) = &mut self.tar {
            tar.append_data(&mut header, name, bytes).doing("write", &self.temporary)?;
        }
        Ok(())
    }

    /// Ends the bundle and gives it its name; returns its length in bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<u64, ReleaseError> {
        let Some(tar) = self.tar.take() else { return Ok(0) };
        let finish = || {
            let mut buffered = tar.into_inner()?;
            buffered.flush()?;
            let file = buffered.into_inner().map_err(IntoInnerError::into_error)?;
            file.sync_all()?;
            Ok(file.metadata()?.len())
        };
        let length = finish().map_err(|error| picket_durable::Error::new("write", &self.temporary, error))?;
        picket_durable::rename(&self.temporary, &self.to)?;
        Ok(length)
    }
}

impl Drop for BundleWriter {
    /// What did not become whole is in nobody's way.
    fn drop(&mut self) {
        let _ = picket_durable::remove_if_present(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = |name: &str| {
            let path = dir.path().join(name);
            let mut writer = BundleWriter::create(&path).unwrap();
            writer.add("metadata/1.root.json", b"{}").unwrap();
            writer.add(&format!("targets/1.0.0/{}.tar.xz", "f".repeat(120)), &[7; 3000]).unwrap();
            writer.finish().unwrap();
            picket_durable::read_bounded(&path, 1 << 20).unwrap()
        };
        assert_eq!(bundle("a.tar"), bundle("b.tar"));
    }

    #[test]
    fn a_bundle_that_did_not_become_whole_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = BundleWriter::create(&dir.path().join("a.tar")).unwrap();
        writer.add("metadata/1.root.json", b"{}").unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
