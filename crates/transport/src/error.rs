//! What can go wrong between asking and having the bytes.

use crate::pace::TooSlow;
use crate::url::{SafeUrl, UrlError};
use std::io;
use std::path::PathBuf;
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
    #[error("{url}: the server answered {status}{}", wait_text(*status, *retry_after))]
    Status {
        /// What was asked for.
        url: SafeUrl,
        /// The status code.
        status: u16,
        /// When it asks to be asked again, at most a day. With 403 and 429 it is a limit on how often one may ask.
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
    /// The file that stands in for a server cannot be read as one.
    #[error("{} is no release bundle that can be read ({reason})", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Bytes come, and so slowly that somebody may be keeping the line busy.
    #[error("{url}: fewer than {bytes} bytes came in {} s", window.as_secs())]
    TooSlow {
        /// What was asked for.
        url: SafeUrl,
        /// So many would have been enough.
        bytes: u64,
        /// Over which time.
        window: Duration,
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

fn wait_text(status: u16, wait: Option<Duration>) -> String {
    let wait = wait.map(|wait| wait.as_secs());
    let time = wait.map(|seconds| match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h", seconds.div_ceil(3600)),
    });
    match (status, time) {
        (403 | 429, Some(time)) => format!(": it limits how often this address may ask; ask again in {time}"),
        (429, None) => ": it limits how often this address may ask; ask again later".to_owned(),
        (_, Some(time)) => format!(", asking to wait {time}"),
        (_, None) => String::new(),
    }
}

impl TransportError {
    /// Whether the server said that there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: 404 | 410, .. })
    }

    /// The status that was answered, where that is the error.
    pub fn status(&self) -> Option<u16> {
        if let Self::Status { status, .. } = self { Some(*status) } else { None }
    }

    /// Whether the server refused without a word on when to ask again. Object stores answer so where there is no such
    /// file and their names may not be listed; so do proxies that forbid an address.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Status { status: 403, retry_after: None, .. })
    }

    /// What it may mean and what to do, for whoever asked for releases.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Url(_) => {
                "check update.releases; only https, or http to this machine, is followed; nothing was changed"
            }
            Self::UnknownHost { .. } => "check update.releases and this machine's DNS; nothing was changed",
            Self::Authorities | Self::Tls { .. } => {
                "check this machine's clock and update.releases; behind a proxy that opens TLS, name its authority in \
                 network.authorities; nothing was changed"
            }
            Self::Proxy { .. } => "check network.proxy or HTTPS_PROXY, and what the proxy allows; nothing was changed",
            Self::Status { status: 403 | 429, retry_after: Some(_), .. } | Self::Status { status: 429, .. } => {
                "many machines may share this one's address; try again then, or follow a mirror (update.releases); nothing \
                 was changed"
            }
            Self::Status { status: 401 | 403 | 407 | 451, .. } => {
                "the server or a proxy forbids it: check update.releases and the proxy's rules; nothing was changed"
            }
            Self::Status { status: 500..=599, .. } => {
                "it is the server's trouble: try again later; nothing was changed"
            }
            Self::TooLarge { .. } | Self::TooManyRedirects { .. } => {
                "the server sends more than a vendor signs: it or a mirror may be compromised, or update.releases is the \
                 address of something else. It was broken off, and nothing was changed"
            }
            Self::TimedOut { .. } | Self::TooSlow { .. } => {
                "the server or the network is too slow, or somebody keeps the line busy; nothing was changed, and the next \
                 check tries again. If it lasts, check update.releases and the network"
            }
            Self::Bundle { .. } => {
                "it was damaged on the way, or is something else: copy it again, or make another with `picket release \
                 bundle`; nothing was changed"
            }
            Self::NotKept { .. } => "check the disk and `picket doctor`; nothing was changed",
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Status { .. } => {
                "check update.releases and the network; nothing was changed"
            }
        }
    }

    /// The error that a body which comes in too slowly amounts to.
    pub fn too_slow(url: &SafeUrl, slow: TooSlow) -> Self {
        Self::TooSlow { url: url.clone(), bytes: slow.bytes, window: slow.window }
    }

    pub(crate) fn from_ureq(url: &SafeUrl, error: ureq::Error) -> Self {
        let url = url.clone();
        match error {
            ureq::Error::HostNotFound => Self::UnknownHost { url },
            ureq::Error::Timeout(what) => Self::TimedOut { url, what: what.to_string() },
            ureq::Error::Tls(reason) => Self::Tls { url, reason: reason.to_owned() },
            ureq::Error::Rustls(reason) => Self::Tls { url, reason: reason.to_string() },
            ureq::Error::Io(source) => Self::from_io(url, source),
            ureq::Error::ConnectProxyFailed(reason) => Self::Proxy { reason: told_by_proxy(&reason) },
            ureq::Error::ConnectionFailed => Self::Unreachable { url, source: io::ErrorKind::NotConnected.into() },
            // These show the whole address.
            ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => {
                Self::Broken { url, reason: "no request can be made of the address".to_owned() }
            }
            other => Self::Broken { url, reason: other.to_string() },
        }
    }

    /// The same, where the way led through `proxy`: what was not found or not reached is the proxy then.
    pub(crate) fn through(self, proxy: Option<&ureq::Proxy>) -> Self {
        let Some(proxy) = proxy else { return self };
        let place = format!("{}:{}", proxy.host(), proxy.port());
        match self {
            Self::UnknownHost { .. } => Self::Proxy { reason: format!("the host name of {place} is not known") },
            Self::Unreachable { source, .. } => Self::Proxy { reason: format!("no connection to {place} ({source})") },
            Self::Proxy { reason } => Self::Proxy { reason: format!("{place}: {reason}") },
            other => other,
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

/// What a proxy said, which is a stranger's words: short, and without what could forge a line of a log.
fn told_by_proxy(reason: &str) -> String {
    let said: String = reason.chars().filter(|c| !c.is_control()).take(100).collect();
    let asks =
        if said.contains("407") { "; it asks for a user and a password (http://user:password@host:port)" } else { "" };
    format!("it refuses the tunnel: {said}{asks}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, wait: Option<u64>) -> TransportError {
        let url = "https://releases.example/x?sig=s3cret".parse().unwrap();
        TransportError::Status { url, status, retry_after: wait.map(Duration::from_secs) }
    }

    #[test]
    fn a_limit_on_how_often_one_may_ask_says_when_to_ask_again_and_is_no_missing_file() {
        let limited = refusal(403, Some(901));
        let told = limited.to_string();
        assert!(
            told.ends_with("answered 403: it limits how often this address may ask; ask again in 16 min"),
            "{told}"
        );
        assert!(!limited.is_not_found() && !limited.is_forbidden());
        assert!(limited.advice().contains("mirror"), "{}", limited.advice());
        assert!(refusal(429, Some(86_400)).to_string().ends_with("in 24 h"));
        assert!(refusal(429, None).to_string().ends_with("ask again later"));
        assert!(refusal(503, Some(5)).to_string().ends_with("answered 503, asking to wait 5 s"));
    }

    #[test]
    fn a_missing_file_and_a_forbidden_one_are_told_apart() {
        assert!(refusal(404, None).is_not_found() && refusal(410, None).is_not_found());
        assert!(!refusal(403, None).is_not_found() && refusal(403, None).is_forbidden());
        assert!(!refusal(500, None).is_not_found() && !refusal(500, None).is_forbidden());
    }
}
