//! A mail server that speaks as much SMTP (RFC 5321), STARTTLS (RFC 3207) and AUTH PLAIN (RFC 4954) as a client needs.

use crate::LONG;
use crate::tls::{Authority, Stream, wrap};
use rustls::ServerConfig;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Manner {
    Plain,
    Starttls,
    Tls,
    /// Puts the first mail off (RFC 5321 §4.2.1, 4yz).
    BusyAtFirst,
    /// Takes only the password `new word` (RFC 4954 §6, 535).
    Guarded,
    /// Knows no recipient (5yz).
    Refusing,
}

#[derive(Debug, Default)]
pub struct Mail {
    pub encrypted: bool,
    pub login: Option<String>,
    pub from: String,
    pub to: Vec<String>,
    pub text: String,
}

pub struct MailServer {
    pub port: u16,
    pub mails: Receiver<Mail>,
    connections: Arc<AtomicUsize>,
}

impl MailServer {
    pub fn start(manner: Manner, authority: Option<&Authority>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tls, connections) = (authority.map(Authority::server), Arc::new(AtomicUsize::new(0)));
        let ((sender, mails), count) = (channel(), Arc::clone(&connections));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                stream.set_read_timeout(Some(LONG)).unwrap();
                // A client that does not like us hangs up; that is what some tests want.
                let _ = converse(manner, tls.as_ref(), stream, number, &sender);
            }
        });
        Self { port, mails, connections }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// The address between angle brackets.
fn address(line: &str) -> String {
    let from = line.find('<').map_or(0, |at| at + 1);
    line[from..line.rfind('>').unwrap_or(line.len())].to_owned()
}

fn converse(
    manner: Manner,
    tls: Option<&Arc<ServerConfig>>,
    socket: TcpStream,
    number: usize,
    mails: &Sender<Mail>,
) -> std::io::Result<()> {
    let again = socket.try_clone()?;
    let implicit = tls.filter(|_| manner == Manner::Tls);
    let stream: Box<dyn Stream> =
        implicit.map_or_else(|| Box::new(socket) as _, |tls| wrap(tls, again.try_clone().unwrap()));
    let mut stream = BufReader::new(stream);
    let mut mail = Mail { encrypted: implicit.is_some(), ..Mail::default() };
    write!(stream.get_mut(), "220 localhost ESMTP\r\n")?;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let upper = line.to_ascii_uppercase();
        let answer = match upper.split_ascii_whitespace().next().unwrap_or_default() {
            "EHLO" if manner == Manner::Starttls && !mail.encrypted => "250-localhost\r\n250 STARTTLS\r\n",
            "EHLO" if mail.encrypted || manner == Manner::Guarded => "250-localhost\r\n250 AUTH PLAIN\r\n",
            "EHLO" => "250 localhost\r\n",
            "STARTTLS" => {
                stream.get_mut().write_all(b"220 go ahead\r\n")?;
                stream = BufReader::new(wrap(tls.unwrap(), again.try_clone()?));
                mail.encrypted = true;
                continue;
            }
            "AUTH" => {
                mail.login = line.split_ascii_whitespace().nth(2).map(decode);
                let refused = manner == Manner::Guarded && mail.login.as_deref() != Some("\0picket\0new word");
                if refused { "535 no such password\r\n" } else { "235 welcome\r\n" }
            }
            "MAIL" if manner == Manner::BusyAtFirst && number == 0 => "451 try again later\r\n",
            "MAIL" => {
                mail.from = address(&line);
                "250 ok\r\n"
            }
            "RCPT" if manner == Manner::Refusing => "550 no such user\r\n",
            "RCPT" => {
                mail.to.push(address(&line));
                "250 ok\r\n"
            }
            "DATA" => {
                stream.get_mut().write_all(b"354 go on\r\n")?;
                while !mail.text.ends_with("\r\n.\r\n") {
                    if stream.read_line(&mut mail.text)? == 0 {
                        return Ok(());
                    }
                }
                let encrypted = mail.encrypted;
                mails.send(std::mem::take(&mut mail)).unwrap();
                mail.encrypted = encrypted;
                "250 taken\r\n"
            }
            "QUIT" => {
                stream.get_mut().write_all(b"221 bye\r\n")?;
                return stream.get_mut().flush();
            }
            _ => "250 ok\r\n",
        };
        stream.get_mut().write_all(answer.as_bytes())?;
        stream.get_mut().flush()?;
    }
}

/// Base64 (RFC 4648 §4) of a text.
fn decode(text: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = Vec::new();
    for c in text.bytes().filter(|c| *c != b'=') {
        let value = ALPHABET.iter().position(|a| *a == c).unwrap();
        bits.extend((0..6).rev().map(|bit| value >> bit & 1 == 1));
    }
    let byte = |bits: &[bool]| bits.iter().fold(0_u8, |byte, bit| byte << 1 | u8::from(*bit));
    String::from_utf8(bits.chunks_exact(8).map(byte).collect()).unwrap()
}
