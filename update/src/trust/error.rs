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
    /// The server could not be reached or broke off; or the bundle in its place cannot be read.
    #[error("{}", unanswered(.0))]
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

fn unanswered(error: &TransportError) -> &'static str {
    match error {
        TransportError::Bundle { .. } => "the bundle cannot be used",
        _ => "the release server did not answer",
    }
}

impl TrustError {
    /// Whether it may be nobody's fault but the network's: trying again later can help.
    pub fn is_network_trouble(&self) -> bool {
        match self {
            Self::Transport(error) => !matches!(error, TransportError::Bundle { .. }),
            error => matches!(error, Self::Missing(_)),
        }
    }

    /// Who may be behind it, what it may mean and what to do, for the person who reads it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoRoot => {
                "install with `picket install --root-keys root.json --releases URL`; the vendor publishes root.json"
            }
            Self::PinnedRoot(_) => "get root.json from the vendor again, over a channel you trust",
            Self::Refused { source, .. } => refusal(source),
            Self::Floor { .. } => OLDER,
            Self::Transport(error) => error.advice(),
            Self::Missing(_) => {
                "the server or a mirror is half copied, or somebody withholds the file; check update.releases and try \
                 again later. Nothing was changed"
            }
            Self::ClockBack { .. } => {
                "somebody turned the clock back to make old metadata look fresh, or the clock was wrong before: set it \
                 right (`timedatectl`); whatever the vendor signs next is taken as usual, and the installed version goes on \
                 running"
            }
            Self::Store(_) => "check the disk and the owner of the updater's state folder; `picket doctor` shows both",
            Self::NoHash(_) => "tell the vendor; nothing was changed",
            Self::UnknownTarget(_) | Self::NoArtifact { .. } => {
                "the vendor offers no such channel, or no build for this machine in this release; check update.channel. \
                 Nothing was changed"
            }
            Self::Channel(_) => {
                "the vendor signed something that is not this channel's: check update.releases and update.channel; if both \
                 are right, tell the vendor. Nothing was changed"
            }
            Self::Mismatch { .. } => {
                "the download was damaged or replaced on the way; it was thrown away. If it happens again, the server or \
                 a mirror may be compromised: tell the vendor"
            }
            Self::Minisign { .. } => {
                "the second lock does not open: the server or a mirror offers the signature of another file, or the \
                 vendor's targets key may be stolen; the download was thrown away. If it happens again, the server or a \
                 mirror may be compromised: ask the vendor before you do anything"
            }
        }
    }
}

/// For every way of offering less than was seen before.
const OLDER: &str = "a mirror is out of date, or somebody offers this machine an older release on purpose; nothing was \
                     changed. If it lasts, ask the vendor: where a stolen online key had run the versions up, a new root \
                     sets them right";

/// What refused metadata may mean.
fn refusal(error: &sigstore_tuf::Error) -> &'static str {
    use sigstore_tuf::Error as Tuf;
    match error {
        Tuf::Expired { .. } => {
            "the vendor has not renewed it, a mirror is out of date, somebody holds newer releases back, or this \
             machine's clock is wrong: check the clock and update.releases, then ask the vendor. The installed version \
             goes on running"
        }
        Tuf::Rollback { .. } => OLDER,
        Tuf::ThresholdNotMet { found: 0, .. } => {
            "the signatures are not the vendor's: the release server or a mirror may be compromised, or the vendor \
             changed its keys without a new root; ask the vendor before you do anything"
        }
        Tuf::ThresholdNotMet { .. } => {
            "too few of the vendor's keys have signed it: one of them may be stolen, or the vendor published a draft; ask \
             the vendor before you do anything"
        }
        Tuf::DuplicateSignature { .. } => {
            "one key would count more than once: it may be stolen, or the vendor's tool is broken; ask the vendor before \
             you do anything"
        }
        _ => {
            "the release server or a mirror offers something that the vendor did not write, or half of it; it may be \
             compromised. Nothing was changed: try again later, and if it stays, ask the vendor"
        }
    }
}
