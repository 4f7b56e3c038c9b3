//! Where a release server keeps its files: a plain tree, or the releases of a GitHub repository.
//!
//! | | plain tree at `BASE` | GitHub repository at `BASE` |
//! |---|---|---|
//! | metadata | `BASE/metadata/3.root.json` | `BASE/releases/latest/download/3.root.json` |
//! | channel | `BASE/targets/channel/<sha256>.stable.json` | `BASE/releases/latest/download/<sha256>.channel.stable.json` |
//! | artifact | `BASE/targets/1.2.0/<sha256>.<file>` | `BASE/releases/download/v1.2.0/<file>` |
//! | signature | the artifact's address with `.minisig` | the same |
//!
//! The tree follows the TUF specification's consistent snapshots, so any TUF client can read it. GitHub's addresses
//! need no API and have no hourly quota; its assets have no folders, hence the flat names. Which address an artifact
//! comes from is no matter of trust: length and hash are signed.

use crate::trust::{VerifiedTarget, percent_encode};
use picket_transport::{SafeUrl, UrlError};
use std::fmt;

/// Where files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A tree of static files below an address.
    Tree(SafeUrl),
    /// A tree whose metadata and targets are apart, as other vendors' TUF repositories have them.
    Apart {
        /// Where the metadata is.
        metadata: SafeUrl,
        /// Where the targets are.
        targets: SafeUrl,
    },
    /// The releases of a repository on GitHub, or on a server that answers like it.
    GitHub(SafeUrl),
}

/// What may stand in a path beside the unreserved characters (RFC 3986 §3.3).
const PATH_CHARACTERS: &str = "/!$&'()*+,;=:@";

/// Marks the address of a repository on another host than github.com (GitHub Enterprise, tests).
const GITHUB_PREFIX: &str = "github+";

impl Location {
    /// Reads `update.releases`: `https://github.com/OWNER/REPOSITORY`, `github+https://HOST/OWNER/REPOSITORY`, or the
    /// address of a tree.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim().trim_end_matches('/');
        if let Some(url) = text.strip_prefix(GITHUB_PREFIX) {
            return Ok(Self::GitHub(url.parse()?));
        }
        let url: SafeUrl = text.parse()?;
        let uri = url.as_uri();
        let repository = uri.host() == Some("github.com") && uri.path().trim_matches('/').split('/').count() == 2;
        Ok(if repository { Self::GitHub(url) } else { Self::Tree(url) })
    }

    /// The address of the metadata file called `name`.
    pub fn metadata(&self, name: &str) -> Result<SafeUrl, UrlError> {
        match self {
            Self::Tree(base) => base.join(&format!("metadata/{name}")),
            Self::Apart { metadata, .. } => metadata.join(name),
            Self::GitHub(base) => base.join(&format!("releases/latest/download/{name}")),
        }
    }

    /// The address of `target`.
    pub fn target(&self, target: &VerifiedTarget) -> Result<SafeUrl, UrlError> {
        let path = percent_encode(&target.path, PATH_CHARACTERS);
        let (folder, file) = path.rsplit_once('/').map_or(("", path.as_str()), |(folder, file)| (folder, file));
        let hash = target.hashes.name();
        let below = |base: &SafeUrl, top: &str| {
            let file = if target.hash_in_name { format!("{hash}.{file}") } else { file.to_owned() };
            let parts = [top, folder, &file];
            base.join(&parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"))
        };
        match self {
            Self::Tree(base) => below(base, "targets"),
            Self::Apart { targets, .. } => below(targets, ""),
            Self::GitHub(base) if folder == "channel" => {
                base.join(&format!("releases/latest/download/{hash}.channel.{file}"))
            }
            Self::GitHub(base) => base.join(&format!("releases/download/v{folder}/{file}")),
        }
    }

    /// The address of the minisign signature of `target`.
    pub fn signature(&self, target: &VerifiedTarget) -> Result<SafeUrl, UrlError> {
        let url = self.target(target)?;
        format!("{}.minisig", url.as_uri()).parse()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(url) | Self::GitHub(url) | Self::Apart { metadata: url, .. } => url.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::Sha256Digest;

    fn addresses(releases: &str) -> Vec<String> {
        let location = Location::parse(releases).unwrap();
        let artifact = target("1.2.0/picket-1.2.0-x86_64-unknown-linux-musl.tar.xz");
        [
            location.metadata("3.root.json"),
            location.target(&target("channel/stable.json")),
            location.target(&artifact),
            location.signature(&artifact),
        ]
        .map(|url| url.unwrap().to_string().replace(&HASH.to_string(), "HASH"))
        .to_vec()
    }

    static HASH: std::sync::LazyLock<Sha256Digest> = std::sync::LazyLock::new(|| Sha256Digest::new([0xab; 32]));

    fn target(path: &str) -> VerifiedTarget {
        VerifiedTarget { path: path.to_owned(), length: 1, hashes: (*HASH).into(), hash_in_name: true }
    }

    #[test]
    fn the_tree_of_another_vendor_is_followed_as_it_is() {
        let location = Location::Apart {
            metadata: "https://a.example/m".parse().unwrap(),
            targets: "https://b.example/t/".parse().unwrap(),
        };
        assert_eq!(location.metadata("timestamp.json").unwrap().to_string(), "https://a.example/m/timestamp.json");
        let plain = VerifiedTarget { hash_in_name: false, ..target("a b/ü?.txt") };
        assert_eq!(location.target(&plain).unwrap().to_string(), "https://b.example/t/a%20b/%C3%BC%3F.txt");
    }

    #[test]
    fn a_tree_is_the_one_that_every_tuf_client_knows() {
        let tree = [
            "https://r.example/picket/metadata/3.root.json",
            "https://r.example/picket/targets/channel/HASH.stable.json",
            "https://r.example/picket/targets/1.2.0/HASH.picket-1.2.0-x86_64-unknown-linux-musl.tar.xz",
            "https://r.example/picket/targets/1.2.0/HASH.picket-1.2.0-x86_64-unknown-linux-musl.tar.xz.minisig",
        ];
        assert_eq!(addresses("https://r.example/picket/"), tree);
    }

    #[test]
    fn a_github_repository_needs_no_api() {
        let github = [
            "https://github.com/o/r/releases/latest/download/3.root.json",
            "https://github.com/o/r/releases/latest/download/HASH.channel.stable.json",
            "https://github.com/o/r/releases/download/v1.2.0/picket-1.2.0-x86_64-unknown-linux-musl.tar.xz",
            "https://github.com/o/r/releases/download/v1.2.0/picket-1.2.0-x86_64-unknown-linux-musl.tar.xz.minisig",
        ];
        assert_eq!(addresses("https://github.com/o/r"), github);
        assert_eq!(
            Location::parse("https://github.com/o/r/pages").unwrap().to_string(),
            "https://github.com/o/r/pages"
        );
        assert!(matches!(Location::parse("https://github.com/o/r/pages"), Ok(Location::Tree(_))));
        assert!(matches!(Location::parse("github+http://127.0.0.1:1/o/r"), Ok(Location::GitHub(_))));
    }

    #[test]
    fn a_plain_http_server_elsewhere_is_refused() {
        assert!(matches!(Location::parse("http://releases.example.com"), Err(UrlError::Insecure(_))));
    }
}
