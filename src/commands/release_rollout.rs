//! `picket release rollout|plan|stop|resume|head|yank`: what the vendor says of releases that are out.

use super::Context;
use super::release::now;
use crate::cli::{HeadArgs, PlanArgs, ResumeArgs, RolloutArgs, StopArgs, WavesArgs, YankArgs};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use jiff::Timestamp;
use picket_protocol::{Rollout, Stop};
use picket_release::{ReleaseError, Repository};
use picket_update::plan::{Plan, plan};
use semver::Version;
use serde_json::json;
use std::path::Path;

/// The largest file of machine ids, in bytes: a million of them.
const MAX_IDS: u64 = 64 << 20;
const PUBLISH: &str = "`picket release publish` tells the machines";

fn of(waves: &WavesArgs, now: Timestamp) -> Rollout {
    Rollout {
        start: Some(waves.start.unwrap_or(now)),
        waves: waves.waves.clone(),
        soak_seconds: waves.soak,
        jitter_seconds: waves.jitter,
        windows: waves.window.clone(),
        window_time: waves.window_time.into(),
    }
}

/// Runs `picket release rollout`.
pub(super) fn rollout(context: &Context<'_>, args: &RolloutArgs) -> Result<ExitCode, CommandError> {
    let rollout = (!args.everybody).then(|| of(&args.waves, now(context)));
    if rollout.is_some() && !args.waves.says_something() {
        let message = "say how it comes out: --waves 0h:1,1d:10,7d:100 for instance, or --everybody";
        return Err(CommandError::Usage(message.to_owned()));
    }
    let repository = Repository::open(&args.repository.repo)?;
    repository.set_rollout(&args.channel, &args.version, rollout.clone())?;
    if args.json.json {
        context.output.json(&json!({ "version": args.version, "rollout": rollout }));
        return Ok(ExitCode::Success);
    }
    let how = match &rollout {
        Some(rollout) => format!("comes out in {} waves", rollout.in_effect().len()),
        None => "comes out to everybody at once".to_owned(),
    };
    context.output.marked(Tone::Good, format_args!("release {} {how}", args.version));
    context.output.hint(PUBLISH);
    Ok(ExitCode::Success)
}

/// Runs `picket release stop`.
pub(super) fn stop(context: &Context<'_>, args: &StopArgs) -> Result<ExitCode, CommandError> {
    let repository = Repository::open(&args.repository.repo)?;
    repository.stop(&args.channel, args.version.as_ref(), &args.reason, now(context))?;
    if args.json.json {
        context.output.json(&json!({ "stopped": args.version, "channel": args.channel, "reason": args.reason }));
    } else {
        context.output.marked(Tone::Good, format_args!("{} is stopped", what(args.version.as_ref(), &args.channel)));
        context.output.hint(PUBLISH);
        context.output.hint("machines that run it already stay on it; `picket release yank` takes them back");
    }
    Ok(ExitCode::Success)
}

/// Runs `picket release resume`.
pub(super) fn resume(context: &Context<'_>, args: &ResumeArgs) -> Result<ExitCode, CommandError> {
    let repository = Repository::open(&args.repository.repo)?;
    let stop: Stop = repository.resume(&args.channel, args.version.as_ref(), now(context))?;
    if args.json.json {
        context.output.json(&json!({ "resumed": args.version, "channel": args.channel, "stopped_since": stop.at }));
    } else {
        let what = what(args.version.as_ref(), &args.channel);
        context.output.marked(Tone::Good, format_args!("{what} goes on; it was stopped since {}", stop.at));
        context.output.hint(PUBLISH);
    }
    Ok(ExitCode::Success)
}

fn what(version: Option<&Version>, channel: &str) -> String {
    version.map_or_else(|| format!("everything of channel {channel}"), |version| format!("the rollout of {version}"))
}

/// Runs `picket release head`.
pub(super) fn head(context: &Context<'_>, args: &HeadArgs) -> Result<ExitCode, CommandError> {
    let repository = Repository::open(&args.repository.repo)?;
    let channel = repository.set_head(&args.channel, &args.version, &args.allow_downgrade_from)?;
    if args.json.json {
        let from = &channel.allow_downgrade_from;
        context.output.json(&json!({ "head": channel.head, "allow_downgrade_from": from }));
    } else {
        context.output.marked(Tone::Good, format_args!("the head is {}", channel.head));
        context.output.hint(PUBLISH);
    }
    Ok(ExitCode::Success)
}

/// Runs `picket release yank`.
pub(super) fn yank(context: &Context<'_>, args: &YankArgs) -> Result<ExitCode, CommandError> {
    let repository = Repository::open(&args.repository.repo)?;
    repository.yank(&args.channel, &args.version, &args.reason, args.head.as_ref(), now(context))?;
    let channel = repository.allow_downgrade_from(&args.channel, &args.allow_downgrade_from)?;
    if args.json.json {
        let from = &channel.allow_downgrade_from;
        context.output.json(&json!({ "yanked": args.version, "head": channel.head, "allow_downgrade_from": from }));
        return Ok(ExitCode::Success);
    }
    let message = format!("release {} is taken back; the head is {}", args.version, channel.head);
    context.output.marked(Tone::Good, message);
    if let Some(stop) = channel.stop_of(&channel.head) {
        let head = &channel.head;
        context.output.warn(format_args!(
            "release {head} is stopped ({}), so machines stay where they are until `picket release resume`",
            stop.reason
        ));
    }
    context.output.hint(PUBLISH);
    Ok(ExitCode::Success)
}

/// Runs `picket release plan`.
pub(super) fn show_plan(context: &Context<'_>, args: &PlanArgs) -> Result<ExitCode, CommandError> {
    let now = now(context);
    let (version, published, rollout) = planned(args, now)?;
    rollout.check().map_err(|error| CommandError::Usage(format!("this rollout is not possible: {error}")))?;
    let failing = args.failure_rate.unwrap_or(0);
    let plan = match &args.ids {
        Some(file) => {
            let text = picket_durable::read_text(file, MAX_IDS)?;
            let ids = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
            plan(&rollout, published, &version, ids, failing)
        }
        None => plan(&rollout, published, &version, (1..=args.machines).map(|n| format!("machine {n}")), failing),
    };
    if args.json.json {
        context.output.json(&json!({
            "version": version, "machines": plan.machines.len(), "start": rollout.start(published),
            "rollout": rollout, "failure_rate_percent": f64::from(failing) / 100.0, "waves": plan.waves,
            "turns": args.ids.as_ref().map(|_| &plan.machines),
        }));
        return Ok(ExitCode::Success);
    }
    tell(context, args, &version, &rollout, &plan);
    Ok(ExitCode::Success)
}

/// What is to be planned: as the repository says, or as the command line tries it out.
fn planned(args: &PlanArgs, now: Timestamp) -> Result<(Version, Timestamp, Rollout), CommandError> {
    let tried_out = args.waves.says_something().then(|| of(&args.waves, now));
    if let (Some(rollout), Some(version)) = (&tried_out, &args.version) {
        return Ok((version.clone(), now, rollout.clone()));
    }
    let channel = Repository::open(Path::new(&args.repository.repo))?.channel(&args.channel)?;
    let version = args.version.clone().unwrap_or_else(|| channel.head.clone());
    let missing = || ReleaseError::Release(format!("channel {} has no release {version}", channel.channel));
    let release = channel.releases.get(&version).ok_or_else(missing)?;
    let rollout = tried_out.or_else(|| release.rollout.clone()).unwrap_or_default();
    Ok((version.clone(), release.published, rollout))
}

fn tell(context: &Context<'_>, args: &PlanArgs, version: &Version, rollout: &Rollout, plan: &Plan) {
    let output = context.output;
    let jitter = jiff::SignedDuration::from_secs(i64::from(rollout.jitter_seconds));
    output.field("Release", version);
    output.field("Machines", plan.machines.len());
    if rollout.jitter_seconds > 0 {
        output.field("Jitter", format_args!("{jitter:#}"));
    }
    for window in &rollout.windows {
        let time = if rollout.window_time == picket_protocol::WindowTime::Utc { "UTC" } else { "each machine's time" };
        output.field("Window", format_args!("{window} ({time}), unless the operator has windows"));
    }
    let failing = args.failure_rate.is_some();
    let more = if failing { "    failed  spared by a stop" } else { "" };
    output.result(format_args!("wave  opens                 share   machines    so far{more}"));
    for wave in &plan.waves {
        let more = if failing { format!("  {:>8}  {:>8}", wave.failed_so_far, wave.spared) } else { String::new() };
        let (number, opens, percent) = (wave.wave, wave.opens.to_string(), wave.percent);
        let (machines, so_far) = (wave.machines, wave.machines_so_far);
        output.result(format_args!("{number:>4}  {opens:<20}  {percent:>3} %  {machines:>9} {so_far:>9}{more}"));
    }
    if args.ids.is_some() {
        output.result("turn                  wave  machine");
        for machine in &plan.machines {
            output.result(format_args!("{:<20}  {:>4}  {}", machine.at.to_string(), machine.wave, machine.id));
        }
    }
}
