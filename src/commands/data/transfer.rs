//! `picket data backup` and `restore`: the whole store as one sealed file, and back.

use super::super::Context;
use super::target::Target;
use super::{Following, agent_runs, keyring, size, store_dir};
use crate::cli::{BackupArgs, RestoreArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::wiring::as_owner;
use picket_seal::Keyring;
use picket_store::{DATABASE, Finding, MissingRows};
use std::fs::File;
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;

/// How many findings are listed for people; all that are named are in the JSON form.
const SHOWN: usize = 20;

/// Runs `picket data backup`.
pub(super) fn backup(context: &Context<'_>, args: &BackupArgs) -> Result<ExitCode, CommandError> {
    let is_stream = args.output == Path::new("-");
    if is_stream && std::io::stdout().is_terminal() {
        return Err(CommandError::Usage("a backup is no text for a terminal; name a file or a pipe".to_owned()));
    }
    if is_stream && args.json.json {
        return Err(CommandError::Usage("--json reports on a file; name it with --output".to_owned()));
    }
    let mut target = Target::open(context.output, Some(&args.output), args.force)?;
    let following = if target.is_stream() { Following::unseen("pages")? } else { Following::begin(context, "pages")? };
    let report = as_owner(&context.layout, || {
        let (dir, keyring) = (store_dir(context)?, keyring(context)?);
        Ok(picket_store::backup(&dir, &keyring, &mut target, &mut |progress| following.look(progress))?)
    })?;
    drop(following);
    target.finish()?;
    if args.json.json {
        let mut value = serde_json::to_value(&report).unwrap_or_default();
        value["output"] = args.output.display().to_string().into();
        context.output.json(&value);
    } else {
        let (file, bytes) = (args.output.display(), size(report.bytes));
        context.output.say(format_args!("{} rows in {file}, {bytes}, sealed under key {}", report.rows, report.key));
        let key = context.layout.store_key();
        context.output.hint(format_args!("it opens with {} only: keep a copy of that elsewhere", key.display()));
    }
    if report.findings.is_empty() {
        return Ok(ExitCode::Success);
    }
    warn_of(context, &report.findings, report.unnamed);
    context
        .output
        .warn("the store is damaged, and so is this backup: keep the earlier ones, and see `picket data verify`");
    Ok(ExitCode::Damaged)
}

fn warn_of(context: &Context<'_>, findings: &[Finding], unnamed: u64) {
    for finding in findings.iter().take(SHOWN) {
        context.output.warn(finding);
    }
    let more = findings.len().saturating_sub(SHOWN) as u64 + unnamed;
    if more > 0 {
        context.output.warn(format_args!("and {more} more"));
    }
}

/// Runs `picket data restore`.
pub(super) fn restore(context: &Context<'_>, args: &RestoreArgs) -> Result<ExitCode, CommandError> {
    // Both are the caller's to read, not the owner's.
    let sealed = File::open(&args.backup).map_err(|source| picket_durable::Error::new("open", &args.backup, source))?;
    let theirs = args.key.as_deref().map(Keyring::open).transpose()?.map(Arc::new);
    let place = context.layout.store_dir().join(DATABASE);
    context.confirm(
        args.yes,
        &format!("Replace the store {} with this backup? What is there is kept beside it.", place.display()),
    )?;
    let following = Following::begin(context, "rows")?;
    let (report, runs) = as_owner(&context.layout, || {
        let dir = context.layout.store_dir();
        let ours = match &theirs {
            // A device that has neither store nor key yet gets a key of its own.
            Some(_) => picket_store::keyring(&context.layout.store_key(), &dir)?,
            None => keyring(context)?,
        };
        let watch = &mut |progress| following.look(progress);
        let report = picket_store::restore(&dir, &ours, theirs.as_ref(), &args.backup, sealed, watch)?;
        Ok((report, agent_runs(context)))
    })?;
    drop(following);
    let code = if report.findings.is_empty() { ExitCode::Success } else { ExitCode::Damaged };
    if args.json.json {
        context.output.json(&report);
        return Ok(code);
    }
    warn_of(context, &report.findings, 0);
    for missing in report.missing.iter().take(SHOWN) {
        let MissingRows { table, first, last, known } = missing;
        let how = if *known { "lost" } else { "missing: lost, or removed before" };
        context.output.warn(format_args!("rows {first} to {last} of {table} are {how}"));
    }
    let newest = report.newest.map(|newest| format!(", the newest of {newest}")).unwrap_or_default();
    let anew = if report.resealed { ", sealed anew under this device's key" } else { "" };
    context.output.result(format_args!("{} rows restored{newest}{anew}", report.rows));
    for kept in &report.kept {
        context.output.say(format_args!("what was there is kept: {}", kept.display()));
    }
    super::say_start(context, runs);
    Ok(code)
}
