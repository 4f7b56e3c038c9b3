//! Structured logs: human text, JSON lines, or the systemd journal, with a level for each component.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

picket_config::choice! {
    /// How much is logged.
    pub enum LogLevel {
        /// Nothing.
        Off = "off",
        /// What does not work.
        Error = "error",
        /// What somebody should look at.
        Warn = "warn",
        /// What happens, in few words.
        Info = "info",
        /// What a developer needs to follow a problem.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

picket_config::choice! {
    /// The form of the log.
    pub enum LogFormat {
        /// The journal under systemd, human text elsewhere.
        Auto = "auto",
        /// One line of text an event, coloured on a terminal.
        Human = "human",
        /// One JSON object a line.
        Json = "json",
        /// The systemd journal's own protocol, with fields.
        Journald = "journald",
    }
}

/// What to log, how, and where it goes.
#[derive(Debug, Clone, PartialEq)]
pub struct LogOptions {
    /// The form.
    pub format: LogFormat,
    /// The level of Picket's own components.
    pub level: LogLevel,
    /// Levels of single components: `update`, `agent.collect`, or the name of a library such as `ureq`.
    pub levels: BTreeMap<String, LogLevel>,
    /// The journal's name for this process: `picket-agent`.
    pub identifier: String,
    /// Whether stderr is connected to the journal (the service manager sets `JOURNAL_STREAM`).
    pub under_journal: bool,
    /// Whether colours are wanted on a terminal.
    pub color: bool,
}

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The journal was asked for by name, but does not listen.
    #[error("cannot reach the systemd journal; use log_format: human or json")]
    Journald(#[source] io::Error),
    /// Somebody set up a log before.
    #[error("logging is already set up")]
    Twice,
}

impl LogLevel {
    fn filter(self) -> LevelFilter {
        match self {
            Self::Off => LevelFilter::OFF,
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

/// The rooms and workshop crates whose names can stand in `log_levels` without a prefix.
const COMPONENTS: [&str; 8] =
    ["agent", "installer", "service", "update", "release", "telemetry", "transport", "config"];

/// The tracing target a component's name stands for.
fn target_of(component: &str) -> String {
    let path = component.replace('.', "::");
    let first = path.split("::").next().unwrap_or_default();
    if COMPONENTS.contains(&first) { format!("picket_{path}") } else { path }
}

/// Which events pass: Picket's own at its level, libraries' warnings, and whatever was set by name.
fn targets(options: &LogOptions) -> Targets {
    let library_level = LevelFilter::WARN.min(options.level.filter());
    let mut targets = Targets::new().with_default(library_level).with_target("picket", options.level.filter());
    for (component, level) in &options.levels {
        targets = targets.with_target(target_of(component), level.filter());
    }
    targets
}

/// Sets up the log of this process.
///
/// # Errors
/// See [`LogError`]; with [`LogFormat::Auto`] an unreachable journal is no error, the text goes to stderr.
pub fn init(options: &LogOptions) -> Result<(), LogError> {
    let layer = layer(options)?;
    tracing_subscriber::registry().with(layer.with_filter(targets(options))).try_init().map_err(|_| LogError::Twice)
}

/// Each level under its own name in syslog (RFC 5424 §6.2.1); the crate's default makes `info` a notice.
fn syslog_priorities() -> PriorityMappings {
    PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    }
}

fn layer(options: &LogOptions) -> Result<Box<dyn Layer<Registry> + Send + Sync>, LogError> {
    let journald = || {
        let layer = tracing_journald::layer()?.with_syslog_identifier(options.identifier.clone());
        Ok(layer.with_priority_mappings(syslog_priorities()))
    };
    match options.format {
        LogFormat::Journald => Ok(journald().map_err(LogError::Journald)?.boxed()),
        LogFormat::Auto if options.under_journal => match journald() {
            Ok(layer) => Ok(layer.boxed()),
            // stderr is connected to the journal anyway; fields and levels are lost, the text is not.
            Err(_) => Ok(human(options).boxed()),
        },
        LogFormat::Auto | LogFormat::Human => Ok(human(options).boxed()),
        LogFormat::Json => {
            Ok(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(io::stderr).boxed())
        }
    }
}

fn human(options: &LogOptions) -> impl Layer<Registry> + Send + Sync + use<> {
    tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(options.color && io::stderr().is_terminal())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn a_level_can_be_set_for_one_component_and_libraries_stay_quiet() {
        let options = LogOptions {
            format: LogFormat::Human,
            level: LogLevel::Info,
            levels: BTreeMap::from([("agent.collect".into(), LogLevel::Trace), ("ureq".into(), LogLevel::Debug)]),
            identifier: "picket".into(),
            under_journal: false,
            color: false,
        };
        let targets = targets(&options);
        for (target, level, passes) in [
            ("picket_agent::collect::cpu", Level::TRACE, true),
            ("picket_agent::local_api", Level::INFO, true),
            ("picket_agent::local_api", Level::DEBUG, false),
            ("picket::commands", Level::INFO, true),
            ("hyper::proto", Level::INFO, false),
            ("hyper::proto", Level::WARN, true),
            ("ureq::run", Level::DEBUG, true),
        ] {
            assert_eq!(targets.would_enable(target, &level), passes, "{target} {level}");
        }
    }
}
