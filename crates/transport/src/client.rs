//! The client: one GET at a time, redirects by hand, bodies bounded.

use crate::error::TransportError;
use crate::url::SafeUrl;
use http::header::{ETAG, HeaderMap, IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE, RETRY_AFTER};
use std::io::{self, Read};
use std::time::Duration;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

/// How many redirects are followed: GitHub's releases need two.
const MAX_REDIRECTS: u32 = 5;
/// The largest response header, in bytes: 64 KiB, as in common servers.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Limits on waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first packet to a connection with TLS.
    pub connect: Duration,
    /// From the request to the answer's header.
    pub response: Duration,
    /// Between two reads of a body.
    pub stall: Duration,
}

impl Default for Timeouts {
    /// 15 s to connect (three SYN retries take 7 s), 30 s for an answer, 30 s of silence.
    fn default() -> Self {
        Self { connect: Duration::from_secs(15), response: Duration::from_secs(30), stall: Duration::from_secs(30) }
    }
}

/// Makes requests.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
}

/// One GET.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// Ask for the body only if it is not the one this ETag names.
    pub if_none_match: Option<&'a str>,
    /// Ask for the bytes from this offset on, if the file is still the one this validator names.
    pub resume: Option<(u64, &'a str)>,
}

/// The beginning of an answer; the body has not been read.
#[derive(Debug)]
pub struct Response {
    /// 200, 206 or 304.
    pub status: u16,
    /// The validator of this version of the file, for a later request.
    pub etag: Option<String>,
    url: SafeUrl,
    body: ureq::Body,
}

impl Client {
    /// A client that introduces itself as `user_agent`.
    pub fn new(user_agent: &str, timeouts: Timeouts) -> Self {
        let agent = ureq::Agent::config_builder()
            .user_agent(user_agent)
            .http_status_as_error(false)
            // Redirects are followed in `get`, where every hop is held to the same rule.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(MAX_HEADER_BYTES)
            .timeout_connect(Some(timeouts.connect))
            .timeout_recv_response(Some(timeouts.response))
            .timeout_per_read(Some(timeouts.stall))
            .tls_config(
                TlsConfig::builder()
                    .provider(TlsProvider::Rustls)
                    .root_certs(root_certs())
                    .unversioned_rustls_crypto_provider(crate::provider())
                    .build(),
            )
            .build()
            .new_agent();
        Self { agent }
    }

    /// Sends `request` for `url` and returns once the header of the answer is there.
    ///
    /// # Errors
    /// Anything but 200, 206 and 304 at the end of at most [`MAX_REDIRECTS`] redirects.
    pub fn get(&self, url: &SafeUrl, request: &Request<'_>) -> Result<Response, TransportError> {
        let mut here = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&here, request)?;
            let status = response.status().as_u16();
            match status {
                200 | 206 | 304 => {
                    let etag = header(response.headers(), &ETAG).filter(|etag| etag.len() <= 256);
                    return Ok(Response { status, etag, url: here, body: response.into_body() });
                }
                301 | 302 | 303 | 307 | 308 => {
                    let location = header(response.headers(), &LOCATION).unwrap_or_default();
                    here = here.redirected(&location)?;
                }
                _ => {
                    let retry_after = header(response.headers(), &RETRY_AFTER)
                        .and_then(|seconds| seconds.parse().ok())
                        .map(Duration::from_secs);
                    return Err(TransportError::Status { url: here, status, retry_after });
                }
            }
        }
        Err(TransportError::TooManyRedirects { url: url.clone(), limit: MAX_REDIRECTS })
    }

    /// Gets a small document that comes with any status, as health reports do; follows no redirect.
    pub fn get_any_status(&self, url: &SafeUrl, max_bytes: u64) -> Result<Vec<u8>, TransportError> {
        let response = self.send(url, &Request::default())?;
        Response { status: response.status().as_u16(), etag: None, url: url.clone(), body: response.into_body() }
            .read(max_bytes)
    }

    fn send(&self, url: &SafeUrl, request: &Request<'_>) -> Result<http::Response<ureq::Body>, TransportError> {
        let mut builder = self.agent.get(url.as_uri().clone());
        // Offsets and hashes are of the bytes as stored; a proxy must not compress them on the way.
        builder = builder.header("accept-encoding", "identity");
        if let Some(etag) = request.if_none_match {
            builder = builder.header(IF_NONE_MATCH, etag);
        }
        if let Some((offset, validator)) = request.resume {
            builder = builder.header(RANGE, format!("bytes={offset}-")).header(IF_RANGE, validator);
        }
        if url.is_loopback() {
            // A proxy cannot reach this machine's loopback, and must not be asked to.
            builder = builder.config().proxy(None).build();
        }
        builder.call().map_err(|e| TransportError::from_ureq(url, e))
    }

    /// Gets a small file whole.
    ///
    /// # Errors
    /// [`TransportError::TooLarge`] as soon as more than `max_bytes` arrive.
    pub fn get_bytes(&self, url: &SafeUrl, max_bytes: u64) -> Result<Vec<u8>, TransportError> {
        self.get(url, &Request::default())?.read(max_bytes)
    }
}

impl Response {
    /// Reads the whole body.
    ///
    /// # Errors
    /// [`TransportError::TooLarge`] as soon as more than `max_bytes` arrive.
    pub fn read(self, max_bytes: u64) -> Result<Vec<u8>, TransportError> {
        let url = self.url.clone();
        let mut bytes = Vec::new();
        let mut reader = self.reader().take(max_bytes.saturating_add(1));
        reader.read_to_end(&mut bytes).map_err(|e| read_error(&url, e))?;
        if bytes.len() as u64 > max_bytes {
            return Err(TransportError::TooLarge { url, limit: max_bytes });
        }
        Ok(bytes)
    }

    /// The body as a stream. It has no limit of its own: whoever reads it counts.
    pub fn reader(self) -> impl Read + use<> {
        self.body.into_with_config().limit(u64::MAX).reader()
    }

    /// Where the answer came from, after redirects.
    pub fn url(&self) -> &SafeUrl {
        &self.url
    }
}

/// Describes an error met while reading a body from `url`.
pub fn read_error(url: &SafeUrl, error: io::Error) -> TransportError {
    TransportError::from_ureq(url, ureq::Error::from(error))
}

fn header(headers: &HeaderMap, name: &http::HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The authorities to trust: the machine's own where it has any.
fn root_certs() -> RootCerts {
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        tracing::warn!("this machine has no certificate authorities (package ca-certificates); using those built in");
        RootCerts::WebPki
    } else {
        RootCerts::PlatformVerifier
    }
}
