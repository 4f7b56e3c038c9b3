//! `picket hub migrate`.

use super::backup::{failed, shown, whole};
use super::{actor, as_hub, options, runtime, with_hub_at};
use crate::cli::HubMigrateArgs;
use crate::commands::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use picket_hub::db::{self, Location, Migration};
use serde_json::json;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The longest address that is read, in bytes.
const MAX_ADDRESS: u64 = 4096;

/// Moves the hub's data, or gives a move up.
pub(super) fn run(context: &Context<'_>, args: &HubMigrateArgs) -> Result<ExitCode, CommandError> {
    let to = match (&args.to_file, &args.to) {
        (Some(file), _) => address(file)?,
        (None, Some(to)) => Zeroizing::new(to.clone()),
        (None, None) => Zeroizing::default(),
    };
    let (output, now) = (context.output, jiff::Timestamp::now());
    let bar = output.bar();
    let done = as_hub(context, || {
        let (options, _) = options(context)?;
        let from = args.from.clone().unwrap_or(options.database);
        if args.abort {
            let begun = runtime()?.block_on(db::abort_migration(&from, &whole())).map_err(failed)?;
            return Ok(Done::GivenUp(begun));
        }
        let said = format!("moving from {} to {}", place(&from)?, place(&to)?);
        output.say(said);
        let wish = Migration {
            from: from.clone(),
            to: to.as_str().to_owned(),
            now,
            progress: shown(bar),
            closing: Arc::new(move || {
                output.say("the old database is closed: agents keep what they have until the hub is started again");
            }),
        };
        let moved = runtime()?.block_on(db::migrate(&wish, &whole())).map_err(failed)?;
        Ok(Done::Moved(from, moved))
    })?;
    let (from, moved) = match done {
        Done::Moved(from, moved) => (from, moved),
        Done::GivenUp(begun) => {
            let said = if begun {
                "the move is given up; the hub goes on with the database it has"
            } else {
                "no move was begun"
            };
            if args.json.json {
                output.json(&json!({ "given_up": begun }));
            } else {
                output.say(said);
                output.hint("what was copied is no hub's: drop that database before another move to it");
            }
            return Ok(ExitCode::Success);
        }
    };
    let by = actor(context);
    let (source, target) = (place(&from)?, place(&to)?);
    with_hub_at(context, Some(to.as_str()), async |hub| {
        let details = json!({ "from": source, "events": moved.events });
        Ok(hub.audit(&by, "hub.migrate", &target, details).await?)
    })?;
    if args.json.json {
        output.json(&json!({
            "from": source, "to": target, "events": moved.events, "last_events": moved.last_events,
            "rows": moved.rows, "was_done": moved.was_done,
        }));
    } else {
        output.field("events", moved.events);
        output.field("of them while the hub stood still", moved.last_events);
        output.field("other rows", moved.rows);
        output.hint("write the new address into a file of mode 0600 that the hub can read, name it in hub.yaml as database_file");
        output.hint("then start the hub again: picket service restart, or picket hub serve");
        output.hint(format_args!("{source} takes nothing any more; remove it when you are content"));
    }
    Ok(ExitCode::Success)
}

/// What was done.
enum Done {
    Moved(String, db::Moved),
    GivenUp(bool),
}

/// Where a database is, without its password.
fn place(location: &str) -> Result<String, CommandError> {
    Ok(Location::parse(location).map_err(failed)?.to_string())
}

/// Reads an address: the first line of a file, or of standard input for `-`.
fn address(file: &Path) -> Result<Zeroizing<String>, CommandError> {
    let text = if file == Path::new("-") {
        let mut text = Zeroizing::new(String::new());
        let read = std::io::stdin().take(MAX_ADDRESS).read_to_string(&mut text);
        read.map_err(|error| CommandError::system("cannot read the address", error))?;
        text
    } else {
        Zeroizing::new(picket_durable::read_text(file, MAX_ADDRESS)?)
    };
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().trim().to_owned()))
}
