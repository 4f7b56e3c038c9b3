//! Structured logs: human text, JSON lines, or the systemd journal, with a level for each component.
//!
//! A span with a field `correlation_id` or `operation` is context for whatever is logged within it, at every level: in JSON
//! as the key `correlation_id`, in the journal as the field `F_CORRELATION_ID`, in text before the message.

use crate::json::JsonLog;
use crate::operations::{self, OperationSink, is_context};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::layer::Filter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

picket_config::choice! {
    /// How much is logged.
    pub enum LogLevel {
        /// Nothing.
        Off = "off",
        /// What does not work.
        Error = "error",
        /// What somebody should look at.
        Warn = "warn" | "warning",
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

picket_config::settings! {
    /// The same as `log_level`, `log_format` and `log_levels`, in a group; what is set here is over those.
    pub struct LoggingSettings {
        /// How much is logged.
        pub level: Option<LogLevel> = None,
        /// The form of the log.
        pub format: Option<LogFormat> = None,
        /// The header in which requests to the agent's own servers bring a correlation id.
        pub correlation_id_header: String = picket_protocol::trace::CORRELATION_HEADER.to_owned(),
        /// How much single components log.
        pub components: Vec<ComponentLevel> = Vec::new(),
    }
}

picket_config::settings! {
    /// How much one component logs.
    pub struct ComponentLevel {
        /// The component, as in `log_levels`.
        pub name: String = String::new(),
        /// How much.
        pub level: LogLevel = LogLevel::Info,
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

impl LogOptions {
    /// Lays the group `logging` over the single keys.
    #[must_use]
    pub fn with(mut self, logging: &LoggingSettings) -> Self {
        self.level = logging.level.unwrap_or(self.level);
        self.format = logging.format.unwrap_or(self.format);
        let components = logging.components.iter().filter(|component| !component.name.is_empty());
        self.levels.extend(components.map(|component| (component.name.clone(), component.level)));
        self
    }
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
const COMPONENTS: [&str; 16] = [
    "agent",
    "config",
    "durable",
    "filewatch",
    "installer",
    "layout",
    "monitor",
    "netwatch",
    "outbox",
    "release",
    "seal",
    "service",
    "store",
    "telemetry",
    "transport",
    "update",
];

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

/// What the log sees: events by [`targets`], and every span that is context for them.
fn filter<S>(options: &LogOptions) -> impl Filter<S> + use<S>
where
    S: tracing::Subscriber,
{
    targets(options).or(filter_fn(is_context).with_max_level_hint(LevelFilter::INFO))
}

/// A filter whose levels can change while the log is in use.
type Levels = reload::Handle<BoxedFilter, Registry>;

type BoxedFilter = Box<dyn Filter<Registry> + Send + Sync>;

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Takes each line of the log, in the form of [`LogFormat::Json`] and without its line end. It must not wait.
pub type LineSink = Arc<dyn Fn(&str) + Send + Sync>;

/// Who hears what happens in this process, beside the log itself.
#[derive(Clone, Default)]
pub struct Listeners {
    /// Is told of every operation that is over (see [`crate::operations`]).
    pub operations: Option<OperationSink>,
    /// Takes the lines of level info and above that the log has, too.
    pub lines: Option<LineSink>,
}

/// The levels of a log that is set up.
#[derive(Clone)]
pub struct LogControl {
    log: Levels,
    lines: Option<Levels>,
}

impl LogControl {
    /// Logs by these levels from now on; form and place of the log stay what they are.
    pub fn set_levels(&self, options: &LogOptions) {
        // Fails only where the subscriber is gone, and with it whoever would read the log.
        let _ = self.log.reload(boxed(options));
        if let Some(lines) = &self.lines {
            let _ = lines.reload(boxed(&for_lines(options)));
        }
    }
}

/// What is kept of the log: no more than info, whatever the log itself has.
fn for_lines(options: &LogOptions) -> LogOptions {
    let at_most_info = |level: LogLevel| if level.filter() > LevelFilter::INFO { LogLevel::Info } else { level };
    let mut options = options.clone();
    options.level = at_most_info(options.level);
    for level in options.levels.values_mut() {
        *level = at_most_info(*level);
    }
    options
}

fn boxed(options: &LogOptions) -> BoxedFilter {
    Box::new(filter(options))
}

/// A layer behind levels that can change.
fn behind(layer: BoxedLayer, options: &LogOptions) -> (BoxedLayer, Levels) {
    let (filter, levels) = reload::Layer::new(boxed(options));
    (layer.with_filter(filter).boxed(), levels)
}

/// Gives each line to a sink.
struct Lines(LineSink);

thread_local! {
    /// Whether this thread is giving a line away: what the taker logs meanwhile is not given to it again.
    static GIVING: Cell<bool> = const { Cell::new(false) };
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !GIVING.replace(true) {
            (self.0)(String::from_utf8_lossy(bytes).trim_end());
            GIVING.set(false);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sets up the log of this process.
///
/// # Errors
/// See [`LogError`]; with [`LogFormat::Auto`] an unreachable journal is no error, the text goes to stderr.
pub fn init(options: &LogOptions) -> Result<(), LogError> {
    init_with(options, Listeners::default()).map(drop)
}

/// [`init`], and lets others listen.
///
/// # Errors
/// As [`init`].
pub fn init_with(options: &LogOptions, listeners: Listeners) -> Result<LogControl, LogError> {
    let (layers, control) = layers(options, listeners)?;
    tracing_subscriber::registry().with(layers).try_init().map_err(|_| LogError::Twice)?;
    Ok(control)
}

/// [`init_with`], and gives spans to `exporter`.
///
/// # Errors
/// As [`init`].
#[cfg(feature = "otel")]
pub fn init_exporting(
    options: &LogOptions,
    listeners: Listeners,
    exporter: &crate::otel::Exporter,
) -> Result<LogControl, LogError> {
    let (layers, control) = layers(options, listeners)?;
    let subscriber = tracing_subscriber::registry().with(layers).with(exporter.layer());
    subscriber.try_init().map_err(|_| LogError::Twice)?;
    Ok(control)
}

fn layers(options: &LogOptions, listeners: Listeners) -> Result<(Vec<BoxedLayer>, LogControl), LogError> {
    let (log, levels) = behind(layer(options)?, options);
    let mut layers = vec![log];
    let mut control = LogControl { log: levels, lines: None };
    if let Some(sink) = listeners.lines {
        let lines = JsonLog::new(move || Lines(Arc::clone(&sink))).boxed();
        let (lines, levels) = behind(lines, &for_lines(options));
        layers.push(lines);
        control.lines = Some(levels);
    }
    layers.extend(listeners.operations.map(|sink| operations::layer(sink).boxed()));
    Ok((layers, control))
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

fn layer(options: &LogOptions) -> Result<BoxedLayer, LogError> {
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
        LogFormat::Json => Ok(JsonLog::new(io::stderr).boxed()),
    }
}

fn human(options: &LogOptions) -> impl Layer<Registry> + Send + Sync + use<> {
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    // It would tell of a stderr that cannot be written on stderr, and panic: a full disk under a log must end no update.
    layer.log_internal_errors(false).with_ansi(options.color && io::stderr().is_terminal())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn the_group_that_was_asked_for_is_laid_over_the_single_keys() {
        let components = ["agent.collect", ""].map(|name| ComponentLevel { name: name.into(), level: LogLevel::Debug });
        let logging = LoggingSettings {
            level: Some(LogLevel::Warn),
            format: Some(LogFormat::Json),
            components: components.into(),
            ..LoggingSettings::default()
        };
        let options = LogOptions {
            format: LogFormat::Auto,
            level: LogLevel::Info,
            levels: BTreeMap::from([("update".into(), LogLevel::Trace)]),
            identifier: "picket".into(),
            under_journal: false,
            color: false,
        };
        let laid = options.clone().with(&logging);
        assert_eq!((laid.level, laid.format), (LogLevel::Warn, LogFormat::Json));
        assert_eq!(laid.levels.len(), 2);
        assert_eq!(options.clone().with(&LoggingSettings::default()), options);
    }

    #[test]
    fn context_is_logged_though_the_level_is_above_it() {
        #[derive(Clone, Default)]
        struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
        impl io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let options = LogOptions {
            format: LogFormat::Human,
            level: LogLevel::Warn,
            levels: BTreeMap::new(),
            identifier: "picket".into(),
            under_journal: false,
            color: false,
        };
        let work = || {
            let _request = tracing::info_span!(target: "picket_agent", "request", correlation_id = "c-17").entered();
            let _function = tracing::info_span!(target: "picket_agent", "function", x = 1).entered();
            tracing::warn!(target: "picket_agent", "careful");
            tracing::info!(target: "picket_agent", "nothing");
        };
        for json in [false, true] {
            let lines = Lines::default();
            let writer = lines.clone();
            let writer = move || writer.clone();
            let layer: Box<dyn Layer<Registry> + Send + Sync> = if json {
                JsonLog::new(writer).boxed()
            } else {
                tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer).boxed()
            };
            let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter(&options)));
            tracing::subscriber::with_default(subscriber, work);
            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.contains("c-17") && text.contains("careful") && !text.contains("function"), "{text}");
        }
    }

    #[test]
    fn levels_change_while_the_log_is_in_use_and_kept_lines_are_info_at_most() {
        let kept: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let taken = Arc::clone(&kept);
        let lines: LineSink = Arc::new(move |line| {
            // Whoever takes a line may log, and is not asked to take that.
            tracing::warn!(target: "picket_store", "within");
            taken.lock().unwrap().push(line.to_owned());
        });
        let options = LogOptions {
            format: LogFormat::Human,
            level: LogLevel::Error,
            levels: BTreeMap::new(),
            identifier: "picket".into(),
            under_journal: false,
            color: false,
        };
        let (layers, control) = layers(&options, Listeners { operations: None, lines: Some(lines) }).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layers), || {
            tracing::info!(target: "picket_agent", "first");
            control.set_levels(&LogOptions { level: LogLevel::Debug, ..options.clone() });
            tracing::info!(target: "picket_agent", "second");
            tracing::debug!(target: "picket_agent", "third");
        });
        let kept = kept.lock().unwrap();
        assert_eq!(kept.len(), 1, "{kept:?}");
        let line: serde_json::Value = serde_json::from_str(&kept[0]).unwrap();
        assert_eq!((&line["message"], &line["component"]), (&"second".into(), &"agent".into()));
    }

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
