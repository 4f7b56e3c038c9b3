//! The supervisor's event loop: signals, requests, notifications, children and the clock, one at a time.

use super::control::{Answer, MAX_MESSAGE, Request, socket_path};
use super::logfile::{NAME, Sink};
use super::policy::{Deed, Event, Policy};
use super::process::{bury_orphans, send, spawn};
use super::scope_arguments;
use crate::registrar::{ServiceError, ServiceStatus};
use picket_durable::Lock;
use picket_layout::Layout;
use rustix::process::Signal;
use semver::Version;
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixDatagram, UnixListener, UnixStream};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

/// How often time passes for the policy, the wish and the schedule.
const TICK: Duration = Duration::from_millis(250);
/// How long the recovery at the start may take before the agent is started without it.
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);
/// How often to look whether a release that waited has its turn.
const DUE_LOOK: Duration = Duration::from_secs(1);
/// How long to let be after the updater was started for that: it may have found no network.
const DUE_PAUSE: Duration = Duration::from_secs(300);
/// How long a request may take to arrive: the socket is ours alone, but a stopped client must not stop us.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// What the supervisor is started with.
pub struct Options {
    /// The installation it runs.
    pub layout: Layout,
    /// Whether it was started in the background: its log then goes to the log file.
    pub detached: bool,
    /// When the updater is to be started next, after the given time.
    pub next_update: Box<dyn Fn(jiff::Timestamp) -> jiff::Timestamp>,
    /// Whether a release waited for its time, and that is now.
    pub is_due: Box<dyn Fn(jiff::Timestamp) -> bool>,
}

/// A child that runs beside the agent and ends by itself. There is one at a time: the updater has one lock.
struct Job {
    child: Child,
    kind: JobKind,
    began: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum JobKind {
    /// `update run`.
    Update,
    /// `update recover`; at the supervisor's own start the agent waits for it, as the units are ordered at boot.
    Recovery { then_start: bool },
}

struct Server {
    options: Options,
    sink: Arc<Mutex<Sink>>,
    notify_path: PathBuf,
    began: Instant,
    policy: Policy,
    agent: Option<Child>,
    job: Option<Job>,
    trial: Option<(Version, PathBuf)>,
    next_update: jiff::Timestamp,
    next_due_look: Instant,
    ending: bool,
}

/// Runs until SIGTERM, SIGINT or a request to end.
///
/// # Errors
/// When another supervisor of this installation runs, or its sockets cannot be made.
pub fn run(options: Options) -> Result<(), ServiceError> {
    let layout = &options.layout;
    picket_durable::create_dir(layout.run_dir(), 0o750)?;
    picket_durable::create_dir(layout.log_dir(), 0o750)?;
    let lock = Lock::acquire(&layout.run_dir().join("supervisor.lock"))
        .map_err(|e| ServiceError::Supervisor(format!("another supervisor of this installation runs: {e}")))?;
    if options.detached {
        // A session of its own: closing the terminal does not end it.
        let _ = rustix::process::setsid();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ServiceError::Spawn { program: "the event loop".to_owned(), source })?;
    let result = runtime.block_on(serve(options));
    drop(lock);
    result
}

async fn serve(options: Options) -> Result<(), ServiceError> {
    let control_path = options.layout.supervisor_socket();
    let notify_path = options.layout.run_dir().join("notify.sock");
    let control = bind(&control_path, |path| UnixListener::bind(path))?;
    let notify = bind(&notify_path, |path| UnixDatagram::bind(path))?;
    let io_error = |source| ServiceError::Spawn { program: "the signal handlers".to_owned(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(io_error)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error)?;
    let mut child_ended = signal(SignalKind::child()).map_err(io_error)?;

    let sink = if options.detached {
        Sink::File { path: options.layout.log_dir().join(NAME), open: None }
    } else {
        Sink::Stderr
    };
    let next_update = (options.next_update)(jiff::Timestamp::now());
    let mut server = Server {
        options,
        sink: Arc::new(Mutex::new(sink)),
        notify_path: notify_path.clone(),
        began: Instant::now(),
        policy: Policy::default(),
        agent: None,
        job: None,
        trial: None,
        next_update,
        next_due_look: Instant::now(),
        ending: false,
    };
    server.start_recovery(true);

    let mut tick = tokio::time::interval(TICK);
    let mut datagram = [0; 4096];
    while !server.is_over() {
        tokio::select! {
            _ = terminate.recv() => server.end(),
            _ = interrupt.recv() => server.end(),
            _ = child_ended.recv() => server.bury(),
            _ = tick.tick() => server.tick(),
            status = wait(server.agent.as_mut()) => server.agent_exited(status),
            status = wait(server.job.as_mut().map(|job| &mut job.child)) => server.job_exited(status),
            Ok(length) = notify.recv(&mut datagram) => server.notified(&datagram[..length]),
            Ok((stream, _)) = control.accept() => server.answer(stream).await,
        }
    }
    let _ = picket_durable::remove_if_present(&control_path);
    let _ = picket_durable::remove_if_present(&notify_path);
    Ok(())
}

/// Binds a socket that only its owner may use; what a killed supervisor left behind is replaced.
fn bind<T>(path: &Path, bind: impl Fn(&Path) -> io::Result<T>) -> Result<T, ServiceError> {
    socket_path(path)?;
    picket_durable::remove_if_present(path)?;
    let failed = |e: io::Error| ServiceError::Supervisor(format!("cannot listen on {}: {e}", path.display()));
    let socket = bind(path).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(socket)
}

/// Waits for a child that may not be there.
async fn wait(child: Option<&mut Child>) -> io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

impl Server {
    fn is_over(&self) -> bool {
        self.ending && self.agent.is_none() && self.job.is_none()
    }

    fn end(&mut self) {
        tracing::info!("the supervisor ends");
        self.ending = true;
        if let Some(job) = &self.job {
            send(&job.child, Signal::TERM);
        }
        self.apply(Event::Stop);
    }

    fn bury(&self) {
        if std::process::id() == 1 {
            let job = self.job.as_ref().map(|job| &job.child);
            let own: HashSet<u32> = self.agent.iter().chain(job).filter_map(Child::id).collect();
            bury_orphans(&own);
        }
    }

    fn tick(&mut self) {
        self.apply(Event::Tick);
        let too_long = |job: &&Job| job.kind != JobKind::Update && job.began.elapsed() > RECOVERY_LIMIT;
        if let Some(job) = self.job.as_ref().filter(too_long) {
            tracing::error!("the recovery takes too long; going on without it");
            send(&job.child, Signal::KILL);
        }
        if self.ending || self.job.is_some() {
            return;
        }
        let now = jiff::Timestamp::now();
        let wished = std::fs::symlink_metadata(self.options.layout.wish()).is_ok();
        if now >= self.next_update || wished {
            self.next_update = (self.options.next_update)(now);
            self.start_updater();
        } else if self.next_due_look <= Instant::now() {
            let due = (self.options.is_due)(now);
            self.next_due_look = Instant::now() + if due { DUE_PAUSE } else { DUE_LOOK };
            if due {
                self.start_updater();
            }
        }
    }

    fn arguments(&self, words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).chain(scope_arguments(&self.options.layout)).collect()
    }

    /// Lets an event change the policy, and does what it says.
    fn apply(&mut self, event: Event) {
        match self.policy.step(event, self.began.elapsed()) {
            Some(Deed::Spawn) => self.spawn_agent(),
            Some(Deed::Terminate) => self.signal_agent(Signal::TERM),
            Some(Deed::Kill) => {
                tracing::warn!(reason = self.policy.reason, "the agent is killed");
                self.signal_agent(Signal::KILL);
            }
            Some(Deed::Recover) => {
                tracing::error!(reason = self.policy.reason, "the agent failed; running the recovery");
                self.start_recovery(false);
            }
            None => {}
        }
    }

    fn signal_agent(&self, signal: Signal) {
        if let Some(agent) = &self.agent {
            send(agent, signal);
        }
    }

    fn spawn_agent(&mut self) {
        let exe = match &self.trial {
            Some((_, exe)) => exe.clone(),
            None => self.options.layout.current_exe(),
        };
        match spawn(&exe, &self.arguments(&["agent", "run"]), Some(&self.notify_path), &self.sink) {
            Ok(child) => self.agent = Some(child),
            Err(error) => {
                tracing::error!(%error, exe = %exe.display(), "the agent cannot be started");
                // 203 is what systemd calls EXIT_EXEC.
                self.apply(Event::Exited(Some(203)));
            }
        }
    }

    fn agent_exited(&mut self, status: io::Result<ExitStatus>) {
        self.agent = None;
        let code = status.ok().and_then(|status| status.code());
        tracing::info!(?code, "the agent ended");
        self.apply(Event::Exited(code));
    }

    fn start_updater(&mut self) {
        self.start_job(&["update", "run"], JobKind::Update);
    }

    fn start_recovery(&mut self, then_start: bool) {
        if self.job.is_none() && !self.ending {
            self.start_job(&["update", "recover"], JobKind::Recovery { then_start });
        }
    }

    fn start_job(&mut self, words: &[&str], kind: JobKind) {
        let exe = self.options.layout.current_exe();
        match spawn(&exe, &self.arguments(words), None, &self.sink) {
            Ok(child) => self.job = Some(Job { child, kind, began: Instant::now() }),
            Err(error) => {
                tracing::error!(%error, exe = %exe.display(), words = words.join(" "), "cannot be started");
                self.job_over(kind, false);
            }
        }
    }

    fn job_exited(&mut self, status: io::Result<ExitStatus>) {
        if let Some(job) = self.job.take() {
            self.job_over(job.kind, status.is_ok_and(|status| status.success()));
        }
    }

    fn job_over(&mut self, kind: JobKind, success: bool) {
        match kind {
            // It was killed, or gave up: its journal may hold an update that is neither done nor undone.
            JobKind::Update if !success => self.start_recovery(false),
            JobKind::Recovery { then_start: true } if !self.ending => self.apply(Event::Start),
            _ => {}
        }
    }

    fn notified(&mut self, message: &[u8]) {
        for line in String::from_utf8_lossy(message).lines() {
            match line {
                "READY=1" => self.apply(Event::Ready),
                "WATCHDOG=1" => self.apply(Event::Alive),
                _ => {}
            }
        }
    }

    async fn answer(&mut self, mut stream: UnixStream) {
        let mut bytes = Vec::new();
        let read = async { (&mut stream).take(MAX_MESSAGE).read_to_end(&mut bytes).await };
        if !matches!(tokio::time::timeout(REQUEST_LIMIT, read).await, Ok(Ok(_))) {
            return;
        }
        let error = match serde_json::from_slice(&bytes) {
            Ok(request) => self.obey(request).err(),
            Err(error) => Some(format!("the request cannot be read: {error}")),
        };
        let answer = self.describe(error);
        let bytes = serde_json::to_vec(&answer).unwrap_or_default();
        let _ = tokio::time::timeout(REQUEST_LIMIT, stream.write_all(&bytes)).await;
    }

    fn obey(&mut self, request: Request) -> Result<(), String> {
        match request {
            Request::Status => {}
            Request::Start => self.apply(Event::Start),
            Request::Stop => self.apply(Event::Stop),
            Request::Restart => self.apply(Event::Restart),
            Request::BeginTrial { version, exe } => {
                let versions = self.options.layout.versions_dir();
                if !exe.starts_with(&versions) {
                    return Err(format!("{} is not below {}", exe.display(), versions.display()));
                }
                self.trial = Some((version, exe));
                self.apply(Event::Restart);
            }
            Request::EndTrial => self.trial = None,
            Request::Update if self.job.is_some() => {}
            Request::Update => {
                self.start_updater();
                if self.job.is_none() {
                    return Err("the updater cannot be started; see the log".to_owned());
                }
            }
            Request::Shutdown => self.end(),
        }
        Ok(())
    }

    fn describe(&self, error: Option<String>) -> Answer {
        let state = self.policy.state();
        Answer {
            error,
            agent: ServiceStatus {
                manager: "supervisor".to_owned(),
                state,
                enabled: true,
                pid: self.agent.as_ref().and_then(Child::id),
                restarts: self.policy.restarts,
                run: self.policy.run.to_string(),
                detail: format!("{} ({})", state.as_str(), self.policy.reason),
                // One process: it watches by itself.
                sensor: None,
                hub: None,
            },
            trial: self.trial.as_ref().map(|(version, _)| version.clone()),
            updater: self.job.is_some(),
            pid: std::process::id(),
        }
    }
}
