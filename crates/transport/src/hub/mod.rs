//! The way to a hub: its authorities are known by pins, both sides show certificates, and what it refuses has a code.
//!
//! - [`fetch_root`] is the first handshake of a machine that knows nothing but pins: it brings the root that vouches for
//!   the hub. Its parts ([`Route`], [`Route::resolve`], [`connect`], [`shake_hands`]) can be walked one by one, so that
//!   `picket test-connection` can name the step that failed.
//! - [`HubClient`] makes requests: JSON documents and batches of events.
//! - [`HubSocket`] is the one WebSocket between an agent and its hub.
//!
//! From the second connection on a hub is believed by the roots that are in force ([`HubTrust`]), and by no other authority
//! of the machine's.

mod call;
mod door;
mod route;
mod socket;

pub use call::{HubCallError, HubClient, HubOptions};
pub use door::{DoorError, Greeting, connect, fetch_root, shake_hands};
pub use route::Route;
pub use socket::{Heard, HubSocket, SocketLimits};

use picket_pki::{Certificate, PkiError, PrivateKey};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;

/// The certificate that a machine shows, with its key.
#[derive(Debug)]
pub struct ClientIdentity {
    chain: Vec<Certificate>,
    key: PrivateKey,
}

impl ClientIdentity {
    /// A certificate with the intermediates behind it, and its key.
    ///
    /// # Errors
    /// [`PkiError::KeyMismatch`] when they do not belong together; [`PkiError::Malformed`] without a certificate.
    pub fn new(chain: Vec<Certificate>, key: PrivateKey) -> Result<Self, PkiError> {
        let leaf = chain
            .first()
            .ok_or_else(|| PkiError::Malformed { what: "the certificate", detail: "there is none".to_owned() })?;
        if leaf.pin == key.pin() { Ok(Self { chain, key }) } else { Err(PkiError::KeyMismatch) }
    }

    /// The machine's own certificate.
    pub fn leaf(&self) -> &Certificate {
        // `new` takes none without.
        &self.chain[0]
    }

    /// The certificate and those behind it.
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    /// The key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }
}

/// Who is believed, and who one is.
#[derive(Debug, Clone, Default)]
pub struct HubTrust {
    /// The roots in force: two while one replaces the other. No other authority is believed.
    pub roots: Vec<Certificate>,
    /// The machine's own certificate; enrolment has none.
    pub identity: Option<Arc<ClientIdentity>>,
}

impl HubTrust {
    /// TLS 1.3, or 1.2 where a box in between knows no better.
    pub(crate) fn tls(&self) -> Result<ClientConfig, rustls::Error> {
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            store.add(root.der().clone())?;
        }
        let builder = ClientConfig::builder_with_provider(crate::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_root_certificates(store);
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some(identity) => {
                let chain: Vec<CertificateDer<'static>> =
                    identity.chain.iter().map(|certificate| certificate.der().clone()).collect();
                builder.with_client_auth_cert(chain, identity.key.to_der())
            }
        }
    }
}
