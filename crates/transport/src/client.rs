//! The client: one request at a time, redirects by hand, bodies bounded.

use crate::error::TransportError;
use crate::names::Names;
use crate::network::Network;
use crate::pace::Pace;
use crate::proxy::ProxyChoice;
use crate::url::SafeUrl;
use crate::wait::asked_to_wait;
use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, IF_NONE_MATCH, IF_RANGE, LINK,
    LOCATION, RANGE,
};
use picket_protocol::trace::{CORRELATION_HEADER, TRACEPARENT_HEADER, TraceContext};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::unversioned::transport::DefaultConnector;

/// How many redirects are followed: GitHub's releases need two.
const MAX_REDIRECTS: u32 = 5;
/// The largest response header, in bytes: 64 KiB, as in common servers.
pub(crate) const MAX_HEADER_BYTES: usize = 64 << 10;

/// The body that is awaited where nobody says how long it may be, in bytes.
const MAX_UNSAID: u64 = 1 << 20;

/// The longest `Link` that is kept, in bytes.
const MAX_LINK: usize = 4 << 10;

/// Limits on waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To know the host's address; and from the first packet to a connection with TLS.
    pub connect: Duration,
    /// From the request to the whole of the answer's header.
    pub response: Duration,
    /// Between two reads of a body. One that comes in with less than 1,024 bytes a second, over twice this time, is
    /// broken off, too: see [`Pace`].
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
    stall: Duration,
    proxy: ProxyChoice,
}

/// One GET.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// Ask for the body only if it is not the one this ETag names.
    pub if_none_match: Option<&'a str>,
    /// Ask for the bytes from this offset on, if the file is still the one this validator names.
    pub resume: Option<(u64, &'a str)>,
    /// The most bytes of a body that are awaited; 1 MiB where it is not said. They may take as long as they would on the
    /// slowest line that is waited for ([`Pace`]), and then it ends, whatever the server sends meanwhile: what is no part of
    /// the body, as the trailers of a chunked one, counts for nothing.
    pub expects: Option<u64>,
    /// For which cause it is made: sent as `X-Correlation-ID` and, with a span of its own, as `traceparent`.
    pub trace: Option<&'a TraceContext>,
    /// A secret to send as `Authorization`, to the server that is asked and to no other that it redirects to.
    pub authorization: Option<&'a str>,
}

/// One POST.
#[derive(Clone)]
pub struct Post<'a> {
    /// What the body is, for example `application/json`.
    pub content_type: &'a str,
    /// The body.
    pub body: &'a [u8],
    /// A secret to send as `Authorization: Bearer` (RFC 6750 §2.1).
    pub bearer: Option<&'a str>,
    /// Other headers, which may be secrets, too.
    pub headers: &'a [(String, String)],
    /// For which cause it is made; see [`Request::trace`].
    pub trace: Option<&'a TraceContext>,
    /// The longest answer, in bytes.
    pub max_answer: u64,
    /// How long it may take altogether: unlike a download, a post is short.
    pub limit: Duration,
}

/// The beginning of an answer; the body has not been read.
#[derive(Debug)]
pub struct Response {
    /// 200, 206 or 304.
    pub status: u16,
    /// The validator of this version of the file, for a later request.
    pub etag: Option<String>,
    /// The documents that belong to it, as the header `Link` has them (RFC 8288).
    pub link: Option<String>,
    url: SafeUrl,
    body: ureq::Body,
    stall: Duration,
}

impl Client {
    /// A client that introduces itself as `user_agent`.
    pub fn new(user_agent: &str, timeouts: Timeouts, network: &Network) -> Self {
        Self::with_roots(user_agent, timeouts, network.authorities.roots(), &network.proxy)
    }

    /// A client that trusts the authorities in `pem` (RFC 7468) and no other.
    ///
    /// # Errors
    /// [`TransportError::Authorities`] when there is no certificate in it.
    pub fn trusting(
        user_agent: &str,
        timeouts: Timeouts,
        pem: &[u8],
        proxy: &ProxyChoice,
    ) -> Result<Self, TransportError> {
        let certificate = |item: Result<PemItem<'static>, ureq::Error>| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        };
        let found: Vec<Certificate<'static>> = parse_pem(pem).filter_map(certificate).collect();
        if found.is_empty() {
            return Err(TransportError::Authorities);
        }
        Ok(Self::with_roots(user_agent, timeouts, RootCerts::Specific(Arc::new(found)), proxy))
    }

    fn with_roots(user_agent: &str, timeouts: Timeouts, roots: RootCerts, proxy: &ProxyChoice) -> Self {
        let config = ureq::Agent::config_builder()
            .user_agent(user_agent)
            .http_status_as_error(false)
            // Redirects are followed in `get`, where every hop is held to the same rule.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(MAX_HEADER_BYTES)
            // What is built in could decompress, on behalf of another crate; nothing is asked for that way.
            .accept_encoding("identity")
            // Chosen for each hop by its address.
            .proxy(None)
            .timeout_resolve(Some(timeouts.connect))
            .timeout_connect(Some(timeouts.connect))
            .timeout_recv_response(Some(timeouts.response))
            .timeout_per_read(Some(timeouts.stall))
            .tls_config(
                TlsConfig::builder()
                    .provider(TlsProvider::Rustls)
                    .root_certs(roots)
                    .unversioned_rustls_crypto_provider(crate::provider())
                    .build(),
            )
            .build();
        let agent = ureq::Agent::with_parts(config, DefaultConnector::default(), Names::default());
        Self { agent, stall: timeouts.stall, proxy: proxy.clone() }
    }

    /// Sends `request` for `url` and returns once the header of the answer is there.
    ///
    /// A server that answers a request for the rest of a file with some other part of it, or says that there is no such
    /// part, is asked once more, for the whole.
    ///
    /// # Errors
    /// Anything but 200, 206 and 304 at the end of at most [`MAX_REDIRECTS`] redirects; 206 and 304 where they were not
    /// asked for; a body that was compressed on the way, but for gzip: see [`crate`].
    pub fn get(&self, url: &SafeUrl, request: &Request<'_>) -> Result<Response, TransportError> {
        let (here, response) = self.follow(url, request)?;
        if let Some((offset, _)) = request.resume
            && !brings_the_rest(&response, offset)
        {
            drop(response);
            let whole = Request { resume: None, ..request.clone() };
            let (here, response) = self.follow(url, &whole)?;
            return self.accept(here, response, &whole);
        }
        self.accept(here, response, request)
    }

    /// Follows redirects to the end of them.
    fn follow(
        &self,
        url: &SafeUrl,
        request: &Request<'_>,
    ) -> Result<(SafeUrl, http::Response<ureq::Body>), TransportError> {
        let mut here = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let authorization = request.authorization.filter(|_| here.is_on_server_of(url));
            let response = self.send(&here, &Request { authorization, ..request.clone() })?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((here, response));
            }
            let Some(location) = header(response.headers(), &LOCATION).filter(|location| !location.is_empty()) else {
                return Err(TransportError::Broken { url: here, reason: "it redirects to nowhere".to_owned() });
            };
            here = here.redirected(&location)?;
        }
        Err(TransportError::TooManyRedirects { url: url.clone(), limit: MAX_REDIRECTS })
    }

    fn accept(
        &self,
        url: SafeUrl,
        response: http::Response<ureq::Body>,
        request: &Request<'_>,
    ) -> Result<Response, TransportError> {
        let status = response.status().as_u16();
        let broken = |reason: &str| Err(TransportError::Broken { url: url.clone(), reason: reason.to_owned() });
        match status {
            200 => {}
            206 if request.resume.is_some() => {}
            206 => return broken("it is a part of the file; the whole was asked for"),
            304 if request.if_none_match.is_some() => {}
            304 => return broken("it says that nothing changed, to somebody who has nothing yet"),
            _ => return Err(refused(&url, &response)),
        }
        // Lengths, offsets and hashes are of the bytes as stored.
        if header(response.headers(), &CONTENT_ENCODING).is_some_and(|how| !how.eq_ignore_ascii_case("identity")) {
            return broken("it was compressed on the way, which was not asked for; a proxy may do so");
        }
        let etag = header(response.headers(), &ETAG).filter(|etag| etag.len() <= 256);
        Ok(self.begun(url, etag, response))
    }

    fn begun(&self, url: SafeUrl, etag: Option<String>, response: http::Response<ureq::Body>) -> Response {
        let status = response.status().as_u16();
        let link = header(response.headers(), &LINK).filter(|link| link.len() <= MAX_LINK);
        Response { status, etag, link, url, body: response.into_body(), stall: self.stall }
    }

    /// Gets a small document that comes with any status, as health reports do; follows no redirect.
    pub fn get_any_status(&self, url: &SafeUrl, max_bytes: u64) -> Result<Vec<u8>, TransportError> {
        let response = self.send(url, &Request { expects: Some(max_bytes), ..Request::default() })?;
        self.begun(url.clone(), None, response).read(max_bytes)
    }

    fn send(&self, url: &SafeUrl, request: &Request<'_>) -> Result<http::Response<ureq::Body>, TransportError> {
        let mut builder = self.agent.get(url.as_uri().clone());
        // Offsets and hashes are of the bytes as stored; a proxy must not compress them on the way.
        builder = builder.header("accept-encoding", "identity");
        if let Some(etag) = request.if_none_match {
            builder = builder.header(IF_NONE_MATCH, etag);
        }
        if let Some(secret) = request.authorization {
            builder = builder.header(AUTHORIZATION, secret);
        }
        if let Some((offset, validator)) = request.resume {
            builder = builder.header(RANGE, format!("bytes={offset}-")).header(IF_RANGE, validator);
        }
        for (name, value) in trace_headers(request.trace) {
            builder = builder.header(name, value);
        }
        let longest = Pace::longest(self.stall, request.expects.unwrap_or(MAX_UNSAID));
        let proxy = self.proxy.proxy_for(url)?;
        let request = builder.config().timeout_recv_body(Some(longest)).proxy(proxy.clone()).build();
        request.call().map_err(|error| TransportError::from_ureq(url, error).through(proxy.as_ref()))
    }

    /// Posts a small document and returns the answer; follows no redirect, which for a POST could change what is asked.
    ///
    /// # Errors
    /// Any status but 2xx; [`TransportError::TooLarge`] as soon as the answer is longer than allowed.
    pub fn post(&self, url: &SafeUrl, post: &Post<'_>) -> Result<Vec<u8>, TransportError> {
        let mut builder = self.agent.post(url.as_uri().clone()).header(CONTENT_TYPE, post.content_type);
        if let Some(secret) = post.bearer {
            builder = builder.header(AUTHORIZATION, format!("Bearer {secret}"));
        }
        for (name, value) in post.headers {
            builder = builder.header(name, value);
        }
        for (name, value) in trace_headers(post.trace) {
            builder = builder.header(name, value);
        }
        let proxy = self.proxy.proxy_for(url)?;
        let request = builder.config().timeout_global(Some(post.limit)).proxy(proxy.clone()).build();
        let failed = |error| TransportError::from_ureq(url, error).through(proxy.as_ref());
        let response = request.send(post.body).map_err(failed)?;
        if !response.status().is_success() {
            return Err(refused(url, &response));
        }
        self.begun(url.clone(), None, response).read(post.max_answer)
    }

    /// Gets a small file whole.
    ///
    /// # Errors
    /// [`TransportError::TooLarge`] as soon as more than `max_bytes` arrive.
    pub fn get_bytes(&self, url: &SafeUrl, max_bytes: u64) -> Result<Vec<u8>, TransportError> {
        self.get(url, &Request { expects: Some(max_bytes), ..Request::default() })?.read(max_bytes)
    }
}

impl Response {
    /// Reads the whole body.
    ///
    /// # Errors
    /// [`TransportError::TooLarge`] as soon as more than `max_bytes` arrive, [`TransportError::TooSlow`] as soon as it
    /// comes in too slowly.
    pub fn read(self, max_bytes: u64) -> Result<Vec<u8>, TransportError> {
        let url = self.url.clone();
        let mut pace = self.pace(0);
        let mut reader = self.reader().take(max_bytes.saturating_add(1));
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
        loop {
            let read = reader.read(&mut buffer).map_err(|e| read_error(&url, e))?;
            if read == 0 {
                break;
            }
            bytes.extend_from_slice(&buffer[..read]);
            pace.check(Instant::now(), bytes.len() as u64).map_err(|slow| TransportError::too_slow(&url, slow))?;
        }
        if bytes.len() as u64 > max_bytes {
            return Err(TransportError::TooLarge { url, limit: max_bytes });
        }
        Ok(bytes)
    }

    /// What whoever reads the body as a stream asks after each read; `length` bytes of the file are there already.
    pub fn pace(&self, length: u64) -> Pace {
        Pace::new(self.stall, Instant::now(), length)
    }

    /// The body as a stream. It has no limit of its own: whoever reads it counts, and watches its [`Response::pace`].
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

/// The error that a status which is no success amounts to.
fn refused(url: &SafeUrl, response: &http::Response<ureq::Body>) -> TransportError {
    let status = response.status().as_u16();
    let retry_after = asked_to_wait(status, response.headers(), jiff::Timestamp::now());
    TransportError::Status { url: url.clone(), status, retry_after }
}

/// Whether an answer to a request for the bytes from `offset` on can be used: it is those (RFC 9110 §14.4), or the whole, or
/// an error that has nothing to do with parts.
fn brings_the_rest(response: &http::Response<ureq::Body>, offset: u64) -> bool {
    match response.status().as_u16() {
        206 => header(response.headers(), &CONTENT_RANGE).is_some_and(|range| begins_at(&range, offset)),
        416 => false,
        _ => true,
    }
}

fn begins_at(range: &str, offset: u64) -> bool {
    let first = range.trim().strip_prefix("bytes ").and_then(|rest| rest.trim_start().split_once('-'));
    first.is_some_and(|(first, _)| first.parse() == Ok(offset))
}

pub(crate) fn trace_headers(trace: Option<&TraceContext>) -> impl Iterator<Item = (&'static str, String)> {
    trace.into_iter().flat_map(|trace| {
        let parent = trace.parent.child().to_string();
        [(CORRELATION_HEADER, trace.correlation_id.to_string()), (TRACEPARENT_HEADER, parent)]
    })
}

pub(crate) fn header(headers: &HeaderMap, name: &http::HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_the_rest_only_where_it_begins_at_the_byte_that_was_asked_for() {
        for range in ["bytes 100-199/200", "bytes 100-199/*", " bytes  100-"] {
            assert!(begins_at(range, 100), "{range}");
        }
        for range in ["bytes 0-199/200", "bytes 99-199/200", "bytes 1000-1999/2000", "bytes */200", "items 100-1/2", ""]
        {
            assert!(!begins_at(range, 100), "{range}");
        }
    }
}
