//! Where releases come from this time: the server that this machine follows, or a bundle that somebody carried here.

use super::{Bundle, Location, Server};
use crate::trust::VerifiedTarget;
use crate::trust::source::{Changed, MetadataSource};
use picket_transport::{Client, TransportError, UrlError};
use std::fmt;
use std::path::{Path, PathBuf};

/// Marks the path of a bundle where an address stands otherwise. No configuration can say it: whoever brings a bundle
/// says so.
const BUNDLE_PREFIX: &str = "bundle:";

/// Where releases are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Releases {
    /// On a server.
    Server(Location),
    /// In a file.
    Bundle(PathBuf),
}

impl Releases {
    /// What [`Releases::parse`] reads as the bundle at `path`.
    pub fn of_bundle(path: &Path) -> String {
        format!("{BUNDLE_PREFIX}{}", path.display())
    }

    /// Reads `update.releases`, or what [`Releases::of_bundle`] wrote.
    ///
    /// # Errors
    /// See [`Location::parse`].
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        match text.strip_prefix(BUNDLE_PREFIX) {
            Some(path) => Ok(Self::Bundle(path.into())),
            None => Location::parse(text).map(Self::Server),
        }
    }

    /// Makes ready to ask: `client` meets a server. A bundle is read here, so not by anything that may change the machine.
    ///
    /// # Errors
    /// When the bundle cannot be read.
    pub fn open(self, client: impl FnOnce() -> Client) -> Result<Origin, TransportError> {
        Ok(match self {
            Self::Server(location) => Origin::Server(Server { client: client(), location }),
            Self::Bundle(path) => Origin::Bundle(Bundle::open(&path)?),
        })
    }
}

impl fmt::Display for Releases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(location) => location.fmt(f),
            Self::Bundle(path) => path.display().fmt(f),
        }
    }
}

/// What answers for the releases.
#[derive(Debug)]
pub enum Origin {
    /// A server.
    Server(Server),
    /// A file.
    Bundle(Bundle),
}

impl Origin {
    fn source(&self) -> &dyn MetadataSource {
        match self {
            Self::Server(server) => server,
            Self::Bundle(bundle) => bundle,
        }
    }
}

impl MetadataSource for Origin {
    fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        self.source().fetch(name, max_bytes)
    }

    fn fetch_changed(
        &self,
        name: &str,
        max_bytes: u64,
        known: Option<&str>,
    ) -> Result<Option<Changed>, TransportError> {
        self.source().fetch_changed(name, max_bytes, known)
    }

    fn fetch_target(&self, target: &VerifiedTarget, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        self.source().fetch_target(target, max_bytes)
    }

    fn name(&self) -> String {
        self.source().name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_told_from_an_address() {
        let path = Path::new("/var/lib/picket-fetch/bundle.tar");
        assert_eq!(Releases::parse(&Releases::of_bundle(path)).unwrap(), Releases::Bundle(path.into()));
        assert!(matches!(Releases::parse("https://r.example"), Ok(Releases::Server(_))));
        assert!(Location::parse(&Releases::of_bundle(path)).is_err(), "a configuration could name a file");
    }
}
