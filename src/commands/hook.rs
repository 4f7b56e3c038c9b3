//! `picket hook`: one of the operator's hooks, run by a process of its own. Hidden: it is for the updater.

use super::Context;
use crate::exit_code::ExitCode;
use picket_update::hooks::runner::{Job, work};
use std::path::PathBuf;
use std::time::Duration;

/// Runs the hook and prints how it went, well or not.
pub(super) fn run(context: &Context<'_>, limit_ms: u64, user: Option<String>, file: PathBuf) -> ExitCode {
    context.output.json(&work(&Job { file, user, limit: Duration::from_millis(limit_ms) }));
    ExitCode::Success
}
