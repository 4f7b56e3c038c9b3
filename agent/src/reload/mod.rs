//! Taking a changed configuration: on SIGHUP, and when a file in its folder changes.
//!
//! A configuration with an error changes nothing: the one in force stays in force, the health check `config` warns and the
//! log says what is wrong with the new one. A good one is applied as far as it can be, and what needs a restart is named.

mod ask;
mod in_force;
mod shown;

pub(crate) use ask::Asker;
pub use in_force::{Cause, Change, ConfigFile, InForce, KeyValue, RestoreMark, changes, digest, files};
pub use shown::{Difference, differences};

use crate::config::Config;
use crate::hub::pushed::Effective;
use notify::{RecursiveMode, Watcher as _};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a folder must be quiet before its files are read: editors write, rename and write again.
const QUIET: Duration = Duration::from_millis(300);
/// At the latest after this long they are read all the same.
const LATEST: Duration = Duration::from_secs(3);

/// A configuration that was read.
#[derive(Clone)]
pub struct Loaded {
    /// What the agent works by.
    pub config: Config,
    /// Every key with its value.
    pub values: BTreeMap<String, KeyValue>,
    /// The files that were read.
    pub files: Vec<PathBuf>,
}

/// Reads the configuration anew. The error is a sentence for each problem.
pub type Load = Arc<dyn Fn() -> Result<Loaded, Vec<String>> + Send + Sync>;

/// What would be wrong with the configuration if the hub's layer had these settings: a sentence for each problem.
pub type CheckLayer = Arc<dyn Fn(&BTreeMap<String, serde_json::Value>) -> Result<(), Vec<String>> + Send + Sync>;

/// Who waits for what came of it.
type Reply = SyncSender<Result<Effective, Vec<String>>>;

enum Wake {
    File,
    Signal,
    Hub(Reply),
    Stop,
}

/// Watches the configuration in a thread of its own.
pub(crate) struct Reloader {
    wakes: SyncSender<Wake>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What is done with what was read.
pub(crate) trait Apply: Send {
    /// Works by `loaded` from now on.
    fn apply(&mut self, loaded: &Loaded, changes: &[Change], cause: Cause);

    /// The configuration on disk cannot be used; `problems` says why.
    fn refuse(&mut self, problems: &[String]);

    /// The configuration on disk is the one in force (again).
    fn unchanged(&mut self);
}

impl Reloader {
    /// Watches `folder` and waits for [`Reloader::signal`].
    ///
    /// # Errors
    /// When the system refuses a thread. That the folder cannot be watched is told and no error: SIGHUP remains.
    pub(crate) fn start(
        folder: &Path,
        in_force: BTreeMap<String, KeyValue>,
        load: Load,
        effective: Arc<Mutex<Effective>>,
        mut apply: impl Apply + 'static,
    ) -> std::io::Result<Self> {
        let (wakes, inbox) = sync_channel(16);
        let watcher = watch(folder, wakes.clone());
        if let Err(error) = &watcher {
            tracing::warn!(%error, folder = %folder.display(), "changes of the configuration are not seen; send SIGHUP");
        }
        let thread = std::thread::Builder::new().name("picket-config".to_owned()).spawn(move || {
            let _watcher = watcher;
            let (started, mut in_force) = (in_force.clone(), in_force);
            // What the agent started with was read before anybody watched.
            let mut next_is: Option<(Cause, Option<Reply>)> = Some((Cause::File, None));
            while let Some((cause, reply)) = next_is {
                let taken = take(&load, &mut in_force, &mut apply, cause);
                let now = effective_of(&started, &in_force);
                effective.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&now);
                if let Some(reply) = reply {
                    let _ = reply.try_send(taken.map(|()| now));
                }
                next_is = next(&inbox);
            }
        })?;
        Ok(Self { wakes, thread: Mutex::new(Some(thread)) })
    }

    /// Somebody asked for the configuration to be read anew.
    pub(crate) fn signal(&self) {
        let _ = self.wakes.try_send(Wake::Signal);
    }

    /// Lets the hub's thread have the configuration read anew and hear what came of it.
    pub(crate) fn asker(&self) -> Asker {
        Asker::of(self.wakes.clone())
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        let _ = self.wakes.send(Wake::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

fn effective_of(started: &BTreeMap<String, KeyValue>, in_force: &BTreeMap<String, KeyValue>) -> Effective {
    let waiting = changes(started, in_force).into_iter().filter(|change| change.needs_restart);
    Effective { sha256: digest(in_force), needs_restart: waiting.map(|change| change.key).collect() }
}

fn take(
    load: &Load,
    in_force: &mut BTreeMap<String, KeyValue>,
    apply: &mut impl Apply,
    cause: Cause,
) -> Result<(), Vec<String>> {
    match load() {
        Err(problems) => {
            for problem in &problems {
                tracing::error!("{problem}");
            }
            tracing::error!("the new configuration cannot be used; the one in force stays in force");
            apply.refuse(&problems);
            Err(problems)
        }
        Ok(loaded) => {
            let changes = changes(in_force, &loaded.values);
            if changes.is_empty() {
                apply.unchanged();
                return Ok(());
            }
            for change in &changes {
                let waits = if change.needs_restart { "at the next start" } else { "now" };
                tracing::info!(
                    key = change.key,
                    cause = cause.as_str(),
                    takes_effect = waits,
                    "the configuration changed"
                );
            }
            *in_force = loaded.values.clone();
            apply.apply(&loaded, &changes, cause);
            Ok(())
        }
    }
}

/// Waits for the next reason to read the configuration; `None` when told to stop.
fn next(inbox: &Receiver<Wake>) -> Option<(Cause, Option<Reply>)> {
    match inbox.recv() {
        Ok(Wake::Signal) => return Some((Cause::Signal, None)),
        Ok(Wake::Hub(reply)) => return Some((Cause::Hub, Some(reply))),
        Ok(Wake::Stop) | Err(_) => return None,
        Ok(Wake::File) => {}
    }
    let began = std::time::Instant::now();
    while began.elapsed() < LATEST {
        match inbox.recv_timeout(QUIET) {
            Ok(Wake::File) => {}
            Ok(Wake::Signal) => return Some((Cause::Signal, None)),
            Ok(Wake::Hub(reply)) => return Some((Cause::Hub, Some(reply))),
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => break,
        }
    }
    Some((Cause::File, None))
}

fn watch(folder: &Path, wakes: SyncSender<Wake>) -> notify::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let is_config = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem == "config");
        let matters = match &event {
            // Reading the files is an event, too, and must not lead to reading them.
            Ok(event) => !event.kind.is_access() && (event.paths.iter().any(is_config) || event.need_rescan()),
            Err(_) => true,
        };
        if matters {
            // One that waits is enough.
            let _ = wakes.try_send(Wake::File);
        }
    })?;
    // The folder, not the file: editors replace files by renaming.
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::Sender;

    /// Passes on what it is told.
    struct Told(Sender<String>);

    impl Apply for Told {
        fn apply(&mut self, _: &Loaded, changes: &[Change], cause: Cause) {
            let keys: Vec<&str> = changes.iter().map(|change| change.key.as_str()).collect();
            let _ = self.0.send(format!("{} {}", cause.as_str(), keys.join(" ")));
        }

        fn refuse(&mut self, problems: &[String]) {
            let _ = self.0.send(problems.join("; "));
        }

        fn unchanged(&mut self) {
            let _ = self.0.send("unchanged".to_owned());
        }
    }

    #[test]
    fn what_became_wrong_between_the_first_reading_and_the_watch_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (told, heard) = std::sync::mpsc::channel();
        let load: Load = Arc::new(|| Err(vec!["config.yaml:1: no mapping".to_owned()]));
        let reloader = Reloader::start(dir.path(), BTreeMap::new(), load, Arc::default(), Told(told)).unwrap();
        assert_eq!(heard.recv_timeout(Duration::from_secs(30)).unwrap(), "config.yaml:1: no mapping");
        reloader.stop();
    }
}
