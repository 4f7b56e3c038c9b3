//! `picket sensor run`.

use super::Context;
use crate::build;
use crate::cli::ConfigArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::settings;
use crate::wiring::ConfiguredWatchers;
use picket_installer::Accounts;
use picket_sensor::{Config, Limits, Sensor};
use picket_telemetry::{Listeners, logs};
use std::time::Duration;

/// How long the agent may take what is left when the sensor is told to stop; the rest waits on disk.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// Runs the sensor until it is told to stop.
pub(super) fn run(context: &Context<'_>, args: &ConfigArgs) -> Result<ExitCode, CommandError> {
    let layout = &context.layout;
    if layout.has_sensor() && context.process.is_root() {
        return Err(CommandError::SensorAsRoot);
    }
    let (settings, unknown) = settings::resolve(layout, context.process, args)?;
    let options = settings::log_options(&settings, context.process, ConfiguredWatchers::LOG_IDENTIFIER);
    let log = logs::init_with(&options, Listeners::default())?;
    for problem in &unknown {
        tracing::warn!("{problem}");
    }
    picket_durable::create_dir(layout.sensor_dir(), 0o700)?;
    picket_durable::create_dir(layout.sensor_run_dir(), 0o750)?;
    let config = Config {
        program: build::info().version.to_string(),
        socket: layout.sensor_socket(),
        // Of the service user's group, in a folder that only that group can enter.
        socket_mode: 0o660,
        state_dir: layout.sensor_dir().to_owned(),
        agent: Accounts::of(layout).service.map(|(user, _)| user),
        limits: Limits::default(),
        drain_limit: DRAIN_LIMIT,
        plan: Box::new(ConfiguredWatchers::new(layout, context.process, args, log)),
    };
    Sensor::start(config)?.run_until_signal()?;
    Ok(ExitCode::Success)
}
