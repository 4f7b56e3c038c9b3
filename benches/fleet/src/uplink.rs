//! The ways of batches to the hub: the agent's own clients, and the agent's own reading of what a failure means.

use crate::event::details;
use crate::machine::{Machine, options};
use jiff::Timestamp;
use picket_agent::hub::{CertStore, Identity, Relay, UplinkSettings, Via, relay_failure, uplink_error};
use picket_config::Interval;
use picket_outbox::EncodedBatch;
use picket_outbox::delivery::{Accepted, Uplink, UplinkError};
use picket_protocol::hub::{EVENTS_MEDIA_TYPE, EVENTS_PATH, EventsAnswer, RAW_BYTES_HEADER, RECORDS_HEADER};
use picket_protocol::trace::TraceContext;
use picket_transport::hub::HubClient;
use serde_json::json;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

/// Delivers to one hub under one identity.
pub struct HubUplink(HubClient);

impl HubUplink {
    /// For this machine.
    pub fn new(machine: &Machine) -> Self {
        Self(HubClient::new(&machine.hub, &machine.trust, &options()).unwrap())
    }

    /// Sends a batch and gives the hub's answer.
    ///
    /// # Errors
    /// What the agent makes of the failure.
    pub fn deliver(&self, batch: &EncodedBatch) -> Result<EventsAnswer, UplinkError> {
        let headers =
            [(RAW_BYTES_HEADER, batch.uncompressed_bytes.to_string()), (RECORDS_HEADER, batch.records.to_string())];
        let sent = self.0.post_bytes(EVENTS_PATH, EVENTS_MEDIA_TYPE, &headers, &batch.bytes, None);
        sent.map_err(|error| uplink_error(&error))
    }
}

impl Uplink for HubUplink {
    fn send(&self, batch: &EncodedBatch, _: &TraceContext) -> Result<Accepted, UplinkError> {
        self.deliver(batch).map(|_| Accepted)
    }
}

/// Delivers through NATS under one identity, as an agent with `uplink.via: nats` does.
pub struct NatsUplink(Relay);

impl NatsUplink {
    /// Through this server, for the identity that is in `store`. An answer is waited for as long as said.
    pub fn new(server: &str, store: &CertStore, identity: &Identity, patience: Interval) -> Self {
        let mut settings = UplinkSettings { via: Via::Nats, request_timeout: patience, ..UplinkSettings::default() };
        settings.nats.servers = vec![server.to_owned()];
        assert_eq!(settings.problem(), None);
        Self(Relay::wanted(&settings, store, identity).unwrap().unwrap())
    }
}

impl Uplink for NatsUplink {
    fn send(&self, batch: &EncodedBatch, cause: &TraceContext) -> Result<Accepted, UplinkError> {
        let sent = self.0.deliver(batch, cause);
        sent.map(|_| Accepted).map_err(|error| relay_failure(&error, batch.records))
    }
}

/// A batch of file events with these numbers, which are their places in the stream, too.
pub fn batch(machine: &Machine, numbers: RangeInclusive<u64>) -> EncodedBatch {
    let mut lines = String::new();
    let records = usize::try_from(numbers.end() - numbers.start() + 1).unwrap();
    for number in numbers {
        let line = json!({
            "schema": 1, "device_id": machine.id, "boot_id": machine.boot, "seq": number, "class": "normal",
            "type": "file", "details": details(machine.index, number, Timestamp::now()),
        });
        writeln!(lines, "{line}").unwrap();
    }
    let bytes = zstd::bulk::compress(lines.as_bytes(), 3).unwrap();
    EncodedBatch { bytes, uncompressed_bytes: lines.len(), records }
}
