//! The thread that looks after the hub: which identity is in force, where events go, when the certificate is renewed.
//!
//! It looks every two seconds. So an enrolment, a renewal or a rollback by a command takes effect by itself, without a
//! restart and without the command having to reach this process.

use super::coming_back;
use super::heartbeat;
use super::record::Identity;
use super::relay::Relay;
use super::renewing::{renew, renewal_reason};
use super::schedule::{first_look, is_due, next_look};
use super::settings::{UplinkSettings, Via, Way};
use super::state::{HubState, Standing};
use super::store::CertStore;
use super::stream_note::StreamNote;
use super::taker::Taker;
use super::uplink::{Switch, Target};
use crate::config::HubConfig;
use crate::keep::{Kept, told};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use picket_outbox::{Admission, Backoff, Breaker, Clock as _, SystemClock, random};
use picket_protocol::BuildInfo;
use picket_protocol::hub::{Heartbeat, StreamLedger};
use picket_telemetry::Health;
use picket_transport::hub::{HubCallError, HubClient, HubOptions, HubTrust, Route};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// How often is looked.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// The first wait after a renewal that failed, and the longest.
const RENEWAL_RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 3600));
/// The first wait after a connection that failed, and the longest.
const CONNECT_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// After how many failures in a row the breaker opens, and for how long.
const BREAKER: (u32, Duration) = (8, Duration::from_secs(60));
/// The longest that a hub may send an agent away for.
const MAX_AWAY: Duration = Duration::from_secs(3600);

/// What the thread works with.
pub(crate) struct Parts {
    pub(crate) config: HubConfig,
    pub(crate) build: BuildInfo,
    pub(crate) machine_hint: String,
    pub(crate) update_status: PathBuf,
    pub(crate) health: Arc<Health>,
    pub(crate) kept: Arc<Kept>,
    pub(crate) switch: Arc<Switch>,
    pub(crate) state: Arc<HubState>,
    pub(crate) settings: Arc<Mutex<Way>>,
    /// Somebody saw a refusal that costs the identity, or settings changed.
    pub(crate) recheck: Arc<AtomicBool>,
    pub(crate) wake: Arc<Notify>,
    pub(crate) taker: Taker,
    pub(crate) started: (Instant, Timestamp),
}

/// An identity in use.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) identity: Identity,
    pub(super) client: HubClient,
    pub(super) route: Route,
    pub(super) trust: HubTrust,
    pub(super) options: HubOptions,
}

/// Where events go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    Nowhere,
    Store,
    Hub,
}

/// Where events go: as the operator says and the identity allows.
pub(crate) fn destination(via: Via, standing: &Standing) -> Destination {
    match (via, standing) {
        (Via::None, _) | (Via::Auto, Standing::None | Standing::Lost(_)) => Destination::Store,
        (Via::Auto | Via::Hub | Via::Nats, Standing::Enrolled) => Destination::Hub,
        (Via::Auto, Standing::Broken(_)) | (Via::Hub | Via::Nats, _) => Destination::Nowhere,
    }
}

/// A renewal that is under way.
type Renewing = JoinHandle<Result<(), (String, Option<Duration>)>>;

pub(crate) struct Keeper {
    pub(super) parts: Parts,
    store: CertStore,
    live: Option<Arc<Live>>,
    standing: Standing,
    destination: Option<Destination>,
    stream: Uuid,
    seen: (Option<u64>, Way),
    renewing: Option<Renewing>,
    renewal_backoff: Backoff,
    renew_not_before: Instant,
    next_look: Option<Timestamp>,
    asking: Option<JoinHandle<bool>>,
    /// When it was asked last whether a lost identity is known again.
    asked_at: Option<Timestamp>,
    pub(super) asked: bool,
    backoff: Backoff,
    breaker: Breaker,
    not_before: Instant,
    pub(super) incarnation: Uuid,
    pub(super) sequence: u64,
    pub(super) stop: watch::Receiver<bool>,
}

impl Keeper {
    pub(crate) fn new(parts: Parts, stop: watch::Receiver<bool>) -> Self {
        let settings = lock(&parts.settings).clone();
        // What was seen is nothing yet: the first look decides everything.
        parts.recheck.store(true, Ordering::Relaxed);
        Self {
            store: CertStore::new(&parts.config.certs_dir),
            live: None,
            standing: Standing::None,
            destination: None,
            stream: Uuid::nil(),
            seen: (None, settings),
            renewing: None,
            renewal_backoff: Backoff::new(RENEWAL_RETRY.0, RENEWAL_RETRY.1),
            renew_not_before: Instant::now(),
            next_look: None,
            asking: None,
            asked_at: None,
            asked: false,
            backoff: Backoff::new(CONNECT_RETRY.0, CONNECT_RETRY.1),
            breaker: Breaker::new(BREAKER.0, BREAKER.1),
            not_before: Instant::now(),
            incarnation: Uuid::now_v7(),
            sequence: 0,
            parts,
            stop,
        }
    }

    /// Works until told to stop.
    pub(crate) async fn run(mut self) {
        while !*self.stop.borrow() {
            self.look().await;
            match self.live.clone().filter(|_| self.destination == Some(Destination::Hub)) {
                Some(live) if Instant::now() >= self.not_before => {
                    if let Admission::Wait(left) = self.breaker.admit(SystemClock.since_boot()) {
                        self.not_before = Instant::now() + left;
                        continue;
                    }
                    let end = self.talk(&live).await;
                    self.ended(&live, end);
                }
                _ => self.pause().await,
            }
        }
        if let Some(renewing) = self.renewing.take() {
            // The disk's part of it is short, the network's has limits.
            let _ = tokio::time::timeout(Duration::from_secs(2), renewing).await;
        }
    }

    /// Waits for the next look, or for somebody who cannot wait.
    async fn pause(&mut self) {
        let until = self.not_before.saturating_duration_since(Instant::now());
        let wait = if until.is_zero() { LOOK } else { until.min(LOOK) };
        let wake = Arc::clone(&self.parts.wake);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = wake.notified() => {}
            _ = self.stop.changed() => {}
        }
    }

    /// Looks whether anything changed. Says whether the connection that stands is to be made anew.
    pub(super) async fn look(&mut self) -> bool {
        self.settle_renewal().await;
        let settings = lock(&self.parts.settings).clone();
        let now = (self.store.current(), settings);
        let recheck = self.parts.recheck.swap(false, Ordering::Relaxed);
        let changed = recheck || now != self.seen || self.destination.is_none();
        if changed {
            self.seen = now;
            self.adopt();
        }
        self.renew_if_due();
        self.ask_if_lost().await;
        changed
    }

    /// Asks once a day whether a lost identity is known again; if it is, the next look takes it up.
    async fn ask_if_lost(&mut self) {
        if let Some(asking) = self.asking.take_if(|asking| asking.is_finished()) {
            if asking.await.unwrap_or(false) {
                self.parts.recheck.store(true, Ordering::Relaxed);
            }
            return;
        }
        let Standing::Lost(lost) = &self.standing else { return };
        let now = Timestamp::now();
        if self.asking.is_some()
            || self.seen.1.uplink.via == Via::None
            || !coming_back::is_due(lost.at, self.asked_at, now)
        {
            return;
        }
        self.asked_at = Some(now);
        let (store, options) = (self.store.clone(), self.seen.1.options(&self.parts.config.user_agent));
        self.asking = Some(tokio::task::spawn_blocking(move || coming_back::ask(&store, &options)));
    }

    /// Reads what is in force, and lets everything follow.
    fn adopt(&mut self) {
        let way = self.seen.1.clone();
        let options = way.options(&self.parts.config.user_agent);
        let settings = way.uplink;
        let (standing, live) = match self.store.load() {
            Ok(None) => (Standing::None, None),
            Err(error) => (Standing::Broken(told(&error)), None),
            Ok(Some(identity)) => match self.store.lost(&identity) {
                Some(lost) => (Standing::Lost(lost), None),
                None => match go_live(identity, options) {
                    Ok(live) => (Standing::Enrolled, Some(Arc::new(live))),
                    Err(error) => (Standing::Broken(told(&error)), None),
                },
            },
        };
        match &standing {
            Standing::Broken(why) => tracing::error!(why, "the identity at the hub cannot be used; events wait"),
            Standing::Lost(lost) => {
                tracing::error!(code = lost.code, detail = lost.detail, "the hub took the identity back");
            }
            Standing::None | Standing::Enrolled => {}
        }
        self.standing = standing;
        self.live = live;
        // A new identity, proxy or address: what failed before is no reason to wait.
        self.not_before = Instant::now();
        self.backoff.succeed();
        self.breaker = Breaker::new(BREAKER.0, BREAKER.1);
        self.next_look = self
            .live
            .as_ref()
            .and_then(|live| first_look(self.store.is_rolled_back(), Timestamp::now(), live.identity.record.agent_id));
        let wanted = self.live.is_some() && settings.via != Via::None;
        self.parts.state.change(|state| {
            state.via = settings.via;
            state.standing = self.standing.clone();
            if state.agent != self.live.as_ref().map(|live| live.identity.record.agent_id) {
                // What another identity was heard of says nothing of this one.
                (state.last_heard, state.last_error, state.wanted_since) = (None, None, None);
                state.agent = self.live.as_ref().map(|live| live.identity.record.agent_id);
            }
            state.hub = self.live.as_ref().map(|live| {
                let record = &live.identity.record;
                (record.hub.clone(), record.name.clone())
            });
            state.certificate = self.live.as_ref().map(|live| live.identity.leaf().clone());
            state.wanted_since = wanted.then(|| state.wanted_since.unwrap_or_else(Instant::now));
        });
        if let Some(live) = &self.live {
            let status = self.parts.taker.status(&live.identity.record);
            self.parts.state.change(|state| state.config = status);
        }
        let to = destination(settings.via, &self.standing);
        if self.send_to(to, &settings) {
            self.destination = Some(to);
        }
    }

    /// Lets events go there. Says whether they do.
    fn send_to(&mut self, to: Destination, settings: &UplinkSettings) -> bool {
        let note = &self.parts.config.stream_note;
        let target = match (to, &self.live) {
            (Destination::Hub, Some(live)) => {
                let (agent, client) = (live.identity.record.agent_id, live.client.clone());
                match self.begin_stream(agent) {
                    Ok(stream) => self.stream = stream,
                    Err(error) => {
                        tracing::warn!(error, "events wait until a stream for the hub can be begun");
                        return false;
                    }
                }
                let relay = match Relay::wanted(settings, &self.store, &live.identity) {
                    Ok(relay) => relay.map(Arc::new),
                    Err(error) => {
                        tracing::warn!(%error, "events wait until there is a thread for NATS");
                        return false;
                    }
                };
                let serial = live.identity.leaf().serial.clone();
                Target::Hub { client, relay, serial, keep: settings.keep_local }
            }
            (Destination::Store, _) => {
                // What goes into the store alone is a part that the hub will not have.
                if let Err(error) = picket_durable::remove_if_present(note) {
                    tracing::warn!(%error, "events wait");
                    return false;
                }
                Target::Store
            }
            (Destination::Nowhere, _) | (Destination::Hub, None) => Target::Nowhere,
        };
        self.parts.switch.set(target);
        self.parts.kept.hurry();
        true
    }

    /// The stream from which on this hub has everything: the one that was noted, or one that begins now.
    fn begin_stream(&self, agent: Uuid) -> Result<Uuid, String> {
        let Some(outbox) = &self.parts.kept.outbox else { return Ok(Uuid::nil()) };
        let path = &self.parts.config.stream_note;
        if let Some(note) = StreamNote::read(path).filter(|note| note.agent_id == agent) {
            return Ok(note.stream);
        }
        let stream = outbox.begin_stream().map_err(|error| told(&error))?;
        let note = StreamNote { agent_id: agent, stream };
        picket_durable::write_json(path, &note, 0o600).map_err(|error| told(&error))?;
        Ok(stream)
    }

    fn renew_if_due(&mut self) {
        let Some(live) = self.live.clone().filter(|_| self.renewing.is_none()) else { return };
        if self.seen.1.uplink.via == Via::None || Instant::now() < self.renew_not_before {
            return;
        }
        let now = Timestamp::now();
        let agent = live.identity.record.agent_id;
        // None planned: the process has just begun with this certificate, which is a look, too.
        let due = self.next_look.is_none_or(|planned| is_due(planned, now));
        if due {
            self.next_look = Some(next_look(now, &TimeZone::system(), agent));
            if let Ok(lock) = self.store.lock() {
                self.store.tidy(&lock, now);
            }
        }
        let Some(reason) = renewal_reason(live.identity.leaf(), now, self.asked, due) else { return };
        tracing::info!(reason, "the certificate is renewed");
        self.asked = false;
        let store = self.store.clone();
        self.renewing = Some(tokio::task::spawn_blocking(move || renew(&store, &live, reason)));
    }

    async fn settle_renewal(&mut self) {
        let Some(renewing) = self.renewing.take_if(|renewing| renewing.is_finished()) else { return };
        let outcome = renewing.await.unwrap_or_else(|error| Err((error.to_string(), None)));
        match outcome {
            Ok(()) => self.renewal_backoff.succeed(),
            Err((error, after)) => {
                let wait = self.renewal_backoff.fail(random()).max(RENEWAL_RETRY.0).max(after.unwrap_or_default());
                tracing::warn!(error, ?wait, "the certificate is not renewed; the present one stays in force");
                self.renew_not_before = Instant::now() + wait.min(RENEWAL_RETRY.1);
                // Whatever asked for it asks again.
                self.next_look = None;
                if self.live.as_ref().is_some_and(|live| self.store.lost(&live.identity).is_some()) {
                    self.parts.recheck.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// The connection was welcomed: the way is open.
    pub(super) fn welcomed(&mut self) {
        self.backoff.succeed();
        self.breaker.succeed();
        self.parts.state.change(|state| {
            state.connected = true;
            state.connects += 1;
            state.last_error = None;
        });
    }

    fn ended(&mut self, live: &Live, end: super::talk::End) {
        use super::talk::End;
        let word = end.word();
        tracing::debug!(word, "the connection with the hub ended");
        let error = end.told();
        self.parts.state.change(|state| {
            state.connected = false;
            *state.ends.entry(word).or_default() += 1;
            if error.is_some() {
                state.last_error.clone_from(&error);
            }
        });
        let wait = match end {
            // A goodbye of our own: there is nothing to wait for.
            End::Stopped | End::Changed => Duration::ZERO,
            End::Refused(error) => {
                self.note_refusal(live, &error);
                self.fail(error.retry_after())
            }
            End::Bye(bye) => self.after_bye(live, &bye),
            End::Gone(_) | End::Silent => self.fail(None),
        };
        self.not_before = Instant::now() + wait.min(MAX_AWAY);
    }

    fn after_bye(&mut self, live: &Live, bye: &picket_protocol::hub::Bye) -> Duration {
        use picket_protocol::hub::ByeReason as Reason;
        let asked = bye.retry_after_ms.map(Duration::from_millis);
        match bye.reason {
            Reason::Revoked => self.lose(live, "revoked", &bye.detail),
            Reason::UnknownAgent => self.lose(live, "unknown_agent", &bye.detail),
            Reason::CertificateExpired => self.asked = true,
            Reason::CertificateRenewed => return asked.unwrap_or_default(),
            // Nothing but another version on either side helps.
            Reason::WireUnsupported => return asked.unwrap_or(Duration::from_secs(600)),
            Reason::Draining
            | Reason::Overloaded
            | Reason::Replaced
            | Reason::Protocol
            | Reason::Silent
            | Reason::Unknown => {}
        }
        self.fail(asked)
    }

    /// How long to wait after a failure.
    fn fail(&mut self, asked: Option<Duration>) -> Duration {
        self.breaker.fail(SystemClock.since_boot());
        let wait = self.backoff.fail(random());
        // A hub that turns away a whole fleet at once gives each its time; a little more spreads those with the same.
        after(asked, wait)
    }

    fn note_refusal(&mut self, live: &Live, error: &HubCallError) {
        if let HubCallError::Problem(problem) = error {
            if error.costs_identity() {
                self.lose(live, problem.code.as_str(), &problem.detail);
            }
            if problem.code == picket_protocol::hub::ProblemCode::CertificateExpired {
                self.asked = true;
            }
        }
    }

    fn lose(&self, live: &Live, code: &str, detail: &str) {
        let serial = &live.identity.leaf().serial;
        let marked = self.store.lock();
        if let Err(error) = marked.and_then(|lock| self.store.mark_lost(&lock, serial, code, detail, Timestamp::now()))
        {
            tracing::error!(error = told(&error), code, "the hub took the identity back, and that cannot be noted");
        }
        self.parts.recheck.store(true, Ordering::Relaxed);
    }

    /// What the next heartbeat says.
    pub(super) fn heartbeat(&mut self, live: &Live) -> Heartbeat {
        self.sequence += 1;
        let (started, started_at) = self.parts.started;
        let agent = live.identity.record.agent_id.to_string();
        let report = self.parts.health.report(&self.parts.build, &agent, started.elapsed().as_secs());
        let queue = self.parts.kept.outbox.as_ref().map(|outbox| outbox.status());
        let ledgers: Vec<StreamLedger> = queue.map(|queue| heartbeat::ledgers(&queue, self.stream)).unwrap_or_default();
        let config = self.parts.taker.status(&live.identity.record);
        let clock_ahead_ms = self.parts.state.change(|state| {
            state.config.clone_from(&config);
            state.clock_ahead_ms
        });
        Heartbeat {
            seq: self.sequence,
            sent_at: Timestamp::now(),
            version: self.parts.build.version.clone(),
            boot_id: picket_outbox::kernel_boot().parse().ok(),
            started_at,
            health: heartbeat::health(&report),
            ledgers,
            certificate: heartbeat::certificate(live.identity.leaf(), &self.store.counts()),
            update: heartbeat::update(&self.parts.update_status),
            config,
            clock_ahead_ms,
        }
    }
}

/// How long to wait when the hub asked for `asked`, and we would have waited for `wait`. The hub's word is bounded: it may be
/// any number.
fn after(asked: Option<Duration>, wait: Duration) -> Duration {
    let asked = asked.map(|asked| asked.min(MAX_AWAY) + wait.min(Duration::from_secs(1)));
    wait.max(asked.unwrap_or_default())
}

pub(super) fn go_live(identity: Identity, options: HubOptions) -> Result<Live, picket_transport::TransportError> {
    let trust = identity.trust();
    let client = HubClient::new(&identity.record.hub, &trust, &options)?;
    let route = Route::new(&identity.record.hub, &options.proxy)?;
    Ok(Live { identity, client, route, trust, options })
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::store::Lost;

    #[test]
    fn however_long_a_hub_asks_to_be_left_alone_the_wait_is_bounded() {
        let second = Duration::from_secs(1);
        assert_eq!(after(None, 3 * second), 3 * second);
        assert_eq!(after(Some(20 * second), 3 * second), 21 * second);
        for endless in [Duration::from_secs(u64::MAX), Duration::from_millis(u64::MAX), Duration::MAX] {
            assert_eq!(after(Some(endless), second), MAX_AWAY + second);
        }
    }

    #[test]
    fn events_go_where_the_operator_says_and_the_identity_allows() {
        let lost = Lost { at: Timestamp::now(), code: "revoked".into(), detail: String::new(), serial: String::new() };
        let broken = Standing::Broken("torn".into());
        for (via, standing, to) in [
            (Via::Auto, Standing::None, Destination::Store),
            (Via::Auto, Standing::Enrolled, Destination::Hub),
            (Via::Auto, Standing::Lost(lost.clone()), Destination::Store),
            // It may be mended, and then the hub wants what happened meanwhile.
            (Via::Auto, broken.clone(), Destination::Nowhere),
            (Via::Hub, Standing::None, Destination::Nowhere),
            (Via::Hub, Standing::Enrolled, Destination::Hub),
            (Via::Hub, Standing::Lost(lost), Destination::Nowhere),
            (Via::None, Standing::Enrolled, Destination::Store),
            (Via::None, broken, Destination::Store),
        ] {
            assert_eq!(destination(via, &standing), to, "{via:?} {standing:?}");
        }
    }
}
