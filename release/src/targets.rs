//! What the targets metadata lists: every artifact and every channel document, with length and hash.
//!
//! An artifact that was published may leave the repository's folder, to live only where it is served: what was signed of
//! it before is signed again, word for word. What was never published is always read from the disk.

use crate::error::ReleaseError;
use crate::metadata::{self, Envelope, Role};
use crate::repository::{Repository, channel_bytes};
use picket_durable::Context;
use picket_protocol::{Channel, Sha256Digest};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

impl Repository {
    /// What the published targets list, by target path.
    pub(crate) fn published_targets(&self) -> Result<BTreeMap<String, Value>, ReleaseError> {
        let Some(path) = self.newest(Role::Targets)? else { return Ok(BTreeMap::new()) };
        let targets = Envelope::load(&path)?;
        let entries = targets.signed["targets"].as_object().into_iter().flatten();
        Ok(entries.map(|(path, target)| (path.clone(), target.clone())).collect())
    }

    /// Every file that the targets metadata must list, by target path.
    pub(crate) fn target_files(&self, channels: &[Channel]) -> Result<BTreeMap<String, Value>, ReleaseError> {
        let published = self.published_targets()?;
        let mut files = BTreeMap::new();
        let artifacts =
            channels.iter().flat_map(|channel| channel.releases.values()).flat_map(|r| r.artifacts.values());
        for artifact in artifacts {
            let path = self.artifact(&artifact.path);
            let target = match published.get(&artifact.path) {
                Some(signed) if !path.exists() => signed.clone(),
                _ => {
                    let (sha256, length) = digest(&path)?;
                    target(&sha256.to_string(), length)
                }
            };
            files.insert(artifact.path.clone(), target);
        }
        for channel in channels {
            let bytes = channel_bytes(channel);
            let sha256 = metadata::sha256(&bytes);
            files.insert(Channel::target_path(&channel.channel), target(&sha256, bytes.len() as u64));
            // Kept as it is signed: the draft in `channels/` goes on changing.
            let kept = self.kept_channel(&sha256);
            if let Some(parent) = kept.parent() {
                picket_durable::create_dir(parent, 0o755)?;
            }
            picket_durable::write_atomic(&kept, &bytes, 0o644)?;
        }
        Ok(files)
    }
}

fn target(sha256: &str, length: u64) -> Value {
    json!({ "length": length, "hashes": { "sha256": sha256 } })
}

/// A file's hash and length, read in pieces.
pub(crate) fn digest(path: &Path) -> Result<(Sha256Digest, u64), ReleaseError> {
    let mut file = std::fs::File::open(path).doing("read", path)?;
    let mut hasher = Sha256::new();
    let mut length = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = file.read(&mut buffer).doing("read", path)?;
        if read == 0 {
            return Ok((Sha256Digest::new(hasher.finalize().into()), length));
        }
        hasher.update(&buffer[..read]);
        length += read as u64;
    }
}
