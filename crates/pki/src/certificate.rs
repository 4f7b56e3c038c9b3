//! Certificates as they are read: what they say, without judging it.

use crate::{AgentIdentity, PkiError, SpkiPin};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fmt::Write as _;
use x509_parser::der_parser::asn1_rs::BitString;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::verify::verify_signature;
use x509_parser::x509::AlgorithmIdentifier;

/// The longest certificate that is read, in bytes of DER; ours take some 600.
const MAX_DER_BYTES: usize = 16 << 10;
/// The longest chain or bundle: a leaf, intermediates, and roots while they are replaced.
pub const MAX_CHAIN: usize = 8;
/// The longest PEM text of certificates, in bytes.
pub const MAX_PEM_BYTES: usize = 256 << 10;

/// A certificate and what it says. That it can be read says nothing about whether it is to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    der: CertificateDer<'static>,
    /// The serial number in hexadecimal digits, without leading zeros.
    pub serial: String,
    /// The common name of the subject, for people.
    pub subject: String,
    /// The common name of the issuer, for people.
    pub issuer: String,
    /// From when on it holds.
    pub not_before: Timestamp,
    /// Until when it holds.
    pub not_after: Timestamp,
    /// Whose key it is about.
    pub pin: SpkiPin,
    /// Whether it may sign others.
    pub is_authority: bool,
    /// The agent that it names, where it names exactly one.
    pub agent: Option<AgentIdentity>,
    /// The DNS names and addresses that it names.
    pub names: Vec<String>,
}

impl Certificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// [`PkiError::TooLarge`], or [`PkiError::Malformed`] for anything that is no X.509 version 3 certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        const WHAT: &str = "the certificate";
        if der.len() > MAX_DER_BYTES {
            return Err(PkiError::TooLarge { what: WHAT, limit: MAX_DER_BYTES });
        }
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| PkiError::malformed(WHAT, error))?;
        if !rest.is_empty() {
            return Err(PkiError::malformed(WHAT, "bytes follow it"));
        }
        let time = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp()).map_err(|error| PkiError::malformed(WHAT, error))
        };
        let (names, agent) = names(&parsed)?;
        Ok(Self {
            der: CertificateDer::from(der.to_vec()),
            serial: hex(parsed.tbs_certificate.raw_serial()),
            subject: common_name(parsed.subject()),
            issuer: common_name(parsed.issuer()),
            not_before: time(parsed.validity().not_before)?,
            not_after: time(parsed.validity().not_after)?,
            pin: SpkiPin::of_spki(parsed.public_key().raw),
            is_authority: parsed.is_ca(),
            agent,
            names,
        })
    }

    /// The certificate in DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The certificate in PEM (RFC 7468).
    pub fn to_pem(&self) -> String {
        certificate_to_pem(&self.der)
    }

    /// Whether the holder of its key signed `message` ([`crate::PrivateKey::sign`]).
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok((_, parsed)) = X509Certificate::from_der(&self.der) else { return false };
        let algorithm = AlgorithmIdentifier::new(OID_SIG_ECDSA_WITH_SHA256, None);
        let signature = BitString::new(0, signature);
        verify_signature(parsed.public_key(), &algorithm, &signature, message).is_ok()
    }

    /// Whether it holds at `now`.
    pub fn holds_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// A certificate in DER, whoever's, in PEM (RFC 7468).
pub fn certificate_to_pem(der: &[u8]) -> String {
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let encoded = STANDARD.encode(der);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Reads a chain or a bundle in PEM; what lies between the certificates is ignored, as RFC 7468 §2 asks.
///
/// # Errors
/// [`PkiError::Malformed`] when there is none, or more than [`MAX_CHAIN`].
pub fn certificates_from_pem(pem: &str) -> Result<Vec<Certificate>, PkiError> {
    const WHAT: &str = "the certificates";
    if pem.len() > MAX_PEM_BYTES {
        return Err(PkiError::TooLarge { what: WHAT, limit: MAX_PEM_BYTES });
    }
    let mut certificates = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let der = der.map_err(|error| PkiError::malformed(WHAT, error))?;
        if certificates.len() == MAX_CHAIN {
            return Err(PkiError::malformed(WHAT, format!("there are more than {MAX_CHAIN}")));
        }
        certificates.push(Certificate::from_der(&der)?);
    }
    if certificates.is_empty() { Err(PkiError::malformed(WHAT, "there is none")) } else { Ok(certificates) }
}

/// Writes a chain or a bundle in PEM.
pub fn certificates_to_pem(certificates: &[Certificate]) -> String {
    certificates.iter().map(Certificate::to_pem).collect()
}

fn common_name(name: &x509_parser::x509::X509Name<'_>) -> String {
    let name = name.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    // For people's eyes and terminals.
    name.chars().filter(|c| !c.is_control()).take(128).collect()
}

fn names(certificate: &X509Certificate<'_>) -> Result<(Vec<String>, Option<AgentIdentity>), PkiError> {
    let extension = certificate.subject_alternative_name();
    let extension = extension.map_err(|error| PkiError::malformed("the certificate's names", error))?;
    let (mut names, mut agents) = (Vec::new(), Vec::new());
    for name in extension.iter().flat_map(|extension| &extension.value.general_names).take(64) {
        match name {
            GeneralName::DNSName(name) => names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => names.extend(address(bytes)),
            GeneralName::URI(uri) => agents.extend(uri.parse::<AgentIdentity>()),
            _ => {}
        }
    }
    let agent = if agents.len() == 1 { agents.pop() } else { None };
    Ok((names, agent))
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(four).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|sixteen| std::net::Ipv6Addr::from(sixteen).to_string())
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes.iter().skip_while(|byte| **byte == 0) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, HubNames};
    use proptest::prelude::*;

    #[test]
    fn a_bundle_reads_back_what_it_writes() {
        let now: Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
        let root = Authority::root("test", now).unwrap();
        let (leaf, _) =
            root.intermediate(now).unwrap().hub(&HubNames::new(["hub.example", "10.0.0.1"]).unwrap(), now).unwrap();
        let chain = [leaf, root.certificate().clone()];
        let text = format!("text before\n{}text after\n", certificates_to_pem(&chain));
        assert_eq!(certificates_from_pem(&text).unwrap(), chain);
        assert_eq!(chain[0].names, ["hub.example", "10.0.0.1"]);
        assert!(!chain[0].is_authority && chain[1].is_authority);
        assert!(certificates_from_pem("nothing").is_err());
        assert!(certificates_from_pem(&text.repeat(5)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0usize..2000, value: u8) {
            let _ = Certificate::from_der(&bytes);
            let _ = certificates_from_pem(&String::from_utf8_lossy(&bytes));
            let root = Authority::root("test", "2026-11-21T00:00:00Z".parse().unwrap()).unwrap();
            let mut der = root.certificate().der().to_vec();
            let at = at % der.len();
            der[at] = value;
            let _ = Certificate::from_der(&der);
        }
    }
}
