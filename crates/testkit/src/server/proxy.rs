//! A proxy on loopback that takes CONNECT (RFC 9110 §9.3.6), knows a few names, and notes who was asked for.

use super::http::wake;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// `ann:s3cret` in base64.
const LOGIN: &str = "Proxy-Authorization: Basic YW5uOnMzY3JldA==\r\n";

#[derive(Default)]
struct Shared {
    names: Mutex<Vec<(String, SocketAddr)>>,
    tunnels: Mutex<Vec<String>>,
    login: AtomicBool,
    stop: AtomicBool,
}

/// A running proxy; it ends with the value.
pub struct ConnectProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl ConnectProxy {
    /// A proxy that knows no name yet.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let ours = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ours.stop.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&ours);
                thread::spawn(move || converse(stream, &shared));
            }
        });
        Self { address, shared }
    }

    /// Leads who asks for `host` to the server at `url`.
    pub fn lead(&self, host: &str, url: &str) {
        let address = url.rsplit('/').next().unwrap().parse().unwrap();
        self.shared.names.lock().unwrap().push((host.to_owned(), address));
    }

    /// Asks for the user `ann` with the password `s3cret` from now on.
    pub fn ask_for_login(&self) {
        self.shared.login.store(true, Ordering::Relaxed);
    }

    /// Its address, as `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same, with user and password.
    pub fn url_with_login(&self) -> String {
        format!("http://ann:s3cret@{}", self.address)
    }

    /// What was asked for so far, as `host:port`, whether it was given or not.
    pub fn tunnels(&self) -> Vec<String> {
        self.shared.tunnels.lock().unwrap().clone()
    }

    /// Forgets it.
    pub fn forget(&self) {
        self.shared.tunnels.lock().unwrap().clear();
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        wake(self.address);
    }
}

fn converse(mut near: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    // What follows the head is another protocol's.
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8 << 10 {
        near.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let asked = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    shared.tunnels.lock().unwrap().push(asked.to_owned());
    if shared.login.load(Ordering::Relaxed) && !head.contains(LOGIN) {
        return near.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n");
    }
    let host = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
    let known = shared.names.lock().unwrap().iter().find(|(name, _)| name == host).map(|(_, address)| *address);
    let Some(address) = known else {
        return near.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n");
    };
    let far = TcpStream::connect(address)?;
    near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (near_in, far_out) = (near.try_clone()?, far.try_clone()?);
    let up = thread::spawn(move || pour(near_in, far_out));
    pour(far, near);
    let _ = up.join();
    Ok(())
}

fn pour(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
