//! `picket update check` and `apply` of an executable that is no installation: it looks, and replaces its own file.

use super::Context;
use super::update::{show_offer, tool_settings};
use super::{follow, update_bundle, update_list};
use crate::cli::{ApplyArgs, CheckArgs, UpdateCommand};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::wiring;
use picket_installer::owner_of;
use picket_layout::{Layout, Scope};
use picket_protocol::update_status::UpdateOutcome;
use picket_update::decide::{Asked, Decision};
use picket_update::engine::Checked;
use picket_update::portable::{NotReplaced, Portable};
use picket_update::progress::Trouble;
use semver::Version;
use std::path::Path;

/// Whether `command` is about this very file: there is no installation on this machine that it could be about, and nobody named
/// one.
pub(super) fn is_meant(context: &Context<'_>, command: &UpdateCommand) -> bool {
    let layout = &context.layout;
    let installed = CommandError::require_installed(layout).is_ok() || layout.receipt().exists();
    matches!(command, UpdateCommand::Check(_) | UpdateCommand::Apply(_))
        && *layout.scope() == Scope::System
        && !installed
}

/// Runs it.
pub(super) fn run(context: &Context<'_>, command: UpdateCommand) -> Result<ExitCode, CommandError> {
    // An executable in somebody's folder has that person's configuration and state.
    let context = &Context { layout: Layout::of(Scope::User)?, ..*context };
    match command {
        UpdateCommand::Check(args) if args.releases => update_list::of_executable(context, &args),
        UpdateCommand::Check(args) => check(context, &args),
        UpdateCommand::Apply(args) => apply(context, &args),
        _ => Err(CommandError::NotInstalled(context.layout.current_link())),
    }
}

/// Lets `act` use the updater of this file, with other updaters of this user kept away; releases come from `bundle`, where
/// there is one.
pub(super) fn with_portable<T>(
    context: &Context<'_>,
    bundle: Option<&Path>,
    act: impl FnOnce(&Portable<'_>) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    bundle.map(update_bundle::look_at).transpose()?;
    let settings = tool_settings(context)?;
    wiring::with_portable(&context.layout, &settings, context.process, bundle.is_some(), |portable| {
        let _lock = portable.lock()?;
        let Some(bundle) = bundle else { return act(portable) };
        let places = &portable.fetcher.places;
        picket_durable::create_dir(places.dir(), 0o755)?;
        picket_durable::copy_file(bundle, &places.bundle(), 0o644)?;
        let result = act(portable);
        let _ = picket_durable::remove_if_present(&places.bundle());
        result
    })
}

fn check(context: &Context<'_>, args: &CheckArgs) -> Result<ExitCode, CommandError> {
    let offer = with_portable(context, None, |portable| {
        Ok(portable.check(&Asked::ByPerson { version: None, now: false })?.offer(&portable.build.version))
    })?;
    if args.json.json {
        context.output.json(&offer);
        return Ok(ExitCode::Success);
    }
    show_offer(context, &offer);
    if offer.update_available {
        let exe = context.process.exe.display();
        context.output.hint(format_args!("this is no installation; `picket update apply` replaces {exe}"));
    }
    Ok(ExitCode::Success)
}

fn apply(context: &Context<'_>, args: &ApplyArgs) -> Result<ExitCode, CommandError> {
    let exe = &context.process.exe;
    if let Some(owner) = owner_of(exe) {
        return Err(CommandError::Owned { exe: exe.clone(), owner });
    }
    let asked = Asked::ByPerson { version: args.version.clone(), now: args.now };
    let bar = context.output.bar();
    let followed = with_portable(context, args.bundle.as_deref(), |portable| {
        let checked = portable.check(&asked)?;
        let current = &portable.build.version;
        let version = match wanted(&checked) {
            Ok(version) => version,
            Err((reason, trouble)) => return Ok(follow::Followed { trouble, ..told(None, current, reason) }),
        };
        context.confirm(args.yes, &format!("Replace {} ({current}) with {version}?", exe.display()))?;
        let replaced = portable.replace(&version, &checked, &|done, total| bar.bytes(done, total));
        bar.clear();
        Ok(match replaced {
            Ok(replaced) => {
                let (exe, old) = (exe.display(), replaced.old.display());
                let reason = format!("{exe} is version {} now; the one before is {old}", replaced.version);
                told(Some(UpdateOutcome::Committed), &replaced.version, reason)
            }
            Err(NotReplaced { outcome, reason, hint, trouble }) => {
                follow::Followed { hint, trouble, ..told(Some(outcome), current, reason) }
            }
        })
    })?;
    Ok(follow::report(context, &followed, args.json.json))
}

/// The release to take, or why none is taken: there is nothing to do, or not what was asked for.
fn wanted(checked: &Checked) -> Result<Version, (String, Option<Trouble>)> {
    match &checked.decision {
        Decision::Take { version } => Ok(version.clone()),
        Decision::Offer { waiting, .. } => Err((waiting.clone(), Some(Trouble::Refused))),
        Decision::Refuse { reason } => Err((reason.clone(), Some(Trouble::Refused))),
        Decision::Stay { reason } => Err((reason.clone(), None)),
    }
}

fn told(outcome: Option<UpdateOutcome>, version: &Version, reason: String) -> follow::Followed {
    follow::Followed { outcome, version: Some(version.clone()), reason, hint: None, trouble: None }
}
