//! HTTP over TLS as Picket speaks it: https or loopback, bounded in size and time.
//!
//! One TLS stack (rustls) and one provider (ring), chosen in [`provider`] and nowhere else. Every URL is `https`, or
//! `http` to this very machine; redirects are followed by hand so that this holds for each hop. Certificates are
//! checked by the platform's verifier against the machine's own authorities, and those that an operator named beside them; a
//! machine that has none falls back to the authorities compiled in, and says so. Every request takes the proxy that
//! [`Network`] names, but for those to this very machine.
//!
//! No request has a total time limit, because a large file on a slow line is not an error; each has limits on finding the
//! host, on connecting, on the wait for the whole of the answer's header, on the silence between two reads and on the rate
//! of the body ([`Pace`]), and whoever reads a body bounds its size. Nothing is asked for compressed. What
//! comes in gzip all the same is unpacked while it is read (the HTTP client does so as soon as any crate of the build asks for
//! its feature, and `self_update` does), and every bound is of what comes out: a small answer cannot become a large one. Any
//! other encoding is refused.
//!
//! The way to a hub is in [`hub`]: its authorities are known by pins, and both sides show certificates.

mod client;
mod error;
pub mod hub;
mod names;
mod network;
mod pace;
mod proxy;
mod url;
mod wait;

pub use client::{Client, Post, Request, Response, Timeouts, read_error};
pub use error::TransportError;
pub use network::{Authorities, Network, NetworkError, NetworkSettings, machine_authorities};
pub use pace::{Pace, TooSlow};
pub use proxy::ProxyChoice;
pub use url::{SafeUrl, UrlError};

use std::sync::Arc;

/// The crypto provider of every TLS connection this product makes or takes: a switch of provider is this line.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
