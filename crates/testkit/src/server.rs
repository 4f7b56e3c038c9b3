//! A release server on loopback: a folder over HTTP or HTTPS, with ranges, ETags, and misbehaviour on request.

use crate::machine::inside;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How the server misbehaves, for paths that contain a word.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// Breaks the connection after so many bytes of the body.
    CutAfter(usize),
    /// Sends so many bytes of the body and then nothing more.
    StallAfter(usize),
    /// Answers with this status and no body.
    Status(u16),
    /// Redirects to this address.
    Redirect(String),
    /// Ignores `Range`.
    NoRanges,
    /// Sends this many bytes after the end.
    Trailing(usize),
}

#[derive(Default)]
struct Shared {
    misbehave: Mutex<Vec<(String, Behaviour)>>,
    requests: Mutex<Vec<String>>,
    body_bytes: Mutex<u64>,
    stop: AtomicBool,
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
        Self::launch(root, None)
    }

    /// Serves `root` over HTTPS for `localhost` and 127.0.0.1, with a certificate that nobody trusts yet.
    pub fn start_tls(root: &Path) -> Self {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certified = rcgen::generate_simple_self_signed(names).unwrap();
        let authority = certified.cert.pem();
        let chain: Vec<CertificateDer<'static>> = vec![certified.cert.der().clone()];
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let mut server = Self::launch(root, Some(Arc::new(config)));
        server.authority = Some(authority);
        server
    }

    /// Serves `root` over plain HTTP on the loopback interface of the network namespace at `namespace`.
    pub fn start_in(namespace: &Path, root: &Path) -> Self {
        let listener = inside(namespace, || TcpListener::bind("127.0.0.1:0").unwrap());
        let mut server = Self::listen(listener, root, None);
        server.namespace = Some(namespace.to_owned());
        server
    }

    fn launch(root: &Path, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").unwrap(), root, tls)
    }

    fn listen(listener: TcpListener, root: &Path, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (root, ours) = (root.to_owned(), Arc::clone(&shared));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ours.stop.load(Ordering::Relaxed) {
                    return;
                }
                let (root, shared, tls) = (root.clone(), Arc::clone(&ours), tls.clone());
                std::thread::spawn(move || {
                    let _ = match tls {
                        None => converse(stream, &root, &shared),
                        Some(config) => {
                            let connection = rustls::ServerConnection::new(config).unwrap();
                            converse(rustls::StreamOwned::new(connection, stream), &root, &shared)
                        }
                    };
                });
            }
        });
        Self { address, scheme, shared, namespace: None, authority: None }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Misbehaves from now on for requests whose path contains `word`.
    pub fn misbehave(&self, word: &str, behaviour: Behaviour) {
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
        *self.shared.body_bytes.lock().unwrap() = 0;
    }

    /// The bytes of bodies sent so far.
    pub fn body_bytes(&self) -> u64 {
        *self.shared.body_bytes.lock().unwrap()
    }
}

impl Drop for ReleaseServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the listener up, so that it sees the flag.
        let wake = || TcpStream::connect(self.address).is_ok();
        let _ = match &self.namespace {
            None => wake(),
            Some(namespace) => inside(namespace, wake),
        };
    }
}

struct Request {
    path: String,
    range: Option<u64>,
    if_range: Option<String>,
    if_none_match: Option<String>,
}

/// Serves one request and closes: clients that expect more open another connection.
fn converse(mut stream: impl Read + Write, root: &Path, shared: &Shared) -> io::Result<()> {
    let Some(request) = read_request(&mut stream)? else { return Ok(()) };
    let noted = request.range.map(|from| format!(" range {from}")).unwrap_or_default();
    shared.requests.lock().unwrap().push(format!("GET {}{noted}", request.path));
    let misbehaviour: Vec<Behaviour> = {
        let all = shared.misbehave.lock().unwrap();
        all.iter().filter(|(word, _)| request.path.contains(word)).map(|(_, behaviour)| behaviour.clone()).collect()
    };
    for behaviour in &misbehaviour {
        match behaviour {
            Behaviour::Status(status) => return head(&mut stream, *status, "content-length: 0\r\n"),
            Behaviour::Redirect(to) => {
                return head(&mut stream, 302, &format!("location: {to}\r\ncontent-length: 0\r\n"));
            }
            _ => {}
        }
    }
    let file = place(root, &request.path);
    let Ok(bytes) = fs::read(&file) else { return head(&mut stream, 404, "content-length: 0\r\n") };
    let etag = format!(
        "\"{:x}-{:x}\"",
        bytes.len(),
        fs::metadata(&file)?.modified()?.elapsed().map_or(0, |_| checksum(&bytes))
    );
    if request.if_none_match.as_deref() == Some(&etag) {
        return head(&mut stream, 304, &format!("etag: {etag}\r\n"));
    }
    send(&mut stream, &request, &bytes, &etag, &misbehaviour, shared)
}

fn send(
    stream: &mut (impl Read + Write),
    request: &Request,
    bytes: &[u8],
    etag: &str,
    misbehaviour: &[Behaviour],
    shared: &Shared,
) -> io::Result<()> {
    let ranges = !misbehaviour.iter().any(|behaviour| matches!(behaviour, Behaviour::NoRanges));
    let from = request.range.filter(|_| ranges && request.if_range.as_deref() == Some(etag));
    let start = from.and_then(|from| usize::try_from(from).ok()).unwrap_or(0).min(bytes.len());
    let mut body = bytes[start..].to_vec();
    for behaviour in misbehaviour {
        if let Behaviour::Trailing(extra) = behaviour {
            body.resize(body.len() + extra, b'x');
        }
    }
    let range = from.map(|from| format!("content-range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len()));
    let headers = format!("etag: {etag}\r\n{}content-length: {}\r\n", range.unwrap_or_default(), body.len());
    head(stream, if from.is_some() { 206 } else { 200 }, &headers)?;
    let limit = misbehaviour.iter().find_map(|behaviour| match behaviour {
        Behaviour::CutAfter(bytes) | Behaviour::StallAfter(bytes) => Some(*bytes),
        _ => None,
    });
    let sent = &body[..limit.unwrap_or(body.len()).min(body.len())];
    stream.write_all(sent)?;
    stream.flush()?;
    *shared.body_bytes.lock().unwrap() += sent.len() as u64;
    if misbehaviour.iter().any(|behaviour| matches!(behaviour, Behaviour::StallAfter(_))) {
        while !shared.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

fn head(stream: &mut impl Write, status: u16, headers: &str) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {status} X\r\nconnection: close\r\n{headers}\r\n")?;
    stream.flush()
}

fn read_request(stream: &mut impl Read) -> io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream.take(16 << 10)).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let path = first.split(' ').nth(1).unwrap_or("/").to_owned();
    let mut request = Request { path, range: None, if_range: None, if_none_match: None };
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim().to_owned();
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = value.trim_start_matches("bytes=").trim_end_matches('-').parse().ok(),
            "if-range" => request.if_range = Some(value),
            "if-none-match" => request.if_none_match = Some(value),
            _ => {}
        }
    }
    Ok(Some(request))
}

fn place(root: &Path, path: &str) -> PathBuf {
    let inside = path.split('?').next().unwrap_or_default().split('/').filter(|part| !part.is_empty() && *part != "..");
    inside.fold(root.to_owned(), |place, part| place.join(part))
}

/// FNV-1a, for ETags that change with the content.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
