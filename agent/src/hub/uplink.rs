//! Where batches of events go: to the hub, into this machine's own store, or nowhere for now.
//!
//! One courier delivers, whatever the target: a change of the target loses nothing and changes no order, for the queue and
//! what is handed out of it stay as they are.
//!
//! What the hub has is kept in this machine's store, too, **after** the hub said so and before the queue forgets it. A kill in
//! between brings the same batch again: the hub drops what it has, and the store, which remembers what the last two batches
//! brought, keeps the rest once. Before the hub's word would not do: a batch that it calls too large comes again in smaller
//! ones, more of them than the store remembers, and their events would be kept twice. An event that the hub will never take
//! is kept here all the same. A store that cannot take a batch does not keep the queue: that is counted by the store, and its
//! health check says so.

use super::relay::{Relay, RelayError, relay_failure};
use crate::keep::uplink::LocalUplink;
use picket_outbox::EncodedBatch;
use picket_outbox::delivery::{Accepted, Uplink, UplinkError, UplinkErrorKind};
use picket_protocol::hub::{EVENTS_MEDIA_TYPE, EVENTS_PATH, EventsAnswer, RAW_BYTES_HEADER, RECORDS_HEADER};
use picket_protocol::trace::TraceContext;
use picket_transport::TransportError;
use picket_transport::hub::{HubCallError, HubClient};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

/// How long to wait until it is known where events go.
const UNDECIDED: Duration = Duration::from_secs(5);

/// How often the store is asked to keep a batch, and how long is waited in between.
const KEEP_ATTEMPTS: u32 = 5;
const KEEP_PAUSE: Duration = Duration::from_millis(100);

/// Where events go at present.
#[derive(Clone, Default)]
pub(crate) enum Target {
    /// That is not known yet, or there is no hub and they may go nowhere else.
    #[default]
    Nowhere,
    /// Into this machine's own store.
    Store,
    /// To the hub.
    Hub {
        /// Who calls it.
        client: HubClient,
        /// The way through NATS, where batches go that way.
        relay: Option<Arc<Relay>>,
        /// With which certificate.
        serial: String,
        /// Whether they are kept here, too.
        keep: bool,
    },
}

/// What is told of a refusal by the hub, and of which certificate.
type OnRefusal = Box<dyn Fn(&HubCallError, &str) + Send + Sync>;

/// The target, which can be changed while batches are sent.
pub(crate) struct Switch {
    target: RwLock<Target>,
    store: Option<LocalUplink>,
    on_refusal: OnceLock<OnRefusal>,
}

impl Switch {
    /// Sends to `target` until [`Switch::set`] says where.
    pub(crate) fn new(target: Target, store: Option<LocalUplink>) -> Self {
        Self { target: RwLock::new(target), store, on_refusal: OnceLock::new() }
    }

    /// Tells `hear` of each refusal by the hub. The first to ask is the only one.
    pub(crate) fn on_refusal(&self, hear: OnRefusal) {
        let _ = self.on_refusal.set(hear);
    }

    /// Sends to `target` from the next batch on.
    pub(crate) fn set(&self, target: Target) {
        *self.target.write().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Keeps a batch here, too. A store whose queue is full for a moment is waited for.
    fn keep(&self, batch: &EncodedBatch) {
        let Some(store) = &self.store else { return };
        for attempt in 1.. {
            match store.take(batch) {
                Ok(_) => return,
                Err(error) if error.kind == UplinkErrorKind::Busy && attempt < KEEP_ATTEMPTS => {
                    std::thread::sleep(KEEP_PAUSE);
                }
                Err(error) => {
                    tracing::warn!(%error, records = batch.records, "the hub has events that are not kept here");
                    return;
                }
            }
        }
    }

    fn to_hub(
        &self,
        client: &HubClient,
        serial: &str,
        batch: &EncodedBatch,
        cause: &TraceContext,
    ) -> Result<Accepted, UplinkError> {
        let headers =
            [(RAW_BYTES_HEADER, batch.uncompressed_bytes.to_string()), (RECORDS_HEADER, batch.records.to_string())];
        let sent: Result<EventsAnswer, HubCallError> =
            client.post_bytes(EVENTS_PATH, EVENTS_MEDIA_TYPE, &headers, &batch.bytes, Some(cause));
        sent.map(|answer| stored(&answer)).map_err(|error| {
            self.refused(&error, serial);
            uplink_error(&error)
        })
    }

    fn through_nats(
        &self,
        relay: &Relay,
        serial: &str,
        batch: &EncodedBatch,
        cause: &TraceContext,
    ) -> Result<Accepted, UplinkError> {
        relay.deliver(batch, cause).map(|answer| stored(&answer)).map_err(|error| {
            if let RelayError::Refused(refusal) = &error {
                self.refused(refusal, serial);
            }
            relay_failure(&error, batch.records)
        })
    }

    /// Tells who wants to hear of it.
    fn refused(&self, error: &HubCallError, serial: &str) {
        if let Some(hear) = self.on_refusal.get() {
            hear(error, serial);
        }
    }
}

fn stored(answer: &EventsAnswer) -> Accepted {
    tracing::debug!(stored = answer.stored, duplicates = answer.duplicates, "the hub has a batch");
    Accepted
}

/// The switch as the courier holds it.
pub(crate) struct Switched(pub(crate) Arc<Switch>);

impl Uplink for Switched {
    fn send(&self, batch: &EncodedBatch, cause: &TraceContext) -> Result<Accepted, UplinkError> {
        let switch = &self.0;
        let target = switch.target.read().unwrap_or_else(PoisonError::into_inner).clone();
        match (target, &switch.store) {
            (Target::Hub { client, relay, serial, keep }, _) => {
                let sent = match relay {
                    Some(relay) => switch.through_nats(&relay, &serial, batch, cause),
                    None => switch.to_hub(&client, &serial, batch, cause),
                };
                // What the hub will never take is given up once it is alone.
                let last_word = |error: &UplinkError| error.kind == UplinkErrorKind::Rejected && batch.records == 1;
                if keep && sent.as_ref().map_or_else(last_word, |_| true) {
                    switch.keep(batch);
                }
                sent
            }
            (Target::Store, Some(store)) => store.take(batch),
            (Target::Store, None) => Err(nowhere("the store cannot be opened")),
            (Target::Nowhere, _) => Err(nowhere("this machine is not enrolled at a hub yet")),
        }
    }
}

fn nowhere(detail: &str) -> UplinkError {
    UplinkError { kind: UplinkErrorKind::Busy, retry_after: Some(UNDECIDED), detail: detail.to_owned() }
}

/// What a call that failed means for the batch.
pub fn uplink_error(error: &HubCallError) -> UplinkError {
    let by_status = |status: u16| match status {
        429 | 503 => UplinkErrorKind::Busy,
        401 | 403 => UplinkErrorKind::Refused,
        400 | 413 | 422 => UplinkErrorKind::Rejected,
        _ => UplinkErrorKind::Broken,
    };
    let kind = match error {
        HubCallError::Problem(problem) => match by_status(problem.status) {
            // The wire is refused, not the batch: no smaller one would be taken, and none is to be given up.
            UplinkErrorKind::Rejected if !is_about_the_batch(problem.code) => UplinkErrorKind::Refused,
            kind => kind,
        },
        // Whoever answers without a problem is a proxy or a portal: its word on a batch counts for nothing.
        HubCallError::Transport(TransportError::Status { status, .. }) => match by_status(*status) {
            UplinkErrorKind::Rejected => UplinkErrorKind::Broken,
            kind => kind,
        },
        HubCallError::Transport(_) => UplinkErrorKind::Unreachable,
        HubCallError::Malformed { .. } => UplinkErrorKind::Broken,
    };
    UplinkError { kind, retry_after: error.retry_after(), detail: crate::keep::told(error) }
}

fn is_about_the_batch(code: picket_protocol::hub::ProblemCode) -> bool {
    use picket_protocol::hub::ProblemCode as Code;
    matches!(code, Code::Invalid | Code::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::by_hand;
    use crate::hub::settings::UplinkSettings;
    use crate::hub::store::tests::Fleet;
    use crate::keep::uplink::tests::{emit, kept, open};
    use picket_outbox::delivery::{Courier, DeliverySettings, Step};
    use picket_outbox::{ManualClock, OutboxSettings};
    use picket_protocol::hub::{Problem, ProblemCode};
    use picket_transport::ProxyChoice;

    fn kind(code: ProblemCode) -> UplinkErrorKind {
        uplink_error(&HubCallError::Problem(Box::new(Problem::new(code, "x")))).kind
    }

    #[test]
    fn a_batch_is_given_up_only_for_what_the_hub_says_of_the_batch() {
        for code in ProblemCode::ALL {
            let rejected = matches!(code, ProblemCode::Invalid | ProblemCode::TooLarge);
            assert_eq!(kind(*code) == UplinkErrorKind::Rejected, rejected, "{code:?}");
        }
        assert_eq!(kind(ProblemCode::Overloaded), UplinkErrorKind::Busy);
        assert_eq!(kind(ProblemCode::CertificateExpired), UplinkErrorKind::Refused);
        assert_eq!(kind(ProblemCode::WireUnsupported), UplinkErrorKind::Refused);
        assert_eq!(kind(ProblemCode::Internal), UplinkErrorKind::Broken);
        let url = "https://hub.example".parse().unwrap();
        let portal = HubCallError::Transport(TransportError::Status { url, status: 400, retry_after: None });
        assert_eq!(uplink_error(&portal).kind, UplinkErrorKind::Broken);
    }

    #[test]
    fn the_time_the_hub_asks_for_is_kept() {
        let mut problem = Problem::new(ProblemCode::RateLimited, "x");
        problem.retry_after = Some(17);
        let error = uplink_error(&HubCallError::Problem(Box::new(problem)));
        assert_eq!((error.kind, error.retry_after), (UplinkErrorKind::Busy, Some(Duration::from_secs(17))));
    }

    #[test]
    fn events_wait_until_it_is_known_where_they_go() {
        let switch = Arc::new(Switch::new(Target::Nowhere, None));
        let batch = EncodedBatch { bytes: Vec::new(), uncompressed_bytes: 0, records: 0 };
        let error = Switched(Arc::clone(&switch)).send(&batch, &TraceContext::start()).unwrap_err();
        assert_eq!(error.kind, UplinkErrorKind::Busy);
    }

    /// A hub that answers each batch with the next of these.
    fn hub(fleet: &Fleet, answers: Vec<Result<EventsAnswer, ProblemCode>>) -> (String, std::thread::JoinHandle<()>) {
        by_hand::hub(fleet, answers, |head, answer| {
            assert!(head.contains("picket-records: ") && head.contains("picket-raw-bytes: "), "{head}");
            match answer {
                Ok(answer) => (200, "application/json", serde_json::to_string(&answer).unwrap()),
                Err(code) => {
                    let problem = Problem::new(code, "by hand");
                    (problem.status, "application/problem+json", serde_json::to_string(&problem).unwrap())
                }
            }
        })
    }

    #[test]
    fn what_the_hub_has_or_will_never_take_is_kept_here_once_however_often_it_was_sent() {
        let (dir, fleet) = (tempfile::tempdir().unwrap(), Fleet::new());
        let (store, outbox) = open(dir.path());
        emit(&outbox, 4);
        let stored = |stored| Ok(EventsAnswer { stored, duplicates: 0, hub_time: jiff::Timestamp::now() });
        // Too large as a whole; then halves; of the second half, one event will never be taken.
        let answers = vec![
            Err(ProblemCode::Overloaded),
            Err(ProblemCode::TooLarge),
            stored(2),
            Err(ProblemCode::Invalid),
            stored(1),
            Err(ProblemCode::Invalid),
        ];
        let (url, thread) = hub(&fleet, answers);
        let trust = picket_transport::hub::HubTrust { roots: vec![fleet.root.certificate().clone()], identity: None };
        let settings = UplinkSettings { proxy: "none".into(), ..UplinkSettings::default() };
        let client = HubClient::new(&url, &trust, &settings.options("test", &ProxyChoice::none())).unwrap();
        let target = Target::Hub { client, relay: None, serial: String::new(), keep: true };
        let switch = Switch::new(target, Some(LocalUplink::new(&store)));
        let clock = ManualClock::new(jiff::Timestamp::now());
        let delivery = DeliverySettings::new(&OutboxSettings::default(), "device");
        let mut courier = Courier::new(Box::new(Switched(Arc::new(switch))), delivery);
        // One more than the waits it takes: the gap that tells of the event that is given up finds no hub.
        for _ in 0..8 {
            if outbox.ledger().total().gap_total() > 0 {
                break;
            }
            while let Step::Delivered(_) | Step::Again = courier.step(&outbox, &clock) {}
            clock.advance(Duration::from_secs(600));
        }
        thread.join().unwrap();
        let total = outbox.ledger().total();
        assert_eq!((total.acknowledged, total.gap_total()), (3, 1));
        assert_eq!(kept(&store), 4, "each of them, once");
    }
}
