//! Through which proxy a hub is reached, and how a proxy is asked for a tunnel (RFC 9110 §9.3.6).

use crate::error::TransportError;
use crate::url::SafeUrl;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ureq::{Proxy, ProxyProtocol};

/// The longest header of a proxy's answer, in bytes.
pub(super) const MAX_ANSWER: usize = 8 << 10;

/// Which proxy is used. This machine's own addresses are never asked of one.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum ProxyChoice {
    /// The one that `HTTPS_PROXY` or `ALL_PROXY` names, but for what `NO_PROXY` names.
    #[default]
    Environment,
    /// None.
    None,
    /// This one: `http://proxy.example:3128`, with `user:password@` if it asks for them.
    Named(String),
}

impl std::fmt::Debug for ProxyChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Environment => "Environment",
            Self::None => "None",
            // It may hold a password.
            Self::Named(_) => "Named",
        })
    }
}

impl ProxyChoice {
    /// The proxy for `url`, if there is one.
    ///
    /// # Errors
    /// [`TransportError::Proxy`] for an address that is none of a proxy.
    pub(super) fn proxy_for(&self, url: &SafeUrl) -> Result<Option<Proxy>, TransportError> {
        let bad = |reason: &str| TransportError::Proxy { reason: reason.to_owned() };
        let proxy = match self {
            Self::None => None,
            Self::Environment => Proxy::try_from_env(),
            Self::Named(address) => {
                Some(Proxy::new(address).map_err(|_| bad("a proxy is written as http://host:port"))?)
            }
        };
        let proxy = proxy.filter(|proxy| !url.is_loopback() && !proxy.is_no_proxy(url.as_uri()));
        match &proxy {
            Some(proxy) if proxy.protocol() != ProxyProtocol::Http => {
                Err(bad("only proxies that are spoken to in http are known (http://host:port)"))
            }
            _ => Ok(proxy),
        }
    }
}

/// Asks a proxy for a tunnel to `authority` (host and port).
pub(super) fn request(proxy: &Proxy, authority: &str) -> String {
    let mut text = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some(user) = proxy.username() {
        let secret = STANDARD.encode(format!("{user}:{}", proxy.password().unwrap_or_default()));
        text.push_str("Proxy-Authorization: Basic ");
        text.push_str(&secret);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text
}

/// What a proxy's answer means as far as it has arrived: `None` while more is to come.
pub(super) fn answer(bytes: &[u8]) -> Option<Result<(), String>> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    if end.is_none() {
        return (bytes.len() >= MAX_ANSWER).then(|| Err("its answer is no answer of a proxy".to_owned()));
    }
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control()).take(100).collect();
    let mut words = line.split(' ');
    let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    Some(match words.next() {
        Some("200") if is_http => Ok(()),
        Some("407") if is_http => Err("it asks for a user and a password (http://user:password@host:port)".to_owned()),
        _ if is_http => Err(format!("it refuses the tunnel: {line}")),
        _ => Err("it does not speak http".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_proxys_answer_is_waited_for_and_read() {
        assert_eq!(answer(b"HTTP/1.1 200 OK\r\nVia: x\r\n"), None);
        assert_eq!(answer(b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\n"), Some(Ok(())));
        let refused = answer(b"HTTP/1.0 403 Forbidden\r\n\r\n").unwrap().unwrap_err();
        assert!(refused.contains("403 Forbidden"), "{refused}");
        assert!(answer(b"HTTP/1.1 407 X\r\n\r\n").unwrap().unwrap_err().contains("user"));
        assert!(answer(b"220 mail ESMTP\r\n\r\n").unwrap().is_err());
        assert!(answer(&vec![b'x'; MAX_ANSWER]).unwrap().is_err());
    }

    #[test]
    fn a_user_is_told_to_the_proxy_and_to_nobody_else() {
        let choice = ProxyChoice::Named("http://ann:s3cret@proxy.example:3128".to_owned());
        let proxy = choice.proxy_for(&"https://hub.example".parse().unwrap()).unwrap().unwrap();
        let text = request(&proxy, "hub.example:443");
        assert!(text.starts_with("CONNECT hub.example:443 HTTP/1.1\r\n") && text.ends_with("\r\n\r\n"), "{text}");
        assert!(text.contains(&STANDARD.encode("ann:s3cret")));
        assert!(!format!("{choice:?}").contains("s3cret"));
    }

    #[test]
    fn this_machine_is_not_asked_of_a_proxy() {
        let choice = ProxyChoice::Named("http://proxy.example:3128".to_owned());
        assert!(choice.proxy_for(&"https://127.0.0.1:8444".parse().unwrap()).unwrap().is_none());
        let wrong = ProxyChoice::Named("socks5://proxy.example:1080".to_owned());
        assert!(wrong.proxy_for(&"https://hub.example".parse().unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = answer(&bytes);
        }
    }
}
