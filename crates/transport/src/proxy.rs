//! Through which proxy others are reached, and how a proxy is asked for a tunnel (RFC 9110 §9.3.6).

use crate::error::TransportError;
use crate::url::SafeUrl;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::fmt;
use ureq::{Proxy, ProxyProtocol};

/// The longest header of a proxy's answer, in bytes.
pub(crate) const MAX_ANSWER: usize = 8 << 10;

/// Which proxy is used, and for whom none is. This machine's own addresses are never asked of one.
///
/// It may hold a password: it is serialized for no other reader than another process of this product, over a pipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyChoice {
    source: Source,
    /// Hosts that are reached without one, as `NO_PROXY` has them.
    except: Vec<String>,
}

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    #[default]
    Environment,
    None,
    Named(String),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Environment => "Environment",
            Self::None => "None",
            // It may hold a password.
            Self::Named(_) => "Named",
        })
    }
}

impl ProxyChoice {
    /// The one that `ALL_PROXY`, `HTTPS_PROXY` or `HTTP_PROXY` names, but for what `NO_PROXY` names.
    pub fn environment() -> Self {
        Self::default()
    }

    /// None.
    pub fn none() -> Self {
        Self { source: Source::None, except: Vec::new() }
    }

    /// This one: `http://proxy.example:3128`, with `user:password@` if it asks for them.
    pub fn named(address: impl Into<String>) -> Self {
        Self { source: Source::Named(address.into()), except: Vec::new() }
    }

    /// The same, but `hosts` are reached without: a name or an address, `.example.com` or `*.example.com` for all names
    /// below, `*` for everybody.
    #[must_use]
    pub fn except(self, hosts: &[String]) -> Self {
        let hosts = hosts.iter().map(|host| host.trim().to_owned()).filter(|host| !host.is_empty());
        Self { except: hosts.collect(), ..self }
    }

    /// Whether the address of the proxy can be used.
    ///
    /// # Errors
    /// [`TransportError::Proxy`]; it shows nothing of the address.
    pub fn check(&self) -> Result<(), TransportError> {
        match &self.source {
            Source::Named(address) => named(address).map(drop),
            Source::Environment | Source::None => Ok(()),
        }
    }

    /// `variables`, the environment of another program, so that they say the same to it.
    pub fn tell(&self, variables: Vec<(String, String)>) -> Vec<(String, String)> {
        const SOURCES: [&str; 3] = ["all_proxy", "https_proxy", "http_proxy"];
        if self.source == Source::Environment && self.except.is_empty() {
            return variables;
        }
        let is = |name: &str, names: &[&str]| names.contains(&name.to_ascii_lowercase().as_str());
        let (exceptions, mut kept): (Vec<_>, Vec<_>) =
            variables.into_iter().partition(|(name, _)| is(name, &["no_proxy"]));
        let mut except = self.except.clone();
        match &self.source {
            Source::Environment => except.extend(exceptions.into_iter().map(|(_, hosts)| hosts)),
            Source::None => kept.retain(|(name, _)| !is(name, &SOURCES)),
            Source::Named(address) => {
                kept.retain(|(name, _)| !is(name, &SOURCES));
                kept.push(("HTTPS_PROXY".to_owned(), address.clone()));
            }
        }
        if !except.is_empty() {
            kept.push(("NO_PROXY".to_owned(), except.join(",")));
        }
        kept
    }

    /// The proxy for `url`, if there is one.
    ///
    /// # Errors
    /// [`TransportError::Proxy`] for an address that is none of a proxy.
    pub(crate) fn proxy_for(&self, url: &SafeUrl) -> Result<Option<Proxy>, TransportError> {
        if url.is_loopback() || self.excepts(url) {
            return Ok(None);
        }
        let proxy = match &self.source {
            Source::None => None,
            Source::Environment => Proxy::try_from_env().filter(|proxy| !proxy.is_no_proxy(url.as_uri())),
            Source::Named(address) => Some(named(address)?),
        };
        proxy.map(spoken_to).transpose()
    }

    fn excepts(&self, url: &SafeUrl) -> bool {
        let list = self.except.iter().fold(Proxy::builder(ProxyProtocol::Http), |list, host| list.no_proxy(host));
        list.build().is_ok_and(|list| list.is_no_proxy(url.as_uri()))
    }
}

fn bad(reason: &str) -> TransportError {
    TransportError::Proxy { reason: reason.to_owned() }
}

fn named(address: &str) -> Result<Proxy, TransportError> {
    let proxy = Proxy::new(address).map_err(|_| bad("a proxy is written as http://host:port"))?;
    spoken_to(proxy)
}

fn spoken_to(proxy: Proxy) -> Result<Proxy, TransportError> {
    if proxy.protocol() == ProxyProtocol::Http {
        return Ok(proxy);
    }
    Err(bad("only proxies that are spoken to in http are known (http://host:port)"))
}

/// Asks a proxy for a tunnel to `authority` (host and port).
pub(crate) fn request(proxy: &Proxy, authority: &str) -> String {
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
pub(crate) fn answer(bytes: &[u8]) -> Option<Result<(), String>> {
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
        let choice = ProxyChoice::named("http://ann:s3cret@proxy.example:3128");
        let proxy = choice.proxy_for(&"https://hub.example".parse().unwrap()).unwrap().unwrap();
        let text = request(&proxy, "hub.example:443");
        assert!(text.starts_with("CONNECT hub.example:443 HTTP/1.1\r\n") && text.ends_with("\r\n\r\n"), "{text}");
        assert!(text.contains(&STANDARD.encode("ann:s3cret")));
        assert!(!format!("{choice:?}").contains("s3cret"));
    }

    #[test]
    fn this_machine_is_not_asked_of_a_proxy() {
        let choice = ProxyChoice::named("http://proxy.example:3128");
        assert!(choice.proxy_for(&"https://127.0.0.1:8444".parse().unwrap()).unwrap().is_none());
        let wrong = ProxyChoice::named("socks5://proxy.example:1080");
        assert!(wrong.proxy_for(&"https://hub.example".parse().unwrap()).is_err());
    }

    #[test]
    fn hosts_that_are_excepted_are_reached_without_a_proxy() {
        let hosts = ["exact.example", ".below.example", "*.star.example", " 192.0.2.7 ", ""].map(str::to_owned);
        let choice = ProxyChoice::named("http://proxy.example:3128").except(&hosts);
        let through = |host: &str| choice.proxy_for(&format!("https://{host}/x").parse().unwrap()).unwrap().is_some();
        for without in ["exact.example", "EXACT.example", "a.below.example", "a.star.example", "192.0.2.7", "localhost"]
        {
            assert!(!through(without), "{without}");
        }
        for with in ["not-exact.example", "x.exact.example", "below.example", "192.0.2.77", "other.example"] {
            assert!(through(with), "{with}");
        }
        let everybody = ProxyChoice::named("http://proxy.example:3128").except(&["*".to_owned()]);
        assert!(everybody.proxy_for(&"https://x.example".parse().unwrap()).unwrap().is_none());
    }

    #[test]
    fn an_address_that_is_none_of_a_proxy_is_refused_without_being_shown() {
        for wrong in ["ftp://ann:s3cret@proxy", "http://ann:s3cret@pro xy:1", "socks5://ann:s3cret@proxy:1080"] {
            let told = ProxyChoice::named(wrong).check().unwrap_err().to_string();
            assert!(told.contains("http://host:port") && !told.contains("s3cret"), "{told}");
        }
        ProxyChoice::named("http://ann:s3cret@proxy.example:3128").check().unwrap();
        ProxyChoice::none().check().unwrap();
    }

    #[test]
    fn another_program_is_told_the_same_by_variables() {
        let given = || {
            let pairs = [("https_proxy", "http://env:1"), ("NO_PROXY", "b"), ("SSL_CERT_FILE", "/x")];
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
        };
        let told = |choice: ProxyChoice| {
            let pairs: Vec<String> = choice.tell(given()).into_iter().map(|(n, v)| format!("{n}={v}")).collect();
            pairs.join(" ")
        };
        let except = ["a.example".to_owned()];
        assert_eq!(ProxyChoice::environment().tell(given()), given());
        let more = told(ProxyChoice::environment().except(&except));
        assert_eq!(more, "https_proxy=http://env:1 SSL_CERT_FILE=/x NO_PROXY=a.example,b");
        assert_eq!(told(ProxyChoice::none()), "SSL_CERT_FILE=/x");
        let named = told(ProxyChoice::named("http://p:1").except(&except));
        assert_eq!(named, "SSL_CERT_FILE=/x HTTPS_PROXY=http://p:1 NO_PROXY=a.example");
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = answer(&bytes);
        }
    }
}
