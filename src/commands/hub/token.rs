//! `picket hub token …`.

use super::{actor, with_hub};
use crate::cli::{HubTokenCommand, JsonArgs, TokenCreateArgs};
use crate::commands::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use jiff::Timestamp;
use picket_hub::app::tokens::TokenWish;
use picket_hub::db::{EnrolToken, Network, PageRequest};
use picket_hub::refusal::Refusal;
use serde_json::json;

/// Runs `picket hub token …`.
pub(super) fn run(context: &Context<'_>, command: HubTokenCommand) -> Result<ExitCode, CommandError> {
    match command {
        HubTokenCommand::Create(args) => create(context, args),
        HubTokenCommand::List(json) => list(context, &json),
        HubTokenCommand::Revoke { id } => {
            let by = actor(context);
            let was_good = with_hub(context, async |hub| Ok(hub.revoke_token(id, &by).await?))?;
            context.output.say(if was_good { "the token is revoked" } else { "the token was revoked already" });
            Ok(ExitCode::Success)
        }
    }
}

fn create(context: &Context<'_>, args: TokenCreateArgs) -> Result<ExitCode, CommandError> {
    let networks: Result<Vec<Network>, _> = args.networks.iter().map(|text| text.parse()).collect();
    let wish = TokenWish {
        ttl: args.ttl,
        max_uses: args.max_uses,
        tags: args.tags.into_iter().collect(),
        label: args.label,
        approval: args.approval,
        networks: networks.map_err(|error| CommandError::Usage(format!("--from: {error}")))?,
    };
    let by = actor(context);
    let (kept, token) = with_hub(context, async |hub| Ok(hub.create_token(wish, &by).await?))?;
    if let Some(out) = &args.out {
        picket_durable::write_atomic(out, format!("{}\n", token.as_str()).as_bytes(), 0o600)?;
    }
    let shown = args.out.is_none().then(|| token.as_str());
    if args.json.json {
        let document =
            json!({ "id": kept.id, "token": shown, "expires_at": kept.expires_at, "max_uses": kept.max_uses });
        context.output.json(&document);
        return Ok(ExitCode::Success);
    }
    if let Some(shown) = shown {
        context.output.result(shown);
    }
    let left = left(&kept, Timestamp::now());
    context.output.hint(format_args!(
        "use it {left} on the machine: picket enroll --token-file FILE, or picket enroll and paste it"
    ));
    Ok(ExitCode::Success)
}

fn list(context: &Context<'_>, args: &JsonArgs) -> Result<ExitCode, CommandError> {
    let tokens = with_hub(context, async |hub| {
        let mut tokens = Vec::new();
        let mut request = PageRequest::first(500);
        loop {
            let page = hub.db.enrol_tokens(hub.tenant, None, &request).await.map_err(Refusal::from)?;
            tokens.extend(page.items);
            match page.next {
                Some(next) => request = PageRequest::after(next, 500),
                None => return Ok(tokens),
            }
        }
    })?;
    let now = Timestamp::now();
    if args.json {
        let shown: Vec<_> = tokens
            .iter()
            .map(|token| {
                json!({
                    "id": token.id, "label": token.label, "tags": token.tags, "uses": token.uses,
                    "max_uses": token.max_uses, "created_at": token.created_at, "created_by": token.created_by,
                    "expires_at": token.expires_at, "revoked_at": token.revoked_at,
                    "needs_approval": token.needs_approval,
                    "networks": token.allowed.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "usable": is_usable(token, now),
                })
            })
            .collect();
        context.output.json(&shown);
        return Ok(ExitCode::Success);
    }
    for token in &tokens {
        let tags = token.tags.iter().cloned().collect::<Vec<_>>().join(",");
        context.output.result(format_args!(
            "{}  {:<28}  {}/{} used  {}  {}",
            token.id,
            left(token, now),
            token.uses,
            token.max_uses,
            if tags.is_empty() { "-" } else { &tags },
            token.label
        ));
    }
    if tokens.is_empty() {
        context.output.hint("there is none; make one with: picket hub token create");
    }
    Ok(ExitCode::Success)
}

fn is_usable(token: &EnrolToken, now: Timestamp) -> bool {
    token.revoked_at.is_none() && token.expires_at > now && token.uses < token.max_uses
}

/// How long a token may still be used, in words.
fn left(token: &EnrolToken, now: Timestamp) -> String {
    if token.revoked_at.is_some() {
        "revoked".to_owned()
    } else if token.expires_at <= now {
        "expired".to_owned()
    } else if token.uses >= token.max_uses {
        "used up".to_owned()
    } else {
        let left = std::time::Duration::try_from(token.expires_at.duration_since(now)).unwrap_or_default();
        format!("within {}", crate::output::human(left))
    }
}
