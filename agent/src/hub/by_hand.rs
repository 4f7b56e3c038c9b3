//! A hub for tests: real TLS under a fleet's own authority, and an answer by hand to each request.

use super::store::tests::Fleet;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

/// An answer: status, media type and body.
pub(super) type Reply = (u16, &'static str, String);

/// Serves as many requests as there are `answers`, each on a connection of its own. `reply` gets the request's head, in
/// lower case, and the answer whose turn it is.
pub(super) fn hub<A: Send + 'static>(
    fleet: &Fleet,
    answers: Vec<A>,
    reply: impl Fn(&str, A) -> Reply + Send + 'static,
) -> (String, std::thread::JoinHandle<()>) {
    let names = picket_pki::HubNames::new(["127.0.0.1"]).unwrap();
    let (leaf, key) = fleet.intermediate.hub(&names, jiff::Timestamp::now()).unwrap();
    let chain = [&leaf, fleet.intermediate.certificate()].map(|each| each.der().clone()).into();
    let config = rustls::ServerConfig::builder_with_provider(picket_transport::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key.to_der())
        .unwrap();
    let (listener, config) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(config));
    let url = format!("https://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        for answer in answers {
            let (tcp, _) = listener.accept().unwrap();
            tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut tls = rustls::StreamOwned::new(rustls::ServerConnection::new(Arc::clone(&config)).unwrap(), tcp);
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") {
                tls.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            tls.read_exact(&mut vec![0; length.unwrap_or(0)]).unwrap();
            let (status, kind, body) = reply(&head, answer);
            let head =
                format!("HTTP/1.1 {status} x\r\npicket-wire: 1\r\nContent-Type: {kind}\r\nConnection: close\r\n");
            tls.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
            tls.conn.send_close_notify();
            tls.flush().unwrap();
        }
    });
    (url, thread)
}
