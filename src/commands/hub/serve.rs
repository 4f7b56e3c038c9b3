//! `picket hub serve`.

use super::{options, runtime};
use crate::commands::Context;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use picket_hub::life;
use picket_telemetry::{Listeners, LogOptions, logs};
use std::collections::BTreeMap;
use tokio::signal::unix::{SignalKind, signal};

/// Runs the hub until it is told to stop.
pub(super) fn run(context: &Context<'_>) -> Result<ExitCode, CommandError> {
    if context.layout.has_service_user() && context.process.is_root() {
        return Err(CommandError::HubAsRoot);
    }
    let (options, config) = options(context)?;
    let log = LogOptions {
        format: config.settings.log_format,
        level: config.settings.log_level,
        levels: BTreeMap::new(),
        identifier: "picket-hub".to_owned(),
        under_journal: context.process.under_journal(),
        color: context.process.variable("NO_COLOR").is_none(),
    };
    logs::init_with(&log, Listeners::default())?;
    for problem in &config.warnings {
        tracing::warn!("{problem}");
    }
    raise_file_limit();
    let runtime = runtime()?;
    runtime.block_on(async {
        let refused = |error| CommandError::system("cannot listen for signals", error);
        let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
        let running = life::start(options).await.map_err(Box::new)?;
        let status = format!("agents on {}, API on {}", running.agents_address(), running.api_address());
        picket_hub::notify::ready(&status);
        let reason = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(reason, "draining");
        picket_hub::notify::stopping();
        running.stop().await;
        Ok(ExitCode::Success)
    })
}

/// Raises the limit on open files to what the system allows: each agent is a connection, and the usual soft limit of 1024
/// (getrlimit(2)) is for programs that use select.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let before = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => tracing::debug!(?before, now = ?limit.maximum, "more files may be open"),
        Err(error) => tracing::warn!(%error, ?before, "the limit on open files stays"),
    }
}
