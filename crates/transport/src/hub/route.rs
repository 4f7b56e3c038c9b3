//! Where a hub is, and which way leads there.

use crate::error::TransportError;
use crate::proxy::ProxyChoice;
use crate::url::{SafeUrl, UrlError};
use rustls::pki_types::ServerName;
use std::net::{SocketAddr, ToSocketAddrs as _};
use ureq::Proxy;

/// A hub's address, taken apart, and the proxy on the way.
#[derive(Debug, Clone)]
pub struct Route {
    url: SafeUrl,
    name: ServerName<'static>,
    host: String,
    port: u16,
    proxy: Option<Proxy>,
}

impl Route {
    /// The way to the hub at `hub` (`https://hub.example:8444`).
    ///
    /// # Errors
    /// [`TransportError::Url`] when it is not https, [`TransportError::Proxy`] when the proxy cannot be used.
    pub fn new(hub: &str, choice: &ProxyChoice) -> Result<Self, TransportError> {
        let url: SafeUrl = hub.parse()?;
        let uri = url.as_uri();
        if uri.scheme_str() != Some("https") {
            return Err(UrlError::Insecure(url.to_string()).into());
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| UrlError::Malformed(url.to_string()))?;
        let port = uri.port_u16().unwrap_or(443);
        let proxy = choice.proxy_for(&url)?;
        Ok(Self { url, name, host, port, proxy })
    }

    /// The hub's address.
    pub fn url(&self) -> &SafeUrl {
        &self.url
    }

    /// The name that must be in its certificate.
    pub fn name(&self) -> &ServerName<'static> {
        &self.name
    }

    /// Host and port, as a URL has them.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The host and port that are connected to: the proxy's, where there is one.
    pub fn next_hop(&self) -> (&str, u16) {
        match &self.proxy {
            Some(proxy) => (proxy.host(), proxy.port()),
            None => (&self.host, self.port),
        }
    }

    /// The proxy as people may see it: without user and password.
    pub fn shown_proxy(&self) -> Option<String> {
        self.proxy.as_ref().map(|proxy| format!("{}:{}", proxy.host(), proxy.port()))
    }

    pub(super) fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// The addresses of the next hop. May take as long as the resolver's own limits (resolv.conf(5)).
    ///
    /// # Errors
    /// What the system says; never an empty list.
    pub fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        let (host, port) = self.next_hop();
        let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
        if addresses.is_empty() { Err(std::io::Error::other("the name has no address")) } else { Ok(addresses) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(hub: &str) -> Result<Route, TransportError> {
        Route::new(hub, &ProxyChoice::none())
    }

    #[test]
    fn an_address_is_taken_apart_and_only_https_is_taken() {
        let v6 = route("https://[::1]:8444").unwrap();
        assert_eq!((v6.authority().as_str(), v6.next_hop()), ("[::1]:8444", ("::1", 8444)));
        assert_eq!(route("https://hub.example/x").unwrap().authority(), "hub.example:443");
        for wrong in ["http://127.0.0.1:1", "http://hub.example", "hub.example", "https://a b"] {
            assert!(route(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn with_a_proxy_the_next_hop_is_the_proxy_and_its_password_is_not_shown() {
        let choice = ProxyChoice::named("http://ann:s3cret@proxy.example:3128");
        let route = Route::new("https://hub.example", &choice).unwrap();
        assert_eq!(route.next_hop(), ("proxy.example", 3128));
        assert_eq!(route.shown_proxy().unwrap(), "proxy.example:3128");
        assert!(!format!("{route:?}").contains("s3cret"), "{route:?}");
    }
}
