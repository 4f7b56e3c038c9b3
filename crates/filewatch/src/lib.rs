//! What happens to files: fanotify, inotify, and the difference to a baseline.
//!
//! [`FileWatcher`] watches the configured paths and tells what happens in them as events of `picket_protocol`: created,
//! modified, deleted, renamed, attributes; and every gap. Three threads do it: one reads the kernel's queue, one knows
//! the baseline and decides, one hashes and tells. Each queue between them is bounded and makes the one before it wait;
//! the first of all is the kernel's, which says when it runs over. Then a gap is told, and what was missed is found by
//! comparing the file system with the baseline.
//!
//! - With `CAP_SYS_ADMIN` the kernel tells of whole file systems (fanotify), in order and with who did it. Without, each
//!   folder has an inotify watch, added before the folder is read.
//! - At the start, what changed while nobody watched is told as a difference (method `rescan`, confidence `inferred`).
//!   The very first look at a path tells nothing.
//! - The events, applied to the first listing in their order, give the listing of now. The rename of a folder stands for
//!   all below it; whatever else happens to a folder is told for each file in it.
//! - File systems mounted below a path are entered, made-up ones (proc, sysfs, cgroup, …) are not. Symbolic links are
//!   not followed, but for a configured path that is one.
//!
//! What it does not see: writes through a memory map before the file is closed, changes that other machines make on a
//! network file system (found at the next comparison), and a second name of a file that was written through its first.

mod baseline;
mod counters;
mod emit;
mod fanotify;
mod filter;
mod folders;
mod mounts;
mod notice;
mod reader;
mod settings;
mod stat;
mod tracker;
mod watches;

pub use baseline::BaselineError;
pub use counters::Counters;
pub use settings::{FileMonitorSettings, Pattern, WatchPath};

use counters::{Counts, Status};
use emit::Emitter;
use fanotify::Group;
use filter::Filter;
use picket_protocol::event::Sink;
use picket_protocol::{Sight, SightLevel};
use reader::Queues;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify::{self, CreateFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use tracker::{Parts, Tracker};

/// Whether to use what only a privileged process may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privileged {
    /// Where the kernel lets us.
    Auto,
    /// Not even then.
    Never,
}

/// How a watcher is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the operator configured.
    pub settings: FileMonitorSettings,
    /// The folder of the baseline, this process's own; it must exist. It is never watched.
    pub state_dir: PathBuf,
    /// Other files and folders that this process writes itself; they are never watched either.
    pub own: Vec<PathBuf>,
    /// Whether fanotify may be used.
    pub privileged: Privileged,
    /// Whether what this very process does is left out, where the kernel tells who did it (fanotify).
    pub ignore_self: bool,
}

/// The watcher could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The baseline could not be opened, nor made anew.
    #[error(transparent)]
    Baseline(#[from] BaselineError),
    /// The system refused what the watcher needs.
    #[error("cannot {operation} to watch files")]
    System {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The globs are too much for their matcher.
    #[error("cannot use the globs of file_monitor: {0}")]
    Globs(String),
}

/// Watches files until it is stopped or dropped.
#[derive(Debug)]
pub struct FileWatcher {
    running: Option<Running>,
    counts: Arc<Counts>,
    status: Arc<Status>,
}

#[derive(Debug)]
struct Running {
    stop: Arc<OwnedFd>,
    reader: JoinHandle<()>,
    tracker: JoinHandle<()>,
}

impl FileWatcher {
    /// Starts to watch. Returns at once; the first look goes on in the background.
    ///
    /// # Errors
    /// A baseline that can neither be opened nor made, or no descriptors or threads left. A configured path that is not
    /// there is no error: it is taken up when it appears.
    pub fn start(options: Options, sink: Sink) -> Result<Self, WatchError> {
        let (counts, status) = (Arc::new(Counts::default()), Arc::new(Status::default()));
        let settings = options.settings;
        if !settings.enabled || settings.paths.is_empty() {
            return Ok(Self { running: None, counts, status });
        }
        let system = |operation| move |source| WatchError::System { operation, source };
        let mut own = options.own;
        own.push(options.state_dir.clone());
        let fanotify = group(options.privileged, options.ignore_self, &status);
        if let Some(group) = &fanotify {
            own.iter().for_each(|folder| group.leave_out(folder));
        }
        let filter = Filter::new(&settings, own).map_err(|error| WatchError::Globs(error.to_string()))?;
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).map_err(io::Error::from).map_err(system("make an inotify queue"))?;
        let inotify = Arc::new(inotify);
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from).map_err(system("make an eventfd"))?;
        let stop = Arc::new(stop);
        let emitter = Emitter::start(sink, Arc::clone(&counts)).map_err(system("start a thread"))?;
        let (batch_sender, batches) = sync_channel(reader::BATCHES);
        let queues = Arc::new(Queues::new(inotify, fanotify));
        let tracker = Tracker::new(Parts {
            settings,
            state_dir: options.state_dir,
            filter,
            queues: Arc::clone(&queues),
            emitter,
            counts: Arc::clone(&counts),
            status: Arc::clone(&status),
            batches,
        })?;
        let stopped = Arc::clone(&stop);
        let reader = std::thread::Builder::new()
            .name("files-read".to_owned())
            .spawn(move || reader::read_all(&queues, &stopped, &batch_sender))
            .map_err(system("start a thread"))?;
        let tracker = std::thread::Builder::new()
            .name("files-track".to_owned())
            .spawn(move || tracker.run())
            .map_err(system("start a thread"))?;
        Ok(Self { running: Some(Running { stop, reader, tracker }), counts, status })
    }

    /// How much is seen, and what would change that.
    pub fn sight(&self) -> Sight {
        if self.running.is_none() {
            return Sight {
                source: "files".to_owned(),
                level: SightLevel::Off,
                method: String::new(),
                detail: String::new(),
            };
        }
        self.status.sight(&self.counts)
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        self.counts.read()
    }

    /// Tells what is known, keeps the baseline, and ends all threads. What the kernel still holds is found as a
    /// difference at the next start.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(running) = self.running.take() else { return };
        let _ = rustix::io::write(&running.stop, &1_u64.to_ne_bytes());
        let _ = running.reader.join();
        let _ = running.tracker.join();
    }
}

impl Drop for FileWatcher {
    fn drop(&mut self) {
        self.end();
    }
}

/// A fanotify group where we may have one; otherwise the sight says why not.
fn group(privileged: Privileged, ignore_self: bool, status: &Status) -> Option<Arc<Group>> {
    let ignored = ignore_self.then(std::process::id);
    let refused = match privileged {
        Privileged::Never => "fanotify is not to be used".to_owned(),
        Privileged::Auto => match Group::new(ignored) {
            Ok(group) => return Some(Arc::new(group)),
            Err(nix::errno::Errno::EPERM) => "fanotify needs CAP_SYS_ADMIN".to_owned(),
            Err(error) => format!("fanotify is not to be had ({error}; it needs Linux 5.9)"),
        },
    };
    tracing::info!(reason = refused, "files are watched by inotify");
    status.change(|facts| facts.unprivileged = Some(refused));
    None
}
