//! `picket update …`.

use super::Context;
use super::{follow, portable, update_bundle, update_history, update_list};
use crate::build;
use crate::cli::{ApplyArgs, ConfigArgs, JsonArgs, UpdateCommand};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use crate::process;
use crate::settings::{self, Settings};
use crate::wiring::{self, Parts};
use picket_layout::Layout;
use picket_protocol::update_status::{Turn, UPDATE_STATUS_MAX_BYTES, UpdateOutcome, UpdateStatus};
use picket_service::{ServiceState, units};
use picket_telemetry::logs;
use picket_update::decide::Asked;
use picket_update::engine::{Offer, rollback_obstacle};
use picket_update::fetch::Location;
use picket_update::progress::Progress;
use picket_update::request::{Request, Wanted};
use picket_update::rollout;
use picket_update::state::{self, Pin};
use picket_update::{Clock, Engine, EngineError, UpdateSettings};
use picket_versions::VersionDirs;
use semver::Version;
use std::sync::atomic::AtomicBool;

/// Runs `picket update …`.
pub(super) fn run(context: &Context<'_>, command: UpdateCommand) -> Result<ExitCode, CommandError> {
    if portable::is_meant(context, &command) {
        return portable::run(context, command);
    }
    CommandError::require_installed(&context.layout)?;
    match command {
        UpdateCommand::Check(args) if args.releases => update_list::of_installation(context, &args),
        UpdateCommand::Check(args) => check(context, &args.json),
        UpdateCommand::Apply(args) => apply(context, &args),
        UpdateCommand::Rollback { force, yes, json } => rollback(context, force, yes, &json),
        UpdateCommand::Status(json) => status(context, &json),
        UpdateCommand::History { id, limit, json } => update_history::run(context, id.as_deref(), limit, &json),
        UpdateCommand::Pin { version } => pin(context, version),
        UpdateCommand::Unpin => unpin(context),
        UpdateCommand::Clean(json) => clean(context, &json),
        UpdateCommand::Recover(json) => recover(context, &json),
        UpdateCommand::Run => service_run(context),
    }
}

pub(super) fn tool_settings(context: &Context<'_>) -> Result<Settings, CommandError> {
    Ok(settings::resolve(&context.layout, context.process, &ConfigArgs::default())?.0)
}

/// Lets `act` use the updater, as a short command does: silent, and not to be interrupted half-way.
pub(super) fn with_engine<T>(
    context: &Context<'_>,
    act: impl FnOnce(&Engine<'_>) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let settings = tool_settings(context)?;
    let parts = Parts {
        layout: &context.layout,
        settings: &settings,
        process: context.process,
        progress: &Progress::silent(),
        interrupted: &AtomicBool::new(false),
    };
    wiring::with_engine(&parts, act)
}

fn look(context: &Context<'_>, args: &ApplyArgs) -> Result<Offer, CommandError> {
    with_engine(context, |engine| {
        let asked = Asked::ByPerson { version: args.version.clone(), now: args.now };
        let checked = match &args.bundle {
            Some(_) => engine.with_bundle(|engine| engine.check(&asked)),
            None => engine.check(&asked),
        }?;
        let current = engine.status().current;
        let current = current.ok_or_else(|| EngineError::NotInstalled(context.layout.current_link()))?;
        Ok(checked.offer(&current))
    })
}

fn check(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    context.require_root("checking for updates")?;
    let offer = look(context, &ApplyArgs::default())?;
    if json.json {
        context.output.json(&offer);
    } else {
        show_offer(context, &offer);
    }
    Ok(ExitCode::Success)
}

/// The four lines of the operations guide.
pub(super) fn show_offer(context: &Context<'_>, offer: &Offer) {
    let output = context.output;
    match &offer.version {
        Some(version) => {
            output.field("Update available", format_args!("v{version}"));
            output.field("Current version", format_args!("v{}", offer.current));
            let notes = offer.release_notes.as_deref().unwrap_or_default();
            output.field("Release notes", if notes.is_empty() { "none" } else { notes });
            output.field("Critical", offer.critical.unwrap_or(false));
            show_turn(context, offer.turn.as_ref(), offer.due);
        }
        None => {
            output.field("Update available", "none");
            output.field("Current version", format_args!("v{}", offer.current));
        }
    }
    if let Some(reason) = &offer.reason {
        output.say(reason);
    }
}

/// This machine's turn in a rollout, where there is one.
fn show_turn(context: &Context<'_>, turn: Option<&Turn>, due: Option<jiff::Timestamp>) {
    if let Some(turn) = turn {
        context.output.field("Rollout", format_args!("{}; its turn: {}", rollout::describe(turn), turn.at));
    }
    if let Some(due) = due {
        context.output.field("Due", due);
    }
}

fn apply(context: &Context<'_>, args: &ApplyArgs) -> Result<ExitCode, CommandError> {
    context.require_root("updating")?;
    let Some(bundle) = &args.bundle else {
        if let Some(ended) = confirm(context, args)? {
            return Ok(ended);
        }
        let wanted = Wanted::Apply { version: args.version.clone(), now: args.now, bundle: false };
        return ask(context, wanted, args.json.json);
    };
    update_bundle::bring(context, bundle)?;
    match confirm(context, args) {
        Ok(None) => update_bundle::ask(context, args.version.clone(), args.now, args.json.json),
        Ok(Some(ended)) => {
            update_bundle::take_away(context);
            Ok(ended)
        }
        Err(error) => {
            update_bundle::take_away(context);
            Err(error)
        }
    }
}

/// Shows what there is to take and asks whether to, unless that was said before; how it ended where there is nothing.
fn confirm(context: &Context<'_>, args: &ApplyArgs) -> Result<Option<ExitCode>, CommandError> {
    if args.yes {
        return Ok(None);
    }
    let offer = look(context, args)?;
    let Some(version) = &offer.version else {
        let reason = offer.reason.unwrap_or_default();
        if args.version.is_some() && !reason.ends_with("that runs") {
            return Err(CommandError::Update(EngineError::Refused(reason)));
        }
        context.output.result(reason);
        return Ok(Some(ExitCode::Success));
    };
    show_offer(context, &offer);
    context.confirm(false, &format!("Update from {} to {version}?", offer.current))?;
    Ok(None)
}

fn rollback(context: &Context<'_>, force: bool, yes: bool, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    context.require_root("rolling back")?;
    let status = state::derive(&context.layout, &Clock::system(), None);
    let Some(previous) = status.previous else {
        return Err(CommandError::Update(EngineError::NoPrevious));
    };
    // Said before anything is asked; the updater looks again.
    if let Some(obstacle) = rollback_obstacle(&context.layout, &previous).filter(|_| !force) {
        return Err(CommandError::Update(EngineError::Refused(obstacle)));
    }
    let current = status.current.map(|current| current.to_string()).unwrap_or_default();
    context.confirm(yes, &format!("Go back from {current} to {previous}?"))?;
    ask(context, Wanted::Rollback { force }, json.json)
}

fn ask(context: &Context<'_>, wanted: Wanted, as_json: bool) -> Result<ExitCode, CommandError> {
    let request = Request { id: picket_update::random_id(), wanted, by: context.process.person() };
    let followed = follow::ask_updater(context, &request)?;
    Ok(follow::report(context, &followed, as_json))
}

fn status(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let readable = std::fs::read_dir(context.layout.update_dir()).is_ok();
    // Whoever may read the state gets it fresh; everybody else what was last published.
    let status = if readable { with_engine(context, |engine| Ok(engine.status()))? } else { published(context)? };
    if json.json {
        context.output.json(&status);
    } else {
        show_status(context, &status);
    }
    Ok(ExitCode::Success)
}

fn published(context: &Context<'_>) -> Result<UpdateStatus, CommandError> {
    let path = context.layout.update_status();
    let bytes = picket_durable::read_if_present(&path, UPDATE_STATUS_MAX_BYTES)?
        .ok_or(CommandError::NeedsRoot("reading the updater's state (nothing was published since the last boot)"))?;
    serde_json::from_slice(&bytes).map_err(|e| CommandError::system("the published status is damaged", e.into()))
}

fn show_status(context: &Context<'_>, status: &UpdateStatus) {
    let output = context.output;
    let name = |version: &Option<Version>| version.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    output.field("Current version", name(&status.current));
    if let Some(reason) = &status.taken_back {
        output.marked(Tone::Warn, format_args!("the vendor took this version back: {reason}"));
    }
    output.field("Previous version", name(&status.previous));
    if let Some(running) = &status.running {
        output.field("Under way", format_args!("{} to {}, at the {} step", running.from, running.to, running.step));
    }
    if let Some(last) = &status.last {
        let how = outcome_word(last.outcome);
        output.field("Last update", format_args!("{} to {}: {how} at {}", last.from, last.to, last.finished));
        output.marked(Tone::Plain, &last.reason);
    }
    if let Some(available) = &status.available {
        let critical = if available.critical { ", critical" } else { "" };
        output.field("Available", format_args!("{}{critical}", available.version));
        show_turn(context, available.turn.as_ref(), available.due);
        if let Some(waiting) = &available.waiting {
            output.marked(Tone::Plain, waiting);
        }
    }
    match &status.last_check {
        Some(check) => match &check.error {
            None => output.field("Last check", format_args!("{} (well)", check.at)),
            Some(error) => output.field("Last check", format_args!("{} ({error})", check.at)),
        },
        None => output.field("Last check", "never"),
    }
    match &status.trust {
        Some(trust) => {
            let (role, at) = trust.first();
            output.field("Release metadata", format_args!("valid until {at} ({role})"));
        }
        None => output.field("Release metadata", "no release root is trusted; updates are off"),
    }
    if let Some(pinned) = &status.pinned {
        output.field("Pinned to", pinned);
    }
    for held in &status.held {
        let until = held.until.map_or_else(|| "until asked for by name".to_owned(), |until| format!("until {until}"));
        output.field("Held", format_args!("{} {until}: {}", held.version, held.reason));
    }
}

pub(super) fn outcome_word(outcome: UpdateOutcome) -> &'static str {
    match outcome {
        UpdateOutcome::Committed => "committed",
        UpdateOutcome::RolledBack => "rolled back",
        UpdateOutcome::Refused => "not tried",
        UpdateOutcome::Interrupted => "interrupted",
    }
}

fn pin(context: &Context<'_>, version: Version) -> Result<ExitCode, CommandError> {
    context.require_root("pinning")?;
    let _lock = Engine::lock(&context.layout)?;
    let pin = Pin { version, by: context.process.person(), at: Clock::system().now() };
    state::pin(context.layout.update_dir()).save(&pin)?;
    let current = state::derive(&context.layout, &Clock::system(), None).current;
    let stays = current.as_ref() == Some(&pin.version);
    context.output.say(format_args!("pinned to {}", pin.version));
    if !stays {
        context.output.hint(format_args!(
            "the next check goes there if update.auto allows it; `picket update apply {}` goes now",
            pin.version
        ));
    }
    Ok(ExitCode::Success)
}

fn unpin(context: &Context<'_>) -> Result<ExitCode, CommandError> {
    context.require_root("unpinning")?;
    let _lock = Engine::lock(&context.layout)?;
    let was = state::pin(context.layout.update_dir()).clear()?;
    context.output.say(if was { "unpinned" } else { "it was not pinned" });
    Ok(ExitCode::Success)
}

fn clean(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    context.require_root("cleaning up")?;
    let removed = with_engine(context, |engine| Ok(engine.clean()?))?;
    if json.json {
        context.output.json(&serde_json::json!({ "removed": removed }));
    } else if removed.is_empty() {
        context.output.say("there was nothing to remove");
    } else {
        removed.iter().for_each(|what| context.output.result(format_args!("removed {what}")));
    }
    Ok(ExitCode::Success)
}

fn recover(context: &Context<'_>, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    context.require_root("recovering")?;
    supervised(context);
    // A configuration that cannot be used must not keep a machine from getting back to its proven version.
    let mut settings = settings::read(&context.layout, context.process, &ConfigArgs::default()).settings;
    if Location::parse(&settings.update.releases).is_err() {
        // Recovering asks no server.
        settings.update.releases = UpdateSettings::default().releases;
    }
    let _ = logs::init(&settings::log_options(&settings, context.process, "picket-update"));
    let parts = Parts {
        layout: &context.layout,
        settings: &settings,
        process: context.process,
        progress: &Progress::silent(),
        interrupted: &AtomicBool::new(false),
    };
    let report = match wiring::with_engine(&parts, |engine| Ok(engine.recover()?)) {
        Ok(report) => report,
        Err(CommandError::Update(EngineError::Busy(_))) => {
            context.output.say("an updater is at work; it ends what it began");
            return Ok(ExitCode::Success);
        }
        Err(error) => return Err(error),
    };
    if json.json {
        let report = report
            .as_ref()
            .map(|r| serde_json::json!({ "outcome": r.outcome, "version": r.version, "reason": r.reason }));
        context.output.json(&report);
    } else {
        context.output.say(report.map_or_else(|| "there was nothing to recover".to_owned(), |report| report.reason));
    }
    Ok(ExitCode::Success)
}

/// What the service manager starts: one run of the updater.
fn service_run(context: &Context<'_>) -> Result<ExitCode, CommandError> {
    context.require_root("updating")?;
    // Set by the unit that looks whether a release has its turn: the updater itself is always started as the one unit.
    if context.process.variable("PICKET_UPDATE_IF_DUE").is_some() {
        if state::is_due(context.layout.update_dir(), Clock::system().now()) {
            picket_service::registrar(&context.layout).start_updater()?;
        }
        return Ok(ExitCode::Success);
    }
    supervised(context);
    let (settings, _) = settings::resolve(&context.layout, context.process, &ConfigArgs::default())?;
    logs::init(&settings::log_options(&settings, context.process, "picket-update"))?;
    let interrupted =
        process::stop_flag().map_err(|source| CommandError::system("signals cannot be listened for", source))?;
    picket_durable::create_dir(context.layout.update_run_dir(), 0o755)?;
    let progress = Progress::begin(&context.layout.update_progress(), &Clock::system());
    let parts = Parts {
        layout: &context.layout,
        settings: &settings,
        process: context.process,
        progress: &progress,
        interrupted: &interrupted,
    };
    let ended = wiring::with_engine(&parts, |engine| match engine.run() {
        // The daily check meets networks that are down and servers that are late; the status says so, and nothing is
        // broken that a recovery could mend.
        Err(error) if !is_everyday(&error) => Err(error.into()),
        _ => Ok(ExitCode::Success),
    });
    if let Err(error) = keep_registered(&context.layout) {
        tracing::warn!(%error, "the units of this version could not be registered");
    }
    ended
}

/// Makes the registered units this version's own, if it is the proven one: the version that committed it may not have
/// known each of them. Compares first, so that it may run every day.
fn keep_registered(layout: &Layout) -> Result<(), CommandError> {
    if VersionDirs::new(layout).current() != Some(build::info().version) {
        return Ok(());
    }
    let registrar = picket_service::registrar(layout);
    // Somebody else's update may have begun by now; its own commit registers what it needs.
    let Ok(_lock) = Engine::lock(layout) else { return Ok(()) };
    if registrar.trial_is_on()? || !registrar.register(&units::texts(layout))? {
        return Ok(());
    }
    tracing::info!("the units of this version are registered now");
    // What is new beside the service that runs is started with it.
    if registrar.status()?.state == ServiceState::Running
        && let Some(first) = layout.roles().iter().next()
    {
        registrar.start_role(first)?;
    }
    Ok(())
}

/// Errors after which the updater has done its work all the same: it looked, and says what it saw.
fn is_everyday(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Trust(_)
            | EngineError::Fetcher(_)
            | EngineError::Refused(_)
            | EngineError::NoPrevious
            | EngineError::Busy(_)
            | EngineError::Hook(_)
    )
}

/// Under the supervisor, dies with it: what it began is then recovered at the next start, as after a power cut.
fn supervised(context: &Context<'_>) {
    if context.process.variable("PICKET_SUPERVISED").is_some() {
        process::die_with_parent(rustix::process::Signal::KILL);
    }
}
