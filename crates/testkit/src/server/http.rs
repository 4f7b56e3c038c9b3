//! As much of HTTP/1.1 as servers for tests need: one request, one answer, and the connection is closed.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A connection, with TLS or without.
pub(crate) trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// What answers a request.
pub(crate) type Handler = Arc<dyn Fn(&Request, &mut dyn Stream) -> io::Result<()> + Send + Sync>;

/// One request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// With its query.
    pub(crate) path: String,
    /// From which byte on.
    pub(crate) range: Option<u64>,
    pub(crate) if_range: Option<String>,
    pub(crate) if_none_match: Option<String>,
    pub(crate) user_agent: Option<String>,
    pub(crate) authorization: Option<String>,
}

/// Answers every connection that `listener` takes, each in a thread, until `stop` is set and one more comes.
pub(crate) fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    stop: Arc<AtomicBool>,
    handler: Handler,
) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let (tls, handler) = (tls.clone(), Arc::clone(&handler));
            std::thread::spawn(move || {
                let _ = match tls {
                    None => converse(stream, &handler),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        converse(rustls::StreamOwned::new(connection, stream), &handler)
                    }
                };
            });
        }
    });
    address
}

/// Wakes a listener up, so that it sees that it is to stop.
pub(crate) fn wake(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

fn converse(mut stream: impl Stream, handler: &Handler) -> io::Result<()> {
    match read_request(&mut stream)? {
        Some(request) => handler(&request, &mut stream),
        None => Ok(()),
    }
}

/// Writes the head of an answer; `headers` end with a line break each.
pub(crate) fn head(stream: &mut dyn Stream, status: u16, headers: &str) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {status} X\r\nconnection: close\r\n{headers}\r\n")?;
    stream.flush()
}

/// A whole answer with a body.
pub(crate) fn answer(stream: &mut dyn Stream, status: u16, headers: &str, body: &[u8]) -> io::Result<()> {
    head(stream, status, &format!("{headers}content-length: {}\r\n", body.len()))?;
    stream.write_all(body)?;
    stream.flush()
}

fn read_request(stream: &mut impl Read) -> io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream.take(16 << 10)).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let mut request = Request { path: first.split(' ').nth(1).unwrap_or("/").to_owned(), ..Request::default() };
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
            "user-agent" => request.user_agent = Some(value),
            "authorization" => request.authorization = Some(value),
            _ => {}
        }
    }
    Ok(Some(request))
}

/// The part of `bytes` that a request asks for, if the file is still the one it knows by `etag`; where it begins.
pub(crate) fn part(request: &Request, length: usize, etag: &str) -> Option<usize> {
    let from = request.range.filter(|_| request.if_range.as_deref().is_none_or(|known| known == etag))?;
    usize::try_from(from).ok().filter(|from| *from < length)
}

/// FNV-1a, for ETags that change with the content.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
