//! `picket update check --releases`: which releases there are, and what is new in each.

use super::Context;
use super::portable::with_portable;
use super::update::{tool_settings, with_engine};
use crate::build;
use crate::cli::CheckArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use picket_protocol::Channel;
use picket_update::decide::Asked;
use picket_update::fetch::Location;
use picket_update::fetcher::Fetcher;
use picket_update::listing::{Listed, RepositoryApi, Token};
use picket_update::{Engine, EngineError};
use serde_json::json;
use std::sync::atomic::AtomicBool;

/// Lists what an installation could run, newest first.
pub(super) fn of_installation(context: &Context<'_>, args: &CheckArgs) -> Result<ExitCode, CommandError> {
    context.require_root("listing releases")?;
    let of_repository = |ask: &Ask| {
        with_engine(context, |engine| {
            // The fetcher's folders are the updater's while it is at work.
            let _lock = Engine::lock(&context.layout)?;
            ask.of(engine.fetcher)
        })
    };
    let of_channel = || with_engine(context, |engine| Ok(engine.check(&NEWEST)?.channel));
    run(context, args, of_repository, of_channel)
}

/// Lists what an executable that is no installation could become.
pub(super) fn of_executable(context: &Context<'_>, args: &CheckArgs) -> Result<ExitCode, CommandError> {
    let of_repository = |ask: &Ask| with_portable(context, None, |portable| ask.of(portable.fetcher));
    let of_channel = || with_portable(context, None, |portable| Ok(portable.check(&NEWEST)?.channel));
    run(context, args, of_repository, of_channel)
}

const NEWEST: Asked = Asked::ByPerson { version: None, now: false };

/// What the API of a repository is asked.
struct Ask {
    base: String,
    token: Option<Token>,
    limit: usize,
}

impl Ask {
    fn of(&self, fetcher: &Fetcher) -> Result<Vec<Listed>, CommandError> {
        let target = build::info().target;
        let listed = fetcher.list(&self.base, self.token.clone(), self.limit, &target, &AtomicBool::new(false));
        Ok(listed.map_err(EngineError::from)?)
    }
}

fn run(
    context: &Context<'_>,
    args: &CheckArgs,
    of_repository: impl FnOnce(&Ask) -> Result<Vec<Listed>, CommandError>,
    of_channel: impl FnOnce() -> Result<Channel, CommandError>,
) -> Result<ExitCode, CommandError> {
    let update = tool_settings(context)?.update;
    let location = Location::parse(&update.releases).map_err(CommandError::Releases)?;
    let api = RepositoryApi::of(&location, &update.releases_api).map_err(CommandError::ReleasesApi)?;
    let limit = usize::from(args.limit);
    let listed = match &api {
        Some(api) => {
            let variable = |name: &&str| Token::new(context.process.variable(name)?);
            let token = api.token_variables().iter().find_map(variable);
            of_repository(&Ask { base: update.releases_api.clone(), token, limit })?
        }
        // A release tree has no list but the signed one of its channel.
        None => in_channel(of_channel()?, limit),
    };
    if args.json.json {
        let source = api.as_ref().map_or_else(|| location.to_string(), |api| api.base().to_string());
        context.output.json(&json!({ "source": source, "signed": api.is_none(), "releases": listed }));
    } else {
        show(context, &listed, api.is_none());
    }
    Ok(ExitCode::Success)
}

fn in_channel(channel: Channel, limit: usize) -> Vec<Listed> {
    let target = build::info().target;
    let listed = channel.releases.into_iter().rev().map(|(version, release)| Listed {
        name: format!("v{version}"),
        version,
        date: release.published.to_string(),
        fits: release.artifacts.contains_key(&target),
        notes: release.notes,
        page: None,
    });
    listed.take(limit).collect()
}

fn show(context: &Context<'_>, listed: &[Listed], signed: bool) {
    let output = context.output;
    if listed.is_empty() {
        output.say("there is no release");
    }
    for release in listed {
        let date = release.date.split('T').next().unwrap_or_default();
        let fits = if release.fits { "" } else { "  (no build for this machine)" };
        output.result(format_args!("v{}  {date}{fits}", release.version));
        for line in release.notes.lines().filter(|line| !line.trim().is_empty()) {
            output.result(format_args!("    {line}"));
        }
    }
    if !signed {
        output.hint("this list is the server's word; `picket update apply VERSION` takes what the vendor signed, and nothing else");
    }
}
