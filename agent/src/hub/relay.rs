//! The way of batches to the hub through NATS (`uplink.via: nats`): each is signed with the machine's key, put into the hub's
//! queue there, and forgotten only at the hub's signed word that it is stored.

use super::pushed::believed;
use super::record::Identity;
use super::settings::{UplinkSettings, Via};
use super::store::CertStore;
use super::uplink::uplink_error;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use picket_bus::{BusError, NatsPoster, NatsSettings, Parcel, tenant_name};
use picket_outbox::EncodedBatch;
use picket_outbox::delivery::{UplinkError, UplinkErrorKind};
use picket_protocol::hub::{
    EventsAnswer, RELAY_CHAIN, RELAY_RAW_BYTES, RELAY_SIGNATURE, RELAY_WIRE, RelayAnswer, RelayOutcome, Signed,
    SignedError, WIRE, relay_message,
};
use picket_protocol::trace::{CORRELATION_HEADER, TRACEPARENT_HEADER, TraceContext};
use picket_transport::hub::HubCallError;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// Why a batch is not known to be stored.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// NATS did not take it, or nobody answered.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The hub refused it.
    #[error("the hub refused it")]
    Refused(#[source] HubCallError),
    /// Whoever answered is not the hub, or speaks of something else.
    #[error("an answer through NATS is not the hub's: {0}")]
    Word(#[from] SignedError),
    /// It cannot be signed.
    #[error("a batch cannot be signed: {0}")]
    Key(#[from] picket_pki::PkiError),
}

/// The way through NATS, for one identity. Connects when it is first needed.
pub struct Relay {
    settings: NatsSettings,
    identity: Identity,
    patience: Duration,
    poster: Mutex<Option<NatsPoster>>,
    /// Its own, so that the connection is looked after while nothing is sent.
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("servers", &self.settings.servers).finish_non_exhaustive()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Whoever drops it may itself be asynchronous, where nobody may wait for a runtime's end.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Relay {
    /// For this identity, whose files are in `store`; none where events do not go through NATS.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn wanted(uplink: &UplinkSettings, store: &CertStore, identity: &Identity) -> std::io::Result<Option<Self>> {
        if uplink.via != Via::Nats {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("picket-nats")
            .enable_all()
            .build()?;
        Ok(Some(Self {
            settings: uplink.nats(store),
            identity: identity.clone(),
            patience: uplink.request_timeout.get().max(Duration::from_secs(1)),
            poster: Mutex::new(None),
            runtime: Some(runtime),
        }))
    }

    /// Connects, if that is not done yet. For `picket test-connection`.
    ///
    /// # Errors
    /// What NATS says, or why it says nothing.
    pub fn connect(&self) -> Result<(), BusError> {
        self.with(async |_| Ok(()))
    }

    /// The servers' addresses.
    pub fn servers(&self) -> String {
        self.settings.servers.join(", ")
    }

    /// Sends a batch. When this returns without an error, the hub has stored it.
    ///
    /// # Errors
    /// When that is not known.
    pub fn deliver(&self, batch: &EncodedBatch, cause: &TraceContext) -> Result<EventsAnswer, RelayError> {
        let (parcel, reply) = self.parcel(batch, cause)?;
        let word = self.with(async |poster| poster.post(parcel, self.patience).await)?;
        self.read(&word, &reply)
    }

    fn with<T>(&self, work: impl AsyncFnOnce(&mut NatsPoster) -> Result<T, BusError>) -> Result<T, BusError> {
        let runtime = self.runtime.as_ref().ok_or(BusError::Closed)?;
        let mut poster = self.poster.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.block_on(async {
            let poster = match &mut *poster {
                Some(poster) => poster,
                none => {
                    let name = self.identity.name();
                    none.insert(NatsPoster::connect(&self.settings, tenant_name(name.tenant), name.agent).await?)
                }
            };
            work(poster).await
        })
    }

    /// What is sent, and where the answer will be.
    fn parcel(&self, batch: &EncodedBatch, cause: &TraceContext) -> Result<(Parcel, String), RelayError> {
        let name = self.identity.name();
        let tenant = tenant_name(name.tenant);
        let id = id(&batch.bytes);
        let (subject, reply) = NatsPoster::subjects(tenant, name.agent, &id)?;
        let message = relay_message(subject.as_str(), reply.as_str(), batch.uncompressed_bytes, &batch.bytes);
        let signature = self.identity.client.key().sign(&message)?;
        let chain: Vec<String> = self.identity.client.chain().iter().map(|each| STANDARD.encode(each.der())).collect();
        let headers = [
            (RELAY_CHAIN, chain.join(",")),
            (RELAY_SIGNATURE, STANDARD.encode(signature)),
            (RELAY_RAW_BYTES, batch.uncompressed_bytes.to_string()),
            (RELAY_WIRE, WIRE.to_string()),
            (CORRELATION_HEADER, cause.correlation_id.to_string()),
            (TRACEPARENT_HEADER, cause.parent.child().to_string()),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).into();
        Ok((Parcel { id, headers, body: batch.bytes.clone().into() }, reply.to_string()))
    }

    /// Reads what was answered at `reply`.
    fn read(&self, word: &[u8], reply: &str) -> Result<EventsAnswer, RelayError> {
        let malformed = |error: serde_json::Error| SignedError::Malformed(error.to_string());
        let signed: Signed = serde_json::from_slice(word).map_err(malformed)?;
        let payload = believed(&signed, &self.identity.record, RelayAnswer::PURPOSE)?;
        let answer: RelayAnswer = serde_json::from_str(payload).map_err(malformed)?;
        if answer.agent_id != self.identity.record.agent_id || answer.reply != reply {
            return Err(SignedError::Audience.into());
        }
        match answer.outcome {
            RelayOutcome::Stored(stored) => Ok(stored),
            RelayOutcome::Refused(problem) => Err(RelayError::Refused(HubCallError::Problem(problem))),
        }
    }
}

/// The same for the same batch, as long as NATS remembers: what is sent again is not stored again.
fn id(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..16].iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a failure means for the batch.
pub fn relay_failure(error: &RelayError, records: usize) -> UplinkError {
    let kind = match error {
        RelayError::Refused(refusal) => return uplink_error(refusal),
        RelayError::Word(_) | RelayError::Key(_) => UplinkErrorKind::Broken,
        RelayError::Bus(error) => match error {
            BusError::Full { .. } => UplinkErrorKind::Busy,
            // A smaller one fits. That one event does not is for the servers' max_payload, and costs no event.
            BusError::TooLong { .. } if records > 1 => UplinkErrorKind::Rejected,
            BusError::TooLong { .. } | BusError::Settings { .. } | BusError::Refused { .. } => UplinkErrorKind::Refused,
            _ => UplinkErrorKind::Unreachable,
        },
    };
    UplinkError { kind, retry_after: None, detail: crate::keep::told(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_trouble_of_nats_costs_an_event() {
        let kind = |error: BusError, records| relay_failure(&RelayError::Bus(error), records).kind;
        let too_long = || BusError::TooLong { bytes: 9, limit: 8 };
        assert_eq!(kind(too_long(), 2), UplinkErrorKind::Rejected, "smaller ones fit");
        let timeout = Duration::from_secs(1);
        for error in [
            too_long(),
            BusError::Disconnected,
            BusError::TimedOut(timeout),
            BusError::Unanswered(timeout),
            BusError::Full { queue: "events".into() },
            BusError::Closed,
        ] {
            assert_ne!(kind(error, 1), UplinkErrorKind::Rejected);
        }
        let forged = RelayError::Word(SignedError::Signature);
        assert_eq!(relay_failure(&forged, 1).kind, UplinkErrorKind::Broken);
    }

    #[test]
    fn the_same_batch_has_the_same_id() {
        assert_eq!(id(b"a"), id(b"a"));
        assert_ne!(id(b"a"), id(b"b"));
        assert_eq!(id(b"a").len(), 32);
    }
}
