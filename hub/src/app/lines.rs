//! The line of an agent's certificates: one follows another, and two of them in use side by side are two machines.
//!
//! A renewal whose answer was lost leaves a certificate that nobody uses, and an agent that goes on with the one before. So a
//! renewal says nothing; what tells is that a certificate is used when one that was issued later has been in use for a while.
//! Whoever does that copied the key or is the machine that it was copied from, and the hub cannot know which: it says so
//! (`cloned_identity`), and refuses neither. To refuse the one before would leave a thief who renewed first in the agent's
//! place. An agent that went back (`picket cert rollback`) looks the same until it renews.

use super::identity::KnownAgent;
use super::presence::Machine;
use crate::state::Hub;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{CERTIFICATES_IN_USE, DbError, PageRequest};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// For how long the certificate before may be used when the next one is: requests that are on their way, connections that
/// come to their end.
const OVERLAP: SignedDuration = SignedDuration::from_mins(5);
/// How often it is told of the same certificate.
const AGAIN: SignedDuration = SignedDuration::from_hours(24);
/// The most certificates that are remembered; beyond, all are forgotten and looked up again.
const MAX_REMEMBERED: usize = 50_000;

/// What this process knows of certificates in use.
#[derive(Debug, Default)]
pub struct Lines {
    /// Those whose use is noted, or need not be.
    noted: Mutex<HashSet<String>>,
    /// Those that were told of, and when.
    told: Mutex<HashMap<String, Timestamp>>,
}

/// The newest certificate of an agent that it has worked with, as the database keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct InUse {
    serial: String,
    issued_at: Timestamp,
    since: Timestamp,
}

impl InUse {
    /// Whether who shows a certificate that was issued at `issued_at` stands beside the one in use.
    fn is_beside(&self, issued_at: Timestamp, now: Timestamp) -> bool {
        self.issued_at > issued_at && now.duration_since(self.since) > OVERLAP
    }
}

/// Under which key of the settings it is kept.
fn key(agent: Uuid) -> String {
    format!("{CERTIFICATES_IN_USE}{agent}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// An agent worked with its certificate, or renewed it: looks whether it is used beside a newer one. Nobody is refused for
    /// it, nor when the database does not answer.
    pub async fn note_use(&self, agent: &KnownAgent, works: bool) {
        let outcome = match agent.superseded {
            true => self.look_beside(agent).await,
            false if works => self.note_in_use(agent).await,
            false => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::debug!(agent = %agent.id, %error, "which certificate an agent uses is not looked at");
        }
    }

    /// As [`Hub::note_use`], for who stays connected: asks the database whether there is a newer one by now.
    pub async fn note_use_again(&self, agent: &KnownAgent) {
        match self.db.certificate(self.tenant, &agent.serial).await {
            Ok(Some(found)) => {
                let agent = KnownAgent { superseded: found.superseded_at.is_some(), ..agent.clone() };
                self.note_use(&agent, true).await;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(agent = %agent.id, %error, "which certificate an agent uses is not looked at");
            }
        }
    }

    /// Notes that a certificate that followed another one is in use.
    async fn note_in_use(&self, agent: &KnownAgent) -> Result<(), DbError> {
        if lock(&self.lines.noted).contains(&agent.serial) {
            return Ok(());
        }
        let line = self.db.certificates_of(self.tenant, agent.id, &PageRequest::first(2)).await?;
        if line.items.len() > 1 {
            let kept = self.in_use(agent.id).await?;
            if kept.is_none_or(|kept| kept.issued_at < agent.issued_at) {
                let now = self.clock.now();
                let in_use = InUse { serial: agent.serial.clone(), issued_at: agent.issued_at, since: now };
                let value = serde_json::to_vec(&in_use).unwrap_or_default();
                self.db.put_setting(self.tenant, &key(agent.id), &value, None, now).await?;
            }
        }
        let mut noted = lock(&self.lines.noted);
        if noted.len() >= MAX_REMEMBERED {
            noted.clear();
        }
        noted.insert(agent.serial.clone());
        Ok(())
    }

    async fn in_use(&self, agent: Uuid) -> Result<Option<InUse>, DbError> {
        let kept = self.db.setting(self.tenant, &key(agent)).await?;
        Ok(kept.and_then(|kept| serde_json::from_slice(&kept.value).ok()))
    }

    /// Looks whether a newer certificate than this one has been in use for a while, and tells if so.
    async fn look_beside(&self, agent: &KnownAgent) -> Result<(), DbError> {
        let now = self.clock.now();
        if lock(&self.lines.told).get(&agent.serial).is_some_and(|told| now.duration_since(*told) < AGAIN) {
            return Ok(());
        }
        let Some(newer) = self.in_use(agent.id).await?.filter(|newer| newer.is_beside(agent.issued_at, now)) else {
            return Ok(());
        };
        {
            let mut told = lock(&self.lines.told);
            told.retain(|_, at| now.duration_since(*at) < AGAIN);
            // Another request of the same certificate was faster.
            if told.len() < MAX_REMEMBERED && told.insert(agent.serial.clone(), now).is_some() {
                return Ok(());
            }
        }
        tracing::warn!(
            agent = %agent.id, serial = agent.serial, newer = newer.serial, since = %newer.since,
            "a certificate is used beside the one that followed it"
        );
        let connected = self.presence.of(agent.id).map(|connection| Machine::from(&connection));
        let machine = |serial: &str| {
            let seen = connected.clone().filter(|machine| machine.serial == serial);
            seen.unwrap_or_else(|| Machine {
                boot_id: None,
                machine_hint: String::new(),
                address: String::new(),
                serial: serial.to_owned(),
            })
        };
        self.twins(agent.id, &[machine(&newer.serial), machine(&agent.serial)]).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_before_may_be_used_for_a_while_and_the_one_in_use_for_ever() {
        let at = |minutes| Timestamp::UNIX_EPOCH.checked_add(SignedDuration::from_mins(minutes)).unwrap();
        let newer = InUse { serial: "02".into(), issued_at: at(10), since: at(11) };
        assert!(!newer.is_beside(at(0), at(12)), "requests were on their way");
        assert!(newer.is_beside(at(0), at(17)));
        assert!(!newer.is_beside(at(10), at(1000)), "it is this one");
        assert!(!newer.is_beside(at(20), at(1000)), "the next one");
    }
}
