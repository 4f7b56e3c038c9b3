//! What is asked of a hub to become its agent, and to stay one; and how the answers are checked.

use super::record::{HubRecord, Identity, NewSet};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use picket_pki::{
    AgentIdentity, Certificate, ChainError, ChainPolicy, EnrolmentToken, PkiError, PrivateKey, certificates_from_pem,
    check_agent_chain,
};
use picket_protocol::event::EventId;
use picket_protocol::hub::{
    CERTIFICATE_PATH, CertificateAnswer, CertificateRequest, Clock, ENROL_PATH, EnrolAnswer, EnrolRequest, Enrolled,
    Machine, Pending, ProblemCode,
};
use picket_protocol::trace::TraceContext;
use picket_transport::TransportError;
use picket_transport::hub::{DoorError, HubCallError, HubClient, HubOptions, HubTrust, fetch_root};
use semver::Version;

/// Why a machine did not get its certificate.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The hub was not found, or not believed.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// The hub did not answer, or refused.
    #[error(transparent)]
    Call(#[from] HubCallError),
    /// The hub's answer is not taken.
    #[error("the certificate that the hub gave is not taken: {0}")]
    Answer(#[from] ChainError),
    /// A key or a request could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

impl From<TransportError> for ExchangeError {
    fn from(error: TransportError) -> Self {
        Self::Call(error.into())
    }
}

impl ExchangeError {
    /// Whether the hub cannot use the request for a certificate, and so will not with the same key again.
    pub fn refuses_the_key(&self) -> bool {
        matches!(self, Self::Call(error) if error.code() == Some(ProblemCode::CsrInvalid))
    }
}

/// What a machine says of itself when it enrols.
#[derive(Debug, Clone)]
pub struct About {
    /// The name that it would like to be shown by.
    pub name: String,
    /// What it is for.
    pub agent_type: String,
    /// The program's version.
    pub version: Version,
    /// The machine.
    pub machine: Machine,
    /// With which event it begins.
    pub stream: Option<EventId>,
}

/// What became of an enrolment.
#[derive(Debug)]
pub enum Enrolment {
    /// The machine is an agent: this is its identity.
    Done(Box<NewSet>),
    /// A person has to say yes first.
    Pending(Pending),
}

/// Asks the hub that `token` names to let this machine in, with `key`.
///
/// # Errors
/// See [`ExchangeError`]; the hub's refusals have codes.
pub fn enrol(
    token: &EnrolmentToken,
    key: PrivateKey,
    about: &About,
    options: &HubOptions,
) -> Result<Enrolment, ExchangeError> {
    let greeting = fetch_root(&token.hub, &token.pins, &options.proxy, options.timeouts.connect)?;
    let client = HubClient::new(&token.hub, &HubTrust { roots: vec![greeting.root], identity: None }, options)?;
    let request = EnrolRequest {
        token_id: token.id,
        secret: token.secret().as_str().to_owned(),
        csr: STANDARD.encode(key.request(&about.name)?),
        name: about.name.clone(),
        agent_type: about.agent_type.clone(),
        version: about.version.clone(),
        machine: about.machine.clone(),
        stream: about.stream,
        clock: Clock { now: Timestamp::now() },
    };
    match client.post::<EnrolAnswer>(ENROL_PATH, &request, Some(&TraceContext::start()))? {
        EnrolAnswer::Pending(pending) => Ok(Enrolment::Pending(pending)),
        EnrolAnswer::Enrolled(answer) => Ok(Enrolment::Done(Box::new(enrolled(token, key, answer, Timestamp::now())?))),
    }
}

/// Checks the answer to an enrolment.
fn enrolled(
    token: &EnrolmentToken,
    key: PrivateKey,
    answer: Enrolled,
    now: Timestamp,
) -> Result<NewSet, ExchangeError> {
    let chain = certificates_from_pem(&answer.certificate.certificate)?;
    let roots = certificates_from_pem(&answer.certificate.authorities)?;
    if !roots.iter().any(|root| token.pins.contains(&root.pin)) {
        let expected = token.pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(ChainError::WrongPin { expected }.into());
    }
    let identity = AgentIdentity { tenant: answer.tenant_id, agent: answer.agent_id };
    check_agent_chain(&chain, &ChainPolicy { roots: &roots, identity: Some(identity), pin: key.pin(), now })?;
    let record = HubRecord {
        hub: answer.certificate.hub.clone().unwrap_or_else(|| token.hub.clone()),
        agent_id: answer.agent_id,
        tenant_id: answer.tenant_id,
        name: answer.name,
        pins: roots.iter().map(|root| root.pin).collect(),
        command_key: command_key(&answer.certificate)?,
        enrolled_at: now,
        obtained_at: now,
    };
    Ok(NewSet { record, chain, key, roots })
}

/// Asks the hub for the next certificate, for a new key; `reason` is for its log.
///
/// # Errors
/// See [`ExchangeError`].
pub fn renew(identity: &Identity, reason: &str, options: &HubOptions) -> Result<NewSet, ExchangeError> {
    let client = HubClient::new(&identity.record.hub, &identity.trust(), options)?;
    let key = PrivateKey::generate()?;
    let request = CertificateRequest {
        csr: STANDARD.encode(key.request(&identity.record.name)?),
        reason: reason.to_owned(),
        clock: Clock { now: Timestamp::now() },
    };
    let answer: CertificateAnswer = client.post(CERTIFICATE_PATH, &request, Some(&TraceContext::start()))?;
    renewed(identity, key, &answer, Timestamp::now())
}

/// Checks the answer to a request for the next certificate. It came over a connection with a hub that the present roots
/// vouch for, so it may bring another root; but one of the present ones must stay while it does.
fn renewed(
    identity: &Identity,
    key: PrivateKey,
    answer: &CertificateAnswer,
    now: Timestamp,
) -> Result<NewSet, ExchangeError> {
    let chain = certificates_from_pem(&answer.certificate)?;
    let roots = certificates_from_pem(&answer.authorities)?;
    let stays = |root: &Certificate| identity.roots.iter().any(|present| present.pin == root.pin);
    if !roots.iter().any(stays) {
        let expected = identity.record.pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(ChainError::WrongPin { expected }.into());
    }
    let policy = ChainPolicy { roots: &roots, identity: Some(identity.name()), pin: key.pin(), now };
    check_agent_chain(&chain, &policy)?;
    let record = HubRecord {
        hub: answer.hub.clone().unwrap_or_else(|| identity.record.hub.clone()),
        pins: roots.iter().map(|root| root.pin).collect(),
        command_key: command_key(answer)?,
        obtained_at: now,
        ..identity.record.clone()
    };
    Ok(NewSet { record, chain, key, roots })
}

fn command_key(answer: &CertificateAnswer) -> Result<String, ChainError> {
    let is_key = super::pushed::verifying_key(&answer.command_key).is_some();
    let malformed = || ChainError::Malformed("the hub's key for commands is none".to_owned());
    if is_key { Ok(answer.command_key.clone()) } else { Err(malformed()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::store::CertStore;
    use crate::hub::store::tests::Fleet;
    use jiff::SignedDuration;
    use picket_pki::{Authority, CsrKey, certificates_to_pem};

    #[test]
    fn only_a_request_that_the_hub_cannot_use_costs_its_key() {
        for code in ProblemCode::ALL {
            let problem = Box::new(picket_protocol::hub::Problem::new(*code, "x"));
            let error = ExchangeError::from(HubCallError::Problem(problem));
            assert_eq!(error.refuses_the_key(), *code == ProblemCode::CsrInvalid, "{code:?}");
        }
    }

    fn key_text() -> String {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        STANDARD.encode(key.verifying_key().as_bytes())
    }

    fn answer(fleet: &Fleet, key: &PrivateKey, roots: &[&Authority]) -> CertificateAnswer {
        let asked = CsrKey::from_request(&key.request("x").unwrap()).unwrap();
        let leaf = fleet.intermediate.agent(fleet.agent, &asked, Timestamp::now()).unwrap();
        let roots: Vec<Certificate> = roots.iter().map(|root| root.certificate().clone()).collect();
        CertificateAnswer {
            certificate: certificates_to_pem(&[leaf, fleet.intermediate.certificate().clone()]),
            authorities: certificates_to_pem(&roots),
            command_key: key_text(),
            hub_time: Timestamp::now(),
            hub: None,
        }
    }

    fn identity(fleet: &Fleet) -> Identity {
        let dir = tempfile::tempdir().unwrap();
        let store = CertStore::new(dir.path());
        store.install(&store.lock().unwrap(), &fleet.set("https://hub.example")).unwrap();
        store.load().unwrap().unwrap()
    }

    fn key() -> PrivateKey {
        PrivateKey::generate().unwrap()
    }

    #[test]
    fn a_renewed_certificate_is_taken_with_chain_name_key_and_dates_and_with_nothing_less() {
        let fleet = Fleet::new();
        let identity = identity(&fleet);
        let now = Timestamp::now();
        let (one, other) = (key(), key());
        let good = answer(&fleet, &one, &[&fleet.root]);
        let again = |key: &PrivateKey| PrivateKey::from_pem(&key.to_pem()).unwrap();
        assert!(renewed(&identity, again(&one), &good, now).is_ok());
        let refused = |key, answer: &CertificateAnswer, now| match renewed(&identity, key, answer, now) {
            Err(ExchangeError::Answer(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(other, &good, now), ChainError::WrongKey);
        let late = now + SignedDuration::from_hours(24 * 91);
        assert!(matches!(refused(again(&one), &good, late), ChainError::OutOfDate { .. }));
        let stranger = Fleet { agent: AgentIdentity { tenant: 1, agent: uuid::Uuid::now_v7() }, ..Fleet::new() };
        let foreign = answer(&stranger, &one, &[&fleet.root]);
        assert!(matches!(refused(again(&one), &foreign, now), ChainError::Untrusted(_)));
        let renamed = Fleet { agent: stranger.agent, ..fleet };
        let renamed = answer(&renamed, &one, &[&renamed.root]);
        assert!(matches!(refused(again(&one), &renamed, now), ChainError::WrongName { .. }));
        let keyless = CertificateAnswer { command_key: "?".to_owned(), ..good };
        assert!(matches!(refused(again(&one), &keyless, now), ChainError::Malformed(_)));
    }

    #[test]
    fn a_new_root_comes_beside_the_present_one_and_never_in_its_place() {
        let (fleet, next) = (Fleet::new(), Fleet::new());
        let identity = identity(&fleet);
        let new = key();
        let again = || PrivateKey::from_pem(&new.to_pem()).unwrap();
        let moved = Fleet { agent: fleet.agent, ..next };
        // Signed under the next root already, while both are in force.
        let set = renewed(&identity, again(), &answer(&moved, &new, &[&fleet.root, &moved.root]), Timestamp::now());
        let pins = set.unwrap().record.pins;
        assert_eq!(pins, [fleet.root.certificate().pin, moved.root.certificate().pin]);
        let swapped = renewed(&identity, again(), &answer(&moved, &new, &[&moved.root]), Timestamp::now());
        assert!(matches!(swapped, Err(ExchangeError::Answer(ChainError::WrongPin { .. }))), "{swapped:?}");
    }

    #[test]
    fn an_enrolment_answers_with_the_root_that_the_token_names() {
        let (fleet, other) = (Fleet::new(), Fleet::new());
        let token = |pin| EnrolmentToken::generate("https://hub.example", uuid::Uuid::now_v7(), &[pin]).unwrap();
        let new = key();
        let enrolled_by = |token: &EnrolmentToken| {
            let certificate = answer(&fleet, &new, &[&fleet.root]);
            let (agent_id, name) = (fleet.agent.agent, "web-1".to_owned());
            let answer = Enrolled { agent_id, tenant_id: 1, name, certificate };
            enrolled(token, PrivateKey::from_pem(&new.to_pem()).unwrap(), answer, Timestamp::now())
        };
        let set = enrolled_by(&token(fleet.root.certificate().pin)).unwrap();
        assert_eq!((set.record.hub.as_str(), set.record.agent_id), ("https://hub.example", fleet.agent.agent));
        let outcome = enrolled_by(&token(other.root.certificate().pin));
        assert!(matches!(outcome, Err(ExchangeError::Answer(ChainError::WrongPin { .. }))), "{outcome:?}");
    }
}
