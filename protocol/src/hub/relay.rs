//! A batch of events that an agent sends through a bus (NATS) and not over its own connection: who vouches for it, and how it
//! is answered.
//!
//! Nobody believes the bus. The agent signs what it sends with the key of its certificate, the hub signs what it answers with
//! its command key, and each word names the batch that it is about. So whoever can write to the bus can hold a batch up, and
//! can neither put events in an agent's mouth nor make an agent forget what is not stored.

use super::{EventsAnswer, Problem};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The header with the agent's certificate and those behind it: DER in base64, with commas in between.
pub const RELAY_CHAIN: &str = "Chain";
/// The header with the signature over [`relay_message`], in base64: ECDSA with P-256 and SHA-256.
pub const RELAY_SIGNATURE: &str = "Signature";
/// The header that says how many bytes the batch has before compression.
pub const RELAY_RAW_BYTES: &str = "Raw-Bytes";
/// The header that says which versions of the wire the agent understands.
pub const RELAY_WIRE: &str = "Wire";

/// What an agent signs: a word of this protocol's, where it says it, where it wants to be answered, the length before
/// compression, and the batch, each ended by a zero byte or by the end. None but the last can have one in it.
pub fn relay_message(subject: &str, reply: &str, raw_bytes: usize, batch: &[u8]) -> Vec<u8> {
    let raw_bytes = raw_bytes.to_string();
    [b"picket-batch-1", subject.as_bytes(), reply.as_bytes(), raw_bytes.as_bytes(), batch].join(&0)
}

/// The hub's answer: the payload of a [`super::Signed`] of purpose `batch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayAnswer {
    /// For whom.
    pub agent_id: Uuid,
    /// Where the agent wanted to be answered, which names the batch.
    pub reply: String,
    /// What became of it.
    pub outcome: RelayOutcome,
}

impl RelayAnswer {
    /// The purpose under which it is signed.
    pub const PURPOSE: &'static str = "batch";
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelayOutcome {
    /// **All of it is stored**, by now or before.
    Stored(EventsAnswer),
    /// None of it is.
    Refused(Box<Problem>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_batches_are_signed_alike() {
        let message = relay_message("s", "r", 12, b"34");
        for (subject, reply, raw_bytes, batch) in [
            ("t", "r", 12, "34"),
            ("s", "q", 12, "34"),
            ("sr", "", 12, "34"),
            ("s", "r1", 2, "34"),
            ("s", "r", 123, "4"),
        ] {
            assert_ne!(message, relay_message(subject, reply, raw_bytes, batch.as_bytes()));
        }
    }

    #[test]
    fn an_answer_reads_back_what_it_writes() {
        let stored = EventsAnswer { stored: 2, duplicates: 1, hub_time: "2026-11-21T12:00:00Z".parse().unwrap() };
        let refused = Problem::new(crate::hub::ProblemCode::Revoked, "stolen");
        for outcome in [RelayOutcome::Stored(stored), RelayOutcome::Refused(Box::new(refused))] {
            let answer = RelayAnswer { agent_id: Uuid::from_u128(1), reply: "r".to_owned(), outcome };
            let text = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::from_str::<RelayAnswer>(&text).unwrap(), answer);
        }
    }
}
