//! The decision of the gate: a pure state machine over observations.

use super::{Baseline, Fault, Verdict};
use crate::machine::{ServiceView, ViewState};
use picket_protocol::{CheckStatus, LivezReport};
use semver::Version;
use std::collections::BTreeMap;
use std::time::Duration;

/// A ready agent may miss this many answers in a row (each observation waits two seconds at most): a busy machine is no
/// bad version, a stuck one is.
const MISSED_ANSWERS: u32 = 3;
/// A local check must be worse for this many observations in a row, so that a check that is still warming up does not
/// convict.
const WORSE_OBSERVATIONS: u32 = 10;
/// The candidate must fail to fetch this many times in a row while the judge succeeds.
const FAILED_FETCHES: u32 = 2;

/// The rules of one trial.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// The version on trial.
    pub(crate) version: Version,
    /// From the start to ready.
    pub(crate) start_deadline: Duration,
    /// From ready to the verdict.
    pub(crate) soak: Duration,
    /// From the end of the soak to giving up on the release server.
    pub(crate) network_patience: Duration,
    /// Whether the candidate must show that it can take the next update.
    pub(crate) must_fetch: bool,
    /// The run of the proven version that the trial replaces: what is seen of it is no news.
    pub(crate) old_run: String,
}

/// One look at the trial.
#[derive(Debug, Clone)]
pub(crate) struct Observation {
    /// Since the start of the trial.
    pub(crate) at: Duration,
    /// What the service manager says.
    pub(crate) service: ServiceView,
    /// What the agent says of itself, if it answered.
    pub(crate) livez: Option<LivezReport>,
    /// Its local checks.
    pub(crate) checks: Checks,
    /// A round of fetching that ended since the last look.
    pub(crate) fetch: Option<FetchRound>,
}

/// What was seen of the local checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Checks {
    /// It was not time to ask.
    NotAsked,
    /// There was no answer that could be read.
    Unread,
    /// The status of each.
    Seen(BTreeMap<String, CheckStatus>),
}

/// One round of fetching the release metadata, by both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FetchRound {
    /// The version on trial: what went wrong, if anything did.
    pub(crate) candidate: Result<(), String>,
    /// The judge; asked only when the candidate failed.
    pub(crate) judge: Option<Result<(), String>>,
}

/// What follows from the observations so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Look again; so much of the soak is left once the agent is ready.
    Wait(Option<Duration>),
    /// All but the hooks speak for it.
    RunHooks,
    /// It failed.
    Fail(Verdict),
}

/// The judge of one trial.
#[derive(Debug)]
pub(crate) struct Judge<'a> {
    rules: Rules,
    baseline: &'a Baseline,
    first_run: Option<String>,
    ready_at: Option<Duration>,
    missed: u32,
    worse: u32,
    /// Whether its checks were seen at least once, and how often in a row they were not.
    checked: bool,
    unread: u32,
    fetched: bool,
    fetch_failures: u32,
    last_fetch_error: String,
}

fn fail(fault: Fault, reason: impl Into<String>) -> Decision {
    Decision::Fail(Verdict::Fail { reason: reason.into(), fault })
}

impl<'a> Judge<'a> {
    /// A judge who has seen nothing yet.
    pub(crate) fn new(rules: Rules, baseline: &'a Baseline) -> Self {
        Self {
            rules,
            baseline,
            first_run: None,
            ready_at: None,
            missed: 0,
            worse: 0,
            checked: false,
            unread: 0,
            fetched: false,
            fetch_failures: 0,
            last_fetch_error: String::new(),
        }
    }

    /// When the new version was first seen ready.
    pub(crate) fn ready_at(&self) -> Option<Duration> {
        self.ready_at
    }

    /// Takes one observation.
    pub(crate) fn see(&mut self, seen: &Observation) -> Decision {
        if let Some(decision) = self.service(&seen.service) {
            return decision;
        }
        if let Some(decision) = self.answers(seen) {
            return decision;
        }
        let Some(ready_at) = self.ready_at else { return Decision::Wait(None) };
        if let Some(decision) = self.checks(seen) {
            return decision;
        }
        if let Some(decision) = self.fetches(seen) {
            return decision;
        }
        let watched = seen.at.saturating_sub(ready_at);
        if let Some(left) = self.rules.soak.checked_sub(watched).filter(|left| !left.is_zero()) {
            return Decision::Wait(Some(left));
        }
        let unseen = self.baseline.answered && (!self.checked || self.unread > 0);
        if self.missed > 0 || self.worse > 0 || unseen {
            return Decision::Wait(Some(Duration::ZERO));
        }
        if self.rules.must_fetch && !self.fetched {
            if watched > self.rules.soak + self.rules.network_patience {
                let reason = format!(
                    "the release server could not be reached, so the new version could not show that it will be able to \
                     take the next update ({})",
                    self.last_fetch_error
                );
                return fail(Fault::Environment, reason);
            }
            return Decision::Wait(Some(Duration::ZERO));
        }
        Decision::RunHooks
    }

    /// The service manager must call it running, and it must be the same run all along.
    fn service(&mut self, service: &ServiceView) -> Option<Decision> {
        if self.first_run.is_none() && service.run == self.rules.old_run {
            return None;
        }
        match service.state {
            ViewState::Failed => {
                return Some(fail(Fault::Version, format!("the service failed: {}", service.detail)));
            }
            ViewState::Restarting => {
                return Some(fail(Fault::Version, format!("it ended by itself: {}", service.detail)));
            }
            ViewState::Stopped => {
                return Some(fail(Fault::Interrupted, "the agent was stopped by somebody during its trial"));
            }
            ViewState::Starting | ViewState::Running | ViewState::Stopping => {}
        }
        match &self.first_run {
            None => self.first_run = Some(service.run.clone()),
            Some(first) if *first != service.run || service.restarts > 0 => {
                return Some(fail(Fault::Version, format!("it was restarted during its trial: {}", service.detail)));
            }
            Some(_) => {}
        }
        None
    }

    /// It must answer, and it must be the version on trial that answers.
    fn answers(&mut self, seen: &Observation) -> Option<Decision> {
        let right = seen.livez.as_ref().filter(|livez| livez.version == self.rules.version);
        let running = seen.service.state == ViewState::Running;
        match (self.ready_at, right) {
            (None, Some(_)) if running => self.ready_at = Some(seen.at),
            (None, _) if seen.at >= self.rules.start_deadline => {
                let seconds = self.rules.start_deadline.as_secs_f32();
                let answer = match &seen.livez {
                    Some(livez) if livez.version != self.rules.version => {
                        format!("version {} answers in its place", livez.version)
                    }
                    _ => seen.service.detail.clone(),
                };
                return Some(fail(Fault::Version, format!("it was not ready after {seconds} s ({answer})")));
            }
            (Some(_), None) => {
                self.missed += 1;
                if self.missed >= MISSED_ANSWERS {
                    return Some(fail(Fault::Version, "it stopped answering on its health port"));
                }
            }
            (Some(_), Some(_)) => self.missed = 0,
            _ => {}
        }
        None
    }

    /// No local check may be worse than it was for the proven version.
    fn checks(&mut self, seen: &Observation) -> Option<Decision> {
        let checks = match &seen.checks {
            Checks::NotAsked => return None,
            Checks::Unread => {
                self.unread += 1;
                let reason = "its /health does not answer in a way that the proven version understands";
                let convicted = self.baseline.answered && self.unread >= WORSE_OBSERVATIONS;
                return convicted.then(|| fail(Fault::Version, reason));
            }
            Checks::Seen(checks) => checks,
        };
        (self.checked, self.unread) = (true, 0);
        let worse = self.baseline.worse(checks);
        if worse.is_empty() {
            self.worse = 0;
            return None;
        }
        self.worse += 1;
        (self.worse >= WORSE_OBSERVATIONS)
            .then(|| fail(Fault::Version, format!("health is worse than before: {}", worse.join(", "))))
    }

    /// It must be able to take the next update; the network's trouble is not its fault, unless the judge has none.
    fn fetches(&mut self, seen: &Observation) -> Option<Decision> {
        let round = seen.fetch.as_ref().filter(|_| self.rules.must_fetch && !self.fetched)?;
        match (&round.candidate, &round.judge) {
            (Ok(()), _) => self.fetched = true,
            (Err(error), Some(Ok(()))) => {
                self.fetch_failures += 1;
                if self.fetch_failures >= FAILED_FETCHES {
                    let reason = format!(
                        "it cannot fetch and verify the release metadata, which the proven version can: {error}"
                    );
                    return Some(fail(Fault::Version, reason));
                }
            }
            (Err(error), _) => {
                self.fetch_failures = 0;
                self.last_fetch_error.clone_from(error);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Trial<'a> {
        judge: Judge<'a>,
        next: Observation,
    }

    fn livez(major: u64) -> Option<LivezReport> {
        Some(LivezReport { status: "alive".into(), version: Version::new(major, 0, 0), pid: 1, uptime_seconds: 0 })
    }

    fn service(state: ViewState, run: &str) -> ServiceView {
        ServiceView { state, run: run.into(), restarts: 0, detail: "detail".into() }
    }

    fn statuses(status: CheckStatus) -> BTreeMap<String, CheckStatus> {
        BTreeMap::from([("collector".into(), status)])
    }

    fn checks(status: CheckStatus) -> Checks {
        Checks::Seen(statuses(status))
    }

    impl<'a> Trial<'a> {
        fn new(baseline: &'a Baseline) -> Self {
            let rules = Rules {
                version: Version::new(2, 0, 0),
                start_deadline: SECOND * 30,
                soak: SECOND * 60,
                network_patience: SECOND * 600,
                must_fetch: true,
                old_run: "a".into(),
            };
            let next = Observation {
                at: Duration::ZERO,
                service: service(ViewState::Running, "b"),
                livez: livez(2),
                checks: checks(CheckStatus::Pass),
                fetch: Some(FetchRound { candidate: Ok(()), judge: None }),
            };
            Self { judge: Judge::new(rules, baseline), next }
        }

        /// Looks every second until there is a decision, at most for `seconds`.
        fn watch(&mut self, seconds: u64) -> Decision {
            let mut decision = Decision::Wait(None);
            for _ in 0..seconds {
                decision = self.judge.see(&self.next);
                self.next.at += SECOND;
                if !matches!(decision, Decision::Wait(_)) {
                    break;
                }
            }
            decision
        }
    }

    fn healthy() -> Baseline {
        Baseline { answered: true, checks: statuses(CheckStatus::Pass) }
    }

    fn assert_fails(decision: &Decision, fault: Fault, text: &str) {
        match decision {
            Decision::Fail(Verdict::Fail { reason, fault: found }) => {
                assert!(reason.contains(text) && *found == fault, "{found:?}: {reason}");
            }
            other => panic!("{other:?} instead of a failure with {text:?}"),
        }
    }

    #[test]
    fn a_good_version_passes_exactly_when_its_soak_is_over() {
        let baseline = healthy();
        let mut trial = Trial::new(&baseline);
        assert_eq!(trial.watch(60), Decision::Wait(Some(SECOND)));
        assert_eq!(trial.watch(1), Decision::RunHooks);
    }

    #[test]
    fn a_version_that_ends_by_itself_or_is_restarted_fails_at_once() {
        let baseline = healthy();
        for state in [ViewState::Restarting, ViewState::Failed] {
            let mut trial = Trial::new(&baseline);
            trial.watch(5);
            trial.next.service.state = state;
            assert_fails(&trial.watch(1), Fault::Version, "detail");
        }
        let mut trial = Trial::new(&baseline);
        trial.watch(5);
        trial.next.service.run = "c".into();
        assert_fails(&trial.watch(1), Fault::Version, "restarted during its trial");
    }

    #[test]
    fn what_is_still_seen_of_the_old_run_is_not_held_against_the_new_one() {
        let baseline = healthy();
        let mut trial = Trial::new(&baseline);
        trial.next.livez = livez(1);
        for state in [ViewState::Running, ViewState::Stopping, ViewState::Failed, ViewState::Stopped] {
            trial.next.service = service(state, "a");
            assert_eq!(trial.watch(1), Decision::Wait(None));
        }
        trial.next.service = service(ViewState::Running, "b");
        trial.next.livez = livez(2);
        assert_eq!(trial.watch(61), Decision::RunHooks);
    }

    #[test]
    fn a_version_that_never_answers_fails_at_the_start_deadline_and_not_before() {
        let baseline = healthy();
        let mut trial = Trial::new(&baseline);
        trial.next.service.state = ViewState::Starting;
        trial.next.livez = None;
        assert_eq!(trial.watch(30), Decision::Wait(None));
        assert_fails(&trial.watch(1), Fault::Version, "not ready after 30 s");
    }

    #[test]
    fn the_old_version_answering_is_not_the_new_one_being_ready() {
        let baseline = healthy();
        let mut trial = Trial::new(&baseline);
        trial.next.livez = livez(1);
        assert_fails(&trial.watch(40), Fault::Version, "version 1.0.0 answers in its place");
    }

    #[test]
    fn worse_health_fails_once_it_lasts_and_equal_health_passes() {
        let baseline = healthy();
        let mut trial = Trial::new(&baseline);
        trial.next.checks = checks(CheckStatus::Warn);
        assert_fails(&trial.watch(60), Fault::Version, "worse than before: collector");

        let sick = Baseline { answered: true, checks: statuses(CheckStatus::Fail) };
        let mut trial = Trial::new(&sick);
        trial.next.checks = checks(CheckStatus::Fail);
        assert_eq!(trial.watch(61), Decision::RunHooks);

        let mut trial = Trial::new(&baseline);
        trial.next.checks = checks(CheckStatus::Fail);
        trial.watch(5);
        trial.next.checks = checks(CheckStatus::Pass);
        assert_eq!(trial.watch(61), Decision::RunHooks, "a check that was warming up convicted");
    }

    #[test]
    fn health_that_cannot_be_read_is_not_taken_for_good_and_not_waited_for_without_end() {
        let baseline = healthy();
        let mut trial = Trial::new(&baseline);
        trial.next.checks = Checks::Unread;
        assert_fails(&trial.watch(60), Fault::Version, "/health does not answer");

        let mut trial = Trial::new(&baseline);
        trial.next.checks = checks(CheckStatus::Fail);
        trial.watch(5);
        trial.next.checks = Checks::Unread;
        assert_fails(&trial.watch(60), Fault::Version, "/health does not answer");

        // Never asked is never seen.
        let mut trial = Trial::new(&baseline);
        trial.next.checks = Checks::NotAsked;
        assert!(matches!(trial.watch(200), Decision::Wait(_)));
    }

    #[test]
    fn a_check_that_the_new_version_brings_may_warn_but_not_fail() {
        let baseline = Baseline { answered: true, checks: BTreeMap::new() };
        let mut trial = Trial::new(&baseline);
        trial.next.checks = checks(CheckStatus::Warn);
        assert_eq!(trial.watch(61), Decision::RunHooks);
        let mut trial = Trial::new(&baseline);
        trial.next.checks = checks(CheckStatus::Fail);
        assert_fails(&trial.watch(61), Fault::Version, "collector");
    }

    #[test]
    fn a_version_that_stops_answering_fails_and_one_lost_answer_does_not() {
        let baseline = healthy();
        let mut trial = Trial::new(&baseline);
        trial.watch(5);
        trial.next.livez = None;
        trial.watch(1);
        trial.next.livez = livez(2);
        assert_eq!(trial.watch(55), Decision::RunHooks);
        let mut trial = Trial::new(&baseline);
        trial.watch(5);
        trial.next.livez = None;
        assert_fails(&trial.watch(10), Fault::Version, "stopped answering");
    }

    #[test]
    fn a_version_that_cannot_take_the_next_update_is_never_kept() {
        let baseline = healthy();
        let mut trial = Trial::new(&baseline);
        trial.next.fetch = Some(FetchRound { candidate: Err("no TLS".into()), judge: Some(Ok(())) });
        assert_fails(&trial.watch(61), Fault::Version, "no TLS");

        // A network that fails both is waited for, and is nobody's fault.
        let mut trial = Trial::new(&baseline);
        trial.next.fetch = Some(FetchRound { candidate: Err("no route".into()), judge: Some(Err("no route".into())) });
        assert_eq!(trial.watch(660), Decision::Wait(Some(Duration::ZERO)));
        assert_fails(&trial.watch(2), Fault::Environment, "no route");

        let mut trial = Trial::new(&baseline);
        trial.next.fetch = Some(FetchRound { candidate: Err("no route".into()), judge: Some(Err("no route".into())) });
        trial.watch(100);
        trial.next.fetch = Some(FetchRound { candidate: Ok(()), judge: None });
        assert_eq!(trial.watch(1), Decision::RunHooks);
    }

    #[test]
    fn a_person_who_stops_the_agent_ends_the_trial_without_a_conviction() {
        let baseline = healthy();
        let mut trial = Trial::new(&baseline);
        trial.watch(5);
        trial.next.service.state = ViewState::Stopped;
        assert_fails(&trial.watch(1), Fault::Interrupted, "stopped by somebody");
    }
}
