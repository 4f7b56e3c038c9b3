//! The WebSocket to a hub: over TLS with both certificates, through a proxy where there is one, in small buffers.

use super::call::{HubCallError, common_headers, refusal};
use super::{HubTrust, Route};
use crate::error::TransportError;
use crate::proxy::{self, MAX_ANSWER};
use futures_util::{SinkExt as _, StreamExt as _};
use http::Request;
use http::header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT};
use picket_protocol::trace::TraceContext;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tungstenite::Message;
use tungstenite::protocol::WebSocketConfig;

/// Limits of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLimits {
    /// How long it may take until the socket is open.
    pub connect: Duration,
    /// How long one message may take to be sent.
    pub write: Duration,
    /// The longest message, in bytes, both ways.
    pub message: usize,
}

/// An open WebSocket.
#[derive(Debug)]
pub struct HubSocket {
    stream: WebSocketStream<TlsStream<TcpStream>>,
    limits: SocketLimits,
}

/// What was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A message of text.
    Text(String),
    /// A sign of life of the library's: ping or pong.
    Sign,
    /// The other side is done, or gone.
    End(String),
}

impl HubSocket {
    /// Opens the socket at `path` of the hub.
    ///
    /// # Errors
    /// See [`HubCallError`]: a hub that refuses says why, if its words arrived.
    pub async fn connect(
        route: &Route,
        path: &str,
        trust: &HubTrust,
        user_agent: &str,
        limits: SocketLimits,
    ) -> Result<Self, HubCallError> {
        match timeout(limits.connect, Self::open(route, path, trust, user_agent, limits)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let what = "opening the WebSocket".to_owned();
                Err(TransportError::TimedOut { url: route.url().clone(), what }.into())
            }
        }
    }

    async fn open(
        route: &Route,
        path: &str,
        trust: &HubTrust,
        user_agent: &str,
        limits: SocketLimits,
    ) -> Result<Self, HubCallError> {
        let tls = |reason: String| TransportError::Tls { url: route.url().clone(), reason };
        let mut config = trust.tls().map_err(|error| tls(error.to_string()))?;
        // A WebSocket is an upgrade of HTTP/1.1 (RFC 6455 §4.1).
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = tunnelled(route, limits.connect).await?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(route.name().clone(), tcp).await;
        let stream = stream.map_err(|error| TransportError::from_io(route.url().clone(), error))?;
        let request = request(route, path, user_agent)?;
        // Tens of such frames an hour: no buffer is larger than it has to be.
        let config = WebSocketConfig::default()
            .read_buffer_size(4 << 10)
            .write_buffer_size(0)
            .max_write_buffer_size(limits.message.saturating_mul(2).max(64 << 10))
            .max_message_size(Some(limits.message))
            .max_frame_size(Some(limits.message));
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((stream, _)) => Ok(Self { stream, limits }),
            Err(error) => Err(refused(route, error)),
        }
    }

    /// Sends one message of text.
    ///
    /// # Errors
    /// When the other side is gone, or takes it too slowly.
    pub async fn send(&mut self, text: String) -> io::Result<()> {
        match timeout(self.limits.write, self.stream.send(Message::text(text))).await {
            Ok(sent) => sent.map_err(io::Error::other),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Waits for what the other side says. May be dropped and called again; nothing is lost by that.
    pub async fn hear(&mut self) -> Heard {
        match self.stream.next().await {
            Some(Ok(Message::Text(text))) => Heard::Text(text.as_str().to_owned()),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Heard::Sign,
            Some(Ok(Message::Binary(_))) => Heard::End("it sent bytes where text is spoken".to_owned()),
            Some(Ok(Message::Close(_))) | None => Heard::End("the connection was closed".to_owned()),
            Some(Err(error)) => Heard::End(told(&error)),
        }
    }

    /// Closes, and waits a little for the other side to do the same.
    pub async fn close(mut self, limit: Duration) {
        let closing = async {
            let _ = self.stream.close(None).await;
            while let Some(Ok(_)) = self.stream.next().await {}
        };
        let _ = timeout(limit, closing).await;
    }
}

fn request(route: &Route, path: &str, user_agent: &str) -> Result<Request<()>, HubCallError> {
    let authority = route.authority();
    let mut builder = Request::get(format!("wss://{authority}{path}"))
        .header(HOST, &authority)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, tungstenite::handshake::client::generate_key())
        .header(USER_AGENT, user_agent);
    for (name, value) in common_headers(Some(&TraceContext::start())) {
        builder = builder.header(name, value);
    }
    builder.body(()).map_err(|error| HubCallError::Malformed { url: route.url().clone(), reason: error.to_string() })
}

/// Connects, and asks the proxy for a tunnel, where there is one.
async fn tunnelled(route: &Route, limit: Duration) -> Result<TcpStream, TransportError> {
    let url = route.url();
    let (host, port) = route.next_hop();
    let found = tokio::net::lookup_host((host, port)).await;
    let addresses: Vec<SocketAddr> =
        found.map_err(|_| TransportError::UnknownHost { url: url.clone() })?.take(8).collect();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let share = limit / u32::try_from(addresses.len() + 1).unwrap_or(2);
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(mut stream)) => {
                let _ = stream.set_nodelay(true);
                ask_proxy(route, &mut stream).await?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(TransportError::Unreachable { url: url.clone(), source: last })
}

async fn ask_proxy(route: &Route, stream: &mut TcpStream) -> Result<(), TransportError> {
    let Some(through) = route.proxy() else { return Ok(()) };
    let failed = |reason: String| {
        let proxy = route.shown_proxy().unwrap_or_default();
        TransportError::Proxy { reason: format!("{proxy}: {reason}") }
    };
    let asked = stream.write_all(proxy::request(through, &route.authority()).as_bytes()).await;
    asked.map_err(|error| failed(error.to_string()))?;
    let mut bytes = Vec::new();
    loop {
        if let Some(answer) = proxy::answer(&bytes) {
            return answer.map_err(failed);
        }
        if bytes.len() >= MAX_ANSWER {
            return Err(failed("its answer is too long".to_owned()));
        }
        // Byte by byte: what follows the header is TLS and not ours.
        match stream.read_u8().await {
            Ok(byte) => bytes.push(byte),
            Err(error) => return Err(failed(error.to_string())),
        }
    }
}

fn refused(route: &Route, error: tungstenite::Error) -> HubCallError {
    let url = route.url().clone();
    match error {
        tungstenite::Error::Http(response) => {
            let (parts, body) = response.into_parts();
            refusal(&url, parts.status.as_u16(), &parts.headers, &body.unwrap_or_default())
        }
        tungstenite::Error::Io(error) => TransportError::from_io(url, error).into(),
        error => HubCallError::Malformed { url, reason: error.to_string() },
    }
}

fn told(error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the connection broke off".to_owned()
        }
        error => error.to_string(),
    }
}
