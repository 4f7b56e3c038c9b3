//! Which installation a command is about.

use crate::cli::Global;
use crate::error::CommandError;
use crate::process::Process;
use picket_installer::Receipt;
use picket_layout::{Layout, Scope};

/// The installation that the options name; without any, the one that this executable belongs to; without that, the
/// system's, or the caller's own if only that one exists.
///
/// What it is for, its receipt says.
pub(crate) fn layout(global: &Global, process: &Process) -> Result<Layout, CommandError> {
    let layout = Layout::of(scope(global, process)?)?;
    // A receipt that cannot be read is the business of the commands that need it.
    let receipt = Receipt::load(&layout).ok().flatten();
    let roles = receipt.map(|receipt| receipt.roles).unwrap_or_default();
    Ok(layout.with_roles(roles))
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
