//! Finding a host by its name, with a failure that says that it was the name.

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// The system's names. `ureq` tells what getaddrinfo(3) says as any other I/O error, and the standard library gives it no
/// kind of its own: only here is it known that a name was asked for.
#[derive(Debug, Default)]
pub(crate) struct Names(DefaultResolver);

impl Resolver for Names {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        self.0.resolve(uri, config, timeout).map_err(|error| match error {
            ureq::Error::Io(_) => ureq::Error::HostNotFound,
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Client, Network, Request, Timeouts, TransportError};

    /// RFC 6761 §6.4: no name below `invalid` is ever known.
    #[test]
    fn a_name_that_nobody_knows_is_told_as_such_and_not_as_an_answer_that_broke_off() {
        let client = Client::new("picket-test", Timeouts::default(), &Network::default());
        let url = "https://releases.invalid/picket".parse().unwrap();
        let error = client.get(&url, &Request::default()).expect_err("somebody answers for it");
        assert!(matches!(error, TransportError::UnknownHost { .. }), "{error:?}");
        assert!(error.advice().contains("DNS"), "{}", error.advice());
    }
}
