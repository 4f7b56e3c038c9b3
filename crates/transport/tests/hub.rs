//! The way to a hub, against real TLS servers with certificates of a real authority.
#![expect(clippy::unwrap_used, reason = "a test's servers and helpers fail the test")]

use futures_util::{SinkExt as _, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use picket_pki::{AgentIdentity, Authority, Certificate, ChainError, CsrKey, HubNames, PrivateKey, SpkiPin};
use picket_protocol::hub::{Problem, ProblemCode, WIRE_HEADER};
use picket_transport::hub::{
    ClientIdentity, DoorError, Heard, HubCallError, HubClient, HubOptions, HubSocket, HubTrust, Route, SocketLimits,
    fetch_root,
};
use picket_transport::{ProxyChoice, Timeouts, TransportError, provider};
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);

struct Fleet {
    root: Authority,
    intermediate: Authority,
}

impl Fleet {
    fn new() -> Self {
        Self::at(Timestamp::now())
    }

    fn at(now: Timestamp) -> Self {
        let root = Authority::root("test", now).unwrap();
        let intermediate = root.intermediate(now).unwrap();
        Self { root, intermediate }
    }

    fn pins(&self) -> [SpkiPin; 1] {
        [self.root.certificate().pin]
    }

    fn server(&self, names: &[&str], at: Timestamp, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        let (leaf, key) = self.intermediate.hub(&HubNames::new(names).unwrap(), at).unwrap();
        let chain: Vec<CertificateDer<'static>> =
            [&leaf, self.intermediate.certificate(), self.root.certificate()].map(|each| each.der().clone()).into();
        let mut roots = RootCertStore::empty();
        roots.add(self.root.certificate().der().clone()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(clients.allow_unauthenticated().build().unwrap())
            .with_single_cert(chain, key.to_der())
            .unwrap()
    }

    fn hub(&self) -> ServerConfig {
        self.server(&["127.0.0.1"], Timestamp::now(), rustls::ALL_VERSIONS)
    }

    fn agent(&self) -> (AgentIdentity, Arc<ClientIdentity>) {
        let key = PrivateKey::generate().unwrap();
        let identity = AgentIdentity { tenant: 1, agent: Uuid::now_v7() };
        let asked = CsrKey::from_request(&key.request("x").unwrap()).unwrap();
        let leaf = self.intermediate.agent(identity, &asked, Timestamp::now()).unwrap();
        let chain = vec![leaf, self.intermediate.certificate().clone()];
        (identity, Arc::new(ClientIdentity::new(chain, key).unwrap()))
    }

    fn trust(&self) -> HubTrust {
        HubTrust { roots: vec![self.root.certificate().clone()], identity: Some(self.agent().1) }
    }
}

type Stream = StreamOwned<ServerConnection, TcpStream>;

/// Takes `count` connections, one after the other, and lets `act` do with each what it likes.
fn serve(config: ServerConfig, count: usize, act: impl Fn(&mut Stream) + Send + 'static) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let config = Arc::new(config);
    let thread = std::thread::spawn(move || {
        for _ in 0..count {
            let (tcp, _) = listener.accept().unwrap();
            tcp.set_read_timeout(Some(LIMIT)).unwrap();
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), tcp);
            act(&mut stream);
        }
    });
    (url, thread)
}

/// Turns the handshake to its end, whatever that is.
fn greet(stream: &mut Stream) {
    let _ = stream.conn.complete_io(&mut stream.sock);
    let _ = stream.read(&mut [0; 1]);
}

/// Reads one request: its header as text, and its body.
fn request(stream: &mut Stream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return (String::new(), Vec::new());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, body)
}

fn answer(stream: &mut Stream, status: &str, headers: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).and_then(|()| stream.flush());
    stream.conn.send_close_notify();
    let _ = stream.flush();
}

const WIRE_1: &str = "picket-wire: 1\r\nContent-Type: application/json\r\n";

fn options(limit: Duration) -> HubOptions {
    let timeouts = Timeouts { connect: LIMIT, response: limit, stall: limit };
    HubOptions { user_agent: "test".into(), timeouts, limit: LIMIT, proxy: ProxyChoice::none() }
}

fn client(url: &str, trust: &HubTrust) -> HubClient {
    HubClient::new(url, trust, &options(LIMIT)).unwrap()
}

fn days(count: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * count)
}

fn fetched(config: ServerConfig, pins: &[SpkiPin]) -> Result<Certificate, DoorError> {
    let (url, thread) = serve(config, 1, greet);
    let outcome = fetch_root(&url, pins, &ProxyChoice::none(), LIMIT);
    thread.join().unwrap();
    outcome.map(|greeting| greeting.root)
}

fn reason(outcome: Result<Certificate, DoorError>) -> ChainError {
    match outcome {
        Err(DoorError::Certificate { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_machine_that_knows_only_a_pin_gets_the_root_of_its_hub() {
    let fleet = Fleet::new();
    assert_eq!(fetched(fleet.hub(), &fleet.pins()).unwrap(), *fleet.root.certificate());
    let old = fleet.server(&["127.0.0.1"], Timestamp::now(), &[&rustls::version::TLS12]);
    assert!(fetched(old, &fleet.pins()).is_ok(), "TLS 1.2 is the least that is spoken, and it is");
}

#[test]
fn a_hub_of_another_pin_another_name_or_another_time_is_told_apart() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    assert!(matches!(reason(fetched(fleet.hub(), &other.pins())), ChainError::WrongPin { .. }));
    let named = fleet.server(&["hub.example"], Timestamp::now(), rustls::ALL_VERSIONS);
    assert!(matches!(reason(fetched(named, &fleet.pins())), ChainError::WrongName { .. }));
    let then = Timestamp::now().checked_sub(days(100)).unwrap();
    let fleet = Fleet::at(then);
    let expired = fleet.server(&["127.0.0.1"], then, rustls::ALL_VERSIONS);
    assert!(matches!(reason(fetched(expired, &fleet.pins())), ChainError::OutOfDate { .. }));
}

#[test]
fn a_port_that_speaks_no_tls_or_nothing_at_all_is_told_within_the_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut plain, _) = listener.accept().unwrap();
        plain.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let (mut silent, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        let _ = silent.read_to_end(&mut all);
    });
    let pins = Fleet::new().pins();
    let plain = fetch_root(&url, &pins, &ProxyChoice::none(), LIMIT).unwrap_err();
    assert!(matches!(&plain, DoorError::Tls { reason, .. } if reason.contains("does not speak TLS")), "{plain}");
    let began = Instant::now();
    let silent = fetch_root(&url, &pins, &ProxyChoice::none(), Duration::from_millis(300)).unwrap_err();
    assert!(matches!(&silent, DoorError::Tls { reason, .. } if reason.contains("in time")), "{silent}");
    assert!(began.elapsed() < LIMIT);
    thread.join().unwrap();
    // Nobody listens any more.
    let gone = fetch_root(&url, &pins, &ProxyChoice::none(), LIMIT).unwrap_err();
    assert!(matches!(gone, DoorError::Connect { .. }), "{gone}");
}

#[test]
fn both_sides_show_certificates_and_the_request_says_its_wire() {
    let fleet = Fleet::new();
    let (identity, shown) = fleet.agent();
    let (url, thread) = serve(fleet.hub(), 1, move |stream| {
        let (head, body) = request(stream);
        let seen = Certificate::from_der(&stream.conn.peer_certificates().unwrap()[0]).unwrap();
        let said: Value = serde_json::from_slice(&body).unwrap();
        assert!(head.contains("picket-wire: 1-1\r\n") && head.contains("traceparent: 00-"), "{head}");
        answer(
            stream,
            "200 OK",
            WIRE_1,
            json!({ "agent": seen.agent.unwrap().to_string(), "said": said }).to_string().as_bytes(),
        );
    });
    let trust = HubTrust { roots: vec![fleet.root.certificate().clone()], identity: Some(shown) };
    let trace = picket_protocol::trace::TraceContext::start();
    let got: Value = client(&url, &trust).post("/agent/v1/x", &json!([1]), Some(&trace)).unwrap();
    assert_eq!(got, json!({ "agent": identity.to_string(), "said": [1] }));
    thread.join().unwrap();
}

#[test]
fn a_client_believes_the_roots_it_was_given_and_no_other() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let (url, thread) = serve(fleet.hub(), 1, greet);
    let trust = HubTrust { roots: vec![other.root.certificate().clone()], identity: None };
    let outcome: Result<Value, _> = client(&url, &trust).get("/x", None);
    assert!(matches!(outcome, Err(HubCallError::Transport(TransportError::Tls { .. }))), "{outcome:?}");
    thread.join().unwrap();
    assert!(HubClient::new(&url, &HubTrust::default(), &options(LIMIT)).is_err());
    assert!(HubClient::new(&url.replace("https", "http"), &trust, &options(LIMIT)).is_err());
}

#[test]
fn a_refusal_says_its_code_and_an_answer_that_is_no_hubs_is_not_taken() {
    let fleet = Fleet::new();
    let (url, thread) = serve(fleet.hub(), 4, |stream| {
        let (head, _) = request(stream);
        match head.split(' ').nth(1).unwrap() {
            "/busy" => {
                let body = serde_json::to_vec(&Problem::new(ProblemCode::Overloaded, "busy")).unwrap();
                let headers = "Content-Type: application/problem+json\r\nRetry-After: 9\r\n";
                answer(stream, "503 Service Unavailable", headers, &body);
            }
            "/portal" => answer(stream, "200 OK", "Content-Type: text/html\r\n", b"<html>log in</html>"),
            "/later" => answer(stream, "200 OK", "picket-wire: 9\r\n", b"{}"),
            _ => answer(stream, "200 OK", WIRE_1, &vec![b' '; 300 << 10]),
        }
    });
    let client = client(&url, &fleet.trust());
    let call = |path: &str| client.get::<Value>(path, None).unwrap_err();
    let busy = call("/busy");
    assert_eq!((busy.code(), busy.retry_after()), (Some(ProblemCode::Overloaded), Some(Duration::from_secs(9))));
    assert!(matches!(call("/portal"), HubCallError::Malformed { .. }));
    assert!(call("/later").to_string().contains("version 9"));
    assert!(matches!(call("/long"), HubCallError::Transport(TransportError::TooLarge { .. })));
    thread.join().unwrap();
}

#[test]
fn a_hub_that_falls_silent_is_waited_for_no_longer_than_the_limit() {
    let fleet = Fleet::new();
    let (url, thread) = serve(fleet.hub(), 1, |stream| {
        let _ = request(stream);
        let _ = stream.read(&mut [0; 1]);
    });
    let began = Instant::now();
    let client = HubClient::new(&url, &fleet.trust(), &options(Duration::from_millis(300))).unwrap();
    let outcome: Result<Value, _> = client.get("/x", None);
    assert!(matches!(outcome, Err(HubCallError::Transport(TransportError::TimedOut { .. }))), "{outcome:?}");
    assert!(began.elapsed() < LIMIT);
    drop(client);
    thread.join().unwrap();
}

fn limits(connect: Duration) -> SocketLimits {
    SocketLimits { connect, write: LIMIT, message: 1000 }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A real WebSocket server: it says whom it sees and then repeats what it hears, until it hears `end`.
async fn echo(listener: tokio::net::TcpListener, config: ServerConfig) {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (tcp, _) = listener.accept().await.unwrap();
    let tls = acceptor.accept(tcp).await.unwrap();
    let seen = Certificate::from_der(&tls.get_ref().1.peer_certificates().unwrap()[0]).unwrap();
    let mut socket = tokio_tungstenite::accept_async(tls).await.unwrap();
    socket.send(tungstenite::Message::text(seen.agent.unwrap().to_string())).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        match message {
            tungstenite::Message::Text(text) if text.as_str() == "long" => {
                socket.send(tungstenite::Message::text("x".repeat(2000))).await.unwrap();
            }
            tungstenite::Message::Text(text) => socket.send(tungstenite::Message::Text(text)).await.unwrap(),
            _ => {}
        }
    }
}

#[test]
fn the_socket_shows_the_certificate_speaks_text_and_takes_no_message_that_is_too_long() {
    let fleet = Fleet::new();
    let (identity, shown) = fleet.agent();
    let trust = HubTrust { roots: vec![fleet.root.certificate().clone()], identity: Some(shown) };
    runtime().block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let route = Route::new(&format!("https://{}", listener.local_addr().unwrap()), &ProxyChoice::none()).unwrap();
        let server = tokio::spawn(echo(listener, fleet.hub()));
        let mut socket = HubSocket::connect(&route, "/agent/v1/socket", &trust, "test", limits(LIMIT)).await.unwrap();
        assert_eq!(socket.hear().await, Heard::Text(identity.to_string()));
        socket.send("hello".to_owned()).await.unwrap();
        assert_eq!(socket.hear().await, Heard::Text("hello".to_owned()));
        socket.send("long".to_owned()).await.unwrap();
        let heard = socket.hear().await;
        assert!(
            matches!(&heard, Heard::End(why) if why.contains("Space limit") || why.contains("too long")),
            "{heard:?}"
        );
        socket.close(LIMIT).await;
        server.await.unwrap();
    });
}

#[test]
fn a_hub_that_refuses_the_socket_says_why_and_one_that_says_nothing_is_left() {
    let fleet = Fleet::new();
    let (url, thread) = serve(fleet.hub(), 2, |stream| {
        let (head, _) = request(stream);
        if head.starts_with("get /silent") {
            let _ = stream.read(&mut [0; 1]);
            return;
        }
        let body = serde_json::to_string(&Problem::new(ProblemCode::Revoked, "stolen")).unwrap();
        let head = format!(
            "HTTP/1.1 403 Forbidden\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.conn.send_close_notify();
        let _ = stream.flush();
    });
    let route = Route::new(&url, &ProxyChoice::none()).unwrap();
    let trust = fleet.trust();
    runtime().block_on(async {
        let refused = HubSocket::connect(&route, "/socket", &trust, "test", limits(LIMIT)).await.unwrap_err();
        assert_eq!(refused.code(), Some(ProblemCode::Revoked), "{refused}");
        let silent = HubSocket::connect(&route, "/silent", &trust, "test", limits(Duration::from_millis(500))).await;
        let silent = silent.unwrap_err();
        assert!(matches!(silent, HubCallError::Transport(TransportError::TimedOut { .. })), "{silent}");
    });
    thread.join().unwrap();
}

#[test]
fn the_way_leads_through_a_proxy_where_one_is_named() {
    let fleet = Fleet::new();
    // The name is resolved by the proxy: this machine need not know it.
    let hub = fleet.server(&["hub.invalid"], Timestamp::now(), rustls::ALL_VERSIONS);
    let (url, hub_thread) = serve(hub, 2, |stream| {
        let (head, _) = request(stream);
        if !head.is_empty() {
            answer(stream, "200 OK", WIRE_1, b"true");
        }
    });
    let target = url.trim_start_matches("https://").to_owned();
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = proxy.local_addr().unwrap();
    let proxy_thread = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut near, _) = proxy.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                near.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            assert!(head.starts_with("CONNECT hub.invalid:8444 HTTP/1.1\r\n"), "{head}");
            let far = TcpStream::connect(&target).unwrap();
            near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
            let (mut near_in, mut far_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            let up = std::thread::spawn(move || {
                let _ = std::io::copy(&mut near_in, &mut far_out);
                let _ = far_out.shutdown(std::net::Shutdown::Write);
            });
            let (mut far_in, mut near_out) = (far, near);
            let _ = std::io::copy(&mut far_in, &mut near_out);
            let _ = near_out.shutdown(std::net::Shutdown::Both);
            up.join().unwrap();
        }
    });
    let choice = ProxyChoice::named(format!("http://{address}"));
    let greeting = fetch_root("https://hub.invalid:8444", &fleet.pins(), &choice, LIMIT).unwrap();
    assert_eq!(greeting.hub.names, ["hub.invalid"]);
    let client =
        HubClient::new("https://hub.invalid:8444", &fleet.trust(), &HubOptions { proxy: choice, ..options(LIMIT) });
    assert!(client.unwrap().get::<bool>("/x", None).unwrap());
    hub_thread.join().unwrap();
    proxy_thread.join().unwrap();
    assert_eq!(WIRE_HEADER, "picket-wire");
}
