//! The authorities of a hub, and what they sign.

use crate::{AgentIdentity, Certificate, CsrKey, PkiError, PrivateKey};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType,
    SerialNumber,
};
use std::net::IpAddr;
use std::time::Duration;

/// How long a root holds, in days: ten years. It signs intermediates only, and is replaced with two in force.
const ROOT_DAYS: i64 = 3653;
/// How long an intermediate holds, in days: two years.
const INTERMEDIATE_DAYS: i64 = 731;
/// How long a certificate of an agent or a hub holds, in days. Renewed at two thirds of it.
pub const LEAF_DAYS: i64 = 90;
/// How far certificates are dated back: a machine whose clock is a day late can use what it just got.
pub const SKEW: SignedDuration = SignedDuration::from_hours(24);
/// The longest name in a subject, in bytes (RFC 5280, `ub-common-name`).
const MAX_NAME: usize = 64;

/// A certificate that may sign, and its key.
#[derive(Debug)]
pub struct Authority {
    certificate: Certificate,
    key: PrivateKey,
}

/// The names by which a hub is reached: DNS names and addresses, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubNames(Vec<SanType>);

impl HubNames {
    /// Names as people write them.
    ///
    /// # Errors
    /// Without any, and for a text that is neither a DNS name nor an address.
    pub fn new<I: IntoIterator<Item = S>, S: AsRef<str>>(names: I) -> Result<Self, PkiError> {
        let mut list = Vec::new();
        for name in names {
            let name = name.as_ref();
            let entry = match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    let is_dns = rustls::pki_types::DnsName::try_from(name).is_ok();
                    let text = name.try_into().ok().filter(|_| is_dns);
                    SanType::DnsName(text.ok_or_else(|| {
                        PkiError::malformed(
                            "the name of the hub",
                            format!("{name:?} is neither a DNS name nor an address"),
                        )
                    })?)
                }
            };
            if !list.contains(&entry) {
                list.push(entry);
            }
        }
        if list.is_empty() {
            return Err(PkiError::malformed("the names of the hub", "there is none"));
        }
        Ok(Self(list))
    }
}

impl Authority {
    /// A new root for the fleet called `fleet`.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn root(fleet: &str, now: Timestamp) -> Result<Self, PkiError> {
        let key = PrivateKey::generate()?;
        let mut params = authority_params(&format!("Picket root of {fleet}"), ROOT_DAYS, now)?;
        // Below it, one level of authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let made =
            params.self_signed(key.pair()).map_err(|error| PkiError::unmakable("the root certificate", error))?;
        Ok(Self { certificate: Certificate::from_der(made.der())?, key })
    }

    /// A new intermediate under this root.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn intermediate(&self, now: Timestamp) -> Result<Self, PkiError> {
        let key = PrivateKey::generate()?;
        let name = format!("Picket intermediate of {}", now.strftime("%Y-%m-%d"));
        let params = authority_params(&name, INTERMEDIATE_DAYS, now)?;
        let made = self.sign(&params, key.pair(), "the intermediate certificate")?;
        Ok(Self { certificate: made, key })
    }

    /// An authority that was made before.
    ///
    /// # Errors
    /// [`PkiError::KeyMismatch`] when the key is another one's; [`PkiError::Malformed`] for a certificate that may not sign.
    pub fn new(certificate: Certificate, key: PrivateKey) -> Result<Self, PkiError> {
        if certificate.pin != key.pin() {
            return Err(PkiError::KeyMismatch);
        }
        if !certificate.is_authority {
            return Err(PkiError::malformed("the authority's certificate", "it may not sign others"));
        }
        Ok(Self { certificate, key })
    }

    /// Whether it signed the hub's `certificate`; whether that holds now is not looked at.
    pub fn signed(&self, certificate: &Certificate) -> bool {
        crate::check::is_signed_by(certificate, &self.certificate)
    }

    /// Its certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Its key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// A certificate for a hub that is reached by `names`, with a new key.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn hub(&self, names: &HubNames, now: Timestamp) -> Result<(Certificate, PrivateKey), PkiError> {
        let key = PrivateKey::generate()?;
        let not_after = now.checked_add(days(LEAF_DAYS)).map_err(out_of_range)?.min(self.certificate.not_after);
        let mut params = leaf_params("Picket hub", now, not_after)?;
        params.subject_alt_names.clone_from(&names.0);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = self.sign(&params, key.pair(), "the hub's certificate")?;
        Ok((certificate, key))
    }

    /// A certificate for an agent. From the request it takes the key and nothing else.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn agent(&self, identity: AgentIdentity, key: &CsrKey, now: Timestamp) -> Result<Certificate, PkiError> {
        self.agent_until(identity, key, now, now.checked_add(days(LEAF_DAYS)).map_err(out_of_range)?)
    }

    /// As [`Authority::agent`], with another end than [`LEAF_DAYS`] from now.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn agent_until(
        &self,
        identity: AgentIdentity,
        key: &CsrKey,
        now: Timestamp,
        not_after: Timestamp,
    ) -> Result<Certificate, PkiError> {
        // What outlives the one that vouches for it is worth nothing.
        let not_after = not_after.min(self.certificate.not_after);
        let mut params = leaf_params(&identity.agent.to_string(), now, not_after)?;
        let uri = identity.to_string();
        params.subject_alt_names =
            vec![SanType::URI(uri.try_into().map_err(|error| PkiError::unmakable("the agent's name", error))?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params, &key.key, "the agent's certificate")
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &impl rcgen::PublicKeyData,
        what: &'static str,
    ) -> Result<Certificate, PkiError> {
        let issuer = Issuer::from_ca_cert_der(self.certificate.der(), self.key.pair());
        let issuer = issuer.map_err(|error| PkiError::malformed("the authority's certificate", error))?;
        let made = params.signed_by(key, &issuer).map_err(|error| PkiError::unmakable(what, error))?;
        Certificate::from_der(made.der())
    }
}

fn authority_params(name: &str, valid_days: i64, now: Timestamp) -> Result<CertificateParams, PkiError> {
    let not_after = now.checked_add(days(valid_days)).map_err(out_of_range)?;
    let mut params = params(name, now, not_after)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(name: &str, now: Timestamp, not_after: Timestamp) -> Result<CertificateParams, PkiError> {
    let mut params = params(name, now, not_after)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn params(name: &str, now: Timestamp, not_after: Timestamp) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    let end = name.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MAX_NAME).last();
    params.distinguished_name.push(DnType::CommonName, &name[..end.unwrap_or_default()]);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let seconds = |at: Timestamp| Duration::from_secs(u64::try_from(at.as_second()).unwrap_or_default());
    params.not_before = epoch + seconds(now.checked_sub(SKEW).map_err(out_of_range)?);
    params.not_after = epoch + seconds(not_after);
    params.serial_number = Some(serial()?);
    Ok(params)
}

/// A serial number of 127 random bits, not negative and not zero (RFC 5280 §4.1.2.2; CA/Browser Forum asks for 64 bits).
fn serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| PkiError::unmakable("a serial number", error))?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn days(count: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * count)
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn out_of_range(error: jiff::Error) -> PkiError {
    PkiError::unmakable("a date", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn an_agents_certificate_says_what_the_hub_says_and_not_what_was_asked_for() {
        let authority = Authority::root("test", now()).unwrap().intermediate(now()).unwrap();
        let key = PrivateKey::generate().unwrap();
        let request = CsrKey::from_request(&key.request("administrator").unwrap()).unwrap();
        let identity = AgentIdentity { tenant: 1, agent: Uuid::now_v7() };
        let made = authority.agent(identity, &request, now()).unwrap();
        assert_eq!((made.agent, made.subject.as_str()), (Some(identity), identity.agent.to_string().as_str()));
        assert_eq!((made.pin, made.is_authority), (key.pin(), false));
        assert_eq!(made.not_after.duration_since(now()).as_hours(), 90 * 24);
        assert_eq!(now().duration_since(made.not_before), SKEW);
        assert_eq!(made.serial.len(), 32);
    }

    #[test]
    fn an_authority_and_anothers_key_are_told_apart() {
        let (one, two) = (Authority::root("one", now()).unwrap(), Authority::root("two", now()).unwrap());
        let mixed = Authority::new(one.certificate.clone(), PrivateKey::from_pem(&two.key.to_pem()).unwrap());
        assert!(matches!(mixed, Err(PkiError::KeyMismatch)));
        let key = PrivateKey::generate().unwrap();
        let request = CsrKey::from_request(&key.request("x").unwrap()).unwrap();
        let identity = AgentIdentity { tenant: 1, agent: Uuid::nil() };
        let leaf = one.agent(identity, &request, now()).unwrap();
        assert!(matches!(Authority::new(leaf, key), Err(PkiError::Malformed { .. })));
    }

    #[test]
    fn a_hub_has_names_that_can_be_reached() {
        assert!(HubNames::new(["hub.example", "::1", "hub.example"]).unwrap().0.len() == 2);
        for wrong in ["", "a b", "https://hub", "hub..example", &"a".repeat(300)] {
            assert!(HubNames::new([wrong]).is_err(), "{wrong}");
        }
        assert!(HubNames::new(Vec::<String>::new()).is_err());
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let root = Authority::root(&"ä".repeat(100), now()).unwrap();
        assert!(root.certificate().subject.len() <= MAX_NAME);
    }
}
