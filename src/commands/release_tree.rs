//! A release tree as the vendor's commands read it: in a folder, in a bundle, or on a server.

use super::Context;
use crate::build;
use crate::cli::ConfigArgs;
use crate::error::CommandError;
use crate::settings;
use picket_transport::{Client, Timeouts, TransportError};
use picket_update::fetch::{Location, Origin, Releases, target_place};
use picket_update::trust::minisign::MAX_SIGNATURE_BYTES;
use picket_update::trust::{MetadataSource, MinisignKeys, TrustError, VerifiedTarget};
use std::path::{Path, PathBuf};

/// The largest root metadata, in bytes.
pub(super) const MAX_ROOT: u64 = 512_000;

/// A release tree.
pub(super) enum Tree {
    /// A folder of static files.
    Folder(PathBuf),
    /// A bundle, or a server.
    Origin(Origin),
}

impl MetadataSource for Tree {
    fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        match self {
            Self::Origin(origin) => origin.fetch(name, max_bytes),
            // A file that cannot be read is a file that a machine would not get.
            Self::Folder(dir) => {
                Ok(picket_durable::read_if_present(&dir.join("metadata").join(name), max_bytes).ok().flatten())
            }
        }
    }

    fn fetch_target(&self, target: &VerifiedTarget, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        match self {
            Self::Origin(origin) => origin.fetch_target(target, max_bytes),
            Self::Folder(_) => Ok(self.target(target, "", max_bytes).ok()),
        }
    }
}

impl Tree {
    /// Reads what a person calls a tree.
    pub(super) fn parse(context: &Context<'_>, text: &str) -> Result<Self, CommandError> {
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let releases = if path.is_file() {
            Ok(Releases::Bundle(path.to_owned()))
        } else {
            Location::parse(text).map(Releases::Server)
        };
        let releases = releases.map_err(|error| {
            let what = "neither a folder, nor a bundle, nor an address that machines follow";
            CommandError::Usage(format!("{text:?} is {what}: {error}"))
        })?;
        let configured = settings::read(&context.layout, context.process, &ConfigArgs::default()).settings;
        let network = configured.network.resolve()?;
        let origin = releases.open(|| Client::new(&build::user_agent(), Timeouts::default(), &network));
        Ok(Self::Origin(origin.map_err(TrustError::from)?))
    }

    /// The bytes of a target, with `suffix` added to its name.
    fn target(&self, target: &VerifiedTarget, suffix: &str, max_bytes: u64) -> Result<Vec<u8>, TrustError> {
        let place = || format!("{}{suffix}", target_place(target));
        let bytes = match self {
            Self::Folder(dir) => picket_durable::read_if_present(&dir.join(place()), max_bytes)?,
            Self::Origin(Origin::Bundle(bundle)) => bundle.small(&place(), max_bytes)?,
            Self::Origin(Origin::Server(server)) => {
                let location = &server.location;
                let url = if suffix.is_empty() { location.target(target) } else { location.signature(target) };
                server.optional(&url.map_err(TransportError::from)?, max_bytes)?
            }
        };
        bytes.ok_or_else(|| TrustError::Missing(format!("{}{suffix}", target.path)))
    }

    /// The root to begin with: the one in the file `given`, or the tree's own first one, and then that is said.
    pub(super) fn root(&self, context: &Context<'_>, given: Option<&Path>) -> Result<Vec<u8>, CommandError> {
        if let Some(path) = given {
            return Ok(picket_durable::read_bounded(path, MAX_ROOT)?);
        }
        context
            .output
            .warn("no --root given: trusting the tree's own first root, which proves nothing about who made it");
        let root = self.fetch("1.root.json", MAX_ROOT).map_err(TrustError::from)?;
        Ok(root.ok_or_else(|| TrustError::Missing("1.root.json".to_owned()))?)
    }

    /// The bytes of an artifact and of its signature, checked as a machine checks them.
    pub(super) fn artifact(
        &self,
        signed: &VerifiedTarget,
        keys: &MinisignKeys,
        expected_comment: &str,
    ) -> Result<(Vec<u8>, Vec<u8>), TrustError> {
        let bytes = self.target(signed, "", signed.length)?;
        signed.check(&bytes)?;
        let signature = self.target(signed, ".minisig", MAX_SIGNATURE_BYTES)?;
        keys.verify(&signed.path, &bytes[..], &String::from_utf8_lossy(&signature), expected_comment)?;
        Ok((bytes, signature))
    }
}
