//! How the way to the hub stands: for heartbeats, health and metrics.

use super::settings::Via;
use super::store::Lost;
use jiff::Timestamp;
use picket_pki::{Certificate, Renewal, renewal};
use picket_protocol::hub::ConfigStatus;
use picket_telemetry::Finding;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// From how long without a heartbeat on the hub counts as away, as the operations guide has it.
const AWAY: Duration = Duration::from_secs(300);
/// The upper ends of the buckets of a heartbeat's round trip, in seconds.
pub(crate) const ROUND_TRIP_BOUNDS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Whether there is an identity, and whether it is of use.
#[derive(Debug, Clone, Default)]
pub(crate) enum Standing {
    /// This machine is no agent of a hub.
    #[default]
    None,
    /// It is, but the files cannot be used; why.
    Broken(String),
    /// The hub took the identity back.
    Lost(Lost),
    /// It is.
    Enrolled,
}

/// Counts by bucket, with their sum.
#[derive(Debug, Clone, Default)]
pub(crate) struct RoundTrips {
    pub(crate) sum: f64,
    pub(crate) counts: [u64; ROUND_TRIP_BOUNDS.len() + 1],
}

impl RoundTrips {
    fn note(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = ROUND_TRIP_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(ROUND_TRIP_BOUNDS.len());
        self.counts[at] += 1;
        self.sum += seconds;
    }
}

/// All of it, as of one moment.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) via: Via,
    pub(crate) standing: Standing,
    /// Who the machine is there.
    pub(crate) agent: Option<uuid::Uuid>,
    /// The hub's address and the agent's name there.
    pub(crate) hub: Option<(String, String)>,
    pub(crate) certificate: Option<Certificate>,
    /// Since when a connection has been wanted.
    pub(crate) wanted_since: Option<Instant>,
    pub(crate) connected: bool,
    pub(crate) last_heard: Option<(Instant, Timestamp)>,
    pub(crate) last_error: Option<String>,
    pub(crate) connects: u64,
    pub(crate) ends: BTreeMap<&'static str, u64>,
    pub(crate) heartbeats: u64,
    pub(crate) heartbeats_failed: u64,
    pub(crate) round_trips: RoundTrips,
    pub(crate) clock_ahead_ms: Option<i64>,
    pub(crate) config: Option<ConfigStatus>,
    pub(crate) configs_taken: u64,
    pub(crate) configs_refused: u64,
}

/// Shared between the thread that speaks with the hub and those who ask how it goes.
#[derive(Debug)]
pub(crate) struct HubState(Mutex<Snapshot>);

impl HubState {
    pub(crate) fn new(via: Via) -> Self {
        Self(Mutex::new(Snapshot {
            via,
            standing: Standing::None,
            agent: None,
            hub: None,
            certificate: None,
            wanted_since: None,
            connected: false,
            last_heard: None,
            last_error: None,
            connects: 0,
            ends: BTreeMap::new(),
            heartbeats: 0,
            heartbeats_failed: 0,
            round_trips: RoundTrips::default(),
            clock_ahead_ms: None,
            config: None,
            configs_taken: 0,
            configs_refused: 0,
        }))
    }

    /// Changes it.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Snapshot) -> T) -> T {
        change(&mut self.lock())
    }

    /// How it stands.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    /// A heartbeat was heard by the hub.
    pub(crate) fn heard(&mut self, took: Duration, clock_ahead_ms: i64, now: (Instant, Timestamp)) {
        self.heartbeats += 1;
        self.round_trips.note(took);
        self.clock_ahead_ms = Some(clock_ahead_ms);
        self.last_heard = Some(now);
        self.last_error = None;
    }

    /// The check `enrolled`.
    pub(crate) fn enrolled(&self) -> Finding {
        match (&self.standing, self.via) {
            (_, Via::None) => Finding::pass("no hub is spoken to (uplink.via is none)"),
            (Standing::None, Via::Hub | Via::Nats) => {
                Finding::fail("this machine is not enrolled, and events wait for that; enrol it with `picket enroll`")
            }
            (Standing::None, Via::Auto) => Finding::pass("not enrolled at a hub; events are kept on this machine"),
            (Standing::Broken(why), _) => Finding::fail(why.clone()),
            (Standing::Lost(lost), _) => Finding::fail(format!(
                "the hub took the identity back at {} ({}): {}; enrol again with `picket enroll`",
                lost.at, lost.code, lost.detail
            )),
            (Standing::Enrolled, _) => {
                let (hub, name) = self.hub.clone().unwrap_or_default();
                Finding::pass(format!("enrolled at {hub} as {name}"))
            }
        }
    }

    /// The check `certificates`; none where there is no certificate.
    pub(crate) fn certificates(&self, now: Timestamp) -> Option<Finding> {
        let certificate = self.certificate.as_ref()?;
        let until = certificate.not_after;
        let days = until.duration_since(now).as_hours() / 24;
        let finding = match renewal(certificate, now) {
            Renewal::Expired => {
                Finding::fail(format!("the certificate expired at {until}; `picket cert renew` renews it"))
            }
            Renewal::Due if days <= 7 => {
                Finding::warn(format!("the certificate ends in {days} days and is not renewed yet"))
            }
            Renewal::Due | Renewal::NotBefore(_) if now < certificate.not_before => {
                Finding::warn(format!("the certificate holds from {} on; check the clock", certificate.not_before))
            }
            Renewal::Due if days <= 30 => {
                Finding::warn(format!("the certificate ends in {days} days; its renewal is due"))
            }
            Renewal::Due | Renewal::NotBefore(_) => Finding::pass(format!("the certificate holds until {until}")),
        };
        Some(finding.figure("expires_in_days", days))
    }

    /// The check `hub_connection`; none where no hub is spoken to.
    pub(crate) fn connection(&self, now: Instant) -> Option<Finding> {
        let since = self.wanted_since.filter(|_| matches!(self.standing, Standing::Enrolled))?;
        let last = self.last_heard.map(|(at, _)| now.saturating_duration_since(at));
        let quiet = last.unwrap_or_else(|| now.saturating_duration_since(since));
        let why = self.last_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        let finding = match (quiet >= AWAY, last, self.connected) {
            (true, ..) => {
                Finding::fail(format!("no heartbeat for {} s{why}; nothing is lost meanwhile", quiet.as_secs()))
            }
            (false, _, false) => Finding::warn(format!("not connected for the moment{why}")),
            (false, Some(ago), true) => Finding::pass(format!("last heartbeat {} s ago", ago.as_secs())),
            (false, None, true) => Finding::pass("connected"),
        };
        let finding = match self.clock_ahead_ms {
            Some(ahead) if ahead.unsigned_abs() > 60_000 && finding.status == picket_protocol::CheckStatus::Pass => {
                let side = if ahead > 0 { "ahead of" } else { "behind" };
                Finding::warn(format!("the clock is {} s {side} the hub's; set it", ahead.unsigned_abs() / 1000))
            }
            _ => finding,
        };
        // Only where there is a hub: the updater keeps it as what each version reached.
        let finding = finding.figure("connected", self.connected && quiet < AWAY);
        Some(match self.clock_ahead_ms {
            Some(ahead) => finding.figure("clock_ahead_ms", ahead),
            None => finding,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::store::tests::Fleet;
    use jiff::SignedDuration;
    use picket_protocol::CheckStatus;

    fn enrolled() -> (Snapshot, Timestamp) {
        let now = Timestamp::now();
        let state = HubState::new(Via::Auto);
        let certificate = Fleet::new().set("https://hub.example").chain.remove(0);
        state.change(|state| {
            state.standing = Standing::Enrolled;
            state.certificate = Some(certificate);
            state.wanted_since = Some(Instant::now());
        });
        (state.snapshot(), now)
    }

    #[test]
    fn a_machine_without_a_hub_is_healthy_and_one_that_lost_it_is_not() {
        let mut snapshot = HubState::new(Via::Auto).snapshot();
        assert_eq!(snapshot.enrolled().status, CheckStatus::Pass);
        assert!(snapshot.certificates(Timestamp::now()).is_none() && snapshot.connection(Instant::now()).is_none());
        snapshot.via = Via::Hub;
        assert_eq!(snapshot.enrolled().status, CheckStatus::Fail);
        let lost =
            Lost { at: Timestamp::now(), code: "revoked".into(), detail: "stolen".into(), serial: String::new() };
        snapshot.standing = Standing::Lost(lost);
        let finding = snapshot.enrolled();
        assert!(finding.status == CheckStatus::Fail && finding.message.contains("stolen"), "{finding:?}");
    }

    #[test]
    fn a_certificate_warns_thirty_days_before_its_end_and_fails_at_it() {
        let (snapshot, now) = enrolled();
        let at = |days: i64| snapshot.certificates(now + SignedDuration::from_hours(24 * days)).unwrap();
        assert_eq!(at(0).status, CheckStatus::Pass);
        assert_eq!(at(0).figures["expires_in_days"], 89);
        assert_eq!(
            (at(61).status, at(85).status, at(91).status),
            (CheckStatus::Warn, CheckStatus::Warn, CheckStatus::Fail)
        );
    }

    #[test]
    fn a_hub_is_away_after_five_minutes_without_a_heartbeat() {
        let (mut snapshot, _) = enrolled();
        let began = snapshot.wanted_since.unwrap();
        let at = |snapshot: &Snapshot, seconds| snapshot.connection(began + Duration::from_secs(seconds)).unwrap();
        assert_eq!(
            (at(&snapshot, 10).status, &at(&snapshot, 10).figures["connected"]),
            (CheckStatus::Warn, &false.into())
        );
        snapshot.connected = true;
        snapshot.heard(Duration::from_millis(20), -200, (began + Duration::from_secs(30), Timestamp::now()));
        assert!(at(&snapshot, 60).message.contains("30 s ago"));
        assert_eq!(at(&snapshot, 60).figures["connected"], true);
        let away = at(&snapshot, 330);
        assert!(away.status == CheckStatus::Fail && away.message.contains("no heartbeat for 300 s"), "{away:?}");
        assert_eq!(away.figures["connected"], false);
        assert_eq!(snapshot.round_trips.counts.iter().sum::<u64>(), 1);
        snapshot.clock_ahead_ms = Some(-90_000);
        assert!(at(&snapshot, 60).message.contains("90 s behind"));
    }
}
