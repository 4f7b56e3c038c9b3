//! The published tree: static files, written so that a server that serves the folder meanwhile never shows a half.
//!
//! Artifacts and channel documents first, then metadata from the leaves to the timestamp, which alone makes the rest
//! visible. Files that are named by hash or version never change; only `timestamp.json` and the friendly names under
//! `download/` are replaced, each by one rename.

use crate::error::ReleaseError;
use crate::repository::{Repository, signature_path};
use picket_durable::Context;
use std::path::{Path, PathBuf};

/// The largest file that is compared before it is written again, in bytes.
const MAX_SMALL: u64 = 8 << 20;

impl Repository {
    /// Writes the published state as a tree of static files into `out`: `metadata/`, `targets/` as every TUF client
    /// knows them, and `download/<version>/` with plain names for people.
    ///
    /// # Errors
    /// When an artifact is neither in the repository nor in `out` already.
    pub fn write_tree(&self, out: &Path) -> Result<(), ReleaseError> {
        for (path, sha256) in self.listed()? {
            let (folder, file) = path.rsplit_once('/').unwrap_or(("", path.as_str()));
            let place = out.join("targets").join(folder).join(format!("{sha256}.{file}"));
            self.place_target(&path, &sha256, &place)?;
            if !path.starts_with("channel/") {
                let friendly = out.join("download").join(folder).join(file);
                self.place_target(&path, &sha256, &friendly)?;
            }
        }
        self.write_metadata(&out.join("metadata"))
    }

    /// Writes the same state as assets of GitHub releases: `latest/` belongs to the newest release, `v<version>/` to the
    /// release of that tag. Returns the artifacts that are not in the repository any more: they stay where they are.
    pub fn write_github_assets(&self, out: &Path) -> Result<Vec<String>, ReleaseError> {
        let mut elsewhere = Vec::new();
        for (path, sha256) in self.listed()? {
            let (folder, file) = path.rsplit_once('/').unwrap_or(("", path.as_str()));
            let place = match folder {
                "channel" => out.join("latest").join(format!("{sha256}.channel.{file}")),
                version => out.join(format!("v{version}")).join(file),
            };
            if folder != "channel" && !self.artifact(&path).exists() {
                elsewhere.push(path);
                continue;
            }
            self.place_target(&path, &sha256, &place)?;
        }
        self.write_metadata(&out.join("latest"))?;
        Ok(elsewhere)
    }

    /// The target paths and hashes of the published targets.
    fn listed(&self) -> Result<Vec<(String, String)>, ReleaseError> {
        let targets = self.published_targets()?;
        if targets.is_empty() {
            return Err(ReleaseError::Release("nothing is published yet".to_owned()));
        }
        let sha256 = |target: &serde_json::Value| Some(target["hashes"]["sha256"].as_str()?.to_owned());
        Ok(targets.into_iter().filter_map(|(path, target)| Some((path, sha256(&target)?))).collect())
    }

    fn place_target(&self, path: &str, sha256: &str, place: &Path) -> Result<(), ReleaseError> {
        if let Some(parent) = place.parent() {
            picket_durable::create_dir(parent, 0o755)?;
        }
        if path.starts_with("channel/") {
            return copy_if_absent(&self.kept_channel(sha256), place);
        }
        let artifact = self.artifact(path);
        if !artifact.exists() {
            return if place.exists() {
                Ok(())
            } else {
                Err(ReleaseError::Elsewhere { artifact, place: place.into() })
            };
        }
        copy_if_absent(&artifact, place)?;
        copy_if_absent(&signature_path(&artifact), &signature_path(place))
    }

    fn write_metadata(&self, out: &Path) -> Result<(), ReleaseError> {
        picket_durable::create_dir(out, 0o755)?;
        let dir = self.metadata_dir();
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(&dir).doing("list", &dir)? {
            files.push(entry.doing("list", &dir)?.path());
        }
        // The timestamp last: until it is there, a machine sees the state before.
        files.sort_by_key(|path| path.ends_with("timestamp.json"));
        for file in files {
            let name = file.file_name().unwrap_or_default();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            write_if_changed(&out.join(name), &picket_durable::read_bounded(&file, MAX_SMALL)?)?;
        }
        Ok(())
    }
}

fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<(), ReleaseError> {
    if picket_durable::read_if_present(path, MAX_SMALL)?.as_deref() == Some(bytes) {
        return Ok(());
    }
    Ok(picket_durable::write_atomic(path, bytes, 0o644)?)
}

/// What is named by hash or version never changes, so a file that is there with the right length is the right one.
fn copy_if_absent(from: &Path, to: &Path) -> Result<(), ReleaseError> {
    let length = |path: &Path| std::fs::metadata(path).map(|meta| meta.len()).ok();
    if length(to).is_some() && length(to) == length(from) {
        return Ok(());
    }
    Ok(picket_durable::copy_file(from, to, 0o644)?)
}
