//! What agents and their hub say to each other: documents over HTTPS, frames over one WebSocket, both under mutual TLS.
//!
//! ```text
//! agent → hub   POST /agent/v1/enroll        with a token, without a certificate   → EnrolAnswer
//! agent → hub   POST /agent/v1/certificate   a request for the next certificate    → CertificateAnswer
//! agent → hub   POST /agent/v1/events        a batch, zstd                         → EventsAnswer, once it is stored
//! agent ↔ hub   GET  /agent/v1/socket        heartbeats, configuration, commands   (WebSocket)
//! agent → hub   GET  /agent/v1/whoami        who the hub takes one for             → WhoAmI
//! agent → NATS  a batch, signed              where the operator wants it so        → RelayAnswer, once it is stored
//! ```
//!
//! Every request says in the header [`WIRE_HEADER`] which versions its sender understands, every answer which one it is in.
//! Agent and hub are of different versions most of the time: unknown fields are ignored, unknown frames are skipped, and
//! anything that an older reader must not misread raises the version. A hub understands the version before its own, and so
//! does an agent.
//!
//! What goes wrong is a [`Problem`] (RFC 9457) with a code that programs can rely on.

mod config;
mod enrol;
mod events;
mod heartbeat;
mod problem;
mod relay;
mod socket;

pub use config::{ConfigDocument, ConfigState, ConfigStatus, Signed, SignedError};
pub use enrol::{
    CertificateAnswer, CertificateRequest, Clock, EnrolAnswer, EnrolRequest, Enrolled, Machine, Pending, WhoAmI,
};
pub use events::{
    EVENTS_MEDIA_TYPE, EventsAnswer, MAX_BATCH_BYTES, MAX_BATCH_RECORDS, RAW_BYTES_HEADER, RECORDS_HEADER,
};
pub use heartbeat::{AgentHealth, CertificateState, ClassAccount, Heartbeat, StreamLedger, UpdateState};
pub use heartbeat::{HEARTBEAT_MAX_CHECKS, HEARTBEAT_MAX_LEDGERS, HEARTBEAT_MAX_TEXT};
pub use problem::{FieldError, PROBLEM_MEDIA_TYPE, Problem, ProblemCode};
pub use relay::{RELAY_CHAIN, RELAY_RAW_BYTES, RELAY_SIGNATURE, RELAY_WIRE, RelayAnswer, RelayOutcome, relay_message};
pub use socket::{Bye, ByeReason, FRAME_MAX_BYTES, Frame, Hello, Welcome};

use crate::versions::VersionRange;

/// The versions of this wire that this program understands. Version 1 is the first.
pub const WIRE: VersionRange = VersionRange { oldest: 1, newest: 1 };
/// The header in which each side says which versions it understands, or which one an answer is in.
pub const WIRE_HEADER: &str = "picket-wire";

/// Where an agent enrols.
pub const ENROL_PATH: &str = "/agent/v1/enroll";
/// Where an agent gets its next certificate.
pub const CERTIFICATE_PATH: &str = "/agent/v1/certificate";
/// Where an agent delivers events.
pub const EVENTS_PATH: &str = "/agent/v1/events";
/// Where an agent connects its WebSocket.
pub const SOCKET_PATH: &str = "/agent/v1/socket";
/// Where an agent asks whom the hub takes it for.
pub const WHOAMI_PATH: &str = "/agent/v1/whoami";

/// The longest document but batches of events, in bytes.
pub const DOCUMENT_MAX_BYTES: usize = 256 << 10;
