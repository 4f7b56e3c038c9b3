//! The operator's own programs: health hooks in `health.d/{required,wanted}`, busy hooks in `update.d/busy`.
//!
//! A hook is an executable file that belongs to root (or to the caller, outside a system installation) and that nobody
//! else may write. It runs with a time limit and a bounded output; its exit status is its answer. Hooks run in the order
//! of their names.

use crate::child;
use picket_durable::Context;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// More hooks than this in one folder are a mistake.
const MAX_HOOKS: usize = 64;
/// How much of a hook's output is kept, in bytes.
const MAX_OUTPUT: u64 = 4 << 10;

/// What a hook said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookResult {
    /// The file.
    pub hook: String,
    /// Whether its failure decides.
    pub required: bool,
    /// Whether it succeeded.
    pub ok: bool,
    /// How it ended, and its last line if it failed.
    pub detail: String,
}

/// A hook that is not run, because it could be somebody else's.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Somebody else could have written it.
    #[error("the hook {} is not run: {reason}", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder could not be read.
    #[error("hooks cannot be read")]
    File(#[from] picket_durable::Error),
}

/// Runs the hooks of one folder.
#[derive(Debug, Clone)]
pub struct Hooks {
    /// The folder; one that does not exist has no hooks.
    pub dir: PathBuf,
    /// Whether a failure decides.
    pub required: bool,
    /// How long each may run.
    pub limit: Duration,
}

impl Hooks {
    /// Runs every hook.
    ///
    /// # Errors
    /// [`HookError::Untrusted`] before any is run, when one of them could be somebody else's.
    pub fn run(&self) -> Result<Vec<HookResult>, HookError> {
        let files = self.files()?;
        Ok(files.iter().map(|path| self.run_one(path)).collect())
    }

    fn run_one(&self, path: &Path) -> HookResult {
        let hook = path.display().to_string();
        match child::run(Command::new(path), self.limit, MAX_OUTPUT) {
            Ok(outcome) => {
                let detail = outcome.describe(self.limit);
                HookResult { hook, required: self.required, ok: outcome.success(), detail }
            }
            Err(error) => {
                HookResult { hook, required: self.required, ok: false, detail: format!("cannot be run: {error}") }
            }
        }
    }

    /// The executable files of the folder, by name.
    fn files(&self) -> Result<Vec<PathBuf>, HookError> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(picket_durable::Error::new("list", &self.dir, e).into()),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.doing("list", &self.dir)?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            // Follows links on purpose: what counts is who may write what is run.
            let meta = path.metadata().doing("inspect", &path)?;
            if hidden || !meta.is_file() || meta.mode() & 0o111 == 0 {
                continue;
            }
            if let Some(reason) = distrust(&meta) {
                return Err(HookError::Untrusted { path, reason });
            }
            files.push(path);
        }
        files.sort();
        files.truncate(MAX_HOOKS);
        Ok(files)
    }
}

/// Why a file could be somebody else's.
fn distrust(meta: &std::fs::Metadata) -> Option<String> {
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != own {
        return Some(format!("it belongs to user {}", meta.uid()));
    }
    (meta.mode() & 0o022 != 0).then(|| format!("others may write it (mode {:04o})", meta.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(dir: &Path) -> Hooks {
        Hooks { dir: dir.to_owned(), required: true, limit: Duration::from_secs(20) }
    }

    fn hook(dir: &Path, name: &str, script: &str, mode: u32) {
        picket_durable::write_atomic(&dir.join(name), format!("#!/bin/sh\n{script}\n").as_bytes(), mode).unwrap();
    }

    #[test]
    fn hooks_run_in_order_and_say_why_they_failed() {
        let dir = tempfile::tempdir().unwrap();
        hook(dir.path(), "20-queue", "echo the queue is full >&2; exit 1", 0o755);
        hook(dir.path(), "10-disk", "exit 0", 0o700);
        hook(dir.path(), "README", "exit 1", 0o644);
        hook(dir.path(), ".hidden", "exit 1", 0o755);
        let results = hooks(dir.path()).run().unwrap();
        let told: Vec<(bool, &str)> = results.iter().map(|r| (r.ok, r.detail.as_str())).collect();
        assert_eq!(told, [(true, "exit status: 0"), (false, "exit status: 1: the queue is full")]);
    }

    #[test]
    fn a_hook_that_others_may_write_is_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let proof = dir.path().join("proof");
        hook(dir.path(), "10-evil", &format!("touch {}", proof.display()), 0o777);
        let error = hooks(dir.path()).run().unwrap_err().to_string();
        assert!(error.contains("others may write it (mode 0777)"), "{error}");
        assert!(!proof.exists());
    }

    #[test]
    fn a_folder_that_is_not_there_has_no_hooks() {
        assert_eq!(hooks(Path::new("/nonexistent/health.d")).run().unwrap(), []);
    }
}
