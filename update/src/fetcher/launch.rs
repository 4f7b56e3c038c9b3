//! Starting the fetcher, hearing it out, and doing its checks once more.

use super::job::MAX_LINE;
use super::transcript::Replay;
use super::{Job, Places, Refusal, Said, Task};
use crate::clock::Clock;
use crate::engine::{chain, fetch_channel};
use crate::fetch::Releases;
use crate::listing::{Listed, Token};
use crate::sandbox::Identity;
use crate::trust::{TrustClient, TrustError, TrustStore, Trusted};
use picket_durable::Context;
use picket_protocol::{Channel, TargetTriple};
use picket_transport::{Network, NetworkError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// How long the fetcher may say nothing: its own limits on silent lines are shorter, unpacking the largest release on the
/// smallest machine takes a minute.
const SILENCE: Duration = Duration::from_secs(600);
/// How often it is looked whether this process is to end.
const LOOK: Duration = Duration::from_millis(100);
/// The most bytes kept of what it writes to standard error.
const MAX_STDERR: u64 = 16 << 10;

/// Starts fetchers.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// The proven version's executable.
    pub exe: PathBuf,
    /// The user that a fetcher becomes; `None` where this process cannot choose one.
    pub identity: Option<Identity>,
    /// Where the two halves meet.
    pub places: Places,
    /// Variables that say how this machine reaches the network.
    pub environment: Vec<(String, String)>,
    /// `update.releases`, or the bundle that stands in for it: see [`Releases`].
    pub releases: String,
    /// How it introduces itself to servers.
    pub user_agent: String,
    /// `update.stall_limit`.
    pub stall: Duration,
    /// How servers are reached; where the configuration of it cannot be used, that is told as soon as one is to be asked.
    pub network: Result<Network, NetworkError>,
}

/// A look that brought nothing to go by.
#[derive(Debug, thiserror::Error)]
pub enum FetcherError {
    /// The fetcher refuses what the server offers, or could not get it.
    #[error("{}", _0.reason)]
    Refused(Refusal),
    /// It ended without a word.
    #[error("the fetcher, the unprivileged half of the updater, ended without an answer ({0})")]
    Broken(String),
    /// What it accepted does not hold.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It is not known how servers are reached.
    #[error("the release server is not asked: {0}")]
    Network(#[from] NetworkError),
    /// It could not be started.
    #[error("the fetcher cannot be started")]
    Start(#[from] picket_durable::Error),
}

impl Fetcher {
    /// The same for one run that takes its releases from the bundle in its place.
    #[must_use]
    pub fn of_bundle(&self) -> Self {
        Self { releases: Releases::of_bundle(&self.places.bundle()), ..self.clone() }
    }

    /// Brings what is trusted in `store` up to date, and reads the channel: the fetcher first, then, from what it left,
    /// this process.
    ///
    /// # Errors
    /// When the server cannot be reached or offers what is not to be trusted.
    pub fn look(
        &self,
        store: &TrustStore,
        pinned: Option<&[u8]>,
        clock: &Clock,
        channel: &str,
        target: &TargetTriple,
        interrupted: &AtomicBool,
    ) -> Result<(Trusted, Channel), FetcherError> {
        let client = TrustClient::new(store, clock);
        client.root(pinned)?;
        self.prepare()?;
        store.show(&self.places.trust())?;
        let task = Task::Look { channel: channel.to_owned(), target: target.clone() };
        match self.run(task, interrupted, &mut |_| {})? {
            Ok(()) => {}
            // An expired timestamp must be remembered, and only this half's memory counts.
            Err(refusal) if refusal.expired => {}
            Err(refusal) => return Err(FetcherError::Refused(refusal)),
        }
        let releases = Releases::parse(&self.releases).map_err(|e| TrustError::Transport(e.into()))?;
        let replay = Replay { dir: &self.places.transcript(), server: releases.to_string() };
        let replayed = client.refresh(pinned, &replay).and_then(|mut trusted| {
            let channel = fetch_channel(&client, &replay, &mut trusted, channel, target)?;
            Ok((trusted, channel))
        });
        replayed.map_err(|error| match releases {
            Releases::Server(_) => FetcherError::Trust(error),
            Releases::Bundle(_) => FetcherError::Refused(Refusal::of_bundle(&error)),
        })
    }

    /// Downloads, verifies and unpacks an artifact; the outcome lies in the places and is to be checked.
    ///
    /// # Errors
    /// When no fetcher could be started, or it ended without a word.
    pub(crate) fn fetch(
        &self,
        task: Task,
        interrupted: &AtomicBool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Result<(), Refusal>, FetcherError> {
        self.prepare()?;
        self.run(task, interrupted, &mut |said| {
            if let Said::Download { done, total } = said {
                progress(done, total);
            }
        })
    }

    /// The newest releases of a repository, at most `limit`, as its server's API lists them at `api`
    /// (`update.releases_api`).
    ///
    /// # Errors
    /// When the API does not answer, or not with a list.
    pub fn list(
        &self,
        api: &str,
        token: Option<Token>,
        limit: usize,
        target: &TargetTriple,
        interrupted: &AtomicBool,
    ) -> Result<Vec<Listed>, FetcherError> {
        self.prepare()?;
        let task = Task::List { api: api.to_owned(), token, limit, target: target.clone() };
        let mut listed = Vec::new();
        let mut hear = |said| match said {
            Said::Listed(release) if listed.len() < limit => listed.push(release.cleaned()),
            _ => {}
        };
        self.run(task, interrupted, &mut hear)?.map_err(FetcherError::Refused)?;
        Ok(listed)
    }

    /// Makes the places: empty ones for this time's results, the one of earlier downloads where it is missing.
    fn prepare(&self) -> Result<(), picket_durable::Error> {
        let places = &self.places;
        picket_durable::create_dir(places.dir(), 0o755)?;
        for dir in [places.trust(), places.out()] {
            picket_durable::remove_tree(&dir)?;
        }
        picket_durable::create_dir(&places.trust(), 0o755)?;
        for dir in [places.out(), places.downloads()] {
            picket_durable::create_dir(&dir, 0o700)?;
            self.give(&dir)?;
        }
        Ok(())
    }

    fn give(&self, path: &Path) -> Result<(), picket_durable::Error> {
        let Some(identity) = self.identity else { return Ok(()) };
        chown(path, Some(identity.uid), Some(identity.gid)).doing("set the owner of", path)
    }

    fn run(
        &self,
        task: Task,
        interrupted: &AtomicBool,
        told: &mut dyn FnMut(Said),
    ) -> Result<Result<(), Refusal>, FetcherError> {
        let stall_ms = u64::try_from(self.stall.as_millis()).unwrap_or(u64::MAX);
        let network = self.network.clone()?;
        let job = Job { releases: self.releases.clone(), user_agent: self.user_agent.clone(), stall_ms, network, task };
        let mut child = self.start(&job).doing("start", &self.exe)?;
        let heard = hear(&mut child, interrupted, told);
        // It has said its last word, or is not waited for any longer.
        let _ = child.kill();
        let ended = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        heard.map_err(|last| FetcherError::Broken(if last.is_empty() { ended } else { format!("{ended}: {last}") }))
    }

    fn start(&self, job: &Job) -> io::Result<Child> {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&self.exe);
        command.arg("fetcher").arg("--work").arg(self.places.dir()).env_clear().current_dir("/");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(identity) = self.identity {
            // The standard library drops the supplementary groups along with root.
            command.gid(identity.gid).uid(identity.uid);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut line = serde_json::to_vec(job)?;
        line.push(b'\n');
        if let Some(mut input) = child.stdin.take() {
            // One that is dead already is found out when it is heard.
            let _ = input.write_all(&line);
        }
        Ok(child)
    }
}

/// Hears the fetcher out. The error is its last line on standard error, if it had one.
fn hear(
    child: &mut Child,
    interrupted: &AtomicBool,
    told: &mut dyn FnMut(Said),
) -> Result<Result<(), Refusal>, String> {
    let (sender, lines) = mpsc::channel();
    let stdout = child.stdout.take();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout?);
        loop {
            let mut line = Vec::new();
            let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).ok()?;
            // Half a line is the last one of a fetcher that died, or one longer than any may be.
            if read == 0 || line.last() != Some(&b'\n') {
                return None::<()>;
            }
            sender.send(serde_json::from_slice::<Said>(&line).ok()?).ok()?;
        }
    });
    let stderr = child.stderr.take();
    let last_words = thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut pipe) = stderr {
            let _ = pipe.by_ref().take(MAX_STDERR).read_to_end(&mut text);
            let _ = io::copy(&mut pipe, &mut io::sink());
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().to_owned();
        last.chars().filter(|c| !c.is_control()).take(300).collect::<String>()
    });
    let mut since = Instant::now();
    loop {
        match lines.recv_timeout(LOOK) {
            Ok(Said::Accepted) => return Ok(Ok(())),
            Ok(Said::Refused(refusal)) => return Ok(Err(refusal.cleaned())),
            Ok(Said::Confined { how, authorities }) => {
                tracing::info!(how, "the fetcher is confined");
                if authorities == 0 {
                    tracing::warn!(
                        "this machine has no certificate authorities of its own; those built in are believed"
                    );
                }
            }
            Ok(said) => {
                since = Instant::now();
                told(said);
            }
            Err(RecvTimeoutError::Disconnected) => {
                let _ = child.kill();
                return Err(last_words.join().unwrap_or_default());
            }
            Err(RecvTimeoutError::Timeout) if interrupted.load(Ordering::Relaxed) => {
                return Err("the updater was told to stop".to_owned());
            }
            Err(RecvTimeoutError::Timeout) if since.elapsed() >= SILENCE => {
                return Err(format!("it said nothing for {} s", SILENCE.as_secs()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

impl FetcherError {
    /// What it may mean and what to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(refusal) => refusal.hint.clone(),
            Self::Broken(_) => Some("try again; `picket doctor` shows how it is confined".to_owned()),
            Self::Trust(error) => Some(error.hint().to_owned()),
            Self::Network(_) => Some("correct it; `picket config check` shows it, too; nothing was changed".to_owned()),
            Self::Start(error) if error.is_disk_full() => Some("free some space and try again".to_owned()),
            Self::Start(_) => Some("`picket doctor` shows what is missing; `picket install` makes it again".to_owned()),
        }
    }

    /// The error with all its causes, in one line.
    pub fn chain(&self) -> String {
        chain(self)
    }
}
