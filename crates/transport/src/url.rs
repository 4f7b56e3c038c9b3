//! URLs that may be fetched: `https` anywhere, `http` only to this machine.

use http::Uri;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// A URL that passed the rule. Shown without user name, password, query and fragment: those may be secrets. One whose path
/// is a secret, too, is made by [`SafeUrl::secret`].
#[derive(Clone, PartialEq, Eq)]
pub struct SafeUrl {
    /// Behind a pointer: it is part of every error.
    uri: Arc<Uri>,
    /// Whether no more than scheme and host is shown.
    secret: bool,
}

/// A URL that is not allowed, and why. Shows no more of it than [`SafeUrl`] does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It is not a URL with scheme and host.
    #[error("{0:?} is not a URL (for example https://releases.example.com/picket)")]
    Malformed(String),
    /// Plain http to another machine, or another scheme.
    #[error("{0} is refused: only https, or http to this machine, is allowed")]
    Insecure(String),
    /// It names a user or a password.
    #[error("a URL must not hold a user name or password")]
    Credentials,
}

impl SafeUrl {
    /// A URL of which no more than scheme and host is ever shown, in no error either: who knows the address of a webhook
    /// may post to it.
    ///
    /// # Errors
    /// When it is not allowed.
    pub fn secret(text: &str) -> Result<Self, UrlError> {
        Self::read(text, true)
    }

    /// Whether the URL's host is this machine.
    pub fn is_loopback(&self) -> bool {
        self.uri.host().is_some_and(is_loopback_host)
    }

    /// Whether it is on the same server as `other`: of one scheme, host and port (an origin, RFC 6454 §4).
    pub fn is_on_server_of(&self, other: &Self) -> bool {
        let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
        self.uri.scheme() == other.uri.scheme()
            && host(&self.uri) == host(&other.uri)
            && port(&self.uri) == port(&other.uri)
    }

    /// The URL as a request needs it.
    pub fn as_uri(&self) -> &Uri {
        &self.uri
    }

    /// The URL of `path` below this one, as if this one were a folder.
    ///
    /// # Errors
    /// [`UrlError::Malformed`] when `path` has characters a URL cannot hold.
    pub fn join(&self, path: &str) -> Result<Self, UrlError> {
        let text = self.uri.to_string();
        Self::read(&format!("{}/{path}", text.trim_end_matches('/')), self.secret)
    }

    /// The URL that a redirect from this one leads to.
    ///
    /// # Errors
    /// When the place is not allowed; RFC 9110 §10.2.2 lets it be absolute or relative. From https there is no way to
    /// http, not even to this machine's: no server may make this one ask its own neighbours.
    pub fn redirected(&self, location: &str) -> Result<Self, UrlError> {
        if has_scheme(location) {
            let to = Self::read(location, self.secret)?;
            let downgraded = self.uri.scheme_str() == Some("https") && to.uri.scheme_str() != Some("https");
            return if downgraded { Err(UrlError::Insecure(to.to_string())) } else { Ok(to) };
        }
        let authority = self.uri.authority().map_or("", http::uri::Authority::as_str);
        let scheme = self.uri.scheme_str().unwrap_or("https");
        if let Some(rest) = location.strip_prefix("//") {
            return Self::read(&format!("{scheme}://{rest}"), self.secret);
        }
        if location.starts_with('/') {
            return Self::read(&format!("{scheme}://{authority}{location}"), self.secret);
        }
        let folder = self.uri.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        Self::read(&format!("{scheme}://{authority}{folder}/{location}"), self.secret)
    }

    fn read(text: &str, secret: bool) -> Result<Self, UrlError> {
        let malformed = || UrlError::Malformed(shown(text, secret));
        let uri: Uri = text.parse().map_err(|_| malformed())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(malformed()) };
        if authority.as_str().contains('@') {
            return Err(UrlError::Credentials);
        }
        let url = Self { uri: Arc::new(uri.clone()), secret };
        match scheme {
            "https" => Ok(url),
            "http" if url.is_loopback() => Ok(url),
            _ => Err(UrlError::Insecure(url.to_string())),
        }
    }
}

/// What is shown of a text that is no URL: as much as of one.
fn shown(text: &str, secret: bool) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit('@').next().unwrap_or_default();
    let text = match (scheme.is_empty(), secret) {
        // Without a scheme nobody knows which part is the host.
        (true, true) => "…".to_owned(),
        (true, false) => format!("{host}{path}"),
        (false, true) => format!("{scheme}://{host}/…"),
        (false, false) => format!("{scheme}://{host}{path}"),
    };
    text.chars().take(200).filter(|c| !c.is_control()).collect()
}

/// Whether it begins with a scheme (RFC 3986 §3.1). A `://` may also stand in a query.
fn has_scheme(location: &str) -> bool {
    location.split_once("://").is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    })
}

fn is_loopback_host(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl FromStr for SafeUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::read(text, false)
    }
}

impl fmt::Display for SafeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let authority = self.uri.authority().map_or("", http::uri::Authority::as_str);
        let path = if self.secret { "/…" } else { self.uri.path() };
        write!(f, "{scheme}://{authority}{path}")
    }
}

impl fmt::Debug for SafeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafeUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> SafeUrl {
        text.parse().unwrap()
    }

    #[test]
    fn only_https_and_loopback_are_allowed() {
        for allowed in ["https://example.com/x", "http://127.0.0.1:8000/", "http://localhost:1/", "http://[::1]:8000/a"]
        {
            assert!(allowed.parse::<SafeUrl>().is_ok(), "{allowed}");
        }
        for refused in [
            "http://example.com/",
            "http://127.0.0.1.example.com/",
            "ftp://localhost/",
            "file:///etc/passwd",
            "https://user:secret@example.com/",
            "http://localhost@example.com/",
            "releases.example.com",
            "",
        ] {
            assert!(refused.parse::<SafeUrl>().is_err(), "{refused}");
        }
    }

    #[test]
    fn a_redirect_is_resolved_and_cannot_leave_the_rule() {
        let from = url("https://a.example/x/y?token=1");
        assert_eq!(from.redirected("https://b.example/z").unwrap(), url("https://b.example/z"));
        assert_eq!(from.redirected("/z").unwrap(), url("https://a.example/z"));
        assert_eq!(from.redirected("z").unwrap(), url("https://a.example/x/z"));
        assert_eq!(from.redirected("//b.example/z").unwrap(), url("https://b.example/z"));
        assert!(from.redirected("http://b.example/z").is_err());
        assert!(from.redirected("http://127.0.0.1:8000/z").is_err(), "a server far away asks the neighbours");
        assert!(url("http://127.0.0.1:1/").redirected("http://127.0.0.1:8000/z").is_ok());
        let login = from.redirected("/login?next=https://a.example/x").unwrap();
        assert_eq!(login.as_uri(), &"https://a.example/login?next=https://a.example/x".parse::<Uri>().unwrap());
    }

    #[test]
    fn a_server_is_its_scheme_host_and_port() {
        let here = url("https://a.example/x");
        assert!(here.is_on_server_of(&url("https://A.example:443/y?z")));
        for other in ["https://b.example/x", "https://a.example:444/x", "https://a.example.b/x"] {
            assert!(!here.is_on_server_of(&url(other)), "{other}");
        }
        assert!(!url("http://127.0.0.1/").is_on_server_of(&url("https://127.0.0.1/")));
    }

    #[test]
    fn a_shown_url_keeps_its_query_to_itself() {
        assert_eq!(url("https://a.example/x?token=secret").to_string(), "https://a.example/x");
        assert!(!format!("{:?}", url("https://a.example/x?token=secret")).contains("secret"));
    }

    #[test]
    fn a_secret_url_shows_its_host_alone_also_where_it_is_refused_or_redirects() {
        let hook = SafeUrl::secret("https://hooks.example/services/T0/s3cret?x=s3cret").unwrap();
        assert_eq!(hook.as_uri().path(), "/services/T0/s3cret");
        let next = hook.redirected("/elsewhere/s3cret").unwrap();
        let texts = [
            hook.to_string(),
            format!("{hook:?}"),
            next.to_string(),
            hook.redirected("http://other.example/s3cret").unwrap_err().to_string(),
            hook.redirected("https://other.example/s3cret space").unwrap_err().to_string(),
            SafeUrl::secret("http://hooks.example/s3cret").unwrap_err().to_string(),
            SafeUrl::secret("https://me:s3cret@hooks.example/s3cret space").unwrap_err().to_string(),
            SafeUrl::secret("hooks.example/s3cret").unwrap_err().to_string(),
        ];
        for text in texts {
            assert!(!text.contains("s3cret"), "{text}");
        }
        assert_eq!(hook.to_string(), "https://hooks.example/…");
    }

    #[test]
    fn a_text_that_is_no_url_is_shown_without_what_may_be_secret() {
        let error = "https://me:s3cret@a.example/x y?token=s3cret".parse::<SafeUrl>().unwrap_err().to_string();
        assert!(error.contains("https://a.example/x y") && !error.contains("s3cret"), "{error}");
    }
}
