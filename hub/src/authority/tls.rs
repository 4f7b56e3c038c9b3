//! What the hub's listeners do in a TLS handshake: which certificate they show, and whose they take.

use jiff::Timestamp;
use picket_pki::{Certificate, PrivateKey};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// The hub's certificate, which can be replaced while connections come in.
#[derive(Debug)]
pub struct HotCertificate {
    key: RwLock<Arc<CertifiedKey>>,
    provider: Arc<CryptoProvider>,
}

impl HotCertificate {
    /// Shows `chain`.
    ///
    /// # Errors
    /// When the key does not belong to it.
    pub fn new(chain: &[Certificate], key: &PrivateKey) -> Result<Self, rustls::Error> {
        let provider = picket_transport::provider();
        let certified = certified(&provider, chain, key)?;
        Ok(Self { key: RwLock::new(Arc::new(certified)), provider })
    }

    /// Shows `chain` from now on; connections that stand go on as they are.
    ///
    /// # Errors
    /// When the key does not belong to it: the one before is still shown.
    pub fn replace(&self, chain: &[Certificate], key: &PrivateKey) -> Result<(), rustls::Error> {
        let certified = Arc::new(certified(&self.provider, chain, key)?);
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }
}

impl ResolvesServerCert for HotCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.key.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn certified(
    provider: &Arc<CryptoProvider>,
    chain: &[Certificate],
    key: &PrivateKey,
) -> Result<CertifiedKey, rustls::Error> {
    let chain = chain.iter().map(|certificate| certificate.der().clone()).collect();
    CertifiedKey::from_der(chain, key.to_der(), provider)
}

/// Takes an agent's certificate if one of the roots in force vouches for it and the agent has its key, **whatever its dates
/// say**: an agent whose certificate has expired, or whose clock is wrong, must be told so and may renew. Whether it may do
/// anything else is decided for each request, with the database's word on revocation.
#[derive(Debug)]
pub struct AgentVerifier {
    inner: RwLock<Arc<dyn ClientCertVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl AgentVerifier {
    /// Believes `roots`.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(roots: &[Certificate]) -> Result<Self, rustls::Error> {
        let provider = picket_transport::provider();
        let inner = verifier(&provider, roots)?;
        Ok(Self { inner: RwLock::new(inner), provider })
    }

    /// Believes `roots` from now on.
    ///
    /// # Errors
    /// When there is none: those before are still believed.
    pub fn replace(&self, roots: &[Certificate]) -> Result<(), rustls::Error> {
        let inner = verifier(&self.provider, roots)?;
        *self.inner.write().unwrap_or_else(PoisonError::into_inner) = inner;
        Ok(())
    }

    fn inner(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn verifier(
    provider: &Arc<CryptoProvider>,
    roots: &[Certificate],
) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.der().clone())?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
    // No hints: a browser would ask its user for a certificate.
    let built = builder.clear_root_hint_subjects().allow_unauthenticated().build();
    built
        .map(|verifier| verifier as Arc<dyn ClientCertVerifier>)
        .map_err(|error| rustls::Error::General(error.to_string()))
}

/// The moment at which a certificate is judged: now, or the end of its life that is nearer.
fn judged_at(certificate: &Certificate, now: Timestamp) -> Timestamp {
    now.clamp(certificate.not_before, certificate.not_after.max(certificate.not_before))
}

impl ClientCertVerifier for AgentVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        // Enrolment has none.
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let certificate = Certificate::from_der(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let now = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let at = u64::try_from(judged_at(&certificate, now).as_second()).unwrap_or_default();
        self.inner().verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(Duration::from_secs(at)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner().supported_verify_schemes()
    }
}

/// TLS for the listener of agents: 1.3, or 1.2 for old middle boxes; a client certificate is asked for.
///
/// # Errors
/// Only when the provider lacks a version.
pub fn agent_server(
    verifier: Arc<AgentVerifier>,
    certificate: Arc<HotCertificate>,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(picket_transport::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    Ok(with_alpn(builder.with_client_cert_verifier(verifier).with_cert_resolver(certificate)))
}

/// TLS for the listener of people: as for agents, without client certificates.
///
/// # Errors
/// Only when the provider lacks a version.
pub fn people_server(certificate: Arc<HotCertificate>) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(picket_transport::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    Ok(with_alpn(builder.with_no_client_auth().with_cert_resolver(certificate)))
}

fn with_alpn(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}
