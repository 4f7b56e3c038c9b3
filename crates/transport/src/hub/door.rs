//! The first handshake with a hub of which nothing is known but pins, step by step.

use super::route::Route;
use crate::error::TransportError;
use crate::proxy::{self, MAX_ANSWER, ProxyChoice};
use jiff::Timestamp;
use picket_pki::{Certificate, ChainError, SpkiPin, check_hub_chain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the first handshake brought.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// The root that vouches for the hub: of a pinned key.
    pub root: Certificate,
    /// The hub's own certificate.
    pub hub: Certificate,
    /// The version and the cipher suite that were agreed on, for people.
    pub protocol: String,
}

/// A step on the way to a hub that failed, and why.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The name has no address.
    #[error("the name {host} has no address: {source}; check the address, the DNS and the network")]
    Resolve {
        /// Whose.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody answers there.
    #[error("no connection to {address}: {source}; check that the hub runs and that no firewall is in between")]
    Connect {
        /// Where, the last one that was tried.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The proxy does not let through.
    #[error("the proxy {proxy} does not connect to {authority}: {reason}")]
    Proxy {
        /// Which, without secrets.
        proxy: String,
        /// Where it was asked to.
        authority: String,
        /// What it said.
        reason: String,
    },
    /// There is no TLS.
    #[error("no TLS with {authority}: {reason}")]
    Tls {
        /// With whom.
        authority: String,
        /// What was seen.
        reason: String,
    },
    /// The hub's certificate is not believed.
    #[error("the certificate of {authority} is not believed: {reason}")]
    Certificate {
        /// Whose.
        authority: String,
        /// Why.
        #[source]
        reason: ChainError,
    },
    /// The address cannot be used.
    #[error(transparent)]
    Address(#[from] TransportError),
}

/// Asks the hub at `hub` for the root that vouches for it: the one whose key is pinned.
///
/// # Errors
/// Which step failed, and why. Each step may take `limit`.
pub fn fetch_root(hub: &str, pins: &[SpkiPin], choice: &ProxyChoice, limit: Duration) -> Result<Greeting, DoorError> {
    let route = Route::new(hub, choice)?;
    let resolve = |source| DoorError::Resolve { host: route.next_hop().0.to_owned(), source };
    let addresses = route.resolve().map_err(resolve)?;
    let stream = connect(&route, &addresses, limit)?;
    shake_hands(&route, stream, pins, limit)
}

/// Connects to the first of `addresses` that answers, and through the proxy, where there is one.
///
/// # Errors
/// [`DoorError::Connect`] of the last address, [`DoorError::Proxy`].
pub fn connect(route: &Route, addresses: &[SocketAddr], limit: Duration) -> Result<TcpStream, DoorError> {
    let deadline = Instant::now() + limit;
    let mut last =
        DoorError::Resolve { host: route.next_hop().0.to_owned(), source: io::Error::other("the name has no address") };
    for address in addresses {
        // An address that drops packets must not take the time of all others.
        let left = deadline.saturating_duration_since(Instant::now());
        let share = (left / 2).max(Duration::from_secs(1)).min(limit);
        match TcpStream::connect_timeout(address, share) {
            Ok(mut stream) => {
                let _ = stream.set_nodelay(true);
                tunnel(route, &mut stream, deadline)?;
                return Ok(stream);
            }
            Err(source) => last = DoorError::Connect { address: *address, source },
        }
        if deadline <= Instant::now() {
            break;
        }
    }
    Err(last)
}

fn tunnel(route: &Route, stream: &mut TcpStream, deadline: Instant) -> Result<(), DoorError> {
    let Some(through) = route.proxy() else { return Ok(()) };
    let failed = |reason: String| DoorError::Proxy {
        proxy: route.shown_proxy().unwrap_or_default(),
        authority: route.authority(),
        reason,
    };
    let told = |error: &io::Error| failed(error.to_string());
    bound(stream, deadline).map_err(|error| told(&error))?;
    stream.write_all(proxy::request(through, &route.authority()).as_bytes()).map_err(|error| told(&error))?;
    let mut bytes = Vec::new();
    loop {
        if let Some(answer) = proxy::answer(&bytes) {
            return answer.map_err(failed);
        }
        bound(stream, deadline).map_err(|error| told(&error))?;
        // Byte by byte: what follows the header is TLS and not ours. It is some hundred bytes, once.
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err(failed("it closed the connection".to_owned())),
            Ok(_) if bytes.len() < MAX_ANSWER => bytes.push(byte[0]),
            Ok(_) => return Err(failed("its answer is too long".to_owned())),
            Err(error) => return Err(told(&error)),
        }
    }
}

/// Makes a TLS handshake and believes the hub by its pins; nothing is sent after it.
///
/// # Errors
/// [`DoorError::Certificate`] when the hub is not believed, [`DoorError::Tls`] for everything else.
pub fn shake_hands(
    route: &Route,
    mut stream: TcpStream,
    pins: &[SpkiPin],
    limit: Duration,
) -> Result<Greeting, DoorError> {
    let deadline = Instant::now() + limit;
    let authority = route.authority();
    let failed = |reason: String| DoorError::Tls { authority: authority.clone(), reason };
    let verifier = Arc::new(PinVerifier { pins: pins.to_vec(), seen: Mutex::new(None), provider: crate::provider() });
    let config = ClientConfig::builder_with_provider(crate::provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| failed(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let connection = ClientConnection::new(Arc::new(config), route.name().clone());
    let mut connection = connection.map_err(|error| failed(error.to_string()))?;
    let outcome = drive(&mut connection, &mut stream, deadline);
    let seen = verifier.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (root, hub) = match (outcome, seen) {
        (_, Some(Err(reason))) => return Err(DoorError::Certificate { authority, reason }),
        (Ok(()), Some(Ok(believed))) => believed,
        (Ok(()), None) => return Err(failed("the hub showed no certificate".to_owned())),
        (Err(reason), _) => return Err(failed(reason)),
    };
    connection.send_close_notify();
    let _ = connection.write_tls(&mut stream);
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS 1.3",
    };
    let suite = connection.negotiated_cipher_suite().map(|suite| format!(", {:?}", suite.suite()));
    Ok(Greeting { root, hub, protocol: format!("{version}{}", suite.unwrap_or_default()) })
}

/// Turns the handshake to its end, within the time.
fn drive(connection: &mut ClientConnection, stream: &mut TcpStream, deadline: Instant) -> Result<(), String> {
    while connection.is_handshaking() || connection.wants_write() {
        bound(stream, deadline).map_err(|error| error.to_string())?;
        if connection.wants_write() {
            connection.write_tls(stream).map_err(|error| told(&error))?;
            continue;
        }
        match connection.read_tls(stream) {
            Ok(0) => {
                return Err("the connection was closed in the handshake; is this the hub's port for agents?".to_owned());
            }
            Ok(_) => {
                if let Err(error) = connection.process_new_packets() {
                    // The peer is told why (RFC 8446 §6.2), if it still listens.
                    let _ = connection.write_tls(stream);
                    return Err(told_tls(&error));
                }
            }
            Err(error) => return Err(told(&error)),
        }
    }
    Ok(())
}

fn told_tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidMessage(_) => format!("whoever answers does not speak TLS ({error})"),
        error => error.to_string(),
    }
}

fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "nothing came in time".to_owned(),
        _ => error.to_string(),
    }
}

/// Lets the next read or write take what is left of the time.
fn bound(stream: &TcpStream, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came in time"));
    }
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))
}

/// The root, and the hub's own certificate.
type Believed = (Certificate, Certificate);

/// Believes a hub by its pins, and remembers what it thought of it.
#[derive(Debug)]
struct PinVerifier {
    pins: Vec<SpkiPin>,
    seen: Mutex<Option<Result<Believed, ChainError>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<CertificateDer<'_>> =
            std::iter::once(end_entity).chain(intermediates).map(|der| CertificateDer::from(der.as_ref())).collect();
        let now = i64::try_from(now.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
        let judged = check_hub_chain(&chain, &self.pins, server_name, now.unwrap_or(Timestamp::MAX))
            .and_then(|root| Ok((root, Certificate::from_der(end_entity)?)));
        let outcome = match &judged {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(_) => Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure)),
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(judged);
        outcome
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
