//! `picket hub user …`, and the audit log.

use super::{actor, with_hub};
use crate::cli::{GrantArgs, HubUserCommand, JsonArgs, UserAddArgs};
use crate::commands::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use jiff::Timestamp;
use picket_hub::db::{PageRequest, Permission, User};
use picket_hub::refusal::Refusal;
use picket_hub::state::Hub;
use serde_json::json;
use std::io::Read as _;
use std::path::Path;
use zeroize::Zeroizing;

/// The longest password file that is read, in bytes.
const MAX_PASSWORD_FILE: u64 = 4096;

/// Runs `picket hub user …`.
pub(super) fn run(context: &Context<'_>, command: HubUserCommand) -> Result<ExitCode, CommandError> {
    match command {
        HubUserCommand::Add(args) => add(context, &args),
        HubUserCommand::Password { name, password_file } => {
            let password = match password_file {
                Some(file) => read_password(&file)?,
                None if context.process.interactive => ask_password(&name)?,
                None => return Err(CommandError::NoPassword(format!("the new password of {name}"))),
            };
            let by = actor(context);
            with_hub(context, async |hub| {
                let user = known(&hub, &name).await?;
                hub.set_password(&user, &password, &by).await?;
                Ok(())
            })?;
            context.output.say("the password is set; sessions of before have ended");
            Ok(ExitCode::Success)
        }
        HubUserCommand::List(json) => list(context, &json),
        HubUserCommand::Token { name, label, ttl, json } => {
            let by = actor(context);
            let expires_at = ttl.and_then(|ttl| Timestamp::now().checked_add(ttl).ok());
            let (kept, token) = with_hub(context, async |hub| {
                let user = known(&hub, &name).await?;
                Ok(hub.create_api_token(&label, &format!("user:{}", user.id), expires_at, &by).await?)
            })?;
            if json.json {
                context.output.json(&json!({ "id": kept.id, "token": token.as_str(), "expires_at": kept.expires_at }));
            } else {
                context.output.result(token.as_str());
                context.output.hint("it is shown this once; send it as Authorization: Bearer");
            }
            Ok(ExitCode::Success)
        }
        HubUserCommand::Grant(args) => change_grant(context, args, true),
        HubUserCommand::Revoke(args) => change_grant(context, args, false),
    }
}

async fn known(hub: &Hub, name: &str) -> Result<User, CommandError> {
    let found = hub.db.user_by_name(hub.tenant, name).await.map_err(Refusal::from)?;
    found.ok_or_else(|| CommandError::Usage(format!("there is no user called {name}; see: picket hub user list")))
}

fn add(context: &Context<'_>, args: &UserAddArgs) -> Result<ExitCode, CommandError> {
    let password = args.password_file.as_deref().map(read_password).transpose()?;
    let by = actor(context);
    let (user, secret) = with_hub(context, async |hub| {
        let user = hub.create_user(&args.name, &args.name, &by).await?;
        for action in &args.grants {
            let permission = Permission { principal: format!("user:{}", user.id), action: action.clone(), tag: None };
            hub.grant(&permission, &by).await?;
        }
        let secret = match &password {
            Some(password) => {
                hub.set_password(&user, password, &by).await?;
                None
            }
            None => Some(hub.setup_secret(&user, &by).await?),
        };
        Ok((user, secret))
    })?;
    let secret = secret.as_ref().map(|secret| secret.as_str());
    if args.json.json {
        context.output.json(&json!({ "id": user.id, "name": user.name, "setup_secret": secret }));
    } else {
        context.output.say(format_args!("{} is added", user.name));
        if let Some(secret) = secret {
            context.output.field("to set the password", secret);
            context.output.hint("it holds for a day and once: POST it with the new password to /api/v1/auth/setup");
        }
    }
    Ok(ExitCode::Success)
}

fn list(context: &Context<'_>, args: &JsonArgs) -> Result<ExitCode, CommandError> {
    let people = with_hub(context, async |hub| {
        let page = hub.db.users(hub.tenant, &PageRequest::first(1000)).await.map_err(Refusal::from)?;
        let mut people = Vec::new();
        for user in page.items {
            let grants =
                hub.db.permissions_of(hub.tenant, &format!("user:{}", user.id)).await.map_err(Refusal::from)?;
            people.push((user, grants));
        }
        Ok(people)
    })?;
    let shown = |grant: &Permission| match &grant.tag {
        Some(tag) => format!("{}@{tag}", grant.action),
        None => grant.action.clone(),
    };
    if args.json {
        let people: Vec<_> = people
            .iter()
            .map(|(user, grants)| {
                json!({
                    "id": user.id, "name": user.name, "status": user.status.as_str(), "last_login": user.last_login,
                    "permissions": grants.iter().map(shown).collect::<Vec<_>>(),
                })
            })
            .collect();
        context.output.json(&people);
    } else {
        for (user, grants) in &people {
            let grants = grants.iter().map(shown).collect::<Vec<_>>().join(" ");
            context.output.result(format_args!("{:<24}  {:<8}  {grants}", user.name, user.status.as_str()));
        }
    }
    Ok(ExitCode::Success)
}

fn change_grant(context: &Context<'_>, args: GrantArgs, give: bool) -> Result<ExitCode, CommandError> {
    let by = actor(context);
    let changed = with_hub(context, async |hub| {
        let user = known(&hub, &args.name).await?;
        let permission = Permission { principal: format!("user:{}", user.id), action: args.action, tag: args.tag };
        let changed =
            if give { hub.grant(&permission, &by).await? } else { hub.revoke_grant(&permission, &by).await? };
        Ok(changed)
    })?;
    context.output.say(if changed { "done" } else { "it was so already" });
    Ok(ExitCode::Success)
}

/// `picket hub audit-verify`.
pub(super) fn audit_verify(context: &Context<'_>, args: &JsonArgs) -> Result<ExitCode, CommandError> {
    let report = with_hub(context, async |hub| Ok(hub.verify_audit().await?))?;
    if args.json {
        context.output.json(&report);
    } else {
        context.output.field("entries", report.entries);
        context.output.field("head", &report.head);
        for (seq, problem) in &report.problems {
            context.output.say(format_args!("entry {seq}: {problem}"));
        }
        if report.problems.is_empty() {
            context.output.hint("keep the head elsewhere: a log that is cut off or written anew has another one");
        }
    }
    Ok(if report.problems.is_empty() { ExitCode::Success } else { ExitCode::Damaged })
}

/// Asks for a new password, twice.
pub(super) fn ask_password(name: &str) -> Result<Zeroizing<String>, CommandError> {
    let read = |prompt: String| {
        let typed = rpassword::prompt_password(prompt).map(Zeroizing::new);
        typed.map_err(|error| CommandError::system("cannot read the password", error))
    };
    let first = read(format!("New password for {name}: "))?;
    let second = read("Again: ".to_owned())?;
    if first == second {
        Ok(first)
    } else {
        Err(CommandError::Usage("the two are not the same; nothing was done".to_owned()))
    }
}

/// Reads a password: the first line of a file, or of standard input for `-`.
pub(super) fn read_password(file: &Path) -> Result<Zeroizing<String>, CommandError> {
    let text = if file == Path::new("-") {
        let mut text = Zeroizing::new(String::new());
        let read = std::io::stdin().take(MAX_PASSWORD_FILE).read_to_string(&mut text);
        read.map_err(|error| CommandError::system("cannot read the password", error))?;
        text
    } else {
        Zeroizing::new(picket_durable::read_text(file, MAX_PASSWORD_FILE)?)
    };
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}
