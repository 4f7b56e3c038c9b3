//! Bringing a release bundle to where the updater's unprivileged half can read it. Not a byte of it is read here.

use super::{Context, follow};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use picket_update::Engine;
use picket_update::fetch::MAX_BUNDLE;
use picket_update::fetcher::Places;
use picket_update::request::{Request, Wanted};
use semver::Version;
use std::path::{Path, PathBuf};

/// Makes sure that there is a file that can be a bundle, before anything else is done.
pub(super) fn look_at(file: &Path) -> Result<(), CommandError> {
    let meta = std::fs::metadata(file).map_err(|error| picket_durable::Error::new("read", file, error))?;
    if !meta.is_file() {
        return Err(CommandError::Usage(format!("{} is no file", file.display())));
    }
    if meta.len() > MAX_BUNDLE {
        let most = MAX_BUNDLE >> 20;
        return Err(CommandError::Usage(format!(
            "{} is larger than a bundle may be ({most} MiB): make one for fewer targets",
            file.display()
        )));
    }
    Ok(())
}

fn place(context: &Context<'_>) -> PathBuf {
    Places::new(context.layout.fetch_dir()).bundle()
}

/// Copies `file` to where the updater looks for it.
pub(super) fn bring(context: &Context<'_>, file: &Path) -> Result<(), CommandError> {
    look_at(file)?;
    // An updater at work may be reading the one before.
    let _lock = Engine::lock(&context.layout)?;
    picket_durable::create_dir(context.layout.fetch_dir(), 0o755)?;
    Ok(picket_durable::copy_file(file, &place(context), 0o644)?)
}

/// Takes it away again.
pub(super) fn take_away(context: &Context<'_>) {
    let _ = picket_durable::remove_if_present(&place(context));
}

/// Asks the updater for the release in the bundle that was brought.
pub(super) fn ask(
    context: &Context<'_>,
    version: Option<Version>,
    now: bool,
    as_json: bool,
) -> Result<ExitCode, CommandError> {
    let wanted = Wanted::Apply { version, now, bundle: true };
    let request = Request { id: picket_update::random_id(), wanted, by: context.process.person() };
    let followed = follow::ask_updater(context, &request).inspect_err(|_| take_away(context))?;
    Ok(follow::report(context, &followed, as_json))
}
