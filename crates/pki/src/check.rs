//! Whether a certificate is to be believed, and when it is to be renewed.

use crate::{AgentIdentity, Certificate, PkiError, SpkiPin};
use jiff::{SignedDuration, Timestamp};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;
use std::time::Duration;

/// A certificate with less than this left is renewed, whatever its length.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Why a certificate is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Nobody whom we trust vouches for it.
    #[error("no authority that is trusted vouches for it: {0}")]
    Untrusted(String),
    /// None of the certificates is of a pinned key.
    #[error("none of its authorities is the one that was named at enrolment (expected {expected})")]
    WrongPin {
        /// The pins, separated by commas.
        expected: String,
    },
    /// It is for another name.
    #[error("it is for {found}, not for {expected}")]
    WrongName {
        /// Who should be in it.
        expected: String,
        /// Who is.
        found: String,
    },
    /// It is for another key.
    #[error("it is for another key")]
    WrongKey,
    /// It does not hold yet, or not any more.
    #[error("it holds from {not_before} to {not_after}, and now it is {now}; check the clock of this machine")]
    OutOfDate {
        /// From when on it holds.
        not_before: Timestamp,
        /// Until when it holds.
        not_after: Timestamp,
        /// What the clock says.
        now: Timestamp,
    },
    /// It cannot be read at all.
    #[error("{0}")]
    Malformed(String),
}

impl From<PkiError> for ChainError {
    fn from(error: PkiError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// What an agent's new certificate must be.
#[derive(Debug, Clone, Copy)]
pub struct ChainPolicy<'a> {
    /// The roots that are trusted.
    pub roots: &'a [Certificate],
    /// For whom it must be; not asked at enrolment, when the agent learns who it is.
    pub identity: Option<AgentIdentity>,
    /// For which key.
    pub pin: SpkiPin,
    /// The time.
    pub now: Timestamp,
}

/// Checks an agent's certificate with its intermediates: chain, purpose, name, key, dates.
///
/// # Errors
/// What of these is wrong.
pub fn check_agent_chain(chain: &[Certificate], policy: &ChainPolicy<'_>) -> Result<AgentIdentity, ChainError> {
    let [leaf, intermediates @ ..] = chain else {
        return Err(ChainError::Malformed("there is no certificate".to_owned()));
    };
    if leaf.pin != policy.pin {
        return Err(ChainError::WrongKey);
    }
    in_date(leaf, policy.now)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store(policy.roots)?), provider()).build();
    let verifier = verifier.map_err(|error| ChainError::Untrusted(error.to_string()))?;
    let intermediates: Vec<CertificateDer<'_>> = intermediates.iter().map(|each| each.der().clone()).collect();
    verifier
        .verify_client_cert(leaf.der(), &intermediates, unix(policy.now))
        .map_err(|error| ChainError::Untrusted(error.to_string()))?;
    let found = || leaf.agent.map_or_else(|| "no agent".to_owned(), |agent| agent.to_string());
    match (leaf.agent, policy.identity) {
        (Some(agent), None) => Ok(agent),
        (Some(agent), Some(expected)) if agent == expected => Ok(agent),
        (_, expected) => Err(ChainError::WrongName {
            expected: expected.map_or_else(|| "an agent".to_owned(), |expected| expected.to_string()),
            found: found(),
        }),
    }
}

/// Checks a hub's certificate: some certificate behind it is of a pinned key, that one vouches for it, and it is for `name`.
/// Returns the root that vouched.
///
/// A hub sends its root along (RFC 8446 §4.4.2 allows it), so that a machine that knows only the pin can check the rest.
///
/// # Errors
/// What of these is wrong.
pub fn check_hub_chain(
    chain: &[CertificateDer<'_>],
    pins: &[SpkiPin],
    name: &ServerName<'_>,
    now: Timestamp,
) -> Result<Certificate, ChainError> {
    let [leaf, behind @ ..] = chain else { return Err(ChainError::Malformed("there is no certificate".to_owned())) };
    let mut outcome = None;
    for der in behind.iter().take(crate::MAX_CHAIN) {
        let certificate = Certificate::from_der(der)?;
        if !(certificate.is_authority && pins.contains(&certificate.pin)) {
            continue;
        }
        // While one root replaces another, both are pinned and sent, and one of them vouches.
        match check_under(leaf, behind, certificate, name, now) {
            Ok(root) => return Ok(root),
            Err(error) => outcome = Some(error),
        }
    }
    Err(outcome.unwrap_or_else(|| {
        let expected = pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        ChainError::WrongPin { expected }
    }))
}

/// Whether `issuer` signed a hub's certificate, asked for a moment at which both hold.
pub(crate) fn is_signed_by(certificate: &Certificate, issuer: &Certificate) -> bool {
    let name = certificate.names.first().and_then(|name| ServerName::try_from(name.as_str()).ok());
    let at = certificate.not_before.max(issuer.not_before);
    name.is_some_and(|name| check_under(certificate.der(), &[], issuer.clone(), &name, at).is_ok())
}

/// Checks a hub's certificate against one root.
fn check_under(
    leaf: &CertificateDer<'_>,
    behind: &[CertificateDer<'_>],
    root: Certificate,
    name: &ServerName<'_>,
    now: Timestamp,
) -> Result<Certificate, ChainError> {
    in_date(&root, now)?;
    let parsed = Certificate::from_der(leaf)?;
    in_date(&parsed, now)?;
    let store = store(std::slice::from_ref(&root))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider()).build();
    let verifier = verifier.map_err(|error| ChainError::Untrusted(error.to_string()))?;
    verifier.verify_server_cert(leaf, behind, name, &[], unix(now)).map_err(|error| match error {
        rustls::Error::InvalidCertificate(
            rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. },
        ) => ChainError::WrongName { expected: name.to_str().into_owned(), found: parsed.names.join(", ") },
        error => ChainError::Untrusted(error.to_string()),
    })?;
    Ok(root)
}

/// What is to be done about a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing before that time.
    NotBefore(Timestamp),
    /// It is time.
    Due,
    /// It does not hold any more.
    Expired,
}

/// Whether a certificate is to be renewed: when two thirds of its life are over, or 30 days or less are left, whichever is
/// first.
pub fn renewal(certificate: &Certificate, now: Timestamp) -> Renewal {
    if now > certificate.not_after {
        return Renewal::Expired;
    }
    let life = certificate.not_after.duration_since(certificate.not_before);
    let two_thirds = certificate.not_before.checked_add(life / 3 * 2).unwrap_or(now);
    let thirty_days = certificate.not_after.checked_sub(RENEW_BEFORE).unwrap_or(now);
    let due = two_thirds.min(thirty_days);
    if now >= due { Renewal::Due } else { Renewal::NotBefore(due) }
}

fn in_date(certificate: &Certificate, now: Timestamp) -> Result<(), ChainError> {
    let &Certificate { not_before, not_after, .. } = certificate;
    if certificate.holds_at(now) { Ok(()) } else { Err(ChainError::OutOfDate { not_before, not_after, now }) }
}

fn store(roots: &[Certificate]) -> Result<RootCertStore, ChainError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.der().clone()).map_err(|error| ChainError::Untrusted(error.to_string()))?;
    }
    Ok(store)
}

fn unix(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(at.as_second()).unwrap_or_default()))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, CsrKey, HubNames, PrivateKey};
    use uuid::Uuid;

    struct Fleet {
        root: Authority,
        intermediate: Authority,
    }

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn later(days: i64) -> Timestamp {
        now().checked_add(SignedDuration::from_hours(24 * days)).unwrap()
    }

    fn fleet() -> Fleet {
        let root = Authority::root("test", now()).unwrap();
        let intermediate = root.intermediate(now()).unwrap();
        Fleet { root, intermediate }
    }

    fn agent(fleet: &Fleet) -> (AgentIdentity, PrivateKey, Vec<Certificate>) {
        let key = PrivateKey::generate().unwrap();
        let identity = AgentIdentity { tenant: 1, agent: Uuid::now_v7() };
        let request = CsrKey::from_request(&key.request("x").unwrap()).unwrap();
        let leaf = fleet.intermediate.agent(identity, &request, now()).unwrap();
        (identity, key, vec![leaf, fleet.intermediate.certificate().clone()])
    }

    #[test]
    fn an_agents_certificate_is_taken_with_chain_name_key_and_dates_and_with_nothing_less() {
        let fleet = fleet();
        let (identity, key, chain) = agent(&fleet);
        let roots = [fleet.root.certificate().clone()];
        let policy = ChainPolicy { roots: &roots, identity: Some(identity), pin: key.pin(), now: now() };
        assert_eq!(check_agent_chain(&chain, &policy), Ok(identity));
        assert_eq!(check_agent_chain(&chain, &ChainPolicy { identity: None, ..policy }), Ok(identity));

        let other = self::fleet();
        let others = [other.root.certificate().clone()];
        let outcome = check_agent_chain(&chain, &ChainPolicy { roots: &others, ..policy });
        assert!(matches!(outcome, Err(ChainError::Untrusted(_))), "{outcome:?}");
        let outcome = check_agent_chain(&chain[..1], &policy);
        assert!(matches!(outcome, Err(ChainError::Untrusted(_))), "without the intermediate: {outcome:?}");
        let stranger = AgentIdentity { agent: Uuid::now_v7(), ..identity };
        let outcome = check_agent_chain(&chain, &ChainPolicy { identity: Some(stranger), ..policy });
        assert!(matches!(outcome, Err(ChainError::WrongName { .. })), "{outcome:?}");
        let pin = PrivateKey::generate().unwrap().pin();
        assert_eq!(check_agent_chain(&chain, &ChainPolicy { pin, ..policy }), Err(ChainError::WrongKey));
        for at in [later(-2), later(91)] {
            let outcome = check_agent_chain(&chain, &ChainPolicy { now: at, ..policy });
            assert!(matches!(outcome, Err(ChainError::OutOfDate { .. })), "{outcome:?}");
        }
        assert!(check_agent_chain(&[], &policy).is_err());
    }

    #[test]
    fn a_hubs_certificate_is_none_of_an_agent_nor_an_agents_of_a_hub() {
        let fleet = fleet();
        let (identity, key, chain) = agent(&fleet);
        let (hub, hub_key) = fleet.intermediate.hub(&HubNames::new(["hub.example"]).unwrap(), now()).unwrap();
        let roots = [fleet.root.certificate().clone()];
        let policy = ChainPolicy { roots: &roots, identity: None, pin: hub_key.pin(), now: now() };
        let outcome = check_agent_chain(&[hub, chain[1].clone()], &policy);
        assert!(matches!(outcome, Err(ChainError::Untrusted(_))), "{outcome:?}");
        let ders: Vec<_> = [&chain[0], &chain[1], &roots[0]].map(|each| each.der().clone()).into();
        let name = ServerName::try_from("hub.example").unwrap();
        let outcome = check_hub_chain(&ders, &[roots[0].pin], &name, now());
        assert!(outcome.is_err(), "{outcome:?}");
        assert_eq!((chain[0].agent, chain[0].pin), (Some(identity), key.pin()));
    }

    #[test]
    fn a_hub_is_known_by_a_pinned_root_and_its_name() {
        let (fleet, other) = (fleet(), fleet());
        let names = HubNames::new(["hub.example", "127.0.0.1"]).unwrap();
        let (leaf, _) = fleet.intermediate.hub(&names, now()).unwrap();
        let root = fleet.root.certificate();
        let chain: Vec<_> = [&leaf, fleet.intermediate.certificate(), root].map(|each| each.der().clone()).into();
        let name = ServerName::try_from("hub.example").unwrap();
        let pins = [other.root.certificate().pin, root.pin];
        assert_eq!(check_hub_chain(&chain, &pins, &name, now()).as_ref(), Ok(root));
        let address = ServerName::try_from("127.0.0.1").unwrap();
        assert!(check_hub_chain(&chain, &pins, &address, now()).is_ok());

        let outcome = check_hub_chain(&chain, &pins[..1], &name, now());
        assert!(matches!(outcome, Err(ChainError::WrongPin { .. })), "{outcome:?}");
        // Somebody who shows the pinned root, too, but has a leaf of another one.
        let (stolen, _) = other.intermediate.hub(&names, now()).unwrap();
        let mixed: Vec<_> = [&stolen, other.intermediate.certificate(), root].map(|each| each.der().clone()).into();
        let outcome = check_hub_chain(&mixed, &pins[1..], &name, now());
        assert!(matches!(outcome, Err(ChainError::Untrusted(_))), "{outcome:?}");
        let elsewhere = ServerName::try_from("elsewhere.example").unwrap();
        let outcome = check_hub_chain(&chain, &pins, &elsewhere, now());
        assert!(
            matches!(&outcome, Err(ChainError::WrongName { found, .. }) if found.contains("hub.example")),
            "{outcome:?}"
        );
        let outcome = check_hub_chain(&chain, &pins, &name, later(91));
        assert!(matches!(outcome, Err(ChainError::OutOfDate { .. })), "{outcome:?}");
        // A leaf whose own key is pinned is not a root.
        let outcome = check_hub_chain(&chain, &[leaf.pin], &name, now());
        assert!(matches!(outcome, Err(ChainError::WrongPin { .. })), "{outcome:?}");
    }

    #[test]
    fn a_hub_with_two_roots_is_known_by_whichever_vouches_in_whatever_order_it_sends_them() {
        let (old, new) = (fleet(), fleet());
        let names = HubNames::new(["hub.example"]).unwrap();
        let name = ServerName::try_from("hub.example").unwrap();
        let both = [old.root.certificate().pin, new.root.certificate().pin];
        for (vouching, other) in [(&old, &new), (&new, &old)] {
            let (leaf, _) = vouching.intermediate.hub(&names, now()).unwrap();
            let behind = [&old.intermediate, &new.intermediate, &old.root, &new.root].map(Authority::certificate);
            let chain: Vec<_> = std::iter::once(&leaf).chain(behind).map(|each| each.der().clone()).collect();
            let root = vouching.root.certificate();
            assert_eq!(check_hub_chain(&chain, &both, &name, now()).as_ref(), Ok(root));
            assert_eq!(check_hub_chain(&chain, &[root.pin], &name, now()).as_ref(), Ok(root));
            let outcome = check_hub_chain(&chain, &[other.root.certificate().pin], &name, now());
            assert!(matches!(outcome, Err(ChainError::Untrusted(_))), "{outcome:?}");
        }
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life_or_thirty_days_before_its_end() {
        let fleet = fleet();
        let (_, _, chain) = agent(&fleet);
        // 91 days with the one before: two thirds are 60 days and 16 hours from its start, thirty days are left after 60.
        assert_eq!(
            renewal(&chain[0], now()),
            Renewal::NotBefore(chain[0].not_before + SignedDuration::from_mins(91 * 24 * 40))
        );
        assert_eq!(renewal(&chain[0], later(58)), renewal(&chain[0], now()));
        assert_eq!(renewal(&chain[0], later(60)), Renewal::Due);
        assert_eq!(renewal(&chain[0], later(91)), Renewal::Expired);
        let key = CsrKey::from_request(&PrivateKey::generate().unwrap().request("x").unwrap()).unwrap();
        let identity = AgentIdentity { tenant: 1, agent: Uuid::nil() };
        let year = fleet.intermediate.agent_until(identity, &key, now(), later(365)).unwrap();
        assert!(matches!(renewal(&year, now()), Renewal::NotBefore(at) if at < later(245)));
        let short = fleet.intermediate.agent_until(identity, &key, now(), later(20)).unwrap();
        assert_eq!(renewal(&short, now()), Renewal::Due, "less than thirty days from the start");
    }
}
