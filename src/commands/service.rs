//! `picket service …`.

use super::Context;
use crate::build;
use crate::cli::{ConfigArgs, JsonArgs, ServiceCommand};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use crate::{process, settings, wiring};
use picket_layout::{Role, Roles};
use picket_protocol::{LivezReport, OverallStatus};
use picket_service::supervisor::{self, Options};
use picket_service::{LogQuery, Registrar, ServiceState, ServiceStatus};
use picket_telemetry::logs;
use picket_update::gate::{HttpProbe, Probe};
use picket_update::{schedule, state};
use serde::Serialize;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long to wait for a restarted agent.
const RESTART_LIMIT: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(50);

/// Runs `picket service …`.
pub(super) fn run(context: &Context<'_>, command: ServiceCommand) -> Result<ExitCode, CommandError> {
    if let ServiceCommand::Run { detached } = command {
        return serve(context, detached);
    }
    CommandError::require_installed(&context.layout)?;
    let registrar = picket_service::registrar(&context.layout);
    match command {
        ServiceCommand::Start => {
            context.require_root("starting the service")?;
            registrar.start()?;
            told(context, registrar.as_ref(), &format!("{} running", subject(context)))
        }
        ServiceCommand::Stop => {
            context.require_root("stopping the service")?;
            registrar.stop()?;
            context.output.say(match context.layout.roles() {
                Roles::ALL => "agent and hub have stopped",
                Roles::HUB => "the hub has stopped",
                _ => "the agent has stopped",
            });
            Ok(ExitCode::Success)
        }
        ServiceCommand::Restart => {
            context.require_root("restarting the service")?;
            restart(registrar.as_ref())?;
            let text = match context.layout.roles() {
                Roles::ALL => "agent and hub were restarted",
                Roles::HUB => "the hub was restarted",
                _ => "the agent was restarted",
            };
            told(context, registrar.as_ref(), text)
        }
        ServiceCommand::Status(json) => status(context, registrar.as_ref(), &json),
        ServiceCommand::Logs { lines, follow } => Err(show_logs(registrar.as_ref(), LogQuery { lines, follow })),
        ServiceCommand::Run { .. } => Ok(ExitCode::Success),
    }
}

fn subject(context: &Context<'_>) -> &'static str {
    match context.layout.roles() {
        Roles::ALL => "agent and hub are",
        Roles::HUB => "the hub is",
        _ => "the agent is",
    }
}

fn told(context: &Context<'_>, registrar: &dyn Registrar, text: &str) -> Result<ExitCode, CommandError> {
    let status = registrar.status()?;
    let pid = status.pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
    context.output.say(format_args!("{text} ({}{pid})", status.manager));
    Ok(ExitCode::Success)
}

fn restart(registrar: &dyn Registrar) -> Result<(), CommandError> {
    let before = registrar.status()?.run;
    registrar.restart()?;
    let began = Instant::now();
    while began.elapsed() < RESTART_LIMIT {
        let status = registrar.status()?;
        match status.state {
            ServiceState::Running if status.run != before => return Ok(()),
            ServiceState::Failed if status.run != before => return Err(CommandError::NotReady(status.detail)),
            _ => std::thread::sleep(LOOK),
        }
    }
    Err(CommandError::NotReady(format!("no answer after {} s", RESTART_LIMIT.as_secs())))
}

/// What `service status` reports.
#[derive(Serialize)]
struct StatusReport {
    #[serde(flatten)]
    service: ServiceStatus,
    /// What the agent says of itself, if it answers.
    agent: Option<LivezReport>,
    /// The sum of its health checks.
    health: Option<OverallStatus>,
    /// What the hub says of itself, if there is one and it answers.
    hub_answers: Option<LivezReport>,
    /// The sum of its health checks.
    hub_health: Option<OverallStatus>,
}

fn status(context: &Context<'_>, registrar: &dyn Registrar, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let service = registrar.status()?;
    let roles = context.layout.roles();
    let probe = probe(context).filter(|_| roles.has(Role::Agent));
    let of_hub = || wiring::of_hub(&context.layout, context.process).ok();
    let hub = roles.has(Role::Hub).then(of_hub).flatten();
    let report = StatusReport {
        hub_answers: hub.as_ref().and_then(Probe::livez),
        hub_health: hub.as_ref().and_then(Probe::health).map(|health| health.status),
        agent: probe.as_ref().and_then(Probe::livez),
        health: probe.as_ref().and_then(Probe::health).map(|health| health.status),
        service,
    };
    let hub_runs = report.service.hub.as_ref().is_none_or(|hub| hub.state == ServiceState::Running);
    let running = report.service.state == ServiceState::Running && hub_runs;
    if json.json {
        context.output.json(&report);
    } else {
        let output = context.output;
        output.field("Service", format_args!("{} ({})", report.service.detail, report.service.manager));
        let boot = if report.service.enabled { "yes" } else { "no" };
        output.field("Starts at boot", boot);
        if let Some(sensor) = &report.service.sensor {
            output.field("Sensor", &sensor.detail);
        }
        if let Some(hub) = &report.service.hub {
            let boot = if hub.enabled { "" } else { ", not started at boot" };
            output.field("Hub", format_args!("{}{boot}", hub.detail));
        }
        if roles.has(Role::Agent) {
            tell_answer(context, "agent", report.agent.as_ref(), report.health);
        }
        if roles.has(Role::Hub) {
            tell_answer(context, "hub", report.hub_answers.as_ref(), report.hub_health);
        }
        if report.service.restarts > 0 {
            output
                .marked(Tone::Warn, format_args!("restarted {} times by the service manager", report.service.restarts));
        }
        if let Some(sensor) = report.service.sensor.as_ref().filter(|sensor| sensor.restarts > 0) {
            output.marked(Tone::Warn, format_args!("the sensor was restarted {} times", sensor.restarts));
        }
    }
    Ok(if running { ExitCode::Success } else { ExitCode::Unhealthy })
}

/// What agent or hub say of themselves.
fn tell_answer(context: &Context<'_>, who: &str, alive: Option<&LivezReport>, health: Option<OverallStatus>) {
    let output = context.output;
    // One that is alone on its machine needs no name.
    let alone = context.layout.roles() != Roles::ALL;
    let name =
        |what: &str| if alone || who == "agent" { what.to_owned() } else { format!("Hub's {}", what.to_lowercase()) };
    match alive {
        Some(alive) => {
            output.field(&name("Version"), &alive.version);
            output.field(&name("Process"), alive.pid);
            output.field(&name("Up for"), crate::output::human(Duration::from_secs(alive.uptime_seconds)));
        }
        None if who == "agent" => output.field("Agent", "does not answer on its health port"),
        None => output.field(&name("Answer"), "none on its health port"),
    }
    let prefix = if alone {
        ""
    } else if who == "agent" {
        "the agent is "
    } else {
        "the hub is "
    };
    match health {
        Some(OverallStatus::Healthy) => output.marked(Tone::Good, format_args!("{prefix}healthy")),
        Some(OverallStatus::Unhealthy) => {
            output.marked(Tone::Bad, format_args!("{prefix}unhealthy; see `picket doctor`"));
        }
        None => {}
    }
}

/// The agent's health port, as far as the caller may read the configuration.
pub(super) fn probe(context: &Context<'_>) -> Option<HttpProbe> {
    let resolved = settings::read(&context.layout, context.process, &ConfigArgs::default());
    let base = format!("http://{}", resolved.settings.health.listen.get()).parse().ok()?;
    Some(HttpProbe::new(base, &build::user_agent()))
}

/// Becomes the program that shows the log. Returns only when that failed.
fn show_logs(registrar: &dyn Registrar, query: LogQuery) -> CommandError {
    let words = registrar.log_command(&query);
    let (program, arguments) = words.split_first().map_or(("", &[][..]), |(program, rest)| (program.as_str(), rest));
    let error = Command::new(program).args(arguments).exec();
    CommandError::system(format!("cannot run {program}"), error)
}

/// Is the service manager of a prefix or a container.
fn serve(context: &Context<'_>, detached: bool) -> Result<ExitCode, CommandError> {
    CommandError::require_installed(&context.layout)?;
    if context.process.variable("PICKET_SUPERVISED").is_some() {
        process::die_with_parent(rustix::process::Signal::TERM);
    }
    let (settings, _) = settings::resolve(&context.layout, context.process, &ConfigArgs::default())?;
    logs::init(&settings::log_options(&settings, context.process, "picket-supervisor"))?;
    let machine_id = wiring::machine_id();
    let update_dir = context.layout.update_dir().to_owned();
    supervisor::run(Options {
        layout: context.layout.clone(),
        detached,
        is_due: Box::new(move |now| state::is_due(&update_dir, now)),
        next_update: Box::new(move |now| schedule::next(now, &jiff::tz::TimeZone::system(), &machine_id)),
    })?;
    Ok(ExitCode::Success)
}
