//! `picket hub block …`: the way out for who is turned away by the hub, on its own machine.

use super::{actor, with_hub};
use crate::cli::{HubBlockCommand, JsonArgs};
use crate::commands::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use picket_hub::db::{Block, BlockSubject, PageRequest};
use picket_hub::refusal::Refusal;
use picket_hub::state::Hub;
use serde_json::json;

/// Runs `picket hub block …`.
pub(super) fn run(context: &Context<'_>, command: &HubBlockCommand) -> Result<ExitCode, CommandError> {
    match command {
        HubBlockCommand::List(json) => list(context, json),
        HubBlockCommand::Lift { who } => {
            let by = actor(context);
            let was_blocked = with_hub(context, async |hub| {
                let subject = hub.block_subject(who).await?;
                Ok(hub.lift_block(&subject, &by).await?)
            })?;
            context.output.say(if was_blocked { "the block is lifted" } else { "there was no block" });
            Ok(ExitCode::Success)
        }
    }
}

fn list(context: &Context<'_>, args: &JsonArgs) -> Result<ExitCode, CommandError> {
    let blocks = with_hub(context, async |hub| {
        let mut blocks = Vec::new();
        let mut request = PageRequest::first(500);
        loop {
            let page = hub.db.blocks(hub.tenant, hub.clock.now(), &request).await.map_err(Refusal::from)?;
            for block in page.items {
                let name = name(&hub, &block).await?;
                blocks.push((block, name));
            }
            match page.next {
                Some(next) => request = PageRequest::after(next, 500),
                None => return Ok(blocks),
            }
        }
    })?;
    if args.json {
        let shown = blocks.iter().map(|(block, name)| {
            let (kind, value) = block.subject.parts();
            json!({
                "kind": kind, "value": value, "name": name, "until": block.until, "reason": block.reason,
                "created_at": block.created_at,
            })
        });
        context.output.json(&shown.collect::<Vec<_>>());
        return Ok(ExitCode::Success);
    }
    for (block, name) in &blocks {
        let (kind, value) = block.subject.parts();
        let until = block.until.map_or_else(|| "for good".to_owned(), |until| format!("until {until}"));
        let shown = name.as_deref().unwrap_or(value);
        context.output.result(format_args!("{kind:<9}  {shown:<24}  {until}  {}", block.reason));
    }
    if blocks.is_empty() {
        context.output.hint("nobody is turned away");
    }
    Ok(ExitCode::Success)
}

/// What the user is called whom a block is about.
async fn name(hub: &Hub, block: &Block) -> Result<Option<String>, Refusal> {
    let BlockSubject::Principal(principal) = &block.subject else { return Ok(None) };
    let Some(id) = principal.strip_prefix("user:").and_then(|id| id.parse().ok()) else { return Ok(None) };
    Ok(hub.db.user(hub.tenant, id).await?.map(|user| user.name))
}
