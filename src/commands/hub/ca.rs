//! `picket hub ca …`.

use super::{actor, as_hub, options, with_hub};
use crate::cli::{HubCaCommand, JsonArgs};
use crate::commands::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use picket_hub::app::roll::RollStatus;
use picket_hub::authority::{KeysError, KeysFolder};
use picket_hub::life::StartError;
use serde_json::json;

/// How many agents are shown; with --json, all that the hub names.
const SHOWN: usize = 20;

/// Runs `picket hub ca …`.
pub(super) fn run(context: &Context<'_>, command: &HubCaCommand) -> Result<ExitCode, CommandError> {
    match command {
        HubCaCommand::Roll(json) => roll(context, json),
        HubCaCommand::Status(json) => status(context, json),
        HubCaCommand::Finish { force, json } => finish(context, *force, json),
    }
}

fn wrong(error: KeysError) -> CommandError {
    Box::new(StartError::Keys(error)).into()
}

/// Puts a new root in force beside the old one.
fn roll(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let by = actor(context);
    let (_, config) = options(context)?;
    let folder = KeysFolder::new(context.layout.hub_keys_dir());
    // One that was broken off may leave keys with which no hub can be assembled, to write it down: they are mended first.
    let was_begun = as_hub(context, || {
        let torn = folder.load().is_err();
        if torn {
            folder.begin_roll(&config.settings.fleet, jiff::Timestamp::now()).map_err(wrong)?;
        }
        Ok(torn)
    })?;
    let rolled = with_hub(context, async |hub| {
        hub.audit(&by, "ca.roll", "root", json!({ "went_on": was_begun })).await?;
        folder.begin_roll(&config.settings.fleet, jiff::Timestamp::now()).map_err(wrong)
    })?;
    let output = context.output;
    if json.json {
        output.json(&json!({ "pin": rolled.pin, "was_begun": rolled.was_begun }));
        return Ok(ExitCode::Success);
    }
    output.field("the new root", rolled.pin);
    if rolled.was_begun {
        output.say("the roll-over was begun before");
    }
    let path = folder.path("root.key");
    output.hint(format_args!("{} is not needed from day to day: take it to a safe", path.display()));
    output.hint(
        "a hub that runs takes it up within ten minutes, and asks its agents to renew; replicas need the same folder",
    );
    output.hint("see how far it is with: picket hub ca status");
    Ok(ExitCode::Success)
}

fn status(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let status = with_hub(context, async |hub| Ok(hub.roll_status().await?))?;
    let output = context.output;
    if json.json {
        output.json(&status);
        return Ok(ExitCode::Success);
    }
    for (at, pin) in status.pins.iter().enumerate() {
        output.field(if at == 0 { "root" } else { "old root" }, pin);
    }
    if status.rolling {
        output.field("agents that know only the old root", status.waiting);
        tell(context, &status);
        if status.waiting == 0 {
            output.hint("drop the old root with: picket hub ca finish");
        }
    } else {
        output.say("no root is being replaced");
    }
    Ok(ExitCode::Success)
}

fn tell(context: &Context<'_>, status: &RollStatus) {
    for agent in status.agents.iter().take(SHOWN) {
        let seen = agent.last_seen.map_or_else(|| "never".to_owned(), |at| at.to_string());
        context.output.result(format_args!("{}  {:<28}  last heard {seen}", agent.id, agent.name));
    }
    let more = status.waiting.saturating_sub(SHOWN as u64);
    if more > 0 {
        context.output.say(format_args!("and {more} more"));
    }
}

fn finish(context: &Context<'_>, force: bool, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let by = actor(context);
    let (_, config) = options(context)?;
    let folder = KeysFolder::new(context.layout.hub_keys_dir());
    let (status, dropped) = with_hub(context, async |hub| {
        let status = hub.roll_status().await?;
        if !status.rolling {
            return Ok((status, false));
        }
        if status.waiting > 0 && !force {
            tell(context, &status);
            return Err(CommandError::RootNeeded(status.waiting));
        }
        hub.audit(&by, "ca.finish", "root", json!({ "left_behind": status.waiting })).await?;
        let dropped = folder.finish_roll(&config.settings.names, jiff::Timestamp::now()).map_err(wrong)?;
        Ok((status, dropped))
    })?;
    let output = context.output;
    let left_behind = if dropped { status.waiting } else { 0 };
    if json.json {
        output.json(&json!({ "dropped": dropped, "left_behind": left_behind }));
    } else if dropped {
        output.say(
            "the old root is dropped; a hub that runs takes that up within ten minutes, or when it is started again",
        );
        if left_behind > 0 {
            output.hint(format_args!(
                "{left_behind} agents must be enrolled again: picket enroll --force with a new token"
            ));
        }
    } else {
        output.say("no root is being replaced");
    }
    Ok(ExitCode::Success)
}
