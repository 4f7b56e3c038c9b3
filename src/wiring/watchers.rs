//! The watchers that the configuration asks for, as the sensor starts them.

use crate::cli::ConfigArgs;
use crate::process::Process;
use crate::settings;
use picket_config::Setting;
use picket_filewatch::{FileWatcher, Options as FileOptions, Privileged};
use picket_layout::Layout;
use picket_netwatch::{NetWatcher, NetworkMonitorSettings};
use picket_protocol::Sight;
use picket_protocol::event::Sink;
use picket_sensor::{Blind, Plan, Reading, Start, Watcher};
use picket_telemetry::LogControl;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Reads the same configuration as the agent, and starts what it says.
pub(crate) struct ConfiguredWatchers {
    layout: Layout,
    process: Process,
    args: ConfigArgs,
    log: LogControl,
    /// What the hub gave, as it was last seen: inode, length and time of change.
    given: Mutex<Option<(u64, u64, i64, i64)>>,
}

impl ConfiguredWatchers {
    /// How the sensor's lines are marked in the system's log.
    pub(crate) const LOG_IDENTIFIER: &str = "picket-sensor";

    /// For the installation of `layout`, with the levels of the log that follow its configuration.
    pub(crate) fn new(layout: &Layout, process: &Process, args: &ConfigArgs, log: LogControl) -> Self {
        Self { layout: layout.clone(), process: process.clone(), args: args.clone(), log, given: Mutex::default() }
    }
}

impl Plan for ConfiguredWatchers {
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let look = |path: &Path| {
            let meta = std::fs::metadata(path).ok();
            meta.map(|meta| (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
        };
        for path in self.layout.config_files().iter().chain(&self.args.config) {
            look(path).hash(&mut hasher);
        }
        // It goes with the agent's runtime folder while the agent restarts, and that changes nothing.
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        *given = look(&self.layout.hub_config_published()).or(*given);
        given.hash(&mut hasher);
        hasher.finish()
    }

    fn read(&self) -> Result<Reading, String> {
        let (settings, _) =
            settings::resolve(&self.layout, &self.process, &self.args).map_err(|error| error.to_string())?;
        let (log, levels) = (self.log.clone(), settings::log_options(&settings, &self.process, Self::LOG_IDENTIFIER));
        let (files, network) = (settings.file_monitor, settings.network_monitor);
        let text = format!("{} {}", files.show(), network.show());
        let options = FileOptions {
            settings: files,
            state_dir: self.layout.sensor_dir().to_owned(),
            // What the agent writes for each event must not be an event.
            own: [self.layout.state_dir(), self.layout.log_dir(), self.layout.run_dir(), self.layout.sensor_run_dir()]
                .map(Path::to_owned)
                .to_vec(),
            privileged: Privileged::Auto,
            ignore_self: true,
        };
        let start: Vec<Start> = vec![
            Box::new(move |sink| watch_files(options.clone(), sink)),
            Box::new(move |sink| watch_network(network.clone(), sink)),
        ];
        Ok(Reading { settings: text, start, follow: Box::new(move || log.set_levels(&levels)) })
    }
}

fn watch_files(options: FileOptions, sink: &Sink) -> Box<dyn Watcher> {
    match FileWatcher::start(options, Arc::clone(sink)) {
        Ok(watcher) => Box::new(Files(watcher)),
        Err(error) => Box::new(Blind::new("files", "fanotify", chain(&error))),
    }
}

struct Files(FileWatcher);

impl Watcher for Files {
    fn sight(&self) -> Sight {
        self.0.sight()
    }

    fn stop(self: Box<Self>) {
        self.0.stop();
    }
}

fn watch_network(settings: NetworkMonitorSettings, sink: &Sink) -> Box<dyn Watcher> {
    // The sensor has no network to ask for names on; they are the agent's to add.
    let settings = NetworkMonitorSettings { resolve_names: false, ..settings };
    match NetWatcher::start(&settings.into(), Arc::clone(sink)) {
        Ok(watcher) => Box::new(Network(watcher)),
        Err(error) => Box::new(Blind::new("network", "sock_diag", chain(&error))),
    }
}

struct Network(NetWatcher);

impl Watcher for Network {
    fn sight(&self) -> Sight {
        self.0.sight()
    }

    fn stop(self: Box<Self>) {
        self.0.stop();
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
