//! A web server that takes posts and answers with the statuses it was given, then 200.

use crate::LONG;
use crate::tls::{Authority, Stream, wrap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

pub struct Received {
    pub line: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

pub struct WebServer {
    pub port: u16,
    pub posts: Receiver<Received>,
}

impl WebServer {
    pub fn start(authority: Option<&Authority>, statuses: &'static [u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tls, (sender, posts)) = (authority.map(Authority::server), channel());
        let mut statuses = statuses.iter().copied();
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                socket.set_read_timeout(Some(LONG)).unwrap();
                let stream: Box<dyn Stream> = match &tls {
                    Some(tls) => wrap(tls, socket),
                    None => Box::new(socket),
                };
                let _ = answer(stream, statuses.next().unwrap_or(200), &sender);
            }
        });
        Self { port, posts }
    }
}

fn answer(stream: Box<dyn Stream>, status: u16, posts: &Sender<Received>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).map(|_| line.trim_end().to_owned())
    };
    let request = line()?;
    let mut headers = Vec::new();
    loop {
        let header = line()?;
        let Some((name, value)) = header.split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length").map(|(_, length)| length.parse().unwrap());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body)?;
    posts.send(Received { line: request, headers, body }).unwrap();
    write!(stream.get_mut(), "HTTP/1.1 {status} Said\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    stream.get_mut().flush()
}
