//! `picket uninstall`.

use super::Context;
use crate::build;
use crate::cli::UninstallArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use picket_installer::uninstall::{leftovers, plan_role_removal, remove, remove_places};
use picket_installer::{Receipt, Removal, RemovalPlan, plan_removal};
use picket_layout::{Role, Roles};
use picket_service::units;
use picket_update::Engine;
use serde_json::json;
use std::path::PathBuf;

/// Runs `picket uninstall`.
pub(super) fn run(context: &Context<'_>, args: &UninstallArgs) -> Result<ExitCode, CommandError> {
    let layout = &context.layout;
    let Some(receipt) = receipt(context)? else {
        return Err(CommandError::NotInstalled(layout.receipt()));
    };
    if let Some(role) = args.role.map(Role::from) {
        if !receipt.roles.has(role) {
            return Err(CommandError::Usage(format!("this installation is no {role}")));
        }
        if let Some(left) = receipt.roles.without(role) {
            return take_away(context, args, receipt, role, left);
        }
    }
    let plan = plan_removal(&receipt, layout, args.purge);
    if args.dry_run {
        show(context, args, &plan);
        return Ok(ExitCode::Success);
    }
    if plan.remove.is_empty() && plan.remove_users.is_empty() {
        report(context, args, &plan, &[]);
        return Ok(ExitCode::Success);
    }
    context.require_root("uninstalling")?;
    let what = if args.purge { "with all its data and configuration" } else { "and keep its data" };
    context.confirm(args.yes, &format!("Remove Picket ({}) {what}?", layout.scope()))?;
    // An update under way would put back what is being removed. A machine without the updater's state has none.
    let lock = if layout.update_dir().is_dir() { Some(Engine::lock(layout)?) } else { None };
    let registrar = picket_service::registrar(layout);
    remove(&plan, &receipt, layout, registrar.as_ref(), |removal| context.output.say(removal.describe()))?;
    drop(lock);
    let left = leftovers(layout, &plan.keep);
    report(context, args, &plan, &left);
    if left.is_empty() { Ok(ExitCode::Success) } else { Err(CommandError::Leftovers(list(&left))) }
}

/// Takes one role from an installation that has another.
fn take_away(
    context: &Context<'_>,
    args: &UninstallArgs,
    mut receipt: Receipt,
    role: Role,
    left: Roles,
) -> Result<ExitCode, CommandError> {
    let layout = &context.layout;
    let plan = plan_role_removal(&receipt, layout, role, args.purge);
    if args.dry_run {
        show(context, args, &plan);
        return Ok(ExitCode::Success);
    }
    context.require_root("uninstalling")?;
    let what = if args.purge { "with all its data and configuration" } else { "and keep its data" };
    context.confirm(args.yes, &format!("Remove the {role} ({}) {what}?", layout.scope()))?;
    let _lock = if layout.update_dir().is_dir() { Some(Engine::lock(layout)?) } else { None };
    let after = layout.clone().with_roles(left);
    // Ahead of the deed: what is interrupted is done again by `picket install`, which goes by the receipt.
    receipt.roles = left;
    receipt.save(layout)?;
    let registrar = picket_service::registrar(&after);
    registrar.register(&units::texts(&after))?;
    remove_places(&plan, |removal| context.output.say(removal.describe()))?;
    report(context, args, &plan, &[]);
    Ok(ExitCode::Success)
}

/// The receipt, or what the layout says when it was lost; `None` when there is nothing here.
fn receipt(context: &Context<'_>) -> Result<Option<Receipt>, CommandError> {
    let layout = &context.layout;
    if let Some(receipt) = Receipt::load(layout)? {
        return Ok(Some(receipt));
    }
    let data = layout.state_dir().exists()
        || layout.hub_dir().exists()
        || layout.update_dir().exists()
        || layout.config_dir().exists();
    if !layout.program_dir().exists() && !data {
        return Ok(None);
    }
    context.output.warn("there is no receipt; going by the layout");
    let everything = layout.clone().with_roles(Roles::ALL);
    Ok(Some(Receipt::from_layout(&everything, &build::info().version, jiff::Timestamp::now())))
}

fn show(context: &Context<'_>, args: &UninstallArgs, plan: &RemovalPlan) {
    if args.json.json {
        report(context, args, plan, &[]);
        return;
    }
    context.output.marked(Tone::Plain, "stop the agent and take it out of the service manager");
    for removal in &plan.remove {
        context.output.marked(Tone::Plain, removal.describe());
    }
    for user in &plan.remove_users {
        context.output.marked(Tone::Plain, format_args!("remove the system user {user}"));
    }
    for kept in &plan.keep {
        context.output.marked(Tone::Plain, format_args!("keep {}", kept.display()));
    }
}

fn report(context: &Context<'_>, args: &UninstallArgs, plan: &RemovalPlan, left: &[PathBuf]) {
    if args.json.json {
        let removed: Vec<&std::path::Path> = plan.remove.iter().map(Removal::path).collect();
        context.output.json(&json!({
            "removed": removed, "kept": plan.keep, "user_removed": !plan.remove_users.is_empty(), "left_over": left,
            "dry_run": args.dry_run,
        }));
        return;
    }
    let nothing = plan.remove.is_empty() && plan.remove_users.is_empty();
    context.output.say(if nothing { "there was nothing to remove" } else { "Picket is uninstalled" });
    if !plan.keep.is_empty() {
        context.output.say(format_args!("kept: {}", list(&plan.keep).replace('\n', ", ")));
        context.output.hint("`picket uninstall --purge` from any copy of picket removes these, too");
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("\n")
}
