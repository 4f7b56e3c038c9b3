//! Certificates for servers of tests: good ones, and ones that no client should take.

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

/// Which certificate a server shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// One for `localhost` and 127.0.0.1 that is valid now.
    Own,
    /// One for `releases.example.com`, which is nowhere but behind a proxy.
    OfAnotherHost,
    /// One that ended years ago.
    Expired,
}

/// A TLS server's configuration, and the authority to trust as PEM: an authority, then the certificate it signed.
pub(crate) fn configuration(identity: Identity) -> (Arc<rustls::ServerConfig>, String) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let authority_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(params, authority_key);

    let names = match identity {
        Identity::OfAnotherHost => vec!["releases.example.com".to_owned()],
        Identity::Own | Identity::Expired => vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
    };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(names).unwrap();
    if identity == Identity::Expired {
        params.not_before = rcgen::date_time_ymd(2015, 1, 1);
        params.not_after = rcgen::date_time_ymd(2016, 1, 1);
    }
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone(), authority.der().clone()];
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    (Arc::new(config), authority.pem())
}
