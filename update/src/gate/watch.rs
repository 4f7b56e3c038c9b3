//! Making the observations: the service manager, the health port, the fetch of the release metadata, the hooks.

use super::judge::{Checks, Decision, FetchRound, Judge, Observation, Rules};
use super::{Baseline, Evidence, Fault, Probe, Verdict, local_checks, seen_checks};
use crate::hooks::{HookKind, HookResult, Hooks};
use crate::machine::{Machine, MachineError};
use crate::progress::{Event, Progress};
use picket_protocol::LivezReport;
use semver::Version;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// How often the trial is looked at: a crash is seen within this.
const LOOK: Duration = Duration::from_millis(100);
/// How often the health checks are read.
const CHECKS: Duration = Duration::from_millis(500);
/// The pause between two rounds of fetching the release metadata.
const FETCH_PAUSE: Duration = Duration::from_secs(2);

/// Fetches and verifies the release metadata: once as the candidate does it, once as the judge does.
pub trait ReleaseFetch: Send + Sync {
    /// The candidate's own updater, run beside it.
    fn candidate(&self) -> Result<(), String>;
    /// The judge's.
    fn judge(&self) -> Result<(), String>;
}

/// What a trial is judged by.
#[derive(Debug, Clone, Copy)]
pub struct GateSettings {
    /// From the start to ready.
    pub start_deadline: Duration,
    /// From ready to the verdict.
    pub soak: Duration,
    /// From the end of the soak to giving up on the release server.
    pub network_patience: Duration,
}

/// One trial's gate.
pub struct Gate<'a> {
    /// The version on trial.
    pub version: &'a Version,
    /// The run of the proven version, as the service manager named it just before.
    pub old_run: String,
    /// The limits.
    pub settings: GateSettings,
    /// The proven version's health just before.
    pub baseline: &'a Baseline,
    /// The service manager.
    pub machine: &'a dyn Machine,
    /// The health port.
    pub probe: &'a dyn Probe,
    /// How to fetch; `None` where no releases are followed, or the version was proven before.
    pub fetch: Option<Arc<dyn ReleaseFetch>>,
    /// The hooks that decide, and those that are only heard.
    pub hooks: [Hooks; 2],
    /// Where progress is told.
    pub progress: &'a Progress,
    /// Set when the updater is told to stop.
    pub interrupted: &'a AtomicBool,
}

impl Gate<'_> {
    /// Watches the trial to its end.
    ///
    /// # Errors
    /// Only when the service manager cannot be asked any more; what it said before stays in `evidence`.
    pub fn watch(&self, evidence: &mut Evidence) -> Result<Verdict, MachineError> {
        let rules = Rules {
            version: self.version.clone(),
            start_deadline: self.settings.start_deadline,
            soak: self.settings.soak,
            network_patience: self.settings.network_patience,
            must_fetch: self.fetch.is_some(),
            old_run: self.old_run.clone(),
        };
        let mut judge = Judge::new(rules, self.baseline);
        let began = Instant::now();
        let mut rounds = FetchRounds::new(self.fetch.clone());
        let mut checked = None;
        let verdict = loop {
            if self.interrupted.load(Ordering::Relaxed) {
                let reason = "the updater was told to stop during the trial".to_owned();
                break Verdict::Fail { reason, fault: Fault::Interrupted };
            }
            let seen = self.look(began, judge.ready_at(), &mut rounds, &mut checked, evidence)?;
            let decision = judge.see(&seen);
            evidence.see_service(&seen.service, &self.old_run);
            evidence.ready_after_ms = judge.ready_at().map(millis);
            match decision {
                Decision::Wait(left) => self.progress.tell(Event::gate(seen.at, judge.ready_at(), left)),
                Decision::Fail(verdict) => break verdict,
                Decision::RunHooks => break self.ask_hooks(evidence),
            }
            std::thread::sleep(LOOK);
        };
        evidence.watched_ms = Some(millis(began.elapsed()));
        Ok(verdict)
    }

    fn look(
        &self,
        began: Instant,
        ready_at: Option<Duration>,
        rounds: &mut FetchRounds,
        checked: &mut Option<Instant>,
        evidence: &mut Evidence,
    ) -> Result<Observation, MachineError> {
        let service = self.machine.view()?;
        let livez: Option<LivezReport> = self.probe.livez();
        let due = ready_at.is_some() && checked.is_none_or(|at| at.elapsed() >= CHECKS);
        let checks = match due.then(|| self.probe.health()) {
            None => Checks::NotAsked,
            Some(None) => Checks::Unread,
            Some(Some(report)) => {
                evidence.checks_after = seen_checks(&report);
                Checks::Seen(local_checks(&report))
            }
        };
        if due {
            *checked = Some(Instant::now());
        }
        // The candidate's fetch would only slow its start down.
        let fetch = if ready_at.is_some() { rounds.poll() } else { None };
        if let Some(round) = &fetch {
            let told = |result: &Result<(), String>| result.clone().err().unwrap_or_else(|| "ok".to_owned());
            evidence.candidate_fetch = Some(told(&round.candidate));
            evidence.judge_fetch = round.judge.as_ref().map(told).or(evidence.judge_fetch.take());
        }
        Ok(Observation { at: began.elapsed(), service, livez, checks, fetch })
    }

    fn ask_hooks(&self, evidence: &mut Evidence) -> Verdict {
        for hooks in &self.hooks {
            match hooks.run() {
                Ok(results) => evidence.hooks.extend(results),
                Err(error) => {
                    evidence.hooks.push(hooks.not_run(&error));
                    if hooks.kind.decides() {
                        return Verdict::Fail { reason: error.to_string(), fault: Fault::Environment };
                    }
                    tracing::warn!(%error, "wanted health hooks were not run");
                }
            }
        }
        let failed = |hook: &&HookResult| hook.kind == HookKind::Required && !hook.ok;
        match evidence.hooks.iter().find(failed) {
            Some(hook) => {
                let reason = format!("the required health hook {} failed ({})", hook.hook, hook.detail);
                Verdict::Fail { reason, fault: Fault::Version }
            }
            None => Verdict::Pass,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Fetches in the background, one round after the other, so that a hanging network does not blind the gate.
struct FetchRounds {
    fetch: Option<Arc<dyn ReleaseFetch>>,
    running: Option<Receiver<FetchRound>>,
    next: Instant,
}

impl FetchRounds {
    fn new(fetch: Option<Arc<dyn ReleaseFetch>>) -> Self {
        Self { fetch, running: None, next: Instant::now() }
    }

    /// A round that ended since the last call; begins the next one when it is time. Stops after the first success.
    fn poll(&mut self) -> Option<FetchRound> {
        if let Some(running) = &self.running {
            return match running.try_recv() {
                Ok(round) => {
                    self.running = None;
                    self.next = Instant::now() + FETCH_PAUSE;
                    if round.candidate.is_ok() {
                        self.fetch = None;
                    }
                    Some(round)
                }
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => {
                    self.running = None;
                    None
                }
            };
        }
        if Instant::now() >= self.next
            && let Some(fetch) = self.fetch.clone()
        {
            let (send, receive) = sync_channel(1);
            self.running = Some(receive);
            // The thread ends with the round; if the gate is gone by then, nobody hears it.
            std::thread::spawn(move || {
                let candidate = fetch.candidate();
                let judge = candidate.is_err().then(|| fetch.judge());
                let _ = send.send(FetchRound { candidate, judge });
            });
        }
        None
    }
}
