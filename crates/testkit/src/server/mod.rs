//! A release server on loopback: a folder over HTTP or HTTPS, with ranges, ETags, and misbehaviour on request.

pub(crate) mod github;
pub(crate) mod http;
pub(crate) mod proxy;
mod tls;

pub use tls::Identity;

use crate::machine::inside;
use http::{Request, Stream, answer, checksum, head, part, serve, wake};
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How the server misbehaves, for paths that contain a word.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// Breaks the connection after so many bytes of the body.
    CutAfter(usize),
    /// Sends so many bytes of the body and then nothing more.
    StallAfter(usize),
    /// Sends so many bytes of the body and then one a second.
    DripAfter(usize),
    /// Answers with this status and no body.
    Status(u16),
    /// Answers with this status, these headers and no body.
    Refuse(u16, Vec<(&'static str, String)>),
    /// Redirects to this address.
    Redirect(String),
    /// Redirects for good (301) to the same address again and again.
    Loop,
    /// Ignores `Range`.
    NoRanges,
    /// Answers a `Range` with 206 and a part that begins so many bytes before the one that was asked for.
    EarlierPart(usize),
    /// Answers every request with 206.
    AlwaysPart,
    /// Sends this many bytes after the end.
    Trailing(usize),
    /// Says that the body is so many bytes longer (or, below zero, shorter) than it is.
    WrongLength(i64),
    /// Gives every file this ETag.
    Etag(String),
    /// Gives a file another ETag each time.
    RestlessEtag,
    /// Compresses so many zeros with gzip, and sends that instead.
    GzipBomb(u64),
    /// Sends these bytes instead of an answer.
    Raw(Vec<u8>),
    /// Sends the first bytes, and then the second ones for as long as the client listens.
    Endless(Vec<u8>, Vec<u8>),
    /// Takes the request and never answers.
    Mute,
}

#[derive(Default)]
struct Shared {
    misbehave: Mutex<Vec<(String, Behaviour)>>,
    requests: Mutex<Vec<String>>,
    body_bytes: AtomicU64,
    stop: Arc<AtomicBool>,
}

/// A running server; it ends with the value.
pub struct ReleaseServer {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    /// Where its address is to be found, when that is not here.
    namespace: Option<PathBuf>,
    /// The authority that a client must trust to speak to a TLS server, as PEM.
    pub authority: Option<String>,
}

impl ReleaseServer {
    /// Serves `root` over plain HTTP.
    pub fn start(root: &Path) -> Self {
        Self::listen(loopback(), root, None)
    }

    /// Serves `root` over HTTPS for `localhost` and 127.0.0.1, with a certificate that nobody trusts yet.
    pub fn start_tls(root: &Path) -> Self {
        Self::start_tls_as(root, Identity::Own)
    }

    /// Serves `root` over HTTPS with this certificate.
    pub fn start_tls_as(root: &Path, identity: Identity) -> Self {
        let (config, authority) = tls::configuration(identity);
        let mut server = Self::listen(loopback(), root, Some(config));
        server.authority = Some(authority);
        server
    }

    /// Takes connections for HTTPS and says nothing, not even in the handshake.
    pub fn start_mute_tls() -> Self {
        let listener = loopback();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::new(Shared::default()));
        let ours = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming().flatten() {
                if ours.stop.load(Ordering::Relaxed) {
                    return;
                }
                ours.requests.lock().unwrap().push("a connection".to_owned());
                held.push(stream);
            }
        });
        Self { address, scheme: "https", shared, namespace: None, authority: None }
    }

    /// Serves `root` over plain HTTP on the loopback interface of the network namespace at `namespace`.
    pub fn start_in(namespace: &Path, root: &Path) -> Self {
        let listener = inside(namespace, loopback);
        let mut server = Self::listen(listener, root, None);
        server.namespace = Some(namespace.to_owned());
        server
    }

    fn listen(listener: TcpListener, root: &Path, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let shared = Arc::new(Shared::default());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (root, ours) = (root.to_owned(), Arc::clone(&shared));
        let handler = Arc::new(move |request: &Request, stream: &mut dyn Stream| handle(stream, request, &root, &ours));
        let address = serve(listener, tls, Arc::clone(&shared.stop), handler);
        Self { address, scheme, shared, namespace: None, authority: None }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Misbehaves from now on for requests whose path contains `word`; with a `$` at its end, for those that end with it.
    pub fn misbehave(&self, word: &str, behaviour: Behaviour) {
        let behaviour = match behaviour {
            // Made beforehand: making it takes longer than a client waits.
            Behaviour::GzipBomb(zeros) => Behaviour::Raw(gzip_bomb(zeros)),
            other => other,
        };
        self.shared.misbehave.lock().unwrap().push((word.to_owned(), behaviour));
    }

    /// Behaves again.
    pub fn behave(&self) {
        self.shared.misbehave.lock().unwrap().clear();
    }

    /// The requests so far: `GET /path` with `range` where there was one.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.shared.requests.lock().unwrap().clear();
        self.shared.body_bytes.store(0, Ordering::Relaxed);
    }

    /// The bytes of bodies sent so far.
    pub fn body_bytes(&self) -> u64 {
        self.shared.body_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for ReleaseServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = match &self.namespace {
            None => wake(self.address),
            Some(namespace) => inside(namespace, || wake(self.address)),
        };
    }
}

fn loopback() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn is_meant(path: &str, word: &str) -> bool {
    word.strip_suffix('$').map_or_else(|| path.contains(word), |end| path.ends_with(end))
}

fn handle(stream: &mut dyn Stream, request: &Request, root: &Path, shared: &Shared) -> io::Result<()> {
    let noted = request.range.map(|from| format!(" range {from}")).unwrap_or_default();
    shared.requests.lock().unwrap().push(format!("GET {}{noted}", request.path));
    let all = shared.misbehave.lock().unwrap().clone();
    let misbehaviour: Vec<Behaviour> =
        all.into_iter().filter(|(word, _)| is_meant(&request.path, word)).map(|(_, behaviour)| behaviour).collect();
    for behaviour in &misbehaviour {
        match behaviour {
            Behaviour::Status(status) => return answer(stream, *status, "", b""),
            Behaviour::Refuse(status, headers) => {
                let lines: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                return answer(stream, *status, &lines.concat(), b"");
            }
            Behaviour::Redirect(to) => return answer(stream, 302, &format!("location: {to}\r\n"), b""),
            Behaviour::Loop => return answer(stream, 301, &format!("location: {}\r\n", request.path), b""),
            Behaviour::Raw(bytes) => {
                stream.write_all(bytes)?;
                return stream.flush();
            }
            Behaviour::Endless(first, again) => {
                stream.write_all(first)?;
                while !shared.stop.load(Ordering::Relaxed) {
                    stream.write_all(again)?;
                    count(shared, again.len());
                }
                return Ok(());
            }
            Behaviour::Mute => return hold(shared, Duration::from_millis(50), || Ok(())),
            _ => {}
        }
    }
    let file = place(root, &request.path);
    let Ok(bytes) = fs::read(&file) else { return answer(stream, 404, "", b"") };
    let mut etag = format!("\"{:x}-{:x}\"", bytes.len(), checksum(&bytes));
    for behaviour in &misbehaviour {
        match behaviour {
            Behaviour::Etag(lie) => etag.clone_from(lie),
            Behaviour::RestlessEtag => etag = format!("\"{}\"", shared.requests.lock().unwrap().len()),
            _ => {}
        }
    }
    if request.if_none_match.as_deref() == Some(&etag) {
        return head(stream, 304, &format!("etag: {etag}\r\n"));
    }
    send(stream, request, &bytes, &etag, &misbehaviour, shared)
}

fn send(
    stream: &mut dyn Stream,
    request: &Request,
    bytes: &[u8],
    etag: &str,
    misbehaviour: &[Behaviour],
    shared: &Shared,
) -> io::Result<()> {
    let mut from = part(request, bytes.len(), etag);
    let (mut extra, mut lie, mut limit, mut after) = (0, 0, usize::MAX, None);
    for behaviour in misbehaviour {
        match behaviour {
            Behaviour::NoRanges => from = None,
            Behaviour::EarlierPart(earlier) => from = from.map(|from| from.saturating_sub(*earlier)),
            Behaviour::AlwaysPart => from = from.or(Some(0)),
            Behaviour::Trailing(more) => extra = *more,
            Behaviour::WrongLength(by) => lie = *by,
            Behaviour::CutAfter(bytes) => limit = *bytes,
            Behaviour::StallAfter(_) | Behaviour::DripAfter(_) => after = Some(behaviour.clone()),
            _ => {}
        }
    }
    let start = from.unwrap_or(0);
    let mut body = bytes[start..].to_vec();
    body.resize(body.len() + extra, b'x');
    let length = (i64::try_from(body.len()).unwrap() + lie).max(0);
    let range = from.map(|from| format!("content-range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len()));
    let headers = format!("etag: {etag}\r\n{}content-length: {length}\r\n", range.unwrap_or_default());
    head(stream, if from.is_some() { 206 } else { 200 }, &headers)?;
    if let Some(Behaviour::StallAfter(bytes) | Behaviour::DripAfter(bytes)) = after {
        limit = bytes;
    }
    let (sent, rest) = body.split_at(limit.min(body.len()));
    stream.write_all(sent)?;
    stream.flush()?;
    count(shared, sent.len());
    match after {
        Some(Behaviour::StallAfter(_)) => hold(shared, Duration::from_millis(50), || Ok(())),
        Some(Behaviour::DripAfter(_)) => {
            let mut rest = rest.iter();
            hold(shared, Duration::from_secs(1), || {
                stream.write_all(&[*rest.next().unwrap_or(&0)])?;
                stream.flush()
            })
        }
        _ => Ok(()),
    }
}

/// Keeps a connection open until the server ends, and does something every `period`.
fn hold(shared: &Shared, period: Duration, mut act: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    while !shared.stop.load(Ordering::Relaxed) {
        act()?;
        std::thread::sleep(period);
    }
    Ok(())
}

fn count(shared: &Shared, bytes: usize) {
    shared.body_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// An answer whose body is at least so many zeros, in gzip: members of 16 MiB, one after the other (RFC 1952 §2.2).
fn gzip_bomb(zeros: u64) -> Vec<u8> {
    let member = 16 << 20;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    io::copy(&mut io::Read::take(io::repeat(0), member), &mut encoder).unwrap();
    let body = encoder.finish().unwrap().repeat(usize::try_from(zeros.div_ceil(member)).unwrap());
    let head = format!(
        "HTTP/1.1 200 X\r\nconnection: close\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

fn place(root: &Path, path: &str) -> PathBuf {
    let inside = path.split('?').next().unwrap_or_default().split('/').filter(|part| !part.is_empty() && *part != "..");
    inside.fold(root.to_owned(), |place, part| place.join(part))
}
