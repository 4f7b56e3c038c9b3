//! What can go wrong between asking and having the bytes.

use crate::url::{SafeUrl, UrlError};
use std::io;
use std::time::Duration;

/// A request that did not bring its answer. Never shows more of a URL than [`SafeUrl`] does.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The URL, or one it redirects to, is not allowed.
    #[error("cannot follow the address")]
    Url(#[from] UrlError),
    /// The host's name is not known.
    #[error("{url}: the host name is not known; check the address, the DNS and the network")]
    UnknownHost {
        /// What was asked for.
        url: SafeUrl,
    },
    /// A list of authorities to trust has none.
    #[error("there is no certificate in the list of authorities (PEM is expected: -----BEGIN CERTIFICATE-----)")]
    Authorities,
    /// The proxy that was named cannot be used.
    #[error("the proxy cannot be used: {reason}")]
    Proxy {
        /// Why.
        reason: String,
    },
    /// No connection came about.
    #[error("{url}: no connection")]
    Unreachable {
        /// What was asked for.
        url: SafeUrl,
        /// What the system said.
        source: io::Error,
    },
    /// The TLS handshake failed: most often the certificate does not fit.
    #[error("{url}: no trusted TLS connection ({reason})")]
    Tls {
        /// What was asked for.
        url: SafeUrl,
        /// What the TLS library said.
        reason: String,
    },
    /// A time limit passed.
    #[error("{url}: timed out ({what})")]
    TimedOut {
        /// What was asked for.
        url: SafeUrl,
        /// Which limit.
        what: String,
    },
    /// The server answered with an error status.
    #[error("{url}: the server answered {status}{}", retry_text(*retry_after))]
    Status {
        /// What was asked for.
        url: SafeUrl,
        /// The status code.
        status: u16,
        /// When it asks to be asked again.
        retry_after: Option<Duration>,
    },
    /// More redirects than are followed.
    #[error("{url}: redirected more than {limit} times")]
    TooManyRedirects {
        /// What was asked for first.
        url: SafeUrl,
        /// How many are followed.
        limit: u32,
    },
    /// More bytes than allowed.
    #[error("{url}: more than the {limit} bytes allowed")]
    TooLarge {
        /// What was asked for.
        url: SafeUrl,
        /// How many are allowed.
        limit: u64,
    },
    /// An answer could not be kept for the one who asked.
    #[error("an answer of the server could not be kept ({reason})")]
    NotKept {
        /// Why.
        reason: String,
    },
    /// The connection broke, or did not speak HTTP.
    #[error("{url}: the answer broke off ({reason})")]
    Broken {
        /// What was asked for.
        url: SafeUrl,
        /// What was seen.
        reason: String,
    },
}

fn retry_text(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| format!(", asking to wait {} s", after.as_secs()))
}

impl TransportError {
    /// Whether the server said that there is no such file. Object stores answer 403 for it when listing is forbidden.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: 403 | 404 | 410, .. })
    }

    pub(crate) fn from_ureq(url: &SafeUrl, error: ureq::Error) -> Self {
        let url = url.clone();
        match error {
            ureq::Error::HostNotFound => Self::UnknownHost { url },
            ureq::Error::Timeout(what) => Self::TimedOut { url, what: what.to_string() },
            ureq::Error::Tls(reason) => Self::Tls { url, reason: reason.to_owned() },
            ureq::Error::Rustls(reason) => Self::Tls { url, reason: reason.to_string() },
            ureq::Error::Io(source) => Self::from_io(url, source),
            ureq::Error::ConnectionFailed => Self::Unreachable { url, source: io::ErrorKind::NotConnected.into() },
            // These show the whole address.
            ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => {
                Self::Broken { url, reason: "no request can be made of the address".to_owned() }
            }
            other => Self::Broken { url, reason: other.to_string() },
        }
    }

    pub(crate) fn from_io(url: SafeUrl, source: io::Error) -> Self {
        use io::ErrorKind as Kind;
        // rustls reports a refused certificate as an I/O error of the handshake.
        if let Some(tls) = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Self::Tls { url, reason: tls.to_string() };
        }
        match source.kind() {
            Kind::ConnectionRefused | Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::AddrNotAvailable => {
                Self::Unreachable { url, source }
            }
            Kind::TimedOut => Self::TimedOut { url, what: "no byte arrived".to_owned() },
            _ => Self::Broken { url, reason: source.to_string() },
        }
    }
}
