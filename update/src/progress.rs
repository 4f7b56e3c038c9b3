//! What an update tells while it runs: one JSON object a line, for `update apply` to follow and for anybody to read.
//!
//! The file lies in a folder of this boot and is begun anew with each run. It is a convenience: nothing is decided by
//! it, and an updater that cannot write it goes on without.

use crate::clock::Clock;
use picket_protocol::update_status::UpdateOutcome;
use semver::Version;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How often a running figure (bytes, countdown) is told.
const FIGURE_PAUSE: Duration = Duration::from_millis(200);

/// Something worth telling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A run of the updater began.
    Started {
        /// The request it serves, where one was made.
        request: Option<String>,
    },
    /// An update to `to` begins.
    Update {
        /// Its id.
        id: String,
        /// From which version.
        from: Version,
        /// To which.
        to: Version,
    },
    /// A step begins.
    Step {
        /// Its name.
        step: String,
        /// What happens in it, for people.
        text: String,
    },
    /// Bytes have arrived.
    Download {
        /// How many are there.
        done: u64,
        /// How many it will be.
        total: u64,
    },
    /// The trial goes on.
    Gate {
        /// Milliseconds since its start.
        elapsed_ms: u64,
        /// Whether the new version is ready.
        ready: bool,
        /// Milliseconds of soak that are left, once it is ready.
        left_ms: Option<u64>,
    },
    /// Something to know.
    Note {
        /// In words.
        text: String,
    },
    /// The run is over.
    Finished {
        /// How the update ended; `None` when there was nothing to do.
        outcome: Option<UpdateOutcome>,
        /// The version that runs now.
        version: Option<Version>,
        /// In words.
        reason: String,
        /// What to do about it, where there is something.
        hint: Option<String>,
        /// What kept the run from deciding, where something did.
        trouble: Option<Trouble>,
    },
}

/// What kept a run from deciding, in kinds that scripts tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// The vendor's signatures, hashes or dates speak against it.
    Untrusted,
    /// The network or a server did not answer.
    Network,
    /// What was asked for is not possible.
    Refused,
    /// The machine is in the way: files, hooks, the service manager.
    Machine,
}

impl Event {
    /// The gate's countdown.
    pub(crate) fn gate(elapsed: Duration, ready_at: Option<Duration>, left: Option<Duration>) -> Self {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Self::Gate { elapsed_ms: millis(elapsed), ready: ready_at.is_some(), left_ms: left.map(millis) }
    }

    fn is_figure(&self) -> bool {
        matches!(self, Self::Download { .. } | Self::Gate { .. })
    }
}

/// One line of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// When.
    pub at: jiff::Timestamp,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// The same event for the log.
fn log(event: &Event) {
    match event {
        Event::Started { request } => tracing::info!(request, "the updater runs"),
        Event::Update { id, from, to } => tracing::info!(id, %from, %to, "an update begins"),
        Event::Step { step, text } => tracing::info!(step, "{text}"),
        Event::Note { text } => tracing::info!("{text}"),
        Event::Finished { outcome, version, reason, .. } => {
            let version = version.as_ref().map(ToString::to_string);
            tracing::info!(?outcome, version, "{reason}");
        }
        Event::Download { .. } | Event::Gate { .. } => {}
    }
}

/// Where events are told.
#[derive(Debug)]
pub struct Progress {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: Option<File>,
    last_figure: Option<Instant>,
}

impl Progress {
    /// Begins the file at `path` anew.
    pub fn begin(path: &Path, clock: &Clock) -> Self {
        // A new file instead of an emptied one: whoever follows the old one still has it whole.
        let _ = std::fs::remove_file(path);
        let file = OpenOptions::new().append(true).create_new(true).mode(0o644).open(path);
        if let Err(error) = &file {
            tracing::warn!(%error, path = %path.display(), "progress cannot be shown");
        }
        Self { clock: clock.clone(), state: Mutex::new(State { file: file.ok(), last_figure: None }) }
    }

    /// Tells nobody.
    pub fn silent() -> Self {
        Self { clock: Clock::system(), state: Mutex::new(State { file: None, last_figure: None }) }
    }

    /// Tells an event; figures at most five times a second.
    pub fn tell(&self, event: Event) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if event.is_figure() {
            if state.last_figure.is_some_and(|last| last.elapsed() < FIGURE_PAUSE) {
                return;
            }
            state.last_figure = Some(Instant::now());
        } else {
            state.last_figure = None;
            log(&event);
        }
        if let Some(file) = &mut state.file
            && let Ok(mut line) = serde_json::to_vec(&Line { at: self.clock.now(), event })
        {
            line.push(b'\n');
            let _ = file.write_all(&line);
        }
    }

    /// Tells that `step` begins.
    pub fn step(&self, step: crate::journal::Step, text: impl Into<String>) {
        self.tell(Event::Step { step: step.as_str().to_owned(), text: text.into() });
    }

    /// Tells something to know.
    pub fn note(&self, text: impl Into<String>) {
        self.tell(Event::Note { text: text.into() });
    }
}
