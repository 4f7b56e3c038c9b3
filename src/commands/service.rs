//! `picket service …`.

use super::Context;
use crate::build;
use crate::cli::{ConfigArgs, JsonArgs, ServiceCommand};
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::output::Tone;
use crate::{process, settings, wiring};
use picket_protocol::{LivezReport, OverallStatus};
use picket_service::supervisor::{self, Options};
use picket_service::{LogQuery, Registrar, ServiceState, ServiceStatus};
use picket_telemetry::logs;
use picket_update::gate::{HttpProbe, Probe};
use picket_update::schedule;
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
            context.require_root("starting the agent")?;
            registrar.start()?;
            told(context, registrar.as_ref(), "the agent is running")
        }
        ServiceCommand::Stop => {
            context.require_root("stopping the agent")?;
            registrar.stop()?;
            context.output.say("the agent has stopped");
            Ok(ExitCode::Success)
        }
        ServiceCommand::Restart => {
            context.require_root("restarting the agent")?;
            restart(registrar.as_ref())?;
            told(context, registrar.as_ref(), "the agent was restarted")
        }
        ServiceCommand::Status(json) => status(context, registrar.as_ref(), &json),
        ServiceCommand::Logs { lines, follow } => Err(show_logs(registrar.as_ref(), LogQuery { lines, follow })),
        ServiceCommand::Run { .. } => Ok(ExitCode::Success),
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
}

fn status(context: &Context<'_>, registrar: &dyn Registrar, json: &JsonArgs) -> Result<ExitCode, CommandError> {
    let service = registrar.status()?;
    let probe = probe(context);
    let report = StatusReport {
        agent: probe.as_ref().and_then(Probe::livez),
        health: probe.as_ref().and_then(Probe::health).map(|health| health.status),
        service,
    };
    let running = report.service.state == ServiceState::Running;
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
        match &report.agent {
            Some(agent) => {
                output.field("Version", &agent.version);
                output.field("Process", agent.pid);
                output.field("Up for", crate::output::human(Duration::from_secs(agent.uptime_seconds)));
            }
            None => output.field("Agent", "does not answer on its health port"),
        }
        match report.health {
            Some(OverallStatus::Healthy) => output.marked(Tone::Good, "healthy"),
            Some(OverallStatus::Unhealthy) => output.marked(Tone::Bad, "unhealthy; see `picket doctor`"),
            None => {}
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
    supervisor::run(Options {
        layout: context.layout.clone(),
        detached,
        next_update: Box::new(move |now| schedule::next(now, &jiff::tz::TimeZone::system(), &machine_id)),
    })?;
    Ok(ExitCode::Success)
}
