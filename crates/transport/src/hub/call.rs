//! Requests to a hub: documents in JSON and batches of events, and what comes back.

use super::{HubTrust, Route};
use crate::client::{MAX_HEADER_BYTES, Timeouts, header, trace_headers};
use crate::error::TransportError;
use crate::proxy::ProxyChoice;
use crate::url::SafeUrl;
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName};
use picket_protocol::hub::{DOCUMENT_MAX_BYTES, PROBLEM_MEDIA_TYPE, Problem, ProblemCode, WIRE, WIRE_HEADER};
use picket_protocol::trace::TraceContext;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};

/// How a hub is called.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// How requests introduce themselves.
    pub user_agent: String,
    /// Limits on waiting.
    pub timeouts: Timeouts,
    /// How long one call may take altogether, its body both ways.
    pub limit: Duration,
    /// Through which proxy.
    pub proxy: ProxyChoice,
}

/// A call that did not bring its answer.
#[derive(Debug, thiserror::Error)]
pub enum HubCallError {
    /// The hub was not reached, or something between it and us answered.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The hub refuses.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// What came is no answer of a hub's.
    #[error("{url}: the answer makes no sense: {reason}")]
    Malformed {
        /// What was asked.
        url: SafeUrl,
        /// What is wrong with it.
        reason: String,
    },
}

impl HubCallError {
    /// The hub's code, if it was the hub that refused.
    pub fn code(&self) -> Option<ProblemCode> {
        match self {
            Self::Problem(problem) => Some(problem.code),
            Self::Transport(_) | Self::Malformed { .. } => None,
        }
    }

    /// For how long the hub asks not to be called (`Retry-After`, RFC 9110 §10.2.3).
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Problem(problem) => problem.retry_after.map(Duration::from_secs),
            Self::Transport(TransportError::Status { retry_after, .. }) => *retry_after,
            Self::Transport(_) | Self::Malformed { .. } => None,
        }
    }

    /// Whether the identity is lost: nothing but these two words of the hub's own ever says so.
    pub fn costs_identity(&self) -> bool {
        matches!(self.code(), Some(ProblemCode::Revoked | ProblemCode::UnknownAgent))
    }
}

/// Makes requests to one hub, under one identity.
#[derive(Clone)]
pub struct HubClient {
    agent: ureq::Agent,
    hub: SafeUrl,
    limit: Duration,
}

impl std::fmt::Debug for HubClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HubClient({})", self.hub)
    }
}

impl HubClient {
    /// A client of the hub at `hub`, which believes `trust.roots` and shows `trust.identity`.
    ///
    /// # Errors
    /// For an address or a proxy that cannot be used, and [`TransportError::Authorities`] without a root.
    pub fn new(hub: &str, trust: &HubTrust, options: &HubOptions) -> Result<Self, TransportError> {
        let route = Route::new(hub, &options.proxy)?;
        if trust.roots.is_empty() {
            return Err(TransportError::Authorities);
        }
        let owned = |certificate: &picket_pki::Certificate| Certificate::from_der(certificate.der()).to_owned();
        let roots: Vec<Certificate<'static>> = trust.roots.iter().map(owned).collect();
        let shown = match &trust.identity {
            None => None,
            Some(identity) => {
                let chain: Vec<Certificate<'static>> = identity.chain().iter().map(owned).collect();
                let key = PrivateKey::from_pem(identity.key().to_pem().as_bytes());
                let key = key.map_err(|error| TransportError::from_ureq(route.url(), error))?;
                Some(ClientCert::new_with_certs(&chain, key))
            }
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .client_cert(shown)
            .unversioned_rustls_crypto_provider(crate::provider())
            .build();
        let agent = ureq::Agent::config_builder()
            .user_agent(&options.user_agent)
            .https_only(true)
            .http_status_as_error(false)
            // A hub does not redirect; who does is somebody else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(MAX_HEADER_BYTES)
            .accept_encoding("identity")
            // One connection is kept between two batches; more would be kept for nothing.
            .max_idle_connections(1)
            .max_idle_connections_per_host(1)
            .timeout_connect(Some(options.timeouts.connect))
            .timeout_recv_response(Some(options.timeouts.response))
            .timeout_per_read(Some(options.timeouts.stall))
            .timeout_global(Some(options.limit))
            .proxy(route.proxy().cloned())
            .tls_config(tls)
            .build()
            .new_agent();
        Ok(Self { agent, hub: route.url().clone(), limit: options.limit })
    }

    /// Where it calls.
    pub fn hub(&self) -> &SafeUrl {
        &self.hub
    }

    /// How long one call may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Asks for a document.
    ///
    /// # Errors
    /// See [`HubCallError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str, trace: Option<&TraceContext>) -> Result<T, HubCallError> {
        let url = self.url(path)?;
        let mut builder = self.agent.get(url.as_uri().clone());
        for (name, value) in common_headers(trace) {
            builder = builder.header(name, value);
        }
        let response = builder.call().map_err(|error| TransportError::from_ureq(&url, error))?;
        read(&url, response)
    }

    /// Posts a document.
    ///
    /// # Errors
    /// See [`HubCallError`].
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        document: &impl Serialize,
        trace: Option<&TraceContext>,
    ) -> Result<T, HubCallError> {
        let body = serde_json::to_vec(document)
            .map_err(|error| HubCallError::Malformed { url: self.hub.clone(), reason: error.to_string() })?;
        self.post_bytes(path, "application/json", &[], &body, trace)
    }

    /// Posts bytes of the type `media_type`, with these headers.
    ///
    /// # Errors
    /// See [`HubCallError`].
    pub fn post_bytes<T: DeserializeOwned>(
        &self,
        path: &str,
        media_type: &str,
        headers: &[(&str, String)],
        body: &[u8],
        trace: Option<&TraceContext>,
    ) -> Result<T, HubCallError> {
        let url = self.url(path)?;
        let mut builder = self.agent.post(url.as_uri().clone()).header(CONTENT_TYPE, media_type);
        for (name, value) in common_headers(trace) {
            builder = builder.header(name, value);
        }
        for (name, value) in headers {
            builder = builder.header(*name, value);
        }
        let response = builder.send(body).map_err(|error| TransportError::from_ureq(&url, error))?;
        read(&url, response)
    }

    fn url(&self, path: &str) -> Result<SafeUrl, HubCallError> {
        Ok(self.hub.join(path.trim_start_matches('/')).map_err(TransportError::from)?)
    }
}

/// What every request to a hub says.
pub(super) fn common_headers(trace: Option<&TraceContext>) -> Vec<(HeaderName, String)> {
    let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok();
    let traced = trace_headers(trace).filter_map(|(header, value)| Some((name(header)?, value)));
    let accept = (ACCEPT, format!("application/json, {PROBLEM_MEDIA_TYPE}"));
    name(WIRE_HEADER).map(|header| (header, WIRE.to_string())).into_iter().chain([accept]).chain(traced).collect()
}

fn read<T: DeserializeOwned>(url: &SafeUrl, response: http::Response<ureq::Body>) -> Result<T, HubCallError> {
    let (parts, body) = response.into_parts();
    let mut bytes = Vec::new();
    let limit = DOCUMENT_MAX_BYTES as u64;
    let mut reader = body.into_with_config().limit(u64::MAX).reader().take(limit + 1);
    reader.read_to_end(&mut bytes).map_err(|error| crate::client::read_error(url, error))?;
    if bytes.len() as u64 > limit {
        return Err(TransportError::TooLarge { url: url.clone(), limit }.into());
    }
    if parts.status.is_success() {
        check_wire(url, &parts.headers)?;
        return serde_json::from_slice(&bytes)
            .map_err(|error| HubCallError::Malformed { url: url.clone(), reason: error.to_string() });
    }
    Err(refusal(url, parts.status.as_u16(), &parts.headers, &bytes))
}

/// An answer must be in a version that we know: nobody else's success is taken for a hub's.
fn check_wire(url: &SafeUrl, headers: &HeaderMap) -> Result<(), HubCallError> {
    let malformed = |reason: String| HubCallError::Malformed { url: url.clone(), reason };
    let version = headers.get(WIRE_HEADER).and_then(|value| value.to_str().ok()?.trim().parse::<u32>().ok());
    match version {
        Some(version) if (WIRE.oldest..=WIRE.newest).contains(&version) => Ok(()),
        Some(version) => Err(malformed(format!("it is in version {version} of the protocol, and {WIRE} are known"))),
        None => Err(malformed("it is not a hub's: a proxy or another server answers there".to_owned())),
    }
}

/// What an answer with an error status means: the hub's problem, where it is one.
pub(super) fn refusal(url: &SafeUrl, status: u16, headers: &HeaderMap, body: &[u8]) -> HubCallError {
    let after = header(headers, &RETRY_AFTER).and_then(|seconds| seconds.trim().parse::<u64>().ok());
    let is_problem = header(headers, &CONTENT_TYPE).is_some_and(|kind| kind.starts_with(PROBLEM_MEDIA_TYPE));
    match serde_json::from_slice::<Problem>(body).ok().filter(|_| is_problem) {
        Some(mut problem) => {
            problem.status = status;
            problem.retry_after = problem.retry_after.or(after);
            // For terminals and logs.
            for text in [&mut problem.detail, &mut problem.title] {
                *text = text.chars().filter(|c| !c.is_control()).take(1000).collect();
            }
            HubCallError::Problem(Box::new(problem))
        }
        None => {
            let retry_after = after.map(Duration::from_secs);
            TransportError::Status { url: url.clone(), status, retry_after }.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url() -> SafeUrl {
        "https://hub.example/agent/v1/whoami".parse().unwrap()
    }

    #[test]
    fn only_the_hubs_own_word_costs_an_identity() {
        let mut headers = HeaderMap::new();
        let body = br#"{"code": "revoked", "status": 403, "detail": "stolen\u001b[2J"}"#;
        // A proxy that answers 403, and one that happens to answer JSON.
        let error = refusal(&url(), 403, &headers, body);
        assert!(!error.costs_identity() && error.code().is_none(), "{error}");
        headers.insert(CONTENT_TYPE, PROBLEM_MEDIA_TYPE.parse().unwrap());
        let error = refusal(&url(), 403, &headers, body);
        assert!(error.costs_identity(), "{error}");
        assert!(!error.to_string().contains('\u{1b}'));
        for code in ProblemCode::ALL {
            let lost = matches!(code, ProblemCode::Revoked | ProblemCode::UnknownAgent);
            let error = HubCallError::Problem(Box::new(Problem::new(*code, "x")));
            assert_eq!(error.costs_identity(), lost, "{code:?}");
        }
    }

    #[test]
    fn the_time_to_come_back_is_taken_from_the_document_or_the_header() {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(refusal(&url(), 503, &headers, b"busy").retry_after(), Some(Duration::from_secs(7)));
        headers.insert(CONTENT_TYPE, PROBLEM_MEDIA_TYPE.parse().unwrap());
        let error = refusal(&url(), 503, &headers, br#"{"code": "overloaded"}"#);
        assert_eq!((error.code(), error.retry_after()), (Some(ProblemCode::Overloaded), Some(Duration::from_secs(7))));
        let error = refusal(&url(), 503, &headers, br#"{"code": "overloaded", "retry_after": 3}"#);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(body in prop::collection::vec(any::<u8>(), 0..200), status in 100u16..600) {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, PROBLEM_MEDIA_TYPE.parse().unwrap());
            let _ = refusal(&url(), status, &headers, &body).to_string();
        }
    }
}
