//! Getting bytes from a release server, or from the file that stands in for one: where they are, and how they come in whole.

mod bundle;
mod download;
mod location;
mod origin;

pub use bundle::{Bundle, ExtractError, MAX_BUNDLE, target_place};
pub use download::{Download, DownloadError};
pub use location::Location;
pub use origin::{Origin, Releases};

use crate::trust::VerifiedTarget;
use crate::trust::source::{Changed, Fetched, MetadataSource};
use picket_transport::{Client, Request, SafeUrl, TransportError};

/// A release server.
#[derive(Debug, Clone)]
pub struct Server {
    /// How to ask.
    pub client: Client,
    /// Where things are.
    pub location: Location,
}

impl MetadataSource for Server {
    fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        match self.optional(&self.location.metadata(name)?, max_bytes) {
            // The next root is asked for though there may be none: a store that may not list its names answers 403. For any
            // other file, which must be there, that is somebody who forbids it.
            Err(error) if error.is_forbidden() && name.ends_with(".root.json") => Ok(None),
            answer => answer,
        }
    }

    fn fetch_changed(
        &self,
        name: &str,
        max_bytes: u64,
        known: Option<&str>,
    ) -> Result<Option<Changed>, TransportError> {
        let request = Request { if_none_match: known, expects: Some(max_bytes), ..Request::default() };
        match self.client.get(&self.location.metadata(name)?, &request) {
            Ok(response) if response.status == 304 && known.is_some() => Ok(Some(Changed::No)),
            Ok(response) => {
                let etag = response.etag.clone();
                Ok(Some(Changed::Bytes(Fetched { bytes: response.read(max_bytes)?, etag })))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn fetch_target(&self, target: &VerifiedTarget, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        self.optional(&self.location.target(target)?, max_bytes)
    }

    fn name(&self) -> String {
        self.location.to_string()
    }
}

impl Server {
    /// A small file; `None` where the server has no such file.
    pub fn optional(&self, url: &SafeUrl, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        match self.client.get_bytes(url, max_bytes) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
