//! `picket agent run`.

use super::Context;
use crate::build;
use crate::cli::ConfigArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::{process, settings};
use picket_agent::{App, Config};
use picket_telemetry::logs;

/// Runs the agent until it is told to stop.
pub(super) fn run(context: &Context<'_>, args: &ConfigArgs) -> Result<ExitCode, CommandError> {
    let layout = &context.layout;
    if layout.has_service_user() && context.process.is_root() {
        return Err(CommandError::AgentAsRoot);
    }
    let supervised = context.process.variable("PICKET_SUPERVISED").is_some();
    if supervised {
        // Whatever happens to the supervisor, no agent is left behind that nobody watches.
        process::die_with_parent(rustix::process::Signal::TERM);
    }
    let (settings, unknown) = settings::resolve(layout, context.process, args)?;
    logs::init(&settings::log_options(&settings, context.process, "picket-agent"))?;
    for problem in &unknown {
        tracing::warn!("{problem}");
    }
    let config = Config {
        build: build::info(),
        lock: layout.agent_lock(),
        state_dir: layout.state_dir().to_owned(),
        state_format: layout.state_format(),
        update_status: layout.update_status(),
        health: settings.health,
        metrics: settings.metrics,
        collection_interval: settings.collection_interval,
        drain_limit: settings.drain_limit.get(),
        config_warnings: unknown.iter().map(ToString::to_string).collect(),
    };
    App::build(config)?.spawn()?.run_until_signal()?;
    Ok(ExitCode::Success)
}
