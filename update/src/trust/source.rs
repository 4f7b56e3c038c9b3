//! Where metadata comes from: a server, a folder, a bundle.

use super::VerifiedTarget;
use picket_transport::TransportError;

/// Where metadata comes from. `Ok(None)` means that there is no such file.
pub trait MetadataSource {
    /// The bytes of the metadata file called `name`, at most `max_bytes` of them.
    fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError>;

    /// The same, with the validator by which a later request can ask whether it changed; where it is still the one that
    /// `known` names, no bytes need to come. A source that knows no validators sends the bytes.
    fn fetch_changed(
        &self,
        name: &str,
        max_bytes: u64,
        known: Option<&str>,
    ) -> Result<Option<Changed>, TransportError> {
        let _ = known;
        Ok(self.fetch(name, max_bytes)?.map(|bytes| Changed::Bytes(Fetched { bytes, etag: None })))
    }

    /// The bytes of a small target, at most `max_bytes` of them. A source of metadata alone has none.
    fn fetch_target(&self, target: &VerifiedTarget, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        let _ = (target, max_bytes);
        Ok(None)
    }

    /// Which source it is: validators of one mean nothing to another.
    fn name(&self) -> String {
        String::new()
    }
}

/// An answer to the question whether a file changed.
#[derive(Debug)]
pub enum Changed {
    /// It did not.
    No,
    /// It did, or the source cannot tell.
    Bytes(Fetched),
}

/// A file with its validator.
#[derive(Debug)]
pub struct Fetched {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Its ETag, where the source has one.
    pub etag: Option<String>,
}
