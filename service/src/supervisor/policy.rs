//! What the supervisor does with the agent: a state machine that takes events and gives deeds.
//!
//! It has no clock, no process and no socket: times come in as seconds since the supervisor started. The limits are the
//! ones of the systemd unit, so that both managers treat an agent alike.

use crate::registrar::ServiceState;
use crate::systemd::units::EXIT_CONFIG;
use std::collections::VecDeque;
use std::time::Duration;

/// How long the agent may take to become ready (`TimeoutStartSec=`).
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to stop before it is killed (`TimeoutStopSec=`).
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long it may be silent once it runs (`WatchdogSec=`).
pub(super) const WATCHDOG: Duration = Duration::from_secs(60);
/// The pause before a restart (`RestartSec=`).
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// More starts than this within [`START_WINDOW`] end in [`ServiceState::Failed`] (`StartLimitBurst=`).
const START_BURST: usize = 10;
/// See [`START_BURST`] (`StartLimitIntervalSec=`).
const START_WINDOW: Duration = Duration::from_secs(300);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody wants it started.
    Start,
    /// Somebody wants it stopped.
    Stop,
    /// Somebody wants it started anew.
    Restart,
    /// It said `READY=1`.
    Ready,
    /// It said `WATCHDOG=1`.
    Alive,
    /// The process ended, with this exit code if it ended by itself.
    Exited(Option<i32>),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// Start a process.
    Spawn,
    /// Ask the process to stop (SIGTERM).
    Terminate,
    /// Kill the process (SIGKILL).
    Kill,
    /// It failed for good: run the recovery (`OnFailure=`).
    Recover,
}

/// The agent as the supervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    phase: Phase,
    since: Duration,
    last_alive: Duration,
    starts: VecDeque<Duration>,
    /// Restarts since somebody last started it.
    pub(super) restarts: u32,
    /// How many processes were started.
    pub(super) run: u64,
    /// Why it is in this phase, for people.
    pub(super) reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Stopped,
    Starting,
    Running,
    Stopping { then_start: bool, killed: bool },
    Backoff,
    Failed,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            phase: Phase::Stopped,
            since: Duration::ZERO,
            last_alive: Duration::ZERO,
            starts: VecDeque::new(),
            restarts: 0,
            run: 0,
            reason: "not started yet".to_owned(),
        }
    }
}

impl Policy {
    /// The state, in the words all managers share.
    pub(super) fn state(&self) -> ServiceState {
        match self.phase {
            Phase::Stopped => ServiceState::Stopped,
            Phase::Starting => ServiceState::Starting,
            Phase::Running => ServiceState::Running,
            Phase::Stopping { then_start: true, .. } | Phase::Backoff => ServiceState::Restarting,
            Phase::Stopping { then_start: false, .. } => ServiceState::Stopping,
            Phase::Failed => ServiceState::Failed,
        }
    }

    /// Takes an event at `now` and says what is to be done.
    pub(super) fn step(&mut self, event: Event, now: Duration) -> Option<Deed> {
        match (event, self.phase) {
            (Event::Start | Event::Restart, Phase::Stopped | Phase::Failed | Phase::Backoff) => {
                self.restarts = 0;
                self.starts.clear();
                Some(self.spawn(now, "started"))
            }
            (Event::Start, Phase::Stopping { then_start: false, killed }) => {
                self.phase = Phase::Stopping { then_start: true, killed };
                None
            }
            (Event::Stop | Event::Restart, Phase::Starting | Phase::Running) => {
                let then_start = event == Event::Restart;
                self.restarts = 0;
                self.starts.clear();
                self.enter(Phase::Stopping { then_start, killed: false }, now, "told to stop");
                Some(Deed::Terminate)
            }
            (Event::Stop, Phase::Stopping { killed, .. }) => {
                self.phase = Phase::Stopping { then_start: false, killed };
                None
            }
            (Event::Stop, Phase::Backoff | Phase::Failed) => {
                self.enter(Phase::Stopped, now, "told to stop");
                None
            }
            (Event::Ready, Phase::Starting) => {
                self.last_alive = now;
                self.enter(Phase::Running, now, "ready");
                None
            }
            (Event::Alive, Phase::Running) => {
                self.last_alive = now;
                None
            }
            (Event::Exited(code), _) => self.exited(code, now),
            (Event::Tick, _) => self.tick(now),
            _ => None,
        }
    }

    fn exited(&mut self, code: Option<i32>, now: Duration) -> Option<Deed> {
        let how = code.map_or_else(|| "killed by a signal".to_owned(), |code| format!("exit code {code}"));
        match self.phase {
            Phase::Stopping { then_start: true, .. } => Some(self.spawn(now, "restarted")),
            Phase::Stopping { then_start: false, .. } => {
                self.enter(Phase::Stopped, now, "stopped");
                None
            }
            _ if code == Some(i32::from(EXIT_CONFIG)) => {
                self.enter(Phase::Failed, now, "its configuration cannot be used");
                Some(Deed::Recover)
            }
            _ => {
                self.starts.retain(|start| now.saturating_sub(*start) < START_WINDOW);
                if self.starts.len() >= START_BURST {
                    self.enter(
                        Phase::Failed,
                        now,
                        &format!("{how}; {START_BURST} starts in {} s", START_WINDOW.as_secs()),
                    );
                    return Some(Deed::Recover);
                }
                self.enter(Phase::Backoff, now, &how);
                None
            }
        }
    }

    fn tick(&mut self, now: Duration) -> Option<Deed> {
        let waited = now.saturating_sub(self.since);
        match self.phase {
            Phase::Starting if waited >= START_LIMIT => {
                Some(self.kill_once(now, &format!("not ready after {} s", START_LIMIT.as_secs())))
            }
            Phase::Running if now.saturating_sub(self.last_alive) >= WATCHDOG => {
                Some(self.kill_once(now, &format!("silent for {} s", WATCHDOG.as_secs())))
            }
            Phase::Stopping { then_start, killed: false } if waited >= STOP_LIMIT => {
                self.phase = Phase::Stopping { then_start, killed: true };
                Some(Deed::Kill)
            }
            Phase::Backoff if waited >= RESTART_PAUSE => {
                self.restarts += 1;
                let reason = format!("restarted after: {}", self.reason);
                Some(self.spawn(now, &reason))
            }
            _ => None,
        }
    }

    /// Kills a process that does not answer; its end is then taken for a failure of its own. The clock is wound so that
    /// the next tick does not kill again while the kernel takes the process down.
    fn kill_once(&mut self, now: Duration, reason: &str) -> Deed {
        self.since = now;
        self.last_alive = now;
        reason.clone_into(&mut self.reason);
        Deed::Kill
    }

    fn spawn(&mut self, now: Duration, reason: &str) -> Deed {
        self.starts.push_back(now);
        self.run += 1;
        self.enter(Phase::Starting, now, reason);
        Deed::Spawn
    }

    fn enter(&mut self, phase: Phase, now: Duration, reason: &str) {
        self.phase = phase;
        self.since = now;
        reason.clone_into(&mut self.reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn running() -> Policy {
        let mut policy = Policy::default();
        assert_eq!(policy.step(Event::Start, at(0)), Some(Deed::Spawn));
        assert_eq!(policy.step(Event::Ready, at(1)), None);
        assert_eq!(policy.state(), ServiceState::Running);
        policy
    }

    #[test]
    fn a_crashed_agent_is_started_again_after_a_pause_and_counted() {
        let mut policy = running();
        assert_eq!(policy.step(Event::Exited(Some(1)), at(5)), None);
        assert_eq!(policy.state(), ServiceState::Restarting);
        assert_eq!(policy.step(Event::Tick, at(5)), None);
        assert_eq!(policy.step(Event::Tick, at(6)), Some(Deed::Spawn));
        assert_eq!((policy.restarts, policy.run), (1, 2));
    }

    #[test]
    fn a_crash_loop_ends_and_calls_the_recovery() {
        let mut policy = Policy::default();
        policy.step(Event::Start, at(0));
        let mut now = 0;
        let deed = loop {
            if let Some(deed) = policy.step(Event::Exited(Some(101)), at(now)) {
                break deed;
            }
            now += 1;
            assert_eq!(policy.step(Event::Tick, at(now)), Some(Deed::Spawn));
            assert!(now < 100, "the loop never ended");
        };
        assert_eq!((deed, policy.state(), policy.run), (Deed::Recover, ServiceState::Failed, 10));
    }

    #[test]
    fn an_agent_with_an_unusable_configuration_is_not_started_again() {
        let mut policy = running();
        assert_eq!(policy.step(Event::Exited(Some(78)), at(2)), Some(Deed::Recover));
        assert_eq!(policy.step(Event::Tick, at(100)), None);
        assert_eq!(policy.state(), ServiceState::Failed);
    }

    #[test]
    fn an_agent_that_never_becomes_ready_or_falls_silent_is_killed() {
        let mut policy = Policy::default();
        policy.step(Event::Start, at(0));
        assert_eq!(policy.step(Event::Tick, at(29)), None);
        assert_eq!(policy.step(Event::Tick, at(30)), Some(Deed::Kill));

        let mut policy = running();
        policy.step(Event::Alive, at(50));
        assert_eq!(policy.step(Event::Tick, at(109)), None);
        assert_eq!(policy.step(Event::Tick, at(110)), Some(Deed::Kill));
    }

    #[test]
    fn an_agent_that_ignores_the_request_to_stop_is_killed_once() {
        let mut policy = running();
        assert_eq!(policy.step(Event::Stop, at(10)), Some(Deed::Terminate));
        assert_eq!(policy.step(Event::Tick, at(29)), None);
        assert_eq!(policy.step(Event::Tick, at(30)), Some(Deed::Kill));
        assert_eq!(policy.step(Event::Tick, at(60)), None);
        policy.step(Event::Exited(None), at(61));
        assert_eq!(policy.state(), ServiceState::Stopped);
        assert_eq!(policy.step(Event::Tick, at(100)), None);
    }

    #[test]
    fn a_restart_stops_first_and_is_not_counted_as_a_crash() {
        let mut policy = running();
        assert_eq!(policy.step(Event::Restart, at(10)), Some(Deed::Terminate));
        assert_eq!(policy.step(Event::Exited(Some(0)), at(11)), Some(Deed::Spawn));
        assert_eq!(policy.restarts, 0);
    }

    proptest! {
        /// Whatever happens in whatever order: never two processes at once, and none is signalled that is not there.
        #[test]
        fn there_is_never_more_than_one_process(events in proptest::collection::vec((0u8..8, 0u64..40), 0..200)) {
            let mut policy = Policy::default();
            let (mut alive, mut now) = (false, 0);
            for (event, pause) in events {
                now += pause;
                let event = match event {
                    0 => Event::Start,
                    1 => Event::Stop,
                    2 => Event::Restart,
                    3 if alive => Event::Ready,
                    4 if alive => Event::Alive,
                    5 if alive => Event::Exited(Some(1)),
                    6 if alive => Event::Exited(None),
                    _ => Event::Tick,
                };
                if matches!(event, Event::Exited(_)) {
                    alive = false;
                }
                match policy.step(event, at(now)) {
                    Some(Deed::Spawn) => {
                        prop_assert!(!alive, "a second process was started");
                        alive = true;
                    }
                    Some(Deed::Terminate | Deed::Kill) => prop_assert!(alive, "nobody to signal"),
                    Some(Deed::Recover) => prop_assert!(!alive),
                    None => {}
                }
            }
        }
    }
}
