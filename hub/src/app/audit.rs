//! The hub's own audit log: who did what to what, in a chain of hashes, each entry signed.
//!
//! An entry is written **before** the thing is done: what cannot be written down is not done. What then fails is said in an
//! entry of its own. The text of an entry is kept to the byte; its hash is over the hash before it and the text, so an
//! entry that is changed, removed or put in between shows, and the signature says that it was this hub.

use crate::refusal::{Outcome, Refusal};
use crate::state::Hub;
use ed25519_dalek::{Signature, VerifyingKey};
use picket_hub_db::{AuditHead, NewAuditEntry};
use picket_protocol::hub::{ProblemCode, Signed};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// How often an entry is tried when replicas append at the same time.
const ATTEMPTS: u32 = 50;
/// What the signature under an entry is bound to.
const PURPOSE: &str = "audit";
/// How many entries are read at a time while the chain is verified.
const RUN: u32 = 500;

/// What stands in an entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number.
    pub seq: i64,
    /// When.
    pub at: jiff::Timestamp,
    /// Who.
    pub actor: String,
    /// What they did.
    pub action: String,
    /// To what.
    pub object: String,
    /// What else is to be known; never a secret.
    pub details: Value,
    /// The hash of the entry before, in hexadecimal digits.
    pub previous: String,
}

/// How the chain is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainReport {
    /// How many entries there are.
    pub entries: u64,
    /// The hash of the last one, in hexadecimal digits: to be kept elsewhere, against a log that is cut off or written anew.
    pub head: String,
    /// What is wrong with it: the number of an entry and words. At most a hundred.
    pub problems: Vec<(i64, String)>,
}

impl Hub {
    /// Writes down that `actor` is about to do something.
    ///
    /// # Errors
    /// When it cannot be written: then it must not be done.
    pub async fn audit(&self, actor: &str, action: &str, object: &str, details: Value) -> Outcome<()> {
        let _one_at_a_time = self.audit_lock.lock().await;
        for _ in 0..ATTEMPTS {
            let head = self.db.audit_head(self.tenant).await?;
            let entry = Entry {
                seq: head.seq + 1,
                at: self.clock.now(),
                actor: actor.to_owned(),
                action: action.to_owned(),
                object: object.to_owned(),
                details: details.clone(),
                previous: hex(&head.hash),
            };
            // Strings, a number and JSON: nothing of it can fail.
            let text = serde_json::to_string(&entry).unwrap_or_default();
            let signed = self.keys().sign(PURPOSE, text);
            let record = serde_json::to_string(&signed).unwrap_or_default();
            let new = NewAuditEntry {
                at: entry.at,
                actor: entry.actor,
                action: entry.action,
                object: entry.object,
                hash: link(&head, &record),
                record,
            };
            match self.db.audit_append(self.tenant, &head, &[new]).await {
                Ok(_) => {
                    tracing::info!(actor, action, object, "audit");
                    self.note_taken_back(actor, action, object, &details);
                    return Ok(());
                }
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let detail = "the audit log is too busy to be written; nothing was done";
        Err(Refusal::new(ProblemCode::Overloaded, detail).after(std::time::Duration::from_secs(1)))
    }

    /// Reads the whole chain and says what is wrong with it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn verify_audit(&self) -> Outcome<ChainReport> {
        let key = crate::decode(&self.keys().command_key()).and_then(|key| <[u8; 32]>::try_from(key).ok());
        let key = key.and_then(|key| VerifyingKey::from_bytes(&key).ok());
        let mut head = AuditHead::default();
        let mut report = ChainReport { entries: 0, head: hex(&head.hash), problems: Vec::new() };
        loop {
            let run = self.db.audit_scan(self.tenant, head.seq, RUN).await?;
            let Some(last) = run.last() else { break };
            let next = AuditHead { seq: last.seq, hash: last.entry.hash };
            let mut before = head;
            for kept in &run {
                report.entries += 1;
                let problems = problems(&before, kept.seq, &kept.previous, &kept.entry, key.as_ref());
                report.problems.extend(problems.into_iter().map(|problem| (kept.seq, problem)));
                before = AuditHead { seq: kept.seq, hash: kept.entry.hash };
            }
            report.problems.truncate(100);
            head = next;
        }
        report.head = hex(&head.hash);
        Ok(report)
    }
}

/// The hash of an entry that stands behind `before`.
fn link(before: &AuditHead, record: &str) -> [u8; 32] {
    Sha256::new().chain_update(before.hash).chain_update(record.as_bytes()).finalize().into()
}

/// What is wrong with one entry.
fn problems(
    before: &AuditHead,
    seq: i64,
    previous: &[u8; 32],
    kept: &NewAuditEntry,
    key: Option<&VerifyingKey>,
) -> Vec<String> {
    let mut problems = Vec::new();
    if seq != before.seq + 1 {
        problems.push(format!("{} entries before it are missing", seq - before.seq - 1));
    }
    if *previous != before.hash || kept.hash != link(before, &kept.record) {
        problems.push("it does not follow from the entry before it: one of them was changed".to_owned());
    }
    let signed: Option<Signed> = serde_json::from_str(&kept.record).ok();
    let entry: Option<Entry> = signed.as_ref().and_then(|signed| serde_json::from_str(&signed.payload).ok());
    let (Some(signed), Some(entry)) = (signed, entry) else {
        problems.push("it cannot be read".to_owned());
        return problems;
    };
    let signature = crate::decode(&signed.signature).and_then(|bytes| Signature::from_slice(&bytes).ok());
    let message = Signed::message(PURPOSE, &signed.payload);
    let holds = key.zip(signature).is_some_and(|(key, signature)| key.verify_strict(&message, &signature).is_ok());
    if !holds {
        problems.push("its signature is not this hub's".to_owned());
    }
    let columns = (entry.seq, &entry.actor, &entry.action, &entry.object);
    if columns != (seq, &kept.actor, &kept.action, &kept.object) {
        problems.push("what it is searched by is not what it says".to_owned());
    }
    problems
}

fn hex(bytes: &[u8; 32]) -> String {
    picket_pki::SpkiPin::from_bytes(*bytes).to_hex()
}
