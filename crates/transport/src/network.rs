//! How this machine reaches others: through which proxy, and which authorities it believes beside its own.

use crate::proxy::ProxyChoice;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use picket_config::Confidential;
use picket_pki::certificate_to_pem;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use ureq::tls::{Certificate, RootCerts};

/// The largest file of authorities, in bytes: those of a whole distribution take 220 KiB.
const MAX_PEM_BYTES: u64 = 1 << 20;

picket_config::settings! {
    /// How other machines are reached over HTTPS.
    pub struct NetworkSettings {
        /// The proxy of all requests to other machines: `environment` is what `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say, `off` is none, else `http://host:port`, with `user:password@` before the host if it asks for them.
        pub proxy: Confidential = "environment".into(),
        /// Hosts that are reached without a proxy: names or addresses, `.example.com` for all names below, `*` for all.
        pub no_proxy: Vec<String> = Vec::new(),
        /// A file of authorities (PEM) that are believed beside the machine's own, for example that of a proxy that opens TLS.
        pub authorities: String = String::new(),
    }
}

/// A key of the settings that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct NetworkError {
    /// Which key.
    pub key: &'static str,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

impl NetworkSettings {
    /// The proxy.
    pub fn proxy(&self) -> ProxyChoice {
        let choice = match self.proxy.reveal() {
            // As `uplink.proxy` has them.
            "environment" | "auto" | "" => ProxyChoice::environment(),
            "off" | "none" => ProxyChoice::none(),
            address => ProxyChoice::named(address),
        };
        choice.except(&self.no_proxy)
    }

    /// What is wrong with the proxy's address, whatever machine this is.
    pub fn problem(&self) -> Option<NetworkError> {
        let error = self.proxy().check().err()?;
        Some(NetworkError { key: "network.proxy", reason: error.to_string() })
    }

    /// The settings, with the file of authorities read.
    ///
    /// # Errors
    /// For an address that is none of a proxy, and for authorities that are none.
    pub fn resolve(&self) -> Result<Network, NetworkError> {
        if let Some(problem) = self.problem() {
            return Err(problem);
        }
        let authorities = match self.authorities.as_str() {
            "" => Authorities::default(),
            path => Authorities::read(Path::new(path))
                .map_err(|reason| NetworkError { key: "network.authorities", reason })?,
        };
        Ok(Network { proxy: self.proxy(), authorities })
    }
}

/// How this machine reaches others. It may hold the proxy's password; see [`ProxyChoice`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Through which proxy.
    pub proxy: ProxyChoice,
    /// Whom it believes beside the machine's own authorities.
    pub authorities: Authorities,
}

/// Authorities that are believed beside the machine's own.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorities {
    /// Each as DER in base64 (RFC 4648 §4).
    certificates: Vec<String>,
}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authorities({})", self.certificates.len())
    }
}

impl Authorities {
    /// The authorities in a file.
    ///
    /// # Errors
    /// Why they cannot be used, and what would be right.
    pub fn read(path: &Path) -> Result<Self, String> {
        let pem = picket_durable::read_bounded(path, MAX_PEM_BYTES);
        let pem = pem.map_err(|error| format!("{error}: {}; name a file that who runs this may read", error.source))?;
        Self::parse(&pem).map_err(|reason| format!("{}: {reason}", path.display()))
    }

    /// The authorities in a PEM text (RFC 7468); what is no certificate in it is passed over.
    ///
    /// # Errors
    /// When there is none, or one of them is none that certificates can be checked by.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let mut certificates = Vec::new();
        for (place, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let bad = |why: &dyn std::fmt::Display| format!("certificate {} in it cannot be used ({why})", place + 1);
            let certificate = certificate.map_err(|error| bad(&error))?;
            RootCertStore::empty().add(certificate.clone()).map_err(|error| bad(&error))?;
            certificates.push(STANDARD.encode(certificate));
        }
        if certificates.is_empty() {
            return Err("it has no certificate; PEM is expected (-----BEGIN CERTIFICATE-----)".to_owned());
        }
        Ok(Self { certificates })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.certificates.len()
    }

    /// These and the machine's own as PEM, for another program's `SSL_CERT_FILE`; `None` where there are only the machine's
    /// own.
    pub fn bundle(&self) -> Option<String> {
        if self.certificates.is_empty() {
            return None;
        }
        Some(self.with_own().iter().map(|der| certificate_to_pem(der)).collect())
    }

    /// These and the machine's own; the compiled-in ones where the machine has none.
    fn with_own(&self) -> Vec<CertificateDer<'static>> {
        let mut all = machine_certificates();
        if all.is_empty() {
            all = webpki_root_certs::TLS_SERVER_ROOT_CERTS.to_vec();
        }
        all.extend(self.certificates.iter().filter_map(|text| STANDARD.decode(text).ok()).map(CertificateDer::from));
        all
    }

    /// Whom a client believes.
    pub(crate) fn roots(&self) -> RootCerts {
        if self.certificates.is_empty() {
            return own_roots();
        }
        let owned = |der: &CertificateDer<'_>| Certificate::from_der(der).to_owned();
        RootCerts::Specific(Arc::new(self.with_own().iter().map(owned).collect()))
    }
}

fn machine_certificates() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

/// How many authorities this machine has of its own: what `SSL_CERT_FILE` and `SSL_CERT_DIR` name, else the system's. With
/// none, those that are compiled in are believed.
pub fn machine_authorities() -> usize {
    machine_certificates().len()
}

/// The machine's own authorities, where it has any.
fn own_roots() -> RootCerts {
    if machine_authorities() == 0 {
        tracing::warn!("this machine has no certificate authorities (package ca-certificates); using those built in");
        RootCerts::WebPki
    } else {
        RootCerts::PlatformVerifier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).unwrap().pem()
    }

    fn settings(proxy: &str) -> NetworkSettings {
        NetworkSettings { proxy: proxy.into(), ..NetworkSettings::default() }
    }

    #[test]
    fn the_words_for_a_proxy_mean_what_they_say_and_an_address_is_checked() {
        assert_eq!(settings("environment").proxy(), ProxyChoice::environment());
        assert_eq!(settings("off").proxy(), ProxyChoice::none());
        assert_eq!(settings("http://p:1").proxy(), ProxyChoice::named("http://p:1"));
        assert_eq!(settings("http://p:1").problem(), None);
        let wrong = settings("ftp://ann:s3cret@p:1").problem().unwrap();
        assert_eq!(wrong.key, "network.proxy");
        let network = settings("http://ann:s3cret@p:1").resolve().unwrap();
        for text in [wrong.to_string(), format!("{network:?}"), format!("{:?}", settings("http://ann:s3cret@p:1"))] {
            assert!(!text.contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn authorities_are_read_and_nothing_else_is_taken_for_one() {
        let text = format!("a comment\n{}{}", authority(), authority());
        let both = Authorities::parse(text.as_bytes()).unwrap();
        assert_eq!(both.count(), 2);
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (wrong, word) in [
            (String::new(), "no certificate"),
            ("not a certificate".to_owned(), "BEGIN CERTIFICATE"),
            (garbage.to_owned(), "certificate 1 in it cannot be used"),
            (format!("{}{garbage}", authority()), "certificate 2 in it cannot be used"),
        ] {
            let reason = Authorities::parse(wrong.as_bytes()).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn a_bundle_holds_these_and_the_machines_own() {
        assert_eq!(Authorities::default().bundle(), None);
        let one = Authorities::parse(authority().as_bytes()).unwrap();
        let read = Authorities::parse(one.bundle().unwrap().as_bytes()).unwrap();
        assert!(read.certificates.contains(&one.certificates[0]));
        assert_eq!(read.count(), one.with_own().len());
        assert!(read.count() > 1, "the machine's own, or those compiled in, are left out");
    }

    #[test]
    fn a_file_of_authorities_that_is_missing_is_told_with_its_key() {
        let settings = NetworkSettings { authorities: "/nonexistent/ca.pem".to_owned(), ..NetworkSettings::default() };
        let error = settings.resolve().unwrap_err().to_string();
        assert!(error.starts_with("network.authorities: ") && error.contains("/nonexistent/ca.pem"), "{error}");
    }
}
