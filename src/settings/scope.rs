//! Which installation a command is about.

use crate::cli::Global;
use crate::error::CommandError;
use crate::process::Process;
use picket_layout::{Layout, Scope};

/// The installation that the options name; without any, the one that this executable belongs to; without that, the
/// system's, or the caller's own if only that one exists.
pub(crate) fn layout(global: &Global, process: &Process) -> Result<Layout, CommandError> {
    Ok(Layout::of(scope(global, process)?)?)
}

fn scope(global: &Global, process: &Process) -> Result<Scope, CommandError> {
    if let Some(prefix) = &global.prefix {
        let absolute = std::path::absolute(prefix)
            .map_err(|source| CommandError::system(format!("the prefix {} is no path", prefix.display()), source))?;
        return Ok(Scope::Prefix(absolute));
    }
    if global.user {
        return Ok(Scope::User);
    }
    if let Some(scope) = Layout::scope_of_executable(&process.exe) {
        return Ok(scope);
    }
    let has_receipt = |scope: &Scope| Layout::of(scope.clone()).is_ok_and(|layout| layout.receipt().exists());
    let found = [Scope::System, Scope::User].into_iter().find(has_receipt);
    Ok(found.unwrap_or(Scope::System))
}
