//! Why release metadata or an artifact is not trusted, in words that name the party and the way out.

use picket_transport::TransportError;

/// Something that keeps a release from being trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// No root is pinned: this build carries none and none was given.
    #[error("this installation pins no release root, so no release can be trusted")]
    NoRoot,
    /// The pinned root itself cannot be used.
    #[error("the pinned release root cannot be used")]
    PinnedRoot(#[source] sigstore_tuf::Error),
    /// Metadata from the server was refused.
    #[error("the release server's {role} metadata is refused")]
    Refused {
        /// The TUF role.
        role: &'static str,
        /// What is wrong with it.
        source: sigstore_tuf::Error,
    },
    /// Metadata is fresh by the clock, but not by what this machine has seen before.
    #[error(
        "the release server's {role} metadata is refused: it expired at {expires}, and this machine has seen later times; \
         its clock now says {clock}"
    )]
    ClockBack {
        /// The TUF role.
        role: &'static str,
        /// When it expired.
        expires: jiff::Timestamp,
        /// What the clock says.
        clock: jiff::Timestamp,
    },
    /// Metadata that this machine saw before promised newer versions than the server offers now.
    #[error(
        "the release server's snapshot metadata is refused: it takes {name} back from version {trusted} to {offered}"
    )]
    Floor {
        /// The file that went backwards.
        name: String,
        /// The version this machine has seen.
        trusted: u64,
        /// The version offered now; 0 when it is gone.
        offered: u64,
    },
    /// The server has no such file.
    #[error("the release server has no {0}")]
    Missing(String),
    /// The server could not be reached or broke off.
    #[error("the release server did not answer")]
    Transport(#[from] TransportError),
    /// The trusted metadata could not be kept.
    #[error("the trusted metadata cannot be stored")]
    Store(#[from] picket_durable::Error),
    /// A file is not among the signed targets.
    #[error("{0} is not among the files that the vendor signed")]
    UnknownTarget(String),
    /// The vendor signed no hash of a file that this version can compute.
    #[error("{0} cannot be verified: the vendor signed no SHA-256 of it")]
    NoHash(String),
    /// The channel document was refused.
    #[error("the channel document is refused")]
    Channel(#[from] picket_protocol::ChannelError),
    /// The release names no artifact of this machine's kind.
    #[error("release {version} has no build for {target}")]
    NoArtifact {
        /// The release.
        version: semver::Version,
        /// This machine's target triple.
        target: picket_protocol::TargetTriple,
    },
    /// Bytes do not have the signed length or hash.
    #[error("{name}: the bytes are not the ones that the vendor signed ({detail})")]
    Mismatch {
        /// The file.
        name: String,
        /// What differs.
        detail: String,
    },
    /// The minisign signature was refused.
    #[error("{name}: the minisign signature is refused ({detail})")]
    Minisign {
        /// The file.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
}

impl TrustError {
    /// Whether it may be nobody's fault but the network's: trying again later can help.
    pub fn is_network_trouble(&self) -> bool {
        matches!(self, Self::Transport(_) | Self::Missing(_))
    }

    /// What it may mean and what to do, for the person who reads it.
    pub fn hint(&self) -> &'static str {
        use sigstore_tuf::Error as Tuf;
        match self {
            Self::NoRoot => {
                "install with `picket install --root-keys root.json --releases URL`; the vendor publishes root.json"
            }
            Self::PinnedRoot(_) => "get root.json from the vendor again, over a channel you trust",
            Self::Refused { source: Tuf::Expired { .. }, .. } => {
                "the vendor has not renewed it, a mirror is out of date, somebody holds newer releases back, or this \
                 machine's clock is wrong; the installed version goes on running"
            }
            Self::ClockBack { .. } => {
                "somebody turned the clock back to make old metadata look fresh, or the clock was wrong before: set it \
                 right (`timedatectl`); whatever the vendor signs next is taken as usual, and the installed version goes on \
                 running"
            }
            Self::Refused { source: Tuf::Rollback { .. }, .. } | Self::Floor { .. } => {
                "a mirror is out of date, or somebody offers this machine an older release on purpose; nothing was changed"
            }
            Self::Refused { source: Tuf::ThresholdNotMet { .. }, .. } => {
                "the signatures are not the vendor's: the release server or a mirror may be compromised, or the vendor \
                 changed its keys without a new root; ask the vendor before you do anything"
            }
            Self::Refused { .. } => {
                "the release server offers something the vendor would not; it may be compromised, or half written"
            }
            Self::Transport(error) => error.advice(),
            Self::Missing(_) => "check update.releases and the network; nothing was changed",
            Self::Store(_) => "check the disk and the owner of the updater's state folder; `picket doctor` shows both",
            Self::NoHash(_) => "tell the vendor; nothing was changed",
            Self::UnknownTarget(_) | Self::NoArtifact { .. } => {
                "the vendor offers no build for this machine in this release; nothing was changed"
            }
            Self::Channel(_) => "check update.channel; if it is right, tell the vendor",
            Self::Mismatch { .. } | Self::Minisign { .. } => {
                "the download was damaged or replaced on the way; it was thrown away. If it happens again, the server or \
                 a mirror may be compromised"
            }
        }
    }
}
