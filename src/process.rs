//! The process this is: arguments, environment, executable, terminals. Asked once, here, and passed down.
#![expect(clippy::disallowed_methods, reason = "this is the one place that asks")]

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the process was given.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// The arguments, the program's name first.
    pub(crate) arguments: Vec<OsString>,
    /// Environment variables whose name and value are text.
    pub(crate) environment: BTreeMap<String, String>,
    /// The executable, links resolved.
    pub(crate) exe: PathBuf,
    /// Whether a person may be asked: both standard input and standard error are terminals.
    pub(crate) interactive: bool,
}

impl Process {
    /// The process that runs this.
    pub(crate) fn of_this() -> Self {
        let exe = env::current_exe().unwrap_or_else(|_| PathBuf::from("picket"));
        Self {
            arguments: env::args_os().collect(),
            environment: env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            exe: exe.canonicalize().unwrap_or(exe),
            interactive: std::io::stdin().is_terminal() && std::io::stderr().is_terminal(),
        }
    }

    /// An environment variable, if it is set to something.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The folders of PATH.
    pub(crate) fn path(&self) -> Vec<PathBuf> {
        self.variable("PATH").map(|path| env::split_paths(path).collect()).unwrap_or_default()
    }

    /// Whether this process is root.
    pub(crate) fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    /// Who runs this, for the history: the user behind sudo where there is one.
    pub(crate) fn person(&self) -> String {
        let name = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|variable| self.variable(variable));
        name.map_or_else(|| format!("user {}", rustix::process::geteuid().as_raw()), str::to_owned)
    }

    /// Whether stderr is connected to the systemd journal: then `JOURNAL_STREAM` names its device and inode.
    pub(crate) fn under_journal(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let Some(stream) = self.variable("JOURNAL_STREAM") else { return false };
        let own = std::fs::metadata(Path::new("/proc/self/fd/2")).map(|meta| format!("{}:{}", meta.dev(), meta.ino()));
        own.is_ok_and(|own| own == stream)
    }
}

/// A flag that turns true when the process is told to stop (SIGTERM or SIGINT). The listening thread ends with the
/// process.
pub(crate) fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("picket-signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let (Ok(mut terminate), Ok(mut interrupt)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                return;
            };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            set.store(true, Ordering::Relaxed);
        });
    })?;
    Ok(flag)
}

/// What to send to this process when the one that started it dies.
pub(crate) fn die_with_parent(signal: rustix::process::Signal) {
    let _ = rustix::process::set_parent_process_death_signal(Some(signal));
}
