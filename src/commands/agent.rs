//! `picket agent run`.

use super::Context;
use crate::build;
use crate::cli::ConfigArgs;
use crate::error::CommandError;
use crate::exit_code::ExitCode;
use crate::process::Process;
use crate::settings::{self, Settings};
use crate::wiring::{self, Export};
use picket_agent::reload::{CheckLayer, Load, Loaded};
use picket_agent::{
    App, Config, HubConfig, KeepConfig, ListenerSlot, MonitorConfig, ProcessLog, SensorLink, WatchConfig,
};
use picket_config::{Gravity, Resolved};
use picket_layout::Layout;
use picket_monitor::channel::Sender;
use picket_transport::Network;
use std::sync::Arc;

/// The journal's name for this process.
const IDENTIFIER: &str = "picket-agent";

/// Runs the agent until it is told to stop.
pub(super) fn run(context: &Context<'_>, args: &ConfigArgs) -> Result<ExitCode, CommandError> {
    let layout = &context.layout;
    if layout.has_service_user() && context.process.is_root() {
        return Err(CommandError::AgentAsRoot);
    }
    let supervised = context.process.variable("PICKET_SUPERVISED").is_some();
    if supervised {
        // Whatever happens to the supervisor, no agent is left behind that nobody watches.
        crate::process::die_with_parent(rustix::process::Signal::TERM);
    }
    let (app, export) = app(context, args)?;
    let ended = app.spawn().and_then(picket_agent::Running::run_until_signal);
    export.end();
    ended?;
    Ok(ExitCode::Success)
}

/// The agent of an installation, ready to be started, with the log of its process set up.
pub(super) fn app(context: &Context<'_>, args: &ConfigArgs) -> Result<(App, Export), CommandError> {
    let layout = &context.layout;
    let resolved = settings::read(layout, context.process, args);
    if resolved.problems.has_errors() {
        return Err(CommandError::Config(resolved.problems.0));
    }
    let listeners = ListenerSlot::default();
    let options = settings::log_options(&resolved.settings, context.process, IDENTIFIER);
    let (control, export) = wiring::log_and_export(&resolved.settings, &options, listeners.listeners())?;
    let loaded = loaded(layout, context.process, resolved);
    for problem in &loaded.config.config_warnings {
        tracing::warn!("{problem}");
    }
    let log = ProcessLog { listeners, control };
    let app = App::build(loaded, loader(layout, context.process, args), checker(layout, context.process, args), log)?;
    Ok((app, export))
}

/// Reads the same layers again, for an agent that runs.
fn loader(layout: &Layout, process: &Process, args: &ConfigArgs) -> Load {
    let (layout, process, args) = (layout.clone(), process.clone(), args.clone());
    Arc::new(move || {
        let resolved = settings::read(&layout, &process, &args);
        if resolved.problems.has_errors() {
            let errors = resolved.problems.0.iter().filter(|problem| problem.gravity == Gravity::Error);
            return Err(errors.map(ToString::to_string).collect());
        }
        Ok(loaded(&layout, &process, resolved))
    })
}

/// Says what would be wrong with a configuration of the hub's.
fn checker(layout: &Layout, process: &Process, args: &ConfigArgs) -> CheckLayer {
    let (layout, process, args) = (layout.clone(), process.clone(), args.clone());
    Arc::new(move |given| settings::check_hub_settings(&layout, &process, &args, given))
}

fn loaded(layout: &Layout, process: &Process, resolved: Resolved<Settings>) -> Loaded {
    let values = settings::values(&resolved);
    let warnings = resolved.problems.0.iter().map(ToString::to_string).collect();
    let files = resolved.files.clone();
    Loaded { config: config(layout, process, resolved.settings, warnings), values, files }
}

fn config(layout: &Layout, process: &Process, settings: Settings, config_warnings: Vec<String>) -> Config {
    let build = build::info();
    let state = layout.state_dir().to_owned();
    let sensor = SensorLink { socket: layout.sensor_socket(), mark: layout.sensor_mark() };
    let log = settings::log_options(&settings, process, IDENTIFIER);
    let data = settings::data(&settings);
    let network = settings::network(&settings);
    Config {
        lock: layout.agent_lock(),
        state_dir: state.clone(),
        state_format: layout.state_format(),
        update_status: layout.update_status(),
        log_dir: layout.log_dir().to_owned(),
        config_dir: layout.config_dir().to_owned(),
        restore_mark: layout.restore_mark(),
        device_id: settings.device_id.clone(),
        log,
        correlation_header: settings.logging.correlation_id_header,
        health: settings.health,
        metrics: settings.metrics,
        collection_interval: settings
            .performance_monitoring
            .collection_interval
            .unwrap_or(settings.collection_interval),
        collect: settings.collect,
        limits: settings.limits,
        drain_limit: settings.drain_limit.get(),
        events: settings.events,
        keep: KeepConfig {
            store_dir: layout.store_dir(),
            store_key: layout.store_key(),
            outbox_dir: layout.outbox_dir(),
            data,
            outbox: settings.outbox,
        },
        hub: HubConfig {
            certs_dir: layout.certs_dir(),
            layer: layout.hub_config(),
            published_layer: layout.hub_config_published(),
            stream_note: layout.hub_stream(),
            user_agent: build::user_agent(),
            uplink: settings.uplink,
            proxy: network.proxy.clone(),
        },
        watch: WatchConfig {
            files: settings.file_monitor,
            network: settings.network_monitor,
            state_dir: state.join("files"),
            own: vec![state, layout.log_dir().to_owned(), layout.run_dir().to_owned()],
            sensor: layout.has_sensor().then_some(sensor),
            program: build.version.to_string(),
        },
        monitor: MonitorConfig {
            device_id: settings.device_id,
            hostname: hostname(),
            user_agent: build::user_agent(),
            network,
            acks: layout.alert_acks(),
            memory: layout.alerts(),
            performance: settings.performance_monitoring,
            thresholds: settings.thresholds,
            alerting: settings.alerting,
            smtp: settings.smtp,
        },
        build,
        config_warnings,
    }
}

/// Who speaks in mails and to webhooks; for looking at channels, not for speaking.
pub(super) fn sender(device_id: &str) -> Sender {
    Sender {
        device_id: device_id.to_owned(),
        hostname: hostname(),
        user_agent: build::user_agent(),
        network: Network::default(),
    }
}

pub(super) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
