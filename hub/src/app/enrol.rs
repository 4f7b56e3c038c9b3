//! Letting machines in, and giving agents their next certificate.

use super::identity::KnownAgent;
use crate::refusal::{Outcome, Refusal, storage};
use crate::state::Hub;
use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{EnrolOutcome, EnrolRequest as Asked, Hidden, Network, NewCertificate};
use picket_pki::{AgentIdentity, Certificate, CsrKey, SKEW, certificates_from_pem, certificates_to_pem, secret_hash};
use picket_protocol::hub::{
    CertificateAnswer, CertificateRequest, Clock, EnrolAnswer, EnrolRequest, Enrolled, Pending, ProblemCode,
};
use std::net::IpAddr;
use uuid::Uuid;

/// How long an approval is waited for before the machine has to begin again.
pub const APPROVAL_LIMIT: SignedDuration = SignedDuration::from_hours(24 * 7);
/// After how many seconds a machine that waits for approval asks again.
const ASK_AGAIN: u64 = 15;
/// The longest name of an agent, in characters.
const MAX_NAME: usize = 255;

impl Hub {
    /// Lets a machine in, or says why not.
    ///
    /// # Errors
    /// With a code for each reason and what to do about it.
    pub async fn enrol(&self, request: &EnrolRequest, address: IpAddr) -> Outcome<EnrolAnswer> {
        let now = self.clock.now();
        let refused = |code, detail: String| Refusal::new(code, detail).at(now);
        check_network(&self.enrolment_networks, address).map_err(|refusal| refusal.at(now))?;
        check_clock(request.clock, now)?;
        let (csr_der, key) = read_csr(&request.csr, now)?;
        let name = name_of(&request.name).or_else(|| name_of(&request.machine.hostname));
        let name = name.ok_or_else(|| refused(ProblemCode::Invalid, "the machine has no name".to_owned()))?;
        // Issued before the token is looked at, so that agent, certificate and the token's use are one transaction.
        let identity = AgentIdentity { tenant: self.tenant.0, agent: Uuid::now_v7() };
        let keys = self.keys();
        let leaf = keys.intermediate.agent(identity, &key, now)?;
        let asked = Asked {
            token: request.token_id,
            secret_hash: Hidden(secret_hash(&request.secret)),
            now,
            address,
            name: name.clone(),
            kind: kind_of(&request.agent_type),
            csr: crate::encode(&csr_der),
            certificate: self.row(&leaf, identity.agent, now),
        };
        let outcome = self.db.consume_token(self.tenant, &asked).await.map_err(storage)?;
        let token = request.token_id;
        let (agent, leaf) = match outcome {
            EnrolOutcome::New { agent } => {
                self.tell_agent_changed(agent);
                tracing::info!(%agent, %token, %address, name, key = %key.pin(), "a machine enrolled");
                (agent, leaf)
            }
            EnrolOutcome::Replay { agent, pem, .. } => {
                tracing::info!(%agent, %token, %address, "a machine fetched the answer to its enrolment again");
                let mut stored = certificates_from_pem(&pem)?;
                (agent, stored.swap_remove(0))
            }
            EnrolOutcome::PendingApproval { enrolment } => {
                tracing::info!(%enrolment, %token, %address, name, key = %key.pin(), "a machine waits for approval");
                let expires_at = now.checked_add(APPROVAL_LIMIT).unwrap_or(now);
                let fingerprint = key.pin().to_string();
                return Ok(EnrolAnswer::Pending(Pending { retry_after: ASK_AGAIN, expires_at, fingerprint }));
            }
            refusal => {
                let (code, detail) = told(&refusal, address, now);
                tracing::warn!(%token, %address, name, code = code.as_str(), "an enrolment was refused");
                return Err(refused(code, detail));
            }
        };
        let name = self.db.agent(self.tenant, agent).await.map_err(storage)?.map_or(name, |agent| agent.name);
        let certificate = self.certificate_answer(leaf, now);
        Ok(EnrolAnswer::Enrolled(Enrolled { agent_id: agent, tenant_id: self.tenant.0, name, certificate }))
    }

    /// Gives an agent its next certificate.
    ///
    /// # Errors
    /// When the request cannot be used, or the identity was lost meanwhile.
    pub async fn renew(&self, agent: &KnownAgent, request: &CertificateRequest) -> Outcome<CertificateAnswer> {
        let now = self.clock.now();
        check_clock(request.clock, now)?;
        let (_, key) = read_csr(&request.csr, now)?;
        let identity = AgentIdentity { tenant: self.tenant.0, agent: agent.id };
        let leaf = self.keys().intermediate.agent(identity, &key, now)?;
        let row = self.row(&leaf, agent.id, now);
        self.db.renew_certificate(self.tenant, &row, &agent.serial).await.map_err(|error| {
            if error.is_conflict() || error.is_not_found() {
                let detail = "the identity was revoked meanwhile; if this machine is to come back, enrol it again";
                Refusal::new(ProblemCode::Revoked, detail).at(now)
            } else {
                storage(error)
            }
        })?;
        self.tell_certificates_changed();
        tracing::info!(
            agent = %agent.id, serial = leaf.serial, until = %leaf.not_after, reason = request.reason,
            "a certificate was renewed"
        );
        Ok(self.certificate_answer(leaf, now))
    }

    /// Retires an agent: its certificates are revoked, and it is told so where it is connected.
    ///
    /// # Errors
    /// When there is none, or the database does not answer.
    pub async fn retire(&self, agent: Uuid, by: &str) -> Outcome<()> {
        self.db.retire_agent(self.tenant, agent, by, self.clock.now()).await?;
        self.tell_certificates_changed();
        self.tell_retired(agent);
        self.tell_agent_changed(agent);
        tracing::info!(%agent, by, "an agent is retired");
        Ok(())
    }

    /// The row of a certificate that is issued now.
    pub(crate) fn row(&self, leaf: &Certificate, agent: Uuid, now: Timestamp) -> NewCertificate {
        NewCertificate {
            serial: leaf.serial.clone(),
            agent,
            key_hash: *leaf.pin.as_bytes(),
            issuer: self.keys().intermediate.certificate().pin.to_hex(),
            pem: leaf.to_pem(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            issued_at: now,
        }
    }

    /// What a machine gets with its certificate.
    pub(crate) fn certificate_answer(&self, leaf: Certificate, now: Timestamp) -> CertificateAnswer {
        let keys = self.keys();
        CertificateAnswer {
            certificate: certificates_to_pem(&keys.agent_chain(leaf)),
            authorities: certificates_to_pem(&keys.roots),
            command_key: keys.command_key(),
            hub_time: now,
            hub: None,
        }
    }
}

/// Refuses who asks from where nobody may enrol, whatever their token says: `networks` of the configuration, none of them
/// meaning everywhere.
fn check_network(networks: &[Network], address: IpAddr) -> Outcome<()> {
    if networks.is_empty() || networks.iter().any(|network| network.holds(address)) {
        return Ok(());
    }
    let detail = format!(
        "machines may not enrol from {address}; enrol from where they may, or add its network to enrolment.networks on the hub"
    );
    Err(Refusal::new(ProblemCode::AddressRefused, detail))
}

/// Refuses when the certificate would not hold by the machine's own clock: certificates are dated back by a day.
fn check_clock(clock: Clock, now: Timestamp) -> Outcome<()> {
    let ahead = clock.now.duration_since(now);
    if ahead.abs() < SKEW {
        return Ok(());
    }
    let direction = if ahead.is_negative() { "behind" } else { "ahead of" };
    let detail = format!(
        "the clock of this machine is {:#} {direction} the hub's ({now}); set it, for example with timedatectl, and try again",
        ahead.abs()
    );
    Err(Refusal::new(ProblemCode::ClockSkew, detail).at(now))
}

fn read_csr(text: &str, now: Timestamp) -> Outcome<(Vec<u8>, CsrKey)> {
    let invalid = |detail: String| Refusal::new(ProblemCode::CsrInvalid, detail).at(now);
    let der = crate::decode(text).ok_or_else(|| invalid("the certificate request is not base64".to_owned()))?;
    let key = CsrKey::from_request(&der).map_err(|error| invalid(error.to_string()))?;
    Ok((der, key))
}

/// A name as it is shown: no control characters, no blanks around it, bounded.
fn name_of(text: &str) -> Option<String> {
    let name: String = text.trim().chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
    (!name.is_empty()).then_some(name)
}

fn kind_of(text: &str) -> String {
    let kind: String =
        text.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(50).collect();
    if kind.is_empty() { "server".to_owned() } else { kind }
}

/// Why a token lets nobody in, and what to do.
fn told(outcome: &EnrolOutcome, address: IpAddr, now: Timestamp) -> (ProblemCode, String) {
    const NEW: &str = "make a new one on the hub with: picket hub token create";
    match outcome {
        EnrolOutcome::Expired { at } => {
            let ago = now.duration_since(*at).as_mins();
            (ProblemCode::TokenExpired, format!("the token expired at {at}, {ago} minutes ago; {NEW}"))
        }
        EnrolOutcome::UsedUp => (
            ProblemCode::TokenUsedUp,
            format!("as many machines have enrolled with this token as it was made for; {NEW}"),
        ),
        EnrolOutcome::Revoked => (ProblemCode::TokenRevoked, format!("the token was revoked; {NEW}")),
        EnrolOutcome::AddressRefused => (
            ProblemCode::AddressRefused,
            format!(
                "the token may not be used from {address}; make one that allows it, or enrol from where it may be used"
            ),
        ),
        EnrolOutcome::Denied => {
            (ProblemCode::EnrolmentDenied, "an operator of the hub refused this machine; ask them".to_owned())
        }
        EnrolOutcome::Unknown
        | EnrolOutcome::New { .. }
        | EnrolOutcome::Replay { .. }
        | EnrolOutcome::PendingApproval { .. } => {
            (ProblemCode::TokenUnknown, format!("this hub does not know the token; {NEW}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_by_a_day_is_told_by_how_much() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let at = |hours| Clock { now: now.checked_add(SignedDuration::from_hours(hours)).unwrap() };
        assert!(check_clock(at(23), now).is_ok() && check_clock(at(-23), now).is_ok());
        let behind = check_clock(at(-50), now).unwrap_err();
        assert_eq!(behind.code(), ProblemCode::ClockSkew);
        assert!(behind.to_string().contains("50h behind"), "{behind}");
        assert!(check_clock(at(50), now).unwrap_err().to_string().contains("50h ahead"));
    }

    #[test]
    fn a_name_is_what_a_terminal_can_show() {
        assert_eq!(name_of("  web-1\u{1b}[31m\n").as_deref(), Some("web-1[31m"));
        assert_eq!(name_of(" \n\t"), None);
        assert_eq!(name_of(&"x".repeat(1000)).unwrap().len(), MAX_NAME);
        assert_eq!(kind_of("<script>"), "script");
        assert_eq!(kind_of(""), "server");
    }
}
