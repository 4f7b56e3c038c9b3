//! The operator's own programs: health hooks in `health.d/{required,wanted}`, and `update.d/{busy,before,after}`.
//!
//! A hook is an executable file that nobody but root (or the caller, outside a system installation) could have put there:
//! see [`trust`]. Hooks run in the order of their names, each in a process of its own ([`runner`]) with a time limit, a
//! bounded output, a small environment, and as the user that `update.hook_user` names. The exit status is the answer.

pub mod runner;
mod trust;

use crate::child;
use picket_durable::Context;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// More hooks than this in one folder are a mistake.
const MAX_HOOKS: usize = 64;
/// The largest answer of a runner, in bytes: the output it keeps, escaped, and some words.
const MAX_ANSWER: u64 = 64 << 10;
/// How much of a hook's output is kept in the history, in characters.
const MAX_OUTPUT: usize = 2000;
/// How much of how it ended is kept, in characters.
const MAX_DETAIL: usize = 400;
/// How much longer than a hook its runner gets: to end what the hook left running, and to say so.
const RUNNER_GRACE: Duration = Duration::from_secs(10);
/// Where hooks find programs.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a hook is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookKind {
    /// Whether the machine is busy, so that an update has to wait.
    Busy,
    /// Whether the trial may begin.
    Before,
    /// Whether the new version does its work; decides.
    Required,
    /// The same; is only heard.
    Wanted,
    /// Nothing: it is told how the update ended.
    After,
    /// Another version's word, or none: hooks of old journals.
    #[default]
    #[serde(other)]
    Other,
}

impl HookKind {
    /// The word that hooks are told and that stands in the history.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Before => "before",
            Self::Required => "required",
            Self::Wanted => "wanted",
            Self::After => "after",
            Self::Other => "other",
        }
    }

    /// Whether a failure decides about the new version or its trial.
    pub fn decides(self) -> bool {
        matches!(self, Self::Before | Self::Required)
    }
}

/// What a hook said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookResult {
    /// The file.
    pub hook: String,
    /// What it was asked.
    #[serde(default)]
    pub kind: HookKind,
    /// Whether its failure decides.
    pub required: bool,
    /// Whether it succeeded.
    pub ok: bool,
    /// How it ended, and its last line if it failed.
    pub detail: String,
    /// The end of what it printed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub ms: u64,
}

/// Hooks that are not run.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Somebody else could have written one of them.
    #[error("the hook {} is not run: {reason}", path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, or with what leads to it.
        reason: String,
    },
    /// There are too many.
    #[error("the hooks in {} are not run: there are more than {MAX_HOOKS}", _0.display())]
    TooMany(PathBuf),
    /// The user they are to run as is not there.
    #[error("hooks are not run: there is no user {0:?}, which update.hook_user names")]
    NoUser(String),
    /// This process cannot become the user they are to run as.
    #[error("hooks are not run: only root can run them as {0:?}, which update.hook_user names")]
    NotRoot(String),
    /// The folder could not be read.
    #[error("hooks cannot be read")]
    File(#[from] picket_durable::Error),
}

impl HookError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Untrusted { .. } => {
                "give the file, and every folder that leads to it, to root with `chown root` and `chmod go-w`"
                    .to_owned()
            }
            Self::TooMany(_) => "let one of them run the others".to_owned(),
            Self::NoUser(user) => format!("make it (`useradd --system {user}`), or name another in update.hook_user"),
            Self::NotRoot(_) => "take update.hook_user out of the configuration".to_owned(),
            Self::File(_) => "`picket doctor` shows owners and modes".to_owned(),
        }
    }
}

/// The hooks of one folder.
#[derive(Debug, Clone)]
pub struct Hooks {
    /// What they are asked.
    pub kind: HookKind,
    /// The folder; one that does not exist has no hooks.
    pub dir: PathBuf,
    /// The folder above which nobody is distrusted: `/`, or the prefix.
    pub root: PathBuf,
    /// The executable that runs them one by one: see [`runner`].
    pub runner: PathBuf,
    /// The user they run as; none is this process' own.
    pub user: Option<String>,
    /// How long each may run.
    pub limit: Duration,
    /// What they are told, as variables.
    pub told: Vec<(String, String)>,
}

impl Hooks {
    /// Runs every hook.
    ///
    /// # Errors
    /// Before any is run, when one of them could be somebody else's, or cannot be run as it is to be.
    pub fn run(&self) -> Result<Vec<HookResult>, HookError> {
        Ok(self.files()?.iter().map(|path| self.run_one(path)).collect())
    }

    /// What stands in the place of results when the folder's hooks were not run at all.
    pub fn not_run(&self, error: &HookError) -> HookResult {
        HookResult {
            hook: self.dir.display().to_string(),
            kind: self.kind,
            required: self.kind.decides(),
            ok: false,
            detail: clean(&error.to_string(), MAX_DETAIL),
            output: String::new(),
            ms: 0,
        }
    }

    /// Runs one of [`Hooks::files`].
    pub(crate) fn run_one(&self, path: &Path) -> HookResult {
        let began = Instant::now();
        let answer = self.ask(path);
        HookResult {
            hook: path.display().to_string(),
            kind: self.kind,
            required: self.kind.decides(),
            ok: answer.ok,
            // The runner is the hook's user by then: its words are measured like the hook's own.
            detail: clean(&answer.detail, MAX_DETAIL),
            output: clean_end(&answer.output),
            ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn ask(&self, path: &Path) -> runner::Answer {
        let mut command = Command::new(&self.runner);
        command.arg("hook").arg("--limit-ms").arg(self.limit.as_millis().to_string());
        if let Some(user) = &self.user {
            command.arg("--run-as").arg(user);
        }
        command.arg(path).env_clear().current_dir("/").env("PATH", SEARCH_PATH).env("LANG", "C.UTF-8");
        command.env("PICKET_HOOK", path).env("PICKET_HOOK_KIND", self.kind.as_str());
        command.envs(self.told.iter().map(|(name, value)| (name, clean(value, MAX_OUTPUT))));
        let limit = self.limit.saturating_add(RUNNER_GRACE);
        let failed = |detail: String| runner::Answer { ok: false, detail, output: String::new() };
        match child::run(command, limit, child::Keep::First(MAX_ANSWER)) {
            Ok(outcome) => serde_json::from_slice(&outcome.stdout)
                .unwrap_or_else(|_| failed(format!("cannot be run: {}", outcome.describe(limit)))),
            Err(error) => failed(format!("{} cannot be started: {error}", self.runner.display())),
        }
    }

    /// The executable files of the folder, by name.
    ///
    /// # Errors
    /// When one of them could be somebody else's, or they cannot be run as they are to be.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>, HookError> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(picket_durable::Error::new("list", &self.dir, e).into()),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.doing("list", &self.dir)?.path();
            if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
                continue;
            }
            if trust::is_hook(&self.root, &self.dir, &path)? {
                files.push(path);
            }
            if files.len() > MAX_HOOKS {
                return Err(HookError::TooMany(self.dir.clone()));
            }
        }
        if !files.is_empty() {
            self.user_is_there()?;
        }
        files.sort();
        Ok(files)
    }

    fn user_is_there(&self) -> Result<(), HookError> {
        let Some(name) = &self.user else { return Ok(()) };
        let known = nix::unistd::User::from_name(name).ok().flatten().ok_or_else(|| HookError::NoUser(name.clone()))?;
        let own = rustix::process::geteuid();
        if own.is_root() || known.uid.as_raw() == own.as_raw() { Ok(()) } else { Err(HookError::NotRoot(name.clone())) }
    }
}

/// The beginning of a text, without control characters.
fn clean(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

/// The end of an output, line by line.
fn clean_end(text: &str) -> String {
    let kept = text.trim_end().chars().rev().filter(|c| !c.is_control() || *c == '\n').take(MAX_OUTPUT);
    let reversed: String = kept.collect();
    reversed.chars().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_has_no_hooks() {
        let hooks = Hooks {
            kind: HookKind::Required,
            dir: "/nonexistent/health.d".into(),
            root: "/".into(),
            runner: "/nonexistent".into(),
            user: None,
            limit: Duration::from_secs(1),
            told: Vec::new(),
        };
        assert_eq!(hooks.run().unwrap(), []);
    }

    #[test]
    fn what_a_hook_prints_is_kept_from_its_end_and_without_control_characters() {
        assert_eq!(clean_end("one\u{1b}[31m\ntwo\r\n\n"), "one[31m\ntwo");
        let long = clean_end(&format!("{}end", "x".repeat(10_000)));
        assert!(long.len() == MAX_OUTPUT && long.ends_with("end"));
        assert_eq!(clean("a\nb\u{0}c", 2), "ab");
    }

    #[test]
    fn results_of_older_and_newer_versions_are_read() {
        let old = r#"{"hook":"h","required":true,"ok":false,"detail":"exit status: 1"}"#;
        let result: HookResult = serde_json::from_str(old).unwrap();
        assert_eq!((result.kind, result.ms), (HookKind::Other, 0));
        let newer = r#"{"hook":"h","kind":"sideways","required":true,"ok":false,"detail":"x","more":1}"#;
        assert_eq!(serde_json::from_str::<HookResult>(newer).unwrap().kind, HookKind::Other);
    }
}
