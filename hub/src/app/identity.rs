//! Which agent is behind a certificate, and what it may do with it.
//!
//! That an authority vouches for the certificate and that the peer has its key was seen in the handshake. Here is asked
//! whether the hub knows it, whether it is revoked, and whether it still holds. What the database says is remembered for a
//! short time, and forgotten at once when this hub or a replica revokes anything.

use crate::refusal::{Outcome, Refusal, storage};
use crate::state::Hub;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{AgentStatus, PAGE_MAX, PageRequest, TenantId};
use picket_pki::{AgentIdentity, Certificate, SpkiPin};
use picket_protocol::hub::ProblemCode;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long an answer of the database is believed. A revocation by a replica that this one does not hear of takes effect
/// within this time.
const BELIEVED_FOR: Duration = Duration::from_secs(30);
/// The most answers that are remembered; beyond, all are forgotten.
const MAX_REMEMBERED: usize = 50_000;
/// The most revoked certificates that are known without asking.
const MAX_REVOKED: usize = 100_000;
/// By how much the clocks of replicas may differ.
const CLOCKS: SignedDuration = SignedDuration::from_mins(5);

/// An agent that has shown its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownAgent {
    /// Who it is.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: TenantId,
    /// The certificate's serial number.
    pub serial: String,
    /// The certificate's key.
    pub pin: SpkiPin,
    /// Until when the certificate holds.
    pub not_after: Timestamp,
    /// When the certificate was issued.
    pub issued_at: Timestamp,
    /// Whether a newer certificate took its place.
    pub superseded: bool,
}

/// What is remembered of the database's answers.
#[derive(Debug, Default)]
pub struct Identities {
    known: Mutex<HashMap<String, (Instant, Standing)>>,
    /// Serial numbers that are revoked, and until when their certificates would have held.
    revoked: Mutex<HashMap<String, Timestamp>>,
}

/// What the database says of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    agent: Uuid,
    key_hash: [u8; 32],
    issued_at: Timestamp,
    superseded: bool,
    revoked: Option<String>,
}

/// What is to be done with the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Anything that an agent does.
    Work,
    /// Getting the next certificate: allowed for some time after the end, too.
    Renew,
}

impl Identities {
    /// Forgets everything: something was revoked.
    pub fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn recall(&self, serial: &str) -> Option<Standing> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(serial).filter(|(at, _)| at.elapsed() < BELIEVED_FOR).map(|(_, standing)| standing.clone())
    }

    fn remember(&self, serial: &str, standing: &Standing) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(serial.to_owned(), (Instant::now(), standing.clone()));
    }

    /// Notes what was revoked, and forgets what has ended by itself.
    fn note_revoked(&self, all: impl Iterator<Item = (String, Timestamp)>, now: Timestamp) {
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        revoked.retain(|_, not_after| *not_after > now);
        for (serial, not_after) in all.filter(|(_, not_after)| *not_after > now) {
            if revoked.len() < MAX_REVOKED {
                revoked.insert(serial, not_after);
            }
        }
    }

    fn is_revoked(&self, serial: &str) -> bool {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner).contains_key(serial)
    }
}

impl Hub {
    /// The agent behind `certificate`.
    ///
    /// # Errors
    /// With a code that says what it means for the identity: only `revoked` and `unknown_agent` cost it.
    pub async fn agent_behind(&self, certificate: Option<&Arc<Certificate>>, purpose: Purpose) -> Outcome<KnownAgent> {
        let now = self.clock.now();
        let certificate = certificate.ok_or_else(|| {
            let detail = "no client certificate was shown; enrol first with: picket enroll";
            Refusal::new(ProblemCode::CertificateRequired, detail).at(now)
        })?;
        let named = certificate.agent.filter(|named| named.tenant == self.tenant.0);
        let standing = match named {
            Some(_) => self.standing(certificate).await?,
            None => None,
        };
        let strange = standing.as_ref().is_none_or(|standing| !standing.is_of(certificate));
        let lives = match named.filter(|_| strange) {
            Some(named) => self.lives(named.agent).await?,
            None => false,
        };
        let decided = decide(certificate, named.zip(standing), lives, purpose, now, self.grace);
        let agent = decided.map_err(|refusal| refusal.at(now))?;
        self.note_use(&agent, purpose == Purpose::Work).await;
        Ok(agent)
    }

    /// Whose certificate this is, as far as is known without asking the database; none for one that has expired or is
    /// revoked. It decides about a place on the port, and admits nobody.
    pub fn holder(&self, certificate: &Certificate) -> Option<Uuid> {
        let named = certificate.agent.filter(|named| named.tenant == self.tenant.0)?;
        let holds = self.clock.now() <= certificate.not_after && !self.identities.is_revoked(&certificate.serial);
        holds.then_some(named.agent)
    }

    /// Looks for what was revoked since `since`, here or at a replica. Gives from when on to look the next time.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn look_for_revoked(&self, since: Timestamp) -> Outcome<Timestamp> {
        let now = self.clock.now();
        let mut request = PageRequest::first(PAGE_MAX);
        loop {
            let page = self.db.revocations(self.tenant, since, &request).await.map_err(storage)?;
            self.identities.note_revoked(page.items.into_iter().map(|one| (one.serial, one.not_after)), now);
            match page.next {
                Some(next) => request = PageRequest::after(next, PAGE_MAX),
                None => return Ok(now.checked_sub(CLOCKS).unwrap_or(since)),
            }
        }
    }

    /// Whether the agent is here and not retired. A certificate that the database lacks says nothing of that: the database
    /// may be of before the certificate.
    async fn lives(&self, agent: Uuid) -> Outcome<bool> {
        let agent = self.db.agent(self.tenant, agent).await.map_err(storage)?;
        Ok(agent.is_some_and(|agent| agent.status != AgentStatus::Retired))
    }

    async fn standing(&self, certificate: &Certificate) -> Outcome<Option<Standing>> {
        if let Some(standing) = self.identities.recall(&certificate.serial) {
            return Ok(Some(standing));
        }
        let Some(found) = self.db.certificate(self.tenant, &certificate.serial).await.map_err(storage)? else {
            return Ok(None);
        };
        let standing = Standing {
            agent: found.issued.agent,
            key_hash: found.issued.key_hash,
            issued_at: found.issued.issued_at,
            superseded: found.superseded_at.is_some(),
            revoked: found.revoked.map(|revoked| revoked.reason),
        };
        self.identities.remember(&certificate.serial, &standing);
        Ok(Some(standing))
    }
}

impl Standing {
    /// Whether it is of this certificate and no other with its number.
    fn is_of(&self, certificate: &Certificate) -> bool {
        certificate.agent.is_some_and(|named| named.agent == self.agent) && self.key_hash == *certificate.pin.as_bytes()
    }
}

/// Decides about a certificate that our authority vouches for: pure. `lives` is whether the agent in one that the database
/// lacks is here all the same.
fn decide(
    certificate: &Certificate,
    known: Option<(AgentIdentity, Standing)>,
    lives: bool,
    purpose: Purpose,
    now: Timestamp,
    grace: SignedDuration,
) -> Outcome<KnownAgent> {
    let Some((named, standing)) = known.filter(|(_, standing)| standing.is_of(certificate)) else {
        return Err(if lives {
            // It costs no identity: the database that knows the certificate may come back.
            let detail = "this hub knows the agent, and has no record of this certificate: its database may have been \
                          restored from a backup; go back with: picket cert rollback, or enrol again";
            Refusal::new(ProblemCode::CertificateSuperseded, detail)
        } else {
            let detail = "this hub does not know the agent, or has deleted it; enrol again with: picket enroll";
            Refusal::new(ProblemCode::UnknownAgent, detail)
        });
    };
    if let Some(reason) = standing.revoked {
        let detail = format!("the certificate was revoked ({reason}); if this machine is to come back, enrol it again");
        return Err(Refusal::new(ProblemCode::Revoked, detail));
    }
    let known = KnownAgent {
        id: named.agent,
        tenant: TenantId(named.tenant),
        serial: certificate.serial.clone(),
        pin: certificate.pin,
        not_after: certificate.not_after,
        issued_at: standing.issued_at,
        superseded: standing.superseded,
    };
    if now <= certificate.not_after {
        return Ok(known);
    }
    let ended = certificate.not_after;
    match purpose {
        Purpose::Work => {
            let detail = format!("the certificate expired at {ended}; renew it with: picket cert renew");
            Err(Refusal::new(ProblemCode::CertificateExpired, detail))
        }
        Purpose::Renew if now.duration_since(ended) <= grace => Ok(known),
        Purpose::Renew => {
            let detail = format!(
                "the certificate expired at {ended}, and may be renewed for {} days after that; enrol again",
                grace.as_hours() / 24
            );
            Err(Refusal::new(ProblemCode::RenewalTooLate, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_pki::{Authority, CsrKey, PrivateKey};

    const GRACE: SignedDuration = SignedDuration::from_hours(24 * 30);

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn certificate() -> (Certificate, AgentIdentity, Standing) {
        let identity = AgentIdentity { tenant: 1, agent: Uuid::now_v7() };
        let key = PrivateKey::generate().unwrap();
        let request = CsrKey::from_request(&key.request("x").unwrap()).unwrap();
        let certificate = Authority::root("test", now()).unwrap().agent(identity, &request, now()).unwrap();
        let key_hash = *certificate.pin.as_bytes();
        let standing = Standing { agent: identity.agent, key_hash, issued_at: now(), superseded: false, revoked: None };
        (certificate, identity, standing)
    }

    fn code(outcome: Outcome<KnownAgent>) -> Option<ProblemCode> {
        outcome.err().map(|refusal| refusal.code())
    }

    #[test]
    fn a_certificate_that_the_hub_issued_and_did_not_revoke_is_an_agents() {
        let (certificate, identity, standing) = certificate();
        let known =
            decide(&certificate, Some((identity, standing.clone())), false, Purpose::Work, now(), GRACE).unwrap();
        assert_eq!((known.id, known.tenant), (identity.agent, TenantId(1)));

        let other = Standing { agent: Uuid::now_v7(), ..standing.clone() };
        let swapped = Standing { key_hash: [7; 32], ..standing.clone() };
        for strange in [None, Some(other), Some(swapped)] {
            for (lives, costs) in [(false, ProblemCode::UnknownAgent), (true, ProblemCode::CertificateSuperseded)] {
                let known = strange.clone().map(|standing| (identity, standing));
                for purpose in [Purpose::Work, Purpose::Renew] {
                    let outcome = decide(&certificate, known.clone(), lives, purpose, now(), GRACE);
                    assert_eq!(code(outcome), Some(costs));
                }
            }
        }
        let revoked = Standing { revoked: Some("stolen".into()), ..standing };
        let outcome = decide(&certificate, Some((identity, revoked)), true, Purpose::Renew, now(), GRACE);
        assert_eq!(code(outcome), Some(ProblemCode::Revoked));
    }

    #[test]
    fn what_is_revoked_is_remembered_until_it_would_have_ended() {
        let identities = Identities::default();
        let at = |hours| now().checked_add(SignedDuration::from_hours(hours)).unwrap();
        identities.note_revoked([("01".into(), at(1)), ("02".into(), at(-1))].into_iter(), now());
        assert!(identities.is_revoked("01") && !identities.is_revoked("02"));
        identities.forget();
        assert!(identities.is_revoked("01"), "that something changed brings nothing back");
        identities.note_revoked(std::iter::empty(), at(2));
        assert!(!identities.is_revoked("01"));
    }

    #[test]
    fn an_expired_certificate_renews_itself_within_the_grace_period_and_does_nothing_else() {
        let (certificate, identity, standing) = certificate();
        let at = |hours| certificate.not_after.checked_add(SignedDuration::from_hours(hours)).unwrap();
        let outcome =
            |purpose, now| decide(&certificate, Some((identity, standing.clone())), false, purpose, now, GRACE);
        assert_eq!(code(outcome(Purpose::Work, at(1))), Some(ProblemCode::CertificateExpired));
        assert!(outcome(Purpose::Renew, at(24 * 29)).is_ok());
        assert_eq!(code(outcome(Purpose::Renew, at(24 * 31))), Some(ProblemCode::RenewalTooLate));
    }
}
